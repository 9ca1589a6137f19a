"""Gates: read as written, compared unrounded, and never judged where the audit does not know."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import audits
import pytest
from audits import radii_only

import lipaudit
from lipaudit.errors import ConfigError
from lipaudit.report.markdown import to_markdown
from lipaudit.report.terminal import to_text
from lipaudit.results.audit import TIME_LIMIT, Audit, Gate, Samples
from lipaudit.results.formatting import percents
from lipaudit.results.intervals import lower_limit
from lipaudit.results.json import from_json
from lipaudit.verdict.gates import compared, conditions, judge, parse
from lipaudit.verdict.verdict import conclude, examine


def concluded(audit: Audit, *gates: str) -> Audit:
    return conclude(audit, conditions(gates))


def states(audit: Audit, *gates: str) -> list[str]:
    return [gate.state for gate in concluded(audit, *gates).gates]


def share(held: int, total: int) -> Audit:
    """An audit with exactly this clean accuracy, the same share proved and empirical at every budget."""
    n = range(total)
    columns = Samples(
        index=tuple(n),
        label=(3,) * total,
        prediction=tuple(3 if k < held else 4 for k in n),
        margin=tuple(1.0 if k < held else -1.0 for k in n),
        radius=tuple(9.0 if k < held else 0.0 for k in n),
        distance=(None,) * total,
        adversarial_prediction=(None,) * total,
        attack=(None,) * total,
        attacked=tuple(k < held for k in n),
        method=("global",) * total,
    )
    return replace(radii_only(audits.single()), samples=columns, thumbnails=())


# --- reading


@pytest.mark.parametrize(
    ("text", "expression", "least", "on", "level"),
    [
        ("certified_accuracy@36/255>=0.30", "certified_accuracy@36/255>=0.30", 0.3, "value", "error"),
        (" certified_accuracy @ 36 / 255 >= 30% ", "certified_accuracy@36/255>=30%", 0.3, "value", "error"),
        ("empirical_robust_accuracy@0.5>=.45,warn", "empirical_robust_accuracy@0.5>=.45,warn", 0.45, "value", "warn"),
        ("clean_accuracy>=70.1%, ci_low", "clean_accuracy>=70.1%,ci_low", 0.701, "ci_low", "error"),
        ("clean_accuracy>=1,warn,ci_low", "clean_accuracy>=1,ci_low,warn", 1.0, "ci_low", "warn"),
        ("clean_accuracy>=0,value,error", "clean_accuracy>=0", 0.0, "value", "error"),
    ],
)
def test_an_expression_says_measure_budget_share(text: str, expression: str, least: float, on: str, level: str) -> None:
    found = parse(text)

    assert (found.expression, found.least, found.on, found.level) == (expression, least, on, level)
    assert parse(found.expression) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected MEASURE@EPS>=SHARE"),
        ("clean_accuracy", "expected MEASURE@EPS>=SHARE"),
        ("clean_accuracy>0.3", "expected MEASURE@EPS>=SHARE"),
        ("clean_accuracy<=0.3", "expected MEASURE@EPS>=SHARE"),
        ("clean_acuracy>=0.3", "did you mean clean_accuracy?"),
        ("score>=0.3", "expected certified_accuracy, empirical_robust_accuracy, clean_accuracy"),
        ("clean_accuracy@1>=0.3", "leave the budget and the norm out"),
        ("clean_accuracy[linf]>=0.3", "leave the budget and the norm out"),
        ("certified_accuracy[l3]@1>=0.3", "expected a norm"),
        ("certified_accuracy[]@1>=0.3", "expected a norm"),
        ("certified_accuracy>=0.3", "certified_accuracy@36/255"),
        ("certified_accuracy@0>=0.3", "expected a budget such as 36/255"),
        ("certified_accuracy@nan>=0.3", "expected a budget such as 36/255"),
        ("certified_accuracy@x>=0.3", "expected a budget such as 36/255 or 0.5, got 'x'"),
        ("clean_accuracy>=30", "expected a share from 0 to 1, such as 0.30 or 30%, got '30'"),
        ("clean_accuracy>=101%", "expected a share"),
        ("clean_accuracy>=-0.1", "expected a share"),
        ("clean_accuracy>=nan", "expected a share"),
        ("clean_accuracy>=1e-99999999", "expected a share"),
        ("clean_accuracy>=0.3,ci_lo", "ci_low"),
        ("clean_accuracy>=0.3,warn,error", "error or warn"),
        ("clean_accuracy>=0.3,", "expected MEASURE"),
    ],
)
def test_what_is_no_gate_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)

    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


# --- judging


def test_shares_are_compared_as_they_are() -> None:
    gates = ("certified_accuracy@1>=0.7", "clean_accuracy>=70%", "empirical_robust_accuracy@36/255>=0.7")

    assert states(share(7, 10), *gates) == ["passed"] * 3
    assert states(share(6999, 10_000), *gates) == ["failed"] * 3
    assert states(share(69_996, 100_000), "clean_accuracy>=0.7") == ["failed"]
    assert states(share(1, 3), "clean_accuracy>=0.3333333333333333") == ["passed"]
    assert states(share(1, 3), "clean_accuracy>=0.33333333333333338") == ["failed"]


def test_every_state_agrees_with_counting() -> None:
    audit = audits.strong(150)
    s = audit.samples
    for eps in (0.1, 36 / 255, 0.3, 0.75, 2.0):
        proved = sum(radius > eps for radius in s.radius)
        for count in (proved, proved + 1):
            (gate,) = concluded(audit, f"certified_accuracy@{eps}>={count / 150:.17f}").gates
            assert gate.value == proved / 150
            assert gate.state == ("passed" if gate.value >= gate.least else "failed")


def test_digits_enough_to_see_the_difference() -> None:
    assert percents(0.69996, 0.7) == ("69.996%", "70.000%")
    assert percents(0.7, 0.7) == ("70.0%", "70.0%")
    assert percents(0.5, 0.30125) == ("50.000%", "30.125%")
    assert percents(math.nextafter(0.7, 0), 0.7) == ("0.6999999999999998", "0.7")
    (gate,) = concluded(share(6996, 10_000), "clean_accuracy>=0.7").gates
    assert compared(gate) == "69.96% < 70.00%"


def test_the_lower_limit_is_the_exact_one() -> None:
    for held, total in ((1, 1), (1, 20), (7, 10), (38, 40), (40, 40), (300, 512)):
        limit = Fraction(lower_limit(held, total))
        tail = sum(
            math.comb(total, k) * limit**k * (1 - limit) ** (total - k) for k in range(held, total + 1)
        )  # P(X >= held) at the limit, in whole numbers
        assert float(tail) == pytest.approx(0.05, rel=1e-9)
    assert lower_limit(0, 5) == 0.0
    assert states(share(38, 40), "clean_accuracy>=0.9", "clean_accuracy>=0.9,ci_low") == ["passed", "failed"]


def test_certified_accuracy_is_known_at_every_budget_and_unbroken_where_attacks_aimed() -> None:
    audit = audits.strong(100)

    assert states(audit, "certified_accuracy@0.3>=0.01", "empirical_robust_accuracy@0.5>=0.01") == ["passed"] * 2
    gate = concluded(audit, "empirical_robust_accuracy@0.3>=0.01").gates[0]
    assert (gate.state, gate.value) == ("cannot be evaluated", None)
    assert "--eps 36/255,0.25,0.5,1,0.3" in gate.why
    assert states(audit, "empirical_robust_accuracy@0.3>=1") == ["failed"]  # what was found already misses


def test_unbroken_accuracy_needs_attacks_that_ended() -> None:
    audit = audits.strong(100)
    first = replace(audit.attacks[0], why=f"{TIME_LIMIT} at 3 of 16 samples")
    short = replace(audit, attacks=(first, *audit.attacks[1:]))

    assert "no attack was run" in concluded(audits.no_attacks(), "empirical_robust_accuracy@0.5>=0.1").gates[0].why
    assert states(short, "empirical_robust_accuracy@0.5>=0.01", "empirical_robust_accuracy@0.5>=1") == [
        "cannot be evaluated",
        "failed",
    ]
    assert states(short, "certified_accuracy@0.5>=0.01") == ["passed"]


@pytest.mark.parametrize("name", ["invalid", "unproved"])
def test_without_sound_certificates_nothing_is_judged(name: str) -> None:
    made = concluded(
        audits.ALL[name](), "clean_accuracy>=0", "certified_accuracy@0.5>=1", "empirical_robust_accuracy@0.5>=0"
    )

    assert {gate.state for gate in made.gates} == {"cannot be evaluated"}
    assert {gate.value for gate in made.gates} == {None}
    assert made.verdict.gate == "cannot be evaluated"
    assert made.exit_code == {"invalid": 4, "unproved": 5}[name]
    assert "Gate" not in made.verdict.headline
    assert {f.state for f in made.findings if f.id in ("LA102", "LA103")} == {"not run"}


# --- verdict, exit code, reports


@pytest.mark.parametrize(
    ("gates", "lamp", "code", "begins"),
    [
        ([], "not set", 0, "Certificates hold"),
        (["clean_accuracy>=0.1"], "passed", 0, "Certificates hold"),
        (["clean_accuracy>=1,warn"], "not set", 0, "Certificates hold"),
        (["clean_accuracy>=1,warn", "clean_accuracy>=0.1"], "passed", 0, "Certificates hold"),
        (["clean_accuracy>=1"], "failed", 3, "Gate failed: 1 of 1 condition. Certificates hold"),
        (["clean_accuracy>=1", "clean_accuracy>=0"], "failed", 3, "Gate failed: 1 of 2 conditions. Cert"),
        (["empirical_robust_accuracy@0.3>=0"], "cannot be evaluated", 5, "The gate cannot be evaluated. Cert"),
        (["empirical_robust_accuracy@0.3>=0,warn"], "not set", 0, "Certificates hold"),
        (["empirical_robust_accuracy@0.3>=0", "clean_accuracy>=1"], "failed", 5,
         "Gate failed: 1 of 2 conditions, 1 cannot be evaluated."),
    ],
)  # fmt: skip
def test_lamp_headline_and_exit_code(gates: list[str], lamp: str, code: int, begins: str) -> None:
    made = concluded(audits.strong(120), *gates)

    assert (made.verdict.gate, made.exit_code, made.status) == (lamp, code, "complete")
    assert made.verdict.headline.startswith(begins)


def test_an_unfinished_attack_outranks_a_miss() -> None:
    audit = audits.strong(100)
    failed = replace(audit, attacks=(replace(audit.attacks[0], status="failed"), *audit.attacks[1:]))

    assert concluded(failed, "clean_accuracy>=1").exit_code == 5


def test_findings_name_what_was_missed() -> None:
    made = concluded(
        audits.strong(120), "certified_accuracy@36/255>=0.1", "certified_accuracy@1>=0.9",
        "certified_accuracy@0.5>=0.9", "empirical_robust_accuracy@1>=0.9,warn", "clean_accuracy>=0.1",
    )  # fmt: skip
    found = {finding.id: finding for finding in made.findings}

    assert found["LA102"].state == "fail"
    assert found["LA102"].title == "Certified accuracy at 1, 0.5 is below the gate"
    assert found["LA102"].value.endswith("< 90.0% and 1 more")
    assert (found["LA103"].state, found["LA104"].state) == ("warn", "pass")
    assert found["LA104"].title == "Clean accuracy reaches the gate"
    assert "LA102" not in {finding.id for finding in conclude(audits.strong(120)).findings}


def test_every_format_shows_each_gate_with_its_digits() -> None:
    made = concluded(share(6996, 10_000), "clean_accuracy>=0.7", "empirical_robust_accuracy@0.3>=0.1,warn")

    for text in (to_text(made), to_markdown(made).replace("\\", "").replace("&lt;", "<")):
        assert "69.96% < 70.00%" in text
        assert "70.0% < 70.0%" not in text
        assert "no attack was aimed at 0.3" in text
    page = made.to_html()
    assert "Gate failed: 1 of 1 condition." in page
    assert "69.96% &lt; 70.00%" in page
    assert "gate FAILED" in to_text(made)
    assert from_json(made.to_json()).gates == made.gates
    assert json.loads(made.to_json())["gates"][0]["value"] == 0.6996


def test_the_library_refuses_a_bad_gate_before_any_work() -> None:
    with pytest.raises(ConfigError, match="did you mean clean_accuracy"):
        lipaudit.audit(object(), [], [], gates=["clean_acuracy>=0.3"])


def test_each_condition_counts_once() -> None:
    assert len(conditions(["clean_accuracy>=0.5", " clean_accuracy >= 0.5 "])) == 1
    assert judge(audits.strong(10), (), "SOUND") == ()


def test_gates_of_a_foreign_file_are_shown_as_text() -> None:
    gate = Gate(audits.HOSTILE, math.nan, "value", "error", "failed", 0.5)
    other = Gate("<img src=x onerror=alert(1)>", 0.5, "value", "warn", "cannot be evaluated", None, audits.HOSTILE)
    audit = replace(audits.strong(20), gates=(gate, other))

    page, note = audit.to_html(), to_markdown(audit)

    assert "<img src=x" not in page
    assert examine(audit)
    assert "<img src=x" not in note
    assert "\x1b" not in to_text(audit)
    assert len(to_text(audit)) < 5000
    assert from_json(audit.to_json()).gates[1] == other
