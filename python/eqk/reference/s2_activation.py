"""Functions and products of signals on the sphere, by dense matrices to a grid and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eqk._signals import by_component, component_index, merge, split
from eqk.reference.spherical_harmonics import spherical_harmonics
from eqk.s2_activation_plan import S2ActivationPlan
from eqk.s2_quadrature import s2_grid

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: 1 * x,
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
    "quartic": lambda x: x * x * x * x,
    "relu": F.relu,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x * torch.sigmoid(x),  # torch's own has two derivatives
    "tanh": torch.tanh,
    "gelu": lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2)),
    "softplus": lambda x: torch.where(x > 0, x, 0) + torch.log1p(torch.exp(-x.abs())),
    "ssp": lambda x: FUNCTIONS["softplus"](x) - math.log(2),
}


def dense(plan: S2ActivationPlan, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """S [points, components of x] and A [points, those of the result]: f = S x, z = A^T f."""
    grid = s2_grid(plan.res, plan.quadrature, torch.float64)
    weights = grid.weights[:, None].expand(plan.res).flatten()

    def harmonics(lmax: int, scale: tuple[float, ...]) -> Tensor:
        y = spherical_harmonics(range(lmax + 1), grid.positions.flatten(0, 1), "integral")
        y = y * by_component(torch.tensor(scale, dtype=torch.float64))
        return y[:, component_index(lmax, plan.mmax, plan.order)]

    back = harmonics(plan.lmax_out, plan.scale_out) * weights[:, None] * plan.gain
    return harmonics(plan.lmax_in, plan.scale_in).to(device, dtype), back.to(device, dtype)


def s2_activation(x: Tensor, plan: S2ActivationPlan | str, times: Sequence[Tensor] = ()) -> Tensor:
    """``torch.ops.eqk.s2_activation``, dense, times other signals on the grid: -> [rows, columns of the result]."""
    plan = S2ActivationPlan.parse(plan) if isinstance(plan, str) else plan
    to, back = dense(plan, x.dtype, x.device)

    def values(t: Tensor) -> Tensor:
        return torch.einsum("pi,zic->zpc", to, split(t, plan.lmax_in, plan.channels, plan.layout_in, plan.mmax))

    f = FUNCTIONS[plan.function](values(x))
    for t in times:
        f = f * values(t)
    return merge(torch.einsum("pi,zpc->zic", back, f), plan.lmax_out, plan.layout_out)
