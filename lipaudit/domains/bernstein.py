"""Upper bounds of polynomials with rational coefficients over intervals.

Note [Bernstein coefficients]
    A polynomial on an interval is a mean of its Bernstein coefficients there, with weights that add up to 1, so its
    largest value is at most the largest of them; and they come close to it where the interval is halved again and again
    (de Casteljau). They are integers, in units of 2^-160 of the largest, rounded up.
    Source: G. Farin, Curves and Surfaces for CAGD, ch. 4 and 5.
"""

from __future__ import annotations

import heapq
import itertools
import math
import sys
from collections.abc import Sequence
from fractions import Fraction

from lipaudit.rounding import up

_BITS, _SPLITS, _CLOSE = 160, 400, 1e-10
"""Bits of a coefficient; the most halvings; how far, relatively, the bound may be above a value that is reached."""


def square_on_axis(p: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The coefficients of |p(i t)|^2 in t^2."""
    even, odd = ([c * (-1) ** k for k, c in enumerate(p[start::2])] for start in (0, 1))
    whole = [Fraction(0)] * (len(p) + 1)
    for part, shift in ((even, 0), (odd, 1)):
        for j, a in enumerate(part):
            for k, b in enumerate(part):
                whole[j + k + shift] += a * b
    return tuple(whole[: len(p)])


def sum_up(coefficients: Sequence[Fraction], rho: float) -> float:
    """sum |c_k| rho^k, rounded up."""
    total = 0.0
    for c in reversed(coefficients):
        total = up(up(total * rho) + float_up(abs(c))) if c or total else 0.0
    return total


def float_up(number: Fraction) -> float:
    """A float that is not below the fraction."""
    try:
        return up(float(number))
    except OverflowError:
        return math.inf if number > 0 else -sys.float_info.max


def largest_value(p: Sequence[Fraction], low: Fraction, high: Fraction) -> float:
    """An upper bound of p over [low, high], close to its largest value there; see Note [Polynomials]."""
    shifted = list(p)
    for first in range(len(shifted)):  # p(low + s)
        for k in range(len(shifted) - 2, first - 1, -1):
            shifted[k] += low * shifted[k + 1]
    degree, width = len(shifted) - 1, high - low
    scaled = [c * width**k / math.comb(degree, k) for k, c in enumerate(shifted)]
    exact = [sum((math.comb(i, j) * scaled[j] for j in range(i + 1)), Fraction(0)) for i in range(degree + 1)]
    size = max(map(abs, exact), default=Fraction(0))
    if not size:
        return 0.0
    unit = size / 2**_BITS
    waiting = [_queued([math.ceil(b / unit) for b in exact])]
    reached = max(waiting[0][1][0], waiting[0][1][-1])
    for _ in range(_SPLITS):
        if -waiting[0][0] <= reached + _CLOSE * abs(reached):
            break
        for half in _halves(heapq.heappop(waiting)[1]):
            reached = max(reached, half[0], half[-1])
            heapq.heappush(waiting, _queued(half))
    return float_up(-waiting[0][0] * unit)


def _queued(bernstein: list[int]) -> tuple[int, list[int]]:
    return -max(bernstein), bernstein


def _halves(bernstein: list[int]) -> tuple[list[int], list[int]]:
    """The Bernstein coefficients over both halves of the interval, rounded up (de Casteljau)."""
    left, right, row = [bernstein[0]], [bernstein[-1]], bernstein
    while len(row) > 1:
        row = [-(-(a + b) // 2) for a, b in itertools.pairwise(row)]
        left.append(row[0])
        right.append(row[-1])
    return left, right[::-1]
