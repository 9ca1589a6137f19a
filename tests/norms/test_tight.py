"""The tight mode against the dense matrix, in float64, with zero slack; with all borders exact it is the norm."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from oracles import convolutions, layer, truth

from lipaudit import conv_norm
from lipaudit.norms import norm_bound, tight
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.tight import tight_bound
from lipaudit.norms.torus import torus_bound


@settings(max_examples=60, deadline=None)
@given(convolutions(modes=("zeros",)))
def test_exact_where_all_borders_are(conv: Conv) -> None:
    assume(math.prod(conv.kernel_size) > 1)  # a pointwise one is left to the torus
    exact = truth(conv)
    bound = tight_bound(conv).value
    assert exact <= bound <= exact * (1 + 1e-6) + 1e-5 * float(conv.weight.abs().sum())  # the floor of a squared norm


@pytest.fixture
def one_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one axis may be exact."""
    monkeypatch.setattr(tight, "DENSE_SIDE", 0)


@pytest.mark.usefixtures("one_axis")
@pytest.mark.parametrize("seed", range(40))
def test_never_below_with_one_exact_axis(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    groups = draw(1, 2)
    conv = Conv(
        weight=torch.randn(groups * draw(1, 4), draw(1, 3), draw(1, 4), draw(1, 4), generator=generator).double(),
        input_size=(draw(3, 7), draw(3, 7)),
        stride=(draw(1, 2), draw(1, 2)),
        padding=((draw(0, 2), draw(0, 2)), (draw(0, 2), draw(0, 2))),
        dilation=(draw(1, 2), draw(1, 2)),
        groups=groups,
        padding_mode=("zeros", "zeros", "reflect", "circular")[seed % 4],
    )
    if min(conv.output_size) < 1:
        return
    bound = tight_bound(conv)
    assert bound.value >= truth(conv)
    if conv.padding_mode == "zeros" and bound.method == "tight":
        assert "borders of axis" in bound.because
        assert bound.value <= torus_bound(conv).value * 1.25  # another twist may be better there


@pytest.mark.usefixtures("one_axis")
def test_one_exact_axis_is_closer_than_none() -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(16, 16, 3, 3).double(), (5, 5), (1, 1), ((1, 1), (1, 1)), (1, 1))
    exact = truth(conv)
    assert (tight_bound(conv).value - exact) < 0.7 * (torus_bound(conv).value - exact)


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.0])
def test_a_wrong_guess_cannot_make_the_bound_wrong(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    torch.manual_seed(0)
    conv = Conv(torch.randn(3, 3, 3, 3).double(), (4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1))
    monkeypatch.setattr(tight, "_EIGENVALUES", 0)
    guess = tight.lanczos
    monkeypatch.setattr(tight, "lanczos", lambda *how: factor * guess(*how))
    if factor < 0.9:
        with pytest.raises(ValueError, match="proof"):
            tight_bound(conv)
    else:
        assert tight_bound(conv).value >= truth(conv)


@pytest.mark.usefixtures("one_axis")
def test_inexact_weights_and_scales() -> None:
    weight = torch.rand(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    conv = Conv(weight, (4, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), relative_error=0.01)
    assert tight_bound(conv).value >= truth(replace(conv, weight=weight * 1.01))
    assert tight_bound(replace(conv, weight=weight * 0)).value <= 1e-320


def test_method_names() -> None:
    conv = layer([[[1.0, 0, -1]]], (6,), padding=1)
    assert norm_bound(conv, "tight")[0].value <= norm_bound(conv, "best")[0].value
    weight = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    names = {method: conv_norm(weight, input_size=(4, 4), padding=1, method=method).value for method in ("all", "best")}
    assert names["all"] == pytest.approx(names["best"], rel=1e-9)
