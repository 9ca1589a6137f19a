"""A local Ray cluster of two workers finds what this process finds, also when workers are killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster
from command_line import Call, call
from sharded import SETTINGS, Deadly, data, network, pair, timeless
from usermodels import user_module

import lipaudit
from lipaudit.engines import audit_in_shards
from lipaudit.errors import BadThreat, LipauditError, LoadError

__all__ = ["call", "cluster", "pair", "user_module"]

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipaudit[ray]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own warnings are not ours
]


def where_apart(audit: Any) -> dict[str, Any]:
    return timeless(replace(audit, model=replace(audit.model, name="", architecture="")))


def test_two_workers_find_what_one_process_finds(cluster: Any) -> None:
    del cluster
    here = audit_in_shards(network(), *data(), **SETTINGS, shards=3)
    there = audit_in_shards(network(), *data(), **SETTINGS, shards=3, engine="ray")
    assert timeless(there) == timeless(here)
    assert len(there.parts) == 3


def test_a_killed_worker_loses_only_its_shard(cluster: Any, tmp_path: Path) -> None:
    del cluster
    here = audit_in_shards(Deadly(tmp_path, 0).eval(), *data(), **SETTINGS, shards=3)
    there = audit_in_shards(Deadly(tmp_path).eval(), *data(), **SETTINGS, shards=3, engine="ray")
    assert list(tmp_path.iterdir()), "no worker was killed"
    assert where_apart(there) == where_apart(here)


def test_a_shard_whose_workers_all_die_is_given_up_in_one_line(cluster: Any, tmp_path: Path) -> None:
    del cluster
    with pytest.raises(LipauditError, match=r"gave shard ./2 up after 3 retries") as caught:
        audit_in_shards(Deadly(tmp_path, 99).eval(), *data(), **SETTINGS, shards=2, engine="ray")
    assert "\n" not in str(caught.value)


def test_errors_on_a_worker_are_those_of_the_audit(cluster: Any) -> None:
    del cluster
    images, labels = data()
    with pytest.raises(BadThreat, match=r"expected inputs in \[0, 1\]"):
        audit_in_shards(network(), images * 255, labels, **SETTINGS, shards=2, engine="ray")


def test_ray_on_the_command_line(cluster: Any, call: Call, pair: list[object]) -> None:
    del cluster
    for engine in ("local", "ray"):
        result = call("run", *pair, "--shards", 2, "--engine", engine, "--out", engine, "--format", "json")
        assert result.code == 0, result.err
    (here,), (there,) = (Path(engine).glob("*.json") for engine in ("local", "ray"))
    assert timeless(lipaudit.load_audit(there)) == timeless(lipaudit.load_audit(here))
    assert "shards on Ray" in result.err


def test_no_cluster_where_one_is_said_to_be() -> None:
    ray.shutdown()
    with pytest.raises(LoadError, match="no Ray cluster at auto"):
        audit_in_shards(network(), *data(), **SETTINGS, shards=2, engine="ray", address="auto")
