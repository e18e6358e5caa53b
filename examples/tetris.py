"""Shapes of four cubes, told apart in any orientation by a tensor field network that has seen each in one.

    python examples/tetris.py                 # make demo-tetris

The task of Thomas et al. 2018 (arXiv:1802.08219, Section 5.1): eight shapes, two of them mirror images of each other.
The network has as many outputs as e3nn's example: six scalars, and one that changes sign in a mirror, of which the two
chiral shapes take either sign. Trains on the shapes as they are listed, tests on each in orientations of its own, moved
as well, and on their mirror images; draws some as tetris.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from models.tensor_field_network import TensorFieldNetwork
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

import eqk

SHAPES = {
    "right-handed": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)],
    "left-handed": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, -1, 0)],
    "square": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)],
    "line": [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)],
    "corner": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "L": [(0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0)],
    "T": [(0, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0)],
    "zigzag": [(0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0)],
}
NAMES = tuple(SHAPES)
# The class of a shape's mirror image.
MIRRORED = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])
CUBES = 4


def clouds(shapes: Tensor) -> tuple[Tensor, eqk.Graph]:
    """[shapes, cubes, 3] -> points of all, and a graph with an edge for each ordered pair of cubes of a shape."""
    cubes = torch.arange(CUBES)
    src, dst = (pairs.flatten() for pairs in torch.meshgrid(cubes, cubes, indexing="ij"))
    apart = src != dst
    first = CUBES * torch.arange(len(shapes))[:, None]
    edges = [(first + end[apart]).flatten() for end in (src, dst)]
    return shapes.flatten(0, 1), eqk.Graph.from_edges(*edges, CUBES * len(shapes))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden = "16x0e+16x0o+8x1e+8x1o+4x2e+4x2o"
        self.network = TensorFieldNetwork(hidden, 2, 3, "1x0o+6x0e", neighbours=CUBES - 1, cutoff=3.0)

    def forward(self, shapes: Tensor) -> Tensor:
        """[shapes, cubes, 3] -> [shapes, 8], logits of the classes."""
        outputs = self.network(*clouds(shapes)).unflatten(0, (-1, CUBES)).sum(1)
        odd, even = outputs[:, :1], outputs[:, 1:]
        return torch.cat([odd, -odd, even], 1)


def train(model: nn.Module, shapes: Tensor, steps: int) -> list[float]:
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(shapes), torch.arange(len(shapes)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def moved(shapes: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """[count, shapes, cubes, 3]: each in ``count`` orientations, uniformly random, and places."""
    number = count * len(shapes)
    turns = torch.tensor(Rotation.random(number, random_state=rng).as_matrix(), dtype=shapes.dtype)
    places = torch.tensor(rng.normal(0, 10, (count, len(shapes), 1, 3)), dtype=shapes.dtype)
    return torch.einsum("nsij,scj->nsci", turns.view(count, -1, 3, 3), shapes) + places


def right_answers(model: nn.Module, shapes: Tensor, classes: Tensor) -> int:
    """Of shapes [count, shapes, cubes, 3], each of the class in its column."""
    with torch.no_grad():
        return int((model(shapes.flatten(0, 1)).argmax(1).view(shapes.shape[:2]) == classes).sum())


def draw(path: Path, model: nn.Module, shapes: Tensor, losses: list[float]) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(11, 5), layout="constrained")
    grid = figure.add_gridspec(2, 5, width_ratios=[1, 1, 1, 1, 1.5])
    rng = np.random.default_rng(1)
    turns = torch.tensor(Rotation.random(len(shapes), random_state=rng).as_matrix(), dtype=shapes.dtype)
    with torch.no_grad():
        chances = model(torch.einsum("sij,scj->sci", turns, shapes)).softmax(1)
    corners = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    faces = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    for n, (shape, turn) in enumerate(zip(shapes.numpy(), turns.numpy(), strict=True)):
        axes = figure.add_subplot(grid[n // 4, n % 4], projection="3d")
        cubes = (shape - shape.mean(0))[:, None] + corners
        sides = [(cube @ turn.T)[list(face)] for cube in cubes for face in faces]
        axes.add_collection3d(Poly3DCollection(sides, facecolor="#8fb8de", edgecolor="#1d3f5e", linewidth=0.6))
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), zlim=(-1.6, 1.6), box_aspect=(1, 1, 1))
        axes.set_axis_off()
        best = int(chances[n].argmax())
        axes.set_title(f"{NAMES[best]}, {100 * chances[n, best]:.1f} %", color="black" if best == n else "#c1121f")
    axes = figure.add_subplot(grid[:, 4])
    axes.semilogy(np.arange(1, len(losses) + 1), losses, color="#2a6f97")
    axes.set(xlabel="step", title="cross-entropy of the eight\nshapes in one orientation each")
    figure.suptitle("Shapes in orientations that training has not seen, and what the network takes them for")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--orientations", type=int, default=500, help="of each shape, in the test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=Path("tetris.png"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    shapes = torch.tensor([SHAPES[name] for name in NAMES], dtype=torch.get_default_dtype())
    model, start = Classifier(), time.perf_counter()
    losses = train(model, shapes, args.steps)
    print(
        f"loss {losses[0]:.3f} at first, {losses[-1]:.2e} after {args.steps} steps, {time.perf_counter() - start:.1f} s"
    )
    test = moved(shapes, args.orientations, np.random.default_rng(args.seed))
    total = args.orientations * len(shapes)
    for what, points, classes in (
        ("turned and moved", test, torch.arange(len(shapes))),
        ("mirrored as well", -test, MIRRORED),
    ):
        right = right_answers(model, points, classes)
        print(f"{what}: {right} of {total} right, {100 * right / total:.1f} %")
    draw(args.picture, model, shapes, losses)
    print(f"picture in {args.picture}")


if __name__ == "__main__":
    main()
