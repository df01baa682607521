"""What the kernel says about a process, and the few things one may do to it from outside.

Owns: reading ``/proc``, per-process limits, affinity, pidfds, memory accounting.
Never: decides anything; knows Podman or specs.
Read next: ``limits`` (what is done with these numbers), ``podman`` (who verifies with them).

The service user owns the user namespace above every container's, so it may read, limit and kill
processes of its sub-ids without any privilege.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import signal
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PAGE = resource.getpagesize()
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
INODE_BYTES = 1024  # what one tmpfs inode costs the kernel, rounded up
LIMIT_NAMES = {
    "nproc": resource.RLIMIT_NPROC,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
    "msgqueue": 12,  # RLIMIT_MSGQUEUE, not named by the resource module
    "memlock": resource.RLIMIT_MEMLOCK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """The security-relevant lines of ``/proc/PID/status`` and the user namespace's map."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    no_new_privileges: bool
    seccomp: int
    effective: int
    bounding: int
    uid_map: tuple[tuple[int, int, int], ...]


def confinement(pid: int) -> Confinement:
    """How a process is confined now.

    Raises:
        OSError: the process is gone.
    """
    base = Path(f"/proc/{pid}")
    fields = dict(
        line.split(":", 1) for line in (base / "status").read_text().splitlines() if ":" in line
    )
    rows = [line.split() for line in (base / "uid_map").read_text().splitlines()]
    return Confinement(
        uids=tuple(int(word) for word in fields["Uid"].split()),
        gids=tuple(int(word) for word in fields["Gid"].split()),
        no_new_privileges=fields["NoNewPrivs"].strip() == "1",
        seccomp=int(fields["Seccomp"]),
        effective=int(fields["CapEff"], 16),
        bounding=int(fields["CapBnd"], 16),
        uid_map=tuple((int(a), int(b), int(c)) for a, b, c in rows),
    )


def faults(found: Confinement, *, user_uid: int, user_gid: int) -> list[str]:
    """What is wrong with a container's confinement; empty when everything holds.

    Args:
        found: what ``confinement`` returned.
        user_uid: the host uid it must run as.
        user_gid: the host gid it must run as.
    """
    wrong = []
    if not found.no_new_privileges:
        wrong.append("NoNewPrivs is 0")
    if found.seccomp != 2:
        wrong.append(f"Seccomp is {found.seccomp}")
    if found.effective or found.bounding:
        wrong.append(f"it has capabilities {found.effective | found.bounding:x}")
    if set(found.uids) != {user_uid} or set(found.gids) != {user_gid}:
        wrong.append(f"it runs as {found.uids}")
    mapped = {(inside, size) for inside, _, size in found.uid_map}
    if mapped != {(0, 1), (1000, 1)}:
        wrong.append(f"its uid map is {found.uid_map}")
    if any(at <= os.getuid() < at + size for _, at, size in found.uid_map):
        wrong.append("the service user's own uid is mapped")
    return wrong


def set_limits(pid: int, limits: Mapping[str, int]) -> None:
    """Set hard and soft resource limits of a process that its children will inherit.

    Raises:
        OSError: the process is gone or may not be limited.
    """
    for name, value in limits.items():
        resource.prlimit(pid, LIMIT_NAMES[name], (value, value))


def limits_of(pid: int) -> dict[str, int]:
    """The soft limits in force, for checking what ``set_limits`` did."""
    return {name: resource.prlimit(pid, number)[0] for name, number in LIMIT_NAMES.items()}


def pin(pid: int, cores: Collection[int], niceness: int) -> None:
    """Bind a process to some cores and lower its priority; one that is lower already stays so."""
    os.sched_setaffinity(pid, cores)
    # Nobody but root may raise it again, which an appliance that was started nice would have to.
    own = os.getpriority(os.PRIO_PROCESS, pid)
    os.setpriority(os.PRIO_PROCESS, pid, max(own, niceness))


def kill(pidfd: int) -> None:
    """SIGKILL through a pidfd; no error if it is already gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def pids_by_uid(uids: Collection[int]) -> dict[int, list[int]]:
    """Every process of these host uids, one pass over ``/proc``.

    A process that made itself undumpable shows under its user namespace's root: ask for that too.
    """
    found: dict[int, list[int]] = {uid: [] for uid in uids}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                uid = os.stat(f"/proc/{name}").st_uid
                if uid in found:
                    found[uid].append(int(name))
    return found


def descendants(pid: int) -> list[int]:
    """Every living process below this one, whoever made it; empty if it is gone."""
    found: list[int] = []
    for task in _listed(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(word), *descendants(int(word))]
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def send(pid: int, number: int, uids: Collection[int]) -> None:
    """Signal a process of these host uids; its pid may be somebody else's by now: then nothing."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if os.stat(f"/proc/{pid}").st_uid in uids:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def ensure_none_of(uids: Collection[int], timeout_s: float = 1.0) -> bool:
    """Kill every process of these host uids; False if some are still there. Blocking."""
    until = time.monotonic() + timeout_s
    while True:
        pids = [pid for found in pids_by_uid(uids).values() for pid in found]
        for pid in pids:
            send(pid, signal.SIGKILL, uids)
        if not pids or time.monotonic() > until:
            return not pids
        time.sleep(0.01)


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes; those that are gone are left out."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Whether a process is there and neither stopped nor ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in "TtZX"
    except (OSError, IndexError):
        return False


def free_bytes() -> int:
    """What the machine could give without swapping; 0 if it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _cgroup_of(pid: int, proc: str, root: str) -> Path:
    """The folder of the cgroup v2 a process is in; OSError if it has none of its own."""
    text = Path(f"{proc}/{pid}/cgroup").read_text(encoding="ascii")
    place = next((line[3:] for line in text.splitlines() if line.startswith("0::")), "")
    if place in ("", "/"):
        raise OSError("the process is in no cgroup of its own")
    return Path(f"{root or '/sys/fs/cgroup'}{place}")


def set_frozen(pid: int, frozen: bool, *, proc: str = "/proc", root: str = "") -> None:
    """Freeze or thaw the cgroup v2 a process is in; places as in ``set_memory_max``.

    Raises:
        OSError: it may not be written, or the kernel did not keep it.
    """
    file = _cgroup_of(pid, proc, root) / "cgroup.freeze"
    file.write_text(f"{int(frozen)}\n", encoding="ascii")
    if file.read_text(encoding="ascii").strip() != str(int(frozen)):
        raise OSError("cgroup.freeze did not keep what was written")


def is_frozen(pid: int, *, proc: str = "/proc", root: str = "") -> bool:
    """Whether all of the cgroup v2 a process is in stands still; it takes the kernel a moment.

    Raises:
        OSError: it does not say.
    """
    text = (_cgroup_of(pid, proc, root) / "cgroup.events").read_text(encoding="ascii")
    return "frozen 1" in text.splitlines()


def set_memory_max(pid: int, limit_bytes: int, *, proc: str = "/proc", root: str = "") -> None:
    """Set ``memory.max`` of the cgroup v2 a process is in.

    Args:
        pid: the process.
        limit_bytes: the new limit.
        proc: where proc is mounted.
        root: where the cgroup v2 tree is mounted, by default at its usual place.

    Raises:
        OSError: it may not be written, or the kernel kept another value.
    """
    file = _cgroup_of(pid, proc, root) / "memory.max"
    file.write_text(f"{limit_bytes}\n", encoding="ascii")
    kept = file.read_text(encoding="ascii").strip()
    if not kept.isdigit() or int(kept) > limit_bytes or limit_bytes - int(kept) > _PAGE:
        raise OSError(f"memory.max is {kept} after {limit_bytes} was written")


def anonymous_bytes(pids: Iterable[int]) -> int:
    """Resident anonymous memory of processes; pages shared after fork count once for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = Path(f"/proc/{pid}/statm").read_bytes().split()
            total += (int(words[1]) - int(words[2])) * _PAGE
    return total


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of processes, shared pages included."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    return total


def proportional_bytes(pids: Iterable[int]) -> int:
    """Anonymous memory, a page shared by n processes counted as 1/n in each; slower."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
    return total


def tmpfs_bytes(pid: int, mounts: Iterable[str]) -> dict[str, int]:
    """Memory each tmpfs of a container holds: its blocks and its inodes."""
    used = {}
    for mount in mounts:
        with contextlib.suppress(OSError):
            at = os.statvfs(f"/proc/{pid}/root{mount}")
            blocks = (at.f_blocks - at.f_bfree) * at.f_frsize
            used[mount] = blocks + (at.f_files - at.f_ffree) * INODE_BYTES
    return used


def shared_anonymous_bytes(pids: Iterable[int]) -> int:
    """Sizes of shared anonymous mappings, used or not; one shared by n processes counts n times."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
                if line.endswith(b"/dev/zero (deleted)"):
                    first, _, last = line.split(maxsplit=1)[0].partition(b"-")
                    total += int(last, 16) - int(first, 16)
    return total


_NODES_OF_ALL = frozenset(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx",
                                "console", "pts/ptmx")
)  # fmt: skip


def wrong_nodes(pid: int, wanted: Mapping[str, int]) -> list[str]:
    """Device nodes a container has and should not, or the other way round, or another device's.

    Args:
        pid: the container's first process.
        wanted: path to device number, besides the nodes every container has.
    """
    root = f"/proc/{pid}/root"
    found = {}
    for folder, _, names in os.walk(f"{root}/dev"):
        for name in names:
            with contextlib.suppress(OSError):
                about = os.lstat(f"{folder}/{name}")
                path = f"{folder}/{name}".removeprefix(root)
                if stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):
                    found[path] = about.st_rdev
    extra = [path for path in found if path not in wanted and path not in _NODES_OF_ALL]
    missing = [path for path, number in wanted.items() if found.get(path) != number]
    return sorted({*extra, *missing})


def cpu_ms(pids: Iterable[int]) -> int:
    """CPU time processes used, their ended children included."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(word) for word in rest[11:15])
    return ticks * 1000 // _TICKS_PER_S


def start_time(pid: int) -> str:
    """A process's start in clock ticks since boot; with the pid it names a process for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubIds:
    """A user's subordinate ids: ``count`` of each kind are used, the first ``skip`` left out."""

    uid_base: int
    gid_base: int
    count: int
    skip: int = 0


def own_sub_ids() -> SubIds:
    """What ``/etc/subuid`` and ``/etc/subgid`` give this user; a count of 0 if they do not."""
    user = pwd.getpwuid(os.getuid()).pw_name
    found = []
    for name in ("subuid", "subgid"):
        try:
            text = Path(f"/etc/{name}").read_text(encoding="utf-8")
        except OSError:
            text = ""
        found.append(subordinate_range(user, os.getuid(), text))
    (uid_base, uids), (gid_base, gids) = found
    return SubIds(uid_base=uid_base, gid_base=gid_base, count=min(uids, gids))


def subordinate_range(user: str, uid: int, text: str) -> tuple[int, int]:
    """First id and count of a user's largest range in ``/etc/subuid`` text; (0, 0) if none."""
    best = (0, 0)
    for line in text.splitlines():
        parts = line.strip().split(":")
        if len(parts) == 3 and parts[0] in (user, str(uid)) and parts[2].isdigit():
            best = max(best, (int(parts[1]), int(parts[2])), key=lambda pair: pair[1])
    return best
