"""Ruby: gems by a ``Gemfile.lock`` or exact pins, from a folder of gems.

Owns: the grammar of both, and which file of the folder is meant.
Never: opens a gem or runs its code.
Read next: ``guest/ruby_build.sh`` (what runs inside).
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from appliance import config
from appliance.errors import BuildFailed
from appliance.records import Package
from appliance.sandbox.frames import clean
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages.packager import (
    Log,
    Packager,
    copy_offered,
    digest_of,
    finds_name,
    pins_from_lines,
    refused,
    require_folder,
    write_plan,
)

_HINT = "send the Gemfile.lock that 'bundle lock' writes, or pins like name==1.2.3"
_NAME = r"(?P<name>[A-Za-z0-9][\w.-]{0,100})"
_NUMBER = r"(?P<version>\d[0-9A-Za-z.]{0,60})"
_PIN = re.compile(rf"{_NAME}\s*==\s*{_NUMBER}")
_SPEC = re.compile(rf"    {_NAME} \({_NUMBER}(?:-(?P<platform>[\w.-]+))?\)")
_SUM = re.compile(
    rf"  {_NAME} \({_NUMBER}(?:-(?P<platform>[\w.-]+))?\)(?: sha256=(?P<sum>[0-9a-f]{{64}}))?"
)
_SECTION = re.compile(r"[A-Z][A-Z ]+")
_ELSEWHERE = ("GIT", "PATH", "PLUGIN SOURCE")


def parse(text: str, file: str = "requirements") -> tuple[str, ...]:
    """``name==version`` of every gem, with `` sha256:...`` where the lock has one; sorted.

    Raises:
        ManifestInvalid: a line is neither of a ``Gemfile.lock`` nor a pin, or a gem comes from
            elsewhere than an index; the line is named.
    """
    if re.search(r"(?m)^GEM\s*$", text):
        return _pins_from_lock(text, file)
    pins = pins_from_lines(text, file, _PIN, "name==1.2.3", _HINT)
    return tuple(f"{name}=={pins[name]}" for name in sorted(pins))


def _pins_from_lock(text: str, file: str) -> tuple[str, ...]:
    section = ""
    pins: dict[str, str] = {}
    sums: dict[tuple[str, str], set[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if _SECTION.fullmatch(line):
            section = line
            if section in _ELSEWHERE:
                raise refused(
                    file,
                    number,
                    "gems of a repository or a folder are not installed, only packed",
                    _HINT,
                )
        elif section == "GEM" and re.match(r"    \S", line):
            match = _SPEC.fullmatch(line)
            if match is None:
                raise refused(
                    file, number, f"'{clean(line.strip(), 100)}' is no gem and version", _HINT
                )
            if _is_for_here(match["platform"]):
                pins[match["name"]] = match["version"]
        elif section == "CHECKSUMS" and (match := _SUM.fullmatch(line)) and match["sum"]:
            sums.setdefault((match["name"], match["version"]), set()).add(match["sum"])
    found = []
    for name in sorted(pins):
        known = sorted(sums.get((name, pins[name]), ()))
        found.append(f"{name}=={pins[name]}" + "".join(f" sha256:{one}" for one in known))
    return tuple(found)


def _is_for_here(named: str | None) -> bool:
    return named is None or named in _platforms()


def _platforms() -> tuple[str, ...]:
    cpu = platform.machine()
    return (f"{cpu}-linux", f"{cpu}-linux-gnu")


def fetch(
    folder: Path, _runtime: Runtime, requirements: tuple[str, ...], build: config.Build, log: Log
) -> tuple[Package, ...]:
    """Copy the gems of these pins out of ``build.gems``; one made for this system goes first.

    Raises:
        BuildFailed: one is not there, or not the file its checksum names; it is named.
    """
    house = require_folder(build.gems, "build.gems", "Ruby gems")
    found, plan, left = [], [], build.size_bytes_max
    for requirement in requirements:
        pin, *sums = requirement.split(" ")
        name, _, version = pin.partition("==")
        source = _offered(house, name, version)
        copy_offered(source, folder / source.name, left, name)
        left -= source.stat().st_size
        digest = digest_of(folder / source.name)
        if sums and digest not in sums:
            raise BuildFailed(
                f"Gem '{name}' {version} in build.gems is not the file its checksum names.",
                hint="renew the lock, or have IT put the right file there",
                package=name,
            )
        log(f"found {source.name}")
        found.append(Package(name=name, version=version, digest=digest))
        plan.append((source.name, name))
    write_plan(folder, plan)
    return tuple(found)


def _offered(house: Path, name: str, version: str) -> Path:
    names = [f"{name}-{version}-{one}.gem" for one in _platforms()] + [f"{name}-{version}.gem"]
    for one in names:
        if (house / one).is_file():
            return house / one
    raise BuildFailed(
        f"Gem '{name}' {version} is not in build.gems.",
        hint=f"pin a version that is there, or have IT add {names[-1]}",
        package=name,
    )


GEMS = Packager(
    files=r"Gemfile\.lock|[\w.-]+\.txt", hint=_HINT, parse=parse, fetch=fetch, finds=finds_name
)
