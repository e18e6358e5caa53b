import numpy as np
import torch
from e3nn import o3
from torch import nn


class PositionDistribution(nn.Module):
    """As in Symphony's TargetPositionPredictor and log_coeffs_to_logits, with harmonics at the points of a grid."""

    def __init__(self, irreps_in, species, lmax, channels, radii, range_of_radii, res):
        super().__init__()
        irreps_in = o3.Irreps(irreps_in)
        self.channels, self.degrees = channels, list(range(lmax + 1))
        self.embedding = nn.Embedding(species, irreps_in.num_irreps)
        self.product = o3.ElementwiseTensorProduct(irreps_in, f"{irreps_in.num_irreps}x0e")
        harmonics = o3.Irreps.spherical_harmonics(lmax)
        self.linear = o3.Linear(irreps_in, o3.Irreps([(radii * channels, ir) for _, ir in harmonics]))
        self.register_buffer("radii", torch.linspace(*range_of_radii, radii))
        cosines, weights = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(res[0]))
        alphas = torch.arange(res[1], dtype=torch.float64) * (2 * np.pi / res[1])
        alpha, beta = torch.meshgrid(alphas, cosines.acos(), indexing="ij")
        points = o3.angles_to_xyz(alpha, beta).flatten(0, 1)
        y = o3.spherical_harmonics(self.degrees, points, normalize=True, normalization="integral")
        dtype = torch.get_default_dtype()
        self.register_buffer("y", y.to(dtype))
        self.register_buffer("weights", (2 * np.pi / res[1] * weights).repeat(res[1]).to(dtype))

    def forward(self, x, species, target):
        x = self.linear(self.product(x, self.embedding(species)))
        parts = [
            x[:, columns].reshape(len(x), len(self.radii), self.channels, ir.dim)
            for columns, (_, ir) in zip(self.linear.irreps_out.slices(), self.linear.irreps_out, strict=True)
        ]
        coefficients = torch.cat(parts, 3)
        logits = torch.logsumexp(coefficients @ self.y.T, 2)
        largest = logits.detach().amax((1, 2), keepdim=True)
        mass = ((logits - largest).exp() * self.weights).sum(2)
        total = mass.sum(1, keepdim=True)
        nearest = (target.norm(dim=1, keepdim=True) - self.radii).abs().argmin(1)
        y = o3.spherical_harmonics(self.degrees, target, normalize=True, normalization="integral")
        of_target = torch.einsum("gci,gi->gc", coefficients[torch.arange(len(x)), nearest], y)
        density = torch.logsumexp(of_target, 1) - largest[:, 0, 0] - total[:, 0].log()
        return coefficients, (mass / total).log(), density
