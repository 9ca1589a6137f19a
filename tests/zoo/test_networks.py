"""The bundled networks do what they are bundled for, on images that they were not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor

from lipaudit import zoo
from lipaudit.errors import LoadError
from lipaudit.nn import AOLConv2d, AOLLinear
from lipaudit.zoo import digits
from lipaudit.zoo.train import clean_accuracy, one_lipschitz_radii


@pytest.fixture(scope="module")
def test_part() -> tuple[Tensor, Tensor]:
    _, _, x, y = zoo.digits_split()
    return torch.from_numpy(x), torch.from_numpy(y)


def test_the_split_is_fixed_and_disjoint() -> None:
    parts = zoo.digits_split()
    x_train, y_train, x_test, y_test = parts
    assert [part.shape for part in parts] == [(1297, 1, 8, 8), (1297,), (500, 1, 8, 8), (500,)]
    assert [str(part.dtype) for part in parts] == ["float32", "int64", "float32", "int64"]
    assert x_train.min() == 0
    assert x_train.max() == 1
    everything = np.concatenate([x_train, x_test]).reshape(1797, 64), np.concatenate([y_train, y_test])
    rows = sorted(map(bytes, np.column_stack(everything).astype(np.float32)))
    source = load_digits()
    assert rows == sorted(map(bytes, np.column_stack([source.data / 16, source.target]).astype(np.float32)))
    assert not set(map(bytes, x_train)) & set(map(bytes, x_test))
    assert all(np.array_equal(a, b) for a, b in zip(parts, zoo.digits_split(), strict=True))


def test_another_order_of_the_digits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "TEST_SHA256", "0" * 64)
    with pytest.raises(LoadError, match="orders the digits differently"):
        zoo.digits_split()


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_bundled_weights_fit_and_are_small(name: str) -> None:
    model, tensors = zoo.load(name), load_file(zoo.weights_file(name))
    assert not model.training
    assert set(tensors) == set(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in tensors.items())
    assert zoo.weights_file(name).stat().st_size < 400_000


def test_digits_aol_is_accurate_and_certified(test_part: tuple[Tensor, Tensor]) -> None:
    model = zoo.load("digits-aol")
    radii = one_lipschitz_radii(model, *test_part)
    assert clean_accuracy(model, *test_part) >= 0.98
    assert (radii > 0.25).double().mean() >= 0.92
    assert (radii > 0.5).double().mean() >= 0.70
    assert (radii > 0).double().mean() == clean_accuracy(model, *test_part)


def test_digits_aol_is_one_lipschitz_layer_by_layer() -> None:
    """By the dense matrices of the weights that run; the 8x8 and 4x4 maps are those of the network."""
    model, sizes = zoo.load("digits-aol"), {"conv1": (1, 8), "conv2": (4, 8)}
    for name, layer in model.named_children():
        if isinstance(layer, AOLConv2d):
            channels, size = sizes[name]
            impulses = torch.eye(channels * size**2, dtype=torch.float64).reshape(-1, channels, size, size)
            weight = layer.weight.detach().double()
            matrix = torch.nn.functional.conv2d(impulses, weight, None, layer.stride, layer.padding).flatten(1)
        elif isinstance(layer, AOLLinear):
            matrix = layer.weight.detach().double()
        else:
            continue
        assert np.linalg.svd(matrix.numpy(), compute_uv=False)[0] <= 1, name


def test_digits_cnn_is_accurate(test_part: tuple[Tensor, Tensor]) -> None:
    assert clean_accuracy(zoo.load("digits-cnn"), *test_part) >= 0.98


def test_radii_of_a_network_known_by_hand() -> None:
    """Logits x and -x: the point 3 is 3 away from the boundary, whatever the length of the rows."""
    layer = torch.nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[2.0], [-2.0]])
    x, y = torch.tensor([[3.0], [3.0]]), torch.tensor([0, 1])
    assert one_lipschitz_radii(torch.nn.Sequential(layer), x, y).tolist() == [3.0, -3.0]


def test_unknown_and_broken_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="there are: digits-aol, digits-cnn"):
        zoo.load("digits-vit")
    broken = tmp_path / "digits-aol.safetensors"
    monkeypatch.setattr(zoo, "weights_file", lambda _: broken)
    for content in (None, b"", b"no tensors", zoo.weights_file.__module__.encode() * 100):
        if content is not None:
            broken.write_bytes(content)
        with pytest.raises(LoadError, match=r"expected the bundled weights of digits-aol") as caught:
            zoo.load("digits-aol")
        assert "\n" not in str(caught.value)
