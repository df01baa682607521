"""R: packages by exact pins, from a folder of CRAN's files or of Debian's compiled packages.

Owns: the grammar, which file of the folder is meant, and what its packages need in turn.
Never: unpacks a package on the host (its ``DESCRIPTION`` is read from the stream) or runs its code.
Read next: ``guest/r_build.sh`` (what runs inside).

``name_1.2.3.tar.gz`` is installed as R does it, in the sandbox: without a compiler, so a package
with compiled code has to be a built one, or Debian's ``r-cran-name_1.2.3-1_amd64.deb``.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from appliance import config, tarstream
from appliance.errors import ArchiveRejected, BuildFailed
from appliance.records import Package
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages.packager import (
    PACKAGES_MAX,
    Log,
    Packager,
    copy_offered,
    digest_of,
    finds_name,
    pins_from_lines,
    require_folder,
    write_plan,
)

_HINT = "pin every package exactly, like glue==1.6.2"
_NAME = r"[A-Za-z][A-Za-z0-9.]{0,80}"
_PIN = re.compile(rf"(?P<name>{_NAME})\s*==\s*(?P<version>\d[\d.-]{{0,40}})")
_SOURCE = re.compile(rf"(?P<name>{_NAME})_(?P<version>\d[\d.-]*)\.(?:tar\.gz|tgz)")
_DEB = re.compile(
    r"r-(?:cran|bioc|other)-(?P<name>[a-z0-9.+-]+)_(?:\d+%3a|\d+:)?(?P<version>\d[\w.+~-]*)_\w+\.deb"
)
_DESCRIPTION_BYTES_MAX = 256 * 1024
_TAR_BYTES_MAX = 4 * 1024**3
# What R itself brings (r-base-core and r-cran-jsonlite of the runtime).
_OWN = frozenset(
    {
        *("R", "base", "compiler", "datasets", "graphics", "grDevices", "grid", "methods"),
        *("parallel", "splines", "stats", "stats4", "tcltk", "tools", "utils", "jsonlite"),
    }
)


def parse(text: str, file: str = "requirements") -> tuple[str, ...]:
    """``name==version`` of every line, sorted.

    Raises:
        ManifestInvalid: a line is anything else; the line is named.
    """
    pins = pins_from_lines(text, file, _PIN, "glue==1.6.2", _HINT)
    return tuple(f"{name}=={pins[name]}" for name in sorted(pins))


def fetch(
    folder: Path, _runtime: Runtime, requirements: tuple[str, ...], build: config.Build, log: Log
) -> tuple[Package, ...]:
    """Copy these packages, and those they need, out of ``build.r_packages``, needed ones first.

    Raises:
        BuildFailed: one is not there or cannot be read; it is named.
    """
    house = require_folder(build.r_packages, "build.r_packages", "R packages")
    offers = _offers(house)
    pins = dict(requirement.split("==", 1) for requirement in requirements)
    found: dict[str, Package] = {}
    plan: list[tuple[str, ...]] = []
    left = build.size_bytes_max

    def add(name: str, needed_by: tuple[str, ...]) -> None:
        nonlocal left
        key = name.lower()
        if key in found or name in _OWN or name in needed_by:
            return
        if len(found) > PACKAGES_MAX:
            raise BuildFailed(f"Package '{name}' is one too many.", package=name)
        source, version = _chosen(offers.get(key, {}), name, pins.get(name, ""), needed_by)
        copy_offered(source, folder / source.name, left, name)
        left -= source.stat().st_size
        needs = _needs(folder / source.name)
        for need in needs:
            add(need, (*needed_by, name))
        found[key] = Package(name=name, version=version, digest=digest_of(folder / source.name))
        plan.append((source.name, name))
        log(f"found {source.name}")

    for name in sorted(pins):
        add(name, ())
    write_plan(folder, plan)
    return tuple(found[key] for key in sorted(found))


def _offers(house: Path) -> dict[str, dict[str, Path]]:
    """Name in small letters to version to file; a compiled package goes before a source."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(house.iterdir(), key=lambda path: path.suffix == ".deb"):
        if match := _SOURCE.fullmatch(path.name):
            found.setdefault(match["name"].lower(), {})[match["version"]] = path
        elif match := _DEB.fullmatch(path.name):
            upstream = match["version"].rpartition("-")[0] or match["version"]
            upstream = re.split(r"[+~]", upstream)[0]
            found.setdefault(match["name"], {})[upstream] = path
    return found


def _chosen(
    offered: dict[str, Path], name: str, pinned: str, needed_by: tuple[str, ...]
) -> tuple[Path, str]:
    for version in sorted(offered, key=_order, reverse=True):
        # R takes 1.2-3 and 1.2.3 as the same; Debian writes the one as the other.
        if not pinned or _order(version) == _order(pinned):
            return offered[version], version
    wanted = f"{name} {pinned}".strip()
    why = f", which '{needed_by[-1]}' needs" if needed_by else ""
    raise BuildFailed(
        f"Package '{wanted}'{why}, is not in build.r_packages.".replace("',,", "',"),
        hint=f"pin a version that is there, or have IT add {name}'s .tar.gz or r-cran .deb",
        package=needed_by[0] if needed_by else name,
    )


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _needs(path: Path) -> list[str]:
    """What a package's ``DESCRIPTION`` says it needs installed; nothing for Debian's packages.

    Those name theirs in a control archive that is compressed in ways not read here: they, too, are
    to be pinned.
    """
    if path.suffix == ".deb":
        return []
    text = _description(path)
    joined = re.sub(r"\n[ \t]+", " ", text)
    needs: list[str] = []
    for field in ("Depends", "Imports", "LinkingTo"):
        for line in joined.splitlines():
            if line.startswith(f"{field}:"):
                names = [
                    re.match(rf"\s*({_NAME})", one) for one in line[len(field) + 1 :].split(",")
                ]
                needs += [match[1] for match in names if match]
    return list(dict.fromkeys(needs))


def _description(path: Path) -> str:
    try:
        with gzip.open(path) as source:
            limits = tarstream.Limits(bytes_max=_TAR_BYTES_MAX, files_max=200_000)
            for member, pieces in tarstream.members(cast("BinaryIO", source), limits):
                if re.fullmatch(rf"{_NAME}/DESCRIPTION", member.path) and member.kind == "file":
                    if member.size > _DESCRIPTION_BYTES_MAX:
                        break
                    return b"".join(pieces).decode("utf-8", "replace")
    except (ArchiveRejected, OSError, EOFError, zlib.error) as error:
        raise BuildFailed(
            f"Package '{path.name}' is damaged.", package=path.name.split("_")[0]
        ) from error
    raise BuildFailed(f"Package '{path.name}' is no R package.", package=path.name.split("_")[0])


CRAN = Packager(files=r"[\w.-]+\.txt", hint=_HINT, parse=parse, fetch=fetch, finds=finds_name)
