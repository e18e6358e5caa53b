"""MACE's interaction blocks (``mace.modules.blocks.InteractionBlock``, mace-torch 0.3.11 to 0.3.16)."""

from __future__ import annotations

from mace.modules.blocks import InteractionBlock
from torch import Tensor, nn

from eqk import o3
from eqk.adapters import become, require_fusable


class ConvolutionProduct(o3.TensorProduct):
    """``conv_tp`` as a block calls it where it has ``conv_fusion``: the sum over edges, not the messages."""

    def forward(self, node_feats: Tensor, edge_attrs: Tensor, tp_weights: Tensor, edge_index: Tensor) -> Tensor:
        return self.convolution(node_feats, edge_attrs, tp_weights, edge_index[0], edge_index[1], node_feats.shape[0])


def fuse(module: nn.Module) -> str | None:
    if isinstance(module, InteractionBlock):
        return _fuse_interaction(module)
    return None


def _fuse_interaction(block: InteractionBlock) -> str | None:
    if type(block.conv_tp) is ConvolutionProduct:
        return None
    require_fusable(block, block.conv_tp)
    # Blocks of earlier versions always gather.
    if "conv_fusion" not in type(block).forward.__code__.co_consts:
        raise ValueError(f"{type(block).__name__}.forward does not ask for conv_fusion")
    become(block.conv_tp, ConvolutionProduct)
    block.conv_fusion = True
    return f"{type(block).__name__} with eqk.adapters.mace.ConvolutionProduct"
