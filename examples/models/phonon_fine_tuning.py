"""A step of phonon fine-tuning (PFT: Koker et al. 2026, arXiv:2601.07742): products of a Hessian with vectors.

H v is the gradient of <gradient of the energy, v>, so that a loss on it takes third derivatives of everything in the
model, here of NequIP's layers. eqk's ops have every order: any other layers of this folder would do as well.
examples/phonon_finetune.py trains so on real Hessians.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import bessel_basis
from .nequip import ConvNetLayer
from .system import System, random_cloud


class Potential(nn.Module):
    """Positions [atoms, 3] -> energy, by two layers of features ``hidden``, irreps of which the first are scalars."""

    def __init__(self, hidden: str, species: int, neighbours: float, cutoff: float) -> None:
        super().__init__()
        scalars = f"{o3.Irreps(hidden)[0].mul}x0e"
        sh = o3.Irreps.spherical_harmonics(o3.Irreps(hidden).lmax)
        self.species, self.cutoff = species, cutoff
        self.harmonics = o3.SphericalHarmonics(sh, normalize=True, normalization="component")
        self.embedding = o3.Linear(f"{species}x0e", scalars)
        self.layers = nn.ModuleList(
            ConvNetLayer(irreps, sh, hidden, species, [8, 32], neighbours) for irreps in (scalars, hidden)
        )
        self.readout = o3.Linear(hidden, "1x0e")

    def forward(self, positions: Tensor, species: Tensor, graph: eqk.Graph) -> Tensor:
        edges = positions[graph.dst] - positions[graph.src]
        sh, radial = self.harmonics(edges), bessel_basis(edges.norm(dim=1), 8, self.cutoff)
        x = self.embedding(nn.functional.one_hot(species, self.species).to(positions.dtype))
        for layer in self.layers:
            x = layer(x, species, sh, radial, graph)
        return self.readout(x).sum()


class HessianProduct(Potential):
    """The energy's Hessian times a direction [atoms, 3], as a function that losses differentiate."""

    def forward(self, positions: Tensor, direction: Tensor, species: Tensor, graph: eqk.Graph) -> Tensor:
        with torch.enable_grad():
            positions = positions if positions.requires_grad else positions.detach().requires_grad_()
            energy = super().forward(positions, species, graph)
            (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
            (product,) = torch.autograd.grad(gradient, positions, direction, create_graph=True)
        return product


def systems(small: bool) -> list[System]:
    hidden, nodes, k = ("4x0e+3x1o+2x2e", 10, 4) if small else ("32x0e+16x1o+8x2e", 64, 16)

    def inputs(generator: torch.Generator) -> dict:
        positions, graph = random_cloud(nodes, k, generator)
        direction = torch.randn(positions.shape, generator=generator, dtype=positions.dtype)
        species = torch.randint(4, (nodes,), generator=generator)
        return {"positions": positions, "direction": direction, "species": species, "graph": graph}

    return [
        System(
            title="Phonon fine-tuning, products with a Hessian",
            source="Koker et al. 2026, arXiv:2601.07742",
            module=HessianProduct,
            arguments={"hidden": hidden, "species": 4, "neighbours": k, "cutoff": 4.0},
            inputs=inputs,
            turn={"positions": "1x1o", "direction": "1x1o"},
            out="1x1o",
        )
    ]
