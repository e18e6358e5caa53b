"""The graph convolution with the last radial layer inside, against a matrix product and the dense convolution."""

import math
import re

import pytest
import torch
from test_tensor_product import DTYPES, PROBLEMS, assert_same_bits, cast, compare, names, run_python
from test_tensor_product_conv import graph, operands_of

import eqk
from eqk import Plan, reference, testing
from eqk.testing import CASES, assert_close, derivatives, random_directions

OPS = torch.ops.eqk
FAST, GENERAL = CASES["depthwise-33"].plan, CASES["mixed-mul_ir-ir_mul-mul_ir-per_sample"].plan
WEIGHTED = Plan(
    "3x0e+2x1o", "2x0e+1x1o", "3x0e+2x1o+6x1o",
    ((0, 0, 0, "uvu", True, 0.5), (1, 1, 0, "uvw", True, 0.7), (1, 0, 2, "uvw", True, -0.8), (0, 1, 2, "uvw", True, 1.1)),
    weights="per_sample",
)  # fmt: skip


def weighted(plan):
    return plan.weights == "per_sample" and all(i.has_weight for i in plan.instructions)


PER_SAMPLE = [case for case in PROBLEMS if weighted(case.plan)]


def radial_operands(plan, edges, num_src, hidden, dtype, generator):
    x, y, _ = operands_of(plan, edges, num_src, dtype, generator)
    h = torch.randn(edges, hidden, generator=generator, dtype=dtype)
    a = torch.randn(hidden, plan.weight_numel, generator=generator, dtype=dtype) / math.sqrt(max(1, hidden))
    return x, y, h, a


def on(src, dst, num_dst, plan):
    return lambda x, y, h, a: eqk.tensor_product_conv_radial(x, y, h, a, src, dst, num_dst, plan)


def dense(src, dst, num_dst, plan):
    return lambda x, y, h, a: reference.tensor_product_conv(x, y, h @ a, src, dst, num_dst, plan)


def check(plan, edges, num_src, num_dst, hidden, generator, dtypes=(torch.float64, torch.float32), orders=3, **how):
    src, dst = graph(edges, num_src, num_dst, generator, **how)
    operands = radial_operands(plan, edges, num_src, hidden, torch.float32, generator)
    compare(plan, operands, generator, dtypes, orders, dense(src, dst, num_dst, plan), on(src, dst, num_dst, plan))


@pytest.mark.parametrize("plan", [FAST, WEIGHTED], ids=["lanes", "general"])
@pytest.mark.parametrize(
    ("edges", "num_src", "num_dst", "hidden"),
    [
        (0, 3, 2, 4),
        (0, 0, 0, 1),
        (1, 1, 1, 1),
        (9, 4, 5, 0),
        (37, 5, 7, 3),
        (64, 5, 3, 8),
        (65, 2, 1, 8),
        (700, 9, 11, 5),
    ],
)
def test_graphs(plan, edges, num_src, num_dst, hidden, generator):
    """Fewer edges than weights are made for at a time, as many, one more, and many times as many; no hidden features."""
    for ordered in (True, False):
        check(plan, edges, num_src, num_dst, hidden, generator, ordered=ordered)


@pytest.mark.parametrize("plan", [FAST, WEIGHTED], ids=["lanes", "general"])
def test_parts_without_edges(plan, generator):
    """All edges end in the first node and the last, of which each has a part of the sum alone; parts between have none."""
    edges, num_dst = 1200, 8
    src, _ = graph(edges, 20, num_dst, generator)
    dst = torch.arange(edges).mul(2).ge(edges).long() * (num_dst - 1)
    operands = radial_operands(plan, edges, 20, 3, torch.float32, generator)
    functions = dense(src, dst, num_dst, plan), on(src, dst, num_dst, plan)
    compare(plan, operands, generator, (torch.float64, torch.float32), 2, *functions)


@pytest.mark.parametrize("case", PER_SAMPLE, ids=names(PER_SAMPLE))
def test_problems(case, generator):
    check(case.plan, 11, 3, 4, 64, generator, (torch.float32,), orders=2)


def test_random_plans(rng, generator):
    """To third order, against a product of matrices and eqk.tensor_product_conv."""
    seen = 0
    while seen < 40:
        plan = testing.random_plan(rng)
        if not weighted(plan):
            continue
        seen += 1
        edges, num_src, num_dst, hidden = (
            rng.choice((0, 1, 16, 40)),
            rng.randint(1, 6),
            rng.randint(1, 9),
            rng.randint(1, 5),
        )
        src, dst = graph(edges, num_src, num_dst, generator, rng.random() < 0.5)
        operands = radial_operands(plan, edges, num_src, hidden, torch.float64, generator)

        def composite(x, y, h, a, plan=plan, src=src, dst=dst, num_dst=num_dst):
            return eqk.tensor_product_conv(x, y, h @ a, src, dst, num_dst, plan)

        directions = random_directions(operands, composite(*operands), 3, generator)
        got = derivatives(on(src, dst, num_dst, plan), operands, directions)
        want = derivatives(composite, operands, directions)
        for order, (results, references) in enumerate(zip(got, want, strict=True)):
            for n, (a, b) in enumerate(zip(results, references, strict=True)):
                assert_close(a, b, order, what=f"result {n}, {edges} edges, {num_src} to {num_dst} nodes, plan {plan}")


def depthwise(x, y, out, paths):
    """Paths (i1, i2, io) in this order, which is that of their weights."""
    return Plan(x, y, out, tuple((*path, "uvu", True, 0.3 + n) for n, path in enumerate(paths)), weights="per_sample")


GROUPED = {
    # Every path has its own row of the result; their order is not that of x.
    "apart": depthwise(
        "16x0e+24x1o+8x2e+5x0e",
        "1x0e+1x1o+1x2e",
        "16x0e+24x0e+8x0e+16x1o+24x1o+24x1o+8x1o+9x3o+8x2e+16x2e",
        [(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 1, 3), (1, 0, 4), (1, 2, 5), (2, 1, 6), (2, 0, 8), (0, 2, 9)],
    ),
    # Some are added to one row, early ones and late ones.
    "summed": depthwise(
        "16x0e+16x1o+16x2e",
        "1x0e+1x1o+1x2e",
        "16x1o+16x0e+16x1o+7x0e+16x2e",
        [(0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 1, 2), (2, 0, 4), (0, 2, 4)],
    ),
}


@pytest.mark.parametrize("name", GROUPED)
def test_paths_in_groups(name, generator):
    """A matrix of so many rows that few paths have weights at a time."""
    for ordered in (True, False):
        check(GROUPED[name], 150, 9, 7, 900, generator, ordered=ordered)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype, generator):
    src, dst = graph(200, 7, 5, generator, ordered=False)
    operands = [t / t.abs().max() for t in radial_operands(FAST, 200, 7, 6, torch.float32, generator)]
    compare(FAST, cast(operands, dtype), generator, (dtype,), 2, dense(src, dst, 5, FAST), on(src, dst, 5, FAST))


def test_bias_and_paths_without_weights(generator):
    src, dst = graph(30, 5, 4, generator)
    for plan in (FAST, GENERAL):
        x, y, h, a = radial_operands(plan, 30, 5, 3, torch.float64, generator)
        bias = torch.randn(plan.weight_numel, generator=generator, dtype=torch.float64)

        def with_bias(x, y, h, a, b, plan=plan):
            return eqk.tensor_product_conv_radial(x, y, h, a, src, dst, 4, plan, bias=b)

        def composite(x, y, h, a, b, plan=plan):
            return reference.tensor_product_conv(x, y, h @ a + b, src, dst, 4, plan)

        operands = (x, y, h, a, bias)
        directions = random_directions(operands, composite(*operands), 2, generator)
        got, want = (derivatives(f, operands, directions) for f in (with_bias, composite))
        for order, (results, references) in enumerate(zip(got, want, strict=True)):
            for p, q in zip(results, references, strict=True):
                assert_close(p, q, order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", [FAST, WEIGHTED], ids=["lanes", "general"])
def test_bitwise_determinism(plan, dtype, generator):
    src, dst = graph(3000, 90, 50, generator, ordered=False)
    v = [t / t.abs().max() for t in radial_operands(plan, 3000, 90, 16, torch.float32, generator)]
    slots = cast((*v, torch.randn(50, plan.irreps_out.dim, generator=generator)), dtype)
    t = [torch.randn(s.shape, generator=generator).to(dtype) for s in slots]
    rest = (src, dst, 50, str(plan), None, None)

    def run():
        return [
            OPS.tensor_product_conv_radial(*slots[:4], *rest),
            OPS.tensor_product_conv_radial_jvp(*slots[:4], *t[:4], *rest),
            *OPS.tensor_product_conv_radial_backward(*slots, *rest, [True] * 4),
            *OPS.tensor_product_conv_radial_double_backward(*slots, *t[:4], None, *rest, [True] * 5),
            *OPS.tensor_product_conv_radial_double_backward(*slots, *t, *rest, [True] * 5),
        ]

    assert_same_bits(*[run] * 3)


@pytest.mark.parametrize("plan", [FAST, WEIGHTED], ids=["lanes", "general"])
def test_members(plan, generator):
    """Each member against the composite of other devices, with what is not wanted and not there."""
    from eqk.tensor_product_conv_radial import FAMILY

    src, dst = graph(20, 6, 5, generator, ordered=False, dtype=torch.int32)
    v = radial_operands(plan, 20, 6, 3, torch.float64, generator)
    g = torch.randn(5, plan.irreps_out.dim, generator=generator, dtype=torch.float64)
    t = [torch.randn(s.shape, generator=generator, dtype=torch.float64) for s in (*v, g)]
    rest = (src, dst, 5, str(plan), None, None)
    calls = [(FAMILY.forward, (*v, *rest[:4])), (FAMILY.jvp, (*v, *t[:4], *rest))]
    for n in range(4):
        wanted = [m == n for m in range(5)]
        calls += [
            (FAMILY.jvp, (*v, *[s if m == n else None for m, s in enumerate(t[:4])], *rest)),
            (FAMILY.backward, (*v, g, *rest, wanted[:4])),
            (FAMILY.double_backward, (*v, g, *t, *rest, wanted)),
            (FAMILY.double_backward, (*v, g, *[s if m == n else None for m, s in enumerate(t)], *rest, [True] * 5)),
        ]
    for op, args in calls:
        got, want = (f(*args) for f in (FAMILY.composites[op], op))
        got, want = ([r] if isinstance(r, torch.Tensor) else r for r in (got, want))
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 2, what=str(op))


BAD = {
    "h: expected shape [8, 3], got [7, 3]": lambda v: v.update(h=v["h"][:7]),
    "h: expected shape [8, 4], got [8, 3]": lambda v: v.update(a=torch.cat([v["a"], v["a"][:1]])),
    f"a: expected shape [3, {FAST.weight_numel}], got [3, 5]": lambda v: v.update(a=v["a"][:, :5]),
    f"a: expected 2 dimensions [hidden, {FAST.weight_numel}], got shape [7]": lambda v: v.update(a=v["a"][0, :7]),
    "h: expected dtype": lambda v: v.update(h=v["h"].double()),
    "src: expected indices from 0 to 2": lambda v: v.update(src=v["src"] + 3),
    "plan: expected per_sample weights, got shared": lambda v: v.update(plan=CASES["uvu-shared"].plan),
    "a: expected a tensor, got None": lambda v: v.update(a=None),
    f"bias: expected shape ({FAST.weight_numel},), got (7,)": lambda v: v.update(bias=torch.zeros(7)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message, generator):
    src, dst = graph(8, 3, 4, generator)
    x, y, h, a = radial_operands(FAST, 8, 3, 3, torch.float32, generator)
    arguments = dict(x=x, y=y, h=h, a=a, src=src, dst=dst, num_dst=4, plan=FAST)
    BAD[message](arguments)
    with pytest.raises((RuntimeError, TypeError), match=re.escape(message)):
        eqk.tensor_product_conv_radial(**arguments)


def test_opcheck_vmap_and_compile(generator):
    src, dst = graph(8, 3, 4, generator, ordered=False)
    v = [t.requires_grad_() for t in radial_operands(WEIGHTED, 8, 3, 3, torch.float64, generator)]
    g = torch.randn(4, WEIGHTED.irreps_out.dim, generator=generator, dtype=torch.float64)
    t = [torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in (*v, g)]
    rest = (src, dst, 4, str(WEIGHTED), None, None)
    for op, args in (
        (OPS.tensor_product_conv_radial, (*v, *rest[:4])),
        (OPS.tensor_product_conv_radial_jvp, (*v, *t[:4], *rest)),
        (OPS.tensor_product_conv_radial_backward, (*v, g, *rest, [True, True, False, True])),
        (OPS.tensor_product_conv_radial_double_backward, (*v, g, *t, *rest, [True, True, False, True, True])),
    ):
        torch.library.opcheck(op.default, args)
    f = on(src, dst, 4, WEIGHTED)
    v = [s.detach() for s in v]
    several = torch.stack([v[3], 2 * v[3]])
    mapped = torch.func.vmap(f, (None, None, None, 0))(*v[:3], several)
    assert_close(mapped, torch.stack([f(*v[:3], a) for a in several]))
    compiled = torch.compile(lambda *v: torch.func.grad(lambda *v: f(*v).pow(2).sum(), (0, 2, 3))(*v), fullgraph=True)
    for a, b in zip(compiled(*v), torch.func.grad(lambda *v: f(*v).pow(2).sum(), (0, 2, 3))(*v), strict=True):
        assert_close(a, b, 1)


def test_memory():
    """No tensor of all weights or of their gradient, forward, backward and double backward."""
    code = """
import resource, torch, eqk
from eqk.testing import CASES
torch.set_num_threads(2)
eqk.keep_memory(0)
plan = CASES["mace-medium"].plan
nodes, edges, hidden = 100, 12_000, 16
dst = torch.arange(nodes).repeat_interleave(edges // nodes)
src = torch.randint(nodes, (edges,))
x = torch.randn(nodes, plan.irreps_in1.dim).requires_grad_()
y = torch.randn(edges, plan.irreps_in2.dim).requires_grad_()
h = torch.randn(edges, hidden).requires_grad_()
a = torch.randn(hidden, plan.weight_numel).requires_grad_()
def step(n):
    out = eqk.tensor_product_conv_radial(x, y[:n], h[:n], a, src[:n], dst[:n], nodes, plan)
    gradients = torch.autograd.grad(out.sum(), (x, y, h, a), create_graph=True)
    torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), (x, y, h, a))
step(200)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(edges)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown / (edges * plan.weight_numel * 4))
"""
    assert float(run_python(code)) < 0.75
