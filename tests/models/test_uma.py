"""UMA and eSEN of fairchem-core 2.24: whole models converted, and modules against eqk's of the same parameters."""

from pathlib import Path

import fairchem.core.models.uma
import model_checks
import pytest
import torch
from fairchem.core.models.uma.common.rotation import eulers_to_wigner, init_edge_rot_euler_angles
from fairchem.core.models.uma.nn import layer_norm
from fairchem.core.models.uma.nn.execution_backends import ExecutionBackend
from fairchem.core.models.uma.nn.radial import PolynomialEnvelope
from fairchem.core.models.uma.nn.so3_layers import SO3_Linear
from frameworks import Uma, copper, default_dtype, silicon

import eqk
from eqk.testing import relative_error

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


@pytest.mark.parametrize("lmax", [2, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, dtype, lmax):
    with default_dtype(torch.float64):  # that of their tables
        theirs, ours = (make(lmax).to(dtype) for make in MODULES[name])
    model_checks.assert_same_module(theirs, ours, torch.randn(10, (lmax + 1) ** 2, C, dtype=dtype) + 0.5)


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


SMALL = {"sphere_channels": 8, "hidden_channels": 12, "edge_channels": 16, "num_distance_basis": 8, "num_layers": 2}
CASES = {
    "small": SMALL,
    "lmax 4, mmax 2": {**SMALL, "lmax": 4},
    "lmax 3, mmax 3, a grid": {
        **SMALL,
        "lmax": 3,
        "mmax": 3,
        "act_type": "s2",
        "ff_type": "grid",
        "grid_resolution": 18,
    },
    "lmax 4, mmax 2, a grid": {**SMALL, "lmax": 4, "act_type": "s2", "grid_resolution": 14},
    **{f"lmax {l}, mmax {m}": {**SMALL, "lmax": l, "mmax": m} for l, m in ((3, 2), (6, 2), (6, 3), (6, 4))},
    **{
        f"lmax {l}, mmax {m}, a grid": {**SMALL, "lmax": l, "mmax": m, "act_type": "s2", "grid_resolution": 30}
        for l, m in ((2, 2), (3, 2), (6, 2), (6, 3), (6, 4))
    },
    "checkpoints": {**SMALL, "activation_checkpointing": True},
    "other norms": {**SMALL, "norm_type": "layer_norm_sh"},
    "Euler angles": {**SMALL, "use_quaternion_wigner": False},
    "experts": {**SMALL, "experts": 3},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_energy_and_forces(dtype, options):
    model, twin, report = model_checks.pair(Uma(), dtype, options)
    assert model_checks.fused(report) == ["backbone"]
    model_checks.assert_equal_forces(Uma(), model, twin, dtype, copper(1))


def test_coarse_grid():
    """Their default grid aliases: energies hang on the angles about edges, which theirs draws anew for each call."""
    model, twin, _ = model_checks.pair(Uma(), torch.float64, {**SMALL, "lmax": 3, "mmax": 3, "act_type": "s2"})
    inputs = Uma().inputs(copper(1), model)
    theirs = torch.stack([Uma().evaluate(model, inputs)[1].detach() for _ in range(6)])
    ours = [Uma().evaluate(twin, inputs)[1].detach() for _ in range(2)]
    assert torch.equal(*ours)
    spread = (theirs - theirs.mean(0)).abs().max()
    assert 0 < spread < 1e-3 * theirs.abs().max()
    assert (ours[0] - theirs.mean(0)).abs().max() < 5 * spread


def test_systems_of_their_own_experts():
    """Three structures of one batch, one of them without edges."""
    import ase

    model, twin, _ = model_checks.pair(Uma(), torch.float64, CASES["experts"])
    alone = ase.Atoms("Si", positions=[[1.0, 2.0, 3.0]], cell=[40.0] * 3, pbc=True)
    structures = [silicon(1), alone, copper(1)]
    model_checks.assert_equal_forces(Uma(), model, twin, torch.float64, structures)


def test_merged_experts():
    """Experts that are merged for one composition, after the conversion."""
    model, twin, _ = model_checks.pair(Uma(), torch.float64, CASES["experts"])
    inputs = Uma().inputs(copper(1), model)
    with default_dtype(torch.float64):
        for m in (model, twin):
            m["backbone"].merge_MOLE_model(inputs.clone())
    model_checks.assert_equal_forces(Uma(), model, twin, torch.float64, copper(1))


def test_training():
    model_checks.check_training(Uma(), SMALL)


def test_state():
    model_checks.check_state(Uma(), SMALL)


def test_copies():
    model_checks.check_copies(Uma(), SMALL)


def test_no_edges():
    model_checks.check_no_edges(Uma(), SMALL)


def test_hessian():
    """Of both, by a second backward pass for each component; theirs is right where it does not use its Triton kernels."""
    results = []
    for model in model_checks.pair(Uma(), torch.float64, SMALL, training=True)[:2]:
        data = Uma().inputs(copper(1)[:4], model)
        with default_dtype(torch.float64):
            forces = model["head"](data, model["backbone"](data))["forces"]["forces"]
        rows = [torch.autograd.grad(f, data.pos, retain_graph=True)[0].flatten() for f in forces.flatten()]
        results.append(torch.stack(rows))
    assert (results[0] - results[0].T).abs().max() < 1e-10 * results[0].abs().max()
    assert relative_error(results[1], results[0]) < 1e-9


def test_left():
    model = Uma().build(torch.float32, **SMALL)
    model["backbone"].blocks[1].edge_wise.so2_conv_2.fc_m0.register_forward_hook(lambda *_: None)
    (row,) = eqk.convert(model).left
    assert row.name == "backbone"
    assert "has hooks" in row.reason
    model = Uma().build(torch.float32, **SMALL, execution_mode="umas_fast_pytorch")
    (row,) = eqk.convert(model).left
    assert row.reason == "it has a backend of its own, UMASFastPytorchBackend"
