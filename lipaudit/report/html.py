"""The report: one page that needs no script and no network.

The page is a function of the result file alone: an `Audit` first makes the round trip through JSON, so that
`lipaudit report result.json` writes the same bytes as the run did. The one script element in it is no script: it holds
a copy of the result, for `load_audit`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jinja2

import lipaudit
from lipaudit.errors import ReportError
from lipaudit.report.page import page
from lipaudit.results.audit import Audit
from lipaudit.results.embedding import embed
from lipaudit.results.json import from_json, to_json

TEMPLATE = "report.html.j2"


def to_html(audit: Audit) -> str:
    """The report as one self-contained page; same audit, same bytes."""
    text = to_json(audit)
    return environment().get_template(TEMPLATE).render(page=page(from_json(text)), copy=embed(text))


def environment() -> jinja2.Environment:
    """In which templates are rendered: what they are given is escaped."""
    return _compiled(template_folder())


@functools.cache
def _compiled(folder: Path) -> jinja2.Environment:
    """With its templates compiled, which takes longer than a page."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def template_folder() -> Path:
    """Inside the package in a wheel, beside it in the repository; raises ReportError if it is in neither."""
    package = Path(lipaudit.__file__).parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / TEMPLATE).is_file():
            return folder
    raise ReportError(f"expected {TEMPLATE} in {package / 'templates'}, found none: reinstall lipaudit")
