"""e3nn has no other groups: dense einsums of the same maps, edge by edge, as lie-nn's users write them."""

import torch
from torch import nn

from models.lie_groups import bilinear_maps

from . import scatter


class Layer(nn.Module):
    def __init__(self, first, edge, channels, neighbours):
        super().__init__()
        self.channels, self.neighbours = channels, neighbours
        self.dims, self.edge_dims = [[g.shape[-1] for g in of.values()] for of in (first, edge)]
        self.ends = []
        for i, x in enumerate(first.values()):
            for j, y in enumerate(edge.values()):
                for o, z in enumerate(first.values()):
                    for table in bilinear_maps(x, y, z):
                        dtype = torch.get_default_dtype()
                        self.register_buffer(f"table{len(self.ends)}", table.to(dtype), persistent=False)
                        self.ends.append((i, j, o))
        self.weights = nn.Parameter(torch.empty(len(self.ends), channels, channels))
        self.gates = nn.Parameter(torch.empty(len(self.dims), channels, channels))

    def forward(self, x, edge, graph):
        xs = x.split([d * self.channels for d in self.dims], 1)
        xs = [part.unflatten(1, (-1, self.channels))[graph.src] for part in xs]
        ys = edge.split(self.edge_dims, 1)
        sums = [0] * len(self.dims)
        for n, (i, j, o) in enumerate(self.ends):
            messages = torch.einsum("eau,eb,abk->eku", xs[i], ys[j], self.get_buffer(f"table{n}"))
            summed = scatter(messages.flatten(1), graph.dst, len(x)).unflatten(1, (-1, self.channels))
            sums[o] = sums[o] + summed @ self.weights[n] / (self.channels * self.neighbours) ** 0.5
        gates = torch.sigmoid(sums[0] @ self.gates[:, None] / self.channels**0.5)
        return torch.cat([(t * g).flatten(1) for t, g in zip(sums, gates, strict=True)], 1)
