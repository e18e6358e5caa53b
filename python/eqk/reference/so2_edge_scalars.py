"""Scalars of each edge from its nodes, as eSCN's layers make them, one dense step after the other."""

from __future__ import annotations

from torch import Tensor

from eqk.reference.rotate import rotate


def so2_edge_scalars(
    x: Tensor, D: Tensor, h: Tensor | None, a: Tensor | None, weight: Tensor, index: Tensor, lmax: int
) -> Tensor:
    """``eqk.so2_edge_scalars`` with operands that fit; D: the rows m = 0 of the Wigner matrices."""
    r = None if h is None else (h if a is None else h @ a).unflatten(1, (lmax + 1, -1))
    return rotate(x, D, r, None, index, 0, 0, 0, lmax, 0, False, 3).flatten(1) @ weight.mT
