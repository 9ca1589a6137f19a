"""Linear maps, forwards and backwards, on many tensors at once: where a local certificate spends its time.

Every function here computes conventional sums of products, which is all that the rounding bounds ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from lipaudit.domains.graph import quiet_vmap
from lipaudit.norms.linear_maps import Conv, Dense, Gather, Identity, LinearMap, Pad, Scale, Transposed, adjoint

_CHUNK_ENTRIES = 2**24
_ABREAST = 128
"""Rows side by side in one matrix product."""


def applied(linear: LinearMap, rows: torch.Tensor) -> torch.Tensor:
    """The map on every row, some rows at a time."""
    written_for_one = isinstance(linear, (Gather, Pad))
    first = linear.apply(rows[0])
    out = rows.new_empty(len(rows), *first.shape)
    quick = linear if isinstance(linear, Conv) and rows.shape[1] == 1 and _has_quick_form(linear, rows) else None
    step = _ABREAST if quick is not None else max(1, _CHUNK_ENTRIES // max(1, first.numel(), rows[0].numel()))
    for part, into in zip(rows.split(step), out.split(step), strict=True):
        if quick is not None:
            _convolved(quick, part[:, 0], into[:, 0])
        elif isinstance(linear, Scale) and linear.factor.ndim <= rows.ndim - 1:
            torch.mul(part, linear.factor, out=into)
        elif written_for_one or rows.shape[1] != 1:
            into.copy_(_one_by_one(linear.apply, part))
        else:
            into.copy_(linear.apply(part[:, 0])[:, None])
    return out


def transposed(linear: LinearMap, c: torch.Tensor) -> torch.Tensor:
    """The transposed map on every row."""
    if isinstance(linear, (Conv, Transposed)) and c.shape[1] != 1:  # parts of a sample where others have a batch
        parts = transposed(linear, c.reshape(-1, 1, *c.shape[2:]))
        return parts.reshape(*c.shape[:2], *parts.shape[2:])
    match linear:
        case Identity():
            return c
        case Scale() if linear.factor.ndim <= len(linear.input_shape):
            return c * linear.factor
        case Dense():
            return c @ linear.weight
        case Conv() if (flipped := _flipped(linear)) and _has_quick_form(flipped, c):
            return applied(flipped, c)
        case Conv() if linear.padding_mode == "zeros" and all(a >= b for a, b in linear.padding):
            return Transposed(linear).apply(c[:, 0])[:, None]
        case Transposed():
            return linear.conv.apply(c[:, 0])[:, None]
    return _one_by_one(lambda one: adjoint(linear, one), c)


def _one_by_one(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    with quiet_vmap():
        return torch.func.vmap(function)(rows)


def _flipped(conv: Conv) -> Conv | None:
    """The transposed map of a convolution of stride one, which is one as well."""
    full = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    padding = tuple((n - a, n - b) for n, (a, b) in zip(full, conv.padding, strict=True))
    if conv.groups != 1 or any(s != 1 for s in conv.stride) or conv.padding_mode != "zeros":
        return None
    weight = conv.weight.transpose(0, 1).flip(tuple(range(2, conv.weight.ndim)))
    return replace(conv, weight=weight, input_size=conv.output_size, padding=padding)


def _has_quick_form(conv: Conv, rows: torch.Tensor) -> bool:
    plain = len(conv.input_size) == 2 and conv.padding_mode == "zeros" and conv.groups == 1 and conv.dilation[1] == 1
    many = len(rows) >= _ABREAST and not rows.requires_grad
    return plain and many and rows.device.type == "cpu" and all(min(p) >= 0 for p in conv.padding)


def _convolved(conv: Conv, x: torch.Tensor, into: torch.Tensor) -> None:
    """A 2-d convolution of many images at once: twice as fast on a CPU as torch's, which has no float64 kernels.

    With the images side by side in the last axis, the inputs that an output reads from one line of the image are one
    matrix in memory, and all outputs of a line are a batch of matrix products.
    """
    count, channels, height, width = x.shape
    (above, below), (left, right) = conv.padding
    padded = x.new_zeros(above + height + below, left + width + right, channels, count)
    abreast = _turned(x.reshape(count, -1)).reshape(channels, height, width, count)
    padded[above : above + height, left : left + width] = abreast.permute(1, 2, 0, 3)
    lines, places = conv.output_size
    outputs, _, taps, across = conv.weight.shape
    out = x.new_empty(lines, places, outputs, count)
    weights = conv.weight.permute(2, 0, 3, 1).reshape(taps, 1, outputs, across * channels).expand(-1, places, -1, -1)
    per_line, per_place = padded.stride(0), padded.stride(1)
    for line in range(lines):
        for tap in range(taps):
            start = (line * conv.stride[0] + tap * conv.dilation[0]) * per_line
            strides = (conv.stride[1] * per_place, count, 1)
            window = padded.as_strided((places, across * channels, count), strides, start)
            if tap:
                out[line].baddbmm_(weights[tap], window)
            else:
                torch.bmm(weights[tap], window, out=out[line])
    into.copy_(_turned(out.permute(2, 0, 1, 3).reshape(-1, count)).reshape(into.shape))


def _turned(matrix: torch.Tensor) -> torch.Tensor:
    """The transposed matrix, in memory. By way of longer lines: columns of lines of 2^k entries compete for cache."""
    lines, length = matrix.shape
    wider = matrix.new_empty(lines, length + 8)[:, :length]
    return wider.copy_(matrix).t().contiguous()
