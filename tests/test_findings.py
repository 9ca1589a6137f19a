"""Findings, verdict and exit code follow from the audit alone, contradiction first."""

from __future__ import annotations

from dataclasses import replace

import audits
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lipaudit.report.markdown import to_markdown
from lipaudit.report.terminal import to_text
from lipaudit.results.attack_flags import FLAGS, Flag
from lipaudit.results.audit import TIME_LIMIT, Audit, Finding
from lipaudit.results.bounds import Agreement, Disagreement, LayerBound
from lipaudit.results.intervals import at_most, rate, wilson
from lipaudit.results.metrics import contradictions
from lipaudit.verdict.gates import conditions
from lipaudit.verdict.verdict import conclude, examine


def by_id(audit: Audit) -> dict[str, Finding]:
    return {finding.id: finding for finding in examine(audit)[0]}


def with_distance(audit: Audit, row: int, factor: float) -> Audit:
    """A witness at `factor` times the certified radius of a correct sample."""
    distance = list(audit.samples.distance)
    distance[row] = audit.samples.radius[row] * factor
    return replace(audit, samples=replace(audit.samples, distance=tuple(distance)))


def certified_row(audit: Audit) -> int:
    return next(k for k, radius in enumerate(audit.samples.radius) if radius > 0)


def test_a_strong_network_is_sound_and_substantial() -> None:
    findings, verdict, code = examine(audits.strong())

    assert (verdict.integrity, verdict.strength, code) == ("SOUND", "substantial", 0)
    assert verdict.headline.startswith("Certificates hold; ")
    assert not [finding for finding in findings if finding.state == "fail"]


def test_a_vacuous_network_says_so_in_one_sentence() -> None:
    _, verdict, code = examine(audits.vacuous())

    assert (verdict.integrity, verdict.strength, code) == ("SOUND", "vacuous", 0)
    assert verdict.headline == "The certificates hold, and say almost nothing."
    assert "1/255 = 0.0039" in verdict.sentences[0]
    assert "×10" in verdict.sentences[0]


@pytest.mark.parametrize("factor", [1.0, 0.999999])
def test_one_witness_at_or_inside_its_radius_voids_everything(factor: float) -> None:
    audit = audits.strong()
    findings, verdict, code = examine(with_distance(audit, certified_row(audit), factor))

    assert (verdict.integrity, verdict.strength, code) == ("INVALID", None, 4)
    assert "1 certificate is contradicted" in verdict.headline
    assert "Do not use any certificate" in verdict.sentences[0]
    states = {finding.id: finding.state for finding in findings}
    assert states["LA001"] == "fail"
    assert states["LA006"] == states["LA101"] == states["LA105"] == "not run"


def test_a_witness_just_outside_is_no_contradiction() -> None:
    audit = audits.strong()
    assert with_distance(audit, certified_row(audit), 1.000001).samples.contradicted() == []


def test_a_slope_above_its_bound_is_invalid() -> None:
    _, verdict, code = examine(replace(audits.strong(), slope_share=1.0000001))
    assert (verdict.integrity, code) == ("INVALID", 4)


def test_a_layer_measured_above_its_bound_is_invalid() -> None:
    audit = audits.strong()
    line: LayerBound = audit.bound.layers[1]
    layers = (audit.bound.layers[0], replace(line, lower=line.upper.value * 1.001), *audit.bound.layers[2:])
    _, verdict, code = examine(replace(audit, bound=replace(audit.bound, layers=layers)))
    assert (verdict.integrity, code) == ("INVALID", 4)


def test_without_a_bound_nothing_is_proved() -> None:
    _, verdict, code = examine(replace(audits.strong(), bound=None))
    assert (verdict.integrity, verdict.strength, code) == ("UNPROVED", None, 5)


def test_a_failed_attack_makes_the_audit_incomplete_not_wrong() -> None:
    audit = audits.strong()
    attacks = (replace(audit.attacks[0], status="failed", why="out of memory"), *audit.attacks[1:])
    findings, verdict, code = examine(replace(audit, attacks=attacks))

    assert (verdict.integrity, code) == ("SOUND", 5)
    assert verdict.headline.startswith(f"Incomplete: {audit.attacks[0].name}")
    assert {f.id: f.state for f in findings}["LA202"] == "warn"


def test_random_weights_are_said_first() -> None:
    audit = audits.strong()
    random = replace(audit, model=replace(audit.model, weights="random"))
    assert examine(random)[1].headline.startswith("Random weights")
    assert by_id(random)["LA104"].state == "warn"


@pytest.mark.parametrize(
    ("right", "total", "classes", "state"),
    [
        (0, 8, 10, "not run"),
        (0, 16, 1000, "not run"),
        (0, 16, 10, "warn"),
        (50, 500, 10, "warn"),
        (75, 500, 10, "warn"),
        (2, 20, 10, "not run"),
        (5, 16, 10, "pass"),
        (1, 1000, 1000, "not run"),
        (50, 50_000, 1000, "warn"),
        (760, 1000, 1000, "pass"),
        (99, 100, 2, "pass"),
        (55, 100, 2, "warn"),
        (5, 8, 2, "not run"),
        (8, 8, 2, "pass"),
        (250, 500, 2, "warn"),
    ],
)
def test_accuracy_is_held_against_chance_by_its_limits(right: int, total: int, classes: int, state: str) -> None:
    audit = audits.strong()
    audit = replace(audit, clean=rate("0", [k < right for k in range(total)]))
    finding = by_id(replace(audit, model=replace(audit.model, classes=classes)))["LA104"]
    assert finding.state == state
    assert ("too few images" in finding.title) == (state == "not run")


@given(st.integers(1, 200), st.floats(0.001, 0.999), st.data())
def test_the_tail_of_a_binomial_against_a_library(total: int, p: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(-1, total))
    expected = float(scipy.stats.binom.cdf(count, total, p))
    assert at_most(count, total, p) == pytest.approx(expected, rel=1e-8, abs=1e-280)


def nobody_right() -> Audit:
    """Attacks were asked for, and had nothing to work on."""
    audit = audits.all_wrong()
    idle = (replace(a, attacked=0, broken=0, closest=0, rejected=0, median_distance=None) for a in audit.attacks)
    return conclude(replace(audit, attacks=tuple(idle)), conditions(["empirical_robust_accuracy@0.5>=0.1"]))


def test_where_no_image_is_right_nothing_is_said_of_the_right_ones() -> None:
    audit = nobody_right()
    assert audit.verdict.headline.endswith(
        "This network answers none of 50 images correctly: nothing to certify or attack; check class order and "
        "normalisation."
    )
    assert (audit.gates[0].state, audit.exit_code) == ("failed", 3)
    texts = [to_text(audit), to_markdown(audit), audit.to_html(), audit.to_json()]
    for text in texts:
        assert "answers none of 50 images correctly" in " ".join(text.split())
        for lie in ("% of the correctly", "0.0% – 0.0%", "0.0% - 0.0%", "robust accuracy is between"):
            assert lie not in text
    assert "certified accuracy" not in texts[0]


def test_what_nothing_could_refute_is_no_pass() -> None:
    found = by_id(nobody_right())
    for name in ("LA001", "LA004", "LA006", "LA202", "LA203", "LA101"):
        assert found[name].state == "not run", name
    strong = audits.strong()
    uncertified = replace(strong.samples, radius=(0.0,) * len(strong.samples.radius))
    shorter = tuple(replace(p, radius=(0.0,) * len(p.radius)) for p in strong.arithmetics)
    audit = replace(strong, samples=uncertified, arithmetics=shorter)
    assert {by_id(audit)[name].state for name in ("LA001", "LA006", "LA008")} == {"not run"}
    assert "No attacked image has a certificate" in examine(audit)[1].sentences[0]
    assert by_id(replace(strong, slope=0.0, slope_share=0.0))["LA002"].state == "not run"
    plain = replace(strong, model=replace(strong.model, mean=(), std=()), bound=replace(strong.bound, layers=()))
    assert {by_id(plain)[name].state for name in ("LA003", "LA007")} == {"not run"}
    first = replace(strong.attacks[0], attacked=0, broken=0, closest=0, status="not run", why="images too long")
    some = by_id(replace(strong, attacks=(first, *strong.attacks[1:])))["LA202"]
    assert (some.state, some.value) == ("pass", f"{len(strong.attacks) - 1} of {len(strong.attacks)}")
    assert first.name in some.title


def test_small_samples_and_flags_warn() -> None:
    audit = audits.strong()
    small = replace(audit, dataset=replace(audit.dataset, samples=16))
    attacks = (replace(audit.attacks[0], flags=("gradient is zero",)), *audit.attacks[1:])
    assert by_id(small)["LA201"].state == "warn"
    assert by_id(replace(audit, attacks=attacks))["LA203"].state == "warn"


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_each_reliability_flag_is_a_finding_of_its_own(flag: Flag) -> None:
    audit = audits.strong()
    first, *rest = audit.attacks
    unable = replace(audit, attacks=tuple(replace(record, checked=()) for record in audit.attacks))
    able = replace(audit, attacks=(replace(first, checked=(flag.name,)), *rest))
    raised = replace(audit, attacks=(replace(first, checked=(flag.name,), flags=(flag.sentence,)), *rest))

    assert by_id(unable)[flag.id].state == "not run"
    assert (by_id(able)[flag.id].state, by_id(able)[flag.id].value) == ("pass", first.name)
    finding = by_id(raised)[flag.id]
    assert (finding.state, finding.title, finding.value) == ("warn", flag.bad, first.name)
    assert finding.fix
    assert by_id(raised)["LA203"].state == "pass"
    others = {other.id for other in FLAGS} - {flag.id}
    assert all(by_id(raised)[other] == by_id(able)[other] for other in others)
    assert flag.id not in by_id(audits.no_attacks())


def test_attacks_that_break_nothing_are_suspect() -> None:
    audit = audits.strong()
    nothing = replace(audit.samples, distance=(None,) * len(audit.samples.distance))
    assert by_id(replace(audit, samples=nothing))["LA204"].state == "warn"


def test_no_attacks_is_not_a_pass() -> None:
    finding = by_id(audits.no_attacks())["LA001"]
    assert finding.state == "not run"


def test_every_finding_says_why_it_matters() -> None:
    for build in audits.ALL.values():
        for finding in examine(build())[0]:
            assert finding.why, finding.id


def test_wilson_interval_against_known_values() -> None:
    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)  # Newcombe 1998, table I
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_an_attack_cut_short_by_the_time_limit_makes_the_audit_incomplete() -> None:
    audit = audits.strong()
    short = replace(audit.attacks[0], why=f"{TIME_LIMIT} at 3 of 16 samples")
    _, verdict, code = examine(replace(audit, attacks=(short, *audit.attacks[1:])))

    assert (verdict.integrity, code) == ("SOUND", 5)
    assert verdict.headline.startswith("Incomplete: ")


def test_robust_accuracy_is_unknown_where_nothing_was_attacked() -> None:
    audit = audits.strong()
    samples = audit.samples
    n = len(samples.label)
    untouched = replace(samples, attacked=(False,) * n, distance=(None,) * n)
    assert replace(audit, samples=untouched).empirical_robust_accuracy(0.5) is None
    assert audit.empirical_robust_accuracy(0.5) == sum(samples.not_broken(0.5)) / n
    wrong = replace(untouched, label=tuple(guess + 1 for guess in samples.prediction))
    assert replace(audit, samples=wrong).empirical_robust_accuracy(0.5) == 0.0  # whatever an attack might do


@pytest.mark.parametrize(
    ("radius", "distance", "broken"), [(0.0, 0.0, 0), (0.0, 5e-324, 0), (0.1, 0.0, 1), (0.1, 0.1, 1)]
)
def test_there_is_one_definition_of_a_contradiction(radius: float, distance: float, broken: int) -> None:
    audit = audits.strong()
    row = certified_row(audit)
    columns = {name: list(getattr(audit.samples, name)) for name in ("radius", "distance")}
    columns["radius"][row], columns["distance"][row] = radius, distance
    audit = replace(audit, samples=replace(audit.samples, **{name: tuple(c) for name, c in columns.items()}))
    audit = replace(
        audit, arithmetics=tuple(replace(p, radius=audit.samples.radius) for p in audit.arithmetics if p.radius)
    )
    assert len(audit.samples.contradicted()) == len(contradictions(audit)) == broken
    states = {name: by_id(audit)[name].state for name in ("LA001", "LA008")}
    assert set(states.values()) == ({"fail"} if broken else {"pass"})


@pytest.mark.parametrize("number", [1, 3])
def test_a_model_that_is_not_its_graph_is_invalid(number: int) -> None:
    found = tuple(Disagreement(row, "image", "alone", 3, 1.25, -0.5) for row in range(number))
    audit = replace(audits.strong(), agreement=Agreement(512, 40, found))
    findings, verdict, code = examine(audit)
    (finding,) = [finding for finding in findings if finding.id == "LA005"]
    assert (finding.state, verdict.integrity, code) == ("fail", "INVALID", 4)
    image = audit.samples.index[0]
    more = "" if number == 1 else ", and 2 more"
    assert finding.value == f"logit 3 of image {image} is 1.25 from the model alone and -0.5 from the graph{more}"
    assert verdict.headline == "Integrity failure: the model does not compute what was audited."
    assert by_id(replace(audit, agreement=Agreement(512, 40)))["LA005"].value == "512 images, 40 claims of attacks"
    assert by_id(replace(audit, agreement=None))["LA005"].state == "not run"


def test_what_was_fixed_at_capture_is_said() -> None:
    audit = audits.strong()
    assert "Fixed" not in by_id(audit)["LA005"].why
    assert audit.bound is not None
    noted = replace(audit, bound=replace(audit.bound, notes=("read at capture: counter",)))
    assert by_id(noted)["LA005"].why.endswith("Fixed as it was at capture: read at capture: counter.")
