"""The smooth cutoff of DimeNet."""

from __future__ import annotations

from torch import Tensor, nn


class PolynomialEnvelope(nn.Module):
    r"""A polynomial that is 1 at zero and 0 from the cutoff on, with two derivatives there that are 0 as well.

    Gasteiger et al. 2020 (DimeNet, arXiv:2003.03123, equation 8), with p = ``exponent``,

    .. math:: u(d) = 1 - \tfrac{(p+1)(p+2)}{2} d^p + p (p+2) d^{p+1} - \tfrac{p (p+1)}{2} d^{p+2}
                   = (1 - d)^3 \sum_{k=0}^{p-1} \tfrac{(k+1)(k+2)}{2} d^k.

    The second form is evaluated. None of its terms is negative, so that u is as accurate near the cutoff, where the
    first one is a small difference of large numbers and may be negative, as anywhere. fairchem-core's class of the same
    name, of EquiformerV3, eSEN and UMA.

    Args:
        exponent: p, from 1.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(self, exponent: int = 5) -> None:
        super().__init__()
        if not isinstance(exponent, int) or exponent < 1:
            raise ValueError(f"exponent: expected an integer from 1, got {exponent!r}")
        self.exponent = exponent

    def forward(self, d: Tensor) -> Tensor:
        """Distances over the cutoff, of any shape, not negative -> u, of that shape"""
        d = d.clamp(max=1)
        series, *rest = ((k + 1) * (k + 2) / 2 for k in reversed(range(self.exponent)))
        for coefficient in rest:
            series = series * d + coefficient
        return (1 - d) ** 3 * series

    def extra_repr(self) -> str:
        return f"exponent={self.exponent}"
