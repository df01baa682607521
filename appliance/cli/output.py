"""How the command line prints: data on stdout, everything said to a person on stderr.

Owns: JSON, tables, problems and progress bars, and the rules for terminals.
Never: decides what to print; commands do.
Read next: ``context``, which makes an ``Output``.

Progress bars appear on a terminal only; ``NO_COLOR`` and ``TERM=dumb`` turn colour off.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from appliance import config
from appliance.errors import ApplianceError, GuestError

Advance = Callable[[float, str], None]
"""Tell a progress bar how far it is (0.0 to 1.0) and what is happening."""

_RED, _DIM, _RESET = "\x1b[1;31m", "\x1b[2m", "\x1b[0m"


def clean(text: str) -> str:
    """The text without control and bidirectional characters, safe to print on a terminal."""
    return "".join(
        c
        if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"}
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


class Output:
    """One command's printing; made by its context."""

    def __init__(self, *, json: bool, quiet: bool) -> None:
        self.is_json = json
        self.is_quiet = quiet

    def data(self, value: Any, text: str | None = None) -> None:
        """The result of the command: JSON with ``--json``, else the text (or the value's JSON)."""
        if self.is_json or text is None:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write(clean(text).rstrip("\n") + "\n")
        sys.stdout.flush()

    def raw(self, value: bytes) -> None:
        """Bytes as they are; on a terminal with a newline at the end."""
        sys.stdout.buffer.write(value)
        if sys.stdout.isatty() and not value.endswith(b"\n"):
            sys.stdout.buffer.write(b"\n")
        sys.stdout.flush()

    def verbatim(self, text: str) -> None:
        """Text that another program checks byte by byte; cleaned only on a terminal."""
        sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def table(
        self,
        value: Any,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[tuple[str, str]],
        *,
        empty: str = "",
    ) -> None:
        """Rows as an aligned table; ``columns`` pairs a heading with a key of the rows."""
        if self.is_json:
            self.data(value)
            return
        if not rows:
            self.say(empty or "nothing here yet")
            return
        cells = [[heading for heading, _ in columns]]
        cells += [[clean(cell_text(row.get(key))) for _, key in columns] for row in rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A remark to a person; silent with ``--quiet``."""
        if not self.is_quiet:
            sys.stderr.write(clean(text).rstrip("\n") + "\n")
            sys.stderr.flush()

    def problem(self, error: ApplianceError) -> None:
        """What went wrong, what to type, and the request id to quote."""
        request_id = str(error.extensions.get("request_id", ""))
        if self.is_json:
            sys.stderr.write(json.dumps(_problem_document(error, request_id)) + "\n")
            return
        lines = [f"error: {error.detail}"]
        lines += [
            f"  at {f.pointer}: {f.detail}"
            for f in error.fields
            if f.detail and not (f.pointer in error.detail and f.detail in error.detail)
        ]
        printed = _printed(error)
        if printed:
            lines += ["its last lines:", *(f"  {line}" for line in printed)]
        if error.hint:
            lines.append(f"hint: {error.hint}")
        if request_id:
            lines.append(f"request id: {request_id}")
        text = clean("\n".join(lines))
        if sys.stderr.isatty() and config.wants_colour():
            text = text.replace("error:", f"{_RED}error:{_RESET}", 1)
        sys.stderr.write(text + "\n")

    @contextmanager
    def progress(self, title: str) -> Iterator[Advance]:
        """A progress bar on a terminal; elsewhere one line each time the message changes."""
        if self.is_quiet:
            yield lambda _fraction, _message: None
        elif sys.stderr.isatty():
            with _bar(title) as advance:
                yield advance
        else:
            yield _line_progress(self)


def cell_text(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell_text(v) for v in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value).replace("\n", " ")


def _line_progress(output: Output) -> Advance:
    last = ""

    def advance(_fraction: float, message: str) -> None:
        nonlocal last
        if message and message != last:
            last = message
            output.say(f"  {message}")

    return advance


@contextmanager
def _bar(title: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", markup=False),
        console=Console(stderr=True, no_color=not config.wants_colour()),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=1.0, message="")
        yield lambda fraction, message: bar.update(task, completed=fraction, message=clean(message))


def _problem_document(error: ApplianceError, request_id: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": error.status,
        "code": error.slug,
        "detail": error.detail,
    }
    if error.hint:
        document["hint"] = error.hint
    if request_id:
        document["instance"] = request_id
    if error.fields:
        document["errors"] = [{"pointer": f.pointer, "detail": f.detail} for f in error.fields]
    if printed := _printed(error):
        document["stderr"] = list(printed)
    return document


def _printed(error: ApplianceError) -> tuple[str, ...]:
    """What the model, or what built it, printed last; empty if the problem tells none."""
    told = error.stderr if isinstance(error, GuestError) else error.extensions.get("stderr", ())
    return tuple(map(str, told))
