"""Whatever stands for a model becomes the function of raw inputs that is really computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lipaudit.adapters import Normalise, Normalised, as_module
from lipaudit.errors import CaptureError, LoadError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.125)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).eval()


def images() -> torch.Tensor:
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def art_classifier(**settings: Any) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        network(), loss=nn.CrossEntropyLoss(), input_shape=(3, 8, 8), nb_classes=5, device_type="cpu", **settings
    )


def test_normalise_is_per_channel() -> None:
    x = images()

    for c in range(3):
        assert torch.equal(Normalise(MEAN, STD)(x)[:, c], (x[:, c] - np.float32(MEAN[c])) / np.float32(STD[c]))


def test_a_module_passes_unchanged() -> None:
    model = network()

    assert as_module(model) is model


def test_mean_and_std_go_in_front_and_the_model_stays_as_it_was() -> None:
    model = network().train()

    wrapped = as_module(model, mean=MEAN, std=STD)

    assert isinstance(wrapped, Normalised)
    assert wrapped.training
    assert model.training
    mean, std = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)
    assert torch.equal(wrapped(images()), model((images() - mean) / std))


def test_the_normalisation_follows_the_precision_of_the_network() -> None:
    wrapped = as_module(network().double(), mean=MEAN, std=STD)

    assert wrapped(images().double()).dtype == torch.float64


@pytest.mark.parametrize(
    "preprocessing",
    [(0.0, 1.0), (0.5, 0.25), (MEAN, STD), (np.array(MEAN), np.array(STD)), None],
)
def test_an_art_classifier_gives_the_function_that_art_attacks(preprocessing: Any) -> None:
    classifier = art_classifier(preprocessing=preprocessing)
    x = images()

    logits = as_module(classifier).eval()(x)

    expected = classifier.predict(x.numpy())
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_art_defences_are_refused() -> None:
    from art.defences.postprocessor import Rounded
    from art.defences.preprocessor import FeatureSqueezing

    before = art_classifier(preprocessing_defences=FeatureSqueezing(clip_values=(0.0, 1.0)))
    after = art_classifier(postprocessing_defences=Rounded())

    with pytest.raises(CaptureError, match=r"FeatureSqueezing.*preprocessing_defences"):
        as_module(before)
    with pytest.raises(CaptureError, match=r"Rounded.*postprocessing_defences"):
        as_module(after)


def test_a_mean_for_every_pixel_is_refused() -> None:
    classifier = art_classifier(preprocessing=(np.zeros((3, 8, 8)), np.ones((3, 8, 8))))

    with pytest.raises(CaptureError, match="one mean per channel"):
        as_module(classifier)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(LoadError, match="got int"):
        as_module(3)
    with pytest.raises(LoadError, match="together"):
        as_module(network(), mean=MEAN)
    with pytest.raises(LoadError, match="brings its own"):
        as_module(art_classifier(), mean=MEAN, std=STD)
    with pytest.raises(LoadError, match="positive std"):
        as_module(network(), mean=MEAN, std=(1.0, 0.0, 1.0))
