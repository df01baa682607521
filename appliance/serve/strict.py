"""What both HTTP engines refuse before the application sees it, and how they say so.

Owns: the limits and the grammar of a head beyond what any parser checks, the timers of a
connection, and the answer to what is no request.
Never: reads a socket; knows which parser is in front.
Read next: ``direct`` and ``http1``, the two engines.

  refused with 400      bare LF or CR, obs-fold, control bytes in a head; Content-Length together
                        with Transfer-Encoding, repeated or not plain digits; Transfer-Encoding on
                        HTTP/1.0, or any but "chunked"; repeated Host or Content-Type; a Host that
                        is no host; versions other than 1.0 and 1.1; methods not in upper case,
                        CONNECT; any target but origin form; long chunk headers
  refused with 431      heads over 16 KiB or 100 lines, counted exactly
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.errors import ApplianceError, HeadTooLarge, Malformed
from appliance.wire import PROBLEM_JSON, problem_reply

HEAD_BYTES_MAX = 16 * 1024
HEAD_LINES_MAX = 100
CHUNK_HEAD_BYTES_MAX = 256
LINGER_BYTES_MAX = 64 * 1024 * 1024

FORBIDDEN_BYTES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n)")
_ONCE = frozenset((b"content-length", b"transfer-encoding", b"host", b"content-type"))
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?|")
_METHOD = re.compile(rb"[A-Z]{1,16}")
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """How long a connection may take for what, seconds; the defaults are the product's."""

    head_s: float = 10.0
    keep_alive_s: float = 75.0
    send_s: float = 60.0
    linger_s: float = 2.0
    accept_s: float = 0.05
    grace_s: float = 0.5
    fresh_s: float = 2.0


class Refused(Exception):
    """These bytes are no request that is answered here; ``status`` is 400 or 431."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


def require_strict_head(head: bytes) -> None:
    """Refuse what one server would read differently from another.

    Args:
        head: request line and header lines (or the trailer of a chunked body), up to and with the
            empty line.

    Raises:
        Refused: the reason, for the log of a developer.
    """
    lines = head.split(b"\n")
    if len(head) > HEAD_BYTES_MAX or len(lines) > HEAD_LINES_MAX:
        raise Refused("head too large", status=431)
    if FORBIDDEN_BYTES.search(head):
        raise Refused("bare line feed, carriage return or control byte in head")
    seen: set[bytes] = set()
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t"):
            raise Refused("folded header line")
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _ONCE:
            if name in seen:
                raise Refused("repeated header")
            seen.add(name)
            value = value.strip(b" \t\r")
            if name == b"content-length" and not value.isdigit():
                raise Refused("Content-Length is not a number")
            if name == b"host" and not _HOST.fullmatch(value):
                raise Refused("Host is not a host")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        raise Refused("Content-Length together with Transfer-Encoding")


def require_strict_request(
    method: bytes, target: bytes, version: bytes, names: tuple[bytes, ...] | list[bytes]
) -> None:
    """Refuse request lines that only a proxy or a later protocol would send.

    Args:
        method: as it came.
        target: as it came.
        version: such as ``b"1.1"``.
        names: the header names, in lower case.
    """
    if version not in (b"1.0", b"1.1"):
        raise Refused("unknown HTTP version")
    if not _METHOD.fullmatch(method) or method == b"CONNECT":
        raise Refused("unknown method")
    if not _TARGET.fullmatch(target):
        raise Refused("request target is not in origin form")
    if version == b"1.0" and b"transfer-encoding" in names:
        raise Refused("Transfer-Encoding on HTTP/1.0")


def refusal(status: int, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to what was refused; the connection ends with it."""
    problem: ApplianceError = (
        HeadTooLarge(f"A request's head is at most {HEAD_BYTES_MAX} bytes in 100 lines.")
        if status == 431
        else Malformed("This is not a well-formed HTTP/1.1 request.")
    )
    reply = problem_reply(problem, request_id)
    headers = [
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", str(len(reply.body)).encode()),
        (b"request-id", request_id.encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    return reply.status, headers, reply.body
