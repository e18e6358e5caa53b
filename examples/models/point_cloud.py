"""SEGNN on clouds of thousands of points, in memory that the number of edges does not enter.

Steerable messages (Brandstetter et al. 2021, arXiv:2110.02905) are a nonlinear function of both ends of an edge, which
no convolution sums: products with the harmonics of the edge, gated, twice. As Balla et al. (2024, arXiv:2410.20516) use
it, points are galaxies. Ranges of nodes are taken one after the other, each with all edges that lead there, and made
again in the backward pass: of an edge nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import eqk
from eqk import o3

from .layers import SILU_AND_SIGMOID, Gate
from .system import System, random_cloud, random_features


class Product(nn.Module):
    """x [rows, irreps_in], attributes [rows, attr] -> [rows, irreps_out]: a fully connected product, biases, a gate."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, attr: o3.Irreps, gated: bool = False) -> None:
        super().__init__()
        self.gate = Gate(irreps_out[:1], irreps_out[1:], *SILU_AND_SIGMOID) if gated else nn.Identity()
        irreps_out = self.gate.irreps_in.simplify() if gated else irreps_out
        # SEGNN divides e3nn's product by the scale that weights begin with, 1 / sqrt(terms of a sum).
        self.tp = o3.FullyConnectedTensorProduct(irreps_in, attr, irreps_out, path_normalization="none")
        terms = [0] * len(irreps_out)
        for ins in self.tp.instructions:
            terms[ins.i_out] += ins.path_shape[0] * ins.path_shape[1]
        for _, ins, weight in self.tp.weight_views(yield_instruction=True):
            nn.init.uniform_(weight, *(sign * terms[ins.i_out] ** -0.5 for sign in (-1, 1)))
        scalars = irreps_out[0].mul if irreps_out[0].ir == (0, 1) else 0
        self.biases = nn.Parameter((2 * torch.rand(scalars) - 1) * terms[0] ** -0.5)

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        y = self.tp(x, attributes)
        return self.gate(y + nn.functional.pad(self.biases, (0, y.shape[1] - len(self.biases))))


def by_nodes(f: Callable[..., Tensor], size: int, graph: eqk.Graph, *operands: Tensor) -> Tensor:
    """Rows of all nodes, from f(range of ``size`` nodes, src, dst, *operands), made again in the backward pass."""
    ends = [0, *torch.bincount(graph.dst, minlength=graph.num_dst).cumsum(0).tolist()]

    def part(first: int, *operands: Tensor) -> Tensor:
        last = min(first + size, graph.num_dst)
        edges = graph.by_dst[ends[first] : ends[last]]
        return f(slice(first, last), graph.src[edges], graph.dst[edges], *operands)

    return torch.cat([checkpoint(part, n, *operands, use_reentrant=False) for n in range(0, graph.num_dst, size)])


def sums(t: Tensor, dst: Tensor, nodes: slice) -> Tensor:
    return t.new_zeros(nodes.stop - nodes.start, t.shape[1]).index_add(0, dst - nodes.start, t)


class Layer(nn.Module):
    """x [all nodes, hidden], attributes [all nodes, irreps_attr] -> [nodes, hidden]."""

    def __init__(self, hidden: o3.Irreps, irreps_attr: o3.Irreps) -> None:
        super().__init__()
        self.harmonics = o3.SphericalHarmonics(irreps_attr, normalize=True, normalization="component")
        self.message_layer_1 = Product(2 * hidden + o3.Irreps("1x0e"), hidden, irreps_attr, gated=True)
        self.message_layer_2 = Product(hidden, hidden, irreps_attr, gated=True)
        self.update_layer_1 = Product(2 * hidden, hidden, irreps_attr, gated=True)
        self.update_layer_2 = Product(hidden, hidden, irreps_attr)

    def forward(self, nodes: slice, src: Tensor, dst: Tensor, points: Tensor, *of_nodes: Tensor) -> Tensor:
        x, attributes = of_nodes
        vectors = points[dst] - points[src]
        sh, length = self.harmonics(vectors), vectors.norm(dim=1, keepdim=True)
        ends = x.index_select(0, dst), x.index_select(0, src)
        messages = self.message_layer_2(self.message_layer_1(torch.cat([*ends, length], 1), sh), sh)
        x, attributes = x[nodes], attributes[nodes]
        update = self.update_layer_1(torch.cat([x, sums(messages, dst, nodes)], 1), attributes)
        return x + self.update_layer_2(update, attributes)


class SEGNN(nn.Module):
    """Features [nodes, irreps_in] of points [nodes, 3] -> [nodes, irreps_out], ``size`` of them at a time."""

    def __init__(self, irreps_in: str, hidden: str, irreps_out: str, lmax: int, layers: int, size: int) -> None:
        super().__init__()
        irreps_in, hidden, irreps_out = map(o3.Irreps, (irreps_in, hidden, irreps_out))
        attributes, self.size = o3.Irreps.spherical_harmonics(lmax), size
        self.harmonics = o3.SphericalHarmonics(attributes, normalize=True, normalization="component")
        self.embedding_layer = Product(irreps_in, hidden, attributes)
        self.layers = nn.ModuleList(Layer(hidden, attributes) for _ in range(layers))
        self.pre_pool1 = Product(hidden, hidden, attributes, gated=True)
        self.pre_pool2 = Product(hidden, irreps_out, attributes)

    def attributes(self, nodes: slice, src: Tensor, dst: Tensor, points: Tensor) -> Tensor:
        """The mean of the harmonics of a node's edges, whose first one is 1."""
        summed = sums(self.harmonics(points[dst] - points[src]), dst, nodes)
        return summed / summed[:, :1]

    def forward(self, x: Tensor, points: Tensor, graph: eqk.Graph) -> Tensor:
        attributes = by_nodes(self.attributes, self.size, graph, points)
        x = self.embedding_layer(x, attributes)
        for layer in self.layers:
            x = by_nodes(layer, self.size, graph, points, x, attributes)
        return self.pre_pool2(self.pre_pool1(x, attributes), attributes)


def systems(small: bool) -> list[System]:
    irreps_in, irreps_out = "1x0e+1x1o", "1x1o"
    hidden, count, k, layers, size = ("4x0e+3x1o", 12, 5, 2, 5) if small else ("16x0e+8x1o", 5000, 6, 1, 1000)
    irreps = {"irreps_in": irreps_in, "hidden": hidden, "irreps_out": irreps_out}

    def inputs(generator: torch.Generator) -> dict:
        points, graph = random_cloud(count, k, generator)
        return {"x": random_features(irreps_in, count, generator), "points": points, "graph": graph}

    return [
        System(
            title="SEGNN on a cloud of points, recomputed",
            source="Brandstetter et al. 2021, arXiv:2110.02905",
            module=SEGNN,
            arguments={**irreps, "lmax": 1, "layers": layers, "size": size},
            inputs=inputs,
            turn={"x": irreps_in, "points": "1o"},
            out=irreps_out,
        )
    ]
