# Triton knows no unpacking into a tuple.
# ruff: noqa: RUF005
"""Node features in the frames of edges and back in Triton: ``torch.ops.eqk_triton.rotate``.

Straight-line code of the nonzero blocks of D alone. Lanes are channels; the components of one degree are in registers
while the rows of an edge come and go, and a number of D is a scalar.

Of what has a row for each edge (z, D or weights) a program owns an edge and a block of its K C channels, and reads what
it needs of them once; sums over channels beyond a block are left to torch. Of x a program owns a degree of a node and a
block of channels, and walks the edges of the node in their order. So each result is written once, nothing is atomic,
and the bits are the same in every run.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from eqk._signals import component_index, count
from eqk.reference.rotate import groups_of_rows, scales
from eqk.rotate import (
    _D,
    _WEIGHTS,
    _X,
    _Z,
    _check,
    _numbers,
    _other_devices,
    _shape,
    register_derivatives,
)
from eqk.triton_kernels.common import (
    KEYS,
    Constant,
    by_node,
    check_range,
    compute_type,
    count_of,
    lane_sum,
    max_grid,
    on,
    pick,
    power_of_2,
)

_MISSING_X, _MISSING_D, _MISSING_WEIGHTS, _MISSING_Z = (tl.constexpr(slot) for slot in (_X, _D, _WEIGHTS, _Z))

# Others are left to the reference: code of so many numbers takes minutes to compile, and channels count in 32 bits.
_MOST_DEGREE, _MOST_CHANNELS = 8, 2**30
# Bytes of the channels of a program, which is a warp. The sums over lanes that numbers of D are cost as much for twice
# the channels.
_BYTES, _BYTES_OF_NUMBERS = 512, 1024
_WARPS = 1
_MAX_GRID = max_grid(_WARPS)
# Of D, in a kernel: the time to compile one grows with the square, to some seconds for so many. A degree has all of its
# own in one.
_MOST_NUMBERS = 300
_EDGES_OF_PART = tl.constexpr(64)  # of the sum of a node, in parts of which no digit of many edges is lost


@dataclass(frozen=True, repr=False, eq=False)
class _Row(Constant):
    """Of an edge: its place in z, which is m-primary, and the first of its numbers in D."""

    place: int
    number: int


@dataclass(frozen=True, repr=False, eq=False)
class _Step(Constant):
    """The rows of a degree and of m and -m. ``first``, ``last``: of the steps, one after another, of a group."""

    rows: tuple[_Row, ...]
    group: int
    first: bool
    last: bool


@dataclass(frozen=True, repr=False, eq=False)
class _Degree(Constant):
    """``size`` components from ``component`` on."""

    component: int
    size: int
    scale: float
    steps: tuple[_Step, ...]


@dataclass(frozen=True, repr=False, eq=False)
class _Problem(Constant):
    """What a kernel knows at compile time.

    ``components`` of a node, ``rows`` of an edge and ``numbers`` of its D; ``groups`` of weights, 0 where there are
    none, for ``width`` channels each.

    The channels that lanes are of are ``extent`` times ``span`` of them; a program has ``columns`` of the former and
    ``inner`` of each, of which there are ``parts`` one after another.
    """

    missing: int
    degrees: tuple[_Degree, ...]
    components: int
    rows: int
    numbers: int
    indexed: bool
    nodes_of_edge: int
    channels: int
    groups: int
    width: int
    extent: int
    span: int
    columns: int
    inner: int
    compute: object

    @property
    def of_edge(self) -> int:
        return self.nodes_of_edge * self.channels

    @property
    def weights(self) -> int:
        """Of a group."""
        return self.of_edge // self.width

    @property
    def lanes(self) -> int:
        return self.columns * self.inner

    @property
    def parts(self) -> int:
        return -(-self.span // self.inner)

    @property
    def blocks(self) -> int:
        return -(-self.extent // self.columns) * self.parts

    @property
    def full(self) -> bool:
        """Whether every lane has a channel."""
        return self.extent % self.columns == self.span % self.inner == 0


# Host.


def rows_of_edge(lmax: int, mmax: int) -> dict[tuple[int, int], _Row]:
    """By degree and order."""
    rows = {}
    for place, i in enumerate(component_index(lmax, mmax, "m_primary")):
        l = math.isqrt(i)
        m = i - l * l - l
        rows[l, m] = _Row(place, _numbers(l - 1, mmax) + (min(l, mmax) + m) * (2 * l + 1))
    return rows


def _degrees(lmax: int, mmax: int, rescale: bool, groups: int) -> list[_Degree]:
    row, group_of = rows_of_edge(lmax, mmax), groups_of_rows(lmax, mmax, groups)
    steps = [(l, order) for l in range(lmax + 1) for order in range(min(l, mmax) + 1)]
    group = [group_of[row[step].place] for step in steps]
    degrees = []
    for l, scale in enumerate(scales(lmax, mmax)):
        of_degree = []
        for n, (degree, order) in enumerate(steps):
            if degree == l:
                rows = [row[l, m] for m in ((order, -order) if order else (0,))]
                first, last = n == 0 or group[n - 1] != group[n], n == len(steps) - 1 or group[n + 1] != group[n]
                of_degree.append(_Step(tuple(rows), group[n], first, last))
        degrees.append(_Degree(l * l, 2 * l + 1, scale if rescale else 1.0, tuple(of_degree)))
    return degrees


def _cut(degrees: list[_Degree]) -> list[list[_Degree]]:
    cut, most = [], 0
    for degree in degrees:
        numbers = degree.size * sum(len(step.rows) for step in degree.steps)
        if not cut or most + numbers > _MOST_NUMBERS:
            cut.append([])
            most = 0
        cut[-1].append(degree)
        most += numbers
    return cut


@functools.lru_cache(maxsize=4096)
def lower(
    dtype: torch.dtype,
    missing: int,
    lmax: int,
    mmax: int,
    rescale: bool,
    indexed: bool,
    nodes_of_edge: int,
    channels: int,
    groups: int,
    columns: int,
) -> tuple[_Problem, ...]:
    """Of each launch. ``groups`` and ``columns``: of weights, 0 and 1 where there are none; the others are the op's."""
    of_edge = nodes_of_edge * channels
    width = of_edge // columns
    extent, span = {_X: (1, channels), _WEIGHTS: (columns, width)}.get(missing, (1, of_edge))
    lanes = (_BYTES_OF_NUMBERS if missing == _D else _BYTES) // (8 if dtype == torch.float64 else 4)
    inner = power_of_2(span, lanes)
    degrees = _degrees(lmax, mmax, rescale, groups)
    # A weight may be of all degrees.
    return tuple(
        _Problem(
            missing,
            tuple(part),
            (lmax + 1) ** 2,
            count(lmax, mmax),
            _numbers(lmax, mmax),
            indexed,
            nodes_of_edge,
            channels,
            groups,
            width,
            extent,
            span,
            power_of_2(extent, lanes // inner),
            inner,
            compute_type(dtype),
        )
        for part in ([degrees] if missing == _WEIGHTS else _cut(degrees))
    )


# Device.


@triton.jit
def _lanes(block, M: tl.constexpr):
    """Of a block: the place of each lane's channel, and whether there is one."""
    lane = tl.arange(0, M.lanes)
    column = block // M.parts * M.columns + lane // M.inner
    inner = block % M.parts * M.inner + lane % M.inner
    return column * M.span + inner, (column < M.extent) & (inner < M.span)


@triton.jit
def _load(pointer, valid, M: tl.constexpr):
    if M.full:
        return tl.load(pointer).to(M.compute)
    else:
        return tl.load(pointer, mask=valid, other=0).to(M.compute)


@triton.jit
def _store(pointer, value, valid, M: tl.constexpr):
    value = value.to(pointer.dtype.element_ty)
    if M.full:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=valid)


@triton.jit
def _number(numbers, i: tl.constexpr, L: tl.constexpr, M: tl.constexpr):
    number = tl.load(numbers + i).to(M.compute)
    if L.scale != 1:
        number *= L.scale
    return number


@triton.jit
def _weight(before, weights, valid, S: tl.constexpr, M: tl.constexpr):
    """Of a step, in a tuple; none where there are no weights. ``before``: that of the step before, if any."""
    if M.groups == 0 or M.missing == _MISSING_WEIGHTS:
        return ()
    elif len(before) == 0 or S.first:
        return (_load(weights + S.group * M.weights, valid, M),)
    else:
        return before


@triton.jit
def _weighted(row, weight):
    if len(weight) > 0:
        row *= weight[0]
    return row


@triton.jit
def _zeros(L: tl.constexpr, M: tl.constexpr):
    out = ()
    size: tl.constexpr = L.size
    for _ in tl.static_range(size):
        out = out + (tl.zeros([M.lanes], M.compute),)
    return out


@triton.jit
def _add(a, b):
    out = ()
    for i in tl.static_range(len(a)):
        out = out + (a[i] + b[i],)
    return out


@triton.jit
def _rotated(x, numbers, R: tl.constexpr, L: tl.constexpr, M: tl.constexpr):
    """A row of D x."""
    total = x[0] * _number(numbers, R.number, L, M)
    for i in tl.static_range(1, len(x)):
        total += x[i] * _number(numbers, R.number + i, L, M)
    return total


@triton.jit
def _store_numbers(to, x, g, R: tl.constexpr, L: tl.constexpr, M: tl.constexpr):
    """Of a row of D: each component times what the row has, summed over channels."""
    i = tl.arange(0, triton.next_power_of_2(L.size))
    sums = tl.zeros(i.shape, M.compute)
    for n in tl.static_range(len(x)):
        sums = tl.where(i == n, lane_sum(x[n] * g, 0, False), sums)
    if L.scale != 1:
        sums *= L.scale
    tl.store(to + R.number + i, sums.to(to.dtype.element_ty), mask=i < L.size)


@triton.jit
def _store_group(to, total, valid, block, S: tl.constexpr, M: tl.constexpr):
    """The weights of a group: ``total`` summed over the channels of each."""
    if M.inner > 1:
        if not M.full:
            # Where there is no channel x is zero, and zero times infinity is no number.
            total = tl.where(valid, total, 0)
        total = lane_sum(tl.reshape(total, [M.columns, M.inner]), 1, False)
    column = block // M.parts * M.columns + tl.arange(0, M.columns)
    tl.store(to + S.group * M.weights + column, total.to(to.dtype.element_ty), mask=column < M.weights)


@triton.jit
def _row_of_edge(tensors, components, weight, of_group, valid, R: tl.constexpr, L: tl.constexpr, M: tl.constexpr):
    _, D, _, z, out = tensors
    at: tl.constexpr = R.place * M.of_edge
    if M.missing == _MISSING_D:
        _store_numbers(out, components, _weighted(_load(z + at, valid, M), weight), R, L, M)
    else:
        row = _rotated(components, D, R, L, M)
        if M.missing == _MISSING_WEIGHTS:
            of_group += row * _load(z + at, valid, M)
        else:
            _store(out + at, _weighted(row, weight), valid, M)
    return of_group


@triton.jit
def _step_of_edge(
    tensors, components, weight, of_group, valid, block, S: tl.constexpr, L: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    weight = _weight(weight, tensors[2], valid, S, M)
    for r in tl.static_range(count_of(S.rows)):
        of_group = _row_of_edge(tensors, components, weight, of_group, valid, pick(S.rows, r), L, M)
    if M.missing == _MISSING_WEIGHTS:
        if S.last:
            _store_group(tensors[4], of_group, valid, block, S, M)
            of_group = tl.zeros([M.lanes], M.compute)
        else:
            # Where there is no store, the assembler loads what the next steps need as well, and has too few registers.
            tl.debug_barrier()
    return weight, of_group


@triton.jit
def _degree_of_edge(tensors, weight, of_group, valid, block, L: tl.constexpr, M: tl.constexpr):
    components = ()
    size: tl.constexpr = L.size
    for i in tl.static_range(size):
        components = components + (_load(tensors[0] + (L.component + i) * M.channels, valid, M),)
    for n in tl.static_range(count_of(L.steps)):
        weight, of_group = _step_of_edge(tensors, components, weight, of_group, valid, block, pick(L.steps, n), L, M)
    return weight, of_group


@triton.jit
def _edge(x, D, weights, z, index, out, e, edges, block, M: tl.constexpr):
    channel, valid = _lanes(block, M)
    node = e
    of_node = channel
    if M.nodes_of_edge > 1:
        of_node = channel % M.channels
        node = tl.load(index + channel // M.channels * edges + e, mask=valid, other=0).to(tl.int64)
    elif M.indexed:
        node = tl.load(index + e).to(tl.int64)
    x += node * (M.components * M.channels) + of_node
    weights += e * (M.groups * M.weights) + channel // M.width
    row = e * (M.rows * M.of_edge) + channel
    of_part = (block % M.parts).to(tl.int64) * edges + e
    if M.missing == _MISSING_D:
        out += of_part * M.numbers
    elif M.missing == _MISSING_WEIGHTS:
        out += of_part * (M.groups * M.weights)
    else:
        out += row
    tensors = (x, D + e * M.numbers, weights, z + row, out)
    weight = ()
    of_group = tl.zeros([M.lanes], M.compute)
    for l in tl.static_range(count_of(M.degrees)):
        weight, of_group = _degree_of_edge(tensors, weight, of_group, valid, block, pick(M.degrees, l), M)


@triton.jit
def _back_row(sums, D, z, weight, valid, R: tl.constexpr, L: tl.constexpr, M: tl.constexpr):
    row = _weighted(_load(z + R.place * M.of_edge, valid, M), weight)
    out = ()
    for i in tl.static_range(len(sums)):
        out = out + (sums[i] + row * _number(D, R.number + i, L, M),)
    return out


@triton.jit
def _back_step(sums, D, weights, z, weight, valid, S: tl.constexpr, L: tl.constexpr, M: tl.constexpr):
    weight = _weight(weight, weights, valid, S, M)
    for r in tl.static_range(count_of(S.rows)):
        sums = _back_row(sums, D, z, weight, valid, pick(S.rows, r), L, M)
    return sums, weight


# The loops call functions alone: Triton walks the body of a loop twice, and a function once.


@triton.jit
def _back(sums, D, weights, z, ends, n, edges, channel, valid, L: tl.constexpr, M: tl.constexpr):
    """``sums`` and what end n of the edges adds to the components of a degree."""
    e = n
    if M.indexed:
        e = tl.load(ends + n)
        k = e * 0
        nodes_of_edge: tl.constexpr = M.nodes_of_edge
        for other in tl.static_range(1, nodes_of_edge):
            k += (e >= other * edges).to(tl.int64)
        e -= k * edges
        channel = k * M.channels + channel
    D += e * M.numbers
    weights += e * (M.groups * M.weights) + channel // M.width
    z += e * (M.rows * M.of_edge) + channel
    weight = ()
    for n in tl.static_range(count_of(L.steps)):
        sums, weight = _back_step(sums, D, weights, z, weight, valid, pick(L.steps, n), L, M)
    return sums


@triton.jit
def _back_of_part(D, weights, z, ends, first, last, edges, channel, valid, L: tl.constexpr, M: tl.constexpr):
    sums = _zeros(L, M)
    for n in range(first, last):
        sums = _back(sums, D, weights, z, ends, n, edges, channel, valid, L, M)
    return sums


@triton.jit
def _node(D, weights, z, ends, first_end, out, node, edges, block, L: tl.constexpr, M: tl.constexpr):
    channel, valid = _lanes(block, M)
    total = _zeros(L, M)
    if M.indexed:
        last = tl.load(first_end + node + 1)
        for first in range(tl.load(first_end + node), last, _EDGES_OF_PART):
            end = tl.minimum(first + _EDGES_OF_PART, last)
            total = _add(total, _back_of_part(D, weights, z, ends, first, end, edges, channel, valid, L, M))
    else:
        total = _back(total, D, weights, z, ends, node, edges, channel, valid, L, M)
    out += node * (M.components * M.channels) + channel
    for i in tl.static_range(len(total)):
        _store(out + (L.component + i) * M.channels, total[i], valid, M)


@triton.jit(do_not_specialize=["first_program", "edges"])
def kernel(x, D, weights, z, index, first_end, out, first_program, edges, M: tl.constexpr):
    """``index``: without x the ends of edges, k edges + e, in the order of nodes; ``first_end`` of each node."""
    program = first_program.to(tl.int64) + tl.program_id(0)
    # Programs of the same rows are neighbours, so that what they all read is still in the L2 cache.
    block = (program % M.blocks).to(tl.int32)
    row = program // M.blocks
    edges = edges.to(tl.int64)
    if M.missing == _MISSING_X:
        degrees: tl.constexpr = count_of(M.degrees)
        for l in tl.static_range(degrees):
            if row % degrees == l:
                _node(D, weights, z, index, first_end, out, row // degrees, edges, block, pick(M.degrees, l), M)
    else:
        _edge(x, D, weights, z, index, out, row, edges, block, M)


# The op.


def _rotate(*args) -> Tensor:
    operands, rest = args[:4], args[4:]
    _check(operands, rest)
    index, _, _, _, lmax, mmax, rescale, missing = rest
    (nodes, _, channels), (edges, _) = (_shape(operands, rest, slot) for slot in (_X, _D))
    nodes_of_edge = 1 if index is None else index.shape[0]
    if lmax > _MOST_DEGREE or nodes_of_edge * channels > _MOST_CHANNELS:
        return _other_devices(*args)
    if index is not None:
        check_range("rotate", "index", index, nodes)
    like = operands[_Z] if operands[_X] is None else operands[_X]
    out = like.new_empty(_shape(operands, rest, missing))
    if not all(t is None or t.numel() for t in (*operands, out)):
        return out.zero_()
    weighted, indexed = missing == _WEIGHTS or operands[_WEIGHTS] is not None, index is not None
    groups, columns = _shape(operands, rest, _WEIGHTS)[1:] if weighted else (0, 1)
    problems = lower(like.dtype, missing, lmax, mmax, rescale, indexed, nodes_of_edge, channels, groups, columns)
    ends = by_node(index.flatten(), nodes) if indexed and missing == _X else (index, None)
    # A pointer that no code reads still has to be one.
    pointers = [like if t is None else t.contiguous() for t in (*operands, *ends)]
    to, parts = out, problems[0].parts if missing in (_D, _WEIGHTS) else 1
    if parts > 1:
        to = out.new_empty((parts, *out.shape), dtype=torch.promote_types(out.dtype, torch.float32))
    for problem in problems:
        programs = (nodes * len(problem.degrees) if missing == _X else edges) * problem.blocks
        for begin in range(0, programs, _MAX_GRID):
            with on(like.device):
                kernel[(min(_MAX_GRID, programs - begin),)](
                    *pointers, to, begin, edges, problem, num_warps=_WARPS, enable_fp_fusion=True
                )  # fmt: skip
    return to.sum(0).to(out.dtype) if parts > 1 else out


def _register() -> tuple[torch.library.Library, torch.library.Library]:
    library = torch.library.Library("eqk_triton", "FRAGMENT")
    library.define(str(torch.ops.eqk.rotate.default._schema).removeprefix("eqk::"))
    for key in KEYS:
        library.impl("rotate", _rotate, key)
    return library, register_derivatives("eqk_triton")


_LIBRARIES = _register()
