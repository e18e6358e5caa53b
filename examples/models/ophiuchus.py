"""Ophiuchus: an autoencoder of proteins that convolves along the sequence (Costa et al. 2023, arXiv:2310.02508).

A residue has a position and channels of irreps of SO(3), [residues, channels, (lmax + 1)^2], in which its atoms begin
as vectors. A window of residues becomes one ("Sequence Convolution"): its position is a mean with learned weights, its
features a linear map of all of the window's and of the directions between its residues. The transpose makes a window
of each again, and takes means where they overlap. In between, channels are squared, gated and mixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .layers import FullyConnectedNet
from .system import System, random_features


def degrees(lmax: int) -> o3.Irreps:
    """Parity does not count: a vector product of vectors is one of them."""
    return o3.Irreps([(1, (l, 1)) for l in range(lmax + 1)])


def windows(length: int, kernel: int, stride: int) -> Tensor:
    """[windows, kernel]: the residues of each."""
    return torch.arange(0, length - kernel + 1, stride)[:, None] + torch.arange(kernel)


class Norm(eqk.nn.EquivariantLayerNorm):
    """With components after channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class SelfInteraction(nn.Module):
    """x -> norm(x + linear map of gates times x and the tensor square of each of its channels)."""

    def __init__(self, channels: int, lmax: int) -> None:
        super().__init__()
        irreps = degrees(lmax)
        self.square = o3.TensorSquare(irreps, filter_ir_out=[ir for _, ir in irreps])
        both = (irreps + self.square.irreps_out).sort().irreps.simplify()
        self.scalars = both[0].mul
        self.sizes = [[mul * ir.dim for mul, ir in i.simplify()] for i in (irreps, self.square.irreps_out)]
        self.mlp = FullyConnectedNet([channels * self.scalars, channels, channels * both.num_irreps])
        self.gate = o3.ElementwiseTensorProduct(both, f"{both.num_irreps}x0e")
        self.linear = o3.Linear(both, irreps, f_in=channels, f_out=channels)
        self.norm = Norm(lmax, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.sizes[0], -1), self.square(x).split(self.sizes[1], -1)
        y = torch.cat([t for of_degree in zip(*parts, strict=True) for t in of_degree], -1)
        gates = self.mlp(y[..., : self.scalars].flatten(1)).unflatten(1, (x.shape[1], -1))
        return self.norm(x + self.linear(self.gate(y, gates)))


class Coarsen(nn.Module):
    """x [residues, channels, irreps], positions [residues, 3] -> those of the windows."""

    def __init__(self, channels: int, lmax: int, window: tuple[int, int]) -> None:
        super().__init__()
        irreps, self.window = degrees(lmax), window
        self.pairs = torch.combinations(torch.arange(window[0])).unbind(1)
        self.score = nn.Linear(channels, 1, bias=False)
        self.linear = o3.Linear(irreps, irreps, f_in=window[0] * channels, f_out=channels)
        self.directions = o3.Linear("1e", irreps, f_in=len(self.pairs[0]), f_out=channels)
        self.norm = Norm(lmax, channels)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        of_window = windows(len(x), *self.window)
        weights, places = self.score(x[..., 0])[of_window].softmax(1), positions[of_window]
        first, second = self.pairs
        unit = nn.functional.normalize(places[:, first] - places[:, second], dim=-1)
        y = self.linear(x[of_window].flatten(1, 2)) + self.directions(3**0.5 * unit)
        return self.norm(y), (weights * places).sum(1)


class Refine(nn.Module):
    """x [windows, channels, irreps], positions [windows, 3] -> those of residues, means over the windows of each."""

    def __init__(self, channels: int, lmax: int, window: tuple[int, int]) -> None:
        super().__init__()
        irreps, self.window = degrees(lmax), window
        self.linear = o3.Linear(irreps, irreps, f_in=channels, f_out=window[0] * channels)
        self.arrows = o3.Linear(irreps, "1e", f_in=channels, f_out=window[0])

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        kernel, stride = self.window
        length = kernel + stride * (len(x) - 1)
        residue = windows(length, kernel, stride).flatten().to(x.device)
        y = self.linear(x).view(len(residue), *x.shape[1:]), (self.arrows(x) + positions[:, None]).flatten(0, 1)
        sums = [t.new_zeros(length, *t.shape[1:]).index_add(0, residue, t) for t in y]
        sizes = torch.bincount(residue)[:, None]
        return sums[0] / sizes[..., None], sums[1] / sizes


class Ophiuchus(nn.Module):
    """Types [residues], positions [residues, 3] and atoms [residues, atoms, 3], relative to these -> themselves.

    Logits of types [residues, types], positions, atoms, and the latent features [windows, channels, (lmax + 1)^2].
    """

    def __init__(self, types: int, atoms: int, channels: int, lmax: int, window: tuple, levels: int) -> None:
        super().__init__()
        irreps = degrees(lmax)
        self.embedding = nn.Embedding(types, channels)
        self.encode = o3.Linear("1e", irreps, f_in=atoms, f_out=channels)
        self.interact = nn.ModuleList(SelfInteraction(channels, lmax) for _ in range(2 * levels + 1))
        self.coarsen = nn.ModuleList(Coarsen(channels, lmax, window) for _ in range(levels))
        self.refine = nn.ModuleList(Refine(channels, lmax, window) for _ in range(levels))
        self.classify = nn.Linear(channels, types)
        self.decode = o3.Linear(irreps, "1e", f_in=channels, f_out=atoms)

    def forward(self, types: Tensor, positions: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.encode(atoms)
        x = self.interact[0](torch.cat([self.embedding(types)[..., None], x[..., 1:]], -1))
        features = [x]
        for step, interact in zip((*self.coarsen, *self.refine), self.interact[1:], strict=True):
            x, positions = step(x, positions)
            x = interact(x)
            features.append(x)
        return self.classify(x[..., 0]), positions, self.decode(x), features[len(self.coarsen)]


def systems(small: bool) -> list[System]:
    length, window, levels, channels = (15, (3, 2), 2, 4) if small else (404, (5, 3), 3, 32)

    def inputs(generator: torch.Generator) -> dict:
        return {
            "types": torch.randint(20, (length,), generator=generator),
            "positions": random_features("1e", length, generator).cumsum(0),
            "atoms": random_features("13x1e", length, generator).view(length, 13, 3),
        }

    return [
        System(
            title="Ophiuchus, sequence autoencoder",
            source="Costa et al. 2023, arXiv:2310.02508",
            module=Ophiuchus,
            arguments={"types": 20, "atoms": 13, "channels": channels, "lmax": 2, "window": window, "levels": levels},
            inputs=inputs,
            turn={"positions": "1e", "atoms": "1e"},
            out=(None, "1e", "1e", str(degrees(2))),
            parity=False,
        )
    ]
