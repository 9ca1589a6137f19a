"""For training loops: what can be certified, every few epochs, as scalars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import nn

from lipaudit.certification.certificates import certify_with
from lipaudit.certification.inputs import check_inputs, check_labels, within
from lipaudit.certification.network_bound import compose
from lipaudit.certification.norm_bounds import bound_in
from lipaudit.crosscheck.isolation import random_state_kept
from lipaudit.errors import BadThreat, LoadError
from lipaudit.graph.wrappers import prepared
from lipaudit.loading.user_data import as_arrays
from lipaudit.results.threat import PIXELS, box_of, eps_value, threats_of
from lipaudit.settings import Settings, settings_from

Log = Callable[[str, float, int], Any]
"""Takes a tag, a number and a step, as the `add_scalar` of a TensorBoard `SummaryWriter` does."""


class CertificateLog:
    """Called with the epoch, logs what is certified every so many of them: global radii only, seconds each time.

    Training goes on as if it had not been called: modes, gradients and random states are as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        log: Log,
        *,
        eps: float | str | None = None,
        every: int = 1,
        samples: int | None = None,
        **keywords: Any,
    ) -> None:
        """`data` as `as_arrays` takes it; `samples` of it are drawn once, the same for all epochs. `keywords` are
        `norm`, `norms`, `mean`, `std` and `domain` of `lipaudit.certify`; the domain is [0, 1] unless said otherwise.
        `eps` is a budget in that norm, by default the smallest that an audit would take: 36/255 in L2.

        Raises `BadThreat` and `LoadError` for arguments that make no sense.
        """
        if not isinstance(model, nn.Module):
            raise LoadError(f"expected the nn.Module that is trained, got {type(model).__name__}")
        if every < 1:
            raise BadThreat(f"expected every to be 1 or more epochs, got {every}")
        self.model, self.log, self.every = model, log, every
        pixels = Settings(norms="best", domain=PIXELS)
        takes = ("norm", "norms", "mean", "std", "domain")
        self.settings = settings_from(keywords, pixels, "CertificateLog", takes=takes)
        self.norm, self.domain = self.settings.only_norm, box_of(self.settings.domain)
        inputs, self.labels = as_arrays(data, samples=samples)
        self.inputs = within(check_inputs(inputs), self.domain)
        (threat,) = threats_of(eps, (self.norm,), self.domain, self.inputs.shape[1:])
        self.eps = eps_value(threat.eps[0])

    def __call__(self, epoch: int) -> dict[str, float] | None:
        """The scalars of this epoch by their tags, logged; None if it is not its turn.

        Raises the errors of `lipaudit.bound`, as for weights that have become NaN.
        """
        if epoch % self.every:
            return None
        with random_state_kept(0), _evaluating(self.model):
            network = prepared(self.model, self.settings)
            shape = tuple(self.inputs.shape[1:])
            composition = compose(network.module, shape, domain=self.domain, **self.settings.bounding)
            answers = check_labels(self.labels, len(self.inputs), len(composition.network.pairwise))
            certificates = certify_with(composition, self.inputs, answers, norm=self.norm)
            found = bound_in(composition, self.norm)
        scalars = {
            "lipaudit/certified_accuracy": float(np.mean(certificates.radius > self.eps)),
            "lipaudit/clean_accuracy": float(np.mean(certificates.prediction == answers)),
            "lipaudit/lipschitz_bound": found.value,
            # The bound itself overflows for deep networks that are not trained for a small one.
            "lipaudit/log10_lipschitz_bound": found.log10,
        }
        for tag, value in scalars.items():
            self.log(tag, value, epoch)
        return scalars


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and each of its modules back in its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
