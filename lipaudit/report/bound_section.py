"""The view model of the bound: Fig. 3 and the table of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipaudit.report.figures import waterfall
from lipaudit.report.figures.charts import Figure, Path
from lipaudit.report.figures.layer_groups import Stage, stages
from lipaudit.report.figures.scales import Scale, log10
from lipaudit.results import metrics
from lipaudit.results.audit import Audit
from lipaudit.results.bounds import ROUNDED, LayerBound, NetworkBound
from lipaudit.results.formatting import NONE, clean, count, decades, factor, number, number_from_log10, percent, plural

MOST_LAYERS = 60
LARGEST_SHOWN = 10
MOST_LISTED = 100
"""Layers: all with their strips up to 60; above, the 10 largest, and 100 more without strips."""

NO_BOUND = "There is no network bound: part of the network has no proved bound. The checks name the layers."
WITHDRAWN = (
    "The bound is withdrawn, and with it the figure of how it comes about: an attack or a measurement "
    "contradicts it or something that follows from it. The ledger is kept below, struck out, to look for the "
    "fault in."
)
ZERO_BRANCHES = (
    "{stages} of this network {hold} a branch that is zero, such as one that ends in a batch norm with weights 0: it "
    "adds nothing to the bound."
)
CONSTANT = "The network is constant: its Lipschitz bound is zero."
NOT_FINITE = "There is nothing to draw: the bound of a layer is not finite."


@dataclass(frozen=True)
class LayerRow:
    name: str
    op: str
    bound: str
    method: str
    below: str
    slack: str
    strip: tuple[Path, ...]


CLAIMED = {
    "confirmed": ("pass", "The proved bound is at most the claimed constant: no two inputs are stretched more."),
    "open": ("warn", "The proved bound is above the claim, and no slope that was found is. Neither settles it."),
    "refuted": ("fail", "Between two inputs the logits move farther than the claim allows, rounding taken off."),
    "withheld": ("not run", "The bound is withdrawn, so nothing is said of the claim."),
}
"""What each standing of a claim means, and the state of a check that it looks like."""
REVERIFY = (
    "Both inputs are in the result file (claim.steepest.inputs), with their logits and the proved rounding error: "
    "evaluate them with the network in float64 to see for yourself."
)


@dataclass(frozen=True)
class Claimed:
    """What is claimed of the Lipschitz constant, and what became of it."""

    said: str
    word: str
    look: str
    value: str
    means: str
    more: str


@dataclass(frozen=True)
class Bounds:
    value: str
    withdrawn: bool
    note: str
    figure: Figure | None
    stages: tuple[tuple[str, str, str, str], ...]
    """Fig. 3 in numbers: name, bound so far, factor, share."""
    reality: str
    pairs: str
    layers: tuple[LayerRow, ...]
    more_layers: tuple[LayerRow, ...]
    layer_note: str
    claims: tuple[tuple[str, str], ...]
    claimed: Claimed | None


def bounds(audit: Audit) -> Bounds:
    """Fig. 3 and the layer table."""
    bound = audit.bound
    if bound is None:
        return Bounds(NONE, False, NO_BOUND, None, (), "", "", (), (), "", (), claim(audit))
    withdrawn = audit.verdict.integrity == "INVALID"
    rows = stages(bound)
    drawn = not withdrawn and rows and not waterfall.all_nearly_one(rows)
    shown, more, note = _layers(bound)
    return Bounds(
        number_from_log10(bound.log10),
        withdrawn,
        _bound_note(bound, withdrawn),
        waterfall.figure(bound, rows, audit.slope) if drawn else None,
        tuple(_stage(stage, bound) for stage in rows) if drawn else (),
        "" if withdrawn else _reality(audit),
        "" if withdrawn else _pairs(bound),
        shown,
        more,
        note,
        _claims(bound),
        claim(audit),
    )


def claim(audit: Audit) -> Claimed | None:
    """The claimed constant held against bound and slope; None where nobody claims one."""
    if audit.claim is None:
        return None
    word: str = audit.claim.standing(audit.bound)
    if audit.verdict.integrity == "INVALID" and word != "refuted":
        word = "withheld"
    look, means = CLAIMED[word]
    said = f"Lipschitz constant {audit.claim.constant:.9g}, claimed by {clean(audit.claim.source, 80)}:"
    if word == "confirmed" and audit.bound is not None and audit.bound.value > audit.claim.constant:
        means = f"The proved bound is above the claim by a factor below {1 + ROUNDED:g}, which counts as rounding."
    if audit.bound is not None and audit.bound.domain is not None and word == "confirmed":
        low, high = audit.bound.domain
        means = f"{means} This is proved between inputs with all values in [{low:g}, {high:g}]."
    value = "" if word == "withheld" else metrics.held_against(audit)
    return Claimed(said, word, look.replace(" ", "-"), value, means, REVERIFY if word == "refuted" else "")


def _stage(stage: Stage, bound: NetworkBound) -> tuple[str, str, str, str]:
    so_far = number_from_log10(stage.after)
    return clean(stage.name, 40), so_far, factor(stage.gain), waterfall.share(stage, bound)


def _bound_note(bound: NetworkBound, withdrawn: bool) -> str:
    """What to say where there is no Fig. 3, or a branch in it is zero."""
    if withdrawn:
        return WITHDRAWN
    rows = stages(bound)
    if not rows:
        return CONSTANT if bound.log10 == -math.inf else NOT_FINITE
    if waterfall.all_nearly_one(rows):
        most = max(rows, key=lambda stage: stage.gain)
        return (
            f"There is nothing to draw: every stage is ×1.00, the largest, {clean(most.name, 40)}, "
            f"{factor(most.gain)}. Such a network cannot stretch a change on its way to the logits."
        )
    idle = sum(stage.idle for stage in rows)
    return ZERO_BRANCHES.format(stages=plural(idle, "stage"), hold="holds" if idle == 1 else "hold") if idle else ""


def _reality(audit: Audit) -> str:
    """The bounds against the slopes that were seen."""
    slope, share = audit.slope, audit.slope_share
    if not slope or not slope > 0:
        return ""
    seen = f"The steepest slope of a difference of two logits that was measured is {number(slope)}."
    if not share or not 0 < share < math.inf:
        return seen
    if share > 0.1:
        return f"{seen} The slope that comes closest to its bound reaches {percent(share)} of it."
    gap = f"{decades(-log10(share))} below it"
    return f"{seen} The slope that comes closest to its bound stays {gap}: so much of the bound may be slack."


def _pairs(bound: NetworkBound) -> str:
    low, high = bound.smallest_pairwise, bound.largest_pairwise
    if not 0 < high < math.inf:
        return ""
    return f"Between the logits of two classes it is {number(low)} to {number(high)}, depending on the pair."


def _layers(bound: NetworkBound) -> tuple[tuple[LayerRow, ...], tuple[LayerRow, ...], str]:
    """Rows to show, rows to fold away, and what is left out."""
    telling = [entry for entry in bound.layers if entry.upper.value != 1.0 or entry.lower is not None]
    scale = waterfall.strip_scale(telling)
    said = []
    if quiet := len(bound.layers) - len(telling):
        steps = plural(quiet, "further step has", "further steps have")
        said.append(f"{steps} factor 1 and no row here: sums, activations, reshapes.")
    if len(telling) <= MOST_LAYERS:
        return _layer_rows(telling, scale), (), " ".join(said)
    largest = sorted(telling, key=lambda entry: -entry.upper.value)[:LARGEST_SHOWN]
    rest = [entry for entry in telling if entry not in largest]
    if len(rest) > MOST_LISTED:
        said.append(f"{count(len(rest) - MOST_LISTED)} more layers are in the result file.")
    return _layer_rows(largest, scale), _layer_rows(rest[:MOST_LISTED], None), " ".join(said)


def _layer_rows(layers: Sequence[LayerBound], scale: Scale | None) -> tuple[LayerRow, ...]:
    return tuple(
        LayerRow(
            layer_name(entry.name),
            clean(entry.op.replace("_legit_no_training", ""), 24),
            number(entry.upper.value),
            clean(entry.upper.method, 24),
            number(entry.lower) if entry.lower else NONE,
            _slack(entry),
            waterfall.strip(entry, scale) if scale else (),
        )
        for entry in layers
    )


def layer_name(name: str) -> str:
    """`layer1.0.conv1 + layer1.0.bn1` -> `layer1.0.conv1 + bn1`."""
    first, *others = clean(name, 120).split(" + ")
    parent = first.rpartition(".")[0] + "."
    short = [other.removeprefix(parent) for other in others]
    grand = parent[:-1].rpartition(".")[0] + "."
    # A bare number says nothing: keep the module it is in.
    short = [other.removeprefix(grand) if s.isdigit() else s for s, other in zip(short, others, strict=True)]
    return clean(" + ".join((first, *short)), 60)


def _slack(entry: LayerBound) -> str:
    """By how much the bound can exceed the truth at most."""
    if entry.kind == "exact":
        return "exact"
    return f"≤ {factor(log10(entry.upper.value) - log10(entry.lower))}" if entry.lower else NONE


def _claims(bound: NetworkBound) -> tuple[tuple[str, str], ...]:
    """Each method with what it claims, at the first layer that it was used for."""
    said: dict[str, str] = {}
    for entry in bound.layers:
        if entry.upper.because:
            said.setdefault(clean(entry.upper.method, 40), clean(entry.upper.because, 300))
    return tuple(said.items())
