"""What a row of an op costs at least: bytes that must move and multiply-adds, of a plan, for each phase.

A phase counts all ops that run in it: ``"forward"``; ``"backward"``, forward and the gradients of all operands;
``"double"``, that with the derivatives of those gradients, as force training has them. Numbers are float32. The larger
of bytes over the bandwidth of a copy and multiply-adds over the rate of a matrix product (:mod:`eqk.measure`) is the
floor of the time.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from eqk._library import wigner_3j
from eqk._signals import count
from eqk.gaunt_plan import GauntPlan
from eqk.plan import Instruction, Plan
from eqk.s2_activation_plan import S2ActivationPlan
from eqk.symmetric_contraction_plan import SymmetricContractionPlan, polynomial_of

PHASES = ("forward", "backward", "double")


class Count(NamedTuple):
    """Bytes that move and multiply-adds."""

    moved: float
    products: float

    def seconds(self, limits: tuple[float, float]) -> float:
        """The floor where ``limits`` are bytes and multiply-adds a second."""
        return max(self.moved / limits[0], self.products / limits[1])


def _summed(steps: Iterable[tuple[float, float]]) -> dict[str, Count]:
    """Of (numbers, multiply-adds) of the last op of each phase, those of the phase."""
    total, result = Count(0.0, 0.0), {}
    for phase, (numbers, products) in zip(PHASES, steps, strict=True):
        total = Count(total.moved + 4 * numbers, total.products + products)
        result[phase] = total
    return result


@functools.cache
def coupling_terms(l1: int, l2: int, l3: int) -> int:
    """The nonzero numbers of a Wigner 3j symbol."""
    return int((wigner_3j(l1, l2, l3) != 0).sum())


@functools.cache
def _coupled_pairs(l1: int, l2: int, l3: int) -> int:
    """The pairs (i, k) for which some C[i, j, k] is nonzero."""
    return int((wigner_3j(l1, l2, l3) != 0).any(1).sum())


def path_products(plan: Plan, ins: Instruction) -> int:
    """Multiply-adds of a path, forward: with M[i, k] = sum_j C[i, j, k] y[j] made once, and the weights' product."""
    (m1, a), (m2, b), (mo, c) = plan.irreps_in1[ins.i_in1], plan.irreps_in2[ins.i_in2], plan.irreps_out[ins.i_out]
    mode = ins.connection_mode
    channels = m1 if mode.startswith("uu") else m1 * (m1 - 1) // 2 if "<" in mode else m1 * m2
    products = channels * _coupled_pairs(a.l, b.l, c.l)
    return products + (channels * mo * c.dim if mode.endswith("w") else 0)


def tensor_product_counts(plan: Plan) -> dict[str, Count]:
    """Of a row. Shared weights move once for all rows, which counts as nothing."""
    x, y, g = plan.irreps_in1.dim, plan.irreps_in2.dim, plan.irreps_out.dim
    w = 0 if plan.weights == "shared" else plan.weight_numel
    products = sum(path_products(plan, ins) for ins in plan.instructions)
    moved = x + y + w + g, 2 * (x + y + w) + g, 3 * (x + y + w) + 2 * g
    return _summed(zip(moved, (products, 2 * products, 5 * products), strict=True))


def gaunt_paths(plan: GauntPlan) -> Iterator[tuple[int, int, int, float]]:
    """(l1, l2, l3, coefficient) of the product."""
    for l1, l2, l3 in itertools.product(*[range(lmax + 1) for lmax in plan.lmaxes]):
        if coefficient := plan.path_coefficient(l1, l2, l3):
            yield l1, l2, l3, coefficient


def gaunt_product_counts(plan: GauntPlan) -> dict[str, Count]:
    """Of a row of all channels, without weights: Legendre sums on pairs of rings and products of polynomials on each.

    A single channel of one operand that multiplies all of the other counts as if it were repeated.
    """

    def ring(first: int, second: int, out: int) -> int:
        """Real multiply-adds of a product of polynomials; 0 is real, and of a pair with the conjugate one is formed."""
        total = 2 * min(first, second) + 1
        for m in range(1, out + 1):
            for p in range(max(-first, m - second), min(first, m + second) + 1):
                total += 2 if p in (0, m) else 4
        return total

    rings, kinds = sum(plan.lmaxes) // 2 + 1, (plan.even != 0) + (plan.odd != 0)
    half, (n1, n2, n3) = (rings + 1) // 2, ((lmax + 1) ** 2 for lmax in plan.lmaxes)
    l1, l2, l3 = plan.lmaxes
    of_ring = {"even": 1.0, "odd": 2.0, "all": 2.5}["even" if not plan.odd else "all" if plan.even else "odd"]
    product = [rings * of_ring * ring(*degrees) for degrees in ((l1, l2, l3), (l2, l3, l1), (l3, l1, l2))]
    steps = (
        (n1 + n2 + n3, half * (kinds * (n1 + n2) + n3) + product[0]),
        (2 * (n1 + n2) + n3, half * (kinds * (n1 + n2 + n3) + n1 + n2) + product[1] + product[2]),
        (3 * (n1 + n2 + n3), half * (2 * kinds * (n1 + n2 + n3) + n1 + n2 + n3) + 2 * sum(product)),
    )
    return _summed((plan.channels * numbers, plan.channels * products) for numbers, products in steps)


def s2_activation_counts(plan: S2ActivationPlan) -> dict[str, Count]:
    """Of a row of all channels: Legendre sums on pairs of rings, Fourier sums, and 16 a value of the function."""
    rings, angles = plan.res

    def transform(lmax: int) -> int:
        width = 2 * min(lmax, plan.mmax) + 1
        return (rings + 1) // 2 * count(lmax, plan.mmax) + rings * (angles // 2 + 1) * width

    to, back = transform(plan.lmax_in), transform(plan.lmax_out)
    x, z = count(plan.lmax_in, plan.mmax), count(plan.lmax_out, plan.mmax)
    evaluation = 16 * rings * angles
    steps = (
        (x + z, to + back + evaluation),
        (2 * x + z, 2 * to + back + evaluation),
        (5 * x + 2 * z, 5 * to + 2 * back + 2 * evaluation),
    )
    return _summed((plan.channels * numbers, plan.channels * products) for numbers, products in steps)


def monomial_count(plan: SymmetricContractionPlan) -> int:
    """Monomials of x in all components of the result together."""
    return sum(len(component) for component in polynomial_of(plan))


def monomials_bound(plan: SymmetricContractionPlan) -> int:
    """How many numbers :func:`monomial_count` makes at most, which grow as the fourth power of the dimension."""
    degrees = {len(c.irreps) for path in plan.paths for c in path.chains}
    chains = sum(len(path.chains) for path in plan.paths)
    return max((math.comb(plan.irreps_in.dim + d - 1, d) for d in degrees), default=0) * max(1, chains)


def symmetric_contraction_counts(plan: SymmetricContractionPlan) -> dict[str, Count]:
    """Of a node and channel: a multiply-add for each monomial, two more for the gradient of x, one for that of w.

    Weights move once for all nodes, which counts as nothing. Twice as many on duals.
    """
    monomials, x, g = monomial_count(plan), plan.irreps_in.dim, plan.irreps_out.dim
    return _summed(((x + g, monomials), (2 * x + g, 3 * monomials), (3 * x + 2 * g, 6 * monomials)))
