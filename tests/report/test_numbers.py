"""Every number on the page is one of the result file, rounded, or one of a few that follow from those and are named."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import get_args

import audits
import pytest
from pages import page, seen

from lipaudit.results.audit import Audit
from lipaudit.results.formatting import (
    THIN,
    count,
    duration,
    factor,
    number,
    number_from_log10,
    percent,
    percents,
    points,
    told_apart,
)
from lipaudit.results.json import to_json
from lipaudit.results.published import Kind, published_at
from lipaudit.results.threat import eps_value

NUMBER = re.compile(r"[−-]?\d+(?:\.\d+)?(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
TICK = re.compile(r"[125](?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?|[−-]?\d+\.0+|0\.(?:\d\d?|00[125])")
"""What an axis or the edge of a bar is marked with: numbers of the result have three digits."""
OURS = {"256", "255", "95", "25", "75", "10", "90"}
"""sha256, 36/255, 95 % intervals, percentiles: words of the page."""


def numbers_in(texts: Iterable[str]) -> set[str]:
    return {found for text in texts for found in NUMBER.findall(text.replace(THIN, "").replace("\xa0", ""))}


def leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def shapes_of(value: float) -> Iterator[str]:
    """All ways in which the page writes a number."""
    yield from (number(value), percent(value), points(value), duration(value), f"{value:g}")
    yield from (f"{100 * value:.{digits}f}" for digits in (0, 1))
    yield from (f"{value:.{digits}f}" for digits in (1, 2, 3))
    if abs(value) < 400:
        yield from (number_from_log10(value), factor(value))
    if float(value).is_integer():
        yield from (count(int(value)), str(int(value)))


def stated(audit: Audit) -> Iterator[str]:
    for leaf in leaves(json.loads(to_json(audit))):
        if isinstance(leaf, str):
            yield leaf
        elif isinstance(leaf, int | float) and not isinstance(leaf, bool):
            yield from shapes_of(leaf)


def derived(audit: Audit) -> Iterator[str]:
    """What the page computes: each line says what."""
    s, coordinates = audit.samples, math.prod(audit.model.input_shape)
    yield count(coordinates)
    for eps in audit.threat.eps:  # in decimals, and spread over all pixels
        yield from (number(eps_value(eps)), number(255 * eps_value(eps) / math.sqrt(coordinates)))
    for radius, distance in zip(s.radius, s.distance, strict=True):  # how far attacks stay away
        if distance is not None and radius:
            yield number(distance / radius)
    for label in set(s.label):  # shares of a class
        of_class = s.label.count(label)
        yield from (percent(k / of_class) for k in range(of_class + 1))
    for rate in (*audit.empirical, *audit.certified):  # what is left of all, of the correct, of the empirical
        for left in (rate.total - rate.count, audit.clean.count - rate.count, rate.total - audit.clean.count):
            yield from (str(left), percent(left / rate.total), f"{100 * left / rate.total:.0f}")
    for one, other in itertools.product(audit.empirical, audit.certified):  # and the band between proved and empirical
        yield from (str(one.count - other.count), points(one.value - other.value), percent(one.value - other.value))
    yield str(sum(distance is not None for distance in s.distance))
    yield points((audit.clean.high - audit.clean.low) / 2)  # how far a rate is left open
    for gate in audit.gates:  # with the digits that tell them apart
        if gate.value is not None:
            yield from (*percents(gate.value, gate.least), *told_apart(gate.value, gate.least))
    if audit.bound is not None:  # what a stage, or several, multiply the bound by; how tight a layer's bound is
        logs = [0.0, *(line.log10_so_far for line in audit.bound.layers)]
        yield from (factor(after - before) for before, after in itertools.product(logs, logs))
        for before, after in itertools.product(logs, logs):
            yield f"{100 * (after - before) / (audit.bound.log10 or 1):.0f}".replace("-", "−")
        yield from (factor(math.log10(n.upper.value / n.lower)) for n in audit.bound.layers if n.lower)


def of_no_origin(audit: Audit, texts: Iterable[str]) -> set[str]:
    pairs = itertools.product(audit.threat.eps, get_args(Kind))
    found = [published_at(audit.dataset.name, audit.threat.norm, eps, kind) for eps, kind in pairs]
    others = [f"{100 * one.value:.1f} {one.year} {one.link}" for one in found if one is not None]
    known = numbers_in(itertools.chain(stated(audit), derived(audit), others))
    return {
        text
        for text in numbers_in(texts) - known - OURS
        if not TICK.fullmatch(text) and len(re.sub(r"\D", "", text)) > 1  # "Figure 3", "L2"
    }


@pytest.mark.parametrize("name", ["strong", "weak", "vacuous", "invalid", "gated", "single", "no_attacks"])
def test_every_number_of_the_page_is_in_the_result_or_follows_from_it(name: str) -> None:
    texts = seen(page(name)).text
    assert len(numbers_in(texts)) > 50
    assert not of_no_origin(audits.ALL[name](), texts)


def test_a_number_of_no_origin_is_noticed() -> None:
    audit = audits.strong()
    assert of_no_origin(audit, ["median certified radius 0.7131", "31.07%"]) == {"0.7131", "31.07"}
