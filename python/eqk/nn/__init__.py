"""Modules on signals on the sphere, on eqk's ops."""

from eqk.nn._by_degree import EquivariantLayerNorm, EquivariantRMSNorm, EquivariantSeparableLayerNorm, SO3Linear
from eqk.nn._equiformer import GateActivation, S2GridMLP, SeparableS2Activation, SwiGLUS2Activation
from eqk.nn._gaunt import GauntTensorProduct
from eqk.nn._gaunt_symmetric_contraction import GauntSymmetricContraction
from eqk.nn._polynomial_envelope import PolynomialEnvelope
from eqk.nn._s2_activation import S2Activation
from eqk.nn._so3_activation import SO3Activation

__all__ = [
    "EquivariantLayerNorm",
    "EquivariantRMSNorm",
    "EquivariantSeparableLayerNorm",
    "GateActivation",
    "GauntSymmetricContraction",
    "GauntTensorProduct",
    "PolynomialEnvelope",
    "S2Activation",
    "S2GridMLP",
    "SO3Activation",
    "SO3Linear",
    "SeparableS2Activation",
    "SwiGLUS2Activation",
]
