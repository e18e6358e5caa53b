"""The graph convolution in Triton, under Triton's interpreter: tests of the op on the CPU, and what only this backend has.

Run by test_triton.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

import pytest
import torch
from interpreted_tensor_product import MIXED, SCALARS
from recorded_launches import Launches, last_program_first
from test_tensor_product import assert_same_bits
from test_tensor_product_conv import UVU, graph, operands_of
from test_triton import Seen

import eqk
from eqk import dispatch
from eqk.testing import assert_close, relative_error
from eqk.triton_kernels import tensor_product
from eqk.triton_kernels import tensor_product_conv as kernels

OPS = torch.ops.eqk_triton
SUFFIXES = ("", "_jvp", "_backward", "_double_backward")


def plan_of(weights):
    """With an irrep of each side that no path has."""
    paths = ((0, 0, 0, "uvu", True, 0.7), (0, 0, 2, "uvu", True, -1.3), (1, 0, 0, "uvu", True, 0.4))
    if weights == "none":
        paths = tuple((*path[:4], False, path[5]) for path in paths)
    return eqk.Plan("3x1o+3x1o+1x2e", "1x1o+1x0e", "3x1e+1x0o+3x0e", paths, weights=weights)


@pytest.fixture(autouse=True)
def triton():
    with dispatch.use_backend("triton"):
        yield


def arguments(plan, edges, num_src, num_dst, dtype, generator, missing=(), wanted=(True,) * 4, orders=False, **how):
    """By the suffix of each member of the family. ``missing``: slots without a tangent."""
    src, dst = graph(edges, num_src, num_dst, generator, **how)
    v = operands_of(plan, edges, num_src, torch.float64, generator)
    v = [t if t is None or not t.numel() else t / t.abs().max() for t in v]
    v.append(torch.randn(num_dst, plan.irreps_out.dim, generator=generator, dtype=torch.float64))
    t = [
        None if s is None or n in missing else torch.randn(s.shape, generator=generator, dtype=torch.float64)
        for n, s in enumerate(v)
    ]
    v, t = ([None if s is None else s.to(dtype) for s in slots] for slots in (v, t))
    by = [index.argsort(stable=True) if orders else None for index in (dst, src)]
    rest = (src, dst, num_dst, str(plan), *by)
    wanted = [want and s is not None for want, s in zip(wanted, v, strict=True)]
    of_members = (*v[:3], *rest), (*v[:3], *t[:3], *rest), (*v, *rest, wanted[:3]), (*v, *t, *rest, wanted)
    return dict(zip(SUFFIXES, of_members, strict=True))


def results(ops, suffix, args):
    out = getattr(ops, f"tensor_product_conv{suffix}")(*args)
    return [out] if isinstance(out, torch.Tensor) else out


def check(plan, edges, num_src, num_dst, dtype, generator, **how):
    """Each member of the family against the CPU's kernels."""
    for suffix, args in arguments(plan, edges, num_src, num_dst, dtype, generator, **how).items():
        expected = results(torch.ops.eqk, suffix, [a.double() if is_real(a) else a for a in args])
        for n, (a, b) in enumerate(zip(results(OPS, suffix, args), expected, strict=True)):
            assert a.dtype == dtype
            # To 16 bits the interpreter cuts digits off where a GPU rounds.
            limit = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 1.1 * torch.finfo(dtype).eps)
            assert a.shape == b.shape
            if b.numel():
                error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1)
                assert error <= limit, f"{suffix}, result {n} of {plan}: {error:.1e}"


def is_real(a):
    return isinstance(a, torch.Tensor) and a.is_floating_point()


@pytest.mark.parametrize("weights", ["per_sample", "shared", "none"])
def test_family(weights, generator):
    """Nodes without edges, and of more edges than a program has rows; the order found or given."""
    check(plan_of(weights), 150, 2, 3, torch.float64, generator, ordered=False)
    check(plan_of(weights), 5, 4, 3, torch.float32, generator, orders=True)


def test_modes(generator):
    check(MIXED, 4, 2, 2, torch.float64, generator, ordered=False)


@pytest.mark.parametrize("weights", ["per_sample", "shared", "none"])
def test_missing_tangents_and_what_is_wanted(weights, rng, generator):
    how = dict(missing=rng.sample(range(4), 2), wanted=[rng.random() < 0.6 for _ in range(4)])
    print(how)
    check(plan_of(weights), 5, 3, 3, torch.float64, generator, ordered=False, **how)


@pytest.mark.parametrize("sizes", [(0, 3, 2), (0, 0, 0), (0, 3, 0), (1, 1, 1), (9, 3, 1)])
def test_graphs(sizes, generator):
    """No edges, no nodes, one of either."""
    check(eqk.Plan.parse(SCALARS), *sizes, torch.float64, generator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype, generator):
    """Sums over edges are rounded once."""
    check(plan_of("per_sample"), 60, 2, 2, dtype, generator, ordered=False)


@pytest.mark.parametrize("weights", ["per_sample", "shared"])
def test_the_same_bits(weights, generator):
    """For either dtype of indices, with an order given or found, and whichever program runs first."""
    of_members = arguments(plan_of(weights), 90, 3, 3, torch.float32, generator, ordered=False)

    def run(kind=torch.int64, orders=(False, False)):
        out = []
        for suffix, args in of_members.items():
            at = next(n for n, a in enumerate(args) if isinstance(a, torch.Tensor) and a.dtype == torch.int64)
            src, dst, num_dst, plan = args[at : at + 4]
            by = [
                index.argsort(stable=True) if given else None for index, given in zip((dst, src), orders, strict=True)
            ]
            rest = (src.to(kind), dst.to(kind), num_dst, plan, *by)
            out += results(OPS, suffix, (*args[:at], *rest, *args[at + 6 :]))
        return out

    def backwards():
        with last_program_first() as programs:
            out = run()
        assert min(programs) > 1
        return out

    assert_same_bits(
        run, lambda: run(torch.int32, (True, True)), lambda: run(orders=(True, False)), backwards, threads=(1,) * 4
    )


def test_strided_operands(generator):
    """Rows apart, columns apart, expanded rows, indices apart."""
    args = arguments(plan_of("per_sample"), 6, 3, 2, torch.float64, generator)[""]
    expected = results(OPS, "", args)[0]
    wide = [
        torch.stack([a, a + 1], dim) if dim is not None else a for a, dim in zip(args, (1, 2, 0, 1, 1), strict=False)
    ]
    apart = [wide[0][:, 0], wide[1][..., 0], wide[2][0], wide[3][:, 0], wide[4][:, 0]]
    assert torch.equal(results(OPS, "", (*apart, *args[5:]))[0], expected)
    x, y = args[0][:1], args[1][:1]
    got = results(OPS, "", (x.expand(3, -1), y.expand(6, -1), *args[2:]))[0]
    assert torch.equal(got, results(OPS, "", (x.repeat(3, 1), y.repeat(6, 1), *args[2:]))[0])


def test_many_edges_of_a_node():
    """Sums lose no digits: one after another, so many equal terms would be off by 5e-5."""
    edges = 9000
    x, y, zero = torch.full((1, 1), 0.1), torch.ones(edges, 1), torch.zeros(edges, dtype=torch.int32)
    out = eqk.tensor_product_conv(x, y, None, zero, zero, 1, SCALARS)
    assert relative_error(out, edges * x.double()) < 1e-6
    g = OPS.tensor_product_conv_backward(x, y, None, x, zero, zero, 1, SCALARS, None, None, [True, False, False])[0]
    assert relative_error(g, edges * x.double()) < 1e-6


def test_an_infinite_shared_weight():
    """A node's program has lanes without an edge, which are no part of its sum."""
    plan = eqk.Plan("3x0e", "1x0e", "3x0e", ((0, 0, 0, "uvu", True, 1.0),), weights="shared")
    w = torch.tensor([1.0, torch.inf, 1.0])
    x, y, zero = torch.ones(1, 3), torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    assert eqk.tensor_product_conv(x, y, w, zero, zero, 1, plan).tolist() == [[1.0, torch.inf, 1.0]]


def test_opcheck(generator):
    of_members = arguments(eqk.Plan.parse(SCALARS), 4, 3, 2, torch.float64, generator, orders=True)
    for suffix, args in of_members.items():
        args = [a.requires_grad_() if is_real(a) else a for a in args]
        torch.library.opcheck(getattr(OPS, f"tensor_product_conv{suffix}").default, tuple(args))


BAD = {
    "src: expected indices from 0 to 5": dict(src=torch.tensor([0, 1, 2, 6, 0])),
    "dst: expected indices from 0 to 3": dict(dst=torch.tensor([0, 0, -1, 3, 3])),
    "by_dst: expected indices from 0 to 4": dict(by_dst=torch.tensor([0, 1, 2, 3, 5])),
    "by_dst: expected the stable order of dst": dict(by_dst=torch.tensor([1, 0, 2, 3, 4])),
    "by_src: expected the stable order of src": dict(by_src=torch.tensor([0, 0, 4, 1, 2])),
    r"by_src: expected shape \(5,\), got \(3,\)": dict(by_src=torch.tensor([0, 1, 2])),
    r"y: expected shape \(5, 4\), got \(6, 4\)": dict(y=torch.zeros(6, 4)),
    "num_dst: expected at least 0, got -1": dict(num_dst=-1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message, generator):
    """Each order where sums are in it: that of sources in the gradient of x."""
    x, y, w = operands_of(UVU, 5, 6, torch.float32, generator)
    arguments = dict(x=x, y=y, w=w, src=torch.tensor([0, 1, 2, 5, 0]), dst=torch.tensor([0, 0, 1, 3, 3]), num_dst=4)
    arguments |= dict(by_dst=torch.arange(5), by_src=torch.tensor([0, 4, 1, 2, 3]))

    def value_and_gradient(x, **rest):
        x = x.requires_grad_()
        return torch.autograd.grad(eqk.tensor_product_conv(x, **rest, plan=UVU).sum(), x)

    value_and_gradient(**arguments)
    with pytest.raises(RuntimeError, match=f"eqk::tensor_product_conv(_backward)?: {message}"):
        value_and_gradient(**arguments | BAD[message])


def test_differentiation(generator):
    """Forward and reverse mode of both orders, and torch.func.vmap."""
    plan = eqk.Plan("1x0e", "1x0e", "1x0e", ((0, 0, 0, "uvu", True, 0.7), (0, 0, 0, "uvu", False, -1.3)))
    src, dst = graph(5, 3, 2, generator, ordered=False)
    v = operands_of(plan, 5, 3, torch.float64, generator)
    v = [(t / t.abs().max()).requires_grad_() for t in v]

    def f(*operands):
        return eqk.tensor_product_conv(*operands, src, dst, 2, plan)

    assert torch.autograd.gradcheck(f, v, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, v, fast_mode=True, check_fwd_over_rev=True)
    mapped = torch.func.vmap(f, (0, None, None))(torch.stack([v[0], 2 * v[0]]), *v[1:])
    assert_close(mapped[1], f(2 * v[0], *v[1:]))


def test_functions_take_it(generator):
    """And so does a graph."""
    src, dst = graph(5, 3, 2, generator, ordered=False)
    edges, plan = eqk.Graph.from_edges(src, dst, 2, 3), plan_of("per_sample")
    x, y, w = operands_of(plan, 5, 3, torch.float64, generator)
    with dispatch.use_backend("cpu"):
        expected = edges.conv(x, y, w, plan)
    with Seen() as seen:
        assert_close(edges.conv(x, y, w, plan), expected)
    assert seen.ops == {"eqk_triton::tensor_product_conv"}


def test_device_and_size_of_launches(monkeypatch):
    """Each launch is on the device of the operands, not on the current one, and of no more threads than HIP can count."""
    edges, nodes = 2**33, 2**32
    x, y = torch.empty(nodes, 1, device="meta"), torch.empty(edges, 1, device="meta")
    index = torch.empty(edges, dtype=torch.int64, device="meta")
    monkeypatch.setattr(kernels, "check_range", lambda *_: None)
    for slot, total in ((0, nodes), (1, edges)):
        wanted = [n == slot for n in range(4)]
        with monkeypatch.context() as patch:
            launches = Launches(kernels, patch, launching=tensor_product)
            kernels._run("", (x, y, None), x, (None,) * 4, (index, index, nodes, SCALARS, None, None), False, wanted)
            begin = 0
            for programs, args in launches.checked("meta"):
                first, _, rows, _, blocks, block_rows = args[28:34]
                assert (first, rows) == (begin, total)
                begin += programs // blocks
            assert begin * (1 if slot == 0 else block_rows) >= total
