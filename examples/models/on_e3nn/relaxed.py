import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from e3nn.nn.models.v2106.gate_points_message_passing import MessagePassing
from torch import nn

from . import scatter


class RelaxedConvolution(nn.Module):
    """The convolution of RelaxedE3NN: a product of relaxed weights and harmonics, then one with features of nodes."""

    def __init__(self, irreps_in, irreps_sh, irreps_relaxed, irreps_edge, irreps_out, sizes):
        super().__init__()
        self.edge = o3.FullyConnectedTensorProduct(irreps_relaxed, irreps_sh, irreps_edge)
        self.product = o3.FullyConnectedTensorProduct(irreps_in, irreps_edge, irreps_out, shared_weights=False)
        self.fc = FullyConnectedNet([*sizes, self.product.weight_numel], nn.functional.silu)
        self.self_connection = o3.Linear(irreps_in, irreps_out)

    def forward(self, x, relaxed, sh, scalars, graph):
        edge = self.edge(relaxed, sh)
        messages = self.product(x[graph.src], edge, self.fc(scalars))
        summed = scatter(messages, graph.dst, len(x)) / (len(sh) / len(x)) ** 0.5
        return self.self_connection(x) + summed


class SymmetryBreaking(MessagePassing):
    """e3nn's own; the object of the symmetry-breaking set is a feature of every node."""

    def __init__(self, irreps_types, irreps_object, irreps_hidden, irreps_sh, irreps_out, sizes, num_neighbors):
        sequence = [f"{irreps_types}+{irreps_object}", irreps_hidden, irreps_out]
        super().__init__(sequence, irreps_types, irreps_sh, sizes, num_neighbors)

    def forward(self, types, broken, sh, scalars, graph):
        x = torch.cat([types, broken.expand(len(types), -1)], 1)
        return super().forward(x, types, graph.src, graph.dst, sh, scalars)
