"""The Triton ops: interpreted, and compiled ahead of time for GPUs that need not be there; and the dispatch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eqk
from eqk import Plan, dispatch

triton = pytest.importorskip("triton")

TESTS = Path(__file__).parent
UVU = Plan(
    "32x0e+32x1o",
    "1x0e+1x1o",
    "32x0e+32x1o+32x1o",
    ((0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 0, 2, "uvu", True), (1, 1, 0, "uvu", True)),
)
MIXED = Plan(
    "3x1o",
    "3x1o",
    "5x0e+3x1e+9x0e",
    ((0, 0, 0, "u<vw", True), (0, 0, 1, "uvu<v", False), (0, 0, 2, "uvuv", True), (0, 0, 0, "uvw", True)),
    "ir_mul",
    weights="shared",
)
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "sm_100": ("cuda", 100, 32)}
TARGETS["gfx942"] = ("hip", "gfx942", 64)
MEMBERS = {  # results, whether on dual numbers
    "forward": ((3,), False),
    "jvp": ((3,), True),
    "backward": ((0, 1, 2), False),
    "double_backward": ((0, 1, 2, 3), True),
}


def test_interpreted():
    """interpreted_triton.py in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "interpreted_triton.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert process.returncode == 0, process.stdout + process.stderr
    assert " passed" in process.stdout
    assert "skipped" not in process.stdout


def compiled(plan, member, dtype, target):
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from eqk.triton_kernels import tensor_product as kernels

    slots, dual = MEMBERS[member]
    names = kernels.kernel.arg_names
    shared = plan.weights == "shared"
    pointer = {"fp32": "*fp32", "fp64": "*fp64", "bf16": "*bf16"}[dtype]
    compute = tl.float64 if dtype == "fp64" else tl.float32
    for launch in kernels.lower(str(plan), slots):
        values = [launch.key, launch.blocks, launch.rows, launch.channels, compute, launch.wide, shared]
        values += [launch.over_rows, dual, dual, dual, dual, dual and member == "double_backward"]
        constants = dict(zip(names[-len(values) :], values, strict=True))
        tensors = 12
        signature = dict.fromkeys(names[:tensors], pointer) | dict.fromkeys(names[tensors:], "i64")
        if launch.over_rows:
            signature["gw"] = "*fp64" if dtype == "fp64" else "*fp32"
        signature |= dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(kernels.kernel, signature, constants)
        yield triton.compile(source, target=GPUTarget(*TARGETS[target]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("plan", [UVU, MIXED], ids=["uvu", "mixed"])
def test_compiles_ahead_of_time(plan, target, tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    assembly = "amdgcn" if target == "gfx942" else "ptx"
    for member in MEMBERS:
        for kernel in compiled(plan, member, "bf16" if member == "jvp" else "fp32", target):
            assert "kernel" in kernel.asm[assembly]


def operands():
    plan = Plan("3x0e", "1x1o", "3x1o", ((0, 0, 0, "uvu", True, 0.7),))
    return torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3), plan


def test_backends_agree():
    args = operands()
    expected = eqk.tensor_product(*args)
    for backend in ("cpu", "reference", "auto"):
        with dispatch.use_backend(backend):
            torch.testing.assert_close(eqk.tensor_product(*args), expected)


@pytest.mark.parametrize(
    ("backend", "reason"), [("cuda", "not on a GPU"), ("triton", "TRITON_INTERPRET=1")], ids=["cuda", "triton"]
)
def test_backend_that_cannot_run(backend, reason):
    args = operands()
    with dispatch.use_backend(backend), pytest.raises(RuntimeError, match=reason):
        eqk.tensor_product(*args)
    assert reason in dispatch.explain("tensor_product", *args[:3])
    with pytest.raises(ValueError, match="backend: expected one of"), dispatch.use_backend("opencl"):
        pass


def test_dispatch_inside_compile():
    *tensors, plan = operands()
    compiled = torch.compile(lambda *v: eqk.tensor_product(*v, plan), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), eqk.tensor_product(*tensors, plan))
    torch._dynamo.reset()


def test_environment_chooses_the_backend():
    code = "import torch, eqk; p = eqk.Plan('1x0e', '1x0e', '1x0e', ((0, 0, 0, 'uuu', False),)); o = torch.ones(2, 1)\n"
    code += "print(eqk.tensor_product(o, o, None, p).tolist(), 'eqk_triton' in dir(torch.ops))"
    cases = (("triton", "1", "[[1.0], [1.0]] True"), ("nonsense", "0", "EQK_BACKEND: expected one of"))
    for backend, interpret, shown in cases:
        environment = {**os.environ, "EQK_BACKEND": backend, "TRITON_INTERPRET": interpret}
        command = [sys.executable, "-c", code]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert shown in process.stdout + process.stderr


def test_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import torch, eqk; from eqk import dispatch\n"
    code += "print(dispatch.can_run_triton('tensor_product', torch.device('cuda')))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "Triton cannot be imported" in process.stdout, process.stderr
