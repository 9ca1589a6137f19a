"""Layers that only move values, so that every L_p distance stays what it was."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle


class SpaceToDepth(nn.Module):
    """Moves each `block` x `block` square of pixels into channels: an isometry.

    (n, c, h, w) to (n, c·block², h/block, w/block); h and w must be multiples of `block` (RuntimeError).
    """

    def __init__(self, block: int = 2) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return pixel_unshuffle(x, self.block)

    def extra_repr(self) -> str:
        return f"block={self.block}"
