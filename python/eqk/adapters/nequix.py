"""Nequix's layer (``nequix.torch_impl.model.NequixTorchConvolution``, nequix 0.4)."""

from __future__ import annotations

from nequix.torch_impl.model import NequixTorchConvolution
from torch import Tensor, nn

from eqk.adapters import become, require_fusable


class FusedConvolution(NequixTorchConvolution):
    """NequixTorchConvolution whose ``tp_conv``, which it calls where ``kernel`` is True, is its own ``tp``."""

    def tp_conv(self, messages: Tensor, sh: Tensor, weight: Tensor, receivers: Tensor, senders: Tensor) -> Tensor:
        return self.tp.convolution(messages, sh, weight, senders, receivers, messages.shape[0])


def fuse(module: nn.Module) -> str | None:
    if type(module) is not NequixTorchConvolution or module.kernel:
        return None
    require_fusable(module, module.tp)
    module.kernel = True
    return become(module, FusedConvolution)
