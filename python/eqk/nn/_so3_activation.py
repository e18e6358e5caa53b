"""e3nn's SO3Activation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqk import dispatch
from eqk.irreps import MAX_DEGREE, Irrep, Irreps
from eqk.nn._s2_activation import second_moment_gain
from eqk.reference.s2_activation import FUNCTIONS
from eqk.s2_activation import function_name
from eqk.s2_quadrature import cached_grid, cached_tables


def _matrices(lmax: int, resolution: int, aspect_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of sqrt(2 l + 1) D^l(alpha, beta, gamma): to waves of both angles, by ring, and of these at each angle.

    [res_beta, waves, waves, (2 l + 1)^2 of all l], [angles, waves], and the quadrature's weights [res_beta].
    """
    angles = round(2 * aspect_ratio * resolution)
    grid = cached_grid(2 * resolution, angles, "soft")

    def flat(alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
        degrees = [Irrep(l, 1) for l in range(lmax + 1)]
        parts = [math.sqrt(2 * ir.l + 1) * ir.D_from_angles(alpha, beta, gamma).flatten(-2) for ir in degrees]
        return torch.cat(parts, -1)

    # Matrix elements are sums of products of waves cos(m alpha), sin(m alpha), cos(n gamma), sin(n gamma): found from
    # their values at 2 lmax + 1 angles, which determine as many waves.
    few = 2 * math.pi * torch.arange(2 * lmax + 1, dtype=torch.float64) / (2 * lmax + 1)
    every = torch.broadcast_tensors(few[None, :, None], grid.betas[:, None, None], few[None, None, :])
    inverse = torch.linalg.inv(_waves(few, lmax))
    of_waves = torch.einsum("pa,bagi,qg->bpqi", inverse, flat(*every), inverse)
    return of_waves, _waves(grid.alphas, lmax), grid.weights / (4 * math.pi * angles)


def _waves(angles: Tensor, lmax: int) -> Tensor:
    """[angles, 2 lmax + 1]"""
    m = torch.arange(1, lmax + 1, dtype=torch.float64) * angles[:, None]
    return torch.cat([torch.ones_like(angles)[:, None], m.cos(), m.sin()], 1)


@dispatch._constant_when_traced
@cached_tables
def _tables(
    lmax: int, resolution: int, aspect_ratio: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    return tuple(t.to(device, dtype) for t in _matrices(lmax, resolution, aspect_ratio))


class SO3Activation(nn.Module):
    """``e3nn.nn.SO3Activation``: a function of each value of a signal on the rotation group.

    The signal is f = sum over l of sqrt((2 l + 1) / dim) x^l_mn D^l_mn(alpha, beta, gamma) on a grid of Euler angles;
    to it and back one angle after another, where e3nn multiplies by a dense matrix.

    Args:
        lmax_in, lmax_out: largest degrees; irreps ``(2 l + 1) x l`` of each.
        act: the function, or the name of one that eqk has (:func:`eqk.s2_activation`); normalised to a second moment of
            1, as e3nn does.
        resolution: half the number of rings of beta; alpha and gamma have ``2 aspect_ratio`` times as many angles.
        normalization: ``"component"``.
        aspect_ratio: see above.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        lmax_in: int,
        lmax_out: int,
        act: str | Callable[[Tensor], Tensor],
        resolution: int,
        *,
        normalization: str = "component",
        aspect_ratio: float = 2,
    ) -> None:
        super().__init__()
        for name, lmax in (("lmax_in", lmax_in), ("lmax_out", lmax_out)):
            if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
                raise ValueError(f"{name}: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
        if normalization != "component":
            raise ValueError(f"normalization: expected component, got {normalization!r}")
        if not isinstance(resolution, int) or resolution < 1:
            raise ValueError(f"resolution: expected a number from 1, got {resolution!r}")
        if not round(2 * aspect_ratio * resolution) >= 1:
            raise ValueError(f"aspect_ratio: expected at least one angle, got {aspect_ratio!r}")
        name = function_name(act)
        if name is None and not callable(act):
            raise ValueError(f"act: expected a function or one of {', '.join(FUNCTIONS)}, got {act!r}")
        self.act = FUNCTIONS[name] if name else act
        self.lmax_in, self.lmax_out, self.resolution, self.aspect_ratio = lmax_in, lmax_out, resolution, aspect_ratio
        self.irreps_in, self.irreps_out = (
            Irreps([(2 * l + 1, (l, 1)) for l in range(lmax + 1)]) for lmax in (lmax_in, lmax_out)
        )
        self._gain = second_moment_gain(self.act)

    def forward(self, features: Tensor) -> Tensor:
        """[..., irreps_in.dim] -> [..., irreps_out.dim]"""
        if features.dim() == 0 or features.shape[-1] != self.irreps_in.dim:
            raise RuntimeError(f"features: expected shape [..., {self.irreps_in.dim}], got {list(features.shape)}")
        grid = self.resolution, self.aspect_ratio, features.dtype, features.device
        of_waves, waves, _ = _tables(self.lmax_in, *grid)
        f = torch.einsum("bpqi,...i->...bpq", of_waves, features) / math.sqrt(self.irreps_in.dim)
        f = torch.einsum("ap,...bpq,gq->...abg", waves, f, waves)
        f = self._gain * self.act(f)
        of_waves, waves, weights = _tables(self.lmax_out, *grid)
        f = torch.einsum("ap,...abg,gq->...bpq", waves, f, waves) * weights[:, None, None]
        return torch.einsum("bpqi,...bpq->...i", of_waves, f) * math.sqrt(self.irreps_out.dim)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # e3nn keeps its dense matrices; there is nothing else in a checkpoint.
        for side in ("grid_in", "grid_out"):
            for name in ("D", "qw", "alpha", "beta", "gamma"):
                state_dict.pop(f"{prefix}{side}.{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.lmax_in} -> {self.lmax_out}, resolution={self.resolution}"
