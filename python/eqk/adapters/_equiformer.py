"""What EquiformerV2, V3 and eSEN have in common: SO(2) layers, features of edges, logits of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqk.so2_edge_scalars import so2_edge_scalars


def so2_classes(name: str, cls: type[nn.Module], orders: str, of_order: type[nn.Module], mmax: int) -> dict[str, type]:
    """Classes of the modules of the SO(2) layer ``name``, whose layers of orders from 1 are its ``orders``."""
    classes = {name: cls, f"{name}.fc_m0": nn.Linear}
    for m in range(mmax):
        classes |= {f"{name}.{orders}.{m}": of_order, f"{name}.{orders}.{m}.fc": nn.Linear}
    return classes


def so2_parameters(layer: nn.Module, orders: str) -> list[Tensor]:
    """As :func:`eqk.so2_conv` takes them."""
    return [layer.fc_m0.weight, layer.fc_m0.bias, *(m.fc.weight for m in getattr(layer, orders))]


def edge_features(layer: nn.Module, edge_distance: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """What the radial function is a function of; ``source`` and ``target``: atomic numbers of the nodes of edges."""
    if not layer.use_atom_edge_embedding:
        return edge_distance
    return torch.cat([edge_distance, layer.source_embedding(source), layer.target_embedding(target)], 1)


def rescaled(radial: Tensor, lmax: int, mmax: int) -> Tensor:
    """[edges, (lmax + 1) channels] -> [edges, lmax + 1, channels], times the factors of rotations back."""
    factors = radial.new_tensor([max(1, (2 * l + 1) / (2 * mmax + 1)) ** 0.5 for l in range(lmax + 1)])
    return radial.unflatten(1, (lmax + 1, -1)) * factors[:, None]


def attention_features(
    layer: nn.Module,
    x: Tensor,
    q: Tensor,
    edge_index: Tensor,
    lmax: int,
    h: Tensor,
    last: nn.Linear,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """[edges, heads, alpha channels], of which logits are made: extra scalars of the first SO(2) layer, activated.

    ``h`` and ``last``: hidden features and last layer of the radial function; ``weight`` and ``bias``: of the scalars.
    """
    n = weight.shape[1]  # radial weights of order 0, which come first
    radial = {"h": h, "a": last.weight[:n].mT, "bias": last.bias[:n]}
    scalars = so2_edge_scalars(x, q, edge_index, weight, lmax, **radial) + bias
    return layer.alpha_act(layer.alpha_norm(scalars.unflatten(1, (layer.num_heads, layer.attn_alpha_channels))))
