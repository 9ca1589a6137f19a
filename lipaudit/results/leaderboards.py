"""What other people's lists of models hold of an audit: RobustBench's model info, a Hugging Face model index.

Neither has a place for a proof, so what is proved gets entries of its own, named as such; what attacks did not break is
never written into a place for a full AutoAttack. Nothing is published of an audit whose verdict is INVALID.
"""

from __future__ import annotations

import json
from functools import partial

from lipaudit.errors import ReportError
from lipaudit.results.audit import Audit
from lipaudit.results.formatting import clean
from lipaudit.results.metrics import dataset_name, rate_at
from lipaudit.results.threat import eps_value


def to_robustbench(audit: Audit, eps: str | None = None) -> str:
    """A file as in RobustBench's `model_info`, for one of the budgets in the first norm, by default the first.

    Where it belongs among theirs, `model_info/DATASET/NORM/`, follows from the norm, which the footnote names:
    `audit.in_norm("linf")` puts another one in front.

    Numbers are strings in per cent, as there; what lipaudit cannot know is null. `certified_acc` and `unbroken_acc` are
    additions: the share proved, and the share that the attacks named in the footnote left. Raises `ReportError`.
    """
    _refuse_invalid(audit)
    eps = audit.threat.eps[0] if eps is None else eps
    if eps_value(eps) not in map(eps_value, audit.threat.eps):
        raise ReportError(f"expected one of the budgets {', '.join(audit.threat.eps)}, got {eps}")
    proved, empirical = rate_at(audit.certified, eps), rate_at(audit.empirical, eps)
    info = {
        "link": None,
        "name": clean(audit.model.name),
        "authors": None,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": dataset_name(audit),
        "venue": None,
        "architecture": clean(audit.model.architecture),
        "eps": eps,
        "clean_acc": _percent(audit.clean.count, audit.clean.total),
        "reported": None,
        # Means the standard version of AutoAttack, with all its settings.
        "autoattack_acc": None,
        "certified_acc": proved and _percent(proved.count, proved.total),
        "unbroken_acc": empirical and _percent(empirical.count, empirical.total, upwards=True),
        "unreliable": any(record.flags for record in audit.attacks),
        "footnote": _footnote(audit),
    }
    return json.dumps(info, indent=2, ensure_ascii=False) + "\n"


def to_model_index(audit: Audit) -> str:
    """The metadata of a model card: accuracy, and per budget what is proved and what no attack broke; shares in [0, 1].

    To be pasted between the two lines `---` at the head of the card's README.md. Raises `ReportError`.
    """
    from huggingface_hub import EvalResult, ModelCardData

    _refuse_invalid(audit)
    result = partial(
        EvalResult,
        task_type="image-classification",
        dataset_type=dataset_name(audit),
        dataset_name=dataset_name(audit),
        dataset_split=clean(audit.dataset.split) or None,
    )
    n = audit.dataset.samples
    results = [result(metric_type="accuracy", metric_name=f"accuracy ({n} images)", metric_value=audit.clean.value)]
    for view in audit.views:
        for kind, name, rates in (
            ("certified_accuracy", f"certified accuracy, proved at least ({n} images)", view.certified),
            ("robust_accuracy", f"robust accuracy under {_attacks(view)}, at most ({n} images)", view.empirical),
        ):
            for rate in rates:
                given = {"eps": rate.eps, "norm": view.threat.norm, "units": view.threat.units}
                results.append(result(metric_type=kind, metric_name=name, metric_value=rate.value, metric_args=given))
    return ModelCardData(model_name=clean(audit.model.name), eval_results=results).to_yaml() + "\n"


def _refuse_invalid(audit: Audit) -> None:
    if audit.verdict.integrity == "INVALID":
        raise ReportError("the certificates of this audit are contradicted (INVALID): there is nothing to publish")


def _percent(count: int, total: int, *, upwards: bool = False) -> str:
    """Two digits, rounded to the side on which the claim stays true."""
    hundredths = -(-10_000 * count // total) if upwards else 10_000 * count // total
    return f"{hundredths // 100}.{hundredths % 100:02}"


def _attacks(audit: Audit) -> str:
    return (
        ", ".join(clean(record.name) for record in audit.attacks if not record.unfinished and record.status == "done")
        or "no attack"
    )


def _footnote(audit: Audit) -> str:
    version = clean(audit.environment.get("lipaudit", ""), 20)
    return (
        f"lipaudit {version}, {audit.dataset.samples} of {audit.dataset.available} images, {audit.threat.norm}, "
        f"{audit.threat.units}. certified_acc: proved, a lower bound. unbroken_acc: under {_attacks(audit)}, an upper "
        f"bound. Weights sha256 {clean(audit.model.weights_sha256)}."
    )
