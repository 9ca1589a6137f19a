"""What the report says of where its numbers come from, for networks and images that were passed in as objects."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lipaudit
from lipaudit import __version__
from lipaudit.certification.certificates import Certificates, under
from lipaudit.certification.network_bound import Composition
from lipaudit.errors import BadThreat
from lipaudit.graph.wrappers import Normalised, Prepared
from lipaudit.loading.checkpoints import tensors_of
from lipaudit.loading.datasets import grid_levels
from lipaudit.loading.hashes import sha256_of_tensors
from lipaudit.results.audit import ArithmeticResult, DataFacts, ModelFacts
from lipaudit.results.threat import PIXELS
from lipaudit.verdict.consistency import digest_of

PACKAGES = ("torch", "torchvision", "timm", "adversarial-robustness-toolbox", "pyautoattack", "numpy")
_FEW = 32
"""Numbers of a mean that are listed one by one."""


@dataclass(frozen=True)
class Source:
    """Where network and images come from, as far as their loader knows; the rest is read off the objects themselves."""

    model_facts: ModelFacts | None = None
    data_facts: DataFacts | None = None
    index: Sequence[int] | None = None
    """Where the images stand in their data set."""
    command: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """What `Audit.config` has besides the settings."""
    warnings: Sequence[str] = ()


def of_model(prepared: Prepared, composition: Composition) -> ModelFacts:
    """Facts about a network given as an object; its weights are taken to be trained."""
    module, network = prepared.module, prepared.module
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if isinstance(module, Normalised):
        network, mean, std = module.network, *map(_per_channel, (module.normalise.mean, module.normalise.std))
    return ModelFacts(
        name=type(network).__name__,
        source="passed to lipaudit.audit" + (f" in a {prepared.wrapper}" if prepared.wrapper else ""),
        architecture=type(network).__name__,
        parameters=sum(p.numel() for p in module.parameters()),
        weights="trained",
        weights_sha256=sha256_of_tensors(sorted(tensors_of(module).items())),
        weights_file="",
        weights_file_sha256="",
        dtype=str(next((p.dtype for p in module.parameters()), torch.float32)).removeprefix("torch."),
        input_shape=composition.network.input_shape,
        classes=len(composition.network.pairwise),
        mean=mean,
        std=std,
    )


def _per_channel(values: torch.Tensor) -> tuple[float, ...]:
    """The numbers as they were written before they became float32; their extremes if there is one for every pixel."""
    found = values.flatten() if values.numel() <= _FEW else torch.stack([values.min(), values.max()])
    return tuple(float(str(number)) for number in found.cpu().float().numpy())


def of_data(points: torch.Tensor, answers: Sequence[int], seed: int, box: tuple[float, float] = PIXELS) -> DataFacts:
    """Facts about images given as arrays."""
    return DataFacts(
        name="arrays",
        split="",
        source="passed to lipaudit.audit",
        sha256=sha256_of_data(points, answers),
        available=len(points),
        samples=len(points),
        seed=seed,
        levels=grid_levels(points, *box),
        width=box[1] - box[0],
    )


def sha256_of_data(points: torch.Tensor, answers: Sequence[int]) -> str:
    """The digest of all images and labels, for `DataFacts.sha256`."""
    digest = hashlib.sha256(points.contiguous().cpu().numpy().tobytes())
    digest.update(np.array(answers, dtype=np.int64).tobytes())
    return digest.hexdigest()


def images_of(points: torch.Tensor) -> tuple[str, ...]:
    """The digest of each image, for `Samples.image`."""
    return tuple(hashlib.sha256(point.contiguous().numpy().tobytes()).hexdigest()[:16] for point in points.cpu())


def positions(index: Sequence[int] | None, count: int) -> list[int]:
    """Where the samples stand in their data set; raises `BadThreat` for positions that cannot be."""
    found = [int(k) for k in (range(count) if index is None else index)]
    if len(found) != count or len(set(found)) < count or min(found) < 0:
        raise BadThreat(f"expected {count} positions in the data set as index, each once and from 0 on, got others")
    return found


def of_rows(data: DataFacts, index: Sequence[int], answers: Sequence[int], images: Sequence[str]) -> DataFacts:
    """The facts of these rows of the data."""
    available = max(data.available, max(index) + 1)
    digest = digest_of(index, answers, images)
    return replace(data, samples=len(index), available=available, rows_sha256=digest)


def of_code() -> str:
    """SHA-256 of lipaudit itself."""
    sources = sorted(Path(lipaudit.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


def of_audit(
    composition: Composition, images: str, settings: Mapping[str, Any], code: str
) -> dict[str, dict[str, Any]]:
    """What an interrupted audit is continued by: the function, the images, the settings and the software.

    `images` is the digest of all rows, `code` that of lipaudit itself.
    The function is the captured graph with its constants: weights, normalisation and architecture in one.
    """
    graph = hashlib.sha256(repr(composition.graph.input_shape).encode())
    for node in composition.graph.nodes:
        plain = {name: value for name, value in node.args.items() if not isinstance(value, torch.Tensor)}
        tensors = [(name, value) for name, value in node.args.items() if isinstance(value, torch.Tensor)]
        graph.update(f"{node.name}|{node.op}|{node.output}|{node.shape}|{plain!r}\0".encode())
        graph.update(sha256_of_tensors(tensors).encode())
    return {
        "audited": {"network": graph.hexdigest(), "images": images},
        "settings": dict(settings),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            "lipaudit": __version__,
            "code of lipaudit": code,
        },
    }


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read back from a result file."""
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list | np.ndarray | torch.Tensor):
        return [*map(plain_number, value)]
    return str(value) if isinstance(value, Path | torch.device) else value


def plain_number(value: Any) -> Any:
    """A number of a tensor or an array as one of Python; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "lipaudit": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "device": gpu or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "bounds": "float64",
    }


def of_arithmetics(certificates: Certificates) -> tuple[ArithmeticResult, ...]:
    """What is certified under each arithmetic, R first; the rates and sentences come with the verdict."""
    found = []
    for arithmetic in ("real", "native", "float64"):
        one, headline = under(certificates, arithmetic), arithmetic == certificates.arithmetic
        radius = () if one.why_not else tuple(one.radius.tolist())
        found.append(ArithmeticResult(arithmetic, "", headline, (), radius, one.why_not))
    return tuple(found)
