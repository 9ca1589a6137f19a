"""The files of the package, for tests that read them."""

from __future__ import annotations

from pathlib import Path

import lipaudit

PACKAGE = Path(lipaudit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
