"""Modules on eqk's ops that e3nn does not have."""

from eqk.nn._gaunt import GauntTensorProduct

__all__ = ["GauntTensorProduct"]
