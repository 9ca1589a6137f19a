"""What the training examples share: images, the loop with checkpoints, and what a trained network is worth.

Each example is a file of its own (`train_aol.py`, `train_gram.py`, `train_lipgrid.py`, `train_four_bounds.py`): a
network, a loss, and a call of `run`. It prints clean accuracy, certified accuracy and seconds a step. The certified
radii are proved by `lipaudit.certify` from the weights that come out; nothing of the training is believed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

import lipaudit
from lipaudit.cli.terminal import terminal_progress
from lipaudit.errors import LoadError
from lipaudit.loading.datasets import load_dataset
from lipaudit.progress import Progress, Silent
from lipaudit.zoo import digits_split

EPS = (36 / 255, 0.5, 1.0)
"""L2 radii of the table, in units of [0, 1] pixels."""
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
HEADER = ("network", "clean", *(f"certified at {eps:.3g}" for eps in EPS), "network bound", "s a step", "CPU s")

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Penalty = Callable[[nn.Module, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Images:
    """Training and test images (n, c, h, w), float32 in [0, 1], and their labels."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    clean: float
    certified: tuple[float, ...]
    bound: float
    step: float
    cpu: float

    def texts(self) -> tuple[str, ...]:
        shares = [f"{100 * share:.2f} %" for share in (self.clean, *self.certified)]
        return (self.name, *shares, f"{self.bound:.4g}", f"{self.step:.3f}", f"{self.cpu:.0f}")


def arguments(about: str | None, *, weight: float | None = None, **defaults: object) -> argparse.Namespace:
    """The options that all examples have, and the weight of a penalty; `defaults` are an example's own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="digits", help="'digits' (bundled), a folder with *train*.npz and *test*.npz, or of CIFAR-10")
    add("--train-images", type=int, help="so many of the training images only")
    add("--test-images", type=int, help="so many of the test images only")
    add("--validate", type=int, default=0, help="hold out so many training images, and measure on them instead")
    add("--epochs", type=int, default=40)
    add("--batch", type=int, default=256)
    add("--learning-rate", type=float, default=1e-2)
    add("--width", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    add("--dtype", choices=list(DTYPES), default="float32", help="bfloat16: float32 weights under autocast")
    add("--checkpoint", type=Path, help="written after every epoch, and resumed from if it is there")
    add("--progress", choices=["auto", "plain", "off"], default="auto")
    if weight is not None:
        add("--weight", type=float, default=weight, help="of the penalty")
        add("--refresh", type=int, default=1, help="calls between two looks at all frequencies")
    parser.set_defaults(**defaults)
    return parser.parse_args()


def read(options: argparse.Namespace) -> Images:
    """The images that --data names, cut to what the other options ask for. Raises `LoadError`."""
    if options.data == "digits":
        x, y, x_test, y_test = (torch.from_numpy(part) for part in digits_split())
    elif (Path(options.data) / "cifar-10-batches-py").is_dir():
        (x, y), (x_test, y_test) = (_cifar(Path(options.data), train) for train in (True, False))
    else:
        (x, y), (x_test, y_test) = (_arrays(Path(options.data), part) for part in ("train", "test"))
    if options.validate:
        x, x_test = x[: -options.validate], x[-options.validate :]
        y, y_test = y[: -options.validate], y[-options.validate :]
    few, some = slice(options.train_images), slice(options.test_images)
    return Images(x[few], y[few], x_test[some], y_test[some])


def _arrays(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    found = sorted(folder.glob(f"*{part}*.npz"))
    if len(found) != 1:
        raise LoadError(f"expected one file *{part}*.npz in {folder}, got {len(found)}; see --help")
    data = load_dataset(f"npz:{found[0]}")
    return data.inputs, data.labels


def _cifar(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(folder), train=train)
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).float() / 255, torch.tensor(data.targets)


class Training:
    """A network on its way: everything that a checkpoint has to hold."""

    def __init__(self, model: nn.Module, images: Images, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        wide = torch.float64 if options.dtype == "float64" else torch.float32
        self.model = model.to(self.device, wide, memory_format=torch.channels_last)
        self.x, self.y = images.x.to(self.device, wide), images.y.to(self.device)
        self.order = torch.Generator().manual_seed(options.seed)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate)
        total = options.epochs * -(-len(self.x) // options.batch)
        rate = options.learning_rate
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rate, total_steps=total, pct_start=0.15)
        self.epoch, self.seconds, self.cpu, self.steps = 0, 0.0, 0.0, 0

    def resume(self) -> bool:
        """Goes on where the checkpoint stopped, if there is one. Raises `LoadError` if it is of another run."""
        file = self.options.checkpoint
        if file is None or not file.exists():
            return False
        state = torch.load(file, map_location=self.device, weights_only=True)
        if state["recipe"] != self.recipe:
            raise LoadError(f"{file} is of another run: {state['recipe']}, now {self.recipe}; name another file")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.order.set_state(state["order"].cpu())
        self.epoch, self.seconds, self.cpu, self.steps = state["so far"]
        return True

    @property
    def recipe(self) -> str:
        """Every option that decides what comes out."""
        free = ("device", "threads", "checkpoint", "progress", "test_images")
        return ", ".join(f"{name} {value}" for name, value in sorted(vars(self.options).items()) if name not in free)

    def save(self) -> None:
        if self.options.checkpoint is None:
            return
        state = {
            "recipe": self.recipe,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order.get_state(),
            "so far": (self.epoch, self.seconds, self.cpu, self.steps),
        }
        partly = self.options.checkpoint.with_suffix(".partly")
        torch.save(state, partly)
        partly.replace(self.options.checkpoint)

    def run(self, loss: Loss, progress: Progress) -> None:
        """The epochs that are left."""
        batches = -(-len(self.x) // self.options.batch)
        progress.start("training", (self.options.epochs - self.epoch) * batches)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.dtype == "bfloat16")
        self.model.train()
        while self.epoch < self.options.epochs:
            began, cpu = time.perf_counter(), time.process_time()
            total = 0.0
            for rows in torch.randperm(len(self.x), generator=self.order).split(self.options.batch):
                rows = rows.to(self.device)
                with autocast:
                    value = loss(self.model, self.x[rows], self.y[rows])
                self.optimiser.zero_grad(set_to_none=True)
                value.backward()
                self.optimiser.step()
                self.schedule.step()
                total += value.item() * len(rows)
                progress.advance(note=f"epoch {self.epoch + 1}")
            self.epoch, self.steps = self.epoch + 1, self.steps + batches
            self.seconds += time.perf_counter() - began
            self.cpu += time.process_time() - cpu
            self.save()
            progress.say(f"epoch {self.epoch}/{self.options.epochs}  loss {total / len(self.x):.4f}")
        progress.finish(f"{self.cpu:.0f} CPU seconds")
        self.model.eval()


def run(name: str, model: nn.Module, loss: Loss, images: Images, options: argparse.Namespace) -> Row:
    """Trains the model in place (or resumes), proves what it is worth on the test images, and says both."""
    with terminal_progress(options.progress, sys.stderr) as progress:
        training = Training(model, images, options)
        if training.resume():
            progress.say(f"resumed after epoch {training.epoch} from {options.checkpoint}")
        training.run(loss, progress)
        row = scored(name, model, images, training)
    tell("  ".join(f"{head} {text}" for head, text in zip(HEADER[1:], row.texts()[1:], strict=True)))
    return row


def scored(name: str, model: nn.Module, images: Images, training: Training) -> Row:
    """Clean accuracy and proved certified accuracy on the test images, and the network bound."""
    model = lipaudit.nn.export(model.eval()).to(memory_format=torch.contiguous_format).cpu().float()
    certificates = lipaudit.certify(model, images.x_test, images.y_test, local="off", progress=Silent())
    right = certificates.prediction == images.y_test.numpy()
    return Row(
        name=name,
        clean=float(right.mean()),
        certified=tuple(float((right & (certificates.radius > eps)).mean()) for eps in EPS),
        bound=lipaudit.bound(model, images.shape).value,
        step=training.seconds / max(training.steps, 1),
        cpu=training.cpu,
    )


def compare(name: str, build: Callable[[Images], nn.Module], penalty: Penalty, options: argparse.Namespace) -> None:
    """The same network from the same start, by cross entropy alone and with a penalty added; prints the table."""
    images, rows = prepare(options), []
    for title, weight in (("cross entropy", 0.0), (name, options.weight)):
        torch.manual_seed(options.seed)
        own = argparse.Namespace(**{**vars(options), "weight": weight})
        if options.checkpoint is not None:
            own.checkpoint = options.checkpoint.with_stem(f"{options.checkpoint.stem}-{weight:g}")
        rows.append(run(title, build(images), partial(_penalised, penalty, weight, images.shape), images, own))
    tell(table(rows))
    without, regularised = rows
    points = 100 * (without.clean - regularised.clean)
    tell(f"bound {without.bound / regularised.bound:.0f} times smaller, {points:.2f} points of clean accuracy less")


def _penalised(
    penalty: Penalty, weight: float, shape: tuple[int, ...], model: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    error = nn.functional.cross_entropy(model(x).float(), y)
    return error + weight * penalty(model, shape) if weight else error


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [HEADER, ("---", *("---:" for _ in HEADER[1:])), *(row.texts() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tell(text: str, stream: TextIO = sys.stdout) -> None:
    stream.write(f"{text}\n")
    stream.flush()


def prepare(options: argparse.Namespace) -> Images:
    """Threads, seeds and images."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    say = partial(tell, stream=sys.stderr)
    images = read(options)
    say(f"torch {torch.__version__} on {options.device}, threads: {options.threads}, seed {options.seed}")
    say(f"{len(images.x)} training and {len(images.x_test)} test images of shape {images.shape}")
    return images
