"""From below: power iteration with the padding and stride that really run. Never a certificate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from lipaudit.norms.linear_maps import Applied, Conv, Dense, LinearMap, Transposed, both_ways

_ROUND_DOWN = 1 - 1e-9
"""Covers the rounding of one application and two norms, far below 1e-9 for maps up to a million terms."""
_BISECTIONS = 20
_FIRST_LOOK = 6
_GROWTH = 5e-4


def lower_bound(linear: LinearMap, *, steps: int = 12, device: torch.device | None = None) -> float:
    """||A v|| / ||v|| for the v that `steps` of Lanczos iteration on A^T A find: at most the norm, rounded down.

    The search is in single precision where the weights allow it; what is returned is measured in float64.
    """
    linear = _one_place(linear)
    single = _single(linear)
    dtype = torch.float64 if single is None else torch.float32
    _, v = _golub_kahan(linear if single is None else single, steps, dtype, device)
    v = v.double()
    length = float(torch.linalg.vector_norm(v))
    if not (math.isfinite(length) and length > 0.0):
        return 0.0
    image = float(torch.linalg.vector_norm(linear.apply(v / length)))
    return image * _ROUND_DOWN if math.isfinite(image) else 0.0


def _one_place(linear: LinearMap) -> LinearMap:
    """The map on inputs that differ at one place only, where it does the same at every place."""
    if isinstance(linear, Dense):
        return replace(linear, input_shape=linear.input_shape[-1:])
    if isinstance(linear, Conv) and math.prod(linear.kernel_size) == 1 and not any(map(any, linear.padding)):
        return replace(linear, input_size=(1,) * len(linear.input_size), padding_mode="zeros")
    return linear


def _single(linear: LinearMap) -> LinearMap | None:
    """The map with weights in single precision, if they are of moderate size."""
    if isinstance(linear, Transposed):
        inner = _single(linear.conv)
        return Transposed(inner) if isinstance(inner, Conv) else None
    if not isinstance(linear, (Conv, Dense)) or not linear.weight.numel():
        return None
    moderate = 1e-12 < float(linear.weight.abs().max()) < 1e12
    return replace(linear, weight=linear.weight.float()) if moderate else None


def lanczos(linear: Torus, steps: int) -> float:
    """About ||A||, by Lanczos iteration in the map's own precision. Proves nothing."""
    weight = linear.conv.weight
    return _golub_kahan(linear, steps, weight.dtype, weight.device)[0]


def _golub_kahan(
    linear: Applied, steps: int, dtype: torch.dtype, device: torch.device | None
) -> tuple[float, torch.Tensor]:
    """The largest singular value of A on a Krylov space, and the vector; kept orthogonal, at the price of memory.

    Source: G. Golub and W. Kahan, Calculating the singular values and pseudo-inverse of a matrix, 1965.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(linear.input_shape, dtype=torch.float64, generator=generator).to(device, dtype)
    right = [v / torch.linalg.vector_norm(v)]
    left: list[torch.Tensor] = []
    alphas: list[float] = []
    betas: list[float] = []
    negligible = math.sqrt(torch.finfo(dtype).eps)  # what is smaller beside the largest is rounding: the space ends
    for _ in range(min(steps, v.numel())):
        image, transpose = both_ways(linear, right[-1])
        u = _away(image, left)
        alpha = float(torch.linalg.vector_norm(u))
        if not (math.isfinite(alpha) and alpha > max(1e-290, negligible * max(alphas, default=0.0))):
            break
        alphas.append(alpha)
        left.append(u / alpha)
        w = _away(transpose(left[-1]), right)
        betas.append(float(torch.linalg.vector_norm(w)))
        if not betas[-1] > negligible * max(alphas):
            break
        right.append(w / betas[-1])
    if not alphas:
        return 0.0, v * 0
    bidiagonal = torch.zeros(len(alphas), len(right), dtype=torch.float64)
    bidiagonal.diagonal().copy_(torch.tensor(alphas))
    bidiagonal.diagonal(1).copy_(torch.tensor(betas)[: len(right) - 1])
    _, values, vectors = torch.linalg.svd(bidiagonal, full_matrices=False)
    ritz = sum(float(c) * r for c, r in zip(vectors[0], right, strict=True))
    return float(values[0]), ritz


def _away(vector: torch.Tensor, basis: list[torch.Tensor]) -> torch.Tensor:
    """The part of the vector that is orthogonal to the basis."""
    if not basis:
        return vector
    stack = torch.stack([b.reshape(-1) for b in basis])
    flat = vector.reshape(-1)
    for _ in range(2):  # twice is enough
        flat = flat - stack.T @ (stack @ flat)
    return flat.reshape(vector.shape)


def landscape(conv: Conv, sizes: Sequence[int], *, steps: int) -> torch.Tensor:
    """About ||F(2 pi j / size)|| for every frequency j of a torus, (groups, *sizes), from below.

    Lanczos iteration in single precision on images of the whole torus: the convolution is block diagonal there, so it
    iterates on every frequency at once, each with coefficients of its own, for the price of a few convolutions. It ends
    early when the highest place of no parity class grows any more. Proves nothing: it says where to look first. The
    result is on the CPU, where the coefficients go in one copy: their tridiagonal matrices cost many small operations.
    """
    axes = tuple(range(-len(sizes), 0))
    largest = max(float(conv.weight.abs().max()), 1e-290)
    around = Torus(replace(conv, weight=conv.weight / largest, padding_mode="zeros"), sizes, range(len(sizes)))

    def waves_of(image: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfftn(image.unflatten(1, (conv.groups, -1))[0], dim=axes)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(around.input_shape, generator=generator).to(conv.weight.device)
    first, transpose = both_ways(around, start)
    waves, _ = _unit(waves_of(first))
    before, beta = torch.zeros_like(waves), torch.zeros((), device=waves.device)
    alphas: list[torch.Tensor] = []
    betas: list[torch.Tensor] = []
    peaks = torch.zeros((), device="cpu")
    steps = min(steps, waves.shape[1])
    for step in range(1, steps + 1):
        image = torch.fft.irfftn(waves, s=tuple(sizes), dim=axes).flatten(0, 1)[None]
        new = waves_of(around.apply(transpose(image))) - beta * before
        alphas.append((torch.view_as_real(waves) * torch.view_as_real(new)).sum((1, -1)))
        before, (waves, beta) = waves, _unit(new - alphas[-1][:, None] * waves)
        if step == steps or (step >= _FIRST_LOOK and step % 2 == 0):
            on_host = torch.stack([*alphas, *betas]).to("cpu", torch.float64).unbind()
            squares = _largest_of_tridiagonal(on_host[: len(alphas)], on_host[len(alphas) :])
            lower, peaks = peaks, _peaks(squares, len(sizes))
            if bool((peaks <= lower * (1 + _GROWTH)).all()):
                break
        betas.append(beta[:, 0])
    return _with_mirror_images(squares.sqrt() * largest, sizes[-1])


def _peaks(squares: torch.Tensor, axes: int) -> torch.Tensor:
    """The highest place of each parity class."""
    largest = squares.amax(0)
    classes = itertools.product((0, 1), repeat=axes)
    parts = [largest[tuple(slice(bit, None, 2) for bit in parity)] for parity in classes]
    return torch.stack([part.max() for part in parts if part.numel()])


def _with_mirror_images(half: torch.Tensor, size: int) -> torch.Tensor:
    """All frequencies, from those with at most half of the last axis: -j has the norm of j."""
    mirrored = half[..., 1 : (size + 1) // 2].flip(-1)
    for axis in range(1, half.ndim - 1):
        mirrored = mirrored.flip(axis).roll(1, axis)
    return torch.cat([half, mirrored], dim=-1)


def _unit(waves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each frequency of each group over its length, and the lengths, keeping the axis of channels (1)."""
    length = torch.view_as_real(waves).square().sum((1, -1)).sqrt()[:, None]
    return waves / length.clamp_min(1e-30), length


def _largest_of_tridiagonal(diagonal: Sequence[torch.Tensor], beside: Sequence[torch.Tensor]) -> torch.Tensor:
    """About the largest eigenvalues of positive semidefinite tridiagonal matrices, given entry by entry: bisection.

    A shift is above all eigenvalues if all pivots of the shifted matrix are negative (Sturm).
    """
    none = torch.zeros_like(diagonal[0])
    reaches = [a + b + c for a, b, c in zip(diagonal, [none, *beside], [*beside, none], strict=True)]
    low, high = none, torch.stack(reaches).amax(0).clamp_min(1e-290)  # Gershgorin
    for _ in range(_BISECTIONS if beside else 0):
        middle = (low + high) / 2
        pivot = diagonal[0] - middle
        above = pivot < 0
        for a, b in zip(diagonal[1:], beside, strict=True):
            pivot = a - middle - b * b / torch.where(pivot == 0, 1e-290, pivot)
            above &= pivot < 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return high


class Torus:
    """A convolution with some of its axes on a twisted torus, as a linear map in single precision: for guesses.

    `sizes` are the places of the output along each axis; the `twist` of an axis is 1 where what leaves at one end comes
    back with the other sign. Weights of moderate size are expected, and no padding but zeros.
    """

    def __init__(self, conv: Conv, sizes: Sequence[int], axes: Sequence[int], twist: Sequence[int] = ()) -> None:
        size, pads = list(conv.input_size), list(conv.padding)
        self.around = []
        for axis, bit in zip(axes, twist or [0] * len(axes), strict=True):
            period = sizes[axis] * conv.stride[axis]
            reach = period + conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            places = torch.arange(reach, device=conv.weight.device)
            sign = 1.0 - 2.0 * ((places // period) % 2)
            column = sign.reshape(-1, *(1,) * (len(size) - 1 - axis))
            self.around.append((2 + axis, places % period, column if bit else None))
            size[axis], pads[axis] = period, (0, 0)
        self.conv = replace(conv, weight=conv.weight.float(), input_size=tuple(size), padding=tuple(pads))
        self.input_shape = self.conv.input_shape

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        for axis, places, sign in self.around:
            x = x.index_select(axis, places)
            x = x if sign is None else x * sign
        return self.conv.apply(x)
