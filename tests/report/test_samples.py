"""The sample reports of the repository: the pages are what their result files give, and say what they should."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from pages import seen

from lipaudit.report.html import to_html
from lipaudit.results.audit import SCHEMA
from lipaudit.results.json_schema import json_schema
from lipaudit.verdict.consistency import load_audit

FOLDER = Path(__file__).parents[2] / "reports"
VERDICTS = {
    "digits-aol": ("SOUND", "substantial"),
    "digits-cnn": ("SOUND", "weak"),
    "resnet18-cifar10": ("SOUND", "vacuous"),
    "planted-lie": ("INVALID", None),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_sample_is_what_its_result_file_gives(name: str) -> None:
    audit, html = load_audit(FOLDER / f"{name}.json"), (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    # After a change of the page: python reports/make.py --render
    assert to_html(audit) == html
    assert len(html.encode()) <= 300_000
    assert (audit.verdict.integrity, audit.verdict.strength) == VERDICTS[name]
    assert audit.verdict.headline in seen(html).words()
    assert load_audit(FOLDER / f"{name}.html").verdict == audit.verdict


@pytest.mark.parametrize("name", VERDICTS)
def test_a_sample_names_no_machine(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    data = json.loads(text)
    if data["schema"] == SCHEMA:  # that of older versions is another
        jsonschema.validate(data, json_schema())
    assert data["environment"]["platform"] in ("Linux", "Darwin", "Windows")
    assert not re.search(r'"(/|~|[A-Z]:\\)|/(home|root|tmp|work|Users|mnt)/', text)


def test_the_planted_lie_says_so_and_is_found() -> None:
    audit = load_audit(FOLDER / "planted-lie.json")
    words = seen((FOLDER / "planted-lie.html").read_text(encoding="utf-8")).words()
    assert "planted lie" in audit.model.name
    assert "Planted on purpose" in words
    assert "Do not use any certificate in this report" in words
    assert audit.exit_code == 4
