"""Functions of signals on the sphere against dense matrices, e3nn, and what else they are to be."""

import dataclasses
import math

import e3nn.nn
import pytest
import torch
import torch._dynamo.testing
from test_tensor_product import DTYPES, assert_same_bits, compare
from torch.utils._python_dispatch import TorchDispatchMode

import eqk
from eqk import reference
from eqk._signals import component_index
from eqk.nn import S2Activation
from eqk.reference.s2_activation import FUNCTIONS as TRUTHS
from eqk.s2_activation import dispatched_s2_activation
from eqk.s2_activation_plan import FUNCTIONS
from eqk.testing import assert_close, random_s2_activation, relative_error, rotate

OPS = torch.ops.eqk
SILU = eqk.S2ActivationPlan.normalized(2, 3, 3, "silu", (5, 8), layout_in="mul_ir")


def on(plan, op=None):
    return lambda x: (op or OPS.s2_activation)(x, str(plan))


def check(plan, rows, generator, dtypes=(torch.float64, torch.float32), orders=3):
    x = torch.randn(rows, plan.dims[0], generator=generator) * 10 ** torch.rand(rows, 1, generator=generator)
    compare(plan, (x,), generator, dtypes, orders, on(plan, reference.s2_activation), on(plan))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function, generator):
    for rows, arguments in ((5, (3, 3, 5, function, (6, 9))), (19, (2, 1, 1, function, (6, 5), "soft"))):
        check(eqk.S2ActivationPlan.normalized(*arguments), rows, generator)


@pytest.mark.parametrize("chunk", range(4))
def test_random_plans(chunk, rng, generator):
    """100 plans, to third order."""
    for _ in range(25):
        plan = random_s2_activation(rng, 4)
        # Derivatives of functions with a kink are no limit of sums of rounded values.
        orders = 1 if plan.function in ("relu", "abs") else 3
        x = torch.randn(rng.choice((0, 1, 3, 18)), plan.dims[0], generator=generator)
        compare(plan, (x,), generator, (torch.float64,), orders, on(plan, reference.s2_activation), on(plan))


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 7, 8, 16, 17, 33])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_channels(channels, layout, generator):
    plan = eqk.S2ActivationPlan(2, 1, channels, "tanh", (3, 6), layout_in=layout, layout_out=layout)
    for rows in (0, 1, 17):
        check(plan, rows, generator, (torch.float32,), 2)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_of_functions(function, dtype):
    """Of every size, in one point of a grid; infinity and what is no number stay what they are."""
    plan = eqk.S2ActivationPlan(0, 0, 1, function, (1, 1))
    unit = math.sqrt(4 * math.pi)  # 1 / Y_00
    f = torch.cat([torch.logspace(-30, 3, 300, dtype=dtype), torch.zeros(1, dtype=dtype)])
    f = torch.cat([f, -f])[:, None]
    x = f * unit
    value = lambda op, x: op(x, str(plan)) / unit  # noqa: E731
    expected = value(reference.s2_activation, x.double())
    got = value(OPS.s2_activation, x)
    error = (got - expected).abs() / expected.abs().clamp(min=torch.finfo(dtype).tiny)
    # Of the difference of numbers near log(2), and of the distribution far below zero, less is known.
    exact = torch.ones_like(f, dtype=torch.bool)
    if function in ("ssp", "softplus"):
        exact = f.abs() > 0.1
    if function in ("gelu", "softplus", "silu", "sigmoid"):
        exact = exact & (f > -30)
    # Far below zero gelu is as exp(-x^2 / 2): one rounding of the argument x, eps x^2 of the value, is allowed besides.
    condition = 1 + f.clamp(max=0).square() / 100 if function == "gelu" else torch.ones_like(f)
    assert (error / condition)[exact].max() < 100 * torch.finfo(dtype).eps
    assert (got - expected).abs().max() < 100 * torch.finfo(dtype).eps * expected.abs().max()
    for special in (math.nan, math.inf, -math.inf):
        x = torch.full((20, 1), special, dtype=dtype)
        want = TRUTHS[function](x[0])
        got = value(OPS.s2_activation, x)
        if want.isfinite():
            assert (got - want).abs().max() < 1e-6
        else:  # torch's formulas make inf * 0 of the limit of some
            assert not got.isfinite().any()
            assert not want.isinf() or (got == want).all()


@pytest.mark.parametrize("normalization", ["component", "norm"])
@pytest.mark.parametrize(
    ("act", "p_val", "p_arg", "res", "lmax_out"),
    [
        (torch.nn.functional.silu, 1, -1, (14, 13), None),
        (torch.tanh, -1, -1, 12, 5),
        (torch.tanh, 1, 1, (12, 20), 2),
        (torch.abs, -1, 1, 10, None),
        (torch.nn.SiLU(), 1, -1, (18, 18), 1),
        (torch.nn.functional.elu, 1, -1, 14, None),
        (torch.sin, -1, -1, 14, 3),
    ],
)
def test_e3nn(act, p_val, p_arg, res, lmax_out, normalization, generator, float64_default):
    """Irreps, values and gradients, of functions that eqk has and of any other one."""
    irreps = e3nn.o3.Irreps([(1, (l, p_val * p_arg**l)) for l in range(4)])
    theirs = e3nn.nn.S2Activation(irreps, act, res, normalization, lmax_out)
    ours = S2Activation(str(irreps), act, res, normalization, lmax_out)
    assert str(ours.irreps_out) == str(theirs.irreps_out)
    x = torch.randn(2, 3, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (ours, theirs):
        out = module(x)
        g = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        results.append([out, *torch.autograd.grad(out, x, g)])
    for got, want in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-6
    turned = S2Activation(str(irreps), act, 40, normalization, lmax_out, random_rot=True)
    still = S2Activation(str(irreps), act, 40, normalization, lmax_out)
    assert relative_error(turned(x), still(x)) < (5e-2 if act is torch.abs else 1e-2)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_module_channels(layout, generator):
    """Each channel is a signal of its own; equivariant but for aliasing, which a finer grid lessens."""
    irreps = "5x0e + 5x1o + 5x2e"
    x = torch.randn(7, 45, generator=generator, dtype=torch.float64)
    angle = torch.randn(3, generator=generator, dtype=torch.float64)
    errors = []
    for res in (6, 40):
        module = S2Activation(irreps, "silu", res, layout=layout)
        moved = module(rotate(x, irreps, angle, layout, True))
        errors.append(relative_error(moved, rotate(module(x), module.irreps_out, angle, layout, True)))
    assert errors[1] < 1e-9 < 1e-3 < errors[0]
    other = S2Activation(irreps, lambda t: t * torch.sigmoid(t), 6, layout=layout)
    assert_close(other(x), S2Activation(irreps, "silu", 6, layout=layout)(x))
    single = S2Activation("0e + 1o + 2e", "silu", 6)
    channel = (
        x.unflatten(1, (9, 5))[..., 2]
        if layout == "ir_mul"
        else torch.cat([x[:, a + 2 * d : a + 3 * d] for a, d in ((0, 1), (5, 3), (20, 5))], 1)
    )
    out = S2Activation(irreps, "silu", 6, layout=layout)(x)
    got = (
        out.unflatten(1, (9, 5))[..., 2]
        if layout == "ir_mul"
        else torch.cat([out[:, a + 2 * d : a + 3 * d] for a, d in ((0, 1), (5, 3), (20, 5))], 1)
    )
    assert_close(got, single(channel))


def test_a_polynomial_is_exactly_equivariant(generator):
    """A square on a grid that is exact for 2 lmax + lmax_out: the product of a signal with itself, bit by rounding."""
    x = torch.randn(4, 16, 3, generator=generator, dtype=torch.float64)
    options = dict(normalization="integral", res=eqk.exact_resolution(3 + 3 + 4))
    z = eqk.s2_activation(x, "square", 4, **options)
    assert_close(z, eqk.gaunt_product(x, x, 4))
    coarse = eqk.s2_activation(x, "square", 4, normalization="integral", res=(6, 10))
    assert relative_error(coarse, z) > 1e-3


# Channels, rows and what else they have.
PRODUCTS = (
    (5, 3, dict(layout_in="mul_ir")),
    (1, 18, dict(layout_out="mul_ir")),
    (2, 1, dict(mmax=1, order="m_primary")),
)


@pytest.fixture
def products():
    return PRODUCTS


@pytest.mark.parametrize("function", ["identity", "silu", "cube"])
@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_times(function, times, products, generator):
    """Products with other signals, on the grid, and every derivative that there is an op for."""
    for channels, rows, options in products:
        plan = eqk.S2ActivationPlan.normalized(2, 3, channels, function, (5, 6), **options)
        signals = [torch.randn(rows, plan.dims[0], generator=generator) for _ in range(times + 1)]
        orders = 3 if function == "identity" else min(4 - times, 3)
        ops = [
            lambda *v, op=op, plan=plan: op(v[0], str(plan), v[1:])
            for op in (reference.s2_activation, dispatched_s2_activation)
        ]
        if orders:
            compare(plan, signals, generator, (torch.float64,), orders, *ops)
        else:
            assert_close(*[op(*signals) for op in reversed(ops)])
        if orders < 3:
            leaf = signals[0].requires_grad_()
            value = dispatched_s2_activation(leaf, str(plan), signals[1:])
            for _ in range(orders):
                (value,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            with pytest.raises(RuntimeError, match=f"s2_activation: x: .*asked for order {orders + 1} times 5"):
                torch.autograd.grad(value.sum(), leaf)


def test_times_is_exact(generator):
    """Products of signals on the grid that is the default: those of two, and powers; SwiGLU with each its own gate."""
    x, y, w = torch.randn(3, 4, 9, 3, generator=generator, dtype=torch.float64)
    once = dict(normalization="integral")
    assert_close(eqk.s2_activation(x, "identity", 3, times=[y], **once), eqk.gaunt_product(x, y, 3))
    product = eqk.gaunt_product(eqk.gaunt_product(x, y, 4), w, 3)
    assert_close(eqk.s2_activation(x, "identity", 3, times=[y, w], **once), product)
    powers = {
        "square": x,
        "cube": eqk.gaunt_product(x, x, 4),
        "quartic": eqk.gaunt_product(x, eqk.gaunt_product(x, x, 4), 6),
    }
    for name, rest in powers.items():
        assert_close(eqk.s2_activation(x, name, 3, **once), eqk.gaunt_product(rest, x, 3))
    angle = torch.randn(3, generator=generator, dtype=torch.float64)

    def turn(t, lmax):
        irreps = eqk.Irreps([(3, (l, (-1) ** l)) for l in range(lmax + 1)])
        return rotate(t.flatten(1), irreps, angle, "ir_mul", True).view_as(t)

    for function, times, error in (("quartic", [y, w], 1e-12), ("silu", [y], None)):
        moved = eqk.s2_activation(turn(x, 2), function, 3, times=[turn(t, 2) for t in times])
        apart = relative_error(moved, turn(eqk.s2_activation(x, function, 3, times=times), 3))
        assert apart < error if error else apart > 1e-6
    grid = lambda t: eqk.to_s2grid(t.mT, (20, 30), normalization="component")  # noqa: E731
    gated = torch.nn.functional.silu(grid(x)) * grid(y)
    back = eqk.from_s2grid(gated, 2, normalization="component", lmax_in=2).mT
    assert_close(eqk.s2_activation(x, "silu", times=[y], res=(20, 30)), back)


@pytest.mark.parametrize("order", ["l_primary", "m_primary"])
@pytest.mark.parametrize("lmax, mmax", [(4, 2), (6, 2), (3, 0), (2, 2), (2, 5)])
def test_truncated_orders(order, lmax, mmax, generator):
    """Components that are left out are zeros, in the place where the order has them, also of another lmax_out."""
    held = component_index(lmax, mmax, order)
    assert sorted(held) == [l * l + l + m for l in range(lmax + 1) for m in range(-l, l + 1) if abs(m) <= mmax]
    if (lmax, mmax, order) == (2, 2, "m_primary"):
        assert held == [0, 2, 6, 3, 7, 1, 5, 8, 4]  # fairchem's table for lmax = mmax = 2
    x, y = torch.randn(2, 5, len(held), 3, generator=generator, dtype=torch.float64)
    whole = [torch.zeros(5, (lmax + 1) ** 2, 3, dtype=x.dtype).index_copy(1, torch.tensor(held), t) for t in (x, y)]
    options = dict(res=(9, 14))
    for lmax_out in (lmax, max(lmax - 2, 0), lmax + 1):
        expected = eqk.s2_activation(whole[0], "silu", lmax_out, times=[whole[1]], **options)
        got = eqk.s2_activation(x, "silu", lmax_out, times=[y], mmax=mmax, order=order, **options)
        assert_close(got, expected[:, component_index(lmax_out, mmax, order)])


@pytest.mark.parametrize("lmax, mmax, res", [(6, 2, (18, 18)), (4, 4, (14, 15)), (4, 2, None)])
@pytest.mark.parametrize("normalization", ["component", "integral"])
def test_equiformer_v2_grids(lmax, mmax, res, normalization, generator):
    """Its matrices, made as it makes them: e3nn's, with degrees above mmax scaled and orders above it left out."""
    rings, angles = res or (2 * (lmax + 1), 2 * mmax + 1)
    to, back = (
        e3nn.o3.ToS2Grid(lmax, (rings, angles), normalization=normalization),
        e3nn.o3.FromS2Grid((rings, angles), lmax, normalization=normalization),
    )
    scale = torch.cat(
        [torch.full((2 * l + 1,), math.sqrt((2 * l + 1) / (2 * min(l, mmax) + 1))) for l in range(lmax + 1)]
    )
    held = component_index(lmax, mmax, "l_primary")
    to = (torch.einsum("mbi,am->bai", to.shb, to.sha) * scale)[..., held]
    back = (torch.einsum("am,mbi->bai", back.sha, back.shb) * scale)[..., held]
    x = torch.randn(3, len(held), 5, generator=generator, requires_grad=True)
    g = torch.randn(3, len(held), 5, generator=generator)
    options = dict(mmax=mmax, res=(rings, angles), quadrature="soft", normalization=normalization, rescale=True)
    values = []
    for z in (
        eqk.s2_activation(x, "silu", **options),
        torch.einsum("bai,zbac->zic", back, torch.nn.functional.silu(torch.einsum("bai,zic->zbac", to, x))),
    ):
        values.append([z, *torch.autograd.grad(z, x, g)])
    for got, want in zip(*values, strict=True):
        assert relative_error(got, want) < 1e-5


def test_function(generator):
    x = torch.randn(2, 3, 9, 4, generator=generator, dtype=torch.float64)
    for quadrature, res in (("gausslegendre", None), ("soft", None), ("gausslegendre", 7)):
        z = eqk.s2_activation(x, "gelu", 1, res=res, quadrature=quadrature)
        assert z.shape == (2, 3, 4, 4)
        grid = (7, 7) if res else eqk.exact_resolution(3, quadrature)
        f = eqk.to_s2grid(x.mT, grid, quadrature=quadrature, normalization="component")
        options = dict(quadrature=quadrature, normalization="component", lmax_in=2)
        assert_close(z, eqk.from_s2grid(TRUTHS["gelu"](f), 1, **options).mT)
    assert_close(eqk.s2_activation(x[0, 0], "gelu"), eqk.s2_activation(x, "gelu")[0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype, generator):
    x = torch.randn(9, SILU.dims[0], generator=generator).to(dtype)
    compare(SILU, (x,), generator, (dtype,), 2, on(SILU, reference.s2_activation), on(SILU))


def every_result(plan, rows, dtype, generator):
    x, v, w = (torch.randn(rows, plan.dims[n], generator=generator).to(dtype) for n in (0, 1, 0))
    return (x, v, w), lambda x, v, w: [
        OPS.s2_activation(x, str(plan)),
        OPS.s2_activation_product(x, v, None, None, None, str(plan), "1z>x"),
        OPS.s2_activation_product(x, w, None, None, None, str(plan), "1x>z"),
        OPS.s2_activation_product(x, v, w, None, None, str(plan), "2zx>x"),
        OPS.s2_activation_product(x, w, w, w, v, str(plan), "4xxxz>x"),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_determinism(dtype, generator):
    for plan in (SILU, eqk.S2ActivationPlan(2, 2, 1, "tanh", (3, 4))):
        operands, run = every_result(plan, 70, dtype, generator)
        assert_same_bits(*[lambda operands=operands, run=run: run(*operands)] * 3)


def test_strided_operands(generator):
    for plan in (SILU, eqk.S2ActivationPlan(2, 2, 1, "tanh", (3, 4))):
        operands, run = every_result(plan, 5, torch.float64, generator)
        expected = run(*operands)
        for dim in range(2):
            apart = [t.new_full([2 * n if d == dim else n for d, n in enumerate(t.shape)], 7) for t in operands]
            apart = [
                a[:: 2 if dim == 0 else 1, :: 2 if dim == 1 else 1].copy_(t)
                for a, t in zip(apart, operands, strict=True)
            ]
            assert all(torch.equal(a, b) for a, b in zip(run(*apart), expected, strict=True))
        one = [t[:1].expand_as(t) for t in operands]
        whole = [t.contiguous() for t in one]
        assert all(torch.equal(a, b) for a, b in zip(run(*one), run(*whole), strict=True))


def test_nan_stays_in_its_row_and_channel(generator):
    x = torch.randn(7, 9, 5, generator=generator)
    expected = eqk.s2_activation(x, "silu")
    x[2, 1, 3] = math.nan
    out = eqk.s2_activation(x, "silu")
    touched = torch.zeros(7, 1, 5, dtype=torch.bool)
    touched[2, 0, 3] = True
    assert out[2, :, 3].isnan().all()
    assert torch.equal(out.masked_fill(touched, 0), expected.masked_fill(touched, 0))


def test_gradcheck_and_transforms(generator):
    x = torch.randn(2, SILU.dims[0], generator=generator, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    everything = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradcheck(on(SILU), leaf, fast_mode=True, **everything)
    twice = dict(check_fwd_over_rev=True, check_rev_over_rev=True)
    assert torch.autograd.gradgradcheck(on(SILU), leaf, fast_mode=True, **twice)
    t = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    results = []
    for op in (OPS.s2_activation, reference.s2_activation):

        def energy(x, op=op):
            return op(x, str(SILU)).sin().sum()

        gradient = torch.func.grad(energy)
        results.append(
            [
                torch.func.hessian(energy)(x),
                torch.func.jvp(gradient, (x,), (t,))[1],
                torch.func.jvp(lambda x, gradient=gradient: torch.func.jvp(gradient, (x,), (t,))[1], (x,), (t,))[1],
                torch.func.vmap(gradient)(torch.stack([x, 2 * x, -x])),
                torch.func.vmap(gradient, in_dims=1, out_dims=1)(torch.stack([x, -x], 1)),
            ]
        )
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 3)


def test_fifth_derivative_is_refused(generator):
    """By name, not by zeros."""
    x = torch.randn(1, SILU.dims[0], generator=generator, dtype=torch.float64, requires_grad=True)
    value = on(SILU)(x).sum()
    for order in range(1, 5):
        (value,) = torch.autograd.grad(value, x, torch.ones_like(value), create_graph=True)
        assert value.ne(0).any(), order
    with pytest.raises(RuntimeError, match="s2_activation: x: expected derivatives of the function up to order 4"):
        torch.autograd.grad(value.sum(), x)


def test_opcheck(generator):
    (x, v, w), _ = every_result(SILU, 3, torch.float64, generator)
    for t in (x, v, w):
        t.requires_grad_()
    torch.library.opcheck(OPS.s2_activation.default, (x, str(SILU)))
    for factors, kinds in (((v,), "1z>x"), ((w,), "1x>z"), ((v, w), "2zx>x"), ((v, w, w), "3zxx>z")):
        padding = [None] * (4 - len(factors))
        torch.library.opcheck(OPS.s2_activation_product.default, (x, *factors, *padding, str(SILU), kinds))


class Allocations(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            self.largest = max(self.largest, t.numel() if isinstance(t, torch.Tensor) else 0)
        return result


def test_no_grid_in_memory(generator):
    x = torch.randn(20, 16, 8, generator=generator, requires_grad=True)
    with Allocations() as seen:
        eqk.s2_activation(x, "silu", res=(18, 18)).square().sum().backward()
    assert seen.largest == x.numel()


def test_compile_export_and_the_rest(generator):
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def energy_and_gradient(x):
        out = eqk.s2_activation(x, "silu", 1).pow(2).sum()
        return out, *torch.autograd.grad(out, x)

    compiled = torch.compile(energy_and_gradient, backend=counter, dynamic=True)
    for rows in (4, 9, 30):
        x = torch.randn(rows, 9, 3, generator=generator, requires_grad=True)
        for got, want in zip(compiled(x), energy_and_gradient(x), strict=True):
            assert_close(got, want, 1)
    assert counter.frame_count <= 2
    module = S2Activation("3x0e + 3x1o", "tanh", 6)
    rows = torch.export.Dim("rows", min=2)
    x = torch.randn(5, 12, generator=generator)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: rows},))
    more = torch.cat([x, x])
    assert torch.equal(program.module()(more), module(more))

    @torch.jit.script
    def scripted(x: torch.Tensor, plan: str):
        return torch.ops.eqk.s2_activation(x, plan)

    x = torch.randn(4, SILU.dims[0], generator=generator)
    assert torch.equal(scripted(x, str(SILU)), on(SILU)(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(on(SILU)(x), scripted(x, str(SILU)))
    signals = torch.randn(2, 9, 3, generator=generator)
    with eqk.dispatch.use_backend("reference"):
        other = eqk.s2_activation(signals, "silu")
    assert_close(eqk.s2_activation(signals, "silu"), other)
    assert eqk.s2_activation(signals.to("meta"), "silu", 1).shape == (2, 4, 3)


def test_modules_say_what_aliases():
    for res, quadrature, exact in (
        ((18, 18), "soft", (17, 17)),
        ((5, 9), "gausslegendre", (9, 8)),
        ((5, 20), "gausslegendre", (9, 19)),
    ):
        text = "exact to degree {} and order {}".format(*exact)
        module = S2Activation("0e + 1o", "silu", res, quadrature=quadrature)
        assert f"{res[0]} x {res[1]} {quadrature}, {text}" in repr(module)
        assert text in repr(eqk.nn.SeparableS2Activation(1, res=res, quadrature=quadrature))
        assert eqk.exact_degree(res, quadrature) == min(exact)


def test_bad_input():
    x, good = torch.zeros(4, SILU.dims[0]), str(SILU)
    v = torch.zeros(4, SILU.dims[1])
    signals = torch.zeros(4, 9, 3)
    derivative = OPS.s2_activation_product
    for message, error, call in (
        (
            r"x: expected 2 dimensions \[rows, 27\], got shape \[27\]",
            RuntimeError,
            lambda: OPS.s2_activation(x[0], good),
        ),
        (r"x: expected shape \[4, 27\], got \[4, 26\]", RuntimeError, lambda: OPS.s2_activation(x[:, 1:], good)),
        ("x: expected dtype", RuntimeError, lambda: OPS.s2_activation(x.long(), good)),
        (
            r"v1: expected shape \[4, 48\], got \[4, 27\]",
            RuntimeError,
            lambda: derivative(x, x, None, None, None, good, "1z>x"),
        ),
        (
            "v2: expected dtype (Float|torch.float32) as x has, got (Double|torch.float64)",
            RuntimeError,
            lambda: derivative(x, v, x.double(), None, None, good, "2zx>x"),
        ),
        (
            "kinds: expected the order of the derivative, 0 to 4, x or z for each of 1 factors, '>', and x or z, got '2zx>x'",
            RuntimeError,
            lambda: derivative(x, v, None, None, None, good, "2zx>x"),
        ),
        ("kinds: expected", RuntimeError, lambda: derivative(x, None, v, None, None, good, "1z>x")),
        ("kinds: expected", RuntimeError, lambda: derivative(x, v, None, None, None, good, "1y>x")),
        ("kinds: expected", RuntimeError, lambda: derivative(x, None, None, None, None, good, "")),
        ("x: expected a tensor, got 3", TypeError, lambda: eqk.s2_activation(3, "silu")),
        (
            r"x: expected shape \[..., \(lmax \+ 1\)\^2, channels\]",
            RuntimeError,
            lambda: eqk.s2_activation(signals[:, 1:], "silu"),
        ),
        ("x: expected a dense tensor", RuntimeError, lambda: eqk.s2_activation(signals.to_sparse(), "silu")),
        (
            r"times\[1\]: expected shape \(4, 9, 3\) as x has",
            RuntimeError,
            lambda: eqk.s2_activation(signals, "silu", times=[signals, signals[:2]]),
        ),
        (r"times\[0\]: expected a tensor", TypeError, lambda: eqk.s2_activation(signals, "silu", times=[2.0])),
        (
            "times up to 4 signals and cotangents, asked for order 0 times 5",
            RuntimeError,
            lambda: eqk.s2_activation(signals, "silu", times=[signals] * 5),
        ),
        (
            r"shape \[..., those of lmax with \|m\| <= 1, channels\]",
            RuntimeError,
            lambda: eqk.s2_activation(signals, "silu", mmax=1),
        ),
        ("mmax: expected an order", ValueError, lambda: eqk.s2_activation(signals[:, :1], "silu", mmax=-1)),
        ("order: expected one of", ValueError, lambda: eqk.s2_activation(signals, "silu", order="primary")),
        ("layout_in: expected ir_mul with mmax 1", ValueError, lambda: dataclasses.replace(SILU, mmax=1)),
        ("function: expected one of identity", ValueError, lambda: eqk.s2_activation(signals, "sine")),
        ("lmax_out: expected a degree", ValueError, lambda: eqk.s2_activation(signals, "silu", -1)),
        ("res: expected a positive number", ValueError, lambda: eqk.s2_activation(signals, "silu", res=0)),
        ("res: expected at most 1024", ValueError, lambda: eqk.s2_activation(signals, "silu", res=2000)),
        ("res: expected an even", ValueError, lambda: eqk.s2_activation(signals, "silu", res=5, quadrature="soft")),
        ("quadrature: expected one of", ValueError, lambda: eqk.s2_activation(signals, "silu", quadrature="x")),
        ("normalization: expected one of", ValueError, lambda: eqk.s2_activation(signals, "silu", normalization="x")),
        ("irreps: expected each degree from 0 once", ValueError, lambda: S2Activation("1o", "silu", 6)),
        ("irreps: expected each degree from 0 once", ValueError, lambda: S2Activation("", "silu", 6)),
        ("irreps: expected each degree from 0 once", ValueError, lambda: S2Activation("2x0e + 1o", "silu", 6)),
        ("irreps: expected parities", ValueError, lambda: S2Activation("0e + 1o + 2o", "silu", 6)),
        ("act: expected a function or one of", ValueError, lambda: S2Activation("0e + 1o", "sine", 6)),
        ("act: expected an even or odd function", ValueError, lambda: S2Activation("0o + 1e", "silu", 6)),
        ("layout: expected one of", ValueError, lambda: S2Activation("0e + 1o", "silu", 6, layout="x")),
        (r"features: expected shape \[..., 4\]", RuntimeError, lambda: S2Activation("0e + 1o", "silu", 6)(signals)),
        ("gain: expected a finite", ValueError, lambda: dataclasses.replace(SILU, gain=math.inf)),
        ("scale_in: expected 3 finite", ValueError, lambda: dataclasses.replace(SILU, scale_in=(1.0,))),
        ("channels: expected", ValueError, lambda: dataclasses.replace(SILU, channels=-1)),
    ):
        with pytest.raises(error, match=message):
            call()


def test_plan_text(rng):
    """Complete in its string, hashable, and the same language for both parsers."""
    texts = [str(SILU), *[str(random_s2_activation(rng)) for _ in range(40)]]
    for text in texts:
        plan = eqk.S2ActivationPlan.parse(text)
        assert str(plan) == text
        assert hash(plan) == hash(dataclasses.replace(plan))
    assert str(eqk.S2ActivationPlan(1, 0, 3, "silu", (2, 4))) == (
        "3x1 -> 0 1 l_primary silu 1.0 2x4 gausslegendre [ir_mul,ir_mul] {1.0 1.0; 1.0}"
    )
    alphabet = "0123456789 xe+-*>[],;:{}._mulirsoftanhgdkpy\n\x00é"
    for _ in range(3000):
        text = min(rng.sample(texts, 3), key=len)
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", rng.choice(alphabet), text[at] * 2)) + text[at + 1 :]
        try:
            eqk.S2ActivationPlan.parse(text)
            expected = "expected 2 dimensions"
        except ValueError:
            expected = "plan: expected|embedded null"
        with pytest.raises((RuntimeError, ValueError), match=expected):
            OPS.s2_activation.default.redispatch(
                torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), torch.zeros(1), text
            )
