"""Logits of one sample with a proved bound of their rounding, and what margins are sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lipaudit.certification.network_bound import Composition
from lipaudit.domains.graph import Node, call, evaluate
from lipaudit.domains.lipschitz.propagator import INPUT
from lipaudit.domains.rounding.extended import precisely
from lipaudit.domains.rounding.float64 import LAWS, local_error
from lipaudit.errors import LipauditError, RuleError
from lipaudit.rounding import TINY, down, length_up, up

_HARMLESS = 1e-3
"""Share of a margin that rounding may cost before the sample is evaluated with more digits."""
_BEARABLE = 0.5
"""The same where the radius is below `resolution` even without any rounding: more digits of it would say nothing."""


class ErrorRecursion:
    """Evaluates one sample in float64 and bounds the L2 error of its logits (Note [Error recursion])."""

    def __init__(self, composition: Composition) -> None:
        self.graph, self.ledger, self.head = composition.graph, composition.ledger, composition.head
        self.growth = self.ledger.growth()
        self.last = self.ledger.settle(self.head).step
        self.covered = {node for step in self.growth.values() for node, _ in step}

    def __call__(self, x: torch.Tensor, *, careful: bool = False) -> tuple[list[float], float]:
        """The logits and the error bound; `careful` takes several times as long, for a bound that is far smaller."""
        local: dict[str, float] = {}

        def run(node: Node, arguments: dict[str, Any]) -> torch.Tensor:
            found = precisely(node, arguments) if careful else None
            if found is None:
                output = call(node, arguments)
                error = local_error(node, arguments, output)
            else:
                output = found.value
                error = length_up(found.rest.abs() + found.error) * (1 + 1e-6) + TINY
            if error is not None:
                if node.name not in self.covered:
                    raise RuleError(f"{node.op} ({node.source}) rounds, but no step of the ledger accounts for it")
                local[node.name] = error
            return output

        logits = evaluate(self.graph, x, run=run).tolist()
        if not all(math.isfinite(value) for value in [*logits, *local.values()]):
            raise LipauditError("expected finite logits in float64, got NaN or inf; check the weights and inputs")
        errors = {INPUT: 0.0}
        for line in self.ledger.lines:
            before = [errors[step] for step in line.inputs]
            passed = LAWS[line.law](before)
            added = sum(local.get(node, 0.0) * factor for node, factor in self.growth[line.step])
            # One upward step per operation above; few terms, so a relative 1e-12 covers them all.
            errors[line.step] = (line.upper.value * passed + added) * (1 + 1e-12)
        # Factors that were read off ranges hold only while errors stay within their room (lipschitz/propagator.py).
        error = errors[self.last]
        trusted = math.isfinite(error) and all(e <= self.ledger.room for e in errors.values())
        return logits, error if trusted else math.inf


def sure_margins(logits: Sequence[float], error: float, target: int) -> dict[int, float]:
    """What the logit of `target` exceeds each other logit by, at least; 0 where that is not sure."""
    # Two logits of a vector that is off by `error` are together off by at most sqrt(2) times that; one rounding more.
    slack = up(up(math.sqrt(2.0)) * error)
    margins = {j: logits[target] - value for j, value in enumerate(logits) if j != target}
    return {j: down(down(value) - slack) if value > 0 else 0.0 for j, value in margins.items()}


def resolution(point: torch.Tensor) -> float:
    """An L2 distance below which float32 numbers of this size hardly change: 2^-23 of their norm."""
    return float(torch.linalg.vector_norm(point)) * 2.0**-23


def _spared(logits: Sequence[float], pairwise: Sequence[Sequence[float]], point: torch.Tensor) -> float:
    """The error that logits may have without a second, longer evaluation."""
    first, second = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:2]
    margin = logits[first] - logits[second]
    without_rounding = margin / pairwise[first][second] if pairwise[first][second] > 0 else math.inf
    return margin * (_BEARABLE / math.sqrt(2) if without_rounding < resolution(point) else _HARMLESS)
