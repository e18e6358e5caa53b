"""Which product of two signals to use, from times that were measured."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from eqk.irreps import MAX_DEGREE

KINDS = ("even", "all")
WEIGHTS = ("per_path", "factorised")
PHASES = ("forward", "training")

# What eqk.tensor_product takes over what eqk.gaunt_product takes, with the same paths, without weights, in float32: for
# these degrees of x, y and the result, by device and by paths, channels and phase (training is forward and gradients).
# On an AMD EPYC (Zen 4), printed by
#     python bench/price_of_freedom.py --threads 1 --crossover
# fmt: off
DEGREES = (
    (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (6, 6, 6), (1, 1, 2), (2, 2, 4), (3, 3, 6), (4, 4, 8),
    (6, 6, 12), (2, 2, 0), (4, 4, 0), (6, 6, 0), (2, 1, 2), (4, 1, 4), (6, 1, 6), (1, 3, 1), (6, 3, 6),
)
MEASURED = {
    ("cpu", "even", 1, "forward"):
        (0.89, 1.35, 2.78, 2.81, 3.84, 0.85, 1.41, 1.92, 2.82, 4.78, 0.75, 0.72, 0.70, 1.05, 1.35, 1.30, 0.88, 3.24),
    ("cpu", "even", 1, "training"):
        (0.89, 1.36, 2.15, 2.98, 4.87, 0.90, 1.53, 2.11, 2.80, 5.27, 0.81, 0.84, 0.76, 0.94, 1.39, 1.45, 0.95, 3.24),
    ("cpu", "all", 1, "forward"):
        (0.85, 1.17, 1.94, 2.77, 4.51, 0.71, 1.25, 1.80, 2.31, 4.56, 0.62, 0.40, 0.45, 0.98, 1.03, 1.01, 0.77, 2.52),
    ("cpu", "all", 1, "training"):
        (0.97, 1.34, 2.19, 2.61, 5.21, 1.01, 1.19, 1.84, 2.58, 5.28, 0.64, 0.45, 0.61, 0.86, 1.08, 1.10, 0.71, 2.94),
    ("cpu", "even", 8, "forward"):
        (0.46, 0.88, 1.44, 2.21, 3.44, 0.59, 0.99, 1.32, 1.94, 3.11, 0.46, 0.55, 0.56, 0.62, 0.77, 0.97, 0.64, 2.20),
    ("cpu", "even", 8, "training"):
        (1.02, 1.07, 1.69, 1.85, 3.74, 0.67, 1.10, 1.43, 1.96, 3.54, 0.52, 0.55, 0.50, 0.74, 0.94, 0.90, 0.56, 2.14),
    ("cpu", "all", 8, "forward"):
        (0.46, 0.64, 1.05, 1.40, 2.74, 0.63, 0.69, 0.98, 1.29, 2.49, 0.34, 0.23, 0.22, 0.64, 0.61, 0.54, 0.45, 1.55),
    ("cpu", "all", 8, "training"):
        (0.49, 0.75, 1.12, 1.52, 3.13, 0.47, 0.79, 1.09, 1.47, 2.88, 0.45, 0.28, 0.28, 0.57, 0.63, 0.64, 0.50, 1.66),
    ("cpu", "even", 128, "forward"):
        (0.71, 1.30, 2.21, 3.03, 8.70, 0.73, 1.28, 2.51, 3.46, 8.72, 0.70, 0.82, 0.87, 0.98, 1.29, 1.51, 0.84, 4.53),
    ("cpu", "even", 128, "training"):
        (0.78, 1.48, 2.10, 3.58, 7.81, 0.95, 1.36, 2.29, 4.91, 7.89, 0.73, 0.87, 0.80, 1.16, 1.53, 1.39, 0.93, 4.23),
    ("cpu", "all", 128, "forward"):
        (0.69, 1.15, 1.60, 2.65, 8.05, 0.67, 0.86, 1.83, 2.80, 7.43, 0.52, 0.38, 0.36, 0.80, 0.97, 1.01, 0.69, 3.56),
    ("cpu", "all", 128, "training"):
        (0.81, 1.23, 1.99, 2.95, 7.66, 0.70, 1.02, 1.94, 3.19, 7.58, 0.58, 0.42, 0.46, 0.92, 1.04, 1.07, 0.69, 3.70),
}
# fmt: on


class ProductChoice(NamedTuple):
    """``product``: ``"tensor_product"`` or ``"gaunt_product"``, functions of :mod:`eqk`; ``reason``: one sentence."""

    product: str
    reason: str


def best_product(
    lmax1: int,
    lmax2: int,
    lmax_out: int,
    channels: int = 1,
    *,
    kind: str = "even",
    weights: str = "factorised",
    rank: int = 1,
    device: torch.device | str = "cpu",
    phase: str = "forward",
) -> ProductChoice:
    """The product to use for signals x of degrees 0 to ``lmax1`` and y to ``lmax2``, with a result to ``lmax_out``.

    Weights of each path (l1, l2, l3) need Clebsch-Gordan products, :func:`eqk.tensor_product`: there are as many as
    paths, O(L^3), and :func:`eqk.gaunt_product` spans 3 L + 1 dimensions a term (:mod:`eqk.analysis`). Where
    weights factorise as a[l1] b[l2] c[l3], or there are none, both products can be used, and the choice is that of the
    measured degrees next to those asked for (the least Euclidean distance, x and y interchangeable) and next number
    of channels (the least ratio), in one table in this module. It is of float32 and one thread.

    Args:
        lmax1, lmax2, lmax_out: largest degrees, up to 20.
        channels: of x, y and the result, each multiplied by its own (mode ``uuu``).
        kind: ``"even"``, the paths of an even sum of degrees, or ``"all"``, with those of an odd sum.
        weights: ``"per_path"``, or ``"factorised"``, for none too.
        rank: terms of factorised weights: as many products of signals, or one with a weight for each path.
        device: one that was measured, the CPU.
        phase: ``"forward"`` or ``"training"``, with gradients of x and y.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    for name, lmax in (("lmax1", lmax1), ("lmax2", lmax2), ("lmax_out", lmax_out)):
        if isinstance(lmax, bool) or not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
            raise ValueError(f"{name}: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
    for name, number in (("channels", channels), ("rank", rank)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}: expected a positive number, got {number!r}")
    for name, value, choices in (("kind", kind, KINDS), ("weights", weights, WEIGHTS), ("phase", phase, PHASES)):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    try:
        device_type = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected a torch.device or its name, got {device!r}") from error
    if weights == "per_path":
        return ProductChoice("tensor_product", "weights of each path do not factorise by degree")
    measured = [key for key in MEASURED if key[:2] == (device_type, kind) and key[3] == phase]
    if not measured:
        devices = ", ".join(dict.fromkeys(key[0] for key in MEASURED))
        raise ValueError(f"device: expected one that was measured, {devices}, got {device_type}")
    key = min(measured, key=lambda key: abs(math.log(key[2] / channels)))
    orders = ((lmax1, lmax2, lmax_out), (lmax2, lmax1, lmax_out))
    distances = [min(math.dist(degrees, order) for order in orders) for degrees in DEGREES]
    n = distances.index(min(distances))
    faster = MEASURED[key][n] / rank
    where = "{} x {} -> {}".format(*DEGREES[n]) + f", {key[2]} channels, {phase} on {device_type}"
    of_rank = f", for {rank} terms" if rank > 1 else ""
    if faster > 1:
        reason = f"{faster:.2f} times as fast as tensor_product at {where}{of_rank}"
        return ProductChoice("gaunt_product", reason)
    return ProductChoice("tensor_product", f"{1 / faster:.2f} times as fast as gaunt_product at {where}{of_rank}")
