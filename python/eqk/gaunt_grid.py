"""Products of signals on the sphere by torch operations, on a grid in memory: what kernels leave, and other devices.

The form Q(x, y, a, b, c, g) of the family (:mod:`eqk.gaunt_product`) is linear in each slot: gradients fill one of them
by products of the others, and a derivative along tangents is a sum of Q with one slot filled by its tangent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eqk._signals import by_component, merge, split
from eqk.gaunt_plan import GauntPlan
from eqk.s2_quadrature import cached_grid, cached_tables, exact_resolution
from eqk.spherical_harmonics import plan_string

MaybeTensor = Tensor | None

# Of one field on the grid: so many rows at a time that it has no more.
ELEMENTS = 2**24

_SIGNALS, _WEIGHTS = (0, 1, 5), (2, 3, 4)  # slots of x, y and g, and of their weights
_G = 5


class _Grid(NamedTuple):
    """Matrices between components and points, of one signal. North, east: derivatives along unit tangents."""

    values: Tensor
    north: Tensor
    east: Tensor
    analysis: Tensor
    degrees: Tensor  # of each component

    @property
    def points(self) -> int:
        return self.values.shape[0]


def _harmonics(lmax: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """Of degrees 0 to lmax, orthonormal: [point, component], and the gradient of their polynomials."""
    plan, ops = plan_string(range(lmax + 1), "integral"), torch.ops.eqk
    values = ops.spherical_harmonics(points, plan)
    gradients = torch.empty(*values.shape, 3, dtype=values.dtype)
    for n in range(values.shape[1]):
        only = torch.zeros_like(values)
        only[:, n] = 1
        gradients[:, n] = ops.spherical_harmonics_backward(points, only, plan)
    return values, gradients


@cached_tables
def _grids(text: str, dtype: torch.dtype, device: torch.device) -> tuple[_Grid, ...]:
    """Of x, y and the result, exact for products of all three: rings of Gauss and Legendre times equal angles."""
    plan = GauntPlan.parse(text)
    res, wide = exact_resolution(sum(plan.lmaxes)), torch.float64
    grid = cached_grid(*res, "gausslegendre")
    weights = grid.weights.repeat_interleave(res[1])
    z, cos, sin = grid.betas.cos()[:, None], grid.alphas.cos(), grid.alphas.sin()
    s = (1 - z * z).sqrt()

    def at_points(*components):
        return torch.stack(torch.broadcast_tensors(*components), -1).flatten(0, 1)

    points, north = at_points(s * cos, s * sin, z), at_points(-z * cos, -z * sin, s)
    east = at_points(-sin, cos, torch.zeros_like(z))
    result = []
    for s, (lmax, scale) in enumerate(zip(plan.lmaxes, (plan.scale1, plan.scale2, plan.scale_out), strict=True)):
        degrees = by_component(torch.arange(lmax + 1))
        values, gradients = _harmonics(lmax, points)
        # Degrees that couple with none are zero: the quadrature would leave rounding errors, of the others too.
        coupled = [f if _couples(plan, s, l) else 0.0 for l, f in enumerate(scale)]
        factor = torch.tensor(coupled, dtype=wide)[degrees]
        along = [(gradients * tangent[:, None]).sum(-1) * factor for tangent in (north, east)]
        matrices = values * factor, *along, (values * weights[:, None] * factor).T
        result.append(_Grid(*(m.to(dtype).to(device) for m in matrices), degrees.to(device)))
    return tuple(result)


def _couples(plan: GauntPlan, s: int, l: int) -> bool:
    first, second = plan.lmaxes[(s + 1) % 3], plan.lmaxes[(s + 2) % 3]
    return any(
        plan.odd if (l + a + b) % 2 else plan.even
        for a in range(first + 1)
        for b in range(abs(l - a), min(l + a, second) + 1)
    )


def _gradients(slots: Sequence[MaybeTensor], text: str, wanted: Sequence[bool]) -> list[MaybeTensor]:
    """Of Q along the wanted slots, in the dtype of the operands; those of g are the product."""
    plan, x = GauntPlan.parse(text), slots[0]
    grids = _grids(text, x.dtype, x.device)
    rows, shapes = x.shape[0], list(zip(plan.lmaxes, (plan.channels1, plan.channels2, plan.channels), strict=True))
    layouts = plan.layout1, plan.layout2, plan.layout_out

    signals = [
        None if slots[slot] is None else split(slots[slot], lmax, channels, layout)[:, None]
        for slot, (lmax, channels), layout in zip(_SIGNALS, shapes, layouts, strict=True)
    ]  # [rows, 1, component, channel]
    weights = [
        None if slots[slot] is None else slots[slot].reshape(rows, plan.rank, lmax + 1, plan.channels)
        for slot, (lmax, _) in zip(_WEIGHTS, shapes, strict=True)
    ]
    of_components = [None if w is None else w[:, :, grid.degrees] for w, grid in zip(weights, grids, strict=True)]
    weighted = [t if w is None or t is None else t * w for t, w in zip(signals, of_components, strict=True)]
    terms = plan.rank if all(w is None for w in weights) else 1  # of the sum over ranks, which are equal

    def product(s: int) -> Tensor:
        """Of the two other signals, in the components of this one: [rows, rank or 1, component, channel]."""
        (f, of_f), (g, of_g) = ((weighted[n % 3], grids[n % 3]) for n in (s + 1, s + 2))
        total = 0
        if plan.even or not plan.odd:
            total = plan.even * (of_f.values @ f) * (of_g.values @ g)
        if plan.odd:
            # East comes first: with north it has the outward normal on its right.
            bracket = (of_f.east @ f) * (of_g.north @ g) - (of_f.north @ f) * (of_g.east @ g)
            total = total + plan.odd * bracket
        return grids[s].analysis @ total * terms

    results: list[MaybeTensor] = [None] * 6
    for s, (signal, weight) in enumerate(zip(_SIGNALS, _WEIGHTS, strict=True)):
        of_weight = wanted[weight] and weights[s] is not None
        if not wanted[signal] and not of_weight:
            continue
        raw = product(s)
        if wanted[signal]:
            total = (raw if of_components[s] is None else raw * of_components[s]).sum(1)
            single = shapes[s][1] == 1 and plan.channels != 1
            total = total.sum(-1, keepdim=True) if single else total
            results[signal] = merge(total, shapes[s][0], layouts[s])
        if of_weight:
            terms_of_degree = (raw * signals[s]).split([2 * l + 1 for l in range(shapes[s][0] + 1)], 2)
            gradient = torch.stack([t.sum(2) for t in terms_of_degree], 2)
            results[weight] = gradient.expand(rows, plan.rank, -1, plan.channels).flatten(1)
    return results


def _filled(slots: Sequence[MaybeTensor], tangents: Sequence[MaybeTensor], text: str, wanted: Sequence[bool]):
    """The derivative along the tangents of what :func:`_gradients` gives; None for zero."""
    totals: list[MaybeTensor] = [None] * 6
    for s, t in enumerate(tangents):
        if t is None or (slots[s] is None and s != _G):
            continue
        others = [want and n != s for n, want in enumerate(wanted)]
        terms = _gradients([t if n == s else v for n, v in enumerate(slots)], text, others)
        totals = [a if b is None else b if a is None else a + b for a, b in zip(totals, terms, strict=True)]
    return totals


def gradients(
    slots: Sequence[MaybeTensor], tangents: Sequence[MaybeTensor] | None, text: str, wanted: Sequence[bool]
) -> list[Tensor]:
    """Those of Q along the wanted slots x, y, a, b, c, g, or their derivative along tangents of these.

    Nothing, of shape (0,), where none is wanted or an operand is missing.
    """
    plan, x = GauntPlan.parse(text), slots[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    widths = (*plan.dims[:2], *plan.weight_numels, plan.dims[2])
    wanted = [want and (slots[n] is not None or n == _G) for n, want in enumerate(wanted)]
    results = [x.new_empty(x.shape[0], n) if want else x.new_empty(0) for n, want in zip(widths, wanted, strict=True)]
    # As _grids has it.
    of_row = plan.rank * max(1, plan.channels) * (sum(plan.lmaxes) // 2 + 1) * (sum(plan.lmaxes) + 1)
    step = max(1, ELEMENTS // of_row)
    for first in range(0, x.shape[0] if any(wanted) else 0, step):

        def part(tensors, first=first):
            return [None if t is None else t[first : first + step].to(wide) for t in tensors]

        if tangents is None:
            found = _gradients(part(slots), text, wanted)
        else:
            found = _filled(part(slots), part(tangents), text, wanted)
        for result, want, value in zip(results, wanted, found, strict=True):
            if want:
                result[first : first + step] = 0 if value is None else value
    return results
