"""What is claimed of a Lipschitz constant: confirmed, open or refuted, and never more than what can be done again."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipaudit
from lipaudit import zoo
from lipaudit.certification.claimed import claim_of, proved_secant
from lipaudit.certification.exact_network import ExactNetwork
from lipaudit.certification.network_bound import compose
from lipaudit.crosscheck import steepest_pair
from lipaudit.errors import CaptureError, ConfigError, ReportError
from lipaudit.graph.wrappers import as_module
from lipaudit.report.html import to_html
from lipaudit.report.markdown import to_markdown
from lipaudit.report.terminal import to_text
from lipaudit.results.audit import Audit
from lipaudit.results.bounds import ROUNDED, Claim, Secant
from lipaudit.results.embedding import result_text
from lipaudit.results.json import from_json
from lipaudit.runs.shards import merge
from lipaudit.verdict.consistency import confirmed
from lipaudit.verdict.verdict import conclude, examine


def linear(*singular: float) -> nn.Module:
    """Of four inputs to as many logits as there are singular values, whose largest is its constant."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, len(singular), bias=False)).eval()
    with torch.no_grad():
        network[1].weight.zero_().diagonal().copy_(torch.tensor(singular))
    return network


@cache
def audited(claim: float, steep: float = 2.0) -> Audit:
    inputs = torch.linspace(0.1, 0.9, 24).reshape(6, 1, 2, 2)
    network = nn.Sequential(linear(steep, 0.5, 0.25), nn.ReLU(), nn.Linear(3, 3, bias=False)).eval()
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    labels = network(inputs).argmax(1)
    return lipaudit.audit(network, inputs, labels, claimed_lipschitz=claim, attacks="none", local="off")


def finding(audit: Audit) -> Any:
    return next(found for found in audit.findings if found.id == "LA106")


@pytest.mark.parametrize(
    ("claim", "state", "standing"),
    [
        (2.5, "pass", "confirmed"),
        (2.0, "pass", "confirmed"),
        (2.0 / (1 + ROUNDED / 2), "pass", "confirmed"),
        (1.999, "fail", "refuted"),
        (1.0, "fail", "refuted"),
    ],
)
def test_what_becomes_of_a_claim(claim: float, state: str, standing: str) -> None:
    """The constant is 2."""
    audit = audited(claim)
    assert audit.claim.standing(audit.bound) == standing
    assert finding(audit).state == state
    assert 1.99 < audit.claim.slope <= 2.0 <= audit.bound.value
    assert (audit.verdict.integrity, audit.exit_code) == ("SOUND", 0)
    assert bool(audit.claim.steepest.inputs) is (standing == "refuted")
    assert finding(audit).title.endswith(", but for rounding") is (standing == "confirmed" and claim <= 2)
    assert ("counts as rounding." in to_html(audit)) is (standing == "confirmed" and claim <= 2)
    for shown in (to_text(audit), to_markdown(audit), to_html(audit)):
        assert standing in shown


def test_a_claim_between_slope_and_bound_is_open() -> None:
    audit = audited(2.0)
    open_one = conclude(
        replace(audit, claim=replace(audit.claim, steepest=None), bound=replace(audit.bound, log10=0.4))
    )
    assert finding(open_one).state == "warn"
    assert "< bound 2.51" in finding(open_one).value


def test_nothing_is_claimed_unless_somebody_does() -> None:
    network, inputs = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(), torch.rand(3, 1, 2, 2)
    audit = lipaudit.audit(network, inputs, network(inputs).argmax(1), attacks="none", local="off")
    assert audit.claim is None
    assert "LA106" not in {found.id for found in audit.findings}
    assert "What the architecture claims" not in to_html(audit)


def test_a_slope_above_the_proved_bound_makes_the_audit_invalid() -> None:
    audit = audited(1.0)
    lower = replace(audit.bound, log10=math.log10(1.9))
    assert examine(replace(audit, bound=lower))[1].integrity == "INVALID"


# --- what can be done again


@pytest.mark.parametrize("seed", range(30))
def test_slopes_are_never_above_the_truth(seed: int) -> None:
    """Of linear networks of integers over powers of two, whose rises are computed in fractions."""
    draw = torch.Generator().manual_seed(seed)
    tame = seed % 2  # large biases hide what small weights do
    weight = torch.randint(-9, 10, (3, 4), generator=draw) / 2.0 ** (seed if not tame else 2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        network[1].weight.copy_(weight)
        network[1].bias.copy_(torch.randn(3, generator=draw) * 10.0 ** (0 if tame else seed % 7))
    points = torch.rand(3, 1, 2, 2, generator=draw)
    composition = compose(network, (1, 2, 2), domain=(0.0, 1.0))
    row, one, two = steepest_pair(network, points, judge=ExactNetwork(composition), low=0.0, high=1.0)
    secant = proved_secant(composition, row, one, two, 1e-30)
    assert secant is not None or not tame
    if secant is None:
        return
    step = [Fraction(a) - Fraction(b) for a, b in zip(one.flatten().tolist(), two.flatten().tolist(), strict=True)]
    rises = [sum(Fraction(w) * d for w, d in zip(line, step, strict=True)) for line in weight.tolist()]
    rise, run = sum(r * r for r in rises), sum(d * d for d in step)
    assert Fraction(secant.slope) ** 2 * run <= rise
    assert Fraction(secant.distance) ** 2 >= run
    largest = float(torch.linalg.matrix_norm(weight.double(), 2))
    assert secant.slope > 0.999 * largest or not tame
    assert min(one.min(), two.min()) >= 0
    assert max(one.max(), two.max()) <= 1


def test_a_refutation_can_be_done_again_from_the_file() -> None:
    stored = confirmed(from_json(audited(1.0).to_json())).claim
    one, two = (np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64) for text in stored.steepest.inputs)
    rise = (one - two) * [2.0, 0.5, 0.25, 0.0]
    assert np.linalg.norm(rise) / np.linalg.norm(one - two) > 1.99
    assert np.linalg.norm(one - two) == pytest.approx(stored.steepest.distance)


def edited(audit: Audit, **changes: Any) -> Audit:
    """The file with another claim, or another slope of it."""
    data = json.loads(audit.to_json())
    for name, value in changes.items():
        record = data["claim"] if name in data["claim"] else data["claim"]["steepest"]
        record[name] = value(record[name]) if callable(value) else value
    return from_json(json.dumps(data))


def moved(texts: list[str]) -> list[str]:
    return [texts[0], base64.b64encode(np.full(4, 0.5, "<f4").tobytes()).decode()]


@pytest.mark.parametrize(
    ("claim", "changes", "named"),
    [
        (1.0, {"constant": 3.0}, "claim.constant"),
        (1.0, {"distance": lambda d: d / 2}, "claim.steepest.distance"),
        (1.0, {"distance": lambda d: d * 4}, "claim.steepest.distance"),
        (1.0, {"inputs": []}, "claim.steepest.inputs"),
        (1.0, {"inputs": moved}, "claim.steepest.distance"),
        (1.0, {"inputs": ["AAAA", "AAAA"]}, "claim.steepest.inputs"),
        (1.0, {"logits": [[1.0], [2.0]]}, "claim.steepest.logits"),
        (1.0, {"logits": [[1.0, 2, 3], [None, 2, 3]]}, "claim.steepest.logits"),
        (1.0, {"error": -1.0}, "claim.steepest.distance"),
        (1.0, {"sample": 6}, "claim.steepest.sample"),
        (1.0, {"steepest": None}, "findings"),
        (2.5, {"constant": 1.5}, "claim.constant"),
        (2.5, {"constant": None}, "claim.constant"),
        (2.5, {"distance": lambda d: d / 1e3}, "verdict|inputs|findings"),
    ],
)
def test_a_forged_claim_is_refused(claim: float, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ReportError, match=named):
        confirmed(edited(audited(claim), **changes))


def test_a_claim_without_its_setting_is_none() -> None:
    data = json.loads(audited(2.5).to_json()) | {"claim": None}
    with pytest.raises(ReportError, match="claim"):
        confirmed(from_json(json.dumps(data)))


@pytest.mark.parametrize("claim", [1.0, 2.5])
def test_a_page_keeps_the_claim(claim: float) -> None:
    audit = audited(claim)
    found = confirmed(from_json(result_text(to_html(audit))), page=True).claim
    assert found == replace(audit.claim, steepest=replace(audit.claim.steepest, inputs=()))


def test_shards_keep_the_steepest_slope() -> None:
    inputs, network = torch.rand(6, 1, 2, 2), linear(2.0, 1.0)
    given = (network, inputs, network(inputs).argmax(1))
    keywords = {"claimed_lipschitz": 1.0, "attacks": "none", "local": "off"}
    parts = [lipaudit.audit(*given, **keywords, shard=(number, 2)) for number in (1, 2)]
    merged = merge(parts)
    assert merged.claim.slope == max(part.claim.slope for part in parts)
    assert confirmed(from_json(merged.to_json())).claim == merged.claim
    assert merged.claim.steepest.sample % 2 == (parts[1].claim.slope > parts[0].claim.slope)
    with pytest.raises(ReportError, match="claim"):
        merge([parts[0], replace(parts[1], claim=replace(parts[1].claim, constant=3.0))])


# --- who claims it


class Stated(nn.Linear):
    claimed_lipschitz: Any = 0.5


class Wrong(nn.Linear):
    @property
    def claimed_lipschitz(self) -> float:
        raise RuntimeError("no idea")


def wrong(value: Any) -> nn.Module:
    module = Stated(2, 2)
    module.claimed_lipschitz = value
    return module


@pytest.mark.parametrize(
    ("network", "constant"),
    [
        (lambda: lipaudit.nn.AOLLinear(4, 4), 1.0),
        (lambda: nn.Sequential(nn.Flatten(), lipaudit.nn.AOLLinear(4, 4), lipaudit.nn.MaxMin()), 1.0),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), None),
        (lambda: nn.Sequential(lipaudit.nn.OrthogonalConv2d(4, 4, 3), nn.AvgPool2d(2)), None),
        (lambda: nn.Sequential(nn.Flatten(), lipaudit.nn.NormalisedLinear(4, 9)), 3.0),
        (lambda: nn.Sequential(Stated(4, 4), nn.Sequential(Stated(4, 4), nn.Identity())), 0.25),
        (lambda: nn.Sequential(), None),
        (lambda: nn.Linear(2, 2), None),
        (lambda: as_module(nn.Sequential(lipaudit.nn.MaxMin()), mean=[0.5, 0.5], std=[0.25, 0.5]), 4.0),
    ],
)
def test_layers_claim_constants(network: Callable[[], nn.Module], constant: float | None) -> None:
    found = claim_of(network(), None)
    assert (None if found is None else found.constant) == constant


def test_the_bundled_certified_network_claims_one() -> None:
    assert claim_of(zoo.load("digits-aol"), None).constant == 1.0
    assert claim_of(zoo.load("digits-cnn"), None) is None


@pytest.mark.parametrize("package", ["torchlip", "orthogonium"])
def test_layers_of_other_packages_claim_constants(package: str) -> None:
    if package == "torchlip":
        lip = pytest.importorskip("deel.torchlip")
        layers = lip.SpectralLinear(4, 4), lip.GroupSort2(), lip.SpectralLinear(4, 3)
        assert claim_of(lip.Sequential(*layers, k_coef_lip=8.0), None).constant == pytest.approx(8.0)
        assert claim_of(nn.Sequential(lip.SpectralLinear(4, 4), nn.Linear(4, 4)), None) is None
    else:
        layers = pytest.importorskip("orthogonium.layers")
        assert claim_of(nn.Sequential(layers.OrthoLinear(4, 4), layers.MaxMin()), None).constant == 1.0
        assert claim_of(layers.UnitNormLinear(4, 4), None) is None


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, True, "1"])
def test_what_is_no_constant_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected a finite number above 0"):
        claim_of(nn.Identity(), value)
    with pytest.raises(CaptureError, match=r"Stated.claimed_lipschitz"):
        claim_of(wrong(value), None)


def test_a_property_that_raises_is_refused_in_one_line() -> None:
    with pytest.raises(CaptureError, match="got RuntimeError: no idea"):
        claim_of(nn.Sequential(Wrong(2, 2)), None)


def test_a_claim_is_about_the_network_as_it_is_asked_for() -> None:
    """Not one of `Secant` above its truth by the rounding that is taken off."""
    secant = Secant(0, 1.0, ((3.0, 4.0), (0.0, 0.0)), 0.5)
    assert 4.5 * (1 - 1e-12) < secant.slope < 4.5
    assert Secant(0, 1.0, ((3.0, 4.0), (0.0, 0.0)), 5.0).slope == 0.0
    assert Claim(4.0, "the user", secant).standing(None) == "refuted"
