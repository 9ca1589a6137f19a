"""The tight mode against the dense matrix, in float64, with zero slack; with all borders exact it is the norm."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from oracles import convolutions, layer, truth

from lipaudit import conv_norm
from lipaudit.norms import tight, verified_eigenvalues
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.methods import TRIFLE, affords, norm_bound
from lipaudit.norms.tight import tight_bound, tight_flops
from lipaudit.norms.torus import torus_bound, torus_flops


@settings(max_examples=60, deadline=None)
@given(convolutions(modes=("zeros",)))
def test_exact_where_all_borders_are(conv: Conv) -> None:
    assume(math.prod(conv.kernel_size) > 1)  # a pointwise one is left to the torus
    exact = truth(conv)
    bound = tight_bound(conv).value
    assert exact <= bound <= exact * (1 + 1e-6) + 1e-5 * float(conv.weight.abs().sum())  # the floor of a squared norm


def many_groups(seed: int) -> Conv:
    """A depthwise or grouped convolution with more groups than channels in a group, of any geometry."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    groups, axes = draw(4, 40), draw(1, 2)
    each = [[draw(low, high) for _ in range(axes)] for low, high in ((1, 5), (1, 3), (1, 3))]
    kernel, stride, dilation = map(tuple, each)
    size = tuple(draw(3, 7) for _ in range(axes))
    pads = tuple((draw(0, 3), draw(0, 3)) for _ in range(axes))
    channels = (groups * draw(1, 3), draw(1, 2)) if seed % 2 else (groups, 1)
    weight = torch.randn(*channels, *kernel, generator=generator, dtype=torch.float64)
    return Conv(weight, size, stride, pads, dilation, groups)


def largest_of_groups(conv: Conv) -> float:
    weights = conv.weight.chunk(conv.groups)
    return max(truth(replace(conv, weight=weight, groups=1)) for weight in weights)


@pytest.mark.parametrize("form", ["products", "matrices"])
@pytest.mark.parametrize("exact", ["all", "one"])
@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in range(0, 60, 10)], ids=str)
def test_groups_in_batches(monkeypatch: pytest.MonkeyPatch, form: str, exact: str, seeds: range) -> None:
    """Both ways to form the Gram matrices, in parts smaller than the number of groups; never below, with zero slack."""
    monkeypatch.setattr(verified_eigenvalues, "_CHUNK_BYTES", 2**17)
    monkeypatch.setattr(tight, "_MATRIX_ENTRIES", 2**11)
    monkeypatch.setattr(tight._Size, "by_products", property(lambda _: 0.0 if form == "products" else math.inf))
    if exact == "one":
        monkeypatch.setattr(tight, "DENSE_SIDE", 0)
    for conv in map(many_groups, seeds):
        if min(conv.output_size) < 1:
            continue
        bound, true = tight_bound(conv), largest_of_groups(conv)
        assert bound.value >= true
        if exact == "all" and bound.method == "tight":
            assert bound.value <= true * (1 + 1e-6) + 1e-5 * float(conv.weight.abs().max())


def test_a_depthwise_layer_on_a_small_map_takes_a_moment() -> None:
    """Group by group this took minutes."""
    weight = torch.randn(320, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    best = conv_norm(weight, input_size=(7, 7), padding=3, groups=320)
    assert time.process_time() - began < 10
    assert best.method == "tight"


@pytest.mark.parametrize(
    ("shape", "size", "groups"),
    [((480, 1, 5, 5), 14, 480), ((96, 1, 3, 3), 56, 96), ((64, 64, 3, 3), 8, 1), ((32, 1, 7, 7), 7, 32)],
)
def test_real_borders_take_at_most_as_much_again_or_the_torus_says_so(
    shape: tuple[int, ...], size: int, groups: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    conv = Conv(weight, (size, size), (1, 1), ((shape[2] // 2,) * 2,) * 2, (1, 1), groups)
    best, candidates = norm_bound(conv)
    tried = any(candidate.method == "tight" for candidate in candidates)
    assert tried == (tight_flops(conv) <= max(TRIFLE, torus_flops(conv))) == affords(conv, "tight")
    assert tried != ("left to method 'tight'" in best.because)


def test_real_borders_have_nothing_to_add_where_windows_lie_apart() -> None:
    """The torus is exact there, and says nothing of borders."""
    apart = Conv(torch.randn(3, 2, 2, 2).double(), (6, 6), (2, 2), ((0, 0),) * 2, (1, 1))
    pointwise = Conv(torch.randn(3, 2, 1, 1).double(), (6, 6), (1, 1), ((0, 0),) * 2, (1, 1))
    for conv in (apart, pointwise):
        best, candidates = norm_bound(conv)
        assert math.isinf(tight_flops(conv))
        assert {candidate.method for candidate in candidates} == {"torus-parity", "schur"}
        assert truth(conv) <= best.value <= truth(conv) * (1 + 1e-8)
        assert "left to" not in best.because


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
