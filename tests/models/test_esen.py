"""eSEN of fairchem-core 1.10.0: whole models converted."""

import model_checks
import pytest
import torch
from frameworks import Esen, copper, stand_in_for_torch_scatter
from model_checks import change

import eqk

stand_in_for_torch_scatter()

SMALL = {"sphere_channels": 8, "hidden_channels": 12, "edge_channels": 16, "num_distance_basis": 8, "num_layers": 2}
GRID = {"act_type": "s2", "mlp_type": "grid"}
CASES = {
    "small": SMALL,
    "no envelope": {**SMALL, "use_envelope": False},
    "coarse grid": {**SMALL, **GRID},
    "grid": {**SMALL, **GRID, "grid_resolution": 18},
    **{f"lmax {l}, mmax {m}": {**SMALL, "lmax": l, "mmax": m} for l, m in ((2, 2), (4, 2), (6, 3), (3, 1))},
    "lmax 4, mmax 2, grid": {**SMALL, **GRID, "lmax": 4, "grid_resolution": 14},
    "lmax 3, mmax 3, grid": {**SMALL, **GRID, "mmax": 3, "grid_resolution": 14},
    "checkpoints": {**SMALL, "activation_checkpointing": True},
    "other norms": {**SMALL, "norm_type": "layer_norm_sh"},
    "Bessel functions": {**SMALL, "distance_function": "bessel"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_energy_and_forces(dtype, options):
    model, twin, report = model_checks.pair(Esen(), dtype, options)
    assert model_checks.fused(report) == ["backbone"]
    assert not report.left
    if dtype == torch.float64:
        model_checks.assert_equal_forces(Esen(), model, twin, dtype, copper(1))
    else:
        model_checks.assert_accurate_forces(Esen(), options, model, twin, copper(1))


def test_edges_along_y():
    model_checks.check_edges_along_y(Esen(), SMALL)


@pytest.mark.parametrize("name", ["small", "coarse grid", "checkpoints", "no envelope"])
def test_training(name):
    model_checks.check_training(Esen(), CASES[name])


def test_an_atom_without_neighbours():
    model_checks.check_an_atom_without_neighbours(Esen(), SMALL, copper(1))


def test_state():
    model_checks.check_state(Esen(), SMALL)


def test_copies():
    model_checks.check_copies(Esen(), SMALL)


@pytest.mark.parametrize("options, change, reason", [
    ({}, lambda e: e.so2_conv_1.register_forward_hook(lambda *_: None),
     "SO2_Convolution in it, which would not be called, has hooks"),
    ({}, change("so2_conv_2.fc_m0", torch.nn.Bilinear(2, 2, 2)), "so2_conv_2.fc_m0 is a Bilinear instead of Linear"),
    ({}, change("act.gate_act", torch.nn.Tanh()), "act.gate_act is a Tanh instead of Sigmoid"),
    (GRID, change("act.s2_act.act", torch.nn.ReLU()), "act.s2_act.act is a ReLU instead of SiLU"),
    (GRID, lambda e: e.SO3_grid["lmax_mmax"].to_grid_mat.mul_(2), "a grid whose matrices are not e3nn's"),
])  # fmt: skip
def test_left(options, change, reason):
    model = Esen().build(torch.float64, **{**SMALL, **options})
    before = type(model["backbone"])
    change(model["backbone"].blocks[1].edge_wise)
    (row,) = eqk.convert(model).left
    assert (row.name, row.reason) == ("backbone", reason)
    assert type(model["backbone"]) is before
