"""Linear layers and norms of node features [nodes, (lmax + 1)^2, channels], one degree after another.

Features are cut into their degrees by one ``split`` and joined by one ``cat``, whose gradients are each other, so that
nothing [nodes, components, channels] is made besides what a degree is multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eqk.irreps import MAX_DEGREE


class _ByDegree(nn.Module):
    def __init__(self, lmax: int, **channels: int) -> None:
        super().__init__()
        if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
            raise ValueError(f"lmax: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
        for name, number in channels.items():
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}: expected a positive number, got {number!r}")
            setattr(self, name, number)
        self.lmax = lmax

    def _check(self, x: Tensor, channels: int) -> None:
        components = (self.lmax + 1) ** 2
        if x.dim() != 3 or x.shape[1] != components or x.shape[2] != channels:
            raise RuntimeError(f"x: expected shape [nodes, {components}, {channels}], got {list(x.shape)}")
        if not x.is_floating_point():
            raise RuntimeError(f"x: expected a floating-point dtype, got {x.dtype}")

    def _split(self, x: Tensor) -> list[Tensor]:
        """[nodes, 2 l + 1, channels] of each degree"""
        return list(x.split([2 * l + 1 for l in range(self.lmax + 1)], 1))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # fairchem-core 1 and EquiformerV3 keep tables that follow from lmax.
        for name in ("expand_index", "balance_degree_weight"):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SO3Linear(_ByDegree):
    """A linear layer of the channels for each degree, with a bias of degree 0.

    fairchem-core's ``SO3_Linear`` (2.x) and ``SO3_LinearV2`` (1.x), whose checkpoints it loads: EquiformerV2's, eSEN's
    and UMA's. Weights are used as they are stored, one for each degree and not for each component.

    Args:
        in_features, out_features: numbers of channels.
        lmax: largest degree.

    Attributes:
        weight: [lmax + 1, out_features, in_features], uniform within 1 / sqrt(in_features) at the start.
        bias: [out_features], zero at the start.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(self, in_features: int, out_features: int, lmax: int) -> None:
        super().__init__(lmax, in_features=in_features, out_features=out_features)
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(lmax + 1, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """[nodes, (lmax + 1)^2, in_features] -> [nodes, (lmax + 1)^2, out_features]

        Raises:
            RuntimeError: naming x where its shape or dtype does not fit.
        """
        self._check(x, self.in_features)
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise RuntimeError(f"x: expected dtype {self.weight.dtype} as the weights have, got {x.dtype}")
        parts = zip(self._split(x), self.weight, strict=True)
        linear = nn.functional.linear
        return torch.cat([linear(p, w, None if l else self.bias) for l, (p, w) in enumerate(parts)], 1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, lmax={self.lmax}"


class _EquivariantNorm(_ByDegree):
    """Norms: 16-bit types compute in float32, under autocast too, and of x and parameters the wider dtype results."""

    def __init__(self, lmax: int, num_channels: int, eps: float, affine: bool, degrees: int, bias: bool) -> None:
        super().__init__(lmax, num_channels=num_channels)
        self.eps, self.affine = eps, affine
        self.register_parameter("affine_weight", nn.Parameter(torch.ones(degrees, num_channels)) if affine else None)
        self.register_parameter("affine_bias", nn.Parameter(torch.zeros(num_channels)) if affine and bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """[nodes, (lmax + 1)^2, num_channels] -> the same

        Raises:
            RuntimeError: naming x where its shape or dtype does not fit.
        """
        self._check(x, self.num_channels)
        dtype = x.dtype if self.affine_weight is None else torch.promote_types(x.dtype, self.affine_weight.dtype)
        parts = self._normalized(self._split(x.to(torch.promote_types(dtype, torch.float32))))
        return torch.cat(parts, 1).to(dtype)

    def _inverse_rms(self, parts: Sequence[Tensor], balanced: bool = True) -> Tensor:
        """[nodes, 1, 1]: of all components, each degree's as one ``balanced``, so with the weights 1 / (2 l + 1)."""
        if balanced:
            square = sum(part.square().mean((1, 2), keepdim=True) for part in parts) / len(parts)
        else:
            components = sum(part.shape[1] for part in parts)
            square = sum(part.square().mean(2).sum(1)[:, None, None] for part in parts) / components
        return (square + self.eps).rsqrt()

    def _scaled(self, parts: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
        if self.affine_weight is not None:
            scales = [scale * w.to(scale.dtype) for scale, w in zip(scales, self.affine_weight, strict=True)]
        scaled = [part * scale for part, scale in zip(parts, scales, strict=True)]
        if self.affine_bias is not None:
            scaled[0] = scaled[0] + self.affine_bias.to(scaled[0].dtype)
        return scaled

    def extra_repr(self) -> str:
        return f"lmax={self.lmax}, num_channels={self.num_channels}, eps={self.eps}, affine={self.affine}"


class EquivariantRMSNorm(_EquivariantNorm):
    """One root mean square for all degrees: UMA's and eSEN's ``rms_norm_sh``, EquiformerV3's ``merge_layer_norm``.

    With x_0 less its mean over channels, and the mean over the C channels of each node,

        out_lmc = x_lmc w_lc / sqrt(mean_c sum_lm b_l x_lmc^2 + eps) + (b_c if l = 0),  b_l = 1 / ((2 l + 1) (lmax + 1))

    This is ``EquivariantRMSNormArraySphericalHarmonicsV2`` of fairchem-core 1.x and 2.x and, but for the order of sums,
    ``EquivariantMergeLayerNorm`` of EquiformerV3, whose ``merge_rms_norm`` has ``centering`` off; with
    ``std_balance_degrees`` off too, ``EquivariantRMSNormArraySphericalHarmonics`` of fairchem-core; each with its
    ``normalization="component"``. Their checkpoints load as they are.

    16-bit types compute in float32, autocast changes nothing, and the result has the wider dtype of x and parameters.

    Args:
        lmax: largest degree.
        num_channels: C.
        eps: is added to the mean square.
        affine: whether there are parameters.
        centering: whether the mean of degree 0 is subtracted, and there is a bias.
        std_balance_degrees: whether degrees have equal weights, b_l as above; else components, b_l = 1 / (lmax + 1)^2.

    Attributes:
        affine_weight: [lmax + 1, C], ones at the start.
        affine_bias: [C], zeros.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        lmax: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        centering: bool = True,
        std_balance_degrees: bool = True,
    ) -> None:
        super().__init__(lmax, num_channels, eps, affine, lmax + 1, centering)
        self.centering, self.std_balance_degrees = centering, std_balance_degrees

    def _normalized(self, parts: list[Tensor]) -> list[Tensor]:
        if self.centering:
            parts[0] = parts[0] - parts[0].mean(2, keepdim=True)
        return self._scaled(parts, [self._inverse_rms(parts, self.std_balance_degrees)] * len(parts))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, centering={self.centering}, std_balance_degrees={self.std_balance_degrees}"


class EquivariantLayerNorm(_EquivariantNorm):
    """A root mean square for each degree: ``layer_norm`` of EquiformerV2 and UMA, EquiformerV3's of this name.

    With x_0 less its mean over channels, out_lmc = x_lmc w_lc / sqrt(mean_cm x_lmc^2 + eps) + (b_c if l = 0):
    ``EquivariantLayerNormArray`` of fairchem-core with ``normalization="component"``, whose checkpoints load as they
    are.

    Dtypes as of :class:`EquivariantRMSNorm`.

    Args:
        lmax, num_channels, eps, affine: as there.

    Attributes:
        affine_weight: [lmax + 1, C], ones at the start.
        affine_bias: [C], zeros.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(self, lmax: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(lmax, num_channels, eps, affine, lmax + 1, True)

    def _normalized(self, parts: list[Tensor]) -> list[Tensor]:
        parts[0] = parts[0] - parts[0].mean(2, keepdim=True)
        return self._scaled(parts, [self._inverse_rms([part]) for part in parts])


class EquivariantSeparableLayerNorm(_EquivariantNorm):
    """torch's LayerNorm of degree 0 and one root mean square for all others: EquiformerV2's ``layer_norm_sh``.

    For l > 0, out_lmc = x_lmc w_lc / sqrt(mean_c sum_lm b_l x_lmc^2 + eps) with b_l = 1 / ((2 l + 1) lmax):
    ``EquivariantLayerNormArraySphericalHarmonics`` of fairchem-core and the class of this name of EquiformerV3 (its
    ``sep_layer_norm``), with ``normalization="component"``. Their checkpoints load as they are.

    Dtypes as of :class:`EquivariantRMSNorm`.

    Args:
        lmax, num_channels, eps, affine: as there.
        std_balance_degrees: whether degrees have equal weights, b_l as above; else components,
            b_l = 1 / ((lmax + 1)^2 - 1).

    Attributes:
        norm_l0: LayerNorm of degree 0.
        affine_weight: [lmax, C], ones at the start.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self, lmax: int, num_channels: int, eps: float = 1e-5, affine: bool = True, std_balance_degrees: bool = True
    ) -> None:
        super().__init__(lmax, num_channels, eps, affine, lmax, False)
        self.std_balance_degrees = std_balance_degrees
        self.norm_l0 = nn.LayerNorm(num_channels, eps, affine)

    def _normalized(self, parts: list[Tensor]) -> list[Tensor]:
        scalars, *others = parts
        weight, bias = (t if t is None else t.to(scalars.dtype) for t in (self.norm_l0.weight, self.norm_l0.bias))
        scalars = nn.functional.layer_norm(scalars, [self.num_channels], weight, bias, self.eps)
        if not others:
            return [scalars]
        scale = self._inverse_rms(others, self.std_balance_degrees)
        return [scalars, *self._scaled(others, [scale] * len(others))]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, std_balance_degrees={self.std_balance_degrees}"
