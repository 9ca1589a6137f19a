"""Checkpoints: everything that a file may hold which calls itself one."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hostile.case import Act, Case
from hostile.networks import NAME, SHAPE, Small, stored
from safetensors.torch import save_file
from torch import nn

from lipaudit.errors import LoadError
from lipaudit.loading.hashes import sha256_of_file
from lipaudit.loading.models import load_model

State = dict[str, torch.Tensor]
Write = Callable[[Path], Path | None]
GIGABYTES = 10 * 2**30


def loading(path: Path, weights: State | None = None) -> Act:
    """Loads the file; the network then has exactly these weights (by default those of `stored`)."""

    def act() -> None:
        loaded = load_model(NAME, checkpoint=path, mean="none", input_shape=SHAPE)
        expected = stored() if weights is None else weights
        found = loaded.module.state_dict()
        for name in set(found) - {"norm.num_batches_tracked"}:
            assert torch.equal(found[name], expected[name].to(torch.float32)), name
        assert loaded.facts.weights_file_sha256 == sha256_of_file(path)

    return act


def file(content: Any, suffix: str = ".pt", **options: Any) -> Callable[[Path], Act]:
    """A file that `torch.save` writes."""

    def make(folder: Path) -> Act:
        path = folder / f"weights{suffix}"
        torch.save(content() if callable(content) else content, path, **options)
        return loading(path)

    return make


def raw(content: bytes | Callable[[], bytes], name: str = "weights.pt") -> Callable[[Path], Act]:
    """A file of these bytes."""

    def make(folder: Path) -> Act:
        (folder / name).write_bytes(content() if callable(content) else content)
        return loading(folder / name)

    return make


def changed(**tensors: Any) -> State:
    """The stored weights with some replaced (`__` for the dot), or left out where None."""
    state = stored() | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def filled(name: str, value: float) -> State:
    """The stored weights with one entry of one tensor set."""
    state = stored()
    state[name].view(-1)[0] = value
    return state


def bytes_of(kind: str) -> bytes:
    """The stored weights in one of three formats."""
    if kind == "safetensors":
        from safetensors.torch import save

        return save(stored())
    stream = io.BytesIO()
    torch.save(stored(), stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


SUFFIX = {"zip": ".pt", "legacy": ".pth", "safetensors": ".safetensors"}


def truncated(kind: str, share: float, folder: Path) -> Act:
    whole = bytes_of(kind)
    return raw(whole[: max(1, int(len(whole) * share))], f"weights{SUFFIX[kind]}")(folder)


def flipped(kind: str, share: float, folder: Path) -> Act:
    """One bit is another: refused, or what is audited are the weights in the file, under another hash."""
    content = bytearray(bytes_of(kind))
    content[int(len(content) * share)] ^= 0x10
    path = folder / f"weights{SUFFIX[kind]}"
    path.write_bytes(content)

    def act() -> None:
        loaded = load_model(NAME, checkpoint=path, mean="none", input_shape=SHAPE)
        if kind == "safetensors":
            from safetensors.torch import load_file

            held = load_file(path)
        else:
            held = torch.load(path, weights_only=True)
        found = loaded.module.state_dict()
        assert all(torch.equal(found[name], held[name]) for name in held)
        assert loaded.facts.weights_file_sha256 == sha256_of_file(path)

    return act


class Shell:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path, call: str) -> None:
        self.target, self.call = target, call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self.call == "os.system":
            return os.system, (f"touch {self.target}",)
        if self.call == "eval":
            return eval, (f"open({str(self.target)!r}, 'w')",)
        return self.target.touch, ()


def armed(call: str, where: str, folder: Path) -> Act:
    """A checkpoint with code in it, which must not run."""
    shell = Shell(folder / "run", call)
    content = {"beside": {**stored(), "extra": shell}, "alone": shell, "inside": {"model": stored(), "hook": shell}}
    path = folder / "weights.pt"
    if where == "plain pickle":
        path.write_bytes(pickle.dumps(shell, protocol=2))
    elif where == "new protocol":
        path.write_bytes(pickle.dumps(shell, protocol=4))
    elif where == "old protocol":
        path.write_bytes(pickle.dumps(shell, protocol=0))
    else:
        torch.save(content[where], path)
    act = loading(path)

    def watched() -> None:
        try:
            act()
        finally:
            assert not (folder / "run").exists(), "the code in the file was run"

    return watched


def on_a_gpu(folder: Path) -> Act:
    """As `torch.save` writes tensors that are on a GPU."""
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):
        torch.save(stored(), folder / "weights.pt")
    return loading(folder / "weights.pt")


def header(claim: dict[str, Any] | bytes, length: int | None = None, body: bytes = b"") -> bytes:
    """A safetensors file: eight bytes of length, the header, the values."""
    text = claim if isinstance(claim, bytes) else json.dumps(claim).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one_tensor(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes
    return header({"linear.bias": entry}, body=b"\0" * 4)


def archive(edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The zip file of `torch.save` with its records edited."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bytes_of("zip"))) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, edit(info.filename, old.read(info)))
    return stream.getvalue()


def bomb(*more: str) -> bytes:
    """A storage of a sixteenth of a gigabyte in 60 kB."""
    whole = archive(lambda name, data: b"\0" * 2**26 if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED)
    stream = io.BytesIO(whole)
    with zipfile.ZipFile(stream, "a") as archived:
        for name in more:
            archived.writestr(name, b"")
    return stream.getvalue()


def claiming() -> bytes:
    """A zip file whose directory says that each record has ten gigabytes."""
    content = bytearray(bytes_of("zip"))
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        struct.pack_into("<II", content, place + 20, 0xF0000000, 0xF0000000)
        place = content.find(b"PK\x01\x02", place + 1)
    return bytes(content)


def long_storage() -> bytes:
    """The pickle inside speaks of more numbers than the record has."""
    return archive(lambda name, data: data.replace(b"K$", b"M\xff\xff") if name.endswith("data.pkl") else data)


def expanded() -> State:
    return changed(linear__weight=torch.zeros(1).expand(50_000, 50_000))


def link(folder: Path) -> Act:
    torch.save(stored(), folder / "there.pt")
    (folder / "weights.pt").symlink_to("there.pt")
    return loading(folder / "weights.pt")


def looping_link(folder: Path) -> Act:
    (folder / "weights.pt").symlink_to("weights.pt")
    return loading(folder / "weights.pt")


def pipe(folder: Path) -> Act:
    os.mkfifo(folder / "weights.pt")
    return loading(folder / "weights.pt")


def circle() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def prefixed(*prefixes: str) -> State:
    return {"".join(prefixes) + name: tensor for name, tensor in stored().items()}


def shared() -> State:
    """All weights in one storage, as tied and sliced weights are saved."""
    state = stored()
    flat = torch.cat([tensor.float().reshape(-1) for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    return {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)} | {
        "norm.num_batches_tracked": state["norm.num_batches_tracked"]
    }


def tensors(folder: Path) -> Act:
    save_file(stored(), folder / "weights.safetensors", metadata={"format": "pt", "note": "x" * 1000})
    return loading(folder / "weights.safetensors")


def named(name: str) -> Callable[[Path], Act]:
    def make(folder: Path) -> Act:
        torch.save(stored(), folder / name)
        return loading(folder / name)

    return make


RIGHT: dict[str, Callable[[Path], Act]] = {
    "zip": file(stored),
    "legacy": file(stored, _use_new_zipfile_serialization=False),
    "safetensors with metadata": tensors,
    "any suffix": file(stored, ".bin"),
    "the suffix of another format": file(stored, ".safetensors"),
    "safetensors by another name": raw(lambda: bytes_of("safetensors")),
    "prefix module.": file(partial(prefixed, "module.")),
    "prefix _orig_mod.": file(partial(prefixed, "_orig_mod.")),
    "both prefixes": file(partial(prefixed, "_orig_mod.", "module.")),
    "prefixes the other way": file(partial(prefixed, "module.", "_orig_mod.")),
    "in state_dict": file(lambda: {"state_dict": stored(), "epoch": 3}),
    "in model_state_dict": file(lambda: {"model_state_dict": stored(), "loss": 0.5}),
    "in model": file(lambda: {"model": stored(), "optimizer": {"state": {}, "lr": 1e-3}, "args": ["-x"]}),
    "in net": file(lambda: {"net": stored(), "acc": 99.0}),
    "in ema alone": file(lambda: {"ema": stored()}),
    "in four dicts": file(lambda: {"model": {"net": {"model": {"net": stored()}}}}),
    "numbers among the tensors": file(lambda: {**stored(), "epoch": 3, "norm._extra_state": None}),
    "in model in state_dict": file(lambda: {"state_dict": {"model": prefixed("module.")}}),
    "parameters instead of tensors": file(lambda: dict(Small().named_parameters()) | dict(Small().named_buffers())),
    "an OrderedDict with metadata": file(lambda: Small().state_dict()),
    "one storage for all": file(shared),
    "not contiguous": file(lambda: changed(linear__weight=stored()["linear.weight"].t().contiguous().t())),
    "without batch counters": file(lambda: changed(norm__num_batches_tracked=None)),
    "batch counters as int32": file(lambda: changed(norm__num_batches_tracked=torch.tensor(7, dtype=torch.int32))),
    "float64 that float32 holds": file(lambda: {n: t.double() if t.is_floating_point() else t for n, t in stored().items()}),
    "saved on a GPU": on_a_gpu,
    "a link to the file": link,
    "a date is no hash": named("weights-20240131.pt"),
    "a time is no hash": named("weights-20240131093012.pth"),
    "a number of steps is no hash": named("step-00010000.pt"),
    "spaces and signs in the name": named("wé ights $(x) 'a'.pt"),
}  # fmt: skip

REFUSED: dict[str, tuple[Callable[[Path], Act], str]] = {
    "no file": (lambda folder: loading(folder / "none.pt"), "no checkpoint at"),
    "a folder": (lambda folder: loading(folder), "is a folder"),
    "an empty file": (raw(b""), "is empty"),
    "one byte": (raw(b"\x80"), "damaged, truncated"),
    "text": (raw(b"weights are here\n"), "neither safetensors nor"),
    "a web page": (raw(b"<!DOCTYPE html><html>404</html>"), "is a web page, not a checkpoint"),
    "a pointer of git lfs": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "zeros": (raw(b"\0" * 1000), "neither safetensors nor"),
    "a pipe": (pipe, "no checkpoint at"),
    "a link to itself": (looping_link, "no checkpoint at"),
    "a name that is too long": (lambda folder: loading(folder / ("x" * 5000)), "name too long"),
    "a name with a zero byte": (lambda folder: loading(folder / "a\0b"), "no checkpoint at"),
    "a device": (lambda folder: loading(Path("/dev/zero")), "no checkpoint at"),
    "zip of something else": (raw(lambda: zipped({"readme.txt": b"hello"})), "a zip file without a checkpoint (readme.txt)"),
    "zip with names that climb": (raw(lambda: zipped({"../../escaped.txt": b"x"})), "a zip file without a checkpoint"),
    "TorchScript": (lambda folder: scripted(folder), "TorchScript archive"),
    "a whole model": (file(Small), "found a pickled Small"),
    "a list of state dicts": (file(lambda: [stored(), stored()]), "found list"),
    "a tensor": (file(lambda: torch.zeros(3)), "found Tensor"),
    "a number": (file(3), "found int"),
    "nothing": (file(None), "found NoneType"),
    "an empty dict": (file({}), "expected named tensors"),
    "only an epoch": (file({"epoch": 3}), "found keys epoch"),
    "a dict that holds itself": (file(circle), "found keys model"),
    "numbers as names": (file(lambda: dict(enumerate(stored().values()))), "expected named tensors"),
    "bytes as names": (file(lambda: {n.encode(): t for n, t in stored().items()}), "expected named tensors"),
    "some names with a prefix": (file(lambda: {**prefixed("module."), "x": torch.zeros(1)}), "--checkpoint-key module"),
    "a missing tensor": (file(lambda: changed(linear__bias=None)), "1 missing from the file (linear.bias)"),
    "missing statistics": (file(lambda: changed(norm__running_var=None)), "1 missing from the file (norm.running_var)"),
    "a tensor too many": (file(lambda: changed(head__weight=torch.zeros(1))), "1 unknown to the network (head.weight)"),
    "all names wrong": (file(lambda: {f"x{i}": t for i, t in enumerate(stored().values())}), "missing from the file"),
    "names in capitals": (file(lambda: {n.upper(): t for n, t in stored().items()}), "missing from the file"),
    "a name of two lines": (file(lambda: changed(**{"a\nb": torch.zeros(1)})), "unknown to the network (a b)"),
    "a name with an escape": (file(lambda: changed(**{"\x1b[2J": torch.zeros(1)})), "(\ufffd[2J)"),
    "a name of a megabyte": (file(lambda: changed(**{"x" * 2**20: torch.zeros(1)})), "1 unknown to the network (xxx"),
    "a name that climbs": (file(lambda: changed(**{"../../x": torch.zeros(1)})), "unknown to the network (../../x)"),
    "ten classes instead of three": (
        file(lambda: changed(linear__weight=torch.zeros(10, 144), linear__bias=torch.zeros(10))),
        "add --num-classes 10",
    ),
    "a transposed weight": (file(lambda: changed(linear__weight=torch.zeros(144, 3))), "1 of another shape"),
    "a flattened weight": (file(lambda: changed(linear__weight=torch.zeros(432))), "1 of another shape"),
    "a scalar for a weight": (file(lambda: changed(linear__weight=torch.tensor(1.0))), "1 of another shape"),
    "an empty weight": (file(lambda: changed(linear__weight=torch.zeros(3, 0))), "1 of another shape"),
    "a weight that would broadcast": (file(lambda: changed(linear__weight=torch.zeros(1, 144))), "1 rows in the file"),
    "a weight of ten gigabytes in a number": (file(expanded), "1 of another shape"),
    "integer weights": (file(lambda: changed(linear__weight=torch.ones(3, 144, dtype=torch.int8))), "quantised"),
    "bool weights": (file(lambda: changed(linear__weight=torch.ones(3, 144, dtype=torch.bool))), "quantised"),
    "complex weights": (file(lambda: changed(linear__weight=torch.ones(3, 144, dtype=torch.cfloat))), "torch.complex64"),
    "weights in double precision": (
        file(lambda: changed(linear__weight=torch.full((3, 144), 0.1, dtype=torch.float64))),
        "torch.float64",
    ),
    "sparse weights": (file(lambda: changed(linear__weight=stored()["linear.weight"].to_sparse())), "sparse"),
    "weights without values": (file(lambda: changed(linear__weight=torch.empty(3, 144, device="meta"))), "meta"),
    "a broken promise in the name": (named("weights-deadbeef.pt"), "the name promises SHA-256 deadbeef"),
    "safetensors: a header of ten gigabytes": (
        raw(header({}, length=GIGABYTES), "weights.safetensors"), "damaged or truncated safetensors",
    ),
    "safetensors: values of ten gigabytes": (
        raw(one_tensor(shape=[GIGABYTES // 4], data_offsets=[0, GIGABYTES]), "weights.safetensors"), "safetensors file",
    ),
    "safetensors: a shape that overflows": (
        raw(one_tensor(shape=[2**62, 2**62]), "weights.safetensors"), "safetensors file",
    ),
    "safetensors: offsets backwards": (raw(one_tensor(data_offsets=[4, 0]), "weights.safetensors"), "safetensors file"),
    "safetensors: negative offsets": (raw(one_tensor(data_offsets=[-4, 0]), "weights.safetensors"), "safetensors file"),
    "safetensors: an unknown type": (raw(one_tensor(dtype="F3"), "weights.safetensors"), "safetensors file"),
    "safetensors: no header": (raw(header(b"{" * 90), "weights.safetensors"), "safetensors file"),
    "safetensors: deep nesting": (raw(header(b'{"a":' * 50_000), "weights.safetensors"), "safetensors file"),
    "safetensors: not UTF-8": (raw(header(b'{"\xff\xfe": 1}'), "weights.safetensors"), "safetensors file"),
    "safetensors: no tensors": (raw(header({}), "weights.safetensors"), "expected named tensors"),
    "safetensors: too many bytes": (raw(lambda: bytes_of("safetensors") + b"x", "w.safetensors"), "safetensors file"),
    "zip: a directory of gigabytes": (raw(claiming), "unpacks to 60397977600"),
    "zip: a bomb": (raw(bomb), "unpacks to 67"),
    "zip: compressed": (raw(lambda: archive(lambda _, data: data, zipfile.ZIP_DEFLATED)), "is packed"),
    "zip: a bomb that looks like TorchScript": (raw(lambda: bomb("a/b/constants.pkl")), "is packed"),
    "zip: a record cut short": (
        raw(lambda: archive(lambda name, data: data[:-4] if name.endswith("data/0") else data)), "damaged, truncated",
    ),
    "zip: storage longer than its record": (raw(long_storage), "damaged, truncated"),
    "zip: no pickle inside": (
        raw(lambda: archive(lambda name, data: b"" if name.endswith("data.pkl") else data)), "damaged, truncated",
    ),
    "zip: text for the pickle": (
        raw(lambda: archive(lambda name, data: b"hello" if name.endswith("data.pkl") else data)), "damaged, truncated",
    ),
    "pickle: a string of two gigabytes": (raw(b"\x80\x02X\xff\xff\xff\x7fabc"), "damaged, truncated"),
    "pickle: marks without end": (raw(b"\x80\x02" + b"(" * 100_000), "damaged, truncated"),
    "pickle: nested lists": (raw(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."), "damaged, truncated"),
    "numpy arrays": (file(lambda: {n: t.numpy() for n, t in stored().items()}), "found keys conv.weight, conv.bias, norm.weight, … (numpy array)"),
}  # fmt: skip


def zipped(records: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        for name, data in records.items():
            written.writestr(name, data)
    return stream.getvalue()


def scripted(folder: Path) -> Act:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)).save(str(folder / "weights.pt"))
    return loading(folder / "weights.pt")


NOT_FINITE = [
    Case(f"{value} in {name}", file(partial(filled, name, value)), LoadError, f"values of {name} are NaN or infinite")
    for name in ("conv.weight", "linear.bias", "norm.running_mean")
    for value in (float("nan"), float("inf"), -float("inf"))
]

CASES = [
    *(Case(name, make) for name, make in RIGHT.items()),
    *(Case(name, make, LoadError, says) for name, (make, says) in REFUSED.items()),
    *NOT_FINITE,
    Case("a negative variance", file(partial(filled, "norm.running_var", -1.0)), LoadError, "NaN or infinite logits"),
    Case("no weight at all", file(lambda: OrderedDict()), LoadError, "expected named tensors"),
    *(
        Case(f"code by {call}, {where}", partial(armed, call, where), LoadError, says)
        for call in ("os.system", "eval", "a method")
        for where, says in {
            "beside": "would call",
            "alone": "would call",
            "inside": "would call",
            "plain pickle": "would call",
            "new protocol": "not a PyTorch checkpoint",
            "old protocol": "neither safetensors nor",
        }.items()
    ),
    *(
        Case(f"{kind} cut at {share:.1%}", partial(truncated, kind, share), LoadError, says)
        for kind, says in {"zip": "damaged", "legacy": "damaged", "safetensors": "damaged or truncated"}.items()
        for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999)
    ),
    *(
        Case(f"{kind} with a bit flipped at {share:.0%}", partial(flipped, kind, share), LoadError, either=True)
        for kind in ("zip", "legacy", "safetensors")
        for share in (0.0, 0.03, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.98)
    ),
]
