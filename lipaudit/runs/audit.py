"""An audit from end to end: capture -> bound -> compose -> certify -> cross-check -> judge.

`audit` names the stages, one function each. What all of them know is in one frozen `Task`.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lipaudit.certification.certificates import Certificates, as_asked, certify_in, under
from lipaudit.certification.claimed import claim_of, proved_secant
from lipaudit.certification.executed import lost
from lipaudit.certification.held import Held, Limit
from lipaudit.certification.inputs import as_pixels, check_inputs, check_labels, within
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.certification.norm_bounds import bound_in
from lipaudit.crosscheck import (
    Evidence,
    cross_check,
    estimates_of,
    executed_distances,
    largest_slope,
    plan,
    steepest_pair,
)
from lipaudit.errors import BadThreat
from lipaudit.files.journal import Journal, Parts
from lipaudit.graph.wrappers import Prepared, device_of
from lipaudit.loading.user_data import with_labels
from lipaudit.progress import Progress, Silent
from lipaudit.results.audit import Audit, DataFacts, Estimate, Samples, Shard, Skip, Verdict, in_shard
from lipaudit.results.bounds import Claim
from lipaudit.results.intervals import rate
from lipaudit.results.threat import Norm, Threat, box_of, eps_value, norm_of, spoken, threats_of, with_norms
from lipaudit.runs import provenance
from lipaudit.runs.planning import batch_for
from lipaudit.runs.provenance import Source
from lipaudit.runs.shards import rows_of
from lipaudit.runs.thumbnails import thumbnails
from lipaudit.settings import Settings
from lipaudit.verdict.gates import conditions, refuse_unmeasured
from lipaudit.verdict.verdict import conclude

NO_CLIP_VALUES = "the ART classifier has no clip_values: its inputs were taken to lie in [0, 1]"
BEFORE = "before an interruption"
"""In `Audit.timing`: seconds of what an earlier process finished. The other entries are those of the last process."""
_PENDING = Verdict("UNPROVED", None, "not set", "", ())


class Clock:
    """Seconds per stage, those of all norms together."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self.last, 3)
        self.seconds["total"] = round(now - self.began, 3)
        self.last = now


@dataclass(frozen=True)
class Rows:
    """The images that are audited, one per row: all that were given, or those of a shard."""

    points: torch.Tensor
    answers: list[int]
    index: list[int]
    image: tuple[str, ...]
    """The digest of each."""
    facts: DataFacts
    whole: DataFacts
    """Of all that were given."""


@dataclass(frozen=True)
class Task:
    """What all stages of one audit know."""

    settings: Settings
    source: Source
    network: Prepared
    rows: Rows
    threats: tuple[Threat, ...]
    """One a norm."""
    composition: Composition
    against: Held
    """The model held against its graph, and the float64 network that attacks are judged by."""
    journal: Journal | None
    progress: Progress
    clock: Clock
    claim: Claim | None
    """What is claimed of the Lipschitz constant, as yet without a slope."""

    @property
    def box(self) -> tuple[float, float]:
        return self.threats[0].low, self.threats[0].high

    @property
    def points(self) -> torch.Tensor:
        """The images where the network is."""
        return self.rows.points.to(device_of(self.network.module))


@dataclass(frozen=True)
class Slopes:
    """The largest slope seen, and the largest share of its pairwise bound that a slope reached."""

    value: float | None
    share: float | None
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Found:
    """What the stages of one norm came to."""

    threat: Threat
    certificates: Certificates
    evidence: Evidence
    slopes: Slopes
    samples: Samples
    estimates: tuple[Estimate, ...]
    claim: Claim | None
    skipped: tuple[Skip, ...]


def audit(
    network: Prepared,
    inputs: torch.Tensor | np.ndarray | DataLoader[Any] | Dataset[Any],
    labels: Any,
    settings: Settings,
    source: Source | None = None,
    *,
    progress: Progress | None = None,
    journal: str | Path | None = None,
) -> Audit:
    """`lipaudit.audit` of a network that is prepared: of the settings, `mean` and `std` are in it already."""
    wanted = conditions(settings.gates)
    refuse_unmeasured(wanted, settings.measured)
    task = _begin(network, inputs, labels, settings, source or Source(), progress or Silent(), journal)
    task.clock.mark("layer bounds")
    certificates = _certify(task)
    task.clock.mark("certificates")
    limit = lost(next(iter(certificates.values())).others)
    found = [_found(task, threat, certificates[norm_of(threat.norm)], limit) for threat in task.threats]
    task.against.once_more(task.rows.points, limit)
    task.clock.mark("as executed")
    config = _config(task, [condition.expression for condition in wanted])
    return conclude(_draft(task, found, config), wanted)


def _found(task: Task, threat: Threat, certificates: Certificates, limit: Limit | None) -> Found:
    """All that is found in one norm."""
    certificates, skipped = _locally(task, certificates)
    task.clock.mark("local radii")
    evidence = _attack(task, threat, certificates, limit)
    task.clock.mark("attacks")
    slopes = _slopes(task, certificates.norm, evidence)
    task.clock.mark("slopes")
    claim = _against_claim(task, evidence) if certificates.norm == "l2" else None
    samples = _samples(task, certificates, evidence)
    task.clock.mark("as executed")
    estimates = _estimates(task, threat, samples, evidence)
    task.clock.mark("estimates")
    skipped = (*skipped, *slopes.skipped)
    return Found(threat, certificates, evidence, slopes, samples, estimates, claim, skipped)


def _begin(
    network: Prepared,
    inputs: Any,
    labels: Any,
    settings: Settings,
    source: Source,
    progress: Progress,
    journal: str | Path | None,
) -> Task:
    """Reads the images, bounds the network, opens the journal."""
    clock = Clock()
    claim = claim_of(network.module, settings.claimed_lipschitz)
    inputs, labels = with_labels(inputs, labels)
    box = box_of(network.domain)
    points = within(check_inputs(inputs), box)
    threats = threats_of(settings.eps, settings.measured, box, points.shape[1:])
    _refuse_in_l2(settings)
    if network.unstated:
        source = replace(source, warnings=(*source.warnings, NO_CLIP_VALUES))
    code = "" if journal is None else provenance.of_code()
    bounds = None if journal is None else Parts(journal, code)
    shape = tuple(points.shape[1:])
    composition = compose(network.module, shape, domain=box, progress=progress, journal=bounds, **settings.bounding)
    answers = check_labels(labels, len(points), len(composition.network.pairwise))
    rows = _rows(points, answers, settings, source, box)
    kept = None
    if journal is not None:
        key = settings.key() | {"eps": with_norms(threats), "domain": box, "device": device_of(network.module).type}
        key["attacks"] = list(dict.fromkeys(e.name for norm in settings.measured for e in plan(_words(settings), norm)))
        audited = provenance.of_audit(composition, rows.facts.rows_sha256, provenance.plain(key), code)
        kept = Journal(journal, audited, clock.started)
        kept.restored += 0.0 if bounds is None else bounds.restored
    return Task(settings, source, network, rows, threats, composition, Held(composition), kept, progress, clock, claim)


def _refuse_in_l2(settings: Settings) -> None:
    """CLEVER, randomized smoothing and claims of a constant are about L2."""
    asked = {
        "smoothing": settings.smoothing,
        "clever": settings.clever,
        "claimed_lipschitz": settings.claimed_lipschitz,
    }
    for name, value in asked.items():
        if value not in (None, False) and "l2" not in settings.measured:
            raise BadThreat(f"{name} is about L2: add l2 to --norm, or leave {name} out")


def _words(settings: Settings) -> tuple[str, ...]:
    """The attacks that are asked for: names and presets."""
    attacks = "standard" if settings.attacks is None else settings.attacks
    return (attacks,) if isinstance(attacks, str) else tuple(attacks)


def _rows(
    points: torch.Tensor, answers: list[int], settings: Settings, source: Source, box: tuple[float, float]
) -> Rows:
    """The images, and what the report says of them; those of one shard, if there is one."""
    index, images = provenance.positions(source.index, len(points)), provenance.images_of(points)
    facts = source.data_facts or provenance.of_data(points, answers, settings.seed, box)
    whole = provenance.of_rows(facts, index, answers, images)
    if settings.shard is None:
        return Rows(points, answers, index, images, whole, whole)
    rows = rows_of(settings.shard, len(points))
    points, answers, index = points[rows], [answers[k] for k in rows], [index[k] for k in rows]
    images = tuple(images[k] for k in rows)
    facts = replace(whole, sha256=provenance.sha256_of_data(points, answers))
    return Rows(points, answers, index, images, provenance.of_rows(facts, index, answers, images), whole)


def _certify(task: Task) -> dict[Norm, Certificates]:
    """Radii from the Lipschitz bounds, in every norm and arithmetic."""
    return certify_in(
        task.composition,
        task.rows.points,
        task.rows.answers,
        task.settings.measured,
        arithmetics=("native", "float64"),
        progress=task.progress,
        held=task.against,
    )


def _locally(task: Task, certificates: Certificates) -> tuple[Certificates, tuple[Skip, ...]]:
    """The certificates that are asked for, with local radii where these are larger; why some images were left out."""
    local, most = task.settings.local, task.settings.local_samples
    certificates, found = as_asked(
        certificates, task.composition, task.rows.points, task.settings, progress=task.progress, journal=task.journal
    )
    if found is None or not found.why_not:
        return certificates, ()
    how = f"{found.tried} tried" if found.tried else "none"
    complete = local == "auto" or (most is not None and found.tried >= most)
    what = "local radii" if task.settings.measured == ("l2",) else f"local radii in {spoken(certificates.norm)}"
    return certificates, (Skip(f"{what}: {how}", found.why_not, asked=not complete),)


def _attack(task: Task, threat: Threat, certificates: Certificates, limit: Limit | None) -> Evidence:
    """What attacks find; the model is held against its graph at every adversarial example."""
    settings, module, against = task.settings, task.network.module, task.against
    like = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    evidence = cross_check(
        module,
        task.points.to(like),
        torch.tensor(task.rows.answers, device=device_of(module)),
        attacks=_words(settings),
        eps=[eps_value(e) for e in threat.eps],
        radii=certificates.radius,
        norm=certificates.norm,
        judge=against.judge,
        hold=against.at_claims,
        low=threat.low,
        high=threat.high,
        seed=settings.seed,
        deadline=None if settings.time_limit is None else task.clock.began + settings.time_limit,
        progress=task.progress,
        journal=task.journal,
        batch_size=settings.batch_size or batch_for(task.rows.points[0].numel()),
    )
    against.examples += evidence.looked
    against.differences += evidence.differences
    rows = [witness.sample for witness in evidence.witnesses]
    reach = [witness.distance for witness in evidence.witnesses]
    if certificates.norm != "l2":  # in which what rounding loses is bounded
        moved = evidence.perturbed[rows].cpu() - task.rows.points[rows].double().cpu()
        reach = moved.flatten(1).norm(dim=1).mul(1 + 1e-9).tolist()
    against.at_examples(rows, evidence.perturbed[rows], reach, limit)
    return evidence


def _slopes(task: Task, norm: Norm, evidence: Evidence) -> Slopes:
    """The steepest slopes at the images and the adversarial examples, held against the pairwise bounds."""
    if evidence.no_gradient:
        skipped = [Skip("slopes", evidence.no_gradient, asked=False)]
        skipped += [Skip("CLEVER", evidence.no_gradient)] if task.settings.clever and norm == "l2" else []
        return Slopes(None, None, tuple(skipped))
    pairwise, device = bound_in(task.composition, norm).pairwise, device_of(task.network.module)
    labels = torch.tensor(task.rows.answers, device=device)
    found = [witness.sample for witness in evidence.witnesses]
    slope = largest_slope(
        task.network.module,
        torch.cat([task.points.to(torch.float64), evidence.perturbed[found].to(device)]),
        torch.cat([labels, labels[found]]),
        norm=norm,
        judge=task.against.judge,
        low=task.box[0],
        high=task.box[1],
        against=pairwise,
    )
    shares = [
        value / pairwise[i][j] if pairwise[i][j] else float(value > 0) * 2 for (i, j), value in slope.pairs.items()
    ]
    return Slopes(slope.value, max(shares))


def _against_claim(task: Task, evidence: Evidence) -> Claim | None:
    """The claim with the steepest slope that could be proved, from the images and the adversarial examples."""
    if task.claim is None or evidence.no_gradient:
        return task.claim
    found = [witness.sample for witness in evidence.witnesses]
    rows = [*range(len(task.points)), *found]
    points = torch.cat([task.points.to(torch.float64), evidence.perturbed[found].to(task.points.device)])
    row, one, two = steepest_pair(
        task.network.module,
        points,
        judge=task.against.judge,
        low=task.box[0],
        high=task.box[1],
        seed=task.settings.seed,
    )
    secant = proved_secant(task.composition, rows[row], one, two, task.claim.constant)
    task.clock.mark("claimed constant")
    return replace(task.claim, steepest=secant)


def _samples(task: Task, certificates: Certificates, evidence: Evidence) -> Samples:
    """One row per image: its certificate and what attacks found, also of the model as executed."""
    worth = [radius > 0 for radius in under(certificates, "native").radius]  # elsewhere nothing is claimed
    executed = executed_distances(task.network.module, task.points, task.rows.answers, evidence, worth)
    witness = {w.sample: w for w in evidence.witnesses}
    rows = range(len(task.rows.answers))
    return Samples(
        index=tuple(int(i) for i in task.rows.index),
        label=tuple(task.rows.answers),
        prediction=tuple(certificates.prediction.tolist()),
        margin=tuple(certificates.margin.tolist()),
        radius=tuple(certificates.radius.tolist()),
        distance=tuple(witness[k].distance if k in witness else None for k in rows),
        adversarial_prediction=tuple(witness[k].prediction if k in witness else None for k in rows),
        attack=tuple(witness[k].attack if k in witness else None for k in rows),
        attacked=evidence.attacked,
        method=tuple(row.method for row in certificates.rows),
        native_distance=tuple(executed),
        image=task.rows.image,
    )


def _estimates(task: Task, threat: Threat, samples: Samples, evidence: Evidence) -> tuple[Estimate, ...]:
    """What is asked for besides, on which no certificate rests: radii in L2."""
    settings = task.settings
    if threat.norm != "L2":
        return ()
    return estimates_of(
        task.network.module,
        task.points,
        samples,
        threat,
        settings.smoothing,
        settings.clever and not evidence.no_gradient,
        seed=settings.seed,
        progress=task.progress,
    )


def _config(task: Task, gates: list[str]) -> dict[str, Any]:
    """Every setting as it was in the end."""
    settled = {
        "eps": with_norms(task.threats),
        "domain": task.box,
        "attacks": _words(task.settings),
        "device": device_of(task.network.module).type,
        "samples": task.rows.whole.samples,
        "gates": gates,
    }
    return provenance.plain({**task.settings.config(), **settled}) | dict(task.source.config)


def _draft(task: Task, found: Sequence[Found], config: dict[str, Any]) -> Audit:
    """All that was found; rates, checks, gates and the verdict are added by `conclude`."""
    first, *others = (_in_norm(task, one, config) for one in found)
    journal = task.journal
    failures = (journal.failure,) if journal and journal.failure else ()
    flags = dict.fromkeys(flag for one in found for flag in one.evidence.flags)
    shard = task.settings.shard
    distances = {
        in_shard(name, one.certificates.norm): each for one in found for name, each in one.evidence.distances.items()
    }
    return replace(
        first,
        skipped=tuple(dict.fromkeys(skip for one in found for skip in one.skipped)),
        warnings=(*task.source.warnings, *flags, *failures),
        shard=None if shard is None else Shard(*shard, task.rows.whole, distances),
        other_norms=tuple(audit.part() for audit in others),
    )


def _in_norm(task: Task, found: Found, config: dict[str, Any]) -> Audit:
    """The draft as if there were no other norm."""
    journal, rows, certificates = task.journal, task.rows, found.certificates
    kept = {BEFORE: round(journal.restored, 3)} if journal and journal.restored else {}
    perturbed = as_pixels(found.evidence.perturbed, task.box)
    return Audit(
        run="" if journal is None else journal.run,
        started=task.clock.started if journal is None else journal.started,
        command=tuple(task.source.command),
        status="complete",
        exit_code=0,
        verdict=_PENDING,
        model=task.source.model_facts or provenance.of_model(task.network, task.composition),
        dataset=rows.facts,
        threat=found.threat,
        clean=rate("0", found.samples.correct()),
        certified=(),
        empirical=(),
        bound=bound_in(task.composition, certificates.norm),
        slope=found.slopes.value,
        slope_share=found.slopes.share,
        rounding=certificates.rounding,
        arithmetic="",
        arithmetics=provenance.of_arithmetics(certificates),
        samples=found.samples,
        attacks=found.evidence.records,
        findings=(),
        thumbnails=thumbnails(as_pixels(rows.points, task.box), perturbed, found.samples),
        timing=task.clock.seconds | kept,
        environment=provenance.environment(device_of(task.network.module)),
        config=config,
        estimates=found.estimates,
        claim=found.claim,
        agreement=task.against.found(),
    )
