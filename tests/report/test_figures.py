"""Figures 4 and 5, the gate's conditions, and what stands where there is nothing to draw."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace

import audit_parts
import audits
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import page, seen

from lipaudit.report.bound_section import bounds
from lipaudit.report.figures import classes, margins
from lipaudit.report.figures.layer_groups import stages
from lipaudit.report.html import to_html
from lipaudit.report.images_section import images
from lipaudit.results.audit import Audit
from lipaudit.results.bounds import Upper
from lipaudit.results.formatting import number, told_apart
from lipaudit.verdict.verdict import examine


def with_margins(values: list[float]) -> Audit:
    audit = audits.single()
    n = len(values)
    s = audit.samples
    label = (3,) * n
    prediction = tuple(3 if value >= 0 else 4 for value in values)
    columns = replace(
        s, index=tuple(range(n)), label=label, prediction=prediction, margin=tuple(values), radius=(0.0,) * n,
        distance=(None,) * n, adversarial_prediction=(None,) * n, attack=(None,) * n, attacked=(False,) * n, method=(),
    )  # fmt: skip
    return replace(audit, samples=columns, thumbnails=())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.floats(1e-6, 1e6))
def test_every_image_is_in_one_bar_and_none_across_zero(values: list[float], unit: float) -> None:
    values = [value * unit for value in values]
    shown = margins.histogram(with_margins(values))
    if shown is None:
        assert max(values) - min(values) <= 1e-9 * max(map(abs, values)) or max(values) - min(values) < 1e-199
        return
    assert sum(bar.images for bar in shown.bars) == len(values)
    assert not any(bar.low < 0 < bar.high for bar in shown.bars)
    assert sum(bar.images for bar in shown.bars if bar.wrong) == sum(value < 0 for value in values) or not any(
        bar.wrong for bar in shown.bars
    )
    assert len(shown.bars) <= margins.MOST_BARS
    inner = shown.bars[1:-1]
    for bar in inner:
        assert bar.images == sum(bar.low <= value < bar.high for value in values)


def test_outliers_do_not_squeeze_the_histogram() -> None:
    draw = random.Random(0)
    audit = with_margins([draw.gauss(5, 2) for _ in range(1000)] + [1e6])
    shown = margins.histogram(audit)
    assert shown is not None
    assert shown.clipped
    assert shown.bars[-1].high < 20
    assert images(audit).margins.clipped


def test_misclassified_images_stand_apart() -> None:
    audit = audits.strong()
    shown = margins.histogram(audit)
    assert shown is not None
    wrong = sum(y != guess for y, guess in zip(audit.samples.label, audit.samples.prediction, strict=True))
    assert shown.wrong == wrong == sum(bar.images for bar in shown.bars if bar.wrong)
    assert f"wrong: {wrong}" in page("strong")
    assert 'class="bar wrong"' in page("strong")


@given(st.lists(st.floats(0, 100) | st.just(math.inf), min_size=1, max_size=50))
def test_quantiles_are_values_of_images(values: list[float]) -> None:
    found = classes.quantiles(values)
    assert set(found) <= set(values)
    assert list(found) == sorted(found)
    for share, value in zip(classes.SHARES, found, strict=True):
        assert sum(v <= value for v in values) >= share * len(values) - 1e-9
        assert sum(v < value for v in values) < share * len(values) + 1e-9


def test_classes_stand_in_order_of_weakness_with_their_counts() -> None:
    audit = audits.strong()
    ranked = classes.spreads(audit)
    assert [one.radius[2] for one in ranked if one.radius] == sorted(one.radius[2] for one in ranked if one.radius)
    assert sum(one.images for one in ranked) == 512
    assert sum(one.correct for one in ranked) == audit.clean.count
    rows = [row for row in seen(page("strong")).rows if len(row) == 6 and " of " in row[1]]
    assert [row[0] for row in rows] == [one.name for one in ranked]
    assert [row[2] for row in rows] == [number(one.radius[2]) for one in ranked if one.radius]


def test_without_certificates_classes_are_ordered_by_attack_and_show_no_radius() -> None:
    shown = classes.classes(audits.invalid())
    assert shown.figure is not None
    assert not any(one.radius for one in classes.spreads(audits.invalid()))
    assert {row.radius for row in shown.rows} == {"–"}
    assert (
        "certified radius" not in page("invalid")[page("invalid").index('id="fig5-wide-title"') :].split("</figure>")[0]
    )


def test_of_many_classes_the_ends_are_shown() -> None:
    audit = audits.strong(600)
    label = tuple(row % 50 for row in range(600))
    columns = replace(audit.samples, label=label, prediction=label)
    shown = classes.classes(replace(audit, samples=columns))
    assert len(shown.rows) == 15
    assert "35 more" in str(shown.figure)
    assert shown.left_out == "The 10 weakest and 5 strongest of 50 classes."
    ranked = classes.spreads(replace(audit, samples=columns))
    assert [row.name for row in shown.rows] == [one.name for one in (*ranked[:10], *ranked[-5:])]


def one_class() -> Audit:
    audit = audits.strong(40)
    return replace(audit, samples=replace(audit.samples, label=(3,) * 40, prediction=(3,) * 40))


def all_broken() -> Audit:
    audit = audits.strong(40)
    s = audit.samples
    tiny = tuple(1e-9 for _ in s.label)
    right = replace(s, prediction=s.label, distance=tiny, radius=(0.0,) * 40, attacked=(True,) * 40)
    return replace(audit, samples=right)


def nothing_found() -> Audit:
    audit = audits.no_attacks()
    return replace(audit, samples=replace(audit.samples, radius=(0.0,) * 200))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (one_class, "all audited images are of one class"),
        (audits.single, "all audited images are of one class"),
        (audits.single, "There is nothing to draw: 1 image, with a margin of 2.00."),
        (audits.all_wrong, "no image is classified correctly"),
        (nothing_found, "no image has a certified radius above zero, and none was broken"),
        (
            lambda: replace(audits.no_attacks(), verdict=audits.invalid().verdict),
            "the certificates are withdrawn, and no",
        ),
        (lambda: replace(audits.no_attacks(), verdict=audits.unproved().verdict), "there is no certificate, and no"),
        (all_broken, "No attacked image has a certified radius above zero"),
    ],
)
def test_a_sentence_stands_where_there_is_nothing_to_draw(make: Callable[[], Audit], sentence: str) -> None:
    html = to_html(make())
    assert sentence in seen(html).words()
    assert "nan" not in html.lower().split('"')


def test_margins_that_cannot_be_told_apart_are_named() -> None:
    said = {margins.note(with_margins(values)) for values in ([1.0, 1.0], [1.0, 1.0 + 1e-12])}
    assert said == {"There is nothing to draw: 2 images, with a margin of 1.00."}
    assert margins.note(with_margins([1e-300, 2e-300])).endswith("margins of 1.00×10⁻³⁰⁰ to 2.00×10⁻³⁰⁰.")
    assert images(with_margins([1.0, 1.0])).margins.figure is None


def test_an_image_without_margin_is_left_out() -> None:
    audit = with_margins([1.0, 2.0, math.nan, -1.0])
    shown = margins.histogram(audit)
    assert shown is not None
    assert shown.images == 3


@pytest.mark.parametrize("name", audits.ALL)
def test_every_figure_has_a_caption_and_its_finding_in_words(name: str) -> None:
    for figure in re.findall(r"<figure>(.*?)</figure>", page(name), re.S):
        if figure.startswith("\n"):  # the same once more, on another axis, has no caption of its own
            assert re.search(r"<figcaption><b>Figure \d\.</b> \w", figure)
        for summary in re.findall(r"<desc[^>]*>(.*?)</desc>", figure, re.S):
            assert summary.endswith(".")
            assert len(summary) > 20


def test_conditions_are_listed_with_digits_that_tell_them_apart() -> None:
    rows = [row for row in seen(page("gated")).rows if row and "_accuracy" in row[0]]
    assert rows == [
        ["clean_accuracy>=0.5", "0.8800 (the value itself)", "0.5000", "fails the audit", "passed"],
        ["certified_accuracy@36/255>=0.30", "0.299999 (the 95% lower limit)", "0.300000", "fails the audit", "failed"],
        ["empirical_robust_accuracy@0.5>=0.9", "0.1200 (the value itself)", "0.9000", "is a warning", "failed"],
        ["empirical_robust_accuracy@2>=0.1", "–", "0.1", "fails the audit", "cannot be evaluated"],
    ]
    words = seen(page("gated")).words()
    assert "2 is not a budget" in words
    assert "1 of 4 conditions met, 1 cannot be evaluated." in words
    assert "NO PASS MARK SET To set one: --gate 'certified_accuracy@36/255>=0.3'" in seen(page("strong")).words()


def test_conditions_are_withheld_once_a_certificate_is_contradicted() -> None:
    html = to_html(replace(audits.invalid(), gates=audits.gated().gates))
    rows = [row for row in seen(html).rows if row and "_accuracy" in row[0]]
    assert {(row[1], row[4]) for row in rows} == {("–", "cannot be evaluated")}
    assert len(rows) == 4
    assert "FAIL A certificate is contradicted." in seen(html).words()


@given(st.floats(0, 1), st.floats(0, 1))
def test_numbers_that_differ_look_different(one: float, two: float) -> None:
    shown = told_apart(one, two)
    assert (shown[0] == shown[1]) is (one == two)
    if one < two:
        assert float(shown[0]) < float(shown[1])


def test_the_verdict_is_not_green_where_nothing_is_proved_at_the_budget() -> None:
    audit = audits.strong()
    assert '<div class="verdict good"' in page("strong")
    nothing = tuple(replace(rate, count=0, value=0.0) for rate in audit.certified)
    assert '<div class="verdict warn"' in to_html(replace(audit, certified=nothing))
    failed = replace(audit, verdict=replace(audit.verdict, gate="failed"))
    assert '<div class="verdict bad"' in to_html(failed)


def test_no_check_that_rests_on_a_certificate_passes_once_one_is_contradicted() -> None:
    resting = {"LA002", "LA003", "LA006", "LA007", "LA101", "LA105"}
    sound, broken = (examine(make())[0] for make in (audits.strong, audits.invalid))
    assert {finding.id for finding in sound if finding.state in ("pass", "info")} >= resting
    states = {finding.id: (finding.state, finding.value) for finding in broken if finding.id in resting}
    assert states == dict.fromkeys(resting, ("not run", "no valid certificates"))
    assert next(finding for finding in broken if finding.id == "LA001").state == "fail"


def test_a_branch_that_is_zero_is_drawn() -> None:
    """As in every residual network whose blocks begin with a last batch norm of weights 0 (timm)."""
    ledger = list(audit_parts.resnet_ledger(random.Random(5)))
    names = [line.step for line in ledger]
    place = names.index("layer1.0.conv2 + layer1.0.bn2/conv2d")
    ledger[place] = replace(ledger[place], upper=Upper(0.0, "zero"), log10_so_far=-math.inf, candidates=(), lower=0.0)
    bound = audit_parts.network(tuple(ledger))
    audit = replace(audits.strong(60), bound=bound)
    shown = bounds(audit)
    assert shown.figure is not None
    assert "hold a branch that is zero" in shown.note or "holds a branch that is zero" in shown.note
    assert "constant" not in shown.note
    gains = [stage.gain for stage in stages(bound)]
    assert sum(gains) == pytest.approx(bound.log10)
    assert sum(stage.idle for stage in stages(bound)) == 1
    assert "(+ 0)" in to_html(audit)
    nothing = replace(bound, log10=-math.inf)
    assert bounds(replace(audit, bound=nothing)).note == "The network is constant: its Lipschitz bound is zero."
