"""The last layer, and residual blocks: parts whose own parameters a parametrisation holds at a length of at most 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipaudit.nn.almost_orthogonal import FORMATS, PROOF, running_dtype


class RowNormalisation(nn.Module):
    """Parametrisation: every row of a matrix divided by its length, which ends at most 1; a zero row stays zero.

    Lengths are taken in float64, of rows divided by their largest entry; the quotient is rounded to the dtype that
    runs, which moves a row by at most u times itself, and η sqrt(features) below the normal range.
    """

    def forward(self, stored: Tensor) -> Tensor:
        dtype = running_dtype(stored)
        unit_roundoff, subnormal = FORMATS[dtype]
        slack = unit_roundoff + subnormal * stored.shape[1] ** 0.5 + (stored.shape[1] + 8) * 2.0**-52 + PROOF
        peak = stored.detach().abs().amax(1, keepdim=True).double()
        unit = stored.double() / torch.where(peak > 0, peak, 1.0)
        squares = unit.square().sum(1, keepdim=True)
        length = torch.where(squares > 0, squares, 1.0).sqrt() * (1 + slack)
        return (unit / length).to(dtype)


class NormalisedLinear(nn.Linear):
    """A last layer with rows of length at most 1: every logit is 1-Lipschitz, every difference of two at most 2.

    As a map it may have a norm up to the root of the number of classes; certificates are about differences of
    logits, to which the rows give ||w_i - w_j|| <= 2, sqrt(2) where they are orthogonal. Put it at the end, and
    nowhere else. Arguments are those of `nn.Linear`. It starts orthogonal.
    Source: S. Singla, S. Singla and S. Feizi, Improved deterministic l2 robustness, ICLR 2022, arXiv 2108.04062.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        parametrize.register_parametrization(self, "weight", RowNormalisation())

    def reset_parameters(self) -> None:
        """Orthogonal weight, no bias."""
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def claimed_lipschitz(self) -> float:
        """Of the map; see above."""
        return math.sqrt(self.out_features)


class Gate(nn.Module):
    """Parametrisation: one number to (1 - g, g) with g its sigmoid, rounded so that the two add up to at most 1."""

    def forward(self, stored: Tensor) -> Tensor:
        share = stored.double().sigmoid()
        slack = 2 * FORMATS[stored.dtype][0] + PROOF
        return (torch.stack([1 - share, share]) / (1 + slack)).to(stored.dtype)


class ConvexResidual(nn.Module):
    """(1 - g) x + g branch(x) with a trained gate g in (0, 1): 1-Lipschitz if the branch is, which keeps shapes.

    `gate` is where g starts. Raises `ValueError` outside (0, 1). What the branch is made of is not looked at here:
    `lipaudit.bound` proves the whole.
    Source: the convex combination of A. Trockman and J. Z. Kolter, Orthogonalizing Convolutional Layers with the
    Cayley Transform, ICLR 2021, arXiv 2104.07167.
    """

    def __init__(self, branch: nn.Module, gate: float = 0.5) -> None:
        super().__init__()
        if not 0 < gate < 1:
            raise ValueError(f"ConvexResidual: expected a gate between 0 and 1, got {gate}")
        self.branch = branch
        self.gate = nn.Parameter(torch.tensor(gate).logit())
        parametrize.register_parametrization(self, "gate", Gate(), unsafe=True)  # one number to two

    def forward(self, x: Tensor) -> Tensor:
        keep, take = self.gate.unbind()
        return keep * x + take * self.branch(x)
