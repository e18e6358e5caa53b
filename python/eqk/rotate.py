"""Node features in the frames of edges, |m| <= mmax, and back to nodes: one pass each.

``torch.ops.eqk.rotate(x, D, weights, z, index, num_nodes, groups, columns, lmax, mmax, rescale, missing)`` is the op:

    Q = sum over edges e, nodes k < K of an edge, rows p = (l, m'), channels c of
          z[e, p, k C + c] weights[e, group(p), (k C + c) // width] s_l sum_m D[e, (l, m', m)] x[index[k, e], (l, m), c]

is linear in x, D, weights and z, the slots 0 to 3, and the op is the gradient of Q to the ``missing`` one of them. Its
gradient to an operand, with the cotangent in the place of what was missing, is the op without that operand: closed,
with no other op. ``num_nodes`` is read where x is missing, ``groups`` and ``columns``, the shape of weights, where they
are; ``weights`` may be None, for ones. s_l is 1, or with ``rescale`` what :func:`eqk.rotate_back` says.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk._signals import check_dense, component_index, count
from eqk.irreps import MAX_DEGREE
from eqk.register import MaybeTensor, _sum, forward_function, register

_SLOTS = ("x", "D", "weights", "z")
_X, _D, _WEIGHTS, _Z = range(4)
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _numbers(lmax: int, mmax: int) -> int:
    return sum((2 * l + 1) * (2 * min(l, mmax) + 1) for l in range(lmax + 1))


def _shape(operands: Sequence[MaybeTensor], rest: Sequence, slot: int) -> tuple:
    """Of an operand, or of what is missing, by the others."""
    index, num_nodes, groups, columns, lmax, mmax, _, _ = rest
    x, D, weights, z = operands
    nodes_of_edge = 1 if index is None else index.shape[0]
    edges = (z if D is None else D).shape[0]
    channels = z.shape[2] // nodes_of_edge if x is None else x.shape[2]
    if slot == _X:
        return (edges if index is None else num_nodes if x is None else x.shape[0], (lmax + 1) ** 2, channels)
    if slot == _D:
        return (edges, _numbers(lmax, mmax))
    if slot == _WEIGHTS:
        return (edges, *((groups, columns) if weights is None else weights.shape[1:]))
    return (edges, count(lmax, mmax), nodes_of_edge * channels)


def _check(operands: Sequence[MaybeTensor], rest: Sequence) -> None:
    """What csrc/rotate/op.h checks, for tensors without data."""

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::rotate: {name}: expected {expected}, got {got}")

    index, num_nodes, groups, columns, lmax, mmax, _, missing = rest
    require(0 <= lmax <= MAX_DEGREE, "lmax", f"a degree from 0 to {MAX_DEGREE}", lmax)
    require(0 <= mmax <= lmax, "mmax", f"an order from 0 to lmax, {lmax}", mmax)
    require(0 <= missing < len(_SLOTS), "missing", "0 (x), 1 (D), 2 (weights) or 3 (z)", missing)
    for slot, (name, t) in enumerate(zip(_SLOTS, operands, strict=True)):
        if slot == missing:
            require(t is None, name, "None for what is missing", "a tensor")
        elif slot != _WEIGHTS or t is not None:
            require(t is not None, name, "a tensor", t)
            require(t.layout == torch.strided, name, "a dense tensor", f"layout {t.layout}")
            dims = 2 if slot == _D else 3
            require(t.dim() == dims, name, f"{dims} dimensions", f"shape {list(t.shape)}")
    x, D, weights, z = operands
    first, of = (z, "z") if x is None else (x, "x")
    require(first.dtype in _DTYPES, of, "dtype float32, float64, float16 or bfloat16", first.dtype)
    edges, nodes_of_edge = (z if D is None else D).shape[0], 1
    if index is not None:
        shape = list(index.shape)
        require(index.layout == torch.strided, "index", "a dense tensor", f"layout {index.layout}")
        require(index.dim() == 2 and shape[0] > 0, "index", f"shape [nodes of an edge, {edges}]", shape)
        require(shape[1] == edges, "index", f"shape [nodes of an edge, {edges}]", shape)
        require(index.dtype in (torch.int32, torch.int64), "index", "dtype int32 or int64", index.dtype)
        require(index.device == first.device, "index", f"device {first.device} as {of} has", index.device)
        nodes_of_edge = shape[0]
    if x is None:
        fits = num_nodes >= 0 if index is not None else num_nodes == edges
        require(fits, "num_nodes", "at least 0" if index is not None else "edges, without an index", num_nodes)
        require(z.shape[2] % nodes_of_edge == 0, "z", f"channels of {nodes_of_edge} nodes", f"shape {list(z.shape)}")
    if weights is not None or missing == _WEIGHTS:
        _, groups, columns = _shape(operands, rest, _WEIGHTS)
        name = "groups, columns" if weights is None else "weights"
        degrees, orders = lmax + 1, sum(lmax + 1 - m for m in range(mmax + 1))
        rows = f"1 row for an edge, {degrees} for degrees or {orders} for degrees and orders"
        require(groups in (1, degrees, orders), name, rows, groups)
        of_edge = _shape(operands, rest, _Z)[2]
        divides = of_edge % columns == 0 if columns > 0 else columns == of_edge == 0
        require(divides, name, f"a divisor of {of_edge} columns", columns)
    for slot, (name, t) in enumerate(zip(_SLOTS, operands, strict=True)):
        if t is None:
            continue
        shape = _shape(operands, rest, slot)
        for n, m in zip(t.shape, shape, strict=True):
            require(n == m, name, f"shape {list(shape)}", list(t.shape))
        require(t.dtype == first.dtype, name, f"dtype {first.dtype} as {of} has", t.dtype)
        require(t.device == first.device, name, f"device {first.device} as {of} has", t.device)


def _without(op, operands: Sequence[MaybeTensor], slot: int, rest: Sequence) -> Tensor:
    """``op`` with all slots but one; ``operands`` has something of its shape there too."""
    index, _, _, _, lmax, mmax, rescale, _ = rest
    shape = operands[slot].shape
    num_nodes = shape[0] if slot == _X else 0
    groups, columns = shape[1:] if slot == _WEIGHTS else (0, 0)
    others = [None if s == slot else t for s, t in enumerate(operands)]
    return op(*others, index, num_nodes, groups, columns, lmax, mmax, rescale, slot)


def _gradients(op, operands, g, rest, needed):
    slots = [g if s == rest[-1] else t for s, t in enumerate(operands)]
    return [_without(op, slots, s, rest) if need else None for s, need in enumerate(needed)]


def _along(op, operands, tangents, rest):
    varied = [(s, t) for s, t in enumerate(tangents) if t is not None]
    return _sum([op(*operands[:s], t, *operands[s + 1 :], *rest) for s, t in varied])


def _fake(*args):
    operands, rest = args[:4], args[4:]
    _check(operands, rest)
    like = next(t for t in (operands[_X], operands[_Z]) if t is not None)
    return like.new_empty(_shape(operands, rest, rest[-1]))


def _vmap(op, info, in_dims, *args):
    """One graph of as many parts, that no edge connects, as there are samples."""
    size = info.batch_size

    def merged(t, dim):
        return None if t is None else _batched(t, dim).flatten(0, 1)

    def _batched(t, dim):
        return t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)

    operands, (index, num_nodes, *options) = list(args[:4]), args[4:]
    x, of_all = operands[_X], operands[_X] is not None and in_dims[_X] is None and index is not None
    rows = num_nodes if x is None else x.shape[0 if in_dims[_X] != 0 else 1]
    if index is not None:
        index = _batched(index, in_dims[4])
        inside = (index >= 0) & (index < rows)  # else it would be a node of another sample
        first = 0 if of_all else rows * torch.arange(size, device=index.device)[:, None, None]
        index = torch.where(inside, index + first, -1).movedim(0, 1).flatten(1)
    operands = [x if s == _X and of_all else merged(t, in_dims[s]) for s, t in enumerate(operands)]
    result = op(*operands, index, num_nodes * size, *options)
    if options[-1] == _X:
        return result.unflatten(0, (size, rows)), 0
    slot = _Z if operands[_D] is None else _D
    edges = args[slot].shape[1 if in_dims[slot] == 0 else 0]
    return result.unflatten(0, (size, edges)), 0


def _other_devices(*args):
    operands, rest = args[:4], args[4:]
    _check(operands, rest)
    first = next(t for t in operands if t is not None)
    wide = torch.promote_types(first.dtype, torch.float32)
    return reference.rotate(*[None if t is None else t.to(wide) for t in operands], *rest).to(first.dtype)


def register_derivatives(namespace: str) -> torch.library.Library:
    """Autograd, fake kernel, vmap and autocast of the op of ``namespace``, by that op alone.

    It exists already, and they are there as long as what this returns.
    """
    op, library = getattr(torch.ops, namespace).rotate.default, torch.library.Library(namespace, "IMPL")
    gradients, along, vmap = (functools.partial(f, op) for f in (_gradients, _along, _vmap))
    register(library, op, forward_function(4, range(4), gradients, along), _fake, vmap)
    return library


_LIBRARY = register_derivatives("eqk")
# A kernel of the device's own, where one is registered, goes before this.
_LIBRARY.impl("rotate", _other_devices, "CompositeExplicitAutograd")


def m_primary(lmax: int, mmax: int) -> list[int]:
    """The components l^2 + l + m with |m| <= mmax in the order of rows of edges: x[:, m_primary(lmax, mmax)].

    First those of m = 0 by degree, then for m = 1, 2, ... those of m and then those of -m (eSCN, Passaro and Zitnick
    2023, arXiv:2302.03655, as in fairchem).

    Raises:
        ValueError: naming the argument that does not fit.
    """
    _check_degrees(lmax, mmax)
    return component_index(lmax, mmax, "m_primary")


def _check_degrees(lmax: int, mmax: int) -> None:
    if not isinstance(lmax, int) or not 0 <= lmax <= MAX_DEGREE:
        raise ValueError(f"lmax: expected a degree from 0 to {MAX_DEGREE}, got {lmax!r}")
    if not isinstance(mmax, int) or not 0 <= mmax <= lmax:
        raise ValueError(f"mmax: expected an order from 0 to lmax, {lmax}, got {mmax!r}")


def _call(op: str, operands: Sequence[MaybeTensor], index: MaybeTensor, num_nodes: int, *options) -> Tensor:
    """``options``: lmax, mmax, rescale and what is missing."""
    _check_degrees(*options[:2])
    for name, t in zip((*_SLOTS, "index"), (*operands, index), strict=True):
        if t is not None or name == "D" or name == ("x" if op == "rotate" else "z"):
            check_dense(op, name, t, 1)
    if index is not None and index.dim() == 1:
        index = index[None]
    device = next(t for t in (operands[_X], operands[_Z]) if t is not None).device
    backend = dispatch.choose("rotate", device)
    if backend == "reference":
        _check(operands, (index, num_nodes, 0, 0, *options))
        return reference.rotate(*operands, index, num_nodes, 0, 0, *options)
    ops = torch.ops.eqk_triton if backend == "triton" else torch.ops.eqk
    return ops.rotate(*operands, index, num_nodes, 0, 0, *options)


def rotate(
    x: Tensor,
    D: Tensor,
    lmax: int,
    mmax: int,
    index: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Features of the nodes of each edge in the frame of the edge, orders |m| <= mmax alone, times weights.

    One pass over the edges for the gather of nodes, their concatenation on channels, the products with Wigner blocks,
    the order of rows for the linear maps of SO(2) (eSCN, Passaro and Zitnick 2023, arXiv:2302.03655), and the radial
    weights:

        z[e, (l, m'), k C + c] = weights[e, group(l, m'), (k C + c) // width]
                                 sum over m of D_l[e, m', m] x[index[k, e], (l, m), c]

    Args:
        x: [nodes, (lmax + 1)^2, C], components in the order l^2 + l + m.
        D: [edges, numbers], of each degree in order the rows m' = -k .. k, k = min(l, mmax), of its Wigner matrix,
            [2 k + 1, 2 l + 1], one after another: 35, 70, 115, 235 numbers for (lmax, mmax) = (2, 2), (3, 2), (4, 2),
            (6, 2).
        lmax, mmax: largest degree, up to 20, and order.
        index: [edges] or [K, edges], int32 or int64: the K nodes of each edge, such as its source and its target, whose
            channels come one after the other. None: x has a row for each edge.
        weights: [edges, groups, columns]. groups: 1, a row for all of an edge; lmax + 1, one for each degree; or one
            for each degree and order, [m = 0: l = 0 .. lmax | m = 1: l = 1 .. lmax | ..], which m and -m share.
            columns: a divisor of K C; each is for ``width`` = K C / columns channels, one after another.

    All of one dtype (float32, float64; float16 and bfloat16 accumulate in float32) and device; under autocast mixed
    dtypes are promoted. Differentiable to any order, in reverse and forward mode, under torch.func and torch.compile.
    The same bits in every run and for any number of threads.

    Returns:
        [edges, rows, K C], rows in the order of :func:`eqk.m_primary`.

    Raises:
        RuntimeError: naming the operand whose shape, dtype or device does not fit, or the index that is out of range
            (on a GPU, where nothing waits for the device, an assertion there that fails); or why the backend that was
            asked for (:mod:`eqk.dispatch`) cannot run.
        ValueError: naming the degree or order that is out of range.
        TypeError: naming the operand that is no tensor.
    """
    return _call("rotate", (x, D, weights, None), index, 0, lmax, mmax, False, _Z)


def rotate_back(
    z: Tensor,
    D: Tensor,
    lmax: int,
    mmax: int,
    index: Tensor | None = None,
    num_nodes: int | None = None,
    weights: Tensor | None = None,
    rescale: bool = False,
) -> Tensor:
    """Messages in the frames of edges, times weights, rotated back and summed into nodes: the transpose of ``rotate``.

        x[n, (l, m), c] = sum over e, k with index[k, e] = n, and m', of
                            s_l D_l[e, m', m] weights[e, group(l, m'), (k C + c) // width] z[e, (l, m'), k C + c]

    Messages [edges, (lmax + 1)^2, C] are never stored. A node without edges has zeros.

    Args:
        z: [edges, rows, K C], rows in the order of :func:`eqk.m_primary`.
        D, lmax, mmax, weights: as for :func:`eqk.rotate`; weights of one row may be attention, a column for each head.
        index: [edges] or [K, edges], the nodes that channels of an edge go to. None: a row of the result for each edge.
        num_nodes: number of nodes, where there is an index.
        rescale: whether s_l is sqrt((2 l + 1) / (2 mmax + 1)) instead of 1 for l > mmax, which makes up for the
            components that an edge lacks (EquiformerV2, Liao et al. 2023, arXiv:2306.12059).

    Dtypes, devices, derivatives and bits: as for :func:`eqk.rotate`.

    Returns:
        [num_nodes, (lmax + 1)^2, C].

    Raises:
        As :func:`eqk.rotate`; ValueError also where there is an index without ``num_nodes``.
    """
    if index is not None and num_nodes is None:
        raise ValueError("num_nodes: expected the number of nodes that index is of, got None")
    if num_nodes is None:
        check_dense("rotate_back", "z", z, 1)
        num_nodes = z.shape[0]
    return _call("rotate_back", (None, D, weights, z), index, num_nodes, lmax, mmax, rescale, _X)
