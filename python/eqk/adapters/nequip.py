"""NequIP's convolution (``nequip.nn._tp_scatter_base.TensorProductScatter``, nequip 0.19).

The modifier ``enable_eqk`` of NequIP's own commands is in ``eqk_nequip``.
"""

from __future__ import annotations

from nequip.nn._tp_scatter_base import TensorProductScatter
from torch import Tensor, nn

from eqk.adapters import become, require_fusable


class FusedTensorProductScatter(TensorProductScatter):
    """TensorProductScatter without its messages: same state dict, same operands and result."""

    # What a process must import before it loads a model that nequip-compile has made.
    _nequip_custom_ops_libs = ("eqk",)

    def forward(self, x: Tensor, edge_attr: Tensor, edge_weight: Tensor, edge_dst: Tensor, edge_src: Tensor) -> Tensor:
        # Under autocast some of them come in a 16-bit type.
        dtype = self.model_dtype
        x, edge_attr, edge_weight = x.to(dtype), edge_attr.to(dtype), edge_weight.to(dtype)
        return self.tp.convolution(x, edge_attr, edge_weight, edge_src, edge_dst, x.size(0))


def fuse(module: nn.Module) -> str | None:
    if type(module) is not TensorProductScatter:
        return None
    require_fusable(module, module.tp)
    return become(module, FusedTensorProductScatter)
