"""The last layer, and residual blocks: parts whose weights are held together by a parametrisation of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipaudit.nn.almost_orthogonal import FORMATS, PROOF


class RowNormalisation(nn.Module):
    """Parametrisation: every row of a matrix divided by its length, which ends at most 1; a zero row stays zero.

    Lengths are taken in float64, of rows divided by their largest entry; the quotient is rounded to the weight's
    dtype, which moves a row by at most u times itself, and η sqrt(features) below the normal range.
    """

    def forward(self, stored: Tensor) -> Tensor:
        unit_roundoff, subnormal = FORMATS[stored.dtype]
        slack = unit_roundoff + subnormal * stored.shape[1] ** 0.5 + (stored.shape[1] + 8) * 2.0**-52 + PROOF
        peak = stored.detach().abs().amax(1, keepdim=True).double()
        unit = stored.double() / torch.where(peak > 0, peak, 1.0)
        squares = unit.square().sum(1, keepdim=True)
        length = torch.where(squares > 0, squares, 1.0).sqrt() * (1 + slack)
        return (unit / length).to(stored.dtype)


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
