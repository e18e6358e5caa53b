"""Products of signals on the sphere whose values are scalars, vectors or tensors, by products of their components.

A signal valued in the irrep of degree s is 2 s + 1 signals f_a = sum of f_lm Y_lm. Clebsch-Gordan coefficients take its
components (j, l), which rotations keep apart, to those f_a, an orthogonal map for each l; :func:`eqk.tensor_product`
with unit vectors for e_a is that map and its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqk import dispatch
from eqk._library import wigner_3j
from eqk._racah import wigner_9j
from eqk._signals import broadcast_leading, channels_of, check_dense
from eqk.gaunt_plan import NORMALIZATIONS, GauntPlan, gaunt_coefficient
from eqk.gaunt_product import dispatched_gaunt_product
from eqk.irreps import MAX_DEGREE, Irreps
from eqk.plan import Plan
from eqk.tensor_product import rows_of, tensor_product

Degrees = tuple[int, int, int]


@dataclass(frozen=True)
class TensorHarmonics:
    """The harmonics of signals on the sphere valued in an irrep: s = 0 scalars, 1 vectors, 2 traceless tensors.

    Each term (j, l) is the harmonic of total degree j made of those of degree l and of the basis e of the values,

        Y^{ls}_{jm}(r) = sqrt(2 j + 1) sum over mu, a of C[mu, a, m] Y_{l mu}(r) e_a,     |l - s| <= j <= l + s,

    with C = ``eqk.wigner_3j(l, s, j)`` and e3nn's real harmonics Y, orthonormal ('integral' normalisation); so are
    these. e_a of s = 1 are the axes x, y, z. (Varshalovich, Moskalev & Khersonskii 1988, section 7.1.) Components of a
    signal: sum of (2 j + 1), terms in their order. Hashable.

    Args:
        s: degree of the values.
        terms: pairs (j, l), each once. :meth:`complete` gives all to a degree.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    s: int
    terms: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.s, int) or not 0 <= self.s <= MAX_DEGREE:
            raise ValueError(f"s: expected a degree from 0 to {MAX_DEGREE}, got {self.s!r}")
        expected = f"pairs (j, l) of degrees up to {MAX_DEGREE} with |l - {self.s}| <= j <= l + {self.s}"
        if not isinstance(self.terms, Iterable):
            raise ValueError(f"terms: expected {expected}, got {self.terms!r}")
        terms = tuple(self.terms)
        for term in terms:
            pair = tuple(term) if isinstance(term, Sequence) else ()
            if (
                len(pair) != 2
                or not all(isinstance(n, int) and 0 <= n <= MAX_DEGREE for n in pair)
                or not abs(pair[1] - self.s) <= pair[0] <= pair[1] + self.s
            ):
                raise ValueError(f"terms: expected {expected}, got {term!r}")
        terms = tuple(map(tuple, terms))
        if len(set(terms)) < len(terms):
            raise ValueError(f"terms: expected each pair (j, l) once, got {terms}")
        object.__setattr__(self, "terms", terms)

    @classmethod
    def complete(cls, s: int, lmax: int) -> TensorHarmonics:
        """All (j, l) with l <= lmax, sorted by l, then j: every signal whose components have degrees up to lmax.

        Raises:
            ValueError: naming the argument that does not fit.
        """
        if not isinstance(s, int) or not 0 <= s <= MAX_DEGREE:
            raise ValueError(f"s: expected a degree from 0 to {MAX_DEGREE}, got {s!r}")
        if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE - s:
            raise ValueError(f"lmax: expected a degree from 0 to {MAX_DEGREE - s}, got {lmax!r}")
        return cls(s, tuple((j, l) for l in range(lmax + 1) for j in range(abs(l - s), l + s + 1)))

    @property
    def lmax(self) -> int:
        """Largest degree of the components f_a; 0 where there is no term."""
        return max((l for _, l in self.terms), default=0)

    @property
    def dim(self) -> int:
        """Number of components."""
        return sum(2 * j + 1 for j, _ in self.terms)

    def irreps(self, parity: int, channels: int = 1) -> Irreps:
        """What the components transform as, in e3nn's layout or, with ``channels``, in ``"ir_mul"``.

        Args:
            parity: of the values: 1 for scalars and pseudovectors, -1 for pseudoscalars and vectors. Harmonics of
                degree l have (-1)^l besides.

        Raises:
            ValueError: if the parity is neither.
        """
        if parity not in (1, -1):
            raise ValueError(f"parity: expected 1 or -1, got {parity!r}")
        return Irreps([(channels, (j, parity * (-1) ** l)) for j, l in self.terms])


def generalized_gaunt_coefficient(s: Degrees, l: Degrees, j: Degrees) -> float:
    """What one path of :func:`vector_gaunt_product` multiplies its Wigner 3j symbol of the total degrees j by.

    The integral over the sphere of three harmonics whose values are coupled by the symbol of the degrees s,

        int sum over a, b, c of C^s[a, b, c] Y^{l1 s1}_{j1}[a] Y^{l2 s2}_{j2}[b] Y^{l3 s3}_{j3}[c]
            = sqrt((2 j1 + 1)(2 j2 + 1)(2 j3 + 1)) G(l1, l2, l3) {l1 l2 l3; s1 s2 s3; j1 j2 j3} C^j

    with G = :func:`eqk.gaunt_plan.gaunt_coefficient` for l1 + l2 + l3 even, 0 for an odd sum, and a 9j symbol. e3nn's
    basis leaves no sign. (Varshalovich et al. 1988, chapter 10, for the 9j symbol.)
    """
    if sum(l) % 2:
        return 0.0
    return math.sqrt(math.prod(2 * n + 1 for n in j)) * gaunt_coefficient(*l) * wigner_9j(*l, *s, *j)


def _unit_vectors(s: int) -> str:
    """The irreps of e_a, one after the other."""
    return "+".join([f"1x{s}e"] * (2 * s + 1))


def _irreps(channels: int, degrees: Iterable[int]) -> list:
    return [(channels, (l, 1)) for l in degrees]


def _to_scalars(s: int, terms: Sequence[tuple[int, int]], channels: int) -> str | None:
    """From components (j, l) to [2 s + 1, (lmax + 1)^2] of f_a; None where they are those."""
    n = max((l for _, l in terms), default=0) + 1
    if s == 0 and terms == tuple((l, l) for l in range(n)):
        return None
    # C(l, s, j) with l and j exchanged.
    instructions = [
        (i, a, a * n + l, "uvu", False, math.sqrt(2 * j + 1) * (-1) ** (j + l + s))
        for i, (j, l) in enumerate(terms)
        for a in range(2 * s + 1)
    ]
    irreps = _irreps(channels, (j for j, _ in terms)), _unit_vectors(s), _irreps(channels, [*range(n)] * (2 * s + 1))
    return str(Plan(*irreps, instructions, "ir_mul", "ir_mul", "ir_mul"))


@dispatch._cached_constant
def _plans(
    s: Degrees, terms: tuple[tuple[tuple[int, int], ...], ...], channels: Degrees, normalization: str
) -> tuple[str | None, str | None, str, str, tuple[int, ...], tuple[int, ...]]:
    """Of x and y to their components, of products of these, from them to the result; and which are multiplied."""
    symbol = wigner_3j(*s, dtype=torch.float64)
    pairs = [(a, b, c, float(symbol[a, b, c])) for a, b, c in symbol.abs().gt(1e-12).nonzero().tolist()]
    lmaxes = [max((l for _, l in t), default=0) for t in terms]
    instructions, n = [], lmaxes[2] + 1
    for k, (j, l) in enumerate(terms[2]):
        factor = math.sqrt(2 * j + 1)
        if normalization == "component":
            squares = [
                generalized_gaunt_coefficient(s, (l1, l2, l), (j1, j2, j)) ** 2
                for j1, l1 in terms[0]
                for j2, l2 in terms[1]
            ]
            factor *= math.sqrt((2 * j + 1) / sum(squares)) if sum(squares) > 1e-20 else 1
        for p, (_, _, c, value) in enumerate(pairs):
            instructions.append((p * n + l, c, k, "uvu", False, factor * value))
    back = Plan(
        _irreps(channels[2], [*range(n)] * len(pairs)),
        _unit_vectors(s[2]),
        _irreps(channels[2], (j for j, _ in terms[2])),
        instructions,
        "ir_mul",
        "ir_mul",
        "ir_mul",
    )
    return (
        _to_scalars(s[0], terms[0], channels[0]),
        _to_scalars(s[1], terms[1], channels[1]),
        str(GauntPlan(*lmaxes, *channels[:2])),
        str(back),
        tuple(a for a, *_ in pairs),
        tuple(b for _, b, *_ in pairs),
    )


def _coupled(t: Tensor, plan: str, s: int) -> Tensor:
    return tensor_product(t, torch.eye(2 * s + 1, dtype=t.dtype, device=t.device).flatten(), None, plan)


def _chosen(t: Tensor, plan: str | None, s: int, wanted: tuple[int, ...]) -> Tensor:
    """Components [..., dim, channels] -> [..., 1 or wanted, (lmax + 1)^2 channels] of the f_a that are wanted."""
    t = t.flatten(-2)
    if plan is None:
        return t[..., None, :]
    parts = _coupled(t, plan, s).unflatten(-1, (2 * s + 1, -1))
    if s == 0 or wanted == tuple(range(2 * s + 1)):
        return parts
    return torch.stack([parts[..., a, :] for a in wanted], -2)


def vector_gaunt_product(
    x: Tensor,
    y: Tensor,
    harmonics1: TensorHarmonics,
    harmonics2: TensorHarmonics,
    harmonics_out: TensorHarmonics,
    *,
    normalization: str = "integral",
) -> Tensor:
    """The product, at each point, of two signals on the sphere valued in irreps, in harmonics of such signals.

    For F and G the signals of x and y, H_c = sum over a, b of C[a, b, c] F_a G_b with C = ``eqk.wigner_3j(s1, s2, s3)``
    of the degrees of their values: F . G / sqrt(3) for (1, 1, 0), F x G / sqrt(6) for (1, 1, 1), f G / sqrt(3) for
    (0, 1, 1), f g for (0, 0, 0). The result is H in ``harmonics_out``: for each three terms (j, l) the Clebsch-Gordan
    product of the degrees j, times :func:`generalized_gaunt_coefficient`. Sums j1 + j2 + j3 may be odd, unlike in
    products of scalars: it is what the cross product is for. (Xie, Daigavane, Kotak & Smidt 2026, arXiv:2602.21466.)
    The bracket of :func:`eqk.gaunt_product` has the same paths for less: with F = r x grad f, of l = j, and G = grad g,
    of l = j - 1 and j + 1, F . G is {f, g}, for which two fields of each on one degree less are enough.

    Exact, by products of the components F_a and G_b that C couples (3 for the inner product, 6 for the cross product),
    each of which is a :func:`eqk.gaunt_product`. No grid is stored.

    Args:
        x: [..., harmonics1.dim, channels].
        y: [..., harmonics2.dim, channels], or with 1 channel for all those of x (as x may have for those of y).
        harmonics1, harmonics2, harmonics_out: :class:`TensorHarmonics` of x, y and the result.
        normalization: ``"integral"``: no factor at all. ``"component"``: independent components of unit variance in x
            and y give components of unit variance, on average over those of a term.

    All of one dtype (float32, float64; float16 and bfloat16 accumulate in float32) and device; leading dimensions are
    broadcast; under autocast mixed dtypes are promoted. Differentiable to any order, in reverse and forward mode, under
    torch.func and torch.compile.

    Returns:
        [..., harmonics_out.dim, channels]

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit; or why the backend that was asked
            for (:mod:`eqk.dispatch`) cannot run.
        ValueError: naming the option that does not fit, or degrees s that do not couple.
        TypeError: naming the operand that is no tensor or no TensorHarmonics.
    """
    op, given = "vector_gaunt_product", (harmonics1, harmonics2, harmonics_out)
    for name, harmonics in zip(("harmonics1", "harmonics2", "harmonics_out"), given, strict=True):
        if not isinstance(harmonics, TensorHarmonics):
            raise TypeError(f"eqk.{op}: {name}: expected eqk.TensorHarmonics, got {harmonics!r}")
    for name, operand, harmonics in (("x", x, harmonics1), ("y", y, harmonics2)):
        check_dense(op, name, operand, 2)
        if operand.shape[-2] != harmonics.dim:
            raise RuntimeError(
                f"eqk.{op}: {name}: expected shape [..., {harmonics.dim}, channels], got {tuple(operand.shape)}"
            )
    s = harmonics1.s, harmonics2.s, harmonics_out.s
    if not abs(s[0] - s[1]) <= s[2] <= s[0] + s[1]:
        raise ValueError(
            f"eqk.{op}: harmonics_out: expected s from {abs(s[0] - s[1])} to {s[0] + s[1]}, to which values of "
            f"s = {s[0]} and {s[1]} couple, got {s[2]}"
        )
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"eqk.{op}: normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    channels = channels_of(op, x, y)
    leading = broadcast_leading(op, "x, y", (x.shape[:-2], y.shape[:-2]))
    terms = harmonics1.terms, harmonics2.terms, harmonics_out.terms
    to1, to2, plan, back, first, second = _plans(s, terms, channels, normalization)
    f, g = _chosen(x, to1, s[0], first), _chosen(y, to2, s[1], second)
    batch = [*leading, len(first)]
    products = dispatched_gaunt_product(rows_of(f, batch), rows_of(g, batch), None, None, None, plan)
    out = _coupled(products.reshape(*leading, len(first) * products.shape[-1]), back, s[2])
    return out.unflatten(-1, (harmonics_out.dim, channels[2]))
