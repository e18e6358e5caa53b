"""What NequIP loads where eqk is installed (entry point ``nequip.extension``): the model modifier ``enable_eqk``.

A module of its own, since NequIP counts its extensions as code to be packaged with a model, and eqk's ops are none. It
is loaded while nequip itself is half imported, so it imports no more of it than it must, and nothing of eqk.
"""

from nequip.nn.graph_model import GraphModel
from nequip.nn.model_modifier_utils import model_modifier


@model_modifier(persistent=False, private=False, supported_compile_modes=["aotinductor", "torchscript"])
@classmethod
def enable_eqk(cls, model):
    """:func:`eqk.convert`, for inference and training, on any device. RuntimeError where it finds no layer to fuse."""
    import eqk

    report = eqk.convert(model)
    if not any(row.after.startswith("eqk.adapters.") for row in report.swapped):
        raise RuntimeError(f"enable_eqk: {report}")
    return report.model


# GraphModel is the root of every model, and NequIP finds modifiers as classmethods of a model's modules.
GraphModel.enable_eqk = enable_eqk
