import math

import torch
from e3nn import o3
from torch import nn

from .nequip import ConvNetLayer


class HessianProduct(nn.Module):
    def __init__(self, hidden, species, neighbours, cutoff):
        super().__init__()
        hidden = o3.Irreps(hidden)
        scalars = o3.Irreps([hidden[0]])
        self.irreps_sh = o3.Irreps.spherical_harmonics(hidden.lmax)
        self.species, self.cutoff = species, cutoff
        self.embedding = o3.Linear(f"{species}x0e", scalars)
        self.layers = nn.ModuleList(
            [
                ConvNetLayer(scalars, self.irreps_sh, hidden, species, [8, 32], neighbours),
                ConvNetLayer(hidden, self.irreps_sh, hidden, species, [8, 32], neighbours),
            ]
        )
        self.readout = o3.Linear(hidden, "1x0e")

    def radial(self, length):
        x = length[:, None] / self.cutoff
        bessel = (2 / self.cutoff) ** 0.5 * torch.sin(math.pi * torch.arange(1, 9).to(x) * x) / length[:, None]
        return bessel * (1 - 28 * x**6 + 48 * x**7 - 21 * x**8)

    def energy(self, positions, species, graph):
        edges = positions[graph.dst] - positions[graph.src]
        sh = o3.spherical_harmonics(self.irreps_sh, edges, normalize=True, normalization="component")
        radial = self.radial(torch.linalg.norm(edges, dim=1))
        x = self.embedding(nn.functional.one_hot(species, self.species).to(positions.dtype))
        for layer in self.layers:
            x = layer(x, species, sh, radial, graph)
        return self.readout(x).sum()

    def forward(self, positions, direction, species, graph):
        gradients = torch.autograd.grad(self.energy(positions, species, graph), positions, create_graph=True)[0]
        return torch.autograd.grad((gradients * direction).sum(), positions, create_graph=True)[0]
