"""Two dense layers with an activation between them, bounded at once: less than the product of their norms.

Note [Pairs of layers]
    Let the activation have slopes in [0, 1], one for each hidden entry: between two inputs it multiplies differences by
    a diagonal S in [0, 1]. For every diagonal D > 0
        ||C S B|| <= 1/2 ||[D^-1 C^T, D B]||^2.
    Proof: for unit u and v let p = D^-1 C^T u and q = D B v. Then u^T C S B v = sum S_k p_k q_k <= sum max(0, p_k q_k)
    = 1/2 (sum |p_k q_k| + p.q) <= 1/2 (|p| |q| + p.q) <= 1/4 |p + q|^2, and p + q is the matrix [D^-1 C^T, D B] on
    (u, v), whose length is sqrt(2). Exact for sandwich layers (Wang and Manchester, ICML 2023), whose D is their e^psi;
    0.6 to 0.7 of the product of norms on ordinary pairs. Every D proves something: it is chosen by a few cheap
    steps, and only the last norm is proved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lipaudit.norms.linear_maps import Dense, Scale
from lipaudit.norms.methods import norm_bound
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, up

_MOST_ENTRIES = 2**22
_STEPS = 60
_RATE = 0.1


MONOTONE: dict[str, float] = {
    **dict.fromkeys(
        (
            "relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default",
            "clamp_max.default", "tanh.default", "atan.default", "asinh.default", "log_sigmoid.default",
            "softplus.default",
        ),
        1.0,
    ),
    "sigmoid.default": 0.25,
    "erf.default": 1.128379168,
    "hardsigmoid.default": 0.16666666666666669,
}  # fmt: skip
"""Functions of one entry that nowhere fall: operation -> the largest slope, as `pointwise.SLOPES` has it."""


def pair_bound(first: Dense, then: Dense, slope: float, guesses: Sequence[Scale] = ()) -> Upper | None:
    """Of `then` after an activation with slopes in [0, slope] after `first`; None where it would cost too much.

    `guesses`: scalings of the hidden entries that may be D, or its inverse.
    """
    b, c = first.weight, then.weight.mT
    if b.shape[0] != c.shape[0] or b.shape[0] * (b.shape[1] + c.shape[1]) > _MOST_ENTRIES or not b.numel():
        return None
    factors = (guess.per_channel(-1) for guess in guesses if guess.input_shape[-1] == b.shape[0])
    d = _balanced(c, b, [factor.abs() for factor in factors if factor is not None])
    if d is None:
        return None
    # d and 1 / d are floats; the rounding of the quotient and of the product are relative errors of the entries.
    stacked = torch.cat([c / d[:, None], b * d[:, None]], 1)
    error = 1.01 * max(first.relative_error, then.relative_error) + 2 * UNIT
    norm = float(norm_bound(Dense(stacked, (stacked.shape[1],), error), "svd")[0])
    value = up(slope * up(0.5 * up(norm * norm)))
    return Upper(value, "pair", f"two layers and the activation between them: {slope / 2:g} x {norm:.9g}^2")


def _balanced(c: torch.Tensor, b: torch.Tensor, guesses: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """D that makes ||[D^-1 C, D B]|| small: the best guess, or gradient steps along the largest singular vector."""
    lengths = [torch.linalg.vector_norm(m, dim=1) for m in (c, b)]
    used = (lengths[0] > 0) & (lengths[1] > 0)
    if not bool(used.any()) or not all(bool(torch.isfinite(length).all()) for length in lengths):
        return None
    even = (lengths[0] / lengths[1].clamp_min(1e-300)).clamp(1e-100, 1e100).log() / 2
    # Of a hidden entry that nothing goes to, or that goes nowhere, the other half is scaled away.
    even = torch.where(used, even, torch.where(lengths[0] > 0, 30.0, -30.0).to(even))
    starts = [even, *(sign * guess.clamp(1e-100, 1e100).log() for guess in guesses for sign in (1, -1))]
    logs = min(starts, key=lambda start: _largest(c, b, start, torch.ones_like(start), 30)[0])
    logs = logs.detach().clone()
    best, least, u = logs.clone(), math.inf, torch.ones_like(logs)
    optimiser = torch.optim.Adam([logs], lr=_RATE, betas=(0.9, 0.99), eps=1e-4)
    for step in range(1, _STEPS + 1):
        size, u, logs.grad = _largest(c, b, logs, u, 20 if step == 1 else 3)
        if not math.isfinite(size):
            break
        if size < least:
            best, least = logs.clone(), size
        optimiser.step()
    # Several singular values meet where nothing is left to gain; there a power iteration may see too little.
    found = min((best, *starts), key=lambda start: _largest(c, b, start, torch.ones_like(start), 200)[0]).exp()
    return found if bool((torch.isfinite(found) & (found > 0)).all()) else None


def _largest(
    c: torch.Tensor, b: torch.Tensor, logs: torch.Tensor, u: torch.Tensor, steps: int
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The square of ||[D^-1 C, D B]|| from below, its singular vector and its slope by log D."""
    d = logs.exp()
    left, right = c / d[:, None], b * d[:, None]
    size = u.new_tensor(0.0)
    for _ in range(steps):
        u = left @ (left.mT @ u) + right @ (right.mT @ u)
        size = torch.linalg.vector_norm(u)
        u = u / size
    return float(size), u, u * (right @ (right.mT @ u) - left @ (left.mT @ u)) / size
