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
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.errors import BadThreat
from lipaudit.registry import Registry
from lipaudit.results.threat import Norm

Aim = Literal["closest", "radius", "largest", "eps"]
"""What an attack is given: only the input, the certified radius of each sample, the largest budget of interest for all,
or one such budget after the other. The order in which they run, too: what is broken closer need not be broken again."""


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
OWN = Library("lipaudit", "pyautoattack.autopgd_base", "lipaudit {}")
"""Where no library has an attack that works: with AutoAttack's projection onto an L1 ball in the box."""


@dataclass(frozen=True)
class Batch:
    """What an attack gets: correctly classified samples, in the unit box."""

    inputs: Tensor
    """float32, in [0, 1], shape `network.shape` behind the batch axis."""
    labels: Tensor
    """int64."""
    budget: Tensor | None
    """float64, one budget per sample, in unit-box units; None for `aim="closest"`."""
    seed: int
    norm: Norm
    """That budgets and distances are measured in."""


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
    norms: tuple[Norm, ...]
    """Those that it has a form for."""
    settings: Callable[[int, Norm], str]
    """Settings as a reader should see them, for so many classes."""
    passes: Callable[[int], Passes]
    """Its cost, for so many classes."""
    run: Run
    least_classes: int = 2
    least_side: int = 0
    """Needs images, of at least so many pixels each way; 0 if inputs of any shape will do."""
    fits: Callable[[int, int, Norm], bool] | None = None
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

_PLUS = ("fab-t", "fab", "apgd-ce-5", "apgd-dlr-5", "apgd-t", "square-5000")


def _presets(norm: Norm) -> dict[str, tuple[str, ...]]:
    """The presets of a norm other than L2, which DeepFool has no form for."""
    at_radius = "slide-at-radius" if norm == "l1" else "pgd-at-radius"
    # AutoAttack's standard version makes five starts in L1, and one in Linf.
    autoattack = ("fab-t", "apgd-ce-5" if norm == "l1" else "apgd-ce", "apgd-t", "square-5000")
    return {
        "none": (),
        "quick": ("fab-t-quick", at_radius, "apgd-ce"),
        "standard": (*autoattack, at_radius),
        "full": (*autoattack, at_radius),
        "autoattack": autoattack,
        "autoattack-plus": _PLUS,
    }


PRESETS: dict[Norm, dict[str, tuple[str, ...]]] = {
    "l2": {
        "none": (),
        "quick": ("deepfool", "fab-t-quick", "pgd-at-radius", "apgd-ce"),
        "standard": ("deepfool", "fab-t", "pgd-at-radius", "apgd-ce"),
        "full": ("deepfool", "fab-t", "pgd-at-radius", "apgd-ce", "apgd-t", "square"),
        "autoattack": ("fab-t", "apgd-ce", "apgd-t", "square-5000"),
        "autoattack-plus": _PLUS,
    },
    "linf": _presets("linf"),
    "l1": _presets("l1"),
}
"""Attacks of each norm by the names that `--attacks` takes. `quick`, `standard` and `full` look for the closest point,
within the certified radius and within budgets; the last two are the versions "standard" and "plus" of AutoAttack, with
FAB looking for the closest point instead of any within eps. Other norms than L2: `standard` is AutoAttack's standard
version at the largest budget, and `full` at every budget."""
AT_LARGEST: tuple[tuple[Norm, str], ...] = (("linf", "standard"), ("l1", "standard"))
"""Presets whose attacks get the largest budget instead of every one."""


def attack(
    name: str,
    *,
    library: Library,
    aim: Aim,
    norms: tuple[Norm, ...],
    settings: Callable[[int, Norm], str],
    passes: Callable[[int], Passes],
    least_classes: int = 2,
    least_side: int = 0,
    fits: Callable[[int, int, Norm], bool] | None = None,
    follows: bool = False,
) -> Callable[[Run], Attack]:
    """Decorator: puts the generator function below it into the table. See `Attack` for the arguments."""

    def add(run: Run) -> Attack:
        entry = Attack(name, library, aim, norms, settings, passes, run, least_classes, least_side, fits, follows)
        return ATTACKS.register(name)(entry)

    return add


def plan(attacks: str | Sequence[str], norm: Norm = "l2") -> tuple[Attack, ...]:
    """The attacks behind names and presets of a norm, each once, in the order in which they run.

    Attacks that look for the closest adversarial example go first: what they break at some distance, an
    attack with a budget need not break again. An attack that is asked for by its name stays in the plan if it has no
    form for the norm: its record says so. Raises `BadThreat` for an unknown name.
    """
    asked = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    found: dict[str, Attack] = {}
    for word in asked:
        for name in PRESETS[norm].get(word, (word,)):
            entry = _named(name)
            if entry.aim == "eps" and (norm, word) in AT_LARGEST:
                found.setdefault(name, replace(entry, aim="largest"))
            else:
                found[name] = entry
    aims = get_args(Aim)
    return tuple(sorted(found.values(), key=lambda entry: aims.index(entry.aim)))


def _named(name: str) -> Attack:
    if name in ATTACKS:
        return ATTACKS[name]
    presets = PRESETS["l2"]
    known = f"attacks: {', '.join(ATTACKS)}; presets: {', '.join(presets)}"
    close = difflib.get_close_matches(name, [*ATTACKS, *presets], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadThreat(f"expected names of attacks or presets, got {name!r}; {hint}there are {known}")
