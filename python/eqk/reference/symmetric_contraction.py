"""The symmetric contraction by one einsum a coupling."""

from __future__ import annotations

import torch
from torch import Tensor

from eqk._library import wigner_3j
from eqk.symmetric_contraction_plan import SymmetricContractionPlan


def symmetric_contraction(x: Tensor, w: Tensor, species: Tensor | None, plan: SymmetricContractionPlan | str) -> Tensor:
    """:func:`eqk.symmetric_contraction`, dense, in any dtype: -> [nodes, channels * dim_out]."""
    plan = SymmetricContractionPlan.parse(plan) if isinstance(plan, str) else plan
    x = x if plan.layout_in == "mul_ir" else x.mT
    w = w if species is None else w[species]
    nodes, channels = x.shape[:2]
    parts = [x[..., columns] for columns in plan.irreps_in.slices()]
    known: dict[tuple, Tensor] = {}

    def value(irreps: tuple[int, ...], degrees: tuple[int, ...]) -> Tensor:
        """[nodes, channels, components] of a chain."""
        if len(irreps) == 1:
            return parts[irreps[0]]
        if (irreps, degrees) not in known:
            left, right = value(irreps[:-1], degrees[:-1]), parts[irreps[-1]]
            c = wigner_3j((left.shape[-1] - 1) // 2, plan.irreps_in[irreps[-1]].ir.l, degrees[-1], x.dtype, x.device)
            known[irreps, degrees] = torch.einsum("nca,ncb,abk->nck", left, right, c)
        return known[irreps, degrees]

    out = [x.new_zeros(nodes, channels, ir.dim) for _, ir in plan.irreps_out]
    for n, (i_out, chains) in enumerate(plan.paths):
        for coefficient, irreps, degrees in chains:
            out[i_out] = out[i_out] + coefficient * w[:, n, :, None] * value(irreps, degrees)
    flat = [(t if plan.layout_out == "mul_ir" else t.mT).flatten(1) for t in out]
    return torch.cat(flat, 1) if flat else x.new_zeros(nodes, 0)
