"""An audit from end to end: capture -> bound -> compose -> certify -> cross-check -> judge."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lipaudit.certification.certificates import Certificates, certify_with, under, with_local_radii
from lipaudit.certification.executed import Promise, lost, sentence_of
from lipaudit.certification.held import Held
from lipaudit.certification.inputs import as_pixels, check_inputs, check_labels, within
from lipaudit.certification.local_search import BUDGET
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.crosscheck import Evidence, cross_check, estimates_of, executed_distances, largest_slope, plan
from lipaudit.files.journal import Journal, Parts
from lipaudit.graph.wrappers import as_module, device_of, domain_of, on_device, without_range
from lipaudit.loading.user_data import with_labels
from lipaudit.progress import Progress, Silent
from lipaudit.results.audit import Audit, DataFacts, ModelFacts, Samples, Shard, Skip, Verdict
from lipaudit.results.intervals import rate
from lipaudit.results.threat import Threat, box_of, eps_value, threat_of
from lipaudit.runs import provenance
from lipaudit.runs.planning import batch_for
from lipaudit.runs.shards import rows_of
from lipaudit.runs.thumbnails import thumbnails
from lipaudit.verdict.gates import conditions
from lipaudit.verdict.verdict import conclude

NO_CLIP_VALUES = "the ART classifier has no clip_values: its inputs were taken to lie in [0, 1]"
Local = Literal["auto", "on", "thorough", "off"]
BEFORE = "before an interruption"
"""In `Audit.timing`: seconds of what an earlier process finished. The other entries are those of the last process."""
_PENDING = Verdict("UNPROVED", None, "not set", "", ())


def audit(
    model: nn.Module | Any,
    inputs: torch.Tensor | np.ndarray | DataLoader[Any] | Dataset[Any],
    labels: torch.Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    eps: str | float | Sequence[str | float] | None = None,
    attacks: str | Sequence[str] | None = "standard",
    norms: str = "all",
    promise: Promise = "R",
    local: Local = "auto",
    local_samples: int | None = None,
    seed: int = 0,
    device: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    domain: tuple[float, float] | None = None,
    time_limit: float | None = None,
    batch_size: int | None = None,
    model_facts: ModelFacts | None = None,
    data_facts: DataFacts | None = None,
    index: Sequence[int] | None = None,
    command: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    progress: Progress | None = None,
    journal: str | Path | None = None,
    gates: str | Sequence[str] = (),
    shard: tuple[int, int] | None = None,
    smoothing: float | None = None,
    clever: bool = False,
) -> Audit:
    """Audit a classifier on labelled inputs: bounds, certificates, attacks, verdict.

    `model` is an nn.Module in eval mode, an ART `PyTorchClassifier` or a model name; `inputs` (n, ...) are raw, with
    entries in `domain`: [0, 1], or the `clip_values` of an ART classifier. Radii, distances and `eps`, the L2 budgets
    ("36/255" or numbers; by default `threat.DEFAULT_EPS`), are in units of the inputs. `labels` are integers or one-hot
    rows; a DataLoader or Dataset of pairs as `inputs` brings its own. `attacks` is a preset or a list of names, "none"
    for none; `norms` is "all" (every method that costs little), "best" or "tight" (see norms/methods.py);
    `local` radii are looked for around as many images as a minute allows ("auto"), around all ("on"), around all with
    all neurons taken together at last, for many times as long ("thorough"), or not at all ("off"); of at most
    `local_samples` images.

    Certificates are about the exact function of the weights ("R"), about the network as executed in its own dtype
    ("F"), and in float64 ("D"); `promise` says which of them the radii, rates and gates of the result are about
    (`Audit.promises` has all three).

    `journal` is a folder that keeps what is finished, batch by batch: the same call with the same folder goes on where
    an interrupted one was, whatever ended it, and finds the same. It is the caller's to delete. `shard` (3, 8) audits
    the third of eight parts of the samples; `lipaudit.merge` makes one audit of all of them. `smoothing`, the sigma of
    randomized smoothing in units of the inputs, and `clever` add estimates, which no certificate rests on.
    `gates` are conditions such as "certified_accuracy@36/255>=0.30" (see `lipaudit.verdict.gates`), judged at the end.
    Raises `BadThreat` for inputs or budgets that make no sense, `ConfigError` for a gate that is none, `ResumeError`
    for the journal of another audit, and the errors of `bound`.
    """
    wanted = conditions(gates)
    progress = progress or Silent()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    clock = _Clock()
    inputs, labels = with_labels(inputs, labels)
    module = on_device(as_module(model, mean=mean, std=std), device)
    box = box_of(domain_of(model, domain))
    points = within(check_inputs(inputs), box)
    threat = threat_of(eps, box)
    attacks = "standard" if attacks is None else attacks
    if domain is None and without_range(model):
        warnings = (*warnings, NO_CLIP_VALUES)
    bounds = None if journal is None else Parts(journal, provenance.of_code())
    composition = compose(module, tuple(points.shape[1:]), domain=box, method=norms, progress=progress, journal=bounds)
    answers = check_labels(labels, len(points), len(composition.network.pairwise))
    index, images = provenance.positions(index, len(points)), provenance.images_of(points)
    whole = data_facts = provenance.of_rows(
        data_facts or provenance.of_data(points, answers, seed, box), index, answers, images
    )
    if shard is not None:
        rows = rows_of(shard, len(points))
        points, answers, index = points[rows], [answers[k] for k in rows], [index[k] for k in rows]
        images = tuple(images[k] for k in rows)
        data_facts = replace(whole, sha256=provenance.of_data(points, answers, seed, box).sha256)
        data_facts = provenance.of_rows(data_facts, index, answers, images)
    settings = {
        "eps": threat.eps,
        "domain": box,
        "attacks": [entry.name for entry in plan(attacks)],
        "norms": norms,
        "promise": promise,
        "local": local,
        "local_samples": local_samples,
        "seed": seed,
        "device": device_of(module).type,
        "time_limit": time_limit,
        "batch_size": batch_size,
    }
    held = None
    if journal is not None:
        held = Journal(journal, provenance.of_audit(composition, points, answers, settings), started)
        held.restored += 0.0 if bounds is None else bounds.restored
    clock.mark("layer bounds")
    against = Held(composition)
    certificates = certify_with(composition, points, answers, promises=("F", "D"), progress=progress, held=against)
    limit = lost(certificates.others)
    clock.mark("certificates")
    certificates, skipped = _locally(certificates, composition, points, local, local_samples, progress, held)
    certificates = under(certificates, promise)
    clock.mark("local radii")
    evidence = _attack(
        module,
        against,
        points,
        answers,
        certificates,
        attacks=attacks,
        threat=threat,
        seed=seed,
        batch_size=batch_size,
        deadline=None if time_limit is None else clock.began + time_limit,
        progress=progress,
        journal=held,
    )
    against.examples += evidence.looked
    against.differences += evidence.differences
    found = [(w.sample, w.distance) for w in evidence.witnesses]
    rows = [row for row, _ in found]
    against.at_examples(rows, evidence.perturbed[rows], [distance for _, distance in found], limit)
    against.once_more(points, limit)
    clock.mark("attacks")
    slope = share = None
    if evidence.no_gradient:
        skipped += (Skip("slopes", evidence.no_gradient, asked=False),)
        skipped += (Skip("CLEVER", evidence.no_gradient),) if clever else ()
    else:
        slope, share = _slopes(module, against, points, answers, evidence, threat)
    clock.mark("slopes")
    worth = [radius > 0 for radius in under(certificates, "F").radius]  # elsewhere nothing is claimed
    executed = executed_distances(module, points.to(device_of(module)), answers, evidence, worth)
    clock.mark("as executed")
    samples = replace(_samples(index, answers, certificates, evidence, executed), image=images)
    estimates = estimates_of(
        module,
        points.to(device_of(module)),
        samples,
        threat,
        smoothing,
        clever and not evidence.no_gradient,
        seed=seed,
        progress=progress,
    )
    clock.mark("estimates")
    more = {"samples": whole.samples, "mean": mean, "std": std, "smoothing": smoothing, "clever": clever}
    more["gate"] = [condition.expression for condition in wanted]
    draft = Audit(
        run="" if held is None else held.run,
        started=started if held is None else held.started,
        command=tuple(command),
        status="complete",
        exit_code=0,
        verdict=_PENDING,
        model=model_facts or provenance.of_model(model, module, points, composition),
        dataset=data_facts,
        threat=threat,
        clean=rate("0", samples.correct()),
        proved=(),
        unbroken=(),
        bound=composition.network,
        slope=slope,
        slope_share=share,
        rounding=certificates.rounding,
        promise=sentence_of(promise, composition.graph.dtype),
        promises=provenance.of_promises(certificates, composition.graph.dtype),
        samples=samples,
        attacks=evidence.records,
        findings=(),
        skipped=skipped,
        warnings=(*warnings, *evidence.flags, *filter(None, [held and held.failure])),
        thumbnails=thumbnails(as_pixels(points, box), as_pixels(evidence.perturbed, box), samples),
        timing=clock.seconds | ({BEFORE: round(held.restored, 3)} if held and held.restored else {}),
        environment=provenance.environment(device_of(module)),
        config=provenance.plain({**settings, **more, **(config or {})}),
        estimates=estimates,
        agreement=against.found(),
        shard=None if shard is None else Shard(*shard, whole, evidence.distances),
    )
    return conclude(draft, wanted)


def _locally(
    certificates: Certificates,
    composition: Composition,
    points: torch.Tensor,
    local: Local,
    most: int | None,
    progress: Progress,
    journal: Journal | None,
) -> tuple[Certificates, tuple[Skip, ...]]:
    """The certificates with local radii where there are larger ones, and why some images were left out."""
    if local == "off":
        return certificates, ()
    budget = BUDGET if local == "auto" else None
    certificates, found = with_local_radii(
        certificates,
        composition,
        points,
        budget=budget,
        most=most,
        together=local == "thorough",
        progress=progress,
        journal=journal,
    )
    if not found.why_not:
        return certificates, ()
    how = f"{found.tried} tried" if found.tried else "none"
    complete = local == "auto" or (most is not None and found.tried >= most)
    return certificates, (Skip(f"local radii: {how}", found.why_not, asked=not complete),)


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(now - self.last, 3)
        self.seconds["total"] = round(now - self.began, 3)
        self.last = now


def _attack(
    module: nn.Module,
    against: Held,
    points: torch.Tensor,
    answers: Sequence[int],
    certificates: Certificates,
    *,
    attacks: str | Sequence[str],
    threat: Threat,
    seed: int,
    batch_size: int | None,
    deadline: float | None,
    progress: Progress,
    journal: Journal | None,
) -> Evidence:
    device = device_of(module)
    like = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return cross_check(
        module,
        points.to(device, like),
        torch.tensor(answers, device=device),
        attacks=attacks,
        eps=[eps_value(e) for e in threat.eps],
        radii=certificates.radius,
        judge=against.judge,
        hold=against.at_claims,
        low=threat.low,
        high=threat.high,
        seed=seed,
        deadline=deadline,
        progress=progress,
        journal=journal,
        batch_size=batch_size or batch_for(points[0].numel()),
    )


def _slopes(
    module: nn.Module,
    against: Held,
    points: torch.Tensor,
    answers: Sequence[int],
    evidence: Evidence,
    threat: Threat,
) -> tuple[float, float]:
    """The largest slope seen, and the largest share of its pairwise bound that a slope reached."""
    device, pairwise = device_of(module), against.composition.network.pairwise
    labels = torch.tensor(answers, device=device)
    found = [witness.sample for witness in evidence.witnesses]
    seen = torch.cat([points.to(device, torch.float64), evidence.perturbed[found].to(device)])
    slope = largest_slope(
        module,
        seen,
        torch.cat([labels, labels[found]]),
        judge=against.judge,
        low=threat.low,
        high=threat.high,
        against=pairwise,
    )
    shares = [
        value / pairwise[i][j] if pairwise[i][j] else float(value > 0) * 2 for (i, j), value in slope.pairs.items()
    ]
    return slope.value, max(shares)


def _samples(
    index: Sequence[int],
    answers: Sequence[int],
    certificates: Certificates,
    evidence: Evidence,
    executed: Sequence[float | None],
) -> Samples:
    witness = {w.sample: w for w in evidence.witnesses}
    rows = range(len(answers))
    return Samples(
        index=tuple(int(i) for i in index),
        label=tuple(answers),
        prediction=tuple(certificates.prediction.tolist()),
        margin=tuple(certificates.margin.tolist()),
        radius=tuple(certificates.radius.tolist()),
        distance=tuple(witness[k].distance if k in witness else None for k in rows),
        adversarial_prediction=tuple(witness[k].prediction if k in witness else None for k in rows),
        attack=tuple(witness[k].attack if k in witness else None for k in rows),
        attacked=evidence.attacked,
        method=tuple(row.method for row in certificates.rows),
        executed_distance=tuple(executed),
    )
