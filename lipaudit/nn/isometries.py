"""Layers that only move values, so that every L_p distance stays what it was."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, pixel_unshuffle


class SpaceToDepth(nn.Module):
    """Moves each `block` x `block` square of pixels into channels: an isometry.

    (n, c, h, w) to (n, c·block², h/block, w/block); h and w must be multiples of `block` (RuntimeError).
    """

    claimed_lipschitz = 1.0

    def __init__(self, block: int = 2) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return pixel_unshuffle(x, self.block)

    def extra_repr(self) -> str:
        return f"block={self.block}"


class ChannelPad(nn.Module):
    """Appends channels of zeros until there are `channels`: an isometry, which gives the layers after it room.

    (n, c, ...) to (n, channels, ...). Raises `ValueError` where there are more already.
    """

    claimed_lipschitz = 1.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        missing = self.channels - x.shape[1]
        if missing < 0:
            raise ValueError(f"ChannelPad: expected at most {self.channels} channels, got an input of {tuple(x.shape)}")
        return pad(x, (0, 0) * (x.ndim - 2) + (0, missing))

    def extra_repr(self) -> str:
        return f"channels={self.channels}"
