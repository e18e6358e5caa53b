"""As mace-torch 0.3.16 has it in ``RealAgnosticResidualInteractionBlock`` and ``EquivariantProductBasisBlock``, with
the coefficients of ``U_matrix_real`` and the contractions of ``SymmetricContraction``; and powers on e3nn's grid."""

import math

import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from numpy.polynomial import Legendre
from torch import nn

from . import depthwise, scatter


def generalized_clebsch_gordan(irreps, order):
    """All chains of ``order`` couplings: [(irrep, [irrep.dim, irreps.dim, ..., irreps.dim])], sorted by irrep."""
    dim, slices = irreps.dim, irreps.slices()
    if order == 1:
        return [(ir, torch.eye(dim)[columns]) for columns, (_, ir) in zip(slices, irreps, strict=True)]
    chains = []
    for ir_left, left in generalized_clebsch_gordan(irreps, order - 1):
        for columns, (_, ir_right) in zip(slices, irreps, strict=True):
            for ir in ir_left * ir_right:
                symbol = o3.wigner_3j(ir.l, ir_left.l, ir_right.l) * ir.dim**0.5
                chain = torch.zeros(ir.dim, *[dim] * order)
                chain[..., columns] = torch.einsum("kaj,a...->k...j", symbol, left)
                chains.append((ir, chain))
    return sorted(chains, key=lambda chain: chain[0])


class Contraction(nn.Module):
    """To one irrep: Horner's scheme in x, the weighted coefficients of the largest degree first."""

    def __init__(self, irreps_in, ir_out, correlation, channels, num_elements):
        super().__init__()
        self.correlation = correlation
        self.weights = nn.ParameterList()
        for degree in range(correlation, 0, -1):
            chains = generalized_clebsch_gordan(irreps_in, degree)
            u = torch.stack([chain for ir, chain in chains if ir == ir_out], dim=-1)
            self.register_buffer(f"u_{degree}", u)
            weight = nn.Parameter(torch.randn(num_elements, u.shape[-1], channels) / u.shape[-1])
            if degree == correlation:
                self.weights_max = weight
            else:
                self.weights.append(weight)

    def forward(self, x, y):
        out = torch.einsum("...ik,ekc,bci,be->bc...", self.get_buffer(f"u_{self.correlation}"), self.weights_max, x, y)
        for n, weight in enumerate(self.weights):
            u = self.get_buffer(f"u_{self.correlation - 1 - n}")
            out = out + torch.einsum("...k,ekc,be->bc...", u, weight, y)
            out = torch.einsum("bc...i,bci->bc...", out, x)
        return out.flatten(1)


class SymmetricContraction(nn.Module):
    def __init__(self, irreps_in, irreps_out, correlation, num_elements):
        super().__init__()
        channels, single = irreps_in[0].mul, o3.Irreps([(1, ir) for _, ir in irreps_in])
        self.contractions = nn.ModuleList(
            [Contraction(single, ir, correlation, channels, num_elements) for _, ir in irreps_out]
        )

    def forward(self, x, y):
        return torch.cat([contraction(x, y) for contraction in self.contractions], dim=1)


class GauntSymmetricContraction(nn.Module):
    """Degrees of powers of a signal that e3nn makes of variance 1, each normalized to variance 1.

    For normal components the signal's values at two points have the mean product rho, the mean of the Legendre
    polynomials P_l of the cosine between the points; its squares and cubes have 1 + 2 rho^2 and 9 rho + 6 rho^3. The
    coefficient of P_l in these, times 4 pi / (2 l + 1), is the second moment of the components of degree l.
    """

    def __init__(self, irreps_in, irreps_out, correlation, num_elements):
        super().__init__()
        lmax, self.irreps_out = irreps_in.lmax, irreps_out
        size = correlation * lmax + irreps_out.lmax + 1  # of a grid that is exact for the largest power
        res = (size + size % 2, size + 1 - size % 2)
        self.to_grid = o3.ToS2Grid(lmax, res, normalization="component")
        self.from_grid = o3.FromS2Grid(res, irreps_out.lmax, normalization="integral")
        rho = Legendre([1 / (lmax + 1)] * (lmax + 1))
        products = [rho, 1 + 2 * rho**2, 9 * rho + 6 * rho**3][:correlation]
        self.moments = [[4 * math.pi * c.coef[ir.l] / (2 * ir.l + 1) for _, ir in irreps_out] for c in products]
        self.weights = nn.Parameter(torch.randn(correlation, num_elements, len(irreps_out), irreps_in[0].mul))

    def forward(self, x, y):
        signal, out = self.to_grid(x), [0] * len(self.irreps_out)
        for power, (moments, weights) in enumerate(zip(self.moments, self.weights, strict=True), 1):
            z = self.from_grid(signal**power)
            weights = torch.einsum("ne,eic->inc", y, weights)
            for i, (_, ir) in enumerate(self.irreps_out):
                part = z[..., ir.l**2 : (ir.l + 1) ** 2] / moments[i] ** 0.5
                out[i] = out[i] + weights[i].unsqueeze(-1) * part
        return torch.cat([part.flatten(1) for part in out], dim=1)


class Layer(nn.Module):
    def __init__(self, irreps_in, irreps_sh, irreps_out, channels, species, radial, neighbours, product):
        super().__init__()
        irreps_in, irreps_sh, irreps_out = map(o3.Irreps, (irreps_in, irreps_sh, irreps_out))
        features = o3.Irreps([(channels, ir) for _, ir in irreps_sh])
        middle, paths = depthwise(irreps_in, irreps_sh, features)
        paths = sorted(paths, key=lambda path: path[2])
        self.linear_up = o3.Linear(irreps_in, irreps_in)
        self.conv_tp = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False)
        self.conv_tp_weights = FullyConnectedNet([*radial, self.conv_tp.weight_numel], nn.functional.silu)
        self.linear = o3.Linear(middle, features)
        self.skip_tp = o3.FullyConnectedTensorProduct(irreps_in, f"{species}x0e", irreps_out)
        products = {"Clebsch-Gordan": SymmetricContraction, "Gaunt": GauntSymmetricContraction}
        self.symmetric_contractions = products[product](features, irreps_out, 3, species)
        self.linear_out = o3.Linear(irreps_out, irreps_out)
        self.features, self.species, self.neighbours = features, species, neighbours

    def forward(self, x, species, sh, radial, graph):
        node_attrs = nn.functional.one_hot(species, self.species).to(x.dtype)
        sc = self.skip_tp(x, node_attrs)
        messages = self.conv_tp(self.linear_up(x)[graph.src], sh, self.conv_tp_weights(radial))
        message = self.linear(scatter(messages, graph.dst, len(x))) / self.neighbours
        parts = [
            message[:, columns].reshape(len(x), mul, ir.dim)
            for columns, (mul, ir) in zip(self.features.slices(), self.features, strict=True)
        ]
        return self.linear_out(self.symmetric_contractions(torch.cat(parts, dim=2), node_attrs)) + sc
