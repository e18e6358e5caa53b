"""s2_activation in Triton, under Triton's interpreter: the tests of the op on the CPU, and what only this backend has.

Run by test_triton.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import math

import pytest
import test_s2_activation as suite
import torch
import torch._dynamo.testing
from fuzz import s2_activation_truth
from recorded_launches import Launches, last_program_first
from test_s2_activation import (  # noqa: F401
    SILU,
    every_result,
    test_16_bit,
    test_a_polynomial_is_exactly_equivariant,
    test_bad_input,
    test_channels,
    test_equiformer_v2_grids,
    test_fifth_derivative_is_refused,
    test_function,
    test_functions,
    test_gradcheck_and_transforms,
    test_nan_stays_in_its_row_and_channel,
    test_no_grid_in_memory,
    test_opcheck,
    test_strided_operands,
    test_times,
    test_times_is_exact,
    test_truncated_orders,
    test_values_of_functions,
)
from test_tensor_product import DTYPES, compare
from test_triton import Seen

import eqk
from eqk import dispatch, reference
from eqk._signals import merge, split
from eqk.nn import S2Activation
from eqk.testing import assert_close, random_s2_activation, relative_error
from eqk.triton_kernels import s2_activation as kernels

OPS = torch.ops.eqk_triton


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    """What the tests of the op call, by eqk's functions and by torch.ops."""
    monkeypatch.setattr(suite, "OPS", OPS)
    with dispatch.use_backend("triton"):
        yield
    kernels.lower.cache_clear()


@pytest.fixture
def products(rng):
    """The interpreter takes long: one of them in each test."""
    return [rng.choice(suite.PRODUCTS)]


def random_call(rng, generator, plan=None):
    """A plan, kinds, and x and factors in float64."""
    plan = plan or random_s2_activation(rng, 4)
    letters = [rng.choice("xz") for _ in range(rng.randint(1, 5))]
    kinds = f"{rng.randint(0, 4)}{''.join(letters[:-1])}>{letters[-1]}"
    rows = rng.choice((1, 3, 18))
    operands = [
        torch.randn(rows, plan.dims["xz".index(k)], generator=generator, dtype=torch.float64)
        for k in ("x", *letters[:-1])
    ]
    return plan, kinds, operands


def product(operands, plan, kinds, dtype=torch.float64):
    padding = [None] * (5 - len(operands))
    return OPS.s2_activation_product(*[t.to(dtype) for t in operands], *padding, str(plan), kinds)


def check_call(plan, kinds, operands):
    expected = s2_activation_truth(operands[0], operands[1:], str(plan), kinds)
    for dtype in (torch.float64, torch.float32):
        if plan.function in ("relu", "abs") and dtype != torch.float64:
            continue  # a value that rounds to the other side of the kink
        got = product(operands, plan, kinds, dtype)
        assert got.dtype == dtype
        # A derivative of a function that tends to a constant is small beside the rounding errors of its argument.
        noise = 4e-5 * max(t.abs().max() for t in (*operands, expected))
        close = dtype == torch.float32 and (got - expected).abs().max() < noise
        if not close:
            assert_close(got, expected, what=(kinds, plan))


@pytest.mark.parametrize("chunk", range(2))
def test_random_products(chunk, rng, generator):
    """Of any order, kinds, plan and number of factors."""
    for _ in range(12):
        check_call(*random_call(rng, generator))


def test_autograd_of_random_plans(rng, generator):
    """To third order; the derivatives of the Triton ops are Triton ops."""
    for _ in range(6):
        plan = random_s2_activation(rng, 3)
        orders = 1 if plan.function in ("relu", "abs") else 3
        x = torch.randn(rng.choice((0, 1, 5)), plan.dims[0], generator=generator)
        with Seen() as seen:
            compare(
                plan,
                (x,),
                generator,
                (torch.float64,),
                orders,
                suite.on(plan, reference.s2_activation),
                suite.on(plan),
            )
        assert seen.ops <= {"eqk_triton::s2_activation", "eqk_triton::s2_activation_product"}


@pytest.mark.parametrize("lmaxes", [(1, 11), (11, 2), (9, 10)])
def test_coefficients_that_do_not_fit(lmaxes, rng, generator, monkeypatch):
    """They are read for each tile of points, and several programs have parts of a long result."""
    monkeypatch.setattr(kernels, "_SHARED", 1)
    kernels.lower.cache_clear()
    layouts = dict(layout_in=rng.choice(("ir_mul", "mul_ir")), layout_out=rng.choice(("ir_mul", "mul_ir")))
    plan = eqk.S2ActivationPlan.normalized(*lmaxes, 3, "tanh", (5, 9), **layouts)
    for kinds, groups in (("0>z", 2 if lmaxes[1] == 11 else 1), ("1z>x", 2 if lmaxes[0] == 11 else 1)):
        problem, _ = kernels.lower(str(plan), kinds, torch.float64)
        assert not problem.held
        assert problem.groups == groups
    for _ in range(3):
        check_call(*random_call(rng, generator, plan))


def test_plans_up_to_the_largest_degree(rng, generator):
    """As they are lowered, coefficients held and not."""
    held = set()
    for lmaxes, kinds in (((6, 8), "0>z"), ((8, 6), "2zx>x"), ((20, 1), "1z>x"), ((1, 20), "0>z")):
        plan = eqk.S2ActivationPlan.normalized(*lmaxes, 2, "silu", (4, 7))
        held.add(kernels.lower(str(plan), kinds, torch.float32).problem.held)
        operands = [
            torch.randn(3, plan.dims["xz".index(k)], generator=generator, dtype=torch.float64)
            for k in "x" + kinds[1:-2]
        ]
        check_call(plan, kinds, operands)
    assert held == {True, False}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["ir_mul", "mul_ir"])
def test_no_lane_sees_another(value, layout, generator):
    """One coefficient of one channel of a row, in x and in factors: the others have the same bits as without it.

    Lanes of one program share its matrix products, and there are lanes without a row, components that are padding and,
    in the last tile, points that are: 45 of them here, 35 lanes, 9 and 16 components.
    """
    plan = eqk.S2ActivationPlan.normalized(2, 3, 5, "tanh", (5, 9), layout_in=layout)
    sides = {"x": (2, layout), "z": (3, "ir_mul")}

    def by_channel(t, kind):
        lmax, of = sides[kind]
        return split(t, lmax, 5, of)

    operands = [torch.randn(7, plan.dims["xz".index(k)], generator=generator) for k in "xxz"]
    for kinds, component in (("0xz>z", 0), ("0xz>x", 1), ("3xz>z", 0)):
        expected = by_channel(product(operands, plan, kinds, torch.float32), kinds[-1])
        for which, kind in enumerate("xxz"):
            spoiled = by_channel(operands[which], kind).clone()
            spoiled[2, component, 3] = value
            changed = [*operands[:which], merge(spoiled, *sides[kind]), *operands[which + 1 :]]
            got = product(changed, plan, kinds, torch.float32)
            touched = by_channel(got, kinds[-1]).ne(expected).any(1)
            assert touched.nonzero().tolist() == [[2, 3]]
            if which == 0 and math.isinf(value) and kinds == "0xz>z":
                # tanh has limits: infinity times zero, of points that are none, may not be added to them.
                truth = s2_activation_truth(changed[0], changed[1:], str(plan), kinds)
                assert truth.isfinite().all()
                assert relative_error(got, truth) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_the_order_of_programs(dtype, generator):
    for plan in (SILU, eqk.S2ActivationPlan(2, 2, 1, "tanh", (3, 4))):
        operands, run = every_result(plan, 70, dtype, generator)
        expected = run(*operands)
        with last_program_first() as programs:
            results = run(*operands)
        assert min(programs) > 1
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_limits_of_functions(generator):
    """On a grid with padding, of infinite values: as torch has them where they are numbers."""
    for function in ("tanh", "sigmoid"):
        plan = eqk.S2ActivationPlan(0, 1, 3, function, (3, 5))
        x = torch.full((4, 3), math.inf)
        x[1] = -math.inf
        x[2] = torch.randn(3, generator=generator)
        assert relative_error(OPS.s2_activation(x, str(plan)), reference.s2_activation(x.double(), plan)) < 1e-5


def test_end_to_end(generator):
    """eqk's function and module take the backend that was chosen, and so do their derivatives."""
    x = torch.randn(6, 9, 3, generator=generator, requires_grad=True)
    module = S2Activation("3x0e + 3x1o", "tanh", 6)

    def everything():
        z = eqk.s2_activation(x, "silu", res=(6, 7))
        gated = eqk.s2_activation(x, "silu", times=[x], res=(6, 7))
        (g,) = torch.autograd.grad(z.square().sum() + gated.sum(), x, create_graph=True)
        return [z, gated, g, *torch.autograd.grad(g.square().sum(), x), module(x[:, :4].flatten(1))]

    with Seen() as seen:
        got = everything()
    assert seen.ops == {"eqk_triton::s2_activation", "eqk_triton::s2_activation_product"}
    for backend in ("cpu", "reference"):
        with dispatch.use_backend(backend):
            for a, b in zip(got, everything(), strict=True):
                assert relative_error(a, b) < 1e-5
    assert "  triton: can run\n" in dispatch.explain("s2_activation", x)
    assert dispatch.explain("s2_activation", x).endswith("-> triton")


def test_compiled_by_torch(generator):
    """To torch.compile the ops are opaque; the graph has those of the backend that was chosen."""
    x = torch.randn(4, 9, 2, generator=generator, requires_grad=True)

    def function(x):
        return eqk.s2_activation(x, "silu", 1)

    backend = torch._dynamo.testing.AotEagerAndRecordGraphs()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for got, want in zip(*[torch.autograd.grad(f(x).pow(2).sum(), x) for f in (compiled, function)], strict=True):
        assert_close(got, want, 1)
    targets = {str(n.target) for g in (*backend.fw_graphs, *backend.bw_graphs) for n in g.graph.nodes}
    ops = {target for target in targets if "eqk" in target}
    assert ops == {"eqk_triton.s2_activation.default", "eqk_triton.s2_activation_product.default"}


def test_rows_longer_than_32_bits(monkeypatch):
    """A row stride that takes the last row beyond 2^31 elements: memory is reserved and two rows of it are touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    plan = eqk.S2ActivationPlan(0, 0, 1, "square", (1, 1))
    stride = 2**31 + 11
    x = torch.empty(stride + 1, dtype=torch.float16).as_strided((2, 1), (stride, 1))
    x[0], x[1] = 2.0, 3.0
    assert_close(OPS.s2_activation(x, str(plan)), reference.s2_activation(x.double(), plan))


def test_device_and_size_of_launches(monkeypatch):
    """Each launch is on the device of the operands, not on the current one, and of no more threads than HIP can count."""
    launches = Launches(kernels, monkeypatch)
    rows = 2**33
    plan = eqk.S2ActivationPlan(0, 0, 3, "silu", (1, 1))
    out = kernels._forward(torch.empty(rows, 3, device="meta"), str(plan))
    assert out.shape == (rows, 3)
    begin = 0
    for programs, args in launches.checked("meta"):
        columns, first, total, problem = args[-4:]
        assert (columns, first, total) == (3, begin, rows)
        begin += programs
    assert begin * problem.lanes >= 3 * rows
