"""As nequix 0.4.5 has it in ``nequix.torch_impl``, with the norm and without OpenEquivariance's kernel."""

import itertools

import numpy as np
import scipy.special
import torch
from e3nn import o3
from torch import nn

from . import scatter


def normalized(activation):
    z = torch.from_numpy(np.sqrt(2) * scipy.special.erfinv(np.linspace(-1.0, 1.0, 1_000_003)[1:-1]))
    second_moment = (activation(z) ** 2).mean().item()
    return lambda x: activation(x) / second_moment**0.5


class RMSLayerNorm(nn.Module):
    def __init__(self, irreps):
        super().__init__()
        self.irreps = irreps
        self.eps = 1e-12
        self.affine_weight = nn.ParameterList([nn.Parameter(torch.ones(mul)) for mul, _ in irreps])

    def forward(self, x):
        chunks, norms = [], []
        for (mul, ir), columns in zip(self.irreps, self.irreps.slices(), strict=True):
            chunk = x[:, columns].reshape(-1, mul, ir.dim)
            chunks.append(chunk)
            norm = (chunk**2 / (ir.dim * len(self.irreps))).sum(dim=-2, keepdim=True)
            norms.append(norm.mean(dim=-1, keepdim=True))
        norm = (torch.cat(norms, dim=-1).sum(dim=-1, keepdim=True) + self.eps) ** -0.5
        out = [chunk * w[:, None] * norm for chunk, w in zip(chunks, self.affine_weight, strict=True)]
        return torch.cat([chunk.flatten(1) for chunk in out], dim=-1)


class Gate(nn.Module):
    """The last scalars are those that higher irreps are multiplied by."""

    def __init__(self, irreps):
        super().__init__()
        scalars, vectors = irreps.filter(keep=["0e"]), irreps.filter(drop=["0e"])
        self.sizes = [scalars.dim - vectors.num_irreps, vectors.num_irreps, vectors.dim]
        self.activation = normalized(nn.functional.silu)
        self.product = o3.ElementwiseTensorProduct(f"{vectors.num_irreps}x0e", vectors)

    def forward(self, x):
        scalars, gates, vectors = x.split(self.sizes, dim=-1)
        return torch.cat([self.activation(scalars), self.product(self.activation(gates), vectors)], dim=-1)


class NequixConvolution(nn.Module):
    def __init__(self, irreps_in, irreps_sh, irreps_out, radial, neighbours):
        super().__init__()
        irreps_in, irreps_sh, irreps_out = map(o3.Irreps, (irreps_in, irreps_sh, irreps_out))
        self.neighbours = neighbours
        self.linear_1 = o3.Linear(irreps_in.regroup(), irreps_in.regroup())

        middle, paths = [], []
        for i, (mul, ir_in) in enumerate(irreps_in):
            for j, (_, ir_sh) in enumerate(irreps_sh):
                for ir in ir_in * ir_sh:
                    if ir in irreps_out or ir == o3.Irrep("0e"):
                        paths.append((i, j, len(middle), "uvu", True))
                        middle.append((mul, ir))
        # Instructions are sorted, the irreps are not: the output is, after the sum.
        middle = o3.Irreps(middle)
        middle_sorted, _, order = middle.sort()
        self.columns = [middle.slices()[n] for n in order]
        paths = [paths[n] for n in order]
        self.tp = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False, internal_weights=False)

        self.radial_mlp = nn.ParameterList()
        for n, (inputs, outputs) in enumerate(itertools.pairwise([*radial, self.tp.weight_numel])):
            init_scale = 4.0 if n < len(radial) - 1 else 1.0
            self.radial_mlp.append(torch.randn(inputs, outputs) * (init_scale / inputs) ** 0.5)
        gates = irreps_out.num_irreps - irreps_out.count("0e")
        irreps_out = (irreps_out + o3.Irreps(f"{gates}x0e")).regroup()
        self.linear_2 = o3.Linear(middle_sorted.regroup(), irreps_out)
        self.skip = o3.Linear(irreps_in.regroup(), irreps_out)
        self.layer_norm = RMSLayerNorm(irreps_out)
        self.gate = Gate(irreps_out)

    def forward(self, x, sh, radial, graph):
        *hidden, last = self.radial_mlp
        for weights in hidden:
            radial = nn.functional.silu(radial @ weights)
        messages = self.tp(self.linear_1(x)[graph.src], sh, radial @ last)
        summed = scatter(messages, graph.dst, len(x)) / self.neighbours**0.5
        summed = torch.cat([summed[:, columns] for columns in self.columns], dim=-1)
        return self.gate(self.layer_norm(self.linear_2(summed) + self.skip(x)))
