"""Images and labels: everything that files and arrays may hold which are called a data set."""

from __future__ import annotations

import functools
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile.case import Act, Case
from hostile.networks import SHAPE
from PIL import Image
from torch import nn

from lipaudit.api import audit, certify
from lipaudit.certification.certificates import Certificates
from lipaudit.errors import BadThreat, LipauditError, LoadError
from lipaudit.loading.datasets import check_fit, load_dataset
from lipaudit.results.audit import ModelFacts

FACTS = ModelFacts("net", "", "", 1, "trained", "", "", "", "float32", SHAPE, 3, (), (), "")
Make = Callable[[Path], Act]


def images(count: int = 4, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, *(shape or SHAPE))).astype(np.float32)


def labels(count: int = 4) -> np.ndarray:
    return np.arange(count) % 3


X, Y = images(), labels()


def arrays(x: Any = X, y: Any = Y, *, expected: np.ndarray | None = None, **more: Any) -> Make:
    """An .npz file; what is loaded are these images (by default X) with the labels Y."""

    def make(folder: Path) -> Act:
        path = folder / "images.npz"
        names = {name: value for name, value in {"x": x, "y": y}.items() if value is not None}
        with path.open("wb") as stream:
            np.savez(stream, **names, **more)
        return reading(path, expected)

    return make


def reading(path: Path, expected: np.ndarray | None = None) -> Act:
    def act() -> None:
        data = load_dataset(f"npz:{path}", input_shape=SHAPE)
        check_fit(data, FACTS)
        assert torch.equal(data.inputs, torch.from_numpy(X if expected is None else expected))
        assert data.labels.tolist() == Y.tolist()

    return act


def raw(content: bytes | Callable[[], bytes], name: str = "images.npz") -> Make:
    def make(folder: Path) -> Act:
        (folder / name).write_bytes(content() if callable(content) else content)
        return reading(folder / name)

    return make


def npz(**members: bytes) -> bytes:
    """A zip file with these bytes as arrays."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def claiming(shape: str) -> bytes:
    """An array of four bytes whose header says more."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 4


def with_value(value: float) -> np.ndarray:
    x = X.copy()
    x[1, 0, 2, 3] = value
    return x


def pickled() -> np.ndarray:
    array = np.empty(4, dtype=object)
    array[:] = [X[0], X[1], X[2], X[3]]
    return array


def cut(share: float, folder: Path) -> Act:
    stream = io.BytesIO()
    np.savez(stream, x=X, y=Y)
    return raw(stream.getvalue()[: int(len(stream.getvalue()) * share)])(folder)


# --- folders of images


def tree(change: Callable[[Path], None] | None = None, levels: np.ndarray | None = None) -> Make:
    """A folder with three classes of one image each, changed; what is loaded are these levels, in order."""

    def make(folder: Path) -> Act:
        pixels = (images(3, 6, 6) * 255).astype(np.uint8)
        for name, image in zip("abc", pixels, strict=True):
            (folder / "set" / name).mkdir(parents=True)
            Image.fromarray(image).save(folder / "set" / name / "0.png")
        if change is not None:
            change(folder / "set")
        expected = pixels if levels is None else levels

        def act() -> None:
            data = load_dataset(f"imagefolder:{folder / 'set'}", input_shape=SHAPE)
            check_fit(data, FACTS)
            assert torch.equal((data.inputs * 255).round().to(torch.uint8)[:, 0], torch.from_numpy(expected))
            assert data.labels.tolist() == [0, 1, 2]

        return act

    return make


def image(name: str, content: bytes | Callable[[], bytes]) -> Make:
    """One more file among the images."""
    return tree(lambda folder: (folder / "a" / name).write_bytes(content() if callable(content) else content) and None)


def png(mode: str = "L", size: tuple[int, int] = (6, 6), kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def empty_classes(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()


def no_classes(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.rename(folder / f"{file.parent.name}.png")
    for name in "abc":
        (folder / name).rmdir()


def four_classes(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "0.png").write_bytes(png())


def beside(folder: Path) -> None:
    """What is no image, and not a class."""
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").write_bytes(b"")
    (folder / "readme.txt").write_text("hello")
    (folder / "a" / "labels.csv").write_text("hello")


def dangling(folder: Path) -> None:
    (folder / "a" / "1.png").symlink_to("nowhere.png")


def bomb_image() -> bytes:
    """A PNG that claims 60000 x 60000 pixels."""
    content = bytearray(png())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


# --- arrays in memory


def network() -> nn.Module:
    """Quickly bounded."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()


@functools.cache
def plainly(labelled: bool) -> Certificates:
    return certify(network(), torch.from_numpy(X), torch.from_numpy(Y) if labelled else None, local="off")


def certified(inputs: Any, *answers: Any) -> Make:
    """The same certificates as for plain tensors."""

    def make(folder: Path) -> Act:
        del folder

        def act() -> None:
            found = certify(network(), inputs() if callable(inputs) else inputs, *answers, local="off")
            # The last digit of a proved norm may depend on where in memory a matrix lies.
            assert np.allclose(found.radius, plainly(bool(answers)).radius, rtol=1e-12, atol=0)
            assert np.array_equal(found.prediction, plainly(bool(answers)).prediction)

        return act

    return make


def labelled(answers: Any) -> Make:
    return certified(X, answers)


def audited(inputs: Any = X, answers: Any = Y, **options: Any) -> Make:
    def make(folder: Path) -> Act:
        del folder

        def act() -> None:
            done = audit(network(), inputs, answers, **{"attacks": "none", "local": "off", **options})
            assert list(done.samples.radius) == plainly(True).radius.tolist()

        return act

    return make


def floats(kind: Any) -> Make:
    return arrays(X.astype(kind), expected=X.astype(kind).astype(np.float32))


EIGHT = (X * 255).astype(np.uint8)

RIGHT: dict[str, Make] = {
    "npz of float32": arrays(),
    "npz of float16": floats(np.float16),
    "npz of float64": floats(np.float64),
    "npz of long double": floats(np.longdouble),
    "npz of the other byte order": floats(">f4"),
    "npz of uint8": arrays(EIGHT, expected=EIGHT.astype(np.float32) / 255),
    "npz in Fortran order": arrays(np.asfortranarray(X)),
    "npz without the axis of channels": arrays(X[:, 0]),
    "npz with channels last": arrays(X.transpose(0, 2, 3, 1)),
    "npz with one-hot labels": arrays(y=np.eye(3)[Y]),
    "npz with one-hot labels of bool": arrays(y=np.eye(3, dtype=bool)[Y]),
    "npz with labels in a column": arrays(y=Y[:, None]),
    "npz with uint64 labels": arrays(y=Y.astype(np.uint64)),
    "npz with arrays that nobody asked for": arrays(extra=np.zeros(3), other=np.array(["x"])),
    "folder of images": tree(),
    "folder with other files": tree(beside),
    "tensors": certified(torch.from_numpy(X)),
    "lists": certified(X.tolist()),
    "read-only array": certified(lambda: np.frombuffer(X.tobytes(), np.float32).reshape(X.shape)),
    "reversed array": certified(lambda: X[::-1].copy()[::-1]),
    "tensor with a gradient": certified(lambda: torch.from_numpy(X).requires_grad_()),
    "labels as a list": labelled(Y.tolist()),
    "labels of int8": labelled(Y.astype(np.int8)),
    "labels one-hot in float": labelled(np.eye(3, dtype=np.float32)[Y]),
    "audit of plain arrays": audited(),
}

REFUSED: dict[str, tuple[Make, str]] = {
    "npz missing": (lambda folder: reading(folder / "none.npz"), "no file"),
    "npz a folder": (lambda folder: reading(folder), "no file"),
    "npz empty": (raw(b""), "is not a whole .npz file"),
    "npz of text": (raw(b"hello"), "is not a whole .npz file"),
    "npz that is a single array": (raw(lambda: npy(X)), "holds a single array"),
    "npz that is a pickle": (raw(b"\x80\x04K\x01."), "is not a whole .npz file"),
    "npz without images": (arrays(None), "has no array x"),
    "npz without labels": (arrays(y=None), "has no array y"),
    "npz with other names": (arrays(None, None, a=X, b=Y), "has no array x"),
    "npz of objects": (arrays(pickled()), "is not a whole .npz file"),
    "npz of labels as objects": (arrays(y=np.array([0, None, 1, 2], dtype=object)), "is not a whole .npz file"),
    "npz of two lengths": (arrays(y=Y[:3]), "4 images but 3 labels"),
    "npz of no images": (arrays(X[:0], Y[:0]), "has no images"),
    "npz of one image without a batch": (arrays(X[0, 0], Y[:1]), "images have shape (6, 6)"),
    "npz of five axes": (arrays(X[None], Y), "images have shape (1, 4, 1, 6, 6)"),
    "npz of a scalar": (arrays(np.float32(1), Y), "images have shape ()"),
    "npz of 0 to 255 in float": (arrays(X * 255), "expected [0,1]; divide them by 255"),
    "npz of -1 to 1": (arrays(X * 2 - 1), "if they are normalised"),
    "npz a little above 1": (arrays(with_value(1.0001)), "go up to 1"),
    "npz a little below 0": (arrays(with_value(-1e-7)), "expected [0,1]"),
    "npz with NaN": (arrays(with_value(np.nan)), "1 pixels are NaN or infinite"),
    "npz with inf": (arrays(with_value(np.inf)), "1 pixels are NaN or infinite"),
    "npz with -inf": (arrays(with_value(-np.inf)), "1 pixels are NaN or infinite"),
    "npz of int64": (arrays(EIGHT.astype(np.int64)), "as pixels in [0, 1] they are x / 255, store that"),
    "npz of uint16": (arrays((X * 65535).astype(np.uint16)), "as pixels in [0, 1] they are x / 65535, store that"),
    "npz of 0 to 65535 in float": (arrays(X * 65535), "divide them by their largest possible value"),
    "npz of int8": (arrays((X * 100).astype(np.int8)), "images are int8"),
    "npz of bool": (arrays(X > 0.5), "images are bool"),
    "npz of complex": (arrays(X.astype(np.complex64)), "images are complex64"),
    "npz of strings": (arrays(X.astype(str)), "expected uint8 or floats"),
    "npz of dates": (arrays(X.astype("datetime64[s]")), "expected uint8 or floats"),
    "npz of records": (arrays(np.zeros((4, 1, 6, 6), [("r", "f4")])), "expected uint8 or floats"),
    "npz of other images": (arrays(images(4, 1, 8, 8)), "has images of shape (1, 8, 8)"),
    "npz of three channels": (arrays(images(4, 3, 6, 6)), "has images of shape (3, 6, 6)"),
    "npz of doubtful channels": (arrays(images(4, 3, 6, 3)), "which axis of"),
    "npz of images without pixels": (arrays(np.zeros((4, 1, 0, 6), np.float32)), "has images of shape (1, 0, 6)"),
    "npz with a label too large": (arrays(y=Y + 1), "has label 3"),
    "npz with a label of -1": (arrays(y=Y - 1), "label -1 found"),
    "npz with a label of 2^63": (arrays(y=np.array([0, 1, 2, 2**63], dtype=np.uint64)), "label 9223372036854775808"),
    "npz with labels in float": (arrays(y=Y.astype(np.float32)), "labels are float32"),
    "npz with a label of NaN": (arrays(y=np.array([0, 1, np.nan, 1])), "labels are float64"),
    "npz with labels of bool": (arrays(y=Y > 0), "labels are bool"),
    "npz with labels of strings": (arrays(y=np.array(["cat", "dog", "cat", "dog"])), "labels are <U3"),
    "npz with a scalar label": (arrays(y=np.int64(3)), "of shape ()"),
    "npz with labels of three axes": (arrays(y=np.zeros((4, 1, 1), int)), "of shape (4, 1, 1)"),
    "npz with soft labels": (arrays(y=np.full((4, 3), 1 / 3)), "are not one-hot"),
    "npz with several labels": (arrays(y=np.ones((4, 3), int)), "are not one-hot"),
    "npz with ten classes": (arrays(y=np.eye(10)[[0, 1, 2, 9]]), "has label 9"),
    "npz that claims ten gigabytes": (
        raw(lambda: npz(x=claiming("(60000000, 1, 6, 6)"), y=npy(Y))), "is not a whole .npz file",
    ),
    "npz that claims more than there is memory": (
        raw(lambda: npz(x=claiming("(60000000000000, 1, 6, 6)"), y=npy(Y))), "is not a whole .npz file",
    ),
    "npz that claims a negative length": (
        raw(lambda: npz(x=claiming("(-4, 1, 6, 6)"), y=npy(Y))), "is not a whole .npz file",
    ),
    "npz whose header is code": (
        raw(lambda: npz(x=claiming("__import__('os').getcwd()"), y=npy(Y))), "is not a whole .npz file",
    ),
    "folder missing": (lambda folder: folder_of(folder / "none"), "no folder"),
    "folder that is a file": (lambda folder: folder_of(Path(__file__)), "no folder"),
    "folder without images": (tree(empty_classes), "no images in subfolders"),
    "folder without classes": (tree(no_classes), "images lie in"),
    "folder of four classes": (tree(four_classes), "has 4 classes, net has 3"),
    "image without bytes": (image("1.png", b""), "cannot read the image"),
    "image cut": (image("1.png", lambda: png()[:40]), "cannot read the image"),
    "image that is text": (image("1.png", b"hello"), "cannot read the image"),
    "image with a broken sum": (image("1.png", lambda: png().replace(b"IDAT", b"IDAX")), "cannot read the image"),
    "image of gigabytes": (image("1.png", bomb_image), "cannot read the image"),
    "image of 16 bits": (image("1.png", lambda: png("I;16")), "more than 8 bits"),
    "image in float": (image("1.tiff", lambda: png("F", kind="tiff")), "more than 8 bits"),
    "image that is a dangling link": (tree(dangling), "cannot read the image"),
    "image whose name steers the terminal": (image("\x1b[2J\n.png", b""), "\ufffd[2J .png"),
    "image that is a folder": (tree(lambda folder: (folder / "a" / "x.png").mkdir()), "cannot read the image"),
    "image that is a pipe": (tree(lambda folder: os.mkfifo(folder / "a" / "x.png")), "cannot read the image"),
}  # fmt: skip

UNFIT: dict[str, tuple[Make, str]] = {
    "no inputs": (certified(X[:0]), "n >= 1"),
    "one input without a batch": (certified(X[0, 0, 0]), "expected inputs of shape (n, ...)"),
    "inputs of integers": (certified(EIGHT), "got torch.uint8; as pixels in [0, 1] they are x / 255"),
    "inputs of bool": (certified(X > 0.5), "got torch.bool"),
    "inputs of complex": (certified(X.astype(np.complex64)), "torch.complex64"),
    "inputs with NaN": (certified(with_value(np.nan)), "got NaN or inf"),
    "inputs with inf": (certified(with_value(np.inf)), "got NaN or inf"),
    "inputs of strings": (certified(X.astype(str)), "expected an array of numbers"),
    "inputs of objects": (certified(pickled()), "expected an array of numbers"),
    "ragged inputs": (certified([[1.0, 2.0], [3.0]]), "expected an array of numbers"),
    "no inputs at all": (certified(None), "expected an array of numbers"),
    "labels too few": (labelled(Y[:3]), "expected 4 integer or one-hot labels"),
    "labels too large": (labelled(Y + 1), "expected labels from 0 to 2"),
    "labels below zero": (labelled(Y - 1), "expected labels from 0 to 2"),
    "labels of float": (labelled(Y.astype(np.float32)), "expected 4 integer or one-hot labels, got torch.float32"),
    "labels of NaN": (labelled(np.full(4, np.nan)), "expected 4 integer or one-hot labels"),
    "labels of strings": (labelled(["cat", "dog", "cat", "dog"]), "expected an array of numbers"),
    "labels of complex": (labelled(Y.astype(np.complex64)), "expected 4 integer or one-hot labels"),
    "labels of nothing": (labelled([None] * 4), "expected an array of numbers"),
    "labels that are soft": (labelled(np.full((4, 3), 1 / 3)), "expected one-hot labels"),
    "labels of two ones": (labelled(np.array([[1, 1, 0]] * 4)), "expected one-hot labels"),
    "labels of NaN in one-hot rows": (labelled(np.full((4, 3), np.nan)), "expected one-hot labels"),
    "audit of pixels of 0 to 255": (audited(X * 255), "[0, 1]"),
    "audit of pixels a little above": (audited(with_value(1.0001)), "[0, 1]"),
    "audit with an empty range": (audited(domain=(1.0, 1.0)), "finite low < high"),
    "audit with a range backwards": (audited(domain=(1.0, 0.0)), "finite low < high"),
    "audit with a range of NaN": (audited(domain=(0.0, float("nan"))), "finite low < high"),
    "audit with a budget of zero": (audited(eps=[0]), "eps"),
    "audit with a negative budget": (audited(eps=[-1.0]), "eps"),
    "audit with a budget of NaN": (audited(eps=[float("nan")]), "eps"),
    "audit with an infinite budget": (audited(eps=[float("inf")]), "eps"),
    "audit with a budget in words": (audited(eps=["half"]), "eps"),
    "audit with no budget": (audited(eps=[]), "eps"),
}


def folder_of(path: Path) -> Act:
    return lambda: load_dataset(f"imagefolder:{path}", input_shape=SHAPE) and None


CASES = [
    *(Case(name, make) for name, make in RIGHT.items()),
    *(Case(name, make, LoadError, says) for name, (make, says) in REFUSED.items()),
    *(Case(name, make, BadThreat, says) for name, (make, says) in UNFIT.items()),
    *(
        Case(f"npz cut at {s:.0%}", functools.partial(cut, s), LoadError, "is not a whole")
        for s in (0.1, 0.4, 0.7, 0.9, 0.99)
    ),
    Case("inputs that overflow", certified(np.full(X.shape, 1.7e308)), LipauditError, "finite"),
]
