"""Modules on signals on the sphere, on eqk's ops."""

from eqk.nn._gaunt import GauntTensorProduct
from eqk.nn._s2_activation import S2Activation

__all__ = ["GauntTensorProduct", "S2Activation"]
