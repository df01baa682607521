"""How the command line reaches a running appliance: its admin socket, or HTTPS with a key.

Owns: the connection, and turning a problem document back into the problem class it came from.
Never: prints, retries or reads the data folder.
Read next: ``context.Context.client``, which makes one.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote

import httpx

from appliance import config
from appliance.errors import (
    ApplianceError,
    ConfigInvalid,
    FieldError,
    Forbidden,
    Gone,
    GuestError,
    NotRunning,
    problem_classes,
)

_TENANT_OF_MODEL = re.compile(r"/api/v1/models/([a-z0-9-]+)/[a-z0-9-]+")


def segment(name: str) -> str:
    """A name as one path segment of a URL."""
    return quote(name, safe="")


class Client:
    """One connection; every failure is an ``ApplianceError``."""

    def __init__(self, where: config.Client, *, timeout_s: float) -> None:
        """Connect to ``where.url`` if there is one, else to ``where.socket``.

        Raises:
            ConfigInvalid: the CA certificate cannot be read, or a URL came without a key.
        """
        self.where = where
        self.address = where.url or where.socket
        timeout = httpx.Timeout(timeout_s, connect=10.0)
        if where.url:
            headers = {"Authorization": f"Bearer {where.api_key}"} if where.api_key else {}
            self._http = httpx.Client(
                base_url=where.url, headers=headers, verify=_tls(where.ca_file), timeout=timeout
            )
        else:
            self._http = httpx.Client(
                base_url="http://appliance",
                transport=httpx.HTTPTransport(uds=where.socket),
                timeout=timeout,
            )

    def __enter__(self) -> Self:
        """Open the connection.

        Raises:
            NotRunning: nothing listens on the socket.
            Forbidden: this user may not open it.
        """
        if not self.where.url:
            self._knock()
        self._http.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.__exit__(None, None, None)

    def get(self, path: str, **params: Any) -> Any:
        """The JSON at ``path``; parameters that are ``None`` are left out."""
        kept = {k: v for k, v in params.items() if v is not None}
        return _json(self.request("GET", path, params=kept))

    def text(self, path: str) -> str:
        """The text at ``path``."""
        return self.request("GET", path).text

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send JSON (or nothing) and return the reply's JSON (``None`` for an empty reply)."""
        return _json(self.request(method, path, json=body, headers=headers))

    def request(self, method: str, path: str, **rest: Any) -> httpx.Response:
        """One request; a reply of 400 or more is raised as its problem.

        Raises:
            NotRunning: nothing answers at the address.
            ApplianceError: the appliance answered with a problem.
        """
        with self._failures():
            reply = self._http.request(method, path, **rest)
        if reply.status_code >= 400:
            raise problem_from_reply(reply)
        return reply

    @contextmanager
    def stream(
        self, method: str, path: str, content: Iterable[bytes], headers: Mapping[str, str]
    ) -> Iterator[httpx.Response]:
        """Send a body piece by piece and read the reply as it comes."""
        with (
            self._failures(),
            self._http.stream(method, path, content=content, headers=dict(headers)) as reply,
        ):
            if reply.status_code >= 400:
                reply.read()
                raise problem_from_reply(reply)
            yield reply

    def _knock(self) -> None:
        """Try the socket first: httpcore would leave its own one open after a refusal."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(10.0)
                probe.connect(self.where.socket)
        except OSError as error:
            raise self._not_connected(error) from error

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise self._not_connected(error) from error
        except httpx.UnsupportedProtocol as error:
            raise ConfigInvalid(f"'{self.address}' is not an https:// address.") from error
        except httpx.TimeoutException as error:
            raise NotRunning(
                f"The appliance at {self.address} did not answer in time.", hint="appliance status"
            ) from error
        except httpx.TransportError as error:
            raise NotRunning(
                f"The connection to {self.address} broke: {error}.", hint="appliance status"
            ) from error

    def _not_connected(self, error: Exception) -> ApplianceError:
        text = getattr(error, "strerror", None) or str(error)
        if "Permission denied" in text:
            return Forbidden(
                f"This user may not open {self.address}.",
                hint="run it as root or the service user, or use --url with --api-key-file",
            )
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return ConfigInvalid(
                f"The certificate of {self.address} is not signed by a known CA.",
                hint="--ca FILE (the appliance's own CA certificate)",
            )
        return NotRunning(
            f"No appliance answers at {self.address} ({text}).", hint="appliance serve"
        )


def require_succeeded(document: Mapping[str, Any], noun: str) -> None:
    """Return unless what was submitted failed or was cancelled: its problem is the command's.

    Args:
        document: of a job, a batch or a comparison.
        noun: which of these.
    """
    if document["error"]:
        raise problem_from_document(document["error"])
    if document["status"] == "canceled":
        raise Gone(f"The {noun} {document['tenant']}/{document['id']} was cancelled.")


def problem_from_document(document: Mapping[str, Any], *, status: int = 500) -> ApplianceError:
    """The problem a document stands for; an unknown slug becomes a plain ``ApplianceError``."""
    slug = str(document.get("code", "internal"))
    classes = {cls.slug: cls for cls in problem_classes()}  # Children win over their family.
    cls = classes.get(slug, ApplianceError)
    fields = tuple(
        FieldError(pointer=str(e.get("pointer", "")), detail=str(e.get("detail", "")))
        for e in document.get("errors") or ()
    )
    known: dict[str, Any] = {
        "hint": str(document.get("hint", "")),
        "fields": fields,
        "request_id": str(document.get("instance", "")),
    }
    detail = str(document.get("detail") or document.get("title") or f"HTTP status {status}")
    printed = tuple(map(str, document.get("stderr") or ()))
    if issubclass(cls, GuestError):
        return cls(detail, stderr=printed, **known)
    if printed:
        known["stderr"] = list(printed)
    return cls(detail, **known)


def last_of(
    lines: Iterable[str], member: str, advance: Callable[[float, str], None]
) -> dict[str, Any]:
    """Follow a narrated answer to its last line and return what it has under this name.

    Raises:
        ApplianceError: the work met a problem, or the answer ended before its last line.
    """
    for line in lines:
        if not line.strip():
            continue
        item = json.loads(line)
        if "problem" in item:
            raise problem_from_document(item["problem"])
        if member in item:
            return dict(item[member])
        detail = item.get("detail") or item.get("step", "")
        advance(float(item.get("fraction") or 0.0), f"{item.get('step')}: {detail}")
    raise ApplianceError(
        "The appliance ended its answer before it was complete.", hint="appliance status"
    )


def problem_from_reply(reply: httpx.Response) -> ApplianceError:
    """The problem a reply of 400 or more carries, whatever its body is."""
    try:
        document = reply.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": f"The address answered HTTP {reply.status_code} without a problem."}
    problem = problem_from_document(document, status=reply.status_code)
    tenant = _TENANT_OF_MODEL.match(reply.request.url.path)
    if tenant and reply.status_code == 404 and not problem.hint:
        problem.hint = f"appliance model list {tenant[1]}"
    return problem


def _json(reply: httpx.Response) -> Any:
    return reply.json() if reply.content else None


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigInvalid(f"{ca_file}: the CA certificate cannot be read: {error}.") from error
