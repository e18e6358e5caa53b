"""eqk.rotate and eqk.rotate_back against dense Wigner matrices of e3nn, gather, cat and index_add."""

import importlib

import e3nn.o3
import pytest
import torch
import torch._dynamo.testing
from test_tensor_product import assert_same_bits, compare

import eqk
from eqk.testing import assert_close

OP = torch.ops.eqk.rotate
DEGREES = [(0, 0), (1, 0), (2, 2), (3, 2), (4, 2), (6, 2), (6, 3), (6, 4), (8, 8)]
KINDS = ("none", "edge", "degree", "order")


def m_primary(lmax, mmax):
    """(l, m) of each row."""
    rows = [(l, 0) for l in range(lmax + 1)]
    for m in range(1, mmax + 1):
        rows += [(l, m) for l in range(m, lmax + 1)] + [(l, -m) for l in range(m, lmax + 1)]
    return rows


def blocks(lmax, mmax, edges, generator):
    """Packed [edges, numbers], of random rotations."""
    matrix = torch.linalg.qr(torch.randn(edges, 3, 3, generator=generator, dtype=torch.float64))[0]
    matrix = matrix * torch.linalg.det(matrix)[:, None, None]
    parts = []
    for l in range(lmax + 1):
        k = min(l, mmax)
        parts.append(e3nn.o3.Irrep(l, 1).D_from_matrix(matrix)[:, l - k : l + k + 1].flatten(1))
    return torch.cat(parts, 1)


def dense(D, lmax, mmax, rescale=False):
    """[edges, rows, components]"""
    edges, rows, first = D.shape[0], {}, 0
    for l in range(lmax + 1):
        for m in range(-min(l, mmax), min(l, mmax) + 1):
            row = D[:, first : first + 2 * l + 1]
            if rescale and l > mmax:
                row = row * ((2 * l + 1) / (2 * mmax + 1)) ** 0.5
            left, right = D.new_zeros(edges, l * l), D.new_zeros(edges, (lmax + 1) ** 2 - (l + 1) ** 2)
            rows[l, m] = torch.cat((left, row, right), 1)
            first += 2 * l + 1
    assert first == D.shape[1]
    return torch.stack([rows[row] for row in m_primary(lmax, mmax)], 1)


def of_rows(weights, lmax, mmax, kind, channels):
    """[edges, rows, channels]"""
    orders = [(l, m) for m in range(mmax + 1) for l in range(m, lmax + 1)]
    group = {"edge": lambda l, m: 0, "degree": lambda l, m: l, "order": lambda l, m: orders.index((l, abs(m)))}[kind]
    width = channels // weights.shape[2]
    column = torch.tensor([c // width for c in range(channels)])
    return torch.stack([weights[:, group(l, m)] for l, m in m_primary(lmax, mmax)], 1)[:, :, column]


def truth(lmax, mmax, index, kind):
    def rotate(x, D, weights=None):
        nodes = x if index is None else torch.cat([x[i] for i in index], 2)
        z = dense(D, lmax, mmax) @ nodes
        return z if weights is None else z * of_rows(weights, lmax, mmax, kind, z.shape[2])

    return rotate


def truth_back(lmax, mmax, index, nodes, kind, rescale):
    def back(z, D, weights=None):
        z = z if weights is None else z * of_rows(weights, lmax, mmax, kind, z.shape[2])
        messages = dense(D, lmax, mmax, rescale).mT @ z
        if index is None:
            return messages
        x = z.new_zeros(nodes, messages.shape[1], messages.shape[2] // len(index))
        for i, part in zip(index, messages.chunk(len(index), 2), strict=True):
            x = x.index_add(0, i, part)
        return x

    return back


def forward(lmax, mmax, index):
    return lambda x, D, weights=None: eqk.rotate(x, D, lmax, mmax, index, weights)


def back(lmax, mmax, index, nodes, rescale):
    return lambda z, D, weights=None: eqk.rotate_back(z, D, lmax, mmax, index, nodes, weights, rescale)


def without(operands, missing, index, *options):
    """Arguments of the op; ``options``: lmax, mmax, rescale."""
    shape = operands[missing].shape
    sizes = shape[0] if missing == 0 else 0, *(shape[1:] if missing == 2 else (0, 0))
    return *[None if n == missing else t for n, t in enumerate(operands)], index, *sizes, *options, missing


def members(operands):
    return [n for n, t in enumerate(operands) if t is not None]


def problem(lmax, mmax, channels, fan, kind, columns, generator, edges=17, nodes=6):
    """x, D, weights, z and index in float64; scales of their own for nodes, edges and weights, and a node alone."""

    def normal(*shape):
        scale = 10 ** torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator)
        return (torch.randn(shape, generator=generator) * scale).double()

    index = torch.randint(max(1, nodes - 1), (fan, edges), generator=generator) if fan else None
    of_edge = max(1, fan) * channels
    groups = {"none": 0, "edge": 1, "degree": lmax + 1, "order": sum(lmax + 1 - m for m in range(mmax + 1))}[kind]
    weights = normal(edges, groups, columns or of_edge) if groups else None
    x = normal(nodes if fan else edges, (lmax + 1) ** 2, channels)
    z = normal(edges, len(m_primary(lmax, mmax)), of_edge)
    return x, blocks(lmax, mmax, edges, generator), weights, z, index


@pytest.mark.parametrize(("lmax", "mmax"), DEGREES)
def test_values(lmax, mmax, generator, float64_default):
    for n, channels in enumerate((1, 3, 8, 20, 128)):
        for fan in (0, 1, 2):
            kind, columns = KINDS[(n + fan) % 4], (None, 1, fan or 1)[n % 3]
            x, D, weights, z, index = problem(lmax, mmax, channels, fan, kind, columns, generator)
            others = (D,) if weights is None else (D, weights)
            for operand, ours, theirs in (
                (x, forward(lmax, mmax, index), truth(lmax, mmax, index, kind)),
                (z, back(lmax, mmax, index, len(x), True), truth_back(lmax, mmax, index, len(x), kind, True)),
            ):
                for dtype in (torch.float64, torch.float32):
                    operands = [t.to(dtype) for t in (operand, *others)]
                    expected = theirs(*[t.double() for t in operands])
                    assert_close(ours(*operands), expected, 0, dtype, (channels, fan, kind, columns))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lmax", "mmax"), [(0, 0), (2, 2), (4, 2), (7, 3)])
def test_derivatives(lmax, mmax, kind, generator, float64_default):
    """To third order, of both, to all operands."""
    for channels, fan, columns in ((3, 2, 3), (20, 1, None), (16, 0, 1)):
        x, D, weights, z, index = problem(lmax, mmax, channels, fan, kind, columns, generator, edges=5, nodes=4)
        others = (D,) if weights is None else (D, weights)
        for operand, ours, theirs in (
            (x, forward(lmax, mmax, index), truth(lmax, mmax, index, kind)),
            (z, back(lmax, mmax, index, len(x), True), truth_back(lmax, mmax, index, len(x), kind, True)),
        ):
            operands = [t.float() for t in (operand, *others)]
            what = (lmax, mmax, kind, channels, fan, columns)
            compare(what, operands, generator, (torch.float64, torch.float32), 3, theirs, ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype, generator, float64_default):
    for kind, columns in (("none", None), ("order", None), ("edge", 2)):
        x, D, weights, z, index = problem(3, 2, 20, 2, kind, columns, generator)
        others = (D,) if weights is None else (D, weights)
        for operand, ours, theirs in (
            (x, forward(3, 2, index), truth(3, 2, index, kind)),
            (z, back(3, 2, index, 6, False), truth_back(3, 2, index, 6, kind, False)),
        ):
            operands = [(t / t.abs().max()).to(dtype) for t in (operand, *others)]
            compare(kind, operands, generator, (dtype,), 2, theirs, ours)


@pytest.mark.parametrize(("lmax", "mmax"), [(1, 1), (2, 2), (6, 6)])
def test_back_undoes(lmax, mmax, generator, float64_default):
    """Wigner matrices are orthogonal."""
    x, D, _, _, _ = problem(lmax, mmax, 5, 0, "none", None, generator)
    assert_close(eqk.rotate_back(eqk.rotate(x, D, lmax, mmax), D, lmax, mmax), x)


def test_m_primary():
    assert eqk.m_primary(2, 2) == [0, 2, 6, 3, 7, 1, 5, 8, 4]  # fairchem's for lmax = mmax = 2
    for lmax, mmax in DEGREES:
        assert eqk.m_primary(lmax, mmax) == [l * l + l + m for l, m in m_primary(lmax, mmax)]


def test_transpose(generator, float64_default):
    """Each member of the family, times what it leaves out, is the same number Q."""
    for kind, columns in (("order", None), ("degree", 4), ("edge", 8), ("none", None)):
        *operands, index = problem(5, 2, 8, 2, kind, columns, generator)
        values = [(OP(*without(operands, n, index, 5, 2, True)) * operands[n]).sum() for n in members(operands)]
        assert_close(torch.stack(values), values[0].expand(len(values)))


@pytest.mark.parametrize(("kind", "missing"), [(k, n) for k in KINDS for n in range(4) if (k, n) != ("none", 2)])
def test_gradcheck_and_opcheck(kind, missing, generator, float64_default):
    """Forward and reverse mode, batched, of every member of the family, and what torch asks of an op."""
    *operands, index = problem(2, 1, 2, 2, kind, 2, generator, edges=3, nodes=3)
    args = without(operands, missing, index.int(), 2, 1, True)
    present = members(args[:4])
    leaves = [args[n].clone().requires_grad_() for n in present]

    def with_leaves(v):
        return [v[present.index(n)] if n in present else a for n, a in enumerate(args)]

    def f(*v):
        return OP(*with_leaves(v))

    assert torch.autograd.gradcheck(f, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)
    torch.library.opcheck(OP.default, tuple(with_leaves(leaves)))


def test_only_what_is_needed():
    """Operands that no wanted gradient is made of are not saved."""
    x, D = torch.randn(3, 9, 4), torch.randn(5, 35, requires_grad=True)
    index = torch.randint(3, (1, 5))
    z = eqk.rotate(x, D, 2, 2, index)
    saved = z.grad_fn.saved_tensors
    assert [None if t is None else tuple(t.shape) for t in saved[:4]] == [(3, 9, 4), None, None, None]
    (gradient,) = torch.autograd.grad(z.sum(), D, create_graph=True)
    assert gradient.shape == D.shape


def test_func(generator, float64_default):
    """vmap over any operand, over the graph and over nothing; Hessians, and jvp over grad."""
    x, D, weights, _, index = problem(2, 1, 3, 2, "order", 2, generator, edges=4, nodes=3)
    operands = (x, D, weights)

    def ours(x, D, weights, index=index):
        return eqk.rotate(x, D, 2, 1, index, weights)

    def theirs(x, D, weights, index=index):
        return truth(2, 1, index, "order")(x, D, weights)

    def energy(f):
        return lambda *v: (f(*v) ** 3).sum() / 100

    for n, operand in enumerate(operands):
        for dim in (0, 1):
            batch = [torch.stack((t, 2 * t, t.flip(0)), dim) if m == n else t for m, t in enumerate(operands)]
            dims = tuple(dim if m == n else None for m in range(3))
            for transform in (lambda f: f, lambda f: torch.func.grad(energy(f), (0, 1, 2))):
                results = [torch.vmap(transform(f), dims)(*batch) for f in (ours, theirs)]
                for got, want in zip(*([r] if isinstance(r, torch.Tensor) else r for r in results), strict=True):
                    assert_close(got, want, 1)
        assert_close(*(torch.func.hessian(energy(f), n)(*operands) for f in (ours, theirs)), 2)
        nothing = operand.new_zeros(0, *operand.shape)
        got = torch.vmap(torch.func.grad(lambda t, n=n: ours(*operands[:n], t, *operands[n + 1 :]).sum()))(nothing)
        assert got.shape == nothing.shape
    graphs, nodes = torch.stack([index, index.flip(1), (index + 1) % 3], 1), torch.stack((x, 2 * x, -x))
    for dims, batch in (
        ((None, None, None, 1), (x, D, weights, graphs)),
        ((0, None, None, 1), (nodes, D, weights, graphs)),
    ):
        got = torch.vmap(torch.func.grad(energy(ours), (0, 1, 2)), dims)(*batch)
        for n in range(3):
            of_sample = [t if d is None else t.select(d, n) for t, d in zip(batch, dims, strict=True)]
            want = torch.func.grad(energy(theirs), (0, 1, 2))(*of_sample)
            for a, b in zip(got, want, strict=True):
                assert_close(a[n], b, 1)
    with pytest.raises(RuntimeError, match=r"index\[0\]: expected indices from 0 to"):
        torch.vmap(ours, (0, None, None, None))(nodes, D, weights, torch.full_like(index, 3))
    tangents = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in operands)
    results = [torch.func.jvp(torch.func.grad(energy(f), (0, 1, 2)), operands, tangents)[1] for f in (ours, theirs)]
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 2)


def test_compile(generator):
    """One graph for any number of edges and nodes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def energy(x, D, weights, index):
        z = eqk.rotate(x, D, 3, 2, index, weights)
        return eqk.rotate_back(z[..., :4].square(), D, 3, 2, index[1], x.shape[0]).pow(2).sum()

    compiled = torch.compile(energy, fullgraph=True, backend=counter, dynamic=True)
    for edges, nodes in ((7, 5), (12, 9), (31, 4)):
        x, D, weights, _, index = problem(3, 2, 4, 2, "order", None, generator, edges, nodes)
        leaves = [t.float().requires_grad_() for t in (x, D, weights)]
        values = [f(*leaves, index) for f in (compiled, energy)]
        assert_close(values[0], values[1])
        for got, want in zip(*(torch.autograd.grad(v, leaves) for v in values), strict=True):
            assert_close(got, want, 1)
    assert counter.frame_count == 1


def test_autocast_and_reference(generator):
    *operands, index = problem(3, 1, 4, 2, "degree", 2, generator)
    x, D, weights, _ = (t.float() for t in operands)
    with torch.autocast("cpu", torch.bfloat16):
        got = eqk.rotate(x.bfloat16(), D, 3, 1, index, weights)
    assert got.dtype == torch.float32
    assert_close(got, eqk.rotate(x.bfloat16().float(), D, 3, 1, index, weights))
    for columns, of_row in ((2, weights), (8, weights.repeat_interleave(4, 2))):
        leaves = [t.clone().requires_grad_() for t in (x, D, of_row)]
        results = []
        for backend in ("auto", "reference"):
            with eqk.dispatch.use_backend(backend):
                out = eqk.rotate(leaves[0], leaves[1], 3, 1, index, leaves[2])
                back = eqk.rotate_back(out**2, leaves[1], 3, 1, index, 6, leaves[2], True)
                results.append([out, back, *torch.autograd.grad(back.square().sum(), leaves)])
        for got, want in zip(*results, strict=True):
            assert_close(got, want, 1, what=columns)
    assert eqk.dispatch.explain("rotate", x).endswith("-> cpu")


def test_torch_fallback_of_other_devices(generator):
    other = importlib.import_module("eqk.rotate")._other_devices  # the package exports the function under that name
    for dtype in (torch.float32, torch.bfloat16):
        for kind, columns in (("order", None), ("degree", 2), ("edge", 1), ("none", None)):
            for fan in (0, 1, 2):
                *operands, index = problem(3, 2, 4, fan, kind, columns, generator)
                operands = [None if t is None else (t / t.abs().max()).to(dtype) for t in operands]
                for n in members(operands):
                    args = without(operands, n, index, 3, 2, True)
                    got = other(*args)
                    assert got.dtype == dtype
                    assert_close(got, OP(*args), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_runs(kind, generator):
    """The same bits for any number of threads, and for an edge alone and in company."""
    *operands, index = problem(4, 2, 20, 2, kind, None, generator, 700, 40)
    operands = [None if t is None else t.float() for t in operands]
    for n in members(operands):
        args = without(operands, n, index, 4, 2, False)
        assert_same_bits(*[lambda args=args: [OP(*args)]] * 3)
        if n:
            one = [t if t is None or s == 0 else t[7:8] for s, t in enumerate(args[:4])]
            assert torch.equal(OP(*one, index[:, 7:8], *args[5:])[0], OP(*args)[7])


def test_past_the_caches(generator):
    """A result so large that it is written past the caches."""
    x, D, _, _, index = problem(2, 1, 64, 2, "none", None, generator, 3000, 40)
    x, D = x.float(), D.float()
    z = eqk.rotate(x, D, 2, 1, index)
    assert z.numel() * 4 > 8 << 20
    for part in (slice(0, 700), slice(2300, 3000)):
        assert torch.equal(z[part], eqk.rotate(x, D[part], 2, 1, index[:, part]))


def test_many_edges_of_a_node(generator):
    """Sums lose no digits: 100 000 equal terms."""
    edges = 100_000
    z, D = torch.full((edges, 1, 1), 0.1), torch.ones(edges, 1)
    x = eqk.rotate_back(z, D, 0, 0, torch.zeros(edges, dtype=torch.int32), 1)
    assert_close(x, z.double().sum(0)[None])


def test_shapes_and_strides(generator):
    """No edges, no nodes, no channels, nodes without edges, and operands that are not contiguous or broadcast."""
    for edges, nodes, channels in ((0, 3, 4), (0, 0, 4), (3, 2, 0)):
        for kind in KINDS:
            x, D, weights, z, index = problem(2, 1, channels, 2, kind, None, generator, edges, nodes)
            leaves = [t.requires_grad_() for t in (x, D, weights) if t is not None]
            out = eqk.rotate(x, D, 2, 1, index, weights)
            assert out.shape == (edges, 7, 2 * channels)
            for gradient, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
                assert torch.equal(gradient, torch.zeros_like(leaf))
            back = eqk.rotate_back(z, D, 2, 1, index, nodes, weights)
            assert torch.equal(back, torch.zeros(nodes, 9, channels, dtype=back.dtype))
    x, D, weights, z, index = problem(2, 1, 4, 2, "degree", 2, generator)
    assert torch.equal(eqk.rotate_back(z, D, 2, 1, index, 6)[5], torch.zeros(9, 4, dtype=torch.float64))
    expected = eqk.rotate(x, D, 2, 1, index, weights)
    strided = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (x, D, weights, index)]
    assert not any(t.is_contiguous() for t in strided)
    assert torch.equal(eqk.rotate(strided[0], strided[1], 2, 1, strided[3], strided[2]), expected)
    one = weights[:1].expand_as(weights)
    assert torch.equal(eqk.rotate(x, D, 2, 1, index, one), eqk.rotate(x, D, 2, 1, index, one.contiguous()))
    leaf = D[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(eqk.rotate(x, leaf.expand_as(D), 2, 1, index).sum(), leaf)
    assert gradient.shape == leaf.shape
    assert torch.equal(eqk.rotate(x, D, 2, 1, index[0]), eqk.rotate(x, D, 2, 1, index[:1].int()))


def test_nan_stays_in_its_edge(generator):
    x, D, _, _, index = problem(2, 2, 4, 1, "none", None, generator, 5, 5)
    expected = eqk.rotate(x, D, 2, 2, index)
    D[2, 7] = float("nan")
    got = eqk.rotate(x, D, 2, 2, index)
    assert not got[2].isfinite().all()
    assert torch.equal(got[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


def test_bad_input(generator):
    x, D, weights, z, index = problem(2, 1, 4, 2, "order", 4, generator)

    def rotate(**new):
        return eqk.rotate(**{"x": x, "D": D, "lmax": 2, "mmax": 1, "index": index, "weights": weights, **new})

    def rotate_back(**new):
        args = {"z": z, "D": D, "lmax": 2, "mmax": 1, "index": index, "num_nodes": 6, "weights": weights}
        return eqk.rotate_back(**{**args, **new})

    high, low = index.clone(), index.clone()
    high[1, 3], low[0, 2] = 6, -1
    for call, new, error, message in (
        (rotate, {"x": None}, TypeError, "eqk.rotate: x: expected a tensor, got None"),
        (rotate_back, {"z": 3.0}, TypeError, "eqk.rotate_back: z: expected a tensor, got 3.0"),
        (rotate, {"weights": "m"}, TypeError, "weights: expected a tensor"),
        (rotate, {"D": D.to_sparse()}, RuntimeError, "D: expected a dense tensor"),
        (rotate, {"lmax": 21}, ValueError, "lmax: expected a degree from 0 to 20, got 21"),
        (rotate, {"mmax": 3}, ValueError, "mmax: expected an order from 0 to lmax, 2, got 3"),
        (rotate, {"mmax": 1.0}, ValueError, "mmax: expected an order"),
        (rotate_back, {"num_nodes": None}, ValueError, "num_nodes: expected the number of nodes"),
        (rotate_back, {"num_nodes": -1}, RuntimeError, "num_nodes: expected at least 0, got -1"),
        (rotate_back, {"num_nodes": 2**60}, RuntimeError, "out of memory: could not allocate a result"),
        (
            rotate_back,
            {"index": None, "num_nodes": 6},
            RuntimeError,
            "num_nodes: expected edges, without an index, got 6",
        ),
        (rotate, {"x": x[0]}, RuntimeError, "x: expected 3 dimensions, got shape"),
        (rotate, {"x": x[:, 1:]}, RuntimeError, r"x: expected shape \[6, 9, 4\], got \[6, 8, 4\]"),
        (rotate, {"index": None, "weights": None}, RuntimeError, r"x: expected shape \[17, 9, 4\], got \[6, 9, 4\]"),
        (rotate, {"D": D[:, 1:]}, RuntimeError, r"D: expected shape \[17, 25\], got \[17, 24\]"),
        (rotate, {"D": D[1:]}, RuntimeError, r"index: expected shape \[nodes of an edge, 16\], got \[2, 17\]"),
        (rotate, {"D": D[None]}, RuntimeError, "D: expected 2 dimensions"),
        (rotate_back, {"z": z[:, 1:]}, RuntimeError, r"z: expected shape \[17, 7, 8\], got \[17, 6, 8\]"),
        (rotate_back, {"z": z[:, :, 1:]}, RuntimeError, "z: expected channels of 2 nodes, got shape"),
        (rotate_back, {"z": z.int()}, RuntimeError, "z: expected dtype float32, float64, float16 or bfloat16"),
        (rotate_back, {"D": D.float()}, RuntimeError, "D: expected dtype .* as z has"),
        (rotate, {"D": D.float()}, RuntimeError, "D: expected dtype .* as x has"),
        (rotate, {"weights": weights[:, 1:]}, RuntimeError, "weights: expected 1 row for an edge, 3 for degrees or 5"),
        (rotate, {"weights": weights[:, :, 1:]}, RuntimeError, "weights: expected a divisor of 8 columns, got 3"),
        (rotate, {"weights": weights[1:]}, RuntimeError, r"weights: expected shape \[17, 5, 4\]"),
        (rotate, {"index": index.double()}, RuntimeError, "index: expected dtype int32 or int64"),
        (rotate, {"index": index[:0]}, RuntimeError, r"index: expected shape \[nodes of an edge, 17\]"),
        (rotate, {"index": high}, RuntimeError, r"index\[1\]: expected indices from 0 to 5, got 6 at position 3"),
        (
            rotate_back,
            {"index": low.int()},
            RuntimeError,
            r"index\[0\]: expected indices from 0 to 5, got -1 at position 2",
        ),
    ):
        with pytest.raises(error, match=message):
            call(**new)
    for operands, rest, message in (
        ((x, D, weights, None), (0, 0, 0, 2, 1, False, 4), "missing: expected 0"),
        ((x, D, weights, z), (0, 0, 0, 2, 1, False, 3), "z: expected None for what is missing"),
        ((x, None, weights, None), (0, 0, 0, 2, 1, False, 3), "D: expected a tensor, got None"),
        ((None, D, None, z), (0, 0, 0, 2, 1, False, 3), "x: expected a tensor, got None|z: expected None"),
        ((x, D, None, z), (0, 4, 1, 2, 1, False, 2), "groups, columns: expected 1 row"),
        ((x, D, None, z), (0, 3, 5, 2, 1, False, 2), "groups, columns: expected a divisor"),
        ((x, D.to("meta"), weights, None), (0, 0, 0, 2, 1, False, 3), "D: expected device"),
    ):
        with pytest.raises(RuntimeError, match=message):
            OP(*operands, index, *rest)
