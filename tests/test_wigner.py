"""eqk.wigner against e3nn and against repeated coupling: values, and derivatives of three orders."""

import importlib
import math

import e3nn.o3
import pytest
import torch
from test_tensor_product import assert_same_bits

import eqk
from eqk import dispatch, reference
from eqk.reference.wigner import rotation_matrix
from eqk.testing import TOLERANCES, assert_close, derivatives, random_directions
from eqk.wigner import columns

pytestmark = pytest.mark.usefixtures("float64_default")

OP, BACKWARD = torch.ops.eqk.wigner, torch.ops.eqk.wigner_backward
MODULE = importlib.import_module("eqk.wigner")  # the package exports the function under that name
# Of a block, relative to its norm, up to degree 8.
ACCURACY = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
CASES = [(0, 0), (1, 0), (2, 2), (3, 2), (4, 0), (6, 2), (8, 3), (8, 8)]


def quaternions(rows, generator):
    """Of any length and sign, an eighth each: exact turns about the axes, and what is off them by 1e-8 and 1e-3."""
    q = torch.randn(rows, 4, generator=generator)
    eighth = rows // 8
    kinds = torch.randint(4, (3 * eighth, 2), generator=generator)
    turns = torch.nn.functional.one_hot(kinds, 4).double().sum(1)  # 0, pi / 2 or pi about an axis or between two
    turns[eighth:] += torch.randn(2 * eighth, 4, generator=generator) * torch.tensor([[1e-8], [1e-3]]).repeat(eighth, 1)
    q[: 3 * eighth] = turns
    return q * 10 ** (4 * torch.rand(rows, 1, generator=generator) - 2)


def multiplied(p, q):
    w, v, u, r = p[:, :1], p[:, 1:], q[:, :1], q[:, 1:]
    return torch.cat([w * u - (v * r).sum(1, keepdim=True), w * r + u * v + torch.linalg.cross(v, r)], 1)


def blocks(d, lmax, mmax):
    """The matrices [rows, 2 min(l, mmax) + 1, 2 l + 1]."""
    shapes = [(2 * min(l, mmax) + 1, 2 * l + 1) for l in range(lmax + 1)]
    return [p.unflatten(-1, s) for p, s in zip(d.split([r * c for r, c in shapes], -1), shapes, strict=True)]


def assert_accurate(d, expected, lmax, mmax):
    assert d.shape == expected.shape
    for l, (a, b) in enumerate(zip(blocks(d.double(), lmax, mmax), blocks(expected.double(), lmax, mmax), strict=True)):
        error = ((a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2))).max()
        assert error <= ACCURACY[d.dtype], f"degree {l}: {error:.2e}"


@pytest.mark.parametrize("lmax,mmax,width", [(2, 2, 35), (3, 2, 70), (4, 2, 115), (6, 2, 235), (6, 6, 455), (0, 0, 1)])
def test_layout(lmax, mmax, width, generator):
    q = torch.randn(3, 4, generator=generator)
    d = eqk.wigner(q, lmax, mmax)
    assert d.shape == (3, width)
    assert columns(lmax, mmax) == width
    whole = blocks(eqk.wigner(q, lmax), lmax, lmax)
    for l, (part, matrix) in enumerate(zip(blocks(d, lmax, mmax), whole, strict=True)):
        k = min(l, mmax)
        assert torch.equal(part, matrix[:, l - k : l + k + 1])


def test_e3nn(generator):
    q = torch.randn(30, 4, generator=generator)
    matrices = blocks(eqk.wigner(q, 8), 8, 8)
    rotation = rotation_matrix(q)
    assert_close(rotation, e3nn.o3.quaternion_to_matrix(torch.nn.functional.normalize(q, dim=1)))
    for l, d in enumerate(matrices):
        assert_close(d, e3nn.o3.Irrep(l, 1).D_from_matrix(rotation))
    assert_close(matrices[1], rotation)  # l = 1 is (x, y, z)


@pytest.mark.parametrize("lmax,mmax", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_reference(lmax, mmax, dtype, generator):
    q = quaternions(400, generator).to(dtype)
    assert_accurate(eqk.wigner(q, lmax, mmax), reference.wigner(q.double(), lmax, mmax), lmax, mmax)


def test_largest_degree(generator):
    q = quaternions(40, generator)
    assert_accurate(eqk.wigner(q, 20), reference.wigner(q, 20, 20), 20, 20)


def gradient(q, g, lmax, mmax):
    """That of q for g as the matrices', by autograd through the reference in float64."""
    q = q.detach().double().requires_grad_()
    return torch.autograd.grad(reference.wigner(q, lmax, mmax), q, g.double(), allow_unused=True)[0]


@pytest.mark.parametrize("lmax,mmax", [*CASES[1:], (20, 20)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_gradient(lmax, mmax, dtype, generator):
    """The op, and the torch operations of devices without one; times |q|, which differs by 10^4."""
    q = quaternions(40, generator).to(dtype)
    width = columns(lmax, mmax)
    g = (torch.randn(40, width, generator=generator) / math.sqrt(width)).to(dtype)  # float16 ends at 65 504
    length = q.double().norm(dim=1, keepdim=True)
    expected = gradient(q, g, lmax, mmax) * length
    for result in (BACKWARD(q, g, lmax, mmax), MODULE._gradient_on_other_devices(q, g, lmax, mmax)):
        assert result.dtype == dtype
        assert_close(result * length, expected, 1, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_orthogonal(dtype, generator):
    for l, d in enumerate(blocks(eqk.wigner(quaternions(400, generator).to(dtype), 8).double(), 8, 8)):
        error = (d @ d.mT - torch.eye(2 * l + 1)).norm(dim=(1, 2)) / math.sqrt(2 * l + 1)
        assert error.max() <= 2 * ACCURACY[dtype]


def test_composition(generator):
    p, q = quaternions(100, generator), quaternions(100, generator).flip(0)
    of_p, of_q, of_product = (blocks(eqk.wigner(t, 8), 8, 8) for t in (p, q, multiplied(p, q)))
    for a, b, c in zip(of_p, of_q, of_product, strict=True):
        assert_close(a @ b, c)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_row_zero_is_harmonics(dtype, generator):
    """The frame of an edge has it as the polar axis, so that row 0 has the harmonics of its direction."""
    vec = torch.randn(50, 3, generator=generator).to(dtype)
    vec[:6] = torch.cat([torch.eye(3), -torch.eye(3)])
    roll = torch.randn(50, generator=generator).to(dtype)
    y = e3nn.o3.spherical_harmonics(list(range(9)), vec.double(), True, "norm")
    assert_close(eqk.wigner(eqk.edge_frame(vec, roll), 8, 0), y)


@pytest.mark.parametrize("dtype,exponent", [(torch.float32, 100), (torch.float64, 960)])
def test_any_length(dtype, exponent, generator):
    q = torch.randn(20, 4, generator=generator).to(dtype)
    g = torch.randn(20, columns(3, 3), generator=generator).to(dtype)
    for scale in (2.0**exponent, 2.0**-exponent):
        leaves = [(q * s).detach().requires_grad_() for s in (1.0, scale)]
        results = [eqk.wigner(t, 3) for t in leaves]
        assert torch.equal(*results)
        gradients = [torch.autograd.grad(d, t, g)[0] for d, t in zip(results, leaves, strict=True)]
        assert_close(gradients[1] * scale, gradients[0], 1)


def test_gradient_is_orthogonal_to_q(generator):
    q = quaternions(50, generator).requires_grad_()
    d = eqk.wigner(q, 4, 2)
    (gradient,) = torch.autograd.grad(d, q, torch.randn(d.shape, generator=generator))
    along = (gradient * q).sum(1).abs() / (gradient.norm(dim=1) * q.norm(dim=1))
    assert along.max() < TOLERANCES[torch.float64][1]


@pytest.mark.parametrize("lmax,mmax", [(0, 0), (1, 0), (2, 1), (3, 3)], ids=str)
def test_gradcheck(lmax, mmax, generator):
    q = torch.randn(3, 4, generator=generator, requires_grad=True)

    def f(t):
        return eqk.wigner(t, lmax, mmax)

    assert torch.autograd.gradcheck(f, q, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, q, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("lmax,mmax", [(0, 0), (2, 1)], ids=str)
def test_gradcheck_of_the_gradient(lmax, mmax, generator):
    leaves = [torch.randn(2, n, generator=generator, requires_grad=True) for n in (4, columns(lmax, mmax))]

    def f(t, g):
        return BACKWARD(t, g, lmax, mmax)

    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_three_orders(dtype, generator):
    """And that of the cotangent, against autograd through the reference."""
    lmax, mmax = 5, 2
    q = torch.randn(16, 4, generator=generator).to(dtype)
    q[:6] = eqk.edge_frame(torch.cat([torch.eye(3), -torch.eye(3)]).to(dtype))
    value = eqk.wigner(q, lmax, mmax)
    directions = random_directions((q,), value, 3 if dtype != torch.float16 else 1, generator)
    ours = derivatives(lambda t: eqk.wigner(t, lmax, mmax), (q,), directions)
    wide = [[d.double() for d in along] for along in directions]
    theirs = derivatives(lambda t: reference.wigner(t, lmax, mmax), (q.double(),), wide)
    for order, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, order)


def test_func(generator):
    q, t = torch.randn(4, generator=generator), torch.randn(4, generator=generator)

    def ours(v):
        return eqk.wigner(v, 2, 1)

    def theirs(v):
        return reference.wigner(v[None], 2, 1)[0]

    func = torch.func
    for transform in (
        func.jacrev,
        func.jacfwd,
        func.hessian,
        lambda f: func.jacfwd(func.jacfwd(func.jacfwd(f))),
        lambda f: func.jacrev(func.jacrev(func.jacfwd(f))),
        lambda f: func.jacfwd(func.jacrev(func.jacrev(f))),
        lambda f: lambda v: func.grad(lambda u: func.jvp(f, (u,), (t,))[1].sum())(v),
    ):
        assert_close(transform(ours)(q), transform(theirs)(q))
    batch = torch.randn(3, 4, 5, generator=generator)

    def norm_gradient(f):
        return lambda v: func.grad(lambda u: f(u).pow(3).sum())(v)

    assert_close(
        func.vmap(norm_gradient(ours), in_dims=2)(batch), func.vmap(func.vmap(norm_gradient(theirs)), in_dims=2)(batch)
    )
    for q_dim, g_dim in ((None, 0), (1, None), (0, 2)):  # of one operand, or of both
        rows, g = (
            torch.randn(3, n, generator=generator) if dim is None else torch.randn(5, 3, n, generator=generator)
            for n, dim in ((4, q_dim), (columns(2, 1), g_dim))
        )
        moved = [t if dim is None else t.movedim(0, dim) for t, dim in ((rows, q_dim), (g, g_dim))]
        results = torch.vmap(lambda q, g: BACKWARD(q, g, 2, 1), in_dims=(q_dim, g_dim))(*moved)
        for n, result in enumerate(results):
            assert_close(result, gradient(*(t if t.dim() == 2 else t[n] for t in (rows, g)), 2, 1), 1)
    for shape in ((0, 2, 4), (2, 0, 4)):
        assert torch.vmap(lambda v: eqk.wigner(v, 2, 1))(torch.zeros(shape)).shape == (*shape[:2], columns(2, 1))


@pytest.mark.parametrize("lmax,mmax", [(0, 0), (3, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(lmax, mmax, dtype, generator):
    q = torch.randn(5, 4, generator=generator).to(dtype).requires_grad_()
    g = torch.randn(5, columns(lmax, mmax), generator=generator).to(dtype).requires_grad_()
    torch.library.opcheck(OP.default, (q, lmax, mmax))
    torch.library.opcheck(BACKWARD.default, (q, g, lmax, mmax))


def test_compile(generator):
    def f(v):
        return eqk.wigner(eqk.edge_frame(v), 3, 2).pow(3).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 11):
        vec = torch.randn(rows, 3, generator=generator, requires_grad=True)
        assert_close(compiled(vec).detach(), f(vec).detach())
        assert_close(*(torch.autograd.grad(g(vec), vec)[0] for g in (compiled, f)))


def test_autocast(generator):
    q = torch.randn(4, 4, generator=generator).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d = eqk.wigner(q, 2)
    assert torch.equal(d, eqk.wigner(q, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.autograd.grad(d.pow(3).sum(), q)[0].dtype == torch.float32


def invariant(x, frame, matrices):
    """A function of features [edges, 25, channels] in the frames of edges that a turn about y does not change: the
    scalars of m = 0, and an SO(2)-equivariant, nonlinear map of m = +-1 back to where they came from."""

    def energy(vec):
        d = blocks(matrices(frame(vec)), 4, 2)
        total = 0.0
        for l, p in enumerate(d):
            k = min(l, 2)
            part = p @ x[:, l * l : (l + 1) ** 2].to(vec)
            scalar = part[:, k]
            total = total + scalar.pow(3).sum()
            if l:
                size = (part[:, k + 1] ** 2 + part[:, k - 1] ** 2).unsqueeze(1)
                back = p[:, k - 1 : k + 2].mT @ (part[:, k - 1 : k + 2] * size * scalar[:, None].tanh())
                total = total + (back * x[:, l * l : (l + 1) ** 2].to(vec).roll(1, 2)).sum()
        return total

    return energy


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_gradient_near_the_poles(dtype, tolerance, generator):
    """Of a function that does not depend on the choice of the frame: no edge is special, those on +-y too."""
    x = torch.randn(10, 25, 3, generator=generator)
    poles = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]).repeat(5, 1)
    offsets = torch.tensor([0.0, 1e-8, 1e-6, 1e-4, 1e-2]).repeat_interleave(2)[:, None]
    vec = (2.3 * (poles + offsets * torch.tensor([1.0, 0.0, 0.7]))).to(dtype)

    turn = torch.tensor([[1.0, 0.4, -0.7, 0.2]])

    def turned(v):  # frames that differ by turns about y, with charts that end elsewhere
        return multiplied(eqk.edge_frame(v @ rotation_matrix(turn)[0].T), turn.expand(len(v), 4))

    leaf, wide = vec.requires_grad_(), vec.detach().double().requires_grad_()
    ours = invariant(x, eqk.edge_frame, lambda q: eqk.wigner(q, 4, 2))
    theirs = invariant(x, turned, lambda q: reference.wigner(q, 4, 2))
    (gradient,) = torch.autograd.grad(ours(leaf), leaf)
    (expected,) = torch.autograd.grad(theirs(wide), wide)
    error = (gradient.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < tolerance, error


def test_rows(generator):
    """Whole and partial vectors, one thread's share and several, alone or in company: the same bits for each row."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        q = torch.randn(1000, 4, generator=generator).to(dtype)
        g = torch.randn(1000, columns(4, 2), generator=generator).to(dtype)
        for op, operands in ((OP, (q,)), (BACKWARD, (q, g))):
            whole = op(*operands, 4, 2)
            for rows in (0, 1, 7, 16, 17, 257):
                assert torch.equal(op(*(t[:rows] for t in operands), 4, 2), whole[:rows])
            assert torch.equal(op(*(t[999:] for t in operands), 4, 2)[0], whole[999])


def test_threads(generator):
    q = torch.randn(3000, 4, generator=generator).float().requires_grad_()

    def run():
        d = eqk.wigner(q, 4, 2)
        return d, *torch.autograd.grad(d, q, d.detach() ** 2)

    assert_same_bits(run, run, run)


def test_strides_and_leading_dimensions(generator):
    base = torch.randn(6, 5, 8, generator=generator)
    views = (base[..., ::2], base[:, 0, 4:], base.transpose(0, 1)[..., :4], base[0, 0, :4], base[:0, :, :4])
    for q in (*views, base[:, :4, 0].T.contiguous().T, base[:1, 0, :4].expand(7, 4)):
        d = eqk.wigner(q, 3, 2)
        assert d.shape == (*q.shape[:-1], columns(3, 2))
        assert torch.equal(d, eqk.wigner(q.contiguous(), 3, 2))
    q, wide = torch.randn(6, 4, generator=generator), torch.randn(6, 2 * columns(3, 2), generator=generator)
    for g in (wide[:, ::2], wide[:, 5 : 5 + columns(3, 2)], wide[:1, : columns(3, 2)].expand(6, -1)):
        assert torch.equal(BACKWARD(q, g, 3, 2), BACKWARD(q, g.contiguous(), 3, 2))
    leaf = torch.zeros(0, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(eqk.wigner(leaf, 2).sum(), leaf)
    assert gradient.shape == (0, 4)


def test_no_rotation():
    """q = 0 and what is not finite: NaN in that row from degree 1 on, and in no other."""
    q = torch.randn(20, 4)
    expected = eqk.wigner(q, 4, 2)
    q[3] = 0
    q[7, 1], q[9, 0] = math.nan, math.inf
    d = eqk.wigner(q, 4, 2)
    assert d[[3, 7, 9], 1:].isnan().all()
    keep = [n for n in range(20) if n not in (3, 7, 9)]
    assert torch.equal(d[keep], expected[keep])
    assert reference.wigner(q, 4, 2)[[3, 7, 9], 1:].isnan().all()
    leaf = q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(eqk.wigner(leaf, 4, 2).sum(), leaf)
    assert gradient.isnan().any(1).nonzero()[:, 0].tolist() == [3, 7, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_fallback_of_other_devices(dtype, generator):
    q = torch.randn(6, 4, generator=generator).to(dtype)
    d = eqk.wigner(q, 4, 2)
    assert_close(MODULE._other_devices(q, 4, 2), d)
    with dispatch.use_backend("reference"):
        assert torch.equal(eqk.wigner(q, 4, 2), MODULE._other_devices(q, 4, 2))
    for device, chosen in (("mps", "torch"), ("meta", "meta"), ("cpu", "cpu")):
        assert dispatch.choose("wigner", torch.device(device)) == chosen
    assert eqk.wigner(q.to("meta"), 4, 2).shape == d.shape


Q, G = torch.ones(3, 4), torch.ones(3, 35)


@pytest.mark.parametrize(
    "args,error,message",
    [
        ((Q, -1), ValueError, "lmax: expected an integer from 0 to 20, got -1"),
        ((Q, 21), ValueError, "lmax: expected an integer from 0 to 20, got 21"),
        ((Q, 2.0), ValueError, "lmax: expected an integer from 0 to 20, got 2.0"),
        ((Q, 2, 3), ValueError, "mmax: expected an integer from 0 to 2, got 3"),
        ((Q, 2, -1), ValueError, "mmax: expected an integer from 0 to 2, got -1"),
        (([1.0, 0.0, 0.0, 0.0], 2), TypeError, "q: expected a tensor"),
        ((Q[:, :3], 2), RuntimeError, r"q: expected shape \[..., 4\], got \(3, 3\)"),
        ((torch.tensor(1.0), 2), RuntimeError, "q: expected shape"),
        ((Q.long(), 2), RuntimeError, "q: expected dtype float32, float64, float16 or bfloat16, got"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        eqk.wigner(*args)


@pytest.mark.parametrize(
    "args,message",
    [
        ((Q, -1, 0), "lmax: expected a degree from 0 to 20, got -1"),
        ((Q, 21, 0), "lmax: expected a degree from 0 to 20, got 21"),
        ((Q, 2, 3), "mmax: expected an order from 0 to lmax = 2, got 3"),
        ((Q, 2, -1), "mmax: expected an order from 0 to lmax = 2, got -1"),
        ((Q[:, :3], 2, 2), r"q: expected shape \[rows, 4\], got \[3, 3\]"),
        ((Q[None], 2, 2), r"q: expected shape \[rows, 4\], got \[1, 3, 4\]"),
        ((Q.to(torch.complex64), 2, 2), "q: expected dtype"),
    ],
)
def test_bad_input_of_the_op(args, message):
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=f"eqk::wigner: {message}"):
            OP(args[0].to(device), *args[1:])


@pytest.mark.parametrize(
    "args,message",
    [
        ((Q, G, 21, 0), "lmax: expected a degree from 0 to 20, got 21"),
        ((Q, G, 2, 3), "mmax: expected an order from 0 to lmax = 2, got 3"),
        ((Q[:, :3], G, 2, 2), r"q: expected shape \[rows, 4\], got \[3, 3\]"),
        ((Q, G[:2], 2, 2), r"g: expected shape \[3, 35\], got \[2, 35\]"),
        ((Q, G, 2, 1), r"g: expected shape \[3, 25\], got \[3, 35\]"),
        ((Q, G[0], 2, 2), r"g: expected shape \[3, 35\], got \[35\]"),
        ((Q, G.double(), 2, 2), "g: expected dtype .* as q has, got"),
        ((Q, G.to_sparse(), 2, 2), "g: expected a dense tensor, got layout torch.sparse_coo"),
    ],
)
def test_bad_input_of_the_gradient(args, message):
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=f"eqk::wigner_backward: {message}"):
            BACKWARD(args[0].to(device), args[1].to(device), *args[2:])


def test_operands_on_different_devices():
    for q, g in ((Q, G.to("meta")), (Q.to("meta"), G)):
        with pytest.raises(RuntimeError, match="g: expected device .* as q has, got"):
            BACKWARD(q, g, 2, 2)
    with pytest.raises(RuntimeError, match="eqk::wigner_backward: g: expected a tensor, got None"):
        BACKWARD(Q, None, 2, 2)
