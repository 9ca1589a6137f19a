"""The terminal summary and the pull-request summary."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import audits
import pytest
from rich.console import Console
from rich.text import Text

from lipaudit.report.markdown import to_markdown
from lipaudit.report.terminal import summary, to_text
from lipaudit.results.formatting import percent

PATHS = [("report", "runs/x/report.html  181 kB")]


@pytest.mark.parametrize("name", audits.ALL)
def test_text_is_printable_narrow_and_ends_with_verdict_and_paths(name: str) -> None:
    audit = audits.ALL[name]()
    text = to_text(audit, PATHS)
    lines = text.splitlines()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    assert max(map(len, lines)) <= 170
    assert lines[-1] == "report  runs/x/report.html  181 kB"
    if name != "hostile":
        (verdict,) = [k for k, line in enumerate(lines) if line.startswith("integrity ")]
        assert lines[verdict + 1] == audit.verdict.headline
        assert verdict > max(k for k, line in enumerate(lines) if line.startswith(("ε", "✕", "!", "✓", "–")))


def test_text_holds_the_rates_and_the_checks_that_did_not_pass() -> None:
    audit = audits.vacuous()
    text = to_text(audit)
    for proved, empirical in zip(audit.certified, audit.empirical, strict=True):
        assert re.search(rf"{proved.eps}\b.*{percent(proved.value)}.*{percent(empirical.value)}", text)
    assert "✕ FAIL  LA102" in text
    assert "! WARN  LA101" in text
    assert text.index("LA102") < text.index("LA101")
    assert "3 pass · 1 info · 1 not run" in text
    assert "gate FAILED" in text


def test_text_withdraws_proofs_with_the_verdict() -> None:
    invalid = to_text(audits.invalid())
    assert invalid.count("withdrawn") == 4
    assert "median certified radius" not in invalid
    assert "Lipschitz bound" not in invalid
    assert "median certified radius" in to_text(audits.strong())
    assert "RANDOM WEIGHTS" in to_text(audits.random_weights())
    assert "not done  attack Square: out of memory" in to_text(audits.unproved())


@pytest.mark.parametrize("name", audits.ALL)
def test_lines_are_what_rich_takes(name: str) -> None:
    lines = summary(audits.ALL[name]())
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200)
    for line in lines:
        console.print(Text.assemble(*line))
    assert "\x1b[1;31m" in console.file.getvalue() or name not in ("invalid", "unproved")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", audits.ALL)
def test_markdown_is_short_and_escaped(name: str) -> None:
    audit = audits.ALL[name]()
    text = to_markdown(audit)
    assert len(text) < 6000
    assert set(re.findall(r"<(\S*?)>", text)) <= {"sub", "/sub"}
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {4, 5}
    assert ("withdrawn" in text) is (audit.verdict.integrity == "INVALID")
    assert ("never trained" in text) is (audit.model.weights == "random")


def test_markdown_shows_verdict_rates_and_loud_checks() -> None:
    audit = audits.vacuous()
    text = to_markdown(audit)
    assert text.startswith("### resnet18 on CIFAR-10 test\n\n**The certificates hold, and say almost nothing.**")
    assert "| 36/255 = 0.141 | 0.0% (0.0–0.7%) | 29.1% (25.3–33.2%) |" in text
    assert "| fail | LA102 |" in text
    assert "LA001" not in text


def test_local_radii_are_counted() -> None:
    audit = audits.strong()
    count = len(audit.samples.radius)
    some = replace(audit, samples=replace(audit.samples, method=("local", "local", *("global",) * (count - 2))))
    assert "(2 local)" in to_text(some)
    assert "(2 local)" not in to_text(audit)
    assert "2 by affine forms around the image" in some.to_html()


def test_every_promise_has_its_rates_and_its_sentence() -> None:
    audit = audits.strong()
    for text in (to_text(audit), to_markdown(audit), audit.to_html()):
        for found in audit.arithmetics:
            assert found.sentence.removeprefix(f"{found.arithmetic}: ") in text or not found.is_certified
        assert "as executed" in text
        assert "not certified" in text
        assert "gelu in float64 has no proved error" in text
    shares = [f"{100 * rate.value:.1f}%" for rate in audit.arithmetics[1].certified]
    assert all(share in to_markdown(audit) for share in shares)
    assert "as executed" not in to_text(audits.invalid())
