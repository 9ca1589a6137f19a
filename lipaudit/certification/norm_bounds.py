"""Network and class-pair bounds where the input moves in Linf or L1.

Note [Other norms]
    With m and c of Note [Majorants] (domains/majorant), w_i the rows of the last linear maps and s the step before
    them,
        Linf    |f_i - f_j| moves by at most <|w_i - w_j|, m_s>,
        L1      by at most the largest entry of c at the input, c = |w_i - w_j| at s.
    The L2 bound K_2 of a pair holds in every norm, as balls nest: K_1 <= K_2, and K_inf <= K_2 times the L2 length of a
    vector of ones. If all that follows depends on one step alone, K_2 is proportional to the bound of that step, and
    its L2 length, as the majorant has it, may stand in its place: that of the first layer is the norm from Linf to L2.
    The smallest of all counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import reduce

import torch

from lipaudit.certification.network_bound import MOST_ROW_ENTRIES, Composition, written_rows
from lipaudit.domains.lipschitz.propagator import INPUT, Ledger, merged, spoken
from lipaudit.domains.majorant.propagator import Majorants, Moving
from lipaudit.errors import LipauditError
from lipaudit.results.bounds import TOGETHER, Law, LayerBound, NetworkBound, Upper
from lipaudit.results.threat import Norm, circumradius
from lipaudit.rounding import TINY, WIDE, gamma, log10_up, narrow_up, wide

_FEW_CLASSES = 12
"""Up to so many, each pair of classes goes backwards by itself."""
_SOME_CLASSES = 128
"""Up to so many, each class does, with the largest difference of its rows to any other; of more all together."""
_MOST_PRODUCTS = 2**33


def bound_in(composition: Composition, norm: Norm) -> NetworkBound:
    """The bound in that norm; computed once for a composition. In L2 it is the one that is there."""
    if norm == "l2":
        return composition.network
    if norm not in composition.in_norms:
        with torch.no_grad():
            composition.in_norms[norm] = _bound_in(composition, norm)
    return composition.in_norms[norm]


def _bound_in(composition: Composition, norm: Norm) -> NetworkBound:
    began, known, ledger = time.perf_counter(), composition.network, composition.ledger
    majorants = Majorants(composition.graph, ledger.device, domain=ledger.domain, whole=ledger)
    layers: tuple[LayerBound, ...] = ()
    notes, around = known.notes, wide(circumradius(norm, math.prod(composition.graph.input_shape)))
    share = around
    classes = len(known.pairwise)
    try:
        head = majorants.run()
        logits, entries = _of_classes(majorants, head, classes, norm)
        layers = tuple(_lines(majorants, head, norm))
        if norm == "linf":
            share = min(share, _least_share(composition, majorants))
    except (LipauditError, RuntimeError) as error:  # torch, too, may know no way back through some operation
        logits, entries = math.inf, torch.full((classes, classes), math.inf, dtype=torch.float64)
        notes = (*notes, f"in {norm} bounded by way of L2 alone: {error}")
    # Of the L2 bounds, only the ledger's are proportional to those of single steps.
    pairs = tuple(
        tuple(
            0.0 if i == j else min(own, _stretched(both, around), _stretched(product, share))
            for j, (own, both, product) in enumerate(zip(*rows, strict=True))
        )
        for i, rows in enumerate(zip(entries.tolist(), known.pairwise, composition.product, strict=True))
    )
    whole = WIDE.multiply(ledger.so_far[ledger.settle(composition.head).step], share)
    if math.isfinite(known.value):
        whole = min(whole, WIDE.multiply(wide(known.value), around))
    total = min(whole, wide(logits)) if math.isfinite(logits) else whole
    layers = _closed(layers, known, total)
    used = known.domain if not majorants.used_domain else ledger.domain
    seconds = time.perf_counter() - began
    return replace(
        known,
        layers=layers,
        log10=log10_up(total),
        pairwise=pairs,
        seconds=seconds,
        domain=used,
        notes=notes,
        norm=norm,
    )


def _stretched(bound: float, share: Decimal) -> float:
    return narrow_up(WIDE.multiply(wide(bound), share)) if bound < math.inf else math.inf


def _of_classes(majorants: Majorants, head: Moving, classes: int, norm: Norm) -> tuple[float, torch.Tensor]:
    """Bounds of every logit, and of all differences of two."""
    maps = [link.linear for link in merged(head.chain)]
    if maps and classes * math.prod(maps[0].input_shape) > MOST_ROW_ENTRIES:
        head, maps = majorants.settle(head), []
    if maps:
        rows, error = written_rows(maps, classes)
    else:
        rows, error = torch.eye(classes, dtype=torch.float64, device=head.m.device), [0.0] * classes
    off = torch.tensor(error, dtype=torch.float64, device=rows.device)
    if norm == "linf":
        return _from_linf(rows, off, head)
    return _from_l1(majorants, rows, off, head)


def _from_linf(rows: torch.Tensor, off: torch.Tensor, head: Moving) -> tuple[float, torch.Tensor]:
    m, slack = head.m.flatten(), 1 + gamma(2 * rows.shape[1] + 16)
    lost = (
        off * head.length if math.isfinite(head.length) else torch.full_like(off, math.inf).masked_fill(off == 0, 0.0)
    )
    alone = _dot(rows.abs(), m) * slack + lost * (1 + gamma(4))
    apart = alone[:, None] + alone[None, :]
    if len(rows) * rows.numel() <= _MOST_PRODUCTS:
        direct = torch.stack([_dot((rows - row).abs(), m) for row in rows]) * slack
        apart = torch.minimum(apart, direct + (lost[:, None] + lost[None, :]) * (1 + gamma(4)))
    apart = (apart * (1 + gamma(4)) + TINY).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(alone.max()) * (1 + gamma(4)) + TINY, apart


def _dot(rows: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return (rows @ m).nan_to_num(nan=math.inf, posinf=math.inf)


def _from_l1(majorants: Majorants, rows: torch.Tensor, off: torch.Tensor, head: Moving) -> tuple[float, torch.Tensor]:
    classes, shape = len(rows), tuple(head.m.shape)

    def largest(c: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
        c = c * (1 + gamma(2)) + lost[:, None]  # an entry of a row is off by no more than the row
        return majorants.largest(head, c.reshape(len(c), *shape)) + TINY

    alone = float(largest(rows.abs().amax(0, keepdim=True), off.max()[None]))
    if classes > _SOME_CLASSES:
        spread = rows.amax(0, keepdim=True) - rows.amin(0, keepdim=True)
        return alone, largest(spread, 2.01 * off.max()[None]).expand(classes, classes).clone()
    if classes > _FEW_CLASSES:
        spreads = torch.stack([(rows - row).abs().amax(0) for row in rows])
        each = largest(spreads, 2.01 * off.max().expand(classes))
        return alone, torch.minimum(each[:, None], each[None, :])
    places = torch.triu_indices(classes, classes, 1)
    found = rows.new_zeros(classes, classes)
    if places.shape[1]:
        pairs = largest((rows[places[0]] - rows[places[1]]).abs(), 1.01 * (off[places[0]] + off[places[1]]))
        found[places[0], places[1]] = found[places[1], places[0]] = pairs
    return alone, found


def _least_share(composition: Composition, majorants: Majorants) -> Decimal:
    """What an L2 bound is multiplied with at most: over all steps that alone lead on, their L2 length over their bound.

    See Note [Other norms].
    """
    ledger, least = composition.ledger, wide(circumradius("linf", math.prod(composition.graph.input_shape)))
    ends = {composition.head.step, ledger.settle(composition.head).step}
    alone = composition.graph.bottlenecks().intersection(
        *({line.step for line in ledger.lines_to(end)} for end in ends)
    )
    for step, length in majorants.lengths.items():
        bound = ledger.so_far.get(step)
        if step in alone and bound and math.isfinite(length) and all(_leads(ledger, step, end) for end in ends):
            least = min(least, WIDE.divide(wide(length), bound))
    return least


def _leads(ledger: Ledger, step: str, end: str) -> bool:
    """Whether every way through the ledger from the network input to `end` goes through that step."""
    lines, waiting, seen = {line.step: line for line in ledger.lines}, [end], set()
    while waiting:
        name = waiting.pop()
        if name == INPUT:
            return False
        if name != step and name not in seen:
            seen.add(name)
            waiting.extend(lines[name].inputs)
    return True


def _lines(majorants: Majorants, head: Moving, norm: Norm) -> Iterator[LayerBound]:
    """The layers on the way to the logits: each as far as its output follows inputs that all move by 1."""
    last = majorants.settle(head)
    wanted: set[int] = {last.number}
    law: Law = "max" if norm == "linf" else "sum"
    for number in range(last.number, -1, -1):
        if number in wanted:
            wanted.update(majorants.steps[number].parents)
    so_far: dict[int, Decimal] = {-1: Decimal(1)}
    for number in sorted(wanted - {-1}):
        step = majorants.steps[number]
        node, kinds = step.nodes[-1], ("rows", "row") if norm == "linf" else ("columns", "column")
        value, before = step.stretch(norm), [so_far[parent] for parent in step.parents]
        so_far[number] = WIDE.multiply(wide(value), max(before) if norm == "linf" else reduce(WIDE.add, before))
        yield LayerBound(
            name=" + ".join(dict.fromkeys(part.title for part in step.nodes)),
            op=" + ".join(spoken(part.op) for part in step.nodes),
            upper=Upper(value, f"absolute-{kinds[0]}", f"largest {kinds[1]} sum of what entries follow"),
            law="scale" if len(step.parents) == 1 else law,
            inputs=tuple(_title(majorants, parent) for parent in step.parents),
            step=_title(majorants, number),
            log10_so_far=log10_up(so_far[number]),
            shape=node.shape[1:],
            source=step.nodes[0].source,
        )


def _closed(layers: Sequence[LayerBound], known: NetworkBound, total: Decimal) -> tuple[LayerBound, ...]:
    """The lines, and a last one by what the bound of the network is less than they come to; those of L2, where there
    are none, and by what it is more."""
    lines = tuple(layers or known.layers)
    before = WIDE.power(Decimal(10), Decimal(lines[-1].log10_so_far)) if lines else Decimal(1)
    share = narrow_up(WIDE.divide(total, before)) if before else 1.0
    if layers and share >= 1:  # rounding alone
        return lines
    name, method, because = "by way of L2", "l2", "the L2 bound times the L2 length of the largest change"
    if layers:
        name, method, because = TOGETHER, "absolute-values", "rows of the last maps with all that comes before them"
    line = LayerBound(
        name=name,
        op=method,
        upper=Upper(share, method, because),
        law="scale",
        inputs=(lines[-1].step if lines else INPUT,),
        step=name,
        log10_so_far=log10_up(total),
        shape=(len(known.pairwise),),
    )
    return (*lines, line)


def _title(majorants: Majorants, number: int) -> str:
    return INPUT if number < 0 else f"{majorants.steps[number].nodes[-1].name}:{number}"
