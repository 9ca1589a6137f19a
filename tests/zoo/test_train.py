"""The training script runs, says where it is, and repeats itself bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from lipaudit import zoo
from lipaudit.zoo.train import RECIPES, main


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_two_epochs_from_scratch(name: str, tmp_path: Path) -> None:
    results, files = [], [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in files:
        results.append(call(name, "--epochs", "2", "--out", str(file)))
        assert results[-1].exit_code == 0, results[-1].output
    assert "epoch 1/2  loss " in results[0].output
    assert "epoch 2/2  loss " in results[0].output
    assert "of 500 test images" in results[0].output
    assert ("certified accuracy at 0.25" in results[0].output) == (name == "digits-aol")
    assert files[0].read_bytes() == files[1].read_bytes()
    model = zoo.MODELS[name]()
    model.load_state_dict(load_file(files[0]), strict=True)


def test_another_seed_gives_another_network(tmp_path: Path) -> None:
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, file in enumerate(files):
        assert call("digits-cnn", "--epochs", "1", "--seed", str(seed), "--out", str(file)).exit_code == 0
    assert files[0].read_bytes() != files[1].read_bytes()


def test_validation_keeps_off_the_test_part_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipaudit.zoo.train.save_file", lambda *_: pytest.fail("wrote a file"))
    result = call("digits-cnn", "--epochs", "1", "--validate")
    assert result.exit_code == 0, result.output
    assert "of 297 held-out training images" in result.output


def test_every_bundled_model_has_a_recipe() -> None:
    assert list(RECIPES) == list(zoo.MODELS)


def test_an_unknown_name_is_a_usage_error() -> None:
    result = call("digits-vit")
    assert result.exit_code == 2
    assert "digits-aol" in result.output
