"""Messages between the particles of a jet, equivariant to boosts too: scalars, four-vectors and symmetric tensors.

As in LorentzNet (Gong et al. 2022, arXiv:2201.08187) attributes of edges are weighted by a network of the invariants of
pairs of momenta; the products are all that the Lorentz group has of these representations (lie_groups.py).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import eqk

from .lie_groups import Layer, turn
from .system import System, random_cloud, random_features


def lorentz_generators() -> dict[str, Tensor]:
    """[6, d, d], rotations about x, y, z and boosts along them, of scalars, vectors (t, x, y, z), traceless tensors."""
    vector = torch.zeros(6, 4, 4, dtype=torch.float64)
    for n, (i, j) in enumerate(((2, 3), (3, 1), (1, 2))):
        vector[n, j, i], vector[n, i, j] = 1, -1
        vector[3 + n, 0, n + 1] = vector[3 + n, n + 1, 0] = 1
    metric = torch.diag(torch.tensor([1.0, -1, -1, -1], dtype=torch.float64))
    tensors = [torch.zeros(4, 4, dtype=torch.float64) for _ in range(9)]
    for tensor, (a, b) in zip(tensors, itertools.combinations(range(4), 2), strict=False):
        tensor[a, b] = tensor[b, a] = 1
    for n, tensor in enumerate(tensors[6:]):  # of no trace in the metric
        tensor[0, 0] = tensor[n + 1, n + 1] = 1
    basis = torch.stack(tensors).flatten(1)
    one = torch.eye(4, dtype=torch.float64)
    both = torch.stack([torch.kron(x, one) + torch.kron(one, x) for x in vector])
    assert (basis @ metric.flatten()).abs().max() == 0
    tensor = torch.linalg.pinv(basis.T) @ both @ basis.T
    return {"scalar": torch.zeros(6, 1, 1, dtype=torch.float64), "vector": vector, "tensor": tensor}


class LorentzLayer(nn.Module):
    """Of particles with momenta [particles, 4] = (E, px, py, pz), whose edges carry the differences of these."""

    def __init__(self, channels: int, neighbours: float) -> None:
        super().__init__()
        first = lorentz_generators()
        self.layer = Layer(first, {name: first[name] for name in ("scalar", "vector")}, channels, neighbours)
        self.invariants = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, momenta: Tensor, graph: eqk.Graph) -> Tensor:
        metric = momenta.new_tensor([1.0, -1.0, -1.0, -1.0])
        source, pair = momenta[graph.src], momenta[graph.src] - momenta[graph.dst]
        invariants = torch.stack([(pair * pair * metric).sum(1), (source * momenta[graph.dst] * metric).sum(1)], 1)
        # What LorentzNet calls psi: momenta, and more so their squares, spread over orders of magnitude.
        weights = self.invariants(invariants.sign() * invariants.abs().log1p())
        return self.layer(x, torch.cat([weights[:, :1], weights[:, 1:] * pair], 1), graph)


def systems(small: bool) -> list[System]:
    channels, particles, k = (3, 10, 4) if small else (32, 256, 16)
    of = lorentz_generators()
    columns = channels * sum(len(g[0]) for g in of.values())

    def inputs(generator: torch.Generator) -> dict:
        momenta, graph = random_cloud(particles, k, generator)
        momenta = torch.cat([(1 + momenta.square().sum(1, keepdim=True)).sqrt(), momenta], 1)
        return {"x": random_features(f"{columns}x0e", particles, generator), "momenta": momenta, "graph": graph}

    of_x = turn(list(of.values()), channels)
    return [
        System(
            title="Lorentz group, layer",
            source="Gong et al. 2022, arXiv:2201.08187; Batatia et al. 2023, arXiv:2306.00091",
            module=LorentzLayer,
            arguments={"channels": channels, "neighbours": k},
            inputs=inputs,
            turn={"x": of_x, "momenta": turn([of["vector"]], 1)},
            out=of_x,
        )
    ]
