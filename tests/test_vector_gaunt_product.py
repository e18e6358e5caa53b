"""Products of signals valued in irreps against values on a grid, 9j symbols and the Poisson bracket."""

import itertools
import math

import pytest
import torch
from sympy.physics import wigner
from test_tensor_product import DTYPES, cast, check_differentiation, compare

import eqk
from eqk import TensorHarmonics, vector_gaunt_product
from eqk._racah import wigner_6j, wigner_9j
from eqk.gaunt_plan import gaunt_coefficient
from eqk.testing import assert_close, relative_error, rotate
from eqk.vector_gaunt_product import generalized_gaunt_coefficient

COUPLINGS = [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0), (1, 1, 1)]
TENSORS = [(1, 1, 2), (2, 1, 1), (2, 2, 0), (2, 2, 2), (1, 2, 3)]


def is_triangle(a, b, c):
    return abs(a - b) <= c <= a + b


def symbol(*degrees):
    return eqk.wigner_3j(*degrees, dtype=torch.float64)


def points_of(degree):
    """Points of a grid that is exact to this degree, [points, 3], and their weights."""
    grid = eqk.s2_grid(eqk.exact_resolution(degree), dtype=torch.float64)
    return grid.positions.flatten(0, 1), grid.weights.repeat_interleave(len(grid.alphas))


def values_of(harmonics, points):
    """Of all components at points: [points, 2 s + 1, dim], from the definition."""
    columns = []
    for j, l in harmonics.terms:
        y = eqk.spherical_harmonics(l, points, False, "integral")
        columns.append(math.sqrt(2 * j + 1) * torch.einsum("pl,lsj->psj", y, symbol(l, harmonics.s, j)))
    return torch.cat(columns, 2)


def on_grid(h1, h2, h3):
    """The product by values on a grid of whole tensors."""
    points, weights = points_of(h1.lmax + h2.lmax + h3.lmax)
    of_x, of_y, of_z = (values_of(h, points) for h in (h1, h2, h3))
    coupling = symbol(h1.s, h2.s, h3.s)

    def product(x, y):
        f, g = torch.einsum("pai,zic->zpac", of_x, x), torch.einsum("pbi,zic->zpbc", of_y, y)
        return torch.einsum("p,pki,abk,zpac,zpbc->zic", weights, of_z, coupling, f, g)

    return product


def random_harmonics(s, lmax, rng):
    """Most of the terms to a degree, in any order."""
    terms = TensorHarmonics.complete(s, lmax).terms
    return TensorHarmonics(s, tuple(rng.sample(terms, max(1, len(terms) - 2))))


def signals(harmonics, shape, generator):
    """Signed, [..., dim, channels], with a scale for each row."""
    *leading, channels = shape
    scale = 10 ** (2 * torch.rand(*leading, 1, 1, generator=generator) - 1)
    return torch.randn(*leading, harmonics.dim, channels, generator=generator) * scale


def test_symbols_equal_sympy(rng):
    """6j and 9j symbols of random degrees, those that vanish by accident too."""

    def expected(symbol, *degrees):
        try:
            return float(symbol(*degrees))
        except ValueError as error:
            if "triangle relation" not in str(error):
                raise
            return 0.0

    for ours, theirs, count, largest, enough in (
        (wigner_6j, wigner.wigner_6j, 6, 9, 60),
        (wigner_9j, wigner.wigner_9j, 9, 3, 20),
    ):
        found = 0
        while found < enough:
            degrees = [rng.randint(0, largest) for _ in range(count)]
            value = expected(theirs, *degrees)
            assert abs(ours(*degrees) - value) < 1e-14
            found += value != 0
    assert wigner_6j(1, 1, 3, 1, 1, 1) == wigner_9j(1, 1, 3, 1, 1, 1, 1, 1, 1) == 0
    # (l1 l2 l3; l l l) of large degrees, with factorials that no float holds: the sum rule over one of them.
    total = sum((2 * x + 1) * 41 * wigner_6j(20, 20, x, 20, 20, 20) ** 2 for x in range(41))
    assert abs(total - 1) < 1e-13


@pytest.mark.parametrize("s", COUPLINGS + TENSORS, ids=str)
def test_values_and_gradients(s, rng, generator):
    """Of random terms, to second order, against whole tensors on a grid; in both dtypes."""
    h1, h2, h3 = (random_harmonics(n, lmax, rng) for n, lmax in zip(s, (2, 3, 3), strict=True))
    operands = [signals(h1, (3, 2), generator), signals(h2, (3, 2), generator)]
    # Of terms that couple with none the product is zero, and the grid's is its rounding errors.
    x, y = (t.double() for t in operands)
    while on_grid(h1, h2, h3)(x, y).abs().max() < 1e-9 * x.abs().max() * y.abs().max():
        h3 = random_harmonics(s[2], 3, rng)
    compare(
        (h1, h2, h3),
        operands,
        generator,
        (torch.float64, torch.float32),
        2,
        on_grid(h1, h2, h3),
        lambda x, y: vector_gaunt_product(x, y, h1, h2, h3),
    )


@pytest.mark.parametrize("s", COUPLINGS + TENSORS[:2], ids=str)
def test_every_path(s, generator):
    """Each pair of terms with j up to 3 alone: the closed form with a 9j symbol times the Wigner 3j symbol of the j."""
    jmax = 3
    terms = [[(j, l) for j in range(jmax + 1) for l in range(abs(j - n), j + n + 1)] for n in s]
    out = TensorHarmonics(s[2], terms[2])
    for (j1, l1), (j2, l2) in itertools.product(*terms[:2]):
        x, y = (torch.randn(2, 2 * j + 1, 1, generator=generator, dtype=torch.float64) for j in (j1, j2))
        got = vector_gaunt_product(x, y, TensorHarmonics(s[0], [(j1, l1)]), TensorHarmonics(s[1], [(j2, l2)]), out)
        expected = []
        for j3, l3 in terms[2]:
            part = torch.zeros(2, 2 * j3 + 1, 1, dtype=torch.float64)
            if is_triangle(j1, j2, j3):
                coefficient = generalized_gaunt_coefficient(s, (l1, l2, l3), (j1, j2, j3))
                part = coefficient * torch.einsum("zic,zjc,ijk->zkc", x, y, symbol(j1, j2, j3))
            expected.append(part)
        assert (got - torch.cat(expected, 1)).abs().max() < 1e-12 * float(x.abs().max() * y.abs().max())


def test_couplings(generator):
    """What the symbols of values are: f g, F . G / sqrt(3), F x G / sqrt(6), f G / sqrt(3)."""
    f, g = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2))

    def coupled(x, y, *s):
        return torch.einsum("a,b,abc->c", x, y, symbol(*s))

    assert_close(coupled(f, g, 1, 1, 0), (f @ g)[None] / math.sqrt(3))
    assert_close(coupled(f, g, 1, 1, 1), torch.linalg.cross(f, g) / math.sqrt(6))
    assert_close(coupled(f[:1], g, 0, 1, 1), f[0] * g / math.sqrt(3))


def test_scalars_are_the_gaunt_product(generator):
    h = [TensorHarmonics.complete(0, lmax) for lmax in (2, 3, 4)]
    x, y = (signals(harmonics, (4, 5), generator) for harmonics in h[:2])
    for normalization in ("integral", "component"):
        expected = eqk.gaunt_product(x, y, 4, normalization=normalization)
        assert_close(vector_gaunt_product(x, y, *h, normalization=normalization), expected)


@pytest.mark.parametrize("s", COUPLINGS + TENSORS, ids=str)
def test_equivariance(s, rng, generator):
    """Under a random rotation with inversion, values of any parity."""
    harmonics = [random_harmonics(n, lmax, rng) for n, lmax in zip(s, (3, 2, 3), strict=True)]
    parities = rng.choice((1, -1)), rng.choice((1, -1))
    irreps = [h.irreps(p, 2) for h, p in zip(harmonics, (*parities, math.prod(parities)), strict=True)]
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    x, y = (signals(h, (3, 2), generator).double() for h in harmonics[:2])

    def moved(t, irreps):
        return rotate(t.flatten(-2), irreps, axis, "ir_mul", True).reshape(t.shape)

    out = vector_gaunt_product(x, y, *harmonics)
    assert_close(vector_gaunt_product(moved(x, irreps[0]), moved(y, irreps[1]), *harmonics), moved(out, irreps[2]))
    assert out.abs().max() > 0


@pytest.mark.parametrize("s", COUPLINGS + TENSORS[:2], ids=str)
def test_unit_variance(s, generator):
    """By sampling, of each term that a path reaches."""
    h = [TensorHarmonics.complete(n, lmax) for n, lmax in zip(s, (2, 2, 3), strict=True)]
    x, y = (torch.randn(2000, harmonics.dim, 4, generator=generator) for harmonics in h[:2])
    z = vector_gaunt_product(x, y, *h, normalization="component")
    reached = {
        (j3, l3)
        for (j1, l1), (j2, l2), (j3, l3) in itertools.product(*(harmonics.terms for harmonics in h))
        if abs(generalized_gaunt_coefficient(s, (l1, l2, l3), (j1, j2, j3))) > 1e-12
    }
    assert len(reached) >= len(h[2].terms) - 1  # f g of pseudoscalars has no cross product
    for term, part in zip(h[2].terms, z.split([2 * j + 1 for j, _ in h[2].terms], 1), strict=True):
        assert abs(float(part.square().mean()) - (term in reached)) < 0.12, term


# The product of scalars and the bracket have the same paths.


@pytest.mark.parametrize("s", [(1, 0, 1), (1, 1, 0), (1, 1, 1)], ids=str)
def test_odd_sums(s):
    """Every triple of an odd sum that the bracket couples, here to degree 3, has a path of vectors; so do even ones."""
    odd = 0
    for j in itertools.product(range(4), repeat=3):
        if not is_triangle(*j):
            continue
        degrees = itertools.product(*[range(abs(a - b), a + b + 1) for a, b in zip(j, s, strict=True)])
        largest = max(abs(generalized_gaunt_coefficient(s, l, j)) for l in degrees)
        if sum(j) % 2:
            odd += 1
            assert gaunt_coefficient(*j) > 0
            assert largest > 0.05
        elif s != (1, 1, 1) or any(j):
            assert largest > 0.05
    assert odd == 11


def gradients_of(lmax):
    """Maps of components of f to those of r x grad f and of grad f, by gradients of harmonics at points."""
    toroidal = TensorHarmonics(1, [(l, l) for l in range(1, lmax + 1)])
    spheroidal = TensorHarmonics(1, [(l, k) for l in range(1, lmax + 1) for k in (l - 1, l + 1)])
    points, weights = points_of(2 * lmax + 2)
    leaf = points.clone().requires_grad_()
    y = eqk.spherical_harmonics(list(range(lmax + 1)), leaf, True, "integral")
    gradients = torch.stack([torch.autograd.grad(y[:, n].sum(), leaf, retain_graph=True)[0] for n in range(y.shape[1])], 2)  # fmt: skip
    curls = torch.linalg.cross(points[:, :, None].expand_as(gradients), gradients, dim=1)
    result = []
    for harmonics, fields in ((toroidal, curls), (spheroidal, gradients)):
        values = values_of(harmonics, points)
        matrix = torch.einsum("p,pai,pan->in", weights, values, fields)
        assert_close(values @ matrix, fields)  # no other term
        result.append((harmonics, matrix))
    return result


def test_bracket_is_a_dot_product(generator):
    """{f, g} = r . (grad f x grad g) = (r x grad f) . grad g: in vectors the route (1, 1, 0), times sqrt(3)."""
    lmax = 3
    (h1, toroidal), (h2, gradient) = gradients_of(lmax)
    x, y = (torch.randn(4, 16, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    out = TensorHarmonics.complete(0, lmax)
    got = math.sqrt(3) * vector_gaunt_product(toroidal @ x, gradient @ y, h1, h2, out)
    assert_close(got, eqk.gaunt_product(x, y, kind="odd"))
    # r x grad Y_lm is one harmonic, l = j, of norm sqrt(l (l + 1)).
    for l in range(1, lmax + 1):
        block = toroidal[l * l - 1 : (l + 1) ** 2 - 1, l * l : (l + 1) ** 2]
        assert_close(block.abs(), math.sqrt(l * (l + 1)) * torch.eye(2 * l + 1, dtype=torch.float64))


@pytest.mark.parametrize("lmax", [1, 2, 3, 4, 6, 8])
def test_bracket_is_cheaper_than_vectors(lmax):
    """L x L -> L, odd paths, per channel: fields, points and multiply-adds of separable transforms and at the points."""

    def cost(fields, at_points):
        """fields: their degrees, those of x, y and the result."""
        rings, angles = eqk.exact_resolution(max(fields[0]) + max(fields[1]) + max(fields[2]))
        transforms = sum(rings * (l + 1) ** 2 + rings * angles * (2 * l + 1) for group in fields for l in group)
        return rings * angles, transforms + at_points * rings * angles

    bracket = [[lmax] * 2, [lmax] * 2, [lmax]]  # derivatives along two tangents
    vectors = [[lmax] * 3, [lmax + 1] * 3, [lmax]]  # r x grad f, of l = j, and grad g, of l up to j + 1
    (points, count), (more_points, more) = cost(bracket, 2), cost(vectors, 3)
    assert sum(map(len, bracket)) == 5
    assert sum(map(len, vectors)) == 7
    assert points < more_points
    assert count < 0.68 * more  # without the coefficients that take vectors to their components and back


# What users do.


def test_broadcasting(generator):
    """Leading dimensions, single channels, no rows, no channels, degree 0, no terms."""
    h, out = TensorHarmonics.complete(1, 2), TensorHarmonics.complete(1, 3)
    x, y = signals(h, (4, 1, 3), generator), signals(h, (6, 1), generator)
    got = vector_gaunt_product(x, y, h, h, out)
    assert got.shape == (4, 6, out.dim, 3)
    whole = [t.expand(4, 6, h.dim, 3) for t in (x, y)]
    assert_close(got, vector_gaunt_product(*whole, h, h, out))
    assert_close(vector_gaunt_product(y, x, h, h, out), -got)  # the cross product is antisymmetric
    assert_close(vector_gaunt_product(x[0, 0], y[0], h, h, out), got[0, 0])
    assert vector_gaunt_product(x[:0], y, h, h, out).shape == (0, 6, out.dim, 3)
    assert vector_gaunt_product(x[..., :0], y, h, h, out).shape == (4, 6, out.dim, 0)
    nothing = TensorHarmonics(1, ())
    assert nothing.dim == nothing.lmax == 0
    assert vector_gaunt_product(x, y, h, h, nothing).shape == (4, 6, 0, 3)
    assert vector_gaunt_product(x[..., :0, :], y, nothing, h, out).eq(0).all()
    constant = TensorHarmonics.complete(1, 0)  # a constant vector, v / sqrt(4 pi)
    v, w = (torch.randn(3, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    dot = vector_gaunt_product(v, w, constant, constant, TensorHarmonics.complete(0, 0))
    assert_close(dot, (v * w).sum(0, keepdim=True) / math.sqrt(3 * 4 * math.pi))


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_other_dtypes(dtype, generator):
    h = TensorHarmonics.complete(1, 2)
    x, y = (cast([torch.randn(3, h.dim, 2, generator=generator)], dtype)[0] for _ in range(2))
    got = vector_gaunt_product(x, y, h, h, h)
    assert got.dtype == dtype
    wide = vector_gaunt_product(x.double(), y.double(), h, h, h)
    # Components and their products are stored in that dtype.
    assert relative_error(got, wide) < 8 * torch.finfo(dtype).eps


def test_differentiation(generator):
    """Forward and reverse mode of both orders; torch.func; and what torch.compile makes of it."""
    h, out = TensorHarmonics.complete(1, 1), TensorHarmonics.complete(1, 2)
    x, y = (torch.randn(2, h.dim, 2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def f(x, y):
        return vector_gaunt_product(x, y, h, h, out)

    check_differentiation(f, x, y)


def test_autocast_meta_reference(generator):
    h, out = TensorHarmonics.complete(1, 2), TensorHarmonics.complete(0, 2)
    x, y = (torch.randn(3, h.dim, 2, generator=generator) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vector_gaunt_product(x, y.bfloat16(), h, h, out)
    assert mixed.dtype == torch.float32
    assert relative_error(mixed, vector_gaunt_product(x, y.bfloat16().float(), h, h, out)) < 1e-2
    assert vector_gaunt_product(x.to("meta"), y.to("meta"), h, h, out).shape == (3, 9, 2)
    with eqk.dispatch.use_backend("reference"):
        dense = vector_gaunt_product(x, y, h, h, out)
    assert_close(vector_gaunt_product(x, y, h, h, out), dense)


def test_harmonics():
    """Order, sizes and parities of terms."""
    h = TensorHarmonics.complete(1, 2)
    assert h.terms == ((1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 2))
    assert (h.dim, h.lmax) == (27, 2)
    # Of vectors: gradients of polar ones are natural, what is toroidal is not.
    assert str(h.irreps(-1, 2)) == "2x1o+2x0e+2x1e+2x2e+2x1o+2x2o+2x3o"
    assert hash(h) == hash(TensorHarmonics(1, list(map(list, h.terms))))
    for s in range(4):
        assert TensorHarmonics.complete(s, 3).dim == (2 * s + 1) * 16
    points, weights = points_of(4)
    values = values_of(h, points)
    assert_close(torch.einsum("p,pai,paj->ij", weights, values, values), torch.eye(27, dtype=torch.float64))


BAD_HARMONICS = {
    "s: expected a degree from 0 to 20, got -1": (-1, ()),
    "s: expected a degree from 0 to 20, got 1.0": (1.0, ()),
    "terms: expected pairs .*, got 3": (1, 3),
    r"terms: expected pairs \(j, l\) of degrees up to 20 with \|l - 1\| <= j <= l \+ 1, got \(2, 0\)": (1, ((2, 0),)),
    r"terms: expected pairs .*, got \(0, 0\)": (1, ((1, 0), (0, 0))),
    r"terms: expected pairs .*, got \(21, 20\)": (1, ((21, 20),)),
    "terms: expected pairs .*, got 5": (1, (5,)),
    r"terms: expected each pair \(j, l\) once": (1, ((1, 0), (1, 0))),
}


@pytest.mark.parametrize("message", BAD_HARMONICS)
def test_bad_harmonics(message):
    with pytest.raises(ValueError, match=message):
        TensorHarmonics(*BAD_HARMONICS[message])


def test_bad_arguments():
    h, scalars = TensorHarmonics.complete(1, 1), TensorHarmonics.complete(0, 1)
    x = torch.zeros(2, h.dim, 3)
    for message, error, arguments in (
        ("x: expected a tensor, got None", TypeError, (None, x, h, h, h)),
        ("harmonics2: expected eqk.TensorHarmonics, got 1", TypeError, (x, x, h, 1, h)),
        (r"x: expected shape \[..., 12, channels\], got \(2, 11, 3\)", RuntimeError, (x[:, 1:], x, h, h, h)),
        (r"y: expected shape \[..., 4, channels\], got \(2, 12, 3\)", RuntimeError, (x, x, h, scalars, h)),
        ("y: expected at least 2 dimensions", RuntimeError, (x, x[0, 0], h, h, h)),
        ("y: expected a dense tensor", RuntimeError, (x, x.to_sparse(), h, h, h)),
        ("y: expected 3 channels as x has, or 1, got 2", RuntimeError, (x, x[..., :2], h, h, h)),
        ("x, y: expected leading dimensions that broadcast", RuntimeError, (x, x.new_zeros(3, h.dim, 3), h, h, h)),
        ("y: expected dtype", RuntimeError, (x, x.double(), h, h, h)),
        ("x: expected dtype", RuntimeError, (x.long(), x.long(), h, h, h)),
        ("harmonics_out: expected s from 0 to 2", ValueError, (x, x, h, h, TensorHarmonics.complete(3, 1))),
    ):
        with pytest.raises(error, match=message):
            vector_gaunt_product(*arguments)
    with pytest.raises(ValueError, match="normalization: expected one of integral, component, got 'norm'"):
        vector_gaunt_product(x, x, h, h, h, normalization="norm")
    with pytest.raises(ValueError, match="lmax: expected a degree from 0 to 19, got 20"):
        TensorHarmonics.complete(1, 20)
    with pytest.raises(ValueError, match="s: expected a degree from 0 to 20, got 21"):
        TensorHarmonics.complete(21, 0)
    with pytest.raises(ValueError, match="parity: expected 1 or -1, got 0"):
        h.irreps(0)
