"""MACE's symmetric contraction (``mace.modules.symmetric_contraction.SymmetricContraction``, mace-torch 0.3)."""

import torch
from mace.modules.symmetric_contraction import SymmetricContraction
from torch import Tensor, nn

from eqk.o3._symmetric_contraction import contract, plan_of


class FusedSymmetricContraction(SymmetricContraction):
    """SymmetricContraction as one op on the CPU: same parameters, buffers and state dict."""

    _plan_text: str

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not x.is_cpu:  # where there is no kernel, MACE's own einsums are faster than couplings one by one
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


def _use_buffers(module: nn.Module, incompatible_keys) -> None:
    module._plan_text = str(plan_of(module))


def fuse_symmetric_contraction(module: nn.Module) -> str | None:
    if type(module) is not SymmetricContraction:
        return None
    parts = (module, *module.contractions)
    if any("forward" in vars(m) for m in parts):
        raise ValueError("a forward of its own, or of one of its contractions")
    if any(c._forward_hooks or c._forward_pre_hooks or c._backward_hooks or c._backward_pre_hooks for c in parts[1:]):
        raise ValueError("its contractions, which would not be called, have hooks")
    if not module.internal_weights:
        raise ValueError("weights from outside")
    module._plan_text = str(plan_of(module))
    module.register_load_state_dict_post_hook(_use_buffers)
    module.__class__ = FusedSymmetricContraction
    return "eqk.adapters.mace.FusedSymmetricContraction"


def fuse(module: nn.Module) -> str | None:
    return fuse_symmetric_contraction(module)
