"""A small NequIP-like potential of eqk's modules, trained on energies and forces of real molecules.

    python examples/train_nequip_style.py                         # some minutes on two cores
    python examples/train_nequip_style.py --structures 40 --epochs 20

Structures are molecules of the G2 set (ASE), their atoms displaced at random; energies and forces are those of
GFN2-xTB (tblite). Prints errors on structures that training has not seen, beside those of a guess that knows the
composition alone (energy) or nothing (forces); draws the loss as train_nequip_style.png and saves the weights.

The model is that of NequIP (Batzner et al., Nat. Commun. 13, 2453 (2022), Fig. 1): features of atoms as irreps, layers
that convolve them with spherical harmonics of the edges, whose weights are a network of the distance, and a gate. Its
convolution is one op, over an eqk.Graph that the batch holds; forces are minus the gradient of the energy, so that a
loss on them takes second derivatives of the op.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import matplotlib
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.collections import g2
from ase.neighborlist import neighbor_list
from models.layers import Gate, bessel_basis
from tblite.ase import TBLite
from torch import Tensor, nn
from tqdm import tqdm

import eqk
from eqk import o3

SPECIES = ("H", "C", "N", "O")
MOLECULES = ("CH3OH", "H2CO", "CH3CHO", "HCOOH", "C2H6", "C2H4", "CH3CN", "H2CCO", "H3CNH2", "CH3CH2OH")
CUTOFF = 4.5  # A
ENERGY_WEIGHT = 20.0  # of the squared error of the energy in eV per atom, beside that of forces in eV/A


@dataclass
class Batch:
    """Molecules as one graph of which no edge connects two.

    Attributes:
        positions: [atoms, 3] in A. species: [atoms], indices of SPECIES. molecule: [atoms], which one an atom is of.
        graph: an edge for each ordered pair of atoms within the cutoff.
        sizes: [molecules], numbers of atoms. energies: [molecules] in eV. forces: [atoms, 3] in eV/A.
    """

    positions: Tensor
    species: Tensor
    molecule: Tensor
    graph: eqk.Graph
    sizes: Tensor
    energies: Tensor
    forces: Tensor


def labelled(molecules: Sequence[str], count: int, displacement: float, seed: int) -> list[ase.Atoms]:
    """``count`` structures, the molecules in turn, atoms displaced by normal numbers [A], with labels."""
    structures = []
    for n in tqdm(range(count), desc="GFN2-xTB labels", unit="structure"):
        atoms = g2[molecules[n % len(molecules)]]
        atoms.rattle(displacement, seed=seed + n)
        structures.append(with_labels(atoms))
    return structures


def with_labels(atoms: ase.Atoms) -> ase.Atoms:
    """The same with energy and forces of GFN2-xTB (Bannwarth et al., J. Chem. Theory Comput. 15, 1652 (2019))."""
    xtb = TBLite(method="GFN2-xTB", verbosity=0)
    xtb.calculate(atoms, ["energy", "forces"])
    atoms.calc = SinglePointCalculator(atoms, energy=xtb.results["energy"], forces=xtb.results["forces"])
    return atoms


def collate(structures: Sequence[ase.Atoms], dtype: torch.dtype = torch.float32) -> Batch:
    sizes = [len(atoms) for atoms in structures]
    first = np.cumsum([0, *sizes])
    pairs = [np.stack(neighbor_list("ji", atoms, CUTOFF)) + first[n] for n, atoms in enumerate(structures)]
    edge_index = torch.tensor(np.concatenate(pairs, axis=1))
    return Batch(
        positions=torch.tensor(np.concatenate([atoms.positions for atoms in structures]), dtype=dtype),
        species=torch.tensor([SPECIES.index(symbol) for atoms in structures for symbol in atoms.symbols]),
        molecule=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        graph=eqk.Graph.from_edge_index(edge_index, int(first[-1])),
        sizes=torch.tensor(sizes),
        energies=torch.tensor([atoms.get_potential_energy() for atoms in structures], dtype=dtype),
        forces=torch.tensor(np.concatenate([atoms.get_forces() for atoms in structures]), dtype=dtype),
    )


class Layer(nn.Module):
    """x -> gate(linear(sum over neighbours of T(linear(x), Y, radial(r))) + self-connection of the species)."""

    def __init__(self, irreps_in: o3.Irreps, irreps_sh: o3.Irreps, gate: Gate, radial: int, neighbours: float) -> None:
        super().__init__()
        targets = {ir for _, ir in gate.irreps_in}
        middle, paths = [], []
        for i, (mul, ir_in) in enumerate(irreps_in):
            for j, (_, ir_sh) in enumerate(irreps_sh):
                for ir_out in ir_in * ir_sh:
                    if ir_out in targets:
                        paths.append((i, j, len(middle), "uvu", True))
                        middle.append((mul, ir_out))
        self.gate, self.scale = gate, neighbours**-0.5
        self.up = o3.Linear(irreps_in, irreps_in)
        self.product = o3.TensorProduct(irreps_in, irreps_sh, middle, paths, shared_weights=False)
        self.radial = nn.Sequential(
            nn.Linear(radial, 32, bias=False), nn.SiLU(), nn.Linear(32, self.product.weight_numel, bias=False)
        )
        self.down = o3.Linear(middle, gate.irreps_in)
        self.own = o3.FullyConnectedTensorProduct(irreps_in, f"{len(SPECIES)}x0e", gate.irreps_in)

    def forward(self, x: Tensor, one_hot: Tensor, sh: Tensor, radial: Tensor, graph: eqk.Graph) -> Tensor:
        summed = self.scale * graph.conv(self.up(x), sh, self.radial(radial), self.product)
        return self.gate(self.down(summed) + self.own(x, one_hot))


class Potential(nn.Module):
    """Energies of molecules.

    Args:
        channels: of scalars; irreps of degree l have ``channels / 2^l``.
        degree: the largest of features and spherical harmonics.
        layers, bessel: numbers of convolutions and of radial functions.
        neighbours: of an atom on average, by whose root sums over neighbours are divided.
        offsets: [species], the energy of an atom of each in eV, which the network's is added to.
        scale: unit of the network's energy, in eV.
    """

    def __init__(
        self,
        channels: int = 32,
        degree: int = 2,
        layers: int = 3,
        bessel: int = 8,
        neighbours: float = 6.0,
        offsets: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.options = {"channels": channels, "degree": degree, "layers": layers, "bessel": bessel}
        self.options["neighbours"] = neighbours
        scalars = o3.Irreps([(channels, (0, 1))])
        gated = o3.Irreps([(channels >> l, (l, (-1) ** l)) for l in range(1, degree + 1)])
        irreps_sh = o3.Irreps([(1, (l, (-1) ** l)) for l in range(degree + 1)])
        self.harmonics = o3.SphericalHarmonics(irreps_sh, normalize=True, normalization="component")
        self.embedding = o3.Linear(f"{len(SPECIES)}x0e", scalars)
        self.layers = nn.ModuleList()
        irreps = scalars
        for _ in range(layers):
            gate = Gate(scalars, gated)
            self.layers.append(Layer(irreps, irreps_sh, gate, bessel, neighbours))
            irreps = gate.irreps_out
        self.readout = o3.Linear(irreps, "1x0e")
        self.register_buffer("offsets", torch.zeros(len(SPECIES)) if offsets is None else offsets.clone())
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, positions: Tensor, batch: Batch) -> Tensor:
        """Positions [atoms, 3] in A, beside which those of ``batch`` do not count -> energies [molecules] in eV."""
        edges = positions[batch.graph.dst] - positions[batch.graph.src]
        radial = bessel_basis(edges.norm(dim=1), self.options["bessel"], CUTOFF)
        sh = self.harmonics(edges)
        one_hot = nn.functional.one_hot(batch.species, len(SPECIES)).to(positions.dtype)
        x = self.embedding(one_hot)
        for layer in self.layers:
            x = layer(x, one_hot, sh, radial, batch.graph)
        of_atoms = self.scale * self.readout(x).squeeze(-1) + self.offsets[batch.species]
        return of_atoms.new_zeros(len(batch.sizes)).index_add(0, batch.molecule, of_atoms)


def energies_and_forces(model: Potential, batch: Batch, training: bool) -> tuple[Tensor, Tensor]:
    """[molecules] in eV and [atoms, 3] in eV/A; where training, with a graph for a loss on them."""
    positions = batch.positions.detach().requires_grad_()
    energies = model(positions, batch)
    (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=training)
    return energies, -gradient


def squared_errors(model: Potential, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums over molecules of the squared error in eV per atom, and over components of forces in eV/A."""
    energies, forces = energies_and_forces(model, batch, training=True)
    return ((energies - batch.energies) / batch.sizes).square().sum(), (forces - batch.forces).square().sum()


def loss_of(model: Potential, batch: Batch) -> Tensor:
    of_energy, of_forces = squared_errors(model, batch)
    return ENERGY_WEIGHT * of_energy / len(batch.sizes) + of_forces / batch.forces.numel()


def atomic_energies(structures: Sequence[ase.Atoms]) -> Tensor:
    """[species] in eV whose sum over atoms fits the energies best: all that a composition says."""
    counts = np.array([[atoms.symbols.count(symbol) for symbol in SPECIES] for atoms in structures])
    energies = np.array([atoms.get_potential_energy() for atoms in structures])
    return torch.tensor(np.linalg.lstsq(counts, energies, rcond=None)[0])


def build(structures: Sequence[ase.Atoms], seed: int, dtype: torch.dtype = torch.float32, **options) -> Potential:
    """A model with random weights whose energies begin at the best guess by composition."""
    torch.manual_seed(seed)
    batch = collate(structures, dtype)
    options.setdefault("neighbours", batch.graph.src.shape[0] / batch.graph.num_dst)
    options.setdefault("scale", float(batch.forces.std()))
    return Potential(offsets=atomic_energies(structures), **options).to(dtype)


def save(model: Potential, path: Path) -> None:
    torch.save({"options": model.options, "state": model.state_dict()}, path)


def load(path: Path) -> Potential:
    saved = torch.load(path)
    model = Potential(**saved["options"]).to(saved["state"]["scale"].dtype)
    model.load_state_dict(saved["state"])
    return model


@dataclass
class Errors:
    """Mean absolute errors: of the energy in meV per atom, of a component of the forces in meV/A."""

    energy: float
    forces: float

    def __str__(self) -> str:
        return f"energy {self.energy:.1f} meV/atom, forces {self.forces:.0f} meV/A"


def errors_of(model: Potential, batch: Batch) -> Errors:
    energies, forces = energies_and_forces(model, batch, training=False)
    energy = ((energies - batch.energies) / batch.sizes).abs().mean()
    return Errors(1e3 * float(energy.detach()), 1e3 * float((forces - batch.forces).abs().mean()))


def errors_of_a_guess(model: Potential, batch: Batch) -> Errors:
    """Energies by composition, no forces."""
    energies = torch.zeros_like(batch.energies).index_add(0, batch.molecule, model.offsets[batch.species])
    energy = ((energies - batch.energies) / batch.sizes).abs().mean()
    return Errors(1e3 * float(energy), 1e3 * float(batch.forces.abs().mean()))


def train(
    model: Potential,
    structures: Sequence[ase.Atoms],
    test: Batch,
    epochs: int,
    batch_size: int,
    rate: float,
    seed: int,
    loss_of_batch: Callable[[Sequence[ase.Atoms]], Tensor] | None = None,
    quiet: bool = False,
) -> tuple[list[float], list[float]]:
    """Adam, the rate falling to zero as a cosine does: losses of each epoch on its batches, and on ``test``.

    ``loss_of_batch``: of some of the structures, in place of the model's :func:`loss_of`.
    """
    dtype = test.positions.dtype
    shuffled = random.Random(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses, test_losses = [], []
    progress = tqdm(range(epochs), desc="training", unit="epoch", disable=quiet)
    for _ in progress:
        structures = shuffled.sample(structures, len(structures))
        total = 0.0
        for start in range(0, len(structures), batch_size):
            chosen = structures[start : start + batch_size]
            optimizer.zero_grad()
            loss = loss_of_batch(chosen) if loss_of_batch else loss_of(model, collate(chosen, dtype))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        schedule.step()
        losses.append(total / len(structures))
        test_losses.append(float(loss_of(model, test).detach()))
        progress.set_postfix(loss=f"{losses[-1]:.4f}", unseen=f"{test_losses[-1]:.4f}")
    return losses, test_losses


def draw(path: Path, losses: Sequence[float], test_losses: Sequence[float], model: Potential, test: Batch) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    epochs = np.arange(1, len(losses) + 1)
    left.semilogy(epochs, losses, color="#2a6f97", label="training")
    left.semilogy(epochs, test_losses, color="#c1121f", label="unseen structures")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_xlabel("epoch")
    left.set_ylabel("loss")
    left.set_title("squared error of energy per atom and of forces", fontsize=11)
    left.legend(frameon=False)
    _, forces = energies_and_forces(model, test, training=False)
    limit = float(test.forces.abs().max()) * 1.05
    right.plot([-limit, limit], [-limit, limit], color="0.8", linewidth=1)
    right.plot(test.forces.flatten(), forces.flatten(), ".", color="#2a6f97", markersize=3)
    right.set_xlabel("force by GFN2-xTB [eV/\N{ANGSTROM SIGN}]")
    right.set_ylabel("force by the model [eV/\N{ANGSTROM SIGN}]")
    right.set_title(f"unseen structures: {errors_of(model, test)}", fontsize=11)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", default=list(MOLECULES), choices=g2.names, metavar="NAME")
    parser.add_argument("--structures", type=int, default=300, help="for training; a fifth more are kept unseen")
    parser.add_argument("--displacement", type=float, default=0.06, help="of atoms, in A (default: 0.06)")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.01, help="of Adam, at first (default: 0.01)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--weights", type=Path, default=Path("train_nequip_style.pt"))
    parser.add_argument("--picture", type=Path, default=Path("train_nequip_style.png"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    unseen = max(len(args.molecules), args.structures // 5)
    structures = labelled(args.molecules, args.structures + unseen, args.displacement, 1000 * args.seed)
    structures, test = structures[:-unseen], collate(structures[-unseen:])
    model = build(structures, args.seed, channels=args.channels, layers=args.layers)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{len(structures)} structures of {len(args.molecules)} molecules, {unseen} unseen; {weights} weights")
    losses, test_losses = train(model, structures, test, args.epochs, args.batch_size, args.rate, args.seed)
    print(f"loss: {losses[0]:.4f} in the first epoch, {losses[-1]:.4f} in the last")
    print(f"errors on unseen structures: {errors_of(model, test)}")
    print(f"errors of a guess:           {errors_of_a_guess(model, test)}")
    save(model, args.weights)
    draw(args.picture, losses, test_losses, model, test)
    print(f"weights in {args.weights}, picture in {args.picture}")


if __name__ == "__main__":
    main()
