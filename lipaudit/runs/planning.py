"""How much to audit: samples and attacks that fit into the time, by timing the network first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lipaudit.crosscheck import estimate_seconds
from lipaudit.results.threat import Threat, eps_value, norm_of

BUDGET = 300.0
"""Seconds that the attacks of a run may take by default, by the estimate."""


@dataclass(frozen=True)
class Plan:
    """How many samples and which attacks fit into the time."""

    samples: int
    attacks: str
    seconds: float
    """Upper estimate of the time of the attacks."""


def plan_run(
    model: nn.Module,
    inputs: torch.Tensor,
    *,
    classes: int,
    samples: int | None,
    attacks: Sequence[str] | None,
    threats: Sequence[Threat],
    available: int,
    budget: float = BUDGET,
) -> Plan:
    """The most samples, then the strongest attacks, whose estimated time fits into `budget` seconds,
    those of all norms together.

    What the user has chosen (`samples`, `attacks`; None for not) is never changed.
    """
    presets = ("standard", "quick") if attacks is None else (",".join(attacks) or "none",)
    most = (500, 200, 100, 50, 32, 16) if samples is None else (samples,)
    sizes = tuple(dict.fromkeys(min(n, available) for n in most))

    def seconds_each(preset: str) -> float:
        costs = [
            estimate_seconds(
                model,
                inputs,
                attacks=preset.split(","),
                samples=sizes[0],
                eps=[eps_value(e) for e in threat.eps],
                classes=classes,
                norm=norm_of(threat.norm),
                batch_size=batch_for(inputs[0].numel()),
            )
            for threat in threats
        ]
        return sum(sum(cost.values()) for cost in costs) / sizes[0]

    each = {preset: seconds_each(preset) for preset in presets}
    plans = [Plan(count, preset, count * each[preset]) for preset in presets for count in sizes]
    fitting = [plan for plan in plans if plan.seconds <= budget]
    # A sample of 100 under quick attacks says more than 16 under standard ones.
    large = [plan for plan in fitting if plan.samples >= min(100, sizes[0])]
    largest = sorted(fitting, key=lambda plan: -plan.samples)
    return next(iter([*large, *largest, plans[-1]]))


def batch_for(numbers: int) -> int:
    """Samples per batch of the attacks, for inputs of so many numbers: small ones cost little more than few."""
    return min(256, max(16, 200_000 // numbers))
