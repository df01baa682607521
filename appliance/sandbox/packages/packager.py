"""What every way of shipping packages has in common.

Owns: ``Packager``, refusals that name a line, copying from an offered folder, digests of files.
Never: opens an archive a stranger made, or runs a package's code.
Read next: ``wheels``, ``npm``, ``gems``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance import config
from appliance.errors import BuildFailed, FieldError, ManifestInvalid
from appliance.records import Package
from appliance.sandbox.frames import clean
from appliance.sandbox.images import Runtime

Log = Callable[[str], None]
Fetch = Callable[[Path, Runtime, tuple[str, ...], config.Build, Log], tuple[Package, ...]]

PACKAGES_MAX = 2000
PLAN = "plan"
"""File that tells a builder what to install: one line a package, in order, parts apart by tabs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packager:
    """One way of shipping packages.

    ``files`` is what a requirements file may be called, ``hint`` how a person makes one. ``parse``
    turns its text into requirements, sorted, one text each, and refuses by line of the file it is
    given the name of. ``fetch`` puts the
    packages of these requirements, and of those they need in turn, into a folder, with a ``PLAN``
    for the builder, and returns them: blocking, and nothing of a package runs. ``finds`` is a
    pattern of the line that names a package. Where ``is_plain`` the fetched files are installed
    as they are, without a builder.
    """

    files: str
    hint: str
    parse: Callable[[str, str], tuple[str, ...]]
    fetch: Fetch
    finds: Callable[[str], str]
    is_plain: bool = False


def refused(file: str, number: int, reason: str, hint: str) -> ManifestInvalid:
    """The problem of one line of a requirements file."""
    return ManifestInvalid(
        f"{file}:{number}: {reason}.",
        hint=hint,
        fields=(FieldError(pointer=f"{file}:{number}", detail=reason),),
    )


def finds_name(name: str) -> str:
    """A pattern of a package's name as a word, ``-``, ``_`` and ``.`` taken as the same."""
    spelled = "[-_.]+".join(re.escape(part) for part in re.split(r"[-_.]+", name))
    return rf"(?i)(?<![\w.-]){spelled}(?![\w-])"


def pins_from_lines(
    text: str, file: str, pattern: re.Pattern[str], example: str, hint: str
) -> dict[str, str]:
    """Name to version of lines like ``name==1.2.3``; comments and empty lines are left out.

    Raises:
        ManifestInvalid: a line is anything else, or names a package a second time.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not content:
            continue
        match = pattern.fullmatch(content)
        if match is None:
            raise refused(
                file, number, f"'{clean(content, 100)}' is not an exact pin like {example}", hint
            )
        name, version = match["name"], match["version"]
        if found.setdefault(name, version) != version:
            raise refused(file, number, f"'{name}' is pinned twice, to different versions", hint)
        if len(found) > PACKAGES_MAX:
            raise refused(file, number, f"more than {PACKAGES_MAX} packages", hint)
    return found


def digest_of(path: Path) -> str:
    """``sha256:`` and the hex digest of a file."""
    with path.open("rb") as data:
        return f"sha256:{hashlib.file_digest(data, 'sha256').hexdigest()}"


def copy_offered(source: Path, target: Path, size_bytes_max: int, package: str) -> None:
    """Copy a file of the administrator's folder to where the builder finds it.

    Raises:
        BuildFailed: it is larger than a set may be.
    """
    if source.stat().st_size > size_bytes_max:
        raise BuildFailed(
            f"Package '{package}' is larger than {size_bytes_max} bytes.",
            hint="build.size_bytes_max",
            package=package,
        )
    shutil.copyfile(source, target)
    target.chmod(0o644)


def require_folder(folder: str, setting: str, what: str) -> Path:
    """The folder a setting names.

    Raises:
        BuildFailed: none is set, or it is not there.
    """
    if not folder:
        raise BuildFailed(
            f"This appliance has no source of {what}.",
            hint=f"have IT set {setting} to a folder of them",
        )
    path = Path(folder)
    if not path.is_dir():
        raise BuildFailed(f"{setting} names no folder that can be read.", hint=setting)
    return path


def write_plan(folder: Path, lines: Sequence[tuple[str, ...]]) -> None:
    """Write the builder's ``PLAN``; no part may hold a tab or a line's end."""
    text = "".join("\t".join(parts) + "\n" for parts in lines)
    (folder / PLAN).write_text(text, encoding="utf-8")
