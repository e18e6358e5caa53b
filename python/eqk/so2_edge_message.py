"""The message of eSCN along each edge, from the nodes to the nodes, without any tensor [edges, components, channels].

``torch.ops.eqk.so2_edge_message(x, q, h, a, w, conv1, conv2, index, plan, keep)`` is the op: for each edge,

    z = r * D(q) [x[source] | x[target]]                  the frame of the edge, rows |m| <= mmax
    y, s = conv1(z)                                        SO(2) linear, s of order 0 alone
    out[target] += D(q)^T w conv2(activation(y, s))

with r = h a, the last layer of the radial network (Passaro and Zitnick 2023, arXiv:2302.03655; Liao et al. 2023,
arXiv:2306.12059; Fu et al. 2025, arXiv:2502.12147). Edges are run through in tiles whose intermediate results stay in
the caches: on the CPU by csrc/so2_edge_message, whose threads run whole tiles, on GPUs by the kernels of
triton_kernels/so2_edge_message.py, elsewhere by operations of torch. Its gradients are one op more,
``so2_edge_message_backward``, and the derivatives of that are made tile by tile from the functions below, which consist
of differentiable ops: every order.

``keep`` has the op return y, s and conv2's result too, by which the backward pass is spared the products that made
them: n_m (hidden + channels) numbers an edge; where the plan's recompute is "second", y and s alone. Derivatives of
gradients make them again.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eqk import dispatch, reference
from eqk._edge_tiles import EDGE, NODE, SHARED, ops_of, over_tiles, widened
from eqk._signals import check_dense, count
from eqk.irreps import MAX_DEGREE
from eqk.plan import MAX_SIZE
from eqk.register import MaybeTensor, _needed, _sum, jvp_rule, loop_over_samples, register
from eqk.s2_activation import _plan as s2_plan
from eqk.s2_activation import _product as s2_product
from eqk.s2_activation_plan import S2ActivationPlan
from eqk.s2_quadrature import Resolution
from eqk.so2_conv import (
    Matrices,
    Sizes,
    check_degrees,
    linear,
    linear_transposed,
    linear_weight_gradient,
    pack,
    sizes_of,
)
from eqk.wigner import wigner

ACTIVATIONS = ("gate", "s2", "swiglu_s2")
MERGES = ("concat", "add")  # of what an edge's two nodes have
# What the backward pass makes again: nothing, the results of both layers, or that of the second.
RECOMPUTE = (False, True, "second")

# The grammar of csrc/so2_edge_message/plan.h: spaces around numbers, and zeros before them, are free.
_PLAN = re.compile(
    "".join(rf" *0*(\d{{1,{digits}}}) *," for digits in (3, 3, 9, 9, 9))
    + rf"({'|'.join(ACTIVATIONS)}), *0*([01]) *, *0*([012]) *,(.*)",
    re.ASCII,
)


class Plan(NamedTuple):
    """What a call has beside tensors; as a string, its fields with commas between them.

    channels_in: of z, so of source and target together. s2: the plan of the activation on a grid, or nothing.
    """

    lmax: int
    mmax: int
    channels_in: int
    hidden: int
    channels_out: int
    activation: str
    rescale: bool
    recompute: bool | str
    s2: str

    def __str__(self) -> str:
        return ",".join(map(str, (*self[:6], int(self.rescale), RECOMPUTE.index(self.recompute), self.s2)))

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Plan:
        match = _PLAN.fullmatch(text)
        if match:
            *sizes, activation, rescale, recompute, s2 = match.groups()
            plan = cls(*map(int, sizes), activation, rescale == "1", RECOMPUTE[int(recompute)], s2)
            if plan.mmax <= plan.lmax <= MAX_DEGREE and min(plan[2:5]) > 0 and plan._fits():
                return plan
        raise ValueError(
            "plan: expected 'LMAX,MMAX,CHANNELS_IN,HIDDEN,CHANNELS_OUT,ACTIVATION,RESCALE,RECOMPUTE,S2PLAN' with one "
            f"of {', '.join(ACTIVATIONS)}, got {text[:200]!r}"
        )

    def _fits(self) -> bool:
        """As csrc/so2_edge_message/plan.h: products of sizes are bounded, and but for gates there is a grid of them."""
        components = (self.lmax + 1) ** 2
        for layer in self.convolutions:
            if 4 * components**2 * layer.channels_in * (layer.channels_out + layer.extra) > MAX_SIZE:
                return False
        if self.activation == "gate":
            return not self.s2.strip(" ")
        try:
            grid = S2ActivationPlan.parse(self.s2)
        except ValueError:
            return False
        return set(grid.dims) == {count(self.lmax, self.mmax) * self.hidden}

    @property
    def numbers(self) -> int:
        """Of the wider of both sides of an edge's message, in its frame."""
        return count(self.lmax, self.mmax) * max(self.channels_in, self.channels_out)

    @property
    def keeps_message(self) -> bool:
        """Of what the op may keep: conv2's result too."""
        return self.recompute != "second"

    @property
    def weights(self) -> tuple[int, int]:
        return self.convolutions[0].weights

    @property
    def convolutions(self) -> tuple[Sizes, Sizes]:
        width, extra = {
            "gate": (self.hidden, self.lmax * self.hidden),
            "s2": (self.hidden, self.hidden),
            "swiglu_s2": (2 * self.hidden, 3 * self.hidden),
        }[self.activation]
        return (
            Sizes(self.lmax, self.mmax, self.channels_in, width, extra),
            Sizes(self.lmax, self.mmax, self.hidden, self.channels_out),
        )


# The activations and their gradients, of y [edges, components, channels] and s [edges, extra].


def _gates(y: Tensor, s: Tensor, plan: Plan) -> Tensor:
    """[edges, lmax + 1, hidden]: SiLU is its argument times the sigmoid of it."""
    return torch.cat([y[:, :1], s.unflatten(1, (plan.lmax, plan.hidden))], 1).sigmoid() if plan.lmax else y.sigmoid()


def _row_blocks(plan: Plan) -> list[tuple[slice, int]]:
    """The rows of each m and -m, of degrees m to lmax."""
    blocks = plan.convolutions[0].blocks()
    return [(slice(i, i + n), m) for m, first, n in blocks for i in ((first, first + n) if m else (first,))]


def _times(t: Tensor, gates: Tensor, plan: Plan, in_place: bool) -> Tensor:
    """Each row times the gate of its degree; ``in_place``: where nothing is differentiated."""
    if not in_place:
        return torch.cat([t[:, rows] * gates[:, m:] for rows, m in _row_blocks(plan)], 1)
    out = torch.empty_like(t)
    for rows, m in _row_blocks(plan):
        torch.mul(t[:, rows], gates[:, m:], out=out[:, rows])
    return out


def _gate(y: Tensor, s: Tensor, plan: Plan, in_place: bool) -> Tensor:
    return _times(y, _gates(y, s, plan), plan, in_place)


def _gate_gradient(y: Tensor, s: Tensor, g: Tensor, plan: Plan, in_place: bool) -> tuple[Tensor, Tensor]:
    gates = _gates(y, s, plan)
    of_y, of_gates = _times(g, gates, plan, in_place), torch.zeros_like(gates)
    for rows, m in _row_blocks(plan):
        of_gates[:, m:].addcmul_(g[:, rows], y[:, rows])
    of_gates = of_gates * (gates * (1 - gates))
    of_y[:, 0] += of_gates[:, 0]
    return of_y, of_gates[:, 1:].flatten(1)


def _s2(y: Tensor, s: Tensor, plan: Plan, in_place: bool) -> Tensor:
    z = ops_of("s2_activation", y).s2_activation(y.flatten(1), plan.s2).unflatten(1, y.shape[1:])
    return torch.cat([torch.nn.functional.silu(s)[:, None], z[:, 1:]], 1)


def _silu_gradient(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


def _s2_gradient(y: Tensor, s: Tensor, g: Tensor, plan: Plan, in_place: bool) -> tuple[Tensor, Tensor]:
    above = torch.cat([torch.zeros_like(g[:, :1]), g[:, 1:]], 1).flatten(1)
    of_y = s2_product(ops_of("s2_activation", y), y.flatten(1), [above], plan.s2, 1, "z", "x")
    return of_y.unflatten(1, y.shape[1:]), g[:, 0] * _silu_gradient(s)


def _swiglu_s2(y: Tensor, s: Tensor, plan: Plan, in_place: bool) -> Tensor:
    u, v = (half.flatten(1) for half in y.chunk(2, 2))
    p, t, gate = s.chunk(3, 1)
    z = s2_product(ops_of("s2_activation", y), u, [v], plan.s2, 0, "x", "z").unflatten(1, (-1, plan.hidden))
    z = z * gate.sigmoid()[:, None]
    return torch.cat([z[:, :1] + (torch.nn.functional.silu(p) * t)[:, None], z[:, 1:]], 1)


def _swiglu_s2_gradient(y: Tensor, s: Tensor, g: Tensor, plan: Plan, in_place: bool) -> tuple[Tensor, Tensor]:
    u, v = (half.flatten(1) for half in y.chunk(2, 2))
    p, t, gate = s.chunk(3, 1)
    gate, ops = gate.sigmoid(), ops_of("s2_activation", y)
    z = s2_product(ops, u, [v], plan.s2, 0, "x", "z").unflatten(1, (-1, plan.hidden))
    of_z = (g * gate[:, None]).flatten(1)
    halves = [s2_product(ops, one, [of_z], plan.s2, 0, "z", "x").unflatten(1, (-1, plan.hidden)) for one in (v, u)]
    of_p = g[:, 0] * t * _silu_gradient(p)
    of_t = g[:, 0] * torch.nn.functional.silu(p)
    return torch.cat(halves, 2), torch.cat([of_p, of_t, (g * z).sum(1) * gate * (1 - gate)], 1)


_ACTIVATION: dict[str, tuple[Callable, Callable]] = {
    "gate": (_gate, _gate_gradient),
    "s2": (_s2, _s2_gradient),
    "swiglu_s2": (_swiglu_s2, _swiglu_s2_gradient),
}


# One tile. Operands are (x, q, h, a, w, conv1, conv2), of which h, a and w may be None; x and the cotangent g of the
# result are those of the tile's nodes, which ``index`` [2, edges] counts.

_ROLES = (NODE, EDGE, EDGE, SHARED, EDGE, SHARED, SHARED)
_NAMES = ("x", "q", "h", "a", "w", "conv1", "conv2")


def _matrices(v: Sequence[MaybeTensor], plan: Plan) -> list[Matrices]:
    parameters = zip(plan.convolutions, v[5:7], strict=True)
    return [Matrices.of(zero, bias, ms) for zero, bias, *ms in (s.unpack(flat) for s, flat in parameters)]


def _weights(h: MaybeTensor, a: MaybeTensor, plan: Plan) -> MaybeTensor:
    """[edges, groups, channels in]: those of the input of the first layer."""
    if h is None:
        return None
    return (h if a is None else h @ a).unflatten(1, (-1, plan.channels_in))


def _sources(x: Tensor, index: Tensor, plan: Plan) -> Tensor:
    return index[: plan.channels_in // x.shape[2]]


def _per_head(w: MaybeTensor) -> MaybeTensor:
    return None if w is None else w[:, None]


def _rotate(
    missing: str, x: MaybeTensor, rotation: MaybeTensor, r: MaybeTensor, z: MaybeTensor, index: Tensor, plan: Plan,
    nodes: int = 0, rescale: bool = False,
) -> Tensor:  # fmt: skip
    """:func:`eqk.rotate` or a gradient of it: what stands at the ``missing`` slot, of x, D, r and z."""
    groups, columns = r.shape[1:] if r is not None else (0, 0)
    r = None if missing == "r" else r
    sizes = nodes, groups, columns, plan.lmax, plan.mmax
    op = ops_of("rotate", index).rotate
    return op(x, rotation, r, z, index, *sizes, rescale, "xDrz".index(missing))


class _Kernel(NamedTuple):
    """What a tile has of the kernel that it is part of: the matrices of both layers, and where results may be written.

    Without one, a tile consists of operations that are differentiable.
    """

    matrices: list[Matrices]
    y: MaybeTensor = None
    s: MaybeTensor = None
    message: MaybeTensor = None

    def at(self, edges: slice) -> _Kernel:
        return self._replace(**{name: t[edges] for name, t in self._asdict().items() if isinstance(t, Tensor)})


def _empty(x: Tensor, edges: int, layer: Sizes) -> tuple[Tensor, Tensor]:
    """For both results of a layer."""
    return x.new_empty(edges, count(*layer[:2]), layer.channels_out), x.new_empty(edges, layer.extra)


def _forward_tile(v: Sequence[MaybeTensor], kernel: _Kernel | None, index: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """The result, and what backward is spared by: y, s and the result of the second layer."""
    x, q, h, a, w = v[:5]
    rotation, layers = wigner(q, plan.lmax, plan.mmax), plan.convolutions
    first, second = kernel.matrices if kernel else _matrices(v, plan)
    into = [None, None]
    if kernel:
        into = [_empty(x, len(q), layer) for layer in layers]
        if kernel.y is not None:
            into[0] = kernel.y, kernel.s
        if kernel.message is not None:
            into[1] = kernel.message, into[1][1]
    z = _rotate("z", x, rotation, _weights(h, a, plan), None, _sources(x, index, plan), plan)
    y, s = linear(z, first, layers[0], into[0])
    active = _ACTIVATION[plan.activation][0](y, s, plan, kernel is not None)
    message, _ = linear(active, second, layers[1], into[1])
    out = _rotate("x", None, rotation, _per_head(w), message, index[-1:], plan, len(x), plan.rescale)
    return out, y, s, message


def _like_input(q: Tensor, layer: Sizes, kernel: _Kernel | None) -> MaybeTensor:
    return q.new_empty(len(q), count(*layer[:2]), layer.channels_in) if kernel else None


def _backward_tile(
    v: Sequence[MaybeTensor],
    g: Tensor,
    kept: Sequence[MaybeTensor],
    kernel: _Kernel | None,
    index: Tensor,
    plan: Plan,
    wanted: Sequence[bool],
) -> list[MaybeTensor]:
    """The gradients of <g, result> that are wanted, None for others."""
    x, q, h, a, w = v[:5]
    activation, activation_gradient = _ACTIVATION[plan.activation]
    layers, (first, second) = plan.convolutions, kernel.matrices if kernel else _matrices(v, plan)
    rotation, r, per_head = wigner(q, plan.lmax, plan.mmax), _weights(h, a, plan), _per_head(w)
    sources, targets = _sources(x, index, plan), index[-1:]
    results: list[MaybeTensor] = [None] * 7

    y, s, message = kept
    z = None
    if y is None or wanted[5]:
        z = _rotate("z", x, rotation, r, None, sources, plan)
    if y is None:
        y, s = linear(z, first, layers[0])
    active = activation(y, s, plan, kernel is not None) if wanted[6] or message is None else None
    if message is None and (wanted[1] or wanted[4]):
        message, _ = linear(active, second, layers[1])

    of_message = _rotate("z", g, rotation, per_head, None, targets, plan, rescale=plan.rescale)
    of_rotation = None
    if wanted[1]:
        of_rotation = _rotate("D", g, None, per_head, message, targets, plan, rescale=plan.rescale)
    if wanted[4]:
        results[4] = _rotate("r", g, rotation, per_head, message, targets, plan, rescale=plan.rescale)[:, 0]
    if wanted[6]:
        results[6] = linear_weight_gradient(active, of_message, None, layers[1])
    if any(wanted[:4]) or wanted[5]:
        of_active = linear_transposed(of_message, None, second, layers[1], _like_input(q, layers[1], kernel))
        of_y, of_s = activation_gradient(y, s, of_active, plan, kernel is not None)
        if wanted[5]:
            results[5] = linear_weight_gradient(z, of_y, of_s, layers[0])
    if any(wanted[:4]):
        of_z = linear_transposed(of_y, of_s, first, layers[0], _like_input(q, layers[0], kernel))
        if wanted[0]:
            results[0] = _rotate("x", None, rotation, r, of_z, sources, plan, len(x))
        if wanted[1]:
            of_rotation = of_rotation + _rotate("D", x, None, r, of_z, sources, plan)
        if wanted[2] or wanted[3]:
            of_r = _rotate("r", x, rotation, r, of_z, sources, plan).flatten(1)
            results[2] = (of_r if a is None else of_r @ a.mT) if wanted[2] else None
            results[3] = h.mT @ of_r if wanted[3] else None
    if wanted[1]:
        results[1] = torch.ops.eqk.wigner_backward(q, of_rotation, plan.lmax, plan.mmax)
    return results


def _forward_kernel(*args):
    *v, index, text, keep = args
    _check("so2_edge_message", v, None, (), index, text)
    plan, dtype = Plan.parse(text), v[0].dtype
    v = widened(v)
    y, s, message = (None,) * 3
    if keep:
        y, s = _empty(v[0], index.shape[1], plan.convolutions[0])
        if plan.keeps_message:
            message, _ = _empty(v[0], index.shape[1], plan.convolutions[1])
    kernel = _Kernel(_matrices(v, plan), y, s, message)

    def tile(local, nodes, edges):
        return _forward_tile(local, kernel.at(edges), nodes, plan)[:1]

    (out,) = over_tiles(tile, v, _ROLES, (NODE,), index, plan.numbers)
    return out.to(dtype), *(v[0].new_empty(0) if k is None else k for k in (y, s, message))


def _backward_kernel(*args):
    *v, g, y, s, message, index, text, wanted = args
    _check("so2_edge_message_backward", v, g, (y, s, message), index, text)
    _check_wanted("so2_edge_message_backward", v, wanted)
    plan, dtype = Plan.parse(text), v[0].dtype
    operands = widened([*v, g, y, s, message])
    kernel = _Kernel(_matrices(operands, plan))
    wanted = [w and t is not None for w, t in zip(wanted, v, strict=True)]

    def tile(local, nodes, _):
        return _backward_tile(local[:7], local[7], local[8:], kernel, nodes, plan, wanted)

    roles = (*_ROLES, NODE, EDGE, EDGE, EDGE)
    results = over_tiles(tile, operands, roles, _ROLES, index, plan.numbers)
    return tuple(v[0].new_empty(0) if r is None else r.to(dtype) for r in results)


def _double_backward_kernel(*args):
    *tensors, index, text, wanted = args
    v = tensors[:8]
    _check("so2_edge_message_double_backward", v[:7], v[7], (), index, text)
    _check_wanted("so2_edge_message_double_backward", v, wanted)
    plan, dtype = Plan.parse(text), v[0].dtype
    wanted = [w and t is not None for w, t in zip(wanted, v, strict=True)]

    def tile(local, nodes, _):
        # Kernels run beneath autograd; this one is made by it.
        autograd = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.AutogradOther)
        with contextlib.ExitStack() as stack:
            for key in autograd:
                stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
            stack.enter_context(torch.enable_grad())
            at = [None if t is None else t.detach().requires_grad_(w) for t, w in zip(local[:8], wanted, strict=True)]
            made = _gradients_tile(at, local[8:], nodes, plan)
            pairs = [(r, t) for r, t in zip(made, local[8:], strict=True) if t is not None]
            moving = [t for t, w in zip(at, wanted, strict=True) if w]
            found = iter(
                torch.autograd.grad([r for r, _ in pairs], moving, [t for _, t in pairs], materialize_grads=True)
            )
            return [next(found) if w else None for w in wanted]

    roles = (*_ROLES, NODE)
    results = over_tiles(tile, widened(tensors), (*roles, *_ROLES), roles, index, plan.numbers)
    return tuple(v[0].new_empty(0) if r is None else r.to(dtype) for r in results)


def _gradients_tile(v: Sequence[MaybeTensor], c: Sequence[MaybeTensor], index: Tensor, plan: Plan):
    """The gradients that have a cotangent in c; v: the operands and g."""
    return _backward_tile(v[:7], v[7], (None, None, None), None, index, plan, [t is not None for t in c])


def _third(
    tensors: Sequence[MaybeTensor], cotangents: Sequence[MaybeTensor], needed, index: Tensor, plan: Plan
) -> list:
    """The gradients to v, g and c of <cotangents, double backward>, from the differentiable ops of a tile."""
    roles, dtype = (*_ROLES, NODE), tensors[0].dtype
    moving = [n for n, need in enumerate(needed) if need]

    def tile(local, nodes, _):
        outer, c = local[15:], local[8:15]

        def second(*values):
            at = list(local[:15])
            for n, value in zip(moving, values, strict=True):
                at[n] = value
            inner = [n for n, t in enumerate(outer) if t is not None]

            def first(*moved):
                v = list(at[:8])
                for n, value in zip(inner, moved, strict=True):
                    v[n] = value
                return tuple(r for r in _gradients_tile(v, c, nodes, plan) if r is not None)

            return torch.func.vjp(first, *[at[n] for n in inner])[1](tuple(t for t in at[8:] if t is not None))

        pull = torch.func.vjp(second, *[local[n] for n in moving])[1]
        found = iter(pull(tuple(t for t in outer if t is not None)))
        return [next(found) if need else None for need in needed]

    operands = widened([*tensors, *cotangents])
    results = over_tiles(tile, operands, (*roles, *_ROLES, *roles), (*roles, *_ROLES), index, plan.numbers)
    return [None if r is None else r.to(dtype) for r in results]


def _backward(v, g, kept, index, text: str, wanted: Sequence[bool]) -> list[MaybeTensor]:
    wanted = [w and t is not None for w, t in zip(wanted, v, strict=True)]
    results = _BACKWARD(*v, g, *kept, index, text, wanted) if any(wanted) else v
    return [r if w else None for r, w in zip(results, wanted, strict=True)]


def _double_backward(v, c, index, text: str, wanted: Sequence[bool]) -> list[MaybeTensor]:
    """The gradients to v, the operands and g, of <c, backward>, where c has None for zeros."""
    wanted = [w and t is not None for w, t in zip(wanted, v, strict=True)]
    if not any(wanted) or all(t is None for t in c):
        return [None] * 8
    results = _DOUBLE_BACKWARD(*v, *c, index, text, wanted)
    return [r if w else None for r, w in zip(results, wanted, strict=True)]


# The two ops.

_LIBRARY = torch.library.Library("eqk", "IMPL")
_FORWARD = torch.ops.eqk.so2_edge_message.default
_BACKWARD = torch.ops.eqk.so2_edge_message_backward.default
_DOUBLE_BACKWARD = torch.ops.eqk.so2_edge_message_double_backward.default
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _check_weights(op: str, name: str, t: Tensor, layer: Sizes) -> None:
    degrees, orders = layer.weights
    torch._check(
        t.dim() == 2 and t.shape[1] in (degrees, orders),
        lambda: (
            f"eqk::{op}: {name}: expected 2 dimensions, the last of {degrees} (degrees) or {orders} (degrees and "
            f"orders) weights, got shape {list(t.shape)}"
        ),
    )


def _check(
    op: str, v: Sequence[MaybeTensor], g: MaybeTensor, kept: Sequence[MaybeTensor], index: Tensor, text: str
) -> None:
    plan, (x, q, h, a, w, *_) = Plan.parse(text), v

    def require(ok, name: str, expected: object, got: object) -> None:
        torch._check(ok, lambda: f"eqk::{op}: {name}: expected {expected}, got {got}")

    of_kept = list(zip(("y", "s", "message"), kept, strict=False))
    for name, t in (*zip(_NAMES, v, strict=True), ("g", g), *of_kept, ("index", index)):
        if t is not None:
            require(t.layout == torch.strided, name, "a dense tensor", f"layout {t.layout}")
    require(x.dtype in _DTYPES, "x", "dtype float32, float64, float16 or bfloat16", x.dtype)
    components = (plan.lmax + 1) ** 2
    channels = [n for n in (1, 2) if x.dim() == 3 and n * x.shape[2] == plan.channels_in]
    either = f"[nodes, {components}, {plan.channels_in} or {plan.channels_in / 2:g}]"
    require(x.dim() == 3 and x.shape[1] == components and bool(channels), "x", f"shape {either}", list(x.shape))
    require(index.dim() == 2 and index.shape[0] in (2, 3), "index", "shape [2 or 3, edges]", list(index.shape))
    require(index.dtype in (torch.int32, torch.int64), "index", "dtype int32 or int64", index.dtype)
    require(index.device == x.device, "index", f"device {x.device} as x has", index.device)
    edges, rows = index.shape[1], count(plan.lmax, plan.mmax)
    first, second = plan.convolutions
    last = h if a is None else a
    if h is not None:
        _check_weights(op, "h" if a is None else "a", last, first)
    require(h is not None or a is None, "h", "features that a is to be multiplied with", None)
    if w is not None:
        divides = w.dim() == 2 and (plan.channels_out % w.shape[1] == 0 if w.shape[1] > 0 else False)
        require(divides, "w", f"shape [{edges}, a divisor of {plan.channels_out}]", list(w.shape))
    shapes = {
        "q": (q, (edges, 4)),
        "h": (h, (edges, last.shape[0] if a is not None else last.shape[1]) if h is not None else ()),
        "w": (w, (edges, w.shape[1]) if w is not None else ()),
        "conv1": (v[5], (first.numel(),)),
        "conv2": (v[6], (second.numel(),)),
        "g": (g, (x.shape[0], components, plan.channels_out)),
    }
    if kept:
        shapes["y"] = kept[0], (edges, rows, first.channels_out)
        shapes["s"] = kept[1], (edges, first.extra)
        shapes["message"] = kept[2], (edges, rows, plan.channels_out)
    for name, (t, shape) in shapes.items():
        if t is None:
            continue
        require(t.dim() == len(shape), name, f"shape {list(shape)}", list(t.shape))
        for n, m in zip(t.shape, shape, strict=True):
            require(n == m, name, f"shape {list(shape)}", list(t.shape))
    for name, t in (*zip(_NAMES, v, strict=True), ("g", g)):
        if t is not None:
            require(t.dtype == x.dtype, name, f"dtype {x.dtype} as x has", t.dtype)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, t in of_kept:
        if t is not None:
            require(t.dtype == wide, name, f"dtype {wide} that is computed in", t.dtype)
    for name, t in (*zip(_NAMES, v, strict=True), ("g", g), *of_kept):
        if t is not None:
            require(t.device == x.device, name, f"device {x.device} as x has", t.device)


def _check_wanted(op: str, v: Sequence[MaybeTensor], wanted: Sequence[bool]) -> None:
    torch._check(len(wanted) == len(v), lambda: f"eqk::{op}: wanted: expected {len(v)} flags, got {len(wanted)}")


def _fake_forward(*args):
    *v, index, text, keep = args
    _check("so2_edge_message", v, None, (), index, text)
    plan, x = Plan.parse(text), v[0]
    wide = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
    (y, s), (message, _) = (_empty(wide, index.shape[1], layer) for layer in plan.convolutions)
    out = x.new_empty(*x.shape[:2], plan.channels_out)
    kept = (y, keep), (s, keep), (message, keep and plan.keeps_message)
    return out, *(t if k else t.new_empty(0) for t, k in kept)


def _fake_gradients(op: str, v: Sequence[MaybeTensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    _check_wanted(op, v, wanted)
    return tuple(v[0].new_empty(t.shape if w and t is not None else (0,)) for t, w in zip(v, wanted, strict=True))


def _fake_backward(*args):
    *v, g, y, s, message, index, text, wanted = args
    _check("so2_edge_message_backward", v, g, (y, s, message), index, text)
    return _fake_gradients("so2_edge_message_backward", v, wanted)


def _fake_double_backward(*args):
    *tensors, index, text, wanted = args
    _check("so2_edge_message_double_backward", tensors[:7], tensors[7], (), index, text)
    return _fake_gradients("so2_edge_message_double_backward", tensors[:8], wanted)


def _save(ctx, tensors: Sequence[MaybeTensor], *kept: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.shapes = [None if t is None else t.shape for t in tensors]  # for _needed
    ctx.save_for_backward(*tensors, *kept)
    ctx.save_for_forward(*tensors, *kept)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, below, *args):
        *v, index, ctx.plan, _ = args
        out, *kept = below(*v, index, ctx.plan, Plan.parse(ctx.plan).recompute is not True)
        _save(ctx, v, index, *kept)
        ctx.mark_non_differentiable(*kept)
        return out, *kept

    @staticmethod
    def backward(ctx, g, *_):
        gradients = [None] * 7
        if g is not None:
            *v, index, y, s, message = ctx.saved_tensors
            kept = {False: (y, s, message), "second": (y, s, None), True: (None,) * 3}[Plan.parse(ctx.plan).recompute]
            gradients = _backward(v, g, kept, index, ctx.plan, _needed(ctx))
        return None, *gradients, None, None, None

    @staticmethod
    @jvp_rule
    def jvp(ctx, _, *tangents):
        # <t, gradients of <g, out>> is <g, derivative along t>, whatever g.
        *v, index, _, _, _ = ctx.saved_tensors
        g = v[0].new_zeros(*v[0].shape[:2], Plan.parse(ctx.plan).channels_out)
        along = _double_backward((*v, g), tangents[:7], index, ctx.plan, [False] * 7 + [True])[7]
        return along, None, None, None


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, below, *args):
        *v, g, _, _, _, index, ctx.plan, wanted = args
        _check_wanted("so2_edge_message_backward", v, wanted)
        ctx.wanted = [w and t is not None for w, t in zip(wanted, v, strict=True)]
        _save(ctx, (*v, g), index)
        return below(*args)

    @staticmethod
    def backward(ctx, *cotangents):
        c = [t if w else None for t, w in zip(cotangents, ctx.wanted, strict=True)]
        *v, index = ctx.saved_tensors
        return None, *_double_backward(v, c, index, ctx.plan, _needed(ctx)), *(None,) * 6

    @staticmethod
    @jvp_rule
    def jvp(ctx, _, *tangents):
        # Second derivatives are symmetric: the derivative of the gradients along t is the gradient of <t, gradients>.
        *v, index = ctx.saved_tensors
        terms = _double_backward(v, tangents[:7], index, ctx.plan, (*ctx.wanted, False))[:7]
        if tangents[7] is not None:
            along = _backward(v[:7], tangents[7], (None,) * 3, index, ctx.plan, ctx.wanted)
            terms = [_sum(pair) for pair in zip(terms, along, strict=True)]
        return tuple(
            v[0].new_zeros(t.shape if w else (0,)) if term is None else term
            for term, t, w in zip(terms, v, ctx.wanted, strict=False)
        )


class _DoubleBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, below, *args):
        *tensors, index, ctx.plan, wanted = args
        ctx.wanted = [w and t is not None for w, t in zip(wanted, tensors, strict=False)]
        _save(ctx, tensors, index)
        return below(*args)

    @staticmethod
    def backward(ctx, *cotangents):
        c = [t if w else None for t, w in zip(cotangents, ctx.wanted, strict=True)]
        gradients, needed = [None] * 15, _needed(ctx)
        if any(t is not None for t in c) and any(needed):
            *tensors, index = ctx.saved_tensors
            gradients = _third(tensors, c, needed, index, Plan.parse(ctx.plan))
        return None, *gradients, None, None, None

    @staticmethod
    def jvp(ctx, *_):
        raise NotImplementedError(
            "eqk::so2_edge_message: expected forward mode of the op or of its gradients, asked for that of second "
            "derivatives: take these in reverse mode"
        )


for _op, _function, _fake, _kernel in (
    (_FORWARD, _Forward, _fake_forward, _forward_kernel),
    (_BACKWARD, _Backward, _fake_backward, _backward_kernel),
    (_DOUBLE_BACKWARD, _DoubleBackward, _fake_double_backward, _double_backward_kernel),
):
    # A kernel of the device's own, where one is registered, goes before this.
    _LIBRARY.impl(_op, _kernel, "CompositeExplicitAutograd")
    register(_LIBRARY, _op, _function, _fake, loop_over_samples(_op))


@dispatch._cached_constant
def _plan(lmax, mmax, channels_in, hidden, channels_out, activation, rescale, recompute, res, grid) -> str:
    s2 = ""
    if activation != "gate":
        function, fields = {"s2": ("silu", 1), "swiglu_s2": ("identity", 2)}[activation]
        quadrature, normalization, grid_rescale = grid
        options = res, quadrature, normalization, mmax, "m_primary", grid_rescale
        s2 = s2_plan(lmax, lmax, hidden, function, fields, *options)
    return str(Plan(lmax, mmax, channels_in, hidden, channels_out, activation, rescale, recompute, s2))


def with_bias(op: str, h: MaybeTensor, a: MaybeTensor, bias: MaybeTensor) -> tuple[MaybeTensor, MaybeTensor]:
    """h' and a' with h' a' = h a + bias."""
    if bias is None:
        return h, a
    if a is None or h is None:
        raise RuntimeError(f"eqk.{op}: bias: expected None without a matrix a, got a tensor")
    if a.dim() != 2 or bias.shape != a.shape[1:]:
        raise RuntimeError(f"eqk.{op}: bias: expected shape {list(a.shape[1:])}, got {list(bias.shape)}")
    return torch.cat([h, h.new_ones(h.shape[0], 1)], 1), torch.cat([a, bias[None]])


def for_both(t: Tensor, channels: int) -> Tensor:
    """Columns that the channels of a sum of two nodes are multiplied with, as those of both, one after the other."""
    return t.unflatten(1, (-1, channels)).repeat(1, 1, 2).flatten(1)


def so2_edge_message(
    x: Tensor,
    q: Tensor,
    edge_index: Tensor,
    conv1: Sequence[Tensor | None],
    conv2: Sequence[Tensor | None],
    lmax: int,
    mmax: int,
    *,
    h: Tensor | None = None,
    a: Tensor | None = None,
    bias: Tensor | None = None,
    w: Tensor | None = None,
    merge: str = "concat",
    activation: str = "gate",
    rescale: bool = False,
    res: Resolution | None = None,
    quadrature: str = "gausslegendre",
    normalization: str = "component",
    grid_rescale: bool = False,
    recompute: bool | str = False,
) -> Tensor:
    """The message of eSCN and its descendants along each edge, from gathering nodes to the sum into nodes.

    For each edge from j to i, in the frame q of the edge,

        y, s = conv1(r * D(q) [x_j | x_i]),    out_i += D(q)^T (w conv2(activation(y, s)))

    where D are Wigner matrices of which rows |m| <= mmax are kept, the radial weights r = h a + bias are the last layer
    of a radial network, and the layers those of :func:`eqk.so2_conv`: eSCN (Passaro and Zitnick 2023,
    arXiv:2302.03655), EquiformerV2 (Liao et al. 2023, arXiv:2306.12059, with attention for w), eSEN (Fu et al. 2025,
    arXiv:2502.12147) and UMA (with the envelope for w). Edges are run through in tiles that stay in the caches.

    Args:
        x: [nodes, (lmax + 1)^2, channels], components l^2 + l + m.
        q: [edges, 4], quaternions of any length but zero, of the rotations that take edges to the y axis:
            :func:`eqk.edge_frame`. What is equivariant does not hang on the angle about the edge.
        edge_index: [2, edges], int32 or int64: j and i; or [3, edges], with the node that the message goes to last.
        conv1: parameters of the first layer, as for :func:`eqk.so2_conv`, of both nodes' channels, j's first (or, with
            half as many inputs, of j's alone), with extra scalars s as the activation has them.
        conv2: those of the second layer, without extra scalars.
        lmax, mmax: largest degree, and largest order in the frames of edges.
        h: [edges, hidden], the radial network up to its last layer, activation included; None for no radial weights.
        a: [hidden, weights], that layer's matrix: a weight for each channel in and each (l, m), in the order [m = 0:
            l = 0 .. lmax | m = 1: l = 1 .. lmax | ..], or for each channel in and l. None: h are the weights.
        bias: [weights], or None.
        w: [edges], or [edges, heads] for each head of adjacent channels out; None for ones.
        merge: what the first layer has of an edge's nodes: ``"concat"``, the channels of both, or ``"add"``, x_j + x_i,
            of which conv1 and a have as many channels as x. Sums are made by the first layer, of twice the columns.
        activation: of the first layer's H channels out:
            ``"gate"``, SiLU of degree 0, the others times the sigmoid of s, lmax H extra scalars by degree (eSEN, UMA);
            ``"s2"``, SiLU on a grid, and SiLU of s, H of them, for degree 0 (EquiformerV2's separable S2 activation);
            ``"swiglu_s2"``, the product of both halves of the channels, with gates and a SwiGLU of s, 3 for each pair
            (EquiformerV3's).
        rescale: as for :func:`eqk.rotate_back` (EquiformerV2).
        res, quadrature, normalization, grid_rescale: the grid, as for :func:`eqk.s2_activation` with that ``rescale``.
        recompute: whether the backward pass makes the results of both layers again, or with ``"second"`` that of the
            second alone. By default they are kept, as much as edges times rows times channels of both; nothing else of
            that size ever is.

    All of one dtype (float32, float64; float16 and bfloat16 compute in float32) and device; autocast promotes.
    Differentiable to any order in reverse mode, which makes intermediate results again from the second on, and in
    forward mode to the second, under torch.func and torch.compile. The gradient of q is that of what is computed,
    without a matrix's derivative: the torque on the edge. The same bits in every run; on the CPU those of the value and
    of its gradients for any number of threads.

    On GPUs Triton's kernels make the value in 16-bit types and float32, of up to 29 rows of an edge, such as those of
    lmax 6 and mmax 2. Their products are of three pairs of TF32 numbers, which is float32 (error 5e-7), or of one after
    ``torch.set_float32_matmul_precision("high")``; what is infinite makes NaN.

    Returns:
        [nodes, (lmax + 1)^2, channels out]; zeros for a node without edges.

    Raises:
        TypeError: naming the argument that is no tensor or no layer.
        RuntimeError: naming the operand whose shape, dtype or device does not fit, or the index that is out of range.
        ValueError: naming the option that does not fit.
    """
    op = "so2_edge_message"
    check_degrees(op, lmax, mmax)
    optional = {"h": h, "a": a, "bias": bias, "w": w}
    for name, t in {"x": x, "q": q, "edge_index": edge_index, **optional}.items():
        if t is not None or name not in optional:
            check_dense(op, name, t, 1)
    if merge not in MERGES:
        raise ValueError(f"eqk.{op}: merge: expected one of {', '.join(MERGES)}, got {merge!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"eqk.{op}: activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if recompute not in RECOMPUTE:
        raise ValueError(f"eqk.{op}: recompute: expected False, True or 'second', got {recompute!r}")
    second = sizes_of(op, "conv2", conv2, lmax, mmax, 0)
    extra = {"gate": lmax, "s2": 1, "swiglu_s2": 3}[activation] * second.channels_in
    first = sizes_of(op, "conv1", conv1, lmax, mmax, extra)
    expected = (2 if activation == "swiglu_s2" else 1) * second.channels_in
    if first.channels_out != expected:
        raise RuntimeError(
            f"eqk.{op}: conv1[0]: expected {expected} channels out, for the {second.channels_in} channels in of conv2, "
            f"got {first.channels_out}"
        )
    h, a = with_bias(op, h, a, bias)
    if merge == "add":
        channels = first.channels_in
        if x.dim() != 3 or x.shape[2] != channels:
            raise RuntimeError(
                f"eqk.{op}: x: expected shape [nodes, {(lmax + 1) ** 2}, {channels}], as conv1 has channels in and "
                f"merge is 'add', got {list(x.shape)}"
            )
        if a is not None:
            _check_weights(op, "a", a, first)
            a = for_both(a, channels)
        elif h is not None:
            _check_weights(op, "h", h, first)
            h = for_both(h, channels)
        conv1 = [t if n == 1 else for_both(t, channels) for n, t in enumerate(conv1)]
        first = first._replace(channels_in=2 * channels)
    grid = quadrature, normalization, bool(grid_rescale)
    sizes = first.channels_in, second.channels_in, second.channels_out
    plan = _plan(lmax, mmax, *sizes, activation, bool(rescale), RECOMPUTE[RECOMPUTE.index(recompute)], res, grid)
    w = w[:, None] if w is not None and w.dim() == 1 else w
    layers = [pack(layer) for layer in (conv1, conv2)]
    backend = dispatch.choose(op, x.device)
    if backend == "reference":
        _check(op, (x, q, h, a, w, *layers), None, (), edge_index, plan)
        parsed = Plan.parse(plan)
        unpacked = [sizes.unpack(flat) for sizes, flat in zip(parsed.convolutions, layers, strict=True)]
        return reference.so2_edge_message(x, q, h, a, w, *unpacked, edge_index, parsed)
    ops = torch.ops.eqk_triton if backend == "triton" else torch.ops.eqk
    return ops.so2_edge_message(x, q, h, a, w, *layers, edge_index, plan, False)[0]
