"""The page where it is read: in a real browser, in light and dark, on a phone, on paper, by a screen reader."""

from __future__ import annotations

import importlib.util
import unicodedata
from pathlib import Path

import audits
import pytest
from browser import Mode, evaluate, in_frame, needs_chromium, to_pdf
from pages import page

from lipaudit.report.html import to_html

pytestmark = needs_chromium
SMALL = {
    "strong": lambda: audits.strong(60),
    "vacuous": lambda: audits.vacuous(60),
    "invalid": lambda: audits.invalid(100),
    "gated": lambda: audits.gated(),
    "unproved": lambda: audits.unproved(),
}


def axe() -> str:
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-core-python is not installed")
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


AXE = """
const found = await axe.run(document, {resultTypes: ['violations', 'incomplete']});
const told = list => list.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200) + ' ' + n.failureSummary)]);
return {passes: found.passes.length, violations: told(found.violations)};
"""


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, mode) for name in ("strong", "gated", "invalid") for mode in ("light", "dark")), ("unproved", "light")],
)
def test_axe_finds_no_violation(name: str, mode: Mode, tmp_path: Path) -> None:
    html = to_html(SMALL[name]()).replace("<details", "<details open")
    answer = evaluate(tmp_path, html, AXE, library=axe(), mode=mode)
    assert answer["passes"] > 20
    assert answer["violations"] == []


def test_axe_is_awake(tmp_path: Path) -> None:
    html = to_html(SMALL["strong"]()).replace("--soft: #565e69", "--soft: #e0e0e0").replace(' scope="col"', "")
    answer = evaluate(tmp_path, html.replace('alt="', 'data-alt="'), AXE, library=axe())
    assert {"color-contrast", "image-alt"} <= {rule for rule, _ in answer["violations"]}


PHONE = """
const frame = document.querySelector('iframe');
const doc = frame.contentDocument, size = [];
for (const text of doc.querySelectorAll('svg.chart text')) {
  const svg = text.ownerSVGElement, box = svg.getBoundingClientRect();
  if (!box.width) continue;
  size.push(parseFloat(frame.contentWindow.getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width);
}
const beyond = [...doc.querySelectorAll('svg.chart text')].filter(t => t.ownerSVGElement.getBoundingClientRect().width)
  .filter(t => { const b = t.getBoundingClientRect(); return b.left < 0 || b.right > frame.clientWidth; });
return {width: doc.documentElement.scrollWidth, texts: size.length, least: Math.min(...size),
  beyond: beyond.map(t => t.textContent)};
"""


@pytest.mark.parametrize(("name", "width"), [("strong", 320), ("vacuous", 390), ("gated", 390)])
def test_a_phone_needs_no_scrolling_sideways_and_reads_every_figure(name: str, width: int, tmp_path: Path) -> None:
    answer = evaluate(tmp_path, in_frame(to_html(SMALL[name]()), width), PHONE)
    assert answer["width"] <= width
    assert answer["texts"] > 40
    assert answer["least"] >= 9
    assert answer["beyond"] == []


def words_of_pdf(pdf: Path) -> tuple[str, int]:
    pypdf = pytest.importorskip("pypdf")
    pages = pypdf.PdfReader(pdf).pages
    assert {round(float(side)) for one in pages for side in one.mediabox[2:]} <= {594, 595, 596, 841, 842}
    text = unicodedata.normalize("NFKC", " ".join(one.extract_text() for one in pages))  # without ligatures
    return " ".join(text.split()), len(pages)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_paper_has_what_is_folded_away_on_screen(mode: Mode, tmp_path: Path) -> None:
    audit = audits.vacuous(60)
    html = to_html(audit)
    words, many = words_of_pdf(to_pdf(tmp_path, html, mode=mode))
    folded = next(finding.why for finding in audit.findings if finding.state == "pass")
    closed = html.index(folded)
    assert html.rindex("<details>", 0, closed) > html.rindex("</details>", 0, closed)
    assert folded in words
    assert "Figure 5 in numbers" in words
    assert audit.verdict.headline in words
    assert many <= 14
    assert words.index("What is certified") < words.index("One kind of change.") < words.index("Checks")


def test_the_browser_shows_the_same_without_the_copy_and_blocks_nothing(tmp_path: Path) -> None:
    """The only script element is data: taking it out, as mail viewers do, changes no word on the page."""
    html = page("strong")
    start, end = html.index("<script"), html.index("</script>") + len("</script>")
    code = "return document.body.innerText;"
    shown = [evaluate(tmp_path, text, code) for text in (html, html[:start] + html[end:])]
    assert shown[0] == shown[1]
    assert "Certificates hold for most images." in shown[0]
