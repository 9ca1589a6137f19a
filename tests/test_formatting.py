"""Numbers and foreign strings as a reader sees them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipaudit.errors import BadThreat, ConfigError
from lipaudit.results import formatting as f
from lipaudit.results.threat import budgets, eps_text, eps_value, threats_of
from lipaudit.verdict.gates import parse


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.412, "0.412"),
        (0.4119, "0.412"),
        (1.0, "1.00"),
        (9.999, "10.0"),
        (99.96, "100"),
        (999.6, "1000"),
        (12_345.0, "12\u202f300"),
        (99_960.0, "1.00×10⁵"),
        (1.6e11, "1.60×10¹¹"),
        (3.6e-11, "3.60×10⁻¹¹"),
        (0.001, "0.00100"),
        (0.0009996, "0.00100"),
        (-2.5, "−2.50"),
        (-2.5e-7, "−2.50×10⁻⁷"),
        (0.0, "0"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_three_significant_digits(value: float | None, shown: str) -> None:
    assert f.number(value) == shown


@given(st.floats(min_value=1e-290, max_value=1e290))
def test_shown_numbers_are_within_half_a_digit(value: float) -> None:
    shown = f.number(value).replace("\u202f", "")
    mantissa, _, exponent = shown.partition("×10")
    digits = exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    assert float(mantissa) * 10.0 ** int(digits or 0) == pytest.approx(value, rel=0.00501)


@pytest.mark.parametrize(
    ("log10", "shown"),
    [
        (570.3010299957, "2.00×10⁵⁷⁰"),
        (429.99999, "1.00×10⁴³⁰"),
        (-400.0, "1.00×10⁻⁴⁰⁰"),
        (1.0, "10.0"),
        (-math.inf, "0"),
    ],
)
def test_numbers_beyond_float64(log10: float, shown: str) -> None:
    assert f.number_from_log10(log10) == shown


@given(st.floats(min_value=-299, max_value=299))
def test_both_ways_to_a_number_agree(log10: float) -> None:
    assert f.number_from_log10(log10) == f.number(10.0**log10)


@pytest.mark.parametrize(
    ("gain", "shown"), [(5.02, "×5.02"), (1.000003, "×1.000003"), (0.9999, "×0.9999"), (1.0, "×1.00"), (0.25, "×0.250")]
)
def test_a_factor_shows_that_it_is_not_quite_one(gain: float, shown: str) -> None:
    assert f.factor(math.log10(gain)) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0.0%"), (1.0, "100.0%"), (0.9999, ">99.9%"), (0.0001, "<0.1%"), (0.322, "32.2%"), (math.nan, "–")],
)
def test_shares_are_never_rounded_to_all_or_nothing(share: float, shown: str) -> None:
    assert f.percent(share) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.001, "<0.01 s"), (0.312, "0.31 s"), (41.2, "41 s"), (190.0, "3 min 10 s"), (7440.0, "2 h 4 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert f.duration(seconds) == shown


@given(st.text(max_size=400), st.integers(min_value=1, max_value=60))
def test_clean_text_is_short_one_line_and_encodable(text: str, limit: int) -> None:
    shown = f.clean(text, limit)
    assert len(shown) <= limit
    shown.encode("utf-8")
    assert not set(shown) & {chr(k) for k in (*range(32), 127, 0x202E, 0x2066, 0x200F)}


def test_clean_keeps_names_and_shows_what_it_took() -> None:
    assert f.clean("layer1.0.conv1 + bn1") == "layer1.0.conv1 + bn1"
    assert f.clean("a\u202eb\x1b[31m") == "a\ufffdb\ufffd[31m"
    assert f.clean("lone \ud800") == "lone \ufffd"


@pytest.mark.parametrize("text", ["", "x", "1/0", "0", "-1", "inf", "nan", "1e999", "1/2/3"])
def test_budgets_must_be_positive_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected eps above 0, a budget such as"):
        eps_value(text)


def test_budgets() -> None:
    assert eps_value("36/255") == 36 / 255
    assert eps_text("36/255") == "36/255 = 0.141"
    assert eps_text("0.5") == "0.5"


@pytest.mark.parametrize(
    ("eps", "found"),
    [
        ("36/255", ("36/255",)),
        (0.5, ("0.5",)),
        (36 / 255, ("36/255",)),
        ("1, 0.5", ("0.5", "1")),
        (("0.5", "1/2", 0.5), ("0.5",)),
        (["1", " 36 / 255 "], ("36/255", "1")),
        ("1e-3/255", ("1e-3/255",)),
        ((), ()),
    ],
)
def test_budgets_in_every_form_by_every_parser(eps: Any, found: tuple[str, ...]) -> None:
    assert budgets(eps) == found
    if found:
        assert [threat.eps for threat in threats_of(eps, ("l2",))] == [found]
        assert [threat.eps for threat in threats_of({"linf": eps, "l2": "1"}, ("l2", "linf"))] == [("1",), found]
        assert [parse(f"certified_accuracy@{one}>=0.5").eps for one in found] == list(found)


NO_BUDGETS = ["", "0", "-1", "nan", "inf", "1/0", "x", "1/2/3", "1e999", 0.0, math.nan, None, [None]]


@pytest.mark.parametrize("eps", NO_BUDGETS)
def test_what_is_no_budget_is_one_by_no_parser(eps: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        budgets(eps)
    if eps is not None:
        with pytest.raises(BadThreat):
            threats_of(eps, ("l2",))
    if isinstance(eps, str):
        with pytest.raises(ConfigError):
            parse(f"certified_accuracy@{eps}>=0.5")
