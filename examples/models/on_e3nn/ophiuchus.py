import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from torch import nn

from . import scatter


def degrees(lmax):
    return o3.Irreps([(1, (l, 1)) for l in range(lmax + 1)])


def windows(length, kernel, stride):
    return torch.arange(length).unfold(0, kernel, stride)


class Norm(nn.Module):
    """Scalars without their mean, then each degree by the root mean square of its components, times weights."""

    def __init__(self, lmax, channels):
        super().__init__()
        self.irreps = degrees(lmax)
        self.affine_weight = nn.Parameter(torch.ones(lmax + 1, channels))
        self.affine_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        outputs = []
        for columns, weight in zip(self.irreps.slices(), self.affine_weight, strict=True):
            part = x[..., columns]
            if not outputs:
                part = part - part.mean(1, keepdim=True)
            part = part / (part.square().mean((1, 2), keepdim=True) + 1e-5).sqrt() * weight[:, None]
            outputs.append(part if outputs else part + self.affine_bias[:, None])
        return torch.cat(outputs, -1)


class SelfInteraction(nn.Module):
    def __init__(self, channels, lmax):
        super().__init__()
        irreps = degrees(lmax)
        self.square = o3.TensorSquare(irreps, filter_ir_out=[ir for _, ir in irreps])
        both = irreps + self.square.irreps_out
        slices = both.slices()
        self.order = torch.cat([torch.arange(slices[n].start, slices[n].stop) for n in both.sort().inv])
        both = both.sort().irreps.simplify()
        self.scalars = both.count("0e")
        self.mlp = FullyConnectedNet(
            [channels * self.scalars, channels, channels * both.num_irreps], nn.functional.silu
        )
        self.gate = o3.ElementwiseTensorProduct(both, f"{both.num_irreps}x0e")
        self.linear = o3.Linear(both, irreps, f_in=channels, f_out=channels)
        self.norm = Norm(lmax, channels)

    def forward(self, x):
        y = torch.cat([x, self.square(x)], -1)[..., self.order]
        gates = self.mlp(y[..., : self.scalars].flatten(1)).reshape(*y.shape[:2], -1)
        return self.norm(x + self.linear(self.gate(y, gates)))


class Coarsen(nn.Module):
    def __init__(self, channels, lmax, window):
        super().__init__()
        self.kernel, self.stride = window
        self.first, self.second = torch.triu_indices(self.kernel, self.kernel, 1)
        self.score = nn.Linear(channels, 1, bias=False)
        self.linear = o3.Linear(degrees(lmax), degrees(lmax), f_in=self.kernel * channels, f_out=channels)
        self.directions = o3.Linear("1e", degrees(lmax), f_in=len(self.first), f_out=channels)
        self.norm = Norm(lmax, channels)

    def forward(self, x, positions):
        of_window = windows(len(x), self.kernel, self.stride)
        places = positions[of_window]
        arrows = places[:, self.first] - places[:, self.second]
        y = o3.spherical_harmonics("1e", arrows, normalize=True, normalization="component")
        features = self.linear(x[of_window].reshape(len(of_window), -1, x.shape[2])) + self.directions(y)
        weights = torch.softmax(self.score(x[..., 0])[of_window], 1)
        return self.norm(features), (weights * places).sum(1)


class Refine(nn.Module):
    def __init__(self, channels, lmax, window):
        super().__init__()
        self.kernel, self.stride = window
        self.linear = o3.Linear(degrees(lmax), degrees(lmax), f_in=channels, f_out=self.kernel * channels)
        self.arrows = o3.Linear(degrees(lmax), "1e", f_in=channels, f_out=self.kernel)

    def forward(self, x, positions):
        length = (len(x) - 1) * self.stride + self.kernel
        dst = windows(length, self.kernel, self.stride).reshape(-1)
        count = scatter(x.new_ones(len(dst), 1), dst, length)
        places = positions[:, None] + self.arrows(x)
        features = scatter(self.linear(x).reshape(len(dst), -1), dst, length) / count
        return features.reshape(length, *x.shape[1:]), scatter(places.reshape(-1, 3), dst, length) / count


class Ophiuchus(nn.Module):
    def __init__(self, types, atoms, channels, lmax, window, levels):
        super().__init__()
        self.embedding = nn.Embedding(types, channels)
        self.encode = o3.Linear("1e", degrees(lmax), f_in=atoms, f_out=channels)
        self.interact = nn.ModuleList([SelfInteraction(channels, lmax) for _ in range(2 * levels + 1)])
        self.coarsen = nn.ModuleList([Coarsen(channels, lmax, window) for _ in range(levels)])
        self.refine = nn.ModuleList([Refine(channels, lmax, window) for _ in range(levels)])
        self.classify = nn.Linear(channels, types)
        self.decode = o3.Linear(degrees(lmax), "1e", f_in=channels, f_out=atoms)
        self.levels = levels

    def forward(self, types, positions, atoms):
        x = self.encode(atoms)
        scalars = nn.functional.pad(self.embedding(types)[..., None], (0, x.shape[2] - 1))
        x = self.interact[0](x + scalars)
        for n in range(self.levels):
            x, positions = self.coarsen[n](x, positions)
            x = self.interact[1 + n](x)
        latent = x
        for n in range(self.levels):
            x, positions = self.refine[n](x, positions)
            x = self.interact[1 + self.levels + n](x)
        return self.classify(x[..., 0]), positions, self.decode(x), latent
