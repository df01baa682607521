"""Rows of a batch as the body of a call, and a model's answer as one result per row.

Owns: the forms a body can have, which one a version takes, and what an answer may look like.
Never: calls a model, or knows where rows come from.
Read next: ``batches`` (who uses this).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import msgspec

from appliance.batch_records import BatchForm
from appliance.errors import ResultsDiffer
from appliance.records import (
    Manifest,
)

FORMS: tuple[BatchForm, ...] = get_args(BatchForm)
ONLY = "prediction"
"""The column of results that are values, not objects."""
ERROR = "error"
_NAMES_MAX = 1000
_NAME_CHARACTERS_MAX = 200
_MANY = ("predictions", "outputs", "results")
_encode = msgspec.json.Encoder().encode

Row = Mapping[str, Any]
Result = dict[str, Any]


def form_of(manifest: Manifest) -> BatchForm:
    """The form of body a version takes, as far as it tells: by its input schema or its sample."""
    known: Any = (manifest.input_schema or {}).get("properties") or {}
    if not known and manifest.sample:
        known = json.loads(manifest.sample)
    for form in ("records", "rows", "columns"):
        if isinstance(known, dict) and form in known:
            return form
    if (manifest.input_schema or {}).get("type") == "array":
        return "list"
    return "records" if manifest.entry.startswith("@") else "rows"


def body_of(rows: Sequence[Row], form: BatchForm) -> bytes:
    """Rows as JSON.

    ``records``: ``{"records": [{"a": 1}]}``; ``rows``: ``{"rows": [[1]]}``; ``columns``:
    ``{"columns": {"a": [1]}}``; ``list``: ``[[1]]``. NaN and infinities are null.
    """
    match form:
        case "records":
            return _encode({"records": rows})
        case "columns":
            names = rows[0].keys()
            return _encode({"columns": {name: [row[name] for row in rows] for name in names}})
        case "rows":
            return _encode({"rows": [list(row.values()) for row in rows]})
        case "list":
            return _encode([list(row.values()) for row in rows])


def results_of(reply: bytes, count: int) -> list[Result]:
    """A model's answer as one result per row, in their order.

    An answer is a list with a result for each row, an object of such lists by column, or either
    under one name. A result that is an object is columns, any other value is ``prediction``.

    Raises:
        ResultsDiffer: it is none of these, or has another number of results than ``count``.
    """
    try:
        answer = msgspec.json.decode(reply)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        answer = _lenient(reply)
    name = ONLY
    if isinstance(answer, dict):
        inner = next((one for one in _MANY if one in answer), None)
        if inner is None and len(answer) == 1:
            (inner,) = answer
        if inner is not None and isinstance(answer[inner], (list, dict)):
            name = ONLY if inner in _MANY else inner
            answer = answer[inner]
    if isinstance(answer, dict):
        return _from_columns(answer, count)
    if not isinstance(answer, list):
        raise ResultsDiffer(f"The model answered a single value to {count} rows.")
    _require_count(len(answer), count)
    return [one if isinstance(one, dict) else {name: one} for one in answer]


def _lenient(reply: bytes) -> Any:
    try:
        return json.loads(reply)  # NaN and infinities are what many models write
    except (ValueError, RecursionError) as error:
        raise ResultsDiffer("The model's answer is no JSON.") from error


def _from_columns(answer: dict[str, Any], count: int) -> list[Result]:
    for name, values in answer.items():
        if not isinstance(values, list):
            raise ResultsDiffer(f"'{name[:80]}' in the model's answer is no list of results.")
        _require_count(len(values), count)
    if not answer:
        raise ResultsDiffer("The model's answer is empty.")
    return [dict(zip(answer, values, strict=True)) for values in zip(*answer.values(), strict=True)]


def _require_count(found: int, wanted: int) -> None:
    if found != wanted:
        raise ResultsDiffer(f"The model answered {found} results to {wanted} rows.")


def marked(results: Iterable[Result]) -> list[Result]:
    """Results with an empty ``error`` each; a model's own is called ``model_error``."""
    found = []
    for result in results:
        if ERROR in result:
            result[f"model_{ERROR}"] = result.pop(ERROR)
        found.append({**result, ERROR: None})
    return found


def names_of(results: Iterable[Result]) -> tuple[str, ...]:
    """The columns of results, as they first appear.

    Raises:
        ResultsDiffer: they cannot be the columns of a table.
    """
    names: dict[str, None] = {}
    for result in results:
        names.update(dict.fromkeys(result))
        if len(names) > _NAMES_MAX:
            raise ResultsDiffer(f"The model's results have more than {_NAMES_MAX} columns.")
    if len({name.lower() for name in names}) != len(names):
        raise ResultsDiffer("Two columns of the model's results differ in case only.")
    for name in names:
        if not 0 < len(name) <= _NAME_CHARACTERS_MAX or "\0" in name:
            raise ResultsDiffer("A column of the model's results has a name no table can have.")
    return tuple(names)


def lines_of(results: Iterable[Result]) -> bytes:
    """Results as NDJSON."""
    return b"".join(_encode(result) + b"\n" for result in results)


def renamed(names: Sequence[str], taken: Iterable[str]) -> tuple[str, ...]:
    """Names for result columns beside the input's: one that is taken gets ``_result`` behind it."""
    used = {name.lower() for name in taken}
    found = []
    for name in names:
        new = name
        while new.lower() in used:
            new += "_result"
        used.add(new.lower())
        found.append(new)
    return tuple(found)


def merged(names: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The columns of several parts together, as they first appear; ``error`` is the last."""
    found = dict.fromkeys(name for some in names for name in some)
    if ERROR in found:
        del found[ERROR]
        found[ERROR] = None
    return tuple(found)
