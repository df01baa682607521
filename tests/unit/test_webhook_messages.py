"""What a delivery says: the signature, when it is tried again, and the closed table of events."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import standardwebhooks
from storing import ACTOR, Folder

from appliance.cli.webhook import create
from appliance.clock import now_ns
from appliance.events import DriftBreached, WebhookDisabled
from appliance.records import Breach
from appliance.standing import Webhook
from appliance.store import Store, announce
from appliance.webhooks import message

NS = 1_000_000_000
PAGE = (Path(__file__).resolve().parents[2] / "docs/webhooks.md").read_text()


def test_the_signature_is_that_of_the_published_example() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = dict(
        message.headers_of(
            "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330 * NS, b'{"test": 2432232314}', [key]
        )
    )
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert made["webhook-timestamp"] == "1614265330"


def test_each_secret_in_force_has_its_signature_and_another_byte_has_none() -> None:
    keys = [b"a" * 32, b"b" * 32]
    body = message.body_of("alias.set", "2026-01-31T12:00:00.000Z", {"model": "ä"})
    made = dict(message.headers_of("msg_1", now_ns(), body, keys))
    for key in keys:
        secret = "whsec_" + base64.b64encode(key).decode()
        assert standardwebhooks.Webhook(secret).verify(body, made)["data"] == {"model": "ä"}
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(secret).verify(body.replace(b"alias", b"Alias"), made)


def test_it_is_tried_again_as_the_table_of_the_page_says() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| after the one before"))
    units = {"s": 1, "min": 60, "h": 3600}
    shown = [cell.strip().split() for cell in row.split("|")[3:-1]]
    assert [int(number) * units[unit] for number, unit in shown] == list(message.WAITS_S)
    for attempt, wait_s in enumerate(message.WAITS_S, start=1):
        assert message.next_ns(attempt, 7) == 7 + wait_s * NS
    assert message.next_ns(len(message.WAITS_S) + 1, 7) == 0
    assert message.next_ns(1, 0, 60) == 60 * NS
    assert message.next_ns(1, 0, 86_400) == 3_600 * NS
    assert message.next_ns(4, 0, 60) == 7_200 * NS


def test_every_event_one_can_ask_for_is_on_the_page_and_in_the_help() -> None:
    for name, doc in announce.TYPES.items():
        assert f"`{name}`" in PAGE, name
        assert name in (create.help or ""), name
        assert doc.endswith(".")


def hook(tenant_id: str, *events: str) -> Webhook:
    return Webhook(
        id="wh_1", tenant_id=tenant_id, url="https://x.test/", events=events, secrets=(),
        created_ns=1, created_by=ACTOR,
    )  # fmt: skip


def breach_of(model_id: str, value: float) -> DriftBreached:
    breach = Breach(
        feature="age", is_output=False, statistic="psi", value=value, threshold=0.2, rows=500,
        window_s=3600, since_ns=1,
    )  # fmt: skip
    return DriftBreached(model_id=model_id, number=1, breach=breach)


async def tell(store: Store, tenant_id: str, value: float) -> None:
    model = store.registry.snapshot.model(tenant_id, "churn")
    model = model or await store.registry.create_model(
        tenant_id=tenant_id, name="churn", actor=ACTOR
    )
    events = [breach_of(model.id, value)]
    await store.registry.change(lambda: events, tenant_id=tenant_id, actor=ACTOR, obj=model.id)


async def test_a_breach_is_told_in_one_unit_with_its_record(tmp_path: Path) -> None:
    async with Folder(tmp_path).make().open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        await tell(store, tenant.id, 0.3)  # nobody asked for it yet
        made = hook(tenant.id, "drift.breach")
        await store.registry.webhooks.create(made, origin="https://x.test", actor=ACTOR)
        await tell(store, tenant.id, 0.4)
        (delivery,) = store.registry.snapshot.deliveries(tenant.id)
        assert delivery.type == "drift.breach"
        assert (delivery.data["model"], delivery.data["value"]) == ("churn", 0.4)
        kinds = [entry.kind for entry in store.ledger.read(0, 99)]
        assert kinds[-2:] == ["drift.breach", "delivery.queued"]


async def test_a_webhook_that_too_much_waits_for_is_disabled_and_another_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "WAITING_MAX", 3)
    async with Folder(tmp_path).make().open() as store:
        tenant = await store.registry.create_tenant(name="acme", actor=ACTOR)
        made = hook(tenant.id, "drift.breach")
        await store.registry.webhooks.create(made, origin="https://x.test", actor=ACTOR)
        for value in (0.1, 0.2, 0.3):
            await tell(store, tenant.id, value)
        assert not store.registry.snapshot.webhooks(tenant.id)[0].disabled
        await tell(store, tenant.id, 0.4)
        assert store.registry.snapshot.webhooks(tenant.id)[0].disabled == "backlog"
        found = store.registry.snapshot.deliveries(tenant.id)
        assert {(one.state, one.code) for one in found} == {("failed", "disabled")}
        await tell(store, tenant.id, 0.5)
        last = [entry.kind for entry in store.ledger.read(0, 99)][-2:]
        assert last == [WebhookDisabled.KIND, "drift.breach"]
