"""By quaternions (Horn 1987), which no reflection has, and by sums over all rotations, since e3nn has neither."""

import math

import numpy as np
import torch
from e3nn import o3
from torch import nn


def nearest_rotation(matrix):
    """The largest eigenvector of the form that tr(R^T matrix) is in quaternions (w, x, y, z)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrix.unbind(-2))
    form = [
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, yy - xx - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, zz - xx - yy],
    ]
    w, x, y, z = torch.linalg.eigh(torch.stack([torch.stack(row, -1) for row in form], -2))[1][..., 3].unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


class Superposition(nn.Module):
    def forward(self, source, target, weights):
        total = weights.sum(1)[:, None]
        mean = torch.einsum("bn,bni->bi", weights, source) / total
        mean_target = torch.einsum("bn,bni->bi", weights, target) / total
        source, centred = source - mean[:, None], target - mean_target[:, None]
        rotation = nearest_rotation(torch.einsum("bn,bni,bnj->bij", weights, centred, source))
        moved = torch.einsum("bij,bnj->bni", rotation, source)
        square = ((moved - centred) ** 2).sum(2)
        return moved + mean_target[:, None], ((weights * square).sum(1) / total[:, 0]).sqrt()


class MatrixFisher(nn.Module):
    """Over Euler angles, on a grid that is exact for what it is used for to rounding."""

    def __init__(self, nodes=48):
        super().__init__()
        cosines, weights = np.polynomial.legendre.leggauss(nodes // 2)
        turns = torch.arange(nodes, dtype=torch.float64) * (2 * math.pi / nodes)
        alpha, beta, gamma = torch.meshgrid(turns, torch.from_numpy(np.arccos(cosines)), turns, indexing="ij")
        self.rotations = o3.angles_to_matrix(alpha, beta, gamma).reshape(-1, 9)
        self.weights = (torch.from_numpy(weights)[:, None] / (2 * nodes**2)).expand(nodes, -1, nodes).reshape(-1)

    def log_normalizer(self, f):
        return (torch.exp(f.flatten(1) @ self.rotations.T) @ self.weights).log()

    def forward(self, f, rotation):
        return torch.einsum("bij,bij->b", f, rotation) - self.log_normalizer(f), nearest_rotation(f)
