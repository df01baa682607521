"""How the rows of a JSON table lie in it: where the list of them is, and whether they have names.

Owns: finding the list in a document that wraps it, without holding or parsing the document.
Never: reads a row: the list's bytes are the engine's.
Read next: ``engine``.

    [{"a": 1}]    [[1]]    {"records": [{"a": 1}]}    {"rows": [[1]]}
    {"columns": ["a"], "data": [[1]]}    and, a line each: {"a": 1}    [1]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from appliance.errors import InputInvalid
from appliance.tables.headers import require_distinct

Read = Callable[[int, int], bytes]  # offset, size -> bytes

_LISTS = (b"records", b"rows", b"instances", b"dataframe_records", b"data")
_PIECE_BYTES = 1024 * 1024
_HEAD_BYTES = 4096
_NAMES_BYTES_MAX = 4 * 1024 * 1024
_KEY_BYTES_MAX = 100
_MEMBERS_MAX = 1000
_SPACE = b"\xef\xbb\xbf \t\r\n"
_MARK = re.compile(rb'["\\\[\]{}]')
_QUOTE, _ESCAPE = ord('"'), ord("\\")
_OPEN = b"[{"
_WANTED = (
    "A JSON table is a list of objects or of lists, or has such a list as 'records', 'rows', "
    "'instances', 'dataframe_records', or as 'data' with the names in 'columns'."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where the list of rows is: ``size`` bytes from ``start`` on.

    ``is_lists`` says that each row is a list, with the names ``names``, or with none where that is
    empty; else each is an object.
    """

    start: int
    size: int
    names: tuple[str, ...] = ()
    is_lists: bool = False


def shape_of(read: Read, size: int, *, is_lines: bool) -> Shape:
    """The shape of a JSON table of ``size`` bytes, which are looked at in pieces.

    Args:
        read: gives its bytes.
        size: how many there are.
        is_lines: whether it has a row a line.

    Raises:
        InputInvalid: it is none of the shapes above.
    """
    head = read(0, min(size, _HEAD_BYTES))
    body = head.lstrip(_SPACE)
    if is_lines:
        return Shape(start=0, size=size, is_lists=body[:1] == b"[")
    if body[:1] == b"{":
        return _wrapped(read, size)
    if body[:1] != b"[":
        raise InputInvalid(f"The table is no JSON list or object. {_WANTED}")
    start = len(head) - len(body)
    return _listed(read, start, size - start)


def _listed(read: Read, start: int, size: int) -> Shape:
    first = read(start + 1, min(size - 1, _HEAD_BYTES)).lstrip(_SPACE)[:1]
    if first not in (b"", b"[", b"{", b"]"):
        raise InputInvalid(f"The first row is neither an object nor a list. {_WANTED}")
    return Shape(start=start, size=size, is_lists=first == b"[")


def _wrapped(read: Read, size: int) -> Shape:
    members = dict(_members(read, size))
    found = next((name for name in _LISTS if name in members), None)
    if found is None:
        raise InputInvalid(_WANTED)
    start, end = members[found]
    if read(start, 1) != b"[":
        raise InputInvalid(f"'{found.decode()}' is not the list it must be.")
    shape = _listed(read, start, end - start)
    if found != b"data" or b"columns" not in members:
        return shape
    names = _names(read, *members[b"columns"])
    if not shape.is_lists and read(start + 1, _HEAD_BYTES).lstrip(_SPACE)[:1] == b"{":
        raise InputInvalid("With 'columns' each row in 'data' is a list.")
    return Shape(start=start, size=end - start, names=names, is_lists=True)


def _names(read: Read, start: int, end: int) -> tuple[str, ...]:
    if end - start > _NAMES_BYTES_MAX:
        raise InputInvalid(f"'columns' is longer than {_NAMES_BYTES_MAX} bytes.")
    try:
        names = msgspec.json.decode(read(start, end - start), type=tuple[str, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputInvalid("'columns' is not the list of names it must be.") from None
    require_distinct(names)
    return names


def _members(read: Read, size: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Names and places of the lists and objects that are members of the document.

    Raises:
        InputInvalid: brackets or quotes are left open, or something comes after the document.
    """
    depth = key_start = key_end = value_start = count = 0
    is_over = False
    for at, mark in _marks(read, size):
        if mark == _QUOTE:
            if depth == 1:
                key_start, key_end = key_end, at
            continue
        if mark in _OPEN:
            if is_over:
                raise InputInvalid(
                    "There is more after the JSON document.",
                    hint="send a row a line as application/x-ndjson",
                )
            depth += 1
            value_start = at if depth == 2 else value_start
            continue
        depth -= 1
        is_over = depth == 0
        if depth == 1 and 0 < key_end - key_start <= _KEY_BYTES_MAX:
            count += 1
            if count > _MEMBERS_MAX:
                raise InputInvalid(f"The JSON document has more than {_MEMBERS_MAX} members.")
            name = read(key_start + 1, key_end - key_start - 1)
            yield name, (value_start, at + 1)
    if not is_over:
        raise InputInvalid("The table cannot be read as json: it ends in the middle.")


def _marks(read: Read, size: int) -> Iterator[tuple[int, int]]:
    """Places of the brackets that are in no text, and of the quotes around texts."""
    is_text, skipped = False, -1
    for start in range(0, size, _PIECE_BYTES):
        piece = read(start, min(_PIECE_BYTES, size - start))
        for found in _MARK.finditer(piece):
            at, mark = start + found.start(), piece[found.start()]
            if at == skipped:
                continue
            if mark == _ESCAPE:
                skipped = at + 1
            elif mark == _QUOTE:
                is_text = not is_text
                yield at, mark
            elif not is_text:
                yield at, mark
