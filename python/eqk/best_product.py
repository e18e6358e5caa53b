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
#     python bench/price_of_freedom.py --crossover
# fmt: off
DEGREES = (
    (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (6, 6, 6), (1, 1, 2), (2, 2, 4), (3, 3, 6), (4, 4, 8),
    (6, 6, 12), (2, 2, 0), (4, 4, 0), (6, 6, 0), (2, 1, 2), (4, 1, 4), (6, 1, 6), (1, 3, 1), (6, 3, 6),
)
MEASURED = {
    ("cpu", "even", 1, "forward"):
        (0.69, 1.39, 2.35, 3.53, 5.12, 0.94, 1.55, 2.50, 2.96, 4.80, 0.79, 0.81, 0.83, 1.07, 1.35, 1.60, 0.91, 2.97),
    ("cpu", "even", 1, "training"):
        (0.99, 1.35, 2.52, 3.31, 4.91, 0.99, 1.68, 2.14, 2.88, 5.17, 0.81, 0.82, 0.72, 1.13, 1.47, 1.42, 0.93, 3.03),
    ("cpu", "all", 1, "forward"):
        (0.88, 1.31, 2.24, 2.47, 4.71, 0.80, 1.39, 2.11, 2.46, 4.55, 0.63, 0.43, 0.43, 1.02, 1.12, 1.07, 0.77, 2.64),
    ("cpu", "all", 1, "training"):
        (0.90, 1.25, 1.91, 3.02, 4.98, 0.86, 1.26, 1.91, 2.61, 5.06, 0.65, 0.51, 0.59, 0.96, 1.07, 1.11, 0.72, 2.95),
    ("cpu", "even", 8, "forward"):
        (0.73, 1.47, 2.33, 2.75, 4.64, 0.96, 1.50, 2.00, 2.69, 4.50, 0.74, 0.89, 0.78, 0.96, 1.46, 1.29, 0.94, 3.52),
    ("cpu", "even", 8, "training"):
        (0.87, 1.54, 2.44, 2.96, 4.93, 0.98, 1.77, 2.17, 2.75, 5.05, 0.92, 0.92, 0.65, 1.09, 1.51, 1.24, 0.90, 3.03),
    ("cpu", "all", 8, "forward"):
        (0.72, 1.24, 2.02, 2.39, 4.48, 0.80, 1.21, 1.65, 2.08, 4.12, 0.53, 0.41, 0.34, 1.01, 1.01, 0.95, 0.72, 2.35),
    ("cpu", "all", 8, "training"):
        (0.77, 1.33, 1.91, 2.52, 5.06, 0.90, 1.26, 1.86, 2.41, 4.84, 0.60, 0.47, 0.52, 0.92, 1.16, 0.98, 0.73, 2.71),
    ("cpu", "even", 128, "forward"):
        (0.74, 1.29, 1.84, 2.98, 7.97, 0.77, 1.33, 1.96, 3.36, 8.47, 0.67, 0.83, 0.86, 1.05, 1.21, 1.25, 0.86, 3.68),
    ("cpu", "even", 128, "training"):
        (0.86, 1.24, 2.02, 2.94, 6.68, 0.95, 1.43, 2.20, 3.45, 7.61, 0.77, 0.75, 0.71, 1.13, 1.34, 1.33, 0.95, 3.86),
    ("cpu", "all", 128, "forward"):
        (0.70, 1.01, 1.96, 2.64, 7.55, 0.63, 0.94, 1.78, 2.81, 7.64, 0.55, 0.39, 0.34, 0.88, 1.03, 0.89, 0.70, 3.32),
    ("cpu", "all", 128, "training"):
        (0.80, 1.18, 1.78, 2.91, 7.55, 0.78, 1.08, 1.89, 3.06, 7.23, 0.55, 0.43, 0.44, 0.94, 0.96, 1.03, 0.77, 3.58),
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
