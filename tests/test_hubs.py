"""timm and torchvision: fetched once into their own caches, normalised as their publishers say."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from loopback import serving

from lipaudit.errors import LoadError
from lipaudit.loading import hubs
from lipaudit.loading.models import Normalised, load_model
from lipaudit.progress import Lines

TINY = "timm:test_resnet.r160_in1k"
FILE = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hugging Face hub on this machine that has random weights for one small timm network."""
    import timm

    torch.manual_seed(7)
    state = timm.create_model(TINY.partition(":")[2]).state_dict()
    with serving({FILE: safetensors.torch.save(state)}) as server:
        _point_to(server.url, tmp_path, monkeypatch)
        yield server, state


def _point_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_timm_weights_are_announced_fetched_and_then_cached(hub: Any) -> None:
    server, state = hub
    said = io.StringIO()

    first = load_model(TINY, progress=Lines(said))
    asked = len(server.asked)
    second = load_model(TINY, offline=True)

    assert "fetching timm/test_resnet.r160_in1k/model.safetensors, 1.9 MB" in said.getvalue()
    assert len(server.asked) == asked
    assert first.facts == second.facts
    assert isinstance(first.module, Normalised)
    for name, tensor in first.module.network.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_timm_says_how_its_network_is_normalised(hub: Any) -> None:
    facts = load_model(TINY).facts

    assert hub
    assert (facts.mean, facts.std, facts.input_shape) == ((0.5,) * 3, (0.5,) * 3, (3, 160, 160))
    assert (facts.classes, facts.licence, facts.weights_file) == (1000, "apache-2.0", "model.safetensors")


def test_offline_or_without_a_network_the_file_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _point_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    began = time.monotonic()

    for options, says in [({"offline": True}, "--offline"), ({}, "refused")]:
        with pytest.raises(LoadError, match=says) as caught:
            load_model(TINY, **options)
        assert "timm/test_resnet.r160_in1k/model.safetensors" in str(caught.value)
        assert "--checkpoint" in str(caught.value)
    assert time.monotonic() - began < 10  # huggingface_hub itself would try for most of a minute


def test_a_network_without_published_weights_is_refused() -> None:
    import timm

    bare = next(name for name in timm.list_models() if not timm.models.is_model_pretrained(name))

    with pytest.raises(LoadError, match=f"timm has no weights for {bare}; give --checkpoint"):
        load_model(f"timm:{bare}")


def test_torchvision_weights_bring_their_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    torch.manual_seed(2)
    state = models.squeezenet1_1().state_dict()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    path = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir()
    torch.save(state, path)
    # These are not the published bytes, so the two checks of their hash have to look away.
    monkeypatch.setattr(hubs.Remote, "is_here", lambda remote: remote.path.is_file())
    monkeypatch.setattr(hubs, "check_name_hash", lambda _: None)

    loaded = load_model("torchvision:squeezenet1_1", offline=True)

    facts = loaded.facts
    assert (facts.mean, facts.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (facts.input_shape, facts.classes, facts.weights_file) == ((3, 224, 224), 1000, path.name)
    assert isinstance(loaded.module, Normalised)
    assert torch.equal(loaded.module.network.state_dict()["features.0.weight"], state["features.0.weight"])


def test_cached_torchvision_weights_with_the_wrong_hash_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    path = tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir()
    path.write_bytes(b"altered")

    with pytest.raises(LoadError, match=r"squeezenet1_1-b8a52dc0\.pth is not on this machine"):
        load_model("torchvision:squeezenet1_1", offline=True)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", TINY])
def test_published_weights_for_other_classes_are_refused(name: str) -> None:
    with pytest.raises(LoadError, match=f"no weights of {name} for 10 classes are known"):
        load_model(name, dataset="cifar10")


def test_the_architecture_alone_takes_classes_and_channels() -> None:
    grey = load_model("timm:test_resnet", dataset="mnist", random_weights=True).facts
    colour = load_model("torchvision:squeezenet1_1", dataset="cifar100", random_weights=True).facts

    assert (grey.input_shape, grey.classes, grey.weights) == ((1, 28, 28), 10, "random")
    assert (colour.input_shape, colour.classes, colour.weights_file) == ((3, 32, 32), 100, "")


def test_a_bare_name_of_one_hub_is_found_there() -> None:
    assert hubs.hub_homes("squeezenet1_1") == ["torchvision"]
    assert hubs.hub_homes("test_resnet.r160_in1k") == ["timm"]
    assert hubs.hub_homes("resnet18") == ["torchvision", "timm"]
    assert hubs.hub_homes("resnet18.no_such_tag") == []
