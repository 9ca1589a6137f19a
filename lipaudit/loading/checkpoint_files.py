"""What a checkpoint file holds, read without running code; for any other file, what it is and what to do with it."""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipaudit.errors import LoadError
from lipaudit.results.formatting import clean

SAVE_ADVICE = "save the weights alone: torch.save(model.state_dict(), FILE), or as safetensors"
SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar", ".safetensors")
"""How the names of checkpoints end."""

HARMLESS = (
    *(f"builtins.{kind.__name__}" for kind in (
        list, dict, tuple, int, float, str, bool, bytes, frozenset, slice, range, object)),
    *(f"collections.{name}" for name in ("defaultdict", "deque", "ChainMap")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in (
        "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    *(f"numpy.{kind.__name__}" for kind in {*np.sctypeDict.values(), np.ndarray, np.dtype}),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in (
        "multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")),
    *(f"ipaddress.IPv{n}{kind}" for n in (4, 6) for kind in ("Address", "Network", "Interface")),
    "builtins.Ellipsis", "builtins.NotImplemented", "re._compile", "argparse.Namespace", "copyreg._reconstructor",
    "decimal.Decimal", "enum.Enum", "fractions.Fraction",
    "functools.partial", "logging.getLogger", "torch.torch_version.TorchVersion", "types.SimpleNamespace", "typing.Any",
    "uuid.UUID",
)  # fmt: skip
"""What training scripts keep beside the weights: their arguments, scores, paths and dates."""
KEPT = ("torch.optim.", "torch.amp.", "torch.cuda.amp.", "torch.nn.", "numpy.random.")
"""The same, as beginnings of names: optimisers, losses, activations by name, states of generators."""
NEVER = frozenset({*sys.stdlib_module_names, "torch", "numpy"})
"""Packages of which nothing else may stand in a file: among the rest is what runs programs."""
MOST_NAMES = 50
"""Others than those, in one file."""

FOREIGN: Sequence[tuple[str, str, str]] = (
    (r"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    (r"\s*<(!doctype|html|head|\?xml|error)", "a web page, not a checkpoint", "the download failed, fetch it again"),
    (r"\x93NUMPY", "a NumPy array", SAVE_ADVICE),
    (r"\x89HDF\r\n", "an HDF5 file, as Keras writes it", "convert the network and its weights to PyTorch"),
    (r"GGUF", "a GGUF file", "lipaudit reads safetensors and what torch.save writes"),
    (r"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a packed file", "unpack it and give what is inside"),
    (r"(?s).{257}ustar", "a tar archive", "unpack it and give the checkpoint inside"),
    (r"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", "an ONNX model", f"where it came from, {SAVE_ADVICE}"),
    (r"\s*[{\[]", "JSON text, not a checkpoint", "give the file with the weights (an index names it), " + SAVE_ADVICE),
)
"""First bytes of files that people take for a checkpoint, what they are, and what to do."""


class Unread:
    """Stands for an object beside the weights: whatever the file says of it is ignored.

    In its place torch's reader would import and call what the file names; of this class it can do no harm.
    """

    def __new__(cls, *_: object, **__: object) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        del state


def read_file(path: Path) -> object:
    """What the file holds, tensors on the CPU. No code in it is ever run. Raises `LoadError` if it is no checkpoint."""
    _check_file(path)
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":  # the length of a header, which is below a terabyte
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return _read_torch(path)
    for pattern, what, remedy in FOREIGN:
        if re.match(pattern.encode("latin-1"), head, re.IGNORECASE):
            raise LoadError(f"{path} is {what}; {remedy}")
    if head.startswith(b"\x80"):
        return _read_torch(path)
    raise LoadError(
        f"{path} is neither safetensors nor a PyTorch checkpoint, it begins with {head[:8]!r}; {SAVE_ADVICE}"
    )


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            inside = [file.name for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
            found = f": one of {first_of(inside)} in it" if inside else " (.safetensors, .pt, .pth)"
            raise LoadError(f"{path} is a folder, expected a checkpoint file{found}")
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
    """By torch's own reader, which calls nothing that is not listed; what may lie beside the weights stays unread."""
    forms: dict[str, type] = dict.fromkeys(HARMLESS, Unread) | {
        "collections.defaultdict": OrderedDict,
        "collections.deque": list,
    }
    others = 0
    while True:
        listed: list[Any] = [(_stand_in(name, form), name) for name, form in forms.items()]
        try:
            # Opened here: of a path, torch would look at the ending.
            with warnings.catch_warnings(), torch.serialization.safe_globals(listed), path.open("rb") as stream:
                warnings.simplefilter("ignore")  # what matters in them comes back as an error
                return torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:
            name, form = _wanted(error)
            if forms.get(name) is form or not (name in forms or _is_kept(name)) or others >= MOST_NAMES:
                raise LoadError(f"{path}: {_why_unreadable(error)}") from error
            others += 1
            forms[name] = form


def _stand_in(name: str, form: type) -> type:
    """A class for torch's reader to take for `name`; what it makes is of the form."""
    module, _, last = name.rpartition(".")
    if form is Unread:
        shown = {"_reconstruct": "numpy array", "_frombuffer": "numpy array", "scalar": "numpy scalar"}.get(last, last)
        return type(shown, (Unread,), {"__module__": module})
    return type(last, (), {"__module__": module, "__new__": lambda *_, **__: form()})


def _wanted(error: Exception) -> tuple[str, type]:
    """The name that torch's reader did not take, and as what: it leaves `builtins.` out."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+) was not an allowed global", text):
        return found[1], Unread
    if found := re.search(r"Can only (SETITEM|append).* but got <class '([\w.]+)'>", text, re.DOTALL):
        return found[2], OrderedDict if found[1] == "SETITEM" else list
    return "", Unread


def _is_kept(name: str) -> bool:
    """Whether it may be from the user's own code, such as the class of a configuration, or is an optimiser."""
    return name.startswith(KEPT) or ("." in name and name.partition(".")[0] not in NEVER)


def _check_archive(path: Path) -> None:
    """Refuse a zip file of another format, and one that unpacks to more than it is: a few kB could fill the memory.

    `torch.save` packs nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # a file of another format, or a damaged one: torch.load says so
    names = [record.filename for record in records]
    claimed = sum(record.file_size for record in records)
    if what := _kind_of_archive(names):
        raise LoadError(f"{path} is {what}")
    if claimed > path.stat().st_size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise LoadError(
            f"{path} is packed: a file of {path.stat().st_size} bytes that unpacks to {claimed}, expected plain "
            f"records as torch.save writes them; {SAVE_ADVICE}"
        )


def _kind_of_archive(names: Sequence[str]) -> str:
    """What a zip file with records of these names is and what to do with it; nothing for a checkpoint."""

    def some(pattern: str) -> list[str]:
        return [name for name in names if re.fullmatch(pattern, name)]

    if some("[^/]+/constants.pkl"):
        return f"a TorchScript archive, expected plain weights; {SAVE_ADVICE}"
    if some("([^/]+/)?(archive_format|serialized_exported_program.json|models/[^/]+.json)"):
        return (
            "an exported program (.pt2), expected plain weights; give the network by --model package.module:factory, "
            f"and {SAVE_ADVICE}"
        )
    if some("([^/]+/)?data.pkl"):
        return ""
    if names and len(some(r".+\.npy")) == len(names):
        return f"an archive of NumPy arrays (.npz), expected tensors; {SAVE_ADVICE}"
    if inside := [name for name in names if name.endswith(SUFFIXES)]:
        return f"a zip file with {first_of(inside)} in it; unpack it and give that file"
    return f"a zip file without a checkpoint ({first_of(names) or 'nothing in it'}); {SAVE_ADVICE}"


def _why_unreadable(error: Exception) -> str:
    """What is wrong with a file that `torch.load(weights_only=True)` refuses, and what to do."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"it holds more than weights: unpickling it would call {found[1]}, which lipaudit never does; "
            f"where it was made, {SAVE_ADVICE}"
        )
    if "persistent_load of storage" in text:
        return f"it holds a whole network or a part of one, which only its code could read; {SAVE_ADVICE}"
    if "torch.distributed" in text:
        return f"its weights are divided among processes; gather the full state dict first, then {SAVE_ADVICE}"
    return f"damaged, truncated or not a PyTorch checkpoint ({_short(error)}); copy or download it again"


def first_of(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(map(clean, names[:count])) + (", …" if len(names) > count else "")


def _short(error: Exception) -> str:
    """A library's message on one line, without torch's advice to load the file unsafely."""
    text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
    text = text.partition(" Check the documentation")[0] or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "…"
