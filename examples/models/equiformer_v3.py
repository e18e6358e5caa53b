"""A block of EquiformerV3, with forces as an input (DeNS, Liao et al. 2024, arXiv:2403.09549).

Beside EquiformerV2: one norm for all degrees; attention with a smooth cutoff; radial weights for each degree; and the
SwiGLU-S2 activation, a product of two signals on the sphere times gates of scalars, with no other function on the grid,
so that the grid is exact and so is equivariance. Features are [nodes, (lmax + 1)^2, channels].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk

from .equiformer_v2 import Attention, random_inputs
from .system import System, random_features


class ForceEncoding(nn.Module):
    """forces [nodes, 3] -> [nodes, components, channels]: harmonics of their direction, as long as they are.

    For a network that learns to undo noise of positions: which structure the noise is from is told by its forces.
    """

    def __init__(self, channels: int, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        self.linear = eqk.nn.SO3Linear(1, channels, lmax)

    def forward(self, forces: Tensor) -> Tensor:
        y = eqk.spherical_harmonics(range(self.lmax + 1), forces, normalize=True, normalization="component")
        return self.linear((y * forces.norm(dim=1, keepdim=True) / 3**0.5)[:, :, None])


class FeedForward(nn.Module):
    """A product of signals with gates, between linear layers, and a SwiGLU of scalars.

    EquiformerV3 has ``grid1`` and ``grid2`` on the values on the grid. They mix channels alone, without a bias, and
    gates are the same everywhere on the sphere, so here they are on the components, which are fewer.
    """

    def __init__(self, channels: int, hidden: int, lmax: int) -> None:
        super().__init__()
        self.linear1 = eqk.nn.SO3Linear(channels, hidden, lmax)
        self.scalars = nn.Linear(channels, 2 * hidden)
        self.gate = nn.Linear(channels, hidden)
        self.grid1 = nn.Linear(hidden, 2 * hidden, bias=False)
        self.grid2 = nn.Linear(hidden, hidden, bias=False)
        self.linear2 = eqk.nn.SO3Linear(hidden, channels, lmax)

    def forward(self, x: Tensor) -> Tensor:
        scalars = x[:, :1]
        u, v = self.grid1(self.linear1(x)).chunk(2, 2)
        y = self.grid2(eqk.s2_activation(u, "identity", times=[v]) * self.gate(scalars).sigmoid())
        s, t = self.scalars(scalars).chunk(2, 2)
        return self.linear2(torch.cat([y[:, :1] + nn.functional.silu(s) * t, y[:, 1:]], 1))


class Block(nn.Module):
    """x [nodes, components, channels], forces [nodes, 3], vec [edges, 3], scalars [edges, sizes[0]] -> as x."""

    def __init__(
        self, channels: int, heads: int, alpha: int, value: int, lmax: int, mmax: int, sizes: list[int],
        hidden: int, feed_forward: int, cutoff: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cutoff, self.envelope = cutoff, eqk.nn.PolynomialEnvelope(5)
        self.force_encoding = ForceEncoding(channels, lmax)
        self.norm1, self.norm2 = (eqk.nn.EquivariantRMSNorm(lmax, channels) for _ in range(2))
        activation = hidden, 2 * hidden, 3 * hidden, True, {"activation": "swiglu_s2", "grid_rescale": True}
        self.attention = Attention(channels, heads, alpha, value, lmax, mmax, sizes, *activation)
        self.feed_forward = FeedForward(channels, feed_forward, lmax)

    def forward(self, x: Tensor, forces: Tensor, vec: Tensor, scalars: Tensor, graph: eqk.Graph) -> Tensor:
        x = x + self.force_encoding(forces)
        envelope = self.envelope(vec.norm(dim=1) / self.cutoff)
        x = x + self.attention(self.norm1(x), vec, scalars, graph, envelope)
        return x + self.feed_forward(self.norm2(x))


def systems(small: bool) -> list[System]:
    keys = ("channels", "heads", "alpha", "value", "lmax", "mmax", "sizes", "hidden", "feed_forward", "cutoff")
    of_small = (4, 2, 3, 3, 2, 1, [8, 8, 8], 5, 6, 3.0)
    of_oam = (128, 8, 64, 16, 4, 2, [64, 128, 128], 32, 512, 3.0)
    arguments = dict(zip(keys, of_small if small else of_oam, strict=True))
    nodes, k = (12, 5) if small else (20, 16)
    irreps = str(eqk.Irreps.spherical_harmonics(arguments["lmax"]))

    def inputs(generator: torch.Generator) -> dict:
        x, *of_edges = random_inputs(nodes, k, arguments, arguments["cutoff"], generator).items()
        return dict([x, ("forces", random_features("1o", nodes, generator)), *of_edges])

    return [
        System(
            title="EquiformerV3, block with DeNS",
            source="Liao et al. 2024, arXiv:2403.09549",
            module=Block,
            arguments=arguments,
            inputs=inputs,
            turn={"x": [irreps, None], "forces": "1o", "vec": "1o"},
            out=[irreps, None],
            parity=False,
        )
    ]
