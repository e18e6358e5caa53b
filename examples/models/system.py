"""What a file of the gallery says of a system, and clouds of points for its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

import eqk

Turn = str | list[str | None] | Callable[[Tensor, Tensor], Tensor] | None


@dataclass(frozen=True)
class System:
    """A module with arguments that are fixed, and inputs to call it with.

    Attributes:
        title, source: what it is, and whose.
        module: of eqk. That of the same name in on_e3nn/ takes the same arguments and inputs, and loads its weights.
        arguments: of ``module``.
        inputs: makes what it is called with, in order, from a generator: tensors in float64, graphs, numbers.
        turn: irreps of the last dimension of those inputs that turn with the world; others are the same in every
            frame. A list has irreps of as many last dimensions, None where one does not turn; a function of value and
            axis times angle stands for representations of other groups.
        out: of the output as ``turn`` of inputs, or of each output where it is a tuple; None of what does not turn.
        parity: False where the system is equivariant to rotations alone.
        equivariance: bound of the error; more than rounding where a function on a grid has degrees beyond it.
    """

    title: str
    source: str
    module: type[nn.Module]
    arguments: dict[str, Any]
    inputs: Callable[[torch.Generator], dict[str, Any]]
    turn: dict[str, Turn]
    out: Turn | tuple[Turn, ...]
    parity: bool = True
    equivariance: float = 1e-12


def random_features(irreps: str, rows: int, generator: torch.Generator) -> Tensor:
    """[rows, dim], standard normal, in float64."""
    return torch.randn(rows, eqk.Irreps(irreps).dim, generator=generator, dtype=torch.float64)


def random_cloud(nodes: int, neighbours: int, generator: torch.Generator) -> tuple[Tensor, eqk.Graph]:
    """Points [nodes, 3], one a unit of volume on average, each of which gets edges from its nearest ones."""
    points = nodes ** (1 / 3) * torch.rand(nodes, 3, generator=generator, dtype=torch.float64)
    return points, nearest(points, neighbours)


def random_edges(sh: str, nodes: int, neighbours: int, generator: torch.Generator) -> tuple[eqk.Graph, Tensor, Tensor]:
    """The graph of :func:`random_cloud`, with the harmonics [edges, dim] and the lengths [edges] of its edges."""
    points, graph = random_cloud(nodes, neighbours, generator)
    edges = points[graph.dst] - points[graph.src]
    return graph, eqk.spherical_harmonics(sh, edges, normalize=True), edges.norm(dim=1)


def nearest(points: Tensor, neighbours: int) -> eqk.Graph:
    """The graph in which each of ``points`` [nodes, 3] has edges from the ``neighbours`` nearest other ones."""
    places = points.detach().cpu().numpy()
    src = torch.from_numpy(cKDTree(places).query(places, neighbours + 1)[1][:, 1:].reshape(-1))
    dst = torch.arange(len(points)).repeat_interleave(neighbours)
    return eqk.Graph.from_edges(src.to(points.device), dst.to(points.device), len(points))
