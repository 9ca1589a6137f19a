"""Interpolation to another size: a matrix along each axis, the norm of all is the product of their norms.

Note [Interpolation matrices]
    Each output is a weighted sum of the inputs next to its source position. Positions are rational numbers, so the
    weights are computed exactly and rounded once. That they are what torch computes is checked on the operation itself,
    run on random numbers: a mode, or a version of torch, that does anything else is refused.
    Source: positions as in ATen/native/UpSample.h; the antialiased filters are those of Pillow. Cubic weights are the
    convolution kernel of R. Keys (1981), with a = -0.75, antialiased with a = -0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch

from lipaudit.domains.graph import Node, call
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.lipschitz.shape import as_places, constants_only
from lipaudit.errors import UnsupportedOp
from lipaudit.norms.linear_maps import Dense, Gather, schur_test
from lipaudit.norms.methods import norm_bound
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, gamma, up

Row = dict[int, Fraction]
"""Weights of one output by the number of the input."""
HALF = Fraction(1, 2)

_AGREE = 1e-9
"""How far torch's own answer may be from these matrices, relative to the largest input."""


@RULES.rule(
    "upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec", "upsample_bicubic2d.vec",
    "_upsample_bilinear2d_aa.vec", "_upsample_bicubic2d_aa.vec",
)  # fmt: skip
def resample(
    node: Node, ledger: Ledger, input: Any, output_size: Any, align_corners: bool, scale_factors: Any
) -> Value:
    """Interpolation is linear, axis by axis: the product of the norms of its matrices."""
    del output_size  # read off the output
    return _resampled(node, ledger, input, "input", align_corners, scale_factors)


@RULES.rule("upsample_linear1d.default")
def resample_signal(
    node: Node, ledger: Ledger, self: Any, output_size: Any, align_corners: bool, scales: float | None
) -> Value:
    """Interpolation is linear: the norm of its matrix."""
    del output_size
    return _resampled(node, ledger, self, "self", align_corners, [scales])


@RULES.rule("_upsample_bilinear2d_aa.default", "_upsample_bicubic2d_aa.default")
def resample_image(
    node: Node,
    ledger: Ledger,
    self: Any,
    output_size: Any,
    align_corners: bool,
    scales_h: float | None,
    scales_w: float | None,
) -> Value:
    """Interpolation is linear, axis by axis: the product of the norms of its matrices."""
    del output_size
    return _resampled(node, ledger, self, "self", align_corners, [scales_h, scales_w])


@RULES.rule("upsample_trilinear3d.default")
def resample_volume(
    node: Node,
    ledger: Ledger,
    self: Any,
    output_size: Any,
    align_corners: bool,
    scales_d: float | None,
    scales_h: float | None,
    scales_w: float | None,
) -> Value:
    """Interpolation is linear, axis by axis: the product of the norms of its matrices."""
    del output_size
    return _resampled(node, ledger, self, "self", align_corners, [scales_d, scales_h, scales_w])


@RULES.rule("grid_sampler_2d.default", "grid_sampler_3d.default")
def sample_at(
    node: Node,
    ledger: Ledger,
    input: Any,
    grid: Any,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Value:
    """Sampling at constant places: a linear map without negative weights, by the Schur test."""
    del padding_mode, align_corners  # read off the operation itself
    constants_only(node, ["grid"], {"grid": grid})
    if interpolation_mode not in (0, 1):
        raise UnsupportedOp(f"expected {node.op} that interpolates linearly or takes the nearest entry, got bicubic")
    shape = ledger.shape_of(node, "input")
    fixed = {**node.args, "grid": grid.to(torch.float64)}
    one_channel = (shape[0], 1, *shape[2:])
    sampled = Gather(lambda x: call(node, {**fixed, "input": x}), one_channel, 2 ** (len(shape) - 2))
    places = as_places(shape[2:], ledger.device).add(1).expand(one_channel)
    own = call(node, {**node.args, "input": places.to(ledger.graph.dtype), "grid": grid.to(ledger.graph.dtype)})
    if interpolation_mode == 1 and not bool((own.double() == sampled.apply(places)).all()):
        raise UnsupportedOp(f"expected places of {node.op} whose nearest entry is the same in float64, got a tie")
    # A position is off by at most a few n u, a weight by twice that, in a matrix of at most 8 entries a row.
    off = gamma(64 * sum(shape[2:])) * math.sqrt(8.0 * math.prod(node.shape[2:])) * 8.0
    bound = up(schur_test(sampled, ledger.device) + off)
    return ledger.record(node, "scale", [input], Upper(bound, "schur", "weights of the entries next to each place"))


def _resampled(
    node: Node, ledger: Ledger, value: Value, operand: str, align_corners: bool, scales: Sequence[float | None] | None
) -> Value:
    shape, axes = ledger.shape_of(node, operand), len(node.shape) - 2
    scales = [None] * axes if scales is None else list(scales)
    rows = _ROWS[node.op.split(".")[0]]
    matrices = [
        matrix(rows, before, after, align_corners, scale, ledger.device)
        for before, after, scale in zip(shape[2:], node.shape[2:], scales, strict=True)
    ]
    _check(node, operand, shape, matrices)
    bound = 1.0
    names: list[str] = []
    for weights in matrices:
        if weights.shape[0] != weights.shape[1] or not bool((weights == torch.eye(len(weights)).to(weights)).all()):
            upper = norm_bound(Dense(weights, (weights.shape[1],), relative_error=UNIT), ledger.method)[0]
            bound, names = up(bound * float(upper)), [*names, upper.method]
    sizes = " x ".join(f"{before} to {after}" for before, after in zip(shape[2:], node.shape[2:], strict=True))
    because = f"product of the norms of the interpolation matrices, {sizes}"
    return ledger.record(node, "scale", [value], Upper(bound, names[0] if names else "isometry", because))


def _check(node: Node, operand: str, shape: Sequence[int], matrices: Sequence[torch.Tensor]) -> None:
    """Refuse an operation that is not what the matrices say."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand((1, 1, *shape[2:]), generator=generator, dtype=torch.float64).to(matrices[0].device)
    expected = probe
    for axis, weights in enumerate(matrices, start=2):
        expected = (expected.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    got = call(node, {**node.args, operand: probe})
    if got.shape != expected.shape or not bool((got - expected).abs().max() <= _AGREE):
        raise UnsupportedOp(f"expected {node.op} as torch computes it since 2.4, got other weights")


Rows = Callable[[int, int, bool, Fraction], list[Row]]


def matrix(
    rows: Rows, before: int, after: int, align_corners: bool, scale: float | None, device: torch.device
) -> torch.Tensor:
    """The weights (after x before) along one axis, each correctly rounded."""
    if align_corners:
        step = Fraction(before - 1, after - 1) if after > 1 else Fraction(0)
    else:
        step = 1 / Fraction(scale) if scale is not None and scale > 0 else Fraction(before, after)
    weights = torch.zeros(after, before, dtype=torch.float64)
    for place, row in enumerate(rows(before, after, align_corners, step)):
        for source, weight in row.items():
            weights[place, source] = float(weight)
    return weights.to(device)


def _linear_rows(before: int, after: int, align_corners: bool, step: Fraction) -> list[Row]:
    found = []
    for place in range(after):
        position = step * place if align_corners else max(Fraction(0), step * (place + HALF) - HALF)
        first = min(math.floor(position), before - 1)
        share = min(position - first, Fraction(1))
        found.append(_summed([(first, 1 - share), (min(first + 1, before - 1), share)]))
    return found


def _cubic_rows(before: int, after: int, align_corners: bool, step: Fraction) -> list[Row]:
    found = []
    for place in range(after):
        position = step * place if align_corners else step * (place + HALF) - HALF
        first = math.floor(position)
        taps = [(first + k, _cubic(position - first - k, Fraction(-3, 4))) for k in (-1, 0, 1, 2)]
        found.append(_summed([(min(max(source, 0), before - 1), weight) for source, weight in taps]))
    return found


def _cubic(x: Fraction, a: Fraction) -> Fraction:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else Fraction(0)


def _filtered_rows(support: int, weight_at: Callable[[Fraction], Fraction]) -> Rows:
    """Antialiased: a filter as wide as the step, cut off at the border and normalised."""

    def rows(before: int, after: int, align_corners: bool, step: Fraction) -> list[Row]:
        del align_corners  # in the step already; positions do not depend on it
        widening = max(step, Fraction(1))
        found = []
        for place in range(after):
            centre = step * (place + HALF)
            first = max(0, math.trunc(centre - support * widening + HALF))
            last = min(before, math.trunc(centre + support * widening + HALF))
            weights = {source: weight_at((source - centre + HALF) / widening) for source in range(first, last)}
            total = sum(weights.values())
            found.append({source: weight / total for source, weight in weights.items() if weight})
        return found

    return rows


def _summed(taps: Sequence[tuple[int, Fraction]]) -> Row:
    row: Row = {}
    for source, weight in taps:
        row[source] = row.get(source, Fraction(0)) + weight
    return row


_ROWS: dict[str, Rows] = {
    "upsample_linear1d": _linear_rows,
    "upsample_bilinear2d": _linear_rows,
    "upsample_trilinear3d": _linear_rows,
    "upsample_bicubic2d": _cubic_rows,
    "_upsample_bilinear2d_aa": _filtered_rows(1, lambda x: max(Fraction(0), 1 - abs(x))),
    "_upsample_bicubic2d_aa": _filtered_rows(2, lambda x: _cubic(x, Fraction(-1, 2))),
}
"""Operation -> the weights of every output along one axis."""
