"""Quaternions of rotations that take edges to the polar axis, and of rotation matrices."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def edge_frame(vec: Tensor, roll: Tensor | None = None) -> Tensor:
    r"""Unit quaternions of rotations that take each vector to the polar axis +y.

    With :math:`(x, y, z)` = vec / \|vec\|, the shortest rotation in the upper half of the sphere, and in the lower one
    the shortest rotation to -y and then half a turn about x:

    .. math:: q = \frac{(1 + y, -z, 0, x)}{\sqrt{2 (1 + y)}} \text{ for } y \geq 0, \qquad
              q = \frac{(-z, 1 - y, x, 0)}{\sqrt{2 (1 - y)}} \text{ for } y < 0.

    Neither has a cancellation or a singularity in its half, so that values and derivatives of any order are right to
    rounding for every direction, the axes too. Rotations about y that differ between the halves, as the two charts do
    at y = 0, change no result that does not depend on them, such as an SO(2)-equivariant layer's between a
    rotation and its inverse (eSCN, Passaro & Zitnick 2023, arXiv:2302.03655).

    Args:
        vec: [..., 3], edge vectors of any length other than zero; float32, float64, and float16 and bfloat16, which
            compute in float32.
        roll: [...], in radians, of vec's dtype: a further rotation about +y, after the other one. None of them by
            default.

    Returns:
        [..., 4], (w, x, y, z) with v -> q v q^-1 the rotation; differentiable to any order. Not a number where vec is
        zero, which has no direction, or not finite.

    Raises:
        TypeError: if an argument is no tensor.
        RuntimeError: if one has another shape, dtype or device.
    """
    for name, t in (("vec", vec), ("roll", roll)):
        if not isinstance(t, Tensor) and not (name == "roll" and t is None):
            raise TypeError(f"eqk.edge_frame: {name}: expected a tensor, got {t!r}")
    if vec.dim() == 0 or vec.shape[-1] != 3:
        raise RuntimeError(f"eqk.edge_frame: vec: expected shape [..., 3], got {tuple(vec.shape)}")
    if vec.dtype not in _DTYPES:
        raise RuntimeError(
            f"eqk.edge_frame: vec: expected dtype float32, float64, float16 or bfloat16, got {vec.dtype}"
        )
    # Squares of what is of order 1 neither overflow nor vanish. The result does not depend on the scale.
    v = vec.to(torch.promote_types(vec.dtype, torch.float32))
    v = v / v.detach().abs().amax(-1, keepdim=True)
    x, y, z = v.unbind(-1)
    r = (v * v).sum(-1).sqrt()
    upper = y >= 0
    h = r + torch.where(upper, y, -y)  # abs has no derivative at zero
    zero = torch.zeros_like(x)
    chosen = [torch.where(upper, a, b) for a, b in ((h, -z), (-z, h), (zero, x), (x, zero))]
    q = torch.stack(chosen, -1) * (2 * r * h).rsqrt()[..., None]
    if roll is not None:
        for what, got, expected in (
            ("shape", tuple(roll.shape), tuple(vec.shape[:-1])),
            ("dtype", roll.dtype, vec.dtype),
            ("device", roll.device, vec.device),
        ):
            if got != expected:
                raise RuntimeError(f"eqk.edge_frame: roll: expected {what} {expected} as vec has, got {got}")
        half = roll.to(q.dtype) / 2
        c, s = half.cos(), half.sin()
        w, x, y, z = q.unbind(-1)
        q = torch.stack([c * w - s * y, c * x + s * z, c * y + s * w, c * z - s * x], -1)
    return q.to(vec.dtype)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    r"""Unit quaternions of rotation matrices: what frames of edges that others made are to :func:`eqk.wigner`.

    Of the ten products of two components of q = (w, x, y, z), which a rotation matrix has in its sums and differences
    (Shepperd 1978, doi:10.2514/3.55767b), those with the largest component are taken,

    .. math:: q = \frac{(q_k w, q_k x, q_k y, q_k z)}{|q_k|}, \qquad k = \operatorname{argmax}_i |q_i|,

    so that nothing cancels, whatever the rotation, half turns too.

    Args:
        matrix: [..., 3, 3], rotations, which are orthogonal with determinant 1: of others the result means nothing.
            float32, float64, and float16 and bfloat16, which compute in float32.

    Returns:
        [..., 4], (w, x, y, z) with v -> q v q^-1 = matrix v, the largest component positive; differentiable to any
        order, along rotations.

    Raises:
        TypeError: if ``matrix`` is no tensor.
        RuntimeError: if it has another shape or dtype.
    """
    if not isinstance(matrix, Tensor):
        raise TypeError(f"eqk.matrix_to_quaternion: matrix: expected a tensor, got {matrix!r}")
    if matrix.shape[-2:] != (3, 3):
        raise RuntimeError(f"eqk.matrix_to_quaternion: matrix: expected shape [..., 3, 3], got {tuple(matrix.shape)}")
    if matrix.dtype not in _DTYPES:
        raise RuntimeError(
            "eqk.matrix_to_quaternion: matrix: expected dtype float32, float64, float16 or bfloat16, "
            f"got {matrix.dtype}"
        )
    r = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).flatten(-2)
    xx, xy, xz, yx, yy, yz, zx, zy, zz = r.unbind(-1)
    one = torch.ones_like(xx)
    rows = [
        [one + xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, one + xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, one - xx + yy - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, one - xx - yy + zz],
    ]
    products = torch.stack([torch.stack(row, -1) for row in rows], -2)  # 4 q q^T
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = products.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    return (q / (q * q).sum(-1, keepdim=True).sqrt()).to(matrix.dtype)
