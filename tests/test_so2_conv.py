"""eqk.so2_conv against complex numbers, and against Clebsch-Gordan products with the harmonics of the edge."""

import e3nn.o3
import pytest
import torch
from test_rotate import m_primary, of_rows

import eqk
from eqk.testing import assert_close

SIZES = [(0, 0, 3, 2, 1), (2, 2, 4, 3, 6), (3, 0, 2, 2, 1), (4, 2, 5, 2, 0), (6, 4, 3, 3, 1)]


def layer(lmax, mmax, ins, outs, extra, generator, *systems):
    n = lmax + 1
    shapes = [(n * outs + extra, n * ins), (n * outs + extra,)]
    shapes += [(2 * (n - m) * outs, (n - m) * ins) for m in range(1, mmax + 1)]
    return [
        torch.randn(*(systems if k != 1 else ()), *shape, generator=generator, dtype=torch.float64)
        for k, shape in enumerate(shapes)
    ]


def truth(lmax, mmax, outs, extra):
    """With m and -m as the real and the imaginary part of one row, and [A; B] as those of a matrix."""

    def conv(x, zero, bias, *orders):
        place = {row: n for n, row in enumerate(m_primary(lmax, mmax))}
        first = torch.einsum("elc,olc->eo", x[:, : lmax + 1], zero.unflatten(1, (lmax + 1, -1))) + bias
        rows = {(l, 0): first[:, extra + l * outs : extra + (l + 1) * outs] for l in range(lmax + 1)}
        for m, weight in enumerate(orders, 1):
            degrees = range(m, lmax + 1)
            z = torch.stack([torch.complex(x[:, place[l, m]], x[:, place[l, -m]]) for l in degrees], 1)
            matrix = torch.complex(*weight.chunk(2)).unflatten(1, (len(degrees), -1)).unflatten(0, (len(degrees), -1))
            out = torch.einsum("elc,kolc->eko", z, matrix)
            for k, l in enumerate(degrees):
                rows[l, m], rows[l, -m] = out[:, k].real, out[:, k].imag
        return torch.stack([rows[row] for row in place], 1), first[:, :extra]

    return conv


@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients(sizes, generator, float64_default):
    lmax, mmax, ins, outs, extra = sizes
    parameters = layer(*sizes, generator)
    x = torch.randn(7, len(m_primary(lmax, mmax)), ins, generator=generator, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *parameters)]
        wide = [t.detach().double().requires_grad_() for t in leaves]
        got = eqk.so2_conv(leaves[0], leaves[1:], lmax, mmax, extra)
        want = truth(lmax, mmax, outs, extra)(*wide)
        cotangents = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in want]
        results = [
            (*out, *torch.autograd.grad(out, at, [c.to(out[0].dtype) for c in cotangents]))
            for out, at in ((got, leaves), (want, wide))
        ]
        for a, b in zip(*results, strict=True):
            assert_close(a, b, 1)


def test_is_a_tensor_product(generator, float64_default):
    """Each path of a tensor product with the harmonics of the pole is such a layer, and they span all of them."""
    pole = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    rows = m_primary(3, 3)
    x = torch.randn(1, 16, 1, generator=generator, dtype=torch.float64)
    for lin in range(4):
        for lout in range(4):
            found = []
            for l in range(abs(lin - lout), lin + lout + 1):
                y = e3nn.o3.spherical_harmonics(l, pole, True)
                path = torch.einsum("ifo,f->oi", e3nn.o3.wigner_3j(lin, l, lout, dtype=torch.float64), y)
                parameters = [torch.zeros_like(p) for p in layer(3, 3, 1, 1, 0, generator)]
                parameters[0][lout, lin] = path[lout, lin]
                for m in range(1, min(lin, lout) + 1):
                    half = len(parameters[m + 1]) // 2
                    parameters[m + 1][lout - m, lin - m] = path[lout + m, lin + m]
                    parameters[m + 1][half + lout - m, lin - m] = path[lout - m, lin + m]
                got, _ = eqk.so2_conv(x, parameters, 3, 3)
                at = torch.stack([x[:, rows.index((lin, m)), 0] for m in range(-lin, lin + 1)], 1)
                want = at @ path.T
                out = torch.stack([got[:, rows.index((lout, m)), 0] for m in range(-lout, lout + 1)], 1)
                assert_close(out, want)
                found.append(torch.cat([p.flatten() for p in parameters]))
            assert torch.linalg.matrix_rank(torch.stack(found)) == 2 * min(lin, lout) + 1 == len(found)


def test_three_products(generator):
    """A quarter less than four for each order from 1, whatever the channels."""
    parameters = [t.float() for t in layer(4, 2, 8, 16, 3, generator)]
    with torch.profiler.profile(with_flops=True) as profile:
        eqk.so2_conv(torch.randn(64, 19, 8), parameters, 4, 2, 3)
    flops = sum(event.flops for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))
    assert flops == 2 * 64 * (40 * 83 + 3 * 32 * 64 + 3 * 24 * 48)


@pytest.mark.parametrize(("kind", "columns"), [("order", 6), ("degree", 6), ("order", 1), ("edge", 2)])
def test_weights(kind, columns, generator, float64_default):
    parameters = layer(3, 2, 6, 4, 2, generator)
    x = torch.randn(5, 14, 6, generator=generator, dtype=torch.float64)
    groups = {"edge": 1, "degree": 4, "order": 9}[kind]
    weights = torch.randn(5, groups, columns, generator=generator, dtype=torch.float64)
    got = eqk.so2_conv(x, parameters, 3, 2, 2, weights)
    want = truth(3, 2, 4, 2)(x * of_rows(weights, 3, 2, kind, 6), *parameters)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


def test_systems(generator, float64_default):
    """Parameters of their own for parts of the edges, one of them without any."""
    parameters = layer(2, 1, 3, 2, 4, generator, 3)
    x = torch.randn(9, 7, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(9, 3, 3, generator=generator, dtype=torch.float64)
    got = eqk.so2_conv(x, parameters, 2, 1, 4, weights, systems=[5, 0, 4])
    for n, edges in ((0, slice(0, 5)), (2, slice(5, 9))):
        own = [t if k == 1 else t[n] for k, t in enumerate(parameters)]
        want = eqk.so2_conv(x[edges], own, 2, 1, 4, weights[edges])
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a[edges], b)


def test_no_edges(generator):
    parameters = [t.float() for t in layer(2, 2, 3, 2, 4, generator)]
    out, scalars = eqk.so2_conv(torch.zeros(0, 9, 3), parameters, 2, 2, 4)
    assert out.shape == (0, 9, 2) and scalars.shape == (0, 4)


def test_bad_input(generator):
    x, good = torch.randn(5, 9, 3), [t.float() for t in layer(2, 2, 3, 2, 4, generator)]
    for change, message in (
        ({"x": x[0]}, "x: expected at least 3 dimensions, got shape"),
        ({"x": x[:, :8]}, r"x: expected shape \[edges, 9, channels\], got \[5, 8, 3\]"),
        ({"x": x[..., :2]}, "x: expected 3 channels as the layer has, got 2"),
        ({"x": x.double()}, "expected dtype torch.float64 as x has, got torch.float32"),
        ({"layer": [good[0][:-1], *good[1:]]}, r"layer\[0\]: expected shape \[3 channels out \+ 4, 3 channels in\]"),
        ({"layer": [good[0], good[1][1:], *good[2:]]}, r"layer\[1\]: expected shape \[10\], got \[9\]"),
        ({"layer": [*good[:3], good[3][:, 1:]]}, r"layer\[3\]: expected shape \[4, 3\], got \[4, 2\]"),
        (
            {"weights": torch.ones(5, 4, 3)},
            r"weights: expected shape \[5, 1, 3 or 6, a divisor of 3\], got \[5, 4, 3\]",
        ),
        ({"weights": torch.ones(5, 1, 2)}, "weights: expected shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            eqk.so2_conv(**{"x": x, "layer": good, "lmax": 2, "mmax": 2, "extra": 4} | change)
    with pytest.raises(TypeError, match=r"layer: expected mmax \+ 2 = 4 parameters.*got 3 of them"):
        eqk.so2_conv(x, good[:3], 2, 2, 4)
    with pytest.raises(ValueError, match="mmax: expected an order from 0 to lmax, 2, got 3"):
        eqk.so2_conv(x, good, 2, 3, 4)
    with pytest.raises(ValueError, match=r"systems: expected numbers of edges that sum to 5, got \[3, 1\]"):
        eqk.so2_conv(x, good, 2, 2, 4, systems=[3, 1])
