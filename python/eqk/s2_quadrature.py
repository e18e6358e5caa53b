"""Grids of angles on the sphere, their weights, and the degree to which sums over them are integrals.

A point has angles beta, from the pole y, and alpha, about it: (sin b sin a, cos b, sin b cos a), as in e3nn. Grids are
products of rings beta and angles alpha = 2 pi j / res_alpha. Rings are those of Gauss and Legendre
(``"gausslegendre"``) or e3nn's equiangular ones, beta = pi (i + 1/2) / res_beta (``"soft"``; weights of Kostelec and
Rockmore 2008, "FFTs on the rotation group", eq. 3.15).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

QUADRATURES = ("gausslegendre", "soft")
NORMALIZATIONS = ("integral", "component", "norm")
Resolution = int | tuple[int, int]


class S2Grid(NamedTuple):
    """``betas`` [res_beta], ``alphas`` [res_alpha], and the ``weights`` [res_beta] of each point of a ring.

    The integral over the sphere of a function of values f [res_beta, res_alpha] is ``(weights[:, None] * f).sum()``.
    """

    betas: Tensor
    alphas: Tensor
    weights: Tensor

    @property
    def positions(self) -> Tensor:
        """[res_beta, res_alpha, 3]: points on the unit sphere."""
        return positions_of(self.betas, self.alphas)


def positions_of(betas: Tensor, alphas: Tensor) -> Tensor:
    """:attr:`S2Grid.positions` in what TorchScript compiles."""
    b = betas[:, None]
    return torch.stack([b.sin() * alphas.sin(), b.cos() + 0 * alphas, b.sin() * alphas.cos()], -1)


def checked_resolution(res: Resolution, quadrature: str) -> tuple[int, int]:
    if quadrature not in QUADRATURES:
        raise ValueError(f"quadrature: expected one of {', '.join(QUADRATURES)}, got {quadrature!r}")
    pair = (res, res) if isinstance(res, int) else tuple(res)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise ValueError(f"res: expected a positive number or two, (res_beta, res_alpha), got {res!r}")
    if quadrature == "soft" and pair[0] % 2:
        raise ValueError(f"res: expected an even res_beta for quadrature 'soft', got {pair[0]}")
    return pair


def exact_degree(res: Resolution, quadrature: str = "gausslegendre") -> int:
    """Degree of harmonics up to which sums over the grid are integrals; above it functions alias to lower degrees."""
    return min(exact_degree_and_order(res, quadrature))


def exact_degree_and_order(res: Resolution, quadrature: str) -> tuple[int, int]:
    """To which rings are exact, and angles."""
    res_beta, res_alpha = checked_resolution(res, quadrature)
    return 2 * res_beta - 1 if quadrature == "gausslegendre" else res_beta - 1, res_alpha - 1


def exactness(res: Resolution, quadrature: str) -> str:
    """What of a function is not lost in sums over a grid: the rest aliases."""
    degree, order = exact_degree_and_order(res, quadrature)
    return f"exact to degree {degree} and order {order}"


def exact_resolution(degree: int, quadrature: str = "gausslegendre") -> tuple[int, int]:
    """(res_beta, res_alpha) of the smallest grid whose sums are integrals of harmonics up to ``degree``.

    A product of signals of degrees L1 and L2, projected to L3, needs L1 + L2 + L3; a signal of degree L alone 2 L.
    """
    if not isinstance(degree, int) or degree < 0:
        raise ValueError(f"degree: expected a number from 0, got {degree!r}")
    checked_resolution(2, quadrature)
    rings = degree // 2 + 1 if quadrature == "gausslegendre" else degree + 1 + (degree + 1) % 2
    return rings, degree + 1


def cached_tables(make: Callable) -> Callable:
    """A cache of the tensors of ``make``, run outside of all transforms and modes, whose wrappers would stay in it."""
    cached = functools.lru_cache(maxsize=256)(make)

    @functools.wraps(make)
    def tables(*args):
        with torch._C._DisableFuncTorch(), _disable_current_modes(), torch.no_grad():
            return cached(*args)

    tables.cache_clear = cached.cache_clear
    return tables


@cached_tables
def cached_grid(res_beta: int, res_alpha: int, quadrature: str) -> S2Grid:
    """On the CPU in float64."""
    if quadrature == "gausslegendre":
        # Golub and Welsch 1969: nodes are the eigenvalues of the Jacobi matrix of the Legendre polynomials.
        n = torch.arange(1, res_beta, dtype=torch.float64)
        off = n / (4 * n * n - 1).sqrt()
        z, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
        betas, weights = z.flip(0).acos(), 2 * vectors[0].square().flip(0)
    else:
        betas = (torch.arange(res_beta, dtype=torch.float64) + 0.5) * (math.pi / res_beta)
        odd = 2 * torch.arange(res_beta // 2, dtype=torch.float64) + 1
        weights = (4 / res_beta) * betas.sin() * ((betas[:, None] * odd).sin() / odd).sum(1)
    alphas = torch.arange(res_alpha, dtype=torch.float64) * (2 * math.pi / res_alpha)
    return S2Grid(betas, alphas, weights * (2 * math.pi / res_alpha))


def s2_grid(
    res: Resolution,
    quadrature: str = "gausslegendre",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> S2Grid:
    """Angles and weights of a grid of ``res`` rings and angles, or (res_beta, res_alpha), in torch's default dtype.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    dtype = dtype or torch.get_default_dtype()
    # Copies: the caller may write to them, and load_state_dict to buffers.
    return S2Grid(
        *[t.to(device, dtype, copy=True) for t in cached_grid(*checked_resolution(res, quadrature), quadrature)]
    )


def grid_factors(lmax: int, normalization: str, lmax_in: int, inverse: bool) -> Tensor:
    """Of each degree, on the way to the grid or back: all degrees have the same variance on the grid, 1 in sum."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    degrees = torch.arange(lmax + 1, dtype=torch.float64)
    if normalization == "integral":
        return torch.ones_like(degrees)
    factors = math.sqrt(4 * math.pi / (lmax_in + 1)) / (
        (2 * degrees + 1).sqrt() if normalization == "component" else torch.ones_like(degrees)
    )
    return 1 / factors if inverse else factors
