"""so2_edge_message in Triton, under Triton's interpreter: tests of the op on the CPU, and what only this backend has.

Run by test_triton.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import math

import pytest
import torch
import torch._dynamo.testing
from recorded_launches import Launches
from test_so2_edge_message import (  # noqa: F401
    ACTIVATIONS,
    OPTIONS,
    Problem,
    test_16_bit_and_autocast,
    test_bad_input,
)
from test_triton import Seen

import eqk
from eqk import dispatch
from eqk.so2_edge_message import RECOMPUTE
from eqk.testing import assert_close
from eqk.triton_kernels import so2_edge_message as kernels

TILE = 16
OP = torch.ops.eqk_triton.so2_edge_message.default


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    """In tiles of few edges, which the interpreter is faster with, but otherwise as on sm_90."""
    monkeypatch.setattr(kernels, "_tile", lambda device: (TILE, 2))
    with dispatch.use_backend("triton"):
        yield


def in_float32(problem):
    """The operands, and the message of the same numbers in float64."""
    operands = [None if t is None else t.float() for t in problem.operands]
    return operands, problem.truth(*[None if t is None else t.double() for t in operands])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_random_problems(activation, rng, generator, float64_default):
    """Of any degrees, channels and options, and operands of any scale."""
    for options in [{}, *rng.sample(list(OPTIONS.values()), 2)]:
        lmax = rng.randint(1, 3)
        mmax = rng.randint(0, lmax)
        sizes = {name: rng.choice((1, 3, 17, 20)) for name in ("c", "hidden")}
        problem = Problem(lmax, mmax, activation, generator, **{"out": rng.choice((3, 18)), **sizes, **options})
        for n in (0, 2, 4):
            problem.operands[n] *= 10 ** rng.uniform(-3, 3 if n else 1)
        operands, expected = in_float32(problem)
        assert_close(problem.ours(*operands), expected, 1, what=(lmax, mmax, sizes, options))


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation, recompute, generator, float64_default):
    """Of results that the Triton kernels keep, and of those that are made again."""
    problem = Problem(2, 1, activation, generator, c=5, hidden=18, heads=3)
    leaves = [t.float().requires_grad_() for t in problem.operands]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    with Seen() as seen:
        loss = problem.ours(*leaves, recompute=recompute).square().sum()
    assert {op for op in seen.ops if "message" in op} == {"eqk_triton::so2_edge_message"}
    expected = torch.autograd.grad(problem.truth(*wide).square().sum(), wide)
    for got, want in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        assert_close(got, want, 1)


@pytest.mark.parametrize("activation", ["gate", "s2"])
def test_edges_of_nodes_in_several_tiles(activation, rng, generator, monkeypatch, float64_default):
    """Nodes of no edge, of parts of a tile and of several, in chunks of one tile; what is kept is in the edges' order."""
    monkeypatch.setattr(kernels, "_BYTES_OF_TILE_ELSEWHERE", 1)
    degrees = torch.tensor([2 * TILE + 5, 1, 0, TILE - 6, 3, 1])
    edges = int(degrees.sum())
    problem = Problem(1, 1, activation, generator, edges=edges, nodes=40)
    problem.index[1] = torch.arange(6).repeat_interleave(degrees)[torch.randperm(edges, generator=generator)]
    operands, expected = in_float32(problem)
    leaves = [t.requires_grad_() for t in operands]
    out = problem.ours(*leaves)
    assert_close(out, expected, 1)
    assert not out[6:].any()
    with dispatch.use_backend("cpu"):
        want = torch.autograd.grad(problem.ours(*leaves).square().sum(), leaves)
    for a, b in zip(torch.autograd.grad(out.square().sum(), leaves), want, strict=True):
        assert_close(a, b, 1)
    assert torch.equal(problem.ours(*operands), out)  # though nothing is kept


def test_message_to_other_rows(generator, float64_default):
    """A third row of the index, of int32, has the nodes that messages go to."""
    problem = Problem(1, 1, "gate", generator)
    operands, expected = in_float32(problem)
    problem.index = torch.cat([problem.index, (4 - problem.index[1])[None]]).int()
    assert_close(problem.ours(*operands), expected.flip(0), 1)


def test_nothing(generator):
    """No edges, nodes or features, of which the product is zero."""
    problem = Problem(1, 1, "gate", generator)
    operands, _ = in_float32(problem)
    empty = [t[:0] if n in (1, 2, 4) else t for n, t in enumerate(operands)]
    without = [t[:, :0] if n == 2 else t[:0] if n == 3 else t for n, t in enumerate(operands)]
    expected = problem.truth(*[t.double() for t in without])
    assert_close(problem.ours(*without), expected)
    problem.index = problem.index[:, :0]
    assert torch.equal(problem.ours(*empty), torch.zeros(5, 4, 3))
    assert problem.ours(empty[0][:0], *empty[1:]).shape == (0, 4, 3)


def test_many_rows(generator, float64_default):
    """Of which a program has fewer columns."""
    problem = Problem(5, 2, "gate", generator, edges=3, out=9)
    operands, expected = in_float32(problem)
    assert_close(problem.ours(*operands), expected, 1)
    second = kernels.lower("5,2,4,2,9,gate,0,0,", 2, 2, 3, 60, 1, False, (TILE, 2), "tf32x3")[1]
    assert (second.columns, second.blocks) == (8, 2)


def test_nan_stays_in_its_node(generator, float64_default):
    problem = Problem(1, 1, "gate", generator, edges=12)
    operands, _ = in_float32(problem)
    expected = problem.ours(*operands)
    operands[4][5] = math.nan
    touched = problem.ours(*operands).ne(expected).flatten(1).any(1)
    assert touched.nonzero().tolist() == [[problem.index[1, 5]]]


def test_what_kernels_do_not_cover(generator, float64_default):
    """float64, and rows of which code would take minutes to compile."""
    for lmax, mmax, dtype in ((2, 2, torch.float64), (5, 5, torch.float32)):
        problem = Problem(lmax, mmax, "gate", generator, edges=3)
        _, expected = in_float32(problem)
        assert_close(problem.ours(*[t.float().to(dtype) for t in problem.operands]), expected, 1)
    assert kernels.lower("5,5,4,2,3,gate,0,0,", 2, 2, 3, 84, 1, False, (64, 1), "tf32x3") is None


def test_precision_that_torch_allows(monkeypatch):
    assert kernels._precision() == "tf32x3"
    torch.set_float32_matmul_precision("high")
    assert kernels._precision() == "tf32"
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert kernels._precision() == "ieee"


def test_opcheck(generator):
    problem = Problem(1, 1, "gate", generator, edges=3, nodes=3)
    x, vec, *rest = (t.float().requires_grad_() for t in problem.operands)
    layers = [torch.cat([p.flatten() for p in layer]) for layer in problem.layers(rest[3:])]
    args = x, eqk.edge_frame(vec), *rest[:3], *layers, problem.index, "1,1,4,2,3,gate,0,0,", True
    torch.library.opcheck(OP, args)


def test_compiled_by_torch(generator):
    """One graph for any number of edges and nodes, of the op of the backend that was chosen."""
    backend = torch._dynamo.testing.AotEagerAndRecordGraphs()

    def energy(index, x, q, h, a, w, *parameters):
        layers = parameters[:3], parameters[3:]
        return eqk.so2_edge_message(x, q, index, *layers, 1, 1, h=h, a=a, w=w).square().sum()

    compiled = torch.compile(energy, fullgraph=True, backend=backend, dynamic=True)
    for edges, nodes in ((7, 5), (8, 6)):
        problem = Problem(1, 1, "gate", generator, edges=edges, nodes=nodes)
        x, vec, *rest = (t.float() for t in problem.operands)
        leaves = [t.requires_grad_() for t in (x, eqk.edge_frame(vec), *rest)]
        grads = [torch.autograd.grad(f(problem.index, *leaves), leaves) for f in (compiled, energy)]
        for got, want in zip(*grads, strict=True):
            assert_close(got, want, 1)
    assert len(backend.fw_graphs) == 1
    targets = {str(n.target) for n in backend.fw_graphs[0].graph.nodes}
    assert {t for t in targets if "eqk" in t} == {"eqk_triton.so2_edge_message.default"}


def test_index_out_of_range(generator):
    problem = Problem(1, 1, "gate", generator)
    operands = [t.float() for t in problem.operands]
    for row, node in ((0, 5), (1, -1)):
        problem.index = problem.index.clone()
        problem.index[row, 2] = node
        with pytest.raises(RuntimeError, match="eqk::so2_edge_message: index: expected indices from 0 to 4"):
            problem.ours(*operands)
        problem.index[row, 2] = 0


def test_device_and_size_of_launches(monkeypatch):
    """Each launch is on the device of the operands, not on the current one, and of no more threads than HIP can count."""
    edges, nodes = 2**20, 2**22
    meta = {"device": "meta"}
    x, q, w = torch.empty(nodes, 1, 128, **meta), torch.empty(edges, 4, **meta), torch.empty(edges, 1, **meta)
    index = torch.empty(2, edges, dtype=torch.int64, **meta)
    plan = "0,0,256,128,4096,gate,0,0,"
    layers = [torch.empty(n, **meta) for n in (128 * 257, 4096 * 129)]
    launches = Launches(kernels, monkeypatch, ("first_kernel", "second_kernel", "finish_kernel"))
    out, *_ = kernels._forward(x, q, None, None, w, *layers, index, plan, False)
    assert out.shape == (nodes, 1, 4096)
    found = dict.fromkeys((kernels._First, kernels._Second, int), 0)
    for programs, args in launches.checked("meta"):
        found[type(args[-1])] += programs
    assert list(found.values()) == [edges // TILE, edges // TILE * 128, nodes * 4]
