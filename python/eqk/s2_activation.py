"""Functions and products of signals on the sphere: to a grid and back in one pass, with no grid in memory.

``torch.ops.eqk.s2_activation(x, plan)`` is the op: x [rows, channels components], ``str(plan)`` of
:class:`eqk.S2ActivationPlan`; ``s2_activation_product(x, v1, v2, v3, v4, plan, kinds)`` its products with other signals
and every derivative of both. With S and A the linear maps to the grid and from it and f the function,

    P[f^(k)(S x) (T_1 v_1) ... (T_n v_n)]

where ``kinds`` has k and says of each v, and behind ``>`` of the result, whether it is of the kind of x or of z: T is S
or the transpose of A, P the transpose of S or A. The gradient of this to x is the same with k + 1 and the cotangent as
one more v, and to v_i the same with the cotangent in its place: closed, with no other op.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk._signals import check_dense, count, lmax_argument
from eqk.register import MaybeTensor, _sum, forward_function, jvp_rule, merged_rows, register
from eqk.s2_activation_plan import FUNCTIONS, POWERS, S2ActivationPlan
from eqk.s2_quadrature import Resolution, exact_resolution
from eqk.tensor_product import rows_of

MAX_FACTORS = MAX_DERIVATIVE = 4  # csrc/s2_activation/problem.h
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dispatch._constant_when_traced
def _power(plan: str) -> float:
    """Beyond which derivatives of the function are zero."""
    return POWERS.get(S2ActivationPlan.parse(plan).function, math.inf)


def _product(ops, x: Tensor, factors: Sequence[Tensor], plan: str, derivative: int, kinds: str, result: str) -> Tensor:
    power = _power(plan)
    if derivative == power == 1 and "x" in kinds:  # a product of signals without x: one of them in its place
        n = kinds.index("x")
        x, factors, kinds, derivative = factors[n], [*factors[:n], *factors[n + 1 :]], kinds[:n] + kinds[n + 1 :], 0
    if derivative > MAX_DERIVATIVE or len(factors) > MAX_FACTORS:
        if derivative > power:
            return x.new_zeros(x.shape[0], _columns(plan, result))
        raise RuntimeError(
            f"eqk::s2_activation: x: expected derivatives of the function up to order {MAX_DERIVATIVE}, times up to "
            f"{MAX_FACTORS} signals and cotangents, asked for order {derivative} times {len(factors)}"
        )
    padding = [None] * (MAX_FACTORS - len(factors))
    return ops.s2_activation_product(x, *factors, *padding, plan, f"{derivative}{kinds}>{result}")


def _product_function(ops) -> type[torch.autograd.Function]:
    product = functools.partial(_product, ops)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, below, x, *args):
            *factors, plan, kinds = args
            ctx.plan = plan
            ctx.kinds, _, ctx.result = kinds[1:].partition(">")  # which the op checks
            ctx.set_materialize_grads(False)
            factors = factors[: len(ctx.kinds)]
            needs = ctx.needs_input_grad[1 : 2 + len(factors)]
            # A factor is no part of its own gradient.
            used = [any(need for m, need in enumerate(needs) if m != n + 1) for n in range(len(factors))]
            ctx.save_for_backward(x, *[f if use else None for f, use in zip(factors, used, strict=True)])
            ctx.save_for_forward(x, *factors)
            result = below(x, *args)
            ctx.derivative = int(kinds[0])
            return result

        @staticmethod
        def backward(ctx, c):
            x, *factors = ctx.saved_tensors
            gradients: list[MaybeTensor] = [None] * (1 + MAX_FACTORS)
            if c is not None:
                if ctx.needs_input_grad[1]:
                    gradients[0] = product(x, [*factors, c], ctx.plan, ctx.derivative + 1, ctx.kinds + ctx.result, "x")
                for n, kind in enumerate(ctx.kinds):
                    if ctx.needs_input_grad[n + 2]:
                        kinds = ctx.kinds[:n] + ctx.result + ctx.kinds[n + 1 :]
                        with_c = [*factors[:n], c, *factors[n + 1 :]]
                        gradients[n + 1] = product(x, with_c, ctx.plan, ctx.derivative, kinds, kind)
            return None, *gradients, None, None

        @staticmethod
        @jvp_rule
        def jvp(ctx, _, t, *moving):
            x, *factors = ctx.saved_tensors
            k, terms = ctx.derivative, []
            if t is not None:
                terms.append(product(x, [*factors, t], ctx.plan, k + 1, ctx.kinds + "x", ctx.result))
            for n in range(len(factors)):
                if moving[n] is not None:
                    along = [*factors[:n], moving[n], *factors[n + 1 :]]
                    terms.append(product(x, along, ctx.plan, k, ctx.kinds, ctx.result))
            return _sum(terms)

    return Product


def _columns(plan: str, kind: str) -> int:
    return S2ActivationPlan.parse(plan).dims["xz".index(kind)]


def _check(op: str, x: Tensor, factors: Sequence[MaybeTensor], plan: str, kinds: str) -> None:
    """What csrc/s2_activation/op.h checks, for tensors without data."""

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::{op}: {name}: expected {expected}, got {got}")

    require(x.dtype in _DTYPES, "x", "dtype float32, float64, float16 or bfloat16", x.dtype)
    columns = _columns(plan, "x")
    require(x.dim() == 2, "x", f"2 dimensions [rows, {columns}]", f"shape {list(x.shape)}")
    present = list(itertools.takewhile(lambda f: f is not None, factors))
    letters = kinds[1:].replace(">", "", 1)
    fits = len(kinds) == len(present) + 3 and kinds[-2] == ">" and not set(letters) - {"x", "z"}
    fits = fits and kinds[0] in "01234" and all(f is None for f in factors[len(present) :])
    order = f"the order of the derivative, 0 to {MAX_DERIVATIVE}"
    require(fits, "kinds", f"{order}, x or z for each of {len(present)} factors, '>', and x or z", f"'{kinds}'")
    for n, (t, kind) in enumerate(zip((x, *present), "x" + letters, strict=False)):
        name, shape = f"v{n}" if n else "x", [x.shape[0], _columns(plan, kind)]
        require(t.dim() == 2, name, f"shape {shape}", list(t.shape))
        require(t.shape[0] == shape[0], name, f"shape {shape}", list(t.shape))
        require(t.shape[1] == shape[1], name, f"shape {shape}", list(t.shape))
        require(t.dtype == x.dtype, name, f"dtype {x.dtype} as x has", t.dtype)
        require(t.device == x.device, name, f"device {x.device} as x has", t.device)


def _fake_forward(x, plan):
    _check("s2_activation", x, (), plan, "0>z")
    return x.new_empty(x.shape[0], _columns(plan, "z"))


def _fake_product(x, v1, v2, v3, v4, plan, kinds):
    _check("s2_activation_product", x, (v1, v2, v3, v4), plan, kinds)
    return x.new_empty(x.shape[0], _columns(plan, kinds[-1]))


def _vmap(op):
    def rule(info, in_dims, *args):
        tensors = [a for a in args if a is None or isinstance(a, Tensor)]
        rest = args[len(tensors) :]
        result = op(*merged_rows(tensors, in_dims, info.batch_size), *rest)
        rows = args[0].shape[1 if in_dims[0] == 0 else 0]
        return result.unflatten(0, (info.batch_size, rows)), 0

    return rule


def register_derivatives(namespace: str) -> torch.library.Library:
    """Autograd, fake kernels, vmap and autocast of both ops of ``namespace``, by ops of it alone.

    They exist already, and are there as long as what this returns.
    """
    ops, library = getattr(torch.ops, namespace), torch.library.Library(namespace, "IMPL")
    forward = forward_function(
        1,
        (0, 0),
        lambda v, g, rest, needed: [_product(ops, v[0], [g], rest[0], 1, "z", "x") if needed[0] else None],
        lambda v, t, rest: _product(ops, v[0], t, rest[0], 1, "x", "z"),
    )
    for op, function, fake in (
        (ops.s2_activation.default, forward, _fake_forward),
        (ops.s2_activation_product.default, _product_function(ops), _fake_product),
    ):
        register(library, op, function, fake, _vmap(op))
    return library


_LIBRARY = register_derivatives("eqk")


def dispatched_s2_activation(x: Tensor, plan: str, times: Sequence[Tensor] = ()) -> Tensor:
    """A f(S x) times S of each signal of ``times``, on the backend that is chosen."""
    backend = dispatch.choose("s2_activation", x.device)
    if backend in ("reference", "torch"):
        return reference.s2_activation(x, plan, times)
    ops = torch.ops.eqk_triton if backend == "triton" else torch.ops.eqk
    if times:
        return _product(ops, x, times, plan, 0, "x" * len(times), "z")
    return ops.s2_activation(x, plan)


@dispatch._cached_constant
def _plan(lmax_in, lmax_out, channels, function, fields, res, quadrature, normalization, mmax, order, rescale) -> str:
    if res is None:
        power, widest = POWERS.get(function, 1) + fields - 1, lmax_in + lmax_out if mmax is None else mmax
        rings, _ = exact_resolution(power * lmax_in + lmax_out, quadrature)
        res = rings, power * min(lmax_in, widest) + min(lmax_out, widest) + 1
    args = lmax_in, lmax_out, channels, function, res, quadrature, normalization
    return str(S2ActivationPlan.normalized(*args, mmax=mmax, order=order, rescale=rescale))


def s2_activation(
    x: Tensor,
    function: str,
    lmax_out: int | None = None,
    *,
    times: Sequence[Tensor] = (),
    res: Resolution | None = None,
    quadrature: str = "gausslegendre",
    normalization: str = "component",
    mmax: int | None = None,
    order: str = "l_primary",
    rescale: bool = False,
) -> Tensor:
    """A function of each value of signals on the sphere, projected to harmonics again.

    To a grid, the function, and back in one pass; the grid is in no memory, and is made again in the backward pass
    (Cohen et al. 2018, arXiv:1801.10130, for the idea; e3nn's S2Activation for the factors). Equivariant but for what
    degrees above those that the grid is exact for alias to: a polynomial of degree n in signals of degree lmax has
    degrees up to n lmax, and the grid that ``res`` is by default is exact for it; other functions have all degrees.
    ``eqk.exact_resolution(d)`` is the grid that is exact to degree d.

    Args:
        x: [..., components, channels], components in the order l^2 + l + m.
        function: ``"silu"``, ``"tanh"``, ``"sigmoid"``, ``"gelu"`` (exact), ``"relu"``, ``"abs"``, ``"softplus"``,
            ``"ssp"`` (softplus less log(2)); or of polynomials ``"identity"``, ``"square"``, ``"cube"``, ``"quartic"``.
        lmax_out: largest degree of the result; that of x by default.
        times: up to 4 signals of the shape of x, whose values multiply those of the function: ``"silu"`` times one is
            a SwiGLU on the sphere, ``"identity"`` times n the product of n + 1 signals with one transform back.
        res: rings and angles, or (res_beta, res_alpha); by default the smallest that is exact for the polynomial, or
            for the linear part of what is none. More of them alias less.
        quadrature: ``"gausslegendre"``, or ``"soft"`` for e3nn's rings.
        normalization: as for :func:`eqk.to_s2grid`; ``"component"`` keeps signals of unit variance.
        mmax: components are those of ``|m| <= mmax``, for x, ``times`` and the result; all by default.
        order: of components, ``"l_primary"``, by degree, m ascending; or ``"m_primary"``, first those of m = 0 by
            degree, then for m = 1, 2, ... those of m and then those of -m, as eSCN's linear layers have them.
        rescale: whether degrees l > mmax have a factor sqrt((2 l + 1) / (2 mmax + 1)) on both ways, for the components
            that they lack (EquiformerV2, Liao et al. 2023, arXiv:2306.12059).

    float32, float64; float16 and bfloat16 compute in float32. Differentiable in reverse and forward mode, under
    torch.func and torch.compile: polynomials of one signal and ``"identity"`` times others without end; others up to
    the fourth order, and times n signals as long as n and the order are 4 at most in sum. The same bits in every run
    and for any number of threads.

    Returns:
        [..., components, channels], those of lmax_out.

    Raises:
        RuntimeError: if x or ``times`` do not fit, or a derivative is asked for that there is none of; or why the
            backend that was asked for (:mod:`eqk.dispatch`) cannot run.
        ValueError: naming the option that does not fit.
        TypeError: if x is no tensor.
    """
    for n, t in enumerate((x, *times)):
        check_dense("s2_activation", f"times[{n - 1}]" if n else "x", t, 2)
    if mmax is not None and (not isinstance(mmax, int) or mmax < 0):
        raise ValueError(f"mmax: expected an order from 0, got {mmax!r}")
    lmax = lmax_argument("s2_activation", "x", x, mmax)
    for n, t in enumerate(times):
        if t.shape != x.shape:
            raise RuntimeError(
                f"eqk.s2_activation: times[{n}]: expected shape {tuple(x.shape)} as x has, got {tuple(t.shape)}"
            )
    lmax_out = lmax if lmax_out is None else lmax_out
    channels = operator.index(x.shape[-1])
    fields = 1 + len(times)
    plan = _plan(lmax, lmax_out, channels, function, fields, res, quadrature, normalization, mmax, order, rescale)
    leading = list(x.shape[:-2])

    def rows(t: Tensor) -> Tensor:
        flat = t.flatten(-2)
        return rows_of(flat, leading) if leading else flat[None]

    out = dispatched_s2_activation(rows(x), plan, [rows(t) for t in times])
    return out.reshape(*leading, count(lmax_out, mmax), channels)


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
