"""What was counted of versions' calls, minute by minute: sealed files, derived data.

Owns: ``sketches/``: the MASK1 format, rolling minutes up to hours, forgetting what is old or whose
baseline is gone.
Never: knows what a sketch is made of, or is the truth about anything: a lost file is lost counts.
Read next: ``FORMAT.md`` section 8; ``appliance.watch`` writes and reads them.

A folder per version and plan, a file per UTC day. A record is appended per period in which the
version was called; a torn last one is cut off by the next. All methods are blocking.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import NotFound, StoreCorrupt
from appliance.store.keyring import Keyring
from appliance.store.seal import fsync_dir, replace_file

_LOG = logging.getLogger(__name__)
_MAGIC = b"MASK1\n"
_HEAD = 12  # when it began in seconds, then how long the box is
_BOX_MAX = 16 * 1024 * 1024
_LABEL = "sketch"
_DAY_S = 86_400
_HOUR_S = 3600
MINUTES, HOURS = ".min", ".hour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose sketches: a version's, in the bins of one plan."""

    tenant_id: str
    model_id: str
    number: int
    plan_id: str

    @property
    def path(self) -> str:
        """The folder, below ``sketches/``."""
        return f"{self.tenant_id}/{self.model_id}.{self.number}.{self.plan_id}"


class Sketches:
    """The files."""

    def __init__(self, data_dir: Path, keyring: Keyring) -> None:
        """Keep them in ``data_dir``, sealed by ``keyring``."""
        self._dir = data_dir / "sketches"
        self._keyring = keyring
        self._lock = threading.Lock()  # a cancelled caller's append goes on in its thread

    def append(self, place: Place, start_s: int, plain: bytes) -> None:
        """Add the sketch of the period that began then; durable when it returns.

        Raises:
            NotFound: the tenant was removed.
            OSError: it could not be written.
        """
        path = self._dir / place.path / f"{start_s // _DAY_S}{MINUTES}"
        record = self._record(place, MINUTES, start_s, plain)
        with self._lock:
            is_new = not path.parent.is_dir()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _append(path, record)
            if is_new:
                fsync_dir(path.parent)
                fsync_dir(path.parent.parent)

    def read(self, place: Place, since_s: int) -> Iterator[tuple[int, bytes]]:
        """When each period began and its sketch, oldest first, from ``since_s`` on.

        What is damaged is left out and logged.
        """
        folder = self._dir / place.path
        for day, path in _days(folder):
            if (day + 1) * _DAY_S <= since_s:
                continue
            for start_s, plain in self._read(place, path):
                if start_s >= since_s or (path.suffix == HOURS and start_s + _HOUR_S > since_s):
                    yield start_s, plain

    def tidy(
        self,
        kept: set[Place],
        *,
        now_s: int,
        kept_days: int,
        merge: Callable[[list[bytes]], bytes],
    ) -> None:
        """Forget what is too old or nobody's, and roll minutes older than a day up to hours.

        Args:
            kept: whose sketches stay.
            now_s: the time.
            kept_days: days they are kept.
            merge: the sum of several sketches.
        """
        if not self._dir.is_dir():
            return
        paths = {place.path: place for place in kept}
        today = now_s // _DAY_S
        for tenant in self._dir.iterdir():
            for folder in tenant.iterdir():
                place = paths.get(f"{tenant.name}/{folder.name}")
                if place is None:
                    shutil.rmtree(folder, ignore_errors=True)
                    continue
                for day, path in _days(folder):
                    if day < today - kept_days:
                        path.unlink(missing_ok=True)
                        path.with_suffix(MINUTES).unlink(missing_ok=True)
                    elif path.suffix == HOURS:
                        path.with_suffix(MINUTES).unlink(missing_ok=True)
                    elif day < today - 1:
                        self._roll_up(place, path, merge)
            if not any(tenant.iterdir()):
                tenant.rmdir()

    def discard(self, place: Place) -> None:
        """Forget a plan's sketches."""
        shutil.rmtree(self._dir / place.path, ignore_errors=True)

    def _roll_up(self, place: Place, path: Path, merge: Callable[[list[bytes]], bytes]) -> None:
        hours: dict[int, list[bytes]] = {}
        for start_s, plain in self._read(place, path):
            hours.setdefault(start_s // _HOUR_S * _HOUR_S, []).append(plain)
        records = [
            self._record(place, HOURS, start_s, merge(plains))
            for start_s, plains in sorted(hours.items())
        ]
        replace_file(path.with_suffix(HOURS), _MAGIC + b"".join(records))
        path.unlink()

    def _record(self, place: Place, suffix: str, start_s: int, plain: bytes) -> bytes:
        aad = _aad(place, suffix, start_s)
        box = self._keyring.seal(place.tenant_id, _LABEL, aad, plain)
        return start_s.to_bytes(8, "big") + len(box).to_bytes(4, "big") + box

    def _read(self, place: Place, path: Path) -> Iterator[tuple[int, bytes]]:
        try:
            data = path.read_bytes()
        except OSError as error:
            _LOG.warning("a file of sketches cannot be read: %s", error)
            return
        for start_s, box in _records(data):
            try:
                aad = _aad(place, path.suffix, start_s)
                yield start_s, self._keyring.open(place.tenant_id, _LABEL, aad, box)
            except NotFound:
                return
            except StoreCorrupt:
                _LOG.warning("a sketch of %s is damaged and left out", path.name)


def _aad(place: Place, suffix: str, start_s: int) -> bytes:
    return f"{place.path}{suffix}\0{start_s}".encode()


def _days(folder: Path) -> list[tuple[int, Path]]:
    """Each day's file, oldest first; the hours where a crash left both."""
    found: dict[int, Path] = {}
    if folder.is_dir():
        for path in folder.iterdir():
            if path.suffix not in (MINUTES, HOURS) or not path.stem.isdigit():
                continue
            if path.suffix == HOURS or int(path.stem) not in found:
                found[int(path.stem)] = path
    return sorted(found.items())


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = len(_MAGIC)
    if data[:at] != _MAGIC:
        return
    while at + _HEAD <= len(data):
        start_s = int.from_bytes(data[at : at + 8], "big")
        size = int.from_bytes(data[at + 8 : at + _HEAD], "big")
        end = at + _HEAD + size
        if size > _BOX_MAX or end > len(data):
            return
        yield start_s, data[at + _HEAD : end]
        at = end


def _append(path: Path, record: bytes) -> None:
    """Add a record after the last whole one."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        end = _whole(fd)
        os.ftruncate(fd, end)
        _write(fd, record if end else _MAGIC + record, end)
        os.fsync(fd)
    finally:
        os.close(fd)


def _whole(fd: int) -> int:
    """Up to where a file consists of whole records; 0 where it does not begin as one."""
    end = os.fstat(fd).st_size
    if os.pread(fd, len(_MAGIC), 0) != _MAGIC:
        return 0
    at = len(_MAGIC)
    while len(head := os.pread(fd, _HEAD, at)) == _HEAD:
        size = int.from_bytes(head[8:], "big")
        if size > _BOX_MAX or at + _HEAD + size > end:
            break
        at += _HEAD + size
    return at


def _write(fd: int, data: bytes, at: int) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done
