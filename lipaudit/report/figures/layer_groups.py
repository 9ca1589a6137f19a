"""The ledger in few rows: what each part of the network multiplies the bound by.

The ledger is a graph. Where every path goes through one line, the bound splits into a product: before the
line times after it. These cuts give factors that multiply up to the network bound exactly, a residual block
being one factor. Neighbours in the same module are then put together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lipaudit.results.bounds import TOGETHER, LayerBound, NetworkBound

MOST = 32
"""Rows of Fig. 3."""


@dataclass(frozen=True)
class Stage:
    """Consecutive lines of the ledger; `before` and `after` are log10 of the bound so far."""

    name: str
    lines: tuple[LayerBound, ...]
    before: float
    after: float

    @property
    def idle(self) -> bool:
        """A branch inside is zero, and adds nothing to the bound."""
        return any(line.log10_so_far == -math.inf for line in self.lines)

    @property
    def gain(self) -> float:
        """log10 of the factor by which the stage multiplies the bound."""
        return self.after - self.before


def stages(bound: NetworkBound) -> tuple[Stage, ...]:
    """In network order; gains add up to `bound.log10`. Empty if that is zero or a bound is infinite."""
    if not math.isfinite(bound.log10) or not all(line.log10_so_far < math.inf for line in bound.layers):
        return ()
    named = _by_module(_segments(bound.layers))
    while len(named) > MOST:
        named = _join_closest(named)
    # The network bound may be tighter than the last line of the ledger.
    rest = bound.log10 - named[-1].after if named else 0.0
    if abs(rest) > 1e-9:
        named.append(Stage("whole network", (), named[-1].after, bound.log10))
    return tuple(named)


def _segments(layers: Sequence[LayerBound]) -> list[Stage]:
    """Split after each line that no later line reaches past."""
    position = {line.step: k for k, line in enumerate(layers)}
    reach = [min((position.get(step, -1) for step in line.inputs), default=-1) for line in layers]
    # earliest[k]: how far back any line after k looks.
    earliest, far = [0] * len(layers), len(layers)
    for k in range(len(layers) - 1, -1, -1):
        earliest[k] = far
        far = min(far, reach[k])
    found: list[Stage] = []
    start, before = 0, 0.0
    for k, line in enumerate(layers):
        if earliest[k] >= k and math.isfinite(line.log10_so_far):
            lines = tuple(layers[start : k + 1])
            found.append(Stage(_shared_module(lines), lines, before, line.log10_so_far))
            start, before = k + 1, line.log10_so_far
    return found


def module_path(name: str) -> tuple[str, ...]:
    """`layer1.0.conv1 + layer1.0.bn1` -> (layer1, 0, conv1)."""
    return tuple(name.split(" ")[0][:200].split("."))


def block(name: str) -> str:
    """The block that a layer belongs to: its path up to the last number that has something below it.

    `layer1.0.downsample.0` -> `layer1.0`; `features.3` and `conv1`, which have no such number, are their own.
    """
    path = module_path(name)
    if name == TOGETHER:
        return name
    inside = [k for k, part in enumerate(path[:-1]) if part.isdigit()]
    return ".".join(path[: inside[-1] + 1]) if inside else ".".join(path)


def _shared_module(lines: Sequence[LayerBound]) -> str:
    """The deepest module around all lines; `first … last` where there is none."""
    if len(lines) == 1:
        return block(lines[0].name)
    paths = [block(line.name).split(".") for line in lines]
    same = 0
    while all(same < len(path) and path[same] == paths[0][same] for path in paths):
        same += 1
    return ".".join(paths[0][:same]) or f"{'.'.join(paths[0])} … {'.'.join(paths[-1])}"


def _by_module(segments: list[Stage]) -> list[Stage]:
    """Put neighbours of the same block together; a step of factor 1 belongs to what it follows."""
    joined: list[Stage] = []
    for stage in segments:
        if joined and (joined[-1].name == stage.name or _changes_nothing(stage)):
            joined[-1] = _join(joined[-1], stage, joined[-1].name)
        else:
            joined.append(stage)
    return joined


def _changes_nothing(stage: Stage) -> bool:
    """A single step without weights and of factor 1: an activation, a reshape."""
    return len(stage.lines) == 1 and stage.lines[0].lower is None and abs(stage.gain) < 1e-12


def _join(one: Stage, two: Stage, name: str) -> Stage:
    return replace(one, name=name, lines=one.lines + two.lines, after=two.after)


def _join_closest(named: list[Stage]) -> list[Stage]:
    """Put together the two neighbours that gain least."""
    k = min(range(len(named) - 1), key=lambda i: (abs(named[i].gain) + abs(named[i + 1].gain), i))
    both = _join(named[k], named[k + 1], "")
    return [*named[:k], replace(both, name=_span(both.lines)), *named[k + 2 :]]


def _span(lines: Sequence[LayerBound]) -> str:
    """`blocks.3 … 7`: the first and the last block, what they share said once."""
    first, last = block(lines[0].name), block(lines[-1].name)
    parent = first.rpartition(".")[0] + "."
    return f"{first} … {last.removeprefix(parent)}"
