"""The sparse Clebsch-Gordan tensor product.

``torch.ops.eqk.tensor_product(x, y, w, plan)`` is the op: x [rows, dim1], y [rows, dim2], w [rows, weight_numel],
[weight_numel] or None as the plan says, one dtype and device, any row stride; ``str(plan)`` its description. Slots of
the family of :mod:`eqk.register`: x, y, w and the cotangent g [rows, dim_out].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk.plan import Plan
from eqk.register import MaybeTensor, Multilinear, merged_rows

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_operands(
    op: str,
    v: Sequence[MaybeTensor],
    g: MaybeTensor,
    t: Sequence[MaybeTensor],
    shapes: Sequence[tuple | None],
    names: Sequence[str] = ("x", "y", "w", "g"),
) -> None:
    """What FamilyCall in csrc/tensor_product/op.h checks, for tensors without data; t: tangents, if there are any.

    One tensor without data brings the others here, whatever their device.
    """

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::{op}: {name}: expected {expected}, got {got}")

    x = v[0]
    require(x.dtype in _DTYPES, "x", "dtype float32, float64, float16 or bfloat16", x.dtype)
    require(x.dim() == 2, "x", "2 dimensions", f"shape {tuple(x.shape)}")
    named = [*zip(names, (*v, g), shapes, strict=True)]
    named += [(f"tangent of {name}", *rest) for name, *rest in zip(names, t, shapes, strict=False)]
    for name, tensor, shape in named:
        if tensor is None:
            continue
        require(tensor.device == x.device, name, f"device {x.device} as x has", tensor.device)
        require(tensor.layout == torch.strided, name, "a dense tensor", f"layout {tensor.layout}")
        if shape is None:
            if name == "w":
                require(tensor.numel() == 0, name, "none, since no instruction is weighted", tuple(tensor.shape))
            continue
        require(tensor.dim() == len(shape), name, f"shape {shape}", tuple(tensor.shape))
        for have, expected in zip(tensor.shape, shape, strict=True):
            require(have == expected, name, f"shape {shape}", tuple(tensor.shape))
        require(tensor.dtype == x.dtype, name, f"dtype {x.dtype}", tensor.dtype)


def _check(v: Sequence[MaybeTensor], g: MaybeTensor, t: Sequence[MaybeTensor], rest: Sequence[str]) -> None:
    check_operands("tensor_product", v, g, t, _shapes(v, rest))


def _shapes(v: Sequence[MaybeTensor], rest: Sequence[str]) -> tuple[tuple | None, ...]:
    plan = Plan.parse(rest[0])
    rows = v[0].shape[0]
    weights = {"none": None, "shared": (plan.weight_numel,), "per_sample": (rows, plan.weight_numel)}[plan.weights]
    return (rows, plan.irreps_in1.dim), (rows, plan.irreps_in2.dim), weights, (rows, plan.irreps_out.dim)


def _batch(
    tensors: Sequence[MaybeTensor], rest: Sequence[str], in_dims: Sequence[int | None], size: int
) -> tuple[list[MaybeTensor], Sequence[str]] | None:
    """Rows are independent but for shared weights: only a loop keeps theirs apart."""
    if Plan.parse(rest[0]).weights == "shared":
        return None
    return merged_rows(tensors, in_dims, size), rest


FAMILY = Multilinear("eqk", "tensor_product", 3, 2, _check, _shapes, _batch)


def use_triton_on_other_devices(family: Multilinear) -> None:
    """On those without a compiled kernel, such as AMD's GPUs: for ops whose torch operations call this one."""

    def member(suffix: str):
        op = family.forward.name().removeprefix("eqk::") + suffix

        def by_triton(*args):
            reason = dispatch.can_run_triton(op, args[0].device)
            if reason is not None:
                raise RuntimeError(f"eqk::{op}: x: no kernel runs on {args[0].device}; triton: {reason}")
            return getattr(torch.ops.eqk_triton, op)(*args)

        return by_triton

    family.on_other_devices(*map(member, ("", "_jvp", "_backward", "_double_backward")))


use_triton_on_other_devices(FAMILY)


def _leading_shape(shapes: list[list[int]]) -> list[int]:
    """torch.broadcast_shapes, which TorchScript does not know."""
    rank = 0
    for shape in shapes:
        rank = max(rank, len(shape))
    leading = [1] * rank
    for shape in shapes:
        for d in range(len(shape)):
            at = rank - len(shape) + d
            if leading[at] == 1:
                leading[at] = shape[d]
            elif shape[d] != 1 and shape[d] != leading[at]:
                raise RuntimeError(
                    "eqk.tensor_product: x, y, w: expected leading dimensions that broadcast against one another, "
                    f"got {shapes}"
                )
    return leading


def rows_of(t: Tensor, leading: list[int]) -> Tensor:
    """t [..., columns] broadcast to [rows, columns]; a single leading dimension needs no copy."""
    t = t.expand(leading + [t.shape[-1]])  # noqa: RUF005 TorchScript has no [*a, b]
    if len(leading) == 1:
        return t
    rows = 1
    for n in leading:
        rows *= n
    return t.reshape(rows, t.shape[-1])


def _broadcast(x: Tensor, y: Tensor, w: Tensor | None, shared: bool) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
    """The operands as rows, and the leading dimensions of the result."""
    shapes = [list(x.shape[:-1]), list(y.shape[:-1])]
    if w is not None and not shared:
        shapes.append(list(w.shape[:-1]))
    leading = _leading_shape(shapes)
    if w is not None and not shared:
        w = rows_of(w, leading)
    return rows_of(x, leading), rows_of(y, leading), w, leading


_OPS = {
    "triton": lambda *args: torch.ops.eqk_triton.tensor_product(*args),
    "reference": reference.tensor_product,
}


def _dispatched(x: Tensor, y: Tensor, w: Tensor | None, plan: str) -> Tensor:
    op = _OPS.get(dispatch.choose("tensor_product", x.device))
    return torch.ops.eqk.tensor_product(x, y, w, plan) if op is None else op(x, y, w, plan)


def broadcast_product(x: Tensor, y: Tensor, w: Tensor | None, shared: bool, plan: str) -> Tensor:
    """:func:`tensor_product` in what TorchScript compiles; ``shared``: whether the plan's weights are."""
    x, y, w, leading = _broadcast(x, y, w, shared)
    if torch.jit.is_scripting():
        out = torch.ops.eqk.tensor_product(x, y, w, plan)
    else:
        out = _dispatched(x, y, w, plan)
    return out if len(leading) == 1 else out.reshape(leading + [out.shape[-1]])  # noqa: RUF005


@dispatch._constant_when_traced
def _shares_weights(plan: str) -> bool:
    try:
        return Plan.parse(plan).weights != "per_sample"
    except ValueError:  # which the op raises in its own words
        return True


def tensor_product(x: Tensor, y: Tensor, w: Tensor | None, plan: Plan | str) -> Tensor:
    """The tensor product of :class:`eqk.Plan`, with broadcast leading dimensions.

    Args:
        x: [..., dim1], columns ``plan.irreps_in1`` in ``plan.layout_in1``.
        y: [..., dim2].
        w: [..., weight_numel] for per-sample weights, [weight_numel] for shared ones, None for none. Order as in e3nn.
        plan: an :class:`eqk.Plan` or its string.

    All of one dtype (float32, float64; float16 and bfloat16 accumulate in float32) and device; under autocast mixed
    dtypes are promoted. Differentiable to any order, in reverse and forward mode, under torch.func and torch.compile.

    Returns:
        [..., dim_out], the leading dimensions of the operands broadcast against one another.

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit the plan; or why the backend that
            was asked for (:mod:`eqk.dispatch`) cannot run.
        TypeError: naming the operand that is no tensor, or a plan that is neither Plan nor string.
    """
    for name, operand in (("x", x), ("y", y), ("w", w)):
        if not isinstance(operand, Tensor) and not (operand is None and name == "w"):
            raise TypeError(f"eqk.tensor_product: {name}: expected a tensor, got {operand!r}")
        if operand is not None and operand.layout != torch.strided:
            raise RuntimeError(f"eqk.tensor_product: {name}: expected a dense tensor, got layout {operand.layout}")
        if operand is not None and operand.dim() == 0:
            raise RuntimeError(f"eqk.tensor_product: {name}: expected at least 1 dimension, got a scalar")
    if not isinstance(plan, (str, Plan)):
        raise TypeError(f"eqk.tensor_product: plan: expected an eqk.Plan or its string, got {plan!r}")
    text = plan if isinstance(plan, str) else str(plan)
    return broadcast_product(x, y, w, _shares_weights(text), text)
