"""Checkpoints: every layout that is common loads, everything else is one line that says what to do."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipaudit.errors import LoadError
from lipaudit.loading.checkpoints import check_finite, check_name_hash, load_weights, read_checkpoint


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


WRAPPED: dict[str, Any] = {
    "plain": STATE,
    "state_dict": {"epoch": 3, "state_dict": STATE, "optimizer": {"lr": 0.1}},
    "model": {"model": STATE, "epoch": 3},
    "net": {"net": STATE, "acc": 93.1},
    "nested": {"model": {"state_dict": STATE}},
    "data parallel": {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    "compiled": {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()},
}


@pytest.mark.parametrize("layout", WRAPPED)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("zipped", [True, False])
def test_common_layouts_load(layout: str, suffix: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPED[layout], path, _use_new_zipfile_serialization=zipped)

    state = read_checkpoint(path)

    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_safetensors_load(tmp_path: Path) -> None:
    save_file(dict(STATE), tmp_path / "weights.safetensors")

    state = read_checkpoint(tmp_path / "weights.safetensors")

    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


class Code:
    """A pickle that runs a command when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "extra": Code()}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Code(), protocol=2))

    for name in ("zip.pt", "raw.pt"):
        message = refusal(lambda name=name: read_checkpoint(tmp_path / name))
        assert "system" in message
        assert "never does" in message
        assert "torch.save(model.state_dict()" in message
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "whole.pt")

    assert "Sequential" in refusal(lambda: read_checkpoint(tmp_path / "whole.pt"))


def test_missing_folder_empty_text(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("these are not the weights")
    (tmp_path / "short.pt").write_bytes(b"PK")

    assert "--checkpoint" in refusal(lambda: read_checkpoint(tmp_path / "none.pt"))
    assert "is a folder" in refusal(lambda: read_checkpoint(tmp_path))
    assert "is empty" in refusal(lambda: read_checkpoint(tmp_path / "empty.pt"))
    assert "b'these ar'" in refusal(lambda: read_checkpoint(tmp_path / "text.pt"))
    assert "neither" in refusal(lambda: read_checkpoint(tmp_path / "short.pt"))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(dict(STATE), path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    message = refusal(lambda: read_checkpoint(path))

    assert "again" in message
    assert "weights_only" not in message  # torch advises to switch its protection off


def test_other_content_is_named(tmp_path: Path) -> None:
    torch.save([STATE, STATE], tmp_path / "list.pt")
    torch.save({"epoch": 1, "best": 0.9}, tmp_path / "dict.pt")

    assert "found list" in refusal(lambda: read_checkpoint(tmp_path / "list.pt"))
    assert "found keys epoch, best" in refusal(lambda: read_checkpoint(tmp_path / "dict.pt"))


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
        (f"net-{'0' * 8}.th", True),
        ("net-deadbeef.pth", True),
        ("net-20240131.pt", False),  # a date
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
    read_checkpoint(path)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(LoadError):
        read_checkpoint(path)
