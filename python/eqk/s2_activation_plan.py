"""The description of a function applied to signals on the sphere."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field

from eqk._signals import ORDERS, count
from eqk.irreps import MAX_DEGREE
from eqk.plan import LAYOUTS, MAX_LENGTH, NUMBER
from eqk.s2_quadrature import QUADRATURES, exact_degree, grid_factors

# csrc/s2_activation/plan.h
FUNCTIONS = (
    *("identity", "square", "cube", "quartic", "relu", "abs"),
    *("sigmoid", "silu", "tanh", "gelu", "softplus", "ssp"),
)
POWERS = {"identity": 1, "square": 2, "cube": 3, "quartic": 4}
_MAX_RESOLUTION = 1024


@dataclass(frozen=True)
class S2ActivationPlan:
    """To a grid of the sphere, a function of each value, and back; hashable, complete in its string.

    With Y the orthonormal harmonics of e3nn, a grid of points r with weights w of its quadrature, z = A f(S x):

        f(r) = function(sum over l, m of scale_in[l] x_lm Y_lm(r))
        z_lm = gain scale_out[l] sum over r of w f(r) Y_lm(r)

    Args:
        lmax_in, lmax_out: largest degrees of x and of the result.
        channels: number of signals.
        function: one of :data:`FUNCTIONS`; gelu is the exact one, ssp is softplus less log(2).
        res: (res_beta, res_alpha), rings and angles (:func:`eqk.s2_grid`).
        quadrature: ``"gausslegendre"`` or ``"soft"``.
        gain: a factor of the result.
        scale_in, scale_out: a factor for each degree; ones by default.
        layout_in, layout_out: ``"ir_mul"``, [components, channels], or ``"mul_ir"``, e3nn's.
        mmax: components are those of ``|m| <= mmax``; all by default.
        order: of components, ``"l_primary"`` or ``"m_primary"`` (:func:`eqk.s2_activation`).

    Raises:
        ValueError: naming the argument that does not fit.
    """

    lmax_in: int
    lmax_out: int
    channels: int
    function: str
    res: tuple[int, int]
    quadrature: str = "gausslegendre"
    gain: float = 1.0
    scale_in: tuple[float, ...] = ()
    scale_out: tuple[float, ...] = ()
    layout_in: str = "ir_mul"
    layout_out: str = "ir_mul"
    mmax: int | None = None
    order: str = "l_primary"
    _string: str = field(init=False, repr=False, compare=False, hash=False, default="")

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        for name in ("in", "out"):
            lmax, scale = getattr(self, f"lmax_{name}"), getattr(self, f"scale_{name}")
            if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
                raise ValueError(f"lmax_{name}: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
            scale = tuple(float(s) for s in scale) or (1.0,) * (lmax + 1)
            if len(scale) != lmax + 1 or not all(map(math.isfinite, scale)):
                raise ValueError(f"scale_{name}: expected {lmax + 1} finite numbers, got {scale}")
            put(f"scale_{name}", scale)
            layout = getattr(self, f"layout_{name}")
            if layout not in LAYOUTS:
                raise ValueError(f"layout_{name}: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        most = max(self.lmax_in, self.lmax_out)
        mmax = most if self.mmax is None else self.mmax
        if not isinstance(mmax, int) or not 0 <= mmax <= MAX_DEGREE:
            raise ValueError(f"mmax: expected an order from 0 to {MAX_DEGREE}, got {mmax!r}")
        put("mmax", min(mmax, most))
        if self.order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {self.order!r}")
        for name in ("in", "out"):
            whole = self.order == "l_primary" and self.mmax >= getattr(self, f"lmax_{name}")
            if not whole and getattr(self, f"layout_{name}") == "mul_ir":
                raise ValueError(f"layout_{name}: expected ir_mul with mmax {self.mmax} and {self.order}, got mul_ir")
        if not isinstance(self.channels, int) or not 0 <= self.channels <= 2**31:
            raise ValueError(f"channels: expected a number from 0 to 2^31, got {self.channels!r}")
        if self.function not in FUNCTIONS:
            raise ValueError(f"function: expected one of {', '.join(FUNCTIONS)}, got {self.function!r}")
        exact_degree(self.res, self.quadrature)  # raises where they do not fit
        put("res", (self.res, self.res) if isinstance(self.res, int) else tuple(self.res))
        if max(self.res) > _MAX_RESOLUTION:
            raise ValueError(f"res: expected at most {_MAX_RESOLUTION} rings and angles, got {self.res}")
        put("gain", float(self.gain))
        if not math.isfinite(self.gain):
            raise ValueError(f"gain: expected a finite factor, got {self.gain}")
        put("_string", self._format())

    @property
    def dims(self) -> tuple[int, int]:
        """Columns of x and the result."""
        return tuple(self.channels * count(lmax, self.mmax) for lmax in (self.lmax_in, self.lmax_out))

    @classmethod
    def normalized(
        cls,
        lmax_in: int,
        lmax_out: int,
        channels: int,
        function: str,
        res: int | tuple[int, int],
        quadrature: str = "gausslegendre",
        normalization: str = "component",
        rescale: bool = False,
        **options,
    ) -> S2ActivationPlan:
        """With the factors of e3nn's ToS2Grid and FromS2Grid (:func:`eqk.to_s2grid`) of this ``normalization``.

        ``rescale``: as for :func:`eqk.s2_activation`.
        """
        mmax = options.get("mmax")
        scales = []
        for lmax, back in ((lmax_in, False), (lmax_out, True)):
            scale = grid_factors(lmax, normalization, lmax_in, back).tolist()
            if rescale and mmax is not None:
                scale = [s * max(1, (2 * l + 1) / (2 * mmax + 1)) ** 0.5 for l, s in enumerate(scale)]
            scales.append(tuple(scale))
        gain = options.pop("gain", 1.0)
        return cls(lmax_in, lmax_out, channels, function, res, quadrature, gain, *scales, **options)

    def _format(self) -> str:
        scales = "; ".join(" ".join(map(repr, s)) for s in (self.scale_in, self.scale_out))
        return (
            f"{self.channels}x{self.lmax_in} -> {self.lmax_out} {self.mmax} {self.order} {self.function} {self.gain!r} "
            f"{self.res[0]}x{self.res[1]} {self.quadrature} [{self.layout_in},{self.layout_out}] {{{scales}}}"
        )

    def __str__(self) -> str:
        return self._string

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def parse(cls, text: str) -> S2ActivationPlan:
        """The plan whose ``str`` is ``text``. Raises ValueError on malformed text."""
        match = _PLAN.fullmatch(text)
        # The op's parser knows no white space but the space, and no digits but ASCII's.
        if not match or len(text) > MAX_LENGTH or not (text.isascii() and text.isprintable()):
            raise ValueError(
                "plan: expected 'CxL -> L MMAX ORDER FUNCTION GAIN BETAxALPHA QUADRATURE [LAYOUT,LAYOUT] "
                f"{{SCALES; SCALES}}', got {text[:200]!r}"
            )
        channels, lmax_in, lmax_out, mmax, order, function, gain, *res, quadrature = match.groups()[:10]
        rest = match.groups()[10:]
        scales = [tuple(map(float, s.split())) for s in rest[2:]]
        sizes = int(lmax_in), int(lmax_out), int(channels)
        grid = (int(res[0]), int(res[1])), quadrature
        try:
            return cls(*sizes, function, *grid, float(gain), *scales, *rest[:2], int(mmax), order)
        except ValueError as error:
            raise ValueError(f"plan: {error}") from None


_SCALE = rf" *({NUMBER}(?: +{NUMBER})*) *"
_PLAN = re.compile(
    rf" *(\d+) *x *(\d+) *-> *(\d+) +(\d+) *({'|'.join(ORDERS)}) +([a-z]+) +({NUMBER}) +"
    rf"(\d+) *x *(\d+) *({'|'.join(QUADRATURES)}) +\[ *(\w+) *, *(\w+) *\] *\{{{_SCALE};{_SCALE}\}} *",
    re.ASCII,
)
