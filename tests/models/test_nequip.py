"""NequIP (nequip 0.19.1): eqk.convert, the model modifier, and NequIP's own commands with it."""

import json
import subprocess
import sys
from pathlib import Path

import model_checks
import pytest
import torch
from frameworks import NequIP

SMALL = {"num_layers": 3, "l_max": 2, "parity": True, "num_features": [8, 5, 4], "radial_mlp_width": 16}


def modified(dtype, **options):
    from nequip.model.modify_utils import modify

    return modify(NequIP().build(dtype, **options), [{"modifier": "enable_eqk"}])


@pytest.mark.parametrize("options", [SMALL, {"preset": "S"}, {"preset": "M"}], ids=["small", "S", "M"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_and_forces(dtype, options):
    model, twin, report = model_checks.pair(NequIP(), dtype, options)
    assert [name.rpartition(".")[2] for name in model_checks.fused(report)] == ["tp_scatter"] * len(
        model_checks.fused(report)
    )
    assert len(model_checks.fused(report)) == sum(name.endswith("tp_scatter") for name, _ in model.named_modules())
    model_checks.assert_equal_forces(NequIP(), model, twin, dtype)


def test_training():
    model_checks.check_training(NequIP(), SMALL)


def test_state():
    model_checks.check_state(NequIP(), SMALL)


def test_copies():
    model_checks.check_copies(NequIP(), SMALL)


def test_no_edges():
    model_checks.check_no_edges(NequIP(), SMALL)


def test_left():
    model_checks.check_left(NequIP(), SMALL, "model.func.layer1_convnet.conv.tp_scatter.tp")


def test_modifier():
    """Found by NequIP as its own are; eqk is imported only when it is applied; no layer to fuse is an error."""
    from nequip.model.modify_utils import get_all_modifiers
    from nequip.nn import model_modifier_utils as utils

    model = NequIP().build(torch.float64, **SMALL)
    enable = get_all_modifiers(model)["enable_eqk"]
    assert not utils.is_persistent_model_modifier(enable)
    assert not utils.get_model_modifier_unsupported_devices(enable)
    twin = modified(torch.float64, **SMALL)
    assert twin.metadata["nequip_custom_ops_libs"] == "eqk"
    assert list(twin.state_dict()) == list(model.state_dict())
    model_checks.assert_equal_forces(NequIP(), model, twin, torch.float64)
    code = "import nequip, sys; assert 'eqk_nequip' in sys.modules; assert 'eqk' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(RuntimeError, match="expected a model with TensorProductScatter or Contracter"):
        enable(twin)


def test_autocast():
    """Operands of a 16-bit type are cast to the model's, as its own accelerations do."""
    from eqk.adapters.nequip import FusedTensorProductScatter

    layers = [m for m in modified(torch.float32, **SMALL).modules() if isinstance(m, FusedTensorProductScatter)]
    layer = layers[1]
    generator = torch.Generator().manual_seed(0)
    rows = {4: layer.feature_irreps_in.dim, 6: layer.irreps_edge_attr.dim}
    x, y = (torch.randn(n, dim, generator=generator, dtype=torch.float32) for n, dim in rows.items())
    w = torch.randn(6, layer.tp.weight_numel, generator=generator, dtype=torch.float32)
    dst, src = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([1, 2, 0, 0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, y, w.bfloat16(), dst, src)
    torch.testing.assert_close(out, layer(x, y, w.bfloat16().float(), dst, src))


def test_train_time_compile():
    """compile_mode: compile, whose graph holds the op: forces and the gradients of a loss on them."""
    model = NequIP().build(torch.float64, **SMALL).train()
    twin = modified(torch.float64, compile_mode="compile", **SMALL).train()
    assert type(twin).__name__ == "CompileGraphModel"
    twin.load_state_dict(model.state_dict(), strict=True)
    results = []
    for m in (model, twin):
        energy, forces = NequIP().evaluate(m, NequIP().inputs(model_checks.silicon(1), m))
        loss = energy.square() + forces.square().sum()
        results.append((forces.detach(), *torch.autograd.grad(loss, list(m.parameters()))))
    for old, new in zip(*results, strict=True):
        assert model_checks.relative_error(new, old) < 1e-8


CONFIG = """
run: [train]
seed: 1
cutoff: 4.0
types: [Si]
data:
  _target_: nequip.data.datamodule.ASEDataModule
  seed: 1
  train_file_path: {data}
  val_file_path: {data}
  transforms:
    - _target_: nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper
      model_type_names: ${{types}}
    - _target_: nequip.data.transforms.NeighborListTransform
      r_max: ${{cutoff}}
  train_dataloader: {{_target_: torch.utils.data.DataLoader, batch_size: 1}}
  val_dataloader: {{_target_: torch.utils.data.DataLoader, batch_size: 1}}
trainer:
  _target_: lightning.Trainer
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  logger: false
  callbacks:
    - _target_: lightning.pytorch.callbacks.ModelCheckpoint
      dirpath: {folder}
      filename: best
      save_last: true
training_module:
  _target_: nequip.train.EMALightningModule
  loss:
    _target_: nequip.train.EnergyForceLoss
    per_atom_energy: true
    coeffs: {{total_energy: 1.0, forces: 1.0}}
  val_metrics:
    _target_: nequip.train.EnergyForceMetrics
    coeffs: {{total_energy_mae: 1.0, forces_mae: 1.0}}
  optimizer: {{_target_: torch.optim.Adam, lr: 0.01}}
  model:
    _target_: nequip.model.modify
    modifiers: [{{modifier: enable_eqk}}]
    model:
      _target_: nequip.model.NequIPGNNModel
      seed: 1
      model_dtype: float32
      type_names: ${{types}}
      r_max: ${{cutoff}}
      num_layers: 2
      l_max: 1
      num_features: 8
      avg_num_neighbors: 20.0
"""

# Runs in a process that knows of eqk only by what the file says.
LOAD = """
import json, sys
import ase.io
from nequip.integrations.ase import NequIPCalculator
assert "eqk" not in sys.modules
atoms = ase.io.read(sys.argv[2], 0)
atoms.calc = NequIPCalculator.from_compiled_model(sys.argv[1], device="cpu", chemical_species_to_atom_type_map=True)
print(json.dumps([atoms.get_potential_energy(), atoms.get_forces().tolist()]))
assert "eqk" in sys.modules
"""


def test_commands(tmp_path):
    """nequip-train with enable_eqk; nequip-compile with it to AOTInductor; a process that loads the file."""
    import ase.io
    from ase.calculators.lj import LennardJones
    from nequip.model.saved_models.load_utils import load_saved_model

    frames = []
    for seed in range(2):
        atoms = model_checks.silicon(1)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = LennardJones(sigma=2.0, rc=4.0)
        atoms.get_forces()
        frames.append(atoms)
    ase.io.write(tmp_path / "data.extxyz", frames)
    (tmp_path / "train.yaml").write_text(CONFIG.format(data=tmp_path / "data.extxyz", folder=tmp_path))

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    bin = Path(sys.executable).parent
    run(bin / "nequip-train", "-cp", tmp_path, "-cn", "train", f"hydra.run.dir={tmp_path}")
    # Accelerations are left out where a checkpoint is loaded: this is NequIP's own model.
    NequIP().common(torch.float32)  # sets NequIP's global state
    model = load_saved_model(tmp_path / "best.ckpt")
    assert not any(type(m).__module__.startswith("eqk.") for m in model.modules())
    out = NequIP().evaluate(model, NequIP().inputs(frames[0], model))
    run(
        bin / "nequip-compile", tmp_path / "best.ckpt", tmp_path / "model.nequip.pt2",
        "--mode", "aotinductor", "--device", "cpu", "--target", "ase", "--modifiers", "enable_eqk",
    )  # fmt: skip
    loaded = run(sys.executable, "-c", LOAD, tmp_path / "model.nequip.pt2", tmp_path / "data.extxyz")
    energy, forces = json.loads(loaded.splitlines()[-1])
    assert out[1].abs().max() > 1e-3
    assert model_checks.relative_error(torch.tensor(forces), out[1]) < 1e-5
    assert abs(energy - out[0]) < 1e-5 * max(1, abs(out[0]))
