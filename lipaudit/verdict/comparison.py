"""Two audits of the same images held against each other: what changed, and whether it is more than noise.

Pure functions of two `Audit`s. Images are paired by their index, so that only those count on which the two differ:
McNemar's test in its exact form, and an interval for the difference of two paired shares. Audits that did not ask the
same question (other images, budgets, attacks, preprocessing) are refused, by naming what differs.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from lipaudit.errors import CompareError, ExitCode
from lipaudit.results.audit import Audit, Samples
from lipaudit.results.formatting import clean, digest
from lipaudit.results.metrics import unfinished
from lipaudit.results.threat import eps_value, spoken
from lipaudit.settings import named, recorded
from lipaudit.verdict.verdict import integrity_of

KIND = "lipaudit-comparison/1.0"
SIGNIFICANT = 0.05
"""A change with a larger p is called noise."""
EFFORT = dict.fromkeys(sorted(named("proof")), "proving") | dict.fromkeys(sorted(named("attack")), "attacks")
"""Settings under which more or less is proved of the same network, or attacks go other ways."""
MOST_LAYERS = 5
MOVED = 0.001
"""Layers whose bounds differ by a smaller part did not move."""

_NORMAL = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Change:
    """One share in both audits, image by image."""

    measure: Literal["clean", "certified", "empirical"]
    eps: str
    """Empty for clean accuracy."""
    base: int
    """Images that count in the first audit."""
    new: int
    total: int
    gained: tuple[int, ...]
    """Indices of the images that count only in the second audit."""
    lost: tuple[int, ...]
    """Of those that count only in the first."""
    low: float
    """95 % interval of `difference`."""
    high: float
    p: float
    """Of McNemar's exact test: how often chance alone would make a change as uneven as this."""
    norm: str = ""
    """Of the budget, where the audits are in several; empty otherwise."""

    @property
    def difference(self) -> float:
        return (self.new - self.base) / self.total

    @property
    def word(self) -> Literal["no change", "within noise", "better", "worse"]:
        if not self.gained and not self.lost:
            return "no change"
        if self.p > SIGNIFICANT:
            return "within noise"
        return "better" if self.new > self.base else "worse"


@dataclass(frozen=True)
class LayerChange:
    """The bound of one layer in both audits."""

    name: str
    base: float
    new: float
    log10_ratio: float


@dataclass(frozen=True)
class Comparison:
    """All that differs between two audits."""

    base: str
    """Name of the first run."""
    new: str
    integrity: tuple[str, str]
    """Verdict on each."""
    unlike: tuple[str, ...]
    """Why the two cannot be compared; empty unless the user forced it."""
    notes: tuple[str, ...]
    """What else differs: weights, versions, what was left out and why."""
    log10_bound: tuple[float, float] | None
    """log10 of the Lipschitz bound of each; None unless both are SOUND."""
    changes: tuple[Change, ...]
    layers: tuple[LayerChange, ...]
    """Those that moved most, the largest factor first."""

    def dropped(self, most: float) -> tuple[Change, ...]:
        """Shares that fell by more than `most`."""
        return tuple(change for change in self.changes if change.difference < -most)

    def exit_code(self, most: float | None) -> int:
        """4 if the new audit is INVALID; with a largest drop, 5 if that cannot be told, 3 if a share fell further."""
        if self.integrity[1] == "INVALID":
            return ExitCode.INTEGRITY
        if most is None:
            return ExitCode.DONE
        if self.unlike or self.integrity != ("SOUND", "SOUND"):
            return ExitCode.INCOMPLETE
        return ExitCode.GATE_FAILED if self.dropped(most) else ExitCode.DONE


def compare(base: Audit, new: Audit, *, force: bool = False) -> Comparison:
    """What changed from `base` to `new`; raises `CompareError` that says what is unlike, unless `force`.

    With `force` the images are paired as far as their indices go. Certificates of an audit that is not SOUND are not
    compared as if they held.
    """
    unlike = differences(base, new)
    if unlike and not force:
        raise CompareError(f"not comparable: {'; '.join(unlike)} (--force compares them all the same)")
    integrity = (_integrity(base), _integrity(new))
    sound = integrity == ("SOUND", "SOUND")
    notes = _notes(base, new, integrity)
    layers: tuple[LayerChange, ...] = ()
    logs = None
    if sound and base.bound is not None and new.bound is not None:
        logs = (base.bound.log10, new.bound.log10)
        if _same_architecture(base, new):
            layers = _layers(base, new)
        else:
            notes = (*notes, "architectures differ: their layers are not compared")
    return Comparison(
        clean(base.run, 60),
        clean(new.run, 60),
        integrity,
        unlike,
        notes,
        logs,
        _changes(base, new, proofs=sound),
        layers,
    )


def differences(base: Audit, new: Audit) -> tuple[str, ...]:
    """What makes the two answers to different questions, in words; empty if nothing does."""
    rows: list[tuple[str, Any, Any]] = [
        ("data set", base.dataset.name, new.dataset.name),
        ("number of images", len(base.samples.index), len(new.samples.index)),
        ("norm", tuple(map(spoken, sorted(base.norms))), tuple(map(spoken, sorted(new.norms)))),
        ("range of inputs", (base.threat.low, base.threat.high), (new.threat.low, new.threat.high)),
        ("input shape", base.model.input_shape, new.model.input_shape),
        ("classes", base.model.classes, new.model.classes),
        ("preprocessing, mean", base.model.mean, new.model.mean),
        ("preprocessing, std", base.model.std, new.model.std),
        ("arithmetic", base.arithmetic, new.arithmetic),
    ]
    said = [f"{what}: {_shown(one)}, then {_shown(two)}" for what, one, two in rows if one != two]
    if len(base.samples.index) == len(new.samples.index):
        said += _images(base, new)
    for norm in (norm for norm in base.norms if norm in new.norms):
        of = f" in {spoken(norm)}" if base.other_norms or new.other_norms else ""
        one, two = base.in_norm(norm), new.in_norm(norm)
        if _sizes(one) != _sizes(two):
            said.append(f"ε{of}: {_shown(one.threat.eps)}, then {_shown(two.threat.eps)}")
        said += [f"{each}{of}" for each in _attacks(one, two)]
    return tuple(said)


def _sizes(audit: Audit) -> list[float]:
    return [eps_value(eps) for eps in audit.threat.eps]


def _images(base: Audit, new: Audit) -> list[str]:
    """Whether as many images are the same ones."""
    one, two = base.dataset, new.dataset
    if base.samples.index != new.samples.index:
        return [f"images: other ones were drawn (seed {one.seed}, then {two.seed})"]
    if one.sha256 != two.sha256:
        return [f"images: sha256 {digest(one.sha256)}, then {digest(two.sha256)}"]
    return ["labels of the same images"] if base.samples.label != new.samples.label else []


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return clean(", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value) or "none", 60)
    return clean(value, 60)


def _attacks(base: Audit, new: Audit) -> list[str]:
    """Attacks that only one had, had with other settings, or did not finish."""
    one, two = ({record.name: record for record in audit.attacks} for audit in (base, new))
    said = []
    for names, where in ((one.keys() - two.keys(), "first"), (two.keys() - one.keys(), "second")):
        if names:
            said.append(f"attacks only in the {where}: {clean(', '.join(sorted(names)), 100)}")
    for name in sorted(one.keys() & two.keys()):
        if one[name].settings != two[name].settings:
            said.append(
                f"settings of {clean(name, 40)}: {clean(one[name].settings, 60)}, then {clean(two[name].settings, 60)}"
            )
    for audit, where in ((base, "first"), (new, "second")):
        if unfinished(audit):
            said.append(f"attacks unfinished in the {where}: {clean(', '.join(unfinished(audit)), 100)}")
    return said


def _integrity(audit: Audit) -> str:
    """As its numbers say, or as the file says if that is worse."""
    return integrity_of(audit) if audit.verdict.integrity == "SOUND" else audit.verdict.integrity


def _notes(base: Audit, new: Audit, integrity: tuple[str, str]) -> tuple[str, ...]:
    """What may differ between two audits that can be compared."""
    said = []
    for audit, verdict in zip((base, new), integrity, strict=True):
        if verdict != "SOUND":
            said.append(f"{clean(audit.run, 60)} is {verdict}: nothing that rests on certificates is compared")
    if base.model.name != new.model.name:
        said.append(f"network {clean(base.model.name, 40)} → {clean(new.model.name, 40)}")
    same = base.model.weights_sha256 == new.model.weights_sha256
    said.append("same weights" if same else "weights differ")
    if base.dataset.seed != new.dataset.seed:
        said.append(f"seed {base.dataset.seed} → {new.dataset.seed}: attacks start elsewhere")
    for name in EFFORT:
        one, two = recorded(base.config, name), recorded(new.config, name)
        if one != two:
            said.append(f"{name} {clean(one, 40)} → {clean(two, 40)}: another effort at {EFFORT[name]}")
    local = [audit.samples.method.count("local") for audit in (base, new)]
    if local[0] != local[1]:
        said.append(f"radii by affine forms around the image: of {local[0]} → {local[1]} images")
    for name in sorted(base.environment.keys() | new.environment.keys()):
        one, two = base.environment.get(name), new.environment.get(name)
        if one != two:
            said.append(f"{clean(name, 40)} {clean(one, 40)} → {clean(two, 40)}")
    return tuple(said)


def _changes(base: Audit, new: Audit, proofs: bool) -> tuple[Change, ...]:
    found = [_change("clean", "", base, new, Samples.correct)]
    for norm in (norm for norm in base.norms if norm in new.norms):
        each = _changes_in_norm(base.in_norm(norm), new.in_norm(norm), proofs)
        found += [replace(change, norm=norm) for change in each] if base.other_norms or new.other_norms else each
    return tuple(found)


def _changes_in_norm(base: Audit, new: Audit, proofs: bool) -> list[Change]:
    """Of the rates at the budgets that both have."""
    found = []
    later = {eps_value(eps) for eps in new.threat.eps}
    for eps in (eps for eps in base.threat.eps if eps_value(eps) in later):
        size = eps_value(eps)
        if proofs:
            found.append(_change("certified", eps, base, new, partial(Samples.certified, eps=size)))
        if any(base.samples.attacked) and any(new.samples.attacked):
            found.append(_change("empirical", eps, base, new, partial(Samples.not_broken, eps=size)))
    return found


def _change(
    measure: Literal["clean", "certified", "empirical"],
    eps: str,
    base: Audit,
    new: Audit,
    holds: Callable[[Samples], Sequence[bool]],
) -> Change:
    second = {index: row for row, index in enumerate(new.samples.index)}
    before, after = holds(base.samples), holds(new.samples)
    pairs = [
        (index, before[row], after[second[index]]) for row, index in enumerate(base.samples.index) if index in second
    ]
    if not pairs:
        raise CompareError("the two results have no image in common")
    gained = tuple(index for index, one, two in pairs if two and not one)
    lost = tuple(index for index, one, two in pairs if one and not two)
    low, high = paired_interval(len(gained), len(lost), len(pairs))
    counts = sum(one for _, one, _ in pairs), sum(two for _, _, two in pairs)
    return Change(measure, eps, *counts, len(pairs), gained, lost, low, high, mcnemar(len(gained), len(lost)))


def _same_architecture(base: Audit, new: Audit) -> bool:
    steps = [[(line.step, line.op) for line in audit.bound.layers] for audit in (base, new) if audit.bound]
    return steps[0] == steps[1]


def _layers(base: Audit, new: Audit) -> tuple[LayerChange, ...]:
    """Layers of two ledgers of one architecture, those that moved most first."""
    assert base.bound is not None
    assert new.bound is not None
    found = []
    for line, later in zip(base.bound.layers, new.bound.layers, strict=True):
        one, two = line.upper.value, later.upper.value
        if 0 < one < math.inf and 0 < two < math.inf:
            ratio = math.log10(two) - math.log10(one)
            if abs(ratio) > MOVED:
                found.append(LayerChange(clean(line.name, 60), one, two, ratio))
    return tuple(sorted(found, key=lambda layer: -abs(layer.log10_ratio))[:MOST_LAYERS])


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p of McNemar's exact test: of so many images that changed, each was as likely to gain as to lose.

    In whole numbers until the last division. McNemar 1947; the exact form is a sign test.
    """
    changed = gained + lost
    tail = ways = 1
    for k in range(min(gained, lost)):
        ways = ways * (changed - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**changed)


def paired_interval(gained: int, lost: int, total: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same `total` images.

    Wald's, after one image is added to those that gained and one to those that lost (Bonett & Price 2012), so that it
    covers the truth even where few images change.
    """
    plus, minus = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    half = _NORMAL * math.sqrt((plus + minus - (plus - minus) ** 2) / (total + 2))
    return max(-1.0, plus - minus - half), min(1.0, plus - minus + half)


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """For JSON."""
    plain = {"kind": KIND, "comparable": not comparison.unlike, **dataclasses.asdict(comparison)}
    plain["changes"] = [
        {**dataclasses.asdict(change), "difference": change.difference, "word": change.word}
        for change in comparison.changes
    ]
    if comparison.log10_bound is not None:  # -inf is the bound of a constant
        plain["log10_bound"] = [value if math.isfinite(value) else None for value in comparison.log10_bound]
    return plain
