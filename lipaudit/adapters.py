"""What may stand where a model is asked for: a torch module, an ART classifier, or a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lipaudit.errors import CaptureError, LoadError


class Normalise(nn.Module):
    """`(x - mean) / std` per channel; x: (n, c, h, w)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


WRAPPED = "network."
"""Prefix of the layers of a network inside `Normalised`: not a name that its author knows."""


class Normalised(nn.Module):
    """A network with its input normalisation in front; in the network's mode, training or evaluation."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std).train(network.training)
        self.network = network
        self.training = network.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(self.normalise(x))


def as_module(
    model: nn.Module | str | Any, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> nn.Module:
    """Raw inputs to logits: `model` itself, with `(x - mean) / std` in front if given.

    `model`: an nn.Module (not touched), a name that `load_model` knows, or an ART `PyTorchClassifier`, whose
    own mean and standard deviation go in front. Raises `CaptureError` for an ART classifier with defences
    around the network: what it computes is not what the network computes; `LoadError` for anything else.
    """
    if (mean is None) != (std is None):
        raise LoadError("mean and std belong together; give both or none")
    if isinstance(model, str):
        from lipaudit.loading.sources import PAIRS
        from lipaudit.models import load_model

        return load_model(model, dataset=PAIRS.get(model), mean=mean, std=std).module
    if isinstance(model, nn.Module):
        return model if mean is None or std is None else _normalised(model, mean, std)
    if type(model).__module__.startswith("art.") and isinstance(getattr(model, "model", None), nn.Module):
        if mean is not None:
            raise LoadError("an ART classifier brings its own mean and std (`preprocessing`); leave them out")
        return _from_art(model)
    raise LoadError(f"expected an nn.Module, an ART PyTorchClassifier or a model name, got {type(model).__name__}")


def _normalised(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    if not (len(mean) == len(std) and min(std) > 0):
        raise LoadError(f"expected one mean and one positive std per channel, got {mean} and {std}")
    parameter = next(network.parameters(), None)
    wrapped = Normalised(network, mean, std)
    if parameter is not None:
        wrapped.normalise.to(parameter.device, parameter.dtype)
    return wrapped


def _from_art(classifier: Any) -> nn.Module:
    """The function that ART attacks: standardisation, then the network. Everything else around it is refused."""
    network: nn.Module = classifier.model
    after = classifier.postprocessing_defences
    if after:
        raise CaptureError(
            f"the ART classifier postprocesses its outputs ({type(after[0]).__name__}), expected logits; build "
            "it without postprocessing_defences"
        )
    for step in classifier.preprocessing_operations:
        if type(step).__name__ not in ("StandardisationMeanStdPyTorch", "StandardisationMeanStd"):
            raise CaptureError(
                f"the ART classifier has the preprocessing {type(step).__name__}, for which there is no "
                "Lipschitz bound; build it without preprocessing_defences"
            )
        # ART sees to it that both have the same shape.
        mean, std = step.mean.squeeze().reshape(-1), step.std.squeeze().reshape(-1)
        if step.mean.squeeze().ndim > 1:
            raise CaptureError(f"expected one mean per channel in the ART classifier, got shape {step.mean.shape}")
        if (mean != 0).any() or (std != 1).any():
            network = _normalised(network, mean.tolist(), std.tolist())
    return network
