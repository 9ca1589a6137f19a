"""From below: attacks, and slopes seen. Nothing here knows how a bound is computed: no error can be shared.

`cross_check` runs attacks of AutoAttack and ART and re-evaluates in float64 whatever they claim; what is left
are witnesses. `executed_distances` looks from there for where the network changes its answer in its own dtype.
`largest_slope` measures how steep the network is at given points, `steepest_pair` proposes where it is steepest.
`estimates_of` adds what is estimated and proves nothing. `estimate_seconds` tells beforehand how long attacks take.
`PRESETS` and `ATTACKS` are the attacks by name.
"""

from lipaudit.crosscheck.estimates import estimates_of
from lipaudit.crosscheck.harness import Evidence, Interrupted, cross_check
from lipaudit.crosscheck.native_boundary import executed_distances
from lipaudit.crosscheck.registry import ATTACKS, PRESETS, plan
from lipaudit.crosscheck.slope import Slope, largest_slope, steepest_pair
from lipaudit.crosscheck.timing import estimate_seconds

__all__ = [
    "ATTACKS",
    "PRESETS",
    "Evidence",
    "Interrupted",
    "Slope",
    "cross_check",
    "estimate_seconds",
    "estimates_of",
    "executed_distances",
    "largest_slope",
    "plan",
    "steepest_pair",
]
