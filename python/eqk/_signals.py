"""Columns of signals on the sphere: ``channels`` of degrees 0 to ``lmax`` and orders ``|m|`` up to ``mmax``."""

from __future__ import annotations

import torch
from torch import Tensor

from eqk.irreps import MAX_DEGREE

ORDERS = ("l_primary", "m_primary")


def count(lmax: int, mmax: int | None = None) -> int:
    """Components of degrees 0 to lmax with |m| <= mmax."""
    mmax = lmax if mmax is None else min(lmax, mmax)
    return (mmax + 1) ** 2 + (lmax - mmax) * (2 * mmax + 1)


def lmax_of(components: int, mmax: int | None = None) -> int | None:
    """The lmax of so many components; None if there is none."""
    for lmax in range(MAX_DEGREE + 1):  # torch.compile knows no root of a size
        if components == count(lmax, mmax):
            return lmax
    return None


def component_index(lmax: int, mmax: int, order: str) -> list[int]:
    """Of each component its place l^2 + l + m among all.

    ``order``: ``"l_primary"``, by degree, m ascending; or ``"m_primary"``, first those of m = 0 by degree, then for
    m = 1, 2, ... those of m and then those of -m (eSCN, Passaro and Zitnick 2023, arXiv:2302.03655, as in fairchem).
    """
    if order == "l_primary":
        orders = [(l, m) for l in range(lmax + 1) for m in range(-min(l, mmax), min(l, mmax) + 1)]
    else:
        signed = [0, *(s * m for m in range(1, min(lmax, mmax) + 1) for s in (1, -1))]
        orders = [(l, m) for m in signed for l in range(abs(m), lmax + 1)]
    return [l * l + l + m for l, m in orders]


def by_component(of_degrees: Tensor) -> Tensor:
    """[lmax + 1] -> [(lmax + 1)^2]: what belongs to a degree, for each of its components."""
    return of_degrees.repeat_interleave(2 * torch.arange(len(of_degrees), device=of_degrees.device) + 1)


def split(t: Tensor, lmax: int, channels: int, layout: str, mmax: int | None = None) -> Tensor:
    """[rows, columns in ``layout``] -> [rows, components, channels]"""
    if layout == "ir_mul":
        return t.unflatten(1, (count(lmax, mmax), channels))
    parts = t.split([(2 * l + 1) * channels for l in range(lmax + 1)], 1)
    return torch.cat([p.unflatten(1, (channels, 2 * l + 1)).mT for l, p in enumerate(parts)], 1)


def merge(t: Tensor, lmax: int, layout: str) -> Tensor:
    """The inverse of :func:`split`."""
    if layout == "ir_mul":
        return t.flatten(1)
    return torch.cat([t[:, l * l : (l + 1) ** 2].mT.flatten(1) for l in range(lmax + 1)], 1)
