"""After the authors' graph_attention_transformer, with the linear layers and gates of e3nn."""

import torch
from e3nn import o3
from e3nn.nn import Activation, Gate
from torch import nn
from torch_geometric.utils import softmax

from . import SmoothLeakyReLU, depthwise, radial_profile, scatter


class LayerNorm(nn.Module):
    """Their EquivariantLayerNormV2."""

    def __init__(self, irreps):
        super().__init__()
        self.irreps = irreps
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(irreps.count("0e")))

    def forward(self, x):
        fields, start, weights, biases = [], 0, 0, 0
        for mul, ir in self.irreps:
            field = x[:, start : start + mul * ir.dim].reshape(-1, mul, ir.dim)
            start += mul * ir.dim
            if ir == o3.Irrep("0e"):
                field = field - field.mean(dim=1, keepdim=True)
            norm = field.pow(2).mean(-1).mean(dim=1, keepdim=True)
            norm = (norm + 1e-5).pow(-0.5) * self.weight[None, weights : weights + mul]
            weights += mul
            field = field * norm[:, :, None]
            if ir == o3.Irrep("0e"):
                field = field + self.bias[biases : biases + mul, None]
                biases += mul
            fields.append(field.reshape(-1, mul * ir.dim))
        return torch.cat(fields, dim=-1)


def swish_gate(irreps):
    scalars = o3.Irreps([part for part in irreps if part.ir == o3.Irrep("0e")])
    gated = o3.Irreps([part for part in irreps if part.ir != o3.Irrep("0e")])
    gates = o3.Irreps([(mul, "0e") for mul, _ in gated])
    return Gate(scalars, [nn.SiLU()] * len(scalars), gates, [torch.sigmoid] * len(gates), gated)


def depthwise_product(irreps, irreps_sh, irreps_out, shared_weights):
    middle, paths = depthwise(irreps, irreps_sh, irreps_out + o3.Irreps("0e"))
    return o3.TensorProduct(irreps, irreps_sh, middle, paths, shared_weights=shared_weights)


class Attention(nn.Module):
    def __init__(self, irreps, irreps_sh, irreps_head, heads, sizes):
        super().__init__()
        self.irreps_value = o3.Irreps([(heads * mul, ir) for mul, ir in o3.Irreps(irreps_head)])
        self.heads, alpha = heads, self.irreps_value.count("0e")
        self.gate = swish_gate(irreps)
        self.source = o3.Linear(irreps, irreps, biases=True)
        self.target = o3.Linear(irreps, irreps)
        self.product = depthwise_product(irreps, irreps_sh, irreps, False)
        middle = self.product.irreps_out.simplify()
        self.radial = radial_profile([*sizes, self.product.weight_numel])
        self.alpha = o3.Linear(middle, f"{alpha}x0e", biases=True)
        self.alpha_act = Activation(f"{alpha}x0e", [SmoothLeakyReLU()])
        self.alpha_dot = nn.Parameter(torch.randn(heads, alpha // heads))
        self.value = o3.Linear(middle, self.gate.irreps_in, biases=True)
        self.value_product = depthwise_product(irreps, irreps_sh, irreps, True)
        self.value_out = o3.Linear(middle, self.irreps_value, biases=True)
        self.project = o3.Linear(self.irreps_value, irreps, biases=True)

    def to_heads(self, x):
        parts = [x[:, columns].reshape(len(x), self.heads, -1) for columns in self.irreps_value.slices()]
        return torch.cat(parts, dim=2)

    def from_heads(self, x):
        sizes = [part.dim // self.heads for part in self.irreps_value]
        return torch.cat([part.reshape(len(x), -1) for part in x.split(sizes, dim=2)], dim=1)

    def forward(self, x, sh, scalars, graph):
        message = self.source(x)[graph.src] + self.target(x)[graph.dst]
        message = self.product(message, sh, self.radial(scalars))
        alpha = self.alpha_act(self.alpha(message)).reshape(len(sh), self.heads, -1)
        value = self.value_out(self.value_product(self.gate(self.value(message)), sh))
        alpha = torch.einsum("bik, ik -> bi", alpha, self.alpha_dot)
        alpha = softmax(alpha, graph.dst, num_nodes=len(x))
        attended = (self.to_heads(value) * alpha[:, :, None]).flatten(1)
        attended = scatter(attended, graph.dst, len(x)).reshape(len(x), self.heads, -1)
        return self.project(self.from_heads(attended))


class Block(nn.Module):
    def __init__(self, irreps, irreps_sh, irreps_head, heads, sizes, irreps_hidden):
        super().__init__()
        irreps, irreps_sh, irreps_hidden = map(o3.Irreps, (irreps, irreps_sh, irreps_hidden))
        self.norm1, self.norm2 = LayerNorm(irreps), LayerNorm(irreps)
        self.attention = Attention(irreps, irreps_sh, irreps_head, heads, sizes)
        gate = swish_gate(irreps_hidden)
        widen = o3.Linear(irreps, gate.irreps_in, biases=True)
        self.feed_forward = nn.Sequential(widen, gate, o3.Linear(irreps_hidden, irreps, biases=True))

    def forward(self, x, sh, scalars, graph):
        x = x + self.attention(self.norm1(x), sh, scalars, graph)
        return x + self.feed_forward(self.norm2(x))
