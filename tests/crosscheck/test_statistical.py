"""Estimates against what is known exactly of linear networks; and that nothing else of an audit moves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from crosscheck_nets import exact_distances, labelled, linear, samples
from scipy.stats import beta, norm

import lipaudit
from lipaudit.crosscheck import estimates
from lipaudit.errors import BadThreat
from lipaudit.results.threat import NORMS, Norm


@pytest.mark.parametrize("measured", NORMS)
def test_clever_is_the_distance_where_gradients_are_constant(measured: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "CLEVER_BATCHES", 4)
    network, inputs = linear(3), samples(3)
    labels = labelled(network, inputs)
    estimate = estimates.clever(network, inputs, labels.tolist(), [True, False, True], classes=3, norm=measured)
    exact = exact_distances(network, inputs, labels, measured)
    assert estimate.values[1] is None
    assert [estimate.values[0], estimate.values[2]] == pytest.approx([exact[0], exact[2]], rel=1e-3)
    assert estimate.probability is None


@pytest.mark.parametrize("width", [1.0, 4.0])
def test_smoothed_radii_are_those_of_the_counts(width: float) -> None:
    """Of a linear network with two classes the smoothed radius is the distance itself; what is counted stays below."""
    network, inputs = linear(2), samples(8)
    labels = labelled(network, inputs)
    exact = exact_distances(network, inputs, labels)
    given = {"classes": 2, "low": 0.0, "high": width}
    found = estimates.smoothing(network, inputs, labels.tolist(), sigma=0.3, **given)
    most = 0.3 * norm.ppf(beta.ppf(estimates.FAILURE, estimates.DRAWS, 1))
    assert found.values == estimates.smoothing(network, inputs, labels.tolist(), sigma=0.3, **given).values
    for value, distance in zip(found.values, exact, strict=True):
        # A failure of probability 0.001 each; the seeds are fixed.
        assert 0 <= value <= min(distance, most * (1 + 1e-9))
        assert value >= min(0.6 * distance, 0.9 * most) - 0.05
    assert (found.probability, found.draws) == (0.999, 1000)
    wrong = estimates.smoothing(network, inputs, (1 - labels).tolist(), sigma=0.3, **given)
    assert set(wrong.values) == {0.0}


def test_smoothed_radii_in_other_norms_are_of_the_largest_ball_within() -> None:
    network, inputs = linear(2), samples(8)
    given = {"sigma": 0.3, "classes": 2}
    labels = labelled(network, inputs).tolist()
    in_l2 = estimates.smoothing(network, inputs, labels, **given)
    assert estimates.smoothing(network, inputs, labels, norm="l1", **given).values == in_l2.values
    found = estimates.smoothing(network, inputs, labels, norm="linf", **given)
    for value, other in zip(found.values, in_l2.values, strict=True):
        assert value <= other / inputs[0].numel() ** 0.5
        assert value == pytest.approx(other / inputs[0].numel() ** 0.5)
    assert max(found.values) > 0


def test_samples_keep_their_noise_in_whichever_shard_they_are() -> None:
    network, inputs = linear(3), samples(5)
    labels = labelled(network, inputs).tolist()
    whole = estimates.smoothing(network, inputs, labels, sigma=0.2, classes=3, seed=4)
    part = estimates.smoothing(network, inputs[1::2], labels[1::2], sigma=0.2, classes=3, seed=4)
    assert part.values == whole.values[1::2]


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_sigma_that_is_no_size_is_refused(sigma: float) -> None:
    with pytest.raises(BadThreat, match="smoothing sigma above 0"):
        estimates.smoothing(linear(2), samples(1), [0], sigma=sigma, classes=2)


def test_estimates_stand_apart_in_an_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "CLEVER_BATCHES", 3)
    monkeypatch.setattr(estimates, "DRAWS", 200)
    network, inputs = linear(3), samples(6)
    labels = labelled(network, inputs)
    settings = {"attacks": "none", "local": "off"}
    plain = lipaudit.audit(network, inputs, labels, **settings)
    audit = lipaudit.audit(network, inputs, labels, **settings, smoothing=0.25, clever=True)
    assert plain.estimates == ()
    assert "Estimated, not proved" not in plain.to_html()
    names = [estimate.name for estimate in audit.estimates]
    assert names == ["CLEVER", "randomized smoothing"]
    assert (audit.samples, audit.certified, audit.verdict) == (plain.samples, plain.certified, plain.verdict)
    assert audit.findings == plain.findings
    page = audit.to_html()
    for text in ("Estimated, not proved", "another classifier than the one audited", "probability 0.999, 200 draws"):
        assert text in page
    again = lipaudit.results.audit.Audit(**vars(audit))
    assert again.to_json() == audit.to_json()
    parts = [lipaudit.audit(network, inputs, labels, **settings, smoothing=0.25, shard=(k, 2)) for k in (1, 2)]
    assert lipaudit.merge(parts).estimates[0].values == audit.estimates[1].values
    with pytest.raises(lipaudit.errors.ReportError, match="another estimates"):
        lipaudit.merge([parts[0], replace(parts[1], estimates=())])
    pytest.importorskip("pandas")
    from lipaudit.report.markdown import to_markdown
    from lipaudit.report.terminal import to_text

    assert "estimate, not proved: CLEVER, median" in to_text(audit)
    assert "Estimate, not proved: randomized smoothing" in to_markdown(audit)
    assert np.isfinite([value for estimate in audit.estimates for value in estimate.values]).all()
    assert torch.is_grad_enabled()
    frame = audit.to_dataframe()
    assert frame["estimate: CLEVER"].tolist() == list(audit.estimates[0].values)
    assert frame["radius"].tolist() == list(plain.samples.radius)
