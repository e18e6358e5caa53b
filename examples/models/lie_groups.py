"""Products of representations of other groups, made of their generators alone: Lorentz's and SU(2).

All bilinear maps that commute with generators are the null space of linear equations (Batatia et al. 2023,
arXiv:2306.00091); eqk.Plan.from_couplings takes them as tables, so that products, convolutions and their derivatives of
any order run on the kernels of tensor products. The Lorentz layer passes messages between particles of a jet, weighted
by invariants of pairs (LorentzNet: Gong et al. 2022, arXiv:2201.08187), in scalars, four-vectors and traceless symmetric
tensors. The SU(2) layer couples spins, half-integer ones too; a complex number is a pair of real ones.
"""

from __future__ import annotations

import functools
import itertools

import scipy.linalg
import torch
from torch import Tensor, nn

import eqk

from .system import System


def bilinear_maps(first: Tensor, second: Tensor, out: Tensor) -> Tensor:
    """[maps, d1, d2, d3]: a basis of C with C(X x, y) + C(x, Y y) = Z C(x, y) for generators X, Y, Z [generators, d, d]."""
    one = [torch.eye(g.shape[-1], dtype=g.dtype) for g in (first, second, out)]
    equations = torch.einsum("gap,bq,kr->gpqrabk", first, one[1], one[2])
    equations = equations + torch.einsum("ap,gbq,kr->gpqrabk", one[0], second, one[2])
    equations = equations - torch.einsum("ap,bq,grk->gpqrabk", one[0], one[1], out)
    basis = scipy.linalg.null_space(equations.reshape(-1, first.shape[-1] * second.shape[-1] * out.shape[-1]).numpy())
    # In coordinates of their own the maps have few coefficients, as symbols of Clebsch and Gordan do.
    _, _, pivots = scipy.linalg.qr(basis.T, pivoting=True)
    sparse = torch.from_numpy(scipy.linalg.solve(basis[pivots[: basis.shape[1]]].T, basis.T))
    sparse[sparse.abs() < 1e-9] = 0
    return sparse.reshape(-1, *(g.shape[-1] for g in (first, second, out)))


def lorentz_generators() -> dict[str, Tensor]:
    """[6, d, d], rotations about x, y, z and boosts along them: scalars, vectors (t, x, y, z), traceless tensors."""
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


def spin_generators(twice: int) -> Tensor:
    """[3, d, d], -i J of spin twice / 2 about x, y, z, on real and imaginary parts: d = 2 (twice + 1)."""
    j = twice / 2
    m = torch.arange(j, -j - 1, -1, dtype=torch.float64)
    up = torch.diag((j * (j + 1) - m[1:] * (m[1:] + 1)).sqrt(), 1).to(torch.complex128)
    x, y, z = (up + up.mH) / 2, (up - up.mH) / 2j, torch.diag(m).to(torch.complex128)
    generators = -1j * torch.stack([x, y, z])
    real, imaginary = generators.real, generators.imag
    return torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """[rows, dim * channels] by [channels, outputs] for each component."""
    return (x.unflatten(1, (-1, len(weight))) @ weight).flatten(1) / len(weight) ** 0.5


class Products(nn.Module):
    """All maps of a representation of x and one of y into one of the result, each with weights of channels after it."""

    def __init__(self, in1: dict[str, Tensor], in2: dict[str, Tensor], out: dict[str, Tensor], channels: int) -> None:
        super().__init__()
        maps = [
            (a, b, o, table)
            for (a, x), (b, y), (o, z) in itertools.product(*map(enumerate, (in1.values(), in2.values(), out.values())))
            for table in bilinear_maps(x, y, z)
        ]
        self.sizes = [channels * table.shape[-1] for *_, table in maps]
        self.plan = eqk.Plan.from_couplings(
            [(channels, g.shape[-1]) for g in in1.values()],
            [(1, g.shape[-1]) for g in in2.values()],
            [(channels, table.shape[-1]) for *_, table in maps],
            [(a, b, n, "uvu", table) for n, (a, b, _, table) in enumerate(maps)],
        )
        self.ends = [o for _, _, o, _ in maps]
        self.weights = nn.ParameterList(torch.randn(channels, channels) for _ in maps)

    def forward(self, products: Tensor) -> Tensor:
        """Those of the plan -> for each representation of the result the sum of its own, mixed."""
        sums: dict[int, Tensor] = {}
        for end, part, weight in zip(self.ends, products.split(self.sizes, 1), self.weights, strict=True):
            sums[end] = sums.get(end, 0) + mixed(part, weight)
        return torch.cat([sums[end] for end in sorted(sums)], 1)
