"""The view model of the head of the page: title, facts, the three verdicts, conditions, tiles, the bar of images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lipaudit.results import metrics
from lipaudit.results.audit import Audit, Gate
from lipaudit.results.formatting import NONE, clean, count, digest, interval, number, percent, plural, told_apart
from lipaudit.results.threat import eps_text, eps_value

RANDOM = "Random weights: this network was never trained. Nothing on this page describes a trained model."
QUESTION = (
    "Can a small change of the pixels alter the answer of this network? For each image, a proof says up to which size "
    "of change that is ruled out"
)
TESTED = ", and attacks look for the smallest change that does it. A proof and an attack must never disagree."
UNTESTED = ". No attack was run to test the proofs."
PARTIAL = "Incomplete run: something that was asked for was not done. The checks say what."


LAMPS = {
    "SOUND": ("good", "No contradiction was found between proofs and attacks."),
    "INVALID": ("bad", "A proof is contradicted. Every certificate is withdrawn."),
    "UNPROVED": ("open", "Part of the network has no proof, so there is no certificate."),
    "vacuous": ("warn", "True, but for fewer than 1% of the correct images the proof reaches {step}."),
    "weak": ("warn", "For fewer than half of the correct images the proof reaches {step}."),
    "substantial": ("good", "For at least half of the correct images the proof reaches {step}."),
    "passed": ("good", "Every required condition is met."),
    "failed": ("bad", "A required condition is not met."),
    "not set": ("open", "No condition was required."),
    "cannot be judged": ("open", "The conditions need something that this audit does not have."),
}
"""What each state of a lamp means, and the look it has."""
UNCHALLENGED = "Nothing contradicts a proof, but no attack was run that might."


@dataclass(frozen=True)
class Part:
    """One part of the bar; `start` and `width` in percent of it."""

    css: str
    name: str
    start: str
    width: str
    share: str
    count: str


def divide(audit: Audit, eps: str) -> tuple[Part, ...]:
    """The four parts, which add up to all images; empty if the result holds no rate at this budget."""
    total = audit.clean.total
    proved, unbroken = metrics.rate_at(audit.proved, eps), metrics.rate_at(audit.unbroken, eps)
    if not total or not (proved or unbroken):
        return ()
    low = proved.count if proved else 0
    high = unbroken.count if unbroken else audit.clean.count
    sizes = (
        ("proved", "proved", low),
        ("unknown", "not known", high - low),
        ("broken", "broken by an attack", audit.clean.count - high),
        ("wrong", "wrong as they are", total - audit.clean.count),
    )
    parts, start = [], 0
    for css, name, size in sizes:
        at, width = f"{100 * start / total:.2f}", f"{100 * size / total:.2f}"
        parts.append(Part(css, name, at, width, percent(size / total), count(size)))
        start += size
    if not unbroken:
        parts[2] = Part("broken", "broken: no attack was run", "0", "0", "untested", "–")
    if not proved:
        gone = "withdrawn" if audit.verdict.integrity == "INVALID" else "nothing"
        parts[0] = Part("proved", "proved", "0", "0", gone, "–")
    return tuple(parts)


@dataclass(frozen=True)
class Tile:
    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Top:
    run: str
    title: str
    facts: tuple[tuple[str, str], ...]
    question: str
    alarms: tuple[str, ...]
    look: str
    headline: str
    sentences: tuple[str, ...]
    lamps: tuple[Lamp, ...]
    gates: tuple[Condition, ...]
    tiles: tuple[Tile, ...]
    eps: str
    feel: str
    parts: tuple[Part, ...]


def title(audit: Audit) -> str:
    data = " ".join(filter(None, (clean(audit.dataset.name, 40), clean(audit.dataset.split, 20))))
    return f"{clean(audit.model.name, 60)} on {data}"


def top(audit: Audit) -> Top:
    """Title, verdict, lamps, tiles and the bar at the first budget."""
    eps = audit.threat.eps[0] if audit.threat.eps else ""
    return Top(
        clean(audit.run, 60),
        title(audit),
        _facts(audit),
        QUESTION + (TESTED if metrics.was_attacked(audit) else UNTESTED),
        _alarms(audit),
        look(audit, eps),
        clean(audit.verdict.headline, 300),
        tuple(clean(sentence, 600) for sentence in audit.verdict.sentences),
        lamps(audit),
        conditions(audit),
        _tiles(audit, eps),
        eps_text(eps) if eps else "",
        _feel(audit, eps),
        divide(audit, eps),
    )


def _facts(audit: Audit) -> tuple[tuple[str, str], ...]:
    d, m, version = audit.dataset, audit.model, audit.environment.get("lipaudit")
    data = " ".join(filter(None, (clean(d.name, 40), clean(d.split, 20))))
    when = clean(audit.started, 40).replace("T", " ", 1)[:16]
    return (
        ("model", f"{clean(m.name, 60)}, {count(m.parameters)} parameters, weights sha256 {digest(m.weights_sha256)}"),
        ("data", f"{plural(d.samples, 'image')} of {count(d.available)} from {data}, seed {d.seed}"),
        ("changes", f"measured by {audit.threat.norm} norm, {clean(audit.threat.units, 40)}"),
        ("made", f"{when} UTC by lipaudit {clean(version or '', 20)}".rstrip()),
    )


def _alarms(audit: Audit) -> tuple[str, ...]:
    """What a reader must not overlook, above the verdict."""
    said = []
    if audit.model.weights == "random":
        said.append(RANDOM)
    if audit.status == "partial":
        said.append(PARTIAL)
    return tuple(said)


def _tiles(audit: Audit, eps: str) -> tuple[Tile, ...]:
    clean_tile = Tile(
        percent(audit.clean.value), "clean accuracy", f"95% CI {interval(audit.clean.low, audit.clean.high)}"
    )
    return clean_tile, _robust_tile(audit, eps), _radius_tile(audit), _contradiction_tile(audit)


def _robust_tile(audit: Audit, eps: str) -> Tile:
    proved, unbroken = metrics.rate_at(audit.proved, eps), metrics.rate_at(audit.unbroken, eps)
    label = f"robust accuracy at ε = {clean(eps, 20)}"
    upper = percent(unbroken.value if unbroken else audit.clean.value)
    if not metrics.correct_rows(audit):
        return Tile("none", label, "no image is answered correctly")
    if proved:
        return Tile(f"{percent(proved.value)} – {upper}", label, "proved – unbroken" if unbroken else "proved – clean")
    why = {"INVALID": "proof withdrawn", "UNPROVED": "nothing is proved"}.get(audit.verdict.integrity, "not computed")
    return Tile(f"at most {upper}", label, f"{why}; {'unbroken' if unbroken else 'clean accuracy'}")


def _radius_tile(audit: Audit) -> Tile:
    if audit.verdict.integrity == "INVALID":
        return Tile("withheld", "median certified radius", "certificates are contradicted")
    if audit.verdict.integrity == "UNPROVED":
        return Tile("none", "median certified radius", "no certificate was issued")
    radius = metrics.median_radius(audit)
    local = metrics.local_rows(audit)
    where = f", {local} by affine forms around the image" if local else ""
    return Tile(number(radius), "median certified radius", f"L2, of correctly classified images{where}")


def _contradiction_tile(audit: Audit) -> Tile:
    label = "certificates contradicted by an attack"
    if audit.verdict.integrity == "UNPROVED":
        return Tile("none", label, "no certificate was issued")
    tested = sum(audit.samples.attacked)
    if not tested:
        return Tile("not tested", label, "no image was attacked")
    return Tile(f"{count(len(metrics.contradictions(audit)))} / {count(tested)}", label, "attacked images")


def _feel(audit: Audit, eps: str) -> str:
    """What a budget means to the eye: spread evenly over all values of an image."""
    values = math.prod(audit.model.input_shape)
    span = audit.threat.high - audit.threat.low
    if not eps or values < 1 or not 0 < span < math.inf:
        return ""
    levels = number(255 * eps_value(eps) / span / math.sqrt(values))
    spread = f"spread evenly over all {count(values)} values of an image"
    return f"{spread}, {levels} of 255 brightness levels each"


@dataclass(frozen=True)
class Lamp:
    name: str
    state: str
    look: str
    means: str


@dataclass(frozen=True)
class Condition:
    """A gate, and what came of it."""

    expression: str
    compared: str
    least: str
    level: str
    look: str
    state: str
    why: str


def look(audit: Audit, eps: str) -> str:
    """The colour of the verdict: the good one only where something is proved at the budget that the page speaks of."""
    if audit.verdict.integrity != "SOUND":
        return LAMPS[audit.verdict.integrity][0]
    proved = metrics.rate_at(audit.proved, eps)
    if audit.verdict.gate == "failed" or (proved and not proved.count):
        return "warn"
    return LAMPS[audit.verdict.strength or "weak"][0]


def lamps(audit: Audit) -> tuple[Lamp, ...]:
    v = audit.verdict
    withheld = ("withheld", "open", "Nothing is said about the size of certificates that do not hold.")
    strength = (v.strength, *LAMPS[v.strength]) if v.strength else withheld
    if audit.verdict.strength and not metrics.correct_rows(audit):
        strength = (*strength[:2], "No image is answered correctly, so there is nothing to prove.")
    step = audit.dataset.smallest_change_text
    if audit.dataset.levels:
        step += ", the smallest change that such an image can have"
    look, means = LAMPS[v.integrity]
    if v.integrity == "SOUND" and not metrics.was_attacked(audit):
        means = UNCHALLENGED
    return (
        Lamp("Integrity", v.integrity.lower(), look, means),
        Lamp("Strength", *strength[:2], strength[2].format(step=step)),
        Lamp("Gate", v.gate, LAMPS[v.gate][0], _met(audit) or LAMPS[v.gate][1]),
    )


def _met(audit: Audit) -> str:
    """How many conditions are met, where the result lists them."""
    states = [gate.state for gate in audit.gates]
    if not states:
        return ""
    if audit.verdict.integrity == "INVALID":
        return "Withheld: certificates are contradicted."
    unjudged = states.count("cannot be judged")
    said = f"{states.count('passed')} of {plural(len(states), 'condition')} met"
    return f"{said}, {unjudged} cannot be judged." if unjudged else f"{said}."


def conditions(audit: Audit) -> tuple[Condition, ...]:
    """The gates of the result; under a contradiction none is shown as judged."""
    if audit.verdict.integrity == "INVALID":
        return tuple(_condition(replace(gate, state="cannot be judged", value=None, why="")) for gate in audit.gates)
    return tuple(_condition(gate) for gate in audit.gates)


def _condition(gate: Gate) -> Condition:
    """The numbers with the digits that it takes to see which one is larger."""
    compared, least = (NONE, f"{gate.least:g}") if gate.value is None else told_apart(gate.value, gate.least)
    on = "the value itself" if gate.on == "value" else "the 95% lower limit"
    look = LAMPS[gate.state][0]
    if gate.level == "warn" and gate.state == "failed":
        look = "warn"
    level = "fails the audit" if gate.level == "error" else "is a warning"
    said = compared if gate.value is None else f"{compared} ({on})"
    return Condition(clean(gate.expression, 80), said, least, level, look, gate.state, clean(gate.why, 200))
