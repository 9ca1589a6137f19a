"""What makes a network certifiable: layers with a Lipschitz constant of at most 1, losses, penalties on norms."""

from __future__ import annotations

from lipaudit.nn.activations import GroupSort, MaxMin
from lipaudit.nn.almost_orthogonal import AOLConv2d, AOLLinear, aol
from lipaudit.nn.deployment import export
from lipaudit.nn.heads import NormalisedLinear
from lipaudit.nn.isometries import SpaceToDepth
from lipaudit.nn.losses import offset_cross_entropy, pairwise_lipschitz, radius_hinge
from lipaudit.nn.regularisers import spectral_penalty

__all__ = [
    "AOLConv2d",
    "AOLLinear",
    "GroupSort",
    "MaxMin",
    "NormalisedLinear",
    "SpaceToDepth",
    "aol",
    "export",
    "offset_cross_entropy",
    "pairwise_lipschitz",
    "radius_hinge",
    "spectral_penalty",
]
