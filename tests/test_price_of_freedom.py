"""bench/price_of_freedom.py: every product computes the paths it is timed for, and what it expresses is counted."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import price_of_freedom as bench

# Expressivity with weights of paths and without, triples that interact, and those that rotations allow.
COUNTS = {
    "siso-1": (1, 1, 1, 1),
    "siso-2": (1, 1, 1, 1),
    "simo-even-3": (4, 4, 4, 7),
    "simo-all-3": (7, 7, 7, 7),
    "mimo-even-1": (5, 5, 5, 6),
    "mimo-all-1": (6, 5, 6, 6),
    "mimo-even-2": (14, 9, 14, 19),
    "mimo-all-2": (19, 9, 19, 19),
}


# Of cross products, which have up to three copies of each irrep and no path (0, 0, 0).
VECTORS = {"mimo-all-1": (5, 5, 6), "mimo-all-2": (18, 18, 19)}
NO_BRACKET, ONLY_ALL = ("grid-e3nn", "fourier"), ("eqk-vector", "eqk-matrix")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COUNTS)
def test_products(name, channels):
    """Value and gradients of each product against the paths one by one, and its counts."""
    setting = bench.setting_of(name)
    for product, make in bench.PRODUCTS.items():
        message = None
        if product in NO_BRACKET and setting.kind != "even":
            message = "^no bracket$"
        if product in ONLY_ALL and setting.kind == "even" and setting.name != "siso":
            message = "^odd paths cannot be left out$"
        if message:
            with pytest.raises(ValueError, match=message):
                make(setting, channels, torch.float32)
            continue
        f = make(setting, channels, torch.float32)
        bench.check(name, product, setting, channels, f)
        weighted, without, coupled, allowed = COUNTS[name]
        of_paths = product in bench.WEIGHTED
        expected = (weighted if of_paths else without, coupled, allowed)
        if product == "eqk-vector":
            expected = VECTORS.get(name, expected)
        assert bench.expressed(setting, product) == expected


def test_a_wrong_product_is_not_timed():
    setting = bench.setting_of("mimo-even-2")
    f = bench.grid(setting, 1, torch.float32)
    with pytest.raises(SystemExit, match="forward of grid differs from the Clebsch-Gordan paths by"):
        bench.check("mimo-even-2", "grid", setting, 1, lambda x, y: f(x, y) * 1.0001)

    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * 1.0001

    with pytest.raises(SystemExit, match="backward of grid differs from the Clebsch-Gordan paths by"):
        bench.check("mimo-even-2", "grid", setting, 1, lambda x, y: f(WrongBackward.apply(x), y))


def run(tmp_path, *arguments):
    """The rows of the CSV, and what the command printed."""
    out = tmp_path / "results" / "p.csv"
    command = [sys.executable, bench.__file__, "--malloc", "default", "--rounds", "1"]
    ran = subprocess.run([*command, "--rows", "30", "--out", out, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with open(out, newline="") as file:
        return list(csv.DictReader(file)), ran


def test_command(tmp_path):
    products = ["cg-dense", "fourier", "eqk-gaunt"]
    rows, ran = run(tmp_path, "--cases", "siso-1", "simo-all-2", "mimo-even-2", "--products", *products)
    assert [(r["setting"], r["kind"], r["lmax"]) for r in rows[::6]] == [
        ("siso", "odd", "1"),
        ("simo", "all", "2"),
        ("mimo", "even", "2"),
    ]
    assert [(r["product"], r["phase"]) for r in rows[:6]] == [(p, f) for f in ("forward", "backward") for p in products]
    for row in rows:
        if row["product"] == "fourier" and row["kind"] != "even":
            assert (row["ms"], row["note"]) == ("", "no bracket")
            continue
        assert row["note"] == ""
        ms, expressivity = float(row["ms"]), int(row["expressivity"])
        assert ms > 0
        assert float(row["us_per_expressivity"]) == pytest.approx(1e3 * ms / expressivity)
    assert [r["expressivity"] for r in rows[12:15]] == ["14", "9", "9"]
    assert (tmp_path / "results" / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len([line for line in ran.stdout.splitlines() if line.startswith("|")]) == 2 + 3
    csv_file, png = tmp_path / "results" / "p.csv", tmp_path / "again.png"
    command = [sys.executable, bench.__file__, "--plot", csv_file, "--out", png.with_suffix(".csv")]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == ran.stdout
    assert png.read_bytes() == (tmp_path / "results" / "p.png").read_bytes()


def test_what_is_slow_is_said(tmp_path):
    rows, ran = run(tmp_path, "--cases", "siso-2", "--products", "eqk-cg", "--most-seconds", "0")
    assert [(r["ms"], r["note"]) for r in rows] == [("", "one call took 0.0 s")] * 2
    assert "siso-2: eqk-cg backward: one call took 0.0 s" in ran.stderr


def test_what_is_too_large_is_said(monkeypatch):
    """As where an allocation fails, for which --rows 10 000 is too small."""

    def too_large(setting, channels, dtype):
        f = bench.grid(setting, channels, dtype)

        def product(x, y):
            if len(x) > 1000:
                torch.empty(2**58)
            return f(x, y)

        return product

    monkeypatch.setitem(bench.PRODUCTS, "grid", too_large)
    arguments = bench.arguments(
        ["--cases", "siso-2", "--products", "grid", "eqk-cg", "--rows", "2000", "--rounds", "1"]
    )
    rows = bench.bench("siso-2", arguments, 1)
    assert [r["product"] for r in rows] == ["grid", "eqk-cg"] * 2
    for row in rows:
        assert (row["ms"] == "") == (row["product"] == "grid")
        assert ("allocate" in row["note"]) == (row["product"] == "grid")
