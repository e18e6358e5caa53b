"""EquiformerV2's activation on the sphere (``fairchem.core.models.equiformer_v2.activation``, fairchem-core 1.10)."""

from __future__ import annotations

from fairchem.core.models.equiformer_v2.activation import S2Activation
from torch import Tensor, nn

from eqk.adapters import become, require_plain
from eqk.adapters._grid import normalization_of
from eqk.s2_activation import s2_activation


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


def fuse(module: nn.Module) -> str | None:
    if type(module) is not S2Activation:
        return None
    if type(module.act) is not nn.SiLU:
        raise ValueError(f"its function is {type(module.act).__name__}")
    require_plain(module, module.act)
    return become(module, FusedS2Activation)
