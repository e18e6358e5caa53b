"""Spherical harmonics by repeated coupling with Wigner 3j symbols."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eqk._library import wigner_3j


def _coupling(l: int, like: Tensor) -> Tensor:
    """G [2 l - 1, 3, 2 l + 1] of d Y_l[i] / d x[a] = sum_j G[j, a, i] Y_(l-1)[j], in component normalisation.

    G is invariant under rotation, hence a multiple of the 3j symbol; the Laplacian of |Y_l|^2 = (2 l + 1) r^(2 l) gives
    its norm, |G|^2 = l (2 l + 1)^2.
    """
    return wigner_3j(l - 1, 1, l, like.dtype, like.device) * ((2 * l + 1) * math.sqrt(l))


def _scale(l: int, normalization: str) -> float:
    return {"integral": 1 / math.sqrt(4 * math.pi), "component": 1.0, "norm": 1 / math.sqrt(2 * l + 1)}[normalization]


def _all(x: Tensor, lmax: int) -> list[Tensor]:
    """Y_0 .. Y_lmax of x [rows, 3], in component normalisation: Euler's theorem, l Y_l = x . grad Y_l."""
    values = [torch.ones_like(x[:, :1])]
    for l in range(1, lmax + 1):
        values.append(torch.einsum("zj,za,jai->zi", values[-1], x, _coupling(l, x) / l))
    return values


def spherical_harmonics(ls: Sequence[int], x: Tensor, normalization: str) -> Tensor:
    """r^l Y_l(x) for each l of ``ls``: x [rows, 3] -> [rows, sum of 2 l + 1]."""
    values = _all(x, max(ls, default=0))
    return torch.cat([values[l] * _scale(l, normalization) for l in ls], 1) if ls else x.new_empty(x.shape[0], 0)


def spherical_harmonics_backward(ls: Sequence[int], x: Tensor, g: Tensor, normalization: str) -> Tensor:
    """Gradient of <g, Y(x)> with respect to x: x [rows, 3], g [rows, sum of 2 l + 1] -> [rows, 3]."""
    values = _all(x, max(ls, default=0) - 1)
    gx = torch.zeros_like(x)
    for l, part in zip(ls, g.split([2 * l + 1 for l in ls], 1), strict=True):
        if l > 0:
            gx = gx + torch.einsum("zj,zi,jai->za", values[l - 1], part * _scale(l, normalization), _coupling(l, x))
    return gx
