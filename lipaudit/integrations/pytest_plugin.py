"""For pytest: `assert_certified`, as a function and as a fixture. Nothing but pytest loads until it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from lipaudit.results.audit import Audit
    from lipaudit.results.threat import Norm


def assert_certified(
    model: Any,
    data: Any,
    eps: float | str | None = None,
    at_least: float = 0.5,
    *,
    norm: Norm = "l2",
    samples: int | None = None,
    local: Literal["on", "thorough", "off"] = "off",
    attacks: str | Sequence[str] = "none",
    **settings: Any,
) -> Audit:
    """Assert that for at least this share of `data` no change of at most `eps` can change the right answer.

    Changes are measured in `norm`: "l2", "linf" or "l1". `eps` is 36/255 in L2; in another norm it has to be given.
    `model` as `lipaudit.audit` takes it; `data` a pair (inputs, labels), a Dataset, a DataLoader or the name of a data
    set, of which `samples` are drawn. `local="on"` looks for radii around single images too, which may take minutes
    each, "thorough" for larger ones, many times as long. With `attacks`, a certificate that one of them breaks fails
    the test, whatever the share. Further `settings` are those of `lipaudit.audit`, such as `mean`, `std`, `domain`.
    Returns the audit. Raises AssertionError, and the errors of `lipaudit.audit`.
    """
    __tracebackhide__ = True
    from lipaudit.api import audit
    from lipaudit.errors import BadThreat
    from lipaudit.loading.user_data import as_arrays
    from lipaudit.results.threat import norm_of, spoken

    if not 0 < at_least <= 1:
        raise BadThreat(f"expected at_least to be a share above 0 and up to 1, got {at_least}")
    if eps is None and norm_of(norm) != "l2":
        raise BadThreat(f"expected eps, a budget in {spoken(norm)}, such as 8/255, got none")
    inputs, labels = as_arrays(data, samples=samples, seed=settings.get("seed", 0))
    budget = 36 / 255 if eps is None else eps
    found = audit(model, inputs, labels, norm=norm_of(norm), eps=(budget,), attacks=attacks, local=local, **settings)
    if found.verdict.integrity != "SOUND":
        raise AssertionError(f"{found.verdict.headline} Do not rely on certificates; please report this.")
    if found.certified[0].value < at_least:
        raise AssertionError(_failure(found, at_least, local))
    return found


@pytest.fixture(name="assert_certified", scope="session")
def _assert_certified() -> Callable[..., Audit]:
    """`assert_certified(model, data, eps=36/255, at_least=0.5)`: see lipaudit.integrations.pytest_plugin."""
    return assert_certified


def _failure(found: Audit, at_least: float, local: str) -> str:
    """What was certified, what was wanted, what to do."""
    from lipaudit.results.formatting import number, number_from_log10, percent
    from lipaudit.results.metrics import median_radius
    from lipaudit.results.threat import eps_text

    proved, clean = found.certified[0], found.clean
    if clean.value < at_least:
        remedy = "too many answers are wrong for any certificate; check labels, normalisation and training"
    elif local == "off":
        remedy = 'certify around single images too (local="on"), or train for a small Lipschitz bound (lipaudit.nn)'
    else:
        remedy = "train for a small Lipschitz bound (lipaudit.nn)"
    assert found.bound is not None
    bound = number_from_log10(found.bound.log10)
    lines = [
        f"certified accuracy at eps {eps_text(proved.eps)} ({found.threat.norm}) is {percent(proved.value)}, expected "
        f"{at_least:.4g} or more",
        f"{proved.count} of {proved.total} images are certified, {clean.count - proved.count} more are right but not "
        f"certified, {clean.total - clean.count} are wrong",
        f"median certified radius {number(median_radius(found))}, Lipschitz bound {bound}",
        *(f"{skip.what}: {skip.why}" for skip in found.skipped),
        f"to do: {remedy}; or ask for less by eps or at_least",
    ]
    return "\n".join(lines)
