"""GPUs as people meet them: refused manifests, lists, numbers, doctor, command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import fake_gpus
import pytest
from inside import Inside, inside
from running import ECHO_MODEL, tar_of_files

from appliance import config, doctor
from appliance.cli import main
from appliance.sandbox.gpu_place import Fill, Gpu, Places
from appliance.sandbox.spec import MIB

PATH = "/api/v1/models/acme/echo/versions"
TAR = {"content-type": "application/x-tar"}
UNITS = (
    Gpu(id="GPU-a", vendor="nvidia.com", name="NVIDIA A100", index="0", memory_bytes=40_000 * MIB,
        compute="8.0", driver="580.1"),
    Gpu(id="MIG-b", vendor="nvidia.com", name="NVIDIA A100 MIG 1g.5gb", kind="mig", index="1:0",
        parent="GPU-b", memory_bytes=5_000 * MIB),
)  # fmt: skip


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Inside]:
    async with inside(tmp_path) as found:
        runtime = tmp_path / "data" / "runtimes" / "python3.11-000000000000"
        (runtime / "rootfs").mkdir(parents=True)
        about = {"name": "python3.11", "digest": "sha256:0", "packages": [], "built_at": "2026"}
        (runtime / "runtime.json").write_text(json.dumps(about))
        await found.tenant("acme")
        executor = found.node._executor
        assert executor is not None
        executor.places = Places(UNITS)  # type: ignore[misc]
        executor.fills["GPU-a"] = Fill(  # type: ignore[attr-defined]
            unit="GPU-a", used_bytes=7 * MIB, busy_percent=3
        )
        yield found


async def push(it: Inside, resources: str) -> tuple[int, dict[str, object]]:
    manifest = ECHO_MODEL["appliance.toml"] + f"[resources]\n{resources}\n".encode()
    files = {**ECHO_MODEL, "appliance.toml": manifest}
    async with it.client(await it.key("acme")) as client:
        answer = await client.post(PATH, content=tar_of_files(files), headers=TAR)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (
            "gpus = 3",
            "asks for 3; this machine has 1 x NVIDIA A100 (40000 MiB), 1 x",
        ),
        ("gpus = 2", "partitions are given one at a time"),
        ("gpus = 1\ngpu_memory_mb = 50000", "asks for 50000 MiB on each of 1; this machine has 1"),
        ("gpu_memory_mb = 1", "it needs gpus = 1 or more beside it"),
    ],
)
async def test_more_than_the_machine_has_is_refused_with_what_there_is(
    it: Inside, resources: str, said: str
) -> None:
    status, problem = await push(it, resources)
    assert (status, problem["code"]) == (422, "manifest-invalid")
    assert said in str(problem["detail"])


async def test_a_gpu_is_shown_with_who_has_it_everywhere_people_look(it: Inside) -> None:
    status, version = await push(it, "gpus = 1\ngpu_memory_mb = 30000")
    assert status == 201, version
    invoke = "/api/v1/models/acme/echo/invoke"
    async with it.client(await it.key("acme")) as client, it.client(admin=True) as admin:
        before = (await admin.get("/admin/v1/gpus")).json()
        assert [item["state"] for item in before["items"]] == ["free", "free"]
        call = asyncio.create_task(client.post(invoke, content=b"sleep 0.6"))
        await asyncio.sleep(0.3)
        listed = (await admin.get("/admin/v1/gpus")).json()
        views = {
            view: (await admin.get(f"/admin/v1/snapshot?view={view}")).json()
            for view in ("dashboard", "sandboxes", "gpus")
        }
        metrics = (await admin.get("/metrics")).text
        denied = await client.get("/admin/v1/gpus")
        await call
    held, free = listed["items"]
    assert (held["state"], held["tenant"], held["index"]) == ("shared", "acme", "0")
    assert (held["used_bytes"], held["busy_percent"]) == (7 * MIB, 3)
    assert held["allocated_bytes"] == 30_000 * MIB
    assert (free["state"], free["used_bytes"], free["kind"]) == ("free", None, "mig")
    (box,) = views["sandboxes"]["rows"]
    assert (box["gpus"], held["sandboxes"]) == (["0"], [box["id"]])
    assert views["dashboard"]["totals"]["gpus"] == 2
    assert views["dashboard"]["totals"]["gpus_held"] == 1
    assert [row["id"] for row in views["gpus"]["rows"]] == ["GPU-a", "MIG-b"]
    assert f"appliance_gpu_memory_allocated_bytes {30_000 * MIB:.8g}"[:40] in metrics
    assert "appliance_gpus_held 1.0" in metrics
    assert "appliance_gpu_calls_waiting 0.0" in metrics
    assert denied.status_code in (403, 404)


def test_the_doctor_names_gpus_and_specs_that_cannot_be_read(tmp_path: Path) -> None:
    settings = config.Settings(sandbox=fake_gpus.write(tmp_path / "cdi"))
    (check,) = [one for one in doctor._gpus(settings) if one.status == "ok"]
    assert "2 x Fake One (1000 MiB)" in check.detail
    (tmp_path / "cdi/other.json").write_text("{")
    (warning,) = [one for one in doctor._gpus(settings) if one.status == "warn"]
    assert "other.json" in warning.detail
    assert warning.fix


def test_the_command_line_lists_what_this_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_gpus.write(tmp_path / "cdi")
    monkeypatch.setenv("APPLIANCE__SANDBOX__CDI_DIRS", str(tmp_path / "cdi"))
    assert main(["gpu", "list", "--local", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {item["id"] for item in document["items"]} >= {fake_gpus.id_of(0), fake_gpus.id_of(1)}
    assert main(["gpu", "list", "--local"]) == 0
    shown = capsys.readouterr().out
    assert "Fake One" in shown
    assert "1000 MiB" in shown
