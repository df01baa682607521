"""What an error of DuckDB means for whoever has the table.

Owns: the sentence, the line and the column of an ``InputInvalid``.
Never: shows a stack, an address or a setting of the engine.
Read next: ``engine``.
"""

from __future__ import annotations

import re

from appliance.errors import FieldError, InputInvalid

_TEXT_MAX = 300
_LINE = re.compile(r"(?:CSV Error on Line:|in line|in record/value|in row) (\d+)")
_COLUMN = re.compile(r'converting column "([^"\n]{1,100})"')
# Of these errors alone it says one too many (DuckDB 2.0.0); blank lines do not count in any.
_MALFORMED = re.compile(r"(Malformed JSON in file .*? in (?:line|record/value) )(\d+)")
_SAID: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), sentence)
    for pattern, sentence in (
        (
            r"Expected Number of Columns: (\d+) Found: (\d+)",
            r"it has \2 fields where the first line has \1",
        ),
        (r"unterminated quote", "a quote is opened and not closed"),
        (r"quote should be followed by|unescaped quote", "a quote is not doubled within a field"),
        (r"[Ii]nvalid (?:unicode|UTF-?8)", "it is not UTF-8 text"),
        (r"Maximum line size of (\d+) bytes exceeded", r"it is longer than \1 bytes"),
        (r'"maximum_object_size" of (\d+) bytes exceeded', r"a row is longer than \1 bytes"),
        (r"recursion depth of (\d+)", r"a value is nested deeper than \1"),
        (
            r"converting column \"([^\"\n]{1,100})\".*?"
            r"Could not convert string \"([^\n]{0,80}?)\" to '([^'\n]+)'",
            r"'\2' in the column '\1' is no \3",
        ),
        (r"Malformed JSON in file .*?: ([^\n]{1,200}?)[. ]*(?:\n|$)", r"it is no JSON: \1"),
        (r"JSON transform error [^\n]*?, in [^\n:]*: ([^\n]{1,200}?)[. ]*(?:\n|$)", r"\1"),
        (r"expected records", "each row must be a JSON object with the columns by name"),
        (r"Footer length error|[Nn]o magic bytes", "its end is missing or damaged"),
    )
)


def refusal(error: Exception, format_name: str) -> InputInvalid:
    """The problem that an error of DuckDB comes to."""
    if type(error).__name__ == "OutOfMemoryException":
        return InputInvalid(
            f"Reading this {format_name} table takes more memory than there is for it: its row "
            "groups or single rows are too large.",
            hint="write it with smaller row groups, such as 65,536 rows",
        )
    text = _MALFORMED.sub(lambda found: f"{found[1]}{int(found[2]) - 1}", str(error))
    line, column = _LINE.search(text), _COLUMN.search(text)
    if line and not column:
        return refused_row(format_name, int(line[1]), _said(text))
    word = _word(format_name)
    place = f"{word}:{line[1]}" if line else ""
    if column:
        place = f"{place or 'table'}:{column[1]}"
    detail = (
        f"The table cannot be read as {format_name}{f', {word} {line[1]}' if line else ''}: "
        f"{_said(text)}."
    )
    fields = (FieldError(pointer=place, detail=detail),) if place else ()
    return InputInvalid(detail, fields=fields)


def refused_row(format_name: str, number: int, said: str) -> InputInvalid:
    """The problem of a row, counted from 1: a line of a text, an item of a JSON list."""
    word = _word(format_name)
    detail = f"The table cannot be read as {format_name}, {word} {number}: {said}."
    return InputInvalid(detail, fields=(FieldError(pointer=f"{word}:{number}", detail=detail),))


def _word(format_name: str) -> str:
    return "item" if format_name == "json" else "line"


def _said(text: str) -> str:
    for pattern, sentence in _SAID:
        if found := pattern.search(text):
            return found.expand(sentence)
    first = re.sub(r"^[A-Za-z ]+Error: ", "", text.strip()).splitlines()[0]
    return re.sub(r"tab://\d+", "the table", first)[:_TEXT_MAX].rstrip(". ")
