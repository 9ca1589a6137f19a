"""Convolutions that are orthogonal, and residual steps that do not expand: built from the two, a network loses nothing.

Note [Orthogonal kernels]
    With z a shift by one pixel and P an orthogonal projection, P + (I - P) z is unitary at every frequency. So is the
    product of an orthogonal matrix with k - 1 such factors along each axis: a kernel of k x k taps. On a circle its
    convolution is orthogonal, on an image that is padded with zeros a part of an orthogonal map; with fewer channels on
    one side, rows or columns of it. All matrices are factors Q of QR decompositions, which are orthonormal to rounding
    whatever is stored, and the kernel is divided by one plus what its own rounding may add (Note [Outward rounding of
    AOL]): errors of float64 in its products are far below the first term there.
    Source: Li et al., "Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks", NeurIPS 2019.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from lipaudit.nn.almost_orthogonal import AOLConv2d, AOLLinear, rounding_slack, running_dtype


class OrthogonalKernel(nn.Module):
    """Parametrisation: matrices (2 k - 1, side, side) to a kernel (out, in, k, k); see Note [Orthogonal kernels]."""

    def __init__(self, out_channels: int, in_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.shape = (out_channels, in_channels, kernel_size, kernel_size)

    def forward(self, stored: Tensor) -> Tensor:
        dtype = running_dtype(stored)
        with torch.autocast(stored.device.type, enabled=False):
            outs, ins, size, _ = self.shape
            matrix, *factors = torch.linalg.qr(stored.double()).Q
            kernel, eye = matrix[None, None], torch.eye(len(matrix), dtype=torch.float64, device=stored.device)
            for number, factor in enumerate(factors):
                half = factor[:, : (len(eye) + 1) // 2]
                projection, axis = half @ half.mT, number % 2
                pads = (0, 0, 0, 0, 0, 1) if axis else (0, 0, 0, 0, 0, 0, 0, 1)
                moved = functional.pad(kernel @ (eye - projection), pads).roll(1, 1 if axis else 0)
                kernel = functional.pad(kernel @ projection, pads) + moved
            kernel = kernel[:, :, :outs, :ins].permute(2, 3, 0, 1)
            return (kernel / (1 + rounding_slack((1, outs, ins, size, size), dtype))).to(dtype)


class OrthogonalConv2d(nn.Conv2d):
    """Convolution of stride 1 that keeps the norm of every image on a circle: Lipschitz constant at most 1 in L2.

    The image keeps its size; `kernel_size` is odd. With `padding_mode` "zeros" it is a part of an orthogonal map, with
    fewer channels on one side it has orthonormal rows or columns. For strides put `SpaceToDepth` before it. `.weight`
    is the kernel that runs, what is trained is `.parametrizations.weight.original`. It starts as a random orthogonal
    map. Raises `ValueError` for other kernels and paddings. See Note [Orthogonal kernels].
    """

    claimed_lipschitz = 1.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        bias: bool = True,
        padding_mode: Literal["circular", "zeros"] = "circular",
    ) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"OrthogonalConv2d: expected an odd kernel_size, got {kernel_size}")
        if padding_mode not in ("circular", "zeros"):
            raise ValueError(f"OrthogonalConv2d: expected circular padding or zeros, got {padding_mode!r}")
        pads = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, padding=pads, bias=bias, padding_mode=padding_mode)
        side = max(in_channels, out_channels)
        matrices = torch.stack([nn.init.orthogonal_(torch.empty(side, side)) for _ in range(2 * kernel_size - 1)])
        self.weight = nn.Parameter(matrices.to(self.weight))
        # A kernel has another shape than the matrices that it is made of.
        kernel = OrthogonalKernel(out_channels, in_channels, kernel_size)
        parametrize.register_parametrization(self, "weight", kernel, unsafe=True)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PotentialConv2d(nn.Module):
    """x - 2 W^T relu(W x + b) with a convolution W of norm at most 1: a residual step of Lipschitz constant 1 in L2.

    A step along the gradient of a convex potential: I - 2 W^T S W with slopes S in [0, 1] has eigenvalues in [-1, 1].
    W, `.inner`, is rescaled as `AOLConv2d` is and has `hidden_channels` outputs (as many as inputs unless given). Input
    (n, channels, height, width), the same shape comes out; zero padding, an odd `kernel_size` (else `ValueError`).
    Source: Meunier et al., ICML 2022, arXiv 2110.12690; Araujo et al., ICLR 2023, arXiv 2303.03169.
    """

    claimed_lipschitz = 1.0

    def __init__(self, channels: int, hidden_channels: int | None = None, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"PotentialConv2d: expected an odd kernel_size, got {kernel_size}")
        self.pads = kernel_size // 2
        self.inner = AOLConv2d(channels, hidden_channels or channels, kernel_size, padding=self.pads)

    def forward(self, x: Tensor) -> Tensor:
        weight, padding = self.inner.weight, self.pads
        hidden = torch.relu(functional.conv2d(x, weight, self.inner.bias, padding=padding))
        return x - 2 * functional.conv_transpose2d(hidden, weight, padding=padding)


class PotentialLinear(nn.Module):
    """x - 2 W^T relu(W x + b) with a matrix W of norm at most 1: `PotentialConv2d` for vectors (n, features)."""

    claimed_lipschitz = 1.0

    def __init__(self, features: int, hidden_features: int | None = None) -> None:
        super().__init__()
        self.inner = AOLLinear(features, hidden_features or features)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        return x - 2 * functional.linear(torch.relu(functional.linear(x, weight, self.inner.bias)), weight.mT)
