"""SevenNet's convolution (``sevenn.nn.convolution.IrrepsConvolution``, sevenn 0.11 to 0.13)."""

from __future__ import annotations

import sevenn._keys as KEY
import torch
from sevenn._const import AtomGraphDataType
from sevenn.nn.convolution import IrrepsConvolution
from torch import nn

from eqk.adapters import become, require_fusable


class FusedConvolution(IrrepsConvolution):
    """IrrepsConvolution without its messages: same state dict, same data in and out."""

    def forward(self, data: AtomGraphDataType) -> AtomGraphDataType:
        assert self.convolution is not None, "Convolution is not instantiated"
        assert self.weight_nn is not None, "Weight_nn is not instantiated"
        weight = self.weight_nn(data[self.key_weight_input])
        x = data[self.key_x]
        if self.is_parallel:
            x = torch.cat([x, data[KEY.NODE_FEATURE_GHOST]])
        edges = data[self.key_edge_idx]
        x = self.convolution.convolution(x, data[self.key_filter], weight, edges[1], edges[0], x.shape[0])
        x = x.div(self.denominator)
        if self.is_parallel:
            x = torch.tensor_split(x, data[KEY.NLOCAL])[0]
        data[self.key_x] = x
        return data


def fuse(module: nn.Module) -> str | None:
    if type(module) is not IrrepsConvolution:
        return None
    require_fusable(module, module.convolution)
    return become(module, FusedConvolution)
