"""A Ray cluster on this machine: two workers of one CPU each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lipaudit


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Its workers find these tests and this lipaudit. Skips where Ray is not installed."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipaudit[ray]'")
    paths = [str(Path(lipaudit.__file__).parents[1]), str(Path(__file__).parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()
    torch.set_num_threads(threads)
