"""JavaScript: npm packages by a ``package-lock.json``, from one index or a folder.

Owns: which entries of a lock are installed and from where, the fetch, and its integrity check.
Never: runs npm or an install script, asks any host but the one index, or takes a package that is
not byte for byte what the lock says.
Read next: ``guest/node_build.sh`` (what runs inside).
"""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from appliance import clock, config
from appliance.errors import BuildFailed
from appliance.records import Package
from appliance.sandbox.frames import clean
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages.packager import (
    PACKAGES_MAX,
    Log,
    Packager,
    refused,
    require_folder,
    write_plan,
)

_HINT = "send the package-lock.json that 'npm install' writes (lockfileVersion 2 or 3)"
_PART = r"[A-Za-z0-9~][\w.~-]{0,100}"
_NAME = rf"(?:@{_PART}/)?{_PART}"
_PLACE = re.compile(rf"(?:node_modules/{_NAME}/)*node_modules/(?P<name>{_NAME})")
_VERSION = re.compile(r"\d[\w.+-]{0,100}")
_SHA512 = re.compile(r"sha512-(?P<value>[A-Za-z0-9+/]{86}==)")
_CPUS = {"x86_64": "x64", "aarch64": "arm64", "ppc64le": "ppc64", "s390x": "s390x"}
_FETCHES = 8
_PIECE_BYTES = 256 * 1024
_TRY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """One entry of a lock that is installed; ``place`` is its folder, ``digest`` hex."""

    place: str
    name: str
    version: str
    digest: str

    @property
    def file(self) -> str:
        """What the package's file is called here."""
        return f"{self.digest[:32]}.tgz"


def parse_lock(text: str, file: str = "requirements") -> tuple[str, ...]:
    """What a ``package-lock.json`` installs: ``place name@version sha512-...`` each, sorted.

    Development packages, and optional ones for other systems, are left out.

    Raises:
        ManifestInvalid: it is no such file, or has an entry that comes from elsewhere than an
            index or names no sha512; the line is named.
    """
    try:
        lock = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError) as error:
        raise refused(file, 1, "this is not JSON", _HINT) from error
    entries = lock.get("packages") if isinstance(lock, dict) else None
    if not isinstance(entries, dict):
        raise refused(file, 1, "this is no package-lock.json of lockfileVersion 2 or 3", _HINT)
    found = []
    for place, entry in entries.items():
        if place == "":
            continue
        reason, line = _requirement(place, entry)
        if reason:
            at = text.find(msgspec.json.encode(place).decode())
            number = text.count("\n", 0, max(at, 0)) + 1
            raise refused(file, number, f"'{clean(place, 120)}' {reason}", _HINT)
        if line:
            found.append(line)
    if len(found) > PACKAGES_MAX:
        raise refused(file, 1, f"more than {PACKAGES_MAX} packages", "leave out what is not needed")
    return tuple(sorted(found))


def _requirement(place: str, entry: Any) -> tuple[str, str]:
    """Why an entry cannot be installed, or its requirement; neither when it is left out."""
    match = _PLACE.fullmatch(place)
    if not isinstance(entry, dict) or (match is None and not entry.get("link")):
        return "is a package of this project itself; only packages of an index are installed", ""
    if entry.get("dev") is True or entry.get("inBundle") is True or not _is_for_here(entry):
        return "", ""
    resolved = entry.get("resolved", "")
    if entry.get("link") or not isinstance(resolved, str) or match is None:
        return "is a link to a folder; only packages of an index are installed", ""
    name, version = str(entry.get("name", match["name"])), str(entry.get("version", ""))
    if not re.fullmatch(_NAME, name) or not _VERSION.fullmatch(version):
        return "names no package and version", ""
    if resolved and not _is_of_an_index(resolved, name, version):
        host = clean(urlsplit(resolved).netloc.rpartition("@")[2] or resolved, 80)
        return f"comes from '{host}' and not from an index, which this appliance's builds need", ""
    integrity = _SHA512.search(str(entry.get("integrity", "")))
    if integrity is None:
        return "has no sha512 integrity", ""
    return "", f"{place} {name}@{version} {integrity.group()}"


def _is_of_an_index(resolved: str, name: str, version: str) -> bool:
    """Whether an address looks like every index's own: ``.../name/-/name-1.2.3.tgz``."""
    parts = urlsplit(resolved)
    base = name.rpartition("/")[2]
    return parts.scheme in ("http", "https") and parts.path.replace("%2f", "/").endswith(
        f"/{name}/-/{base}-{version}.tgz"
    )


def _is_for_here(entry: dict[str, Any]) -> bool:
    """Whether an entry fits this system; one that does not is left out if it is optional."""
    here = {"os": "linux", "cpu": _CPUS.get(platform.machine(), ""), "libc": "glibc"}
    for key, own in here.items():
        listed = entry.get(key)
        names = [str(one) for one in listed] if isinstance(listed, list) else []
        wanted = [one for one in names if not one.startswith("!")]
        is_fit = f"!{own}" not in names and (not wanted or own in wanted)
        if not is_fit and entry.get("optional") is True:
            return False
    return True


def fetch(
    folder: Path, _runtime: Runtime, requirements: tuple[str, ...], build: config.Build, log: Log
) -> tuple[Package, ...]:
    """Put every package of the lock into the folder, checked against its sha512.

    Raises:
        BuildFailed: one cannot be had from the index or folder that is set, or is another file
            than the lock says; it is named.
    """
    wanted = [_wanted_from_requirement(requirement) for requirement in requirements]
    files = {one.file: one for one in wanted}
    if build.npm_packages:
        house = require_folder(build.npm_packages, "build.npm_packages", "npm packages")
        _copy_all(house, folder, files, build, log)
    else:
        _download_all(folder, files, build, log)
    write_plan(folder, [(one.file, one.place, f"{one.name}@{one.version}") for one in wanted])
    found = {
        (one.name, one.version): Package(
            name=one.name, version=one.version, digest=f"sha512:{one.digest}"
        )
        for one in wanted
    }
    return tuple(found[key] for key in sorted(found))


def _wanted_from_requirement(requirement: str) -> _Wanted:
    place, named, integrity = requirement.split(" ")
    name, _, version = named.rpartition("@")
    digest = base64.b64decode(integrity.removeprefix("sha512-")).hex()
    return _Wanted(place=place, name=name, version=version, digest=digest)


def _copy_all(
    house: Path, folder: Path, files: dict[str, _Wanted], build: config.Build, log: Log
) -> None:
    left = build.size_bytes_max
    for file, one in files.items():
        base = one.name.rpartition("/")[2]
        names = [f"{base}-{one.version}.tgz", f"{_packed(one.name)}-{one.version}.tgz"]
        offered = [house / name for name in names if (house / name).is_file()]
        if not offered:
            raise _failed(one, f"is not in build.npm_packages (as {names[-1]})")
        fitting = [path for path in offered if _digest_of(path) == one.digest]
        if not fitting:
            raise _failed(one, "is in build.npm_packages as another file than the lock's sha512")
        left -= fitting[0].stat().st_size
        _require_room(one, left, build)
        (folder / file).write_bytes(fitting[0].read_bytes())
        (folder / file).chmod(0o644)
        log(f"found {one.name} {one.version}")


def _packed(name: str) -> str:
    """How ``npm pack`` spells a package in a file name."""
    return name.removeprefix("@").replace("/", "-")


def _digest_of(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha512").hexdigest()


def _download_all(folder: Path, files: dict[str, _Wanted], build: config.Build, log: Log) -> None:
    import httpx

    source = config.npm(build)
    if not source.index:
        raise BuildFailed(
            "This appliance has no source of npm packages.",
            hint="have IT set build.npm_index to an index, or build.npm_packages to a folder",
        )
    context = ssl.create_default_context(cafile=source.ca_file or None)
    deadline_ns = clock.monotonic_ns() + build.timeout_s * 1_000_000_000
    with (
        httpx.Client(
            verify=context,
            proxy=source.proxy or None,
            timeout=_TRY_TIMEOUT_S,
            trust_env=False,
            follow_redirects=False,
        ) as client,
        ThreadPoolExecutor(_FETCHES, "npm") as threads,
    ):
        fetches = {
            threads.submit(_download, client, source.index, folder, one, build, deadline_ns): one
            for one in files.values()
        }
        left = build.size_bytes_max
        try:
            for fetched, one in fetches.items():
                left -= fetched.result()
                _require_room(one, left, build)
                log(f"fetched {one.name} {one.version}")
        finally:
            threads.shutdown(cancel_futures=True)


def _download(
    client: Any, index: str, folder: Path, one: _Wanted, build: config.Build, deadline_ns: int
) -> int:
    """Fetch one package; its size in bytes."""
    import httpx

    base = one.name.rpartition("/")[2]
    address = f"{index.rstrip('/')}/{quote(one.name, safe='@/')}/-/{base}-{quote(one.version)}.tgz"
    target = folder / one.file
    size, digest = 0, hashlib.sha512()
    try:
        with client.stream("GET", address) as reply, target.open("wb") as out:
            if reply.status_code != 200:
                raise _failed(one, f"cannot be had: the index answered {reply.status_code}")
            for piece in reply.iter_bytes(_PIECE_BYTES):
                size += len(piece)
                _require_room(one, build.size_bytes_max - size, build)
                if clock.monotonic_ns() > deadline_ns:
                    raise _failed(one, f"did not come within {build.timeout_s} s")
                digest.update(piece)
                out.write(piece)
    except httpx.HTTPError as error:
        raise _failed(one, f"cannot be had from the index: {type(error).__name__}") from error
    if digest.hexdigest() != one.digest:
        raise _failed(one, "came from the index as another file than the lock's sha512")
    target.chmod(0o644)
    return size


def _require_room(one: _Wanted, left: int, build: config.Build) -> None:
    if left < 0:
        raise BuildFailed(
            f"Package '{one.name}' makes the dependencies larger than "
            f"{build.size_bytes_max} bytes.",
            hint="build.size_bytes_max",
            package=one.name,
        )


def _failed(one: _Wanted, reason: str) -> BuildFailed:
    return BuildFailed(
        f"Package '{one.name}' {one.version} {reason}.",
        hint="check the lock, or have IT add the package to what the appliance installs from",
        package=one.name,
    )


NPM = Packager(
    files=r"package-lock\.json",
    hint=_HINT,
    parse=parse_lock,
    fetch=fetch,
    finds=lambda name: rf'"(?:[^"\n]*node_modules/)?{re.escape(name)}"\s*:',
)
