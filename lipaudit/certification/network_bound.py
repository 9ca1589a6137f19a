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
from dataclasses import dataclass, field, replace
from decimal import Decimal

import torch
from torch import nn

from lipaudit.domains.ellipsoid.together import Together, together
from lipaudit.domains.graph import Graph
from lipaudit.domains.interpreter import walk
from lipaudit.domains.lipschitz import RULES, Ledger, Value
from lipaudit.domains.lipschitz.blocks import whole_blocks
from lipaudit.domains.lipschitz.propagator import INPUT, Link, merged
from lipaudit.errors import CaptureError, UnsupportedOp
from lipaudit.files.journal import Parts
from lipaudit.graph.capture import capture
from lipaudit.graph.wrappers import device_of
from lipaudit.norms.linear_maps import Dense, Gather, LinearMap, Scale, adjoint
from lipaudit.norms.row_distances import pairs_of, row_distances
from lipaudit.progress import Progress, Silent
from lipaudit.results.bounds import TOGETHER, LayerBound, NetworkBound, Upper
from lipaudit.results.threat import Norm
from lipaudit.rounding import (
    WIDE,
    check_arithmetic,
    gamma,
    length_up,
    log10_up,
    narrow_up,
    plain_sums,
    up,
    wide,
)
from lipaudit.settings import GlobalMethod

MOST_ROW_ENTRIES = 2**27
"""Largest number of entries of the rows of the last linear map that are written out (1 GiB)."""

_ROWS_AT_ONCE = 64


Pairs = tuple[tuple[float, ...], ...]


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
    product: Pairs
    """Bounds of pairs by the ledger alone."""
    rows: list[list[float]] | None
    """How far apart the rows of the maps after the last bounded step are; None if nobody knows."""
    in_norms: dict[Norm, NetworkBound] = field(default_factory=dict)
    """Bounds in other norms that were asked for: norm_bounds.py."""


@plain_sums()
@torch.inference_mode(False)  # multipliers of several layers are found by their gradients
def compose(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    domain: tuple[float, float] | None = None,
    method: str = "best",
    progress: Progress | None = None,
    journal: Parts | None = None,
    global_method: GlobalMethod = "best",
) -> Composition:
    """Capture `model`, bound every layer and put the bounds together; `journal` keeps the bounds of layers.

    `global_method`: "product" puts layers together by their bounds alone; "ellipsoid" by what they are together
    (`domains/ellipsoid`), where that is proved, and raises `UnsupportedOp` where it is not; "best" takes the smaller
    of both for the network and for each pair of classes.
    """
    progress = progress or Silent()
    began = time.perf_counter()
    graph = capture(model, input_shape, domain=domain)
    device = device_of(model)
    check_arithmetic(device)
    progress.start("layer bounds", len(graph.nodes))
    ledger = Ledger(graph, device, method=method, progress=progress, domain=domain, journal=journal)
    values: dict[str, Value] = {}
    with torch.no_grad():
        keep = {} if global_method == "product" else {"after": lambda node, value: values.update({node.name: value})}
        head = walk(graph, RULES, Value(INPUT), ledger, instead=whole_blocks(ledger), **keep)
        logits = ledger.settle(head)
        rows = _row_distances(merged(head.chain), _classes(graph))
        pairs = _by_ledger(head, ledger, rows)
        found = None if global_method == "product" else together(ledger, values, head, logits)
    if found is None and global_method == "ellipsoid":
        raise UnsupportedOp("expected layers that can be bounded together, got none; use global_method='product'")
    total = ledger.so_far[logits.step]
    network = NetworkBound(
        layers=tuple(ledger.lines_to(logits.step)),
        log10=log10_up(total),
        pairwise=pairs,
        input_shape=graph.input_shape,
        domain=domain if ledger.used_domain else None,
        notes=graph.notes,
    )
    if found is not None:
        network = _smaller(network, found, rows, total, logits.step, alone=global_method == "ellipsoid")
    network = replace(network, seconds=time.perf_counter() - began)
    progress.finish(f"L = {network.value:.3g}")
    return Composition(network, graph, ledger, head, model, pairs, rows)


def _smaller(
    network: NetworkBound,
    found: Together,
    rows: list[list[float]] | None,
    total: Decimal,
    last: str,
    *,
    alone: bool,
) -> NetworkBound:
    """The smaller of both bounds, of the network and of each pair, with a line that says so; `alone`: the second."""
    whole = found.total if alone else min(total, found.total)
    # Either by the rows of the last linear maps, or by those of all that were taken together: both are proved.
    pairs = [list(row) for row in _pairs(rows, len(network.pairwise), found.head, whole)]
    for other in filter(None, (found.pairs, None if alone else network.pairwise)):
        pairs = [[min(pair) for pair in zip(*both, strict=True)] for both in zip(pairs, other, strict=True)]
    pairwise = tuple(map(tuple, pairs))
    if whole == total and pairwise == network.pairwise:
        return network
    share = Upper(narrow_up(WIDE.divide(whole, total)) if total else 1.0, "ellipsoid", found.because)
    line = LayerBound(
        name=TOGETHER,
        op="ellipsoid",
        upper=share,
        law="scale",
        inputs=(last,),
        step=TOGETHER,
        log10_so_far=log10_up(whole),
        shape=(len(pairwise),),
    )
    return replace(network, layers=(*network.layers, line), log10=log10_up(whole), pairwise=pairwise)


def pairwise(head: Value, ledger: Ledger) -> Pairs:
    """Bounds of the Lipschitz constants of all logit differences, by the ledger."""
    return _by_ledger(head, ledger, _row_distances(merged(head.chain), _classes(ledger.graph)))


def _by_ledger(head: Value, ledger: Ledger, rows: list[list[float]] | None) -> Pairs:
    classes, whole = _classes(ledger.graph), ledger.so_far[ledger.settle(head).step]
    found = [_pairs(rows, classes, ledger.so_far[head.step], whole)]
    found += [_pairs(_row_distances(links, classes), classes, base, whole) for base, links in _splits(head, ledger)]
    return tuple(tuple(map(min, zip(*r, strict=True))) for r in zip(*found, strict=True))


def _splits(head: Value, ledger: Ledger) -> list[tuple[Decimal, list[Link]]]:
    """Steps after the last bounded one that are bounded by more than a norm, with their bounds, and the maps since.

    Elsewhere the rows of all maps together are never longer than the norms of the first ones times the other rows.
    """
    links = merged(head.chain)
    pairs = {line.step for line in ledger.lines if line.upper.method == "pair"}
    later = [k + 1 for k, link in enumerate(links[:-1]) if link.parts[-1][0].name in pairs]
    return [(ledger.so_far[links[k - 1].parts[-1][0].name], links[k:]) for k in later]


def _pairs(rows: list[list[float]] | None, classes: int, base: Decimal, whole: Decimal) -> Pairs:
    """Bounds of all logit differences, from those of what the last linear maps read and of the logits."""
    # |f_i - f_j| <= sqrt(2) |f|: what is left when the network does not end in a linear map.
    most = narrow_up(WIDE.multiply(wide(up(math.sqrt(2.0))), whole))
    if rows is None:
        return tuple(tuple(0.0 if i == j else most for j in range(classes)) for i in range(classes))
    return pairs_of(rows, base, most)


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
    if entries > MOST_ROW_ENTRIES:
        return None
    rows, error = written_rows(maps, classes)
    return row_distances(rows, error, factor)


def written_rows(maps: list[LinearMap], classes: int) -> tuple[torch.Tensor, list[float]]:
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
