"""A layer of Nequix (Koker, Kotak and Smidt 2025, arXiv:2508.16067), as of nequix 0.4.5 in torch.

NequIP's convolution with a plain skip connection and a norm of all irreps before the gate. Gather, product, the last
layer of the radial network and the sum are one op: neither messages nor weights of all edges are ever stored.
:func:`optimizers` says how it is trained: matrices by Muon, all else by AdamW.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import eqk
from eqk import o3

from .layers import Gate, bessel_basis, depthwise
from .system import System, random_edges, random_features


@functools.cache
def silu_factor() -> float:
    """1 / sqrt(<silu(z)^2>) over the quantiles of the normal distribution, where e3nn has random numbers."""
    z = math.sqrt(2) * torch.linspace(-1, 1, 1_000_003, dtype=torch.float64)[1:-1].erfinv()
    return nn.functional.silu(z).square().mean().rsqrt().item()


def normalized_silu(x: Tensor) -> Tensor:
    return silu_factor() * nn.functional.silu(x)


class RMSLayerNorm(nn.Module):
    """x over the root of the mean over irreps of sum_c mean_m x_cm^2 / (2 l + 1), times a weight for each channel.

    Of irreps with equal multiplicities, as a mean over channels, this is :class:`eqk.nn.EquivariantRMSNorm`.
    """

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.shapes = [(mul, ir.dim) for mul, ir in irreps]
        self.affine_weight = nn.ParameterList(torch.ones(mul) for mul, _ in irreps)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split([mul * dim for mul, dim in self.shapes], 1)
        squares = [p.square().sum(1, keepdim=True) / dim**2 for p, (_, dim) in zip(parts, self.shapes, strict=True)]
        scale = (sum(squares) / len(parts) + 1e-12).rsqrt()
        scales = [w.repeat_interleave(dim) for w, (_, dim) in zip(self.affine_weight, self.shapes, strict=True)]
        return x * scale * torch.cat(scales)


class NequixConvolution(nn.Module):
    """x [nodes, irreps_in] -> [nodes, irreps_out], which begin with scalars; radial: sizes but for the last."""

    def __init__(self, irreps_in: str, irreps_sh: str, irreps_out: str, radial: list[int], neighbours: float) -> None:
        super().__init__()
        irreps_in, irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.gate = Gate(irreps_out[:1], irreps_out[1:], normalized_silu, normalized_silu)
        irreps = self.gate.irreps_in.regroup()
        middle, paths = depthwise(irreps_in, o3.Irreps(irreps_sh), {ir for _, ir in irreps})
        paths.sort(key=lambda path: path[2])  # the order of its weights
        self.linear_1 = o3.Linear(irreps_in, irreps_in)
        self.tp = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False)
        self.radial_mlp = nn.ParameterList(2 * n**-0.5 * torch.randn(n, m) for n, m in itertools.pairwise(radial))
        self.radial_mlp.append(radial[-1] ** -0.5 * torch.randn(radial[-1], self.tp.weight_numel))
        self.linear_2 = o3.Linear(middle.regroup(), irreps)
        self.skip = o3.Linear(irreps_in, irreps)
        self.layer_norm = RMSLayerNorm(irreps)
        self.scale = neighbours**-0.5

    def forward(self, x: Tensor, sh: Tensor, radial: Tensor, graph: eqk.Graph) -> Tensor:
        *matrices, last = self.radial_mlp
        for weight in matrices:
            radial = nn.functional.silu(radial @ weight)
        summed = self.scale * graph.conv_radial(self.linear_1(x), sh, radial, last, self.tp)
        return self.gate(self.layer_norm(self.linear_2(summed) + self.skip(x)))


class Matrices(nn.Module):
    """A parametrization of o3.Linear's flat weights by their matrices, as Muon takes them."""

    def __init__(self, linear: o3.Linear) -> None:
        super().__init__()
        self.slices = linear.weight_index_slices

    def forward(self, *matrices: Tensor) -> Tensor:
        return torch.cat([matrix.flatten() for matrix in matrices])

    def right_inverse(self, weight: Tensor) -> list[Tensor]:
        return [weight[columns].reshape(shape) for columns, shape in self.slices]


def optimizers(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices, those of o3.Linear too, and AdamW without decay for vectors; call ``step`` of each."""
    for module in [m for m in model.modules() if isinstance(m, o3.Linear)]:
        parametrize.register_parametrization(module, "weight", Matrices(module))
    matrices, vectors = ([p for p in model.parameters() if (p.dim() == 2) == is_2d] for is_2d in (True, False))
    return [
        torch.optim.Muon(matrices, lr, weight_decay, adjust_lr_fn="original"),
        torch.optim.AdamW(vectors, lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    ]


def systems(small: bool) -> list[System]:
    if small:
        hidden, radial, nodes, k = "5x0e+4x1o+3x2e", [8, 6, 6], 12, 5
    else:  # nequix-mp-1
        hidden, radial, nodes, k = "128x0e+64x1o+32x2e+32x3o", [8, 64, 64], 256, 24
    sh = str(o3.Irreps.spherical_harmonics(o3.Irreps(hidden).lmax))

    def inputs(generator: torch.Generator) -> dict:
        graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
        return {
            "x": random_features(hidden, nodes, generator),
            "sh": harmonics,
            "radial": bessel_basis(lengths, radial[0], 4.0),
            "graph": graph,
        }

    arguments = {"irreps_in": hidden, "irreps_sh": sh, "irreps_out": hidden, "radial": radial, "neighbours": k}
    return [
        System(
            title="Nequix, layer",
            source="Koker, Kotak and Smidt 2025, arXiv:2508.16067",
            module=NequixConvolution,
            arguments=arguments,
            inputs=inputs,
            turn={"x": hidden, "sh": sh},
            out=hidden,
        )
    ]
