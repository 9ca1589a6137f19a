"""Activations that keep the norm of every gradient: they only sort."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupSort(nn.Module):
    """Sorts neighbouring channels within groups of `group_size`, ascending: 1-Lipschitz in every L_p.

    Locally a permutation, hence norm-preserving. Input (n, channels, ...) with channels a multiple of
    `group_size`, output of the same shape. Raises ValueError otherwise.
    Source: Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019, arXiv 1811.05381.
    """

    def __init__(self, group_size: int = 2) -> None:
        super().__init__()
        if group_size < 1:
            raise ValueError(f"GroupSort: expected group_size >= 1, got {group_size}")
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        count, channels, *rest = x.shape
        groups, left_over = divmod(channels, self.group_size)
        if left_over:
            raise ValueError(
                f"GroupSort: expected channels in multiples of {self.group_size}, got {channels} in an input of "
                f"shape {tuple(x.shape)}; change the layer before it or group_size"
            )
        # One sort along a view, so that a captured graph shows one sort and not a tangle of max and min.
        grouped = x.view(count, groups, self.group_size, *rest)
        return torch.sort(grouped, dim=2).values.view(x.shape)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}"


class MaxMin(GroupSort):
    """The minimum and the maximum of each pair of neighbouring channels: `GroupSort(2)`, 1-Lipschitz."""

    def __init__(self) -> None:
        super().__init__(group_size=2)

    def extra_repr(self) -> str:
        return ""
