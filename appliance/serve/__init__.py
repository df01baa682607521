"""Hypercorn, tamed: TLS, sockets, strict HTTP/1.1 and a drain that loses no accepted call.

Owns: the listeners, the certificates' place in them, signals, and the end of HTTP life.
Never: looks into a request beyond its framing.
Read next: ``strict`` (what is refused before the application sees it), ``direct`` and ``http1``
(the two engines, ``http.engine`` chooses), ``certificates``.

Two listeners share one event loop: HTTPS for callers and the admin socket for the machine's owner.
The admin socket is there in every state; HTTPS opens as soon as there are certificates.

The drain, on the first SIGTERM or SIGINT:

  1. connections the kernel has already accepted for us are taken, then both ports close
  2. every answer from now on says ``Connection: close``; a request that has arrived, pipelined ones
     included, is served as always
  3. after a moment for requests on their way, connections without a byte of a request are closed;
     handshakes under way and connections that have not asked anything yet get a longer moment
  4. calls in flight get ``http.drain_timeout_s``; what is left then is cut off

A second signal ends the process at once; the ledger is written to survive that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import struct
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypercorn.config import Config

from appliance import config
from appliance.auth.peer import Peer
from appliance.errors import AddressInUse, ApplianceError, ConfigInvalid
from appliance.serve import certificates
from appliance.serve.direct import Direct
from appliance.serve.http1 import Connection
from appliance.serve.strict import Timers
from appliance.wire import Front

_log = logging.getLogger(__name__)
T = TypeVar("T")

BACKLOG = 1024
HANDSHAKE_TIMEOUT_S = 5.0
TLS_SHUTDOWN_TIMEOUT_S = 2.0
_POLL_S = 0.1
_RENEW_S = 3600.0
_RETRY_S = 10.0
_DRAIN_LOOK_S = 0.1
_SOCKET_PATH_MAX = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is listening; ``url`` and ``fingerprint`` are empty while there is no certificate."""

    url: str
    socket: str
    fingerprint: str


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function to its end on the fastest event loop there is."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop

    async def entry() -> T:
        return await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(entry())


async def serve(
    app: Any,
    admin_app: Any,
    settings: config.Settings,
    *,
    front: Front,
    tls_secret: Callable[[], bytes | None],
    on_ready: Callable[[Ready], None] = lambda _: None,
    on_drain: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
    timers: Timers | None = None,
) -> None:
    """Serve both applications until SIGTERM or SIGINT, drain, and return.

    Args:
        app: ASGI application of the HTTPS listener.
        admin_app: ASGI application of the admin socket.
        settings: the whole tree.
        front: filled with the URL and the certificate's fingerprint.
        tls_secret: 32 bytes that seal the CA's private key (``store.secret("tls-ca")``) once the
            appliance is unsealed, ``None`` before. Without certificates on disk the HTTPS
            listener opens as soon as this returns a secret.
        on_ready: called when everything that can listen listens, and once more if HTTPS opened
            only later.
        on_drain: called when the drain begins.
        stop: set to begin the drain without a signal.
        timers: other deadlines than the product's, for tests.

    Raises:
        AddressInUse: the port or the socket is taken.
        ConfigInvalid: the host cannot be listened on, or the socket's path is too long.
    """
    server = _Server(settings, front, timers or Timers())
    stopping = stop or asyncio.Event()
    _on_signals(stopping)
    try:
        server.bind()
        await server.keep_certificates(app, tls_secret())
        await server.open_admin(admin_app)
        on_ready(server.ready())
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(_keep_certificates(server, app, tls_secret, on_ready))
            await stopping.wait()
            keeper.cancel()
        on_drain()
        await server.drain()
    finally:
        server.close()


class _Server:
    """Both listeners and their connections."""

    def __init__(self, settings: config.Settings, front: Front, timers: Timers) -> None:
        self._settings = settings
        self._timers = timers
        self._front = front
        self.data_dir = Path(settings.paths.data_dir)
        self._socket_path = Path(settings.paths.run_dir) / "admin.sock"
        self._config = _hypercorn_config()
        self._listeners: dict[str, asyncio.Server] = {}
        self._connections: dict[asyncio.Future[Any], tuple[str, Connection | Direct]] = {}
        self._is_draining = False
        self._tls: ssl.SSLContext | None = None
        # Handshakes under way; a failed one's object goes away by itself.
        self._greeting: weakref.WeakSet[ssl.SSLObject] = weakref.WeakSet()
        self._has_socket = False
        self._port: socket.socket | None = None

    def bind(self) -> None:
        """Take the TCP port now, so that a taken one is known before anything starts."""
        http = self._settings.http
        try:
            family, _, _, _, address = socket.getaddrinfo(
                http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise ConfigInvalid(f"http.host '{http.host}' is no address: {error}.") from error
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as error:
            sock.close()
            where = f"{http.host}:{http.port}"
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(
                    f"Port {http.port} on {http.host} is taken by another process.",
                    hint="Stop it, or set http.port to another port.",
                ) from error
            raise ConfigInvalid(f"Cannot listen on {where}: {error.strerror}.") from error
        sock.setblocking(False)
        self._port = sock

    async def open_admin(self, app: Any) -> None:
        """Listen on the admin socket, mode 0600, replacing one a dead process left.

        Raises:
            AddressInUse: a living process answers on it.
            ConfigInvalid: it cannot be made there.
        """
        path = self._socket_path
        if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
            raise ConfigInvalid(
                f"{path} is too long for a socket ({_SOCKET_PATH_MAX} bytes at most).",
                hint="Set paths.run_dir to a shorter path.",
            )
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_dead_socket(path)
            mask = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(mask)
        except OSError as error:
            sock.close()
            raise ConfigInvalid(f"Cannot make {path}: {error.strerror}.") from error
        except ApplianceError:
            sock.close()
            raise
        self._has_socket = True
        sock.setblocking(False)
        self._listeners["admin"] = await asyncio.get_running_loop().create_unix_server(
            self._maker("admin", app), sock=sock, backlog=BACKLOG
        )

    @property
    def has_https(self) -> bool:
        """Whether the HTTPS listener is up."""
        return "https" in self._listeners

    async def keep_certificates(self, app: Any, secret: bytes | None) -> None:
        """Make or renew certificates if there is a secret, and serve HTTPS with what there is."""
        is_new = False
        if secret is not None:
            is_new = await asyncio.to_thread(
                certificates.ensure, self.data_dir, secret, self._settings.http.names
            )
        if self._tls is not None:
            if is_new:
                certificates.load(self._tls, self.data_dir)
                self._show_certificates()
        elif certificates.has_pair(self.data_dir):
            await self._open_tls(app)

    async def _open_tls(self, app: Any) -> None:
        if self._port is None:
            raise RuntimeError("bind comes first")
        self._tls = certificates.context(self.data_dir)
        # Called for every ClientHello, with or without a server name in it.
        self._tls.sni_callback = self._note_greeting
        self._listeners["https"] = await asyncio.get_running_loop().create_server(
            self._maker("https", app),
            sock=self._port,
            ssl=self._tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S,
        )
        name, port = self._settings.http.names[0], self._port.getsockname()[1]
        self._front.url = f"https://{f'[{name}]' if ':' in name else name}:{port}"
        self._show_certificates()

    def ready(self) -> Ready:
        """What is listening now."""
        return Ready(
            url=self._front.url,
            socket=str(self._socket_path),
            fingerprint=str(self._front.tls.get("fingerprint", "")),
        )

    async def drain(self) -> None:
        """Stop accepting, finish what was accepted, cut off what takes too long."""
        started = asyncio.get_running_loop().time()
        deadline = started + self._settings.http.drain_timeout_s
        self._is_draining = True
        await asyncio.sleep(self._timers.accept_s)
        self._stop_listening("https")
        await asyncio.sleep(self._timers.grace_s)
        await self._finish("https", started, deadline)
        self._stop_listening("admin")
        await self._finish("admin", started, deadline)

    def close(self) -> None:
        """Give the addresses back."""
        for name in tuple(self._listeners):
            self._stop_listening(name)
        for _, connection in self._connections.values():
            connection.abort()
        if self._port is not None:
            self._port.close()
        if self._has_socket:
            self._socket_path.unlink(missing_ok=True)

    def _maker(self, listener: str, app: Any) -> Callable[[], asyncio.Protocol]:
        """What makes a connection's protocol: the direct engine, or streams under Hypercorn's."""

        def streams() -> asyncio.Protocol:
            return asyncio.StreamReaderProtocol(
                asyncio.StreamReader(),
                lambda reader, writer: self._serve(listener, app, reader, writer),
            )

        def direct() -> asyncio.Protocol:
            return Direct(
                app,
                lambda transport: _state(listener, transport),
                lambda: self._is_draining,
                self._timers,
                lambda connection: self._keep(listener, connection),
            )

        return direct if self._settings.http.engine == "direct" else streams

    def _keep(self, listener: str, connection: Direct) -> None:
        self._connections[connection.ended] = (listener, connection)
        connection.ended.add_done_callback(lambda ended: self._connections.pop(ended, None))
        if listener == "https":
            self._greeting.discard(connection.tls)

    async def _serve(
        self,
        listener: str,
        app: Any,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        connection = Connection(
            _as_wrapper(app),
            self._config,
            _state(listener, writer.transport),
            reader,
            writer,
            lambda: self._is_draining,
            self._timers,
        )
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        self._connections[task] = (listener, connection)
        if listener == "https":
            self._greeting.discard(writer.get_extra_info("ssl_object"))
        try:
            await connection.run()
        except* Exception:  # noqa: BLE001 - one connection must not end the others
            _log.exception("a connection ended in an error")
        finally:
            self._connections.pop(task, None)

    def _note_greeting(self, greeted: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        self._greeting.add(greeted)

    async def _finish(self, listener: str, started: float, deadline: float) -> None:
        """Wait for a listener's connections; those without a request are closed soon."""
        loop = asyncio.get_running_loop()
        while (tasks := self._tasks_of(listener)) or self._is_greeting(listener, started):
            for task in tasks:
                self._connections[task][1].close_if_quiet(started)
            left = deadline - loop.time()
            if left <= 0:
                break
            pause_s = min(left, _DRAIN_LOOK_S)
            if tasks:
                await asyncio.wait(tasks, timeout=pause_s)
            else:
                await asyncio.sleep(pause_s)
        for task in tasks:
            _log.warning("a request was cut off: it outlasted http.drain_timeout_s")
            connection = self._connections[task][1]
            connection.abort()
            connection.cancel() if isinstance(connection, Direct) else task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def _tasks_of(self, listener: str) -> list[asyncio.Future[Any]]:
        return [task for task, (name, _) in self._connections.items() if name == listener]

    def _is_greeting(self, listener: str, started: float) -> bool:
        """Whether a TLS handshake is under way that a request may follow."""
        waited_s = asyncio.get_running_loop().time() - started
        return listener == "https" and bool(self._greeting) and waited_s < self._timers.fresh_s

    def _stop_listening(self, name: str) -> None:
        listener = self._listeners.pop(name, None)
        if listener is not None:
            listener.close()

    def _show_certificates(self) -> None:
        found = certificates.describe(self.data_dir)
        self._front.tls.update(fingerprint=found.fingerprint, not_after=found.not_after)
        self._front.ca_pem = found.ca_pem


async def _keep_certificates(
    server: _Server,
    app: Any,
    tls_secret: Callable[[], bytes | None],
    on_ready: Callable[[Ready], None],
) -> None:
    """Open HTTPS once there can be certificates; then look every hour whether they are due."""
    while True:
        secret = tls_secret()
        pause_s = _POLL_S if secret is None else _RENEW_S
        try:
            was_open = server.has_https
            await server.keep_certificates(app, secret)
            if server.has_https and not was_open:
                on_ready(server.ready())
        except (ApplianceError, OSError, ValueError) as error:
            _log.error("certificates: %s", error)
            pause_s = _RETRY_S
        await asyncio.sleep(pause_s)


def _hypercorn_config() -> Config:
    made = Config()
    made.include_server_header = False
    made.accesslog = None  # Its lines can be forged by a path; the ledger records instead.
    made.errorlog = logging.getLogger("appliance.serve.engine")
    made.keep_alive_max_requests = 10**9
    return made


def _as_wrapper(app: Any) -> Any:
    async def call(scope: Any, receive: Any, send: Any, *_: Any) -> None:
        await app(scope, receive, send)

    return call


def _state(listener: str, transport: Any) -> dict[str, Any]:
    """``scope["state"]`` of a connection's requests."""
    return {"peer": _peer(transport) if listener == "admin" else None}


def _peer(transport: Any) -> Peer:
    """Who is at the other end of a unix socket, by SO_PEERCRED (unix(7))."""
    layout = struct.Struct("3i")
    raw = transport.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size
    )
    pid, uid, gid = layout.unpack(raw)
    return Peer(pid=pid, uid=uid, gid=gid)


def _remove_dead_socket(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise AddressInUse(
        f"Another appliance answers on {path}.", hint="appliance status, or set paths.run_dir"
    )


def _on_signals(stopping: asyncio.Event) -> None:
    """First signal: drain. Second: end at once, by the code a shell gives a killed process."""
    loop = asyncio.get_running_loop()

    def handle(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, handle, number)
