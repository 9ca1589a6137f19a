"""The formats in which an audit can be written: one record each. To add one, add it here; options follow."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipaudit.results.audit import Audit


@dataclass(frozen=True)
class Format:
    """One of them."""

    ending: str
    """Of the file in the folder of --out, behind the name of the run."""
    about: str
    writer: str
    """`module:function`, from an audit to text; loaded when it is used."""

    def write(self, audit: Audit) -> str:
        module, _, function = self.writer.partition(":")
        text: str = getattr(importlib.import_module(module), function)(audit)
        return text


FORMATS = {
    "json": Format("json", "the result file", "lipaudit.results.json:to_json"),
    "html": Format("html", "the report", "lipaudit.report.html:to_html"),
    "md": Format("md", "a summary in Markdown", "lipaudit.report.markdown:to_markdown"),
    "junit": Format("junit.xml", "a test case per check and gate, for CI", "lipaudit.results.exports:to_junit"),
    "badge": Format("badge.json", "a badge, as shields.io reads it", "lipaudit.results.exports:to_badge"),
    "cyclonedx": Format(
        "cdx.json",
        "a bill of materials (CycloneDX 1.7) with claims and evidence",
        "lipaudit.results.exports:to_cyclonedx",
    ),
    "intoto": Format(
        "intoto.json", "a statement for signing (in-toto, test result)", "lipaudit.results.exports:to_intoto"
    ),
    "robustbench": Format(
        "robustbench.json", "model info for RobustBench", "lipaudit.results.leaderboards:to_robustbench"
    ),
    "huggingface": Format(
        "huggingface.yaml", "metadata of a Hugging Face model card", "lipaudit.results.leaderboards:to_model_index"
    ),
}


TABLES = ("md", "csv", "latex", "html")
"""Those of a table with a row per audit (report/table.py)."""


def of_file(name: str) -> str | None:
    """The format that a file name ends in: the longest ending counts."""
    ends = [(len(form.ending), kind) for kind, form in FORMATS.items() if name.lower().endswith(f".{form.ending}")]
    return max(ends)[1] if ends else None
