"""What NequIP loads where eqk is installed (entry point ``nequip.extension``): the model modifier ``enable_eqk``.

A module of its own, since NequIP counts its extensions as code to be packaged with a model, and eqk's ops are none.
"""

from nequip.nn import model_modifier
from nequip.nn._tp_scatter_base import TensorProductScatter


@model_modifier(persistent=False, private=False, supported_compile_modes=["aotinductor", "torchscript"])
@classmethod
def enable_eqk(cls, model):
    """Gather, tensor product and sum over edges as one op of eqk, differentiable to any order, on any device."""
    from nequip.nn import replace_submodules

    import eqk

    return replace_submodules(model, cls, lambda layer: eqk.convert(layer).model)


TensorProductScatter.enable_eqk = enable_eqk
