"""The message of eSCN along each edge, one dense step after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from eqk.reference.rotate import rotate
from eqk.reference.s2_activation import s2_activation
from eqk.reference.wigner import wigner


def so2_linear(x: Tensor, layer: Sequence[Tensor], lmax: int, extra: int) -> tuple[Tensor, Tensor]:
    """[edges, rows, channels in] -> [edges, rows, channels out], [edges, extra]"""
    zero, bias, *orders = layer
    first = x[:, : lmax + 1].flatten(1) @ zero.mT + bias
    channels, row = (zero.shape[0] - extra) // (lmax + 1), lmax + 1
    out = [first[:, extra:].unflatten(1, (lmax + 1, channels))]
    for m, weight in enumerate(orders, 1):
        n, (a, b) = lmax + 1 - m, weight.chunk(2)
        p, q = (x[:, row + i * n : row + (i + 1) * n].flatten(1) for i in (0, 1))
        out += [(part).unflatten(1, (n, channels)) for part in (p @ a.mT - q @ b.mT, q @ a.mT + p @ b.mT)]
        row += 2 * n
    return torch.cat(out, 1), first[:, :extra]


def _activation(y: Tensor, s: Tensor, plan) -> Tensor:
    degree = [l for m in range(plan.mmax + 1) for _ in range(2 if m else 1) for l in range(m, plan.lmax + 1)]
    if plan.activation == "gate":
        gates = s.sigmoid().unflatten(1, (plan.lmax, plan.hidden)) if plan.lmax else s
        return torch.stack([y[:, i] * gates[:, l - 1] if l else silu(y[:, i]) for i, l in enumerate(degree)], 1)
    if plan.activation == "s2":
        z = s2_activation(y.flatten(1), plan.s2).unflatten(1, y.shape[1:])
        return torch.cat([silu(s)[:, None], z[:, 1:]], 1)
    u, v = (half.flatten(1) for half in y.chunk(2, 2))
    p, t, gate = s.chunk(3, 1)
    z = s2_activation(u, plan.s2, [v]).unflatten(1, (len(degree), plan.hidden)) * gate.sigmoid()[:, None]
    return torch.cat([z[:, :1] + (silu(p) * t)[:, None], z[:, 1:]], 1)


def so2_edge_message(
    x: Tensor,
    q: Tensor,
    h: Tensor | None,
    a: Tensor | None,
    w: Tensor | None,
    conv1: Sequence[Tensor],
    conv2: Sequence[Tensor],
    index: Tensor,
    plan,
) -> Tensor:
    """``eqk.so2_edge_message`` with operands that fit and its parsed plan; layers as lists of their parameters."""
    lmax, mmax = plan.lmax, plan.mmax
    d = wigner(q, lmax, mmax)
    r = None if h is None else (h if a is None else h @ a).unflatten(1, (-1, plan.channels_in))
    sources = index[: plan.channels_in // x.shape[2]]
    z = rotate(x, d, r, None, sources, 0, 0, 0, lmax, mmax, False, 3)
    y, s = so2_linear(z, conv1, lmax, plan.convolutions[0].extra)
    message, _ = so2_linear(_activation(y, s, plan), conv2, lmax, 0)
    weights = None if w is None else w[:, None]
    return rotate(None, d, weights, message, index[-1:], x.shape[0], 0, 0, lmax, mmax, plan.rescale, 0)
