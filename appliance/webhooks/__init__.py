"""Webhooks: tenants are told of events, at least once, until the receiver has it or is given up.

Owns: which delivery is attempted next, how many at once, what an answer leads to, and the commands
that tenants have.
Never: decides what is told (``store.announce``) or where to (``egress.outbound``).
Read next: ``message`` (what is sent), ``post`` (how), ``store.webhooks`` (what events do).

    waiting --opened, attempted--> delivered
       ^--- later, longer each time ---'  '--> failed: no attempt is left, or it was disabled

A delivery is in the ledger in one unit with the event it tells of, and stays until its end is there
too. So it survives everything, may arrive twice, and has the same ``webhook-id`` each time. A
receiver that is slow or dead uses its own few places; it keeps no other from being told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from appliance import clock, config
from appliance.egress.outbound import Outbound, Place, place_from_url
from appliance.egress.resolver import Resolver
from appliance.errors import (
    ApplianceError,
    EgressDenied,
    FieldError,
    InputInvalid,
    NotFound,
    StateError,
)
from appliance.events import (
    DeliveryAttempted,
    DeliveryOpened,
    DeliveryQueued,
    Event,
    WebhookDisabled,
    WebhookEnabled,
)
from appliance.records import Job
from appliance.standing import Delivery, Webhook
from appliance.store import Store
from appliance.store.announce import TEST, TYPES, delivery_of
from appliance.store.jobs import head_of, head_of_printed
from appliance.webhooks import message
from appliance.webhooks.post import Answer, post, trust_of

_log = logging.getLogger(__name__)
_ACTOR = "appliance"
_TICK_S = 0.25
_RETRY_S = 5.0
_ATTEMPTS_MAX = 64
_LANE_MAX = 2
_OUTPUT_BYTES_MAX = 64 * 1024
_NS = 1_000_000_000
_TEXTS = ("application/json", "text/plain")


class Webhooks:
    """Takes, tells and forgets; one per unsealed node."""

    def __init__(
        self,
        store: Store,
        settings: config.Webhooks,
        *,
        hosts_file: str = "",
        now_ns: Callable[[], int] = clock.now_ns,
    ) -> None:
        """Make it; ``run`` runs it.

        Args:
            store: where webhooks and deliveries are.
            settings: limits and where deliveries may go.
            hosts_file: see ``egress.resolver``.
            now_ns: the wall time that decides what is due.

        Raises:
            ConfigInvalid: the settings are not in their grammar.
        """
        self._store = store
        self._settings = settings
        self._now_ns = now_ns
        self._resolver = Resolver(hosts_file)
        self._outbound = Outbound(settings, self._resolver)
        self._trust: ssl.SSLContext | None = None
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._lanes: dict[str, tuple[str, str]] = {}  # delivery: (tenant, webhook and host)
        self._seen = -1
        self._due_ns = 0
        self._wake = asyncio.Event()
        self._watchers: dict[str, asyncio.Event] = {}

    # --- what tenants do -----------------------------------------------------------------------

    async def create(
        self,
        tenant_id: str,
        *,
        url: str,
        events: tuple[str, ...],
        has_output: bool = False,
        actor: str,
    ) -> tuple[Webhook, str]:
        """A new webhook, and the text of its secret, which is never told again.

        Args:
            tenant_id: whose.
            url: where to; ``""`` for what the webhooks of single jobs are signed with.
            events: names of ``announce.TYPES``.
            has_output: what a model answered goes along when its job is completed.
            actor: who asks.

        Raises:
            InputInvalid: the address or an event is none.
            EgressDenied: deliveries may not go there.
            QuotaExceeded, NotFound: see ``WebhookCommands.create``.
        Audit: webhook.created.
        """
        unknown = [name for name in events if name not in TYPES]
        if unknown or (url and not events):
            detail = f"no such event: {unknown[0]}" if unknown else "name one at least"
            raise InputInvalid(
                f"A webhook is told of some of these events: {', '.join(TYPES)}.",
                fields=(FieldError(pointer="/events", detail=detail),),
            )
        if url:
            await self.require_url(url)
        webhook = Webhook(
            id=clock.new_id("wh"),
            tenant_id=tenant_id,
            url=url,
            events=tuple(dict.fromkeys(events)),
            has_output=has_output,
            secrets=(),
            created_ns=clock.now_ns(),
            created_by=actor,
        )
        origin = place_from_url(url).origin if url else ""
        return await self._store.registry.webhooks.create(webhook, origin=origin, actor=actor)

    async def require_url(self, url: str) -> None:
        """Return if deliveries may go there now.

        Raises:
            InputInvalid: it is no address, or its name leads nowhere.
            EgressDenied: it may not be reached.
        """
        place = place_from_url(url)
        try:
            await self._outbound.addresses(place, self._settings.timeout_s)
        except (OSError, TimeoutError):
            raise InputInvalid(
                f"Nothing is known of the host {place.host}.",
                fields=(FieldError(pointer="/url", detail="its name leads nowhere now"),),
            ) from None

    async def require_for_one(
        self, tenant_id: str, url: str, events: tuple[str, ...], known: tuple[str, ...]
    ) -> None:
        """Return if a job or a batch of this tenant may have this webhook for these of ``known``.

        Raises:
            InputInvalid: it is no address, an event is none, or nothing to sign with was made.
            EgressDenied: deliveries may not go there.
        """
        unknown = [name for name in events if name not in known]
        if unknown:
            raise InputInvalid(
                f"Its webhook is told of some of: {', '.join(known)}.",
                fields=(FieldError(pointer="Webhook-Events-Filter", detail=unknown[0]),),
            )
        made = self._store.registry.snapshot.webhooks(tenant_id)
        if not any(not one.url and not one.disabled for one in made):
            raise InputInvalid(
                "The tenant has made no secret that the webhooks of its jobs are signed with.",
                hint="appliance webhook create TENANT --for-jobs",
            )
        await self.require_url(url)

    async def rotate(self, webhook: Webhook, *, overlap_s: int, actor: str) -> tuple[Webhook, str]:
        """Give it a new secret; see ``WebhookCommands.rotate``. Audit: webhook.rotated."""
        return await self._store.registry.webhooks.rotate(
            webhook.tenant_id, webhook.id, overlap_s=overlap_s, actor=actor
        )

    async def remove(self, webhook: Webhook, *, actor: str) -> None:
        """Remove it. Raises NotFound. Audit: webhook.removed."""
        await self._store.registry.webhooks.remove(webhook.tenant_id, webhook.id, actor=actor)

    async def switch(self, webhook: Webhook, *, is_on: bool, actor: str) -> Webhook:
        """Enable or disable it; what waits for one that is disabled is given up.

        Raises:
            NotFound: it was removed meanwhile.
        Audit: webhook.enabled, webhook.disabled.
        """

        def make() -> list[Event]:
            if bool(self._required(webhook).disabled) != is_on:
                return []
            if is_on:
                return [WebhookEnabled(webhook_id=webhook.id)]
            return [WebhookDisabled(webhook_id=webhook.id, reason="command")]

        await self._change(webhook.tenant_id, webhook.id, make, actor)
        return self._required(webhook)

    async def test(self, webhook: Webhook, *, actor: str, timeout_s: float) -> Delivery:
        """Send it a ``webhook.test``; the delivery after its first attempt, or after a time.

        Raises:
            InputInvalid: it is disabled, or has no address.
        Audit: delivery.queued, and what every delivery leaves.
        """
        made: list[Delivery] = []

        def make() -> list[Event]:
            known = self._required(webhook)
            if known.disabled or not known.url:
                raise InputInvalid(
                    "Nothing is sent to this webhook: "
                    + (
                        f"it is disabled ({known.disabled})."
                        if known.disabled
                        else "it has no url."
                    ),
                    hint="appliance webhook enable TENANT WEBHOOK",
                )
            told = (TEST, {"webhook": known.id, "by": actor}, "")
            made.append(delivery_of(known, told, self._store.registry.snapshot))
            return [DeliveryQueued(delivery=made[-1])]

        await self._change(webhook.tenant_id, webhook.id, make, actor)
        over = self._watchers.setdefault(made[-1].id, asyncio.Event())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await over.wait()
        finally:
            del self._watchers[made[-1].id]
        return self._current(made[-1]) or made[-1]

    async def redeliver(self, webhook: Webhook, delivery_id: str, *, actor: str) -> Delivery:
        """Tell a webhook once more what it was told, with the same id, at once.

        One that is being sent at this moment stays as it is.

        Raises:
            NotFound: nothing is known of that delivery any more.
            InputInvalid: the webhook is disabled.
        Audit: delivery.queued, and what every delivery leaves.
        """

        def make() -> list[Event]:
            known = self._required(webhook)
            found = self._store.registry.snapshot.delivery(known.tenant_id, delivery_id)
            if found is None or found.webhook_id != known.id:
                raise NotFound("There is no such delivery.")
            if known.disabled:
                raise InputInvalid(
                    f"Nothing is sent to this webhook: it is disabled ({known.disabled}).",
                    hint="appliance webhook enable TENANT WEBHOOK",
                )
            if found.id in self._attempts:
                return []
            fresh = replace(
                found, state="waiting", attempts=0, next_ns=0, code="", status=0, ended_ns=0
            )
            return [DeliveryQueued(delivery=fresh)]

        known = self._store.registry.snapshot.delivery(webhook.tenant_id, delivery_id)
        attempt = self._attempts.get(delivery_id)
        if known is not None and known.code and attempt is not None:
            await asyncio.wait([attempt])  # how it ended is on record: it is about to let go
        await self._change(webhook.tenant_id, webhook.id, make, actor)
        self._wake.set()
        found = self._store.registry.snapshot.delivery(webhook.tenant_id, delivery_id)
        if found is None:
            raise NotFound("There is no such delivery.")
        return found

    # --- the life of the whole -----------------------------------------------------------------

    async def run(self) -> None:
        """Tell, for ever."""
        while True:
            self._wake.clear()
            try:
                self.begin_due()
            except Exception:  # noqa: BLE001 - it must go on; what is waiting is durable
                _log.exception("deliveries could not be begun")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()

    async def close(self) -> None:
        """Cut off what is being attempted; the next start attempts it again."""
        attempts = list(self._attempts.values())
        for task in attempts:
            task.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        self._resolver.close()

    @property
    def waiting(self) -> int:
        """Deliveries that have not arrived yet."""
        snapshot = self._store.registry.snapshot
        found = (one for tenant in snapshot.tenants() for one in snapshot.deliveries(tenant.id))
        return sum(one.state == "waiting" for one in found)

    @property
    def disabled(self) -> int:
        """Webhooks nothing is sent to."""
        snapshot = self._store.registry.snapshot
        found = (one for tenant in snapshot.tenants() for one in snapshot.webhooks(tenant.id))
        return sum(bool(one.disabled) for one in found)

    def begin_due(self) -> int:
        """Begin what is due and finds room; how many that are."""
        now_ns, changes = self._now_ns(), self._store.registry.changes
        if changes == self._seen and now_ns < self._due_ns:
            return 0
        self._seen, self._due_ns = changes, now_ns + 60 * _NS
        snapshot, count = self._store.registry.snapshot, 0
        busy = Counter(tenant for tenant, _lane in self._lanes.values())
        lanes = Counter(self._lanes.values())
        tenants = sorted(snapshot.tenants(), key=lambda tenant: busy[tenant.id])
        for tenant in tenants:
            for one in snapshot.deliveries(tenant.id):
                if one.state != "waiting" or one.id in self._attempts:
                    continue
                at = (tenant.id, f"{one.webhook_id} {one.url and place_from_url(one.url).host}")
                is_full = (
                    busy[tenant.id] >= self._settings.running_max
                    or lanes[at] >= _LANE_MAX
                    or len(self._attempts) >= _ATTEMPTS_MAX
                )
                if one.next_ns > now_ns or is_full:
                    self._due_ns = min(self._due_ns, max(one.next_ns, now_ns))
                    continue
                busy[tenant.id] += 1
                lanes[at] += 1
                count += 1
                self._begin(one, at)
        return count

    def _begin(self, delivery: Delivery, lane: tuple[str, str]) -> None:
        task = asyncio.create_task(self._attempt(delivery))
        self._attempts[delivery.id], self._lanes[delivery.id] = task, lane
        task.add_done_callback(partial(self._ended, delivery))

    def _ended(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        self._attempts.pop(delivery.id, None)
        self._lanes.pop(delivery.id, None)
        self._due_ns = 0
        self._wake.set()
        if (watcher := self._watchers.get(delivery.id)) is not None:
            watcher.set()
        if not task.cancelled() and task.exception():
            _log.error("delivery %s", delivery.id, exc_info=task.exception())

    # --- one attempt ---------------------------------------------------------------------------

    async def _attempt(self, delivery: Delivery) -> None:
        began_ns = clock.monotonic_ns()
        try:
            answer = await self._answer(delivery)
            took_ms = (clock.monotonic_ns() - began_ns) // 1_000_000
            await self._conclude(delivery, answer, took_ms)
        except NotFound:
            return  # its webhook or its tenant was removed meanwhile
        except StateError as error:
            _log.warning("delivery %s waits: %s", delivery.id, error.detail)
            await asyncio.sleep(_RETRY_S)  # the ledger takes nothing now; its place is kept
        except ApplianceError as error:
            _log.warning("delivery %s: %s", delivery.id, error.detail)
            await asyncio.sleep(_RETRY_S)

    async def _answer(self, delivery: Delivery) -> Answer:
        snapshot = self._store.registry.snapshot
        webhook = snapshot.webhook(delivery.tenant_id, delivery.webhook_id)
        if webhook is None:
            raise NotFound("There is no such webhook.")
        place = place_from_url(delivery.url or webhook.url)
        try:
            addresses = await self._outbound.addresses(place, self._settings.timeout_s)
        except EgressDenied:
            return Answer(code="egress-denied")
        except TimeoutError:
            return Answer(code="timeout")
        except OSError:
            return Answer(code="unresolved")
        if self._trust is None:
            try:
                self._trust = await asyncio.to_thread(trust_of, self._settings.ca_file)
            except OSError as error:
                _log.error("webhooks.ca_file %s: %s", self._settings.ca_file, error)
                return Answer(code="ca-file")
        await self._open(delivery, place, addresses)
        data = await self._data(delivery, webhook)
        body = message.body_of(delivery.type, clock.text_from_ns(delivery.queued_ns), data)
        now_ns = clock.now_ns()
        secrets = self._store.registry.webhooks.secret_values(webhook, now_ns)
        return await post(
            place,
            addresses,
            message.headers_of(delivery.id, now_ns, body, secrets),
            body,
            trust=self._trust,
            timeout_s=self._settings.timeout_s,
        )

    async def _open(self, delivery: Delivery, place: Place, addresses: tuple[str, ...]) -> None:
        event = DeliveryOpened(
            delivery_id=delivery.id,
            webhook_id=delivery.webhook_id,
            attempt=delivery.attempts + 1,
            host=place.host,
            port=place.port,
            addresses=addresses,
        )
        await self._change(delivery.tenant_id, delivery.webhook_id, lambda: [event], _ACTOR)

    async def _conclude(self, delivery: Delivery, answer: Answer, took_ms: int) -> None:
        attempt, now_ns = delivery.attempts + 1, self._now_ns()
        is_over = answer.code == "ok" or answer.code == "gone"
        next_ns = 0 if is_over else message.next_ns(attempt, now_ns, answer.retry_after_s)
        attempted = DeliveryAttempted(
            delivery_id=delivery.id,
            webhook_id=delivery.webhook_id,
            attempt=attempt,
            code=answer.code,
            status=answer.status,
            took_ms=took_ms,
            next_ns=next_ns,
        )

        def make() -> list[Event]:
            snapshot = self._store.registry.snapshot
            webhook = snapshot.webhook(delivery.tenant_id, delivery.webhook_id)
            if webhook is None:
                return []
            reason = self._disabling(webhook, answer, now_ns)
            if not reason:
                return [attempted]
            return [attempted, WebhookDisabled(webhook_id=webhook.id, reason=reason)]

        await self._change(delivery.tenant_id, delivery.webhook_id, make, _ACTOR)

    def _disabling(self, webhook: Webhook, answer: Answer, now_ns: int) -> str:
        """Why nothing more is sent to a webhook after this answer; empty if it is."""
        if answer.code == "ok" or webhook.disabled or not webhook.url:
            return ""
        if answer.code == "gone":
            return "gone"
        failing_s = (now_ns - (webhook.failing_ns or now_ns)) // _NS
        return "failing" if failing_s >= self._settings.disable_after_s else ""

    async def _data(self, delivery: Delivery, webhook: Webhook) -> dict[str, Any]:
        """What is told, with what a model answered or printed where somebody asked for it."""
        wants_output = delivery.type == "job.output" or (
            delivery.type == "job.completed" and webhook.has_output and not delivery.url
        )
        snapshot = self._store.registry.snapshot
        job = snapshot.job(delivery.tenant_id, delivery.job_id) if delivery.job_id else None
        end = job.end if job else None
        if delivery.type == "job.logs":
            first = delivery.data.get("first_line")
            if job is not None and first is not None:
                return {**delivery.data, "logs": await self._printed(job, first)}
            kept = (end.problem or {}).get("stderr", []) if end else []
            return {**delivery.data, "first_line": None, "lines": len(kept), "logs": list(kept)}
        if not wants_output:
            return delivery.data
        found: dict[str, Any] = {"output": None, "output_type": None, "output_bytes": None}
        if job is not None and end is not None and end.output is not None:
            found["output_type"] = end.content_type
            found["output_bytes"] = end.output.size_bytes - len(head_of(job.id, is_output=True))
            kind = end.content_type.split(";")[0].strip().lower()
            if found["output_bytes"] <= _OUTPUT_BYTES_MAX and kind in _TEXTS:
                found["output"] = await self._output(
                    delivery.tenant_id, end.output.id, job.id, kind
                )
        return {**delivery.data, **found}

    async def _printed(self, job: Job, first: int) -> Any:
        """The lines that a job printed from one on; ``None`` if they were deleted meanwhile."""
        head = len(head_of_printed(job.id, first))
        for one in job.printed:
            if one.first == first:
                return await self._read(job.tenant_id, one.blob.id, head, _TEXTS[0])
        return None

    async def _output(self, tenant_id: str, blob_id: str, job_id: str, kind: str) -> Any:
        return await self._read(tenant_id, blob_id, len(head_of(job_id, is_output=True)), kind)

    async def _read(self, tenant_id: str, blob_id: str, offset: int, kind: str) -> Any:
        try:
            pieces = self._store.blobs.read(tenant_id, blob_id, offset=offset)
            text = b"".join([piece async for piece in pieces])
            return msgspec.json.decode(text) if kind == _TEXTS[0] else text.decode()
        except (ApplianceError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None  # deleted after its time, or no text: its address still says which

    # --- helpers -------------------------------------------------------------------------------

    async def _change(
        self, tenant_id: str, webhook_id: str, make: Callable[[], list[Event]], actor: str
    ) -> None:
        await self._store.registry.change(make, tenant_id=tenant_id, actor=actor, obj=webhook_id)

    def _required(self, webhook: Webhook) -> Webhook:
        found = self._store.registry.snapshot.webhook(webhook.tenant_id, webhook.id)
        if found is None:
            raise NotFound("There is no such webhook.")
        return found

    def _current(self, delivery: Delivery) -> Delivery | None:
        return self._store.registry.snapshot.delivery(delivery.tenant_id, delivery.id)
