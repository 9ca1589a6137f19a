"""What makes a network certifiable: layers with a Lipschitz constant of at most 1, losses, penalties on norms."""

from __future__ import annotations

from lipaudit.nn.activations import GroupSort, MaxMin
from lipaudit.nn.aol import AOLConv2d, AOLLinear
from lipaudit.nn.isometries import SpaceToDepth
from lipaudit.nn.losses import offset_cross_entropy
from lipaudit.nn.regularisers import spectral_penalty

__all__ = ["AOLConv2d", "AOLLinear", "GroupSort", "MaxMin", "SpaceToDepth", "offset_cross_entropy", "spectral_penalty"]
