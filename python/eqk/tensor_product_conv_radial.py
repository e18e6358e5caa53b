"""The graph convolution of eqk.tensor_product_conv with the last layer of the radial network inside: w = h a.

``torch.ops.eqk.tensor_product_conv_radial(x, y, h, a, src, dst, num_dst, plan, by_dst, by_src)`` is the op: h
[edges, hidden], a [hidden, weight_numel], all else as for tensor_product_conv. Slots of the family of
:mod:`eqk.register`: x, y, h, a and the cotangent g [num_dst, dim_out].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk.plan import Plan
from eqk.register import MaybeTensor, Multilinear
from eqk.tensor_product import check_operands
from eqk.tensor_product_conv import check_graph, checked_plan, split, tensor_product_conv

_OP = "tensor_product_conv_radial"


def _check(v: Sequence[MaybeTensor], g: MaybeTensor, t: Sequence[MaybeTensor], rest: Sequence) -> None:
    """What RadialCall in csrc/tensor_product_conv/op.h checks, for tensors without data."""
    check_graph(_OP, v[0], rest)
    plan = Plan.parse(split(rest)[2])
    torch._check(plan.weights == "per_sample", lambda: f"eqk::{_OP}: plan: expected per_sample weights")
    weighted = all(i.has_weight for i in plan.instructions)
    torch._check(weighted, lambda: f"eqk::{_OP}: plan: expected a weight in each instruction")
    a = v[3]
    torch._check(a.dim() == 2, lambda: f"eqk::{_OP}: a: expected 2 dimensions, got shape {tuple(a.shape)}")
    check_operands(_OP, v, g, t, _shapes(v, rest), ("x", "y", "h", "a", "g"))


def _shapes(v: Sequence[MaybeTensor], rest: Sequence) -> tuple[tuple, ...]:
    indices, num_dst, text = split(rest)
    plan, edges, hidden = Plan.parse(text), indices["src"].shape[0], v[3].shape[0]
    x, y, out = plan.irreps_in1.dim, plan.irreps_in2.dim, plan.irreps_out.dim
    return (v[0].shape[0], x), (edges, y), (edges, hidden), (hidden, plan.weight_numel), (num_dst, out)


# Only a loop over samples keeps gradients of the matrix apart.
FAMILY = Multilinear("eqk", _OP, 4, None, _check, _shapes, lambda *_: None)


# On devices without a kernel, and for what those of a device leave to the op `by_weights`: the convolution's, with the
# weights in memory.

_OPS = torch.ops.eqk


def _tangent(h: Tensor, a: Tensor, th: MaybeTensor, ta: MaybeTensor) -> MaybeTensor:
    parts = [p @ q for p, q in ((th, a), (h, ta)) if p is not None and q is not None]
    return sum(parts) if parts else None


def _other_devices_forward(*args):
    (x, y, h, a), rest = args[:4], args[4:]
    _check(args[:4], None, (), (*rest, *[None] * (6 - len(rest))))
    return _OPS.tensor_product_conv(x, y, h @ a, *rest)


def _other_devices_jvp(*args):
    (x, y, h, a), (tx, ty, th, ta), rest = args[:4], args[4:8], args[8:]
    _check(args[:4], None, args[4:8], (*rest, *[None] * (6 - len(rest))))
    return _OPS.tensor_product_conv_jvp(x, y, h @ a, tx, ty, _tangent(h, a, th, ta), *rest)


def _other_devices_backward(*args):
    (x, y, h, a), g, (*rest, wanted) = args[:4], args[4], args[5:]
    _check(args[:4], g, (), rest)
    of_w = wanted[2] or wanted[3]
    gx, gy, gw = _OPS.tensor_product_conv_backward(x, y, h @ a, g, *rest, [*wanted[:2], of_w])
    nothing = x.new_empty(0)
    return gx, gy, gw @ a.mT if wanted[2] else nothing, h.mT @ gw if wanted[3] else nothing


def _other_devices_double_backward(*args):
    (x, y, h, a), g, (tx, ty, th, ta, tg), (*rest, wanted) = args[:4], args[4], args[5:10], args[10:]
    _check(args[:4], g, args[5:10], rest)
    of_w, w = wanted[2] or wanted[3], h @ a
    tangents = (tx, ty, _tangent(h, a, th, ta), tg)
    hx, hy, hw, hg = _OPS.tensor_product_conv_double_backward(
        x, y, w, g, *tangents, *rest, [*wanted[:2], of_w, wanted[4]]
    )
    hh = ha = x.new_empty(0)
    if wanted[2]:
        hh = hw @ a.mT
    if wanted[3]:
        ha = h.mT @ hw
    if (wanted[2] and ta is not None) or (wanted[3] and th is not None):
        gw = _OPS.tensor_product_conv_backward(x, y, w, g, *rest, [False, False, True])[2]
        if wanted[2] and ta is not None:
            hh = hh + gw @ ta.mT
        if wanted[3] and th is not None:
            ha = ha + th.mT @ gw
    return hx, hy, hh, ha, hg


FAMILY.on_other_devices(
    _other_devices_forward, _other_devices_jvp, _other_devices_backward, _other_devices_double_backward
)

# What weights, their tangents and gradients may take on CUDA, where gradients are made for one part of the edges after
# the other: parts of some hundred destinations keep a GPU busy.
BYTES_OF_WEIGHTS = 256 << 20


def _is_exact() -> bool:
    return torch.backends.cuda.matmul.fp32_precision != "tf32"  # which every way of setting it changes


for _name, _function in {
    "by_weights": _other_devices_forward,
    "by_weights_backward": _other_devices_backward,
    "by_weights_double_backward": _other_devices_double_backward,
    "is_exact": _is_exact,
    "bytes_of_weights": lambda: BYTES_OF_WEIGHTS,
}.items():
    FAMILY.library.impl(f"tensor_product_conv_radial_{_name}", _function, "CompositeExplicitAutograd")


def tensor_product_conv_radial(
    x: Tensor,
    y: Tensor,
    h: Tensor,
    a: Tensor,
    src: Tensor,
    dst: Tensor,
    num_dst: int,
    plan: Plan | str,
    bias: Tensor | None = None,
    by_dst: Tensor | None = None,
    by_src: Tensor | None = None,
) -> Tensor:
    """:func:`eqk.tensor_product_conv` with weights h a + bias: out[dst[e]] += T(x[src[e]], y[e], h[e] a + bias).

    On the CPU the weights [edges, weight_numel] are made for 64 edges at a time and never stored, nor is their
    gradient: all else is smaller. On GPUs from sm_80 on the forward stores none either, in float32 for what the kernels
    of :func:`eqk.tensor_product_conv` cover; there gradients and their derivatives hold weights and their gradients for
    as many edges at a time as 256 MiB have room for. Forward mode stores weights. The same bits in every run.

    There float32 means float32 (error 2e-7), as long as torch is not allowed less in products of matrices on CUDA:
    after ``torch.set_float32_matmul_precision("high")``, or ``torch.backends.cuda.matmul.fp32_precision = "tf32"``,
    weights are products of sums of two bfloat16 numbers (each off by 1.1e-5 at most), which is faster. Read whenever
    the op runs, compiled or not; a weight or feature that is not finite makes NaN.

    Args:
        x: [num_src, dim1], columns ``plan.irreps_in1`` in ``plan.layout_in1``.
        y: [edges, dim2].
        h: [edges, hidden]: the radial network up to its last layer, the activation included.
        a: [hidden, weight_numel]: the last layer's matrix, with whatever factor its network puts on it.
        src, dst: [edges], int32 or int64.
        num_dst: number of nodes that edges lead to.
        plan: an :class:`eqk.Plan` or its string, with per-sample weights.
        bias: [weight_numel], or None.
        by_dst, by_src: as for :func:`eqk.tensor_product_conv`.

    All of one dtype (float32, float64; float16 and bfloat16 accumulate in float32) on one device; differentiable to any
    order, in reverse and forward mode, under torch.func and torch.compile. A plan with instructions that have no weight
    is computed with the weights in memory.

    Returns:
        [num_dst, dim_out].

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit, or the index that is out of range,
            or a plan whose weights are not per sample; or why the backend that was asked for cannot run.
        TypeError: naming the operand that is no tensor, or a plan that is neither Plan nor string.
    """
    operands = {"x": x, "y": y, "h": h, "a": a, "src": src, "dst": dst}
    operands |= {"bias": bias, "by_dst": by_dst, "by_src": by_src}
    text = checked_plan(_OP, operands, ("bias", "by_dst", "by_src"), plan)
    # Read, not parsed, so that torch.compile can follow.
    head, _, instructions = text.partition("{")
    if not head.endswith(" per_sample "):
        raise RuntimeError(f"eqk.{_OP}: plan: expected per_sample weights, got {Plan.parse(text).weights}")
    if bias is not None:
        if a.dim() == 2 and bias.shape != a.shape[1:]:
            raise RuntimeError(f"eqk.{_OP}: bias: expected shape {tuple(a.shape[1:])}, got {tuple(bias.shape)}")
        h, a = torch.cat([h, h.new_ones(h.shape[0], 1)], 1), torch.cat([a, bias[None]])
    if " - " in instructions:
        return tensor_product_conv(x, y, h @ a, src, dst, num_dst, text, by_dst, by_src)
    if dispatch.choose(_OP, x.device) == "reference":
        return reference.tensor_product_conv(x, y, h @ a, src, dst, num_dst, text)
    return torch.ops.eqk.tensor_product_conv_radial(x, y, h, a, src, dst, num_dst, text, by_dst, by_src)
