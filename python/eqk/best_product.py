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
# On an AMD EPYC (Zen 5), printed by
#     python bench/price_of_freedom.py --crossover
# fmt: off
DEGREES = (
    (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (6, 6, 6), (1, 1, 2), (2, 2, 4), (3, 3, 6), (4, 4, 8),
    (6, 6, 12), (2, 2, 0), (4, 4, 0), (6, 6, 0), (2, 1, 2), (4, 1, 4), (6, 1, 6), (1, 3, 1), (6, 3, 6),
)
MEASURED = {
    ("cpu", "even", 1, "forward"):
        (1.12, 1.76, 3.08, 4.81, 8.65, 1.18, 1.97, 3.34, 4.33, 6.92, 0.93, 0.95, 1.10, 1.48, 1.60, 2.04, 1.07, 4.91),
    ("cpu", "even", 1, "training"):
        (1.14, 1.95, 3.07, 5.38, 8.81, 1.30, 2.18, 3.65, 5.03, 8.31, 0.96, 1.11, 1.50, 1.48, 1.93, 2.65, 1.04, 5.66),
    ("cpu", "all", 1, "forward"):
        (1.04, 1.60, 3.13, 4.07, 7.16, 1.07, 1.55, 2.98, 3.79, 6.90, 0.81, 0.76, 0.69, 1.44, 1.53, 1.69, 0.89, 4.46),
    ("cpu", "all", 1, "training"):
        (1.11, 1.69, 3.71, 4.63, 8.00, 1.05, 1.94, 3.22, 4.32, 7.42, 0.78, 0.86, 1.25, 1.32, 1.94, 2.04, 0.93, 4.85),
    ("cpu", "even", 8, "forward"):
        (0.70, 1.69, 2.32, 3.92, 7.24, 0.83, 1.70, 2.53, 3.21, 5.97, 0.68, 0.82, 0.83, 1.16, 1.42, 1.49, 0.81, 4.09),
    ("cpu", "even", 8, "training"):
        (0.81, 1.81, 2.84, 4.78, 7.66, 0.96, 2.54, 3.10, 4.37, 7.37, 0.74, 0.81, 1.18, 1.43, 2.19, 1.97, 0.79, 4.82),
    ("cpu", "all", 8, "forward"):
        (0.71, 1.42, 2.50, 3.61, 6.53, 0.74, 1.41, 2.21, 2.99, 6.05, 0.53, 0.57, 0.50, 0.98, 1.21, 1.24, 0.69, 3.64),
    ("cpu", "all", 8, "training"):
        (0.81, 1.69, 3.03, 4.42, 7.35, 0.89, 1.70, 2.76, 3.67, 6.76, 0.59, 0.71, 0.67, 1.09, 1.43, 1.59, 0.80, 4.04),
    ("cpu", "even", 128, "forward"):
        (0.71, 1.44, 2.56, 4.57, 9.65, 0.83, 1.60, 2.74, 3.99, 8.26, 0.61, 0.78, 0.90, 1.11, 1.42, 1.81, 0.78, 4.72),
    ("cpu", "even", 128, "training"):
        (0.80, 1.81, 3.08, 5.15, 10.8, 0.95, 2.00, 3.18, 5.26, 10.3, 0.70, 0.85, 1.13, 1.15, 1.62, 2.11, 0.87, 5.83),
    ("cpu", "all", 128, "forward"):
        (0.66, 1.30, 2.52, 4.07, 9.45, 0.72, 1.38, 2.31, 3.60, 8.60, 0.49, 0.53, 0.52, 0.98, 1.29, 1.34, 0.68, 4.32),
    ("cpu", "all", 128, "training"):
        (0.78, 1.51, 3.03, 4.40, 9.63, 0.80, 1.63, 2.84, 4.41, 8.94, 0.55, 0.63, 0.77, 1.07, 1.48, 1.60, 0.79, 5.08),
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
