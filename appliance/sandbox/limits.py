"""Limits: what this host can hold a sandbox to, found by trying, and the memory watchdog.

Owns: the three levels, the delegated cgroup search, the probe's model and verdicts, the watchdog.
Never: makes a container itself (``podman`` runs the probe) or trusts what Podman claims.
Read next: ``hardening.process_limits`` and ``hardening.cgroup_limits`` (what is set).

    enforced    the kernel holds memory, pids and cpu by a delegated cgroup v2 parent
    supervised  rlimits set from outside after init, sized tmpfs, and a watchdog that kills
    none        neither: nothing runs
"""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.records import CallLimits, Resources
from appliance.sandbox import kernel
from appliance.sandbox.spec import MIB, Level, LimitsReport, SandboxSpec

POLL_S = 0.1
POLL_NEAR_S = 0.01
_NEAR = 0.5
NOT_HELD = "not held"
PROBE_MEMORY_BYTES = 96 * MIB
PROBE_PIDS = 12
SLACK_BYTES = 4 * MIB  # of /model, uncharged: file ends and folders of an artifact
PROBE_RUNTIME = "python3.11"

PROBE_MODEL = """
import os, time

def load(path):
    return probe

def touch(size):
    held = []
    for _ in range(size >> 20):
        held.append(bytearray(b"x") * (1 << 20))
    return held

def probe(inputs):
    what, size = inputs["what"], inputs["size"]
    if what == "one":
        return len(touch(size))
    if what == "pids":
        made = 0
        for _ in range(size):
            try:
                pid = os.fork()
            except OSError:
                break
            if pid == 0:
                time.sleep(20)
                os._exit(0)
            made += 1
        return made
    for _ in range(4):
        if os.fork() == 0:
            held = touch(size)
            time.sleep(20)
            os._exit(0)
    time.sleep(8)
    return 0
"""


def probe_spec(runtime: str, runtime_digest: str) -> SandboxSpec:
    """The probe's sandbox: small limits that its model then tries to exceed."""
    return SandboxSpec(
        version_key="probe",
        tenant_id="",
        runtime=runtime,
        runtime_digest=runtime_digest,
        resources=Resources(
            memory_bytes=PROBE_MEMORY_BYTES, pids=PROBE_PIDS, cpus=1.0, tmp_bytes=MIB
        ),
        limits=CallLimits(load_timeout_ms=30_000, invoke_timeout_ms=10_000),
        model_bytes=len(PROBE_MODEL),
        entry="model:load",
    )


def probe_tar() -> bytes:
    """The probe's artifact."""
    data = PROBE_MODEL.encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("model.py")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What the probe's three attempts came to: True where the limit stopped it.

    ``made`` is how many processes it could make under a limit of ``PROBE_PIDS``.
    """

    one_process: bool
    many_processes: bool
    made: int

    @property
    def pids(self) -> bool:
        """Whether the process limit held."""
        return 0 < self.made <= PROBE_PIDS


def report_from_probe(level: Level, mechanism: str, result: ProbeResult) -> LimitsReport:
    """The report for a mechanism and what the probe did under it; ``none`` if anything got out."""
    size = PROBE_MEMORY_BYTES // MIB
    memory = result.one_process and result.many_processes
    tried = (
        f"One process asking 4x of {size} MiB: {_held(result.one_process)}; four processes "
        f"together: {_held(result.many_processes)}; {result.made} processes made of "
        f"{PROBE_PIDS * 3} tried under a limit of {PROBE_PIDS}."
    )
    if level == "enforced":
        texts = ("cgroup memory.max", "cgroup pids.max", "cgroup cpu.max")
    else:
        texts = ("rlimit and watchdog that kills", "rlimit set after init", "core affinity")
    return LimitsReport(
        level=level if memory and result.pids else "none",
        mechanism=mechanism,
        memory=texts[0] if memory else NOT_HELD,
        pids=texts[1] if result.pids else NOT_HELD,
        cpu=texts[2],
        detail=tried,
    )


def _held(was: bool) -> str:
    return "stopped" if was else "NOT stopped"


def unprobed(detail: str) -> LimitsReport:
    """The report before a probe could run."""
    return LimitsReport(
        level="none", mechanism="", memory=NOT_HELD, pids=NOT_HELD, cpu=NOT_HELD, detail=detail
    )


def delegated_parent(
    configured: str,
    *,
    root: Path = Path("/sys/fs/cgroup"),
    own: str | None = None,
    writable: Callable[[Path], bool] | None = None,
) -> str:
    """The cgroup v2 path containers may be put under, "" when there is none.

    Args:
        configured: the setting; empty to look at the process's own place.
        root: where the cgroup v2 tree is mounted.
        own: text of ``/proc/self/cgroup``; ``None`` reads it.
        writable: whether this user may write a file; ``None`` asks the kernel.
    """
    if not (root / "cgroup.controllers").is_file():
        return ""
    if own is None:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii")
    can_write = writable or _can_write
    place = next((line[3:] for line in own.splitlines() if line.startswith("0::")), "/")
    candidates = [configured] if configured else [str(Path(place).parent), place]
    for candidate in candidates:
        folder = root / candidate.lstrip("/")
        try:
            controllers = (folder / "cgroup.subtree_control").read_text(encoding="ascii").split()
        except OSError:
            continue
        if {"memory", "pids"} <= set(controllers) and can_write(folder / "cgroup.procs"):
            return "/" + candidate.strip("/")
    return ""


def _can_write(path: Path) -> bool:
    try:
        with path.open("a", encoding="ascii"):
            return True
    except OSError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One container under watch. ``allowance`` bytes of ``/model`` are not charged to it.

    ``counts_shared``: it may make shared anonymous mappings, so these are counted too.
    ``guest_bytes``: tells all that a guest with a kernel of its own holds, its mounts included.
    """

    pid: int
    pidfd: int
    uids: tuple[int, ...]
    limit_bytes: int
    allowance_bytes: int
    mounts: tuple[str, ...]
    kills: bool
    counts_shared: bool = False
    guest_bytes: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a container held when last looked at: bytes, and its processes."""

    memory_bytes: int
    pids: tuple[int, ...]
    over: bool = False


class Watchdog:
    """A thread that adds up each container's memory and kills the one over its limit."""

    def __init__(self) -> None:
        self._watched: dict[str, Watched] = {}
        self._samples: dict[str, Sample] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="sandbox-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; it kills nothing more."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None

    def watch(self, ident: str, watched: Watched) -> None:
        """Watch a container until ``unwatch``; call that before its pidfd is closed."""
        with self._lock:
            self._watched[ident] = watched
        self._wake.set()

    def unwatch(self, ident: str) -> None:
        """Stop watching; its last sample stays until ``forget``."""
        with self._lock:
            self._watched.pop(ident, None)

    def forget(self, ident: str) -> None:
        """Drop the last sample."""
        self._samples.pop(ident, None)

    def sample(self, ident: str) -> Sample:
        """The last sample; zero if there is none yet."""
        return self._samples.get(ident, Sample(memory_bytes=0, pids=()))

    def _run(self) -> None:
        while not self._stopped:
            with self._lock:
                watched = dict(self._watched)
            if not watched:
                self._wake.wait()
                self._wake.clear()
                continue
            nearest = self._look(watched)
            self._wake.wait(POLL_NEAR_S if nearest > _NEAR else POLL_S)
            self._wake.clear()

    def _look(self, watched: Mapping[str, Watched]) -> float:
        """Sample all, kill those over; the largest share of a limit any of them uses."""
        by_uid = kernel.pids_by_uid({uid for one in watched.values() for uid in one.uids})
        nearest = 0.0
        for ident, one in watched.items():
            pids = tuple(pid for uid in one.uids for pid in by_uid[uid])
            if one.guest_bytes is not None:
                pids = (one.pid, *kernel.descendants(one.pid))
            sample = measure(one, pids)
            over = one.kills and sample.memory_bytes > one.limit_bytes
            with self._lock:
                if ident not in self._watched:
                    continue
                self._samples[ident] = replace(sample, over=over)
                if over:
                    kernel.kill(one.pidfd)
                    del self._watched[ident]
            if one.kills:
                nearest = max(nearest, sample.memory_bytes / one.limit_bytes)
        return nearest


def measure(one: Watched, pids: tuple[int, ...]) -> Sample:
    """What a container's processes and its tmpfs mounts hold now."""
    if one.guest_bytes is not None:
        own = kernel.anonymous_bytes(pids)
        return Sample(memory_bytes=one.guest_bytes() + own, pids=pids)
    mounts = kernel.tmpfs_bytes(one.pid, one.mounts)
    files = sum(mounts.values()) - min(mounts.get("/model", 0), one.allowance_bytes)
    if one.counts_shared:
        files += kernel.shared_anonymous_bytes(pids)
    memory = files + kernel.anonymous_bytes(pids)
    if memory > one.limit_bytes and len(pids) > 1:
        exact = kernel.proportional_bytes(pids)
        memory = files + exact if exact else memory
    return Sample(memory_bytes=memory, pids=pids)
