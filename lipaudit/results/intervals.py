"""Intervals of a share: Wilson's, and the exact limits of Clopper and Pearson."""

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


def lower_limit(count: int, total: int, failure: float = 1 - CONFIDENCE) -> float:
    """The one-sided lower limit of a share (Clopper & Pearson 1934), wrong with probability `failure` at most.

    It is the probability p for which `count` or more of `total` have that probability, a quantile of Beta(count,
    total - count + 1).
    """
    if count == 0:
        return 0.0
    from scipy.special import betaincinv  # here: half a second that only few audits need

    return float(betaincinv(count, total - count + 1, failure))


def at_most(count: int, total: int, p: float) -> float:
    """The probability of at most so many successes in `total` trials, each with probability 0 < p < 1.

    The same limits without SciPy: the upper one of `count` is at or below p where this is at or below the probability
    of an error.
    """
    if count < 0 or count >= total:
        return 0.0 if count < 0 else 1.0
    odds, log = math.log(p) - math.log1p(-p), total * math.log1p(-p)
    logs = [log]
    for k in range(count):
        log += math.log(total - k) - math.log(k + 1) + odds
        logs.append(log)
    most = max(logs)
    return min(1.0, math.exp(most + math.log(math.fsum(math.exp(one - most) for one in logs))))
