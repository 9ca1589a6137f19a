"""Attacks of AutoAttack (Croce & Hein, ICML 2020), as packaged by pyautoattack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyautoattack import AutoAttack, checks
from torch import Tensor

from lipaudit.crosscheck.registry import AUTOATTACK, Attack, Batch, Passes, Run, attack
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.results.formatting import plural

APGD_STEPS = 100
FAB_STEPS, FAB_TARGETS = 100, 9
QUICK_STEPS, QUICK_TARGETS = 10, 5
RESTARTS = 5
SQUARE_QUERIES, MANY_QUERIES = 1000, 5000
CHECKS = 8
"""Forward passes of AutoAttack's reliability checks, made on every batch."""


def _suite(network: UnitBox, name: str, batch: Batch) -> AutoAttack:
    # A fresh one per batch: it keeps state between runs, and its check for dynamic defences counts globally.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    eps = 1.0 if batch.budget is None else float(batch.budget[0])
    return AutoAttack(
        network, attacks=[name], version="custom", norm="L2", eps=eps, device=network.device, seed=batch.seed
    )


def _run(suite: AutoAttack, batch: Batch) -> Tensor:
    return suite.run_standard_evaluation(batch.inputs, batch.labels, batch_size=len(batch.inputs))[0]


def _targets(limit: int, classes: int) -> int:
    return min(limit, classes - 1)


def _apgd(name: str, starts: int, loss: str, **more: Any) -> Callable[[Run], Attack]:
    """`attack` for an APGD with so many random starts."""
    return attack(
        name,
        library=AUTOATTACK,
        aim="eps",
        settings=lambda _: f"{APGD_STEPS} steps, {plural(starts, 'random start')}, {loss}",
        passes=lambda _: Passes(forward=starts * (APGD_STEPS + 1) + CHECKS + 2, backward=starts * (APGD_STEPS + 1)),
        **more,
    )


def _ascent(network: UnitBox, batch: Batch, loss: str, starts: int) -> Tensor:
    suite = _suite(network, f"apgd-{loss}", batch)
    suite.apgd.n_restarts = starts
    suite.apgd.n_iter = APGD_STEPS
    return _run(suite, batch)


@_apgd("apgd-ce", 1, "cross-entropy")
def apgd_ce(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Searches the ball of radius eps by projected gradient ascent on the cross-entropy, with adaptive steps.

    Source: Croce & Hein, "Reliable evaluation of adversarial robustness", ICML 2020.
    """
    yield _ascent(network, batch, "ce", 1)


@_apgd("apgd-ce-5", RESTARTS, "cross-entropy")
def apgd_ce_5(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Does as APGD-CE does, from five random starts.

    Source: Croce & Hein, ICML 2020.
    """
    yield _ascent(network, batch, "ce", RESTARTS)


@_apgd("apgd-dlr-5", RESTARTS, "DLR loss", least_classes=4, follows=True)
def apgd_dlr_5(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Searches the ball of radius eps by gradient ascent on a ratio of logit differences, from five random starts.

    Scaling the logits cannot hide the gradients of this loss. AutoAttack advises against it below four classes.
    Source: Croce & Hein, ICML 2020.
    """
    yield _ascent(network, batch, "dlr", RESTARTS)


@attack(
    "apgd-t",
    library=AUTOATTACK,
    aim="eps",
    settings=lambda classes: f"{APGD_STEPS} steps, {_targets(9, classes)} target classes, targeted DLR loss",
    passes=lambda classes: Passes(
        forward=_targets(9, classes) * (APGD_STEPS + 2) + CHECKS + 4,
        backward=_targets(9, classes) * (APGD_STEPS + 1),
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
    yield _run(suite, batch)


def _tiles_fit(height: int, width: int) -> bool:
    """Whether the first step of the library's Square attack stays within the image.

    It lays tiles of a fifth of the height from a margin on, as many each way as would fit without that margin; a tile
    that reaches beyond the last row or column breaks it, unless it is of a single pixel.
    """
    side = height // 5
    start = (height - side * 5) // 2
    return side == 1 or (side > 1 and (width < side or all(start + n // side * side <= n for n in (height, width))))


def _squares(name: str, queries: int) -> Callable[[Run], Attack]:
    """`attack` for a Square of so many queries."""
    return attack(
        name,
        library=AUTOATTACK,
        aim="eps",
        settings=lambda _: f"{queries} queries",
        passes=lambda _: Passes(forward=queries + CHECKS + 4, backward=0),
        least_side=1,
        fits=_tiles_fit,
    )


def _searched(network: UnitBox, batch: Batch, queries: int) -> Tensor:
    suite = _suite(network, "square", batch)
    suite.square.n_queries = queries
    return _run(suite, batch)


@_squares("square", SQUARE_QUERIES)
def square(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Searches the ball of radius eps by random square patches, without gradients.

    What it breaks and gradients do not tells of masked gradients. Source: Andriushchenko et al., ECCV 2020.
    """
    yield _searched(network, batch, SQUARE_QUERIES)


@_squares("square-5000", MANY_QUERIES)
def square_5000(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Does as Square does, with the five thousand queries of AutoAttack's own versions.

    Source: Andriushchenko et al., ECCV 2020.
    """
    yield _searched(network, batch, MANY_QUERIES)


def _checks(suite: AutoAttack, network: UnitBox, batch: Batch) -> None:
    """AutoAttack's checks of the network, which only its own front end makes."""
    checks.check_randomized(network, batch.inputs, batch.labels, bs=len(batch.inputs), logger=suite.logger)
    checks.check_range_output(network, batch.inputs, logger=suite.logger)
    checks.check_dynamic(network, batch.inputs, logger=suite.logger)


def _targeted(name: str, targets: int, steps: int) -> Callable[[Run], Attack]:
    """`attack` for a FAB towards so many other classes."""

    def passes(classes: int) -> Passes:
        count = _targets(targets, classes)
        return Passes(forward=2 * count * (steps + 1) + CHECKS, backward=count * steps, claims=count)

    return attack(
        name,
        library=AUTOATTACK,
        aim="closest",
        settings=lambda classes: (
            f"{steps} steps towards each of the {_targets(targets, classes)} likeliest other classes"
        ),
        passes=passes,
    )


def _projected(network: UnitBox, batch: Batch, targets: int, steps: int) -> Iterator[Tensor]:
    # FABAttack.perturb stops at the first class that fools the network and drops what lies beyond eps; the
    # closest point needs one run per class. No eps enters where there is no random start.
    suite = _suite(network, "fab-t", batch)
    _checks(suite, network, batch)
    suite.fab.n_iter = steps
    for rank in range(2, 2 + _targets(targets, network.classes)):
        suite.fab.target_class = rank
        yield suite.fab.attack_single_run(batch.inputs, batch.labels, is_targeted=True)


@_targeted("fab-t", FAB_TARGETS, FAB_STEPS)
def fab_t(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Looks for the closest input of each other class by projecting onto linearised decision boundaries.

    Source: Croce & Hein, "Minimally distorted adversarial examples", ICML 2020.
    """
    yield from _projected(network, batch, FAB_TARGETS, FAB_STEPS)


@_targeted("fab-t-quick", QUICK_TARGETS, QUICK_STEPS)
def fab_t_quick(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
    """Does as FAB-T does, with fewer classes and steps.

    Source: Croce & Hein, "Minimally distorted adversarial examples", ICML 2020.
    """
    yield from _projected(network, batch, QUICK_TARGETS, QUICK_STEPS)


@attack(
    "fab",
    library=AUTOATTACK,
    aim="closest",
    settings=lambda _: f"{FAB_STEPS} steps, from the input and from {RESTARTS - 1} random starts, all classes at once",
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
    found = (first - batch.inputs).flatten(1).norm(dim=1)
    suite.fab.eps = float(found[found > 0].median()) if bool((found > 0).any()) else 1.0
    for _ in range(RESTARTS - 1):
        yield suite.fab.attack_single_run(batch.inputs, batch.labels, use_rand_start=True)
