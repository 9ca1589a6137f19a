"""The function that certificates are about, as a module that attacks can ask."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lipaudit.certification.network_bound import Composition
from lipaudit.domains.graph import Node, call, evaluate, in_dtype, quiet_vmap
from lipaudit.graph.agreement import Agreement as Comparison

JUDGED_BYTES = 2**28
"""Memory of all float64 values of the samples that are judged at a time."""


class ExactNetwork(nn.Module):
    """The function that the certificates speak of (real arithmetic), in float64: the captured graph and its constants.

    A copy of the model cast to float64 would recompute parametrised weights, and be another function by 1e-7.
    """

    def __init__(self, composition: Composition) -> None:
        super().__init__()
        self.graph = in_dtype(composition.graph, torch.float64)
        entries = sum(math.prod(node.shape) for node in self.graph.nodes)
        self.together = max(1, JUDGED_BYTES // (8 * entries))
        """Samples at a time: many passes of a small network cost little more than one."""
        self.agrees = False

    def __deepcopy__(self, memo: dict[int, Any]) -> ExactNetwork:
        return self  # the graph is immutable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._several(some) for some in x.split(self.together)])

    def _several(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1 and self.together > 1:
            logits = self._mapped(x)
            if logits is not None:
                return logits
            self.together = 1
        return torch.stack([evaluate(self.graph, sample) for sample in x])

    def _mapped(self, x: torch.Tensor) -> torch.Tensor | None:
        """The logits by `torch.vmap`; None if it does not know an operation, or computes something else."""
        with quiet_vmap(), sdpa_kernel(SDPBackend.MATH):
            try:
                logits = torch.vmap(lambda sample: evaluate(self.graph, sample, run=_known))(x)
            except Exception:  # noqa: BLE001  (whatever it says of what it does not know: one after the other, then)
                return None
        if not self.agrees:
            alone = evaluate(self.graph, x[0])[None]
            exact = Comparison(replace(self.graph, dtype=torch.float64))
            self.agrees = bool(exact.same(x[:1], logits[:1], alone).all())
        return logits if self.agrees else None


def _known(node: Node, arguments: dict[str, Any]) -> torch.Tensor:
    """The operation in terms that `torch.vmap` knows: batch norm is differences, products and sums."""
    if node.op != "_native_batch_norm_legit_no_training.default":
        return call(node, arguments)
    x, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    scale = (arguments["running_var"] + arguments["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight
    output = (x - arguments["running_mean"].reshape(shape)) * scale.reshape(shape)
    return output if bias is None else output + bias.reshape(shape)
