"""Networks on which a local certificate was once wrong, each found by a review: none of them may pass again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lipaudit.certification.local_proof import proof
from lipaudit.certification.local_search import local_radius
from lipaudit.certification.network_bound import compose
from lipaudit.domains.zonotope import logits as zonotope
from lipaudit.domains.zonotope.backward import lower_bounds
from lipaudit.errors import NotLipschitz

RADIUS = 4e-6
"""Here the curvature of tanh is too small for a symbol: what it is off by goes into the remainder."""


def dense(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    layer.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))
    return layer


class Curved(nn.Module):
    """tanh(1 + x0) + tanh(1 - x0) - tanh(1 + x1) - tanh(1 - x1), in which all but curvature cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = dense([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [1.0] * 4)
        self.gather = dense([[1.0, 1.0, -1.0, -1.0]], [0.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gather(torch.tanh(self.spread(x)))


class StretchedForTwo(nn.Module):
    """The curved sum, copied 1024 times by adding a constant, and read twice."""

    def __init__(self) -> None:
        super().__init__()
        gain = 2.0**26
        self.curved = Curved()
        self.register_buffer("shift", torch.full((1, 1024), 0.5, dtype=torch.float64))
        self.first = dense([[-gain] * 1024, [0.0] * 1024], [0.25 + gain * 512, 0.0])
        self.second = dense([[0.0] * 1024] * 2, [0.0, 0.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.curved(x) + self.shift
        return self.first(torch.relu(z)) + self.second(torch.relu(z))


class PooledByAHair(nn.Module):
    """The maximum of the curved sum and a constant a little above it, 2^36 times."""

    def __init__(self) -> None:
        super().__init__()
        self.curved, self.above = Curved(), 2.0**-43
        self.last = dense([[-(2.0**36)], [0.0]], [2.0**36 * self.above + 0.1, 0.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        curved = self.curved(x)
        pair = torch.stack([curved, 0.0 * curved + self.above], 2)
        return self.last(functional.max_pool2d(pair[:, :, None, :], (1, 2)).flatten(1))


@pytest.mark.parametrize("network", [StretchedForTwo, PooledByAHair])
def test_what_a_band_leaves_to_the_remainder_is_kept(network: type[nn.Module]) -> None:
    model = network().eval()
    x, away = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 0.999 * RADIUS], dtype=torch.float64)
    composition = compose(model, (2,))
    c = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    with torch.no_grad():
        here, true = (float(model(point[None])[0] @ c[0, 0]) for point in (x, away))
    assert here > 0.09 > -0.3 > true  # the answer changes within the ball
    assert not proof(composition, x, 0, RADIUS)
    for backwards in (False, True):
        logits = zonotope.logits_over(composition.ledger, x, RADIUS, room_for=9000, backwards=backwards)
        assert zonotope.margins(logits, 0)[0] <= true
        assert float(lower_bounds(logits.step, c) + (c * logits.centre).sum()) <= true


def test_windows_in_the_padding_are_refused() -> None:
    class Outside(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nothing = torch.relu(functional.max_pool2d(x, (1, 2), 1, (0, 1), (1, 3))).flatten(1)
            return functional.pad(0.5 - x.flatten(1)[:, 1:], (0, 1)) + functional.pad(nothing, (0, 1))

    x = torch.tensor([[[0.3, 0.1]]], dtype=torch.float64)
    with pytest.raises(NotLipschitz, match="lies in the padding"):
        zonotope.logits_over(compose(Outside().eval(), (1, 1, 2)).ledger, x, 0.1, room_for=50)


def test_weights_whose_squares_vanish_still_move_the_logits() -> None:
    model = dense([[1e-165, 0.0], [0.0, 1e-165]], [0.0, 0.0]).eval()
    x = torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert local_radius(compose(model, (2,)), x, 0, start=1e-3) <= 0.5 / 2**0.5
