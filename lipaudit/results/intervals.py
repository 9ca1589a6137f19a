"""Intervals of a share: Wilson's, and the lower limit of Clopper and Pearson."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from lipaudit.results.audit import Rate

_WILSON = statistics.NormalDist().inv_cdf(0.975)


CONFIDENCE = 0.95


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % score interval of a rate (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    z2, share = _WILSON**2, count / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _WILSON * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, centre - half) if count else 0.0, min(1.0, centre + half) if count < total else 1.0


def rate(eps: str, hold: Iterable[bool]) -> Rate:
    """The share of samples that hold at one budget, with its interval."""
    kept = [bool(value) for value in hold]
    low, high = wilson(sum(kept), len(kept))
    return Rate(eps, sum(kept) / max(1, len(kept)), sum(kept), len(kept), low, high)


def lower_limit(count: int, total: int) -> float:
    """The one-sided 95 % lower limit of a share (Clopper & Pearson 1934): the exact one.

    It is the probability p for which `count` or more of `total` have probability 0.05, a quantile of Beta(count,
    total - count + 1).
    """
    if count == 0:
        return 0.0
    from scipy.special import betaincinv  # here: half a second that only this kind of gate needs

    return float(betaincinv(count, total - count + 1, 1 - CONFIDENCE))
