"""Radii in Linf and L1: exact for linear classifiers, never beyond an attack, and L2 as it was."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lipaudit
from lipaudit import zoo
from lipaudit.certification.certificates import certify_in, certify_with
from lipaudit.certification.executed import Affine, Executed
from lipaudit.certification.local_search import local_radius
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.zonotope.backward import ancestors
from lipaudit.domains.zonotope.logits import logits_over
from lipaudit.errors import BadThreat
from lipaudit.results.threat import NORMS, Threat, circumradius

DUAL = {"l2": 2.0, "linf": 1.0, "l1": float("inf")}


def linear(seed: int, inputs: int = 20, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(inputs, classes).double().eval().requires_grad_(False)


@pytest.mark.parametrize("norm", NORMS)
def test_radii_of_linear_classifiers_are_distances(norm: str) -> None:
    model = linear(0)
    x = torch.rand(30, 20, dtype=torch.float64)
    logits = model(x)
    radius = lipaudit.certify(model, x, local="off", norm=norm).radius
    for row, (point, found) in enumerate(zip(logits, radius, strict=True)):
        label = int(point.argmax())
        others = [j for j in range(4) if j != label]
        apart = torch.linalg.vector_norm(model.weight[label] - model.weight[others], DUAL[norm], dim=1)
        distance = float(((point[label] - point[others]) / apart).min())
        assert found <= distance * (1 + 1e-13), row
        assert found >= distance * (1 - 1e-9), row


def test_several_norms_at_once_are_those_one_by_one() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    composition, x = compose(model, (12,)), torch.rand(6, 12)
    together = certify_in(composition, x, None, NORMS, arithmetics=("native", "float64"))
    for norm, found in together.items():
        alone = certify_with(composition, x, norm=norm, arithmetics=("native", "float64"))
        assert np.array_equal(found.radius, alone.radius)
        assert found.norm == norm
        for arithmetic in ("native", "float64"):
            assert np.array_equal(found.others[arithmetic].radius, alone.others[arithmetic].radius)
            assert bool((found.others[arithmetic].radius <= found.radius).all())
            assert bool((found.others[arithmetic].radius >= 0.98 * found.radius).all())
    # Balls nest, and bounds know it.
    assert bool((together["linf"].radius * 12**0.5 * (1 + 1e-12) >= together["l2"].radius).all())
    assert bool((together["l1"].radius * (1 + 1e-12) >= together["l2"].radius).all())
    assert "linf radii" in repr(together["linf"])


def pgd(graph: object, x: torch.Tensor, label: int, radius: float, norm: str, steps: int = 200) -> bool:
    """Whether projected gradient descent in the ball, among pixels, finds another answer."""
    d = torch.zeros_like(x)
    for step in range(steps):
        point = (x + d).requires_grad_(True)
        logits = evaluate(graph, point)
        others = logits.clone()
        others[label] = -torch.inf
        gap = logits[label] - others.max()
        if float(gap.detach()) <= 0:
            return True
        (slope,) = torch.autograd.grad(gap, point)
        rate = radius * (1 - step / steps)
        if norm == "linf":
            d = (d - rate / 4 * slope.sign()).clamp(-radius, radius)
        else:
            d = d - rate * slope.sign() * (slope.abs() == slope.abs().max())
            d = d * min(1.0, radius / max(float(d.abs().sum()), 1e-300))
        d = (x + d).clamp(0.0, 1.0) - x
    return False


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_local_radii_are_larger_and_no_attack_is_inside(norm: str) -> None:
    _, _, images, labels = zoo.digits_split()
    model = zoo.load("digits-cnn").double()
    x, label = torch.from_numpy(images[0]).double(), int(labels[0])
    composition = compose(model, tuple(x.shape), domain=(0.0, 1.0))
    known = float(certify_with(composition, x[None], [label], norm=norm).radius[0])
    found = local_radius(composition, x, label, start=3 * known, known=known, norm=norm)
    assert found > 2 * known
    assert not pgd(composition.graph, x, label, found, norm)


def test_a_box_ends_at_the_pixels() -> None:
    """x1 + x2 - 1 < 0 at (0, 0): no box within [0, 1] reaches beyond where the sum is 2 r."""
    model = nn.Linear(2, 2, bias=True).double().eval().requires_grad_(False)
    model.weight.copy_(torch.tensor([[-1.0, 3.0], [0.0, 0.0]]))
    model.bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.zeros(2, dtype=torch.float64)
    radii = {
        domain: local_radius(compose(model, (2,), domain=domain), x, 0, start=0.05, norm="linf")
        for domain in (None, (0.0, 1.0))
    }
    # Below zero x2 would take 3 r away: only with pixels nothing but x1 counts.
    assert 0.1 < radii[None] <= 0.125
    assert 0.4 < radii[0.0, 1.0] <= 0.5


def test_a_box_holds_what_inputs_of_the_domain_are_rounded_to() -> None:
    """0.7 is read as less than 0.7 in float32, and 1.1 as more than 1.1: inputs at the ends leave the domain."""
    x = torch.full((2,), 0.9, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        ledger = compose(nn.Linear(2, 2).to(dtype).eval(), (2,), domain=(0.7, 1.1)).ledger
        (start,) = (
            step for step in ancestors(logits_over(ledger, x, 5.0, norm="linf", room_for=10).step) if not step.parents
        )
        ends = [Fraction(float(torch.tensor(end, dtype=torch.float64).to(dtype))) for end in (0.7, 1.1)]
        assert 2 * Fraction(float(start.radius[0, 0])) >= ends[1] - ends[0]
        assert float(start.radius[0, 0]) <= 0.2 + 1e-7


def test_execution_is_measured_in_the_norm() -> None:
    executed = Executed(Affine(1.0, 2.0), Affine(0.5, 3.0), Affine(), 10.0, 0.25, 2.0**-24)
    assert executed.measured("l2", 100) is executed
    linf, l1 = executed.measured("linf", 100), executed.measured("l1", 100)
    assert (linf.whole.a, l1.whole.a) == (1.0, 1.0)
    assert linf.whole.b >= 20.0
    assert l1.whole.b >= 2.0
    assert linf.limit <= 1.0
    assert l1.cast >= 2.5
    assert linf.cast >= 0.25


def test_norms_have_one_name_each() -> None:
    assert [Threat(("1",), norm).norm for norm in ("L2", "linf", "inf", "l1", 1)] == ["L2", "Linf", "Linf", "L1", "L1"]
    assert Threat(("1",)).norm == "L2"
    assert circumradius("linf", 784) == 28.0
    assert circumradius("linf", 3) ** 2 >= 3
    assert circumradius("l1", 784) == circumradius("l2", 784) == 1.0
    model, x = linear(2), torch.rand(1, 20)
    for use in (
        lambda: Threat(("1",), "l0"),
        lambda: lipaudit.certify(model, x, norm="l0"),
        lambda: lipaudit.bound(model, (20,), norm="lp"),
    ):
        with pytest.raises(BadThreat, match="expected a norm, l2, linf, l1, got"):
            use()
