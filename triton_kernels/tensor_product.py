# Triton knows no unpacking into a tuple.
# ruff: noqa: RUF005
"""The sparse Clebsch-Gordan tensor product in Triton: ``torch.ops.eqk_triton.tensor_product`` and its family.

Every member of the family is a gather: a program owns a block of rows and of the channels of one segment of one result,
walks the paths that reach it and writes it once. So nothing is atomic, nothing is zeroed beforehand, and results are
deterministic. The weights of a call that shares them are summed over a chunk of rows by each program, and over the
chunks by torch.

A path contributes to the slot that is left out, for channels (u, v, c) of x, y and out,

    out[c, k] += w T_k,  T_k = sum_ij C_ijk x_ui y_vj          gw += sum_k T_k g_ck
    gx[u, i] += sum_jk C_ijk y_vj h_k,  h_k = w g_ck           gy[v, j] += sum_ik C_ijk x_ui h_k

with the coefficient of the path inside C. Where tangents come along, the results are the epsilon parts of the same
expressions on dual numbers.

The ops are registered with ``torch.library.Library.impl`` and not ``triton_op``: the latter defines schema and autograd
of its own, and eqk's schemas and :class:`eqk.register.Multilinear` are there already. To torch.compile the ops are
opaque.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from eqk._library import wigner_3j
from eqk.plan import Plan
from eqk.register import MaybeTensor, Multilinear
from eqk.tensor_product import _batch, _check, _shapes
from eqk.triton_kernels.common import (
    KEYS,
    Constant,
    compute_type,
    count_of,
    lane_sum,
    max_grid,
    on,
    pick,
    power_of_2,
    with_adjacent_columns,
)

# Slots, in the order of the operands; as constexpr because kernels read them.
_X = tl.constexpr(0)
_Y = tl.constexpr(1)
_W = tl.constexpr(2)
_G = tl.constexpr(3)

_FAN_OUT = ("uvw", "uuw", "u<vw")
_TILE = 256
_MAX_CHANNELS = 64
_WARPS = 4
_MAX_GRID = max_grid(_WARPS)
_ROW_CHUNKS = 256
# Straight-line code beyond this many operations, as _operations counts them, goes to another kernel: the time to
# compile one grows with the square, since Triton's coalescing pass walks, for each load, all that is connected to it.
# Programs of different kernels share nothing but what the L2 cache holds.
_MAX_OPERATIONS = 1300


@dataclass(frozen=True)
class _View:
    """Element (u, i) of a segment is at offset + u * channel + i * component."""

    offset: int
    channel: int
    component: int


@dataclass(frozen=True, repr=False, eq=False)
class _Path(Constant):
    mode: str
    fan_out: bool
    ordered: bool
    weighted: bool
    m1: int
    m2: int
    mo: int
    outer: int
    inner: int
    weight_offset: int
    x: _View
    y: _View
    out: _View
    d1: int
    d2: int
    d3: int
    terms: tuple


@dataclass(frozen=True, repr=False, eq=False)
class _Section(Constant):
    """One segment of one result: programs [begin, end) own ``extent`` channels of ``d`` components each.

    With ``reduce`` a program owns one channel and its lanes are those of the innermost sum.
    """

    slot: int
    begin: int
    end: int
    extent: int
    reduce: bool
    view: _View
    d: int
    paths: tuple


@dataclass(frozen=True, repr=False, eq=False)
class _Table(Constant):
    """The sections of a kernel."""

    sections: tuple[_Section, ...]


class _Launch(NamedTuple):
    table: _Table
    blocks: int
    rows: int
    channels: int
    wide: bool
    over_rows: bool
    columns: tuple[int, int]


# Host: from a plan to tables.


def _trips(slot: int, mode: str, m1: int, m2: int, mo: int) -> tuple[int, int]:
    """Trip counts of the outer and inner loops of ``_indices``."""
    if slot == 2 or mode == "uuu":
        return 1, 1
    if slot == 3:
        return {"uvw": (m2, m1), "u<vw": (m2, m1), "uvu": (1, m2)}.get(mode, (1, m1 if mode in ("uvv", "uuw") else 1))
    other = m2 if slot == 0 else m1
    return {"uvw": (other, mo), "u<vw": (other, mo), "uuw": (1, mo)}.get(mode, (1, other))


@functools.lru_cache(maxsize=4096)
def _terms(l1: int, l2: int, l3: int, coefficient: float, slot: int) -> tuple:
    """For each component of the result ``((p, ((q, c), ...)), ...)``: sum of first[p] * sum of c * second[q].

    First and second are x, y for the results out and gw; g and y for gx; g and x for gy.
    """
    result, first = {0: (0, 2), 1: (1, 2), 2: (2, 0), 3: (2, 0)}[slot]
    second = 3 - result - first
    c = wigner_3j(l1, l2, l3, dtype=torch.float64)
    terms: list[dict[int, list]] = [{} for _ in range(c.shape[result])]
    for index in c.nonzero().tolist():
        value = c[tuple(index)].item() * coefficient
        terms[index[result]].setdefault(index[first], []).append((index[second], value))
    return tuple(tuple((p, tuple(q)) for p, q in component.items()) for component in terms)


def _views(irreps, layout: str) -> list[_View]:
    return [
        _View(columns.start, ir.dim, 1) if layout == "mul_ir" else _View(columns.start, 1, mul)
        for columns, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
    ]


def _operations(path: _Path, slot: int, varies: tuple[bool, ...] | None) -> int:
    """About as many operations as ``path_sum`` has in Triton's IR."""
    dx, dy, dw, dg = varies or (False,) * 4
    dw &= path.weighted
    contraction = sum(1 + 2 * len(q) for component in path.terms for _, q in component) - len(path.terms)
    if slot in (2, 3):
        contractions = 1 + dx + dy
    else:
        contractions = (dw or dg) + (dy if slot == 0 else dx) if varies else 1
    loads = path.weighted * (1 + dw)
    for n, (d, varying) in enumerate(((path.d1, dx), (path.d2, dy), (path.d3, dg))):
        if (slot if slot < 2 else 5 - slot if slot == 3 else None) != n:
            loads += d * (1 + varying)
    elementwise = path.d3 * (1 + dw + dg) + len(path.terms)
    return 40 + contraction * contractions + 2 * loads + 2 * elementwise


@functools.lru_cache(maxsize=4096)
def lower(text: str, slots: tuple[int, ...], varies: tuple[bool, ...] | None = None) -> tuple[_Launch, ...]:
    """The launches that compute the results ``slots`` (0 to 3: gx, gy, gw, out) of the plan ``text``.

    ``varies``: on dual numbers, which of x, y, w and g have a tangent.
    """
    plan = Plan.parse(text)
    irreps = (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)
    layouts = (plan.layout_in1, plan.layout_in2, plan.layout_out)
    views = [_views(i, layout) for i, layout in zip(irreps, layouts, strict=True)]
    paths = []
    at = 0
    for ins, shape in zip(plan.instructions, plan.path_shapes, strict=True):
        numel = math.prod(shape) if ins.has_weight else 0
        if all(i[n].mul for i, n in zip(irreps, ins, strict=False)) and math.prod(shape):
            paths.append((ins, at, numel))
        at += numel

    def path(slot: int, ins, offset: int) -> _Path:
        (m1, ir1), (m2, ir2), (mo, iro) = (i[n] for i, n in zip(irreps, ins, strict=False))
        mode = ins.connection_mode
        return _Path(
            mode,
            mode in _FAN_OUT,
            "<" in mode,
            ins.has_weight,
            m1,
            m2,
            mo,
            *_trips(slot, mode, m1, m2, mo),
            offset,
            *(v[n] for v, n in zip(views, ins, strict=False)),
            ir1.dim,
            ir2.dim,
            iro.dim,
            _terms(ir1.l, ir2.l, iro.l, ins.coefficient, slot),
        )

    # Sections without the programs that they get below.
    sections = []
    for slot in slots:
        if slot == 2:
            for ins, offset, numel in paths:
                if numel:
                    sections.append(_Section(2, 0, 0, numel, False, _View(offset, 1, 1), 1, (path(2, ins, offset),)))
            continue
        side = min(slot, 2)
        for n, (mul, ir) in enumerate(irreps[side]):
            if not mul:
                continue
            reaching = tuple(path(slot, ins, offset) for ins, offset, _ in paths if ins[side] == n)
            # Lanes belong on the longer of the two: the channels of the result or the sum over the others.
            reduce = any(p.inner > 4 * mul for p in reaching) or (slot != 3 and any(p.fan_out for p in reaching))
            sections.append(_Section(slot, 0, 0, mul, reduce, views[side][n], ir.dim, reaching))

    wide = max(*(i.dim for i in irreps), plan.weight_numel, 0) >= 2**30
    launches, group, budget = [], [], 0

    def flush() -> None:
        nonlocal group, budget
        if not group:
            return
        lanes = max(max((p.inner for p in s.paths), default=1) if s.reduce else s.extent for s in group)
        channels = power_of_2(lanes, _MAX_CHANNELS)
        placed, begin = [], 0
        for s in group:
            end = begin + (s.extent if s.reduce else -(-s.extent // channels))
            placed.append(replace(s, begin=begin, end=end))
            begin = end
        if begin > _MAX_GRID:
            raise NotImplementedError(f"eqk_triton: expected a plan of at most {_MAX_GRID} programs a row, got {begin}")
        over_rows = group[0].slot == 2 and plan.weights == "shared"
        columns = (group[0].view.offset, group[-1].view.offset + group[-1].extent) if over_rows else (0, 0)
        launches.append(_Launch(_Table(tuple(placed)), begin, _TILE // channels, channels, wide, over_rows, columns))
        group, budget = [], 0

    for section in sections:
        cost = sum(_operations(p, section.slot, varies) for p in section.paths)
        changes_rows = group and plan.weights == "shared" and (group[0].slot == 2) != (section.slot == 2)
        if changes_rows or budget + cost > _MAX_OPERATIONS:
            flush()
        group.append(section)
        budget += cost
    flush()
    return tuple(launches)


# Device.


@triton.jit
def _pair(u, v, m: tl.constexpr):
    return u * (2 * m - u - 1) // 2 + v - u - 1


@triton.jit
def _unpair(p, m: tl.constexpr):
    """The inverse of ``_pair``."""
    # Lanes beyond the last pair would take the root of a negative number, and NaN makes an index below 0.
    root = tl.sqrt(tl.maximum((2 * m - 1.0) * (2 * m - 1.0) - 8.0 * p.to(tl.float64), 0.0))
    u = ((2 * m - 1.0 - root) * 0.5).to(p.dtype)
    u = tl.where(u * (2 * m - u - 1) // 2 > p, u - 1, u)
    u = tl.where((u + 1) * (2 * m - u - 2) // 2 <= p, u + 1, u)
    return u, p - u * (2 * m - u - 1) // 2 + u + 1


@triton.jit
def _divide(n, m: tl.constexpr):
    """n // m and n % m; a 0 that is the same for all lanes, so that they share what they load there."""
    if m == 1:
        return n, tl.full([1, 1], 0, n.dtype)
    else:
        return n // m, n % m


@triton.jit
def _indices(own, a, b, slot: tl.constexpr, P: tl.constexpr):
    """Channels u, v, c and weight n of the term (a, b) of the sum for channel ``own`` of a slot."""
    mode: tl.constexpr = P.mode
    u = own
    v = own
    c = own
    n = own
    if slot == _W:
        if P.fan_out:
            c = own % P.mo
            u = own // P.mo
            v = u
        p = u
        if P.ordered:
            u, v = _unpair(p, P.m1)
        elif mode != "uuu" and mode != "uuw":
            u, v = _divide(p, P.m2)
        if mode == "uvu":
            c = u
        elif mode == "uvv":
            c = v
    else:
        if slot == _G:
            if mode == "uvw" or mode == "u<vw":
                u = b
                v = a
            elif mode == "uuw":
                u = b
                v = b
            elif mode == "uvu":
                v = b
            elif mode == "uvv":
                u = b
            elif mode == "uvuv":
                u, v = _divide(own, P.m2)
            elif mode == "uvu<v":
                u, v = _unpair(own, P.m1)
        else:
            other = b
            if mode == "uvw" or mode == "u<vw":
                other = a
            elif mode == "uuw" or mode == "uuu":
                other = own
            if slot == _X:
                v = other
            else:
                u = other
            if P.fan_out:
                c = b
            elif mode == "uvv":
                c = v
            elif mode == "uvuv":
                c = u * P.m2 + v
            elif mode == "uvu<v":
                c = _pair(u, v, P.m1)
            else:
                c = u
        if mode == "uvw":
            n = (u * P.m2 + v) * P.mo + c
        elif mode == "uuw":
            n = u * P.mo + c
        elif mode == "u<vw":
            n = _pair(u, v, P.m1) * P.mo + c
        elif mode == "uuu":
            n = u
        elif mode == "uvu<v":
            n = c
        else:
            n = u * P.m2 + v
    return u, v, c, n


@triton.jit
def zeros(d: tl.constexpr, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr):
    out = ()
    for _ in tl.static_range(d):
        out = out + (tl.zeros([R, C], T),)
    return out


@triton.jit
def _load(pointer, mask, component: tl.constexpr, d: tl.constexpr, T: tl.constexpr):
    out = ()
    for k in tl.static_range(d):
        out = out + (tl.load(pointer + k * component, mask=mask, other=0).to(T),)
    return out


# Tuples of components. The empty one is a zero that costs nothing: x + 0.0 is an addition, since it makes 0 of -0.


@triton.jit
def add(a, b):
    if len(a) == 0:
        return b
    elif len(b) == 0:
        return a
    else:
        out = ()
        for k in tl.static_range(len(a)):
            out = out + (a[k] + b[k],)
        return out


@triton.jit
def _scale(s, a):
    out = ()
    for k in tl.static_range(len(a)):
        out = out + (s * a[k],)
    return out


@triton.jit
def _dot(a, b):
    if len(a) == 0 or len(b) == 0:
        return ()
    else:
        total = a[0] * b[0]
        for k in tl.static_range(1, len(a)):
            total += a[k] * b[k]
        return (total,)


@triton.jit
def where_valid(valid, a, T: tl.constexpr):
    out = ()
    for k in tl.static_range(len(a)):
        out = out + (tl.where(valid, a[k], tl.zeros([1, 1], T)),)
    return out


@triton.jit
def _contract(first, second, P: tl.constexpr):
    terms: tl.constexpr = P.terms
    out = ()
    if len(first) > 0 and len(second) > 0:
        for k in tl.static_range(len(terms)):
            for n in tl.static_range(len(terms[k])):
                inner = second[terms[k][n][1][0][0]] * terms[k][n][1][0][1]
                for e in tl.static_range(1, len(terms[k][n][1])):
                    inner += second[terms[k][n][1][e][0]] * terms[k][n][1][e][1]
                if n == 0:
                    total = first[terms[k][n][0]] * inner
                else:
                    total += first[terms[k][n][0]] * inner
            out = out + (total,)
    return out


@triton.jit
def _derivative(first, dfirst, second, dsecond, P: tl.constexpr):
    """The epsilon part of ``_contract`` on dual numbers."""
    return add(_contract(dfirst, second, P), _contract(first, dsecond, P))


@triton.jit
def _weighted(a, da, tensors, row_mask, n, valid, P: tl.constexpr, M: tl.constexpr):
    """The weight of each lane times the dual number (a, da)."""
    if P.weighted:
        mask = valid if M.shared else row_mask & valid
        w = tl.load(tensors[2] + P.weight_offset + n, mask=mask, other=0).to(M.T)
        b = _scale(w, a)
        db = _scale(w, da)
        if M.dw:
            dw = tl.load(tensors[6] + P.weight_offset + n, mask=mask, other=0).to(M.T)
            db = add(db, _scale(dw, a))
        return b, db
    else:
        return a, da


@triton.jit
def _operand(value, tangent, mask, channel, V: tl.constexpr, d: tl.constexpr, varies: tl.constexpr, T: tl.constexpr):
    column = V.offset + channel * V.channel
    v = _load(value + column, mask, V.component, d, T)
    t = ()
    if varies:
        t = _load(tangent + column, mask, V.component, d, T)
    return v, t


@triton.jit
def _x(tensors, row_mask, u, P: tl.constexpr, M: tl.constexpr):
    return _operand(tensors[0], tensors[4], row_mask & (u < P.m1), u, P.x, P.d1, M.dx, M.T)


@triton.jit
def _y(tensors, row_mask, v, P: tl.constexpr, M: tl.constexpr):
    return _operand(tensors[1], tensors[5], row_mask & (v < P.m2), v, P.y, P.d2, M.dy, M.T)


@triton.jit
def _g(tensors, row_mask, c, valid, P: tl.constexpr, M: tl.constexpr):
    return _operand(tensors[3], tensors[7], row_mask & valid, c, P.out, P.d3, M.dg, M.T)


@triton.jit
def _to_x_or_y(h, dh, tensors, row_mask, u, v, slot: tl.constexpr, P: tl.constexpr, M: tl.constexpr):
    if slot == _X:
        s, ds = _y(tensors, row_mask, v, P, M)
    else:
        s, ds = _x(tensors, row_mask, u, P, M)
    if M.dual:
        return _derivative(h, dh, s, ds, P)
    else:
        return _contract(h, s, P)


@triton.jit
def _valid(own, inner, u, v, S: tl.constexpr, P: tl.constexpr):
    valid = (own < S.extent) & (inner < P.inner)
    if P.ordered:
        valid = valid & (u < v)
    return valid


# The loops call functions alone: Triton walks the body of a loop twice, and a function once.


@triton.jit
def _summand(own, outer, inner, tensors, row_mask, S: tl.constexpr, P: tl.constexpr, M: tl.constexpr):
    """What the term (outer, inner) of a path adds to channel ``own``."""
    u, v, c, n = _indices(own, outer, inner, S.slot, P)
    valid = _valid(own, inner, u, v, S, P)
    if S.slot == _G or S.slot == _W:
        x, dx = _x(tensors, row_mask, u, P, M)
        y, dy = _y(tensors, row_mask, v, P, M)
        t = _contract(x, y, P)
        dt = _derivative(x, dx, y, dy, P)
        if S.slot == _G:
            term, dterm = _weighted(t, dt, tensors, row_mask, n, valid, P, M)
        else:
            g, dg = _g(tensors, row_mask, c, valid, P, M)
            term = _dot(t, g)
            dterm = add(_dot(dt, g), _dot(t, dg))
        if M.dual:
            term = dterm
    else:
        g, dg = _g(tensors, row_mask, c, valid, P, M)
        h, dh = _weighted(g, dg, tensors, row_mask, n, valid, P, M)
        term = _to_x_or_y(h, dh, tensors, row_mask, u, v, S.slot, P, M)
    # Lanes beyond the last channel are not written, but where lanes are summed they must be zero.
    if S.reduce or P.ordered:
        term = where_valid(valid, term, M.T)
    return term


@triton.jit
def _weighted_g(own, outer, inner, tensors, row_mask, S: tl.constexpr, P: tl.constexpr, M: tl.constexpr):
    u, v, c, n = _indices(own, outer, inner, S.slot, P)
    valid = _valid(own, inner, u, v, S, P)
    g, dg = _g(tensors, row_mask, c, valid, P, M)
    return _weighted(g, dg, tensors, row_mask, n, valid, P, M)


@triton.jit
def _inner_sum(own, outer, lanes, tensors, row_mask, S: tl.constexpr, P: tl.constexpr, M: tl.constexpr):
    """The sum of a path's terms (outer, inner) over inner; over its lanes the caller sums."""
    step: tl.constexpr = lanes.shape[1]
    if P.fan_out and (S.slot == _X or S.slot == _Y):
        if P.inner <= step:
            h, dh = _weighted_g(own, outer, lanes, tensors, row_mask, S, P, M)
        else:
            h = zeros(P.d3, M.R, M.C, M.T)
            dh = ()
            if M.dg or (M.dw and P.weighted):
                dh = h
            for begin in range(0, P.inner, step):
                b, db = _weighted_g(own, outer, begin + lanes, tensors, row_mask, S, P, M)
                h = add(h, b)
                dh = add(dh, db)
        u, v, _, _ = _indices(own, outer, lanes, S.slot, P)
        term = _to_x_or_y(h, dh, tensors, row_mask, u, v, S.slot, P, M)
        # Lanes without a channel hold h = 0, which is NaN times infinity.
        return where_valid(_valid(own, lanes, u, v, S, P), term, M.T)
    elif P.inner <= step:
        return _summand(own, outer, lanes, tensors, row_mask, S, P, M)
    else:
        total = zeros(S.d, M.R, M.C, M.T)
        for begin in range(0, P.inner, step):
            total = add(total, _summand(own, outer, begin + lanes, tensors, row_mask, S, P, M))
        return total


@triton.jit
def path_sum(own, tensors, row_mask, S: tl.constexpr, p: tl.constexpr, M: tl.constexpr):
    """What a path adds to channel ``own``."""
    P: tl.constexpr = pick(S.paths, p)
    Index: tl.constexpr = own.dtype
    zero = tl.full([1, 1], 0, Index)
    step: tl.constexpr = M.C if S.reduce else 1
    lanes = tl.arange(0, step)[None, :].to(Index)
    if P.outer == 1:
        return _inner_sum(own, zero, lanes, tensors, row_mask, S, P, M)
    else:
        total = zeros(S.d, M.R, M.C, M.T)
        for a in range(0, P.outer):
            total = add(total, _inner_sum(own, zero + a, lanes, tensors, row_mask, S, P, M))
        return total


@triton.jit
def own_channels(block, S: tl.constexpr, M: tl.constexpr):
    """The channels of a program."""
    Index: tl.constexpr = tl.int64 if M.wide else tl.int32
    first = (block - S.begin).to(Index)
    if S.reduce:
        return tl.full([1, 1], 0, Index) + first
    else:
        return first * M.C + tl.arange(0, M.C)[None, :].to(Index)


@triton.jit
def at_rows(tensors, strides, rows, row_mask, graph, M: tl.constexpr):
    """Where rows of each tensor begin. ``graph``: empty, or (src, dst) of rows that are edges."""
    rows_of = (rows, rows, rows, rows)
    if len(graph) > 0:
        src = tl.load(graph[0] + rows, mask=row_mask, other=0).to(tl.int64)
        dst = tl.load(graph[1] + rows, mask=row_mask, other=0).to(tl.int64)
        rows_of = (src, rows, rows, dst)
    out = ()
    for n in tl.static_range(len(tensors)):
        # Shared weights have no rows; n is 2 for them and 6 for their tangent.
        if M.shared and n % 4 == 2:
            out = out + (tensors[n],)
        else:
            out = out + (tensors[n] + rows_of[n % 4] * strides[n],)
    return out


@triton.jit
def _section(tensors, results, row_mask, block, S: tl.constexpr, M: tl.constexpr):
    own = own_channels(block, S, M)
    acc = ()
    for p in tl.static_range(len(S.paths)):
        acc = add(acc, path_sum(own, tensors, row_mask, S, p, M))
    d: tl.constexpr = S.d
    if len(acc) == 0:
        acc = zeros(d, 1, 1, M.T)
    at = results[S.slot] + S.view.offset + own * S.view.channel
    mask = row_mask & (own < S.extent)
    for k in tl.static_range(d):
        value = acc[k]
        if S.reduce:
            value = lane_sum(value, 1, True)
        tl.store(at + k * S.view.component, value.to(at.dtype.element_ty), mask=mask)


@triton.jit
def _section_over_rows(
    tensors, strides, graph, result, row_block, steps, rows_total, block, S: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """Of shared weights: summed over the rows of ``steps`` blocks. ``result``: where the sums of these rows begin."""
    own = own_channels(block, S, M)
    acc = zeros(1, M.R, M.C, M.T)
    for step in range(0, steps):
        rows = (row_block * steps + step) * M.R + tl.arange(0, M.R)[:, None].to(tl.int64)
        at = at_rows(tensors, strides, rows, rows < rows_total, graph, M)
        acc = add(acc, path_sum(own, at, rows < rows_total, S, 0, M))
    tl.store(result + S.view.offset + own, lane_sum(acc[0], 0, True), mask=own < S.extent)


@dataclass(frozen=True, repr=False, eq=False)
class _Meta(Constant):
    """What every function of a kernel knows at compile time; d*: which operands vary (have a tangent)."""

    R: int
    C: int
    T: object
    wide: bool
    shared: bool
    over_rows: bool
    dual: bool
    dx: bool
    dy: bool
    dw: bool
    dg: bool


@triton.constexpr_function
def meta(*values):
    return _Meta(*values)


@triton.jit
def sections_of_rows(
    tensors, results, strides, columns, graph, row_block, steps, rows_total, block,
    TABLE: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """The results of a program that have rows as tensors have them, or are sums over all rows."""
    # Once for all sections, although a program needs one: sections add up to the time that a kernel takes to compile.
    rows = row_block * M.R + tl.arange(0, M.R)[:, None].to(tl.int64)
    row_mask = rows < rows_total
    at = at_rows(tensors, strides, rows, row_mask, graph, M)
    to = at_rows(results, columns, rows, row_mask, (), M)
    for s in tl.static_range(count_of(TABLE.sections)):
        if (block >= pick(TABLE.sections, s).begin) & (block < pick(TABLE.sections, s).end):
            if M.over_rows:
                _section_over_rows(
                    tensors, strides, graph, results[_W] + row_block * columns[_W], row_block, steps, rows_total, block,
                    pick(TABLE.sections, s), M,
                )  # fmt: skip
            else:
                _section(at, to, row_mask, block, pick(TABLE.sections, s), M)


@triton.jit(do_not_specialize=["row_block_begin", "steps", "rows_total"])
def kernel(
    x, y, w, g, tx, ty, tw, tg, gx, gy, gw, out,
    sx, sy, sw, sg, stx, sty, stw, stg, cx, cy, cw, co,
    row_block_begin, steps, rows_total,
    TABLE: tl.constexpr, BLOCKS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
    WIDE: tl.constexpr, SHARED: tl.constexpr, OVER_ROWS: tl.constexpr,
    DUAL: tl.constexpr, DX: tl.constexpr, DY: tl.constexpr, DW: tl.constexpr, DG: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = meta(R, C, T, WIDE, SHARED, OVER_ROWS, DUAL, DX, DY, DW, DG)
    # Programs of the same rows are neighbours, so that what they all read is still in the L2 cache.
    block = tl.program_id(0) % BLOCKS
    row_block = row_block_begin.to(tl.int64) + tl.program_id(0) // BLOCKS
    sections_of_rows(
        (x, y, w, g, tx, ty, tw, tg), (gx, gy, gw, out), (sx, sy, sw, sg, stx, sty, stw, stg), (cx, cy, cw, co), (),
        row_block, steps, rows_total, block, TABLE, M,
    )  # fmt: skip


# The ops.


class Call:
    """A call of a member of the family, of operands as kernels take them.

    ``results``: of the four slots, empty where they are not wanted; they hold nothing yet.
    """

    def __init__(
        self,
        op: str,
        v: Sequence[MaybeTensor],
        g: MaybeTensor,
        t: Sequence[MaybeTensor],
        shapes: Sequence[tuple | None],
        text: str,
        dual: bool,
        wanted: Sequence[bool],
    ):
        weights = Plan.parse(text).weights
        for name, tensor in zip("xyw", v, strict=True):
            if tensor is None and not (name == "w" and weights == "none"):
                raise RuntimeError(f"eqk_triton::{op}: {name}: expected a tensor, got None")
        operands = [*v, g, *t]
        if weights == "none":
            operands[2] = operands[6] = None
        operands = [with_adjacent_columns(o) for o in operands]
        self._x = x = operands[0]
        self._text, self._shared, self._dual = text, weights == "shared", dual
        self._varies = tuple(o is not None for o in operands[4:])
        # A pointer that no code reads still has to be one.
        self._pointers = [x if o is None else o for o in operands]
        self._strides = [0 if o is None or o.dim() == 1 else o.stride(0) for o in operands]
        self._columns = [0 if s is None else s[-1] for s in shapes]
        self.slots = tuple(n for n in range(4) if wanted[n] and shapes[n] is not None)
        self.results = [x.new_empty(shapes[n] if n in self.slots else (0,)) for n in range(4)]

    def run(
        self,
        kernel: triton.JITFunction,
        slots: Sequence[int],
        rows: int,
        graph: Sequence[Tensor] = (),
        of_nodes: bool = False,
    ) -> None:
        """Fills the results ``slots``, of at least one row, or of the nodes of a graph, of which a program has one.

        ``graph``: what the convolution's kernel takes beside what the product's does.
        """
        x, wide = self._x, torch.float64 if self._x.dtype == torch.float64 else torch.float32
        for launch in lower(self._text, tuple(slots), self._varies if self._dual else None):
            block_rows = 1 if of_nodes else launch.rows
            row_blocks, steps, targets = -(-rows // block_rows), 1, list(self.results)
            if launch.over_rows:
                steps = -(-row_blocks // _ROW_CHUNKS)
                row_blocks = -(-row_blocks // steps)
                targets[2] = x.new_empty((row_blocks, self._columns[2]), dtype=wide)
            most = max(1, _MAX_GRID // launch.blocks)
            for begin in range(0, row_blocks, most):
                grid = (min(most, row_blocks - begin) * launch.blocks,)
                with on(x.device):
                    kernel[grid](
                        *self._pointers, *targets, *self._strides, *self._columns, *graph, begin, steps, rows,
                        launch.table, launch.blocks, launch.rows, launch.channels, compute_type(x.dtype), launch.wide,
                        self._shared, launch.over_rows, self._dual, *self._varies, *((of_nodes,) if graph else ()),
                        num_warps=_WARPS, enable_fp_fusion=True,
                    )  # fmt: skip
            if launch.over_rows:
                # Launches of one plan write different columns, so each finishes its own.
                first, end = launch.columns
                self.results[2][first:end] = targets[2][:, first:end].sum(0)


def _run(op, v, g, t, text: str, dual: bool, wanted: Sequence[bool]) -> list[Tensor]:
    _check(v, g, t, (text,))
    call, rows = Call(op, v, g, t, _shapes(v, (text,)), text, dual, wanted), v[0].shape[0]
    if not rows:
        return [r.zero_() for r in call.results]
    call.run(kernel, call.slots, rows)
    return call.results


def _forward(x, y, w, plan):
    return _run("tensor_product", (x, y, w), None, (None,) * 4, plan, False, (False, False, False, True))[3]


def _jvp(x, y, w, tx, ty, tw, plan):
    t = (tx, ty, tw, None)
    return _run("tensor_product_jvp", (x, y, w), None, t, plan, True, (False, False, False, True))[3]


def _backward(x, y, w, g, plan, wanted):
    check_wanted("tensor_product_backward", wanted, 3)
    t = (None,) * 4
    return tuple(_run("tensor_product_backward", (x, y, w), g, t, plan, False, (*wanted, False))[:3])


def _double_backward(x, y, w, g, tx, ty, tw, tg, plan, wanted):
    check_wanted("tensor_product_double_backward", wanted, 4)
    return tuple(_run("tensor_product_double_backward", (x, y, w), g, (tx, ty, tw, tg), plan, True, wanted))


def check_wanted(op: str, wanted: Sequence[bool], count: int) -> None:
    if len(wanted) != count:
        raise RuntimeError(f"eqk_triton::{op}: wanted: expected {count} flags, got {len(wanted)}")


def register_family(
    op: str, members: Sequence[Callable], operands: int, check: Callable, shapes: Callable, batch: Callable
) -> tuple[torch.library.Library, Multilinear]:
    """``torch.ops.eqk_triton.OP``, OP_jvp, OP_backward and OP_double_backward, with the schemas of eqk's."""
    library = torch.library.Library("eqk_triton", "FRAGMENT")
    for suffix, member in zip(("", "_jvp", "_backward", "_double_backward"), members, strict=True):
        schema = str(getattr(torch.ops.eqk, op + suffix).default._schema)
        library.define(schema.removeprefix("eqk::"))
        for key in KEYS:
            library.impl(op + suffix, member, key)
    return library, Multilinear("eqk_triton", op, operands, 2, check, shapes, batch)


_MEMBERS = (_forward, _jvp, _backward, _double_backward)
_LIBRARY, FAMILY = register_family("tensor_product", _MEMBERS, 3, _check, _shapes, _batch)
