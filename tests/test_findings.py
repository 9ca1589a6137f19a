"""Findings, verdict and exit code follow from the audit alone, contradiction first."""

from __future__ import annotations

from dataclasses import replace

import audits
import pytest

from lipaudit.claims import Agreement, Disagreement, LayerBound
from lipaudit.findings import CHECKS, contradicted, examine, wilson
from lipaudit.reliability import FLAGS, Flag
from lipaudit.report.measures import contradictions
from lipaudit.results import TIME_LIMIT, Audit, Finding


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
    assert contradicted(with_distance(audit, certified_row(audit), 1.000001)) == []


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


def test_accuracy_near_chance_is_suspicious() -> None:
    audit = audits.strong()
    assert by_id(replace(audit, clean=replace(audit.clean, value=0.1, low=0.08, high=0.13)))["LA104"].state == "warn"


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


def test_every_check_has_a_stable_id_and_asks_something() -> None:
    assert all(name.startswith("LA") and len(name) == 5 for name in CHECKS)
    assert all(CHECKS.claim(name) for name in CHECKS)
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
    assert replace(audit, samples=untouched).robust_accuracy(0.5) is None
    assert audit.robust_accuracy(0.5) == sum(samples.unbroken(0.5)) / n
    wrong = replace(untouched, label=tuple(guess + 1 for guess in samples.prediction))
    assert replace(audit, samples=wrong).robust_accuracy(0.5) == 0.0  # whatever an attack might do


@pytest.mark.parametrize(
    ("radius", "distance", "broken"), [(0.0, 0.0, 0), (0.0, 5e-324, 0), (0.1, 0.0, 1), (0.1, 0.1, 1)]
)
def test_there_is_one_definition_of_a_contradiction(radius: float, distance: float, broken: int) -> None:
    audit = audits.strong()
    row = certified_row(audit)
    columns = {name: list(getattr(audit.samples, name)) for name in ("radius", "distance")}
    columns["radius"][row], columns["distance"][row] = radius, distance
    audit = replace(audit, samples=replace(audit.samples, **{name: tuple(c) for name, c in columns.items()}))
    audit = replace(audit, promises=tuple(replace(p, radius=audit.samples.radius) for p in audit.promises if p.radius))
    assert len(contradicted(audit)) == len(contradictions(audit)) == broken
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
