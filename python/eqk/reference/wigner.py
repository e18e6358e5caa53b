"""Wigner D matrices of degree l by coupling those of degree l - 1 with the rotation itself."""

from __future__ import annotations

import torch
from torch import Tensor

from eqk._library import wigner_3j


def rotation_matrix(q: Tensor) -> Tensor:
    """[rows, 4], (w, x, y, z) of any length -> [rows, 3, 3]"""
    q = q / q.detach().abs().amax(1, keepdim=True)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = (
        (w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def wigner_matrices(q: Tensor, lmax: int) -> list[Tensor]:
    """D^0 .. D^lmax of q [rows, 4], each [rows, 2 l + 1, 2 l + 1]."""
    r = rotation_matrix(q)
    values = [torch.ones_like(r[:, :1, :1])]
    for l in range(1, lmax + 1):
        c = wigner_3j(l - 1, 1, l, q.dtype, q.device)
        coupled = torch.einsum("zap,abm->zpbm", values[-1], c)
        coupled = torch.einsum("zpbm,zbq->zpqm", coupled, r)
        values.append((2 * l + 1) * torch.einsum("zpqm,pqn->zmn", coupled, c))
    return values


def wigner(q: Tensor, lmax: int, mmax: int) -> Tensor:
    """Rows |m'| <= mmax of each degree: q [rows, 4] -> [rows, sum of (2 min(l, mmax) + 1) (2 l + 1)]."""
    matrices = enumerate(wigner_matrices(q, lmax))
    return torch.cat([d[:, max(0, l - mmax) : l + min(l, mmax) + 1].flatten(1) for l, d in matrices], 1)
