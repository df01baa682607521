"""Commands on webhooks: made, rotated, switched and removed, each before it is in force.

Owns: making, sealing and destroying the secrets that deliveries are signed with.
Never: sends anything (``appliance.webhooks``), or decides where to (``egress.outbound``).
Read next: ``webhooks`` (what the events do), ``secrets`` (how a secret is sealed).
"""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import replace

from appliance import clock
from appliance.errors import CapacityExhausted, DiskFull, NotFound, QuotaExceeded
from appliance.events import Event, WebhookCreated, WebhookRemoved, WebhookRotated
from appliance.standing import Webhook, WebhookSecret
from appliance.store import secrets
from appliance.store.keyring import Keyring
from appliance.store.snapshot import Snapshot
from appliance.store.writer import Writer

WEBHOOKS_MAX = 32
PREFIX = "whsec_"
_SECRET_BYTES = 32
_NS = 1_000_000_000


class WebhookCommands:
    """The registry's commands on webhooks."""

    def __init__(self, writer: Writer, keyring: Keyring) -> None:
        """Give commands to ``writer``; secrets' keys are made and destroyed in ``keyring``."""
        self._writer = writer
        self._keyring = keyring

    async def create(self, webhook: Webhook, *, origin: str, actor: str) -> tuple[Webhook, str]:
        """Record a webhook with a fresh secret; the secret's text is returned once.

        Args:
            webhook: all of it but its secrets.
            origin: scheme, host and port of its address, for the record.
            actor: who asks.

        Raises:
            NotFound: there is no such tenant.
            QuotaExceeded: the tenant has as many as a tenant may have, or, without ``url``, one.
        Audit: webhook.created.
        """

        async def command() -> tuple[Webhook, str]:
            tenant_id = webhook.tenant_id
            self._writer.tenant(tenant_id)
            _require_room(self._writer.snapshot, webhook)
            secret, text = await self._make_secret(tenant_id, webhook.id)
            made = replace(webhook, secrets=(secret,))
            await self._commit(
                WebhookCreated(webhook=made, origin=origin), made, actor, {secret.id}
            )
            return made, text

        return await self._writer.run(command())

    async def rotate(
        self, tenant_id: str, webhook_id: str, *, overlap_s: int, actor: str
    ) -> tuple[Webhook, str]:
        """Give a webhook a new secret; the one before signs too for a while, one older no more.

        Raises:
            NotFound: there is no such webhook.
        Audit: webhook.rotated.
        """

        async def command() -> tuple[Webhook, str]:
            webhook = self._webhook(tenant_id, webhook_id)
            secret, text = await self._make_secret(tenant_id, webhook_id)
            until_ns = clock.now_ns() + overlap_s * _NS
            event = WebhookRotated(webhook_id=webhook_id, secret=secret, until_ns=until_ns)
            await self._commit(event, webhook, actor, {secret.id})
            await self._forget(tenant_id, {one.id for one in webhook.secrets[1:]})
            return self._webhook(tenant_id, webhook_id), text

        return await self._writer.run(command())

    async def remove(self, tenant_id: str, webhook_id: str, *, actor: str) -> None:
        """Remove a webhook and what waits for it. Raises NotFound. Audit: webhook.removed."""

        async def command() -> None:
            webhook = self._webhook(tenant_id, webhook_id)
            await self._commit(WebhookRemoved(webhook_id=webhook_id), webhook, actor, set())
            await self._forget(tenant_id, {one.id for one in webhook.secrets})

        await self._writer.run(command())

    def secret_values(self, webhook: Webhook, now_ns: int) -> list[bytes]:
        """The keys in force, the newest first.

        Raises:
            NotFound: the webhook was removed, or rotated twice, meanwhile.
            StoreCorrupt: a secret is damaged.
        """
        place = _place(webhook.id)
        return [
            secrets.opened(self._keyring, webhook.tenant_id, one.id, place, one.box)
            for one in webhook.secrets
            if not one.until_ns or one.until_ns > now_ns
        ]

    def _webhook(self, tenant_id: str, webhook_id: str) -> Webhook:
        webhook = self._writer.snapshot.webhook(tenant_id, webhook_id)
        if webhook is None:
            raise NotFound("There is no such webhook.")
        return webhook

    async def _make_secret(self, tenant_id: str, webhook_id: str) -> tuple[WebhookSecret, str]:
        value = os.urandom(_SECRET_BYTES)
        secret_id = clock.new_id(secrets.SECRET_PREFIX)
        box = await asyncio.to_thread(
            secrets.seal, self._keyring, tenant_id, secret_id, _place(webhook_id), value
        )
        text = PREFIX + base64.b64encode(value).decode("ascii")
        return WebhookSecret(id=secret_id, box=box, made_ns=clock.now_ns()), text

    async def _commit(self, event: Event, webhook: Webhook, actor: str, fresh: set[str]) -> None:
        try:
            await self._writer.commit(event, webhook.tenant_id, actor, webhook.id)
        except (DiskFull, CapacityExhausted):  # certainly not recorded
            await self._forget(webhook.tenant_id, fresh)
            raise

    async def _forget(self, tenant_id: str, secret_ids: set[str]) -> None:
        if secret_ids:
            await asyncio.to_thread(self._keyring.drop_object_keys, tenant_id, secret_ids)


def _place(webhook_id: str) -> str:
    return f"{webhook_id}\0webhook"


def _require_room(snapshot: Snapshot, webhook: Webhook) -> None:
    known = snapshot.webhooks(webhook.tenant_id)
    if len(known) >= WEBHOOKS_MAX:
        raise QuotaExceeded(f"A tenant has at most {WEBHOOKS_MAX} webhooks; remove one.")
    if not webhook.url and any(not one.url for one in known):
        raise QuotaExceeded(
            "The tenant signs its jobs' webhooks with one secret, and has it already.",
            hint="appliance webhook rotate TENANT WEBHOOK",
        )
