"""After the authors' transformer_block, and the force encoding of their denoising models."""

import math

import torch
from e3nn import o3
from torch import nn

from . import SmoothLeakyReLU, radial_profile
from .equiformer_v2 import EdgeGrid, Grid, SO2Linear, SO3Linear, Wigner

# Latitudes and longitudes of their grids: of edges, where products are exact to lmax, mmax, and of nodes.
EDGE_GRIDS, NODE_GRIDS = {(2, 1): (8, 5), (4, 2): (14, 8)}, {2: (8, 8), 4: (14, 14)}


class MergeLayerNorm(nn.Module):
    """Their EquivariantMergeLayerNorm."""

    def __init__(self, lmax, channels):
        super().__init__()
        self.affine_weight = nn.Parameter(torch.ones(lmax + 1, channels))
        self.affine_bias = nn.Parameter(torch.zeros(channels))
        self.degrees = torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])
        self.balance = 1 / ((2 * self.degrees + 1).double() * (lmax + 1))

    def forward(self, x):
        x = torch.cat([x[:, :1] - x[:, :1].mean(dim=2, keepdim=True), x[:, 1:]], 1)
        norm = torch.einsum("nic, i -> nc", x.pow(2), self.balance.to(x)).mean(dim=1)
        x = x * (norm + 1e-5).pow(-0.5)[:, None, None] * self.affine_weight[self.degrees]
        return torch.cat([x[:, :1] + self.affine_bias, x[:, 1:]], 1)


def graph_softmax(logits, index, envelope, nodes, eps=1e-16):
    largest = logits.new_zeros(nodes, logits.shape[1])
    largest = largest.scatter_reduce(0, index[:, None].expand_as(logits), logits, "amax", include_self=False)
    terms = (logits - largest.detach()[index]).exp() * envelope[:, None]
    total = torch.zeros_like(largest).index_add(0, index, terms)
    return terms / (total[index] + eps)


class Attention(nn.Module):
    def __init__(self, channels, heads, alpha, value, lmax, mmax, sizes, hidden):
        super().__init__()
        self.heads, self.logits, self.hidden, self.wigner = heads, heads * alpha, hidden, Wigner(lmax, mmax)
        self.radial = radial_profile([*sizes, 2 * channels * (lmax + 1)])
        self.degrees = torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])
        self.conv1 = SO2Linear(lmax, mmax, 2 * channels, 2 * hidden, heads * alpha + 3 * hidden)
        self.conv2 = SO2Linear(lmax, mmax, hidden, heads * value)
        self.grid = EdgeGrid(lmax, mmax, EDGE_GRIDS[lmax, mmax])
        self.alpha_norm = nn.LayerNorm(alpha)
        self.alpha_act = SmoothLeakyReLU()
        self.alpha_dot = nn.Parameter(torch.randn(heads, alpha))
        self.project = SO3Linear(heads * value, channels, lmax)

    def activation(self, x, scalars):
        """Separable, gated and merged: the product of halves on the grid, and SwiGLU of scalars."""
        swiglu, gates = scalars.split([2 * self.hidden, self.hidden], dim=1)
        out = self.grid(x, lambda values: values[..., : self.hidden] * values[..., self.hidden :])
        out = out * gates.sigmoid()[:, None]
        merged = nn.functional.silu(swiglu[:, : self.hidden]) * swiglu[:, self.hidden :]
        return torch.cat([out[:, :1] + merged[:, None], out[:, 1:]], 1)

    def forward(self, x, vec, scalars, graph, envelope):
        wigner, wigner_inv = self.wigner(vec)
        message = torch.cat([x[graph.src], x[graph.dst]], 2)
        radial = self.radial(scalars).reshape(len(vec), -1, message.shape[2])
        message, extra = self.conv1(torch.bmm(wigner, message * radial[:, self.degrees]))
        logits, scalars = extra[:, : self.logits], extra[:, self.logits :]
        message, _ = self.conv2(self.activation(message, scalars))

        logits = self.alpha_act(self.alpha_norm(logits.reshape(len(vec), self.heads, -1)))
        logits = torch.einsum("bik, ik -> bi", logits, self.alpha_dot)
        alpha = graph_softmax(logits, graph.dst, envelope, len(x)) * envelope[:, None]
        message = message.reshape(*message.shape[:2], self.heads, -1) * alpha[:, None, :, None]
        message = torch.bmm(wigner_inv, message.flatten(2))
        summed = x.new_zeros(len(x), *message.shape[1:]).index_add(0, graph.dst, message)
        return self.project(summed)


class FeedForward(nn.Module):
    def __init__(self, channels, hidden, lmax):
        super().__init__()
        self.linear1 = SO3Linear(channels, hidden, lmax)
        self.scalars = nn.Linear(channels, 2 * hidden)
        self.gate = nn.Linear(channels, hidden)
        self.grid1 = nn.Linear(hidden, 2 * hidden, bias=False)
        self.grid2 = nn.Linear(hidden, hidden, bias=False)
        self.linear2 = SO3Linear(hidden, channels, lmax)
        self.grid = Grid(lmax, NODE_GRIDS[lmax])

    def forward(self, x):
        swiglu_1, swiglu_2 = self.scalars(x[:, :1]).chunk(2, dim=2)
        gates = self.gate(x[:, :1]).sigmoid()[:, :, None]

        def mlp(values):
            values_1, values_2 = self.grid1(values).chunk(2, dim=-1)
            return self.grid2(values_1 * gates * values_2)

        y = self.grid(self.linear1(x), mlp)
        return self.linear2(torch.cat([y[:, :1] + nn.functional.silu(swiglu_1) * swiglu_2, y[:, 1:]], 1))


class ForceEncoding(nn.Module):
    def __init__(self, channels, lmax):
        super().__init__()
        self.lmax, self.linear = lmax, SO3Linear(1, channels, lmax)

    def forward(self, forces):
        force_sh = o3.spherical_harmonics(list(range(self.lmax + 1)), forces, True, normalization="component")
        force_norm = forces.norm(dim=1, keepdim=True) / math.sqrt(3.0)
        return self.linear((force_sh * force_norm)[:, :, None])


class Block(nn.Module):
    def __init__(self, channels, heads, alpha, value, lmax, mmax, sizes, hidden, feed_forward, cutoff):
        super().__init__()
        self.cutoff = cutoff
        self.force_encoding = ForceEncoding(channels, lmax)
        self.norm1, self.norm2 = MergeLayerNorm(lmax, channels), MergeLayerNorm(lmax, channels)
        self.attention = Attention(channels, heads, alpha, value, lmax, mmax, sizes, hidden)
        self.feed_forward = FeedForward(channels, feed_forward, lmax)

    def forward(self, x, forces, vec, scalars, graph):
        d = vec.norm(dim=1) / self.cutoff
        envelope = torch.where(d < 1, 1 - 21 * d**5 + 35 * d**6 - 15 * d**7, torch.zeros_like(d))
        x = x + self.force_encoding(forces)
        x = x + self.attention(self.norm1(x), vec, scalars, graph, envelope)
        return x + self.feed_forward(self.norm2(x))
