"""The Triton kernels: compiled for GPUs that are not there, their PTX run in an emulator against the dense reference."""

import contextlib
import dataclasses
import importlib
import pkgutil

import ptxemu
import pytest
import triton
from emulated_triton import Driver, Emulator, name_of
from test_cuda import ACCURACY, IR_MUL, SMALL, check, seed

import eqk
from eqk import triton_kernels
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


def functions():
    """All of Triton's functions in eqk.triton_kernels: kernels and what they are made of."""
    modules = [
        importlib.import_module(f"eqk.triton_kernels.{m.name}") for m in pkgutil.iter_modules(triton_kernels.__path__)
    ]
    return [f for m in modules for f in vars(m).values() if isinstance(f, triton.runtime.JITFunction)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.cache, "dir", str(tmp_path_factory.mktemp("triton")))
        driver = Driver(90)
        patch.setattr(triton.knobs.runtime, "add_stages_inspection_hook", driver.stages)
        triton.runtime.driver.set_active(driver)
        yield driver
        kernels.kernel.device_caches.clear()
        triton.runtime.driver.set_active(None)


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
    """Two results of each case: a value in one dtype, and a derivative along tangents in another; float32 is one of them.

    All results, of values and on dual numbers, in four dtypes would compile for two hours, two for some minutes. Which
    two is drawn anew in each run; EQK_SEED repeats it. So are six of the instructions where there are more, and one of
    those of SLOW plans.
    """
    dtypes = rng.sample(["float32", rng.choice([d for d in ACCURACY if d != "float32"])], 2)
    slots = rng.sample([slot for slot in range(4) if slot != 2 or case.plan.weights != "none"], 2)
    for dual, slot, dtype in zip((False, True), slots, dtypes, strict=True):
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


FAULTS = {
    "rows_beyond_the_last": (
        "_section", "mask = row_mask & (own < S.extent)", "mask = own < S.extent", False,
        (ptxemu.MemoryFault, "out-of-bounds access to global memory"),
    ),
    "off_by_one_index": ("_indices", "n = u * P.m2 + v", "n = u * P.m2 + v + 1", False, (AssertionError, "error inf")),
    "tangent_dropped": ("_weighted", "if M.dw:", "if False:", True, (AssertionError, r"error \d")),
}  # fmt: skip


@contextlib.contextmanager
def planted(name, text, instead):
    function = getattr(kernels, name)
    sound = function.src
    assert sound.count(text) == 1, f"{name}: expected {text!r} once, got {sound.count(text)}"

    def become(source):
        function._unsafe_update_src(source)
        # Triton keeps kernels by the hash of their source and of that of the functions that they call.
        for f in functions():
            f.hash = None
        kernels.kernel.device_caches.clear()

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


def test_every_function_was_executed(driver):
    """Runs last in this file: a function that no test reaches must not stay."""

    assert {name_of(f) for f in functions()} - driver.executed == set()
