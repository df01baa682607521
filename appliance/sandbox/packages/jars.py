"""Java: jars by exact coordinates, from a folder laid out as a Maven repository.

Owns: the grammar (also what ``mvn dependency:list`` prints), and which file is meant.
Never: resolves what a jar needs in turn (the list is complete), or opens a jar's contents.
Read next: ``runtimes.java`` (whose class path has them).
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from appliance import config
from appliance.errors import BuildFailed
from appliance.records import Package
from appliance.sandbox.frames import clean
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages.packager import (
    PACKAGES_MAX,
    Log,
    Packager,
    copy_offered,
    digest_of,
    refused,
    require_folder,
)

_HINT = "list every jar as group:artifact:version, as 'mvn dependency:list' prints them"
_PART = r"[A-Za-z0-9][\w.+-]{0,120}"
_SCOPES = ("compile", "runtime", "provided", "system", "test")
_COORDINATES = re.compile(rf"{_PART}(?::{_PART}){{2,5}}")
_SUM = re.compile(r"(?:--hash=)?sha256:[0-9a-f]{64}")


def parse(text: str, file: str = "requirements") -> tuple[str, ...]:
    """``group:artifact:version[:classifier][ sha256:...]`` of every line, sorted.

    Jars of the scopes test, provided and system are left out.

    Raises:
        ManifestInvalid: a line is anything else; the line is named.
    """
    found: dict[tuple[str, str, str], str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = re.split(r"(?:^|\s)#|\s--\s", line.removeprefix("[INFO]"), maxsplit=1)[0].strip()
        if not content or "resolved:" in content:
            continue
        named, *rest = content.split()
        if not _COORDINATES.fullmatch(named) or any(not _SUM.fullmatch(one) for one in rest):
            raise refused(
                file, number, f"'{clean(content, 100)}' is not group:artifact:version", _HINT
            )
        group, artifact, version, classifier, scope, kind = _taken_apart(named)
        if kind != "jar":
            raise refused(file, number, f"'{clean(named, 100)}' is no jar", _HINT)
        if scope in ("test", "provided", "system"):
            continue
        sums = [f" {one.removeprefix('--hash=')}" for one in rest]
        suffix = f":{classifier}" if classifier else ""
        pin = f"{group}:{artifact}:{version}{suffix}{''.join(sums)}"
        if found.setdefault((group, artifact, classifier), pin) != pin:
            raise refused(file, number, f"'{group}:{artifact}' is listed twice", _HINT)
    if len(found) > PACKAGES_MAX:
        raise refused(file, 1, f"more than {PACKAGES_MAX} jars", _HINT)
    return tuple(sorted(found.values()))


def _taken_apart(named: str) -> tuple[str, str, str, str, str, str]:
    """Group, artifact, version, classifier, scope and kind of coordinates in any usual form."""
    parts = named.split(":")
    group, artifact, *rest = parts
    scope = rest.pop() if len(rest) > 1 and rest[-1] in _SCOPES else "compile"
    if len(rest) == 1:
        return group, artifact, rest[0], "", scope, "jar"
    if rest[0] in ("jar", "pom", "war", "zip", "test-jar", "bundle"):
        kind, *rest = rest
        *classifier, version = rest
        return group, artifact, version, "".join(classifier), scope, kind
    version, classifier_ = rest[0], rest[1]
    return group, artifact, version, classifier_, scope, "jar"


def fetch(
    folder: Path, _runtime: Runtime, requirements: tuple[str, ...], build: config.Build, log: Log
) -> tuple[Package, ...]:
    """Copy the jars out of ``build.maven``.

    Raises:
        BuildFailed: one is not there, is no jar, or is not the file its sha256 names.
    """
    house = require_folder(build.maven, "build.maven", "jars")
    found, left = [], build.size_bytes_max
    for requirement in requirements:
        named, *sums = requirement.split(" ")
        group, artifact, version, *classifier = named.split(":")
        suffix = f"-{classifier[0]}" if classifier else ""
        file = f"{artifact}-{version}{suffix}.jar"
        source = house / group.replace(".", "/") / artifact / version / file
        name = f"{group}:{artifact}"
        if not source.is_file():
            raise BuildFailed(
                f"Jar '{name}' {version} is not in build.maven.",
                hint=f"list a version that is there, or have IT add {file}",
                package=name,
            )
        target = folder / f"{group}.{file}"
        copy_offered(source, target, left, name)
        left -= source.stat().st_size
        digest = digest_of(target)
        if not zipfile.is_zipfile(target) or (sums and digest not in sums):
            raise BuildFailed(
                f"Jar '{name}' {version} in build.maven is not the file it should be.",
                hint="check its sha256",
                package=name,
            )
        log(f"found {file}")
        found.append(Package(name=name, version=f"{version}{suffix}", digest=digest))
    return tuple(found)


JARS = Packager(
    files=r"[\w.-]+\.txt",
    hint=_HINT,
    parse=parse,
    fetch=fetch,
    finds=lambda name: re.escape(name) + r"(?=[:\s])",
    is_plain=True,
)
