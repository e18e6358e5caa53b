"""The graph convolution by gather, the dense product and a sum over edges."""

from __future__ import annotations

from torch import Tensor

from eqk.plan import Plan
from eqk.reference.tensor_product import tensor_product


def tensor_product_conv(
    x: Tensor, y: Tensor, w: Tensor | None, src: Tensor, dst: Tensor, num_dst: int, plan: Plan | str
) -> Tensor:
    """:func:`eqk.tensor_product_conv`, dense: x [num_src, dim1], y [edges, dim2] -> [num_dst, dim_out]."""
    messages = tensor_product(x[src], y, w, plan)
    return messages.new_zeros(num_dst, messages.shape[1]).index_add(0, dst, messages)
