"""The systems of the gallery as e3nn builds them: products of edges, then a sum over them."""

import itertools

from torch import Tensor, nn


def scatter(messages: Tensor, dst: Tensor, nodes: int) -> Tensor:
    return messages.new_zeros(nodes, messages.shape[1]).index_add(0, dst, messages)


class SmoothLeakyReLU(nn.Module):
    def forward(self, x):
        return (1 + 0.2) / 2 * x + (1 - 0.2) / 2 * x * (2 * x.sigmoid() - 1)


def radial_profile(sizes):
    layers = []
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
