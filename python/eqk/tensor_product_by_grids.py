"""Clebsch-Gordan products with every path apart, by products of signals on the sphere of one degree each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqk import dispatch
from eqk._signals import broadcast_leading, channels_of, check_dense, lmax_argument
from eqk.gaunt_plan import GauntPlan, gaunt_coefficient
from eqk.gaunt_product import dispatched_gaunt_product
from eqk.irreps import MAX_DEGREE
from eqk.tensor_product import rows_of

IRREP_NORMALIZATIONS = ("component", "norm", "none")


def tensor_product_paths(lmax1: int, lmax2: int, lmax_out: int) -> list[tuple[int, int, int]]:
    """(l1, l2, l3) of :func:`tensor_product_by_grids`, in its order."""
    return [
        (l1, l2, l3)
        for l1 in range(lmax1 + 1)
        for l2 in range(lmax2 + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1)
    ]


@dispatch._cached_constant
def _pairs(
    lmax1: int, lmax2: int, lmax_out: int, channels1: int, channels2: int, irrep_normalization: str
) -> tuple[int, tuple[tuple[int, int, str], ...]]:
    """Components of the result; and for each pair its degrees and plan, whose factors of 0 leave one degree of each."""
    result = []
    for l1 in range(lmax1 + 1):
        for l2 in range(lmax2 + 1):
            lmin, lmax = abs(l1 - l2), min(l1 + l2, lmax_out)
            if lmin > lmax:
                continue
            scale_out = [0.0] * lmin
            for l3 in range(lmin, lmax + 1):
                alpha = {"component": 2 * l3 + 1, "norm": (2 * l1 + 1) * (2 * l2 + 1), "none": 1}[irrep_normalization]
                scale_out.append(math.sqrt(alpha) / gaunt_coefficient(l1, l2, l3))
            of_one = [(0.0,) * l + (1.0,) for l in (l1, l2)]
            plan = GauntPlan(l1, l2, lmax, channels1, channels2, 1.0, 1.0, 1, *of_one, tuple(scale_out))
            result.append((l1, l2, str(plan)))
    return sum(2 * l3 + 1 for _, _, l3 in tensor_product_paths(lmax1, lmax2, lmax_out)), tuple(result)


def tensor_product_by_grids(
    x: Tensor, y: Tensor, lmax_out: int | None = None, *, irrep_normalization: str = "component"
) -> Tensor:
    """All paths of the Clebsch-Gordan product of x and y, each with an output of its own, by products on the sphere.

    For x = sum of x_l1 and y = sum of y_l2, the result has [x_l1 (x) y_l2]_l3 = sum over m1, m2 of
    ``eqk.wigner_3j(l1, l2, l3)`` x_l1,m1 y_l2,m2 for each l1, each l2, and each l3 from |l1 - l2| to l1 + l2, in this
    order: what ``e3nn.o3.FullTensorProduct`` has, channel by channel, and not sorted. For each (l1, l2) one product and
    one Poisson bracket of signals f and g of these degrees give every l3, since no parity of l1 + l2 + l3 has both:

        [x_l1 (x) y_l2]_l3 = P_l3[f g + {f, g}] / gaunt_coefficient(l1, l2, l3)

    (Xie, Daigavane, Kotak & Smidt 2026, arXiv:2602.21466.) O(L^2) pairs, each with one analysis to degree O(L), cost
    O(L^4 log^2 L) with a fast Legendre transform, where the sparse product costs O(L^5), and the result alone has
    Theta(L^4) components. The transforms of :func:`eqk.gaunt_product` are separable, O(L^3), so that this function is
    O(L^5) too: on a CPU :func:`eqk.tensor_product` with the same paths is faster to L = 10, the largest with every l3,
    by 5 at L = 2 and 1.3 to 1.8 there (bench/tensor_product_by_grids.py).

    Args:
        x: [..., (lmax1 + 1)^2, channels], components in the order l^2 + l + m.
        y: [..., (lmax2 + 1)^2, channels], or with 1 channel for all those of x (as x may have for those of y).
        lmax_out: largest l3, up to 20; lmax1 + lmax2 by default.
        irrep_normalization: e3nn's: ``"component"`` multiplies by sqrt(2 l3 + 1), ``"norm"`` by
            sqrt((2 l1 + 1)(2 l2 + 1)), ``"none"`` by 1.

    All of one dtype (float32, float64; float16 and bfloat16 accumulate in float32) and device; leading dimensions are
    broadcast; under autocast mixed dtypes are promoted. Differentiable to any order, in reverse and forward mode, under
    torch.func and torch.compile.

    Returns:
        [..., sum of (2 l3 + 1) over paths, channels]; (lmax1 + 1)^2 (lmax2 + 1)^2 components for all paths.

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit; or why the backend that was asked
            for (:mod:`eqk.dispatch`) cannot run.
        ValueError: naming the option that does not fit.
        TypeError: naming the operand that is no tensor.
    """
    op = "tensor_product_by_grids"
    for name, t in (("x", x), ("y", y)):
        check_dense(op, name, t, 2)
    lmax1, lmax2 = (lmax_argument(op, name, t) for name, t in (("x", x), ("y", y)))
    lmax_out = lmax1 + lmax2 if lmax_out is None else lmax_out
    if not isinstance(lmax_out, int) or not 0 <= lmax_out <= MAX_DEGREE:
        raise ValueError(f"eqk.{op}: lmax_out: expected a degree from 0 to {MAX_DEGREE}, got {lmax_out!r}")
    if irrep_normalization not in IRREP_NORMALIZATIONS:
        raise ValueError(
            f"eqk.{op}: irrep_normalization: expected one of {', '.join(IRREP_NORMALIZATIONS)}, got "
            f"{irrep_normalization!r}"
        )
    channels1, channels2, channels = channels_of(op, x, y)
    leading = broadcast_leading(op, "x, y", (x.shape[:-2], y.shape[:-2]))
    batch = leading or [1]
    xs, ys = (
        [t[:, : (l + 1) ** 2 * n] for l in range(lmax + 1)]
        for t, lmax, n in (
            (rows_of(x.flatten(-2), batch), lmax1, channels1),
            (rows_of(y.flatten(-2), batch), lmax2, channels2),
        )
    )
    dim, pairs = _pairs(lmax1, lmax2, lmax_out, channels1, channels2, irrep_normalization)
    parts = []
    for l1, l2, plan in pairs:
        product = dispatched_gaunt_product(xs[l1], ys[l2], None, None, None, plan)
        parts.append(product[:, (l1 - l2) ** 2 * channels :])
    return torch.cat(parts, 1).reshape(*leading, dim, channels)
