"""Scales, ticks, step curves and labels: geometry that nobody looks at twice once it is drawn."""

from __future__ import annotations

import itertools
import math
import random
import re

import audits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipaudit.report.figures import curves, scatter, waterfall
from lipaudit.report.figures.charts import Box, Chart, Path, Reference, Text, reference_lines, roomiest, text_width
from lipaudit.report.figures.curves import Survival, _Place
from lipaudit.report.figures.layer_groups import stages
from lipaudit.report.figures.scales import Scale, linear_ticks, log_ticks

PLOT = Box(40, 50, 840, 350)


def test_a_scale_maps_back_and_forth_and_clips() -> None:
    scale = Scale(-3.0, 1.0, 40.0, 840.0)
    assert scale(-3.0) == 40.0
    assert scale(1.0) == 840.0
    assert scale.back(scale(-1.3)) == pytest.approx(-1.3)
    assert scale(99.0) == 840.0
    assert scale(-99.0) == 40.0
    assert Scale(0, 100, 350, 50)(25) == 275


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_a_scale_refuses_an_empty_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low < high"):
        Scale(low, high, 0, 1)


@given(st.floats(-320, 300), st.floats(0.05, 600), st.integers(4, 12))
def test_ticks_of_a_log_axis_lie_inside_in_order_and_are_few(low: float, span: float, most: int) -> None:
    ticks = log_ticks(low, low + span, most)
    at = [tick.at for tick in ticks]
    assert at == sorted(at)
    assert len(ticks) <= most + 1
    assert all(low - 1e-6 <= x <= low + span + 1e-6 for x in at)
    assert len({tick.label for tick in ticks}) == len(ticks)
    assert ticks or span < 1


def test_ticks_read_as_decimals_near_one_and_as_powers_far_off() -> None:
    assert [t.label for t in log_ticks(-2, 1, 11)] == ["0.01", "0.1", "1", "10"]
    assert [t.label for t in log_ticks(-1, 1, 11)] == ["0.1", "0.2", "0.5", "1", "2", "5", "10"]
    assert [t.label for t in log_ticks(-11.5, 0.5, 8)] == ["10⁻¹⁰", "10⁻⁸", "10⁻⁶", "10⁻⁴", "0.01", "1"]
    assert [t.label for t in linear_ticks(0, 100, 6)] == ["0", "20", "40", "60", "80", "100"]


@given(st.integers(0, 10_000))
def test_the_step_curve_is_the_share_at_every_pixel(seed: int) -> None:
    draw = random.Random(seed)
    values = sorted(draw.lognormvariate(0, 1.5) for _ in range(draw.choice((1, 30, 3000))))
    curve = Survival(tuple(values), draw.randrange(5), len(values) + 10)
    place = _Place(PLOT, Scale(-1.0, 1.0, 40, 840), Scale(0, 100, 350, 50), True, ())
    path = place.steps(curve, "x").d
    numbers = re.findall(r"([MHV])([\d.-]+)(?: ([\d.]+))?", path)
    assert len(numbers) < 2 * 800 + 10
    # Walk the path: at any pixel its height is the share within one pixel to either side.
    x, y, corners = 37.0, 350.0, []
    for kind, first, _ in numbers[1:]:
        x, y = (float(first), y) if kind == "H" else (x, float(first))
        corners.append((x, y))
    edge = place.edge(curve)
    for pixel in range(45, 836, 37):
        height = next(corner[1] for corner in reversed(corners[:-1]) if corner[0] <= pixel)
        assert edge(pixel - 1.1) - 0.1 <= height <= edge(pixel + 1.1) + 0.1


def test_survival_counts_what_is_strictly_larger() -> None:
    curve = Survival((0.1, 0.2, 0.2), 1, 5)
    assert [curve.share(x) for x in (0.05, 0.1, 0.2, 9.0)] == [0.8, 0.6, 0.2, 0.2]


@given(st.lists(st.floats(40, 840), min_size=1, max_size=7))
def test_names_of_reference_lines_never_touch(places: list[float]) -> None:
    marks = reference_lines(PLOT, [Reference(x, f"{k}/255 mark") for k, x in enumerate(places)])
    boxes = [box(mark) for mark in marks if isinstance(mark, Text)]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].meets(pair[1])]
    assert all(b.left >= 39 and b.right <= 841 for b in boxes)


def box(mark: Text, size: float = 12.0) -> Box:
    x, y, wide = float(mark.x), float(mark.y), text_width(mark.text, size) * 0.9
    left = {"start": x, "middle": x - wide / 2, "end": x - wide}[mark.anchor]
    return Box(left, y - 9, left + wide, y + 2)


def test_a_region_is_named_inside_it_or_not_at_all() -> None:
    def top(x: float) -> float:
        return 50 + (x - 40) * 0.3

    spot = roomiest(PLOT, top, lambda _x: 350.0, 120, 40)
    assert spot is not None
    x, y = spot
    assert top(x + 60) <= y - 20
    assert y + 20 <= 350
    assert roomiest(PLOT, lambda _x: 340.0, lambda _x: 350.0, 120, 40) is None
    avoided = roomiest(PLOT, lambda _x: 50.0, lambda _x: 350.0, 120, 40, avoid=(440,))
    assert avoided is not None
    assert abs(avoided[0] - 440) > 55


def drawn(name: str) -> list[Chart]:
    audit = audits.ALL[name]()
    shown, cloud = curves.band(audit), scatter.cloud(audit)
    found = [curves.figure(audit, shown, log) for log in (True, False)] if shown else []
    found.append(scatter.figure(audit, cloud))
    if audit.bound and (rows := stages(audit.bound)):
        found.append(waterfall.figure(audit.bound, rows, audit.slope))
    return [chart for figure in found if figure for chart in (figure.wide, figure.narrow)]


@pytest.mark.parametrize("name", audits.ALL)
def test_text_of_figures_stays_inside_and_apart(name: str) -> None:
    for chart in drawn(name):
        marks = [mark for mark in chart.marks if isinstance(mark, Text)]
        boxes = [box(mark) for mark in marks]
        for mark, one in zip(marks, boxes, strict=True):
            assert one.left >= -2, (chart.id, mark)
            assert one.right <= chart.width + 2, (chart.id, mark)
            assert one.top >= 0, (chart.id, mark)
            assert one.bottom <= chart.height, (chart.id, mark)
        touching = [
            (chart.id, a.text, b.text)
            for (a, one), (b, two) in itertools.combinations(zip(marks, boxes, strict=True), 2)
            if one.meets(two)
        ]
        assert not touching


@pytest.mark.parametrize("name", audits.ALL)
def test_narrow_figures_are_no_wider_than_a_phone(name: str) -> None:
    assert {chart.width for chart in drawn(name)} <= {860, 340}


def test_points_below_the_line_are_exactly_the_contradictions() -> None:
    audit = audits.invalid()
    figure = scatter.figure(audit, scatter.cloud(audit))
    assert figure is not None
    dots = [mark for mark in figure.wide.marks if mark.kind == "dot"]
    assert len(dots) == 2
    plot = figure.wide.plot
    (points,) = [mark for mark in figure.wide.marks if isinstance(mark, Path) and "points" in mark.css]
    for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", points.d):
        share = (float(x) - plot.left) / plot.width
        assert float(y) <= plot.bottom - share * (plot.bottom - plot.top) + 0.2
    for dot in dots:
        share = (float(dot.x) - plot.left) / plot.width
        assert float(dot.y) > plot.bottom - share * (plot.bottom - plot.top)


def test_many_points_are_merged_but_never_a_contradiction() -> None:
    audit = audits.invalid(4000)
    figure = scatter.figure(audit, scatter.cloud(audit))
    assert figure is not None
    (points,) = [mark for mark in figure.wide.marks if isinstance(mark, Path) and "points" in mark.css]
    assert len(points.d) < 25_000
    assert sum(mark.kind == "dot" for mark in figure.wide.marks) == 2


def test_proved_curve_is_drawn_only_under_a_sound_verdict() -> None:
    for name, proved in [("strong", True), ("invalid", False), ("unproved", False)]:
        audit = audits.ALL[name]()
        shown = curves.band(audit)
        assert shown is not None
        figure = curves.figure(audit, shown)
        assert figure is not None
        assert any(isinstance(m, Path) and "proved" in m.css for m in figure.wide.marks) is proved
