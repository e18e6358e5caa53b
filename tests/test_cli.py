"""python -m eqk: what it prints against independent counts, and that check fails where an op is wrong."""

import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import eqk
from eqk import _library, adapters, counts, dispatch, reference, testing
from eqk.__main__ import main
from eqk.cli import check, explain, info
from eqk.cli.cases import all_cases
from eqk.cli.fatbin import architectures
from eqk.cli.tables import markdown, number
from eqk.plan import MAX_LENGTH

ROOT = Path(__file__).resolve().parent.parent


def tables(text):
    """The markdown tables of a text, each a list of rows, the headers first."""
    found = []
    for inside, lines in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")):
        if inside:
            rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
            assert all(set(cell) <= set("-:") for cell in rows[1])
            found.append([rows[0], *rows[2:]])
    return found


def run(capsys, *argv):
    status = main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# tables


def test_markdown():
    got = markdown(("a", "long header"), [(1, "x|y"), ("four", "")], right=("a",))
    assert got.splitlines() == [
        "|    a | long header |",
        "| ---: | ----------- |",
        "|    1 | x\\|y        |",
        "| four |             |",
    ]


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (1234.5, "1230"), (0.00012345, "0.000123"), (2e7, "2e+07"), (float("inf"), "inf"), (99999.6, "100000")],
)
def test_number(value, text):
    assert number(value) == text


# import


def test_the_package_imports_nothing_of_it_and_runs_as_a_module():
    """EQK_CPU_ISA is read when the first kernel runs, so another process shows that info asks the same choice."""
    program = (
        "import sys, eqk; print([m for m in sys.modules if m.startswith(('eqk.cli', 'eqk.counts', 'eqk.measure'))])"
    )
    got = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"
    environment = {**os.environ, "EQK_CPU_ISA": "baseline"}
    command = [sys.executable, "-m", "eqk", "info", "--json"]
    got = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    machine = json.loads(got.stdout)["machine"]
    assert machine["instruction set"] == "baseline"
    assert "EQK_CPU_ISA=baseline" in machine["environment"]


def test_it_is_installed():
    setup = (ROOT / "setup.py").read_text()
    assert 'find_packages(ROOT / "python")' in setup
    assert "eqk.cli" in setuptools.find_packages(str(ROOT / "python"))


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


# info


def test_info(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    machine, backends, frameworks = tables(out)
    machine = dict(machine)
    assert machine["torch"].startswith(torch.__version__)
    assert machine["eqk"].startswith(eqk.__version__)
    assert machine["instruction set"] in ("amx", "avx512", "avx2", "baseline")
    if asked := os.environ.get("EQK_CPU_ISA"):
        assert machine["instruction set"] == asked
    assert any(name.startswith("libeqk_cpu") for name in machine)
    on_cpu = {row[0]: row[2] for row in backends[1:] if row[1] == "cpu"}
    assert on_cpu == {op: dispatch.choose(op, torch.device("cpu")) for op in dispatch.OPS}
    assert [row[2] for row in frameworks[1:]] == [version for _, version in adapters.TESTED.values()]
    if not torch.cuda.is_available():
        assert f"On a GPU, of which there is none here ({info.gpu_reason()})" in out
        assert f"- cuda: {_library.cuda_reason} (tensor_product, " in out


def test_tested_versions():
    """Of each adapter, those that the README states and `make test-models` installs."""
    files = {path.stem for path in (ROOT / "python" / "eqk" / "adapters").glob("[a-z]*.py")}
    assert set(adapters.TESTED) == files
    table = (ROOT / "README.md").read_text().partition("| package (tested version) |")[2].partition("\n\n")[0]
    makefile = (ROOT / "Makefile").read_text()
    for package, version in adapters.TESTED.values():
        assert re.search(rf"\({version}\b|fairchem-core {version}", table), package
        assert f"{package}=={version}" in makefile


def image(kind, architecture, payload=b"\0" * 40):
    """Of a fat binary: what the header has before and after the architecture is not looked at."""
    return struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(payload), 0, 0, 0, 0, architecture) + b"\0" * 32 + payload


def container(*images):
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, sum(map(len, images))) + b"".join(images)


def test_architectures(tmp_path):
    library = tmp_path / "libeqk_cuda.so"
    library.write_bytes(
        b"ELF"
        + container(image(2, 90), image(1, 75), image(2, 120))
        + b"between \x50\xed\x55\xba, a number that is none of theirs"
        + container(image(2, 80), image(2, 90))
        + b"\x50\xed\x55\xba"
    )
    assert architectures(library) == (["sm_80", "sm_90", "sm_120"], ["compute_75"])
    for content in (b"", b"nothing", container(image(2, 90))[:70]):
        library.write_bytes(content)
        assert architectures(library) == ([], [])


def test_architectures_of_the_library():
    """Against the program that comes with Triton; a build without nvcc has no such library."""
    library = next(iter(_library.cuda_libraries().values()), None)
    found = [Path(p) / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump" for p in sys.path]
    if library is None:
        return
    program = next(p for p in found if p.is_file())
    text = subprocess.run([program, "--list-elf", library], capture_output=True, text=True, check=True).stdout
    expected = sorted({int(n) for n in re.findall(r"\.sm_(\d+)\.", text)})
    assert architectures(library)[0] == [f"sm_{n}" for n in expected]


# explain

SMALL = "2x0e+3x1o * 1x1o -> 2x1o+3x0e+3x2e [mul_ir,mul_ir,mul_ir] per_sample {0 0 0 uvu w 0.5; 1 0 1 uvu w 2; 1 0 2 uvu - 1}"


def test_explain_a_product(capsys):
    """The counts by brute force over the symbols; SMALL has 2 + 3 weights."""
    status, out, err = run(capsys, "explain", SMALL)
    assert (status, err) == (0, "")
    paths, costs, kernels = tables(out)
    assert [row[:6] for row in paths[1:]] == [
        ["0", "0e x 1o -> 1o", "uvu", "2 x 1 -> 2", "2x1", "0.5"],
        ["1", "1o x 1o -> 0e", "uvu", "3 x 1 -> 3", "3x1", "2"],
        ["2", "1o x 1o -> 2e", "uvu", "3 x 1 -> 3", "-", "1"],
    ]
    products = []
    for (l1, l2, l3), channels, row in zip([(0, 1, 1), (1, 1, 0), (1, 1, 2)], (2, 3, 3), paths[1:], strict=True):
        symbol = eqk.wigner_3j(l1, l2, l3, torch.float64).tolist()
        terms = {
            (i, j, k) for i, plane in enumerate(symbol) for j, line in enumerate(plane) for k, c in enumerate(line) if c
        }
        products.append(channels * len({(i, k) for i, _, k in terms}))
        assert row[6:] == [str(len(terms)), str(products[-1])]
    x, y, w, g, total = 11, 3, 5, 24, sum(products)
    forward, backward, double = 4 * (x + y + w + g), 4 * (2 * (x + y + w) + g), 4 * (3 * (x + y + w) + 2 * g)
    expected = [
        ["forward", str(forward), str(total)],
        ["backward", str(forward + backward), str(3 * total)],
        ["double", str(forward + backward + double), str(8 * total)],
    ]
    assert [row[:3] for row in costs[1:]] == expected
    assert {row[0] for row in kernels[1:]} == {"tensor_product", "tensor_product_conv", "tensor_product_conv_radial"}
    assert next(row for row in kernels if row[:2] == ["tensor_product", "cpu"])[2] == "cpu"
    floor = re.search(r"floor, cpu \(.*\): the larger of bytes at ([\d.]+) GB/s", out)
    assert float(costs[1][3]) == pytest.approx(forward / float(floor[1]), rel=0.05)


def test_explain_names_every_plan_of_a_name(capsys):
    status, out, _ = run(capsys, "explain", "mace-medium")
    assert status == 0
    assert str(testing.CASES["mace-medium"].plan) in out
    assert str(testing.CONTRACTIONS["mace-medium"]) in out
    assert "eqk.Plan: 10 paths" in out


def test_explain_signals(capsys, monkeypatch):
    """Paths of the bracket and the product, by their selection rules; a plan from standard input."""
    plan = eqk.GauntPlan(2, 1, 3, 4, 4, 1.0, 1.0)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{plan}\n"))
    status, out, _ = run(capsys, "explain", "-")
    assert status == 0
    expected = [
        [f"{a} x {b} -> {c}", "bracket" if (a + b + c) % 2 else "product"]
        for a, b, c in itertools.product(range(3), range(2), range(4))
        if abs(a - b) <= c <= a + b and not ((a + b + c) % 2 and 0 in (a, b, c))
    ]
    assert [row[1:3] for row in tables(out)[0][1:]] == expected
    status, out, _ = run(capsys, "explain", str(eqk.S2ActivationPlan.normalized(2, 2, 5, "silu", (6, 5), "soft")))
    assert status == 0
    assert ["grid", "6 rings x 5 angles, soft, exact to degree 4"] in tables(out)[0]


def test_explain_a_contraction(capsys):
    """x0^2 and x1^2 + x2^2 + x3^2, to a scalar: 4 monomials."""
    plan = eqk.SymmetricContractionPlan(
        eqk.Irreps("0e + 1o"), eqk.Irreps("0e"), ((0, ((2.0, (0, 0), (0,)),)), (0, ((1.0, (1, 1), (0,)),)))
    )
    status, out, _ = run(capsys, "explain", str(plan))
    assert status == 0
    paths, costs, _ = tables(out)
    assert [row[1:] for row in paths[1:]] == [["0e", "2", "2 0e x 0e -> 0"], ["0e", "2", "1 1o x 1o -> 0"]]
    assert [row[1:3] for row in costs[1:]] == [["20", "4"], ["56", "16"], ["112", "40"]]
    wide = eqk.SymmetricContractionPlan.complete("+".join(f"{l}e" for l in range(15)), "0e", 2)
    hostile = str(wide).replace("0: 1.0 0;", "0: 1.0 0*0>0*0>0*0>0;", 1)
    status, out, _ = run(capsys, "explain", hostile)
    assert status == 0
    assert "monomials, not counted" in out


BAD = {
    "no plan": "mace-mediun",
    "nothing": "",
    "code": "__import__('os').system('exit 1')",
    "code in a plan": "1x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {0 0 0 uvu - __import__('os')}",
    "selection rules": "1x1o * 1x0e -> 1x2e [mul_ir,mul_ir,mul_ir] none {0 0 0 uvu - 1}",
    "half a plan": SMALL[:-5],
    "long": "1x0e -> " + "1x0e+" * MAX_LENGTH,
    "many digits": f"{'9' * 5000}x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {{}}",
    "control characters": "1x0e\0 * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {}\x1b[31m",
    "infinite": "1x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {0 0 0 uvu - 1e999}",
    "signals": "5x2 * 5x2 -> 5x2 even 1 odd 0 rank 0 [ir_mul,ir_mul,ir_mul] {1 1 1; 1 1 1; 1 1 1}",
    "a grid": "5x2 -> 2 2 l_primary sillu 1.0 6x6 soft [ir_mul,ir_mul] {1 1 1; 1 1 1}",
    "a contraction": "1x0e -> 1x0e [mul_ir,mul_ir] {0: 1 7}",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_explain_refuses(text, capsys):
    status, out, err = run(capsys, "explain", text)
    assert (status, out) == (2, "")
    assert err.startswith("python -m eqk explain: ")
    assert "Traceback" not in err
    assert len(err) < 1000
    assert "\x1b" not in err


def test_cpu_kernels():
    """Which lanes, by the rules of csrc/tensor_product: channels that fill a vector, degrees that are unrolled."""

    def kernel(name, dtype=torch.float32):
        return torch.ops.eqk.tensor_product_cpu_kernel(torch.empty(0, dtype=dtype), str(testing.CASES[name].plan))

    unrolled = torch.ops.eqk.cpu_isa() != "baseline" or os.uname().machine not in ("x86_64", "AMD64")
    channels = "channels" if unrolled else "rows"
    assert kernel("mace-medium") == kernel("mace-medium", torch.float64) == channels
    assert kernel("mace-medium", torch.bfloat16) == kernel("degree-6") == kernel("depthwise-1") == "rows"
    assert kernel("uvw-per_sample") == "rows"
    assert kernel("no-instructions") == "none"
    assert kernel("mace-skip") == "matmul, outer products by rows"
    assert kernel("mace-skip", torch.float16) == "rows"
    assert kernel("matrix-product").startswith("matmul, outer products by rows, other paths by ")
    plans = {name: str(testing.CASES[name].plan) for name in ("mace-medium", "uvw-per_sample", "uvv-per_sample")}
    conv = {name: torch.ops.eqk.tensor_product_conv_cpu_kernel(torch.empty(0), plan) for name, plan in plans.items()}
    assert conv["mace-medium"] == ("channels, sums in registers" if unrolled else "gathered edges by rows")
    assert conv["uvw-per_sample"] == conv["uvv-per_sample"] == "gathered edges by rows"
    with pytest.raises(RuntimeError, match="x: expected dtype float32"):
        torch.ops.eqk.tensor_product_cpu_kernel(torch.empty(0, dtype=torch.int64), SMALL)


def test_own_cuda_kernels(tmp_path, monkeypatch):
    first, medium = (testing.CASES[name].plan for name in ("mace-first", "mace-medium"))
    monkeypatch.setattr(_library, "_DIRECTORY", tmp_path)
    monkeypatch.setattr(_library, "cuda_reason", "eqk was built without CUDA")
    assert explain.own_cuda_kernel(first) == "unknown: eqk was built without CUDA"
    (tmp_path / "libeqk_cuda.so").write_bytes(b"\0" + str(first).encode() + b"\0")
    assert "has kernels of its own" in explain.own_cuda_kernel(first)
    assert explain.own_cuda_kernel(medium).startswith("no kernels of its own")


def test_listed_plans_are_in_the_library():
    """The library has the texts of its plans as they are in cuda_plans.txt, by which explain finds them."""
    library = next(iter(_library.cuda_libraries().values()), None)
    if library is not None:
        assert "has kernels of its own" in explain.own_cuda_kernel(testing.CASES["mace-first"].plan)
        assert explain.own_cuda_kernel(testing.CASES["depthwise-7"].plan).startswith("no kernels of its own")


@pytest.mark.parametrize("name", ["uuw-none", "u<vw-shared", "connected-17", "uvuv-per_sample"])
def test_counts_of_modes(name):
    """Multiply-adds of a path by the loops that its mode stands for."""
    plan = testing.CASES[name].plan
    for ins in plan.instructions:
        (m1, a), (m2, b), (mo, c) = (
            irreps[n] for irreps, n in zip((plan.irreps_in1, plan.irreps_in2, plan.irreps_out), ins, strict=False)
        )
        mode = ins.connection_mode
        pairs = [
            (u, v)
            for u in range(m1)
            for v in range(m2)
            if ("<" not in mode or u < v) and (not mode.startswith("uu") or u == v)
        ]
        symbol = eqk.wigner_3j(a.l, b.l, c.l) != 0
        total = sum(1 for _ in pairs for i in range(a.dim) for k in range(c.dim) if symbol[i, :, k].any())
        if mode.endswith("w"):
            total += sum(1 for _ in pairs for _ in range(mo) for _ in range(c.dim))
        assert counts.path_products(plan, ins) == total


# check


def test_every_op_has_its_cases():
    cases = all_cases()
    assert {case.op for case in cases} == set(dispatch.OPS)
    assert {case.op for case in cases if case.small} == set(dispatch.OPS)
    assert {case.op for case in cases if case.bench_rows} == set(dispatch.OPS)


def test_check_passes_and_says_what_it_could_not_check(capsys):
    status, out, _ = run(capsys, "check", "--quick", "--seed", "7")
    assert status == 0, out
    assert out.startswith("python -m eqk check --seed 7\n")
    lines = out.splitlines()
    assert re.fullmatch(r"passed: \d+ checks in \d+ s, seed 7", lines[-1])
    header, *rows = tables(out)[1]
    assert {row[0] for row in rows} == set(dispatch.OPS)
    assert {row[header.index("verdict")] for row in rows} == {"ok"}
    assert {row[header.index("same bits")] for row in rows} == {"yes"}
    for name in ("value", "gradient", "second"):
        assert all(float(row[header.index(name)]) <= 1 for row in rows)
        assert any(float(row[header.index(name)]) > 0 for row in rows)
    left = lines[lines.index("Not checked:") :]
    assert "- layers of published models: --quick" in left
    if not torch.cuda.is_available():
        assert f"- GPU: {info.gpu_reason()}" in left
        assert any(line.startswith(f"- cuda: {_library.cuda_reason} (tensor_product, ") for line in left)


def test_a_seed_repeats_the_operands(capsys, monkeypatch):
    def errors(*argv):
        return [row[:9] for row in tables(run(capsys, "check", "--ops", "wigner", *argv)[1])[1]]

    first = errors("--seed", "5")
    assert errors("--seed", "5") == first
    assert errors("--seed", "6") != first
    monkeypatch.setattr(testing, "seed", lambda: 5)
    assert errors() == first


class Disturbed(TorchDispatchMode):
    """Results of one op of eqk are changed."""

    def __init__(self, op, change):
        super().__init__()
        self.op, self.change = op, change

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return self.change(out) if func is self.op else out


def failing(capsys, what, *argv):
    status, out, _ = run(capsys, "check", "--ops", "wigner", "--seed", "1", *argv)
    assert status == 1
    assert re.search(r"^FAILED: \d+ of 3 checks in \d+ s, seed 1$", out.splitlines()[-1])
    failures = [line for line in out.partition("\nFailed:\n")[2].splitlines() if line.startswith("- ")]
    assert failures
    assert all(what in line for line in failures), failures
    header, *rows = tables(out)[1]
    failed = [row for row in rows if row[-1] == "FAIL"]
    assert len(failed) == len(failures)
    return header, rows


WIGNER = torch.ops.eqk.wigner.default
WIGNER_BACKWARD = torch.ops.eqk.wigner_backward.default


def test_check_fails_where_an_op_is_wrong(capsys):
    with Disturbed(WIGNER, lambda out: out * (1 + 2e-5)):
        header, rows = failing(capsys, "the value is off by ")
    assert len([row for row in rows if row[-1] == "FAIL"]) == 3
    assert all(float(row[header.index("value")]) > 3 for row in rows)


def test_check_fails_where_a_gradient_is_wrong(capsys):
    with Disturbed(WIGNER_BACKWARD, lambda out: -out):
        header, rows = failing(capsys, "the gradient is off by ")
    assert all(float(row[header.index("value")]) <= 1 for row in rows)


def test_check_fails_where_nothing_is_a_number(capsys):
    with Disturbed(WIGNER, lambda out: out * float("nan")):
        header, rows = failing(capsys, "the value is off by inf times")
    assert {row[header.index("value")] for row in rows} == {"inf"}


def test_check_fails_where_bits_differ(capsys):
    noise = iter(range(1, 10**6))
    with Disturbed(WIGNER, lambda out: out * (1 + next(noise) * 1e-15) if out.dtype == torch.float64 else out):
        header, rows = failing(capsys, "a second run has other bits")
    assert [row[header.index("same bits")] for row in rows if row[header.index("dtype")] == "float64"] == ["NO"]


def test_check_fails_where_the_truth_differs(capsys, monkeypatch):
    truth = reference.wigner
    monkeypatch.setattr(reference, "wigner", lambda *args: truth(*args) + 1e-3)
    failing(capsys, "the value is off by ")


def test_an_exception_is_one_row(capsys):
    """float64 alone raises; what else there is goes on."""

    def refuse(out):
        if out.dtype == torch.float64:
            raise RuntimeError("no kernel image\nwith a second line")
        return out

    with Disturbed(WIGNER, refuse):
        header, rows = failing(capsys, "RuntimeError: no kernel image")
    assert [(row[header.index("dtype")], row[-1]) for row in rows] == [
        ("float32", "ok"),
        ("float64", "FAIL"),
        ("float32", "ok"),
    ]


def test_no_time_left(capsys, monkeypatch):
    """The second of three parts is not begun; a case of one part, and other dtypes, not at all."""
    now = itertools.chain([0.0] * 5, itertools.repeat(100.0))
    clock = types.SimpleNamespace(perf_counter=lambda: next(now))
    monkeypatch.setattr(check, "time", clock)
    monkeypatch.setattr(check, "_milliseconds", lambda *_: 1.0)
    status, out, _ = run(capsys, "check", "--quick", "--ops", "wigner", "--seconds", "50")
    assert status == 0
    assert [row[4] for row in tables(out)[1][1:]] == ["float64"]
    assert "- wigner small sizes cpu cpu float64: 2 of 3, no time left in 50 s" in out
    assert "- wigner small sizes cpu cpu float32: 3 of 3, no time left in 50 s" in out
    assert "passed: 1 checks, 2 not done or not whole for lack of time" in out.splitlines()[-1]
    now = itertools.count()
    status, out, _ = run(capsys, "check", "--ops", "wigner", "--seconds", "0")
    assert (status, out.splitlines()[-1]) == (1, "FAILED: nothing was checked")


def test_nothing_checked_is_a_failure(capsys):
    if torch.cuda.is_available():
        return
    status, out, _ = run(capsys, "check", "--quick", "--ops", "wigner", "--device", "cuda")
    assert status == 1
    assert out.splitlines()[-1] == "FAILED: nothing was checked"


# bench


def test_bench(capsys):
    threads = torch.get_num_threads()
    argv = ("bench", "--ops", "wigner", "spherical_harmonics", "--scale", "0.01", "--rounds", "1")
    status, out, _ = run(capsys, *argv, "--device", "cpu", "--threads", "1")
    assert status == 0, out
    header, *rows = tables(out)[1]
    assert [row[:5] for row in rows] == [
        [op, case, n, phase, "1 thread"]
        for op, case, n in (("spherical_harmonics", "degrees 0 to 3", "200"), ("wigner", "6 2", "10"))
        for phase in ("forward", "backward")
    ]
    for row in rows:
        ours, theirs = float(row[header.index("eqk ms")]), float(row[header.index("peer ms")])
        assert row[header.index("ratio")].endswith("x")
        assert float(row[header.index("ratio")][:-1]) == pytest.approx(theirs / ours, rel=0.06, abs=0.06)
    assert {row[header.index("peer")] for row in rows} == {"e3nn", "eqk.reference"}
    assert torch.get_num_threads() == threads


def test_bench_refuses_what_is_wrong(capsys):
    argv = ("bench", "--ops", "wigner", "--scale", "0.01", "--rounds", "1", "--device", "cpu")
    with Disturbed(WIGNER, lambda out: out * 1.001):
        status, out, _ = run(capsys, *argv)
    assert status == 1
    assert "forward differs from eqk.reference by " in out
    with pytest.raises(SystemExit) as error:
        main(["bench", "--rounds", "0"])
    assert error.value.code == 2
    assert "expected a number from 1, got '0'" in capsys.readouterr().err
