"""What a part of the graph does to the ball, step by step, with every linear map written out as a matrix.

A step is a function of a ball and of a chooser of multipliers; the same steps run without proof while multipliers are
sought, and once more with it.

Note [Exchanges]
    With r = relu(a - b), max(a, b) = b + r and min(a, b) = a - r: linear maps and one activation with slopes in [0, 1],
    the same for both, so their sum loses nothing, and (a - b - r) r >= 0 is all that MaxMin needs to be 1-Lipschitz:
    |b + r|^2 + |a - r|^2 = |a|^2 + |b|^2 - 2 r (a - b - r), also of differences. This is the constraint of Pauli et al.
    (ICLR 2024) for pairs. A sort of k values is k rounds of exchanges between neighbours (odd-even transposition).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from lipaudit.domains.ellipsoid.ball import Ball, Matrix
from lipaudit.domains.ellipsoid.slopes import slopes
from lipaudit.domains.graph import Graph, Node, Ref, quiet_vmap
from lipaudit.norms.linear_maps import Dense, Identity, LinearMap, Scale, schur_test
from lipaudit.rounding import TINY, gamma, norm_up, up

MOST_SIDE = 4096
"""Tensors of more entries are not written out."""
MOST_ENTRIES = 2**23
"""Nor are matrices of more."""

MOVES = frozenset({
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "permute.default",
    "transpose.int", "t.default", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "roll.default", "flip.default", "rot90.default", "pixel_shuffle.default", "pixel_unshuffle.default",
    "channel_shuffle.default", "split.Tensor", "split_with_sizes.default", "unbind.int", "slice.Tensor", "select.int",
    "expand.default", "repeat.default",
})  # fmt: skip
"""Operations each of whose outputs is one entry of what they read."""

LINEAR = MOVES | {
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding",
    "linear.default", "_native_batch_norm_legit_no_training.default", "avg_pool1d.default", "avg_pool2d.default",
    "avg_pool3d.default", "adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
    "mean.dim", "sum.dim_IntList", "mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar", "neg.default",
    "add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar", "constant_pad_nd.default",
    "pad.default", "conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input",
}  # fmt: skip
"""Operations whose map, where the Lipschitz domain has one for a single operand, is that from what they read."""


EXTREMES = {
    "maximum.default": True, "max.other": True, "fmax.default": True, "minimum.default": False, "min.other": False,
    "fmin.default": False,
}  # fmt: skip
"""Whether it is the larger one."""
MOST_SORTED = 4
"""Sorts of more values have no step."""
MOST_EXCHANGED = 1024
"""Nor do exchanges in larger tensors: of networks that are 1-Lipschitz layer by layer they would prove little more."""

SUMS = frozenset({"add.Tensor", "sub.Tensor", "rsub.Tensor"})
_COLUMNS = 256
_FREQUENCIES = 48
"""So many are looked at while multipliers are sought."""
_PASSES = 1e4
"""Operations in the time that a proof spends on one entry: measured."""
_QUICK = 1e9
"""Programs of more operations are run in single precision while multipliers are sought."""


class Unsupported(Exception):
    """The operation has no step here."""


Choose = Callable[[int, torch.Tensor], torch.Tensor]
"""The multipliers of a bend, from its number and V."""
Step = Callable[[Ball, Choose], None]


@dataclass
class Program:
    start: str
    size: int
    end: str
    like: torch.Tensor
    steps: list[Step] = field(default_factory=list)
    bends: list[int] = field(default_factory=list)
    """The number of multipliers of each."""
    layers: list[str] = field(default_factory=list)
    """What is in it, for people."""
    flops: float = 0.0
    """About what one run without proof takes."""
    width: int = 0
    """Generators that the ball has at the end, about."""
    kinds: list[str] = field(default_factory=list)
    """`map` or `bend`: which kinds of steps there are, from the first map on."""
    inside: tuple[int, int, float, float] = (0, 0, 0.0, 0.0)
    ends: int = 0
    """Entries of the end."""
    why_not: str = ""
    """What ended it."""

    index: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    sizes: tuple[int, ...] = ()
    """Of programs on a torus: the frequencies pi index / size."""
    bytes: int = 0
    """Of its matrices, about."""
    entries: float = 0.0
    """Of the matrices that bends make, at all frequencies; twice where a part of the source is added."""

    def flops_of_trial(self) -> float:
        share = min(1.0, _FREQUENCIES / len(self.index)) if len(self.index) else 1.0
        return self.flops * share * (0.5 if self.flops > _QUICK else 1.0)

    def work(self) -> float:
        """Of one proof, in operations: many small matrices cost their passes through memory more than the products."""
        return self.flops + _PASSES * self.entries

    def _roughly(self) -> Ball:
        """Of some frequencies, and in single precision where that saves time."""
        like, pick = self.like, None
        if self.flops > _QUICK:
            like = like.to(torch.complex64 if like.is_complex() else torch.float32)
        if len(self.index) > _FREQUENCIES:
            pick = self._picked
        return Ball(self.start, self.size, like, prove=False, pick=pick)

    @cached_property
    def _picked(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.index), generator=generator).to(self.index.device)
        # The lowest ones, where norms of trained networks are large, and others.
        around = 2 * torch.tensor(self.sizes, device=order.device)
        lowest = self.index.minimum(around - self.index)
        low = lowest.double().square().sum(1).argsort()[: _FREQUENCIES // 3]
        return torch.cat([low, order[: _FREQUENCIES - len(low)]]).unique()

    def bend(self, number: int, source: str, target: str, interval: tuple[float, float], again: bool) -> Step:
        def step(ball: Ball, choose: Choose) -> None:
            if ball.prove and len(ball.images) > 1:
                ball.compress()
            ball.bend(source, target, lambda v: choose(number, v), interval, again=again)

        return step

    def reach(self, end: str, entries: int) -> None:
        """It may end here."""
        self.end, self.ends, self.inside = end, entries, (len(self.layers), len(self.bends), self.flops, self.entries)

    def cut(self, steps: int) -> None:
        """Drops what comes after the last place where it may end."""
        layers, bends, self.flops, self.entries = self.inside
        del self.steps[steps:], self.layers[layers:], self.bends[bends:]

    @property
    def said(self) -> str:
        return f"{self.layers[0]} to {self.layers[-1]}, {len(self.bends)} activations"

    def run(self, choose: Choose, *, prove: bool) -> Ball:
        ball = Ball(self.start, self.size, self.like, prove=True) if prove else self._roughly()
        for step in self.steps:
            step(ball, choose)
        return ball


class Writer:
    """Turns nodes into steps, one after the other. Raises `Unsupported` for what it has none for."""

    def __init__(
        self, graph: Graph, maps: Mapping[str, LinearMap], device: torch.device, points: frozenset[str]
    ) -> None:
        """`points`: the bottlenecks at which a program may end."""
        self.graph, self.maps = graph, maps
        self.like = torch.zeros((), dtype=torch.float64, device=device)
        self.shapes = {node.name: node.shape for node in graph.nodes} | {"input": (1, *graph.input_shape)}
        self.places = {node.name: place for place, node in enumerate(graph.nodes)} | {"input": -1}
        self.last = {name: place for place, node in enumerate(graph.nodes) for name in node.refs()}
        self.last[graph.output] = len(graph.nodes)
        self.points = points

    def size(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def program(self, start: str) -> Program | None:
        """From a bottleneck to the last one that steps lead to; None if no layers are taken together on the way."""
        if self.size(start) > MOST_SIDE:
            return None
        program = Program(start, self.size(start), start, self.like, width=self.size(start))
        reached, live = 0, {start}
        for place in range(self.places[start] + 1, len(self.graph.nodes)):
            node = self.graph.nodes[place]
            try:
                program.steps.append(self._step(node, program, live))
            except Unsupported as why:
                program.why_not = f"{node.title}: {why}"
                break
            live = {name for name in (*live, node.name) if self.last.get(name, -1) > place}
            program.steps.append(forget(frozenset(live)))
            if node.name in self.points and program.kinds[-1:] == ["map"] and "bend" in program.kinds:
                reached = len(program.steps)
                program.reach(node.name, self.size(node.name))
        program.cut(reached)
        return program if reached else None

    def _step(self, node: Node, program: Program, live: set[str]) -> Step:
        name, refs = node.name, node.refs()
        if not refs or not live.issuperset(refs):
            raise Unsupported("an operand that is not in the ball")
        if self.size(name) > MOST_SIDE:
            raise Unsupported(f"more than {MOST_SIDE} entries")
        if node.op in LINEAR and len(refs) == 1 and name in self.maps:
            return self._linear(node, self.maps[name], program)
        if node.op in SUMS and len(refs) == 2:
            return self._sum(node)
        if node.op == "cat.default" and len(refs) == len(node.args["tensors"]):
            return self._concatenation(node)
        if (node.op in EXTREMES or node.op == "sort.default") and self.size(refs[0]) > MOST_EXCHANGED:
            raise Unsupported(f"exchanges of more than {MOST_EXCHANGED} entries")
        if node.op in EXTREMES and len(refs) == 2:
            return self._extreme(node, program, live)
        if node.op == "sort.default":
            return self._sorted(node, program)
        interval = slopes(node) if len(refs) == 1 else None
        if interval is None or self.shapes[refs[0]] != node.shape:
            raise Unsupported(node.op)
        again = self.last[refs[0]] > self.places[name]
        number = _counted(program, self.size(name), 2 if interval[0] else 1, joined=len(live) > 1 or again)
        program.layers.append(node.title)
        return program.bend(number, refs[0], name, interval, again)

    def _extreme(self, node: Node, program: Program, live: set[str]) -> Step:
        """See Note [Exchanges]; the larger and the smaller one of the same tensors share their activation."""
        (one, two), larger = (node.args[key] for key in ("self", "other")), EXTREMES[node.op]
        if not isinstance(one, Ref) or not isinstance(two, Ref):
            raise Unsupported(node.op)
        if not self.shapes[one.name] == self.shapes[two.name] == node.shape:
            raise Unsupported("the larger of tensors of different shapes")
        first, second = sorted((one.name, two.name))
        moved, target = f"relu({first} - {second})", node.name
        apart = f"{moved}: in front"
        bend = None
        if moved not in live:
            bend = program.bend(_counted(program, self.size(target), 1, joined=True), apart, moved, (0.0, 1.0), False)
            program.layers.append(node.title)
            alike = (n for n in self.graph.nodes if n.op in EXTREMES and set(n.refs()) == {first, second})
            self.last[moved] = max(self.places[n.name] for n in alike)
            live.add(moved)

        def step(ball: Ball, choose: Choose) -> None:
            if bend is not None:
                ball.add(first, second, apart, -1.0)
                bend(ball, choose)
            ball.add(second if larger else first, moved, target, 1.0 if larger else -1.0)

        return step

    def _sorted(self, node: Node, program: Program) -> Step:
        """See Note [Exchanges]."""
        (source,), target, dim = node.refs(), node.name, int(node.args["dim"])
        shape = self.shapes[source]
        count = shape[dim]
        if shape != node.shape or count > MOST_SORTED:
            raise Unsupported(f"a sort of more than {MOST_SORTED} values, or of a tensor of another shape")
        places = torch.arange(self.size(source), device=self.like.device).reshape(shape).movedim(dim, -1)
        if node.args.get("descending"):
            places = places.flip(-1)
        rounds = []
        for number in range(count if count > 2 else count - 1):
            small, large = places[..., number % 2 : count - 1 : 2], places[..., number % 2 + 1 :: 2]
            bent = _counted(program, small.numel(), 2, joined=True)
            bend = program.bend(bent, f"{target}: apart", f"{target}: moved", (0.0, 1.0), False)
            rounds.append((small.flatten(), large.flatten(), bend))
        program.layers.append(node.title)

        def step(ball: Ball, choose: Choose) -> None:
            here = source
            for small, large, bend in rounds:
                _exchange(ball, choose, here, target, (small, large), bend)
                here = target
            if not rounds:
                ball.rename(source, target)

        return step

    def _linear(self, node: Node, linear: LinearMap, program: Program) -> Step:
        (source,), target = node.refs(), node.name
        if math.prod(linear.input_shape) != self.size(source):
            raise Unsupported("a map from somewhere else")
        if isinstance(linear, Identity):
            return lambda ball, _: ball.rename(source, target)
        if node.op in MOVES:
            places = torch.arange(self.size(source), dtype=torch.float64, device=self.like.device)
            index = linear.apply(places.reshape(linear.input_shape)).flatten().long()
            return lambda ball, _: ball.rows(source, target, index)
        if isinstance(linear, Scale):
            factor = linear.factor.to(self.like).expand(linear.input_shape).flatten()
            return lambda ball, _: ball.scaled(source, target, factor, linear.relative_error)
        matrix = written(linear, self.size(target), self.like)
        program.layers.append(node.title)
        program.kinds.append("map")
        program.flops += 2.0 * matrix.entries.numel() * program.width
        return lambda ball, _: ball.linear(source, target, matrix)

    def _sum(self, node: Node) -> Step:
        first, second = node.args["self"], node.args["other"]
        factor = float(node.args.get("alpha") or 1)
        if not isinstance(first, Ref) or not isinstance(second, Ref) or node.args.get("alpha") == 0:
            raise Unsupported(node.op)
        if node.op.startswith("rsub"):
            first, second = second, first
        factor = factor if node.op.startswith("add") else -factor
        if self.shapes[first.name] != node.shape or self.shapes[second.name] != node.shape:
            raise Unsupported("a sum of tensors of different shapes")
        one, two, target = first.name, second.name, node.name
        return lambda ball, _: ball.add(one, two, target, factor)

    def _concatenation(self, node: Node) -> Step:
        names = [ref.name for ref in node.args["tensors"]]
        ends = torch.tensor([0, *(self.size(name) for name in names)]).cumsum(0)
        parts = [
            torch.arange(int(a), int(b)).reshape(self.shapes[name])
            for name, a, b in zip(names, ends[:-1], ends[1:], strict=True)
        ]
        index = torch.cat(parts, node.args["dim"]).flatten().to(self.like.device)
        target = node.name

        def step(ball: Ball, _: Choose) -> None:
            ball.stack(names, target)
            ball.rows(target, target, index)

        return step


def _counted(program: Program, size: int, times: int, *, joined: bool) -> int:
    """The number of a new bend of so many entries; `joined`: other tensors are still needed."""
    program.bends.append(size)
    program.kinds += ["bend"] if program.kinds else []
    program.flops += 2.0 * size**2 * program.width + 3.0 * size**3
    program.width = size + (program.width if joined else 0)
    program.entries += float(size * program.width) * times
    return len(program.bends) - 1


def _exchange(
    ball: Ball, choose: Choose, source: str, target: str, pairs: tuple[torch.Tensor, torch.Tensor], bend: Step
) -> None:
    """The smaller of each pair of entries at the first place, the larger at the second; see Note [Exchanges]."""
    small, large = pairs
    apart, moved = f"{target}: apart", f"{target}: moved"
    ball.rows(source, apart, small)
    ball.rows(source, moved, large)
    ball.add(apart, moved, apart, -1.0)
    del ball.images[moved]
    bend(ball, choose)
    entries = ball.written(ball.images[source]).shape[1]
    index = torch.full((entries,), -1, dtype=torch.int64, device=small.device)
    sign = torch.zeros(entries, dtype=torch.float64, device=small.device)
    index[small] = index[large] = torch.arange(len(small), device=small.device)
    sign[small], sign[large] = -1.0, 1.0
    ball.rows(moved, moved, index)
    ball.scaled(moved, moved, sign, 0.0)
    ball.add(source, moved, target)
    del ball.images[moved]


def written(linear: LinearMap, outputs: int, like: torch.Tensor) -> Matrix:
    """The map as a matrix, column by column; raises `Unsupported` if it is too large."""
    inputs = math.prod(linear.input_shape)
    if isinstance(linear, Dense) and inputs == linear.terms:
        entries, error = linear.weight.to(like), linear.relative_error
    else:
        if inputs * outputs > MOST_ENTRIES:
            raise Unsupported(f"a matrix of {inputs} columns and {outputs} rows")
        entries = like.new_empty(outputs, inputs)
        for first in range(0, inputs, _COLUMNS):
            count = min(_COLUMNS, inputs - first)
            basis = like.new_zeros(count, inputs)
            basis.diagonal(first).fill_(1.0)
            with quiet_vmap():
                columns = torch.func.vmap(linear.apply)(basis.reshape(count, *linear.input_shape))
            entries[:, first : first + count] = columns.reshape(count, -1).mT
        # One product of each sum is not zero; the factors of pools are rounded once or twice.
        error = linear.relative_error + gamma(linear.terms + 4)
    if entries.numel() > MOST_ENTRIES or not bool(torch.isfinite(entries).all()):
        raise Unsupported("a matrix of too many entries, or of numbers that are not finite")
    size = norm_up(entries)
    off = up(size * error) + TINY if error else 0.0
    norm = up(min(size, schur_test(linear, like.device)) + off)
    return Matrix(entries[None], norm, off)


def forget(live: frozenset[str]) -> Step:
    return lambda ball, _: ball.keep(live)
