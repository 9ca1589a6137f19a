"""Where the networks of `--model` come from: the wheel, pyautoattack, torchvision, timm, user code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lipaudit import zoo
from lipaudit.errors import LoadError
from lipaudit.loading import datasets, hubs
from lipaudit.loading.checkpoint_files import SUFFIXES
from lipaudit.loading.checkpoints import load_checkpoint, tensors_of
from lipaudit.loading.downloads import megabytes
from lipaudit.loading.hashes import sha256_of_tensors
from lipaudit.loading.hubs import Built, Request
from lipaudit.loading.user_code import build_from_user_code
from lipaudit.results.formatting import clean, letters

__all__ = ["Built", "KnownModel", "Request", "build", "known_models"]

PAIRS = {"digits-aol": "digits", "digits-cnn": "digits", "resnet18": "cifar10"}
"""Names whose weights belong to one data set; the first of a data set is its default model."""


@dataclass(frozen=True)
class KnownModel:
    """One line of `lipaudit models`."""

    name: str
    dataset: str
    """What its weights were trained on."""
    source: str
    licence: str
    size: str
    """Of the weights, for a reader; empty if unknown."""
    cached: bool
    """Whether the weights are on this machine."""


def canonical(name: str) -> str:
    """The name as its source writes it: `ResNet-18` is `resnet18`. What no source knows stays as it is.

    Raises `LoadError` for a path, with what to type instead.
    """
    home, colon, rest = name.partition(":")
    _refuse_path(name)
    if not colon:
        if letters(name) in (pairs := {letters(pair): pair for pair in PAIRS}):
            return pairs[letters(name)]
        return _spelled(name, [*hubs.torchvision_names(), *hubs.timm_names()])
    if (hub := letters(home)) not in hubs.BUILDERS:
        return name
    return f"{hub}:{_spelled(rest, hubs.timm_names() if hub == 'timm' else hubs.torchvision_names())}"


def _spelled(name: str, known: Sequence[str]) -> str:
    """The known name that differs in case and signs only, if there is one; behind a dot stands a tag of timm."""
    base, dot, tag = name.partition(".")
    alike = {each for each in known if letters(each) == letters(base)}
    return name if base in known or len(alike) != 1 else alike.pop() + dot + tag


def _refuse_path(name: str) -> None:
    """Refuse a file, a folder or an address, with the options that take it."""
    path, colon, factory = name.partition(":")
    shown = clean(name, 300)
    if factory.startswith("//"):
        raise LoadError(f"--model {shown} is an address; fetch the file, then: --model NAME --checkpoint FILE")
    if path.endswith(".py"):
        module = ".".join(part for part in re.split(r"[/\\]", path.removesuffix(".py")) if part not in ("", "."))
        instead = f"{clean(module)}:{clean(factory) or 'FACTORY'}"
        raise LoadError(f"--model {shown}: expected package.module:factory; did you mean {instead}?")
    drive = colon and len(path) == 1  # of Windows
    starts = ("/", "./", "../", "~", ".\\")
    if (drive or not colon) and (name.endswith(SUFFIXES) or name.startswith(starts) or _is_there(name)):
        raise LoadError(
            f"--model {shown} is a path, expected the name of an architecture; did you mean "
            f"--model NAME --checkpoint {shown}?"
        )


def _is_there(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def build(request: Request, dataset: str | None) -> Built:
    """The network that the name means, by the first rule that knows it."""
    name = request.name
    home, colon, rest = name.partition(":")
    if name in zoo.MODELS:
        return _bundled(request, dataset)
    if (name, dataset) == ("resnet18", "cifar10"):
        return _cifar_resnet18(request)
    if colon and home in hubs.BUILDERS:
        _check_known(rest, home, name)
        return hubs.BUILDERS[home](replace(request, name=rest))
    if colon:
        return _user_code(request)
    return _bare(request, dataset)


def brings_weights(name: str) -> bool:
    """Whether the name stands for published weights: whatever is no code of the user's."""
    home, colon, _ = name.partition(":")
    return not colon or home in hubs.BUILDERS


def _bundled(request: Request, dataset: str | None) -> Built:
    if dataset in datasets.NAMED and dataset != "digits" and request.pretrained:
        raise LoadError(
            f"{request.name} was trained on digits, there are no weights for {dataset}; use --dataset "
            "digits, or give --checkpoint FILE"
        )
    module: nn.Module = zoo.MODELS[request.name]()
    path = zoo.weights_file(request.name)
    if request.pretrained:
        load_checkpoint(module, path)
    return Built(
        module,
        "bundled with lipaudit (lipaudit/zoo/digits.py)",
        licence="MIT",
        weights_file=path if request.pretrained else None,
        raw=True,
        input_shape=(1, 8, 8),
    )


def _cifar_resnet18(request: Request) -> Built:
    from pyautoattack.examples import resnet

    if request.classes not in (None, 10):
        raise LoadError(f"resnet18 for cifar10 has 10 classes, --num-classes says {request.classes}; leave it out")
    module: nn.Module = resnet.ResNet18()
    path = _autoattack_file()
    if request.pretrained:
        load_checkpoint(module, path)
    return Built(
        module,
        "CIFAR-10 ResNet-18 that ships with pyautoattack (examples/resnet.py, examples/model_test.pt)",
        licence="MIT (pyautoattack)",
        weights_file=path if request.pretrained else None,
        # Its own evaluation script feeds [0,1] images, and only so does it reach its accuracy.
        raw=request.pretrained,
        input_shape=(3, 32, 32),
    )


def _autoattack_file() -> Path:
    from importlib.util import find_spec

    spec = find_spec("pyautoattack")
    if spec is None or spec.origin is None:
        raise LoadError("pyautoattack is not installed; pip install 'pyautoattack>=0.2,<0.3'")
    return Path(spec.origin).parent / "examples" / "model_test.pt"


def _user_code(request: Request) -> Built:
    module, file = build_from_user_code(request.name, request.classes)
    if request.pretrained and _is_untrained(request, module):
        raise LoadError(
            f"--model {request.name}: two calls of the factory gave different weights, so they are random; "
            "give --checkpoint FILE, load weights in the factory, or ask for --random-weights"
        )
    # Alone, a factory promises the whole function, raw inputs to logits; a checkpoint may come from anywhere.
    return Built(module, f"user code, {request.name} ({Path(file).name})", raw=request.pretrained)


def _is_untrained(request: Request, module: nn.Module) -> bool:
    """Whether a second call of the factory, later in the stream of random numbers, gives other weights."""
    torch.rand(1)
    again, _ = build_from_user_code(request.name, request.classes)
    return _fingerprint(module) != _fingerprint(again)


def _fingerprint(module: nn.Module) -> str:
    return sha256_of_tensors(sorted(tensors_of(module).items()))


def _bare(request: Request, dataset: str | None) -> Built:
    homes = hubs.hub_homes(request.name)
    if not homes:
        raise _unknown(request.name, [*zoo.MODELS, *hubs.torchvision_names(), *hubs.timm_names()])
    if request.pretrained and dataset in datasets.NAMED:
        raise LoadError(
            f"no weights of {request.name} for {dataset} are known; give --checkpoint FILE, take a pair "
            "that has them (`lipaudit models`), or audit an untrained network by --random-weights"
        )
    if len(homes) > 1:
        raise LoadError(
            f"{request.name} is a network of torchvision and of timm, with different weights; say "
            f"torchvision:{request.name} or timm:{request.name}"
        )
    return hubs.BUILDERS[homes[0]](request)


def _check_known(name: str, home: str, full: str) -> None:
    has: Callable[[str], bool] = hubs.in_torchvision if home == "torchvision" else hubs.in_timm
    if not has(name):
        names = hubs.torchvision_names() if home == "torchvision" else hubs.timm_names()
        raise _unknown(full, [f"{home}:{known}" for known in names])


def _unknown(name: str, known: Sequence[str]) -> LoadError:
    spelled = {letters(each): each for each in reversed(known)}
    close = difflib.get_close_matches(letters(name), list(spelled), n=3)
    module, dot, factory = name.rpartition(".")
    head = name.partition(".")[0]
    own = head.isidentifier() and any(_is_there(place) for place in (f"{head}.py", f"{head}/__init__.py"))
    hint = "expected a name, or package.module:factory"
    if own:
        hint = f"did you mean {module}:{factory}?" if dot else f"did you mean {name}:FACTORY?"
    elif close:
        hint = f"did you mean {', '.join(spelled[each] for each in close)}?"
    elif dot and name.replace(".", "").isidentifier():
        hint = f"did you mean {module}:{factory}?"
    return LoadError(f"unknown model {name!r}; {hint} (`lipaudit models WORD` searches)")


def known_models(word: str = "") -> tuple[KnownModel, ...]:
    """The table of `lipaudit models`: what comes with lipaudit, or every network with `word` in its name."""
    ours = [
        *(_known_file(name, "digits", "lipaudit", "MIT", zoo.weights_file(name)) for name in zoo.MODELS),
        _known_file("resnet18", "cifar10", "pyautoattack", "MIT", _autoattack_file()),
    ]
    if not word:
        return tuple(ours)
    names = [f"torchvision:{name}" for name in hubs.torchvision_names() if word in name]
    names += [f"timm:{name}" for name in hubs.timm_names(tagged=True) if word in name]
    return tuple(known for known in ours if word in known.name) + tuple(map(_known_hub, names))


def _known_file(name: str, dataset: str, source: str, licence: str, file: Path) -> KnownModel:
    here = file.is_file()
    return KnownModel(name, dataset, source, licence, megabytes(file.stat().st_size) if here else "", here)


def _known_hub(name: str) -> KnownModel:
    published = hubs.published(name)
    home = name.partition(":")[0]
    return KnownModel(name, published.dataset, home, published.licence, published.size, published.file is not None)
