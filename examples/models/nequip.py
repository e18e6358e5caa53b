"""A layer of NequIP (Batzner et al. 2022, Nat. Commun. 13, 2453, Fig. 1), as of nequip 0.19.

A linear map, the convolution with the harmonics of the edges, whose weights are a network of their lengths, a linear
map, and the self-connection with weights of the species; then a gate. Gather, product, the last layer of that network
and the sum are one op: neither messages nor weights of all edges are ever stored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import FullyConnectedNet, Gate, bessel_basis, depthwise, normalized
from .system import System, random_edges, random_features

silu = nn.functional.silu


class ConvNetLayer(nn.Module):
    """x [nodes, irreps_in] -> [nodes, hidden].

    Args:
        irreps_in, irreps_sh: of x, and of the harmonics.
        hidden: scalars, then irreps of higher degree; a path leads to each.
        species: their number.
        radial: sizes of the radial network, but for the last.
        neighbours: of a node on average.
    """

    def __init__(
        self, irreps_in: str, irreps_sh: str, hidden: str, species: int, radial: list[int], neighbours: float
    ) -> None:
        super().__init__()
        irreps_in, hidden = o3.Irreps(irreps_in), o3.Irreps(hidden)
        self.gate = Gate(hidden[:1], hidden[1:], normalized(silu), normalized(silu))
        irreps = self.gate.irreps_in.simplify()
        middle, paths = depthwise(irreps_in, o3.Irreps(irreps_sh), {ir for _, ir in irreps})
        self.linear_1 = o3.Linear(irreps_in, irreps_in)
        self.tp = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False)
        self.edge_mlp = FullyConnectedNet([*radial, self.tp.weight_numel], silu, gain=2**0.5)
        self.linear_2 = o3.Linear(middle.simplify(), irreps)
        self.sc = o3.FullyConnectedTensorProduct(irreps_in, f"{species}x0e", irreps)
        self.species, self.scale = species, neighbours**-0.5

    def forward(self, x: Tensor, species: Tensor, sh: Tensor, radial: Tensor, graph: eqk.Graph) -> Tensor:
        own = self.sc(x, nn.functional.one_hot(species, self.species).to(x.dtype))
        x = self.scale * self.linear_1(x)
        x = graph.conv_radial(x, sh, self.edge_mlp.hidden(radial), self.edge_mlp.last, self.tp)
        return self.gate(self.linear_2(x) + own)


def systems(small: bool) -> list[System]:
    if small:
        hidden, width, nodes, k = "4x0e+3x1o+2x2e", 8, 12, 5
    else:  # nequip's preset L
        hidden, width, nodes, k = "128x0e+64x1o+32x2e+32x3o", 128, 256, 24
    sh = str(o3.Irreps.spherical_harmonics(o3.Irreps(hidden).lmax))

    def inputs(generator: torch.Generator) -> dict:
        graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
        return {
            "x": random_features(hidden, nodes, generator),
            "species": torch.randint(4, (nodes,), generator=generator),
            "sh": harmonics,
            "radial": bessel_basis(lengths, 8, 4.0),
            "graph": graph,
        }

    return [
        System(
            title="NequIP, layer",
            source="Batzner et al. 2022, Nat. Commun. 13, 2453",
            module=ConvNetLayer,
            arguments={
                "irreps_in": hidden,
                "irreps_sh": sh,
                "hidden": hidden,
                "species": 4,
                "radial": [8, width],
                "neighbours": k,
            },
            inputs=inputs,
            turn={"x": hidden, "sh": sh},
            out=hidden,
        )
    ]
