"""What the pages repeat of the code is written by it when the site is built: mkdocs calls these by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lipaudit.results.formats import FORMATS
from lipaudit.results.json_schema import json_schema

RESULT_FILE = "<!-- generated: result file -->"
FORMAT_LIST = "<!-- generated: formats -->"
EXAMPLE = re.compile(r"<!-- example: ([\w/]+\.py) -->")
EXAMPLES = Path(__file__).parent.parent / "examples"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The pages with the tables of the result file, the formats, or an example, in place of its mark."""
    markdown = EXAMPLE.sub(lambda found: _example(found[1]), markdown).replace(FORMAT_LIST, _formats())
    return markdown.replace(RESULT_FILE, _result_file()) if RESULT_FILE in markdown else markdown


def _example(name: str) -> str:
    """A script in cells (`# %%`, `# %% [markdown]`) as a page."""
    cells = re.split(r"^# %%(.*)\n", (EXAMPLES / name).read_text("utf-8"), flags=re.MULTILINE)[1:]
    shown = []
    for kind, text in zip(cells[::2], cells[1::2], strict=True):
        if "markdown" in kind:
            shown.append(re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE))
        else:
            shown.append(f"```python\n{text.strip()}\n```")
    shown.append(f"This page is `examples/{name}`: run it with `python examples/{name}`. A test runs it, too.")
    return "\n\n".join(shown)


def _formats() -> str:
    rows = [f"| `{name}` | `.{form.ending}` | {form.about} |" for name, form in FORMATS.items()]
    return "\n".join(["| format | ending | what it is |", "|---|---|---|", *rows])


def _result_file() -> str:
    schema = json_schema()
    records = {"Audit": schema, **schema["$defs"]}
    return "\n\n".join(_table(name, record) for name, record in records.items())


def _table(name: str, record: dict[str, Any]) -> str:
    rows = [
        f"| `{field}`{'' if field in record.get('required', ()) else ' (optional)'} | {_kind(of)} "
        f"| {of.get('description', '').replace('|', '&#124;')} |"
        for field, of in record.get("properties", {}).items()
    ]
    return "\n".join(
        [f"## {name}", "", record.get("description", ""), "", "| field | type | meaning |", "|---|---|---|", *rows]
    )


def _kind(of: dict[str, Any]) -> str:
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in of:
        return " or ".join(_kind(each) for each in of["anyOf"])
    if "enum" in of:
        return ", ".join(f"`{value}`" for value in of["enum"])
    if of.get("type") == "array":
        return f"list of {_kind(of.get('items', {}))}"
    kind = of.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else kind
