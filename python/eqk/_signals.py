"""Columns of signals on the sphere: ``channels`` of degrees 0 to ``lmax`` and orders ``|m|`` up to ``mmax``."""

from __future__ import annotations

import operator
from collections.abc import Sequence

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


def check_dense(op: str, name: str, operand: object, dimensions: int) -> None:
    """Raises what functions on signals raise for an operand that is no dense tensor of so many dimensions."""
    if not isinstance(operand, Tensor):
        raise TypeError(f"eqk.{op}: {name}: expected a tensor, got {operand!r}")
    if operand.layout != torch.strided:
        raise RuntimeError(f"eqk.{op}: {name}: expected a dense tensor, got layout {operand.layout}")
    if operand.dim() < dimensions:
        shape = tuple(operand.shape)
        raise RuntimeError(f"eqk.{op}: {name}: expected at least {dimensions} dimensions, got shape {shape}")


def lmax_argument(op: str, name: str, t: Tensor, mmax: int | None = None) -> int:
    """The lmax of t [..., components, channels]."""
    lmax = lmax_of(t.shape[-2], mmax)
    if lmax is None:
        components = "(lmax + 1)^2" if mmax is None else f"those of lmax with |m| <= {mmax}"
        raise RuntimeError(
            f"eqk.{op}: {name}: expected shape [..., {components}, channels] with lmax up to {MAX_DEGREE}, "
            f"got {tuple(t.shape)}"
        )
    return lmax


def channels_of(op: str, x: Tensor, y: Tensor) -> tuple[int, int, int]:
    """Of x, of y and of their product: equally many, or 1 of one of them for all of the other."""
    # They are constants of plans: torch.compile is to have a graph for each number.
    of_x, of_y = operator.index(x.shape[-1]), operator.index(y.shape[-1])
    if of_x != of_y and 1 not in (of_x, of_y):
        raise RuntimeError(f"eqk.{op}: y: expected {of_x} channels as x has, or 1, got {of_y}")
    return of_x, of_y, of_y if of_x == 1 else of_x


def check_same(op: str, x: Tensor, y: Tensor) -> None:
    """Raises where y has not the dtype and the device of x."""
    for what in ("dtype", "device"):
        if getattr(y, what) != getattr(x, what):
            raise RuntimeError(f"eqk.{op}: y: expected {what} {getattr(x, what)} as x has, got {getattr(y, what)}")


def broadcast_leading(op: str, names: str, shapes: Sequence[torch.Size]) -> list[int]:
    """The leading dimensions of the result."""
    if all(shape == shapes[0] for shape in shapes):
        return list(shapes[0])
    try:
        return list(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        got = [tuple(shape) for shape in shapes]
        raise RuntimeError(f"eqk.{op}: {names}: expected leading dimensions that broadcast, got {got}") from None


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
