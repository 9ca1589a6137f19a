"""Two linear maps in a row as one map of a known kind.

Note [One kernel]
    A convolution and the averages over windows of its output are one convolution: its kernel summed over the window,
    its stride times that of the windows. The norm is below the product of both wherever the kernel's steepest waves are
    short ones, which averages take away. Averages with a border of their own see zeros where the convolution has
    values, and are no such map. A circular convolution and its windows have to tile the image: what does not is
    bounded as if it had no stride, which would lose what the windows gain.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch

from lipaudit.norms.linear_maps import Conv, Dense, Gather, Identity, LinearMap, Pad, Scale, Transposed
from lipaudit.rounding import UNIT, gamma

_MOST_ENTRIES = 2**22
_MOST_ERROR = 1e-6


def merge(first: LinearMap, then: LinearMap) -> LinearMap | None:
    """The composition `then` after `first` as one map of a known kind, or None if it is not one.

    Channel scalings go into the weights of their neighbour, paddings into the padding of a convolution. The norm of
    the composite is at most the product of the norms, and for batch norm after a convolution far below it.
    """
    match first, then:
        case Identity(), _:
            return then
        case _, Identity():
            return first
        case Scale(), Scale() if first.input_shape == then.input_shape:
            return replace(first, factor=first.factor * then.factor, relative_error=_compound(first, then))
        case Scale(), Conv() if (c := first.per_channel(1)) is not None:
            per_group = c.reshape(then.groups, 1, -1).expand(-1, then.weight.shape[0] // then.groups, -1)
            spread = per_group.reshape(then.weight.shape[:2] + (1,) * len(then.input_size))
            return replace(then, weight=then.weight * spread, relative_error=_compound(first, then))
        case Conv(), Scale() if (c := then.per_channel(1)) is not None:
            spread = c.reshape(-1, *(1,) * (first.weight.ndim - 1))
            return replace(first, weight=first.weight * spread, relative_error=_compound(first, then))
        case Scale(), Transposed() if isinstance(inner := merge(then.conv, first), Conv):
            return Transposed(inner)  # (D A)^T = A^T D
        case Transposed(), Scale() if isinstance(inner := merge(then, first.conv), Conv):
            return Transposed(inner)
        case Scale(), Dense() if (c := first.per_channel(-1)) is not None:
            return replace(
                then,
                weight=then.weight * c,
                input_shape=first.input_shape,
                relative_error=_compound(first, then),
            )
        case Dense(), Scale() if (c := then.per_channel(-1)) is not None:
            return replace(first, weight=first.weight * c[:, None], relative_error=_compound(first, then))
        case Pad(), Conv() if _pads_for(first, then):
            both = zip(first.padding, then.padding, strict=True)
            pads = tuple((a + c, b + d) for (a, b), (c, d) in both)
            size = first.input_shape[2:]
            return replace(then, input_size=size, padding=pads, padding_mode=first.padding_mode)
        case Conv(), Gather() if then.windows is not None:
            return _averaged(first, *then.windows)
    return None


def _compound(first: LinearMap, then: LinearMap) -> float:
    """Relative error of a product of two factors that are themselves inexact."""
    return 1.01 * (first.relative_error + then.relative_error + UNIT)


def _pads_for(pad: Pad, conv: Conv) -> bool:
    spatial = len(pad.padding) == len(conv.input_size) and min(min(p) for p in pad.padding) >= 0
    same_kind = pad.padding_mode == conv.padding_mode == "zeros"
    unpadded = pad.padding_mode == "circular" and not any(sum(p) for p in conv.padding)
    return spatial and (same_kind or unpadded)


def _averaged(conv: Conv, window: tuple[int, ...], stride: tuple[int, ...]) -> Conv | None:
    """The convolution, averaged over windows of its output; see Note [One kernel]."""
    axes = list(zip(window, conv.stride, conv.kernel_size, conv.dilation, strict=True))
    sizes = [(w - 1) * s + (k - 1) * d + 1 for w, s, k, d in axes]
    strides = tuple(s * t for s, t in zip(conv.stride, stride, strict=True))
    mode = conv.padding_mode if any(map(sum, conv.padding)) else "zeros"
    if math.prod(conv.weight.shape[:2]) * math.prod(sizes) > _MOST_ENTRIES:
        return None
    kernel = conv.weight.new_zeros(*conv.weight.shape[:2], *sizes)
    size = torch.zeros_like(kernel)
    for place in itertools.product(*map(range, window)):
        taps = [slice(p * s, p * s + (k - 1) * d + 1, d) for p, (_, s, k, d) in zip(place, axes, strict=True)]
        kernel[:, :, *taps] += conv.weight
        size[:, :, *taps] += conv.weight.abs()
    count = math.prod(window)
    error = relative_error((1.01 * conv.relative_error + gamma(2 * count + 4)) * size, kernel)
    if error is None:
        return None
    ones = (1,) * len(sizes)
    found = replace(conv, weight=kernel / count, stride=strides, dilation=ones, padding_mode=mode, relative_error=error)
    rows = zip(found.output_size, strides, conv.input_size, strict=True)
    return found if mode != "circular" or all(m * s == n for m, s, n in rows) else None


def relative_error(off: torch.Tensor, weight: torch.Tensor) -> float | None:
    """The largest relative error of the weights; None if there is none that means anything."""
    size = weight.abs() - off
    if bool(((size <= 0) & (off > 0)).any()):
        return None
    error = float((off / size.clamp_min(1e-300)).max()) * (1 + 4 * UNIT) if off.numel() else 0.0
    return error if error <= _MOST_ERROR else None
