"""The graph convolution out[dst] += T(x[src], y[edge], w[edge]) with the tensor product T of a plan.

``torch.ops.eqk.tensor_product_conv(x, y, w, src, dst, num_dst, plan, by_dst, by_src)`` is the op: x [num_src, dim1],
y [edges, dim2], w [edges, weight_numel], [weight_numel] or None as the plan says, src and dst [edges] of int32 or
int64. by_dst and by_src, each an optional [edges], are the edges in the stable order of dst and of src. Slots of the
family of :mod:`eqk.register`: x, y, w and the cotangent g [num_dst, dim_out].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk.plan import Plan
from eqk.register import MaybeTensor, Multilinear, merged_rows
from eqk.tensor_product import check_operands, tensor_product

_INDICES = ("src", "dst", "by_dst", "by_src")


def _split(rest: Sequence) -> tuple[dict[str, MaybeTensor], int, str]:
    src, dst, num_dst, plan, by_dst, by_src = rest
    return dict(zip(_INDICES, (src, dst, by_dst, by_src), strict=True)), num_dst, plan


def _check(v: Sequence[MaybeTensor], g: MaybeTensor, t: Sequence[MaybeTensor], rest: Sequence) -> None:
    """What csrc/tensor_product_conv/op.h checks, for tensors without data."""
    indices, _, _ = _split(rest)
    edges = indices["src"].shape[:1]
    for name, index in indices.items():
        if index is None:
            continue
        for ok, expected, got in (
            (index.dim() == 1, "1 dimension", tuple(index.shape)),
            (index.dtype in (torch.int32, torch.int64), "dtype int32 or int64", index.dtype),
            (index.shape[:1] == edges, f"shape {tuple(edges)}", tuple(index.shape)),
            (index.device == v[0].device, f"device {v[0].device} as x has", index.device),
        ):
            torch._check(ok, lambda n=name, e=expected, g=got: f"eqk::tensor_product_conv: {n}: expected {e}, got {g}")
    check_operands("tensor_product_conv", v, g, t, _shapes(v, rest))


def _shapes(v: Sequence[MaybeTensor], rest: Sequence) -> tuple[tuple | None, ...]:
    indices, num_dst, text = _split(rest)
    plan, edges = Plan.parse(text), indices["src"].shape[0]
    weights = {"none": None, "shared": (plan.weight_numel,), "per_sample": (edges, plan.weight_numel)}[plan.weights]
    return (v[0].shape[0], plan.irreps_in1.dim), (edges, plan.irreps_in2.dim), weights, (num_dst, plan.irreps_out.dim)


def _batch(
    tensors: Sequence[MaybeTensor], rest: Sequence, in_dims: Sequence[int | None], size: int
) -> tuple[list[MaybeTensor], Sequence] | None:
    """One graph of ``size`` parts that no edge connects. Only a loop keeps gradients of shared weights apart."""
    indices, num_dst, text = _split(rest)
    if Plan.parse(text).weights == "shared":
        return None
    src_dim, dst_dim, _, _, by_dst_dim, by_src_dim = in_dims[len(tensors) :][:6]
    dims = dict(zip(_INDICES, (src_dim, dst_dim, by_dst_dim, by_src_dim), strict=True))
    edges = indices["src"].shape[1 if src_dim == 0 else 0]
    x_rows = tensors[0].shape[1 if in_dims[0] == 0 else 0]
    nodes = {"src": x_rows, "dst": num_dst, "by_dst": edges, "by_src": edges}
    merged = {}
    for name, index in indices.items():
        if index is None:
            merged[name] = None
            continue
        index = index.unsqueeze(0).expand(size, -1) if dims[name] is None else index.movedim(dims[name], 0)
        first = torch.arange(size, device=index.device) * nodes[name]
        merged[name] = (index + first[:, None]).flatten()
    rest = (merged["src"], merged["dst"], num_dst * size, text, merged["by_dst"], merged["by_src"])
    return merged_rows(tensors, in_dims, size), rest


FAMILY = Multilinear("eqk", "tensor_product_conv", 3, 2, _check, _shapes, _batch)


def _by_messages(x: Tensor, y: Tensor, w: MaybeTensor, src: Tensor, dst: Tensor, num_dst: int, plan: str) -> Tensor:
    """Gather, product and sum, on devices without a kernel. Indexing, unlike index_add, is deterministic on GPUs."""
    messages = tensor_product(x[src], y, w, plan)
    return messages.new_zeros(num_dst, messages.shape[1]).index_put((dst,), messages, accumulate=True)


def tensor_product_conv(
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    src: Tensor,
    dst: Tensor,
    num_dst: int,
    plan: Plan | str,
    by_dst: Tensor | None = None,
    by_src: Tensor | None = None,
) -> Tensor:
    """Sums the tensor products of a plan over the edges into each node: out[dst[e]] += T(x[src[e]], y[e], w[e]).

    The messages [edges, dim_out] are never stored. The graph may be bipartite, its edges in any order; a node without
    edges has zeros. The same bits in every run and for any number of threads.

    Args:
        x: [num_src, dim1], columns ``plan.irreps_in1`` in ``plan.layout_in1``.
        y: [edges, dim2].
        w: [edges, weight_numel] for per-sample weights, [weight_numel] for shared ones, None for none; e3nn's order.
        src, dst: [edges], int32 or int64: the node that an edge comes from, a row of x, and the one that it leads to.
        num_dst: number of nodes that edges lead to.
        plan: an :class:`eqk.Plan` or its string.
        by_dst, by_src: [edges], the edges in the stable order of dst and of src (``torch.argsort(dst, stable=True)``),
            for graphs that are used more than once; found in each call where they are not given and dst is not sorted.

    x, y and w of one dtype (float32, float64; float16 and bfloat16 accumulate in float32), all tensors on one device;
    under autocast mixed dtypes are promoted. Differentiable to any order, in reverse and forward mode, under torch.func
    and torch.compile.

    Returns:
        [num_dst, dim_out].

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit, or the index that is out of range;
            or why the backend that was asked for (:mod:`eqk.dispatch`) cannot run.
        TypeError: naming the operand that is no tensor, or a plan that is neither Plan nor string.
    """
    operands = {"x": x, "y": y, "w": w, "src": src, "dst": dst, "by_dst": by_dst, "by_src": by_src}
    for name, operand in operands.items():
        if not isinstance(operand, Tensor) and not (operand is None and name in ("w", "by_dst", "by_src")):
            raise TypeError(f"eqk.tensor_product_conv: {name}: expected a tensor, got {operand!r}")
        if operand is not None and operand.layout != torch.strided:
            raise RuntimeError(f"eqk.tensor_product_conv: {name}: expected a dense tensor, got layout {operand.layout}")
    if not isinstance(plan, (str, Plan)):
        raise TypeError(f"eqk.tensor_product_conv: plan: expected an eqk.Plan or its string, got {plan!r}")
    text = plan if isinstance(plan, str) else str(plan)
    backend = dispatch.choose("tensor_product_conv", x.device)
    if backend == "reference":
        return reference.tensor_product_conv(x, y, w, src, dst, num_dst, text)
    if backend == "torch":
        return _by_messages(x, y, w, src, dst, num_dst, text)
    return torch.ops.eqk.tensor_product_conv(x, y, w, src, dst, num_dst, text, by_dst, by_src)
