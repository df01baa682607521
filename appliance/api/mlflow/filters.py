"""MLflow's filter strings: a small grammar, read without running anything.

Owns: conditions joined by AND, the order of a result, and LIKE.
Never: knows what is searched; that is a function from a field to its value.
Read next: ``registered`` and ``runs`` (who search).

    name LIKE 'fraud%' AND tags.team = 'risk' AND tag.`mlflow.prompt.is_prompt` != 'true'
    metrics.auc > 0.9 AND params.depth = '4' AND attributes.status IN ('FINISHED', 'FAILED')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from appliance.errors import InputInvalid

T = TypeVar("T")
Value = str | float | None
Get = Callable[[str, str], Value]
"""The value of a field: its kind (attribute, tag, param, metric) and its key."""

PROMPT = "mlflow.prompt.is_prompt"
"""The tag every client asks not to be 'true'; what lacks it is no prompt."""

_FILTER_CHARACTERS_MAX = 4096
_CONDITIONS_MAX = 32
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'[^']*'|\"[^\"]*\")|(?P<field>[A-Za-z_][\w]*(?:\.(?:`[^`]+`|\"[^\"]+\"|[\w./-]+))?)"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<op>!=|>=|<=|=|>|<)|(?P<mark>[(),]))"
)
_KINDS = {
    "tag": "tag", "tags": "tag", "param": "param", "params": "param", "parameter": "param",
    "metric": "metric", "metrics": "metric", "attribute": "attribute", "attributes": "attribute",
    "attr": "attribute",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison; ``values`` has more than one member only for IN and NOT IN."""

    kind: str
    key: str
    op: str
    values: tuple[Value, ...]


def conditions(text: str, fields: dict[str, tuple[str, ...]]) -> list[Condition]:
    """The conditions of a filter string.

    Args:
        text: as it came.
        fields: which kinds there are, and the keys of each; no keys: any.

    Raises:
        InputInvalid: it is not of this grammar, or names a field there is none of.
    """
    if len(text) > _FILTER_CHARACTERS_MAX:
        raise InputInvalid(f"A filter has at most {_FILTER_CHARACTERS_MAX} characters.")
    tokens = _tokens(text)
    found: list[Condition] = []
    while tokens:
        if found and tokens.pop(0)[1].upper() != "AND":
            raise _bad(text, "conditions are joined by AND")
        found.append(_condition(text, tokens, fields))
        if len(found) > _CONDITIONS_MAX:
            raise InputInvalid(f"A filter has at most {_CONDITIONS_MAX} conditions.")
    return found


def is_met(wanted: Sequence[Condition], get: Get) -> bool:
    """Whether every condition holds; what has no value meets none but ``!=`` of the prompt tag."""
    return all(_holds(one, get(one.kind, one.key)) for one in wanted)


def ordered(
    found: Sequence[T],
    order_by: Sequence[Any],
    fields: dict[str, tuple[str, ...]],
    get: Callable[[T], Get],
) -> list[T]:
    """What was found in the order asked for; what lacks a field comes last.

    Raises:
        InputInvalid: a member is no field, or no text.
    """
    result = list(found)
    for text in reversed(order_by):
        words = text.split() if isinstance(text, str) and len(text) <= 300 else []
        if not words:
            raise InputInvalid('order_by is a list of texts such as "name ASC".')
        is_down = words[-1].upper() == "DESC"
        is_last = len(words) > 1 and words[-1].upper() in ("ASC", "DESC")
        kind, key = _field(" ".join(words[:-1] if is_last else words), fields)

        def rank(item: T, kind: str = kind, key: str = key) -> Any:
            value = get(item)(kind, key)
            return (isinstance(value, str), value if value is not None else 0)

        known = [item for item in result if get(item)(kind, key) is not None]
        rest = [item for item in result if get(item)(kind, key) is None]
        result = [*sorted(known, key=rank, reverse=is_down), *rest]
    return result


def is_like(text: str, pattern: str) -> bool:
    """SQL's LIKE (``%`` any text, ``_`` one character), in steps of at most their product."""
    at = seen = 0
    star, mark = -1, 0
    while at < len(text):
        if seen < len(pattern) and pattern[seen] == "%":
            star, mark, seen = seen, at, seen + 1
        elif seen < len(pattern) and pattern[seen] in ("_", text[at]):
            at, seen = at + 1, seen + 1
        elif star >= 0:
            mark += 1
            at, seen = mark, star + 1
        else:
            return False
    return not pattern[seen:].strip("%")


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    place = 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise _bad(text, f"what begins at character {place + 1} cannot be read")
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return found


def _condition(
    text: str, tokens: list[tuple[str, str]], fields: dict[str, tuple[str, ...]]
) -> Condition:
    if len(tokens) < 3 or tokens[0][0] != "field":
        raise _bad(text, "a condition is a field, a comparison and a value")
    kind, key = _field(tokens.pop(0)[1], fields)
    op = tokens.pop(0)[1].upper()
    if op == "NOT" and tokens and tokens[0][1].upper() == "IN":
        op = f"NOT {tokens.pop(0)[1].upper()}"
    if op in ("IN", "NOT IN"):
        return Condition(kind, key, op, _list(text, tokens))
    if op not in ("=", "!=", "LIKE", "ILIKE", ">", ">=", "<", "<="):
        raise _bad(text, f"'{op[:10]}' is no comparison")
    if not tokens:
        raise _bad(text, "the last comparison has no value")
    return Condition(kind, key, op, (_value(text, tokens.pop(0)),))


def _list(text: str, tokens: list[tuple[str, str]]) -> tuple[Value, ...]:
    if not tokens or tokens.pop(0)[1] != "(":
        raise _bad(text, "IN takes a list in parentheses")
    found: list[Value] = []
    while tokens:
        found.append(_value(text, tokens.pop(0)))
        mark = tokens.pop(0)[1] if tokens else ""
        if mark == ")":
            return tuple(found)
        if mark != ",":
            break
    raise _bad(text, "the list of IN does not end")


def _value(text: str, token: tuple[str, str]) -> Value:
    kind, value = token
    if kind == "text":
        return value[1:-1]
    if kind == "number":
        return float(value)
    raise _bad(text, "a value is a number or a text in quotes")


def _field(name: str, fields: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    first, dot, rest = name.strip().partition(".")
    kind = _KINDS.get(first.lower(), "") if dot else "attribute"
    key = rest if dot else first
    if key[:1] in ("`", '"') and key[-1:] == key[:1]:
        key = key[1:-1]
    known = fields.get(kind)
    if known is None or (known and key not in known):
        shown = ", ".join(key for keys in fields.values() for key in keys)
        others = ", ".join(f"{kind}s.KEY" for kind, keys in fields.items() if not keys)
        raise InputInvalid(
            f"'{_shown(name)}' is no field; there are {', '.join(filter(None, (shown, others)))}."
        )
    return kind, key


def _holds(one: Condition, value: Value) -> bool:
    if value is None:
        return one.op == "!=" and one.key == PROMPT
    if one.op in ("IN", "NOT IN"):
        return (value in one.values) == (one.op == "IN")
    wanted = one.values[0]
    if one.op in ("LIKE", "ILIKE"):
        pair = (str(value), str(wanted))
        return is_like(*(pair if one.op == "LIKE" else (pair[0].lower(), pair[1].lower())))
    if one.op in ("=", "!="):
        is_same = value == wanted or str(value) == str(wanted)
        return is_same == (one.op == "=")
    if isinstance(value, str) or not isinstance(wanted, float):
        raise InputInvalid(f"'{_shown(one.key)}' is compared with {one.op} to a number only.")
    return {
        ">": value > wanted, ">=": value >= wanted, "<": value < wanted, "<=": value <= wanted,
    }[one.op]  # fmt: skip


def _bad(text: str, why: str) -> InputInvalid:
    return InputInvalid(
        f"The filter '{_shown(text)}' cannot be read: {why}.",
        hint="for example: name LIKE 'fraud%' AND tags.team = 'risk'",
    )


def _shown(text: str) -> str:
    return text[:120].encode("unicode_escape").decode("ascii")
