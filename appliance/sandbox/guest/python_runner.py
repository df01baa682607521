"""The Python runner: the process inside a sandbox that loads one model and answers its calls.

Owns: the guest half of PROTOCOL.md for Python; standard library only, one file, run with
``/usr/bin/python3 -I``; never imported by the appliance.
Never: is trusted. Model code runs in this very process and may do to it what it likes.
Read next: ``PROTOCOL.md``.

The first process (the monitor) connects, starts the runner as its child, keeps the tail of what
the model prints, reaps orphans, and says how the runner ended.
"""

import contextlib
import faulthandler
import fcntl
import gc
import importlib
import inspect
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback

PROTO = 1
TAIL_BYTES = 60 * 1024
FLUSH_S = 0.1
PIPE_BYTES = 1024 * 1024
F_SETPIPE_SZ = 1031
PREFIX = struct.Struct(">IQ")
DEFAULT_SOCKET = "/run/app/a.sock"


def pack(header, body_bytes=0):
    """The bytes of a frame up to its body."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return PREFIX.pack(len(text), body_bytes) + text


def connect(path, role):
    """A connection to the appliance that has said HELLO."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(path)
    version = ".".join(str(part) for part in sys.version_info[:3])
    hello = {"type": "HELLO", "proto": PROTO, "role": role, "runtime": "python"}
    link.sendall(pack({**hello, "version": version, "concurrency": 1}))
    return link


# ---------------------------------------------------------------- the monitor


class Tail:
    """What one stream of the model printed and was not sent yet: the last TAIL_BYTES of it."""

    def __init__(self, stream, fd):
        """Watch the read end ``fd`` of the pipe that is the model's ``stream``."""
        self.stream = stream
        self.fd = fd
        self.data = bytearray()
        self.dropped = 0
        os.set_blocking(fd, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)

    def drain(self, reads):
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

    def take(self):
        """The pending output as LOG frames; empties the tail."""
        if not self.data and not self.dropped:
            return b""
        header = {"type": "LOG", "stream": self.stream, "dropped": self.dropped}
        out = pack(header, len(self.data)) + bytes(self.data)
        self.data.clear()
        self.dropped = 0
        return out


class Monitor:
    """The container's first process."""

    def __init__(self, link, child, tails):
        """Watch ``child`` and its output; report over ``link``."""
        self.link = link
        self.child = child
        self.tails = tails
        self.out = b""
        self.heard = bytearray()
        self.flushed_at = 0.0
        self.link.setblocking(False)

    def run(self):
        """Work until the runner ends; returns its exit code, negative for a signal."""
        wake_r, wake_w = os.pipe()
        os.set_blocking(wake_r, False)
        os.set_blocking(wake_w, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(wake_r, select.POLLIN)
        poll.register(self.link, select.POLLIN)
        for tail in self.tails:
            poll.register(tail.fd, select.POLLIN)
        while True:
            code = self.reap()
            if code is not None:
                return code
            pending = self.out or any(tail.data or tail.dropped for tail in self.tails)
            ready = {fd for fd, _ in poll.poll(FLUSH_S * 1000 if pending else None)}
            if wake_r in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_r, 4096)
            for tail in self.tails:
                if tail.fd in ready and not tail.drain(4):
                    poll.unregister(tail.fd)
            if self.link.fileno() in ready:
                self.answer()
            self.flush(force=False)

    def reap(self):
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

    def answer(self):
        """Read the host's PINGs; each is answered after the output printed before it."""
        try:
            data = self.link.recv(4096)
        except BlockingIOError:
            return
        if not data:
            os._exit(0)  # the appliance is gone: so is everything here
        self.heard += data
        while len(self.heard) >= PREFIX.size:
            size, _ = PREFIX.unpack_from(self.heard)
            if len(self.heard) < PREFIX.size + size:
                return
            header = json.loads(bytes(self.heard[PREFIX.size : PREFIX.size + size]))
            del self.heard[: PREFIX.size + size]
            for tail in self.tails:
                tail.drain(16)
            self.flush(force=True)
            self.out += pack({"type": "PONG", "id": header.get("id", "")})
            self.send()

    def flush(self, *, force):
        """Send pending output: at once when forced, else every FLUSH_S; one batch in flight."""
        now = time.monotonic()
        if force or (not self.out and now - self.flushed_at >= FLUSH_S):
            self.flushed_at = now
            self.out += b"".join(tail.take() for tail in self.tails)
        self.send()

    def send(self):
        """Write what the socket takes now."""
        if self.out:
            with contextlib.suppress(BlockingIOError):
                self.out = self.out[self.link.send(self.out) :]

    def finish(self, code):
        """Send the rest of the output and EXIT."""
        for tail in self.tails:
            tail.drain(64)
        rest = self.out + b"".join(tail.take() for tail in self.tails)
        self.link.settimeout(1.0)
        with contextlib.suppress(OSError):
            self.link.sendall(rest + pack({"type": "EXIT", "code": code}))
            self.link.shutdown(socket.SHUT_WR)


# ---------------------------------------------------------------- the runner


class Fault(Exception):
    """Something to report as ERR."""

    def __init__(self, kind, detail, missing=""):
        """Report ``kind`` with one sentence and the missing module's name, if it is that."""
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.missing = missing


class Channel:
    """Frames over the runner's connection."""

    def __init__(self, link):
        """Take over a connection that has said HELLO."""
        self.link = link

    def read(self, size):
        """Exactly ``size`` bytes; ends the process when the appliance is gone."""
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self.link.recv_into(view)
            if not got:
                os._exit(0)
            view = view[got:]
        return data

    def receive(self):
        """The next frame's header and body."""
        header_bytes, body_bytes = PREFIX.unpack(self.read(PREFIX.size))
        header = json.loads(self.read(header_bytes).decode())
        return header, self.read(body_bytes)

    def send(self, header, body=b""):
        """Send one frame."""
        self.link.sendall(pack(header, len(body)))
        if body:
            self.link.sendall(body)


class ChunkReader:
    """The CHUNK frames after a LOAD as one readable stream."""

    def __init__(self, channel):
        """Read from ``channel`` until the frame marked last."""
        self.channel = channel
        self.pending = memoryview(b"")
        self.last = False

    def read(self, size):
        """Up to ``size`` bytes, fewer only at the end."""
        parts = []
        while size > 0:
            if not self.pending:
                if self.last:
                    break
                header, body = self.channel.receive()
                self.last = bool(header.get("last"))
                self.pending = memoryview(body)
                continue
            parts.append(self.pending[:size])
            size -= len(parts[-1])
            self.pending = self.pending[len(parts[-1]) :]
        return b"".join(parts)

    def skip_rest(self):
        """Read to the end of the stream."""
        while self.read(1 << 20):
            pass


def unpack(source, folder):
    """Write the regular files and folders of a tar stream under ``folder``."""
    import tarfile  # only while loading: it is a slow import

    with tarfile.open(fileobj=source, mode="r|") as tar:
        for member in tar:
            name = os.path.normpath(member.name)
            if name.startswith(("/", "..")):
                raise Fault("input", f"The artifact holds an unsafe path: {member.name!r}.")
            target = os.path.join(folder, name)
            if member.isdir():
                os.makedirs(target, exist_ok=True)
            elif member.isreg():
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "wb") as out:
                    data = tar.extractfile(member)
                    while piece := data.read(1 << 20):
                        out.write(piece)
            else:
                raise Fault("input", f"The artifact holds a special file: {member.name!r}.")
    source.skip_rest()


def predictor_from_entry(entry, path):
    """The callable that answers calls, made from ``module:attribute``."""
    module_name, _, attribute = entry.partition(":")
    module = importlib.import_module(module_name)
    target = module
    for part in (attribute or "Model").split("."):
        if not hasattr(target, part):
            raise Fault("entry", f"Module '{module_name}' has no '{attribute}'.")
        target = getattr(target, part)
    if inspect.isclass(target):
        predict = getattr(target(path), "predict", None)
        if not callable(predict):
            raise Fault("entry", f"'{entry}' has no method 'predict'.")
        return predict
    if not callable(target):
        raise Fault("entry", f"'{entry}' is neither a class nor a function.")
    predict = target(path)
    if not callable(predict):
        raise Fault("entry", f"'{entry}' did not return a callable.")
    return predict


def refuse_constant(name):
    """NaN and Infinity are not JSON (RFC 8259)."""
    raise ValueError(f"{name} is not JSON")


def inputs_from_body(content_type, body):
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


def plain(value):
    """``json.dumps`` default: NumPy scalars, arrays and their like become lists and numbers."""
    convert = getattr(value, "tolist", None)
    if callable(convert):
        return convert()
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def finite(value):
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


def body_from_answer(answer):
    """Content type and bytes of what ``predict`` returned."""
    if isinstance(answer, str):
        return "text/plain; charset=utf-8", answer.encode()
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


def fault_from_exception(error):
    """ERR members for an exception of model code; the traceback starts in the model's file."""
    if isinstance(error, Fault):
        return {"kind": error.kind, "detail": error.detail, "missing": error.missing, "trace": []}
    if isinstance(error, MemoryError):
        error.__traceback__ = None
        return {"kind": "memory", "detail": f"MemoryError: {error}"[:500], "trace": []}
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    text = "".join(traceback.format_exception(type(error), error, tb, limit=-30))
    last = traceback.format_exception_only(type(error), error)[-1].strip()
    trace, left = [], 8000
    for line in reversed(text.splitlines()[-60:]):
        left -= len(json.dumps(line)) + 1
        if left < 0:
            break
        trace.append(line[:500])
    found = {"kind": "raised", "detail": last[:1500], "missing": "", "trace": trace[::-1]}
    if isinstance(error, ImportError):
        found.update(kind="import", missing=str(error.name or "")[:200])
    return found


def report(channel, ident, error):
    """Send ERR for an exception, whatever state the process is in."""
    try:
        members = fault_from_exception(error)
    except BaseException:
        members = {"kind": "raised", "detail": type(error).__name__, "missing": "", "trace": []}
    header = {"type": "ERR", "id": ident, **members}
    while len(json.dumps(header)) > 15_000 and header["trace"]:
        header["trace"] = header["trace"][len(header["trace"]) // 2 + 1 :]
    if len(json.dumps(header)) > 15_000:
        header["detail"] = header["detail"][:200]
    channel.send(header)


def flush_output():
    """Push what the model printed into the pipes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def serve(channel):
    """LOAD once, then answer REQ and PING for ever."""
    predict = None
    while True:
        header, body = channel.receive()
        kind, ident = header.get("type"), header.get("id", "")
        if kind == "PING":
            channel.send({"type": "PONG", "id": ident})
            continue
        started = time.perf_counter_ns()
        try:
            if kind == "LOAD":
                path = header.get("path", "/model")
                unpack(ChunkReader(channel), path)
                os.chdir(path)
                sys.path[:0] = [part for part in (path, header.get("deps")) if part]
                predict = predictor_from_entry(header.get("entry", ""), path)
                gc.freeze()
                answer = {"type": "READY"}, b""
            elif kind == "REQ" and predict is not None:
                inputs = inputs_from_body(header.get("content_type", ""), body)
                del body
                content_type, body = body_from_answer(predict(inputs))
                answer = {"type": "RES", "id": ident, "content_type": content_type}, body
                del inputs
            else:
                os._exit(70)
        except BaseException as error:
            flush_output()
            report(channel, ident, error)
            del error
            continue
        flush_output()
        answer[0]["compute_us"] = (time.perf_counter_ns() - started) // 1000
        channel.send(*answer)
        del answer, body


def run_child(path, pipes):
    """The runner process: output into the pipes, then serve."""
    for fd, (_, write) in zip((1, 2), pipes, strict=True):
        os.dup2(write, fd)
    for read, write in pipes:
        os.close(read)
        os.close(write)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    faulthandler.enable()
    serve(Channel(connect(path, "runner")))


def main():
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
