"""Settings that have to be in place before torch is loaded, and a quicker torch.export."""

from __future__ import annotations

import os

# On a shared machine, OpenMP threads that spin while they wait slow small operations down a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Under `pytest -n` the workers share the cores; left alone, each would start a thread for every core.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_finish() -> None:
    from quick_export import install  # loads torch

    install()
