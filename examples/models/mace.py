"""A layer of MACE (Batatia et al. 2022, arXiv:2206.07697), as of mace-torch 0.3.16, with two product bases.

The interaction: a linear map, the convolution with the harmonics of the edges, whose weights are a network of their
lengths, one op, and a linear map to features of as many channels in each degree. The product basis: of the features of
a node, channel by channel, all products of up to three of them that turn as the output does, with weights of its
species (Eq. 10 and 11), one op; or, in their place, powers of the function on the sphere whose coefficients the
features are (Xie et al. 2025, arXiv:2506.13523). Then a linear map, and a skip connection with weights of the species.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import FullyConnectedNet, bessel_basis, depthwise
from .system import System, random_edges, random_features

PRODUCTS = {"Clebsch-Gordan": o3.SymmetricContraction, "Gaunt": eqk.nn.GauntSymmetricContraction}


class Layer(nn.Module):
    """x [nodes, irreps_in] -> [nodes, irreps_out], each irrep of ``channels``.

    Args:
        irreps_in, irreps_sh, irreps_out: of x, of the harmonics, and of the result.
        channels: of the features that are multiplied, whose irreps are those of the harmonics.
        species: their number.
        radial: sizes of the radial network, but for the last.
        neighbours: of a node on average.
        product: of PRODUCTS.
    """

    def __init__(
        self,
        irreps_in: str,
        irreps_sh: str,
        irreps_out: str,
        channels: int,
        species: int,
        radial: list[int],
        neighbours: float,
        product: str,
    ) -> None:
        super().__init__()
        irreps_in, irreps_sh, irreps_out = map(o3.Irreps, (irreps_in, irreps_sh, irreps_out))
        features = o3.Irreps([(channels, ir) for _, ir in irreps_sh])
        middle, paths = depthwise(irreps_in, irreps_sh, {ir for _, ir in features})
        paths.sort(key=lambda path: path[2])  # the order of its weights
        self.linear_up = o3.Linear(irreps_in, irreps_in)
        self.conv_tp = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False)
        self.conv_tp_weights = FullyConnectedNet([*radial, self.conv_tp.weight_numel])
        self.linear = o3.Linear(middle.simplify(), features, layout_out="ir_mul")
        self.skip_tp = o3.FullyConnectedTensorProduct(irreps_in, f"{species}x0e", irreps_out)
        self.symmetric_contractions = PRODUCTS[product](features, irreps_out, 3, num_elements=species)
        self.linear_out = o3.Linear(irreps_out, irreps_out)
        self.channels, self.species, self.neighbours = channels, species, neighbours

    def forward(self, x: Tensor, species: Tensor, sh: Tensor, radial: Tensor, graph: eqk.Graph) -> Tensor:
        one_hot = nn.functional.one_hot(species, self.species).to(x.dtype)
        hidden, last = self.conv_tp_weights.hidden(radial), self.conv_tp_weights.last
        message = graph.conv_radial(self.linear_up(x), sh, hidden, last, self.conv_tp)
        features = self.linear(message / self.neighbours).unflatten(1, (-1, self.channels)).mT
        return self.linear_out(self.symmetric_contractions(features, one_hot)) + self.skip_tp(x, one_hot)


def systems(small: bool) -> list[System]:
    if small:
        channels, sh, species, width, nodes, k = 3, "0e+1o+2e", 3, 8, 12, 5
    else:  # as in MACE-OFF23, medium
        channels, sh, species, width, nodes, k = 128, "0e+1o+2e+3o", 10, 64, 128, 24
    hidden = f"{channels}x0e+{channels}x1o"

    def inputs(generator: torch.Generator) -> dict:
        graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
        return {
            "x": random_features(hidden, nodes, generator),
            "species": torch.randint(species, (nodes,), generator=generator),
            "sh": harmonics,
            "radial": bessel_basis(lengths, 8, 4.0),
            "graph": graph,
        }

    arguments = {
        "irreps_in": hidden,
        "irreps_sh": sh,
        "irreps_out": hidden,
        "channels": channels,
        "species": species,
        "radial": [8, width, width, width],
        "neighbours": k,
    }
    sources = {"Clebsch-Gordan": "Batatia et al. 2022, arXiv:2206.07697", "Gaunt": "Xie et al. 2025, arXiv:2506.13523"}
    return [
        System(
            title=f"MACE, layer, {product} product basis",
            source=source,
            module=Layer,
            arguments={**arguments, "product": product},
            inputs=inputs,
            turn={"x": hidden, "sh": sh},
            out=hidden,
        )
        for product, source in sources.items()
    ]
