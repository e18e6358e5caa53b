"""After RobDHess/Steerable-E3-GNN, all edges at once."""

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import nn

from . import scatter


class O3TensorProduct(nn.Module):
    def __init__(self, irreps_in1, irreps_out, irreps_in2):
        super().__init__()
        self.tp = o3.FullyConnectedTensorProduct(irreps_in1, irreps_in2, irreps_out, irrep_normalization="component")
        fan_in = [0] * len(irreps_out)
        for ins in self.tp.instructions:
            fan_in[ins.i_out] += ins.path_shape[0] * ins.path_shape[1]
        correction, biases, columns = torch.zeros(irreps_out.dim), [], []
        for n, (part, (mul, ir)) in enumerate(zip(irreps_out.slices(), irreps_out, strict=True)):
            correction[part] = fan_in[n] ** -0.5
            if ir.l == 0:
                biases.append(torch.empty(mul).uniform_(-1, 1) / fan_in[n] ** 0.5)
                columns.append(torch.arange(part.start, part.stop))
        with torch.no_grad():
            for _, ins, weight in self.tp.weight_views(yield_instruction=True):
                weight.uniform_(-1, 1).div_(fan_in[ins.i_out] ** 0.5)
        self.register_buffer("sqrt_k_correction", correction)
        self.has_biases = bool(biases)
        if biases:
            self.biases = nn.Parameter(torch.cat(biases))
            self.register_buffer("bias_idx", torch.cat(columns))

    def forward(self, x, attributes):
        out = self.tp(x, attributes)
        out /= self.sqrt_k_correction
        if self.has_biases:
            out[:, self.bias_idx] += self.biases
        return out


class O3TensorProductSwishGate(O3TensorProduct):
    def __init__(self, irreps_in1, irreps_out, irreps_in2):
        scalars, gated = irreps_out[:1], irreps_out[1:]
        gates = o3.Irreps(f"{gated.num_irreps}x0e")
        super().__init__(irreps_in1, (scalars + gates + gated).simplify(), irreps_in2)
        self.gate = Gate(scalars, [nn.SiLU()], gates, [torch.sigmoid], gated)

    def forward(self, x, attributes):
        return self.gate(super().forward(x, attributes))


class SEGNNLayer(nn.Module):
    def __init__(self, hidden, attributes):
        super().__init__()
        self.message_layer_1 = O3TensorProductSwishGate((2 * hidden + o3.Irreps("1x0e")).simplify(), hidden, attributes)
        self.message_layer_2 = O3TensorProductSwishGate(hidden, hidden, attributes)
        self.update_layer_1 = O3TensorProductSwishGate((hidden + hidden).simplify(), hidden, attributes)
        self.update_layer_2 = O3TensorProduct(hidden, hidden, attributes)

    def forward(self, x, edge_attr, node_attr, distance, graph):
        messages = torch.cat((x[graph.dst], x[graph.src], distance), dim=-1)
        messages = self.message_layer_2(self.message_layer_1(messages, edge_attr), edge_attr)
        update = torch.cat((x, scatter(messages, graph.dst, len(x))), dim=-1)
        return x + self.update_layer_2(self.update_layer_1(update, node_attr), node_attr)


class SEGNN(nn.Module):
    def __init__(self, irreps_in, hidden, irreps_out, lmax, layers, size):
        super().__init__()
        irreps_in, hidden, irreps_out = map(o3.Irreps, (irreps_in, hidden, irreps_out))
        self.attributes = o3.Irreps.spherical_harmonics(lmax)
        self.embedding_layer = O3TensorProduct(irreps_in, hidden, self.attributes)
        self.layers = nn.ModuleList([SEGNNLayer(hidden, self.attributes) for _ in range(layers)])
        self.pre_pool1 = O3TensorProductSwishGate(hidden, hidden, self.attributes)
        self.pre_pool2 = O3TensorProduct(hidden, irreps_out, self.attributes)

    def forward(self, x, points, graph):
        vectors = points[graph.dst] - points[graph.src]
        edge_attr = o3.spherical_harmonics(self.attributes, vectors, normalize=True, normalization="component")
        count = scatter(edge_attr.new_ones(len(edge_attr), 1), graph.dst, len(x))
        node_attr = scatter(edge_attr, graph.dst, len(x)) / count
        distance = vectors.norm(dim=-1, keepdim=True)
        x = self.embedding_layer(x, node_attr)
        for layer in self.layers:
            x = layer(x, edge_attr, node_attr, distance, graph)
        return self.pre_pool2(self.pre_pool1(x, node_attr), node_attr)
