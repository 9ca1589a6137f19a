"""Linear branches of one tensor that are summed again: one map, whose norm is at most the sum of theirs.

x + conv3(x) + conv1(x), a dense layer with a low-rank correction, the three branches of a RepVGG block in training
form: as one kernel they may have a fraction of the bound, as branches that cancel do not add up.

Note [One map]
    A(x) + c B(x) has the kernel A + c B once both are written with the same taps. Its entries are computed in float64;
    what they may be off by, relatively, becomes the `relative_error` of the map. Where an entry cancels altogether but
    for rounding there is no such number, and the branches stay apart.
    A rounding error inside a branch grows by the maps of that branch that come after it, as in Note [Error recursion].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.propagator import Inner, Ledger, Link, Value, merged
from lipaudit.norms.linear_maps import Conv, Dense, Identity, LinearMap, Scale
from lipaudit.norms.merging import relative_error
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, gamma, up

_MOST_ENTRIES = 2**24


@dataclass(frozen=True)
class _Branch:
    """A linear function of the tensor of node `origin`."""

    origin: str
    links: tuple[Link, ...]


def one_map(node: Node, ledger: Ledger, operands: dict[str, Value], factor: float) -> Value | None:
    """first + factor second as one map of one tensor; None if they are not such branches. See Note [One map]."""
    first, (x, y) = next(iter(operands)), operands.values()
    if x.step != y.step or any(ledger.shape_of(node, name) != tuple(node.shape) for name in operands):
        return None
    common = 0
    for a, b in zip(x.chain, y.chain, strict=False):
        if a is not b:
            break
        common += 1
    branches = [_branch(node, name, value, common, ledger) for name, value in operands.items()]
    if branches[0].origin != branches[1].origin:
        return None
    shape = ledger.shape_of(node, first) if not branches[0].links else branches[0].links[0].linear.input_shape
    maps = [_map_of(branch, shape) for branch in branches]
    together = _sum(maps[0], maps[1], factor) if maps[0] is not None and maps[1] is not None else None
    if together is None:
        return None
    ledger.inner[node.name] = Inner(
        branches[0].origin,
        max(1.0, abs(factor)),
        tuple(
            (part, linear, growth * scale)
            for branch, scale in zip(branches, (1.0, abs(factor)), strict=True)
            for part, linear, growth in _within(branch, ledger)
        ),
    )
    return ledger.pend(node, replace(x, chain=x.chain[:common]), together)


def centred(node: Node, ledger: Ledger, operands: dict[str, Value], factor: float) -> Value | None:
    """x - mean(x) over some axes is a projection: 1; None for anything else."""
    (first, x), (second, y) = operands.items()
    mean = ledger.node(node.args[second].name)
    if factor != -1 or mean is None or mean.op != "mean.dim" or not mean.args["keepdim"]:
        return None
    links = y.chain[len(x.chain) :]
    same = mean.args["self"].name == node.args[first].name and ledger.shape_of(node, first) == tuple(node.shape)
    if not same or len(links) != 1 or links[0].parts[0][0] is not mean:
        return None
    copies = up(math.sqrt(math.prod(node.shape) / math.prod(mean.shape)))
    parts = (*links[0].parts, (node, None))
    grown = [(mean.name, copies), (node.name, 1.0)]
    return ledger.replaced(node, x, Upper(1.0, "projection", "x - mean(x) is a projection"), parts, grown)


def _branch(node: Node, name: str, value: Value, common: int, ledger: Ledger) -> _Branch:
    links = value.chain[common:]
    if not links:
        return _Branch(node.args[name].name, links)
    part = links[0].parts[0][0]
    return _Branch(ledger.inner[part.name].origin if part.name in ledger.inner else part.refs()[0], links)


def _within(branch: _Branch, ledger: Ledger) -> list[tuple[Node, LinearMap | None, float]]:
    """The operations of a branch, and how far a rounding error of each grows until the sum."""
    parts = [part for link in branch.links for part in link.parts]
    known: dict[str, tuple[Node, LinearMap | None]] = {part.name: (part, linear) for part, linear in parts}
    for name in [*known]:
        if name in ledger.inner:
            known |= {part.name: (part, linear) for part, linear, _ in ledger.inner[name].parts}
    return [(*known[name], growth) for name, growth in ledger.factors(parts)]


def _map_of(branch: _Branch, shape: tuple[int, ...]) -> LinearMap | None:
    links = merged(branch.links)
    if not links:
        return Identity(shape)
    linear: LinearMap | None = links[0].linear
    for link in links[1:]:
        if not (isinstance(linear, Dense) and isinstance(link.linear, Dense)):
            return None
        linear = _product(linear, link.linear)
        if linear is None:
            return None
    return linear


def _product(first: Dense, then: Dense) -> Dense | None:
    """Two dense layers as one, where that is no larger than both."""
    if then.weight.shape[0] * first.weight.shape[1] > _MOST_ENTRIES:
        return None
    weight = then.weight @ first.weight
    size = then.weight.abs() @ first.weight.abs()
    off = (2 * gamma(first.weight.shape[0] + 2) + 1.01 * (first.relative_error + then.relative_error)) * size
    error = relative_error(off, weight)
    return None if error is None else Dense(weight, first.input_shape, error)


def _sum(first: LinearMap, second: LinearMap, factor: float) -> LinearMap | None:
    if isinstance(first, Dense) or isinstance(second, Dense):
        return _dense_sum(first, second, factor)
    if isinstance(first, Conv) or isinstance(second, Conv):
        return _conv_sum(first, second, factor)
    diagonals = [_diagonal(linear) for linear in (first, second)]
    if diagonals[0] is None or diagonals[1] is None or first.input_shape != second.input_shape:
        return None
    added = _added(diagonals[0], diagonals[1], factor, first.relative_error, second.relative_error)
    return None if added is None else Scale(added[0], first.input_shape, added[1])


def _diagonal(linear: LinearMap) -> torch.Tensor | None:
    if isinstance(linear, Identity):
        return torch.ones((), dtype=torch.float64)
    return linear.factor if isinstance(linear, Scale) else None


def _dense_sum(first: LinearMap, second: LinearMap, factor: float) -> Dense | None:
    size = next(m.weight.shape for m in (first, second) if isinstance(m, Dense))
    weights = [_as_matrix(linear, size) for linear in (first, second)]
    if weights[0] is None or weights[1] is None or first.input_shape != second.input_shape:
        return None
    added = _added(weights[0], weights[1], factor, first.relative_error, second.relative_error)
    return None if added is None else Dense(added[0], first.input_shape, added[1])


def _as_matrix(linear: LinearMap, size: Sequence[int]) -> torch.Tensor | None:
    if isinstance(linear, Dense):
        return linear.weight
    if size[0] != size[1]:
        return None
    eye = torch.eye(size[0], dtype=torch.float64)
    if isinstance(linear, Identity):
        return eye
    scale = linear.per_channel(-1) if isinstance(linear, Scale) else None
    return None if scale is None else scale.diag()


def _added(
    first: torch.Tensor, second: torch.Tensor, factor: float, error: float, other: float
) -> tuple[torch.Tensor, float] | None:
    """first + factor second, and its relative error."""
    device = first.device if first.device.type != "cpu" else second.device
    first, second = first.to(device), second.to(device) * factor
    weight = first + second
    off = (
        2 * UNIT * weight.abs()
        + 1.01 * error * first.abs()
        + (1.01 * other + 2 * UNIT * (abs(factor) != 1)) * second.abs()
    )
    # A sum of two floats is often exact, as where one of them is zero: then nothing is off.
    back = weight - first
    exact = ((first - (weight - back)) + (second - back)) == 0
    off = off - (2 * UNIT * weight.abs()).masked_fill(~exact, 0.0)
    relative = relative_error(off.clamp_min(0.0), weight)
    return None if relative is None else (weight, relative)


def _conv_sum(first: LinearMap, second: LinearMap, factor: float) -> Conv | None:
    like = first if isinstance(first, Conv) else second
    assert isinstance(like, Conv)
    convs = [_as_conv(linear, like) for linear in (first, second)]
    a, b = convs
    if a is None or b is None or a.stride != b.stride or a.input_size != b.input_size or a.output_size != b.output_size:
        return None
    if a.groups != b.groups:
        a, b = _ungrouped(a), _ungrouped(b)
    if a is None or b is None or a.weight.shape[:2] != b.weight.shape[:2]:
        return None
    before = [max(p[0], q[0]) for p, q in zip(a.padding, b.padding, strict=True)]
    ends = [
        [(k - 1) * d + 1 - p[0] for k, d, p in zip(c.kernel_size, c.dilation, c.padding, strict=True)] for c in (a, b)
    ]
    sizes = [p + max(e, f) for p, e, f in zip(before, *ends, strict=True)]
    rows = zip(a.output_size, a.stride, sizes, a.input_size, before, strict=True)
    after = [(m - 1) * s + k - n - p for m, s, k, n, p in rows]
    if min(after) < 0 or math.prod(a.weight.shape[:2]) * math.prod(sizes) > _MOST_ENTRIES:
        return None
    kernels = [_spread(c, sizes, before) for c in (a, b)]
    added = _added(kernels[0], kernels[1], factor, a.relative_error, b.relative_error)
    if added is None:
        return None
    ones = (1,) * len(sizes)
    padding = tuple(zip(before, after, strict=True))
    kernel = replace(a, weight=added[0], relative_error=added[1])
    return replace(kernel, padding=padding, padding_mode="zeros", dilation=ones)  # one without padding has any mode


def _as_conv(linear: LinearMap, like: Conv) -> Conv | None:
    """The map as a convolution with zero padding on images of the size of those of `like`."""
    if isinstance(linear, Conv):
        return linear if linear.padding_mode == "zeros" or not any(map(sum, linear.padding)) else None
    channels = like.input_shape[1]
    if linear.input_shape != like.input_shape:
        return None
    factor = torch.ones(channels, dtype=torch.float64, device=like.weight.device)
    if isinstance(linear, Scale):
        scale = linear.per_channel(1)
        if scale is None:
            return None
        factor = scale.to(like.weight.device)
    elif not isinstance(linear, Identity):
        return None
    axes = len(like.input_size)
    weight = factor.reshape(-1, 1, *(1,) * axes)
    none, ones = ((0, 0),) * axes, (1,) * axes
    return Conv(weight, like.input_size, ones, none, ones, channels, relative_error=linear.relative_error)


def _ungrouped(conv: Conv) -> Conv | None:
    """The same convolution with zeros between its groups."""
    if conv.groups == 1:
        return conv
    outs, ins = conv.weight.shape[:2]
    if outs * ins * conv.groups * math.prod(conv.kernel_size) > _MOST_ENTRIES:
        return None
    weight = conv.weight.new_zeros(outs, ins * conv.groups, *conv.kernel_size)
    height = outs // conv.groups
    for k in range(conv.groups):
        weight[k * height : (k + 1) * height, k * ins : (k + 1) * ins] = conv.weight[k * height : (k + 1) * height]
    return replace(conv, weight=weight, groups=1)


def _spread(conv: Conv, sizes: Sequence[int], before: Sequence[int]) -> torch.Tensor:
    """Its kernel among taps of these sizes, of which that many come before the pixel itself."""
    kernel = conv.weight.new_zeros(*conv.weight.shape[:2], *sizes)
    places = [
        slice(p - q[0], p - q[0] + (k - 1) * d + 1, d)
        for p, q, k, d in zip(before, conv.padding, conv.kernel_size, conv.dilation, strict=True)
    ]
    kernel[(slice(None), slice(None), *places)] = conv.weight
    return kernel
