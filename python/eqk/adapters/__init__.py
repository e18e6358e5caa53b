"""Layers of other frameworks that become one op, one file for each framework.

Gather, product and sum over edges become :meth:`eqk.o3.TensorProduct.convolution` (the layer's product is eqk's
already), MACE's symmetric contraction :func:`eqk.symmetric_contraction`. Each file has ``fuse(module)``: None if the
module is none of the framework's layers; else it changes the layer in place and returns the name of what it became; or
raises ValueError with the reason why it cannot. A file is imported only where its framework has been.
"""

from __future__ import annotations

import importlib
import sys

from torch import nn

# What a model that has such layers has imported -> the file here.
_ADAPTERS = {"sevenn.nn.convolution": "sevennet", "mace.modules.symmetric_contraction": "mace"}


def fuse(module: nn.Module) -> str | None:
    """What ``module`` became, None if it is no layer that anything here knows. Raises ValueError with a reason."""
    for framework, adapter in _ADAPTERS.items():
        if framework not in sys.modules or not type(module).__module__.startswith(framework.split(".")[0]):
            continue
        try:
            after = importlib.import_module(f"eqk.adapters.{adapter}").fuse(module)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"a version of {framework.split('.')[0]} that eqk does not know: {error}") from error
        if after is not None:
            return after
    return None
