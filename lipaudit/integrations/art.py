"""For users of the Adversarial Robustness Toolbox: an audit as one of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from art.evaluations.evaluation import Evaluation

from lipaudit.api import audit
from lipaudit.results.audit import Audit


class LipschitzAudit(Evaluation):  # type: ignore[misc]  # ART has no types
    """Proved Lipschitz bounds and certified radii of an ART classifier, held against attacks.

    `norm` is what ART's attacks take for it, `np.inf`, 1 or 2, or what `lipaudit.audit` does: "linf", ("linf", "l2").
    `eps` are budgets in units of the classifier's `clip_values`, `attacks` a preset or names; further `settings` are
    those of `lipaudit.audit`.
    """

    def __init__(
        self,
        eps: str | float | Sequence[str | float] | None = None,
        attacks: str | Sequence[str] = "standard",
        **settings: Any,
    ) -> None:
        self.settings = {"eps": eps, "attacks": attacks, **settings}

    def evaluate(self, classifier: Any, x: np.ndarray, y: np.ndarray, **kwargs: Any) -> Audit:
        """Audit a `PyTorchClassifier` on inputs `x` (n, ...) within its `clip_values` and labels `y`.

        Labels are integers or one-hot rows; `kwargs` replace settings of this evaluation. The classifier is left as it
        is. Raises `CaptureError` for one that computes anything else than its network behind a mean and a standard
        deviation, and the errors of `lipaudit.audit`.
        """
        return audit(classifier, x, y, **{**self.settings, **kwargs})
