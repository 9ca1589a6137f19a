"""The search for multipliers: any precision, any method; nothing here proves anything.

With a diagonal D > 0 and c in (0, 2), T = c D / ||D^(1/2) V||^2 makes P of Note [A bend] positive definite, whatever
they are. So gradient steps on log D and on c meet no wall. They start from the best of: D = 1, which is the closed
recursion; D = 1 / diag(V V^T); and D = 1 / the row sums of |V V^T|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lipaudit.domains.ellipsoid.ball import Ball, Unfit
from lipaudit.domains.ellipsoid.program import Program

MUCH = 3e9
"""From so many operations on, one start has to do."""
_RATE = 0.05
_WINDOW, _GAIN = 10, 4e-3
"""The search ends when so many steps make the logarithm of the bound smaller by less than that."""
_WORSE, _LEAST_RATE = 0.05, 4e-3
"""So much worse than the best a step may be; no shorter steps than that are tried."""
_POWER, _ABOVE = 12, 1.03

Loss = Callable[[Ball], torch.Tensor]
"""Logarithm of the bound, or the mean of several."""


def tuned(
    program: Program, loss: Loss, worth: Callable[[float], int | None]
) -> tuple[list[torch.Tensor] | None, list[torch.Tensor]]:
    """Multipliers for each bend, the best found, and those of the closed recursion.

    `worth` says from the first loss how many steps to take, or None where it is not worth any: then so is the first.
    """
    starts = list(map(_Search, ("one", "diagonal", "sums"))) if program.flops < MUCH else [_Search("one")]
    for search in starts:
        with torch.no_grad():
            search.loss = _loss(program, loss, search)
    if not math.isfinite(starts[0].loss):
        raise Unfit("no start")
    closed = starts[0].multipliers()
    best = min(starts, key=lambda one: one.loss)
    steps = worth(best.loss)
    if steps is None:
        return None, closed
    return (_descended(program, loss, best, steps) if steps else best.multipliers()), closed


@dataclass
class _Search:
    """log D and the logit of c / 2 of each bend, and the multipliers that they gave last."""

    start: str
    logs: dict[int, torch.Tensor] = field(default_factory=dict)
    shares: dict[int, torch.Tensor] = field(default_factory=dict)
    found: dict[int, torch.Tensor] = field(default_factory=dict)
    tops: dict[int, torch.Tensor] = field(default_factory=dict)
    loss: float = math.inf

    def choose(self, number: int, v: torch.Tensor) -> torch.Tensor:
        if number not in self.logs:
            self._begin(number, v.detach())
        d = self.logs[number]
        w = (d / 2).exp()[:, None] * v
        with torch.no_grad():
            u = self.tops.get(number, torch.ones(v.shape[0], v.shape[1], 1, dtype=v.dtype, device=v.device))
            u = u + 1e-3 * torch.arange(v.shape[1], device=v.device)[:, None].cos()
            for _ in range(_POWER if number not in self.tops else 4):
                u = w @ (w.mH @ u)
                u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(1e-30)
            self.tops[number] = u
        image = w.mH @ u
        size = (image * image.conj()).real.sum((1, 2)).max().clamp_min(1e-30)
        t = 2 * torch.sigmoid(self.shares[number]) * d.exp() / (_ABOVE * size)
        self.found[number] = t.detach()
        return t

    def _begin(self, number: int, v: torch.Tensor) -> None:
        d = torch.ones(v.shape[1], dtype=v.real.dtype, device=v.device)
        if self.start != "one":
            gram = v @ v.mH
            rows = gram.abs().sum(2) if self.start == "sums" else gram.diagonal(dim1=1, dim2=2).real
            sums = rows.amax(0)
            d = 1 / sums.clamp_min(1e-3 * float(sums.max()) or 1.0)
        self.logs[number] = d.log().requires_grad_(True)
        self.shares[number] = d.new_zeros(()).requires_grad_(True)

    def multipliers(self) -> list[torch.Tensor]:
        return [self.found[k].clone() for k in range(len(self.found))]

    def parameters(self) -> list[torch.Tensor]:
        return [*self.logs.values(), *self.shares.values()]


def _loss(program: Program, loss: Loss, search: _Search) -> float:
    try:
        return float(loss(program.run(search.choose, prove=False)))
    except (Unfit, torch.linalg.LinAlgError):
        return math.inf


def _descended(program: Program, loss: Loss, search: _Search, steps: int) -> list[torch.Tensor]:
    parameters = search.parameters()
    best, least, rate, seen = search.multipliers(), math.inf, _RATE, []
    kept = [one.detach().clone() for one in parameters]
    optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.98))
    with torch.enable_grad():
        for _ in range(steps):
            try:
                value = loss(program.run(search.choose, prove=False))
                current = float(value.detach())
            except (Unfit, torch.linalg.LinAlgError):
                current = math.inf
            known = current < least + _WORSE
            if known:
                optimiser.zero_grad()
                value.backward()
                known = all(one.grad is None or bool(torch.isfinite(one.grad).all()) for one in parameters)
            if not known:  # back, with shorter steps
                rate *= 0.5
                if rate < _LEAST_RATE:
                    break
                optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.98))
                with torch.no_grad():
                    for one, old in zip(parameters, kept, strict=True):
                        one.copy_(old)
                continue
            if current < least:
                least, best = current, search.multipliers()
                kept = [one.detach().clone() for one in parameters]
            seen.append(least)
            if len(seen) > _WINDOW and seen[-_WINDOW - 1] - least < _GAIN:
                break
            optimiser.step()
    return best
