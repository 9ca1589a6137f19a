"""Every setting of an audit, defined once.

To add one, add a field: to `Settings` if `lipaudit.audit` takes it (then the command line, the pytest plugin and ART
take it as well), to `RunSettings` if it belongs to `lipaudit run` only. Nothing else repeats it; search for the field's
name to find where it is used. From the field follow

    the option of the command line, its help and completion      cli/options.py
    `LIPAUDIT_*` and the settings file                            cli/options.py, cli/config_file.py
    what `--resume` may change                                    cli/resume.py
    the keywords of `audit`, `certify`, `bound`                   api.py
    the key of a journal and `Audit.config`                       runs/audit.py
    what shards must share                                        runs/shards.py
    what `compare` calls a difference of effort                   verdict/comparison.py

by what the field says that it affects (`Affects`). This module imports no torch.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from lipaudit.errors import BadThreat, ConfigError, RenamedWarning
from lipaudit.results.bounds import Arithmetic
from lipaudit.results.formats import FORMATS
from lipaudit.results.formatting import clean
from lipaudit.results.threat import DEFAULT_EPS, NORMS, Box, Budgets, Norm, comma_list, norms_of

Affects = Literal["question", "proof", "attack", "place", "output"]
"""What changes with a setting:
question   what is asked: which network, images, budgets, arithmetic; results that differ in it are not comparable
proof      how much effort proofs get
attack     how much effort attacks and estimates get
place      where files lie and where work runs; results are the same
output     how results are shown; a resumed run may change it
"""

Local = Literal["off", "auto", "on", "thorough"]
GlobalMethod = Literal["best", "product", "ellipsoid"]
LETTERS: dict[str, Arithmetic] = {"R": "real", "F": "native", "D": "float64"}
"""What each arithmetic was called before."""

NETWORK, DATA, PROOF, ATTACKS = "Network", "Data", "Proof", "Attacks"
ESTIMATES, SHARDS, OUTPUT, RUN = "Estimates (no guarantee)", "Shards", "Output", "This run"
GROUPS = (NETWORK, DATA, PROOF, ATTACKS, ESTIMATES, SHARDS, OUTPUT, RUN)
"""Headings of `lipaudit run --help`, in order."""

MODELS = ("digits-aol", "digits-cnn", "resnet18", "timm:", "torchvision:")
DATASETS = ("digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "imagefolder:", "npz:")
"""What a shell proposes. The tables that decide need torch, which a shell has no time for; a test holds them equal."""


# --- kinds of values


@dataclass(frozen=True)
class Text:
    """A text; `propose` is what a shell completes, `several` times where the option may be repeated."""

    propose: tuple[str, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class Whole:
    """A whole number, `least` or more."""

    least: int


@dataclass(frozen=True)
class Number:
    """A finite number above 0."""


@dataclass(frozen=True)
class Flag:
    """True or false; `count` where repetition says more: -v, -vv."""

    count: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of these names; `others` where the library takes more of them, and checks them where it uses them."""

    names: tuple[str, ...]
    others: bool = False


@dataclass(frozen=True)
class File:
    """A path."""


@dataclass(frozen=True)
class Parsed:
    """What `parse` makes of a text; it raises `ValueError` that says what was expected."""

    parse: Callable[[str], Any]
    propose: tuple[str, ...] = ()


Kind = Text | Whole | Number | Flag | OneOf | File | Parsed


def numbers(text: str) -> tuple[float, ...] | str:
    """`0.5,0.4,0.3` -> (0.5, 0.4, 0.3); `none` stays."""
    if text == "none":
        return text
    try:
        return tuple(float(Fraction(part)) for part in comma_list(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected numbers such as 0.491,0.482,0.447, or none; got {text!r}") from None


def shape(text: str) -> tuple[int, ...]:
    """`3,32,32` -> (3, 32, 32)."""
    if not re.fullmatch(r"[1-9]\d*([,x][1-9]\d*){2}", text):
        raise ValueError(f"expected channels,height,width such as 3,32,32; got {text!r}")
    return tuple(map(int, re.split("[,x]", text)))


def duration(text: str) -> float:
    """`90`, `90s`, `10m`, `2h` -> seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", text)
    if found is None or not float(found[1]) > 0:
        raise ValueError(f"expected a time such as 90, 90s, 10m or 2h; got {text!r}")
    return float(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}[found[2]]


def part_of(text: str) -> tuple[int, int]:
    """`3/8` -> (3, 8)."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"expected a shard such as 3/8, from 1/8 to 8/8, got {text!r}")
    return int(number), int(of)


def formats(text: str) -> tuple[str, ...]:
    """`json,html` -> ("json", "html")."""
    chosen = tuple(dict.fromkeys(comma_list(text)))
    if not chosen or not set(chosen) <= FORMATS.keys():
        raise ValueError(f"expected some of {','.join(FORMATS)}; got {text!r}")
    return chosen


def measures(text: str) -> tuple[Norm, ...]:
    """`linf,l2` -> ("linf", "l2")."""
    try:
        return norms_of(text)
    except BadThreat as error:
        raise ValueError(str(error)) from None


def words(text: str) -> tuple[str, ...]:
    """`a,b` -> ("a", "b")."""
    return comma_list(text)


# --- options


@dataclass(frozen=True)
class Was:
    """An older name of a setting, still understood, with what its values are called now."""

    name: str
    values: Mapping[Any, Any]
    kind: Kind


@dataclass(frozen=True)
class Option:
    """All that is known of a setting. `name` and `default` are those of the field."""

    help: str
    group: str
    affects: Affects
    kind: Kind
    flag: str
    """As it is typed, where that is not the name: `--gate`."""
    short: str
    metavar: str | None
    shown: str
    """The default in words, where the value itself does not say it."""
    variable: bool
    """Whether `LIPAUDIT_*` sets it."""
    in_files: bool
    """Whether the settings file sets it, under [run]."""
    library_only: bool
    """Whether the command line, with its environment and file, does not have it."""
    was: Was | None
    name: str = ""
    default: Any = None

    @property
    def typed(self) -> str:
        """As it is typed on the command line and, without dashes, in the settings file."""
        return self.flag or f"--{self.name.replace('_', '-')}"


def option(
    default: Any,
    help: str,  # noqa: A002  (as in click)
    group: str,
    affects: Affects,
    kind: Kind | None = None,
    **more: Any,
) -> Any:
    """The field of a setting; `more` are further fields of `Option`."""
    known: dict[str, Any] = {"flag": "", "short": "", "metavar": None, "shown": "", "was": None}
    known |= {"variable": True, "in_files": True, "library_only": False, "kind": kind or Text(), **more}
    return field(default=default, metadata={"option": Option(help, group, affects, **known)})


@dataclass(frozen=True)
class Settings:
    """How `lipaudit.audit` audits. Units of `eps`, `smoothing` and `domain` are those of the inputs.

    Raises `ConfigError` for a value that a setting does not have.
    """

    norms: str = option(
        "all",
        "Methods for layer norms: all (every cheap method, for the report), best (those that can win), tight (exact "
        "padding in small layers; takes minutes).",
        PROOF,
        "proof",
        OneOf(("all", "best", "tight"), others=True),
        was=Was("tight", {True: "tight", False: "all"}, Flag()),
    )
    global_method: GlobalMethod = option(
        "best",
        "How layers are put together: product (of their bounds), ellipsoid (several with their activations at once), "
        "best (the smaller one).",
        PROOF,
        "proof",
        OneOf(("best", "product", "ellipsoid")),
    )
    local: Local = option(
        "auto",
        "Per-image radii: auto (60 s budget), on (all images), thorough (slow, larger radii), off.",
        PROOF,
        "proof",
        OneOf(("auto", "on", "thorough", "off")),
    )
    local_samples: int | None = option(
        None, "Maximum number of images for --local.", PROOF, "proof", Whole(1), metavar="N"
    )
    arithmetic: Arithmetic = option(
        "real",
        "Arithmetic that certificates hold for: real (exact), native (the network as executed) or float64. All three "
        "are shown.",
        PROOF,
        "question",
        OneOf(tuple(LETTERS.values())),
        was=Was("promise", LETTERS, OneOf(tuple(LETTERS))),
    )
    claimed_lipschitz: float | None = option(
        None,
        "Claimed Lipschitz constant (L2), raw inputs to logits: the report says whether it holds.",
        PROOF,
        "question",
        Number(),
        metavar="K",
        shown="what the layers claim",
    )
    norm: str | float | Sequence[str | float] = option(
        ("l2",),
        "Norm that changes are measured in: l2, linf, l1; several, such as linf,l2, share one run.",
        ATTACKS,
        "question",
        Parsed(measures, propose=NORMS),
        metavar="N",
    )
    eps: Budgets | None = option(
        None,
        "Budgets, such as 0.5 or 36/255; repeat, or separate by commas. With several norms: linf:8/255,l2:0.5.",
        ATTACKS,
        "question",
        Text(several=True),
        metavar="E",
        shown=", ".join(f"{norm}:{','.join(usual)}" for norm, usual in DEFAULT_EPS.items()),
    )
    attacks: str | Sequence[str] | None = option(
        None,
        "none, quick, standard, full, or names of attacks.",
        ATTACKS,
        "question",
        Parsed(words),
        metavar="A",
        shown="by time",
    )
    device: str | None = option(
        None, "Where networks run.", ATTACKS, "place", OneOf(("auto", "cpu", "cuda"), others=True), shown="auto"
    )
    batch_size: int | None = option(
        None, "Images per batch of an attack.", ATTACKS, "attack", Whole(1), metavar="N", shown="by size"
    )
    time_limit: float | None = option(
        None, "Start no attack after this time: 90s, 10m, 2h.", ATTACKS, "attack", Parsed(duration), metavar="T"
    )
    smoothing: float | None = option(
        None, "Randomized smoothing with Gaussian noise of this sigma.", ESTIMATES, "attack", Number(), metavar="SIGMA"
    )
    clever: bool = option(False, "CLEVER scores.", ESTIMATES, "attack", Flag())
    mean: Sequence[float] | Literal["none"] | None = option(
        None, "Mean per channel, for pixels in [0,1], or none.", NETWORK, "question", Parsed(numbers), metavar="M,M,M"
    )
    std: Sequence[float] | Literal["none"] | None = option(
        None, "Standard deviation per channel.", NETWORK, "question", Parsed(numbers), metavar="S,S,S"
    )
    domain: Box | None = option(None, "Range of the entries of raw inputs.", NETWORK, "question", library_only=True)
    seed: int = option(0, "Seed of everything random.", NETWORK, "question", Whole(0))
    gates: str | Sequence[str] = option(
        (),
        "Least share, such as 'certified_accuracy@36/255>=0.30', also of empirical_robust_accuracy@EPS or "
        "clean_accuracy; append ,ci_low to compare the lower confidence limit, ,warn to warn only. Repeat.",
        OUTPUT,
        "question",
        Text(several=True),
        flag="--gate",
        metavar="EXPR",
        in_files=False,  # the table [gate] has them
    )
    shard: tuple[int, int] | None = option(
        None, "Audit part I of N of the images; see `lipaudit merge`.", SHARDS, "place", Parsed(part_of), metavar="I/N"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norms_of(self.norm))
        for one in options_of(type(self)).values():
            _check(one, getattr(self, one.name))

    @property
    def measured(self) -> tuple[Norm, ...]:
        """The norms, each once."""
        return cast(tuple[Norm, ...], self.norm)

    @property
    def only_norm(self) -> Norm:
        """The norm. Raises `ConfigError` where there are several."""
        if len(self.measured) > 1:
            raise ConfigError(f"norm: expected one of {', '.join(NORMS)}, got {', '.join(self.measured)}")
        return self.measured[0]

    @property
    def bounding(self) -> dict[str, Any]:
        """How a network is bounded: keywords of `compose`."""
        return {"method": self.norms, "global_method": self.global_method}

    def affecting(self, *what: Affects) -> dict[str, Any]:
        """The settings that affect one of these, by name."""
        return {one.name: getattr(self, one.name) for one in options_of(type(self)).values() if one.affects in what}

    def key(self) -> dict[str, Any]:
        """What results depend on: an interrupted audit goes on only under the same."""
        return self.affecting("question", "proof", "attack")

    def config(self) -> dict[str, Any]:
        """What a result says of how it was made: all but how it is shown."""
        return self.affecting("question", "proof", "attack", "place")


@dataclass(frozen=True)
class RunSettings(Settings):
    """`Settings`, and what else `lipaudit run` can be told: where network and images come from, where results go."""

    model: str | None = option(
        None,
        "Network (`lipaudit models`), or package.module:factory (your code is run).",
        NETWORK,
        "question",
        Text(MODELS),
        metavar="NAME",
        shown="digits-aol",
    )
    dataset: str | None = option(
        None, "Data set (`lipaudit datasets`).", NETWORK, "question", Text(DATASETS), metavar="NAME"
    )
    checkpoint: Path | None = option(
        None, "Weights: .safetensors, .pt, .pth. Runs no code.", NETWORK, "place", File(), metavar="FILE"
    )
    checkpoint_key: str | None = option(
        None, "Which weights, if FILE holds several: model_ema, model.net.", NETWORK, "question", metavar="KEY"
    )
    num_classes: int | None = option(
        None, "Number of classes of the network.", NETWORK, "question", Whole(2), metavar="N"
    )
    input_shape: tuple[int, ...] | None = option(
        None, "Input of the network, such as 3,32,32.", NETWORK, "question", Parsed(shape), metavar="C,H,W"
    )
    random_weights: bool = option(False, "Audit an untrained network; the report says so.", NETWORK, "question", Flag())
    offline: bool = option(
        False,
        "Fetch nothing (also LIPAUDIT_OFFLINE=1).",
        NETWORK,
        "place",
        Flag(),
        variable=False,  # loading/downloads.py reads it, for the library as well
    )
    data_dir: Path | None = option(
        None, "Folder of the data set instead of the cache.", DATA, "place", File(), metavar="DIR"
    )
    samples: int | None = option(
        None, "Number of images, drawn at random.", DATA, "question", Whole(1), metavar="N", shown="by time"
    )
    shards: int | None = option(
        None, "Split the run into N shards.", SHARDS, "place", Whole(1), metavar="N", shown="ray: one per CPU"
    )
    engine: Literal["local", "ray"] = option(
        "local", "Where shards run: in this process, or on Ray.", SHARDS, "place", OneOf(("local", "ray"))
    )
    address: str | None = option(
        None, "Address of the Ray cluster.", SHARDS, "place", metavar="A", shown="RAY_ADDRESS, or this machine"
    )
    out: str = option("reports", "Folder for reports; - prints to stdout.", OUTPUT, "output", short="-o", metavar="DIR")
    formats: tuple[str, ...] = option(
        ("json", "html"), f"Some of {', '.join(FORMATS)}.", OUTPUT, "output", Parsed(formats), flag="--format"
    )
    proof: Path | None = option(
        None, "Also write a proof of the global radii, for `lipaudit verify`.", OUTPUT, "output", File(), metavar="FILE"
    )
    exit_zero: bool = option(False, "Exit 0 even if a gate fails.", OUTPUT, "output", Flag())
    quiet: bool = option(False, "Print the verdict and files only.", OUTPUT, "output", Flag(), short="-q")
    verbose: int = option(
        0, "Print every step; -vv also logs and tracebacks.", OUTPUT, "output", Flag(count=True), short="-v"
    )
    progress: Literal["auto", "plain", "off"] = option(
        "auto", "How progress is shown.", OUTPUT, "output", OneOf(("auto", "plain", "off"))
    )
    config_file: Path | None = option(
        None,
        "Settings file.",
        RUN,
        "output",
        File(),
        flag="--config",
        metavar="FILE",
        shown="lipaudit.toml, pyproject.toml",
        in_files=False,
    )
    resume: str | None = option(
        None,
        "Continue an interrupted run: its folder, or its name in DIR.",
        RUN,
        "output",
        metavar="RUN",
        variable=False,
        in_files=False,
    )


S = TypeVar("S", bound=Settings)


def options_of(kind: type[Settings] = RunSettings) -> Mapping[str, Option]:
    """The settings by name."""
    return _options_of(cast(Hashable, kind))  # mypy takes a class for its instances, which may have no hash


@cache
def _options_of(kind: Any) -> Mapping[str, Option]:
    each = [field for field in fields(kind) if "option" in field.metadata]
    return {one.name: replace(one.metadata["option"], name=one.name, default=one.default) for one in each}


def named(*affects: Affects) -> frozenset[str]:
    """The names of all settings that affect one of these."""
    return frozenset(one.name for one in options_of().values() if one.affects in affects)


def _check(one: Option, value: Any) -> None:
    """Refuses a value that cannot be; the command line refuses texts before, in its own words."""
    kind = one.kind
    if value is None and one.default is None:
        return
    if isinstance(kind, OneOf) and not kind.others and value not in kind.names:
        raise ConfigError(f"{one.name}: expected {', '.join(kind.names)}, got {clean(repr(value), 60)}")
    if isinstance(kind, Whole) and (isinstance(value, bool) or not hasattr(value, "__index__") or value < kind.least):
        raise ConfigError(f"{one.name}: expected a whole number from {kind.least} on, got {clean(repr(value), 60)}")


# --- from keywords, and from older names


def settings_from(
    keywords: Mapping[str, Any],
    base: S,
    function: str,
    *,
    takes: Collection[str] | None = None,
    was: Mapping[str, tuple[str, Mapping[Any, Any]]] | None = None,
    depth: int = 3,
) -> S:
    """`base` with what keywords of a public function say; older names are understood, with a `DeprecationWarning`.

    `takes` are the settings that the function has, all unless given; `was` its own older names;
    `depth` is how many calls up the user's own is. Raises `TypeError` for a keyword that is none.
    """
    known = [name for name in options_of(type(base)) if takes is None or name in takes]
    older = {one.was.name: (name, one.was.values) for name, one in options_of(type(base)).items() if one.was}
    older |= was or {}
    found: dict[str, Any] = {}
    for keyword, value in keywords.items():
        name = keyword
        if keyword in older and older[keyword][0] in known:
            name, values = older[keyword]
            value = values.get(value, value)
            warnings.warn(
                f"{function}({keyword}=...) is called {name} now: {name}={value!r}",
                RenamedWarning,
                stacklevel=depth,
            )
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            raise TypeError(f"{function}() got an unexpected keyword argument {keyword!r}; {hint}")
        if name in found:
            raise TypeError(f"{function}() got {name} twice, also by its older name")
        found[name] = value
    return replace(base, **found)


def recorded(config: Mapping[str, Any], name: str) -> Any:
    """A setting as `Audit.config` has it, also of an older result; the default where it says nothing."""
    one = options_of()[name]
    if name not in config and one.was is not None and one.was.name in config:
        old = config[one.was.name]
        return one.was.values.get(old, old)
    return config.get(name, one.default)


def signature(first: Callable[..., Any], takes: Collection[str] | None = None) -> inspect.Signature:
    """That of a function with its `keywords` written out, for `help()` and editors."""
    shown = inspect.signature(first)
    plain = [one for one in shown.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    named = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(Settings)
        if one.default is not MISSING and (takes is None or one.name in takes)
    ]
    return shown.replace(parameters=[*plain, *named])
