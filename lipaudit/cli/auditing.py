"""One run of `lipaudit run`: from the options of the command line to a finished audit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lipaudit.cli.config_file import DEFAULT
from lipaudit.cli.resume import Resumable
from lipaudit.crosscheck.registry import plan
from lipaudit.errors import LoadError
from lipaudit.loading.dataset_registry import ImageSet
from lipaudit.loading.datasets import canonical, check_fit, for_model, open_dataset, read_images
from lipaudit.loading.model_names import PAIRS, brings_weights
from lipaudit.loading.model_names import canonical as canonical_model
from lipaudit.loading.models import LoadedModel, load_model
from lipaudit.progress import Progress, spell
from lipaudit.proof.writer import refuse_unlisted, write_proof
from lipaudit.results.audit import Audit
from lipaudit.results.threat import DEFAULT_EPS, comma_list, parse_eps
from lipaudit.runs.audit import audit
from lipaudit.runs.planning import BUDGET, Plan, plan_run
from lipaudit.verdict.gates import conditions

Chosen = Mapping[str, Any]
"""The options by name, as click hands them over; None where nothing was said."""

LOADING = ("checkpoint", "checkpoint_key", "mean", "std", "random_weights", "offline", "seed")
SETTINGS = (
    *LOADING,
    "num_classes",
    "input_shape",
    "data_dir",
    "batch_size",
    "time_limit",
    "tight",
    "local",
    "local_samples",
    "promise",
    "smoothing",
    "clever",
)


def check(chosen: Chosen) -> None:
    """Refuse what can be refused before anything is loaded: budgets, attacks, device, a missing name."""
    parse_eps(chosen["eps"])
    conditions(chosen["gate"])
    plan(comma_list(chosen["attacks"] or ""))
    _device(chosen["device"])
    _, dataset = _pair(chosen["model"], chosen["dataset"])
    if chosen["data_dir"] is not None and (dataset == "digits" or ":" in dataset):
        raise LoadError(f"--data-dir is the folder of data sets that are fetched; leave it out with {dataset}")
    if chosen["shard"] and (chosen["shards"] or chosen["engine"] != "local"):
        raise LoadError("--shard is one shard of a run, --shards and --engine are for all of them; leave one out")
    if chosen["shard"] and (chosen["samples"] is None or chosen["attacks"] is None):
        raise LoadError("--shard needs --samples and --attacks: chosen by time they would differ from shard to shard")
    if chosen["shard"] and chosen["proof"] is not None:
        raise LoadError("--proof is about all samples of a run, --shard about some; leave one out")
    if chosen["address"] and chosen["engine"] != "ray":
        raise LoadError("--address is that of a Ray cluster; add --engine ray")


def run_audit(chosen: Chosen, running: Resumable, progress: Progress) -> Audit:
    """Load what the options name and audit it, or go on with it.

    Raises `LipauditError` for whatever does not fit together.
    """
    name, dataset = _pair(chosen["model"], chosen["dataset"])
    opened = open_dataset(
        dataset,
        data_dir=chosen["data_dir"],
        offline=chosen["offline"],
        input_shape=chosen["input_shape"],
        progress=progress,
    )
    given = {key: chosen[key] for key in LOADING}
    # How many folders there are is nothing that published weights could follow.
    theirs = brings_weights(name) and not (chosen["checkpoint"] or chosen["random_weights"])
    follows = not (theirs and dataset.startswith("imagefolder:"))
    given["num_classes"] = chosen["num_classes"] or (opened.classes if follows else None)
    given["input_shape"] = chosen["input_shape"] or opened.shape
    model = load_model(name, dataset=dataset, progress=progress, **given)
    if chosen["proof"] is not None:
        refuse_unlisted(model.module, model.facts.input_shape)
    opened = for_model(opened, dataset, model.facts)
    device = _device(chosen["device"])
    eps = parse_eps(chosen["eps"]) or DEFAULT_EPS
    # One image first: data that has to be fetched, or does not fit, is found out before anything is timed.
    reading = {"seed": chosen["seed"], "input_shape": model.facts.input_shape}
    check_fit(read_images(opened, dataset, samples=1, **reading), model.facts)
    sized = _sized(chosen, model, opened, eps, device)
    if sized.seconds:
        progress.say(f"{sized.samples} images, attacks {sized.attacks}: about {spell(sized.seconds)} or less")
    data = read_images(opened, dataset, samples=sized.samples, **reading)
    check_fit(data, model.facts)
    attacks = comma_list(sized.attacks)
    settled = {"model": name, "dataset": dataset, "eps": eps, "attacks": attacks, "device": device}
    settled["samples"] = data.facts.samples
    journal = None
    if chosen["out"] != "-" or running.resumed:
        journal = running.begin(Path(chosen["out"]), chosen, sized.samples, sized.attacks)
        progress.say(f"interrupt any time, then: {running.command()}")
    how: dict[str, Any] = {"shard": chosen["shard"]}
    auditor: Callable[..., Audit] = audit
    if chosen["shards"] or chosen["engine"] == "ray":
        from lipaudit.engines import audit_in_shards

        auditor = audit_in_shards
        how = {"shards": chosen["shards"] or min(os.cpu_count() or 1, data.facts.samples)}
        how |= {"engine": chosen["engine"], "address": chosen["address"]}
    audited = auditor(
        model.module,
        data.inputs,
        data.labels,
        eps=eps,
        attacks=attacks,
        norms="tight" if chosen["tight"] else "all",
        promise=chosen["promise"],
        local=chosen["local"],
        local_samples=chosen["local_samples"],
        seed=chosen["seed"],
        device=device,
        time_limit=chosen["time_limit"],
        batch_size=chosen["batch_size"],
        model_facts=model.facts,
        data_facts=data.facts,
        index=data.index,
        command=("lipaudit", *running.arguments),
        config=_settings(chosen, settled),
        gates=chosen["gate"],
        warnings=data.warnings,
        progress=progress,
        journal=journal,
        smoothing=chosen["smoothing"],
        clever=bool(chosen["clever"]),
        **how,
    )
    if chosen["proof"] is not None:
        written = write_proof(
            chosen["proof"],
            model.module,
            data.inputs,
            data.labels,
            checkpoint=model.weights_file,
            progress=progress,
        )
        progress.say(str(written))
    return audited


def _sized(chosen: Chosen, model: LoadedModel, opened: ImageSet, eps: Sequence[str], device: str) -> Plan:
    """How many images and which attacks: what the user chose, and for the rest what fits into the time."""
    attacks = None if chosen["attacks"] is None else comma_list(chosen["attacks"])
    if chosen["samples"] is not None and attacks is not None:
        return Plan(chosen["samples"], ",".join(attacks), 0.0)
    # Noise will do: how long a pass takes does not depend on the images.
    noise = torch.rand(4, *model.facts.input_shape, generator=torch.Generator().manual_seed(0))
    return plan_run(
        model.module.to(device),
        noise.to(device),
        classes=model.facts.classes,
        samples=chosen["samples"],
        attacks=attacks,
        eps=eps,
        available=opened.available,
        budget=min(BUDGET, chosen["time_limit"] or BUDGET),
    )


def _pair(model: str | None, dataset: str | None) -> tuple[str, str]:
    """Model and data set; where only one is given, the other is its partner in `PAIRS`."""
    if dataset is not None:
        dataset = canonical(dataset)
    if model is not None:
        model = canonical_model(model)
    if model is None:
        model = next((name for name, data in PAIRS.items() if data == ("digits" if dataset is None else dataset)), None)
    if model is None:
        raise LoadError(f"which model for {dataset}? add --model NAME (`lipaudit models` lists them)")
    dataset = dataset or PAIRS.get(model)
    if dataset is None:
        raise LoadError(f"which data for {model}? add --dataset NAME (`lipaudit datasets` lists them)")
    return model, dataset


def _device(name: str) -> str:
    """`cpu` or `cuda`."""
    if name == "cuda" and not torch.cuda.is_available():
        raise LoadError("--device cuda: this torch finds no CUDA device; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _settings(chosen: Chosen, settled: Chosen) -> dict[str, Any]:
    """Every setting as it was in the end and, under `origin`, where those come from that are no defaults."""
    found = _plain({**{key: chosen[key] for key in SETTINGS}, **settled, "gate": chosen["gate"]})
    timed = {key for key in ("samples", "attacks") if chosen[key] is None}
    known = {key: where for key, where in chosen["origin"].items() if key in found and where != DEFAULT}
    return found | {"origin": known | dict.fromkeys(timed, "chosen to fit the time")}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON knows them."""
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return {key: str(value) if isinstance(value, Path) else value for key, value in lists.items()}
