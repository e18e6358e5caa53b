"""MACE's interaction blocks and symmetric contraction (``mace.modules``, mace-torch 0.3.13 to 0.3.16)."""

import dataclasses

import torch
from mace.modules.blocks import InteractionBlock
from mace.modules.symmetric_contraction import SymmetricContraction
from torch import Tensor, nn

from eqk import o3
from eqk.adapters import become, require_fusable, require_plain
from eqk.o3._symmetric_contraction import contract, use_buffers, varies
from eqk.tensor_product import tensor_product

torch.fx.wrap("contract")  # a leaf of symbolic traces


class ConvolutionProduct(o3.TensorProduct):
    """``conv_tp`` as a block calls it where it has ``conv_fusion``: the sum over edges, not the messages."""

    def forward(self, node_feats: Tensor, edge_attrs: Tensor, tp_weights: Tensor, edge_index: Tensor) -> Tensor:
        return self.convolution(node_feats, edge_attrs, tp_weights, edge_index[0], edge_index[1], node_feats.shape[0])


class SpeciesProduct(o3.FullyConnectedTensorProduct):
    """``skip_tp``, whose y [atoms, species] is one-hot: on the CPU it leaves out the species that no atom has.

    Their columns of y are zero, so nothing of them is in the product or its derivatives but that by y, which is not
    asked for where y is a constant.
    """

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        if weight is None and not torch.jit.is_scripting() and self._may_look_at(y):
            return self._of_present_species(x, y)
        return self._product(x, y, weight)

    @torch.jit.unused
    def _may_look_at(self, y: Tensor) -> bool:
        # What is traced or mapped must not depend on the data, and a GPU would be waited for.
        if torch.compiler.is_compiling() or type(y) is not Tensor:
            return False
        return y.is_cpu and y.dim() == 2 and not varies(y)

    @torch.jit.unused
    def _of_present_species(self, x: Tensor, y: Tensor) -> Tensor:
        present = y.any(0).nonzero().flatten()
        weights = [view.index_select(1, present).flatten() for view in self.weight_views()]
        plan = dataclasses.replace(self.plan, irreps_in2=[(len(present), (0, 1))])
        return tensor_product(x, y.index_select(1, present), torch.cat(weights), plan)


class FusedSymmetricContraction(SymmetricContraction):
    """SymmetricContraction as one op on the CPU: same parameters, buffers and state dict."""

    _plan_text: str

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            here = x.is_cpu
        else:  # MACE traces it symbolically before torch.compile: no branch may depend on a proxy
            here = isinstance(x, torch.fx.Proxy) or x.is_cpu
        if not here:  # where there is no kernel, MACE's own einsums are faster than couplings one by one
            outs: list[Tensor] = []
            for contraction in self.contractions:
                outs.append(contraction(x, y))
            return torch.cat(outs, dim=-1)
        weights: list[Tensor] = []
        for contraction in self.contractions:
            weights.append(contraction.weights_max)
            for w in contraction.weights:
                weights.append(w)
        return contract(x, y, weights, self._plan_text)


def fuse(module: nn.Module) -> str | None:
    if isinstance(module, InteractionBlock):
        return _fuse_interaction(module)
    return _fuse_symmetric_contraction(module)


def _fuse_interaction(block: InteractionBlock) -> str | None:
    if type(block.conv_tp) is ConvolutionProduct:
        return None
    require_fusable(block, block.conv_tp)
    # Blocks of earlier versions always gather.
    if "conv_fusion" not in type(block).forward.__code__.co_consts:
        raise ValueError(f"{type(block).__name__}.forward does not ask for conv_fusion")
    parts = [become(block.conv_tp, ConvolutionProduct)]
    block.conv_fusion = True
    skip = getattr(block, "skip_tp", None)
    is_product = type(skip) is o3.FullyConnectedTensorProduct and skip.internal_weights
    if is_product and [ir.l for _, ir in skip.irreps_in2] == [0]:
        parts.append(become(skip, SpeciesProduct))
    return f"{type(block).__name__} with {', '.join(parts)}"


def _fuse_symmetric_contraction(module: nn.Module) -> str | None:
    if type(module) is not SymmetricContraction:
        return None
    require_plain(module, *module.contractions)
    if not module.internal_weights:
        raise ValueError("weights from outside")
    use_buffers(module)
    module.register_load_state_dict_post_hook(use_buffers)
    return become(module, FusedSymmetricContraction)
