"""SevenNet's convolution (``sevenn.nn.convolution.IrrepsConvolution``, sevenn 0.11 to 0.13)."""

from __future__ import annotations

import sevenn._keys as KEY
import torch
from sevenn._const import AtomGraphDataType
from sevenn.nn.convolution import IrrepsConvolution
from torch import nn

from eqk import o3


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
    if not isinstance(module.convolution, o3.TensorProduct):
        raise ValueError(f"its product is no eqk.o3.TensorProduct but {type(module.convolution).__name__}")
    product = module.convolution
    if any("forward" in vars(m) for m in (module, product)) or type(product).forward is not o3.TensorProduct.forward:
        raise ValueError("a forward of its own, or of its product's")
    if product._forward_hooks or product._forward_pre_hooks or product._backward_hooks or product._backward_pre_hooks:
        raise ValueError("its product, which would not be called, has hooks")
    module.__class__ = FusedConvolution
    return "eqk.adapters.sevennet.FusedConvolution"
