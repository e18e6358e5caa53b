"""Modules on signals on the sphere, on eqk's ops."""

from eqk.nn._equiformer import GateActivation, S2GridMLP, SeparableS2Activation, SwiGLUS2Activation
from eqk.nn._gaunt import GauntTensorProduct
from eqk.nn._gaunt_symmetric_contraction import GauntSymmetricContraction
from eqk.nn._s2_activation import S2Activation
from eqk.nn._so3_activation import SO3Activation

__all__ = [
    "GateActivation",
    "GauntSymmetricContraction",
    "GauntTensorProduct",
    "S2Activation",
    "S2GridMLP",
    "SO3Activation",
    "SeparableS2Activation",
    "SwiGLUS2Activation",
]
