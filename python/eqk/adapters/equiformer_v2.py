"""EquiformerV2's activation on the sphere (``fairchem.core.models.equiformer_v2.activation``, fairchem-core 1.10)."""

from __future__ import annotations

import torch
from fairchem.core.models.equiformer_v2.activation import S2Activation
from fairchem.core.models.equiformer_v2.so3 import SO3_Grid
from torch import Tensor, nn

from eqk.adapters import become, require_plain
from eqk.reference.s2_activation import dense
from eqk.s2_activation import s2_activation
from eqk.s2_activation_plan import S2ActivationPlan
from eqk.s2_quadrature import NORMALIZATIONS


class FusedS2Activation(S2Activation):
    """S2Activation, alone or within SeparableS2Activation, as one op: no grid [nodes, beta, alpha, channels] is made.

    A grid whose matrices are none that eqk knows keeps them.
    """

    def forward(self, inputs: Tensor, SO3_grid: nn.ModuleList) -> Tensor:
        grid = SO3_grid[self.lmax][self.mmax]
        if not hasattr(grid, "_eqk_normalization"):
            grid._eqk_normalization = normalization_of(grid)
        if grid._eqk_normalization is None:
            return super().forward(inputs, SO3_grid)
        return s2_activation(
            inputs,
            "silu",
            self.lmax,
            res=(grid.lat_resolution, grid.long_resolution),
            quadrature="soft",
            normalization=grid._eqk_normalization,
            mmax=self.mmax,
            rescale=True,
        )


def normalization_of(grid: SO3_Grid) -> str | None:
    """That whose matrices are the buffers of ``grid``; None if there is none."""
    theirs = [t.detach().to("cpu", torch.float64).flatten(0, 1) for t in (grid.to_grid_mat, grid.from_grid_mat)]
    res = grid.lat_resolution, grid.long_resolution
    for name in NORMALIZATIONS:
        args = grid.lmax, grid.lmax, 1, "silu", res, "soft", name
        plan = S2ActivationPlan.normalized(*args, mmax=grid.mmax, rescale=True)
        pairs = list(zip(theirs, dense(plan, torch.float64, "cpu"), strict=True))
        if all(a.shape == b.shape and (a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in pairs):
            return name
    return None


def fuse(module: nn.Module) -> str | None:
    if type(module) is not S2Activation:
        return None
    if type(module.act) is not nn.SiLU:
        raise ValueError(f"its function is {type(module.act).__name__}")
    require_plain(module, module.act)
    return become(module, FusedS2Activation)
