"""The systems of examples/models, small: equal to e3nn's, equivariant, short; and the table that the bench prints."""

import csv
import sys
from pathlib import Path

import pytest
import scipy.stats
import torch

import eqk
from eqk.testing import assert_close, generators

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
    assert gallery.equivariance_error(system, ours, inputs, generator) < 1e-12
    # Of what turns, or there would be nothing to hold.
    assert system.turn.keys() <= inputs.keys()


def test_a_difference_is_seen():
    file, system = next(iter(SYSTEMS.values()))
    _, generator = generators("gallery difference")
    inputs = system.inputs(generator)
    ours, theirs = gallery.pair(file, system, torch.float64)
    with torch.no_grad():
        next(theirs.parameters())[0] += 1e-6
    assert gallery.difference(ours, theirs, inputs) > 1e-9
    turned = {**inputs, "sh": inputs["sh"] + 1e-6}
    wrong = type(system)(**{**vars(system), "turn": {"x": system.turn["x"]}})
    assert gallery.equivariance_error(wrong, ours, turned, generator) > 1e-3


def test_files():
    """Each file is in both rooms and in the list, and short."""
    for folder in (FOLDER, FOLDER / "on_e3nn"):
        files = {path.stem for path in folder.glob("*.py")} - {"__init__", "system", "layers"}
        assert files == set(gallery.models.FILES)
    for file in gallery.models.FILES:
        assert len((FOLDER / f"{file}.py").read_text().splitlines()) <= 150


@pytest.fixture
def symphony():
    """One focus, on a coarse grid, and its distribution [radii, res_beta, res_alpha]."""
    torch.set_default_dtype(torch.float64)
    try:
        system = gallery.of("symphony", small=True)[0]
        module = system.module(**{**system.arguments, "res": (12, 23)})
    finally:
        torch.set_default_dtype(torch.float32)
    inputs = system.inputs(generators("symphony")[1])
    x, species = inputs["x"][:1], inputs["species"][:1]
    with torch.no_grad():
        return module, x, species, module.log_probabilities(module.coefficients(x, species))[0].exp()


def test_symphony_probabilities(symphony):
    module, x, species, p = symphony
    assert_close(p.sum(), torch.ones((), dtype=torch.float64))
    for n, i, j in ((0, 0, 0), (2, 5, 20), (3, 11, 7)):
        with torch.no_grad():
            _, of_radii, density = module(x, species, module.radii[n] * module.points[i, j][None])
        assert_close(of_radii[0].exp(), p.sum((1, 2)))
        assert_close(density[0].exp() * module.weights[i], p[n, i, j])


def test_symphony_samples(symphony):
    """How often each radius and octant is drawn: a chi-square that once in a billion seeds is larger."""
    module, x, species, p = symphony

    def cells(positions):
        octant = ((positions > 0) * torch.tensor([1, 2, 4])).sum(-1)
        return 8 * (positions.norm(dim=-1, keepdim=True) - module.radii).abs().argmin(-1) + octant

    places = module.radii[:, None, None, None] * module.points
    probability = torch.zeros(8 * len(module.radii), dtype=torch.float64)
    probability.index_add_(0, cells(places).flatten(), p.flatten())
    count, generator = 4000, torch.Generator().manual_seed(eqk.testing.seed())
    with torch.no_grad():
        drawn = module.sample(x.expand(count, -1), species.expand(count), generator)
    frequency = torch.bincount(cells(drawn), minlength=len(probability))
    assert not frequency[probability == 0].any()
    expected = count * probability
    often = expected > 5  # the others as one cell
    observed = torch.cat([frequency[often], frequency[~often].sum()[None]]).double()
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    present = expected > 0
    square = ((observed - expected)[present] ** 2 / expected[present]).sum()
    assert square < scipy.stats.chi2.isf(1e-9, int(present.sum()) - 1)


def test_symphony_picture(symphony, tmp_path):
    module, x, species, _ = symphony
    gallery.models.load("symphony").draw(module, x, species, tmp_path / "signals.png")
    picture = (tmp_path / "signals.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


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
