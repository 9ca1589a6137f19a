"""The page: complete without scripts or network, small, the same bytes each time, and honest when a proof fails."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import audits
import pytest
from pages import page, seen

import lipaudit
from lipaudit.errors import ReportError
from lipaudit.report import html as report_html
from lipaudit.report.html import template_folder, to_html
from lipaudit.report.markdown import to_markdown
from lipaudit.report.terminal import to_text
from lipaudit.results.embedding import result_text
from lipaudit.results.formatting import interval, number, percent
from lipaudit.results.json import from_json, to_json
from lipaudit.results.metrics import contradictions
from lipaudit.results.threat import eps_text, eps_value
from lipaudit.verdict.verdict import run_name

CSS = (template_folder() / "report.css").read_text(encoding="utf-8")


@pytest.mark.parametrize("samples", [512, 2000, 10_000])
@pytest.mark.parametrize("make", [audits.strong, audits.vacuous, audits.invalid])
def test_page_stays_below_300_kb(make: object, samples: int) -> None:
    assert len(to_html(make(samples)).encode()) <= 300_000  # type: ignore[operator]


def test_pictures_have_a_budget() -> None:
    audit = audits.strong(100)
    large = tuple(replace(one, original="data:image/png;base64," + "A" * 30_000) for one in audit.thumbnails)
    html = to_html(replace(audit, thumbnails=large))
    assert len(html.encode()) <= 300_000
    assert 1 <= html.count('alt="their difference"') < 8


@pytest.mark.parametrize("name", audits.ALL)
def test_nothing_is_loaded_and_nothing_runs(name: str) -> None:
    html = page(name)
    tags = seen(html).tags
    kinds = {tag for tag, _ in tags}
    assert [a for tag, a in tags if tag == "script"] in (
        [{"id": "lipaudit-result", "type": kind}] for kind in ("application/json", "application/gzip")
    )
    assert not kinds & {"link", "iframe", "object", "embed", "base", "form", "input", "button"}
    for tag, attributes in tags:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            value = attributes.get(key) or ""
            assert value == "" or value.startswith(("#", "data:image/png;base64,")), (tag, key, value[:80])
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert "@import" not in html
    policies = [a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


@pytest.mark.parametrize("name", audits.ALL)
def test_same_bytes_again_and_from_the_result_file(name: str) -> None:
    audit = audits.ALL[name]()
    assert to_html(audit) == page(name)
    assert to_html(from_json(to_json(audit))) == page(name)


def test_same_bytes_whatever_the_hash_seed() -> None:
    code = "import audits, sys; from lipaudit.report.html import to_html; sys.stdout.write(to_html(audits.strong(60)))"
    path = os.pathsep.join([str(Path(audits.__file__).parent), str(Path(lipaudit.__file__).parent.parent)])
    pages = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert pages[0] == pages[1] == to_html(audits.strong(60)).encode()


@pytest.mark.parametrize("name", audits.ALL)
def test_the_page_is_well_formed_and_in_order(name: str) -> None:
    parsed = seen(page(name))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in parsed.tags if tag == "a"]
    assert {str(link)[1:] for link in links} <= set(ids)
    sections = [a["id"] for tag, a in parsed.tags if tag == "section"]
    assert sections == ["curves", "checks", "crosscheck", "images", "bound", "limits", "provenance", "words"]


@pytest.mark.parametrize("name", audits.ALL)
def test_figures_speak_to_those_who_cannot_see_them(name: str) -> None:
    tags = seen(page(name)).tags
    ids = {a["id"] for _, a in tags if "id" in a}
    for tag, attributes in tags:
        if tag == "svg":
            named = attributes.get("aria-label") or attributes.get("aria-labelledby")
            assert attributes.get("aria-hidden") == "true" or (attributes.get("role") == "img" and named)
            assert {*(attributes.get("aria-labelledby") or "").split()} <= ids
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_attacks", "No image was attacked, so nothing has tested these certificates."),
        ("no_attacks", "There are no adversarial examples to look at: no image was attacked."),
        ("no_attacks", "clean accuracy is the only ceiling"),
        ("no_attacks", "Nothing contradicts a certificate, but no attack was run that might."),
        ("no_attacks", "No attack was run to test the certificates."),
        ("unproved", "There is no certified curve: part of the network has no proved bound."),
        ("unproved", "There is no network bound"),
        ("unproved", "There is no certificate to compare with attacks"),
        ("unproved", "out of memory"),
        ("flat", "every stage is ×1.00, the largest, blocks.11, ×1.000001"),
        ("flat", "it holds between inputs with all values in [0, 1]"),
        ("all_wrong", "There is no curve to draw"),
        ("invalid", "The certified curve is withdrawn"),
        ("invalid", "The bound is withdrawn"),
        ("random_weights", "Random weights: this network was never trained."),
        ("thousand_classes", "These inputs are not on the 8-bit grid"),
        ("thousand_classes", "The pictures are reduced; the audit used the full images."),
        ("deep", "1.20×10⁴²⁹"),
        ("deep", "290 more layers are in the result file."),
        ("vacuous", "No attack contradicted a certificate."),
        ("vacuous", "What to do. Train with a Lipschitz constraint, or lower the gate."),
        ("vacuous", "26 further steps have factor 1 and no row here"),
    ],
)
def test_every_degenerate_case_has_its_sentence(name: str, sentence: str) -> None:
    assert sentence in seen(page(name)).words()


def test_the_verdict_is_printed_as_it_came() -> None:
    audit = audits.vacuous()
    words = seen(page("vacuous")).words()
    for said in (audit.verdict.headline, *audit.verdict.sentences):
        assert said in words
    assert words.index(audit.verdict.headline) < words.index("Checks 1 fail")


def test_numbers_of_the_table_come_from_the_rates() -> None:
    audit = audits.strong()
    rows = {row[0]: row for row in seen(page("strong")).rows if row}
    for proved, empirical in zip(audit.certified, audit.empirical, strict=True):
        assert rows[eps_text(proved.eps)][1:3] == [
            f"{percent(rate.value)} {interval(rate.low, rate.high)}" for rate in (proved, empirical)
        ]


def test_the_bar_divides_all_images() -> None:
    audit = audits.strong()
    bar = re.search(r'<svg class="split" role.*?</svg>', page("strong"), re.S)
    assert bar is not None
    widths = [float(width) for width in re.findall(r' width="([\d.]+)%" height', bar[0])]
    assert sum(widths[:4]) == pytest.approx(100, abs=0.03)
    assert widths[0] == pytest.approx(100 * audit.certified[0].value, abs=0.006)


@pytest.mark.parametrize("name", ["strong", "vacuous", "invalid", "gated"])
def test_every_mark_has_a_colour(name: str) -> None:
    """What is drawn has a class that the style sheet knows."""
    drawn = {
        word
        for tag, attributes in seen(page(name)).tags
        if tag in ("rect", "path", "circle") or "swatch" in (attributes.get("class") or "")
        for word in (attributes.get("class") or "").split()
    }
    assert {"proved", "unknown", "broken", "wrong"} <= drawn
    assert {word for word in drawn if not re.search(rf"\.{word}\b", CSS)} <= {"strip"}


def test_an_invalid_verdict_shows_no_number_that_rests_on_a_certificate() -> None:
    """Radii, rates and the bound of the same run under a sound verdict appear nowhere outside of struck-out text."""
    audit, before = audits.invalid(), audits.strong()
    parsed = seen(page("invalid"))
    words = parsed.words()
    s = audit.samples
    innocent = {number(value) for value in (*s.margin, *filter(None, s.distance)) if value is not None}
    innocent |= {number(eps_value(eps)) for eps in audit.threat.eps}
    # The two refuted claims themselves are shown, as refuted.
    refuted = {one.row for one in contradictions(audit)}
    claims = {number(radius) for row, radius in enumerate(s.radius) if radius > 0 and row not in refuted} - innocent
    claims |= {percent(r.value) for r in before.certified} - {percent(r.value) for r in (*audit.empirical, audit.clean)}
    assert audit.bound is not None
    claims.add(number(audit.bound.value))
    assert len(claims) > 100
    shown = {word.strip("().,;:") for word in words.split()}
    assert not claims & shown
    assert "0.839" in parsed.struck
    assert 'class="curve proved"' not in page("invalid")
    assert 'class="curve empirical"' in page("invalid")
    assert 'id="fig2-wide-title"' in page("invalid")
    assert 'id="fig3-wide-title"' not in page("invalid")
    assert "2 / 423" in words
    assert "withheld" in words
    # The same test finds plenty on the sound page.
    assert claims & {word.strip("().,;:") for word in seen(page("strong")).words().split()}


HOSTILE = {
    "all": audits.HOSTILE,
    "markup": "</script></title></svg><img src=x onerror=alert(1)><script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)" x=\'y',
    "comment": "<!--<script>",
    "template": "{{7*7}}{% raw %}${7*7}",
    "path": "../../../etc/passwd\\..\\x",
    "controls": "a\x00\x1b[31mred\x07\x85\u202egnp.exe\u2066\u200b\ufeff\ud800z",
    "markdown": "[x](javascript:alert(1)) | `code` **b** # @everyone <b>",
    "long": "x" * 10_000,
    "empty": "",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_strings_stay_text(kind: str) -> None:
    text = HOSTILE[kind]
    audit = audits.hostile(text)
    html = to_html(audit)
    parsed = seen(html)
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in seen(page("vacuous")).tags} | {"ul", "li", "bdi", "p"}
    assert html.count("<script") == html.count("</script") == 1
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
    assert {a["src"][:22] for tag, a in parsed.tags if tag == "img"} <= {"data:image/png;base64,"}  # type: ignore[index]
    assert "<!--" not in html
    assert not re.search(
        "[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", outside_of_copy(html)
    )
    assert "x" * 1000 not in outside_of_copy(html)
    titles = re.findall(r"<(?:title|desc)[^>]*>(.*?)</(?:title|desc)>", html, re.S)
    assert titles
    assert not [title for title in titles if "<" in title]
    assert len(html.encode()) < 300_000
    # The copy keeps the strings as they are, and gives them back.
    back = from_json(result_text(html))
    assert back.model.name == text.encode("utf-8", "replace").decode()
    assert back.findings[0].title == back.model.name


def outside_of_copy(html: str) -> str:
    """The page without the copy of the result and without pictures."""
    return re.sub(r'src="data:[^"]*"|<script.*?</script>', "", html, flags=re.S)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_strings_stay_text_in_markdown_and_terminal(kind: str) -> None:
    audit = audits.hostile(HOSTILE[kind])
    markdown, terminal = to_markdown(audit), to_text(audit)
    assert set(re.findall(r"(?<!\\)<(\S*?)>", markdown)) <= {"sub", "/sub"}
    assert not re.search(r"(?<!\\)\[x", markdown)
    assert "@everyone" not in markdown
    for text in (markdown, terminal):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
        assert "x" * 1000 not in text


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_hostile_string_becomes_part_of_a_file_name(kind: str) -> None:
    assert re.fullmatch(r"la-\d{4}-\d\d-\d\d-[0-9a-f]{6}", run_name(audits.hostile(HOSTILE[kind])))


def test_a_picture_that_is_no_inline_png_is_left_out() -> None:
    audit = audits.strong(40)
    for source in ("https://example.org/x.png", 'data:image/png;base64,AA" onload="x', "data:image/svg+xml;base64,AA"):
        one = replace(audit.thumbnails[0], perturbed=source)
        html = to_html(replace(audit, thumbnails=(one,)))
        assert "<img" not in html


def test_every_sample_is_in_the_table_or_counted() -> None:
    parsed = seen(page("strong"))
    shown = [row for row in parsed.rows if len(row) == 8 and row[0].isdigit()]
    (rest,) = re.findall(r"(\d+) more images are in the result file", parsed.words())
    assert len(shown) + int(rest) == 512
    ratios = [float(row[5]) for row in shown]
    assert ratios == sorted(ratios)


def test_templates_are_found_in_a_wheel_first_and_missed_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "lipaudit"
    package.mkdir(parents=True)
    monkeypatch.setattr(report_html.lipaudit, "__file__", str(package / "__init__.py"))
    with pytest.raises(ReportError, match="reinstall lipaudit") as error:
        template_folder()
    assert "\n" not in str(error.value)
    for folder in (package.parent / "templates", package / "templates"):
        folder.mkdir()
        (folder / "report.html.j2").write_text("x", encoding="utf-8")
        assert template_folder() == folder


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


PAIRS = [
    *[(text, "page") for text in ("ink", "soft", "link", "proved", "broken", "bad", "warn")],
    *[(text, "panel") for text in ("ink", "soft", "link")],
    *[(text, f"{text}-area") for text in ("proved", "unknown", "broken", "wrong", "good", "warn", "bad", "open")],
    *[("ink", f"{area}-area") for area in ("proved", "unknown", "broken", "wrong", "bad")],
]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_aa(mode: int) -> None:
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", re.findall(r":root \{(.*?)\}", CSS, re.S)[mode]))
    for text, ground in PAIRS:
        dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_text_of_figures_is_at_least_11_px_on_a_phone() -> None:
    # 340 units wide on a screen of 360 px with 16 px of margin at either side.
    sizes = [float(size) for size in re.findall(r"\.chart text[^{]*\{[^}]*font-size: ([\d.]+)px", CSS)]
    assert sizes
    assert min(sizes) * (360 - 32) / 340 >= 11


def test_templates_hold_no_arithmetic_and_modules_no_markup() -> None:
    for template in template_folder().glob("*.j2"):
        for expression in re.findall(r"\{[{%](.*?)[}%]\}", template.read_text(encoding="utf-8"), re.S):
            code = re.sub(r"\"[^\"]*\"", "", expression)
            assert not re.search(r"[*/%]|\s[+-]\s|\b(round|abs|sum)\b", code), expression
    for module in Path(report_html.__file__).parent.rglob("*.py"):
        if module.name != "markdown.py":
            assert not re.search(r"</\w|<(?:p|b|div|td|svg|path)\b", module.read_text(encoding="utf-8")), module.name
