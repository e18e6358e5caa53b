"""As nequip 0.19 has it in its ``ConvNetLayer``, ``InteractionBlock``, ``TensorProductScatter`` and
``ScalarMLPFunction``, with a global number of neighbours, the self-connection, and no sum with the input at the end."""

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import nn

from . import depthwise, scatter


class ScalarLinearLayer(nn.Module):
    def __init__(self, inputs, outputs, alpha):
        super().__init__()
        self.alpha = alpha
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-(3**0.5), 3**0.5))

    def forward(self, x):
        return x @ (self.alpha * self.weight)


class ScalarMLPFunction(nn.Module):
    """Weights of variance 1, scaled by the gain of ReLU except in the first layer."""

    def __init__(self, sizes):
        super().__init__()
        self.layers = len(sizes) - 1
        for n in range(self.layers):
            alpha = (2**0.5 if n else 1.0) / sizes[n] ** 0.5
            self.add_module(f"layer{n}", ScalarLinearLayer(sizes[n], sizes[n + 1], alpha))

    def forward(self, x):
        for n in range(self.layers):
            x = self.get_submodule(f"layer{n}")(x)
            if n < self.layers - 1:
                x = nn.functional.silu(x)
        return x


class ConvNetLayer(nn.Module):
    def __init__(self, irreps_in, irreps_sh, hidden, species, radial, neighbours):
        super().__init__()
        irreps_in, irreps_sh, hidden = map(o3.Irreps, (irreps_in, irreps_sh, hidden))
        scalars = o3.Irreps([(mul, ir) for mul, ir in hidden if ir.l == 0])
        gated = o3.Irreps([(mul, ir) for mul, ir in hidden if ir.l > 0])
        gates = o3.Irreps([(mul, "0e") for mul, _ in gated])
        silu = nn.functional.silu
        self.gate = Gate(scalars, [silu] * len(scalars), gates, [silu] * len(gates), gated)
        irreps_out = self.gate.irreps_in.simplify()

        middle, paths = depthwise(irreps_in, irreps_sh, irreps_out)

        self.linear_1 = o3.Linear(irreps_in, irreps_in)
        self.tp = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False, internal_weights=False)
        self.edge_mlp = ScalarMLPFunction([*radial, self.tp.weight_numel])
        self.linear_2 = o3.Linear(middle.simplify(), irreps_out)
        self.sc = o3.FullyConnectedTensorProduct(irreps_in, f"{species}x0e", irreps_out)
        self.species = species
        self.norm_const = 1 / neighbours**0.5

    def forward(self, x, species, sh, radial, graph):
        sc = self.sc(x, nn.functional.one_hot(species, self.species).to(x.dtype))
        x = self.norm_const * self.linear_1(x)
        messages = self.tp(x[graph.src], sh, self.edge_mlp(radial))
        x = scatter(messages, graph.dst, len(x))
        return self.gate(self.linear_2(x) + sc)
