"""The names of a table's columns.

Owns: reading the first line of a CSV file, and what names a table cannot have.
Never: reads a second line.
Read next: ``engine``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from appliance.errors import FieldError, InputInvalid

_DELIMITERS = (",", ";", "\t", "|")


def csv_header(head: bytes) -> tuple[list[str], str]:
    """The names in the first line of a CSV file, and what is between them.

    Args:
        head: how the file begins, its first line at least.

    Raises:
        InputInvalid: it has no first line in UTF-8, or one with the same name twice.
    """
    line, quotes = bytearray(), 0
    for piece in head.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True):
        line += piece
        quotes += piece.count(b'"')
        if quotes % 2 == 0:
            break
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _at_line("The first line of the table is not UTF-8 text.", 1) from error
    if not text.strip():
        raise _at_line("The table has no first line with the names of its columns.", 1)
    outside = re.sub(r'"[^"]*"', "", text)
    delimiter = max(_DELIMITERS, key=outside.count)
    try:
        names = next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _at_line(f"The first line of the table cannot be read: {error}.", 1) from error
    require_distinct(names)
    return names, delimiter


def require_distinct(names: Sequence[str]) -> None:
    """Return if these can be the names of a table's columns.

    Raises:
        InputInvalid: one is empty, or two are the same but for case.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not name:
            raise _at_line("A column has no name.", 1)
        other = seen.get(name.lower())
        if other is not None:
            raise _at_line(
                f"Two columns are called '{other[:80]}' and '{name[:80]}'; names must differ in "
                "more than case.",
                1,
            )
        seen[name.lower()] = name


def _at_line(detail: str, line: int) -> InputInvalid:
    return InputInvalid(detail, fields=(FieldError(pointer=f"line:{line}", detail=detail),))
