"""Numbers, times and untrusted text as a terminal can show them.

Owns: cleaning, clipping, durations, sizes, status words and one-line charts.
Never: knows a screen, a colour or the network.
Read next: ``table`` (uses all of it).

Everything a server sends may hold text other people chose, so ``clean`` removes whatever could
drive the terminal, and nothing here is ever parsed as markup.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len, set_cell_size

NONE = "-"
WORDS = {
    "ok": "OK",
    "warn": "! WARN",
    "fail": "X FAIL",
    "off": "- OFF",
    "ready": "OK ready",
    "retired": "- retired",
    "pending": "! pending",
    "failed": "X failed",
    "active": "OK active",
    "expired": "! expired",
    "revoked": "- revoked",
    "succeeded": "OK succeeded",
    "canceled": "- canceled",
    "paused": "- paused",
    "on": "OK on",
    "delivered": "OK delivered",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def clean(value: object, *, lines: bool = False) -> str:
    """The value as text without anything a terminal would obey.

    Control, format (bidirectional, zero width), surrogate and unassigned characters become ``·``;
    line feeds are kept when ``lines`` is true, tabs become four spaces and other
    spaces one.
    """
    out = []
    for char in str(value):
        if char == "\n" and lines:
            out.append(char)
        elif char == "\t":
            out.append("    ")
        elif char.isascii() and char.isprintable():
            out.append(char)
        else:
            category = unicodedata.category(char)
            out.append("·" if category in _UNSAFE else " " if category == "Zs" else char)
    return "".join(out)


def clip(value: object, width: int) -> str:
    """Clean text of at most ``width`` cells; what does not fit is replaced by a final ``…``."""
    text = clean(value)
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…"


def fit(value: object, width: int, *, right: bool = False) -> str:
    """Clean text of exactly ``width`` cells, padded on one side."""
    text = clip(value, width)
    gap = " " * (width - cell_len(text))
    return gap + text if right else text + gap


def now() -> datetime:
    """The wall time in UTC, for ages; times in answers are the server's."""
    return datetime.now(UTC)


def moment(value: object) -> datetime | None:
    """The time an RFC 3339 text means, or None if it is none."""
    if not isinstance(value, str) or not value:
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def stamp(value: object) -> str:
    """``2026-01-31 12:00:00`` (UTC) from RFC 3339 text; ``-`` for none."""
    at = moment(value)
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if at else NONE


def day(value: object) -> str:
    """``2026-01-31`` (UTC) from RFC 3339 text; ``-`` for none."""
    return stamp(value).partition(" ")[0]


def clock(value: object) -> str:
    """``12:00:00`` (UTC) from RFC 3339 text; ``-`` for none."""
    return stamp(value).rpartition(" ")[2]


def age(value: object) -> str:
    """How long ago an RFC 3339 time was; ``-`` for none."""
    at = moment(value)
    return duration((now() - at).total_seconds()) if at else NONE


def duration(seconds: float | None) -> str:
    """Two units at most: ``4s``, ``12m05s``, ``3h07m``, ``3d04h``, ``412d``."""
    if seconds is None:
        return NONE
    left = max(0, int(seconds))
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return f"{left // 60}m{left % 60:02d}s"
    if left < 86_400:
        return f"{left // 3600}h{left % 3600 // 60:02d}m"
    if left < 100 * 86_400:
        return f"{left // 86_400}d{left % 86_400 // 3600:02d}h"
    return f"{left // 86_400}d"


def spent(seconds: float | None) -> str:
    """How long something took: ``0.12s``, ``4.7s``, then like ``duration``; ``-`` for none."""
    if seconds is None or seconds >= 60:
        return duration(seconds)
    return f"{max(0.0, seconds):.2f}s" if seconds < 1 else f"{seconds:.1f}s"


def span(seconds: int) -> str:
    """Whole seconds as people type them, in the largest unit: ``90s``, ``6h``, ``7d``."""
    unit = next((u for u in ("d", "h", "m") if seconds and not seconds % SECONDS[u]), "s")
    return f"{seconds // SECONDS[unit]}{unit}"


def seconds_of(words: str) -> int | None:
    """Seconds of ``90s``, ``30m``, ``24h``, ``7d``, ``2w``; None for anything else, 0 included."""
    number, unit = words[:-1], words[-1:]
    if not number.isascii() or not number.isdigit() or len(number) > 7:
        return None
    return int(number) * SECONDS.get(unit, 0) or None


def size(value: float | None) -> str:
    """Bytes in binary units, three digits: ``0 B``, ``1.5 MiB``, ``512 MiB``."""
    if value is None:
        return NONE
    amount = float(value)
    for unit in _UNITS:
        if abs(amount) < 999.5 or unit == _UNITS[-1]:
            digits = 0 if unit == "B" or abs(amount) >= 9.95 else 1
            return f"{amount:.{digits}f} {unit}"
        amount /= 1024
    return NONE


def count(value: float | None) -> str:
    """A number in at most five characters: ``7``, ``48.2k``, ``1.3M``."""
    if value is None:
        return NONE
    amount = float(value)
    for suffix in ("", "k", "M", "G"):
        if abs(amount) < 999.5 or suffix == "G":
            digits = 0 if suffix == "" or abs(amount) >= 99.5 else 1
            return f"{amount:.{digits}f}{suffix}"
        amount /= 1000
    return NONE


def millis(value: float | None) -> str:
    """Milliseconds in at most five characters: ``0.4``, ``38.7``, ``1240``; ``-`` for none."""
    if value is None:
        return NONE
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent, two digits; ``-`` when there is no whole."""
    return f"{100 * part / whole:.2f}" if whole else NONE


def word(state: object) -> str:
    """A state as a word first, with a mark that needs no colour: ``! WARN``."""
    text = clean(state)
    return WORDS.get(text, text)


def spark(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as one line of bars, the highest value full height."""
    shown = list(values)[-width:]
    top = max(shown, default=0)
    if top <= 0:
        return _BLOCKS[0] * len(shown)
    return "".join(_BLOCKS[min(7, max(0, round(7 * max(0, v) / top)))] for v in shown)


def bar(part: float, whole: float, width: int = 6) -> str:
    """How much of the whole is done: ``[###---]  50%``; only what is whole says 100%."""
    share = min(1.0, max(0.0, part / whole)) if whole else 0.0
    full = int(share * width)
    return f"[{'#' * full}{'-' * (width - full)}] {int(100 * share):>3}%"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces (RFC 8785 for the types the ledger holds)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def pretty(value: Any) -> str:
    """JSON for reading: sorted keys, two spaces, cleaned line by line."""
    return clean(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False), lines=True)
