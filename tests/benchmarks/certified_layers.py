"""The 1-Lipschitz layers of the field, each written anew from its paper's formula in the form that public code runs."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


def cayley(w: torch.Tensor) -> torch.Tensor:
    """Matrices (..., out, in), out >= in, with orthonormal columns."""
    columns = w.shape[-1]
    u, v = w[..., :columns, :], w[..., columns:, :]
    eye = torch.eye(columns, dtype=w.dtype)
    a = u - u.mH + v.mH @ v
    inverse = torch.linalg.inv(eye + a)
    return torch.cat([inverse @ (eye - a), -2 * v @ inverse], -2)


def orthonormal(w: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns, or rows where there are more columns."""
    return cayley(w) if w.shape[-2] >= w.shape[-1] else cayley(w.mT).mT


class MaxMin(nn.Module):
    """Anil et al., ICML 2019."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


class HouseHolder(nn.Module):
    """Singla, Singla and Feizi, ICLR 2022, order 1: reflected where the angle is beyond theta / 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.rand(1, channels // 2, 1, 1) * math.pi)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        theta = self.theta if z.ndim == 4 else self.theta.flatten(1)
        x, y = z.split(z.shape[1] // 2, 1)
        selector = x * torch.sin(0.5 * theta) - y * torch.cos(0.5 * theta)
        u = x * torch.cos(theta) + y * torch.sin(theta)
        v = x * torch.sin(theta) - y * torch.cos(theta)
        a = x * (selector <= 0) + u * (selector > 0)
        b = y * (selector <= 0) + v * (selector > 0)
        return torch.cat([a, b], 1)


class CayleyDense(nn.Module):
    """Trockman and Kolter, ICLR 2021."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, orthonormal(self.weight))


class Bjorck(nn.Module):
    """Anil et al., ICML 2019: fifteen steps towards the nearest orthonormal matrix."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight / torch.linalg.matrix_norm(self.weight, 2)
        for _ in range(15):
            w = 1.5 * w - 0.5 * w @ w.T @ w
        return functional.linear(x, w)


class SandwichDense(nn.Module):
    """Wang and Manchester, ICML 2023: sqrt(2) A^T Psi relu(sqrt(2) Psi^-1 B x + b), [A, B] orthonormal."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.psi = nn.Parameter(torch.randn(inputs + outputs, outputs)), nn.Parameter(torch.randn(outputs))
        self.bias, self.outputs = nn.Parameter(torch.randn(outputs)), outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = cayley(self.weight).T
        a, b = q[:, : self.outputs], q[:, self.outputs :]
        hidden = functional.linear(x, math.sqrt(2.0) * b) * torch.exp(-self.psi) + self.bias
        return functional.linear(functional.relu(hidden) * (math.sqrt(2.0) * torch.exp(self.psi)), a.T)


class Potential(nn.Module):
    """x - V relu(W x + b), dense or convolutional; how V is scaled is what tells the families apart."""

    def __init__(self, inputs: int, hidden: int, kind: str, size: int | None = None, steps: int = 100) -> None:
        super().__init__()
        kernel = (hidden, inputs) if size is None else (hidden, inputs, 3, 3)
        self.weight, self.kind = nn.Parameter(torch.randn(kernel) / math.sqrt(math.prod(kernel[1:]))), kind
        self.q, self.bias = nn.Parameter(torch.randn(hidden) / 4), nn.Parameter(torch.randn(hidden))
        self.convolution, self.steps = size is not None, steps
        self.register_buffer("start", torch.randn(1, inputs, size, size) if size else torch.randn(1, inputs))

    def scales(self) -> torch.Tensor:
        w = self.weight
        if self.kind == "cpl":  # Meunier et al., ICML 2022: 2 / ||W||^2 by power iteration
            u = self.start
            for _ in range(self.steps):
                v = self.apply_w(u)
                u = self.apply_wt(v / v.norm())
                u = u / u.norm()
            return 2 / self.apply_w(u).square().sum()
        gram = functional.conv2d(w, w, padding=2).abs().sum((2, 3)) if self.convolution else (w @ w.T).abs()
        if self.kind == "aol":
            return 2 / gram.sum(1)
        q = torch.exp(self.q)  # Araujo et al., ICLR 2023 (SLL)
        return 2 / (gram * q / q[:, None]).sum(1)

    def apply_w(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, padding=1) if self.convolution else functional.linear(x, self.weight)

    def apply_wt(self, z: torch.Tensor) -> torch.Tensor:
        if self.convolution:
            return functional.conv_transpose2d(z, self.weight, padding=1)
        return functional.linear(z, self.weight.T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.bias[:, None, None] if self.convolution else self.bias
        scale = self.scales()
        scale = scale[:, None, None] if self.convolution and scale.ndim else scale
        return x - self.apply_wt(scale * functional.relu(self.apply_w(x) + bias))


class AOLConv(nn.Module):
    """Prach and Lampert, ECCV 2022."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        by_input = self.weight.transpose(0, 1)
        sums = functional.conv2d(by_input, by_input, padding=2).abs().sum((1, 2, 3))
        return functional.conv2d(x, self.weight * sums.rsqrt()[:, None, None], padding=1)


class BCOP(nn.Module):
    """Li et al., NeurIPS 2019: an orthogonal matrix, then 2x2 kernels of projections, composed on the torus."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        side = max(inputs, outputs)
        self.matrices = nn.Parameter(torch.randn(5, side, side))
        self.inputs, self.outputs = inputs, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.linalg.qr(self.matrices)[0]
        kernel = q[0][:, :, None, None]
        eye = torch.eye(len(kernel))
        for k in (1, 3):
            p, r = (m[:, : len(kernel) // 2] @ m[:, : len(kernel) // 2].T for m in (q[k], q[k + 1]))
            two = torch.stack(
                [torch.stack([p @ r, p @ (eye - r)]), torch.stack([(eye - p) @ r, (eye - p) @ (eye - r)])]
            )
            kernel = functional.conv2d(kernel.transpose(0, 1), two.permute(2, 3, 0, 1).flip(2, 3), padding=1)
            kernel = kernel.transpose(0, 1)
        kernel = kernel[: self.outputs, : self.inputs]
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="circular"), kernel)


class Frequencies(nn.Module):
    """Convolutions around the border with a matrix for each frequency; `kind` says how that becomes orthonormal.

    cayley: Trockman and Kolter, ICLR 2021. root: Xu, Li and Li, NeurIPS 2022 (LOT), by Newton's iteration.
    """

    def __init__(self, inputs: int, outputs: int, kind: str, kernel: int = 3) -> None:
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel)), kind
        self.bias = nn.Parameter(torch.randn(outputs))

    def matrices(self, n: int) -> torch.Tensor:
        w = torch.fft.rfft2(self.weight, (n, n)).flatten(2).permute(2, 0, 1).conj()
        if self.kind == "cayley":
            return orthonormal(w / w.norm() * 4) if w.shape[1] >= w.shape[2] else cayley(w.mH / w.norm() * 4).mH
        wide = w.shape[1] < w.shape[2]
        v = w.mH if wide else w
        gram = v.mH @ v
        size = torch.linalg.matrix_norm(gram)[:, None, None]
        y, z = gram / size, torch.eye(gram.shape[1], dtype=gram.dtype).expand_as(gram)
        for _ in range(40):
            t = 1.5 * torch.eye(gram.shape[1], dtype=gram.dtype) - 0.5 * z @ y
            y, z = y @ t, t @ z
        v = v @ (z / size.sqrt())
        return v.mH if wide else v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, (outputs, inputs) = x.shape[-1], self.weight.shape[:2]
        z = torch.fft.rfft2(x).permute(2, 3, 1, 0).reshape(n * (n // 2 + 1), inputs, x.shape[0])
        y = (self.matrices(n) @ z).reshape(n, n // 2 + 1, outputs, x.shape[0])
        return torch.fft.irfft2(y.permute(3, 2, 0, 1), s=(n, n)) + self.bias[:, None, None]


class SandwichConv(nn.Module):
    """Wang and Manchester, ICML 2023, as convolutions: through the activation in pixels, through both maps in waves."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs + outputs, kernel, kernel))
        self.psi, self.bias = nn.Parameter(torch.randn(outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (outputs, both), n = self.weight.shape[:2], x.shape[-1]
        inputs, frequencies = both - outputs, n * (n // 2 + 1)
        w = torch.fft.rfft2(self.weight, (n, n)).reshape(outputs, both, frequencies).permute(2, 1, 0)
        q = cayley(4 * w / w.norm()).mH
        a, b = q[:, :, :outputs], q[:, :, outputs:]
        z = torch.fft.rfft2(x).permute(2, 3, 1, 0).reshape(frequencies, inputs, x.shape[0])
        z = (b @ z).reshape(n, n // 2 + 1, outputs, x.shape[0])
        y = torch.fft.irfft2(z.permute(3, 2, 0, 1), s=(n, n))
        y = math.sqrt(2.0) * torch.exp(-self.psi)[:, None, None] * y + self.bias[:, None, None]
        y = math.sqrt(2.0) * torch.exp(self.psi)[:, None, None] * functional.relu(y)
        z = torch.fft.rfft2(y).permute(2, 3, 1, 0).reshape(frequencies, outputs, x.shape[0])
        z = (a.mH @ z).reshape(n, n // 2 + 1, outputs, x.shape[0])
        return torch.fft.irfft2(z.permute(3, 2, 0, 1), s=(n, n))


class BlockReflection(nn.Module):
    """Lai et al., ICLR 2025 (BRO): I - 2 V (V^* V)^-1 V^* for each frequency of the image in a frame of zeros."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.side, self.inputs, self.outputs = max(inputs, outputs), inputs, outputs
        self.weight, self.bias = nn.Parameter(torch.randn(rank, self.side, 3, 3)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, (1, 1, 1, 1, 0, self.side - self.inputs))
        n = x.shape[-1]
        v = torch.fft.rfft2(self.weight, (n, n)).permute(2, 3, 1, 0)
        z = torch.fft.rfft2(x).permute(2, 3, 1, 0)
        z = z - 2 * v @ torch.linalg.solve(v.mH @ v, v.mH) @ z
        y = torch.fft.irfft2(z.permute(3, 2, 0, 1), s=(n, n))
        return y[:, : self.outputs, 1:-1, 1:-1] + self.bias[:, None, None]


class ECO(nn.Module):
    """Yu et al., ICLR 2022: the kernel whose transform is the exponential of skew matrices, kept in float16."""

    def __init__(self, channels: int, kernel: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, kernel, kernel) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skew = torch.fft.fft2(self.weight).permute(2, 3, 0, 1)
        waves = torch.linalg.matrix_exp(skew - skew.mH)
        kernel = torch.fft.ifft2(waves.permute(2, 3, 0, 1)).real.half().to(x.dtype)
        step, reach = x.shape[-1] // kernel.shape[-1], x.shape[-1] - x.shape[-1] // kernel.shape[-1]
        return functional.conv2d(functional.pad(x, (0, reach, 0, reach), mode="circular"), kernel, dilation=step)


class Skew(nn.Module):
    """Singla and Feizi, ICML 2021 (SOC): the exponential of a skew convolution, cut off; strides by rearranging."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, terms: int = 12) -> None:
        super().__init__()
        self.before, self.after, self.stride, self.terms = inputs * stride**2, outputs, stride, terms
        side = max(self.before, self.after)
        self.weight = nn.Parameter(torch.randn(side, side, kernel, kernel))
        u, _, v = torch.linalg.svd(self.skew().detach().flatten(1), full_matrices=False)
        self.register_buffer("longest", u[:, :1] * v[:1])  # singular vectors, kept up to date in training
        self.bias = nn.Parameter(torch.randn(outputs))

    def skew(self) -> torch.Tensor:
        return self.weight - self.weight.transpose(0, 1).flip(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.skew()
        w = 0.7 * w / (w.flatten(1) * self.longest).sum()
        x = functional.pixel_unshuffle(x, self.stride)
        z = moved = functional.pad(x, (0, 0, 0, 0, 0, max(0, self.after - self.before)))
        for k in range(1, self.terms + 1):
            moved = functional.conv2d(moved, w, padding=w.shape[2] // 2) / float(k)
            z = z + moved
        return z[:, : self.after] + self.bias[:, None, None]


class LiRes(nn.Module):
    """Hu et al., NeurIPS 2023: x + conv(x), as it is trained, or as one kernel; without the division by its norm."""

    def __init__(self, channels: int, one_kernel: bool = False) -> None:
        super().__init__()
        self.wide, self.one_kernel = nn.Conv2d(channels, channels, 3, padding=1), one_kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.one_kernel:
            return x + self.wide(x)
        kernel = self.wide.weight + nn.init.dirac_(torch.empty_like(self.wide.weight))
        return functional.conv2d(x, kernel, self.wide.bias, padding=1)


class LipNeXt(nn.Module):
    """Hu et al., 2026: an orthogonal matrix, a third of the channels moved around the border, |x| of some."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.part = nn.Parameter(torch.randn(channels, channels)), channels // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.linalg.qr(self.weight)[0]
        y = torch.einsum("oi,nihw->nohw", q, x)
        left, right, rest = y.split([self.part, self.part, y.shape[1] - 2 * self.part], 1)
        y = torch.cat([left.roll(1, 3), right.roll(-1, 2), rest], 1)
        return torch.cat([y[:, : self.part].abs(), y[:, self.part :]], 1)


class Normalised(nn.Module):
    """A last layer with rows of length one (Singla, Singla and Feizi, ICLR 2022)."""

    def __init__(self, inputs: int, classes: int = 10) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(classes, inputs)), nn.Parameter(torch.randn(classes))

    def rows(self) -> torch.Tensor:
        return self.weight / self.weight.norm(dim=1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.rows(), self.bias)

    def radius(self, logits: torch.Tensor) -> torch.Tensor:
        """What the authors' evaluation states behind layers of constant one: min (f_y - f_j) / ||w_y - w_j||."""
        rows = self.rows().detach().double()
        top = logits.argmax(1)
        apart = torch.cdist(rows, rows)[top]
        gaps = (logits.gather(1, top[:, None]) - logits).double() / apart
        return gaps.masked_fill(apart == 0, math.inf).amin(1)
