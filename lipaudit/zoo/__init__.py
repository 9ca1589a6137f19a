"""The bundled digits networks: their definition, the script that trained them, and their weights.

`load("digits-aol")` is a 1-Lipschitz network with useful certificates, `load("digits-cnn")` an ordinary one
without. Both are reproduced by `python -m lipaudit.zoo.train NAME`.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lipaudit.errors import LoadError
from lipaudit.zoo.digits import digits_aol, digits_cnn, digits_split

__all__ = ["MODELS", "digits_aol", "digits_cnn", "digits_split", "load", "weights_file"]

MODELS = {"digits-aol": digits_aol, "digits-cnn": digits_cnn}
"""Untrained networks by name."""


def weights_file(name: str) -> Path:
    """Where the weights of a bundled model lie; `LoadError` for an unknown name."""
    if name not in MODELS:
        raise LoadError(f"expected the name of a bundled model, got {name!r}; there are: {', '.join(MODELS)}")
    return Path(__file__).with_name(f"{name}.safetensors")


def load(name: str) -> nn.Module:
    """A bundled model with its trained weights, in evaluation mode; `LoadError` if unknown or unreadable."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_file(name)
    model = MODELS[name]()
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LoadError(
            f"expected the bundled weights of {name} in {path.name}, got: {reason}; reinstall lipaudit, or write "
            f"them anew with `python -m lipaudit.zoo.train {name}`"
        ) from None
    return model.eval()
