"""A model name becomes the network that it names, or one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from usermodels import SHAPE, SMALL, Small, Write, user_module

from lipaudit.errors import LoadError
from lipaudit.loading.hashes import sha256_of_file, sha256_of_tensors
from lipaudit.loading.model_names import canonical
from lipaudit.loading.models import LoadedModel, Normalised, known_models, load_model

__all__ = ["user_module"]


def refusal(name: str, **options: Any) -> str:
    """The message of the LoadError for this model: one line."""
    with pytest.raises(LoadError) as caught:
        load_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def checkpoint(user_module: Write, tmp_path: Path) -> tuple[str, Path]:
    """A factory and trained weights for what it makes."""
    name = user_module(SMALL)
    torch.manual_seed(3)
    path = tmp_path / "weights.safetensors"
    save_file(Small().state_dict(), path)
    return f"{name}:Small", path


# --- user code


def test_a_factory_with_a_checkpoint(checkpoint: tuple[str, Path]) -> None:
    name, path = checkpoint
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.5, 0.125)

    loaded = load_model(name, checkpoint=path, mean=mean, std=std, input_shape=SHAPE)

    network = Small().eval()
    network.load_state_dict(load_file(path))
    x = torch.rand(2, *SHAPE)
    expected = network((x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1))
    assert torch.equal(loaded.module(x), expected)
    facts = loaded.facts
    assert (facts.weights, facts.weights_file, facts.classes) == ("trained", path.name, 3)
    assert facts.weights_file_sha256 == sha256_of_file(path)
    assert facts.weights_sha256 == sha256_of_tensors(sorted(network.state_dict().items()))
    assert (facts.mean, facts.std, facts.input_shape) == (mean, std, SHAPE)
    assert facts.parameters == sum(p.numel() for p in network.parameters())


def test_the_network_is_in_evaluation_mode_and_frozen(checkpoint: tuple[str, Path]) -> None:
    name, path = checkpoint
    for options in ({"mean": "none"}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}):
        module = load_model(name, checkpoint=path, input_shape=SHAPE, **options).module

        assert not any(part.training for part in module.modules())
        assert not any(p.requires_grad for p in module.parameters())


def test_mean_none_puts_nothing_in_front(checkpoint: tuple[str, Path]) -> None:
    name, path = checkpoint

    loaded = load_model(name, checkpoint=path, mean="none", input_shape=SHAPE)

    assert not isinstance(loaded.module, Normalised)
    assert loaded.facts.mean == ()


def test_the_normalisation_of_a_checkpoint_is_never_guessed(checkpoint: tuple[str, Path]) -> None:
    name, path = checkpoint

    message = refusal(name, checkpoint=path, input_shape=SHAPE)

    assert "--mean none" in message
    assert "does not guess" in message


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ((0.5,), (0.5,), "expected 3 numbers"),
        ((0.5,) * 3, None, "belong together"),
        (None, (0.5,) * 3, "belong together"),
        ("none", (0.5,) * 3, "--mean none alone"),
        ((0.5,) * 3, (0.5, 0.5, 0.0), "positive --std"),
        ((0.5,) * 3, (0.5, float("nan"), 0.5), "positive --std"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "divide them by 255"),
    ],
)
def test_bad_statistics_are_refused(checkpoint: tuple[str, Path], mean: Any, std: Any, says: str) -> None:
    name, path = checkpoint

    assert says in refusal(name, checkpoint=path, input_shape=SHAPE, mean=mean, std=std)


def test_a_factory_that_loads_its_own_weights_needs_no_checkpoint(user_module: Write) -> None:
    name = user_module(SMALL)

    loaded = load_model(f"{name}:seeded", input_shape=SHAPE)

    assert loaded.facts.weights == "trained"
    assert loaded.facts.weights_file == ""
    assert f"{name}.py" in loaded.facts.source


def test_a_factory_of_untrained_networks_is_found_out(user_module: Write) -> None:
    name = user_module(SMALL)

    message = refusal(f"{name}:Small", input_shape=SHAPE)

    assert "random" in message
    assert "--checkpoint" in message


def test_random_weights_on_request_follow_the_seed(user_module: Write) -> None:
    name = user_module(SMALL)

    def load(seed: int) -> LoadedModel:
        return load_model(f"{name}:Small", input_shape=SHAPE, random_weights=True, seed=seed)

    assert load(1).facts.weights == "random"
    assert load(1).facts.weights_sha256 == load(1).facts.weights_sha256
    assert load(1).facts.weights_sha256 != load(2).facts.weights_sha256


def test_loading_leaves_the_random_numbers_alone(user_module: Write) -> None:
    name = user_module(SMALL)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)

    load_model(f"{name}:Small", input_shape=SHAPE, random_weights=True)

    assert torch.equal(torch.rand(1), expected)


def test_num_classes_reaches_the_factory(user_module: Write) -> None:
    name = user_module(SMALL)

    assert load_model(f"{name}:seeded", input_shape=SHAPE, num_classes=7).facts.classes == 7


def test_a_module_instance_is_taken_as_it_is(user_module: Write) -> None:
    name = user_module(SMALL + "\nnetwork = seeded()\n")

    assert load_model(f"{name}:network", input_shape=SHAPE).facts.architecture == "Small"


def test_what_user_code_prints_stays_off_stdout(user_module: Write, capsys: pytest.CaptureFixture[str]) -> None:
    name = user_module(SMALL + "\nprint('hello')\n")

    load_model(f"{name}:seeded", input_shape=SHAPE)

    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


@pytest.mark.parametrize(
    ("code", "attribute", "says"),
    [
        (
            "def make():\n    x = 1\n    raise ValueError('first\\nsecond')",
            "make",
            "ValueError in {file}:3: first second",
        ),
        ("import json\ndef make():\n    return json.loads('{')", "make", "JSONDecodeError in {file}:3"),
        ("def make():\n    raise SystemExit(0)", "make", "SystemExit in {file}:2"),
        ("x = 1 / 0", "make", "ZeroDivisionError in {file}:1"),
        ("def make(:\n    pass", "make", "SyntaxError in {file}:1"),
        ("import nothing_of_that_name", "make", "ModuleNotFoundError in {file}:1"),
        ("def make():\n    return 'a network'", "make", "returned str"),
        ("def make(depth, width):\n    pass", "make", "needs the arguments depth, width"),
        ("def make(num_classes):\n    pass", "make", "add --num-classes"),
        ("make = 3", "make", "no function 'make'"),
        ("", "make", "no function 'make'"),
    ],
)
def test_mistakes_in_user_code_are_one_line(code: str, attribute: str, says: str, user_module: Write) -> None:
    name = user_module(code)

    assert says.format(file=f"{name}.py") in refusal(f"{name}:{attribute}", input_shape=SHAPE)


def test_a_missing_module_is_named() -> None:
    message = refusal("nothing_of_that_name.models:make", input_shape=SHAPE)

    assert "no Python module 'nothing_of_that_name.models'" in message


# --- what the network must be


NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.answer = answer
    def forward(self, x):
        return self.answer(x, self.weight)

def pair(): return Net(lambda x, w: (x, x))
def classes(): return Net(lambda x, w: x.mean((2, 3)).argmax(1))
def image(): return Net(lambda x, w: x)
def single(): return Net(lambda x, w: x.sum((1, 2, 3))[:, None])
def infinite(): return Net(lambda x, w: x.mean((2, 3)) / 0)
def wrong(): return Net(lambda x, w: x @ w)
def nan():
    net = Net(lambda x, w: x.mean((2, 3)) * w)
    net.weight.data[1] = float("nan")
    return net
def half(): return Net(lambda x, w: x.mean((2, 3)) * w).half()
def double(): return Net(lambda x, w: x.mean((2, 3)) * w).double()
"""


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("pair", "got tuple"),
        ("classes", "got torch.int64"),
        ("image", "got (1, 3, 8, 8)"),
        ("single", "two classes or more"),
        ("infinite", "NaN or infinite logits"),
        ("wrong", "RuntimeError in {file}:18"),
        ("nan", "1 of 3 values of weight are NaN or infinite"),
        ("half", "return model.float()"),
        ("double", "return model.float()"),
    ],
)
def test_what_is_no_classifier_is_refused(factory: str, says: str, user_module: Write) -> None:
    name = user_module(NETWORKS)

    assert says.format(file=f"{name}.py") in refusal(f"{name}:{factory}", input_shape=SHAPE)


def test_an_input_of_another_shape_is_refused(user_module: Write) -> None:
    name = user_module(SMALL)

    assert "--input-shape" in refusal(f"{name}:seeded", input_shape=(3, 9, 9))


def test_an_unknown_input_shape_is_asked_for(user_module: Write) -> None:
    name = user_module(SMALL)

    assert "--input-shape 3,32,32" in refusal(f"{name}:seeded")


def test_the_wrong_number_of_classes_is_refused(user_module: Write) -> None:
    name = user_module(SMALL + "\ndef fixed(): return seeded()\n")

    message = refusal(f"{name}:fixed", input_shape=SHAPE, num_classes=10)

    assert "has 3 classes, expected 10" in message
    assert "--num-classes" in message


def test_checkpoint_and_random_weights_contradict_each_other(checkpoint: tuple[str, Path]) -> None:
    name, path = checkpoint

    assert "contradict" in refusal(name, checkpoint=path, random_weights=True, input_shape=SHAPE)


def test_weights_that_are_not_finite_are_refused_by_name(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    name, path = checkpoint
    state = load_file(path)
    state["conv.bias"][2] = float("inf")
    save_file(state, tmp_path / "bad.safetensors")

    message = refusal(name, checkpoint=tmp_path / "bad.safetensors", mean="none", input_shape=SHAPE)

    assert "1 of 4 values of conv.bias are NaN or infinite" in message


# --- names


def test_resnet18_for_cifar10_comes_from_pyautoattack() -> None:
    loaded = load_model("resnet18", dataset="cifar10", offline=True)

    facts = loaded.facts
    assert (facts.input_shape, facts.classes, facts.parameters) == ((3, 32, 32), 10, 11_173_962)
    assert "pyautoattack" in facts.source
    assert facts.mean == ()
    assert loaded.module(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["digits-aol", "digits-cnn"])
def test_the_bundled_networks_have_their_weights_with_them(name: str) -> None:
    loaded = load_model(name, dataset="digits", offline=True)

    assert (loaded.facts.input_shape, loaded.facts.classes) == ((1, 8, 8), 10)
    assert loaded.facts.weights_file == f"{name}.safetensors"
    assert loaded.facts.weights == "trained"


def test_a_bundled_network_is_not_audited_on_other_data() -> None:
    assert "--dataset digits" in refusal("digits-aol", dataset="mnist")


def test_the_bundled_networks_can_be_audited_untrained() -> None:
    assert load_model("digits-aol", random_weights=True).facts.weights == "random"


@pytest.mark.parametrize("dataset", ["cifar100", "mnist", "digits"])
def test_a_pair_without_weights_is_refused_with_the_remedy(dataset: str) -> None:
    message = refusal("resnet18", dataset=dataset)

    assert f"no weights of resnet18 for {dataset} are known" in message
    assert "--checkpoint" in message
    assert "--random-weights" in message


def test_a_name_of_both_hubs_has_to_be_told_apart() -> None:
    assert "torchvision:resnet18 or timm:resnet18" in refusal("resnet18")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet81", "resnet18"),
        ("timm:resnt18", "timm:resnet18"),
        ("digits-aoll", "digits-aol"),
        ("EfficientNetB00", "efficientnet_b0"),
        ("mypackage.networks.make", "mypackage.networks:make"),
        ("torchvision:vgg61", "torchvision:vgg16"),
    ],
)
def test_an_unknown_model_is_refused_with_close_names(name: str, close: str) -> None:
    message = refusal(name)

    assert f"unknown model '{name}'" in message
    assert close in message.partition("did you mean")[2]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Digits_AOL", "digits-aol"),
        ("ResNet18", "resnet18"),
        ("resnet_18", "resnet18"),
        ("TorchVision:ResNet-50", "torchvision:resnet50"),
        ("timm:ResNet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("MobileNet-V2", "mobilenet_v2"),
        ("EfficientNet B0", "efficientnet_b0"),
        ("my.Module:Make_Net", "my.Module:Make_Net"),
        ("no such", "no such"),
    ],
)
def test_case_and_hyphens_of_names_do_not_matter(name: str, known: str) -> None:
    assert canonical(name) == known


def test_a_pair_is_found_however_it_is_written() -> None:
    loaded = load_model("ResNet-18", dataset="CIFAR-10", offline=True)

    assert (loaded.facts.name, loaded.facts.classes) == ("resnet18", 10)


def test_a_module_without_its_factory_is_told_the_colon(user_module: Write) -> None:
    name = user_module(SMALL)

    assert f"did you mean {name}:FACTORY?" in refusal(name)
    assert f"did you mean {name}:seeded?" in refusal(f"{name}.seeded")
    assert "without ()" in refusal(f"{name}:seeded()", input_shape=SHAPE)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./model.pt", "did you mean --model NAME --checkpoint ./model.pt?"),
        ("weights.safetensors", "--checkpoint weights.safetensors?"),
        ("C:\\nets\\model.pth", "--checkpoint C:\\nets\\model.pth?"),
        ("~/nets/resnet", "is a path"),
        ("../resnet18", "is a path"),
        ("nets.py", "did you mean nets:FACTORY?"),
        ("./my/nets.py:make", "did you mean my.nets:make?"),
        ("https://example.org/model.pt", "is an address"),
    ],
)
def test_a_path_is_no_model(name: str, says: str) -> None:
    assert says in refusal(name)


def test_the_table_of_models() -> None:
    table = {known.name: known for known in known_models()}

    assert list(table) == ["digits-aol", "digits-cnn", "resnet18"]
    assert all(known.cached for known in table.values())
    assert table["resnet18"].dataset == "cifar10"


def test_the_table_can_be_searched() -> None:
    names = [known.name for known in known_models("resnet18")]

    assert names[0] == "resnet18"
    assert "torchvision:resnet18" in names
    assert "timm:resnet18.a1_in1k" in names
    assert all("resnet18" in name for name in names)


def test_the_fingerprint_of_weights_sees_names_shapes_types_and_bytes() -> None:
    base = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}
    variants: list[Callable[[], dict[str, torch.Tensor]]] = [
        lambda: {**base, "a": base["a"].reshape(2, 3)},
        lambda: {**base, "a": base["a"].double()},
        lambda: {**base, "a": torch.tensor([0, 1, 2, 3, 4, 5.0000005])},
        lambda: {"c": base["a"], "b": base["b"]},
        lambda: {"a": base["a"]},
    ]
    digests = {sha256_of_tensors(sorted(state.items())) for state in [base, *(make() for make in variants)]}

    assert len(digests) == len(variants) + 1
    assert sha256_of_tensors(sorted({"b": base["b"], "a": base["a"].clone()}.items())) in digests
    strided = nn.Parameter(torch.arange(6.0).repeat_interleave(2)[::2])
    assert sha256_of_tensors([("a", strided)]) == sha256_of_tensors([("a", base["a"])])
