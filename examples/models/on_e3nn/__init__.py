"""The systems of the gallery as e3nn builds them: products of edges, then a sum over them."""

import itertools

from e3nn import o3
from torch import Tensor, nn


def depthwise(irreps_in, irreps_sh, wanted):
    """Irreps, sorted, and instructions in the order of inputs, of all paths to those that are wanted."""
    middle, paths = [], []
    for i, (mul, ir_in) in enumerate(irreps_in):
        for j, (_, ir_sh) in enumerate(irreps_sh):
            for ir in ir_in * ir_sh:
                if ir in wanted:
                    paths.append((i, j, len(middle), "uvu", True))
                    middle.append((mul, ir))
    middle, place, _ = o3.Irreps(middle).sort()
    return middle, [(i, j, place[k], mode, train) for i, j, k, mode, train in paths]


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
