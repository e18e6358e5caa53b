"""Allegro (Musaelian et al. 2023, Nat. Commun. 14, 579), two-body embedding and layers, as of nequip-allegro 0.8.3.

Features belong to edges: a layer multiplies those of an edge with the sum of weighted harmonics of all edges to the
same node, channel by channel and with a weight for each path, and gives the scalars that result to the network that
makes the edge's next scalars and the weights of the next sum. No network has a bias: all is zero at the cutoff, as the
Bessel functions are. Neither the terms of that sum nor their weights, nor outer products of edges, are ever stored. A
channel is the fastest index of features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import FullyConnectedNet, bessel_basis, depthwise
from .system import System, random_edges

LAYOUTS = ("layout_in1", "layout_in2", "layout_out")


class Contracter(nn.Module):
    """Products of features of each edge with those of its node, both of ``channels``, with weights [channels, paths].

    Irreps are those of one channel, of parity (-1)^l: degrees of a path have an even sum, and its symbol is the same
    whichever operand comes first. x [edges, dim_in * channels], of_nodes [nodes, dim_sh * channels].
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_sh: o3.Irreps, irreps_out: o3.Irreps, channels: int) -> None:
        super().__init__()
        paths = [
            (j, i, k, "uuu", True)
            for k, (_, out) in enumerate(irreps_out)
            for i, (_, a) in enumerate(irreps_in)
            for j, (_, b) in enumerate(irreps_sh)
            if out in a * b
        ]
        x, sh, out = ([(channels, ir) for _, ir in irreps] for irreps in (irreps_in, irreps_sh, irreps_out))
        self.product = o3.TensorProduct(
            *(sh, x, out, paths), path_normalization="none", internal_weights=False, **dict.fromkeys(LAYOUTS, "ir_mul")
        )
        self.weights = nn.Parameter(torch.empty(channels, len(paths)).uniform_(-(3**0.5), 3**0.5))

    def forward(self, x: Tensor, of_nodes: Tensor, graph: eqk.Graph) -> Tensor:
        each = torch.arange(len(x), device=x.device, dtype=graph.dst.dtype)
        to_edges = eqk.Graph(graph.dst, each, graph.num_dst, len(x), each, graph.by_dst)
        return to_edges.conv(of_nodes, x, self.weights.T.flatten(), self.product)


class Allegro(nn.Module):
    """radial [edges, first of radial] -> scalars of the edges [edges, (layers + 1) * scalars].

    Args:
        irreps_sh: of the harmonics, and of the features between layers.
        radial: sizes of the network of two-body scalars, but for the last.
        scalars, channels: their numbers, of an edge.
        layers: their number.
        width: of the hidden layer of a layer's network.
        neighbours: of a node on average.
    """

    def __init__(
        self, irreps_sh: str, radial: list[int], scalars: int, channels: int, layers: int, width: int, neighbours: float
    ) -> None:
        super().__init__()
        irreps = o3.Irreps(irreps_sh)
        weighted, paths = depthwise(o3.Irreps(f"{channels}x0e"), irreps, {ir for _, ir in irreps})
        operands = (f"{channels}x0e", irreps, weighted, paths)
        self.weigh = o3.TensorProduct(*operands, shared_weights=False, layout_out="ir_mul")
        self.channels, self.scalars, self.scale = channels, scalars, neighbours**-0.5
        weights = self.weigh.weight_numel
        self.two_body = FullyConnectedNet([*radial, scalars], gain=2**0.5)
        self.embedding = FullyConnectedNet([scalars, weights])
        self.projection = FullyConnectedNet([scalars, scalars + weights])
        self.tps, self.latents = nn.ModuleList(), nn.ModuleList()
        for n in range(1, layers + 1):
            self.tps.append(Contracter(irreps, irreps, irreps if n < layers else o3.Irreps("0e"), channels))
            sizes = [n * scalars + channels, width, scalars + (weights if n < layers else 0)]
            self.latents.append(FullyConnectedNet(sizes, gain=2**0.5))

    def weights(self, last: Tensor) -> Tensor:
        """The matrix of weights of harmonics, whose columns are [channels, irreps], in the order of ``weigh``."""
        return last.unflatten(1, (self.channels, -1)).transpose(1, 2).flatten(1)

    def forward(self, radial: Tensor, sh: Tensor, graph: eqk.Graph) -> Tensor:
        ones = radial.new_ones(len(radial), self.channels)
        hidden = self.two_body(radial)
        features = self.weigh(ones, sh, hidden @ self.weights(self.embedding.last))
        latent, scalars = self.projection, []
        for tp, following in zip(self.tps, self.latents, strict=True):
            scalars.append(hidden @ latent.last[:, : self.scalars])
            matrix = self.weights(latent.last[:, self.scalars :])
            of_nodes = self.scale * graph.conv_radial(ones[: graph.num_src], sh, hidden, matrix, self.weigh)
            features = tp(features, of_nodes, graph)
            latent = following
            hidden = latent.hidden(torch.cat([*scalars, features[:, : self.channels]], 1))
        return torch.cat([*scalars, hidden @ latent.last], 1)


def systems(small: bool) -> list[System]:
    scalars, channels, nodes, k = (4, 3, 12, 5) if small else (128, 64, 128, 24)
    sh = "0e+1o+2e"

    def inputs(generator: torch.Generator) -> dict:
        graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
        return {
            "radial": bessel_basis(lengths, 8, 4.0),
            "sh": harmonics,
            "graph": graph,
        }

    return [
        System(
            title="Allegro, two layers",
            source="Musaelian et al. 2023, Nat. Commun. 14, 579",
            module=Allegro,
            arguments={
                "irreps_sh": sh,
                "radial": [8, scalars],
                "scalars": scalars,
                "channels": channels,
                "layers": 2,
                "width": scalars,
                "neighbours": k,
            },
            inputs=inputs,
            turn={"sh": sh},
            out=f"{3 * scalars}x0e",
        )
    ]
