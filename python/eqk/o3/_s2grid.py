"""e3nn's ToS2Grid and FromS2Grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqk._signals import by_component
from eqk.o3._module import ArgumentError, E3nnModule, check_operand
from eqk.s2_quadrature import NORMALIZATIONS, positions_of, s2_grid
from eqk.s2grid import from_tables, to_tables


def _complete(lmax: int | None, res: int | tuple[int | None, int | None] | None) -> tuple[int, int, int]:
    """lmax, res_beta and res_alpha, e3nn's choice where one is None."""
    res_beta, res_alpha = (res, None) if isinstance(res, int) or res is None else res
    if lmax is None and res_beta is None and res_alpha is None:
        raise ArgumentError("lmax, res: expected at least one that is not None")
    if res_beta is None:
        res_beta = 2 * (lmax + 1) if lmax is not None else 2 * ((res_alpha + 1) // 2)
    if res_alpha is None:
        res_alpha = res_beta - 1 if lmax is None else max(2 * lmax + 1, res_beta - 1)
    if lmax is None:
        lmax = min(res_beta // 2 - 1, (res_alpha - 1) // 2)
    if res_beta % 2 or lmax + 1 > res_beta // 2:
        raise ArgumentError(f"res: expected an even res_beta of at least {2 * (lmax + 1)}, got {res_beta}")
    return lmax, res_beta, res_alpha


class _S2Grid(E3nnModule):
    def _set(self, lmax: int, res: tuple[int, int], normalization: str | Tensor, tables, dtype, device) -> None:
        self.lmax, (self.res_beta, self.res_alpha) = lmax, res
        named = normalization if isinstance(normalization, str) else "integral"
        if named not in NORMALIZATIONS:
            raise ArgumentError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
        dtype = dtype or torch.get_default_dtype()
        shb, sha = tables(named)
        if isinstance(normalization, Tensor):
            if normalization.shape != (lmax + 1,):
                shape = tuple(normalization.shape)
                raise ArgumentError(f"normalization: expected a factor for each of {lmax + 1} degrees, got {shape}")
            factors = normalization.to(shb.device, shb.dtype) * self._of_factors
            shb = shb * by_component(factors)
        grid = s2_grid(res, "soft", torch.float64, device)
        for name, t in (("alphas", grid.alphas), ("betas", grid.betas), ("sha", sha), ("shb", shb)):
            self.register_buffer(name, t.to(dtype, copy=True))  # load_state_dict writes to it

    @property
    def grid(self) -> Tensor:
        """[res_beta, res_alpha, 3]: positions on the sphere."""
        return positions_of(self.betas, self.alphas)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lmax={self.lmax} res={self.res_beta}x{self.res_alpha} (beta x alpha))"


class ToS2Grid(_S2Grid):
    """``e3nn.o3.ToS2Grid``: components [..., (lmax + 1)^2] -> values [..., res_beta, res_alpha] on e3nn's grid.

    Args:
        lmax: largest degree; from ``res`` if None.
        res: res_beta, which is even and at least 2 (lmax + 1), or (res_beta, res_alpha); from ``lmax`` if None.
        normalization: ``"component"``, ``"norm"``, ``"integral"`` (:func:`eqk.to_s2grid`), or a factor for each degree.

    Buffers as e3nn's: alphas, betas, sha [res_alpha, 2 lmax + 1], shb [2 lmax + 1, res_beta, (lmax + 1)^2].

    Raises:
        ValueError (an AssertionError too, as in e3nn): naming the argument that does not fit.
    """

    _of_factors = 1.0

    def __init__(self, lmax=None, res=None, normalization="component", dtype=None, device=None) -> None:
        super().__init__()
        lmax, *res = _complete(lmax, res)
        res = tuple(res)
        self._set(
            lmax,
            res,
            normalization,
            lambda named: to_tables(lmax, res, "soft", named, torch.float64, device or "cpu"),
            dtype,
            device,
        )

    def forward(self, x: Tensor) -> Tensor:
        check_operand("x", x, self.shb.shape[2])
        return torch.matmul(torch.einsum("mbi,...i->...bm", self.shb, x), self.sha.mT)


class FromS2Grid(_S2Grid):
    """``e3nn.o3.FromS2Grid``: values [..., res_beta, res_alpha] on e3nn's grid -> components [..., (lmax + 1)^2].

    Args:
        res, lmax, normalization: as for :class:`ToS2Grid`, whose inverse it is.
        lmax_in: the lmax that ToS2Grid had; ``lmax`` if None.

    Raises:
        ValueError (an AssertionError too, as in e3nn): naming the argument that does not fit.
    """

    _of_factors = 1 / (4 * math.pi)  # e3nn's stand for the area of the sphere, too

    def __init__(self, res=None, lmax=None, normalization="component", lmax_in=None, dtype=None, device=None) -> None:
        super().__init__()
        lmax, *res = _complete(lmax, res)
        res, lmax_in = tuple(res), lmax if lmax_in is None else lmax_in
        self._set(
            lmax,
            res,
            normalization,
            lambda named: from_tables(lmax, res, "soft", named, lmax_in, torch.float64, device or "cpu"),
            dtype,
            device,
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[-2] != self.res_beta or x.shape[-1] != self.res_alpha:
            raise RuntimeError(f"x: expected shape [..., {self.res_beta}, {self.res_alpha}], got {list(x.shape)}")
        return torch.einsum("mbi,...bm->...i", self.shb, torch.matmul(x, self.sha))
