"""Which functions of torch are bounded, lowered or refused: each of torch's own samples of operations as a network.

    python tests/benchmarks/aten_coverage.py [part of a name ...]

Needs expecttest (torch's own tests import it). Prints a line per function and the counts; exits with 1 if one ended in
anything but a bound or one of our errors, or its bound is below the steepest slope of a few points in the domain.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from lipaudit.certification.network_bound import compose
from lipaudit.errors import LipauditError

LOW_HIGH = (0.1, 0.9)


class Applied(nn.Module):
    """The function of one sample after the other, its floating-point outputs side by side."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.one(sample) for sample in x])

    def one(self, x: torch.Tensor) -> torch.Tensor:
        found = self.function(x)
        several = found if isinstance(found, (tuple, list)) else [found]
        kept = [out.flatten() for out in several if isinstance(out, torch.Tensor) and out.is_floating_point()]
        return torch.cat(kept)[:16]


def steepest(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest norm of the Jacobian (float32) at random points of the domain; 0 where torch has no gradient."""
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for _ in range(4):
        x = torch.rand(1, *shape, generator=generator).mul(LOW_HIGH[1] - LOW_HIGH[0]).add(LOW_HIGH[0]).requires_grad_()
        try:
            rows = [torch.autograd.grad(logit, x, retain_graph=True)[0].flatten() for logit in model(x)[0]]
        except RuntimeError:
            return largest
        jacobian = torch.stack(rows).nan_to_num(nan=0.0)
        largest = max(largest, float(torch.linalg.matrix_norm(jacobian, 2)))
    return largest


def outcome(info: object) -> str:
    """What becomes of the first sample of this operation."""
    samples = info.sample_inputs("cpu", torch.float32, requires_grad=False)
    sample = next((s for s in samples if isinstance(s.input, torch.Tensor) and s.input.numel() and s.input.ndim), None)
    if sample is None:
        return "no sample"
    model = Applied(lambda x: info.op(x, *sample.args, **sample.kwargs)).eval()
    try:
        network = compose(model, tuple(sample.input.shape), domain=LOW_HIGH)
    except LipauditError as error:
        return f"refused: {type(error).__name__}: {str(error)[:160]}"
    except Exception as error:  # noqa: BLE001  (what is looked for)
        return f"CRASHED: {type(error).__name__}: {str(error)[:160]}"
    slope = steepest(model, tuple(sample.input.shape))
    if slope > network.network.value * (1 + 1e-4) + 1e-6:
        return f"BELOW: a bound of {network.network.value:.6g}, a slope of {slope:.6g}"
    ops = {node.op for node in network.graph.nodes}
    own = any(op.split(".")[0] == info.aten_name for op in ops)
    return f"{'bounded' if own else 'lowered'}: {network.network.value:.4g}"


def main(parts: list[str]) -> int:
    """Every operation, or those whose names contain one of the parts."""
    from torch.testing._internal.common_methods_invocations import op_db

    counts: Counter[str] = Counter()
    for info in op_db:
        if torch.float32 not in info.dtypes or (parts and not any(part in info.name for part in parts)):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = outcome(info)
        counts[found.split(":")[0]] += 1
        sys.stdout.write(f"{info.name:40} {found}\n")
    sys.stdout.write(f"{dict(counts)}\n")
    return int(counts["CRASHED"] + counts["BELOW"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
