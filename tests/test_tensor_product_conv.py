"""The graph convolution against gather, product and sum over edges."""

import itertools

import pytest
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from test_tensor_product import CHECKED, DTYPES, PROBLEMS, SMALL, assert_same_bits, cast, compare, names, run_python

import eqk
from eqk import reference, testing
from eqk.testing import CASES, assert_close, derivatives, random_directions, random_operands, relative_error

OPS = torch.ops.eqk
UVU = CASES["depthwise-33"].plan


def graph(edges, num_src, num_dst, generator, ordered=True, dtype=torch.int64):
    """src, dst with some nodes that have no edge, where there are several."""
    src = torch.randint(max(1, num_src - 1), (edges,), generator=generator)
    dst = torch.randint(max(1, num_dst - 1), (edges,), generator=generator)
    if num_dst > 2:
        dst = dst + (dst >= num_dst // 2).long()  # one in the middle has none
    return src.to(dtype), (dst.sort().values if ordered else dst).to(dtype)


def operands_of(plan, edges, num_src, dtype, generator):
    _, y, w = random_operands(plan, edges, dtype, generator)
    x, _, _ = random_operands(plan, num_src, dtype, generator)
    return x, y, w


def on(src, dst, num_dst, plan, op=eqk.tensor_product_conv):
    return lambda x, y, w: op(x, y, w, src, dst, num_dst, plan)


def check(plan, edges, num_src, num_dst, generator, dtypes=(torch.float64, torch.float32), orders=3, **how):
    src, dst = graph(edges, num_src, num_dst, generator, **how)
    compare(
        plan,
        operands_of(plan, edges, num_src, torch.float32, generator),
        generator,
        dtypes,
        orders,
        on(src, dst, num_dst, plan, reference.tensor_product_conv),
        on(src, dst, num_dst, plan),
    )


@pytest.mark.parametrize("case", SMALL, ids=names(SMALL))
def test_cases(case, generator):
    check(case.plan, 37, 5, 7, generator)
    check(case.plan, 9, 9, 4, generator, orders=2, ordered=False)


@pytest.mark.parametrize("case", PROBLEMS, ids=names(PROBLEMS))
def test_problems(case, generator):
    check(case.plan, 11, 3, 4, generator, (torch.float32,), orders=2)


@pytest.mark.parametrize("name", ["depthwise-33", "mixed-mul_ir-ir_mul-mul_ir-shared", "uvv-shared", "uvu-none"])
@pytest.mark.parametrize(
    ("edges", "num_src", "num_dst"),
    [(0, 3, 2), (0, 0, 0), (0, 3, 0), (0, 0, 2), (1, 1, 1), (8, 8, 1), (40, 1, 9), (700, 2, 3), (1500, 3, 40)],
)
def test_graphs(name, edges, num_src, num_dst, generator):
    """No edges, no nodes, and nodes of more edges than sums in one chain of additions have."""
    for ordered in (True, False):
        check(CASES[name].plan, edges, num_src, num_dst, generator, orders=2, ordered=ordered)


@pytest.mark.parametrize("chunk", range(4))
def test_random_plans_and_graphs(chunk, rng, generator):
    """300 of both, to third order, against gather, eqk.tensor_product and index_add."""
    for _ in range(75):
        plan = testing.random_plan(rng)
        edges, num_src, num_dst = rng.choice((0, 1, 7, 16, 40)), rng.randint(1, 6), rng.randint(1, 9)
        src, dst = graph(edges, num_src, num_dst, generator, rng.random() < 0.5, rng.choice((torch.int32, torch.int64)))
        operands = operands_of(plan, edges, num_src, torch.float64, generator)

        def composite(x, y, w, plan=plan, src=src, dst=dst, num_dst=num_dst):
            messages = eqk.tensor_product(x[src.long()], y, w, plan)
            return messages.new_zeros(num_dst, messages.shape[1]).index_add(0, dst.long(), messages)

        directions = random_directions(operands, composite(*operands), 3, generator)
        got = derivatives(on(src, dst, num_dst, plan), operands, directions)
        want = derivatives(composite, operands, directions)
        for order, (results, references) in enumerate(zip(got, want, strict=True)):
            for n, (a, b) in enumerate(zip(results, references, strict=True)):
                assert_close(a, b, order, what=f"result {n}, {edges} edges, {num_src} to {num_dst} nodes, plan {plan}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["depthwise-33", "mixed-mul_ir-mul_ir-ir_mul-shared"])
def test_16_bit(name, dtype, generator):
    """Sums over edges are rounded once: no less accurate than the product alone."""
    plan = CASES[name].plan
    src, dst = graph(200, 7, 5, generator, ordered=False)
    operands = [t / t.abs().max() for t in operands_of(plan, 200, 7, torch.float32, generator)]
    truth = on(src, dst, 5, plan, reference.tensor_product_conv)
    compare(plan, cast(operands, dtype), generator, (dtype,), 3, truth, on(src, dst, 5, plan))


@pytest.mark.parametrize("name", ["depthwise-33", "mixed-mul_ir-ir_mul-mul_ir-shared"])
def test_long_sums(name, generator):
    """Equal terms, whose rounding errors all have one sign, into one node, from one node, and of shared weights.

    One chain of additions has errors near 1e-3; sums of 64 edges, with a term of each path, below 5e-6.
    """
    plan = CASES[name].plan
    edges = 100_000 if name == "depthwise-33" else 20_000
    x, y, w = operands_of(plan, 1, 1, torch.float32, generator)
    y = y.expand(edges, -1)
    w = w if plan.weights == "shared" else w.expand(edges, -1)
    zero = torch.zeros(edges, dtype=torch.int64)
    g = torch.randn(1, plan.irreps_out.dim, generator=generator)
    for by, wanted in ((zero, (True, False, plan.weights == "shared")),):
        got = OPS.tensor_product_conv_backward(x, y, w, g, by, by, 1, str(plan), None, None, wanted)
        one = [t if t is None else t.double() for t in (x, y[:1], w if plan.weights == "shared" else w[:1])]
        want = OPS.tensor_product_backward(*one, g.double(), str(plan), wanted)
        for a, b, wants in zip(got, want, wanted, strict=True):
            if wants:
                assert relative_error(a, b * edges) < 5e-6
        out = OPS.tensor_product_conv(x, y, w, by, by, 1, str(plan))
        assert relative_error(out, OPS.tensor_product(*one, str(plan)) * edges) < 5e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["depthwise-33", "mixed-mul_ir-ir_mul-mul_ir-shared"])
def test_bitwise_determinism(name, dtype, generator):
    """The same bits in two runs, for any number of threads, for either dtype of indices, with the order given or not."""
    plan = CASES[name].plan
    src, dst = graph(3000, 90, 50, generator, ordered=False)
    x, y, w = (t / t.abs().max() for t in operands_of(plan, 3000, 90, torch.float32, generator))
    g = torch.randn(50, plan.irreps_out.dim, generator=generator)
    slots = cast((x, y, w, g), dtype)
    tangents = [torch.randn(t.shape, generator=generator).to(dtype) for t in slots]
    orders = [t.argsort(stable=True) for t in (dst, src)]

    def run(kind, by_dst, by_src):
        rest = (src.to(kind), dst.to(kind), 50, str(plan), by_dst, by_src)
        return [
            OPS.tensor_product_conv(*slots[:3], *rest),
            OPS.tensor_product_conv_jvp(*slots[:3], *tangents[:3], *rest),
            *OPS.tensor_product_conv_backward(*slots, *rest, [True] * 3),
            *OPS.tensor_product_conv_double_backward(*slots, *tangents[:3], None, *rest, [True] * 4),
            *OPS.tensor_product_conv_double_backward(*slots, *tangents, *rest, [True] * 4),
        ]

    assert_same_bits(
        lambda: run(torch.int64, None, None),
        lambda: run(torch.int32, *orders),
        lambda: run(torch.int64, orders[0], None),
    )


def test_strided_operands(generator):
    """Rows apart, columns apart, expanded rows, indices apart."""
    src, dst = graph(50, 6, 5, generator, ordered=False)
    x, y, w = operands_of(UVU, 50, 6, torch.float32, generator)
    expected = eqk.tensor_product_conv(x, y, w, src, dst, 5, UVU)

    def apart(t, dim):
        wide = t.new_full([2 * n if d == dim else n for d, n in enumerate(t.shape)], 7)
        view = wide.narrow(dim, 0, wide.shape[dim])[
            tuple(slice(None, None, 2) if d == dim else slice(None) for d in range(t.dim()))
        ]
        return view.copy_(t)

    for dim in (0, 1):
        got = eqk.tensor_product_conv(*(apart(t, dim) for t in (x, y, w)), apart(src, 0), apart(dst, 0), 5, UVU)
        assert torch.equal(got, expected)
    got = eqk.tensor_product_conv(x[:1].expand(6, -1), y[:1].expand(50, -1), w, src, dst, 5, UVU)
    assert torch.equal(got, eqk.tensor_product_conv(x[:1].repeat(6, 1), y[:1].repeat(50, 1), w, src, dst, 5, UVU))


BAD = {
    "src: expected indices from 0 to 5, got 6 at position 3": dict(src=torch.tensor([0, 1, 2, 6, 0])),
    "src: expected indices from 0 to 5, got -1 at position 0": dict(src=torch.tensor([-1, 1, 2, 5, 0])),
    "dst: expected indices from 0 to 3, got 4 at position 4": dict(
        dst=torch.tensor([0, 0, 1, 3, 4], dtype=torch.int32)
    ),
    r"dst: expected shape \[5\], got \[4\]": dict(dst=torch.tensor([0, 0, 1, 3])),
    "src: expected dtype int32 or int64, got Float": dict(src=torch.zeros(5)),
    r"src: expected shape \[edges\], got \[5, 1\]": dict(src=torch.zeros(5, 1, dtype=torch.int64)),
    r"y: expected shape \[5, 4\], got \[6, 4\]": dict(y=torch.zeros(6, 4)),
    r"x: expected 2 dimensions \[nodes, 132\]": dict(x=torch.zeros(132)),
    "num_dst: expected at least 0, got -1": dict(num_dst=-1),
    "by_dst: expected the stable order of dst, got edge 1, into 0, before edge 0, into 0": dict(
        by_dst=torch.tensor([1, 0, 2, 3, 4])
    ),
    "by_dst: expected the stable order of dst, got edge 0, into 0, before edge 0, into 0": dict(
        by_dst=torch.tensor([0, 0, 2, 3, 4])
    ),
    "by_dst: expected indices from 0 to 4, got 5 at position 4": dict(by_dst=torch.tensor([0, 1, 2, 3, 5])),
    r"by_src: expected shape \[5\], got \[3\]": dict(by_src=torch.tensor([0, 1, 2])),
    "src, dst, num_dst: out of memory: could not order 5 edges from 6 to 1152921504606846976 nodes": dict(
        num_dst=1 << 60
    ),
    "src, dst, num_dst: out of memory": dict(num_dst=(1 << 63) - 1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message, generator):
    x, y, w = operands_of(UVU, 5, 6, torch.float32, generator)
    arguments = dict(x=x, y=y, w=w, src=torch.tensor([0, 1, 2, 5, 0]), dst=torch.tensor([0, 0, 1, 3, 3]), num_dst=4)
    eqk.tensor_product_conv(**arguments, plan=UVU)
    with pytest.raises(RuntimeError, match=f"eqk::tensor_product_conv: ({message})"):
        eqk.tensor_product_conv(**arguments | BAD[message], plan=UVU)
    with pytest.raises(TypeError, match="src: expected a tensor, got None"):
        eqk.tensor_product_conv(**arguments | dict(src=None), plan=UVU)
    with pytest.raises(TypeError, match="plan: expected"):
        eqk.tensor_product_conv(**arguments, plan=3)


@pytest.mark.parametrize("name", [*CHECKED, "depthwise-3"])
def test_gradcheck(name, generator):
    plan = CASES[name].plan
    src, dst = graph(6, 3, 4, generator, ordered=False)
    operands = [t for t in operands_of(plan, 6, 3, torch.float64, generator) if t is not None]
    operands = [(t / t.abs().max()).requires_grad_() for t in operands]

    def f(*tensors):
        return eqk.tensor_product_conv(*tensors, *[None] * (3 - len(tensors)), src, dst, 4, plan)

    everything = dict(check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradcheck(f, operands, fast_mode=True, **everything)
    assert torch.autograd.gradgradcheck(f, operands, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name", ["depthwise-3", "mixed-mul_ir-ir_mul-mul_ir-shared"])
@pytest.mark.parametrize(
    "mapped", [m for m in itertools.product((0, None), repeat=4) if any(d == 0 for d in m)], ids=str
)
def test_vmap(name, mapped, generator):
    """Value and gradients mapped over any subset of operands, and over the graph."""
    plan, of_graph = CASES[name].plan, mapped[3]
    x, y, w = operands_of(plan, 8, 3, torch.float64, generator)
    graphs = [graph(8, 3, 4, generator, ordered=False) for _ in range(3)]
    graphs = graphs if of_graph == 0 else graphs[:1] * 3
    batched = [t if d is None else torch.stack([t, t * 2, t - 1]) for t, d in zip((x, y, w), mapped[:3], strict=True)]
    indices = [torch.stack(t) if of_graph == 0 else t[0] for t in zip(*graphs, strict=True)]

    def f(op):
        def both(x, y, w, src, dst):
            def energy(*t):
                return op(*t, src, dst, 4, plan).pow(2).sum()

            return op(x, y, w, src, dst, 4, plan), torch.func.grad(energy, (0, 1, 2))(x, y, w)

        return both

    value, gradients = torch.func.vmap(f(eqk.tensor_product_conv), (*mapped[:3], of_graph, of_graph))(
        *batched, *indices
    )
    for b in range(3):
        sample = [t if d is None else t[b] for t, d in zip(batched, mapped[:3], strict=True)]
        expected, expected_gradients = f(reference.tensor_product_conv)(*sample, *graphs[b])
        assert_close(value[b], expected)
        for got, want in zip(gradients, expected_gradients, strict=True):
            assert_close(got[b], want, 1)
    nothing = [t if d is None else t[:0] for t, d in zip((*batched, *indices), (*mapped, of_graph), strict=True)]
    value, gradients = torch.func.vmap(f(eqk.tensor_product_conv), (*mapped[:3], of_graph, of_graph))(*nothing)
    assert value.shape == (0, 4, plan.irreps_out.dim)
    assert [g.shape for g in gradients] == [(0, *t.shape) for t in (x, y, w)]


def test_indices_written_to_before_backward(generator):
    """Autograd refuses, instead of a gradient of another graph."""
    src, dst = graph(8, 3, 4, generator)
    x, y, w = operands_of(UVU, 8, 3, torch.float64, generator)
    out = eqk.tensor_product_conv(x.requires_grad_(), y, w, src, dst, 4, UVU)
    src.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("name", ["depthwise-3", "mixed-mul_ir-ir_mul-mul_ir-shared", "uvu-none"])
def test_opcheck(name, generator):
    plan = CASES[name].plan
    src, dst = graph(8, 3, 4, generator, ordered=False)
    x, y, w = operands_of(plan, 8, 3, torch.float64, generator)
    g = torch.randn(4, plan.irreps_out.dim, generator=generator, dtype=torch.float64)
    v = [None if t is None else t.requires_grad_() for t in (x, y, w)]
    t = [None if t is None else torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (*v, g)]
    rest = (src, dst, 4, str(plan), dst.argsort(stable=True), None)
    for op, args in (
        (OPS.tensor_product_conv, (*v, *rest[:4])),
        (OPS.tensor_product_conv, (*v, *rest)),
        (OPS.tensor_product_conv_jvp, (*v, *t[:3], *rest)),
        (OPS.tensor_product_conv_backward, (*v, g, *rest, [True, True, False])),
        (OPS.tensor_product_conv_double_backward, (*v, g, *t, *rest, [True, True, False, True])),
    ):
        torch.library.opcheck(op.default, args)


def test_compile_dynamic_graphs(generator):
    """Energy and forces under inductor; a graph of other sizes compiles nothing again."""
    plan = CASES["depthwise-3"].plan
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def energy_and_gradient(x, y, w, src, dst, num_dst):
        out = eqk.tensor_product_conv(x, y, w, src, dst, num_dst, plan).pow(2).sum()
        return out, *torch.autograd.grad(out, (x, y))

    compiled = torch.compile(energy_and_gradient, backend=counter, dynamic=True)
    for edges, nodes in ((8, 3), (30, 5), (17, 9)):
        src, dst = graph(edges, nodes, nodes, generator, ordered=False)
        x, y, w = operands_of(plan, edges, nodes, torch.float64, generator)
        x.requires_grad_(), y.requires_grad_()
        for got, want in zip(
            compiled(x, y, w, src, dst, nodes), energy_and_gradient(x, y, w, src, dst, nodes), strict=True
        ):
            assert_close(got, want, 1)
    assert counter.frame_count <= 2, "one more for the first call's default layout"


def test_export(generator):
    plan = CASES["depthwise-3"].plan

    class Convolution(torch.nn.Module):
        def forward(self, x, y, w, src, dst):
            return eqk.tensor_product_conv(x, y, w, src, dst, x.shape[0], plan)

    def inputs(edges, nodes):
        return (*operands_of(plan, edges, nodes, torch.float32, generator), *graph(edges, nodes, nodes, generator))

    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    shapes = ({0: nodes}, {0: edges}, {0: edges}, {0: edges}, {0: edges})
    program = torch.export.export(Convolution(), inputs(8, 3), dynamic_shapes=shapes)
    other = inputs(31, 6)
    assert torch.equal(program.module()(*other), Convolution()(*other))


def test_script(generator):
    @torch.jit.script
    def scripted(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, src: torch.Tensor, dst: torch.Tensor, plan: str):
        return torch.ops.eqk.tensor_product_conv(x, y, w, src, dst, 4, plan)

    src, dst = graph(8, 3, 4, generator)
    x, y, w = operands_of(UVU, 8, 3, torch.float32, generator)
    assert torch.equal(scripted(x, y, w, src, dst, str(UVU)), eqk.tensor_product_conv(x, y, w, src, dst, 4, UVU))


def test_autocast(generator):
    """Mixed dtypes are promoted to the widest; indices stay what they are."""
    src, dst = graph(8, 3, 4, generator)
    x, y, w = operands_of(UVU, 8, 3, torch.float32, generator)
    with torch.autocast("cpu", torch.bfloat16):
        out = eqk.tensor_product_conv(x, y.bfloat16(), w, src, dst, 4, UVU)
    assert torch.equal(out, eqk.tensor_product_conv(x, y.bfloat16().float(), w, src, dst, 4, UVU))


def test_meta(generator):
    src, dst = graph(8, 3, 4, generator)
    x, y, w = operands_of(UVU, 8, 3, torch.float32, generator)
    out = eqk.tensor_product_conv(*(t.to("meta") for t in (x, y, w, src, dst)), 4, UVU)
    assert out.shape == (4, UVU.irreps_out.dim)
    with pytest.raises(RuntimeError, match=r"dst: expected shape \(8,\), got \(7,\)"):
        eqk.tensor_product_conv(*(t.to("meta") for t in (x, y, w, src, dst[:7])), 4, UVU)


def test_backends(generator):
    src, dst = graph(8, 3, 4, generator, ordered=False)
    x, y, w = operands_of(UVU, 8, 3, torch.float64, generator)
    expected = eqk.tensor_product_conv(x, y, w, src, dst, 4, UVU)
    with eqk.dispatch.use_backend("reference"):
        assert_close(eqk.tensor_product_conv(x, y, w, src, dst, 4, UVU), expected)


@pytest.mark.parametrize("name", ["depthwise-33", "mixed-mul_ir-ir_mul-mul_ir-shared", "uvu-none"])
def test_by_messages(name, generator):
    """What a device's kernels leave to torch's operations, against kernels, with what is not wanted and not there."""
    plan = CASES[name].plan
    src, dst = graph(20, 6, 5, generator, ordered=False, dtype=torch.int32)
    for dtype in (torch.float64, torch.bfloat16):
        v = [
            None if t is None else (t / t.abs().max()).to(dtype)
            for t in operands_of(plan, 20, 6, torch.float64, generator)
        ]
        g = torch.randn(5, plan.irreps_out.dim, generator=generator).to(dtype)
        t = [None if s is None else torch.randn(s.shape, generator=generator).to(dtype) for s in (*v, g)]
        rest = (src, dst, 5, str(plan), None, None)
        for suffix, args in (
            ("", (*v, *rest[:4])),
            ("_jvp", (*v, *t[:3], *rest)),
            ("_backward", (*v, g, *rest, [True, False, True])),
            ("_backward", (*v, g, *rest, [False, True, False])),
            ("_double_backward", (*v, g, *t[:3], None, *rest, [True, True, True, True])),
            ("_double_backward", (*v, g, None, *t[1:], *rest, [True, False, True, False])),
        ):
            got, want = (getattr(OPS, f"tensor_product_conv{way}{suffix}")(*args) for way in ("_by_messages", ""))
            for a, b in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (got, want)), strict=True):
                assert_close(a, b, 2)
        for bad in ((src - 6, dst), (src, dst - 5), (src + 6, dst)):
            with pytest.raises((RuntimeError, IndexError)):
                OPS.tensor_product_conv_by_messages(*v, *bad, 5, str(plan))


@pytest.mark.parametrize("weights", ["internal", "shared", "per_sample", "none"])
def test_module(weights, generator):
    """eqk.o3.TensorProduct.convolution, eager, scripted and traced by fx, against its forward."""
    paths = [(0, 0, 0, "uvu", weights != "none"), (1, 1, 1, "uvu", weights != "none")]
    kwargs = dict(shared_weights=weights != "per_sample", internal_weights=weights == "internal")
    product = eqk.o3.TensorProduct("4x0e + 3x1o", "0e + 1o", "4x0e + 3x0e", paths, **kwargs)
    src, dst = graph(20, 6, 5, generator, ordered=False)
    x, y, w = torch.randn(6, 13), torch.randn(20, 4), None
    if weights in ("shared", "per_sample"):
        w = torch.randn(*([20] if weights == "per_sample" else []), product.weight_numel)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.product = product

        def forward(
            self, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor | None, src: torch.Tensor, dst: torch.Tensor
        ):
            return self.product.convolution(x, y, w, src, dst, 5)

    messages = product(x[src], y, w)
    expected = torch.zeros(5, 7).index_add(0, dst, messages)
    for layer in (Layer(), torch.jit.script(Layer())):
        torch.testing.assert_close(layer(x, y, w, src, dst), expected, atol=1e-4, rtol=1e-5)
    if weights in ("shared", "per_sample"):
        for bad in (None, torch.randn(3), torch.randn(20, 4)):
            with pytest.raises(RuntimeError, match="weight: expected|w: expected"):
                Layer()(x, y, bad, src, dst)


def test_checkpoint(generator):
    """Saved tensors are unpacked once."""
    src, dst = graph(8, 3, 4, generator)
    x, y, w = (t.requires_grad_() for t in operands_of(UVU, 8, 3, torch.float64, generator))

    def f(x, y, w):
        return eqk.tensor_product_conv(x, y, w, src, dst, 4, UVU).pow(2).sum()

    want = torch.autograd.grad(f(x, y, w), (x, y, w))
    got = torch.autograd.grad(torch.utils.checkpoint.checkpoint(f, x, y, w, use_reentrant=False), (x, y, w))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_vmap_of_the_order_and_of_bad_indices(generator):
    plan = CASES["depthwise-3"].plan
    x, y, w = operands_of(plan, 8, 3, torch.float64, generator)
    graphs = [graph(8, 3, 4, generator, ordered=False) for _ in range(3)]
    src, dst = (torch.stack(t) for t in zip(*graphs, strict=True))
    orders = [t.argsort(dim=1, stable=True) for t in (dst, src)]

    def f(src, dst, by_dst, by_src):
        return eqk.tensor_product_conv(x, y, w, src, dst, 4, plan, by_dst, by_src)

    got = torch.func.vmap(f)(src, dst, *orders)
    for b in range(3):
        assert torch.equal(got[b], f(src[b], dst[b], None, None))
    assert torch.func.vmap(f)(src[:0], dst[:0], *(t[:0] for t in orders)).shape == (0, 4, plan.irreps_out.dim)
    for sample, index in ((0, 3), (1, -1)):
        bad = src.clone()
        bad[sample, 2] = index
        with pytest.raises(RuntimeError, match="src: expected indices"):
            torch.func.vmap(f)(bad, dst, *orders)


def test_memory():
    """No tensor of all messages or all gathered nodes: the process grows by far less, forward and backward."""
    code = """
import resource, torch, eqk
from eqk.testing import CASES
torch.set_num_threads(2)
eqk.keep_memory(0)
plan = CASES["mace-medium"].plan
nodes, edges = 200, 12_000
generator = torch.Generator().manual_seed(0)
dst = torch.arange(nodes).repeat_interleave(edges // nodes)
src = torch.randint(nodes, (edges,), generator=generator)
x = torch.randn(nodes, plan.irreps_in1.dim).requires_grad_()
y = torch.randn(edges, plan.irreps_in2.dim).requires_grad_()
w = torch.randn(1, plan.weight_numel).expand(edges, -1)
def step():
    out = eqk.tensor_product_conv(x, y, w, src, dst, nodes, plan)
    torch.autograd.grad(out, (x, y), torch.ones_like(out))
    return out
few = slice(0, 120)
eqk.tensor_product_conv(x, y[few], w[few], src[few], dst[few], nodes, plan).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step()
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
messages = edges * plan.irreps_out.dim * 4
print(grown / messages)
"""
    assert float(run_python(code).strip()) < 0.25
