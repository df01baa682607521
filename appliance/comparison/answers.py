"""What models answered to a batch of rows, row by row: a label or number, and probabilities.

Owns: ``Answer``, the forms of reply that are understood, and the forms of body rows are sent in.
Never: calls a model, or evaluates anything of a reply.
Read next: ``runner`` (who asks), ``report`` (who judges).

A reply to n rows is a list of n, or an object with such lists:

    [0, 1, 1]                                    {"predictions": ["a", "b", "a"]}
    {"predictions": [[0.9, 0.1], ...]}           probabilities, in the order of "classes" if there
    {"classes": ["a", "b"], "probabilities": [[0.9, 0.1], ...]}
    [{"label": "a", "probabilities": {"a": 0.9, "b": 0.1}}, ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.errors import InputInvalid

FORMS = (
    "records", "rows", "columns", "instances", "inputs", "dataframe_split", "dataframe_records",
    "list", "objects", "single",
)  # fmt: skip
_NAMED = frozenset({"records", "columns", "dataframe_split", "dataframe_records", "objects"})
_CHOICES = ("predictions", "prediction", "labels", "label", "outputs", "output", "classes", "class",
            "answers", "answer", "values", "value", "scores", "score")  # fmt: skip
_CHANCES = ("probabilities", "probability", "proba")
_CLASSES_MAX = 1000
_SUM_SLACK = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one row was answered.

    ``value`` is a label, a number, or any JSON where nothing simpler was found; ``None`` where only
    probabilities came that do not say of what. ``probabilities`` are of ``classes``, or in the
    order of the data set's own classes where those are empty.
    """

    value: Any
    probabilities: tuple[float, ...] = ()
    classes: tuple[str | int | float | bool, ...] = ()


def form_of(sample: str, schema: Mapping[str, Any] | None, convention: str, *, named: bool) -> str:
    """The form a version takes rows in, as far as it can be told from what is known of it.

    Args:
        sample: the text of a body it answered when it was registered, empty if none is known.
        schema: its input schema.
        convention: what it was recognised as, empty for models with code of their own.
        named: whether the data set's columns have names.
    """
    form = _form_of_body(sample)
    if not form and schema:
        members = schema.get("properties")
        known = [f for f in FORMS if isinstance(members, dict) and f in members]
        form = known[0] if known else ""
        if not form and isinstance(members, dict) and schema.get("type", "object") == "object":
            form = "single"
        elif not form and schema.get("type") == "array":
            items = schema.get("items")
            form = (
                "objects" if isinstance(items, dict) and items.get("type") == "object" else "list"
            )
    if form in ("rows", "instances", "list") and convention and named:
        form = ""  # what takes any form gets its columns' names too
    if not form:
        form = "records" if named and convention else "rows"
    return {"records": "rows", "objects": "list"}.get(form, form) if not named else form


def _form_of_body(text: str) -> str:
    try:
        body = msgspec.json.decode(text) if text else None
    except (msgspec.DecodeError, RecursionError):
        return ""
    if isinstance(body, list) and body:
        return "objects" if isinstance(body[0], dict) else "list"
    if isinstance(body, dict):
        return next((form for form in FORMS if form in body), "")
    return ""


def body_of(form: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """The JSON body that carries rows in this form; ``single`` is one row as an object.

    Raises:
        InputInvalid: the form needs the columns' names, and there are none.
    """
    if form in _NAMED and not columns:
        raise InputInvalid(
            f"The form '{form}' needs the columns' names; the data set has none.",
            hint="send CSV with a line of names, or objects; or --form rows",
        )
    bare = [list(row) for row in rows]
    if form in ("rows", "instances", "inputs"):
        body: Any = {form: bare}
    elif form in ("records", "dataframe_records"):
        body = {form: [dict(zip(columns, row, strict=True)) for row in bare]}
    elif form == "columns":
        body = {form: {name: [row[at] for row in bare] for at, name in enumerate(columns)}}
    elif form == "dataframe_split":
        body = {form: {"columns": list(columns), "data": bare}}
    elif form == "objects":
        body = [dict(zip(columns, row, strict=True)) for row in bare]
    elif form == "single":
        body = dict(zip(columns, bare[0], strict=True)) if columns else bare[0]
    else:
        body = bare
    return msgspec.json.encode(body)


def answers_of(reply: bytes, count: int, *, is_single: bool = False) -> list[Answer] | None:
    """The answers of a reply to ``count`` rows; ``None`` where it does not say one a row.

    Args:
        reply: what the model answered.
        count: how many rows it was asked.
        is_single: the body was one row by itself, and so may be the reply.
    """
    try:
        found = msgspec.json.decode(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(found, list) and len(found) == count and not (is_single and _is_chances(found)):
        return [_answer(one, ()) for one in found]
    if isinstance(found, dict):
        listed = _from_members(found, count)
        if listed is not None:
            return listed
    return [_answer(found, ())] if is_single else None


def _from_members(found: Mapping[str, Any], count: int) -> list[Answer] | None:
    lists = {k: v for k, v in found.items() if isinstance(v, list) and len(v) == count}
    chances = next((lists[k] for k in _CHANCES if k in lists), None)
    classes = _scalars(found.get("classes"))
    width = len(chances[0]) if chances and isinstance(chances[0], list) else 0
    if chances is not None:
        names = classes if len(classes) == width else ()
        chosen = next((lists[k] for k in _CHOICES if k in lists and lists[k] is not chances
                       and not (k == "classes" and names)), None)  # fmt: skip
        if chosen is None:
            return [_answer(one, names) for one in chances]
        pairs = zip(chosen, chances, strict=True)
        return [
            Answer(value=value, probabilities=_chances_of(row, names)[0], classes=names)
            for value, row in pairs
        ]
    chosen = next((lists[k] for k in _CHOICES if k in lists), None)
    if chosen is None and len(lists) == 1:
        chosen = next(iter(lists.values()))
    return None if chosen is None else [_answer(one, classes) for one in chosen]


def _answer(one: Any, classes: tuple[Any, ...]) -> Answer:
    """One row's answer from what stands for it in a reply."""
    if isinstance(one, dict):
        value = next((one[k] for k in _CHOICES if k in one), None)
        chances = next((one[k] for k in _CHANCES if k in one), None)
        probabilities, names = _chances_of(chances, classes)
        if value is None and not probabilities:
            return Answer(value=one)
        if value is None:
            value = _likeliest(probabilities, names)
        return Answer(value=value, probabilities=probabilities, classes=names)
    if isinstance(one, list) and len(one) == 1 and not isinstance(one[0], (list, dict)):
        return Answer(value=one[0])
    probabilities, names = _chances_of(one, classes)
    if probabilities:
        value = _likeliest(probabilities, names)
        return Answer(value=value, probabilities=probabilities, classes=names)
    return Answer(value=one)


def _chances_of(found: Any, classes: tuple[Any, ...]) -> tuple[tuple[float, ...], tuple[Any, ...]]:
    """Probabilities and what they are of, empty where ``found`` are none."""
    if isinstance(found, dict) and _is_chances(list(found.values())):
        return tuple(found.values()), tuple(found)
    if isinstance(found, list) and _is_chances(found):
        return tuple(found), classes if len(classes) == len(found) else ()
    return (), ()


def _is_chances(values: list[Any]) -> bool:
    if not 2 <= len(values) <= _CLASSES_MAX or not all(is_number(v) for v in values):
        return False
    return all(-1e-9 <= v <= 1 + 1e-9 for v in values) and abs(sum(values) - 1) <= _SUM_SLACK


def _likeliest(probabilities: tuple[float, ...], classes: tuple[Any, ...]) -> Any:
    at = max(range(len(probabilities)), key=probabilities.__getitem__)
    return classes[at] if classes else None


def _scalars(found: Any) -> tuple[Any, ...]:
    is_plain = isinstance(found, list) and all(isinstance(v, (str, int, float)) for v in found)
    return tuple(found) if is_plain else ()


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; a truth value is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
