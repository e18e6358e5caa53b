"""Sums of harmonics of edges times radial functions against e3nn's harmonics and Wigner matrices."""

import e3nn.o3
import pytest
import torch

import eqk
from eqk.testing import TOLERANCES, assert_close, derivatives, random_directions, relative_error, rotate

NODES = 6


def operands(lmax, channels, generator, edges=40, dtype=torch.float64):
    vec = torch.randn(edges, 3, generator=generator, dtype=torch.float64)
    radial = torch.randn(edges, lmax + 1, channels, generator=generator, dtype=torch.float64)
    index = torch.randint(NODES - 1, (edges,), generator=generator)  # the last node has no edges
    return vec.to(dtype), radial.to(dtype), index


def naive(vec, radial, index, rescale=1.0):
    lmax = radial.shape[1] - 1
    parts = [
        e3nn.o3.spherical_harmonics(l, vec, True, "norm")[:, :, None] * radial[:, l, None] for l in range(lmax + 1)
    ]
    messages = torch.cat(parts, 1) / rescale
    return messages.new_zeros(NODES, *messages.shape[1:]).index_add(0, index, messages)


@pytest.mark.parametrize("lmax, channels", [(0, 3), (1, 1), (2, 5), (4, 16), (6, 2)])
def test_values_and_derivatives(lmax, channels, generator):
    vec, radial, index = operands(lmax, channels, generator)

    def fused(vec, radial):
        return eqk.edge_degree_embedding(vec, radial, index, NODES, 5.0)

    def truth(vec, radial):
        return naive(vec, radial, index, 5.0)

    directions = random_directions([vec, radial], fused(vec, radial), 3, generator)
    results = (derivatives(f, [vec, radial], directions) for f in (fused, truth))
    for order, (got, expected) in enumerate(zip(*results, strict=True)):
        for a, b in zip(got, expected, strict=True):
            assert relative_error(a, b) < 1e-10, order
    single = fused(vec.float(), radial.float())
    assert_close(single, truth(vec.float().double(), radial.float().double()))
    assert not single[-1].any()


def test_is_the_column_of_the_wigner_matrix(generator, float64_default):
    """fairchem's: features of order 0 in the frame of an edge, whose axis is y, turned back."""
    vec, radial, index = operands(3, 4, generator)
    alpha, beta = e3nn.o3.xyz_to_angles(vec)
    turns = [e3nn.o3.wigner_D(l, alpha, beta, torch.randn(40, generator=generator).double()) for l in range(4)]
    messages = torch.cat([d[:, :, l, None] * radial[:, l, None] for l, d in enumerate(turns)], 1)
    expected = torch.zeros(NODES, 16, 4, dtype=torch.float64).index_add(0, index, messages)
    assert relative_error(eqk.edge_degree_embedding(vec, radial, index, NODES), expected) < 1e-12


def test_gradcheck(generator):
    vec, radial, index = operands(2, 2, generator, 5)

    def fused(vec, radial):
        return eqk.edge_degree_embedding(vec, radial, index, NODES)

    leaves = vec.requires_grad_(), radial.requires_grad_()
    assert torch.autograd.gradcheck(fused, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fused, leaves)


def test_equivariance(generator):
    vec, radial, index = operands(4, 3, generator)
    angle = torch.randn(3, generator=generator)
    irreps = [(3, (l, (-1) ** l)) for l in range(5)]
    out = eqk.edge_degree_embedding(vec, radial, index, NODES)
    turned = rotate(out.flatten(1), irreps, angle, "ir_mul", inversion=True).view_as(out)
    moved = rotate(vec, "1o", angle, inversion=True)
    assert relative_error(eqk.edge_degree_embedding(moved, radial, index, NODES), turned) < 1e-12
    assert relative_error(turned, out) > 1e-3


def test_order_of_a_graph(generator):
    vec, radial, index = operands(2, 8, generator)
    graph = eqk.Graph.from_edges(index, index, NODES)
    given = eqk.edge_degree_embedding(vec, radial, index.int(), NODES, by_index=graph.by_dst.int())
    assert torch.equal(given, eqk.edge_degree_embedding(vec, radial, index, NODES))
    with pytest.raises(RuntimeError, match="by_dst"):
        eqk.edge_degree_embedding(vec, radial, index, NODES, by_index=graph.by_dst.flip(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit(dtype, generator):
    vec, radial, index = operands(3, 8, generator, dtype=dtype)
    expected = naive(vec.double(), radial.double(), index, 5.0)
    out = eqk.edge_degree_embedding(vec, radial, index, NODES, 5.0)
    assert out.dtype == dtype
    assert relative_error(out, expected) < 3 * TOLERANCES[dtype][0]  # directions and harmonics are rounded, too
    wide = eqk.edge_degree_embedding(vec.double(), radial, index, NODES, 5.0)
    assert wide.dtype == torch.float64
    assert relative_error(wide, expected) < 1e-12


def test_none():
    index = torch.zeros(0, dtype=torch.long)
    vec, radial = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    for nodes in (0, 2):
        out = eqk.edge_degree_embedding(vec, radial, index, nodes)
        assert torch.equal(out, torch.zeros(nodes, 9, 4))
        out.sum().backward()
    assert eqk.edge_degree_embedding(torch.ones(2, 3), torch.ones(2, 2, 0), torch.zeros(2).long(), 1).shape == (1, 4, 0)


def test_compile(generator):
    vec, radial, index = operands(2, 4, generator)

    def f(vec, radial, index):
        return eqk.edge_degree_embedding(vec, radial, index, NODES, 5.0)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    leaves = vec.requires_grad_(), radial.requires_grad_()
    results = []
    for function in (compiled, f):
        out = function(*leaves, index)
        results.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
        assert_close(out, naive(*leaves, index, 5.0))
    for got, expected in zip(*results, strict=True):
        assert_close(got, expected)


def test_bad_input():
    v, r, i = torch.ones(4, 3), torch.ones(4, 3, 2), torch.zeros(4, dtype=torch.long)
    for message, error, arguments in (
        ("vec: expected a tensor", TypeError, (None, r, i, 3)),
        (r"vec: expected shape \[edges, 3\], got \[4, 2\]", RuntimeError, (v[:, 1:], r, i, 3)),
        ("vec: expected a floating-point dtype", RuntimeError, (v.long(), r, i, 3)),
        (r"radial: expected shape \[4, lmax \+ 1, channels\], got \[4, 6\]", RuntimeError, (v, r.flatten(1), i, 3)),
        (r"radial: expected shape \[4, lmax \+ 1, channels\], got \[3, 3, 2\]", RuntimeError, (v, r[1:], i, 3)),
        ("radial: expected 1 to 21 degrees, got 0", RuntimeError, (v, r[:, :0], i, 3)),
        ("radial: expected device cpu, got meta", RuntimeError, (v, r.to("meta"), i, 3)),
        (r"index: expected shape \[4\], got \[3\]", ValueError, (v, r, i[1:], 3)),
        ("index: expected indices from 0 to 2, got 3 at position 0", ValueError, (v, r, i + 3, 3)),
        ("rescale: expected a number but zero, got 0", ValueError, (v, r, i, 3, 0)),
        ("rescale: expected a number but zero, got nan", ValueError, (v, r, i, 3, float("nan"))),
    ):
        with pytest.raises(error, match=message):
            eqk.edge_degree_embedding(*arguments)
