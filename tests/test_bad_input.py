import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import torch

import eqk
from eqk import testing

ROOT = Path(__file__).parent.parent
PLAN = eqk.Plan("2x0e + 3x1o", "1x0e", "2x0e + 3x1o", ((0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)))
X, Y, W, G = torch.ones(4, 11), torch.ones(4, 1), torch.ones(4, 5), torch.ones(4, 11)
OPS = torch.ops.eqk


def with_argument(n, value, op="tensor_product_double_backward"):
    args = {"tensor_product": [X, Y, W], "tensor_product_double_backward": [X, Y, W, G, X, Y, W, G]}[op]
    args = [value if k == n else a for k, a in enumerate(args)]
    return getattr(OPS, op)(*args, str(PLAN), *([[True] * 4] if "backward" in op else []))


@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("how", ["shape", "dimensions", "dtype", "rows"])
def test_every_operand_is_named(n, how):
    t = (X, Y, W, G)[n % 4]
    value = {"shape": t[:, :-1], "dimensions": t[None], "dtype": t.long(), "rows": t[:3]}[how]
    # The number of rows and the dtype are x's: where x is wrong, the operand that no longer fits is named.
    name = r"[xyw]" if n == 0 else fuzz.NAMES[n]
    with pytest.raises(RuntimeError, match=rf"eqk::tensor_product_double_backward: {name}: expected"):
        with_argument(n, value)


@pytest.mark.parametrize(
    "value", [None, 3.0, "x", [1.0], torch.ones(4, 11).to_sparse()], ids=["None", "float", "str", "list", "sparse"]
)
def test_what_is_no_dense_tensor(value):
    with pytest.raises((RuntimeError, TypeError, NotImplementedError), match="x"):
        eqk.tensor_product(value, Y, W, PLAN)
    with pytest.raises((RuntimeError, NotImplementedError)):
        with_argument(0, value)


def test_public_function_names_arguments():
    for args, named in (
        ((X, torch.ones(3, 1), W), "x, y, w: expected leading dimensions"),
        ((X, torch.tensor(1.0), W), "y: expected at least 1 dimension"),
        ((X, Y, None), "w: expected"),
        ((X, Y, torch.ones(4, 6)), r"w: expected shape \[4, 5\], got \[4, 6\]"),
        ((X, Y, W.double()), "w: expected dtype"),
    ):
        with pytest.raises(RuntimeError, match=named):
            eqk.tensor_product(*args, PLAN)
    with pytest.raises(TypeError, match="plan: expected"):
        eqk.tensor_product(X, Y, W, 3)
    with pytest.raises((RuntimeError, ValueError), match="plan: expected"):
        eqk.tensor_product(X, Y, W, "x")


@pytest.mark.parametrize("n", range(1, 8))
def test_one_tensor_without_data(n):
    """It brings the call to the fake kernel, whose results have no numbers."""
    with pytest.raises(RuntimeError, match=rf"{fuzz.NAMES[n]}: expected device cpu as x has, got meta"):
        with_argument(n, (X, Y, W, G)[n % 4].to("meta"))


def test_wanted():
    for wanted in ([], [True] * 2, [True] * 4):
        with pytest.raises(RuntimeError, match="wanted: expected 3 flags"):
            OPS.tensor_product_backward(X, Y, W, G, str(PLAN), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_row(value):
    x = X.clone()
    x[2, 0] = value
    out = eqk.tensor_product(x, Y, W, PLAN)
    expected = eqk.tensor_product(X, Y, W, PLAN)
    assert not out[2, 0].isfinite()
    assert torch.equal(out[[0, 1, 3]], expected[[0, 1, 3]])
    assert torch.equal(out[2, 1:], expected[2, 1:])


OUT_OF_MEMORY = """
import resource, torch, eqk
torch.set_num_threads(2)
n = 1 << 24
x = torch.zeros(1, n).expand(256, n)
call = lambda text, x: torch.ops.eqk.tensor_product(x, torch.zeros(256, 1), None, text)
call("1x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {}", x[:, :1])
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + (128 << 20), -1))
for text in (f"{n}x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {{}}", f"{n}x0e * 1x0e -> {n}x0e [mul_ir,mul_ir,mul_ir] none {{}}"):
    try:
        call(text, x)
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_out_of_memory():
    """What a thread of a parallel region runs out of, and what a result does."""
    result = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=True)
    scratch, out = result.stdout.splitlines()
    assert "out of memory: could not allocate" in scratch, scratch
    assert scratch.endswith("bytes of scratch memory for a block of rows")
    assert "out of memory: could not allocate a result of shape [256, 16777216]" in out, out


def test_mutated_calls():
    outcomes, failures = fuzz.run(1500)
    assert not failures, (testing.seed(), failures[:5])
    assert min(outcomes["refused"], outcomes["accepted"]) > 200


@pytest.mark.sanitizer
def test_mutated_calls_under_sanitizers(tmp_path):
    """10 000 mutated calls on a library built with AddressSanitizer and UBSan; each finding ends the process."""
    build = Path(os.environ.get("EQK_SANITIZER_BUILD", tmp_path / "build"))
    torch_directory = Path(torch.__file__).parent
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DEQK_TORCH_DIR={torch_directory}"]
    subprocess.run([*configure, "-DEQK_SANITIZE=address,undefined", "-DEQK_LMAX=1"], check=True, capture_output=True)
    subprocess.run(["ninja", "-C", str(build), "eqk_cpu"], check=True, capture_output=True)
    package = tmp_path / "eqk"
    package.mkdir()
    for source in Path(eqk.__file__).parent.iterdir():
        if source.name not in ("lib", "__pycache__"):
            (package / source.name).symlink_to(source)
    (package / "lib").mkdir()
    (package / "lib" / "libeqk_cpu.so").symlink_to(build / "libeqk_cpu.so")
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(tmp_path),
        "EQK_SEED": str(testing.seed()),
    }
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), "10000"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
