"""Penalties on the norms of a whole network, to add to a loss: one call a step, layers of one shape together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lipaudit.nn.bound_replay import Factor, Plan, norm_at, plan, scales
from lipaudit.nn.differentiable_norms import FLOOR, NORMS, Places


def spectral_penalty(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    method: str = "gram",
    target: float = 1.0,
    refresh: int = 1,
    domain: tuple[float, float] | None = None,
    **options: int,
) -> Tensor:
    """Sum over all layers of max(0, log(norm / target)): zero once no norm is above `target`.

    Layers are the convolutions and dense layers on the way from input to logits, each with the batch norm that follows
    it, and batch norms that follow none; see Note [Replay]. `method` is one of `regularisers.NORMS`: "gram",
    "lipgrid", "four", "aol"; `options` go to it (`steps`, `points`). `input_shape` has no batch axis. With `refresh`
    = k, "gram" looks at its whole grid of frequencies in every k-th call only, and in between at the highest one of
    then, no bound between two looks; "four" likewise at all four matrices, where any one is a bound. Gradients reach
    the weights of layers and batch norms. Raises `RuleError` for an unknown method, `ValueError` for a model without
    such layers or a `target` of zero or less, and the errors of `lipaudit.bound`; `domain` is what it takes.
    """
    if not target > 0:
        raise ValueError(f"spectral_penalty: expected a target above 0, got {target}")
    made = plan(model, input_shape, domain)
    found = log_norms(model, made, method, refresh, options)
    return torch.stack(list(found.values())).sub(math.log(target)).clamp_min(0.0).sum()


def log_lipschitz(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    method: str = "gram",
    refresh: int = 1,
    body: bool = False,
    domain: tuple[float, float] | None = None,
    **options: int,
) -> Tensor:
    """The natural logarithm of a Lipschitz bound of the network (L2), input to logits: the proof of an audit, replayed.

    Sums over residual branches and products over layers as `lipaudit.bound` takes them, with norms that have a
    gradient, in the weights' dtype and without outward rounding: to train with, not to certify. With `body`, the bound
    of everything before the last linear layer: what `pairwise_lipschitz` takes. Arguments and errors as in
    `spectral_penalty`; `ValueError` also for `body` where the network does not end in a linear layer.
    """
    made = plan(model, input_shape, domain)
    until = made.body if body else None
    return made.replay(log_norms(model, made, method, refresh, options), until)


def log_norms(
    model: nn.Module, made: Plan, method: str, refresh: int, options: Mapping[str, int]
) -> dict[Factor | str, Tensor]:
    """The logarithm of the norm of every factor and every lone batch norm of the plan; alike ones in one batch."""
    if refresh < 1:
        raise ValueError(f"expected refresh of at least 1, got {refresh}")
    norm = NORMS[method]
    alike: dict[tuple[tuple[int, ...], tuple[int, ...], int], list[tuple[Factor, Tensor]]] = {}
    for factor in made.factors:
        weight = factor.weight(model)
        alike.setdefault((tuple(weight.shape), *factor.geometry(model)), []).append((factor, weight))
    found: dict[Factor | str, Tensor] = {}
    for (shape, stride, groups), members in alike.items():
        key = (method, shape, stride, groups, *sorted(options.items()))
        places = made.memory.setdefault(key, Places())
        places.refresh = refresh
        keywords = {**options, "places": places} if method in ("gram", "four") else options
        values = norm(torch.stack([weight for _, weight in members]), stride=stride, groups=groups, **keywords)
        logarithms = values.clamp_min(FLOOR).log().unbind()
        found |= {factor: value for (factor, _), value in zip(members, logarithms, strict=True)}
    for path in made.scalings:
        found[path] = scales(norm_at(model, path)).abs().amax().clamp_min(FLOOR).log()
    return found
