"""Products of signals on the sphere, path by path with Wigner 3j symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from eqk._library import wigner_3j
from eqk.gaunt_plan import GauntPlan


def _signals(t: Tensor, lmax: int, channels: int, layout: str) -> list[Tensor]:
    """[rows, dim] -> [rows, 2 l + 1, channels] for each degree."""
    parts = t.split([(2 * l + 1) * channels for l in range(lmax + 1)], 1)
    shapes = [(channels, 2 * l + 1) if layout == "mul_ir" else (2 * l + 1, channels) for l in range(lmax + 1)]
    parts = [p.unflatten(1, shape) for p, shape in zip(parts, shapes, strict=True)]
    return [p.mT if layout == "mul_ir" else p for p in parts]


def gaunt_product(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None, plan: GauntPlan | str
) -> Tensor:
    """``torch.ops.eqk.gaunt_product``, dense: -> [rows, dim_out]."""
    plan = GauntPlan.parse(plan) if isinstance(plan, str) else plan
    xs = _signals(x, plan.lmax1, plan.channels1, plan.layout1)
    ys = _signals(y, plan.lmax2, plan.channels2, plan.layout2)
    weights = [
        None if w is None else w.unflatten(1, (plan.rank, lmax + 1, plan.channels))
        for w, lmax in zip((a, b, c), plan.lmaxes, strict=True)
    ]
    out = [x.new_zeros(x.shape[0], 2 * l + 1, plan.channels) for l in range(plan.lmax_out + 1)]
    for l1, u in enumerate(xs):
        for l2, v in enumerate(ys):
            for l3 in range(abs(l1 - l2), min(l1 + l2, plan.lmax_out) + 1):
                coefficient = plan.path_coefficient(l1, l2, l3)
                if coefficient == 0:
                    continue
                factor = x.new_ones(1, plan.rank, 1)
                for w, l in zip(weights, (l1, l2, l3), strict=True):
                    factor = factor if w is None else factor * w[:, :, l]
                symbol = wigner_3j(l1, l2, l3, x.dtype, x.device) * coefficient
                out[l3] = out[l3] + torch.einsum("zic,zjc,ijk->zkc", u, v, symbol) * factor.sum(1, keepdim=True)
    return torch.cat([(t.mT if plan.layout_out == "mul_ir" else t).flatten(1) for t in out], 1)
