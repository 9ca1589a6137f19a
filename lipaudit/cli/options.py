"""What the options of the command line accept, and the options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import click

from lipaudit.results.threat import comma_list

Command = TypeVar("Command", bound=Callable[..., Any])

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    """`0.5,0.4,0.3` -> (0.5, 0.4, 0.3); `none` stays; nothing stays None."""
    del context, parameter
    if text is None or text == "none":
        return text
    try:
        return tuple(float(Fraction(part)) for part in comma_list(text))
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"expected numbers such as 0.491,0.482,0.447, or none; got {text!r}") from None


def _shape(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """`3,32,32` -> (3, 32, 32)."""
    del context, parameter
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*([,x][1-9]\d*){2}", text):
        raise click.BadParameter(f"expected channels,height,width such as 3,32,32; got {text!r}")
    return tuple(map(int, re.split("[,x]", text)))


def _shard(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """`3/8` -> (3, 8)."""
    from lipaudit.runs.shards import parse_shard

    del context, parameter
    try:
        return None if text is None else parse_shard(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _duration(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """`90`, `90s`, `10m`, `2h` -> seconds."""
    del context, parameter
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", text)
    if found is None or not float(found[1]) > 0:
        raise click.BadParameter(f"expected a time such as 90, 90s, 10m or 2h; got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def _formats(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    del context, parameter
    chosen = tuple(dict.fromkeys(comma_list(text)))
    if not chosen or not set(chosen) <= {"json", "html", "md"}:
        raise click.BadParameter(f"expected some of json,html,md; got {text!r}")
    return chosen


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click options as one decorator, listed by `--help` in the order given."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


FILE = click.Path(path_type=Path)

MODELS = ("digits-aol", "digits-cnn", "resnet18", "timm:", "torchvision:")
DATASETS = ("digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "imagefolder:", "npz:")
"""What a shell proposes. The tables that decide need torch, which a shell has no time for; a test holds them equal."""


def complete(names: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Those of the names that begin with what has been typed."""

    def propose(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
        del context, parameter
        return [name for name in names if name.startswith(typed)]

    return propose


gate_option = click.option(
    "--gate",
    multiple=True,
    metavar="EXPR",
    help="Least share, such as 'certified_accuracy@36/255>=0.30', also of unbroken_accuracy@EPS or clean_accuracy; "
    "',ci_low' behind it takes the lower 95% limit, ',warn' only warns. Repeat.",
)

text_or_json = click.option(
    "--format", "kind", type=click.Choice(["text", "json"]), default="text", show_default=True, help="On stdout."
)

model_options = _together(
    click.option(
        "--dataset", metavar="NAME", help="Data set (`lipaudit datasets`).", shell_complete=complete(DATASETS)
    ),
    click.option("--checkpoint", type=FILE, metavar="FILE", help="Weights: .safetensors, .pt, .pth. Runs no code."),
    click.option("--checkpoint-key", metavar="KEY", help="Which weights, if FILE holds several: model_ema, model.net."),
    click.option("--mean", callback=_numbers, metavar="M,M,M", help="Mean per channel in units of [0,1], or none."),
    click.option("--std", callback=_numbers, metavar="S,S,S", help="Standard deviation per channel."),
    click.option("--num-classes", type=click.IntRange(2), metavar="N", help="Classes of the network."),
    click.option("--input-shape", callback=_shape, metavar="C,H,W", help="Input of the network, such as 3,32,32."),
    click.option("--random-weights", is_flag=True, help="Audit an untrained network; the report says so."),
    # downloads.py reads LIPAUDIT_OFFLINE, for the library as well.
    click.option("--offline", is_flag=True, allow_from_autoenv=False, help="Fetch nothing (also LIPAUDIT_OFFLINE=1)."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="For everything random."),
)

norm_options = _together(
    click.option("--tight", is_flag=True, help="Small maps with their real borders: tighter bounds, for minutes."),
)

local_options = _together(
    click.option(
        "--local",
        type=click.Choice(["auto", "on", "thorough", "off"]),
        default="auto",
        show_default=True,
        help="Radii around each image, too: as many as a minute allows, all, all and larger for minutes each, none.",
    ),
    click.option("--local-samples", type=click.IntRange(1), metavar="N", help="Of at most so many images."),
)

proof_option = click.option(
    "--proof", type=FILE, metavar="FILE", help="Also a proof of the global radii, for `lipaudit verify`."
)

promise_options = _together(
    click.option(
        "--promise",
        type=click.Choice(["R", "F", "D"]),
        default="R",
        show_default=True,
        help="What radii are about: the exact function, the network as executed, or in float64. All are shown.",
    ),
)

data_options = _together(
    click.option("--data-dir", type=FILE, metavar="DIR", help="Folder of the data set instead of the cache."),
    click.option(
        "--samples",
        type=click.IntRange(1),
        metavar="N",
        help="Images, drawn at random. [default: by time]",
    ),
)

attack_options = _together(
    click.option(
        "--eps",
        multiple=True,
        metavar="E",
        help="Budget, L2: 0.5, 36/255; repeat or list. [default: 36/255,0.25,0.5,1]",
    ),
    click.option(
        "--attacks",
        metavar="A",
        help="none, quick, standard, full, or names. [default: by time]",
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images at a time. [default: by size]"),
    click.option("--time-limit", callback=_duration, metavar="T", help="Stop attacking after 90s, 10m, 2h."),
)

estimate_options = _together(
    click.option(
        "--smoothing", type=float, metavar="SIGMA", help="Estimate: randomized smoothing, noise of this size."
    ),
    click.option("--clever", is_flag=True, help="Estimate: CLEVER scores."),
)

shard_options = _together(
    click.option(
        "--shard", callback=_shard, metavar="I/N", help="Only part I of N of the images; see `lipaudit merge`."
    ),
    click.option("--shards", type=click.IntRange(1), metavar="N", help="All images, in N shards. [ray: one per CPU]"),
    click.option(
        "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="For shards."
    ),
    click.option("--address", metavar="A", help="Of the Ray cluster. [default: RAY_ADDRESS, or this machine]"),
)

output_options = _together(
    click.option("-o", "--out", default="reports", show_default=True, metavar="DIR", help="Folder; - is stdout."),
    click.option(
        "--format",
        "formats",
        envvar="LIPAUDIT_FORMAT",
        callback=_formats,
        default="json,html",
        show_default=True,
        help="Of json,html,md.",
    ),
    gate_option,
    click.option("--exit-zero", is_flag=True, help="Exit 0 where a gate fails; hides nothing else."),
    click.option("-q", "--quiet", is_flag=True, help="Verdict and files only."),
    click.option("-v", "--verbose", count=True, help="Every step; -vv also logs and tracebacks."),
    click.option("--progress", type=click.Choice(["auto", "plain", "off"]), default="auto", show_default=True),
)
