"""Published systems as short modules of eqk, one a file; in on_e3nn/ the same, with the same weights, of e3nn.

Each file has a function ``systems`` that says what its systems are made of; bench/gallery.py compares and times them.
"""

import importlib
from types import ModuleType

FILES = (
    "tensor_field_network",
    "point_convolution",
    "nequip",
    "nequix",
    "allegro",
    "mace",
    "equiformer",
    "equiformer_v2",
    "equiformer_v3",
    "phonon_fine_tuning",
    "phisnet",
    "symphony",
    "ophiuchus",
    "relaxed",
    "lie_groups",
    "lorentz",
    "point_cloud",
    "rotation_tools",
)


def load(file: str, on: str = "eqk") -> ModuleType:
    """The module of that name: ``on`` eqk or e3nn."""
    return importlib.import_module(f"{__name__}.{'' if on == 'eqk' else 'on_e3nn.'}{file}")
