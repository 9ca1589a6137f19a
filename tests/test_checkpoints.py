"""Checkpoints: every layout that is common loads, everything else is one line that says what to do."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import os
import pickle
import re
import tarfile
import types
import uuid
import zipfile
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipaudit.errors import LoadError
from lipaudit.loading.checkpoints import check_finite, check_name_hash, load_checkpoint, load_weights, read_checkpoint

INNER = {
    "0.weight": "0._orig_mod.weight",
    "0.bias": "0._orig_mod.bias",
    "2.weight": "2._checkpoint_wrapped_module.weight",
}


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


STATE = network().state_dict()


def refusal(action: Callable[[], object]) -> str:
    """The message of the LoadError that `action` raises: one line."""
    with pytest.raises(LoadError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def behind(*prefixes: Any) -> dict[str, torch.Tensor]:
    """The weights (or the last argument) with these in front of every name."""
    *front, last = prefixes if isinstance(prefixes[-1], dict) else (*prefixes, STATE)
    return {"".join(front) + name: tensor for name, tensor in last.items()}


def plus(more: int) -> dict[str, torch.Tensor]:
    """Other weights of the same network."""
    return {name: tensor + more for name, tensor in STATE.items()}


class Settings:
    """A class of the user's own, as scripts keep them in checkpoints."""

    def __init__(self) -> None:
        self.lr, self.layers = 0.1, (3, 4)


class Attributes(dict[str, Any]):
    """A dict with attributes, such as EasyDict."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.__dict__.update(self)


class Rows(list[int]):
    """A list of another class."""


@dataclass
class Config:
    optimizer: str = "sgd"
    size: tuple[int, int] = (3, 4)


BESIDE: dict[str, Any] = {
    "argparse": argparse.Namespace(lr=0.1, data=Path("/data"), device=torch.device("cpu"), best=np.float64(0.9)),
    "simple": types.SimpleNamespace(epoch=3),
    "paths": [Path("a/b"), PurePosixPath("/a"), PureWindowsPath("C:/a")],
    "numpy": {"score": np.float32(0.5), "step": np.int64(3), "curve": np.arange(4.0), "kind": np.float32,
              "dtype": np.dtype("f4"), "flag": np.bool_(True), "state": np.random.default_rng(0)},
    "defaultdict": defaultdict(list, {"loss": [1.0, 2.0]}),
    "ordered": OrderedDict(a=1),
    "counter": Counter("abc"),
    "deque": deque([1, 2], 3),
    "dates": [datetime.datetime(2024, 1, 31, 9, 30), datetime.date(2024, 1, 31), datetime.timedelta(1), datetime.UTC],
    "numbers": [Decimal("0.1"), Fraction(1, 3), uuid.UUID(int=3), 2**80, 1j, {1, 2}, frozenset({3}), b"x"],
    "torch": [torch.Size([3]), torch.float16, torch.device("cpu"), torch.get_rng_state(), torch.__version__],
    "dict and list classes": [Attributes({"a": Rows([1])}, b=2), Rows([1, 2])],
    "user": [Settings(), Config(), {Path("as a key"): np.int64(3)}],
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9).state_dict(),
    "what is not there": [..., NotImplemented, re.compile("layer.*"), ChainMap({"a": 1}), IPv4Address("1.1.1.1")],
    "whole optimizer": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), 2),
}  # fmt: skip
"""What training scripts of this world keep beside the weights."""

WRAPPED: dict[str, Any] = {
    "plain": STATE,
    "state_dict": {"epoch": 3, "state_dict": STATE, "optimizer": {"lr": 0.1}},
    "model": {"model": STATE, "epoch": 3},
    "net": {"net": STATE, "acc": 93.1},
    "nested": {"model": {"state_dict": STATE}},
    "a key of its own": {"backbone_weights": STATE, "best": torch.tensor(0.3)},
    "in a defaultdict": defaultdict(dict, {"model": defaultdict(dict, STATE)}),
    "data parallel": {"state_dict": behind("module.")},
    "compiled": behind("module.", "_orig_mod."),
    "FSDP": behind("_fsdp_wrapped_module.", "module."),
    "wrapped inside": {INNER.get(name, name): tensor for name, tensor in STATE.items()},
    "Lightning": {"state_dict": behind("model."), "hyper_parameters": {"lr": 0.1}, "pytorch-lightning_version": "2"},
    "net.": behind("net."),
    "MoCo": {"state_dict": behind("module.", "encoder_q.")},
    "any one prefix": behind("a.b.c."),
    "averaged": {"model_ema": {"n_averaged": torch.tensor(3), **behind("module.")}},
    "numbers among the tensors": {**STATE, "epoch": 3, "1._extra_state": {"scale": 2.0}},
    "moments by the names of weights": {"model": STATE, "optimizer": {"exp_avg": dict(STATE)}},
    **{f"beside {name}": {"model": STATE, "extra": beside} for name, beside in BESIDE.items()},
}


@pytest.mark.parametrize("layout", WRAPPED)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("zipped", [True, False])
def test_common_layouts_load(layout: str, suffix: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPED[layout], path, _use_new_zipfile_serialization=zipped)

    state = read_checkpoint(path, network()).state

    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_safetensors_load(tmp_path: Path) -> None:
    save_file(dict(STATE), tmp_path / "weights.safetensors")

    state = read_checkpoint(tmp_path / "weights.safetensors", network()).state

    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


SEVERAL: dict[str, tuple[Any, str, dict[str, int]]] = {
    "timm": ({"state_dict": STATE, "state_dict_ema": plus(1)}, "state_dict, state_dict_ema", {"state_dict_ema": 1}),
    "torchvision": (
        {"model": STATE, "model_ema": {"n_averaged": torch.tensor(3), **behind("module.", plus(1))}, "epoch": 3},
        "model, model_ema.module",
        {"model": 0, "model_ema": 1, "model_ema.module": 1},
    ),
    "an unknown key": ({"state_dict": STATE, "best": plus(2)}, "state_dict, best", {"best": 2}),
    "one inside the other": ({**STATE, "ema": plus(1)}, "., ema", {".": 0, "ema": 1}),
    "MoCo": (
        {"state_dict": behind("module.encoder_q.") | behind("module.encoder_k.", plus(1)) | {"queue": torch.ones(2)}},
        "state_dict.module.encoder_q, state_dict.module.encoder_k",
        {"state_dict.module.encoder_k": 1, "module.encoder_q": 0},
    ),
    "a prefix and another weight": (
        {"state_dict": {**behind("model."), "criterion.weight": torch.ones(2)}},
        "state_dict.model, beside others (criterion.weight)",
        {"state_dict.model": 0, "model": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_several_sets_of_weights_are_not_guessed_between(case: str, tmp_path: Path) -> None:
    content, says, keys = SEVERAL[case]
    path = tmp_path / "w.pt"
    torch.save(content, path)

    message = refusal(lambda: read_checkpoint(path, network()))

    assert f"under {says}" in message
    assert "--checkpoint-key" in message
    for key, more in keys.items():
        state = read_checkpoint(path, network(), key).state
        assert all(torch.equal(state[name], STATE[name] + more) for name in STATE), key
    assert "there are:" in refusal(lambda: read_checkpoint(path, network(), "no_such"))


def test_what_was_done_to_names_is_said(tmp_path: Path) -> None:
    torch.save({"state_dict": {**behind("module."), "epoch": 3, "n_averaged": torch.tensor(3)}}, tmp_path / "w.pt")

    notes = read_checkpoint(tmp_path / "w.pt", network()).notes

    assert notes == ("under state_dict", "without the prefix module.", "left out, no weights: epoch, n_averaged")
    torch.save(STATE, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt", network()).notes == ()


class Keeping(nn.Linear):
    """A layer with extra state of its own."""

    scale = 1.0

    def get_extra_state(self) -> Any:
        return {"scale": self.scale}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


def test_extra_state_of_the_network_is_loaded_and_missed_by_name(tmp_path: Path) -> None:
    path, module = tmp_path / "w.pt", nn.Sequential(Keeping(2, 2))
    state = {**module.state_dict(), "0._extra_state": {"scale": 3.0}}
    torch.save({"model": state}, path)

    load_checkpoint(module, path)

    assert module[0].scale == 3.0
    check_finite(module, "w.pt")
    torch.save({"model": {**state, "0._extra_state": 7}}, path)
    assert "the network refuses it" in refusal(lambda: load_checkpoint(module, path))
    del state["0._extra_state"]
    torch.save({"model": state}, path)
    assert "1 missing from the file (0._extra_state)" in refusal(lambda: load_checkpoint(module, path))


def zipped(**records: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in records.items():
            archive.writestr(name.replace("__", "."), data)
    return stream.getvalue()


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def exported() -> bytes:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),)), stream)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3), b=np.ones(2))
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return stream.getvalue()


FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "an exported program": (exported, "an exported program (.pt2)"),
    "npz": (npz, "an archive of NumPy arrays (.npz), expected tensors"),
    "a zip around a checkpoint": (
        lambda: zipped(weights__pt=saved(STATE)),
        "a zip file with weights.pt in it; unpack it",
    ),
    "a zip around a folder": (lambda: zipped(readme__md=b"x"), "a zip file without a checkpoint (readme.md)"),
    "a pointer of Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "a web page": (lambda: b"\n<!DOCTYPE html>\n<html>", "a web page, not a checkpoint; the download failed"),
    "an answer of a store": (lambda: b'<?xml version="1.0"?><Error>', "a web page, not a checkpoint"),
    "ONNX": (lambda: b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    "npy": (lambda: b"\x93NUMPY\x01\x00", "a NumPy array"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it"),
    "gzip": (lambda: b"\x1f\x8b\x08\x00", "a packed file; unpack it"),
    "tar": (tar, "a tar archive; unpack it"),
    "JSON": (lambda: b'{"weight_map": {"a": "model-00001.safetensors"}}', "JSON text"),
    "numpy arrays for tensors": (lambda: saved({n: t.numpy() for n, t in STATE.items()}), "(numpy array)"),
    "a pickled setting": (lambda: saved(argparse.Namespace(a=1)), "found a pickled Namespace"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_files_are_told_what_they_are(kind: str, tmp_path: Path) -> None:
    make, says = FOREIGN[kind]
    (tmp_path / "w.pt").write_bytes(make())

    assert says in refusal(lambda: read_checkpoint(tmp_path / "w.pt", network()))


def test_a_folder_with_checkpoints_names_them(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()

    assert "one of model.safetensors in it" in refusal(lambda: read_checkpoint(tmp_path, network()))


def test_what_lies_beside_is_neither_imported_nor_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "never_imported.py").write_text("raise SystemExit('imported')")
    state = b"X\x05\x00\x00\x00stateccollections\nOrderedDict\n)R"
    evil = b"X\x04\x00\x00\x00evilcnever_imported\nrun\n(K\x01tR"
    pickled = b"\x80\x02}(" + state + evil + b"u."
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/version", b"3")
    (tmp_path / "w.pt").write_bytes(stream.getvalue())

    assert "found keys state, evil" in refusal(lambda: read_checkpoint(tmp_path / "w.pt", network()))


class Code:
    """A pickle that runs a command when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "extra": Code()}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Code(), protocol=2))

    for name in ("zip.pt", "raw.pt"):
        message = refusal(lambda name=name: read_checkpoint(tmp_path / name, network()))
        assert "system" in message
        assert "never does" in message
        assert "torch.save(model.state_dict()" in message
    assert not (tmp_path / "ran").exists()


def test_losses_and_classes_of_layers_may_lie_beside_the_weights(tmp_path: Path) -> None:
    extra = [nn.CrossEntropyLoss(weight=torch.ones(3)), nn.GELU, nn.functional.relu, nn.BatchNorm2d, nn.Linear(2, 3)]
    torch.save({"state_dict": STATE, "extra": extra}, tmp_path / "weights.pt")
    model = network()
    load_checkpoint(model, tmp_path / "weights.pt")
    assert all(torch.equal(value, STATE[name]) for name, value in model.state_dict().items())

    # Files of before torch 1.6 hold the source of such classes, where torch's reader expects tensors.
    torch.save({"state_dict": STATE, "extra": extra}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "a whole network or a part of one" in refusal(lambda: read_checkpoint(tmp_path / "old.pt", network()))


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "whole.pt")

    torch.save({"model": network(), "epoch": 3}, tmp_path / "inside.pt")

    for name in ("whole.pt", "inside.pt"):
        message = refusal(lambda name=name: read_checkpoint(tmp_path / name, network()))
        assert "a whole network (Sequential), which only its code could read" in message


def test_missing_folder_empty_text(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("these are not the weights")
    (tmp_path / "short.pt").write_bytes(b"PK")

    assert "--checkpoint" in refusal(lambda: read_checkpoint(tmp_path / "none.pt", network()))
    assert "is a folder" in refusal(lambda: read_checkpoint(tmp_path, network()))
    assert "is empty" in refusal(lambda: read_checkpoint(tmp_path / "empty.pt", network()))
    assert "b'these ar'" in refusal(lambda: read_checkpoint(tmp_path / "text.pt", network()))
    assert "neither" in refusal(lambda: read_checkpoint(tmp_path / "short.pt", network()))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(dict(STATE), path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    message = refusal(lambda: read_checkpoint(path, network()))

    assert "again" in message
    assert "weights_only" not in message  # torch advises to switch its protection off


def test_other_content_is_named(tmp_path: Path) -> None:
    torch.save([STATE, STATE], tmp_path / "list.pt")
    torch.save({"epoch": 1, "best": 0.9}, tmp_path / "dict.pt")

    assert "found list" in refusal(lambda: read_checkpoint(tmp_path / "list.pt", network()))
    assert "found keys epoch, best" in refusal(lambda: read_checkpoint(tmp_path / "dict.pt", network()))


def test_missing_unknown_and_misshapen_names_are_listed() -> None:
    state = {name: tensor for name, tensor in STATE.items() if not name.startswith("0.")}
    state |= {"head.weight": torch.ones(1), "1.weight": torch.ones(7)}

    message = refusal(lambda: load_weights(network(), state, Path("w.pt")))

    assert "2 missing from the file (0.weight, 0.bias)" in message
    assert "1 unknown to the network (head.weight)" in message
    assert "1.weight: file (7,), network (5,)" in message


def test_one_missing_name_is_enough() -> None:
    state = {name: tensor for name, tensor in STATE.items() if name != "0.bias"}
    assert "1 missing from the file (0.bias)" in refusal(lambda: load_weights(network(), state, Path("w.pt")))


def test_another_number_of_classes_is_recognised() -> None:
    message = refusal(lambda: load_weights(network(classes=10), STATE, Path("w.pt")))

    assert "3 rows in the file and 10 in the network" in message
    assert "--num-classes 3" in message


def test_nothing_is_loaded_when_something_does_not_fit() -> None:
    module = network(classes=10)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    refusal(lambda: load_weights(module, {n: t + 1 for n, t in STATE.items()}, Path("w.pt")))

    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_quantised_weights_are_refused() -> None:
    state = {**STATE, "0.weight": STATE["0.weight"].to(torch.int8)}

    assert "quantised" in refusal(lambda: load_weights(network(), state, Path("w.pt")))


def test_old_checkpoints_without_batch_counters_load() -> None:
    state = {name: tensor for name, tensor in STATE.items() if "num_batches" not in name}
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    load_weights(module, state, Path("w.pt"))

    assert torch.equal(module[0].weight, STATE["0.weight"])


def test_half_precision_weights_become_single_exactly() -> None:
    state = {n: t.half() if t.is_floating_point() else t for n, t in STATE.items()}
    module = network()

    load_weights(module, state, Path("w.pt"))

    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, state["0.weight"].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    module = network()
    module.state_dict()[name].view(-1)[1] = value

    message = refusal(lambda: check_finite(module, "w.pt"))

    assert name in message
    assert "1 of" in message


def test_a_hash_in_the_file_name_is_checked(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    for name, bad in [
        (f"net-{digest[:8]}.th", False),
        (f"net-{digest}.pth", False),
        (f"net-{'0' * 7}a.th", True),
        ("net-deadbeef.pth", True),
        ("net-20240131.pt", False),  # a date
        ("net-20240131093012.pth", False),  # and a time
        ("step-00010000.pt", False),
        ("net-v2.pt", False),
        ("net.pt", False),
    ]:
        path = tmp_path / name
        path.write_bytes(b"weights")
        if bad:
            assert "damaged" in refusal(lambda path=path: check_name_hash(path))
        else:
            check_name_hash(path)


def test_a_flipped_bit_is_found_by_the_name(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    path = tmp_path / f"w-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    path.write_bytes(content)
    read_checkpoint(path, network())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(LoadError):
        read_checkpoint(path, network())
