"""The search for multipliers: any precision, any method; nothing here proves anything.

One number for all entries of a layer first, T = c / ||V||^2, the best of a few c for all layers; then gradient steps on
log T, as long as they pay.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from lipaudit.domains.ellipsoid.ball import Ball, Unfit
from lipaudit.domains.ellipsoid.program import Program

STARTS = (1.0, 0.5, 0.2, 0.08)
_RATE = 0.1
_WINDOW, _GAIN = 10, 2e-3
"""The search ends when so many steps make the logarithm of the bound smaller by less than that."""

Loss = Callable[[Ball], torch.Tensor]
"""Logarithm of the bound, or the mean of several."""


def tuned(program: Program, loss: Loss, steps: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Multipliers for each bend, the best found, and those of the closed recursion."""
    tried = [found for c in STARTS if (found := _closed(program, loss, c)) is not None]
    if not tried:
        raise Unfit("no start")
    _, best = min(tried, key=lambda one: one[0])
    closed = [t.clone() for t in tried[0][1]]
    return (_descended(program, loss, best, steps) if steps else best), closed


def _closed(program: Program, loss: Loss, c: float) -> tuple[float, list[torch.Tensor]] | None:
    """The loss for T = c / ||V||^2, and T."""
    found: dict[int, torch.Tensor] = {}

    def choose(number: int, v: torch.Tensor) -> torch.Tensor:
        size = _norm(v)
        found[number] = v.new_full((v.shape[1],), c / size**2 if size else 1.0).real.clone()
        return found[number]

    try:
        with torch.no_grad():
            value = float(loss(program.run(choose, prove=False)))
    except (Unfit, torch.linalg.LinAlgError):
        return None
    return (value, [found[k] for k in range(len(found))]) if math.isfinite(value) else None


def _norm(v: torch.Tensor) -> float:
    """A little above the largest singular value."""
    w = v if v.shape[1] <= v.shape[2] else v.mH
    gram = w @ w.mH
    x = torch.ones(gram.shape[0], gram.shape[1], 1, dtype=gram.dtype, device=gram.device)
    x = x + 0.1 * torch.arange(gram.shape[1], device=gram.device)[:, None].cos()
    for _ in range(12):
        x = gram @ x
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-300)
    return 1.02 * math.sqrt(float(torch.linalg.vector_norm(gram @ x, dim=1).max()))


def _descended(program: Program, loss: Loss, start: list[torch.Tensor], steps: int) -> list[torch.Tensor]:
    logs = [t.log().requires_grad_(True) for t in start]
    optimiser = torch.optim.Adam(logs, lr=_RATE, betas=(0.9, 0.98))
    good, best, least, seen = [log.detach().clone() for log in logs], start, math.inf, []
    with torch.enable_grad():
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = group.get("rate", _RATE) * (1 - 0.8 * step / steps)
            ts = [log.exp() for log in logs]
            try:
                value = loss(program.run(lambda number, _, ts=ts: ts[number], prove=False))
                current = float(value.detach())
            except (Unfit, torch.linalg.LinAlgError):
                current = math.nan
            if not math.isfinite(current):
                with torch.no_grad():  # back towards what was good, with shorter steps
                    for log, old in zip(logs, good, strict=True):
                        log.copy_(old + 0.3 * (log - old))
                for group in optimiser.param_groups:
                    group["rate"] = 0.7 * group.get("rate", _RATE)
                continue
            good = [log.detach().clone() for log in logs]
            if current < least:
                least, best = current, [log.exp() for log in good]
            seen.append(least)
            if len(seen) > _WINDOW and seen[-_WINDOW - 1] - least < _GAIN:
                break
            optimiser.zero_grad()
            value.backward()
            if not all(bool(torch.isfinite(log.grad).all()) for log in logs if log.grad is not None):
                break
            optimiser.step()
    return best
