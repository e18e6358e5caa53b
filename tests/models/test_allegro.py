"""Allegro (nequip-allegro 0.8.3): Contracter, in models and alone."""

import model_checks
import pytest
import torch
from frameworks import Allegro

SMALL = {"l_max": 2, "num_layers": 2, "num_scalar_features": 16, "num_tensor_features": 5}
CASES = {
    "small": SMALL,
    "l=3": {**SMALL, "l_max": 3, "num_layers": 3},
    "scalars": {**SMALL, "l_max": 0},
    "one layer": {**SMALL, "num_layers": 1},
    "weights of paths": {**SMALL, "tp_path_channel_coupling": False},
    "no parity": {**SMALL, "parity": False},
    "published size": {},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_energy_and_forces(dtype, options):
    model, twin, report = model_checks.pair(Allegro(), dtype, options)
    assert model_checks.fused(report) == [
        f"model.func.allegro.tps.{n}" for n in range(len(model.model.func.allegro.tps))
    ]
    model_checks.assert_equal_forces(Allegro(), model, twin, dtype)


@pytest.mark.parametrize("name", ["small", "weights of paths", "scalars"])
def test_training(name):
    model_checks.check_training(Allegro(), CASES[name])


def test_state():
    model_checks.check_state(Allegro(), SMALL)


def test_copies():
    model_checks.check_copies(Allegro(), SMALL)


def test_no_edges():
    model_checks.check_no_edges(Allegro(), SMALL)


def test_modifier():
    from nequip.model.modify_utils import modify

    model = Allegro().build(torch.float64, **SMALL)
    twin = modify(Allegro().build(torch.float64, **SMALL), [{"modifier": "enable_eqk"}])
    assert twin.metadata["nequip_custom_ops_libs"] == "eqk"
    model_checks.assert_equal_forces(Allegro(), model, twin, torch.float64)


def contracters(*args, **kwargs):
    from allegro.nn._strided import Contracter
    from e3nn.o3 import Irreps

    import eqk

    args = [Irreps(a) for a in args]
    old, new = (Contracter(*args, **kwargs).double() for _ in range(2))
    new.load_state_dict(old.state_dict())
    eqk.convert(new)
    assert type(new).__name__ == "FusedContracter"
    return old, new


@pytest.mark.parametrize("coupling", [True, False])
@pytest.mark.parametrize(
    "irreps",
    [("0e+1o+2e", "0e+1o+2e", "0e+1o+1e+2e"), ("1o", "1o", "1e"), ("0e+1o", "0e+1o", "0e"), ("0e", "1o", "1o")],
)
def test_all_derivatives(irreps, coupling):
    """One path and several, diagonal or not: value, gradients and their gradients, by operands and weights."""
    old, new = contracters(*irreps, mul=3, path_channel_coupling=coupling)
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randn(6, 3, old.base_dim1, generator=generator, dtype=torch.float64, requires_grad=True)
    x2 = torch.randn(4, 3, old.base_dim2, generator=generator, dtype=torch.float64, requires_grad=True)
    idxs = torch.tensor([0, 3, 3, 1, 0, 3])
    results = []
    for module in (old, new):
        inputs = (x1, x2, module.weights)
        out = module(x1, x2, idxs)
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs)
        results.append((out, *first, *second))
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_signs_of_a_checkpoint():
    """The buffer w3j of another e3nn, with the opposite sign in some paths; a buffer that is no symbol is an error."""
    old, new = contracters("0e+1o+2e", "0e+1o+2e", "0e+1o+2e", mul=3)
    state = {key: value.clone() for key, value in old.state_dict().items()}
    state["w3j"][3::2] *= -1
    x1, x2 = torch.randn(5, 3, 9, dtype=torch.float64), torch.randn(2, 3, 9, dtype=torch.float64)
    idxs = torch.tensor([0, 1, 1, 0, 1])
    before = new(x1, x2, idxs)
    for module in (old, new):
        module.load_state_dict(state)
    torch.testing.assert_close(new(x1, x2, idxs), old(x1, x2, idxs))
    assert not torch.allclose(new(x1, x2, idxs), before)
    state["w3j"][0, 0, 0, 1] = 1.0
    with pytest.raises(RuntimeError, match="w3j: expected a multiple of the Wigner 3j symbol"):
        new.load_state_dict(state)
