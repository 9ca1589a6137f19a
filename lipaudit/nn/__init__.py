"""What makes a network certifiable: layers with a Lipschitz constant of at most 1, losses, penalties on norms."""

from __future__ import annotations

from lipaudit.nn.activations import GroupSort, Householder, MaxMin
from lipaudit.nn.almost_orthogonal import AOLConv2d, AOLLinear, aol
from lipaudit.nn.deployment import export, spectral_rescale_
from lipaudit.nn.heads import ConvexResidual, NormalisedLinear
from lipaudit.nn.isometries import ChannelPad, SpaceToDepth
from lipaudit.nn.losses import offset_cross_entropy, pairwise_lipschitz, radius_hinge
from lipaudit.nn.orthogonal import OrthogonalConv2d, PotentialConv2d, PotentialLinear
from lipaudit.nn.penalties import log_lipschitz, spectral_penalty

__all__ = [
    "AOLConv2d",
    "AOLLinear",
    "ChannelPad",
    "ConvexResidual",
    "GroupSort",
    "Householder",
    "MaxMin",
    "NormalisedLinear",
    "OrthogonalConv2d",
    "PotentialConv2d",
    "PotentialLinear",
    "SpaceToDepth",
    "aol",
    "export",
    "log_lipschitz",
    "offset_cross_entropy",
    "pairwise_lipschitz",
    "radius_hinge",
    "spectral_penalty",
    "spectral_rescale_",
]
