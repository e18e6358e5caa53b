"""What tests, opcheck and benches share: the registry of cases, the tolerances, random plans and inputs, and the seed.

Needs neither e3nn nor pytest.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqk._library import wigner_3j
from eqk._signals import ORDERS
from eqk.gaunt_plan import GauntPlan
from eqk.irreps import Irrep, Irreps, IrrepsLike
from eqk.plan import LAYOUTS, MODES, Plan
from eqk.s2_activation_plan import FUNCTIONS, S2ActivationPlan
from eqk.symmetric_contraction_plan import MAX_CORRELATION, SymmetricContractionPlan, chains_to

# --8<-- [start:tolerances]
# Largest error for derivative order 0 to 3, relative to the largest magnitude of the reference result. The 16-bit types
# round each order's intermediate results to their storage; float32's third order adds up rounded second ones.
TOLERANCES: dict[torch.dtype, tuple[float, float, float, float]] = {
    torch.float64: (1e-12, 1e-12, 1e-12, 1e-12),
    torch.float32: (5e-6, 5e-6, 5e-6, 5e-6),
    torch.float16: (1e-3, 2e-3, 4e-3, 6e-3),
    torch.bfloat16: (8e-3, 1.6e-2, 3.2e-2, 5e-2),
}
# --8<-- [end:tolerances]


@functools.cache
def seed() -> int:
    """The seed of this process: EQK_SEED if it is set, else a new one."""
    return int(os.environ.get("EQK_SEED") or random.SystemRandom().randrange(2**31))


def generators(name: str, of_seed: int | None = None) -> tuple[random.Random, torch.Generator]:
    """Generators of Python and torch for one test, that depend on the seed and the test's name alone."""
    rng = random.Random(f"{seed() if of_seed is None else of_seed} {name}")
    return rng, torch.Generator().manual_seed(rng.randrange(2**62))


def relative_error(result: Tensor, reference: Tensor) -> float:
    """max |result - reference| / max |reference|; infinite where a NaN or a nonzero stands for an exact zero."""
    if result.shape != reference.shape:
        raise AssertionError(f"result has shape {tuple(result.shape)}, the reference {tuple(reference.shape)}")
    if reference.numel() == 0:
        return 0.0
    difference = (result.double() - reference.double()).abs().max().item()
    largest = reference.double().abs().max().item()
    if not math.isfinite(difference):
        return math.inf
    return difference / largest if largest > 0 else (0.0 if difference == 0 else math.inf)


def assert_close(
    result: Tensor, reference: Tensor, order: int = 0, dtype: torch.dtype | None = None, what: object = ""
) -> None:
    """Raises AssertionError where ``result`` is further from ``reference`` than TOLERANCES[dtype of result][order]."""
    tolerance = TOLERANCES[dtype or result.dtype][order]
    error = relative_error(result, reference)
    if not error <= tolerance:
        raise AssertionError(
            f"relative error {error:.2e} above {tolerance:.1e} at order {order} (seed {seed()}) {what}"
        )


def derivatives(
    f: Callable, operands: Sequence[Tensor | None], directions: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    """Value and derivatives of ``f(*operands)``: a list for each order up to ``len(directions)``.

    Order k holds the gradients of <directions[k - 1], order k - 1> to the operands that are not None and, as the last
    one, to directions[0][0], the cotangent of the value.
    """
    leaves = [t.detach().clone().requires_grad_() for t in operands if t is not None]
    present = iter(leaves)
    value = f(*[None if t is None else next(present) for t in operands])
    orders, leaves = [[value]], [*leaves, directions[0][0].detach().clone().requires_grad_()]
    for k, along in enumerate(directions):
        along = [leaves[-1]] if k == 0 else along
        scalar = sum((d * t).sum() for d, t in zip(along, orders[-1], strict=True))
        last = k + 1 == len(directions)
        if scalar.requires_grad:
            terms = torch.autograd.grad(scalar, leaves, create_graph=not last, allow_unused=True)
        else:
            terms = [None] * len(leaves)
        orders.append([torch.zeros_like(s) if t is None else t for t, s in zip(terms, leaves, strict=True)])
    return [[t.detach() for t in order] for order in orders]


def random_directions(
    operands: Sequence[Tensor | None], value: Tensor, orders: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """The ``directions`` of :func:`derivatives`, standard normal."""
    shapes = [t.shape for t in operands if t is not None] + [value.shape]
    rounds = [[value.shape], *[shapes] * (orders - 1)]
    return [[torch.randn(s, generator=generator, dtype=value.dtype) for s in shapes] for shapes in rounds]


def cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t in tensors]


class Comparison:
    """Value and derivatives of a truth in float64, with which an op is compared on the same numbers in any dtype.

    Where a result hangs on a single sum, such as the gradient of one broadcast number, it may cancel to few digits in
    any order of summation, and a polynomial that is zero leaves rounding errors alone. There the tolerance is 4 times
    what a change of the operands by two roundings does to the truth.

    Args:
        truth: a function of ``operands``.
        operands: of any dtype that those compared hold, or None.
        orders: of derivatives.
    """

    def __init__(
        self, truth: Callable, operands: Sequence[Tensor | None], orders: int, generator: torch.Generator
    ) -> None:
        self._truth, self._operands, self._generator = truth, list(operands), generator
        wide = cast(operands, torch.float64)
        self._directions = random_directions(operands, truth(*wide).to(operands[0].dtype), orders, generator)
        self.expected = derivatives(truth, wide, [cast(along, torch.float64) for along in self._directions])
        self._nudged: dict[torch.dtype, list[list[list[Tensor]]]] = {}

    def results(self, op: Callable, dtype: torch.dtype) -> list[list[Tensor]]:
        """Those of ``op``, on the CPU, in the order of ``expected``."""
        return derivatives(op, cast(self._operands, dtype), [cast(along, dtype) for along in self._directions])

    def excess(self, results: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> list[list[float]]:
        """The error of each result over its tolerance; 1 where it is above, but what roundings explain."""
        excess = []
        for order, (got, expected) in enumerate(zip(results, self.expected, strict=True)):
            excess.append([])
            for n, (a, b) in enumerate(zip(got, expected, strict=True)):
                ratio = relative_error(a, b) / TOLERANCES[dtype][order]
                if math.isfinite(ratio) and ratio > 1 and self._is_rounding(a, dtype, order, n):
                    ratio = 1.0
                excess[-1].append(ratio)
        return excess

    def _rounded(self, tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
        generator = self._generator
        noise = [None if t is None else torch.rand(t.shape, generator=generator, dtype=t.dtype) - 0.5 for t in tensors]
        return [
            t if t is None else t * (1 + torch.finfo(dtype).eps * 4 * r) for t, r in zip(tensors, noise, strict=True)
        ]

    def _is_rounding(self, result: Tensor, dtype: torch.dtype, order: int, n: int) -> bool:
        """Whether one of up to 12 changes of the operands, which all results share, explains the error."""
        error, nudged = relative_error(result, self.expected[order][n]), self._nudged.setdefault(dtype, [])
        for number in range(12):
            if number == len(nudged):
                along = [self._rounded(cast(tensors, torch.float64), dtype) for tensors in self._directions]
                nudged.append(
                    derivatives(self._truth, self._rounded(cast(self._operands, torch.float64), dtype), along)
                )
            if error <= 4 * relative_error(nudged[number][order][n], self.expected[order][n]):
                return True
        return False


def to_layout(t: Tensor, irreps: Irreps, source: str, target: str) -> Tensor:
    """[..., dim] from one layout to the other."""
    if source == target or not irreps:
        return t
    parts = []
    for columns, (mul, ir) in zip(irreps.slices(), irreps, strict=True):
        shape = (mul, ir.dim) if source == "mul_ir" else (ir.dim, mul)
        parts.append(t[..., columns].unflatten(-1, shape).mT.flatten(-2))
    return torch.cat(parts, -1)


@functools.cache
def _rotation_generators(l: int) -> Tensor:
    """[3, 2 l + 1, 2 l + 1]: the generators of rotations about x, y, z. (1, l, l) couples through them alone."""
    c = wigner_3j(1, l, l, dtype=torch.float64) * math.sqrt(l * (l + 1) * (2 * l + 1))
    wrong_sign = (c[0] @ c[1] - c[1] @ c[0] - c[2]).abs().max() > 1e-9
    return -c if wrong_sign else c


def rotate(
    t: Tensor, irreps: IrrepsLike, axis_angle: Tensor, layout: str = "mul_ir", inversion: bool = False
) -> Tensor:
    """[..., dim] rotated by ``axis_angle`` [3] about the origin, and inverted through it if ``inversion``."""
    irreps = Irreps(irreps)
    t, parts = to_layout(t, irreps, layout, "mul_ir"), []
    for columns, (mul, ir) in zip(irreps.slices(), irreps, strict=True):
        d = None
        if ir.l:
            generator = (axis_angle.double()[:, None, None] * _rotation_generators(ir.l)).sum(0)
            # Of one matrix alone, of norm below 0.05, PyTorch's exponential is off by up to 3e-10; of a pair it is not.
            d = torch.linalg.matrix_exp(torch.stack([generator, generator]))[0]
        part = t[..., columns].unflatten(-1, (mul, ir.dim))
        part = part if d is None else part @ d.T.to(t.dtype)
        parts.append((part * ir.p if inversion else part).flatten(-2))
    return to_layout(torch.cat(parts, -1) if parts else t, irreps, "mul_ir", layout)


def equivariance_error(f: Callable, plan: Plan, operands: Sequence[Tensor | None], generator: torch.Generator) -> float:
    """:func:`relative_error` between f of rotated and inverted operands and the rotated and inverted f."""
    x, y, w = operands
    angle = torch.randn(3, generator=generator, dtype=torch.float64)
    moved = f(
        rotate(x, plan.irreps_in1, angle, plan.layout_in1, True),
        rotate(y, plan.irreps_in2, angle, plan.layout_in2, True),
        w,
        plan,
    )
    return relative_error(moved, rotate(f(x, y, w, plan), plan.irreps_out, angle, plan.layout_out, True))


def random_operands(
    plan: Plan,
    leading: int | Sequence[Sequence[int]],
    dtype: torch.dtype,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Signed x, y, w for a plan; each operand and each row has a scale of its own, from 1e-2 to 1e2.

    ``leading`` is the number of rows, or the leading dimensions of x, of y and of per-sample w.
    """
    shapes = [(leading,)] * 3 if isinstance(leading, int) else [tuple(s) for s in leading]
    if plan.weights == "shared":
        shapes[2] = ()

    def normal(shape: tuple[int, ...], columns: int) -> Tensor:
        scale = 10 ** (2 * torch.rand(*shape, 1, generator=generator) - 1) * 10 ** (
            2 * torch.rand(1, generator=generator) - 1
        )
        return (torch.randn(*shape, columns, generator=generator) * scale).to(device, dtype)

    columns = (plan.irreps_in1.dim, plan.irreps_in2.dim, plan.weight_numel)
    x, y, w = (normal(shape, n) for shape, n in zip(shapes, columns, strict=True))
    return x, y, (None if plan.weights == "none" else w)


def random_contraction_operands(
    plan: SymmetricContractionPlan,
    nodes: int,
    channels: int,
    num_species: int | None,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Signed x, w and species for a plan; nodes and paths have scales of their own, from 1e-1 to 1e1 and 1e-2 to 1e2.

    ``num_species`` None: weights of each node. Where there are several species, one in the middle has no node.
    """
    dim = plan.irreps_in.dim
    shape = (channels, dim) if plan.layout_in == "mul_ir" else (dim, channels)
    species, rows = None, nodes
    if num_species is not None:
        rows = num_species
        species = torch.randint(max(1, num_species - (num_species > 2)), (nodes,), generator=generator)
        if num_species > 2:
            species = species + (species >= num_species // 2).long()
    x = torch.randn(nodes, *shape, generator=generator) * 10 ** (2 * torch.rand(nodes, 1, 1, generator=generator) - 1)
    w = torch.randn(rows, len(plan.paths), channels, generator=generator)
    w = w * 10 ** (4 * torch.rand(1, len(plan.paths), 1, generator=generator) - 2)
    return x.to(dtype), w.to(dtype), species


def random_contraction(rng: random.Random, max_degree: int = 4) -> SymmetricContractionPlan:
    """A plan of chains and sums of chains, of any correlation, with what a plan may have."""

    def irreps(most: int) -> list[Irrep]:
        return [
            Irrep(min(int(rng.expovariate(0.8)), max_degree), rng.choice((1, -1))) for _ in range(rng.randint(1, most))
        ]

    irreps_in, irreps_out, paths = irreps(4), irreps(3), []
    everything = Irreps([(1, ir) for ir in irreps_in])
    for i_out, out in enumerate(irreps_out):
        for degree in range(1, MAX_CORRELATION + 1):
            chains = chains_to(everything, out, degree, all_of_four=True)
            for _ in range(rng.randint(0, 3)):
                some = rng.sample(chains, min(len(chains), rng.choice((0, 1, 1, 1, 2, 5))))
                paths.append((i_out, tuple(c._replace(coefficient=rng.gauss(0, 1)) for c in some)))
    rng.shuffle(paths)
    layouts = rng.choice(LAYOUTS), rng.choice(LAYOUTS)
    return SymmetricContractionPlan(everything, Irreps([(1, ir) for ir in irreps_out]), tuple(paths), *layouts)


def random_gaunt_operands(
    plan: GauntPlan, rows: int, weighted: Sequence[bool], dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor | None]:
    """Signed x, y and those of the weights a, b, c that are wanted; each row has a scale of its own, 1e-1 to 1e1."""
    columns = [*plan.dims[:2], *[n if w else None for n, w in zip(plan.weight_numels, weighted, strict=True)]]
    operands = [None if n is None else torch.randn(rows, n, generator=generator) for n in columns]
    scales = [10 ** (2 * torch.rand(rows, 1, generator=generator) - 1) for _ in operands]
    return [None if t is None else (t * s).to(dtype) for t, s in zip(operands, scales, strict=True)]


def random_gaunt_plan(rng: random.Random, max_degree: int = 5) -> GauntPlan:
    """A product of signals with what a plan may have.

    No factor is near zero: on the rings all degrees are one function, so that rounding errors of those that do not
    contribute are of the size of those that do.
    """

    def factor() -> float:
        return rng.choice((-1, 1)) * rng.uniform(0.5, 2)

    lmaxes = [rng.randint(0, max_degree) for _ in range(3)]
    channels = rng.choice((1, 2, 3, 4, 7, 8, 16, 17, 33))
    pair = rng.choice(((channels, channels), (channels, channels), (channels, 1), (1, channels)))
    even, odd = rng.choice(((1.0, 0.0), (0.0, 1.0), (factor(), factor())))
    scales = [tuple(factor() for _ in range(l + 1)) if rng.random() < 0.5 else () for l in lmaxes]
    layouts = [rng.choice(LAYOUTS) for _ in range(3)]
    return GauntPlan(*lmaxes, *pair, even, odd, rng.choice((1, 1, 2, 3)), *scales, *layouts)


def random_s2_activation(rng: random.Random, max_degree: int = 5) -> S2ActivationPlan:
    """A function of signals with what a plan may have, on any grid, however coarse."""
    lmaxes = rng.randint(0, max_degree), rng.randint(0, max_degree)
    quadrature = rng.choice(("gausslegendre", "soft"))
    rings = rng.randint(1, 7) * (2 if quadrature == "soft" else 1)
    channels, layouts = rng.choice((1, 2, 3, 7, 16, 17)), [rng.choice(LAYOUTS) for _ in range(2)]
    mmax, order = rng.choice(((None, "l_primary"), (rng.randint(0, max_degree), rng.choice(ORDERS))))
    if mmax is not None:
        layouts = ["ir_mul", "ir_mul"]
    scales = [tuple(rng.gauss(0, 1) for _ in range(l + 1)) if rng.random() < 0.5 else () for l in lmaxes]
    res = rings, rng.randint(1, 14)
    return S2ActivationPlan(
        *lmaxes, channels, rng.choice(FUNCTIONS), res, quadrature, rng.gauss(0, 1), *scales, *layouts, mmax, order
    )


_MULTIPLICITIES = (1, 1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 31, 32, 33, 48, 64, 89, 127, 128, 130)


def random_arguments(rng: random.Random, max_degree: int = 6, max_weights: int = 4096, max_terms: int = 12_000) -> dict:
    """Keyword arguments of :meth:`Plan.normalized` for a random plan that has everything a plan may have.

    ``max_weights`` and ``max_terms`` bound what one instruction costs: its weights, and m1 m2 d1 d2.
    """
    in1: list[tuple[int, Irrep]] = []
    in2: list[tuple[int, Irrep]] = []
    out: list[tuple[int, Irrep]] = []
    instructions = []

    def irrep() -> Irrep:
        return Irrep(min(int(rng.expovariate(0.6)), max_degree), rng.choice((1, -1)))

    def segment(irreps: list, fits: Callable, new: Callable) -> int:
        known = [n for n, entry in enumerate(irreps) if fits(entry)]
        if known and rng.random() < 0.6:
            return rng.choice(known)
        irreps.append(new())
        return len(irreps) - 1

    for _ in range(rng.randint(1, 6)):
        mode = rng.choice(MODES)
        square = mode in ("uuw", "uuu", "uvu<v", "u<vw")
        for _ in range(1000):
            a = rng.choice(in1) if in1 and rng.random() < 0.5 else (rng.choice(_MULTIPLICITIES), irrep())
            b = rng.choice(in2) if in2 and rng.random() < 0.5 else (rng.choice(_MULTIPLICITIES), irrep())
            if square:
                b = (a[0], b[1])
            mo = {"uvu": a[0], "uvv": b[0], "uuu": a[0], "uvuv": a[0] * b[0], "uvu<v": a[0] * (a[0] - 1) // 2}.get(
                mode, rng.choice(_MULTIPLICITIES)
            )
            iro = rng.choice([ir for ir in a[1] * b[1] if ir.l <= max_degree] or [None])
            weighted = mode in ("uvw", "u<vw") or rng.random() < 0.7
            if mode == "uuw" and not weighted:
                mo = 1
            weights = {"uvw": a[0] * b[0] * mo, "u<vw": a[0] * (a[0] - 1) // 2 * mo, "uuw": a[0] * mo}.get(
                mode, a[0] * b[0]
            )
            if (
                iro
                and weights <= max_weights
                and a[0] * b[0] * a[1].dim * b[1].dim <= max_terms
                and mo * iro.dim <= 4096
            ):
                break
        else:
            continue
        i = segment(in1, lambda entry, a=a: entry == a, lambda a=a: a)
        j = segment(in2, lambda entry, b=b: entry == b, lambda b=b: b)
        k = segment(out, lambda entry, o=(mo, iro): entry == o, lambda o=(mo, iro): o)
        instructions.append((i, j, k, mode, weighted, rng.uniform(0.1, 2.0)))

    def shuffled(irreps: list, slot: int) -> list:
        for mul in (0, 3):
            if rng.random() < 0.2:
                irreps.append((mul, irrep()))
        order = rng.sample(range(len(irreps)), len(irreps))
        for n, ins in enumerate(instructions):
            instructions[n] = (*ins[:slot], order.index(ins[slot]), *ins[slot + 1 :])
        return [irreps[n] for n in order]

    in1, in2, out = (shuffled(irreps, slot) for slot, irreps in enumerate((in1, in2, out)))

    def variances(irreps: list) -> list[float] | None:
        return [rng.uniform(0.2, 3.0) for _ in irreps] if rng.random() < 0.3 else None

    return dict(
        irreps_in1=Irreps(in1),
        irreps_in2=Irreps(in2),
        irreps_out=Irreps(out),
        instructions=instructions,
        in1_var=variances(in1),
        in2_var=variances(in2),
        out_var=variances(out),
        irrep_normalization=rng.choice(("component", "norm", "none")),
        path_normalization=rng.choice(("element", "path", "none")),
        **{f"layout_{slot}": rng.choice(LAYOUTS) for slot in ("in1", "in2", "out")},
        weights=rng.choice(("shared", "per_sample")),
    )


def random_plan(rng: random.Random, **limits: int) -> Plan:
    """A plan of :func:`random_arguments`."""
    return Plan.normalized(**random_arguments(rng, **limits))


def random_leading(rng: random.Random) -> list[tuple[int, ...]]:
    """Leading dimensions of x, y and w that broadcast against one another; seldom with zero rows."""
    full = tuple(rng.choice((1, 2, 3, 4)) for _ in range(rng.randint(0, 3)))
    if full and rng.random() < 0.05:
        full = (0, *full[1:])
    shapes = [tuple(n if rng.random() < 0.7 else 1 for n in full)[rng.choice((0, 0, 0, len(full))) :] for _ in range(3)]
    return shapes


def depthwise(
    in1: IrrepsLike, in2: IrrepsLike, keep: IrrepsLike, weights: str = "per_sample", mode: str = "uvu"
) -> Plan:
    """The product of interatomic potentials: all paths of one mode to an irrep of ``keep``, one sorted output each."""
    in1, in2, keep = Irreps(in1), Irreps(in2), Irreps(keep)
    paths = [
        (mul, ir, i, j)
        for (i, (mul, a)), (j, (_, b)) in itertools.product(enumerate(in1), enumerate(in2))
        for ir in a * b
        if ir in keep
    ]
    irreps, position, _ = Irreps([path[:2] for path in paths]).sort()
    instructions = sorted(
        ((i, j, k, mode, True) for (_, _, i, j), k in zip(paths, position, strict=True)), key=lambda ins: ins[2]
    )
    return Plan.normalized(in1, in2, irreps, instructions, weights=weights)


def fully_connected(in1: IrrepsLike, in2: IrrepsLike, out: IrrepsLike, weights: str = "per_sample") -> Plan:
    """All uvw paths from in1 and in2 to out."""
    in1, in2, out = Irreps(in1), Irreps(in2), Irreps(out)
    instructions = [
        (i, j, k, "uvw", True)
        for (i, (_, a)), (j, (_, b)), (k, (_, c)) in itertools.product(enumerate(in1), enumerate(in2), enumerate(out))
        if c in a * b
    ]
    return Plan.normalized(in1, in2, out, instructions, weights=weights)


@dataclass(frozen=True)
class Case:
    """A named plan. ``rows`` is small; :meth:`operands` takes any number. ``problem``: a layer of a published model."""

    name: str
    plan: Plan
    rows: int = 5
    problem: bool = False

    def operands(
        self, rows: int, dtype: torch.dtype, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return random_operands(self.plan, rows, dtype, generator)


# Multiplicities of the two inputs and the output that fit each mode.
_MODE_MULTIPLICITIES = {
    "uvw": (5, 3, 7),
    "uvu": (5, 3, 5),
    "uvv": (3, 7, 7),
    "uuw": (5, 5, 3),
    "uuu": (13, 13, 13),
    "uvuv": (3, 5, 15),
    "uvu<v": (5, 5, 10),
    "u<vw": (5, 5, 3),
}

_MIXED = {
    "irreps_in1": "5x0e + 3x1o + 5x2e",
    "irreps_in2": "3x1o + 5x1e + 2x0e",
    "irreps_out": "5x1o + 3x0e + 25x1e + 7x2o + 10x3e + 1x1e + 3x1e + 4x1e + 3x2e",
    "instructions": (
        (0, 0, 0, "uvu", True, 0.7),
        (1, 0, 1, "uuu", False, -1.3),
        (0, 1, 2, "uvuv", True, 0.4),
        (2, 0, 3, "uvw", True, 1.1),
        (2, 1, 4, "uvu<v", True, 0.8),
        (2, 1, 5, "uuw", False, 0.6),
        (2, 1, 6, "u<vw", True, -0.5),
        (0, 1, 7, "uuw", True, 1.7),
        (2, 0, 0, "uvu", True, 0.3),
        (1, 0, 8, "uvv", True, 0.9),
    ),
}


def _parity_pairs(n: int, lmax: int) -> str:
    return "+".join(f"{n}x{l}{p}" for l in range(lmax + 1) for p in "oe")


def _cases() -> dict[str, Case]:
    plans: dict[str, Plan] = {}
    for mode, (m1, m2, mo) in _MODE_MULTIPLICITIES.items():
        for weights in ("none", "shared", "per_sample"):
            weighted = weights != "none"
            if not weighted and mode in ("uvw", "u<vw"):
                continue
            m = 1 if mode == "uuw" and not weighted else mo
            paths = ((0, 0, 0, mode, weighted, 0.8), (0, 0, 1, mode, weighted, -1.5), (0, 0, 0, mode, weighted, 0.5))
            plans[f"{mode}-{weights}"] = Plan(f"{m1}x1o", f"{m2}x2e", f"{m}x3o + {m}x2o", paths, weights=weights)
    for layouts in itertools.product(LAYOUTS, repeat=3):
        for weights in ("shared", "per_sample"):
            names = dict(zip(("layout_in1", "layout_in2", "layout_out"), layouts, strict=True))
            plans[f"mixed-{'-'.join(layouts)}-{weights}"] = Plan(**_MIXED, **names, weights=weights)
    for n in (1, 2, 3, 5, 7, 8, 13, 16, 17, 33, 89, 130):
        plans[f"depthwise-{n}"] = depthwise(f"{n}x0e + {n}x1o", "0e + 1o", "0e + 1o + 1e + 2e")
        plans[f"connected-{n}"] = fully_connected(f"{n}x0e + 2x1o", "3x0e + 1o", f"2x0e + {min(n, 33)}x1o", "shared")
    plans |= {
        "no-instructions": Plan("3x0e + 2x1o", "1x1o", "4x0e + 3x2e", ()),
        "empty-in1": Plan("", "2x1o", "3x0e", ()),
        "empty-in2": Plan("2x1o", "", "3x0e", ()),
        "empty-out": Plan("2x1o", "1x0e", "", ()),
        "empty-all": Plan("", "", "", ()),
        "zero-multiplicity": Plan(
            "0x0e + 3x1o + 0x2e",
            "1x0e + 0x1o",
            "3x1o + 0x0e + 0x1o + 2x1o",
            (
                (1, 0, 0, "uvu", True, 1.2),
                (0, 0, 1, "uvu", True, 1.0),
                (1, 1, 1, "uvv", True, 1.0),
                (1, 0, 2, "uvw", True, 1.0),
                (0, 1, 3, "uvw", True, 1.0),
                (0, 1, 2, "uuu", False, 1.0),
            ),
        ),
        "outputs-without-path": Plan("4x0e", "1x1o", "3x0e + 4x1o + 2x2e + 4x1o", ((0, 0, 1, "uvu", True, 1.0),)),
        "inputs-without-path": Plan("3x6e + 16x0e + 16x5o", "1x2e + 1x0e", "16x0e", ((1, 1, 0, "uvu", True, 1.0),)),
        "inputs-without-path-mirrored": Plan(
            "1x0e + 1x7o", "16x1o + 16x6e", "16x1o", ((0, 0, 0, "uvv", True, 1.0),), weights="shared"
        ),
        "matrix-product": Plan(
            "32x1o + 5x6e + 48x0e",
            "1x1o + 48x0e",
            "35x0e + 33x1o + 8x0e + 48x0e",
            (
                (0, 0, 0, "uvw", True, 0.9),
                (2, 0, 1, "uvw", True, -1.1),
                (2, 1, 0, "uuw", True, 0.3),
                (2, 1, 2, "u<vw", True, 0.6),
                (2, 1, 3, "uuu", False, 1.0),
            ),
            weights="shared",
        ),
        "repeated-unsorted-outputs": Plan(
            "3x1o + 5x0e",
            "1x0e + 1x1o",
            "3x2e + 3x1o + 5x0e + 3x1o + 5x1o + 3x0e",
            (
                (1, 1, 4, "uvu", True, 0.4),
                (0, 1, 0, "uvu", True, 1.4),
                (0, 0, 3, "uvu", True, -0.9),
                (1, 0, 2, "uvu", False, 1.1),
                (0, 0, 1, "uvu", True, 0.7),
                (0, 1, 5, "uvu", True, 0.2),
                (0, 0, 3, "uvu", True, 0.6),
            ),
        ),
        "even-parity": depthwise("8x0e + 4x1e + 2x2e + 2x3e", "0e + 1e + 2e + 3e", "0e + 1e + 2e + 3e"),
        "degree-6": depthwise("3x5o + 2x6e", "4e + 6e + 3o", "0e + 2e + 3o + 5o + 6e + 6o"),
        "degree-8": depthwise("3x7o + 2x8e", "8e + 5o + 0e", "1e + 2e + 7o + 8e + 8o"),
        "degree-11-shared": depthwise("2x11o", "10e", "1o + 9o + 11o", weights="shared"),
    }
    problems = {
        "mace-medium": depthwise("128x0e + 128x1o", "0e + 1o + 2e + 3o", "0e + 1o + 2e + 3o"),
        "mace-large": depthwise("128x0e + 128x1o + 128x2e", "0e + 1o + 2e + 3o", "0e + 1o + 2e + 3o"),
        "mace-first": depthwise("128x0e", "0e + 1o + 2e + 3o", "0e + 1o + 2e + 3o"),
        "mace-skip": fully_connected("128x0e + 128x1o", "89x0e", "128x0e", weights="shared"),
        "nequip-water": depthwise(_parity_pairs(32, 1), "0e + 1o", _parity_pairs(1, 1)),
        "nequip-lips": depthwise(_parity_pairs(32, 2), "0e + 1o + 2e", _parity_pairs(1, 2)),
        "nequip-benzene": depthwise(_parity_pairs(64, 3), "0e + 1o + 2e + 3o", _parity_pairs(1, 3)),
        "nequip-m": depthwise("128x0e + 64x1o + 32x2e", "0e + 1o + 2e", "0e + 1o + 2e"),
        "nequip-xl": depthwise(
            "320x0e + 96x1o + 64x2e + 32x3o + 32x4e", "0e + 1o + 2e + 3o + 4e", "0e + 1o + 2e + 3o + 4e"
        ),
        "nequix-first": depthwise("89x0e", "0e + 1o + 2e + 3o", "0e + 1o + 2e + 3o"),
        "nequix": depthwise("128x0e + 64x1o + 32x2e + 32x3o", "0e + 1o + 2e + 3o", "0e + 1o + 2e + 3o"),
        "sevennet-0": depthwise("128x0e + 64x1e + 32x2e", "0e + 1e + 2e", "0e + 1e + 2e"),
        "sevennet-l3i5": depthwise("128x0e + 64x1e + 32x2e + 32x3e", "0e + 1e + 2e + 3e", "0e + 1e + 2e + 3e"),
        "allegro-l2": depthwise("64x0e + 64x1o + 64x2e", "64x0e + 64x1o + 64x2e", "0e + 1o + 2e", "shared", "uuu"),
        "allegro-l3": depthwise(
            "32x0e + 32x1o + 32x2e + 32x3o", "32x0e + 32x1o + 32x2e + 32x3o", "0e + 1o + 2e + 3o", "shared", "uuu"
        ),
        "diffdock": fully_connected("10x1o + 10x1e + 48x0e + 48x0o", "0e + 1o + 2e", "10x1o + 10x1e + 48x0e + 48x0o"),
        "gate": Plan(
            "64x1o + 32x2e", "64x0e + 32x0e", "64x1o + 32x2e", ((0, 0, 0, "uuu", False), (1, 1, 1, "uuu", False))
        ),
    }
    cases = {name: Case(name, plan) for name, plan in plans.items()}
    cases |= {name: Case(name, plan, rows=3, problem=True) for name, plan in problems.items()}
    return cases


CASES: dict[str, Case] = _cases()


def _contraction(irreps_in: str, irreps_out: str, correlation: int, **layouts: str) -> SymmetricContractionPlan:
    return SymmetricContractionPlan.complete(irreps_in, irreps_out, correlation, **layouts)


# Of symmetric contractions: those of MACE models, layer by layer, and small ones of every correlation and layout.
CONTRACTIONS: dict[str, SymmetricContractionPlan] = {
    "mace-medium": _contraction("0e + 1o + 2e + 3o", "0e + 1o", 3),
    "mace-large": _contraction("0e + 1o + 2e + 3o", "0e + 1o + 2e", 3),
    "mace-last": _contraction("0e + 1o + 2e + 3o", "0e", 3),
    "linear": _contraction("0e + 1o", "1o + 0e", 1),
    "quadratic-ir_mul": _contraction("0e + 1o + 2e", "0e + 1o + 2e", 2, layout_in="ir_mul", layout_out="ir_mul"),
    "cubic-mixed": _contraction("1o + 0e + 1e", "1e + 2o + 0e", 3, layout_out="ir_mul"),
    "quartic": _contraction("0e + 1o", "0e + 1o", 4),
    "quartic-mixed": _contraction("0e + 1o + 2e", "1o", 4, layout_in="ir_mul"),
}

# Of products of signals: kinds, layouts, a single factor on either side, channels around the lanes of a vector, degrees
# that differ and are 0, more degrees than a loop keeps in registers.
GAUNTS: dict[str, GauntPlan] = {
    "even": GauntPlan.normalized(2, 2, 2, 5, 5),
    "odd": GauntPlan.normalized(3, 3, 3, 4, 4, "odd", "component"),
    "all": GauntPlan.normalized(2, 3, 4, 3, 3, "all", "component", rank=2),
    "all-mul_ir": GauntPlan(3, 1, 2, 17, 17, 0.7, -1.3, 1, layout1="mul_ir", layout2="ir_mul", layout_out="mul_ir"),
    "one-channel": GauntPlan(2, 2, 4, 1, 1, 1.0, 1.0, 2),
    "single-y": GauntPlan(3, 2, 3, 9, 1, 1.0, 0.5, 1, layout1="mul_ir", layout_out="mul_ir"),
    "single-x": GauntPlan(2, 2, 1, 1, 16, 1.0, 0.5, 3, (1.0, -0.5, 2.0)),
    "scalars": GauntPlan(0, 0, 0, 3, 3, 1.0, 1.0),
    "scalar-x": GauntPlan(0, 3, 3, 2, 2, 1.0, 1.0),
    "degree-9": GauntPlan(9, 8, 10, 2, 2, 1.0, 0.3),
}
