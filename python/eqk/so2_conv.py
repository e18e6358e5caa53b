"""Linear layers on features in the frame of an edge that commute with rotations about it: SO(2) convolutions.

``torch.ops.eqk.so2_conv(x, zero, bias, orders, lmax, mmax, extra, weights)`` is the op, a composite of torch's.

In that frame an equivariant message from a node to another along the edge is a matrix for each order m, between the
components of m and of -m, that is a complex number times a matrix (eSCN, Passaro and Zitnick 2023, arXiv:2302.03655,
equation 6). With P and Q the rows of m and of -m and A, B the two halves of a weight,

    out(m) = A P - B Q,    out(-m) = A Q + B P.

The product of two complex numbers takes three real products (Gauss): with K = A (P + Q), out(m) = K - (A + B) Q and
out(-m) = K - (A - B) P. Of sums of many channels that is as accurate, in norm, as four products are; a quarter of the
multiply-adds of all orders but 0 is saved. The transpose, for gradients, has A^T and -B^T; it and the gradient of the
weight are such products again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eqk._signals import check_dense, check_same, count
from eqk.irreps import MAX_DEGREE
from eqk.reference.rotate import groups_of_rows


class Sizes(NamedTuple):
    """Those of one layer; ``extra`` outputs of order 0 come before those of degree 0."""

    lmax: int
    mmax: int
    channels_in: int
    channels_out: int
    extra: int = 0

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """m, the first row of m, and the number of rows of m; those of -m follow them."""
        first = 0
        for m in range(self.mmax + 1):
            n = self.lmax + 1 - m
            yield m, first, n
            first += 2 * n if m else n

    def shapes(self) -> list[tuple[int, ...]]:
        """Of the matrix of order 0, of its bias, and of the matrix [A; B] of each order from 1."""
        n, ins, outs = self.lmax + 1, self.channels_in, self.channels_out
        orders = [(2 * k * outs, k * ins) for m, _, k in self.blocks() if m]
        return [(n * outs + self.extra, n * ins), (n * outs + self.extra,), *orders]

    def numel(self) -> int:
        return sum(math.prod(s) for s in self.shapes())

    @property
    def weights(self) -> tuple[int, int]:
        """Radial ones of an edge's input: for each degree, or for each degree and order."""
        return (self.lmax + 1) * self.channels_in, sum(n for _, _, n in self.blocks()) * self.channels_in

    def unpack(self, flat: Tensor) -> list[Tensor]:
        """The parameters whose elements ``flat`` has one after the other."""
        shapes = self.shapes()
        sizes = [math.prod(s) for s in shapes]
        return [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]


def pack(layer: Sequence[Tensor | None]) -> Tensor:
    """All parameters of a layer, one after the other, with zeros for a bias that is None."""
    zero, bias, *orders = layer
    bias = zero.new_zeros(zero.shape[0]) if bias is None else bias
    return torch.cat([t.flatten() for t in (zero, bias, *orders)])


class Matrices(NamedTuple):
    """The parameters of a layer as its products take them: of each order from 1 A, A + B and A - B."""

    zero: Tensor
    bias: Tensor | None
    orders: list[tuple[Tensor, Tensor, Tensor]]

    @classmethod
    def of(cls, zero: Tensor, bias: Tensor | None, weights: Sequence[Tensor]) -> Matrices:
        halves = [w.chunk(2) for w in weights]
        return cls(zero, bias, [(a, a + b, a - b) for a, b in halves])


def _split(x: Tensor, s: Sizes) -> list[Tensor]:
    """[edges, components, channels] -> [edges, rows channels] of m = 0, then of m and of -m for each m from 1."""
    return [part.flatten(1) for part in x.split([n for m, _, n in s.blocks() for _ in range(2 if m else 1)], 1)]


def _addmm(c: Tensor | None, a: Tensor, b: Tensor, out: Tensor | None, alpha: float = 1) -> Tensor:
    return torch.mm(a, b, out=out) if c is None else torch.addmm(c, a, b, alpha=alpha, out=out)


def _three_products(p: Tensor, q: Tensor, k: Tensor, of_q: Tensor, of_p: Tensor, into: Sequence) -> list[Tensor]:
    """K - q of_q and K - p of_p with K = (p + q) k."""
    first, second = into
    if first is None:
        k = (p + q) @ k
        return [torch.addmm(k, q, of_q, alpha=-1), torch.addmm(k, p, of_p, alpha=-1)]
    torch.mm(p + q, k, out=first)
    second.copy_(first)
    return [first.addmm_(q, of_q, alpha=-1), second.addmm_(p, of_p, alpha=-1)]


def _assemble(parts: Sequence[Tensor], out: Tensor | None, channels: int) -> Tensor:
    return torch.cat(parts, 1).unflatten(1, (-1, channels)) if out is None else out


def linear(x: Tensor, w: Matrices, s: Sizes, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """[edges, components, channels in] -> [edges, components, channels out], [edges, extra].

    ``out``: what to write them to, where nothing is differentiated.
    """
    first, *signed = _split(x, s)
    y, extra = out or (None, None)
    into = _split(y, s) if out else [None] * (1 + len(signed))
    bias = (None, None) if w.bias is None else (w.bias[: s.extra], w.bias[s.extra :])
    extra = _addmm(bias[0], first, w.zero[: s.extra].mT, extra)
    parts = [_addmm(bias[1], first, w.zero[s.extra :].mT, into[0])]
    for n, (a, a_plus_b, a_minus_b) in enumerate(w.orders):
        at = slice(2 * n, 2 * n + 2)
        parts += _three_products(*signed[at], a.mT, a_plus_b.mT, a_minus_b.mT, into[1:][at])
    return _assemble(parts, y, s.channels_out), extra


def linear_transposed(g: Tensor, g_extra: Tensor | None, w: Matrices, s: Sizes, out: Tensor | None = None) -> Tensor:
    """The gradient of x from those of both results; ``g_extra``: None for zeros; ``out``: as for :func:`linear`."""
    first, *signed = _split(g, s)
    into = [None] * (1 + len(signed)) if out is None else _split(out, s)
    of_extra = None if g_extra is None or not s.extra else g_extra @ w.zero[: s.extra]
    parts = [_addmm(of_extra, first, w.zero[s.extra :], into[0])]
    for n, (a, a_plus_b, a_minus_b) in enumerate(w.orders):
        at = slice(2 * n, 2 * n + 2)
        parts += _three_products(*signed[at], a, a_minus_b, a_plus_b, into[1:][at])
    return _assemble(parts, out, s.channels_in)


def linear_weight_gradient(x: Tensor, g: Tensor, g_extra: Tensor | None, s: Sizes) -> Tensor:
    """The gradients of all parameters, one after the other, from x and those of both results; None for zeros."""
    first, *signed = _split(g, s)
    x_first, *x_signed = _split(x, s)
    if s.extra:
        first = torch.cat([first.new_zeros(len(first), s.extra) if g_extra is None else g_extra, first], 1)
    out = [(first.mT @ x_first).flatten(), first.sum(0)]
    for p, q, xp, xq in zip(signed[::2], signed[1::2], x_signed[::2], x_signed[1::2], strict=True):
        k = p.mT @ (xp - xq)
        out += [torch.addmm(k, (p + q).mT, xq).flatten(), torch.addmm(k, (q - p).mT, xp).flatten()]
    return torch.cat(out)


def _check(x: Tensor, layer: Sequence[Tensor | None], lmax: int, mmax: int, extra: int) -> Sizes:
    """The sizes of the layer, whose parameters fit x."""
    op = "so2_conv"
    check_degrees(op, lmax, mmax)
    check_dense(op, "x", x, 3)
    rows = count(lmax, mmax)
    if x.dim() != 3 or x.shape[1] != rows:
        raise RuntimeError(f"eqk.{op}: x: expected shape [edges, {rows}, channels], got {list(x.shape)}")
    sizes = sizes_of(op, "layer", layer, lmax, mmax, extra)
    if sizes.channels_in != x.shape[2]:
        raise RuntimeError(f"eqk.{op}: x: expected {sizes.channels_in} channels as the layer has, got {x.shape[2]}")
    for t in layer:
        if t is not None:
            check_same(op, x, t)
    return sizes


def check_degrees(op: str, lmax: int, mmax: int) -> None:
    if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
        raise ValueError(f"eqk.{op}: lmax: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
    if not isinstance(mmax, int) or not 0 <= mmax <= lmax:
        raise ValueError(f"eqk.{op}: mmax: expected an order from 0 to lmax, {lmax}, got {mmax!r}")


def sizes_of(op: str, name: str, layer: Sequence[Tensor | None], lmax: int, mmax: int, extra: int) -> Sizes:
    """Those of the parameters of a layer, which fit together."""
    if not isinstance(layer, (tuple, list)) or len(layer) != mmax + 2:
        got = f"{len(layer)} of them" if isinstance(layer, (tuple, list)) else repr(layer)
        raise TypeError(
            f"eqk.{op}: {name}: expected mmax + 2 = {mmax + 2} parameters, the matrix of m = 0, its bias and a matrix "
            f"for each m from 1, got {got}"
        )
    for n, t in enumerate(layer):
        if n != 1 or t is not None:
            check_dense(op, f"{name}[{n}]", t, 1)
    # They are constants of plans: torch.compile is to have a graph for each number.
    out, ins = map(operator.index, layer[0].shape) if layer[0].dim() == 2 else (-1, -1)
    degrees = lmax + 1
    if out < extra or ins < degrees or (out - extra) % degrees or ins % degrees or out == extra:
        raise RuntimeError(
            f"eqk.{op}: {name}[0]: expected shape [{degrees} channels out + {extra}, {degrees} channels in], "
            f"got {list(layer[0].shape)}"
        )
    sizes = Sizes(lmax, mmax, ins // degrees, (out - extra) // degrees, extra)
    for n, (t, shape) in enumerate(zip(layer, sizes.shapes(), strict=True)):
        if t is not None and tuple(t.shape) != shape:
            raise RuntimeError(f"eqk.{op}: {name}[{n}]: expected shape {list(shape)}, got {list(t.shape)}")
    return sizes


def so2_conv(
    x: Tensor,
    layer: Sequence[Tensor | None],
    lmax: int,
    mmax: int,
    extra: int = 0,
    weights: Tensor | None = None,
    systems: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """A linear layer on features in the frames of edges that commutes with rotations about the edge: SO(2) linear.

    eSCN, Passaro and Zitnick 2023, arXiv:2302.03655, equation 6, with the parameters as fairchem-core keeps them. Each
    order m from 1 takes three matrix products where its formula has four.

    Args:
        x: [edges, rows, channels in], rows in the order of :func:`eqk.m_primary`.
        layer: the matrix of m = 0, [(lmax + 1) channels out + extra, (lmax + 1) channels in], rows and columns by
            degree; its bias, or None; and for each m = 1 .. mmax the matrix [A; B], [2 (lmax + 1 - m) channels out,
            (lmax + 1 - m) channels in].
        lmax, mmax: largest degree and order.
        extra: number of scalars that the first rows of the matrix of m = 0 make, for gates and the like.
        weights: [edges, groups, columns], which multiply x first: as for :func:`eqk.rotate`, radial weights for each
            degree and order, or for each degree.
        systems: how many edges, one after the other, belong to each system of a batch, where systems have parameters of
            their own (a mixture of linear experts, MoLE, as UMA's): all in ``layer`` but the bias then have one more
            dimension in front.

    A composite of torch's operations: any dtype, device and derivative that they have.

    Returns:
        [edges, rows, channels out] and [edges, extra].

    Raises:
        TypeError: if ``layer`` is not mmax + 2 parameters, or one of the arguments no tensor.
        RuntimeError: naming the operand whose shape, dtype or device does not fit.
        ValueError: naming the degree or order that is out of range, or if ``systems`` are not all edges.
    """
    if systems is not None:
        return _of_systems(x, layer, lmax, mmax, extra, weights, list(systems))
    _check(x, layer, lmax, mmax, extra)
    zero, bias, *orders = layer
    return torch.ops.eqk.so2_conv(x, zero, bias, orders, lmax, mmax, extra, weights)


def _composite(x, zero, bias, orders, lmax, mmax, extra=0, weights=None):
    sizes = _check(x, [zero, bias, *orders], lmax, mmax, extra)
    if weights is not None:
        x = x * _by_row(weights, x, lmax, mmax)
    return linear(x, Matrices.of(zero, bias, orders), sizes)


_LIBRARY = torch.library.Library("eqk", "FRAGMENT")
_LIBRARY.define(
    "so2_conv(Tensor x, Tensor zero, Tensor? bias, Tensor[] orders, int lmax, int mmax, int extra=0, "
    "Tensor? weights=None) -> (Tensor, Tensor)"
)
_LIBRARY.impl("so2_conv", _composite, "CompositeImplicitAutograd")


def _of_systems(x, layer, lmax, mmax, extra, weights, systems) -> tuple[Tensor, Tensor]:
    if sum(systems) != len(x) or any(n < 0 for n in systems):
        raise ValueError(f"eqk.so2_conv: systems: expected numbers of edges that sum to {len(x)}, got {systems}")
    for n, t in enumerate(layer):
        if n != 1 and len(t) != len(systems):
            raise RuntimeError(
                f"eqk.so2_conv: layer[{n}]: expected parameters of {len(systems)} systems, got shape {list(t.shape)}"
            )
    results = []
    for n, part in enumerate(x.split(systems)):
        edges = slice(sum(systems[:n]), sum(systems[: n + 1]))
        own = [t if t is None or k == 1 else t[n] for k, t in enumerate(layer)]
        results.append(so2_conv(part, own, lmax, mmax, extra, None if weights is None else weights[edges]))
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _by_row(weights: Tensor, x: Tensor, lmax: int, mmax: int) -> Tensor:
    """[edges, groups, columns] -> [edges, rows, channels]"""
    check_dense("so2_conv", "weights", weights, 3)
    degrees, orders = lmax + 1, sum(lmax + 1 - m for m in range(mmax + 1))
    columns = weights.shape[2]
    fits = weights.dim() == 3 and weights.shape[0] == x.shape[0] and weights.shape[1] in (1, degrees, orders)
    if not fits or columns == 0 or x.shape[2] % columns:
        raise RuntimeError(
            f"eqk.so2_conv: weights: expected shape [{x.shape[0]}, 1, {degrees} or {orders}, a divisor of "
            f"{x.shape[2]}], got {list(weights.shape)}"
        )
    index = torch.tensor(groups_of_rows(lmax, mmax, operator.index(weights.shape[1])), device=x.device)
    return weights.index_select(1, index).repeat_interleave(x.shape[2] // columns, 2)
