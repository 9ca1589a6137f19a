"""How the tests are run: settings before torch is loaded, a quicker torch.export, and files that stay together."""

from __future__ import annotations

import functools
import gc
import os
import re
from pathlib import Path
from typing import Any

import pytest

# On a shared machine, OpenMP threads that spin while they wait slow small operations down a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Under `pytest -n` the workers share the cores; left alone, each would start a thread for every core.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_finish() -> None:
    from quick_export import install  # loads torch

    install()
    # Modules and tests stay: without this, every look for garbage goes through their 800,000 objects.
    gc.collect()
    gc.freeze()


@functools.cache
def _together(file: str, root: Path) -> str:
    """The files whose tests use the sample networks go to one worker, which captures them once."""
    return "samples" if re.search(r"\bsamples\b.*\bcomposed\b", (root / file).read_text(encoding="utf-8")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one worker, so that what its tests share is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid.partition("::")[0], config.rootpath)

    return ByFile(config, log)
