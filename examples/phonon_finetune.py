"""Phonon fine-tuning (PFT): curvature is learned from products of the Hessian with random vectors.

    python examples/train_nequip_style.py        # makes the weights
    python examples/phonon_finetune.py --weights train_nequip_style.pt

Molecules are relaxed with GFN2-xTB, whose Hessians (differences of forces) are the truth. The loss is the mean squared
difference of H v and its true value over directions v of unit components, drawn anew in each step, beside that on
energies and forces of displaced structures, so that nothing is forgotten. H v is a second derivative of the energy, and
its gradient with respect to weights a third one of eqk's fused operations. Prints errors of the Hessians and of their
vibration frequencies before and after, of one molecule too that fine-tuning has not seen, and draws them as
phonon_finetune.png. The method is that of Nequix (github.com/teddykoker/nequix-examples, pft/).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import matplotlib
import numpy as np
import torch
from ase.collections import g2
from ase.optimize import BFGS
from ase.vibrations import VibrationsData
from tblite.ase import TBLite
from torch import Tensor
from tqdm import tqdm
from train_nequip_style import Batch, Potential, collate, labelled, load, loss_of, save, with_labels

HESSIAN_WEIGHT = 0.05  # of squared errors in (eV/A^2)^2, beside those of energies and forces
STEP = 0.005  # A, of the differences that the true Hessian is made of


@dataclass
class Minimum:
    """A relaxed molecule, labelled, and its true Hessian [3 atoms, 3 atoms] in eV/A^2."""

    name: str
    atoms: ase.Atoms
    hessian: np.ndarray


def minimum(name: str) -> Minimum:
    """By GFN2-xTB from the geometry of ASE's G2 set: forces below 1 meV/A; central differences of forces."""
    atoms = g2[name]
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=500)
    relaxed = atoms.get_positions()
    columns = []
    for coordinate in range(relaxed.size):
        forces = []
        for step in (STEP, -STEP):
            moved = relaxed.copy()
            moved.flat[coordinate] += step
            atoms.set_positions(moved)
            forces.append(atoms.get_forces().flatten())
        columns.append((forces[1] - forces[0]) / (2 * STEP))
    atoms.set_positions(relaxed)
    hessian = np.stack(columns)
    return Minimum(name, with_labels(atoms), (hessian + hessian.T) / 2)


def hessian_product(model: Potential, batch: Batch, directions: Tensor) -> Tensor:
    """H v in eV/A^2 [atoms, 3] for v [atoms, 3], H that of each molecule's energy; differentiable by the weights."""
    positions = batch.positions.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(positions, batch).sum(), positions, create_graph=True)
    (product,) = torch.autograd.grad((gradient * directions).sum(), positions, create_graph=True)
    return product


def curvature_loss(model: Potential, batch: Batch, directions: Tensor, products: Tensor) -> Tensor:
    """Mean squared error of H v against ``products``, the true ones [atoms, 3]."""
    return (hessian_product(model, batch, directions) - products).square().mean()


def draw_directions(minima: Sequence[Minimum], generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Normal numbers v [atoms, 3] for all molecules, and their true H v."""
    vectors = [torch.randn(len(m.hessian), generator=generator, dtype=torch.float64) for m in minima]
    products = [torch.from_numpy(m.hessian) @ v for m, v in zip(minima, vectors, strict=True)]
    return tuple(torch.cat(rows).reshape(-1, 3).to(dtype) for rows in (vectors, products))


def model_hessian(model: Potential, molecule: Minimum) -> np.ndarray:
    """[3 atoms, 3 atoms] in eV/A^2: one product, over a batch that has the molecule once for each column."""
    size = len(molecule.hessian)
    dtype = next(model.parameters()).dtype
    batch = collate([molecule.atoms] * size, dtype)
    columns = hessian_product(model, batch, torch.eye(size, dtype=dtype).reshape(-1, 3)).detach()
    hessian = columns.reshape(size, size).double().numpy()
    return (hessian + hessian.T) / 2


def frequencies(atoms: ase.Atoms, hessian: np.ndarray) -> np.ndarray:
    """Of the vibrations, in 1/cm, imaginary ones negative; without the six motions of a rigid body, those nearest 0."""
    values = VibrationsData.from_2d(atoms, hessian).get_frequencies()
    real = values.real - values.imag
    return np.sort(real[np.argsort(np.abs(real))[6:]])


@dataclass
class Comparison:
    """A model's Hessian before and after fine-tuning against the truth.

    Attributes:
        hessian_errors: root mean squares over components, in eV/A^2.
        vibrations: true frequencies in 1/cm. vibration_errors: the two models' minus those.
    """

    hessian_errors: tuple[float, float]
    vibrations: np.ndarray
    vibration_errors: tuple[np.ndarray, np.ndarray]


def compare(molecule: Minimum, before: np.ndarray, after: np.ndarray) -> Comparison:
    hessian_errors = tuple(float(np.sqrt(np.mean((h - molecule.hessian) ** 2))) for h in (before, after))
    vibrations = frequencies(molecule.atoms, molecule.hessian)
    return Comparison(
        hessian_errors, vibrations, tuple(frequencies(molecule.atoms, h) - vibrations for h in (before, after))
    )


def finetune(
    model: Potential, minima: Sequence[Minimum], structures: Sequence[ase.Atoms], steps: int, rate: float, seed: int
) -> list[float]:
    """Adam: the curvature loss of each step, at which ``structures`` are the batch for energies and forces in turn."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    relaxed = collate([m.atoms for m in minima], dtype)
    size, losses = len(minima), []
    batches = [collate(structures[n : n + size], dtype) for n in range(0, len(structures), size)]
    progress = tqdm(range(steps), desc="fine-tuning", unit="step")
    for step in progress:
        optimizer.zero_grad()
        curvature = curvature_loss(model, relaxed, *draw_directions(minima, generator, dtype))
        kept = loss_of(model, relaxed) + loss_of(model, batches[step % len(batches)])
        (HESSIAN_WEIGHT * curvature + kept).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(float(curvature.detach()))
        progress.set_postfix(curvature=f"{losses[-1]:.3f}", energies_and_forces=f"{float(kept.detach()):.4f}")
    return losses


def draw(path: Path, losses: Sequence[float], rows: Sequence[Comparison]) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.semilogy(np.arange(1, len(losses) + 1), losses, color="#2a6f97")
    left.set_xlabel("step")
    left.set_ylabel("squared error of H v [(eV/\N{ANGSTROM SIGN}$^2$)$^2$]")
    left.set_title("fine-tuning on Hessian-vector products", fontsize=11)
    for n, row in enumerate(rows):
        for error, label, color in zip(row.vibration_errors, ("before", "after"), ("#c1121f", "#2a6f97"), strict=True):
            right.plot(row.vibrations, error, ".", color=color, markersize=5, label=None if n else label)
    right.axhline(0, color="0.8", linewidth=1)
    right.set_xlabel("frequency by GFN2-xTB [cm$^{-1}$]")
    right.set_ylabel("error of the model [cm$^{-1}$]")
    right.set_title("vibrations of all molecules", fontsize=11)
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("train_nequip_style.pt"), help="of the training example")
    parser.add_argument("--molecules", nargs="+", default=["CH3OH", "H2CO", "C2H6", "HCOOH", "CH3CN", "H3CNH2"])
    parser.add_argument("--unseen", default="CH3CH2OH", help="molecule that is only looked at (default: ethanol)")
    parser.add_argument("--structures", type=int, default=60, help="displaced ones, for energies and forces")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.005, help="of Adam, at first (default: 0.005)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", type=Path, default=Path("phonon_finetune.pt"))
    parser.add_argument("--picture", type=Path, default=Path("phonon_finetune.png"))
    args = parser.parse_args()
    if not args.weights.exists():
        parser.error(f"--weights: {args.weights} is not there; python examples/train_nequip_style.py makes it")
    torch.set_num_threads(args.threads)

    model = load(args.weights)
    names = [*args.molecules, args.unseen]
    minima = [minimum(name) for name in tqdm(names, desc="GFN2-xTB minima and Hessians", unit="molecule")]
    structures = labelled(args.molecules, args.structures, 0.06, 500_000 + 1000 * args.seed)
    before = [model_hessian(model, m) for m in minima]
    losses = finetune(model, minima[:-1], structures, args.steps, args.rate, args.seed)
    after = [model_hessian(model, m) for m in minima]

    rows = [compare(*row) for row in zip(minima, before, after, strict=True)]
    print(f"{'':24}Hessian, rms error [eV/A^2]    vibrations, mean error [1/cm]")
    print(f"{'':24}{'before':>14}{'after':>13}{'before':>21}{'after':>12}")
    for m, row in zip(minima, rows, strict=True):
        note = " (not seen)" if m.name == args.unseen else ""
        of_hessian, of_vibrations = row.hessian_errors, [np.abs(error).mean() for error in row.vibration_errors]
        print(
            f"{m.name + note:24}{of_hessian[0]:14.3f}{of_hessian[1]:13.3f}"
            f"{of_vibrations[0]:21.1f}{of_vibrations[1]:12.1f}"
        )
    save(model, args.save)
    draw(args.picture, losses, rows)
    print(f"weights in {args.save}, picture in {args.picture}")


if __name__ == "__main__":
    main()
