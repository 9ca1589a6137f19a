"""One run of `lipaudit run`: from its settings to a finished audit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lipaudit.cli.config_file import DEFAULT
from lipaudit.cli.resume import Resumable
from lipaudit.crosscheck.registry import plan
from lipaudit.engines import Job, engine_of, run_shards
from lipaudit.errors import BadThreat, LoadError
from lipaudit.graph.wrappers import prepared
from lipaudit.loading.dataset_registry import ImageSet
from lipaudit.loading.datasets import LoadedData, canonical, check_fit, for_model, open_dataset, read_images
from lipaudit.loading.model_names import PAIRS, brings_weights
from lipaudit.loading.model_names import canonical as canonical_model
from lipaudit.loading.models import LoadedModel, load_model
from lipaudit.progress import Progress, spell
from lipaudit.proof.writer import refuse_unlisted, write_proof
from lipaudit.results.audit import Audit
from lipaudit.results.threat import PIXELS, Threat, spoken, threats_of
from lipaudit.runs.audit import audit
from lipaudit.runs.planning import BUDGET, Plan, plan_run
from lipaudit.runs.provenance import Source
from lipaudit.settings import RunSettings, Settings
from lipaudit.verdict.gates import conditions, refuse_unmeasured

__all__ = ["audit", "check", "run_audit"]


def check(settings: RunSettings) -> None:
    """Refuse what can be refused before anything is loaded: budgets, attacks, device, a missing name."""
    _threats(settings)
    refuse_unmeasured(conditions(settings.gates), settings.measured)
    for norm in settings.measured:
        plan(settings.attacks or (), norm)
    _device(settings.device)
    _, dataset = _pair(settings.model, settings.dataset)
    if settings.data_dir is not None and (dataset == "digits" or ":" in dataset):
        raise LoadError(f"--data-dir is the folder of data sets that are fetched; leave it out with {dataset}")
    if settings.shard and (settings.shards or settings.engine != "local"):
        raise LoadError("--shard is one shard of a run, --shards and --engine are for all of them; leave one out")
    if settings.shard and (settings.samples is None or settings.attacks is None):
        raise LoadError("--shard needs --samples and --attacks: chosen by time they would differ from shard to shard")
    if settings.shard and settings.proof is not None:
        raise LoadError("--proof is about all samples of a run, --shard about some; leave one out")
    if settings.proof is not None and "l2" not in settings.measured:
        only = " and ".join(map(spoken, settings.measured))
        raise LoadError(f"--proof holds L2 radii, and this run measures changes in {only}; add l2 to --norm")
    if settings.address and settings.engine != "ray":
        raise LoadError("--address is that of a Ray cluster; add --engine ray")


@dataclass(frozen=True)
class Loaded:
    """The network and the data set of a run."""

    model: LoadedModel
    opened: ImageSet
    dataset: str

    def read(self, samples: int, seed: int) -> LoadedData:
        """So many images; raises `LoadError` if they do not fit the network."""
        shape = self.model.facts.input_shape
        data = read_images(self.opened, self.dataset, samples=samples, seed=seed, input_shape=shape)
        check_fit(data, self.model.facts)
        return data


def run_audit(asked: RunSettings, running: Resumable, progress: Progress) -> Audit:
    """Load what the settings name and audit it, or go on with it.

    Raises `LipauditError` for whatever does not fit together.
    """
    name, dataset = _pair(asked.model, asked.dataset)
    settings = replace(asked, model=name, dataset=dataset, device=_device(asked.device))
    loaded = _load(settings, progress)
    settings = _sized(settings, loaded, progress)
    assert settings.samples is not None
    data = loaded.read(settings.samples, settings.seed)
    journal = None
    if settings.out != "-" or running.resumed:
        journal = running.begin(asked, settings.samples, settings.attacks or ())
        progress.say(f"interrupt any time, then: {running.command()}")
    settings = replace(settings, samples=data.facts.samples)
    source = Source(
        model_facts=loaded.model.facts,
        data_facts=data.facts,
        index=data.index,
        command=("lipaudit", *running.arguments),
        config={"origin": _origin(asked, running)},
        warnings=data.warnings,
    )
    # The loader has put the normalisation in front.
    network = prepared(loaded.model.module, Settings(device=settings.device))
    job = Job(network, data.inputs, data.labels, settings, source)
    if settings.shards or settings.engine == "ray":
        shards = settings.shards or min(os.cpu_count() or 1, data.facts.samples)
        found = run_shards(job, shards, engine_of(settings.engine, settings.address), progress, journal)
    else:
        found = audit(network, data.inputs, data.labels, settings, source, progress=progress, journal=journal)
    _prove(settings, loaded.model, data, progress)
    return found


def _load(settings: RunSettings, progress: Progress) -> Loaded:
    """The network and the data set, as far as it can be opened without knowing how many images."""
    name, dataset = str(settings.model), str(settings.dataset)
    opened = open_dataset(
        dataset,
        data_dir=settings.data_dir,
        offline=settings.offline,
        input_shape=settings.input_shape,
        progress=progress,
    )
    # How many folders there are is nothing that published weights could follow.
    theirs = brings_weights(name) and not (settings.checkpoint or settings.random_weights)
    follows = not (theirs and dataset.startswith("imagefolder:"))
    model = load_model(
        name,
        dataset=dataset,
        checkpoint=settings.checkpoint,
        checkpoint_key=settings.checkpoint_key,
        mean=settings.mean,
        std=settings.std,
        num_classes=settings.num_classes or (opened.classes if follows else None),
        input_shape=settings.input_shape or opened.shape,
        random_weights=settings.random_weights,
        offline=settings.offline,
        seed=settings.seed,
        progress=progress,
    )
    if settings.proof is not None:
        refuse_unlisted(model.module, model.facts.input_shape)
    loaded = Loaded(model, for_model(opened, dataset, model.facts), dataset)
    loaded.read(1, settings.seed)  # data that has to be fetched, or does not fit, is found out before anything is timed
    return loaded


def _sized(settings: RunSettings, loaded: Loaded, progress: Progress) -> RunSettings:
    """With how many images and which attacks: what the user chose, and for the rest what fits into the time."""
    if settings.samples is not None and settings.attacks is not None:
        return settings
    # Noise will do: how long a pass takes does not depend on the images.
    noise = torch.rand(4, *loaded.model.facts.input_shape, generator=torch.Generator().manual_seed(0))
    found: Plan = plan_run(
        loaded.model.module.to(settings.device),
        noise.to(settings.device),
        classes=loaded.model.facts.classes,
        samples=settings.samples,
        attacks=settings.attacks,
        threats=_threats(settings, loaded.model.facts.input_shape),
        available=loaded.opened.available,
        budget=min(BUDGET, settings.time_limit or BUDGET),
    )
    if found.seconds:
        progress.say(f"{found.samples} images, attacks {found.attacks}: about {spell(found.seconds)} or less")
    return replace(settings, samples=found.samples, attacks=tuple(found.attacks.split(",")))


def _threats(settings: RunSettings, shape: Sequence[int] = ()) -> tuple[Threat, ...]:
    """What is asked of the network."""
    try:
        return threats_of(settings.eps or None, settings.measured, PIXELS, shape)
    except BadThreat as error:
        raise BadThreat(f"--eps: {error}") from None


def _prove(settings: RunSettings, model: LoadedModel, data: LoadedData, progress: Progress) -> None:
    """Writes the proof that is asked for."""
    if settings.proof is None:
        return
    written = write_proof(
        settings.proof, model.module, data.inputs, data.labels, checkpoint=model.weights_file, progress=progress
    )
    progress.say(str(written))


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


def _device(name: str | None) -> str:
    """`cpu` or `cuda`, where convolutions are then not taken in TF32: what is certified is what is attacked."""
    if name == "cuda" and not torch.cuda.is_available():
        raise LoadError("--device cuda: this torch finds no CUDA device; use --device cpu")
    chosen = name if name in ("cpu", "cuda") else "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return chosen


def _origin(asked: RunSettings, running: Resumable) -> dict[str, str]:
    """Where the settings come from that are no defaults."""
    timed = {name for name in ("samples", "attacks") if getattr(asked, name) is None}
    known = {name: running.origin[name] for name in asked.config() if running.origin.get(name, DEFAULT) != DEFAULT}
    return known | dict.fromkeys(sorted(timed), "chosen to fit the time")
