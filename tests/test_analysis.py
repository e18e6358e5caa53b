"""Paths, interactability and expressivity against closed forms, hand-made maps and what the kernels say they compute."""

import itertools
import math

import pytest
import torch

import eqk
from eqk import o3
from eqk.analysis import expressivity, interactability, path_coefficients
from eqk.irreps import Irrep
from eqk.nn import GauntTensorProduct
from eqk.testing import assert_close


def natural(lmax):
    return "+".join(f"{l}{'eo'[l % 2]}" for l in range(lmax + 1))


def rotations(lmax):
    return "+".join(f"{l}e" for l in range(lmax + 1))


def clebsch_gordan(lmaxes, parities=(0,), weighted=True, coefficient=lambda *_: 1.0):
    """Every path with an l1 + l2 + l3 of these parities, to each degree once."""
    irreps = [natural(lmax) if parities == (0,) else rotations(lmax) for lmax in lmaxes]
    paths = [
        (l1, l2, l3, "uuu", weighted, coefficient(l1, l2, l3))
        for l1, l2, l3 in itertools.product(*[range(lmax + 1) for lmax in lmaxes])
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 in parities
    ]
    return eqk.Plan(*irreps, paths, weights="shared")


@pytest.mark.parametrize("lmax", range(1, 6))
def test_clebsch_gordan(lmax):
    """MIMO of Xie et al.: 5, 14, 30, 55, 91 paths of an even sum; with those of an odd sum 6, 19, 44, 85, 146."""
    even = (lmax + 1) * (lmax + 2) * (2 * lmax + 3) // 6
    every = (lmax + 1) * (2 * lmax**2 + 4 * lmax + 3) // 3
    assert expressivity(clebsch_gordan((lmax, lmax, 2 * lmax))) == even
    assert expressivity(clebsch_gordan((lmax, lmax, 2 * lmax), (0, 1))) == every
    # Without weights of paths the layers are all there is, as for a product of signals.
    assert expressivity(clebsch_gordan((lmax, lmax, 2 * lmax), weighted=False)) == 4 * lmax + 1


@pytest.mark.parametrize(
    "lmaxes", [(0, 0, 0), (1, 1, 2), (2, 3, 4), (3, 1, 2), (4, 4, 4), (0, 3, 3), (2, 2, 0)], ids=str
)
def test_paths_kept_or_weighted(lmaxes):
    """A product that keeps each path apart, and linear layers after it, is as expressive as weights of paths."""
    weighted = clebsch_gordan(lmaxes, (0, 1))
    paths = weighted.instructions
    kept = "+".join(f"{p.i_out}e" for p in paths)
    apart = eqk.Plan(
        weighted.irreps_in1, weighted.irreps_in2, kept, [(*p[:2], n, "uuu", False) for n, p in enumerate(paths)]
    )
    assert expressivity(apart) == expressivity(weighted) == len(paths)


@pytest.mark.parametrize("lmaxes", [(1, 1, 2), (2, 2, 4), (3, 3, 3), (5, 5, 10), (4, 2, 3), (3, 4, 6)], ids=str)
def test_products_of_signals(lmaxes):
    """As many weights as degrees, less the two factors that may move between x, y and the result."""
    weights = sum(lmaxes) + 3
    even, odd, every = (eqk.GauntPlan.normalized(*lmaxes, 1, 1, kind) for kind in ("even", "odd", "all"))
    assert expressivity(even) == weights - 2
    assert expressivity(every) == weights - 2
    # No gradient of degree 0, and so no result of degree 0; and none of degree l1 + l2, since that sum is even.
    most = lmaxes[0] + lmaxes[1] - 1
    assert expressivity(odd) == lmaxes[0] + lmaxes[1] + min(lmaxes[2], most) - 2


def test_both_parities_apart():
    """Product and bracket in a module on irreps: their results have weights of their own, x and y share theirs."""
    lmax = 3
    out = natural(2 * lmax) + "+" + "+".join(f"{l}{'oe'[l % 2]}" for l in range(1, 2 * lmax))
    module = GauntTensorProduct(natural(lmax), natural(lmax), out, normalization="integral")
    assert expressivity(module) == 2 * (lmax + 1) + (2 * lmax + 1) + (2 * lmax - 1) - 2
    coupled = interactability(module)
    assert all(coupled.values())
    assert len(coupled) == (lmax + 1) * (2 * lmax**2 + 4 * lmax + 3) // 3


def dimension_of_sums(paths, rank):
    """Of all sum over r of a[r, l1] b[r, l2] c[r, l3] on these paths: Jacobian by autograd, rank by numpy."""
    import numpy as np

    l1, l2, l3 = torch.tensor(paths).T
    sizes = [int(l.max()) + 1 for l in (l1, l2, l3)]
    generator = torch.Generator().manual_seed(3)
    factors = [torch.rand(rank, n, generator=generator, dtype=torch.float64) + 0.5 for n in sizes]

    def weights(a, b, c):
        return (a[:, l1] * b[:, l2] * c[:, l3]).sum(0)

    jacobian = torch.cat([j.flatten(1) for j in torch.autograd.functional.jacobian(weights, tuple(factors))], 1)
    return int(np.linalg.matrix_rank(jacobian.numpy(), rtol=1e-10))


@pytest.mark.parametrize("kind", ["even", "odd", "all"])
def test_ranks(kind):
    """Ranks up to all paths, also as channels of the product or rank of the plan."""
    lmaxes = 3, 3, 4
    plan = eqk.GauntPlan.normalized(*lmaxes, 1, 1, kind)
    paths = [
        path for path in itertools.product(*[range(lmax + 1) for lmax in lmaxes]) if plan.path_coefficient(*path) != 0
    ]
    for rank in range(1, 5):
        expected = dimension_of_sums(paths, rank)
        assert expressivity(plan, rank=rank) == expected
        assert expressivity(eqk.GauntPlan.normalized(*lmaxes, 1, 1, kind, rank=rank)) == expected
        assert expressivity(eqk.GauntPlan.normalized(*lmaxes, rank, rank, kind)) == expected
    assert expressivity(plan, rank=8) == len(paths)


def test_channels_outside():
    """c copies outside: a matrix of layers for each degree, two common factors less; all maps for a full product."""
    plan, c = eqk.GauntPlan.normalized(1, 1, 2, 1, 1), 3
    # Vectors a[l1], b[l2], d[l3] of c entries each, whose products lose one scale per factor and path.
    assert expressivity(plan, channels=c) == c * 7 - 2
    o3_product = o3.FullTensorProduct("2x0e + 1o", "0e + 2x1o")
    paths = sum(c**2 * c for a, b in itertools.product((0, 1), repeat=2) for l in range(abs(a - b), a + b + 1))
    # Two copies of 0e in x, one of 1o; one copy of 0e in y, two of 1o: with one outside each path is free.
    assert expressivity(o3_product) == 6
    assert expressivity(o3_product, rank=16, channels=c) == paths
    assert expressivity(o3_product, channels=c) < paths


@pytest.mark.parametrize("kind", ["even", "odd", "all"])
@pytest.mark.parametrize("layout", ["ir_mul", "mul_ir"])
def test_coefficients_of_signals(kind, layout):
    """As the plan has them in closed form, channel by channel."""
    plan = eqk.GauntPlan.normalized(2, 3, 4, 2, 2, kind, "component", layout1=layout, layout_out=layout)
    t = path_coefficients(plan)
    assert t.shape == (1, 6, 8, 10)
    expected = torch.zeros_like(t)
    for (l1, l2, l3), u in itertools.product(itertools.product(range(3), range(4), range(5)), range(2)):
        expected[0, 2 * l1 + u, 2 * l2 + u, 2 * l3 + u] = plan.path_coefficient(l1, l2, l3)
    assert_close(t, expected)
    assert torch.equal(t != 0, expected != 0)


def test_coefficients_of_weighted_paths():
    plan = clebsch_gordan((2, 2, 3), (0, 1), coefficient=lambda *degrees: 1.5 + degrees[0] - 3.0 * degrees[2])
    t = path_coefficients(plan)
    expected = torch.zeros_like(t)
    for n, path in enumerate(plan.instructions):
        expected[n, path.i_in1, path.i_in2, path.i_out] = path.coefficient
    assert_close(t, expected)
    per_sample = eqk.Plan(plan.irreps_in1, plan.irreps_in2, plan.irreps_out, plan.instructions, weights="per_sample")
    assert torch.equal(path_coefficients(per_sample), t)

    def same(x, y, w):
        return eqk.tensor_product(x, y, w, plan)

    irreps = plan.irreps_in1, plan.irreps_in2, plan.irreps_out
    assert torch.equal(path_coefficients(same, *irreps, weight_numel=plan.weight_numel), t)
    assert expressivity(same, *irreps, weight_numel=plan.weight_numel) == len(plan.instructions)


def test_products_of_three_space():
    """Dot and cross product, whose symbols are unit vectors of 3 and 6 nonzeros; e3nn's module alike."""
    dot = path_coefficients(lambda x, y: (x * y).sum(-1, keepdim=True), "1o", "1o", "0e")
    # e3nn's component order (y, z, x) is an even permutation of (x, y, z).
    cross = path_coefficients(lambda x, y: torch.linalg.cross(x, y), "1o", "1o", "1e")
    assert abs(dot.item()) == pytest.approx(math.sqrt(3), rel=1e-12)
    assert abs(cross.item()) == pytest.approx(math.sqrt(6), rel=1e-12)


def test_which_interact():
    """Xie et al. 2025, section 3: signals couple no antisymmetric pair, the cross product of vectors the first of all."""
    one, zero, two = Irrep("1e"), Irrep("0e"), Irrep("2e")
    even, odd, every = (
        interactability(
            lambda x, y, kind=kind: eqk.gaunt_product(x[..., None], y[..., None], 2, kind=kind)[..., 0],
            *["0e + 1e", "0e + 1e", "0e + 1e + 2e"],
        )
        for kind in ("even", "odd", "all")
    )
    allowed = {
        (zero, zero, zero),
        (zero, one, one),
        (one, zero, one),
        (one, one, zero),
        (one, one, one),
        (one, one, two),
    }
    assert set(even) == set(odd) == set(every) == allowed
    assert {t for t, value in even.items() if value} == allowed - {(one, one, one)}
    assert {t for t, value in odd.items() if value} == {(one, one, one)}
    assert all(every.values())
    assert every[one, one, one] == pytest.approx(eqk.gaunt_plan.gaunt_coefficient(1, 1, 1), rel=1e-12)
    # Parity forbids the cross product of vectors a vector: it is no path at all.
    assert (Irrep("1o"), Irrep("1o"), Irrep("1o")) not in interactability(eqk.GauntPlan.normalized(1, 1, 1, 1, 1))


def test_empty():
    nothing = eqk.Plan("1o", "1o", "1o", ())
    assert expressivity(nothing) == 0
    assert interactability(nothing) == {}
    assert expressivity(eqk.Plan("", "1o", "1o", ())) == 0
    assert interactability(eqk.Plan("0e", "", "0e", ())) == {}
    assert expressivity(eqk.GauntPlan.normalized(0, 0, 0, 1, 1, "odd")) == 0


def test_small_coefficients_count():
    """Coefficients from 1 to 1e-6 are paths as others."""
    lmax = 3
    plan = clebsch_gordan((lmax,) * 3, weighted=False, coefficient=lambda *degrees: 10.0 ** -(sum(degrees) % 7))
    assert expressivity(plan) == 3 * (lmax + 1) - 2
    assert sum(value > 0 for value in interactability(plan).values()) == len(plan.instructions)


IRREPS = ("0e + 1e", "0e + 1e", "0e + 1e")


@pytest.mark.parametrize(
    ("message", "function", "irreps"),
    [
        ("linear in x and in y", lambda x, y: x * 0 + x.square().sum(-1, keepdim=True), IRREPS),
        ("linear in x and in y", lambda x, y: x[:, :1] * y + 1, IRREPS),
        ("not from 0e x 1e to 1e", lambda x, y: x[:, :1] * torch.tensor([1.0, 1, 1, 2], dtype=x.dtype) * y, IRREPS),
        ("not from 1e x 0e to 0e", lambda x, y: x[:, 1:2] * y[:, :1] * torch.ones_like(x), IRREPS),
        ("not from 1o x 1o to 1o", lambda x, y: torch.linalg.cross(x, y), ("1o", "1o", "1o")),
        ("finite results", lambda x, y: x * y * math.nan, IRREPS),
    ],
    ids=range(6),
)
def test_no_equivariant_bilinear_map(message, function, irreps):
    with pytest.raises(ValueError, match=message):
        path_coefficients(function, *irreps)


def test_bad_arguments():
    plan = eqk.GauntPlan.normalized(1, 1, 1, 1, 1)
    for f in (path_coefficients, interactability, expressivity):
        with pytest.raises(TypeError, match="product: expected an eqk.Plan, an eqk.GauntPlan, a module or a function"):
            f("gaunt")
        with pytest.raises(ValueError, match="irreps_in1: expected none, since GauntPlan has its own"):
            f(plan, "0e")
        with pytest.raises(ValueError, match="weight_numel: expected none, since GauntPlan has its own"):
            f(plan, weight_numel=3)
        with pytest.raises(ValueError, match="irreps_in2: expected irreps, since a function has none, got None"):
            f(lambda x, y: x, "0e", None, "0e")
        with pytest.raises(ValueError, match="irreps_out: .*'0q'"):
            f(lambda x, y: x, "0e", "0e", "0q")
        with pytest.raises(ValueError, match="weight_numel: expected a number from 0, got -1"):
            f(lambda x, y: x, "0e", "0e", "0e", weight_numel=-1)
        with pytest.raises(RuntimeError, match=r"expected a result of float64 \(4, 1\), got torch.float32 \(4, 1\)"):
            f(lambda x, y: (x * y).float(), "0e", "0e", "0e")
        with pytest.raises(RuntimeError, match=r"expected a result of float64 \(4, 3\), got torch.float64 \(4, 1\)"):
            f(lambda x, y: x * y, "0e", "0e", "1e")
        with pytest.raises(
            ValueError, match="product: expected at most 2\\^27 coefficients, got .*: take fewer channels"
        ):
            f(eqk.GauntPlan.normalized(1, 1, 1, 512, 512))
    for name, value in itertools.product(("rank", "channels"), (0, 1.5, True)):
        with pytest.raises(ValueError, match=f"{name}: expected a positive number, got {value}"):
            expressivity(plan, **{name: value})
    with pytest.raises(ValueError, match="channels: expected a Jacobian of at most 2\\^27 elements"):
        expressivity(plan, channels=200)
