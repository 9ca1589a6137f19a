"""The commands that look at models, data sets and the environment: bounds, models, datasets, env."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from lipaudit import __version__
from lipaudit.cli.main import commands
from lipaudit.cli.options import FILE, in_groups, options, renamed, text_or_json
from lipaudit.cli.output import print_table
from lipaudit.settings import NETWORK

PACKAGES = (
    "torch", "torchvision", "timm", "adversarial-robustness-toolbox", "pyautoattack", "numpy", "scipy", "scikit-learn",
    "safetensors", "huggingface-hub", "click", "rich", "jinja2",
)  # fmt: skip


@commands.command()
@click.argument("model")
@options(*(name for name in in_groups(NETWORK) if name != "model"))
@options("norm")
@options("norms", default="best")
@text_or_json
@click.pass_context
def bounds(context: click.Context, /, model: str, kind: str, **chosen: Any) -> None:
    """Bound a model layer by layer, without data."""
    from lipaudit.api import bound
    from lipaudit.cli.terminal import terminal_progress
    from lipaudit.loading.model_names import PAIRS, canonical
    from lipaudit.loading.models import load_model
    from lipaudit.results.formatting import number, number_from_log10
    from lipaudit.results.threat import spoken

    renamed(context, chosen)
    norm, norms, dataset = chosen.pop("norm"), chosen.pop("norms"), chosen.pop("dataset") or PAIRS.get(canonical(model))
    with contextlib.redirect_stdout(sys.stderr), terminal_progress("auto", sys.stderr) as progress:
        loaded = load_model(model, dataset=dataset, progress=progress, **chosen)
        shape = loaded.facts.input_shape
        network = bound(loaded.module, shape, domain=(0.0, 1.0), norm=norm, norms=norms, progress=progress)
    if kind == "json":
        from lipaudit.results.json import bound_to_json

        click.echo(bound_to_json(loaded.facts.name, norms, network), nl=False)
        return
    rows = [("layer", "op", "bound", "so far", "by")]
    for line in network.layers:
        so_far = number_from_log10(line.log10_so_far)
        rows.append((line.name, line.op, number(line.upper.value), so_far, line.upper.method))
    print_table(rows)
    size = "×".join(map(str, network.input_shape))
    click.echo(
        f"\nnetwork bound {number_from_log10(network.log10)} ({spoken(network.norm)}, {size} inputs in [0,1] to logits)"
    )


@commands.command()
@click.argument("word", default="")
def models(word: str) -> None:
    """List models. With WORD, search torchvision and timm as well."""
    from lipaudit.loading.models import known_models

    found = known_models(word)
    if not found:
        raise click.UsageError(f"no model of lipaudit, torchvision or timm has {word!r} in its name")
    rows = [("name", "trained on", "source", "licence", "size", "here")]
    rows += [(m.name, m.dataset, m.source, m.licence, m.size, "yes" if m.cached else "no") for m in found]
    print_table(rows)
    if not word:
        click.echo("\ntorchvision:NAME, timm:NAME       `lipaudit models WORD` searches them")
        click.echo("package.module:factory            your own code, with --checkpoint FILE if it loads no weights")


@commands.command()
@click.option("--family", "families", multiple=True, metavar="NAME", help="This family only; repeat.")
@click.option("--library", type=click.Choice(["timm", "torchvision", "both"]), default="both", show_default=True)
@click.option("--variants", is_flag=True, help="Every structural variant, without values.")
@click.option("--slopes", is_flag=True, help="Compare each bound with the steepest slope seen.")
@click.option("--markdown", is_flag=True, help="A Markdown table.")
@click.option("--json", "file", type=FILE, metavar="FILE", help="Also write all of it as JSON.")
def survey(families: tuple[str, ...], library: str, variants: bool, **more: Any) -> int:
    """Show which models of timm and torchvision can be audited.

    Captures and bounds a small model of every family, and says what blocks the others. Takes a while.
    """
    from lipaudit.cli.survey import print_coverage
    from lipaudit.runs.survey import LIBRARIES

    if variants and more["slopes"]:
        raise click.UsageError("expected --variants or --slopes, got both: there are no slopes without values")
    libraries = [name for name in LIBRARIES if library in ("both", name)]
    return print_coverage(libraries, families, structures=variants, **more)


@commands.command()
def datasets() -> None:
    """List the data sets."""
    from lipaudit.loading.datasets import known_datasets
    from lipaudit.loading.downloads import cache_dir

    rows = [("name", "images", "shape", "here", "licence", "what")]
    for d in known_datasets():
        rows.append((d.name, d.images, d.shape, "yes" if d.cached else "no", d.licence, d.what))
    print_table(rows)
    click.echo(
        f"\nWhat is not here is fetched on first use, into {cache_dir()}; --data-dir DIR reads files that you have."
    )


@commands.command()
def env() -> None:
    """Print versions and hardware, to paste into a bug report."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    rows = [
        ("lipaudit", __version__),
        ("python", platform.python_version()),
        ("platform", platform.platform()),
    ]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    rows += [("cuda", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")]
    rows += [("threads", f"{torch.get_num_threads()} of {os.cpu_count()}")]
    rows += [(name, value) for name, value in sorted(os.environ.items()) if name.startswith("LIPAUDIT_")]
    print_table(rows)
