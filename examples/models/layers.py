"""What several systems are made of beside eqk's modules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from eqk import o3


def depthwise(irreps_in: o3.Irreps, irreps_sh: o3.Irreps, wanted: Iterable[o3.Irrep]) -> tuple[o3.Irreps, list[tuple]]:
    """Irreps and "uvu" instructions of the product whose paths lead to ``wanted``, the irreps sorted as e3nn does."""
    wanted, irreps, paths = set(wanted), [], []
    for i, (mul, ir_in) in enumerate(irreps_in):
        for j, (_, ir_sh) in enumerate(irreps_sh):
            for ir in ir_in * ir_sh:
                if ir in wanted:
                    paths.append((i, j, len(irreps)))
                    irreps.append((mul, ir))
    irreps, place, _ = o3.Irreps(irreps).sort()
    return irreps, [(i, j, place[k], "uvu", True) for i, j, k in paths]


def gaussians(length: Tensor, count: int, largest: float) -> Tensor:
    """[edges] -> [edges, count], one a centre from 0 to ``largest``, as wide as these are apart."""
    centres = torch.linspace(0, largest, count, dtype=length.dtype, device=length.device)
    return torch.exp(-0.5 * ((length[:, None] - centres) * (count - 1) / largest) ** 2)


def bessel_basis(length: Tensor, count: int, cutoff: float) -> Tensor:
    """[edges] -> [edges, count]: Bessel functions times an envelope that is smooth and zero at the cutoff.

    Gasteiger et al., Directional message passing (ICLR 2020), Eqs. 7 and 8 with p = 6.
    """
    r = length[:, None] / cutoff
    n = torch.arange(1, count + 1, dtype=r.dtype, device=r.device)
    envelope = 1 - 28 * r**6 + 48 * r**7 - 21 * r**8
    return math.sqrt(2 / cutoff) * torch.sin(n * math.pi * r) / length[:, None] * envelope


@functools.cache
def normalizer(activation: Callable[[Tensor], Tensor]) -> float:
    """1 / sqrt(<activation(z)^2>) of standard normal z, estimated from the same numbers as e3nn does."""
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return activation(z).square().mean().rsqrt().item()


class FullyConnectedNet(nn.Module):
    """e3nn.nn's: of weights and inputs of the standard normal distribution, with outputs of about that one."""

    def __init__(self, sizes: Sequence[int], activation: Callable[[Tensor], Tensor] = nn.functional.silu) -> None:
        super().__init__()
        self.activation = activation
        self.names = [f"layer{n}" for n in range(len(sizes) - 1)]
        for name, inputs, outputs in zip(self.names, sizes, sizes[1:], strict=False):
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.randn(inputs, outputs))
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            weight = self.get_submodule(name).weight
            x = x @ (weight / len(weight) ** 0.5)
            if name != self.names[-1]:
                x = normalizer(self.activation) * self.activation(x)
        return x


class Gate(nn.Module):
    """Scalars through SiLU; each irrep of higher degree times a sigmoid of a scalar of its own.

    ``normalize``: both functions are scaled as e3nn.nn.Gate does it.
    """

    def __init__(self, scalars: o3.Irreps, gated: o3.Irreps, normalize: bool = False) -> None:
        super().__init__()
        self.factors = [normalizer(f) if normalize else 1.0 for f in (nn.functional.silu, torch.sigmoid)]
        self.irreps_in = scalars + o3.Irreps([(gated.num_irreps, (0, 1))]) + gated
        self.irreps_out = scalars + gated
        self.sizes = (scalars.dim, gated.num_irreps, gated.dim)
        self.product = o3.ElementwiseTensorProduct(gated, f"{gated.num_irreps}x0e")

    def forward(self, x: Tensor) -> Tensor:
        scalars, gates, gated = x.split(self.sizes, dim=-1)
        a, b = self.factors
        return torch.cat([a * nn.functional.silu(scalars), self.product(gated, b * gates.sigmoid())], dim=-1)
