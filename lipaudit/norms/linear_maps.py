"""The linear maps whose operator norm is bounded, L2 to L2.

Each has `apply` (on one sample, with its leading axis of one), `absolute` (the map of the absolute values of its
entries), `terms` (the most products that one output sums, for rounding errors) and `relative_error` (how far,
entrywise and relatively, the weights may be from the exact ones, for weights that were themselves computed). What holds
for all of them is a function below: the adjoint, the dense matrix (the oracle of the tests), the Schur test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.nn import functional

from lipaudit.results.threat import Norm
from lipaudit.rounding import TINY, UNIT, gamma, up


class Applied(Protocol):
    """What estimates from below need to know of a linear map."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    def apply(self, x: torch.Tensor) -> torch.Tensor: ...


class LinearMap(Applied, Protocol):
    """What bounds and error analysis need to know of a linear map."""

    @property
    def relative_error(self) -> float: ...

    @property
    def terms(self) -> int: ...

    def absolute(self) -> LinearMap: ...


@dataclass(frozen=True, eq=False)
class Dense:
    """x -> W x along the last axis of the input; W is (out, in), float64."""

    weight: torch.Tensor
    input_shape: tuple[int, ...]
    relative_error: float = 0.0

    @property
    def terms(self) -> int:
        return self.weight.shape[1]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight)

    def absolute(self) -> Dense:
        return replace(self, weight=self.weight.abs())


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution (cross-correlation) of 1 to 3 spatial axes with real padding and stride.

    `weight` is (out, in / groups, *kernel), float64; `padding` holds (before, after) per axis;
    `padding_mode` is one of zeros, circular, reflect, replicate.
    """

    weight: torch.Tensor
    input_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"
    relative_error: float = 0.0

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.weight.shape[1] * self.groups, *self.input_size)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def output_size(self) -> tuple[int, ...]:
        axes = zip(self.input_size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes)

    @property
    def terms(self) -> int:
        return math.prod(self.weight.shape[1:])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        pads = [amount for before_after in reversed(self.padding) for amount in before_after]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = functional.pad(x, pads, mode=mode) if any(pads) else x
        conv = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.input_size) - 1]
        return conv(padded, self.weight, stride=self.stride, dilation=self.dilation, groups=self.groups)

    def absolute(self) -> Conv:
        return replace(self, weight=self.weight.abs())


@dataclass(frozen=True, eq=False)
class Transposed:
    """The transposed map of a convolution, what a transposed convolution does: x -> A^T x, of the same norm.

    `conv` leads from the output of this map to its input; its padding is the same on both sides or longer in front.
    """

    conv: Conv

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.conv.weight.shape[0], *self.conv.output_size)

    @property
    def relative_error(self) -> float:
        return self.conv.relative_error

    @property
    def terms(self) -> int:
        kernel = self.conv.weight.shape
        return kernel[0] // self.conv.groups * math.prod(kernel[2:])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        conv = self.conv
        if conv.padding_mode != "zeros":
            raise ValueError(f"expected zero padding in a transposed convolution, got {conv.padding_mode}")
        transpose = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
        whole = transpose[len(conv.input_size) - 1](
            x, conv.weight, stride=conv.stride, dilation=conv.dilation, groups=conv.groups
        )
        # Of the padded image that this gives, what lies within the image; entries that no tap reached are zero.
        for axis, (n, (before, _)) in enumerate(zip(conv.input_size, conv.padding, strict=True)):
            missing = before + n - whole.shape[2 + axis]
            if missing > 0:
                pads = [0, 0] * (len(conv.input_size) - 1 - axis) + [0, missing]
                whole = functional.pad(whole, pads)
            whole = whole.narrow(2 + axis, before, n)
        return whole

    def absolute(self) -> Transposed:
        return Transposed(self.conv.absolute())


@dataclass(frozen=True, eq=False)
class Scale:
    """x -> c * x entry by entry; `factor` (float64) broadcasts against the input."""

    factor: torch.Tensor
    input_shape: tuple[int, ...]
    relative_error: float = 0.0

    @property
    def terms(self) -> int:
        return 1

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor

    def absolute(self) -> Scale:
        return replace(self, factor=self.factor.abs())

    def per_channel(self, axis: int) -> torch.Tensor | None:
        """The factors along `axis` if they are constant along all others, else None."""
        factor = self.factor
        if factor.ndim < len(self.input_shape):
            factor = factor.reshape((1,) * (len(self.input_shape) - factor.ndim) + tuple(factor.shape))
        axis = axis % len(self.input_shape)
        if any(size != 1 for k, size in enumerate(factor.shape) if k != axis):
            return None
        return factor.reshape(-1).expand(self.input_shape[axis])


@dataclass(frozen=True, eq=False)
class Gather:
    """A linear map without negative entries, given as a function: pooling, slicing, copying, reshaping."""

    function: Callable[[torch.Tensor], torch.Tensor]
    input_shape: tuple[int, ...]
    terms: int
    coisometry: float | None = None
    """c (rounded up) if A A^T = c^2 I is known: rows orthogonal and of one length. 1 if it only moves entries."""
    relative_error: float = 0.0
    windows: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Size and stride of the windows, if it averages each channel over windows that lie within the image."""

    @property
    def isometric(self) -> bool:
        return self.coisometry == 1.0

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)

    def absolute(self) -> Gather:
        return self


@dataclass(frozen=True, eq=False)
class Identity:
    """x -> x: what adding a constant does to distances."""

    input_shape: tuple[int, ...]
    relative_error: float = 0.0
    terms: int = 1

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def absolute(self) -> Identity:
        return self


@dataclass(frozen=True, eq=False)
class Pad:
    """Padding of the last axes: `padding` holds (before, after) per padded axis, in the order of the axes.

    Negative amounts crop. `padding_mode` as in `Conv`.
    """

    padding: tuple[tuple[int, int], ...]
    padding_mode: str
    input_shape: tuple[int, ...]
    relative_error: float = 0.0
    terms: int = 1

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, [n for pair in reversed(self.padding) for n in pair], mode=mode)

    def absolute(self) -> Pad:
        return self


def both_ways(linear: Applied, x: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """A x, and y -> A^T y by automatic differentiation of `apply` (exact transpose of what runs)."""
    pulled = torch.func.vjp(linear.apply, x)
    return pulled[0], lambda y: pulled[1](y)[0]


def adjoint(linear: Applied, y: torch.Tensor) -> torch.Tensor:
    """A^T y, as in `both_ways`."""
    zero = torch.zeros(linear.input_shape, dtype=torch.float64, device=y.device)
    return both_ways(linear, zero)[1](y)


def dense(linear: LinearMap) -> torch.Tensor:
    """The matrix of the map (outputs x inputs), column by column: what every bound is tested against."""
    basis = torch.eye(math.prod(linear.input_shape), dtype=torch.float64)
    columns = [linear.apply(e.reshape(linear.input_shape)).reshape(-1) for e in basis]
    return torch.stack(columns, dim=1)


def schur_test(linear: LinearMap, device: torch.device | None = None) -> float:
    """sqrt(largest row sum x largest column sum of |A|) >= ||A||; equality for disjoint averages and copies.

    Source: the Schur test; in matrix form ||A||_2^2 <= ||A||_1 ||A||_inf.
    """
    rows, columns = _absolute_sums(linear.absolute(), device)
    if not rows.numel():
        return 0.0
    row, column = float(rows.max()), float(columns.max())
    # Both sums carry at most terms (rows) or all outputs touching an entry (columns) roundings.
    outputs = linear.weight.shape[0] * math.prod(linear.output_size) if isinstance(linear, Conv) else rows.numel()
    slack = gamma(2 * (linear.terms + outputs)) + 2 * linear.relative_error + 8 * UNIT
    return up(math.sqrt(row) * math.sqrt(column) * (1 + slack)) + (TINY if row else 0.0)


def sum_norm(linear: LinearMap, norm: Norm, device: torch.device | None = None) -> float:
    """The operator norm of the map in Linf, its largest row sum of |A|, or in L1, its largest column sum.

    With real borders; exact but for rounding upwards, unless a convolution reads an entry by several taps at once, as
    where its padding copies entries: of these the absolute values add up.
    """
    rows, columns = _absolute_sums(linear.absolute(), device)
    sums = {"linf": rows, "l1": columns}[norm]
    largest = float(sums.max()) if sums.numel() else 0.0
    terms = linear.terms if norm == "linf" else rows.numel()
    if isinstance(linear, Conv):
        outputs = 1 if linear.padding_mode == "zeros" else math.prod(linear.output_size)  # that read an entry by a tap
        terms = linear.terms if norm == "linf" else linear.weight.numel() * outputs
    return up(largest * (1 + gamma(2 * terms + 8) + 1.01 * linear.relative_error)) + TINY if largest else 0.0


def _absolute_sums(positive: LinearMap, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of all rows and of all columns of a map without negative entries; of equal ones not all."""
    if isinstance(positive, Conv) and positive.padding_mode == "zeros":
        return _sums_by_border(positive)
    ones = torch.ones(positive.input_shape, dtype=torch.float64, device=device)
    if not isinstance(positive, Conv):
        rows = positive.apply(ones)
        return rows, adjoint(positive, torch.ones_like(rows))
    # Channels can be summed first: those that an output reads, and those that read an input.
    weight = positive.weight
    read = replace(positive, weight=weight.sum(1, keepdim=True), groups=1)
    reading = weight.unflatten(0, (positive.groups, -1)).sum(1).flatten(0, 1)[None]
    rows = read.apply(ones[:, :1])
    return rows, adjoint(replace(positive, weight=reading, groups=1), torch.ones_like(rows[:, :1]))


def _sums_by_border(positive: Conv) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of a convolution padded with zeros, once for all places where the same taps meet the image."""
    rows = positive.weight.sum(1)
    columns = positive.weight.unflatten(0, (positive.groups, -1)).sum(1).flatten(0, 1)
    axes = zip(
        positive.input_size, positive.output_size, positive.stride, positive.dilation, positive.padding, strict=True
    )
    for (n, m, s, d, (p, _)), k in zip(axes, positive.kernel_size, strict=True):
        places = s * torch.arange(m)[:, None] + d * torch.arange(k) - p  # that an output reads by each tap
        inside = (places >= 0) & (places < n)
        reached = torch.zeros(n, k, dtype=torch.bool)
        reached[places[inside], torch.arange(k).expand(m, k)[inside]] = True
        # The first axis of the kernel goes, and its places come last.
        rows = torch.tensordot(rows, inside.unique(dim=0).to(rows), dims=([1], [1]))
        columns = torch.tensordot(columns, reached.unique(dim=0).to(columns), dims=([1], [1]))
    return rows, columns
