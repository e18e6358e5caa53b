"""The grids on the sphere of fairchem-core's models and EquiformerV3, whose matrices are e3nn's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqk.reference.s2_activation import dense
from eqk.s2_activation_plan import S2ActivationPlan
from eqk.s2_quadrature import NORMALIZATIONS


def known_normalization(
    grid: nn.Module, to_grid: Tensor, from_grid: Tensor, order: str = "l_primary", rescale: bool = True
) -> str | None:
    """That of e3nn whose matrices, [points, components] each, these of ``grid`` are; None if there is none."""
    theirs = [t.detach().to("cpu", torch.float64) for t in (to_grid, from_grid)]
    res = grid.lat_resolution, grid.long_resolution
    for name in NORMALIZATIONS:
        args = grid.lmax, grid.lmax, 1, "silu", res, "soft", name
        plan = S2ActivationPlan.normalized(*args, mmax=grid.mmax, order=order, rescale=rescale)
        pairs = list(zip(theirs, dense(plan, torch.float64, "cpu"), strict=True))
        if all(a.shape == b.shape and (a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in pairs):
            return name
    return None


def normalization_of(grid: nn.Module, rescale: bool = True) -> str | None:
    """That whose matrices are the buffers of fairchem's ``grid``, a ``SO3_Grid``; None if there is none."""
    matrices = (t.flatten(0, 1) for t in (grid.to_grid_mat, grid.from_grid_mat))
    return known_normalization(grid, *matrices, rescale=rescale)


def message_options(grid: nn.Module, rescale: bool = True) -> dict:
    """What :func:`eqk.so2_edge_message` is told of a separable activation on fairchem's ``grid``.

    Raises:
        ValueError: if its matrices are none that eqk knows.
    """
    normalization = normalization_of(grid, rescale)
    if normalization is None:
        raise ValueError("a grid whose matrices are not e3nn's")
    return {
        "activation": "s2",
        "res": (grid.lat_resolution, grid.long_resolution),
        "quadrature": "soft",
        "normalization": normalization,
        "grid_rescale": rescale,
    }
