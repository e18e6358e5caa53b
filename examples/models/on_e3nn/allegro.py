"""As nequip-allegro 0.8.3 has it in ``Allegro_Module``, ``Contracter``, ``MakeWeightedChannels`` and
``TwoBodySphericalHarmonicTensorEmbed``, without odd irreps of even degree and with weights of paths and channels.

The last step of the contraction is the einsum of release 0.7, a product of matrices: 0.8's tensor of all products
[edges, channels, i, j, k] is meant for torch.compile."""

import torch
from e3nn import o3
from torch import nn

from .nequip import ScalarMLPFunction


class MakeWeightedChannels(nn.Module):
    def __init__(self, irreps, channels):
        super().__init__()
        self.irreps, self.channels = irreps, channels
        self.weight_numel = channels * len(irreps)
        repeat = torch.zeros(len(irreps), irreps.dim)
        for i, columns in enumerate(irreps.slices()):
            repeat[i, columns] = 1.0
        self.register_buffer("repeat", repeat)

    def forward(self, sh, weights):
        """[edges, dim], [edges, channels * irreps] -> [edges, channels, dim]"""
        weights = weights.reshape(-1, len(self.irreps)) @ self.repeat
        return sh.unsqueeze(1) * weights.view(len(sh), self.channels, self.irreps.dim)


class Contracter(nn.Module):
    def __init__(self, irreps_in1, irreps_in2, irreps_out, channels):
        super().__init__()
        paths = []
        for out, (_, ir) in zip(irreps_out.slices(), irreps_out, strict=True):
            for in1, (_, ir1) in zip(irreps_in1.slices(), irreps_in1, strict=True):
                for in2, (_, ir2) in zip(irreps_in2.slices(), irreps_in2, strict=True):
                    if ir in ir1 * ir2:
                        path = torch.zeros(irreps_in1.dim, irreps_in2.dim, irreps_out.dim)
                        path[in1, in2, out] = o3.wigner_3j(ir1.l, ir2.l, ir.l) * ir.dim**0.5
                        paths.append(path)
        self.register_buffer("w3j", torch.stack(paths))
        self.weights = nn.Parameter(torch.empty(channels, len(paths)).uniform_(-(3**0.5), 3**0.5))

    def forward(self, x1, x2, idxs):
        """x1 [edges, channels, dim1], x2 [nodes, channels, dim2] -> [edges, channels, dim_out]"""
        ww3j = torch.einsum("up,pijk->uijk", self.weights, self.w3j)
        outer = x1.unsqueeze(-1) * x2[idxs].unsqueeze(-2)
        return torch.einsum("zuij,uijk->zuk", outer, ww3j)


class Allegro(nn.Module):
    def __init__(self, irreps_sh, radial, scalars, channels, layers, width, neighbours):
        super().__init__()
        irreps = o3.Irreps(irreps_sh)
        self.scalars = scalars
        self.norm_const = 1 / neighbours**0.5
        self.env_weighter = MakeWeightedChannels(irreps, channels)
        weights = self.env_weighter.weight_numel
        self.two_body = ScalarMLPFunction([*radial, scalars])
        self.embedding = ScalarMLPFunction([scalars, weights])
        self.projection = ScalarMLPFunction([scalars, scalars + weights])
        self.tps, self.latents = nn.ModuleList(), nn.ModuleList()
        for n in range(layers):
            last = n == layers - 1
            self.tps.append(Contracter(irreps, irreps, o3.Irreps("0e") if last else irreps, channels))
            inputs = scalars * (n + 1) + channels
            self.latents.append(ScalarMLPFunction([inputs, width, scalars if last else scalars + weights]))

    def forward(self, radial, sh, graph):
        two_body = self.two_body(radial)
        features = self.env_weighter(sh, self.embedding(two_body))
        projected = self.projection(two_body)
        accumulated, weights = [projected[:, : self.scalars]], projected[:, self.scalars :]
        for tp, latent in zip(self.tps, self.latents, strict=True):
            weighted = self.env_weighter(sh, weights)
            of_nodes = weighted.new_zeros(graph.num_dst, *weighted.shape[1:]).index_add(0, graph.dst, weighted)
            features = tp(features, self.norm_const * of_nodes, graph.dst)
            latents = latent(torch.cat([*accumulated, features[:, :, 0]], dim=-1))
            accumulated.append(latents[:, : self.scalars])
            weights = latents[:, self.scalars :]
        return torch.cat(accumulated, dim=-1)
