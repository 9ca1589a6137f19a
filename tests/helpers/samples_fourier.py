"""Samples of complex numbers: each from a transform to the way back, with a matrix for each frequency."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHAPE = (2, 4, 5)


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """Other channels at each frequency."""
    count = 2 * z.numel() // z.shape[0]
    parts = [torch.sin(torch.arange(count) * k + 1.0) for k in (12.9898, 78.233)]
    return torch.einsum("oi...,ni...->no...", torch.complex(*parts).reshape(2, *z.shape[1:]).to(z.dtype), z)


def _both(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A transform and the way back; real parts where it has complex ones."""
    kind = name.removeprefix("i") if name.startswith("i") else name
    there, back = getattr(torch.fft, kind), getattr(torch.fft, f"i{kind}")
    size = {"": {"n": 5}, "2": {"s": (4, 5)}, "n": {"s": (4, 5), "dim": (2, 3)}}[kind.partition("fft")[2]]
    return lambda x: torch.view_as_real(back(_mixed(there(x, **size)), **size) + 0j)[..., 0]


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{
        f"fft_{name}.default": _both(name)
        for name in ("fft", "ifft", "rfft", "irfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn",
                     "irfftn")
    },
    **{
        f"{name}.default": lambda x: torch._fft_c2r(_mixed(torch._fft_r2c(x, [2, 3], 0, True)), [2, 3], 2, 5)
        for name in ("_fft_r2c", "_fft_c2r")
    },
    "_fft_c2c.default": lambda x: torch._fft_c2c(_mixed(torch.complex(x, x)), [2], 1, True).imag,
    "_conj.default": lambda x: torch.fft.irfft2(_mixed(_mixed(torch.fft.rfft2(x)).conj()), s=(4, 5)),
    "view_as_complex.default": lambda x: _mixed(torch.view_as_complex(torch.stack([x, 2 * x], -1))).real,
    "view_as_real.default": lambda x: torch.view_as_real(_mixed(torch.fft.fft2(x))),
    "complex.default": lambda x: _mixed(torch.complex(x, torch.ones_like(x))).imag,
    "fft_fftshift.default": lambda x: _mixed(torch.fft.fftshift(torch.fft.fft2(x), (2, 3))).real,
    "fft_ifftshift.default": lambda x: _mixed(torch.fft.ifftshift(torch.fft.fft2(x), (2, 3))).real,
}  # fmt: skip
"""By operation: a function of tensors (batch, *SHAPE)."""
