"""Rotations as data: superposition of points, uniform samples, and the matrix Fisher distribution.

The rotation next to a matrix (Kabsch 1976) has derivatives of its own, which exist wherever that rotation is unique:
those of the singular value decomposition divide by differences of singular values, these by sums of two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import eqk

from .system import System, random_features


def cross(v: Tensor) -> Tensor:
    """[..., 3] -> [..., 3, 3], with cross(v) @ u the vector product of v and u."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def proper_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V^T with rotations U and V: the last singular value has the sign of the determinant."""
    u, s, vh = torch.linalg.svd(matrix)
    sign = torch.ones_like(s.detach())
    sign[..., 2] = torch.linalg.det(u.detach() @ vh.detach()).sign()
    return u * sign[..., None, :], s * sign, vh


class _NearestRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix: Tensor) -> Tensor:
        u, s, vh = proper_svd(matrix)
        if not (s[..., 1] + s[..., 2] > 16 * torch.finfo(s.dtype).eps * s[..., 0]).all():
            raise ValueError(
                "matrix: expected one with a unique nearest rotation, got one whose two smallest singular values are "
                "zero, or equal where its determinant is negative"
            )
        rotation = u @ vh
        ctx.save_for_backward(matrix, rotation)
        return rotation

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        # R' = R cross(w) with (tr(P) - P) w = the axial vector of R^T M' - M'^T R, and P = R^T M symmetric.
        matrix, rotation = ctx.saved_tensors
        p, t = rotation.mT @ matrix, rotation.mT @ g
        sums = p.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * torch.eye(3).to(p) - p
        odd = t - t.mT
        axial = torch.stack([odd[..., 2, 1], odd[..., 0, 2], odd[..., 1, 0]], -1)
        return rotation @ cross(torch.linalg.solve(sums, axial))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """[..., 3, 3] -> [..., 3, 3]: the rotation R with the largest tr(R^T matrix); differentiable to any order.

    Raises ValueError where several rotations are as near.
    """
    return _NearestRotation.apply(matrix)


def rotation_of(quaternion: Tensor) -> Tensor:
    """Unit quaternions [..., 4], (w, x, y, z) -> [..., 3, 3]: of degree 1 Wigner's matrices are the rotations."""
    return eqk.wigner(quaternion, 1)[..., 1:].unflatten(-1, (3, 3))


def random_rotations(count: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """[count, 3, 3], uniform: directions in four dimensions are uniform rotations (Shoemake 1992)."""
    return rotation_of(nn.functional.normalize(torch.randn(count, 4, generator=generator, dtype=dtype), dim=1))


class Superposition(nn.Module):
    """Kabsch's: source, target [batch, points, 3] and weights [batch, points] -> source moved onto target, and rmsd."""

    def forward(self, source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        w = (weights / weights.sum(1, keepdim=True))[..., None]
        means = [(w * t).sum(1, keepdim=True) for t in (source, target)]
        source, centred = source - means[0], target - means[1]
        moved = source @ nearest_rotation((w * centred).mT @ source).mT
        return moved + means[1], (w * (moved - centred).square()).sum((1, 2)).sqrt()


class MatrixFisher(nn.Module):
    """The density exp(tr(F^T R)) / c(F) with respect to uniform rotations (Mohlin et al. 2020, arXiv:2006.09740).

    c is an integral of Bessel functions in one dimension (Lee 2018, arXiv:1710.03746), here of as many ``nodes``, and
    is scaled such that it does not overflow.
    """

    def __init__(self, nodes: int = 128) -> None:
        super().__init__()
        grid = eqk.s2_grid((nodes, 1), dtype=torch.float64)
        self.register_buffer("below_one", 2 * (grid.betas / 2).sin().square())  # 1 - u, of Gauss and Legendre's u
        self.register_buffer("weights", grid.weights / (4 * math.pi))

    def log_normalizer(self, f: Tensor) -> Tensor:
        """f [..., 3, 3] -> [...]; its gradient is the mean of R."""
        s = proper_svd(f)[1]
        a, b, c = s[..., None].unbind(-2)
        v = self.below_one.to(s)
        # Not zero, where torch would take the mean of both sides' derivatives.
        x, y = ((difference / 2 + torch.finfo(s.dtype).tiny) for difference in ((a - b) * v, (a + b) * (2 - v)))
        bessel = torch.special.i0e(x) * torch.special.i0e(y)
        return (bessel * torch.exp(-v * (b + c)) @ self.weights.to(s)).log() + s.sum(-1)

    def forward(self, f: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """f, rotation [..., 3, 3] -> the logarithm of the density [...], and its mode [..., 3, 3]."""
        return (f * rotation).sum((-2, -1)) - self.log_normalizer(f), nearest_rotation(f)

    def sample(self, f: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f [batch, 3, 3] -> [batch, 3, 3]: by rejection of quaternions (Kent et al. 2013, arXiv:1310.8110)."""
        u, s, vh = proper_svd(f.detach())
        a = 2 * torch.stack([0 * s[:, 0], s[:, 1] + s[:, 2], s[:, 0] + s[:, 2], s[:, 0] + s[:, 1]], 1)
        q, left = torch.empty_like(a), torch.arange(len(f), device=f.device)
        while len(left):
            normal = torch.randn(len(left), 4, generator=generator, dtype=f.dtype, device=f.device)
            p = nn.functional.normalize(normal / (1 + 2 * a[left]).sqrt(), dim=1)
            t = (a[left] * p * p).sum(1)
            ratio = torch.exp(1.5 - t) * (1 + 2 * t).square() / 16  # of densities, and 1 at most
            accepted = torch.rand(len(left), generator=generator, dtype=f.dtype, device=f.device) < ratio
            q[left[accepted]] = p[accepted]
            left = left[~accepted]
        return u @ rotation_of(q) @ vh


def systems(small: bool) -> list[System]:
    batch, points = (4, 6) if small else (256, 256)

    def inputs(generator: torch.Generator) -> dict:
        source, target = random_features("2x1o", batch * points, generator).view(batch, points, 2, 3).unbind(2)
        weights = 0.5 + torch.rand(batch, points, generator=generator, dtype=torch.float64)
        return {"source": source, "target": target, "weights": weights}

    return [
        System(
            title="Kabsch superposition",
            source="Kabsch 1976, doi:10.1107/S0567739476001873",
            module=Superposition,
            arguments={},
            inputs=inputs,
            turn={"source": "1o", "target": "1o"},
            out=("1o", None),
        )
    ]
