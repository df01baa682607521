"""The Python runner: the process inside a sandbox that loads one model and answers its calls.

Owns: the guest half of PROTOCOL.md for Python; standard library only, one file, run with
``/usr/bin/python3 -I``; never imported by the appliance.
Never: is trusted. Model code runs in this very process and may do to it what it likes.
Read next: ``PROTOCOL.md``.

The first process (the monitor) connects, starts the runner as its child, keeps the tail of what
the model prints, reaps orphans, and says how the runner ended. Both avoid slow imports: json,
socket, tarfile and traceback would each add 10 to 30 ms to every cold start.
"""

# ruff: noqa: SIM105, SIM115, UP031 - contextlib is slow to import; bytes have no format()
from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the signal module without its enums
import _socket
import faulthandler
import fcntl
import gc
import os
import select
import struct
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTO = 1
TAIL_BYTES = 60 * 1024
FLUSH_S = 0.1
PIPE_BYTES = 1024 * 1024
F_SETPIPE_SZ = 1031
PREFIX = struct.Struct(">IQ")
DEFAULT_SOCKET = "/run/app/a.sock"
HELLO = (
    '{"type":"HELLO","proto":%d,"role":"%s","runtime":"python",'
    '"version":"%d.%d.%d","concurrency":1}'
)
PONG = b'{"type":"PONG","id":"logs"}'


def frame(header: bytes, body: bytes = b"") -> bytes:
    """The bytes of a small frame."""
    return PREFIX.pack(len(header), len(body)) + header + body


def connect(path: str, role: str) -> _socket.socket:
    """A connection to the appliance that has said HELLO."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    link.connect(path)
    link.sendall(frame((HELLO % (PROTO, role, *sys.version_info[:3])).encode()))
    return link


# ---------------------------------------------------------------- the monitor


class Tail:
    """What one stream of the model printed and was not sent yet: the last TAIL_BYTES of it."""

    def __init__(self, stream: str, fd: int) -> None:
        """Watch the read end ``fd`` of the pipe that is the model's ``stream``."""
        self.stream = stream
        self.fd = fd
        self.data = bytearray()
        self.dropped = 0
        os.set_blocking(fd, False)
        try:
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass

    def drain(self, reads: int) -> bool:
        """Read what is there, at most ``reads`` times; False at the end of the pipe."""
        for _ in range(reads):
            try:
                piece = os.read(self.fd, 256 * 1024)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.data += piece
            if len(self.data) > TAIL_BYTES:
                over = len(self.data) - TAIL_BYTES
                self.dropped += over
                del self.data[:over]
        return True

    def take(self) -> bytes:
        """The pending output as one LOG frame, or nothing; empties the tail."""
        if not self.data and not self.dropped:
            return b""
        header = '{"type":"LOG","stream":"%s","dropped":%d}' % (self.stream, self.dropped)
        out = frame(header.encode(), bytes(self.data))
        self.data.clear()
        self.dropped = 0
        return out


class Monitor:
    """The container's first process."""

    def __init__(self, link: _socket.socket, child: int, tails: list[Tail]) -> None:
        """Watch ``child`` and its output; report over ``link``."""
        self.link = link
        self.child = child
        self.tails = tails
        self.out = b""
        self.heard = bytearray()
        self.flushed_at = 0.0
        self.link.setblocking(False)

    def run(self) -> int:
        """Work until the runner ends; its exit code, negative for a signal."""
        wake_r, wake_w = os.pipe()
        os.set_blocking(wake_r, False)
        os.set_blocking(wake_w, False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        poll = select.poll()
        for fd in (wake_r, self.link.fileno(), *(tail.fd for tail in self.tails)):
            poll.register(fd, select.POLLIN)
        while True:
            code = self.reap()
            if code is not None:
                return code
            pending = self.out or any(tail.data or tail.dropped for tail in self.tails)
            ready = {fd for fd, _ in poll.poll(FLUSH_S * 1000 if pending else None)}
            if wake_r in ready:
                os.read(wake_r, 4096)
            for tail in self.tails:
                if tail.fd in ready and not tail.drain(4):
                    poll.unregister(tail.fd)
            if self.link.fileno() in ready:
                self.answer()
            self.flush(force=False)

    def reap(self) -> int | None:
        """Collect ended processes; the runner's exit code once it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 255
            if pid == 0:
                return None
            if pid == self.child:
                return os.waitstatus_to_exitcode(status)

    def answer(self) -> None:
        """Answer the host's PINGs, each after the output printed before it."""
        try:
            data = self.link.recv(4096)
        except BlockingIOError:
            return
        if not data:
            os._exit(0)  # the appliance is gone: so is everything here
        self.heard += data
        while len(self.heard) >= PREFIX.size:
            size = PREFIX.size + PREFIX.unpack_from(self.heard)[0]
            if len(self.heard) < size:
                return
            del self.heard[:size]
            for tail in self.tails:
                tail.drain(16)
            self.flush(force=True)
            self.out += frame(PONG)
            self.send()

    def flush(self, *, force: bool) -> None:
        """Send pending output: at once when forced, else every FLUSH_S; one batch in flight."""
        now = time.monotonic()
        if force or (not self.out and now - self.flushed_at >= FLUSH_S):
            self.flushed_at = now
            self.out += b"".join([tail.take() for tail in self.tails])
        self.send()

    def send(self) -> None:
        """Write what the socket takes now."""
        if self.out:
            try:
                self.out = self.out[self.link.send(self.out) :]
            except BlockingIOError:
                pass

    def finish(self, code: int) -> None:
        """Send the rest of the output and EXIT."""
        for tail in self.tails:
            tail.drain(64)
        rest = self.out + b"".join([tail.take() for tail in self.tails])
        self.link.settimeout(1.0)
        try:
            self.link.sendall(rest + frame(b'{"type":"EXIT","code":%d}' % code))
            self.link.shutdown(_socket.SHUT_WR)
        except OSError:
            pass


# ---------------------------------------------------------------- the runner


class Fault(Exception):
    """Something to report as ERR."""

    def __init__(self, kind: str, detail: str) -> None:
        """Report ``kind`` with one sentence."""
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Channel:
    """Frames over the runner's connection."""

    def __init__(self, link: _socket.socket) -> None:
        """Take over a connection that has said HELLO."""
        import json  # after HELLO: the host works on while it is imported

        self.link = link
        self.json = json

    def read(self, size: int) -> bytearray:
        """Exactly ``size`` bytes; ends the process when the appliance is gone."""
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self.link.recv_into(view)
            if not got:
                os._exit(0)
            view = view[got:]
        return data

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        """The next frame's header and body."""
        header_bytes, body_bytes = PREFIX.unpack(self.read(PREFIX.size))
        header = self.json.loads(self.read(header_bytes).decode())
        return header, self.read(body_bytes)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame."""
        text = self.json.dumps(header, separators=(",", ":")).encode()
        self.link.sendall(PREFIX.pack(len(text), len(body)) + text)
        if body:
            self.link.sendall(body)


class ChunkReader:
    """The CHUNK frames after a LOAD as one readable stream."""

    def __init__(self, channel: Channel) -> None:
        """Read from ``channel`` until the frame marked last."""
        self.channel = channel
        self.pending = memoryview(b"")
        self.last = False

    def some(self, size: int) -> bytes | memoryview:
        """Between 1 and ``size`` bytes; none at the end."""
        while not self.pending and not self.last:
            header, body = self.channel.receive()
            self.last = bool(header.get("last"))
            self.pending = memoryview(body)
        piece = self.pending[:size]
        self.pending = self.pending[len(piece) :]
        return piece

    def exactly(self, size: int) -> bytes:
        """``size`` bytes, fewer only at the end."""
        parts = []
        while size > 0:
            piece = self.some(size)
            if not piece:
                break
            parts.append(bytes(piece))
            size -= len(piece)
        return b"".join(parts)

    def skip_rest(self) -> None:
        """Read to the end of the stream."""
        while self.some(1 << 20):
            pass


def number_from_field(field: bytes) -> int:
    """A tar header's number: octal text, or base 256 when its first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def long_names(data: bytes) -> dict[str, str]:
    """The records of a pax header: lines of ``<length> <key>=<value>``."""
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        record = data[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        found[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return found


def unpack(source: ChunkReader, folder: str) -> None:
    """Write the regular files and folders of a tar stream (ustar, pax, GNU names) to ``folder``."""
    extra: dict[str, str] = {}
    while True:
        head = source.exactly(512)
        if len(head) < 512 or not head.strip(b"\0"):
            break
        kind = head[156:157]
        size = number_from_field(head[124:136])
        if kind in (b"x", b"g", b"L"):
            data = source.exactly(size + -size % 512)[:size]
            if kind == b"x":
                extra.update(long_names(data))
            elif kind == b"L":
                extra["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        name = head[:100].rstrip(b"\0").split(b"\0")[0]
        if head[257:262] == b"ustar" and head[345:346] != b"\0" and head[257:265] != b"ustar  \0":
            name = head[345:500].split(b"\0")[0] + b"/" + name
        path = extra.get("path") or name.decode("utf-8", "surrogateescape")
        size = int(extra.get("size", size))
        extra = {}
        write_member(source, folder, path, kind, size)
    source.skip_rest()


def write_member(source: ChunkReader, folder: str, path: str, kind: bytes, size: int) -> None:
    """Write one member; its data is read to the end of its last block."""
    path = os.path.normpath(path)
    if path.startswith(("/", "..")) or kind not in (b"0", b"\0", b"5"):
        raise Fault("input", f"The artifact holds an unsafe or special file: {path!r}.")
    target = os.path.join(folder, path)
    if kind == b"5":
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    left = size
    with open(target, "wb", buffering=0) as out:
        while left:
            piece = source.some(min(left, 1 << 20))
            if not piece:
                raise Fault("input", "The artifact ends in the middle of a file.")
            out.write(piece)
            left -= len(piece)
    source.exactly(-size % 512)


def predictor_from_entry(entry: str, path: str) -> Callable[[Any], Any]:
    """The callable that answers calls, made from ``module:attribute``."""
    module_name, _, attribute = entry.partition(":")
    module = __import__(module_name)
    for part in module_name.split(".")[1:]:
        module = getattr(module, part)
    target: Any = module
    for part in (attribute or "Model").split("."):
        if not hasattr(target, part):
            raise Fault("entry", f"Module '{module_name}' has no '{attribute}'.")
        target = getattr(target, part)
    made = target(path) if callable(target) else None
    predict: Any = getattr(made, "predict", None) if isinstance(target, type) else made
    if not callable(predict):
        wanted = "no method 'predict'" if isinstance(target, type) else "returned no callable"
        raise Fault("entry", f"'{entry}' has {wanted}." if made else f"'{entry}' is no entry.")
    return predict  # type: ignore[no-any-return]


def refuse_constant(name: str) -> None:
    """NaN and Infinity are not JSON (RFC 8259)."""
    raise ValueError(f"{name} is not JSON")


def inputs_from_body(json: Any, content_type: str, body: bytearray) -> Any:
    """What ``predict`` gets: parsed JSON, text, or the bytes themselves."""
    media = content_type.partition(";")[0].strip().lower()
    try:
        if media == "application/json" or media.endswith("+json"):
            return json.loads(body.decode(), parse_constant=refuse_constant)
        if media.startswith("text/"):
            return body.decode()
    except (ValueError, RecursionError) as error:
        raise Fault("input", f"The body is not valid {media}: {error}.") from None
    return bytes(body)


def plain(value: Any) -> Any:
    """``json.dumps`` default: NumPy scalars, arrays and their like become lists and numbers."""
    convert = getattr(value, "tolist", None)
    if callable(convert):
        return convert()
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def finite(value: Any) -> Any:
    """The same JSON value with NaN and infinities replaced by null."""
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, dict):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(member) for member in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return finite(plain(value))


def body_from_answer(json: Any, answer: Any) -> tuple[str, bytes]:
    """Content type and bytes of what ``predict`` returned."""
    if isinstance(answer, str):
        return "text/plain; charset=utf-8", answer.encode("utf-8", "surrogatepass")
    if isinstance(answer, (bytes, bytearray, memoryview)):
        return "application/octet-stream", bytes(answer)
    try:
        try:
            text = json.dumps(answer, default=plain, allow_nan=False, ensure_ascii=False)
        except ValueError:
            text = json.dumps(finite(answer), allow_nan=False, ensure_ascii=False)
        return "application/json", text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault("unsupported", f"The answer cannot be sent: {error}.") from None


def sendable(text: str) -> str:
    """The text without lone surrogates, which no JSON reader takes."""
    return text.encode("utf-8", "replace").decode()


def fault_from_exception(error: BaseException) -> dict[str, Any]:
    """ERR members for an exception of model code; the traceback starts in the model's file."""
    if isinstance(error, Fault):
        return {
            "kind": error.kind,
            "detail": sendable(error.detail[:1500]),
            "missing": "",
            "trace": [],
        }
    if isinstance(error, MemoryError):
        error.__traceback__ = None
        return {"kind": "memory", "detail": f"MemoryError: {error}"[:500], "trace": []}
    import traceback  # only when something failed: it is a slow import

    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    text = sendable("".join(traceback.format_exception(type(error), error, tb, limit=-30)))
    last = sendable(traceback.format_exception_only(type(error), error)[-1].strip())
    trace, left = [], 6000
    for line in reversed(text.splitlines()[-60:]):
        left -= len(line) + 8
        if left < 0:
            break
        trace.append(line[:500])
    found = {"kind": "raised", "detail": last[:1500], "missing": "", "trace": trace[::-1]}
    if isinstance(error, ImportError):
        found.update(kind="import", missing=sendable(str(error.name or "")[:200]))
    return found


def report(channel: Channel, ident: str, error: BaseException) -> None:
    """Send ERR for an exception, whatever state the process is in."""
    members: dict[str, Any]
    try:
        members = fault_from_exception(error)
        if len(channel.json.dumps(members)) > 15_000:
            members["trace"] = []
        if len(channel.json.dumps(members)) > 15_000:
            members["detail"] = members["detail"][:1000]
    except BaseException:
        kind = "memory" if isinstance(error, MemoryError) else "raised"
        members = {"kind": kind, "detail": type(error).__name__, "missing": "", "trace": []}
    channel.send({"type": "ERR", "id": ident, **members})


def flush_output() -> None:
    """Push what the model printed into the pipes."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


class Runner:
    """LOAD once, then answer REQ and PING for ever."""

    def __init__(self, channel: Channel) -> None:
        """Serve over ``channel``."""
        self.channel = channel
        self.predict: Callable[[Any], Any] | None = None

    def serve(self) -> None:
        """Answer frames until the connection ends."""
        while True:
            header, body = self.channel.receive()
            kind, ident = header.get("type"), header.get("id", "")
            if kind == "PING":
                self.channel.send({"type": "PONG", "id": ident})
                continue
            started = time.perf_counter_ns()
            try:
                if kind == "LOAD":
                    self.load(header)
                    members, reply = {"type": "READY"}, b""
                else:
                    content_type, reply = self.call(header, body)
                    members = {"type": "RES", "id": ident, "content_type": content_type}
            except BaseException as error:
                flush_output()
                report(self.channel, ident, error)
                continue
            flush_output()
            spent_us = (time.perf_counter_ns() - started) // 1000
            self.channel.send({**members, "compute_us": spent_us}, reply)
            del reply, body

    def load(self, header: dict[str, Any]) -> None:
        """Unpack the files, import the entry, make the predictor."""
        path = header.get("path", "/model")
        unpack(ChunkReader(self.channel), path)
        os.chdir(path)
        sys.path[:0] = [part for part in (path, header.get("deps")) if part]
        self.predict = predictor_from_entry(header.get("entry", ""), path)
        gc.freeze()

    def call(self, header: dict[str, Any], body: bytearray) -> tuple[str, bytes]:
        """One call of the model."""
        if self.predict is None:
            raise Fault("entry", "No model is loaded.")
        inputs = inputs_from_body(self.channel.json, header.get("content_type", ""), body)
        return body_from_answer(self.channel.json, self.predict(inputs))


def run_child(path: str, pipes: list[tuple[int, int]]) -> None:
    """The runner process: output into the pipes, then serve."""
    link = connect(path, "runner")
    for fd, (_, write) in zip((1, 2), pipes, strict=True):
        os.dup2(write, fd)
    for pair in pipes:
        os.close(pair[0])
        os.close(pair[1])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout = open(
        1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    sys.stderr = open(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    faulthandler.enable()
    Runner(Channel(link)).serve()


def main() -> None:
    """Connect the monitor, start the runner, watch it to its end."""
    path = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_SOCKET
    link = connect(path, "monitor")
    pipes = [os.pipe(), os.pipe()]
    child = os.fork()
    if child == 0:
        link.close()
        try:
            run_child(path, pipes)
        finally:
            os._exit(70)
    for _, write in pipes:
        os.close(write)
    tails = [Tail(name, read) for name, (read, _) in zip(("stdout", "stderr"), pipes, strict=True)]
    monitor = Monitor(link, child, tails)
    code = monitor.run()
    monitor.finish(code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
