"""Symphony's distribution of positions (Daigavane et al. 2023, arXiv:2311.16199), and a picture of it.

Where an atom of a given species goes, seen from the focus: on each of some spheres a density exp(f) / Z, with f the
logarithm of a sum over channels of exponentials of signals on the sphere, whose coefficients are a linear map of the
features of the focus. Integrals are sums over rings of Gauss and Legendre, exact to rounding where the grid resolves
exp(f).

    cd examples && python -m models.symphony    # writes symphony.png
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import eqk
from eqk import o3

from .system import System, random_features


class PositionDistribution(nn.Module):
    """Features of the focus of each graph and species to put there -> distributions on spheres about it."""

    def __init__(
        self,
        irreps_in: str,
        species: int,
        lmax: int,
        channels: int,
        radii: int,
        range_of_radii: tuple[float, float],
        res: tuple[int, int],
    ) -> None:
        super().__init__()
        irreps_in = o3.Irreps(irreps_in)
        self.lmax, self.shape, self.res = lmax, (radii, channels), res
        self.embedding = nn.Embedding(species, irreps_in.num_irreps)
        self.product = o3.ElementwiseTensorProduct(irreps_in, f"{irreps_in.num_irreps}x0e")
        harmonics = o3.Irreps.spherical_harmonics(lmax)
        self.linear = o3.Linear(irreps_in, [(radii * channels, ir) for _, ir in harmonics])
        grid = eqk.s2_grid(res)
        self.register_buffer("radii", torch.linspace(*range_of_radii, radii))
        self.register_buffer("weights", grid.weights)
        self.register_buffer("points", grid.positions)

    def coefficients(self, x: Tensor, species: Tensor) -> Tensor:
        """x [graphs, irreps_in], species [graphs] -> [graphs, radii, channels, (lmax + 1)^2]."""
        x = self.linear(self.product(x, self.embedding(species)))
        return torch.cat([x[:, part].unflatten(1, (*self.shape, -1)) for part in self.linear.irreps_out.slices()], -1)

    def log_mass(self, coefficients: Tensor) -> Tensor:
        """[graphs, radii]: logarithms of the integrals of exp(f) over each sphere."""
        values = eqk.to_s2grid(coefficients, self.res)
        top = values.detach().amax((2, 3, 4), keepdim=True)
        return ((values - top).exp().sum((2, 4)) @ self.weights).log() + top[:, :, 0, 0, 0]

    def log_probabilities(self, coefficients: Tensor) -> Tensor:
        """[graphs, radii, res_beta, res_alpha]: of each radius and point of the grid, which sum to one."""
        logits = eqk.to_s2grid(coefficients, self.res).logsumexp(2) + self.weights.log()[:, None]
        return logits.flatten(1).log_softmax(1).view_as(logits)

    def sample(self, x: Tensor, species: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[graphs, 3]: a position relative to the focus, one of the grid's."""
        p = self.log_probabilities(self.coefficients(x, species)).exp().flatten(1)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
        points = self.points.flatten(0, 1)
        return self.radii[drawn // len(points), None] * points[drawn % len(points)]

    def forward(self, x: Tensor, species: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [graphs, irreps_in], species [graphs], target [graphs, 3].

        Returns coefficients [graphs, radii, channels, (lmax + 1)^2], logarithms of the probabilities of radii
        [graphs, radii], and of the density at the target on the sphere of the nearest radius [graphs].
        """
        coefficients = self.coefficients(x, species)
        log_mass = self.log_mass(coefficients)
        nearest = (target.norm(dim=1, keepdim=True) - self.radii).abs().argmin(1)
        y = eqk.spherical_harmonics(range(self.lmax + 1), target, normalize=True, normalization="integral")
        logits = torch.einsum("gci,gi->gc", coefficients[torch.arange(len(x)), nearest], y).logsumexp(1)
        return coefficients, log_mass.log_softmax(1), logits - log_mass.logsumexp(1)


def draw(module: PositionDistribution, x: Tensor, species: Tensor, file: str | Path) -> None:
    """The density of the first graph on the spheres of the most probable radii, as a picture."""
    with torch.no_grad():
        p = module.log_probabilities(module.coefficients(x[:1], species[:1]))[0].exp()
    of_radii = p.sum((1, 2))
    shown = of_radii.topk(min(4, len(of_radii))).indices.sort().values
    density = eqk.from_s2grid(p[shown] / module.weights[:, None], 2 * module.lmax)
    titles = [f"r = {module.radii[n]:.2f}, p = {of_radii[n]:.2f}" for n in shown]
    eqk.plot_signal(density, file, titles=titles)


def systems(small: bool) -> list[System]:
    mul, graphs, lmax, channels, radii, res = (3, 3, 2, 2, 4, (40, 79)) if small else (64, 2, 5, 5, 64, (60, 119))
    irreps_in, species = "+".join(f"{mul}x{l}{'eo'[l % 2]}" for l in range(lmax + 1)), 5

    def inputs(generator: torch.Generator) -> dict:
        return {
            "x": random_features(irreps_in, graphs, generator),
            "species": torch.arange(graphs) % species,
            "target": random_features("1o", graphs, generator),
        }

    return [
        System(
            title="Symphony, distribution of positions",
            source="Daigavane et al. 2023, arXiv:2311.16199",
            module=PositionDistribution,
            arguments={
                "irreps_in": irreps_in,
                "species": species,
                "lmax": lmax,
                "channels": channels,
                "radii": radii,
                "range_of_radii": (0.9, 2.0),
                "res": res,
            },
            inputs=inputs,
            turn={"x": irreps_in, "target": "1o"},
            out=(str(o3.Irreps.spherical_harmonics(lmax)), None, None),
        )
    ]


def main() -> None:
    generator = torch.manual_seed(0)
    (system,) = systems(small=False)
    module, inputs = system.module(**system.arguments), system.inputs(generator)
    draw(module, inputs["x"].float(), inputs["species"], "symphony.png")


if __name__ == "__main__":
    main()
