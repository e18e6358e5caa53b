"""Products of signals on the sphere against Wigner 3j symbols path by path, and what else they are to be."""

import dataclasses
import itertools
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from test_tensor_product import DTYPES, assert_same_bits, cast, compare
from torch.utils._python_dispatch import TorchDispatchMode

import eqk
from eqk import gaunt_grid, reference
from eqk.gaunt_plan import KINDS, NORMALIZATIONS, gaunt_coefficient
from eqk.nn import GauntTensorProduct
from eqk.testing import (
    GAUNTS,
    assert_close,
    random_gaunt_operands,
    random_gaunt_plan,
    relative_error,
    rotate,
)

OPS = torch.ops.eqk
ROOT = Path(__file__).parent.parent
WEIGHTED = list(itertools.product((False, True), repeat=3))
ALL = GAUNTS["all"]


def on(plan, op=OPS.gaunt_product):
    return lambda *operands: op(*operands, str(plan))


def check(plan, rows, weighted, generator, dtypes=(torch.float64, torch.float32), orders=3):
    operands = random_gaunt_operands(plan, rows, weighted, torch.float32, generator)
    compare(plan, operands, generator, dtypes, orders, on(plan, reference.gaunt_product), on(plan))


@pytest.mark.parametrize("weighted", [(False, False, False), (True, True, True)], ids=str)
@pytest.mark.parametrize("name", GAUNTS)
def test_cases(name, weighted, generator):
    check(GAUNTS[name], 5, weighted, generator, orders=2 if name == "degree-9" else 3)


@pytest.mark.parametrize("weighted", WEIGHTED, ids=str)
def test_any_weights(weighted, generator):
    for name in ("all", "one-channel", "single-x"):
        check(GAUNTS[name], 3, weighted, generator, (torch.float64,))


@pytest.mark.parametrize("chunk", range(4))
def test_random_plans(chunk, rng, generator):
    """120 plans, to third order."""
    for _ in range(30):
        plan, weighted = random_gaunt_plan(rng, 4), rng.choice(WEIGHTED)
        # Of one row a gradient may be one number, which cancels while degrees that do not contribute leave their rounding.
        check(plan, rng.choice((0, 3, 5)), weighted, generator, (torch.float64,))


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 40])
def test_rows_of_one_channel(rows, generator):
    """Lanes are rows there; a tile may be full, begun or the second one."""
    check(GAUNTS["one-channel"], rows, (True, False, True), generator, orders=2)


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 7, 8, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_channels(channels, layout, generator):
    for single in ((channels, channels), (channels, 1), (1, channels)):
        plan = eqk.GauntPlan(2, 1, 2, *single, 1.0, 1.0, layout1=layout, layout2=layout, layout_out=layout)
        check(plan, 3, (False, True, False), generator, (torch.float32,), 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_path(dtype, generator):
    """Each (l1, l2, l3) to degree 6 from signals of one degree each: N E C of an even sum, N O C of an odd one."""
    lmax, rows = 6, 4
    for l1, l2 in itertools.product(range(lmax + 1), repeat=2):
        x, y = (torch.zeros(rows, (lmax + 1) ** 2, 1, dtype=torch.float64) for _ in range(2))
        u, v = (torch.randn(rows, 2 * l + 1, generator=generator, dtype=torch.float64) for l in (l1, l2))
        x[:, l1 * l1 : (l1 + 1) ** 2, 0], y[:, l2 * l2 : (l2 + 1) ** 2, 0] = u, v
        got = eqk.gaunt_product(x.to(dtype), y.to(dtype), kind="all")[..., 0]
        expected = torch.zeros(rows, (lmax + 1) ** 2, dtype=torch.float64)
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax) + 1):
            symbol = eqk.wigner_3j(l1, l2, l3, dtype=torch.float64)
            expected[:, l3 * l3 : (l3 + 1) ** 2] = gaunt_coefficient(l1, l2, l3) * torch.einsum(
                "zi,zj,ijk->zk", u, v, symbol
            )
        assert relative_error(got, expected) < {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]


def test_coefficients_are_integrals():
    """The closed forms against quadrature of harmonics and, by finite differences, of their gradients."""
    lmax = 4
    z, weights = np.polynomial.legendre.leggauss(12)
    alpha = 2 * np.pi * np.arange(24) / 24
    beta = np.arccos(z)
    weights = torch.from_numpy(np.repeat(weights, 24) * 2 * np.pi / 24)

    def harmonics(beta, alpha):
        b, a = (torch.from_numpy(t.ravel()) for t in np.meshgrid(beta, alpha, indexing="ij"))
        r = torch.stack([b.sin() * a.sin(), b.cos(), b.sin() * a.cos()], 1)
        y = eqk.spherical_harmonics(list(range(lmax + 1)), r, False, "integral")
        return y, b.sin()

    y, sin = harmonics(beta, alpha)
    step = 1e-5
    of_beta = (harmonics(beta + step, alpha)[0] - harmonics(beta - step, alpha)[0]) / (2 * step)
    of_alpha = (harmonics(beta, alpha + step)[0] - harmonics(beta, alpha - step)[0]) / (2 * step) / sin[:, None]
    for l1, l2, l3 in itertools.product(range(lmax + 1), repeat=3):
        if not abs(l1 - l2) <= l3 <= l1 + l2:
            assert gaunt_coefficient(l1, l2, l3) == 0
            continue
        a, b, c = (slice(l * l, (l + 1) ** 2) for l in (l1, l2, l3))
        if (l1 + l2 + l3) % 2:
            bracket = torch.einsum("pi,pj->pij", of_beta[:, a], of_alpha[:, b])
            bracket = bracket - torch.einsum("pi,pj->pij", of_alpha[:, a], of_beta[:, b])
            integral = torch.einsum("p,pij,pk->ijk", weights, bracket, y[:, c])
        else:
            integral = torch.einsum("p,pi,pj,pk->ijk", weights, y[:, a], y[:, b], y[:, c])
        symbol = eqk.wigner_3j(l1, l2, l3, dtype=torch.float64) * gaunt_coefficient(l1, l2, l3)
        assert (integral - symbol).abs().max() < 1e-8


RINGS = """
#include <cstdio>
#include <cstdlib>
#include "gaunt_product/lowered.h"
int main(int argc, char** argv) {
  for (int n = 1; n < argc; ++n) {
    const eqk::gaunt_product::Lowered<double> lowered(*eqk::gaunt_product::cached_plan(argv[n]));
    std::printf("%d", lowered.rings);
    for (const auto& ring : eqk::gauss_legendre_rings(lowered.rings)) std::printf(" %.17g %.17g", ring.z, ring.weight);
    std::printf("\\n");
  }
}
"""


def test_the_grid_is_the_smallest(tmp_path, generator):
    """The kernel's rings are those of Gauss and Legendre, and with one less, or one angle less, products are wrong."""
    triples = [
        (l1, l2, l3) for l1, l2, l3 in itertools.product((1, 2, 3, 6), (0, 2, 3, 6), (1, 2, 5, 12)) if l3 <= l1 + l2
    ]
    source, program = tmp_path / "rings.cpp", tmp_path / "rings"
    source.write_text(RINGS)
    subprocess.run(["g++", "-std=c++20", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)], check=True)
    plans = [str(eqk.GauntPlan(*triple, 1, 1)) for triple in triples]
    lines = subprocess.run([program, *plans], check=True, capture_output=True, text=True).stdout.splitlines()
    for triple, line in zip(triples, lines, strict=True):
        count, *numbers = line.split()
        z, weights = np.polynomial.legendre.leggauss(int(count))
        found = np.array(numbers, dtype=float).reshape(-1, 2)
        assert np.abs(found[np.argsort(found[:, 0])] - np.stack([z, weights], 1)).max() < 1e-14
        degree = sum(triple)
        x, y = (torch.randn((l + 1) ** 2, 1, generator=generator, dtype=torch.float64) for l in triple[:2])
        expected = eqk.gaunt_product(x, y, triple[2])[:, 0]

        def on_grid(rings, angles, triple=triple, x=x, y=y):
            z, weights = np.polynomial.legendre.leggauss(rings)
            b, a = np.meshgrid(np.arccos(z), 2 * np.pi * (np.arange(angles) + 0.2) / angles, indexing="ij")
            b, a = torch.from_numpy(b.ravel()), torch.from_numpy(a.ravel())
            r = torch.stack([b.sin() * a.sin(), b.cos(), b.sin() * a.cos()], 1)
            s = eqk.spherical_harmonics(list(range(max(triple) + 1)), r, False, "integral")
            f, g = (s[:, : len(t)] @ t[:, 0] for t in (x, y))
            weights = torch.from_numpy(np.repeat(weights, angles) * 2 * np.pi / angles)
            return (f * g * weights) @ s[:, : (triple[2] + 1) ** 2]

        assert relative_error(on_grid(int(count), degree + 1), expected) < 1e-12
        assert int(count) == 1 or relative_error(on_grid(int(count) - 1, degree + 1), expected) > 1e-6
        assert relative_error(on_grid(int(count), degree), expected) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_unit_variance(kind, generator):
    """By sampling, of each degree; the closed form leaves no constant to tune."""
    x, y = (torch.randn(2000, n, 8, generator=generator) for n in (16, 9))
    z = eqk.gaunt_product(x, y, 4, kind=kind, normalization="component")
    for l in range(5):
        variance = float(z[:, l * l : (l + 1) ** 2].square().mean())
        expected = 0.0 if kind == "odd" and l == 0 else 1.0
        assert abs(variance - expected) < 0.1, (l, variance)


def test_scales_of_the_bracket():
    """What :meth:`GauntPlan.normalized` says of its coefficients to degree 8, before and after the scales."""
    ranges = []
    for power in (0, -1 / 3):
        scale = [1.0] + [(l * (l + 1)) ** power for l in range(1, 9)]
        paths = [
            gaunt_coefficient(*l) * math.prod(scale[n] for n in l)
            for l in itertools.product(range(1, 9), repeat=3)
            if sum(l) % 2 and gaunt_coefficient(*l)
        ]
        ranges.append(max(paths) / min(paths))
    assert 66 < ranges[0] < 67
    assert ranges[1] < 2.01
    plan = eqk.GauntPlan.normalized(8, 8, 8, 1, 1, "odd", "component")
    assert plan.scale1 == plan.scale2 == pytest.approx(scale)


def test_parities_of_terms(generator):
    """z of x and y is symmetric for the product and antisymmetric for the bracket; "all" is their sum."""
    x, y = (torch.randn(4, 16, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    even, odd, both = (eqk.gaunt_product(x, y, kind=kind) for kind in KINDS)
    assert_close(eqk.gaunt_product(y, x), even)
    assert_close(eqk.gaunt_product(y, x, kind="odd"), -odd)
    assert_close(both, even + odd)


@pytest.mark.parametrize("lmaxes", [(0, 0, 0), (1, 1, 1), (3, 3, 3), (2, 4, 6), (4, 1, 2), (5, 5, 12)], ids=str)
def test_equals_fourier_series(lmaxes, generator):
    """The form of Luo et al. 2024 has the same values and gradients, to second order, for y of one channel too."""
    for channels in ((2, 2), (2, 1)):
        operands = [
            torch.randn(3, (l + 1) ** 2, n, generator=generator) for l, n in zip(lmaxes, channels, strict=False)
        ]
        compare(
            lmaxes,
            operands,
            generator,
            (torch.float64, torch.float32),
            2,
            lambda x, y: reference.gaunt_product_by_fourier(x, y, lmaxes[2]),
            lambda x, y: eqk.gaunt_product(x, y, lmaxes[2]),
        )
    with_default = reference.gaunt_product_by_fourier(*operands)
    assert with_default.dtype == torch.float32
    assert_close(with_default, eqk.gaunt_product(*operands))


def test_fourier_series_of_harmonics(generator):
    """Values of harmonics anywhere, and real signals: coefficients (-u, -v) are conjugate. Integrals by quadrature."""
    series = reference.gaunt_fourier.fourier_coefficients(3)
    assert_close(series.flip(0, 1).conj().abs(), series.abs())
    beta, alpha = 2 * math.pi * torch.rand(2, 20, generator=generator, dtype=torch.float64)
    r = torch.stack([beta.sin() * alpha.sin(), beta.cos(), beta.sin() * alpha.cos()], 1)
    n = torch.arange(-3, 4)
    of_beta, of_alpha = (torch.exp(1j * angle[:, None] * n) for angle in (beta, alpha))
    values = torch.einsum("uvn,pu,pv->pn", series, of_beta, of_alpha)
    assert values.imag.abs().max() < 1e-13
    assert_close(values.real, eqk.spherical_harmonics(range(4), r, False, "integral"))
    # A whole product, by a grid that is exact for it: e^(i u beta) is no polynomial on the sphere, but this sum is.
    grid = eqk.s2_grid(eqk.exact_resolution(4), dtype=torch.float64)
    points, weights = grid.positions.flatten(0, 1), grid.weights.repeat_interleave(len(grid.alphas))
    y = eqk.spherical_harmonics(range(3), points, False, "integral")
    orthonormal = torch.einsum("p,pi,pj->ij", weights, y, y)
    projected = torch.einsum(
        "uvi,uvj->ij",
        reference.gaunt_fourier.fourier_coefficients(2),
        reference.gaunt_fourier.fourier_projections(2, 2),
    )
    assert_close(projected.real, orthonormal)


MODULES = {
    "natural": ("4x0e+4x1o+4x2e", "4x0e+4x1o+4x2e", "4x0e+4x1o+4x2e"),
    "to-pseudo": ("4x0e+4x1o+4x2e", "1x0e+1x1o", "4x1e+4x2o"),
    "both": ("2x0e+2x1o+2x2e+2x0o+2x1e", "2x2e+2x1o+2x1e+2x2o", "2x2o+2x0e+2x1o+2x0o+2x2e+2x1e"),
    "gaps": ("3x1o+3x3o", "3x2e", "3x1o+3x3o+3x2o"),
    "scalars": ("5x0e", "5x0o", "5x0o"),
    "no-output": ("5x0e", "5x0o", ""),
}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("name", MODULES)
def test_module_is_equivariant(name, layout, rank, generator):
    """Under a random rotation with inversion; and with the sum of all paths by Wigner 3j symbols."""
    module = GauntTensorProduct(*MODULES[name], rank=rank, layout=layout).double()
    x, y = (
        torch.randn(5, irreps.dim, generator=generator, dtype=torch.float64)
        for irreps in (module.irreps_in1, module.irreps_in2)
    )
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    out = module(x, y)
    assert out.shape == (5, module.irreps_out.dim)
    moved = module(rotate(x, module.irreps_in1, axis, layout, True), rotate(y, module.irreps_in2, axis, layout, True))
    assert_close(moved, rotate(out, module.irreps_out, axis, layout, True))
    if rank is None and out.numel():
        assert out.ne(0).any(0).all(), "an irrep of the result is zero"


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_module_paths(normalization, generator):
    """Every path that O(3) allows, once; of unit variance in sum, or as they are."""
    module = GauntTensorProduct(*MODULES["both"], normalization=normalization).double()
    irreps = module.irreps_in1, module.irreps_in2, module.irreps_out
    instructions = [
        (i, j, k, "uuu", False, gaunt_coefficient(a.l, b.l, c.l))
        for (i, (_, a)), (j, (_, b)), (k, (_, c)) in itertools.product(*map(enumerate, irreps))
        if a.p * b.p == c.p and abs(a.l - b.l) <= c.l <= a.l + b.l
    ]
    plan = eqk.Plan(*irreps, instructions)
    x, y = (torch.randn(4000, i.dim, generator=generator, dtype=torch.float64) for i in irreps[:2])
    if normalization == "integral":
        assert_close(module(x, y), eqk.tensor_product(x, y, None, plan))
    for columns in module.irreps_out.slices():
        variance = float(module(x, y)[:, columns].square().mean())
        assert normalization == "integral" or 0.8 < variance < 1.2


def test_module_checkpoint_and_training(generator):
    module = GauntTensorProduct(*MODULES["both"], rank=2)
    other = GauntTensorProduct(*MODULES["both"], rank=2)
    other.load_state_dict(module.state_dict())
    x, y = (torch.randn(2, 3, i.dim, generator=generator) for i in (module.irreps_in1, module.irreps_in2))
    assert torch.equal(module(x, y[:1]), other(x, y[:1].expand_as(y)))
    assert module(x[0, 0], y[0, 0]).shape == (module.irreps_out.dim,)
    module(x, y).square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad.ne(0).all()
    assert "rank 2, component" in repr(module)


def test_module_compiled_and_exported(generator):
    module = GauntTensorProduct(*MODULES["both"], rank=2)
    inputs = [torch.randn(5, i.dim, generator=generator) for i in (module.irreps_in1, module.irreps_in2)]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), module(*inputs))
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(module, tuple(inputs), dynamic_shapes=({0: rows}, {0: rows}))
    inputs = [torch.cat([t, t, t]) for t in inputs]
    assert torch.equal(program.module()(*inputs), module(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype, generator):
    for name in ("all", "one-channel", "single-y"):
        plan = GAUNTS[name]
        operands = random_gaunt_operands(plan, 9, (True, True, False), torch.float32, generator)
        operands = cast([None if t is None else t / t.abs().max() for t in operands], dtype)
        compare(plan, operands, generator, (dtype,), 2, on(plan, reference.gaunt_product), on(plan))


def family(operands, g, tangents, tg, plan):
    """Results of all members."""
    wanted = [t is not None for t in operands]
    return [
        OPS.gaunt_product(*operands, str(plan)),
        OPS.gaunt_product_jvp(*operands, *tangents, str(plan)),
        *OPS.gaunt_product_backward(*operands, g, str(plan), wanted),
        *OPS.gaunt_product_double_backward(*operands, g, *tangents, tg, str(plan), [*wanted, True]),
    ]


def family_by_grid(operands, g, tangents, tg, plan):
    """The same by the ops of torch operations."""
    wanted = [t is not None for t in operands]
    return [
        OPS.gaunt_product_by_grid(*operands, str(plan)),
        OPS.gaunt_product_by_grid_jvp(*operands, *tangents, str(plan)),
        *OPS.gaunt_product_by_grid_backward(*operands, g, str(plan), wanted),
        *OPS.gaunt_product_by_grid_double_backward(*operands, g, *tangents, tg, str(plan), [*wanted, True]),
    ]


def all_operands(plan, rows, dtype, generator):
    operands, tangents = (random_gaunt_operands(plan, rows, (True,) * 3, dtype, generator) for _ in range(2))
    g, tg = (torch.randn(rows, plan.dims[2], generator=generator).to(dtype) for _ in range(2))
    return operands, g, tangents, tg


@pytest.mark.parametrize("results", [family, family_by_grid])
@pytest.mark.parametrize("kind", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=["even", "odd", "all"])
def test_degrees_that_couple_with_none(results, kind, generator):
    """Of 5 x 1 -> 1 these are 3 to 5 of x, by |l1 - l2| <= l: nothing of them is in any result, not even rounding."""
    plan = eqk.GauntPlan(5, 1, 1, 3, 3, *kind)
    operands, g, tangents, tg = all_operands(plan, 4, torch.float64, generator)
    of_x = 2  # the gradient of x in the family's list, and of the list of double backward
    near = results(operands, g, tangents, tg, plan)
    for t in operands[0], tangents[0]:
        t.view(4, 36, 3)[:, 9:] = 1e9 * torch.randn(4, 27, 3, dtype=torch.float64, generator=generator)
    far = results(operands, g, tangents, tg, plan)
    for a, b in zip(near, far, strict=True):
        assert a.any()
        assert torch.equal(a, b)
    for gradient in near[of_x], near[of_x + 5]:
        assert not gradient.view(4, 36, 3)[:, 9:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_determinism(dtype, generator):
    """The same bits in two runs and for any number of threads."""
    for name in ("all", "single-y", "one-channel"):
        arguments = all_operands(GAUNTS[name], 70, dtype, generator)
        run = lambda arguments=arguments, name=name: family(*arguments, GAUNTS[name])  # noqa: E731
        assert_same_bits(run, run, run)


def check_by_grid(plan, rows, weighted, dtype, generator):
    """Every member, as by the kernels."""
    operands, g, tangents, tg = all_operands(plan, rows, dtype, generator)
    operands, tangents = ([*t[:2], *(b if w else None for b, w in zip(t[2:], weighted, strict=True))]
                          for t in (operands, tangents))  # fmt: skip
    arguments = operands, g, tangents, tg, plan
    for order, (got, want) in enumerate(zip(family_by_grid(*arguments), family(*arguments), strict=True)):
        assert got.shape == want.shape
        assert got.dtype == dtype
        if got.numel():
            assert_close(got, want, 2 if order > 6 else 1)


@pytest.mark.parametrize("weighted", [(False, False, False), (True, False, True), (True, True, True)], ids=str)
@pytest.mark.parametrize("name", GAUNTS)
def test_by_grid(name, weighted, generator):
    check_by_grid(GAUNTS[name], 5, weighted, torch.float64, generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_by_grid(dtype, generator):
    check_by_grid(ALL, 4, (True, True, False), dtype, generator)


def test_random_plans_by_grid(rng, generator, monkeypatch):
    """A few rows at a time, none at all too."""
    for rows in (0, 1, 7, 7, 7, 7):
        monkeypatch.setattr(gaunt_grid, "ELEMENTS", rng.choice((1, 2000, 2**24)))
        weighted = rng.choice(WEIGHTED)
        check_by_grid(random_gaunt_plan(rng, 4), rows, weighted, torch.float64, generator)


def test_by_grid_only_what_is_wanted(rng, generator):
    """Subsets of gradients and of tangents."""
    operands, g, tangents, tg = all_operands(GAUNTS["all"], 3, torch.float64, generator)
    for number in rng.sample(range(64), 16):
        subset = [bool(number >> slot & 1) for slot in range(6)]
        some = [t if keep else None for t, keep in zip((*tangents, tg), reversed(subset), strict=True)]
        arguments = *operands, g, *some, str(ALL), subset
        by_kernel = OPS.gaunt_product_double_backward(*arguments)
        for got, want in zip(OPS.gaunt_product_by_grid_double_backward(*arguments), by_kernel, strict=True):
            assert got.shape == want.shape
            assert_close(got, want, 2)


def test_strided_operands(generator):
    """Rows apart, columns apart, one row for all."""
    for name in ("all", "single-y", "one-channel"):
        plan = GAUNTS[name]
        operands, g, tangents, tg = all_operands(plan, 5, torch.float64, generator)

        def apart(t, dim):
            wide = t.new_full([2 * n if d == dim else n for d, n in enumerate(t.shape)], 7)
            return wide[:: 2 if dim == 0 else 1, :: 2 if dim == 1 else 1].copy_(t)

        expected = family(operands, g, tangents, tg, plan)
        for dim in range(2):
            moved = [[apart(t, dim) for t in group] for group in (operands, tangents)]
            got = family(moved[0], apart(g, dim), moved[1], apart(tg, dim), plan)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        one = [t[:1].expand_as(t) for t in operands]
        whole = [t.contiguous() for t in one]
        for a, b in zip(*(family(v, g, tangents, tg, plan) for v in (one, whole)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_row_and_channel(value, generator):
    x, y = (torch.randn(7, 9, 5, generator=generator) for _ in range(2))
    expected = eqk.gaunt_product(x, y, kind="all")
    x[2, 1, 3] = value
    out = eqk.gaunt_product(x, y, kind="all")
    touched = torch.zeros(7, 1, 5, dtype=torch.bool)
    touched[2, 0, 3] = True
    assert not out.isfinite().all(1)[2, 3]
    assert torch.equal(out.masked_fill(touched, 0), expected.masked_fill(touched, 0))
    x = torch.randn(40, 9, 1, generator=generator)  # lanes are rows
    expected = eqk.gaunt_product(x, x, kind="all")
    x[17, 4] = value
    out = eqk.gaunt_product(x, x, kind="all")
    assert not out[17].isfinite().all()
    assert torch.equal(out[torch.arange(40) != 17], expected[torch.arange(40) != 17])


def test_broadcasting(generator):
    """Leading dimensions, single channels and ranks."""
    x, y = torch.randn(4, 1, 9, 3, generator=generator), torch.randn(6, 4, 1, generator=generator)
    a, b = torch.randn(2, 3, 1, generator=generator), torch.randn(6, 1, 2, 3, generator=generator)
    got = eqk.gaunt_product(x, y, 3, a=a, b=b, kind="all")
    assert got.shape == (4, 6, 16, 3)
    whole = eqk.gaunt_product(
        x.expand(4, 6, 9, 3),
        y.expand(4, 6, 4, 3),
        3,
        a=a.expand(4, 6, 2, 3, 3),
        b=b.expand(4, 6, 2, 2, 3),
        kind="all",
    )
    assert_close(got, whole)
    assert eqk.gaunt_product(x[0, 0], x[0, 0]).shape == (9, 3)


def test_gradcheck(generator):
    for name in ("all", "single-y", "one-channel"):
        plan = GAUNTS[name]
        operands = random_gaunt_operands(plan, 2, (True, False, True), torch.float64, generator)
        operands = [None if t is None else (t / t.abs().max()).requires_grad_() for t in operands]
        everything = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
        assert torch.autograd.gradcheck(on(plan), operands, fast_mode=True, **everything)
        twice = dict(check_fwd_over_rev=True, check_rev_over_rev=True)
        assert torch.autograd.gradgradcheck(on(plan), operands, fast_mode=True, **twice)


def test_functional_transforms(generator):
    """hessian, jvp of a gradient and vmap of a gradient, against the same of the reference."""
    x, y, a, _, _ = random_gaunt_operands(ALL, 2, (True, False, False), torch.float64, generator)
    x, y, a = (v / v.abs().max() for v in (x, y, a))  # the sine of large numbers loses digits
    t = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    results = []
    for op in (OPS.gaunt_product, reference.gaunt_product):

        def energy(x, y, a, op=op):
            return op(x, y, a, None, None, str(ALL)).sin().sum()

        gradient = torch.func.grad(energy, (0, 1, 2))
        xs = torch.stack([x, 2 * x, -x])
        results.append(
            [
                torch.func.hessian(energy)(x, y, a),
                *torch.func.jvp(lambda x, gradient=gradient: gradient(x, y, a), (x,), (t,))[1],
                *torch.func.vmap(gradient, (0, None, None))(xs, y, a),
                *torch.func.vmap(gradient, (None, 0, 0))(x, torch.stack([y, -y]), torch.stack([a, 3 * a])),
            ]
        )
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 3)


def test_opcheck(generator):
    operands, g, tangents, tg = all_operands(ALL, 3, torch.float64, generator)
    v = [*operands[:3], None, operands[4]]
    t = [*tangents[:3], None, tangents[4]]
    for s in (*v, g, *t, tg):
        if s is not None:
            s.requires_grad_()
    torch.library.opcheck(OPS.gaunt_product.default, (*v, str(ALL)))
    torch.library.opcheck(OPS.gaunt_product_jvp.default, (*v, *t, str(ALL)))
    wanted = [True, True, False, False, True]
    torch.library.opcheck(OPS.gaunt_product_backward.default, (*v, g, str(ALL), wanted))
    torch.library.opcheck(OPS.gaunt_product_double_backward.default, (*v, g, *t, tg, str(ALL), [*wanted, True]))


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.wanted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is OPS.gaunt_product_backward.default:
            self.wanted.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


def test_nothing_that_nobody_asked_for(generator):
    operands = random_gaunt_operands(ALL, 3, (True, True, False), torch.float64, generator)
    for n in (0, 1, 2, 3):
        v = [t if t is None else t.clone().requires_grad_(m == n) for m, t in enumerate(operands)]
        with Calls() as calls:
            on(ALL)(*v).sum().backward()
        assert calls.wanted == [[m == n for m in range(5)]]


def test_compile_dynamic_rows(generator):
    """Energy and gradient under inductor; other numbers of rows compile nothing again."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def energy_and_gradient(x, y):
        out = eqk.gaunt_product(x, y, 3, kind="all", normalization="component").pow(2).sum()
        return out, *torch.autograd.grad(out, (x, y))

    compiled = torch.compile(energy_and_gradient, backend=counter, dynamic=True)
    for rows in (4, 9, 30):
        x, y = (torch.randn(rows, n, 3, generator=generator, requires_grad=True) for n in (9, 4))
        for got, want in zip(compiled(x, y), energy_and_gradient(x, y), strict=True):
            assert_close(got, want, 1)
    assert counter.frame_count <= 2


def test_script_autocast_meta_backends(generator):
    @torch.jit.script
    def scripted(x: torch.Tensor, y: torch.Tensor, plan: str):
        return torch.ops.eqk.gaunt_product(x, y, None, None, None, plan)

    x, y, *_ = random_gaunt_operands(ALL, 4, (False,) * 3, torch.float32, generator)
    expected = on(ALL)(x, y, None, None, None)
    assert torch.equal(scripted(x, y, str(ALL)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = on(ALL)(x, y.bfloat16(), None, None, None)
    assert mixed.dtype == torch.float32
    assert_close(mixed, on(ALL)(x, y.bfloat16().float(), None, None, None))
    u, v = torch.randn(2, 9, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    with eqk.dispatch.use_backend("reference"):
        dense = eqk.gaunt_product(u, v, 2)
    assert_close(eqk.gaunt_product(u, v, 2), dense)
    assert eqk.gaunt_product(u.to("meta"), v.to("meta"), 3).shape == (2, 16, 3)


BAD = {
    r"x: expected 2 dimensions \[rows, 27\], got shape \[4, 3, 9\]": {0: torch.zeros(4, 3, 9)},
    r"x: expected shape \[4, 27\], got \[4, 26\]": {0: torch.zeros(4, 26)},
    "x: expected dtype float32, float64, float16 or bfloat16, got Long": {0: torch.zeros(4, 27).long()},
    r"y: expected shape \[4, 48\], got \[3, 48\]": {1: torch.zeros(3, 48)},
    "y: expected dtype Float as x has, got Double": {1: torch.zeros(4, 48).double()},
    r"a: expected shape \[4, 18\], got \[4, 9\]": {2: torch.zeros(4, 9)},
    r"b: expected shape \[4, 24\], got \[24\]": {3: torch.zeros(24)},
    r"c: expected shape \[4, 30\], got \[1, 30\]": {4: torch.zeros(1, 30)},
    "b: expected a dense tensor, got layout torch.sparse_coo": {3: torch.zeros(4, 24).to_sparse()},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_operands(message):
    arguments = dict(enumerate([torch.zeros(4, 27), torch.zeros(4, 48), None, None, None]))
    with pytest.raises(RuntimeError, match=f"eqk::gaunt_product: {message}"):
        OPS.gaunt_product(*(arguments | BAD[message]).values(), str(ALL))
    with pytest.raises(RuntimeError, match="wanted: expected 5 flags, got 1"):
        OPS.gaunt_product_backward(*arguments.values(), torch.zeros(4, 75), str(ALL), [True])


def test_bad_arguments():
    x = torch.zeros(4, 9, 3)
    for message, error, arguments in (
        ("x: expected a tensor, got None", TypeError, (None, x)),
        ("a: expected a tensor, got 2", TypeError, (x, x, 2, {"a": 2})),
        ("y: expected at least 2 dimensions", RuntimeError, (x, x[0, 0])),
        (r"y: expected shape \[..., \(lmax \+ 1\)\^2, channels\]", RuntimeError, (x, x[:, :8])),
        (r"x: expected shape \[..., \(lmax \+ 1\)\^2, channels\]", RuntimeError, (x[:, :0], x)),
        ("y: expected 3 channels as x has, or 1, got 2", RuntimeError, (x, x[..., :2])),
        ("lmax_out: expected a degree from 0 to 20, got -1", ValueError, (x, x, -1)),
        ("lmax_out: expected a degree from 0 to 20, got 21", ValueError, (x, x, 21)),
        ("kind: expected one of even, odd, all, got 'both'", ValueError, (x, x, 2, {"kind": "both"})),
        ("normalization: expected one of", ValueError, (x, x, 2, {"normalization": "norm"})),
        ("leading dimensions that broadcast", RuntimeError, (x, x[:3])),
        (r"a: expected shape \[..., \(1, 3, 3\)\]", RuntimeError, (x, x, 2, {"a": torch.zeros(1, 2, 3)})),
        ("expected a rank of at least 1, got 0", RuntimeError, (x, x, 2, {"b": torch.zeros(0, 3, 3)})),
        ("c: expected at least 3 dimensions", RuntimeError, (x, x, 2, {"c": torch.zeros(3, 3)})),
        ("x: expected a dense tensor", RuntimeError, (x.to_sparse(), x)),
        ("dtype", RuntimeError, (x, x.double())),
    ):
        *arguments, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
        with pytest.raises(error, match=message):
            eqk.gaunt_product(*arguments, **options)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("irreps_out: expected irreps that a path from 4x0e and 4x0e reaches, got 4x0o", ("4x0e", "4x0e", "4x0o")),
        ("irreps_out: expected irreps that a path from 4x1o and 4x1o reaches, got 4x1o", ("4x1o", "4x1o", "4x1o")),
        ("irreps_out: expected irreps that a path from  and 4x1o reaches|irreps_out", ("", "4x1o", "4x1e")),
        ("irreps_in1: expected one multiplicity", ("4x1o+3x0e", "4x1o", "4x1e")),
        ("irreps_in2: expected each irrep once", ("4x1o", "4x1o+4x0e+4x1o", "4x1e")),
        ("irreps_in2: expected multiplicity 4 as in irreps_in1, or 1", ("4x1o", "3x1o", "4x1e")),
        ("irreps_out: expected multiplicity 4 as in the inputs", ("4x1o", "4x1o", "3x1e")),
        ("rank: expected a positive number or None, got 0", ("4x1o", "4x1o", "4x1e", 0)),
        ("normalization: expected one of", ("4x1o", "4x1o", "4x1e", None, "norm")),
        ("layout: expected one of", ("4x1o", "4x1o", "4x1e", None, "component", "x")),
    ],
)
def test_bad_modules(message, arguments):
    with pytest.raises(ValueError, match=message):
        GauntTensorProduct(*arguments)


def test_bad_module_operands():
    module = GauntTensorProduct("4x1o", "4x1o", "4x1e")
    with pytest.raises(RuntimeError, match=r"x: expected shape \[..., 12\], got \[2, 11\]"):
        module(torch.zeros(2, 11), torch.zeros(2, 12))
    with pytest.raises(TypeError, match="y: expected a tensor, got None"):
        module(torch.zeros(2, 12), None)


BAD_PLANS = {
    "lmax1: expected a degree from 0 to 20, got 21": dict(lmax1=21),
    "lmax_out: expected a degree from 0 to 20, got -1": dict(lmax_out=-1),
    "channels1: expected a number from 0 to": dict(channels1=-1),
    "channels2: expected 3 as in x, or 1, got 2": dict(channels2=2),
    "rank: expected a number from 1 to 4096, got 0": dict(rank=0),
    "even: expected a finite coefficient": dict(even=float("nan")),
    "scale2: expected 3 finite numbers": dict(scale2=(1.0,)),
    "layout_out: expected one of mul_ir, ir_mul": dict(layout_out="x"),
}


@pytest.mark.parametrize("message", BAD_PLANS)
def test_bad_plans(message):
    good = dict(lmax1=1, lmax2=2, lmax_out=2, channels1=3, channels2=3)
    eqk.GauntPlan(**good)
    with pytest.raises(ValueError, match=message):
        eqk.GauntPlan(**good | BAD_PLANS[message])


def test_plan_text(rng):
    """Complete in its string, hashable, and the same language for both parsers."""
    texts = [str(plan) for plan in GAUNTS.values()] + [str(random_gaunt_plan(rng)) for _ in range(40)]
    for text in texts:
        plan = eqk.GauntPlan.parse(text)
        assert str(plan) == text
        assert hash(plan) == hash(dataclasses.replace(plan))
    assert texts[0] == (
        "5x2 * 5x2 -> 5x2 even 1.0 odd 0.0 rank 1 [ir_mul,ir_mul,ir_mul] {1.0 1.0 1.0; 1.0 1.0 1.0; 1.0 1.0 1.0}"
    )
    alphabet = "0123456789 xe+-*>[],;:{}._mulirodnk\n\x00é"
    for _ in range(3000):
        text = min(rng.sample(texts, 3), key=len)
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(("", rng.choice(alphabet), text[at] * 2)) + text[at + 1 :]
        try:
            eqk.GauntPlan.parse(text)
            expected = "expected 2 dimensions"
        except ValueError:
            expected = "plan: expected|embedded null"
        with pytest.raises((RuntimeError, ValueError), match=expected):
            OPS.gaunt_product.default.redispatch(
                torch._C.DispatchKeySet(torch._C.DispatchKey.CPU),
                torch.zeros(1),
                torch.zeros(1),
                None,
                None,
                None,
                text,
            )
