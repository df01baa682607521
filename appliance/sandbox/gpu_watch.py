"""Who uses how much GPU memory, and the end of who uses more than it declared.

Owns: one thread that asks the driver twice a second while sandboxes with NVIDIA GPUs run.
Never: places anything, or kills for anything but GPU memory.
Read next: ``gpu_nvml.Session`` (what it asks), ``container`` (which problem the end becomes).

The driver gives every process what is free. Only versions of one tenant share a GPU, so a version
over its budget harms its own tenant, for half a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from appliance.sandbox import kernel
from appliance.sandbox.gpu_nvml import Use
from appliance.sandbox.gpu_place import Fill

_LOG = logging.getLogger(__name__)
POLL_S = 0.5
Reader = Callable[[frozenset[str]], tuple[list[Use], list[Fill]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWatched:
    """A sandbox with GPUs: its units, its user ids, and its budget on each (0: all of it)."""

    units: tuple[str, ...]
    uids: tuple[int, ...]
    pidfd: int
    share_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """What a sandbox had on its fullest unit when last looked at, and whether that was too much."""

    used_bytes: int = 0
    over: bool = False


class GpuWatch:
    """The thread; it sleeps while nobody is watched."""

    def __init__(self, reader: Reader, *, poll_s: float = POLL_S) -> None:
        """Start nothing yet.

        Args:
            reader: asks the driver about units.
            poll_s: time between looks.
        """
        self.problem = ""
        self._reader = reader
        self._poll_s = poll_s
        self._watched: dict[str, GpuWatched] = {}
        self._samples: dict[str, GpuSample] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; it kills nothing more."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None

    def watch(self, ident: str, watched: GpuWatched) -> None:
        """Watch a sandbox until ``unwatch``; call that before its pidfd is closed."""
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

    def sample(self, ident: str) -> GpuSample:
        """The last sample; zero if there is none yet."""
        return self._samples.get(ident, GpuSample())

    def _run(self) -> None:
        while not self._stopped:
            with self._lock:
                watched = dict(self._watched)
            if not watched:
                self._wake.wait()
                self._wake.clear()
                continue
            self._look(watched)
            self._wake.wait(self._poll_s)
            self._wake.clear()

    def _look(self, watched: Mapping[str, GpuWatched]) -> None:
        """Sample all and kill those over their budget."""
        try:
            uses, _ = self._reader(
                frozenset(unit for one in watched.values() for unit in one.units)
            )
        except OSError as error:
            if not self.problem:
                _LOG.error("GPU memory cannot be watched: %s", error)
            self.problem = str(error)
            return
        self.problem = ""
        by_uid = kernel.pids_by_uid({uid for one in watched.values() for uid in one.uids})
        for ident, one in watched.items():
            pids = {pid for uid in one.uids for pid in by_uid[uid]}
            used = fullest(uses, one.units, pids)
            over = bool(one.share_bytes) and used > one.share_bytes
            with self._lock:
                if ident not in self._watched:
                    continue
                self._samples[ident] = GpuSample(used_bytes=used, over=over)
                if over:
                    kernel.kill(one.pidfd)
                    del self._watched[ident]


def fullest(uses: list[Use], units: tuple[str, ...], pids: set[int]) -> int:
    """What these processes have on that of the units where they have most, in bytes."""
    sums = dict.fromkeys(units, 0)
    for use in uses:
        if use.unit in sums and use.pid in pids:
            sums[use.unit] += use.used_bytes
    return max(sums.values(), default=0)
