"""Webhooks: signed, told of what happened, tried again, and never where they must not go."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks
from inside import Inside, inside
from receiver import Received, Receiver, receiver, status

from appliance import config
from appliance.webhooks import Webhooks

HOOKS = "/api/v1/tenants/acme/webhooks"
INVOKE = "/api/v1/models/acme/echo/invoke"
ASYNC = {"Prefer": "respond-async", "Content-Type": "application/json"}


@asynccontextmanager
async def stage(
    folder: Path, hears: Receiver, **settings: Any
) -> AsyncIterator[tuple[Inside, Any]]:
    """An appliance whose IT allows the receiver; with a tenant, a model and its owner."""
    async with inside(folder, webhooks={"allow": (hears.origin,), **settings}) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            yield it, client


async def create(client: httpx.AsyncClient, hears: Receiver, *events: str, **more: Any) -> Any:
    body = {"url": f"{hears.origin}/in?a=1", "events": list(events), **more}
    answer = await client.post(HOOKS, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def submit(client: httpx.AsyncClient, body: bytes = b'{"a":1}', **headers: str) -> Any:
    answer = await client.post(INVOKE, content=body, headers={**ASYNC, **headers})
    assert answer.status_code == 202, answer.text
    return answer.json()


async def shown(client: httpx.AsyncClient, made: Any) -> Any:
    return (await client.get(f"{HOOKS}/{made['webhook']['id']}")).json()


async def until(client: httpx.AsyncClient, made: Any, **wanted: Any) -> Any:
    """The webhook's newest delivery once it is as wanted."""
    async with asyncio.timeout(30):
        while True:
            found = (await shown(client, made))["deliveries"]
            if found and all(found[0][name] == value for name, value in wanted.items()):
                return found[0]
            await asyncio.sleep(0.02)


def kinds(it: Inside) -> list[str]:
    return [entry.kind for entry in it.store.ledger.read(0, 9999)]


async def test_a_job_that_ended_is_told_signed_as_an_independent_verifier_expects(
    tmp_path: Path,
) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (it, client):
        made = await create(client, hears, "job.completed")
        assert made["secret"].startswith("whsec_")
        job = await submit(client, b'{"x":"canary-input"}')
        one = (await hears.until(1))[0]
        message = standardwebhooks.Webhook(made["secret"]).verify(one.body, one.headers)
        assert one.path == "/in?a=1"
        assert one.headers["host"] == f"127.0.0.1:{hears.port}"
        assert (message["type"], message["data"]["job"]) == ("job.completed", job["id"])
        assert message["data"]["status"] == "succeeded"
        assert (message["data"]["tenant"], message["data"]["model"]) == ("acme", "echo")
        assert message["data"]["completed_at"]
        assert b"canary-input" not in one.body
        other = standardwebhooks.Webhook("whsec_" + base64.b64encode(b"x" * 32).decode())
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            other.verify(one.body, one.headers)
        done = await until(client, made, state="delivered")
        assert (done["id"], done["attempts"], done["code"]) == (one.id, 1, "ok")
        # Where it went is on record before the connection was made, how it ended after it.
        opened = next(e for e in it.store.ledger.read(0, 999) if e.kind == "delivery.opened")
        assert opened.event["addresses"] == ["127.0.0.1"]
        assert opened.event["port"] == hears.port
        found = kinds(it)
        assert found.index("delivery.queued") == found.index("job.ended") + 1
        assert found.index("delivery.opened") < found.index("delivery.attempted")


async def test_every_event_a_webhook_can_ask_for_is_told(tmp_path: Path) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (it, client):
        wanted = [
            "version.registered", "version.retired", "alias.set", "key.created", "key.revoked",
            "route.changed", "route.held", "route.aborted", "route.promoted", "route.removed",
            "job.completed",
        ]  # fmt: skip
        await create(client, hears, *wanted)
        await it.version("acme", "echo")
        route = "/api/v1/models/acme/echo/route"
        arms = {"arms": [{"version": 1, "percent": 90}, {"version": 2, "percent": 10}]}
        assert (await client.put(route, json=arms)).status_code == 200
        for verb in ("hold", "abort", "promote"):
            body = {"reason": "r"} | ({"version": 2} if verb == "promote" else {})
            answer = await client.post(f"{route}/{verb}", json=body)
            assert answer.status_code == 200, answer.text
        assert (await client.put(route, json=arms)).status_code == 200
        assert (await client.delete(route)).status_code in (200, 204)
        await client.delete("/api/v1/models/acme/echo/versions/1")
        key = await it.key("acme", "caller")
        await client.delete(f"/api/v1/tenants/acme/keys/{key[4:13]}")
        await submit(client)
        # alias.set comes from the promotion, route.changed twice.
        got = await hears.until(len(wanted) + 1)
        assert {one.message["type"] for one in got} == set(wanted)
        told = {one.message["type"]: one.message["data"] for one in got}
        assert told["route.promoted"]["arms"] == [{"version": 2, "percent": 100.0}]
        assert told["version.registered"] == {
            "tenant": "acme", "model": "echo", "version": 2, "by": "uid:0",
        }  # fmt: skip
        assert key[4:13] == told["key.revoked"]["key"]
        assert all("mac" not in one.body.decode() for one in got)


async def test_only_what_was_asked_for_is_told_and_output_only_with_the_owners_word(
    tmp_path: Path,
) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (_it, client):
        await create(client, hears, "alias.set")
        plain = await create(client, hears, "job.completed")
        full = await create(client, hears, "job.completed", with_output=True)
        await submit(client, b'{"answer":42}')
        got = {one.message["data"].get("output_bytes"): one for one in await hears.until(2)}
        assert set(got) == {None, 13}
        assert got[13].message["data"]["output"] == {"answer": 42}
        standardwebhooks.Webhook(full["secret"]).verify(got[13].body, got[13].headers)
        standardwebhooks.Webhook(plain["secret"]).verify(got[None].body, got[None].headers)
        large = b'"' + b"x" * (64 * 1024) + b'"'
        await submit(client, large)
        sizes = [one.message["data"].get("output_bytes") for one in await hears.until(4)]
        assert len(large) in sizes
        assert max(len(one.body) for one in hears.got) < 2048


async def test_a_job_has_a_webhook_of_its_own(tmp_path: Path) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (it, client):
        url = f"{hears.origin}/mine"
        refused = await client.post(INVOKE, content=b"1", headers={**ASYNC, "Webhook": url})
        assert (refused.status_code, refused.json()["code"]) == (422, "input-invalid")
        assert "--for-jobs" in refused.json()["hint"]
        made = (await client.post(HOOKS, json={})).json()
        again = await client.post(HOOKS, json={})
        assert (again.status_code, again.json()["code"]) == (429, "quota-exceeded")
        job = await submit(client, b'{"n":1}', Webhook=url)
        assert job["webhook"] == hears.origin
        got = await hears.until(2)
        assert {one.message["type"] for one in got} == {"job.start", "job.completed"}
        for one in got:
            message = standardwebhooks.Webhook(made["secret"]).verify(one.body, one.headers)
            assert (one.path, message["data"]["job"]) == ("/mine", job["id"])
        events = "output, logs ,completed"
        await submit(client, b'{"n":2}', **{"Webhook": url, "Webhook-Events-Filter": events})
        told = {one.message["type"]: one.message["data"] for one in (await hears.until(4))[2:]}
        assert set(told) == {"job.output", "job.completed"}
        assert told["job.output"]["output"] == {"n": 2}
        assert "output" not in told["job.completed"]
        await submit(client, b"raise", **{"Webhook": url, "Webhook-Events-Filter": "logs"})
        logs = (await hears.until(5))[4].message
        assert (logs["type"], logs["data"]["logs"]) == ("job.logs", ["line one", "secret line two"])
        async with it.client(await it.key("acme", "caller")) as caller:
            headers = {**ASYNC, "Webhook": url, "Webhook-Events-Filter": "logs"}
            answer = await caller.post(INVOKE, content=b"1", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            headers["Webhook-Events-Filter"] = "everything"
            answer = await caller.post(INVOKE, content=b"1", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (422, "input-invalid")
            await submit(caller, b"1", Webhook=url)
        await hears.until(7)


async def test_what_failed_is_tried_again_later_with_the_same_id(tmp_path: Path) -> None:
    answers = [status(500), status(503, "retry-after: 900\r\n"), status(200)]
    async with receiver(lambda _: answers.pop(0)) as hears, stage(tmp_path, hears) as (it, client):
        made = await create(client, hears, "job.completed")
        hooks = with_clock(it)
        await submit(client)
        await hears.until(1)
        first = await until(client, made, code="http-500")
        assert (first["state"], first["attempts"], first["status"]) == ("waiting", 1, 500)
        assert await hooks.begun(4) == 0
        assert len(hears.got) == 1
        hooks.skip(1)
        await hears.until(2)
        await until(client, made, code="http-503")
        assert await hooks.begun(899) == 0  # the table says 300 s, the receiver asked for 900
        assert len(hears.got) == 2
        hooks.skip(1)
        await hears.until(3)
        last = await until(client, made, state="delivered")
        assert (last["attempts"], last["code"]) == (3, "ok")
        assert len({one.id for one in hears.got}) == 1
        assert len({one.body for one in hears.got}) == 1


async def test_after_the_last_attempt_it_is_given_up_and_after_days_the_webhook_is_disabled(
    tmp_path: Path,
) -> None:
    async with (
        receiver(lambda _: status(500)) as hears,
        stage(tmp_path, hears, disable_after_s=86_400) as (it, client),
    ):
        made = await create(client, hears, "job.completed")
        hooks = with_clock(it)
        await submit(client)
        for attempt, wait_s in enumerate((5, 300, 1_800, 7_200, 18_000, 36_000), start=1):
            await until(client, made, attempts=attempt, code="http-500")
            assert (await shown(client, made))["state"] == "on"
            hooks.skip(wait_s)
        await until(client, made, attempts=7, code="http-500")
        hooks.skip(36_000)
        await until(client, made, attempts=8, state="failed")
        now = await shown(client, made)
        assert now["state"] == "off: failing"
        disabled = [e for e in it.store.ledger.read(0, 9999) if e.kind == "webhook.disabled"]
        assert disabled[0].event["reason"] == "failing"
        job = await submit(client)
        ended = (await client.get(job["urls"]["get"], params={"wait_s": 30})).json()
        assert ended["status"] == "succeeded"
        assert len((await shown(client, made))["deliveries"]) == 1
        answer = await client.post(f"{HOOKS}/{made['webhook']['id']}/enable")
        assert (answer.json()["state"], answer.json()["failing_since"]) == ("on", None)
        await submit(client)
        await hears.until(9)


async def test_a_delivery_is_sent_again_with_the_same_id_when_somebody_asks(
    tmp_path: Path,
) -> None:
    answers = iter((status(400), status(204)))
    async with receiver(lambda _: next(answers)) as hears, stage(tmp_path, hears) as (it, client):
        made = await create(client, hears, "job.completed")
        await submit(client)
        first = await until(client, made, attempts=1, code="http-400")
        path = f"{HOOKS}/{made['webhook']['id']}"
        again = await client.post(f"{path}/deliveries/{first['id']}/redeliver")
        assert again.status_code == 202, again.text
        assert again.json()["id"] == first["id"]
        await until(client, made, state="delivered", attempts=1)
        one, other = hears.got
        assert one.id == other.id == first["id"]
        assert one.body == other.body
        assert kinds(it).count("delivery.queued") == 2
        missing = await client.post(f"{path}/deliveries/msg_none/redeliver")
        assert missing.status_code == 404
        assert (await client.post(f"{path}/disable")).status_code == 200
        refused = await client.post(f"{path}/deliveries/{first['id']}/redeliver")
        assert refused.status_code == 422
        assert "disabled" in refused.json()["detail"]


async def test_410_disables_at_once_and_a_redirect_is_not_followed(tmp_path: Path) -> None:
    def answer(one: Received) -> bytes:
        if one.message["type"] == "webhook.test":
            return status(302, "location: http://127.0.0.1:1/\r\n")
        return status(410)

    async with receiver(answer) as hears, stage(tmp_path, hears) as (it, client):
        made = await create(client, hears, "job.completed")
        path = f"{HOOKS}/{made['webhook']['id']}"
        tested = (await client.post(f"{path}/test")).json()
        assert (tested["code"], tested["status"], tested["state"]) == ("redirected", 302, "waiting")
        await submit(client)
        await until(client, made, code="gone", state="failed")
        now = await shown(client, made)
        assert (now["state"], now["waiting"]) == ("off: gone", 0)
        async with it.client(await it.key("", "operator")) as operator:
            metrics = (await operator.get("/metrics")).text
        assert "appliance_deliveries_waiting 0.0" in metrics
        assert "appliance_webhooks_disabled 1.0" in metrics
        assert {one["code"] for one in now["deliveries"]} == {"gone", "disabled"}
        refused = await client.post(f"{path}/test")
        assert (refused.status_code, refused.json()["code"]) == (422, "input-invalid")
        assert len(hears.got) == 2


async def test_a_dead_receiver_keeps_no_other_from_being_told(tmp_path: Path) -> None:
    async with (
        receiver(lambda _: None) as dead,
        receiver() as hears,
        stage(tmp_path, dead) as (it, client),
    ):
        with_clock(it, allow=(dead.origin, hears.origin), timeout_s=100)
        await create(client, dead, "job.completed")
        await create(client, hears, "job.completed")
        for number in range(12):
            await submit(client, str(number).encode())
        await hears.until(12)
        assert dead.open_most == 2


async def test_an_answer_is_read_to_a_bound_and_waited_for_to_a_deadline(tmp_path: Path) -> None:
    endless = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 300_000
    async with receiver(lambda _: endless) as hears, stage(tmp_path, hears) as (_it, client):
        made = await create(client, hears, "job.completed")
        path = f"{HOOKS}/{made['webhook']['id']}/test"
        assert (await client.post(path)).json()["code"] == "ok"
        hears.answer = lambda _: b"nonsense\r\n\r\n"
        assert (await client.post(path)).json()["code"] == "protocol"
        hears.answer = lambda _: b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000
        assert (await client.post(path)).json()["code"] == "protocol"
    async with (
        receiver(lambda _: None) as slow,
        stage(tmp_path / "b", slow, timeout_s=1) as (
            _it,
            client,
        ),
    ):
        made = await create(client, slow, "job.completed")
        path = f"{HOOKS}/{made['webhook']['id']}/test"
        assert (await client.post(path)).json()["code"] == "timeout"


async def test_two_secrets_are_in_force_for_a_while_and_the_third_ends_the_first(
    tmp_path: Path,
) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (it, client):
        first = await create(client, hears, "job.completed")
        path = f"{HOOKS}/{first['webhook']['id']}"
        second = (await client.post(f"{path}/rotate", json={})).json()
        assert second["webhook"]["secrets"] == 2
        assert (await client.post(f"{path}/test")).json()["code"] == "ok"
        for secret in (first["secret"], second["secret"]):
            standardwebhooks.Webhook(secret).verify(hears.got[0].body, hears.got[0].headers)
        third = (await client.post(f"{path}/rotate", json={"overlap_s": 0})).json()
        assert third["webhook"]["secrets"] == 1
        await client.post(f"{path}/test")
        standardwebhooks.Webhook(third["secret"]).verify(hears.got[1].body, hears.got[1].headers)
        for secret in (first["secret"], second["secret"]):
            with pytest.raises(standardwebhooks.WebhookVerificationError):
                standardwebhooks.Webhook(secret).verify(hears.got[1].body, hears.got[1].headers)
        tenant = it.store.registry.snapshot.tenant("acme")

        def keys() -> set[str]:
            return {one for one in it.store.keyring.object_ids(tenant.id) if one.startswith("sec_")}

        assert len(keys()) == 2
        assert (await client.delete(path)).status_code == 204
        assert keys() == set()
        assert (await client.get(path)).status_code == 404


async def test_no_secret_is_told_twice_or_readable_anywhere(tmp_path: Path) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (it, client):
        made = await create(client, hears, "job.completed")
        await client.post(f"{HOOKS}/{made['webhook']['id']}/rotate", json={})
        raw = made["secret"].removeprefix("whsec_")
        box = it.store.registry.snapshot.webhooks(made_tenant(it))[0].secrets[0].box
        await it.store.queries.wait(it.store.ledger.head.size, 10.0)
        for path in (HOOKS, f"{HOOKS}/{made['webhook']['id']}", "/api/v1/audit?limit=1000"):
            text = (await client.get(path)).text
            assert raw not in text
            assert box not in text
        # The rest of an address may be a secret too: it is for owners.
        async with it.client(await it.key("", "auditor")) as auditor:
            for path in (HOOKS, "/api/v1/audit?tenant=acme&limit=1000"):
                text = (await auditor.get(path)).text
                assert hears.origin in text
                assert "/in?a=1" not in text
        assert "/in?a=1" in (await client.get(HOOKS)).text
    found = b"".join(p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file())
    assert base64.b64decode(raw) not in found
    assert raw.encode() not in found
    assert str(hears.port).encode() not in found


async def test_what_waits_is_told_after_a_restart(tmp_path: Path) -> None:
    answers = [status(500), status(200)]
    async with receiver(lambda _: answers.pop(0)) as hears, stage(tmp_path, hears) as (it, client):
        made = await create(client, hears, "job.completed")
        await submit(client)
        await until(client, made, code="http-500")
        await it.node.seal()
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        with_clock(it).skip(5)
        await hears.until(2)
        assert hears.got[0].id == hears.got[1].id
        await until(client, made, state="delivered")


def made_tenant(it: Inside) -> str:
    return str(it.store.registry.snapshot.tenant("acme").id)


class Skipping:
    """The clock that decides what is due, ahead of the real one by what was skipped."""

    def __init__(self, hooks: Webhooks) -> None:
        self._real, self.ahead_s = hooks._now_ns, 0.0
        self._hooks = hooks
        hooks._now_ns = self.now_ns

    def now_ns(self) -> int:
        return int(self._real() + self.ahead_s * 1e9)

    def skip(self, seconds: float) -> None:
        self.ahead_s += seconds
        self._hooks._due_ns = 0

    async def begun(self, seconds: float) -> int:
        """Attempts that begin when so much time has passed since what is being made now."""
        async with asyncio.timeout(30):
            while self._hooks._attempts:
                await asyncio.sleep(0.01)
        self.skip(seconds)
        return self._hooks.begin_due() + len(self._hooks._attempts)


def with_clock(it: Inside, **settings: Any) -> Skipping:
    hooks = it.node.services.webhooks
    if settings:
        changed = config.replace(config.Settings(), "webhooks", **settings).webhooks
        hooks._settings = changed
        hooks._outbound = type(hooks._outbound)(changed, hooks._resolver)
    return Skipping(hooks)
