"""The examples as programs, at small sizes, and what they are made of against independent truths."""

import dataclasses
import itertools
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

import eqk
from eqk.testing import relative_error

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))

import phonon_finetune as pft  # noqa: E402
import sevennet_md as md  # noqa: E402
import train_nequip_style as training  # noqa: E402

NUMBER = r"([-+]?[\d.]+(?:e[-+]\d+)?)"


def run(folder, *command):
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    return result.stdout


def numbers(text, pattern):
    """Those in the place of each # of a pattern, which must occur once."""
    found = re.findall(re.escape(pattern).replace(r"\#", NUMBER), text)
    assert len(found) == 1, (pattern, text)
    return [float(x) for x in (found[0] if isinstance(found[0], tuple) else found)]


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def trained(folder):
    """What the training example prints; its weights are in ``folder``."""
    seed = eqk.testing.seed() % 1000
    size = ("--structures", 40, "--epochs", 48, "--batch-size", 4, "--channels", 16, "--layers", 2)
    return run(folder, EXAMPLES / "train_nequip_style.py", *size, "--threads", 1, "--seed", seed)


def test_sevennet_md(folder):
    # Hot and in long steps, so that the drift of few steps is far above the last digit of an energy.
    hot = ("--structure", "Si", "--cells", 1, "--steps", 10, "--timestep", 2, "--temperature", 1500, "--threads", 1)
    out = run(folder, EXAMPLES / "sevennet_md.py", *hot, "--compare", "--repeat", "--trajectory", "md.extxyz")
    assert "A second run on eqk has the same bits in every position, momentum and energy." in out
    drift, change = numbers(out, "drift differs by #%, the largest change of energy by #%")
    assert max(drift, change) < 2
    assert is_picture(folder / "sevennet_md.png")
    frames = ase.io.read(folder / "md.extxyz", ":")
    assert len(frames) == 11
    for before, after in itertools.pairwise(frames):
        moved = (after.positions - before.positions) / (2 * ase.units.fs)
        velocity = (before.get_velocities() + after.get_velocities()) / 2
        assert np.abs(moved - velocity).max() < 0.01 * np.abs(velocity).max()
    energies = np.array([frame.get_total_energy() / len(frame) for frame in frames])
    potential = np.array([frame.get_potential_energy() / len(frame) for frame in frames])
    assert np.ptp(energies) < 0.05 * np.ptp(potential)


def test_drift_and_bits():
    steps = np.arange(1001)
    total = -3.5 + 2e-6 * steps + 1e-5 * np.sin(2 * np.pi * steps / 50)
    empty = np.zeros((1001, 1, 3))
    trajectory = md.Trajectory(total, total, total, empty, empty, 1.0)
    rise, rms, largest = md.drift(trajectory)
    assert abs(rise - 2.0) < 0.01
    assert abs(rms - 0.01 / np.sqrt(2)) < 1e-4
    assert abs(largest - np.abs(1e3 * (total - total[0])).max()) < 1e-12
    other = dataclasses.replace(trajectory, total=total[0] + 1.2 * (total - total[0]))
    np.testing.assert_allclose(md.differences(other, trajectory), [0.2, 0.2], rtol=1e-6)
    # Where there is no drift, the oscillation is what it is measured by.
    still, tilted = (
        dataclasses.replace(trajectory, total=-3.5 + slope * steps + 1e-5 * np.cos(2 * np.pi * steps / 50))
        for slope in (0, 1e-9)
    )
    assert abs(md.drift(still)[0]) < 1e-4
    np.testing.assert_allclose(md.differences(tilted, still)[0], 1e-3 / md.drift(still)[1], rtol=1e-3)
    assert md.same_bits(trajectory, dataclasses.replace(trajectory, total=total.copy()))
    moved = empty.copy()
    moved[7, 0, 1] = -0.0
    assert not md.same_bits(trajectory, dataclasses.replace(trajectory, momenta=moved))


def test_training_learns(folder, trained):
    first, last = numbers(trained, "loss: # in the first epoch, # in the last")
    assert last < first / 4
    energy, forces = numbers(trained, "errors on unseen structures: energy # meV/atom, forces # meV/A")
    guess_energy, guess_forces = numbers(trained, "errors of a guess:           energy # meV/atom, forces # meV/A")
    assert energy < 0.8 * guess_energy
    assert forces < 0.4 * guess_forces
    assert is_picture(folder / "train_nequip_style.png")


def test_tetris(folder):
    out = run(folder, EXAMPLES / "tetris.py", "--orientations", 20, "--seed", eqk.testing.seed() % 1000)
    for what in ("turned and moved", "mirrored as well"):
        assert numbers(out, what + ": # of 160 right, # %") == [160, 100]
    assert is_picture(folder / "tetris.png")


def test_phonon_finetuning_learns(folder, trained):
    size = ("--molecules", "CH3OH", "H2CO", "--unseen", "C2H6", "--structures", 8, "--steps", 40, "--threads", 1)
    out = run(folder, EXAMPLES / "phonon_finetune.py", *size)
    rows = re.findall(rf"^(\w+)(?: \(not seen\))? +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}$", out, re.MULTILINE)
    errors = {name: (float(before), float(after)) for name, before, after, *_ in rows}
    assert set(errors) == {"CH3OH", "H2CO", "C2H6"}
    before, after = np.square([errors["CH3OH"], errors["H2CO"]]).mean(0)
    assert after < 0.85**2 * before
    assert is_picture(folder / "phonon_finetune.png")


def test_two_ranks_are_one(folder):
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    size = ("--structures", 12, "--batch-size", 6, "--epochs", 2, "--channels", 8, "--layers", 2)
    out = run(folder, *start, EXAMPLES / "ddp_train.py", *size)
    assert numbers(out, "gradients of 2 ranks and of one differ by # of the largest")[0] < 1e-12
    first, last = numbers(out, "loss of rank 0's shares: # in the first epoch, # in the last")
    assert last < first
    assert "All 2 ranks have the same weights." in out


def test_no_thread_of_gloo_outlives_its_group(folder):
    """One that drops a tensor while Python shuts down ends the process by SIGABRT, as it once did on CI."""
    script = f"""
import os, sys
sys.path.append({str(EXAMPLES)!r})
import ddp_train, torch
def threads():
    names = [open(f"/proc/self/task/{{task}}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)
ddp_train.dist.init_process_group("gloo", store=ddp_train.dist.HashStore(), rank=0, world_size=1)
ddp_train.DistributedDataParallel(torch.nn.Linear(3, 3))(torch.ones(2, 3)).sum().backward()
before = threads()
ddp_train.dist.destroy_process_group()
print(f"{{before}} threads before, {{threads()}} after")
"""
    before, after = numbers(run(folder, "-c", script), "# threads before, # after")
    assert before > 0
    assert after == 0


@pytest.fixture(scope="module")
def structures():
    return training.labelled(["CH3OH", "H3CNH2", "HCOOH"], 3, 0.06, eqk.testing.seed() % 1000)


def small(structures, seed=0):
    """A model and a batch in float64, energies as large as forces."""
    model = training.build(structures, seed, torch.float64, channels=8, layers=2)
    return model, training.collate(structures, torch.float64)


def test_potential(structures, generator):
    """Forces are minus the slope of the energy; both turn with the molecule, mirrored too; atoms beyond the cutoff."""
    model, batch = small(structures)
    energies, forces = training.energies_and_forces(model, batch, training=False)
    energies = energies.detach()
    direction = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
    h = 1e-4
    up, down = (model(batch.positions + s * h * direction, batch).detach() for s in (1, -1))
    slope = torch.zeros(3, dtype=torch.float64).index_add(0, batch.molecule, (forces * direction).sum(1))
    torch.testing.assert_close((down - up) / (2 * h), slope, rtol=1e-5, atol=1e-6)
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    for turn in (matrix, -matrix):
        turned = dataclasses.replace(batch, positions=batch.positions @ turn.T)
        new_energies, new_forces = training.energies_and_forces(model, turned, training=False)
        assert relative_error(new_energies.detach(), energies) < 1e-12
        assert relative_error(new_forces, forces @ turn.T) < 1e-10
    alone = training.collate(structures[1:2], torch.float64)
    torch.testing.assert_close(model(alone.positions, alone)[0].detach(), energies[1], rtol=1e-12, atol=0)


def test_bessel_basis():
    """Zero with two derivatives at the cutoff, and sin(n pi r / c) / r towards the middle of two atoms."""
    r = torch.tensor([training.CUTOFF], dtype=torch.float64, requires_grad=True)
    value = training.bessel_basis(r, 4, training.CUTOFF).sum()
    (slope,) = torch.autograd.grad(value, r, create_graph=True)
    (bend,) = torch.autograd.grad(slope, r)
    assert max(abs(float(t.detach())) for t in (value, slope, bend)) < 1e-9
    near = training.bessel_basis(torch.tensor([1e-3], dtype=torch.float64), 4, training.CUTOFF)[0]
    expected = [(2 / training.CUTOFF) ** 0.5 * n * np.pi / training.CUTOFF for n in (1, 2, 3, 4)]
    torch.testing.assert_close(near, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_gradient_of_the_curvature_loss(structures, generator):
    """By weights: against differences of the loss, and the same model on the dense reference instead of kernels."""
    model, batch = small(structures)
    parameters = list(model.parameters())
    vectors, products = torch.randn(2, *batch.positions.shape, generator=generator, dtype=torch.float64)

    def gradient():
        return torch.autograd.grad(pft.curvature_loss(model, batch, vectors, products), parameters)

    got = gradient()
    assert all(float(g.abs().max()) > 0 for g in got)
    with eqk.dispatch.use_backend("reference"):
        expected = gradient()
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, b) < 1e-9
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    h, losses = 1e-5, []
    for sign in (1, -2, 1):  # up, down, back
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += sign * h * d
        losses.append(float(pft.curvature_loss(model, batch, vectors, products).detach()))
    slope = (losses[0] - losses[1]) / (2 * h)
    exact = float(sum((g * d).sum() for g, d in zip(got, directions, strict=True)))
    assert abs(slope - exact) < 1e-5 * abs(exact) + 1e-6


def test_hessian_products(structures, generator):
    """Against forward over reverse mode, and the Hessian against differences of forces."""
    model, batch = small(structures)
    vectors = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
    gradient = torch.func.grad(lambda positions: model(positions, batch).sum())
    _, expected = torch.func.jvp(gradient, (batch.positions,), (vectors,))
    product = pft.hessian_product(model, batch, vectors).detach()
    assert relative_error(product, expected.detach()) < 1e-10

    molecule = pft.minimum("H2CO")
    hessian = pft.model_hessian(model, molecule)
    one = training.collate([molecule.atoms], torch.float64)
    for column in range(0, 12, 5):
        forces = []
        for step in (1e-4, -1e-4):
            positions = one.positions.clone()
            positions.view(-1)[column] += step
            moved = dataclasses.replace(one, positions=positions)
            forces.append(training.energies_and_forces(model, moved, training=False)[1].flatten())
        assert relative_error(torch.from_numpy(hessian[column]), (forces[1] - forces[0]) / 2e-4) < 1e-5
    # Of GFN2-xTB: at a minimum all vibrations are real, and moving or turning the molecule costs nothing.
    truth = pft.frequencies(molecule.atoms, molecule.hessian)
    assert len(truth) == 6
    assert truth.min() > 500
    assert truth.max() < 3500
    assert np.abs(molecule.atoms.get_forces()).max() < 1.5e-3
    shift = np.tile(np.eye(3), (4, 1))
    assert np.abs(molecule.hessian @ shift).max() < 0.02
