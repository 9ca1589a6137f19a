"""Which cases of a test run at once, and which with the slow ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: int) -> list[Any]:
    """The first `quick` cases as they are, the others marked slow: one test, over few cases and over all."""
    first = list(cases)
    rest = first[quick:]
    del first[quick:]
    return [*first, *(pytest.param(case, marks=pytest.mark.slow) for case in rest)]
