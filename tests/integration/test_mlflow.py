"""MLflow's contract: the requests its client sends, against the product without containers."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inside import EchoSandbox, Inside, inside
from mlflow_client import FILES, ROOT, Caller
from running import ECHO_MODEL

from appliance.api.mlflow import registered
from appliance.tracked import DEFAULT_GROUP

PROMPTS = "tag.`mlflow.prompt.is_prompt` != 'true'"


@dataclass
class Stage:
    it: Inside
    caller: Caller
    folder: Path

    async def ready(self, name: str, version: str) -> dict[str, Any]:
        """A version once it is no longer pending."""
        snapshot = self.it.store.registry.snapshot
        tenant = snapshot.tenant("acme")
        model = snapshot.model(tenant.id, name)
        promise = snapshot.tracking(tenant.id).promise(model.id, int(version))
        await self.it.node.services.intake.settled(tenant.id, promise, 30.0)
        return (await self.caller.get("/model-versions/get", name=name, version=version))[
            "model_version"
        ]

    async def registered(self, name: str = "m", **more: Any) -> dict[str, Any]:
        """A version of the echo model, as ``log_model(registered_model_name=)`` makes one."""
        draft = await self.caller.log_model(ECHO_MODEL)
        if self.it.store.registry.snapshot.model(self.tenant_id, name) is None:
            await self.caller.post("/registered-models/create", name=name)
        made = await self.caller.post(
            "/model-versions/create", name=name, source=f"models:/{draft}", **more
        )
        return await self.ready(name, made["model_version"]["version"])

    @property
    def tenant_id(self) -> str:
        return str(self.it.store.registry.snapshot.tenant("acme").id)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with inside(tmp_path) as it:
        runtime = tmp_path / "data" / "runtimes" / "python3.11-000000000000"
        (runtime / "rootfs").mkdir(parents=True)
        about = {"name": "python3.11", "digest": "sha256:0", "packages": [], "built_at": "2026"}
        (runtime / "runtime.json").write_text(json.dumps(about))
        await it.tenant("acme")
        async with it.client(await it.key("acme")) as client:
            yield Stage(it=it, caller=Caller(client), folder=tmp_path)


async def console_rows(stage: Stage, view: str) -> list[dict[str, Any]]:
    async with stage.it.client(admin=True) as admin:
        answer = await admin.get("/admin/v1/snapshot", params={"view": view})
    return list(answer.json()["rows"])


async def test_a_logged_model_becomes_a_version_that_can_be_called(stage: Stage) -> None:
    caller = stage.caller
    run = (await caller.post("/runs/create", experiment_id=DEFAULT_GROUP))["run"]["info"]
    version = await stage.registered(run_id=run["run_id"], description="first")
    assert (version["status"], version["version"]) == ("READY", "1")
    assert (version["run_id"], version["description"]) == (run["run_id"], "first")
    assert version["model_id"].startswith("m-")
    assert version["aliases"] == ["live"]
    kept = stage.it.store.registry.snapshot.versions(
        stage.it.store.registry.snapshot.model(stage.tenant_id, "m").id
    )[0]
    assert kept.manifest.lineage.run == run["run_id"]
    for path in ("/api/v1/models/acme/m/invoke", "/api/v1/models/acme/m/versions/1/invoke"):
        assert (await caller.client.post(path, content=b"x")).content == b"x"
    body = {"instances": [[1.0]]}
    called = await caller.client.post("/t/acme/models/m/invocations", json=body)
    assert called.json() == {"predictions": body}
    assert called.headers["model-version"] == "1"


async def test_what_cannot_be_registered_keeps_its_number_and_its_reason(stage: Stage) -> None:
    caller = stage.caller
    draft = await caller.log_model({"appliance.toml": b'runtime = "python3.11"\nentri = "x"\n'})
    await caller.post("/registered-models/create", name="m")
    await caller.post("/model-versions/create", name="m", source=f"models:/{draft}")
    failed = await stage.ready("m", "1")
    assert failed["status"] == "FAILED_REGISTRATION"
    assert "entri" in failed["status_message"]
    native = await caller.client.get("/api/v1/models/acme/m/versions/1")
    assert native.status_code == 404
    assert native.json()["detail"].startswith("Version 1 could not be registered: ")
    assert "entri" in native.json()["detail"]
    listed = (await caller.client.get("/api/v1/models/acme/m/versions")).json()
    (promised,) = listed["promised"]
    assert (listed["items"], promised["version"], promised["state"]) == ([], 1, "failed")
    assert (promised["source"], "entri" in promised["reason"]) == (f"models:/{draft}", True)
    (row,) = await console_rows(stage, "versions")
    assert (row["version"], row["state"], "entri" in row["reason"]) == (1, "failed", True)
    await caller.refused(
        "POST", f"{ROOT}/registered-models/alias", 422,
        json={"name": "m", "alias": "best", "version": "1"},
    )  # fmt: skip
    assert (await stage.registered())["version"] == "2"
    failing = await caller.post("/model-versions/create", name="m", source=f"models:/{draft}")
    assert (await stage.ready("m", "3"))["status"] == "FAILED_REGISTRATION", failing
    assert (await caller.client.delete("/api/v1/models/acme/m/versions/3")).status_code == 204
    listed = (await caller.client.get("/api/v1/models/acme/m/versions")).json()
    assert [one["version"] for one in listed["promised"]] == [1]
    live = await caller.get("/registered-models/alias", name="m", alias="live")
    assert live["model_version"]["version"] == "2"
    await caller.delete("/model-versions/delete", name="m", version="1")
    found = await caller.get("/model-versions/search", filter="name = 'm'")
    assert [one["version"] for one in found["model_versions"]] == ["2"]
    assert (await stage.registered())["version"] == "4"
    retired = await caller.client.delete("/api/v1/models/acme/m/versions/2")
    assert retired.json()["version"] == 2
    snapshot = stage.it.store.registry.snapshot
    model = snapshot.model(stage.tenant_id, "m")
    assert [bool(one.retired_ns) for one in snapshot.versions(model.id)] == [True, False]


async def test_a_restart_takes_up_what_was_promised(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, node = stage.caller, stage.it.node
    draft = await caller.log_model(ECHO_MODEL)
    await caller.post("/registered-models/create", name="m")
    monkeypatch.setattr(EchoSandbox, "LOAD_S", 3600.0)
    monkeypatch.setattr(registered, "SETTLE_S", 0.0)
    made = await caller.post("/model-versions/create", name="m", source=f"models:/{draft}")
    assert made["model_version"]["status"] == "PENDING_REGISTRATION"
    native = await caller.client.get("/api/v1/models/acme/m/versions/1")
    assert (native.status_code, "is not registered yet" in native.json()["detail"]) == (404, True)
    (row,) = await console_rows(stage, "versions")
    assert (row["state"], row["reason"]) == ("pending", "")
    await caller.refused(
        "POST", f"{ROOT}/registered-models/alias", 422,
        json={"name": "m", "alias": "best", "version": "1"},
    )  # fmt: skip
    await node.seal()
    monkeypatch.setattr(EchoSandbox, "LOAD_S", 0.0)
    await node.unseal(key_file=stage.folder / "unseal.key")
    assert (await stage.ready("m", "1"))["status"] == "READY"


async def test_a_file_that_no_address_can_name_is_refused_with_the_reason(stage: Stage) -> None:
    run = (await stage.caller.post("/runs/create", experiment_id=DEFAULT_GROUP))["run"]["info"]
    below = f"{FILES}/0/{run['run_id']}/artifacts"
    kept = await stage.caller.client.put(f"{below}/epoch=3,loss+0.1@best.ckpt", content=b"x")
    assert kept.status_code == 200, kept.text
    for name in ("with%20space.png", ".hidden", "a%2fb"):
        refused = await stage.caller.client.put(f"{below}/{name}", content=b"x")
        assert refused.status_code == 404
        assert "no spaces" in refused.json()["hint"], name


async def test_prompts_are_refused_before_a_model_has_their_name(stage: Stage) -> None:
    told = await stage.caller.refused(
        "POST", f"{ROOT}/registered-models/create", 422,
        json={"name": "p", "tags": [{"key": "mlflow.prompt.is_prompt", "value": "true"}]},
    )  # fmt: skip
    assert "Prompts of MLflow are not kept here" in told
    await stage.caller.refused("GET", f"{ROOT}/registered-models/get?name=p", 404)


async def test_aliases_tags_and_descriptions_change_and_versions_do_not(stage: Stage) -> None:
    caller = stage.caller
    first = await stage.registered()
    await stage.registered()
    before = (await caller.client.get("/api/v1/models/acme/m/versions/1")).json()
    await caller.post("/registered-models/alias", name="m", alias="champion", version="1")
    await caller.post("/registered-models/alias", name="m", alias="champion", version="2")
    native = (await caller.client.get("/api/v1/models/acme/m/aliases/champion")).json()
    assert (native["version"], native["revision"]) == (2, 2)
    await caller.post("/registered-models/set-tag", name="m", key="team", value="risk")
    await caller.post("/model-versions/set-tag", name="m", version="1", key="ok", value="yes")
    await caller.patch("/registered-models/update", name="m", description="about m")
    await caller.patch("/model-versions/update", name="m", version="1", description="about 1")
    model = (await caller.get("/registered-models/get", name="m"))["registered_model"]
    assert model["description"] == "about m"
    assert model["tags"] == [{"key": "team", "value": "risk"}]
    assert {"alias": "champion", "version": "2"} in model["aliases"]
    version = (await caller.get("/model-versions/get", name="m", version="1"))["model_version"]
    assert (version["description"], version["tags"]) == ("about 1", [{"key": "ok", "value": "yes"}])
    assert version["source"] == first["source"]
    assert (await caller.client.get("/api/v1/models/acme/m/versions/1")).json() == before
    await caller.delete("/model-versions/delete-tag", name="m", version="1", key="ok")
    await caller.delete("/registered-models/delete-tag", name="m", key="team")
    gone = await caller.refused(
        "DELETE", f"{ROOT}/registered-models/delete-tag", 404, json={"name": "m", "key": "team"}
    )
    assert gone.startswith("RESOURCE_DOES_NOT_EXIST")
    await caller.delete("/registered-models/alias", name="m", alias="champion")
    await caller.delete("/registered-models/alias", name="m", alias="champion")
    await caller.refused(
        "GET", f"{ROOT}/registered-models/alias", 404, params={"name": "m", "alias": "champion"}
    )


async def test_stages_are_aliases_of_one_version_each(stage: Stage) -> None:
    caller = stage.caller
    await stage.registered()
    await stage.registered()

    async def move(version: str, to: str, **more: Any) -> str:
        moved = await caller.post(
            "/model-versions/transition-stage", name="m", version=version, stage=to, **more
        )
        return str(moved["model_version"]["current_stage"])

    assert await move("1", "production") == "Production"
    assert (await caller.client.get("/api/v1/models/acme/m/aliases/production")).json()[
        "version"
    ] == 1
    body = {"name": "m", "version": "2", "stage": "Production"}
    path = f"{ROOT}/model-versions/transition-stage"
    assert "archive_existing_versions" in await caller.refused("POST", path, 422, json=body)
    assert await move("2", "Production", archive_existing_versions=True) == "Production"
    newest = await caller.post("/registered-models/get-latest-versions", name="m", stages=["None"])
    assert [one["version"] for one in newest["model_versions"]] == ["1"]
    assert await move("2", "Staging") == "Staging"
    assert await move("2", "None") == "None"
    body["stage"] = "Archived"
    assert "retire" in await caller.refused("POST", path, 422, json=body)
    assert await caller.refused("POST", path, 422, json={**body, "stage": "Gold"})


async def test_searches_filter_order_and_page(stage: Stage) -> None:
    caller = stage.caller
    for name in ("fraud-eu", "fraud-us", "churn"):
        tags = [{"key": "team", "value": name[:5]}]
        await caller.post("/registered-models/create", name=name, tags=tags)

    async def names(filter_: str = "", **more: Any) -> list[str]:
        found = await caller.get("/registered-models/search", filter=filter_, **more)
        return [one["name"] for one in found["registered_models"]]

    assert await names() == ["churn", "fraud-eu", "fraud-us"]
    assert await names(f"name LIKE 'fraud%' AND {PROMPTS}") == ["fraud-eu", "fraud-us"]
    assert await names("name ILIKE 'FRAUD-E_'") == ["fraud-eu"]
    assert await names("tags.team = 'churn'") == ["churn"]
    assert await names("tags.`team` != 'churn'") == ["fraud-eu", "fraud-us"]
    assert await names(order_by=["name DESC"]) == ["fraud-us", "fraud-eu", "churn"]
    assert (await names(order_by=["creation_timestamp ASC", "name ASC"]))[-1] == "churn"
    page = await caller.get("/registered-models/search", max_results=2)
    assert [one["name"] for one in page["registered_models"]] == ["churn", "fraud-eu"]
    assert await names(page_token=page["next_page_token"]) == ["fraud-us"]
    for wrong in ("name", "name ~ 'x'", "colour = 'x'", "name = 'x' OR name = 'y'", "name = 'x"):
        refused = await caller.refused(
            "GET", f"{ROOT}/registered-models/search", 422, params={"filter": wrong}
        )
        assert refused.startswith("INVALID_PARAMETER_VALUE"), wrong
    await stage.registered("churn", run_id="")
    await stage.registered("churn")
    found = await caller.get("/model-versions/search", filter="name='churn' AND version_number > 1")
    assert [one["version"] for one in found["model_versions"]] == ["2"]


async def test_runs_keep_what_is_logged_within_bounds(stage: Stage) -> None:
    caller = stage.caller
    made = await caller.post("/experiments/create", name="trees")
    found = await caller.get("/experiments/get-by-name", experiment_name="trees")
    assert found["experiment"]["experiment_id"] == made["experiment_id"] == "1"
    assert await caller.refused(
        "POST", f"{ROOT}/experiments/create", 409, json={"name": "trees"}
    ) == ("RESOURCE_ALREADY_EXISTS: There is already an experiment named 'trees'.")
    run = (await caller.post("/runs/create", experiment_id="1", run_name="r"))["run"]["info"]
    run_id = run["run_id"]
    await caller.post(
        "/runs/log-batch",
        run_id=run_id,
        params=[{"key": "depth", "value": "4"}],
        metrics=[
            {"key": "auc", "value": 0.5, "timestamp": 1, "step": 1},
            {"key": "auc", "value": "NaN", "timestamp": 2, "step": 2},
        ],
        tags=[{"key": "t", "value": "1"}],
    )
    for _ in range(2):  # as the client does where a logged model has metrics
        await caller.post("/runs/log-metric", run_id=run_id, key="auc", value=0.9, step=3)
    await caller.post("/runs/log-parameter", run_id=run_id, key="depth", value="4")
    path = f"{ROOT}/runs/log-parameter"
    changed = {"run_id": run_id, "key": "depth", "value": "5"}
    assert "never change" in await caller.refused("POST", path, 422, json=changed)
    long = {"run_id": run_id, "key": "x", "value": "x" * 6001}
    assert "6000" in await caller.refused("POST", path, 422, json=long)
    await caller.post("/runs/update", run_id=run_id, status="FINISHED", end_time=7)
    read = (await caller.get("/runs/get", run_id=run_id))["run"]
    assert (read["info"]["status"], read["info"]["end_time"]) == ("FINISHED", 7)
    assert read["data"]["params"] == [{"key": "depth", "value": "4"}]
    assert [one["value"] for one in read["data"]["metrics"]] == [0.9]
    history = await caller.get("/metrics/get-history", run_id=run_id, metric_key="auc")
    assert [one["value"] for one in history["metrics"]] == [0.5, "NaN", 0.9]
    for filter_, count in (("metrics.auc > 0.8 AND params.depth = '4'", 1), ("tags.t = '2'", 0)):
        runs = await caller.post("/runs/search", experiment_ids=["1"], filter=filter_)
        assert len(runs["runs"]) == count
    await caller.post("/runs/delete", run_id=run_id)
    assert not (await caller.post("/runs/search", experiment_ids=["1"]))["runs"]


async def test_files_go_into_sealed_storage_and_come_back(stage: Stage) -> None:
    caller = stage.caller
    big = b"needle in a haystack " * 50_000
    draft = await caller.log_model({"MLmodel": b"a", "code/big.bin": big, "empty.txt": b""})
    place = f"0/models/{draft}/artifacts"
    listing = (await caller.client.get(FILES, params={"path": place})).json()
    assert listing["files"] == [
        {"path": "MLmodel", "is_dir": False, "file_size": 1},
        {"path": "code", "is_dir": True},
        {"path": "empty.txt", "is_dir": False, "file_size": 0},
    ]
    inner = (await caller.client.get(FILES, params={"path": f"{place}/code"})).json()
    assert [one["path"] for one in inner["files"]] == ["big.bin"]
    assert (await caller.client.get(f"{FILES}/{place}/code/big.bin")).content == big
    assert (await caller.client.get(f"{FILES}/{place}/empty.txt")).content == b""
    for file in (stage.folder / "data").rglob("*"):
        assert not file.is_file() or b"needle in a haystack" not in file.read_bytes()
    again = await caller.client.put(f"{FILES}/{place}/MLmodel", content=b"bb")
    assert again.status_code == 200
    assert (await caller.client.get(f"{FILES}/{place}/MLmodel")).content == b"bb"
    for path, status in (
        (f"{place}/mlmodel", 422),
        (f"{place}/MLmodel/x", 422),
        (f"{place}/code", 422),
        ("0/models/m-none/artifacts/x", 404),
        ("7/loose.txt", 404),
        ("versions/m/1/x", 422),
    ):
        await caller.refused("PUT", f"{FILES}/{path}", status, content=b"x")
    for path in (f"{place}/../../../x", f"{place}/.hidden", f"{place}/%2e%2e/x", f"{place}//x"):
        assert (await caller.client.put(f"{FILES}/{path}", content=b"x")).status_code == 404
    blobs = {one.blob.id for one in caller_files(stage, draft)}
    assert len(blobs) == 3
    gone = await caller.client.delete(f"{FILES}/{place}/code")
    assert gone.status_code == 200
    await caller.refused("GET", f"{FILES}/{place}/code/big.bin", 404)
    await caller.delete(f"/logged-models/{draft}")
    left = {one.name for one in (stage.folder / "data" / "blobs").glob("*/??/*")}
    assert not left & blobs


def caller_files(stage: Stage, owner: str) -> list[Any]:
    return list(stage.it.node.services.tracking.files(stage.tenant_id, owner).values())


async def test_a_versions_files_are_those_that_are_called_whatever_happens_to_the_draft(
    stage: Stage,
) -> None:
    caller = stage.caller
    version = await stage.registered()
    uri = (await caller.get("/model-versions/get-download-uri", name="m", version="1"))[
        "artifact_uri"
    ]
    assert uri == "mlflow-artifacts:/versions/m/1"
    await caller.delete(f"/logged-models/{version['model_id']}")
    listing = (await caller.client.get(FILES, params={"path": "versions/m/1"})).json()["files"]
    assert {one["path"] for one in listing} == set(ECHO_MODEL)
    for path, content in ECHO_MODEL.items():
        assert (await caller.client.get(f"{FILES}/versions/m/1/{path}")).content == content
    await caller.refused("GET", f"{FILES}/versions/m/1/nothing", 404)
    await caller.post("/registered-models/create", name="copy")
    made = await caller.post("/model-versions/create", name="copy", source="models:/m/1")
    copied = await stage.ready("copy", made["model_version"]["version"])
    assert copied["status"] == "READY"
    await caller.delete("/model-versions/delete", name="m", version="1")
    await caller.refused("GET", f"{FILES}/versions/m/1/model.py", 404)
    assert (await caller.client.get(f"{FILES}/versions/copy/1/model.py")).status_code == 200
    called = await caller.client.post("/api/v1/models/acme/m/versions/1/invoke", content=b"x")
    assert called.status_code == 410


async def test_sources_elsewhere_are_refused(stage: Stage) -> None:
    caller = stage.caller
    await caller.post("/registered-models/create", name="m")
    path = f"{ROOT}/model-versions/create"
    for source, status in (
        ("s3://bucket/model", 422),
        ("file:///etc/passwd", 422),
        ("/etc/passwd", 422),
        ("mlflow-artifacts://elsewhere:1/0/models/m-x/artifacts", 422),
        ("models:/m-00000000000000000000", 404),
        ("models:/none/1", 404),
        ("runs:/run_none/model", 404),
    ):
        refused = await caller.refused("POST", path, status, json={"name": "m", "source": source})
        assert refused.startswith(("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")), source
    missing = {"name": "none", "source": "models:/m/1"}
    assert "RESOURCE_DOES_NOT_EXIST" in await caller.refused("POST", path, 404, json=missing)
    illegal = {"name": "My_Model"}
    refused = await caller.refused("POST", f"{ROOT}/registered-models/create", 422, json=illegal)
    assert "'my-model'" in refused
    upload = "/t/acme/api/2.0/mlflow-artifacts/mpu/create/0/models/m-x/artifacts/y"
    whole = await caller.refused("POST", upload, 422, json={"path": "y", "num_parts": 2})
    assert "Multipart upload is not supported for the current artifact repository" in whole


async def test_a_key_may_come_as_basic_password_or_name(stage: Stage) -> None:
    key = await stage.it.key("acme")
    for pair, status in ((f"mlflow:{key}", 200), (f"{key}:", 200), ("a:b", 401), (key[:-1], 401)):
        secret = base64.b64encode(pair.encode()).decode()
        async with stage.it.client() as client:
            answer = await client.get(
                f"{ROOT}/registered-models/search", headers={"Authorization": f"Basic {secret}"}
            )
        assert answer.status_code == status
    refused = await stage.it.client().get(
        f"{ROOT}/registered-models/search", headers={"Authorization": "Basic %%%"}
    )
    assert refused.json()["error_code"] == "UNAUTHENTICATED"


async def test_invocations_take_exactly_one_form(stage: Stage) -> None:
    caller = stage.caller
    await stage.it.version("acme", "m")
    await stage.it.version("acme", "m")
    base = "/t/acme/models/m"
    table = {"columns": ["a"], "data": [[1.5]]}
    for body in (
        {"dataframe_split": table},
        {"dataframe_records": [{"a": 1.5}]},
        {"instances": [[1.5]]},
        {"inputs": {"a": [1.5]}, "params": {"k": 1}},
    ):
        answer = await caller.client.post(f"{base}/invocations", json=body)
        assert answer.json() == {"predictions": body}
    already = {"inputs": [1], "params": {}}
    csv = await caller.client.post(
        f"{base}/versions/2/invocations", content="a\n1.5\n", headers={"Content-Type": "text/csv"}
    )
    assert (csv.json(), csv.headers["model-version"]) == ({"predictions": "a\n1.5\n"}, "2")
    for wrong in ({}, [1], {"rows": [1]}, {"instances": [], "inputs": []}, {**already, "x": 1}):
        refused = await caller.refused("POST", f"{base}/invocations", 422, json=wrong)
        assert "dataframe_split" in refused
    deep = b'{"instances": ' + b"[" * 100_000
    await caller.refused("POST", f"{base}/invocations", 400, content=deep)
    await caller.refused(
        "POST", f"{base}/invocations", 415, content=b"x", headers={"Content-Type": "text/html"}
    )
    for path, status in (("", 200), ("/versions/2", 200), ("/aliases/live", 200)):
        assert (await caller.client.get(f"{base}{path}/ping")).status_code == status
    await caller.refused("GET", f"{base}/versions/3/ping", 404)
    await caller.client.delete("/api/v1/models/acme/m/versions/2")
    await caller.refused("GET", f"{base}/versions/2/ping", 410)


async def test_what_mlflow_has_and_the_appliance_has_not_is_refused_in_mlflows_form(
    stage: Stage,
) -> None:
    await stage.it.version("acme", "m")
    rename = {"name": "m", "new_name": "n"}
    path = f"{ROOT}/registered-models/rename"
    assert "copy versions" in await stage.caller.refused("POST", path, 422, json=rename)
    for method in ("GET", "POST", "PATCH", "DELETE"):
        refused = await stage.caller.refused(method, f"{ROOT}/traces/tr-1/tags", 404)
        assert refused.startswith("RESOURCE_DOES_NOT_EXIST: This part of MLflow is not here")
    assert (await stage.caller.client.get("/api/v1/models/acme/m")).status_code == 200


async def test_clients_of_mlflow_2_say_in_a_tag_which_models_a_run_logged(stage: Stage) -> None:
    caller = stage.caller
    run_id = (await caller.post("/runs/create", experiment_id=DEFAULT_GROUP))["run"]["info"][
        "run_id"
    ]

    async def history() -> Any:
        tags = (await caller.get("/runs/get", run_id=run_id))["run"]["data"]["tags"]
        return json.loads({one["key"]: one["value"] for one in tags}["mlflow.log-model.history"])

    async def log(**model: Any) -> None:
        await caller.post("/runs/log-model", run_id=run_id, model_json=json.dumps(model))

    await log(run_id=run_id, artifact_path="one")
    await log(run_id=run_id, artifact_path="two", flavors={"sklearn": {}})
    assert [one["artifact_path"] for one in await history()] == ["one", "two"]
    await log(run_id=run_id, artifact_path="three", signature="x" * 7900)
    assert [one["artifact_path"] for one in await history()] == ["three"]
    await log(run_id=run_id, artifact_path="four", signature="x" * 9000)
    assert await history() == [{"run_id": run_id, "artifact_path": "four"}]
    for wrong in ("", "[]", "{"):
        body = {"run_id": run_id, "model_json": wrong}
        await caller.refused("POST", f"{ROOT}/runs/log-model", 422, json=body)


async def test_what_a_run_used_is_kept_and_becomes_the_lineage_of_its_version(stage: Stage) -> None:
    caller = stage.caller
    run = (await caller.post("/runs/create", experiment_id=DEFAULT_GROUP))["run"]["info"]
    said = {
        "name": "iris",
        "digest": "8a3f",
        "source_type": "local",
        "source": '{"uri":"iris.csv"}',
        "schema": "{}",
        "profile": '{"num_rows":150}',
    }
    tags = [{"key": "mlflow.data.context", "value": "training"}]
    for _ in range(2):  # again: it is there once
        await caller.post(
            "/runs/log-inputs", run_id=run["run_id"], datasets=[{"dataset": said, "tags": tags}]
        )
    inputs = (await caller.get("/runs/get", run_id=run["run_id"]))["run"]["inputs"]
    assert inputs == {"dataset_inputs": [{"dataset": said, "tags": tags}], "model_inputs": []}
    await stage.registered(run_id=run["run_id"])
    native = (await caller.client.get("/api/v1/models/acme/m/versions/1")).json()
    assert native["lineage"]["data"] == ["iris 8a3f"]
    wrong: list[dict[str, Any]] = [
        {"datasets": [{"dataset": {**said, "name": ""}}]},
        {"datasets": [{"dataset": {**said, "schema": "x" * 65_536}}]},
        {"datasets": [{"dataset": {**said, "digest": str(n)}} for n in range(65)]},
        {"models": [{"model_id": "m-nothing"}]},
    ]
    for body in wrong:
        answer = await caller.client.post(
            f"{ROOT}/runs/log-inputs", json={"run_id": run["run_id"], **body}
        )
        assert answer.status_code in (404, 409, 422, 429), answer.text
    inputs = (await caller.get("/runs/get", run_id=run["run_id"]))["run"]["inputs"]
    assert len(inputs["dataset_inputs"]) == 1
