"""Attention weights over the edges of nodes, with and without the smooth cutoff, and the polynomial of the cutoff."""

from fractions import Fraction

import pytest
import torch
from test_tensor_product import assert_same_bits

import eqk
from eqk import nn
from eqk.testing import TOLERANCES, assert_close, derivatives, random_directions, relative_error

NODES, EDGES, HEADS = 7, 40, 3


def operands(generator, edges=EDGES, dtype=torch.float64):
    """Nodes 2 and 6 have no edges; large logits that differ between nodes; envelopes of very different sizes."""
    index = torch.tensor([0, 1, 3, 4, 5])[torch.randint(5, (edges,), generator=generator)]
    logits = 3 * torch.randn(edges, HEADS, generator=generator, dtype=torch.float64) + 20.0 * index[:, None] - 50
    envelope = torch.rand(edges, generator=generator, dtype=torch.float64) ** 8
    envelope[::5] = 0
    return logits.to(dtype), index, envelope.to(dtype)


def naive(logits, index, nodes, envelope=None, eps=0.0):
    """Node by node, with no shift but that of eps: numerator and denominator times exp(maximum)."""
    out = torch.zeros_like(logits)
    u = torch.ones_like(logits[:, 0]) if envelope is None else envelope
    for node in range(nodes):
        at = index == node
        if at.any():
            terms = u[at, None] * logits[at].exp()
            rows = terms / (terms.sum(0) + eps * logits[at].amax(0).exp())
            out = out.index_put((at,), u[at, None] * rows)
    return out


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("eps", [None, 1e-16, 1e-8, 0.3], ids=str)
def test_values_and_derivatives(eps, dtype, generator):
    """To third order; with a large eps the derivative of the maximum counts as much as any."""
    logits, index, envelope = operands(generator)

    def fused(a, u=None):
        options = {} if eps is None else {"envelope": u, "eps": eps}
        return eqk.segment_softmax(a, index.to(dtype), NODES, **options)

    def truth(a, u=None):
        return naive(a, index, NODES, u, eps or 0.0)

    arguments = [logits] if eps is None else [logits, envelope + 0.01]
    directions = random_directions(arguments, fused(*arguments), 3, generator)
    pairs = zip(derivatives(fused, arguments, directions), derivatives(truth, arguments, directions), strict=True)
    for order, (got, expected) in enumerate(pairs):
        for a, b in zip(got, expected, strict=True):
            assert relative_error(a, b) < 1e-11, order
    if eps is not None:
        assert_close(fused(logits, envelope), truth(logits, envelope))


def test_is_torch_softmax(generator):
    logits, index, _ = operands(generator)
    out = eqk.segment_softmax(logits, index, NODES)
    for node in index.unique():
        assert_close(out[index == node], logits[index == node].softmax(0))


def test_gradcheck(generator):
    index = torch.tensor([2, 0, 2, 2, 0])
    logits = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    envelope = (0.1 + 0.2 * torch.rand(5, generator=generator, dtype=torch.float64)).requires_grad_()
    for arguments in ((logits,), (logits, envelope)):

        def fused(a, u=None):
            return eqk.segment_softmax(a, index, 4, u, 0.2)

        assert torch.autograd.gradcheck(fused, arguments, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(fused, arguments)


def test_gradient_of_the_maximum_counts(generator):
    """That of a function whose maximum is detached is another one, where envelopes are as small as eps."""
    logits, index, _ = operands(generator)
    logits.requires_grad_()
    u = torch.full((EDGES,), 1e-16, dtype=torch.float64)
    columns = index[:, None].expand(-1, HEADS)
    largest = torch.full((NODES, HEADS), -1e9, dtype=torch.float64)
    largest = largest.scatter_reduce(0, columns, logits.detach(), "amax")[index]
    terms = u[:, None] * (logits - largest).exp()
    detached = u[:, None] * terms / (torch.zeros(NODES, HEADS).double().index_add(0, index, terms) + 1e-16)[index]
    ours = eqk.segment_softmax(logits, index, NODES, u)
    assert relative_error(ours, detached) < 1e-12
    g = torch.randn(EDGES, HEADS, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(t, logits, g)[0] for t in (ours, detached, naive(logits, index, NODES, u, 1e-16))]
    assert relative_error(gradients[0], gradients[2]) < 1e-11
    assert relative_error(gradients[1], gradients[2]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype, generator):
    logits, index, envelope = operands(generator)
    logits -= 20.0 * index[:, None] - 50
    narrow = [t.to(dtype) for t in (logits, envelope)]
    for given in (None, narrow[1]):
        out = eqk.segment_softmax(narrow[0], index, NODES, given)
        assert out.dtype == dtype
        wide = None if given is None else given.double()
        expected = naive(narrow[0].double(), index, NODES, wide, 0.0 if given is None else 1e-16)
        assert relative_error(out, expected) < TOLERANCES[dtype][0]
    assert eqk.segment_softmax(narrow[0], index, NODES, envelope).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(eqk.segment_softmax(*narrow[:1], index, NODES, narrow[1]), out)


def test_a_number_more_for_all_logits_of_a_node(generator):
    logits, index, envelope = operands(generator)
    for factor in (0.0, 1e-18, 1.0):
        shifted = logits + 1024.0 * torch.randint(-4, 4, (NODES, 1), generator=generator)[index]
        results = [eqk.segment_softmax(a, index, NODES, factor * envelope) for a in (logits, shifted)]
        assert relative_error(*results) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_beyond_the_cutoff(dtype, generator):
    """Envelopes that are all zero, or next to it: weights are too, and three derivatives finite."""
    distances = torch.tensor([0.3, 0.9, 1 - 1e-4, 1.0, 1.0, 1.2, 1.3, 0.2, 1.1, 1 - 1e-6], dtype=dtype)
    index = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 4])
    logits = torch.randn(10, 2, generator=generator).to(dtype)
    cutoff = nn.PolynomialEnvelope()

    def attention(a, d):
        return eqk.segment_softmax(a, index, 6, cutoff(d))

    directions = random_directions([logits, distances], attention(logits, distances), 3, generator)
    for order in derivatives(attention, [logits, distances], directions):
        for t in order:
            assert t.isfinite().all()
    out = attention(logits, distances)
    assert not out[distances >= 1].any()
    assert 0 < out[2].max() < 1e-10
    assert_close(out[[2, 7]], cutoff(distances[[2, 7]])[:, None].expand(2, 2), dtype=dtype)


def test_edges_come_smoothly(generator):
    logits, index, envelope = operands(generator)
    before = eqk.segment_softmax(logits[1:], index[1:], NODES, envelope[1:])
    envelope[0] = 1e-20
    after = eqk.segment_softmax(logits, index, NODES, envelope)
    assert relative_error(after[1:], before) < 1e-12


def test_no_edges():
    for nodes in (0, 3):
        logits = torch.zeros(0, 2, requires_grad=True)
        out = eqk.segment_softmax(logits, torch.zeros(0, dtype=torch.long), nodes, torch.zeros(0))
        assert out.shape == (0, 2)
        out.sum().backward()
    assert eqk.segment_softmax(torch.zeros(3, 0), torch.zeros(3, dtype=torch.long), 1).shape == (3, 0)


def results_of(logits, index, envelope, nodes):
    leaves = [logits.clone().requires_grad_(), envelope.clone().requires_grad_()]
    out = eqk.segment_softmax(leaves[0], index, nodes, leaves[1])
    return out, *torch.autograd.grad(out.sin().sum(), leaves)


def test_same_bits_for_any_number_of_threads(generator):
    torch.use_deterministic_algorithms(False)  # which would change what PyTorch does
    index = torch.randint(500, (40_000,), generator=generator)
    logits, envelope = torch.randn(40_000, 8, generator=generator), torch.rand(40_000, generator=generator)
    assert_same_bits(*[lambda: results_of(logits, index, envelope, 500)] * 4, threads=(1, 4, 4, 4))


def test_sums_by_indexing(generator, monkeypatch):
    """What other devices than the CPU run."""
    logits, index, envelope = operands(generator)
    expected = results_of(logits, index, envelope, NODES)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    for a, b in zip(results_of(logits, index, envelope, NODES), expected, strict=True):
        assert_close(a, b)


@pytest.mark.gpu
def test_gpu(generator):
    torch.use_deterministic_algorithms(False)
    index = torch.randint(500, (40_000,), generator=generator)
    given = torch.randn(40_000, 8, generator=generator), index, torch.rand(40_000, generator=generator)
    first, again = (results_of(*(t.cuda() for t in given), 500) for _ in range(2))
    for a, b, c in zip(first, again, results_of(*given, 500), strict=True):
        assert torch.equal(a, b)
        assert_close(a.cpu(), c)


def test_transforms(generator):
    logits, index, envelope = operands(generator)
    batch = torch.stack([logits, logits.flip(0)])
    mapped = torch.func.vmap(lambda a: eqk.segment_softmax(a, index, NODES, envelope))(batch)
    for a, b in zip(mapped, batch, strict=True):
        assert_close(a, eqk.segment_softmax(b, index, NODES, envelope))

    def f(a, u):
        return eqk.segment_softmax(a, index, NODES, u)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    leaves = [logits.requires_grad_(), envelope.requires_grad_()]
    for got, expected in zip(
        (compiled(*leaves), *torch.autograd.grad(compiled(*leaves).sin().sum(), leaves)),
        (f(*leaves), *torch.autograd.grad(f(*leaves).sin().sum(), leaves)),
        strict=True,
    ):
        assert_close(got, expected)


def test_bad_input():
    a, i, u = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), torch.ones(4)
    for message, error, arguments in (
        ("logits: expected a tensor", TypeError, (None, i, 3)),
        (r"logits: expected shape \[edges, heads\], got \[4\]", RuntimeError, (u, i, 3)),
        ("logits: expected a floating-point dtype, got torch.int64", RuntimeError, (a.long(), i, 3)),
        ("index: expected a tensor", TypeError, (a, [0, 0, 0, 0], 3)),
        ("index: expected dtype int32 or int64", ValueError, (a, u, 3)),
        (r"index: expected shape \[4\], got \[3\]", ValueError, (a, i[1:], 3)),
        (r"index: expected shape \[edges\], got \[4, 2\]", ValueError, (a, a.long(), 3)),
        ("index: expected indices from 0 to 2, got 3 at position 0", ValueError, (a, i + 3, 3)),
        ("index: expected indices from 0 to 2, got -1 at position 0", ValueError, (a, i - 1, 3)),
        ("index: expected device cpu, got meta", ValueError, (a, i.to("meta"), 3)),
        ("expected at least 0 nodes, got -1", ValueError, (a[:0], i[:0], -1)),
        ("cannot be interpreted as an integer", TypeError, (a, i, 3.0)),
        (r"envelope: expected shape \[4\], got \[4, 1\]", RuntimeError, (a, i, 3, u[:, None])),
        ("envelope: expected a floating-point dtype", RuntimeError, (a, i, 3, u.bool())),
        ("envelope: expected device cpu, got meta", RuntimeError, (a, i, 3, u.to("meta"))),
        ("eps: expected a number from 1.17.*e-38, got 0.0", ValueError, (a, i, 3, u, 0.0)),
        ("eps: expected a number", ValueError, (a, i, 3, u, float("nan"))),
    ):
        with pytest.raises(error, match=message):
            eqk.segment_softmax(*arguments)


@pytest.mark.parametrize("p", [1, 2, 3, 5, 6, 9])
def test_polynomial_envelope(p, generator):
    """Digits near the cutoff that DimeNet's form of the polynomial has lost, none negative; derivatives."""
    cutoff = nn.PolynomialEnvelope(p)
    close = 1 - 2.0 ** -torch.arange(1, 20)
    d = torch.cat([torch.rand(50, generator=generator), close, torch.tensor([0.0, 1.0, 1.5, 1e30, torch.inf])])
    for dtype in (torch.float32, torch.float64):
        got = cutoff(d.to(dtype))
        for x, u in zip(d.tolist(), got.tolist(), strict=True):
            q = Fraction(min(x, 1))
            exact = 1 - Fraction((p + 1) * (p + 2), 2) * q**p + p * (p + 2) * q ** (p + 1)
            exact -= Fraction(p * (p + 1), 2) * q ** (p + 2)
            assert abs(Fraction(u) - exact) <= exact * (10 + p) * Fraction(torch.finfo(dtype).eps)
    assert cutoff(torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2
    inside = (0.05 + 0.9 * torch.rand(4, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(cutoff, inside, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cutoff, inside)
    ends = torch.tensor([1 - 1e-9, 1.0, 1.3, 2.0], dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(cutoff(ends).sum(), ends, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), ends)[0]
    assert first.abs().max() < 1e-14
    assert second.abs().max() < 1e-5
    assert not second[2:].any()


def test_polynomial_envelope_is_named():
    assert str(nn.PolynomialEnvelope()) == "PolynomialEnvelope(exponent=5)"
    for exponent in (0, 5.0, "5"):
        with pytest.raises(ValueError, match="exponent: expected an integer from 1"):
            nn.PolynomialEnvelope(exponent)
