"""Wigner D matrices of quaternions, rows |m'| <= mmax, as eSCN rotates features to the frames of edges and back.

    eqk::wigner(q [rows, 4], lmax, mmax) -> D(q / |q|) [rows, sum over l of (2 min(l, mmax) + 1) (2 l + 1)]
    eqk::wigner_backward(q, g, lmax, mmax) -> gradient of <g, D(q / |q|)> with respect to q [rows, 4]

A row has for each l = 0 .. lmax the rows m' = -k .. k, k = min(l, mmax), each of columns m = -l .. l: what irreps
(2 k + 1) x l are in the layout mul_ir. A further rotation acts on the columns alone, D(q r) = D(q) D(r). So, with the
generators L, multiples of the 3j symbols of (l, 1, l),

    dD = sum_k D L_k omega_k,    omega = 2 Im(conj(q) dq) / |q|^2,

is eqk's own tensor product of D and omega, and its gradient with respect to omega is the torque of a cotangent of D,
which the second op makes one of q: every derivative is made of the two ops and of tensor products.
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
from eqk.register import _forward_mode, _sum, forward_function, jvp_rule, merged_rows, register

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FORWARD = torch.ops.eqk.wigner.default
_BACKWARD = torch.ops.eqk.wigner_backward.default


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


def _scaled(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q / s, s [rows, 1] and 2 / (s |q / s|^2) with a scale s, so that no square overflows.

    The scale cancels in what is made of them, so it is constant to derivatives.
    """
    q = _wide(q)
    scale = torch.linalg.vector_norm(q.detach(), math.inf, 1, keepdim=True)
    q = q / scale
    return q, scale, 2 / (scale * (q * q).sum(1, keepdim=True))


def _omega(q: Tensor, t: Tensor) -> Tensor:
    """2 Im(conj(q) t) / |q|^2, [rows, 3] in float32 at least."""
    q, _, factor = _scaled(q)
    t = _wide(t)
    return factor * (q[:, :1] * t[:, 1:] - t[:, :1] * q[:, 1:] - torch.linalg.cross(q[:, 1:], t[:, 1:]))


def _cotangent(q: Tensor, torque: Tensor) -> Tensor:
    """The gradient of <torque, Im(conj(q) t)> with respect to t; with respect to q it is that of t, negative."""
    w, v = q[:, :1], q[:, 1:]
    return torch.cat([-(v * torque).sum(1, keepdim=True), w * torque + torch.linalg.cross(v, torque)], 1)


def _jvp(q: Tensor, t: Tensor, lmax: int, mmax: int) -> Tensor:
    # Off, as torch has it within a jvp rule, forward mode would cut omega off from the functorch levels beneath.
    with forward_ad._set_fwd_grad_enabled(_forward_mode()):
        omega = _omega(q, t).to(q.dtype)
    return torch.ops.eqk.tensor_product(_FORWARD(q, lmax, mmax), omega, None, _generators(lmax, mmax))


def _second(q: Tensor, g: Tensor, t: Tensor, lmax: int, mmax: int) -> Tensor:
    """The Hessian of <g, D(q)> applied to t: the gradient of <torque, omega>, whose D, omega and |q|^2 vary."""
    with forward_ad._set_fwd_grad_enabled(_forward_mode()):
        omega, d = _omega(q, t), _FORWARD(q, lmax, mmax)
        of_d, torque, _ = torch.ops.eqk.tensor_product_backward(
            d, omega.to(q.dtype), None, g, _generators(lmax, mmax), [True, True, False]
        )
        torque, (unit, scale, factor) = _wide(torque), _scaled(q)
        work = (torque * omega).sum(1, keepdim=True)
        of_omega = -factor * (_cotangent(_wide(t) / scale, torque) + work * unit)
        return _BACKWARD(q, of_d, lmax, mmax) + of_omega.to(q.dtype)


def _check(op: str, q: Tensor, g: Tensor | None, lmax: int, mmax: int) -> None:
    """What csrc/wigner/op.h checks, for tensors without data."""

    def require(ok, name: str, expected: str, got: object) -> None:
        torch._check(ok, lambda: f"eqk::{op}: {name}: expected {expected}, got {got}")

    require(0 <= lmax <= MAX_DEGREE, "lmax", f"a degree from 0 to {MAX_DEGREE}", lmax)
    require(0 <= mmax <= lmax, "mmax", f"an order from 0 to lmax = {lmax}", mmax)
    require(q.layout == torch.strided, "q", "a dense tensor", f"layout {q.layout}")
    require(q.dtype in _DTYPES, "q", "dtype float32, float64, float16 or bfloat16", q.dtype)
    require(q.dim() == 2 and q.shape[1] == 4, "q", "shape [rows, 4]", list(q.shape))
    if g is not None:
        shape = [q.shape[0], columns(lmax, mmax)]
        require(g.layout == torch.strided, "g", "a dense tensor", f"layout {g.layout}")
        require(g.dim() == 2 and list(g.shape) == shape, "g", f"shape {shape}", list(g.shape))
        require(g.dtype == q.dtype, "g", f"dtype {q.dtype} as q has", g.dtype)
        require(g.device == q.device, "g", f"device {q.device} as q has", g.device)


_Forward = forward_function(
    1,
    (0, 0),
    lambda v, g, rest, needed: [_BACKWARD(v[0], g, *rest) if needed[0] else None],
    lambda v, t, rest: _jvp(v[0], t[0], *rest),
)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, below, q, g, lmax, mmax):
        ctx.degrees = lmax, mmax
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, g if ctx.needs_input_grad[1] else None)
        ctx.save_for_forward(q, g)
        return below(q, g, lmax, mmax)

    @staticmethod
    def backward(ctx, c):
        if c is None:
            return (None,) * 5
        q, g = ctx.saved_tensors
        of_q = _second(q, g, c, *ctx.degrees) if ctx.needs_input_grad[1] else None
        of_g = _jvp(q, c, *ctx.degrees) if ctx.needs_input_grad[2] else None
        return None, of_q, of_g, None, None

    @staticmethod
    @jvp_rule
    def jvp(ctx, _, tq, tg, *__):
        # Without the tangents of this level, of which _second's own operations of torch would make some of their own.
        q, g = (forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors)
        terms = [] if tq is None else [_second(q, g, tq, *ctx.degrees)]
        terms += [] if tg is None else [_BACKWARD(q, tg, *ctx.degrees)]
        return _sum(terms) if terms else torch.zeros_like(q)


def _fake_forward(q, lmax, mmax):
    _check("wigner", q, None, lmax, mmax)
    return q.new_empty(q.shape[0], columns(lmax, mmax))


def _fake_backward(q, g, lmax, mmax):
    _check("wigner_backward", q, g, lmax, mmax)
    return q.new_empty(q.shape[0], 4)


def _vmap(op, operands: int):
    def rule(info, in_dims, *args):
        result = op(*merged_rows(args[:operands], in_dims, info.batch_size), *args[operands:])
        rows = args[0].shape[1 if in_dims[0] == 0 else 0]  # not to be told from the result of no samples
        return result.unflatten(0, (info.batch_size, rows)), 0

    return rule


def _other_devices(q, lmax, mmax):
    _check("wigner", q, None, lmax, mmax)
    return reference.wigner(_wide(q), lmax, mmax).to(q.dtype)


def _gradient_on_other_devices(q, g, lmax, mmax):
    _check("wigner_backward", q, g, lmax, mmax)
    omega = q.new_zeros(1, 3).expand(q.shape[0], 3)  # of which no gradient to omega is made
    d, plan = _FORWARD(q, lmax, mmax), _generators(lmax, mmax)
    torque = torch.ops.eqk.tensor_product_backward(d, omega, None, g, plan, [False, True, False])[1]
    unit, _, factor = _scaled(q)
    return (factor * _cotangent(unit, _wide(torque))).to(q.dtype)


_LIBRARY = torch.library.Library("eqk", "IMPL")
for _op, _function, _fake, _operands, _composite in (
    (_FORWARD, _Forward, _fake_forward, 1, _other_devices),
    (_BACKWARD, _Backward, _fake_backward, 2, _gradient_on_other_devices),
):
    register(_LIBRARY, _op, _function, _fake, _vmap(_op, _operands))
    # A kernel of the device's own, where one is registered, goes before this.
    _LIBRARY.impl(_op, _composite, "CompositeExplicitAutograd")


def wigner(q: Tensor, lmax: int, mmax: int | None = None) -> Tensor:
    r"""Wigner D matrices of degrees 0 to lmax, of which rows :math:`|m'| \leq` mmax are kept.

    Equal to e3nn's ``Irrep.D_from_matrix`` of the rotation v -> q v q^-1: real harmonics (m = -l..l, y the polar axis)
    of a rotated vector are D times those of the vector. Computed as polynomials of the quaternion, by the recursion of
    Jacobi polynomials (csrc/wigner/recursion.h): no rotation is special, also to derivatives.

    Args:
        q: [..., 4], quaternions (w, x, y, z) of any length other than zero, such as :func:`edge_frame`'s: those of
            q / \|q\| are meant, and the gradient is orthogonal to q. float32, float64; float16 and bfloat16 compute in
            float32. Any device; kernels exist for the CPU and CUDA, others run torch operations.
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
