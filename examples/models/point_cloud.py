"""SEGNN on clouds of thousands of points, in memory that the number of edges does not enter.

Steerable messages (Brandstetter et al. 2021, arXiv:2110.02905, Eqs. 4 to 6) are a nonlinear function of both ends of an
edge, so that no convolution sums them: products with the harmonics of the edge, gated, twice. As Balla et al. (2024,
arXiv:2410.20516) use it, for points that are galaxies. Ranges of nodes are taken one after the other, each with all
edges that lead there, and made again in the backward pass: of an edge nothing is kept.
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
    """x [rows, irreps_in], attributes [rows, irreps_attr] -> [rows, irreps_out]: fully connected, biases, a gate.

    Each attribute has one channel, so that channels are mixed first, by ``tp``, and coupled then.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, attr: o3.Irreps, gated: bool = False) -> None:
        super().__init__()
        self.gate = Gate(irreps_out[:1], irreps_out[1:], *SILU_AND_SIGMOID) if gated else nn.Identity()
        irreps_out = self.gate.irreps_in.simplify() if gated else irreps_out
        of_input = [
            (i, (ir, j, k))
            for i, (_, ir) in enumerate(irreps_in)
            for j, (_, ir_attr) in enumerate(attr)
            for k, (_, ir_out) in enumerate(irreps_out)
            if ir_out in ir * ir_attr
        ]
        paths = list(dict.fromkeys(path for _, path in of_input))
        mixed = o3.Irreps([(irreps_out[k].mul, ir) for ir, _, k in paths])
        self.tp = o3.Linear(irreps_in, mixed, instructions=[(i, paths.index(path)) for i, path in of_input])
        # As in SEGNN the scale 1 / sqrt(terms of a sum) is the weights', and o3.Linear's is taken out.
        coupled = [(n, j, k, "uvu", False, irreps_in.count(ir)) for n, (ir, j, k) in enumerate(paths)]
        self.couple = o3.TensorProduct(mixed, attr, irreps_out, coupled, path_normalization="none")
        bounds = [sum(irreps_in.count(ir) for ir, _, k in paths if k == n) ** -0.5 for n in range(len(irreps_out))]
        for _, ins, weight in self.tp.weight_views(yield_instruction=True):
            nn.init.uniform_(weight, *(sign * bounds[paths[ins.i_out][2]] for sign in (-1, 1)))
        scalars = irreps_out[0].mul if irreps_out[0].ir == (0, 1) else 0
        self.biases = nn.Parameter((2 * torch.rand(scalars) - 1) * bounds[0])

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        return self.coupled(self.tp(x), attributes)

    def coupled(self, mixed: Tensor, attributes: Tensor) -> Tensor:
        y = self.couple(mixed, attributes)
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
    """x [nodes, hidden], attributes [nodes, irreps_attr] -> [nodes, hidden]."""

    def __init__(self, hidden: o3.Irreps, irreps_attr: o3.Irreps) -> None:
        super().__init__()
        self.harmonics = o3.SphericalHarmonics(irreps_attr, normalize=True, normalization="component")
        self.message_layer_1 = Product(2 * hidden + o3.Irreps("1x0e"), hidden, irreps_attr, gated=True)
        self.message_layer_2 = Product(hidden, hidden, irreps_attr, gated=True)
        self.update_layer_1 = Product(2 * hidden, hidden, irreps_attr, gated=True)
        self.update_layer_2 = Product(hidden, hidden, irreps_attr)

    def forward(self, x: Tensor, attributes: Tensor, points: Tensor, graph: eqk.Graph, size: int) -> Tensor:
        # The first layer takes both ends and the length, and mixes channels before anything of the edge comes in.
        mix, pad, dim = self.message_layer_1.tp, nn.functional.pad, x.shape[1]
        of_dst, of_src, of_length = pad(x, (0, dim + 1)), pad(x, (dim, 1)), pad(x.new_ones(1, 1), (2 * dim, 0))
        mixed = mix(of_dst), mix(of_src), mix(of_length)
        return by_nodes(self.of_nodes, size, graph, points, x, attributes, *mixed)

    def of_nodes(self, nodes: slice, src: Tensor, dst: Tensor, points: Tensor, *operands: Tensor) -> Tensor:
        (x, attributes, of_dst, of_src, of_length), vectors = operands, points[dst] - points[src]
        sh = self.harmonics(vectors)
        mixed = torch.addcmul(of_dst[dst] + of_src[src], vectors.norm(dim=1, keepdim=True), of_length)
        messages = self.message_layer_2(self.message_layer_1.coupled(mixed, sh), sh)
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
            x = layer(x, attributes, points, graph, self.size)
        return self.pre_pool2(self.pre_pool1(x, attributes), attributes)


def systems(small: bool) -> list[System]:
    irreps_in, irreps_out = "1x0e+1x1o", "1x1o"
    hidden, count, k, layers, size = ("4x0e+3x1o", 12, 5, 2, 5) if small else ("32x0e+16x1o", 5000, 10, 1, 250)
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
