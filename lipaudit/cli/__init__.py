"""The command line: commands, their options, one run, what the terminal shows."""

from __future__ import annotations

import os

# Before torch is loaded, inside the commands. Threads that spin while they wait make the small operations of an
# attack a hundred times slower as soon as another program wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lipaudit.cli import inspect, results, run  # noqa: F401  (each registers its commands)
from lipaudit.cli.main import commands, main

__all__ = ["commands", "main"]
