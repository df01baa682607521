"""Whether a body is what its version says it takes, before anything of it runs.

Owns: which JSON Schemas can be held, what checking costs at most, and the problem with a pointer.
Never: changes a body, fetches a schema from anywhere, or looks at what is not JSON.
Read next: ``manifest`` (``[input_schema]``, ``check_input``), ``invoke`` (asks before each call).

Schemas come from tenants and are applied in the process that serves everybody, so their cost is
known before: a schema has a bounded number of rules, none of which refers to itself or elsewhere,
patterns are matched in linear time, and a body is checked only while rules times values stay below
``CHECKS_MAX``. A larger body goes to the model as it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import msgspec

from appliance.errors import FieldError, InputInvalid
from appliance.records import Version

CHECKS_MAX = 500_000  # rules times values; at the slowest 0.2 us each, a tenth of a second
_RULES_MAX = 4096
_ERRORS_MAX = 8
_DETAIL_MAX = 200
_KEPT = 256
_ELSEWHERE = ("$dynamicRef", "$recursiveRef", "$schema", "$id", "$anchor", "$dynamicAnchor")
_HERE = re.compile(r"#(?:/.*)?", re.DOTALL)


class SchemaRefused(ValueError):
    """A schema cannot be held; the message says why, without a full stop."""


class _Rules:
    """Counts what applying a schema once may take, references included."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def of(self, node: Any) -> int:
        """Rules below a node.

        Raises:
            SchemaRefused: it refers to itself, elsewhere, or to nothing.
        """
        if not isinstance(node, (dict, list)):
            return 1
        key = id(node)
        if key in self._open:
            raise SchemaRefused("a $ref that leads back to itself")
        if key in self._known:
            return self._known[key]
        self._open.add(key)
        members = node.items() if isinstance(node, dict) else ((None, one) for one in node)
        found = 1 + sum(self._member(name, member) for name, member in members)
        self._open.discard(key)
        self._known[key] = found
        return found

    def _member(self, name: str | None, member: Any) -> int:
        if name in _ELSEWHERE and isinstance(member, str):
            raise SchemaRefused(f"{name} is not used here; write plain draft 2020-12")
        if name != "$ref" or not isinstance(member, str):
            return self.of(member)
        if not _HERE.fullmatch(member):
            raise SchemaRefused("a $ref to elsewhere; nothing is fetched")
        target = self._root
        for part in member[2:].split("/") if len(member) > 1 else ():
            word = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or word not in target:
                raise SchemaRefused(f"$ref {member[:80]} leads nowhere")
            target = target[word]
        return self.of(target)


def _no_retrieval(address: str) -> Any:
    raise ValueError(f"{address} is not fetched")


def require_schema(schema: dict[str, Any]) -> tuple[Any, int]:
    """The compiled schema and how many rules it has.

    Args:
        schema: JSON Schema, draft 2020-12.

    Raises:
        SchemaRefused: it is no schema, or one whose cost cannot be bounded.
    """
    try:
        rules = _Rules(schema).of(schema)
    except RecursionError as error:
        raise SchemaRefused("nested too deep") from error
    if rules > _RULES_MAX:
        raise SchemaRefused(f"more than {_RULES_MAX} rules, what $ref leads to included")
    try:
        compiled = jsonschema_rs.Draft202012Validator(
            schema,
            retriever=_no_retrieval,
            validate_formats=False,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=1024 * 1024),
        )
    except (ValueError, jsonschema_rs.ValidationError) as error:
        reason = getattr(error, "message", str(error)).split("\n", 1)[0]
        raise SchemaRefused(f"no JSON Schema: {reason[:_DETAIL_MAX]}") from error
    return compiled, rules


class Checks:
    """Checks bodies against the schemas of the versions they are for; keeps them compiled."""

    def __init__(self) -> None:
        """Start with none compiled."""
        self._of = functools.lru_cache(_KEPT)(self._compile)

    def require(self, version: Version, content_type: str, body: bytes) -> None:
        """Return if a body is what a version takes, as far as that is checked.

        Args:
            version: one whose manifest may have ``check_input``.
            content_type: of the body; what is not JSON is not checked.
            body: the request.

        Raises:
            InputInvalid: it is not; each field's RFC 6901 pointer is named, the first 8 of them.
        """
        if not version.manifest.check_input or not _is_json(content_type):
            return
        check = self._of(_Key(version))
        if check is not None:
            check(body)

    def _compile(self, key: _Key) -> Callable[[bytes], None] | None:
        try:
            compiled, rules = require_schema(key.version.manifest.input_schema or {})
        except SchemaRefused:  # accepted by an earlier release
            return None
        return functools.partial(_check, compiled, rules)


class _Key:
    """A version as the key of a cache: by what it is called, not by all that it holds."""

    __slots__ = ("version",)

    def __init__(self, version: Version) -> None:
        self.version = version

    def __hash__(self) -> int:
        return hash((self.version.model_id, self.version.number))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Key):
            return NotImplemented
        mine, theirs = self.version, other.version
        return (mine.model_id, mine.number) == (theirs.model_id, theirs.number)


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def _check(compiled: Any, rules: int, body: bytes) -> None:
    values = 1 + body.count(b",") + body.count(b"[") + body.count(b"{")
    if rules * values > CHECKS_MAX:
        return
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputInvalid(
            f"The body is not JSON: {str(error)[:_DETAIL_MAX]}.",
            fields=(FieldError(pointer="", detail="not JSON"),),
        ) from error
    if compiled.is_valid(value):
        return
    fields = []
    for wrong in compiled.iter_errors(value):
        fields.append(FieldError(pointer=_pointer(wrong.instance_path), detail=_said(wrong)))
        if len(fields) == _ERRORS_MAX:
            break
    first = fields[0]
    raise InputInvalid(
        f"The body is not what this version takes: {first.pointer or 'it'}: {first.detail}.",
        hint="Its input_schema is in the version's document.",
        fields=tuple(fields),
    )


def _pointer(path: list[str | int]) -> str:
    parts = (str(part)[:100].replace("~", "~0").replace("/", "~1") for part in path)
    return "".join(f"/{part}" for part in parts)


def _said(error: Any) -> str:
    text = str(error.message)
    if len(text) <= _DETAIL_MAX:
        return text
    return f"breaks the rule '{'/'.join(str(part) for part in error.schema_path)[-_DETAIL_MAX:]}'"
