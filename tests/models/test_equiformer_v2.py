"""EquiformerV2 of fairchem-core 1.10.0: attention and activation, in models and alone; its norms and the like."""

import math

import model_checks
import pytest
import torch
import torch_geometric.utils
from frameworks import EquiformerV2, default_dtype, silicon, stand_in_for_torch_scatter
from model_checks import change

stand_in_for_torch_scatter()

from fairchem.core.common import gp_utils  # noqa: E402
from fairchem.core.models.equiformer_v2.activation import S2Activation, SeparableS2Activation  # noqa: E402
from fairchem.core.models.equiformer_v2.input_block import EdgeDegreeEmbedding  # noqa: E402
from fairchem.core.models.equiformer_v2.layer_norm import get_normalization_layer  # noqa: E402
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding, SO3_Grid, SO3_LinearV2  # noqa: E402
from fairchem.core.models.equiformer_v2.transformer_block import SO2EquivariantGraphAttention  # noqa: E402

import eqk  # noqa: E402
from eqk.adapters._grid import normalization_of  # noqa: E402
from eqk.adapters.equiformer_v2 import FusedGraphAttention, FusedS2Activation  # noqa: E402

SMALL = {"num_layers": 2, "sphere_channels": 16, "attn_hidden_channels": 8, "num_heads": 2, "attn_alpha_channels": 8,
         "attn_value_channels": 4, "ffn_hidden_channels": 16, "edge_channels": 16, "num_distance_basis": 16}  # fmt: skip
CASES = {
    "small": SMALL,
    "lmax=mmax": {**SMALL, "mmax_list": [4]},
    "L=6, M=3": {**SMALL, "lmax_list": [6], "mmax_list": [3]},
    "its own resolution": {**SMALL, "grid_resolution": None},
    "one activation for all degrees": {**SMALL, "use_sep_s2_act": False, "use_grid_mlp": False},
    "activations in feed-forward layers": {**SMALL, "use_grid_mlp": False, "lmax_list": [6]},
    "gates": {**SMALL, "use_gate_act": True, "use_grid_mlp": False},
    "radial weights by degree": {**SMALL, "use_m_share_rad": True},
    "no norm of logits": {**SMALL, "use_attn_renorm": False},
    "one embedding of elements": {**SMALL, "share_atom_edge_embedding": True},
    "no embedding of elements": {**SMALL, "use_atom_edge_embedding": False},
}
FUSED = (SO2EquivariantGraphAttention, EdgeDegreeEmbedding, S2Activation)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_and_forces(dtype, options):
    model, twin, report = model_checks.pair(EquiformerV2(), dtype, options)
    left = {row.name for row in report.left}
    assert len(left) == (3 if "use_sep_s2_act" in options else 0)  # attention: two layers' and that of the forces
    assert model_checks.fused(report) == [
        name for name, module in model.named_modules() if type(module) in FUSED and name not in left
    ]
    # Its grids are e3nn's, which are float32's where that was the default.
    model_checks.assert_equal_forces(EquiformerV2(), model, twin, dtype)
    # Wigner matrices are for what was left alone.
    assert (twin["backbone"].SO3_rotation[0].wigner is None) == (not left)


@pytest.mark.parametrize("name", ["small", "L=6, M=3", "gates", "radial weights by degree", "dropout", "checkpointing"])
def test_training(name):
    more = {"dropout": {"alpha_drop": 0.3}, "checkpointing": {"activation_checkpoint": True}}
    model_checks.check_training(EquiformerV2(), CASES.get(name) or {**SMALL, **more[name]})


def test_an_atom_without_neighbours():
    model_checks.check_an_atom_without_neighbours(EquiformerV2(), SMALL, silicon(1))


def attention(options):
    """A converted layer and what it was called with."""
    framework = EquiformerV2()
    model = framework.build(torch.float64, **options)
    eqk.convert(model)
    layer, calls = model["backbone"].blocks[1].ga, []
    with layer.register_forward_pre_hook(lambda _, args: calls.append((args[0].clone(), *args[1:]))):
        framework.evaluate(model, framework.inputs(silicon(1), model))
    return layer, calls[0]


def test_nodes_on_several_processes(monkeypatch):
    """Each has some nodes and the edges that lead to them."""
    layer, (x, atomic_numbers, edge_distance, edge_index, _) = attention(SMALL)
    assert type(layer) is FusedGraphAttention
    everywhere, nodes = layer(x, atomic_numbers, edge_distance, edge_index).embedding, x.embedding
    monkeypatch.setattr(gp_utils, "initialized", lambda: True)
    monkeypatch.setattr(gp_utils, "gather_from_model_parallel_region", lambda *_, **__: nodes)
    own, edges = x.clone(), edge_index[1] >= 5
    own.set_embedding(nodes[5:])
    with default_dtype(torch.float64):  # their Wigner matrices'
        layer.SO3_rotation[0].set_wigner(layer.SO3_rotation[0]._eqk_matrix[edges])
        here = layer(own, atomic_numbers, edge_distance[edges], edge_index[:, edges], 5).embedding
    assert model_checks.relative_error(here, everywhere[5:]) < 1e-12


@pytest.mark.parametrize("options, change, reason", [
    ({}, lambda a: a.so2_conv_1.register_forward_hook(lambda *_: None),
     "SO2_Convolution in it, which would not be called, has hooks"),
    ({}, change("so2_conv_2.fc_m0", torch.nn.Bilinear(2, 2, 2)), "so2_conv_2.fc_m0 is a Bilinear instead of Linear"),
    ({}, change("s2_act.scalar_act", torch.nn.ReLU()), "s2_act.scalar_act is a ReLU instead of SiLU"),
    ({}, change("s2_act.s2_act.act", torch.nn.ReLU()), "s2_act.s2_act.act is a ReLU instead of SiLU"),
    ({}, lambda a: a.SO3_grid[4][2].to_grid_mat.mul_(2), "a grid whose matrices are not e3nn's"),
    ({}, change("SO3_rotation.0", torch.nn.Identity()), "SO3_rotation.0 is a Identity instead of SO3_Rotation"),
    ({"use_gate_act": True}, change("gate_act.gate_act", torch.nn.Tanh()),
     "gate_act.gate_act is a Tanh instead of Sigmoid"),
])  # fmt: skip
def test_attention_that_is_left(options, change, reason):
    model = EquiformerV2().build(torch.float64, **{**SMALL, **options})
    name = "backbone.blocks.1.ga"
    change(model.get_submodule(name))
    report = eqk.convert(model)
    assert reason in [row.reason for row in report.left if row.name == name]
    assert type(model.get_submodule(name)) is SO2EquivariantGraphAttention


def test_several_resolutions_are_left():
    model = EquiformerV2().build(torch.float64, **{**SMALL, "lmax_list": [4, 2], "mmax_list": [2, 2]})
    report = eqk.convert(model)
    assert {row.reason for row in report.left if row.name.startswith("backbone")} == {"several resolutions"}


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
    with default_dtype(torch.float64):  # that of the tables
        theirs, ours = get_normalization_layer(norm_type, lmax, 8), cls(lmax, 8)
    model_checks.assert_same_module(theirs, ours, torch.randn(10, (lmax + 1) ** 2, 8, dtype=torch.float64) + 0.5)


@pytest.mark.parametrize("lmax", [2, 4, 6])
def test_linear(lmax):
    class OnTensors(SO3_LinearV2):
        def forward(self, x):
            embedding = SO3_Embedding(0, [lmax], 8, device="cpu", dtype=x.dtype)
            embedding.set_embedding(x)
            return super().forward(embedding).embedding

    theirs, ours = (cls(8, 5, lmax).double() for cls in (OnTensors, eqk.nn.SO3Linear))
    model_checks.assert_same_module(theirs, ours, torch.randn(10, (lmax + 1) ** 2, 8, dtype=torch.float64))


def test_softmax():
    logits, index = 10 * torch.randn(50, 4, dtype=torch.float64), torch.randint(7, (50,))
    expected = torch_geometric.utils.softmax(logits, index, num_nodes=9)
    assert model_checks.relative_error(eqk.segment_softmax(logits, index, 9), expected) < 1e-13
