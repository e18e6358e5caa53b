"""e3tools (0.1.3): its convolutions, alone and in a block that gates them."""

import copy
import pickle

import e3tools.nn
import pytest
import torch

import eqk

IN, SH, OUT = "8x0e + 5x1o + 3x2e", "0e + 1o + 2e", "6x0e + 4x1o + 3x1e + 2x2e"


def graph(dtype, edges=30):
    import e3nn.o3

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, e3nn.o3.Irreps(IN).dim, generator=generator, dtype=dtype)
    # Some nodes have no edges.
    index = torch.randint(5, (2, edges), generator=generator)
    attr, sh = (torch.randn(edges, n, generator=generator, dtype=dtype) for n in (4, 9))
    return x, index, attr, sh


def layers(cls, dtype):
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        both.append(cls(IN, OUT, SH, 4).to(dtype))
    return *both, eqk.convert(both[1])


CLASSES = [e3tools.nn.Conv, e3tools.nn.SeparableConv, e3tools.nn.ConvBlock, e3tools.nn.SeparableConvBlock]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_derivatives(cls, dtype):
    """Sums, gradients and gradients of those, by nodes, edges and parameters."""
    old, new, report = layers(cls, dtype)
    assert sum(row.after == "eqk.adapters.e3tools.FusedConv" for row in report.swapped) == 1
    results = []
    for module in (old, new):
        x, index, attr, sh = graph(dtype)
        leaves = [t.requires_grad_() for t in (x, attr, sh)]
        out = module(x, index, attr, sh)
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        loss = out.square().sum() + sum(g.square().sum() for g in first)
        second = torch.autograd.grad(loss, [*leaves, *module.parameters()], allow_unused=True)
        results.append((out, *first, *second))
    largest = max(float(t.detach().abs().max()) for t in results[0] if t is not None)
    for a, b in zip(*results, strict=True):
        if a is not None:
            # e3nn keeps its symbols in float32 where it was built so.
            assert (a - b).abs().max() < {torch.float64: 1e-7, torch.float32: 1e-5}[dtype] * largest


@pytest.mark.parametrize("cls", CLASSES[:2])
def test_state_and_copies(cls):
    old, new, _ = layers(cls, torch.float32)
    assert list(new.state_dict()) == list(old.state_dict())
    inputs = graph(torch.float32)
    with torch.no_grad():
        for p in new.parameters():
            p.mul_(1.1)
    old.load_state_dict(new.state_dict())
    new.load_state_dict(old.state_dict())
    for other in (old, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        torch.testing.assert_close(other(*inputs), new(*inputs), rtol=1e-4, atol=1e-5)
    assert not eqk.convert(new).swapped


@pytest.mark.parametrize("cls", CLASSES[:2])
def test_no_edges(cls):
    old, new, _ = layers(cls, torch.float32)
    inputs = graph(torch.float32, edges=0)
    assert torch.equal(new(*inputs), old(*inputs))


@pytest.mark.parametrize("cls", CLASSES[:2])
def test_compiled(cls):
    _, new, _ = layers(cls, torch.float32)
    inputs = graph(torch.float32)
    compiled = torch.compile(new, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), new(*inputs))


def test_left():
    """A product of e3nn's that is experimental, and a hook on a product that would not be called."""
    _, _, report = layers(e3tools.nn.ExperimentalConv, torch.float32)
    assert not any("adapters" in row.after for row in report.swapped)
    conv = e3tools.nn.SeparableConv(IN, OUT, SH, 4)
    conv.tp.register_forward_hook(lambda *_: None)
    assert "has hooks" in next(row.reason for row in eqk.convert(conv).left if row.name == "(root)")


def test_attention():
    """Attention calls apply_per_edge, which gathers."""
    torch.manual_seed(0)
    old = e3tools.nn.Attention(IN, OUT, SH, "4x0e + 2x1o", "4x0e + 2x1o", 4)
    new = copy.deepcopy(old)
    eqk.convert(new)
    inputs = graph(torch.float32)
    torch.testing.assert_close(new(*inputs), old(*inputs), rtol=1e-4, atol=1e-4)
