"""Steps along the gradient of a convex potential, x - V s(W x + b) with V = W^T T: residual blocks that do not expand.

Note [Potential steps]
    Let s act entry by entry with slopes in [0, beta], and T be diagonal with entries >= 0. Between two inputs s moves
    by S W (x - y) for a diagonal S with entries in [0, beta], so the difference of the inputs is multiplied by
    I - W^T T S W, symmetric, with 0 <= W^T T S W <= beta W^T T W. So the step has the Lipschitz constant
        max(1, beta ||T^(1/2) W||^2 - 1),
    and what V is off W^T T by, E, adds beta ||E|| ||W||. T is read off the weights, row by row, as the square of a
    float t, and E is what is left, its rounding included: no T is wrong, a bad one only costs.
    Source: Meunier et al., ICML 2022 (CPL); Araujo et al., ICLR 2023 (SLL); with T and E made explicit here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.pairs import MONOTONE
from lipaudit.domains.lipschitz.propagator import Ledger, Link, Value, merged
from lipaudit.norms.linear_maps import Conv, Dense, LinearMap, Transposed, schur_test
from lipaudit.norms.methods import norm_bound
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, up


def potential_step(node: Node, ledger: Ledger, operands: dict[str, Value], sign: float) -> Value | None:
    """x + sign V s(W x + b), if the node is that and the bound of Note [Potential steps] is the smaller one.

    `operands` are its arguments by name; `sign` belongs to the one that comes last.
    """
    first, second = operands
    for kept, moved, factor in ((first, second, sign), (second, first, 1.0)):
        if (kept, factor) == (second, 1.0) and sign != 1.0:
            continue  # -x + V s(W x): another map
        found = _step(node, ledger, kept, operands[kept], moved, operands[moved], factor)
        if found is not None:
            return found
    return None


def _step(node: Node, ledger: Ledger, kept: str, x: Value, moved: str, branch: Value, factor: float) -> Value | None:
    source = node.args[kept].name
    bend = bend_before(node.args[moved].name, branch.chain, ledger)
    entered = None if bend is None else ledger.entering.get(bend.name)
    shapes = {ledger.shape_of(node, name) for name in (kept, moved)}
    if bend is None or entered is None or shapes != {tuple(node.shape)}:
        return None
    inner = _since(entered, x, source)
    maps = [_single(chain) for chain in (inner, branch.chain)] if inner else [None, None]
    w, v = maps
    if w is None or v is None:
        return None
    rows = _by_hidden(w, v)
    if rows is None:
        return None
    upper = _bound(w, v, *rows, -factor, MONOTONE[bend.op], ledger.method)
    if upper is None:
        return None
    parts = [*(part for link in inner for part in link.parts), (bend, None)]
    parts += [*(part for link in branch.chain for part in link.parts), (node, None)]
    return ledger.replaced(node, x, upper, tuple(parts), ledger.through(tuple(parts), MONOTONE[bend.op], abs(factor)))


def bend_before(last: str, chain: Sequence[Link], ledger: Ledger) -> Node | None:
    """The function of one entry that the linear maps of the chain, up to the node `last`, come after."""
    names = [part.name for link in chain for part, _ in link.parts]
    if not names:
        bend = ledger.node(last)
        return bend if bend is not None and bend.op in MONOTONE else None
    if names[-1] != last:
        return None
    for name, before in zip(names[::-1], [*names[-2::-1], None], strict=True):
        part = ledger.node(name)
        if part is None or len(part.refs()) != 1 or (before is not None and part.refs() != [before]):
            return None
        if before is None:
            bend = ledger.node(part.refs()[0])
            return bend if bend is not None and bend.op in MONOTONE else None
    return None


def _since(entered: Value, x: Value, source: str) -> tuple[Link, ...]:
    """The linear maps from x, the output of node `source`, to what entered the function; none if there is more."""
    common = len(x.chain)
    same = all(a is b for a, b in zip(entered.chain, x.chain, strict=False)) and len(entered.chain) > common
    if entered.step != x.step or not same:
        return ()
    links = entered.chain[common:]
    return links if links[0].parts[0][0].refs() == [source] else ()


def _single(chain: Sequence[Link]) -> LinearMap | None:
    links = merged(chain)
    return links[0].linear if len(links) == 1 else None


def _by_hidden(w: LinearMap, v: LinearMap) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The weights of W and of V^T, entry by entry alike, hidden channels first; None if V^T is of another kind."""
    if isinstance(w, Dense) and isinstance(v, Dense):
        return (w.weight, v.weight.mT) if w.weight.shape == v.weight.mT.shape else None
    if isinstance(w, Transposed) and isinstance(v, Conv) and w.conv.groups == v.groups == 1:
        w, v = w.conv, Transposed(v)
        if _geometry(w) != _geometry(v.conv):
            return None
        return w.weight.transpose(0, 1), v.conv.weight.transpose(0, 1)
    back = _as_transposed(v) if isinstance(v, Conv) and isinstance(w, Conv) else v
    if not (isinstance(w, Conv) and isinstance(back, Transposed)) or _geometry(w) != _geometry(back.conv):
        return None
    return w.weight, back.conv.weight


def _geometry(conv: Conv) -> tuple[object, ...]:
    pads = conv.padding if conv.padding_mode == "zeros" else (conv.padding_mode, conv.padding)
    return tuple(conv.weight.shape), conv.input_size, conv.stride, pads, conv.dilation, conv.groups


def _as_transposed(conv: Conv) -> Transposed | None:
    """A convolution without strides as the transposed one of the flipped kernel; None for others."""
    plain = conv.padding_mode == "zeros" and conv.groups == 1 and set(conv.stride) == {1}
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    padding = tuple((r - p[0], r - p[1]) for r, p in zip(reach, conv.padding, strict=True))
    if not plain or any(min(p) < 0 for p in padding):
        return None
    axes = tuple(range(2, conv.weight.ndim))
    weight = conv.weight.transpose(0, 1).flip(axes)
    return Transposed(replace(conv, weight=weight, input_size=conv.output_size, padding=padding))


def _bound(
    w: LinearMap, v: LinearMap, rows: torch.Tensor, other: torch.Tensor, factor: float, beta: float, method: str
) -> Upper | None:
    """`rows` and `other`: the weights of W and of V^T, hidden channels first; `factor` multiplies V.

    None where the sum of the branches has the smaller bound.
    """
    other = other * factor
    flat, against = rows.flatten(1), other.flatten(1)
    size = flat.square().sum(1)
    t = ((flat * against).sum(1) / size.clamp_min(1e-300)).clamp_min(0.0).sqrt()
    if not bool(torch.isfinite(t).all()) or not bool((t > 0).any()):
        return None
    spread = t.reshape(-1, *(1,) * (rows.ndim - 1))
    product = rows * spread * spread
    # Two roundings in the product, one in factor times V and one in the difference; weights may be inexact themselves.
    inexact = 8 * UNIT + 2 * (w.relative_error + v.relative_error)
    rest = (other - product).abs() + inexact * (other.abs() + product.abs())
    norm = float(norm_bound(_with_rows(w, rows * spread, w.relative_error * 1.01 + 2 * UNIT), method)[0])
    whole = float(norm_bound(w, method)[0])
    off = up(beta * up(schur_test(_with_rows(w, rest, 0.0), rest.device) * whole))
    step = max(1.0, up(up(beta * up(norm * norm)) - 1.0))
    # With E = 0 the sum, 1 + beta ||W|| ||V||, is always the larger one.
    if off > 1e-3 * beta * norm * norm:
        apart = 1.0 + beta * whole * abs(factor) * float(norm_bound(v, method)[0])
        if step + off >= apart:
            return None
    because = f"x - V s(W x), V = W^T T + E: max(1, {beta:g} ||T^(1/2) W||^2 - 1) = {step:.9g}, E adds {off:.2g}"
    return Upper(up(step + off), "potential", because)


def _with_rows(w: LinearMap, rows: torch.Tensor, error: float) -> LinearMap:
    """The map W with other weights, hidden channels first."""
    if isinstance(w, Transposed):
        return Transposed(replace(w.conv, weight=rows.transpose(0, 1), relative_error=error))
    assert isinstance(w, (Dense, Conv))
    return replace(w, weight=rows, relative_error=error)
