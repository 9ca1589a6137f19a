"""From data to pixels, and where the ticks stand. Logarithmic axes carry log10 of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipaudit.results.formatting import number, power


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly to [start, end] pixels; `low < high`, while `start` may exceed `end`."""

    low: float
    high: float
    start: float
    end: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"expected a finite range with low < high, got [{self.low}, {self.high}]")

    def __call__(self, value: float) -> float:
        """Pixels; what lies outside of the range is put on its edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def back(self, pixel: float) -> float:
        """The value at a pixel."""
        return self.low + (pixel - self.start) / (self.end - self.start) * (self.high - self.low)


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


def log10(value: float) -> float:
    """Of a positive number; -inf for zero."""
    return math.log10(value) if value > 0 else -math.inf


def linear_ticks(low: float, high: float, most: int) -> tuple[Tick, ...]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(1, most - 1)
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * k for k in (1, 2, 5, 10, 20) if base * k >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(
        Tick(k * step, number(k * step) if step < 0.001 else f"{k * step:.6g}") for k in range(first, last + 1)
    )


def log_ticks(low: float, high: float, most: int) -> tuple[Tick, ...]:
    """Powers of ten between log10 values `low` and `high`; 1-2-5 between them where the range is short.

    Within 0.7 decades the ticks are those of a linear axis.
    """
    if high - low < 0.7 and -300 < low < 300:
        return tuple(Tick(log10(tick.at), tick.label) for tick in linear_ticks(10**low, 10**high, most))
    if high - low < 2.5:
        for digits in ((1, 2, 3, 5, 7), (1, 2, 5)):
            values = [(k, digit) for k in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
            fine = [Tick(k + math.log10(digit), decimal(k, digit)) for k, digit in values]
            inside = tuple(tick for tick in fine if low - 1e-9 <= tick.at <= high + 1e-9)
            if 2 <= len(inside) <= min(most, 8):
                return inside
    step = max(1, math.ceil((high - low) / max(1, most)))
    step = next((nice for nice in (1, 2, 5, 10, 20, 50, 100) if nice >= step), step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(Tick(k * step, decimal(k * step)) for k in range(first, last + 1))


def decimal(exponent: int, digit: int = 1) -> str:
    """`0.05`, `200`; a power of ten where that takes more than five characters."""
    if not -3 <= exponent <= 3:
        return power(exponent) if digit == 1 else f"{digit}×{power(exponent)}"
    return f"{digit * 10.0**exponent:.{max(0, -exponent)}f}"
