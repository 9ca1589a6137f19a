"""Attacks of AutoAttack (Croce & Hein, ICML 2020), as packaged by pyautoattack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyautoattack import AutoAttack, checks
from pyautoattack.autopgd_base import L1_projection
from torch import Tensor

from lipaudit.crosscheck.registry import AUTOATTACK, OWN, Batch, Passes, attack
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.crosscheck.verification import lengths
from lipaudit.results.formatting import plural
from lipaudit.results.threat import NORMS, Norm, spoken

APGD_STEPS = 100
FAB_STEPS, FAB_TARGETS = 100, 9
QUICK_STEPS, QUICK_TARGETS = 10, 5
RESTARTS = 5
SQUARE_QUERIES, MANY_QUERIES = 1000, 5000
SLIDE_STEPS, SLIDE_SHARE = 100, 100
BALLS = 3
"""In which APGD starts in L1, one after the other; each start is a pass. Elsewhere it starts in one."""
CHECKS = 8
"""Forward passes of AutoAttack's reliability checks, made on every batch."""


def _suite(network: UnitBox, name: str, batch: Batch) -> AutoAttack:
    # A fresh one per batch: it keeps state between runs, and its check for dynamic defences counts globally.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    eps = 1.0 if batch.budget is None else float(batch.budget[0])
    return AutoAttack(
        network,
        attacks=[name],
        version="custom",
        norm=spoken(batch.norm),
        eps=eps,
        device=network.device,
        seed=batch.seed,
    )


def _run(suite: AutoAttack, batch: Batch) -> Tensor:
    return suite.run_standard_evaluation(batch.inputs, batch.labels, batch_size=len(batch.inputs))[0]


def _targets(limit: int, classes: int) -> int:
    return min(limit, classes - 1)


def _radii(norm: Norm) -> str:
    """What AutoAttack's own versions do in L1: the first steps of APGD may leave the ball, ever less."""
    return ", in balls of 3, 2 and 1 times eps" if norm == "l1" else ""


def _apgd(name: str, loss: str, starts: int, claim: str, **more: Any) -> None:
    """An APGD from so many random starts."""

    def run(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
        suite = _suite(network, f"apgd-{loss}", batch)
        suite.apgd.n_restarts = starts
        suite.apgd.use_largereps = batch.norm == "l1"
        suite.apgd.n_iter = APGD_STEPS
        yield _run(suite, batch)

    run.__doc__ = claim
    losses = {"ce": "cross-entropy", "dlr": "DLR loss"}
    attack(
        name,
        library=AUTOATTACK,
        aim="eps",
        norms=NORMS,
        settings=lambda _, norm: f"{APGD_STEPS} steps{_radii(norm)}, {plural(starts, 'random start')}, {losses[loss]}",
        passes=lambda _: Passes(
            forward=starts * (APGD_STEPS + BALLS) + CHECKS + 2, backward=starts * (APGD_STEPS + BALLS)
        ),
        **more,
    )(run)


_apgd(
    "apgd-ce",
    "ce",
    1,
    """Searches the ball of radius eps by projected gradient ascent on the cross-entropy, with adaptive steps.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", ICML 2020.
    """,
)
_apgd(
    "apgd-ce-5",
    "ce",
    RESTARTS,
    """Does as APGD-CE does, from five random starts.

    Source: Croce & Hein, ICML 2020.
    """,
)
_apgd(
    "apgd-dlr-5",
    "dlr",
    RESTARTS,
    """Searches the ball of radius eps by gradient ascent on a ratio of logit differences, from five random starts.

    Scaling the logits cannot hide the gradients of this loss. AutoAttack advises against it below four classes.
    Source: Croce & Hein, ICML 2020.
    """,
    least_classes=4,
    follows=True,
)


@attack(
    "apgd-t",
    library=AUTOATTACK,
    aim="eps",
    norms=NORMS,
    settings=lambda classes, norm: (
        f"{APGD_STEPS} steps{_radii(norm)}, {_targets(9, classes)} target classes, targeted DLR loss"
    ),
    passes=lambda classes: Passes(
        forward=_targets(9, classes) * (APGD_STEPS + BALLS + 1) + CHECKS + 4,
        backward=_targets(9, classes) * (APGD_STEPS + BALLS),
    ),
    least_classes=4,
    follows=True,
)
def apgd_t(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Searches the ball of radius eps by gradient ascent towards one class after the other.

    The loss is a ratio of logit differences, so scaling the logits cannot hide gradients. It needs four
    classes. Source: Croce & Hein, ICML 2020.
    """
    suite = _suite(network, "apgd-t", batch)
    suite.apgd_targeted.n_target_classes = _targets(9, network.classes)
    suite.apgd_targeted.use_largereps = batch.norm == "l1"
    yield _run(suite, batch)


def _tiles_fit(height: int, width: int, norm: Norm) -> bool:
    """Whether the first step of the library's Square attack stays within the image; in Linf it always does.

    It lays tiles of a fifth of the height from a margin on, as many each way as would fit without that margin; a tile
    that reaches beyond the last row or column breaks it, unless it is of a single pixel.
    """
    if norm == "linf":
        return True
    side = height // 5
    start = (height - side * 5) // 2
    return side == 1 or (side > 1 and (width < side or all(start + n // side * side <= n for n in (height, width))))


def _square(network: UnitBox, batch: Batch, queries: int) -> Tensor:
    suite = _suite(network, "square", batch)
    suite.square.n_queries = queries
    return _run(suite, batch)


@attack(
    "square",
    library=AUTOATTACK,
    aim="eps",
    norms=NORMS,
    settings=lambda *_: f"{SQUARE_QUERIES} queries",
    passes=lambda _: Passes(forward=SQUARE_QUERIES + CHECKS + 4, backward=0),
    least_side=1,
    fits=_tiles_fit,
)
def square(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Searches the ball of radius eps by random square patches, without gradients.

    What it breaks and gradients do not tells of masked gradients. Source: Andriushchenko et al., ECCV 2020.
    """
    yield _square(network, batch, SQUARE_QUERIES)


@attack(
    "square-5000",
    library=AUTOATTACK,
    aim="eps",
    norms=NORMS,
    settings=lambda *_: f"{MANY_QUERIES} queries",
    passes=lambda _: Passes(forward=MANY_QUERIES + CHECKS + 4, backward=0),
    least_side=1,
    fits=_tiles_fit,
)
def square_5000(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Does as Square does, with the five thousand queries of AutoAttack's own versions.

    Source: Andriushchenko et al., ECCV 2020.
    """
    yield _square(network, batch, MANY_QUERIES)


def _checks(suite: AutoAttack, network: UnitBox, batch: Batch) -> None:
    """AutoAttack's checks of the network, which only its own front end makes."""
    checks.check_randomized(network, batch.inputs, batch.labels, bs=len(batch.inputs), logger=suite.logger)
    checks.check_range_output(network, batch.inputs, logger=suite.logger)
    checks.check_dynamic(network, batch.inputs, logger=suite.logger)


def _targeted(name: str, targets: int, steps: int, claim: str) -> None:
    """A FAB towards so many other classes."""

    def run(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
        # FABAttack.perturb stops at the first class that fools the network and drops what lies beyond eps; the
        # closest point needs one run per class. No eps enters where there is no random start.
        suite = _suite(network, "fab-t", batch)
        _checks(suite, network, batch)
        suite.fab.n_iter = steps
        for rank in range(2, 2 + _targets(targets, network.classes)):
            suite.fab.target_class = rank
            yield suite.fab.attack_single_run(batch.inputs, batch.labels, is_targeted=True)

    def settings(classes: int, norm: Norm) -> str:
        del norm
        return f"{steps} steps towards each of the {_targets(targets, classes)} likeliest other classes"

    def passes(classes: int) -> Passes:
        count = _targets(targets, classes)
        return Passes(forward=2 * count * (steps + 1) + CHECKS, backward=count * steps, claims=count)

    run.__doc__ = claim
    attack(name, library=AUTOATTACK, aim="closest", norms=NORMS, settings=settings, passes=passes)(run)


_targeted(
    "fab-t",
    FAB_TARGETS,
    FAB_STEPS,
    """Looks for the closest input of each other class by projecting onto linearised decision boundaries.

    Source: Croce & Hein, "Minimally distorted adversarial examples", ICML 2020.
    """,
)
_targeted(
    "fab-t-quick",
    QUICK_TARGETS,
    QUICK_STEPS,
    """Does as FAB-T does, with fewer classes and steps.

    Source: Croce & Hein, "Minimally distorted adversarial examples", ICML 2020.
    """,
)


@attack(
    "fab",
    library=AUTOATTACK,
    aim="closest",
    norms=NORMS,
    settings=lambda *_: f"{FAB_STEPS} steps, from the input and from {RESTARTS - 1} random starts, all classes at once",
    passes=lambda classes: Passes(
        forward=RESTARTS * (2 * FAB_STEPS + 1) + CHECKS, backward=RESTARTS * FAB_STEPS * classes, claims=RESTARTS
    ),
)
def fab(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Looks for the closest misclassified input by projecting onto the nearest of all linearised decision boundaries.

    Each step takes the gradient of every logit: costly with many classes. Random starts lie half as far away as what
    the first run found (in the median). Source: Croce & Hein, "Minimally distorted adversarial examples", ICML 2020.
    """
    suite = _suite(network, "fab", batch)
    _checks(suite, network, batch)
    suite.fab.n_iter = FAB_STEPS
    first = suite.fab.attack_single_run(batch.inputs, batch.labels)
    yield first
    found = lengths(first - batch.inputs, batch.norm)
    suite.fab.eps = float(found[found > 0].median()) if bool((found > 0).any()) else 1.0
    for _ in range(RESTARTS - 1):
        yield suite.fab.attack_single_run(batch.inputs, batch.labels, use_rand_start=True)


@attack(
    "slide-at-radius",
    library=OWN,
    aim="radius",
    norms=("l1",),
    settings=lambda *_: f"{SLIDE_STEPS} steps from the input, each of one in {SLIDE_SHARE} entries, margin",
    passes=lambda _: Passes(forward=SLIDE_STEPS, backward=SLIDE_STEPS),
)
def slide_at_radius(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Searches the L1 ball that the certificate calls safe, each sample with its own radius, by sparse gradient steps.

    ART's L1 steps change one entry, and stay where that is black or white already. Here the entries with the steepest
    slopes of those that can move share a step. Source: Tramèr & Boneh, "Adversarial training and robustness for
    multiple perturbations", NeurIPS 2019, algorithm 1, with AutoAttack's projection onto the ball in the box.
    """
    assert batch.budget is not None
    clean, labels, radius = batch.inputs, batch.labels.unsqueeze(1), batch.budget.float()
    few = max(1, clean[0].numel() // SLIDE_SHARE)
    point, best = clean, clean
    least = torch.full_like(radius, torch.inf)
    for step in range(SLIDE_STEPS):
        with torch.enable_grad():
            logits = network(point.requires_grad_())
            margin = logits.gather(1, labels).squeeze(1) - logits.scatter(1, labels, -torch.inf).amax(1)
            (slope,) = torch.autograd.grad(margin.sum(), point)
        point, margin, slope = point.detach(), margin.detach(), slope.flatten(1)
        closer = margin < least
        least = torch.where(closer, margin, least)
        best = torch.where(closer.reshape(-1, *[1] * (clean.ndim - 1)), point, best)
        flat = point.flatten(1)
        slope = slope.where(((slope < 0) & (flat < 1)) | ((slope > 0) & (flat > 0)), 0.0)
        places = slope.abs().topk(few, dim=1).indices
        signs = slope.gather(1, places).sign()
        length = (radius * 0.5 * (1 - step / SLIDE_STEPS) / few).unsqueeze(1)
        change = (flat - clean.flatten(1)).scatter_add(1, places, -length * signs).reshape(clean.shape)
        point = (clean + change + L1_projection(clean, change, radius)).clamp(0, 1)
    yield best
