"""Checkpoint files: read without running code, checked against the network key by key."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from lipaudit.errors import LoadError
from lipaudit.loading.hashes import sha256_of_file
from lipaudit.results.formatting import clean

State = Mapping[str, torch.Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts put the weights, beside the epoch and the optimiser."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""
SAVE_ADVICE = "save the weights alone: torch.save(model.state_dict(), FILE), or as safetensors"


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a safetensors or PyTorch file, on the CPU. No code in the file is ever run.

    Wrappers (`state_dict`, `model`, ...) and prefixes (`module.`) are taken off. A hash in the file name
    (`resnet18-f37072fd.pth`) is checked. Raises `LoadError` for anything but a whole, plain checkpoint.
    """
    _check_file(path)
    with path.open("rb") as stream:
        head = stream.read(16)
    if head[8:9] == b"{":
        content = _read_safetensors(path)
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        content = _read_torch(path)
    else:
        raise LoadError(
            f"{path} is neither safetensors nor a PyTorch checkpoint, it begins with {head[:8]!r}; {SAVE_ADVICE}"
        )
    check_name_hash(path)
    return _without_prefix(_unwrapped(content, path))


def load_weights(module: nn.Module, state: State, path: Path) -> None:
    """Put `state` into `module`; every name and shape must agree.

    Raises `LoadError` that lists the first missing, unknown and wrong-shaped names.
    """
    own = module.state_dict()
    # Checkpoints from before torch 0.4.1 have no batch counters; evaluation never reads them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    shapes = [n for n, tensor in state.items() if n in own and tensor.shape != own[n].shape]
    kinds = [n for n in state if n in own and state[n].is_floating_point() != own[n].is_floating_point()]
    odd = [n for n, tensor in state.items() if tensor.is_meta or tensor.layout != torch.strided]
    if missing or unknown or shapes:
        raise LoadError(f"{path} does not fit the network: {_differences(own, state, missing, unknown, shapes)}")
    if kinds:
        raise LoadError(
            f"{path}: {_first(kinds)} should be {own[kinds[0]].dtype}, the file has {state[kinds[0]].dtype}; "
            f"quantised weights cannot be audited, {SAVE_ADVICE}"
        )
    if odd:
        kind = "no values (saved on the meta device)" if state[odd[0]].is_meta else f"layout {state[odd[0]].layout}"
        raise LoadError(f"{path}: {_first(odd)} has {kind}, expected all values one by one; {SAVE_ADVICE}")
    rounded = [n for n, tensor in state.items() if n in own and not _holds(own[n].dtype, tensor)]
    if rounded:
        raise LoadError(
            f"{path}: {_first(rounded)} is {state[rounded[0]].dtype} and {own[rounded[0]].dtype} does not hold its "
            "values: rounded, it would be another network; save the weights of the one that runs, model.float()"
        )
    module.load_state_dict(state, strict=False)


def _holds(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    """Whether a dtype has every value of a tensor, NaN aside."""
    return tensor.dtype == dtype or bool(((tensor.to(dtype).to(tensor.dtype) == tensor) | tensor.isnan()).all())


def check_finite(module: nn.Module, what: str) -> None:
    """Refuse NaN and infinity in any parameter or buffer, by name."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise LoadError(
                f"{what}: {bad} of {tensor.numel()} values of {name} are NaN or infinite, expected finite "
                "weights; the training diverged or the file is damaged, use another checkpoint"
            )


def check_name_hash(path: Path) -> None:
    """Refuse a file whose SHA-256 is not the one its name promises, as in `resnet18-f37072fd.pth`."""
    match = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", path.name)
    # A date, 20240131, is no hash although all its digits are hexadecimal.
    if match is None or re.fullmatch(r"(19|20)\d{6}", match[1]):
        return
    actual = sha256_of_file(path)[: len(match[1])]
    if actual != match[1]:
        raise LoadError(
            f"{path}: the name promises SHA-256 {match[1]}…, the file has {actual}…; it is damaged or was "
            "changed, fetch it again (or rename it if the name means something else)"
        )


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise LoadError(f"{path} is a folder, expected a checkpoint file (.safetensors, .pt, .pth)")
        if not path.is_file():
            raise LoadError(f"no checkpoint at {clean(path, 300)}; check the path given to --checkpoint")
        empty = path.stat().st_size == 0
        with path.open("rb"):
            pass
    except OSError as error:
        raise LoadError(f"cannot read {clean(path, 300)}: {error.strerror}") from error
    if empty:
        raise LoadError(f"{path} is empty, expected a checkpoint; copy or download it again")


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError) as error:
        raise LoadError(
            f"{path} is a damaged or truncated safetensors file ({_short(error)}); copy or download it again"
        ) from error


def _read_torch(path: Path) -> object:
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters in them comes back as an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise LoadError(f"{path}: {_why_unreadable(error)}") from error


def _check_archive(path: Path) -> None:
    """Refuse a zip file that unpacks to more than it is: a few kB could fill the memory. `torch.save` packs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # a file of another format, or a damaged one: torch.load says so
    if any(re.fullmatch("[^/]+/constants.pkl", record.filename) for record in records):
        return  # TorchScript, of which torch.load reads nothing
    claimed = sum(record.file_size for record in records)
    if claimed > path.stat().st_size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise LoadError(
            f"{path} is packed: a file of {path.stat().st_size} bytes that unpacks to {claimed}, expected plain "
            f"records as torch.save writes them; {SAVE_ADVICE}"
        )


def _why_unreadable(error: Exception) -> str:
    """What is wrong with a file that `torch.load(weights_only=True)` refuses, and what to do."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"it holds more than weights: unpickling it would call {found[1]}, which lipaudit never does; "
            f"where it was made, {SAVE_ADVICE}"
        )
    if "TorchScript" in text:
        return f"it is a TorchScript archive, expected plain weights; {SAVE_ADVICE}"
    return f"damaged, truncated or not a PyTorch checkpoint ({_short(error)}); copy or download it again"


def _unwrapped(content: object, path: Path) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors inside what the file holds."""
    for _ in range(3):
        if isinstance(content, Mapping) and content and all(map(torch.is_tensor, content.values())):
            if all(isinstance(name, str) for name in content):
                return dict(content)
            break
        wrapper = next((key for key in WRAPPERS if isinstance(content, Mapping) and key in content), None)
        if wrapper is None:
            break
        content = content[wrapper]  # type: ignore[index]
    found = f"keys {_first(list(map(str, content)))}" if isinstance(content, Mapping) else type(content).__name__
    raise LoadError(f"{path}: expected named tensors, or them under one of {WRAPPERS}, found {found}; {SAVE_ADVICE}")


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in (*PREFIXES, *PREFIXES):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _differences(
    own: State, state: State, missing: Sequence[str], unknown: Sequence[str], shapes: Sequence[str]
) -> str:
    pairs = {(state[n].shape[:1], own[n].shape[:1]) for n in shapes if state[n].shape[1:] == own[n].shape[1:]}
    if not missing and not unknown and len(pairs) == 1 and len(shapes) <= 2:
        (theirs, ours) = pairs.pop()
        return (
            f"{_first(list(shapes))} has {theirs[0]} rows in the file and {ours[0]} in the network: "
            f"if that is the number of classes, add --num-classes {theirs[0]}"
        )
    parts = [f"{len(names)} {word} ({_first(names)})" for names, word in
             ((missing, "missing from the file"), (unknown, "unknown to the network")) if names]  # fmt: skip
    if shapes:
        name = shapes[0]
        parts.append(
            f"{len(shapes)} of another shape ({clean(name)}: file {tuple(state[name].shape)}, "
            f"network {tuple(own[name].shape)}{', …' if len(shapes) > 1 else ''})"
        )
    return "; ".join(parts) + "; is it the checkpoint of this architecture?"


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(map(clean, names[:count])) + (", …" if len(names) > count else "")


def _short(error: Exception) -> str:
    """A library's message on one line, without torch's advice to load the file unsafely."""
    text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
    text = text.partition(" Check the documentation")[0] or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "…"
