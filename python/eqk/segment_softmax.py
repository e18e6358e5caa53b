"""Softmax over the edges of each node, with a smooth cutoff or without."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqk._edges import check_index, check_rows

# A gather and a sum, each the gradient of the other. Of PyTorch's sums index_add has one order of terms on the CPU and
# index_put on GPUs; both come after scatter_reduce, which refuses what is out of range.


def _gather(t: Tensor, index: Tensor) -> Tensor:
    return t.index_select(0, index) if t.is_cpu else t[index]


def _sum(t: Tensor, index: Tensor, rows: int) -> Tensor:
    zeros = t.new_zeros(rows, t.shape[1])
    return zeros.index_add(0, index, t) if t.is_cpu else zeros.index_put((index,), t, accumulate=True)


def segment_softmax(
    logits: Tensor, index: Tensor, num_segments: int, envelope: Tensor | None = None, eps: float = 1e-16
) -> Tensor:
    r"""Attention weights: softmax, of each head, over the edges that lead to the same node.

    Without ``envelope``, alpha_e = exp(a_e) / sum over e' of exp(a_e'), as ``torch_geometric.utils.softmax``. With it,
    the smooth-cutoff attention of EquiformerV3 (its ``GraphSoftmax``, times the envelope once more),

    .. math:: \alpha_e = \frac{u_e \, u_e \exp(a_e - m)}{\sum_{e'} u_{e'} \exp(a_{e'} - m) + \epsilon},
              \quad m = \max_{e'} a_{e'}

    with the sum and the maximum over the edges of a node, so that edges come and go smoothly, but for :math:`\epsilon`.
    A number that is added to all logits of a node changes nothing. EquiformerV3 detaches m, which is exact for
    :math:`\epsilon = 0` alone, where m cancels: else it scales :math:`\epsilon`, and that counts where all envelopes of
    a node are as small. Here derivatives of every order are those of the function as it stands, of its maximum too.

    Where all envelopes of a node are zero its weights are zero, and three derivatives finite; a node may have no edges.
    Sums, and those of gradients, add in one order: the same bits in every run.

    Args:
        logits: [edges, heads], a.
        index: [edges], int32 or int64, in any order: the node that an edge leads to.
        num_segments: number of nodes.
        envelope: [edges], u, not negative, such as :class:`eqk.nn.PolynomialEnvelope`; None for none.
        eps: is used with ``envelope`` alone. EquiformerV3 has 1e-16, and 1e-8 in fine-tuning.

    Of any floating-point dtypes, of which those of 16 bits compute in float32; on one device. Differentiable to any
    order, in reverse and forward mode, under torch.func and torch.compile.

    Returns:
        [edges, heads], in the wider dtype of ``logits`` and ``envelope``.

    Raises:
        TypeError: naming the argument that is no tensor.
        RuntimeError: naming the one whose shape, dtype or device does not fit.
        ValueError: if ``index`` has not one integer for each edge, or one that is out of range (values are looked at on
            the CPU; on a GPU an assertion fails there), or ``eps`` is not a positive number of the type computed in.
    """
    op = "segment_softmax"
    check_rows(op, "logits", logits, ("edges", "heads"))
    edges, heads = logits.shape
    check_index(op, "index", index, edges, num_segments, logits.device)
    dtype = logits.dtype
    if envelope is not None:
        check_rows(op, "envelope", envelope, (edges,), logits.device)
        dtype = torch.promote_types(dtype, envelope.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    numbers = torch.finfo(wide)
    if not numbers.tiny <= eps < numbers.max:
        raise ValueError(f"eqk.{op}: eps: expected a number from {numbers.tiny}, got {eps!r}")
    logits, index = logits.to(wide), index.long()
    lowest = logits.new_full((num_segments, heads), numbers.min)  # of nodes without edges
    largest = lowest.scatter_reduce(0, index[:, None].expand(-1, heads), logits, "amax")
    constant = largest.detach()
    terms = (logits - _gather(constant, index)).exp()
    if envelope is None:
        return (terms / _gather(_sum(terms, index, num_segments), index)).to(dtype)
    factors = envelope.to(wide)[:, None]
    # A power of two for both terms of the sum changes no bit of the quotient. So large, it is as far from one as the
    # reciprocal of the sum may be: derivatives have products of some of both, which float32 can hold.
    unit = 2.0 ** -round(math.log2(eps) / 2)
    terms = terms * (factors * unit)
    # The exponential is one; it has the derivatives that are left of the maximum, where all others cancel.
    total = _sum(terms, index, num_segments) + eps * unit * (largest - constant).exp()
    return (factors * (terms / _gather(total, index))).to(dtype)
