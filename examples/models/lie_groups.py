"""Convolutions of representations of any Lie group, made of their generators alone; here of SU(2), with half spins.

All bilinear maps that commute with generators are the null space of linear equations (Batatia et al. 2023,
arXiv:2306.00091). eqk.Plan.from_couplings takes them as tables, so that convolutions and their derivatives of any order
run on the kernels of tensor products. lorentz.py is another group. A complex number is a pair of real ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import scipy.linalg
import torch
from torch import Tensor, nn

import eqk

from .system import System, random_edges, random_features


def bilinear_maps(first: Tensor, second: Tensor, out: Tensor) -> Tensor:
    """[maps, d1, d2, d3]: a basis of C with C(X x, y) + C(x, Y y) = Z C(x, y); generators X, Y, Z: [number, d, d]."""
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


def spin_generators(twice: int) -> Tensor:
    """[3, d, d], -i J of spin twice / 2 about x, y, z, on real parts and then imaginary ones: d = 2 (twice + 1)."""
    j = twice / 2
    m = torch.arange(j, -j - 1, -1, dtype=torch.float64)
    up = torch.diag((j * (j + 1) - m[1:] * (m[1:] + 1)).sqrt(), 1).to(torch.complex128)
    generators = -1j * torch.stack([(up + up.mH) / 2, (up - up.mH) / 2j, torch.diag(m).to(torch.complex128)])
    real, imaginary = generators.real, generators.imag
    return torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """[rows, dim * channels] -> [rows, dim * outputs] by [channels, outputs], the same for each component."""
    return (x.unflatten(1, (-1, len(weight))) @ weight).flatten(1) / len(weight) ** 0.5


class Layer(nn.Module):
    """Sums over neighbours of all products of x with attributes of edges; channels mixed; gates of the scalars.

    ``first`` and ``edge`` are generators by name, ``first``, of x and of results, with scalars before others.
    x [nodes, dims of first * channels], each representation [component, channel]; edge attributes of one channel.
    """

    def __init__(self, first: dict[str, Tensor], edge: dict[str, Tensor], channels: int, neighbours: float) -> None:
        super().__init__()
        self.dims, self.channels, self.scale = [len(g[0]) for g in first.values()], channels, neighbours**-0.5
        in1, in2 = list(first.values()), list(edge.values())
        self.maps = [
            (i, j, o, table)
            for i, j, o in itertools.product(range(len(in1)), range(len(in2)), range(len(in1)))
            for table in bilinear_maps(in1[i], in2[j], in1[o])
        ]
        self.plan = eqk.Plan.from_couplings(
            [(channels, dim) for dim in self.dims],
            [(1, len(g[0])) for g in in2],
            [(channels, self.dims[o]) for _, _, o, _ in self.maps],
            [(i, j, n, "uvu", table) for n, (i, j, _, table) in enumerate(self.maps)],
        )
        self.weights = nn.Parameter(torch.randn(len(self.maps), channels, channels))
        self.gates = nn.Parameter(torch.randn(len(in1), channels, channels))

    def forward(self, x: Tensor, edge: Tensor, graph: eqk.Graph) -> Tensor:
        products = self.scale * graph.conv(x, edge, None, self.plan)
        parts = products.split([self.channels * self.dims[o] for _, _, o, _ in self.maps], 1)
        sums = [0.0] * len(self.dims)
        for (_, _, o, _), part, weight in zip(self.maps, parts, self.weights, strict=True):
            sums[o] = sums[o] + mixed(part, weight)
        gates = [torch.sigmoid(mixed(sums[0], gate)) for gate in self.gates]
        return torch.cat([t * g.repeat(1, d) for t, g, d in zip(sums, gates, self.dims, strict=True)], 1)


def turn(generators: list[Tensor], channels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """How columns [component, channel] of representations turn by ``axis_angle``, and by a boost of a third of it."""

    def turned(x: Tensor, axis_angle: Tensor) -> Tensor:
        parts = []
        for g, part in zip(generators, x.split([channels * len(g[0]) for g in generators], 1), strict=True):
            along = torch.cat([axis_angle, axis_angle / 3])[: len(g)]
            matrix = torch.from_numpy(scipy.linalg.expm(torch.einsum("g,gab->ab", along, g).numpy()))
            parts.append(torch.einsum("ab,nbu->nau", matrix, part.unflatten(1, (-1, channels))).flatten(1))
        return torch.cat(parts, 1)

    return turned


def systems(small: bool) -> list[System]:
    channels, nodes, k = (3, 10, 4) if small else (32, 256, 16)
    one = torch.eye(3, dtype=torch.float64)
    scalar, vector = torch.zeros(3, 1, 1, dtype=torch.float64), torch.linalg.cross(one[:, None], one[None]).mT
    spins = {"0": scalar, "1/2": spin_generators(1), "1": vector, "3/2": spin_generators(3)}
    columns = channels * sum(len(g[0]) for g in spins.values())

    def inputs(generator: torch.Generator) -> dict:
        graph, edge, _ = random_edges("0e+1e", nodes, k, generator)
        return {"x": random_features(f"{columns}x0e", nodes, generator), "edge": edge, "graph": graph}

    of_x, of_edge = turn(list(spins.values()), channels), turn([scalar, vector], 1)
    return [
        System(
            title="SU(2) with half-integer spins, layer",
            source="Batatia et al. 2023, arXiv:2306.00091",
            module=Layer,
            arguments={"first": spins, "edge": {"0": scalar, "1": vector}, "channels": channels, "neighbours": k},
            inputs=inputs,
            turn={"x": of_x, "edge": of_edge},
            out=of_x,
        )
    ]
