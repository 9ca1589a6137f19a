"""The copy of the result inside the page: it counts as the result does, and cannot break out of its element."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import audits
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import page

from lipaudit.errors import ReportError
from lipaudit.report.html import to_html
from lipaudit.results import embedding
from lipaudit.results.audit import SCHEMA, Audit
from lipaudit.results.json import from_json, to_json
from lipaudit.results.metrics import contradictions
from lipaudit.verdict.consistency import load_audit


def copy_of(html: str) -> Audit:
    return from_json(embedding.result_text(html))


@pytest.mark.parametrize("name", audits.ALL)
def test_the_copy_is_the_result_but_for_pictures_and_digits(name: str) -> None:
    audit, copy = from_json(to_json(audits.ALL[name]())), copy_of(page(name))
    bound = audit.bound
    if bound and len(bound.pairwise) > embedding.MOST_CLASSES:
        bound = replace(bound, pairwise=(), least=bound.least_of_classes())
    columns = replace(
        copy.samples, margin=audit.samples.margin, radius=audit.samples.radius, distance=audit.samples.distance
    )
    expected = replace(audit, thumbnails=(), bound=bound, samples=replace(audit.samples, image=()))
    if "application/gzip" in page(name):
        present = [name for name in embedding.PACKED_WITHOUT if hasattr(audit, name)]
        expected = replace(expected, **dict.fromkeys(present, ()))
        present = [name for name in embedding.COLUMNS_WITHOUT if hasattr(audit.samples, name)]
        expected = replace(expected, samples=replace(expected.samples, **dict.fromkeys(present, ())))
    assert replace(copy, samples=columns) == expected


@pytest.mark.parametrize("make", [audits.strong, audits.weak, audits.vacuous, audits.invalid])
@pytest.mark.parametrize("samples", [200, 3000])
def test_the_copy_counts_as_the_result_does(make: Callable[[int], Audit], samples: int) -> None:
    audit = make(samples)
    copy = copy_of(to_html(audit))
    for mine, theirs in zip(audit.samples.radius, copy.samples.radius, strict=True):
        assert 0.999 * mine <= theirs <= mine
    for found, kept in zip(audit.samples.distance, copy.samples.distance, strict=True):
        assert (found is None) == (kept is None)
        assert found is None or found <= (kept or 0) <= 1.001 * found
    for eps in (36 / 255, 0.25, 0.5, 1.0):
        assert copy.certified_accuracy(eps) == audit.certified_accuracy(eps)
        assert copy.empirical_robust_accuracy(eps) == audit.empirical_robust_accuracy(eps)
    assert [one.row for one in contradictions(copy)] == [one.row for one in contradictions(audit)]
    assert (copy.certified, copy.empirical, copy.verdict) == (audit.certified, audit.empirical, audit.verdict)
    assert copy.samples.index == audit.samples.index


def test_an_infinite_radius_and_a_number_beside_a_budget_survive() -> None:
    audit = audits.strong(4)
    close = 36 / 255 * (1 + 1e-12)
    columns = replace(audit.samples, radius=(float("inf"), close, 0.2, 0.1), distance=(None, close, 0.2, 0.100000001))
    copy = copy_of(to_html(replace(audit, samples=columns))).samples
    assert copy.radius == (float("inf"), close, 0.2, 0.1)
    assert copy.distance == (None, close, 0.2, 0.100001)


@given(st.floats(1e-300, 1e300), st.integers(2, 8))
def test_rounding_goes_to_the_side_that_claims_less(value: float, digits: int) -> None:
    down, up = embedding._rounded(value, digits, -1), embedding._rounded(value, digits, 1)
    assert down is not None
    assert up is not None
    assert value * (1 - 10.0 ** (1.1 - digits)) <= down <= value <= up <= value * (1 + 10.0 ** (1.1 - digits))


@pytest.mark.parametrize("name", ["strong", "hostile", "vacuous"])
def test_no_character_of_the_copy_can_end_its_element(name: str) -> None:
    (text,) = re.findall(r'<script [^>]*id="lipaudit-result"[^>]*>(.*?)</script>', page(name), re.S)
    assert not re.search("[<>&\u2028\u2029\x00-\x1f]", text)
    assert page(name).count("<script") == 1


def test_plain_while_it_is_small_and_packed_above() -> None:
    kinds = {n: embedding.embed(to_json(audits.strong(n))) for n in (100, 3000)}
    assert kinds[100].type == "application/json"
    assert json.loads(kinds[100].text)["schema"] == SCHEMA
    assert kinds[3000].type == "application/gzip"
    assert len(kinds[3000].text) < embedding.MOST_PLAIN


def test_a_page_loads_like_a_result_file(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    for make in (audits.single, audits.invalid):
        audit = audits.filed(make())
        file.write_text(to_html(audit), encoding="utf-8")
        assert load_audit(file).verdict == audit.verdict
        assert load_audit(file).thumbnails == ()


def packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data)).decode()


BOMB = gzip.compress(b"[" + b"0," * embedding.MOST_UNPACKED)
BAD = {
    "none": ("<html></html>", "without"),
    "empty": ('<script id="lipaudit-result" type="application/json"></script>', "expected JSON"),
    "other": ('<script id="lipaudit-result" type="application/json">{"schema":"x"}</script>', "a lipaudit result"),
    "base64": ('<script id="lipaudit-result" type="application/gzip">!</script>', "packed result"),
    "gzip": ('<script id="lipaudit-result" type="application/gzip">AAAA</script>', "packed result"),
    "list": (f'<script id="lipaudit-result" type="application/gzip">{packed(b"[]")}</script>', "packed result"),
    "index": (
        '<script id="lipaudit-result" type="application/gzip">'
        f"{packed(json.dumps({'index_differences': True, 'samples': {'index': ['a', 1]}}).encode())}</script>",
        "packed result",
    ),
    "bomb": (
        f'<script id="lipaudit-result" type="application/gzip">{base64.b64encode(BOMB).decode()}</script>',
        "at most 64000000 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_page_without_a_result_gets_one_line(name: str, tmp_path: Path) -> None:
    text, said = BAD[name]
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=said) as error:
        load_audit(file)
    assert "\n" not in str(error.value)
