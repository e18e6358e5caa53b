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
from eqk.tensor_product import check_operands, use_triton_on_other_devices

_INDICES = ("src", "dst", "by_dst", "by_src")


def split(rest: Sequence) -> tuple[dict[str, MaybeTensor], int, str]:
    src, dst, num_dst, plan, by_dst, by_src = rest
    return dict(zip(_INDICES, (src, dst, by_dst, by_src), strict=True)), num_dst, plan


def with_orders(args: Sequence, tensors: int) -> tuple[Sequence, Sequence]:
    """So many operands, and the rest with the orders, which the schema lets a caller leave out."""
    return args[:tensors], (*args[tensors:], *[None] * (tensors + 6 - len(args)))


def check_graph(op: str, x: Tensor, rest: Sequence) -> None:
    """What GraphCall in csrc/tensor_product_conv/op.h checks of the graph, for tensors without data."""

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::{op}: {name}: expected {expected}, got {got}")

    indices, num_dst, _ = split(rest)
    require(num_dst >= 0, "num_dst", "at least 0", num_dst)
    for name, index in indices.items():
        if index is None:
            continue
        require(index.dim() == 1, name, "1 dimension", tuple(index.shape))
        edges = indices["src"].shape[0]
        require(index.shape[0] == edges, name, f"shape ({edges},)", tuple(index.shape))
        require(index.dtype in (torch.int32, torch.int64), name, "dtype int32 or int64", index.dtype)
        require(index.device == x.device, name, f"device {x.device} as x has", index.device)


def _check(v: Sequence[MaybeTensor], g: MaybeTensor, t: Sequence[MaybeTensor], rest: Sequence) -> None:
    check_graph("tensor_product_conv", v[0], rest)
    check_operands("tensor_product_conv", v, g, t, _shapes(v, rest))


def _shapes(v: Sequence[MaybeTensor], rest: Sequence) -> tuple[tuple | None, ...]:
    indices, num_dst, text = split(rest)
    plan, edges = Plan.parse(text), indices["src"].shape[0]
    weights = {"none": None, "shared": (plan.weight_numel,), "per_sample": (edges, plan.weight_numel)}[plan.weights]
    return (v[0].shape[0], plan.irreps_in1.dim), (edges, plan.irreps_in2.dim), weights, (num_dst, plan.irreps_out.dim)


def _batch(
    tensors: Sequence[MaybeTensor], rest: Sequence, in_dims: Sequence[int | None], size: int
) -> tuple[list[MaybeTensor], Sequence] | None:
    """One graph of ``size`` parts that no edge connects. Only a loop keeps gradients of shared weights apart."""
    indices, num_dst, text = split(rest)
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
        inside = (index >= 0) & (index < nodes[name])  # else it would be a node of another sample
        merged[name] = torch.where(inside, index + first[:, None], -1).flatten()
    rest = (merged["src"], merged["dst"], num_dst * size, text, merged["by_dst"], merged["by_src"])
    return merged_rows(tensors, in_dims, size), rest


FAMILY = Multilinear("eqk", "tensor_product_conv", 3, 2, _check, _shapes, _batch)
use_triton_on_other_devices(FAMILY)


# What the kernels of a device leave to the ops `by_messages`: gather, the product's kernels, and a sum by indexing,
# which unlike index_add is deterministic on GPUs.


def _by_messages(member: str, wanted: Sequence[bool], slots: Sequence[Sequence[MaybeTensor]], rest: Sequence):
    """A member of the family; ``slots``: (x, y, w, g) and then their tangents, as far as it has them."""
    src, dst, num_dst, text, _, _ = rest
    op = getattr(torch.ops.eqk, f"tensor_product{member}")
    x = slots[0][0]
    wide = torch.promote_types(x.dtype, torch.float32)
    num_src = x.shape[0]
    # Indexing counts negative ones from the end; out of range, it refuses them.
    src, dst = (torch.where(i < 0, n, i.long()) for i, n in ((src, num_src), (dst, num_dst)))

    def gathered(tensors):
        tensors = [None if t is None else t.to(wide) for t in tensors]
        return [t if t is None or n in (1, 2) else t[src if n == 0 else dst] for n, t in enumerate(tensors)]

    def summed(messages, index, nodes):
        zeros = messages.new_zeros(nodes, messages.shape[1])
        return zeros.index_put((index,), messages, accumulate=True).to(x.dtype)

    operands = [t for group in slots for t in gathered(group)]
    if "backward" not in member:
        return summed(op(*operands, text), dst, num_dst)
    results = list(op(*operands, text, wanted))
    for n, (result, want) in enumerate(zip(results, wanted, strict=True)):
        if want and n in (0, 3):
            results[n] = summed(result, src if n == 0 else dst, num_src if n == 0 else num_dst)
        else:
            results[n] = result.to(x.dtype)
    return tuple(results)


def _by_messages_forward(*args):
    v, rest = with_orders(args, 3)
    _check(v, None, (), rest)
    return _by_messages("", (), [v], rest)


def _by_messages_jvp(*args):
    operands, rest = with_orders(args, 6)
    v, t = operands[:3], operands[3:]
    _check(v, None, t, rest)
    return _by_messages("_jvp", (), [v, t], rest)


def _by_messages_backward(*args):
    v, g, (*rest, wanted) = args[:3], args[3], args[4:]
    _check(v, g, (), rest)
    return _by_messages("_backward", wanted, [(*v, g)], rest)


def _by_messages_double_backward(*args):
    v, g, t, (*rest, wanted) = args[:3], args[3], args[4:8], args[8:]
    _check(v, g, t, rest)
    return _by_messages("_double_backward", wanted, [(*v, g), t], rest)


FAMILY.compose(
    "tensor_product_conv_by_messages",
    _by_messages_forward,
    _by_messages_jvp,
    _by_messages_backward,
    _by_messages_double_backward,
)


def checked_plan(op: str, operands: dict[str, MaybeTensor], optional: Sequence[str], plan: Plan | str) -> str:
    """The plan's text, or an error of Python's kind: what is no tensor never reaches the dispatcher."""
    for name, operand in operands.items():
        if not isinstance(operand, Tensor) and not (operand is None and name in optional):
            raise TypeError(f"eqk.{op}: {name}: expected a tensor, got {operand!r}")
        if operand is not None and operand.layout != torch.strided:
            raise RuntimeError(f"eqk.{op}: {name}: expected a dense tensor, got layout {operand.layout}")
    if not isinstance(plan, (str, Plan)):
        raise TypeError(f"eqk.{op}: plan: expected an eqk.Plan or its string, got {plan!r}")
    return plan if isinstance(plan, str) else str(plan)


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
            or why the backend that was asked for (:mod:`eqk.dispatch`) cannot run. On a GPU, where nothing waits for
            the device, an index that is out of range, or out of order in by_dst or by_src, is an assertion there that
            fails, as of torch's own indexing: a later call raises, and the process can use the GPU no more.
        TypeError: naming the operand that is no tensor, or a plan that is neither Plan nor string.
    """
    operands = {"x": x, "y": y, "w": w, "src": src, "dst": dst, "by_dst": by_dst, "by_src": by_src}
    text = checked_plan("tensor_product_conv", operands, ("w", "by_dst", "by_src"), plan)
    backend = dispatch.choose("tensor_product_conv", x.device)
    if backend == "reference":
        return reference.tensor_product_conv(x, y, w, src, dst, num_dst, text)
    ops = torch.ops.eqk_triton if backend == "triton" else torch.ops.eqk
    return ops.tensor_product_conv(x, y, w, src, dst, num_dst, text, by_dst, by_src)
