"""The first features of nodes in networks of the eSCN family: harmonics of the edges times radial functions, summed."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from eqk import dispatch
from eqk._edges import check_index, check_rows
from eqk.irreps import MAX_DEGREE, Irreps
from eqk.plan import Plan
from eqk.spherical_harmonics import spherical_harmonics
from eqk.tensor_product_conv import tensor_product_conv


@dispatch._cached_constant
def _plan(lmax: int, channels: int, rescale: float) -> str:
    """One scalar for each channel, times a harmonic, times a weight of its channel and degree."""
    harmonics, out = (Irreps([(mul, (l, (-1) ** l)) for l in range(lmax + 1)]) for mul in (1, channels))
    # The coefficient of (0, l, l) is 1 / sqrt(2 l + 1).
    paths = tuple((0, l, l, "uvu", True, math.sqrt(2 * l + 1) / rescale) for l in range(lmax + 1))
    return str(Plan(f"{channels}x0e", harmonics, out, paths, layout_out="ir_mul"))


def edge_degree_embedding(
    vec: Tensor,
    radial: Tensor,
    index: Tensor,
    num_nodes: int,
    rescale: float = 1.0,
    by_index: Tensor | None = None,
) -> Tensor:
    r"""Sums over the edges of each node of spherical harmonics times radial functions.

    .. math:: x_{n,lm,c} = \frac{1}{\text{rescale}} \sum_{e: \text{index}_e = n}
              Y_{lm}(\hat v_e) \, R_{e,l,c}, \qquad \sum_m Y_{lm}^2 = 1

    The edge-degree embedding of EquiformerV2 (Liao et al. 2023, arXiv:2306.12059, section 4.1), eSEN and UMA. They turn
    the features R, of order m = 0, back from the frame of an edge by the transpose of its Wigner matrix, whose column
    for m = 0 is Y: fairchem-core's ``EdgeDegreeEmbedding`` with no Wigner matrix and no messages [edges, (lmax + 1)^2,
    channels], since this is one :func:`eqk.tensor_product_conv`. A smooth cutoff is a factor of R.

    Args:
        vec: [edges, 3], the edges, of any length but zero.
        radial: [edges, lmax + 1, channels], R.
        index: [edges], int32 or int64, in any order: the node that an edge leads to.
        num_nodes: number of nodes.
        rescale: a number that all sums are divided by.
        by_index: [edges], the edges in the stable order of ``index`` (``by_dst`` of :class:`eqk.Graph`), where it is
            known.

    Of any floating-point dtypes, of which those of 16 bits accumulate in float32; on one device. Differentiable to any
    order, in ``vec`` too, in reverse and forward mode, under torch.func and torch.compile; the same bits in every run.

    Returns:
        [num_nodes, (lmax + 1)^2, channels] in the wider dtype of ``vec`` and ``radial``, components by degree, m
        ascending; zeros for a node without edges.

    Raises:
        TypeError: naming the argument that is no tensor.
        RuntimeError: naming the one whose shape, dtype or device does not fit.
        ValueError: if ``index`` has not one integer for each edge, or one that is out of range (values are looked at on
            the CPU; on a GPU an assertion fails there), or ``rescale`` is zero or no number.
    """
    op = "edge_degree_embedding"
    check_rows(op, "vec", vec, ("edges", 3))
    edges = vec.shape[0]
    check_rows(op, "radial", radial, (edges, "lmax + 1", "channels"), vec.device)
    check_index(op, "index", index, edges, num_nodes, vec.device)
    # They are constants of the plan: torch.compile is to have a graph for each.
    lmax, channels = operator.index(radial.shape[1]) - 1, operator.index(radial.shape[2])
    if not 0 <= lmax <= MAX_DEGREE:
        raise RuntimeError(f"eqk.{op}: radial: expected 1 to {MAX_DEGREE + 1} degrees, got {lmax + 1}")
    if not (math.isfinite(rescale) and rescale):
        raise ValueError(f"eqk.{op}: rescale: expected a number but zero, got {rescale!r}")
    dtype = torch.promote_types(vec.dtype, radial.dtype)
    y = spherical_harmonics(range(lmax + 1), vec.to(dtype), True, "norm")
    x, src = y.new_ones(1, channels), torch.zeros_like(index)
    w = radial.to(dtype).flatten(1)
    out = tensor_product_conv(x, y, w, src, index, num_nodes, _plan(lmax, channels, float(rescale)), by_index)
    return out.unflatten(1, ((lmax + 1) ** 2, channels))
