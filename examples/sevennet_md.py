"""Molecular dynamics with SevenNet-0, a pretrained potential, on eqk: NVE, and how well it keeps the energy.

    python examples/sevennet_md.py                            # NaCl, 64 atoms, 1 000 steps
    python examples/sevennet_md.py --structure Si --trajectory silicon.traj
    python examples/sevennet_md.py --compare --repeat         # and the model as it was; eqk a second time

Prints the drift of the total energy and the speed, and draws sevennet_md.png. Drift is what a straight line, fitted to
the total energy by least squares, rises over the run; what is left, the energy's oscillation with the atoms, is given
as its root mean square. --compare runs the unmodified model from the same velocities and fails if its largest change of
energy differs from eqk's by more than 10 %, or its drift by more than 10 % of itself or of the oscillation: of the
larger, since where energy is kept the drift is zero, but for how the oscillation begins and ends. --repeat fails if a
second run, with the model built anew, differs in one bit of a position, a momentum or an energy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ase
import ase.io
import matplotlib
import numpy as np
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from sevennet_demo import MODEL, Trajectory, calculator, dynamics

import eqk

TOLERANCE = 0.1


def structure(name: str, cells: int) -> ase.Atoms:
    """``cells``^3 cubic cells of eight atoms of rock salt or silicon at rest."""
    kind = {"NaCl": {"crystalstructure": "rocksalt", "a": 5.64}, "Si": {}}[name]
    return bulk(name, cubic=True, **kind) * (cells, cells, cells)


def drift(run: Trajectory) -> tuple[float, float, float]:
    """Of the total energy, in meV/atom: rise of the fitted line, rms about it, and largest change since the start."""
    change = run.change()
    time = np.linspace(0, 1, len(change))
    slope, start = np.polyfit(time, change, 1)
    return slope, np.sqrt(np.mean((change - start - slope * time) ** 2)), np.abs(change).max()


def differences(trajectory: Trajectory, before: Trajectory) -> tuple[float, float]:
    """Of the drift, relative to that of ``before`` or its oscillation, and of the largest change of energy."""
    (rise, _, largest), (rise_before, rms_before, largest_before) = drift(trajectory), drift(before)
    unit = max(abs(rise_before), rms_before)
    return abs(rise - rise_before) / unit, abs(largest - largest_before) / largest_before


def run(name: str, args: argparse.Namespace) -> Trajectory:
    calc = calculator()
    if name != "e3nn":
        eqk.convert(calc.model)
    atoms = structure(args.structure, args.cells)
    return dynamics(calc, atoms, args.steps, args.timestep, args.temperature, args.seed, name)


def report(name: str, trajectory: Trajectory) -> None:
    rise, rms, largest = drift(trajectory)
    steps = len(trajectory.total) - 1
    print(
        f"{name:5} drift {rise:+.5f} meV/atom, rms about it {rms:.5f}, largest change {largest:.5f}; "
        f"{trajectory.temperature.mean():.0f} K; {steps / trajectory.seconds:.2f} steps/s"
    )


def same_bits(a: Trajectory, b: Trajectory) -> bool:
    return all(
        getattr(a, field).tobytes() == getattr(b, field).tobytes()
        for field in ("positions", "momenta", "potential", "total")
    )


def save(path: Path, trajectory: Trajectory, args: argparse.Namespace) -> None:
    atoms, frames = structure(args.structure, args.cells), []
    for positions, momenta, energy in zip(trajectory.positions, trajectory.momenta, trajectory.potential, strict=True):
        frame = atoms.copy()
        frame.set_positions(positions)
        frame.set_momenta(momenta)
        frame.calc = SinglePointCalculator(frame, energy=energy * len(atoms))
        frames.append(frame)
    ase.io.write(path, frames)


def draw(path: Path, runs: dict[str, Trajectory], args: argparse.Namespace) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    styles = {"eqk": {"color": "#2a6f97", "linewidth": 1.8}, "e3nn": {"color": "#c1121f", "linestyle": (0, (4, 4))}}
    for name, trajectory in runs.items():
        time = np.arange(len(trajectory.total)) * args.timestep
        rise, _, _ = drift(trajectory)
        label = f"{name}: drift {rise:+.0e} meV/atom, {(len(time) - 1) / trajectory.seconds:.1f} steps/s"
        left.plot(time, trajectory.change(), label=label, **styles[name])
    count = structure(args.structure, args.cells).get_global_number_of_atoms()
    left.set_xlabel("time [fs]")
    left.set_ylabel("change of total energy [meV/atom]")
    left.set_title(f"SevenNet-0, NVE of {args.structure}, {count} atoms", fontsize=11)
    left.legend(frameon=False, fontsize=9)
    left.margins(y=0.25)
    if len(runs) == 2:
        apart = np.abs(runs["eqk"].positions - runs["e3nn"].positions).max(axis=(1, 2))
        right.semilogy(time[1:], np.maximum(apart[1:], 1e-9), color="#2a6f97")
        right.set_ylabel("largest difference of a coordinate [\N{ANGSTROM SIGN}]")
        right.set_title("eqk and the unmodified model, from the same velocities", fontsize=11)
    else:
        right.plot(time, runs["eqk"].temperature, color="#2a6f97")
        right.set_ylabel("temperature [K]")
        right.set_title("temperature", fontsize=11)
    right.set_xlabel("time [fs]")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structure", choices=["NaCl", "Si"], default="NaCl")
    parser.add_argument("--cells", type=int, default=2, help="of 8 atoms, in each direction (default: 2)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--timestep", type=float, default=1.0, help="in fs (default: 1)")
    parser.add_argument("--temperature", type=float, default=300, help="of the first velocities, in K (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="of the velocities")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compare", action="store_true", help="run the unmodified model too")
    parser.add_argument("--repeat", action="store_true", help="run eqk twice and compare the bits")
    parser.add_argument("--trajectory", type=Path, help="file for the frames, of any format that ASE writes")
    parser.add_argument("--picture", type=Path, default=Path("sevennet_md.png"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{MODEL}, NVE of {args.structure}, {args.steps} steps of {args.timestep:g} fs, {args.threads} threads")

    runs = {name: run(name, args) for name in ["eqk", *(["e3nn"] if args.compare else [])]}
    for name, trajectory in runs.items():
        report(name, trajectory)
    if args.trajectory:
        save(args.trajectory, runs["eqk"], args)
        print(f"frames in {args.trajectory}")
    draw(args.picture, runs, args)
    print(f"picture in {args.picture}")
    if args.repeat:
        if not same_bits(runs["eqk"], run("eqk, again", args)):
            sys.exit("FAILED: two runs on eqk differ")
        print("A second run on eqk has the same bits in every position, momentum and energy.")
    if args.compare:
        of_drift, of_change = differences(runs["eqk"], runs["e3nn"])
        print(
            f"eqk and the unmodified model: drift differs by {of_drift:.1%}, the largest change of energy by "
            f"{of_change:.1%}"
        )
        apart = np.abs(runs["eqk"].positions - runs["e3nn"].positions).max()
        print(f"coordinates of the two differ by at most {apart:.1e} A in the whole run")
        if not max(of_drift, of_change) <= TOLERANCE:
            sys.exit(f"FAILED: more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
