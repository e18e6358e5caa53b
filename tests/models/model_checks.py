"""What every converted model must keep; ``framework`` and ``options`` as in bench/frameworks.py."""

import copy
import io
import pickle
import sys
from pathlib import Path

import torch

import eqk
from eqk import testing
from eqk.convert import ConversionReport

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from frameworks import Framework, check_accuracy, relative_error, silicon

# Largest error relative to the largest magnitude.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(framework: Framework, dtype: torch.dtype, options: dict, training: bool = False):
    """A model as it is, its converted twin and the report."""
    models = [framework.build(dtype, **options).train(training) for _ in range(2)]
    report = eqk.convert(models[1])
    assert report.model is models[1]
    return *models, report


def fused(report: ConversionReport) -> list[str]:
    return [row.name for row in report.swapped if "eqk.adapters." in row.after]


def ours(model) -> list[tuple[str, type]]:
    return [(name, type(m)) for name, m in model.named_modules() if type(m).__module__.startswith("eqk.")]


def assert_equal_forces(framework, model, twin, dtype, atoms=None, positive=True):
    atoms = atoms if atoms is not None else silicon(1)
    (energy, forces), (new_energy, new_forces) = (
        framework.evaluate(m, framework.inputs(atoms, m)) for m in (model, twin)
    )
    if positive:
        assert forces.abs().max() > 1e-5
        assert relative_error(new_forces, forces) < TOLERANCES[dtype]
    else:
        assert torch.equal(new_forces, forces)
    assert (new_energy - energy).abs() <= TOLERANCES[dtype] * max(1, energy.abs())
    return new_forces.detach()


def assert_accurate_forces(framework, options, model, twin, atoms):
    """In float32, where those of the model as it is, small differences of large numbers, are far from float64's too."""
    forces = [framework.evaluate(m, framework.inputs(atoms, m))[1].detach() for m in (model, twin)]
    assert check_accuracy(framework, options, atoms, model, forces)[1] < 1e-3


def assert_same_module(theirs, ours, x):
    """Values and gradients to x and all parameters, whose names are the same; checkpoints may have tables besides."""
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
    for expected, got in zip(*results, strict=True):
        testing.assert_close(got, expected)


def check_training(framework, options):
    """Gradients of a loss on energy and forces with respect to every parameter: second derivatives of the ops."""
    model, twin, report = pair(framework, torch.float64, options, training=True)
    assert fused(report)
    gradients = []
    for m in (model, twin):
        energy, forces = framework.evaluate(m, framework.inputs(silicon(1), m))
        # Random models have energies far larger than their forces.
        loss = (energy / energy.detach()).square() + (forces / forces.detach().abs().max()).square().sum()
        learned = [p for p in m.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(loss, learned, allow_unused=True))
    largest = max(g.abs().max() for g in gradients[0] if g is not None)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, old, new in zip(names, *gradients, strict=True):
        assert (old is None) == (new is None), name
        if old is not None:
            assert (new - old).abs().max() <= 1e-9 * largest, name


def check_state(framework, options):
    """Checkpoints load unchanged both ways; parameters stay themselves."""
    model = framework.build(torch.float64, **options)
    parameters = dict(model.named_parameters())
    twin = framework.build(torch.float64, **options)
    keys = list(model.state_dict())
    eqk.convert(model)
    assert list(model.state_dict()) == keys == list(twin.state_dict())
    assert all(p is parameters[name] for name, p in model.named_parameters())
    for source, target in ((model, twin), (twin, model)):
        with torch.no_grad():
            for p in source.parameters():
                p.mul_(1.01)
        target.load_state_dict(source.state_dict(), strict=True)
        assert_equal_forces(framework, model, twin, torch.float64)


def check_copies(framework, options, pickles=True):
    _, model, _ = pair(framework, torch.float64, options)
    keys = list(model.state_dict())
    copies = [copy.deepcopy(model)]
    if pickles:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        copies += [pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert list(other.state_dict()) == keys
        assert ours(other) == ours(model)
        assert_equal_forces(framework, model, other, torch.float64)
    assert not fused(eqk.convert(model))


def check_no_edges(framework, options):
    """An atom without neighbours, alone and beside others."""
    import ase

    model, twin, _ = pair(framework, torch.float64, options)
    alone = ase.Atoms("Si", positions=[[1.0, 2.0, 3.0]], cell=[40.0] * 3, pbc=True)
    assert_equal_forces(framework, model, twin, torch.float64, alone, positive=False)
    some = silicon(1)
    some.cell[2, 2] += 30.0
    some += ase.Atoms("Si", positions=[[1.0, 2.0, 20.0]])
    assert_equal_forces(framework, model, twin, torch.float64, some)


def check_left(framework, options, product: str):
    """A product with a hook of its own is called as before, and the report says why."""
    model, twin = (framework.build(torch.float64, **options) for _ in range(2))
    layer = product.rpartition(".")[0]
    calls = []
    twin.get_submodule(product).register_forward_hook(lambda *_: calls.append("hook"))
    report = eqk.convert(twin)
    (reason,) = (row.reason for row in report.left if row.name == layer)
    assert reason.endswith("which would not be called, has hooks")
    assert layer not in fused(report)
    assert_equal_forces(framework, model, twin, torch.float64)
    assert calls


def check_an_atom_without_neighbours(framework, options, atoms):
    """Beside others: of no edges at all fairchem's models of 1.10 make no rotation matrices."""
    import ase

    model, twin, _ = pair(framework, torch.float64, options)
    atoms.cell = [60.0] * 3
    atoms += ase.Atoms("Si", positions=[[30.0, 30.0, 30.0]])
    assert_equal_forces(framework, model, twin, torch.float64, atoms)


def check_edges_along_y(framework, options):
    """eSEN and EquiformerV3 turn such edges to the axis itself, with no gradient of the rotation; so it stays."""
    import ase

    model, twin, _ = pair(framework, torch.float64, options)
    positions = [[5.0, 5.0, 5.0], [5.0, 7.0, 5.0], [5.001, 3.0, 5.0], [6.5, 5.5, 6.0]]
    atoms = ase.Atoms("SiOHC", positions=positions, cell=[30.0] * 3, pbc=True)
    assert_equal_forces(framework, model, twin, torch.float64, atoms)


def change(name, new):
    """A function that puts ``new`` in the place of the module of that name in a layer."""

    def do(layer):
        parent, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(parent), leaf, new)

    return do
