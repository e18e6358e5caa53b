"""e3nn's convolution of points (e3nn.nn.models.v2106), with its parameters and state-dict keys.

Node features times attributes of nodes in fully connected products before and after a sum over neighbours of products
with attributes of edges, whose weights are a network of scalars of the edges. The sum is one op: no message of an edge
is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import FullyConnectedNet, depthwise, gaussians
from .system import System, random_edges, random_features


class Convolution(nn.Module):
    """Its arguments are those of e3nn's; a graph stands for the two indices of edges."""

    def __init__(
        self,
        irreps_node_input: str,
        irreps_node_attr: str,
        irreps_edge_attr: str,
        irreps_node_output: str,
        fc_neurons: Sequence[int],
        num_neighbors: float,
    ) -> None:
        super().__init__()
        irreps_in, irreps_edge, irreps_out = map(o3.Irreps, (irreps_node_input, irreps_edge_attr, irreps_node_output))
        middle, paths = depthwise(irreps_in, irreps_edge, {ir for _, ir in irreps_out} | {o3.Irrep("0e")})
        product = o3.FullyConnectedTensorProduct
        self.sc = product(irreps_in, irreps_node_attr, irreps_out)
        self.lin1 = product(irreps_in, irreps_node_attr, irreps_in)
        self.tp = o3.TensorProduct(irreps_in, irreps_edge, middle, paths, shared_weights=False, internal_weights=False)
        self.fc = FullyConnectedNet([*fc_neurons, self.tp.weight_numel])
        self.lin2 = product(middle, irreps_node_attr, irreps_out)
        # Begins as the self-connection alone (Bachlechner et al. 2020, arXiv:2003.04887).
        self.alpha = product(middle, irreps_node_attr, "0e")
        nn.init.zeros_(self.alpha.weight)
        self.scale = num_neighbors**-0.5

    def forward(self, x: Tensor, attributes: Tensor, sh: Tensor, scalars: Tensor, graph: eqk.Graph) -> Tensor:
        summed = self.scale * graph.conv(self.lin1(x, attributes), sh, self.fc(scalars), self.tp)
        # Where the self-connection has no path, nothing is there to begin with.
        mask = self.sc.output_mask
        alpha = 1 - mask + self.alpha(summed, attributes) * mask
        return self.sc(x, attributes) + alpha * self.lin2(summed, attributes)


def systems(small: bool) -> list[System]:
    mul, nodes, k = (4, 12, 5) if small else (32, 256, 24)
    hidden, attributes, sh = f"{mul}x0e+{mul}x1o+{mul}x2e", "4x0e", "0e+1o+2e"

    def inputs(generator: torch.Generator) -> dict:
        graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
        return {
            "x": random_features(hidden, nodes, generator),
            "attributes": random_features(attributes, nodes, generator),
            "sh": harmonics,
            "scalars": gaussians(lengths, 16, 2.0),
            "graph": graph,
        }

    return [
        System(
            title="e3nn's point convolution",
            source="e3nn, nn.models.v2106",
            module=Convolution,
            arguments={
                "irreps_node_input": hidden,
                "irreps_node_attr": attributes,
                "irreps_edge_attr": sh,
                "irreps_node_output": hidden,
                "fc_neurons": [16, 64],
                "num_neighbors": k,
            },
            inputs=inputs,
            turn={"x": hidden, "sh": sh},
            out=hidden,
        )
    ]
