"""The systems of examples/models, each held against the same one of e3nn: numbers, equivariance, time.

    python bench/gallery.py                        # the table, on one thread
    python bench/gallery.py tensor_field_network --threads 2
    python bench/gallery.py --update               # writes bench/gallery.csv, which the documentation shows

Differences are those of outputs and of gradients to all inputs and weights, in float64, relative to the largest number
of each; so is the error of equivariance, of the output under a random rotation, with an inversion where parity counts.
Times are of forward and backward in float32, of runs that take turns, as in bench/tensor_product.py; ratios say how
many times as fast eqk is. Lines are those of the file, which may hold more than one system.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from eqk.measure import clock_of, interleaved
from eqk.testing import relative_error, rotate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import models  # noqa: E402
from models.system import System, Turn  # noqa: E402

TABLE = ROOT / "bench" / "gallery.csv"


def of(file: str, small: bool = False) -> list[System]:
    return models.load(file).systems(small)


def is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def tuple_of(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def pair(file: str, system: System, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The system on eqk and on e3nn, of the same weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        ours = system.module(**system.arguments)
        theirs = getattr(models.load(file, on="e3nn"), system.module.__name__)(**system.arguments)
    finally:
        torch.set_default_dtype(before)
    weights, others = ({k: p for k, p in m.named_parameters() if p.numel()} for m in (ours, theirs))
    if weights.keys() != others.keys():
        raise SystemExit(f"{system.title}: weights of one alone: {sorted(weights.keys() ^ others.keys())}")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in weights.items():  # some begin as zero
            weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            others[name].copy_(weight)
    return ours, theirs


def gradient_call(module: torch.nn.Module, inputs: dict) -> Callable[[], tuple[Tensor, ...]]:
    """What runs forward and backward: outputs, then gradients to inputs and weights, in order."""
    inputs = {k: v.detach().clone().requires_grad_() if is_real(v) else v for k, v in inputs.items()}
    weights = [p for _, p in sorted(module.named_parameters()) if p.numel()]
    leaves = [v for v in inputs.values() if is_real(v)] + weights
    generator = torch.Generator().manual_seed(2)
    directions: list[Tensor] = []

    def call() -> tuple[Tensor, ...]:
        outputs = tuple_of(module(*inputs.values()))
        if not directions:
            directions.extend(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs)
        gradients = torch.autograd.grad(outputs, leaves, directions, allow_unused=True)
        return (*outputs, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, gradients, strict=True)))

    return call


def difference(ours: torch.nn.Module, theirs: torch.nn.Module, inputs: dict) -> float:
    results = [gradient_call(module, inputs)() for module in (ours, theirs)]
    return max(relative_error(a, b) for a, b in zip(*results, strict=True))


def equal(error: float, theirs: torch.nn.Module, inputs: dict, generator: torch.Generator) -> bool:
    """Whether a :func:`difference` is rounding: below 1e-12, or below 16 times what two roundings of the inputs do.

    Gradients divide by lengths and by sums of singular values, of which some draw has small ones. As in
    :class:`eqk.testing.Comparison`, but that a chain of layers rounds more than its inputs are.
    """
    if error < 1e-12:
        return True

    def rounded(t: Tensor) -> Tensor:
        noise = torch.rand(t.shape, generator=generator, dtype=t.dtype) - 0.5
        return t * (1 + 4 * torch.finfo(t.dtype).eps * noise)

    exact, changes = gradient_call(theirs, inputs)(), []
    for _ in range(12):
        nudged = gradient_call(theirs, {k: rounded(v) if is_real(v) else v for k, v in inputs.items()})()
        changes += [relative_error(a, b) for a, b in zip(nudged, exact, strict=True)]
    return error < 16 * max(changes)


def equivariance_error(system: System, module: torch.nn.Module, inputs: dict, generator: torch.Generator) -> float:
    axis_angle = torch.randn(3, generator=generator, dtype=torch.float64)
    axis_angle *= math.pi * torch.rand(1, generator=generator, dtype=torch.float64) / axis_angle.norm()

    def turned(value: Tensor, turn: Turn) -> Tensor:
        if callable(turn):
            return turn(value, axis_angle)
        for dim, one in enumerate(reversed(turn if isinstance(turn, list) else [turn]), 1):
            if one is not None:
                value = rotate(value.transpose(-1, -dim), one, axis_angle, inversion=system.parity).transpose(-1, -dim)
        return value

    with torch.no_grad():
        expected = [turned(t, i) for t, i in zip(tuple_of(module(*inputs.values())), tuple_of(system.out), strict=True)]
        moved = tuple_of(module(*[turned(v, system.turn.get(k)) for k, v in inputs.items()]))
    return max(relative_error(a, b) for a, b in zip(moved, expected, strict=True))


def row_of(file: str, system: System, args: argparse.Namespace) -> dict[str, object]:
    generator = torch.Generator().manual_seed(args.seed)
    inputs = system.inputs(generator)
    ours, theirs = pair(file, system, torch.float64)
    error, equivariance = difference(ours, theirs, inputs), equivariance_error(system, ours, inputs, generator)
    if not equal(error, theirs, inputs, generator):
        raise SystemExit(f"{system.title}: differs from e3nn's by {error:.1e} of the largest")
    calls = [
        gradient_call(module, {k: v.float() if is_real(v) else v for k, v in inputs.items()})
        for module in pair(file, system, torch.float32)
    ]

    def failed(name: str, error: Exception) -> None:
        raise error

    runs = {"eqk": calls[0], "e3nn": calls[1]}
    times = interleaved(runs, args.rounds, 1, clock_of("cpu", args.threads), failed)
    lines = [len(Path(models.load(file, on).__file__).read_text().splitlines()) for on in ("eqk", "e3nn")]
    return {
        "system": system.title,
        "source": system.source,
        "file": f"{file}.py",
        "difference": f"{error:.1e}",
        "equivariance": f"{equivariance:.1e}",
        "eqk_ms": f"{1e3 * times['eqk']:.2f}",
        "e3nn_ms": f"{1e3 * times['e3nn']:.2f}",
        "ratio": f"{times['e3nn'] / times['eqk']:.1f}",
        "lines": lines[0],
        "lines_e3nn": lines[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(models.FILES)} (default: all)")
    parser.add_argument("--small", action="store_true", help="the sizes of the tests")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--update", action="store_true", help=f"write {TABLE.relative_to(ROOT)}; needs all files")
    args = parser.parse_args()
    if unknown := set(args.files) - set(models.FILES):
        parser.error(f"FILE: expected some of {', '.join(models.FILES)}, got {', '.join(sorted(unknown))}")
    if args.update and (args.files or args.small):
        parser.error("--update: expected all files at their full size")
    torch.set_num_threads(args.threads)
    rows = []
    for file in tqdm(args.files or models.FILES):
        rows += [row_of(file, system, args) for system in of(file, args.small)]
    print(tabulate([row.values() for row in rows], headers=list(rows[0]), tablefmt="github", disable_numparse=True))
    if args.update:
        with TABLE.open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
