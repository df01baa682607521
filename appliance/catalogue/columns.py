"""The columns that a version takes and gives, read from its schemas.

Owns: which names in a JSON Schema, an option or an example are columns.
Never: validates anything against a schema, or follows a reference out of it.
Read next: ``index`` (keeps them).

A table in JSON has many forms: a list of records, an object of lists, records under ``rows`` or
``dataframe_records``. The names of such containers are no columns; what is inside them is. Of a
member that is an object itself the columns are ``member.name``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from appliance.records import Manifest

COLUMNS_MAX = 2000
_STEPS_MAX = 10_000
_DEPTH_MAX = 16
_LEVELS_MAX = 4
_CONTAINERS = frozenset(
    {
        "rows", "records", "columns", "instances", "inputs", "outputs", "data", "dataframe_records",
        "dataframe_split", "predictions", "index",
    }
)  # fmt: skip
_Part = tuple[Any, str, int]
"""A part of a schema, what stands before the names in it, and how deep it is."""
_EACH = ("allOf", "anyOf", "oneOf")
_SAMPLE_BYTES_MAX = 64 * 1024


def inputs_of(manifest: Manifest) -> dict[str, str]:
    """Columns a version takes, with their JSON types (empty: any), in the order declared.

    They are its input schema's, with those of ``[options] columns``; where neither names any, those
    of the body it answered when it was registered.
    """
    found = of_schema(manifest.input_schema)
    named = manifest.options.get("columns")
    if isinstance(named, dict):
        for name in named:
            found.setdefault(str(name), "")
    return found or _of_sample(manifest.sample)


def outputs_of(manifest: Manifest) -> dict[str, str]:
    """Columns a version gives, with their JSON types, in the order declared."""
    return of_schema(manifest.output_schema)


def of_schema(schema: Mapping[str, Any] | None) -> dict[str, str]:
    """The columns a JSON Schema names; at most ``COLUMNS_MAX``.

    Args:
        schema: as a manifest has it; whatever makes no sense in it names no column.

    Cost: at most ``_STEPS_MAX`` parts are looked at, however they refer to each other.
    """
    return _Reader(schema).columns() if schema else {}


class _Reader:
    """One schema being read: what was found, and how many parts may still be looked at."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._found: dict[str, str] = {}
        self._left = _STEPS_MAX

    def columns(self) -> dict[str, str]:
        """The columns, without recursion."""
        stack: list[_Part] = [(self._schema, "", 0)]
        while stack and self._left > 0 and len(self._found) < COLUMNS_MAX:
            part, prefix, depth = stack.pop()
            self._left -= 1
            if isinstance(part, dict) and depth <= _DEPTH_MAX:
                stack.extend(reversed([*self._below(part, prefix, depth)]))
        return self._found

    def _below(self, part: dict[str, Any], prefix: str, depth: int) -> Iterator[_Part]:
        """The parts of a part that may name columns; its members that are columns are kept."""
        reference = part.get("$ref")
        if isinstance(reference, str):
            yield self._referred(reference), prefix, depth + 1
        for key in _EACH:
            listed = part.get(key)
            for one in listed if isinstance(listed, list) else ():
                if not self._may_look():
                    return
                yield one, prefix, depth + 1
        members = part.get("properties")
        if not isinstance(members, dict):
            yield part.get("items"), prefix, depth + 1
            return
        for name, member in members.items():
            if not self._may_look():
                return
            if name.casefold() in _CONTAINERS and not prefix:
                yield member, "", depth + 1
            elif self._is_table(member):
                yield member, f"{prefix}{name}.", depth + 1
            else:
                self._found.setdefault(f"{prefix}{name}", _type(member))

    def _may_look(self) -> bool:
        """Take one step; whether there is one left, and room for a column."""
        self._left -= 1
        return self._left > 0 and len(self._found) < COLUMNS_MAX

    def _is_table(self, member: Any) -> bool:
        """Whether a member has columns of its own: an object with members, or a list of such."""
        for _ in range(_LEVELS_MAX):
            if not isinstance(member, dict):
                return False
            if isinstance(member.get("properties"), dict) and member["properties"]:
                return True
            reference = member.get("$ref")
            member = (
                self._referred(reference) if isinstance(reference, str) else member.get("items")
            )
        return False

    def _referred(self, reference: str) -> Any:
        """The part of the same schema that ``#/a/b`` points at; ``None`` for anything else."""
        part: Any = self._schema
        if reference == "#" or not reference.startswith("#/"):
            return part if reference == "#" else None
        for name in reference[2:].split("/", _LEVELS_MAX)[:_LEVELS_MAX]:
            plain = name.replace("~1", "/").replace("~0", "~")
            part = part.get(plain) if isinstance(part, dict) else None
        return part


def _type(member: Any) -> str:
    """The JSON type of a column; of a list that of its items."""
    for _ in range(_DEPTH_MAX):
        if not isinstance(member, dict):
            return ""
        kind = member.get("type")
        if kind != "array" or not isinstance(member.get("items"), dict):
            return kind if isinstance(kind, str) else ""
        member = member["items"]
    return ""


def _of_sample(sample: str) -> dict[str, str]:
    """The columns of a body that is a table by name."""
    if not sample or len(sample) > _SAMPLE_BYTES_MAX:
        return {}
    try:
        body = msgspec.json.decode(sample)
    except (msgspec.DecodeError, RecursionError):
        return {}
    if isinstance(body, dict):
        records = body.get("records", body.get("dataframe_records"))
        split = body.get("dataframe_split")
        if isinstance(split, dict) and isinstance(split.get("columns"), list):
            return {str(name): "" for name in split["columns"][:COLUMNS_MAX]}
        body = records if records is not None else body.get("columns")
    if isinstance(body, list) and body and isinstance(body[0], dict):
        body = body[0]
    if not isinstance(body, dict):
        return {}
    return dict.fromkeys([*body][:COLUMNS_MAX], "")
