"""Fused E(3)-equivariant kernels for PyTorch."""

from eqk import _library

__version__ = "0.1.0"
_library.load(__version__)

from eqk import analysis, nn, o3  # noqa: E402
from eqk._library import wigner_3j  # noqa: E402
from eqk.best_product import best_product  # noqa: E402
from eqk.convert import convert  # noqa: E402
from eqk.edge_degree_embedding import edge_degree_embedding  # noqa: E402
from eqk.edge_frame import edge_frame, matrix_to_quaternion  # noqa: E402
from eqk.export import export  # noqa: E402
from eqk.gaunt_plan import GauntPlan  # noqa: E402
from eqk.gaunt_product import gaunt_product  # noqa: E402
from eqk.graph import Graph  # noqa: E402
from eqk.irreps import Irrep, Irreps  # noqa: E402
from eqk.matrix_product import matrix_product  # noqa: E402
from eqk.memory import keep_memory  # noqa: E402
from eqk.plan import Instruction, Plan  # noqa: E402
from eqk.rotate import m_primary, rotate, rotate_back  # noqa: E402
from eqk.s2_activation import s2_activation  # noqa: E402
from eqk.s2_activation_plan import S2ActivationPlan  # noqa: E402
from eqk.s2_quadrature import exact_degree, exact_resolution, s2_grid  # noqa: E402
from eqk.s2grid import from_s2grid, plot_signal, to_s2grid  # noqa: E402
from eqk.segment_softmax import segment_softmax  # noqa: E402
from eqk.so2_conv import so2_conv  # noqa: E402
from eqk.so2_edge_message import so2_edge_message  # noqa: E402
from eqk.so2_edge_scalars import so2_edge_scalars  # noqa: E402
from eqk.spherical_harmonics import spherical_harmonics  # noqa: E402
from eqk.symmetric_contraction import symmetric_contraction  # noqa: E402
from eqk.symmetric_contraction_plan import SymmetricContractionPlan  # noqa: E402
from eqk.tensor_product import tensor_product  # noqa: E402
from eqk.tensor_product_by_grids import tensor_product_by_grids, tensor_product_paths  # noqa: E402
from eqk.tensor_product_conv import tensor_product_conv  # noqa: E402
from eqk.tensor_product_conv_radial import tensor_product_conv_radial  # noqa: E402
from eqk.vector_gaunt_product import TensorHarmonics, vector_gaunt_product  # noqa: E402
from eqk.wigner import wigner  # noqa: E402

__all__ = [
    "GauntPlan",
    "Graph",
    "Instruction",
    "Irrep",
    "Irreps",
    "Plan",
    "S2ActivationPlan",
    "SymmetricContractionPlan",
    "TensorHarmonics",
    "analysis",
    "best_product",
    "convert",
    "edge_degree_embedding",
    "edge_frame",
    "exact_degree",
    "exact_resolution",
    "export",
    "from_s2grid",
    "gaunt_product",
    "keep_memory",
    "m_primary",
    "matrix_product",
    "matrix_to_quaternion",
    "nn",
    "o3",
    "plot_signal",
    "rotate",
    "rotate_back",
    "s2_activation",
    "s2_grid",
    "segment_softmax",
    "so2_conv",
    "so2_edge_message",
    "so2_edge_scalars",
    "spherical_harmonics",
    "symmetric_contraction",
    "tensor_product",
    "tensor_product_by_grids",
    "tensor_product_conv",
    "tensor_product_conv_radial",
    "tensor_product_paths",
    "to_s2grid",
    "vector_gaunt_product",
    "wigner",
    "wigner_3j",
]
