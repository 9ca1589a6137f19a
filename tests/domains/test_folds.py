"""Planes that are folded along a line: Householder activations, exact but for their own rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import lipaudit
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.errors import CaptureError


class Fold(nn.Module):
    """z on one side of a line for each pair, and another map beyond it, by masks: a reflection unless spoiled."""

    def __init__(self, seed: int, spoiled: str = "") -> None:
        super().__init__()
        self.spoiled, generator = spoiled, torch.Generator().manual_seed(seed)
        angle = torch.rand(3, 1, 1, generator=generator) * 2 * math.pi
        w = torch.stack([torch.sin(angle), -torch.cos(angle)])
        u = torch.randn(2, 3, 1, 1, generator=generator) if spoiled == "stretched" else -2 * w
        beyond = u[:, None] * w[None]  # (2, 2, 3, 1, 1)
        beyond[0, 0] += 1
        beyond[1, 1] += 1
        if spoiled == "another line":
            w = w.flip(0)
        if spoiled == "a little off":
            beyond = beyond + 1e-5
        for name, value in {"w": w, "beyond": beyond}.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = (x[:, ::2], x[:, 1::2]) if self.spoiled == "strided" else x.chunk(2, 1)
        if self.spoiled == "overlapping":
            b = x[:, 1:4]
        side = a * self.w[0] + b * self.w[1]
        shift = 1e-3 if self.spoiled == "shifted" else 0.0
        u = a * self.beyond[0, 0] + b * self.beyond[0, 1]
        v = a * self.beyond[1, 0] + b * self.beyond[1, 1]
        c = a * (side <= shift) + u * (side > shift)
        d = torch.where(side > 0, v, b) if self.spoiled != "one" else b
        if self.spoiled == "both sides":
            d = b * (side < 0) + v * (side > 0)  # nothing at the line itself
        return torch.cat([c, d], 1).flatten(1)


def steepest(network: nn.Module) -> tuple[float, float]:
    """The bound, and the largest norm of a Jacobian of the graph it is of."""
    found = compose(network.eval(), (6, 2, 2))
    points = torch.randn(12, 6, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [torch.func.jacrev(lambda z: evaluate(found.graph, z))(x).flatten(1) for x in points]
    return found.network.value, max(float(torch.linalg.matrix_norm(row, 2)) for row in rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spoiled", ["", "strided", "stretched", "overlapping", "one"])
def test_folds_have_their_own_constant(spoiled: str, seed: int) -> None:
    bound, slope = steepest(Fold(seed, spoiled))
    assert slope <= bound
    if spoiled in ("", "strided"):
        assert bound <= 1 + 1e-6


@pytest.mark.parametrize("spoiled", ["another line", "a little off", "shifted", "both sides"])
def test_what_jumps_by_more_than_rounding_is_refused(spoiled: str) -> None:
    with pytest.raises(CaptureError, match="jumps and has no Lipschitz bound"):
        lipaudit.bound(Fold(0, spoiled).eval(), (6, 2, 2))


def test_angles_that_are_compared_are_refused() -> None:
    """Order 2 selects by angles modulo 2 pi: at a seam its float32 code selects nothing, and gives 0."""

    class Angles(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            x, y = z.chunk(2, 1)
            angle = (torch.atan2(y, x) - 0.3) % (2 * math.pi)
            chosen = (angle >= 0) & (angle < 1.7)
            return torch.cat([x * chosen, y * chosen], 1).flatten(1)

    with pytest.raises(CaptureError, match="jumps"):
        lipaudit.bound(Angles().eval(), (6, 2, 2))


def test_the_jump_is_told_and_rounding_is_not_promised() -> None:
    network = nn.Sequential(nn.Conv2d(6, 6, 1), Fold(1), nn.Linear(24, 3)).eval()
    points = torch.rand(2, 6, 2, 2)
    assert "continuous up to rounding: 1 (" in "".join(lipaudit.bound(network, (6, 2, 2)).notes)
    assert bool((lipaudit.certify(network, points).radius > 0).all())
    why_not = lipaudit.certify(network, points, arithmetic="native").why_not
    assert "function written in several operations: folded in 1" in why_not
