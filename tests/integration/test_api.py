"""The native contract over a real store: what it answers, and what it records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inside import PASSPHRASE, EchoSandbox, Inside, inside, without_request_id


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        await found.tenant("acme")
        yield found


async def test_whoami_tells_a_key_its_role_tenant_and_scopes(it: Inside) -> None:
    secret = await it.key("acme", "caller", scopes=["model:invoke:fraud"])
    async with it.client(secret) as client:
        me = (await client.get("/api/v1/whoami")).json()
    assert (me["role"], me["tenant"], me["scopes"]) == ("caller", "acme", ["model:invoke:fraud"])
    assert me["id"] == secret[4:13]


async def test_a_tenant_is_created_listed_and_removed(it: Inside) -> None:
    async with it.client(admin=True) as client:
        made = await client.post("/api/v1/tenants", json={"name": "beta"})
        assert made.status_code == 201
        assert made.headers["location"] == "/api/v1/tenants/beta"
        assert (await client.post("/api/v1/tenants", json={"name": "beta"})).status_code == 409
        names = [t["name"] for t in (await client.get("/api/v1/tenants")).json()["items"]]
        assert names == ["acme", "beta"]
        assert (await client.delete("/api/v1/tenants/beta")).status_code == 204
        assert (await client.get("/api/v1/tenants/beta")).status_code == 404


async def test_a_removed_tenant_leaves_no_sandbox_and_no_call_without_an_outcome(
    it: Inside,
) -> None:
    """What was decrypted for it must not outlive its key, in a sandbox least of all."""
    await it.version("acme", "m")
    path = "/api/v1/models/acme/m/invoke"
    async with it.client(await it.key("acme")) as client, it.client(admin=True) as admin:
        assert (await client.post(path, content=b"warm")).status_code == 200
        call = asyncio.create_task(client.post(path, content=b"sleep 30"))
        await asyncio.sleep(0.3)
        assert (await admin.delete("/api/v1/tenants/acme")).status_code == 204
        assert (await asyncio.wait_for(call, 30)).status_code == 502
        assert (await admin.get("/admin/v1/sandboxes")).json()["items"] == []
        entries = (await admin.get("/api/v1/audit")).json()["entries"]
    intents = {e["seq"] for e in entries if e["kind"] == "call.intent"}
    outcomes = [e["event"]["intent_seq"] for e in entries if e["kind"] == "call.outcome"]
    assert len(intents) == 2
    assert sorted(outcomes) == sorted(intents)


@pytest.mark.parametrize("what", ["models/acme/m/versions/1", "models/acme/m", "tenants/acme"])
async def test_a_sandbox_made_while_its_version_was_withdrawn_is_ended(
    it: Inside, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    await it.version("acme", "m")
    monkeypatch.setattr(EchoSandbox, "LOAD_S", 0.6)
    async with it.client(await it.key("acme")) as client, it.client(admin=True) as admin:
        call = asyncio.create_task(client.post("/api/v1/models/acme/m/invoke", content=b"x"))
        await asyncio.sleep(0.3)
        assert (await admin.delete(f"/api/v1/{what}")).status_code in (200, 204)
        assert (await call).status_code == 200
        assert (await admin.get("/admin/v1/sandboxes")).json()["items"] == []
        entries = (await admin.get("/api/v1/audit")).json()["entries"]
    assert len([e for e in entries if e["kind"] == "call.outcome"]) == 1


async def test_an_owner_sees_its_own_tenant_only(it: Inside) -> None:
    await it.tenant("beta")
    await it.version("beta", "m")
    async with it.client(await it.key("acme")) as client:
        assert [t["name"] for t in (await client.get("/api/v1/tenants")).json()["items"]] == [
            "acme"
        ]
        assert (await client.get("/api/v1/models")).json()["items"] == []


async def test_a_key_is_shown_once_and_refused_after_revocation(it: Inside) -> None:
    async with it.client(admin=True) as admin:
        made = await admin.post("/api/v1/tenants/acme/keys", json={"name": "ci", "role": "owner"})
        secret, key_id = made.json()["secret"], made.json()["id"]
        listed = await admin.get("/api/v1/tenants/acme/keys")
        assert secret not in listed.text
        assert [k["id"] for k in listed.json()["items"]] == [key_id]
        async with it.client(secret) as client:
            assert (await client.get("/api/v1/whoami")).status_code == 200
            gone = await admin.delete(f"/api/v1/tenants/acme/keys/{key_id}")
            assert gone.json()["state"] == "revoked"
            assert (await client.get("/api/v1/whoami")).status_code == 401


async def test_a_narrowed_key_cannot_issue_a_wider_one(it: Inside) -> None:
    secret = await it.key("acme", "owner", scopes=["key:create", "model:invoke:a"])
    async with it.client(secret) as client:
        path = "/api/v1/tenants/acme/keys"
        wide = {"name": "w", "role": "owner"}
        assert (await client.post(path, json=wide)).status_code == 403
        other = {"name": "w", "role": "caller", "scopes": ["model:invoke:b"]}
        assert (await client.post(path, json=other)).status_code == 403
        same = {"name": "w", "role": "caller", "scopes": ["model:invoke:a"]}
        assert (await client.post(path, json=same)).status_code == 201


async def test_what_a_narrowed_key_issues_ends_with_it_and_is_no_wider(it: Inside) -> None:
    scopes = ["key:create", "model:invoke"]
    secret = await it.key("acme", "owner", scopes=scopes, expires_in_days=2)
    async with it.client(secret) as client:
        body = {"name": "w", "role": "caller", "scopes": ["model:invoke:a"], "expires_in_days": 300}
        made = (await client.post("/api/v1/tenants/acme/keys", json=body)).json()
    own = it.store.registry.snapshot.key(secret[4:13])
    assert it.store.registry.snapshot.key(made["id"]).expires_ns == own.expires_ns
    # An admin has no right to move aliases: its narrowed key hands none out by another role.
    boss = await it.key("", "admin", scopes=["key:create", "alias:set"])
    async with it.client(boss) as client:
        body = {"name": "w", "role": "operator", "scopes": ["alias:set"]}
        assert (await client.post("/api/v1/keys", json=body)).status_code == 403


async def test_an_admins_key_gives_a_tenant_its_first_key_and_no_other(it: Inside) -> None:
    await it.tenant("fresh")
    boss = await it.key("", "admin")
    async with it.client(boss) as client:
        body = {"name": "first", "role": "owner"}
        first = await client.post("/api/v1/tenants/fresh/keys", json=body)
        assert first.status_code == 201
        assert (await client.post("/api/v1/tenants/fresh/keys", json=body)).status_code == 403
        key_id = first.json()["id"]
        assert (await client.delete(f"/api/v1/tenants/fresh/keys/{key_id}")).status_code == 200
        assert (await client.post("/api/v1/tenants/fresh/keys", json=body)).status_code == 403
    await it.key("fresh")  # the machine's owner, over the socket, may


async def test_revoking_a_key_revokes_what_it_issued_unless_told_not_to(it: Inside) -> None:
    path = "/api/v1/tenants/acme/keys"

    async def chain() -> list[str]:
        secrets = [await it.key("acme")]
        for _ in range(2):
            async with it.client(secrets[-1]) as client:
                made = await client.post(path, json={"name": "next", "role": "owner"})
                secrets.append(made.json()["secret"])
        return secrets

    first = await chain()
    async with it.client(admin=True) as admin:
        kept = await admin.delete(f"{path}/{first[0][4:13]}?issued=keep")
        assert kept.json()["also_revoked"] == []
    second = await chain()
    async with it.client(admin=True) as admin:
        gone = await admin.delete(f"{path}/{second[0][4:13]}")
        assert sorted(gone.json()["also_revoked"]) == sorted(s[4:13] for s in second[1:])
    for secret, status in ((first[1], 200), (first[2], 200), (second[1], 401), (second[2], 401)):
        async with it.client(secret) as client:
            assert (await client.get("/api/v1/whoami")).status_code == status


async def test_no_answer_shows_a_keys_hmac(it: Inside) -> None:
    secret = await it.key("acme")
    mac = it.store.registry.snapshot.key(secret[4:13]).mac
    await it.key("", "auditor")
    async with it.client(secret) as client, it.client(admin=True) as admin:
        for answer in (await client.get("/api/v1/audit"), await admin.get("/api/v1/audit")):
            assert "key.created" in answer.text
            assert '"mac"' not in answer.text
        for entry in (await admin.get("/api/v1/audit")).json()["entries"]:
            if entry["kind"] == "key.created":
                proof = await admin.get(f"/api/v1/audit/{entry['seq']}/proof")
                assert mac not in proof.text
                assert '"mac"' not in proof.text


async def test_a_tenant_asks_for_more_isolation_where_it_can_be_had_only(it: Inside) -> None:
    path = "/api/v1/tenants/acme/isolation"
    async with it.client(admin=True) as admin:
        refused = await admin.put(path, json={"isolation": "gvisor"})
        assert (refused.status_code, refused.json()["code"]) == (503, "isolation-unavailable")
        assert (await admin.put(path, json={"isolation": "weaker"})).status_code == 422
        kept = await admin.put(path, json={"isolation": "standard"})
        assert kept.json()["isolation"] == "standard"
    async with it.client(await it.key("acme")) as owner:
        assert (await owner.put(path, json={"isolation": "standard"})).status_code == 403


async def test_a_call_answers_with_the_models_bytes_and_where_they_are_recorded(
    it: Inside,
) -> None:
    await it.version("acme", "echo")
    async with it.client(await it.key("acme", "caller")) as client:
        for path in ("invoke", "versions/1/invoke", "aliases/live/invoke"):
            answer = await client.post(
                f"/api/v1/models/acme/echo/{path}",
                content=b'{"x": 1}',
                headers={"content-type": "application/json"},
            )
            assert answer.status_code == 200, answer.text
            assert answer.content == b'{"x": 1}'
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["model-version"] == "1"
            seq = int(answer.headers["audit-seq"])
    async with it.client(await it.key("acme")) as owner:
        entry = (await owner.get(f"/api/v1/audit/{seq}")).json()
    assert (entry["kind"], entry["event"]["code"]) == ("call.outcome", "ok")
    assert entry["event"]["call_id"] == answer.headers["request-id"]


async def test_a_models_stderr_is_for_its_owner_only(it: Inside) -> None:
    await it.version("acme", "echo")
    for role, shown in (("owner", True), ("caller", False)):
        async with it.client(await it.key("acme", role)) as client:
            answer = await client.post("/api/v1/models/acme/echo/invoke", content=b"raise")
            assert answer.status_code == 502
            assert answer.json()["code"] == "model-raised"
            assert ("stderr" in answer.json()) is shown
            assert "audit-seq" in answer.headers


async def test_a_body_over_the_limit_is_refused(it: Inside) -> None:
    await it.version("acme", "echo")
    async with it.client(await it.key("acme")) as client:
        path = "/api/v1/models/acme/echo/invoke"
        said = await client.post(path, content=b"", headers={"content-length": str(10 * 2**40)})
        assert said.status_code == 413

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b"x" * 1_000_000

        assert (await client.post(path, content=endless())).status_code == 413
        packed = await client.post(path, content=b"x", headers={"content-encoding": "gzip"})
        assert packed.status_code == 415
        form = await client.post(path, data={"a": "b"})
        assert form.status_code == 415
        assert "application/json" in form.json()["hint"]


async def test_a_slow_body_runs_out_of_time(tmp_path: Path) -> None:
    async with inside(tmp_path, body_timeout_s=1) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")

        async def slow() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.1)

        async with it.client(await it.key("acme")) as client:
            answer = await client.post("/api/v1/models/acme/echo/invoke", content=slow())
            assert answer.status_code == 408


async def test_a_retired_version_answers_410_and_stays_listed(it: Inside) -> None:
    await it.version("acme", "echo")
    base = "/api/v1/models/acme/echo"
    async with it.client(await it.key("acme")) as client:
        await it.version("acme", "echo")
        moved = await client.put(f"{base}/aliases/live", json={"version": 2, "reason": "new"})
        assert moved.json()["revision"] == 2
        retired = await client.delete(f"{base}/versions/1")
        assert retired.json()["state"] == "retired"
        assert (await client.post(f"{base}/versions/1/invoke")).status_code == 410
        assert (await client.delete(f"{base}/versions/1")).status_code == 410
        listed = (await client.get(f"{base}/versions")).json()["items"]
        assert [(v["version"], v["state"]) for v in listed] == [(1, "retired"), (2, "ready")]


async def test_an_alias_moves_only_from_the_revision_one_has_seen(it: Inside) -> None:
    await it.version("acme", "echo")
    await it.version("acme", "echo")
    path = "/api/v1/models/acme/echo/aliases/live"
    async with it.client(await it.key("acme")) as client:
        seen = (await client.get(path)).headers["etag"]
        body = {"version": 2, "reason": "better"}
        assert (await client.put(path, json=body, headers={"if-match": seen})).status_code == 200
        stale = await client.put(path, json=body, headers={"if-match": seen})
        assert (stale.status_code, stale.json()["code"]) == (412, "revision-stale")
        assert (await client.put(path, json=body, headers={"if-match": "x"})).status_code == 400
        assert (await client.put(path, json={"version": 9})).status_code == 422
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b"", 400, "malformed"),
        (b'{"name": NaN}', 400, "malformed"),
        (b'\xef\xbb\xbf{"name": "x"}', 400, "malformed"),
        ('{"name": "x"}'.encode("utf-16"), 400, "malformed"),
        (b'{"name": "\\ud800"}', 400, "malformed"),
        (b'{"name": ' + b"[" * 50_000, 422, "input-invalid"),
        (b'{"name": 1}', 422, "input-invalid"),
        (b'{"name": "x", "extra": 1}', 422, "input-invalid"),
        (b'{"name": "' + b"9" * 70_000 + b'"}', 413, "too-large"),
        (b'{"name": "../x"}', 422, "input-invalid"),
        (b"[]", 422, "input-invalid"),
    ],
)
async def test_bad_json_is_refused_with_a_problem(
    it: Inside, body: bytes, status: int, code: str
) -> None:
    async with it.client(admin=True) as client:
        answer = await client.post(
            "/api/v1/tenants", content=body, headers={"content-type": "application/json"}
        )
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_every_way_to_miss_is_a_problem_document(it: Inside) -> None:
    secret = await it.key("acme")
    async with it.client(secret) as client:
        cases: list[tuple[str, str, int]] = [
            ("GET", "/nope", 404),
            ("GET", "/api/v1/", 404),
            ("GET", "/api/v1/whoami/", 404),
            ("PATCH", "/api/v1/whoami", 405),
            ("OPTIONS", "/api/v1/whoami", 405),
            ("GET", "/api/v1/models/acme%2Fx", 404),
            ("GET", "/api/v1/models/acme/%2e%2e/invoke", 404),
            ("GET", "/api/v1//whoami", 404),
            ("GET", "/api/v1/whoami;x", 404),
            ("GET", "/admin/v1/status", 404),
            ("GET", "/api/v1/whoami?x=1", 400),
            ("GET", "/api/v1/audit?limit=0", 422),
            ("GET", "/api/v1/audit?kind=nonsense", 422),
            ("GET", "/api/v1/audit?limit=1&limit=2", 400),
            ("GET", "/api/v1/audit/x", 404),
            ("GET", "/api/v1/audit/999999", 404),
            ("GET", "/api/v1/models/acme/none", 404),
        ]
        for method, path, status in cases:
            answer = await client.request(method, path)
            assert answer.status_code == status, (method, path, answer.text)
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json"
            assert problem["status"] == status
            assert problem["instance"] == answer.headers["request-id"]
            assert {"type", "title", "detail", "code"} <= problem.keys()
        allowed = await client.patch("/api/v1/whoami")
        assert allowed.headers["allow"] == "GET, HEAD"
        assert (await client.head("/api/v1/whoami")).status_code == 200


async def test_a_crash_leaves_an_incident_id_and_nothing_else(
    it: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the secret reason")

    await it.version("acme", "echo")
    secret = await it.key("acme")
    object.__setattr__(it.node.services, "invoker", Broken())
    async with it.client(secret) as client:
        answer = await client.post("/api/v1/models/acme/echo/invoke", content=b"x")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret reason" not in answer.text
    assert answer.json()["instance"] in caplog.text
    assert "the secret reason" in caplog.text


async def test_refusals_are_recorded_without_the_callers_own_text(it: Inside) -> None:
    secret = await it.key("acme", "caller")
    async with it.client(secret) as client:
        refused = await client.get("/api/v1/models/acme/private-name")
        assert refused.status_code == 403
    async with it.client() as client:
        await client.get("/api/v1/models/acme/private-name")
    async with it.client(admin=True) as admin:
        for _ in range(50):
            found = (await admin.get("/api/v1/audit?kind=request.refused")).json()["entries"]
            if len(found) == 2:
                break
            await asyncio.sleep(0.05)
    assert [(e["event"]["status"], e["actor"]) for e in found] == [
        (401, "anonymous"),
        (403, secret[4:13]),
    ]
    assert found[1]["event"]["request_id"] == refused.headers["request-id"]
    assert {e["event"]["target"] for e in found} == {"/api/v1/models/{tenant}/{model}"}
    assert "private-name" not in str(found)


async def test_the_audit_is_paged_verified_and_proved(it: Inside) -> None:
    await it.version("acme", "echo")
    async with it.client(await it.key("", "auditor")) as client:
        page = (await client.get("/api/v1/audit?limit=3")).json()
        seqs = [entry["seq"] for entry in page["entries"]]
        assert seqs == sorted(seqs, reverse=True)
        assert page["head"]["size"] == seqs[0]
        onward = (await client.get(f"/api/v1/audit?after={seqs[-1]}&limit=2")).json()["entries"]
        assert [entry["seq"] for entry in onward] == [seqs[-1] + 1, seqs[-1] + 2]
        report = (await client.post("/api/v1/audit/verify")).json()
        assert report["ok"] is True
        proof = await client.get(f"/api/v1/audit/{seqs[0]}/proof")
        assert proof.status_code == 200
        assert proof.headers["content-type"].startswith("text/plain")
        assert (await client.get("/api/v1/audit/key")).json()["public_key"]


async def test_an_operator_sees_only_what_it_did(it: Inside) -> None:
    await it.version("acme", "echo")
    await it.version("acme", "echo")
    secret = await it.key("", "operator")
    async with it.client(secret) as client:
        moved = await client.put("/api/v1/models/acme/echo/aliases/live", json={"version": 2})
        assert moved.status_code == 200
        entries = (await client.get("/api/v1/audit")).json()["entries"]
        assert {entry["actor"] for entry in entries} == {secret[4:13]}
        assert (await client.get("/api/v1/audit/1")).status_code == 404
        assert (await client.post("/api/v1/models/acme/echo/invoke")).status_code == 403


async def test_health_answers_anybody_in_every_state(tmp_path: Path) -> None:
    async with inside(tmp_path, initialise=False) as it, it.client() as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/startupz")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert {x["name"]: x["status"] for x in ready.json()["lines"]}["unsealed"] == "fail"
        for path in ("/api/v1/whoami", "/api/v1/models/a/b/invoke", "/metrics"):
            method = "POST" if path.endswith("invoke") else "GET"
            refused = await client.request(method, path)
            assert (refused.status_code, refused.json()["code"]) == (503, "uninitialised")
            assert refused.headers["retry-after"]


async def test_a_sealed_appliance_offers_health_and_unseal_only(tmp_path: Path) -> None:
    async with inside(tmp_path, has_passphrase=True) as it:
        await it.tenant("acme")
        await _seal_and_unseal(it, await it.key("acme"))


async def _seal_and_unseal(it: Inside, secret: str) -> None:
    async with it.client(admin=True) as admin, it.client(secret) as client:
        assert (await admin.post("/admin/v1/seal")).json()["state"] == "sealed"
        refused = await client.get("/api/v1/whoami")
        assert (refused.status_code, refused.json()["code"]) == (503, "sealed")
        assert (await client.get("/livez")).status_code == 200
        assert (await admin.get("/admin/v1/sandboxes")).status_code == 503
        shown = (await admin.get("/admin/v1/snapshot?view=models")).json()
        assert (shown["state"], shown["rows"]) == ("sealed", [])
        wrong = await admin.post("/admin/v1/unseal", json={"passphrase": "wrong"})
        assert (wrong.status_code, wrong.json()["code"]) == (403, "unseal-failed")
        assert (await admin.post("/admin/v1/unseal", json={})).status_code == 422
        opened = await admin.post("/admin/v1/unseal", json={"passphrase": PASSPHRASE})
        assert opened.json()["state"] == "ready"
        assert (await client.get("/api/v1/whoami")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_a_folder_is_initialised_over_the_socket_once(tmp_path: Path) -> None:
    async with inside(tmp_path, initialise=False) as it, it.client(admin=True) as admin:
        body = {"passphrase": PASSPHRASE}
        assert (await admin.post("/admin/v1/init", json=body)).status_code == 201
        again = await admin.post("/admin/v1/init", json=body)
        assert (again.status_code, again.json()["code"]) == (409, "already-initialised")


async def test_metrics_name_no_tenant_and_need_a_right(it: Inside) -> None:
    await it.version("acme", "echo")
    owner = await it.key("acme")
    async with it.client(owner) as client:
        await client.post("/api/v1/models/acme/echo/invoke", content=b"x")
        assert (await client.get("/metrics")).status_code == 403
    async with it.client(await it.key("", "operator")) as client:
        answer = await client.get("/metrics")
    assert 'appliance_calls_total{code="ok"} 1.0' in answer.text
    assert "appliance_sandboxes 1.0" in answer.text
    assert "acme" not in answer.text
    assert "echo" not in answer.text.replace('"echo.', "")


async def test_the_consoles_views_have_rows_and_an_etag(it: Inside) -> None:
    await it.version("acme", "echo")
    async with it.client(await it.key("acme")) as client:
        await client.post("/api/v1/models/acme/echo/invoke", content=b"x")
    await it.store.queries.wait(it.store.ledger.head.size, 5.0)
    async with it.client(admin=True) as admin:
        counts: dict[str, int] = {}
        for view in ("dashboard", "tenants", "keys", "models", "versions", "sandboxes", "audit"):
            answer = await admin.get(f"/admin/v1/snapshot?view={view}")
            assert answer.status_code == 200, answer.text
            counts[view] = len(answer.json()["rows"])
            same = await admin.get(
                f"/admin/v1/snapshot?view={view}", headers={"if-none-match": answer.headers["etag"]}
            )
            if view != "sandboxes":
                assert same.status_code == 304, view
                assert same.content == b""
        audit = counts.pop("audit")
        assert counts == {
            "dashboard": 1, "tenants": 1, "keys": 1, "models": 1, "versions": 1, "sandboxes": 1,
        }  # fmt: skip
        assert audit > 5
        assert (await admin.get("/admin/v1/snapshot?view=none")).status_code == 422


async def test_a_sandbox_is_listed_and_stopped(it: Inside) -> None:
    await it.version("acme", "echo")
    async with it.client(await it.key("acme")) as client:
        await client.post("/api/v1/models/acme/echo/invoke", content=b"x")
    async with it.client(admin=True) as admin:
        (row,) = (await admin.get("/admin/v1/sandboxes")).json()["items"]
        assert (row["tenant"], row["model"], row["version"]) == ("acme", "echo", 1)
        assert (await admin.delete("/admin/v1/sandboxes/none")).status_code == 404
        assert (await admin.delete(f"/admin/v1/sandboxes/{row['id']}")).status_code == 204
        assert (await admin.get("/admin/v1/sandboxes")).json()["items"] == []


async def test_the_admin_socket_refuses_other_users(it: Inside) -> None:
    async with it.client(admin=True, uid=12345) as client:
        assert (await client.get("/admin/v1/status")).status_code == 401
        assert (await client.get("/livez")).status_code == 200


async def test_config_and_checks_and_a_backup_are_served(it: Inside, tmp_path: Path) -> None:
    async with it.client(admin=True) as admin:
        assert "items" in (await admin.get("/admin/v1/config")).json()
        checks = (await admin.get("/admin/v1/checks")).json()["items"]
        assert "ledger" in {check["name"] for check in checks}
        made = await admin.post("/admin/v1/backup", json={"path": str(tmp_path / "b.backup")})
        assert made.status_code == 201, made.text
        assert made.json()["digest"]
        assert (await admin.post("/admin/v1/backup", json={"path": "rel"})).status_code == 422


async def test_problems_docs_and_openapi_are_served_offline(it: Inside) -> None:
    async with it.client() as client:
        slugs = [p["code"] for p in (await client.get("/problems")).json()["items"]]
        assert "not-found" in slugs
        for slug in slugs:
            page = await client.get(f"/problems/{slug}", headers={"accept": "text/html"})
            assert page.status_code == 200
        assert (await client.get("/problems/none")).status_code == 404
        docs = await client.get("/docs")
        assert "//" not in docs.text.replace("https://a", "").replace("<!--", "")
        assert "<script" not in docs.text
        assert "sha256-" in docs.headers["content-security-policy"]
        described = (await client.get("/openapi.json")).json()
        assert described["openapi"] == "3.1.0"
        assert "/admin/v1/status" not in described["paths"]
    async with it.client(admin=True) as admin:
        assert "/admin/v1/status" in (await admin.get("/openapi.json")).json()["paths"]


async def test_every_answer_carries_the_protective_headers(it: Inside) -> None:
    async with it.client() as client:
        for path in ("/livez", "/nope", "/api/v1/whoami", "/docs"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["request-id"].startswith("req_")
            assert "server" not in headers
        refused = await client.get("/api/v1/whoami")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert without_request_id(refused) == without_request_id(await client.get("/api/v1/whoami"))
