"""Random networks with harmful weights, executed in float32 in several orders: never further off than proved.

`LIPAUDIT_FUZZ_SECONDS` gives more time, `LIPAUDIT_FUZZ_SEED` another start.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from executions import executed, fused, largest_first, shuffled
from fuzzed import BLOCKS, captured, fuzzed, reweighted
from torch import nn

from lipaudit.certification.executed import Execution
from lipaudit.certification.network_bound import Composition, _row_distances, pairwise
from lipaudit.domains.graph import Graph, evaluate, in_dtype
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.lipschitz.propagator import INPUT, merged
from lipaudit.errors import LipauditError
from lipaudit.results.bounds import NetworkBound

SECONDS = float(os.environ.get("LIPAUDIT_FUZZ_SECONDS", "18"))
"""In all."""

SEED = int(os.environ.get("LIPAUDIT_FUZZ_SEED", "0"))
WEIGHTINGS = 4
KNOWN = {
    "convolution", "transposed", "normalised_image", "pooled", "reordered", "windows", "dense", "mixer", "pointwise",
    "moved", "pieces", "residual",
}  # fmt: skip
"""Blocks most of whose variants consist of operations that F knows."""


@dataclass
class Tally:
    tested: int = 0
    finite: int = 0
    """Of those, without overflow."""
    refused: Counter[str] = field(default_factory=Counter)
    closest: float = 0.0
    violations: list[str] = field(default_factory=list)


def composed(graph: Graph) -> Composition:
    ledger = Ledger(graph, torch.device("cpu"), measure=False)
    with torch.no_grad():
        head = walk(graph, RULES, Value(INPUT), ledger)
        ledger.settle(head)
        bound = NetworkBound(tuple(ledger.lines), 0.0, pairwise(head, ledger), graph.input_shape)
    rows = _row_distances(merged(head.chain), len(bound.pairwise))
    return Composition(bound, graph, ledger, head, nn.Module(), bound.pairwise, rows)


def examine(seed: int, name: str, tally: Tally) -> None:
    network, random = fuzzed(seed, name), Random(seed)
    if not network.names or not set(network.names) <= KNOWN:
        return
    graph = captured(network, tally.refused)
    for number in range(WEIGHTINGS if graph is not None else 0):
        judge(graph, f"seed {seed}, {' + '.join(network.names)}, weights {number}", seed + number, tally)
        # What runs are float32 weights.
        graph = in_dtype(reweighted(graph, random), torch.float32)


def judge(graph: Graph, title: str, seed: int, tally: Tally) -> None:
    try:
        composition = composed(graph)
    except LipauditError as error:
        tally.refused[type(error).__name__] += 1
        return
    execution = Execution(composition, ("native", "float64"))
    if execution.why["native"] or execution.why["float64"]:
        tally.refused[execution.why["native"].split(" (")[0]] += 1
        return
    tally.tested += 1
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for x in torch.rand(2, *graph.input_shape, generator=generator):
        bounds = execution.around(x)
        for radius in (0.0, 2.0):
            step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            moved = (x.double() + radius * step / step.norm()).float()
            reach = float((moved.double() - x.double()).norm()) * (1 + 1e-12)
            allowed = bounds["native"].whole.at(reach)
            if not (reach <= bounds["native"].limit and allowed < float("inf")):
                continue
            tally.finite += 1
            own, logits = execution.around(moved)["float64"].whole.a, evaluate(graph, moved.double())
            runs = [evaluate(in_dtype(graph, torch.float32), moved)]
            runs += [executed(composition, moved, summing) for summing in (fused, largest_first, shuffled)]
            for number, run in enumerate(runs):
                off = float((run.double() - logits).norm()) + own
                tally.closest = max(tally.closest, off / allowed if allowed else float(off > 0))
                if not off <= allowed:
                    tally.violations.append(f"{title}, run {number}, radius {radius}: {off!r} above {allowed!r}")


def sweep(seconds: float, seed: int) -> Tally:
    tally, began, first = Tally(), time.monotonic(), [name for name in BLOCKS if name in KNOWN]
    while time.monotonic() - began < seconds:
        examine(seed, first[seed % len(first)], tally)
        seed += 1
    return tally


@pytest.mark.slow
def test_no_random_network_is_executed_further_off_than_proved() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = sweep(SECONDS, SEED)
    assert not tally.violations
    assert tally.tested > 0
    assert tally.finite > 0
