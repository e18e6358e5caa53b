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
        (0.85, 1.28, 2.53, 3.63, 4.67, 0.91, 1.41, 2.41, 2.88, 4.67, 0.76, 0.72, 0.85, 1.03, 1.32, 1.50, 0.88, 3.63),
    ("cpu", "even", 1, "training"):
        (0.94, 1.38, 2.45, 4.00, 5.01, 0.93, 1.61, 2.14, 2.82, 5.11, 0.80, 0.77, 0.82, 1.56, 1.40, 1.38, 0.89, 3.12),
    ("cpu", "all", 1, "forward"):
        (0.81, 1.21, 2.21, 2.71, 4.71, 0.80, 1.19, 2.04, 2.32, 4.51, 0.64, 0.44, 0.53, 0.89, 1.14, 1.03, 0.75, 2.60),
    ("cpu", "all", 1, "training"):
        (0.85, 1.22, 2.09, 2.69, 5.12, 0.84, 1.27, 1.93, 2.58, 5.03, 0.62, 0.47, 0.58, 0.94, 1.17, 1.09, 0.71, 2.78),
    ("cpu", "even", 8, "forward"):
        (0.47, 0.86, 1.36, 2.07, 3.19, 0.62, 0.89, 1.39, 1.82, 3.00, 0.45, 0.55, 0.57, 0.64, 0.86, 0.92, 0.54, 2.06),
    ("cpu", "even", 8, "training"):
        (0.58, 0.96, 1.52, 2.19, 3.46, 0.61, 1.13, 1.45, 1.95, 3.36, 0.52, 0.57, 0.50, 0.75, 1.01, 0.96, 0.63, 2.10),
    ("cpu", "all", 8, "forward"):
        (0.43, 0.74, 1.06, 1.36, 2.64, 0.47, 0.60, 1.02, 1.32, 2.38, 0.35, 0.24, 0.22, 0.54, 0.63, 0.52, 0.43, 1.48),
    ("cpu", "all", 8, "training"):
        (0.50, 0.79, 1.13, 1.50, 2.92, 0.48, 0.70, 1.15, 1.44, 2.82, 0.40, 0.26, 0.24, 0.55, 0.63, 0.61, 0.43, 1.70),
    ("cpu", "even", 128, "forward"):
        (0.67, 1.29, 2.44, 4.14, 8.63, 0.68, 1.31, 2.10, 3.35, 8.28, 0.69, 0.84, 0.78, 1.00, 1.30, 1.28, 0.83, 3.94),
    ("cpu", "even", 128, "training"):
        (0.85, 1.50, 2.64, 3.81, 7.28, 0.92, 1.29, 2.11, 3.59, 7.84, 0.71, 0.73, 0.76, 1.22, 1.38, 1.31, 0.70, 3.84),
    ("cpu", "all", 128, "forward"):
        (0.67, 1.09, 1.83, 2.74, 7.86, 0.61, 0.93, 1.93, 2.84, 7.65, 0.53, 0.34, 0.28, 0.77, 0.86, 0.94, 0.71, 3.39),
    ("cpu", "all", 128, "training"):
        (0.85, 1.14, 1.91, 3.26, 8.54, 0.73, 1.08, 2.07, 3.30, 7.38, 0.58, 0.38, 0.44, 0.90, 0.96, 1.04, 0.67, 3.55),
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
