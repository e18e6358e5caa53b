"""Modules with e3nn's names, signatures, parameters and state-dict keys, on eqk's kernels. Needs no e3nn.

SymmetricContraction is MACE's.
"""

from eqk._library import wigner_3j
from eqk.irreps import Irrep, Irreps
from eqk.o3._linear import Linear
from eqk.o3._s2grid import FromS2Grid, ToS2Grid
from eqk.o3._spherical_harmonics import SphericalHarmonics, spherical_harmonics
from eqk.o3._symmetric_contraction import SymmetricContraction
from eqk.o3._tensor_product import (
    ElementwiseTensorProduct,
    FullTensorProduct,
    FullyConnectedTensorProduct,
    Instruction,
    TensorProduct,
    TensorSquare,
)

__all__ = [
    "ElementwiseTensorProduct",
    "FromS2Grid",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Instruction",
    "Irrep",
    "Irreps",
    "Linear",
    "SphericalHarmonics",
    "SymmetricContraction",
    "TensorProduct",
    "TensorSquare",
    "ToS2Grid",
    "spherical_harmonics",
    "wigner_3j",
]
