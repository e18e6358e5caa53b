"""Pytest plugin: e3nn's own tests see eqk's classes under e3nn's names (see test_e3nn_suite.py)."""

import e3nn.o3
import e3nn.o3._norm

import eqk.o3

for name in (
    "TensorProduct",
    "FullyConnectedTensorProduct",
    "FullTensorProduct",
    "ElementwiseTensorProduct",
    "TensorSquare",
    "Linear",
):
    setattr(e3nn.o3, name, getattr(eqk.o3, name))
e3nn.o3._norm.TensorProduct = eqk.o3.TensorProduct
