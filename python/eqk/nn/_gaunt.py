"""The product of signals on the sphere as a module on irreps."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from eqk.gaunt_plan import NORMALIZATIONS, GauntPlan
from eqk.gaunt_product import dispatched_gaunt_product
from eqk.irreps import Irreps, IrrepsLike, irreps_argument
from eqk.plan import LAYOUTS
from eqk.tensor_product import rows_of


class _Signals:
    """Irreps as the components of natural signals, of parity (-1)^l, and of pseudo ones.

    ``pieces[natural]``: (l, index of the irrep in ``irreps``, columns).
    """

    def __init__(self, name: str, irreps: Irreps) -> None:
        self.irreps = irreps
        muls = {mul for mul, _ in irreps}
        if len(muls) > 1:
            raise ValueError(f"{name}: expected one multiplicity in all irreps, got {irreps}")
        self.channels = muls.pop() if muls else 0
        self.pieces: dict[bool, list[tuple[int, int, slice]]] = {}
        for n, ((_, ir), columns) in enumerate(zip(irreps, irreps.slices(), strict=True)):
            pieces = self.pieces.setdefault(ir.p == (-1) ** ir.l, [])
            if any(l == ir.l for l, _, _ in pieces):
                raise ValueError(f"{name}: expected each irrep once, got {irreps}")
            pieces.append((ir.l, n, columns))

    def lmax(self, natural: bool) -> int:
        return max(l for l, _, _ in self.pieces[natural])

    def gather(self, t: Tensor, natural: bool) -> Tensor:
        """[rows, dim] -> [rows, channels (lmax + 1)^2], zeros for degrees that are not there."""
        if self.is_one_signal():
            return t
        found = {l: columns for l, _, columns in self.pieces[natural]}
        degrees = range(self.lmax(natural) + 1)
        parts = [
            t[:, found[l]] if l in found else t.new_zeros(t.shape[0], (2 * l + 1) * self.channels) for l in degrees
        ]
        return torch.cat(parts, 1)

    def is_one_signal(self) -> bool:
        """Whether the columns are those of one signal with all its degrees."""
        return len(self.pieces) == 1 and all(l == n for pieces in self.pieces.values() for l, n, _ in pieces)

    def weights(self, w: Tensor, natural: bool) -> Tensor:
        """[rank, irreps, channels] -> [1, rank (lmax + 1) channels], ones for degrees that are not there."""
        found = {l: n for l, n, _ in self.pieces[natural]}
        one = torch.ones_like(w[:, 0])
        parts = [w[:, found[l]] if l in found else one for l in range(self.lmax(natural) + 1)]
        return torch.stack(parts, 1).flatten()[None]


class GauntTensorProduct(nn.Module):
    """The product of signals on the sphere, all its parities included: every path from two irreps to a third, once.

    x and y are signals f and g with components in irreps: those of parity (-1)^l of natural signals, the others of
    pseudo signals, which change sign under inversion besides. The product f g and the Poisson bracket {f, g}
    (:class:`eqk.GauntPlan`) of natural signals are a natural and a pseudo one; each pseudo factor exchanges the two. So
    all paths that the parities of O(3) allow occur: (l1, l2, l3) of an even sum by products, of an odd one by brackets.
    Weights, where there are any, factorise: for each term of the rank one weight of each irrep of x, of y and of the
    result, and channel.

    Args:
        irreps_in1, irreps_in2: of x and y. One multiplicity in each, the same in both or 1 in one; each irrep once.
        irreps_out: of the result, with the multiplicity of the inputs; each irrep once.
        rank: number of terms with weights of their own, or None for no weights.
        normalization: ``"component"`` (components of unit variance in, of unit variance out, for weights of unit
            variance) or ``"integral"`` (no factors).
        layout: of x, y and the result, ``"mul_ir"`` (e3nn's) or ``"ir_mul"``.

    Attributes:
        weight1, weight2, weight_out: [rank, number of irreps, channels], standard normal at the start; None without.

    Raises:
        ValueError: naming the argument that does not fit, or the irrep of the result that no path reaches.
    """

    def __init__(
        self,
        irreps_in1: IrrepsLike,
        irreps_in2: IrrepsLike,
        irreps_out: IrrepsLike,
        rank: int | None = None,
        normalization: str = "component",
        layout: str = "mul_ir",
    ) -> None:
        super().__init__()
        names = ("irreps_in1", "irreps_in2", "irreps_out")
        given = [irreps_argument(n, i) for n, i in zip(names, (irreps_in1, irreps_in2, irreps_out), strict=True)]
        self.irreps_in1, self.irreps_in2, self.irreps_out = given
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization: expected one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        if rank is not None and (not isinstance(rank, int) or rank < 1):
            raise ValueError(f"rank: expected a positive number or None, got {rank!r}")
        self.rank, self.normalization, self.layout = rank, normalization, layout
        self._signals = [_Signals(n, i) for n, i in zip(names, given, strict=True)]
        x, y, out = self._signals
        if x.irreps and y.irreps and x.channels != y.channels and 1 not in (x.channels, y.channels):
            raise ValueError(f"irreps_in2: expected multiplicity {x.channels} as in irreps_in1, or 1, got {y.irreps}")
        self.channels = y.channels if x.channels == 1 else x.channels
        if out.irreps and out.channels != self.channels:
            raise ValueError(f"irreps_out: expected multiplicity {self.channels} as in the inputs, got {out.irreps}")
        self._plans = self._terms()
        for name, irreps in zip(("weight1", "weight2", "weight_out"), given, strict=True):
            shape = (rank, len(irreps), self.channels)
            self.register_parameter(name, None if rank is None else nn.Parameter(torch.randn(shape)))

    def _terms(self) -> dict[bool, list[tuple[bool, bool, str]]]:
        """For each kind of signal in the result: kinds of x and y, and the plan of their product or bracket."""
        x, y, out = self._signals
        terms: dict[bool, list] = {}
        for natural, pieces in out.pieces.items():
            plans = []
            for natural1 in x.pieces:
                for natural2 in y.pieces:
                    plan = GauntPlan.normalized(
                        x.lmax(natural1),
                        y.lmax(natural2),
                        out.lmax(natural),
                        x.channels,
                        y.channels,
                        "even" if (natural1 == natural2) == natural else "odd",
                        self.normalization,
                        rank=self.rank or 1,
                        layout1=self.layout,
                        layout2=self.layout,
                        layout_out=self.layout,
                    )
                    plans.append((natural1, natural2, plan))
            variances = [1.0] * (out.lmax(natural) + 1)
            for l, n, _ in pieces:
                squares = [c * c for a, b, plan in plans for c in self._coefficients(plan, a, b, l)]
                variances[l] = sum(squares) / (2 * l + 1)
                if not variances[l]:
                    raise ValueError(
                        f"irreps_out: expected irreps that a path from {x.irreps} and {y.irreps} reaches, got "
                        f"{out.irreps[n]}"
                    )
            terms[natural] = []
            for natural1, natural2, plan in plans:
                if not any(self._coefficients(plan, natural1, natural2, l) for l, _, _ in pieces):
                    continue
                if self.normalization == "component":
                    scale = [
                        s / math.sqrt((self.rank or 1) * v) for s, v in zip(plan.scale_out, variances, strict=True)
                    ]
                    plan = dataclasses.replace(plan, scale_out=tuple(scale))
                terms[natural].append((natural1, natural2, str(plan)))
        return terms

    def _coefficients(self, plan: GauntPlan, natural1: bool, natural2: bool, l3: int) -> list[float]:
        """Of the paths to degree l3 from irreps that are there."""
        x, y, _ = self._signals
        pairs = [(l1, l2) for l1, _, _ in x.pieces[natural1] for l2, _, _ in y.pieces[natural2]]
        return [c for l1, l2 in pairs if (c := plan.path_coefficient(l1, l2, l3))]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [..., irreps_in1.dim], y [..., irreps_in2.dim] -> [..., irreps_out.dim], leading dimensions broadcast."""
        for name, t, irreps in (("x", x, self.irreps_in1), ("y", y, self.irreps_in2)):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {t!r}")
            if t.dim() == 0 or t.shape[-1] != irreps.dim:
                raise RuntimeError(f"{name}: expected shape [..., {irreps.dim}], got {list(t.shape)}")
        leading = list(torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]))
        x, y = rows_of(x, leading) if leading else x[None], rows_of(y, leading) if leading else y[None]
        rows = x.shape[0]
        of_x, of_y, of_out = self._signals
        xs, ys = ({natural: s.gather(t, natural) for natural in s.pieces} for s, t in ((of_x, x), (of_y, y)))
        parts: list[Tensor | None] = [None] * len(self.irreps_out)
        total: Tensor | None = None
        for natural, terms in self._plans.items():
            total = None
            for natural1, natural2, plan in terms:
                a = b = c = None
                if self.rank is not None:
                    a = of_x.weights(self.weight1, natural1).expand(rows, -1)
                    b = of_y.weights(self.weight2, natural2).expand(rows, -1)
                    c = of_out.weights(self.weight_out, natural).expand(rows, -1)
                term = dispatched_gaunt_product(xs[natural1], ys[natural2], a, b, c, plan)
                total = term if total is None else total + term
            for l, n, _ in of_out.pieces[natural]:
                parts[n] = total[:, l * l * self.channels : (l + 1) ** 2 * self.channels]
        if of_out.is_one_signal():
            out = total
        else:
            out = torch.cat(parts, 1) if parts else x.new_zeros(rows, 0)
        return out.reshape(*leading, self.irreps_out.dim)

    def extra_repr(self) -> str:
        rank = "no weights" if self.rank is None else f"rank {self.rank}"
        return f"{self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out} | {rank}, {self.normalization}"
