"""Frames of the runner link: their bytes, their headers, and what a guest's words become.

Owns: the codec, the members a guest's header may have, cleaned texts.
Never: holds a connection (``connection``), or decides what may arrive when (``link``, ``batches``).
Read next: ``PROTOCOL.md`` (the contract).
"""

from __future__ import annotations

import re
import struct
from typing import Any

import msgspec

PROTO = 1
HEADER_BYTES_MAX = 16 * 1024
DETAIL_MAX = 2000
PREFIX = struct.Struct(">IQ")
CONTENT_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,255}")


class LinkLost(Exception):
    """The connection ended (``protocol`` empty) or broke the protocol (``protocol`` says how)."""

    def __init__(self, protocol: str = "") -> None:
        super().__init__(protocol or "connection ended")
        self.protocol = protocol


class GuestFault(Exception):
    """The runner reported a failure (ERR); ``kind`` as in PROTOCOL.md, texts are cleaned."""

    def __init__(self, kind: str, detail: str, missing: str, trace: tuple[str, ...]) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.missing = missing
        self.trace = trace


class ReplyOverCap(Exception):
    """The runner announced an answer larger than the request allows; it was not read."""


class Header(msgspec.Struct):
    """The members a guest's header may have, typed; others are ignored."""

    type: str
    id: str = ""
    proto: int = 0
    role: str = ""
    runtime: str = ""
    version: str = ""
    content_type: str = ""
    compute_us: int = 0
    kind: str = ""
    detail: str = ""
    missing: str = ""
    trace: list[str] = msgspec.field(default_factory=list)
    stream: str = ""
    dropped: int = 0
    code: int = 0
    last: bool = False
    batch: bool = False
    member: int = -1
    members: list[int] = msgspec.field(default_factory=list)
    sizes: list[int] = msgspec.field(default_factory=list)
    rows: list[int] = msgspec.field(default_factory=list)
    group: int = 0
    group_rows: int = 0
    calls: int = 1
    req: str = ""
    target: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Header).decode


def clean(text: str, characters_max: int = DETAIL_MAX) -> str:
    """Text of a guest made safe to show: bounded, no control, escape or surrogate characters."""
    kept = text[:characters_max]
    if kept.isprintable():  # C speed for what is harmless, which is nearly everything
        return kept
    kept = kept.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in kept)


def frame(header: dict[str, Any], body_bytes: int = 0) -> bytes:
    """The bytes of a frame up to its body."""
    text = _encode(header)
    return PREFIX.pack(len(text), body_bytes) + text


def header_from_bytes(text: bytes) -> Header:
    """The header of a frame.

    Raises:
        LinkLost: it is none.
    """
    try:
        return _decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise LinkLost("a frame header is not a JSON object of known members") from error


def fault_from_header(header: Header) -> GuestFault:
    """What an ERR says, made safe to show."""
    trace = tuple(clean(line, 500) for line in header.trace[-60:])
    return GuestFault(
        clean(header.kind, 20), clean(header.detail), clean(header.missing, 200), trace
    )
