"""The columns of an audit as a pandas DataFrame. pandas is no dependency: it is there, or it is asked for."""

from __future__ import annotations

import math
from typing import Any

from lipaudit.errors import ReportError
from lipaudit.results.audit import Audit, Samples


def to_dataframe(audit: Audit) -> Any:
    """One row per image: the columns of `Samples`, whether it is classified correctly, and a column per estimate.

    What was found in further norms is in columns such as `radius[l2]`.
    A missing distance is NaN, a missing prediction or attack NA. `attrs` say which run it was, whether its certificates
    hold, and in which units radii and distances are. Raises `ReportError` where pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ReportError(
            "expected pandas for a table of the images, found none; pip install pandas, or use audit.samples"
        ) from None
    s = audit.samples
    frame = pandas.DataFrame(
        {
            "index": s.index,
            "label": s.label,
            "prediction": s.prediction,
            "correct": s.correct(),
            "margin": pandas.array(list(s.margin), dtype="float64"),
            **_found(s, pandas),
        }
    )
    for view in audit.views[1:]:
        for name, column in _found(view.samples, pandas).items():
            frame[f"{name}[{view.norms[0]}]"] = column
    for estimate in (one for view in audit.views for one in view.estimates):
        values = [math.nan if value is None else value for value in estimate.values]
        frame[f"estimate: {estimate.name}"] = pandas.array(values, dtype="float64")
    frame.attrs = {
        "run": audit.run,
        "integrity": audit.verdict.integrity,
        "norm": audit.threat.norm,
        "units": audit.threat.units,
    }
    return frame


def _found(s: Samples, pandas: Any) -> dict[str, Any]:
    """The columns that belong to a norm."""
    return {
        "radius": pandas.array(list(s.radius), dtype="float64"),
        # Results written before there were local radii do not say where theirs are from.
        "method": s.method or ("global",) * len(s.label),
        "attacked": s.attacked,
        "distance": pandas.array([math.nan if d is None else d for d in s.distance], dtype="float64"),
        "adversarial_prediction": pandas.array(list(s.adversarial_prediction), dtype="Int64"),
        "attack": pandas.array(list(s.attack), dtype="string"),
    }
