"""The head of PhiSNet (Unke et al. 2021, arXiv:2106.02347): from features of atoms to a symmetric Hamiltonian.

Features of two atoms are mixed by products of channel with channel, whose weights are functions of the distance; a
linear map makes irreps of them, and Clebsch-Gordan coefficients make matrix blocks <l1|H|l2> of these. PhiSNet has
rotations alone, so that all irreps are written as even. Channels come last inside (the layout ir_mul), as its own do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import gaussians
from .system import System, random_features

INNER = {"layout_in1": "ir_mul", "layout_out": "ir_mul"}


class PairMixing(nn.Module):
    """x1, x2 [pairs, irreps] in ir_mul, rbf [pairs, basis] -> [pairs, irreps] in ir_mul: every path of degrees."""

    def __init__(self, irreps: o3.Irreps, basis: int) -> None:
        super().__init__()
        paths = [
            (i, j, k, "uuu", True)
            for i, (_, a) in enumerate(irreps)
            for j, (_, b) in enumerate(irreps)
            for k, (_, c) in enumerate(irreps)
            if c in a * b
        ]
        self.product = o3.TensorProduct(
            irreps, irreps, irreps, paths, shared_weights=False, layout_in2="ir_mul", **INNER
        )
        self.radial = nn.Linear(basis, self.product.weight_numel, bias=False)

    def forward(self, x1: Tensor, x2: Tensor, rbf: Tensor) -> Tensor:
        return self.product(x1, x2, self.radial(rbf))


class MatrixBlocks(nn.Module):
    """x [rows, irreps] in ir_mul -> [rows, orbitals, orbitals]: of each pair of shells one irrep of each degree.

    The product of orbitals with orbitals is an orthogonal map to these irreps, so its transpose makes the blocks.
    """

    def __init__(self, irreps: o3.Irreps, orbitals: str) -> None:
        super().__init__()
        product = o3.FullTensorProduct(orbitals, orbitals)
        self.linear = o3.Linear(irreps, product.irreps_out.simplify(), biases=True, layout_in="ir_mul")
        one = torch.eye(product.irreps_in1.dim)
        self.register_buffer("coefficients", product(one[:, None], one[None]))

    def forward(self, x: Tensor) -> Tensor:
        scalars = self.linear.irreps_in[0].mul
        x = torch.cat([nn.functional.silu(x[:, :scalars]), x[:, scalars:]], 1)
        return torch.einsum("zk,ijk->zij", self.linear(x), self.coefficients)


class Hamiltonian(nn.Module):
    """x [atoms, irreps], rbf [pairs, basis] of all ordered pairs -> [atoms orbitals, atoms orbitals], symmetric."""

    def __init__(self, irreps: str, orbitals: str, basis: int) -> None:
        super().__init__()
        irreps = o3.Irreps(irreps)
        self.centre = o3.Linear(irreps, irreps, biases=True, layout_out="ir_mul")
        self.neighbour = o3.Linear(irreps, irreps, biases=True, layout_out="ir_mul")
        self.mix = PairMixing(irreps, basis)
        paths = [(n, 0, n, "uvu", True) for n in range(len(irreps))]
        self.environment = o3.TensorProduct(irreps, "0e", irreps, paths, shared_weights=False, **INNER)
        self.radial = nn.Linear(basis, self.environment.weight_numel, bias=False)
        self.diagonal = MatrixBlocks(irreps, orbitals)
        self.off_diagonal = MatrixBlocks(irreps, orbitals)

    def forward(self, x: Tensor, rbf: Tensor, graph: eqk.Graph) -> Tensor:
        i, j, atoms = graph.dst, graph.src, torch.arange(len(x), device=x.device)
        centre, neighbour = self.centre(x), self.neighbour(x)
        own = centre + graph.conv(neighbour, rbf.new_ones(len(rbf), 1), self.radial(rbf), self.environment)
        pairs = self.mix(centre[i], centre[j], rbf)
        blocks = torch.cat([self.diagonal(own), self.off_diagonal(pairs)])
        orbitals = blocks.shape[-1]
        matrix = blocks.new_zeros(len(x), len(x), orbitals, orbitals)
        matrix = matrix.index_put((torch.cat([atoms, i]), torch.cat([atoms, j])), blocks)
        matrix = matrix.transpose(1, 2).reshape(len(x) * orbitals, -1)
        return matrix + matrix.mT


def systems(small: bool) -> list[System]:
    channels, order, atoms, orbitals = (4, 2, 5, "2x0e+1e") if small else (128, 4, 12, "3x0e+2x1e+2e")
    irreps = "+".join(f"{channels}x{l}e" for l in range(order + 1))
    of_all = "+".join([orbitals] * atoms)

    def inputs(generator: torch.Generator) -> dict:
        places = 3 * torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
        graph = eqk.Graph.from_edge_index((1 - torch.eye(atoms)).nonzero().mT.contiguous(), atoms)
        lengths = (places[graph.dst] - places[graph.src]).norm(dim=1)
        return {
            "x": random_features(irreps, atoms, generator),
            "rbf": gaussians(lengths, 8 if small else 128, 6.0),
            "graph": graph,
        }

    return [
        System(
            title="PhiSNet, Hamiltonian of pairs",
            source="Unke et al. 2021, arXiv:2106.02347",
            module=Hamiltonian,
            arguments={"irreps": irreps, "orbitals": orbitals, "basis": 8 if small else 128},
            inputs=inputs,
            turn={"x": irreps},
            out=[of_all, of_all],
            parity=False,
        )
    ]
