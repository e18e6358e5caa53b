"""The tensor product of :class:`eqk.Plan` by dense einsum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqk._library import wigner_3j
from eqk.plan import Plan

# x, y without the coupling, weights, and what the weights leave; p counts the pairs u < v.
_EQUATIONS = {
    "uvw": ("zui", "zvj", "uvw", "zwk"),
    "uvu": ("zui", "zvj", "uv", "zuk"),
    "uvv": ("zui", "zvj", "uv", "zvk"),
    "uuw": ("zui", "zuj", "uw", "zwk"),
    "uuu": ("zui", "zuj", "u", "zuk"),
    "uvuv": ("zui", "zvj", "uv", "zuvk"),
    "uvu<v": ("zpi", "zpj", "p", "zpk"),
    "u<vw": ("zpi", "zpj", "pw", "zwk"),
}


def tensor_product(x: Tensor, y: Tensor, w: Tensor | None, plan: Plan | str) -> Tensor:
    """:func:`eqk.tensor_product`, dense: x [rows, dim1], y [rows, dim2], w as the plan says -> [rows, dim_out]."""
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    rows = x.shape[0]

    def segments(t, irreps, layout):
        for columns, (mul, ir) in zip(irreps.slices(), irreps, strict=True):
            part = t[:, columns]
            yield part.reshape(rows, mul, ir.dim) if layout == "mul_ir" else part.reshape(rows, ir.dim, mul).mT

    xs = list(segments(x, plan.irreps_in1, plan.layout_in1))
    ys = list(segments(y, plan.irreps_in2, plan.layout_in2))
    out = [x.new_zeros(rows, mul, ir.dim) for mul, ir in plan.irreps_out]
    at = 0
    for ins, shape in zip(plan.instructions, plan.path_shapes, strict=True):
        i, j, o, mode, weighted, coefficient = ins
        a, b = xs[i], ys[j]
        ex, ey, ew, eo = _EQUATIONS[mode]
        if "p" in ex:
            u, v = torch.triu_indices(a.shape[1], b.shape[1], 1)
            a, b = a[:, u], b[:, v]
        degrees = [
            irreps[n].ir.l for irreps, n in zip((plan.irreps_in1, plan.irreps_in2, plan.irreps_out), ins, strict=False)
        ]
        c = wigner_3j(*degrees, dtype=x.dtype, device=x.device)
        if weighted:
            numel = math.prod(shape)
            part = w[..., at : at + numel].reshape(*w.shape[:-1], *shape)
            at += numel
            term = torch.einsum(f"{ex},{ey},ijk,{'z' if w.dim() == 2 else ''}{ew}->{eo}", a, b, c, part)
        else:
            term = torch.einsum(f"{ex},{ey},ijk->{eo.replace('w', '')}", a, b, c)
        out[o] = out[o] + coefficient * term.reshape(rows, out[o].shape[1], c.shape[-1])
    flat = [(t if plan.layout_out == "mul_ir" else t.mT).reshape(rows, t.shape[1] * t.shape[2]) for t in out]
    return torch.cat(flat, 1) if flat else x.new_zeros(rows, 0)
