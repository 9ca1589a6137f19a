"""The discrete Fourier transforms of torch: over which axes, how long, with which factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lipaudit.errors import UnsupportedOp

TRANSFORMS = (
    *(f"fft_{kind}{axes}.default" for kind in ("fft", "ifft", "rfft", "irfft") for axes in ("", "2", "n")),
    "_fft_r2c.default",
    "_fft_c2c.default",
    "_fft_c2r.default",
)
"""Operations: of complex or real numbers, from real numbers to half of the spectrum, and from half of it to real."""


@dataclass(frozen=True)
class Transform:
    """y_k = factor sum_j x_j exp(-+ 2 pi i j k / n) over several axes of what is padded or cropped to `lengths`."""

    axes: tuple[int, ...]
    lengths: tuple[int, ...]
    """How many there are of each, of the whole spectrum."""
    factor: float
    half_after: bool
    """Only the first n / 2 + 1 entries of the last axis come out; the others are their conjugates."""
    half_before: bool
    """Only these go in, and real numbers come out."""

    @property
    def count(self) -> int:
        return math.prod(self.lengths)


def transform(op: str, arguments: Mapping[str, Any], shape: Sequence[int]) -> Transform:
    """What the operation does to a tensor of that shape. Raises `UnsupportedOp` for settings that are not known."""
    name = op.split(".")[0]
    half_after, half_before = name in ("_fft_r2c",) or "_rfft" in name, name in ("_fft_c2r",) or "_irfft" in name
    if name == "_fft_r2c":
        half_after = bool(arguments["onesided"])
    axes, sizes = _axes_and_sizes(name, arguments, len(shape))
    lengths = [shape[axis] for axis in axes] if sizes is None else list(sizes)
    if half_before and sizes is None:
        last = arguments.get("last_dim_size")
        lengths[-1] = 2 * (lengths[-1] - 1) if last is None else int(last)
    if not axes or len(set(axes)) < len(axes) or len(lengths) != len(axes) or min(lengths) < 1:
        raise UnsupportedOp(f"expected lengths and axes of {name} that belong together, got {lengths} and {axes}")
    count = math.prod(lengths)
    power = _power(name, arguments)
    factor = 1.0 if power == 0 else 1 / count if power == 2 else 1 / math.sqrt(count)
    return Transform(axes, tuple(lengths), factor, half_after, half_before)


def _axes_and_sizes(name: str, arguments: Mapping[str, Any], rank: int) -> tuple[tuple[int, ...], list[int] | None]:
    if name.startswith("_fft"):
        return tuple(axis % rank for axis in arguments["dim"]), None
    if name.endswith("fft"):
        n = arguments["n"]
        return (arguments["dim"] % rank,), None if n is None else [n]
    sizes, axes = arguments["s"], arguments["dim"]
    if axes is None:
        axes = list(range(rank)) if sizes is None else list(range(rank - len(sizes), rank))
    return tuple(axis % rank for axis in axes), None if sizes is None else list(sizes)


def _power(name: str, arguments: Mapping[str, Any]) -> int:
    """0: no factor, 1: the root of 1 / n, 2: 1 / n."""
    if name.startswith("_fft"):
        power = arguments["normalization"]
    else:
        norms = {None: 0, "backward": 0, "ortho": 1, "forward": 2}
        power = norms.get(arguments["norm"], -1)
        if name.startswith("fft_i") and power >= 0:
            power = 2 - power
    if power not in (0, 1, 2):
        raise UnsupportedOp(f"expected a norm of {name} that is known, got {arguments.get('norm', power)!r}")
    return power
