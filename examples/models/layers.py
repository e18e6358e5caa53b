"""What several systems are made of beside eqk's modules."""

from __future__ import annotations

import functools
import itertools
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


def normalized(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The activation times its :func:`normalizer`, as e3nn's gates have it."""
    return lambda x: normalizer(activation) * activation(x)


def smooth_leaky_relu(x: Tensor) -> Tensor:
    """Of the Equiformers' attention (Liao and Smidt 2022, arXiv:2206.11990): x for large x, x / 5 for small ones."""
    return 0.6 * x + 0.4 * x * (2 * x.sigmoid() - 1)


def radial_network(sizes: Sequence[int]) -> nn.Sequential:
    """The Equiformers': a norm and SiLU between linear layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-2])


class SO2Linear(nn.Module):
    """The parameters of a layer of :func:`eqk.so2_edge_message`; ``extra`` scalars are for gates and logits."""

    def __init__(self, lmax: int, mmax: int, channels_in: int, channels_out: int, extra: int = 0) -> None:
        super().__init__()
        degrees = [lmax + 1 - m for m in range(mmax + 1)]
        self.fc_m0 = nn.Linear(degrees[0] * channels_in, extra + degrees[0] * channels_out)
        self.so2_m_fc = nn.ModuleList(nn.Linear(n * channels_in, 2 * n * channels_out, bias=False) for n in degrees[1:])

    def layer(self) -> tuple[Tensor, ...]:
        return self.fc_m0.weight, self.fc_m0.bias, *(fc.weight for fc in self.so2_m_fc)


class FullyConnectedNet(nn.Module):
    """e3nn.nn's: of weights and inputs of the standard normal distribution, with outputs of about that one.

    ``gain``: what activations are multiplied by; None for their :func:`normalizer`. NequIP has the square root of 2.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
        gain: float | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.gain = activation, normalizer(activation) if gain is None else gain
        self.names = [f"layer{n}" for n in range(len(sizes) - 1)]
        for name, inputs, outputs in zip(self.names, sizes, sizes[1:], strict=False):
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.randn(inputs, outputs))
            self.add_module(name, layer)

    def matrix(self, name: str) -> Tensor:
        weight = self.get_submodule(name).weight
        return weight / len(weight) ** 0.5

    def hidden(self, x: Tensor) -> Tensor:
        """The network up to its last layer, whose matrix is ``last``."""
        for name in self.names[:-1]:
            x = self.gain * self.activation(x @ self.matrix(name))
        return x

    @property
    def last(self) -> Tensor:
        return self.matrix(self.names[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.last


# As e3nn scales what its gates take.
SILU_AND_SIGMOID = normalized(nn.functional.silu), normalized(torch.sigmoid)


class Gate(nn.Module):
    """Scalars through an activation; each irrep of higher degree times one of a scalar of its own."""

    def __init__(
        self,
        scalars: o3.Irreps,
        gated: o3.Irreps,
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
        gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.activation, self.gate = activation, gate
        self.irreps_in = scalars + o3.Irreps([(gated.num_irreps, (0, 1))]) + gated
        self.irreps_out = scalars + gated
        self.sizes = (scalars.dim, gated.num_irreps, gated.dim)
        self.product = o3.ElementwiseTensorProduct(gated, f"{gated.num_irreps}x0e")

    def forward(self, x: Tensor) -> Tensor:
        scalars, gates, gated = x.split(self.sizes, dim=-1)
        return torch.cat([self.activation(scalars), self.product(gated, self.gate(gates))], dim=-1)
