"""The threat model of an audit: in which range raw inputs lie, and by how much they may move."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lipaudit.errors import BadThreat
from lipaudit.results.formatting import clean, number

Box = tuple[float, float]

Norm = Literal["l2", "linf", "l1"]
"""In which perturbations are measured: the root of the sum of squares, the largest entry, the sum of entries."""

Spoken = Literal["L2", "Linf", "L1"]
"""The same as reports and result files write them."""

NORMS: tuple[Norm, ...] = get_args(Norm)
_NUMBERS: dict[str, Norm] = {"2": "l2", "inf": "linf", "1": "l1"}

DEFAULT_EPS: dict[Norm, tuple[str, ...]] = {
    "l2": ("36/255", "0.25", "0.5", "1"),
    "linf": ("1/255", "2/255", "4/255", "8/255"),
    "l1": ("1", "4", "12"),
}
"""Budgets for pixels in [0, 1]; times the width of the range elsewhere.

L2: 36/255 is the budget of certified training (Trockman & Kolter, ICLR 2021), 0.5 that of RobustBench's L2 list.
Linf: RobustBench's list for CIFAR-10 is at 8/255, that for ImageNet at 4/255; certified training reports 2/255 and
8/255 for CIFAR-10, 1/255 for TinyImageNet.
L1: 12 is that of CIFAR-10 in Croce & Hein, "Mind the box", ICML 2021; certificates reach less, so two smaller ones.
"""
DIGITS_EPS: dict[Norm, tuple[str, ...]] = {"linf": ("0.1", "0.2", "0.3")}
"""The same for small images in shades of grey: digits are nearly black and white, and stay readable under far larger
changes. MNIST is measured at 0.1 (Wong & Kolter, ICML 2018) and 0.3 (Madry et al., ICLR 2018)."""
DIGITS_SIDE = 32
"""Images of one channel with at most so many pixels a side are taken for such: MNIST, Fashion-MNIST, the digits."""

Budgets = str | float | Iterable[str | float] | Mapping[str, str | float | Iterable[str | float]]
"""Budgets as a user writes them; with several norms, each with that which it is for: `linf:8/255`, or by norm."""


def norm_of(name: str | float) -> Norm:
    """The norm of that name, in capitals or not, or number: `Linf`, `inf`, 2. Raises `BadThreat` for any other."""
    found = _NUMBERS.get(str(name).lower().removeprefix("l").removesuffix(".0"))
    if found is None:
        raise BadThreat(f"expected a norm, {', '.join(NORMS)}, got {clean(name, 40)!r}")
    return found


def norms_of(names: str | float | Iterable[str | float]) -> tuple[Norm, ...]:
    """One or several norms, each once, in their order; a text may hold several, with commas between.

    Raises `BadThreat` for what is none, and for none at all.
    """
    several = [names] if isinstance(names, str) or not isinstance(names, Iterable) else names
    words = [word for name in several for word in (comma_list(name) or [name] if isinstance(name, str) else [name])]
    found = tuple(dict.fromkeys(map(norm_of, words)))
    if not found:
        raise BadThreat(f"expected a norm, {', '.join(NORMS)}, got none")
    return found


def spoken(norm: str | float) -> Spoken:
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


def threats_of(
    eps: Budgets | None, norms: Sequence[Norm], box: Box = PIXELS, shape: Sequence[int] = ()
) -> tuple[Threat, ...]:
    """One threat model a norm: its budgets as written, in ascending order, in units of the inputs.

    `shape` of an input, where it is known, decides between defaults. Raises `BadThreat` for what is no budget, or for
    one of which nobody says for which of several norms it is.
    """
    given = {} if eps is None else _by_norm(eps, norms)
    return tuple(_threat(given.get(norm), norm, box, shape) for norm in norms)


def _threat(eps: str | float | Iterable[str | float] | None, norm: Norm, box: Box, shape: Sequence[int]) -> Threat:
    width = box[1] - box[0]
    if eps is None:
        usual = _usual(norm, shape)
        eps = usual if width == 1 else [width * eps_value(e) for e in usual]
    try:
        found = budgets(eps)
    except (TypeError, ValueError) as error:
        raise BadThreat(str(error)) from None
    if not found:
        raise BadThreat("expected at least one eps such as 36/255, got none")
    if box == PIXELS:
        return Threat(found, spoken(norm))
    return Threat(found, spoken(norm), *box, f"inputs in [{box[0]:g}, {box[1]:g}]")


def _usual(norm: Norm, shape: Sequence[int]) -> tuple[str, ...]:
    """The budgets where nobody states any."""
    grey = len(shape) == 3 and shape[0] == 1 and max(shape) <= DIGITS_SIDE
    return DIGITS_EPS.get(norm, DEFAULT_EPS[norm]) if grey else DEFAULT_EPS[norm]


def _by_norm(eps: Budgets, norms: Sequence[Norm]) -> dict[Norm, list[str | float]]:
    """Budgets under the norm that each is for; one without is for the only norm."""
    found: dict[Norm, list[str | float]] = {}
    for norm, size in stated(eps):
        if norm is None and len(norms) > 1:
            raise BadThreat(f"which norm is the budget {clean(size, 40)} for? write {norms[0]}:{clean(size, 40)}")
        mine = norms[0] if norm is None else norm
        if mine not in norms:
            raise BadThreat(f"budget {clean(size, 40)} is for {mine}, which is not asked for; add it to --norm")
        found.setdefault(mine, []).append(size)
    return found or {norm: [] for norm in norms}


def stated(eps: Budgets) -> list[tuple[Norm | None, str | float]]:
    """Each budget, with the norm that it is for where that is said.

    In `linf:1/255,2/255,l2:0.5` a norm holds for what follows it. Raises `BadThreat` for what is none.
    """
    if isinstance(eps, Mapping):
        return [(norm_of(norm), one) for norm, some in eps.items() for one in _listed(some)]
    return [pair for one in _listed(eps) for pair in _split(one)]


def _listed(eps: str | float | Iterable[str | float]) -> Iterable[str | float]:
    return [eps] if isinstance(eps, str) or not isinstance(eps, Iterable) else eps


def _split(eps: str | float) -> list[tuple[Norm | None, str | float]]:
    """The budgets of one text, each with the norm that was last named before it."""
    if not isinstance(eps, str):
        return [(None, eps)]
    norm: Norm | None = None
    found: list[tuple[Norm | None, str | float]] = []
    for part in comma_list(eps) or (eps,):
        name, colon, size = part.rpartition(":")
        norm = norm_of(name.strip()) if colon else norm
        found.append((norm, size))
    return found


def with_norms(threats: Sequence[Threat]) -> tuple[str, ...]:
    """All budgets as `threats_of` reads them."""
    several = len(threats) > 1
    return tuple(f"{norm_of(one.norm)}:{eps}" if several else eps for one in threats for eps in one.eps)


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
