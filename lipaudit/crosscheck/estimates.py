"""Radii that are estimated, or hold with a probability only: CLEVER and randomized smoothing, by ART."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lipaudit.crosscheck.art import classifier
from lipaudit.crosscheck.isolation import sealed
from lipaudit.crosscheck.registry import ART
from lipaudit.crosscheck.unit_box import UnitBox, private_copy
from lipaudit.crosscheck.verification import ORDER
from lipaudit.errors import BadThreat
from lipaudit.progress import Progress, Silent
from lipaudit.results.audit import Estimate, Samples
from lipaudit.results.intervals import lower_limit
from lipaudit.results.threat import Norm, Threat, circumradius, norm_of, spoken

CLEVER_BATCHES, CLEVER_SIZE, CLEVER_POOL = 20, 32, 5
CLEVER_RADIUS: dict[Norm, float] = {"l2": 2.0, "linf": 0.3, "l1": 30.0}
"""Of the ball of each norm that gradients are drawn from, in widths of the box; a score cannot be larger."""
CHOOSING, DRAWS, FAILURE = 100, 1000, 0.001
"""Noisy copies that choose the class, and that count it; the probability that a radius is wrong."""
AT_A_TIME = 128


def estimates_of(
    logits: nn.Module,
    points: Tensor,
    samples: Samples,
    threat: Threat,
    sigma: float | None,
    with_clever: bool,
    *,
    seed: int,
    progress: Progress,
) -> tuple[Estimate, ...]:
    """Those of the two that are asked for: a `sigma` for randomized smoothing, and CLEVER."""
    if sigma is None and not with_clever:
        return ()
    with torch.no_grad():
        classes = int(logits(points[:1]).shape[1])
    given: dict[str, Any] = {"classes": classes, "low": threat.low, "high": threat.high, "seed": seed}
    given["norm"] = norm_of(threat.norm)
    found = []
    if with_clever:
        found.append(clever(logits, points, samples.label, samples.correct(), **given, progress=progress))
    if sigma is not None:
        found.append(smoothing(logits, points, samples.label, sigma=sigma, **given, progress=progress))
    return tuple(found)


def clever(
    logits: nn.Module,
    points: Tensor,
    labels: Sequence[int],
    right: Sequence[bool],
    *,
    classes: int,
    norm: Norm = "l2",
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """The CLEVER score (untargeted, in `norm`) of each correctly classified sample: an estimate that may be too large.

    Extreme-value statistics of gradient norms at random points around it. Source: Weng et al., "Evaluating the
    robustness of neural networks: an extreme value theory approach", ICLR 2018.
    """
    from art.metrics import clever_u

    network = UnitBox(private_copy(logits), points, low, high, classes)

    def score(wrapped: Any, point: Any, _label: int) -> float | None:
        found = float(
            clever_u(
                wrapped,
                point,
                nb_batches=CLEVER_BATCHES,
                batch_size=CLEVER_SIZE,
                radius=CLEVER_RADIUS[norm],
                norm=ORDER[norm],
                pool_factor=CLEVER_POOL,
                verbose=False,
            )
        )
        return found if math.isfinite(found) else None

    values, seconds = _each(
        network, classifier(network, network, classes), score, points, labels, right, seed, progress
    )
    return Estimate(
        name="CLEVER",
        library=str(ART),
        settings=(
            f"{CLEVER_BATCHES} batches of {CLEVER_SIZE} gradients towards each class, "
            f"out of {CLEVER_POOL} times as many points within {CLEVER_RADIUS[norm] * (high - low):g}"
        ),
        about="An estimate of the distance to the nearest adversarial example. It may be too large; it proves nothing.",
        values=values,
        seconds=seconds,
    )


def smoothing(
    logits: nn.Module,
    points: Tensor,
    labels: Sequence[int],
    *,
    sigma: float,
    classes: int,
    norm: Norm = "l2",
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """Radii of the classifier that answers what the network answers most often under Gaussian noise of size `sigma`.

    `sigma` is in units of the inputs. Each radius holds with probability 1 - `FAILURE` over the noise drawn here
    (Clopper-Pearson), and is 0 where the count decides nothing or for another class than the label. In another norm it
    is that of the largest ball in the L2 ball. It is about that other classifier, not about the network. Raises
    `BadThreat` for a `sigma` that is no size. Source: Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via
    randomized smoothing", ICML 2019, sec. 3.2.
    """
    if not 0 < sigma < math.inf:
        raise BadThreat(f"expected a finite smoothing sigma above 0, got {sigma}")
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    class Certifier(PyTorchRandomizedSmoothing):  # type: ignore[misc]  # ART has no types
        """ART's, with our Clopper-Pearson limit: its own needs statsmodels, which ART does not install."""

        def _lower_confidence_bound(self, n_class_samples: int, n_total_samples: int) -> float:
            return lower_limit(int(n_class_samples), n_total_samples, self.alpha)

    network = UnitBox(private_copy(logits), points, low, high, classes)
    noise = {"sample_size": CHOOSING, "scale": sigma / (high - low), "alpha": FAILURE}
    certifier = classifier(network, network, classes, Certifier, **noise)

    share = circumradius(norm, points[0].numel())

    def radius(wrapped: Any, point: Any, label: int) -> float:
        chosen, found = wrapped.certify(point[None], n=DRAWS, batch_size=AT_A_TIME)
        return float(found[0]) / share if int(chosen[0]) == label else 0.0

    every = [True] * len(points)
    values, seconds = _each(network, certifier, radius, points, labels, every, seed, progress, "smoothing")
    return Estimate(
        name="randomized smoothing",
        library=str(ART),
        settings=f"sigma {sigma:g}, {CHOOSING} noisy copies to choose the class, {DRAWS} to count it, Clopper-Pearson",
        about=(
            f"Radii of the network smoothed by Gaussian noise, which is another classifier than the one audited. Each "
            f"holds with probability {1 - FAILURE:g} over the noise drawn."
            + ("" if norm == "l2" else f" In {spoken(norm)}: that of the largest ball within the L2 ball.")
        ),
        values=values,
        probability=1 - FAILURE,
        draws=DRAWS,
        seconds=seconds,
    )


def _each(
    network: UnitBox,
    wrapped: Any,
    measure: Callable[[Any, Any, int], float | None],
    points: Tensor,
    labels: Sequence[int],
    wanted: Sequence[bool],
    seed: int,
    progress: Progress | None,
    title: str = "CLEVER",
) -> tuple[tuple[float | None, ...], float]:
    """What is measured at each wanted sample, in raw units, each seeded by itself; and the seconds it took."""
    progress, begun = progress or Silent(), time.perf_counter()
    progress.start(title, sum(wanted))
    values: list[float | None] = []
    for row, (point, label, asked) in enumerate(zip(network.to_unit(points), labels, wanted, strict=True)):
        value = None
        if asked:
            with sealed(_seed(seed, point), [], network.device):
                value = measure(wrapped, point.cpu().numpy(), int(label))
            progress.advance(note=f"{row + 1}")
        values.append(None if value is None else value * (network.high - network.low))
    progress.finish()
    return tuple(values), time.perf_counter() - begun


def _seed(seed: int, point: Tensor) -> int:
    """Of the sample itself, so that it gets the same noise in whichever shard it is."""
    return zlib.crc32(point.cpu().numpy().tobytes(), seed % 2**32)
