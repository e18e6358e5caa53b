"""Real spherical harmonics as homogeneous polynomials.

Two ops, on x [rows, 3] and a plan string such as ``"0,1,2 component"`` (degrees in any order, ``-`` for none, and the
normalisation):

    eqk::spherical_harmonics(x, plan) -> Y(x) [rows, sum of 2 l + 1]
    eqk::spherical_harmonics_backward(x, g, plan) -> gradient of <g, Y(x)> with respect to x [rows, 3]

The gradient of a solid harmonic of degree l is a constant combination of those of degree l - 1,

    d Y_l[i] / d x[a] = c_l sum_j C[j, a, i] Y_(l-1)[j],

with C the Wigner 3j symbol of (l - 1, 1, l). Contractions with C are eqk's own tensor products, so that every
derivative of the two ops consists of the two ops at lower degrees and of tensor products.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk.irreps import MAX_DEGREE, Irreps, IrrepsLike
from eqk.plan import Plan
from eqk.register import _sum, forward_function, jvp_rule, merged_rows, register

NORMALIZATIONS = ("integral", "component", "norm")
_PLAN = re.compile(rf"(-|\d{{1,2}}(?:,\d{{1,2}})*) ({'|'.join(NORMALIZATIONS)})", re.ASCII)
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def plan_string(ls: Sequence[int], normalization: str) -> str:
    return f"{','.join(map(str, ls)) or '-'} {normalization}"


class _Parsed(NamedTuple):
    ls: tuple[int, ...]
    normalization: str
    dim: int
    lower: str  # plan of the degrees l - 1, of those l that are not zero
    gradient: str  # tensor product Y_lower, t -> sum_a t[a] dY/dx[a]
    adjoint: str  # tensor product g, t -> the cotangent h of Y_lower with <h, Y_lower> = <g, sum_a t[a] dY/dx[a]>


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> _Parsed:
    match = _PLAN.fullmatch(text) if len(text) <= 2**16 else None  # as csrc/spherical_harmonics/plan.h
    ls = tuple(map(int, match[1].split(","))) if match and match[1] != "-" else ()
    if not match or max(ls, default=0) > MAX_DEGREE:
        raise ValueError(
            f"plan: expected degrees from 0 to {MAX_DEGREE} and a normalization such as '0,1,2 component', "
            f"got {text[:80]!r}"
        )
    normalization = match[2]
    low = [l - 1 for l in ls if l > 0]
    paths = []
    for n, (i, l) in enumerate((i, l) for i, l in enumerate(ls) if l > 0):
        c = (2 * l + 1) * math.sqrt(l)
        paths.append((n, i, c * math.sqrt((2 * l - 1) / (2 * l + 1)) if normalization == "norm" else c))
    here, there = (Irreps([(1, (l, (-1) ** l)) for l in degrees]) for degrees in (ls, low))
    up = Plan(there, "1x1o", here, tuple((n, 0, i, "uuu", False, c) for n, i, c in paths))
    # Exchanging the outer indices of C multiplies it by (-1)^((l - 1) + 1 + l) = 1.
    down = Plan(here, "1x1o", there, tuple((i, 0, n, "uuu", False, c) for n, i, c in paths))
    return _Parsed(ls, normalization, here.dim, plan_string(low, normalization), str(up), str(down))


def _check(op: str, x: Tensor, g: Tensor | None, text: str) -> None:
    """What csrc/spherical_harmonics/cpu.cpp checks, for tensors without data."""
    columns = _parse(text).dim
    torch._check(x.dtype in _DTYPES, lambda: f"eqk::{op}: x: expected a floating-point dtype, got {x.dtype}")
    torch._check(
        x.dim() == 2 and x.shape[1] == 3, lambda: f"eqk::{op}: x: expected shape [rows, 3], got {tuple(x.shape)}"
    )
    if g is not None:
        torch._check(
            g.dim() == 2 and g.shape[0] == x.shape[0] and g.shape[1] == columns,
            lambda: f"eqk::{op}: g: expected shape [{x.shape[0]}, {columns}], got {tuple(g.shape)}",
        )
        torch._check(g.dtype == x.dtype, lambda: f"eqk::{op}: g: expected dtype {x.dtype} as x has, got {g.dtype}")
        torch._check(g.device == x.device, lambda: f"eqk::{op}: g: expected device {x.device} as x has, got {g.device}")


_FORWARD = torch.ops.eqk.spherical_harmonics.default
_BACKWARD = torch.ops.eqk.spherical_harmonics_backward.default


def _jvp(x: Tensor, t: Tensor, text: str) -> Tensor:
    plan = _parse(text)
    return torch.ops.eqk.tensor_product(_FORWARD(x, plan.lower), t, None, plan.gradient)


def _second(x: Tensor, g: Tensor, t: Tensor, text: str) -> Tensor:
    """The Hessian of <g, Y(x)> applied to t."""
    plan = _parse(text)
    return _BACKWARD(x, torch.ops.eqk.tensor_product(g, t, None, plan.adjoint), plan.lower)


_Forward = forward_function(
    1,
    (0, 0),
    lambda v, g, rest, needed: [_BACKWARD(v[0], g, rest[0]) if needed[0] else None],
    lambda v, t, rest: _jvp(v[0], t[0], rest[0]),
)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, below, x, g, plan):
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, g if ctx.needs_input_grad[1] else None)
        ctx.save_for_forward(x, g)
        return below(x, g, plan)

    @staticmethod
    def backward(ctx, c):
        if c is None:
            return None, None, None, None
        x, g = ctx.saved_tensors
        gx = _second(x, g, c, ctx.plan) if ctx.needs_input_grad[1] else None
        gg = _jvp(x, c, ctx.plan) if ctx.needs_input_grad[2] else None
        return None, gx, gg, None

    @staticmethod
    @jvp_rule
    def jvp(ctx, _, tx, tg, __):
        x, g = ctx.saved_tensors
        terms = [] if tx is None else [_second(x, g, tx, ctx.plan)]
        terms += [] if tg is None else [_BACKWARD(x, tg, ctx.plan)]
        return _sum(terms) if terms else torch.zeros_like(x)


def _fake_forward(x, plan):
    _check("spherical_harmonics", x, None, plan)
    return x.new_empty(x.shape[0], _parse(plan).dim)


def _fake_backward(x, g, plan):
    _check("spherical_harmonics_backward", x, g, plan)
    return x.new_empty(x.shape)


def _vmap(op):
    def rule(info, in_dims, *args):
        *tensors, plan = args
        result = op(*merged_rows(tensors, in_dims, info.batch_size), plan)
        rows = tensors[0].shape[1 if in_dims[0] == 0 else 0]  # not to be told from the result of no samples
        return result.unflatten(0, (info.batch_size, rows)), 0

    return rule


def _other_devices_forward(x, plan):
    _check("spherical_harmonics", x, None, plan)
    wide = torch.promote_types(x.dtype, torch.float32)
    parsed = _parse(plan)
    return reference.spherical_harmonics(parsed.ls, x.to(wide), parsed.normalization).to(x.dtype)


def _other_devices_backward(x, g, plan):
    _check("spherical_harmonics_backward", x, g, plan)
    wide = torch.promote_types(x.dtype, torch.float32)
    parsed = _parse(plan)
    return reference.spherical_harmonics_backward(parsed.ls, x.to(wide), g.to(wide), parsed.normalization).to(x.dtype)


_LIBRARY = torch.library.Library("eqk", "IMPL")
for _op, _function, _fake, _composite in (
    (_FORWARD, _Forward, _fake_forward, _other_devices_forward),
    (_BACKWARD, _Backward, _fake_backward, _other_devices_backward),
):
    register(_LIBRARY, _op, _function, _fake, _vmap(_op))
    # A kernel of the device's own, where one is registered, goes before this.
    _LIBRARY.impl(_op, _composite, "CompositeExplicitAutograd")


def _degree(item: object) -> int | None:
    try:
        return operator.index(item)
    except TypeError:
        return None


def _degrees(l: object) -> list[int] | None:
    """The degrees that ``l`` is, or consists of; None for what else it may be."""
    degree = _degree(l)
    if degree is not None:
        return [degree]
    if isinstance(l, str) or hasattr(l, "p") or not isinstance(l, Iterable):  # an Irrep, eqk's or e3nn's, has p
        return None
    degrees = [_degree(item) for item in l]
    return None if None in degrees else degrees


def resolve(
    l: int | Sequence[int] | IrrepsLike, irreps_in: IrrepsLike | None = None
) -> tuple[list[int], Irreps, Irreps]:
    """Degrees, irreps of the vector and irreps of the harmonics that e3nn's ``l`` (``irreps_out``) stands for."""
    irreps = None
    if isinstance(l, Iterator):
        l = list(l)
    ls = _degrees(l)
    if ls is None:
        try:
            irreps = Irreps(l)
        except (TypeError, ValueError, NotImplementedError) as error:
            got = f"a tensor of shape {list(l.shape)}" if isinstance(l, Tensor) else f"{l!r} ({error})"
            raise ValueError(f"l: expected a degree, several, or irreps, got {got}") from error
        ls = irreps.ls
    if not ls or min(ls) < 0:
        raise ValueError(f"l: expected at least one degree, none negative, got {l!r}")
    if max(ls) > MAX_DEGREE:
        raise NotImplementedError(f"l: expected degrees up to {MAX_DEGREE}, got {max(ls)}")
    if irreps_in is None:
        pseudo = any(ir.l % 2 == 1 and ir.p == 1 for _, ir in irreps or ())
        irreps_in = "1e" if pseudo else "1o"
    irreps_in = Irreps(irreps_in)
    if irreps_in not in (Irreps("1o"), Irreps("1e")):
        raise ValueError(f"irreps_in: expected a vector (1x1o) or a pseudovector (1x1e), got {irreps_in}")
    p = irreps_in[0].ir.p
    for _, ir in irreps or ():
        if ir.p != p**ir.l:
            expected = f"parity {p**ir.l} for degree {ir.l} of {irreps_in}"
            raise ValueError(f"irreps_out: expected {expected}, got {ir} in {irreps}")
    return ls, irreps_in, Irreps([(1, (degree, p**degree)) for degree in ls]).simplify()


def check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise AssertionError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")


def _dispatched(x: Tensor, plan: str) -> Tensor:
    chosen = dispatch.choose("spherical_harmonics", x.device)
    return _other_devices_forward(x, plan) if chosen == "reference" else torch.ops.eqk.spherical_harmonics(x, plan)


def _op(x: Tensor, plan: str) -> Tensor:
    if torch.jit.is_scripting():
        return torch.ops.eqk.spherical_harmonics(x, plan)
    else:
        return _dispatched(x, plan)


def evaluate(x: Tensor, normalize: bool, plan: str) -> Tensor:
    """Y of x [..., 3] for a plan string; torch.jit.script can compile it."""
    if x.dim() == 0 or x.shape[-1] != 3:
        raise RuntimeError(f"x: expected shape [..., 3], got {x.shape}")
    if normalize:
        # torch's 1e-12 is zero in float16, whose smallest normal number has an inverse.
        x = torch.nn.functional.normalize(x, dim=-1, eps=2.0**-14 if x.dtype == torch.float16 else 1e-12)
    if x.dim() == 2:
        return _op(x, plan)
    rows = 1  # -1 is ambiguous where vmap maps over nothing
    for n in x.shape[:-1]:
        rows *= n
    out = _op(x.reshape(rows, 3), plan)
    return out.reshape(x.shape[:-1] + out.shape[-1:])


def spherical_harmonics(
    l: int | Sequence[int] | IrrepsLike, x: Tensor, normalize: bool, normalization: str = "integral"
) -> Tensor:
    r"""Real spherical harmonics, equal to ``e3nn.o3.spherical_harmonics``.

    With x = r (sin t sin p, cos t, sin t cos p), so that y is the polar axis, component m = -l .. l of degree l is, in
    component normalisation,

    .. math:: Y^l_m = r^l \sqrt{(2 - \delta_{m0}) (2l + 1) \tfrac{(l-|m|)!}{(l+|m|)!}}
              \; P^{|m|}_l(\cos t) \cdot (\cos m p \text{ if } m \geq 0 \text{ else } \sin |m| p)

    with the associated Legendre functions without the phase :math:`(-1)^m` (DLMF 14.7.10 gives them with it). They are
    computed as polynomials in x, y, z (csrc/core/solid_harmonics.h), so derivatives of any order are finite and exact
    at the poles, on the axes and at zero.

    Args:
        l: degree, several (any iterable of integers, an array too), or irreps such as ``"0e + 1o + 2e"``; up to 20, in
            any order, repeated or not. The parities of irreps must be those of the harmonics of a vector, (-1)^l, or of
            a pseudovector, even.
        x: [..., 3], float32 or float64; float16 and bfloat16 compute in float32. Any device; kernels exist for the CPU,
            other devices run the same polynomials as torch operations (``eqk.dispatch.explain`` says what runs).
        normalize: whether to divide x by its norm first (``torch.nn.functional.normalize``). The zero vector then
            stays zero, where degree 0 has its constant value and every other degree is 0. As in e3nn, first derivatives
            there are finite (degree 1: divided by what bounds the norm from below, 1e-12 or, in float16, 2^-14; other
            degrees: zero), and second ones, which torch takes of the norm, are not a number. Shorter vectors than that
            are divided by the bound. Without ``normalize`` zero is a point like any other.
        normalization: ``"component"``, :math:`\sum_m Y_m^2 = 2l+1` on the sphere; ``"norm"``, 1;
            ``"integral"``, :math:`\int Y_m^2 = 1` over the sphere.

    Returns:
        [..., sum of 2 l + 1], degrees in the order of ``l``. Differentiable to any order, in reverse and forward mode,
        under torch.func and torch.compile.

    Raises:
        ValueError: if ``l`` is neither degrees nor irreps, has none, or has parities that do not fit one input vector.
        NotImplementedError: for degrees above 20.
        AssertionError: for another ``normalization`` (e3nn's type).
        RuntimeError: if x has another shape or dtype, or the backend asked for (:mod:`eqk.dispatch`) cannot run.
    """
    check_normalization(normalization)
    return evaluate(x, normalize, plan_string(resolve(l)[0], normalization))
