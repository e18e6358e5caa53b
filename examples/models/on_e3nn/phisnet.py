import math

import torch
from e3nn import o3
from torch import nn

from . import scatter


class PairMixing(nn.Module):
    def __init__(self, irreps, basis):
        super().__init__()
        paths = [
            (i, j, k, "uuu", True)
            for i, (_, a) in enumerate(irreps)
            for j, (_, b) in enumerate(irreps)
            for k, (_, c) in enumerate(irreps)
            if c in a * b
        ]
        self.product = o3.TensorProduct(irreps, irreps, irreps, paths, shared_weights=False)
        self.radial = nn.Linear(basis, self.product.weight_numel, bias=False)

    def forward(self, x1, x2, rbf):
        return self.product(x1, x2, self.radial(rbf))


class MatrixBlocks(nn.Module):
    """Shells by shells, as PhiSNet's ``matrix_block``, with the coefficients sqrt(2 L + 1) C."""

    def __init__(self, irreps, orbitals):
        super().__init__()
        self.orbitals = o3.Irreps(orbitals)
        parts = [
            (i, j, ir)
            for i, (_, a) in enumerate(self.orbitals)
            for j, (_, b) in enumerate(self.orbitals)
            for ir in a * b
        ]
        self.parts = sorted(parts, key=lambda part: part[2].l)
        self.irreps = o3.Irreps([(self.orbitals[i].mul * self.orbitals[j].mul, ir) for i, j, ir in self.parts])
        self.linear = o3.Linear(irreps, self.irreps.simplify(), biases=True)
        for n, (i, j, ir) in enumerate(self.parts):
            cg = o3.wigner_3j(self.orbitals[i].ir.l, self.orbitals[j].ir.l, ir.l) * math.sqrt(ir.dim)
            self.register_buffer(f"cg_{n}", cg)

    def forward(self, x):
        scalars = self.linear.irreps_in[0].mul
        x = self.linear(torch.cat([nn.functional.silu(x[:, :scalars]), x[:, scalars:]], 1))
        blocks = x.new_zeros(len(x), self.orbitals.dim, self.orbitals.dim)
        slices = self.orbitals.slices()
        for n, (columns, (i, j, ir)) in enumerate(zip(self.irreps.slices(), self.parts, strict=True)):
            (mul1, ir1), (mul2, ir2) = self.orbitals[i], self.orbitals[j]
            part = x[:, columns].reshape(-1, mul1, mul2, ir.dim)
            part = torch.einsum("zuvk,ijk->zuivj", part, self.get_buffer(f"cg_{n}"))
            blocks[:, slices[i], slices[j]] += part.reshape(len(x), mul1 * ir1.dim, mul2 * ir2.dim)
        return blocks


class Hamiltonian(nn.Module):
    def __init__(self, irreps, orbitals, basis):
        super().__init__()
        irreps = o3.Irreps(irreps)
        self.centre = o3.Linear(irreps, irreps, biases=True)
        self.neighbour = o3.Linear(irreps, irreps, biases=True)
        self.mix = PairMixing(irreps, basis)
        paths = [(n, 0, n, "uvu", True) for n in range(len(irreps))]
        self.environment = o3.TensorProduct(irreps, "0e", irreps, paths, shared_weights=False)
        self.radial = nn.Linear(basis, self.environment.weight_numel, bias=False)
        self.diagonal = MatrixBlocks(irreps, orbitals)
        self.off_diagonal = MatrixBlocks(irreps, orbitals)

    def forward(self, x, rbf, graph):
        i, j = graph.dst, graph.src
        centre, neighbour = self.centre(x), self.neighbour(x)
        one = rbf.new_ones(len(rbf), 1)
        own = centre + scatter(self.environment(neighbour[j], one, self.radial(rbf)), i, len(x))
        diagonal = self.diagonal(own)
        off_diagonal = self.off_diagonal(self.mix(centre[i], centre[j], rbf))
        pair = {(int(a), int(b)): n for n, (a, b) in enumerate(zip(i, j, strict=True))}
        rows = [
            torch.cat([diagonal[a] if a == b else off_diagonal[pair[a, b]] for b in range(len(x))], 1)
            for a in range(len(x))
        ]
        matrix = torch.cat(rows)
        return matrix + matrix.T
