"""MACE's symmetric contraction, by itself and in a model (mace-torch 0.3.16, which needs e3nn 0.4.4)."""

import copy
import pickle

import mace  # noqa: F401 before e3nn: e3nn 0.4.4 cannot be imported by itself with torch 2.6 and newer
import model_checks
import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.util import jit
from mace import modules

import eqk
from eqk.testing import assert_close, relative_error


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def contraction(irreps_in, irreps_out, correlation, channels, num_elements=7):
    with_channels = [o3.Irreps([(channels, ir) for _, ir in o3.Irreps(i)]) for i in (irreps_in, irreps_out)]
    return modules.SymmetricContraction(*with_channels, correlation, num_elements=num_elements)


def outputs(module, x, y):
    """Value, gradients and double backward."""
    x = x.clone().requires_grad_()
    parameters = [p for _, p in sorted(module.named_parameters()) if p.requires_grad]
    out = module(x, y)
    first = torch.autograd.grad(out.pow(2).sum(), (x, *parameters), create_graph=True)
    second = torch.autograd.grad(first[0].pow(2).sum(), (x, *parameters))
    return [(0, out), *((1, t) for t in first), *((2, t) for t in second)]


CASES = [
    ("0e + 1o + 2e + 3o", "0e + 1o", 3),
    ("0e + 1o + 2e + 3o", "0e + 1o + 2e", 3),
    ("0e + 1o + 2e + 3o", "0e", 3),
    ("0e + 1o + 2e", "0e + 1o + 2e", 2),
    ("0e + 1o", "2e + 3o", 3),  # without paths of degree 1
    ("0e + 1o", "0e + 1o", 1),
    ("0e + 1o", "0e + 1o + 2e", 4),
]


@pytest.mark.parametrize(("irreps_in", "irreps_out", "correlation"), CASES)
def test_contraction(irreps_in, irreps_out, correlation, dtype, generator):
    module = contraction(irreps_in, irreps_out, correlation, 9)
    x = torch.randn(8, 9, o3.Irreps(irreps_in).dim, generator=generator, dtype=dtype)
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 6, 2, 2, 0, 5, 5, 6]), 7).to(dtype)
    attributes = [one_hot, torch.rand(8, 7, generator=generator, dtype=dtype), one_hot[:, :1].fill_(1).expand(-1, 7)]
    expected = [outputs(module, x, y) for y in attributes]
    state = {key: value.clone() for key, value in module.state_dict().items()}
    parameters = dict(module.named_parameters())
    report = eqk.convert(module)
    assert report.swapped == [("(root)", "SymmetricContraction", "eqk.adapters.mace.FusedSymmetricContraction")]
    assert list(module.state_dict()) == list(state)
    assert all(p is parameters[name] for name, p in module.named_parameters())
    own = eqk.o3.SymmetricContraction(str(module.irreps_in), str(module.irreps_out), correlation, num_elements=7)
    own.load_state_dict(state)
    others = [module, own]
    if all(p.requires_grad for p in module.parameters()):  # MACE's parameters of zeros cannot be copied
        others += [pickle.loads(pickle.dumps(module)), copy.deepcopy(module)]
    for other in others:
        for y, want in zip(attributes, expected, strict=True):
            for (order, b), (_, a) in zip(want, outputs(other, x, y), strict=True):
                assert_close(a, b, order)
    scripted = jit.script(module)
    for y, want in zip(attributes, expected, strict=True):
        assert_close(scripted(x, y), want[0][1])


def test_load_state_dict_after_conversion(generator, float64_default):
    """A checkpoint with symbols of other signs, as another e3nn has them: its own buffers count."""
    module = contraction("0e + 1o + 2e", "1o", 2, 3)
    other = copy.deepcopy(module)
    for u in (other.contractions[0].U_matrix_2, module.contractions[0].U_matrix_1):
        u.neg_()
    x, y = torch.randn(5, 3, 9, generator=generator), torch.eye(7)[:5]
    expected = other(x, y)
    eqk.convert(module)
    module.load_state_dict(other.state_dict())
    assert_close(module(x, y), expected)
    broken = other.state_dict()
    broken["contractions.0.U_matrix_2"][0, 1, 2] += 1
    with pytest.raises(ValueError, match=r"basis\[0\]: expected equivariant paths to 1o"):
        module.load_state_dict(broken)


def test_what_cannot_be_fused():
    module = contraction("0e + 1o", "0e", 2, 3)
    module.contractions[0].register_forward_hook(lambda *_: None)
    (left,) = eqk.convert(module).left
    assert "hooks" in left.reason
    module = contraction("0e + 1o", "0e", 2, 3)
    module.forward = lambda x, y: x
    (left,) = eqk.convert(module).left
    assert "a forward of its own" in left.reason


def silicon(dtype, copies=(1, 1, 1)):
    import ase.build
    from mace import data, tools
    from mace.tools import torch_geometric

    atoms = ase.build.bulk("Si", cubic=True) * copies
    atoms.rattle(0.05, seed=1)
    atoms.numbers[::3] = 8
    table = tools.AtomicNumberTable(list(range(1, 90)))
    graph = data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=5.0)
    return next(iter(torch_geometric.dataloader.DataLoader([graph], batch_size=1))).to_dict()


def potential(hidden="16x0e + 16x1o", **changes):
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    arguments = dict(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=block, interaction_cls_first=block,
        num_interactions=2, num_elements=89, hidden_irreps=o3.Irreps(hidden), MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu, atomic_energies=np.zeros(89), avg_num_neighbors=30.0,
        atomic_numbers=list(range(1, 90)), correlation=3, radial_type="bessel", atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )  # fmt: skip
    return modules.ScaleShiftMACE(**arguments | changes)


def energy_and_forces(model, batch):
    out = model({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}, compute_force=True)
    return out["energy"], out["forces"]


@pytest.mark.parametrize("changes", [{}, dict(use_agnostic_product=True), dict(correlation=2)], ids=str)
def test_potential(changes, dtype):
    """Energy and forces of a whole model, eager and scripted, and its state dict."""
    model, batch = potential(**changes), silicon(dtype)
    expected = energy_and_forces(model, batch)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    eqk.convert(model)
    assert set(model.state_dict()) == set(state)
    for other in (model, jit.compile(copy.deepcopy(model))):
        for got, want in zip(energy_and_forces(other, batch), expected, strict=True):
            assert relative_error(got, want) < model_checks.TOLERANCES[dtype]
    fresh = potential(**changes)
    fresh.load_state_dict(model.state_dict())
    for got, want in zip(energy_and_forces(fresh, batch), expected, strict=True):
        assert relative_error(got, want) < model_checks.TOLERANCES[dtype]
