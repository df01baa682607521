"""Time and identity: the only source of now, monotonic time and new ids.

Owns: ``now_ns``, ``monotonic_ns``, ``new_id`` and the text form of a time.
Never: sleeps or schedules; keeps no state but random bytes read ahead.
Read next: ``records`` for the things that carry these ids.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from datetime import UTC, datetime

_ALPHABET = b"0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u.
_LETTERS = bytes(_ALPHABET[byte & 31] for byte in range(256))
_PAGE_BYTES = 4096
_NS_PER_S = 1_000_000_000


class _Random:
    """Bytes of the kernel's random source, read in pages: a call needs several ids.

    Each byte is handed out once. For one thread at a time, which is whoever holds the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._page = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        with self._lock:
            if self._at + size > len(self._page):
                self._page, self._at = os.urandom(max(_PAGE_BYTES, size)), 0
            start, self._at = self._at, self._at + size
            return self._page[start : self._at]

    def forget(self) -> None:
        """In a forked child: what the parent will hand out is not handed out here too."""
        self._lock = threading.Lock()
        self._page, self._at = b"", 0


_random = _Random()
os.register_at_fork(after_in_child=_random.forget)


def now_ns() -> int:
    """Wall time in nanoseconds since the Unix epoch, for records; never for deadlines."""
    return time.time_ns()


def monotonic_ns() -> int:
    """Monotonic time in nanoseconds, for deadlines and durations; never stored as a date."""
    return time.monotonic_ns()


def new_id(prefix: str, characters: int = 13) -> str:
    """A fresh random id ``prefix_xxxxx``, 5 bits a character (65 bits by default)."""
    text = _random.take(characters).translate(_LETTERS).decode("ascii")
    return f"{prefix}_{text}"


def draw(bound: int) -> int:
    """A fresh random number in [0, ``bound``): independent, and each equally likely."""
    return secrets.randbelow(bound)


def text_from_ns(ns: int) -> str:
    """The RFC 3339 UTC text of a wall time, milliseconds kept: ``2026-01-31T12:00:00.123Z``."""
    seconds, rest = divmod(ns, _NS_PER_S)
    stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{stamp}.{rest // 1_000_000:03d}Z"
