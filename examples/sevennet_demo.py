"""SevenNet-0, a pretrained interatomic potential, on e3nn's tensor products and on eqk's: same forces, less time.

    python examples/sevennet_demo.py        (or `make demo`, which installs everything first)

Prints energy and force differences, the time of an energy and force evaluation, peak memory, and the energy
conservation of 50 steps of molecular dynamics; draws sevennet_demo.png. Exits with an error if a force differs by more
than 1e-5 eV/A. EQK_DEMO_STEPS and EQK_DEMO_REPEATS set the number of MD steps and of timed evaluations.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import ase
import e3nn.o3
import matplotlib
import numpy as np
import torch
from ase.build import bulk
from ase.collections import g2
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.spacegroup import crystal
from ase.units import fs, kB
from sevenn.calculator import SevenNetCalculator
from tqdm import tqdm

import eqk

MODEL = "7net-0"
FORCE_TOLERANCE = 1e-5  # eV/A
TEMPERATURE = 300  # K
STEPS = int(os.environ.get("EQK_DEMO_STEPS", "50"))
REPEATS = int(os.environ.get("EQK_DEMO_REPEATS", "11"))
TIME_LIMIT = 30  # seconds for each structure, beyond which a busy machine gets fewer repeats
PICTURE = Path("sevennet_demo.png")

warnings.filterwarnings("ignore", message="No tensor product accelerator", category=UserWarning)


def calculator() -> SevenNetCalculator:
    """SevenNet-0 in float32 on the CPU, from the checkpoint in the sevenn wheel, as an eager torch module."""
    return SevenNetCalculator(MODEL, device="cpu")


def e3nn_products(model: torch.nn.Module) -> int:
    return sum(isinstance(module, e3nn.o3.TensorProduct) for module in model.modules())


def structures() -> dict[str, ase.Atoms]:
    """Silicon, HfO2 and benzene. The wheel lacks SevenNet's HfO2 test frames, so ASE builds the monoclinic cell."""
    silicon = bulk("Si", cubic=True) * (2, 2, 2)
    silicon.rattle(0.05, seed=1)
    hafnia = crystal(
        ["Hf", "O", "O"],
        basis=[(0.276, 0.040, 0.208), (0.074, 0.332, 0.347), (0.449, 0.758, 0.480)],
        spacegroup=14,
        cellpar=[5.117, 5.175, 5.291, 90, 99.22, 90],
    )
    frames = {"Si, 64 atoms": silicon}
    for number in (1, 2):
        frame = hafnia.copy()
        frame.rattle(0.05, seed=number)
        frames[f"HfO$_2$, 12 atoms ({number})"] = frame
    frames["benzene"] = g2["C6H6"]
    return frames


def evaluate(calc: SevenNetCalculator, atoms: ase.Atoms) -> tuple[float, np.ndarray, float]:
    """Energy [eV], forces [atoms, 3] in eV/A and seconds taken, neighbour list included."""
    start = time.perf_counter()
    calc.calculate(atoms, ["energy", "forces"])
    seconds = time.perf_counter() - start
    return calc.results["energy"], calc.results["forces"], seconds


def memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MiB; Linux's getrusage would count the parent before exec too."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure_memory(backend: str) -> None:
    """Run in a process of its own: prints resident memory with the model loaded, and the peak of three evaluations."""
    calc = calculator()
    if backend == "eqk":
        eqk.convert(calc.model)
    loaded = memory_mib("VmRSS")
    atoms = next(iter(structures().values()))
    for _ in range(3):
        evaluate(calc, atoms)
    print(json.dumps({"loaded": loaded, "peak": memory_mib("VmHWM")}))


def memory_of(backend: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", backend]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare(old: SevenNetCalculator, new: SevenNetCalculator) -> tuple[dict[str, tuple[float, float]], float]:
    """Seconds on (e3nn, eqk) for each structure, and the largest force difference over all of them."""
    print(f"\n{'':21}|dE| [meV/atom]  max |dF| [eV/A]  max |F|   e3nn [ms]   eqk [ms]   speed-up")
    times, worst = {}, 0.0
    for name, atoms in structures().items():
        # The first calls of e3nn's TorchScript profile and compile; both start warm.
        for _ in range(3):
            energy_old, forces_old, _ = evaluate(old, atoms)
            energy_new, forces_new, _ = evaluate(new, atoms)
        difference = float(np.abs(forces_new - forces_old).max())
        difference = difference if np.isfinite(difference) else float("inf")
        worst = max(worst, difference)
        pairs, start = [], time.perf_counter()
        while len(pairs) < min(REPEATS, 3) or (len(pairs) < REPEATS and time.perf_counter() - start < TIME_LIMIT):
            pairs.append((evaluate(old, atoms)[2], evaluate(new, atoms)[2]))
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        times[name] = (a, b)
        print(
            f"{name.replace('$_2$', '2'):21}{1e3 * abs(energy_new - energy_old) / len(atoms):15.1e}{difference:17.1e}"
            f"{np.abs(forces_old).max():9.3f}{1e3 * a:12.1f}{1e3 * b:11.1f}{a / b:10.2f}x"
        )
    return times, worst


@dataclass
class Trajectory:
    """Of a run of molecular dynamics, before the first step and after each: arrays of [steps + 1, ...]."""

    total: np.ndarray  # energy, eV/atom
    potential: np.ndarray  # energy, eV/atom
    temperature: np.ndarray  # K
    positions: np.ndarray  # [steps + 1, atoms, 3], A
    momenta: np.ndarray  # [steps + 1, atoms, 3], ASE's units
    seconds: float

    def change(self) -> np.ndarray:
        """Of the total energy since the start, in meV/atom."""
        return 1e3 * (self.total - self.total[0])


def dynamics(
    calc: SevenNetCalculator,
    atoms: ase.Atoms,
    steps: int,
    timestep: float = 1.0,
    temperature: float = TEMPERATURE,
    seed: int = 1,
    name: str = "eqk",
) -> Trajectory:
    """NVE (velocity Verlet, ``timestep`` in fs) of a copy of ``atoms``, velocities drawn at ``temperature`` [K]."""
    atoms = atoms.copy()
    atoms.calc = calc
    normal = np.random.default_rng(seed).standard_normal((len(atoms), 3))
    atoms.set_momenta(normal * np.sqrt(atoms.get_masses() * kB * temperature)[:, None])
    Stationary(atoms)
    integrator = VelocityVerlet(atoms, timestep=timestep * fs)
    rows = []

    def record() -> None:
        energies = (atoms.get_total_energy() / len(atoms), atoms.get_potential_energy() / len(atoms))
        rows.append((*energies, atoms.get_temperature(), atoms.get_positions(), atoms.get_momenta()))

    start = time.perf_counter()
    record()
    for _ in tqdm(range(steps), desc=f"NVE, {timestep:g} fs steps, {name}", unit="step"):
        integrator.run(1)
        record()
    return Trajectory(*map(np.array, zip(*rows, strict=True)), seconds=time.perf_counter() - start)


def draw(times: dict[str, tuple[float, float]], total: np.ndarray, potential: np.ndarray) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = list(times)[::-1]
    speedups = [times[name][0] / times[name][1] for name in names]
    labels = [
        f"{name}\n{1e3 * times[name][0]:.0f} \N{RIGHTWARDS ARROW} {1e3 * times[name][1]:.0f} ms" for name in names
    ]
    left.barh(labels, speedups, color="#2a6f97", height=0.6)
    left.axvline(1, color="#c1121f", linewidth=1.2)
    left.text(1, len(names) - 0.45, "e3nn", color="#c1121f", ha="center", va="bottom")
    for row, speedup in enumerate(speedups):
        left.text(speedup, row, f"  {speedup:.1f}x", va="center", weight="bold")
    left.set_xlim(0, max(*speedups, 1) * 1.18)
    left.tick_params(axis="y", length=0)
    left.set_xlabel("speed of energy and forces, e3nn = 1")
    left.set_title(f"SevenNet-0 on eqk, {torch.get_num_threads()} CPU threads, float32", fontsize=11, pad=18)

    drift = np.abs(total).max()
    right.axhline(0, color="0.8", linewidth=1)
    right.plot(np.arange(len(total)), total, color="#2a6f97", linewidth=1.8)
    right.set_xlabel("time [fs]")
    right.set_ylabel("change of total energy [meV/atom]")
    right.set_title("NVE dynamics of Si$_{64}$ on eqk, velocities of " + f"{TEMPERATURE} K", fontsize=11, pad=18)
    right.text(
        0.98,
        0.96,
        f"largest drift {drift:.3f} meV/atom\nwhile the potential energy moves by {np.ptp(potential):.1f}",
        transform=right.transAxes,
        ha="right",
        va="top",
        color="0.3",
    )
    low, high = total.min(), total.max()
    margin = max(high - low, 1e-3)
    right.set_ylim(low - 0.15 * margin, high + 0.45 * margin)
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    versions = f"eqk {eqk.__version__}, torch {torch.__version__}, e3nn {e3nn.__version__}"
    print(f"{versions}, {torch.get_num_threads()} threads, float32")
    old, new = calculator(), calculator()
    before = e3nn_products(new.model)
    report = eqk.convert(new.model)
    print(f"\nWhat changed in {MODEL}:\n{report}")
    if e3nn_products(new.model) == before:
        sys.exit("FAILED: eqk.convert left every e3nn tensor product of the model in place")

    times, worst = compare(old, new)
    if not worst <= FORCE_TOLERANCE:
        sys.exit(f"FAILED: forces differ by {worst:.1e} eV/A, more than {FORCE_TOLERANCE:.0e}")
    memory = {backend: memory_of(backend) for backend in ("e3nn", "eqk")}
    print("\nPeak memory of a process that evaluates Si, 64 atoms (in brackets: before the first evaluation):")
    for backend, m in memory.items():
        print(f"  {backend:5} {m['peak']:7.0f} MiB  ({m['loaded']:.0f} MiB)")
    print()
    run = dynamics(new, next(iter(structures().values())), STEPS)
    total, potential = run.change(), 1e3 * run.potential
    print(
        f"Total energy over {STEPS} fs: largest drift {np.abs(total).max():.4f} meV/atom, at the end {total[-1]:+.4f};"
        f" the potential energy moved by {np.ptp(potential):.2f} meV/atom"
    )
    draw(times, total, potential)
    a, b = next(iter(times.values()))
    print(f"\nSi, 64 atoms: {a / b:.2f} times the speed of e3nn in this run; picture in {PICTURE}")
    print(f"Forces agree within {worst:.1e} eV/A (allowed: {FORCE_TOLERANCE:.0e}).")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(sys.argv[2])
    else:
        main()
