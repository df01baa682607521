"""Models that call models: the caller's rights, what is declared, limits, and what is on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inside import Inside, inside, without_request_id

from appliance.auth.recorded import principal_of
from appliance.records import CallLimits

TEXT = {"Content-Type": "text/plain"}


@asynccontextmanager
async def stage(folder: Path, **sandbox: Any) -> AsyncIterator[tuple[Inside, Any]]:
    """``outer`` may call ``inner``, and ``loop`` itself."""
    async with inside(folder, sandbox=sandbox) as it:
        await it.tenant("acme")
        await it.version("acme", "inner")
        await it.version("acme", "outer", calls=("inner", "secret", "gone@live"))
        await it.version("acme", "loop", calls=("loop",))
        async with it.client(await it.key("acme")) as client:
            yield it, client


async def call(client: Any, model: str, body: str) -> Any:
    path = f"/api/v1/models/acme/{model}/invoke"
    return await client.post(path, content=body.encode(), headers=TEXT)


async def outcomes(client: Any) -> list[dict[str, Any]]:
    page = (await client.get("/api/v1/audit", params={"kind": "call.outcome"})).json()
    return [entry["event"] for entry in reversed(page["entries"])]


async def test_a_model_calls_a_model_and_both_are_on_record_parent_and_root(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        answer = await call(client, "outer", "call inner hello")
        assert (answer.status_code, answer.text) == (200, "hello")
        assert answer.headers["model-version"] == "1"
        root = answer.headers["request-id"]
        inner, outer = await outcomes(client)
        assert (inner["parent"], inner["root"]) == (root, root)
        assert (outer["call_id"], outer["parent"], outer["root"]) == (root, "", root)
        intents = (await client.get("/api/v1/audit", params={"kind": "call.intent"})).json()
        assert [e["event"]["parent"] for e in intents["entries"]] == [root, ""]
        assert len({e["actor"] for e in intents["entries"]}) == 1


async def test_a_call_without_calls_has_neither_parent_nor_root(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        await call(client, "inner", "hello")
        (own,) = await outcomes(client)
        assert (own["parent"], own["root"]) == ("", "")


async def test_what_a_manifest_does_not_declare_is_not_called(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await it.tenant("rival")
        await it.version("rival", "inner")
        for target in ("loop", "gone", "gone:1", "rival/inner", "../inner", "inner@", "", "x" * 99):
            answer = await call(client, "outer", f"call {target} hello")
            assert answer.text.startswith("refused: call-undeclared: "), (target, answer.text)
        assert (await call(client, "outer", "call gone@live hello")).text.startswith(
            "refused: not-found"
        )
        assert len([one for one in await outcomes(client) if one["parent"]]) == 0
        # A version that declares nothing has no such way: it is the end of its sandbox.
        answer = await call(client, "inner", "call inner hello")
        assert (answer.status_code, answer.json()["code"]) == (502, "runner-protocol")


async def test_a_declared_model_is_called_by_version_and_alias(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await it.version("acme", "inner")
        for target, number in (("inner", 1), ("inner:2", 2), ("inner@live", 1)):
            assert (await call(client, "outer", f"call {target} at {number} ok")).text == "ok"
        assert "not-found" in (await call(client, "outer", "call inner:9 x")).text
        await it.store.registry.retire_version(
            model_id=it.store.registry.snapshot.model(
                it.store.registry.snapshot.tenant("acme").id, "inner"
            ).id,
            number=2,
            actor="uid:0",
        )
        assert "refused: gone" in (await call(client, "outer", "call inner:2 x")).text


async def test_a_call_has_its_callers_rights_and_never_more(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, _client):
        await it.version("acme", "secret")
        narrow = await it.key("acme", "caller", scopes=["model:invoke:outer", "model:invoke:inner"])
        async with it.client(narrow) as client:
            assert (await call(client, "outer", "call inner ok")).text == "ok"
            assert (await call(client, "secret", "x")).status_code == 403
            told = (await call(client, "outer", "call secret x")).text
            assert told.startswith("refused: forbidden: ")


async def test_a_key_revoked_meanwhile_lends_no_more_rights(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, _client):
        async with it.client(await it.key("acme", "caller")) as client:
            me = (await client.get("/api/v1/whoami")).json()["id"]
        snapshot = it.store.registry.snapshot
        version = snapshot.version(snapshot.model(snapshot.tenant("acme").id, "outer").id, 1)
        arguments = {
            "principal_id": me,
            "version": version,
            "content_type": "text/plain",
            "body": b"call inner hello",
        }
        run = it.node.services.invoker.run
        assert (await run(request_id="call_a", **arguments)).reply == b"hello"
        await it.store.registry.revoke_key(key_id=me, actor="uid:0")
        assert (await run(request_id="call_b", **arguments)).reply.startswith(
            b"refused: forbidden: Whoever began"
        )


def test_who_a_recorded_principal_is_now() -> None:
    class Registry:
        def key(self, _key_id: str) -> None:
            return None

        def tenant_by_id(self, _tenant_id: str) -> None:
            return None

    peer = principal_of("uid:0", Registry())
    assert peer is not None
    assert peer.kind == "peer"
    assert principal_of("appliance", Registry()) is None
    assert principal_of("uid:0x", Registry()) is None


async def test_what_an_inner_model_said_is_told_to_owners_only(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        told = (await call(client, "outer", "call inner raise")).text
        assert told == "refused: model-raised: ValueError: no"
        async with it.client(await it.key("acme", "caller")) as other:
            told = (await call(other, "outer", "call inner raise")).text
            assert told.startswith("refused: model-raised: ")
            assert "ValueError" not in told


async def test_a_model_that_leads_back_to_itself_ends_at_the_depth(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=8, instances_max=16) as (_it, client):
        answer = await call(client, "loop", "call loop " * 3 + "ok")
        assert answer.text == "ok"
        answer = await call(client, "loop", "call loop " * 9 + "ok")
        assert answer.text.startswith("refused: call-limit-reached: ")
        assert "level 4" in answer.text
        last = (await outcomes(client))[-4:]
        assert [one["parent"] != "" for one in last] == [True, True, True, False]
        assert len({one["root"] for one in last}) == 1


async def test_the_appliances_own_limits_hold_over_the_manifests(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=8, instances_max=16) as (it, client):
        await it.version(
            "acme", "deep", calls=("deep",), limits=CallLimits(call_depth_max=16, calls_max=1000)
        )
        answer = await call(client, "deep", "call deep " * 9 + "ok")
        assert "level 5" in answer.text  # calls.depth_max is 4


async def test_calls_that_hold_every_sandbox_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_max=1) as (_it, client):
        async with asyncio.timeout(30):  # queue_timeout_s is 60
            answer = await call(client, "outer", "call inner hello")
        assert answer.text.startswith("refused: capacity-exhausted: Every sandbox")
        assert (await call(client, "inner", "still here")).text == "still here"


async def test_a_model_that_calls_itself_does_not_wait_for_its_own_sandbox(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=1) as (_it, client):
        async with asyncio.timeout(30):
            answer = await call(client, "loop", "call loop hello")
        assert answer.text.startswith("refused: capacity-exhausted: Every sandbox")


async def test_many_outer_calls_at_once_all_find_a_sandbox_for_their_inner_one(
    tmp_path: Path,
) -> None:
    sandbox = {"instances_max": 4, "instances_per_version_max": 4}
    async with stage(tmp_path, **sandbox) as (_it, client):
        async with asyncio.timeout(50):
            calls = [call(client, "outer", f"call inner {n}") for n in range(24)]
            answers = await asyncio.gather(*calls)
        assert [answer.text for answer in answers] == [str(n) for n in range(24)]


async def test_an_inner_call_ends_with_the_outer_one(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await it.version(
            "acme", "short", calls=("inner",), limits=CallLimits(invoke_timeout_ms=300)
        )
        headers = {**TEXT, "Prefer": "respond-async"}
        path = "/api/v1/models/acme/outer/invoke"
        job = (await client.post(path, content=b"call inner sleep 600", headers=headers)).json()
        for _ in range(1500):
            page = (await client.get("/api/v1/audit", params={"kind": "call.intent"})).json()
            if len(page["entries"]) == 2:
                break
            await asyncio.sleep(0.02)
        await client.post(f"/api/v1/jobs/acme/{job['id']}/cancel")
        inner, outer = await outcomes(client)
        assert (inner["code"], outer["code"]) == ("cancelled", "cancelled")
        assert inner["parent"] == outer["call_id"] == job["id"]


async def test_a_job_calls_with_the_rights_of_whoever_submitted_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_it, client):
        headers = {**TEXT, "Prefer": "respond-async"}
        path = "/api/v1/models/acme/outer/invoke"
        job = (await client.post(path, content=b"call inner hello", headers=headers)).json()
        for _ in range(10):
            job = (await client.get(job["urls"]["get"], params={"wait_s": 5})).json()
            if job["status"] == "succeeded":
                break
        assert (await client.get(job["urls"]["output"])).text == "hello"
        inner, outer = await outcomes(client)
        assert inner["root"] == outer["call_id"] == job["id"]


async def test_an_inner_call_goes_where_its_models_route_sends_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as (it, client):
        await it.version("acme", "inner")
        arms = [{"version": 2, "percent": 100}]
        made = await client.put("/api/v1/models/acme/inner/route", json={"arms": arms})
        assert made.status_code in (200, 201), made.text
        assert (await call(client, "outer", "call inner at 2 ok")).text == "ok"
        inner, _outer = await outcomes(client)
        assert (inner["number"], inner["route_revision"]) == (2, 1)


async def test_any_id_of_calls_that_belong_together_shows_them_all(tmp_path: Path) -> None:
    async with stage(tmp_path, instances_per_version_max=4) as (it, client):
        answer = await call(client, "loop", "call loop call loop x")
        root = answer.headers["request-id"]
        path = "/api/v1/audit/calls/"
        tree = (await client.get(path + root)).json()
        assert tree["root"] == root
        assert [(one["depth"], one["model"], one["code"]) for one in tree["calls"]] == [
            (depth, "loop", "ok") for depth in range(3)
        ]
        assert [one["parent"] for one in tree["calls"]] == [
            "",
            *(one["call"] for one in tree["calls"][:2]),
        ]
        for one in tree["calls"]:
            assert (await client.get(path + one["call"])).json() == tree
            entry = (await client.get(f"/api/v1/audit/{one['audit_seq']}")).json()
            assert entry["event"]["call_id"] == one["call"]
        await it.tenant("rival")
        async with it.client(await it.key("rival")) as other:
            theirs = await other.get(path + root)
            assert without_request_id(theirs) == without_request_id(await other.get(path + "x"))
            assert theirs.status_code == 404
        alone = await call(client, "inner", "x")
        assert (await client.get(path + alone.headers["request-id"])).status_code == 404
