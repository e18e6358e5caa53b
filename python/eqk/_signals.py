"""Columns of signals on the sphere: ``channels`` of degrees 0 to ``lmax``."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from eqk.irreps import MAX_DEGREE


def lmax_of(components: int) -> int | None:
    """The lmax of (lmax + 1)^2 components; None if there is none."""
    for lmax in range(MAX_DEGREE + 1):  # torch.compile knows no root of a size
        if components == (lmax + 1) ** 2:
            return lmax
    return None


def check_dense(op: str, name: str, operand: object, dimensions: int) -> None:
    """Raises what functions on signals raise for an operand that is no dense tensor of so many dimensions."""
    if not isinstance(operand, Tensor):
        raise TypeError(f"eqk.{op}: {name}: expected a tensor, got {operand!r}")
    if operand.layout != torch.strided:
        raise RuntimeError(f"eqk.{op}: {name}: expected a dense tensor, got layout {operand.layout}")
    if operand.dim() < dimensions:
        shape = tuple(operand.shape)
        raise RuntimeError(f"eqk.{op}: {name}: expected at least {dimensions} dimensions, got shape {shape}")


def lmax_argument(op: str, name: str, t: Tensor) -> int:
    """The lmax of t [..., (lmax + 1)^2, channels]."""
    lmax = lmax_of(t.shape[-2])
    if lmax is None:
        raise RuntimeError(
            f"eqk.{op}: {name}: expected shape [..., (lmax + 1)^2, channels] with lmax up to {MAX_DEGREE}, "
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
    try:
        return list(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        got = [tuple(shape) for shape in shapes]
        raise RuntimeError(f"eqk.{op}: {names}: expected leading dimensions that broadcast, got {got}") from None


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
