"""The CUDA kernels: compiled for every architecture, their PTX run in an emulator against the dense reference."""

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import ptxemu
import pytest
import torch
from emulated_cuda import H100, ROOT, Emulator, channel_degrees, cuobjdump, library_path

import eqk
from eqk.gaunt_plan import KINDS, GauntPlan
from eqk.reference import gaunt_product, wigner
from eqk.reference import tensor_product_conv as reference_conv
from eqk.reference.tensor_product import tensor_product as reference
from eqk.testing import CASES, depthwise, relative_error
from eqk.wigner import columns as wigner_columns

ARCHITECTURES = ("75", "80", "90", "100", "120")
# Tighter than eqk.testing.TOLERANCES, which are for sums of any length.
ACCURACY = {"float32": 2e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3}
SLOTS = ("x", "y", "w", "g")
ROWS_OF_SCALE = 8

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
    value = random.randrange(2**32)
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
def library() -> Path:
    """The CUDA library that was installed with eqk; it needs no GPU to be built and is not loaded here."""
    require_nvcc()
    path = library_path()
    assert path.exists(), "eqk was installed without its CUDA library: install it with EQK_CUDA=1"
    return path


@pytest.fixture(scope="session")
def emulator(library) -> Emulator:
    return Emulator.of_library(library)


def to_storage(t: torch.Tensor | None, dtype: str) -> np.ndarray | None:
    if t is None:
        return None
    t = t.to(getattr(torch, dtype))
    return (t.view(torch.uint16) if dtype == "bfloat16" else t).numpy().copy()


def from_storage(a: np.ndarray, dtype: str) -> torch.Tensor:
    t = torch.from_numpy(a)
    return (t.view(torch.bfloat16) if dtype == "bfloat16" else t).double()


def expected(plan, values, tangents, dual, product=reference):
    """The derivatives of Q = <g, product(x, y, w, plan)> in float64, or with tangents the derivative of those along them."""
    v = [None if t is None else t.clone().requires_grad_() for t in values]

    def gradients(scalar, create_graph=False):
        slots = [s for s in v if s is not None]
        if not isinstance(scalar, torch.Tensor) or not scalar.requires_grad:
            found = iter([torch.zeros_like(s) for s in slots])
        else:
            found = iter(torch.autograd.grad(scalar, slots, create_graph=create_graph, materialize_grads=True))
        return [None if s is None else next(found) for s in v]

    first = gradients((product(*v[:3], plan) * v[3]).sum(), dual)
    if not dual:
        return first
    return gradients(
        sum((d * t).sum() for d, t in zip(first, tangents, strict=True) if d is not None and t is not None)
    )


def check(emulator, plan, dtype, dual, wanted=(True,) * 4, missing=(), rows=5, seed=0, pad=3):
    generator = torch.Generator().manual_seed(seed)
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    drawn = max(rows, ROWS_OF_SCALE)
    shapes = [(columns[2],) if s == 2 and plan.weights == "shared" else (drawn, columns[s]) for s in range(4)]

    def draw():
        t = [torch.randn(shape, generator=generator, dtype=torch.float64).to(getattr(torch, dtype)) for shape in shapes]
        return [None if s == 2 and plan.weights == "none" else a for s, a in enumerate(t)]

    values, tangents = draw(), draw() if dual else [None] * 4
    wanted = [want and values[s] is not None for s, want in enumerate(wanted)]
    tangents = [None if s in missing else t for s, t in enumerate(tangents)]
    cut = lambda ts: [t if t is None or t.dim() == 1 else t[:rows] for t in ts]  # noqa: E731
    used = [values[s] if any(wanted[:3]) or s < 3 else None for s in range(4)]
    stored = [[to_storage(t, dtype) for t in cut(ts)] for ts in (used, tangents)]
    results, _ = emulator.run(plan, dtype, *stored, wanted, dual, pad)
    wide = lambda ts: [None if t is None else t.double() for t in ts]  # noqa: E731
    truth = expected(plan, cut(wide(values)), cut(wide(tangents)), dual)
    # Of one row a gradient may be one number, a sum that all but cancels: errors are relative to those of more rows.
    of_scale = truth if drawn == rows else expected(plan, wide(values), wide(tangents), dual)
    for slot, (result, want) in enumerate(zip(results, truth, strict=True)):
        if result is None:
            continue
        error = relative_error(from_storage(result, dtype), want)
        if want.dim() == 2 and want.any():
            error *= (want.abs().max() / of_scale[slot].abs().max()).item()
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


def channels_plan(layouts, lmax, muls=(3, 1, 33, 2, 5), weights="per_sample", own_outputs=False):
    """Every coupling up to lmax, multiplicities from 1 to more than a warp, a path without weight."""
    x = [f"{muls[a]}x{a}e" for a in range(lmax + 1)]
    y = [f"1x{b}e" for b in range(lmax + 1)]
    out, paths = [], []
    for a in range(lmax + 1):
        for b in range(lmax + 1):
            for c in range(abs(a - b), min(lmax, a + b) + 1):
                paths.append((a, b, len(out), "uvu" if b % 2 else "uvuv", c != 1, 0.3 + c))
                out.append(f"{muls[a]}x{c}e")
    if own_outputs:
        paths = [(*path[:4], weights != "none", path[5]) for path in paths]
    # A second path into the last output of the same degrees.
    else:
        paths.append((*paths[-1][:3], "uvu", True, -0.8))
    return eqk.Plan("+".join(x), "+".join(y), "+".join(out), tuple(paths), *layouts, weights=weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dual", [False, True], ids=["backward", "double_backward"])
def test_channels(emulator, dual, dtype):
    layouts = MUL_IR if dtype == "float32" else ("ir_mul", "mul_ir", "ir_mul")
    check(emulator, channels_plan(layouts, 2), dtype, dual, rows=10, seed=seed())
    check(emulator, channels_plan(layouts, 1, weights="shared"), dtype, dual, rows=9, seed=seed())


@pytest.mark.parametrize("dual", [False, True], ids=["backward", "double_backward"])
@pytest.mark.parametrize("layouts", [MUL_IR, IR_MUL], ids="-".join)
@pytest.mark.parametrize(("dtype", "lmax"), [("float32", 3), ("float32", 4), ("float64", 3)])
def test_channels_in_vectors(emulator, dtype, lmax, layouts, dual):
    """Multiplicities that fill slices, that leave one part-filled, and that do neither; more rows than a block has."""
    plan = channels_plan(layouts, lmax, (32, 8, 36, 4, 4))
    check(emulator, plan, dtype, dual, rows=18, seed=seed(), pad=4)


@pytest.mark.parametrize("pad", [3, 4], ids=["elements", "vectors"])
def test_forward_mode_by_channels(emulator, pad):
    plan = channels_plan(MUL_IR, 3, (32, 8, 36, 4))
    check(emulator, plan, "float32", True, (False, False, False, True), (3,), rows=5, seed=seed(), pad=pad)


def test_channels_of_y(emulator):
    """The mirror image: y has the channels."""
    paths = ((0, 0, 0, "uvv", True, 0.8), (1, 0, 1, "uvuv", True, -0.5), (0, 1, 1, "uvv", False, 0.6))
    plan = eqk.Plan("1x1o+1x2e", "5x1o+5x2e", "5x2e+5x1o", paths, weights="per_sample")
    for dual in (False, True):
        check(emulator, plan, "float32", dual, rows=3, seed=seed())


def test_only_what_is_wanted(emulator):
    """Each subset of the gradients, and of the tangents, by the channel kernels."""
    plan = channels_plan(MUL_IR, 1, (32, 5))
    for number in range(1, 8):
        subset = tuple(bool(number >> slot & 1) for slot in range(3))
        check(emulator, plan, "float32", False, wanted=(*subset, False), rows=2, seed=seed())
        missing = [slot for slot in range(3) if not subset[slot]]
        check(emulator, plan, "float32", True, wanted=(*subset[::-1], True), missing=(*missing, 3), rows=2, seed=seed())


KERNELS = ("forward", "forward_dual", "backward", "backward_dual")
LISTED = (ROOT / "csrc" / "tensor_product" / "cuda_plans.txt").read_text().splitlines()
SMALL = [case for case in CASES.values() if not case.problem]


@pytest.mark.parametrize("dtype", ACCURACY)
@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_registry(emulator, case, dtype):
    for dual in (False, True):
        check(emulator, case.plan, dtype, dual, rows=3, seed=seed())


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_registry_by_rows(emulator, case):
    """None, one and whole warps. Dtypes and duals change what a thread does, not what row it has."""
    for rows in (0, 1, 32):
        check(emulator, case.plan, "float32", False, rows=rows, seed=seed())


@pytest.mark.parametrize("name", ["mace-medium", "sevennet-l3i5"])
def test_problems(emulator, name):
    for dual in (False, True):
        check(emulator, CASES[name].plan, "float32", dual, rows=3, seed=seed(), pad=4)


def test_listed_plans_are_the_registrys():
    names, kernels = zip(*(line.split(maxsplit=1) for line in LISTED if re.match("[a-z]", line)), strict=True)
    texts = [line.strip() for line in LISTED if line.startswith(" ")]
    assert {word for words in kernels for word in words.split()} <= {"development", *KERNELS}
    assert texts == [str(CASES[name.replace("_", "-")].plan) for name in names]


def test_listed_plans(emulator):
    """Each kernel of a plan of its own: less than a block of rows, and one row more than a block has."""
    for name, text in emulator.bindings.listed_plans().items():
        plan = CASES[name.replace("_", "-")].plan
        assert text == str(plan)
        for rows in (3, 17):
            check(emulator, plan, "float32", False, (False, False, False, True), rows=rows, seed=seed(), pad=4)
            check(emulator, plan, "float32", False, (True, True, True, False), rows=rows, seed=seed(), pad=4)
        check(emulator, plan, "float32", True, missing=(3,), rows=9, seed=seed(), pad=4)


def test_listed_plans_only_what_is_wanted(emulator):
    """Results that nobody asked for, and tangents that are missing."""
    plan = CASES["mace-first"].plan
    for number in range(1, 8):
        subset = tuple(bool(number >> slot & 1) for slot in range(3))
        check(emulator, plan, "float32", False, wanted=(*subset, False), rows=2, seed=seed(), pad=4)
        missing = [slot for slot in range(3) if not subset[slot]]
        for out in (False, True):
            wanted = (*subset[::-1], out)
            check(emulator, plan, "float32", True, wanted=wanted, missing=(*missing, 3), rows=2, seed=seed(), pad=4)


def test_kernels_of_any_plan_where_a_listed_one_cannot_run(emulator):
    """Its own kernels move aligned vectors of all operands of float32; the others compute the rest."""
    plan, at = CASES["mace-first"].plan, 0x1000
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]

    def names(dtype="float32", rows=5, values=(at,) * 4, tangents=(0,) * 4, results=(at, at, at, 0), strides=columns):
        dual = any(tangents)
        problem = emulator.bindings.Problem(str(plan), dtype, rows, dual, values, tangents, strides, results)
        return [launch["name"].removeprefix("eqk_tensor_product_") for launch in problem.launches(at, at)]

    own, own_dual = ["backward_f32_mace_first"], ["backward_dual_f32_mace_first"]
    any_plan, any_plan_dual = ["backward_f32_l3"], ["backward_dual_f32_l3"]
    assert names() == own
    assert names(rows=2**31) == any_plan
    assert names("float64") == ["backward_f64_l3"]
    forward = dict(values=(at, at, at, 0), results=(0, 0, 0, at))
    assert names(**forward) == ["forward_f32_mace_first"]
    assert names(**forward, tangents=(at, at, at, 0)) == ["forward_dual_f32_l3"]
    for slot in (0, 2, 3):
        unaligned = [at + 4 * (s == slot) for s in range(4)]
        assert names(values=unaligned) == any_plan
        assert names(strides=[c + (s == slot) for s, c in enumerate(columns)]) == any_plan
        if slot != 3:
            assert names(results=[*unaligned[:3], 0]) == any_plan
            assert names(tangents=[*unaligned[:3], 0], results=(at,) * 4) == any_plan_dual
    # The shared operand is read by single elements.
    assert names(values=(at, at + 4, at, at), strides=[c + (s == 1) for s, c in enumerate(columns)]) == own
    assert names(tangents=(at, at, at, 0), results=(at,) * 4) == own_dual
    assert names(tangents=(0, 0, at, 0), results=(at,) * 4) == own_dual
    assert names(tangents=(at, at, 0, 0), results=(at,) * 4) == any_plan_dual
    # What the tangent of g contributes is added to results.
    assert names(tangents=(at,) * 4, results=(at,) * 4) == own_dual + any_plan


class Graph:
    """Random edges between so many nodes, of which some have none; ``degrees``: of the destinations."""

    def __init__(self, edges, num_src, num_dst, generator, degrees=None, index=np.int64):
        self.num_dst = num_dst
        src = torch.randint(max(1, num_src), (edges,), generator=generator)
        dst = torch.randint(max(1, num_dst - 1), (edges,), generator=generator)
        if degrees is not None:
            dst = torch.arange(num_dst).repeat_interleave(torch.tensor(degrees))
            dst = dst[torch.randperm(edges, generator=generator)]
        self.src, self.dst = src, dst
        self.arrays = [t.numpy().astype(index) for t in (src, dst, dst.argsort(stable=True), src.argsort(stable=True))]

    def product(self, x, y, w, plan):
        return reference_conv(x, y, w, self.src, self.dst, self.num_dst, str(plan))


def check_convolution(
    emulator,
    plan,
    graph,
    num_src,
    dual=False,
    missing=(),
    seed=0,
    pad=4,
    dtype="float32",
    changed=lambda arrays: arrays,
    wanted=(False, False, False, True),
):
    """Members of the family, by ``dual`` and ``wanted``. ``changed``: what becomes of the indices."""
    generator = torch.Generator().manual_seed(seed)
    rows = (num_src, len(graph.src), len(graph.src), graph.num_dst)
    columns = [plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim]
    shapes = [(columns[2],) if s == 2 and plan.weights == "shared" else (rows[s], columns[s]) for s in range(4)]

    def draw():
        scales = [1e-2, 30, 1, 1]
        t = [s * torch.randn(shape, generator=generator) for s, shape in zip(scales, shapes, strict=True)]
        return [None if s == 2 and plan.weights == "none" else a for s, a in enumerate(t)]

    values, tangents = draw(), draw() if dual else [None] * 4
    missing = missing if any(wanted[:3]) else (*missing, 3)
    tangents = [None if s in missing else t for s, t in enumerate(tangents)]
    used = values if any(wanted[:3]) else [*values[:3], None]
    stored = [[to_storage(t, dtype) for t in ts] for ts in (used, tangents)]
    wanted = [want and values[s] is not None for s, want in enumerate(wanted)]
    indices = (*changed(graph.arrays), graph.num_dst)
    results, executed = emulator.run_convolution(plan, dtype, indices, *stored, wanted, dual, pad)
    wide = [[None if t is None else t.double() for t in ts] for ts in (values, tangents)]
    truth = expected(plan, *wide, dual, graph.product)
    for slot, (result, want) in enumerate(zip(results, truth, strict=True)):
        if result is None:
            continue
        error = relative_error(from_storage(result, dtype), want)
        assert error < ACCURACY[dtype], f"{SLOTS[slot]} of {plan}, {rows}, dual {dual}: error {error:.1e}"
    return results, executed


GRADIENTS, OUTPUT = (True, True, True, False), (False, False, False, True)
MEMBERS = {
    "forward": (False, OUTPUT), "jvp": (True, OUTPUT), "backward": (False, GRADIENTS), "double_backward": (True, (True,) * 4),
}  # fmt: skip
CONVOLUTIONS = {case.name for case in SMALL if case.name.startswith("depthwise-")} | {
    "inputs-without-path",
    "even-parity",
}


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_convolution_of_the_registry(emulator, case):
    """What the kernels cover they compute; the rest is left to torch operations."""
    covered = emulator.covers_convolution(case.plan)
    assert covered == (case.name in CONVOLUTIONS)
    assert emulator.covers_convolution(case.plan, gradients=True) == (covered and case.plan.weights != "shared")
    if covered:
        number = seed()
        graph = Graph(23, 3, 5, torch.Generator().manual_seed(number))
        for dual in (False, True):
            check_convolution(emulator, case.plan, graph, 3, dual, seed=number)
        for dual in (False, True):
            check_convolution(emulator, case.plan, graph, 3, dual, wanted=(True, True, True, dual), seed=number)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    ("layouts", "muls", "pad"),
    [
        (MUL_IR, (32, 64, 132, 8), 4),
        (MUL_IR, (3, 1, 33, 17), 3),
        (IR_MUL, (8, 4, 36, 4), 4),
        (MUL_IR, (16, 8, 4, 4), 3),
    ],
    ids=["vectors", "elements", "ir_mul", "rows-apart"],
)
def test_convolution_by_units(emulator, layouts, muls, pad, member):
    """Every unit; one and several slices of channels, one and several edges a warp; in vectors or not."""
    number, (dual, wanted) = seed(), MEMBERS[member]
    graph = Graph(18, 6, 3, torch.Generator().manual_seed(number), index=np.int32)
    plan = channels_plan(layouts, 3, muls, own_outputs=True)
    check_convolution(emulator, plan, graph, 6, dual, (3,), seed=number, pad=pad, wanted=wanted)


@pytest.mark.parametrize("dual", [False, True], ids=["forward", "jvp"])
@pytest.mark.parametrize("weights", ["per_sample", "shared", "none"])
def test_convolution_weights(emulator, weights, dual):
    """Shared ones, none, and missing tangents, each and all."""
    number = seed()
    plan = channels_plan(MUL_IR, 1, (4, 8), weights=weights, own_outputs=True)
    graph = Graph(19, 3, 3, torch.Generator().manual_seed(number))
    for missing in [(0, 1, 2), (0,), (1,), (2,)] if dual else [()]:
        check_convolution(emulator, plan, graph, 3, dual, missing, seed=number)


@pytest.mark.parametrize("weights", ["per_sample", "none"])
def test_gradients_of_the_convolution(emulator, weights):
    """Each subset: what is not wanted is neither written nor has it scratch memory."""
    number = seed()
    plan = channels_plan(MUL_IR, 1, (4, 8), weights=weights, own_outputs=True)
    graph = Graph(19, 3, 3, torch.Generator().manual_seed(number))
    for subset in range(1, 8):
        wanted = tuple(bool(subset >> slot & 1) for slot in range(3))
        _, executed = check_convolution(emulator, plan, graph, 3, seed=number, wanted=(*wanted, False))
        names = {launch["name"].removeprefix("eqk_tensor_product_conv_") for launch, _ in executed}
        assert ("sum_x_f32" in names, "sum_y_f32" in names) == wanted[:2]
        # Of each tangent that is missing, and with what that of g contributes.
        missing = [slot for slot in range(3) if wanted[slot]]
        for out, without in ((False, missing), (True, [*missing, 3])):
            check_convolution(emulator, plan, graph, 3, True, without, seed=number, wanted=(*wanted[::-1], out))


def test_gradients_of_a_segment_that_many_units_read(emulator):
    """More than a block has warps, which add to rows of their own, and a segment of x and one of y without a path."""
    y = "+".join(["1x1o"] * 5 + ["2x2e"])
    paths = tuple((1, n, n, "uvu", True, 0.3 + n) for n in range(5))
    plan = eqk.Plan("3x2e+6x1o", y, "+".join(["6x0e"] * 5), paths, weights="per_sample")
    number = seed()
    graph = Graph(14, 4, 3, torch.Generator().manual_seed(number))
    (gx, gy, _, _), _ = check_convolution(emulator, plan, graph, 4, seed=number, wanted=GRADIENTS)
    assert not gx[:, :15].any()
    assert not gy[:, 15:].any()
    check_convolution(emulator, plan, graph, 4, True, seed=number, wanted=(True,) * 4)


GRAPHS = {
    "one edge": (1, 1, 1, None), "no edges": (0, 3, 4, None), "no sources": (0, 0, 2, None),
    "one destination": (33, 5, 1, None), "degrees": (71, 4, 7, (0, 1, 33, 0, 16, 17, 4)),
    "tile's ends": (14, 2, 4, (2, 3, 4, 5)),
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_convolution_graphs(emulator, graph):
    number = seed()
    generator = torch.Generator().manual_seed(number)
    edges, num_src, num_dst, degrees = graph
    plan = channels_plan(MUL_IR, 1, (16, 128), own_outputs=True)
    of_int64, of_int32 = (Graph(edges, num_src, num_dst, generator, degrees, i) for i in (np.int64, np.int32))
    check_convolution(emulator, plan, of_int64, num_src, seed=number)
    check_convolution(emulator, plan, of_int32, num_src, True, seed=number)
    check_convolution(emulator, plan, of_int32, num_src, seed=number, wanted=GRADIENTS)
    check_convolution(emulator, plan, of_int64, num_src, True, seed=number, wanted=(True,) * 4)


def test_long_sums_of_the_convolution(emulator):
    """They have a second level, so that equal terms, whose rounding errors have one sign, lose no digits."""
    edges = 4000
    plan = eqk.Plan("4x0e", "1x0e", "4x0e", ((0, 0, 0, "uvu", True, 0.7),))
    x, y, w = (
        np.full((1, 4), 1.1, np.float32),
        np.full((edges, 1), 0.3, np.float32),
        np.full((edges, 4), 0.9, np.float32),
    )
    order = np.arange(edges, dtype=np.int32)
    graph = (np.zeros(edges, np.int32), np.zeros(edges, np.int32), order, order, 1)
    results, _ = emulator.run_convolution(plan, "float32", graph, (x, y, w, None), [None] * 4, OUTPUT, False, 4)
    want = edges * 0.7 * float(x[0, 0]) * float(y[0, 0]) * float(w[0, 0])
    assert np.abs(results[3] / want - 1).max() < 5e-6
    wanted = (True, False, False, False)
    results, _ = emulator.run_convolution(plan, "float32", graph, (x, y, w, x), [None] * 4, wanted, False, 4)
    assert np.abs(results[0] / want - 1).max() < 5e-6
    tangents = [x, None, None, None]
    results, _ = emulator.run_convolution(plan, "float32", graph, (x, y, w, x), tangents, OUTPUT, True, 4)
    assert np.abs(results[3] / want - 1).max() < 5e-6


def test_convolution_has_the_same_bits_for_any_other_edges(emulator):
    """What other destinations there are, and how wide indices are, changes no bit of a row."""
    number = seed()
    plan = channels_plan(MUL_IR, 2, (32, 64, 4), own_outputs=True)
    graph = Graph(30, 4, 3, torch.Generator().manual_seed(number))

    def narrow(arrays):
        return [a.astype(np.int32) for a in arrays]

    for dual, wanted in (MEMBERS[name] for name in ("forward", "backward", "double_backward")):
        first, _ = check_convolution(emulator, plan, graph, 4, dual, seed=number, wanted=wanted)
        again, _ = check_convolution(emulator, plan, graph, 4, dual, seed=number, wanted=wanted, changed=narrow)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True) if a is not None)


def test_problems_of_the_convolution(emulator):
    number = seed()
    graph = Graph(11, 3, 2, torch.Generator().manual_seed(number))
    check_convolution(emulator, CASES["sevennet-l3i5"].plan, graph, 3, seed=number)
    check_convolution(emulator, CASES["sevennet-l3i5"].plan, graph, 3, seed=number, wanted=GRADIENTS)
    check_convolution(emulator, CASES["mace-medium"].plan, graph, 3, True, seed=number)
    check_convolution(emulator, CASES["mace-medium"].plan, graph, 3, True, seed=number, wanted=(True,) * 4)


@pytest.mark.parametrize("index", [np.int64, np.int32])
@pytest.mark.parametrize(
    ("which", "position", "value"),
    [(0, 3, 4), (0, 0, -1), (1, 2, 5), (1, 2, -1), (2, 1, 9), (2, 1, -1), (2, None, None), (3, 1, 9), (3, None, None)],
)
def test_indices_that_are_refused(emulator, which, position, value, index):
    """By an assertion on the device, as torch's indexing on a GPU, before any memory is read by them."""
    number = seed()
    graph = Graph(9, 4, 5, torch.Generator().manual_seed(number), index=index)

    def broken(arrays):
        arrays = [a.copy() for a in arrays]
        if position is None:
            arrays[which] = arrays[which][::-1].copy()
        else:
            arrays[which][position] = value
        return arrays

    plan, wanted = channels_plan(MUL_IR, 1, own_outputs=True), GRADIENTS if which == 3 else OUTPUT
    with pytest.raises(ptxemu.DeviceAssert):
        check_convolution(emulator, plan, graph, 4, seed=number, changed=broken, wanted=wanted)


# Of the forward with weights h a, by whether it is exact to float32; a product of two numbers of bfloat16 for one is off by
# 1.1e-5 at most.
RADIAL_ACCURACY = {True: 1e-6, False: 3e-5}


def check_radial(emulator, plan, graph, num_src, hidden=16, seed=0, pad=4, exacts=(True, False), **how):
    """At both precisions, or one. ``how``: of :meth:`Emulator.run_radial`."""
    generator = torch.Generator().manual_seed(seed)
    edges = len(graph.src)
    shapes = [
        (num_src, plan.irreps_in1.dim),
        (edges, plan.irreps_in2.dim),
        (edges, hidden),
        (hidden, plan.weight_numel),
    ]
    values = [s * torch.randn(shape, generator=generator) for s, shape in zip([1e-2, 30, 1, 1], shapes, strict=True)]
    src, dst, by_dst, _ = graph.arrays
    x, y, h, a = (v.double() for v in values)
    truth = graph.product(x, y, h @ a, plan)
    results = []
    for exact in exacts:
        accuracy, stored = RADIAL_ACCURACY[exact], [v.numpy() for v in values]
        result, executed = emulator.run_radial(plan, (src, dst, by_dst, graph.num_dst), stored, exact, pad=pad, **how)
        assert not np.isnan(result).any()
        error = relative_error(torch.from_numpy(result).double(), truth)
        assert error < accuracy, f"{plan}, {shapes}, exact {exact}: error {error:.1e}"
        results.append((result, [launch for launch, _ in executed]))
    return results


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_radial_convolution_of_the_registry(emulator, case):
    covered = emulator.covers_convolution(case.plan)
    operands = [16] * 4, [case.plan.irreps_in1.dim, case.plan.irreps_in2.dim, 8, case.plan.weight_numel]
    problem = emulator.radial_problem(case.plan, (1, 1, 1, 8), [(16, 1, 8)] * 4, *operands, 16, True)
    assert problem.covered == covered
    if covered and case.plan.weights == "per_sample" and all(i.has_weight for i in case.plan.instructions):
        number = seed()
        check_radial(emulator, case.plan, Graph(23, 3, 5, torch.Generator().manual_seed(number)), 3, 8, seed=number)


@pytest.mark.parametrize(
    ("layouts", "muls", "pad", "hidden"),
    [
        (MUL_IR, (32, 64, 132, 8), 4, 64),
        (MUL_IR, (3, 1, 33, 17), 3, 16),
        (IR_MUL, (8, 4, 36, 4), 4, 8),
        (MUL_IR, (16, 8, 4, 4), 3, 128),
    ],
    ids=["vectors", "elements", "ir_mul", "rows-apart"],
)
def test_radial_convolution_by_units(emulator, layouts, muls, pad, hidden):
    """Every unit; one and several tiles of channels; in vectors or not; more teams in a block than destinations."""
    number = seed()
    graph = Graph(18, 6, 3, torch.Generator().manual_seed(number), index=np.int32)
    plan = channels_plan(layouts, 3, muls, own_outputs=True)
    check_radial(emulator, plan, graph, 6, hidden, seed=number, pad=pad)


@pytest.mark.parametrize("hidden", [0, 1, 15, 65])
def test_features_of_the_radial_convolution(emulator, hidden):
    """No steps of the product, and numbers of features that fill none."""
    number = seed()
    plan = channels_plan(MUL_IR, 1, (16, 8), own_outputs=True)
    check_radial(emulator, plan, Graph(19, 3, 3, torch.Generator().manual_seed(number)), 3, hidden, seed=number)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_radial_convolution_graphs(emulator, graph):
    number = seed()
    edges, num_src, num_dst, degrees = graph
    plan = channels_plan(MUL_IR, 1, (16, 128), own_outputs=True)
    graph = Graph(edges, num_src, num_dst, torch.Generator().manual_seed(number), degrees)
    check_radial(emulator, plan, graph, num_src, seed=number)


def test_tiles_of_the_radial_convolution(emulator):
    """One group: edges of several destinations share a tile, some fill more than one, and some destinations are empty."""
    number = seed()
    degrees = (0, 0, 5, 1, 0, 2, 33, 0, 1, 1, 4, 30, 0)
    plan = channels_plan(MUL_IR, 1, (256, 128), own_outputs=True)
    graph = Graph(sum(degrees), 5, len(degrees), torch.Generator().manual_seed(number), degrees)
    for _, launches in check_radial(emulator, plan, graph, 5, seed=number, device=(1, H100[1])):
        assert [launch["grid"] for launch in launches if "_radial_edges_" in launch["name"]] == [1]


def test_segments_of_the_radial_convolution(emulator):
    """Several of y with the same degree, which no unit has two of; more of them than sets are left to torch operations."""
    number = seed()
    graph = Graph(19, 3, 4, torch.Generator().manual_seed(number))
    plan = depthwise("8x0e+8x1o", "0e+1o+1e+1o", "0e+0o+1o+1e")
    check_radial(emulator, plan, graph, 3, 8, seed=number)
    for segments, covered in ((16, True), (17, False)):
        plan = depthwise("8x0e", "+".join(["1o"] * segments), "1o")
        operands = [16] * 4, [plan.irreps_in1.dim, plan.irreps_in2.dim, 8, plan.weight_numel]
        assert emulator.covers_convolution(plan)
        assert emulator.radial_problem(plan, (1, 1, 1, 8), [(16, 1, 8)] * 4, *operands, 16, True).covered == covered


def test_long_sums_of_the_radial_convolution(emulator):
    """As of the convolution; of several levels, each a sum of its own on the way out."""
    edges = 4000
    plan = eqk.Plan("4x0e", "1x0e", "4x0e", ((0, 0, 0, "uvu", True, 0.7),), weights="per_sample")
    shapes_and_values = ((1, 4), 1.1), ((edges, 1), 0.3), ((edges, 8), 0.9), ((8, 4), 0.2)
    values = [np.full(shape, value, np.float32) for shape, value in shapes_and_values]
    graph = (np.zeros(edges, np.int32), np.zeros(edges, np.int32), np.arange(edges, dtype=np.int32), 1)
    result, _ = emulator.run_radial(plan, graph, values)
    x, y, h, a = (float(v[0, 0]) for v in values)
    assert np.abs(result / (edges * 0.7 * x * y * 8 * h * a) - 1).max() < 5e-6


def test_radial_convolution_has_the_same_bits_on_any_device(emulator):
    """How many blocks there are, what fits in one, and what other destinations there are, changes no bit of a row."""
    number = seed()
    plan = channels_plan(MUL_IR, 3, (32, 8, 4, 40), own_outputs=True)
    graph = Graph(60, 4, 20, torch.Generator().manual_seed(number))
    first = check_radial(emulator, plan, graph, 4, 48, seed=number)
    again = check_radial(emulator, plan, graph, 4, 48, seed=number, device=(1, 99 << 10))
    for (a, large), (b, small) in zip(first, again, strict=True):
        assert np.array_equal(a, b)
        assert max(launch["shared"] for launch in small) <= 99 << 10 < max(launch["shared"] for launch in large)
        assert sum(launch["grid"] for launch in small) < sum(launch["grid"] for launch in large)


def test_what_fits_no_block(emulator):
    """A matrix of many features is left to torch operations, by the shared memory of the device."""
    plan = channels_plan(MUL_IR, 2, (32, 32, 32), own_outputs=True)

    def covered(hidden, shared=H100[1]):
        operands = [16] * 4, [plan.irreps_in1.dim, plan.irreps_in2.dim, hidden, plan.weight_numel]
        sizes, device = (9, 3, 3, hidden), (132, shared)
        return emulator.radial_problem(plan, sizes, [(16, 1, 8)] * 4, *operands, 16, True, device).covered

    assert covered(128)
    assert covered(64, 99 << 10)
    assert not covered(1024)
    assert not covered(128, 99 << 10)


def check_gaunt(emulator, plan, rows=5, dual=False, wanted=(True,) * 3, missing=(), pad=3):
    """Members of the family of products of signals, of x, y and g, by ``dual`` and ``wanted``; the names of launches."""
    generator = torch.Generator().manual_seed(seed())
    drawn = max(rows, ROWS_OF_SCALE)

    def draw():
        return [torch.randn(drawn, n, generator=generator) for n in plan.dims]

    values, tangents = draw(), draw() if dual else [None] * 3
    tangents = [None if s in missing else t for s, t in enumerate(tangents)]
    used = values if any(wanted[:2]) else [*values[:2], None]
    stored = [[None if t is None else t[:rows].numpy() for t in ts] for ts in (used, tangents)]
    results, executed = emulator.run_gaunt(plan, stored[0], stored[1] if dual else None, wanted, pad)
    # As of a product without weights.
    (x, y, g), (tx, ty, tg) = ([None if t is None else t.double() for t in ts] for ts in (values, tangents))
    truth = expected(
        plan,
        (x, y, None, g),
        (tx, ty, None, tg),
        dual,
        lambda x, y, _, plan: gaunt_product(x, y, None, None, None, plan),
    )
    for result, want in zip(results, (truth[0], truth[1], truth[3]), strict=True):
        if result is not None and rows:
            assert not np.isnan(result).any()
            error = np.abs(result - want[:rows].numpy()).max() / want.abs().max().item() if want.any() else result.any()
            assert error < ACCURACY["float32"], f"{plan}, rows {rows}, dual {dual}: error {error:.1e}"
    return [launch["name"].removeprefix("eqk_gaunt_product_") for launch, _ in executed]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lmax", range(1, 7))
def test_products_of_signals(emulator, lmax, kind):
    """Each kernel, its last block partly filled."""
    plan = GauntPlan.normalized(lmax, lmax, lmax, 33, 33, kind, "component")
    assert check_gaunt(emulator, plan) == [f"{member}_{kind}_l{lmax}_f32" for member in ("backward", "forward")]


def test_products_of_signals_only_what_is_wanted(emulator):
    """Each subset of results, and of tangents."""
    plan = GauntPlan.normalized(1, 1, 1, 3, 3, "all", "component")
    for number in range(1, 8):
        subset = tuple(bool(number >> slot & 1) for slot in range(3))
        names = check_gaunt(emulator, plan, wanted=subset)
        # Of one operand, a gradient is a product of the two others.
        expected_names = ["backward"] * all(subset[:2]) + ["forward"] * (subset[2] + (subset[0] != subset[1]))
        assert names == [f"{member}_all_l1_f32" for member in expected_names]
        for missing in ((), (0,), (1,), (2,)):
            check_gaunt(emulator, plan, 2, True, subset, missing)
    # With the tangent of one operand alone, its own gradient has no term: zeros.
    for slot in range(3):
        check_gaunt(emulator, plan, 2, True, missing=[s for s in range(3) if s != slot])


@pytest.mark.parametrize(("channels", "rows"), [(1, 131), (33, 0), (33, 1), (128, 3)])
def test_channels_of_products_of_signals(emulator, channels, rows):
    plan = GauntPlan(2, 2, 2, channels, channels, 0.7, -1.3, 1, (1.0, -0.5, 2.0), (0.7, 1.0, -1.5), (1.0, 2.0, 0.3))
    names = check_gaunt(emulator, plan, rows, pad=0)
    assert check_gaunt(emulator, plan, rows, True) == 2 * names[:1] + 2 * names[1:]
    assert len(names) == (2 if rows else 0)


@pytest.mark.parametrize(
    ("lmaxes", "kind"),
    [((0, 0, 0), "even"), ((0, 0, 0), "odd"), ((1, 2, 3), "all"), ((3, 1, 0), "odd"), ((0, 2, 4), "all"),
     ((4, 3, 2), "even"), ((1, 0, 2), "odd")],
)  # fmt: skip
def test_degrees_of_products_of_signals(emulator, lmaxes, kind):
    """Degrees that an operand lacks are not read, those of the result not written, where no path leads they are zero."""
    plan = GauntPlan(*lmaxes, 5, 5, kind != "odd", kind != "even")
    for dual in (False, True):
        names = check_gaunt(emulator, plan, 3, dual)
        assert {name.partition("_")[2] for name in names} == {f"{kind}_l{max(1, *lmaxes)}_f32"}


def test_products_of_signals_that_kernels_cover(emulator):
    def covered(plan, dtype="float32", weighted=False):
        values, results = [16, 16, *[16 * weighted] * 3, 16], [0] * 5 + [16]
        strides = [99] * 6
        return emulator.bindings.GauntProblem(
            str(plan), dtype, 3, False, values, [0] * 6, strides, strides, results
        ).covered

    plan = GauntPlan(2, 3, 1, 4, 4)
    assert covered(plan)
    assert covered(GauntPlan(6, 6, 6, 4, 4))
    assert not covered(plan, "float64")
    assert not covered(plan, "bfloat16")
    assert not covered(plan, weighted=True)
    for other in (
        GauntPlan(2, 3, 7, 4, 4), GauntPlan(2, 3, 1, 4, 1), GauntPlan(2, 3, 1, 1, 4), GauntPlan(2, 3, 1, 0, 0),
        GauntPlan(2, 3, 1, 4, 4, rank=2), GauntPlan(2, 3, 1, 4, 4, layout2="mul_ir"), GauntPlan(2, 3, 1, 4, 4, 0.0, 0.0),
    ):  # fmt: skip
        assert not covered(other), other


def check_wigner(emulator, lmax, mmax, dtype, rows, pad=3):
    """Matrices and the gradient of q; of a row alone, errors are relative to those of more rows."""
    generator = torch.Generator().manual_seed(seed())
    q, g = (
        torch.randn(max(rows, ROWS_OF_SCALE), n, generator=generator, dtype=torch.float64).to(getattr(torch, dtype))
        for n in (4, wigner_columns(lmax, mmax))
    )
    leaf = q.double().clone().requires_grad_()
    matrices = wigner(leaf, lmax, mmax)
    (gradient,) = torch.autograd.grad(matrices, leaf, g.double())
    for cotangent, want in ((None, matrices.detach()), (to_storage(g[:rows], dtype), gradient)):
        result, executed = emulator.run_wigner(lmax, mmax, dtype, to_storage(q[:rows], dtype), cotangent, pad)
        error = (from_storage(result, dtype) - want[:rows]).abs().max() / want.abs().max()
        assert error < ACCURACY[dtype], f"degrees {lmax}, {mmax}, {dtype}, rows {rows}: error {error:.1e}"
        ((launch, _),) = executed
        yield launch


@pytest.mark.parametrize("dtype", ACCURACY)
@pytest.mark.parametrize(("lmax", "mmax", "rows"), [(1, 1, 33), (3, 0, 1), (4, 2, 35), (6, 2, 3)])
def test_wigner(emulator, lmax, mmax, rows, dtype):
    """The last block partly filled; rows adjacent, and apart, where they begin at any place of a sector."""
    for pad in (0, 3):
        assert len(list(check_wigner(emulator, lmax, mmax, dtype, rows, pad))) == 2


@pytest.mark.parametrize(
    ("lmax", "mmax", "dtype", "parts"), [(8, 8, "float32", 3), (14, 1, "float64", 5), (8, 8, "float16", 2)]
)
def test_parts_of_matrices(emulator, lmax, mmax, dtype, parts):
    """What shared memory does not hold at a time: of matrices by blocks, of cotangents one after the other."""
    of_matrices, of_gradient = check_wigner(emulator, lmax, mmax, dtype, 3)
    assert (of_matrices["grid"], of_gradient["grid"]) == (parts, 1)
    assert max(of_matrices["shared"], of_gradient["shared"]) < 48 << 10


def test_partial_sums_of_shared_weights(emulator):
    """Enough rows for several partial sums of unequal length."""
    check(emulator, mixed_plan("shared", MUL_IR, ("uvu",)), "float32", False, rows=53, seed=seed())


def test_degrees_and_empty(emulator):
    """High degrees, empty segments, an output irrep that no path reaches, no weights."""
    paths = ((0, 0, 0, "uvu", False, 1.3), (0, 1, 1, "uvu", False, -0.2))
    plan = eqk.Plan("2x7e+0x1o", "1x2e+0x1e", "2x6e+2x7e+3x1o", paths, weights="none")
    check(emulator, plan, "float64", True, rows=2, seed=seed())
    check(emulator, plan, "float32", False, rows=2, seed=seed())


@pytest.mark.parametrize("bits", [63, 31])
def test_division(emulator, bits):
    """Of the kernels' indices, at the ends of their range and at random."""
    generator, divided = np.random.default_rng(seed()), emulator.bindings.divided
    below = 2**bits
    divisors = {below // 2, *(2**b + d for b in range(bits - 1) for d in (-1, 0, 1) if 2**b + d > 0)}
    divisors |= {int(2**b) for b in generator.uniform(0, bits - 1, 200)}
    for d in divisors:
        last = (below - 1) // d * d
        ends = {0, d - 1, d, 2 * d - 1, last - 1, last, below - 1}
        for n in {*ends, *(int(2**b) for b in generator.uniform(0, bits, 50))}:
            if 0 <= n < below:
                assert divided(n, d, bits == 31) == divmod(n, d), (n, d)


def test_every_kernel_was_executed(emulator):
    """Runs last in this file: a kernel that no test reaches must not stay."""
    assert set(emulator.module_of) == emulator.executed


def test_machine_code_of_every_architecture(library):
    assert set(re.findall(r"sm_(\d+)\.cubin", cuobjdump("--list-elf", library))) == set(ARCHITECTURES)
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    assert "aoti_torch_create_device_guard" in symbols
    assert " cuda" not in symbols, "the CUDA runtime is linked statically"


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "75"])
def test_kernels_in_float32_spill_nothing(library, architecture):
    usage = cuobjdump("--dump-resource-usage", "-arch", f"sm_{architecture}", library)
    kernels = re.findall(
        r"Function (eqk_(?:(?:tensor|gaunt)_product|wigner)_(?:(?:conv_)?(?:for|back)ward\w*_f32|conv_radial_)\w*):"
        r"\s*REG:(\d+) STACK:(\d+)",
        usage,
    )
    assert len([name for name, _, _ in kernels if "_radial_" in name]) == 4
    degrees = channel_degrees(library)
    assert len({name for name, _, _ in kernels if re.search(r"_l\d$", name)}) == 4 + 2 * (len(degrees) - 1)
    for name, registers, stack in kernels:
        assert int(stack) == 0, (name, architecture, registers, stack)
        # Sixteen warps a multiprocessor; twelve for the degrees that need more registers; eight in a block alone there.
        most = (
            255 if "_radial_" in name or "_gaunt_" in name else 168 if name.endswith("_l4") or "_conv_" in name else 128
        )
        assert int(registers) <= most, (
            name,
            architecture,
            registers,
        )
