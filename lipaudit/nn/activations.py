"""Activations that keep the norm of every gradient: they sort, or reflect."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipaudit.nn.almost_orthogonal import FORMATS, PROOF, running_dtype


class GroupSort(nn.Module):
    """Sorts neighbouring channels within groups of `group_size`, ascending: 1-Lipschitz in every L_p.

    Locally a permutation, hence norm-preserving. Input (n, channels, ...) with channels a multiple of
    `group_size`, output of the same shape. Raises ValueError otherwise.
    Source: Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019, arXiv 1811.05381.
    """

    claimed_lipschitz = 1.0

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


class Rotation(nn.Module):
    """Parametrisation: angles (pairs,) to orthogonal matrices (pairs, 2, 2), rounded so that no norm exceeds 1.

    Entries are at most 1 and rounded to nearest, which moves a matrix by at most 2 u (and 2 η, far below `PROOF`).
    """

    def forward(self, stored: Tensor) -> Tensor:
        dtype, half = running_dtype(stored), stored.double() / 2
        cos, sin = half.cos(), half.sin()
        along, across = torch.stack([cos, sin], 1), torch.stack([sin, -cos], 1)
        return (torch.stack([along, across], 1) / (1 + 2 * FORMATS[dtype][0] + PROOF)).to(dtype)


class Householder(nn.Module):
    """Reflects each pair of neighbouring channels into one side of a line whose angle is trained: 1-Lipschitz in L2.

    A pair z goes to itself where u.z > 0 and to its mirror image z - 2 (u.z) u elsewhere, u = (sin t/2, -cos t/2), one
    angle t for each pair: in the basis of the line and its normal u, the absolute value of one coordinate. It starts at
    t = pi / 2, where it sorts like `MaxMin` (in descending order). Input (n, channels, ...), the same shape comes out.
    Raises `ValueError` for an odd number of channels.
    Source: S. Singla, S. Singla and S. Feizi, Improved deterministic l2 robustness, ICLR 2022, arXiv 2108.04062.
    """

    claimed_lipschitz = 1.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"Householder: expected an even number of channels, got {channels}")
        self.rotation = nn.Parameter(torch.full((channels // 2,), math.pi / 2))
        parametrize.register_parametrization(self, "rotation", Rotation(), unsafe=True)  # an angle to a matrix

    def forward(self, x: Tensor) -> Tensor:
        rotation = self.rotation
        if x.shape[1] != 2 * len(rotation):
            raise ValueError(f"Householder: expected {2 * len(rotation)} channels, got an input of {tuple(x.shape)}")
        pairs = x.reshape(x.shape[0], len(rotation), 2, -1)
        # Written so that an audit sees it: an orthogonal map, one coordinate kept and one made positive, and back.
        along, across = torch.einsum("npjl,pij->npil", pairs, rotation).unbind(2)
        folded = torch.stack([along, across.abs()], 2)
        return torch.einsum("npil,pij->npjl", folded, rotation).reshape(x.shape)
