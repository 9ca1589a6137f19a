"""Local radii: never beyond what changes the answer, at least as far as the global ones where it matters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from quick import mostly_slow
from torch import nn

import lipaudit
from lipaudit import zoo
from lipaudit.certification.certificates import certify_with, with_local_radii
from lipaudit.certification.local_proof import Attempt, Search, proof
from lipaudit.certification.local_search import _searched, beginning, local_radii, local_radius
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.zonotope.logits import seconds_of_a_pass
from lipaudit.files.journal import Journal, fingerprint


def network(seed: int, inputs: int = 2, width: int = 12, classes: int = 3, hidden: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    pairs = itertools.pairwise((inputs, *[width] * hidden, classes))
    layers = nn.Sequential(*[layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())][:-1])
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(2.0)
    return layers.eval().requires_grad_(False)


def crossing(model: nn.Module, x: torch.Tensor, label: int, rays: int = 4000) -> float:
    """The distance at which the answer changes along the worst of many rays, to about 1e-12: exact on each ray.

    Along a ray a ReLU network has straight pieces. They are found by halving until an interval is straight.
    """
    angles = torch.arange(rays, dtype=torch.float64) * (2 * math.pi / rays)
    directions = torch.stack([angles.cos(), angles.sin()], 1)

    def gap(distance: torch.Tensor) -> torch.Tensor:
        logits = model(x + directions * distance[:, None])
        others = logits.clone()
        others[:, label] = -math.inf
        return logits[:, label] - others.amax(1)

    changed = torch.full((rays,), math.inf, dtype=torch.float64)
    for step in torch.linspace(0.005, 2.0, 400, dtype=torch.float64):
        fell = (gap(step.expand(rays)) <= 0) & changed.isinf()
        changed[fell] = step
    low, high = (changed - 0.005).clamp_min(0.0), changed.clone()
    for _ in range(50):
        middle = (low + high) / 2
        fell = gap(middle.nan_to_num(posinf=3.0)) <= 0
        high, low = torch.where(fell, middle, high), torch.where(fell, low, middle)
    return float(high.min())


@pytest.mark.parametrize("seed", mostly_slow(range(8), 2))
def test_no_radius_reaches_the_boundary_of_a_small_network(seed: int) -> None:
    model = network(seed)
    composition = compose(model, (2,))
    x = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    label = int(evaluate(composition.graph, x).argmax())
    truth = crossing(model.double(), x, label)
    found = {}
    for name, search in {
        "plain": Search(backwards=False, ascent_steps=0, precision=1.01),
        "ascent": Search(backwards=False, precision=1.01),
        "all": Search(precision=1.01),
        "together": Search(precision=1.01, together=True),
    }.items():
        found[name] = local_radius(composition, x, label, start=0.01, search=search)
        assert 0 < found[name] <= truth
    assert found["plain"] <= found["ascent"] * 1.02 <= found["all"] * 1.02**2 <= found["together"] * 1.02**3
    assert found["all"] >= 0.2 * min(truth, 1.0)


def test_a_wrong_label_and_a_radius_beyond_the_boundary_never_hold() -> None:
    composition = compose(network(0), (2,))
    x = torch.zeros(2, dtype=torch.float64)
    wrong = int(evaluate(composition.graph, x).argmin())
    assert not proof(composition, x, wrong, 1e-9)
    assert local_radius(composition, x, wrong, start=0.1) == 0.0
    right = int(evaluate(composition.graph, x).argmax())
    assert not proof(composition, x, right, 1e6)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, list[int], object]:
    _, _, images, labels = zoo.digits_split()
    model = zoo.load("digits-cnn")
    return torch.from_numpy(images[:6]), labels[:6].tolist(), compose(model, (1, 8, 8), global_method="product")


@pytest.mark.parametrize("count", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_an_ordinary_network_is_certified_much_farther(count: int, digits: tuple) -> None:
    images, labels, composition = digits[0][:count], digits[1][:count], digits[2]
    whole = certify_with(composition, images, labels)
    better, search = with_local_radii(whole, composition, images, budget=None)
    assert search.tried == count
    assert search.why_not == ""
    assert all(row.method == "local" for row in better.rows)
    assert (better.radius > 5 * whole.radius).all()
    generator = torch.Generator().manual_seed(0)
    for x, row in zip(images.double(), better.rows, strict=True):
        d = torch.randn(64, *x.shape, generator=generator, dtype=torch.float64)
        d = d / d.flatten(1).norm(dim=1)[:, None, None, None] * row.radius * (1 - 1e-12)
        assert all(int(evaluate(composition.graph, x + one).argmax()) == row.label for one in d)


def test_time_is_a_limit(digits: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, composition = digits
    clock = iter(float(k) for k in range(1000))
    monkeypatch.setattr("lipaudit.certification.local_search.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("lipaudit.certification.local_search.seconds_of_a_pass", lambda *_: 0.5)
    search = Search(backwards=False, ascent_steps=0, precision=4.0)
    some = local_radii(composition, images, labels, [1e-3] * 6, budget=5.0, search=search)
    assert 1 <= some.tried < 6
    assert some.why_not.startswith(f"{some.tried} of 6 images took")
    monkeypatch.undo()
    assert 1e-3 < seconds_of_a_pass(composition.ledger, images[0]) < 30
    monkeypatch.setattr("lipaudit.certification.local_search.seconds_of_a_pass", lambda *_: 30.0)
    none = local_radii(composition, images, labels, [1e-3] * 6, budget=60.0, search=search)
    assert none.tried == 0
    assert "one image would take about" in none.why_not
    assert none.radius == (0.0,) * 6


def test_a_search_begins_where_gradients_promise() -> None:
    """Of a linear network they know the distance; of one that is constant, nothing."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).eval()
    x = torch.rand(6, generator=torch.Generator().manual_seed(0))
    logits, weight = linear(x[None])[0].detach().double(), linear[1].weight.detach().double()
    label = int(logits.argmax())
    far = [float((logits[label] - logits[j]) / (weight[label] - weight[j]).norm()) for j in range(3) if j != label]
    composition = compose(linear, (6,))
    assert beginning(composition, x, label, 1e-9) == pytest.approx(min(far) / 32, rel=1e-5)
    assert beginning(composition, x, label, 1.0) == 2.0
    nn.init.zeros_(linear[1].weight)
    assert beginning(compose(linear, (6,)), x, label, 1e-9) == 2e-9
    wrong = int(logits.argmin())
    assert beginning(composition, x, wrong, 0.0) == 0.0


def test_as_many_images_as_were_asked_for(digits: tuple) -> None:
    images, labels, composition = digits
    search = Search(backwards=False, ascent_steps=0, precision=4.0)
    some = local_radii(composition, images, labels, [0.0, 1e-3, 1e-3, 1e-3, 0.0, 0.0], most=2, search=search)
    assert [radius > 0 for radius in some.radius] == [False, True, True, False, False, False]
    assert (some.tried, some.why_not) == (2, "asked for 2 of 3 images")


def test_a_radius_that_another_search_has_kept_is_looked_for_again(digits: tuple, tmp_path: Path) -> None:
    """An older lipaudit chose among other searches, and kept other things about them."""
    images, labels, composition = digits
    journal = Journal(tmp_path / "la-x.partial", {"settings": {}}, "now")
    about = fingerprint(images[0].cpu().numpy(), labels[0], 1e-3, None, None, {})
    journal.put("local-0", about, 1.0, radius=np.array(9.0), why_not=np.array(""), precision=np.array(1.15))
    known = [1e-3, *[0.0] * 5]
    found = local_radii(composition, images, labels, known, budget=None, journal=journal)
    assert 1e-3 < found.radius[0] < 9.0
    assert local_radii(composition, images, labels, known, budget=None, journal=journal) == found


def test_many_classes_are_sharpened_too() -> None:
    """More differences of logits than rows that convolutions take at once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    model = nn.Sequential(net, nn.Flatten(), nn.Linear(48, 200)).eval()
    x = torch.rand(1, 4, 4)
    label = int(model(x[None]).argmax())
    composition = compose(model, (1, 4, 4))
    plain = Search(backwards=False, ascent_steps=0)
    assert (
        0
        < local_radius(composition, x, label, start=1e-3, search=plain) / plain.precision
        <= (local_radius(composition, x, label, start=1e-3))
    )


def test_what_cannot_be_done_is_a_reason(digits: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, composition = digits
    attention = compose(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)).eval(), (1, 8, 8))
    assert (
        "expected operations that have a local rule, got" in local_radii(attention, images, labels, [1.0] * 6).why_not
    )
    assert local_radii(composition, images, labels, [0.0] * 6).tried == 0
    large = compose(nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(48, 3)).eval(), (3, 128, 128))
    image = torch.rand(1, 3, 128, 128)
    assert "a ball in 49152 dimensions" in local_radii(large, image, [0], [1.0]).why_not  # 18 GiB of rows of the input
    assert seconds_of_a_pass(large.ledger, image[0]) < 60
    monkeypatch.setattr("lipaudit.domains.zonotope.logits.LARGEST_ROWS_BYTES", 2**16)
    assert "a ball in 64 dimensions needs more than" in local_radii(composition, images, labels, [1.0] * 6).why_not


@pytest.mark.slow
def test_certify_takes_the_larger_radius_and_names_it(digits: tuple) -> None:
    images, labels = digits[0][:2], digits[1][:2]
    model = zoo.load("digits-cnn")
    whole = lipaudit.certify(model, images, labels, local="off")
    best = lipaudit.certify(model, images, labels)
    assert [row.method for row in whole.rows] == ["global"] * 2
    assert [row.method for row in best.rows] == ["local"] * 2
    assert (best.radius > whole.radius).all()


@pytest.mark.parametrize("arithmetic", ["real", "native"])
def test_thorough_goes_on_where_local_ends(arithmetic: str) -> None:
    model = network(0, inputs=12, width=40, hidden=3)
    x = torch.randn(2, 12)[:1]
    local, thorough = (lipaudit.certify(model, x, local=how, arithmetic=arithmetic) for how in ("on", "thorough"))
    assert bool((thorough.radius >= local.radius).all())
    assert float(thorough.radius.max() / local.radius.max()) > 1.05
    generator = torch.Generator().manual_seed(0)
    for image, row in zip(x, thorough.rows, strict=True):
        d = torch.randn(500, 12, generator=generator, dtype=torch.float64)
        d = d / d.norm(dim=1, keepdim=True) * row.radius * (1 - 1e-6)
        assert bool((model((image + d).float()).argmax(1) == row.label).all())


def test_only_what_was_asked_for_leaves_an_audit_incomplete() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)).eval()
    images = torch.rand(4, 1, 8, 8)
    labels = model(images).argmax(1)
    automatic = lipaudit.audit(model, images, labels, attacks="none", local="auto")
    assert "local rule" in automatic.skipped[0].why
    assert (automatic.status, automatic.exit_code) == ("complete", 0)
    asked = lipaudit.audit(model, images, labels, attacks="none", local="on")
    assert (asked.status, asked.exit_code) == ("partial", 5)


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_audit_holds_local_radii_against_attacks(count: int, digits: tuple) -> None:
    images, labels = digits[0][:count], digits[1][:count]
    model = zoo.load("digits-cnn")
    audit = lipaudit.audit(model, images, labels, attacks="quick", local="on", global_method="product")
    assert audit.samples.method == ("local",) * count
    assert audit.verdict.integrity == "SOUND"
    off = lipaudit.audit(model, images, labels, attacks="none", local="off", global_method="product")
    assert off.samples.method == ("global",) * count
    assert "(local)" in audit.to_html()


def test_without_a_limit_of_time_no_clock_counts(digits: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine, or one that is busy, finds the same radii."""
    images, labels, composition = digits
    found = []
    for seconds in (1e-3, 1e3):
        monkeypatch.setattr("lipaudit.certification.local_search.seconds_of_a_pass", lambda *_, s=seconds: s)
        found.append(local_radii(composition, images[:1], labels[:1], [1e-3], budget=None))
    assert found[0] == found[1]
    assert found[0].radius[0] > 1e-3


def test_a_search_goes_where_margins_cross_zero() -> None:
    """Few attempts, and close to where they begin to fail; margins that mislead, or that are unknown, cost attempts."""
    for told, most in ((lambda r: 1 - 0.02 * math.exp(r), 8), (lambda _: -math.inf, 16), (lambda r: 1 - r**9, 16)):
        tried: list[float] = []

        def attempt(radius: float, told: Callable[[float], float] = told, tried: list[float] = tried) -> Attempt:
            tried.append(radius)
            good = radius < math.log(50)
            return Attempt(int(good), abs(told(radius)) if good else -abs(told(radius)))

        found = _searched(attempt, 1.0, 0.1, 1.15, 1.05, math.inf)
        assert found in tried
        assert math.log(50) / 1.05 <= found < math.log(50)
        assert len(tried) <= most
