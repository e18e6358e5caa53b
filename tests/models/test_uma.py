"""UMA's and eSEN's modules in fairchem-core 2.24 against eqk's of the same parameters."""

from pathlib import Path

import fairchem.core.models.uma
import pytest
import torch
from fairchem.core.models.uma.common.rotation import eulers_to_wigner, init_edge_rot_euler_angles
from fairchem.core.models.uma.nn import layer_norm
from fairchem.core.models.uma.nn.execution_backends import ExecutionBackend
from fairchem.core.models.uma.nn.radial import PolynomialEnvelope
from fairchem.core.models.uma.nn.so3_layers import SO3_Linear

import eqk
from eqk.testing import TOLERANCES, relative_error

C = 8
MODULES = {
    "rms_norm_sh": (
        lambda lmax: layer_norm.get_normalization_layer("rms_norm_sh", lmax, C),
        lambda lmax: eqk.nn.EquivariantRMSNorm(lmax, C),
    ),
    "rms_norm_sh, components": (
        lambda lmax: layer_norm.EquivariantRMSNormArraySphericalHarmonicsV2(lmax, C, 0.1, std_balance_degrees=False),
        lambda lmax: eqk.nn.EquivariantRMSNorm(lmax, C, 0.1, std_balance_degrees=False),
    ),
    "rms_norm_sh, not centred": (
        lambda lmax: layer_norm.EquivariantRMSNormArraySphericalHarmonicsV2(lmax, C, centering=False),
        lambda lmax: eqk.nn.EquivariantRMSNorm(lmax, C, centering=False),
    ),
    "rms_norm_sh, not affine": (
        lambda lmax: layer_norm.EquivariantRMSNormArraySphericalHarmonicsV2(lmax, C, affine=False),
        lambda lmax: eqk.nn.EquivariantRMSNorm(lmax, C, affine=False),
    ),
    "the first version": (
        lambda lmax: layer_norm.EquivariantRMSNormArraySphericalHarmonics(lmax, C),
        lambda lmax: eqk.nn.EquivariantRMSNorm(lmax, C, centering=False, std_balance_degrees=False),
    ),
    "layer_norm": (
        lambda lmax: layer_norm.get_normalization_layer("layer_norm", lmax, C),
        lambda lmax: eqk.nn.EquivariantLayerNorm(lmax, C),
    ),
    "layer_norm_sh": (
        lambda lmax: layer_norm.get_normalization_layer("layer_norm_sh", lmax, C),
        lambda lmax: eqk.nn.EquivariantSeparableLayerNorm(lmax, C),
    ),
    "layer_norm_sh, components": (
        lambda lmax: layer_norm.EquivariantLayerNormArraySphericalHarmonics(lmax, C, std_balance_degrees=False),
        lambda lmax: eqk.nn.EquivariantSeparableLayerNorm(lmax, C, std_balance_degrees=False),
    ),
    "SO3_Linear": (lambda lmax: SO3_Linear(C, 5, lmax), lambda lmax: eqk.nn.SO3Linear(C, 5, lmax)),
}


def assert_equal(theirs, ours, x):
    """Values and gradients to x and all parameters, whose names are the same."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    results = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        parameters = [p for _, p in sorted(module.named_parameters())]
        out = module(leaf)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (leaf, *parameters))))
    for got, expected in zip(results[1], results[0], strict=True):
        assert relative_error(got, expected) < TOLERANCES[x.dtype][0]


@pytest.mark.parametrize("lmax", [2, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, dtype, lmax):
    torch.set_default_dtype(torch.float64)  # that of their tables
    theirs, ours = (make(lmax).to(dtype) for make in MODULES[name])
    torch.set_default_dtype(torch.float32)
    assert_equal(theirs, ours, torch.randn(10, (lmax + 1) ** 2, C, dtype=dtype) + 0.5)


@pytest.mark.parametrize("lmax", [2, 4, 6])
def test_edge_degree_embedding(lmax):
    """Theirs multiplies by the inverse Wigner matrix of each edge, turned about its axis at random."""
    vec = torch.randn(60, 3, dtype=torch.float64)
    radial = torch.randn(60, lmax + 1, C, dtype=torch.float64)
    index = torch.randint(7, (60,))
    table = torch.load(Path(fairchem.core.models.uma.__file__).parent / "Jd.pt")
    wigner = eulers_to_wigner(init_edge_rot_euler_angles(vec), 0, lmax, [t.double() for t in table[: lmax + 1]])
    zero_orders = [l * l + l for l in range(lmax + 1)]
    inverse = wigner.mT[:, :, zero_orders]
    x = torch.randn(7, (lmax + 1) ** 2, C, dtype=torch.float64)
    theirs = ExecutionBackend.edge_degree_scatter(x, radial.flatten(1), inverse, index, lmax + 1, C, 5.0)
    assert relative_error(x + eqk.edge_degree_embedding(vec, radial, index, 7, 5.0), theirs) < 1e-12


@pytest.mark.parametrize("exponent", [1, 5, 6])
def test_polynomial_envelope(exponent):
    d = torch.cat([torch.rand(1000, dtype=torch.float64), torch.tensor([0.0, 1.0, 1.5])])
    ours, theirs = (cls(exponent)(d) for cls in (eqk.nn.PolynomialEnvelope, PolynomialEnvelope))
    assert relative_error(ours, theirs) < 1e-13
