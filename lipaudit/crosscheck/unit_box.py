"""Private copies of the audited network, one to be attacked, one to judge. The original is never touched."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lipaudit.errors import BadThreat, CaptureError
from lipaudit.graph.snapshot import fix_parametrized


class UnitBox(nn.Module):
    """The network as attacks see it: float32 inputs in [0, 1] to float32 logits.

    AutoAttack clamps to [0, 1] whatever the data, and ART mixes dtypes, so every network is presented like
    this. Inputs that are neither flat nor images are presented flat.
    """

    def __init__(
        self, logits: nn.Module, like: Tensor, low: float, high: float, classes: int, scale: float = 1.0
    ) -> None:
        """`logits` is a copy that may be changed; `like` a batch of raw inputs; the box is [low, high].

        Logits come out times `scale`, a power of two: exactly what they are, in a size that losses are made for.
        """
        super().__init__()
        self.classes = classes
        self.logits = logits
        self.raw_shape = tuple(like.shape[1:])
        self.shape = self.raw_shape if len(self.raw_shape) == 3 else (like[0].numel(),)
        self.low, self.high, self.scale = low, high, scale
        self.no_gradient = ""
        """Why attacks that follow gradients cannot run."""
        self.device = like.device
        self.dtype = next((p.dtype for p in logits.parameters() if p.is_floating_point()), like.dtype)

    def forward(self, unit: Tensor) -> Tensor:
        raw = unit.reshape(-1, *self.raw_shape).to(self.dtype)
        if (self.low, self.high) != (0.0, 1.0):
            raw = raw * (self.high - self.low) + self.low
        output = self.logits(raw)
        output = output.clone() if output.is_inference() else output  # which attacks may not work on
        output = output if output.dtype == torch.float64 else output.float()
        return (output if self.scale == 1 else output * self.scale).float()

    def to_unit(self, raw: Tensor) -> Tensor:
        """Raw inputs to what `forward` takes; exact if the box is [0, 1] and the inputs float32.

        Contiguous, as AutoAttack takes views of it.
        """
        unit = (raw.double() - self.low) / (self.high - self.low)
        return unit.float().clamp(0, 1).reshape(-1, *self.shape).contiguous()

    def to_raw(self, unit: Tensor) -> Tensor:
        """What `forward` takes to raw inputs, in float64 and inside the box."""
        raw = unit.double().reshape(-1, *self.raw_shape) * (self.high - self.low) + self.low
        return raw.clamp(self.low, self.high)


def private_copy(logits: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A deep copy in eval mode, without parameter gradients, cast to `dtype` if one is given.

    Parametrised weights are fixed at the values that run, in the network's own dtype: recomputed in float64 they
    would be those of another network, and recomputed at every pass they cost more than the pass.
    Raises `CaptureError` if the network cannot be copied.
    """
    try:
        twin = copy.deepcopy(logits)
    except Exception as error:
        # Deep copies run the user's own code, so any error may come; it is turned into one line, not hidden.
        remedy = "old-style weight_norm and spectral_norm forbid copies: use torch.nn.utils.parametrizations"
        raise CaptureError(f"expected a network that copy.deepcopy can copy, got {error}; {remedy}") from error
    twin = twin.eval()
    fix_parametrized(twin)
    twin = twin if dtype is None else twin.to(dtype)
    return twin.requires_grad_(False)


def why_no_gradient(network: nn.Module, points: Tensor) -> str:
    """Why the logits have no gradient at some points, in a few words; empty if they have one."""
    with torch.enable_grad():
        points = points.detach().clone().requires_grad_()
        output = network(points)
        if not output.requires_grad:
            return "no gradient: the forward pass cuts it off (detach, no_grad or inference_mode)"
        try:
            torch.autograd.grad(output.sum(), points)
        except Exception as error:  # noqa: BLE001  (a backward pass is the user's code, too)
            return f"no gradient: {type(error).__name__}: {str(error).strip().split(chr(10), 1)[0][:200]}"
    return ""


def probe(judge: nn.Module, inputs: Tensor) -> int:
    """The number of classes, after a check that the float64 copy turns inputs into logits.

    Raises `CaptureError` if it does not run, `BadThreat` if its output has no two columns.
    """
    try:
        with torch.no_grad():
            output = judge(inputs[:1].double())
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CaptureError(
            f"expected a network that runs in float64, the dtype in which adversarial examples are verified, "
            f"got: {reason}; remove casts to a fixed dtype from its forward"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BadThreat(f"expected logits of shape (batch, classes) with at least 2 classes, got {got}")
    return output.shape[1]
