"""The JSON Schema of the result file, made from the very types that write and read it.

Within a major version changes only add: a file of an older minor version is valid under a newer schema, and unknown
fields are allowed, so that a newer file is read by an older lipaudit. What a schema cannot say (columns of one length,
rows that exist, budgets that are numbers) `from_json` checks.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal

from lipaudit.results.audit import SCHEMA, Audit
from lipaudit.results.json import NULLS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SHARE = {"minimum": 0, "maximum": 1}
NO_LESS_THAN_ZERO = {"minimum": 0}
LIMITS: dict[tuple[str, str], dict[str, Any]] = {
    ("Upper", "value"): NO_LESS_THAN_ZERO,
    ("Rate", "value"): SHARE,
    ("Rate", "low"): SHARE,
    ("Rate", "high"): SHARE,
    ("Rate", "count"): NO_LESS_THAN_ZERO,
    ("Rate", "total"): NO_LESS_THAN_ZERO,
    ("Samples", "radius"): NO_LESS_THAN_ZERO,
    ("Samples", "distance"): NO_LESS_THAN_ZERO,
    ("InNorm", "radius"): NO_LESS_THAN_ZERO,
    ("InNorm", "distance"): NO_LESS_THAN_ZERO,
    ("ArithmeticResult", "radius"): NO_LESS_THAN_ZERO,
    ("NetworkBound", "pairwise"): NO_LESS_THAN_ZERO,
    ("Thumbnail", "sample"): NO_LESS_THAN_ZERO,
    ("Claim", "constant"): NO_LESS_THAN_ZERO,
    ("Secant", "sample"): NO_LESS_THAN_ZERO,
    ("Secant", "distance"): NO_LESS_THAN_ZERO,
    ("Secant", "error"): NO_LESS_THAN_ZERO,
}
"""What the numbers of a field, or of its column, cannot be outside of."""
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, bool: {"type": "boolean"}, float: {"type": ["number", "null"]},
}  # fmt: skip


def to_schema() -> str:
    """The schema as text."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """The schema of this version of the result file, after JSON Schema 2020-12."""
    defined: dict[str, dict[str, Any]] = {}
    _define(Audit, defined)
    audit = defined.pop("Audit")
    family, _, version = SCHEMA.partition("/")
    major = version.partition(".")[0]
    audit["properties"]["schema"] = {
        "type": "string",
        "pattern": rf"^{family}/{major}\.[0-9]{{1,4}}$",
        "description": f"Family and version, {SCHEMA} in this schema.",
    }
    audit["required"] = ["schema", *audit["required"]]
    return {"$schema": DIALECT, "$id": f"urn:{family}:{version}", "title": SCHEMA, **audit, "$defs": defined}


def _define(kind: type, defined: dict[str, dict[str, Any]]) -> None:
    """`kind` and every record inside it, each once."""
    if kind.__name__ in defined:
        return
    defined[kind.__name__] = {}
    hints, said = typing.get_type_hints(kind), _docstrings(kind)
    properties = {}
    for field in fields(kind):
        of = _of(hints[field.name], defined, LIMITS.get((kind.__name__, field.name), {}))
        text = " ".join(filter(None, (said.get(field.name, ""), _null(kind, field))))
        properties[field.name] = {**of, "description": text} if text else of
    defined[kind.__name__] = {
        "type": "object",
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "properties": properties,
        "required": [field.name for field in fields(kind) if not _optional(field)],
    }


def _of(kind: Any, defined: dict[str, dict[str, Any]], limits: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type, `limits` being those of its numbers."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        _define(typing.cast(type, kind), defined)
        return {"$ref": f"#/$defs/{typing.cast(type, kind).__name__}"}
    if origin in (types.UnionType, typing.Union):
        return _or_null(_of(args[0], defined, limits))
    if origin is tuple or origin is Sequence:
        fixed = {} if origin is Sequence or args[-1] is Ellipsis else {"minItems": len(args), "maxItems": len(args)}
        return {"type": "array", "items": _of(args[0], defined, limits), **fixed}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(args[1], defined, limits)}
    if origin is Literal:
        return {"enum": list(args)}
    return {**_PLAIN.get(kind, {}), **limits}


def _or_null(of: dict[str, Any]) -> dict[str, Any]:
    if isinstance(of.get("type"), str):
        return {**of, "type": [of["type"], "null"]}
    return of if "null" in of.get("type", ()) else {"anyOf": [of, {"type": "null"}]}


def _null(kind: type, field: Field[Any]) -> str:
    value = NULLS.get((kind.__name__, field.name))
    return "" if value is None else f"null stands for {value}."


def _optional(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


@functools.cache
def _docstrings(kind: type) -> dict[str, str]:
    """What stands below each field in the source."""
    (record,) = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
    said = {}
    body = typing.cast(ast.ClassDef, record).body
    for field, below in itertools.pairwise(body):
        text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
            said[field.target.id] = " ".join(text.split())
    return said
