import torch
from torch import nn

from models.lorentz import lorentz_generators

from .lie_groups import Layer


class LorentzLayer(nn.Module):
    def __init__(self, channels, neighbours):
        super().__init__()
        generators = lorentz_generators()
        edge = {"scalar": generators["scalar"], "vector": generators["vector"]}
        self.layer = Layer(generators, edge, channels, neighbours)
        self.invariants = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, momenta, graph):
        def minkowski(p, q):
            return p[:, 0] * q[:, 0] - (p[:, 1:] * q[:, 1:]).sum(1)

        p, q = momenta[graph.src], momenta[graph.dst]
        invariants = torch.stack([minkowski(p - q, p - q), minkowski(p, q)], 1)
        weights = self.invariants(torch.sign(invariants) * torch.log(1 + invariants.abs()))
        return self.layer(x, torch.cat([weights[:, :1], weights[:, 1:] * (p - q)], 1), graph)
