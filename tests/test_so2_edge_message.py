"""eqk.so2_edge_message against dense matrices of e3nn, one step after the other, and what makes it a message."""

import functools
import json
import math
import sys

import e3nn.o3
import numpy
import pytest
import torch
import torch._dynamo.testing
from test_instruction_sets import expected_refusal
from test_rotate import dense, m_primary, of_rows
from test_so2_conv import layer
from test_so2_conv import truth as conv_truth
from test_tensor_product import assert_same_bits, compare, run_python
from torch.nn.functional import silu

import eqk
from eqk import testing
from eqk.so2_edge_message import ACTIVATIONS, RECOMPUTE
from eqk.testing import assert_close, derivatives, random_directions, seed

BACKWARD = torch.ops.eqk.so2_edge_message_backward.default
DEGREES = [(2, 2), (3, 2), (4, 2), (6, 2), (6, 3), (6, 4)]
SIZES = {"gate": (1, lambda lmax: lmax), "s2": (1, lambda lmax: 1), "swiglu_s2": (2, lambda lmax: 3)}


class Problem:
    """Operands in float64, and the message of them by eqk and by dense steps."""

    def __init__(
        self, lmax, mmax, activation, generator, *, edges=7, nodes=5, c=2, hidden=2, out=3, heads=1, sources=2,
        by="order", rescale=False, last=True, grid_rescale=False, merge="concat",
    ):  # fmt: skip
        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.lmax, self.mmax, self.activation, self.by, self.merge = lmax, mmax, activation, by, merge
        self.rescale, self.grid_rescale, self.sources, self.out = rescale, grid_rescale, sources, out
        width, extra = SIZES[activation]
        self.width, self.extra = width * hidden, extra(lmax) * hidden
        self.index = torch.randint(nodes - 1, (2, edges), generator=generator)  # the last node has no edges
        self.res = None if activation == "gate" else ((3 * lmax + 2) // 2, 3 * mmax + 1)
        groups = lmax + 1 if by == "degree" else sum(lmax + 1 - m for m in range(mmax + 1))
        channels = sources * c if merge == "concat" else c
        weights = groups * channels
        one = layer(lmax, mmax, channels, self.width, self.extra, generator)
        two = layer(lmax, mmax, hidden, out, 0, generator)
        vec = normal(edges, 3)
        vec[:2] = torch.tensor([[0.0, 1.7, 0.0], [1e-9, -0.4, 0.0]])[: len(vec)]
        self.count = len(one)
        self.operands = [
            normal(nodes, (lmax + 1) ** 2, c),
            vec,
            normal(edges, 3 if last else weights) / 2,
            normal(3, weights) if last else None,
            normal(edges, heads),
            *[p / p.shape[-1] ** 0.5 for p in (*one, *two)],
        ]

    def layers(self, parameters):
        return parameters[: self.count], parameters[self.count :]

    def ours(self, x, vec, *others, **options):
        return self.in_frames(x, eqk.edge_frame(vec), *others, **options)

    def in_frames(self, x, q, h, a, w, *parameters, **options):
        return eqk.so2_edge_message(
            x, q, self.index, *self.layers(parameters), self.lmax, self.mmax, h=h, a=a, w=w,
            merge=self.merge, activation=self.activation, rescale=self.rescale, res=self.res,
            grid_rescale=self.grid_rescale, **options,
        )  # fmt: skip

    def truth(self, x, vec, h, a, w, *parameters):
        one, two = self.layers(parameters)
        lmax, mmax = self.lmax, self.mmax
        d = dense(eqk.reference.wigner(eqk.edge_frame(vec), lmax, mmax), lmax, mmax, False)
        src, dst = self.index
        both = x[src] + x[dst] if self.merge == "add" else torch.cat([x[src], x[dst]], 2)
        z = d @ (both if self.sources == 2 else x[src])
        r = (h if a is None else h @ a).unflatten(1, (-1, z.shape[2]))
        z = z * of_rows(r, lmax, mmax, self.by, z.shape[2])
        y, s = conv_truth(lmax, mmax, self.width, self.extra)(z, *one)
        message, _ = conv_truth(lmax, mmax, self.out, 0)(self.active(y, s), *two)
        message = message * of_rows(w[:, None], lmax, mmax, "edge", self.out)
        if self.rescale:
            scale = [math.sqrt(max(1, (2 * l + 1) / (2 * mmax + 1))) for l, _ in m_primary(lmax, mmax)]
            message = message * torch.tensor(scale, dtype=x.dtype)[:, None]
        out = x.new_zeros(len(x), (lmax + 1) ** 2, self.out)
        return out.index_add(0, dst, d.mT @ message)

    def active(self, y, s):
        rows = m_primary(self.lmax, self.mmax)
        if self.activation == "gate":
            gates = s.sigmoid().unflatten(1, (self.lmax, -1))
            return torch.stack([y[:, n] * gates[:, l - 1] if l else silu(y[:, n]) for n, (l, _) in enumerate(rows)], 1)
        beta, weights = (torch.from_numpy(t) for t in numpy.polynomial.legendre.leggauss(self.res[0]))
        alpha = torch.arange(self.res[1], dtype=torch.float64) * 2 * math.pi / self.res[1]
        sin = (1 - beta**2).sqrt()
        points = torch.stack(
            [sin[:, None] * alpha.sin(), beta[:, None].expand(-1, len(alpha)), sin[:, None] * alpha.cos()]
        )
        harmonics = e3nn.o3.spherical_harmonics(
            list(range(self.lmax + 1)), points.flatten(1).T, True, normalization="integral"
        )[:, [l * l + l + m for l, m in rows]]
        scale = torch.tensor(
            [math.sqrt(max(1, (2 * l + 1) / (2 * self.mmax + 1))) for l, _ in rows], dtype=torch.float64
        )
        harmonics = harmonics * (scale if self.grid_rescale else 1)
        factor = [math.sqrt(4 * math.pi / ((2 * l + 1) * (self.lmax + 1))) for l, _ in rows]  # component
        to = harmonics * torch.tensor(factor, dtype=torch.float64)
        weights = weights * 2 * math.pi / len(alpha)
        back = (harmonics / torch.tensor(factor, dtype=torch.float64)).T * weights.repeat_interleave(len(alpha))
        grid = torch.einsum("gi,eic->egc", to, y)
        if self.activation == "s2":
            z = torch.einsum("ig,egc->eic", back, silu(grid))
            return torch.cat([silu(s)[:, None], z[:, 1:]], 1)
        u, v = grid.chunk(2, 2)
        p, t, gate = s.chunk(3, 1)
        z = torch.einsum("ig,egc->eic", back, u * v) * gate.sigmoid()[:, None]
        return torch.cat([z[:, :1] + (silu(p) * t)[:, None], z[:, 1:]], 1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("lmax", "mmax"), DEGREES)
def test_values_and_gradients(lmax, mmax, activation, generator, float64_default):
    """To second order, with edges on and within 1e-8 of the y axis."""
    problem = Problem(lmax, mmax, activation, generator)
    operands = [t.float() for t in problem.operands]
    both = torch.float64, torch.float32
    for dtypes, recompute in ((both, False), ((torch.float64,), True), ((torch.float64,), "second")):
        what = lmax, mmax, activation, recompute
        op = functools.partial(problem.ours, recompute=recompute)
        compare(what, operands, generator, dtypes, 2, problem.truth, op)


OPTIONS = {
    "heads": {"heads": 3},
    "source alone": {"sources": 1},
    "sum of both nodes": {"merge": "add"},
    "sum of both nodes, weights of degrees": {"merge": "add", "by": "degree", "last": False},
    "weights of degrees": {"by": "degree"},
    "weights themselves": {"last": False},
    "rescale": {"rescale": True, "grid_rescale": True},
    "two channels out a head": {"heads": 2, "out": 4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_options_to_third_order(activation, options, generator, float64_default):
    problem = Problem(3, 1, activation, generator, edges=4, nodes=4, **options)
    directions = random_directions(problem.operands, problem.truth(*problem.operands), 3, generator)
    results = [derivatives(f, problem.operands, directions) for f in (problem.ours, problem.truth)]
    for order, (ours, theirs) in enumerate(zip(*results, strict=True)):
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(a, b, order, what=(order, n))


def test_many_tiles(generator, monkeypatch, float64_default):
    """Of second derivatives, 64 edges each, of nodes of which all and of which some are in a tile; their bits, on a given
    number of threads."""
    monkeypatch.setattr(eqk._edge_tiles, "_EDGES_OF_TILE", 64)
    for nodes in (20, 300):
        problem = Problem(2, 2, "gate", generator, edges=200, nodes=nodes)
        directions = random_directions(problem.operands, problem.truth(*problem.operands), 2, generator)
        results = [derivatives(f, problem.operands, directions) for f in (problem.ours, problem.truth)]
        for order, (ours, theirs) in enumerate(zip(*results, strict=True)):
            for a, b in zip(ours, theirs, strict=True):
                assert_close(a, b, order)
        assert_same_bits(*[lambda p=problem: [p.ours(*p.operands)]] * 3)
        leaves = [t.float().requires_grad_() for t in problem.operands]

        def second(leaves=leaves, problem=problem):
            gradients = torch.autograd.grad(problem.ours(*leaves).sin().sum(), leaves, create_graph=True)
            return torch.autograd.grad(sum(g.sin().sum() for g in gradients), leaves)

        for threads in (1, 3):
            assert_same_bits(second, second, second, threads=[threads] * 3)
        problem.index[1, 150] = nodes
        with pytest.raises(RuntimeError, match=rf"index\[1\]: expected indices from 0 to {nodes - 1}, got {nodes} at"):
            problem.ours(*problem.operands)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("nodes", [4, 900])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parts_of_vectors_and_many_tiles(activation, nodes, recompute, generator, float64_default):
    """Channels that no vector of lanes divides; ten tiles, whose sums of parameters are in two parts."""
    sizes = {"edges": 600, "nodes": nodes, "c": 3, "hidden": 17, "out": 10, "heads": 2}
    problem = Problem(3, 2, activation, generator, **sizes)
    directions = random_directions(problem.operands, problem.truth(*problem.operands), 1, generator)
    expected = derivatives(problem.truth, problem.operands, directions)
    for dtype in (torch.float64, torch.float32):
        operands, along = [t.to(dtype) for t in problem.operands], [[t.to(dtype) for t in d] for d in directions]
        got = derivatives(lambda *v: problem.ours(*v, recompute=recompute), operands, along)
        for order, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
            for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                assert_close(a, b, order, dtype, (order, n))
    leaves = [t.float().requires_grad_() for t in problem.operands]

    def everything():
        out = problem.ours(*leaves, recompute=recompute)
        return [out, *torch.autograd.grad(out, leaves, directions[0][-1].float())]

    assert_same_bits(everything, everything, everything)


def test_more_rows_of_nodes_than_a_round_has(generator, float64_default):
    """Each edge has nodes of its own, and some have them in common with edges far away."""
    nodes = 2500
    problem = Problem(2, 0, "gate", generator, edges=nodes, nodes=nodes, c=400, hidden=1, out=1)
    problem.index = torch.stack([torch.arange(nodes), torch.arange(nodes).roll(nodes // 2) // 2])
    leaves = [problem.operands[0].requires_grad_(), *problem.operands[1:]]
    direction = torch.randn(nodes, 9, 1, generator=generator)
    results = [f(*leaves) for f in (problem.ours, problem.truth)]
    assert_close(*results)
    assert_close(*[torch.autograd.grad(r, leaves[0], direction)[0] for r in results], 1)


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """The calls of this file's ops, as (op, arguments)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "eqk" and "so2_edge_message" in op.name():
            self.calls.append((op, args))
        return op(*args, **(kwargs or {}))


def arguments_of_backward(problem, recompute):
    """All but what is wanted: the 7 operands, g, the results that were kept or None, index and plan."""
    leaves = [t.clone().requires_grad_() for t in problem.operands]
    with Recorder() as recorder:
        problem.ours(*leaves, recompute=recompute).sin().sum().backward()
    ((*args, _),) = [args for op, args in recorder.calls if op is BACKWARD]
    return args


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_gradient_alone(activation, recompute, generator, float64_default):
    """As it is among all; of others nothing comes."""
    args = arguments_of_backward(Problem(2, 1, activation, generator, edges=70), recompute)
    kept = {False: [True] * 3, True: [False] * 3, "second": [True, True, False]}[recompute]
    assert [t is not None for t in args[8:11]] == kept
    made = torch.ops.eqk.so2_edge_message(*args[:7], *args[11:], recompute is not True)[1:]
    assert [t.numel() > 0 for t in made] == kept
    everything = BACKWARD(*args, [True] * 7)
    for n in range(7):
        alone = BACKWARD(*args, [m == n for m in range(7)])
        assert torch.equal(alone[n], everything[n])
        assert everything[n].abs().max() > 1e-6
        assert all(t.shape == (0,) for m, t in enumerate(alone) if m != n)


OF_AN_INSTRUCTION_SET = """
import sys, torch
from eqk.testing import assert_close
torch.use_deterministic_algorithms(True)  # results start as NaN
for arguments, expected in torch.load(sys.argv[1]):
    for dtype in (torch.float64, torch.float32):
        floating = [isinstance(t, torch.Tensor) and t.is_floating_point() for t in arguments]
        at = [t.to(dtype) if f else t for t, f in zip(arguments, floating, strict=True)]
        keep, rest = at[8] is not None, at[11:]
        out, *kept = torch.ops.eqk.so2_edge_message(*at[:7], *rest, keep)
        args = *at[:8], *[None if t is None else k for t, k in zip(at[8:11], kept, strict=True)], *rest
        everything = torch.ops.eqk.so2_edge_message_backward(*args, [True] * 7)
        for n, (a, b) in enumerate(zip((out, *everything), expected, strict=True)):
            assert_close(a, b, 1, what=(rest[1], dtype, n))
        for n in range(7):
            alone = torch.ops.eqk.so2_edge_message_backward(*args, [m == n for m in range(7)])
            assert torch.equal(alone[n], everything[n])
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "amx-emulated"])
def test_instruction_sets(isa, generator, tmp_path, float64_default):
    """As the machine's widest, which all other tests are for; one that it lacks is refused by name."""
    cases = []
    for activation in ACTIVATIONS:
        problem = Problem(3, 2, activation, generator, edges=600, nodes=4, c=3, hidden=17, out=10, heads=2)
        for recompute in RECOMPUTE:
            args = arguments_of_backward(problem, recompute)
            out = torch.ops.eqk.so2_edge_message(*args[:7], *args[11:], False)[0]
            cases.append((args, [out, *BACKWARD(*args, [True] * 7)]))
    torch.save(cases, tmp_path / "cases.pt")
    try:
        run_python(OF_AN_INSTRUCTION_SET, str(tmp_path / "cases.pt"), EQK_CPU_ISA=isa, EQK_SEED=str(seed()))
    except AssertionError as error:
        if expected_refusal(isa) not in str(error):
            raise


@pytest.mark.parametrize("activation", ["gate", "swiglu_s2"])
@pytest.mark.parametrize(("lmax", "mmax"), [(2, 2), (4, 2), (6, 3)])
def test_equivariance(lmax, mmax, activation, generator, float64_default):
    """Under rotations, and whatever the angle about the edge; edges along all axes included."""
    problem = Problem(lmax, mmax, activation, generator, edges=12, hidden=3)
    x, vec, *rest = problem.operands
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    vec[:6], vec[6:12] = axes, axes + 1e-8 * torch.randn(6, 3, generator=generator)
    out = problem.ours(x, vec, *rest)
    angle = torch.randn(3, generator=generator)

    def turned(t):
        irreps = [(t.shape[2], (l, 1)) for l in range(lmax + 1)]
        return testing.rotate(t.flatten(1), irreps, angle, "ir_mul").view_as(t)

    assert_close(problem.ours(turned(x), testing.rotate(vec, "1o", angle), *rest), turned(out), what="rotated")
    q = eqk.edge_frame(vec, torch.rand(12, generator=generator, dtype=torch.float64) * 6)
    assert_close(problem.in_frames(x, q, *rest), out, what="turned about the edge")


def test_torque(generator, float64_default):
    """What turns edges and features turns messages; the gradient of an edge has no part along it."""
    problem = Problem(3, 2, "gate", generator)
    x, vec, *rest = (t.requires_grad_() for t in problem.operands)
    out = problem.ours(x, vec, *rest)
    g = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    of_x, of_vec = torch.autograd.grad(out, (x, vec), g)
    assert (of_vec * vec).sum(1).abs().max() < 1e-12 * of_vec.abs().max() * vec.abs().max()
    omega = torch.randn(3, generator=generator, dtype=torch.float64)
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    turn = torch.cat([torch.zeros(1), omega / 2])[None]
    d = torch.func.jvp(lambda q: eqk.wigner(q, 3), (one,), (turn,))[1][0]
    blocks = d.split([(2 * l + 1) ** 2 for l in range(4)])
    generators = torch.block_diag(*[b.view(2 * l + 1, 2 * l + 1) for l, b in enumerate(blocks)])
    turned = (of_vec * torch.linalg.cross(omega.expand_as(vec), vec)).sum() + (of_x * (generators @ x)).sum()
    assert_close(turned, (g * (generators @ out)).sum(), 1)


def test_hessian(generator, float64_default):
    """Of positions, by torch.func and by differences of forces."""
    problem = Problem(2, 2, "gate", generator, edges=8, nodes=4)
    x, _, h, *rest = problem.operands
    positions = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    src, dst = problem.index
    keep = src != dst
    problem.index, src, dst = problem.index[:, keep], src[keep], dst[keep]
    h, rest[1] = h[keep], rest[1][keep]

    def energy(positions):
        vec = positions[src] - positions[dst]
        smooth = torch.exp(-(vec**2).sum(1, keepdim=True) / 4)
        return problem.ours(x, vec, h * smooth, rest[0], rest[1] * smooth, *rest[2:]).square().sum()

    forces = torch.func.grad(energy)
    hessian = torch.func.hessian(energy)(positions)
    direction = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    difference = (forces(positions + step * direction) - forces(positions - step * direction)) / (2 * step)
    along = torch.einsum("aibj,bj->ai", hessian, direction)
    assert (difference - along).abs().max() < 1e-7 * along.abs().max()
    leaf = positions.clone().requires_grad_()
    (force,) = torch.autograd.grad(energy(leaf), leaf, create_graph=True)
    assert_close(torch.autograd.grad(force, leaf, direction)[0], along, 2)


def test_forward_mode(generator, float64_default):
    problem = Problem(2, 1, "s2", generator, edges=5)
    tangents = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in problem.operands]
    for transform in (lambda f: f, lambda f: torch.func.grad(lambda *v: f(*v).pow(3).sum(), (0, 1, 2))):
        results = [
            torch.func.jvp(transform(f), tuple(problem.operands), tuple(tangents))[1]
            for f in (problem.ours, problem.truth)
        ]
        for a, b in zip(*([r] if isinstance(r, torch.Tensor) else r for r in results), strict=True):
            assert_close(a, b, 2)


def test_vmap(generator, float64_default):
    """Over features, and over the cotangents of a Jacobian."""
    problem = Problem(2, 2, "gate", generator, edges=4, nodes=3)
    x, *rest = problem.operands
    batch = torch.stack([x, 2 * x, x.flip(0)])
    got = torch.vmap(lambda x: problem.ours(x, *rest))(batch)
    assert_close(got, torch.stack([problem.truth(x, *rest) for x in batch]))
    jacobians = [torch.func.jacrev(f)(rest[0]) for f in (lambda v: problem.ours(x, v, *rest[1:]), lambda v: problem.truth(x, v, *rest[1:]))]  # fmt: skip
    assert_close(*jacobians, 1)


def test_gradcheck_and_opcheck(generator, float64_default):
    problem = Problem(1, 1, "gate", generator, edges=3, nodes=3, c=1, hidden=1, out=1)
    leaves = [t.clone().requires_grad_() for t in problem.operands]
    assert torch.autograd.gradcheck(problem.ours, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(problem.ours, leaves, fast_mode=True)
    with Recorder() as recorder:
        problem.ours(*leaves, recompute="second")
        out = problem.ours(*leaves)
        gradients = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        torch.autograd.grad(sum(g.sin().sum() for g in gradients), leaves)
    assert len({op for op, _ in recorder.calls}) == 3
    for op, args in recorder.calls:
        args = [a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_16_bit_and_autocast(generator):
    problem = Problem(2, 2, "gate", generator, edges=9)
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        x, vec, *rest = problem.operands
        operands = [t.to(dtype) for t in (x, eqk.edge_frame(vec), *rest)]
        got = problem.in_frames(*operands)
        assert got.dtype == dtype
        want = problem.in_frames(*[t.double() for t in operands])
        assert (got - want).abs().max() < tolerance * want.abs().max()
    operands = [t.float() for t in problem.operands]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = problem.ours(operands[0].bfloat16(), *operands[1:])
    assert mixed.dtype == torch.float32
    assert_close(mixed, problem.ours(operands[0].bfloat16().float(), *operands[1:]))


def test_no_edges_and_isolated_nodes(generator, float64_default):
    for activation in ACTIVATIONS:
        problem = Problem(2, 2, activation, generator)
        assert not problem.ours(*problem.operands)[-1].any()  # nothing leads to the last node
        problem.index = problem.index[:, :0]
        operands = [t[:0] if n in (1, 2, 4) else t for n, t in enumerate(problem.operands)]
        leaves = [t.requires_grad_() for t in operands]
        out = problem.ours(*leaves)
        assert out.shape == (5, 9, 3)
        assert not out.any()
        gradients = torch.autograd.grad(out.sum(), leaves, create_graph=True)
        assert all(not g.any() for g in gradients)
        assert all(not g.any() for g in torch.autograd.grad(sum(g.sum() for g in gradients), leaves, allow_unused=True) if g is not None)  # fmt: skip


MEMORY = """
import json, torch, eqk
from eqk.so2_edge_message import Plan
rows, nodes, edges, channels = 9, 20, 18_000, 64
def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
def normal(*shape):
    return torch.randn(shape).requires_grad_()
x, q, h, a, w = normal(nodes, rows, channels), normal(edges, 4), normal(edges, 4), normal(4, 12 * channels), normal(edges)
index, of_z, grown = torch.randint(nodes, (2, edges)), 4 * edges * rows * 2 * channels, {}
for activation, narrow in (("gate", 24), ("s2", 24), ("swiglu_s2", 16)):
    sizes = Plan(2, 2, 2 * channels, narrow, narrow, activation, False, False, "").convolutions
    layers = [[normal(*shape) for shape in layer.shapes()] for layer in sizes]
    leaves = [x, q, h, a, w, *layers[0], *layers[1]]
    def message(n, **options):
        shared = {"h": h[:n], "a": a, "w": w[:n], "activation": activation}
        return eqk.so2_edge_message(x, q[:n], index[:, :n], *layers, 2, 2, **shared, **options)
    def backward(n, **options):
        return torch.autograd.grad(message(n, **options).sum(), leaves)
    def double_backward(n):
        gradients = torch.autograd.grad(message(n, recompute=True).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in gradients), leaves)
    def dense(n):
        with eqk.dispatch.use_backend("reference"):
            return message(n)
    calls = {
        "value alone": torch.no_grad()(message),
        "forward": message,
        "backward": backward,
        "forward, recompute": lambda n: message(n, recompute=True),
        "backward, recompute": lambda n: backward(n, recompute=True),
    }
    if activation == "gate":
        calls |= {"double backward": double_backward, "dense": dense}
    for name, call in calls.items():
        call(100)
        open("/proc/self/clear_refs", "w").write("5")
        before = memory("VmRSS:")
        result = call(edges)
        grown[f"{activation}: {name}"] = (memory("VmHWM:") - before) / of_z
        del result
    grown[f"{activation}: kept"] = 4 * edges * (rows * (sizes[0].channels_out + narrow) + sizes[0].extra) / of_z
print(json.dumps(grown))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the peak of resident memory is read where Linux has it"
)
def test_memory():
    """Over that of z, [edges, rows, channels in]: no call has it, and none keeps a layer's result that need not.

    Blocks of a megabyte go back to the system when they are freed, so that a peak is of those that live at a time.
    """
    grown = json.loads(run_python(MEMORY, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="1048576"))
    assert grown.pop("gate: dense") > 1
    assert grown.pop("gate: double backward") < 0.6  # of which a tile has more
    for activation in ACTIVATIONS:
        kept = grown.pop(f"{activation}: kept")
        assert 0.35 < kept < 0.45
        for name in ("forward", "backward"):
            grown[f"{activation}: {name}"] -= kept
    assert max(grown.values()) < 0.3, grown


def test_message_to_other_rows(generator, float64_default):
    """A third row of the index has the nodes that messages go to."""
    problem = Problem(2, 1, "gate", generator)
    expected = problem.ours(*problem.operands)
    target = problem.index[1]
    problem.index = torch.cat([problem.index, (4 - target)[None]])
    assert_close(problem.ours(*problem.operands), expected.flip(0))


def test_compile(generator):
    """One graph for any number of edges and nodes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def energy(index, x, vec, h, a, w, *parameters):
        layers = parameters[:4], parameters[4:]
        q = eqk.edge_frame(vec)
        return eqk.so2_edge_message(x, q, index, *layers, 2, 2, h=h, a=a, w=w, activation="gate").square().sum()

    compiled = torch.compile(energy, fullgraph=True, backend=counter, dynamic=True)
    for edges, nodes in ((7, 5), (12, 9), (31, 4)):
        problem = Problem(2, 2, "gate", generator, edges=edges, nodes=nodes)
        leaves = [t.float().requires_grad_() for t in problem.operands]
        values = [f(problem.index, *leaves) for f in (compiled, energy)]
        assert_close(values[0], values[1])
        for got, want in zip(*(torch.autograd.grad(v, leaves) for v in values), strict=True):
            assert_close(got, want, 1)
    assert counter.frame_count == 1


def test_reference_backend(generator, float64_default):
    for activation in ACTIVATIONS:
        problem = Problem(3, 2, activation, generator, rescale=True)
        with eqk.dispatch.use_backend("reference"):
            got = problem.ours(*problem.operands)
        assert_close(got, problem.ours(*problem.operands))


def test_bad_input(generator):
    problem = Problem(2, 2, "gate", generator)
    x, vec, h, a, w, *parameters = (t.float() for t in problem.operands)
    q, (conv1, conv2) = eqk.edge_frame(vec), problem.layers(parameters)
    good = {"x": x, "q": q, "edge_index": problem.index, "conv1": conv1, "conv2": conv2, "lmax": 2, "mmax": 2}
    good |= {"h": h, "a": a, "w": w}
    wider = [t.float() for t in layer(2, 2, 4, 3, 4, generator)]
    narrow = [t.float() for t in layer(2, 2, 2, 2, 4, generator)]
    high, low = problem.index.clone(), problem.index.clone()
    high[1, 3], low[0, 2] = 5, -1
    for change, error, message in (
        ({"x": x[:, :8]}, RuntimeError, r"x: expected shape \[nodes, 9, 4 or 2\], got \[5, 8, 2\]"),
        ({"x": x.double()}, RuntimeError, "q: expected dtype torch.float64 as x has, got torch.float32"),
        ({"x": [1]}, TypeError, r"x: expected a tensor, got \[1\]"),
        ({"q": q[:, :3]}, RuntimeError, r"q: expected shape \[7, 4\], got \[7, 3\]"),
        ({"edge_index": problem.index[:1]}, RuntimeError, r"index: expected shape \[2 or 3, edges\], got \[1, 7\]"),
        ({"edge_index": problem.index.float()}, RuntimeError, "index: expected dtype int32 or int64"),
        ({"edge_index": high}, RuntimeError, "expected indices from 0 to 4"),
        ({"edge_index": low}, RuntimeError, "expected indices from 0 to 4"),
        ({"h": h[:, :2]}, RuntimeError, r"h: expected shape \[7, 3\], got \[7, 2\]"),
        ({"a": a[:, :7]}, RuntimeError, r"a: expected 2 dimensions, the last of 12 \(degrees\) or 24"),
        ({"h": None}, RuntimeError, "h: expected features that a is to be multiplied with, got None"),
        ({"bias": torch.ones(3)}, RuntimeError, r"bias: expected shape \[24\], got \[3\]"),
        ({"w": torch.ones(7, 2)}, RuntimeError, r"w: expected shape \[7, a divisor of 3\], got \[7, 2\]"),
        ({"conv1": conv1[:3]}, TypeError, r"conv1: expected mmax \+ 2 = 4 parameters"),
        ({"conv2": [*conv2[:3], conv2[3][:, 1:]]}, RuntimeError, r"conv2\[3\]: expected shape"),
        ({"activation": "s2"}, RuntimeError, r"conv1\[0\]: expected shape \[3 channels out \+ 2, 3 channels in\]"),
        ({"conv1": wider}, RuntimeError, r"conv1\[0\]: expected 2 channels out, for the 2 channels in of conv2, got 3"),
        ({"activation": "relu"}, ValueError, "activation: expected one of gate, s2, swiglu_s2, got 'relu'"),
        ({"merge": "sum"}, ValueError, "merge: expected one of concat, add, got 'sum'"),
        (
            {"merge": "add"},
            RuntimeError,
            r"x: expected shape \[nodes, 9, 4\], as conv1 has channels in and merge is 'add'",
        ),
        ({"merge": "add", "conv1": narrow}, RuntimeError, r"a: expected 2 dimensions, the last of 6 \(degrees\) or 12"),
        ({"recompute": "first"}, ValueError, "recompute: expected False, True or 'second', got 'first'"),
        ({"mmax": 3}, ValueError, "mmax: expected an order from 0 to lmax, 2, got 3"),
        ({"lmax": 21}, ValueError, "lmax: expected a degree from 0 to"),
    ):
        with pytest.raises(error, match=message):
            eqk.so2_edge_message(**good | change)
    with pytest.raises(ValueError, match="plan: expected 'LMAX,MMAX"):
        torch.ops.eqk.so2_edge_message(x, q, h, a, w, x, x, problem.index, "2,2,gate", False)


def test_bad_input_to_ops(generator):
    problem = Problem(2, 2, "gate", generator)
    x, vec, h, a, w, *parameters = (t.float() for t in problem.operands)
    layers = [torch.cat([t.flatten() for t in layer]) for layer in problem.layers(parameters)]
    plan, g = "2,2,4,2,3,gate,0,0,", torch.ones(5, 9, 3)
    v, y, s, message = (x, eqk.edge_frame(vec), h, a, w, *layers), *(torch.ones(7, n) for n in (18, 4, 27))
    forward, backward = (getattr(torch.ops.eqk, f"so2_edge_message{name}") for name in ("", "_backward"))
    kept, moving = (y.view(7, 9, 2), s, message.view(7, 9, 3)), [t.clone().requires_grad_() for t in v]
    assert backward(*v, g, *kept, problem.index, plan, [True] * 7)[0].shape == x.shape
    for call, message in (
        (lambda: forward(*v[:5], layers[0][1:], layers[1], problem.index, plan, True), r"conv1: expected shape \["),
        (lambda: forward(*v[:6], layers[1].double(), problem.index, plan, True), "conv2: expected dtype torch.float32"),
        (lambda: backward(*v, g[1:], *kept, problem.index, plan, [True] * 7), r"g: expected shape \[5, 9, 3\], got \[4"),
        (lambda: backward(*v, g, y, s, None, problem.index, plan, [True] * 7), r"y: expected shape \[7, 9, 2\]"),
        (lambda: backward(*v, g, None, s[:, 1:], None, problem.index, plan, [True] * 7), r"s: expected shape \[7, 4\]"),
        (lambda: backward(*v, g, *kept, problem.index, plan, [True] * 6), "wanted: expected 7 flags, got 6"),
        (lambda: backward(*moving, g, *kept, problem.index, plan, [True] * 8), "wanted: expected 7 flags, got 8"),
        (lambda: backward(*v, g, kept[0].cfloat(), *kept[1:], problem.index, plan, [True] * 7), "y: expected dtype torch"),
        (lambda: backward(*v, g, kept[0].to("meta"), *kept[1:], problem.index, plan, [True] * 7), "y: expected device cpu"),
        (lambda: backward(*v, g, *kept, problem.index, "2,2,4,2,3,s2,0,0,", [True] * 7), "plan: expected"),
        (lambda: backward(*v, g, *kept, problem.index + 9, plan, [True] * 7), r"index\[0\]: expected indices from 0 to 4"),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, ValueError), match=message):
            call()


def test_no_features_are_zero_weights(generator, float64_default):
    problem = Problem(2, 2, "gate", generator)
    problem.operands[2], problem.operands[3] = problem.operands[2][:, :0], problem.operands[3][:0]
    assert_close(problem.ours(*problem.operands), problem.truth(*problem.operands))
