"""The offset cross entropy against its formula, and against what it is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import lipaudit
from lipaudit import nn
from lipaudit.nn import offset_cross_entropy


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
