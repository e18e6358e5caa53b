import torch
from e3nn import o3
from torch import nn

from . import depthwise, scatter


class NormNonlinearity(nn.Module):
    """Of irreps that begin with their scalars."""

    def __init__(self, irreps):
        super().__init__()
        self.scalars = irreps[0].mul
        assert irreps[0].ir == o3.Irrep("0e")
        assert irreps.count("0e") == self.scalars
        self.bias = nn.Parameter(torch.zeros(irreps.num_irreps))
        self.norm = o3.Norm(irreps, squared=True)
        self.times = o3.ElementwiseTensorProduct(irreps, f"{irreps.num_irreps}x0e")

    def forward(self, x):
        scalars = nn.functional.silu(x[:, : self.scalars] + self.bias[: self.scalars])
        gates = torch.sigmoid((self.norm(x) + 1e-12).sqrt() + self.bias)
        return torch.cat([scalars, self.times(x, gates)[:, self.scalars :]], 1)


class Layer(nn.Module):
    def __init__(self, irreps_in, irreps_sh, irreps_out, radial, neighbours):
        super().__init__()
        irreps_in, irreps_sh, irreps_out = map(o3.Irreps, (irreps_in, irreps_sh, irreps_out))
        middle, paths = depthwise(irreps_in, irreps_sh, irreps_out)
        self.product = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False)
        self.radial = nn.Sequential(
            nn.Linear(radial, radial), nn.ReLU(), nn.Linear(radial, self.product.weight_numel, bias=False)
        )
        self.self_interaction = o3.Linear(irreps_in, irreps_out)
        self.channels = o3.Linear(middle, irreps_out)
        self.nonlinearity = NormNonlinearity(irreps_out)
        self.neighbours = neighbours

    def forward(self, x, sh, radial, graph):
        messages = self.product(x[graph.src], sh, self.radial(radial))
        summed = scatter(messages, graph.dst, len(x)) / self.neighbours**0.5
        return self.nonlinearity(self.channels(summed) + self.self_interaction(x))
