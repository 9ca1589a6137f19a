"""Softmax, and scaled dot-product attention head by head.

Note [Softmax]
    The Jacobian of p = softmax(z) is J = diag(p) - p p^T. Its rows sum to 0: adding one number to all entries of z
    changes nothing, and J V = J (V - 1 c^T) for every row c. J is at most diag(p), so its norm is at most max p; a
    row of absolute values sums to 2 p (1 - p), so by Gershgorin it is also at most the largest 2 p (1 - p) <= 1/2.
    log p moves by I - 1 p^T, a projection along the vector of ones: its norm is that of 1 p^T, sqrt(n) ||p||.

Note [Attention]
    out = P V with P = softmax of every row of S = s Q K^T + M. A row of the output moves by V^T J dS (J of its row),
    and dS = s K dq + s dK q + dM. J is the covariance matrix under the probabilities p: V^T J K = cov(v, k), so its
    norm is at most spread(V) spread(K), where spread(V)^2 bounds the largest eigenvalue of the covariance of the rows
    of V. That is at most the square of the radius of a ball that holds all rows, and, because ||J|| <= 1/2, at most
    1/2 ||V - 1 c^T||^2 for any row c. With the Frobenius norm for distances of matrices:
        dQ: s spread(V) spread(K)    dK: s spread(V) ||Q|| / sqrt(2)    dM: spread(V) / sqrt(2)    dV: ||P||
    and ||P||^2 <= largest row sum times largest column sum <= number of queries.
    Heads are independent, so each has its own constants and the largest counts; a key or value that several heads
    read counts the root of the sum of their squares.
    Source: the bounds of K. Kim et al., The Lipschitz Constant of Self-Attention, ICML 2021, taken for bounded Q, K, V.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.intervals.value import Range
from lipaudit.domains.lipschitz.magnitudes import HALF, SMALLEST, matrix_norms, row_spreads
from lipaudit.domains.lipschitz.propagator import BOUNDED, RULES, Ledger, Value
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, gamma, up

BOUNDED.update({"softmax.int", "_softmax.default", "log_softmax.int", "scaled_dot_product_attention.default"})


@RULES.rule("softmax.int", "_softmax.default")
def softmax(node: Node, ledger: Ledger, self: Any, dim: int, **settings: Any) -> Value:
    """Softmax has the constant 1/2, less where the range keeps all probabilities away from 1/2 (Note [Softmax])."""
    del settings
    bound, because = 0.5, "Jacobian diag(p) - p p^T, norm <= 1/2"
    least, most = _probabilities(node, ledger, dim)
    sharper = float(torch.where(most < 0.5, most, torch.where(least > 0.5, 2 * least * (1 - least), 0.5)).max())
    if sharper < 0.49:
        # An error e of the operand changes every p and every 1 - p by at most a factor exp(2 e).
        bound = ledger.widened(max(sharper, 1e-30), 0.5)
        because = f"Jacobian diag(p) - p p^T, norm <= {sharper:.3g} over its range"
    return ledger.record(node, "scale", [self], Upper(bound, "softmax", because))


@RULES.rule("log_softmax.int")
def log_softmax(node: Node, ledger: Ledger, self: Any, dim: int, dtype: Any) -> Value:
    """Log-softmax of n entries moves by I - 1 p^T: norm sqrt(n) ||p|| <= sqrt(n) (Note [Softmax])."""
    del dtype
    count = node.shape[dim]
    return ledger.record(node, "scale", [self], Upper(up(math.sqrt(count)), "softmax", f"root of {count} entries"))


@RULES.rule("logsumexp.default")
def log_sum_exp(node: Node, ledger: Ledger, self: Any, dim: Any, keepdim: bool) -> Value:
    """The gradient of log sum exp is the softmax, a vector of length at most 1."""
    del dim, keepdim
    return ledger.record(node, "scale", [self], Upper(1.0, "softmax", "gradient p, length <= 1"))


def _probabilities(node: Node, ledger: Ledger, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest probability of every entry; 0 and 1 where nothing is known."""
    nothing = torch.zeros(1, device=ledger.device, dtype=torch.float64)
    if ledger.domain is None:
        return nothing, nothing + 1
    held = ledger.range_of(node, "self")
    largest = held.high.amax(dim, keepdim=True)
    low, high = (held.low - largest).exp(), (held.high - largest).exp()
    if not bool(torch.isfinite(largest).all()):
        return nothing, nothing + 1
    # p = own / (own + others), least where own is least and the others are largest.
    slack = 1e-9
    others_low = (low.sum(dim, keepdim=True) - low) - slack * low.sum(dim, keepdim=True)
    others_high = (high.sum(dim, keepdim=True) - high) + slack * high.sum(dim, keepdim=True)
    most = high / (high + others_low.clamp_min(0)) * (1 + slack)
    least = low / (low + others_high) * (1 - slack)
    return least.nan_to_num(nan=0.0), most.nan_to_num(nan=1.0).clamp_max(1.0)


@RULES.rule("scaled_dot_product_attention.default")
def attention(
    node: Node,
    ledger: Ledger,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Value:
    """Scaled dot-product attention over the ranges of queries, keys and values (Note [Attention])."""
    del is_causal  # which keys a query sees only takes entries of P away
    if dropout_p != 0:
        raise UnsupportedOp(f"expected attention without dropout, got dropout_p={dropout_p}")
    heads = _Heads(node, ledger, bool(enable_gqa))
    moved = []
    if any(isinstance(x, Value) for x in (query, key, attn_mask)):
        spread, half = heads.spread("value", value), HALF * (1 + 4 * UNIT)
        factor = abs(scale) if scale is not None else 1.0 / math.sqrt(heads.shape("query", query)[-1])
        factor *= 1 + 4 * UNIT
        if isinstance(query, Value):
            bounds = factor * spread * heads.spread("key", key)
            moved.append(heads.moved("query", query, bounds, "scale times spread of K times spread of V"))
        if isinstance(key, Value):
            bounds = factor * spread * heads.norms("query", query) * half
            moved.append(heads.moved("key", key, bounds, "scale ||Q|| times spread of V / sqrt 2"))
        if isinstance(attn_mask, Value):
            moved.append(heads.moved_mask(attn_mask, heads.shape("key", key)[-2], spread * half))
    if isinstance(value, Value):
        queries = torch.full(heads.lead, float(node.shape[-2]), dtype=torch.float64, device=ledger.device).sqrt()
        moved.append(heads.moved("value", value, queries, f"||P|| <= root of {node.shape[-2]} queries"))
    because = "attention: queries, keys, values and mask move one after the other"
    return ledger.record(node, "sum", moved, Upper(1.0, "sum", because))


class _Heads:
    """The heads of one attention: leading axes of its output, and which of them share an operand."""

    def __init__(self, node: Node, ledger: Ledger, grouped: bool) -> None:
        self.node, self.ledger, self.grouped = node, ledger, grouped
        self.lead = tuple(node.shape[:-2])

    def shape(self, name: str, operand: Any) -> tuple[int, ...]:
        return self.ledger.shape_of(self.node, name) if isinstance(operand, Value) else tuple(operand.shape)

    def norms(self, name: str, operand: Any) -> torch.Tensor:
        """A bound of the spectral norm of the operand, for every head of the output."""
        return self._widened(name, operand, matrix_norms(self._range(name, operand)))

    def spread(self, name: str, operand: Any) -> torch.Tensor:
        """A bound of the root of the largest eigenvalue of the covariance of the operand's rows, for every head."""
        return self._widened(name, operand, row_spreads(self._range(name, operand)))

    def _range(self, name: str, operand: Any) -> Range:
        if isinstance(operand, Value):
            return self.ledger.range_of(self.node, name)
        point = operand.to(torch.float64)
        return Range(point, point)

    def _widened(self, name: str, operand: Any, norms: torch.Tensor) -> torch.Tensor:
        """With room for rounding, one number per head of the output."""
        if not bool(torch.isfinite(norms).all()):
            raise NotLipschitz(
                f"expected the {name} of an attention to be bounded over the domain, got infinite ranges"
            )
        if isinstance(operand, Value):
            norms = norms.clamp_min(SMALLEST)
            norms = norms * self.ledger.widened(1.0, float(norms.min()))
        if self.grouped and norms.shape[-1] != self.lead[-1]:
            norms = norms.repeat_interleave(self.lead[-1] // norms.shape[-1], -1)
        return norms.expand(self.lead)

    def moved(self, name: str, operand: Value, bounds: torch.Tensor, because: str) -> Value:
        """An operand times the largest bound over its heads."""
        lead = self.shape(name, operand)[:-2]
        return self._scaled(operand, _together(bounds, lead, self.grouped), because)

    def moved_mask(self, mask: Value, keys: int, bounds: torch.Tensor) -> Value:
        """A mask: each of its entries is added to the scores of all heads, queries and keys that share it."""
        shape = (1, 1, *self.shape("attn_mask", mask))
        copies = math.prod(full // own for own, full in zip(shape[-2:], (self.node.shape[-2], keys), strict=True))
        bound = _together(bounds * up(math.sqrt(copies)), shape[2:-2], False)
        return self._scaled(mask, bound, "spread of V / sqrt 2")

    def _scaled(self, operand: Value, bound: float, because: str) -> Value:
        return self.ledger.scaled(self.node, operand, Upper(bound, "attention", because))


def _together(bounds: torch.Tensor, lead: tuple[int, ...], grouped: bool) -> float:
    """The largest, over heads of shape `lead`, of the root of the sum of squares over the heads that read it."""
    largest = float(bounds.max())
    if largest == 0.0:
        return 0.0  # constant operands may be zero throughout
    if not math.isfinite(largest):
        raise NotLipschitz("expected the operands of an attention to have bounds within float64, got larger ones")
    squares = (bounds / largest).square()
    if grouped and lead[-1] != squares.shape[-1]:
        squares = squares.unflatten(-1, (lead[-1], -1)).sum(-1)
    return up(float(squares.sum_to_size(lead).max().sqrt()) * largest * (1 + gamma(2 * bounds.numel() + 16)))
