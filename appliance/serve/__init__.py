"""Hypercorn, tamed: TLS, sockets, strict HTTP/1.1 and a drain that loses no accepted call.

Owns: the listeners, the certificates, signals and the end of the process' HTTP life.
Never: looks into a request beyond its framing.
Read next: ``http1`` (what is refused before the application sees it), ``certificates``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance import config
from appliance.wire import Front


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is listening: told once both listeners are up."""

    url: str
    socket: str
    fingerprint: str


async def serve(
    app: Any,
    admin_app: Any,
    settings: config.Settings,
    *,
    front: Front,
    tls_secret: Callable[[], bytes | None],
    on_ready: Callable[[Ready], None] = lambda _: None,
    on_drain: Callable[[], None] = lambda: None,
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
        on_ready: called once, when everything that can listen listens.
        on_drain: called when the drain begins.

    Raises:
        AddressInUse: the port or the socket is taken.
    """
    raise NotImplementedError
