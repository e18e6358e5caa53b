"""Every kernel on the GPU, where there is one: the registry against the dense reference, streams, captures, devices."""

import pytest
import test_rotate as rotations
import torch
from test_so2_edge_message import Problem
from test_tensor_product import PROBLEMS, SMALL, cast, compare, names
from test_tensor_product_conv import graph, operands_of

import eqk
from eqk import dispatch, reference
from eqk._edge_tiles import ops_of
from eqk.s2_activation import dispatched_s2_activation
from eqk.s2_activation_plan import FUNCTIONS
from eqk.so2_edge_message import ACTIVATIONS
from eqk.testing import CASES, assert_close, random_operands

pytestmark = pytest.mark.gpu

HERE = torch.device("cuda", 0)
BACKENDS = [b for b in ("cuda", "triton") if dispatch._PREDICATES[b]("tensor_product", HERE) is None] or ["none"]
MIXED = "mixed-mul_ir-ir_mul-mul_ir-shared"


def on_gpu(plan, backend, device=HERE):
    """eqk.tensor_product of operands on the CPU, computed on a GPU, as are its derivatives."""

    def product(*operands):
        with dispatch.use_backend(backend):
            return eqk.tensor_product(*(t if t is None else t.to(device) for t in operands), plan).cpu()

    return product


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def test_auto_takes_the_first_backend():
    assert dispatch.choose("tensor_product", HERE) == BACKENDS[0], dispatch.explain(
        "tensor_product", torch.empty(1, device=HERE)
    )


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_cases(case, backend, generator):
    operands = case.operands(case.rows, torch.float32, generator)
    compare(case.plan, operands, generator, (torch.float64, torch.float32), op=on_gpu(case.plan, backend))


@pytest.mark.parametrize("case", PROBLEMS, ids=names(PROBLEMS))
def test_problems(case, backend, generator):
    operands = case.operands(case.rows, torch.float32, generator)
    compare(case.plan, operands, generator, (torch.float32,), orders=2, op=on_gpu(case.plan, backend))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_16_bit(case, dtype, backend, generator):
    operands = random_operands(case.plan, case.rows, torch.float32, generator)
    operands = [t if t is None or t.numel() == 0 else t / t.abs().max() for t in operands]
    compare(case.plan, cast(operands, dtype), generator, (dtype,), op=on_gpu(case.plan, backend))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_s2_activation(function, generator):
    """By Triton where it can be imported: EquiformerV2's grid, channels first, coefficients that do not fit."""
    for lmaxes, channels, rows, res, layout in (
        ((6, 6), 128, 70, (18, 18), "ir_mul"),
        ((2, 3), 5, 33, (5, 9), "mul_ir"),
        ((1, 12), 3, 9, (8, 14), "ir_mul"),
    ):
        plan = eqk.S2ActivationPlan.normalized(*lmaxes, channels, function, res, layout_in=layout)
        x = torch.randn(rows, plan.dims[0], generator=generator)
        orders = 1 if function in ("relu", "abs") else 3 if channels < 128 else 2
        dtypes = (torch.float64,) if function in ("relu", "abs") else (torch.float64, torch.float32)
        ops = (
            lambda x, plan=plan: reference.s2_activation(x, plan),
            lambda x, plan=plan: dispatched_s2_activation(x.to(HERE), str(plan)).cpu(),
        )
        compare(plan, (x,), generator, dtypes, orders, *ops)


@pytest.mark.parametrize("kind", rotations.KINDS)
def test_rotate(kind, generator):
    """By Triton where it can be imported, each member of the family: UMA's degrees, EquiformerV2's, and odd channels."""
    for lmax, mmax, channels, edges in ((2, 2, 128, 500), (6, 2, 64, 200), (3, 1, 5, 40)):
        *operands, index = rotations.problem(lmax, mmax, channels, 2, kind, None, generator, edges=edges, nodes=30)
        for missing in rotations.members(operands):
            args = rotations.without(operands, missing, index, lmax, mmax, True)
            expected = torch.ops.eqk.rotate(*args)
            for dtype in (torch.float64, torch.float32):
                there = [a if n > 3 or a is None else a.to(HERE, dtype) for n, a in enumerate(args)]
                there[4] = None if index is None else index.to(HERE)
                got = ops_of("rotate", next(t for t in there if t is not None)).rotate(*there)
                assert_close(got.cpu(), expected, 1, dtype, (lmax, missing))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_so2_edge_message(activation, generator):
    """By Triton where it can be imported: UMA-S's sizes, and channels that fill no vector, of degrees 3."""
    for lmax, c, edges in ((2, 128, 2000), (3, 5, 300)):
        problem = Problem(lmax, 2, activation, generator, c=c, hidden=c, out=c, edges=edges, nodes=70)
        leaves = [t.float().to(HERE).requires_grad_() for t in problem.operands]
        wide = [t.detach().cpu().double().requires_grad_() for t in leaves]
        expected = problem.truth(*wide)
        gradients = torch.autograd.grad(expected.square().sum(), wide)
        problem.index = problem.index.to(HERE)
        got = problem.ours(*leaves)
        assert_close(got.cpu(), expected)
        for a, b in zip(torch.autograd.grad(got.square().sum(), leaves), gradients, strict=True):
            assert_close(a.cpu(), b, 1)


@pytest.mark.parametrize("rows", [0, 1, 15, 17, 257, 10_000])
@pytest.mark.parametrize("name", ["depthwise-7", "depthwise-33", MIXED])
def test_row_counts(name, rows, backend, generator):
    plan = CASES[name].plan
    operands = random_operands(plan, rows, torch.float32, generator)
    compare(plan, operands, generator, (torch.float32,), orders=2 if rows < 1000 else 1, op=on_gpu(plan, backend))


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("name", ["depthwise-33", "even-parity", "mace-medium", MIXED])
def test_convolution(name, given, backend, generator):
    """By CUDA's kernels or, what they do not cover, by torch operations; the order of edges found or given."""
    plan = CASES[name].plan
    src, dst = graph(300, 20, 30, generator, ordered=False)
    by_dst, by_src = (n.argsort(stable=True).to(HERE) if given else None for n in (dst, src))

    def on_gpu(x, y, w):
        x, y, w = (t if t is None else t.to(HERE) for t in (x, y, w))
        with dispatch.use_backend(backend):
            return eqk.tensor_product_conv(x, y, w, src.to(HERE), dst.to(HERE), 30, plan, by_dst, by_src).cpu()

    def truth(x, y, w):
        return reference.tensor_product_conv(x, y, w, src, dst, 30, plan)

    operands = operands_of(plan, 300, 20, torch.float32, generator)
    compare(plan, operands, generator, (torch.float64, torch.float32), 2, truth, on_gpu)


def gradients(product, x, y, w, g, directions):
    """Value, gradients and the gradients of those."""
    leaves = [t.detach().requires_grad_() for t in (x, y, w, g)]
    out = product(*leaves[:3])
    first = torch.autograd.grad(out, leaves[:3], leaves[3], create_graph=True)
    second = torch.autograd.grad(first, leaves, directions)
    return [t.detach() for t in (out, *first, *second)]


ORDERS = (0, 1, 1, 1, 2, 2, 2, 2)


def draw(plan, rows, generator):
    """x, y, w, g and directions of x, y, w."""
    g = torch.randn(rows, plan.irreps_out.dim, generator=generator)
    operands = random_operands(plan, rows, torch.float32, generator)
    return [*operands, g, *(torch.randn(t.shape, generator=generator) for t in operands)]


def check(plan, got, inputs):
    wide = cast(inputs, torch.float64)
    truth = gradients(lambda *t: reference.tensor_product(*t, plan), *wide[:4], wide[4:])
    for order, result, expected in zip(ORDERS, got, truth, strict=True):
        assert_close(result.cpu(), expected, order)


# A plan that no other test has run: its tables are made during the call.
def fresh_plan(coefficient, weights):
    paths = ((0, 0, 0, "uvu", True, coefficient), (1, 0, 1, "uvu", True, -coefficient))
    return eqk.Plan("36x0e + 8x1o", "1x1o", "36x1o + 8x0e", paths, weights=weights)


@pytest.mark.parametrize("weights", ["shared", "per_sample"])
def test_side_stream(weights, backend, generator):
    """The operands arrive late, on the stream that is current."""
    plan = fresh_plan(0.37, weights)
    inputs = draw(plan, 300, generator)
    late = [torch.full_like(t, float("nan"), device=HERE) for t in inputs]
    pinned = [t.pin_memory() for t in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), dispatch.use_backend(backend):
        torch.cuda._sleep(200_000_000)
        for t, source in zip(late, pinned, strict=True):
            t.copy_(source, non_blocking=True)
        got = gradients(lambda *t: eqk.tensor_product(*t, plan), *late[:4], late[4:])
    stream.synchronize()
    check(plan, got, inputs)


@pytest.mark.parametrize("weights", ["shared", "per_sample"])
def test_capture(weights, backend, generator):
    """Forward, backward and double backward in a CUDA graph, replayed on new numbers."""
    plan = fresh_plan(0.61, weights)
    static = [t.to(HERE) for t in draw(plan, 300, generator)]

    def step():
        with dispatch.use_backend(backend):
            return gradients(lambda *t: eqk.tensor_product(*t, plan), *static[:4], static[4:])

    if backend == "triton":  # compiles when it first runs, which a capture does not allow
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for _ in range(2):
        inputs = draw(plan, 300, generator)
        for t, source in zip(static, inputs, strict=True):
            t.copy_(source)
        graph.replay()
        check(plan, got, inputs)


def test_strides(backend, generator):
    plan = CASES["depthwise-7"].plan
    x, y, w = (t.to(HERE) for t in random_operands(plan, 50, torch.float32, generator))
    wide = torch.randn(50, x.shape[1] + 3, device=HERE)
    wide[:, 1:-2] = x
    expected = reference.tensor_product(*(t.cpu().double() for t in (x, y, w)), plan)
    with dispatch.use_backend(backend):
        for operands in ((wide[:, 1:-2], y, w), (x.T.contiguous().T, y, w), (x, y, w.repeat(1, 2)[:, : w.shape[1]])):
            assert_close(eqk.tensor_product(*operands, plan).cpu(), expected)
        got = eqk.tensor_product(x, y[:1].expand_as(y), w, plan).cpu()
    assert_close(
        got, reference.tensor_product(x.cpu().double(), y[:1].expand_as(y).cpu().double(), w.cpu().double(), plan)
    )


@pytest.mark.parametrize("device", range(torch.cuda.device_count()))
def test_every_device(device, backend, generator):
    """Also where it is not the current one."""
    plan = fresh_plan(0.83, "per_sample")
    operands = random_operands(plan, 9, torch.float32, generator)
    compare(
        plan, operands, generator, (torch.float32,), orders=2, op=on_gpu(plan, backend, torch.device("cuda", device))
    )
    assert torch.cuda.current_device() == 0


def test_two_places(backend, generator):
    plan = CASES["depthwise-7"].plan
    x, y, w = random_operands(plan, 4, torch.float32, generator)
    with (
        dispatch.use_backend(backend),
        pytest.raises(RuntimeError, match="y: expected .*device cuda:0 as x has, got .*cpu"),
    ):
        eqk.tensor_product(x.to(HERE), y, w.to(HERE), plan)
