"""One run's result. Plain frozen data, standard library only: `report/` reads nothing else.

`Audit` is the whole of one run. Its fields *are* the published result file (`json.py` writes them one
to one; non-finite numbers become null), so a change here is a change of `SCHEMA`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from lipaudit.errors import BadThreat, RenamedWarning
from lipaudit.results.bounds import Agreement, Arithmetic, Claim, NetworkBound
from lipaudit.results.formatting import plural
from lipaudit.results.threat import Norm, Threat, eps_value, norm_of, spoken

SCHEMA = "lipaudit-result/2.1"
MOST_CLASSES = 128
"""Of more classes, a result file leaves out the matrix of pairwise bounds."""
TIME_LIMIT = "time limit reached"
"""What `AttackRecord.why` says where time ran out."""
Numbers = Sequence[float]
Done = Literal["done", "failed", "not run"]
Integrity = Literal["SOUND", "INVALID", "UNPROVED"]
Strength = Literal["vacuous", "weak", "substantial"]
Status = Literal["complete", "partial", "invalid"]


@dataclass(frozen=True)
class AttackRecord:
    """What one attack did."""

    name: str
    library: str
    """`AutoAttack (pyautoattack 0.2.0)`, `ART 1.20.1`."""
    settings: str
    attacked: int
    broken: int
    """Samples for which it produced a `Witness`, at whatever distance."""
    closest: int
    """Samples for which its witness was the closest of all attacks."""
    median_distance: float | None
    rejected: int
    """Claimed adversarial examples that did not survive re-evaluation."""
    seconds: float
    status: Done = "done"
    why: str = ""
    flags: tuple[str, ...] = ()
    """The library's own reliability warnings."""
    checked: tuple[str, ...] = ()
    """Which of the conditions in `attack_flags.py` it could have flagged, by name."""

    @property
    def unfinished(self) -> bool:
        """Asked for, could have run, and did not, or not on all samples."""
        return self.status == "failed" or TIME_LIMIT in self.why


@dataclass(frozen=True)
class Finding:
    """One check with a stable id. The title states the outcome."""

    id: str
    state: Literal["pass", "warn", "fail", "info", "not run"]
    title: str
    value: str
    why: str
    """Why a reader should care."""
    fix: str = ""
    """What to do about it; empty if nothing is to be done."""


@dataclass(frozen=True)
class Verdict:
    """Three lamps; strength and gate have no state when integrity is not SOUND."""

    integrity: Integrity
    strength: Strength | None
    gate: Literal["passed", "failed", "not set", "cannot be evaluated"]
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """One condition that the user set, and what came of it."""

    expression: str
    """`certified_accuracy@36/255>=0.30`: as it can be typed after --gate."""
    least: float
    on: Literal["value", "ci_low"]
    """Which number has to reach `least`: the share itself, or its one-sided 95 % lower limit (Clopper-Pearson)."""
    level: Literal["error", "warn"]
    """Whether a miss fails the audit or is only shown."""
    state: Literal["passed", "failed", "cannot be evaluated"]
    value: float | None
    """What was compared, unrounded; None if it cannot be evaluated."""
    why: str = ""
    """What stands in the way; empty if it was judged."""


@dataclass(frozen=True)
class Rate:
    """A share of the audited samples at one perturbation budget, with its 95 % Wilson interval."""

    eps: str
    """As written by the user: "36/255"; "0" for clean accuracy."""
    value: float
    """count / total."""
    count: int
    total: int
    low: float
    high: float


@dataclass(frozen=True)
class ModelFacts:
    """Which network was audited."""

    name: str
    source: str
    """Where architecture and weights come from, for a reader."""
    architecture: str
    parameters: int
    weights: Literal["trained", "random"]
    weights_sha256: str
    """Of the tensors that were audited, names and bytes in order."""
    weights_file: str
    weights_file_sha256: str
    dtype: str
    input_shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...] = ()
    """Normalisation that lipaudit put in front of the network, per channel (smallest and largest where there is one for
    every pixel); empty if it is inside the model or absent."""
    std: tuple[float, ...] = ()
    licence: str = ""


@dataclass(frozen=True)
class DataFacts:
    """Which images were audited."""

    name: str
    split: str
    source: str
    sha256: str
    """Of the audited images and labels, in order."""
    available: int
    samples: int
    seed: int
    class_names: tuple[str, ...] = ()
    levels: int = 0
    """Steps from the least to the largest possible value (255 in 8-bit images, 16 in the digits), so two different
    images differ by at least width/levels in every norm: one channel of one pixel, by one level. 0 if on no such
    grid."""
    width: float = 1.0
    """Of the range of the values: 1 for pixels in [0, 1]."""
    rows_sha256: str = ""
    """Of `index label image` of every row of `Samples`, in order; empty in files before 1.2."""

    @property
    def smallest_change(self) -> float:
        """The smallest change that an image of this kind can have; that of 8-bit images where there is no grid."""
        return self.width / (self.levels or 255)

    @property
    def smallest_change_text(self) -> str:
        return f"{self.width:g}/{self.levels or 255}"


@dataclass(frozen=True, repr=False)
class Samples:
    """One column per fact, one row per audited image."""

    index: tuple[int, ...]
    """Position in the data set."""
    label: tuple[int, ...]
    prediction: tuple[int, ...]
    margin: Numbers
    radius: Numbers
    distance: tuple[float | None, ...]
    """Smallest adversarial perturbation found, in the norm of the threat; None if never broken or not attacked."""
    adversarial_prediction: tuple[int | None, ...]
    attack: tuple[str | None, ...]
    """Which attack found it."""
    attacked: tuple[bool, ...]
    method: tuple[str, ...] = ()
    """Where the radius comes from: "global" (Lipschitz bounds) or "local" (affine forms around the image)."""
    native_distance: tuple[float | None, ...] = ()
    """Smallest perturbation found on the way to the adversarial example with which the network, executed in its own
    dtype, gives another answer; None where there was none, or nothing is certified under native arithmetic."""
    image: tuple[str, ...] = ()
    """The first 16 digits of the SHA-256 of the bytes of each image, as it was audited."""

    def __repr__(self) -> str:
        right, attacked = sum(self.correct()), sum(self.attacked)
        certified = sum(radius > 0 for radius in self.radius)
        return f"Samples({plural(len(self.index), 'row')}, {right} right, {certified} certified, {attacked} attacked)"

    def correct(self) -> list[bool]:
        """Which rows are predicted as labelled."""
        return [label == guess for label, guess in zip(self.label, self.prediction, strict=True)]

    def contradicted(self) -> list[int]:
        """Rows with an adversarial example within the certified radius; a radius of 0 claims nothing."""
        return contradictions(self.radius, self.distance)

    def certified(self, eps: float) -> list[bool]:
        """Which rows have a radius above `eps`: only correct ones have any."""
        return [radius > eps for radius in self.radius]

    def not_broken(self, eps: float) -> list[bool]:
        """Which rows are correct, and no attack changed them within `eps`."""
        pairs = zip(self.correct(), self.distance, strict=True)
        return [right and (distance is None or distance > eps) for right, distance in pairs]


def contradictions(radius: Sequence[float], distance: Sequence[float | None]) -> list[int]:
    """Rows with an adversarial example on or inside the radius: proof that a bound is wrong.

    A radius of 0 claims nothing. Either column may be empty: then there is nothing to compare.
    """
    if not len(radius) or not len(distance):
        return []
    pairs = enumerate(zip(radius, distance, strict=True))
    return [row for row, (certified, found) in pairs if found is not None and 0 < certified >= found]


def _columns() -> tuple[str, ...]:
    """The columns of `Samples` that `InNorm` has of its own."""
    known = {one.name for one in fields(Samples)}
    return tuple(one.name for one in fields(InNorm) if one.name in known)


@dataclass(frozen=True)
class ArithmeticResult:
    """What is certified under one arithmetic; the one that `Samples.radius` is about is among them."""

    arithmetic: Arithmetic
    """The exact function of the weights, the network as executed in its own dtype, or in float64."""
    sentence: str
    """About which function its certificates speak."""
    headline: bool
    """Whether `Samples.radius`, the rates and the gates of this result are about this arithmetic."""
    certified: tuple[Rate, ...]
    """Certified accuracy, per eps. Empty when nothing is certified or the verdict is INVALID or UNPROVED."""
    radius: Numbers
    """One per row of `Samples`; empty when nothing is certified."""
    why_not: str = ""
    """Why nothing is certified; empty if something is, or could have been."""

    @property
    def is_certified(self) -> bool:
        """Whether something is certified, or could have been."""
        return not self.why_not


@dataclass(frozen=True)
class Thumbnail:
    """Original, perturbed image and their difference, as PNG data URIs for the report."""

    sample: int
    """Row of `Samples`."""
    original: str
    perturbed: str
    difference: str
    amplified: float
    """Factor by which the difference is enlarged about mid-grey."""


@dataclass(frozen=True)
class Skip:
    """Something that was not done."""

    what: str
    why: str
    asked: bool = True
    """Whether somebody asked for it; what is only tried where it is affordable leaves no audit incomplete."""


@dataclass(frozen=True)
class Estimate:
    """Radii that nobody proved: estimated, or true with a probability only. Never mixed with those of `Samples`."""

    name: str
    library: str
    settings: str
    about: str
    """What the numbers are, and what they are not."""
    values: tuple[float | None, ...]
    """One per row of `Samples`, L2, in units of the inputs; None where there is none."""
    probability: float | None = None
    """With which each of them holds; None for an estimate that guarantees nothing."""
    draws: int | None = None
    """Noisy copies that were counted for each of them."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Shard:
    """Which part of the samples a run was about, and what it takes to merge it with the others."""

    number: int
    of: int
    """Shard `number` of `of` has rows number - 1, number - 1 + of, ... of the samples."""
    whole: DataFacts
    """The samples of all shards."""
    distances: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Of the witnesses of each attack, of which its record has the median only; of those in another norm than
    L2 under `apgd-ce[linf]`."""


def in_shard(attack: str, norm: Norm) -> str:
    """Under what name `Shard.distances` has those of an attack."""
    return attack if norm == "l2" else f"{attack}[{norm}]"


@dataclass(frozen=True)
class Part:
    """A shard that a merged result was made of."""

    run: str
    started: str
    number: int
    of: int
    samples: int
    where: str
    """Platform, device, threads."""


@dataclass(frozen=True)
class InNorm:
    """What one run found in a further norm: fields of `Audit` and columns of `Samples`, by the same names."""

    threat: Threat
    verdict: Verdict
    certified: tuple[Rate, ...]
    empirical: tuple[Rate, ...]
    bound: NetworkBound | None
    slope: float | None
    slope_share: float | None
    radius: Numbers
    distance: tuple[float | None, ...]
    adversarial_prediction: tuple[int | None, ...]
    attack: tuple[str | None, ...]
    attacked: tuple[bool, ...]
    method: tuple[str, ...]
    native_distance: tuple[float | None, ...]
    attacks: tuple[AttackRecord, ...]
    findings: tuple[Finding, ...]
    arithmetics: tuple[ArithmeticResult, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    claim: Claim | None = None


@dataclass(frozen=True, repr=False)
class Audit:
    """Everything that one run found out: the only input of `report/`.

    Where it was audited in several norms, the fields that `InNorm` has are about the first of them, and `other_norms`
    holds the rest. The integrity and the gates of a verdict are those of the whole audit in every norm.
    """

    run: str
    started: str
    """UTC, ISO 8601."""
    command: tuple[str, ...]
    status: Status
    exit_code: int
    verdict: Verdict
    model: ModelFacts
    dataset: DataFacts
    threat: Threat
    clean: Rate
    certified: tuple[Rate, ...]
    """Certified accuracy, per eps. Empty when the verdict is INVALID or UNPROVED."""
    empirical: tuple[Rate, ...]
    """Robust accuracy under the attacks run, per eps: an upper bound. Empty when nothing was attacked."""
    bound: NetworkBound | None
    slope: float | None
    """Steepest change of a logit difference seen between two inputs: a lower bound of its Lipschitz constant."""
    slope_share: float | None
    """Largest share of its pairwise bound that an observed slope reached: above 1 refutes a bound."""
    rounding: float | None
    """Largest proved bound of the rounding error of a sample's logits (L2); already taken off every radius."""
    arithmetic: str
    """About which function the certificates speak, in one sentence."""
    samples: Samples
    attacks: tuple[AttackRecord, ...]
    findings: tuple[Finding, ...]
    skipped: tuple[Skip, ...] = ()
    warnings: tuple[str, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()
    gates: tuple[Gate, ...] = ()
    arithmetics: tuple[ArithmeticResult, ...] = ()
    """Real, native and float64, as far as they were looked at."""
    timing: dict[str, float] = field(default_factory=dict)
    """Seconds per stage."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions, device, threads, platform, dtype."""
    config: dict[str, Any] = field(default_factory=dict)
    """Every resolved setting of the run; under `origin`, where those come from that are no defaults."""
    estimates: tuple[Estimate, ...] = ()
    """Off unless asked for."""
    agreement: Agreement | None = None
    """None in results of versions that did not look."""
    shard: Shard | None = None
    """None for all samples."""
    parts: tuple[Part, ...] = ()
    """The shards of a merged result, whose times are summed; empty for one run."""
    claim: Claim | None = None
    """None where nobody claims a constant in L2."""
    other_norms: tuple[InNorm, ...] = ()
    """What was found in further norms."""
    schema: str = SCHEMA

    @property
    def norms(self) -> tuple[Norm, ...]:
        """In which norms it was audited, the first one first."""
        return tuple(norm_of(threat.norm) for threat in (self.threat, *(part.threat for part in self.other_norms)))

    def in_norm(self, norm: str | float) -> Audit:
        """The same audit with what was found in that norm in front; raises `BadThreat` where it was not audited."""
        if norm_of(norm) not in self.norms:
            raise BadThreat(f"expected a norm of this audit, {', '.join(self.norms)}, got {norm_of(norm)}")
        front = next((part for part in self.other_norms if part.threat.norm == spoken(norm)), None)
        if front is None:
            return self
        mine = {one.name: getattr(front, one.name) for one in fields(InNorm)}
        columns = {name: mine.pop(name) for name in _columns()}
        behind = (self.part(), *(part for part in self.other_norms if part is not front))
        return replace(self, **mine, samples=replace(self.samples, **columns), other_norms=behind)

    @property
    def views(self) -> tuple[Audit, ...]:
        """The same audit with each of its norms in front, the first one first."""
        return tuple(map(self.in_norm, self.norms))

    def part(self) -> InNorm:
        """What was found in the first norm."""
        of_samples = _columns()
        return InNorm(
            **{one.name: getattr(self.samples if one.name in of_samples else self, one.name) for one in fields(InNorm)}
        )

    def each_norm(self, change: Callable[[Audit], Audit]) -> Audit:
        """With what `change` makes of the fields of `InNorm`, given the audit with each norm in front."""
        if not self.other_norms:
            return change(self)
        first, *rest = map(change, self.views)
        return replace(first, other_norms=tuple(audit.part() for audit in rest))

    @property
    def clean_accuracy(self) -> float:
        return self.clean.value

    def certified_accuracy(self, eps: float | str) -> float:
        """Share of all audited samples that are correct with `radius > eps`, a number or a text such as "36/255"."""
        size = eps_value(eps) if isinstance(eps, str) else eps
        return sum(self.samples.certified(size)) / max(1, len(self.samples.radius))

    def robust_accuracy(self, eps: float | str) -> float | None:
        """What `empirical_robust_accuracy` was called."""
        said = "Audit.robust_accuracy is called empirical_robust_accuracy now"
        warnings.warn(said, RenamedWarning, stacklevel=2)
        return self.empirical_robust_accuracy(eps)

    def empirical_robust_accuracy(self, eps: float | str) -> float | None:
        """Share of all audited samples that are correct and that no attack changed within `eps`, as above.

        None where no attack was run although there was something to attack: then it is unknown.
        """
        if any(self.samples.correct()) and not any(self.samples.attacked):
            return None
        size = eps_value(eps) if isinstance(eps, str) else eps
        return sum(self.samples.not_broken(size)) / max(1, len(self.samples.label))

    def __repr__(self) -> str:
        return self._written("lipaudit.report.terminal", "brief")

    def to_json(self) -> str:
        """The result file."""
        return self._written("lipaudit.results.json", "to_json")

    def to_dataframe(self) -> Any:
        """One row per audited image, as a pandas DataFrame; raises `ReportError` where pandas is not installed."""
        return self._written("lipaudit.results.dataframe", "to_dataframe")

    def to_html(self) -> str:
        """The report, one self-contained page."""
        return self._written("lipaudit.report.html", "to_html")

    def _written(self, module: str, function: str) -> Any:
        """By name: what is found knows nothing of how it is shown."""
        return getattr(importlib.import_module(module), function)(self)
