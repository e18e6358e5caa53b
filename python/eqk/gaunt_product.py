"""Products of signals on the sphere, without a grid in memory and without FFT.

``torch.ops.eqk.gaunt_product(x, y, a, b, c, plan)`` is the op: x [rows, channels1 (lmax1 + 1)^2], y, and the weights
a, b, c [rows, rank (lmax + 1) channels] of x, y and the result, or None for ones; ``str(plan)`` of
:class:`eqk.GauntPlan`. Slots of the family of :mod:`eqk.register`: x, y, a, b, c and the cotangent g [rows, dim_out].

The product of two factors f g is symmetric under exchange of f, g and the cotangent h in int f g h, and
int h {f, g} is cyclic, so that each gradient is a product again: int {g, h} f for x, int {h, f} g for y.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from eqk import dispatch, gaunt_grid, reference
from eqk._signals import broadcast_leading, channels_of, check_dense, lmax_argument
from eqk.gaunt_plan import GauntPlan
from eqk.register import MaybeTensor, Multilinear, merged_rows
from eqk.tensor_product import check_operands, rows_of

_NAMES = ("x", "y", "a", "b", "c", "g")


def _shapes(v: Sequence[MaybeTensor], rest: Sequence[str]) -> tuple[tuple | None, ...]:
    plan, rows = GauntPlan.parse(rest[0]), v[0].shape[0]
    weights = zip(v[2:5], plan.weight_numels, strict=True)
    of_weights = [None if w is None else (rows, numel) for w, numel in weights]
    return (rows, plan.dims[0]), (rows, plan.dims[1]), *of_weights, (rows, plan.dims[2])


def _check(v: Sequence[MaybeTensor], g: MaybeTensor, t: Sequence[MaybeTensor], rest: Sequence[str]) -> None:
    check_operands("gaunt_product", v, g, t, _shapes(v, rest), _NAMES)


def _batch(
    tensors: Sequence[MaybeTensor], rest: Sequence[str], in_dims: Sequence[int | None], size: int
) -> tuple[list[MaybeTensor], Sequence[str]]:
    return merged_rows(tensors, in_dims, size), rest


FAMILY = Multilinear("eqk", "gaunt_product", 5, None, _check, _shapes, _batch)

# On devices without a kernel, and for what the kernels of a device leave to the ops `by_grid`.

_OUTPUT = (False,) * 5 + (True,)


def _other_devices_forward(*args):
    v, rest = args[:5], args[5:]
    _check(v, None, (), rest)
    return gaunt_grid.gradients((*v, None), None, *rest, _OUTPUT)[5]


def _other_devices_jvp(*args):
    v, t, rest = args[:5], args[5:10], args[10:]
    _check(v, None, t, rest)
    return gaunt_grid.gradients((*v, None), (*t, None), *rest, _OUTPUT)[5]


def _other_devices_backward(*args):
    v, g, (*rest, wanted) = args[:5], args[5], args[6:]
    _check(v, g, (), rest)
    return tuple(gaunt_grid.gradients((*v, g), None, *rest, (*wanted, False))[:5])


def _other_devices_double_backward(*args):
    v, g, t, (*rest, wanted) = args[:5], args[5], args[6:12], args[12:]
    _check(v, g, t, rest)
    return tuple(gaunt_grid.gradients((*v, g), t, *rest, wanted))


_OTHER_DEVICES = (
    _other_devices_forward,
    _other_devices_jvp,
    _other_devices_backward,
    _other_devices_double_backward,
)
FAMILY.on_other_devices(*_OTHER_DEVICES)
FAMILY.compose("gaunt_product_by_grid", *_OTHER_DEVICES)


def gaunt_product(
    x: Tensor,
    y: Tensor,
    lmax_out: int | None = None,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    c: Tensor | None = None,
    kind: str = "even",
    normalization: str = "integral",
) -> Tensor:
    """The product of two signals on the sphere, their Poisson bracket, or both, up to a degree.

    For f = sum of x_lm Y_lm and g likewise, with e3nn's real harmonics, orthonormal ('integral'), z_lm is the component
    of ``"even"``: f g; ``"odd"``: the bracket {f, g} = r . (grad f x grad g); ``"all"``: their sum. In terms of Wigner
    3j symbols each path (l1, l2, l3) with an even (odd) sum of degrees occurs once, times
    :func:`eqk.gaunt_plan.gaunt_coefficient`. (Xie et al. 2025, arXiv:2506.13523, for the product on a grid;
    Bochkarev et al. 2026, arXiv:2605.15073, for the bracket.) Exact: (lmax1 + lmax2 + lmax_out) // 2 + 1 rings of
    Gauss and Legendre, and on each a product of trigonometric polynomials. No grid is stored.

    Weights factorise, with one term for each r of a rank: sum over r of c[r, l3] P_l3[(a[r] x) (b[r] y)].

    Args:
        x: [..., (lmax1 + 1)^2, channels], components in the order l^2 + l + m.
        y: [..., (lmax2 + 1)^2, channels], or with 1 channel for all those of x (as x may have for those of y).
        lmax_out: largest degree of the result; that of x by default.
        a, b, c: [..., rank, lmax1 + 1, channels], [..., rank, lmax2 + 1, channels],
            [..., rank, lmax_out + 1, channels], or with 1 channel or rank 1; ones where None.
        kind: ``"even"``, ``"odd"`` or ``"all"``.
        normalization: ``"integral"`` or ``"component"``, as in :meth:`eqk.GauntPlan.normalized`.

    All of one dtype (float32, float64; float16 and bfloat16 accumulate in float32) and device; leading dimensions are
    broadcast; under autocast mixed dtypes are promoted. Differentiable to any order, in reverse and forward mode, under
    torch.func and torch.compile. The same bits in every run and for any number of threads.

    Returns:
        [..., (lmax_out + 1)^2, channels]

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit; or why the backend that was asked
            for (:mod:`eqk.dispatch`) cannot run.
        ValueError: naming the option that does not fit.
        TypeError: naming the operand that is no tensor.
    """
    for name, operand in (("x", x), ("y", y), ("a", a), ("b", b), ("c", c)):
        if operand is not None or name in "xy":
            check_dense("gaunt_product", name, operand, 3 if name in "abc" else 2)
    lmaxes = [lmax_argument("gaunt_product", name, t) for name, t in (("x", x), ("y", y))]
    lmaxes.append(lmaxes[0] if lmax_out is None else lmax_out)
    channels1, channels2, channels = channels_of("gaunt_product", x, y)
    rank = 1
    for w in (a, b, c):
        if w is not None and w.shape[-3] != 1:
            rank = operator.index(w.shape[-3])
    if rank == 0:
        raise RuntimeError("eqk.gaunt_product: a, b, c: expected a rank of at least 1, got 0")
    plan = _plan(*lmaxes, channels1, channels2, kind, normalization, rank)
    full = [
        None if w is None else _full(name, w, (rank, lmax + 1, channels))
        for name, w, lmax in zip("abc", (a, b, c), lmaxes, strict=True)
    ]
    operands = [x.flatten(-2), y.flatten(-2), *full]
    shapes = [t.shape[:-1] for t in operands if t is not None]
    leading = broadcast_leading("gaunt_product", "x, y, a, b, c", shapes)
    shape = (*leading, (lmaxes[2] + 1) ** 2, channels)
    if not leading:
        operands, leading = [None if t is None else t[None] for t in operands], [1]
    out = dispatched_gaunt_product(*[None if t is None else rows_of(t, leading) for t in operands], plan)
    return out.reshape(shape)


@dispatch._cached_constant
def _plan(lmax1, lmax2, lmax_out, channels1, channels2, kind, normalization, rank) -> str:
    return str(GauntPlan.normalized(lmax1, lmax2, lmax_out, channels1, channels2, kind, normalization, rank=rank))


def _full(name: str, w: Tensor, wanted: tuple[int, int, int]) -> Tensor:
    """[..., rank, degree, channel] with 1 for any rank or number of channels -> [..., rank * degree * channel]."""
    have = tuple(w.shape[-3:])
    if have[1] != wanted[1] or have[0] not in (1, wanted[0]) or have[2] not in (1, wanted[2]):
        raise RuntimeError(
            f"eqk.gaunt_product: {name}: expected shape [..., {wanted}], or 1 for rank or channels, got "
            f"{tuple(w.shape)}"
        )
    return w.expand(*w.shape[:-3], *wanted).flatten(-3)


def dispatched_gaunt_product(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None, plan: str
) -> Tensor:
    """The op, on the backend that is chosen."""
    if dispatch.choose("gaunt_product", x.device) == "reference":
        return reference.gaunt_product(x, y, a, b, c, plan)
    return torch.ops.eqk.gaunt_product(x, y, a, b, c, plan)
