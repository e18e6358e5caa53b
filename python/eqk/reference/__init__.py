"""Dense truth for every op: einsum on whole coefficient tensors, any dtype, no cleverness."""

from eqk.reference.gaunt_fourier import gaunt_product_by_fourier
from eqk.reference.gaunt_product import gaunt_product
from eqk.reference.rotate import rotate
from eqk.reference.s2_activation import s2_activation
from eqk.reference.so2_edge_message import so2_edge_message
from eqk.reference.so2_edge_scalars import so2_edge_scalars
from eqk.reference.spherical_harmonics import spherical_harmonics, spherical_harmonics_backward
from eqk.reference.symmetric_contraction import symmetric_contraction
from eqk.reference.tensor_product import tensor_product
from eqk.reference.tensor_product_conv import tensor_product_conv
from eqk.reference.wigner import wigner

__all__ = [
    "gaunt_product",
    "gaunt_product_by_fourier",
    "rotate",
    "s2_activation",
    "so2_edge_message",
    "so2_edge_scalars",
    "spherical_harmonics",
    "spherical_harmonics_backward",
    "symmetric_contraction",
    "tensor_product",
    "tensor_product_conv",
    "wigner",
]
