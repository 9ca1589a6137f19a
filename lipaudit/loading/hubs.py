"""Networks and weights of torchvision and timm: resolved, fetched into their own caches, never guessed."""

from __future__ import annotations

import sys
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lipaudit.errors import LoadError
from lipaudit.loading.checkpoints import check_name_hash
from lipaudit.loading.downloads import (
    Remote,
    fetch,
    is_offline,
    megabytes,
    refuse_offline,
    refuse_unreachable,
    size_of,
)
from lipaudit.progress import Progress, Silent

HF_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names under which timm's models lie on the Hugging Face hub; safetensors first."""
TORCHVISION_LICENCE = "BSD-3-Clause (code); weights trained on ImageNet"


@dataclass(frozen=True)
class Request:
    """What is wanted of a source of networks."""

    name: str
    """Without the `timm:` or `torchvision:` in front."""
    classes: int | None
    """None: as many as the weights have."""
    channels: int | None
    pretrained: bool
    """False: the architecture only, its weights come from a checkpoint or stay random."""
    offline: bool
    progress: Progress


@dataclass(frozen=True)
class Built:
    """A network and where it comes from."""

    module: nn.Module
    source: str
    licence: str = ""
    weights_file: Path | None = None
    """The file of the weights that came with the name; None if it brought none."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    raw: bool = False
    """The network itself takes inputs in [0,1]; no normalisation belongs in front of it."""
    input_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Published:
    """What a hub says about a network's weights."""

    dataset: str
    """What they were trained on; for timm the tag that says so in short (`a1_in1k`)."""
    licence: str
    size: str
    file: Path | None
    """None if it is not on this machine."""


def in_torchvision(name: str) -> bool:
    """Whether torchvision has a classifier of this name."""
    return name in torchvision_names()


def torchvision_names() -> list[str]:
    """The classifiers of torchvision."""
    from torchvision import models

    return list(models.list_models(module=models))


def timm_names(tagged: bool = False) -> list[str]:
    """The networks of timm; `tagged`: one for each set of weights, as `resnet18.a1_in1k`."""
    import timm

    return list(timm.list_models(pretrained=tagged))


def in_timm(name: str) -> bool:
    """Whether timm has a network of this name, with or without a tag (`resnet18.a1_in1k`)."""
    import timm

    base, _, tag = name.partition(".")
    return timm.is_model(base) and (not tag or name in timm.list_models(pretrained=True))


def build_torchvision(request: Request) -> Built:
    """A torchvision classifier; `pretrained` takes the weights that torchvision calls the default.

    Raises `LoadError` if there are none, if they are not to be had, or do not fit the number of classes.
    """
    from torchvision import models

    source = f"torchvision {_version('torchvision')}, {request.name}"
    weights = models.get_model_weights(request.name).DEFAULT if request.pretrained else None
    if weights is None:
        extra: dict[str, Any] = {"num_classes": request.classes} if request.classes else {}
        return Built(_quietly(models.get_model, request.name, weights=None, **extra), source)
    _check_classes(f"torchvision:{request.name}", len(weights.meta["categories"]), request)
    path = fetch(_torchvision_file(weights), offline=request.offline, progress=request.progress)
    check_name_hash(path)
    preset = weights.transforms()
    return Built(
        models.get_model(request.name, weights=weights, progress=False),
        f"{source}, weights {weights.name} ({path.name})",
        licence=TORCHVISION_LICENCE,
        weights_file=path,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        input_shape=(3, preset.crop_size[0], preset.crop_size[0]),
    )


def build_timm(request: Request) -> Built:
    """A timm network; `pretrained` takes the weights of the tag in the name, or timm's default.

    Raises `LoadError` if there are none, if they are not to be had, or do not fit the number of classes.
    """
    import timm

    config = timm.get_pretrained_cfg(request.name)
    source = f"timm {_version('timm')}, {request.name}"
    shape = None if config is None else tuple(config.input_size)
    if not request.pretrained:
        extra: dict[str, Any] = {"num_classes": request.classes} if request.classes else {}
        if request.channels not in (None, 3):
            extra["in_chans"] = request.channels
        return Built(timm.create_model(request.name, pretrained=False, **extra), source, input_shape=shape)
    if config is None or not (config.hf_hub_id or config.url):
        raise LoadError(f"timm has no weights for {request.name}; give --checkpoint FILE")
    if not config.num_classes:
        raise LoadError(f"timm:{request.name} has no classifier, only features; give a name whose weights have one")
    _check_classes(f"timm:{request.name}", config.num_classes, request)
    path = _timm_file(config, request)
    # custom_load describes the format of the original release, not of the file on the hub.
    overlay = {"file": str(path), "custom_load": False}
    return Built(
        timm.create_model(request.name, pretrained=True, pretrained_cfg_overlay=overlay),
        f"{source}, weights {config.hf_hub_id or config.url}",
        licence=config.license or "",
        weights_file=path,
        mean=tuple(config.mean),
        std=tuple(config.std),
        input_shape=shape,
    )


def published(name: str) -> Published:
    """What is known about the weights of `timm:NAME` or `torchvision:NAME` without fetching them."""
    home, _, base = name.partition(":")
    if home == "torchvision":
        from torchvision import models

        weights = models.get_model_weights(base).DEFAULT
        file = _torchvision_path(weights)
        size = f"{weights.meta['_file_size']:.1f} MB"
        return Published("ImageNet", TORCHVISION_LICENCE, size, file if file.is_file() else None)
    import timm

    config: Any = timm.get_pretrained_cfg(base)
    path = _timm_cached(config)
    tag = base.partition(".")[2]
    return Published(tag, config.license or "", megabytes(path.stat().st_size) if path else "", path)


def _check_classes(name: str, have: int, request: Request) -> None:
    if request.classes not in (None, have):
        raise LoadError(
            f"no weights of {name} for {request.classes} classes are known, its published ones have {have}; "
            "give --checkpoint FILE with weights for this data set, or audit an untrained network by "
            "--random-weights"
        )


def _torchvision_path(weights: Any) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name


def _torchvision_file(weights: Any) -> Remote:
    path = _torchvision_path(weights)
    return Remote(
        urls=(weights.url,),
        path=path,
        digest=path.stem.rpartition("-")[2],
        algorithm="sha256",
        remedy=f"put it into {path.parent}, or give the same weights by --checkpoint",
    )


def _timm_file(config: Any, request: Request) -> Path:
    cached = _timm_cached(config)
    if cached is not None:
        return cached
    if not config.hf_hub_id:
        return fetch(_timm_release(config), offline=request.offline, progress=request.progress)
    return _fetch_from_hub(config, request)


def _timm_cached(config: Any) -> Path | None:
    """The weights in the cache of huggingface_hub (or of torch.hub, for the few that are not on that hub)."""
    from huggingface_hub import try_to_load_from_cache

    if not config.hf_hub_id:
        remote = _timm_release(config) if config.url else None
        return remote.path if remote is not None and remote.path.is_file() else None
    repo, _, revision = config.hf_hub_id.partition("@")
    for name in _hub_names(config):
        found = try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def _timm_release(config: Any) -> Remote:
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
    tail = path.stem.rpartition("-")[2]
    return Remote(
        urls=(config.url,),
        path=path,
        digest=tail if len(tail) == 8 and set(tail) <= set("0123456789abcdef") else "",
        algorithm="sha256",
        remedy=f"put it into {path.parent}, or give the same weights by --checkpoint",
    )


def _hub_names(config: Any) -> tuple[str, ...]:
    return (config.hf_hub_filename,) if config.hf_hub_filename else HF_FILES


def _fetch_from_hub(config: Any, request: Request) -> Path:
    """The weights, by way of huggingface_hub into its cache.

    A request for the size goes first: without a network it fails at once, where huggingface_hub retries for
    most of a minute.
    """
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import disable_progress_bars

    repo, _, revision = config.hf_hub_id.partition("@")
    names = _hub_names(config)
    wanted = f"{repo}/{names[0]}"
    remedy = "fetch it once with a network, or give the same weights by --checkpoint"
    if is_offline(request.offline) or constants.HF_HUB_OFFLINE:
        raise refuse_offline(wanted, remedy)
    if isinstance(request.progress, Silent) or not sys.stderr.isatty():
        disable_progress_bars()
    problem: Exception = LoadError("no file")
    for name in names:
        try:
            size = size_of(hf_hub_url(repo, name, revision=revision or None))
            request.progress.say(f"fetching {repo}/{name}, {megabytes(size)}, into {constants.HF_HUB_CACHE}")
            return Path(hf_hub_download(repo, name, revision=revision or None))
        except urllib.error.HTTPError as error:
            problem = error
            if error.code != 404:
                break
        except OSError as error:  # huggingface_hub's own errors are of this kind as well
            problem = error
            break
    raise refuse_unreachable(wanted, problem, remedy) from problem


def _quietly(build: Any, *args: Any, **keywords: Any) -> nn.Module:
    """Build without the warnings that two torchvision constructors give about their random initialisation."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*init.*", category=FutureWarning)
        module: nn.Module = build(*args, **keywords)
    return module


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def hub_homes(name: str) -> list[str]:
    """`torchvision`, `timm`, both or none: which of them has a network of this bare name."""
    return [home for home, has in (("torchvision", in_torchvision), ("timm", in_timm)) if has(name)]


BUILDERS = {"torchvision": build_torchvision, "timm": build_timm}
