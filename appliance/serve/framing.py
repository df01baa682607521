"""Where a request ends: its head, read by llhttp, and its body, counted or cut from chunks.

Owns: ``Asked``, what a head asks for, and the two kinds of body.
Never: holds a connection.
Read next: ``strict`` (what a head has to pass first), ``direct`` (who asks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import httptools

from appliance.serve import strict
from appliance.serve.strict import Refused, require_strict_head, require_strict_request

HEAD_END = re.compile(rb"\n\r?\n")
_CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*")


class _Head:
    """What llhttp found in a head."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, piece: bytes) -> None:
        """Part of the target."""
        self.target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))


class Length:
    """A body of a known length."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.is_done = not size_bytes

    def take(self, buffer: bytearray) -> bytes:
        """The next bytes of the body, cut off the buffer."""
        piece = bytes(buffer[: self._left])
        del buffer[: len(piece)]
        self._left -= len(piece)
        self.is_done = not self._left
        return piece


class Chunks:
    """A chunked body (RFC 9112, section 7.1); extensions and trailers are read and dropped."""

    def __init__(self) -> None:
        self._left = 0
        self._expect = b"size"
        self.is_done = False

    def take(self, buffer: bytearray) -> bytes:
        """What the buffer holds of the body, cut off it.

        Raises:
            Refused: these are no well-formed chunks.
        """
        found = []
        while buffer and not self.is_done:
            if self._expect == b"data":
                piece = bytes(buffer[: self._left])
                del buffer[: len(piece)]
                self._left -= len(piece)
                found.append(piece)
                self._expect = b"data" if self._left else b"end"
            elif not self._step(buffer):
                break
        return b"".join(found)

    def _step(self, buffer: bytearray) -> bool:
        """Take a chunk's head, end or the trailer; False while it is incomplete."""
        if self._expect == b"end":
            if not b"\r\n".startswith(buffer[:2]):
                raise Refused("a chunk is longer than it said")
            if len(buffer) < 2:
                return False
            del buffer[:2]
            self._expect = b"size"
            return True
        return self._take_size(buffer) if self._expect == b"size" else self._take_trailer(buffer)

    def _take_size(self, buffer: bytearray) -> bool:
        end = buffer.find(b"\n", 0, strict.CHUNK_HEAD_BYTES_MAX)
        if end < 0:
            if len(buffer) >= strict.CHUNK_HEAD_BYTES_MAX:
                raise Refused("chunk header too long")
            return False
        line = bytes(buffer[: end + 1])
        match = _CHUNK_HEAD.fullmatch(line[:-2])
        if match is None or not line.endswith(b"\r\n") or strict.FORBIDDEN_BYTES.search(line):
            raise Refused("malformed chunk header")
        del buffer[: end + 1]
        self._left = int(match.group(1), 16)
        self._expect = b"data" if self._left else b"trailer"
        return True

    def _take_trailer(self, buffer: bytearray) -> bool:
        if buffer.startswith(b"\r\n"):
            del buffer[:2]
            self.is_done = True
            return True
        match = HEAD_END.search(buffer)
        if match is None:
            if len(buffer) > strict.HEAD_BYTES_MAX:
                raise Refused("trailer too large")
            return False
        trailer = bytes(buffer[: match.end()])
        require_strict_head(b"\r\n" + trailer)
        if not all(_TRAILER.fullmatch(line) for line in trailer.split(b"\r\n")[:-2]):
            raise Refused("malformed trailer")
        del buffer[: match.end()]
        self.is_done = True
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a head asks for. ``scope`` has the members of the ASGI scope that are in it.

    ``length_bytes`` is of the body, ``None`` where it comes in chunks.
    """

    scope: dict[str, Any]
    length_bytes: int | None
    is_kept: bool
    expects_continue: bool

    def body(self) -> Length | Chunks:
        """Its body, of which nothing was read."""
        return Chunks() if self.length_bytes is None else Length(self.length_bytes)


def asked_from_head(head: bytes) -> Asked:
    """What a head asks for; the same bytes always ask for the same.

    Raises:
        Refused: it breaks a rule of ``strict``, llhttp finds an error, or only a proxy would be
            sent it.
    """
    require_strict_head(head)
    found = _Head()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # never made: the request is answered as if it had not asked
    except httptools.HttpParserError as error:
        raise Refused(str(error)) from error
    method, version = parser.get_method(), parser.get_http_version()
    headers = dict(found.headers)
    require_strict_request(method, found.target, version.encode(), list(headers))
    if version == "1.1" and b"host" not in headers:
        raise Refused("no Host")
    raw_path, _, query = found.target.partition(b"?")
    is_closed = b"close" in headers.get(b"connection", b"").lower()
    return Asked(
        scope={
            "http_version": version,
            "method": method.decode("ascii"),
            "path": raw_path.decode("latin-1"),
            "raw_path": raw_path,
            "query_string": query,
            "headers": tuple(found.headers),
        },
        length_bytes=_length_of(headers),
        is_kept=version == "1.1" and not is_closed,
        expects_continue=version == "1.1"
        and headers.get(b"expect", b"").lower() == b"100-continue",
    )


def _length_of(headers: dict[bytes, bytes]) -> int | None:
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if coding.strip().lower() != b"chunked":
            raise Refused("unknown transfer coding")
        return None
    length = headers.get(b"content-length", b"0").strip()
    if len(length) > 18:
        raise Refused("Content-Length is too large")
    return int(length)
