"""The choice of a product follows its table of measured times, and the table two times that are clear anywhere."""

import itertools
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import eqk
from eqk.analysis import expressivity
from eqk.best_product import DEGREES, KINDS, MEASURED, PHASES
from eqk.best_product import best_product as best

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import price_of_freedom as bench


def test_table_is_complete():
    assert set(MEASURED) == set(itertools.product(["cpu"], KINDS, bench.CROSSOVER_CHANNELS, PHASES))
    assert len(set(DEGREES)) == len(DEGREES)
    assert all(len(ratios) == len(DEGREES) and min(ratios) > 0 for ratios in MEASURED.values())


def test_follows_the_table():
    """At each measured point, for x and y exchanged too, the product that took less; for R terms, R times as long."""
    for (device, kind, channels, phase), ratios in MEASURED.items():
        for ((l1, l2, l3), ratio), rank in itertools.product(zip(DEGREES, ratios, strict=True), (1, 2, 5)):
            for pair in ((l1, l2), (l2, l1)):
                choice = best(*pair, l3, channels, kind=kind, phase=phase, device=device, rank=rank)
                assert choice.product == ("gaunt_product" if ratio > rank else "tensor_product")
                times, name, at = re.fullmatch(r"(\S+) times as fast as (\w+) at (.*)", choice.reason).groups()
                assert float(times) == pytest.approx(max(ratio / rank, rank / ratio), abs=0.006)
                assert {choice.product, name} == {"gaunt_product", "tensor_product"}
                assert at.startswith(f"{l1} x {l2} -> {l3}, {channels} channels, {phase} on cpu")
                assert hasattr(eqk, choice.product)


@pytest.mark.parametrize(
    ("asked", "channels", "degrees", "measured"),
    [
        ((20, 20, 20), 1, (6, 6, 12), 1),
        ((5, 7, 6), 3000, (6, 6, 6), 128),
        ((0, 0, 0), 40, (1, 1, 1), 128),
        ((3, 7, 7), 20, (6, 3, 6), 8),
        ((9, 9, 1), 2, (6, 6, 0), 1),
        ((2, 3, 3), 3, (3, 3, 3), 8),
    ],
)
def test_nearest(asked, channels, degrees, measured):
    """Among 1, 8 and 128 channels the least ratio; 20 x 20 -> 20 is next to 6 x 6 -> 12, x and y interchangeable."""
    choice = best(*asked, channels)
    assert "{} x {} -> {}".format(*degrees) + f", {measured} channels" in choice.reason


def test_weights_of_paths():
    """They need Clebsch-Gordan products on any device, since they span more than a product of signals can."""
    for device in ("cpu", "cuda", torch.device("cuda", 1)):
        assert best(6, 6, 6, 128, weights="per_path", device=device).product == "tensor_product"
    assert best(6, 6, 6, 128).product == "gaunt_product"
    plan = bench.Setting("signals", "even", (range(7),) * 3).plan(1, True)
    assert expressivity(plan) == 106 > expressivity(eqk.GauntPlan.normalized(6, 6, 6, 1, 1)) == 19


@pytest.mark.parametrize(("lmaxes", "kind", "channels"), [((6, 6, 6), "even", 128), ((6, 6, 0), "all", 8)])
def test_the_clear_ones_here(lmaxes, kind, channels):
    """Ratios of 8.6 and 0.22 in the table are on the same side of 1 on this machine."""
    setting = bench.Setting("signals", kind, tuple(range(lmax + 1) for lmax in lmaxes))
    x, y, _ = bench.operands_of(setting.plan(channels, False), 4096 // channels)
    functions = {
        "tensor_product": bench.eqk_cg(setting, channels, torch.float32, weighted=False),
        "gaunt_product": bench.eqk_gaunt(setting, channels, torch.float32),
    }
    taken = {name: [] for name in functions}
    for _, (name, f) in itertools.product(range(7), functions.items()):
        start = time.process_time()
        f(x, y)
        taken[name].append(time.process_time() - start)
    assert min(functions, key=lambda name: sorted(taken[name])[3]) == best(*lmaxes, channels, kind=kind).product


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("lmax1: expected a degree from 0 to 20, got -1", {"lmax1": -1}),
        ("lmax2: expected a degree from 0 to 20, got 21", {"lmax2": 21}),
        ("lmax_out: expected a degree from 0 to 20, got 2.0", {"lmax_out": 2.0}),
        ("lmax_out: expected a degree from 0 to 20, got True", {"lmax_out": True}),
        ("channels: expected a positive number, got 0", {"channels": 0}),
        ("rank: expected a positive number, got 1.5", {"rank": 1.5}),
        ("kind: expected one of even, all, got 'odd'", {"kind": "odd"}),
        ("weights: expected one of per_path, factorised, got 'shared'", {"weights": "shared"}),
        ("phase: expected one of forward, training, got 'backward'", {"phase": "backward"}),
        ("device: expected a torch.device or its name, got 'gpu'", {"device": "gpu"}),
        ("device: expected one that was measured, cpu, got cuda", {"device": "cuda"}),
    ],
)
def test_bad_arguments(message, arguments):
    with pytest.raises(ValueError, match=re.escape(message)):
        best(**{"lmax1": 2, "lmax2": 2, "lmax_out": 2} | arguments)
