import copy
import itertools
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch._dynamo.testing
import torch._inductor
from torch.utils._python_dispatch import TorchDispatchMode

import eqk
from eqk import reference, testing
from eqk.testing import (
    CASES,
    Comparison,
    assert_close,
    cast,
    derivatives,
    random_directions,
    random_operands,
    relative_error,
)

SMALL = [case for case in CASES.values() if not case.problem]
PROBLEMS = [case for case in CASES.values() if case.problem]
OPS = torch.ops.eqk
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Every mode, mixed layouts, both kinds of weights: small enough for finite differences.
CHECKED = [
    "mixed-ir_mul-mul_ir-ir_mul-per_sample",
    "mixed-mul_ir-ir_mul-mul_ir-shared",
    "zero-multiplicity",
    "uuu-none",
    "uvu<v-none",
]


def names(cases):
    return [case.name for case in cases]


def bound(f, plan):
    return lambda x, y, w: f(x, y, w, plan)


def leaves(case, rows, generator, dtype=torch.float64):
    return [None if t is None else t.requires_grad_() for t in case.operands(rows, dtype, generator)]


def compare(plan, operands, generator, dtypes, orders=3, truth=None, op=None):
    """Value and derivatives of the op in each dtype against the reference in float64 on the same numbers."""
    comparison = Comparison(truth or bound(reference.tensor_product, plan), operands, orders, generator)
    for dtype in dtypes:
        got = comparison.results(op or bound(eqk.tensor_product, plan), dtype)
        excess = comparison.excess(got, dtype)
        for order, (results, references) in enumerate(zip(got, comparison.expected, strict=True)):
            for n, (a, b) in enumerate(zip(results, references, strict=True)):
                assert a.dtype == dtype
                if not excess[order][n] <= 1:
                    assert_close(a, b, order, what=f"dtype {dtype}, result {n}, plan {plan}")


def check_differentiation(f, x, y):
    """Forward and reverse mode of both orders, torch.func.vmap and torch.compile, of a product in float64."""
    assert torch.autograd.gradcheck(f, (x, y), fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x, y), fast_mode=True, check_fwd_over_rev=True)
    assert_close(torch.func.vmap(f, (0, None))(x, y[1]), f(x, y[1]))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for got, want in zip(*(torch.autograd.grad(op(x, y).square().sum(), (x, y)) for op in (compiled, f)), strict=True):
        assert_close(got, want, 1)


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_cases(case, generator):
    compare(case.plan, case.operands(case.rows, torch.float32, generator), generator, (torch.float64, torch.float32))


@pytest.mark.parametrize("case", PROBLEMS, ids=names(PROBLEMS))
def test_problems(case, generator):
    compare(case.plan, case.operands(case.rows, torch.float32, generator), generator, (torch.float32,), orders=2)


def test_row_counts(generator):
    """Around the widths of lanes, blocks of rows and parts of the sum over rows."""
    for name in ("mixed-mul_ir-mul_ir-mul_ir-shared", "depthwise-7", "uvu-none"):
        for rows in (0, 1, 2, 3, 15, 16, 17, 31, 33, 64, 65, 257, 600):
            case = CASES[name]
            compare(
                case.plan,
                case.operands(rows, torch.float32, generator),
                generator,
                (torch.float64, torch.float32),
                orders=1,
            )


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_large_matrix_products(layout, generator):
    """Paths that are multiplied alone, all components in one product, between some that share one; two blocks of rows.

    In float64: in float32 sums of 32 768 products are as exact as the library's matrix products.
    """
    paths = [(1, 1, 0, "uvw", True, 0.9), (0, 0, 1, "uvw", True, 1.1), (1, 1, 0, "uvw", True, 0.3)]
    paths += [(2, 1, 2, "uvw", True, 0.8), (2, 0, 2, "uvw", True, -0.7)]
    layouts = dict.fromkeys(("layout_in1", "layout_in2", "layout_out"), layout)
    plan = eqk.Plan(
        "128x1o + 16x0e + 64x2e", "256x0e + 16x0e", "8x0e + 9x1o + 8x2e", paths, weights="shared", **layouts
    )
    operands = random_operands(plan, 40, torch.float32, generator)
    compare(plan, operands, generator, (torch.float64,), orders=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["mixed-ir_mul-mul_ir-mul_ir-per_sample", "mixed-mul_ir-mul_ir-ir_mul-shared", "depthwise-33"]
)
def test_16_bit(name, dtype, generator):
    plan = CASES[name].plan
    operands = [t / t.abs().max() for t in random_operands(plan, 40, torch.float32, generator)]
    compare(plan, cast(operands, dtype), generator, (dtype,))


def test_long_sums():
    """Of positive terms, so that nothing cancels: rounding each partial sum down would show."""
    plan = eqk.Plan("256x0e", "256x0e", "1x0e", ((0, 0, 0, "uvw", True),))
    generator = torch.Generator().manual_seed(0)
    operands = [torch.rand(4, n, generator=generator) for n in (256, 256, 256 * 256)]
    assert_close(eqk.tensor_product(*operands, plan), reference.tensor_product(*cast(operands, torch.float64), plan))
    for in1, in2, mode in (("16x0e", "1x0e", "uvu"), ("16x0e", "16x0e", "uuu")):
        plan = eqk.Plan(in1, in2, in1, ((0, 0, 0, mode, True),), weights="shared")
        for rows, value in ((200_000, 0.1), (200_000, 0.7), (1_000_000, 0.3)):
            x, y, g = (torch.full((1, n), value).expand(rows, n) for n in (16, plan.irreps_in2.dim, 16))
            gw = OPS.tensor_product_backward(x, y, torch.ones(16), g, str(plan), [False, False, True])[2]
            assert_close(gw, rows * (x[0] * y[0]).double() * g[0].double(), 1)


@pytest.mark.parametrize("flush", [False, True])
def test_every_half(flush):
    """All 65 536 numbers, read and written; products of two that round, subnormal ones too."""
    plan = "1x0e * 1x0e -> 1x0e [mul_ir,mul_ir,mul_ir] none {0 0 0 uuu - 1}"
    half = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)[:, None]
    factors = [torch.full_like(half, value) for value in (1, 0.3, 3e-3, 5e-6, -7)]
    expected = [(half.double() * factor.double()).to(torch.float16) for factor in factors]
    try:
        assert torch.set_flush_denormal(flush) or not flush
        got = [OPS.tensor_product(half, factor, None, plan) for factor in factors]
    finally:
        torch.set_flush_denormal(False)
    for a, b in zip(got, expected, strict=True):
        assert torch.all((a == b) | (a.isnan() & b.isnan()))


E3NN_CHUNKS = 10


def e3nn_product(arguments):
    import e3nn
    from e3nn import o3

    e3nn.set_optimization_defaults(jit_mode="eager")
    keep = {k: v for k, v in arguments.items() if not k.startswith(("layout", "weights"))}
    for name in ("irreps_in1", "irreps_in2", "irreps_out"):
        keep[name] = o3.Irreps(str(keep[name]))
    shared = arguments["weights"] == "shared"
    return o3.TensorProduct(**keep, shared_weights=shared, internal_weights=False)


@pytest.mark.parametrize("chunk", range(E3NN_CHUNKS))
def test_random_plans(chunk, rng, generator, float64_default):
    """500 random plans on broadcast operands, to third order, against eqk.reference and against e3nn built in float64."""
    for _ in range(500 // E3NN_CHUNKS):
        arguments = testing.random_arguments(rng)
        plan = eqk.Plan.normalized(**arguments)
        operands = random_operands(plan, testing.random_leading(rng), torch.float32, generator)
        product = e3nn_product(arguments)
        assert eqk.Plan.from_e3nn(product).weight_numel == plan.weight_numel == product.weight_numel

        def e3nn_truth(x, y, w, plan=plan, product=product):
            x = testing.to_layout(x, plan.irreps_in1, plan.layout_in1, "mul_ir")
            y = testing.to_layout(y, plan.irreps_in2, plan.layout_in2, "mul_ir")
            # e3nn wants a leading dimension on weights that are not shared.
            lone = plan.weights == "per_sample" and w.dim() == 1
            out = product(x, y, w[None]) if lone else product(x, y, w)
            out = out.squeeze(0) if lone and x.dim() == y.dim() == 1 else out
            return testing.to_layout(out, plan.irreps_out, "mul_ir", plan.layout_out)

        def dense_truth(x, y, w, plan=plan):
            per_sample = plan.weights == "per_sample"
            leading = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1], *([w.shape[:-1]] if per_sample else []))

            def rows(t):
                return t.expand(*leading, t.shape[-1]).reshape(leading.numel(), t.shape[-1])

            return reference.tensor_product(rows(x), rows(y), rows(w) if per_sample else w, plan).reshape(
                *leading, plan.irreps_out.dim
            )

        direct = eqk.tensor_product(*cast(operands, torch.float64), plan)
        assert_close(direct, dense_truth(*cast(operands, torch.float64)).reshape(direct.shape), what=plan)
        if direct.numel() or rng.random() < 0.5:
            compare(plan, operands, generator, (torch.float64, torch.float32), truth=e3nn_truth)


@pytest.mark.parametrize("name", ["mixed-ir_mul-mul_ir-ir_mul-shared", "mace-medium", "degree-8", "degree-11-shared"])
def test_equivariance(name, generator):
    case = CASES[name]
    operands = case.operands(4, torch.float64, generator)
    assert testing.equivariance_error(eqk.tensor_product, case.plan, operands, generator) < 1e-11


# Derivatives by finite differences, and every way to ask for them.


@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck(name, generator):
    case = CASES[name]
    operands = [
        None if t is None else (t / t.abs().max()).requires_grad_() for t in case.operands(2, torch.float64, generator)
    ]
    present = [t for t in operands if t is not None]

    def f(*tensors):
        return eqk.tensor_product(*tensors, *[None] * (3 - len(tensors)), case.plan)

    everything = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradcheck(f, present, fast_mode=True, **everything)
    assert torch.autograd.gradgradcheck(f, present, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)

    def gradient(*tensors):
        return torch.autograd.grad(f(*tensors).pow(3).sum(), tensors, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, present, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", ["uvw-shared", "uvu-per_sample", "u<vw-per_sample"])
def test_gradcheck_every_element(name, generator):
    operands = [(t / t.abs().max()).requires_grad_() for t in CASES[name].operands(1, torch.float64, generator)]
    f = bound(eqk.tensor_product, CASES[name].plan)
    assert torch.autograd.gradcheck(f, operands, check_forward_ad=True)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_nested_transforms(name, order, generator):
    """Every nesting of forward and reverse mode to fourth order against the reference."""
    case = CASES[name]
    x, y, w = case.operands(2, torch.float64, generator)
    operands = [t / t.abs().max() for t in (x, y, w) if t is not None]
    tangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in operands]

    def scalar(f):
        return lambda *t: f(*t, *[None] * (3 - len(t)), case.plan).pow(3).sum()

    def forward(f):
        return lambda *t: torch.func.jvp(f, t, tuple(tangents))[1]

    def reverse(f):
        def directional(*t):
            return sum(
                (a * b).sum() for a, b in zip(torch.func.grad(f, tuple(range(len(t))))(*t), tangents, strict=True)
            )

        return directional

    expected = scalar(reference.tensor_product)
    for _ in range(order):
        expected = reverse(expected)
    expected = expected(*operands)
    for nesting in itertools.product((forward, reverse), repeat=order):
        f = scalar(eqk.tensor_product)
        for transform in nesting:
            f = transform(f)
        # One number, whose terms may cancel: far above that, far below a wrong term.
        assert relative_error(f(*operands), expected) < 1e-9, [t.__name__ for t in nesting]


FUNCTIONAL = {
    "vjp": lambda f, x, t: torch.func.vjp(f, x)[0],
    "pullback": lambda f, x, t: torch.func.vjp(f, x)[1](torch.ones((), dtype=x.dtype))[0],
    "grad": lambda f, x, t: torch.func.grad(f)(x),
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,))[1],
    "hvp": lambda f, x, t: torch.func.jvp(torch.func.grad(f), (x,), (t,))[1],
    "grad of jvp": lambda f, x, t: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (t,))[1])(x),
    "jvp of jvp": lambda f, x, t: torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (t,))[1], (x,), (t,))[1],
    "jacfwd": lambda f, x, t: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x, t: torch.func.jacrev(f)(x),
}


@pytest.mark.parametrize("where", ["outside", "inside", "between", "nowhere"])
@pytest.mark.parametrize("transform", FUNCTIONAL)
def test_no_grad_around_and_inside_transforms(transform, where, generator):
    """Each level records gradients where its own code does: the numbers, requires_grad and gradients of the reference."""
    case = CASES["mixed-mul_ir-ir_mul-mul_ir-shared"]
    x, y, w = (t / t.abs().max() for t in case.operands(2, torch.float64, generator))
    tangent = torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def without_grad(at, f, *args):
        with torch.set_grad_enabled(where != at):
            return f(*args)

    def run(op):
        weights = w.clone().requires_grad_()

        def energy(x):
            target = without_grad("inside", op, x, y, weights, case.plan)
            return (op(x, y, weights, case.plan) - 0.5 * target).pow(3).sum()

        def between(x):
            return without_grad("between", FUNCTIONAL[transform], energy, x, tangent).pow(2).sum() * x.sum()

        if where == "between":
            result = torch.func.vjp(between, x)[1](torch.ones((), dtype=x.dtype))[0]
        else:
            result = without_grad("outside", FUNCTIONAL[transform], energy, x, tangent)
        if not result.requires_grad:
            return result, None
        directions = torch.linspace(-1, 1, result.numel(), dtype=x.dtype).view_as(result)
        return result, torch.autograd.grad((result * directions).sum(), weights, allow_unused=True)[0]

    (got, gradient), (want, expected) = run(eqk.tensor_product), run(reference.tensor_product)
    assert got.requires_grad == want.requires_grad
    assert want.requires_grad == (where in ("inside", "nowhere"))
    assert_close(got, want, 3)
    assert (gradient is None) == (expected is None)
    if expected is not None:
        assert_close(gradient, expected, 3)


@pytest.mark.parametrize("enabled", [True, False])
def test_forward_mode_switched_off_inside_transforms(enabled, generator):
    """A constant to forward mode, at every level."""
    case = CASES["mixed-mul_ir-ir_mul-mul_ir-shared"]
    x, y, w = (t / t.abs().max() for t in case.operands(2, torch.float64, generator))
    results = []
    for op in (eqk.tensor_product, reference.tensor_product):

        def energy(x, op=op):
            with torch.autograd.forward_ad._set_fwd_grad_enabled(enabled):
                constant = op(x, y, w, case.plan)
            return (op(x, y, w, case.plan) * constant).sum()

        results.append(FUNCTIONAL["jvp of jvp"](energy, x, torch.ones_like(x)))
    assert_close(*results, 2)


@pytest.mark.parametrize("name", ["mixed-ir_mul-mul_ir-ir_mul-per_sample", "mixed-mul_ir-ir_mul-mul_ir-shared"])
def test_jacobians_and_hessian(name, generator):
    plan = CASES[name].plan
    x, y, w = (t / t.abs().max() for t in random_operands(plan, 1, torch.float64, generator))

    def of(f):
        return lambda x: f(x, y, w, plan)

    expected = torch.func.jacrev(of(reference.tensor_product))(x)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        assert_close(jacobian(of(eqk.tensor_product))(x), expected, 1)

    def energy(f):
        return lambda y: f(x, y, w, plan).pow(2).sum()

    expected = torch.func.hessian(energy(reference.tensor_product))(y)
    for outer, inner in itertools.product((torch.func.jacrev, torch.func.jacfwd), repeat=2):
        assert_close(outer(inner(energy(eqk.tensor_product)))(y), expected, 2)


@pytest.mark.parametrize(
    "name", ["mixed-ir_mul-mul_ir-ir_mul-per_sample", "mixed-mul_ir-ir_mul-mul_ir-shared", "uuu-none"]
)
@pytest.mark.parametrize("mapped", list(itertools.product((0, None), repeat=3)))
def test_vmap(name, mapped, generator):
    """Value and gradients mapped over any subset of operands, also over shared weights."""
    if mapped == (None, None, None):
        mapped = (1, None, None)
    plan = CASES[name].plan
    operands = random_operands(plan, 3, torch.float64, generator)
    mapped = tuple(None if t is None else d for t, d in zip(operands, mapped, strict=True))
    if all(d is None for d in mapped):
        mapped = (0, None, None)
    batched = [t if d is None else torch.stack([t, t * 2, t - 1], d) for t, d in zip(operands, mapped, strict=True)]
    wanted = tuple(n for n, t in enumerate(operands) if t is not None)

    def f(op):
        return lambda x, y, w: (
            op(x, y, w, plan),
            torch.func.grad(lambda *t: op(*t, plan).pow(2).sum(), wanted)(x, y, w),
        )

    value, gradients = torch.func.vmap(f(eqk.tensor_product), in_dims=mapped)(*batched)
    for b in range(3):
        row = [t if d is None else t.select(d, b) for t, d in zip(batched, mapped, strict=True)]
        expected, expected_gradients = f(reference.tensor_product)(*row)
        assert_close(value[b], expected)
        for got, want in zip(gradients, expected_gradients, strict=True):
            assert_close(got[b], want, 1)


@pytest.mark.parametrize("name", ["mixed-ir_mul-mul_ir-ir_mul-per_sample", "mixed-mul_ir-ir_mul-mul_ir-shared"])
@pytest.mark.parametrize("mapped", [s for s in itertools.product((0, 1, None), repeat=3) if s != (None,) * 3], ids=str)
def test_vmap_over_nothing(name, mapped, generator):
    """Results and derivatives of an empty batch have the shapes of the reference's."""
    plan = CASES[name].plan
    operands = random_operands(plan, 3, torch.float64, generator)
    mapped = [None if d is None else min(d, t.dim()) for t, d in zip(operands, mapped, strict=True)]
    batched = [
        t if d is None else torch.stack([t, t], d).narrow(d, 0, 0) for t, d in zip(operands, mapped, strict=True)
    ]

    def f(op):
        def energy(*t):
            return op(*t, plan).pow(2).sum()

        gradient = torch.func.grad(energy, (0, 1, 2))
        return lambda *t: (op(*t, plan), *gradient(*t), *torch.func.jvp(gradient, t, t)[1])

    got, want = (
        torch.func.vmap(f(op), in_dims=tuple(mapped))(*batched) for op in (eqk.tensor_product, reference.tensor_product)
    )
    assert [r.shape for r in got] == [r.shape for r in want]
    assert all(r.numel() == 0 and r.dtype == torch.float64 for r in got)


def test_forward_ad(generator):
    case = CASES["mixed-mul_ir-mul_ir-mul_ir-per_sample"]
    operands = case.operands(3, torch.float64, generator)
    for dual in itertools.product((False, True), repeat=3):
        tangents = [
            torch.randn(t.shape, generator=generator, dtype=t.dtype) if d else None
            for t, d in zip(operands, dual, strict=True)
        ]
        with torch.autograd.forward_ad.dual_level():
            duals = [
                t if d is None else torch.autograd.forward_ad.make_dual(t, d)
                for t, d in zip(operands, tangents, strict=True)
            ]
            got, want = (
                torch.autograd.forward_ad.unpack_dual(f(*duals, case.plan)).tangent
                for f in (eqk.tensor_product, reference.tensor_product)
            )
            if not any(dual):
                assert got is None
            else:
                assert_close(got, want, 1)


class Calls(TorchDispatchMode):
    """Records the eqk ops below autograd."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "eqk":
            self.seen.append((func._schema.name.removeprefix("eqk::"), args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("asked_by", ["requires_grad", "inputs"])
@pytest.mark.parametrize("name", ["mixed-ir_mul-mul_ir-mul_ir-per_sample", "mixed-mul_ir-mul_ir-mul_ir-shared"])
def test_only_what_is_needed_is_computed(name, asked_by, generator):
    """Each subset of gradients at first and second order: the right numbers, and no kernel asked for more."""
    case = CASES[name]
    values = case.operands(3, torch.float64, generator)
    c = None
    subsets = [s for s in itertools.product((False, True), repeat=3) if any(s)]
    for first in subsets:
        operands = [
            t.clone().requires_grad_(asked_by == "inputs" or need) for t, need in zip(values, first, strict=True)
        ]
        results = {}
        for f in (eqk.tensor_product, reference.tensor_product):
            out = f(*operands, case.plan)
            c = torch.randn(out.shape, generator=generator, dtype=out.dtype).requires_grad_() if c is None else c
            with Calls() as calls:
                results[f] = torch.autograd.grad(
                    out, [t for t, need in zip(operands, first, strict=True) if need], c, create_graph=True
                )
            if f is eqk.tensor_product:
                ((op, args),) = calls.seen
                assert op == "tensor_product_backward"
                assert tuple(args[-1]) == first
        for got, want in zip(*results.values(), strict=True):
            assert_close(got, want, 1)
        scalars = [sum(g.pow(2).sum() for g in r) for r in results.values()]
        candidates = [*operands, c]
        for second in itertools.product((False, True), repeat=4):
            inputs = [t for t, need in zip(candidates, second, strict=True) if need and t.requires_grad]
            if not inputs:
                continue
            if asked_by == "requires_grad" and len(inputs) != sum(t.requires_grad for t in candidates):
                continue
            with Calls() as calls:
                got = torch.autograd.grad(scalars[0], inputs, retain_graph=True, allow_unused=True)
            want = torch.autograd.grad(scalars[1], inputs, retain_graph=True, materialize_grads=True)
            for op, args in calls.seen:
                asked = [w and any(t is i for i in inputs) for w, t in zip(args[-1], candidates, strict=True)]
                assert op == "tensor_product_double_backward"
                assert list(args[-1]) == asked
            for a, b in zip(got, want, strict=True):
                assert_close(torch.zeros_like(b) if a is None else a, b, 2)


@pytest.mark.parametrize("name", ["mixed-ir_mul-mul_ir-mul_ir-per_sample", "mixed-mul_ir-mul_ir-mul_ir-shared"])
@pytest.mark.parametrize("member", ["", "_jvp", "_backward", "_double_backward"])
def test_only_what_is_needed_is_saved(member, name, rng, generator):
    """Exactly the operands on which the wanted gradients depend, found by changing one after the other."""
    case = CASES[name]
    v = [*case.operands(3, torch.float64, generator)]
    v.append(torch.randn(3, case.plan.irreps_out.dim, generator=generator, dtype=torch.float64))
    t = [torch.randn(a.shape, generator=generator, dtype=a.dtype) for a in v]
    for _ in range(12):
        present = [a if rng.random() < 0.7 else None for a in t]
        values = {"": v[:3], "_jvp": [*v[:3], *present[:3]], "_backward": v, "_double_backward": [*v, *present]}[member]
        wanted = [rng.random() < 0.5 for _ in range({"_backward": 3, "_double_backward": 4}.get(member, 0))]
        needs = [a is not None and rng.random() < 0.4 for a in values]
        if not any(needs) or (wanted and not any(wanted)):
            continue

        def gradients(values, saved, wanted=wanted, needs=needs):
            args = [None if a is None else a.clone().requires_grad_(n) for a, n in zip(values, needs, strict=True)]
            with torch.autograd.graph.saved_tensors_hooks(lambda a: saved.append(a) or a, lambda a: a):
                out = getattr(OPS, f"tensor_product{member}")(*args, str(case.plan), *([wanted] if wanted else []))
            out = torch.cat([o.flatten() for o in (out if wanted else [out])])
            saved[:] = [
                n for n, a in enumerate(args) if a is not None and any(a.data_ptr() == s.data_ptr() for s in saved)
            ]
            inputs = [a for a in args if a is not None and a.requires_grad]
            return torch.autograd.grad(
                out, inputs, torch.linspace(1, 2, len(out), dtype=out.dtype), materialize_grads=True
            )

        saved = []
        expected = gradients(values, saved)
        depends = []
        for n, a in enumerate(values):
            if a is not None:
                changed = gradients([*values[:n], a + 1, *values[n + 1 :]], [])
                if not all(map(torch.equal, changed, expected)):
                    depends.append(n)
        assert saved == depends, (wanted, needs, [a is not None for a in values])


def test_weights_written_to_before_backward(generator):
    """As in e3nn: the gradient of the weights alone is none of the weights' own values."""
    case = CASES["mixed-mul_ir-mul_ir-mul_ir-shared"]
    x, y, w = case.operands(3, torch.float64, generator)
    results = []
    for op in (eqk.tensor_product, reference.tensor_product):
        weights = w.clone().requires_grad_()
        out = op(x, y, weights, case.plan)
        with torch.no_grad():
            weights.fill_(torch.nan)
        results.append(torch.autograd.grad(out.sum(), weights)[0])
    assert_close(*results, 1)


def test_cotangents_that_are_none(generator):
    """One of three gradients goes on: double backward gets None for the others, and no zeros in their place."""
    case = CASES["mixed-ir_mul-mul_ir-mul_ir-per_sample"]
    operands = leaves(case, 3, generator)
    results = []
    for f in (eqk.tensor_product, reference.tensor_product):
        gradients = torch.autograd.grad(f(*operands, case.plan).pow(2).sum(), operands, create_graph=True)
        with Calls() as calls:
            results.append(torch.autograd.grad(gradients[1].pow(2).sum(), operands))
        if f is eqk.tensor_product:
            tangents = calls.seen[0][1][4:8]
            assert [t is None for t in tangents] == [True, False, True, True]
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 2)


def test_checkpoint_and_hooks(generator):
    """Saved tensors are unpacked once, as torch.utils.checkpoint requires."""
    case = CASES["mixed-ir_mul-mul_ir-mul_ir-per_sample"]
    operands = leaves(case, 3, generator)
    f = bound(eqk.tensor_product, case.plan)
    got = torch.autograd.grad(
        torch.utils.checkpoint.checkpoint(f, *operands, use_reentrant=False).pow(2).sum(), operands
    )
    want = torch.autograd.grad(f(*operands).pow(2).sum(), operands)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "name", ["mixed-ir_mul-mul_ir-mul_ir-per_sample", "mixed-mul_ir-ir_mul-mul_ir-shared", "uuu-none"]
)
def test_opcheck(name, generator):
    plan = CASES[name].plan
    text = str(plan)
    v = leaves(CASES[name], 3, generator)
    t = [None if a is None else torch.randn_like(a, requires_grad=True) for a in v]
    g, tg = (torch.randn(3, plan.irreps_out.dim, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weighted = plan.weights != "none"
    torch.library.opcheck(OPS.tensor_product.default, (*v, text))
    torch.library.opcheck(OPS.tensor_product_jvp.default, (*v, *t, text))
    torch.library.opcheck(OPS.tensor_product_jvp.default, (*v, t[0], None, None, text))
    for wanted in ([True, True, weighted], [True, False, False]):
        torch.library.opcheck(OPS.tensor_product_backward.default, (*v, g, text, wanted))
        torch.library.opcheck(OPS.tensor_product_double_backward.default, (*v, g, *t, tg, text, [*wanted, True]))
        torch.library.opcheck(
            OPS.tensor_product_double_backward.default, (*v, g, None, t[1], None, None, text, [*wanted, False])
        )


# Compilation and serialisation.


class Product(torch.nn.Module):
    def __init__(self, plan):
        super().__init__()
        self.plan = str(plan)

    def forward(self, x, y, w):
        return torch.ops.eqk.tensor_product(x, y, w, self.plan)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_forward_and_backward(backend, generator):
    chosen = (
        ["mixed-ir_mul-mul_ir-mul_ir-per_sample"] if backend == "inductor" else [*CHECKED, "depthwise-8", "empty-all"]
    )
    for name in chosen:
        torch._dynamo.reset()
        case = CASES[name]
        operands = leaves(case, 4, generator)
        present = [t for t in operands if t is not None]

        def f(x, y, w, plan=case.plan):
            return eqk.tensor_product(torch.sin(x), y, w, plan).pow(2)

        compiled = torch.compile(f, fullgraph=True, backend=backend)
        for got, want in zip(
            torch.autograd.grad(compiled(*operands).sum(), present),
            torch.autograd.grad(f(*operands).sum(), present),
            strict=True,
        ):
            assert_close(got, want, 1)


def test_compile_dynamic_rows(generator):
    case = CASES["mixed-ir_mul-mul_ir-mul_ir-shared"]
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(bound(eqk.tensor_product, case.plan), fullgraph=True, dynamic=True, backend=counter)
    for rows in (4, 7, 33):
        operands = case.operands(rows, torch.float64, generator)
        assert torch.equal(compiled(*operands), eqk.tensor_product(*operands, case.plan))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["mixed-ir_mul-mul_ir-mul_ir-per_sample", "mixed-mul_ir-ir_mul-mul_ir-shared"])
@torch._dynamo.config.patch(trace_autograd_ops=True)
def test_compile_force_loss(name, generator):
    """Energy, forces and the gradient of a force loss to the weights inside one compiled function."""
    plan = CASES[name].plan
    x, y, w = CASES[name].operands(4, torch.float64, generator)

    def step(x, y, w):
        w, y = w.detach().requires_grad_(), y.detach().requires_grad_()
        (force,) = torch.autograd.grad(eqk.tensor_product(x, y, w, plan).pow(2).sum(), y, create_graph=True)
        return force.detach(), torch.autograd.grad(force.pow(2).sum(), w)[0]

    for got, want in zip(torch.compile(step, fullgraph=True, backend="aot_eager")(x, y, w), step(x, y, w), strict=True):
        assert_close(got, want, 2)


def test_compile_hessian_vector_product(generator):
    plan = CASES["mixed-ir_mul-mul_ir-mul_ir-per_sample"].plan
    x, y, w = random_operands(plan, 4, torch.float64, generator)

    def product(x, y, w):
        gradient = torch.func.grad(lambda y: eqk.tensor_product(x, y, w, plan).pow(2).sum())
        return torch.func.jvp(gradient, (y,), (torch.cos(y),))[1]

    assert_close(torch.compile(product, fullgraph=True, backend="aot_eager")(x, y, w), product(x, y, w), 2)


def test_export_and_aot_inductor(tmp_path, generator):
    """torch.export with dynamic rows, saved and loaded; an AOTInductor package loaded by another process."""
    case = CASES["mixed-ir_mul-mul_ir-mul_ir-per_sample"]
    module, rows = Product(case.plan), torch.export.Dim("rows")
    shapes = ({0: rows}, {0: rows}, {0: rows})
    program = torch.export.export(module, case.operands(4, torch.float64, generator), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "product.pt2")
    operands = case.operands(9, torch.float64, generator)
    expected = module(*operands)
    assert torch.equal(torch.export.load(tmp_path / "product.pt2").module()(*operands), expected)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    torch.save((operands, expected), tmp_path / "data.pt")
    code = (
        "import sys, torch, eqk; operands, expected = torch.load(sys.argv[2]);"
        "assert torch.equal(torch._inductor.aoti_load_package(sys.argv[1])(*operands), expected)"
    )
    subprocess.run([sys.executable, "-c", code, package, str(tmp_path / "data.pt")], check=True, timeout=120)


def test_script(tmp_path, generator):
    case = CASES["mixed-ir_mul-mul_ir-mul_ir-shared"]
    torch.jit.script(Product(case.plan)).save(str(tmp_path / "product.pt"))
    module = torch.jit.load(str(tmp_path / "product.pt"))
    operands = leaves(case, 3, generator)
    results = [torch.autograd.grad(f(*operands).pow(2).sum(), operands) for f in (module, Product(case.plan))]
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 1)
    assert copy.deepcopy(Product(case.plan)).plan == str(case.plan)


# Inputs of every form.


def test_strided_inputs(rng, generator):
    """Row strides, columns that are not adjacent, expanded rows, offsets: as operands, cotangents and tangents."""
    case = CASES["mixed-ir_mul-mul_ir-mul_ir-per_sample"]
    plan, rows = case.plan, 37
    columns = (plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    forms = {
        "row stride": lambda n: normal(rows, n + 5)[:, 2 : n + 2],
        "columns": lambda n: normal(rows, 2 * n)[:, ::2],
        "transposed": lambda n: normal(n, rows).T,
        "expanded rows": lambda n: normal(1, n).expand(rows, n),
        "expanded columns": lambda n: normal(rows, 1).expand(rows, n),
        "scalar": lambda n: normal(1, 1).expand(rows, n),
        "every third row": lambda n: normal(3 * rows, n)[1::3],
        "flipped": lambda n: normal(rows, n).flip(0),
    }
    assert not any(not f(4).is_contiguous() for k, f in forms.items() if k == "flipped")
    for form in forms:
        v = [forms[form](n) for n in columns]
        t = [forms[rng.choice(list(forms))](n) for n in columns]
        args = (str(plan), [True] * 4)
        got = (
            OPS.tensor_product(*v[:3], args[0]),
            OPS.tensor_product_jvp(*v[:3], *t[:3], args[0]),
            *OPS.tensor_product_backward(*v, args[0], [True] * 3),
            *OPS.tensor_product_double_backward(*v, *t, *args),
        )
        v, t = [a.contiguous() for a in v], [a.contiguous() for a in t]
        want = (
            OPS.tensor_product(*v[:3], args[0]),
            OPS.tensor_product_jvp(*v[:3], *t[:3], args[0]),
            *OPS.tensor_product_backward(*v, args[0], [True] * 3),
            *OPS.tensor_product_double_backward(*v, *t, *args),
        )
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b), form


def test_row_offsets_beyond_32_bits(tmp_path, generator):
    """Rows 2^30 elements apart, in a sparse file: the last one lies beyond 2^32 elements."""
    case = CASES["depthwise-7"]
    rows, apart = 6, (1 << 30) + 3
    v = [t[:rows] for t in case.operands(rows, torch.float32, generator)]
    v.append(torch.randn(rows, case.plan.irreps_out.dim, generator=generator))
    far = []
    for n, t in enumerate(v):
        storage = torch.from_file(str(tmp_path / str(n)), shared=True, size=rows * apart)
        far.append(storage.as_strided(t.shape, (apart, 1)))
        far[-1].copy_(t)
    text = str(case.plan)
    assert torch.equal(OPS.tensor_product(*far[:3], text), OPS.tensor_product(*v[:3], text))
    for got, want in zip(
        OPS.tensor_product_double_backward(*far, *far, text, [True] * 4),
        OPS.tensor_product_double_backward(*v, *v, text, [True] * 4),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_broadcasting(generator):
    plan = CASES["depthwise-3"].plan
    for shapes in (
        ((2, 3), (3,), (2, 1)),
        ((), (4,), ()),
        ((1,), (5,), (1,)),
        ((2, 1, 3), (4, 1), (1,)),
        ((0,), (1,), ()),
        ((), (), ()),
    ):
        x, y, w = operands = random_operands(plan, shapes, torch.float64, generator)
        leading = torch.broadcast_shapes(*shapes)
        flat = [t.expand(*leading, t.shape[-1]).reshape(leading.numel(), t.shape[-1]) for t in operands]
        assert_close(
            eqk.tensor_product(x, y, w, plan),
            reference.tensor_product(*flat, plan).reshape(*leading, plan.irreps_out.dim),
        )


def test_broadcasting_with_a_plan_in_other_words(generator):
    """Spaces are free in a plan: which weights it says is asked of the parsed plan, under torch.compile too."""
    plan = CASES["depthwise-3"].plan
    x, y, w = random_operands(plan, ((2, 3), (3,), (2, 1)), torch.float64, generator)
    expected = eqk.tensor_product(x, y, w, plan)
    for text in (str(plan).replace(" {", "{"), str(plan).replace(" {", "   { ")):
        assert torch.equal(eqk.tensor_product(x, y, w, text), expected)
        compiled = torch.compile(lambda *v, text=text: eqk.tensor_product(*v, text), fullgraph=True, backend="eager")
        assert torch.equal(compiled(x, y, w), expected)


@pytest.mark.parametrize(
    "name", ["mixed-mul_ir-mul_ir-mul_ir-shared", "mixed-mul_ir-mul_ir-mul_ir-per_sample", "uuu-none", "empty-all"]
)
def test_zero_rows(name, generator):
    case = CASES[name]
    operands = leaves(case, 0, generator)
    present = [t for t in operands if t is not None]
    out = eqk.tensor_product(*operands, case.plan)
    assert out.shape == (0, case.plan.irreps_out.dim)
    gradients = torch.autograd.grad(out.sum(), present, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in gradients), present, allow_unused=True)
    for t, g, h in zip(present, gradients, second, strict=True):
        assert g.shape == t.shape
        assert not g.any()
        assert h is None or (h.shape == t.shape and not h.any())


def test_rows_without_columns():
    """As many as an expanded tensor may have, at no cost; gradients of other operands are still zeros."""
    for rows in (2**40, 2**63 - 1):
        x = torch.zeros(1, 0).expand(rows, 0)
        plan = "- * - -> - [mul_ir,mul_ir,mul_ir] none {}"
        assert OPS.tensor_product(x, x, None, plan).shape == (rows, 0)
        assert OPS.tensor_product_jvp(x, x, None, x, x, None, plan).shape == (rows, 0)
        for t in OPS.tensor_product_double_backward(x, x, None, x, x, x, None, x, plan, [True, True, False, True])[:2]:
            assert t.shape == (rows, 0)
    x, w = torch.zeros(0, 2), torch.ones(4)
    plan = "2x0e * 2x0e -> 1x0e [mul_ir,mul_ir,mul_ir] shared {0 0 0 uvw w 1}"
    assert torch.equal(OPS.tensor_product_backward(x, x, w, x[:, :1], plan, [True] * 3)[2], torch.zeros(4))


def test_autocast_promotes_mixed_dtypes(generator):
    case = CASES["depthwise-5"]
    x, y, w = case.operands(4, torch.float32, generator)
    with pytest.raises(RuntimeError, match="y: expected dtype"):
        eqk.tensor_product(x, y.double(), w, case.plan)
    for dtypes, result in (
        ((torch.bfloat16, torch.float32, torch.bfloat16), torch.float32),
        ((torch.bfloat16,) * 3, torch.bfloat16),
        ((torch.float16, torch.float16, torch.float64), torch.float64),
        ((torch.float16, torch.bfloat16, torch.float16), torch.float32),
    ):
        operands = [t.to(d).requires_grad_() for t, d in zip((x, y, w), dtypes, strict=True)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = eqk.tensor_product(*operands, case.plan)
        assert out.dtype == result
        assert_close(out, reference.tensor_product(*cast(operands, torch.float64), case.plan))
        gradients = torch.autograd.grad(out.sum(), operands)
        assert [g.dtype for g in gradients] == list(dtypes)


# Determinism, instruction sets, memory and start-up.


def every_result(case, operands, generator):
    directions = random_directions(operands, eqk.tensor_product(*operands, case.plan), 2, generator)
    return [t for order in derivatives(bound(eqk.tensor_product, case.plan), operands, directions) for t in order]


def assert_same_bits(*runs, threads=(1, 2, 5)):
    """Of the tensors that each of the calls gives, on so many threads in turn."""
    before, results = torch.get_num_threads(), []
    try:
        for number, run in zip(threads, runs, strict=True):
            torch.set_num_threads(number)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_determinism(dtype, request):
    """The same bits for one to four threads and repeated runs; shared weights' gradient sums over rows."""
    before = torch.get_num_threads()
    try:
        for name in ("mixed-mul_ir-ir_mul-mul_ir-shared", "depthwise-33", "connected-17", "connected-130"):
            for rows in (5, 400, 1000):
                expected = None
                for threads in (1, 2, 3, 7, 1):
                    torch.set_num_threads(threads)
                    generator = testing.generators(f"{request.node.nodeid} {name} {rows}")[1]
                    results = every_result(CASES[name], CASES[name].operands(rows, dtype, generator), generator)
                    results = [t.nan_to_num(7) for t in results]
                    assert expected is None or all(map(torch.equal, results, expected)), (name, rows, threads)
                    expected = results
    finally:
        torch.set_num_threads(before)


def run_python(code, *args, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_outputs_start_as_nan(generator):
    """What the other tests rely on: memory that the op allocates and no kernel writes is NaN."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        eqk.tensor_product(*CASES["depthwise-3"].operands(2, torch.float32, generator), CASES["depthwise-3"].plan)
    recorded = [event.key for event in profile.key_averages()]
    assert "aten::new_empty" in recorded
    assert "aten::fill_" in recorded
    assert torch.empty(5).isnan().all()


def test_allocations(generator):
    """Each op allocates its results and nothing else; the sum over rows for shared weights a bounded number of partials."""
    rows = 500
    for name in ("mace-medium", "allegro-l2"):
        case = CASES[name]
        text, v = str(case.plan), list(case.operands(rows, torch.float32, generator))
        g = torch.randn(rows, case.plan.irreps_out.dim, generator=generator)
        calls = (
            (OPS.tensor_product, (*v, text)),
            (OPS.tensor_product_jvp, (*v, *v, text)),
            (OPS.tensor_product_backward, (*v, g, text, [True] * 3)),
            (OPS.tensor_product_double_backward, (*v, g, *v, g, text, [True] * 4)),
        )
        torch.utils.deterministic.fill_uninitialized_memory = False
        for op, args in calls:
            op(*args)
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                results = op(*args)
            results = [results] if isinstance(results, torch.Tensor) else results
            expected = sum(t.numel() * t.element_size() for t in results)
            allocated = sum(
                event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0
            )
            partials = 16 * 4 * case.plan.weight_numel if case.plan.weights == "shared" else 0
            assert expected <= allocated <= expected + partials + 1024, (op, allocated, expected)


def test_resident_memory():
    """Memory that bypasses torch's allocator shows in the peak of the process."""
    code = """
import json, resource, torch, eqk
from eqk.testing import CASES
plan = CASES["mace-large"].plan
def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
def operands(rows):
    v = [torch.ones(rows, n) for n in (plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel, plan.irreps_out.dim)]
    return v, [t.clone() for t in v]
def calls(v, t):
    yield lambda: [torch.ops.eqk.tensor_product(*v[:3], str(plan))]
    yield lambda: torch.ops.eqk.tensor_product_backward(*v, str(plan), [True] * 3)
    yield lambda: torch.ops.eqk.tensor_product_double_backward(*v, *t, str(plan), [True] * 4)
v, t = operands(64)
for call in calls(v, t): call()
v, t = operands(1500)
out = []
for call in calls(v, t):
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS:")
    results = call()
    out.append((memory("VmHWM:") - before, sum(r.numel() * 4 for r in results)))
    del results
print(json.dumps(out))
"""
    for grown, results in json.loads(run_python(code)):
        assert grown < 1.02 * results + (8 << 20)


def best_of(runs, measure):
    return min(measure() for _ in range(runs))


def test_first_call_of_a_plan():
    """In a fresh process, after another plan: what the first call of a published model's plan takes beyond the second."""
    code = """
import gc, json, time, torch, eqk
from eqk.testing import CASES, random_operands
gc.disable()  # as timeit does: a collection of all that torch imported falls on some call or other
warm = CASES["uvu-none"]
eqk.tensor_product(*random_operands(warm.plan, 1, torch.float32, torch.Generator()), warm.plan)
times = {}
for case in CASES.values():
    if case.problem:
        operands = random_operands(case.plan, 1, torch.float32, torch.Generator())
        stamps = [time.perf_counter()]
        for _ in range(4):
            eqk.tensor_product(*operands, case.plan)
            stamps.append(time.perf_counter())
        calls = [b - a for a, b in zip(stamps, stamps[1:])]
        times[case.name] = calls[0] - min(calls[1:])
print(json.dumps(times))
"""
    runs = [json.loads(run_python(code)) for _ in range(3)]
    for name in runs[0]:
        assert min(run[name] for run in runs) < 5e-3, name


def test_a_cold_plan_holds_up_no_other(generator):
    """Its tables of high degree take a second or so; meanwhile another thread's plan, known already, runs."""
    known = CASES["depthwise-3"]
    operands = known.operands(1, torch.float32, generator)
    eqk.tensor_product(*operands, known.plan)
    degrees = "+".join(f"1x{l}e" for l in range(12, 20))
    paths = "; ".join(f"{i} {j} {k} uuu - 1" for i in range(8) for j in range(8) for k in range(8))
    cold = f"{degrees} * {degrees} -> {degrees} [mul_ir,mul_ir,mul_ir] none {{{paths}}}"
    x = torch.ones(1, sum(2 * l + 1 for l in range(12, 20)))
    times = {}

    def run():
        start = time.perf_counter()
        OPS.tensor_product(x, x, None, cold)
        times["cold"] = time.perf_counter() - start

    thread = threading.Thread(target=run)
    thread.start()
    longest = 0
    while thread.is_alive():
        start = time.perf_counter()
        eqk.tensor_product(*operands, known.plan)
        longest = max(longest, time.perf_counter() - start)
        time.sleep(1e-3)
    thread.join()
    assert longest < times["cold"] / 2


def test_import_time():
    code = "import torch, time; start = time.process_time(); import eqk; print(time.process_time() - start)"
    assert best_of(3, lambda: float(run_python(code))) < 0.5


def test_import_needs_neither_e3nn_nor_triton():
    code = "import sys; import eqk, eqk.testing, eqk.reference; print(sorted({'e3nn', 'triton', 'pytest'} & set(sys.modules)))"
    assert run_python(code).strip() == "[]"


def test_call_overhead(generator):
    """A call of few rows costs less than a millisecond: no plan is parsed twice."""
    case = CASES["nequip-benzene"]
    operands = case.operands(1, torch.float32, generator)
    eqk.tensor_product(*operands, case.plan)

    def measure():
        start = time.perf_counter()
        eqk.tensor_product(*operands, case.plan)
        return time.perf_counter() - start

    assert best_of(50, measure) < 1e-3


def test_shape_of_relative_error():
    """The yardstick itself fails where it must."""
    one = torch.ones(3)
    assert relative_error(one, one) == 0
    assert relative_error(torch.tensor([1.0, float("nan"), 1.0]), one) == float("inf")
    assert (
        relative_error(torch.full((3,), 1e-300), torch.zeros(3)) == float("inf") or torch.full((3,), 1e-300).any() == 0
    )
    assert relative_error(one * 1.01, one) == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(AssertionError, match="shape"):
        relative_error(torch.ones(2), one)
