"""One call, end to end: intent on record, a sandbox on lease, the exchange, outcome on record.

Owns: the order of these steps, and that no reply leaves before its outcome is durable.
Never: parses HTTP, decides who may call, or talks to Podman.
Read next: ``provision``, ``store.ledger``, ``sandbox.pool``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from appliance import clock, config, provision
from appliance.errors import (
    ApplianceError,
    Gone,
    GuestError,
    HostError,
    NotFound,
    SecretMissing,
    TooLarge,
)
from appliance.events import CallIntent, CallOutcome
from appliance.inputs import Checks
from appliance.metrics import Metrics
from appliance.records import Version, stronger
from appliance.sandbox.joining import Joining, Sent
from appliance.sandbox.keeper import Load
from appliance.sandbox.nesting import Line
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import Calls, Reply, Request, SandboxSpec, Tail
from appliance.store import Snapshot, Store
from appliance.store.appended import LATER, Appended

_log = logging.getLogger(__name__)
_DIGEST_LABEL = "call-digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A call that succeeded: the model's answer, where it is recorded and what it took.

    ``queue_us`` waited for a sandbox, ``load_us`` made one, ``compute_us`` in the model.
    """

    reply: bytes
    content_type: str
    model_id: str
    number: int
    audit_seq: int
    cold: bool
    total_us: int
    queue_us: int = 0
    load_us: int = 0
    compute_us: int = 0
    steps: tuple[tuple[str, str, int], ...] = ()
    """Of a pipeline: name, model and version of each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A call that was answered: what it was asked, what came of it, and the call that made it."""

    call_id: str
    content_type: str
    body: bytes
    outcome: Outcome
    parent: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many calls are below one caller's call, all levels together."""

    calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Under:
    """What a call that a call made is below.

    ``parent`` made it, ``root`` is the caller's own. It is on level ``depth`` (1: made by the
    root), none of those below it may be on a level beyond ``depth_max``, and it is over when
    ``deadline_ns`` (monotonic) comes.
    """

    parent: str
    root: str
    depth: int
    depth_max: int
    tally: Tally
    deadline_ns: int
    line: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A call that may make calls, as it begins."""

    call_id: str
    principal_id: str
    version: Version
    via: Via
    line: Line


class Below(Calls, Protocol):
    """The calls below one call, made in the name of whoever made it; see ``nested``."""

    steps: tuple[tuple[str, str, int], ...]
    """The steps that were made: name, model and version."""

    async def conduct(self, request: Request) -> Reply:
        """The answer of a version that is a pipeline."""
        ...

    async def end(self) -> None:
        """Give up what still runs, and wait until it is on record."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Via:
    """How a call came to its version; nothing for one that named it.

    ``route_revision`` is of the route that chose it. ``shadow_of`` is the id of the call whose body
    this one repeats, ``compare`` what says how its reply compares with that one's. ``caller_id`` is
    whose rights calls below this one have, where that is not who it is recorded for. ``under`` is
    there for a call that a call made. ``replay_of`` is the id of a kept call that this one repeats.
    ``is_trial`` says that it is made to see what comes of it, with those below it: what it is asked
    says nothing about what callers ask. ``tail`` is told what is printed meanwhile, where the call
    has its sandbox for itself.
    """

    route_revision: int = 0
    shadow_of: str = ""
    replay_of: str = ""
    compare: Callable[[Reply], str] | None = None
    caller_id: str = ""
    under: Under | None = None
    is_trial: bool = False
    tail: Tail | None = None


DIRECT = Via()


@dataclass(slots=True, kw_only=True)
class _Course:
    """What is known about a call so far; written to the ledger when it ends."""

    call_id: str
    principal_id: str
    via: Via
    started_ns: int = field(default_factory=clock.monotonic_ns)
    match: str = ""
    root: str = ""
    steps: tuple[tuple[str, str, int], ...] = ()
    intent_seq: int = 0
    intent: Appended | None = None
    is_waiting: bool = False
    cold: bool = False
    queue_us: int = 0
    load_us: int = 0
    sandbox_id: str = ""
    reply: Reply | None = None
    deadline: float | None = None

    def left(self, sent: Sent) -> None:
        """It left the line of those that wait to be joined."""
        self.is_waiting = False
        self.sandbox_id, self.cold = sent.sandbox_id, sent.cold
        self.queue_us, self.load_us = sent.queue_us, sent.load_us


_Prepared = tuple[tuple[str, ...], SandboxSpec, Load]
Hangup = Callable[[Callable[[], object]], object]
Watch = Callable[[CallOutcome, bool], None]
"""Told of each recorded outcome, and whether it says something about the version: calls that ended
for the appliance's or the caller's reasons do not."""


class Invoker:
    """Runs calls against versions; one per unsealed node."""

    def __init__(
        self, store: Store, pool: Callable[[], Pool], settings: config.Sandbox, metrics: Metrics
    ) -> None:
        """Args: ``pool`` returns the pool, or raises the problem that keeps sandboxes away."""
        self._store = store
        self._pool = pool
        self._settings = settings
        self._metrics = metrics
        self._inputs = Checks()
        self._joining: tuple[Pool, Joining] | None = None
        self._known: dict[tuple[str, int], _Prepared] = {}
        self._known_at: Snapshot | None = None
        self.watches: list[Watch] = []
        self.opens: Callable[[Opening], Below] | None = None

    @property
    def waiting(self) -> int:
        """Calls that wait to be joined with others."""
        return self._joining[1].waiting if self._joining else 0

    def _joining_of(self, pool: Pool) -> Joining:
        if self._joining is None or self._joining[0] is not pool:
            self._joining = (pool, Joining(pool, self._settings, self._metrics))
        return self._joining[1]

    async def run(
        self,
        *,
        principal_id: str,
        request_id: str,
        version: Version,
        content_type: str,
        body: bytes,
        on_hangup: Hangup = lambda _: None,
        via: Via = DIRECT,
        wait_s: float | None = None,
    ) -> Outcome:
        """The model's answer to one request.

        Args:
            principal_id: who calls, for the audit.
            request_id: the caller-visible id of this request; becomes the call id.
            version: the version to call.
            content_type: media type of ``body``, handed to the model unread.
            body: the request, at most the version's ``body_bytes_max`` bytes.
            on_hangup: takes what is to be called when the caller hangs up; a call that waits for a
                sandbox then is given up, one that runs is finished.
            via: how it came to this version.
            wait_s: how long the caller is willing to wait until the model has the call.

        Raises:
            DeadlinePassed: that was not long enough; the model was not called.
            Gone: the version is retired.
            TooLarge: the body is over the version's limit.
            InputInvalid: the body breaks the version's schema.
            GuestError: the model failed; ``extensions`` has ``audit_seq``.
            StateError: no sandbox can be had now; ``extensions`` has ``audit_seq``.
        Audit: call.intent before the model sees the body, call.outcome before this returns. Where
        the version says ``audit = "overlap"``, both before this returns.
        """
        if version.retired_ns:
            raise Gone(f"Version {version.number} is retired.", number=version.number)
        if len(body) > (limit := version.manifest.limits.body_bytes_max):
            raise TooLarge(f"The body is over this version's {limit} bytes.")
        self.require_input(version, content_type, body)
        course = _Course(call_id=request_id, principal_id=principal_id, via=via)
        course.root = _root_of(request_id, version, via)
        course.deadline = None if wait_s is None else asyncio.get_running_loop().time() + wait_s
        self._store.ledger.under_way += 1
        try:
            return await self._recorded(course, version, content_type, body, on_hangup)
        finally:
            self._store.ledger.under_way -= 1

    async def _recorded(
        self,
        course: _Course,
        version: Version,
        content_type: str,
        body: bytes,
        on_hangup: Hangup,
    ) -> Outcome:
        """A call that may be made, from its intent to its outcome."""
        via = course.via
        await self._intend(course, version, body)
        task = asyncio.current_task()
        on_hangup(lambda: task.cancel() if task and course.is_waiting else None)
        request = self._request(version, content_type, body, via)
        try:
            reply = await self._exchange(course, version, request)
        except ApplianceError as error:
            is_telling = isinstance(error, GuestError)
            seq = await self._conclude(course, version, error.slug, error.status, is_telling)
            error.extensions.setdefault("audit_seq", seq)
            error.extensions.setdefault("model_version", version.number)
            raise
        except asyncio.CancelledError:
            # The caller hung up: the record is still owed, so it must outlive the cancellation.
            await asyncio.shield(self._conclude(course, version, "cancelled", 499))
            raise
        except Exception:
            await self._conclude(course, version, "internal", 500)
            raise
        if via.compare is not None:
            course.match = via.compare(reply)
        seq = await self._conclude(course, version, "ok", 200, is_telling=True)
        return _outcome(course, version, reply, seq)

    def require_input(self, version: Version, content_type: str, body: bytes) -> None:
        """Return if a body is what a version takes; see ``inputs``.

        Raises:
            InputInvalid: it is not.
        """
        self._inputs.require(version, content_type, body)

    def _request(self, version: Version, content_type: str, body: bytes, via: Via) -> Request:
        limits = version.manifest.limits
        return Request(
            id=clock.new_id("call"),
            content_type=content_type,
            body=body,
            timeout_ms=self._time_ms(version, via),
            reply_bytes_max=min(limits.reply_bytes_max, self._settings.reply_bytes_max),
            tail=via.tail,
        )

    async def close_open_intents(self) -> int:
        """Conclude calls whose process died, as ``unknown``; returns how many there were."""
        boot = self._store.ledger.boot
        orphans = await self._store.queries.open_intents(boot)
        for entry in orphans:
            event = entry.event or {}
            await self._store.ledger.append(
                CallOutcome(
                    call_id=str(event.get("call_id", "")),
                    intent_seq=entry.seq,
                    model_id=str(event.get("model_id", "")),
                    number=int(event.get("number", 0)),
                    code="unknown",
                    status=0,
                    reply_digest="",
                    reply_bytes=0,
                    cold=False,
                    queue_us=0,
                    load_us=0,
                    compute_us=0,
                    total_us=0,
                    sandbox_id="",
                    route_revision=int(event.get("route_revision", 0)),
                    shadow_of=str(event.get("shadow_of", "")),
                    parent=str(event.get("parent", "")),
                    root=str(event.get("root", "")),
                    replay_of=str(event.get("replay_of", "")),
                ),
                tenant_id=entry.tenant_id,
                actor="appliance",
                object=entry.object,
            )
        return len(orphans)

    async def _intend(self, course: _Course, version: Version, body: bytes) -> None:
        digest = self._store.keyring.digest(version.tenant_id, _DIGEST_LABEL, body)
        event = CallIntent(
            call_id=course.call_id,
            model_id=version.model_id,
            number=version.number,
            request_digest=digest,
            request_bytes=len(body),
            route_revision=course.via.route_revision,
            shadow_of=course.via.shadow_of,
            parent=_parent_of(course.via),
            root=course.root,
            replay_of=course.via.replay_of,
        )
        tenant_id, actor, model_id = version.tenant_id, course.principal_id, version.model_id
        ledger = self._store.ledger
        if version.manifest.audit == "overlap":
            course.intent_seq = LATER
            course.intent = ledger.begin(event, tenant_id=tenant_id, actor=actor, object=model_id)
        else:
            course.intent_seq = await ledger.record(
                event, tenant_id=tenant_id, actor=actor, object=model_id
            )

    async def _exchange(self, course: _Course, version: Version, request: Request) -> Reply:
        manifest, under = version.manifest, course.via.under
        above = under.line if under else None
        if manifest.steps:
            return await self._piped(course, version, request, Line(above=above))
        if not manifest.calls:
            line = Line(above=above) if above else None
            return await self._lent(course, version, request, line)
        line = Line(above=above, has_calls=True)
        below = self._opened(course, version, line)
        try:
            return await self._lent(course, version, replace(request, calls=below), line)
        finally:
            await asyncio.shield(below.end())

    async def _piped(
        self, course: _Course, version: Version, request: Request, line: Line
    ) -> Reply:
        below = self._opened(course, version, line)
        request = self._begun(version, replace(request, calls=below), course.via)
        try:
            course.reply = await below.conduct(request)
            course.steps = below.steps
        finally:
            await asyncio.shield(below.end())
        return course.reply

    def _opened(self, course: _Course, version: Version, line: Line) -> Below:
        if self.opens is None:
            raise HostError("Calls below calls are not there.")
        opening = Opening(
            call_id=course.call_id,
            principal_id=course.principal_id,
            version=version,
            via=course.via,
            line=line,
        )
        return self.opens(opening)

    def _time_ms(self, version: Version, via: Via) -> int:
        """How long a version may take now, in milliseconds."""
        most = min(version.manifest.limits.invoke_timeout_ms, self._settings.invoke_timeout_ms_max)
        if via.under is None:
            return most
        left_ms = (via.under.deadline_ns - clock.monotonic_ns()) // 1_000_000
        return max(1, min(most, left_ms))

    async def _lent(
        self, course: _Course, version: Version, request: Request, line: Line | None
    ) -> Reply:
        before = self._store.registry.snapshot
        secrets, spec, files = self._prepared(before, version)
        pool = self._pool()
        is_spare = bool(course.via.shadow_of)
        course.is_waiting = True
        try:
            # One that a call waits for takes its own sandbox: the pool has to see who waits.
            if spec.batch is not None and not course.via.shadow_of and line is None:
                joining = self._joining_of(pool)
                course.reply = await joining.call(
                    spec, files, request, sent=course.left, deadline=course.deadline
                )
                return course.reply
            async with pool.lease(
                spec, files, spare=is_spare, deadline=course.deadline, line=line
            ) as lease:
                course.is_waiting = False
                course.cold, course.sandbox_id = lease.cold, lease.sandbox_id
                course.queue_us, course.load_us = lease.queue_us, lease.load_us
                request = self._begun(version, request, course.via)
                course.reply = await lease.request(request)
        finally:
            # What changed meanwhile could not end a sandbox that was not there yet.
            is_same = self._store.registry.snapshot is before
            if self._is_withdrawn(version) or not (
                is_same or self._is_current(version, spec, secrets)
            ):
                await pool.evict(spec.version_key)
        return course.reply

    def _begun(self, version: Version, request: Request, via: Via) -> Request:
        """The request with the time it has from now on, which is all that calls below it have."""
        timeout_ms = self._time_ms(version, via)
        if request.calls is not None:
            request.calls.deadline_ns = clock.monotonic_ns() + timeout_ms * 1_000_000
        return (
            request if request.timeout_ms == timeout_ms else replace(request, timeout_ms=timeout_ms)
        )

    def _prepared(self, snapshot: Snapshot, version: Version) -> _Prepared:
        """What a version needs to run by what is in force; the same as long as nothing changes.

        Raises:
            SecretMissing: one it needs is not set.
        """
        if self._known_at is not snapshot:
            self._known_at = snapshot
            self._known.clear()
        key = (version.model_id, version.number)
        found = self._known.get(key)
        if found is None:
            secrets = provision.secrets_in_force(self._store, version)
            spec = provision.spec_in_force(self._store, version, self._settings)
            files = provision.files_of_version(self._store, version)
            found = self._known[key] = (secrets, spec, files)
        return found

    def _is_withdrawn(self, version: Version) -> bool:
        snapshot = self._store.registry.snapshot
        now = snapshot.version(version.model_id, version.number)
        is_gone = now is None or snapshot.tenant_by_id(version.tenant_id) is None
        return is_gone or bool(now and now.retired_ns)

    def _is_current(self, version: Version, spec: SandboxSpec, secrets: tuple[str, ...]) -> bool:
        """Whether a sandbox made for this call would be made the same way now."""
        try:
            now = provision.secrets_in_force(self._store, version)
        except SecretMissing:
            return False
        least = provision.isolation_of(self._store, version.tenant_id)
        return now == secrets and stronger(spec.isolation, least) == spec.isolation

    async def _conclude(
        self,
        course: _Course,
        version: Version,
        code: str,
        status: int,
        is_telling: bool = False,
    ) -> int:
        reply = course.reply
        digest = ""
        if reply:
            # Its tenant may have been removed, with the key, meanwhile: the outcome is owed still.
            with contextlib.suppress(NotFound):
                digest = self._store.keyring.digest(version.tenant_id, _DIGEST_LABEL, reply.body)
        event = CallOutcome(
            call_id=course.call_id,
            intent_seq=course.intent_seq,
            model_id=version.model_id,
            number=version.number,
            code=code,
            status=status,
            reply_digest=digest,
            reply_bytes=len(reply.body) if reply else 0,
            cold=course.cold,
            queue_us=course.queue_us,
            load_us=course.load_us,
            compute_us=reply.compute_us if reply else 0,
            total_us=_elapsed_us(course.started_ns),
            sandbox_id=course.sandbox_id,
            route_revision=course.via.route_revision,
            shadow_of=course.via.shadow_of,
            replay_of=course.via.replay_of,
            match=course.match,
            merged=reply.merged if reply else None,
            parent=_parent_of(course.via),
            root=course.root,
        )
        seq = await self._store.ledger.record(
            event,
            tenant_id=version.tenant_id,
            actor=course.principal_id,
            object=version.model_id,
            after=course.intent,
        )
        self._metrics.call_ended(
            code=code, cold=course.cold, total_us=event.total_us, queue_us=course.queue_us
        )
        for watch in self.watches:
            watch(event, is_telling)
        return seq


def _outcome(course: _Course, version: Version, reply: Reply, seq: int) -> Outcome:
    return Outcome(
        reply=reply.body,
        content_type=reply.content_type,
        model_id=version.model_id,
        number=version.number,
        audit_seq=seq,
        cold=course.cold,
        total_us=_elapsed_us(course.started_ns),
        steps=course.steps,
        queue_us=course.queue_us,
        load_us=course.load_us,
        compute_us=reply.compute_us,
    )


def _elapsed_us(started_ns: int) -> int:
    return (clock.monotonic_ns() - started_ns) // 1000


def _root_of(call_id: str, version: Version, via: Via) -> str:
    """The call that a call and those below it belong to; empty where there are none."""
    if via.under is not None:
        return via.under.root
    return call_id if version.manifest.calls or version.manifest.steps else ""


def _parent_of(via: Via) -> str:
    return via.under.parent if via.under is not None else ""
