"""The copy of the result inside the page, so that a page alone can be compared and rendered again.

It is a result file without pictures, its class-pair bounds left out where they are many, and the numbers of the images
rounded to the side on which every claim stays true: radii down, distances up. A number that rounding would carry over a
budget of the audit, or past its counterpart, is kept in full, so the copy counts as the result does. What would take
much room is compressed, with the positions in the data set as differences.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import itertools
import json
import math
import zlib
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from lipaudit.errors import ReportError
from lipaudit.results.threat import eps_value

BLOCK = "lipaudit-result"
"""The id of the element that holds the copy."""
PLAIN, PACKED = "application/json", "application/gzip"
MOST_PLAIN = 60_000
"""Bytes; above, the copy is compressed."""
DIGITS, PACKED_DIGITS, MARGIN_DIGITS = 6, 4, 3
MOST_UNPACKED = 64_000_000
"""Bytes: a page from a stranger may hold a bomb."""
MOST_CLASSES = 16
DIFFERENCES = "index_differences"
OTHERS = "other_norms"
PACKED_WITHOUT, COLUMNS_WITHOUT = ("arithmetics",), ("native_distance",)
"""Parts and columns that a packed copy goes without, where a result has them: further radii and distances per image."""


@dataclass(frozen=True)
class Block:
    """What the template prints: `text` has no character that could end the element."""

    id: str
    type: str
    digits: int
    text: str


def embed(text: str) -> Block:
    """The copy of a result file; same text, same bytes."""
    plain = _write(_slim(json.loads(text), DIGITS))
    if len(plain.encode()) <= MOST_PLAIN:
        return Block(BLOCK, PLAIN, DIGITS, plain)
    data = _slim(json.loads(text), PACKED_DIGITS)
    for part, names in ((data, PACKED_WITHOUT), (data["samples"], COLUMNS_WITHOUT)):
        for name in names:
            part.pop(name, None)
    for part in data.get(OTHERS, ()):
        for name in (*PACKED_WITHOUT, *COLUMNS_WITHOUT):
            part[name] = []
    index = data["samples"]["index"]
    data["samples"]["index"] = [*index[:1], *(after - before for before, after in itertools.pairwise(index))]
    data[DIFFERENCES] = True
    packed = gzip.compress(_write(data).encode(), 9, mtime=0)
    return Block(BLOCK, PACKED, PACKED_DIGITS, base64.b64encode(packed).decode())


def result_text(html: str) -> str:
    """The result file inside a page; raises ReportError with one line if there is none."""
    found = _Finder()
    found.feed(html)
    found.close()
    if found.type is None:
        raise ReportError("expected a report of lipaudit with its result inside, got a page without; take the .json")
    if found.type == PLAIN:
        return "".join(found.text)
    try:
        data = json.loads(_unpack("".join(found.text)))
        if data.pop(DIFFERENCES, False):
            data["samples"]["index"] = list(itertools.accumulate(data["samples"]["index"]))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise ReportError("expected a packed result inside the page, got something else") from None
    return json.dumps(data)


def _slim(data: dict[str, Any], digits: int) -> dict[str, Any]:
    samples = data["samples"]
    samples.pop("image", None)
    samples["margin"] = [_rounded(value, min(digits, MARGIN_DIGITS), 0) for value in samples["margin"]]
    _slim_in_norm(data, samples, digits)
    for part in data.get(OTHERS, ()):
        _slim_in_norm(part, part, digits)
    return data


def _slim_in_norm(data: dict[str, Any], columns: dict[str, Any], digits: int) -> None:
    """What was found in one norm, with its columns."""
    data["thumbnails"] = []
    if data["bound"] and len(data["bound"]["pairwise"]) > MOST_CLASSES:
        rows = enumerate(data["bound"]["pairwise"])
        least = [[math.inf if v is None else v for j, v in enumerate(row) if j != i] for i, row in rows]
        data["bound"]["least"] = [None if min(row) == math.inf else min(row) for row in least]
        data["bound"]["pairwise"] = []
        data["bound"]["pairwise_omitted"] = f"more than {MOST_CLASSES} classes; the result file has them"
    if data.get("claim") and data["claim"]["steepest"]:
        data["claim"]["steepest"]["inputs"] = []
    budgets = [eps_value(eps) for eps in data["threat"]["eps"]]
    pairs = [
        _pair(radius, distance, digits, budgets)
        for radius, distance in zip(columns["radius"], columns["distance"], strict=True)
    ]
    columns["radius"] = [radius for radius, _ in pairs]
    columns["distance"] = [distance for _, distance in pairs]


def _pair(
    radius: float | None, distance: float | None, digits: int, budgets: list[float]
) -> tuple[float | None, float | None]:
    """Both rounded where that changes no comparison, with a budget or with each other."""
    low, high = _rounded(radius, digits, -1), _rounded(distance, digits, 1)
    low = radius if any(_above(radius, eps) != _above(low, eps) for eps in budgets) else low
    high = distance if any(_above(distance, eps) != _above(high, eps) for eps in budgets) else high
    return (radius, distance) if _reached(radius, distance) != _reached(low, high) else (low, high)


def _reached(radius: float | None, distance: float | None) -> bool:
    return radius is not None and distance is not None and distance <= radius


def _above(value: float | None, eps: float) -> bool:
    return value is None or value > eps


def _rounded(value: float | None, digits: int, side: int) -> float | None:
    """Fewer significant digits; towards -inf or +inf for `side` -1 or 1, to the nearest for 0."""
    if not value:
        return value
    near = float(f"{value:.{digits - 1}e}")
    if side * (near - value) >= 0:
        return near
    # One unit of the last digit further on the wanted side.
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
    beyond = float(f"{near + side * unit:.{digits - 1}e}")
    return beyond if side * (beyond - value) >= 0 else value


def _write(data: dict[str, Any]) -> str:
    """Compact JSON without the signs that could end a script element or begin a comment in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _unpack(text: str) -> bytes:
    try:
        inflater = zlib.decompressobj(wbits=31)
        data = inflater.decompress(base64.b64decode(text, validate=True), MOST_UNPACKED)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ReportError(f"expected a packed result inside the page, got something else ({error})") from None
    if not inflater.eof:
        raise ReportError(
            f"expected a result of at most {MOST_UNPACKED} bytes inside the page, got a cut or larger one"
        )
    return data


class _Finder(HTMLParser):
    """The text of the element with the copy; the first counts."""

    def __init__(self) -> None:
        super().__init__()
        self.type: str | None = None
        self.text: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "script" and given.get("id") == BLOCK and self.type is None:
            self.type, self._inside = given.get("type") or "", True

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text.append(data)
