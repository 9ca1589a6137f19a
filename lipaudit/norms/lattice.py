"""The convolution on the infinite lattice: what the bounds that need no input size are bounds of.

Note [Lattice]
    Zero padding, of any amounts on either side, restricts the map y[i] = sum_a K[a] x[s i + d a] on sequences over
    all whole numbers to some of its inputs and outputs, so the norm on the lattice is a bound. Per axis:
    - Let g = gcd(s, d). Only every g-th entry of x is ever read, so (s, d) may become (s / g, d / g).
    - Now s and d have no common divisor, so a = s b + c runs through each phase of x once, with its taps at
      d b + const(c) on the coarse lattice. Moving a phase of x as a whole is an isometry, and taps that are d apart
      only rename the frequency: the norm is that of dilation 1.
    - A stride s is a stride-1 convolution of the s phases of x (polyphase), x being a mere rearrangement of them.
    Groups are blocks of a block-diagonal map: their largest norm.

Note [Borders]
    Padding other than with zeros costs at most the root of the number of copies it makes: reflect and replicate are
    the unpadded convolution of the padded image, in which an entry occurs so many times. Circular padding whose
    outputs tile the image samples the symbol of the lattice at some frequencies; otherwise its outputs are rows of
    the circular map of stride 1, each repeated at most so many times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from lipaudit.norms.linear_maps import Conv, Dense
from lipaudit.rounding import TINY, gamma, norms_up, up

BUDGET = 4e9
"""Floating-point operations that a method besides the main one may take by default."""
SPARE = BUDGET / 8
"""The same for methods that seldom say more than others do."""
CALL = 1e5
"""A call of torch, in operations of a fast matrix product: what it takes whatever its size."""
ENTRY = 20.0
"""A number read, changed and written, in the same unit."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """The stride-1 kernel of a map on the lattice, times 2^-exponent; a dense layer has no spatial axes."""

    taps: torch.Tensor
    """(groups, out, in * phases, *size), float64, entries of moderate size."""
    exponent: int
    copies: int
    """||map|| <= sqrt(copies) * norm on the lattice; see Note [Borders]."""
    relative_error: float

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.taps.shape[3:])

    @property
    def zero(self) -> bool:
        return not bool(self.taps.any())

    def upper(self, norm: float) -> float:
        """From a bound of the norm of these taps on the lattice to a bound of the norm of the map."""
        if self.zero:
            return 0.0
        if self.relative_error:
            norm = up(norm + up(self.relative_error * float(absolute_norms(self.taps).max())))
        return up(up(norm * up(math.sqrt(self.copies))) * 2.0**self.exponent) + TINY


def kernel(linear: Conv | Dense) -> Kernel:
    """The map as a stride-1 kernel on the lattice, group by group; see Note [Lattice].

    Raises `ValueError` for NaN or inf in the weights and for an unknown padding mode.
    """
    conv, copies = unbordered(linear) if isinstance(linear, Conv) else (None, 1)
    weight = linear.weight
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError("expected finite weights, got NaN or inf")
    exponent = min(1000, max(-1000, math.frexp(largest)[1])) if largest else 0
    weight = weight * 2.0**-exponent  # a power of two: exact
    blocks = weight[None] if conv is None else polyphase(weight, steps(conv), conv.groups)
    return Kernel(blocks, exponent, copies, linear.relative_error)


def shape(linear: Conv | Dense) -> tuple[int, ...]:
    """Shape of the taps of `kernel`, without forming them: (groups, out, in * phases, *size)."""
    if isinstance(linear, Dense):
        return (1, *linear.weight.shape)
    conv, _ = unbordered(linear)
    axes = [(min(s, k), k) for s, k in zip(steps(conv), conv.kernel_size, strict=True)]
    phases = math.prod(phase for phase, _ in axes)
    out, inputs = conv.weight.shape[0] // conv.groups, conv.weight.shape[1]
    return conv.groups, out, inputs * phases, *(-(-k // phase) for phase, k in axes)


def smaller_side(shape: Sequence[int]) -> tuple[int, ...]:
    """The same shape with the smaller of the two channel axes first."""
    groups, out, inputs, *size = shape
    return groups, min(out, inputs), max(out, inputs), *size


def steps(conv: Conv) -> tuple[int, ...]:
    """The stride on the lattice once what it shares with the dilation has dropped out."""
    return tuple(s // math.gcd(s, d) for s, d in zip(conv.stride, conv.dilation, strict=True))


def reduced(conv: Conv) -> tuple[Conv, int]:
    """A convolution of dilation 1 with the same norm on the lattice, and the copies that its border makes."""
    conv, copies = unbordered(conv)
    return replace(conv, stride=steps(conv), dilation=(1,) * len(conv.stride)), copies


def polyphase(weight: torch.Tensor, stride: tuple[int, ...], groups: int) -> torch.Tensor:
    """(out, in / groups, *kernel) to (groups, out / groups, in / groups * phases, *coarse kernel)."""
    size = tuple(weight.shape[2:])
    phases = tuple(min(s, k) for s, k in zip(stride, size, strict=True))  # no tap reads the others
    coarse = tuple(-(-k // s) for k, s in zip(size, phases, strict=True))
    missing = [c * s - k for c, s, k in zip(coarse, phases, size, strict=True)]
    filled = functional.pad(weight, [n for amount in reversed(missing) for n in (0, amount)])
    pairs = [n for pair in zip(coarse, phases, strict=True) for n in pair]
    split = filled.reshape(groups, weight.shape[0] // groups, weight.shape[1], *pairs)
    axes = range(len(size))
    blocks = split.permute(0, 1, 2, *(4 + 2 * axis for axis in axes), *(3 + 2 * axis for axis in axes))
    return blocks.reshape(*split.shape[:2], -1, *coarse)


def unbordered(conv: Conv) -> tuple[Conv, int]:
    """The convolution whose norm on the lattice counts, and the copies; see Note [Borders]."""
    axes = list(zip(conv.input_size, conv.padding, conv.stride, conv.output_size, strict=True))
    if conv.padding_mode == "zeros" or (
        conv.padding_mode == "circular" and all(n % s == 0 and m == n // s for n, _, s, m in axes)
    ):
        return conv, 1
    if conv.padding_mode == "circular":
        repeats = math.prod(most_frequent(s * i % n for i in range(m)) for n, _, s, m in axes)
        return replace(conv, stride=(1,) * len(axes)), repeats
    if conv.padding_mode == "replicate":
        return conv, math.prod(most_frequent(min(max(i, 0), n - 1) for i in range(-p, n + q)) for n, (p, q), *_ in axes)
    if conv.padding_mode == "reflect":
        copies = (most_frequent(n - 1 - abs(n - 1 - abs(i)) for i in range(-p, n + q)) for n, (p, q), *_ in axes)
        return conv, math.prod(copies)
    raise ValueError(f"expected padding mode zeros, circular, reflect or replicate, got {conv.padding_mode!r}")


def most_frequent(values: Iterable[int]) -> int:
    """How often the most frequent value occurs; 0 for none."""
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(counts.values(), default=0)


def absolute_norms(taps: torch.Tensor) -> torch.Tensor:
    """For each group a bound of the norm of the map with absolute taps: the Frobenius norm of their sums."""
    sums = taps.abs().flatten(3).sum(-1) if taps.ndim > 3 else taps.abs()
    return norms_up(sums).cpu() * (1 + 2 * gamma(taps[0].numel() + 4))


def autocorrelation(taps: torch.Tensor) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Taps of T T^* for each shift of one half of the lattice: the zero shift first, then one of each pair d, -d.

    Yields (shift, matrices (groups, out, out)); the matrix at -shift is the transposed one.
    """
    size, whole = taps.shape[3:], (slice(None),) * 3
    for shift in itertools.product(*(range(1 - k, k) for k in size)):
        if shift < (0,) * len(size):
            continue
        ahead = taps[(*whole, *(slice(max(d, 0), k + min(d, 0)) for d, k in zip(shift, size, strict=True)))]
        behind = taps[(*whole, *(slice(max(-d, 0), k - max(d, 0)) for d, k in zip(shift, size, strict=True)))]
        yield shift, ahead.flatten(2) @ behind.flatten(2).mT


def autocorrelation_kernel(taps: torch.Tensor) -> torch.Tensor:
    """The kernel of T T^*: (groups, out, in, *size) to (groups, out, out, *(2 size - 1))."""
    groups, side, _, *size = taps.shape
    whole = taps.new_zeros(groups, side, side, *(2 * k - 1 for k in size))
    places = whole.movedim((0, 1, 2), (-3, -2, -1))
    for shift, product in autocorrelation(taps):
        places[tuple(k - 1 + d for d, k in zip(shift, size, strict=True))] = product
        places[tuple(k - 1 - d for d, k in zip(shift, size, strict=True))] = product.mT
    return whole


def autocorrelation_error(taps: torch.Tensor) -> torch.Tensor:
    """For each group a bound of the norm of computed minus exact autocorrelation.

    Every entry is a sum of at most n = in * taps products and errs by gamma(n) times the same sum of absolute
    values; all these errors together are a convolution of norm at most gamma(n) || |T| ||^2.
    """
    return gamma(math.prod(taps.shape[2:]) + 4) * absolute_norms(taps).to(taps.device).square() + TINY


def autocorrelation_flops(shape: Sequence[int]) -> float:
    """Floating-point operations of the autocorrelation of taps of that shape."""
    groups, out, inputs, *size = shape
    return groups * out * out * inputs * math.prod(size) * (math.prod(size) + 1.0)


def product_flops(rows: int, inner: int, columns: int, real: bool) -> float:
    """A product of matrices in double precision; small ones are slower."""
    return (2.0 if real else 8.0) * rows * inner * columns * (1 + 16 / min(rows, inner, columns)) / 2
