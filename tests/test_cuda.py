"""The CUDA kernels: compiled for every architecture, their PTX run in an emulator against the dense reference."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import ptxemu
import pytest
import torch

import eqk
from eqk.reference.tensor_product import tensor_product as reference

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("75", "80", "90", "100", "120")
ACCURACY = {"float32": 2e-6, "float64": 1e-14, "float16": 2e-3, "bfloat16": 1.6e-2}
SLOTS = ("x", "y", "w", "g")

PATHS = {
    "uvw": ("2x0e+3x1o", "1x1o+2x1e", "2x1o+3x1e", [(0, 0, 0), (1, 0, 1), (1, 1, 0)]),
    "uvu": ("2x0e+3x1o", "1x1o+2x2e", "2x1o+3x1o+3x2o", [(0, 0, 0), (1, 1, 1), (1, 1, 2)]),
    "uvv": ("2x0e+3x1o", "1x1o+2x2e", "1x1o+2x1o", [(0, 0, 0), (1, 1, 1)]),
    "uuw": ("2x0e+3x1o", "2x1o+3x2e", "2x1o+4x1o", [(0, 0, 0), (1, 1, 1)]),
    "uuu": ("2x0e+3x1o", "2x1o+3x2e", "2x1o+3x3o", [(0, 0, 0), (1, 1, 1)]),
    "uvuv": ("2x0e+3x1o", "2x1o+2x2e", "4x1o+6x1o", [(0, 0, 0), (1, 1, 1)]),
    "uvu<v": ("3x0e+4x1o", "3x1o+4x2e", "3x1o+6x1o", [(0, 0, 0), (1, 1, 1)]),
    "u<vw": ("3x0e+4x1o", "3x1o+4x2e", "2x1o+3x1o", [(0, 0, 0), (1, 1, 1)]),
}


def seed() -> int:
    value = int.from_bytes(os.urandom(4), "little")
    print(f"seed {value}")
    return value


def mixed_plan(weights: str, layouts: tuple[str, str, str], modes=tuple(PATHS)) -> eqk.Plan:
    """Every mode in one plan, the second path of a mode without weight where the mode allows it."""
    irreps, instructions = [[], [], []], []
    for mode in modes:
        *parts, paths = PATHS[mode]
        base = [len(i) for i in irreps]
        for n, path in enumerate(paths):
            weighted = mode in ("uvw", "uuw", "u<vw") or n != 1
            instructions.append((*(b + q for b, q in zip(base, path, strict=True)), mode, weighted, 0.7 - 0.4 * n))
        for i, part in zip(irreps, parts, strict=True):
            i.extend(part.split("+"))
    return eqk.Plan(*("+".join(i) for i in irreps), tuple(instructions), *layouts, weights=weights)


def require_nvcc() -> None:
    if shutil.which("nvcc") is None:
        message = "nvcc is not on PATH: the CUDA kernels were neither compiled nor run"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def build() -> Path:
    require_nvcc()
    directory = Path(os.environ.get("EQK_CUDA_BUILD", ROOT / "build" / "test_cuda"))
    pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True)
    options = {
        "EQK_TORCH_DIR": Path(torch.__file__).parent,
        "EQK_CUDA": "ON",
        "EQK_TEST_BINDINGS": "ON",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.strip(),
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", directory, *generator, *(f"-D{k}={v}" for k, v in options.items())], check=True
    )
    return directory


def make(build: Path, *targets: str) -> None:
    subprocess.run(["cmake", "--build", build, "--parallel", "2", "--target", *targets], check=True)


class Emulator:
    def __init__(self, build: Path):
        make(build, "eqk_cuda_ptx", "eqk_cuda_launches")
        # One module a file: the addresses that a launch meets are those of the module of its kernel.
        modules = [ptxemu.Module(path.read_text()) for path in sorted(build.glob("**/tensor_product/*.ptx"))]
        self.module_of = {name: module for module in modules for name in module.kernels}
        spec = importlib.util.spec_from_file_location("eqk_cuda_launches", next(build.glob("eqk_cuda_launches*.so")))
        self.bindings = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.bindings)
        self.executed = set()

    def run(self, plan, dtype, values, tangents, wanted, dual):
        """values, tangents: numpy arrays or None for x, y, w, g in the storage dtype. Returns the wanted results."""
        rows = values[0].shape[0]
        columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
        shared = plan.weights == "shared"
        # Rows further apart than their columns, and poison between them.
        pad = 3

        def spread(a, slot):
            if a is None or (slot == 2 and shared):
                return a
            wide = np.full((rows, a.shape[1] + pad), np.nan if dtype != "bfloat16" else 0x7FC0, a.dtype)
            wide[:, : a.shape[1]] = a
            return wide

        results = []
        for slot, want in enumerate(wanted):
            shape = (columns[slot],) if slot == 2 and shared else (rows, columns[slot])
            poison = np.nan if dtype != "bfloat16" else 0x7FC0
            results.append(np.full(shape, poison, values[0].dtype) if want else None)
        strides = [c + pad for c in columns]
        if shared:
            strides[2] = 0
        keep = [spread(a, s) for s, a in enumerate(values)], [spread(a, s) for s, a in enumerate(tangents)]
        sizes = self.bindings.Problem(str(plan), dtype, rows, dual, [0] * 4, [0] * 4, strides, [int(w) for w in wanted])
        tables = np.frombuffer(sizes.tables(), np.uint8).copy()
        tables.flags.writeable = False
        scratch = np.full(max(1, sizes.scratch_bytes // 4), np.nan, np.float32)

        def launches(module):
            address = lambda a: 0 if a is None else module.register(a)  # noqa: E731
            problem = self.bindings.Problem(
                str(plan),
                dtype,
                rows,
                dual,
                *([address(a) for a in arrays] for arrays in keep),
                strides,
                [address(a) for a in results],
            )
            return problem.launches(address(tables), address(scratch))

        in_module = {id(m): launches(m) for m in {id(m): m for m in self.module_of.values()}.values()}
        names = [launch["name"] for launch in next(iter(in_module.values()))]
        for number, name in enumerate(names):
            module = self.module_of[name]
            launch = in_module[id(module)][number]
            module.launch(
                name,
                (launch["grid"],),
                (launch["block"],),
                [launch["argument"]],
                dynamic_shared=launch["shared"],
                check_races=True,
                check_uninitialised=True,
            )
            self.executed.add(name)
        return results


@pytest.fixture(scope="session")
def emulator(build) -> Emulator:
    return Emulator(build)


def to_storage(t: torch.Tensor | None, dtype: str) -> np.ndarray | None:
    if t is None:
        return None
    t = t.to(getattr(torch, dtype))
    return (t.view(torch.uint16) if dtype == "bfloat16" else t).numpy().copy()


def from_storage(a: np.ndarray, dtype: str) -> torch.Tensor:
    t = torch.from_numpy(a)
    return (t.view(torch.bfloat16) if dtype == "bfloat16" else t).double()


def expected(plan, values, tangents, dual):
    """The derivatives of Q = <g, T(x, y, w)> in float64, or with tangents the derivative of those along them."""
    v = [None if t is None else t.clone().requires_grad_() for t in values]
    slots = [s for s in v if s is not None]
    q = (reference(*v[:3], plan) * v[3]).sum()
    first = dict(zip(map(id, slots), torch.autograd.grad(q, slots, create_graph=dual), strict=True))
    first = [None if s is None else first[id(s)] for s in v]
    if not dual:
        return first
    along = sum((d * t).sum() for d, t in zip(first, tangents, strict=True) if d is not None and t is not None)
    second = torch.autograd.grad(along, slots, allow_unused=True)
    second = dict(zip(map(id, slots), second, strict=True))
    return [None if s is None else torch.zeros_like(s) if second[id(s)] is None else second[id(s)] for s in v]


def check(emulator, plan, dtype, dual, wanted=(True,) * 4, missing=(), rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    shapes = [(columns[2],) if s == 2 and plan.weights == "shared" else (rows, columns[s]) for s in range(4)]

    def draw():
        t = [torch.randn(shape, generator=generator, dtype=torch.float64).to(getattr(torch, dtype)) for shape in shapes]
        return [None if s == 2 and plan.weights == "none" else a for s, a in enumerate(t)]

    values, tangents = draw(), draw() if dual else [None] * 4
    wanted = [want and values[s] is not None for s, want in enumerate(wanted)]
    tangents = [None if s in missing else t for s, t in enumerate(tangents)]
    used = [values[s] if any(wanted[:3]) or s < 3 else None for s in range(4)]
    results = emulator.run(
        plan, dtype, [to_storage(t, dtype) for t in used], [to_storage(t, dtype) for t in tangents], wanted, dual
    )
    wide = lambda ts: [None if t is None else t.double() for t in ts]  # noqa: E731
    truth = expected(plan, wide(values), wide(tangents), dual)
    for slot, (result, want) in enumerate(zip(results, truth, strict=True)):
        if result is None:
            continue
        error = (from_storage(result, dtype) - want).abs().max() / want.abs().max().clamp(min=1e-300)
        assert error < ACCURACY[dtype], f"{SLOTS[slot]} of {plan} in {dtype}, dual {dual}: error {error:.1e}"


MUL_IR, IR_MUL = ("mul_ir",) * 3, ("ir_mul",) * 3


@pytest.mark.parametrize("dual", [False, True], ids=["backward", "double_backward"])
@pytest.mark.parametrize("layouts", [MUL_IR, IR_MUL, ("mul_ir", "ir_mul", "mul_ir")], ids="-".join)
@pytest.mark.parametrize("weights", ["per_sample", "shared"])
def test_every_mode(emulator, weights, layouts, dual):
    check(emulator, mixed_plan(weights, layouts), "float32", dual, seed=seed())


@pytest.mark.parametrize("weights", ["per_sample", "shared"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("dual", [False, True], ids=["backward", "double_backward"])
def test_dtypes(emulator, dtype, weights, dual):
    plan = mixed_plan(weights, IR_MUL if weights == "shared" else MUL_IR, ("uvw", "uvu", "u<vw"))
    check(emulator, plan, dtype, dual, rows=3, seed=seed())


@pytest.mark.parametrize("dual", [False, True], ids=["forward", "jvp"])
def test_wanted_and_missing(emulator, dual):
    """Results that nobody asked for are not written; a missing tangent is zero; no g is read where none is given."""
    plan = mixed_plan("per_sample", MUL_IR, ("uvu", "uuw"))
    check(emulator, plan, "float32", dual, wanted=(False, False, False, True), missing=(3,), seed=seed())
    for slot in range(3):
        wanted = [s == slot for s in range(4)]
        check(emulator, plan, "float32", dual, wanted=wanted, missing=(slot,), rows=2, seed=seed())
    check(emulator, plan, "float32", dual, missing=(0, 1, 2), rows=2, seed=seed())


def unrolled_plan(layouts, lmax, muls=(3, 1, 33, 2, 5), weights="per_sample"):
    """Every coupling up to lmax, multiplicities from 1 to more than a warp, a path without weight."""
    x = [f"{muls[a]}x{a}e" for a in range(lmax + 1)]
    y = [f"1x{b}e" for b in range(lmax + 1)]
    out, paths = [], []
    for a in range(lmax + 1):
        for b in range(lmax + 1):
            for c in range(abs(a - b), min(lmax, a + b) + 1):
                paths.append((a, b, len(out), "uvu" if b % 2 else "uvuv", c != 1, 0.3 + c))
                out.append(f"{muls[a]}x{c}e")
    # A second path into the last output of the same degrees.
    paths.append((*paths[-1][:3], "uvu", True, -0.8))
    return eqk.Plan("+".join(x), "+".join(y), "+".join(out), tuple(paths), *layouts, weights=weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dual", [False, True], ids=["backward", "double_backward"])
def test_unrolled(emulator, dual, dtype):
    layouts = MUL_IR if dtype == "float32" else ("ir_mul", "mul_ir", "ir_mul")
    check(emulator, unrolled_plan(layouts, 2), dtype, dual, rows=10, seed=seed())
    check(emulator, unrolled_plan(layouts, 1, weights="shared"), dtype, dual, rows=9, seed=seed())


def test_unrolled_highest_degree(emulator):
    check(emulator, unrolled_plan(IR_MUL, 4, (2, 1, 1, 2, 1)), "float32", False, rows=2, seed=seed())


def test_partial_sums_of_shared_weights(emulator):
    """Enough rows for several partial sums of unequal length."""
    check(emulator, mixed_plan("shared", MUL_IR, ("uvu",)), "float32", False, rows=53, seed=seed())


def test_degrees_and_empty(emulator):
    """High degrees, empty segments, an output irrep that no path reaches, no weights."""
    paths = ((0, 0, 0, "uvu", False, 1.3), (0, 1, 1, "uvu", False, -0.2))
    plan = eqk.Plan("2x7e+0x1o", "1x2e+0x1e", "2x6e+2x7e+3x1o", paths, weights="none")
    check(emulator, plan, "float64", True, rows=2, seed=seed())
    check(emulator, plan, "float32", False, rows=2, seed=seed())


def test_every_kernel_was_executed(emulator):
    """Runs last in this file: a kernel that no test reaches must not stay."""
    assert set(emulator.module_of) == emulator.executed


@pytest.mark.timeout(900)
def test_compiles_for_every_architecture(build):
    make(build, "eqk_cuda")
    library = next(build.glob("libeqk_cuda.*"))
    commands = (build / "compile_commands.json").read_text()
    assert all(f"sm_{arch}" in commands for arch in ARCHITECTURES)
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    assert "aoti_torch_create_device_guard" in symbols
    assert " cuda" not in symbols, "the CUDA runtime is linked statically"
