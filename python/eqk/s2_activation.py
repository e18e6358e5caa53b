"""Functions of signals on the sphere: to a grid, the function, and back in one pass, with no grid in memory.

``torch.ops.eqk.s2_activation(x, plan)`` is the op: x [rows, channels (lmax_in + 1)^2], ``str(plan)`` of
:class:`eqk.S2ActivationPlan`, and ``s2_activation_derivative(x, v1, v2, v3, v4, plan, kinds)`` every derivative of it.
With S and A the linear maps to the grid and from it and f the function,

    P[f^(k)(S x) (T_1 v_1) ... (T_k v_k)]

where ``kinds`` says of each v, and behind ``>`` of the result, whether it is of the kind of x or of z: T is S or the
transpose of A, P the transpose of S or A. The gradient of this to x is the same with the cotangent as one more v, and
to v_i the same with the cotangent in its place: closed, with no other op.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk._signals import lmax_of
from eqk.irreps import MAX_DEGREE
from eqk.register import MaybeTensor, _sum, forward_function, jvp_rule, merged_rows, register
from eqk.s2_activation_plan import FUNCTIONS, S2ActivationPlan
from eqk.s2_quadrature import Resolution, exact_resolution
from eqk.tensor_product import rows_of

MAX_FACTORS = 4  # csrc/s2_activation/problem.h
_OPS = torch.ops.eqk
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _derivative(x: Tensor, factors: Sequence[Tensor], plan: str, kinds: str, result: str) -> Tensor:
    if len(factors) > MAX_FACTORS:
        raise RuntimeError(
            f"eqk::s2_activation: x: expected derivatives of the function up to order {MAX_FACTORS}, asked for more"
        )
    padding = [None] * (MAX_FACTORS - len(factors))
    return _OPS.s2_activation_derivative(x, *factors, *padding, plan, f"{kinds}>{result}")


_Forward = forward_function(
    1,
    (0, 0),
    lambda v, g, rest, needed: [_derivative(v[0], [g], rest[0], "z", "x") if needed[0] else None],
    lambda v, t, rest: _derivative(v[0], t, rest[0], "x", "z"),
)


class _Derivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, below, x, *args):
        *factors, plan, kinds = args
        ctx.plan = plan
        ctx.kinds, _, ctx.result = kinds.partition(">")  # which the op checks
        ctx.set_materialize_grads(False)
        factors = factors[: len(ctx.kinds)]
        needs = ctx.needs_input_grad[1 : 2 + len(factors)]
        # A factor is no part of its own gradient.
        kept = [f if any(need for m, need in enumerate(needs) if m != n + 1) else None for n, f in enumerate(factors)]
        ctx.save_for_backward(x, *kept)
        ctx.save_for_forward(x, *factors)
        return below(x, *args)

    @staticmethod
    def backward(ctx, c):
        x, *factors = ctx.saved_tensors
        gradients: list[MaybeTensor] = [None] * (1 + MAX_FACTORS)
        if c is not None:
            if ctx.needs_input_grad[1]:
                gradients[0] = _derivative(x, [*factors, c], ctx.plan, ctx.kinds + ctx.result, "x")
            for n, kind in enumerate(ctx.kinds):
                if ctx.needs_input_grad[n + 2]:
                    kinds = ctx.kinds[:n] + ctx.result + ctx.kinds[n + 1 :]
                    with_c = [*factors[:n], c, *factors[n + 1 :]]
                    gradients[n + 1] = _derivative(x, with_c, ctx.plan, kinds, kind)
        return None, *gradients, None, None

    @staticmethod
    @jvp_rule
    def jvp(ctx, _, t, *moving):
        x, *factors = ctx.saved_tensors
        terms = [] if t is None else [_derivative(x, [*factors, t], ctx.plan, ctx.kinds + "x", ctx.result)]
        for n in range(len(factors)):
            if moving[n] is not None:
                along = [*factors[:n], moving[n], *factors[n + 1 :]]
                terms.append(_derivative(x, along, ctx.plan, ctx.kinds, ctx.result))
        return _sum(terms)


def _columns(plan: str, kind: str) -> int:
    return S2ActivationPlan.parse(plan).dims["xz".index(kind)]


def _check(op: str, x: Tensor, factors: Sequence[MaybeTensor], plan: str, kinds: str) -> None:
    """What csrc/s2_activation/op.h checks, for tensors without data."""

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::{op}: {name}: expected {expected}, got {got}")

    require(x.dtype in _DTYPES, "x", "dtype float32, float64, float16 or bfloat16", x.dtype)
    require(x.dim() == 2, "x", "2 dimensions", f"shape {tuple(x.shape)}")
    present = [f for f in factors if f is not None]
    letters = kinds.replace(">", "", 1)
    fits = len(kinds) == len(present) + 2 and kinds[-2] == ">" and not set(letters) - {"x", "z"}
    fits = fits and all(f is None for f in factors[len(present) :])
    require(fits, "kinds", f"x or z for each of {len(present)} factors, '>', and x or z", repr(kinds))
    for n, (t, kind) in enumerate(zip((x, *present), "x" + letters, strict=False)):
        name, shape = f"v{n}" if n else "x", (x.shape[0], _columns(plan, kind))
        require(t.dim() == 2, name, f"shape {shape}", tuple(t.shape))
        require(t.shape[0] == shape[0], name, f"shape {shape}", tuple(t.shape))
        require(t.shape[1] == shape[1], name, f"shape {shape}", tuple(t.shape))
        require(t.dtype == x.dtype, name, f"dtype {x.dtype} as x has", t.dtype)
        require(t.device == x.device, name, f"device {x.device} as x has", t.device)


def _fake_forward(x, plan):
    _check("s2_activation", x, (), plan, ">z")
    return x.new_empty(x.shape[0], _columns(plan, "z"))


def _fake_derivative(x, v1, v2, v3, v4, plan, kinds):
    _check("s2_activation_derivative", x, (v1, v2, v3, v4), plan, kinds)
    return x.new_empty(x.shape[0], _columns(plan, kinds[-1]))


def _vmap(op):
    def rule(info, in_dims, *args):
        tensors = [a for a in args if a is None or isinstance(a, Tensor)]
        rest = args[len(tensors) :]
        result = op(*merged_rows(tensors, in_dims, info.batch_size), *rest)
        rows = args[0].shape[1 if in_dims[0] == 0 else 0]
        return result.unflatten(0, (info.batch_size, rows)), 0

    return rule


_LIBRARY = torch.library.Library("eqk", "IMPL")
for _op, _function, _fake in (
    (_OPS.s2_activation.default, _Forward, _fake_forward),
    (_OPS.s2_activation_derivative.default, _Derivative, _fake_derivative),
):
    register(_LIBRARY, _op, _function, _fake, _vmap(_op))


def dispatched_s2_activation(x: Tensor, plan: str) -> Tensor:
    """The op, on the backend that is chosen."""
    if dispatch.choose("s2_activation", x.device) in ("reference", "torch"):
        return reference.s2_activation(x, plan)
    return _OPS.s2_activation(x, plan)


@dispatch._cached_constant
def _plan(lmax_in, lmax_out, channels, function, res, quadrature, normalization) -> str:
    res = exact_resolution(lmax_in + lmax_out, quadrature) if res is None else res
    return str(S2ActivationPlan.normalized(lmax_in, lmax_out, channels, function, res, quadrature, normalization))


def s2_activation(
    x: Tensor,
    function: str,
    lmax_out: int | None = None,
    *,
    res: Resolution | None = None,
    quadrature: str = "gausslegendre",
    normalization: str = "component",
) -> Tensor:
    """A function of each value of signals on the sphere, projected to harmonics again.

    To a grid, the function, and back in one pass; the grid is in no memory, and is made again in the backward pass
    (Cohen et al. 2018, arXiv:1801.10130, for the idea; e3nn's S2Activation for the factors). Equivariant but for what
    degrees above those that the grid is exact for alias to: a polynomial of degree n in the signal has degrees up to
    n lmax, other functions have all. ``eqk.exact_resolution(d)`` is the grid that is exact to degree d.

    Args:
        x: [..., (lmax + 1)^2, channels], components in the order l^2 + l + m.
        function: ``"silu"``, ``"tanh"``, ``"sigmoid"``, ``"gelu"`` (exact), ``"relu"``, ``"abs"``, ``"softplus"``,
            ``"ssp"`` (softplus less log(2)), ``"square"`` or ``"identity"``.
        lmax_out: largest degree of the result; that of x by default.
        res: rings and angles, or (res_beta, res_alpha); by default the smallest that is exact for the linear part,
            degree lmax + lmax_out. More of them alias less.
        quadrature: ``"gausslegendre"``, or ``"soft"`` for e3nn's rings.
        normalization: as for :func:`eqk.to_s2grid`; ``"component"`` keeps signals of unit variance.

    float32, float64; float16 and bfloat16 compute in float32. Differentiable up to the fourth order, in reverse and
    forward mode, under torch.func and torch.compile. The same bits in every run and for any number of threads.

    Returns:
        [..., (lmax_out + 1)^2, channels]

    Raises:
        RuntimeError: if x does not fit; or why the backend that was asked for (:mod:`eqk.dispatch`) cannot run.
        ValueError: naming the option that does not fit.
        TypeError: if x is no tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"eqk.s2_activation: x: expected a tensor, got {x!r}")
    if x.layout != torch.strided:
        raise RuntimeError(f"eqk.s2_activation: x: expected a dense tensor, got layout {x.layout}")
    lmax = lmax_of(x.shape[-2]) if x.dim() >= 2 else None
    if lmax is None:
        raise RuntimeError(
            f"eqk.s2_activation: x: expected shape [..., (lmax + 1)^2, channels] with lmax up to {MAX_DEGREE}, got "
            f"{tuple(x.shape)}"
        )
    lmax_out = lmax if lmax_out is None else lmax_out
    channels = operator.index(x.shape[-1])
    plan = _plan(lmax, lmax_out, channels, function, res, quadrature, normalization)
    leading = list(x.shape[:-2])
    rows = x.flatten(-2)
    out = dispatched_s2_activation(rows_of(rows, leading) if leading else rows[None], plan)
    return out.reshape(*leading, (lmax_out + 1) ** 2, channels)


def function_name(function: str | Callable) -> str | None:
    """The name that eqk has for a function of torch's, or None."""
    if isinstance(function, str):
        return function if function in FUNCTIONS else None
    return _KNOWN.get(function) or _KNOWN.get(type(function))


_KNOWN: dict[object, str] = {
    torch.nn.functional.silu: "silu",
    torch.nn.functional.sigmoid: "sigmoid",
    torch.nn.functional.tanh: "tanh",
    torch.nn.functional.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    torch.relu: "relu",
    torch.abs: "abs",
    torch.square: "square",
    torch.nn.SiLU: "silu",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
    torch.nn.ReLU: "relu",
    torch.nn.Identity: "identity",
}
