"""The view models of the end of the page: limits, provenance and the words used."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import NONE, clean, count, duration, number, plural
from lipaudit.results.threat import Norm, spoken

MOST_FACTS = 60

ATTACKS = "Empirical robust accuracy is an upper bound: a stronger attack may break more images, none can break fewer."
NO_ATTACKS = "None was run, so nothing tested the certificates of this report."
NETWORK = (
    "In evaluation mode, with these weights and this preprocessing. Retraining, quantising, pruning or "
    "fusing layers voids every certificate."
)
SLACK = (
    "If no attack broke an image, that does not show that it is robust. If a bound is loose, that does not show that "
    "the network is fragile."
)
GRID = "Adversarial images are real-valued tensors and need not lie on the 8-bit grid of image files."
DOMAIN = (
    "This network multiplies or divides numbers that both depend on the image, so its bound needs a range: it holds "
    "between inputs with all values in [{low}, {high}]. Changed images stay in it. Beyond it nothing is certified."
)
NO_GRID = "These inputs are not on the 8-bit grid, so {step} is a mark of scale here and no smallest change."

MEASURED: dict[Norm, str] = {
    "l2": "Root of the sum of the squared changes of all pixel values, each between 0 and 1.",
    "linf": "The largest change of any pixel value, each between 0 and 1.",
    "l1": "Sum of the changes of all pixel values, each between 0 and 1.",
}


@dataclass(frozen=True)
class Limit:
    head: str
    text: str


@dataclass(frozen=True)
class Fact:
    name: str
    value: str


@dataclass(frozen=True)
class Closing:
    limits: tuple[Limit, ...]
    command: str
    facts: tuple[Fact, ...]
    timing: tuple[Fact, ...]
    environment: tuple[Fact, ...]
    config: tuple[Fact, ...]
    schema: str
    norms: tuple[tuple[str, str], ...]
    """What each norm of the audit measures."""


def closing(audit: Audit) -> Closing:
    """What the audit cannot say, and how to do it again."""
    return Closing(
        limits(audit),
        clean(shlex.join(audit.command), 1000),
        _facts(audit),
        tuple(Fact(clean(stage, 40), duration(seconds)) for stage, seconds in audit.timing.items()),
        _entries(audit.environment),
        _entries(audit.config),
        clean(audit.schema, 40),
        tuple((spoken(norm), MEASURED[norm]) for norm in audit.norms),
    )


def limits(audit: Audit) -> tuple[Limit, ...]:
    """What every report must say about itself, with this run's numbers."""
    attacked = metrics.was_attacked(audit)
    arithmetic = clean(audit.arithmetic, 600) or "The result does not say which arithmetic it assumes."
    said = [
        ("One kind of change.", _threat(audit)),
        ("One sample.", _sample(audit)),
        ("Attacks err on one side.", ATTACKS if attacked else NO_ATTACKS),
        ("Arithmetic.", arithmetic),
        ("This network only.", NETWORK),
        ("No attack found does not mean robust.", SLACK),
    ]
    if attacked:
        said.append(("Not image files.", GRID))
    if audit.bound is not None and audit.bound.domain is not None:
        low, high = (f"{value:g}" for value in audit.bound.domain)
        said.append(("Inputs in range only.", DOMAIN.format(low=low, high=high)))
    if not audit.dataset.levels:
        said.append(("No smallest change.", NO_GRID.format(step=audit.dataset.smallest_change_text)))
    return tuple(Limit(head, text) for head, text in said)


def _threat(audit: Audit) -> str:
    norms = " and ".join(map(spoken, audit.norms))
    unseen = "" if "linf" in audit.norms else "L∞, "
    return (
        f"Certificates and attacks here concern {norms} changes of single images, {clean(audit.threat.units, 40)}. "
        f"Nothing is said about {unseen}patches, rotation, blur, weather or unseen kinds of data."
    )


def _sample(audit: Audit) -> str:
    d = audit.dataset
    return (
        f"{plural(d.samples, 'image')} of {count(d.available)} from {_data_name(audit)}, drawn with seed {d.seed}. "
        "Intervals are 95% Wilson intervals; they cover the drawing of the sample and nothing else."
    )


def _data_name(audit: Audit) -> str:
    return " ".join(filter(None, (clean(audit.dataset.name, 40), clean(audit.dataset.split, 20))))


def _shards(audit: Audit) -> str:
    """Of which runs the result was made, or which part of one it is."""
    if audit.shard is not None:
        return f"{audit.shard.number} of {audit.shard.of}: this result is about a part of the images"
    shown = [f"{clean(part.run, 40)} ({part.samples}, on {clean(part.where, 80)})" for part in audit.parts[:MOST_FACTS]]
    return f"{plural(len(audit.parts), 'run')}, times summed: {'; '.join(shown)}" if shown else ""


def _facts(audit: Audit) -> tuple[Fact, ...]:
    m, d = audit.model, audit.dataset
    shape = " × ".join(str(side) for side in m.input_shape)
    file = f"{clean(m.weights_file, 80)}, {_sha256(m.weights_file_sha256)}" if m.weights_file else ""
    rows = (
        ("run", f"{clean(audit.run, 60)}, started {clean(audit.started, 40)}"),
        ("shards", _shards(audit)),
        ("status", f"{audit.status}, exit code {audit.exit_code}"),
        ("network", f"{clean(m.name, 60)}: {clean(m.architecture, 120)}"),
        ("source", clean(m.source, 300)),
        ("size", f"{count(m.parameters)} parameters, {clean(m.dtype, 20)}"),
        ("input and output", f"{shape} values in, {plural(m.classes, 'class', 'classes')} out"),
        ("weights", f"{m.weights}, tensors {_sha256(m.weights_sha256)}"),
        ("weights file", file),
        ("licence", clean(m.licence, 120)),
        ("normalisation", _normalisation(m.mean, m.std)),
        ("rounding", _rounding(audit.rounding)),
        ("data", f"{_data_name(audit)}: {clean(d.source, 300)}"),
        ("images", f"{count(d.samples)} of {count(d.available)}, seed {d.seed}, {_sha256(d.sha256)}"),
    )
    return tuple(Fact(name, value) for name, value in rows if value)


def _sha256(digest: str) -> str:
    return f"sha256 {clean(digest, 80) or NONE}"


def _normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    if not std:
        return "none put in front of the network"
    pair = [" ".join(number(value) for value in values[:8]) for values in (mean, std)]
    return f"mean {pair[0]}, std {pair[1]}; inside the bound"


def _rounding(rounding: float | None) -> str:
    return "" if rounding is None else f"logits within {number(rounding)} of the exact ones; taken off every radius"


def _entries(settings: dict[str, Any]) -> tuple[Fact, ...]:
    return tuple(Fact(clean(key, 40), _value(value)) for key, value in list(settings.items())[:MOST_FACTS])


def _value(value: Any) -> str:
    if isinstance(value, str):
        return clean(value, 300)
    if isinstance(value, dict) and value:
        return clean(" · ".join(f"{key} {_value(item)}" for key, item in value.items()), 400)
    return clean(json.dumps(value, ensure_ascii=False), 300)
