"""eqk.edge_frame and eqk.matrix_to_quaternion: near and on the axes and half turns, and their derivatives."""

import math

import pytest
import torch

import eqk
from eqk.reference.wigner import rotation_matrix
from eqk.testing import TOLERANCES, assert_close, relative_error

pytestmark = pytest.mark.usefixtures("float64_default")

AXES = torch.cat([torch.eye(3), -torch.eye(3)]).double()
Y = torch.tensor([0.0, 1.0, 0.0]).double()


def near_axes(generator):
    """On the axes, and off them by 1e-300 to 0.1 to any side."""
    offsets = [torch.zeros(6, 3)]
    offsets += [d * torch.randn(6, 3, generator=generator) for d in (1e-300, 1e-16, 1e-8, 1e-4, 1e-2, 0.1)]
    return torch.cat([AXES + o for o in offsets])


def directions(generator):
    return torch.cat([near_axes(generator), torch.randn(40, 3, generator=generator)])


def two_charts(vec):
    """R = 1 + K + K^2 / (1 + u . pole) with K the cross product of u and the nearer pole, in the lower half of the
    sphere with half a turn about x: Rodrigues' formula, without quaternions."""
    u = vec / vec.norm(dim=1, keepdim=True)
    s = torch.where(u[:, 1:2] < 0, -1.0, 1.0).to(vec.dtype)
    pole = torch.cat([0 * s, s, 0 * s], 1)
    a = torch.linalg.cross(u, pole)
    zero = torch.zeros_like(a[:, 0])
    k = torch.stack([zero, -a[:, 2], a[:, 1], a[:, 2], zero, -a[:, 0], -a[:, 1], a[:, 0], zero], 1).view(-1, 3, 3)
    r = torch.eye(3, dtype=vec.dtype) + k + k @ k / (1 + (u * pole).sum(1))[:, None, None]
    return torch.cat([torch.ones_like(s), s, s], 1)[:, :, None] * r


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rolled", [False, True])
def test_unit_and_to_the_pole(dtype, rolled, generator):
    vec = directions(generator).to(dtype)
    roll = (6 * torch.rand(len(vec), generator=generator)).to(dtype) if rolled else None
    q = eqk.edge_frame(vec, roll)
    assert q.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert (q.double().norm(dim=1) - 1).abs().max() < 4 * eps
    u = torch.nn.functional.normalize(vec.double(), dim=1)
    moved = torch.einsum("zij,zj->zi", rotation_matrix(q.double()), u)
    assert (moved - Y).abs().max() < 8 * eps


def test_charts(generator):
    vec = directions(generator)
    assert_close(rotation_matrix(eqk.edge_frame(vec)), two_charts(vec))
    # At y = 0, of either sign, the upper one.
    vec = torch.tensor([[1.0, 0.0, 2.0], [1.0, -0.0, 2.0], [1.0, 1e-300, 2.0]])
    assert torch.equal(*(eqk.edge_frame(vec)[n] for n in (0, 1)))
    assert_close(*(eqk.edge_frame(vec)[n] for n in (0, 2)))


def test_roll(generator):
    vec = directions(generator)
    roll = 6 * torch.randn(len(vec), generator=generator)
    c, s, zero, one = roll.cos(), roll.sin(), torch.zeros_like(roll), torch.ones_like(roll)
    about_y = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], 1).view(-1, 3, 3)
    assert_close(rotation_matrix(eqk.edge_frame(vec, roll)), about_y @ two_charts(vec))


@pytest.mark.parametrize("dtype,scales", [(torch.float32, (1e-30, 1e30)), (torch.float64, (1e-300, 1e300))])
def test_any_length(dtype, scales, generator):
    vec = torch.randn(20, 3, generator=generator).to(dtype)
    expected = eqk.edge_frame(vec)
    for scale in scales:
        leaf = (vec * scale).requires_grad_()
        q = eqk.edge_frame(leaf)
        assert_close(q.detach(), expected)
        (gradient,) = torch.autograd.grad(q[:, 0].sum(), leaf)
        assert gradient.isfinite().all()
        leaf = vec.clone().requires_grad_()
        assert_close(gradient * scale, torch.autograd.grad(eqk.edge_frame(leaf)[:, 0].sum(), leaf)[0])


def test_no_direction():
    """NaN in that row, of values and gradients, and in no other."""
    rows = [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [math.inf, 0.0, 0.0], [math.nan, 1.0, 0.0]]
    vec = torch.tensor(rows, requires_grad=True)
    q = eqk.edge_frame(vec)
    assert q.isnan().all(1).tolist() == [True, False, True, True]
    (gradient,) = torch.autograd.grad(q[1].sum(), vec, retain_graph=True)
    assert gradient[1].isfinite().all()
    (gradient,) = torch.autograd.grad(q.sum(), vec)
    assert gradient[0].isnan().any()
    assert not gradient[1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(dtype, generator):
    """The float32 result, rounded once; squares of 300 or of 1e-4 are none of float16's numbers."""
    vec = (torch.randn(30, 3, generator=generator) * torch.tensor([[300.0], [1e-4], [1.0]]).repeat(10, 1)).to(dtype)
    roll = torch.randn(30, generator=generator).to(dtype)
    assert torch.equal(eqk.edge_frame(vec, roll), eqk.edge_frame(vec.float(), roll.float()).to(dtype))


def test_derivatives(generator):
    """Three orders, on the axes and near them, are those of Rodrigues' formula; no branch not taken leaves a NaN."""
    vec = 1.7 * near_axes(generator)
    g = torch.randn(3, len(vec), 3, 3, generator=generator)

    def orders(f):
        leaf = vec.clone().requires_grad_()
        out = (f(leaf) * g[0]).sum()
        results = []
        for n in range(3):
            (gradient,) = torch.autograd.grad(out, leaf, create_graph=True)
            results.append(gradient.detach())
            out = (gradient * g[n, :, 0]).sum()
        return results

    for ours, theirs in zip(orders(lambda v: rotation_matrix(eqk.edge_frame(v))), orders(two_charts), strict=True):
        assert_close(ours, theirs)


def test_gradcheck(generator):
    vec = torch.cat([AXES, torch.randn(3, 3, generator=generator)])
    vec = vec[vec[:, 1] != 0].clone().requires_grad_()  # no finite differences across the charts
    roll = torch.randn(len(vec), generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(eqk.edge_frame, (vec, roll), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(eqk.edge_frame, (vec, roll), check_fwd_over_rev=True)


def test_shapes(generator):
    vec, roll = torch.randn(4, 3, 5, generator=generator).mT, torch.randn(4, 5, generator=generator)
    q = eqk.edge_frame(vec, roll)
    assert q.shape == (4, 5, 4)
    assert torch.equal(q[2, 3], eqk.edge_frame(vec[2, 3], roll[2, 3]))
    assert torch.equal(torch.vmap(torch.vmap(eqk.edge_frame))(vec, roll), q)
    leaf = torch.zeros(0, 3, requires_grad=True)
    q = eqk.edge_frame(leaf, torch.zeros(0))
    assert q.shape == (0, 4)
    assert torch.autograd.grad(q.sum(), leaf)[0].shape == (0, 3)


def test_compile(generator):
    compiled = torch.compile(eqk.edge_frame, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 9):
        vec, roll = torch.randn(rows, 3, generator=generator), torch.randn(rows, generator=generator)
        leaf = vec.clone().requires_grad_()
        gradients = [torch.autograd.grad(f(leaf, roll)[:, 1].sum(), leaf)[0] for f in (compiled, eqk.edge_frame)]
        assert relative_error(*gradients) < TOLERANCES[torch.float64][1]


V = torch.ones(4, 3)


@pytest.mark.parametrize(
    "args,error,message",
    [
        (([1.0, 2.0, 3.0],), TypeError, "vec: expected a tensor"),
        ((V, 0.5), TypeError, "roll: expected a tensor, got 0.5"),
        ((V[:, :2],), RuntimeError, r"vec: expected shape \[..., 3\], got \(4, 2\)"),
        ((torch.tensor(1.0),), RuntimeError, "vec: expected shape"),
        ((V.long(),), RuntimeError, "vec: expected dtype"),
        ((V, V), RuntimeError, r"roll: expected shape \(4,\) as vec has, got \(4, 3\)"),
        ((V, V[:, 0].double()), RuntimeError, "roll: expected dtype torch.float32 as vec has, got torch.float64"),
        ((V, V[:, 0].to("meta")), RuntimeError, "roll: expected device cpu as vec has, got meta"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=f"eqk.edge_frame: {message}"):
        eqk.edge_frame(*args)


def rotations(generator):
    """Turns by 0, by pi and by angles near them about axes and others, and those whose largest components are two."""
    q = [torch.eye(4), -torch.eye(4), torch.randn(40, 4, generator=generator)]
    q += [torch.eye(4) + d * torch.randn(4, 4, generator=generator) for d in (1e-16, 1e-12, 1e-8, 1e-4)]
    q += [torch.tensor(signs, dtype=torch.float64) for signs in ([[1, 1, 0, 0]], [[0, 1, 0, -1]], [[1, -1, 1, -1]])]
    return torch.nn.functional.normalize(torch.cat(q), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quaternions_of_matrices(dtype, generator):
    q = rotations(generator)
    got = eqk.matrix_to_quaternion(rotation_matrix(q).to(dtype))
    assert got.dtype == dtype
    largest = got.gather(1, got.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    same = got.double() * (got.double() * q).sum(1, keepdim=True).sign()
    assert (same - q).abs().max() < 4 * torch.finfo(dtype).eps
    assert torch.equal(
        eqk.matrix_to_quaternion(rotation_matrix(q[:40]).to(dtype).unflatten(0, (8, 5))).flatten(0, 1), got[:40]
    )


def test_derivatives_along_rotations(generator):
    """Three orders of a function of the matrix of the quaternion of a matrix are those of the matrix alone."""
    q, g = rotations(generator), torch.randn(3, 3, generator=generator)

    def orders(f):
        leaf = q.clone().requires_grad_()
        out = (f(rotation_matrix(leaf)) * g).sin().sum()
        results = []
        for _ in range(3):
            (gradient,) = torch.autograd.grad(out, leaf, create_graph=True)
            results.append(gradient.detach())
            out = gradient.sin().sum()
        return results

    there_and_back = orders(lambda matrix: rotation_matrix(eqk.matrix_to_quaternion(matrix)))
    for ours, theirs in zip(there_and_back, orders(lambda matrix: matrix), strict=True):
        assert_close(ours, theirs, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quaternions_of_matrices_of_16_bits(dtype, generator):
    matrix = rotation_matrix(rotations(generator)).to(dtype)
    assert torch.equal(eqk.matrix_to_quaternion(matrix), eqk.matrix_to_quaternion(matrix.float()).to(dtype))


def test_no_rotations():
    leaf = torch.zeros(0, 3, 3, requires_grad=True)
    q = eqk.matrix_to_quaternion(leaf)
    assert q.shape == (0, 4)
    assert torch.autograd.grad(q.sum(), leaf)[0].shape == (0, 3, 3)
    assert eqk.matrix_to_quaternion(torch.full((2, 3, 3), math.nan)).isnan().all()


@pytest.mark.parametrize(
    "matrix,error,message",
    [
        ([[1.0]], TypeError, "expected a tensor"),
        (V, RuntimeError, r"expected shape \[..., 3, 3\], got \(4, 3\)"),
        (
            torch.ones(3, 3).long(),
            RuntimeError,
            "expected dtype float32, float64, float16 or bfloat16, got torch.int64",
        ),
    ],
)
def test_bad_matrices(matrix, error, message):
    with pytest.raises(error, match=f"eqk.matrix_to_quaternion: matrix: {message}"):
        eqk.matrix_to_quaternion(matrix)
