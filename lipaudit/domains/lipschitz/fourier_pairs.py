"""Two Fourier layers with an activation between them, bounded at once, as two dense layers are (pairs.py).

Note [Pairs of Fourier layers]
    Let the first layer end, and the second begin, with transforms along the same axes of the same lengths. On half
    spectra with the weights w of Note [Fourier layers], rfft is s U with U an isometry, and irfft is t U^*, U^* its
    adjoint: <U x, y>_w = 1 / sqrt(N) sum_k w_k Re(conj(X_k) y_k) is what irfft takes of y. So with matrices A_f before
    and C_f behind the activation, and factors D of the hidden channels, which commute with U,
        [D^-1 C^T, D B] = U^* [s D^-1 C_f^*, t D A_f] (what leaves and what enters),
    where the last transform and the first one have norms that are known. The bound is half the square of the largest
    norm over all frequencies. Exact for sandwich convolutions (Wang and Manchester, ICML 2023), whose D is their e^psi.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.pairs import MONOTONE
from lipaudit.domains.lipschitz.potentials import bend_before
from lipaudit.domains.lipschitz.propagator import Ledger, Link, Value
from lipaudit.domains.lipschitz.spectra import Base, Spectrum
from lipaudit.domains.transforms import Transform
from lipaudit.norms.linear_maps import Identity, Scale, schur_test
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, up, wide

_MOST_ENTRIES = 2**21


@dataclass(frozen=True, eq=False)
class Layer:
    """A Fourier layer that was read: from the real tensor `source` to the one that `node` gives."""

    node: Node
    value: Value
    """What entered it."""
    source: str
    spectrum: Spectrum
    """What is transformed back."""
    there: Transform
    back: Transform
    reweighted: float
    """How much longer the spectrum may be in the weights that the transform back needs than in its own."""
    whole: float
    grown: list[tuple[str, float]]
    nodes: list[Node]

    def matrices(self, hidden: Transform) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(frequencies, entries behind, entries before) and their sizes; None unless frequencies stay."""
        x, axes = self.spectrum, sorted(hidden.axes)
        lengths = dict(zip(hidden.axes, (*hidden.lengths[:-1], hidden.lengths[-1] // 2 + 1), strict=True))
        if any(x.shape[axis] != length for axis, length in lengths.items()):
            return None
        others = [axis for axis in range(len(x.shape)) if axis not in axes]
        place = x.place.permute(*axes, *others).flatten(0, len(axes) - 1).flatten(1)
        numbers = torch.arange(len(place), device=place.device)[:, None]
        if not torch.equal(place, numbers.expand_as(place)) or x.rows.numel() > _MOST_ENTRIES:
            return None
        last = len(x.shape)
        rows, sizes = (t.permute(*axes, *others, last).reshape(*place.shape, -1) for t in (x.rows, x.sizes))
        return rows, sizes


def pair_of(ledger: Ledger, first: Layer, then: Layer) -> Value | None:
    """The value after both layers; None if nothing is gained, or if no activation alone lies between them."""
    bend = bend_before(then.source, then.value.chain, ledger)
    entered = None if bend is None else ledger.entering.get(bend.name)
    if bend is None or entered is None or entered.step != first.node.name or not _meet(ledger, first, then):
        return None
    before = [part for link in entered.chain for part in link.parts]
    behind = [part for link in then.value.chain for part in link.parts]
    path = [first.node.name, *(node.name for node, _ in before)]
    if any(node.refs() != [name] for (node, _), name in zip(before, path, strict=False)) or bend.refs() != path[-1:]:
        return None
    scales = [_factors(chain, first) for chain in (entered.chain, then.value.chain)]
    both = [first.matrices(first.back), then.matrices(first.back)]
    if scales[0] is None or scales[1] is None or both[0] is None or both[1] is None:
        return None
    norm = _norm(first, then, (scales[0], scales[1]), (both[0], both[1]))
    slope = MONOTONE[bend.op]
    value = up(slope * up(0.5 * up(norm * norm)))
    apart = wide(then.whole) * ledger.so_far[ledger.settle(then.value).step]
    if wide(value) * ledger.so_far[ledger.settle(first.value).step] >= apart:
        return None
    because = f"two Fourier layers and the activation between them: {slope / 2:g} x {norm:.9g}^2"
    found, factor = list(then.grown), then.whole
    for node, linear in [*reversed(behind), (bend, None), *reversed(before)]:
        found.append((node.name, factor))
        factor = up(factor * (slope if linear is None else schur_test(linear, ledger.device)))
    found += [(name, up(factor * growth)) for name, growth in first.grown]
    parts = [*((node, None) for node in first.nodes), *before, (bend, None), *behind]
    parts += [(node, None) for node in then.nodes]
    return ledger.replaced(then.node, first.value, Upper(value, "pair", because), tuple(parts), found)


def _meet(ledger: Ledger, first: Layer, then: Layer) -> bool:
    """Whether the second layer's transform is the adjoint of the one that the first layer ends with."""
    back, there = first.back, then.there
    read = ledger.node(then.source)
    shape = tuple(first.node.shape)
    whole = tuple(shape[axis] for axis in back.axes) == back.lengths
    same = (back.axes, back.lengths) == (there.axes, there.lengths)
    halves = back.half_before and there.half_after and first.there.half_after
    plain = not first.spectrum.conjugated and not then.spectrum.conjugated
    return halves and plain and whole and same and read is not None and tuple(read.shape) == shape


def _factors(chain: Sequence[Link], first: Layer) -> tuple[torch.Tensor, int] | None:
    """The factor of each hidden entry, the same at all frequencies, and how many roundings it may be off by."""
    shape, axes = tuple(first.node.shape), first.back.axes
    total, roundings = torch.ones((), dtype=torch.float64, device=first.spectrum.rows.device), 0
    for link in chain:
        if isinstance(link.linear, Identity):
            continue
        if not isinstance(link.linear, Scale) or link.linear.factor.ndim > len(shape):
            return None
        factor = link.linear.factor
        factor = factor.reshape((1,) * (len(shape) - factor.ndim) + tuple(factor.shape))
        if any(factor.shape[axis] != 1 for axis in axes):
            return None
        total, roundings = total * factor, roundings + math.ceil(link.linear.relative_error / UNIT) + 2
    slice_shape = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return total.expand(slice_shape).flatten(), roundings


def _norm(
    first: Layer,
    then: Layer,
    scales: Sequence[tuple[torch.Tensor, int]],
    both: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> float:
    """max_f ||[D^-1 C_f^*, D A_f]||, with all that is constant."""
    (p, before), (q, behind) = scales
    tables = []
    enters = up(first.spectrum.base.gain * first.reweighted) * _size(first.back)
    leaves = _size(then.there) * up(_size(then.back) * then.reweighted)
    for k in range(2):
        # Bounds of the transforms are factors of their matrices: larger factors make no norm smaller.
        b = both[0][k] * (p if k == 0 else p.abs())[:, None] * enters
        c = both[1][k].mH * (q if k == 0 else q.abs())[:, None] * leaves
        tables.append((c, b))
    guesses = [q.abs() / p.abs().clamp_min(1e-100), _lengths(tables[0][0]) / _lengths(tables[0][1]).clamp_min(1e-100)]
    choices = [guess.clamp(1e-100, 1e100).sqrt() for guess in guesses]
    d = min(choices, key=lambda d: _measured(tables[0], d))
    rows, sizes = (torch.cat([c / d[:, None], b * d[:, None]], 2) for c, b in tables)
    if not bool(torch.isfinite(sizes).all()):
        return math.inf
    frequencies, hidden = rows.shape[:2]
    place = torch.arange(frequencies, device=rows.device)[:, None].expand(frequencies, hidden)
    off = max(first.spectrum.roundings + before, then.spectrum.roundings + behind) + 16
    base = Base("", 1.0, torch.ones(frequencies, dtype=torch.float64, device=rows.device))
    return Spectrum(base, place, rows, sizes, off, moved=False).gain()


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=(0, 2))


def _measured(table: tuple[torch.Tensor, torch.Tensor], d: torch.Tensor) -> float:
    """Not proved: how good that D is."""
    return float(torch.linalg.matrix_norm(torch.cat([table[0] / d[:, None], table[1] * d[:, None]], 2), 2).max())


def _size(what: Transform) -> float:
    """sqrt(N) times the factor of a transform: what it multiplies an isometry by."""
    return up(up(math.sqrt(what.count)) * what.factor) * (1 + 8 * UNIT)
