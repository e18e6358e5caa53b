"""Irreducible representations of O(3) with multiplicities, in e3nn's notation: ``"128x0e + 64x1o"``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

MAX_DEGREE = 20  # csrc/core/wigner_3j.h: kMaxDegree

_IRREP = re.compile(r"(\d+)([eoy])")
_MUL_IRREP = re.compile(r"(?:(\d+)\s*x\s*)?(\d+[eoy])")


class Irrep(NamedTuple("_Irrep", [("l", int), ("p", int)])):
    """One irrep of O(3): degree ``l`` and parity ``p`` (+1 even, -1 odd), of dimension 2 l + 1.

    ``Irrep("1o")``, ``Irrep(1, -1)`` and ``Irrep((1, -1))`` are the same; ``y`` stands for the parity (-1)^l of the
    spherical harmonics. Raises ValueError on anything else.
    """

    __slots__ = ()

    def __new__(cls, l: Irrep | str | int | tuple, p: int | None = None) -> Irrep:
        if p is None:
            if isinstance(l, Irrep):
                return l
            if isinstance(l, str):
                match = _IRREP.fullmatch(l.strip())
                if not match:
                    raise ValueError(f"expected an irrep such as '1o', got {l!r}")
                degree = int(match[1])
                return cls(degree, {"e": 1, "o": -1, "y": (-1) ** degree}[match[2]])
            if not (isinstance(l, tuple) or (hasattr(l, "l") and hasattr(l, "p"))):
                raise ValueError(f"expected an irrep such as '1o' or (1, -1), got {l!r}")
            l, p = l if isinstance(l, tuple) else (l.l, l.p)
        if not isinstance(l, int) or l < 0 or p not in (1, -1):
            raise ValueError(f"expected a degree l >= 0 and a parity 1 or -1, got {l!r} and {p!r}")
        return super().__new__(cls, l, p)

    @property
    def dim(self) -> int:
        return 2 * self.l + 1

    def is_scalar(self) -> bool:
        return self.l == 0 and self.p == 1

    def __mul__(self, other: Irrep) -> Iterator[Irrep]:
        """The irreps in the tensor product of the two."""
        other = Irrep(other)
        for l in range(abs(self.l - other.l), self.l + other.l + 1):
            yield Irrep(l, self.p * other.p)

    def __rmul__(self, mul: int) -> Irreps:
        return Irreps([(mul, self)])

    def __add__(self, other: Irrep) -> Irreps:
        return Irreps(self) + Irreps(other)

    def __repr__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"


class MulIr(NamedTuple("_MulIr", [("mul", int), ("ir", Irrep)])):
    """An irrep and its multiplicity."""

    __slots__ = ()

    @property
    def dim(self) -> int:
        return self.mul * self.ir.dim

    def __repr__(self) -> str:
        return f"{self.mul}x{self.ir}"


class Irreps(tuple):
    """A direct sum of irreps with multiplicities: a tuple of ``(mul, ir)``.

    Accepts e3nn's strings (``"16x0e + 1o"``), lists of ``(mul, irrep)``, an irrep, or e3nn's own Irreps. Neither sorted
    nor merged: the order is the order of the columns of a tensor. Raises ValueError on anything else.
    """

    def __new__(cls, irreps: IrrepsLike = ()) -> Irreps:
        if isinstance(irreps, Irreps):
            return irreps
        if isinstance(irreps, Irrep) or (hasattr(irreps, "l") and hasattr(irreps, "p")):
            return super().__new__(cls, [MulIr(1, Irrep(irreps))])
        out = []
        if isinstance(irreps, str):
            for part in irreps.split("+") if irreps.strip() else ():
                match = _MUL_IRREP.fullmatch(part.strip())
                if not match:
                    raise ValueError(f"expected irreps such as '16x0e + 1o', got {irreps!r}")
                out.append(MulIr(int(match[1] or 1), Irrep(match[2])))
        elif irreps is None or not isinstance(irreps, Iterable):
            raise ValueError(f"expected irreps such as '16x0e + 1o', got {irreps!r}")
        else:
            for item in irreps:
                if isinstance(item, (str, Irrep)):
                    out.append(MulIr(1, Irrep(item)))
                elif hasattr(item, "mul"):
                    out.append(MulIr(item.mul, Irrep(item.ir)))
                elif isinstance(item, tuple) and len(item) == 2:
                    mul, ir = item
                    if not isinstance(mul, int) or mul < 0:
                        raise ValueError(f"expected a multiplicity >= 0, got {mul!r} in {irreps!r}")
                    out.append(MulIr(mul, Irrep(ir)))
                else:
                    raise ValueError(f"expected (mul, irrep), got {item!r} in {irreps!r}")
        return super().__new__(cls, out)

    @staticmethod
    def spherical_harmonics(lmax: int, p: int = -1) -> Irreps:
        return Irreps([(1, (l, p**l)) for l in range(lmax + 1)])

    @property
    def dim(self) -> int:
        return sum(mul_ir.dim for mul_ir in self)

    @property
    def num_irreps(self) -> int:
        return sum(mul for mul, _ in self)

    @property
    def ls(self) -> list[int]:
        return [ir.l for mul, ir in self for _ in range(mul)]

    @property
    def lmax(self) -> int:
        if not self:
            raise ValueError("empty irreps have no lmax")
        return max(self.ls)

    def slices(self) -> list[slice]:
        stops = list(itertools.accumulate((mul_ir.dim for mul_ir in self), initial=0))
        return [slice(a, b) for a, b in itertools.pairwise(stops)]

    def count(self, ir: Irrep | str) -> int:
        return sum(mul for mul, i in self if i == Irrep(ir))

    def sort(self) -> SortedIrreps:
        """``irreps`` sorted by (l, p) as in e3nn, ``p`` with new position of each old entry, ``inv`` its inverse."""
        order = sorted(range(len(self)), key=lambda n: (self[n].ir, n))
        p = [0] * len(order)
        for new, old in enumerate(order):
            p[old] = new
        return SortedIrreps(Irreps([self[n] for n in order]), tuple(p), tuple(order))

    def simplify(self) -> Irreps:
        """Neighbours of the same irrep merged, zero multiplicities dropped; the columns stay as they are."""
        out: list[tuple[int, Irrep]] = []
        for mul, ir in self:
            if out and out[-1][1] == ir:
                out[-1] = (out[-1][0] + mul, ir)
            elif mul > 0:
                out.append((mul, ir))
        return Irreps(out)

    def remove_zero_multiplicities(self) -> Irreps:
        return Irreps([(mul, ir) for mul, ir in self if mul > 0])

    def regroup(self) -> Irreps:
        return self.sort().irreps.simplify()

    def randn(self, *size: int, requires_grad: bool = False, dtype=None, device=None) -> torch.Tensor:
        """Standard normal components; the one negative entry of ``size`` becomes the dimension of the irreps."""
        size = tuple(self.dim if n < 0 else n for n in size)
        return torch.randn(size, requires_grad=requires_grad, dtype=dtype, device=device)

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return Irreps(item) if isinstance(index, slice) else item

    def __contains__(self, ir) -> bool:
        return any(Irrep(ir) == i for _, i in self)

    def __add__(self, other: IrrepsLike) -> Irreps:
        return Irreps([*self, *Irreps(other)])

    def __mul__(self, n: int) -> Irreps:
        return Irreps(list(self) * n)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return "+".join(map(repr, self))


class SortedIrreps(NamedTuple):
    irreps: Irreps
    p: tuple[int, ...]
    inv: tuple[int, ...]


IrrepsLike = Irreps | Irrep | str | Iterable
