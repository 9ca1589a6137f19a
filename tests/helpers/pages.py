"""A page taken apart: its text, links, tables and drawings, with the standard parser."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import audits

from lipaudit.report.html import to_html

VOID = {"meta", "img", "br", "path", "rect", "circle", "link"}


@functools.cache
def page(name: str) -> str:
    """The page of a fixture."""
    return to_html(audits.ALL[name]())


@dataclass
class Seen(HTMLParser):
    """What a reader sees, and every tag with its attributes."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._open) or not data.strip():
            return
        (self.struck if "s" in self._open else self.text).append(data.strip())
        if self.rows and self.rows[-1] and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def seen(html: str) -> Seen:
    parser = Seen()
    parser.feed(html)
    parser.close()
    return parser
