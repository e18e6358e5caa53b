"""Products of irreps as products of matrices: every l1, l2 and l3 in one torch.matmul."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqk import dispatch
from eqk._library import wigner_3j
from eqk._racah import wigner_6j
from eqk._signals import broadcast_leading, by_component, channels_of, check_dense, check_same, lmax_argument
from eqk.irreps import MAX_DEGREE
from eqk.s2_quadrature import cached_tables

NORMALIZATIONS = ("component", "none")


def matrix_coefficient(l1: int, l2: int, l3: int, matrix_degree: int) -> float:
    """What one path of a product of matrices multiplies its Wigner 3j symbol by, without normalisation.

    With the Clebsch-Gordan coefficients M^l = sqrt(2 l + 1) ``eqk.wigner_3j(t, t, l)`` as matrices of degree t, which
    are orthonormal, and C = ``eqk.wigner_3j(l1, l2, l3)``,

        sum over a, b, c of M^l1[a, b, m1] M^l2[b, c, m2] M^l3[a, c, m3]
            = (-1)^l3 sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1)) {l1 l2 l3; t t t} C[m1, m2, m3]

    with a 6j symbol. 0 where a degree is above 2 t, and for a few triples inside: none with degrees up to t where t is
    below 6, then (3, 5, 6) for t = 6. (Varshalovich, Moskalev & Khersonskii 1988, chapter 9.)
    """
    t = matrix_degree
    dims = (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1)
    return (-1) ** l3 * math.sqrt(dims) * wigner_6j(l1, l2, l3, t, t, t)


@cached_tables
def _symbols(t: int, lmax: int) -> Tensor:
    """[(lmax + 1)^2, (2 t + 1)^2]: the matrix of each component; zeros above 2 t."""
    result = torch.zeros((lmax + 1) ** 2, (2 * t + 1) ** 2, dtype=torch.float64)
    for l in range(min(lmax, 2 * t) + 1):
        result[l * l : (l + 1) ** 2] = math.sqrt(2 * l + 1) * wigner_3j(t, t, l, dtype=torch.float64).flatten(0, 1).T
    return result


@dispatch._constant_when_traced
@cached_tables
def _tables(
    t: int, lmaxes: tuple[int, int, int], normalization: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """[component of x or y, row and column], and [row and column, component of the result]."""
    lmax1, lmax2, lmax_out = lmaxes
    scale = torch.ones(lmax_out + 1, dtype=torch.float64)
    if normalization == "component":
        for l3 in range(lmax_out + 1):
            pairs = [(l1, l2) for l1 in range(lmax1 + 1) for l2 in range(lmax2 + 1)]
            variance = sum(matrix_coefficient(*pair, l3, t) ** 2 for pair in pairs) / (2 * l3 + 1)
            scale[l3] = 1 / math.sqrt(variance) if variance else 1.0
    back = _symbols(t, lmax_out) * by_component(scale)[:, None]
    tables = _symbols(t, lmax1), _symbols(t, lmax2), back.T.contiguous()
    return tuple(table.to(device, dtype) for table in tables)


def matrix_product(
    x: Tensor,
    y: Tensor,
    lmax_out: int | None = None,
    *,
    matrix_degree: int | None = None,
    normalization: str = "component",
) -> Tensor:
    """The product of matrices on the irrep of degree t into which x and y are arranged, taken apart into degrees again.

    X = sum over l1, m1 of M[:, :, m1] x_l1,m1 with M = sqrt(2 l1 + 1) ``eqk.wigner_3j(t, t, l1)``, Y likewise, and
    z_l3,m3 is the sum of all elements of X Y times those of M[:, :, m3]. Each path (l1, l2, l3), of an even sum or an
    odd one, occurs once, times :func:`matrix_coefficient`, which has a 6j symbol. Those of degrees
    above 2 t are 0; of those below, few: with the default t for x, y and result of degree L, none for L < 6, (3, 5, 6)
    in any order for L = 6. Products up to degree 2 t without normalisation associate, as those of matrices do.
    (The FusedTensor of Unke & Maennel 2024, arXiv:2401.07595; Xie et al. 2025, arXiv:2506.13523, for its O(L^4) cost.)

    Equivariant under rotations. With inversions only where all degrees of x have one parity and all of y one, not those
    of spherical harmonics: since paths of even and of odd sums add up, a result has the product of the two parities.

    Args:
        x: [..., (lmax1 + 1)^2, channels], components in the order l^2 + l + m.
        y: [..., (lmax2 + 1)^2, channels], or with 1 channel for all those of x (as x may have for those of y).
        lmax_out: largest degree of the result; that of x by default. Degrees above lmax1 + lmax2 are 0.
        matrix_degree: t; ceil((lmax1 + lmax2) / 2) by default, for which every degree of a product of x and y fits.
        normalization: ``"component"``: independent components of unit variance in x and y give components of unit
            variance, on average over those of a degree. ``"none"``: no factor at all.

    All of one floating dtype and device; leading dimensions are broadcast. Each of four products of matrices is
    torch.matmul: on any device, differentiable to any order; float16 and bfloat16 round its results, and autocast
    lowers their precision.

    Returns:
        [..., (lmax_out + 1)^2, channels]

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit.
        ValueError: naming the option that does not fit, or a matrix_degree t for which the paths of a degree vanish,
            being above 2 t.
        TypeError: naming the operand that is no tensor.
    """
    op = "matrix_product"
    for name, operand in (("x", x), ("y", y)):
        check_dense(op, name, operand, 2)
    if not x.is_floating_point():
        raise RuntimeError(f"eqk.{op}: x: expected a floating dtype, got {x.dtype}")
    check_same(op, x, y)
    lmax1, lmax2 = (lmax_argument(op, name, operand) for name, operand in (("x", x), ("y", y)))
    lmax_out = lmax1 if lmax_out is None else lmax_out
    if not isinstance(lmax_out, int) or not 0 <= lmax_out <= MAX_DEGREE:
        raise ValueError(f"eqk.{op}: lmax_out: expected a degree from 0 to {MAX_DEGREE}, got {lmax_out!r}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"eqk.{op}: normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    t = (lmax1 + lmax2 + 1) // 2 if matrix_degree is None else matrix_degree
    if not isinstance(t, int) or not 0 <= t <= MAX_DEGREE:
        raise ValueError(f"eqk.{op}: matrix_degree: expected a degree from 0 to {MAX_DEGREE}, got {t!r}")
    largest = max(lmax1, lmax2, min(lmax_out, lmax1 + lmax2))
    if 2 * t < largest:
        raise ValueError(
            f"eqk.{op}: matrix_degree: expected at least {(largest + 1) // 2} for degrees up to {largest}, got {t}, "
            f"for which the paths of degrees above {2 * t} vanish"
        )
    _, _, channels = channels_of(op, x, y)
    leading = broadcast_leading(op, "x, y", (x.shape[:-2], y.shape[:-2]))
    to1, to2, back = _tables(t, (lmax1, lmax2, lmax_out), normalization, x.dtype, x.device)
    n = 2 * t + 1
    matrices = [(operand.mT @ table).unflatten(-1, (n, n)) for operand, table in ((x, to1), (y, to2))]
    product = (matrices[0] @ matrices[1]).flatten(-2)
    return (product @ back).mT.reshape(*leading, (lmax_out + 1) ** 2, channels).contiguous()
