"""What a part of the graph does to the ball, step by step, with every linear map written out as a matrix.

A step is a function of a ball and of a chooser of multipliers; the same steps run without proof while multipliers are
sought, and once more with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    "channel_shuffle.default", "slice.Tensor", "select.int", "expand.default", "repeat.default",
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


SUMS = frozenset({"add.Tensor", "sub.Tensor", "rsub.Tensor"})
_COLUMNS = 256


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

    def run(self, choose: Choose, *, prove: bool) -> Ball:
        ball = Ball(self.start, self.size, self.like, prove=prove)
        for step in self.steps:
            step(ball, choose)
        return ball


class Writer:
    """Turns nodes into steps, one after the other. Raises `Unsupported` for what it has none for."""

    def __init__(self, graph: Graph, maps: Mapping[str, LinearMap], device: torch.device) -> None:
        self.graph, self.maps = graph, maps
        self.like = torch.zeros((), dtype=torch.float64, device=device)
        self.shapes = {node.name: node.shape for node in graph.nodes} | {"input": (1, *graph.input_shape)}
        self.places = {node.name: place for place, node in enumerate(graph.nodes)} | {"input": -1}
        self.last = {name: place for place, node in enumerate(graph.nodes) for name in node.refs()}
        self.last[graph.output] = len(graph.nodes)

    def size(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def program(self, start: str, end: str) -> Program:
        """All nodes after `start` up to `end`: two nodes through which alone later ones see the input."""
        program = Program(start, self.size(start), end, self.like)
        program.width = self.size(start)
        live = {start}
        for place in range(self.places[start] + 1, self.places[end] + 1):
            node = self.graph.nodes[place]
            if not node.refs() or not live.issuperset(node.refs()):
                raise Unsupported(f"{node.op} reads what is not in the ball")
            if self.size(node.name) > MOST_SIDE:
                raise Unsupported(f"more than {MOST_SIDE} entries")
            program.steps.append(self._step(node, program, live))
            live = {name for name in (*live, node.name) if self.last.get(name, -1) > place or name == end}
            program.steps.append(_forget(frozenset(live)))
        return program

    def _step(self, node: Node, program: Program, live: set[str]) -> Step:
        name, refs = node.name, node.refs()
        if node.op in LINEAR and len(refs) == 1 and name in self.maps:
            return self._linear(node, self.maps[name], program)
        if node.op in SUMS and len(refs) == 2:
            return self._sum(node)
        if node.op == "cat.default" and len(refs) == len(node.args["tensors"]):
            return self._concatenation(node)
        interval = slopes(node) if len(refs) == 1 else None
        if interval is None or self.shapes[refs[0]] != node.shape:
            raise Unsupported(node.op)
        number, again = len(program.bends), self.last[refs[0]] > self.places[name]
        size = self.size(name)
        program.bends.append(size)
        program.flops += 2.0 * size**2 * program.width + 3.0 * size**3
        program.width = size + (program.width if len(live) > 1 or again else 0)
        program.layers.append(node.title)

        def step(ball: Ball, choose: Choose) -> None:
            if ball.prove and len(ball.images) > 1:
                ball.compress()
            ball.bend(refs[0], name, lambda v: choose(number, v), interval, again=again)

        return step

    def _linear(self, node: Node, linear: LinearMap, program: Program) -> Step:
        (source,), target = node.refs(), node.name
        if math.prod(linear.input_shape) != self.size(source):
            raise Unsupported(f"{node.op} with a map from somewhere else")
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
            for name, a, b in zip(names, ends, ends[1:], strict=True)
        ]
        index = torch.cat(parts, node.args["dim"]).flatten().to(self.like.device)
        target = node.name

        def step(ball: Ball, _: Choose) -> None:
            ball.stack(names, target)
            ball.rows(target, target, index)

        return step


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


def _forget(live: frozenset[str]) -> Step:
    return lambda ball, _: ball.keep(live)
