"""The runner link, host side: frames in and out of one sandbox, every one of them untrusted.

Owns: the two connections of a sandbox, what may arrive when, the tail of its logs.
Never: starts or kills anything, knows Podman; believes a length, a name or a claim of the guest.
Read next: ``PROTOCOL.md`` (the contract), ``connection``, ``frames``, ``batches``, ``container``
(who turns ``LinkLost`` into a problem).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from appliance.sandbox.batches import Faulted, OpenBatch, OpenBatches, header_of
from appliance.sandbox.calling import BadCall, CallDesk
from appliance.sandbox.connection import GuestConnection, Take
from appliance.sandbox.frames import (
    CONTENT_TYPE,
    PROTO,
    Header,
    LinkLost,
    ReplyOverCap,
    clean,
    fault_from_header,
    frame,
)
from appliance.sandbox.spec import Batch, Reply, Request, Tail

CHUNK_BYTES_MAX = 1024 * 1024
LOG_BYTES_MAX = 64 * 1024
LOG_LINES_MAX = 200
LOG_BYTES_PER_S = 1024 * 1024
LOG_FRAMES_PER_S = 64
NAMES_BYTES_MAX = 64 * 1024
NAMES_MAX = 4096
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}(?:\.[A-Za-z_][A-Za-z0-9_]{0,99}){0,11}")

Sink = Callable[[bytes], Awaitable[None]]


def modules_from_body(body: bytes) -> tuple[str, ...]:
    """The module names in a READY: each once, in order; what is no name is left out."""
    lines = body.decode("ascii", "replace").split("\n")
    names = dict.fromkeys(line for line in lines if _MODULE.fullmatch(line))
    return tuple(names)[:NAMES_MAX]


class LogTail:
    """The last 64 KiB and 200 lines a sandbox printed; what was left out is counted."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._partial: dict[str, str] = {}
        self._bytes = 0
        self._left_out = 0
        self.tap: Tail | None = None
        """Who is told the same for a while."""

    def add(self, stream: str, data: bytes, dropped: int) -> None:
        """Append a piece of output; ``dropped`` bytes before it never arrived."""
        if self.tap is not None:
            self.tap.add(stream, data, dropped)
        if dropped > 0:
            self._left_out += min(dropped, 1 << 60)
            self._partial.pop(stream, None)
        text = self._partial.pop(stream, "") + data.decode("utf-8", "replace")
        *lines, rest = text.split("\n")
        for line in lines[-LOG_LINES_MAX:]:
            self._put(line)
        self._left_out += sum(len(line) + 1 for line in lines[:-LOG_LINES_MAX])
        if len(rest) > 4096:
            self._put(rest)
            rest = ""
        if rest:
            self._partial["stderr" if stream == "stderr" else "stdout"] = rest

    def _put(self, line: str) -> None:
        line = line[:4096]  # cleaned when it is read: most of a flood never is
        self._lines.append(line)
        self._bytes += len(line) + 1
        while len(self._lines) > LOG_LINES_MAX or self._bytes > LOG_BYTES_MAX:
            gone = len(self._lines.popleft()) + 1
            self._bytes -= gone
            self._left_out += gone

    def take(self, *, is_over: bool = False) -> tuple[str, ...]:
        """The tail since the last time; a line without an end stays, unless all ``is_over``."""
        partial = {} if is_over else self._partial
        self._partial = self._partial if is_over else {}
        found = self.lines()
        self._lines.clear()
        self._partial, self._bytes, self._left_out = partial, 0, 0
        return found

    def lines(self) -> tuple[str, ...]:
        """The tail, oldest first; the first line says how much is missing before it."""
        mark = (f"[... {self._left_out} bytes of output left out ...]",) if self._left_out else ()
        rest = tuple(clean(text, 4096) for text in self._partial.values() if text)
        return (*mark, *(clean(line, 4096) for line in self._lines), *rest)


class _Bucket:
    """A token bucket in log frames and bytes."""

    def __init__(self) -> None:
        self._debt_s = 0.0
        self._at = 0.0

    def pay(self, size_bytes: int) -> float:
        """How many seconds nothing more may be read after a frame of this size."""
        now = asyncio.get_running_loop().time()
        self._debt_s = max(0.0, self._debt_s - (now - self._at))
        self._at = now
        self._debt_s += max(1 / LOG_FRAMES_PER_S, size_bytes / LOG_BYTES_PER_S)
        return max(0.0, self._debt_s - 0.5)  # half a second of burst


class _Open:
    """The one exchange in progress: what may answer it, and the future that waits."""

    def __init__(
        self, *, ident: str, answer: str, body_bytes_max: int, sink: Sink | None = None
    ) -> None:
        self.ident = ident
        self.answer = answer
        self.body_bytes_max = body_bytes_max
        self.sink = sink
        self.desk: CallDesk | None = None
        self.done: asyncio.Future[tuple[Header, bytes]] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # retrieved here if nobody waits any more


class Link:
    """Both connections of one sandbox. Made before its container starts, closed after its end."""

    def __init__(self) -> None:
        self.logs = LogTail()
        self.runtime = ""
        self.exit_code: int | None = None
        self.exit_kind = ""
        self.lost = asyncio.Event()
        self.monitor_lost = asyncio.Event()
        self.protocol_error = ""
        self.can_batch = False
        self.waiting = ""  # what a load waits for, to be told when it took too long
        self._server: asyncio.Server | None = None
        self._uid = -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[GuestConnection] = set()
        self._by_role: dict[str, GuestConnection] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._accepted = 0
        self._hello = asyncio.Event()
        self._open: _Open | None = None
        self._batches = OpenBatches()
        self._pong: _Open | None = None
        self._log: Callable[[str], None] | None = None

    async def listen(self, path: Path, *, uid: int) -> None:
        """Listen on a unix socket for processes of one user: the container's, as the host sees it.

        The folders above let every user pass, so the kernel is asked who connected: whoever said
        HELLO first would be sent the model. ``path`` may be longer than a socket address allows:
        its folder is entered by descriptor.
        """
        self._uid = uid
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            short = f"/proc/self/fd/{folder}/{path.name}"
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: GuestConnection(self), short, backlog=4
            )
        finally:
            os.close(folder)
        os.chmod(path, 0o666)  # noqa: S103 - the container's user is another one; see connected

    @property
    def is_greeted(self) -> bool:
        """Whether HELLO came."""
        return self._hello.is_set()

    async def hello(self) -> None:
        """Wait for the runner's HELLO; the caller keeps the deadline.

        Raises:
            LinkLost: it ended or sent something else.
        """
        waits = [asyncio.ensure_future(e.wait()) for e in (self._hello, self.lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.lost.is_set() or self.protocol_error:
            raise LinkLost(self.protocol_error)
        await self._stop_listening()

    async def import_ahead(self, header: dict[str, Any], modules: tuple[str, ...]) -> None:
        """Send IMPORT, wait for READY.

        Raises:
            LinkLost, GuestFault.
        """
        exchange = self._begin(_Open(ident="", answer="READY", body_bytes_max=0))
        body = "\n".join(modules).encode("ascii")
        try:
            await self._send(frame({"type": "IMPORT", **header}, len(body)), body)
            await exchange.done
        except ReplyOverCap as error:
            raise LinkLost("READY with a body after IMPORT") from error
        finally:
            self._open = None

    async def load(
        self, header: dict[str, Any], tar: AsyncIterator[bytes]
    ) -> tuple[Header, tuple[str, ...]]:
        """Send LOAD and the tar stream, wait for READY; its header, and the modules it names.

        Raises:
            LinkLost, GuestFault.
        """
        exchange = self._begin(_Open(ident="", answer="READY", body_bytes_max=NAMES_BYTES_MAX))
        try:
            await self._send(frame({"type": "LOAD", **header}))
            async for piece in tar:
                for start in range(0, len(piece), CHUNK_BYTES_MAX):
                    part = memoryview(piece)[start : start + CHUNK_BYTES_MAX]
                    await self._send(frame({"type": "CHUNK", "last": False}, len(part)), part)
                    if exchange.done.done():
                        break
                if exchange.done.done():
                    break
            else:
                await self._send(frame({"type": "CHUNK", "last": True}))
            answer, body = await exchange.done
        except ReplyOverCap as error:
            raise LinkLost("READY is over its cap") from error
        finally:
            self._open = None
        return answer, modules_from_body(body)

    async def request(self, request: Request) -> Reply:
        """Send REQ, wait for RES.

        Raises:
            LinkLost, GuestFault, ReplyOverCap; TimeoutError: ``timeout_ms`` passed.
        """
        exchange = self._begin(
            _Open(ident=request.id, answer="RES", body_bytes_max=request.reply_bytes_max)
        )
        header: dict[str, Any] = {
            "type": "REQ",
            "id": request.id,
            "content_type": request.content_type,
            "timeout_ms": request.timeout_ms,
        }
        if request.calls is not None:
            exchange.desk = CallDesk(request.id, request.calls, self._say)
            header["calls"] = exchange.desk.limits
        loop = asyncio.get_running_loop()
        self.logs.tap, due = request.tail, loop.time() + request.timeout_ms / 1000
        timer = loop.call_at(due, exchange.fail, TimeoutError())
        try:
            await self._send(frame(header, len(request.body)), memoryview(request.body))
            answer, body = await exchange.done
            if request.tail is not None:
                await self.settle_logs(min(0.5, (due - loop.time()) / 2))
        finally:
            timer.cancel()
            self.logs.tap = None
            self._open = None
            if exchange.desk is not None:
                exchange.desk.close()
        if not CONTENT_TYPE.fullmatch(answer.content_type):
            raise LinkLost("the answer's content type is not printable text")
        compute_us = min(max(answer.compute_us, 0), request.timeout_ms * 1000)
        return Reply(content_type=answer.content_type, body=body, compute_us=compute_us)

    async def batch(self, batch: Batch, faulted: Faulted) -> None:
        """Send BATCH, wait until each call of it has had its PART or ERR.

        Args:
            batch: the calls; two batches may be open at once.
            faulted: told of each call the runner answered with ERR.

        Raises:
            LinkLost; TimeoutError: the next frame did not come in time.
        """
        if self.lost.is_set():
            raise LinkLost(self.protocol_error)
        opened = OpenBatch(batch, faulted)
        self._batches.add(opened)
        bodies = b"".join([request.body for request in batch.requests])
        try:
            await self._send(frame(header_of(batch), len(bodies)), memoryview(bodies))
            await opened.done
        finally:
            self._batches.remove(opened)

    async def build(self, header: dict[str, Any], sink: Sink, log: Callable[[str], None]) -> None:
        """Send BUILD, hand each line of LOG to ``log``, every CHUNK to ``sink``; to the last.

        Raises:
            LinkLost, GuestFault; anything ``sink`` raises.
        """
        exchange = self._begin(
            _Open(ident="", answer="CHUNK", body_bytes_max=CHUNK_BYTES_MAX, sink=sink)
        )
        self._log = log
        try:
            await self._send(frame({"type": "BUILD", **header}))
            await exchange.done
        finally:
            self._open = None

    async def settle_logs(self, timeout_s: float = 0.5) -> None:
        """Have the monitor send what the model printed so far; gives up after the timeout."""
        monitor = self._by_role.get("monitor")
        if monitor is None or self._pong is not None or self.monitor_lost.is_set():
            return
        self._pong = _Open(ident="logs", answer="PONG", body_bytes_max=0)
        try:
            async with asyncio.timeout(timeout_s):
                monitor.write(frame({"type": "PING", "id": "logs"}))
                await self._pong.done
        except (TimeoutError, LinkLost, OSError):
            pass
        finally:
            self._pong = None

    def end(self) -> None:
        """The container is gone: whatever is still waited for will not come."""
        self._lose("")

    async def close(self) -> None:
        """Close sockets and end the reading tasks; idempotent."""
        self._lose("")
        await self._stop_listening()
        for connection in self._connections:
            connection.abort()
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _begin(self, exchange: _Open) -> _Open:
        if self.lost.is_set():
            raise LinkLost(self.protocol_error)
        if self._open is not None:
            raise RuntimeError("one exchange at a time")
        self._open = exchange
        return exchange

    async def _send(self, *parts: bytes | memoryview) -> None:
        """Send a frame, and wait until the runner keeps up; not for one that has answered already.

        Raises:
            LinkLost: it is gone. What it said before is known where the answer is waited for.
        """
        runner = self._by_role["runner"]
        runner.write(*parts)
        exchange = self._open
        while (flushed := runner.flushed) is not None:
            waits: list[asyncio.Future[Any]] = [flushed]
            if exchange is not None:
                waits.append(exchange.done)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if exchange is not None and exchange.done.done():
                return
        if self.lost.is_set() and (exchange is None or not exchange.done.done()):
            raise LinkLost(self.protocol_error)

    async def _say(self, header: dict[str, Any], body: bytes) -> None:
        """Answer a CALL; whether the runner is still there shows in what it sends itself."""
        with contextlib.suppress(LinkLost):
            await self._send(frame(header, len(body)), body)

    def _lose(self, protocol: str) -> None:
        if protocol and not self.protocol_error:
            self.protocol_error = protocol
        self.lost.set()
        if self._open is not None:
            self._open.fail(LinkLost(self.protocol_error))
        self._batches.fail(LinkLost(self.protocol_error))
        if self._pong is not None:
            self._pong.fail(LinkLost(self.protocol_error))

    # -- what connections tell -----------------------------------------------------------------

    def connected(self, connection: GuestConnection) -> None:
        """See ``connection.Owner``."""
        if connection.peer_uid != self._uid:  # a stranger neither ends nor delays the sandbox
            connection.abort()
            return
        if self._accepted >= 2 or self.lost.is_set():
            connection.abort()
            if self._accepted >= 2:
                self._lose("a third connection was opened")
            return
        self._accepted += 1
        self._connections.add(connection)

    def admit(self, connection: GuestConnection, header: Header, body_bytes: int) -> Take | None:
        """See ``connection.Owner``."""
        if not connection.role:
            self._greet(connection, header, body_bytes)
            return None
        if header.type == "LOG":
            return self._admit_log(connection, header, body_bytes)
        if connection.role == "monitor":
            self._take_of_monitor(header, body_bytes)
            return None
        if self._batches and self._open is None:
            return self._admit_of_batch(header, body_bytes)
        exchange = self._open
        if exchange is None or exchange.done.done():
            raise LinkLost(f"{clean(header.type, 20)} while nothing was asked")
        if header.type == "CALL" and exchange.desk is not None:
            return _admit_call(exchange.desk, header, body_bytes)
        if header.id != exchange.ident:
            raise LinkLost("an answer to something that was not asked")
        if header.type == "ERR" and not body_bytes:
            exchange.fail(fault_from_header(header))
            return None
        if header.type != exchange.answer:
            raise LinkLost(f"{clean(header.type, 20)} is not allowed here")
        return self._admit_answer(connection, header, body_bytes, exchange)

    def broken(self, connection: GuestConnection, lost: LinkLost) -> None:
        """See ``connection.Owner``."""
        self._lose(lost.protocol)

    def disconnected(self, connection: GuestConnection) -> None:
        """See ``connection.Owner``."""
        if connection not in self._connections:
            return
        if connection.role == "monitor":
            self.monitor_lost.set()
        else:
            self._lose("")

    def _greet(self, connection: GuestConnection, header: Header, body_bytes: int) -> None:
        if header.type != "HELLO" or body_bytes or header.proto != PROTO:
            raise LinkLost("the first frame is not a HELLO of this protocol")
        if header.role not in ("runner", "monitor") or header.role in self._by_role:
            raise LinkLost("HELLO with an unknown or repeated role")
        connection.role = header.role
        self._by_role[header.role] = connection
        self._buckets[header.role] = _Bucket()
        if header.role == "runner":
            self.runtime = clean(f"{header.runtime} {header.version}", 100)
            self.can_batch = header.batch
            self._hello.set()

    def _admit_answer(
        self, connection: GuestConnection, header: Header, body_bytes: int, exchange: _Open
    ) -> Take:
        if body_bytes > exchange.body_bytes_max:
            exchange.fail(ReplyOverCap())
            raise LinkLost("the answer is over its cap")

        def take(body: bytes) -> None:
            if exchange.sink is not None:
                self._pour(connection, header, body, exchange)
            elif not exchange.done.done():
                exchange.done.set_result((header, body))

        return take

    def _pour(
        self, connection: GuestConnection, header: Header, body: bytes, exchange: _Open
    ) -> None:
        """Hand a piece to the sink, and read on when it has taken it."""

        async def pour() -> None:
            assert exchange.sink is not None  # noqa: S101
            try:
                await exchange.sink(body)
            except Exception as error:  # noqa: BLE001 - raised where the exchange is waited for
                exchange.fail(error)
                connection.abort()
                self._lose("")
                return
            if header.last and not exchange.done.done():
                exchange.done.set_result((header, b""))
            connection.go_on()

        connection.rest()
        task = asyncio.create_task(pour())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _admit_of_batch(self, header: Header, body_bytes: int) -> Take:
        batch = self._batches.oldest
        batch.require(header, body_bytes)

        def take(body: bytes) -> None:
            if not self._batches or self._batches.oldest is not batch:
                raise LinkLost("")  # its deadline passed meanwhile
            batch.take(header, body)
            self._batches.moved()

        return take

    def _take_of_monitor(self, header: Header, body_bytes: int) -> None:
        if header.type == "EXIT" and not body_bytes and self.exit_code is None:
            self.exit_code = max(-64, min(header.code, 255))
            self.exit_kind = clean(header.kind, 20)
        elif header.type == "PONG" and not body_bytes and self._pong is not None:
            if not self._pong.done.done():
                self._pong.done.set_result((header, b""))
        elif header.type != "PONG" or body_bytes:
            raise LinkLost(f"{clean(header.type, 20)} is not allowed from the monitor")

    def _admit_log(self, connection: GuestConnection, header: Header, body_bytes: int) -> Take:
        if body_bytes > LOG_BYTES_MAX:
            raise LinkLost("a LOG frame is over its cap")

        def take(data: bytes) -> None:
            self.logs.add(header.stream, data, header.dropped)
            if self._log is not None:
                for line in data.decode("utf-8", "replace").splitlines()[:LOG_LINES_MAX]:
                    if line.strip():
                        self._log(clean(line, 300))
            connection.rest_for(self._buckets[connection.role].pay(len(data)))

        return take


def _admit_call(desk: CallDesk, header: Header, body_bytes: int) -> Take | None:
    try:
        return desk.admit(header, body_bytes)
    except BadCall as error:
        raise LinkLost(str(error)) from error
