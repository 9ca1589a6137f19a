"""Whether two answers for one image are the same but for rounding, logit by logit.

Note [The same but for rounding]
    Two runs of one function round differently: other kernels, another order of sums, another size of batch. How far
    they come apart depends on the logit: one that is the difference of two large numbers is off by more than its own
    size says, and a class that is masked with -1e9 says nothing about the others. So it is measured, for each image
    and each logit: the graph is evaluated with the input and every result disturbed by a random relative error of
    2u, entry by entry, u the unit roundoff of the arithmetic. What a logit moves by, mean of a few such
    evaluations and halved, is its rounding error; two answers that differ by more than `SLACK` times that are not the
    same. The size of another logit does not enter.
    Source: D. Stott Parker, Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic, 1997.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lipaudit.domains.graph import Graph, Node, call, evaluate
from lipaudit.rounding import SHORT_UNITS, short_formats

SLACK = 64.0
"""How many times the measured rounding error two answers may differ by: a sum of many terms loses more than the one
rounding of its result, and kernels such as Winograd's more than that."""

DRAWS = (4, 16)
"""Evaluations for a measurement. A mean of few is far too small for one logit in thousands: a difference that they do
not explain is looked at again with more."""

_POOL = 2**20 + 7
"""Random signs that are drawn once: many times faster than drawing one for each entry."""


class Agreement:
    """Compares answers with those of one graph, see Note [The same but for rounding]."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._least: torch.Tensor | None = None
        """The smallest rounding errors of the images seen: what agrees within those needs no measuring of its own."""

    def same(self, x: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Which logits of two answers for the images `x` are the same: truth values of shape (n, classes), on the CPU.

        `x` (n, ...) as the model takes it, `one` and `other` (n, classes) in any floating-point type. Logits that are
        NaN or infinite are never the same.
        """
        one, other = one.detach().to("cpu", torch.float64), other.detach().to("cpu", torch.float64)
        difference = (one - other).abs()
        # The rounding of the logit itself is one of those that are measured below.
        same = difference <= SLACK * _unit(self.graph.dtype, x.device) * torch.minimum(one.abs(), other.abs())
        if self._least is not None:
            same |= difference <= SLACK * self._least
        for row in (~same & difference.isfinite()).any(1).nonzero()[:, 0].tolist():
            for draws in DRAWS:
                error = self.rounding(x[row], draws)
                same[row] |= difference[row] <= SLACK * error
                if bool(same[row].all()):
                    break
            self._least = error if self._least is None else torch.minimum(self._least, error)
        return same

    def rounding(self, x: torch.Tensor, draws: int) -> torch.Tensor:
        """The rounding error of each logit at the image `x` (without batch axis), as measured."""
        x = x.to(self.graph.dtype)
        generator = torch.Generator(device="cpu").manual_seed(draws)
        signs = torch.randint(0, 2, (_POOL,), generator=generator, dtype=torch.int8, device="cpu") * 2 - 1
        factors = 1 + 2 * _unit(self.graph.dtype, x.device) * signs.to(x)

        def disturbed(values: torch.Tensor) -> torch.Tensor:
            if values.is_complex():
                return torch.view_as_complex(disturbed(torch.view_as_real(values.resolve_conj()).contiguous()))
            if not values.is_floating_point():
                return values
            start = int(torch.randint(0, _POOL, (), generator=generator, device="cpu"))
            repeats = -(-(start + values.numel()) // _POOL)
            several = factors.repeat(repeats) if repeats > 1 else factors
            return values * several[start : start + values.numel()].reshape(values.shape)

        def run(node: Node, arguments: Mapping[str, Any]) -> torch.Tensor:
            return disturbed(call(node, arguments))

        with torch.no_grad():
            centre = evaluate(self.graph, x).to("cpu", torch.float64)
            moved = [evaluate(self.graph, disturbed(x), run=run).to("cpu", torch.float64) for _ in range(draws)]
        off = (torch.stack(moved) - centre).abs()
        largest = off.amax(0).clamp_min(torch.finfo(torch.float64).tiny)  # whose square may be no number of float64
        return (off / largest).square().mean(0).sqrt() * largest / 2


def _unit(dtype: torch.dtype, device: torch.device) -> float:
    """Unit roundoff of the arithmetic; torch may be set to multiply float32 in a shorter format."""
    short = [SHORT_UNITS[name] for name in short_formats(device).values()] if dtype == torch.float32 else []
    return max(short, default=torch.finfo(dtype).eps / 2)
