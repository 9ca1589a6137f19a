"""Almost-orthogonal layers: linear maps whose spectral norm is at most 1, whatever their parameter holds.

Note [AOL rescaling]
    Let T be a linear map with columns k_p and M = TᵀT. With d_p = (sum_q |M_pq|)^(-1/2) and D = diag(d),

        |T D x|² <= sum_pq |M_pq| d_p|x_p| d_q|x_q|  <=  sum_p (d_p x_p)² sum_q |M_pq|  =  |x|²,

    because ab <= (a² + b²)/2 and M is symmetric. So |T D| <= 1, with equality for orthogonal columns; and as
    |D T| = |Tᵀ D|, the same holds for the rows of T with M = T Tᵀ. The published layer scales columns. Where there are
    fewer rows, orthogonal columns are out of reach and orthogonal rows are not: we scale the side that has fewer.
    For a convolution on the infinite lattice p = (channel, position), the sum does not depend on the position and is
    the absolute sum of the kernel's autocorrelation, one number per channel. Zero padding restricts that lattice map
    to a part of its inputs and outputs, so the bound holds for every image size and every padding. Stride, dilation
    and groups are those of Note [Lattice] in `norms/lattice.py`: a stride gives every input channel *and phase* a
    factor of its own and counts only overlaps that it really has; groups are blocks.
    Source: Prach and Lampert, "Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks", ECCV 2022,
    arXiv 2208.03160; for zero padding only, without strides, dilation, groups and rows.

Note [Circular AOL]
    On a circle of n entries with stride 1, output i is the row i - padding (mod n) of a circulant map, whose norm is
    at most that on the lattice (its symbol, at some frequencies; also if the kernel wraps around). While 2 padding is
    at most dilation (kernel - 1), an axis has at most n outputs: no row twice. A stride takes some of these rows. The
    phases of a stride close to a circle only if it divides n, which a layer cannot know beforehand: here they are not
    told apart, and a strided circular convolution is rescaled as if it had stride 1.

Note [Outward rounding of AOL]
    Exact arithmetic gives norm <= 1; the weight that runs is rounded. Let u be the unit roundoff and η the
    smallest subnormal of the dtype that runs, N = in·taps the entries of a row, C = out·taps/phases those of a
    column, n the length of the vectors whose products are summed (C for columns, N for rows), and J = channels·offsets
    the terms of one sum. All sums run in float64 (u64 = 2^-53) as ordinary dot products, of the kernel divided by its
    peak so that nothing overflows (T is that quotient, as computed).
     1. The computed autocorrelation is off by at most about n·u64·|k_p||k_q| an entry. As d_p|k_p| <= 1, this
        changes the norm of D M D by at most n·J·u64. Sums, root and products add a few u64 each.
     2. Rounding the weight to its dtype changes each entry by at most u times itself or, below the normal
        range, η. Columns and rows of a map of norm 1 have length <= 1, so by Cauchy-Schwarz the map of the absolute
        values has norm <= sqrt(min(N, C)), and the change is at most u times that, plus η·sqrt(N·C).
     3. A proof of the norm, also in floating point, has to stay at 1 as well: `PROOF` is what it may add.
    `rounding_slack` is the sum, and the scale is divided by 1 + slack. It is about 1e-6 in float32.
    Columns more than 2^450 times shorter than the largest entry (float64 only) are scaled by 1 instead: they
    cannot matter, and underflow cannot reach the argument.

Note [Autocast]
    Autocast rounds the weight of a layer once more, and rounding to nearest may lengthen it. So under autocast the
    rescaling itself returns the weight in the dtype of autocast, with the slack for that dtype: nothing is left to
    round. Its own sums are taken in float64 all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipaudit.norms.lattice import autocorrelation, polyphase

Side = Literal["fewer", "input", "output"]
"""The channels that get a factor each: of the input as published, of the output, or of whichever has fewer."""

LayerT = TypeVar("LayerT", bound=nn.Module)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

# Squared length below which a column counts as zero; see Note [Outward rounding of AOL].
NEGLIGIBLE = 2.0**-900
PROOF = 2.0**-26
"""More than what the proofs of `norms/` add to a norm relatively; see Note [Outward rounding of AOL]."""

FORMATS = {
    dtype: (torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
"""Unit roundoff and smallest subnormal of the dtypes that a weight may have."""


def rounding_slack(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """The norm of an AOL weight of this dtype is proved to be at most (1 + slack) times what exact arithmetic gives.

    `shape` is that of `polyphase` taps: (groups, out, in·phases, *size). See Note [Outward rounding of AOL].
    """
    _, out, inputs, *size = shape
    row, column = inputs * math.prod(size), out * math.prod(size)
    terms = max(out, inputs) * math.prod([2 * k - 1 for k in size])  # a list: torch.compile reads no generator here
    unit, subnormal = FORMATS[dtype]
    in_float64 = (max(row, column) * terms + 8) * 2.0**-52
    return in_float64 + unit * math.sqrt(min(row, column)) + subnormal * math.sqrt(row * column) + PROOF


def running_dtype(stored: Tensor) -> torch.dtype:
    """The dtype in which a stored tensor runs as a weight here and now; see Note [Autocast]."""
    kind = stored.device.type
    if stored.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return stored.dtype


def absolute_sums(taps: Tensor) -> Tensor:
    """For each row channel the sum over all channels and shifts of |T T*|: (groups, out, in, *size) to (groups, out).

    Their maximum bounds the squared norm on the lattice. T T* at -d is the transpose of that at d.
    """
    total = taps.new_zeros(taps.shape[:2])
    for shift, product in autocorrelation(taps):
        absolute = product.abs()
        total = total + absolute.sum(2) + (absolute.sum(1) if any(shift) else 0.0)
    return total


def aol_rescale(
    kernel: Tensor,
    stride: Sequence[int] | None = None,
    groups: int = 1,
    *,
    side: Side = "fewer",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The kernel with every channel (and phase) of one side scaled so that its convolution has norm at most 1.

    Shape (out, in / groups, *taps), a matrix having no taps; also after rounding to `dtype` (default: the kernel's),
    for zero padding of any width and any image size. `stride` is that of Note [Lattice], its common divisor with the
    dilation taken out. Differentiable; a zero channel stays zero and receives a finite gradient, so it can wake up.
    """
    dtype, size = dtype or kernel.dtype, kernel.shape[2:]
    stride = tuple(stride or (1,) * len(size))
    # A constant factor of the kernel cancels: dividing by its peak avoids overflow and needs no gradient.
    peak = kernel.detach().abs().amax().double()
    unit = kernel.double() / torch.where(peak > 0, peak, 1.0)
    taps = polyphase(unit, stride, groups)
    rows = side == "output" or (side == "fewer" and taps.shape[1] < taps.shape[2])
    sums = absolute_sums(taps if rows else taps.transpose(1, 2))
    scale = torch.where(sums > NEGLIGIBLE, sums, 1.0).rsqrt() / (1 + rounding_slack(tuple(taps.shape), dtype))
    if rows:
        return (unit * scale.reshape(-1, *(1,) * (kernel.ndim - 1))).to(dtype)
    phases = tuple(min(s, k) for s, k in zip(stride, size, strict=True))
    repeats = (-(-k // phase) for k, phase in zip(size, phases, strict=True))
    per_tap = scale.reshape(groups, 1, kernel.shape[1], *phases).repeat(1, 1, 1, *repeats)
    per_tap = per_tap[(*(slice(None),) * 3, *(slice(k) for k in size))]
    return (unit.unflatten(0, (groups, -1)) * per_tap).flatten(0, 1).to(dtype)


class AOLRescaling(nn.Module):
    """Parametrisation: stored weight to weight of norm at most 1 (see `aol_rescale`), also under autocast."""

    def __init__(self, stride: Sequence[int] = (), groups: int = 1, side: Side = "fewer") -> None:
        super().__init__()
        if side not in get_args(Side):
            raise ValueError(f"AOL: expected side {', '.join(get_args(Side))}, got {side!r}")
        self.stride, self.groups, self.side = tuple(stride), groups, side

    def forward(self, stored: Tensor) -> Tensor:
        dtype = running_dtype(stored)
        with torch.autocast(stored.device.type, enabled=False):
            return aol_rescale(stored, self.stride, self.groups, side=self.side, dtype=dtype)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, groups={self.groups}, side={self.side!r}"


def aol(layer: LayerT, *, side: Side = "fewer") -> LayerT:
    """Gives an existing layer a Lipschitz constant of at most 1 in L2, for every image size; returns the same layer.

    `layer` is an `nn.Linear` or `nn.Conv1d` to `nn.Conv3d` with any kernel, stride, dilation and groups, and zero
    padding or circular padding of at most half the kernel's extent. Its weight becomes the start of
    `.parametrizations.weight.original`, `.weight` the rescaled one. Raises `ValueError` for anything else. See
    Note [AOL rescaling] and Note [Circular AOL].
    """
    if not isinstance(layer, nn.Linear | Convolution):
        raise ValueError(
            f"aol: expected a dense layer or a convolution, got {type(layer).__name__}; there is no rescaling for it"
        )
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError(f"aol: expected a plain weight, got a parametrised one in {layer}; remove that first")
    if isinstance(layer, nn.Linear):
        rescaling = AOLRescaling(side=side)
    else:
        rescaling = AOLRescaling(lattice_stride(layer), layer.groups, side)
    parametrize.register_parametrization(layer, "weight", rescaling)
    return layer


def lattice_stride(conv: Convolution) -> tuple[int, ...]:
    """The stride of the lattice map that bounds the layer for every image size; see Note [Circular AOL].

    Raises `ValueError` for paddings for which no lattice map does.
    """
    if conv.padding_mode == "zeros":
        return tuple(s // math.gcd(s, d) for s, d in zip(conv.stride, conv.dilation, strict=True))
    if conv.padding_mode != "circular":
        raise ValueError(
            f"expected zero or circular padding, got {conv.padding_mode!r}, which copies pixels and can stretch "
            "distances; use padding_mode='zeros'"
        )
    if not isinstance(conv.padding, str):
        for padding, kernel, dilation in zip(conv.padding, conv.kernel_size, conv.dilation, strict=True):
            if 2 * padding > dilation * (kernel - 1):
                raise ValueError(
                    f"expected circular padding of at most {dilation * (kernel - 1) // 2} for kernel {kernel} and "
                    f"dilation {dilation}, got {padding}, which repeats outputs and can stretch distances"
                )
    return (1,) * len(conv.kernel_size)


class AOLConv2d(nn.Conv2d):
    """Convolution of Lipschitz constant at most 1 in L2, for every image size.

    Arguments are those of `nn.Conv2d`, and `side`: which channels are scaled. `.weight` is the rescaled kernel, the
    trained tensor is `.parametrizations.weight.original`. It starts orthogonal. Raises `ValueError` for padding modes
    other than zeros and circular, and for circular padding of more than half the kernel's extent. See `aol`.
    """

    claimed_lipschitz = 1.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        *,
        side: Side = "fewer",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode=padding_mode
        )
        aol(self, side=side)

    def reset_parameters(self) -> None:
        """An orthogonal map of the central stride x stride taps, no bias: on it the rescaling loses nothing.

        The block holds every phase of the stride once. In a circular layer, whose phases are not told apart, it is
        the central tap.
        """
        steps = lattice_stride(self)
        taps = [min(k, s) for k, s in zip(self.kernel_size, steps, strict=True)]
        top, left = ((k - t) // 2 for k, t in zip(self.kernel_size, taps, strict=True))
        out, inputs = self.out_channels // self.groups, self.in_channels // self.groups
        with torch.no_grad():
            self.weight.zero_()
            for group in self.weight.split(out):
                block = nn.init.orthogonal_(group.new_empty(out, inputs * taps[0] * taps[1]))
                group[:, :, top : top + taps[0], left : left + taps[1]] = block.reshape(out, inputs, *taps)
            if self.bias is not None:
                self.bias.zero_()


class AOLLinear(nn.Linear):
    """Dense layer of Lipschitz constant at most 1 in L2.

    Arguments are those of `nn.Linear`, and `side`: which features are scaled. `.weight` is the rescaled matrix, the
    trained tensor is `.parametrizations.weight.original`. It starts orthogonal. See Note [AOL rescaling].
    """

    claimed_lipschitz = 1.0

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, side: Side = "fewer") -> None:
        super().__init__(in_features, out_features, bias=bias)
        aol(self, side=side)

    def reset_parameters(self) -> None:
        """Orthogonal weight, no bias."""
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
