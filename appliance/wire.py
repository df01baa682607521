"""HTTP mechanics: what a request is, how it is read, how an answer and a problem are written.

Owns: ``Request``, ``Reply``, body limits and deadlines, strict JSON, query strings, ETags,
problem documents, and the headers every answer carries.
Never: routes, authenticates or knows a contract (``api``), or knows the server (``serve``).
Read next: ``api.dispatch`` (the order things happen in), ``errors`` (the problems).

Raw ASGI throughout: no middleware class wraps the path of a call.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from appliance.auth import Presented, Principal
from appliance.auth.peer import Peer
from appliance.errors import (
    ApplianceError,
    BodyTimeout,
    FieldError,
    GuestError,
    InputInvalid,
    Malformed,
    NotFound,
    TooLarge,
    UnsupportedMedia,
    words_of,
)
from appliance.policy import NOT_FOUND
from appliance.records import Tenant
from appliance.room import Hold, Room

T = TypeVar("T")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Write = Callable[[bytes], Awaitable[None]]

JSON = "application/json"
NDJSON = "application/x-ndjson"
PROBLEM_JSON = "application/problem+json"
HANGUP = "appliance.hangup"
"""Name of the ASGI extension that is a request's ``on_hangup``."""

JSON_BODY_MAX = 64 * 1024
"""Largest JSON document of the management contracts, bytes."""

UPLOAD_RATE_MIN = 64 * 1024
"""Bytes a second below which an upload eventually runs out of time."""

_CSP = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_ALWAYS: tuple[tuple[bytes, bytes], ...] = (
    (b"strict-transport-security", b"max-age=31536000"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _CSP),
    (b"cache-control", b"no-store"),
)
# Every legal name in a path is made of these, so nothing in a path ever needs %-encoding.
_PATH = re.compile(rb"/|(?:/[A-Za-z0-9_~+=,@-][A-Za-z0-9._~+=,@-]*)+")
_MEDIA_TYPE = re.compile(
    r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+(?:[ \t]*;[ \t]*[a-z0-9_-]+=(?:[\x21\x23-\x3a\x3c-\x5b"
    r"\x5d-\x7e]+|\"[\x20\x21\x23-\x5b\x5d-\x7e]*\"))*",
    re.IGNORECASE,
)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: either ``body`` as it is, or ``stream``, a function that writes piece by piece."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    stream: Callable[[Write], Awaitable[None]] | None = None
    after: Callable[[], None] | None = None
    """Called when the answer has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, past routing and authentication; ``S`` is what handlers work with.

    ``tenant`` is the tenant named in the path, already checked to be visible to ``principal``.
    """

    id: str
    method: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: tuple[tuple[bytes, bytes], ...]
    principal: Principal
    tenant: Tenant | None = None
    receive: Receive
    body_timeout_s: float = 60.0
    hold: Hold = field(default_factory=lambda: Hold(Room(1 << 40), ""))
    on_hangup: Callable[[Callable[[], object]], object] = lambda _: None
    """Takes what is to be called when the caller hangs up; does nothing where nobody can tell."""

    def header(self, name: str) -> str:
        """The value of a header (lower-case name), ``""`` if it did not come."""
        return header(self.headers, name)

    @property
    def content_type(self) -> str:
        """The media type with its parameters, lower-cased type, ``""`` if none was sent."""
        return self.header("content-type").strip()

    def is_accepted(self, media_type: str) -> bool:
        """Whether the Accept header names this media type (``*/*`` does not count as naming it)."""
        wanted = self.header("accept").lower()
        return any(part.split(";")[0].strip() == media_type for part in wanted.split(","))

    async def chunks(
        self, limit_bytes: int, *, rate_min: int | None = None, codings: tuple[str, ...] = ()
    ) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive.

        Args:
            limit_bytes: most bytes accepted; a larger Content-Length is refused unread.
            rate_min: bytes a second that each received byte buys in extra time; ``None`` for one
                fixed deadline.
            codings: content codings that may be passed on as they came.

        Raises:
            TooLarge: the body is, or says it will be, larger than the limit.
            BodyTimeout: it did not arrive in time.
            Malformed: the caller hung up in the middle.
            UnsupportedMedia: it is compressed.
        """
        require_length(self.headers, limit_bytes, codings)
        started = asyncio.get_running_loop().time()
        received, is_last = 0, False
        while not is_last:
            extra_s = received / rate_min if rate_min else 0.0
            piece, is_last = await self._piece(started + self.body_timeout_s + extra_s)
            received += len(piece)
            if received > limit_bytes:
                raise too_large(limit_bytes)
            if piece:
                yield piece

    async def _piece(self, deadline: float) -> tuple[bytes, bool]:
        """What came of the body, and whether that is the last of it."""
        try:
            async with asyncio.timeout_at(deadline):
                message = await self.receive()
        except TimeoutError:
            raise BodyTimeout(
                f"The body did not arrive within {self.body_timeout_s:g} s."
            ) from None
        if message["type"] == "http.disconnect":
            raise Malformed("The connection ended before the whole body arrived.")
        return message.get("body", b""), not message.get("more_body", False)

    async def body(self, limit_bytes: int, *, codings: tuple[str, ...] = ()) -> bytes:
        """The whole body; raises like ``chunks``.

        Args:
            limit_bytes: most bytes accepted, on the wire and unpacked.
            codings: of ``gzip`` and ``deflate``, the content codings that are undone.

        Raises:
            CapacityExhausted: there is no memory for it now; besides what ``chunks`` raises.
        """
        require_length(self.headers, limit_bytes, codings)
        deadline = asyncio.get_running_loop().time() + self.body_timeout_s
        pieces: list[bytes] = []
        received, is_last = 0, False
        while not is_last:
            piece, is_last = await self._piece(deadline)
            self.hold.add(len(piece))
            received += len(piece)
            if received > limit_bytes:
                raise too_large(limit_bytes)
            pieces.append(piece)
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        coding = self.header("content-encoding").strip().lower()
        if coding in ("", "identity"):
            return body
        found = await asyncio.to_thread(inflated, body, coding, limit_bytes)
        self.hold.add(len(found))
        return found

    async def json(self, shape: type[T], *, limit_bytes: int = JSON_BODY_MAX) -> T:
        """The body as a JSON document of this shape; unknown members are refused.

        Raises:
            UnsupportedMedia: the content type is not JSON.
            Malformed: it is not JSON (RFC 8259: NaN, a BOM and lone surrogates are not).
            InputInvalid: it is JSON of another shape; the member at fault is named.
        """
        require_media(self.content_type, (JSON,))
        return json_from_bytes(await self.body(limit_bytes), shape)

    def int_query(self, name: str, *, default: int, low: int, high: int) -> int:
        """A whole number from the query string, bounds included.

        Raises:
            InputInvalid: it is not one, or out of bounds.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if re.fullmatch(r"[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        raise InputInvalid(
            f"'{name}' is a whole number from {low} to {high}.",
            fields=(FieldError(pointer=f"?{name}", detail=f"not from {low} to {high}"),),
        )


def header(headers: tuple[tuple[bytes, bytes], ...], name: str) -> str:
    """The first value of a header (lower-case name) as text, ``""`` if it did not come."""
    wanted = name.encode()
    for key, value in headers:
        if key == wanted:
            return value.decode("latin-1")
    return ""


def presented_from_scope(scope: Scope) -> Presented:
    """What the request shows about its caller."""
    peer = (scope.get("state") or {}).get("peer")
    return Presented(
        authorization=tuple(
            value.decode("latin-1") for key, value in scope["headers"] if key == b"authorization"
        ),
        query=scope["query_string"].decode("latin-1"),
        peer=peer if isinstance(peer, Peer) else None,
    )


def is_plain_path(raw_path: bytes) -> bool:
    """Whether a path is one we could have made: no %-escapes, empty or dot segments, or ``;``.

    The router sees the decoded path; refusing every path that decoding would change means that
    there is only one reading of it.
    """
    return len(raw_path) <= 2048 and bool(_PATH.fullmatch(raw_path))


def query_from_bytes(
    raw: bytes, allowed: tuple[str, ...], many: tuple[str, ...] = ()
) -> dict[str, str]:
    """The query string's members; each known, each at most once unless it is one of ``many``.

    The values of a repeated member are joined by newlines, which none of them may have.

    Raises:
        Malformed: it cannot be parsed, or a member is unknown or repeated.
    """
    if not raw:
        return {}
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=True,
            errors="strict", max_num_fields=32,
        )  # fmt: skip
    except (ValueError, UnicodeDecodeError):
        raise Malformed("The query string cannot be parsed.") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            known = ", ".join(f"'{each}'" for each in allowed) or "none"
            raise Malformed(f"Unknown query parameter; known here: {known}.")
        if name in many and "\n" in value:
            raise Malformed(f"Query parameter '{name}' has a line end in it.")
        if name in found and name not in many:
            raise Malformed(f"Query parameter '{name}' came more than once.")
        found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def require_length(
    headers: tuple[tuple[bytes, bytes], ...], limit_bytes: int, codings: tuple[str, ...] = ()
) -> None:
    """Refuse from the headers alone a body that is too large or compressed some other way."""
    coding = header(headers, "content-encoding").strip().lower()
    if coding not in ("", "identity", *codings):
        known = f" other than {' and '.join(codings)}" if codings else ""
        raise UnsupportedMedia(f"Compressed bodies (Content-Encoding){known} are not accepted.")
    length = header(headers, "content-length")
    if length and (not length.isascii() or not length.isdigit() or len(length) > 18):
        raise Malformed("Content-Length is not a number.")
    if length and int(length) > limit_bytes:
        raise too_large(limit_bytes)


def inflated(body: bytes, coding: str, limit_bytes: int) -> bytes:
    """An unpacked gzip or deflate (zlib) body, read no further than the limit. Blocking.

    Raises:
        TooLarge: it unpacks to more.
        Malformed: it is not whole, or not of this coding.
    """
    unpacker = zlib.decompressobj(wbits=31 if coding == "gzip" else 15)
    try:
        found = unpacker.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise Malformed(f"The body is not the {coding} it says it is.") from error
    if len(found) > limit_bytes:
        raise too_large(limit_bytes)
    if not unpacker.eof or unpacker.unused_data:
        raise Malformed(f"The {coding} body is not whole.")
    return found


def too_large(limit_bytes: int) -> TooLarge:
    """The 413 of a limit; carries the limit as ``limit_bytes``."""
    return TooLarge(
        f"The body is larger than the {limit_bytes} bytes allowed here.", limit_bytes=limit_bytes
    )


def not_found() -> NotFound:
    """The one 404: missing and not yours read the same."""
    return NotFound(NOT_FOUND)


def no_such_address(raw_path: bytes) -> NotFound:
    """The same for an address that nothing answers; what no address here can hold is named."""
    if is_plain_path(raw_path):
        return not_found()
    return NotFound(
        NOT_FOUND,
        hint="an address holds letters, digits and ._~+=,@- between its slashes: no spaces, no "
        "%-escapes, and no part that begins with a dot",
    )


def require_media(content_type: str, allowed: tuple[str, ...]) -> str:
    """The bare media type, if it is one of these.

    Raises:
        UnsupportedMedia: it is another, or none was sent.
    """
    bare = content_type.split(";")[0].strip().lower()
    if bare not in allowed:
        raise UnsupportedMedia(
            f"The body must be {' or '.join(allowed)}.",
            hint=f"Content-Type: {allowed[0]}",
        )
    return bare


def safe_media_type(text: str) -> str:
    """A model's own content type if it is a well-formed one, else ``application/octet-stream``."""
    return text if len(text) <= 256 and _MEDIA_TYPE.fullmatch(text) else "application/octet-stream"


def json_from_bytes(body: bytes, shape: type[T]) -> T:
    """A JSON document of this shape; raises like ``Request.json``."""
    try:
        return msgspec.json.decode(body, type=shape, strict=True)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        pointer = re.sub(r"[.\[\]`]+", "/", place).rstrip("/")
        raise InputInvalid(
            f"{text.replace('`', chr(39))}.",
            fields=(FieldError(pointer=pointer or "", detail=text.replace("`", "'")),),
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise Malformed("The body is not a valid JSON document (RFC 8259).") from None


def json_reply(
    document: Any, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> Reply:
    """A JSON answer."""
    return Reply(status=status, body=_encode(document), headers=headers)


def etag(material: bytes) -> str:
    """A strong ETag of some bytes."""
    return f'"{hashlib.sha256(material).hexdigest()[:32]}"'


def is_match(condition: str, tag: str) -> bool:
    """Whether an If-None-Match value names this ETag."""
    names = [part.strip().removeprefix("W/") for part in condition.split(",")]
    return condition.strip() == "*" or tag in names


def revision_from_if_match(condition: str) -> int | None:
    """The revision an If-Match header names, ``None`` without one.

    Raises:
        Malformed: it is not one quoted number.
    """
    if not condition:
        return None
    match = re.fullmatch(r'"([0-9]{1,18})"', condition.strip())
    if match is None:
        raise Malformed('If-Match is a quoted revision, such as "3".')
    return int(match.group(1))


def problem_document(
    error: ApplianceError, request_id: str, *, is_owner: bool = False
) -> dict[str, Any]:
    """The RFC 9457 document of a problem.

    Args:
        error: what went wrong.
        request_id: shown as ``instance``; leads to the ledger and the log.
        is_owner: whether the caller may see the model's own words: the text of its exception and
            what it printed (``stderr``). Both may quote the tenant's code and data.
    """
    document: dict[str, Any] = {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": words_of(error, is_owner=is_owner),
        "instance": request_id,
        "code": error.slug,
    }
    if error.hint:
        document["hint"] = error.hint
    if error.fields:
        document["errors"] = [{"pointer": f.pointer, "detail": f.detail} for f in error.fields]
    for name, value in error.extensions.items():
        if is_owner or name != "stderr":
            document.setdefault(name, value)
    if is_owner and isinstance(error, GuestError) and error.stderr:
        document["stderr"] = list(error.stderr)
    return document


def problem_reply(error: ApplianceError, request_id: str, *, is_owner: bool = False) -> Reply:
    """The answer that reports a problem, with the headers its status calls for."""
    headers: list[tuple[str, str]] = []
    if error.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if error.status == 405 and "allow" in error.extensions:
        headers.append(("allow", ", ".join(error.extensions["allow"])))
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(error.retry_after_s)))
    if "model_version" in error.extensions:
        headers.append(("model-version", str(error.extensions["model_version"])))
    if "successor_url" in error.extensions:  # RFC 5829
        link = f'<{error.extensions["successor_url"]}>; rel="successor-version"'
        headers.append(("link", link))
    if "audit_seq" in error.extensions:
        headers.append(("audit-seq", str(error.extensions["audit_seq"])))
    return Reply(
        status=error.status,
        body=_encode(problem_document(error, request_id, is_owner=is_owner)),
        content_type=PROBLEM_JSON,
        headers=tuple(headers),
    )


async def send_reply(reply: Reply, request_id: str, send: Send) -> None:
    """Write an answer with the headers every answer carries."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    own = {name for name, _ in headers}
    raw = [pair for pair in _ALWAYS if pair[0] not in own]
    raw.append((b"request-id", request_id.encode("latin-1")))
    raw += headers
    if reply.status not in (204, 304):
        raw.append((b"content-type", reply.content_type.encode("latin-1")))
        if reply.stream is None:
            raw.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    if reply.stream is not None:

        async def write(piece: bytes) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        await reply.stream(write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await send({"type": "http.response.body", "body": reply.body, "more_body": False})


@dataclass(slots=True, kw_only=True)
class Front:
    """What the listeners turned out to be; filled by ``serve``, shown by ``status``."""

    url: str = ""
    tls: dict[str, Any] = field(default_factory=dict)
    ca_pem: str = ""
