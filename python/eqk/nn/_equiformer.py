"""Activations of signals on the sphere as the Equiformers have them: components [rows, components, channels]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqk import dispatch
from eqk._signals import ORDERS, component_index, count
from eqk.irreps import MAX_DEGREE
from eqk.s2_activation import s2_activation
from eqk.s2_quadrature import Resolution, cached_tables, checked_resolution, exact_resolution, exactness
from eqk.s2grid import from_tables, to_tables


@dispatch._constant_when_traced
@cached_tables
def _degrees(lmax: int, mmax: int, order: str, device: torch.device) -> Tensor:
    """[components]: the degree of each."""
    return torch.tensor([math.isqrt(n) for n in component_index(lmax, mmax, order)], device=device)


class _OnComponents(nn.Module):
    """What all of these are told of their components."""

    def __init__(self, lmax: int, mmax: int | None, order: str) -> None:
        super().__init__()
        if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
            raise ValueError(f"lmax: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
        mmax = lmax if mmax is None else mmax
        if not isinstance(mmax, int) or not 0 <= mmax <= lmax:
            raise ValueError(f"mmax: expected an order from 0 to {lmax}, got {mmax!r}")
        if order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
        self.lmax, self.mmax, self.order = lmax, mmax, order

    def _check(self, x: Tensor, scalars: Tensor | None = None, per_channel: int = 1, channels: int = 1) -> None:
        """x [rows, components, channels k] and scalars [rows, per_channel k]."""
        components = count(self.lmax, self.mmax)
        if x.dim() != 3 or x.shape[1] != components or x.shape[2] % channels:
            of = f"a multiple of {channels}" if channels > 1 else "channels"
            raise RuntimeError(f"x: expected shape [rows, {components}, {of}], got {list(x.shape)}")
        if scalars is not None:
            width = x.shape[2] // channels * per_channel
            rows = x.shape[0]
            if scalars.dim() != 2 or scalars.shape[0] != rows or scalars.shape[1] != width:
                raise RuntimeError(f"scalars: expected shape [{rows}, {width}], got {list(scalars.shape)}")

    def extra_repr(self) -> str:
        return f"lmax={self.lmax}, mmax={self.mmax}, {self.order}"


class _OnGrid(_OnComponents):
    """Those on a grid; its resolution is exact for products of ``fields`` signals by default."""

    def __init__(
        self,
        lmax: int,
        mmax: int | None,
        order: str,
        res: Resolution | None,
        quadrature: str,
        normalization: str,
        rescale: bool,
        fields: int,
    ) -> None:
        super().__init__(lmax, mmax, order)
        if res is None:
            res = exact_resolution((fields + 1) * lmax, quadrature)[0], (fields + 1) * self.mmax + 1
        self.res = checked_resolution(res, quadrature)
        self._options = {"res": self.res, "quadrature": quadrature, "normalization": normalization, "rescale": rescale}

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"{super().extra_repr()}, {options}, {exactness(self.res, self._options['quadrature'])}"


class SeparableS2Activation(_OnGrid):
    """SiLU of scalars and, for all other degrees, of the values of a signal on a grid.

    EquiformerV2 (Liao et al. 2023, arXiv:2306.12059, section 4.2): the component of degree 0 of the result is the
    function of ``scalars`` instead of that of the signal.

    Args:
        lmax, mmax, order: of the components, as for :func:`eqk.s2_activation`.
        res, quadrature, normalization, rescale: as there; the defaults are EquiformerV2's, with its 18 x 18 grid.
        function: that of scalars and of the signal, one of those of :func:`eqk.s2_activation`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        lmax: int,
        mmax: int | None = None,
        order: str = "l_primary",
        res: Resolution = (18, 18),
        quadrature: str = "soft",
        normalization: str = "component",
        rescale: bool = True,
        function: str = "silu",
    ) -> None:
        super().__init__(lmax, mmax, order, res, quadrature, normalization, rescale, 1)
        self.function = function

    def forward(self, scalars: Tensor, x: Tensor) -> Tensor:
        """[rows, channels], [rows, components, channels] -> [rows, components, channels]"""
        self._check(x, scalars)
        y = s2_activation(x, self.function, self.lmax, mmax=self.mmax, order=self.order, **self._options)
        # Degree 0 comes first in both orders. A signal of one degree on one ring is that function of each value.
        unit = s2_activation(
            scalars[:, None], self.function, 0, res=1, quadrature="gausslegendre", normalization="component"
        )
        return torch.cat([unit, y[:, 1:]], 1)


class SwiGLUS2Activation(_OnGrid):
    """Products of pairs of signals with gates, exactly equivariant: EquiformerV3's.

    With u, v the first and the second half of the channels of x and s, t, g the thirds of ``scalars``:

        out = gate(g) A[(S u)(S v)],   and SiLU(s) t more in its component of degree 0

    with S and A the maps to the grid and from it and the sigmoid for the gate. No function but a product is on the
    grid, so that one which is exact for 3 lmax makes no error of aliasing at all; ``res`` is the smallest by default,
    3 lmax // 2 + 1 rings of 3 mmax + 1 angles, half as many as of e3nn's rings.

    Args:
        lmax, mmax, order: of the components, as for :func:`eqk.s2_activation`.
        res, quadrature, normalization, rescale: as there. EquiformerV3 has ``"soft"`` and ``"component"``.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        lmax: int,
        mmax: int | None = None,
        order: str = "l_primary",
        res: Resolution | None = None,
        quadrature: str = "gausslegendre",
        normalization: str = "component",
        rescale: bool = False,
    ) -> None:
        super().__init__(lmax, mmax, order, res, quadrature, normalization, rescale, 2)

    def forward(self, scalars: Tensor, x: Tensor) -> Tensor:
        """[rows, 3 channels], [rows, components, 2 channels] -> [rows, components, channels]"""
        self._check(x, scalars, 3, 2)
        u, v = x.chunk(2, 2)
        s, t, gate = scalars.chunk(3, 1)
        y = s2_activation(u, "identity", self.lmax, times=[v], mmax=self.mmax, order=self.order, **self._options)
        y = y * gate.sigmoid()[:, None]
        y[:, 0] += nn.functional.silu(s) * t  # no other copy of y
        return y


class GateActivation(_OnComponents):
    """SiLU of the component of degree 0, and a sigmoid gate for each other degree and channel: eSEN's and UMA's.

    Args:
        lmax, mmax, order: of the components, as for :func:`eqk.s2_activation`.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(self, lmax: int, mmax: int | None = None, order: str = "l_primary") -> None:
        super().__init__(lmax, mmax, order)

    def forward(self, gates: Tensor, x: Tensor) -> Tensor:
        """[rows, lmax channels], by degree from 1, [rows, components, channels] -> [rows, components, channels]"""
        self._check(x, gates, self.lmax)
        gates = gates.unflatten(1, (self.lmax, x.shape[2])) if self.lmax else x[:, :0]
        factors = torch.cat([x[:, :1], gates], 1).sigmoid()  # SiLU is its argument times the sigmoid of it
        return x * factors.index_select(1, _degrees(self.lmax, self.mmax, self.order, x.device))


class S2GridMLP(_OnGrid):
    """A pointwise module on the values of all channels of signals: the feed-forward layers of the Equiformers.

    The values are in memory, as the matrix products of ``layers`` want them; to them and back by rings and angles.
    Equivariant but for what aliases (:func:`eqk.s2_activation`).

    Args:
        layers: a module [..., channels] -> [..., channels_out], such as linear layers with SiLU between them.
        lmax: of the signals.
        res, quadrature, normalization: as for :func:`eqk.s2_activation`; the defaults are EquiformerV2's.
        lmax_out: largest degree of the result; lmax if None.

    Raises:
        ValueError: naming the argument that does not fit.
        TypeError: if layers is no module or function.
    """

    def __init__(
        self,
        layers: Callable[[Tensor], Tensor],
        lmax: int,
        res: Resolution = (18, 18),
        quadrature: str = "soft",
        normalization: str = "component",
        lmax_out: int | None = None,
    ) -> None:
        super().__init__(lmax, None, "l_primary", res, quadrature, normalization, False, 1)
        if not callable(layers):
            raise TypeError(f"layers: expected a module, got {layers!r}")
        self.layers = layers
        self.lmax_out = lmax if lmax_out is None else lmax_out
        if not isinstance(self.lmax_out, int) or not 0 <= self.lmax_out <= MAX_DEGREE:
            raise ValueError(f"lmax_out: expected a degree from 0 to {MAX_DEGREE}, got {lmax_out!r}")
        from_tables(self.lmax_out, self.res, quadrature, normalization, lmax, torch.float64, "cpu")  # raises

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """[rows, components, channels], and what else ``layers`` takes -> [rows, components out, channels out]"""
        self._check(x)
        options = self.res, self._options["quadrature"], self._options["normalization"]
        to_rings, to_angles = to_tables(self.lmax, *options, x.dtype, x.device)
        f = torch.einsum("mbi,zic->zbmc", to_rings, x)
        f = self.layers(torch.einsum("am,zbmc->zbac", to_angles, f), *args)
        from_rings, from_angles = from_tables(self.lmax_out, *options, self.lmax, f.dtype, f.device)
        return torch.einsum("mbi,zbmc->zic", from_rings, torch.einsum("am,zbac->zbmc", from_angles, f))
