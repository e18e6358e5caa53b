"""Every path of Clebsch-Gordan products, through products on the sphere, against Wigner 3j symbols and e3nn."""

import itertools

import pytest
import torch
from test_tensor_product import DTYPES, check_differentiation, compare

import eqk
from eqk import tensor_product_by_grids, tensor_product_paths
from eqk.tensor_product_by_grids import IRREP_NORMALIZATIONS
from eqk.testing import assert_close, relative_error, rotate


def by_symbols(lmax1, lmax2, lmax_out):
    """Path by path, not normalised."""

    def product(x, y):
        parts = [
            torch.einsum(
                "zic,zjc,ijk->zkc",
                x[:, l1 * l1 : (l1 + 1) ** 2],
                y[:, l2 * l2 : (l2 + 1) ** 2],
                eqk.wigner_3j(l1, l2, l3, dtype=torch.float64),
            )
            for l1, l2, l3 in tensor_product_paths(lmax1, lmax2, lmax_out)
        ]
        return torch.cat(parts, 1)

    return product


def operands_of(lmax1, lmax2, generator, channels=3, rows=3):
    """Signed, with a scale for each row."""
    scales = 10 ** (2 * torch.rand(2, rows, 1, 1, generator=generator) - 1)
    shapes = [(rows, (lmax + 1) ** 2, channels) for lmax in (lmax1, lmax2)]
    return [torch.randn(shape, generator=generator) * s for shape, s in zip(shapes, scales, strict=True)]


@pytest.mark.parametrize("lmaxes", [(0, 0, 0), (1, 1, 2), (4, 4, 8), (2, 4, 3), (4, 0, 4), (3, 2, 1)], ids=str)
def test_values_and_gradients(lmaxes, generator):
    """To second order against Wigner 3j symbols, in both dtypes."""
    operands = operands_of(*lmaxes[:2], generator)
    compare(
        lmaxes,
        operands,
        generator,
        (torch.float64, torch.float32),
        2,
        by_symbols(*lmaxes),
        lambda x, y: tensor_product_by_grids(x, y, lmaxes[2], irrep_normalization="none"),
    )


@pytest.mark.parametrize("normalization", IRREP_NORMALIZATIONS)
def test_every_path(normalization, generator):
    """To degree 4, each apart: none is lost in the rounding errors of a larger one."""
    lmax = 4
    x, y = (t.double() for t in operands_of(lmax, lmax, generator))
    paths = tensor_product_paths(lmax, lmax, 2 * lmax)
    widths = [2 * l3 + 1 for _, _, l3 in paths]
    assert sum(widths) == (lmax + 1) ** 4
    assert len(set(paths)) == len(paths) == 85
    got = tensor_product_by_grids(x, y, irrep_normalization=normalization).split(widths, 1)
    expected = by_symbols(lmax, lmax, 2 * lmax)(x, y).split(widths, 1)
    for (l1, l2, l3), a, b in zip(paths, got, expected, strict=True):
        factor = {"component": 2 * l3 + 1, "norm": (2 * l1 + 1) * (2 * l2 + 1), "none": 1}[normalization]
        assert relative_error(a, factor**0.5 * b) < 1e-12, (l1, l2, l3)


@pytest.mark.parametrize("normalization", ["component", "norm"])
def test_equals_e3nn(normalization, generator, float64_default):
    """The columns of FullTensorProduct, sorted as it sorts them; e3nn's x and y have natural parities."""
    from e3nn import o3

    lmax = 4
    irreps = o3.Irreps.spherical_harmonics(lmax)
    module = o3.FullTensorProduct(irreps, irreps, irrep_normalization=normalization)
    x, y = (torch.randn(3, (lmax + 1) ** 2, 1, generator=generator, requires_grad=True) for _ in range(2))
    ours = tensor_product_by_grids(x, y, irrep_normalization=normalization)[..., 0]
    paths = tensor_product_paths(lmax, lmax, 2 * lmax)
    parts = dict(zip(paths, ours.split([2 * l3 + 1 for *_, l3 in paths], 1), strict=True))
    sorted_paths = sorted(module.instructions, key=lambda ins: ins.i_out)
    ours = torch.cat([parts[ins.i_in1, ins.i_in2, module.irreps_out[ins.i_out].ir.l] for ins in sorted_paths], 1)
    theirs = module(x[..., 0], y[..., 0])
    assert_close(ours, theirs)
    g = torch.randn(theirs.shape, generator=generator)
    for got, want in zip(*(torch.autograd.grad(out, (x, y), g) for out in (ours, theirs)), strict=True):
        assert_close(got, want, 1)


def test_equivariance(generator):
    """Under a rotation with inversion: x and y of natural parities give those of each path."""
    x, y = (t.double() for t in operands_of(3, 2, generator))
    irreps = [[(3, (l, (-1) ** l)) for l in range(lmax + 1)] for lmax in (3, 2)]
    irreps.append([(3, (l3, (-1) ** (l1 + l2))) for l1, l2, l3 in tensor_product_paths(3, 2, 5)])
    axis = torch.randn(3, generator=generator, dtype=torch.float64)

    def moved(t, n):
        return rotate(t.flatten(-2), irreps[n], axis, "ir_mul", True).reshape(t.shape)

    assert_close(tensor_product_by_grids(moved(x, 0), moved(y, 1)), moved(tensor_product_by_grids(x, y), 2))


def test_unit_variance(generator):
    x, y = (torch.randn(4000, 9, 2, generator=generator) for _ in range(2))
    widths = [2 * l3 + 1 for *_, l3 in tensor_product_paths(2, 2, 4)]
    for part in tensor_product_by_grids(x, y).split(widths, 1):
        assert abs(float(part.square().mean()) - 1) < 0.12


def test_broadcasting(generator):
    """Leading dimensions, single channels, no rows, no channels, degree 0, more degrees than there are."""
    x, y = torch.randn(4, 1, 9, 3, generator=generator), torch.randn(6, 4, 1, generator=generator)
    got = tensor_product_by_grids(x, y, 2)
    dim = sum(2 * l3 + 1 for *_, l3 in tensor_product_paths(2, 1, 2))
    assert got.shape == (4, 6, dim, 3)
    assert_close(got, tensor_product_by_grids(x.expand(4, 6, 9, 3), y.expand(4, 6, 4, 3), 2))
    assert_close(tensor_product_by_grids(x[0, 0], y[0], 2), got[0, 0])
    assert tensor_product_by_grids(x[:0], y).shape == (0, 6, 36, 3)
    assert tensor_product_by_grids(x[..., :0], y).shape == (4, 6, 36, 0)
    assert torch.equal(tensor_product_by_grids(x, y, 9), tensor_product_by_grids(x, y))
    scalars = tensor_product_by_grids(x[..., :1, :], y[:, :1])
    assert_close(scalars, x[..., :1, :] * y[:, :1])


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_16_bit(dtype, generator):
    x, y = (torch.randn(3, 9, 2, generator=generator).to(dtype) for _ in range(2))
    got = tensor_product_by_grids(x, y)
    assert got.dtype == dtype
    assert_close(got, tensor_product_by_grids(x.double(), y.double()))


def test_differentiation(generator):
    """Forward and reverse mode of both orders; torch.func; torch.compile, autocast, meta and the reference."""
    x, y = (torch.randn(2, n, 2, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 9))
    f = tensor_product_by_grids
    check_differentiation(f, x, y)
    x, y = x.detach().float(), y.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = f(x, y.bfloat16())
    assert_close(mixed, f(x, y.bfloat16().float()))
    assert f(x.to("meta"), y.to("meta")).shape == (2, 36, 2)
    with eqk.dispatch.use_backend("reference"):
        dense = f(x, y)
    assert_close(f(x, y), dense)


def test_bad_arguments():
    x = torch.zeros(5, 9, 3)
    for message, error, arguments in (
        ("x: expected a tensor, got 1", TypeError, (1, x)),
        (
            r"x: expected shape \[..., \(lmax \+ 1\)\^2, channels\] with lmax up to 20, got \(5, 8, 3\)",
            RuntimeError,
            (x[:, 1:], x),
        ),
        ("y: expected at least 2 dimensions", RuntimeError, (x, x[0, 0])),
        ("y: expected a dense tensor", RuntimeError, (x, x.to_sparse())),
        ("y: expected 3 channels as x has, or 1, got 2", RuntimeError, (x, x[..., :2])),
        ("x, y: expected leading dimensions that broadcast", RuntimeError, (x, x[:3])),
        ("lmax_out: expected a degree from 0 to 20, got -1", ValueError, (x, x, -1)),
        ("lmax_out: expected a degree from 0 to 20, got 24", ValueError, (torch.zeros(1, 169, 1),) * 2),
        ("y: expected dtype", RuntimeError, (x, x.double())),
        ("x: expected dtype", RuntimeError, (x.long(), x.long())),
    ):
        with pytest.raises(error, match=message):
            tensor_product_by_grids(*arguments)
    with pytest.raises(ValueError, match="irrep_normalization: expected one of component, norm, none, got 'x'"):
        tensor_product_by_grids(x, x, irrep_normalization="x")


def test_paths():
    assert tensor_product_paths(1, 1, 2) == [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, 1, 2)]
    for lmaxes in itertools.product(range(3), repeat=3):
        paths = tensor_product_paths(*lmaxes)
        assert all(abs(a - b) <= c <= a + b and c <= lmaxes[2] for a, b, c in paths)
