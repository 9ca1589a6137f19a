"""Almost-orthogonal layers: linear maps whose spectral norm is at most 1, whatever their parameter holds.

Note [AOL rescaling]
    Let T be a linear map with columns k_p and M = TᵀT. With d_p = (sum_q |M_pq|)^(-1/2) and D = diag(d),

        |T D x|² <= sum_pq |M_pq| d_p|x_p| d_q|x_q|  <=  sum_p (d_p x_p)² sum_q |M_pq|  =  |x|²,

    because ab <= (a² + b²)/2 and M is symmetric. So |T D| <= 1, with equality for orthogonal columns. For a
    convolution on the infinite lattice p = (input channel, position), the sum does not depend on the position
    and is the absolute sum of the kernel's autocorrelation, one number per input channel. Zero padding
    restricts that lattice map to a part of its inputs and outputs, so the bound holds for every image size
    and every padding. Source: Prach and Lampert, "Almost-Orthogonal Layers for Efficient General-Purpose
    Lipschitz Networks", ECCV 2022, arXiv 2208.03160.

Note [Polyphase]
    A convolution with stride s is a convolution with stride 1 of the s·s phases of its input, which is a mere
    rearrangement of the image. Its kernel has in·s·s channels and about k/s taps. Rescaling that kernel gives
    every channel *and phase* a factor of its own, and counts only overlaps that the stride really has.

Note [Outward rounding of AOL]
    Exact arithmetic gives norm <= 1; the weight that runs is rounded. Let u be the unit roundoff and η the
    smallest subnormal of the parameter's dtype, n = out·taps the length of a column, J = channels·offsets the
    terms of one sum, N = in·taps the entries of a row. All sums run in float64 (u64 = 2^-53) as ordinary dot
    products, of the kernel divided by its peak so that nothing overflows (T is that quotient, as computed).
     1. The computed autocorrelation is off by at most about n·u64·|k_p||k_q| an entry. As d_p|k_p| <= 1, this
        changes the norm of D M D by at most n·J·u64. Sums, root and products add a few u64 each.
     2. Rounding the weight to its dtype changes each entry by at most u times itself or, below the normal
        range, η. Columns of T D have length <= 1 and rows have N entries, so by Cauchy-Schwarz the change has
        norm <= u·sqrt(N), plus η·sqrt(N·n).
    `rounding_slack` is the sum, and the scale is divided by 1 + slack. It is about 1e-6 in float32.
    Columns more than 2^450 times shorter than the largest entry (float64 only) are scaled by 1 instead: they
    cannot matter, and underflow cannot reach the argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

# Squared length below which a column counts as zero; see Note [Outward rounding of AOL].
NEGLIGIBLE = 2.0**-900


def rounding_slack(shape: tuple[int, ...], stride: tuple[int, int], dtype: torch.dtype) -> float:
    """The norm of an AOL weight of this dtype is at most (1 + slack) times what exact arithmetic gives.

    `shape` is (out, in, kh, kw). See Note [Outward rounding of AOL].
    """
    out, channels, *kernel = shape
    taps = math.prod(kernel)
    length = out * math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
    offsets = math.prod(2 * -(-k // s) - 1 for k, s in zip(kernel, stride, strict=True))
    terms = channels * math.prod(stride) * offsets
    row = channels * taps
    dtype_facts = torch.finfo(dtype)
    subnormal = dtype_facts.smallest_normal * dtype_facts.eps
    in_float64 = (length * terms + 8) * 2.0**-52
    return in_float64 + dtype_facts.eps / 2 * math.sqrt(row) + subnormal * math.sqrt(row * length)


def polyphase(kernel: Tensor, stride: tuple[int, int]) -> Tensor:
    """The stride-1 kernel that acts on the phases of the input as `kernel` acts on the input with `stride`.

    Shapes: (out, in, kh, kw) to (out, in·sh·sw, ceil(kh/sh), ceil(kw/sw)). See Note [Polyphase].
    """
    out, channels, height, width = kernel.shape
    (sh, sw), (rows, columns) = stride, (-(-height // stride[0]), -(-width // stride[1]))
    filled = pad(kernel, (0, columns * sw - width, 0, rows * sh - height))
    phases = filled.reshape(out, channels, rows, sh, columns, sw).permute(0, 1, 3, 5, 2, 4)
    return phases.reshape(out, channels * sh * sw, rows, columns)


def autocorrelation_sums(kernel: Tensor) -> Tensor:
    """For each input channel i the sum over j and shifts d of |(K*K)_ij(d)|; their maximum bounds the squared norm.

    Shapes: (out, in, kh, kw) to (in,). (K*K)_ij(-d) is (K*K)_ji(d), so half of the shifts suffice.
    """
    height, width = kernel.shape[2:]
    total = kernel.new_zeros(kernel.shape[1])
    for down in range(height):
        for right in range(-(width - 1) if down else 0, width):
            ahead = kernel[:, :, down:, max(right, 0) : width + min(right, 0)]
            behind = kernel[:, :, : height - down, max(-right, 0) : width - max(right, 0)]
            overlap = torch.einsum("oiyx,ojyx->ij", ahead, behind).abs()
            total = total + overlap.sum(1)
            if (down, right) != (0, 0):
                total = total + overlap.sum(0)
    return total


def aol_rescale(kernel: Tensor, stride: tuple[int, int] = (1, 1)) -> Tensor:
    """The kernel with every input channel (and phase) scaled so that its convolution has norm at most 1.

    Shape (out, in, kh, kw), also after rounding to the kernel's dtype, for zero padding of any width and any
    image size. Differentiable; a zero channel stays zero and receives a finite gradient, so it can wake up.
    """
    # A constant factor of the kernel cancels: dividing by its peak avoids overflow and needs no gradient.
    peak = kernel.detach().abs().amax().double()
    unit = kernel.double() / torch.where(peak > 0, peak, 1.0)
    sums = autocorrelation_sums(polyphase(unit, stride))
    counts = sums > NEGLIGIBLE
    scale = torch.where(counts, sums, 1.0).rsqrt()
    scale = scale / (1 + rounding_slack(tuple(kernel.shape), stride, kernel.dtype))
    _, channels, height, width = kernel.shape
    repeats = (1, -(-height // stride[0]), -(-width // stride[1]))
    per_tap = scale.reshape(channels, *stride).repeat(repeats)[:, :height, :width]
    return (unit * per_tap).to(kernel.dtype)


class AOLRescaling(nn.Module):
    """Parametrisation: stored kernel to kernel of norm at most 1 (see `aol_rescale`); matrices count as 1x1."""

    def __init__(self, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, stored: Tensor) -> Tensor:
        kernel = stored if stored.ndim == 4 else stored[:, :, None, None]
        return aol_rescale(kernel, self.stride).reshape(stored.shape)


class AOLConv2d(nn.Conv2d):
    """Convolution with zero padding of Lipschitz constant at most 1 in L2, for every image size.

    Arguments are those of `nn.Conv2d`; dilation, groups and other padding modes are left out because the
    argument does not cover them. `.weight` is the rescaled kernel, the trained tensor is
    `.parametrizations.weight.original`. See Note [AOL rescaling] and Note [Polyphase].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        parametrize.register_parametrization(self, "weight", AOLRescaling(self.stride))

    def reset_parameters(self) -> None:
        """An orthogonal map of the central stride x stride taps, no bias: on it the rescaling loses nothing.

        (With more inputs than outputs no map keeps every input, and this one is shrunk.) The block holds
        every phase of the stride once.
        """
        taps = [min(k, s) for k, s in zip(self.kernel_size, self.stride, strict=True)]
        top, left = ((k - t) // 2 for k, t in zip(self.kernel_size, taps, strict=True))
        with torch.no_grad():
            block = nn.init.orthogonal_(self.weight.new_empty(self.out_channels, self.in_channels * taps[0] * taps[1]))
            block = block.reshape(self.out_channels, self.in_channels, *taps)
            self.weight.zero_()[:, :, top : top + taps[0], left : left + taps[1]] = block
            if self.bias is not None:
                self.bias.zero_()


class AOLLinear(nn.Linear):
    """Dense layer of Lipschitz constant at most 1 in L2.

    Arguments are those of `nn.Linear`. `.weight` is the rescaled matrix, the trained tensor is
    `.parametrizations.weight.original`. It starts orthogonal. See Note [AOL rescaling].
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        parametrize.register_parametrization(self, "weight", AOLRescaling())

    def reset_parameters(self) -> None:
        """Orthogonal weight, no bias."""
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
