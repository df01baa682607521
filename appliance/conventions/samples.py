"""A body that fits a JSON Schema, for a first call.

Owns: the simplest value of each keyword.
Never: claims that a model answers it; ``trial`` tries those it may try.
Read next: ``cli.model`` (who shows it).
"""

from __future__ import annotations

from typing import Any

_DEPTH_MAX = 8
_ITEMS_MAX = 64
_MEMBERS_MAX = 64
_VALUES_MAX = 1024


class _Room:
    """How many values a sample may still have: lists in lists multiply."""

    def __init__(self) -> None:
        self.left = _VALUES_MAX

    def is_taken(self) -> bool:
        """Take room for one value; whether there was none."""
        self.left -= 1
        return self.left < 0


def sample_of(schema: dict[str, Any], depth: int = 0, room: _Room | None = None) -> Any:
    """The simplest value that a schema allows, as far as its common keywords say; None if unclear.

    Args:
        schema: a JSON Schema, as a manifest has it; what it is not made of is not followed.
        depth: how deep in the value this schema lies.
        room: for how many values there is room; None is the usual.
    """
    room = room or _Room()
    said, value = _said(schema)
    if said or depth >= _DEPTH_MAX or room.is_taken():
        return value
    for key in ("oneOf", "anyOf", "allOf"):
        listed = schema.get(key)
        if isinstance(listed, list) and listed and isinstance(listed[0], dict):
            return sample_of({**schema, key: None, **listed[0]}, depth + 1, room)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        return _object(schema, depth, room)
    if kind == "array":
        return _array(schema, depth, room)
    if kind in ("number", "integer"):
        return _number(schema, is_integer=kind == "integer")
    return {"string": "text", "boolean": False}.get(str(kind))


def _said(schema: dict[str, Any]) -> tuple[bool, Any]:
    """Whether the schema itself has a value that fits, and which."""
    for key in ("example", "default", "const"):
        if key in schema:
            return True, schema[key]
    for key in ("examples", "enum"):
        listed = schema.get(key)
        if isinstance(listed, list) and listed:
            return True, listed[0]
    return False, None


def _object(schema: dict[str, Any], depth: int, room: _Room) -> dict[str, Any]:
    properties = schema.get("properties")
    members = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    names = required if isinstance(required, list) and required else list(members)[:_MEMBERS_MAX]
    found = {}
    for name in names[:_MEMBERS_MAX]:
        member = members.get(name)
        found[name] = sample_of(member, depth + 1, room) if isinstance(member, dict) else None
    return found


def _array(schema: dict[str, Any], depth: int, room: _Room) -> list[Any]:
    fixed = schema.get("prefixItems")
    if isinstance(fixed, list):
        firsts = [one for one in fixed[:_ITEMS_MAX] if isinstance(one, dict)]
        return [sample_of(one, depth + 1, room) for one in firsts]
    items = schema.get("items")
    least = schema.get("minItems")
    count = min(max(least, 1), _ITEMS_MAX) if isinstance(least, int) else 1
    if not isinstance(items, dict):
        return []
    return [sample_of(items, depth + 1, room) for _ in range(count)]


def _number(schema: dict[str, Any], *, is_integer: bool) -> float:
    low, high = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    value: float = 0 if is_integer else 0.0
    if isinstance(above, (int, float)) and value <= above:
        value = above + 1
    if isinstance(low, (int, float)) and value < low:
        value = low
    if isinstance(high, (int, float)) and value > high:
        value = high
    return value
