"""The PTX emulator: instructions against exact arithmetic, what its checks report, counts against hand-made ones."""

import math
import struct
from collections import Counter
from fractions import Fraction

import numpy as np
import ptxemu
import pytest
import triton
import triton.language as tl

DTYPE = {"b16": np.uint16, "b32": np.uint32, "b64": np.uint64, "f32": np.float32, "f64": np.float64}
ALL = 0xFFFFFFFF
LANE = np.arange(32)


@pytest.fixture
def numpy_rng(rng):
    return np.random.default_rng(rng.randrange(2**62))


def module(body, params=1, declarations=""):
    """A kernel k of 64-bit parameters p0, ..., which %rd0, ... hold; %t0 is the number of the thread in the grid."""
    return ptxemu.Module(
        ".version 8.0\n.target sm_90\n.address_size 64\n"
        + declarations
        + f".visible .entry k({', '.join(f'.param .u64 p{i}' for i in range(params))}) {{\n"
        + ".reg .b64 %rd<16>; .reg .b32 %t<16>; .reg .pred %p<4>; .reg .f32 %f<8>; .shared .align 16 .b8 s[1024];\n"
        + "mov.u32 %t0, %tid.x; mov.u32 %t1, %ctaid.x; mov.u32 %t2, %ntid.x; mad.lo.u32 %t0, %t1, %t2, %t0;\n"
        + "".join(f"ld.param.u64 %rd{i}, [p{i}];\n" for i in range(params))
        + body
        + "\nret; }"
    )


def element(register, size, index="%t0"):
    """Makes a register that holds the address of an array hold that of its element."""
    return f"mad.wide.u32 {register}, {index}, {size}, {register};\n"


def evaluate(code, out, *inputs, declarations="", **options):
    """What ``code`` leaves in %y, a thread an element, given (type, values) as %x0, %x1, ..."""
    code += f"\nst.global.{out} [%rd{len(inputs)}], %y;"
    load = ""
    for i, type_ in enumerate([*(type_ for type_, _ in inputs), out]):
        load += element(f"%rd{i}", int(type_[1:]) // 8)
        load += (
            f".reg .{type_} %x{i}; ld.global.{type_} %x{i}, [%rd{i}];\n" if i < len(inputs) else f".reg .{out} %y;\n"
        )
    arrays = [np.ascontiguousarray(values, DTYPE[type_]) for type_, values in inputs]
    y = np.zeros(len(arrays[0]), DTYPE[out])
    module(load + code, len(inputs) + 1, declarations).launch("k", 1, len(y), [*arrays, y], **options)
    return y


def signed(value, width=32):
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


# Instructions on integers: widths of the result and of the operands, and the result of unsigned Python integers.


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def of_signed(function, width=32):
    return lambda *a: function(*(signed(v, width) for v in a))


def halves(function):
    return lambda a, b: (function(a >> 16, b >> 16) & 65535) << 16 | function(a & 65535, b & 65535) & 65535


def field(value, start, length, width, sign):
    if not sign:
        return value >> start & ((1 << length) - 1)
    return signed(signed(value, width) >> start, length) if length else 0


def insert(a, b, start, length):
    mask = ((1 << length) - 1) << start
    return b & ~mask | a << start & mask


def permute(a, b, selector):
    source, out = a.to_bytes(4, "little") + b.to_bytes(4, "little"), 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        out |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << 8 * i
    return out


INTEGER = {
    "add.s32": (32, (32, 32), lambda a, b: a + b),
    "sub.s64": (64, (64, 64), lambda a, b: a - b),
    "add.s16": (16, (16, 16), lambda a, b: a + b),
    "add.sat.s32": (32, (32, 32), of_signed(lambda a, b: max(-(2**31), min(2**31 - 1, a + b)))),
    "add.s16x2": (32, (32, 32), halves(lambda a, b: a + b)),
    "add.u16x2": (32, (32, 32), halves(lambda a, b: a + b)),
    "min.s16x2": (32, (32, 32), halves(lambda a, b: min(signed(a, 16), signed(b, 16)))),
    "max.u16x2": (32, (32, 32), halves(max)),
    "mul.lo.s32": (32, (32, 32), lambda a, b: a * b),
    "mul.lo.s64": (64, (64, 64), lambda a, b: a * b),
    "mul.hi.s32": (32, (32, 32), of_signed(lambda a, b: a * b >> 32)),
    "mul.hi.u32": (32, (32, 32), lambda a, b: a * b >> 32),
    "mul.hi.s64": (64, (64, 64), of_signed(lambda a, b: a * b >> 64, 64)),
    "mul.hi.u64": (64, (64, 64), lambda a, b: a * b >> 64),
    "mul.wide.s32": (64, (32, 32), of_signed(lambda a, b: a * b)),
    "mul.wide.u32": (64, (32, 32), lambda a, b: a * b),
    "mad.lo.s32": (32, (32, 32, 32), lambda a, b, c: a * b + c),
    "mad.hi.u32": (32, (32, 32, 32), lambda a, b, c: (a * b >> 32) + c),
    "mad.wide.s32": (64, (32, 32, 64), lambda a, b, c: signed(a) * signed(b) + c),
    "div.s32": (32, (32, 32), of_signed(truncated)),
    "div.u32": (32, (32, 32), lambda a, b: a // b),
    "div.s64": (64, (64, 64), of_signed(truncated, 64)),
    "div.u64": (64, (64, 64), lambda a, b: a // b),
    "rem.s32": (32, (32, 32), of_signed(lambda a, b: a - b * truncated(a, b))),
    "rem.s64": (64, (64, 64), of_signed(lambda a, b: a - b * truncated(a, b), 64)),
    "rem.u32": (32, (32, 32), lambda a, b: a % b),
    "min.s32": (32, (32, 32), of_signed(min)),
    "max.u32": (32, (32, 32), max),
    "max.s64": (64, (64, 64), of_signed(max, 64)),
    "neg.s32": (32, (32,), lambda a: -a),
    "abs.s32": (32, (32,), of_signed(abs)),
    "and.b32": (32, (32, 32), lambda a, b: a & b),
    "or.b64": (64, (64, 64), lambda a, b: a | b),
    "xor.b16": (16, (16, 16), lambda a, b: a ^ b),
    "not.b32": (32, (32,), lambda a: ~a),
    "shl.b16": (16, (16, "amount"), lambda a, n: a << n),
    "shl.b32": (32, (32, "amount"), lambda a, n: a << n),
    "shr.u32": (32, (32, "amount"), lambda a, n: a >> n),
    "shr.s32": (32, (32, "amount"), lambda a, n: signed(a) >> n),
    "shr.s64": (64, (64, "amount"), lambda a, n: signed(a, 64) >> n),
    "shr.u64": (64, (64, "amount"), lambda a, n: a >> n),
    "shf.l.wrap.b32": (32, (32, 32, "amount"), lambda a, b, n: (b << 32 | a) << n % 32 >> 32),
    "shf.l.clamp.b32": (32, (32, 32, "amount"), lambda a, b, n: (b << 32 | a) << min(n, 32) >> 32),
    "shf.r.wrap.b32": (32, (32, 32, "amount"), lambda a, b, n: (b << 32 | a) >> n % 32),
    "shf.r.clamp.b32": (32, (32, 32, "amount"), lambda a, b, n: (b << 32 | a) >> min(n, 32)),
    "bfe.u32": (32, (32, "amount", "amount"), lambda a, p, n: field(a, p, n, 32, False)),
    "bfe.s32": (32, (32, "amount", "amount"), lambda a, p, n: field(a, p, n, 32, True)),
    "bfe.u64": (64, (64, "amount", "amount"), lambda a, p, n: field(a, p, n, 64, False)),
    "bfe.s64": (64, (64, "amount", "amount"), lambda a, p, n: field(a, p, n, 64, True)),
    "bfi.b32": (32, (32, 32, "amount", "amount"), insert),
    "prmt.b32": (32, (32, 32, 32), permute),
    "popc.b32": (32, (32,), lambda a: bin(a).count("1")),
    "popc.b64": (32, (64,), lambda a: bin(a).count("1")),
    "clz.b32": (32, (32,), lambda a: 32 - a.bit_length()),
    "clz.b64": (32, (64,), lambda a: 64 - a.bit_length()),
    "brev.b32": (32, (32,), lambda a: int(f"{a:032b}"[::-1], 2)),
    "brev.b64": (64, (64,), lambda a: int(f"{a:064b}"[::-1], 2)),
    "bfind.u32": (32, (32,), lambda a: a.bit_length() - 1),
    "bfind.s32": (32, (32,), lambda a: (a if a < 2**31 else ~a & ALL).bit_length() - 1),
    "bfind.shiftamt.u32": (32, (32,), lambda a: 32 - a.bit_length() if a else -1),
    "cvt.s64.s32": (64, (32,), signed),
    "cvt.u64.u32": (64, (32,), lambda a: a),
    "cvt.u32.u64": (32, (64,), lambda a: a),
    "cvt.s32.s8": (32, (32,), lambda a: signed(a, 8)),
    "cvt.u16.u8": (16, (32,), lambda a: a & 255),
    "cvt.u64.u16": (64, (16,), lambda a: a),
    "cvt.sat.u8.s32": (16, (32,), lambda a: min(max(signed(a), 0), 255)),
    "cvt.sat.s32.u64": (32, (64,), lambda a: min(a, 2**31 - 1)),
    "mov.b32": (32, (32,), lambda a: a),
}


def integers(numpy_rng, kind, count=128):
    if kind == "amount":
        return "b32", numpy_rng.integers(0, 80, count)
    values = numpy_rng.integers(0, 2**kind, count, dtype=f"u{kind // 8}")
    # Small numbers of both signs, and the ends of the range.
    values[: count // 4] = numpy_rng.integers(-20, 20, count // 4).astype(values.dtype)
    ends = [0, 1, 2**kind - 1, 2 ** (kind - 1), 2 ** (kind - 1) - 1]
    values[count // 4 : count // 4 + len(ends)] = numpy_rng.permutation(np.array(ends, values.dtype))
    return f"b{kind}", values


@pytest.mark.parametrize("op", INTEGER)
def test_integers(op, numpy_rng):
    width, kinds, reference = INTEGER[op]
    inputs = [integers(numpy_rng, kind) for kind in kinds]
    if op.startswith(("div", "rem")):
        divisor = inputs[1][1]
        divisor[divisor == 0] = 3
    operands = "".join(f", %x{i}" for i in range(len(inputs)))
    got = evaluate(f"{op} %y{operands};", f"b{width}", *inputs)
    columns = (values.tolist() for _, values in inputs)
    assert got.tolist() == [reference(*row) & (1 << width) - 1 for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("table", [0x00, 0xFF, 0xCA, 0xE8, 0x96, 0x1B])
def test_lop3(table, numpy_rng):
    inputs = [integers(numpy_rng, 32) for _ in range(3)]
    got = evaluate(f"lop3.b32 %y, %x0, %x1, %x2, {table};", "b32", *inputs)
    for y, a, b, c in zip(got.tolist(), *(values.tolist() for _, values in inputs), strict=True):
        index = [(a >> k & 1) * 4 + (b >> k & 1) * 2 + (c >> k & 1) for k in range(32)]
        assert y == sum((table >> i & 1) << k for k, i in enumerate(index))


def test_halves_of_registers(numpy_rng):
    (_, a), (_, b) = integers(numpy_rng, 32), integers(numpy_rng, 32)
    swapped = evaluate(
        "mov.b64 %rd8, {%x0, %x1}; mov.b64 {%t3, %t4}, %rd8; mov.b64 %y, {%t4, %t3};", "b64", ("b32", a), ("b32", b)
    )
    assert (swapped == a.astype(np.uint64) << np.uint64(32) | b).all()
    half = ".reg .b16 %h<2>; mov.b32 {%h0, %h1}, %x0; mov.b32 %y, {%h1, %h0};"
    assert (evaluate(half, "b32", ("b32", a)) == (a << np.uint32(16) | a >> np.uint32(16))).all()


# Floats.


def rounded(x, rounding="rn", bits=24, smallest=-149):
    """An exact number in a binary format with that many bits of mantissa, multiples of 2^smallest at least."""
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - bits + 1, smallest)
    rounds = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}
    return float(rounds[rounding](x / unit) * unit)


def floats(numpy_rng, count=192):
    return (numpy_rng.normal(size=count) * 2.0 ** numpy_rng.integers(-12, 12, count)).astype(np.float32)


def exact(values):
    return [Fraction(float(v)) for v in values]


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
def test_float32_rounds_once(rounding, numpy_rng):
    a, b, c = (floats(numpy_rng) for _ in range(3))
    # Cancellation, which shows whether fma rounds the product.
    c[:40] = (-a[:40].astype(np.float64) * b[:40]).astype(np.float32)
    # Sums that are close to halfway between two float32, closer than float64 tells.
    a[40:60], b[40:60], c[40:60] = 1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60
    c[50:60] *= -1
    inputs = ("f32", a), ("f32", b), ("f32", c)
    operations = {
        f"fma.{rounding}.f32 %y, %x0, %x1, %x2;": lambda x, y, z: x * y + z,
        f"add.{rounding}.f32 %y, %x0, %x2;": lambda x, y, z: x + z,
        f"sub.{rounding}.f32 %y, %x0, %x2;": lambda x, y, z: x - z,
        f"mul.{rounding}.f32 %y, %x0, %x1;": lambda x, y, z: x * y,
        f"div.{rounding}.f32 %y, %x0, %x1;": lambda x, y, z: x / y,
    }
    for code, reference in operations.items():
        got = evaluate(code, "f32", *inputs)
        want = [rounded(reference(*row), rounding) for row in zip(exact(a), exact(b), exact(c), strict=True)]
        assert got.tolist() == want, code
    # Such a sum alone, where the result is subnormal: the product is 2^-150 (1 + 2^-46).
    a, b, c = (np.full(1, v, np.float32) for v in (8384513 * 2.0**-98, 8392705 * 2.0**-98, 2.0**-127))
    got = evaluate(f"fma.{rounding}.f32 %y, %x0, %x1, %x2;", "f32", ("f32", a), ("f32", b), ("f32", c))
    assert got.tolist() == [rounded(exact(a)[0] * exact(b)[0] + exact(c)[0], rounding)]
    _, integers_ = integers(numpy_rng, 64)
    for code, type_, values, want in (
        (f"cvt.{rounding}.f32.f64 %y, %x0;", "f64", numpy_rng.normal(size=64), exact),
        (f"cvt.{rounding}.f32.s64 %y, %x0;", "b64", integers_, lambda v: [Fraction(signed(int(i), 64)) for i in v]),
    ):
        assert evaluate(code, "f32", (type_, values)).tolist() == [rounded(x, rounding) for x in want(values)], code


def test_float64(numpy_rng):
    a, b = numpy_rng.normal(size=(2, 100))
    operations = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "min": np.minimum,
        "max": np.maximum,
    }
    for name, function in operations.items():
        rounding = ".rn" if name not in ("min", "max") else ""
        assert (evaluate(f"{name}{rounding}.f64 %y, %x0, %x1;", "f64", ("f64", a), ("f64", b)) == function(a, b)).all()
    assert (evaluate("sqrt.rn.f64 %y, %x0;", "f64", ("f64", a * a)) == np.sqrt(a * a)).all()
    got = evaluate("fma.rn.f64 %y, %x0, %x1, 0d3FF8000000000000;", "f64", ("f64", a), ("f64", b))
    np.testing.assert_allclose(got, a * b + 1.5, rtol=1e-15, atol=1e-15)


FUNCTIONS = {
    "sqrt.rn": math.sqrt,
    "rcp.rn": lambda x: 1 / x,
    "rsqrt.approx": lambda x: 1 / math.sqrt(x),
    "ex2.approx": lambda x: 2**x,
    "lg2.approx": math.log2,
    "sin.approx": math.sin,
    "cos.approx": math.cos,
    "tanh.approx": math.tanh,
    "neg": lambda x: -x,
    "abs": abs,
}


@pytest.mark.parametrize("op", FUNCTIONS)
def test_float32_functions(op, numpy_rng):
    x = np.abs(floats(numpy_rng, 64)) / 64
    x *= -1 if op == "abs" else 1
    got = evaluate(f"{op}.f32 %y, %x0;", "f32", ("f32", x))
    want = np.array([FUNCTIONS[op](float(v)) for v in x]).astype(np.float32)
    # Python's functions need not be rounded correctly.
    np.testing.assert_array_max_ulp(got, want, maxulp=0 if op.endswith("rn") else 1)


def test_special_values():
    nan, inf, tiny = np.nan, np.inf, 1e-40
    a = ("f32", [tiny, -tiny, 1, 3, -2, nan])
    ones = ("f32", np.ones(6))
    got = evaluate("mul.ftz.f32 %y, %x0, %x1;", "f32", a, ones)
    assert got[:5].tolist() == [0, 0, 1, 3, -2]
    assert np.signbit(got[1])
    assert np.isnan(got[5])
    got = evaluate("fma.rn.sat.f32 %y, %x0, %x1, 0f00000000;", "f32", a, ones)
    assert got.tolist() == [np.float32(tiny), 0, 1, 1, 0, 0]
    pair = ("f32", [1, nan, nan, -0.0]), ("f32", [2, 5, nan, 7])
    assert evaluate("min.f32 %y, %x0, %x1;", "f32", *pair).tolist()[:2] == [1, 5]
    np.testing.assert_array_equal(evaluate("max.NaN.f32 %y, %x0, %x1;", "f32", *pair), [2, nan, nan, 7])
    np.testing.assert_array_equal(evaluate("copysign.f32 %y, %x0, %x1;", "f32", *pair)[[0, 3]], [2, -7])
    kinds = {
        "finite": [1, 1, 1, 0, 0],
        "infinite": [0, 0, 0, 1, 0],
        "notanumber": [0, 0, 0, 0, 1],
        "subnormal": [0, 1, 0, 0, 0],
        "normal": [1, 0, 0, 0, 0],
        "number": [1, 1, 1, 1, 0],
    }
    for kind, want in kinds.items():
        code = f"testp.{kind}.f32 %p0, %x0; selp.b32 %y, 1, 0, %p0;"
        assert evaluate(code, "b32", ("f32", [2, tiny, 0, -inf, nan])).tolist() == want, kind


def test_comparisons():
    a = np.array([1, 2, np.nan, np.nan, 3, -0.0, np.inf], np.float32)
    b = np.array([1, 3, 1, np.nan, 2, 0.0, np.inf], np.float32)
    unordered = np.isnan(a) | np.isnan(b)
    operations = {
        **{"eq": a == b, "ne": (a != b) & ~unordered, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b},
        **{"equ": (a == b) | unordered, "neu": a != b, "ltu": (a < b) | unordered, "leu": (a <= b) | unordered},
        **{"gtu": (a > b) | unordered, "geu": (a >= b) | unordered, "num": ~unordered, "nan": unordered},
    }
    late = np.arange(7) >= 3
    combined = (
        "setp.lt.u32 %p2, %t0, 3; setp.{}.and.f32 %p0|%p1, %x0, %x1, !%p2;"
        "selp.b32 %t3, 1, 0, %p0; selp.b32 %t4, 2, 0, %p1; or.b32 %y, %t3, %t4;"
    )
    for op, want in operations.items():
        inputs = ("f32", a), ("f32", b)
        assert (
            evaluate(f"setp.{op}.f32 %p0, %x0, %x1; selp.b32 %y, 7, 3, %p0;", "b32", *inputs) == np.where(want, 7, 3)
        ).all(), op
        assert (evaluate(combined.format(op), "b32", *inputs) == (want & late) + 2 * (~want & late)).all(), op
    signs = ("b32", [1, ALL, 0, 5]), ("b32", [2, 1, 0, 2**31])
    for type_, want in (("s32", [1, 1, 0, 0]), ("u32", [1, 0, 0, 1])):
        assert evaluate(f"setp.lt.{type_} %p0, %x0, %x1; selp.b32 %y, 1, 0, %p0;", "b32", *signs).tolist() == want


def test_float_to_integer():
    x = np.array(
        [0.5, 1.5, 2.5, -0.5, -1.5, -2.7, 2.7, 3e9, -3e9, 1e20, np.nan, np.inf, -np.inf, 4e9, 5e9, -1], np.float32
    )
    roundings = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    for type_ in ("s32", "u32", "s64", "u64", "s16"):
        width = int(type_[1:])
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if type_[0] == "s" else (0, (1 << width) - 1)
        for name, function in roundings.items():
            got = evaluate(f"cvt.{name}.{type_}.f32 %y, %x0;", f"b{width}", ("f32", x))
            want = [0 if np.isnan(v) else high if v > high else low if v < low else function(float(v)) for v in x]
            assert got.tolist() == [v & (1 << width) - 1 for v in want], (name, type_)


def bf16_values(registers):
    return (np.asarray(registers).astype(np.uint32) << np.uint32(16)).view(np.float32)


def test_half_precision(numpy_rng):
    a, b = floats(numpy_rng), floats(numpy_rng)
    inputs = ("f32", a), ("f32", b)
    halves = evaluate("cvt.rn.f16x2.f32 %y, %x0, %x1;", "b32", *inputs).view(np.float16).reshape(-1, 2)
    assert (halves == np.stack([b, a], 1).astype(np.float16)).all()
    brains = bf16_values(evaluate("cvt.rn.bf16x2.f32 %y, %x0, %x1;", "b32", *inputs).view(np.uint16)).reshape(-1, 2)
    assert brains.tolist() == [
        [rounded(q, bits=8), rounded(p, bits=8)] for p, q in zip(exact(a), exact(b), strict=True)
    ]
    product = ".reg .b16 %h; cvt.rn.bf16.f32 %h, %x0; fma.rn.bf16 %h, %h, %h, %h; cvt.f32.bf16 %y, %h;"
    of_bf16 = [Fraction(rounded(v, bits=8)) for v in exact(a)]
    assert evaluate(product, "f32", inputs[0]).tolist() == [rounded(v * v + v, bits=8) for v in of_bf16]
    packed = "cvt.rn.f16x2.f32 %t3, %x1, %x0; add.f16x2 %y, %t3, %t3;"
    assert (
        evaluate(packed, "b32", *inputs).view(np.float16).reshape(-1, 2) == 2 * np.stack([a, b], 1).astype(np.float16)
    ).all()
    from_double = ".reg .b16 %h; cvt.rn.f16.f64 %h, %x0; cvt.f32.f16 %y, %h;"
    d = numpy_rng.normal(size=64)
    assert evaluate(from_double, "f32", ("f64", d)).tolist() == [rounded(v, bits=11, smallest=-24) for v in exact(d)]
    tf32 = evaluate("cvt.rna.tf32.f32 %y, %x0;", "b32", inputs[0])
    magnitude = [math.floor(abs(v) / Fraction(2) ** (math.frexp(v)[1] - 11) + Fraction(1, 2)) for v in exact(a)]
    want = [math.copysign(m * 2.0 ** (math.frexp(v)[1] - 11), v) for m, v in zip(magnitude, a.tolist(), strict=True)]
    assert tf32.view(np.float32).tolist() == want


# Control flow, functions, memory of the module.


@pytest.mark.parametrize("lanes", [32, 8192])
def test_divergent_loop_meets_again(lanes, numpy_rng):
    """Lanes leave the loop after different numbers of steps, and one instruction later run together."""
    n = numpy_rng.integers(0, 20, 64)
    code = """mov.u32 %y, 0; mov.u32 %t3, 0; setp.eq.u32 %p0, %x0, 0; @%p0 bra END;
    LOOP: add.u32 %t3, %t3, 1; mad.lo.u32 %y, %t3, %t3, %y; setp.lt.u32 %p1, %t3, %x0; @%p1 bra LOOP;
    END: activemask.b32 %t4; setp.ne.u32 %p0, %t4, 0xffffffff; @%p0 add.u32 %y, %y, 1000000;"""
    assert evaluate(code, "b32", ("b32", n), lanes=lanes).tolist() == [int(k * (k + 1) * (2 * k + 1) // 6) for k in n]


def test_branches_and_scopes(numpy_rng):
    _, x = integers(numpy_rng, 32)
    code = """setp.lt.s32 %p0, %x0, 0; mov.u32 %y, 5;
    { .reg .b32 %t3; .reg.pred q; mov.u32 %t3, 9; setp.eq.u32 q, %t3, 9; @!%p0 bra L; @q add.u32 %y, %y, %t3; L: }
    @%p0 add.u32 %y, %y, 1; and.b32 %t3, %x0, 3;
    TARGETS: .branchtargets A, B, C, A;
    brx.idx %t3, TARGETS;
    A: add.u32 %y, %y, 100; bra.uni END;
    B: add.u32 %y, %y, 200;
    C: add.u32 %y, %y, 400;
    END:"""
    assert (evaluate(code, "b32", ("b32", x)) == np.where(x >> 31, 15, 5) + np.array([100, 600, 400, 100])[x & 3]).all()


def test_functions(numpy_rng):
    """Only some lanes call, from two places, a function that calls another one."""
    functions = """
    .func (.param .b32 r) square(.param .b32 a) { .reg .b32 %a; ld.param.b32 %a, [a]; mul.lo.u32 %a, %a, %a;
        st.param.b32 [r], %a; ret; }
    .func (.param .b32 r) fourth(.param .b32 a) { .reg .b32 %a; ld.param.b32 %a, [a];
        { .param .b32 in; .param .b32 out; st.param.b32 [in], %a; call.uni (out), square, (in);
        ld.param.b32 %a, [out]; }
        { .param .b32 in; .param .b32 out; st.param.b32 [in], %a; call.uni (out), square, (in);
        ld.param.b32 %a, [out]; }
        st.param.b32 [r], %a; ret; }
    """
    code = """mov.b32 %y, %x0; and.b32 %t3, %x0, 1; setp.eq.u32 %p0, %t3, 0; @%p0 bra END;
    { .param .b32 in; .param .b32 out; st.param.b32 [in], %x0; call.uni (out), fourth, (in); ld.param.b32 %y, [out]; }
    END:"""
    _, x = integers(numpy_rng, 32)
    assert (evaluate(code, "b32", ("b32", x), declarations=functions) == np.where(x & 1, x**4, x)).all()


def test_variables_of_the_module(numpy_rng):
    declarations = """.global .align 4 .u32 table[4] = {1, 0x10, 3, 4}; .const .align 8 .f64 c = 0d3FF8000000000000;
    .global .align 8 .u64 pointers[2] = {table, generic(table)+8}; .global .align 1 .b8 bytes[4] = {255, 1};
    .global .align 4 .u32 counter;\n"""
    body = """mov.u64 %rd5, pointers; ld.global.u64 %rd6, [%rd5+8]; ld.global.u32 %t3, [%rd6];
    ld.global.u32 %t4, [table+4]; add.u32 %t3, %t3, %t4; ld.global.s8 %t4, [bytes]; add.s32 %t3, %t3, %t4;
    .reg .f64 %d; ld.const.f64 %d, [c]; cvt.rzi.s32.f64 %t4, %d; add.s32 %t3, %t3, %t4;
    st.global.u32 [%rd0], %t3; red.global.add.u32 [counter], 7;"""
    y, kernel = np.zeros(1, np.int32), module(body, declarations=declarations)
    for _ in range(2):
        kernel.launch("k", 1, 1, [y])
    assert y[0] == 3 + 16 - 1 + 1
    assert kernel.variable("counter", np.uint32)[0] == 14


def test_arguments(numpy_rng):
    """A struct by value with a pointer, scalars of each size; what does not fit is refused."""
    text = """.version 8.0\n.target sm_80\n.address_size 64
    .visible .entry k(.param .align 8 .b8 p[24], .param .u16 q, .param .f32 r) {
    .reg .b64 %rd<4>; .reg .b32 %t<4>; .reg .f32 %f<4>;
    ld.param.u64 %rd0, [p]; ld.param.s16 %t0, [p+10]; ld.param.u16 %t1, [q]; ld.param.f32 %f0, [r];
    ld.param.f64 %rd1, [p+16];
    add.s32 %t0, %t0, %t1; st.global.u32 [%rd0], %t0; st.global.f32 [%rd0+4], %f0;
    st.global.f64 [%rd0+8], %rd1; ret; }"""
    kernel, y = ptxemu.Module(text), np.zeros(16, np.uint8)
    struct_ = struct.pack("<Qhh4xd", kernel.register(y), 5, -3, 0.1)
    kernel.launch("k", 1, 1, [struct_, 40, np.float32(0.3)])
    assert struct.unpack("<ifd", y.tobytes()) == (37, np.float32(0.3), 0.1)
    for args, message in (
        ([struct_, 40], "takes 3 arguments, got 2"),
        ([struct_[:-1], 40, np.float32(1)], "argument 0 of k has 24 bytes, got 23"),
        ([struct_, 40, np.float64(1)], "argument 2 of k has 4 bytes, got 8"),
        ([struct_, 40, 1.0], "got float"),
    ):
        with pytest.raises(ptxemu.PtxError, match=message):
            kernel.launch("k", 1, 1, args)
    with pytest.raises(ptxemu.PtxError, match="takes from 1 to 1024 threads"):
        kernel.launch("k", 1, 1025, [struct_, 40, np.float32(1)])
    with pytest.raises(ptxemu.PtxError, match="bytes of shared memory"):
        kernel.launch("k", 1, 1, [struct_, 40, np.float32(1)], dynamic_shared=1 << 18)
    with pytest.raises(ptxemu.PtxError, match=r"no kernel 'other'; kernels: \['k'\]"):
        kernel.launch("other", 1, 1, [])
    with pytest.raises(ValueError, match="C-contiguous"):
        module("").launch("k", 1, 1, [np.zeros((4, 4)).T])


def test_indices_of_blocks_and_threads():
    """Also where the blocks of a grid do not fit one batch."""
    body = """mov.u32 %t3, %tid.y; mov.u32 %t4, %ntid.x; mad.lo.u32 %t3, %t3, %t4, %tid.x; mov.u32 %t4, %ctaid.y;
    mov.u32 %t5, %nctaid.x; mad.lo.u32 %t4, %t4, %t5, %ctaid.x; mad.lo.u32 %t3, %t4, 24, %t3;
    mad.wide.u32 %rd0, %t3, 16, %rd0; mov.u32 %t6, %laneid; mov.u32 %t7, %warpid;
    st.global.v4.u32 [%rd0], {%t4, %t3, %t6, %t7};"""
    y = np.zeros((5 * 3, 24, 4), np.uint32)
    module(body).launch("k", (5, 3), (8, 3), [y], lanes=64)
    block, thread = np.mgrid[0:15, 0:24]
    assert (y == np.stack([block, 24 * block + thread, thread, 0 * thread], 2)).all()


def test_launches_of_one_shape():
    """They share registers, of which each begins with zeros, and none of the memory, the arguments and the counts."""
    body = element("%rd0", 4) + "add.u32 %t5, %t5, %t0; st.global.u32 [%rd0], %t5; st.shared.u32 [s], 7;"
    kernel, counts = module(body), []
    for count in (False, True, True):
        y = np.zeros(32, np.uint32)
        counts.append(kernel.launch("k", 1, 32, [y], count=count))
        assert (y == LANE).all()
    machines = kernel.programs["k"].machines
    assert len(machines) == 1
    alone = module(body).launch("k", 1, 32, [np.zeros(32, np.uint32)], count=True)
    assert [str(c) for c in counts] == ["None", str(alone), str(alone)]
    with pytest.raises(ptxemu.MemoryFault, match="out-of-bounds"):
        kernel.launch("k", 1, 32, [None])
    assert not machines  # where that one stopped in the middle
    for blocks in range(1, 9):
        kernel.launch("k", blocks, 32, [np.zeros(32 * blocks, np.uint32)])
    assert [grid[0] for _, grid, *_ in machines] == [5, 6, 7, 8]


def test_pointers_of_every_space(numpy_rng):
    """A generic load follows a pointer into global, shared or local memory, as the lane has it."""
    body = """.local .align 8 .b8 stack[16]; mov.u64 %rd2, stack; cvta.local.u64 %rd2, %rd2;
    st.local.v2.u32 [stack+8], {%t0, 7};
    mov.u64 %rd3, s; cvta.shared.u64 %rd3, %rd3; mad.wide.u32 %rd3, %t0, 4, %rd3; mul.lo.u32 %t3, %t0, 100;
    st.u32 [%rd3], %t3;
    rem.u32 %t4, %t0, 3; setp.eq.u32 %p0, %t4, 0; setp.eq.u32 %p1, %t4, 1; add.u64 %rd4, %rd2, 8;
    selp.b64 %rd4, %rd3, %rd4, %p0; selp.b64 %rd4, %rd0, %rd4, %p1; ld.u32 %t5, [%rd4];
    mad.wide.u32 %rd1, %t0, 4, %rd1; st.global.u32 [%rd1], %t5;"""
    x, y, t = np.array([12345], np.uint32), np.zeros(64, np.uint32), np.arange(64)
    module(body, 2).launch("k", 1, 64, [x, y])
    assert (y == np.choose(t % 3, [100 * t, 12345, t])).all()


def test_unknown_text():
    with pytest.raises(ptxemu.ParseError, match=r"PTX line 1: unexpected '.bogus'"):
        ptxemu.Module('.bogus "x" {}')
    with pytest.raises(ptxemu.ParseError, match="end of the text"):
        ptxemu.Module(".visible .entry k() { .reg .b32 %r; mov.u32 %r,")
    with pytest.raises(
        ptxemu.UnsupportedInstruction, match=r"PTX line \d+: `wgmma.*wgmma.fence.sync.aligned is not supported"
    ):
        module("wgmma.fence.sync.aligned;").launch("k", 1, 32, [None])
    # Only what is executed counts.
    module("bra END;\nwgmma.fence.sync.aligned;\nEND:").launch("k", 1, 32, [None])


def test_traps():
    with pytest.raises(ptxemu.DeviceAssert, match=r"trap was executed; block \(0, 0, 0\), thread \(40, 0, 0\)"):
        module("setp.eq.u32 %p0, %t0, 40; @%p0 trap;").launch("k", 1, 64, [None])


# Warps.


def shuffled(mode, lane, offset, control):
    """The lane that is read and whether that is in range, by the pseudocode of the PTX ISA."""
    clamp, segment = control & 31, control >> 8 & 31
    last, first = (lane & segment) | (clamp & ~segment & 31), lane & segment
    source = {
        "up": lane - offset,
        "down": lane + offset,
        "bfly": lane ^ offset,
        "idx": first | (offset & ~segment & 31),
    }[mode]
    inside = source >= last if mode == "up" else source <= last
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode, numpy_rng):
    x = numpy_rng.integers(0, 2**31, 64, dtype=np.uint32)
    for width in (32, 8):
        control = (32 - width) << 8 | (0 if mode == "up" else 31)
        for offset in (0, 1, 3, 5, 16):
            code = f"shfl.sync.{mode}.b32 %y|%p0, %x0, {offset}, {control}, -1; @%p0 or.b32 %y, %y, 0x80000000;"
            want = [shuffled(mode, lane, offset, control) for lane in LANE.tolist()]
            value = np.concatenate([x[warp + np.array([v for v, _ in want])] for warp in (0, 32)])
            inside = np.tile([p for _, p in want], 2)
            assert (evaluate(code, "b32", ("b32", x)) == value + (inside.astype(np.uint32) << 31)).all()
    # An offset of each lane's own.
    code = f"and.b32 %t3, %x0, 31; shfl.sync.{mode}.b32 %y, %x0, %t3, {0 if mode == 'up' else 31}, -1;"
    lanes = [shuffled(mode, lane, int(x[lane]) & 31, 0 if mode == "up" else 31)[0] for lane in LANE.tolist()]
    assert (evaluate(code, "b32", ("b32", x[:32])) == x[lanes]).all()


def test_shuffle_by_part_of_a_warp():
    """A lane that takes no part has nothing to give: what is read from it is a NaN."""
    code = """mov.u32 %y, %x0; setp.ge.u32 %p0, %t0, 20; @%p0 bra END; shfl.sync.down.b32 %y, %x0, 4, 31, 0xfffff;
    END:"""
    assert evaluate(code, "b32", ("b32", LANE)).tolist() == [*range(4, 20), *[ALL] * 4, *range(20, 32)]
    exited = "setp.ge.u32 %p0, %t0, 20; @%p0 exit; shfl.sync.down.b32 %y, %x0, 4, 31, -1;"
    assert evaluate(exited, "b32", ("b32", LANE)).tolist() == [*range(4, 20), *[ALL] * 4, *[0] * 12]
    outside = "shfl.sync.idx.b32 %y, %x0, 0, 31, 0xffff;"
    with pytest.raises(ptxemu.DivergenceError, match=r"member mask.*thread \(16, 0, 0\)"):
        evaluate(outside, "b32", ("b32", LANE))


def test_shuffle_without_a_lane():
    code = "setp.lt.u32 %p0, %t0, 13; mov.u32 %y, 0; @%p0 bra A;\nshfl.sync.idx.b32 %y, %t0, 0, 31, -1;\nA: bar.sync 0;"
    with pytest.raises(ptxemu.DeadlockError, match=r"(?s)13 threads at barrier 0.*19 threads at PTX line \d+: `shfl"):
        evaluate(code, "b32", ("b32", LANE))


def test_warp_operations_wait_for_their_lanes():
    """shfl.sync that parts of a warp reach at different times, and bar.warp.sync in two places."""
    code = """setp.lt.u32 %p0, %t0, 13; mov.u32 %t3, 0; @%p0 bra A;
    L: add.u32 %t3, %t3, 1; setp.lt.u32 %p1, %t3, %t0; @%p1 bra L;
    bar.warp.sync 0xffffffff; bra J;
    A: add.u32 %t3, %t3, 100; bar.warp.sync 0xffffffff;
    J: shfl.sync.bfly.b32 %y, %t3, 31, 31, -1;"""
    t = np.arange(64)
    assert (evaluate(code, "b32", ("b32", t)) == np.where(t < 13, 100, t)[t ^ 31]).all()
    # Lanes that have exited are not waited for.
    code = """and.b32 %t3, %t0, 31; setp.ge.u32 %p0, %t3, 20; @%p0 ret; setp.ge.u32 %p1, %t0, 32;
    mov.u32 %y, 7; @%p1 bra W;
    bar.warp.sync 0xffffffff; shfl.sync.idx.b32 %y, %t0, 3, 31, -1;
    W: bar.sync 0; add.u32 %y, %y, 1;"""
    assert (evaluate(code, "b32", ("b32", t)) == np.where(t % 32 >= 20, 0, np.where(t < 32, 4, 8))).all()


def test_votes(numpy_rng):
    x = numpy_rng.integers(0, 4, 96).astype(np.uint32)
    x[32:64] |= 1
    odd = (x & 1).reshape(3, 32)
    ballots = (odd << LANE.astype(np.uint32)).sum(1)
    predicate = "and.b32 %t3, %x0, 1; setp.eq.u32 %p0, %t3, 1; "
    got = evaluate(predicate + "vote.sync.ballot.b32 %y, %p0, -1;", "b32", ("b32", x))
    assert (got == ballots.repeat(32)).all()
    assert (
        evaluate(predicate + "vote.sync.ballot.b32 %y, !%p0, -1;", "b32", ("b32", x)) == ALL - ballots.repeat(32)
    ).all()
    for mode, want in (("all", odd.all(1)), ("any", odd.any(1)), ("uni", odd.all(1) | ~odd.any(1))):
        got = evaluate(predicate + f"vote.sync.{mode}.pred %p1, %p0, -1; selp.b32 %y, 1, 0, %p1;", "b32", ("b32", x))
        assert (got == want.repeat(32)).all(), mode
    got = evaluate(predicate + "mov.u32 %y, 0; @%p0 activemask.b32 %y;", "b32", ("b32", x))
    assert (got == np.where(x & 1, ballots.repeat(32), 0)).all()


# Barriers of blocks.

SHARED_WORD = "mul.lo.u32 %t3, %t0, 4; mov.u32 %t4, s; add.u32 %t3, %t3, %t4;\n"


def test_named_barriers():
    """Two warps produce, two consume: arrive does not wait, sync does."""
    body = (
        SHARED_WORD
        + element("%rd0", 4)
        + """setp.ge.u32 %p0, %t0, 64; @%p0 bra CONSUMER;
    add.u32 %t5, %t0, 1000; st.shared.u32 [%t3], %t5; bar.arrive 1, 128; bra END;
    CONSUMER: bar.sync 1, 128; ld.shared.u32 %t5, [%t3+-256]; st.global.u32 [%rd0], %t5;
    END:"""
    )
    y = np.zeros(128, np.uint32)
    module(body).launch("k", 1, 128, [y], check_races=True, check_uninitialised=True)
    assert (y[64:] == 1000 + np.arange(64)).all()


def test_named_barriers_by_number():
    """Each two warps have one of their own, whose number is in a register, and the last two end before."""
    body = SHARED_WORD + element("%rd0", 4)
    body += """shr.u32 %t5, %t0, 6; setp.eq.u32 %p0, %t5, 3; @%p0 bra END; add.u32 %t5, %t5, 1; xor.b32 %t0, %t0, 32;
    st.shared.u32 [%t3], %t0; bar.sync %t5, 64; xor.b32 %t3, %t3, 128; ld.shared.u32 %t5, [%t3];
    st.global.u32 [%rd0], %t5;
    END:"""
    y = np.zeros(256, np.uint32)
    module(body).launch("k", 1, 256, [y], check_races=True, check_uninitialised=True)
    assert (y == np.where(np.arange(256) < 192, np.arange(256), 0)).all()
    with pytest.raises(ptxemu.DeadlockError, match=r"(?s)32 threads at barrier 2"):
        module("shr.u32 %t5, %t0, 5; bar.sync %t5, 64;").launch("k", 1, 96, [None])


def test_deadlock():
    with pytest.raises(ptxemu.DeadlockError, match=r"(?s)32 threads wait for ever.*32 threads at barrier 1"):
        module("setp.lt.u32 %p0, %t0, 32; @%p0 bar.sync 1, 64;").launch("k", 1, 64, [None])


@pytest.mark.parametrize("bit", [1, 32])
def test_barriers_in_both_branches(bit):
    """Whole warps may wait at different instructions for one barrier, the lanes of a warp may not."""
    kernel = module(f"""and.b32 %t3, %t0, {bit}; setp.ne.u32 %p0, %t3, 0; @%p0 bra OTHER;
    bar.sync 0; bra END;
    OTHER: bar.sync 0;
    END:""")
    if bit == 32:
        kernel.launch("k", 2, 64, [None])
        return
    with pytest.raises(
        ptxemu.DivergenceError,
        match=r"different barrier instructions; block.* thread \(1, 0, 0\); other: block.* thread \(0, 0, 0\)",
    ):
        kernel.launch("k", 2, 64, [None])


def test_barrier_that_lanes_reach_one_after_the_other():
    """The lowest pc runs first, so the first lanes wait when the others are on a way that lies behind the barrier."""
    body = (
        SHARED_WORD
        + """and.b32 %t5, %t0, 1; setp.ne.u32 %p0, %t5, 0; @%p0 bra DETOUR;
    JOIN: bar.sync 0; xor.b32 %t5, %t0, 1; mad.lo.u32 %t4, %t5, 4, %t4; ld.shared.u32 %t5, [%t4];
    mad.wide.u32 %rd0, %t0, 4, %rd0; st.global.u32 [%rd0], %t5; bra END;
    DETOUR: st.shared.u32 [%t3], %t0; bra JOIN;
    END:"""
    )
    y = np.zeros(64, np.uint32)
    module(body).launch("k", 1, 64, [y], check_races=True)
    assert (y == np.where(np.arange(64) % 2, 0, np.arange(64) + 1)).all()


def test_barrier_for_a_part_of_a_warp():
    with pytest.raises(ptxemu.PtxError, match="barrier 1 for 40 threads: expected whole warps"):
        module("setp.lt.u32 %p0, %t0, 40; @%p0 bar.sync 1, 40;").launch("k", 1, 64, [None])


def test_exited_threads_do_not_count():
    body = (
        SHARED_WORD
        + element("%rd0", 4)
        + """setp.ge.u32 %p0, %t0, 70; @%p0 ret; st.shared.u32 [%t3], %t0; bar.sync 0;
    mov.u32 %t5, 69; sub.u32 %t5, %t5, %t0; mad.lo.u32 %t4, %t5, 4, %t4; ld.shared.u32 %t5, [%t4];
    st.global.u32 [%rd0], %t5;"""
    )
    y = np.full(128, 7, np.uint32)
    module(body).launch("k", 1, 128, [y], check_races=True)
    assert y.tolist() == [*range(69, -1, -1), *[7] * 58]


# Checks of memory.

STORE = element("%rd0", 4) + "st.global.u32 [%rd0{}], %t0;"


@pytest.mark.parametrize(("offset", "thread"), [("+4", 127), ("+-4", 0), ("+100000", 0), ("+-100000", 0)])
def test_out_of_bounds(offset, thread):
    """Also where the array fills its share of the address space, and others are on both sides of it."""
    before, y, after = np.zeros((3, 128), np.uint32)
    kernel = module(STORE.format(offset), 2)
    kernel.register(before)
    where = rf"block \({thread // 64}, 0, 0\), thread \({thread % 64}, 0, 0\)"
    message = rf"PTX line \d+: `.*st.global.u32.*`: out-of-bounds.*4 bytes.*; {where}"
    with pytest.raises(ptxemu.MemoryFault, match=message):
        kernel.launch("k", 2, 64, [y, after])
    assert not before.any()
    assert not after.any()


def test_out_of_bounds_of_every_space():
    for body, args, message in (
        (
            element("%rd0", 16) + "ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd0];",
            [np.zeros(4 * 32 - 1, np.float32)],
            r"16 bytes.*thread \(31",
        ),
        ("ld.global.u32 %t3, [%rd0];", [None], "out-of-bounds access to global memory: 4 bytes at address 0x0"),
        (
            SHARED_WORD + "st.shared.u32 [%t3+900], %t0;",
            [None],
            r"shared memory: 4 bytes at offset 1024 of 1024; .*thread \(31",
        ),
        (".local .b8 stack[8]; st.local.u32 [stack+8], %t0;", [None], "local memory: 4 bytes at offset 8 of 8"),
        (
            ".local .b8 stack[8]; mov.u64 %rd1, stack; cvta.local.u64 %rd1, %rd1; ld.u32 %t3, [%rd1+-4];",
            [None],
            "out-of-bounds",
        ),
    ):
        with pytest.raises(ptxemu.MemoryFault, match=message):
            module(body).launch("k", 1, 32, args)


def test_misaligned():
    with pytest.raises(ptxemu.MemoryFault, match=r"misaligned 4-byte access to global.*thread \(0, 0, 0\)"):
        module(STORE.format("+2")).launch("k", 1, 32, [np.zeros(64, np.uint32)])
    body = SHARED_WORD + "ld.shared.v2.u32 {%t5, %t6}, [%t3];"
    with pytest.raises(ptxemu.MemoryFault, match=r"misaligned 8-byte access to shared.*thread \(1, 0, 0\)"):
        module(body).launch("k", 1, 32, [None])


def test_read_only():
    y = np.zeros(32, np.uint32)
    y.flags.writeable = False
    module(element("%rd0", 4) + "ld.global.u32 %t3, [%rd0];").launch("k", 1, 32, [y])
    with pytest.raises(ptxemu.MemoryFault, match="write to read-only buffer 'argument 0'"):
        module(STORE.format("")).launch("k", 1, 32, [y])


def test_uninitialised():
    body = SHARED_WORD + "setp.lt.u32 %p0, {}; @%p0 st.shared.u32 [%t3], %t0; bar.sync 0; ld.shared.u32 %t5, [%t3];"
    module(body.format("%t0, 64")).launch("k", 1, 64, [None], check_uninitialised=True)
    with pytest.raises(ptxemu.UninitialisedRead, match=r"offset 200; block \(0, 0, 0\), thread \(50, 0, 0\)"):
        module(body.format("%t0, 50")).launch("k", 1, 64, [None], check_uninitialised=True)
    # What another block wrote there does not count, though it ran before.
    one_word = "setp.lt.u32 %p0, %t1, 2; @%p0 st.shared.u32 [s], %t0; ld.shared.u32 %t5, [s];"
    for lanes in (32, 64, 8192):
        with pytest.raises(ptxemu.UninitialisedRead, match=r"offset 0; block \(2, 0, 0\)"):
            module(one_word).launch("k", 4, 32, [None], check_uninitialised=True, lanes=lanes)


def test_freed():
    """A pointer that a kernel kept is no good after the launch, even if as much is passed to the next."""
    declarations = ".global .align 8 .u64 kept;\n"
    body = """setp.ne.u64 %p0, %rd1, 0; @%p0 bra USE; st.global.u64 [kept], %rd0; bra END;
    USE: ld.global.u64 %rd2, [kept]; ld.global.u32 %t3, [%rd2+8];
    END:"""
    kernel, x = module(body, 2, declarations), np.zeros(32, np.uint32)
    kernel.launch("k", 1, 1, [x, None])
    with pytest.raises(ptxemu.MemoryFault, match="use of freed memory: 4 bytes at offset 8 of 'argument 0'"):
        kernel.launch("k", 1, 1, [x, 1])
    use = module("ld.global.u32 %t3, [%rd0];")
    address = use.register(x)
    use.launch("k", 1, 1, [address])
    use.free(address)
    with pytest.raises(ptxemu.MemoryFault, match="use of freed memory"):
        use.launch("k", 1, 1, [address])
    with pytest.raises(ValueError, match="no buffer starts at"):
        use.free(address)


def test_address_of_the_callers():
    """Between others, and again after it was freed."""
    copy = module("ld.global.u32 %t3, [%rd0+4]; st.global.u32 [%rd1], %t3;", 2)
    low, high, out = (np.full(2, n, np.uint32) for n in (5, 7, 0))
    for address in (1 << 46, (1 << 45) + 64, 1 << 46):
        others = [copy.register(low), copy.register(low, 1 << 47)]
        assert copy.register(high, address) == address
        copy.launch("k", 1, 1, [address, out])
        assert out[0] == 7
        with pytest.raises(ptxemu.MemoryFault, match="out-of-bounds"):
            copy.launch("k", 1, 1, [address + 4, out])
        for place in (*others, address):
            copy.free(place)


# Races.

FIRST_WARP = "setp.lt.u32 %p0, %t0, 32;"
AFTER_WRITE = "{} not ordered after a write"
EXCHANGE = (
    SHARED_WORD
    + element("%rd0", 4)
    + """st.shared.u32 [%t3], %t0; {} xor.b32 %t5, %t0, {};
mad.lo.u32 %t4, %t5, 4, %t4; ld.shared.u32 %t5, [%t4]; {} st.shared.u32 [%t3], %t5; st.global.u32 [%rd0], %t5;"""
)
BLOCK, WARP = "bar.sync 0;", "bar.warp.sync 0xffffffff;"


@pytest.mark.parametrize(
    ("first", "partner", "second", "message"),
    [
        (BLOCK, 63, BLOCK, None),
        (WARP, 1, WARP, None),
        (BLOCK, 1, WARP, None),
        ("", 63, BLOCK, "read not ordered after a write"),
        (WARP, 63, BLOCK, "read not ordered after a write"),
        ("", 1, BLOCK, "read not ordered after a write"),
        (BLOCK, 63, "", "write not ordered after a read"),
        (BLOCK, 63, WARP, "write not ordered after a read"),
        (BLOCK, 1, "", "write not ordered after a read"),
    ],
)  # fmt: skip
def test_races(first, partner, second, message):
    """Threads write a word each, read their partner's and write again."""
    kernel, y = module(EXCHANGE.format(first, partner, second)), np.zeros(64, np.uint32)
    if message is None:
        kernel.launch("k", 1, 64, [y], check_races=True)
        assert (y == np.arange(64) ^ partner).all()
        return
    kernel.launch("k", 1, 64, [y])
    where = r"block \(0, 0, 0\), thread \(\d+, 0, 0\)"
    with pytest.raises(ptxemu.RaceError, match=rf"shared-memory race: {message}; {where}; other: {where}"):
        kernel.launch("k", 1, 64, [y], check_races=True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.shared.u32 [s], %t0;", "two threads write different values in one instruction"),
        ("st.shared.u32 [s], 7;", None),
        (FIRST_WARP + "@%p0 atom.shared.add.u32 %t3, [s], %t0; @!%p0 red.shared.add.u32 [s], %t0;", None),
        (
            FIRST_WARP + "@%p0 atom.shared.add.u32 %t3, [s], %t0; @!%p0 st.shared.u32 [s], 7;",
            AFTER_WRITE.format("write"),
        ),
        ("red.shared.add.u32 [s], %t0; ld.shared.u32 %t3, [s];", AFTER_WRITE.format("read")),
        ("red.shared.add.u32 [s], %t0; bar.sync 0; ld.shared.u32 %t3, [s];", None),
        (FIRST_WARP + "@%p0 st.shared.u32 [s], 1; @!%p0 st.shared.u32 [s], 2;", AFTER_WRITE.format("write")),
        ("cvt.u16.u32 %h, %t0; mov.u32 %t3, s; add.u32 %t3, %t3, %t0; st.shared.u8 [%t3], %h;", None),
        (
            SHARED_WORD + "cp.async.ca.shared.global [%t3], [%rd0], 4; ld.shared.u32 %t4, [s];",
            AFTER_WRITE.format("read"),
        ),
    ],
)
def test_conflicts_in_one_word(body, message):
    kernel, x = module(".reg .b16 %h; " + body), np.ones(1, np.uint32)
    if message is None:
        kernel.launch("k", 3, 64, [x], check_races=True)
        return
    with pytest.raises(ptxemu.RaceError, match=message):
        kernel.launch("k", 3, 64, [x], check_races=True)


# Atomics and asynchronous copies.

ATOMICS = {
    "add": lambda memory, value: memory + value,
    "min": min,
    "max": max,
    "and": lambda memory, value: memory & value,
    "or": lambda memory, value: memory | value,
    "xor": lambda memory, value: memory ^ value,
    "exch": lambda memory, value: value,
    "inc": lambda memory, value: 0 if memory >= value else memory + 1,
    "dec": lambda memory, value: value if memory == 0 or memory > value else memory - 1,
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("op", ATOMICS)
def test_atomics(op, space, numpy_rng):
    """One after the other, in some order, which is that of the lanes here; each gets the value before its own."""
    target, value = numpy_rng.integers(0, 5, 96), numpy_rng.integers(0, 12, 96)
    memory = numpy_rng.integers(0, 12, 5).astype(np.uint32)
    body = element("%rd1", 4) + element("%rd2", 4) + element("%rd3", 4)
    body += "ld.global.u32 %t3, [%rd1]; ld.global.u32 %t4, [%rd2]; mul.wide.u32 %rd4, %t3, 4;"
    if space == "shared":
        body += """setp.lt.u32 %p0, %t0, 5; mad.wide.u32 %rd7, %t0, 4, %rd0; mov.u64 %rd5, s;
        mad.wide.u32 %rd6, %t0, 4, %rd5;
        @%p0 ld.global.u32 %t6, [%rd7]; @%p0 st.shared.u32 [%rd6], %t6; bar.sync 0; add.u64 %rd4, %rd4, %rd5;"""
    else:
        body += "add.u64 %rd4, %rd4, %rd0;"
    type_ = "b32" if op in ("and", "or", "xor", "exch") else "u32"
    body += f"atom.{space}.{op}.{type_} %t5, [%rd4], %t4; st.global.u32 [%rd3], %t5;"
    if space == "shared":
        body += "bar.sync 0; @%p0 ld.shared.u32 %t6, [%rd6]; @%p0 st.global.u32 [%rd7], %t6;"
    want, olds = memory.tolist(), []
    for place, operand in zip(target.tolist(), value.tolist(), strict=True):
        olds.append(want[place])
        want[place] = ATOMICS[op](want[place], operand)
    y = np.zeros(96, np.uint32)
    module(body, 4).launch("k", 1, 96, [memory, target.astype(np.uint32), value.astype(np.uint32), y], check_races=True)
    assert memory.tolist() == want
    assert y.tolist() == olds


def test_atomics_on_floats(numpy_rng):
    x = numpy_rng.integers(-8, 8, (64, 4)).astype(np.float32)
    body = """mad.wide.u32 %rd3, %t0, 16, %rd0; ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd3];
    red.global.add.v4.f32 [%rd1], {%f0, %f1, %f2, %f3};
    cvt.rn.f16x2.f32 %t3, %f1, %f0; red.global.add.noftz.f16x2 [%rd2], %t3;"""
    sums, halves = np.zeros(4, np.float32), np.zeros(2, np.float16)
    module(body, 3).launch("k", 2, 32, [x, sums, halves])
    assert (sums == x.sum(0)).all()
    assert (halves == x[:, :2].sum(0)).all()


def test_compare_and_swap():
    """A product by a loop, and a lock that lanes of one warp spin on."""
    body = """LOOP: ld.global.u32 %t3, [%rd0]; mul.lo.u32 %t4, %t3, 3; atom.global.cas.b32 %t5, [%rd0], %t3, %t4;
    setp.ne.u32 %p0, %t5, %t3; @%p0 bra LOOP;
    LOCK: atom.global.cas.b32 %t5, [%rd0+4], 0, 1; setp.ne.u32 %p0, %t5, 0; @%p0 bra LOCK;
    ld.volatile.global.u32 %t6, [%rd0+8]; add.u32 %t6, %t6, %t0; st.volatile.global.u32 [%rd0+8], %t6;
    membar.gl; atom.global.exch.b32 %t5, [%rd0+4], 0;"""
    y = np.array([1, 0, 0], np.uint32)
    module(body).launch("k", 2, 48, [y])
    assert y.tolist() == [pow(3, 96, 1 << 32), 0, sum(range(96))]


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies(size, numpy_rng):
    """Odd lanes copy all, even ones three bytes and zeros."""
    x, y = numpy_rng.integers(1, 256, (32, size)).astype(np.uint8), np.zeros((32, size), np.uint8)
    body = (
        f"""mov.u32 %t3, s; mad.lo.u32 %t3, %t0, {size}, %t3; and.b32 %t4, %t0, 1; setp.eq.u32 %p0, %t4, 1;
    selp.b32 %t4, {size}, 3, %p0;"""
        + element("%rd0", size)
        + element("%rd1", size)
    )
    body += f"cp.async.ca.shared.global [%t3], [%rd0], {size}, %t4;\n"
    body += "cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;\n"
    body += "".join(f"ld.shared.u32 %t5, [%t3+{k}]; st.global.u32 [%rd1+{k}], %t5;\n" for k in range(0, size, 4))
    module(body, 2).launch("k", 1, 32, [x, y], check_races=True, check_uninitialised=True)
    x[::2, 3:] = 0
    assert (y == x).all()


# Matrices.


@pytest.mark.parametrize(
    ("shape", "out", "type_"),
    [
        ((16, 8, 16), "f32", "f16"),
        ((16, 8, 8), "f32", "bf16"),
        ((16, 8, 16), "f16", "f16"),
        ((16, 8, 8), "f32", "tf32"),
        ((8, 8, 4), "f64", "f64"),
        ((16, 8, 8), "f64", "f64"),
        ((16, 8, 32), "s32", "s8"),
    ],
)
def test_mma(shape, out, type_, numpy_rng):
    """Fragments are laid out element by element, by the figures of the PTX ISA."""
    m, n, k = shape
    a, b, c = (numpy_rng.integers(-8, 8, size) for size in ((m, k), (k, n), (m, n)))
    per_register = {"f16": 2, "bf16": 2, "s8": 4}.get(type_, 1)
    dtype = {"f16": np.float16, "bf16": np.float32, "tf32": np.float32, "f64": np.float64, "s8": np.int8}[type_]
    out_dtype = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "s32": np.int32}[out]

    def place_a(lane, i):
        register, element_ = divmod(i, per_register)
        row = lane // 4 + (8 if m == 16 and register % 2 else 0)
        return row, (lane % 4 + 4 * (register // 2 if m == 16 else register)) * per_register + element_

    def place_b(lane, i):
        register, element_ = divmod(i, per_register)
        return (lane % 4 + 4 * register) * per_register + element_, lane // 4

    def place_c(lane, i):
        return lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2

    def spread(matrix, place, dtype):
        return np.array([[matrix[place(lane, i)] for i in range(matrix.size // 32)] for lane in range(32)]).astype(
            dtype
        )

    fragments = [spread(a, place_a, dtype), spread(b, place_b, dtype), spread(c, place_c, out_dtype)]
    if type_ == "bf16":
        fragments[:2] = [np.ascontiguousarray(f.view(np.uint16)[:, 1::2]) for f in fragments[:2]]
    register_types = ["f64" if type_ == "f64" else "b32"] * 2 + [{"f32": "f32", "f64": "f64"}.get(out, "b32")]
    body, names = "", []
    for i, (fragment, register) in enumerate(zip(fragments, register_types, strict=True)):
        size = int(register[1:]) // 8
        count = fragment[0].nbytes // size
        body += f".reg .{register} %{'abc'[i]}<{count}>;\n" + element(f"%rd{i}", fragment[0].nbytes)
        body += "".join(f"ld.global.{register} %{'abc'[i]}{j}, [%rd{i}+{j * size}];\n" for j in range(count))
        names.append("{" + ", ".join(f"%{'abc'[i]}{j}" for j in range(count)) + "}")
    body += f"mma.sync.aligned.m{m}n{n}k{k}.row.col.{out}.{type_}.{type_}.{out} "
    body += f"{names[2]}, {names[0]}, {names[1]}, {names[2]};\n"
    body += "".join(f"st.global.{register} [%rd2+{j * size}], %c{j};\n" for j in range(count))
    stats = module(body, 3).launch("k", 1, 32, fragments, count=True)
    assert (fragments[2] == spread(a @ b + c, place_c, out_dtype)).all()
    assert stats.flops == {f"mma.{type_}": 2 * m * n * k}
    with pytest.raises(ptxemu.DivergenceError, match="part of a warp"):
        module("setp.lt.u32 %p0, %t0, 5; @%p0 exit;" + body, 3).launch("k", 1, 32, fragments)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    body = f""".reg .b32 %r<4>; mul.wide.u32 %rd2, %t0, 16; add.u64 %rd0, %rd0, %rd2; add.u64 %rd1, %rd1, %rd2;
    ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%rd0]; mov.u32 %t3, s; mad.lo.u32 %t3, %t0, 16, %t3;
    st.shared.v4.b32 [%t3], {{%r0, %r1, %r2, %r3}}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 {{%r0, %r1, %r2, %r3}}, [%t3];
    st.global.v4.b32 [%rd1], {{%r0, %r1, %r2, %r3}};"""
    x = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    y = np.zeros((32, 4, 2), np.uint16)
    module(body, 2).launch("k", 1, 32, [x, y], check_races=True)
    assert (y == (x.swapaxes(1, 2) if transposed else x).reshape(4, 32, 2).swapaxes(0, 1)).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix(transposed):
    stored = f"stmatrix.sync.aligned.m8n8.x4{'.trans' if transposed else ''}.shared.b16 [%t3], {{%r0, %r1, %r2, %r3}};"
    body = f""".reg .b32 %r<4>; mul.wide.u32 %rd2, %t0, 16; add.u64 %rd0, %rd0, %rd2; add.u64 %rd1, %rd1, %rd2;
    ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%rd0]; mov.u32 %t3, s; mad.lo.u32 %t3, %t0, 16, %t3;
    {stored} bar.sync 0;
    ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%t3]; st.global.v4.b32 [%rd1], {{%r0, %r1, %r2, %r3}};"""
    x = np.arange(4 * 64, dtype=np.uint16).reshape(32, 4, 2)
    y = np.zeros((4, 8, 8), np.uint16)
    module(body, 2).launch("k", 1, 32, [x, y], check_races=True, check_uninitialised=True)
    matrices = x.swapaxes(0, 1).reshape(4, 8, 8)
    assert (y == (matrices.swapaxes(1, 2) if transposed else matrices)).all()
    with pytest.raises(ptxemu.RaceError):
        module(body.replace("bar.sync 0;", "xor.b32 %t3, %t3, 16;"), 2).launch("k", 1, 32, [x, y], check_races=True)


# Counts.


def test_counts_of_a_small_kernel():
    """y[i] += 2 x[i] for 1000 of 4 x 256 threads: 32 warps, of which the last has 8 threads that go on."""
    kernel = module(
        f"""setp.ge.u32 %p0, %t0, 1000;
    @%p0 ret;
    {element("%rd0", 4)}{element("%rd1", 4)}ld.global.f32 %f0, [%rd0]; ld.global.f32 %f1, [%rd1];
    fma.rn.f32 %f1, %f0, 0f40000000, %f1;
    st.global.f32 [%rd1], %f1;""",
        2,
    )
    x, y = np.arange(1000, dtype=np.float32), np.ones(1000, np.float32)
    stats = kernel.launch("k", 4, 256, [x, y], count=True)
    assert (y == 2 * x + 1).all()
    # Before the branch 4 instructions for the index, 2 for the parameters, setp and ret; after it 2 for addresses, 2
    # loads, fma, store and ret.
    assert stats.total_thread_insts == 1024 * 7 + 24 + 1000 * 7
    assert stats.total_warp_insts == 32 * 8 + 32 * 7
    assert stats.divergent_warp_insts == 0
    assert stats.thread_insts["fma.fp32"] == stats.by_opcode["fma.rn.f32"] == 1000
    assert stats.warp_insts["fma.fp32"] == 32
    assert stats.warp_insts["branch"] == 64
    assert stats.flops == {"fp32": 2000}
    assert stats.mem["global.load"] == {"requests": 64, "bytes": 8000, "sectors": 250}
    assert stats.mem["global.store"] == {"requests": 32, "bytes": 4000, "sectors": 125}
    assert stats.unique_bytes == {"read": 8000, "written": 4000, "any": 8000, "sectors32": 8000}
    line = {
        name: next(i for i, text in enumerate(kernel_lines(kernel), 1) if name in text) for name in ("fma", "st.global")
    }
    assert stats.warps_by_line[line["fma"]] == 32
    assert stats.by_line[line["fma"]] == 1000
    assert stats.mem_by_line[line["st.global"]] == stats.mem["global.store"]
    assert sum(stats.by_line.values()) == sum(stats.by_opcode.values()) == stats.total_thread_insts
    twice = stats + stats
    assert twice.total_warp_insts == 2 * stats.total_warp_insts
    assert twice.mem["global.load"] == {"requests": 128, "bytes": 16000, "sectors": 500}
    assert twice.flops == {"fp32": 4000}
    assert twice.unique_bytes["read"] == 16000
    assert f"fma.fp32         threads {1000:>14d}   warps {32:>12d}" in str(stats)


def kernel_lines(kernel):
    lines = {ins.line: ins.text for ins in kernel.ast.functions["k"].body}
    return [lines.get(i, "") for i in range(1, max(lines) + 1)]


def test_counts_of_divergent_warps():
    """Of two warps one diverges: 5 of its lanes do two instructions alone, and the other 27 one."""
    body = """setp.lt.u32 %p0, %t0, 5; @%p0 bra FEW; add.u32 %t3, %t0, 1; bra END;
    FEW: add.u32 %t3, %t0, 2; add.u32 %t3, %t3, 2;
    END:"""
    stats = module(body).launch("k", 1, 64, [None], count=True)
    assert stats.divergent_warp_insts == 2 + 2
    assert stats.by_opcode["add.u32"] == 59 + 2 * 5
    assert (stats.by_opcode["bra"], stats.warp_insts["branch"]) == (64 + 59, 2 + 2 + 2)
    # A warp whose lanes a predicate turns off issues the instruction all the same.
    stats = module("setp.lt.u32 %p0, %t0, 5; @%p0 mul.f32 %f0, %f0, %f0;").launch("k", 1, 64, [None], count=True)
    assert (stats.thread_insts["fp32"], stats.warp_insts["fp32"], stats.divergent_warp_insts) == (5, 2, 0)


@pytest.mark.parametrize(("stride", "ways"), [(0, 1), (1, 1), (2, 2), (3, 1), (4, 4), (8, 8), (33, 1)])
def test_bank_conflicts(stride, ways):
    body = f"mov.u32 %t3, buffer; mad.lo.u32 %t3, %t0, {4 * stride}, %t3; ld.shared.u32 %t5, [%t3];"
    kernel = module(body, declarations=".extern .shared .align 16 .b8 buffer[];\n")
    stats = kernel.launch("k", 1, 64, [None], dynamic_shared=4 * (63 * 33 + 1), count=True)
    assert stats.mem["shared.load"] == {"requests": 2, "bytes": 256, "ideal_wavefronts": 2, "wavefronts": 2 * ways}


@pytest.mark.parametrize("lanes", [96, 8192])
@pytest.mark.parametrize("vector", [1, 2, 4])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_traffic(space, vector, lanes, numpy_rng):
    """Random, sorted, strided and equal addresses of lanes that are there or not, against sets of addresses."""
    threads, block, size = 200, 96, 4 * vector
    registers = "%f0" if vector == 1 else "{" + ", ".join(f"%f{k}" for k in range(vector)) + "}"
    suffix = "f32" if vector == 1 else f"v{vector}.f32"
    body = f"setp.ge.u32 %p0, %t0, {threads}; @%p0 ret;" + element("%rd1", 4)
    body += "ld.const.u32 %t3, [%rd1]; setp.eq.u32 %p1, %t3, 0xffffffff; @%p1 bra END;\n"
    if space == "global":
        body += element("%rd0", size, "%t3") + f"ld.global.{suffix} {registers}, [%rd0];\nEND:"
    else:
        body += f"mov.u32 %t4, buffer; mad.lo.u32 %t4, %t3, {size}, %t4; ld.shared.{suffix} {registers}, [%t4];\nEND:"
    kernel = module(body, 2, ".extern .shared .align 16 .b8 buffer[];\n")
    top = 4096 // vector
    random = numpy_rng.integers(0, top, threads)
    for index in (random, np.sort(random), np.arange(threads) * 3 % top, np.full(threads, 5)):
        index = np.where(numpy_rng.random(threads) < 0.7, index, ALL).astype(np.uint32)
        args = [np.zeros(4096, np.float32), index]
        stats = kernel.launch("k", -(-threads // block), block, args, dynamic_shared=16384, count=True, lanes=lanes)
        want, touched = Counter(), set()
        for first in range(0, threads, block):
            in_block = index[first : first + block].tolist()
            for warp in range(0, len(in_block), 32):
                at = {lane: i * size for lane, i in enumerate(in_block[warp : warp + 32]) if i != ALL}
                want["requests"] += bool(at)
                want["bytes"] += size * len(at)
                want["sectors"] += len({a // 32 for a in at.values()})
                touched |= {a + k for a in at.values() for k in range(size)}
                for phase in range(vector):
                    words = {
                        a // 4 + k for lane, a in at.items() if lane * vector // 32 == phase for k in range(vector)
                    }
                    want["ideal_wavefronts"] += bool(words)
                    want["wavefronts"] += max(Counter(word % 32 for word in words).values(), default=0)
        keys = (
            ("requests", "bytes", "sectors")
            if space == "global"
            else ("requests", "bytes", "ideal_wavefronts", "wavefronts")
        )
        assert stats.mem[f"{space}.load"] == {key: want[key] for key in keys}
        if space == "global":
            assert stats.unique_bytes["read"] == len(touched)
            assert stats.unique_bytes["sectors32"] == 32 * len({a // 32 for a in touched})


# Triton.


@triton.jit
def normalised_product(a, b, rows, out, n, SIZE: tl.constexpr):
    """Gathers rows of a, multiplies with b, divides by the norm of each row, and adds rows up in out."""
    i, j = tl.program_id(0) * SIZE + tl.arange(0, SIZE), tl.arange(0, SIZE)
    row = tl.load(rows + i, mask=i < n, other=0)
    x = tl.load(a + row[:, None] * SIZE + j[None, :], mask=(i < n)[:, None], other=0.0)
    y = tl.dot(x, tl.load(b + j[:, None] * SIZE + j[None, :]), input_precision="ieee")
    y = y / tl.sqrt(tl.sum(y * y, 1) + 1e-9)[:, None]
    tl.atomic_add(out + (row % 3)[:, None] * SIZE + j[None, :], y, mask=(i < n)[:, None])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_triton(dtype, numpy_rng):
    n, size = 70, 32
    a, b = (numpy_rng.normal(size=shape).astype(dtype) for shape in ((20, size), (size, size)))
    rows, out = numpy_rng.integers(0, 20, n).astype(np.int32), np.zeros((3, size), np.float32)
    pointer = {"float32": "*fp32", "float16": "*fp16"}[dtype]
    signature = {"a": pointer, "b": pointer, "rows": "*i32", "out": "*fp32", "n": "i32"}
    kernel = ptxemu.triton_kernel(normalised_product, signature, {"SIZE": size}, enable_fp_fusion=True)
    stats = kernel.launch(-(-n // size), [a, b, rows, out, n], count=True, check_races=True)
    product = a[rows].astype(np.float64) @ b.astype(np.float64)
    want = np.zeros((3, size))
    np.add.at(want, rows % 3, product / np.linalg.norm(product, axis=1, keepdims=True))
    np.testing.assert_allclose(out, want, atol=2e-5)
    assert stats.mem["global.atomic"]["bytes"] == 4 * n * size
    # float32 has no exact matrix instruction.
    assert stats.flops.get("mma.f16", 0) == (2 * 3 * size**3 if dtype == "float16" else 0)
