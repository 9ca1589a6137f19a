"""Trains the bundled digits networks from scratch: `python -m lipaudit.zoo.train digits-aol`.

The same seed on the same machine and torch gives the same bytes (one CPU thread). Other versions of torch, or
another processor, may round differently: the accuracies come out alike, the bytes are not promised.

The recipes were chosen with `--validate`, which trains on the first 1000 training images and measures on the
297 others; the test part was not looked at. The bundled weights are trained on all 1297.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import click
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lipaudit.nn import AOLLinear, offset_cross_entropy
from lipaudit.zoo import MODELS, weights_file
from lipaudit.zoo.digits import digits_split

EPS = (0.25, 0.5)
"""L2 radii at which certified accuracy is printed."""
FIT = 1000
"""Training images that `--validate` trains on."""


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: Adam under a one-cycle learning rate, Gaussian noise on the images."""

    loss: Callable[[Tensor, Tensor], Tensor]
    epochs: int
    batch: int = 128
    learning_rate: float = 1e-2
    noise: float = 0.05
    """Standard deviation, in units of the [0, 1] pixels."""


RECIPES = {
    "digits-aol": Recipe(partial(offset_cross_entropy, offset=0.85, temperature=0.05), epochs=900),
    "digits-cnn": Recipe(cross_entropy, epochs=40),
}


def train(
    model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor, seed: int = 0, say: Callable[[str], None] = click.echo
) -> None:
    """Trains in place on images `x` (n, 1, 8, 8) and labels `y` (n,), saying one line per epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    steps = recipe.epochs * -(-len(x) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps, pct_start=0.15)
    model.train()
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(recipe.batch):
            noisy = x[rows] + recipe.noise * torch.randn(x[rows].shape, generator=generator)
            loss = recipe.loss(model(noisy), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        say(f"epoch {epoch}/{recipe.epochs}  loss {total / len(x):.4f}")
    model.eval()


@torch.no_grad()
def clean_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the images whose largest logit is the true one."""
    return (model(x).argmax(1) == y).double().mean().item()


@torch.no_grad()
def one_lipschitz_radii(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """L2 radius of each image (n,) within which no other class wins, if all but the last layer is 1-Lipschitz.

    min_j (z_y - z_j) / |w_y - w_j| with the rows w of the last, linear layer; negative where misclassified.
    Taken on trust from the architecture: `lipaudit run` proves it from the weights and rounds outward.
    """
    logits, rows = model(x).double(), cast(nn.Linear, model[-1]).weight.double()
    margins = logits.gather(1, y[:, None]) - logits
    radii = margins / (rows[y][:, None] - rows).norm(dim=2)
    return radii.scatter(1, y[:, None], torch.inf).amin(1)


def scores(model: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, float]:
    """Clean accuracy, and certified accuracy at `EPS` where the architecture is 1-Lipschitz."""
    found = {"clean accuracy": clean_accuracy(model, x, y)}
    if isinstance(model[-1], AOLLinear):
        radii = one_lipschitz_radii(model, x, y)
        found |= {f"certified accuracy at {eps}": (radii > eps).double().mean().item() for eps in EPS}
    return found


@click.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write; default: the package.")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's own number.")
@click.option("--seed", default=0, show_default=True)
@click.option("--validate", is_flag=True, help="Hold out 297 training images, measure on them, write only to --out.")
def main(name: str, out: Path | None, epochs: int | None, seed: int, validate: bool) -> None:
    """Trains a bundled network from scratch and writes its weights."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    recipe = RECIPES[name] if epochs is None else replace(RECIPES[name], epochs=epochs)
    x, y, x_test, y_test = (torch.from_numpy(part) for part in digits_split())
    if validate:
        x, y, x_test, y_test = x[:FIT], y[:FIT], x[FIT:], y[FIT:]
    model = MODELS[name]()
    train(model, recipe, x, y, seed)
    part = "held-out training" if validate else "test"
    for what, share in scores(model, x_test, y_test).items():
        click.echo(f"{what}: {100 * share:.1f} % of {len(x_test)} {part} images")
    target = out if out or validate else weights_file(name)
    if target is not None:
        save_file(model.state_dict(), target)
        click.echo(f"wrote {target} ({target.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
