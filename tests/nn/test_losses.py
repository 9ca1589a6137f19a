"""Losses against their formulas, and against what they are for; radii against the certificates."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import lipaudit
from lipaudit import nn
from lipaudit.nn import AOLLinear, MaxMin, NormalisedLinear, offset_cross_entropy, pairwise_lipschitz, radius_hinge
from lipaudit.nn.losses import radii


def test_two_classes_by_hand() -> None:
    """With a lead m of the true logit: temperature * log(1 + exp((offset - m) / temperature))."""
    for lead in (-1.0, 0.0, 0.7, 3.0):
        loss = offset_cross_entropy(torch.tensor([[lead, 0.0]]), torch.tensor([0]), 1.0, 0.5)
        assert loss.item() == pytest.approx(0.5 * math.log1p(math.exp((1.0 - lead) / 0.5)), rel=1e-5)


def test_no_offset_and_temperature_one_is_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 5), torch.randint(5, (8,))
    assert torch.equal(offset_cross_entropy(logits, labels, 0.0, 1.0), cross_entropy(logits, labels))


def test_it_goes_on_pushing_until_the_margin_exceeds_the_offset() -> None:
    def push(lead: float) -> float:
        logits = torch.tensor([[lead, 0.0]], requires_grad=True)
        offset_cross_entropy(logits, torch.tensor([0]), offset=1.0, temperature=0.05).backward()
        return -logits.grad[0, 0].item()

    assert push(0.8) > 0.9
    assert push(1.2) < 0.1


def test_the_inputs_stay_as_they_are() -> None:
    logits = torch.zeros(2, 3)
    offset_cross_entropy(logits, torch.tensor([0, 1]))
    assert (logits == 0).all()


def test_exported_names_are_sorted_and_exist() -> None:
    assert sorted(nn.__all__) == nn.__all__
    assert all(getattr(lipaudit.nn, name).__doc__ for name in nn.__all__)


def small() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(AOLLinear(6, 8), MaxMin(), NormalisedLinear(8, 4))


def test_pairwise_bounds_are_those_of_the_audit() -> None:
    model = small().eval()
    pairs = pairwise_lipschitz(model[-1].weight)
    proved = torch.tensor(lipaudit.bound(model, (6,), global_method="product").pairwise)
    body = lipaudit.bound(model[:1].eval(), (6,)).value
    torch.testing.assert_close(pairs.double() * body, proved.double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(pairwise_lipschitz(model[-1].weight, 3.0), 3 * pairs)


def test_radii_are_those_that_are_certified() -> None:
    model, x = small().eval(), torch.rand(20, 6)
    logits = model(x)
    labels = logits.argmax(1)
    body = lipaudit.bound(model[:1].eval(), (6,)).value
    found = radii(logits, labels, pairwise_lipschitz(model[-1].weight, body))
    assert found.shape == (20, 4)
    assert bool((found.gather(1, labels[:, None]) == math.inf).all())
    certified = lipaudit.certify(model, x, local="off", global_method="product").radius
    torch.testing.assert_close(found.amin(1).double(), torch.from_numpy(certified), rtol=1e-4, atol=1e-6)


def test_the_hinge_is_what_is_missing_and_its_soft_form_is_above_it() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(30, 5, dtype=torch.float64), torch.randint(5, (30,))
    pairwise = pairwise_lipschitz(torch.randn(5, 7, dtype=torch.float64))
    smallest = radii(logits, labels, pairwise).amin(1)
    expected = (0.7 - smallest).clamp_min(0).mean()
    torch.testing.assert_close(radius_hinge(logits, labels, pairwise, 0.7), expected)
    soft = [radius_hinge(logits, labels, pairwise, 0.7, t).item() for t in (1.0, 0.1, 1e-3)]
    assert soft[0] > soft[1] > soft[2] >= expected.item()
    assert soft[2] == pytest.approx(expected.item(), abs=5e-3)


def test_the_soft_hinge_is_a_cross_entropy_of_radii() -> None:
    logits, labels, pairwise = torch.tensor([[0.3, 0.1, -0.4]]), torch.tensor([0]), 2 * (1 - torch.eye(3))
    terms = [math.exp((1.0 - radius) / 0.5) for radius in (0.1, 0.35)]
    loss = radius_hinge(logits, labels, pairwise, 1.0, 0.5)
    assert loss.item() == pytest.approx(0.5 * math.log1p(sum(terms)), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_gradients_of_the_hinge(temperature: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    points = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    body = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (6,))

    def loss(w: torch.Tensor, x: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        return radius_hinge(x @ w.T, labels, pairwise_lipschitz(w, bound), 1.0, temperature)

    assert torch.autograd.gradcheck(loss, (rows, points, body))


def test_equal_rows_give_finite_gradients() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    radius_hinge(torch.zeros(2, 3), torch.tensor([0, 1]), pairwise_lipschitz(rows), 1.0, 0.1).backward()
    assert bool(rows.grad.isfinite().all())


def test_a_negative_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature of at least 0, got -1"):
        radius_hinge(torch.zeros(1, 2), torch.tensor([0]), torch.ones(2, 2), temperature=-1)
