"""Layer bounds -> network bound and class-pair bounds.

Note [Class pairs]
    A radius is about f_y - f_j, not about the vector of logits. If the network ends in a linear map W after a step
    with Lipschitz bound L, then f_i - f_j has the bound ||w_i - w_j|| L, with w the rows of everything linear
    since that step (final pooling included). sqrt(2) times the bound of the logits is never better than this
    without the last map, and on the MNIST networks of Tobler et al. (2025) it certifies nothing where the rows
    certify 95.7 %.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import torch
from torch import nn

from lipaudit.domains.graph import Graph
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.lipschitz.blocks import whole_blocks
from lipaudit.domains.lipschitz.propagator import INPUT, Link, merged
from lipaudit.errors import CaptureError
from lipaudit.files.journal import Parts
from lipaudit.graph.capture import capture
from lipaudit.graph.wrappers import device_of
from lipaudit.norms.linear_maps import Dense, Gather, LinearMap, Scale, adjoint
from lipaudit.progress import Progress, Silent
from lipaudit.results.bounds import NetworkBound
from lipaudit.results.threat import Norm
from lipaudit.rounding import (
    UNIT,
    WIDE,
    check_arithmetic,
    gamma,
    length_up,
    log10_up,
    narrow_up,
    up,
    wide,
)

_ROW_ENTRIES = 2**27
"""Largest number of entries of the rows of the last linear map that are written out (1 GiB)."""

_ROWS_AT_ONCE = 64
_FEW_CLASSES = 128
"""Up to so many, class pairs are taken one by one; beyond, their matrix is computed with outward rounding."""


@dataclass(frozen=True)
class Composition:
    """A network bound together with the graph and the ledger it was read from."""

    network: NetworkBound
    graph: Graph
    ledger: Ledger
    head: Value
    """The logits: the last bounded step and the linear maps after it."""
    model: nn.Module
    """What was captured, as it runs."""
    in_norms: dict[Norm, NetworkBound] = field(default_factory=dict)
    """Bounds in other norms that were asked for: norm_bounds.py."""


def compose(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    domain: tuple[float, float] | None = None,
    method: str = "best",
    progress: Progress | None = None,
    journal: Parts | None = None,
) -> Composition:
    """Capture `model`, bound every layer and put the bounds together; `journal` keeps the bounds of layers."""
    progress = progress or Silent()
    began = time.perf_counter()
    graph = capture(model, input_shape, domain=domain)
    device = device_of(model)
    check_arithmetic(device)
    progress.start("layer bounds", len(graph.nodes))
    ledger = Ledger(graph, device, method=method, progress=progress, domain=domain, journal=journal)
    with torch.no_grad():
        head = walk(graph, RULES, Value(INPUT), ledger, instead=whole_blocks(ledger))
        logits = ledger.settle(head)
        pairs = pairwise(head, ledger)
    total = ledger.so_far[logits.step]
    network = NetworkBound(
        layers=tuple(ledger.lines_to(logits.step)),
        log10=log10_up(total),
        pairwise=pairs,
        input_shape=graph.input_shape,
        domain=domain if ledger.used_domain else None,
        notes=graph.notes,
        seconds=time.perf_counter() - began,
    )
    progress.finish(f"L = {network.value:.3g}")
    return Composition(network, graph, ledger, head, model)


def pairwise(head: Value, ledger: Ledger) -> tuple[tuple[float, ...], ...]:
    """Bounds of the Lipschitz constants of all logit differences."""
    classes = _classes(ledger.graph)
    whole = ledger.so_far[ledger.settle(head).step]
    # |f_i - f_j| <= sqrt(2) |f|: what is left when the network does not end in a linear map.
    most = narrow_up(WIDE.multiply(wide(up(math.sqrt(2.0))), whole))
    found = [_since(base, links, classes, most) for base, links in _splits(head, ledger)]
    return (
        found[0] if len(found) == 1 else tuple(tuple(map(min, zip(*r, strict=True))) for r in zip(*found, strict=True))
    )


def _splits(head: Value, ledger: Ledger) -> list[tuple[Decimal, list[Link]]]:
    """Bounded steps before the logits, and the maps since: one after a map that is bounded by more than its norm, too.

    Elsewhere the rows of all maps together are never longer than the norms of the first ones times the other rows.
    """
    links = merged(head.chain)
    pairs = {line.step for line in ledger.lines if line.upper.method == "pair"}
    later = [k + 1 for k, link in enumerate(links[:-1]) if link.parts[-1][0].name in pairs]
    return [
        (ledger.so_far[head.step], links),
        *((ledger.so_far[links[k - 1].parts[-1][0].name], links[k:]) for k in later),
    ]


def _since(base: Decimal, links: list[Link], classes: int, most: float) -> tuple[tuple[float, ...], ...]:
    """The bounds of all logit differences by linear maps after a step with that bound; at most `most`."""
    distances = _row_distances(links, classes)
    if distances is None:
        return tuple(tuple(0.0 if i == j else most for j in range(classes)) for i in range(classes))
    if classes > _FEW_CLASSES:
        products = torch.tensor(distances, dtype=torch.float64) * narrow_up(base)
        products = torch.nextafter(products, torch.full_like(products, math.inf)).nan_to_num(nan=math.inf)
        return tuple(map(tuple, products.clamp_max(most).fill_diagonal_(0.0).tolist()))
    return tuple(
        tuple(
            0.0 if i == j else min(most, narrow_up(WIDE.multiply(wide(distances[i][j]), base))) for j in range(classes)
        )
        for i in range(classes)
    )


def _classes(graph: Graph) -> int:
    shape = next(node.shape for node in graph.nodes if node.name == graph.output)
    if len(shape) != 2 or shape[0] != 1:
        raise CaptureError(f"expected logits of shape (1, classes), got {shape}")
    return shape[1]


def _row_distances(chain: list[Link], classes: int) -> list[list[float]] | None:
    """Upper bounds of ||w_i - w_j||, w the rows of the chain; None if they would not fit in memory."""
    factor, maps = 1.0, [link.linear for link in chain]
    # If A A^T = c^2 I, then ||v^T A|| = c ||v|| for every v: the rows after it need not be written out.
    while maps and isinstance(maps[0], Gather) and maps[0].coisometry is not None:
        factor = factor if maps[0].isometric else up(factor * maps[0].coisometry)
        maps = maps[1:]
    if not maps:
        return None
    entries = classes * math.prod(maps[0].input_shape)
    if entries > _ROW_ENTRIES:
        return None
    rows, error = _rows(maps, classes)
    if classes > _FEW_CLASSES:
        return _many_distances(rows, torch.tensor(error, dtype=torch.float64, device=rows.device), factor)
    distances = [[0.0] * classes for _ in range(classes)]
    for i in range(classes - 1):
        differences = rows[i + 1 :] - rows[i]
        largest = differences.abs().amax(dim=1).clamp_min(1e-290)
        # One rounding per difference, then a sum of squares of numbers of moderate size.
        squares = (differences / largest[:, None]).square().sum(dim=1)
        slack = 1 + 2 * gamma(rows.shape[1] + 8)
        norms = (squares.sqrt() * largest * slack + 1e-280) * (1 + 8 * UNIT)
        for offset, norm in enumerate(norms.tolist()):
            j = i + 1 + offset
            distances[i][j] = distances[j][i] = up(up(norm + up(error[i] + error[j])) * factor)
    return distances


def _many_distances(rows: torch.Tensor, error: torch.Tensor, factor: float) -> list[list[float]]:
    """The same from ||w_i||^2 + ||w_j||^2 - 2 w_i.w_j, a matrix product; what cancels is in the error term."""
    largest = float(rows.abs().max()) or 1.0
    scaled = rows / largest
    squares = scaled.square().sum(1)
    sums = squares[:, None] + squares[None, :]
    # Each of the three sums of n products errs by gamma(n) times the same with absolute values; so does the quotient.
    slack = 4 * gamma(rows.shape[1] + 8) * (1 + 1e-6)
    distances = ((sums - 2 * (scaled @ scaled.T)).clamp_min(0.0) + slack * sums + 1e-280).sqrt() * largest
    distances = (distances + error[:, None] + error[None, :]) * (factor * (1 + 32 * UNIT))
    return distances.fill_diagonal_(0.0).tolist()


def _rows(maps: list[LinearMap], classes: int) -> tuple[torch.Tensor, list[float]]:
    """The matrix of the chain, one row per class, and a bound of the L2 error of each row."""
    if len(maps) == 1 and isinstance(maps[0], Dense) and math.prod(maps[0].input_shape) == maps[0].terms:
        rows = maps[0].weight
        relative = maps[0].relative_error
    else:
        rows = torch.cat(list(_rows_of(maps, classes)))
        relative = None
    if relative == 0.0:
        return rows, [0.0] * classes
    # |computed - exact| <= gamma |A_1|^T ... |A_k|^T e_i entrywise, with all roundings of the chain counted.
    positive = [linear.absolute() for linear in maps]
    count = sum(linear.terms + 2 for linear in maps)
    error = gamma(2 * count) + 1.01 * sum(linear.relative_error for linear in maps)
    sizes = [length_up(row) for part in _rows_of(positive, classes) for row in part]
    return rows, [size * error * (1 + 1e-6) for size in sizes]


def _rows_of(maps: list[LinearMap], classes: int) -> Iterator[torch.Tensor]:
    """The rows of the matrix of the chain, some at a time."""
    for some in _basis(maps, classes).split(_ROWS_AT_ONCE):
        with warnings.catch_warnings():  # what vmap knows no rule for it does row by row, and says so each time
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            rows = torch.func.vmap(lambda one: _row(maps, one))(some)
        yield rows


def _row(maps: list[LinearMap], one: torch.Tensor) -> torch.Tensor:
    for linear in reversed(maps):
        one = adjoint(linear, one)
    return one.reshape(-1)


def _basis(maps: list[LinearMap], classes: int) -> torch.Tensor:
    """One logit each, (classes, 1, classes)."""
    device = next((m.weight.device for m in maps if isinstance(m, Dense)), None)
    if device is None:
        device = next((m.factor.device for m in maps if isinstance(m, Scale)), torch.device("cpu"))
    return torch.eye(classes, dtype=torch.float64, device=device)[:, None]
