"""Two answers are the same but for rounding: logit by logit, whatever the others are."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from lipaudit.domains.graph import evaluate, in_dtype
from lipaudit.graph.agreement import Agreement
from lipaudit.graph.capture import capture


class Shifted(nn.Module):
    """Logits with something added that is taken off again, and a class that is masked."""

    def __init__(self, shift: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
        self.register_buffer("shift", torch.tensor([shift, shift, 0.0, 0.0, 0.0]))
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, 0.0, -1e9]))
        self.to(dtype).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shift - self.shift + self.mask


@functools.cache
def answers(
    shift: float = 0.0, dtype: torch.dtype = torch.float32
) -> tuple[Agreement, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The comparison, images, and the answers in the model's own type and in float64."""
    model = Shifted(shift, dtype)
    graph = capture(model, (12,))
    x = torch.rand(16, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        precise = torch.stack([evaluate(in_dtype(graph, torch.float64), one.double()) for one in x])
        return Agreement(graph), x, model(x), precise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_rounding_is_no_difference(dtype: torch.dtype, shift: float) -> None:
    agreement, x, native, precise = answers(shift, dtype)
    assert bool(agreement.same(x, native, precise).all())
    assert bool(agreement.same(x, precise, native).all())


@pytest.mark.parametrize("logit", range(4))
def test_a_small_difference_in_one_logit_is_one_whatever_the_others_are(logit: int) -> None:
    agreement, x, native, precise = answers()
    moved = native.clone()
    moved[3, logit] *= 1 + 3e-4
    expected = torch.ones(16, 5, dtype=torch.bool)
    expected[3, logit] = False
    assert torch.equal(agreement.same(x, moved, precise), expected)


def test_cancellation_excuses_only_the_logit_in_which_it_happens() -> None:
    agreement, x, native, precise = answers(1e6)
    assert float((native - precise).abs()[:, 0].max()) > 1e-3, "nothing cancelled"
    moved = native + torch.tensor([0.05, 0.05, 0.05, 0.05, 0.05])
    same = agreement.same(x, moved, precise)
    assert bool(same[:, :2].all())
    assert not bool(same[:, 2:4].any())
    assert bool(same[:, 4].all()), "the mask is that large"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_the_same(value: float) -> None:
    agreement, x, native, _ = answers()
    native = native.clone()
    native[2, 1] = value
    same = agreement.same(x, native, native)
    assert not bool(same[2, 1])
    assert int(same.sum()) == same.numel() - 1
