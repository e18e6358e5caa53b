"""eqk.so2_edge_scalars against dense matrices of e3nn, one step after the other, and its derivatives."""

import e3nn.o3
import pytest
import torch
import torch._dynamo.testing
from test_rotate import of_rows
from test_tensor_product import assert_same_bits

import eqk
from eqk.testing import assert_close, derivatives, random_directions

CASES = {
    "as EquiformerV2": {},
    "one degree": {"lmax": 0},
    "L=6": {"lmax": 6, "c": 2},
    "of sources alone": {"sources": 1},
    "weights themselves": {"last": False},
    "no weights": {"radial": False},
    "no edges": {"edges": 0},
}


class Problem:
    """Operands (x, vec, h, a, bias, weight) in float64, and the scalars of them by eqk and by dense steps."""

    def __init__(self, generator, lmax=4, c=3, nodes=5, edges=7, sources=2, last=True, radial=True, scalars=4):
        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.lmax, self.index = lmax, torch.randint(nodes, (sources, edges), generator=generator)
        columns = (lmax + 1) * sources * c
        self.operands = [
            normal(nodes, (lmax + 1) ** 2, c),
            normal(edges, 3),
            normal(edges, 3 if last else columns) if radial else None,
            normal(3, columns) if radial and last else None,
            normal(columns) if radial and last else None,
            normal(scalars, columns) * 10,
        ]

    def ours(self, x, vec, h, a, bias, weight):
        return eqk.so2_edge_scalars(x, eqk.edge_frame(vec), self.index, weight, self.lmax, h=h, a=a, bias=bias)

    def truth(self, x, vec, h, a, bias, weight):
        degrees = list(range(self.lmax + 1))
        y = e3nn.o3.spherical_harmonics(degrees, vec, True, normalization="norm")
        pairs = torch.cat([x[nodes] for nodes in self.index], 2) * y[:, :, None]
        z = torch.stack([pairs[:, l * l : (l + 1) ** 2].sum(1) for l in degrees], 1)
        if h is not None:
            r = h if a is None else h @ a + bias
            z = z * of_rows(r.unflatten(1, (self.lmax + 1, -1)), self.lmax, 0, "degree", z.shape[2])
        return z.flatten(1) @ weight.mT

    def to(self, dtype):
        return [None if t is None else t.to(dtype) for t in self.operands]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_derivatives(name, dtype, generator, float64_default):
    """Of four orders, to all operands."""
    problem = Problem(generator, **CASES[name])
    operands = problem.to(dtype)
    wide = [None if t is None else t.double() for t in operands]
    orders = 4 if dtype == torch.float64 else 1
    directions = random_directions(wide, problem.truth(*wide), orders, generator)
    narrow = [[d.to(dtype) for d in along] for along in directions]
    got, want = derivatives(problem.ours, operands, narrow), derivatives(problem.truth, wide, directions)
    for order, pairs in enumerate(zip(got, want, strict=True)):
        for a, b in zip(*pairs, strict=True):
            assert a.dtype == dtype
            assert_close(a, b, min(order, 2))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(eqk._edge_tiles, "_EDGES_OF_TILE", 64)


@pytest.mark.parametrize("nodes", [5, 200])
def test_tiles(nodes, generator, float64_default, small_tiles):
    """Three orders where all nodes are in every tile, and where few are."""
    problem = Problem(generator, lmax=2, c=1, nodes=nodes, edges=150)
    directions = random_directions(problem.operands, problem.truth(*problem.operands), 3, generator)
    got, want = (derivatives(f, problem.operands, directions) for f in (problem.ours, problem.truth))
    for order, pairs in enumerate(zip(got, want, strict=True)):
        for a, b in zip(*pairs, strict=True):
            assert_close(a, b, min(order, 2))


@pytest.mark.parametrize("wanted", range(6))
def test_one_gradient_alone(wanted, generator):
    """What is not asked for is not kept; the second derivative needs the others again."""
    problem = Problem(generator)
    results = []
    for f in (problem.ours, problem.truth):
        leaves = [t.clone().requires_grad_(n == wanted) for n, t in enumerate(problem.operands)]
        (gradient,) = torch.autograd.grad(f(*leaves).square().sum(), leaves[wanted], create_graph=True)
        results.append((gradient, *torch.autograd.grad(gradient.square().sum(), leaves[wanted])))
    for got, want in zip(*results, strict=True):
        assert_close(got.detach(), want.detach(), 1)


def test_finite_differences(generator):
    problem = Problem(generator, lmax=2, c=1, nodes=3, edges=3, scalars=2)
    leaves = [t.requires_grad_() for t in problem.operands]
    options = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(problem.ours, leaves, **options)
    assert torch.autograd.gradgradcheck(problem.ours, leaves, check_fwd_over_rev=True)


def test_func(generator):
    """Hessians in forward mode over reverse mode and the like, and samples with and without a dimension."""
    problem = Problem(generator, lmax=2, c=1, nodes=3, edges=4)
    x, *others = problem.operands

    def energy(f, x, vec):
        return f(x, vec, *others[1:]).square().sum()

    for outer in (torch.func.jacfwd, torch.func.jacrev):
        got, want = (outer(torch.func.grad(energy, 1), 2)(f, x, others[0]) for f in (problem.ours, problem.truth))
        assert_close(got, want, 2)
    samples = torch.randn(3, *x.shape, generator=generator, dtype=x.dtype)
    got = torch.vmap(lambda x: problem.ours(x, *others))(samples)
    assert_close(got, torch.stack([problem.truth(x, *others) for x in samples]))


def test_compile(generator):
    """One graph for any number of edges and nodes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def energy(x, q, h, a, bias, weight, index):
        return eqk.so2_edge_scalars(x, q, index, weight, 2, h=h, a=a, bias=bias).square().sum()

    compiled = torch.compile(energy, fullgraph=True, backend=counter, dynamic=True)
    for edges, nodes in ((7, 5), (12, 9), (31, 4)):
        problem = Problem(generator, lmax=2, edges=edges, nodes=nodes)
        x, vec, *others = problem.operands
        leaves = [t.requires_grad_() for t in (x, eqk.edge_frame(vec), *others)]
        values = [f(*leaves, problem.index) for f in (compiled, energy)]
        assert_close(values[0].detach(), values[1].detach())
        for got, want in zip(*(torch.autograd.grad(v, leaves) for v in values), strict=True):
            assert_close(got, want, 1)
    assert counter.frame_count == 1


@pytest.mark.parametrize("nodes", [40, 100])
def test_bits(nodes, generator, small_tiles):
    """On a given number of threads."""
    problem = Problem(generator, edges=1500, nodes=nodes, c=8)
    operands = [t.float().requires_grad_() for t in problem.operands]

    def run():
        return torch.autograd.grad(problem.ours(*operands).square().sum(), operands)

    for threads in (1, 3):
        assert_same_bits(run, run, run, threads=[threads] * 3)


def test_memory(generator):
    """Gradients are made of the operands alone."""
    problem = Problem(generator, edges=50, c=8)
    kept = []

    def pack(t):
        kept.append(t)
        return t

    operands = [t.requires_grad_() for t in problem.operands]
    q = eqk.edge_frame(operands[1]).detach()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        x, _, h, a, bias, weight = operands
        eqk.so2_edge_scalars(x, q, problem.index, weight, 4, h=h, a=a, bias=bias)
    width = max(t[0].numel() for t in kept if t.dim() > 1 and t.shape[0] == 50)
    assert width == 25  # the harmonics


def test_no_tensor_of_all_edges(generator):
    """No operator of the gradients and of theirs has memory of z's size, as those of dense steps have."""
    problem = Problem(generator, edges=5000, nodes=20, c=16)
    operands = [t.requires_grad_() for t in problem.operands]

    def most_of_an_operator():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            gradients = torch.autograd.grad(problem.ours(*operands).square().sum(), operands, create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in gradients), operands)
        return max(event.self_cpu_memory_usage for event in profile.events())

    of_z = 8 * 5000 * 5 * 2 * 16
    assert most_of_an_operator() < of_z / 4
    with eqk.dispatch.use_backend("reference"):
        assert most_of_an_operator() >= of_z


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(dtype, generator):
    """The float32 result of the same operands and Wigner matrices, rounded once."""
    x, vec, h, a, _, weight = Problem(generator).to(dtype)
    D = eqk.wigner(eqk.edge_frame(vec), 4, 0)
    index = torch.randint(5, (2, 7), generator=generator)
    op, wanted = torch.ops.eqk.so2_edge_scalars, [False] * 5 + [True]
    wide = op(*(t.float() for t in (x, D, h, a, weight)), None, index, 4, wanted)[5]
    assert torch.equal(op(x, D, h, a, weight, None, index, 4, wanted)[5], wide.to(dtype))


def test_autocast_and_reference(generator):
    problem = Problem(generator)
    x, vec, h, a, _, weight = problem.operands
    with torch.autocast("cpu", torch.bfloat16):
        mixed = eqk.so2_edge_scalars(
            x.float(), eqk.edge_frame(vec), problem.index, weight.float(), 4, h=h.float(), a=a.float()
        )
    assert mixed.dtype == torch.float64
    with eqk.dispatch.use_backend("reference"):
        expected = problem.ours(*problem.operands)
    assert_close(problem.ours(*problem.operands), expected)


X, Q, INDEX, W = torch.ones(3, 9, 2), torch.ones(4, 4), torch.zeros(2, 4, dtype=torch.long), torch.ones(5, 12)


@pytest.mark.parametrize(
    "args,options,error,message",
    [
        ((None, Q, INDEX, W, 2), {}, TypeError, "eqk.so2_edge_scalars: x: expected a tensor, got None"),
        ((X, Q, INDEX, [1.0], 2), {}, TypeError, "eqk.so2_edge_scalars: weight: expected a tensor"),
        ((X, Q, INDEX, W, 21), {}, ValueError, "eqk.so2_edge_scalars: lmax: expected a degree from 0 to 20, got 21"),
        ((X, Q, INDEX, W, 1), {}, RuntimeError, r"x: expected shape \[nodes, 4, channels\], got \[3, 9, 2\]"),
        ((X.long(), Q, INDEX, W, 2), {}, RuntimeError, "x: expected dtype"),
        ((X, Q[:3], INDEX, W, 2), {}, RuntimeError, r"D: expected shape \[4, 9\], got \[3, 9\]"),
        ((X, Q.double(), INDEX, W, 2), {}, RuntimeError, "D: expected dtype torch.float32 as x has"),
        ((X, Q, INDEX[0], W, 2), {}, RuntimeError, r"index: expected shape \[1 or 2, edges\], got \[4\]"),
        ((X, Q, INDEX.short(), W, 2), {}, RuntimeError, "index: expected dtype int32 or int64"),
        ((X, Q, INDEX + 3, W, 2), {}, RuntimeError, "index"),
        ((X, Q, INDEX[:1], W, 2), {}, RuntimeError, r"weight: expected shape \[5, 6\], got \[5, 12\]"),
        ((X, Q, INDEX, W, 2), {"h": torch.ones(4, 3)}, RuntimeError, r"h: expected shape \[4, 12\], got \[4, 3\]"),
        ((X, Q, INDEX, W, 2), {"a": torch.ones(3, 12)}, RuntimeError, "h: expected features that a"),
        ((X, Q, INDEX, W, 2), {"h": torch.ones(4, 3), "a": torch.ones(3, 9)}, RuntimeError,
         r"a: expected shape \[3, 12\], got \[3, 9\]"),
        ((X, Q, INDEX, W, 2), {"bias": torch.ones(12)}, RuntimeError, "bias: expected None without a matrix a"),
    ],
)  # fmt: skip
def test_bad_input(args, options, error, message):
    with pytest.raises(error, match=message):
        eqk.so2_edge_scalars(*args, **options)


@pytest.mark.parametrize("node", [-1, 100])
def test_a_node_that_is_none(node, small_tiles):
    """Of few that are in a tile."""
    index = torch.zeros(2, 70, dtype=torch.long)
    index[1, 65] = node
    with pytest.raises(RuntimeError, match=f"index: expected indices from 0 to 99, got {node}"):
        eqk.so2_edge_scalars(torch.ones(100, 9, 2), torch.ones(70, 4), index, W, 2)


def test_bad_call_of_the_op():
    op, D = torch.ops.eqk.so2_edge_scalars, torch.ones(4, 9)
    with pytest.raises(RuntimeError, match="g: expected a tensor, of which gradients are made, got None"):
        op(X, D, None, None, W, None, INDEX, 2, [True] + [False] * 5)
