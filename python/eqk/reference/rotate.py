"""Rotation of node features into the frames of edges by dense matrices."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from eqk._signals import component_index


@functools.cache
def places(lmax: int, mmax: int) -> tuple[list[int], list[int]]:
    """Of the numbers of D, in their order: the row of m-primary order, and the component."""
    row = {i: n for n, i in enumerate(component_index(lmax, mmax, "m_primary"))}
    numbers = [
        (row[i], l * l + m)
        for l in range(lmax + 1)
        for i in range(l * l + l - min(l, mmax), l * l + l + min(l, mmax) + 1)
        for m in range(2 * l + 1)
    ]
    return [p for p, _ in numbers], [i for _, i in numbers]


@functools.cache
def groups_of_rows(lmax: int, mmax: int, groups: int) -> list[int]:
    """Which weight each row of m-primary order has, of one for each (l, |m|), for each l, or for an edge."""
    orders = [(l, m) for m in range(mmax + 1) for l in range(m, lmax + 1)]
    signed = [(l, m) for m in range(mmax + 1) for _ in range(2 if m else 1) for l in range(m, lmax + 1)]
    if groups == len(orders):
        return [orders.index(order) for order in signed]
    return [l if groups == lmax + 1 else 0 for l, _ in signed]


def scales(lmax: int, mmax: int) -> list[float]:
    """Of each degree, sqrt((2 l + 1) / (2 mmax + 1)) above mmax (EquiformerV2, Liao et al. 2023, arXiv:2306.12059)."""
    return [max(1.0, (2 * l + 1) / (2 * mmax + 1)) ** 0.5 for l in range(lmax + 1)]


def rotate(
    x: Tensor | None,
    D: Tensor | None,
    weights: Tensor | None,
    z: Tensor | None,
    index: Tensor | None,
    num_nodes: int,
    groups: int,
    columns: int,
    lmax: int,
    mmax: int,
    rescale: bool,
    missing: int,
) -> Tensor:
    """``torch.ops.eqk.rotate`` of operands that fit, dense; the result is the ``missing`` one of the first four."""
    like = z if x is None else x
    rows, components = (torch.tensor(p, device=like.device) for p in places(lmax, mmax))
    count, size = len(component_index(lmax, mmax, "m_primary")), (lmax + 1) ** 2
    fan = 1 if index is None else index.shape[0]
    of_edge = z.shape[2] if x is None else fan * x.shape[2]
    scale = [s if rescale else 1.0 for l, s in enumerate(scales(lmax, mmax)) for _ in range(2 * l + 1)]
    scale = torch.tensor(scale, dtype=like.dtype, device=like.device)
    if index is not None:
        # Indexing counts negative ones from the end; out of range, it refuses them.
        nodes = num_nodes if x is None else x.shape[0]
        index = torch.where(index < 0, nodes, index.long())
    if x is not None:
        x = x if index is None else torch.cat([x[i] for i in index], 2)
    if D is not None:
        dense = D.new_zeros(D.shape[0], count * size).index_copy(1, rows * size + components, D * scale[components])
        D = dense.unflatten(1, (count, size))
    if weights is not None or missing == 2:
        groups, columns = weights.shape[1:] if missing != 2 else (groups, columns)
        group, width = groups_of_rows(lmax, mmax, groups), of_edge // max(1, columns)
    if missing == 2:
        of_group = torch.nn.functional.one_hot(torch.tensor(group, device=like.device), groups).to(like.dtype)
        products = (z * (D @ x)).unflatten(2, (columns, width)).sum(3)
        return of_group.T @ products
    if weights is not None and z is not None:
        z = z * weights[:, group].repeat_interleave(width, 2)
    if missing == 0:
        back = D.mT @ z
        if index is None:
            return back
        parts = torch.cat(back.split(of_edge // fan, 2)) if of_edge else back.repeat(fan, 1, 1)
        zeros = back.new_zeros(num_nodes, size, of_edge // fan)
        # Unlike index_add, deterministic on GPUs.
        return zeros.index_put((index.flatten(),), parts, accumulate=True)
    if missing == 1:
        return (z @ x.mT)[:, rows, components] * scale[components]
    z = D @ x
    return z if weights is None else z * weights[:, group].repeat_interleave(width, 2)
