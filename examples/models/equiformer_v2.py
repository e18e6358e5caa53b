"""A block of EquiformerV2 (Liao et al. 2023, arXiv:2306.12059): attention by eSCN convolutions, a network on a grid.

Messages are made in the frames of edges, by layers that commute with rotations about the edge, with a separable S2
activation between them. They are one op, from nodes to nodes; attention weights, which it multiplies with, are made
before it of the scalars that its first layer has beside. Features are [nodes, (lmax + 1)^2, channels].

SiLU of a signal on a grid has degrees beyond it: the block is equivariant to what aliases, not to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk

from .layers import SO2Linear, gaussians, radial_network, smooth_leaky_relu
from .system import System, random_cloud


class Attention(nn.Module):
    """x [nodes, components, channels], vec [edges, 3], scalars [edges, sizes[0]] -> as x.

    ``heads`` have ``alpha`` channels for their logits and ``value`` of the message. Radial weights are functions of
    scalars, for each channel and each degree, and of each order of it unless ``per_degree``. ``activation``: what
    :func:`eqk.so2_edge_message` is told of it, which has ``extra`` scalars for ``width`` channels.
    """

    def __init__(
        self, channels: int, heads: int, alpha: int, value: int, lmax: int, mmax: int, sizes: list[int],
        hidden: int, width: int, extra: int, per_degree: bool, activation: dict,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lmax, self.mmax, self.heads, self.activation = lmax, mmax, heads, activation
        self.logits = heads * alpha
        groups = sum(lmax + 1 - m for m in range(1 if per_degree else mmax + 1))
        self.radial = radial_network([*sizes, 2 * channels * groups])
        self.conv1 = SO2Linear(lmax, mmax, 2 * channels, width, heads * alpha + extra)
        self.conv2 = SO2Linear(lmax, mmax, hidden, heads * value)
        self.alpha_norm = nn.LayerNorm(alpha)
        self.alpha_dot = nn.Parameter(torch.randn(heads, alpha) / alpha**0.5)
        self.project = eqk.nn.SO3Linear(heads * value, channels, lmax)

    def forward(
        self, x: Tensor, vec: Tensor, scalars: Tensor, graph: eqk.Graph, envelope: Tensor | None = None
    ) -> Tensor:
        q, edges = eqk.edge_frame(vec), torch.stack([graph.src, graph.dst])
        *hidden, last = self.radial
        h = nn.Sequential(*hidden)(scalars)
        (zero, bias, *orders), n = self.conv1.layer(), self.logits
        m0 = zero.shape[1]  # radial weights of order 0, which come first
        logits = bias[:n] + eqk.so2_edge_scalars(
            x, q, edges, zero[:n], self.lmax, h=h, a=last.weight[:m0].mT, bias=last.bias[:m0]
        )
        logits = smooth_leaky_relu(self.alpha_norm(logits.unflatten(1, (self.heads, -1))))
        alpha = eqk.segment_softmax((logits * self.alpha_dot).sum(2), graph.dst, len(x), envelope)
        message = eqk.so2_edge_message(
            x,
            q,
            edges,
            (zero[n:], bias[n:], *orders),
            self.conv2.layer(),
            self.lmax,
            self.mmax,
            h=h,
            a=last.weight.mT,
            bias=last.bias,
            w=alpha,
            rescale=True,
            **self.activation,
        )
        return self.project(message)


class FeedForward(nn.Module):
    """Linear layers and SiLU on the values on a grid, and of scalars a layer of their own."""

    def __init__(self, channels: int, hidden: int, lmax: int, res: tuple[int, int]) -> None:
        super().__init__()
        self.linear1 = eqk.nn.SO3Linear(channels, hidden, lmax)
        self.scalars = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU())
        layers = [layer for _ in range(3) for layer in (nn.Linear(hidden, hidden, bias=False), nn.SiLU())]
        self.grid = eqk.nn.S2GridMLP(nn.Sequential(*layers[:-1]), lmax, res)
        self.linear2 = eqk.nn.SO3Linear(hidden, channels, lmax)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grid(self.linear1(x))
        return self.linear2(torch.cat([self.scalars(x[:, :1]), y[:, 1:]], 1))


class Block(nn.Module):
    """As :class:`Attention`, with norms before both parts."""

    def __init__(
        self, channels: int, heads: int, alpha: int, value: int, lmax: int, mmax: int, sizes: list[int],
        hidden: int, feed_forward: int, res: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        grid = {"res": res, "quadrature": "soft", "grid_rescale": True}
        self.norm1, self.norm2 = (eqk.nn.EquivariantSeparableLayerNorm(lmax, channels) for _ in range(2))
        activation = hidden, hidden, hidden, False, {"activation": "s2", **grid}
        self.attention = Attention(channels, heads, alpha, value, lmax, mmax, sizes, *activation)
        self.feed_forward = FeedForward(channels, feed_forward, lmax, res)

    def forward(self, x: Tensor, vec: Tensor, scalars: Tensor, graph: eqk.Graph) -> Tensor:
        x = x + self.attention(self.norm1(x), vec, scalars, graph)
        return x + self.feed_forward(self.norm2(x))


def random_inputs(nodes: int, k: int, arguments: dict, cutoff: float, generator: torch.Generator) -> dict:
    points, graph = random_cloud(nodes, k, generator)
    vec = points[graph.src] - points[graph.dst]
    shape = nodes, (arguments["lmax"] + 1) ** 2, arguments["channels"]
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"x": x, "vec": vec, "scalars": gaussians(vec.norm(dim=1), arguments["sizes"][0], cutoff), "graph": graph}


def systems(small: bool) -> list[System]:
    keys = ("channels", "heads", "alpha", "value", "lmax", "mmax", "sizes", "hidden", "feed_forward", "res")
    of_small = (4, 2, 3, 3, 2, 1, [8, 8, 8], 5, 6, (18, 18))
    of_31m = (128, 8, 64, 16, 4, 2, [512, 128, 128], 64, 128, (18, 18))
    arguments = dict(zip(keys, of_small if small else of_31m, strict=True))
    nodes, k = (12, 5) if small else (20, 16)
    irreps = str(eqk.Irreps.spherical_harmonics(arguments["lmax"]))

    def inputs(generator: torch.Generator) -> dict:
        return random_inputs(nodes, k, arguments, 2.5, generator)

    return [
        System(
            title="EquiformerV2, block",
            source="Liao et al. 2023, arXiv:2306.12059",
            module=Block,
            arguments=arguments,
            inputs=inputs,
            turn={"x": [irreps, None], "vec": "1o"},
            out=[irreps, None],
            parity=False,
            equivariance=1e-5 if small else 1e-2,
        )
    ]
