"""The graph convolution in Triton: ``torch.ops.eqk_triton.tensor_product_conv`` and its family.

The programs are those of the product (:mod:`eqk.triton_kernels.tensor_product`), whose rows are edges that read x at
their sources and cotangents at their destinations: neither is gathered into memory. Results of edges are written as the
product writes them. Of a result of nodes a program owns a node and channels of one segment, and sums over the edges of
the node, in their stable order, in registers: no message is stored, nothing is atomic, and the bits are the same in
every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from eqk.register import MaybeTensor
from eqk.tensor_product_conv import _batch, _check, _shapes, split, with_orders
from eqk.triton_kernels.common import by_node, check_range, count_of, first_of_each, lane_sum, pick
from eqk.triton_kernels.tensor_product import (
    Call,
    add,
    at_rows,
    check_wanted,
    meta,
    own_channels,
    path_sum,
    register_family,
    sections_of_rows,
    where_valid,
    zeros,
)

_OP = "tensor_product_conv"
# Of a lane in one chain of additions, so that no digit of many edges is lost.
_EDGES_OF_PART = tl.constexpr(64)


# The loops call functions alone: Triton walks the body of a loop twice, and a function once.


@triton.jit
def _edges(total, tensors, strides, graph, order, first, last, own, S: tl.constexpr, M: tl.constexpr):
    """``total`` and what the edges at the places from ``first`` on add, as many as a program has rows."""
    place = first + tl.arange(0, M.R)[:, None]
    mask = place < last
    edges = tl.load(order + place, mask=mask, other=0).to(tl.int64)
    at = at_rows(tensors, strides, edges, mask, graph, M)
    terms = ()
    for p in tl.static_range(count_of(S.paths)):
        terms = add(terms, path_sum(own, at, mask, S, p, M))
    if M.shared:
        # Where there is no edge x is zero, and zero times a weight that is infinite is no number.
        terms = where_valid(mask, terms, M.T)
    return add(total, terms)


@triton.jit
def _part(tensors, strides, graph, order, first, last, own, S: tl.constexpr, M: tl.constexpr):
    total = zeros(S.d, M.R, M.C, M.T)
    for n in range(first, last, M.R):
        total = _edges(total, tensors, strides, graph, order, n, last, own, S, M)
    return total


@triton.jit
def _section_of_node(
    tensors, strides, results, graph, order, first, last, block, S: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    own = own_channels(block, S, M)
    d: tl.constexpr = S.d
    total = zeros(d, M.R, M.C, M.T)
    if count_of(S.paths) > 0:
        for begin in range(first, last, M.R * _EDGES_OF_PART):
            end = tl.minimum(begin + M.R * _EDGES_OF_PART, last)
            total = add(total, _part(tensors, strides, graph, order, begin, end, own, S, M))
    to = results[S.slot] + S.view.offset + own * S.view.channel
    for k in tl.static_range(d):
        value = lane_sum(total[k], 0, True)
        if S.reduce:
            value = lane_sum(value, 1, True)
        tl.store(to + k * S.view.component, value.to(to.dtype.element_ty), mask=own < S.extent)


@triton.jit(do_not_specialize=["row_block_begin", "steps", "rows_total"])
def kernel(
    x, y, w, g, tx, ty, tw, tg, gx, gy, gw, out,
    sx, sy, sw, sg, stx, sty, stw, stg, cx, cy, cw, co,
    src, dst, order, first_edge,
    row_block_begin, steps, rows_total,
    TABLE: tl.constexpr, BLOCKS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
    WIDE: tl.constexpr, SHARED: tl.constexpr, OVER_ROWS: tl.constexpr,
    DUAL: tl.constexpr, DX: tl.constexpr, DY: tl.constexpr, DW: tl.constexpr, DG: tl.constexpr,
    NODES: tl.constexpr,
):  # fmt: skip
    """``order``, ``first_edge``: where results are of nodes, the edges in their order and the first of each node."""
    M: tl.constexpr = meta(R, C, T, WIDE, SHARED, OVER_ROWS, DUAL, DX, DY, DW, DG)
    # Programs of the same rows are neighbours, so that what they all read is still in the L2 cache.
    block = tl.program_id(0) % BLOCKS
    row_block = row_block_begin.to(tl.int64) + tl.program_id(0) // BLOCKS
    tensors = (x, y, w, g, tx, ty, tw, tg)
    strides = (sx, sy, sw, sg, stx, sty, stw, stg)
    if NODES:
        results = at_rows((gx, gy, gw, out), (cx, cy, cw, co), row_block, True, (), M)
        first = tl.load(first_edge + row_block)
        last = tl.load(first_edge + row_block + 1)
        for s in tl.static_range(count_of(TABLE.sections)):
            if (block >= pick(TABLE.sections, s).begin) & (block < pick(TABLE.sections, s).end):
                _section_of_node(
                    tensors, strides, results, (src, dst), order, first, last, block, pick(TABLE.sections, s), M
                )  # fmt: skip
    else:
        sections_of_rows(
            tensors, (gx, gy, gw, out), strides, (cx, cy, cw, co), (src, dst),
            row_block, steps, rows_total, block, TABLE, M,
        )  # fmt: skip


# The ops.


def _ordered(name: str, index: Tensor, nodes: int, order: MaybeTensor) -> tuple[Tensor, Tensor]:
    """Edges in the stable order of ``index``, and the first of each node. Assertions on the device check one given."""
    if order is None:
        return by_node(index, nodes)
    check_range(_OP, f"by_{name}", order, index.shape[0])
    node = index[order]
    later = (node[1:] > node[:-1]) | ((node[1:] == node[:-1]) & (order[1:] > order[:-1]))
    torch._assert_async(later.all(), f"eqk::{_OP}: by_{name}: expected the stable order of {name}")
    return order.contiguous(), first_of_each(node, nodes)


def _run(
    op: str,
    v: Sequence[MaybeTensor],
    g: MaybeTensor,
    t: Sequence[MaybeTensor],
    rest: Sequence,
    dual: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _check(v, g, t, rest)
    indices, num_dst, text = split(rest)
    call = Call(op, v, g, t, _shapes(v, rest), text, dual, wanted)
    src, dst = (indices[name].contiguous() for name in ("src", "dst"))
    edges, nodes = src.shape[0], {"src": v[0].shape[0], "dst": num_dst}
    if not edges:
        return [r.zero_() for r in call.results]
    for name, index in (("src", src), ("dst", dst)):
        check_range(_OP, name, index, nodes[name])
    for name, index, slot in (("src", src, 0), ("dst", dst, 3)):
        if slot in call.slots and nodes[name]:
            order, first_edge = _ordered(name, index, nodes[name], indices[f"by_{name}"])
            call.run(kernel, (slot,), nodes[name], (src, dst, order, first_edge), of_nodes=True)
    of_edges = [n for n in call.slots if n in (1, 2)]
    if of_edges:
        call.run(kernel, of_edges, edges, (src, dst, src, src))
    return call.results


def _forward(*args):
    v, rest = with_orders(args, 3)
    return _run(_OP, v, None, (None,) * 4, rest, False, (False, False, False, True))[3]


def _jvp(*args):
    operands, rest = with_orders(args, 6)
    return _run(f"{_OP}_jvp", operands[:3], None, (*operands[3:], None), rest, True, (False, False, False, True))[3]


def _backward(x, y, w, g, *rest):
    *rest, wanted = rest
    check_wanted(f"{_OP}_backward", wanted, 3)
    return tuple(_run(f"{_OP}_backward", (x, y, w), g, (None,) * 4, rest, False, (*wanted, False))[:3])


def _double_backward(x, y, w, g, tx, ty, tw, tg, *rest):
    *rest, wanted = rest
    check_wanted(f"{_OP}_double_backward", wanted, 4)
    return tuple(_run(f"{_OP}_double_backward", (x, y, w), g, (tx, ty, tw, tg), rest, True, wanted))


_LIBRARY, FAMILY = register_family(_OP, (_forward, _jvp, _backward, _double_backward), 3, _check, _shapes, _batch)
