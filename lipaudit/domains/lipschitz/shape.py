"""Operations that copy, move or drop entries: rows of 0 and 1; and padding.

Their norm is the root of the largest number of copies of one entry; moving without copying is an isometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from lipaudit.domains.graph import Node, call
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Piece, Value
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.norms.linear_maps import Gather, Pad
from lipaudit.rounding import up

MAX_POOLS = (
    "max_pool1d.default", "max_pool2d.default", "max_pool3d.default", "max_pool2d_with_indices.default",
    "max_pool3d_with_indices.default",
)  # fmt: skip


def root(count: float) -> float:
    """The square root of a count, rounded up unless it is a whole number."""
    value = math.sqrt(count)
    return value if value * value == count and value.is_integer() else up(value)


def linear_call(node: Node, ledger: Ledger, operand: str, terms: int, coisometry: float | None = None) -> Gather:
    """The node itself as a linear map of its argument `operand`; all its other arguments are constants."""
    fixed = {name: value for name, value in node.args.items() if name != operand}
    return Gather(lambda x: call(node, {**fixed, operand: x}), ledger.shape_of(node, operand), terms, coisometry)


def broadcast(node: Node, ledger: Ledger, value: Value, operand: str) -> Value:
    """The operand stretched to the shape of the output: the root of the number of copies, if any."""
    shape, target = ledger.shape_of(node, operand), tuple(node.shape)
    if shape == target:
        return value
    moved = 1.0 if math.prod(shape) == math.prod(target) else None
    return ledger.pend(node, value, Gather(lambda x: x.expand(target), shape, 1, moved))


def copies(node: Node, ledger: Ledger, operand: str) -> float:
    """The norm of stretching an operand to the shape of the output."""
    entries = math.prod(ledger.shape_of(node, operand))
    return root(math.prod(node.shape) / entries) if entries else 0.0


def constants_only(node: Node, names: Iterable[str], arguments: dict[str, Any]) -> None:
    """Raises `UnsupportedOp` if one of these arguments depends on the input."""
    for name in names:
        value = arguments[name]
        if any(isinstance(v, Value) for v in (value if isinstance(value, list) else [value])):
            raise UnsupportedOp(f"expected {name} of {node.op} not to depend on the input, got one that does")


def _moving(node: Node, arguments: dict[str, Any], operand: str) -> Value:
    """The operand, if it is the only argument that depends on the input."""
    constants_only(node, [name for name in arguments if name != operand], arguments)
    if not isinstance(arguments[operand], Value):
        raise UnsupportedOp(f"expected {operand} of {node.op} to depend on the input, got a constant")
    return arguments[operand]


def _rearranging(op: str, operand: str = "self") -> None:
    def rule(node: Node, ledger: Ledger, **arguments: Any) -> Value:
        """Every entry is moved exactly once: an isometry."""
        if math.prod(ledger.shape_of(node, operand)) != math.prod(node.shape):
            raise ValueError(f"expected as many entries after {node.op} as before, got {node.shape}")
        value = _moving(node, arguments, operand)
        return ledger.pend(node, value, linear_call(node, ledger, operand, 1, coisometry=1.0))

    RULES.rule(op)(rule)


for _op in (
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "permute.default",
    "transpose.int", "t.default", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "roll.default", "flip.default", "rot90.default", "pixel_shuffle.default", "pixel_unshuffle.default",
    "channel_shuffle.default",
):  # fmt: skip
    _rearranging(_op)


def _copying(op: str, operand: str = "self") -> None:
    def rule(node: Node, ledger: Ledger, **arguments: Any) -> Value:
        """Every output is a copy of one entry, or 0: the root of the largest number of copies."""
        value = _moving(node, arguments, operand)
        return ledger.pend(node, value, linear_call(node, ledger, operand, 1))

    RULES.rule(op)(rule)


for _op in (
    "expand.default", "repeat.default", "tile.default", "repeat_interleave.self_int",
    "repeat_interleave.self_Tensor", "unfold.default", "im2col.default", "tril.default", "triu.default",
    "upsample_nearest1d.default", "upsample_nearest2d.default", "upsample_nearest3d.default",
    "_upsample_nearest_exact1d.default", "_upsample_nearest_exact2d.default", "_upsample_nearest_exact3d.default",
):  # fmt: skip
    _copying(_op)

for _op in (
    "upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec",
    "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec",
):  # fmt: skip
    _copying(_op, operand="input")


SELECTIONS = (
    "slice.Tensor", "select.int", "split.Tensor", "split_with_sizes.default", "unbind.int", "chunk.default",
    "index.Tensor", "_unsafe_index.Tensor", "index_select.default", "gather.default", "take_along_dim.default",
    "diagonal.default",
)  # fmt: skip


@RULES.rule(*SELECTIONS)
def selection(node: Node, ledger: Ledger, **arguments: Any) -> Value:
    """Some entries, each once: norm 1, and disjoint selections of one tensor share it (Note [Pieces])."""
    return select(node, ledger, _moving(node, arguments, "self"), "self", linear_call(node, ledger, "self", 1))


def select(node: Node, ledger: Ledger, value: Value, operand: str, linear: Gather) -> Value:
    """The value after a node that hands on some entries of its operand, as a piece of it.

    A selection of a selection is a piece of the tensor at its start too, and of no more of it than these entries:
    x[0::2, 1::2] has no entry in common with x[0::2, 0::2], although both begin with x[0::2].
    """
    shape = ledger.shape_of(node, operand)
    places = linear.apply(as_places(shape, ledger.device))
    if int(_entries(places, math.prod(shape)).sum()) != places.numel():
        return ledger.pend(node, value, linear)  # some entry more than once
    chosen = ledger.select(node, value, operand, linear)
    nodes = {each.name: each for each in ledger.graph.nodes}
    apply: Callable[[torch.Tensor], torch.Tensor] = linear.apply
    start = nodes.get(node.args[operand].name)
    while start is not None and start.op in SELECTIONS:
        apply = _after(apply, start)
        fork, shape = start.args["self"].name, ledger.shape_of(start, "self")
        exact = Piece(fork, _entries(apply(as_places(shape, ledger.device)), math.prod(shape)))
        pieces = tuple(exact if piece.fork == fork else piece for piece in chosen.pieces)
        chosen, start = replace(chosen, pieces=pieces), nodes.get(fork)
    return chosen


def _after(apply: Callable[[torch.Tensor], torch.Tensor], first: Node) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: apply(call(first, {**first.args, "self": x}))


def _entries(places: torch.Tensor, count: int) -> torch.Tensor:
    chosen = torch.zeros(count, dtype=torch.bool, device=places.device)
    chosen[places.long().flatten()] = True
    return chosen


@RULES.rule("col2im.default")
def fold(
    node: Node,
    ledger: Ledger,
    self: Any,
    output_size: Any,
    kernel_size: Any,
    dilation: Any,
    padding: Any,
    stride: Any,
) -> Value:
    """Fold sums the windows that overlap: the transpose of unfold, the root of the largest number of windows."""
    del output_size, dilation, padding, stride  # read off the operation itself
    return ledger.pend(node, self, linear_call(node, ledger, "self", math.prod(kernel_size)))


_PAD_MODES = {"constant": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


@RULES.rule("pad.default")
def pad(node: Node, ledger: Ledger, self: Any, pad: Any, mode: str, value: float | None) -> Value:
    """Padding with a constant is an isometry onto its image; copied borders count the copies of a pixel."""
    if mode not in _PAD_MODES:
        raise UnsupportedOp(f"expected padding mode {', '.join(_PAD_MODES)}, got {mode!r}")
    return _padded(node, ledger, self, pad, _PAD_MODES[mode], 0.0 if value is None else value)


@RULES.rule("constant_pad_nd.default")
def constant_pad(node: Node, ledger: Ledger, self: Any, pad: Any, value: Any) -> Value:
    """Padding with a constant is an isometry onto its image; a negative amount crops."""
    return _padded(node, ledger, self, pad, "zeros", value)


def _padded(node: Node, ledger: Ledger, x: Value, amounts: Any, mode: str, fill: float) -> Value:
    if not math.isfinite(fill):
        _refuse_infinite(node, ledger, fill)
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    # A constant other than zero only shifts the output.
    return ledger.pend(node, x, Pad(tuple(pairs), mode, ledger.shape_of(node, "self")))


def _refuse_infinite(node: Node, ledger: Ledger, fill: float) -> None:
    """-inf is the neutral element of a maximum: in front of max pools it moves nothing, anywhere else it may."""
    readers = {each.op for each in ledger.graph.nodes if node.name in each.refs()}
    if fill != -math.inf or not readers <= set(MAX_POOLS) or not readers:
        raise NotLipschitz(
            f"padding with {fill} is understood only with -inf and in front of max pools (SAME max pooling), got "
            f"{', '.join(sorted(readers)) or 'the output'} behind it; pad with a finite number"
        )


def as_places(entries: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A tensor of that shape that numbers its entries, in float64 (exact far beyond any tensor that fits)."""
    return torch.arange(math.prod(entries), dtype=torch.float64, device=device).reshape(entries)
