"""Checkpoints: the weights in a file, by the names that the network has for them, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipaudit.errors import LoadError
from lipaudit.loading.checkpoint_files import SAVE_ADVICE, Unread, first_of, read_file
from lipaudit.loading.hashes import sha256_of_file
from lipaudit.results.formatting import clean

State = Mapping[str, Any]
"""Names and tensors; beside them what a module keeps as `_extra_state`."""

NO_WEIGHTS = re.compile(r"optim|sched|scaler|momentum|moment|exp_avg|grad", re.IGNORECASE)
"""Keys of a file under which names of weights may stand, and are none."""
INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, wherever a module is wrapped."""
COUNTERS = ("num_batches_tracked", "n_averaged")
"""Last parts of names that say how often something was done: evaluation never reads them."""


@dataclass(frozen=True)
class Weights:
    """What a file holds for a network, by the network's own names."""

    state: State
    notes: tuple[str, ...] = ()
    """What was done to find it, for the user and the report."""


@dataclass(frozen=True)
class _Found:
    """One state dict in a file."""

    where: str
    """Keys that lead to it, with dots between; empty for the whole file."""
    entries: State
    prefix: str = ""
    """What stands before the network's names in it."""

    def key(self) -> str:
        """How --checkpoint-key names it."""
        return ".".join(filter(None, (self.where, self.prefix.rstrip(".")))) or "."


def load_checkpoint(module: nn.Module, path: Path, key: str | None = None) -> tuple[str, ...]:
    """Put the weights in a file into `module`; what was done to find them. Raises `LoadError` as both steps do."""
    weights = read_checkpoint(path, module, key)
    load_weights(module, weights.state, path)
    return weights.notes


def read_checkpoint(path: Path, module: nn.Module, key: str | None = None) -> Weights:
    """The weights for `module` in a safetensors or PyTorch file, on the CPU. No code in the file is ever run.

    They may lie under keys (`state_dict`, `model`, ...), and their names may have one prefix (`module.`, `model.`).
    Where several sets fit, `key` says which: keys that lead to it, a prefix of names, or "." for the file itself.
    A hash in the file name (`resnet18-f37072fd.pth`) is checked. Raises `LoadError` for anything but a whole, plain
    checkpoint, and where nothing says which weights are meant.
    """
    content = read_file(path)
    check_name_hash(path)
    found = _states(content)
    if not found:
        raise LoadError(f"{path}: expected named tensors, found {_shown(content)}; {SAVE_ADVICE}")
    if key is not None:
        found = _chosen(found, key, path)
    own = _plain(module.state_dict())
    fitting = [_Found(f.where, f.entries, prefix) for f in found for prefix in _prefixes(f.entries, own)]
    exact = [f for f in fitting if not _others(f, own)]
    if len(exact) > 1 or (not exact and any(f.prefix for f in fitting)):
        keys = [f.key() for f in exact or fitting]
        besides = "" if exact else f", beside others ({first_of(_others(fitting[0], own))})"
        raise LoadError(
            f"{path} holds the names of the network under {first_of(keys, 6)}{besides}; say which are meant: "
            f"--checkpoint-key {clean(keys[0])}"
        )
    return _renamed(exact[0] if exact else _closest(found, own), own)


def load_weights(module: nn.Module, state: State, path: Path) -> None:
    """Put `state` into `module`; every name and shape must agree.

    Raises `LoadError` that lists the first missing, unknown and wrong-shaped names.
    """
    own = module.state_dict()
    # Checkpoints from before torch 0.4.1 have no batch counters; evaluation never reads them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    both = [name for name in state if name in own and torch.is_tensor(own[name])]
    if none := [name for name in both if not torch.is_tensor(state[name])]:
        kind = type(state[none[0]]).__name__
        raise LoadError(f"{path}: expected tensors, {first_of(none)} has {kind}; {SAVE_ADVICE}")
    shapes = [n for n in both if state[n].shape != own[n].shape]
    kinds = [n for n in both if state[n].is_floating_point() != own[n].is_floating_point()]
    odd = [n for n in both if state[n].is_meta or state[n].layout != torch.strided]
    if missing or unknown or shapes:
        raise LoadError(f"{path} does not fit the network: {_differences(own, state, missing, unknown, shapes)}")
    if kinds:
        raise LoadError(
            f"{path}: {first_of(kinds)} should be {own[kinds[0]].dtype}, the file has {state[kinds[0]].dtype}; "
            f"quantised weights cannot be audited, {SAVE_ADVICE}"
        )
    if odd:
        kind = "no values (saved on the meta device)" if state[odd[0]].is_meta else f"layout {state[odd[0]].layout}"
        raise LoadError(f"{path}: {first_of(odd)} has {kind}, expected all values one by one; {SAVE_ADVICE}")
    rounded = [n for n in both if not _holds(own[n].dtype, state[n])]
    if rounded:
        raise LoadError(
            f"{path}: {first_of(rounded)} is {state[rounded[0]].dtype} and {own[rounded[0]].dtype} does not hold its "
            "values: rounded, it would be another network; save the weights of the one that runs, model.float()"
        )
    try:
        module.load_state_dict(state, strict=False)
    except Exception as error:  # whatever the user's module makes of its extra state
        raise LoadError(f"{path}: the network refuses it ({clean(error, 200)}); is it of this architecture?") from error


def _holds(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    """Whether a dtype has every value of a tensor, NaN aside."""
    return tensor.dtype == dtype or bool(((tensor.to(dtype).to(tensor.dtype) == tensor) | tensor.isnan()).all())


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers in a network's state, without what its modules keep as `_extra_state`."""
    return {name: value for name, value in module.state_dict().items() if torch.is_tensor(value)}


def check_finite(module: nn.Module, what: str) -> None:
    """Refuse NaN and infinity in any parameter or buffer, by name."""
    for name, tensor in tensors_of(module).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise LoadError(
                f"{what}: {bad} of {tensor.numel()} values of {name} are NaN or infinite, expected finite "
                "weights; the training diverged or the file is damaged, use another checkpoint"
            )


def check_name_hash(path: Path) -> None:
    """Refuse a file whose SHA-256 is not the one its name promises, as in `resnet18-f37072fd.pth`."""
    match = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", path.name)
    # Digits alone are a date, a time or a number of steps.
    if match is None or match[1].isdigit():
        return
    actual = sha256_of_file(path)[: len(match[1])]
    if actual != match[1]:
        raise LoadError(
            f"{path}: the name promises SHA-256 {match[1]}…, the file has {actual}…; it is damaged or was "
            "changed, fetch it again (or rename it if the name means something else)"
        )


def _states(content: object) -> list[_Found]:
    """Every dict in the file that holds tensors by name, outermost first; each once, whatever leads to it."""
    found, seen, waiting = [], set[int](), [("", content)]
    while waiting:
        where, part = waiting.pop(0)
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        names = [name for name, value in part.items() if torch.is_tensor(value)]
        if names and all(isinstance(name, str) for name in names):
            found.append(_Found(where, {name: value for name, value in part.items() if isinstance(name, str)}))
        inside = [name for name in part if isinstance(name, str) and not NO_WEIGHTS.search(name)]
        waiting += [(f"{where}.{name}" if where else name, part[name]) for name in inside]
    return found


def _chosen(found: Sequence[_Found], key: str, path: Path) -> list[_Found]:
    """What --checkpoint-key names."""
    if key == ".":
        under = [f for f in found if not f.where]
    else:
        under = [f for f in found if f"{f.where}.".startswith(f"{key}.")]
    if not under and key != ".":
        for f in found:
            start = key.removeprefix(f"{f.where}.") + "."
            plain = _plain(f.entries)
            entries = {n.removeprefix(start): f.entries[name] for n, name in plain.items() if n.startswith(start)}
            under += [_Found(key, entries)] if any(map(torch.is_tensor, entries.values())) else []
    if not under:
        heads = {f.where or name.partition(".")[0]: None for f in found for name in f.entries}
        raise LoadError(
            f"{path} has no weights under --checkpoint-key {clean(key)}; there are: {first_of([*heads], 6)}"
        )
    return under


def _plain(names: Mapping[str, Any] | Sequence[str]) -> dict[str, str]:
    """Names without what wrappers put inside them, and the names as they are."""
    plain = {INSIDE.sub("", name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _weights(entries: State) -> list[str]:
    """Names of tensors, counters apart."""
    return [n for n, value in entries.items() if torch.is_tensor(value) and n.rpartition(".")[2] not in COUNTERS]


def _prefixes(entries: State, own: Mapping[str, str]) -> list[str]:
    """Each prefix, ending in a dot or empty, behind which the entries have all names of the network."""
    wanted = [name for name in own if name.rpartition(".")[2] not in COUNTERS]
    there = _plain(entries)
    longest = max(wanted, key=len, default=None)
    if longest is None:
        return []
    ends = [name.removesuffix(longest) for name in there if f".{name}".endswith(f".{longest}")]
    return [prefix for prefix in ends if all(prefix + name in there for name in wanted)]


def _others(found: _Found, own: Mapping[str, str]) -> list[str]:
    """Names of weights in the file for which the network has no place."""
    plain = {name: INSIDE.sub("", name) for name in _weights(found.entries)}
    return [
        name
        for name, short in plain.items()
        if not short.startswith(found.prefix) or short.removeprefix(found.prefix) not in own
    ]


def _closest(found: Sequence[_Found], own: Mapping[str, str]) -> _Found:
    """The state dict that has most in common with the network, without what stands before all of its names."""
    stripped = [_Found(f.where, f.entries, _common(list(_plain(_weights(f.entries))), own)) for f in found]
    return max(stripped, key=lambda f: len(_weights(f.entries)) - 2 * len(_others(f, own)))


def _common(names: Sequence[str], own: Mapping[str, str]) -> str:
    """The parts with which all names begin, and none of the network."""
    prefix, ours = "", {name.partition(".")[0] for name in own}
    while names:
        heads = {name.removeprefix(prefix).partition(".")[0] for name in names}
        if len(heads) > 1 or heads & ours or any("." not in name.removeprefix(prefix) for name in names):
            break
        prefix += f"{heads.pop()}."
    return prefix


def _renamed(found: _Found, own: Mapping[str, str]) -> Weights:
    """The entries by the network's names, and what was done to them."""
    state, left, wrapped = {}, [], False
    for short, name in _plain(found.entries).items():
        value, plain = found.entries[name], short.removeprefix(found.prefix)
        counter = plain.rpartition(".")[2] in COUNTERS
        if plain in own or (torch.is_tensor(value) and not counter):
            state[own.get(plain, plain)] = value
            wrapped |= short != name
        elif counter or not isinstance(value, Mapping) or name.endswith("_extra_state"):
            left.append(name)
    notes = [
        f"under {clean(found.where)}" if found.where else "",
        f"without the prefix {clean(found.prefix)}" if found.prefix else "",
        "without the names of wrappers" if wrapped else "",
        f"left out, no weights: {first_of(left)}" if left else "",
    ]
    return Weights(state, tuple(filter(None, notes)))


def _shown(content: object) -> str:
    """What a file without named tensors holds."""
    inside = content.values() if isinstance(content, Mapping) else [content]
    objects = [type(value) for value in inside if isinstance(value, Unread)]
    if whole := [kind for kind in objects if kind.__module__.startswith("torch.nn.")]:
        return f"a whole network ({whole[0].__name__}), which only its code could read"
    if not isinstance(content, Mapping):
        return f"a pickled {type(content).__name__}" if objects else type(content).__name__
    kind = f" ({objects[0].__name__})" if objects else ""
    return f"keys {first_of(list(map(str, content)))}{kind}" if content else "nothing"


def _differences(
    own: State, state: State, missing: Sequence[str], unknown: Sequence[str], shapes: Sequence[str]
) -> str:
    pairs = {(state[n].shape[:1], own[n].shape[:1]) for n in shapes if state[n].shape[1:] == own[n].shape[1:]}
    if not missing and not unknown and len(pairs) == 1 and len(shapes) <= 2:
        (theirs, ours) = pairs.pop()
        return (
            f"{first_of(list(shapes))} has {theirs[0]} rows in the file and {ours[0]} in the network: "
            f"if that is the number of classes, add --num-classes {theirs[0]}"
        )
    parts = [f"{len(names)} {word} ({first_of(names)})" for names, word in
             ((missing, "missing from the file"), (unknown, "unknown to the network")) if names]  # fmt: skip
    if shapes:
        name = shapes[0]
        parts.append(
            f"{len(shapes)} of another shape ({clean(name)}: file {tuple(state[name].shape)}, "
            f"network {tuple(own[name].shape)}{', …' if len(shapes) > 1 else ''})"
        )
    return "; ".join(parts) + "; is it the checkpoint of this architecture?"
