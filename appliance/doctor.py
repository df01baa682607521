"""Read-only checks of the host: what would keep the appliance from working, and the fix.

Owns: the list of checks and their wording.
Never: changes anything, needs a running appliance, or opens the store.
Read next: ``node.Node.checks`` adds what only a running appliance knows.
"""

from __future__ import annotations

import os
import pwd
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from appliance import config
from appliance.sandbox import gpu, images
from appliance.sandbox.limits import PROBE_RUNTIME
from appliance.sandbox.runtimes import RUNTIMES, with_compiler

_FILES_MIN = 4096
_SUBIDS_MIN = 4096
_RUNC_FLOOR = (1, 2, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding; ``fix`` is the command or setting that turns it green, empty when ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def checks(settings: config.Settings) -> tuple[Check, ...]:
    """Every check of the host for the user this runs as. Blocking: starts short processes."""
    probes: tuple[Callable[[config.Settings], Iterator[Check]], ...] = (
        _user,
        _programs,
        _oci_runtime,
        _gvisor,
        _subordinate_ids,
        _user_namespaces,
        _run_dir,
        _disk,
        _open_files,
        _runtimes,
        _key_file,
        _cgroups,
        _gpus,
    )
    return tuple(check for probe in probes for check in probe(settings))


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status="ok", detail=detail)


def _fail(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status="fail", detail=detail, fix=fix)


def _warn(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status="warn", detail=detail, fix=fix)


def _user(_settings: config.Settings) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield _ok("python", f"Python {version}")
    if os.geteuid() == 0:
        yield _fail(
            "user",
            "runs as root; sandboxes need an ordinary service user",
            "sudo packaging/quickstart makes one",
        )
    else:
        yield _ok("user", f"{_user_name()} (uid {os.geteuid()})")


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _programs(_settings: config.Settings) -> Iterator[Check]:
    for program, package in (
        ("podman", "podman"),
        ("conmon", "conmon"),
        ("newuidmap", "uidmap"),
        ("newgidmap", "uidmap"),
        ("mmdebstrap", "mmdebstrap"),
    ):
        found = _which(program)
        if found:
            yield _ok(program, found)
        else:
            yield _fail(program, "not found", f"apt-get install -y {package}")


def _which(program: str) -> str:
    return shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin") or ""


def _oci_runtime(settings: config.Settings) -> Iterator[Check]:
    names = [settings.sandbox.oci_runtime] if settings.sandbox.oci_runtime else ["crun", "runc"]
    found = [path for path in map(_which, names) if path]
    if not found:
        yield _fail("OCI runtime", "neither crun nor runc found", "apt-get install -y runc")
        return
    for path in found:
        text = _output(path, "--version")
        match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
        version = tuple(int(part) for part in match.groups()) if match else ()
        shown = ".".join(map(str, version)) or "unknown version"
        if path.endswith("runc") and version and version < _RUNC_FLOOR:
            yield _warn(
                "OCI runtime",
                f"{path} {shown} is older than 1.2.8, which fixed CVE-2025-31133",
                "install a newer runc, or crun where the host's cgroups allow it",
            )
        else:
            yield _ok("OCI runtime", f"{path} {shown}")


def _gvisor(_settings: config.Settings) -> Iterator[Check]:
    path = _which("runsc")
    shown = f"{path}: tenants and versions may ask for isolation 'gvisor'"
    yield _ok("gVisor", shown if path else "not installed; needed for isolation 'gvisor' only")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed programs found on a fixed path
            command,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env=config.child_environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _subordinate_ids(_settings: config.Settings) -> Iterator[Check]:
    names = {_user_name(), str(os.geteuid())}
    for file in ("/etc/subuid", "/etc/subgid"):
        count = 0
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        for line in lines:
            owner, _, rest = line.partition(":")
            start_count = rest.split(":")
            if owner in names and len(start_count) == 2 and start_count[1].isdigit():
                count += int(start_count[1])
        if count >= _SUBIDS_MIN:
            yield _ok(file, f"{count} subordinate ids, {count // 2} sandboxes at once")
        else:
            yield _fail(
                file,
                f"{count} subordinate ids for {_user_name()}, {_SUBIDS_MIN} needed",
                f"usermod --add-{'subuids' if 'uid' in file else 'subgids'} "
                f"START-END {_user_name()}",
            )


def _user_namespaces(_settings: config.Settings) -> Iterator[Check]:
    for path, bad in (
        ("/proc/sys/user/max_user_namespaces", "0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
    ):
        try:
            value = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if value == bad:
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            yield _fail("user namespaces", f"{name} is {value}", f"sysctl {name}=15000")
            return
    yield _ok("user namespaces", "available")


def _run_dir(settings: config.Settings) -> Iterator[Check]:
    path = Path(settings.paths.run_dir)
    if not path.is_dir() or not os.access(path, os.W_OK):
        yield _fail("run folder", f"{path} is missing or not writable", f"create {path}")
        return
    kind = _file_system(path)
    if kind in ("tmpfs", "ramfs"):
        yield _ok("run folder", f"{path} on {kind}")
    else:
        yield _warn(
            "run folder",
            f"{path} is on {kind}; sandboxes start slower and leave state after a power cut",
            f"mount -t tmpfs -o mode=0711 tmpfs {path}",
        )


def _file_system(path: Path) -> str:
    best, kind = "", "unknown"
    for partition in psutil.disk_partitions(all=True):
        mount = partition.mountpoint.rstrip("/") + "/"
        if f"{path.resolve()}/".startswith(mount) and len(mount) > len(best):
            best, kind = mount, partition.fstype
    return kind


def _disk(settings: config.Settings) -> Iterator[Check]:
    path = Path(settings.paths.data_dir)
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    need = settings.store.free_bytes_min
    if free >= 4 * need:
        yield _ok("disk", f"{free >> 20} MiB free for {settings.paths.data_dir}")
    else:
        status: Literal["warn", "fail"] = "warn" if free >= need else "fail"
        yield Check(
            name="disk",
            status=status,
            detail=f"{free >> 20} MiB free for {settings.paths.data_dir}",
            fix="free space, or lower store.free_bytes_min",
        )


def _open_files(_settings: config.Settings) -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard >= _FILES_MIN:
        yield _ok("open files", f"limit {soft}, may be raised to {hard}")
    else:
        yield _warn("open files", f"hard limit is {hard}", f"raise it to {_FILES_MIN} or more")


def _runtimes(settings: config.Settings) -> Iterator[Check]:
    found = images.installed(Path(settings.paths.data_dir))
    there = {one.name for one in found}
    if PROBE_RUNTIME not in there:
        what = f"'{PROBE_RUNTIME}', which tries the limits at each start, is not installed"
        yield _fail("runtimes", what, f"appliance runtime build {PROBE_RUNTIME}")
    else:
        yield _ok("runtimes", ", ".join(f"{r.name} ({r.digest[7:19]})" for r in found))
    for name in sorted(there & set(RUNTIMES)):
        lacks = [one for one in with_compiler(name) if one not in there]
        if lacks:
            yield _fail("runtimes", f"{name} lacks its compiler", f"appliance runtime build {name}")


def _key_file(settings: config.Settings) -> Iterator[Check]:
    if not settings.unseal.key_file:
        return
    path = Path(settings.unseal.key_file)
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        yield _fail("key file", f"{path}: {error.strerror}", "appliance init --key-file ...")
        return
    if mode & 0o077:
        yield _fail("key file", f"{path} has mode {mode:04o}", f"chmod 0600 {path}")
    else:
        yield _ok("key file", f"{path}, mode {mode:04o}")


def _cgroups(settings: config.Settings) -> Iterator[Check]:
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        controllers = unified.read_text(encoding="ascii").split()
        missing = sorted({"memory", "pids", "cpu"} - set(controllers))
        if not missing:
            yield _ok("cgroups", "version 2 with memory, pids and cpu; the start probe decides")
            return
        detail = f"version 2 without {', '.join(missing)}"
    else:
        detail = "version 1 or hybrid: Podman enforces no limits for an ordinary user here"
    if settings.sandbox.accept_supervised_limits:
        yield _warn(
            "cgroups",
            f"{detail}; limits are supervised instead, as accepted",
            "boot with cgroup version 2",
        )
    else:
        yield _fail(
            "cgroups",
            detail,
            "boot with cgroup version 2, or set sandbox.accept_supervised_limits = true",
        )


def _gpus(settings: config.Settings) -> Iterator[Check]:
    """What models may use; a machine without a GPU is as good as any."""
    if settings.sandbox.gpu_mode == "off":
        yield _ok("gpu", "switched off (sandbox.gpu_mode)")
        return
    found = gpu.find(settings.sandbox)
    for problem in found.problems:
        yield _warn("gpu", problem, gpu.fix_of(problem))
    counts: dict[str, int] = {}
    for one in found.gpus:
        counts[one.text] = counts.get(one.text, 0) + 1
    listed = ", ".join(f"{number} x {text}" for text, number in counts.items())
    driver = f", driver {found.driver}" if found.driver else ""
    if listed or not found.problems:
        yield _ok("gpu", f"{listed}{driver}" if listed else "none; models run on the processor")
