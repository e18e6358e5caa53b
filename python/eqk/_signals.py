"""Columns of signals on the sphere: ``channels`` of degrees 0 to ``lmax``."""

from __future__ import annotations

import torch
from torch import Tensor

from eqk.irreps import MAX_DEGREE


def lmax_of(components: int) -> int | None:
    """The lmax of (lmax + 1)^2 components; None if there is none."""
    for lmax in range(MAX_DEGREE + 1):  # torch.compile knows no root of a size
        if components == (lmax + 1) ** 2:
            return lmax
    return None


def by_component(of_degrees: Tensor) -> Tensor:
    """[lmax + 1] -> [(lmax + 1)^2]: what belongs to a degree, for each of its components."""
    return of_degrees.repeat_interleave(2 * torch.arange(len(of_degrees), device=of_degrees.device) + 1)


def split(t: Tensor, lmax: int, channels: int, layout: str) -> Tensor:
    """[rows, columns in ``layout``] -> [rows, (lmax + 1)^2, channels]"""
    if layout == "ir_mul":
        return t.unflatten(1, ((lmax + 1) ** 2, channels))
    parts = t.split([(2 * l + 1) * channels for l in range(lmax + 1)], 1)
    return torch.cat([p.unflatten(1, (channels, 2 * l + 1)).mT for l, p in enumerate(parts)], 1)


def merge(t: Tensor, lmax: int, layout: str) -> Tensor:
    """The inverse of :func:`split`."""
    if layout == "ir_mul":
        return t.flatten(1)
    return torch.cat([t[:, l * l : (l + 1) ** 2].mT.flatten(1) for l in range(lmax + 1)], 1)
