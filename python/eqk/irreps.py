"""Irreducible representations of O(3) with multiplicities, in e3nn's notation: ``"128x0e + 64x1o"``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eqk._library import wigner_3j

MAX_DEGREE = 20  # csrc/core/wigner_3j.h: kMaxDegree

_IRREP = re.compile(r"(\d+)([eoy])")
_MUL_IRREP = re.compile(r"(?:(\d+)\s*x\s*)?(\d+[eoy])")


def _matrix_x(angle: Tensor) -> Tensor:
    c, s, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    return torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).unflatten(-1, (3, 3))


def _matrix_y(angle: Tensor) -> Tensor:
    c, s, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    return torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).unflatten(-1, (3, 3))


def _cross_matrix(v: Tensor) -> Tensor:
    """[..., 3, 3]: the matrix of w -> v x w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def _rotated(l: int, rotation: Tensor) -> Tensor:
    """D^l [..., 2 l + 1, 2 l + 1] of rotation matrices [..., 3, 3], which are D^1 in this basis.

    D^l from D^(l - 1) and D^1 by the Clebsch-Gordan series (Varshalovich, Moskalev & Khersonskii, 4.6): no angles, so
    no singular ones.
    """
    D = torch.ones_like(rotation[..., :1, :1])
    for degree in range(1, l + 1):
        c = wigner_3j(degree - 1, 1, degree, rotation.dtype, rotation.device)
        D = (2 * degree + 1) * torch.einsum("abk,...ac,...bd,cdl->...kl", c, D, rotation, c)
    return D


class _Representation:
    """What Irrep and Irreps have in common: their matrices, in e3nn's conventions."""

    __slots__ = ()

    def D_from_matrix(self, R: Tensor) -> Tensor:
        """Matrices [..., dim, dim] of R [..., 3, 3] in O(3), acting on columns (x, y, z). Else ValueError."""
        if R.shape[-2:] != (3, 3):
            raise ValueError(f"R: expected shape [..., 3, 3], got {list(R.shape)}")
        det = torch.det(R)
        if not torch.allclose(det.abs(), torch.ones_like(det)):
            raise ValueError(f"R: expected determinants 1 or -1, got {det}")
        return self._D(R * det.sign()[..., None, None], (1 - det.sign()) / 2)

    def D_from_angles(self, alpha: Tensor, beta: Tensor, gamma: Tensor, k: Tensor | None = None) -> Tensor:
        """Matrices [..., dim, dim] of R_y(alpha) R_x(beta) R_y(gamma), times the parity to the power of ``k``."""
        alpha, beta, gamma = torch.broadcast_tensors(alpha, beta, gamma)
        return self._D(_matrix_y(alpha) @ _matrix_x(beta) @ _matrix_y(gamma), k)

    def D_from_axis_angle(self, axis: Tensor, angle: Tensor) -> Tensor:
        """Matrices [..., dim, dim] of the rotation by ``angle`` [...] about ``axis`` [..., 3] (Rodrigues' formula)."""
        cross = _cross_matrix(torch.nn.functional.normalize(axis, dim=-1))
        angle = angle[..., None, None]
        identity = torch.eye(3, dtype=cross.dtype, device=cross.device)
        return self._D(identity + angle.sin() * cross + (1 - angle.cos()) * cross @ cross, None)

    def D_from_quaternion(self, q: Tensor, k: Tensor | None = None) -> Tensor:
        """Matrices [..., dim, dim] of quaternions [..., 4] (w, x, y, z), times the parity to the power of ``k``."""
        q = torch.nn.functional.normalize(q, dim=-1)
        cross = _cross_matrix(q[..., 1:])
        identity = torch.eye(3, dtype=q.dtype, device=q.device)
        return self._D(identity + 2 * q[..., :1, None] * cross + 2 * cross @ cross, k)


class Irrep(NamedTuple("_Irrep", [("l", int), ("p", int)]), _Representation):
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
            if _is_irrep(l):
                l, p = l.l, l.p
            elif isinstance(l, (tuple, list)) and len(l) == 2:
                l, p = l
            else:
                raise ValueError(f"expected an irrep such as '1o' or (1, -1), got {l!r}")
        if not isinstance(l, int) or l < 0 or p not in (1, -1):
            raise ValueError(f"expected a degree l >= 0 and a parity 1 or -1, got {l!r} and {p!r}")
        return super().__new__(cls, l, p)

    @classmethod
    def iterator(cls, lmax: int | None = None) -> Iterator[Irrep]:
        """All irreps, 0e, 0o, 1o, 1e, ..., up to degree ``lmax``."""
        for l in itertools.count() if lmax is None else range(lmax + 1):
            yield cls(l, (-1) ** l)
            yield cls(l, -((-1) ** l))

    @property
    def dim(self) -> int:
        return 2 * self.l + 1

    def _D(self, rotation: Tensor, k: Tensor | None) -> Tensor:
        D = _rotated(self.l, rotation)
        return D if k is None else D * (self.p ** k[..., None, None])

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


def _is_irrep(item: object) -> bool:
    """eqk's or e3nn's, whose Irrep is a tuple without a length."""
    return hasattr(item, "l") and hasattr(item, "p")


class MulIr(NamedTuple("_MulIr", [("mul", int), ("ir", Irrep)])):
    """An irrep and its multiplicity."""

    __slots__ = ()

    @property
    def dim(self) -> int:
        return self.mul * self.ir.dim

    def __repr__(self) -> str:
        return f"{self.mul}x{self.ir}"


class _SliceByMul:
    def __init__(self, irreps: Irreps) -> None:
        self._irreps = irreps

    def __getitem__(self, index: slice) -> Irreps:
        if not isinstance(index, slice):
            raise IndexError(f"slice_by_mul: expected a slice, got {index!r}")
        start, stop, step = index.indices(self._irreps.num_irreps)
        if step != 1:
            raise NotImplementedError(f"slice_by_mul: expected a step of 1, got {step}")
        ends = itertools.accumulate(mul for mul, _ in self._irreps)
        cut = [(min(stop, end) - max(start, end - mul), ir) for end, (mul, ir) in zip(ends, self._irreps, strict=True)]
        return Irreps([(mul, ir) for mul, ir in cut if mul > 0])


class Irreps(tuple, _Representation):
    """A direct sum of irreps with multiplicities: a tuple of ``(mul, ir)``.

    Accepts e3nn's strings (``"16x0e + 1o"``), lists of ``(mul, irrep)`` or of irreps, an irrep, e3nn's own Irrep and
    Irreps, and None for no irreps. Neither sorted nor merged: the order is the order of the columns of a tensor. Raises
    ValueError on anything else.
    """

    def __new__(cls, irreps: IrrepsLike | None = ()) -> Irreps:
        if isinstance(irreps, Irreps):
            return irreps
        if _is_irrep(irreps):
            irreps = [irreps]
        out = []
        if isinstance(irreps, str):
            for part in irreps.split("+") if irreps.strip() else ():
                match = _MUL_IRREP.fullmatch(part.strip())
                if not match:
                    raise ValueError(f"expected irreps such as '16x0e + 1o', got {irreps!r}")
                out.append(MulIr(int(match[1] or 1), Irrep(match[2])))
            return super().__new__(cls, out)
        if not isinstance(irreps, Iterable) and irreps is not None:
            raise ValueError(f"expected irreps such as '16x0e + 1o', got {irreps!r}")
        for item in () if irreps is None else irreps:
            if isinstance(item, str) or _is_irrep(item):
                mul, ir = 1, item
            elif hasattr(item, "mul") and hasattr(item, "ir"):
                mul, ir = item.mul, item.ir
            elif isinstance(item, (tuple, list)) and len(item) == 2:
                mul, ir = item
            else:
                raise ValueError(f"expected (mul, irrep), got {item!r} in {irreps!r}")
            if not isinstance(mul, int) or mul < 0:
                raise ValueError(f"expected a multiplicity >= 0, got {mul!r} in {irreps!r}")
            out.append(MulIr(mul, Irrep(ir)))
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

    @property
    def slice_by_mul(self) -> _SliceByMul:
        """``irreps.slice_by_mul[2:5]``: the irreps numbered 2 to 4, where each multiplicity counts."""
        return _SliceByMul(self)

    def filter(
        self,
        keep: IrrepsLike | Callable[[MulIr], bool] | None = None,
        *,
        drop: IrrepsLike | Callable[[MulIr], bool] | None = None,
        lmax: int | None = None,
    ) -> Irreps:
        """Those in ``keep``, or not in ``drop``, or of degrees up to ``lmax``: one of the three, or ValueError.

        ``keep`` and ``drop`` are irreps, whatever their multiplicities, or functions of (mul, ir).
        """
        if sum(criterion is not None for criterion in (keep, drop, lmax)) > 1:
            raise ValueError(f"expected one of keep, drop and lmax, got {keep!r}, {drop!r} and {lmax!r}")
        if lmax is not None:
            return Irreps([mul_ir for mul_ir in self if mul_ir.ir.l <= lmax])
        chosen = drop if keep is None else keep
        if chosen is None:
            return self
        if not callable(chosen):
            irreps = {ir for _, ir in Irreps(chosen)}
            chosen = lambda mul_ir: mul_ir.ir in irreps  # noqa: E731
        return Irreps([mul_ir for mul_ir in self if bool(chosen(mul_ir)) == (keep is not None)])

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

    def randn(
        self, *size: int, normalization: str = "component", requires_grad: bool = False, dtype=None, device=None
    ) -> Tensor:
        """Random normal tensor; the one negative entry of ``size`` becomes the dimension of the irreps.

        Components of variance 1 (``"component"``) or each irrep of norm 1 (``"norm"``). Else ValueError.
        """
        if normalization not in ("component", "norm"):
            raise ValueError(f"normalization: expected component or norm, got {normalization!r}")
        at = [n for n, entry in enumerate(size) if entry < 0]
        if len(at) != 1:
            raise ValueError(f"size: expected one entry -1, got {size}")
        left, right = size[: at[0]], size[at[0] + 1 :]
        if normalization == "component" or not self:
            return torch.randn(*left, self.dim, *right, requires_grad=requires_grad, dtype=dtype, device=device)
        parts = [torch.randn(*left, mul, ir.dim, *right, dtype=dtype, device=device) for mul, ir in self]
        parts = [torch.nn.functional.normalize(part, dim=at[0] + 1).flatten(at[0], at[0] + 1) for part in parts]
        return torch.cat(parts, at[0]).requires_grad_(requires_grad)

    def _D(self, rotation: Tensor, k: Tensor | None) -> Tensor:
        blocks = {ir: ir._D(rotation, k) for _, ir in self}
        rows, start = [], 0
        for ir in (ir for mul, ir in self for _ in range(mul)):
            rows.append(torch.nn.functional.pad(blocks[ir], (start, self.dim - start - ir.dim)))
            start += ir.dim
        return torch.cat(rows, -2) if rows else rotation.new_zeros(*rotation.shape[:-2], 0, 0)

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
        return self._text()

    def _text(self) -> str:
        # Dynamo takes str of a subclass of tuple for the empty string.
        return "+".join([f"{mul}x{ir.l}{'e' if ir.p == 1 else 'o'}" for mul, ir in self])


class SortedIrreps(NamedTuple):
    irreps: Irreps
    p: tuple[int, ...]
    inv: tuple[int, ...]


IrrepsLike = Irreps | Irrep | str | Iterable


def irreps_argument(name: str, irreps: IrrepsLike) -> Irreps:
    """Irreps(irreps), with ``name`` in the error."""
    try:
        return Irreps(irreps)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
