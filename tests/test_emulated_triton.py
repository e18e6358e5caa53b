"""The Triton kernels: compiled for GPUs that are not there, their PTX run in an emulator against the dense reference."""

import contextlib
import dataclasses

import ptxemu
import pytest
import torch
from emulated_triton import Emulator, emulated, functions, name_of
from fuzz import s2_activation_truth
from interpreted_tensor_product_conv import arguments as convolution_arguments
from interpreted_tensor_product_conv import is_real, results
from test_cuda import ACCURACY, IR_MUL, SMALL, check, seed
from test_rotate import KINDS, members, without
from test_rotate import problem as rotate_problem
from test_so2_edge_message import Problem

import eqk
from eqk.s2_activation_plan import FUNCTIONS
from eqk.so2_conv import pack
from eqk.so2_edge_message import _plan as message_plan
from eqk.testing import random_s2_activation, relative_error
from eqk.triton_kernels import rotate, s2_activation, so2_edge_message, tensor_product_conv
from eqk.triton_kernels import tensor_product as kernels

# Small, because the time to compile grows with the square of a kernel's length. No path reaches 2x1e.
UVU = eqk.Plan(
    "3x0e+5x1o",
    "1x0e+1x1o",
    "5x0e+3x1o+2x1e+5x1o",
    ((1, 1, 0, "uvu", True, 0.7), (0, 1, 1, "uvu", True, -1.3), (1, 0, 3, "uvu", False, 0.4)),
    weights="per_sample",
)
MODES = eqk.Plan(
    "3x0e+2x1o",
    "3x0e+2x1o",
    "2x0e+3x0e+3x0e+2x0e+2x1o+6x1o+3x1o+2x0e",
    (
        (0, 0, 0, "u<vw", True, 0.9),
        (0, 0, 1, "uvu<v", False, -0.6),
        (0, 0, 2, "uvu", True, 1.2),
        (0, 0, 3, "uuw", True, 0.5),
        (0, 1, 4, "uvv", True, -0.8),
        (0, 1, 5, "uvuv", True, 1.1),
        (1, 0, 6, "uvw", True, -0.7),
        (1, 1, 7, "uuu", False, 0.3),
    ),
    "ir_mul",
    "mul_ir",
    "ir_mul",
    "shared",
)
MIXING = eqk.Plan(
    "3x0e+2x1o", "2x1o", "3x0e+2x1o", ((1, 0, 0, "uvw", True, 0.8), (0, 0, 1, "uvw", True, -1.1)), *IR_MUL, "shared"
)
# Plans that take minutes to compile.
SLOW = ("even-parity", "degree-6", "degree-8", "degree-11-shared")
OUT = (False, False, False, True)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with emulated(90, tmp_path_factory.mktemp("triton")) as driver:
        yield driver


@pytest.fixture
def emulator(driver) -> Emulator:
    return Emulator()


@pytest.mark.parametrize("plan", [UVU, MODES], ids=["uvu", "modes"])
def test_family(emulator, plan):
    number = seed()
    check(emulator, plan, "float32", False, seed=number)
    check(emulator, plan, "float32", True, OUT, missing=(3,), seed=number)
    check(emulator, plan, "float32", True, seed=number)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(emulator, dtype):
    number = seed()
    check(emulator, MIXING, dtype, False, seed=number)
    check(emulator, MIXING, dtype, True, OUT, missing=(3,), seed=number)
    check(emulator, MIXING, dtype, True, seed=number)


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_registry(emulator, case, rng):
    """A result of each case: a value, or a derivative along tangents.

    All results, of values and on dual numbers, in four dtypes would compile for two hours, one for a minute or two. Which
    one is drawn anew in each run; EQK_SEED repeats it. So are six of the instructions where there are more, and one of
    those of SLOW plans.
    """
    dual, dtype = rng.choice((False, True)), rng.choice(("float32", rng.choice(list(ACCURACY))))
    slot = rng.choice([slot for slot in range(4) if slot != 2 or case.plan.weights != "none"])
    instructions = case.plan.instructions
    chosen = sorted(rng.sample(range(len(instructions)), min(len(instructions), 1 if case.name in SLOW else 6)))
    plan = dataclasses.replace(case.plan, instructions=tuple(instructions[n] for n in chosen))
    block = max((launch.rows for launch in kernels.lower(str(plan), (slot,))), default=1)
    rows, pad = rng.choice((1, 5, block, block + 1)), rng.choice((0, 3))
    print(f"slot {slot} of {plan} in {dtype}, dual {dual}, {rows} rows, {pad} elements between them")
    check(emulator, plan, dtype, dual, tuple(s == slot for s in range(4)), rows=rows, seed=seed(), pad=pad)


def test_lanes_agree(emulator):
    """Every lane stores the same bits of a sum of bare products, though each could fuse its own product alone."""
    text = "16x0e * 1x0e -> 16x0e [mul_ir,mul_ir,mul_ir] per_sample {0 0 0 uvu w 1.0}"
    for dtype in ("float32", "float64"):
        check(emulator, eqk.Plan.parse(text), dtype, False, (False, True, False, False), rows=16, seed=seed())


def test_more_channels_than_lanes(emulator):
    """More channels and pairs of them than a tile is wide, so that blocks follow one another and the last is masked."""
    paths = ((0, 0, 0, "uuw", True, 0.8), (1, 1, 1, "uvu<v", True, 1.2), (1, 1, 0, "u<vw", True, -0.6))
    plan = eqk.Plan("67x0e+12x0e", "67x0e+12x0e", "2x0e+66x0e", paths, weights="shared")
    check(emulator, plan, "float32", False, seed=seed())
    check(emulator, plan, "float32", True, seed=seed())


def test_sm_80(emulator, driver, monkeypatch):
    monkeypatch.setattr(driver, "architecture", 80)
    check(emulator, UVU, "float32", False, seed=seed())


@pytest.mark.parametrize("plan", [UVU, MIXING], ids=["per_sample", "shared"])
def test_rows(emulator, plan):
    """None, one, a block of each kernel, one more and one less."""
    blocks = {launch.rows for slot in range(4) for launch in kernels.lower(str(plan), (slot,))}
    for rows in {0, 1, *(b + n for b in blocks for n in (-1, 0, 1))}:
        check(emulator, plan, "float32", False, rows=rows, seed=seed())


def test_only_what_is_wanted(emulator):
    """Each gradient alone; a missing tangent is zero."""
    number = seed()
    for slot in range(3):
        wanted = tuple(s == slot for s in range(4))
        check(emulator, UVU, "float32", False, wanted, seed=number)
        check(emulator, UVU, "float32", True, wanted, missing=(slot,), seed=number)


def test_vectors(emulator):
    """Rows that begin at multiples of 16 bytes, for which Triton compiles another kernel."""
    plan = eqk.Plan("4x0e+4x1o", "1x1o+1x0e", "4x1o", ((0, 0, 0, "uvu", True, 0.6), (1, 1, 0, "uvu", True, -0.9)))
    check(emulator, plan, "float32", False, seed=seed(), pad=0)


def check_convolution(plan, dtype, generator, edges=70, **how):
    """Each member of the family against the CPU's kernels; operands lie between NaN."""
    for suffix, args in convolution_arguments(plan, edges, 3, 2, dtype, generator, ordered=False, **how).items():
        framed = [between_nan(a) if is_real(a) else a for a in args]
        got = getattr(tensor_product_conv, suffix or "_forward")(*framed)
        got = [got] if isinstance(got, torch.Tensor) else got
        expected = results(torch.ops.eqk, suffix, [a.double() if is_real(a) else a for a in args])
        for n, (result, truth) in enumerate(zip(got, expected, strict=True)):
            limit = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 5e-3}[dtype]
            error = relative_error(result, truth) if truth.numel() else 0
            assert error < limit, f"{suffix}, result {n} of {plan} in {dtype}: error {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_tensor_product_conv(driver, dtype, generator):
    """A node of more edges than a part of its sum has; sums over lanes; shared weights."""
    check_convolution(UVU, dtype, generator, orders=dtype == torch.float64)
    check_convolution(MIXING, dtype, generator, 9)
    scalars = eqk.Plan("64x0e", "1x0e", "64x0e", ((0, 0, 0, "uvu", True, 1.0),))
    check_convolution(scalars, dtype, generator, 600)


CONVOLUTION_FAULTS = {
    "edges_beyond_the_last": ("_edges", "place < last", "place <= last", (ptxemu.MemoryFault, "out-of-bounds access")),
    "edges_of_a_part": ("_part", "range(first, last", "range(first + M.R, last", (AssertionError, r"error \d")),
    "another_end": ("at_rows", "graph[1] + rows", "graph[0] + rows", (AssertionError, "error (\\d|nan)")),
}


@pytest.mark.parametrize("fault", CONVOLUTION_FAULTS.values(), ids=CONVOLUTION_FAULTS)
def test_fault_in_tensor_product_conv_is_found(driver, fault, generator):
    name, *change, (error, message) = fault
    module = kernels if name == "at_rows" else tensor_product_conv
    with planted(name, *change, module), pytest.raises(error, match=message):
        check_convolution(UVU, torch.float32, generator)


def check_s2_activation(plan, kinds, dtype, generator, rows=5, pad=3):
    """Rows are apart by columns of NaN, whose memory ends with the last row."""
    operands = []
    for kind in "x" + kinds[1:-2]:
        columns = plan.dims["xz".index(kind)]
        wide = torch.full((rows, columns + pad), torch.nan, dtype=dtype)
        wide[:, :columns] = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        operands.append(wide.flatten()[: rows * (columns + pad) - pad].as_strided((rows, columns), (columns + pad, 1)))
    got = s2_activation._product(*operands, *[None] * (5 - len(operands)), str(plan), kinds)
    expected = s2_activation_truth(operands[0], operands[1:], str(plan), kinds)
    error = relative_error(got, expected)
    # A derivative of a function that tends to a constant is small beside the rounding errors of its argument.
    close = dtype == torch.float32 and bool(((got - expected).abs() < 1e-4).all())
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert error < limit or close, f"{kinds} of {plan} in {dtype}: error {error:.1e}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_s2_activation_functions(driver, function, rng, generator):
    """Of each order; of one it is the function's last that float32 and float64 share the code of. Of one in 16 bits."""
    layouts = [rng.choice(("ir_mul", "mul_ir")) for _ in range(2)]
    plan = eqk.S2ActivationPlan.normalized(1, 2, 3, function, (3, 5), layout_in=layouts[0], layout_out=layouts[1])
    for order in rng.sample(range(5), 5):
        kinds = f"{order}{rng.choice(('', 'x', 'z', 'xz'))}>{rng.choice('xz')}"
        check_s2_activation(plan, kinds, torch.float64 if order % 2 else torch.float32, generator)
    check_s2_activation(plan, kinds, rng.choice((torch.float16, torch.bfloat16)), generator, rows=1)


def test_s2_activation_plans(driver, rng, generator):
    """Any plan; and coefficients that are read for each tile, with several programs for the result."""
    for _ in range(3):
        plan = random_s2_activation(rng, 3)
        smooth = "silu" if plan.function in ("relu", "abs") else plan.function
        plan = dataclasses.replace(plan, function=smooth, channels=rng.choice((1, 3, 17)))
        letters = [rng.choice("xz") for _ in range(rng.randint(1, 5))]
        check_s2_activation(plan, f"{rng.randint(0, 2)}{''.join(letters[:-1])}>{letters[-1]}", torch.float32, generator)
    plan = eqk.S2ActivationPlan.normalized(1, 11, 3, "silu", (3, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s2_activation, "_SHARED", 1)
        s2_activation.lower.cache_clear()
        assert s2_activation.lower(str(plan), "1zx>z", torch.float32).problem.groups == 2
        check_s2_activation(plan, "1zx>z", torch.float32, generator)
        check_s2_activation(plan, "1zx>z", torch.float64, generator)
    s2_activation.lower.cache_clear()


def test_s2_activation_sm_80(driver, generator, monkeypatch):
    monkeypatch.setattr(driver, "architecture", 80)
    plan = eqk.S2ActivationPlan.normalized(4, 4, 3, "silu", (6, 6))
    for dtype in (torch.float32, torch.float64):
        check_s2_activation(plan, "1z>x", dtype, generator)
    for rows in (0, 1, 21, 22):  # of 3 channels; 64 lanes
        check_s2_activation(plan, "0>z", torch.float32, generator, rows)


def test_s2_activation_of_aligned_rows(driver, generator):
    """Rows that begin at multiples of 16 bytes and channels in powers of 2, for which Triton compiles another kernel."""
    plan = eqk.S2ActivationPlan.normalized(2, 2, 64, "silu", (4, 5))
    check_s2_activation(plan, "1z>x", torch.float32, generator, rows=2, pad=0)


def check_rotate(lmax, mmax, kind, dtype, generator, channels=5, fan=2, columns=None, edges=3, slots=range(4)):
    """Every member of the family, with operands that lie between NaN."""
    *operands, index = rotate_problem(lmax, mmax, channels, fan, kind, columns, generator, edges, nodes=3)
    operands = [None if t is None else (t / t.abs().max()).to(dtype) for t in operands]
    for missing in set(slots) & set(members(operands)):
        args = without(operands, missing, index, lmax, mmax, True)
        framed = [a if n > 3 or a is None else between_nan(a) for n, a in enumerate(args)]
        truth = torch.ops.eqk.rotate(*[a if n > 3 or a is None else a.double() for n, a in enumerate(args)])
        error = relative_error(rotate._rotate(*framed), truth)
        limit = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
        assert error < limit, f"lmax {lmax}, mmax {mmax}, {kind}, {missing} missing, {dtype}: error {error:.1e}"


def between_nan(t):
    wide = torch.full((t.numel() + 16,), torch.nan, dtype=t.dtype)
    wide[8:-8] = t.flatten()
    return wide[8:-8].view(t.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_rotate(driver, kind, rng, generator):
    """Lanes without a channel, blocks of channels, and columns of weights of one channel, of some and of all."""
    dtype = rng.choice((torch.float64, torch.float16, torch.bfloat16))
    check_rotate(2, 1, kind, torch.float32, generator, columns=rng.choice((1, 2, 5, None)))
    check_rotate(1, 1, kind, dtype, generator, channels=16, fan=1, columns=4)
    check_rotate(1, 0, kind, torch.float32, generator, channels=131, fan=0)
    check_rotate(0, 0, kind, torch.float32, generator, channels=300, columns=rng.choice((1, 2)))
    check_rotate(2, 2, kind, torch.float32, generator, channels=128, edges=2)


def test_rotate_high_degrees(driver, generator, monkeypatch):
    """In several launches."""
    monkeypatch.setattr(rotate, "_MOST_NUMBERS", 40)
    rotate.lower.cache_clear()
    assert len(rotate.lower(torch.float32, 3, 4, 1, False, False, 1, 3, 0, 1)) == 3
    check_rotate(4, 1, "order", torch.float32, generator, channels=3, edges=2)
    rotate.lower.cache_clear()


def test_rotate_sm_80(driver, generator, monkeypatch):
    """With nodes of more edges than one part of the sum has."""
    monkeypatch.setattr(driver, "architecture", 80)
    check_rotate(1, 1, "degree", torch.float32, generator, edges=80, slots=(0,))
    check_rotate(1, 1, "degree", torch.float32, generator)


# Over the sectors that must move, by what is missing. Numbers of D are requests of one sector each, which the first one
# has brought into the cache.
SECTORS = {0: 1.31, 1: 1.03, 2: 1.1, 3: 1.18}


@pytest.mark.parametrize(("lmax", "kind"), [(2, "none"), (2, "order"), (6, "none")])
def test_rotate_moves_what_it_must(driver, lmax, kind, generator, monkeypatch):
    """As UMA has it, and EquiformerV2's degrees."""
    monkeypatch.setattr(driver, "counts", True)
    *operands, index = rotate_problem(lmax, 2, 128, 2, kind, None, generator, edges=4, nodes=3)
    operands = [None if t is None else t.float() for t in operands]
    of_edges = sum(t.numel() for t in operands[1:] if t is not None)
    for missing in members(operands):
        rotate._rotate(*without(operands, missing, index, lmax, 2, False))
        moved = sum(driver.stats.mem[f"global.{way}"]["sectors"] for way in ("load", "store"))
        of_nodes = index.numel() * operands[0][0].numel() if missing else operands[0].numel()
        assert 1 <= moved / ((of_nodes + of_edges) / 8) < SECTORS[missing], f"{missing} missing: {moved} sectors"


FAULTS = {
    "rows_beyond_the_last": (
        "_section", "mask = row_mask & (own < S.extent)", "mask = own < S.extent", False,
        (ptxemu.MemoryFault, "out-of-bounds access to global memory"),
    ),
    "off_by_one_index": ("_indices", "n = u * P.m2 + v", "n = u * P.m2 + v + 1", False, (AssertionError, "error inf")),
    "tangent_dropped": ("_weighted", "if M.dw:", "if False:", True, (AssertionError, r"error \d")),
}  # fmt: skip


@contextlib.contextmanager
def planted(name, text, instead, module=kernels):
    function = getattr(module, name)
    sound = function.src
    assert sound.count(text) == 1, f"{name}: expected {text!r} once, got {sound.count(text)}"

    def become(source):
        function._unsafe_update_src(source)
        # Triton keeps kernels by the hash of their source and of that of the functions that they call.
        for f in functions():
            f.hash = None
            f.device_caches.clear()

    become(sound.replace(text, instead))
    try:
        yield
    finally:
        become(sound)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_found(emulator, fault):
    *where, dual, (error, message) = fault
    with planted(*where), pytest.raises(error, match=message):
        check(emulator, UVU, "float32", dual, OUT, missing=(3,), seed=seed())


S2_FAULTS = {
    "a_wrong_product": ("_sigmoid_series", "s[i] * s[n - i]", "s[i] * s[i]", (AssertionError, r"error \d")),
    "rows_beyond_the_last": (
        "_coefficients", "mask=there & valid", "mask=there", (ptxemu.MemoryFault, "out-of-bounds access"),
    ),
    "a_degree_too_low": ("_columns", "i >= degree * degree", "i > degree * degree", (AssertionError, "error (\\d|inf)")),
}  # fmt: skip


@pytest.mark.parametrize("fault", S2_FAULTS.values(), ids=S2_FAULTS)
def test_fault_in_s2_activation_is_found(driver, fault, generator):
    *where, (error, message) = fault
    plan = eqk.S2ActivationPlan.normalized(2, 1, 3, "silu", (3, 5), layout_in="mul_ir")
    check_s2_activation(plan, "2zx>x", torch.float32, generator)
    with planted(*where, s2_activation), pytest.raises(error, match=message):
        check_s2_activation(plan, "2zx>x", torch.float32, generator)


ROTATE_FAULTS = {
    "numbers_beyond_a_row": ("_store_numbers", "mask=i < L.size", "mask=i < 99", (ptxemu.MemoryFault, "out-of-bounds")),
    "channels_beyond_the_last": ("_lanes", "inner < M.span", "inner < 99", (ptxemu.MemoryFault, "out-of-bounds")),
    "weights_of_another_group": ("_weight", " or S.first", "", (AssertionError, r"error \d")),
    "numbers_of_another_edge": ("_edge", "D + e * M.numbers", "D + 0 * M.numbers", (AssertionError, r"error \d")),
    "edges_of_a_part": ("_back_of_part", "range(first, last)", "range(first + 1, last)", (AssertionError, r"error \d")),
}  # fmt: skip


@pytest.mark.parametrize("fault", ROTATE_FAULTS.values(), ids=ROTATE_FAULTS)
def test_fault_in_rotate_is_found(driver, fault, generator):
    *where, (error, message) = fault
    with planted(*where, rotate), pytest.raises(error, match=message):
        check_rotate(1, 1, "order", torch.float32, generator)


def check_so2_edge_message(problem, dtype, keep=False):
    """Operands lie between NaN; what is kept is what the two layers make."""
    x, vec, h, a, w, *parameters = (None if t is None else t.to(dtype) for t in problem.operands)
    operands = x, eqk.edge_frame(vec.float()).to(dtype), h, a, w
    layers = problem.layers(parameters)
    sizes = problem.sources * x.shape[2], layers[1][0].shape[1] // (problem.lmax + 1), problem.out
    grid = "gausslegendre", "component", problem.grid_rescale
    plan = message_plan(
        problem.lmax, problem.mmax, *sizes, problem.activation, problem.rescale, False, problem.res, grid
    )
    args = [None if t is None else between_nan(t) for t in (*operands, *map(pack, layers))]
    got = so2_edge_message._forward(*args, problem.index, plan, keep)
    wide = [None if t is None else t.double() for t in args]
    expected = torch.ops.eqk.so2_edge_message(*wide, problem.index, plan, keep)
    limits = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
    for name, result, truth in zip(("message", "y", "s", "the second layer"), got, expected, strict=True):
        error = relative_error(result, truth) if truth.numel() else 0
        limit = limits[dtype if name == "message" else torch.float32]
        assert error < limit, f"{name} of {plan} in {dtype}: error {error:.1e}"


MESSAGES = {
    "gate": ((64, 1), 2, 2, "gate", {"edges": 70, "nodes": 9, "c": 17, "hidden": 20, "out": 18}, torch.float32, True),
    "weights of degrees": ((64, 1), 2, 1, "gate", {"last": False, "by": "degree", "heads": 3}, torch.bfloat16, False),
    "s2": ((128, 2), 1, 1, "s2", {"rescale": True, "sources": 1}, torch.float16, True),
    "swiglu_s2": ((128, 2), 1, 1, "swiglu_s2", {"edges": 130}, torch.float32, False),
}


@pytest.mark.parametrize("case", MESSAGES.values(), ids=MESSAGES)
def test_so2_edge_message(driver, case, generator, monkeypatch):
    """By mma.sync, which the emulator knows, in tiles as for sm_80 and sm_90 that channels and edges do not fill."""
    tile, *degrees, activation, options, dtype, keep = case
    monkeypatch.setattr(driver, "architecture", 80)
    monkeypatch.setattr(so2_edge_message, "_tile", lambda device: tile)
    check_so2_edge_message(Problem(*degrees, activation, generator, **options), dtype, keep)


MESSAGE_FAULTS = {
    "the_smaller_part_of_a_number": ("_split", "x - rounded", "x - x", (AssertionError, r"error \d")),
    "minus_b": ("_complex_dot", "_negative(negative)", "negative", (AssertionError, r"error \d")),
    "edges_beyond_the_last": (
        "_layer", "valid = first + row < end - begin", "valid = row < M.edges", (ptxemu.MemoryFault, "out-of-bounds"),
    ),
    "nodes_in_two_tiles": ("finish_kernel", "tiles > one + 1", "tiles > one + 2", (AssertionError, "error (\\d|inf)")),
}  # fmt: skip


@pytest.mark.parametrize("fault", MESSAGE_FAULTS.values(), ids=MESSAGE_FAULTS)
def test_fault_in_so2_edge_message_is_found(driver, fault, generator, monkeypatch):
    monkeypatch.setattr(driver, "architecture", 80)
    *where, (error, message) = fault
    problem = Problem(1, 1, "gate", generator, edges=66, nodes=2)
    with planted(*where, so2_edge_message), pytest.raises(error, match=message):
        check_so2_edge_message(problem, torch.float32)


def test_every_function_was_executed(driver):
    """Runs last in this file: a function that no test reaches must not stay."""

    assert {name_of(f) for f in functions()} - driver.executed == set()
