"""What may stand around a network: normalisation, an ART classifier; and the device it is on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from lipaudit.errors import BadThreat, CaptureError, LoadError
from lipaudit.results.formatting import clean
from lipaudit.settings import Settings

Statistic = Sequence[float] | torch.Tensor
"""One number per channel, or a tensor that broadcasts with a batch of inputs."""


class Normalise(nn.Module):
    """`(x - mean) / std`, per channel of images (n, c, h, w) or as the tensors given broadcast."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Statistic, std: Statistic) -> None:
        super().__init__()
        self.register_buffer("mean", _shaped(mean))
        self.register_buffer("std", _shaped(std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def _shaped(values: Statistic) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.to(torch.float32)
    # A single number also fits inputs that are no images.
    return torch.tensor(values, dtype=torch.float32).reshape((-1, 1, 1) if len(values) > 1 else (1,))


WRAPPED = "network."
"""Prefix of the layers of a network inside `Normalised`: not a name that its author knows."""


class Normalised(nn.Module):
    """A network with its input normalisation in front; in the network's mode, training or evaluation."""

    def __init__(self, network: nn.Module, mean: Statistic, std: Statistic) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std).train(network.training)
        self.network = network
        self.training = network.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(self.normalise(x))


def bare(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        if type(model).__name__ == "OptimizedModule":
            inner = model.get_submodule("_orig_mod")
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            return model
        if model._forward_hooks or model._forward_pre_hooks:
            raise CaptureError(
                f"expected no hooks on {type(model).__name__}, which is taken off, got some; put them on the model "
                "inside"
            )
        model = inner


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy without wrappers, in which nothing is compiled; also of modules that keep a computed tensor, as the
    old `weight_norm` does. Raises `CaptureError` for what cannot be copied."""
    model = bare(model)
    held = [value for part in model.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    try:
        twin = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf})
    except Exception as error:  # whatever the user's module holds
        line = clean(str(error).strip().split("\n", 1)[0], 200)
        raise CaptureError(
            f"expected a model that can be copied, got {type(error).__name__}: {line}; keep what cannot be copied out "
            "of the module"
        ) from error
    twins = {id(part): other for part, other in zip(model.modules(), twin.modules(), strict=True)}
    for part in list(twin.modules()):
        part._compiled_call_impl = None
        for name, function in [("forward", type(part).forward), *vars(part).items()]:
            if (written := _as_written(function)) is not None:
                owner = part if name == "forward" else None
                owner = twins.get(id(getattr(written, "__self__", None)), owner)
                written = getattr(written, "__func__", written)
                vars(part)[name] = written if owner is None else MethodType(written, owner)
        for name, child in part._modules.items():
            if child is not None:
                part._modules[name] = bare(child)
    return twin


def _as_written(function: Any) -> Any:
    """What `torch.compile` made a function from; None for what is not compiled."""
    return getattr(function, "_torchdynamo_orig_callable", None) if callable(function) else None


def as_written(model: nn.Module) -> nn.Module:
    """The model without `torch.compile`, which computes the same and costs minutes: itself, where nothing is compiled,
    or else what is inside, or a copy where parts are compiled."""
    while type(model).__name__ == "OptimizedModule":
        model = bare(model)
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule):
            return model
        functions = (type(part).forward, *vars(part).values())
        compiled = type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None
        if compiled or any(_as_written(function) is not None for function in functions):
            return plain_copy(model)
    return model


def as_module(
    model: nn.Module | Any, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> nn.Module:
    """Raw inputs to logits: `model` itself, with `(x - mean) / std` in front if given.

    `model`: an nn.Module (not touched), or an ART `PyTorchClassifier`: what its `predict` computes, in eval mode, with
    its own mean and standard deviation in front. Raises `CaptureError` for an ART classifier that computes anything
    else than its network, such as one with defences; `LoadError` for what is no model.
    """
    if (mean is None) != (std is None):
        raise LoadError("mean and std belong together; give both or none")
    if isinstance(model, nn.Module):
        model = as_written(model)
        return model if mean is None or std is None else _normalised(model, mean, std)
    if _art_class(model) is not None:
        if mean is not None:
            raise LoadError("an ART classifier brings its own mean and std (`preprocessing`); leave them out")
        return _from_art(model)
    raise LoadError(f"expected an nn.Module, an ART PyTorchClassifier or a model name, got {type(model).__name__}")


def stated_domain(model: Any) -> tuple[float, float] | None:
    """The range of the entries of raw inputs that the model states: the `clip_values` of an ART classifier.

    None where nothing is stated. Raises `BadThreat` for a range per feature.
    """
    if _art_class(model) is None or model.clip_values is None:
        return None
    low, high = (np.unique(np.asarray(end, dtype=np.float64)) for end in model.clip_values)
    if len(low) != 1 or len(high) != 1:
        raise BadThreat(
            "expected clip_values of two numbers in the ART classifier, got a range per feature; build it with one "
            "range for all"
        )
    return float(low[0]), float(high[0])


def without_range(model: Any) -> bool:
    """Whether the model is of a kind that can state the range of its inputs, and does not."""
    return _art_class(model) is not None and model.clip_values is None


def domain_of(model: Any, domain: tuple[float, float] | None) -> tuple[float, float] | None:
    """The range asked for, or else the one that the model states. Raises `BadThreat` where the two differ."""
    stated = stated_domain(model)
    if domain is None or stated is None:
        return stated if domain is None else domain
    if tuple(map(float, domain)) != stated:
        raise BadThreat(
            f"expected the domain to be the clip_values of the ART classifier, {stated[0]:g} to {stated[1]:g}, got "
            f"{domain[0]:g} to {domain[1]:g}; leave the domain out"
        )
    return stated


def _normalised(network: nn.Module, mean: Statistic, std: Statistic) -> nn.Module:
    if not (len(mean) == len(std) and bool((torch.as_tensor(std) > 0).all())):
        raise LoadError(f"expected one mean and one positive std per channel, got {mean} and {std}")
    parameter = next(network.parameters(), None)
    wrapped = Normalised(network, mean, std)
    if parameter is not None:
        wrapped.normalise.to(parameter.device, parameter.dtype)
    return wrapped


_ANSWERING = ("predict", "_predict_framework", "_apply_preprocessing", "_apply_postprocessing", "_make_model_wrapper")
"""The methods of an ART classifier that decide what it computes."""


def _art_class(model: Any) -> type | None:
    """ART's PyTorchClassifier, if the model is one; found without importing ART."""
    module = "art.estimators.classification.pytorch"
    kinds = (kind for kind in type(model).__mro__ if kind.__module__ == module)
    return next((kind for kind in kinds if kind.__name__ == "PyTorchClassifier"), None)


def _from_art(classifier: Any) -> nn.Module:
    """The function that ART attacks: standardisation, then the network. Everything else around it is refused."""
    _refuse_more_than_a_network(classifier)
    network: nn.Module = as_written(classifier.model)
    if any(module.training for module in network.modules()):
        # ART predicts in eval mode; it switches the user's network to it and leaves it there, lipaudit does not.
        try:
            network = copy.deepcopy(network).eval()
        except Exception as error:  # whatever the user's module holds
            raise CaptureError(
                "the network of the ART classifier is in train mode and cannot be copied; call .model.eval() on the "
                "classifier first"
            ) from error
    for step in classifier.preprocessing_operations:
        if type(step).__name__ not in ("StandardisationMeanStdPyTorch", "StandardisationMeanStd"):
            raise CaptureError(
                f"the ART classifier has the preprocessing {type(step).__name__}, for which there is no "
                "Lipschitz bound; build it without preprocessing_defences"
            )
        if (step.mean != 0).any() or (step.std != 1).any():
            network = _normalised(network, *_art_statistics(step, classifier.input_shape))
    return network


def _refuse_more_than_a_network(classifier: Any) -> None:
    kind, plain = type(classifier), _art_class(classifier)
    own = [name for name in _ANSWERING if getattr(kind, name) is not getattr(plain, name)]
    if own or kind.__module__.startswith("art.estimators.certification"):
        raise CaptureError(
            f"the ART estimator {kind.__name__} computes something else than the network that it was given; audit that "
            "network, or a PyTorchClassifier around it"
        )
    after = classifier.postprocessing_defences
    if after:
        raise CaptureError(
            f"the ART classifier postprocesses its outputs ({type(after[0]).__name__}), expected logits; build "
            "it without postprocessing_defences"
        )


def _art_statistics(step: Any, input_shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation as ART broadcasts them with inputs of that shape."""
    from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std

    if not step.apply_predict:
        raise CaptureError("the ART classifier does not apply its preprocessing when it predicts; build it without")
    batch = (1, *input_shape)
    mean, std = broadcastable_mean_std(np.empty(batch, dtype=np.float32), step.mean, step.std)
    try:
        fits = np.broadcast_shapes(mean.shape, batch) == batch
    except ValueError:
        fits = False
    if not fits:
        raise CaptureError(
            f"expected a mean and std in the ART classifier that fit inputs of shape {tuple(input_shape)}, got shape "
            f"{step.mean.shape}"
        )
    # ART computes in float32 as well, and a scalar has no length.
    return torch.from_numpy(np.array(mean, ndmin=1)), torch.from_numpy(np.array(std, ndmin=1))


@dataclass(frozen=True)
class Prepared:
    """A network as every entry point works with it."""

    module: nn.Module
    """Raw inputs to logits, normalisation in front, on its device."""
    domain: tuple[float, float] | None
    """The range of the entries of raw inputs that was asked for, or that the model states."""
    wrapper: str = ""
    """The kind of object around the network that was passed; empty for a module."""
    unstated: bool = False
    """Whether the range was neither asked for nor stated by a wrapper that could."""


def prepared(model: nn.Module | Any, settings: Settings) -> Prepared:
    """What `model` is with the `mean`, `std`, `device` and `domain` of the settings. The model is left as it is.

    Raises the errors of `as_module` and `domain_of`.
    """
    # "none" is what the command line calls no normalisation.
    mean, std = (None if isinstance(one, str) else one for one in (settings.mean, settings.std))
    module = on_device(as_module(model, mean=mean, std=std), settings.device)
    wrapper = "" if isinstance(model, nn.Module) else type(model).__name__
    unstated = settings.domain is None and without_range(model)
    return Prepared(module, domain_of(model, settings.domain), wrapper, unstated)


def on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The model on `device`; a copy if it has to move, so that the user's own stays where it is."""
    if device is None or torch.device(device) == device_of(model):
        return model
    return copy.deepcopy(model).to(device)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's tensors are; the CPU for a model without any."""
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
