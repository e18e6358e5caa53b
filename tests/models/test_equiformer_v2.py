"""EquiformerV2 of fairchem-core 1.10.0: its activation on the sphere, in models and alone; its norms and the like."""

import math

import model_checks
import pytest
import torch
import torch_geometric.utils
from models import EquiformerV2, stand_in_for_torch_scatter

stand_in_for_torch_scatter()

from fairchem.core.models.equiformer_v2.activation import S2Activation, SeparableS2Activation  # noqa: E402
from fairchem.core.models.equiformer_v2.layer_norm import get_normalization_layer  # noqa: E402
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding, SO3_Grid, SO3_LinearV2  # noqa: E402

import eqk  # noqa: E402
from eqk.adapters._grid import normalization_of  # noqa: E402
from eqk.adapters.equiformer_v2 import FusedS2Activation  # noqa: E402

SMALL = {"num_layers": 2, "sphere_channels": 16, "attn_hidden_channels": 8, "num_heads": 2, "attn_alpha_channels": 8,
         "attn_value_channels": 4, "ffn_hidden_channels": 16, "edge_channels": 16, "num_distance_basis": 16}  # fmt: skip
CASES = {
    "small": SMALL,
    "lmax=mmax": {**SMALL, "mmax_list": [4]},
    "its own resolution": {**SMALL, "grid_resolution": None},
    "one activation for all degrees": {**SMALL, "use_sep_s2_act": False, "use_grid_mlp": False},
    "activations in feed-forward layers": {**SMALL, "use_grid_mlp": False, "lmax_list": [6]},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_and_forces(dtype, options):
    model, twin, report = model_checks.pair(EquiformerV2(), dtype, options)
    names = [name for name, module in model.named_modules() if type(module) is S2Activation]
    assert names
    assert model_checks.fused(report) == names
    # Its grids are e3nn's, which are float32's where that was the default.
    model_checks.assert_equal_forces(EquiformerV2(), model, twin, dtype)


def test_training():
    model_checks.check_training(EquiformerV2(), SMALL)


def test_state():
    model_checks.check_state(EquiformerV2(), SMALL)


def test_copies():
    model_checks.check_copies(EquiformerV2(), SMALL)


@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize("lmax, mmax, resolution", [(4, 2, 18), (6, 4, None), (3, 3, 14), (2, 0, None)])
def test_grids(lmax, mmax, resolution, normalization):
    torch.set_default_dtype(torch.float64)
    grid = SO3_Grid(lmax, mmax, normalization, resolution)
    torch.set_default_dtype(torch.float32)
    assert normalization_of(grid) == normalization
    grids = torch.nn.ModuleList([torch.nn.ModuleList([grid] * (mmax + 1))] * (lmax + 1))
    module, scalars = SeparableS2Activation(lmax, mmax), torch.randn(5, 3, dtype=torch.float64)
    x = torch.randn(5, grid.to_grid_mat.shape[2], 3, dtype=torch.float64)
    expected = module(scalars, x, grids)
    eqk.convert(module)
    assert type(module.s2_act) is FusedS2Activation
    assert model_checks.relative_error(module(scalars, x, grids), expected) < 1e-11


def test_a_grid_of_its_own_is_kept():
    """Slower, and right."""
    torch.set_default_dtype(torch.float64)
    grid = SO3_Grid(3, 2, "component", 14)
    torch.set_default_dtype(torch.float32)
    grid.to_grid_mat *= math.pi
    assert normalization_of(grid) is None
    grids = torch.nn.ModuleList([torch.nn.ModuleList([grid] * 3)] * 4)
    module, x = S2Activation(3, 2), torch.randn(5, 14, 3, dtype=torch.float64)
    expected = module(x, grids)
    eqk.convert(module)
    assert torch.equal(module(x, grids), expected)


def test_left():
    module = S2Activation(3, 2)
    module.act = torch.nn.ReLU()
    (row,) = eqk.convert(module).left
    assert row.reason == "its function is ReLU"


@pytest.mark.parametrize("lmax", [2, 4, 6])
@pytest.mark.parametrize("norm_type, cls", [
    ("rms_norm_sh", eqk.nn.EquivariantRMSNorm),
    ("layer_norm", eqk.nn.EquivariantLayerNorm),
    ("layer_norm_sh", eqk.nn.EquivariantSeparableLayerNorm),
])  # fmt: skip
def test_norms(norm_type, cls, lmax):
    """The checkpoint has tables besides the parameters."""
    torch.set_default_dtype(torch.float64)  # that of the tables
    theirs, ours = get_normalization_layer(norm_type, lmax, 8), cls(lmax, 8)
    torch.set_default_dtype(torch.float32)
    assert_same(theirs, ours, torch.randn(10, (lmax + 1) ** 2, 8, dtype=torch.float64) + 0.5)


@pytest.mark.parametrize("lmax", [2, 4, 6])
def test_linear(lmax):
    class OnTensors(SO3_LinearV2):
        def forward(self, x):
            embedding = SO3_Embedding(0, [lmax], 8, device="cpu", dtype=x.dtype)
            embedding.set_embedding(x)
            return super().forward(embedding).embedding

    theirs, ours = (cls(8, 5, lmax).double() for cls in (OnTensors, eqk.nn.SO3Linear))
    assert_same(theirs, ours, torch.randn(10, (lmax + 1) ** 2, 8, dtype=torch.float64))


def assert_same(theirs, ours, x):
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    results = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        parameters = [p for _, p in sorted(module.named_parameters())]
        out = module(leaf)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (leaf, *parameters))))
    for expected, got in zip(*results, strict=True):
        assert model_checks.relative_error(got, expected) < 1e-12


def test_softmax():
    logits, index = 10 * torch.randn(50, 4, dtype=torch.float64), torch.randint(7, (50,))
    expected = torch_geometric.utils.softmax(logits, index, num_nodes=9)
    assert model_checks.relative_error(eqk.segment_softmax(logits, index, 9), expected) < 1e-13
