"""The Triton ops under Triton's interpreter, against the dense reference and its autograd in float64.

Run by test_triton.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import random

import pytest
import torch
from recorded_launches import Launches

from eqk import Plan, testing
from eqk.reference import tensor_product as reference
from eqk.triton_kernels import tensor_product as kernels

SEED = testing.seed()

OPS = torch.ops.eqk_triton


def plan_of(weights="per_sample", m1=3, m2=2):
    """uvu, with a repeated output irrep, one that no path reaches and one without channels."""
    paths = ((0, 0, 0, "uvu", True, 0.7), (0, 1, 1, "uvu", True, -1.3), (1, 0, 0, "uvu", True, 0.4))
    return Plan(f"{m1}x1o+{m1}x1o", f"{m2}x1o+{m2}x0e", f"{m1}x1e+{m1}x1o+2x0e+0x2e", paths, weights=weights)


MIXED = Plan(
    "2x1o+3x0e+0x1e",
    "2x1o+1x2e+2x0e",
    "4x0e+2x1e+2x1o+4x1o+1x0e",
    (
        (0, 0, 1, "uuu", False, 1.1),
        (0, 1, 2, "uvu", True, 0.3),
        (0, 0, 1, "uvv", True, -0.8),
        (0, 2, 3, "uvuv", True, 0.9),
        (0, 2, 2, "uvw", True, 0.6),
        (0, 0, 4, "uvu<v", True, 0.5),
        (0, 0, 0, "u<vw", True, 1.7),
        (0, 0, 4, "uuw", False, -0.2),
        (1, 2, 0, "uvw", True, 1.0),
    ),
    "ir_mul",
    "mul_ir",
    "ir_mul",
    "shared",
)

SCALARS = "1x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {0 0 0 uuu - 1.0}"


def random_operands(plan, rows, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def operands():
        w = {"none": None, "shared": (plan.weight_numel,), "per_sample": (rows, plan.weight_numel)}[plan.weights]
        x, y, g = (tensor(rows, irreps.dim) for irreps in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out))
        return [x, y, None if w is None else tensor(*w), g]

    return operands(), operands()


def close(got, expected, tolerance, what):
    assert got.shape == expected.shape, what
    if expected.numel():
        error = (got.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error <= tolerance, f"{what}: relative error {error} above {tolerance}"


def reference_family(plan, v, t, varying, wanted):
    """Results of the four ops in float64: out, jvp, (gx, gy, gw), and the derivative of those along t and of out."""
    slots = [None if s is None else s.double().requires_grad_() for s in v]
    tangents = [s.double() if s is not None and on else None for s, on in zip(t, varying, strict=True)]
    present = [n for n, s in enumerate(slots) if s is not None]
    out = reference(slots[0], slots[1], slots[2], plan)
    first = torch.autograd.grad(
        (out * slots[3]).sum(), [slots[n] for n in present], create_graph=True, materialize_grads=True
    )
    along = sum((d * tangents[n]).sum() for n, d in zip(present, first, strict=True) if tangents[n] is not None)
    second = torch.autograd.grad(
        along, [slots[n] for n in present], retain_graph=True, materialize_grads=True, allow_unused=True
    )
    firsts, seconds = dict(zip(present, first, strict=True)), dict(zip(present, second, strict=True))
    # <g, jvp> is the part of `along` that the tangents of x, y, w bring, so its gradient by g is the jvp.
    part = sum(
        (d * tangents[n]).sum() for n, d in zip(present, first, strict=True) if tangents[n] is not None and n != 3
    )
    jvp = torch.autograd.grad(part, slots[3], allow_unused=True, materialize_grads=True)[0]
    empty = torch.zeros(0, dtype=torch.float64)
    firsts = [firsts[n] if n in firsts and wanted[n] else empty for n in range(3)]
    return out, jvp, firsts, [seconds[n] if n in seconds and wanted[n] else empty for n in range(4)]


def check_family(plan, rows, seed, varying=(True,) * 4, wanted=(True,) * 4):
    tolerance = 1e-12
    v, t = random_operands(plan, rows, torch.float64, seed)
    out, jvp, first, second = reference_family(plan, v, t, varying, wanted)
    t = [s if on else None for s, on in zip(t, varying, strict=True)]
    text = str(plan)
    close(OPS.tensor_product(*v[:3], text), out, tolerance, "out")
    for name, a, b in zip("xyw", OPS.tensor_product_backward(*v, text, wanted[:3]), first, strict=True):
        close(a, b, 4 * tolerance, f"g{name}")
    close(OPS.tensor_product_jvp(*v[:3], *t[:3], text), jvp, 4 * tolerance, "jvp")
    for name, a, b in zip("xywg", OPS.tensor_product_double_backward(*v, *t, text, wanted), second, strict=True):
        close(a, b, 8 * tolerance, f"double backward {name}")


@pytest.mark.parametrize("number", range(6))
def test_missing_tangents_and_masks(number):
    choose = random.Random(SEED + number)
    varying = [choose.random() < 0.5 for _ in range(4)]
    # The first of x, y, w varies at least, so that there is something to differentiate.
    varying[number % 3] = True
    wanted = [choose.random() < 0.5 for _ in range(4)]
    print("varying", varying, "wanted", wanted)
    check_family(MIXED if number % 2 else plan_of(), 3, SEED + number, varying, wanted)


def test_strided_operands():
    plan = plan_of()
    (x, y, w, _), _ = random_operands(plan, 4, torch.float64, SEED)
    expected = reference(x, y, w, plan)
    strided = torch.cat([x, x], 1)[:, : x.shape[1]], y.mT.contiguous().mT, w[:1].expand(4, -1)
    close(OPS.tensor_product(*strided[:2], w, str(plan)), expected, 1e-12, "strided")
    close(OPS.tensor_product(x, y, strided[2], str(plan)), reference(x, y, strided[2], plan), 1e-12, "expanded")


def test_operands_longer_than_32_bits():
    """A row stride that takes the last row beyond 2^31 elements: memory is reserved and two rows of it are touched."""
    plan = Plan("1x0e", "1x0e", "1x0e", ((0, 0, 0, "uuu", False, 1.0),))
    stride = 2**31 + 11
    x = torch.empty(stride + 1, dtype=torch.float16).as_strided((2, 1), (stride, 1))
    x[0], x[1] = 2.0, 3.0
    y = torch.tensor([[5.0], [7.0]], dtype=torch.float16)
    assert OPS.tensor_product(x, y, None, str(plan)).tolist() == [[10.0], [21.0]]


def test_many_kernels_for_one_plan(monkeypatch):
    monkeypatch.setattr(kernels, "_MAX_OPERATIONS", 300)
    monkeypatch.setattr(kernels, "_ROW_CHUNKS", 2)
    kernels.lower.cache_clear()
    assert len(kernels.lower(str(MIXED), (0, 1, 2, 3))) > 4
    check_family(MIXED, 300, SEED + 6)
    kernels.lower.cache_clear()


@pytest.mark.parametrize("mode", ["uvw", "uuw", "u<vw"])
def test_infinity(mode):
    """Scalars, of whose coefficients none is zero: infinite where the reference is, although most lanes hold no channel."""
    m2 = 2 if mode == "uvw" else 3
    plan = Plan("3x0e", f"{m2}x0e", "5x0e", ((0, 0, 0, mode, True, 1.0),), weights="per_sample")
    for operand in range(2):
        v, _ = random_operands(plan, 2, torch.float64, SEED)
        v = [s.abs() for s in v]  # inf - inf depends on the order of sums
        v[operand][1, 1] = float("inf")
        slots = [s.requires_grad_() for s in v[:3]]
        out = reference(*slots, plan)
        first = torch.autograd.grad(out, slots, v[3])
        v = [s.detach() for s in v]
        got = OPS.tensor_product(*v[:3], str(plan)), *OPS.tensor_product_backward(*v, str(plan), [True] * 3)
        assert any(t.isinf().any() for t in first)
        for a, b in zip(got, (out, *first), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_device_and_size_of_launches(monkeypatch):
    """Each launch is on the device of the operands, not on the current one, and of no more threads than HIP can count."""
    launches = Launches(kernels, monkeypatch)
    rows = 2**33
    v = [torch.empty(rows, n, device="meta") for n in (1, 1)]
    kernels._run("tensor_product", (*v, None), None, (None,) * 4, SCALARS, False, (False, False, False, True))
    begin = 0
    for programs, args in launches.checked("meta"):
        # begin, steps, rows, key, blocks, rows of a program
        first, _, total, _, blocks, block_rows = args[24:30]
        assert (first, total) == (begin, rows)
        begin += programs // blocks
    assert begin * block_rows >= rows


def test_launches_on_the_device_of_the_operands():
    on = kernels.on(torch.device("cuda", 1))
    assert isinstance(on, torch.cuda.device)
    assert on.idx == 1


def test_autograd_and_functorch():
    plan = plan_of(weights="shared", m1=2, m2=1)
    (x, y, w, _), (tx, _, _, _) = random_operands(plan, 3, torch.float64, SEED)
    text = str(plan)

    def f(x, y, w):
        return OPS.tensor_product(x, y, w, text)

    leaves = [t.requires_grad_() for t in (x, y, w)]
    assert torch.autograd.gradcheck(f, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)
    got = torch.func.jvp(lambda x: f(x, y, w), (x.detach(),), (tx,))[1]
    close(got, reference(tx, y, w, plan), 1e-12, "torch.func.jvp")
    got = torch.func.vmap(lambda w: f(x, y, w))(torch.stack([w, 2 * w]))
    close(got[1], reference(x, y, 2 * w, plan), 1e-12, "vmap")


def test_bad_operands():
    plan = plan_of()
    (x, y, w, g), _ = random_operands(plan, 3, torch.float32, SEED)
    text = str(plan)
    for operands, word in (
        ((x[:, 1:], y, w), "x: expected shape"),
        ((x, y[1:], w), "y: expected shape"),
        ((x, y.double(), w), "y: expected dtype"),
        ((x, y, None), "w: expected a tensor"),
        ((x.int(), y, w), "x: expected dtype"),
    ):
        with pytest.raises(RuntimeError, match=word):
            OPS.tensor_product(*operands, text)
    with pytest.raises(RuntimeError, match="wanted: expected 3 flags"):
        OPS.tensor_product_backward(x, y, w, g, text, [True])
