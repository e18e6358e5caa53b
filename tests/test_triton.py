"""The Triton ops: interpreted, and compiled ahead of time for GPUs that need not be there; and the dispatch."""

import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from emulated_cuda import cuobjdump
from own_process import run_tests
from torch.utils._python_dispatch import TorchDispatchMode

import eqk
import eqk.o3
from eqk import Plan, dispatch, testing
from eqk.s2_activation_plan import FUNCTIONS
from eqk.testing import CASES

triton = pytest.importorskip("triton")

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
AMD = ("gfx90a", "gfx942")  # MI200, MI300
TARGETS |= {name: ("hip", name, 64) for name in AMD}
MEMBERS = {  # results, whether on dual numbers
    "forward": ((3,), False),
    "jvp": ((3,), True),
    "backward": ((0, 1, 2), False),
    "double_backward": ((0, 1, 2, 3), True),
}


@pytest.mark.parametrize(
    "name", ["tensor_product", "tensor_product_conv", "s2_activation", "rotate", "so2_edge_message"]
)
def test_interpreted(name):
    """interpreted_NAME.py in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    run_tests(f"interpreted_{name}", TRITON_INTERPRET="1")


def test_rocm():
    """stubbed_rocm.py in a process of its own, whose torch takes the stub for its GPUs."""
    run_tests("stubbed_rocm", plugin="stub_rocm", TRITON_INTERPRET="1")


def half(problems, number):
    """Every other one: those of even or of odd targets, whose vendors have both; which are which changes with the seed."""
    return list(problems)[(number + testing.seed()) % 2 :: 2]


def half_for(target, problems):
    return half(problems, list(TARGETS).index(target))


def compiled(plan, member, dtype, target, of_graph=False):
    """The kernels of a member of tensor_product's family, or of tensor_product_conv's."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from eqk.triton_kernels import tensor_product as kernels
    from eqk.triton_kernels import tensor_product_conv as of_graphs

    slots, dual = MEMBERS[member]
    kernel = of_graphs.kernel if of_graph else kernels.kernel
    names = kernel.arg_names
    shared = plan.weights == "shared"
    pointer = {"fp32": "*fp32", "fp64": "*fp64", "bf16": "*bf16"}[dtype]
    compute = tl.float64 if dtype == "fp64" else tl.float32
    varies = (True, True, True, member == "double_backward") if dual else None
    # Results of nodes are launches of their own.
    parts = [[n for n in slots if n in part] for part in ((0,), (3,), (1, 2))] if of_graph else [slots]
    for part, launch in [(p, launch) for p in parts for launch in kernels.lower(str(plan), tuple(p), varies)]:
        values = [launch.table, launch.blocks, launch.rows, launch.channels, compute, launch.wide, shared]
        values += [launch.over_rows, dual, dual, dual, dual, dual and member == "double_backward"]
        values += [part in ([0], [3])] if of_graph else []
        constants = dict(zip(names[-len(values) :], values, strict=True))
        tensors = 12
        signature = dict.fromkeys(names[:tensors], pointer) | dict.fromkeys(names[tensors:], "i64")
        if of_graph:
            signature |= dict.fromkeys(("src", "dst", "order", "first_edge"), "*i64")
        if launch.over_rows:
            signature["gw"] = "*fp64" if dtype == "fp64" else "*fp32"
        signature |= dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(kernel, signature, constants)
        options = {"num_warps": kernels._WARPS, "enable_fp_fusion": True}
        yield triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("plan", "of_graph"), [(UVU, False), (MIXED, False), (UVU, True)], ids=["uvu", "mixed", "conv"]
)
def test_compiles_ahead_of_time(plan, of_graph, target, tmp_path, monkeypatch):
    """Without spills, but on dual numbers of plans that mix channels."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    for member, (_, dual) in half_for(target, MEMBERS.items()):
        for kernel in compiled(plan, member, "bf16" if member == "jvp" else "fp32", target, of_graph):
            assert spills(kernel, target, tmp_path / "kernel.cubin") == 0 or (dual and plan is MIXED), member


def test_compile_time_is_bounded(tmp_path, monkeypatch):
    """It grows with the square of a kernel's length, so that no kernel of a published model's plan may be long."""
    from eqk.triton_kernels import tensor_product as kernels

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    plan = CASES["mace-medium"].plan
    lengths = [kernel.asm["ttir"].count("\n") for kernel in compiled(plan, "backward", "fp32", "sm_90")]
    assert max(lengths) < 1.3 * kernels._MAX_OPERATIONS
    # Dual numbers make each operation several.
    count = {
        member: kernels.lower(str(plan), (0, 1, 2), varies) for member, varies in (("", None), ("dual", (True,) * 4))
    }
    assert len(count["dual"]) > len(count[""]) > 1


def compiled_s2_activation(plan, kinds, dtype, target):
    from triton.backends.compiler import GPUTarget

    from eqk.triton_kernels import s2_activation as kernels

    names = kernels.kernel.arg_names
    wide = "*fp64" if dtype == torch.float64 else "*fp32"
    pointer = {torch.bfloat16: "*bf16"}.get(dtype, wide)
    signature = dict.fromkeys(names[:6], pointer) | dict.fromkeys(names[6:8], wide) | dict.fromkeys(names[8:], "i64")
    # As of operands that torch has allocated, of rows of a multiple of 16 elements.
    aligned = {
        (n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if name not in ("first_program", "rows", "M")
    }
    launch = kernels.lower(str(plan), kinds, dtype)
    source = triton.compiler.ASTSource(kernels.kernel, signature | {"M": "constexpr"}, {"M": launch.problem}, aligned)
    options = kernels.options(launch, target in AMD)
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def spills(kernel, target, path):
    """Bytes on the stack, or on AMD's GPUs registers, of a thread."""
    if target in AMD:
        return int(re.search(r"\.vgpr_spill_count: *(\d+)", kernel.asm["amdgcn"])[1])
    path.write_bytes(kernel.asm["cubin"])
    return int(re.search(r"STACK:(\d+)", cuobjdump("--dump-resource-usage", path))[1])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("lmax", [4, 6, 20])
def test_s2_activation_compiles_ahead_of_time(lmax, target, tmp_path, monkeypatch):
    """On EquiformerV2's grid; within the shared memory that each of the GPUs has and, but in float64, without spills."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    plan = eqk.S2ActivationPlan.normalized(lmax, lmax, 128, "silu", (18, 18), "soft")
    calls = [("0>z", torch.float32), ("1z>x", torch.float32), ("2zx>x", torch.bfloat16), ("1z>x", torch.float64)]
    for kinds, dtype in half_for(target, [*calls, ("4zxxx>x", torch.float32)]):
        kernel = compiled_s2_activation(plan, kinds, dtype, target)
        if dtype != torch.float64:
            assert spills(kernel, target, tmp_path / "kernel.cubin") == 0, (kinds, dtype)
        assert kernel.metadata.shared <= 64 << 10


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_compiles(function, tmp_path, monkeypatch):
    """Of each order, of which a run takes every other, with layouts that have channels first."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    layouts = dict(layout_in="mul_ir", layout_out="mul_ir")
    plan = eqk.S2ActivationPlan.normalized(1, 2, 3, function, (3, 4), **layouts)
    for order in half(range(5), list(FUNCTIONS).index(function)):
        kernel = compiled_s2_activation(
            plan, f"{order}{'zxxx'[:order]}>x", (torch.float32, torch.float64)[order % 2], "sm_90"
        )
        assert "kernel" in kernel.asm["ptx"]


def compiled_rotate(problem, dtype, target):
    from triton.backends.compiler import GPUTarget

    from eqk.triton_kernels import rotate as kernels

    names = kernels.kernel.arg_names
    pointer = {torch.float64: "*fp64", torch.bfloat16: "*bf16"}.get(dtype, "*fp32")
    signature = dict.fromkeys(names, pointer) | dict.fromkeys(("index", "first_end"), "*i64")
    signature |= dict.fromkeys(("first_program", "edges"), "i64") | {"M": "constexpr"}
    aligned = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if signature[name][0] == "*"}
    source = triton.compiler.ASTSource(kernels.kernel, signature, {"M": problem}, aligned)
    options = {"num_warps": kernels._WARPS, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


@pytest.mark.parametrize("target", TARGETS)
def test_rotate_compiles_ahead_of_time(target, tmp_path, monkeypatch):
    """Without spills, and without shared memory. As UMA and EquiformerV2 have it, the latter with weights of 8 heads."""
    from eqk.triton_kernels import rotate as kernels

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    for (lmax, nodes_of_edge, groups, columns), missing in half_for(
        target, itertools.product(((2, 2, 6, 256), (6, 1, 1, 8)), range(4))
    ):
        dtype = (torch.float32, torch.float64, torch.bfloat16)[(missing + lmax // 4) % 3]
        problems = kernels.lower(dtype, missing, lmax, 2, True, True, nodes_of_edge, 128, groups, columns)
        assert len(problems) == 1
        kernel = compiled_rotate(problems[0], dtype, target)
        assert spills(kernel, target, tmp_path / "kernel.cubin") == 0, (lmax, missing)
        assert kernel.metadata.shared == 0


def test_rotate_compile_time_is_bounded():
    """It grows with the square of a kernel's length: no kernel has many more numbers than a degree has."""
    from eqk.triton_kernels import rotate as kernels

    for missing in (0, 1, 3):
        cut = kernels.lower(torch.float32, missing, 8, 8, False, True, 2, 128, 0, 1)
        assert [d.size for problem in cut for d in problem.degrees] == [2 * l + 1 for l in range(9)]
        assert all(sum(d.size**2 for d in problem.degrees) <= kernels._MOST_NUMBERS for problem in cut)


def compiled_so2_edge_message(kernel, problem, dtype, target):
    from triton.backends.compiler import GPUTarget

    from eqk.triton_kernels import so2_edge_message as kernels

    types = dict.fromkeys(kernel.arg_names, {torch.bfloat16: "*bf16"}.get(dtype, "*fp32"))
    types |= dict.fromkeys(("D", "y", "s", "message", "partial"), "*fp32") | {"M": "constexpr"}
    types |= dict.fromkeys(("index", "order", "first_end"), "*i64") | dict.fromkeys(("begin", "end", "edges"), "i32")
    signature = {name: types[name] for name in kernel.arg_names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, type in enumerate(signature.values()) if type[0] == "*"}
    source = triton.compiler.ASTSource(kernel, signature, {"M": problem}, aligned)
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=kernels.OPTIONS)


@pytest.mark.parametrize("target", TARGETS)
def test_so2_edge_message_compiles_ahead_of_time(target, tmp_path, monkeypatch):
    """Without spills, as UMA-S has it."""
    from triton.backends.compiler import GPUTarget

    from eqk.triton_kernels import so2_edge_message as kernels

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    tile, precision = kernels.tile_of(GPUTarget(*TARGETS[target])), "ieee" if target in AMD else "tf32x3"
    dtype = torch.bfloat16 if target == "sm_100" else torch.float32
    keep = target == "sm_90"
    problems = kernels.lower("2,2,256,128,128,gate,0,0,", 128, 2, 128, 1536, 1, keep, tile, precision)
    for function, problem in zip((kernels.first_kernel, kernels.second_kernel), problems, strict=True):
        kernel = compiled_so2_edge_message(function, problem, dtype, target)
        assert spills(kernel, target, tmp_path / "kernel.cubin") == 0, function
        assert kernel.metadata.shared <= 64 << 10


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


class Seen(TorchDispatchMode):
    """Records the ops of eqk, of any backend, below autograd."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("eqk") and "wigner" not in func._schema.name:
            self.ops.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def module():
    return eqk.o3.FullyConnectedTensorProduct("3x0e+2x1o", "1x0e+1x1o", "2x0e+3x1o")


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_modules_take_the_backend_that_was_chosen(backend):
    tp, sh = module(), eqk.o3.SphericalHarmonics([0, 1], True)
    x, r = torch.randn(5, 9), torch.randn(5, 3)
    expected = tp(x, sh(r))
    with dispatch.use_backend(backend), Seen() as seen:
        torch.testing.assert_close(tp(x, sh(r)), expected)
        torch.testing.assert_close(tp(x, eqk.spherical_harmonics([0, 1], r, True)), expected)
    assert seen.ops == (set() if backend == "reference" else {"eqk::tensor_product", "eqk::spherical_harmonics"})


def test_modules_on_a_backend_that_cannot_run():
    x, y = torch.randn(2, 9), torch.randn(2, 4)
    with dispatch.use_backend("triton"):
        with pytest.raises(RuntimeError, match="eqk::tensor_product: backend triton cannot run"):
            module()(x, y)
        assert torch.jit.script(module())(x, y).shape == (2, 11)
        # It has no Triton kernel, so that a model on Triton takes what there is.
        assert eqk.spherical_harmonics(1, torch.randn(2, 3), True).shape == (2, 3)
        assert "triton: spherical_harmonics has no such backend" in dispatch.explain("spherical_harmonics", x)


def test_explain_agrees_with_what_runs():
    x = torch.randn(4, 3)
    for backend, chosen, ops in (
        ("auto", "cpu", {"eqk::spherical_harmonics"}),
        ("cuda", "cpu", {"eqk::spherical_harmonics"}),
        ("reference", "reference", set()),
    ):
        with dispatch.use_backend(backend), Seen() as seen:
            assert dispatch.explain("spherical_harmonics", x).endswith(f"-> {chosen}")
            y = eqk.spherical_harmonics([0, 2], x, False)
        assert seen.ops == ops
        torch.testing.assert_close(y, eqk.spherical_harmonics([0, 2], x, False))
    for device, chosen in (("cuda", "torch"), ("mps", "torch"), ("meta", "meta"), ("cpu", "cpu")):
        assert dispatch.choose("spherical_harmonics", torch.device(device)) == chosen
    with pytest.raises(RuntimeError, match="eqk::tensor_product: no backend can run; cpu: the tensors are on mps"):
        dispatch.choose("tensor_product", torch.device("mps"))
    with pytest.raises(
        ValueError,
        match="op: expected one of tensor_product, .*, gaunt_product, rotate, s2_activation, .*, wigner, got 'so2'",
    ):
        dispatch.explain("so2", x)
    for nothing in ((), (None,)):
        with pytest.raises(ValueError, match="tensors: expected those that tensor_product is to be called with"):
            dispatch.explain("tensor_product", *nothing)


def test_rotate_on_every_device():
    x, D = torch.randn(2, 4, 3), torch.randn(2, 10)
    for device, chosen in (("cuda", "triton"), ("mps", "torch"), ("meta", "meta"), ("cpu", "cpu")):
        for op in ("rotate", "so2_edge_message"):
            assert dispatch.choose(op, torch.device(device)) == chosen
    with (
        dispatch.use_backend("triton"),
        pytest.raises(RuntimeError, match="eqk::rotate: backend triton cannot run: the tensors are on cpu"),
    ):
        eqk.rotate(x, D, 1, 1)
    args = (x.to("meta"), D.to("meta"), None, None, None, 0, 0, 0, 1, 1, False, 3)
    assert torch.ops.eqk_triton.rotate(*args).shape == (2, 4, 3)


def test_s2_activation_on_every_device():
    x = torch.randn(2, 4, 3)
    for device, chosen in (("cuda", "triton"), ("mps", "torch"), ("meta", "meta"), ("cpu", "cpu")):
        assert dispatch.choose("s2_activation", torch.device(device)) == chosen
    with dispatch.use_backend("triton"):
        explained = dispatch.explain("s2_activation", x)
        assert "  triton: the tensors are on cpu, where Triton runs only with TRITON_INTERPRET=1 set" in explained
        with pytest.raises(RuntimeError, match="eqk::s2_activation: backend triton cannot run: the tensors are on cpu"):
            eqk.s2_activation(x, "silu")
    assert "  torch: the op has a kernel there" in explained
    # An op of Triton has no kernel for tensors on the CPU, in this process.
    with pytest.raises(NotImplementedError, match="eqk_triton::s2_activation"):
        torch.ops.eqk_triton.s2_activation(x.flatten(1), str(eqk.S2ActivationPlan(1, 1, 3, "silu", (2, 3))))
    shape = torch.ops.eqk_triton.s2_activation(
        x.flatten(1).to("meta"), str(eqk.S2ActivationPlan(1, 2, 3, "silu", (2, 3)))
    ).shape
    assert shape == (2, 27)


@pytest.mark.parametrize(
    ("found", "reason", "chosen"),
    [
        ((7, 0), "the GPU has compute capability 7.0, libeqk_cuda needs 7.5 or newer", "triton"),
        ((7, 5), None, "cuda"),
        ((10, 0), None, "cuda"),
        (RuntimeError("Found no NVIDIA driver"), r"CUDA does not work here \(Found no NVIDIA driver\)", "triton"),
    ],
    ids=str,
)
def test_gpus_that_the_library_has_no_code_for(found, reason, chosen, monkeypatch):
    def capability(index):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(dispatch, "_has_cuda_kernel", lambda op: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    dispatch._device_reason.cache_clear()
    device = torch.device("cuda", 1)
    got = dispatch.can_run_cuda("tensor_product", device)
    assert got is None if reason is None else re.fullmatch(reason, got)
    assert dispatch.choose("tensor_product", device) == chosen
    traced = torch.compile(
        lambda x: x + (dispatch.choose("tensor_product", device) == chosen), fullgraph=True, backend="eager"
    )
    assert traced(torch.zeros(1)).item() == 1
    dispatch._device_reason.cache_clear()


LOADED = """
import sys, torch
class NoDriver:
    def __getattr__(self, name): raise AssertionError(name)
torch.version.cuda = "13.0"
torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda.is_available = torch.cuda._lazy_init = NoDriver()
loaded, load = [], torch.ops.load_library
def record(path):
    loaded.append(path)
    if "cuda" in path:
        if sys.argv[1] == "fails": raise OSError("libcudart.so.13: cannot open")
    else: load(path)
torch.ops.load_library = record
import pathlib, importlib.util
find = pathlib.Path.glob
pathlib.Path.glob = lambda path, pattern: iter([path / "libeqk_cuda.so"]) if "eqk_cuda" in pattern else find(path, pattern)
import eqk
from eqk import dispatch
print(len(loaded), torch.cuda.is_initialized(), dispatch.can_run_cuda("tensor_product", torch.device("cuda")))
"""


@pytest.mark.parametrize(("how", "shown"), [("loads", "has no CUDA kernel"), ("fails", "cannot be loaded (libcudart")])
def test_import_initialises_no_cuda(how, shown):
    """CUDA_VISIBLE_DEVICES may be set afterwards and children may be forked; no driver is needed, nor a fitting one."""
    command = [sys.executable, "-c", LOADED, how]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.stdout.startswith("2 False "), process.stderr
    assert shown in process.stdout


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_dispatch_of_modules_inside_compile(backend):
    tp, sh = module(), eqk.o3.SphericalHarmonics([0, 1], True)
    x, r = torch.randn(5, 9), torch.randn(5, 3, requires_grad=True)
    compiled = torch.compile(lambda x, r: tp(x, sh(r)), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x, r), tp(x, sh(r)))
    want, got = (torch.autograd.grad(f(x, r).pow(2).sum(), r)[0] for f in (lambda x, r: tp(x, sh(r)), compiled))
    torch.testing.assert_close(got, want)
    exported = torch.export.export(tp, (x, sh(r.detach())))
    torch.testing.assert_close(exported.module()(x, sh(r)), tp(x, sh(r)))


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


def test_environment_chooses_the_backend_of_modules():
    code = "import torch, eqk, torch.utils._python_dispatch as p\n"
    code += "class Seen(p.TorchDispatchMode):\n"
    code += "    def __torch_dispatch__(self, f, types, args=(), kwargs=None):\n"
    code += "        if f.namespace.startswith('eqk'): print(f)\n"
    code += "        return f(*args, **(kwargs or {}))\n"
    code += "tp = eqk.o3.FullTensorProduct('2x1o', '1o')\n"
    code += "x, y = torch.randn(3, 6), torch.randn(3, 3)\n"
    code += "with Seen(): z = tp(x, y)\n"
    code += "torch.testing.assert_close(z, eqk.reference.tensor_product(x, y, None, tp.plan))"
    environment = {**os.environ, "EQK_BACKEND": "triton", "TRITON_INTERPRET": "1"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "eqk_triton.tensor_product.default" in process.stdout
    assert process.returncode == 0, process.stderr


def test_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import torch, eqk; from eqk import dispatch\n"
    code += "print(dispatch.can_run_triton('tensor_product', torch.device('cuda')))\n"
    code += "print(dispatch.choose('s2_activation', torch.device('cuda')))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "Triton cannot be imported" in process.stdout, process.stderr
    assert process.stdout.endswith("\ntorch\n")
