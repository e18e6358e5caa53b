"""eqk.spherical_harmonics against e3nn and against repeated coupling: values and three orders of derivatives."""

import importlib
import math
import pickle

import e3nn.o3
import numpy as np
import pytest
import torch

import eqk
import eqk.o3
from eqk import reference, testing

pytestmark = pytest.mark.usefixtures("float64_default")

OP = torch.ops.eqk.spherical_harmonics
BACKWARD = torch.ops.eqk.spherical_harmonics_backward
NORMALIZATIONS = ("integral", "component", "norm")
E3NN_LMAX = 12
# Relative to the norm of the result, for values and each order of derivatives.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def close(actual, expected, tolerance=TOLERANCE[torch.float64]):
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    error = (actual.double() - expected.double()).norm()
    assert error <= tolerance * expected.double().norm(), f"relative error {error / expected.double().norm():.2e}"


def derivatives(f, x, directions):
    """f(x), and the gradients of first, second and third order along fixed random directions."""
    x = x.clone().requires_grad_()
    out = f(x)
    results = [out]
    for direction in directions:
        d = direction[: results[-1].numel()].view_as(results[-1]).to(out.dtype)
        (grad,) = torch.autograd.grad((results[-1] * d).sum(), x, create_graph=True)
        results.append(grad)
    return [r.detach() for r in results]


def compare_derivatives(l, x, normalize, normalization, tolerance):
    directions = torch.randn(3, x.shape[0] * 2000)
    ours = derivatives(lambda t: eqk.spherical_harmonics(l, t, normalize, normalization), x, directions)
    theirs = derivatives(lambda t: e3nn.o3.spherical_harmonics(l, t, normalize, normalization), x.double(), directions)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, tolerance)


@pytest.mark.parametrize("l", [3, 7, 12, list(range(5)), list(range(E3NN_LMAX + 1)), [2, 0, 5, 2, 3]], ids=str)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_e3nn_float64(l, normalization):
    compare_derivatives(l, torch.randn(9, 3), False, normalization, TOLERANCE[torch.float64])


@pytest.mark.parametrize("l", [4, list(range(E3NN_LMAX + 1))], ids=str)
def test_e3nn_normalized(l):
    # Derivatives of the normalisation itself are torch's, evaluated in another order.
    compare_derivatives(l, torch.randn(9, 3), True, "integral", 1e-11)


@pytest.mark.parametrize("lmax", [1, 4, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision(lmax, dtype):
    x = torch.nn.functional.normalize(torch.randn(40, 3), dim=-1).to(dtype)
    order = 3 if dtype is torch.float32 and lmax > 2 else 1
    directions = torch.randn(3, 40 * 200).to(dtype).double()
    ls = list(range(lmax + 1))
    ours = derivatives(lambda t: eqk.spherical_harmonics(ls, t, False), x, directions[:order])
    theirs = derivatives(lambda t: e3nn.o3.spherical_harmonics(ls, t, False), x.double(), directions[:order])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        close(a, b, TOLERANCE[dtype])


def test_reference_beyond_e3nn():
    ls = list(range(21))
    x = torch.nn.functional.normalize(torch.randn(19, 3), dim=-1)
    g = torch.randn(19, 21 * 21)
    for normalization in NORMALIZATIONS:
        text = f"{','.join(map(str, ls))} {normalization}"
        close(OP(x, text), reference.spherical_harmonics(ls, x, normalization))
        close(BACKWARD(x, g, text), reference.spherical_harmonics_backward(ls, x, g, normalization))


def test_reference_matches_e3nn():
    ls = list(range(E3NN_LMAX + 1))
    x = torch.randn(5, 3)
    close(reference.spherical_harmonics(ls, x, "norm"), e3nn.o3.spherical_harmonics(ls, x, False, "norm"))


@pytest.mark.parametrize("text", ["0,1,2,3 component", "2,0,2 norm", "5 integral", "0 integral", "- component"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_fallback_of_other_devices(text, dtype):
    module = importlib.import_module("eqk.spherical_harmonics")  # the package exports the function under that name
    x = torch.randn(6, 3).to(dtype)
    y = OP(x, text)
    g = torch.randn(y.shape).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    close(module._other_devices_forward(x, text), y, tolerance)
    close(module._other_devices_backward(x, g, text), BACKWARD(x, g, text), tolerance)


AXES = [
    [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 1e-30, 0], [1, 1, 0], [1, 0, 1],
    [0, 1, 1], [1e-160, 1, 0],
]  # fmt: skip


def test_axes_and_zero():
    """Polynomials have nothing special there: all three orders are finite, and e3nn's."""
    compare_derivatives(list(range(9)), torch.tensor(AXES), False, "component", TOLERANCE[torch.float64])


def test_axes_normalized():
    compare_derivatives(list(range(9)), torch.tensor(AXES[1:7] + AXES[8:]), True, "component", 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_normalized(dtype):
    """Values and gradients at zero are e3nn's and finite."""
    x = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    y = eqk.spherical_harmonics([0, 1, 2], x, True, "component")
    assert y.tolist() == [[1.0] + [0.0] * 8] * 2
    g = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, g)
    z = torch.zeros(2, 3, requires_grad=True)
    (theirs,) = torch.autograd.grad(e3nn.o3.spherical_harmonics([0, 1, 2], z, True, "component"), z, g.double())
    close(ours, theirs, TOLERANCE[dtype])


def test_zero_normalized_float16():
    """1e-12 is zero in float16: the bound of the norm is 2^-14 there, whose inverse is finite."""
    x = torch.zeros(2, 3, dtype=torch.float16)
    x[1] = torch.tensor([3.0, 0.0, -4.0]) * 2**-10
    x.requires_grad_()
    y = eqk.spherical_harmonics([0, 1, 2], x, True, "component")
    assert y[0].tolist() == [1.0] + [0.0] * 8
    close(y, e3nn.o3.spherical_harmonics([0, 1, 2], x.detach().double(), True, "component"), TOLERANCE[torch.float16])
    (gradient,) = torch.autograd.grad(y[0, :4].sum(), x)
    close(gradient, torch.tensor([[3**0.5 * 2**14] * 3, [0.0] * 3]), TOLERANCE[torch.float16])
    scripted = torch.jit.script(eqk.o3.SphericalHarmonics([0, 1, 2], True, "component"))
    assert torch.equal(scripted(x), y)


@pytest.mark.parametrize("ls", [[0], [1], [0, 1, 2], [3, 1, 3], [6]], ids=str)
@pytest.mark.parametrize("normalization", ["component", "norm"])
def test_gradcheck(ls, normalization):
    x = torch.randn(3, 3, requires_grad=True)

    def f(t):
        return eqk.spherical_harmonics(ls, t, False, normalization)

    def gradient(t, g):
        return torch.autograd.grad(f(t), t, g, create_graph=True)[0]

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True)
    g = torch.randn(3, sum(2 * l + 1 for l in ls), requires_grad=True)
    assert torch.autograd.gradgradcheck(gradient, (x, g), check_fwd_over_rev=True)


def test_fourth_order():
    x = torch.randn(2, 3)
    d = torch.randn(5, 200)

    def chain(f, t):
        t = t.clone().requires_grad_()
        out = f(t)
        for n in range(4):
            (out,) = torch.autograd.grad((out * d[n][: out.numel()].view_as(out)).sum(), t, create_graph=True)
        return out.detach()

    close(
        chain(lambda t: eqk.spherical_harmonics([2, 5], t, False), x),
        chain(lambda t: e3nn.o3.spherical_harmonics([2, 5], t, False), x),
        1e-12,
    )


@pytest.mark.parametrize("text", ["0,1,2,3 component", "2,0,2 norm", "0 integral", "- component"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(text, dtype):
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    torch.library.opcheck(OP.default, (x, text))
    g = torch.randn_like(OP(x, text)).detach().requires_grad_()
    torch.library.opcheck(BACKWARD.default, (x, g, text))


def test_func():
    ls, x, t = [0, 1, 2, 4], torch.randn(3), torch.randn(3)

    def ours(v):
        return eqk.spherical_harmonics(ls, v, False)

    def theirs(v):
        return reference.spherical_harmonics(ls, v.reshape(1, 3), "integral")[0]

    func = torch.func
    close(func.jacrev(ours)(x), func.jacrev(theirs)(x))
    close(func.jacfwd(ours)(x), func.jacfwd(theirs)(x))
    close(func.hessian(ours)(x), func.hessian(theirs)(x))
    close(func.jacrev(func.jacrev(func.jacfwd(ours)))(x), func.jacrev(func.jacrev(func.jacfwd(theirs)))(x))
    for a, b in zip(func.jvp(ours, (x,), (t,)), func.jvp(theirs, (x,), (t,)), strict=True):
        close(a, b)
    close(
        func.grad(lambda v: func.jvp(ours, (v,), (t,))[1].sum())(x),
        func.grad(lambda v: func.jvp(theirs, (v,), (t,))[1].sum())(x),
    )
    batch = torch.randn(4, 3, 5)
    close(
        func.vmap(func.grad(lambda v: ours(v).square().sum()), in_dims=2)(batch),
        func.vmap(func.vmap(func.grad(lambda v: theirs(v).square().sum())), in_dims=2)(batch),
    )


def test_vmap_over_nothing():
    for shape, dim in (((0, 2, 3), 0), ((2, 0, 3), 1), ((0, 3), 0)):
        for transform in (lambda f: f, torch.func.jacrev, torch.func.jacfwd):
            results = [
                torch.func.vmap(transform(f), in_dims=dim)(torch.zeros(shape))
                for f in (
                    lambda v: eqk.spherical_harmonics([0, 1], v, False),
                    lambda v: reference.spherical_harmonics(
                        [0, 1], v.reshape(v.shape[:-1].numel(), 3), "integral"
                    ).reshape(*v.shape[:-1], 4),
                )
            ]
            assert results[0].shape == results[1].shape
    assert torch.vmap(lambda v: eqk.spherical_harmonics([0, 1], v, True))(torch.zeros(0, 2, 3)).shape == (0, 2, 4)


def test_no_grad_inside_transforms():
    """What is constant to the inner level is so to the outer one, and a sum of tangents is not cut off from it."""
    x, t = torch.randn(3, 3), torch.randn(3, 3)
    results = []
    for f in (
        lambda v: eqk.spherical_harmonics([1, 2, 3], v, False),
        lambda v: reference.spherical_harmonics([1, 2, 3], v, "integral"),
    ):
        scale = torch.tensor(1.3, requires_grad=True)

        def energy(v, f=f, scale=scale):
            with torch.no_grad():
                target = f(scale * v)
            return ((f(scale * v) - 0.5 * target) ** 3).sum()

        value, pullback = torch.func.vjp(energy, x)
        (force,) = pullback(torch.ones(()))
        hvp = torch.func.jvp(torch.func.grad(energy), (x,), (t,))[1]
        nested = torch.func.jvp(lambda v: torch.func.jvp(torch.func.grad(energy), (v,), (t,))[1], (x,), (t,))[1]
        with torch.no_grad():
            assert not any(r.requires_grad for r in torch.func.jvp(energy, (x,), (t,)))
        results.append(
            [torch.autograd.grad((r * r).sum(), scale, retain_graph=True)[0] for r in (value, force, hvp, nested)]
        )
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-11)


def test_forward_ad():
    x, t = torch.randn(4, 3), torch.randn(4, 3)
    with torch.autograd.forward_ad.dual_level():
        y = eqk.spherical_harmonics([1, 3], torch.autograd.forward_ad.make_dual(x, t), True)
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    expected = torch.func.jvp(lambda v: e3nn.o3.spherical_harmonics([1, 3], v, True), (x,), (t,))[1]
    close(tangent, expected, 1e-12)


def test_compile():
    x = torch.randn(6, 3)

    def loss_gradient(v):
        v = v.detach().requires_grad_()
        y = eqk.spherical_harmonics("0e+1o+2e+3o", v, True, "component")
        return y.detach(), torch.autograd.grad((y**3).sum(), v)[0]

    def f(v):
        return eqk.spherical_harmonics([0, 1, 2, 3], v, True, "component").pow(3).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 11):
        x = torch.randn(rows, 3, requires_grad=True)
        close(compiled(x), f(x), 1e-12)
        close(torch.autograd.grad(compiled(x), x)[0], loss_gradient(x)[1], 1e-12)


def test_shapes_and_strides():
    ls = [0, 1, 2]
    base = torch.randn(7, 4, 6)
    views = (base[..., ::2], base[..., 3:], base[:, 1, :3], base.mT[:, :3].mT, base[0, 0, :3], base[:0, :, :3])
    for x in (*views, base.transpose(0, 1)[..., :3]):
        close(eqk.spherical_harmonics(ls, x, True), e3nn.o3.spherical_harmonics(ls, x, True))
    text = "0,1,2 integral"
    x, g = base[:, 0, ::2], torch.randn(7, 18)[:, ::2]
    close(BACKWARD(x, g, text), BACKWARD(x.contiguous(), g.contiguous(), text))
    wide = torch.randn(7, 12)[:, 3:]
    close(BACKWARD(x, wide, text), BACKWARD(x, wide.contiguous(), text))
    constant = torch.randn(1, 9).expand(7, 9)
    close(BACKWARD(x, constant, text), BACKWARD(x, constant.contiguous(), text))


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 255, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows(rows, dtype):
    """Whole and partial vectors, one block and several, alone or in other company: the same bits for each row."""
    x = torch.randn(rows, 3, dtype=dtype)
    for ls in ([0], [1], [2, 2], list(range(7))):
        text = f"{','.join(map(str, ls))} component"
        y = OP(x, text)
        g = torch.randn_like(y)
        gx = BACKWARD(x, g, text)
        assert y.shape == (rows, sum(2 * l + 1 for l in ls))
        for at in {0, rows // 2, rows - 1} if rows else ():
            assert torch.equal(OP(x[at : at + 1], text)[0], y[at])
            assert torch.equal(BACKWARD(x[at : at + 1], g[at : at + 1], text)[0], gx[at])


def test_irreps_and_module():
    x = torch.randn(5, 3)
    cases = [2, [0, 2, 2], "0e + 2x1o", "1e + 2e", e3nn.o3.Irreps("3x2e + 1o"), eqk.Irreps("0e+1o")]
    for l in cases:
        theirs_l = str(l) if isinstance(l, eqk.Irreps) else l
        for normalize in (True, False):
            module = eqk.o3.SphericalHarmonics(l, normalize, "norm")
            theirs = e3nn.o3.SphericalHarmonics(theirs_l, normalize, "norm")
            assert str(module.irreps_out) == str(theirs.irreps_out)
            assert str(module.irreps_in) == str(theirs.irreps_in)
            close(module(x), theirs(x), 1e-12)
            close(pickle.loads(pickle.dumps(module))(x), theirs(x), 1e-12)
            close(eqk.o3.spherical_harmonics(l, x, normalize, "norm"), theirs(x), 1e-12)
    assert str(eqk.o3.SphericalHarmonics([0, 1, 2], True, irreps_in="1e").irreps_out) == "1x0e+1x1e+1x2e"
    scripted = torch.jit.script(eqk.o3.SphericalHarmonics([0, 1, 2], True))
    x = torch.randn(2, 3, 3, requires_grad=True)
    expected = e3nn.o3.spherical_harmonics([0, 1, 2], x, True)
    close(scripted(x), expected)
    close(*(torch.autograd.grad((y**2 * torch.arange(9)).sum(), x)[0] for y in (scripted(x), expected)), 1e-12)


@pytest.mark.parametrize(
    ("l", "ls"),
    [
        (np.int64(2), 2),
        (np.arange(3), [0, 1, 2]),
        (torch.arange(3), [0, 1, 2]),
        (torch.tensor(2), 2),
        (range(3), [0, 1, 2]),
        ((l for l in (2, 0)), [2, 0]),
        (iter(["0e", "1o"]), [0, 1]),
        ([True], [1]),
        (True, 1),
        (e3nn.o3.Irrep("2e"), 2),
    ],
)
def test_what_stands_for_degrees(l, ls):
    x = torch.randn(3, 3)
    close(eqk.spherical_harmonics(l, x, False), e3nn.o3.spherical_harmonics(ls, x, False))


def test_equivariance():
    x, angle = torch.randn(6, 3), torch.randn(3)
    for l in (1, 4, 9):
        turned = eqk.spherical_harmonics(l, testing.rotate(x, "1o", angle), True)
        close(turned, testing.rotate(eqk.spherical_harmonics(l, x, True), [(1, (l, (-1) ** l))], angle), 1e-11)


def test_autocast():
    x = torch.randn(4, 3, dtype=torch.float32)
    text = "0,1,2 component"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert OP(x, text).dtype == torch.float32
        g = torch.randn(4, 9).to(torch.bfloat16)
        assert BACKWARD(x, g, text).dtype == torch.float32


def test_not_finite():
    """A row that is not finite spoils no other."""
    x = torch.randn(20, 3)
    y = eqk.spherical_harmonics([0, 1, 3], x, False)
    x[7, 1] = math.nan
    x[9, 0] = math.inf
    z = eqk.spherical_harmonics([0, 1, 3], x, False)
    keep = [n for n in range(20) if n not in (7, 9)]
    assert torch.equal(z[keep], y[keep])
    assert z[7].isnan().any()


@pytest.mark.parametrize(
    ("l", "kwargs", "error", "message"),
    [
        ([], {}, ValueError, "l: expected at least one degree"),
        (-1, {}, ValueError, "l: expected at least one degree, none negative"),
        (21, {}, NotImplementedError, "up to 20, got 21"),
        ("1e+1o", {}, ValueError, "irreps_out: expected parity"),
        ("2o", {}, ValueError, "irreps_out: expected parity"),
        ("1q", {}, ValueError, "expected irreps"),
        (None, {}, ValueError, "l: expected at least one degree, none negative, got None"),
        (1.0, {}, ValueError, "l: expected a degree, several, or irreps, got 1.0"),
        ([0, 1.0], {}, ValueError, "l: expected a degree, several, or irreps, got"),
        (
            torch.ones(2, 3),
            {},
            ValueError,
            r"l: expected a degree, several, or irreps, got a tensor of shape \[2, 3\]$",
        ),
        ([None], {}, ValueError, "l: expected a degree, several, or irreps, got"),
        (object, {}, ValueError, "l: expected a degree, several, or irreps, got"),
        (1, {"normalization": "sphere"}, AssertionError, "normalization: expected one of"),
        (1, {"x": torch.zeros(4, 2)}, RuntimeError, "x: expected shape"),
        (1, {"x": torch.zeros(())}, RuntimeError, "x: expected shape"),
        (1, {"x": torch.zeros(4, 3, dtype=torch.int64)}, RuntimeError, "x: expected dtype"),
    ],
    ids=str,
)
def test_bad_input(l, kwargs, error, message):
    call = {"x": torch.randn(4, 3), "normalize": False, **kwargs}
    with pytest.raises(error, match=message):
        eqk.spherical_harmonics(l, **call)


def test_bad_module_input():
    with pytest.raises(ValueError, match="irreps_in: expected a vector"):
        eqk.o3.SphericalHarmonics(2, True, irreps_in="2e")


@pytest.mark.parametrize(
    "text",
    ["", "component", "0,1", "0,,1 norm", ",0 norm", "0, norm", "21 norm", "-1 norm", "0 Norm", "0 norm ", "a norm",
     "999 norm", "0  norm", "1.0 norm", "00000001 norm"],
)  # fmt: skip
def test_bad_plan(text):
    with pytest.raises(ValueError, match="plan: expected"):
        OP(torch.randn(2, 3), text)
    with pytest.raises(ValueError, match="plan: expected"):
        BACKWARD(torch.randn(2, 3), torch.randn(2, 1), text)


def test_bad_plan_of_odd_characters():
    """Not cut within a character, nor at a NUL, which ends the text of an error."""
    for text in ("0," + "é" * 60 + " component", "0," + "x" + "é" * 60 + " component", "0,\x001 component"):
        with pytest.raises(ValueError, match=r"plan: expected degrees .* separated by commas, found '0,.*'$"):
            OP(torch.zeros(1, 3), text)


def test_rows_without_columns():
    x = torch.zeros(1, 3).expand(2**40, 3)
    assert OP(x, "- component").shape == (2**40, 0)


@pytest.mark.parametrize(
    ("x", "g", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 4), r"x: expected shape \[rows, 3\]"),
        (torch.zeros(3), torch.zeros(4, 4), r"x: expected shape \[rows, 3\]"),
        (torch.zeros(4, 3), torch.zeros(4, 3), r"g: expected shape \[4, 4\], got \[4, 3\]"),
        (torch.zeros(4, 3), torch.zeros(5, 4), r"g: expected shape \[4, 4\], got \[5, 4\]"),
        (torch.zeros(4, 3), torch.zeros(4, 4, dtype=torch.float16), "g: expected dtype"),
        (torch.zeros(4, 3, dtype=torch.complex128), torch.zeros(4, 4), "x: expected dtype"),
    ],
)
def test_bad_backward_input(x, g, message):
    with pytest.raises(RuntimeError, match=message):
        BACKWARD(x, g, "0,1 component")
