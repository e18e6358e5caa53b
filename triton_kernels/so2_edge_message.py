# Triton knows no unpacking into a tuple.
# ruff: noqa: RUF005
"""The message of eSCN along each edge in Triton: ``torch.ops.eqk_triton.so2_edge_message``.

Edges are taken in the order of the nodes that they lead to, in tiles. A program of the first kernel owns a tile and up
to 256 columns of the first layer's result of one order. It gathers 16 channels of all components of a degree, rotates
them by the numbers of D that are not zero, multiplies with the radial weights, which it makes of h and a there, and
with the matrix. y and s alone are stored. A program of the second kernel owns a tile and some channels out: activation
where y and s are read, second layer, rotation back, and the sum over the edges of each node. What tiles give a node
whose edges lie in several is added in their order by a third kernel: nothing is atomic, and the bits are the same in
every run.

float32 is three products of TF32 numbers, of x = a + b with a rounded to TF32: off by 2^-21 of a term, as a sum of many
in float32 is. What is infinite makes NaN.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from eqk._edge_tiles import _BYTES_OF_TILE_ELSEWHERE
from eqk._signals import count
from eqk.reference.rotate import scales
from eqk.register import loop_over_samples, register
from eqk.rotate import _numbers
from eqk.so2_conv import Sizes
from eqk.so2_edge_message import (
    _ACTIVATION,
    Plan,
    _check,
    _empty,
    _fake_forward,
    _Forward,
    _forward_kernel,
)
from eqk.tensor_product_conv_radial import _is_exact
from eqk.triton_kernels.common import (
    INTERPRETED,
    KEYS,
    Constant,
    by_node,
    check_range,
    count_of,
    lane_sum,
    max_grid,
    on,
    pick,
    power_of_2,
)
from eqk.triton_kernels.rotate import _Row, rows_of_edge
from eqk.wigner import wigner

_WARPS = 8
OPTIONS = {"num_warps": _WARPS, "num_stages": 1, "enable_fp_fusion": True}
_STAGES = tl.constexpr(3)
_MAX_GRID = max_grid(_WARPS)
# Of a step: channels that are multiplied with a matrix, and features with radial weights. Twice as many would need more
# registers than there are.
_CHUNK, _FEATURES = 16, 16
# Columns of a part of the first layer's result.
_WIDTH = 128
# Numbers of a node for a program that adds up what tiles give it.
_LANES = 1024
# Of the second kernel: for up to so many rows of an edge, so many columns, for which registers are enough. Code of more
# rows takes a minute to compile.
_COLUMNS = ((9, 32), (19, 16), (29, 8))


@dataclass(frozen=True, repr=False, eq=False)
class _Block(Constant):
    """Columns of what the first layer makes of one order, which a program owns.

    ``matrix``, ``bias``: the first of them in conv1, of A for orders from 1, whose B is ``half`` numbers behind it.
    ``out``: the first column in a row of y, or with ``extra`` of s; of -m it is ``negative`` numbers behind it.
    """

    order: int
    columns: int
    matrix: int
    half: int
    bias: int
    extra: int
    out: int
    negative: int


@dataclass(frozen=True, repr=False, eq=False)
class _First(Constant):
    """What the first kernel knows at compile time.

    A program has ``edges`` of one of the ``blocks``, of which the first ``unsigned`` are of order 0, in two parts of
    ``width`` columns; for orders from 1, of m and of -m. ``sources``: nodes whose ``channels`` an edge has. ``numbers``
    of D, ``weights`` of r, and columns of rows of y and s belong to an edge. ``features``: of h; 0 where it has the
    weights themselves, -1 where there are none.
    ``by_edge``: whether y and s are of all edges, in the order of these. ``together``: for how many steps of ``chunk``
    channels radial weights are made by one product, from ``span`` features at a time.
    """

    lmax: int
    mmax: int
    edges: int
    blocks: tuple[_Block, ...]
    unsigned: int
    width: int
    channels: int
    sources: int
    numbers: int
    features: int
    weights: int
    by_order: bool
    columns_of_y: int
    columns_of_s: int
    by_edge: bool
    precision: str
    together: int
    chunk: int = _CHUNK
    span: int = _FEATURES

    @property
    def chunks(self) -> int:
        """Of a source."""
        return -(-self.channels // self.chunk)

    @property
    def channels_in(self) -> int:
        return self.sources * self.channels

    @property
    def times(self) -> int:
        """That :func:`_steps` runs for a degree."""
        return -(-self.sources * self.chunks // self.together)


@dataclass(frozen=True, repr=False, eq=False)
class _Degree(Constant):
    component: int
    size: int
    scale: float
    rows: tuple[_Row, ...]


@dataclass(frozen=True, repr=False, eq=False)
class _Order(Constant):
    """``size`` degrees, whose rows of m begin at ``row``; the matrix and the bias of it in conv2."""

    order: int
    size: int
    row: int
    matrix: int
    bias: int


@dataclass(frozen=True, repr=False, eq=False)
class _Second(Constant):
    """What the second kernel knows at compile time.

    A program has ``columns`` of the ``channels`` out. ``by_edge``: as for the first kernel; ``keep``: whether the
    second layer's result is wanted. ``heads`` of w, 0 where it is none.
    """

    degrees: tuple[_Degree, ...]
    orders: tuple[_Order, ...]
    components: int
    edges: int
    columns: int
    hidden: int
    channels: int
    nodes_of_edge: int
    numbers: int
    gate: bool
    heads: int
    columns_of_s: int
    by_edge: bool
    keep: bool
    precision: str
    chunk: int = _CHUNK

    @property
    def chunks(self) -> int:
        return -(-self.hidden // self.chunk)

    @property
    def rows(self) -> int:
        return sum(len(d.rows) for d in self.degrees)

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.columns)


# Host.


def _first_of(layer: Sizes) -> list[int]:
    """The first number of each parameter of a layer: the matrix of order 0, its bias, the matrices of orders from 1."""
    sizes = [math.prod(s) for s in layer.shapes()]
    return [sum(sizes[:n]) for n in range(len(sizes))]


def _blocks(layer: Sizes, width: int) -> list[_Block]:
    zero, bias, *orders = _first_of(layer)
    found = []
    for m, row, n in layer.blocks():
        inputs, outputs, out = n * layer.channels_in, n * layer.channels_out, row * layer.channels_out
        if m == 0:
            for extra, skip, columns in ((1, 0, layer.extra), (0, layer.extra, outputs)):
                for c in range(0, columns, 2 * width):
                    at = skip + c
                    size = min(2 * width, columns - c)
                    found.append(_Block(0, size, zero + at * inputs, 0, bias + at, extra, c, 0))
        else:
            for c in range(0, outputs, width):
                at = orders[m - 1] + c * inputs
                found.append(_Block(m, min(width, outputs - c), at, outputs * inputs, 0, 0, out + c, outputs))
    return found


def _degrees(lmax: int, mmax: int, rescale: bool) -> list[_Degree]:
    row, degrees = rows_of_edge(lmax, mmax), []
    for l, scale in enumerate(scales(lmax, mmax)):
        k = min(l, mmax)
        rows = tuple(row[l, m] for m in range(-k, k + 1))
        degrees.append(_Degree(l * l, 2 * l + 1, scale if rescale else 1.0, rows))
    return degrees


@functools.lru_cache(maxsize=4096)
def lower(
    text: str,
    channels: int,
    nodes_of_edge: int,
    features: int,
    weights: int,
    heads: int,
    keep: bool,
    tile: tuple[int, int],
    precision: str,
) -> tuple[_First, _Second] | None:
    """The two kernels; None for what they do not cover.

    ``channels``: of x; ``nodes_of_edge``: of the index, whose last is the node that the message goes to. ``features``,
    ``weights``, ``heads``: as for the kernels. ``tile``: of :func:`tile_of`.
    """
    edges, together = tile
    plan = Plan.parse(text)
    one, two = plan.convolutions
    lmax, mmax, rows = plan.lmax, plan.mmax, count(plan.lmax, plan.mmax)
    columns = next((c for most, c in _COLUMNS if rows <= most), None)
    if columns is None:
        return None
    if precision == "ieee":
        columns = min(columns, 16)
    numbers, gate = _numbers(lmax, mmax), plan.activation == "gate"
    width = power_of_2(max(one.channels_out, 16), _WIDTH)
    blocks = _blocks(one, width)
    unsigned = sum(b.order == 0 for b in blocks)
    by_order = weights != plan.weights[0]
    sources = plan.channels_in // channels
    first = _First(
        lmax, mmax, edges, tuple(blocks), unsigned, width, channels, sources, numbers, features, weights, by_order,
        rows * one.channels_out, one.extra, keep, precision, together,
    )  # fmt: skip
    zero, bias, *matrices = _first_of(two)
    orders = [_Order(m, n, row, matrices[m - 1] if m else zero, bias) for m, row, n in two.blocks()]
    second = _Second(
        tuple(_degrees(lmax, mmax, plan.rescale)), tuple(orders), (lmax + 1) ** 2, edges, columns, plan.hidden,
        plan.channels_out, nodes_of_edge, numbers, gate, heads, one.extra, keep and gate, keep and plan.keeps_message,
        precision,
    )  # fmt: skip
    return first, second


# Device.


@triton.jit
def _split(x, M: tl.constexpr):
    """Numbers of TF32 that add up to x."""
    if M.precision == "tf32x3":
        rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return (rounded, x - rounded)
    else:
        return (x,)


@triton.jit
def _dot(a, b, c, M: tl.constexpr):
    """c + a b, of what was split."""
    precision: tl.constexpr = "ieee" if M.precision == "ieee" else "tf32"
    if len(a) > 1:
        c = tl.dot(a[1], b[0], c, input_precision=precision)
        c = tl.dot(a[0], b[1], c, input_precision=precision)
    return tl.dot(a[0], b[0], c, input_precision=precision)


@triton.jit
def _negative(a):
    out = ()
    for n in tl.static_range(len(a)):
        out = out + (-a[n],)
    return out


@triton.jit
def _matrix(pointer, rows, columns, M: tl.constexpr):
    """[chunk, columns], split; ``rows``, ``columns``: whether there are such."""
    return _split(tl.load(pointer, mask=rows[:, None] & columns[None, :], other=0).to(tl.float32), M)


@triton.jit
def _complex_dot(re, im, positive, negative, matrix, half, rows, columns, M: tl.constexpr):
    """re + A P - B Q and im + A Q + B P, of the rows P of m and Q of -m."""
    a = _matrix(matrix, rows, columns, M)
    re = _dot(positive, a, re, M)
    im = _dot(negative, a, im, M)
    b = _matrix(matrix + half, rows, columns, M)
    return _dot(_negative(negative), b, re, M), _dot(positive, b, im, M)


@triton.constexpr_function
def _values(blocks, name):
    return tuple(getattr(b, name) for b in blocks)


@triton.constexpr_function
def _alignment(values):
    return math.gcd(16, *values)


@triton.jit
def _of_block(block, name: tl.constexpr, M: tl.constexpr):
    values: tl.constexpr = _values(M.blocks, name)
    value = pick(values, 0)
    for n in tl.static_range(1, count_of(values)):
        value = tl.where(block == n, pick(values, n), value)
    return tl.multiple_of(value, _alignment(values))


@triton.jit
def _channels(part, c, M: tl.constexpr):
    """Channels c of a part, which is of one node of an edge: their places in z, and whether there are such."""
    of_node = part % M.chunks * M.chunk + c
    place = part // M.chunks * M.channels + of_node
    return place, (of_node < M.channels) & (place < M.channels_in)


@triton.jit
def _group(order, place, M: tl.constexpr):
    """The radial weights of a degree, or of a degree and order."""
    if M.by_order:
        return order * (M.lmax + 1) - order * (order - 1) // 2 + place
    else:
        return order + place


@triton.jit
def _radial(h, a, e, of_group, part, M: tl.constexpr):
    """h a of edges e, [edges, chunk] for each of the parts that are made together, of which ``part`` is the first."""
    column = tl.arange(0, M.together * M.chunk)
    k, there = _channels(part + column % M.together, column // M.together, M)
    total = tl.zeros([M.edges, M.together * M.chunk], tl.float32)
    for first in tl.range(0, M.features, M.span, num_stages=_STAGES):
        f = first + tl.arange(0, M.span)
        valid = f < M.features
        at = h + (e.to(tl.int64) * M.features)[:, None] + f[None, :]
        features = tl.load(at, mask=(e >= 0)[:, None] & valid[None, :], other=0).to(tl.float32)
        matrix = _matrix(a + f[:, None] * M.weights + (of_group + k)[None, :], valid, there, M)
        total = _dot(_split(features, M), matrix, total, M)
    if M.together == 2:
        return tl.split(tl.reshape(total, [M.edges, M.chunk, 2]))
    else:
        return (total,)


@triton.jit
def _rotated(x, D, degree, order, valid, c_valid, signed: tl.constexpr, M: tl.constexpr):
    """Rows m and, if ``signed``, -m of D x, each [edges, chunk]. ``x``: of component 0 of the degree."""
    size = 2 * degree + 1
    # Numbers of D of the degrees below: above mmax, 2 mmax + 1 rows of each.
    low = tl.minimum(degree, M.mmax + 1)
    below = low * (4 * low * low - 1) // 3 + (2 * M.mmax + 1) * (degree * degree - low * low)
    of_row = D + below + (tl.minimum(degree, M.mmax) + order) * size
    positive = tl.zeros([M.edges, M.chunk], tl.float32)
    negative = positive
    for i in tl.range(0, size, num_stages=_STAGES):
        component = tl.load(x + i * M.channels, mask=valid[:, None] & c_valid[None, :], other=0).to(tl.float32)
        positive += component * tl.load(of_row + i, mask=valid, other=0)[:, None]
        if signed:
            negative += component * tl.load(of_row - 2 * order * size + i, mask=valid, other=0)[:, None]
    if signed:
        return (positive, negative)
    else:
        return (positive,)


@triton.jit
def _step(
    sums, x, D, h, r, conv, index, e, edges, order, place, part, half, columns, signed: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """``sums`` and what a part of the channels of a degree adds to them; ``r``: as for :func:`_steps`."""
    degree = order + place
    k, c_valid = _channels(part, tl.arange(0, M.chunk), M)
    valid = e >= 0
    side = tl.minimum(part // M.chunks, M.sources - 1)
    node = tl.load(index + side * edges + e, mask=valid, other=0).to(tl.int64)
    of_node = degree * degree * M.channels + k - side * M.channels
    x += (node * ((M.lmax + 1) * (M.lmax + 1) * M.channels))[:, None] + of_node[None, :]
    rows = _rotated(x, D, degree, order, valid, c_valid, signed, M)
    if M.features >= 0:
        if M.features == 0:
            at = h + (e.to(tl.int64) * M.weights)[:, None] + (_group(order, place, M) * M.channels_in + k)[None, :]
            weight = tl.load(at, mask=valid[:, None] & c_valid[None, :], other=0).to(tl.float32)
        elif M.together == 2:
            weight = tl.where(part % 2 == 0, r[0], r[1])
        else:
            weight = r[0]
        if signed:
            rows = (rows[0] * weight, rows[1] * weight)
        else:
            rows = (rows[0] * weight,)
    inputs = (M.lmax + 1 - order) * M.channels_in
    matrix = conv + (place * M.channels_in + k)[:, None]
    column = tl.arange(0, M.width)
    if signed:
        positive = _split(rows[0], M)
        negative = _split(rows[1], M)
        at = matrix + (column * inputs)[None, :]
        re, im = _complex_dot(sums[0], sums[1], positive, negative, at, half, c_valid, column < columns, M)
        return (re, im)
    else:
        row = _split(rows[0], M)
        out = ()
        for p in tl.static_range(2):
            of = p * M.width + column
            out = out + (_dot(row, _matrix(matrix + (of * inputs)[None, :], c_valid, of < columns, M), sums[p], M),)
        return out


@triton.jit
def _steps(
    sums, x, D, h, a, conv, index, e, edges, order, n, half, columns, signed: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """``sums`` and what parts of a degree add to them whose radial weights are made together."""
    place = n // M.times
    part = n % M.times * M.together
    r = ()
    if M.features > 0:
        r = _radial(h, a, e, _group(order, place, M) * M.channels_in, part, M)
    for i in range(M.together):
        sums = _step(sums, x, D, h, r, conv, index, e, edges, order, place, part + i, half, columns, signed, M)
    return sums


@triton.jit
def _layer(
    x, D, h, a, conv, index, order, y, s, begin, first, end, edges, block, signed: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    at = tl.arange(0, M.edges)
    e = tl.load(order + (begin + first) + at, mask=at < end - begin - first, other=-1).to(tl.int32)
    D += (first + at).to(tl.int64) * M.numbers
    m = _of_block(block, "order", M)
    columns = _of_block(block, "columns", M)
    half = _of_block(block, "half", M)
    column = tl.arange(0, M.width)
    sums = ()
    for p in tl.static_range(2):
        total = tl.zeros([M.edges, M.width], tl.float32)
        if not signed:
            bias = conv + _of_block(block, "bias", M) + p * M.width + column
            total += tl.load(bias, mask=p * M.width + column < columns, other=0).to(tl.float32)[None, :]
        sums = sums + (total,)
    matrix = conv + _of_block(block, "matrix", M)
    for n in range((M.lmax + 1 - m) * M.times):
        sums = _steps(sums, x, D, h, a, matrix, index, e, edges, m, n, half, columns, signed, M)
    # Not from e, nor from what masks it: these would take registers beside the sums.
    row = tl.arange(0, M.edges)
    valid = first + row < end - begin
    if M.by_edge:
        row = tl.load(order + (begin + first) + row, mask=valid, other=0)
    else:
        y += first.to(tl.int64) * M.columns_of_y
        s += first.to(tl.int64) * M.columns_of_s
    extra = _of_block(block, "extra", M) != 0
    to = tl.where(extra, s, y) + (row * tl.where(extra, M.columns_of_s, M.columns_of_y))[:, None]
    to += _of_block(block, "out", M)
    for p in tl.static_range(2):
        if signed:
            of = column
            at = to + p * _of_block(block, "negative", M) + of[None, :]
        else:
            of = p * M.width + column
            at = to + of[None, :]
        tl.store(at, sums[p], mask=valid[:, None] & (of < columns)[None, :])


@triton.jit(do_not_specialize=["begin", "end", "edges"])
def first_kernel(x, D, h, a, conv, index, order, y, s, begin, end, edges, M: tl.constexpr):
    """y and s of the edges ``order`` has at ``begin`` to ``end``, of which D has a row each."""
    blocks: tl.constexpr = count_of(M.blocks)
    # Programs of the same edges are neighbours, so that what they all read is still in the L2 cache.
    program = tl.program_id(0)
    block = program % blocks
    first = program // blocks * M.edges
    edges = edges.to(tl.int64)
    if block < M.unsigned:
        _layer(x, D, h, a, conv, index, order, y, s, begin, first, end, edges, block, False, M)
    else:
        _layer(x, D, h, a, conv, index, order, y, s, begin, first, end, edges, block, True, M)


@triton.jit
def _active(y, s, row, place, degree, channel, mask, M: tl.constexpr):
    """[edges, chunk]: of a row of y, after the activation."""
    value = tl.load(
        y + (row * (M.rows * M.hidden))[:, None] + (place * M.hidden + channel)[None, :], mask=mask, other=0
    )
    if M.gate:
        gate = value
        if degree > 0:
            of_degree = (degree - 1) * M.hidden + channel
            gate = tl.load(s + (row * M.columns_of_s)[:, None] + of_degree[None, :], mask=mask, other=0)
        value *= tl.sigmoid(gate)
    return value


@triton.jit
def _second_step(sums, y, s, conv, row, valid, c, c_valid, n, O: tl.constexpr, M: tl.constexpr):
    size: tl.constexpr = O.size
    of_degree: tl.constexpr = M.channels * size * M.hidden
    place = n // M.chunks
    channel = n % M.chunks * M.chunk + tl.arange(0, M.chunk)
    there = channel < M.hidden
    mask = valid[:, None] & there[None, :]
    at = conv + O.matrix + (place * M.hidden + channel)[:, None] + (c * (size * M.hidden))[None, :]
    positive = _split(_active(y, s, row, O.row + place, O.order + place, channel, mask, M), M)
    re = ()
    im = ()
    if O.order > 0:
        negative = _split(_active(y, s, row, O.row + size + place, O.order + place, channel, mask, M), M)
        for l in tl.static_range(size):
            pair = _complex_dot(
                sums[l], sums[size + l], positive, negative, at + l * of_degree, size * of_degree, there, c_valid, M
            )
            re = re + (pair[0],)
            im = im + (pair[1],)
    else:
        for l in tl.static_range(size):
            re = re + (_dot(positive, _matrix(at + l * of_degree, there, c_valid, M), sums[l], M),)
    return re + im


@triton.jit
def _second_layer(y, s, conv, row, valid, c, c_valid, O: tl.constexpr, M: tl.constexpr):
    """The rows of m and -m of the second layer's result, each [edges, columns]."""
    sums = ()
    size: tl.constexpr = O.size
    for l in tl.static_range(size):
        zero = tl.zeros([M.edges, M.columns], tl.float32)
        if O.order > 0:
            sums = sums + (zero, zero)
        else:
            bias = tl.load(conv + O.bias + l * M.channels + c, mask=c_valid, other=0).to(tl.float32)
            sums = sums + (zero + bias[None, :],)
    for n in range(size * M.chunks):
        sums = _second_step(sums, y, s, conv, row, valid, c, c_valid, n, O, M)
    return sums


@triton.jit
def _part_of_component(rows, D, valid, i: tl.constexpr, R: tl.constexpr, L: tl.constexpr):
    place: tl.constexpr = R.place
    return rows[place] * (tl.load(D + (R.number + i), mask=valid, other=0) * L.scale)[:, None]


@triton.jit
def _sum_by_node(
    component, target, order, first_end, out, partial, begin, end, c, c_valid, i: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """Component i of each node: to ``out``, but to ``partial`` of a node that other tiles have edges of."""
    position = begin + tl.arange(0, M.edges)
    tile = begin // M.edges
    at = begin
    while at < end:
        node = tl.load(target + tl.load(order + at)).to(tl.int64)
        first = tl.load(first_end + node)
        last = tl.load(first_end + node + 1)
        mine = (position >= at) & (position < last)
        total = lane_sum(tl.where(mine[:, None], component, 0), 0, False)
        if (first >= begin) & (last <= end):
            tl.store(out + (node * M.components + i) * M.channels + c, total.to(out.dtype.element_ty), mask=c_valid)
        else:
            begins = (first >= begin).to(tl.int64)
            tl.store(partial + ((2 * tile + begins) * M.components + i) * M.channels + c, total, mask=c_valid)
        at = tl.minimum(last, end)


@triton.jit
def _back(
    rows, D, valid, target, order, first_end, out, partial, begin, end, c, c_valid, L: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    size: tl.constexpr = L.size
    for i in tl.static_range(size):
        component = tl.zeros([M.edges, M.columns], tl.float32)
        for n in tl.static_range(count_of(L.rows)):
            component += _part_of_component(rows, D, valid, i, pick(L.rows, n), L)
        _sum_by_node(component, target, order, first_end, out, partial, begin, end, c, c_valid, L.component + i, M)


@triton.jit(do_not_specialize=["begin", "end", "edges"])
def second_kernel(
    y, s, D, w, conv, index, order, first_end, message, out, partial, begin, end, edges, M: tl.constexpr
):  # fmt: skip
    """``first_end``: of each node, the place in ``order`` of its first edge."""
    program = tl.program_id(0)
    first = program // M.blocks * M.edges
    at = tl.arange(0, M.edges)
    valid = at < end - begin - first
    c = program % M.blocks * M.columns + tl.arange(0, M.columns)
    c_valid = c < M.channels
    mask = valid[:, None] & c_valid[None, :]
    e = tl.load(order + (begin + first) + at, mask=valid, other=0)
    row = e
    if not M.by_edge:
        row = at
        y += first.to(tl.int64) * (M.rows * M.hidden)
        s += first.to(tl.int64) * M.columns_of_s
    rows = ()
    for m in tl.static_range(count_of(M.orders)):
        rows = rows + _second_layer(y, s, conv, row, valid, c, c_valid, pick(M.orders, m), M)
    if M.keep:
        for n in tl.static_range(len(rows)):
            tl.store(message + (e * (M.rows * M.channels))[:, None] + (n * M.channels + c)[None, :], rows[n], mask=mask)
    if M.heads > 0:
        head = c // (M.channels // M.heads)
        factor = tl.load(w + (e * M.heads)[:, None] + head[None, :], mask=mask, other=0).to(tl.float32)
        weighted = ()
        for n in tl.static_range(len(rows)):
            weighted = weighted + (rows[n] * factor,)
        rows = weighted
    D += (first + at).to(tl.int64) * M.numbers
    target = index + edges.to(tl.int64) * (M.nodes_of_edge - 1)
    begin = begin.to(tl.int64) + first
    end = tl.minimum(begin + M.edges, end.to(tl.int64))
    for l in tl.static_range(count_of(M.degrees)):
        _back(
            rows, D, valid, target, order, first_end, out, partial, begin, end, c, c_valid, pick(M.degrees, l), M
        )  # fmt: skip


@triton.jit(do_not_specialize=["first_program"])
def finish_kernel(partial, first_end, out, first_program, edges: tl.constexpr, size: tl.constexpr, lanes: tl.constexpr):
    """Of nodes, each of ``size`` numbers, without edges or with edges in several tiles of so many."""
    blocks: tl.constexpr = (size + lanes - 1) // lanes
    program = first_program.to(tl.int64) + tl.program_id(0)
    node = program // blocks
    at = program % blocks * lanes + tl.arange(0, lanes)
    first = tl.load(first_end + node)
    last = tl.load(first_end + node + 1)
    one = first // edges
    tiles = (last + edges - 1) // edges
    if (last == first) | (tiles > one + 1):
        total = tl.zeros([lanes], tl.float32)
        for tile in range(one, tl.where(last == first, one, tiles)):
            begins = (tile == one).to(tl.int64)
            total += tl.load(partial + (2 * tile + begins) * size + at, mask=at < size, other=0)
        tl.store(out + node * size + at, total.to(out.dtype.element_ty), mask=at < size)


# The op.


def _precision() -> str:
    if torch.version.hip is not None:
        return "ieee"
    return "tf32x3" if _is_exact() else "tf32"


def _tile(device: torch.device) -> tuple[int, int] | None:
    """:func:`tile_of` the GPU that a device is."""
    if INTERPRETED:
        return 64, 2
    with on(device):
        return tile_of(triton.runtime.driver.active.get_current_target())


def tile_of(target: GPUTarget) -> tuple[int, int] | None:
    """Edges of a tile, and of how many steps radial weights are made together; None where no tensor cores are.

    Those of sm_90 need 32 columns; other GPUs lack registers for that.
    """
    if target.backend != "cuda" or target.arch > 90:
        return 128, 1
    return (128, 2) if target.arch == 90 else (64, 1) if target.arch >= 80 else None


def _forward(*args):
    *v, index, text, keep = args
    _check("so2_edge_message", v, None, (), index, text)
    plan, (x, q, h, a, w, conv1, conv2) = Plan.parse(text), v
    (nodes, components, channels), edges = x.shape, index.shape[1]
    problems, tile = None, _tile(x.device)
    if tile is not None and x.dtype != torch.float64 and edges < 2**31 and (a is None or len(a)):
        last = h if a is None else a
        features, weights = (-1, 0) if last is None else (0 if a is None else len(a), last.shape[1])
        heads = 0 if w is None else w.shape[1]
        problems = lower(text, channels, len(index), features, weights, heads, keep, tile, _precision())
    if problems is None:
        return _forward_kernel(*args)
    (first, second), tile = problems, tile[0]
    check_range("so2_edge_message", "index", index, nodes)
    order, first_end = by_node(index[-1], nodes)
    x, h, a, w, conv1, conv2, index = (x if t is None else t.contiguous() for t in (x, h, a, w, conv1, conv2, index))
    layers, wide = plan.convolutions, x.new_empty(0, dtype=torch.float32)
    row = wide.element_size() * max(1, first.columns_of_y + first.columns_of_s)
    tiles = min(_BYTES_OF_TILE_ELSEWHERE // row // tile, _MAX_GRID // max(len(first.blocks), second.blocks))
    size = min(max(edges, 1), max(tiles, 1) * tile)
    y, s = _empty(wide, edges if keep else size, layers[0])
    message = _empty(wide, edges, layers[1])[0] if second.keep else wide
    out = x.new_empty(nodes, components, plan.channels_out)
    partial = wide.new_empty(-(-edges // tile), 2, *out.shape[1:])
    for begin in range(0, edges, size):
        end = min(begin + size, edges)
        of_chunk = order[begin:end]
        D = wigner(q.index_select(0, of_chunk).to(wide.dtype), plan.lmax, plan.mmax)
        with on(x.device):
            first_kernel[(-(-(end - begin) // tile) * len(first.blocks),)](
                x, D, h, a, conv1, index, order, y, s, begin, end, edges, first, **OPTIONS
            )  # fmt: skip
        active = y
        if not second.gate:
            results = [t.index_select(0, of_chunk) if keep else t[: end - begin] for t in (y, s)]
            active = _ACTIVATION[plan.activation][0](*results, plan, True).contiguous()
        with on(x.device):
            second_kernel[(-(-(end - begin) // tile) * second.blocks,)](
                active, s, D, w, conv2, index, order, first_end, message, out, partial, begin, end, edges, second,
                **OPTIONS,
            )  # fmt: skip
    numbers = components * plan.channels_out
    programs = nodes * -(-numbers // _LANES)
    for begin in range(0, programs, _MAX_GRID):
        with on(x.device):
            finish_kernel[(min(_MAX_GRID, programs - begin),)](
                partial, first_end, out, begin, tile, numbers, _LANES, **OPTIONS
            )  # fmt: skip
    return out, *(t if keep else wide.new_empty(0) for t in (y, s)), message


def _register() -> torch.library.Library:
    library = torch.library.Library("eqk_triton", "FRAGMENT")
    library.define(str(torch.ops.eqk.so2_edge_message.default._schema).removeprefix("eqk::"))
    for key in KEYS:
        library.impl("so2_edge_message", _forward, key)
    op = torch.ops.eqk_triton.so2_edge_message.default
    register(library, op, _Forward, _fake_forward, loop_over_samples(op))
    return library


_LIBRARY = _register()
