"""EquiformerV3 of equiformer-v3 0.0.3: attention, feed-forward layers and activations, in models and alone; its norms."""

import importlib
import warnings

import model_checks
import pytest
import torch
from frameworks import EquiformerV3, default_dtype, silicon, stand_in_for_torch_scatter
from model_checks import change

import eqk

stand_in_for_torch_scatter()
FOLDER = "equiformer_v3.experimental.models.equiformer_v3"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    activation, block, input_block, layer_norm, softmax = (
        importlib.import_module(f"{FOLDER}.{name}")
        for name in ("activation", "transformer_block", "input_block", "layer_norm", "softmax")
    )

SWIGLU = "sep-merge_gates2_swiglu"
SMALL = {"num_layers": 2, "num_channels": 16, "attn_hidden_channels": 8, "num_heads": 2, "attn_alpha_channels": 8,
         "attn_value_channels": 4, "ffn_hidden_channels": 16, "edge_channels": 16}  # fmt: skip
CASES = {
    "small": SMALL,
    "lmax=mmax": {**SMALL, "lmax": 2, "mmax": 2},
    "L=6, M=3": {**SMALL, "lmax": 6, "mmax": 3, "attn_grid_resolution_list": [20, 11],
                 "ffn_grid_resolution_list": [20, 20]},
    "grids of which products alias": {**SMALL, "attn_grid_resolution_list": [12, 6],
                                      "ffn_grid_resolution_list": [10, 9]},
    "its own resolution": {**SMALL, "attn_grid_resolution_list": None, "ffn_grid_resolution_list": None},
    "memory-efficient": {**SMALL, "attn_activation": f"{SWIGLU}_mem"},
    "activations in feed-forward layers": {**SMALL, "use_grid_mlp": False},
    "SiLU on the sphere": {**SMALL, "attn_activation": "sep_s2", "ffn_activation": "s2", "use_grid_mlp": False},
    "one activation for all degrees": {**SMALL, "attn_activation": "gate", "ffn_activation": "s2",
                                       "use_grid_mlp": False},
    "gates": {**SMALL, "attn_activation": "gate", "ffn_activation": "gate", "use_grid_mlp": False},
    "nodes added": {**SMALL, "use_add_merge": True},
    "radial weights by order": {**SMALL, "use_rad_l_parametrization": False},
    "soft cap": {**SMALL, "softcap": 2.0, "attn_eps": 1e-8},
    "no envelope": {**SMALL, "use_envelope": False},
    "no norm of logits": {**SMALL, "use_attn_renorm": False},
    "norms without centres": {**SMALL, "norm_type": "merge_rms_norm"},
    "no embedding of elements": {**SMALL, "use_atom_edge_embedding": False},
    "forces predicted": {**SMALL, "direct_prediction": True},
}  # fmt: skip


def expected_names(model):
    """Layers, and activations where one layer calls them: neither within attention nor beside a grid of the layer."""
    activations = activation.S2Activation, activation.SeparableGateS2Activation_SwiGLU_Merge
    for name, module in model.named_modules():
        layer = type(module) in (block.EquivariantGraphAttention, input_block.EdgeDegreeEmbedding)
        on_grid = type(module) is block.FeedForwardNetwork and module.use_grid_mlp
        if layer or on_grid or (isinstance(module, activations) and not name.endswith("ga.act")):
            yield name


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_and_forces(dtype, options):
    framework = EquiformerV3()
    model, twin, report = model_checks.pair(framework, dtype, options)
    assert not report.left
    assert model_checks.fused(report) == list(expected_names(model))
    if dtype == torch.float64:
        model_checks.assert_equal_forces(framework, model, twin, dtype)
    else:
        model_checks.assert_accurate_forces(framework, options, model, twin, silicon(1))
    assert twin.so3_rotation._eqk_wigner is None  # matrices are for what was left alone


@pytest.mark.parametrize("name", [
    "small", "grids of which products alias", "memory-efficient", "activations in feed-forward layers", "nodes added",
    "radial weights by order", "soft cap", "SiLU on the sphere", "gates", "dropout", "checkpointing",
])  # fmt: skip
def test_training(name):
    drop = {"alpha_drop": 0.3, "attn_mask_rate": 0.2, "attn_weights_drop": 0.1, "proj_drop": 0.1, "drop_path_rate": 0.1}
    more = {"dropout": drop, "checkpointing": {"gradient_checkpointing_block_list": [1, 0]}}
    model_checks.check_training(EquiformerV3(), CASES.get(name) or {**SMALL, **more[name]})


def test_edges_along_y():
    model_checks.check_edges_along_y(EquiformerV3(), SMALL)


def test_an_atom_without_neighbours():
    model_checks.check_an_atom_without_neighbours(EquiformerV3(), SMALL, silicon(1))


def double(name):
    return lambda layer: layer.get_submodule(name).to_grid_mat.mul_(2)


@pytest.mark.parametrize("options, name, change, reason", [
    ({}, "ga", lambda a: a.so2_linear_1.register_forward_hook(lambda *_: None),
     "SO2Linear in it, which would not be called, has hooks"),
    ({}, "ga", change("so2_linear_2.fc_m0", torch.nn.Bilinear(2, 2, 2)),
     "so2_linear_2.fc_m0 is a Bilinear instead of Linear"),
    ({}, "ga", change("act.gate_act", torch.nn.Tanh()), "gate_act is a Tanh instead of Sigmoid"),
    ({}, "ga", double("act.so3_grid"), "a grid whose matrices are not e3nn's"),
    ({}, "ga", change("so3_rotation", torch.nn.Identity()), "so3_rotation is a Identity instead of SO3Rotation"),
    ({"value_drop": 0.1}, "ga", None, "scalar_act is a Sequential instead of SwiGLU"),
    ({"attn_activation": "sep-merge_s2_swiglu"}, "ga", None, "its activation is SeparableS2Activation_SwiGLU_Merge"),
    ({"attn_activation": "s2"}, "ga", None, "its activation is S2Activation"),
    ({"ffn_drop": 0.1}, "ffn", None, "grid_mlp.grid_drop is a Dropout instead of Identity"),
    ({"ffn_activation": "sep-merge_s2_swiglu"}, "ffn", None, "grid_mlp is a Sequential instead of GatedSwiGLUGridMLP"),
    ({}, "ffn", double("so3_grid"), "a grid whose matrices are not e3nn's"),
])  # fmt: skip
def test_left(options, name, change, reason):
    """Among layers that are fused: both read one rotation."""
    framework, name = EquiformerV3(), f"blocks.1.{name}"
    model, twin = (framework.build(torch.float64, **{**SMALL, **options}) for _ in range(2))
    layers = [m.get_submodule(name) for m in (model, twin)]
    for layer in layers:
        if change:
            change(layer)
    report = eqk.convert(twin)
    assert reason in [row.reason for row in report.left if row.name == name]
    assert type(layers[1]) is type(layers[0])
    if "Identity" not in reason and "Bilinear" not in reason:
        model_checks.assert_equal_forces(framework, model, twin, torch.float64)


def test_state():
    model_checks.check_state(EquiformerV3(), SMALL)


def test_copies():
    model_checks.check_copies(EquiformerV3(), SMALL)


@pytest.mark.parametrize("lmax, mmax, res", [(2, 2, None), (4, 2, [14, 8]), (6, 2, [20, 8]), (6, 4, [14, 9])])
@pytest.mark.parametrize("m_primary", [False, True])
@pytest.mark.parametrize("cls, fields", [
    (activation.S2Activation, 0),
    (activation.SeparableS2Activation, 1),
    (activation.SeparableGateS2Activation_SwiGLU_Merge, 1.5),
    (activation.SeparableGateS2Activation_SwiGLU_Merge_MemoryEfficient, 1.5),
])  # fmt: skip
def test_activations(cls, fields, lmax, mmax, res, m_primary):
    with default_dtype(torch.float64):
        module = cls(lmax, mmax, res, m_primary)
    rows = sum(min(2 * l, 2 * mmax) + 1 for l in range(lmax + 1))
    x = torch.randn(9, rows, 6, dtype=torch.float64, requires_grad=True)
    scalars = torch.randn(9, int(6 * fields), dtype=torch.float64, requires_grad=True)
    args = (x, scalars) if fields else (x,)
    results = []
    for _ in range(2):
        out = module(*args)
        results.append((out, *torch.autograd.grad(out.sin().sum(), args)))
        eqk.convert(module)
    assert type(module).__module__ == "eqk.adapters.equiformer_v3"
    for expected, got in zip(*results, strict=True):
        assert model_checks.relative_error(got, expected) < 1e-11


@pytest.mark.parametrize("lmax", [2, 4, 6])
@pytest.mark.parametrize("theirs, ours", [
    (layer_norm.EquivariantMergeLayerNorm, eqk.nn.EquivariantRMSNorm),
    (layer_norm.EquivariantLayerNorm, eqk.nn.EquivariantLayerNorm),
    (layer_norm.EquivariantSeparableLayerNorm, eqk.nn.EquivariantSeparableLayerNorm),
])  # fmt: skip
def test_norms(theirs, ours, lmax):
    """The checkpoint has tables besides the parameters."""
    with default_dtype(torch.float64):  # that of the tables
        theirs, ours = theirs(lmax, 8), ours(lmax, 8)
    model_checks.assert_same_module(theirs, ours, torch.randn(10, (lmax + 1) ** 2, 8, dtype=torch.float64) + 0.5)


def test_softmax():
    logits, index = 10 * torch.randn(50, 4, dtype=torch.float64), torch.randint(7, (50,))
    envelope = torch.rand(50, 1, dtype=torch.float64)
    expected = envelope * softmax.GraphSoftmax()(logits, index, num_nodes=9, exp_rescale=envelope)
    got = eqk.segment_softmax(logits, index, 9, envelope.flatten())
    assert model_checks.relative_error(got, expected) < 1e-13
