"""What lies in a root folder, written down: one line a path, and one digest over all.

Owns: ``tree.txt`` beside an installed root folder, and comparing a folder with it.
Never: follows a link, or records times and owners: a folder is the same whoever unpacked it when.
Read next: ``images`` (installs and lists), ``bundles`` (carries the digest to another appliance).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LISTING = "tree.txt"
_SHOWN_MAX = 20
_TOLD_EVERY = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A folder's listing. ``size_bytes`` counts each file's content once, hard links too."""

    text: str
    digest: str
    files: int
    size_bytes: int


def tree_of(folder: Path, told: Callable[[int], None] = lambda _count: None) -> Tree:
    """Read a whole folder; ``told`` hears now and then how many paths were read. Blocking."""
    lines, size, files = [], 0, 0
    digests: dict[tuple[int, int], str] = {}
    for path in walk(folder):
        about = path.lstat()
        name = str(path.relative_to(folder)).encode("utf-8", "surrogateescape").hex()
        if stat.S_ISLNK(about.st_mode):
            what = f"link {os.readlink(path).encode('utf-8', 'surrogateescape').hex()}"
        elif stat.S_ISDIR(about.st_mode):
            what = f"folder {about.st_mode & 0o7777:o}"
        elif stat.S_ISREG(about.st_mode):
            identity = (about.st_dev, about.st_ino)
            if identity not in digests:
                digests[identity] = _digest_of(path)
                size += about.st_size
            what = f"file {about.st_mode & 0o7777:o} {about.st_size} {digests[identity]}"
        else:
            what = "other"
        files += 1
        lines.append(f"{name} {what}\n")
        if files % _TOLD_EVERY == 0:
            told(files)
    text = "".join(lines)
    digest = f"sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"
    return Tree(text=text, digest=digest, files=files, size_bytes=size)


def walk(folder: Path) -> Iterator[Path]:
    """Every path below a folder, each folder before what is in it, names in the order of bytes."""
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        path = folder / entry.name
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from walk(path)


def differences(recorded: str, found: str) -> list[str]:
    """What is not as it was: ``changed: path``, ``missing: path``, ``added: path``; at most 20."""
    old, new = _by_name(recorded), _by_name(found)
    told = [f"missing: {_shown(name)}" for name in old if name not in new]
    told += [
        f"{'changed' if name in old else 'added'}: {_shown(name)}"
        for name, what in new.items()
        if old.get(name) != what
    ]
    more = len(told) - _SHOWN_MAX
    return [*told[:_SHOWN_MAX], *([f"and {more} more"] if more > 0 else [])]


def _by_name(text: str) -> dict[str, str]:
    parts = (line.partition(" ") for line in text.splitlines())
    return {name: what for name, _, what in parts}


def _shown(name: str) -> str:
    path = bytes.fromhex(name).decode("utf-8", "replace")
    return "/" + "".join(c if c.isprintable() else "?" for c in path)


def _digest_of(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
