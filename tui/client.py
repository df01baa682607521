"""The admin API as typed calls: one request in, one reply or one ``Problem`` out.

Owns: the HTTP client, the shapes of what every view has, and the problem type.
Never: retries, caches, draws, or keeps a secret after the request that needed it.
Read next: ``rows`` (each view's rows), ``feed`` (polls through it), ``app.perform`` (verbs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote

if TYPE_CHECKING:
    import httpx

CONTRACT = 1
"""The snapshot contract this console was written for; another number makes it read-only."""

SNAPSHOT_TIMEOUT_S = 10.0
VERB_TIMEOUT_S = 120.0
VERIFY_TIMEOUT_S = 3600.0
SAVE_TIMEOUT_S = 120.0
"""Longest silence of the server while a file is fetched."""

Row = Mapping[str, Any]


class Ledger(TypedDict, total=False):
    """The audit ledger in a status: entries written and the head's root (hex)."""

    seq: int
    root: str
    applied_seq: int
    state: str


class Limits(TypedDict, total=False):
    """What enforces resource limits: enforced, supervised or none, and by which mechanism."""

    level: str
    mechanism: str
    memory: str
    pids: str
    cpu: str
    detail: str


class Node(TypedDict, total=False):
    """``GET /admin/v1/status``, also ``node`` of every snapshot."""

    version: str
    state: str
    name: str
    pid: int
    uptime_s: float
    data_dir: str
    url: str
    tls: dict[str, str] | None
    limits: Limits | None
    runtimes: list[Any]
    ledger: Ledger | None
    sandboxes: int
    disk: dict[str, int] | None
    slots: list[dict[str, str]]
    sealed_since: str | None


class Check(TypedDict):
    """One row of view ``health`` and of ``GET /admin/v1/checks``."""

    name: str
    title: str
    state: str
    detail: str
    remedy: str
    checked_at: str


class Problem(Exception):
    """Why a request got no answer it could use: problem+json, or what went wrong on the way."""

    def __init__(
        self,
        *,
        code: str,
        title: str,
        detail: str = "",
        status: int = 0,
        hint: str = "",
        request_id: str = "",
        errors: tuple[str, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        """Make a problem; ``status`` is 0 when no HTTP answer came at all."""
        super().__init__(f"{title} ({code})")
        self.code = code
        self.title = title
        self.detail = detail
        self.status = status
        self.hint = hint
        self.request_id = request_id
        self.errors = errors
        self.retry_after_s = retry_after_s

    @property
    def is_unreachable(self) -> bool:
        """Whether nobody answered."""
        return self.status == 0 and self.code in ("unreachable", "timeout")

    @property
    def is_denied(self) -> bool:
        """Whether asking again with the same identity cannot help."""
        return self.status in (401, 403) and self.code != "unseal-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A successful answer: decoded JSON (None for no body), text, and the request id."""

    status: int
    data: Any = None
    text: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a screen wants polled: a view and its parameters."""

    view: str
    params: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One answer of ``GET /admin/v1/snapshot``; members that did not come are empty.

    ``received_s`` is the feed's monotonic time of arrival.
    """

    view: str
    state: str
    node: Node
    rows: tuple[Row, ...] = ()
    total: int = 0
    warn: int = 0
    fail: int = 0
    contract: int = CONTRACT
    extras: Mapping[str, Any] = field(default_factory=dict)
    etag: str = ""
    received_s: float = 0.0


class Loose(dict[str, Any]):
    """A row whose missing members are None, so that an older server leaves a usable screen."""

    def __missing__(self, key: str) -> None:
        """What a missing member is."""
        return None


def path_of(*parts: object) -> str:
    """A path from segments, each percent-encoded: ``path_of("api", "v1", name)``."""
    return "/" + "/".join(quote(str(part), safe="") for part in parts)


class Client:
    """The connection to one appliance: its unix socket, or a URL with an admin key."""

    def __init__(
        self,
        *,
        socket: str | None = None,
        url: str | None = None,
        api_key: str | None = None,
        ca_file: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Remember where to connect; nothing is opened before the first request."""
        self.socket = socket
        self.url = url
        self._api_key = api_key
        self._ca_file = ca_file
        self._transport = transport
        self._http: httpx.AsyncClient | None = None

    @property
    def is_remote(self) -> bool:
        """Whether a URL and a key are used instead of the socket."""
        return bool(self.url)

    @property
    def target(self) -> str:
        """Where requests go, for people."""
        return self.url or f"unix:{self.socket}"

    def set_key(self, api_key: str) -> None:
        """Use another admin key from now on."""
        self._api_key = api_key

    def _open(self) -> httpx.AsyncClient:
        if self._http is None:
            import httpx

            verify: Any = True
            transport = self._transport
            if transport is None and not self.url:
                transport = httpx.AsyncHTTPTransport(uds=self.socket)
            elif self.url and self._ca_file:
                import ssl

                verify = ssl.create_default_context(cafile=self._ca_file)
            self._http = httpx.AsyncClient(
                transport=transport,
                base_url=self.url or "http://appliance",
                verify=verify,
                trust_env=False,
                headers={"User-Agent": "appliance-tui", "Accept": "application/json"},
            )
        return self._http

    async def close(self) -> None:
        """Close the connection; a later request opens it again."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def snapshot(self, query: Query, etag: str = "") -> Snapshot | None:
        """The view's present content, or None when ``etag`` still names it.

        Raises:
            Problem: no answer, a refusal, or an answer that is not a snapshot.
        """
        response = await self._send(
            "GET",
            "/admin/v1/snapshot",
            params={"view": query.view, **dict(query.params)},
            headers={"If-None-Match": etag} if etag else {},
            timeout_s=SNAPSHOT_TIMEOUT_S,
        )
        if response.status_code == 304:
            return None
        return _snapshot_from(_json(response), response.headers.get("etag", ""), query.view)

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        data: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = VERB_TIMEOUT_S,
    ) -> Reply:
        """One request and its answer.

        Args:
            method: HTTP method.
            path: where to, as ``path_of`` makes it.
            body: sent as JSON.
            data: sent as it is, instead of ``body``; its type is in ``headers``.
            params: the query.
            headers: more of them.
            timeout_s: how long to wait.

        Raises:
            Problem: no answer in ``timeout_s``, a refusal, or an answer that is not JSON although
                it says so.
        """
        response = await self._send(
            method,
            path,
            json=body,
            content=data,
            params=params,
            headers=dict(headers or {}),
            timeout_s=timeout_s,
        )
        request_id = response.headers.get("request-id", "")
        if "json" in response.headers.get("content-type", "") and response.content:
            return Reply(status=response.status_code, data=_json(response), request_id=request_id)
        return Reply(status=response.status_code, text=response.text, request_id=request_id)

    async def save(self, path: str, file: IO[bytes]) -> Reply:
        """Write what a GET answers to an open file, piece by piece.

        Raises:
            Problem: no answer, a refusal, or an answer that broke off.
            OSError: the file cannot be written.
        """
        http, headers = self._open(), {"Accept": "*/*"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        with self._told(SAVE_TIMEOUT_S):
            async with http.stream(
                "GET", path, headers=headers, timeout=SAVE_TIMEOUT_S
            ) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise _problem_from(response)
                async for piece in response.aiter_bytes():
                    _write(file, piece)
        return Reply(status=response.status_code, request_id=response.headers.get("request-id", ""))

    async def _send(
        self, method: str, path: str, *, timeout_s: float, headers: dict[str, str], **rest: Any
    ) -> httpx.Response:
        http = self._open()
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        given = {name: value for name, value in rest.items() if value is not None}
        with self._told(timeout_s):
            response = await http.request(method, path, headers=headers, timeout=timeout_s, **given)
        if response.status_code >= 400:
            raise _problem_from(response)
        return response

    @contextmanager
    def _told(self, timeout_s: float) -> Iterator[None]:
        """Say what went wrong on the way as a ``Problem``."""
        import httpx

        try:
            yield
        except _CannotWrite as error:
            raise error.reason from error
        except httpx.TimeoutException as error:
            raise Problem(
                code="timeout",
                title="No answer in time",
                detail=f"{self.target} did not answer within {timeout_s:.0f} s.",
            ) from error
        except (httpx.TransportError, OSError) as error:
            raise Problem(
                code="unreachable",
                title="The appliance does not answer",
                detail=f"{_reason(error)} ({self.target}).",
                hint="" if self.is_remote else "appliance serve",
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise Problem(
                code="bad-request", title="The request cannot be sent", detail=str(error)
            ) from error


class _CannotWrite(Exception):
    """The file on this side failed, not the connection."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _write(file: IO[bytes], piece: bytes) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise _CannotWrite(error) from error


def _reason(error: BaseException) -> str:
    """The operating system's words for a failed connection."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return str(error) or type(error).__name__


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, UnicodeDecodeError) as error:
        raise Problem(
            code="bad-reply",
            title="The answer cannot be read",
            detail="The server sent something that is not complete JSON.",
            status=response.status_code,
            request_id=response.headers.get("request-id", ""),
        ) from error


def _problem_from(response: httpx.Response) -> Problem:
    try:
        data = response.json()
    except (ValueError, UnicodeDecodeError):
        data = {}
    if not isinstance(data, dict):
        data = {}
    fields = data.get("errors")
    retry = response.headers.get("retry-after", "")
    return Problem(
        code=str(data.get("code") or f"http-{response.status_code}"),
        title=str(data.get("title") or f"HTTP {response.status_code}"),
        detail=str(data.get("detail") or ""),
        status=response.status_code,
        hint=str(data.get("hint") or ""),
        request_id=str(data.get("instance") or response.headers.get("request-id", "")),
        errors=tuple(
            f"{item.get('pointer', '')}: {item.get('detail', '')}"
            for item in (fields if isinstance(fields, list) else ())
            if isinstance(item, dict)
        ),
        retry_after_s=float(retry) if retry.isdigit() else None,
    )


def loose(value: Any) -> Any:
    """Decoded JSON in which members that are missing are None, whatever the server's age."""
    if isinstance(value, dict):
        return Loose(value)
    return [loose(item) for item in value] if isinstance(value, list) else value


def _snapshot_from(data: Any, etag: str, view: str) -> Snapshot:
    if not isinstance(data, dict) or not isinstance(data.get("node"), dict):
        raise Problem(
            code="bad-reply",
            title="The answer cannot be read",
            detail="The server's snapshot has no node member.",
            status=200,
        )
    rows = data.get("rows") if isinstance(data.get("rows"), list) else []
    alerts = data.get("alerts") if isinstance(data.get("alerts"), dict) else {}
    known = ("contract", "view", "state", "node", "alerts", "rows", "total")
    kept = tuple(Loose(row) for row in rows or () if isinstance(row, dict))
    return Snapshot(
        view=view,
        state=str(data.get("state") or data["node"].get("state") or "ready"),
        node=data["node"],
        rows=kept,
        total=int(data.get("total") or len(kept)),
        warn=int((alerts or {}).get("warn") or 0),
        fail=int((alerts or {}).get("fail") or 0),
        contract=int(data.get("contract") or CONTRACT),
        extras={k: loose(v) for k, v in data.items() if k not in known},
        etag=etag,
    )
