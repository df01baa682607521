"""Files on the machine the console runs on: new ones that are written, and ones that are sent.

Owns: creating a file without replacing one, reading one within a bound, and its media type.
Never: overwrites anything, or keeps half a file.
Read next: ``screens/batches`` (saves outputs), ``screens/comparisons`` (sends data sets).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tui import text
from tui.client import Problem
from tui.dialogs import Field, Form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tui.frame import Page

DATA_BYTES_MAX = 64 * 1024 * 1024
"""Most bytes of a file that is sent; what is larger is for the command line."""
_MEDIA = {
    ".csv": "text/csv",
    ".tsv": "text/csv",
    ".ndjson": "application/x-ndjson",
    ".jsonl": "application/x-ndjson",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".pq": "application/vnd.apache.parquet",
    ".txt": "text/plain",
}
_JSON = ("{", "[", '"')


def media_of(name: str) -> str:
    """The media type a file's name tells."""
    return _MEDIA.get(Path(name).suffix.lower(), "application/octet-stream")


def create_new(name: str) -> IO[bytes] | str:
    """A new file, mode 0600, open for writing; or a sentence saying why not."""
    try:
        handle = os.open(Path(name).expanduser(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return "That file exists; type another name."
    except (OSError, RuntimeError, ValueError) as error:
        return f"It cannot be written: {getattr(error, 'strerror', None) or error}."
    return os.fdopen(handle, "wb")


def save_new(path: Path, content: str) -> str:
    """Write a new file, mode 0600; a sentence saying why not, empty when it is written."""
    file = create_new(str(path))
    if isinstance(file, str):
        return file
    try:
        with file:
            file.write(content.encode())
    except OSError as error:
        path.expanduser().unlink(missing_ok=True)
        return f"It cannot be written: {error.strerror}."
    return ""


def read_data(name: str, most: int = DATA_BYTES_MAX) -> bytes | str:
    """What is in a file; or a sentence saying why it is not read."""
    try:
        path = Path(name).expanduser()
        if path.stat().st_size > most:
            return f"That file is larger than {text.size(most)}: use the command line."
        return path.read_bytes()
    except (OSError, RuntimeError, ValueError) as error:
        return f"It cannot be read: {getattr(error, 'strerror', None) or error}."


def body_of(words: str) -> tuple[bytes, str] | str:
    """A body and its media type from JSON as typed, or from the file named; or why there is none.

    What begins like JSON is JSON; a file of that name is reached with ``./`` before it.
    """
    if words.startswith(_JSON):
        try:
            json.loads(words)
        except (ValueError, RecursionError):
            return "That is neither JSON nor the name of a file."
        return words.encode(), "application/json"
    data = read_data(words)
    return data if isinstance(data, str) else (data, media_of(words))


def _place(name: str) -> Path:
    return Path(name).expanduser()


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)


async def save_output(page: Page, where: str, *, name: str, what: str, cli: str) -> None:
    """Ask for a new file's name and write there what ``where`` answers; call from a worker.

    Args:
        page: who asks.
        where: the path that is fetched.
        name: the file name offered.
        what: what is saved, in words.
        cli: the same as a command line, up to its ``--out``.
    """
    made: list[IO[bytes]] = []

    def check(values: Mapping[str, str]) -> str:
        if not values["path"]:
            return "Type a path."
        file = create_new(values["path"])
        if isinstance(file, str):
            return file
        made.append(file)
        return ""

    values = await page.app.push_screen_wait(
        Form(
            title=f"Save {what}",
            fields=[Field(name="path", label="File", value=name)],
            verb="Save",
            effect="Written to a new file where the console runs, for you only (0600).",
            check=check,
        )
    )
    if values is None:
        return
    page.console.say(f"Saving {what}; it is told here once it is there.")
    page.app.run_worker(
        _fetch(page, where, made[-1], path=_place(values["path"]), what=what, cli=cli),
        group="save",
    )


async def _fetch(
    page: Page, where: str, file: IO[bytes], *, path: Path, what: str, cli: str
) -> None:
    """Write a file to its end, or not at all."""
    console, is_whole, problem = page.console, False, None
    try:
        with file:
            reply = await console.client.save(where, file)
            size = file.tell()
        is_whole = True
    except Problem as found:
        problem = found
    except OSError as error:
        console.say(f"It cannot be written: {error.strerror}.", is_error=True)
    finally:
        if not is_whole:
            _forget(path)
    if problem is not None:
        await console.show_problem(problem, f"Save {what}")
    if not is_whole:
        return
    console.say(f"Saved {path}, {text.size(size)}\n{reply.request_id}\n$ {cli} --out {path}")
