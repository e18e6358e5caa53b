"""The systems of examples/models, small: equal to e3nn's, equivariant, short; and the table that the bench prints."""

import csv
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from eqk.testing import generators

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import gallery  # noqa: E402

FOLDER = ROOT / "examples" / "models"
SYSTEMS = {system.title: (file, system) for file in gallery.models.FILES for system in gallery.of(file, small=True)}


@pytest.mark.parametrize("title", SYSTEMS)
def test_system(title):
    file, system = SYSTEMS[title]
    _, generator = generators(f"gallery {title}")
    inputs = system.inputs(generator)
    ours, theirs = gallery.pair(file, system, torch.float64)
    assert gallery.difference(ours, theirs, inputs) < 1e-12
    assert gallery.equivariance_error(system, ours, inputs, generator) < system.equivariance
    # Of what turns, or there would be nothing to hold.
    assert system.turn.keys() <= inputs.keys()


def test_a_difference_is_seen():
    file, system = next(iter(SYSTEMS.values()))
    _, generator = generators("gallery difference")
    inputs = system.inputs(generator)
    ours, theirs = gallery.pair(file, system, torch.float64)
    with torch.no_grad():
        for weight in theirs.parameters():  # all of them: what leads to a ReLU may be without effect
            weight += 1e-6
    assert gallery.difference(ours, theirs, inputs) > 1e-9
    turned = {**inputs, "sh": inputs["sh"] + 1e-6}
    wrong = dataclasses.replace(system, turn={"x": system.turn["x"]})
    assert gallery.equivariance_error(wrong, ours, turned, generator) > 1e-3


def test_nequix_by_muon(generator):
    """Its matrices, o3.Linear's too, become parameters of their own, of the same model, that one step makes better."""
    file, system = SYSTEMS["Nequix, layer"]
    inputs = system.inputs(generator)
    model, _ = gallery.pair(file, system, torch.float64)
    before = model(*inputs.values()).detach()
    count = sum(p.numel() for p in model.parameters())
    muon, adam = gallery.models.load(file).optimizers(model, 1e-3, 0.0)
    assert torch.equal(model(*inputs.values()), before)
    of = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in (muon, adam)]
    assert sum(p.numel() for params in of for p in params) == count
    assert len(of[0]) == 3 + 3 * 3  # of the radial network, and of three linear maps with three irreps
    assert len(of[1]) == 3  # of the norm
    losses = []
    for _ in range(5):
        loss = (model(*inputs.values()) - 1).square().mean()
        losses.append(loss.item())
        for optimizer in (muon, adam):
            optimizer.zero_grad()
        loss.backward()
        changed = [p.detach().clone() for params in of for p in params]
        for optimizer in (muon, adam):
            optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(changed, [*of[0], *of[1]], strict=True))
    assert losses == sorted(losses, reverse=True)


def test_both_sides_of_a_matrix_turn():
    _, system = SYSTEMS["PhiSNet, Hamiltonian of pairs"]
    _, generator = generators("gallery matrix")
    inputs, module = system.inputs(generator), system.module(**system.arguments).double()
    for one_side in ([system.out[0], None], [None, system.out[1]]):
        wrong = dataclasses.replace(system, out=one_side)
        assert gallery.equivariance_error(wrong, module, inputs, generator) > 1e-3


def test_files():
    """Each file is in both rooms and in the list, and short."""
    for folder in (FOLDER, FOLDER / "on_e3nn"):
        files = {path.stem for path in folder.glob("*.py")} - {"__init__", "system", "layers"}
        assert files == set(gallery.models.FILES)
    for file in gallery.models.FILES:
        assert len((FOLDER / f"{file}.py").read_text().splitlines()) <= 150


def test_table():
    """The committed one has every system, in order."""
    with gallery.TABLE.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["system"] for row in rows] == list(SYSTEMS)
    assert all(float(row["difference"]) < 1e-11 and float(row["ratio"]) > 0 for row in rows)


def test_bench(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gallery.py", gallery.models.FILES[0], "--small", "--rounds", "1"])
    threads = torch.get_num_threads()
    gallery.main()
    torch.set_num_threads(threads)
    assert next(iter(SYSTEMS)) in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gallery.py", "no_such_file"])
    with pytest.raises(SystemExit):
        gallery.main()
    assert "no_such_file" in capsys.readouterr().err
