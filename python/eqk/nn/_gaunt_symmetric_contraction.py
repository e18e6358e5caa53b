"""MACE's product basis by powers of a signal on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqk.irreps import Irreps, IrrepsLike, irreps_argument
from eqk.s2_activation import dispatched_s2_activation
from eqk.s2_activation_plan import POWERS, S2ActivationPlan
from eqk.s2_quadrature import cached_grid, exact_resolution, grid_factors

# Of f^n in Hermite polynomials He_j(f), with the norms j! of these: the covariance of f^n at two points of a normal
# field of variance 1 is the sum of them times the j-th powers of the covariance of f.
_COVARIANCES = {1: {1: 1}, 2: {0: 1, 2: 2}, 3: {1: 9, 3: 6}, 4: {0: 9, 2: 72, 4: 24}}


def variances(lmax: int, degrees: list[int], power: int, lmax_out: int) -> list[float]:
    """Second moment of the components, by degree to lmax_out, of the power of a signal on the sphere.

    The signal has independent normal components of mean 0 in ``degrees``, the same variance of each degree on the
    sphere and 1 in all. Its covariance is the mean of their Legendre polynomials (the addition theorem), and the
    integral of that of its power times such a polynomial the variance of a component.
    """
    grid = cached_grid(*exact_resolution(power * lmax + lmax_out), "gausslegendre")
    z, weights = grid.betas.cos(), grid.weights * len(grid.alphas)  # those of all angles together
    legendre = [torch.ones_like(z), z]
    for l in range(2, max(lmax, lmax_out) + 1):
        legendre.append(((2 * l - 1) * z * legendre[-1] - (l - 1) * legendre[-2]) / l)
    rho = torch.stack([legendre[l] for l in degrees]).mean(0)
    covariance = sum(factor * rho**j for j, factor in _COVARIANCES[power].items())
    return [float((weights * covariance * legendre[l]).sum()) for l in range(lmax_out + 1)]


class GauntSymmetricContraction(nn.Module):
    """Powers of a signal on the sphere in the place of MACE's contraction with Clebsch-Gordan coefficients.

    With f the signal of a channel, whose components are its irreps, and P_l what degree l of a signal is,

        out_l = sum over n of w_n,l P_l[f^n],   n = 1 to correlation

    with weights for each species and channel (Xie et al. 2025, arXiv:2506.13523; MACE, Batatia et al. 2022,
    arXiv:2206.07697). One transform to a grid and one back for each power, on a grid that is exact for it: equivariant
    to rounding, and far fewer weights than of :class:`eqk.o3.SymmetricContraction`, whose outputs with the right
    weights these are: one for each power, degree and channel. It needs no table of paths, whose number grows fast with
    degree and correlation; up to degree 4 that contraction is the faster one on a CPU all the same.

    Args:
        irreps_in: of natural parity (-1)^l, each degree once, of one multiplicity, the channels.
        irreps_out: its irreps, natural and each once, up to correlation times the largest degree of irreps_in; their
            multiplicities do not count.
        correlation: largest power, 1 to 4.
        num_elements: number of species.

    Each term has components of second moment 1 for independent normal ones of x, in closed form; weights are drawn such
    that their sum has too.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(self, irreps_in: IrrepsLike, irreps_out: IrrepsLike, correlation: int, num_elements: int) -> None:
        super().__init__()
        self.irreps_in = irreps_argument("irreps_in", irreps_in)
        irreps_out = irreps_argument("irreps_out", irreps_out)
        for name, irreps in (("irreps_in", self.irreps_in), ("irreps_out", irreps_out)):
            natural = all(ir.p == (-1) ** ir.l for _, ir in irreps)
            if not irreps or not natural or len({ir.l for _, ir in irreps}) < len(irreps):
                raise ValueError(f"{name}: expected irreps of parity (-1)^l, each degree once, got {irreps}")
        muls = {mul for mul, _ in self.irreps_in}
        if len(muls) > 1:
            raise ValueError(f"irreps_in: expected one multiplicity in all irreps, got {self.irreps_in}")
        if not isinstance(correlation, int) or not 1 <= correlation <= max(POWERS.values()):
            raise ValueError(f"correlation: expected 1 to {max(POWERS.values())}, got {correlation!r}")
        if not isinstance(num_elements, int) or num_elements < 1:
            raise ValueError(f"num_elements: expected a positive number, got {num_elements!r}")
        self.channels, self.correlation, self.num_elements = muls.pop(), correlation, num_elements
        self.irreps_out = Irreps([(self.channels, ir) for _, ir in irreps_out])
        degrees, lmax, lmax_out = [ir.l for _, ir in self.irreps_in], self.irreps_in.lmax, irreps_out.lmax
        if lmax_out > correlation * lmax:
            raise ValueError(f"irreps_out: expected degrees up to {correlation * lmax}, got {irreps_out}")
        self.weights = nn.Parameter(
            torch.randn(correlation, num_elements, len(irreps_out), self.channels) / correlation**0.5
        )
        # Of the columns of x, among all components to lmax.
        places = self._places(self.irreps_in)
        self.register_buffer("_columns", None if places is None else torch.tensor(places), persistent=False)
        self._plans = []
        scale_in = grid_factors(lmax, "component", len(degrees) - 1, False).tolist()
        names = {power: name for name, power in POWERS.items()}
        for power in range(1, correlation + 1):
            res = exact_resolution(power * lmax + lmax_out)
            scale_out = [v**-0.5 if v > 1e-9 else 0.0 for v in variances(lmax, degrees, power, lmax_out)]
            args = lmax, lmax_out, self.channels, names[power], res, "gausslegendre", 1.0, tuple(scale_in)
            self._plans.append(str(S2ActivationPlan(*args, tuple(scale_out))))

    @staticmethod
    def _places(irreps: Irreps) -> list[int] | None:
        """Of components, one degree after another as the irreps come, among all; None if they are all, in order."""
        places = [n for _, ir in irreps for n in range(ir.l**2, (ir.l + 1) ** 2)]
        return None if places == list(range((irreps.lmax + 1) ** 2)) else places

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [nodes, channels, dim_in], y [nodes, num_elements] one-hot, or a mixture -> [nodes, channels * dim_out]."""
        dim = sum(ir.dim for _, ir in self.irreps_in)
        if x.dim() != 3 or x.shape[1] != self.channels or x.shape[2] != dim:
            raise RuntimeError(f"x: expected shape [nodes, {self.channels}, {dim}], got {list(x.shape)}")
        nodes = x.shape[0]
        if y.dim() != 2 or y.shape[0] != nodes or y.shape[1] != self.num_elements:
            raise RuntimeError(f"y: expected shape [{nodes}, {self.num_elements}], got {list(y.shape)}")
        signal = x.mT
        if self._columns is not None:
            whole = x.new_zeros(nodes, (self.irreps_in.lmax + 1) ** 2, self.channels)
            signal = whole.index_copy(1, self._columns, signal)
        signal = signal.flatten(1)
        weights = torch.einsum("ne,peic->pnic", y.to(x.dtype), self.weights.to(x.dtype))
        out: list[Tensor | None] = [None] * len(self.irreps_out)
        for plan, of_power in zip(self._plans, weights, strict=True):
            z = dispatched_s2_activation(signal, plan).unflatten(1, (-1, self.channels))
            for n, (_, ir) in enumerate(self.irreps_out):
                term = z[:, ir.l**2 : (ir.l + 1) ** 2] * of_power[:, None, n]
                out[n] = term if out[n] is None else out[n] + term
        return torch.cat([t.mT.flatten(1) for t in out], 1)

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, correlation={self.correlation}, {self.num_elements} species"
