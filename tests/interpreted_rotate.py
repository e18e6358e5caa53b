"""rotate in Triton, under Triton's interpreter: the tests of the op on the CPU, and what only this backend has.

Run by test_triton.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import math

import pytest
import test_rotate as suite
import torch
import torch._dynamo.testing
from recorded_launches import Launches, last_program_first
from test_rotate import (  # noqa: F401
    KINDS,
    members,
    problem,
    test_nan_stays_in_its_edge,
    test_only_what_is_needed,
    without,
)
from test_triton import Seen

import eqk
from eqk import dispatch
from eqk.testing import assert_close, relative_error
from eqk.triton_kernels import rotate as kernels

OP = torch.ops.eqk_triton.rotate


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    """What the tests of the op call, by eqk's functions and by torch.ops."""
    monkeypatch.setattr(suite, "OP", OP)
    with dispatch.use_backend("triton"):
        yield


def check(lmax, mmax, operands, index, rescale, dtype=torch.float32, what=None):
    """Each member of the family against the kernel of the CPU."""
    for missing in members(operands):
        args = without(operands, missing, index, lmax, mmax, rescale)
        of_dtype = [None if t is None else t.to(dtype) for t in args[:4]]
        expected = torch.ops.eqk.rotate(*[None if t is None else t.double() for t in of_dtype], *args[4:])
        assert_close(OP(*of_dtype, *args[4:]), expected, 1, dtype, (what, missing))


def test_random_problems(rng, generator, float64_default):
    """Of any degrees, channels, nodes of an edge, kinds of weights and columns, with lanes that have no channel."""
    for _ in range(8):
        lmax = rng.choice((0, 1, 2, 3))
        mmax, fan, kind = rng.randint(0, lmax), rng.randint(0, 3), rng.choice(KINDS)
        channels = rng.choice((1, 3, 8, 20, 70))
        of_edge = max(1, fan) * channels
        columns = rng.choice([n for n in range(1, of_edge + 1) if of_edge % n == 0])
        *operands, index = problem(lmax, mmax, channels, fan, kind, columns, generator, edges=4, nodes=3)
        if index is not None and rng.random() < 0.5:
            index = index.int()
        dtype = rng.choice((torch.float64, torch.float32))
        check(lmax, mmax, operands, index, rng.random() < 0.5, dtype, (lmax, mmax, channels, fan, kind, columns))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_channels(kind, generator, float64_default):
    """More channels than a program has: sums over them are in parts, also of one weight."""
    for columns in (1, 2, 300):
        *operands, index = problem(1, 0, 300, 2, kind, columns, generator, edges=1, nodes=2)
        check(1, 0, operands, index, False, torch.float64)
        if kind == "edge" and columns == 1:  # of one weight the gradient is one sum, which may cancel to few digits
            operands = [t.abs() for t in operands]
        check(1, 0, operands, index, False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype, generator, float64_default):
    """Sums of parts are rounded once."""
    *operands, index = problem(1, 0, 600, 2, "degree", 2, generator, edges=1, nodes=2)
    check(1, 0, [t / t.abs().max() for t in operands], index, False, dtype)


@pytest.mark.parametrize("missing", range(4))
def test_opcheck(missing, generator, float64_default):
    *operands, index = problem(1, 0, 1, 1, "degree", None, generator, edges=2, nodes=2)
    args = without([t.requires_grad_() for t in operands], missing, index, 1, 0, True)
    torch.library.opcheck(OP.default, args)


def test_vmap(generator, float64_default):
    """Over nodes, and over graphs; an index out of range reaches no node of another sample."""
    x, D, weights, _, index = problem(1, 1, 2, 2, "order", 2, generator, edges=3, nodes=3)
    nodes, graphs = torch.stack((x, -2 * x)), torch.stack((index, index.flip(1)))
    for dims, args in (((0, None), (nodes, index)), ((None, 0), (x, graphs)), ((0, 0), (nodes, graphs))):
        results = []
        for backend in ("triton", "cpu"):
            with dispatch.use_backend(backend):
                gradient = torch.func.grad(lambda x, index: eqk.rotate(x, D, 1, 1, index, weights).square().sum())
                results.append(torch.vmap(gradient, dims)(*args))
        assert_close(*results, 1)
    with pytest.raises(RuntimeError, match="index: expected indices from 0 to"):
        torch.vmap(lambda x: eqk.rotate(x, D, 1, 1, torch.full_like(index, 3), weights))(nodes)


def test_high_degrees(generator, float64_default):
    """In several launches; beyond the kernels' degrees, by the reference."""
    for lmax, mmax in ((8, 3), (9, 1)):
        *operands, index = problem(lmax, mmax, 3, 2, "order", None, generator, edges=1, nodes=2)
        check(lmax, mmax, operands, index, True)


@pytest.mark.parametrize(("kind", "columns"), [("order", None), ("edge", 2)])
def test_derivatives(kind, columns, generator, float64_default):
    """To second order; the derivatives of the Triton op are the Triton op."""
    x, D, weights, z, index = problem(1, 1, 4, 2, kind, columns, generator, edges=2, nodes=3)
    leaves = [t.requires_grad_() for t in (x, D, weights, z)]

    def energies():
        out = eqk.rotate(x, D, 1, 1, index, weights).square()
        back = eqk.rotate_back(z * out, D, 1, 1, index, 3, weights, True)
        first = torch.autograd.grad(back.square().sum(), leaves, create_graph=True)
        return [out, back, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    with Seen() as seen:
        got = energies()
    assert seen.ops == {"eqk_triton::rotate"}
    with dispatch.use_backend("cpu"):
        expected = energies()
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 2)
    assert dispatch.explain("rotate", x).endswith("-> triton")


def test_compiled_by_torch(generator):
    """One graph for any number of edges and nodes, of the ops of the backend that was chosen."""
    backend = torch._dynamo.testing.AotEagerAndRecordGraphs()

    def energy(x, D, index):
        return eqk.rotate(x, D, 1, 1, index).square().sum()

    compiled = torch.compile(energy, fullgraph=True, backend=backend, dynamic=True)
    for edges, nodes in ((7, 5), (8, 6)):
        x, D, _, _, index = problem(1, 1, 3, 2, "none", None, generator, edges, nodes)
        leaves = [t.requires_grad_() for t in (x, D)]
        grads = [torch.autograd.grad(f(*leaves, index), leaves) for f in (compiled, energy)]
        for got, want in zip(*grads, strict=True):
            assert_close(got, want, 1)
    assert len(backend.fw_graphs) == 1
    targets = {str(n.target) for g in (*backend.fw_graphs, *backend.bw_graphs) for n in g.graph.nodes}
    assert {target for target in targets if "eqk" in target} == {"eqk_triton.rotate.default"}


def test_nothing(generator):
    """No edges, no nodes or no channels; and nodes without edges."""
    for edges, nodes, channels in ((0, 3, 4), (0, 0, 4), (2, 2, 0)):
        *operands, index = problem(1, 1, channels, 2, "order", None, generator, edges, nodes)
        for missing in members(operands):
            got = OP(*without(operands, missing, index, 1, 1, False))
            assert torch.equal(got, torch.zeros_like(operands[missing]))
    *operands, index = problem(1, 1, 2, 1, "none", None, generator, edges=2, nodes=3)
    assert torch.equal(OP(*without(operands, 0, index, 1, 1, False))[2], torch.zeros(4, 2, dtype=torch.float64))


def test_bits_do_not_depend_on_the_order_of_programs(generator):
    """Nor on whether an edge is alone."""
    *operands, index = problem(2, 1, 20, 2, "degree", None, generator, 8, 4)
    operands = [t.float() for t in operands]
    for n in members(operands):
        args = without(operands, n, index, 2, 1, False)
        expected = OP(*args)
        with last_program_first() as programs:
            assert torch.equal(OP(*args), expected)
        assert min(programs) > 1
        if n:
            one = [t if t is None or s == 0 else t[7:8] for s, t in enumerate(args[:4])]
            assert torch.equal(OP(*one, index[:, 7:8], *args[5:])[0], expected[7])


def test_many_edges_of_a_node():
    """Sums lose no digits: one after another, so many terms would be off by 1.5e-5."""
    edges = 2000
    z, D = torch.full((edges, 1, 1), 0.1), torch.ones(edges, 1)
    x = eqk.rotate_back(z, D, 0, 0, torch.zeros(edges, dtype=torch.int32), 1)
    assert relative_error(x, z.double().sum(0)[None]) < 1e-6


def test_infinity_has_no_padding():
    """A weight's gradient over lanes of which some have no channel."""
    x, D, z = torch.ones(1, 1, 3), torch.full((1, 1), math.inf), torch.ones(1, 1, 3)
    assert OP(x, D, None, z, None, 0, 1, 1, 0, 0, False, 2).item() == math.inf


def test_index_out_of_range(generator):
    x, D, _, z, index = problem(1, 1, 2, 2, "none", None, generator, 5, 3)
    for node in (3, -1):
        index[1, 2] = node
        for call in (lambda: eqk.rotate(x, D, 1, 1, index), lambda: eqk.rotate_back(z, D, 1, 1, index, 3)):
            with pytest.raises(RuntimeError, match="eqk::rotate: index: expected indices from 0 to 2"):
                call()


def test_device_and_size_of_launches(monkeypatch):
    """Each launch is on the device of the operands, not on the current one, and of no more threads than HIP can count."""
    edges = 2**27
    x, D = torch.empty(5, 4, 128, device="meta"), torch.empty(edges, 10, device="meta")
    z, index = torch.empty(edges, 4, 256, device="meta"), torch.empty(2, edges, dtype=torch.int64, device="meta")
    for missing, num_nodes, rows, blocks in ((0, 2**27, 2**28, 1), (1, 0, edges, 1), (3, 0, edges, 2)):
        operands = [None if n == missing else t for n, t in enumerate((x, D, None, z))]
        with monkeypatch.context() as patch:
            launches = Launches(kernels, patch)
            kernels._rotate(*operands, index, num_nodes, 0, 0, 1, 1, False, missing)
            begin = 0
            for programs, args in launches.checked("meta"):
                assert args[-3:-1] == (begin, edges)
                assert args[-1].blocks == blocks
                begin += programs
            assert begin == rows * blocks
