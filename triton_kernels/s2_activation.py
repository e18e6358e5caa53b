# Triton knows no unpacking into a tuple.
# ruff: noqa: RUF005
"""Functions and products of signals on the sphere in Triton: ``torch.ops.eqk_triton.s2_activation`` and its product.

Both ops, and so all derivatives, are one kernel: P[f^(k)(S x) (T_1 v_1) ... (T_n v_n)] with S and A dense, as
:func:`eqk.reference.s2_activation.dense` makes them. A program owns lanes, each a channel of a row. It holds their
coefficients, walks tiles of the points of the grid, multiplies matrix by coefficients (tl.dot) for the values at these
points, takes f^(k) of those times the factors', and adds the matrix' transpose times that to the result. The grid is in
no memory, each result is written once, and nothing is atomic.

Components are cut into parts that are powers of 2, as tl.dot has them; what is beyond the last component or point is
zero in the matrices and in the coefficients. Lanes share no sum, so that what is no number stays in its lane. Plans
whose coefficients do not fit into shared memory read them again for each tile, and several programs make the same
values for parts of the result.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from eqk._signals import count
from eqk.reference.s2_activation import dense
from eqk.register import MaybeTensor
from eqk.s2_activation import MAX_FACTORS, _check, register_derivatives
from eqk.s2_activation_plan import POWERS, S2ActivationPlan
from eqk.s2_quadrature import cached_tables
from eqk.triton_kernels.common import (
    KEYS,
    Constant,
    compute_type,
    count_of,
    max_grid,
    on,
    pick,
    power_of_2,
    with_adjacent_columns,
)

# Lengths of parts. tl.dot takes 8 or more of what it sums over; fewer than 16 have a layout of their own, and more than
# 32 take more registers than there are.
_LEAST_PART = 16
_MOST_PART = 32
_PARTS_OF_GROUP = 4  # of the result, where coefficients do not fit
_TILE = 32  # points
_LANES = 64
# Bytes of coefficients and of a tile of the matrices: what any GPU has for the shared memory of a program.
_SHARED = 64 << 10
# Bytes of coefficients that 4 warps have no spills with; more of them have 8 warps.
_BYTES_OF_4_WARPS = 32 << 10


@dataclass(frozen=True, repr=False, eq=False)
class _Side(Constant):
    """Components of x or of z: ``parts`` (first, length) of them, ``width`` in sum, are columns of the matrix.

    Component i of channel c is at i * channels + c, or, ``by_degree``, those of a degree at i + c * (2 l + 1) from the
    first of them.
    """

    components: int
    width: int
    parts: tuple[tuple[int, int], ...]
    by_degree: bool
    lmax: int


@dataclass(frozen=True, repr=False, eq=False)
class _Problem(Constant):
    """What a kernel knows at compile time; ``kinds``: 0 for x and 1 for z, of the factors and at last of the result.

    ``held``: whether programs hold all coefficients and all of the result. Else several, of ``groups``, have
    ``parts_of_group`` of its parts each.
    """

    sides: tuple[_Side, _Side]
    channels: int
    points: int
    tile: int
    lanes: int
    function: str
    derivative: int
    kinds: tuple[int, ...]
    held: bool
    groups: int
    parts_of_group: int
    compute: object
    wide: bool

    @property
    def padded(self) -> int:
        """Points of whole tiles."""
        return -(-self.points // self.tile) * self.tile

    @property
    def varies(self) -> bool:
        """Whether f^(k) depends on x: none of a polynomial beyond its power minus 1 does."""
        return self.power == 0 or self.derivative < self.power

    @property
    def power(self) -> int:
        """Of x, which the function is; 0 for other functions."""
        return POWERS.get(self.function, 0)

    @property
    def factor(self) -> float:
        """Of f^(k): x^n has n! / (n - k)! x^(n - k), others k! times a coefficient of the Taylor series."""
        return float(math.perm(self.power, self.derivative) if self.power else math.factorial(self.derivative))


class _Launch(NamedTuple):
    problem: _Problem
    warps: int


# Host.


def _parts(components: int) -> tuple[tuple[int, int], ...]:
    parts, first = [], 0
    while first < components:
        left = -(-(components - first) // _LEAST_PART) * _LEAST_PART
        length = min(_MOST_PART, 1 << (left.bit_length() - 1))
        parts.append((first, length))
        first += length
    return tuple(parts)


def _side(plan: S2ActivationPlan, kind: int, held: bool) -> _Side:
    lmax, layout = ((plan.lmax_in, plan.layout_in), (plan.lmax_out, plan.layout_out))[kind]
    components = count(lmax, plan.mmax)
    parts = _parts(components)
    if not held:
        parts = tuple((first, _MOST_PART) for first in range(0, components, _MOST_PART))
    return _Side(components, sum(length for _, length in parts), parts, layout == "mul_ir", lmax)


@functools.lru_cache(maxsize=4096)
def lower(text: str, kinds: str, dtype: torch.dtype) -> _Launch:
    """How the plan ``text`` and ``kinds``, as the op has them, run on operands of ``dtype``."""
    plan = S2ActivationPlan.parse(text)
    letters, _, result = kinds[1:].partition(">")
    numbers = tuple("xz".index(k) for k in letters + result)
    size = 8 if dtype == torch.float64 else 4
    points = math.prod(plan.res)
    tile = max(_LEAST_PART, power_of_2(points, _TILE))
    sides = tuple(_side(plan, kind, True) for kind in range(2))
    operands = [0, *numbers[:-1]]
    coefficients = sum(sides[kind].width for kind in operands)
    matrices = sum(sides[kind].width for kind in {*operands, numbers[-1]})
    lanes = _LANES * 4 // size
    while lanes > 16 and size * (coefficients * lanes + matrices * tile) > _SHARED:
        lanes //= 2
    held = size * (coefficients * lanes + matrices * tile) <= _SHARED
    groups, parts_of_group = 1, len(sides[numbers[-1]].parts)
    if not held:
        sides, lanes = tuple(_side(plan, kind, False) for kind in range(2)), _LANES * 4 // size // 2
        parts_of_group = min(_PARTS_OF_GROUP, len(sides[numbers[-1]].parts))
        groups = -(-len(sides[numbers[-1]].parts) // parts_of_group)
    few = held and size * coefficients * lanes <= _BYTES_OF_4_WARPS
    problem = _Problem(
        sides,
        plan.channels,
        points,
        tile,
        lanes,
        plan.function,
        int(kinds[0]),
        numbers,
        held,
        groups,
        parts_of_group,
        compute_type(dtype),
        max(plan.dims) >= 2**30,
    )
    return _Launch(problem, 4 if few else 8)


def options(launch: _Launch, hip: bool = torch.version.hip is not None) -> dict[str, object]:
    """Of Triton's compiler."""
    chosen: dict[str, object] = {"num_stages": 1, "enable_fp_fusion": True}
    if hip:
        # Warps are twice as wide, and threads have twice the registers if there are but 4.
        return chosen | {"num_warps": 4}
    if launch.problem.compute == tl.float32:
        # Left alone, ptxas takes fewer registers, and the stack, to have more programs at once.
        chosen["maxnreg"] = 128
    return chosen | {"num_warps": launch.warps}


@cached_tables
def matrices_of(text: str, widths: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device) -> tuple:
    """S and A of the plan with zeros up to ``rows`` points and ``widths`` components."""
    plan = S2ActivationPlan.parse(text)
    return tuple(
        torch.nn.functional.pad(m, (0, width - m.shape[1], 0, rows - m.shape[0])).to(device)
        for m, width in zip(dense(plan, dtype, "cpu"), widths, strict=True)
    )


# Device.


@triton.constexpr_function
def _first_of(side, n):
    return side.parts[n][0]


@triton.constexpr_function
def _length_of(side, n):
    return side.parts[n][1]


# Functions. What is no number stays so, and infinity is among the numbers that have a value.


@triton.jit
def _clamped(x, least: tl.constexpr, most: tl.constexpr):
    x = tl.where(x > most, most, x)
    return tl.where(x < least, least, x)


@triton.jit
def _exp(x):
    """To the last bits, 0 where it would be smaller than any number, as of the limit above that."""
    if x.dtype == tl.float64:
        return tl.exp(_clamped(x, -750.0, 708.0))
    else:
        # Triton's own rounds x log2(e), which may cost 80 times the last bit.
        x = _clamped(x, -110.0, 87.0)
        n = x * 1.4426950408889634
        rest = tl.fma(x, 1.4426950408889634, -n) + x * 1.925963033500e-8
        power = tl.exp2(n)
        return tl.fma(power, rest * 0.6931471805599453, power)


@triton.jit
def _exp_minus_one(x):
    """exp(x) = 2^n (1 + q), q = exp(r) - 1 of |r| <= log(2) / 2 by its Taylor series: exact where x is small."""
    if x.dtype == tl.float64:
        x = _clamped(x, -708.0, 708.0)
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = tl.fma(n, -1.90821492927058770002e-10, tl.fma(n, -6.93147180369123816490e-01, x))
        power = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
        terms: tl.constexpr = 13
    else:
        x = _clamped(x, -87.0, 87.0)
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = tl.fma(n, -1.42860677e-6, tl.fma(n, -0.693145752, x))
        power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        terms: tl.constexpr = 7
    q = r * 0 + 1
    for k in tl.static_range(terms, 1, -1):
        q = q * (r * (1.0 / k)) + 1
    return (power - 1) + power * (q * r)


@triton.jit
def _distribution(x):
    """Of the normal distribution. For x = -a below zero it is exp(-a^2 / 2) g(a) / (a + 4).

    g is a polynomial in (a - 4) / (a + 4), fitted to 40 digits of erfc at Chebyshev's points of 0 <= a <= 15, or 40 in
    float64: to 3e-9, and 4e-17.
    """
    a = tl.where(x < 0, -x, x)
    a = tl.where(a > 40.0, 40.0, a)  # where it is 0, and 1
    r = 1 / (a + 4)
    s = (a - 4) * r
    if x.dtype == tl.float64:
        g = s * -9.99062416002328e-10 - 1.0152957176497154e-11
        g = g * s + 1.3976528155950823e-08
        g = g * s + 1.4842390072751346e-08
        g = g * s - 7.634712843441086e-08
        g = g * s - 1.546196819122192e-07
        g = g * s + 2.6354310560684456e-07
        g = g * s + 1.0200713392568465e-06
        g = g * s - 6.249906995369785e-07
        g = g * s - 5.919013186154044e-06
        g = g * s + 7.149308325478401e-07
        g = g * s + 3.51442149682578e-05
        g = g * s - 1.9078434059248706e-06
        g = g * s - 0.00023109482414997105
        g = g * s + 0.00013334424978358428
        g = g * s + 0.0016308184424805887
        g = g * s - 0.0034796923618040597
        g = g * s - 0.007540188965625017
        g = g * s + 0.06039657489067665
        g = g * s - 0.1865218579596934
        g = g * s + 0.38713740074221936
        g = g * s - 0.6078966419718917
        g = g * s + 0.7552851304157515
    else:
        g = s * -5.155659329856141e-05 - 0.0002317986783423407
        g = g * s + 0.00017105461158686258
        g = g * s + 0.001645219297359636
        g = g * s - 0.003489317276115056
        g = g * s - 0.00754526826571505
        g = g * s + 0.06039753308782922
        g = g * s - 0.18652128140252128
        g = g * s + 0.3871373679985599
        g = g * s - 0.6078966590908522
        g = g * s + 0.7552851306230107
    square = a * a
    rest = tl.fma(a, a, -square)
    below = _exp(square * -0.5) * (1 - 0.5 * rest) * (g * r)
    return tl.where(x > 0, 1 - below, below)


@triton.jit
def _log1p(u):
    """Of 0 <= u <= 1: 2 artanh(u / (2 + u)), since tl.log is an approximation to so many digits behind the point."""
    s = u / (2 + u)
    square = s * s
    terms: tl.constexpr = 17 if u.dtype == tl.float64 else 8
    series = square * 0 + 1.0 / (2 * terms - 1)
    for k in tl.static_range(terms - 2, -1, -1):
        series = series * square + 1.0 / (2 * k + 1)
    return 2 * s * series


# Coefficients of Taylor series, a[n] = f^(n)(x) / n! for n up to K, as in csrc/s2_activation/cpu_functions.h.


@triton.jit
def _sigmoid_series(x, K: tl.constexpr):
    """y' = y (1 - y)"""
    s = (1 / (1 + _exp(-x)),)
    for n in tl.static_range(K):
        total = s[n]
        for i in tl.static_range(n + 1):
            total -= s[i] * s[n - i]
        s = s + (total * (1.0 / (n + 1)),)
    return s


@triton.jit
def _tanh_series(x, K: tl.constexpr):
    """y' = 1 - y^2"""
    e = _exp_minus_one(2 * x)
    y = (e / (e + 2),)
    for n in tl.static_range(K):
        total = -y[0] * y[n]
        for i in tl.static_range(1, n + 1):
            total -= y[i] * y[n - i]
        if n == 0:
            total += 1
        y = y + (total * (1.0 / (n + 1)),)
    return y


@triton.jit
def _normal_series(x, K: tl.constexpr):
    """phi' = -x phi"""
    phi = (_exp(x * x * -0.5) * 0.3989422804014327,)
    for n in tl.static_range(K):
        total = x * phi[n]
        if n > 0:
            total += phi[n - 1]
        phi = phi + (total * (-1.0 / (n + 1)),)
    return phi


@triton.jit
def _times_x(x, s, K: tl.constexpr):
    """The coefficient K of x s."""
    if K == 0:
        return x * s[0]
    else:
        return x * s[K] + s[K - 1]


@triton.jit
def _derivative(x, M: tl.constexpr):
    """f^(k)"""
    function: tl.constexpr = M.function
    K: tl.constexpr = M.derivative
    zero = tl.zeros(x.shape, x.dtype)
    if M.power > 0:
        if M.power < K:
            return zero
        else:
            a = zero + M.factor
            for _ in tl.static_range(M.power - K):
                a *= x
            return a
    elif function == "relu":
        if K == 0:
            return tl.where(x < 0, zero, x)
        elif K == 1:
            return tl.where(x > 0, zero + 1, zero)
        else:
            return zero
    elif function == "abs":
        if K == 0:
            return tl.where(x < 0, -x, x)
        elif K == 1:
            return tl.where(x > 0, zero + 1, tl.where(x < 0, zero - 1, zero))
        else:
            return zero
    elif function == "sigmoid":
        return _sigmoid_series(x, K)[K] * M.factor
    elif function == "silu":
        return _times_x(x, _sigmoid_series(x, K), K) * M.factor
    elif function == "tanh":
        return _tanh_series(x, K)[K] * M.factor
    elif function == "gelu":
        # x Phi, Phi' = phi
        distribution = (_distribution(x),)
        if K > 0:
            phi = _normal_series(x, K - 1)
            for n in tl.static_range(K):
                distribution = distribution + (phi[n] * (1.0 / (n + 1)),)
        return _times_x(x, distribution, K) * M.factor
    elif K > 0:
        # of softplus, shifted by log(2) or not
        return _sigmoid_series(x, K - 1)[K - 1] * (M.factor / K)
    else:
        value = tl.maximum(x, 0) + _log1p(_exp(tl.where(x < 0, x, -x)))
        if function == "ssp":
            value -= 0.6931471805599453
        return value


# Transforms. ``row``, ``channel`` and whether there is such a row are [1, lanes].


@triton.jit
def _columns(first, length: tl.constexpr, channel, side: tl.constexpr, M: tl.constexpr):
    """Columns [length, lanes] of components from ``first`` and whether there are such components."""
    Index: tl.constexpr = tl.int64 if M.wide else tl.int32
    i = (first + tl.arange(0, length)[:, None]).to(Index)
    if side.by_degree:
        l = tl.zeros([length, 1], Index)
        for degree in tl.static_range(1, side.lmax + 1):
            l += (i >= degree * degree).to(Index)
        column = l * l * M.channels + channel * (2 * l + 1) + (i - l * l)
    else:
        column = i * M.channels + channel
    return column, i < side.components


@triton.jit
def _coefficients(
    pointer, row, channel, valid, first, length: tl.constexpr, side: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    column, there = _columns(first, length, channel, side, M)
    return tl.load(pointer + row + column, mask=there & valid, other=0).to(M.compute)


@triton.jit
def _held(pointer, stride, row, channel, valid, side: tl.constexpr, M: tl.constexpr):
    """All coefficients of a signal, by parts."""
    out = ()
    if M.held:
        for n in tl.static_range(count_of(side.parts)):
            out = out + (
                _coefficients(
                    pointer, row * stride, channel, valid, _first_of(side, n), _length_of(side, n), side, M
                ),
            )  # fmt: skip
    return out


@triton.jit
def _tile_of(matrix, points, first, length: tl.constexpr, side: tl.constexpr, M: tl.constexpr):
    """[points, length] of a matrix, from component ``first``."""
    column = (first + tl.arange(0, length))[None, :]
    if M.held:
        return tl.load(matrix + points[:, None] * side.width + column)
    else:
        # The last group may have fewer parts than others.
        return tl.load(matrix + points[:, None] * side.width + column, mask=column < side.width, other=0)


@triton.jit
def _fence():
    """Between transforms: else the assembler loads what the next one needs as well, and has too few registers."""
    tl.debug_barrier()


@triton.jit
def _values(
    pointer, stride, row, channel, valid, held, matrix, points, kind: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """[points, lanes]: of a signal."""
    side: tl.constexpr = pick(M.sides, kind)
    T: tl.constexpr = M.compute
    total = tl.zeros([M.tile, M.lanes], T)
    if M.held:
        for n in tl.static_range(len(held)):
            if n > 0:
                _fence()
            tile = _tile_of(matrix, points, _first_of(side, n), _length_of(side, n), side, M)
            total = tl.dot(tile, held[n], total, input_precision="ieee", out_dtype=T)
    else:
        length: tl.constexpr = _length_of(side, 0)
        for first in tl.range(0, side.width, length, num_stages=1):
            part = _coefficients(pointer, row * stride, channel, valid, first, length, side, M)
            total = tl.dot(
                _tile_of(matrix, points, first, length, side, M), part, total, input_precision="ieee", out_dtype=T
            )
    return total


@triton.jit
def _projected(totals, f, matrix, points, part, kind: tl.constexpr, M: tl.constexpr):
    """``totals`` and the transpose of a matrix, from part ``part``, times values [points, lanes]."""
    side: tl.constexpr = pick(M.sides, kind)
    out = ()
    for n in tl.static_range(len(totals)):
        _fence()
        if M.held:
            tile = _tile_of(matrix, points, _first_of(side, n), _length_of(side, n), side, M)
        else:
            tile = _tile_of(matrix, points, (part + n) * _length_of(side, 0), _length_of(side, 0), side, M)
        out = out + (tl.dot(tl.trans(tile), f, totals[n], input_precision="ieee", out_dtype=M.compute),)
    return out


@triton.jit(do_not_specialize=["first_program", "rows"])
def kernel(
    x, v1, v2, v3, v4, out, to, back,
    sx, s1, s2, s3, s4, columns, first_program, rows,
    M: tl.constexpr,
):  # fmt: skip
    program = first_program.to(tl.int64) + tl.program_id(0)
    # Programs of the same lanes are neighbours, so that what they all read is still in the L2 cache.
    group = (program % M.groups).to(tl.int32)
    Index: tl.constexpr = tl.int64 if M.wide else tl.int32
    lane = program // M.groups * M.lanes
    n = (lane % M.channels).to(Index) + tl.arange(0, M.lanes)[None, :]
    row = lane // M.channels + n // M.channels
    channel = n % M.channels
    valid = row < rows
    kind: tl.constexpr = pick(M.kinds, -1)
    side: tl.constexpr = pick(M.sides, kind)
    x_side: tl.constexpr = pick(M.sides, 0)
    held_x = ()
    if M.varies:
        held_x = _held(x, sx, row, channel, valid, x_side, M)
    factors: tl.constexpr = len(M.kinds) - 1
    pointers = (v1, v2, v3, v4)
    strides = (s1, s2, s3, s4)
    held = ()
    for i in tl.static_range(factors):
        held = held + (_held(pointers[i], strides[i], row, channel, valid, pick(M.sides, pick(M.kinds, i)), M),)
    totals = ()
    part = group * M.parts_of_group
    parts: tl.constexpr = M.parts_of_group
    for i in tl.static_range(parts):
        totals = totals + (tl.zeros([_length_of(side, i), M.lanes], M.compute),)
    for first in tl.range(0, M.padded, M.tile, num_stages=1):
        points = first + tl.arange(0, M.tile)
        matrices = (to, back)
        if M.varies:
            values = _values(x, sx, row, channel, valid, held_x, to, points, 0, M)
        else:
            values = tl.zeros([M.tile, M.lanes], M.compute)
        f = _derivative(values, M)
        for i in tl.static_range(factors):
            _fence()
            f *= _values(
                pointers[i], strides[i], row, channel, valid, held[i],
                matrices[pick(M.kinds, i)], points, pick(M.kinds, i), M,
            )  # fmt: skip
        if M.padded > M.points:
            # Where there is no point the matrix is zero, and zero times infinity is no number.
            f = tl.where(points[:, None] < M.points, f, 0)
        totals = _projected(totals, f, matrices[kind], points, part, kind, M)
    for i in tl.static_range(len(totals)):
        at = _first_of(side, i) if M.held else (part + i) * _length_of(side, 0)
        column, there = _columns(at, _length_of(side, i), channel, side, M)
        tl.store(out + row * columns + column, totals[i].to(out.dtype.element_ty), mask=there & valid)


# The ops.


def _run(op: str, x: Tensor, factors: tuple[MaybeTensor, ...], plan: str, kinds: str) -> Tensor:
    _check(op, x, factors, plan, kinds)
    launch = lower(plan, kinds, x.dtype)
    problem, chosen = launch.problem, options(launch)
    columns = problem.channels * problem.sides[problem.kinds[-1]].components
    out = x.new_empty(x.shape[0], columns)
    if not out.numel():
        return out
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    widths = tuple(side.width for side in problem.sides)
    matrices = matrices_of(plan, widths, problem.padded, wide, x.device)
    operands = [with_adjacent_columns(t) for t in (x, *factors)]
    # A pointer that no code reads still has to be one.
    pointers = [x if t is None else t for t in operands]
    strides = [0 if t is None else t.stride(0) for t in operands]
    programs = -(-x.shape[0] * problem.channels // problem.lanes) * problem.groups
    most = max_grid(chosen["num_warps"])
    for begin in range(0, programs, most):
        with on(x.device):
            kernel[(min(most, programs - begin),)](
                *pointers, out, *matrices, *strides, columns, begin, x.shape[0], problem, **chosen
            )  # fmt: skip
    return out


def _forward(x: Tensor, plan: str) -> Tensor:
    return _run("s2_activation", x, (None,) * MAX_FACTORS, plan, "0>z")


def _product(x, v1, v2, v3, v4, plan: str, kinds: str) -> Tensor:
    return _run("s2_activation_product", x, (v1, v2, v3, v4), plan, kinds)


def _register() -> tuple[torch.library.Library, torch.library.Library]:
    library = torch.library.Library("eqk_triton", "FRAGMENT")
    for suffix, function in (("", _forward), ("_product", _product)):
        schema = str(getattr(torch.ops.eqk, f"s2_activation{suffix}").default._schema)
        library.define(schema.removeprefix("eqk::"))
        for key in KEYS:
            library.impl(f"s2_activation{suffix}", function, key)
    return library, register_derivatives("eqk_triton")


_LIBRARIES = _register()
