"""Routes through HTTP: who answers, who may change what, what is refused, kept and returned to."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside

MODEL = "/api/v1/models/acme/m"
ROUTE = MODEL + "/route"


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        await found.tenant("acme")
        for _ in range(3):
            await found.version("acme", "m")
        yield found


def body(*arms: tuple[int, float], **more: Any) -> dict[str, Any]:
    return {"arms": [{"version": n, "percent": p} for n, p in arms], **more}


async def answered_by(client: Any, calls: int, **headers: str) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(calls):
        reply = await client.post(MODEL + "/invoke", content=b"x", headers=headers)
        assert reply.status_code == 200, reply.text
        found[int(reply.headers["model-version"])] += 1
    return found


async def test_without_a_route_live_answers_and_with_one_the_route_does(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        assert (await client.get(ROUTE)).status_code == 404
        assert await answered_by(client, 3) == {1: 3}
        made = await client.put(ROUTE, json=body((1, 50), (3, 50), reason="trying 3"))
        assert made.status_code == 200, made.text
        assert made.headers["etag"] == '"1"'
        found = await answered_by(client, 60)
        assert set(found) == {1, 3}
        await client.put(ROUTE, json=body((2, 100)))
        assert await answered_by(client, 5) == {2: 5}
        by_number = await client.post(MODEL + "/versions/3/invoke", content=b"x")
        assert by_number.headers["model-version"] == "3"
        by_alias = await client.post(MODEL + "/aliases/live/invoke", content=b"x")
        assert by_alias.headers["model-version"] == "1"
        entry = await client.get(f"/api/v1/audit/{by_number.headers['audit-seq']}")
        assert entry.json()["event"]["route_revision"] == 0
        routed = await client.post(MODEL + "/invoke", content=b"x")
        entry = await client.get(f"/api/v1/audit/{routed.headers['audit-seq']}")
        assert entry.json()["event"]["route_revision"] == 2
        assert (await client.delete(ROUTE)).status_code == 204
        assert await answered_by(client, 3) == {1: 3}


async def test_a_sticky_key_keeps_its_arm_and_a_growing_canary_only_takes(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await client.put(ROUTE, json=body((1, 100), sticky="header:x-user"))
        homes: dict[str, int] = {f"user-{n}": 1 for n in range(40)}
        for share in (20, 20, 60, 100):
            await client.put(ROUTE, json=body((1, 100 - share), (2, share), sticky="header:x-user"))
            for user, home in homes.items():
                found = await answered_by(client, 2, **{"x-user": user})
                assert len(found) == 1
                (now,) = found
                assert now in (home, 2)
                homes[user] = now
            if share == 20:
                assert set(homes.values()) == {1, 2}
        assert set(homes.values()) == {2}


async def test_a_route_sticky_by_key_gives_each_key_one_version(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await client.put(ROUTE, json=body((1, 50), (2, 50), sticky="key"))
        homes = set()
        for _ in range(12):
            async with it.client(await it.key("acme", "caller")) as caller:
                found = await answered_by(caller, 3)
            assert len(found) == 1
            homes |= set(found)
        assert homes == {1, 2}


async def test_the_open_inference_protocol_follows_the_route(it: Inside) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}
    async with it.client(await it.key("acme")) as client:
        await client.put(ROUTE, json=body((3, 100)))
        reply = await client.post("/t/acme/v2/models/m/infer", json={"inputs": [tensor]})
        assert (reply.status_code, reply.json()["model_version"]) == (200, "3")


@pytest.mark.parametrize(
    ("wrong", "pointer", "words"),
    [
        (body((1, 90), (2, 5)), "/arms", "sum to 95 percent, not 100"),
        (body((1, 90), (9, 10)), "/arms/1/version", "no version 9; the newest is 3"),
        (body((1, 33.333), (2, 66.667)), "/arms/0/percent", "multiple of 0.01"),
        (body((1, 100), shadows=[7]), "/shadows/0", "no version 7"),
        (body((1, 90), (2, 10), canary={"version": 3}), "/canary/version", "not one of the arms"),
    ],
)
async def test_a_route_that_cannot_be_is_refused_with_the_field(
    it: Inside, wrong: dict[str, Any], pointer: str, words: str
) -> None:
    async with it.client(await it.key("acme")) as client:
        refused = await client.put(ROUTE, json=wrong)
        assert (refused.status_code, refused.json()["code"]) == (422, "route-invalid")
        errors = {one["pointer"]: one["detail"] for one in refused.json()["errors"]}
        assert words in errors[pointer]
        assert (await client.get(ROUTE)).status_code == 404


async def test_a_stale_revision_says_who_changed_it_and_when(it: Inside) -> None:
    async with (
        it.client(await it.key("acme")) as one,
        it.client(await it.key("acme")) as other,
    ):
        assert (
            await one.put(ROUTE, json=body((1, 100)), headers={"if-match": '"1"'})
        ).status_code == 412
        made = await one.put(ROUTE, json=body((1, 100)), headers={"if-match": '"0"'})
        assert made.status_code == 200
        await other.put(ROUTE, json=body((2, 100), reason="mine"), headers={"if-match": '"1"'})
        for verb, path, more in (
            ("PUT", ROUTE, {"json": body((3, 100))}),
            ("POST", ROUTE + "/hold", {"json": {}}),
            ("DELETE", ROUTE, {}),
        ):
            stale = await one.request(verb, path, headers={"if-match": '"1"'}, **more)
            problem = stale.json()
            who = (await other.get("/api/v1/whoami")).json()["id"]
            assert (stale.status_code, problem["code"]) == (412, "revision-stale")
            assert (problem["set_by"], problem["revision"]) == (who, 2)
            assert who in problem["detail"]
            assert problem["set_at"] in problem["detail"]
            assert "mine" in problem["detail"]


async def test_verbs_are_revisions_and_back_undoes_the_last(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await client.put(ROUTE, json=body((1, 90), (2, 10), sticky="key"))
        held = (await client.post(ROUTE + "/hold", json={"reason": "night"})).json()
        assert (held["state"], held["revision"]) == ("held", 2)
        aborted = (await client.post(ROUTE + "/abort", json={"reason": "bad"})).json()
        assert [(a["version"], a["percent"]) for a in aborted["arms"]] == [(1, 100), (2, 0)]
        assert aborted["state"] == "aborted"
        back = (await client.post(ROUTE + "/back", json={})).json()
        assert (back["state"], back["revision"], back["sticky"]) == ("held", 4, "key")
        assert [a["percent"] for a in back["arms"]] == [90, 10]
        promoted = (await client.post(ROUTE + "/promote", json={"reason": "good"})).json()
        assert (promoted["state"], promoted["arms"]) == (
            "promoted",
            [{"version": 2, "percent": 100}],
        )
        assert (await client.get(ROUTE)).status_code == 404
        live = (await client.get(MODEL + "/aliases/live")).json()
        assert (live["version"], live["reason"]) == (2, "good")
        assert await answered_by(client, 3) == {2: 3}
        again = (await client.post(ROUTE + "/back", json={})).json()
        assert [a["percent"] for a in again["arms"]] == [90, 10]
        items = (await client.get(ROUTE + "/history")).json()["items"]
        assert [i["state"] for i in items] == [
            "held", "promoted", "held", "aborted", "held", "active",
        ]  # fmt: skip
        assert [i["revision"] for i in items] == [6, 5, 4, 3, 2, 1]
        entries = (await client.get("/api/v1/audit?limit=200")).json()["entries"]
    kinds = Counter(e["kind"] for e in entries if e["kind"].startswith(("route.", "alias.")))
    assert kinds == {"route.set": 5, "route.removed": 1, "alias.set": 2}


async def test_back_from_the_first_revision_is_no_route(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        assert (await client.post(ROUTE + "/back", json={})).status_code == 404
        assert (await client.post(ROUTE + "/hold", json={})).status_code == 404
        await client.put(ROUTE, json=body((2, 100)))
        assert (await client.post(ROUTE + "/back", json={})).json()["state"] == "removed"
        assert await answered_by(client, 2) == {1: 2}


async def test_promoting_among_several_needs_a_name(it: Inside) -> None:
    async with it.client(await it.key("acme")) as client:
        await client.put(ROUTE, json=body((1, 80), (2, 10), (3, 10)))
        unsaid = await client.post(ROUTE + "/promote", json={})
        assert (unsaid.status_code, unsaid.json()["code"]) == (422, "route-invalid")
        assert "1, 2, 3" in unsaid.json()["detail"]
        assert (await client.post(ROUTE + "/promote", json={"version": 3})).status_code == 200
        assert await answered_by(client, 2) == {3: 2}


async def test_a_routed_version_is_not_retired_and_a_retired_one_names_its_successor(
    it: Inside,
) -> None:
    async with it.client(await it.key("acme")) as client:
        await client.put(ROUTE, json=body((1, 90), (2, 10), shadows=[3]))
        for number, words in ((2, "an arm with 10 percent"), (3, "a shadow")):
            refused = await client.delete(f"{MODEL}/versions/{number}")
            assert (refused.status_code, refused.json()["code"]) == (409, "version-routed")
            assert words in refused.json()["detail"]
            assert "route" in refused.json()["hint"]
        await client.put(ROUTE, json=body((1, 100)))
        assert (await client.delete(f"{MODEL}/versions/2")).status_code == 200
        refused = await client.put(ROUTE, json=body((1, 90), (2, 10)))
        assert "version 2 is retired" in refused.json()["detail"]
        refused = await client.post(ROUTE + "/back", json={})
        assert "version 2 is retired" in refused.json()["detail"]
        gone = await client.post(f"{MODEL}/versions/2/invoke", content=b"x")
        assert (gone.status_code, gone.json()["code"]) == (410, "gone")
        assert gone.json()["successor"] == 1
        where = f"https://a{MODEL}/versions/1/invoke"
        assert gone.json()["successor_url"] == where
        assert gone.headers["link"] == f'<{where}>; rel="successor-version"'


async def test_only_those_with_the_right_change_a_route(it: Inside) -> None:
    for role, status in (("caller", 403), ("owner", 200)):
        async with it.client(await it.key("acme", role)) as client:
            assert (await client.put(ROUTE, json=body((1, 100)))).status_code == status
    for role, status in (("auditor", 403), ("operator", 200), ("admin", 403)):
        async with it.client(await it.key("", role)) as client:
            assert (await client.put(ROUTE, json=body((1, 100)))).status_code == status
            assert (await client.get(ROUTE)).status_code == 200
    async with it.client(await it.key("acme", "owner", scopes=["route:set:other"])) as client:
        assert (await client.put(ROUTE, json=body((1, 100)))).status_code == 403
    await it.tenant("rival")
    async with it.client(await it.key("rival")) as client:
        assert (await client.get(ROUTE)).status_code == 404


async def test_a_route_survives_a_restart_and_ends_with_its_model(tmp_path: Path) -> None:
    async with inside(tmp_path) as it:
        await it.tenant("acme")
        for _ in range(2):
            await it.version("acme", "m")
        async with it.client(await it.key("acme")) as client:
            await client.put(ROUTE, json=body((1, 50), (2, 50), sticky="key"))
            before = (await client.get(ROUTE)).json()
    for forget in (False, True):
        if forget:
            (tmp_path / "data/registry.snap").unlink()
        async with inside(tmp_path, initialise=False) as it:
            await it.node.unseal(key_file=tmp_path / "unseal.key")
            async with it.client(await it.key("acme")) as client:
                assert (await client.get(ROUTE)).json() == before
    async with inside(tmp_path, initialise=False) as it:
        await it.node.unseal(key_file=tmp_path / "unseal.key")
        async with it.client(await it.key("acme")) as client:
            assert (await client.delete(MODEL)).status_code == 204
            await it.version("acme", "m")
            assert (await client.get(ROUTE)).status_code == 404
