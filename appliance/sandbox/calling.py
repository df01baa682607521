"""Calls that a model asks for while it answers one: CALL in, RETURN or ERR out.

Owns: what a CALL may be, how many there may be, and how each is answered.
Never: decides who may call what, or runs anything (``spec.Calls`` does); believes the guest.
Read next: ``PROTOCOL.md``, ``link`` (whose runner connection this is on).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from appliance.errors import ApplianceError, CallLimitReached, HostError
from appliance.sandbox.spec import Asked, Calls

_LOG = logging.getLogger(__name__)
_IDENT = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_CONTENT_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,255}")
_TARGET_MAX = 140
DETAIL_MAX = 1500

Say = Callable[[dict[str, Any], bytes], Awaitable[None]]


class BadCall(Exception):
    """A CALL frame that no runner of ours sends; the text says why."""


class CallHeader(Protocol):
    """The members of a CALL that are looked at, typed by the link's own decoder."""

    id: str
    req: str
    target: str
    content_type: str


class CallDesk:
    """The calls of one REQ, from its first CALL to its end. Used by the link that reads them."""

    def __init__(self, ident: str, calls: Calls, say: Say) -> None:
        """Serve the REQ ``ident`` with ``calls``; ``say`` sends one frame to the runner."""
        self._ident = ident
        self._calls = calls
        self._say = say
        self._open: dict[str, asyncio.Task[None]] = {}
        self._frames = 0
        self._is_closed = False

    @property
    def limits(self) -> dict[str, int]:
        """What a runner is told, so that it never breaks them by mistake."""
        return {
            "parallel_max": self._calls.parallel_max,
            "body_bytes_max": self._calls.body_bytes_max,
        }

    def admit(self, header: CallHeader, body_bytes: int) -> Callable[[bytes], object] | None:
        """What to do with the body of a CALL, ``None`` where it is refused and read past.

        Raises:
            BadCall: it is none of ours, or one too many; the sandbox is not to be kept.
        """
        self._frames += 1
        if self._frames > self._calls.frames_max:
            raise BadCall("a flood of CALL frames")
        if header.req != self._ident:
            raise BadCall("a CALL for a request that is not open")
        if not _IDENT.fullmatch(header.id) or header.id in self._open:
            raise BadCall("a CALL whose id is none, or is open already")
        if len(header.target) > _TARGET_MAX or not _CONTENT_TYPE.fullmatch(header.content_type):
            raise BadCall("a CALL whose target or content type is out of bounds")
        if body_bytes > self._calls.body_bytes_max:
            raise BadCall("the body of a CALL is over its cap")
        problem = self._refused(body_bytes)
        if problem is not None:
            self._begin(header, b"", problem)
            return None
        return lambda body: self._begin(header, body, None)

    def _begin(self, header: CallHeader, body: bytes, problem: ApplianceError | None) -> None:
        if self._is_closed:
            return
        asked = Asked(target=header.target, content_type=header.content_type, body=body)
        ident = header.id
        task = asyncio.create_task(self._serve(ident, asked, problem))
        self._open[ident] = task
        task.add_done_callback(lambda _: self._open.pop(ident, None))

    def close(self) -> None:
        """The REQ is over: what is still open is given up, and nobody is told."""
        self._is_closed = True
        for task in self._open.values():
            task.cancel()

    def _refused(self, size: int) -> ApplianceError | None:
        """Why a CALL of this size is not made, if it is not."""
        if len(self._open) >= self._calls.parallel_max:
            most = self._calls.parallel_max
            return CallLimitReached(f"{most} calls are open at once, which is the most.")
        try:
            self._calls.hold(size)
        except ApplianceError as error:
            return error
        return None

    async def _serve(self, ident: str, asked: Asked, problem: ApplianceError | None) -> None:
        try:
            if problem is not None:
                raise problem
            reply = await self._calls.call(asked)
            self._calls.hold(len(reply.body))
            header = {"type": "RETURN", "id": ident, "content_type": reply.content_type}
            body = reply.body
        except ApplianceError as error:
            header, body = self._refusal(ident, error), b""
        except Exception:  # noqa: BLE001 - the model is told something, whatever happened
            _LOG.exception("a call that a model asked for")
            header = self._refusal(ident, HostError("Something failed inside the appliance."))
            body = b""
        with contextlib.suppress(ConnectionError, OSError):
            await self._say(header, body)

    def _refusal(self, ident: str, error: ApplianceError) -> dict[str, Any]:
        return {
            "type": "ERR",
            "id": ident,
            "code": error.slug,
            "status": error.status,
            "detail": self._calls.told(error)[:DETAIL_MAX],
        }
