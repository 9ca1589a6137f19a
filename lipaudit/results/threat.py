"""The threat model of an audit: in which range raw inputs lie, and by how much they may move."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from lipaudit.errors import BadThreat
from lipaudit.results.formatting import clean, number

DEFAULT_EPS = ("36/255", "0.25", "0.5", "1")
"""Budgets for pixels in [0, 1]; times the width of the range elsewhere."""

Box = tuple[float, float]

Norm = Literal["l2", "linf", "l1"]
"""In which perturbations are measured: the root of the sum of squares, the largest entry, the sum of entries."""

Spoken = Literal["L2", "Linf", "L1"]
"""The same as reports and result files write them."""

NORMS: tuple[Norm, ...] = get_args(Norm)


def norm_of(name: str) -> Norm:
    """The norm of that name, in capitals or not. Raises `BadThreat` for any other."""
    found = next((norm for norm in NORMS if norm == str(name).lower()), None)
    if found is None:
        raise BadThreat(f"expected a norm, {', '.join(NORMS)}, got {clean(name, 40)!r}")
    return found


def spoken(norm: str) -> Spoken:
    """As reports write a norm: `L2`, `Linf`, `L1`. Raises `BadThreat` for what is none."""
    return get_args(Spoken)[NORMS.index(norm_of(norm))]


def circumradius(norm: Norm, entries: int) -> float:
    """The L2 radius of the smallest L2 ball around the unit ball of the norm, among so many entries; rounded up."""
    if norm != "linf":
        return 1.0  # a ball of L1 lies within that of L2
    root = math.isqrt(entries)
    return float(root) if root * root == entries else math.nextafter(math.sqrt(entries), math.inf)


PIXELS = (0.0, 1.0)
"""Where the entries of raw inputs lie unless somebody says otherwise."""


def box_of(domain: Box | None) -> Box:
    """The range of the entries of raw inputs, [0, 1] if nobody says otherwise. Raises `BadThreat` if it is none."""
    low, high = map(float, domain or PIXELS)
    if not -math.inf < low < high < math.inf:
        raise BadThreat(f"expected a domain with finite low < high, such as (0, 1), got {low:g} to {high:g}")
    return low, high


def _scale(low: float, high: float) -> str:
    """By what pixels of this range are to be divided; empty if they look like none of 8 or 16 bits."""
    if low < 0 or not 2 < high <= 65535:
        return ""
    return "255" if high <= 255 else "65535"


def threat_of(eps: str | float | Iterable[str | float] | None, box: Box) -> Threat:
    """L2 budgets as written, in ascending order, in units of the inputs. Raises `BadThreat` for what is no budget."""
    width = box[1] - box[0]
    if eps is None:
        eps = DEFAULT_EPS if width == 1 else [width * eps_value(e) for e in DEFAULT_EPS]
    try:
        found = budgets(eps)
    except (TypeError, ValueError) as error:
        raise BadThreat(str(error)) from None
    if not found:
        raise BadThreat("expected at least one eps such as 36/255, got none")
    return Threat(found) if box == PIXELS else Threat(found, "L2", *box, f"inputs in [{box[0]:g}, {box[1]:g}]")


def eps_value(eps: str | float) -> float:
    """The size of a budget: `36/255`, `0.5`, `1e-3/255` or a number. ValueError unless it is finite and above 0."""
    top, slash, bottom = str(eps).partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"expected eps above 0, a budget such as 36/255 or 0.5, got {clean(eps, 40)!r}")
    return value


def budgets(eps: str | float | Iterable[str | float]) -> tuple[str, ...]:
    """Budgets as written, each size once (`0.5` and `1/2` are one), the smallest first; ValueError for what is none.

    One or several, texts or numbers; a text may hold several, with commas between.
    """
    several = [eps] if isinstance(eps, str) or not isinstance(eps, Iterable) else eps
    sizes: dict[float, str] = {}
    for one in several:
        texts = [part for part in one.split(",") if part.strip()] or [one] if isinstance(one, str) else []
        for text in texts or [written(float(one))]:
            sizes.setdefault(eps_value(text), "".join(text.split()))
    return tuple(sizes[size] for size in sorted(sizes))


def written(eps: float) -> str:
    """A number as a person would write it, and exactly that number: `0.1`, `36/255`."""
    decimal, steps = f"{eps:.12g}", eps * 255
    if not math.isfinite(eps) or float(decimal) == eps:
        return decimal
    return f"{round(steps)}/255" if round(steps) / 255 == eps else repr(eps)


def eps_text(text: str) -> str:
    """A fraction with its decimal: `36/255 = 0.141`."""
    return f"{clean(text, 20)} = {number(eps_value(text))}" if "/" in text else clean(text, 20)


@dataclass(frozen=True)
class Threat:
    """Who may do what: move the input by at most eps in a norm."""

    eps: tuple[str, ...]
    norm: Spoken = "L2"
    low: float = 0.0
    high: float = 1.0
    units: str = "pixels in [0, 1]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", spoken(self.norm))


def comma_list(text: str) -> tuple[str, ...]:
    """`a,b , c` -> (`a`, `b`, `c`)."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_eps(values: str | float | Iterable[str | float]) -> tuple[str, ...]:
    """Perturbation budgets as written (`36/255`, `0.5`), each once, in ascending order; raises `BadThreat`."""
    try:
        return budgets(values)
    except ValueError as error:
        raise BadThreat(f"--eps: {error}") from None
