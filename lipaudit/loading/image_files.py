"""The user's own images: a folder with one subfolder per class, or arrays in an .npz file."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from lipaudit.certification.inputs import as_pixels_remedy
from lipaudit.errors import LoadError
from lipaudit.loading.classes import WORDNET
from lipaudit.loading.dataset_registry import DATASETS, Batch, ImageSet, Wanted
from lipaudit.progress import Progress
from lipaudit.results.formatting import clean

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
IMAGE_KEYS = ("x", "images", "inputs", "x_test")
PART = re.compile(
    r"(train|training|val|valid|validation|test|testing|dev|eval|holdout)([-_ ]?(set|data|images?|imgs?|split|\d+))*",
    re.IGNORECASE,
)
"""Names of the parts of a data set: `val`, `test_images`, `train2017`."""
LABEL_KEYS = ("y", "labels", "targets", "y_test")


@DATASETS.register("imagefolder")
def open_imagefolder(wanted: Wanted) -> ImageSet:
    """Image files in a folder with one subfolder per class, resized and cropped to what the network takes."""
    folder = Path(wanted.argument).expanduser()
    if not wanted.argument or not folder.is_dir():
        hint = f"did you mean npz:{wanted.argument}? " if folder.suffix in (".npz", ".npy") else ""
        raise LoadError(f"no folder {wanted.argument!r}; {hint}expected imagefolder:DIR with a subfolder per class")
    names = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    _refuse_parts(folder, names)
    found = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not found:
        here = sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir())
        loose = f"{here} images lie in {folder} itself" if here else f"no images in subfolders of {folder}"
        raise LoadError(f"{loose}; expected a folder for each class, {folder}/CLASS/IMAGE.png")
    return ImageSet(
        split=folder.name,
        source=f"image files, one folder per class ({len(names)} classes)",
        available=len(found),
        shape=None,
        # Of WordNet's, a folder may hold some: how many classes the network has is not for them to say.
        classes=None if all(map(WORDNET.fullmatch, names)) else len(names),
        class_names=tuple(names),
        read=lambda index, shape: _read_files([found[i] for i in index], shape or wanted.input_shape, wanted.progress),
    )


def _refuse_parts(folder: Path, names: list[str]) -> None:
    """Refuse a folder of the parts of a data set, which would be taken for its classes."""
    if not any(map(PART.fullmatch, names)):
        return
    holding = [name for name in names if any(file.suffix.lower() in SUFFIXES for file in (folder / name).rglob("*"))]
    parts = [name for name in holding if PART.fullmatch(name)]
    if not parts or (len(parts) == 1 and len(holding) > 1):
        return
    held_out = min(parts, key=lambda name: name.lower().startswith("tr"))
    raise LoadError(
        f"{clean(folder, 300)} holds parts of a data set ({', '.join(map(clean, parts))}), expected a folder for each "
        f"class; audit one of them: --dataset imagefolder:{clean(folder / held_out, 300)}"
    )


@DATASETS.register("npz")
def open_npz(wanted: Wanted) -> ImageSet:
    """Arrays `x` (uint8, or floats in [0,1]) and `y` (integers, or one-hot) of an .npz file."""
    path = Path(wanted.argument).expanduser()
    arrays = _read_npz(path)
    x = _channels_first(_pick(arrays, IMAGE_KEYS, path), wanted.input_shape, path)
    y, classes = _integer_labels(_pick(arrays, LABEL_KEYS, path), path)
    if len(x) != len(y):
        raise LoadError(f"{path}: {len(x)} images but {len(y)} labels; expected one label per image")
    _check_range(x, path)
    return ImageSet(
        split="all of the file",
        source=path.name,
        available=len(x),
        shape=tuple(x.shape[1:]),
        classes=classes,
        read=lambda index, _: Batch(x[index], y[index]),
    )


def _read_files(files: list[tuple[Path, int]], shape: tuple[int, ...] | None, progress: Progress) -> Batch:
    if shape is None:
        raise LoadError("images of a folder take the network's input shape; add --input-shape 3,224,224")
    channels, height, width = shape
    if channels not in (1, 3):
        raise LoadError(f"image files have 1 or 3 channels, the network takes {channels}; use npz:FILE")
    pixels = np.empty((len(files), channels, height, width), dtype=np.uint8)
    resized = 0
    progress.start("read images", len(files))
    for row, (file, _) in enumerate(files):
        pixels[row], changed = _read_image(file, channels, height, width)
        resized += changed
        progress.advance()
    progress.finish(f"{resized} resized" if resized else "")
    warning = (
        f"{resized} of {len(files)} images were resized to {height} × {width} and rounded to 8 bits again: "
        "perturbations are measured on the resized pixels, not on those of the files"
    )
    return Batch(pixels, np.array([label for _, label in files]), (warning,) if resized else ())


def _read_image(file: Path, channels: int, height: int, width: int) -> tuple[np.ndarray, bool]:
    """(c, h, w) uint8, scaled to cover the frame and cropped about its centre; and whether it was scaled."""
    from PIL import Image, UnidentifiedImageError

    if file.exists() and not file.is_file():
        raise LoadError(f"cannot read the image {clean(file, 300)}: it is no file; remove it")
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):
                raise LoadError(f"{file} has more than 8 bits per channel; convert it, or use npz:FILE with floats")
            image = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LoadError(
            f"cannot read the image {clean(file, 300)}: {clean(error, 200)}; remove or repair it"
        ) from error
    scale = max(width / image.width, height / image.height)
    if scale != 1:
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)), scale != 1


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        hint = f"did you mean imagefolder:{path}? " if path.is_dir() and str(path) != "." else ""
        raise LoadError(f"no file {str(path)!r}; {hint}expected --dataset npz:FILE with arrays x and y")
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise LoadError(f"{path} holds a single array, expected arrays x and y; write it with numpy.savez")
            arrays = {key: archive[key] for key in archive.files if key in IMAGE_KEYS + LABEL_KEYS}
    except (ValueError, OSError, EOFError, MemoryError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
        raise LoadError(
            f"{path} is not a whole .npz file of plain arrays ({reason}); write it with numpy.savez"
        ) from error
    native = {key: array.astype(array.dtype.newbyteorder("="), copy=False) for key, array in arrays.items()}
    # What torch has no type for is rounded to the next that it has.
    return {key: a.astype(np.float64) if a.dtype == np.longdouble else a for key, a in native.items()}


def _pick(arrays: dict[str, np.ndarray], keys: tuple[str, ...], path: Path) -> np.ndarray:
    key = next((key for key in keys if key in arrays), None)
    if key is None:
        raise LoadError(f"{path} has no array {' or '.join(keys)}; write it with numpy.savez(FILE, x=images, y=labels)")
    return arrays[key]


def _channels_first(x: np.ndarray, shape: tuple[int, ...] | None, path: Path) -> np.ndarray:
    """(n, c, h, w) from (n, h, w), channels first or last; `shape` (c, h, w) settles a doubtful case."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise LoadError(f"{path}: images have shape {x.shape}, expected (n, c, h, w), (n, h, w, c) or (n, h, w)")
    last = x.transpose(0, 3, 1, 2)
    if shape is not None and shape in (x.shape[1:], last.shape[1:]):
        return x if x.shape[1:] == shape else last
    first_fits, last_fits = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if first_fits == last_fits:
        raise LoadError(f"{path}: which axis of {x.shape} is the channels? say it by --input-shape c,h,w")
    return x if first_fits else last


def _integer_labels(y: np.ndarray, path: Path) -> tuple[np.ndarray, int | None]:
    """(n,) int64 labels, and the number of classes if one-hot rows tell it."""
    if y.ndim == 2 and y.shape[1] > 1:
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise LoadError(f"{path}: labels of shape {y.shape} are not one-hot; expected one 1 per row, or integers")
        return y.argmax(axis=1).astype(np.int64), y.shape[1]
    y = y.reshape(len(y), -1)[:, 0] if y.ndim == 2 else y
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise LoadError(
            f"{path}: labels are {y.dtype} of shape {y.shape}, expected integers (n,) or one-hot (n, classes)"
        )
    if len(y) and y.min() < 0:
        raise LoadError(f"{path}: label {y.min()} found, expected 0, 1, 2, …; drop unlabelled images")
    if len(y) and y.max() > np.iinfo(np.int64).max:
        raise LoadError(f"{path}: label {y.max()} found, expected 0, 1, 2, …; number the classes from 0")
    return y.astype(np.int64), None


def _check_range(x: np.ndarray, path: Path) -> None:
    """Refuse whatever is not uint8, or floats in [0,1]."""
    if x.dtype == np.uint8 or not x.size:
        return
    if not np.issubdtype(x.dtype, np.floating):
        whole = np.issubdtype(x.dtype, np.integer) or x.dtype == bool
        remedy = f"{as_pixels_remedy(x)}, store that" if whole else "store x.astype('float32')"
        raise LoadError(f"{path}: images are {x.dtype}, expected uint8 or floats in [0,1]; {remedy}")
    low, high = x.min(), x.max()
    if not np.isfinite([low, high]).all():
        raise LoadError(f"{path}: {int((~np.isfinite(x)).sum())} pixels are NaN or infinite, expected [0,1]; repair it")
    if low < 0:
        raise LoadError(
            f"{path}: pixels go from {low:.4g} to {high:.4g}, expected [0,1]; if they are normalised, store "
            "them before normalisation and give --mean and --std"
        )
    if high > 1:
        remedy = "divide them by 255, or store uint8" if high <= 255 else "divide them by their largest possible value"
        raise LoadError(f"{path}: pixels go up to {high:.4g}, expected [0,1]; {remedy}")
