"""Layers whose symmetry is broken by learned weights or by an input, and which are equivariant all the same.

Relaxed weights (Hofgard et al. 2024, arXiv:2407.20471) are irreps that all edges share and that training moves away
from scalars where data are less symmetric than the space. They are an operand of a product, and an input here: turned
with all else, they leave the layer equivariant. A symmetry-breaking set (Xie and Smidt 2024, arXiv:2402.02681) has
objects, one of which is a further input of nodes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import SILU_AND_SIGMOID, FullyConnectedNet, Gate, gaussians
from .point_convolution import Convolution
from .system import System, random_edges, random_features


class RelaxedConvolution(nn.Module):
    """x [nodes, irreps_in], relaxed weights [1, irreps_relaxed], sh [edges, irreps_sh] -> [nodes, irreps_out].

    The relaxed weights times harmonics are what a convolution has harmonics for otherwise: of several channels, so that
    its paths are fully connected ("uvw"), with weights of each edge, a network of ``scalars`` [edges, sizes[0]]. Those
    are the largest tensors by far: the last layer of the network is part of the convolution, which never stores them.
    """

    def __init__(
        self, irreps_in: str, irreps_sh: str, irreps_relaxed: str, irreps_edge: str, irreps_out: str, sizes: list[int]
    ) -> None:
        super().__init__()
        self.edge = o3.FullyConnectedTensorProduct(irreps_relaxed, irreps_sh, irreps_edge)
        self.product = o3.FullyConnectedTensorProduct(irreps_in, irreps_edge, irreps_out, shared_weights=False)
        self.fc = FullyConnectedNet([*sizes, self.product.weight_numel])
        self.self_connection = o3.Linear(irreps_in, irreps_out)

    def forward(self, x: Tensor, relaxed: Tensor, sh: Tensor, scalars: Tensor, graph: eqk.Graph) -> Tensor:
        edge = self.edge(relaxed, sh)
        summed = graph.conv_radial(x, edge, self.fc.hidden(scalars), self.fc.last, self.product)
        return self.self_connection(x) + summed / (len(sh) / len(x)) ** 0.5


class SymmetryBreaking(nn.Module):
    """types [nodes, irreps_types] and an object [1, irreps_object] of the set -> [nodes, irreps_out].

    Two convolutions of points, of which the first has a gate, on the features of nodes with the object beside them:
    e3nn's MessagePassing (e3nn.nn.models.v2106), with its state-dict keys.
    """

    def __init__(
        self,
        irreps_types: str,
        irreps_object: str,
        irreps_hidden: str,
        irreps_sh: str,
        irreps_out: str,
        sizes: list[int],
        num_neighbors: float,
    ) -> None:
        super().__init__()
        hidden, scalar = o3.Irreps(irreps_hidden), o3.Irrep("0e")
        gate = Gate(hidden.filter(keep=scalar), hidden.filter(drop=scalar), *SILU_AND_SIGMOID)

        def convolution(irreps_in: str, irreps_out: o3.Irreps) -> Convolution:
            return Convolution(irreps_in, irreps_types, irreps_sh, irreps_out, sizes, num_neighbors)

        first = convolution(f"{irreps_types}+{irreps_object}", gate.irreps_in.simplify())
        last = convolution(irreps_hidden, irreps_out)
        self.layers = nn.ModuleList([nn.ModuleDict({"first": first, "second": gate}), last])

    def forward(self, types: Tensor, broken: Tensor, sh: Tensor, scalars: Tensor, graph: eqk.Graph) -> Tensor:
        gated, last = self.layers
        x = torch.cat([types, broken.expand(len(types), -1)], 1)
        x = gated["second"](gated["first"](x, types, sh, scalars, graph))
        return last(x, types, sh, scalars, graph)


def systems(small: bool) -> list[System]:
    mul, nodes, k = (2, 12, 5) if small else (16, 128, 16)
    hidden, sh, relaxed = f"{2 * mul}x0e+{mul}x1o+{mul}x2e", "0e+1o+2e", "0e+0o+1o+1e+2e+2o"
    types, broken, edge, sizes = "3x0e", "1o", "2x0e+2x1o+2x1e+2x2e+2x2o", [16, 64]

    def inputs(of_nodes: str, of_all: str) -> Callable[[torch.Generator], dict]:
        def make(generator: torch.Generator) -> dict:
            graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
            return {
                "x": random_features(of_nodes, nodes, generator),
                "breaking": random_features(of_all, 1, generator),
                "sh": harmonics,
                "scalars": gaussians(lengths, 16, 2.0),
                "graph": graph,
            }

        return make

    return [
        System(
            title="Relaxed convolution",
            source="Hofgard et al. 2024, arXiv:2407.20471",
            module=RelaxedConvolution,
            arguments={
                "irreps_in": hidden,
                "irreps_sh": sh,
                "irreps_relaxed": relaxed,
                "irreps_edge": edge,
                "irreps_out": hidden,
                "sizes": sizes,
            },
            inputs=inputs(hidden, relaxed),
            turn={"x": hidden, "breaking": relaxed, "sh": sh},
            out=hidden,
        ),
        System(
            title="Symmetry-breaking set",
            source="Xie and Smidt 2024, arXiv:2402.02681",
            module=SymmetryBreaking,
            arguments={
                "irreps_types": types,
                "irreps_object": broken,
                "irreps_hidden": hidden,
                "irreps_sh": sh,
                "irreps_out": "1o",
                "sizes": sizes,
                "num_neighbors": k,
            },
            inputs=inputs(types, broken),
            turn={"x": types, "breaking": broken, "sh": sh},
            out="1o",
        ),
    ]
