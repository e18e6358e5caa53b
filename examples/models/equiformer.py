"""A block of Equiformer (Liao and Smidt 2022, arXiv:2206.11990): attention over neighbours, then a network of nodes.

Messages are products of features and harmonics, channel by channel, with radial weights, and nonlinear (its Section 4):
a gate, and another product. Attention weights are made of their scalars. As its models of QM9 have no parity, all
irreps are even. Its linear layers have 1 / sqrt(inputs) in their weights at the start, those here in the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import SILU_AND_SIGMOID, Gate, depthwise, gaussians, normalized, radial_network, smooth_leaky_relu
from .system import System, random_edges, random_features

SCALAR = o3.Irrep("0e")


class LayerNorm(nn.Module):
    """Each irrep over its root mean square, of all its channels; scalars less their mean, and with a bias."""

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.irreps = irreps
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(irreps.count(SCALAR)))

    def forward(self, x: Tensor) -> Tensor:
        parts, weights = x.split([part.dim for part in self.irreps], 1), self.weight.split([m for m, _ in self.irreps])
        out = []
        for part, weight, (mul, ir) in zip(parts, weights, self.irreps, strict=True):
            part = part.unflatten(1, (mul, ir.dim))
            if ir == SCALAR:
                part = part - part.mean(1, keepdim=True)
            part = part * (part.square().mean((1, 2), keepdim=True) + 1e-5).rsqrt() * weight[:, None]
            out.append((part + self.bias[:, None] if ir == SCALAR else part).flatten(1))
        return torch.cat(out, 1)


def swish_gate(irreps: o3.Irreps) -> Gate:
    return Gate(irreps.filter(keep=SCALAR), irreps.filter(drop=SCALAR), *SILU_AND_SIGMOID)


class Attention(nn.Module):
    """x [nodes, irreps], sh [edges, irreps_sh], scalars [edges, sizes[0]] -> [nodes, irreps]."""

    def __init__(self, irreps: o3.Irreps, irreps_sh: o3.Irreps, irreps_head: str, heads: int, sizes: list[int]) -> None:
        super().__init__()
        self.irreps_value = o3.Irreps([(heads * mul, ir) for mul, ir in o3.Irreps(irreps_head)])
        self.heads, alpha = heads, self.irreps_value.count(SCALAR)
        wanted = {SCALAR, *(ir for _, ir in irreps)}
        self.gate = swish_gate(irreps)
        self.source = o3.Linear(irreps, irreps, biases=True)
        self.target = o3.Linear(irreps, irreps)
        middle, paths = depthwise(irreps, irreps_sh, wanted)
        self.product = o3.TensorProduct(irreps, irreps_sh, middle, paths, shared_weights=False)
        self.radial = radial_network([*sizes, self.product.weight_numel])
        self.alpha = o3.Linear(middle.simplify(), f"{alpha}x0e", biases=True)
        self.alpha_dot = nn.Parameter(torch.randn(heads, alpha // heads) / alpha**0.5)
        self.value = o3.Linear(middle.simplify(), self.gate.irreps_in.simplify(), biases=True)
        self.value_product = o3.TensorProduct(irreps, irreps_sh, middle, paths)
        self.value_out = o3.Linear(middle.simplify(), self.irreps_value, biases=True)
        self.project = o3.Linear(self.irreps_value, irreps, biases=True)

    def forward(self, x: Tensor, sh: Tensor, scalars: Tensor, graph: eqk.Graph) -> Tensor:
        message = self.source(x)[graph.src] + self.target(x)[graph.dst]
        message = self.product(message, sh, self.radial(scalars))
        logits = normalized(smooth_leaky_relu)(self.alpha(message)).unflatten(1, (self.heads, -1))
        alpha = eqk.segment_softmax((logits * self.alpha_dot).sum(2), graph.dst, len(x))[:, :, None]
        value = self.value_out(self.value_product(self.gate(self.value(message)), sh))
        parts = value.split([part.dim for part in self.irreps_value], 1)
        value = torch.cat([(part.unflatten(1, (self.heads, -1)) * alpha).flatten(1) for part in parts], 1)
        return self.project(value.new_zeros(len(x), value.shape[1]).index_add(0, graph.dst, value))


class Block(nn.Module):
    """As :class:`Attention`, with norms before both parts, and a gate within the second one, the feed-forward."""

    def __init__(
        self, irreps: str, irreps_sh: str, irreps_head: str, heads: int, sizes: list[int], irreps_hidden: str
    ) -> None:
        super().__init__()
        irreps, irreps_hidden = o3.Irreps(irreps), o3.Irreps(irreps_hidden)
        self.norm1, self.norm2 = LayerNorm(irreps), LayerNorm(irreps)
        self.attention = Attention(irreps, o3.Irreps(irreps_sh), irreps_head, heads, sizes)
        gate = swish_gate(irreps_hidden)
        widen = o3.Linear(irreps, gate.irreps_in.simplify(), biases=True)
        self.feed_forward = nn.Sequential(widen, gate, o3.Linear(irreps_hidden, irreps, biases=True))

    def forward(self, x: Tensor, sh: Tensor, scalars: Tensor, graph: eqk.Graph) -> Tensor:
        x = x + self.attention(self.norm1(x), sh, scalars, graph)
        return x + self.feed_forward(self.norm2(x))


def systems(small: bool) -> list[System]:
    mul, nodes, k, basis = (2, 12, 5, 8) if small else (32, 64, 15, 128)
    irreps, hidden = (f"{4 * n}x0e+{2 * n}x1e+{n}x2e" for n in (mul, 3 * mul))
    head, sh = f"{mul}x0e+{max(mul // 2, 1)}x1e+{max(mul // 4, 1)}x2e", "0e+1e+2e"

    def inputs(generator: torch.Generator) -> dict:
        graph, harmonics, lengths = random_edges(sh, nodes, k, generator)
        return {
            "x": random_features(irreps, nodes, generator),
            "sh": harmonics,
            "scalars": gaussians(lengths, basis, 2.5),
            "graph": graph,
        }

    return [
        System(
            title="Equiformer, block",
            source="Liao and Smidt 2022, arXiv:2206.11990",
            module=Block,
            arguments={
                "irreps": irreps,
                "irreps_sh": sh,
                "irreps_head": head,
                "heads": 4,
                "sizes": [basis, 64, 64],
                "irreps_hidden": hidden,
            },
            inputs=inputs,
            turn={"x": irreps, "sh": sh},
            out=irreps,
            parity=False,
        )
    ]
