"""Layers and losses that make a network certifiable: every layer here has a Lipschitz constant of at most 1."""

from __future__ import annotations

from lipaudit.nn.activations import GroupSort, MaxMin
from lipaudit.nn.aol import AOLConv2d, AOLLinear
from lipaudit.nn.isometries import SpaceToDepth
from lipaudit.nn.losses import offset_cross_entropy

__all__ = ["AOLConv2d", "AOLLinear", "GroupSort", "MaxMin", "SpaceToDepth", "offset_cross_entropy"]
