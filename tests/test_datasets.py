"""A data set name becomes images in [0,1] with labels, or one line that says what to do."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import serving
from PIL import Image

from lipaudit.errors import LoadError
from lipaudit.loading.datasets import (
    canonical,
    check_fit,
    for_model,
    known_datasets,
    load_dataset,
    open_dataset,
    outline,
    read_images,
)
from lipaudit.progress import Lines
from lipaudit.results.audit import ModelFacts

RANDOM = np.random.default_rng(0)


def refusal(name: str, **options: Any) -> str:
    """The message of the LoadError for this data set: one line."""
    with pytest.raises(LoadError) as caught:
        load_dataset(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def npz(folder: Path, **arrays: Any) -> str:
    """The name of a data set in a new .npz file."""
    np.savez(folder / "data.npz", **arrays)
    return f"npz:{folder / 'data.npz'}"


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


# --- digits


def test_digits_are_the_500_held_out_images() -> None:
    data = load_dataset("digits")

    assert data.inputs.shape == (500, 1, 8, 8)
    assert data.inputs.dtype == torch.float32
    assert data.labels.dtype == torch.int64
    assert (float(data.inputs.min()), float(data.inputs.max())) == (0.0, 1.0)
    assert sorted(data.labels.unique().tolist()) == list(range(10))
    assert data.index == tuple(range(500))
    assert (data.facts.available, data.facts.samples) == (500, 500)
    assert data.facts.levels == 16
    assert data.warnings == ()


# --- samples


def test_samples_are_drawn_without_replacement_in_ascending_order(tmp_path: Path) -> None:
    x, y = pixels(40, 1, 4, 4), np.arange(40)
    name = npz(tmp_path, x=x, y=y)

    data = load_dataset(name, samples=15, seed=3)

    assert len(set(data.index)) == 15
    assert list(data.index) == sorted(data.index)
    assert data.labels.tolist() == list(data.index)
    assert torch.equal(data.inputs, torch.from_numpy(x[list(data.index)]) / 255)
    assert (data.facts.samples, data.facts.available, data.facts.seed) == (15, 40, 3)


def test_the_seed_decides_which_samples(tmp_path: Path) -> None:
    name = npz(tmp_path, x=pixels(40, 1, 4, 4), y=np.arange(40))

    draws = [load_dataset(name, samples=15, seed=seed) for seed in (1, 1, 2)]

    assert draws[0].index == draws[1].index != draws[2].index
    assert draws[0].facts.sha256 == draws[1].facts.sha256 != draws[2].facts.sha256


def test_more_samples_than_there_are_gives_all_with_a_warning(tmp_path: Path) -> None:
    name = npz(tmp_path, x=pixels(5, 1, 4, 4), y=np.arange(5))

    data = load_dataset(name, samples=6)

    assert data.facts.samples == 5
    assert "6 images were asked for" in data.warnings[0]
    assert load_dataset(name, samples=5).warnings == ()


def test_no_samples_and_no_images_are_refused(tmp_path: Path) -> None:
    assert "--samples 1 or more" in refusal("npz:" + npz(tmp_path, x=pixels(5, 1, 4, 4), y=np.arange(5))[4:], samples=0)
    assert "no images" in refusal(npz(tmp_path, x=pixels(0, 1, 4, 4), y=np.arange(0)))


# --- npz


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 3, 5, 7), (6, 3, 5, 7)),
        ((6, 5, 7, 3), (6, 3, 5, 7)),
        ((6, 5, 7, 1), (6, 1, 5, 7)),
        ((6, 5, 7), (6, 1, 5, 7)),
    ],
)
def test_channels_first_last_or_none(shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path) -> None:
    x = pixels(*shape)

    data = load_dataset(npz(tmp_path, x=x, y=np.zeros(6, int)))

    assert data.inputs.shape == expected
    value = x[2, 1, 4, 3] if shape == expected else x[2, 4, 3].ravel()[min(1, x[2, 4, 3].size - 1)]
    channel = 1 if expected[1] == 3 else 0
    if shape != expected:
        assert data.inputs[2, channel, 4, 3] == torch.tensor(value) / 255
    else:
        assert data.inputs[2, 1, 4, 3] == torch.tensor(value) / 255


def test_doubtful_channels_are_asked_for_and_settled(tmp_path: Path) -> None:
    x = pixels(6, 3, 5, 3)
    name = npz(tmp_path, x=x, y=np.zeros(6, int))

    assert "--input-shape" in refusal(name)
    assert load_dataset(name, input_shape=(3, 5, 3)).inputs.shape == (6, 3, 5, 3)
    assert load_dataset(name, input_shape=(3, 3, 5)).inputs.shape == (6, 3, 3, 5)


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("inputs", "y"), ("x_test", "y_test")])
def test_common_array_names(keys: tuple[str, str], tmp_path: Path) -> None:
    data = load_dataset(npz(tmp_path, **{keys[0]: pixels(4, 3, 5, 5), keys[1]: np.arange(4)}))

    assert data.labels.tolist() == [0, 1, 2, 3]


def test_eight_bit_images_are_known_to_be_on_the_grid(tmp_path: Path) -> None:
    every_level = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)

    data = load_dataset(npz(tmp_path, x=every_level, y=np.zeros(1, int)))

    assert data.facts.levels == 255
    assert torch.equal((data.inputs * 255).round().to(torch.uint8), torch.from_numpy(every_level))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_in_the_unit_interval_stay_as_they_are(dtype: type, tmp_path: Path) -> None:
    x = RANDOM.random((4, 1, 5, 5)).astype(dtype)

    data = load_dataset(npz(tmp_path, x=x, y=np.arange(4)))

    assert torch.equal(data.inputs, torch.from_numpy(x.astype(np.float32)))
    assert data.facts.levels == 0


def test_one_hot_labels_tell_the_number_of_classes(tmp_path: Path) -> None:
    name = npz(tmp_path, x=pixels(3, 1, 4, 4), y=np.eye(5)[[4, 0, 2]])

    assert load_dataset(name).labels.tolist() == [4, 0, 2]
    assert open_dataset(name).classes == 5


X, Y = pixels(4, 3, 5, 5), np.arange(4)
BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "0 to 255": ({"x": X.astype(np.float32), "y": Y}, "divide them by 255"),
    "integers": ({"x": X.astype(np.int64), "y": Y}, "expected uint8"),
    "normalised": ({"x": RANDOM.normal(size=(4, 3, 5, 5)), "y": Y}, "--mean and --std"),
    "nan": ({"x": np.full((4, 3, 5, 5), np.nan), "y": Y}, "300 pixels are NaN"),
    "infinite": ({"x": np.where(X[0, 0, 0, 0] == X, np.inf, 0.5), "y": Y}, "NaN or infinite"),
    "slightly out": ({"x": np.full((4, 3, 5, 5), 1.0001), "y": Y}, "expected [0,1]"),
    "flat": ({"x": X.reshape(4, -1), "y": Y}, "images have shape (4, 75)"),
    "no labels": ({"x": X}, "no array y or labels"),
    "no images": ({"y": Y, "pictures": X}, "no array x or images"),
    "counts": ({"x": X, "y": Y[:3]}, "4 images but 3 labels"),
    "negative label": ({"x": X, "y": Y - 1}, "label -1"),
    "float labels": ({"x": X, "y": Y + 0.5}, "labels are float64"),
    "two-hot": ({"x": X, "y": np.ones((4, 3))}, "not one-hot"),
    "objects": ({"x": X, "y": np.array([None] * 4)}, "plain arrays"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_not_images_in_the_unit_interval_are_refused(case: str, tmp_path: Path) -> None:
    arrays, says = BAD_ARRAYS[case]

    assert says in refusal(npz(tmp_path, **arrays))


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    whole = Path(npz(tmp_path, x=X, y=Y).removeprefix("npz:")).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "pickled.npz").write_bytes(pickle.dumps({"x": X, "y": Y}))

    for name in ("cut.npz", "text.npz", "empty.npz", "single.npy", "pickled.npz"):
        assert "numpy.savez" in refusal(f"npz:{tmp_path / name}")
    assert "no file" in refusal(f"npz:{tmp_path / 'none.npz'}")
    assert "no file" in refusal("npz:")


# --- imagefolder


def save(folder: Path, array: np.ndarray) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder)


def test_a_folder_of_images_in_the_right_size_is_read_exactly(tmp_path: Path) -> None:
    a, b = pixels(8, 8, 3), pixels(8, 8, 3)
    save(tmp_path / "cat" / "1.png", a)
    save(tmp_path / "dog" / "deep" / "2.png", b)
    (tmp_path / "dog" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()

    data = load_dataset(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8))

    expected = np.stack([a, b]).transpose(0, 3, 1, 2)
    assert torch.equal(data.inputs, torch.from_numpy(expected.copy()) / 255)
    assert data.labels.tolist() == [0, 1]
    assert data.facts.class_names == ("cat", "dog", "empty")
    assert data.facts.levels == 255
    assert data.warnings == ()


def test_other_sizes_are_resized_about_the_centre_and_said(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 200  # only the middle third is left after the crop
    save(tmp_path / "a" / "wide.png", wide)
    save(tmp_path / "a" / "small.png", np.full((4, 4, 3), 77, dtype=np.uint8))
    save(tmp_path / "a" / "cropped.png", np.full((8, 9, 3), 50, dtype=np.uint8))

    data = load_dataset(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8))

    cropped, small, middle = (data.inputs * 255).round()
    assert (cropped == 50).all()
    assert (small == 77).all()
    assert (middle[:, :, 1:-1] == 200).all()
    assert "2 of 3 images were resized to 8 × 8" in data.warnings[0]


def test_grey_networks_get_grey_images(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", pixels(8, 8, 3))
    save(tmp_path / "a" / "2.png", pixels(8, 8))

    assert load_dataset(f"imagefolder:{tmp_path}", input_shape=(1, 8, 8)).inputs.shape == (2, 1, 8, 8)
    assert load_dataset(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8)).inputs.shape == (2, 3, 8, 8)


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "no folder" in refusal(f"imagefolder:{tmp_path / 'none'}", input_shape=(3, 8, 8))
    assert "no images in subfolders" in refusal(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG but no more")
    message = refusal(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8))
    assert "broken.png" in message
    assert "--input-shape" in refusal(f"imagefolder:{tmp_path}")
    assert "npz:FILE" in refusal(f"imagefolder:{tmp_path}", input_shape=(4, 8, 8))
    (tmp_path / "a" / "broken.png").unlink()
    save(tmp_path / "a" / "deep.png", pixels(8, 8).astype(np.uint16) * 256)
    assert "more than 8 bits" in refusal(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("parts", "others", "proposed"),
    [
        (["train/a", "val/a"], [], "val"),
        (["train/a", "train/b", "test/a", "validation/b"], [], "test"),
        (["Training_Set/a", "Test_Set/a"], [], "Test_Set"),
        (["train2017", "val2017"], [], "val2017"),
        (["val/a", "val/b"], ["annotations"], "val"),
        (["train/a", "val/a", "extra/a"], [], "val"),
    ],
)
def test_parts_of_a_data_set_are_not_taken_for_classes(
    parts: list[str], others: list[str], proposed: str, tmp_path: Path
) -> None:
    for part in parts:
        save(tmp_path / part / "1.png", pixels(8, 8, 3))
    for other in others:
        (tmp_path / other).mkdir()

    message = refusal(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8))

    assert message.endswith(f"--dataset imagefolder:{tmp_path / proposed}")


@pytest.mark.parametrize(
    "classes", [["train", "bus", "car"], ["tests", "testudo"], ["valley", "devil"], ["evaluation"]]
)
def test_classes_may_have_such_names(classes: list[str], tmp_path: Path) -> None:
    for name in classes:
        save(tmp_path / name / "1.png", pixels(8, 8, 3))

    assert load_dataset(f"imagefolder:{tmp_path}", input_shape=(3, 8, 8)).labels.tolist() == [*range(len(classes))]


def folders(root: Path, names: list[str]) -> str:
    for name in names:
        save(root / name / "1.png", pixels(8, 8, 3))
    return f"imagefolder:{root}"


KNOWN: dict[str, tuple[list[str], int, list[int]]] = {
    "as many": (["cat", "dog", "emu"], 3, [0, 1, 2]),
    "some numbers": (["3", "7"], 10, [3, 7]),
    "numbers with zeros in front": (["003", "010"], 1000, [3, 10]),
    "numbers in the order of letters": ([str(n) for n in range(12)], 12, [0, 1, 10, 11, *range(2, 10)]),
    "numbers from 1, as many": (["1", "2", "3"], 3, [0, 1, 2]),
    "WordNet ids": (["n01440764", "n02102040", "n15075141"], 1000, [0, 217, 999]),
    "WordNet ids, as many": (["n01440764", "n02102040"], 2, [0, 1]),
    "names of ImageNet": (["English_springer", "tench"], 1000, [217, 0]),
}


@pytest.mark.parametrize("case", KNOWN)
def test_folders_have_the_labels_of_the_network_where_their_names_say_them(case: str, tmp_path: Path) -> None:
    names, classes, labels = KNOWN[case]
    name = folders(tmp_path, names)
    facts = ModelFacts("net", "", "", 1, "trained", "", "", "", "float32", (3, 8, 8), classes, (), (), "")

    opened = for_model(open_dataset(name), name, facts)
    data = read_images(opened, name, samples=None, seed=0, input_shape=(3, 8, 8))
    check_fit(data, facts)

    assert data.labels.tolist() == labels
    assert [data.facts.class_names[label] for label in labels] == sorted(names)
    assert len(data.facts.class_names) == classes
    assert bool(data.warnings) == (case == "numbers in the order of letters")


@pytest.mark.parametrize(
    ("names", "classes", "says"),
    [
        (["cat", "dog"], 10, "which are they? name the folders by the numbers of the classes (0 to 9)"),
        ([str(n) for n in range(1, 11)], 10, "which are they?"),
        (["7", "10"], 10, "which are they?"),
        (["3", "03"], 10, "which are they?"),
        (["cat", "3"], 10, "which are they?"),
        (["n01440764", "n99999999"], 1000, "by their WordNet ids (n01440764)"),
        (["tench", "no such class"], 1000, "by their WordNet ids"),
        (["n01440764", "n02102040"], 100, "which are they?"),
        (["a", "b", "c", "d", "e"], 3, "5 folders (a, b, c, d, …), net has 3 classes; choose"),
    ],
)
def test_folders_that_do_not_say_their_classes_are_refused(
    names: list[str], classes: int, says: str, tmp_path: Path
) -> None:
    name = folders(tmp_path, names)
    facts = ModelFacts("net", "", "", 1, "trained", "", "", "", "float32", (3, 8, 8), classes, (), (), "")

    with pytest.raises(LoadError) as caught:
        for_model(open_dataset(name), name, facts)
    assert says in str(caught.value)


def test_a_named_data_set_does_not_fit_a_network_of_other_classes() -> None:
    facts = ModelFacts("net", "", "", 1, "trained", "", "", "", "float32", (1, 8, 8), 100, (), (), "")

    with pytest.raises(LoadError, match="digits has 10 classes, net has 100"):
        for_model(open_dataset("digits"), "digits", facts)
    with pytest.raises(LoadError, match="digits has 10 classes, net has 100"):
        check_fit(load_dataset("digits"), facts)


# --- CIFAR and MNIST


def cifar_binary(folder: Path, records: np.ndarray | None = None) -> np.ndarray:
    """Ten thousand random records in the layout of `test_batch.bin`."""
    if records is None:
        records = pixels(10_000, 3073)
        records[:, 0] %= 10
    (folder / "cifar-10-batches-bin").mkdir()
    records.tofile(folder / "cifar-10-batches-bin" / "test_batch.bin")
    return records


def test_cifar10_in_the_binary_layout(tmp_path: Path) -> None:
    records = cifar_binary(tmp_path)

    for folder in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        data = load_dataset("cifar10", data_dir=folder, samples=100, seed=1, offline=True)

        assert data.labels.tolist() == records[list(data.index), 0].tolist()
        # channel, row, column: the record is planes of red, green, blue
        assert float(data.inputs[5, 2, 3, 4] * 255) == records[data.index[5], 1 + 2 * 1024 + 3 * 32 + 4]
        assert data.facts.available == 10_000
        assert data.facts.class_names[3] == "cat"
        assert data.facts.levels == 255


def test_a_truncated_or_foreign_binary_is_refused(tmp_path: Path) -> None:
    records = cifar_binary(tmp_path)
    file = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(records.tobytes()[:-1])
    assert "expected 30,730,000 bytes, got 30,729,999" in refusal("cifar10", data_dir=tmp_path)
    records[7, 0] = 10
    file.write_bytes(records.tobytes())
    assert "label 10 found" in refusal("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_offline_names_the_file_and_the_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    message = refusal(name, offline=True)

    assert "--offline" in message
    assert ".gz" in message
    assert "--data-dir" in message


def test_a_data_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "no folder" in refusal("cifar10", data_dir=tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_cifar10_is_fetched_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    rows, labels = pixels(10_000, 3072), (np.arange(10_000) % 10).tolist()
    batch, meta = pickle.dumps({"data": rows, "labels": labels}), pickle.dumps({"label_names": list("0123456789")})
    archive = tar({"cifar-10-batches-py/test_batch": batch, "cifar-10-batches-py/batches.meta": meta})
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(batch)]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(meta)})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    said = io.StringIO()
    with serving({"/cifar-10-python.tar.gz": archive}) as server:
        monkeypatch.setattr(CIFAR10, "url", f"{server.url}/cifar-10-python.tar.gz")
        first = load_dataset("cifar10", data_dir=tmp_path, samples=50, progress=Lines(said))
    again = load_dataset("cifar10", data_dir=tmp_path, samples=50, offline=True)

    assert "fetching cifar-10-python.tar.gz" in said.getvalue()
    assert first.facts == again.facts
    assert first.labels.tolist() == [labels[i] for i in first.index]
    expected = rows[list(first.index)].reshape(-1, 3, 32, 32)
    assert torch.equal(first.inputs, torch.from_numpy(expected) / 255)


def idx(array: np.ndarray) -> bytes:
    """The file format of MNIST."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_is_fetched_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    x, y = pixels(10_000, 28, 28), RANDOM.integers(0, 10, 10_000, dtype=np.uint8)
    plain = {
        "train-images-idx3-ubyte": x[:1],
        "train-labels-idx1-ubyte": y[:1],
        "t10k-images-idx3-ubyte": x,
        "t10k-labels-idx1-ubyte": y,
    }
    files = {f"{name}.gz": gzip.compress(idx(array), 1) for name, array in plain.items()}
    monkeypatch.setattr(MNIST, "resources", [(name, md5(content)) for name, content in files.items()])
    with serving({f"/{name}": content for name, content in files.items()}) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"{server.url}/gone/", f"{server.url}/"])
        data = load_dataset("mnist", data_dir=tmp_path, samples=20)

    assert data.labels.tolist() == y[list(data.index)].tolist()
    assert torch.equal(data.inputs[:, 0], torch.from_numpy(x[list(data.index)]) / 255)
    assert load_dataset("mnist", data_dir=tmp_path, samples=20, offline=True).facts == data.facts


# --- names and fit


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar11", "cifar10"),
        ("imagenet", "imagefolder:DIR"),
        ("cifar10:x", "--data-dir DIR"),
        ("", "digits"),
        ("CIFAR-11", "did you mean cifar10?"),
        ("fashion", "did you mean fashion-mnist?"),
        ("imagefolder", "a path behind it"),
        ("./val", "did you mean imagefolder:./val?"),
        ("val/images.npz", "did you mean npz:val/images.npz?"),
        ("..", "did you mean imagefolder:..?"),
    ],
)
def test_an_unknown_data_set_is_refused(name: str, says: str) -> None:
    message = refusal(name)

    assert f"unknown data set '{name}'" in message
    assert says in message


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("CIFAR-10", "cifar10"),
        ("Cifar 100", "cifar100"),
        ("FashionMNIST", "fashion-mnist"),
        ("fashion_mnist", "fashion-mnist"),
        ("DIGITS", "digits"),
        ("ImageFolder:My/Val", "imagefolder:My/Val"),
        ("NPZ:a.npz", "npz:a.npz"),
    ],
)
def test_case_and_hyphens_of_names_do_not_matter(name: str, known: str) -> None:
    assert canonical(name) == known


def test_a_folder_for_a_file_and_a_file_for_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert f"did you mean imagefolder:{tmp_path}?" in refusal(f"npz:{tmp_path}")
    assert "did you mean npz:data.npz?" in refusal("imagefolder:data.npz")
    assert load_dataset("Digits", samples=2).facts.name == "digits"


def test_outlines_agree_with_the_data() -> None:
    data = load_dataset("digits")

    assert outline("digits").shape == tuple(data.inputs.shape[1:])
    assert outline("digits").available == len(data.inputs)
    assert outline("npz:x.npz").shape is None


def test_every_data_set_is_in_the_table() -> None:
    table = {known.name: known for known in known_datasets()}

    assert list(table) == ["digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "imagefolder:DIR", "npz:FILE"]
    assert table["digits"].cached


def facts(**changes: Any) -> ModelFacts:
    base: dict[str, Any] = {
        "name": "net", "source": "", "architecture": "", "parameters": 1, "weights": "trained", "weights_sha256": "",
        "weights_file": "", "weights_file_sha256": "", "dtype": "float32", "input_shape": (3, 5, 5), "classes": 4,
    }  # fmt: skip
    return ModelFacts(**{**base, **changes})


def test_data_and_model_must_fit(tmp_path: Path) -> None:
    data = load_dataset(npz(tmp_path, x=X, y=Y))

    check_fit(data, facts())
    with pytest.raises(LoadError, match=r"images of shape \(3, 5, 5\), net takes \(3, 6, 6\)"):
        check_fit(data, facts(input_shape=(3, 6, 6)))
    with pytest.raises(LoadError, match="has label 3, net has 3 classes"):
        check_fit(data, facts(classes=3))
