"""Layers of other frameworks whose gather, product and sum over edges become one op, one file for each framework.

Each file has ``fuse(module)``: None if the module is none of the framework's layers; else it makes the layer, whose
tensor product is eqk's already, call :meth:`eqk.o3.TensorProduct.convolution`, in place, and returns the name of what
it became; or raises ValueError with the reason why it cannot. A file is imported only where its framework has been.
"""

from __future__ import annotations

import importlib
import sys

from torch import nn

from eqk import o3

# What a model that has such layers has imported -> the file here.
_ADAPTERS = {
    "e3tools.nn._conv": "e3tools",
    "fairchem.core.models.equiformer_v2.activation": "equiformer_v2",
    "fairchem.core.models.esen.esen": "esen",
    "fairchem.core.models.uma.escn_md": "uma",
    "allegro.nn._strided._contract": "allegro",
    "mace.modules.blocks": "mace",
    "nequip.nn._tp_scatter_base": "nequip",
    "nequix.torch_impl.model": "nequix",
    "sevenn.nn.convolution": "sevennet",
}
# Of code that is no package, or is in one of any name: the folder of its modules -> the file here.
_FOLDERS = {"equiformer_v3": "equiformer_v3"}

# Of each file here, but those whose names begin with _: the distribution whose layers it knows and the version that
# `make test-models` tests.
TESTED = {
    "sevennet": ("sevenn", "0.13.0"),
    "nequip": ("nequip", "0.19.1"),
    "allegro": ("nequip-allegro", "0.8.3"),
    "uma": ("fairchem-core", "2.24.0"),
    "esen": ("fairchem-core", "1.10.0"),
    "equiformer_v2": ("fairchem-core", "1.10.0"),
    "equiformer_v3": ("equiformer-v3", "0.0.3"),
    "mace": ("mace-torch", "0.3.16"),
    "nequix": ("nequix", "0.4.5"),
    "e3tools": ("e3tools", "0.1.3"),
}


def fuse(module: nn.Module) -> str | None:
    """What ``module`` became, None if it is no layer that anything here knows. Raises ValueError with a reason."""
    path = type(module).__module__.split(".")
    adapters = [a for name, a in _ADAPTERS.items() if name in sys.modules and name.partition(".")[0] == path[0]]
    adapters += [a for folder, a in _FOLDERS.items() if folder in path[-2:-1]]
    found = (_fuse(adapter, module) for adapter in adapters)
    return next((after for after in found if after is not None), None)


def _fuse(adapter: str, module: nn.Module) -> str | None:
    try:
        return importlib.import_module(f"eqk.adapters.{adapter}").fuse(module)
    except (ImportError, AttributeError) as error:
        package = type(module).__module__.partition(".")[0]
        raise ValueError(f"a version of {package} that eqk does not know: {error}") from error


def require_fusable(layer: nn.Module, product: nn.Module, *between: nn.Module) -> None:
    """Raises ValueError, with the reason, where ``product.convolution`` does not do what ``layer`` does with it.

    ``between``: other modules of the layer that would not be called any more, as the product would not.
    """
    if not isinstance(product, o3.TensorProduct):
        raise ValueError(f"its product is no eqk.o3.TensorProduct but {type(product).__name__}")
    if type(product).forward is not o3.TensorProduct.forward:
        raise ValueError("its product has a forward of its own")
    require_plain(layer, product, *between)


def require_plain(layer: nn.Module, *inside: nn.Module) -> None:
    """Raises ValueError, with the reason, where modules ``inside`` a layer, or it, do more than their classes say."""
    if any("forward" in vars(module) for module in (layer, *inside)):
        raise ValueError("a forward of its own, or of a module in it")
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = [type(module).__name__ for module in inside if any(getattr(module, kind) for kind in hooks)]
    if hooked:
        raise ValueError(f"{hooked[0]} in it, which would not be called, has hooks")


def require_classes(layer: nn.Module, classes: dict[str, type[nn.Module]]) -> None:
    """Raises ValueError, with the reason, where a module in ``layer`` is not of the class that its name has here."""
    for name, cls in classes.items():
        child = layer.get_submodule(name)
        if type(child) is not cls:
            raise ValueError(f"{name} is a {type(child).__name__} instead of {cls.__name__}")


def become(module: nn.Module, cls: type[nn.Module]) -> str:
    """Makes ``module`` a ``cls``, in place, and returns the name of that for the report."""
    module.__class__ = cls
    return f"{cls.__module__}.{cls.__name__}"
