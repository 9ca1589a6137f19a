"""What is proved, and what is seen. Plain frozen data, standard library only.

Two families that never mix: what is proved from above (`Upper`, `LayerBound`, `NetworkBound`, `Certificate`)
and what is measured from below (`Witness`). Only an `Upper` reaches `certify`; only a point that lipaudit itself
re-evaluated becomes a `Witness`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lipaudit.results.threat import Norm


@dataclass(frozen=True)
class Upper:
    """A number that is proved to be at least the truth. NaN and negative values are refused."""

    value: float
    method: str
    """Which proof: `torus-parity`, `svd-verified`, `pointwise`, ..."""
    because: str = ""
    """The claim in one sentence, with its parameters."""

    def __post_init__(self) -> None:
        if not self.value >= 0:
            raise ValueError(f"expected an upper bound >= 0, got {self.value} from {self.method}")

    def __float__(self) -> float:
        return float(self.value)


TOGETHER = "layers taken together"
"""Name of a last line: by what the bound of the whole network is less than what the lines before it multiply up to."""
Law = Literal["scale", "sum", "root_sum_squares", "max"]
Kind = Literal["exact", "upper"]
Arithmetic = Literal["real", "native", "float64"]
"""Which function a certificate is about: that of the weights, or the network as executed in its dtype or float64."""


REAL = (
    "Real arithmetic: certificates are about the exact function of the stored weights. Margins are evaluated in "
    "float64, and every rounding of the evaluation and of the bounds is subtracted."
)
NATIVE = (
    "Native arithmetic: certificates are about the network as executed in {dtype}, with the weights that run now. "
    "Inputs are rounded to it first, and sums may be taken in any order (IEEE arithmetic; no Winograd, FFT or TF32 "
    "kernels)."
)
FLOAT64 = (
    "Float64 arithmetic: certificates are about the network as executed in float64 (model.double(), with the weights "
    "that run now). Sums may be taken in any order (IEEE arithmetic; no Winograd or FFT kernels)."
)


def sentence_of(arithmetic: Arithmetic, dtype: str) -> str:
    """What certificates of this arithmetic are about; `dtype` is the network's own: `float32`."""
    return {"real": REAL, "native": NATIVE.format(dtype=dtype), "float64": FLOAT64}[arithmetic]


@dataclass(frozen=True)
class LayerBound:
    """One line of the ledger, and of the report's layer table.

    Claim: if input `k` of this step moves by at most `d[k]`, in the norm of the network bound, its output moves by at
    most `upper * law(d)`: the only entry for "scale", or the sum, the root of the sum of squares or the maximum.
    """

    name: str
    """The layer as its author knows it, `layer1.0.conv1`; fused layers are joined by " + "."""
    op: str
    upper: Upper
    law: Law
    inputs: tuple[str, ...]
    """Names (`step`) of earlier lines; "input" is the network input."""
    step: str
    """Unique name of this line."""
    log10_so_far: float
    """log10 of the bound from the network input to this output; -inf for a constant."""
    shape: tuple[int, ...]
    """Of the output, without the batch axis."""
    candidates: tuple[Upper, ...] = ()
    """What every provable method gave; `upper` is the smallest, up to a relative 1e-9."""
    lower: float | None = None
    """Measured from below (power iteration with the real padding and stride), rounded down."""
    kind: Kind = "upper"
    seconds: float = 0.0
    source: str = ""
    """`file.py:line` of the model's code."""


@dataclass(frozen=True, repr=False)
class NetworkBound:
    """The proved Lipschitz bound of a network, input to logits, with its ledger.

    In L2, of the vector of logits. In another norm of the input, of every logit.
    """

    layers: tuple[LayerBound, ...]
    log10: float
    """log10 of the bound of the whole logit vector, rounded up. Finite also where `value` overflows."""
    pairwise: tuple[tuple[float, ...], ...]
    """`pairwise[i][j]` bounds the Lipschitz constant of logit i - logit j; inf where it overflows."""
    input_shape: tuple[int, ...]
    seconds: float = 0.0
    domain: tuple[float, float] | None = None
    """The bound holds between inputs with entries in this range only; None: between any two."""
    least: tuple[float, ...] = ()
    """Of each class, the smallest bound of `pairwise` with another one: in files that leave the matrix out."""
    notes: tuple[str, ...] = ()
    """What was fixed at its value at capture: weights that a parametrisation computes, constants read in Python."""
    norm: Norm = "l2"
    """In which the input moves, and so do the tensors of the ledger."""

    def __repr__(self) -> str:
        shape, classes = "x".join(map(str, self.input_shape)), len(self.pairwise)
        norm = "" if self.norm == "l2" else f"{self.norm}, "
        return f"NetworkBound({norm}10^{self.log10:.6g}, {len(self.layers)} layers, {shape} inputs, {classes} classes)"

    @property
    def value(self) -> float:
        """The bound as a float, rounded up; inf if it exceeds the range of float64."""
        if self.log10 == -math.inf:
            return 0.0
        # One ulp of log10 near 300 is a factor 1 + 1.3e-13; pow itself errs by less than that.
        return 10.0**self.log10 * (1 + 1e-12) if self.log10 < 308.2 else math.inf

    def least_of_classes(self) -> tuple[float, ...]:
        """The smallest bound of each class with another one; empty if nothing here says so."""
        rows = enumerate(self.pairwise)
        return tuple(min((v for j, v in enumerate(row) if j != i), default=0.0) for i, row in rows) or self.least

    @property
    def smallest_pairwise(self) -> float:
        rows = range(len(self.pairwise))
        return min((self.pairwise[i][j] for i in rows for j in rows if i != j), default=0.0)

    @property
    def largest_pairwise(self) -> float:
        return max((value for row in self.pairwise for value in row), default=0.0)


@dataclass(frozen=True)
class Certificate:
    """No input closer than `radius` (raw-input units, in the norm of the certificates) changes the sample's prediction.

    Zero if the sample is misclassified, tied, or its margin is lost in rounding.
    A sample is certified at eps if and only if `radius > eps`.
    """

    sample: int
    label: int
    prediction: int
    margin: float
    """Logit of the label minus the largest other logit; negative if misclassified."""
    radius: float
    method: str = "global"


@dataclass(frozen=True)
class Witness:
    """An input that changes the prediction, re-evaluated by lipaudit in float64 (never the attack's word)."""

    sample: int
    attack: str
    distance: float
    """L2 in raw-input units, of the exact tensors, rounded up."""
    prediction: int


@dataclass(frozen=True)
class Secant:
    """Two inputs, and how far apart their logits are proved to be: a lower bound of the Lipschitz constant."""

    sample: int
    """Row of `Samples` beside which both inputs lie."""
    distance: float
    """L2, in units of the inputs, rounded up."""
    logits: tuple[tuple[float, ...], ...]
    """Of both, in float64."""
    error: float
    """Proved: the true difference of the two vectors is within this (L2) of the difference of `logits`."""
    inputs: tuple[str, ...] = ()
    """Both, as base64 of little-endian float32 in the order of the axes; left out where they refute nothing."""

    @property
    def slope(self) -> float:
        """The L2 distance of the logits over that of the inputs, rounded down."""
        # `math.dist` rounds each difference once and errs by less than one ulp after that.
        rise = math.nextafter(math.dist(*self.logits) * (1 - 2**-50) - self.error, -math.inf)
        return math.nextafter(rise / self.distance, 0.0) if rise > 0 else 0.0


ROUNDED = 1e-5
"""Constants are claimed of real numbers, and weights are rounded ones: a factor of up to 1 + ROUNDED is called
rounding, whichever way it goes, and is shown."""
Standing = Literal["confirmed", "open", "refuted"]


@dataclass(frozen=True)
class Claim:
    """A Lipschitz constant that somebody claims of the network: raw inputs to the vector of logits, L2 to L2.

    The claim stands confirmed where the proved bound is at most `constant` times 1 + ROUNDED, refuted where a slope is
    above that, open in between.
    """

    constant: float
    source: str
    """Who claims it, in words that follow "by"."""
    steepest: Secant | None = None
    """The steepest slope that was proved; None where none was."""

    @property
    def slope(self) -> float:
        return self.steepest.slope if self.steepest else 0.0

    def standing(self, bound: NetworkBound | None) -> Standing:
        """What the proved bound, if there is one, and the steepest slope make of it."""
        most = self.constant * (1 + ROUNDED)
        if self.slope > most:
            return "refuted"
        proved = bound is not None and bound.norm == "l2" and bound.value <= most
        return "confirmed" if proved else "open"


@dataclass(frozen=True)
class Disagreement:
    """A logit that is not the same in the model, as it runs, and in the graph that was audited."""

    sample: int
    """Row of `Samples`."""
    where: str
    """At which input: its image, a point beside it, an adversarial example of it."""
    how: str
    """How the model was run."""
    logit: int
    model: float
    """What the model, as it runs, gave for it."""
    graph: float
    """What the graph gave for it, in float64 at the same input."""

    def said(self, number: int | None = None) -> str:
        """For a reader; `number` is that of the image where it is not `sample`."""
        image = self.sample if number is None else number
        return (
            f"logit {self.logit} of {self.where} {image} is {self.model:.6g} from the model {self.how} and "
            f"{self.graph:.6g} from the graph"
        )


@dataclass(frozen=True)
class Agreement:
    """On what the audited graph was held against the model, logit by logit, and where the two differ."""

    images: int
    """Alone, in batches and with noise."""
    examples: int
    """Adversarial examples, and points that attacks took for one."""
    differences: tuple[Disagreement, ...] = ()
