"""eqk.Graph: its orders, the convolution over it, and what molecular dynamics asks of it."""

import sys

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from test_tensor_product import run_python
from test_tensor_product_conv import graph as random_edges
from test_tensor_product_conv import operands_of

import eqk
from eqk import reference
from eqk.testing import CASES, assert_close, derivatives, random_directions

PLAN = CASES["depthwise-3"].plan


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("edges", "num_src", "num_dst"), [(0, 0, 0), (0, 2, 3), (1, 1, 1), (40, 6, 6), (300, 5, 9), (2000, 70, 40)]
)
def test_orders(edges, num_src, num_dst, dtype, generator):
    """By destination, and by source, edges of one node as they were given: numpy's lexicographic order."""
    src, dst = random_edges(edges, num_src, num_dst, generator, ordered=False, dtype=dtype)
    graph = eqk.Graph.from_edges(src, dst, num_dst, num_src)
    assert (graph.src is src, graph.dst is dst, graph.num_src, graph.num_dst) == (True, True, num_src, num_dst)
    position = np.arange(edges)
    for order, index in ((graph.by_dst, dst), (graph.by_src, src)):
        assert order.dtype == dtype
        assert order.tolist() == np.lexsort((position, index.numpy())).tolist()


def test_edge_index(generator):
    edge_index = torch.stack(random_edges(40, 6, 6, generator, ordered=False))
    forth, back = (eqk.Graph.from_edge_index(edge_index, 6, dst_row=row) for row in (1, 0))
    assert torch.equal(forth.src, edge_index[0])
    assert torch.equal(forth.dst, edge_index[1])
    for a, b in ((back.src, forth.dst), (back.dst, forth.src), (back.by_src, forth.by_dst)):
        assert torch.equal(a, b)
    assert torch.equal(eqk.Graph.from_edge_index(edge_index, 6).dst, forth.dst)


@pytest.mark.parametrize("name", ["depthwise-3", "mixed-mul_ir-ir_mul-mul_ir-shared", "uvu-none"])
@pytest.mark.parametrize(("edges", "num_src", "num_dst"), [(0, 3, 2), (40, 6, 6), (40, 3, 9)])
def test_conv(name, edges, num_src, num_dst, generator):
    """To third order against the reference, and with the bits of the function without orders."""
    plan = CASES[name].plan
    src, dst = random_edges(edges, num_src, num_dst, generator, ordered=False)
    graph = eqk.Graph.from_edges(src, dst, num_dst, num_src)
    operands = operands_of(plan, edges, num_src, torch.float64, generator)

    def over_graph(x, y, w):
        return graph.conv(x, y, w, plan)

    def without(op):
        return lambda x, y, w: op(x, y, w, src, dst, num_dst, plan)

    directions = random_directions(operands, over_graph(*operands), 3, generator)
    got = derivatives(over_graph, operands, directions)
    same = derivatives(without(eqk.tensor_product_conv), operands, directions)
    truth = derivatives(without(reference.tensor_product_conv), operands, directions)
    for order, (results, equal, expected) in enumerate(zip(got, same, truth, strict=True)):
        for a, b, c in zip(results, equal, expected, strict=True):
            assert torch.equal(a, b)
            assert_close(a, c, order)


@pytest.mark.parametrize("biased", [False, True])
def test_conv_radial(biased, generator):
    """To second order the convolution with weights h a + bias, and the bits of the function without orders."""
    product = eqk.o3.TensorProduct(
        "4x0e + 3x1o", "0e + 1o", "4x0e + 3x0e", [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)], shared_weights=False
    )
    src, dst = random_edges(40, 6, 9, generator, ordered=False)
    graph = eqk.Graph.from_edges(src, dst, 9, 6)
    shapes = (6, 13), (40, 4), (40, 5), (5, product.weight_numel), *([(product.weight_numel,)] if biased else [])
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    directions = random_directions(operands, torch.empty(9, 7, dtype=torch.float64), 2, generator)

    def over_graph(x, y, h, a, bias=None):
        return graph.conv_radial(x, y, h, a, product, bias)

    def without(x, y, h, a, bias=None):
        return eqk.tensor_product_conv_radial(x, y, h, a, src, dst, 9, str(product.plan), bias)

    def by_weights(x, y, h, a, bias=0.0):
        return reference.tensor_product_conv(x, y, h @ a + bias, src, dst, 9, product.plan)

    got, same, truth = (derivatives(f, operands, directions) for f in (over_graph, without, by_weights))
    for order, (results, equal, expected) in enumerate(zip(got, same, truth, strict=True)):
        for a, b, c in zip(results, equal, expected, strict=True):
            assert torch.equal(a, b)
            assert_close(a, c, order)
    with pytest.raises(RuntimeError, match="x: expected 6 rows, num_src of the graph, got 5"):
        graph.conv_radial(operands[0][:5], *operands[1:4], product)


@pytest.mark.parametrize("internal", [True, False])
def test_module(internal, generator):
    """In place of a plan, eqk.o3's module, which brings its weights along; scripted code may give it the orders."""
    paths = [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)]
    kwargs = dict(shared_weights=internal, internal_weights=internal)
    product = eqk.o3.TensorProduct("4x0e + 3x1o", "0e + 1o", "4x0e + 3x0e", paths, **kwargs)
    graph = eqk.Graph.from_edges(*random_edges(20, 6, 5, generator, ordered=False), 5, 6)
    x, y, w = torch.randn(6, 13), torch.randn(20, 4), None if internal else torch.randn(20, product.weight_numel)
    expected = torch.zeros(5, 7).index_add(0, graph.dst, product(x[graph.src], y, w))
    torch.testing.assert_close(graph.conv(x, y, w, product), expected, atol=1e-4, rtol=1e-5)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.product = product

        def forward(
            self,
            x: torch.Tensor,
            y: torch.Tensor,
            w: torch.Tensor | None,
            edges: tuple[torch.Tensor, torch.Tensor],
            orders: tuple[torch.Tensor, torch.Tensor],
        ):
            return self.product.convolution(x, y, w, edges[0], edges[1], 5, orders[0], orders[1])

    scripted = torch.jit.script(Layer())(x, y, w, (graph.src, graph.dst), (graph.by_dst, graph.by_src))
    assert torch.equal(scripted, graph.conv(x, y, w, product))


INDEX = torch.tensor([0, 1, 2, 0])
BAD = {
    r"src: expected indices from 0 to 2, got 3 at position 1": dict(src=torch.tensor([0, 3, 2, 0])),
    r"dst: expected indices from 0 to 3, got -1 at position 2": dict(dst=torch.tensor([0, 1, -1, 0]).int()),
    r"dst: expected indices from 0 to -1, got 0 at position 0": dict(num_dst=0),
    r"src: expected dtype int32 or int64, got torch.float32": dict(src=INDEX.float()),
    r"dst: expected dtype int32 or int64, got torch.bool": dict(dst=INDEX.bool()),
    r"src: expected shape \[edges\], got \[4, 1\]": dict(src=INDEX[:, None]),
    r"dst: expected shape \[4\] as src has, got \[3\]": dict(dst=INDEX[:3]),
    r"dst: expected device cpu as src has, got meta": dict(dst=INDEX.to("meta")),
    r"num_dst: expected at least 0, got -1": dict(num_dst=-1),
    r"num_src: expected at least 0, got -2": dict(num_src=-2),
    r"src: expected a tensor, got list": dict(src=[0, 1, 2, 0]),
    r"dst: expected a tensor, got NoneType": dict(dst=None),
    r"num_dst: expected an int, got 4.0": dict(num_dst=4.0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    arguments = dict(src=INDEX, dst=INDEX, num_dst=4, num_src=3)
    eqk.Graph.from_edges(**arguments)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        eqk.Graph.from_edges(**arguments | BAD[message])
    assert caught.type is (TypeError if "a tensor" in message or "an int" in message else ValueError)


def test_bad_edge_index_and_operands(generator):
    for bad, error in (([[0], [0]], TypeError), (INDEX, ValueError), (torch.zeros(3, 4).long(), ValueError)):
        with pytest.raises(error, match="edge_index: expected"):
            eqk.Graph.from_edge_index(bad, 4)
    with pytest.raises(ValueError, match="dst_row: expected 0 or 1, got 2"):
        eqk.Graph.from_edge_index(torch.stack([INDEX, INDEX]), 4, dst_row=2)
    graph = eqk.Graph.from_edges(INDEX, INDEX, 4, 3)
    x, y, w = operands_of(PLAN, 4, 3, torch.float32, generator)
    with pytest.raises(RuntimeError, match="x: expected 3 rows, num_src of the graph, got 4"):
        graph.conv(torch.zeros(4, x.shape[1]), y, w, PLAN)
    with pytest.raises(RuntimeError, match="y: expected shape"):
        graph.conv(x, y[:3], w, PLAN)
    with pytest.raises(TypeError, match="plan: expected"):
        graph.conv(x, y, w, 3)


def test_edges_written_to(generator):
    """They are not copied; an order that no longer fits is refused."""
    src, dst = random_edges(20, 5, 5, generator, ordered=False)
    graph = eqk.Graph.from_edges(src, dst, 5)
    x, y, w = operands_of(PLAN, 20, 5, torch.float32, generator)
    graph.conv(x, y, w, PLAN)
    dst.copy_(4 - dst)
    with pytest.raises(RuntimeError, match="by_dst: expected the stable order of dst"):
        graph.conv(x, y, w, PLAN)


def test_device(generator):
    src, dst = random_edges(20, 5, 7, generator, ordered=False)
    graph = eqk.Graph.from_edges(src, dst, 7, 5)
    assert all(a is b for a, b in zip(graph, graph.to("cpu"), strict=True))
    moved = graph.to("meta")
    assert type(moved) is eqk.Graph
    assert {t.device.type for t in moved if isinstance(t, torch.Tensor)} == {"meta"}
    x, y, w = operands_of(PLAN, 20, 5, torch.float32, generator)
    out = moved.conv(*(t.to("meta") for t in (x, y, w)), PLAN)
    assert out.shape == (7, PLAN.irreps_out.dim)
    # What has no values, or may not be looked at, is not.
    assert eqk.Graph.from_edges(moved.src, moved.dst, 7, 5).by_dst.shape == (20,)


def test_vmap(generator):
    """Graphs made within the mapped function, and one that is mapped over as a tuple is."""
    x, y, w = operands_of(PLAN, 20, 5, torch.float64, generator)
    graphs = [eqk.Graph.from_edges(*random_edges(20, 5, 5, generator, ordered=False), 5) for _ in range(3)]
    stacked = eqk.Graph(
        *(torch.stack(parts) if isinstance(parts[0], torch.Tensor) else parts[0] for parts in zip(*graphs, strict=True))
    )
    inside = torch.func.vmap(lambda src, dst: eqk.Graph.from_edges(src, dst, 5).conv(x, y, w, PLAN))
    over = torch.func.vmap(lambda graph: graph.conv(x, y, w, PLAN), (eqk.Graph(0, 0, None, None, 0, 0),))
    expected = torch.stack([graph.conv(x, y, w, PLAN) for graph in graphs])
    assert_close(inside(stacked.src, stacked.dst), expected)
    assert_close(over(stacked), expected)


@pytest.mark.parametrize("made", ["outside", "inside"])
def test_compile_with_other_numbers_of_edges(made, generator):
    """Energy and forces of a fixed number of atoms: the second number of edges is compiled for any, and no other is."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    def energy_and_gradients(x, y, w, edges):
        graph = eqk.Graph.from_edges(*edges, 5) if made == "inside" else edges

        def energy(x, y):
            return graph.conv(x, y, w, PLAN).pow(2).sum()

        return energy(x, y), *torch.func.grad(energy, (0, 1))(x, y)

    compiled = torch.compile(energy_and_gradients, backend=counter, fullgraph=True)
    for edges in (20, 31, 28, 60, 3, 44):
        x, y, w = operands_of(PLAN, edges, 5, torch.float64, generator)
        argument = random_edges(edges, 5, 5, generator, ordered=False)
        if made == "outside":
            argument = eqk.Graph.from_edges(*argument, 5)
        got, want = (f(x, y, w, argument) for f in (compiled, energy_and_gradients))
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1)
    assert counter.frame_count == 2


@pytest.mark.parametrize("made", ["outside", "inside"])
def test_export(made, generator):
    """Any number of edges; made within the model, of nodes too."""

    class Convolution(torch.nn.Module):
        def forward(self, x, y, w, edges):
            graph = eqk.Graph.from_edge_index(edges, x.shape[0]) if made == "inside" else edges
            return graph.conv(x, y, w, PLAN)

    def inputs(edges, nodes):
        pair = random_edges(edges, nodes, nodes, generator, ordered=False)
        given = torch.stack(pair) if made == "inside" else eqk.Graph.from_edges(*pair, nodes)
        return (*operands_of(PLAN, edges, nodes, torch.float32, generator), given)

    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    of_edges = {1: edges} if made == "inside" else eqk.Graph(*[{0: edges}] * 2, None, None, *[{0: edges}] * 2)
    shapes = ({0: nodes} if made == "inside" else {}, {0: edges}, {0: edges}, of_edges)
    program = torch.export.export(Convolution(), inputs(8, 6), dynamic_shapes=shapes)
    other = inputs(31, 9 if made == "inside" else 6)
    assert torch.equal(program.module()(*other), Convolution()(*other))


MEMORY = """
import resource, sys, torch, eqk
from eqk.testing import CASES
plan, nodes, steps, compiled = CASES["depthwise-3"].plan, 50, int(sys.argv[1]), sys.argv[2] == "compiled"
generator = torch.Generator().manual_seed(int(sys.argv[3]))
x = torch.randn(nodes, plan.irreps_in1.dim, generator=generator)
all_y, all_w = (torch.randn(300, n, generator=generator) for n in (plan.irreps_in2.dim, plan.weight_numel))

def energy(x, y, w, graph):
    return graph.conv(x, y, w, plan).square().sum()

gradients = torch.func.grad_and_value(energy, (0, 1, 2))
if compiled:
    gradients = torch.compile(gradients, backend="aot_eager", fullgraph=True)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

kept = []
for step in range(steps + steps // 2):
    if step == steps // 2:
        before = resident()
    edges = int(torch.randint(100, 300, (), generator=generator))
    graph = eqk.Graph.from_edges(*torch.randint(nodes, (2, edges), generator=generator), nodes)
    gradients(x, all_y[:edges], all_w[:edges], graph)
    if len(sys.argv) > 4:
        kept.append(graph)
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read where Linux has it")
@pytest.mark.parametrize(("how", "steps"), [("eager", 2000), ("compiled", 600)])
def test_rebuilt_thousands_of_times(how, steps, rng):
    """The process does not grow: not by a tenth of what it would if it held each graph, which is found if it does."""
    seed = str(rng.randrange(2**31))
    of_graphs = steps * 200 * 4 * 8  # bytes, on average
    grown = int(run_python(MEMORY, str(steps), how, seed))
    assert grown < 0.1 * of_graphs, f"{grown} bytes in {steps} steps, seed {seed}"
    if how == "eager":
        assert int(run_python(MEMORY, str(steps // 4), how, seed, "keep")) > 0.8 * of_graphs / 4
