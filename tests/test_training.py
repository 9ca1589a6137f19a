"""The training examples: a run that was interrupted goes on where it stopped, and what is printed is proved."""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipaudit.errors import LoadError
from lipaudit.progress import Silent

EXAMPLES = Path(__file__).parent.parent / "examples" / "training"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("training")


def options(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, *given: str, **defaults: object
) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["example", "--progress", "off", *given])
    return training.arguments("", **defaults)


@pytest.mark.parametrize(
    "name",
    [
        "train_aol",
        pytest.param("train_gram", marks=pytest.mark.slow),
        pytest.param("train_lipgrid", marks=pytest.mark.slow),
        pytest.param("train_four_bounds", marks=pytest.mark.slow),
    ],
)
def test_each_example_runs_on_the_digits(
    name: str, training: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = ["--epochs", "1", "--width", "4", "--train-images", "300", "--test-images", "20", "--batch", "100"]
    monkeypatch.setattr(sys, "argv", [name, "--progress", "off", *short, "--checkpoint", str(tmp_path / "run.pt")])
    monkeypatch.setattr(training.tell, "__defaults__", (sys.stdout,))
    importlib.import_module(name).main()
    printed = capsys.readouterr().out
    assert "certified at 0.5 " in printed
    assert "network bound " in printed
    assert ("times smaller" in printed) == (name != "train_aol")
    assert len(list(tmp_path.glob("run*.pt"))) == (1 if name == "train_aol" else 2)


def test_an_interrupted_run_ends_where_the_whole_one_does(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    example = importlib.import_module("train_aol")
    short = ["--epochs", "3", "--width", "4", "--train-images", "200", "--batch", "64"]

    def start(checkpoint: str) -> object:
        given = options(training, monkeypatch, *short, "--checkpoint", str(tmp_path / checkpoint))
        images = training.prepare(given)
        return training.Training(example.network(images.shape, images.classes, given.width), images, given)

    whole = start("whole.pt")
    whole.run(example.loss, Silent())

    calls = itertools.count()

    def stopping(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if next(calls) == 6:  # in the second epoch
            raise KeyboardInterrupt
        return example.loss(model, x, y)

    with pytest.raises(KeyboardInterrupt):
        start("half.pt").run(stopping, Silent())
    again = start("half.pt")
    assert again.resume()
    assert again.epoch == 1
    again.run(example.loss, Silent())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name

    other = start("half.pt")
    other.options.learning_rate = 1.0
    with pytest.raises(LoadError, match="is of another run"):
        other.resume()


def test_folders_of_arrays_are_read_and_cut(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 5)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / f"some_{part}_{count}.npz", images=images, labels=np.arange(count) % 10)
    images = training.read(options(training, monkeypatch, "--data", str(tmp_path), "--test-images", "3"))
    assert images.x.shape == (12, 1, 28, 28)
    assert images.x_test.shape == (3, 1, 28, 28)
    assert images.x.max() <= 1
    held = training.read(options(training, monkeypatch, "--data", str(tmp_path), "--validate", "4"))
    assert torch.equal(held.x_test, images.x[-4:])
    assert len(held.x) == 8
    with pytest.raises(LoadError, match=r"expected one file \*train\*\.npz"):
        training.read(options(training, monkeypatch, "--data", str(tmp_path / "nowhere")))
