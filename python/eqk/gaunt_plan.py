"""The description of a product of signals on the sphere, and its closed-form normalisation."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from eqk.irreps import MAX_DEGREE
from eqk.plan import LAYOUTS, MAX_LENGTH, NUMBER

KINDS = ("even", "odd", "all")
NORMALIZATIONS = ("integral", "component")
_MAX_RANK = 4096  # csrc/gaunt_product/plan.h


@functools.cache
def gaunt_coefficient(l1: int, l2: int, l3: int) -> float:
    """What one path of a product of signals on the sphere multiplies its Wigner 3j symbol by; 0 outside the triangle.

    For J = l1 + l2 + l3 even, the integral of the product of three orthonormal real harmonics,

        int Y1 Y2 Y3 = sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) |(l1 l2 l3; 0 0 0)| C

    and for J odd that of the Poisson bracket, int Y3 r . (grad Y1 x grad Y2), the same with
    sqrt(l1 (l1 + 1) l2 (l2 + 1)) |(l1 l2 l3; 1 -1 0)|, where C is :func:`eqk.wigner_3j`. Both are positive in e3nn's
    basis. (Edmonds 1957, eq. 4.6.3 for the product, with eq. 3.7.17 for its symbol.)
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return 0.0
    f, j = math.factorial, l1 + l2 + l3
    delta = math.sqrt(f(j - 2 * l1) * f(j - 2 * l2) * f(j - 2 * l3) / f(j + 1))
    g = j // 2
    reduced = delta * (2 * f(g + 1) if j % 2 else f(g)) / (f(g - l1) * f(g - l2) * f(g - l3))
    return math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * math.pi)) * reduced


@dataclass(frozen=True)
class GauntPlan:
    """A product of signals on the sphere; hashable, complete in its string.

    A signal f has components x_lm, f = sum of x_lm Y_lm with e3nn's real harmonics, orthonormal ('integral'
    normalisation), degrees 0 to lmax. With f and g the signals of x and y, their degrees times ``scale1`` and
    ``scale2``, the result is

        z_l3 = scale_out[l3] P_l3[even f g + odd {f, g}],     {f, g} = r . (grad f x grad g),

    P_l the projection to degree l: every path (l1, l2, l3) once, times :func:`gaunt_coefficient`, even sums of degrees
    from the product and odd ones from the Poisson bracket.

    Args:
        lmax1, lmax2, lmax_out: largest degrees of x, y and the result.
        channels1, channels2: numbers of signals; equal, or one of them 1, which multiplies all of the other.
        even, odd: coefficients of the product and of the bracket.
        rank: number of terms that factorised weights give.
        scale1, scale2, scale_out: a factor for each degree; ones by default.
        layout1, layout2, layout_out: ``"ir_mul"``, components [(lmax + 1)^2, channels] in the order l^2 + l + m, or
            ``"mul_ir"``, e3nn's columns of ``channels x 0 + channels x 1 + ...``.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    lmax1: int
    lmax2: int
    lmax_out: int
    channels1: int
    channels2: int
    even: float = 1.0
    odd: float = 0.0
    rank: int = 1
    scale1: tuple[float, ...] = ()
    scale2: tuple[float, ...] = ()
    scale_out: tuple[float, ...] = ()
    layout1: str = "ir_mul"
    layout2: str = "ir_mul"
    layout_out: str = "ir_mul"
    _string: str = field(init=False, repr=False, compare=False, hash=False, default="")

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        for name in ("1", "2", "_out"):
            lmax, scale = getattr(self, f"lmax{name}"), getattr(self, f"scale{name}")
            if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
                raise ValueError(f"lmax{name}: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
            scale = tuple(float(s) for s in scale) or (1.0,) * (lmax + 1)
            if len(scale) != lmax + 1 or not all(map(math.isfinite, scale)):
                raise ValueError(f"scale{name}: expected {lmax + 1} finite numbers, got {scale}")
            put(f"scale{name}", scale)
            if getattr(self, f"layout{name}") not in LAYOUTS:
                raise ValueError(
                    f"layout{name}: expected one of {', '.join(LAYOUTS)}, got {getattr(self, f'layout{name}')!r}"
                )
        for name in ("channels1", "channels2"):
            if not isinstance(getattr(self, name), int) or not 0 <= getattr(self, name) <= 2**31:
                raise ValueError(f"{name}: expected a number from 0 to 2^31, got {getattr(self, name)!r}")
        if self.channels1 != self.channels2 and 1 not in (self.channels1, self.channels2):
            raise ValueError(f"channels2: expected {self.channels1} as in x, or 1, got {self.channels2}")
        if not isinstance(self.rank, int) or not 1 <= self.rank <= _MAX_RANK:
            raise ValueError(f"rank: expected a number from 1 to {_MAX_RANK}, got {self.rank!r}")
        for name in ("even", "odd"):
            put(name, float(getattr(self, name)))
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite coefficient, got {getattr(self, name)}")
        put("_string", self._format())

    @property
    def channels(self) -> int:
        """Of the result."""
        return self.channels2 if self.channels1 == 1 else self.channels1

    @property
    def lmaxes(self) -> tuple[int, int, int]:
        return self.lmax1, self.lmax2, self.lmax_out

    @property
    def dims(self) -> tuple[int, int, int]:
        """Columns of x, y and the result."""
        signals = zip(self.lmaxes, (self.channels1, self.channels2, self.channels), strict=True)
        return tuple((lmax + 1) ** 2 * channels for lmax, channels in signals)

    @property
    def weight_numels(self) -> tuple[int, int, int]:
        """Columns of the weights a, b and c: [rank, lmax + 1, channels]."""
        return tuple(self.rank * (lmax + 1) * self.channels for lmax in self.lmaxes)

    def path_coefficient(self, l1: int, l2: int, l3: int) -> float:
        """What multiplies the Wigner 3j symbol of one path in the result."""
        kind = self.odd if (l1 + l2 + l3) % 2 else self.even
        return kind * self.scale1[l1] * self.scale2[l2] * self.scale_out[l3] * gaunt_coefficient(l1, l2, l3)

    @classmethod
    def normalized(
        cls,
        lmax1: int,
        lmax2: int,
        lmax_out: int,
        channels1: int,
        channels2: int,
        kind: str = "even",
        normalization: str = "integral",
        **options,
    ) -> GauntPlan:
        """The plan of the product (``"even"``), the bracket (``"odd"``) or their sum (``"all"``).

        Args:
            normalization: ``"integral"``: the result is what :class:`GauntPlan` says, with no factor at all.
                ``"component"``: independent components of unit variance in x and y give components of unit variance,
                on average over those of a degree. For the bracket the degrees l > 0 of all three are first scaled by
                (l (l + 1))^(-1/3), after which its coefficients up to degree 8 differ by a factor of 2.0 instead of 66;
                in ``"all"`` the bracket has one factor, such that it contributes as much variance as the product
                in sum over the result.
            options: the other arguments of :class:`GauntPlan`.

        Raises:
            ValueError: naming the argument that does not fit.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
        plan = cls(lmax1, lmax2, lmax_out, channels1, channels2, kind != "odd", kind != "even", **options)
        if normalization == "integral":
            return plan
        changed = {name: getattr(plan, name) for name in cls.__dataclass_fields__ if not name.startswith("_")}
        if kind == "odd":
            for name, lmax in zip(("scale1", "scale2"), plan.lmaxes, strict=False):
                changed[name] = tuple((l * (l + 1)) ** (-1 / 3) if l else 1.0 for l in range(lmax + 1))
            plan = cls(**changed)
        if kind == "all":
            of_product, of_bracket = (sum(plan._variances(parity)) for parity in (0, 1))
            if of_product > 0 and of_bracket > 0:
                changed["odd"] = math.sqrt(of_product / of_bracket)
            plan = cls(**changed)
        variances = [sum(pair) for pair in zip(plan._variances(0), plan._variances(1), strict=True)]
        changed["scale_out"] = tuple(1 / math.sqrt(v) if v > 0 else 1.0 for v in variances)
        return cls(**changed)

    def _variances(self, parity: int) -> list[float]:
        """Of a component of each degree of the result, from paths of this parity of l1 + l2 + l3."""
        return [
            sum(
                self.path_coefficient(l1, l2, l3) ** 2
                for l1 in range(self.lmax1 + 1)
                for l2 in range(self.lmax2 + 1)
                if (l1 + l2 + l3) % 2 == parity
            )
            / (2 * l3 + 1)
            for l3 in range(self.lmax_out + 1)
        ]

    def _format(self) -> str:
        sizes = [
            f"{channels}x{lmax}"
            for channels, lmax in zip((self.channels1, self.channels2, self.channels), self.lmaxes, strict=True)
        ]
        scales = "; ".join(" ".join(map(repr, s)) for s in (self.scale1, self.scale2, self.scale_out))
        return (
            f"{sizes[0]} * {sizes[1]} -> {sizes[2]} even {self.even!r} odd {self.odd!r} rank {self.rank} "
            f"[{self.layout1},{self.layout2},{self.layout_out}] {{{scales}}}"
        )

    def __str__(self) -> str:
        return self._string

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def parse(cls, text: str) -> GauntPlan:
        """The plan whose ``str`` is ``text``. Raises ValueError on malformed text."""
        match = _PLAN.fullmatch(text)
        # The op's parser knows no white space but the space, and no digits but ASCII's.
        if not match or len(text) > MAX_LENGTH or not (text.isascii() and text.isprintable()):
            raise ValueError(
                "plan: expected 'C1xL1 * C2xL2 -> CxL even E odd O rank R [LAYOUTS] {SCALES; SCALES; SCALES}', "
                f"got {text[:200]!r}"
            )
        c1, l1, c2, l2, c, l, even, odd, rank, *layouts, s1, s2, s3 = match.groups()
        scales: Sequence[tuple[float, ...]] = [tuple(map(float, s.split())) for s in (s1, s2, s3)]
        sizes = map(int, (l1, l2, l, c1, c2))
        try:
            plan = cls(*sizes, float(even), float(odd), int(rank), *scales, *layouts)
        except ValueError as error:
            raise ValueError(f"plan: {error}") from None
        if int(c) != plan.channels:
            raise ValueError(f"plan: expected {plan.channels} signals in the result, got {c}")
        return plan


_SIGNALS = r" *(\d+) *x *(\d+) *"
_SCALE = rf" *({NUMBER}(?: +{NUMBER})*) *"
_PLAN = re.compile(
    rf"{_SIGNALS}\*{_SIGNALS}->{_SIGNALS}even *({NUMBER}) +odd *({NUMBER}) +rank *(\d+) *"
    rf"\[ *(\w+) *, *(\w+) *, *(\w+) *\] *\{{{_SCALE};{_SCALE};{_SCALE}\}} *",
    re.ASCII,
)
