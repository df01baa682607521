"""``appliance doctor``: check this machine and say what to fix.

Owns: the checks that need no running appliance, and showing the running one's own.
Never: changes anything.
Read next: ``sandbox`` for the probes a running appliance makes at its start.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from appliance import config
from appliance.cli.context import Command, Context, pass_context
from appliance.errors import EX_CONFIG, ApplianceError

Level = Literal["ok", "warn", "fail"]
_BINARIES = {
    "podman": "podman",
    "newuidmap": "uidmap",
    "newgidmap": "uidmap",
    "conmon": "conmon",
    "mmdebstrap": "mmdebstrap",
}
_SUB_IDS_MIN = 65536
_FREE_BYTES_MIN = 2 * 1024**3
_FILES_MIN = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding: what was looked at, how it stands, and what to type if it is not right."""

    name: str
    level: Level
    detail: str
    fix: str = ""


@click.command(cls=Command, examples=("appliance doctor", "appliance doctor --json"))
@pass_context
def doctor(context: Context) -> int:
    """Check this machine, and the running appliance if there is one.

    Ends with 0 if nothing is red and 78 otherwise.
    """
    settings = context.settings()
    checks = [*local_checks(settings), *_running(context)]
    rows: list[dict[str, Any]] = [
        {"name": c.name, "level": c.level, "detail": c.detail, "fix": c.fix} for c in checks
    ]
    is_red = any(c.level == "fail" for c in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.level:<5} {check.name:<14} {check.detail}")
        if check.fix and check.level != "ok":
            lines.append(f"{'':<20} fix: {check.fix}")
    context.output.data({"ok": not is_red, "checks": rows}, "\n".join(lines))
    return EX_CONFIG if is_red else 0


def _running(context: Context) -> Iterator[Check]:
    """The running appliance's own checks: what it probed rather than what it could read."""
    try:
        with context.client(timeout_s=30) as client:
            document = client.get("/admin/v1/checks")
    except ApplianceError as error:
        yield Check(name="appliance", level="warn", detail=error.detail, fix=error.hint)
        return
    for item in document.get("items") or document.get("checks") or ():
        yield Check(
            name=str(item.get("name", "")),
            level=_level(item),
            detail=str(item.get("detail", "")),
            fix=str(item.get("fix") or item.get("hint") or ""),
        )


def _level(item: dict[str, Any]) -> Level:
    level = item.get("level") or item.get("status") or ("ok" if item.get("ok") else "fail")
    if level == "ok":
        return "ok"
    return "fail" if level == "fail" else "warn"


def local_checks(settings: config.Settings) -> list[Check]:
    """Every check that reads this machine only, in the order a person would fix them."""
    user = _service_user(settings)
    makers: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _programs,
        lambda: _sub_ids(user),
        _cgroups,
        lambda: _folders(settings),
        lambda: _port(settings),
        _files,
    )
    return [check for make in makers for check in make()]


def _service_user(settings: config.Settings) -> str:
    try:
        return Path(settings.paths.data_dir).owner()
    except (OSError, KeyError):
        return getpass.getuser()


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    level: Level = "ok" if sys.version_info >= (3, 11) else "fail"
    yield Check(name="python", level=level, detail=f"{version} at {sys.executable}")


def _programs() -> Iterator[Check]:
    for program, package in _BINARIES.items():
        path = shutil.which(
            program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        )
        yield Check(
            name=program,
            level="ok" if path else "fail",
            detail=path or "not installed",
            fix="" if path else f"apt-get install -y {package}",
        )
    found = [p for p in ("crun", "runc") if shutil.which(p, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    yield Check(
        name="oci runtime",
        level="ok" if found else "fail",
        detail=", ".join(found) or "neither crun nor runc is installed",
        fix="apt-get install -y crun",
    )


def _sub_ids(user: str) -> Iterator[Check]:
    for file in ("/etc/subuid", "/etc/subgid"):
        count = sub_id_count(file, user)
        yield Check(
            name=Path(file).name,
            level="ok" if count >= _SUB_IDS_MIN else "fail",
            detail=f"{count} subordinate ids for user '{user}'",
            fix=f"usermod --add-{Path(file).name}s 589824-655359 {user}",
        )


def sub_id_count(file: str, user: str) -> int:
    """How many subordinate ids ``file`` gives ``user``; 0 when it cannot be read."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    parts = [line.split(":") for line in lines]
    return sum(int(p[2]) for p in parts if len(p) == 3 and p[0] == user and p[2].isdigit())


def _cgroups() -> Iterator[Check]:
    has_v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    yield Check(
        name="cgroups",
        level="ok" if has_v2 else "warn",
        detail="version 2" if has_v2 else "no cgroup v2: limits can be supervised, not enforced",
        fix="boot with systemd.unified_cgroup_hierarchy=1, or set sandbox.accept_supervised_limits",
    )


def _folders(settings: config.Settings) -> Iterator[Check]:
    data_dir = Path(settings.paths.data_dir)
    place = next((p for p in (data_dir, *data_dir.parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    yield Check(
        name="disk",
        level="ok" if free >= _FREE_BYTES_MIN else "fail",
        detail=f"{free / 1e9:.1f} GB free at {place}",
        fix="free some space, or set paths.data_dir to a larger disk",
    )
    run_dir = Path(settings.paths.run_dir)
    is_there = run_dir.is_dir()
    yield Check(
        name="run folder",
        level="ok" if is_there else "warn",
        detail=str(run_dir) if is_there else f"{run_dir} does not exist yet",
        fix="packaging/quickstart makes it",
    )


def _port(settings: config.Settings) -> Iterator[Check]:
    address = (settings.http.host, settings.http.port)
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            yield Check(
                name="port",
                level="warn",
                detail=f"{address[0]}:{address[1]}: {error.strerror} (perhaps by the appliance)",
                fix="set http.port to another one, or 0 for a free one",
            )
        else:
            yield Check(name="port", level="ok", detail=f"{address[0]}:{address[1]} is free")


def _files() -> Iterator[Check]:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    yield Check(
        name="open files",
        level="ok" if limit >= _FILES_MIN or limit < 0 else "warn",
        detail=f"hard limit {limit}",
        fix=f"ulimit -Hn {_FILES_MIN * 16}",
    )
    entropy = os.path.exists("/dev/urandom")
    if not entropy:
        yield Check(name="entropy", level="fail", detail="/dev/urandom is missing")
