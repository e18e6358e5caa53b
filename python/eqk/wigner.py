"""Wigner D matrices of quaternions, rows |m'| <= mmax, as eSCN rotates features to the frames of edges and back.

    eqk::wigner(q [rows, 4], lmax, mmax) -> D(q / |q|) [rows, sum over l of (2 min(l, mmax) + 1) (2 l + 1)]

A row has for each l = 0 .. lmax the rows m' = -k .. k, k = min(l, mmax), each of columns m = -l .. l: what irreps
(2 k + 1) x l are in the layout mul_ir. A further rotation acts on the columns alone, D(q r) = D(q) D(r). So, with the
generators L, multiples of the 3j symbols of (l, 1, l),

    dD = sum_k D L_k omega_k,    omega = 2 Im(conj(q) dq) / |q|^2,

is eqk's own tensor product of D and omega, and its gradient with respect to omega is the torque of a cotangent of D:
every derivative is made of the op and of tensor products.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from eqk import dispatch, reference
from eqk.irreps import MAX_DEGREE, Irreps
from eqk.plan import Plan
from eqk.register import _forward_mode, forward_function, merged_rows, register

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FORWARD = torch.ops.eqk.wigner.default


def columns(lmax: int, mmax: int) -> int:
    return sum((2 * min(l, mmax) + 1) * (2 * l + 1) for l in range(lmax + 1))


@functools.lru_cache(maxsize=4096)
def _generators(lmax: int, mmax: int) -> str:
    """Plan of D [rows, columns], omega [rows, 3] -> sum_k D L_k omega_k."""
    irreps = Irreps([(2 * min(l, mmax) + 1, (l, 1)) for l in range(lmax + 1)])
    paths = tuple((l, 0, l, "uvu", False, math.sqrt(l * (l + 1) * (2 * l + 1))) for l in range(1, lmax + 1))
    return str(Plan(irreps, "1x1e", irreps, paths))


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _quaternion(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s w [rows, 1], s (x, y, z) [rows, 3] and 2 / (s |q|^2) with a scale s, so that no square overflows.

    The scale cancels in what is made of them, so it is constant to derivatives.
    """
    q = _wide(q)
    scale = q.detach().abs().amax(1, keepdim=True)
    q = q / scale
    return q[:, :1], q[:, 1:], 2 / (scale * (q * q).sum(1, keepdim=True))


def _jvp(q: Tensor, t: Tensor, lmax: int, mmax: int) -> Tensor:
    # Off, as torch has it within a jvp rule, forward mode would cut omega off from the functorch levels beneath.
    with forward_ad._set_fwd_grad_enabled(_forward_mode()):
        w, v, factor = _quaternion(q)
        u = _wide(t)
        omega = factor * (w * u[:, 1:] - u[:, :1] * v - torch.linalg.cross(v, u[:, 1:]))
        omega = omega.to(q.dtype)
    return torch.ops.eqk.tensor_product(_FORWARD(q, lmax, mmax), omega, None, _generators(lmax, mmax))


def _gradient(q: Tensor, g: Tensor, lmax: int, mmax: int) -> Tensor:
    plan, d = _generators(lmax, mmax), _FORWARD(q, lmax, mmax)
    omega = q.new_zeros(1, 3).expand(q.shape[0], 3)  # of which no gradient to omega is made
    torque = _wide(torch.ops.eqk.tensor_product_backward(d, omega, None, g, plan, [False, True, False])[1])
    w, v, factor = _quaternion(q)
    along = torch.cat([-(v * torque).sum(1, keepdim=True), w * torque + torch.linalg.cross(v, torque)], 1)
    return (factor * along).to(q.dtype)


def _check(q: Tensor, lmax: int, mmax: int) -> None:
    """What csrc/wigner/cpu.cpp checks, for tensors without data."""

    def require(ok, name: str, expected: str, got: object) -> None:
        torch._check(ok, lambda: f"eqk::wigner: {name}: expected {expected}, got {got}")

    require(0 <= lmax <= MAX_DEGREE, "lmax", f"a degree from 0 to {MAX_DEGREE}", lmax)
    require(0 <= mmax <= lmax, "mmax", f"an order from 0 to lmax = {lmax}", mmax)
    require(q.layout == torch.strided, "q", "a dense tensor", f"layout {q.layout}")
    require(q.dtype in _DTYPES, "q", "dtype float32, float64, float16 or bfloat16", q.dtype)
    require(q.dim() == 2 and q.shape[1] == 4, "q", "shape [rows, 4]", list(q.shape))


_Forward = forward_function(
    1,
    (0, 0),
    lambda v, g, rest, needed: [_gradient(v[0], g, *rest) if needed[0] else None],
    lambda v, t, rest: _jvp(v[0], t[0], *rest),
)


def _fake(q, lmax, mmax):
    _check(q, lmax, mmax)
    return q.new_empty(q.shape[0], columns(lmax, mmax))


def _vmap(info, in_dims, q, lmax, mmax):
    (rows,) = merged_rows([q], in_dims, info.batch_size)
    samples = q.shape[1 if in_dims[0] == 0 else 0]  # not to be told from the result of no samples
    return _FORWARD(rows, lmax, mmax).unflatten(0, (info.batch_size, samples)), 0


def _other_devices(q, lmax, mmax):
    _check(q, lmax, mmax)
    return reference.wigner(_wide(q), lmax, mmax).to(q.dtype)


_LIBRARY = torch.library.Library("eqk", "IMPL")
register(_LIBRARY, _FORWARD, _Forward, _fake, _vmap)
# A kernel of the device's own, where one is registered, goes before this.
_LIBRARY.impl(_FORWARD, _other_devices, "CompositeExplicitAutograd")


def wigner(q: Tensor, lmax: int, mmax: int | None = None) -> Tensor:
    r"""Wigner D matrices of degrees 0 to lmax, of which rows :math:`|m'| \leq` mmax are kept.

    Equal to e3nn's ``Irrep.D_from_matrix`` of the rotation v -> q v q^-1: real harmonics (m = -l..l, y the polar axis)
    of a rotated vector are D times those of the vector. Computed as polynomials of the quaternion, by the recursion of
    Jacobi polynomials (csrc/wigner/recursion.h): no rotation is special, also to derivatives.

    Args:
        q: [..., 4], quaternions (w, x, y, z) of any length other than zero, such as :func:`edge_frame`'s: those of
            q / \|q\| are meant, and the gradient is orthogonal to q. float32, float64; float16 and bfloat16 compute in
            float32. Any device; a kernel exists for the CPU, others run torch operations.
        lmax: largest degree, up to 20.
        mmax: largest order of the rows; lmax by default.

    Returns:
        [..., sum over l of (2 min(l, mmax) + 1) (2 l + 1)], for each l = 0 .. lmax the matrix [rows m' = -k .. k with
        k = min(l, mmax)][columns m = -l .. l], row-major: 35 numbers for lmax = mmax = 2. Differentiable to any order,
        in reverse and forward mode, under torch.func and torch.compile. Where q is zero or not finite, degrees 1 and up
        are not a number.

    Raises:
        ValueError: if lmax or mmax is no such integer.
        TypeError: if q is no tensor.
        RuntimeError: if q has another shape or dtype, or the backend asked for (:mod:`eqk.dispatch`) cannot run.
    """
    mmax = lmax if mmax is None else mmax
    for name, value, most in (("lmax", lmax, MAX_DEGREE), ("mmax", mmax, lmax)):
        if not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"eqk.wigner: {name}: expected an integer from 0 to {most}, got {value!r}")
    if not isinstance(q, Tensor):
        raise TypeError(f"eqk.wigner: q: expected a tensor, got {q!r}")
    if q.dim() == 0 or q.shape[-1] != 4:
        raise RuntimeError(f"eqk.wigner: q: expected shape [..., 4], got {tuple(q.shape)}")
    rows = q if q.dim() == 2 else q.reshape(math.prod(q.shape[:-1]), 4)
    op = _other_devices if dispatch.choose("wigner", q.device) == "reference" else torch.ops.eqk.wigner
    out = op(rows, lmax, mmax)
    return out if q.dim() == 2 else out.reshape(*q.shape[:-1], out.shape[-1])
