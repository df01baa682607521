"""The link to a container that serves HTTP: ``Link`` for images that know nothing of our protocol.

Owns: files before the start, readiness, calls as the image's protocol has them, and what an answer
means.
Never: starts a container by itself (``Host`` does); believes an answer.
Read next: ``protocols`` (the routes), ``http_exchange`` (the bytes), ``container`` (the life).

What the container prints comes by ``output``: there is no monitor of ours inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

import msgspec

from appliance import __version__
from appliance.errors import PodmanUnavailable
from appliance.sandbox.frames import GuestFault, Header, LinkLost, clean
from appliance.sandbox.http_exchange import Answer, Connection
from appliance.sandbox.link import Link
from appliance.sandbox.protocols import Serving
from appliance.sandbox.spec import Reply, Request

_HEALTH_BYTES_MAX = 64 * 1024
_HEALTH_TIMEOUT_S = 5.0
_POLL_S = (0.02, 0.5)  # first, longest
_REUSED_WITHIN_S = 1.0  # servers close idle connections after two seconds and more
_SETTLE_S = 0.05
_CONTENT_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,255}")
_GIVEN = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,1023}")
_SAID = ("error", "message", "detail", "error_message", "description")

T = TypeVar("T")


class Host(Protocol):
    """What the link asks of whoever made the container."""

    async def place(self, tar: AsyncIterator[bytes]) -> None:
        """Put the version's files into the container, which is not started yet."""
        ...

    async def begin(self) -> None:
        """Start it, and check how it is confined."""
        ...

    async def open_socket(self) -> socket.socket:
        """A stream socket of the container's network, not connected."""
        ...


class _CogAnswer(msgspec.Struct):
    status: str = ""
    output: msgspec.Raw = msgspec.Raw(b"null")
    error: str | None = None


class HttpLink(Link):
    """``Link`` spoken as HTTP with a server on the container's loopback."""

    def __init__(self, serving: Serving, host: Host) -> None:
        super().__init__()
        self.waiting = f": nothing listens on its port {serving.port}"
        self._serving = serving
        self._host = host
        self._connection: Connection | None = None
        self._used_at = 0.0

    async def load(
        self, header: dict[str, Any], tar: AsyncIterator[bytes]
    ) -> tuple[Header, tuple[str, ...]]:
        """Place the files, start the container, wait until it says that it is ready.

        Raises:
            LinkLost, GuestFault.
        """
        try:
            await self._host.place(tar)
        except PodmanUnavailable as error:
            raise GuestFault("input", clean(error.detail), "", ()) from error
        await self._host.begin()
        await self._unless_lost(self._until_ready())
        return Header(type="READY"), ()

    async def request(self, request: Request) -> Reply:
        """One call by the image's protocol.

        Raises:
            LinkLost, GuestFault, ReplyOverCap; TimeoutError: ``timeout_ms`` passed.
        """
        async with asyncio.timeout(request.timeout_ms / 1000):
            return await self._asked(request)

    async def _asked(self, request: Request) -> Reply:
        body, is_wrapped = request.body, False
        if self._serving.protocol == "cog":
            body, is_wrapped = cog_body(request.body)
        headers = [("Content-Type", request.content_type)]
        if not _GIVEN.fullmatch(request.content_type):
            headers = []
        loop = asyncio.get_running_loop()
        started = loop.time()
        self.logs.tap = request.tail
        try:
            answer = await self._unless_lost(
                self._exchange("POST", self._serving.path, headers, body, request.reply_bytes_max)
            )
            compute_us = int((loop.time() - started) * 1e6)
            if request.tail is not None:
                await self.settle_logs((request.timeout_ms / 1000 - compute_us / 1e6) / 2)
        finally:
            self.logs.tap = None
        content_type = answer.headers.get("content-type", "application/octet-stream")
        data = _content(answer)
        if self._serving.protocol == "cog":
            data = cog_output(data, is_wrapped=is_wrapped)
        if not _CONTENT_TYPE.fullmatch(content_type):
            raise LinkLost("the answer's content type is not printable text")
        return Reply(content_type=content_type, body=data, compute_us=compute_us)

    async def settle_logs(self, timeout_s: float = _SETTLE_S) -> None:
        """Give what was printed before an answer the time to arrive."""
        await asyncio.sleep(min(timeout_s, _SETTLE_S))

    async def close(self) -> None:
        """Close everything; idempotent."""
        self._drop()
        await super().close()

    async def _until_ready(self) -> None:
        pause_s, longest_s = _POLL_S
        while True:
            with contextlib.suppress(LinkLost, OSError, TimeoutError):
                async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                    answer = await self._exchange(
                        "GET", self._serving.health_path, [], b"", _HEALTH_BYTES_MAX
                    )
                if self._is_ready(answer):
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, longest_s)

    def _is_ready(self, answer: Answer) -> bool:
        """Whether the health route's answer means ready.

        Raises:
            GuestFault: it means never.
        """
        asked = f"GET {self._serving.health_path}"
        self.waiting = f": {asked} answered {answer.status}"
        if self._serving.protocol == "http":
            return answer.status < 500
        if self._serving.protocol != "cog" or answer.status >= 300:
            return 200 <= answer.status < 300
        with contextlib.suppress(msgspec.MsgspecError):
            status = msgspec.json.decode(answer.body, type=_CogAnswer).status
            self.waiting = f": {asked} answered '{clean(status, 40)}'"
            if status in ("SETUP_FAILED", "DEFUNCT"):
                raise GuestFault("raised", f"its health is {status}", "", ())
            return status in ("READY", "BUSY")
        return False

    async def _exchange(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes, most: int
    ) -> Answer:
        connection = await self._usable()
        common = [
            ("Host", f"127.0.0.1:{self._serving.port}"),
            ("User-Agent", f"model-appliance/{__version__}"),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
        ]
        try:
            return await connection.exchange(
                method, path, [*common, *headers], body, body_bytes_max=most
            )
        except BaseException:
            self._drop()
            raise
        finally:
            self._used_at = asyncio.get_running_loop().time()

    async def _usable(self) -> Connection:
        """The open connection, or a new one: one that idled may be closed by the other side now."""
        loop = asyncio.get_running_loop()
        held = self._connection
        if held is not None and held.is_open and loop.time() - self._used_at < _REUSED_WITHIN_S:
            return held
        self._drop()
        try:
            made = await self._host.open_socket()
        except PodmanUnavailable as error:  # it is gone, or about to be
            raise LinkLost from error
        try:
            made.setblocking(False)
            await loop.sock_connect(made, ("127.0.0.1", self._serving.port))
            self._connection = await Connection.over(made)
        except OSError as error:
            made.close()
            raise LinkLost from error
        except BaseException:
            made.close()
            raise
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _unless_lost(self, work: Awaitable[T]) -> T:
        """The work's result; ``LinkLost`` as soon as the container is gone."""
        doing = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise LinkLost(self.protocol_error)
        finally:
            gone.cancel()
            doing.cancel()
            await asyncio.gather(doing, gone, return_exceptions=True)


def _content(answer: Answer) -> bytes:
    """The body of an answer that is one.

    Raises:
        GuestFault: it says that something went wrong, or cannot be passed on.
    """
    if answer.status >= 400:
        told = reason_of(answer)
        raise GuestFault("raised", f"it answered {answer.status}: {told}", "", ())
    if answer.status >= 300:
        to = clean(answer.headers.get("location", ""), 200)
        raise GuestFault("raised", f"it answered {answer.status}, a redirect to '{to}'", "", ())
    packing = answer.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", ""):
        raise GuestFault(
            "unsupported", f"its answer is compressed ({clean(packing, 40)}), unasked", "", ()
        )
    return answer.body


def reason_of(answer: Answer) -> str:
    """What the body of a failure says: the usual members of a JSON object, or its text."""
    text = answer.body.decode("utf-8", "replace")
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        found: Any = msgspec.json.decode(answer.body)
        for _ in range(4):
            if not isinstance(found, dict):
                break
            found = next((found[key] for key in _SAID if found.get(key)), None) or str(found)
        text = found if isinstance(found, str) else msgspec.json.encode(found).decode()
    return clean(" ".join(text.split())) or "nothing more"


def cog_body(body: bytes) -> tuple[bytes, bool]:
    """A call as Cog takes it, and whether it was wrapped: a bare object becomes the ``input``.

    Raises:
        GuestFault: it is no JSON object.
    """
    try:
        members = msgspec.json.decode(body or b"{}", type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise GuestFault("input", "a Cog model takes a JSON object", "", ()) from error
    inner = members.get("input")
    if inner is not None and bytes(inner).lstrip()[:1] == b"{":
        return body, False
    return b'{"input":' + (body or b"{}") + b"}", True


def cog_output(data: bytes, *, is_wrapped: bool) -> bytes:
    """What a Cog prediction put out; the whole prediction, if the call was a whole one.

    Raises:
        LinkLost: it is no prediction.
        GuestFault: the prediction failed.
    """
    try:
        found = msgspec.json.decode(data, type=_CogAnswer)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise LinkLost("its answer is no Cog prediction") from error
    if found.status in ("failed", "canceled"):
        raise GuestFault("raised", clean(found.error or f"the prediction {found.status}"), "", ())
    return bytes(found.output) if is_wrapped else data
