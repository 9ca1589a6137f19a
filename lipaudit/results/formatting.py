"""Numbers and foreign strings as a reader sees them.

Three significant digits everywhere, `1.60×10¹¹` outside of [0.001, 100 000); a share is never rounded up to
100 % or down to 0 %. Strings that come from outside lose control and direction characters and are cut.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from lipaudit.progress import spell

THIN = "\u202f"  # narrow no-break space: groups digits
NONE = "–"

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PLAIN_DIGITS = {raised: plain for plain, raised in _SUPERSCRIPT.items()}
"""For `translate`: exponents as ordinary digits."""
# C0 and C1 controls, zero-width and direction marks, lone surrogates: nothing a name needs.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def clean(text: object, limit: int = 80) -> str:
    """The text on one line without control or direction characters, cut to `limit` characters."""
    shown = _UNSEEN.sub("\ufffd", re.sub(r"\s+", " ", str(text)[: 4 * limit + 4])).strip()
    return shown if len(shown) <= limit else shown[: limit - 1].rstrip() + "…"


def letters(name: str) -> str:
    """A name without what people write in several ways: `ResNet-18`, `resnet_18` and `resnet18` are one."""
    return re.sub(r"[\W_]", "", name).lower()


def power(exponent: int) -> str:
    """`10⁻⁹`."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def count(value: int) -> str:
    """Digits in groups of three from 10 000 on."""
    return f"{value:,}".replace(",", THIN).replace("-", "−") if abs(value) >= 10_000 else str(value)


def number(value: float | None) -> str:
    """Three significant digits: `0.412`, `12.3`, `3.60×10⁻¹¹`; a dash for nothing."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    if not -3 <= int(exponent) < 5:
        return f"{mantissa}×{power(int(exponent))}".replace("-", "−", 1 if value < 0 else 0)
    if int(exponent) >= 3:
        return count(round(float(f"{mantissa}e{exponent}")))
    return f"{float(f'{mantissa}e{exponent}'):.{2 - int(exponent)}f}".replace("-", "−")


def number_from_log10(exponent: float) -> str:
    """`number(10**exponent)`, also where that is beyond float64."""
    if not math.isfinite(exponent):
        return number(10.0**exponent if exponent < 0 else exponent)
    if abs(exponent) < 300:
        return number(10.0**exponent)
    whole = math.floor(exponent)
    mantissa = f"{10 ** (exponent - whole):.2f}"
    return f"1.00×{power(whole + 1)}" if mantissa == "10.00" else f"{mantissa}×{power(whole)}"


def factor(log10: float) -> str:
    """A gain: `×5.02`; as many digits as it takes to tell it from one: `×1.000003`."""
    beside = abs(math.expm1(log10 * math.log(10))) if abs(log10) < 1 else 1.0
    if 1e-15 < beside < 0.00995:
        return f"×{10**log10:.{math.ceil(-math.log10(beside) - 1e-6)}f}"
    return f"×{number_from_log10(log10)}"


def decades(log10: float) -> str:
    """A ratio in orders of magnitude: `9.5 orders of magnitude`."""
    return f"{log10:.1f} orders of magnitude"


def percent(share: float) -> str:
    """One decimal; `<0.1%` and `>99.9%` for shares that are not quite nothing or all."""
    if math.isnan(share):
        return NONE
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%"


def told_apart(value: float, least: float) -> tuple[str, str]:
    """Two numbers with four decimals, or as many as it takes that they do not look the same when they are not."""
    for digits in (4, 6, 9, 12):
        if value == least or f"{value:.{digits}f}" != f"{least:.{digits}f}":
            return f"{value:.{digits}f}", f"{least:.{digits}f}"
    return repr(value), repr(least)


def interval(low: float, high: float) -> str:
    """A confidence interval of a share: `28.3–36.4%`."""
    return f"{100 * low:.1f}–{100 * high:.1f}%"


def points(share: float) -> str:
    """A difference of shares: `32.2 pts`."""
    return f"{100 * share:.1f} pts"


def percents(share: float, least: float) -> tuple[str, str]:
    """A share and what it is held against, with digits enough to tell them apart: `69.96%`, `70.00%`."""
    if not math.isfinite(share) or not math.isfinite(least):  # a file may hold anything
        return repr(share), repr(least)
    exponent = (Decimal(repr(least)) * 100).normalize().as_tuple().exponent
    for decimals in range(max(1, min(12, -int(exponent))), 13):
        texts = f"{100 * share:.{decimals}f}%", f"{100 * least:.{decimals}f}%"
        if share == least or texts[0] != texts[1]:
            return texts
    return repr(share), repr(least)


def duration(seconds: float) -> str:
    """`0.31 s`, `41 s`, `3 min 10 s`, `2 h 4 min`."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "<0.01 s"
    return spell(seconds)


def digest(sha256: str) -> str:
    """The ends of a hash: `9c1e9c1e…9c1e`."""
    shown = clean(sha256, 80)
    return f"{shown[:8]}…{shown[-4:]}" if len(shown) > 16 else shown or NONE


def plural(many: int, one: str, more: str = "") -> str:
    """`1 image`, `512 images`."""
    return f"{count(many)} {one if many == 1 else more or one + 's'}"
