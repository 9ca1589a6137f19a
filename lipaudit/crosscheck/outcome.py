"""What came of one batch of one attack, and how the journal keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch

from lipaudit.crosscheck.samples import Found
from lipaudit.journal import Journal
from lipaudit.results.bounds import Disagreement


@dataclass(frozen=True)
class Outcome:
    """All that a batch changes: what it found, what was rejected, of what its library warned."""

    found: Found
    rejected: int
    flags: tuple[str, ...]
    seconds: float
    differences: tuple[Disagreement, ...] = ()
    """Where the model and the judge do not say the same of a claim."""
    whole: bool = True
    """Whether the attack ran to its end, and was not cut short by the time limit."""


def remember(journal: Journal, part: str, fingerprint: str, outcome: Outcome) -> None:
    """Keeps the outcome of a batch."""
    found = outcome.found
    journal.put(
        part,
        fingerprint,
        outcome.seconds,
        rows=found.rows,
        distance=found.distance,
        prediction=found.prediction,
        closer=found.closer,
        points=found.points.numpy(),
        rejected=np.array(outcome.rejected),
        flags=np.array(outcome.flags, dtype=np.str_),
        differences=np.array([json.dumps(asdict(each)) for each in outcome.differences], dtype=np.str_),
    )


def recall(journal: Journal, part: str, fingerprint: str) -> Outcome | None:
    """The outcome of a batch that was finished earlier; None if it was not, or not of this batch."""
    kept = journal.get(part, fingerprint)
    if kept is None:
        return None
    points = torch.from_numpy(kept["points"])
    return Outcome(
        found=Found(kept["rows"], kept["distance"], kept["prediction"], kept["closer"], points),
        rejected=int(kept["rejected"]),
        flags=tuple(map(str, kept["flags"])),
        differences=tuple(Disagreement(**json.loads(str(each))) for each in kept["differences"]),
        seconds=float(kept["seconds"]),
    )
