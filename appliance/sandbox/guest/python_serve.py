"""The Python runner, its second half: loads one model and answers its calls.

Owns: LOAD, IMPORT and REQ of PROTOCOL.md for Python; standard library only; executed by
``python_runner`` in a process of its own; never imported by the appliance.
Never: is trusted. Model code runs in this very process and may do to it what it likes.
Read next: ``PROTOCOL.md``, ``python_runner`` (the first process).
"""

# ruff: noqa: SIM105 - contextlib is slow to import
from __future__ import annotations

import _json
import gc
import os
import struct
import sys
import time

TYPE_CHECKING = False  # see python_runner
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any

PREFIX = struct.Struct(">IQ")
NAMES_BYTES = 60 * 1024
HELD_BYTES = 64 * 1024
DESCRIBE = "application/vnd.appliance.describe+json"
PATIENT_GC = (100_000, 50, 50)
"""Garbage collector thresholds while packages are imported: it takes a quarter of that time."""


class Fault(Exception):
    """Something to report as ERR."""

    def __init__(self, kind: str, detail: str) -> None:
        """Report ``kind`` with one sentence."""
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Json:
    """What of the json module is needed here, on its own C parts: importing it takes 12 ms."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    def __init__(self) -> None:
        """Find the C parts."""
        self.memo: dict[str, str] = {}
        self.parse_constant = refuse_constant
        self.scan: Any = _json.make_scanner(self)  # type: ignore[arg-type]

    def loads(self, text: str) -> Any:
        """The value of a JSON text, as ``json.loads`` has it; NaN and infinities are refused."""
        text = text.strip(" \t\n\r")
        try:
            value, end = self.scan(text, 0)
        except (StopIteration, SystemError):  # the latter where json.decoder is not imported
            end = -1
        if end != len(text):
            import json  # says what is wrong, and where

            return json.loads(text, parse_constant=refuse_constant)
        return value

    def dumps(self, value: Any) -> str:
        """The JSON text of a value; ValueError where it holds NaN, an infinity or itself."""
        encode = _json.make_encoder(
            {}, plain, _json.encode_basestring, None, ":", ",", False, False, False
        )
        return "".join(encode(value, 0))


class Channel:
    """Frames over the runner's connection."""

    def __init__(self, link: _socket.socket) -> None:
        """Take over a connection that has said HELLO."""
        if sys.flags.no_site:
            import site  # after HELLO: the host works on meanwhile

            site.main()
        self.link = link
        self.json = Json()
        self.held = b""

    def read(self, size: int) -> bytes | bytearray:
        """Exactly ``size`` bytes; ends the process when the appliance is gone.

        Takes what has arrived in one go: a small frame costs one system call.
        """
        held = self.held
        while len(held) < size <= HELD_BYTES:
            got = self.link.recv(HELD_BYTES)
            if not got:
                os._exit(0)
            held = held + got if held else got
        if size <= len(held):
            self.held = held[size:]
            return held[:size]
        data = bytearray(size)
        data[: len(held)] = held
        self.held = b""
        view = memoryview(data)[len(held) :]
        while view:
            count = self.link.recv_into(view)
            if not count:
                os._exit(0)
            view = view[count:]
        return data

    def receive(self) -> tuple[dict[str, Any], bytes | bytearray]:
        """The next frame's header and body."""
        header_bytes, body_bytes = PREFIX.unpack(self.read(PREFIX.size))
        header = self.json.loads(self.read(header_bytes).decode())
        return header, self.read(body_bytes)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame."""
        text = self.json.dumps(header).encode()
        head = PREFIX.pack(len(text), len(body)) + text
        if len(body) <= HELD_BYTES:
            self.link.sendall(head + body)
        else:
            self.link.sendall(head)
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


def helper(name: str) -> Any:
    """The module of ``python_NAME.py`` beside this file, which may be compiled already."""
    path = os.path.join(os.path.dirname(__file__), f"python_{name}.py")
    with open(path, "rb") as file:
        data = file.read()
    import marshal

    magic = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
    code = marshal.loads(data[16:]) if data[:4] == magic else compile(data, path, "exec")
    module = type(sys)(f"appliance_{name}")
    module.__file__ = path
    exec(code, module.__dict__)
    return module


def model_from_convention(entry: str, path: str, options: dict[str, Any]) -> Any:
    """The model that ``@convention:file`` stands for, loaded by the file of that convention."""
    name, _, file = entry[1:].partition(":")
    if not name.isalpha():
        raise Fault("entry", f"'{entry}' is no entry.")
    return helper(name).load(path, file, options, helper)


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


def inputs_from_body(json: Json, content_type: str, body: bytes | bytearray) -> Any:
    """What ``predict`` gets: parsed JSON, text, or the bytes themselves."""
    media = content_type.partition(";")[0].strip().lower()
    try:
        if media == "application/json" or media.endswith("+json"):
            return json.loads(body.decode())
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


def body_from_answer(json: Json, answer: Any) -> tuple[str, bytes]:
    """Content type and bytes of what ``predict`` returned."""
    if isinstance(answer, str):
        return "text/plain; charset=utf-8", answer.encode("utf-8", "surrogatepass")
    if isinstance(answer, (bytes, bytearray, memoryview)):
        return "application/octet-stream", bytes(answer)
    try:
        try:
            text = json.dumps(answer)
        except ValueError:
            text = json.dumps(finite(answer))
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
    if isinstance(error, ImportError) and error.name == "appliance_model":
        found["detail"] = 'appliance_model is there for models that declare calls = ["OTHER"].'
    elif isinstance(error, ImportError):
        found.update(kind="import", missing=sendable(str(error.name or "").partition(".")[0][:200]))
    return found


def report(channel: Channel, ident: str, error: BaseException, member: int = -1) -> None:
    """Send ERR for an exception, whatever state the process is in; ``member`` of a batch."""
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
    channel.send({"type": "ERR", "id": ident, "member": member, **members})


def flush_output() -> None:
    """Push what the model printed into the pipes."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def names_from_modules(folders: tuple[str, ...], left_out: set[str]) -> bytes:
    """The modules that were imported from these folders, in order, one name a line."""
    lines: list[bytes] = []
    left = NAMES_BYTES
    for name, module in list(sys.modules.items()):
        members = getattr(module, "__dict__", None)
        spec = members.get("__spec__") if isinstance(members, dict) else None
        origin = getattr(spec, "origin", None)
        if name in left_out or not isinstance(origin, str) or not origin.startswith(folders):
            continue
        line = name.encode("utf-8", "replace")
        left -= len(line) + 1
        if left < 0:
            break
        lines.append(line)
    return b"\n".join(lines)


def is_module(folder: str, entry: str) -> bool:
    """Whether ``import`` would find something under this entry of a folder."""
    if entry.endswith((".py", ".pyc", ".so")):
        return True
    return os.path.isfile(os.path.join(folder, entry, "__init__.py"))


def set_proxy(url: str) -> None:
    """Have every client that looks for a proxy find this one."""
    if url:
        for name in ("http_proxy", "https_proxy"):
            os.environ[name] = os.environ[name.upper()] = url
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"


class Runner:
    """IMPORT at most once, LOAD once, then answer REQ and PING for ever."""

    def __init__(self, channel: Channel) -> None:
        """Serve over ``channel``."""
        self.channel = channel
        self.predict: Callable[[Any], Any] | None = None
        self.describe: Callable[[], Any] | None = None
        self.joiner: Any = None
        self.own = set(sys.modules)
        self.ahead: set[str] = set()

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
                    members, reply = {"type": "READY"}, self.load(header)
                elif kind == "IMPORT":
                    self.import_ahead(header, body)
                    members, reply = {"type": "READY"}, b""
                elif kind == "BATCH":
                    self.batch(header, body)
                    continue
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

    def import_ahead(self, header: dict[str, Any], body: bytes | bytearray) -> None:
        """Import what a model will need before there is one; what does not import is left out."""
        sys.path[:0] = [part for part in (header.get("deps"),) if part]
        normal = gc.get_threshold()
        gc.set_threshold(*PATIENT_GC)
        for name in body.decode().split():
            try:
                __import__(name)
            except BaseException:
                pass
        gc.set_threshold(*normal)
        gc.collect()
        gc.freeze()
        self.ahead = set(sys.modules) - self.own

    def load(self, header: dict[str, Any]) -> bytes:
        """Unpack the files, import the entry, make the predictor; names of what was imported."""
        path, deps = header.get("path", "/model"), header.get("deps")
        set_proxy(header.get("proxy", ""))
        unpack(ChunkReader(self.channel), path)
        os.chdir(path)
        self.forget_shadowed(path)
        if header.get("calls"):
            helper("calling").install(self.channel, globals())
        sys.path[:0] = [part for part in (path, deps) if part and part not in sys.path]
        normal = gc.get_threshold()
        gc.set_threshold(*PATIENT_GC)
        try:
            entry = header.get("entry", "")
            if entry.startswith("@"):
                model = model_from_convention(entry, path, header.get("options") or {})
                self.predict, self.describe = model.predict, model.describe
            else:
                self.predict = predictor_from_entry(entry, path)
        finally:
            gc.set_threshold(*normal)
        gc.freeze()
        folders = tuple(f"{part}/" for part in (deps, os.path.dirname(os.__file__)) if part)
        try:
            return names_from_modules(folders, self.own)
        except Exception:  # a model may put anything among the modules
            return b""

    def forget_shadowed(self, path: str) -> None:
        """Unload what was imported ahead where the model brings a module of the same name."""
        if self.ahead:
            own = {entry.partition(".")[0] for entry in os.listdir(path) if is_module(path, entry)}
            for name in self.ahead:
                if name.partition(".")[0] in own:
                    sys.modules.pop(name, None)

    def batch(self, header: dict[str, Any], body: bytes | bytearray) -> None:
        """Several calls in one frame."""
        if self.joiner is None:
            self.joiner = helper("joining").Joiner(self.channel, self.predict, globals())
        self.joiner.answer(header, body)

    def call(self, header: dict[str, Any], body: bytes | bytearray) -> tuple[str, bytes]:
        """One call of the model."""
        if self.predict is None:
            raise Fault("entry", "No model is loaded.")
        content_type = header.get("content_type", "")
        if content_type == DESCRIBE and self.describe is not None:
            return body_from_answer(self.channel.json, self.describe())
        inputs = inputs_from_body(self.channel.json, content_type, body)
        return body_from_answer(self.channel.json, self.predict(inputs))


def serve(link: _socket.socket) -> None:
    """Serve over a connection that has said HELLO."""
    Runner(Channel(link)).serve()
