"""The second global bound: what layers that are taken together prove of the network, and of each pair of classes.

Note [Fold]
    From one bottleneck of the graph to the next, distances grow by what the ledger of the Lipschitz domain says, or by
    less where the layers in between are the image of one ball (`ball.py`). Where an operation has no step there, the
    bound of the product so far starts a new ball: nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch

from lipaudit.domains.ellipsoid.ball import Ball, Unfit
from lipaudit.domains.ellipsoid.program import Program, Writer
from lipaudit.domains.ellipsoid.torus import Images
from lipaudit.domains.ellipsoid.tuning import Loss, tuned
from lipaudit.domains.lipschitz.pending import Value
from lipaudit.domains.lipschitz.propagator import INPUT, Ledger
from lipaudit.norms.row_distances import pairs_of, row_distances
from lipaudit.norms.verified_eigenvalues import largest_singular_value
from lipaudit.rounding import WIDE, power_of_two, up, wide

MOST_WORK = 5e11
"""Of all proofs of a network (`Program.work`): about 20 s of one core. What comes after that stays apart."""
WORK_OF_GAIN = 6e11
"""So much work is worth a bound that is smaller by the factor e; a hundredth of that, by 1 %."""
LITTLE_WORK = 2e10
"""Less is not worth asking for what it gains."""
TUNING_FLOPS = 2e10
MOST_STEPS = 150
_PAIRS = 512
"""So many pairs of classes are enough to choose multipliers by."""


@dataclass(frozen=True)
class Together:
    """What is proved of the whole network beside the product of its layer bounds."""

    total: Decimal
    """Of the vector of logits."""
    pairs: tuple[tuple[float, ...], ...] | None
    """Of the differences of two logits; None where nothing is proved of them but by the last linear maps."""
    head: Decimal
    """Of the tensor that the last linear maps read."""
    because: str


@dataclass(frozen=True)
class _Taken:
    """A program with what it proves of its end, relatively to its start."""

    program: Program
    growth: Decimal
    rows: list[list[float]] | None
    """Row distances of the end, where that is the logits, in units of `unit`."""
    unit: Decimal


def together(ledger: Ledger, values: Mapping[str, Value], head: Value, output: Value) -> Together | None:
    """By one ball where there are steps, else by the ledger; None where no layers can be taken together.

    `values` are those of the Lipschitz domain, at the bottlenecks at least, `head` and `output` those of the logits,
    with their pending maps and settled.
    """
    graph = ledger.graph
    if graph.complexes:
        return None
    between = [node.name for node in graph.nodes if node.name in graph.bottlenecks() and node.name != graph.output]
    known = {name: ledger.known_step(values[name]) for name in between}
    steps: dict[str, str] = {INPUT: INPUT, **{name: step for name, step in known.items() if step}}
    steps[graph.output] = output.step
    points = list(steps)
    writers = [kind(graph, ledger.maps, ledger.device, frozenset(steps)) for kind in (Writer, Images)]
    reached = {name: ledger.so_far[step] for name, step in steps.items()}
    said, pairs, place, purse = [], None, 0, _Purse()
    while place < len(points) - 1:
        start, growth = points[place], None

        def apart(end: str, start: str = start) -> Decimal | None:
            return ledger.growth_between(steps[start], steps[end])

        taken = _taken(writers, start, graph.output, apart, purse)
        if taken is None or isinstance(taken, str):
            place = place + 1 if taken is None else points.index(taken)
            if reached[start] < ledger.so_far[steps[start]]:
                growth = apart(points[place])
        else:
            growth, place = taken.growth, points.index(taken.program.end)
            said.append(taken.program.said)
            if taken.rows is not None:
                pairs = pairs_of(taken.rows, WIDE.multiply(taken.unit, reached[start]))
        if growth is not None:
            reached[points[place]] = min(reached[points[place]], WIDE.multiply(reached[start], growth))
    if not said:
        return None
    # The last tensor of that step: what the head's maps read.
    read = next((name for name in reversed(points[:-1]) if steps[name] == head.step), INPUT)
    base = reached[read] if steps[read] == head.step else ledger.so_far[head.step]
    return Together(reached[graph.output], pairs, base, "; ".join(said))


@dataclass
class _Purse:
    """What the proofs of a network may still cost."""

    left: float = MOST_WORK

    def pays(self, program: Program) -> bool:
        return program.work() <= self.left

    def spend(self, program: Program) -> bool:
        """Whether one more proof is paid for."""
        if not self.pays(program):
            return False
        self.left -= program.work()
        return True


def _taken(
    writers: Sequence[Writer | Images],
    start: str,
    output: str,
    apart: Callable[[str], Decimal | None],
    purse: _Purse,
) -> _Taken | str | None:
    """What the layers from `start` on prove together, as far as there are steps; None if that is nothing.

    The end of the layers, where they gain too little for what a proof of them costs: nobody tries them in part.
    `apart` says how far distances grow up to a node by the ledger.
    """
    for writer in writers:
        program = writer.program(start)
        if program is not None and purse.pays(program):
            logits = program.end == output
            try:
                best, closed = tuned(program, _loss(program, logits), _worth(program, logits, apart(program.end)))
            except Unfit:
                continue
            if best is None:
                return program.end
            tried = (_proved(program, ts, logits) for ts in _variants(best, closed) if purse.spend(program))
            found = next(filter(None, tried), None)
            if found is not None:
                return found
    return None


def _worth(program: Program, logits: bool, apart: Decimal | None) -> Callable[[float], int | None]:
    """Steps of the search, from the logarithm of the bound that it starts at; None where a proof is not worth it."""
    steps = int(min(MOST_STEPS, TUNING_FLOPS / (4 * program.flops_of_trial() + 1e6)))
    least = program.work() / WORK_OF_GAIN
    if logits or not apart or program.work() < LITTLE_WORK:
        return lambda _: steps
    known = float(apart.ln())
    return lambda first: steps if known - first >= least else None


def _variants(best: list[torch.Tensor], closed: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Multipliers to try in turn: smaller ones are proved more easily."""
    for factor in (1.0, 0.95, 0.9, 0.8, 0.7):
        yield [t.double() * factor for t in best]
    for factor in (0.9, 0.5):
        yield [t.double() * factor for t in closed]


def _loss(program: Program, logits: bool) -> Loss:
    """The mean logarithm of the bounds of pairs, or the logarithm of the bound of the end."""
    count = program.ends
    first, second = torch.triu_indices(count, count, 1, device=program.like.device)
    if len(first) > _PAIRS:
        chosen = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))[:_PAIRS].to(first.device)
        first, second = first[chosen], second[chosen]

    def loss(ball: Ball) -> torch.Tensor:
        image = ball.images[program.end]
        m, exponent = ball.written(image), image.exponent * math.log(2.0)
        if logits and len(first):
            apart = (m[0, first] - m[0, second]).square().sum(-1)
            return apart.clamp_min(1e-30).log().mean() / 2 + exponent
        gram = m @ m.mH if m.shape[1] <= m.shape[2] else m.mH @ m
        size = gram.detach().abs().amax().clamp_min(1e-30)
        gram = gram / size
        for _ in range(2):
            gram = gram @ gram
        return (torch.view_as_real(gram.resolve_conj()) if gram.is_complex() else gram).square().sum().clamp_min(
            1e-300
        ).log() / 16 + exponent

    return loss


def _proved(program: Program, multipliers: list[torch.Tensor], logits: bool) -> _Taken | None:
    """The bound of the end for these multipliers, with proof; None where float64 does not prove it."""
    try:
        ball = program.run(lambda number, _: multipliers[number], prove=True)
    except Unfit:
        return None
    image = ball.images[program.end]
    m = ball.written(image)
    unit = WIDE.multiply(ball.scale, power_of_two(image.exponent))
    growth = WIDE.multiply(unit, wide(up(largest_singular_value(m) + image.error)))
    rows = row_distances(m[0], [image.error] * m.shape[1]) if logits else None
    return _Taken(program, growth, rows, unit)
