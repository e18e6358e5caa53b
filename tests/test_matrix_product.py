"""Products of matrices as products of irreps, against Wigner 3j and 6j symbols."""

import itertools

import pytest
import torch
from test_tensor_product import check_differentiation, compare

import eqk
from eqk import matrix_product
from eqk.matrix_product import matrix_coefficient
from eqk.testing import assert_close, relative_error, rotate


def symbol(*degrees):
    return eqk.wigner_3j(*degrees, dtype=torch.float64)


def is_triangle(a, b, c):
    return abs(a - b) <= c <= a + b


def by_symbols(lmax1, lmax2, lmax_out, degree):
    """Path by path, with its 6j symbol."""

    def product(x, y):
        out = [x.new_zeros(x.shape[0], 2 * l + 1, 1) for l in range(lmax_out + 1)]
        for l1, l2, l3 in itertools.product(range(lmax1 + 1), range(lmax2 + 1), range(lmax_out + 1)):
            if is_triangle(l1, l2, l3):
                u, v = x[:, l1 * l1 : (l1 + 1) ** 2], y[:, l2 * l2 : (l2 + 1) ** 2]
                path = torch.einsum("zic,zjc,ijk->zkc", u, v, symbol(l1, l2, l3).to(x))
                out[l3] = out[l3] + matrix_coefficient(l1, l2, l3, degree) * path
        return torch.cat([part.expand(*part.shape[:2], max(x.shape[2], y.shape[2])) for part in out], 1)

    return product


def random_signals(lmaxes, generator, rows=3, channels=(2, 2)):
    """Signed, with a scale for each row."""
    scales = 10 ** (2 * torch.rand(2, rows, 1, 1, generator=generator) - 1)
    pairs = zip(lmaxes, channels, scales, strict=False)
    return [torch.randn(rows, (lmax + 1) ** 2, n, generator=generator) * s for lmax, n, s in pairs]


@pytest.mark.parametrize(
    ("lmaxes", "degree"),
    [((0, 0, 0), None), ((1, 1, 1), None), ((3, 3, 3), None), ((2, 3, 5), None), ((3, 0, 3), None), ((2, 2, 2), 1),
     ((1, 2, 3), 5), ((2, 1, 6), None), ((4, 3, 0), 2)],
    ids=str,
)  # fmt: skip
def test_values_and_gradients(lmaxes, degree, generator):
    """To second order against 3j and 6j symbols, in both dtypes; for y of one channel too."""
    used = (lmaxes[0] + lmaxes[1] + 1) // 2 if degree is None else degree
    for channels in ((2, 2), (2, 1)):
        compare(
            (lmaxes, degree),
            random_signals(lmaxes, generator, channels=channels),
            generator,
            (torch.float64, torch.float32),
            2,
            by_symbols(*lmaxes, used),
            lambda x, y: matrix_product(x, y, lmaxes[2], matrix_degree=degree, normalization="none"),
        )


@pytest.mark.parametrize("degree", [1, 2, 3, 6])
def test_coefficients(degree):
    """The closed form against the sums themselves, dense, of every path; zeros above 2 t."""
    for l in itertools.product(range(min(2 * degree, 6) + 1), repeat=3):
        if is_triangle(*l):
            matrices = [(2 * n + 1) ** 0.5 * symbol(degree, degree, n) for n in l]
            total = torch.einsum("abi,bcj,ack->ijk", *matrices)
            assert (total - matrix_coefficient(*l, degree) * symbol(*l)).abs().max() < 1e-13
    assert matrix_coefficient(2 * degree + 1, 1, 2 * degree, degree) == 0


def vanishing(lmax, degree):
    """Sorted paths to a degree that a triangle allows and whose coefficient is 0."""
    triples = itertools.combinations_with_replacement(range(lmax + 1), 3)
    return [l for l in triples if is_triangle(*l) and matrix_coefficient(*l, degree) == 0]


def test_paths_that_vanish(generator):
    """With the default for L x L -> L none below L = 6; there (3, 5, 6), by the result as by the 6j symbol."""
    for lmax in range(1, 6):
        assert vanishing(lmax, lmax) == []
        smallest = min(
            abs(matrix_coefficient(*l, lmax)) for l in itertools.product(range(lmax + 1), repeat=3) if is_triangle(*l)
        )
        assert smallest > 0.06
    assert vanishing(6, 6) == [(3, 5, 6)]
    assert vanishing(6, 7) == []
    for degree, zero in ((6, True), (7, False)):
        for l1, l2, l3 in itertools.permutations((3, 5, 6)):
            x, y = (torch.zeros((n + 1) ** 2, 1, dtype=torch.float64) for n in (l1, l2))
            for t in (x, y):
                last = round(len(t) ** 0.5) - 1
                t[last * last :] = torch.randn(2 * last + 1, 1, generator=generator, dtype=torch.float64)
            z = matrix_product(x, y, 6, matrix_degree=degree, normalization="none")[l3 * l3 : (l3 + 1) ** 2]
            assert (float(z.abs().max()) < 1e-13) == zero


def test_equivariance(generator):
    """Under a rotation; and an inversion, where all degrees have one parity, which the result multiplies."""
    x, y = (t.double() for t in random_signals((3, 2), generator))
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    for p1, p2 in itertools.product((1, -1), repeat=2):
        irreps = [[(2, (l, p)) for l in range(lmax + 1)] for lmax, p in ((3, p1), (2, p2), (4, p1 * p2))]

        def moved(t, n, irreps=irreps):
            return rotate(t.flatten(-2), irreps[n], axis, "ir_mul", True).reshape(t.shape)

        assert_close(matrix_product(moved(x, 0), moved(y, 1), 4), moved(matrix_product(x, y, 4), 2))


def test_matrices_associate(generator):
    """(x y) z = x (y z) while no degree is cut off: it is a product of matrices of degree 2."""
    x, y, z = (torch.randn(3, 25, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    options = dict(lmax_out=4, matrix_degree=2, normalization="none")
    left = matrix_product(matrix_product(x, y, **options), z, **options)
    assert_close(left, matrix_product(x, matrix_product(y, z, **options), **options))
    one = torch.zeros(25, 1, dtype=torch.float64)
    one[0] = 5**0.5  # the matrix of degree 0 is the unit matrix / sqrt(2 t + 1)
    assert_close(matrix_product(x, one, **options), x)
    assert_close(matrix_product(one, x, **options), x)


def test_unit_variance(generator):
    x, y = (torch.randn(3000, n, 4, generator=generator) for n in (16, 9))
    z = matrix_product(x, y, 6)
    for l in range(7):
        variance = float(z[:, l * l : (l + 1) ** 2].square().mean())
        assert abs(variance - (l <= 5)) < 0.12, (l, variance)


def test_broadcasting(generator):
    """Leading dimensions, single channels, no rows, no channels; the default degree."""
    x, y = torch.randn(4, 1, 9, 3, generator=generator), torch.randn(6, 4, 1, generator=generator)
    got = matrix_product(x, y)
    assert got.shape == (4, 6, 9, 3)
    assert got.is_contiguous()
    assert_close(got, matrix_product(x.expand(4, 6, 9, 3), y.expand(4, 6, 4, 3), 2))
    assert_close(got, matrix_product(x, y, matrix_degree=2))
    assert_close(matrix_product(x[0, 0], y[0]), got[0, 0])
    assert matrix_product(y[0], x[0, 0], 2).shape == (9, 3)
    assert matrix_product(x[:0], y).shape == (0, 6, 9, 3)
    assert matrix_product(x[..., :0], y).shape == (4, 6, 9, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype, generator):
    x, y = (torch.randn(3, 9, 2, generator=generator).to(dtype) for _ in range(2))
    got = matrix_product(x, y)
    assert got.dtype == dtype
    assert relative_error(got, matrix_product(x.double(), y.double())) < 8 * torch.finfo(dtype).eps
    x, y = x.float(), y.float()
    with torch.autocast("cpu", dtype):
        assert matrix_product(x, y).dtype == dtype


def test_differentiation(generator):
    """Forward and reverse mode of both orders, torch.func, torch.compile and meta."""
    x, y = (torch.randn(2, n, 2, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 9))
    f = matrix_product
    check_differentiation(f, x, y)
    assert f(x.to("meta"), y.to("meta"), 3).shape == (2, 16, 2)


def test_bad_arguments():
    x = torch.zeros(5, 9, 3)
    for message, error, arguments in (
        ("x: expected a tensor, got 1", TypeError, (1, x)),
        ("x: expected a floating dtype, got torch.int64", RuntimeError, (x.long(), x)),
        ("y: expected dtype torch.float32 as x has, got torch.float64", RuntimeError, (x, x.double())),
        ("y: expected device cpu as x has, got meta", RuntimeError, (x, x.to("meta"))),
        (r"x: expected shape \[..., \(lmax \+ 1\)\^2, channels\]", RuntimeError, (x[:, 1:], x)),
        ("y: expected at least 2 dimensions", RuntimeError, (x, x[0, 0])),
        ("y: expected a dense tensor", RuntimeError, (x, x.to_sparse())),
        ("y: expected 3 channels as x has, or 1, got 2", RuntimeError, (x, x[..., :2])),
        ("x, y: expected leading dimensions that broadcast", RuntimeError, (x, x[:3])),
        ("lmax_out: expected a degree from 0 to 20, got 21", ValueError, (x, x, 21)),
    ):
        with pytest.raises(error, match=message):
            matrix_product(*arguments)
    for message, options in (
        ("normalization: expected one of component, none, got 'norm'", dict(normalization="norm")),
        ("matrix_degree: expected a degree from 0 to 20, got -1", dict(matrix_degree=-1)),
        (
            "matrix_degree: expected at least 2 for degrees up to 3, got 1, for which the paths of degrees above 2 vanish",
            dict(matrix_degree=1, lmax_out=3),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            matrix_product(x, x, **options)
    assert matrix_product(x, x, 2, matrix_degree=1).shape == x.shape
