"""The result file: the fields of an `Audit` one to one, and back.

Non-finite numbers are written as null. A null reads as the one non-finite value its field can hold (`NULLS`),
NaN elsewhere; to keep that unambiguous, `to_json` refuses NaN where something is proved.
The class-pair bounds of more than `MOST_CLASSES` classes are left out (a million numbers for ImageNet) and
read back as an empty matrix; the ledger is kept. Everything else makes the round trip exactly.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal

from lipaudit.errors import ReportError
from lipaudit.results.audit import MOST_CLASSES, SCHEMA, Audit, InNorm
from lipaudit.results.bounds import NetworkBound
from lipaudit.results.formatting import clean
from lipaudit.results.threat import eps_value

WIDTH = 110

NULLS = {
    ("Upper", "value"): math.inf,
    ("LayerBound", "log10_so_far"): -math.inf,
    ("NetworkBound", "log10"): -math.inf,
    ("NetworkBound", "pairwise"): math.inf,
    ("NetworkBound", "least"): math.inf,
    ("Samples", "radius"): math.inf,
    ("ArithmeticResult", "radius"): math.inf,
    ("InNorm", "radius"): math.inf,
}
"""What null stands for: an overflowed bound, the bound of a constant, the radius of a constant."""


def to_json(audit: Audit) -> str:
    """The result file as text: same audit, same bytes; raises ReportError if a proved number is NaN."""
    _refuse_ambiguous(audit)
    data = _plain(audit)
    bounds = (audit.bound, *(part.bound for part in audit.other_norms))
    for bound, written in zip(bounds, (data, *data["other_norms"]), strict=True):
        if bound is not None and max(len(bound.pairwise), audit.model.classes) > MOST_CLASSES:
            written["bound"]["pairwise"] = []
            written["bound"]["least"] = _plain(bound.least_of_classes())
            written["bound"]["pairwise_omitted"] = f"more than {MOST_CLASSES} classes; the layers are kept"
    if not audit.other_norms:
        del data["other_norms"]
    return _write({"schema": data.pop("schema"), **data}) + "\n"


def bound_to_json(model: str, method: str, bound: NetworkBound) -> str:
    """The bound of a network without an audit around it, for `lipaudit bounds --format json`."""
    data = {"kind": "lipaudit-bound/1.0", "model": model, "method": method, "bound": _plain(bound)}
    if len(bound.pairwise) > MOST_CLASSES:
        data["bound"]["pairwise"] = []
    return _write(data) + "\n"


def from_json(text: str) -> Audit:
    """The audit that the text holds; raises ReportError with one line if it holds none."""
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"expected JSON, got something else ({clean(error, 100)})") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    version = re.fullmatch(r"lipaudit-result/(\d{1,4})\.\d{1,4}", schema) if isinstance(schema, str) else None
    if version is None:
        raise ReportError(
            f"expected a lipaudit result (schema {SCHEMA}), got {_short(data if schema is None else schema)}"
        )
    known = int(SCHEMA.partition("/")[2].partition(".")[0])
    if int(version[1]) > known:
        raise ReportError(f"expected schema {SCHEMA} or older, got {schema}: install a newer lipaudit to read it")
    audit = _build(Audit, _upgraded(data) if int(version[1]) < known else data, "result")
    for view in audit.views:
        _check(view)
    return audit


_LETTERS = {"R": "real", "F": "native", "D": "float64"}
_OLDER: dict[str, dict[str, str]] = {
    "": {"proved": "certified", "unbroken": "empirical", "promise": "arithmetic", "promises": "arithmetics"},
    "promises": {"promise": "arithmetic", "proved": "certified"},
    "samples": {"executed_distance": "native_distance"},
}
"""What fields were called before version 2.0: of the result, and of the records under these of its fields."""


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A result of version 1.x with the names of today; what is of another kind than expected is left as it is."""
    data = {key: _renamed(key, value) for key, value in data.items()}
    for kind, place in (("verdict", "gate"), ("gates", "state")):
        for record in data[kind] if isinstance(data.get(kind), list) else [data.get(kind)]:
            if isinstance(record, dict) and record.get(place) == "cannot be judged":
                record[place] = "cannot be evaluated"
    for gate in data["gates"] if isinstance(data.get("gates"), list) else []:
        if isinstance(gate, dict) and isinstance(gate.get("expression"), str):
            gate["expression"] = gate["expression"].replace("unbroken_accuracy", "empirical_robust_accuracy")
    return {_OLDER[""].get(key, key): value for key, value in data.items()}


def _renamed(place: str, value: Any) -> Any:
    names = _OLDER.get(place, {})
    if isinstance(value, list):
        return [_renamed(place, item) for item in value]
    if not isinstance(value, dict) or not names:
        return value
    renamed = {names.get(key, key): item for key, item in value.items()}
    if place == "promises" and isinstance(renamed.get("arithmetic"), str):
        renamed["arithmetic"] = _LETTERS.get(renamed["arithmetic"], renamed["arithmetic"])
    return renamed


def _refuse_ambiguous(audit: Audit) -> None:
    """A null may stand for one value only: no NaN in a radius or bound, no infinite logarithm but of a constant."""
    for part in (audit.part(), *audit.other_norms):
        _refuse_ambiguous_in(part)


def _refuse_ambiguous_in(part: InNorm) -> None:
    bound = part.bound
    logs = [bound.log10, *(line.log10_so_far for line in bound.layers)] if bound else []
    radii = [part.radius, *(found.radius for found in part.arithmetics)]
    proved = itertools.chain(*radii, logs, *(bound.pairwise if bound else ()))
    if any(math.isnan(number) for number in proved):
        raise ReportError("expected numbers in everything proved, got NaN in a radius or bound: please report this")
    if math.inf in logs:
        raise ReportError(
            "expected log10 of every bound to be finite, or -inf for a constant, got inf: please report this"
        )


def _plain(value: Any) -> Any:
    """Nothing but dict, list, str, int, finite float, bool and None."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # lone surrogates cannot be written
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(listed := getattr(value, "tolist", None)):
        return _plain(listed())  # NumPy arrays and scalars, without importing NumPy
    return str(value)


def _write(value: Any, indent: str = "") -> str:
    """JSON in which a column, and whatever fits, takes one line."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    short = len(indent) + len(flat) <= WIDTH
    if isinstance(value, dict) and not short:
        rows = [f"{json.dumps(key, ensure_ascii=False)}: {_write(item, indent + ' ')}" for key, item in value.items()]
        opened, closed = "{", "}"
    elif isinstance(value, list) and not short and any(isinstance(item, dict | list) for item in value):
        rows = [_write(item, indent + " ") for item in value]
        opened, closed = "[", "]"
    else:
        return flat
    inside = ",\n".join(f"{indent} {row}" for row in rows)
    return f"{opened}\n{inside}\n{indent}{closed}"


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, value: Any, where: str, null: float = math.nan) -> Any:
    """`value` as the type that a field declares; ReportError names the field where it cannot be."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _build_record(typing.cast(type, kind), value, where)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _build(args[0], value, where, null)
    if origin in (tuple, Sequence):
        items = _expect(list, "a list", value, where)
        if origin is tuple and args[-1] is not Ellipsis and len(items) != len(args):
            _refuse(f"{len(args)} entries", value, where)
        return tuple(_build(args[0], item, f"{where}[{k}]", null) for k, item in enumerate(items))
    if origin is dict:
        items = _expect(dict, "an object", value, where)
        return {key: _build(args[1], item, f"{where}.{key}") for key, item in items.items()}
    if origin is Literal:
        return value if value in args else _refuse(f"one of {', '.join(args)}", value, where)
    if kind is float:
        return null if value is None else _as_float(value, where)
    if kind in (str, int, bool):
        return _expect(kind, {str: "a text", int: "a whole number", bool: "true or false"}[kind], value, where)
    return value


def _build_record(kind: type, value: Any, where: str) -> Any:
    given = _expect(dict, "an object", value, where)
    made = {}
    for field in fields(kind):
        place = f"{where}.{field.name}"
        if field.name in given:
            null = NULLS.get((kind.__name__, field.name), math.nan)
            made[field.name] = _build(_hints(kind)[field.name], given[field.name], place, null)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ReportError(f"expected a lipaudit result, got one without {place}")
    try:
        return kind(**made)
    except ValueError as error:
        raise ReportError(f"{where}: {error}") from None


def _expect(kind: type, words: str, value: Any, where: str) -> Any:
    matches = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return value if matches else _refuse(words, value, where)


def _as_float(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse("a number", value, where)
    try:
        return float(value)
    except OverflowError:
        return _refuse("a number within float64", value, where)


def _refuse(words: str, value: Any, where: str) -> typing.NoReturn:
    raise ReportError(f"{clean(where)}: expected {words}, got {_short(value)}")


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is not JSON")


def _short(value: Any) -> str:
    return clean(json.dumps(value, ensure_ascii=True), 50)


def _check(audit: Audit) -> None:
    """What the types cannot say: columns of one length, rows that exist, budgets that are numbers."""
    lengths = {field.name: len(getattr(audit.samples, field.name)) for field in fields(audit.samples)}
    for later in ("method", "native_distance", "image"):  # older files have no such columns
        if not lengths[later]:
            del lengths[later]
    lengths |= {f"arithmetics.{p.arithmetic}": len(p.radius) for p in audit.arithmetics if p.is_certified}
    if len(set(lengths.values())) > 1:
        raise ReportError(f"result.samples: expected columns of one length, got {lengths}")
    for estimate in audit.estimates:
        if len(estimate.values) != lengths["index"]:
            raise ReportError(f"result.estimates: expected {lengths['index']} values, got {len(estimate.values)}")
    if any(not 0 <= thumbnail.sample < lengths["index"] for thumbnail in audit.thumbnails):
        raise ReportError(f"result.thumbnails: expected rows below {lengths['index']}, got another")
    pairs = audit.bound.pairwise if audit.bound else ()
    if any(len(row) != len(pairs) for row in pairs):
        raise ReportError("result.bound.pairwise: expected a square matrix, got rows of other lengths")
    for eps in (*audit.threat.eps, *(rate.eps for rate in (*audit.certified, *audit.empirical))):
        try:
            eps_value(eps)
        except ValueError as error:
            raise ReportError(f"result.threat.eps: {clean(error, 120)}") from None
