"""Slopes seen are lower bounds of the Lipschitz constant, and on linear networks they are nearly it."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from crosscheck_nets import labelled, linear, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipaudit.crosscheck import largest_slope
from lipaudit.crosscheck.verification import distance_up
from lipaudit.results.threat import NORMS, Norm


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_linear_slopes_are_the_weight_distances_from_below(classes: int, norm: Norm) -> None:
    network, inputs = linear(classes), samples(12)
    labels = labelled(network, inputs)
    slope = largest_slope(network, inputs, labels, norm=norm, batch_size=5, most=(12, 90))
    weight = network[1].weight.detach().double()
    assert set(slope.pairs) == {(y, j) for y in set(labels.tolist()) for j in range(classes) if j != y}
    for (label, other), value in slope.pairs.items():
        gaps = [abs(a - b) for a, b in zip(weight[label].tolist(), weight[other].tolist(), strict=True)]
        exact = {"l2": math.hypot(*gaps), "linf": math.fsum(gaps), "l1": max(gaps)}[norm]
        assert exact * (1 - 1e-6) <= value <= exact
    assert slope.value == max(slope.pairs.values()) == slope.pairs[slope.label, slope.other]
    assert int(labels[slope.sample]) == slope.label


def test_only_the_strongest_other_classes_are_tried() -> None:
    network, inputs = linear(30), samples(3)
    labels = labelled(network, inputs)
    slope = largest_slope(network, inputs, labels, others=4)
    strongest = network(inputs).argsort(1, descending=True)[:, 1:5].tolist()
    expected = {(y, j) for y, row in zip(labels.tolist(), strongest, strict=True) for j in row}
    assert set(slope.pairs) == expected


def test_the_pairs_measured_are_those_that_come_closest_to_their_bounds() -> None:
    """One bound of ninety is a lie: the few pairs that are measured hold it, and the steepest of all."""
    network, inputs = linear(10), samples(40)
    labels = labelled(network, inputs)
    weight = network[1].weight.detach().double()
    exact = [[math.dist(a.tolist(), b.tolist()) for b in weight] for a in weight]
    lie = (int(labels[7]), (int(labels[7]) + 1) % 10)
    against = [
        [value * (0.5 if (i, j) == lie else 1.001) for j, value in enumerate(row)] for i, row in enumerate(exact)
    ]
    slope = largest_slope(network, inputs, labels, against=against, most=(40, 3))
    assert len(slope.pairs) <= 3
    assert slope.pairs[lie] > against[lie[0]][lie[1]]
    everywhere = largest_slope(network, inputs, labels, most=(40, 90))
    assert slope.value == pytest.approx(everywhere.value, rel=1e-8)  # that of another point may be as steep
    assert int(labels[slope.sample]) == slope.label


def test_many_points_are_tried_at_even_distances() -> None:
    network, inputs = linear(3), samples(40)
    labels = labelled(network, inputs)
    few = largest_slope(network, inputs, labels, most=(2, 9))
    assert set(few.pairs) == set(largest_slope(network, inputs[[0, 39]], labels[[0, 39]]).pairs)
    assert few.sample in (0, 39)


class Kinked(nn.Module):
    """The difference of its logits is zero everywhere, but autograd reports a slope at the kink x = 0.5."""

    def forward(self, inputs: Tensor) -> Tensor:
        shifted = inputs.flatten(1) - 0.5
        hidden = shifted - torch.relu(shifted) + torch.relu(-shifted)
        return torch.stack([hidden.sum(1), torch.zeros(len(inputs), dtype=inputs.dtype)], 1)


def test_a_gradient_at_a_kink_is_not_taken_for_a_slope() -> None:
    point = torch.full((1, 4), 0.5)
    probe = point.clone().requires_grad_()
    output = Kinked()(probe)
    (gradient,) = torch.autograd.grad((output[:, 0] - output[:, 1]).sum(), probe)
    assert gradient.norm() == 2
    assert largest_slope(Kinked(), point, torch.tensor([0])).value == 0


def test_a_constant_network_has_slope_zero() -> None:
    network = linear(3)
    nn.init.zeros_(network[1].weight)
    assert largest_slope(network, samples(2), torch.tensor([0, 1])).value == 0


@pytest.mark.parametrize("point", [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.5]])
def test_slopes_stay_in_the_box_and_are_seen_at_its_corners(point: list[float]) -> None:
    class Fenced(nn.Module):
        """Steep outside the box only."""

        def forward(self, inputs: Tensor) -> Tensor:
            flat = inputs.flatten(1)
            outside = (torch.relu(-flat) + torch.relu(flat - 1)).sum(1)
            return torch.stack([flat.sum(1) + 1e6 * outside, torch.zeros_like(outside)], 1)

    slope = largest_slope(Fenced(), torch.tensor([point]), torch.zeros(1, dtype=torch.int64))
    assert 2**0.5 * (1 - 1e-6) <= slope.value <= 2**0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-200, 1e-8, 1.0, 1e150]))
def test_slope_is_below_a_proved_bound_and_distance_above_the_truth(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    first, second = scale * torch.rand(2, 7, dtype=torch.float64)
    exact = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(first.tolist(), second.tolist(), strict=True))
    assert Fraction(distance_up(first, second, "l2")) ** 2 >= exact
    assert distance_up(first, second, "l2") <= (first - second).div(scale).norm().item() * scale * (1 + 1e-12)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    weight, last = network[1].weight.detach(), network[3].weight.detach()
    # The dual norm of the last rows, times how much the first layer stretches its norm.
    for norm, order, dual in (("l2", 2, 2), ("linf", math.inf, 1), ("l1", 1, math.inf)):
        bound = torch.linalg.matrix_norm(weight, order).item()
        slope = largest_slope(network, torch.rand(4, 6), torch.tensor([0, 1, 2, 0]), norm=norm)
        for (label, other), value in slope.pairs.items():
            assert value <= bound * (last[label] - last[other]).norm(dual).item() * (1 + 1e-12)
