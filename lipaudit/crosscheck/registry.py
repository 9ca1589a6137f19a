"""The table of attacks: what each one claims, costs and needs. `autoattack.py` and `art.py` fill it.

An attack is one generator function. It gets the network as it sees it (`UnitBox`) and a batch, and yields
claims: tensors of the batch's shape, row by row an input that it believes to be misclassified (a row equal to
its input is no claim). Nothing that it says counts; `verification.py` decides.

To add one: write the function below `@attack(...)` in one of them; every name can be asked for, presets or not.
Another library is one `Library`, and a module that harness.py imports.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.errors import BadThreat
from lipaudit.registry import Registry

Aim = Literal["closest", "radius", "eps"]
"""What an attack is given: only the input, the certified radius of each sample, or one budget for all."""


@dataclass(frozen=True)
class Library:
    """Where attacks come from."""

    distribution: str
    module: str
    """What is imported before one of them runs."""
    title: str
    """For a reader, with a place for the version."""
    checks: tuple[str, ...] = ()
    """The conditions of `attack_flags.py` that it looks for whatever the attack."""

    def __str__(self) -> str:
        return self.title.format(importlib.metadata.version(self.distribution))


AUTOATTACK = Library(
    "pyautoattack", "pyautoattack", "AutoAttack (pyautoattack {})", ("randomised", "probabilities", "dynamic")
)
ART = Library("adversarial-robustness-toolbox", "art.attacks.evasion", "ART {}")


@dataclass(frozen=True)
class Batch:
    """What an attack gets: correctly classified samples, in the unit box."""

    inputs: Tensor
    """float32, in [0, 1], shape `network.shape` behind the batch axis."""
    labels: Tensor
    """int64."""
    budget: Tensor | None
    """float64, one L2 budget per sample, in unit-box units; None for `aim="closest"`."""
    seed: int


@dataclass(frozen=True)
class Passes:
    """Most network passes that an attack takes per sample (and per eps)."""

    forward: int
    backward: int
    claims: int = 1
    """Tensors it yields: each is judged once in float64."""


Run = Callable[[UnitBox, Batch], Iterator[Tensor]]


@dataclass(frozen=True)
class Attack:
    """One line of the table. Its docstring, whose first line is its claim, is that of `run`."""

    name: str
    library: Library
    aim: Aim
    settings: Callable[[int], str]
    """Settings as a reader should see them, for so many classes."""
    passes: Callable[[int], Passes]
    """Its cost, for so many classes."""
    run: Run
    least_classes: int = 2
    least_side: int = 0
    """Needs images, of at least so many pixels each way; 0 if inputs of any shape will do."""
    fits: Callable[[int, int], bool] | None = None
    """Whether it runs on images of some height and width; None: on all."""
    follows: bool = False
    """Whether its library looks for zero gradients as it runs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", inspect.getdoc(self.run))

    def checks(self, classes: int) -> tuple[str, ...]:
        """The conditions of `attack_flags.py` that it looks for, or that show in what it finds."""
        blind = not self.passes(classes).backward
        names = (*self.library.checks, "zero gradients") if self.follows else self.library.checks
        return (*names, "black box") if blind else names

    def __call__(self, network: UnitBox, batch: Batch) -> Iterator[Tensor]:
        return self.run(network, batch)


ATTACKS: Registry[Attack] = Registry("attack")

PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "quick": ("deepfool", "fab-t-quick", "pgd-at-radius", "apgd-ce"),
    "standard": ("deepfool", "fab-t", "pgd-at-radius", "apgd-ce"),
    "full": ("deepfool", "fab-t", "pgd-at-radius", "apgd-ce", "apgd-t", "square"),
    "autoattack": ("fab-t", "apgd-ce", "apgd-t", "square-5000"),
    "autoattack-plus": ("fab-t", "fab", "apgd-ce-5", "apgd-dlr-5", "apgd-t", "square-5000"),
}
"""Attacks by the names that `--attacks` takes. `quick`, `standard` and `full` hold all three aims; the last two are
the versions "standard" and "plus" of AutoAttack, with FAB looking for the closest point instead of any within eps."""


def attack(
    name: str,
    *,
    library: Library,
    aim: Aim,
    settings: Callable[[int], str],
    passes: Callable[[int], Passes],
    least_classes: int = 2,
    least_side: int = 0,
    fits: Callable[[int, int], bool] | None = None,
    follows: bool = False,
) -> Callable[[Run], Attack]:
    """Decorator: puts the generator function below it into the table. See `Attack` for the arguments."""

    def add(run: Run) -> Attack:
        entry = Attack(name, library, aim, settings, passes, run, least_classes, least_side, fits, follows)
        return ATTACKS.register(name)(entry)

    return add


def plan(attacks: str | Sequence[str]) -> tuple[Attack, ...]:
    """The attacks behind names and presets, each once, in the order in which they run.

    Attacks that look for the closest adversarial example go first: what they break at some distance, an
    attack with a budget need not break again. Raises `BadThreat` for an unknown name.
    """
    asked = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    names = dict.fromkeys(name for word in asked for name in PRESETS.get(word, (word,)))
    for name in names:
        if name not in ATTACKS:
            known = f"attacks: {', '.join(ATTACKS)}; presets: {', '.join(PRESETS)}"
            close = difflib.get_close_matches(name, [*ATTACKS, *PRESETS], n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise BadThreat(f"expected names of attacks or presets, got {name!r}; {hint}there are {known}")
    aims = ("closest", "radius", "eps")
    return tuple(sorted((ATTACKS[name] for name in names), key=lambda entry: aims.index(entry.aim)))
