"""Signals on the sphere, from components to a grid of angles and back, and drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqk import dispatch
from eqk._signals import by_component, lmax_of
from eqk.irreps import MAX_DEGREE, IrrepsLike, irreps_argument
from eqk.s2_quadrature import (
    Resolution,
    cached_grid,
    cached_tables,
    checked_resolution,
    exact_degree,
    exact_resolution,
    grid_factors,
    positions_of,
    s2_grid,
)
from eqk.spherical_harmonics import spherical_harmonics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cached_tables
def _ring_tables(lmax: int, res_beta: int, res_alpha: int, quadrature: str) -> tuple[Tensor, Tensor]:
    """P [2 lmax + 1, res_beta, (lmax + 1)^2] and S [res_alpha, 2 lmax + 1].

    P is zero but where column l^2 + l + m has the order m. The harmonic (l, m) is P times sqrt(2) sin(|m| alpha), 1 or
    sqrt(2) cos(m alpha).
    """
    grid, degrees = cached_grid(res_beta, res_alpha, quadrature), list(range(lmax + 1))
    at_zero = torch.stack([torch.zeros_like(grid.betas), grid.betas.cos(), grid.betas.sin()], 1)
    y = spherical_harmonics(degrees, at_zero, False, "integral")
    p = y.new_zeros(2 * lmax + 1, res_beta, (lmax + 1) ** 2)
    for l in degrees:
        for m in range(-l, l + 1):
            p[lmax + m, :, l * l + l + m] = y[:, l * l + l + abs(m)] / (math.sqrt(2) if m else 1)
    m = torch.arange(1, lmax + 1, dtype=torch.float64)
    angles = grid.alphas[:, None] * m
    sine, cosine = (math.sqrt(2) * f(angles) for f in (torch.sin, torch.cos))
    return p, torch.cat([sine.flip(1), torch.ones_like(grid.alphas)[:, None], cosine], 1)


@dispatch._constant_when_traced
@cached_tables
def to_tables(
    lmax: int,
    res: tuple[int, int],
    quadrature: str,
    normalization: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """What :func:`to_s2grid` multiplies by: P [m, res_beta, component] with all factors, and S [res_alpha, m]."""
    p, s = _ring_tables(lmax, *res, quadrature)
    return (p * by_component(grid_factors(lmax, normalization, lmax, False))).to(device, dtype), s.to(device, dtype)


@dispatch._constant_when_traced
@cached_tables
def from_tables(
    lmax: int,
    res: tuple[int, int],
    quadrature: str,
    normalization: str,
    lmax_in: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """The same for :func:`from_s2grid`, the weights of the quadrature included."""
    p, s = _ring_tables(lmax, *res, quadrature)
    factors = by_component(grid_factors(lmax, normalization, lmax_in, True))
    return (p * factors * cached_grid(*res, quadrature).weights[:, None]).to(device, dtype), s.to(device, dtype)


def _checked_lmax(name: str, lmax: object) -> int:
    if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
        raise ValueError(f"{name}: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
    return lmax


def to_s2grid(
    x: Tensor, res: Resolution, *, quadrature: str = "gausslegendre", normalization: str = "integral"
) -> Tensor:
    """Values on a grid of the signal f = sum of x_lm Y_lm, with e3nn's real harmonics.

    Args:
        x: [..., (lmax + 1)^2], floating; components in the order l^2 + l + m.
        res: number of rings and of angles, or (res_beta, res_alpha); any.
        quadrature: ``"gausslegendre"`` or ``"soft"``, e3nn's rings, of an even number.
        normalization: ``"integral"``: orthonormal harmonics. ``"component"`` (``"norm"``): each degree is scaled such
            that components of unit variance (degrees of unit norm) have values of unit variance, as in e3nn.

    Returns:
        [..., res_beta, res_alpha]. Differentiable to any order.

    Raises:
        ValueError: naming the option that does not fit.
        RuntimeError: if x has another shape.
    """
    lmax = lmax_of(x.shape[-1]) if x.dim() else None
    if lmax is None:
        raise RuntimeError(f"x: expected shape [..., (lmax + 1)^2] with lmax up to {MAX_DEGREE}, got {list(x.shape)}")
    p, s = to_tables(lmax, checked_resolution(res, quadrature), quadrature, normalization, x.dtype, x.device)
    return torch.einsum("mbi,...i->...bm", p, x) @ s.mT


def from_s2grid(
    f: Tensor,
    lmax: int,
    *,
    quadrature: str = "gausslegendre",
    normalization: str = "integral",
    lmax_in: int | None = None,
) -> Tensor:
    """Components up to ``lmax`` of a signal with these values on a grid: the inverse of :func:`to_s2grid`.

    Args:
        f: [..., res_beta, res_alpha], floating.
        lmax: largest degree of the result.
        quadrature, normalization: as for :func:`to_s2grid`.
        lmax_in: largest degree that the signal had in :func:`to_s2grid`, on whose factor ``"component"`` and ``"norm"``
            depend; ``lmax`` by default.

    Returns:
        [..., (lmax + 1)^2]. Differentiable to any order.

    Raises:
        ValueError: naming the option that does not fit, or if the grid is too coarse: harmonics of degree lmax are
            orthogonal on grids that are exact for 2 lmax (:func:`exact_degree`).
        RuntimeError: if f has fewer than two dimensions.
    """
    lmax = _checked_lmax("lmax", lmax)
    lmax_in = lmax if lmax_in is None else _checked_lmax("lmax_in", lmax_in)
    if f.dim() < 2:
        raise RuntimeError(f"f: expected shape [..., res_beta, res_alpha], got {list(f.shape)}")
    res = int(f.shape[-2]), int(f.shape[-1])
    if exact_degree(res, quadrature) < 2 * lmax:
        raise ValueError(
            f"f: expected at least {exact_resolution(2 * lmax, quadrature)} rings and angles for degree {lmax}, got "
            f"{res}, which is exact to degree {exact_degree(res, quadrature)}"
        )
    p, s = from_tables(lmax, res, quadrature, normalization, lmax_in, f.dtype, f.device)
    return torch.einsum("mbi,...bm->...i", p, f @ s)


def plot_signal(
    x: Tensor,
    file: str | Path | None = None,
    *,
    irreps: IrrepsLike | None = None,
    res: Resolution = (60, 121),
    shape: str = "radius",
    titles: list[str] | None = None,
) -> Figure:
    """Signals on the sphere as surfaces, red where positive and blue where negative.

    Args:
        x: [(lmax + 1)^2], or [signals, (lmax + 1)^2] for a row of them, or columns of ``irreps``.
        file: where to write a PNG, or another format that matplotlib knows.
        irreps: where x is a vector of irreps of multiplicity 1, each degree once, instead of a full signal.
        res: resolution of the surface.
        shape: ``"radius"``: the surface has the distance |f| from the centre; ``"sphere"``: it is the unit sphere.
        titles: one for each signal.

    Returns:
        The matplotlib figure. Needs matplotlib.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if shape not in ("radius", "sphere"):
        raise ValueError(f"shape: expected 'radius' or 'sphere', got {shape!r}")
    x = torch.atleast_2d(x.detach().to("cpu", torch.float64))
    if irreps is not None:
        irreps = irreps_argument("irreps", irreps)
        degrees = [ir.l for _, ir in irreps]
        if any(mul != 1 for mul, _ in irreps) or len(set(degrees)) < len(degrees) or x.shape[-1] != irreps.dim:
            raise ValueError(f"irreps: expected each degree once for {x.shape[-1]} columns of x, got {irreps}")
        full = x.new_zeros(x.shape[0], (max(degrees, default=0) + 1) ** 2)
        for l, columns in zip(degrees, irreps.slices(), strict=True):
            full[:, l * l : (l + 1) ** 2] = x[:, columns]
        x = full
    if x.dim() != 2 or not x.shape[0]:
        raise ValueError(f"x: expected shape [signals, (lmax + 1)^2], got {list(x.shape)}")
    if titles is not None and len(titles) != x.shape[0]:
        raise ValueError(f"titles: expected {x.shape[0]}, one for each signal, got {len(titles)}")
    grid = s2_grid(res, dtype=torch.float64)
    values = to_s2grid(x, res)
    # A surface needs its poles, and its first meridian twice.
    north, south = (_at_pole(x, up).expand(-1, 1, values.shape[-1]) for up in (1, -1))
    values = torch.cat([north, values, south], 1)
    values = torch.cat([values, values[..., :1]], -1)
    betas = torch.cat([torch.zeros(1), grid.betas, torch.full((1,), math.pi)]).double()
    alphas = torch.cat([grid.alphas, grid.alphas[:1] + 2 * math.pi])
    positions = positions_of(betas, alphas)
    figure = Figure(figsize=(3.2 * x.shape[0], 3.4))
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.06, top=0.9, wspace=0.02)  # layouts do not see labels in 3D
    for n, f in enumerate(values):
        axes = figure.add_subplot(1, x.shape[0], n + 1, projection="3d")
        largest = float(f.abs().max()) or 1.0
        surface = positions * f.abs()[..., None] / largest if shape == "radius" else positions
        colors = colormaps["RdBu_r"]((f / largest).numpy() / 2 + 0.5)
        # y, the polar axis, is drawn upwards.
        axes.plot_surface(
            *[surface[..., i].numpy() for i in (2, 0, 1)], facecolors=colors, rcount=200, ccount=200, shade=True
        )
        axes.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), xticks=[], yticks=[], zticks=[])
        axes.set_box_aspect((1, 1, 1), zoom=0.95)
        for direction, name in zip("xyz", "zxy", strict=True):
            getattr(axes, f"set_{direction}label")(name, labelpad=-14)
        if titles is not None:
            axes.set_title(titles[n])
    if file is not None:
        figure.savefig(file, dpi=150)
    return figure


def _at_pole(x: Tensor, up: int) -> Tensor:
    """[signals, 1, 1]: values at (0, up, 0)."""
    lmax = math.isqrt(x.shape[1]) - 1
    y = spherical_harmonics(list(range(lmax + 1)), x.new_tensor([[0.0, up, 0.0]]), False, "integral")
    return (x @ y[0])[:, None, None]
