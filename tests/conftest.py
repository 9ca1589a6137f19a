"""Settings that have to be in place before torch is loaded."""

from __future__ import annotations

import os

# On a shared machine, OpenMP threads that spin while they wait slow small operations down a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
