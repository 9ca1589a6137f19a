"""Convolutions that are taken together, frequency by frequency: programs whose tensors are images on one torus.

Note [Images on a torus]
    All tensors of a program are read modulo one period, with a twist of -1 (parity_torus in `norms/torus.py`): then a
    convolution is a matrix for each frequency, and so is the ball. A tensor whose scale is finer than the coarsest by
    a factor r has its r^2 phases as entries beside its channels (polyphase). The period is so long that no tap of any
    layer, inside the image, reads another end of it: a zero that is padded is a zero of the period.
    What a convolution gives outside of the image is not what the network has there, which is nothing. Such a tensor is
    not `clean`. Activations make it so again: the entries outside have slope 0. Only a kernel of one tap may read what
    is not clean, since it mixes no places. At the end, leaving out what is outside makes no vector longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lipaudit.domains.ellipsoid.ball import Matrix
from lipaudit.domains.ellipsoid.program import SUMS, Program, Step, Unsupported, forget
from lipaudit.domains.ellipsoid.slopes import slopes
from lipaudit.domains.graph import Graph, Node, Ref
from lipaudit.norms.linear_maps import Conv, Identity, LinearMap, Pad, Scale
from lipaudit.norms.symbol import PHASE_ERROR, angles, half_grid
from lipaudit.rounding import TINY, UNIT, gamma, norm_up, up

MOST_CHANNELS = 1100
"""Entries of one frequency: channels times phases."""
MOST_BYTES = 2**30
"""Of all matrices of a program."""
MOST_BENDS = 12

_CONVOLUTIONS = frozenset({"conv1d.default", "conv2d.default", "conv1d.padding", "conv2d.padding"})
_SCALES = frozenset({
    "_native_batch_norm_legit_no_training.default", "mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar",
    "neg.default", "add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar",
})  # fmt: skip


@dataclass(frozen=True)
class _Tensor:
    """Where the image lies on the torus: per axis its size, and how often its places fit into one coarse place."""

    channels: int
    size: tuple[int, ...]
    phases: tuple[int, ...]
    clean: bool

    @property
    def entries(self) -> int:
        return self.channels * math.prod(self.phases)


class Images:
    """Writes programs of convolutions. Raises `Unsupported` inside, for what has no step."""

    def __init__(
        self, graph: Graph, maps: Mapping[str, LinearMap], device: torch.device, points: frozenset[str]
    ) -> None:
        self.graph, self.maps, self.points, self.device = graph, maps, points, device
        self.like = torch.zeros((), dtype=torch.complex128, device=device)
        self.shapes = {node.name: node.shape for node in graph.nodes} | {"input": (1, *graph.input_shape)}
        self.places = {node.name: place for place, node in enumerate(graph.nodes)} | {"input": -1}
        self.last = {name: place for place, node in enumerate(graph.nodes) for name in node.refs()}
        self.last[graph.output] = len(graph.nodes)
        self.scales: dict[str, tuple[int, ...]] = {}
        """By node of the program: how much coarser the image is than at its start."""
        self.coarsest: tuple[int, ...] = ()

    def program(self, start: str) -> Program | None:
        """From a bottleneck as far as there are steps and no second change of scale; None if that gains nothing."""
        if len(self.shapes[start]) not in (3, 4):
            return None
        nodes = self._nodes(start)
        if nodes is None:
            return None
        channels, *size = self.shapes[start][1:]
        stride = self.coarsest
        tensors = {start: _Tensor(channels, tuple(size), stride, True)}
        sizes = self._period(start, nodes, stride)
        program = Program(start, tensors[start].entries, start, self.like, width=tensors[start].entries)
        program.index = half_grid(sizes, (1,) * len(sizes)).to(self.device)
        program.sizes = tuple(sizes)
        reached, live = 0, {start}
        for node in nodes:
            try:
                program.steps.append(self._step(node, program, tensors, live))
            except Unsupported as why:
                program.why_not = f"{node.title}: {why}"
                break
            place = self.places[node.name]
            live = {name for name in (*live, node.name) if self.last.get(name, -1) > place}
            program.steps.append(forget(frozenset(live)))
            if node.name in self.points and program.kinds[-1:] == ["map"] and "bend" in program.kinds:
                reached = len(program.steps)
                program.reach(node.name, tensors[node.name].entries)
        program.cut(reached)
        return program if reached else None

    def _nodes(self, start: str) -> list[Node] | None:
        """Up to the node before a second change of scale, or the first without a step of its kind; None if none."""
        none = (1,) * (len(self.shapes[start]) - 2)
        self.scales, most = {start: none}, none
        found, bends = [], 0
        for node in self.graph.nodes[self.places[start] + 1 :]:
            refs, factor = node.refs(), self._factor(node)
            if not refs or factor is None or not all(ref in self.scales for ref in refs):
                break
            before = self.scales[refs[0]]
            after = tuple(b * f for b, f in zip(before, factor, strict=True))
            coarsest = tuple(max(pair) for pair in zip(most, after, strict=True))
            # Finer images would have to be written in phases: only those in front of the first activation are.
            if any(self.scales[ref] != before for ref in refs) or (bends and coarsest != most):
                break
            bends += slopes(node) is not None and len(refs) == 1
            if bends > MOST_BENDS:
                break
            self.scales[node.name], most = after, coarsest
            found.append(node)
        self.coarsest = most
        return found or None

    def _factor(self, node: Node) -> tuple[int, ...] | None:
        """By what each axis becomes coarser; None for an operation without a step."""
        refs = node.refs()
        if not refs or len(node.shape) not in (3, 4) or len(self.shapes[refs[0]]) != len(node.shape):
            return None
        axes = len(node.shape) - 2
        linear = self._conv(node)
        if linear is not None:
            return linear.stride
        if node.op == "slice.Tensor":
            step = int(node.args["step"])
            dim = int(node.args["dim"]) % len(node.shape)
            return tuple(step if dim == axis + 2 else 1 for axis in range(axes)) if dim >= 2 else (1,) * axes
        known = node.op in _SCALES or node.op in SUMS or node.op in ("constant_pad_nd.default", "pad.default")
        return (1,) * axes if known or slopes(node) is not None else None

    def _conv(self, node: Node) -> Conv | None:
        linear = self.maps.get(node.name)
        if node.op in _CONVOLUTIONS and isinstance(linear, Conv) and linear.padding_mode == "zeros":
            return linear
        if node.op not in ("avg_pool1d.default", "avg_pool2d.default") or len(node.refs()) != 1:
            return None
        axes, args = len(node.shape) - 2, node.args
        kernel, stride, padding = (list(args[name]) * (axes // max(1, len(args[name]))) for name in _POOL)
        if args["ceil_mode"] or args.get("divisor_override") or (any(padding) and not args["count_include_pad"]):
            return None
        channels, size = node.shape[1], self.shapes[node.refs()[0]][2:]
        count = math.prod(kernel)
        weight = torch.full((channels, 1, *kernel), 1.0 / count, dtype=torch.float64, device=self.device)
        pads = tuple((p, p) for p in padding)
        stride = stride or kernel
        return Conv(weight, tuple(size), tuple(stride), pads, (1,) * axes, channels, relative_error=2 * UNIT)

    def _period(self, start: str, nodes: Sequence[Node], stride: tuple[int, ...]) -> list[int]:
        """Coarse places per axis: so many that no tap inside an image meets its other end."""
        sizes = [-(-n // s) for n, s in zip(self.shapes[start][2:], stride, strict=True)]
        for node in nodes:
            conv = self._conv(node)
            for axis, s in enumerate(stride):
                needed = -(-self.shapes[node.name][2 + axis] * self.scales[node.name][axis] // s)
                if conv is not None:
                    phases = s // self.scales[node.refs()[0]][axis]
                    reach = conv.input_size[axis] + max(conv.padding[axis])
                    needed = max(needed, -(-reach // phases))
                sizes[axis] = max(sizes[axis], needed)
        return sizes

    def _step(self, node: Node, program: Program, tensors: dict[str, _Tensor], live: set[str]) -> Step:
        name, refs = node.name, node.refs()
        if not live.issuperset(refs):
            raise Unsupported("an operand that is not in the ball")
        here, stride = tensors[refs[0]], tensors[program.start].phases
        phases = tuple(s // t for s, t in zip(stride, self.scales[name], strict=True))
        if any(p * t != s for p, t, s in zip(phases, self.scales[name], stride, strict=True)):
            raise Unsupported("scales that do not divide")
        channels, *size = node.shape[1:]
        after = _Tensor(channels, tuple(size), phases, here.clean)
        conv = self._conv(node)
        if conv is not None:
            return self._convolution(node, conv, program, tensors, after)
        if len(refs) == 2 and node.op in SUMS:
            return self._sum(node, tensors, after)
        if len(refs) != 1:
            raise Unsupported(node.op)
        linear = self.maps.get(name)
        if node.op in _SCALES and isinstance(linear, Identity) and here.size == after.size:
            tensors[name] = after
            return lambda ball, _: ball.rename(refs[0], name)
        if node.op in _SCALES and isinstance(linear, Scale) and (factor := linear.per_channel(1)) is not None:
            tensors[name] = after
            rows = factor.to(torch.float64).repeat(math.prod(phases))
            return lambda ball, _: ball.scaled(refs[0], name, rows, linear.relative_error)
        if node.op == "slice.Tensor" or isinstance(linear, Pad):
            return self._rows(node, linear, tensors, after)
        return self._bend(node, program, tensors, after, live)

    def _bend(self, node: Node, program: Program, tensors: dict[str, _Tensor], after: _Tensor, live: set[str]) -> Step:
        name, (source,) = node.name, node.refs()
        interval = slopes(node)
        if interval is None or self.shapes[source] != node.shape:
            raise Unsupported(node.op)
        low, rise = interval
        if low > 0:  # outside of the image the slope is 0
            low, rise = 0.0, up(low + rise)
        if low + rise < 0:
            rise = up(-low)
        tensors[name] = _Tensor(after.channels, after.size, after.phases, True)
        number, again = len(program.bends), self.last[source] > self.places[name]
        side, count = after.entries, 4.0 * len(program.index)
        program.bends.append(side)
        program.kinds += ["bend"] if program.kinds else []
        program.flops += count * (2.0 * side**2 * program.width + 3.0 * side**3 + 60.0 * side**2)
        program.width = side + (program.width if len(live) > 1 or again else 0)
        program.bytes += 16 * len(program.index) * side * program.width
        program.entries += float(len(program.index) * side * program.width) * (2 if low else 1)
        program.layers.append(node.title)
        if program.bytes > MOST_BYTES:
            raise Unsupported("more memory than is allowed")
        return program.bend(number, source, name, (low, rise), again)

    def _convolution(
        self, node: Node, conv: Conv, program: Program, tensors: dict[str, _Tensor], after: _Tensor
    ) -> Step:
        name, (source,) = node.name, node.refs()
        before = tensors[source]
        single = max(conv.kernel_size) == 1 and not any(map(any, conv.padding))
        if not before.clean and not single:
            raise Unsupported("a convolution of an image without an activation")
        if conv.output_size != after.size or conv.input_size != before.size:
            raise Unsupported("sizes that do not fit")
        if before.entries * after.entries > MOST_CHANNELS**2:
            raise Unsupported(f"more than {MOST_CHANNELS} channels")
        program.bytes += 16 * len(program.index) * before.entries * after.entries
        if program.bytes > MOST_BYTES:
            raise Unsupported("more memory than is allowed")
        tensors[name] = _Tensor(after.channels, after.size, after.phases, False)
        matrix = symbol(conv, before.phases, after.phases, program.index, program.sizes)
        program.layers.append(node.title)
        program.kinds.append("map")
        program.flops += 8.0 * matrix.entries.numel() * program.width
        return lambda ball, _: ball.linear(source, name, matrix)

    def _sum(self, node: Node, tensors: dict[str, _Tensor], after: _Tensor) -> Step:
        first, second, alpha = node.args["self"], node.args["other"], node.args.get("alpha")
        factor = 1.0 if alpha is None else float(alpha)
        if not isinstance(first, Ref) or not isinstance(second, Ref) or factor == 0:
            raise Unsupported(node.op)
        if node.op.startswith("rsub"):
            first, second = second, first
        a, b = tensors[first.name], tensors[second.name]
        if (a.size, a.phases, a.channels) != (b.size, b.phases, b.channels) or a.channels != after.channels:
            raise Unsupported("a sum of tensors of different shapes")
        tensors[node.name] = _Tensor(a.channels, a.size, a.phases, a.clean and b.clean)
        one, two, target = first.name, second.name, node.name
        factor = factor if node.op.startswith("add") else -factor
        return lambda ball, _: ball.add(one, two, target, factor)

    def _rows(self, node: Node, linear: LinearMap | None, tensors: dict[str, _Tensor], after: _Tensor) -> Step:
        """Every step-th place from the first one on, or some channels; channels of zeros before and behind."""
        name, (source,) = node.name, node.refs()
        before = tensors[source]
        places = torch.arange(before.entries, device=self.device).reshape(*before.phases, before.channels)
        if node.op == "slice.Tensor":
            dim, step, begin = int(node.args["dim"]) % len(node.shape), int(node.args["step"]), node.args["start"]
            if dim == 1:
                places = places[..., int(begin or 0) :: step][..., : after.channels]
                if int(begin or 0) < 0 or places.shape[-1] != after.channels:
                    raise Unsupported("a slice counted from the end")
            elif dim >= 2 and not begin and after.size[dim - 2] == -(-before.size[dim - 2] // step):
                chosen = torch.arange(0, before.phases[dim - 2], step, device=self.device)
                places = places.index_select(dim - 2, chosen)
            else:
                raise Unsupported("a crop")
        else:
            assert isinstance(linear, Pad)
            spatial, behind = linear.padding[len(linear.padding) - len(after.size) :], linear.padding
            if linear.padding_mode != "zeros" or any(map(any, spatial)) or len(behind) != len(after.size) + 1:
                raise Unsupported("a padding of places")
            if min(behind[0]) < 0:
                raise Unsupported("a crop of channels")
            places = torch.nn.functional.pad(places, behind[0], value=-1)
        if tuple(places.shape) != (*after.phases, after.channels):
            raise Unsupported("a selection that is not one of places or channels")
        tensors[name] = after
        index = places.flatten()
        return lambda ball, _: ball.rows(source, name, index)


_POOL = ("kernel_size", "stride", "padding")


def symbol(
    conv: Conv,
    before: tuple[int, ...],
    after: tuple[int, ...],
    index: torch.Tensor,
    sizes: Sequence[int],
) -> Matrix:
    """The matrix of a convolution for each frequency pi index / size, its inputs and outputs in phases.

    Output phase b at the coarse place i is y[r' i + b] = sum_a K[a] x[s (r' i + b) + d a - p]: with r = s r' phases of
    x, tap a reads phase (s b + d a - p) mod r at the coarse place i + (s b + d a - p) div r.
    """
    groups, (out, per_group) = conv.groups, conv.weight.shape[:2]
    inputs, like = per_group * groups, conv.weight
    full = like.new_zeros(out, inputs, *conv.kernel_size)
    step = out // groups
    for g in range(groups):
        full[g * step : (g + 1) * step, g * per_group : (g + 1) * per_group] = conv.weight[g * step : (g + 1) * step]
    rows, columns = math.prod(after) * out, math.prod(before) * inputs
    blocks: dict[tuple[int, ...], torch.Tensor] = {}
    taps = list(torch.cartesian_prod(*(torch.arange(k) for k in conv.kernel_size)).reshape(-1, len(after)).tolist())
    phases = torch.cartesian_prod(*(torch.arange(r) for r in after)).reshape(-1, len(after)).tolist()
    for number, b in enumerate(phases):
        for a in taps:
            reads = [
                divmod(s * bb + d * aa - p, r)
                for s, bb, d, aa, (p, _), r in zip(conv.stride, b, conv.dilation, a, conv.padding, before, strict=True)
            ]
            place, phase = tuple(q for q, _ in reads), 0
            for (_, c), r in zip(reads, before, strict=True):
                phase = phase * r + c
            block = blocks.setdefault(place, like.new_zeros(rows, columns))
            block[number * out : (number + 1) * out, phase * inputs : (phase + 1) * inputs] += full[(..., *a)]
    places = torch.tensor(list(blocks), dtype=torch.int64, device=like.device)
    flat = torch.stack([block.flatten() for block in blocks.values()])
    turns = angles(index, places, sizes)
    entries = torch.complex(turns.cos() @ flat, turns.sin() @ flat).reshape(-1, rows, columns)
    absolute = norm_up(flat.abs().sum(0)) * (1 + gamma(len(flat) + 4))
    # Cosines, sines and their sums; a place may have several taps where a phase comes by twice.
    error = up((2 * (PHASE_ERROR + gamma(len(flat) + len(taps) + 4)) + conv.relative_error) * absolute) + TINY
    return Matrix(entries, up(absolute + error), error)
