"""Ops on edges of a graph as sums of tiles of them, so that what lies between nodes and nodes is never whole in memory.

What belongs to nodes and edges is cut, and what is shared, such as parameters, is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqk import dispatch
from eqk.register import MaybeTensor

NODE, EDGE, SHARED = "node", "edge", "shared"

_EDGES_OF_TILE = 512  # enough for the library's matrix products, few enough for a cache
_BYTES_OF_TILE = 32 << 20  # of z, at most
_BYTES_OF_TILE_ELSEWHERE = 256 << 20  # on a GPU, which a small tile does not fill


def _check_indices(index: Tensor, nodes: int) -> None:
    """Where nothing waits for the values, an assertion on the device takes this place."""
    if index.is_cpu and index.numel():
        low, high = (int(value) for value in torch.aminmax(index))
        if low < 0 or high >= nodes:
            wrong = low if low < 0 else high
            raise RuntimeError(f"index: expected indices from 0 to {nodes - 1}, got {wrong}")


def over_tiles(
    f: Callable,
    operands: Sequence[MaybeTensor],
    roles: Sequence[str],
    results: Sequence[str],
    index: Tensor,
    numbers: int,
) -> list[MaybeTensor]:
    """What f makes of each tile of edges, together; ``results`` are their roles.

    ``f(operands of the tile, index into its nodes, its edges)`` gives a list, with None for what there is not.
    ``numbers``: how many an edge has in the frame.
    """
    x, edges = operands[0], index.shape[1]
    _check_indices(index, len(x))
    row = max(1, numbers * x.element_size())
    size = min(_EDGES_OF_TILE, _BYTES_OF_TILE // row) if x.is_cpu else _BYTES_OF_TILE_ELSEWHERE // row
    size = max(32, size)
    total: list[MaybeTensor] = [None] * len(results)
    parts: list[list[Tensor]] = [[] for _ in results]
    for begin in range(0, max(edges, 1), size):
        of_tile, nodes = index[:, begin : begin + size], None
        if len(x) > size:  # a node of which few edges are in the tile
            nodes, of_tile = torch.unique(of_tile, return_inverse=True)
        local = [
            t
            if t is None or role == SHARED or (role == NODE and nodes is None)
            else (t.index_select(0, nodes) if role == NODE else t[begin : begin + size])
            for t, role in zip(operands, roles, strict=True)
        ]
        for n, (r, role) in enumerate(zip(f(local, of_tile, slice(begin, begin + size)), results, strict=True)):
            if r is None:
                continue
            if role == EDGE:
                parts[n].append(r)
            elif role == NODE and nodes is not None:
                before = r.new_zeros(len(x), *r.shape[1:]) if total[n] is None else total[n]
                total[n] = before.index_add(0, nodes, r) if r.requires_grad else before.index_add_(0, nodes, r)
            else:
                total[n] = r if total[n] is None else total[n] + r
    return [torch.cat(p) if len(p) > 1 else p[0] if p else t for p, t in zip(parts, total, strict=True)]


def widened(tensors: Sequence[MaybeTensor]) -> list[MaybeTensor]:
    """16-bit types are computed in float32."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return [None if t is None else t.to(wide) for t in tensors]


def ops_of(op: str, t: Tensor):
    """The namespace of the backend that runs ``op`` on the tensor's device."""
    return torch.ops.eqk_triton if dispatch.choose(op, t.device) == "triton" else torch.ops.eqk
