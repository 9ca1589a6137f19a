"""The table of data sets: what each name opens, and the named ones among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipaudit.errors import LoadError
from lipaudit.loading.downloads import Remote, cache_dir, fetch, mirrors
from lipaudit.progress import Progress
from lipaudit.registry import Registry

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR_RECORD = 1 + 3 * 32 * 32
"""Bytes of one image in the binary layout: its label, then the red, green and blue planes."""
CIFAR_IMAGES = 10_000


@dataclass(frozen=True)
class Wanted:
    """How a data set is to be opened."""

    name: str
    """As the user wrote it."""
    argument: str
    """What stands behind the colon: a folder or a file."""
    data_dir: Path | None
    input_shape: tuple[int, ...] | None
    """(c, h, w), where the user says it: settles which axis of an array is the channels."""
    offline: bool
    progress: Progress


@dataclass(frozen=True)
class Batch:
    """Some images of a data set, as its files have them."""

    inputs: np.ndarray
    """(n, c, h, w), uint8, or floats in [0,1]."""
    labels: np.ndarray
    """(n,), integers."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """An opened data set: what it is, before any image has to be read."""

    split: str
    source: str
    available: int
    shape: tuple[int, ...] | None
    """(c, h, w); None if the images take the shape that the network asks for."""
    classes: int | None
    """None if the files do not say."""
    read: Callable[[np.ndarray, tuple[int, ...] | None], Batch]
    """The images at these positions; those without a shape of their own take the network's (c, h, w)."""
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outline:
    """What can be said of a data set by its name alone; None where its files decide."""

    shape: tuple[int, ...] | None = None
    classes: int | None = None
    available: int | None = None
    licence: str = ""


NAMED = {
    "digits": Outline((1, 8, 8), 10, 500, "CC BY 4.0"),
    "cifar10": Outline((3, 32, 32), 10, 10_000, "not stated by its authors"),
    "cifar100": Outline((3, 32, 32), 100, 10_000, "not stated by its authors"),
    "mnist": Outline((1, 28, 28), 10, 10_000, "CC BY-SA 3.0"),
    "fashion-mnist": Outline((1, 28, 28), 10, 10_000, "MIT"),
}
"""The data sets that have a name of their own; the others are in the user's files."""

DATASETS: Registry[Callable[[Wanted], ImageSet]] = Registry("data set")


@DATASETS.register("digits")
def open_digits(wanted: Wanted) -> ImageSet:
    """Handwritten digits of 8 × 8 pixels from scikit-learn: the part no bundled network was trained on."""
    from lipaudit.zoo.digits import digits_split

    del wanted
    _, _, x, y = digits_split()
    return ImageSet(
        split="test",
        source="scikit-learn load_digits (UCI, Optical Recognition of Handwritten Digits)",
        available=len(x),
        shape=tuple(x.shape[1:]),
        classes=10,
        class_names=tuple("0123456789"),
        read=lambda index, _: Batch(x[index], y[index]),
    )


@DATASETS.register("cifar10")
def open_cifar10(wanted: Wanted) -> ImageSet:
    """CIFAR-10 test images, 32 × 32 in colour: from the binary layout, or fetched by way of torchvision."""
    root = _root(wanted)
    file = next(
        (f for f in (root / "cifar-10-batches-bin/test_batch.bin", root / "test_batch.bin") if f.exists()),
        None,
    )
    if file is None:
        return _open_torchvision(wanted, "CIFAR10", CIFAR10_CLASSES)
    return _named(wanted, f"CIFAR-10 binary layout, {file.name}", CIFAR10_CLASSES, lambda: _cifar_binary(file))


@DATASETS.register("cifar100")
def open_cifar100(wanted: Wanted) -> ImageSet:
    """CIFAR-100 test images, 32 × 32 in colour, fetched by way of torchvision."""
    return _open_torchvision(wanted, "CIFAR100", ())


@DATASETS.register("mnist")
def open_mnist(wanted: Wanted) -> ImageSet:
    """MNIST test images, 28 × 28 in grey, fetched by way of torchvision."""
    return _open_torchvision(wanted, "MNIST", tuple("0123456789"))


@DATASETS.register("fashion-mnist")
def open_fashion_mnist(wanted: Wanted) -> ImageSet:
    """Fashion-MNIST test images, 28 × 28 in grey, fetched by way of torchvision."""
    from torchvision.datasets import FashionMNIST

    return _open_torchvision(wanted, "FashionMNIST", tuple(FashionMNIST.classes))


def is_cached(name: str) -> bool:
    """Whether the named data set is on this machine (in the cache folder, or inside an installed package)."""
    root = cache_dir()
    places = {
        "digits": (Path(__file__),),
        "cifar10": (root / "cifar-10-batches-bin", root / "cifar-10-batches-py"),
        "cifar100": (root / "cifar-100-python",),
        "mnist": (root / "MNIST/raw/t10k-images-idx3-ubyte",),
        "fashion-mnist": (root / "FashionMNIST/raw/t10k-images-idx3-ubyte",),
    }
    return any(place.exists() for place in places[name])


def _named(
    wanted: Wanted,
    source: str,
    class_names: tuple[str, ...],
    arrays: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> ImageSet:
    """A data set of the table `NAMED` whose files are read when the first image is wanted."""
    known = NAMED[wanted.name]
    assert known.available is not None, "a named data set has a known size"

    def read(index: np.ndarray, _: tuple[int, ...] | None) -> Batch:
        x, y = arrays()
        return Batch(x[index], y[index])

    return ImageSet("test", source, known.available, known.shape, known.classes, read, class_names)


def _root(wanted: Wanted) -> Path:
    """The folder to look into: the user's, or lipaudit's cache."""
    if wanted.data_dir is not None and not wanted.data_dir.is_dir():
        raise LoadError(f"no folder {wanted.data_dir}; create it, or leave --data-dir out to use {cache_dir()}")
    return wanted.data_dir or cache_dir()


def _cifar_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(10000, 3, 32, 32) uint8 and (10000,) labels from `test_batch.bin`, whose size must be exact."""
    expected = CIFAR_IMAGES * CIFAR_RECORD
    if not file.is_file() or file.stat().st_size != expected:
        size = f"{file.stat().st_size:,} bytes" if file.is_file() else "a folder"
        raise LoadError(f"{file}: expected {expected:,} bytes, got {size}; unpack cifar-10-binary.tar.gz again")
    records = np.fromfile(file, dtype=np.uint8).reshape(CIFAR_IMAGES, CIFAR_RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        raise LoadError(f"{file}: label {labels.max()} found, expected 0 to 9; it is not CIFAR-10's test_batch.bin")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def _open_torchvision(wanted: Wanted, kind: str, class_names: tuple[str, ...]) -> ImageSet:
    root = _root(wanted)
    return _named(wanted, f"torchvision.datasets.{kind}", class_names, lambda: _torchvision(wanted, kind, root))


def _torchvision(wanted: Wanted, kind: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, c, h, w) uint8 and labels of the test part; fetched and unpacked if they are not there."""
    import torchvision

    make: Any = getattr(torchvision.datasets, kind)
    try:
        data = make(str(root), train=False, download=False)
    except RuntimeError:  # torchvision's word for "not there, or its hash is wrong"
        for remote in _archives(make, kind, root):
            fetch(remote, offline=wanted.offline, progress=wanted.progress)
        # The archives are in place now, so this unpacks them and asks no server.
        data = make(str(root), train=False, download=True)
    x, y = np.asarray(data.data), np.asarray(data.targets)
    return (x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)), y


def _archives(make: Any, kind: str, root: Path) -> list[Remote]:
    """The files that torchvision would fetch, with its own addresses and hashes."""
    remedy = f"put it into {root}, or name the folder that has it by --data-dir"
    if hasattr(make, "tgz_md5"):
        return [Remote((make.url,), root / make.filename, make.tgz_md5, "md5", remedy)]
    folder = root / kind / "raw"
    remedy = remedy.replace(str(root), str(folder), 1)
    return [Remote(mirrors(make.mirrors, name), folder / name, md5, "md5", remedy) for name, md5 in make.resources]
