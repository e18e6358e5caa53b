"""What NequIP loads where eqk is installed (entry point ``nequip.extension``): the model modifier ``enable_eqk``.

A module of its own, since NequIP counts its extensions as code to be packaged with a model, and eqk's ops are none. It
is loaded while nequip itself is half imported, so it imports no more of it than it must, and nothing of eqk.
"""

from nequip.nn.graph_model import GraphModel
from nequip.nn.model_modifier_utils import model_modifier


@model_modifier(persistent=False, private=False, supported_compile_modes=["aotinductor", "torchscript"])
@classmethod
def enable_eqk(cls, model):
    """NequIP's convolutions and Allegro's contracters as ops of eqk, for inference and training, on any device.

    Other products, which a compiler fuses or a matrix product does, stay; eqk.convert swaps them too. RuntimeError
    where there is no such layer, or where one cannot be fused.
    """
    import eqk

    layers = [module for module in model.modules() if type(module).__name__ in ("TensorProductScatter", "Contracter")]
    if not layers:
        raise RuntimeError("enable_eqk: expected a model with TensorProductScatter or Contracter, found none")
    for layer in layers:
        report = eqk.convert(layer)
        if not any(row.after.startswith("eqk.adapters.") for row in report.swapped):
            raise RuntimeError(f"enable_eqk: {report}")
    return model


# GraphModel is the root of every model, and NequIP finds modifiers as classmethods of a model's modules.
GraphModel.enable_eqk = enable_eqk
