"""Nequix's torch model (nequix 0.4.5)."""

import model_checks
import pytest
import torch
from frameworks import Nequix

SMALL = {"hidden_irreps": "16x0e + 8x1o + 4x2e", "lmax": 2, "n_layers": 3}
# What the published models have: odd multiplicities, outputs that are not sorted, an output of scalars.
FULL = {}


@pytest.mark.parametrize("options", [SMALL, FULL], ids=["small", "mp-1"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_and_forces(dtype, options):
    model, twin, report = model_checks.pair(Nequix(), dtype, options)
    assert model_checks.fused(report) == [f"layers.{n}" for n in range(len(model.layers))]
    model_checks.assert_equal_forces(Nequix(), model, twin, dtype)


def test_training():
    model_checks.check_training(Nequix(), SMALL)


def test_state():
    model_checks.check_state(Nequix(), SMALL)


def test_copies():
    model_checks.check_copies(Nequix(), SMALL, pickles=False)  # nequix puts lambdas into its modules


def test_no_edges():
    model_checks.check_no_edges(Nequix(), SMALL)


def test_left():
    model_checks.check_left(Nequix(), SMALL, "layers.1.tp")


def test_checkpoint_file(tmp_path):
    """nequix's own files: what a converted model saves loads into either kind, and their kernel=True is no eqk."""
    from nequix.torch_impl.model import load_model, save_model

    model, twin, _ = model_checks.pair(Nequix(), torch.float32, SMALL)
    config = {
        "atomic_numbers": list(range(1, 90)), "atom_energies": {str(n): 0.0 for n in range(1, 90)}, "cutoff": 6.0,
        "radial_basis_size": 8, "radial_mlp_size": 64, "radial_mlp_layers": 2, "radial_polynomial_p": 6.0,
        "mlp_init_scale": 4.0, "index_weights": False, "layer_norm": True, "shift": 0.0, "scale": 1.0,
        "avg_n_neighbors": 57.4, **SMALL,
    }  # fmt: skip
    save_model(tmp_path / "model.pt", twin, config)
    loaded, _ = load_model(tmp_path / "model.pt")
    model_checks.assert_equal_forces(Nequix(), model, loaded.eval(), torch.float32)


def test_hessian_vector_product():
    """The loss of phonon fine-tuning: its gradients by the parameters are third derivatives of the ops."""
    results = []
    model, twin, _ = model_checks.pair(Nequix(), torch.float64, SMALL, training=True)
    for m in (model, twin):
        inputs = Nequix().inputs(model_checks.silicon(1), m)
        _, forces = Nequix().evaluate(m, inputs)
        direction = torch.linspace(-1, 1, forces.numel(), dtype=forces.dtype).view_as(forces)
        (product,) = torch.autograd.grad(forces, inputs["positions"], direction, create_graph=True)
        results.append((product, *torch.autograd.grad(product.abs().mean(), list(m.parameters()), allow_unused=True)))
    for old, new in zip(*results, strict=True):
        if old is not None and old.abs().max() > 0:
            assert model_checks.relative_error(new, old) < 1e-8
