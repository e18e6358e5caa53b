"""The description of a symmetric contraction that every backend reads, and the fit of MACE's bases to it."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from eqk._library import wigner_3j
from eqk.irreps import MAX_DEGREE, Irrep, Irreps, IrrepsLike, irreps_argument
from eqk.plan import LAYOUTS, MAX_LENGTH, NUMBER

MAX_CORRELATION = 4  # csrc/symmetric_contraction/plan.h
_MAX_IRREPS = 256


class Chain(NamedTuple):
    """One coupling of x with itself, from left to right, times ``coefficient``.

    ``irreps`` are indices of irreps of x; the first two couple to degree ``degrees[0]``, that and the third to
    ``degrees[1]``, and so on. The last degree is that of the output.
    """

    coefficient: float
    irreps: tuple[int, ...]
    degrees: tuple[int, ...] = ()


class Path(NamedTuple):
    """What one weight for each channel multiplies: a sum of chains to the irrep ``i_out``."""

    i_out: int
    chains: tuple[Chain, ...]


@dataclass(frozen=True)
class SymmetricContractionPlan:
    """The paths of a symmetric contraction; hashable, complete in its string.

    Channels are not part of it: each irrep has multiplicity 1. With C the Wigner 3j symbols of unit norm
    (:func:`eqk.wigner_3j`), the chain (c, (i, j, k), (l, m)) has the components

        c sum_(a b d e) C^(l_i l_j l)[a, b, d] C^(l l_k m)[d, e, :] x_i[a] x_j[b] x_k[e].

    Args:
        irreps_in, irreps_out: irreps of multiplicity 1.
        paths: ``(i_out, chains)``, a chain ``(coefficient, irreps, degrees)`` of at most 4 irreps. The order of the
            paths is that of the weights. A path without chains is zero.
        layout_in: of x, ``"mul_ir"`` for [nodes, channels, dim_in] or ``"ir_mul"`` for [nodes, dim_in, channels].
        layout_out: of the result [nodes, channels * dim_out], e3nn's irreps ``channels x ir`` one after another in
            ``"mul_ir"``, or ``"ir_mul"``, channels fastest.

    Raises:
        ValueError: naming the argument or path that does not fit.
    """

    irreps_in: Irreps
    irreps_out: Irreps
    paths: tuple[Path, ...]
    layout_in: str = "mul_ir"
    layout_out: str = "mul_ir"
    _string: str = field(init=False, repr=False, compare=False, hash=False, default="")

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        for name in ("irreps_in", "irreps_out"):
            irreps = irreps_argument(name, getattr(self, name))
            if any(mul != 1 or ir.l > MAX_DEGREE for mul, ir in irreps) or len(irreps) > _MAX_IRREPS:
                expected = f"at most {_MAX_IRREPS} irreps of multiplicity 1 and degrees up to {MAX_DEGREE}"
                raise ValueError(f"{name}: expected {expected}, got {irreps}")
            put(name, irreps)
        for name in ("layout_in", "layout_out"):
            if getattr(self, name) not in LAYOUTS:
                raise ValueError(f"{name}: expected one of {', '.join(LAYOUTS)}, got {getattr(self, name)!r}")
        put("paths", tuple(self._checked(n, path) for n, path in enumerate(self.paths)))
        put("_string", self._format())
        if len(self._string) > MAX_LENGTH:
            raise ValueError(f"paths: expected a string of at most 2^20 characters, got {len(self._string)}")

    def _checked(self, number: int, path: Sequence) -> Path:
        def require(ok: bool, expected: str, got: object) -> None:
            if not ok:
                raise ValueError(f"path {number}: expected {expected}, got {got!r}")

        require(isinstance(path, Sequence) and len(path) == 2, "(i_out, chains)", path)
        i_out, chains = path
        require(
            isinstance(i_out, int) and 0 <= i_out < len(self.irreps_out), f"i_out below {len(self.irreps_out)}", i_out
        )
        out = self.irreps_out[i_out].ir
        checked = []
        for chain in chains:
            require(
                isinstance(chain, Sequence) and len(chain) in (2, 3), "chains (coefficient, irreps, degrees)", chain
            )
            coefficient, irreps, degrees = chain = Chain(float(chain[0]), *map(tuple, chain[1:]))
            require(math.isfinite(coefficient), "a finite coefficient", chain)
            require(1 <= len(irreps) <= MAX_CORRELATION, "chains of 1 to 4 irreps", chain)
            require(all(isinstance(i, int) and 0 <= i < len(self.irreps_in) for i in irreps), "irreps of x", chain)
            require(len(degrees) == len(irreps) - 1, "one degree fewer than irreps", chain)
            left = self.irreps_in[irreps[0]].ir
            for i, l in zip(irreps[1:], degrees, strict=True):
                right = self.irreps_in[i].ir
                require(abs(left.l - right.l) <= l <= min(left.l + right.l, MAX_DEGREE), "degrees that couple", chain)
                left = Irrep(l, left.p * right.p)
            require(left == out, f"a chain to {out}", chain)
            checked.append(chain)
        return Path(i_out, tuple(checked))

    def _format(self) -> str:
        def chain(c: Chain) -> str:
            steps = "".join(f"*{i}>{l}" for i, l in zip(c.irreps[1:], c.degrees, strict=True))
            return f"{c.coefficient!r} {c.irreps[0]}{steps}"

        irreps = [i._text() if i else "-" for i in (self.irreps_in, self.irreps_out)]
        paths = "; ".join(f"{p.i_out}: {', '.join(map(chain, p.chains))}".rstrip() for p in self.paths)
        return f"{irreps[0]} -> {irreps[1]} [{self.layout_in},{self.layout_out}] {{{paths}}}"

    def __str__(self) -> str:
        return self._string

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def parse(cls, text: str) -> SymmetricContractionPlan:
        """The plan whose ``str`` is ``text``. Raises ValueError on malformed text."""
        match = _PLAN.fullmatch(text)
        # The op's parser knows no white space but the space, and no digits but ASCII's.
        if not match or len(text) > MAX_LENGTH or not (text.isascii() and text.isprintable()):
            raise ValueError(f"expected a plan 'IN -> OUT [LAYOUTS] {{PATHS}}', got {text[:200]!r}")
        irreps = []
        for name, part in zip(("irreps_in", "irreps_out"), match.groups(), strict=False):
            if not _IRREPS.fullmatch(part):
                raise ValueError(f"{name}: expected irreps such as '1x0e+1x1o', or '-' for none, got {part.strip()!r}")
            irreps.append(() if part.strip() == "-" else Irreps(part.replace(" ", "")))
        paths = []
        for part in match[5].split(";") if match[5].strip() else ():
            out, colon, chains = part.partition(":")
            if not colon or not _INDEX.fullmatch(out):
                raise ValueError(f"path {len(paths)}: expected 'IO: CHAINS', got {part.strip()!r}")
            parsed = []
            for chain in chains.split(",") if chains.strip() else ():
                fields = _CHAIN.fullmatch(chain)
                if not fields:
                    raise ValueError(f"path {len(paths)}: expected 'COEFFICIENT I*J>L', got {chain.strip()!r}")
                steps = [(int(i), int(l)) for i, l in _STEP.findall(fields[3])]
                parsed.append(
                    Chain(float(fields[1]), (int(fields[2]), *[i for i, _ in steps]), tuple(l for _, l in steps))
                )
            paths.append(Path(int(out), tuple(parsed)))
        return cls(*irreps, tuple(paths), match[3], match[4])

    @classmethod
    def complete(
        cls, irreps_in: IrrepsLike, irreps_out: IrrepsLike, correlation: int, **layouts: str
    ) -> SymmetricContractionPlan:
        """Every path of MACE's basis up to degree ``correlation``, 1 to 4, with the factors sqrt(2 l + 1) that it has.

        Of one output after another, the largest degree first. In MACE's order, but the sign of a path may be another:
        it hangs on the Wigner 3j symbols.
        """
        irreps_in, irreps_out = irreps_argument("irreps_in", irreps_in), irreps_argument("irreps_out", irreps_out)
        if correlation not in range(1, MAX_CORRELATION + 1):
            raise ValueError(f"correlation: expected 1 to {MAX_CORRELATION}, got {correlation!r}")
        paths = [
            Path(n, (c._replace(coefficient=math.prod(math.sqrt(2 * l + 1) for l in c.degrees)),))
            for n, (_, out) in enumerate(irreps_out)
            for degree in range(correlation, 0, -1)
            for c in chains_to(irreps_in, out, degree)
        ]
        return cls(irreps_in, irreps_out, tuple(paths), **layouts)

    @classmethod
    def from_basis(
        cls, irreps_in: IrrepsLike, irreps_out: IrrepsLike, basis: Iterable[tuple[int, Tensor]], **layouts: str
    ) -> SymmetricContractionPlan:
        """The plan of any basis of symmetric contractions, such as the buffers ``U_matrix_*`` of MACE.

        Args:
            irreps_in, irreps_out: irreps of multiplicity 1.
            basis: ``(i_out, U)``, U [dim of the output, dim_in, ..., dim_in, paths] with one dim_in for each factor of
                x; or without the first dimension where it is 1. Their paths follow one another.
            layouts: ``layout_in`` and ``layout_out``.

        Each path is fitted by chains in float64: by one where one is enough. Only its symmetric part counts, since all
        factors are x. Raises ValueError, naming the tensor and the path, where chains leave more than the rounding of
        its dtype, as they do where a tensor is not equivariant.
        """
        irreps_in, irreps_out = irreps_argument("irreps_in", irreps_in), irreps_argument("irreps_out", irreps_out)
        paths = []
        for number, (i_out, u) in enumerate(basis):
            dim, out = irreps_in.dim, irreps_out[i_out].ir
            paths_of_u = u.shape[-1]
            correlation = round(math.log(u.numel() / max(1, paths_of_u) / out.dim, dim)) if dim > 1 else u.dim() - 1
            expected = (out.dim, *[dim] * correlation, paths_of_u)
            if not 1 <= correlation <= MAX_CORRELATION or u.numel() != math.prod(expected):
                raise ValueError(
                    f"basis[{number}]: expected shape [{out.dim}, {dim}, ..., {dim}, paths], got {list(u.shape)}"
                )
            symmetric = _symmetrised(u.detach().to("cpu", torch.float64).reshape(out.dim, -1, paths_of_u), dim)
            fits = _fit(symmetric, irreps_in, out, correlation, max(1e-10, 16 * torch.finfo(u.dtype).eps))
            for p, chains in enumerate(fits):
                if chains is None:
                    raise ValueError(f"basis[{number}]: expected equivariant paths to {out}, path {p} is not")
                paths.append(Path(i_out, chains))
        return cls(irreps_in, irreps_out, tuple(paths), **layouts)


_PLAN = re.compile(r"([^>{}\[\]]*)->([^>{}\[\]]*)\[ *(\w+) *, *(\w+) *\] *\{([^{}]*)\} *", re.ASCII)
_IRREPS = re.compile(r" *- *| *\d+ *x *\d+ *[eo] *(\+ *\d+ *x *\d+ *[eo] *)*", re.ASCII)
_INDEX = re.compile(r" *\d+ *", re.ASCII)
_CHAIN = re.compile(rf" *({NUMBER}|nan) +(\d+)((?: *\* *\d+ *> *\d+)*) *", re.ASCII)
_STEP = re.compile(r"\* *(\d+) *> *(\d+)", re.ASCII)


def chains_to(irreps_in: Irreps, out: Irrep, correlation: int, all_of_four: bool = False) -> list[Chain]:
    """MACE's chains of ``correlation`` irreps to ``out``, in its order; coefficients are 1.

    All left-to-right couplings, sorted by irrep after each (``mace.tools.cg``, 0.3.16). Of four irreps MACE has those
    through parities (-1)^l alone; ``all_of_four`` has all.
    """
    natural = correlation == 4 and not all_of_four
    chains = [(ir, Chain(1.0, (n,))) for n, (_, ir) in enumerate(irreps_in)]
    for _ in range(correlation - 1):
        chains = [
            (ir, Chain(1.0, (*chain.irreps, n), (*chain.degrees, ir.l)))
            for left, chain in chains
            for n, (_, right) in enumerate(irreps_in)
            for ir in left * right
            if ir.l <= MAX_DEGREE and (not natural or ir.p == (-1) ** ir.l)
        ]
        chains.sort(key=lambda item: (item[0].l, item[0].p))
    return [chain for ir, chain in chains if ir == out]


@functools.lru_cache(maxsize=64)
def _monomials(dim: int, degree: int) -> dict[tuple[int, ...], int]:
    return {m: n for n, m in enumerate(itertools.combinations_with_replacement(range(dim), degree))}


def _symmetrised(u: Tensor, dim: int) -> Tensor:
    """[out, dim^degree, paths] -> [out, monomials, paths]: what multiplies each monomial of x."""
    degree = round(math.log(u.shape[1], dim)) if dim > 1 else 1
    table = _monomials(dim, degree)
    index = torch.tensor([table[tuple(sorted(i))] for i in itertools.product(range(dim), repeat=degree)])
    return u.new_zeros(u.shape[0], len(table), u.shape[2]).index_add(1, index, u)


def _expanded(chains: Iterable[Chain], irreps_in: Irreps) -> list[Tensor]:
    """[out, monomials] of each chain, as :func:`_symmetrised`."""
    dim, columns = irreps_in.dim, irreps_in.slices()

    @functools.cache
    def times(degree: int) -> Tensor:
        """[monomials, dim]: the number of a monomial times a component."""
        longer = _monomials(dim, degree + 1)
        return torch.tensor(
            [[longer[tuple(sorted((*m, i)))] for i in range(dim)] for m in _monomials(dim, degree)]
        ).reshape(-1, dim)

    @functools.cache
    def polynomial(irreps: tuple[int, ...], degrees: tuple[int, ...]) -> Tensor:
        last = columns[irreps[-1]]
        if len(irreps) == 1:
            return torch.eye(dim, dtype=torch.float64)[last]
        left = polynomial(irreps[:-1], degrees[:-1])
        c = wigner_3j((left.shape[0] - 1) // 2, irreps_in[irreps[-1]].ir.l, degrees[-1], torch.float64)
        terms = torch.einsum("am,ajk->kmj", left, c).flatten(1)
        index = times(len(irreps) - 1)[:, last].flatten()
        return terms.new_zeros(c.shape[2], len(_monomials(dim, len(irreps)))).index_add(1, index, terms)

    return [polynomial(chain.irreps, chain.degrees) for chain in chains]


def polynomial_of(plan: SymmetricContractionPlan) -> list[set[tuple[int, ...]]]:
    """The monomials, tuples of components of x, in each component of the output."""
    dim, result = plan.irreps_in.dim, [set() for _ in range(plan.irreps_out.dim)]
    starts = [columns.start for columns in plan.irreps_out.slices()]
    for i_out, chains in plan.paths:
        for degree in {len(c.irreps) for c in chains}:
            some = [c for c in chains if len(c.irreps) == degree]
            total = sum(c.coefficient * v for c, v in zip(some, _expanded(some, plan.irreps_in), strict=True))
            monomials = list(_monomials(dim, degree))
            for component, m in (total.abs() > 1e-13 * sum(abs(c.coefficient) for c in some)).nonzero().tolist():
                result[starts[i_out] + component].add(monomials[m])
    return result


def _fit(
    u: Tensor, irreps_in: Irreps, out: Irrep, correlation: int, tolerance: float
) -> Iterator[tuple[Chain, ...] | None]:
    """The chains that sum to each path of u [out, monomials, paths]; None where none do."""
    chains = chains_to(irreps_in, out, correlation, all_of_four=True)
    scale = u.abs().amax() if u.numel() else 0.0
    paths = u.flatten(0, 1).T
    if not chains:
        yield from (() if float(path.abs().max()) == 0 else None for path in paths)
        return
    vectors = torch.stack([v.flatten() for v in _expanded(chains, irreps_in)])
    norms = vectors.square().sum(1)
    independent: Tensor | None = None
    for path in paths:
        if float(path.abs().max()) <= tolerance * scale:
            yield ()
            continue
        # One chain, up to a factor: the first that leaves nothing.
        factors = vectors @ path / norms.clamp(min=1e-300)
        left = (path - factors[:, None] * vectors).abs().amax(1)
        best = int((left <= tolerance * scale).int().argmax())
        if left[best] <= tolerance * scale:
            yield (chains[best]._replace(coefficient=float(factors[best])),)
            continue
        if independent is None:
            independent = _independent(vectors)
        few = vectors[independent]
        solution = torch.linalg.lstsq(few.T, path[:, None]).solution[:, 0]
        if (few.T @ solution - path).abs().max() > tolerance * scale:
            yield None
            continue
        yield tuple(
            chains[n]._replace(coefficient=float(c))
            for n, c in zip(independent.tolist(), solution, strict=True)
            if abs(c) > 1e-12 * solution.abs().max()
        )


def _independent(vectors: Tensor) -> Tensor:
    """Indices of a linearly independent set that spans all rows, the best conditioned first."""
    rest, chosen = vectors.clone(), []
    norms = vectors.square().sum(1).sqrt()
    for _ in range(len(vectors)):
        remaining = rest.square().sum(1).sqrt() / norms.clamp(min=1e-300)
        best = int(remaining.argmax())
        if remaining[best] < 1e-6:
            break
        chosen.append(best)
        direction = rest[best] / rest[best].norm()
        rest = rest - (rest @ direction)[:, None] * direction
    return torch.tensor(sorted(chosen))
