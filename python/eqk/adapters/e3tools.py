"""e3tools' convolutions (``e3tools.nn.Conv`` and ``SeparableConv``, e3tools 0.1.3)."""

from __future__ import annotations

from e3tools.nn._conv import Conv, SeparableConv
from e3tools.nn._tensor_product import SeparableTensorProduct
from torch import Tensor, nn

from eqk.adapters import become, require_fusable


class FusedConv(Conv):
    """Conv without its messages: same state dict, operands and result. ``apply_per_edge`` is Conv's.

    The pointwise linear of a SeparableTensorProduct comes after the mean: once a node, not once an edge.
    """

    def forward(self, node_attr: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_sh: Tensor) -> Tensor:
        separable = isinstance(self.tp, SeparableTensorProduct)
        product = self.tp.dtp if separable else self.tp
        src, dst = edge_index
        nodes = node_attr.shape[0]
        total = product.convolution(node_attr, edge_sh, self.radial_nn(edge_attr), src, dst, nodes)
        degree = total.new_zeros(nodes).index_add(0, dst, total.new_ones(dst.shape[0]))
        mean = total / degree.clamp(min=1).unsqueeze(-1)
        return self.tp.lin(mean) if separable else mean


def fuse(module: nn.Module) -> str | None:
    if type(module) not in (Conv, SeparableConv):
        return None
    if "apply_per_edge" in vars(module):
        raise ValueError("an apply_per_edge of its own")
    if type(module.tp) is SeparableTensorProduct:
        if module.tp.lin.bias_numel:
            raise ValueError("its linear has a bias")
        require_fusable(module, module.tp.dtp, module.tp)
    else:
        require_fusable(module, module.tp)
    return become(module, FusedConv)
