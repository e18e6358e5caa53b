"""Products of signals on the sphere, path by path with Wigner 3j symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from eqk._library import wigner_3j
from eqk._signals import merge, split
from eqk.gaunt_plan import GauntPlan


def gaunt_product(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None, plan: GauntPlan | str
) -> Tensor:
    """``torch.ops.eqk.gaunt_product``, dense: -> [rows, dim_out]."""
    plan = GauntPlan.parse(plan) if isinstance(plan, str) else plan
    xs = split(x, plan.lmax1, plan.channels1, plan.layout1)
    ys = split(y, plan.lmax2, plan.channels2, plan.layout2)
    weights = [
        None if w is None else w.unflatten(1, (plan.rank, lmax + 1, plan.channels))
        for w, lmax in zip((a, b, c), plan.lmaxes, strict=True)
    ]
    out = [x.new_zeros(x.shape[0], 2 * l + 1, plan.channels) for l in range(plan.lmax_out + 1)]
    for l1 in range(plan.lmax1 + 1):
        for l2 in range(plan.lmax2 + 1):
            u, v = xs[:, l1 * l1 : (l1 + 1) ** 2], ys[:, l2 * l2 : (l2 + 1) ** 2]
            for l3 in range(abs(l1 - l2), min(l1 + l2, plan.lmax_out) + 1):
                coefficient = plan.path_coefficient(l1, l2, l3)
                if coefficient == 0:
                    continue
                factor = x.new_ones(1, plan.rank, 1)
                for w, l in zip(weights, (l1, l2, l3), strict=True):
                    factor = factor if w is None else factor * w[:, :, l]
                symbol = wigner_3j(l1, l2, l3, x.dtype, x.device) * coefficient
                out[l3] = out[l3] + torch.einsum("zic,zjc,ijk->zkc", u, v, symbol) * factor.sum(1, keepdim=True)
    return merge(torch.cat(out, 1), plan.lmax_out, plan.layout_out)
