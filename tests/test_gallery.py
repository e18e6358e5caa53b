"""The systems of examples/models, small: equal to e3nn's, equivariant, short; and the table that the bench prints."""

import csv
import dataclasses
import math
import sys
import weakref
from pathlib import Path

import pytest
import scipy.stats
import torch
from scipy.spatial.transform import Rotation
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
    assert gallery.equal(gallery.difference(ours, theirs, inputs), theirs, inputs, generator)
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
    error = gallery.difference(ours, theirs, inputs)
    assert error > 1e-9
    assert not gallery.equal(error, theirs, inputs, generator)
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


class PeakOfMemory(TorchDispatchMode):
    """The most bytes that tensors made meanwhile have at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        arguments = [t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            storage = t.untyped_storage() if isinstance(t, torch.Tensor) else None
            if storage is None or storage._cdata in self.known or storage._cdata in arguments:
                continue
            self.known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return result

    def freed(self, key, size):
        self.known.discard(key)
        self.live -= size


def test_point_cloud_memory():
    """Three times the edges, as many of them at a time: the same memory, where e3nn's needs more than twice as much."""
    system = gallery.of("point_cloud", small=True)[0]
    modules, bytes_saved, peaks = gallery.pair("point_cloud", system, torch.float64), [], []
    for neighbours, modules[0].size in ((4, 12), (12, 4)):
        _, generator = generators(f"gallery cloud {neighbours}")
        points, graph = gallery.models.system.random_cloud(60, neighbours, generator)
        x = gallery.models.system.random_features(system.turn["x"], 60, generator)
        for module in modules:
            saved = {}

            def keep(t, saved=saved):
                if t.is_floating_point():
                    saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            call = gallery.gradient_call(module, {"x": x, "points": points, "graph": graph})
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), PeakOfMemory() as memory:
                call()
            bytes_saved.append(sum(saved.values()))
            peaks.append(memory.peak)
    for ours, theirs, more, theirs_more in (bytes_saved, peaks):
        assert more < 1.05 * ours < theirs
        assert theirs_more > 2 * theirs


def rotation_tools(name):
    return gallery.models.load("rotation_tools"), generators(f"gallery {name}")[1]


def test_superposition_is_scipys():
    """Of copies that are turned, mirrored too, and moved from their places."""
    ours, generator = rotation_tools("superposition")
    for mirror in (1, -1):
        source = torch.randn(8, 5, 3, generator=generator, dtype=torch.float64)
        turned = mirror * source @ ours.random_rotations(8, generator, torch.float64)
        target = turned + 0.3 * torch.randn(8, 5, 3, generator=generator, dtype=torch.float64)
        weights = 0.1 + torch.rand(8, 5, generator=generator, dtype=torch.float64)
        moved, rmsd = ours.Superposition()(source, target, weights)
        for a, b, w, result, error in zip(source, target, weights, moved, rmsd, strict=True):
            means = [(w[:, None] * t).sum(0) / w.sum() for t in (a, b)]
            rotation, distance = Rotation.align_vectors((b - means[1]).numpy(), (a - means[0]).numpy(), w.numpy())
            expected = torch.from_numpy(rotation.apply((a - means[0]).numpy())) + means[1]
            assert_close(result, expected)
            assert abs(error - distance / w.sum().sqrt()) < 1e-12


def test_nearest_rotation_of_equal_singular_values():
    """Where those of a singular value decomposition are infinite, its derivatives are right; else it is refused."""
    ours, generator = rotation_tools("degenerate")
    rotation = ours.random_rotations(1, generator, torch.float64)[0]
    for values in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, 0.0), (2.0, 2.0, -1.0)):
        matrix = (rotation @ torch.tensor(values, dtype=torch.float64).diag()).requires_grad_()
        assert_close(ours.nearest_rotation(matrix), rotation)
        assert torch.autograd.gradcheck(ours.nearest_rotation, matrix)
        assert torch.autograd.gradgradcheck(ours.nearest_rotation, matrix)
        assert torch.autograd.gradcheck(ours.MatrixFisher().log_normalizer, matrix)
    for values in ((1.0, 1.0, -1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match="unique nearest rotation"):
            ours.nearest_rotation(rotation @ torch.tensor(values, dtype=torch.float64).diag())


def test_random_rotations_are_uniform():
    """Their angles have the density (1 - cos) / pi, and no direction is preferred."""
    ours, generator = rotation_tools("uniform")
    r = ours.random_rotations(4000, generator, torch.float64)
    assert_close(r @ r.mT, torch.eye(3, dtype=torch.float64).expand_as(r))
    assert (torch.linalg.det(r) > 0).all()
    angles = ((r.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    assert scipy.stats.kstest(angles.numpy(), lambda a: (a - torch.from_numpy(a).sin().numpy()) / math.pi).pvalue > 1e-9
    # The variance of each number is 1 / 3; six standard deviations.
    assert r.mean(0).abs().max() < 6 * (3 * len(r)) ** -0.5


def test_matrix_fisher():
    """Against sums over rotations, derivatives too, and for large F against the normal distribution that it is then."""
    ours, generator = rotation_tools("fisher")
    truth = gallery.models.load("rotation_tools", on="e3nn").MatrixFisher()
    inputs = {
        "f": torch.randn(6, 3, 3, generator=generator, dtype=torch.float64),
        "r": ours.random_rotations(6, generator, torch.float64),
    }
    assert gallery.difference(ours.MatrixFisher(), truth, inputs) < 1e-12
    # Of equal singular values, to the last bit, too.
    for values in ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, -1.0]):
        f = torch.tensor(values, dtype=torch.float64).diag()[None]
        gradients = []
        for module in (ours.MatrixFisher(), truth):
            leaf = f.clone().requires_grad_()
            gradients += torch.autograd.grad(module.log_normalizer(leaf).sum(), leaf)
        assert (gradients[0] - gradients[1]).abs().max() < 1e-12
    s = torch.tensor([3e3, 2e3, 1e3], dtype=torch.float64)
    widths = (s[0] + s[1]) * (s[0] + s[2]) * (s[1] + s[2])
    expected = s.sum() - (8 * math.pi * widths).log() / 2
    assert abs(ours.MatrixFisher().log_normalizer(s.diag()) - expected) < 1e-3


def test_matrix_fisher_samples():
    """Their mean is the gradient of the normaliser's logarithm; six standard errors, of numbers below one."""
    ours, generator = rotation_tools("fisher samples")
    fisher, count = ours.MatrixFisher(), 4000
    for scale in (0.0, 1.0, 20.0):
        f = (scale * torch.randn(3, 3, generator=generator, dtype=torch.float64)).requires_grad_()
        (mean,) = torch.autograd.grad(fisher.log_normalizer(f), f)
        drawn = fisher.sample(f.expand(count, 3, 3), generator)
        assert_close(drawn @ drawn.mT, torch.eye(3, dtype=torch.float64).expand_as(drawn))
        assert ((drawn.mean(0) - mean).abs() < 6 * drawn.std(0) / count**0.5 + 1e-12).all()


def test_table():
    """The committed one has every system, in order."""
    with gallery.TABLE.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["system"] for row in rows] == list(SYSTEMS)
    assert all(float(row["difference"]) < 1e-12 and float(row["ratio"]) > 0 for row in rows)


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
