"""What is claimed of a network's Lipschitz constant, and slopes that are proved: they may refute it.

Note [Who claims a constant]
    The user (`claimed_lipschitz`), or else the layers. A layer claims a constant by an attribute `claimed_lipschitz`,
    as those of `lipaudit.nn` do; layers of deel-torchlip by the coefficient that they were built with; those of
    orthogonium that are documented as orthogonal or 1-Lipschitz claim 1. An `nn.Sequential` claims the product of its
    parts if every part claims one. Any other module has code of its own, of which nothing is taken for granted. The
    claim is about raw inputs: a normalisation in front counts with 1/std. A claim is never used in a proof.

Note [Proved slopes]
    Two inputs with exact float32 entries are evaluated in float64 as for certificates, each with a proved bound of its
    error. The distance of their logits, less both errors, over their own is a lower bound of the constant.
"""

from __future__ import annotations

import base64
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import Composition
from lipaudit.errors import CaptureError, ConfigError
from lipaudit.graph.wrappers import Normalise, Normalised, bare
from lipaudit.results.bounds import ROUNDED, Claim, Secant
from lipaudit.results.formatting import clean
from lipaudit.rounding import up

ATTRIBUTE = "claimed_lipschitz"
BY_USER, BY_LAYERS = "the user", "the layers of the network"
NOT_EXPANDING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.Tanh, nn.PixelShuffle, nn.PixelUnshuffle)
"""Layers of torch without parameters that everybody knows to have a constant of 1."""
TORCHLIP = "deel.torchlip.modules.module", "LipschitzModule"
"""The base of the layers of deel-torchlip, found without importing it."""
ORTHOGONIUM = frozenset(
    {
        "FastBlockConv2d", "FastBlockConvTranspose2D", "BcopRkoConv2d", "BcopRkoConvTranspose2d", "RKOConv2d",
        "RkoConvTranspose2d", "AOLConv2D", "AOLConvTranspose2D", "OrthoLinear", "SDPBasedLipschitzResBlock",
        "SDPBasedLipschitzDense", "SLLxAOCLipschitzResBlock", "AOCLipschitzResBlock", "MaxMin", "Abs", "HouseHolder",
        "HouseHolder_Order_2", "SoftHuber", "ChannelShuffle",
    }
)  # fmt: skip
"""Layers of orthogonium 0.0.4 that its documentation calls orthogonal or 1-Lipschitz; its SOC is said to reach 1.08."""


def claim_of(model: nn.Module, asked: float | None) -> Claim | None:
    """The claim of the user or else of the layers; None where nobody claims a constant.

    Raises `ConfigError` for what is no constant, `CaptureError` for such an attribute of a layer.
    """
    if asked is not None:
        if not _is_constant(asked):
            raise ConfigError(f"{ATTRIBUTE}: expected a finite number above 0, got {clean(repr(asked), 60)}")
        return Claim(float(asked), BY_USER)
    constant = _claimed(model)
    return None if constant is None else Claim(constant, BY_LAYERS)


def _is_constant(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _claimed(model: nn.Module) -> float | None:
    """The constant that a module claims, as Note [Who claims a constant] says."""
    model = bare(model)
    if inspect.getattr_static(model, ATTRIBUTE, None) is not None:
        return _stated(model)
    kind = type_before_parametrizations(model)
    if isinstance(model, Normalise):
        return 1 / float(model.std.double().min())
    if isinstance(model, Normalised):
        return _product([model.normalise, model.network])
    if getattr(kind, "forward", None) is nn.Sequential.forward:
        return _product(model.children())
    if TORCHLIP in ((base.__module__, base.__name__) for base in kind.__mro__):
        constant: Any = getattr(model, "_coefficient_lip", None)
        return float(constant) if _is_constant(constant) else None
    if kind.__module__.startswith("orthogonium.layers.") and kind.__name__ in ORTHOGONIUM:
        return 1.0
    return 1.0 if kind in NOT_EXPANDING else None


def _product(parts: Iterator[nn.Module] | list[nn.Module]) -> float | None:
    """That of all parts in a row; None where one claims nothing, or there is none."""
    each = [_claimed(part) for part in parts]
    known = [one for one in each if one is not None]
    found = math.prod(known)
    return found if each and len(known) == len(each) and 0 < found < math.inf else None


def _stated(model: nn.Module) -> float:
    name = type(model).__name__
    try:
        value = getattr(model, ATTRIBUTE)
    except Exception as error:  # a property is the user's code
        said = clean(f"{type(error).__name__}: {error}", 120)
        raise CaptureError(f"expected {name}.{ATTRIBUTE} to be a number, got {said}; mend or remove it") from error
    if not _is_constant(value):
        got = clean(repr(value), 60)
        raise CaptureError(f"expected {name}.{ATTRIBUTE} to be a finite number above 0, got {got}; mend or remove it")
    return float(value)


def proved_secant(
    composition: Composition, sample: int, one: torch.Tensor, two: torch.Tensor, claimed: float
) -> Secant | None:
    """How steep the network is between two inputs, with proof; None where rounding hides it, or they are equal.

    `one` and `two` have no batch axis and entries that float32 holds exactly.
    """
    error_of = ErrorRecursion(composition)
    (first, off), (second, too) = (
        error_of(point.to(composition.ledger.device, torch.float64), careful=True) for point in (one, two)
    )
    # Each difference is rounded once, the root of the sum of squares by less than an ulp.
    distance = up(math.dist(one.double().flatten().tolist(), two.double().flatten().tolist()) * (1 + 2**-50))
    found = Secant(sample, distance, (tuple(first), tuple(second)), up(off + too))
    if not (distance > 0 and found.slope > 0):
        return None
    if found.slope <= claimed * (1 + ROUNDED):
        return found
    return Secant(sample, distance, found.logits, found.error, (_packed(one), _packed(two)))


def _packed(point: torch.Tensor) -> str:
    exact = point.detach().cpu().float()
    assert torch.equal(exact.double(), point.detach().cpu().double())
    return base64.b64encode(exact.contiguous().numpy().astype("<f4").tobytes()).decode()
