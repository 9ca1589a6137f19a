"""Results of shards, made into one: `lipaudit merge`, and the last step of every engine.

Note [What a merged result is]
    Shard i of N audits rows i - 1, i - 1 + N, ... of the samples. Everything about one sample that does not depend on
    its neighbours is bit for bit that of a run over all of them, on the same hardware with the same threads: bounds,
    predictions, margins, global radii. Attacks work on batches, drawn and seeded as a run of the shard alone does it,
    and the search for a local radius begins where the last one ended: distances and local radii are those of the shards
    run alone, wherever and in whatever order they run, and may differ in digits from those of an unsharded run. Slopes
    are taken at some points of each shard; the largest counts. Rates, intervals, findings, verdict and thumbnails are
    computed again from the rows, and times are summed.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from lipaudit.errors import BadThreat, ReportError
from lipaudit.results.audit import (
    ArithmeticResult,
    AttackRecord,
    Audit,
    Done,
    Estimate,
    Part,
    Samples,
    Shard,
    Skip,
    Thumbnail,
    in_shard,
)
from lipaudit.results.bounds import Agreement, Claim, NetworkBound
from lipaudit.results.intervals import rate
from lipaudit.results.metrics import refuted
from lipaudit.settings import SHARDS, named, options_of, recorded
from lipaudit.verdict.consistency import check_rows, digest_of, log10
from lipaudit.verdict.gates import conditions
from lipaudit.verdict.verdict import conclude

WITHIN = ("lipaudit", "torch", "torchvision", "timm", "adversarial-robustness-toolbox", "pyautoattack", "numpy")
"""Versions that all shards have to share."""
SHARED = sorted(named("question", "proof", "attack"))
"""Settings that all shards have to share. Where they ran may differ: the weights and images themselves are compared."""
SPLIT = frozenset(name for name, one in options_of().items() if one.group == SHARDS)
"""Settings that say how a run was split; `Audit.parts` does so for a merged result."""
THUMBNAILS = 8
HARDWARE = 1e-6
"""Bounds of one layer by one method, in float64, differ by a smaller part on different hardware: what iterations stop
at and factorisations round is far below."""


def rows_of(shard: tuple[int, int], count: int) -> list[int]:
    """The rows of a shard. Raises `BadThreat` for one that cannot be."""
    number, of = shard
    if not 1 <= number <= of <= count:
        raise BadThreat(f"expected a shard from 1/{of} to {of}/{of}, of at most {count} samples, got {number}/{of}")
    return list(range(number - 1, count, of))


def merge(shards: Iterable[Audit], command: Sequence[str] = (), *, gates: Sequence[str] = ()) -> Audit:
    """One result out of those of all shards of a run, in any order. See Note [What a merged result is].

    It is held against `gates`, or those of the shards. Raises `ReportError` that names what is unlike, twice there, or
    missing.
    """
    audits = sorted(shards, key=lambda audit: (audit.shard.number if audit.shard else 0, audit.run))
    parts = _complete(audits)
    _alike(audits)
    first, *others = (_joined([audit.in_norm(norm) for audit in audits], parts) for norm in audits[0].norms)
    draft = replace(first, command=tuple(command) or first.command, other_norms=tuple(each.part() for each in others))
    return conclude(draft, conditions(gates or [gate.expression for gate in first.gates]))


def _joined(audits: Sequence[Audit], parts: Sequence[Shard]) -> Audit:
    """The shards as one audit in the norm that is in front."""
    first = audits[0]
    samples = _samples(audits)
    if len(set(samples.index)) < len(samples.index):
        raise ReportError("expected each image in one shard, got indices twice: these are not the shards of one run")
    whole = parts[0].whole.rows_sha256
    if whole and digest_of(samples.index, samples.label, samples.image) != whole:
        raise ReportError(
            "expected the images of the whole run, each in its place, got others (index, label or image of a row): "
            "these are not the shards of one run"
        )
    return replace(
        first,
        run="",
        started=min(audit.started for audit in audits),
        dataset=parts[0].whole,
        clean=rate("0", samples.correct()),
        bound=_bound(audits),
        slope=max((audit.slope for audit in audits if audit.slope is not None), default=None),
        slope_share=max((audit.slope_share for audit in audits if audit.slope_share is not None), default=None),
        rounding=max((audit.rounding for audit in audits if audit.rounding is not None), default=None),
        samples=samples,
        attacks=tuple(_record(audits, place) for place in range(len(first.attacks))),
        skipped=_skipped(audits),
        warnings=_warnings(audits),
        thumbnails=_thumbnails(audits, samples),
        timing=_summed(audit.timing for audit in audits),
        config=_unsplit(first.config),
        arithmetics=_arithmetics(audits),
        estimates=_estimates(audits),
        agreement=_agreement(audits),
        claim=_claim(audits),
        shard=None,
        parts=tuple(
            Part(a.run, a.started, s.number, s.of, len(a.samples.index), _where(a))
            for a, s in zip(audits, parts, strict=True)
        ),
    )


def _unsplit(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings but how the run was split."""
    kept = {name: value for name, value in config.items() if name not in SPLIT}
    return kept | ({"origin": _unsplit(kept["origin"])} if "origin" in kept else {})


def _complete(audits: Sequence[Audit]) -> list[Shard]:
    """The shards of the results: each of them once, all of one split."""
    parts = [audit.shard for audit in audits if audit.shard is not None]
    for audit in audits:
        if audit.shard is None:
            raise ReportError(f"expected results of shards (`lipaudit run --shard I/N`), got {audit.run}, a whole run")
    if not parts:
        raise ReportError("expected the results of all shards of a run, got none")
    splits = sorted({part.of for part in parts})
    if len(splits) > 1:
        raise ReportError(f"expected shards of one split, got shards of {' and of '.join(map(str, splits))}")
    of, numbers = splits[0], [part.number for part in parts]
    for number in sorted(set(numbers)):
        if numbers.count(number) > 1:
            runs = ", ".join(audit.run for audit in audits if audit.shard and audit.shard.number == number)
            raise ReportError(f"expected each shard once, got {number}/{of} {numbers.count(number)} times ({runs})")
    if missing := [f"{number}/{of}" for number in range(1, of + 1) if number not in numbers]:
        raise ReportError(f"expected all {of} shards, got {len(parts)}: {', '.join(missing)} missing")
    return parts


def _alike(audits: Sequence[Audit]) -> None:
    """Refuses shards of different audits, and says what differs."""

    def what(audit: Audit) -> dict[str, Any]:
        assert audit.shard is not None
        return {
            "schema": audit.schema,
            "norms": audit.norms,
            "model": audit.model,
            "data": audit.shard.whole,
            "threat": audit.threat,
            "arithmetic": audit.arithmetic,
            "arithmetics": [(arithmetic.arithmetic, arithmetic.headline) for arithmetic in audit.arithmetics],
            "gates": [gate.expression for gate in audit.gates],
            "attacks": [(record.name, record.library, record.settings) for record in audit.attacks],
            "estimates": [(estimate.name, estimate.library, estimate.settings) for estimate in audit.estimates],
            "settings": {name: recorded(audit.config, name) for name in SHARED},
            "versions": {name: audit.environment.get(name) for name in WITHIN},
        }

    for norm in audits[0].norms:
        expected = what(audits[0].in_norm(norm))
        for audit in audits[1:]:
            for name, value in what(audit.in_norm(norm) if norm in audit.norms else audit).items():
                if value != expected[name]:
                    told = _detail(value, expected[name])
                    raise ReportError(f"expected shards of one audit, got another {name} in {audit.run}{told}")
    for audit in audits:
        try:
            check_rows(audit)
        except ReportError as error:
            raise ReportError(f"{audit.run}: {error}") from None
    for norm in audits[0].norms:
        _same_bounds([view for view in (audit.in_norm(norm) for audit in audits) if view.bound is not None])


def _same_bounds(audits: Sequence[Audit]) -> None:
    """Refuses bounds that differ by more than hardware explains: the weights, the method and the versions are equal."""
    for audit in audits[1:]:
        one, two = audits[0].bound, audit.bound
        assert one is not None
        assert two is not None
        pairs = [("the network", one.log10, two.log10)]
        pairs += [
            (a.name, log10(a.upper.value), log10(b.upper.value)) for a, b in zip(one.layers, two.layers, strict=False)
        ]
        rows = zip(itertools.chain(*one.pairwise), itertools.chain(*two.pairwise), strict=False)
        pairs += [("a pair of classes", log10(a), log10(b)) for a, b in rows]
        for what, first, second in pairs:
            if first != second and not abs(first - second) <= HARDWARE / math.log(10):
                raise ReportError(
                    f"expected bounds that differ by a part of {HARDWARE:g} at most, as on other hardware, got those "
                    f"of {what} in {audits[0].run} and {audit.run} {abs(first - second):.3g} orders of magnitude apart"
                )


def _detail(value: Any, expected: Any) -> str:
    """Which field or key it is."""
    if hasattr(value, "__dataclass_fields__"):
        names = [f.name for f in fields(value) if getattr(value, f.name) != getattr(expected, f.name)]
    elif isinstance(value, dict):
        names = [name for name in {**expected, **value} if value.get(name) != expected.get(name)]
    else:
        return ""
    return f": {', '.join(names)}"


def _interleaved(columns: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Rows of shards back in the order of the whole: one of each shard in turn."""
    gap = object()
    turns = itertools.zip_longest(*columns, fillvalue=gap)
    return tuple(value for turn in turns for value in turn if value is not gap)


def _samples(audits: Sequence[Audit]) -> Samples:
    names = [field.name for field in fields(Samples)]
    return Samples(**{name: _interleaved([getattr(audit.samples, name) for audit in audits]) for name in names})


def _bound(audits: Sequence[Audit]) -> NetworkBound | None:
    """The largest, or one that is refuted: it was that of its shard's radii. None where a shard has none."""
    bounds = [audit.bound for audit in audits if audit.bound is not None]
    if len(bounds) < len(audits):
        return None
    return max(bounds, key=lambda bound: (bool(refuted(bound)), bound.log10, len(bound.pairwise)))


def _record(audits: Sequence[Audit], place: int) -> AttackRecord:
    """What one attack did in all shards."""
    records = [audit.attacks[place] for audit in audits]
    name = in_shard(records[0].name, audits[0].norms[0])
    distances = [d for audit in audits if audit.shard for d in audit.shard.distances.get(name, ())]
    states = [record.status for record in records]
    status: Done = "failed" if "failed" in states else "done" if "done" in states else "not run"
    reasons = dict.fromkeys(record.why for record in records if record.why)
    if status == "done" and any(record.attacked for record in records):
        # That nothing was left to attack in one shard is no remark about the whole.
        reasons = dict.fromkeys(
            record.why for record in records if record.why and (record.attacked or record.unfinished)
        )
    return replace(
        records[0],
        attacked=sum(record.attacked for record in records),
        broken=sum(record.broken for record in records),
        closest=sum(record.closest for record in records),
        median_distance=statistics.median(distances) if distances else None,
        rejected=sum(record.rejected for record in records),
        seconds=sum(record.seconds for record in records),
        status=status,
        why="; ".join(reasons),
        flags=tuple(dict.fromkeys(flag for record in records for flag in record.flags)),
        checked=tuple(dict.fromkeys(check for record in records for check in record.checked)),
    )


def _arithmetics(audits: Sequence[Audit]) -> tuple[ArithmeticResult, ...]:
    """Radii of all shards; 0 for the images of a shard in which none is certified, where another has some."""
    found = []
    for same in zip(*(audit.arithmetics for audit in audits), strict=True):
        lengths = [len(audit.samples.index) for audit in audits]
        columns = [p.radius if p.is_certified else (0.0,) * n for p, n in zip(same, lengths, strict=True)]
        if any(arithmetic.certified for arithmetic in same):
            found.append(replace(same[0], radius=_interleaved(columns), why_not=""))
        else:
            found.append(same[0])
    return tuple(found)


def _estimates(audits: Sequence[Audit]) -> tuple[Estimate, ...]:
    each = zip(*(audit.estimates for audit in audits), strict=True)
    return tuple(
        replace(same[0], values=_interleaved([e.values for e in same]), seconds=sum(e.seconds for e in same))
        for same in each
    )


def _agreement(audits: Sequence[Audit]) -> Agreement | None:
    """Of all rows; None where a shard has none."""
    found = [audit.agreement for audit in audits]
    each = [one for one in found if one is not None]
    if len(each) < len(found):
        return None
    return Agreement(
        sum(one.images for one in each),
        sum(one.examples for one in each),
        tuple(
            replace(difference, sample=difference.sample * len(each) + number)
            for number, one in enumerate(each)
            for difference in one.differences
        ),
    )


def _claim(audits: Sequence[Audit]) -> Claim | None:
    """With the steepest slope of all shards. The claim is one of the settings or of the network, the same in all."""
    of, first = len(audits), audits[0].claim
    if any((audit.claim is None) != (first is None) for audit in audits):
        raise ReportError("expected the same claimed constant in all shards, got one in some of them")
    each = [(number, audit.claim) for number, audit in enumerate(audits) if audit.claim is not None]
    if len({(claim.constant, claim.source) for _, claim in each}) > 1:
        raise ReportError("expected the same claimed constant in all shards, got several")
    if not each:
        return None
    number, steepest = max(each, key=lambda entry: entry[1].slope)
    if steepest.steepest is None:
        return steepest
    secant = replace(steepest.steepest, sample=steepest.steepest.sample * of + number)
    return replace(steepest, steepest=secant)


def _skipped(audits: Sequence[Audit]) -> tuple[Skip, ...]:
    """What each shard left out; once where all say the same."""
    each = [audit.skipped for audit in audits]
    if all(skips == each[0] for skips in each):
        return each[0]
    named = ((audit.shard, skip) for audit, skips in zip(audits, each, strict=True) for skip in skips)
    return tuple(replace(skip, what=f"shard {s.number}/{s.of}: {skip.what}") for s, skip in named if s is not None)


def _warnings(audits: Sequence[Audit]) -> tuple[str, ...]:
    found = list(dict.fromkeys(warning for audit in audits for warning in audit.warnings))
    # Of many classes, result files keep no matrix.
    values = {audit.bound.pairwise for audit in audits if audit.bound and audit.bound.pairwise}
    if len(values) > 1:
        found.append(
            "the network bounds of the shards differ in digits, as on different hardware: the largest is shown"
        )
    return tuple(found)


def _thumbnails(audits: Sequence[Audit], samples: Samples) -> tuple[Thumbnail, ...]:
    """Those of the closest adversarial examples of all shards."""
    of = len(audits)
    every = [
        replace(shown, sample=shown.sample * of + number) for number, a in enumerate(audits) for shown in a.thumbnails
    ]
    return tuple(sorted(every, key=lambda shown: (samples.distance[shown.sample] or 0.0, shown.sample))[:THUMBNAILS])


def _summed(timings: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for timing in timings:
        for stage, seconds in timing.items():
            total[stage] = round(total.get(stage, 0.0) + seconds, 3)
    return total


def _where(audit: Audit) -> str:
    """Platform, device and threads of a shard."""
    known = audit.environment
    return f"{known.get('platform', '')}, {known.get('device', '')}, {known.get('threads', '')} threads"
