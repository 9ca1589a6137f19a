"""How long attacks will take, from timing the network here and now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lipaudit.crosscheck.isolation import random_state_kept
from lipaudit.crosscheck.registry import plan
from lipaudit.crosscheck.unit_box import UnitBox, private_copy, why_no_gradient
from lipaudit.crosscheck.verification import INWARD_STEPS
from lipaudit.results.threat import Norm

TIMED = 4
"""Samples in the timed batch."""
MARGIN = 1.6
"""What attacks compute between passes, and how much a busy machine varies."""
QUICK = 0.02
"""Seconds below which a batch is mostly overhead, and one of full size is timed instead."""


def estimate_seconds(
    logits: nn.Module,
    inputs: Tensor,
    *,
    attacks: str | Sequence[str],
    samples: int,
    eps: Sequence[float],
    classes: int,
    norm: Norm = "l2",
    batch_size: int = 16,
) -> dict[str, float]:
    """Seconds that each attack takes at most on so many samples, by its name.

    A forward pass, a backward pass and a float64 pass of a few inputs are timed, and multiplied by the number
    of passes of each attack. An upper estimate: attacks skip samples that are broken already, and DeepFool
    stops as soon as the prediction changes. Raises `BadThreat` for an unknown attack.
    """
    planned = [entry for entry in plan(attacks, norm) if norm in entry.norms]
    few = inputs[:TIMED]
    with torch.inference_mode(False), torch.enable_grad(), random_state_kept(0):
        network = UnitBox(private_copy(logits), few, 0.0, 1.0, classes)
        judge = private_copy(logits, torch.float64)
        back = _forward if why_no_gradient(network, network.to_unit(few)) else _backward
        if _seconds(lambda: back(network, network.to_unit(few)), few) < QUICK:
            # Copies stand in where there are fewer samples at hand than a batch holds.
            few = inputs[torch.arange(max(1, min(batch_size, samples))) % len(inputs)]
        forward = _seconds(lambda: _forward(network, network.to_unit(few)), few) / len(few)
        both = _seconds(lambda: back(network, network.to_unit(few)), few) / len(few)
        judged = _seconds(lambda: _forward(judge, few.double()), few) / len(few)
    backward = max(both - forward, 0.0)
    cost = {}
    for entry in planned:
        passes = entry.passes(classes)
        # The closest claim is looked at and drawn in, and then judged, in a batch and alone; often it is the only one.
        verified = (INWARD_STEPS + 3) * forward + 2 * judged
        runs = len(eps) if entry.aim == "eps" else 1
        each = passes.forward * forward + passes.backward * backward + verified
        cost[entry.name] = MARGIN * runs * samples * each
    return cost


def _forward(network: nn.Module, points: Tensor) -> None:
    with torch.no_grad():
        network(points)


def _backward(network: nn.Module, points: Tensor) -> None:
    points = points.clone().requires_grad_()
    torch.autograd.grad(network(points).sum(), points)


def _seconds(work: Callable[[], None], like: Tensor) -> float:
    """The faster of two runs, after one to warm up."""
    work()
    taken = []
    for _ in range(2):
        _wait(like)
        begun = time.perf_counter()
        work()
        _wait(like)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _wait(like: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
