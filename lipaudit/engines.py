"""Where shards are audited: in this process, or on the workers of a Ray cluster, one shard per task.

Each shard is a run of its own (`audit(shard=...)`), so what an engine finds is, on the same hardware with the same
threads, bit for bit what the other one finds for the same number of shards.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lipaudit.api import given, network_of
from lipaudit.errors import LipauditError, LoadError, ReportError
from lipaudit.files.atomic import write_text
from lipaudit.files.journal import SUFFIX
from lipaudit.graph.wrappers import Prepared, device_of
from lipaudit.loading.user_data import with_labels
from lipaudit.progress import Progress, Silent
from lipaudit.results.audit import Audit
from lipaudit.runs.audit import audit
from lipaudit.runs.provenance import Source
from lipaudit.runs.shards import merge
from lipaudit.settings import Settings
from lipaudit.verdict.consistency import load_audit

Engine = Literal["local", "ray"]
RETRIES = 3
"""Times that Ray begins a shard anew whose worker died."""


@dataclass(frozen=True)
class Job:
    """What every shard is a part of."""

    network: Prepared
    inputs: Any
    labels: Any
    settings: Settings
    source: Source

    def shard(self, number: int, of: int, progress: Progress | None = None) -> Audit:
        """The audit of one shard."""
        settings = replace(self.settings, shard=(number, of))
        return audit(self.network, self.inputs, self.labels, settings, self.source, progress=progress)


def audit_in_shards(
    model: Any,
    inputs: Any,
    labels: Any,
    *,
    shards: int,
    engine: Engine = "local",
    address: str | None = None,
    journal: str | Path | None = None,
    progress: Progress | None = None,
    **keywords: Any,
) -> Audit:
    """`lipaudit.audit` of all samples, in so many shards, and merged.

    `keywords` are those of `audit`. With "ray" each shard is a task of the cluster at `address` (by default that of
    RAY_ADDRESS, or one on this machine), which takes as many CPUs as torch has threads here, and a GPU if the model is
    on one; a worker that dies loses only its shard. `journal` is a folder that keeps the results of finished shards.
    Raises the errors of `audit`, and `LoadError` where Ray is not installed or its cluster not reached.
    """
    settings, source = given(keywords, None, None, "audit_in_shards")
    network, facts = network_of(model, settings)
    source = source if source.model_facts else replace(source, model_facts=facts)
    job = Job(network, *with_labels(inputs, labels), settings, source)  # once: the next time, a DataLoader may shuffle
    return run_shards(job, shards, engine_of(engine, address), progress, journal)


def run_shards(
    job: Job, shards: int, run: Run, progress: Progress | None = None, journal: str | Path | None = None
) -> Audit:
    """All shards of a job, run by an engine, and merged."""
    progress = progress or Silent()
    folder = None if journal is None else Path(journal)
    done = {} if folder is None else {k: kept for k in range(1, shards + 1) if (kept := _kept(folder, k, shards))}
    wanted = [(k, shards) for k in range(1, shards + 1) if k not in done]
    progress.say(f"{shards} shards, {len(done)} finished before" if done else f"{shards} shards")
    for found in run(job, wanted, progress):
        assert found.shard is not None
        done[found.shard.number] = found
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(_file(folder, found.shard.number), found.to_json())
    merged = merge(done.values(), job.source.command)
    return merged if folder is None or folder.suffix != SUFFIX else replace(merged, run=folder.stem)


Found = Iterator[Audit]
Run = Callable[[Job, Sequence[tuple[int, int]], Progress], Found]


def engine_of(name: Engine, address: str | None) -> Run:
    """What runs shards. Raises `LoadError` where Ray is not installed."""
    return _on_ray(address) if name == "ray" else _here


def _here(job: Job, wanted: Sequence[tuple[int, int]], progress: Progress) -> Found:
    """One shard after the other."""
    for number, of in wanted:
        progress.say(f"shard {number}/{of}")
        yield job.shard(number, of, progress)


def _on_ray(address: str | None) -> Run:
    try:
        import ray
    except ImportError as error:
        raise LoadError("--engine ray needs Ray, which is not installed; pip install 'lipaudit[ray]'") from error

    def run(job: Job, wanted: Sequence[tuple[int, int]], progress: Progress) -> Found:
        mine = not ray.is_initialized()
        if mine:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise LoadError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
        try:
            yield from _gathered(ray, job, wanted, progress)
        finally:
            if mine:
                ray.shutdown()

    return run


def _gathered(ray: Any, job: Job, wanted: Sequence[tuple[int, int]], progress: Progress) -> Found:
    """The shards in the order in which the cluster finishes them."""
    threads = torch.get_num_threads()
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    gpu = device_of(job.network.module).type == "cuda"
    # More CPUs than any machine has would be waited for forever. The threads of a shard stay what they are here.
    needs = {"num_cpus": min(threads, max(1, largest)), "num_gpus": int(gpu), "max_retries": RETRIES}
    task = ray.remote(**needs)(_task)
    with _by_value(ray.cloudpickle, job.network.module):
        what = ray.put((job, threads))
    open_tasks = {task.remote(what, shard): shard for shard in wanted}
    progress.start("shards on Ray", len(open_tasks))
    try:
        while open_tasks:
            (ready, *_), _ = ray.wait(list(open_tasks), num_returns=1)
            number, of = open_tasks.pop(ready)
            try:
                found = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ray.exceptions.RayError):
                    raise LipauditError(f"shard {number}/{of} failed on its worker: {_first(error.cause)}") from error
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except ray.exceptions.RayError as error:
                again = f"Ray gave shard {number}/{of} up after {RETRIES} retries"
                raise LipauditError(f"{again}: {_first(error)}") from error
            progress.advance(note=f"shard {number}/{of}")
            yield found
    finally:
        for left in open_tasks:
            ray.cancel(left, force=True)
        progress.finish()


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


@contextlib.contextmanager
def _by_value(cloudpickle: Any, network: nn.Module) -> Iterator[None]:
    """Classes of the network that no installed package holds travel with it: a worker could not import them."""
    installed = importlib.metadata.packages_distributions()
    names = {type(module).__module__ for module in network.modules()} - {"__main__", "builtins"}
    own = [sys.modules[name] for name in names if name.partition(".")[0] not in {*installed, "lipaudit"}]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _task(what: tuple[Job, int], shard: tuple[int, int]) -> Audit:
    """One shard, on a worker."""
    job, threads = what
    torch.set_num_threads(threads)
    return job.shard(*shard)


def _file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number}.json"


def _kept(folder: Path, number: int, of: int) -> Audit | None:
    """The result of a shard that an earlier process finished; None if it is not there, or not whole."""
    try:
        found = load_audit(_file(folder, number))
    except ReportError:
        return None
    return found if found.shard is not None and (found.shard.number, found.shard.of) == (number, of) else None
