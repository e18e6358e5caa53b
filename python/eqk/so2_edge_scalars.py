"""Scalars of each edge from its nodes, those of an SO(2) layer, without any tensor [edges, degrees, channels].

``torch.ops.eqk.so2_edge_scalars(x, D, h, a, weight, g, index, lmax, wanted)`` is the op. With r = h a,

    s[e] = weight (r[e] * D(e) [x[source] | x[target]])            D(e): the rows m = 0 of Wigner's matrices

and <g, s> is linear in each of x, D, h, a, weight and g. The op returns its gradients with respect to those that are
``wanted``, that to g being s itself. The gradient of <c, gradient with respect to one> is that of the form with c in
its place: the op is its own derivative of every order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk._edge_tiles import EDGE, NODE, SHARED, ops_of, over_tiles, widened
from eqk._signals import check_dense
from eqk.register import MaybeTensor, _add, _needed, _restored, _save, _saved, jvp_rule, loop_over_samples, register
from eqk.so2_conv import check_degrees
from eqk.so2_edge_message import _DTYPES, with_bias
from eqk.wigner import wigner

_NAMES = ("x", "D", "h", "a", "weight", "g")
_ROLES = (NODE, EDGE, EDGE, SHARED, SHARED, EDGE)
_G = 5
_SCALARS = [n == _G for n in range(6)]

_LIBRARY = torch.library.Library("eqk", "FRAGMENT")
_LIBRARY.define(
    "so2_edge_scalars(Tensor x, Tensor D, Tensor? h, Tensor? a, Tensor weight, Tensor? g, Tensor index, int lmax, "
    "bool[6] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
OP = torch.ops.eqk.so2_edge_scalars.default


def _check(v: Sequence[MaybeTensor], index: Tensor, lmax: int, wanted: Sequence[bool]) -> None:
    x, _, h, a, weight, g = v

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::so2_edge_scalars: {name}: expected {expected}, got {got}")

    require(x.dtype in _DTYPES, "x", "dtype float32, float64, float16 or bfloat16", x.dtype)
    require(lmax >= 0, "lmax", "a degree", lmax)
    components = (lmax + 1) ** 2
    require(x.dim() == 3 and x.shape[1] == components, "x", f"shape [nodes, {components}, channels]", list(x.shape))
    require(index.dim() == 2 and index.shape[0] in (1, 2), "index", "shape [1 or 2, edges]", list(index.shape))
    require(index.dtype in (torch.int32, torch.int64), "index", "dtype int32 or int64", index.dtype)
    require(index.device == x.device, "index", f"device {x.device} as x has", index.device)
    columns, edges = (lmax + 1) * index.shape[0] * x.shape[2], index.shape[1]
    require(weight.dim() == 2, "weight", f"shape [scalars, {columns}]", list(weight.shape))
    require(h is not None or a is None, "h", "features that a is to be multiplied with", None)
    require(len(wanted) == 6, "wanted", "6 flags", len(wanted))
    require(g is not None or not any(wanted[:_G]), "g", "a tensor, of which gradients are made", None)
    hidden = columns if a is None else a.shape[0] if a.dim() == 2 else "hidden"
    shapes = (x.shape, (edges, components), (edges, hidden), (hidden, columns), (weight.shape[0], columns),
              (edges, weight.shape[0]))  # fmt: skip
    for name, t, shape in zip(_NAMES, v, shapes, strict=True):
        if t is None:
            continue
        fits = t.dim() == len(shape) and all(n == m for n, m in zip(t.shape, shape, strict=True))
        require(fits, name, f"shape [{', '.join(map(str, shape))}]", list(t.shape))
        require(t.dtype == x.dtype, name, f"dtype {x.dtype} as x has", t.dtype)
        require(t.device == x.device, name, f"device {x.device} as x has", t.device)


def _shapes(v: Sequence[MaybeTensor], index: Tensor) -> list:
    shapes = [None if t is None else t.shape for t in v[:_G]]
    return [*shapes, (index.shape[1], v[4].shape[0])]


def _tile(v: Sequence[MaybeTensor], index: Tensor, lmax: int, wanted: Sequence[bool]) -> list[MaybeTensor]:
    """The gradients that are wanted, None for others."""
    x, rotation, h, a, weight, g = v
    results: list[MaybeTensor] = [None] * 6
    r = None if h is None else (h if a is None else h @ a).unflatten(1, (lmax + 1, -1))

    def rotated(missing: str, z: MaybeTensor = None) -> Tensor:
        slots = [None if name == missing else t for name, t in zip("xDrz", (x, rotation, r, z), strict=True)]
        sizes = (lmax + 1, weight.shape[1] // (lmax + 1)) if missing == "r" else (0, 0)
        return ops_of("rotate", index).rotate(*slots, index, x.shape[0], *sizes, lmax, 0, False, "xDrz".index(missing))

    if wanted[4] or wanted[_G]:
        z = rotated("z").flatten(1)
        results[4] = g.mT @ z if wanted[4] else None
        results[_G] = z @ weight.mT if wanted[_G] else None
    if any(wanted[:4]):
        of_z = (g @ weight).unflatten(1, (lmax + 1, -1))
        results[0] = rotated("x", of_z) if wanted[0] else None
        results[1] = rotated("D", of_z) if wanted[1] else None
        if wanted[2] or wanted[3]:
            of_r = rotated("r", of_z).flatten(1)
            results[2] = (of_r if a is None else of_r @ a.mT) if wanted[2] else None
            results[3] = h.mT @ of_r if wanted[3] else None
    return results


def _kernel(*args):
    *v, index, lmax, wanted = args
    _check(v, index, lmax, wanted)
    shapes = _shapes(v, index)
    wanted = [w and s is not None for w, s in zip(wanted, shapes, strict=True)]

    def tile(local, nodes, _):
        return _tile(local, nodes, lmax, wanted)

    results = over_tiles(tile, widened(v), _ROLES, _ROLES, index, v[4].shape[1])
    return tuple(v[0].new_empty(0) if r is None else r.to(v[0].dtype) for r in results)


def written_out(*args) -> tuple[Tensor, ...]:
    """The op as those it consists of, all edges at once: for exported programs, which cannot call its Python."""
    *v, index, lmax, wanted = args
    wanted = [w and s is not None for w, s in zip(wanted, _shapes(v, index), strict=True)]
    return tuple(v[0].new_empty(0) if r is None else r.to(v[0].dtype) for r in _tile(widened(v), index, lmax, wanted))


def _fake(*args):
    *v, index, lmax, wanted = args
    _check(v, index, lmax, wanted)
    return tuple(
        v[0].new_empty(s if w and s is not None else (0,)) for s, w in zip(_shapes(v, index), wanted, strict=True)
    )


def _gradients(v: Sequence[MaybeTensor], rest: Sequence, wanted: Sequence[bool]) -> list[MaybeTensor]:
    wanted = [w and (t is not None or n == _G) for n, (w, t) in enumerate(zip(wanted, v, strict=True))]
    if not any(wanted) or (v[_G] is None and not wanted[_G]):
        return [None] * 6
    return [r if w else None for r, w in zip(OP(*v, *rest, wanted), wanted, strict=True)]


def _along(v: Sequence[MaybeTensor], c: Sequence[MaybeTensor], rest, wanted) -> list[MaybeTensor]:
    """The sum, over the slots s that have a c_s, of the gradients of the form with c_s there to slots other than s."""
    total: list[MaybeTensor] = [None] * 6
    for s, t in enumerate(c):
        if t is not None:
            others = [w and n != s for n, w in enumerate(wanted)]
            _add(total, _gradients([*v[:s], t, *v[s + 1 :]], rest, others))
    return total


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, below, *args):
        *v, index, lmax, wanted = args
        ctx.wanted = [w and (t is not None or n == _G) for n, (w, t) in enumerate(zip(wanted, v, strict=True))]
        ctx.set_materialize_grads(False)
        # The gradient of <c, gradient to slot s> to another slot is made of the operands at all others.
        there = [n for n, t in enumerate(v) if t is not None]
        _save(ctx, v, (index, lmax), [[n for n in there if n != s] for s, w in enumerate(ctx.wanted) if w])
        return below(*args)

    @staticmethod
    def backward(ctx, *cotangents):
        c = [t if w else None for t, w in zip(cotangents, ctx.wanted, strict=True)]
        like = next((t for t in c if t is not None), None)
        gradients = [None] * 6
        if like is not None:
            v, rest = _saved(ctx, like)
            gradients = _along(v, c, rest, _needed(ctx))
        return None, *gradients, None, None, None

    @staticmethod
    @jvp_rule
    def jvp(ctx, _, *tangents):
        v, rest = _restored(ctx)
        along = _along(v, tangents[:6], rest, ctx.wanted)
        return tuple(
            v[0].new_zeros(s if w else (0,)) if t is None else t
            for t, s, w in zip(along, _shapes(v, rest[0]), ctx.wanted, strict=True)
        )


_LIBRARY.impl(OP, _kernel, "CompositeExplicitAutograd")
register(_LIBRARY, OP, _Function, _fake, loop_over_samples(OP))


def so2_edge_scalars(
    x: Tensor,
    q: Tensor,
    edge_index: Tensor,
    weight: Tensor,
    lmax: int,
    *,
    h: Tensor | None = None,
    a: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The scalars that the first layer of :func:`eqk.so2_edge_message` makes of each edge from j to i.

    For attention weights, which a message is multiplied with and which therefore come before it: the logits of
    EquiformerV2 (Liao et al. 2023, arXiv:2306.12059, section 4.1) are made of extra outputs of order 0 of that layer.

        s = weight (r * D(q)_0 [x_j | x_i]),    r = h a + bias

    with D(q)_0 the rows m = 0 of the Wigner matrices, the harmonics of the edge's direction. Edges are run through in
    tiles that stay in the caches, in the gradients too, and none of what is between x and s is kept for them.

    Args:
        x: [nodes, (lmax + 1)^2, channels], components l^2 + l + m.
        q: [edges, 4], as for :func:`eqk.so2_edge_message`.
        edge_index: [2, edges], int32 or int64: j and i; [1, edges]: j alone.
        weight: [scalars, (lmax + 1) channels in], of both nodes' channels, j's first, by degree: rows of the matrix of
            m = 0.
        lmax: largest degree.
        h: [edges, hidden], the radial network up to its last layer; None for no radial weights.
        a: [hidden, (lmax + 1) channels in], that of the last layer's matrix that is for m = 0. None: h are the weights.
        bias: [(lmax + 1) channels in], or None.

    All of one dtype (float32, float64; float16 and bfloat16 compute in float32) and device; autocast promotes.
    Differentiable to any order, in reverse and forward mode, under torch.func and torch.compile. The same bits in every
    run, on a given number of threads.

    Returns:
        [edges, scalars], to which a bias of the layer is to be added.

    Raises:
        TypeError: naming the argument that is no tensor.
        RuntimeError: naming the operand whose shape, dtype or device does not fit, or the index that is out of range.
        ValueError: naming the degree that is out of range.
    """
    op = "so2_edge_scalars"
    check_degrees(op, lmax, 0)
    optional = {"h": h, "a": a, "bias": bias}
    for name, t in {"x": x, "q": q, "edge_index": edge_index, "weight": weight, **optional}.items():
        if t is not None or name not in optional:
            check_dense(op, name, t, 1)
    h, a = with_bias(op, h, a, bias)
    v = x, wigner(q, lmax, 0), h, a, weight
    if dispatch.choose(op, x.device) == "reference":
        _check((*v, None), edge_index, lmax, _SCALARS)
        return reference.so2_edge_scalars(*v, edge_index, lmax)
    return OP(*v, None, edge_index, lmax, _SCALARS)[_G]
