"""A layer of tensor field networks (Thomas et al. 2018, arXiv:1802.08219), and a network of them for shapes.

Sums over neighbours of filters R(r) Y(r/|r|) times features (Eq. 3), a linear map of channels (Section 4.2) and the
nonlinearity of norms (Section 4.3); features are irreps of O(3) here, so that mirror images differ by parity alone. The
convolution is one op, from the features of nodes to those of nodes: no message of an edge is ever stored.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import depthwise, gaussians
from .system import System, random_edges, random_features


class NormNonlinearity(nn.Module):
    """Scalars through SiLU; of any other irrep the norm, with a bias, through a sigmoid, which scales it."""

    def __init__(self, irreps: str | o3.Irreps) -> None:
        super().__init__()
        self.irreps = o3.Irreps(irreps)
        self.bias = nn.Parameter(torch.zeros(self.irreps.num_irreps))

    def forward(self, x: Tensor) -> Tensor:
        parts, channel = [], 0
        for columns, (mul, ir) in zip(self.irreps.slices(), self.irreps, strict=True):
            part, bias = x[:, columns].unflatten(1, (mul, ir.dim)), self.bias[channel : channel + mul, None]
            channel += mul
            if ir == (0, 1):
                parts.append(nn.functional.silu(part + bias).flatten(1))
            else:
                # The norm of what is zero has a gradient too.
                norm = (part.square().sum(-1, keepdim=True) + 1e-12).sqrt()
                parts.append((part * torch.sigmoid(norm + bias)).flatten(1))
        return torch.cat(parts, 1)


class Layer(nn.Module):
    """x [nodes, irreps_in] -> [nodes, irreps_out]; sh: harmonics of the edges, radial: functions of their lengths."""

    def __init__(self, irreps_in: str, irreps_sh: str, irreps_out: str, radial: int, neighbours: float) -> None:
        super().__init__()
        irreps_in, irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        middle, paths = depthwise(irreps_in, o3.Irreps(irreps_sh), {ir for _, ir in irreps_out})
        self.product = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False)
        self.radial = nn.Sequential(
            nn.Linear(radial, radial), nn.ReLU(), nn.Linear(radial, self.product.weight_numel, bias=False)
        )
        self.self_interaction = o3.Linear(irreps_in, irreps_out)
        self.channels = o3.Linear(middle, irreps_out)
        self.nonlinearity = NormNonlinearity(irreps_out)
        self.scale = neighbours**-0.5

    def forward(self, x: Tensor, sh: Tensor, radial: Tensor, graph: eqk.Graph) -> Tensor:
        summed = self.scale * graph.conv(x, sh, self.radial(radial), self.product)
        return self.nonlinearity(self.channels(summed) + self.self_interaction(x))


class TensorFieldNetwork(nn.Module):
    """Points [nodes, 3] -> [nodes, irreps_out], by layers, and a linear map at the end."""

    def __init__(self, hidden: str, lmax: int, layers: int, irreps_out: str, neighbours: float, cutoff: float) -> None:
        super().__init__()
        irreps_sh = o3.Irreps.spherical_harmonics(lmax)
        self.cutoff, self.radial = cutoff, 16
        self.harmonics = o3.SphericalHarmonics(irreps_sh, normalize=True, normalization="component")
        irreps = ["1x0e", *[hidden] * layers]
        self.layers = nn.ModuleList(
            Layer(a, irreps_sh, b, self.radial, neighbours) for a, b in itertools.pairwise(irreps)
        )
        self.readout = o3.Linear(hidden, irreps_out)

    def forward(self, points: Tensor, graph: eqk.Graph) -> Tensor:
        edges = points[graph.dst] - points[graph.src]
        sh, radial = self.harmonics(edges), gaussians(edges.norm(dim=1), self.radial, self.cutoff)
        x = points.new_ones(len(points), 1)
        for layer in self.layers:
            x = layer(x, sh, radial, graph)
        return self.readout(x)


def systems(small: bool) -> list[System]:
    mul, nodes, k = (4, 12, 5) if small else (64, 256, 24)
    hidden = f"{mul}x0e+{mul}x0o+{mul}x1e+{mul}x1o+{mul}x2e+{mul}x2o"
    sh = "0e+1o+2e"

    def inputs(generator: torch.Generator) -> dict:
        graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
        return {
            "x": random_features(hidden, nodes, generator),
            "sh": harmonics,
            "radial": gaussians(lengths, 16, 2.0),
            "graph": graph,
        }

    return [
        System(
            title="Tensor field network, layer",
            source="Thomas et al. 2018, arXiv:1802.08219",
            module=Layer,
            arguments={"irreps_in": hidden, "irreps_sh": sh, "irreps_out": hidden, "radial": 16, "neighbours": k},
            inputs=inputs,
            turn={"x": hidden, "sh": sh},
            out=hidden,
        )
    ]
