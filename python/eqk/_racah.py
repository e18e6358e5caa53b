"""Wigner 6j and 9j symbols of whole degrees: coefficients of products that couple through other degrees."""

from __future__ import annotations

import functools
import math
from fractions import Fraction


def _is_triangle(a: int, b: int, c: int) -> bool:
    return abs(a - b) <= c <= a + b


def _delta_squared(a: int, b: int, c: int) -> Fraction:
    f = math.factorial
    return Fraction(f(a + b - c) * f(a - b + c) * f(b + c - a), f(a + b + c + 1))


@functools.cache
def wigner_6j(a: int, b: int, c: int, d: int, e: int, f: int) -> float:
    """{a b c; d e f}, exact but for the last rounding; exactly 0 where it vanishes.

    (Racah's sum: Varshalovich, Moskalev & Khersonskii 1988, section 9.2.1.)
    """
    triads = (a, b, c), (a, e, f), (d, b, f), (d, e, c)
    if not all(_is_triangle(*triad) for triad in triads):
        return 0.0
    squares = a + b + d + e, b + c + e + f, a + c + d + f
    total = Fraction(0)
    for t in range(max(map(sum, triads)), min(squares) + 1):
        below = math.prod(math.factorial(t - sum(triad)) for triad in triads)
        below *= math.prod(math.factorial(s - t) for s in squares)
        total += Fraction((-1) ** t * math.factorial(t + 1), below)
    # At most 1, while its factors may be beyond the range of floats.
    square = total**2 * math.prod(_delta_squared(*triad) for triad in triads)
    return math.copysign(math.sqrt(square), total)


@functools.cache
def wigner_9j(a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int, i: int) -> float:
    """{a b c; d e f; g h i}; exactly 0 outside its triangles. (Varshalovich et al. 1988, section 10.2.4.)"""
    rows = (a, b, c), (d, e, f), (g, h, i)
    if not all(_is_triangle(*triad) for triad in (*rows, *zip(*rows, strict=True))):
        return 0.0
    return sum(
        (2 * k + 1) * wigner_6j(a, b, c, f, i, k) * wigner_6j(d, e, f, b, k, h) * wigner_6j(g, h, i, k, a, d)
        for k in range(max(abs(a - i), abs(d - h), abs(b - f)), min(a + i, d + h, b + f) + 1)
    )
