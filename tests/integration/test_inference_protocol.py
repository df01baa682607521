"""The Open Inference Protocol over real TLS, spoken by the unmodified Triton client."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
import tritonclient.http as triton
from inside import EchoExecutor, Inside
from tritonclient.utils import InferenceServerException

from appliance import api, config, serve
from appliance.node import Node
from appliance.wire import Front


@dataclass
class Stage:
    it: Inside
    secret: str
    ca_file: str

    def client(self, tenant: str = "acme") -> Any:
        address = self.it.front.url.removeprefix("https://")
        return triton.InferenceServerClient(
            url=f"{address}/t/{tenant}",
            ssl=True,
            ssl_options={"ca_certs": self.ca_file},
            ssl_context_factory=ssl.create_default_context,
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}

    async def post(self, path: str, **more: Any) -> httpx.Response:
        async with self.it.client(self.secret) as client:
            return await client.post(path, **more)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    settings = config.replace(
        config.Settings(), "paths", data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run")
    )
    settings = config.replace(settings, "http", port=0)
    node = Node(settings, executor_factory=lambda: EchoExecutor(tmp_path / "data"))
    front, stop = Front(), asyncio.Event()
    await node.initialise(key_file=tmp_path / "unseal.key")
    it = Inside(node=node, front=front, apps=api.build(node, front))
    await it.tenant("acme")
    await it.version("acme", "echo")
    await it.version("acme", "echo")
    task = asyncio.create_task(
        serve.serve(
            it.apps.public, it.apps.admin, settings, front=front, tls_secret=node.tls_secret,
            stop=stop,
        )
    )  # fmt: skip
    while not front.url:
        await asyncio.sleep(0.01)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(front.ca_pem)
    try:
        yield Stage(it=it, secret=await it.key("acme"), ca_file=str(ca_file))
    finally:
        stop.set()
        await task
        await node.close()


async def test_health_metadata_and_index_are_what_the_client_expects(stage: Stage) -> None:
    def work() -> dict[str, Any]:
        with stage.client() as client:
            return {
                "live": client.is_server_live(),
                "ready": client.is_server_ready(),
                "model": client.is_model_ready("echo", headers=stage.headers),
                "version": client.is_model_ready("echo", "2", headers=stage.headers),
                "missing": client.is_model_ready("nothing", headers=stage.headers),
                "server": client.get_server_metadata(),
                "metadata": client.get_model_metadata("echo", headers=stage.headers),
                "index": client.get_model_repository_index(headers=stage.headers),
                "load": client.load_model("echo", headers=stage.headers),
                "unload": client.unload_model("echo", headers=stage.headers),
            }

    found = await asyncio.to_thread(work)
    assert (found["live"], found["ready"], found["model"], found["version"]) == (True,) * 4
    assert not found["missing"]
    assert "binary_tensor_data" in found["server"]["extensions"]
    assert found["metadata"]["versions"] == ["1", "2"]
    assert [(one["name"], one["version"], one["state"]) for one in found["index"]] == [
        ("echo", "1", "READY"),
        ("echo", "2", "READY"),
    ]


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
async def test_tensors_come_back_as_they_went(
    stage: Stage, binary: bool, packed: str | None
) -> None:
    def work() -> Any:
        rows = numpy.arange(600, dtype=numpy.float64).reshape(200, 3) / 7
        asked = triton.InferInput("x", list(rows.shape), "FP64")
        asked.set_data_from_numpy(rows, binary_data=binary)
        wanted = triton.InferRequestedOutput("output-0", binary_data=binary)
        with stage.client() as client:
            found = client.infer(
                "echo", [asked], outputs=[wanted], request_id="r1", headers=stage.headers,
                request_compression_algorithm=packed,
                response_compression_algorithm="gzip" if packed == "gzip" else None,
            )  # fmt: skip
        assert numpy.array_equal(found.as_numpy("output-0"), rows)
        return found.get_response()

    answer = await asyncio.to_thread(work)
    assert answer["id"] == "r1"
    assert (answer["model_name"], answer["model_version"]) == ("echo", "1")


async def test_several_inputs_of_every_kind_and_a_version_by_number(stage: Stage) -> None:
    made = {
        "b": numpy.array([[True, False]]),
        "i": numpy.array([[1, -2]], dtype=numpy.int32),
        "f": numpy.array([[0.5, 2.0]], dtype=numpy.float16),
        "s": numpy.array([["grüße", ""]], dtype=object),
    }
    kinds = {"b": "BOOL", "i": "INT32", "f": "FP16", "s": "BYTES"}

    def work() -> Any:
        asked = []
        for name, value in made.items():
            one = triton.InferInput(name, list(value.shape), kinds[name])
            one.set_data_from_numpy(value)
            asked.append(one)
        with stage.client() as client:
            return client.infer("echo", asked, model_version="2", headers=stage.headers)

    found = await asyncio.to_thread(work)
    assert found.get_response()["model_version"] == "2"
    assert found.as_numpy("b").tolist() == [[True, False]]
    assert found.as_numpy("i").tolist() == [[1, -2]]
    assert found.as_numpy("f").tolist() == [[0.5, 2.0]]
    assert [text.decode() for text in found.as_numpy("s")[0]] == ["grüße", ""]


async def test_a_refusal_is_the_protocols_own(stage: Stage) -> None:
    def work() -> list[str]:
        asked = triton.InferInput("x", [2], "INT8")
        asked.set_data_from_numpy(numpy.array([1, 2], dtype=numpy.int8))
        said = []
        with stage.client() as client:
            for model, headers in (("nothing", stage.headers), ("echo", {})):
                with pytest.raises(InferenceServerException) as caught:
                    client.infer(model, [asked], headers=headers)
                said.append(f"{caught.value.status()} {caught.value.message()}")
        return said

    missing, stranger = await asyncio.to_thread(work)
    assert missing.startswith("404 No such resource")
    assert stranger.startswith("401")
    one = {"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 300]}
    answer = await stage.post("/t/acme/v2/models/echo/infer", json={"inputs": [one]})
    assert answer.status_code == 422
    assert answer.json() == {"error": "inputs[0].data[1]: 300 is no INT8."}
    assert answer.headers["problem"] == "input-invalid"


async def test_a_request_needs_no_content_type(stage: Stage) -> None:
    one = {"name": "x", "datatype": "INT8", "shape": [1], "data": [7]}
    body = json.dumps({"inputs": [one]}).encode()
    answer = await stage.post("/t/acme/v2/models/echo/infer", content=body)
    assert answer.status_code == 200
    assert answer.json()["outputs"] == [
        {"name": "output-0", "datatype": "INT64", "shape": [1], "data": [7]}
    ]
    assert answer.headers["model-version"] == "1"
    assert int(answer.headers["audit-seq"]) > 0


async def test_a_packed_bomb_is_refused_before_it_unpacks(stage: Stage) -> None:
    bomb = gzip.compress(b"0" * 100_000_000, 9)
    headers = {"content-encoding": "gzip"}
    answer = await stage.post("/t/acme/v2/models/echo/infer", content=bomb, headers=headers)
    assert answer.status_code == 413
    broken = await stage.post("/t/acme/v2/models/echo/infer", content=bomb[:100], headers=headers)
    assert broken.status_code == 400
    odd = {"content-encoding": "br"}
    assert (
        await stage.post("/t/acme/v2/models/echo/infer", content=b"x", headers=odd)
    ).status_code == 415


async def test_statistics_count_calls_and_failures(stage: Stage) -> None:
    one = {"name": "x", "datatype": "INT8", "shape": [1], "data": [7]}
    for _ in range(3):
        await stage.post("/t/acme/v2/models/echo/infer", json={"inputs": [one]})
    await stage.post("/api/v1/models/acme/echo/invoke", content=b"raise")
    ledger = stage.it.store.ledger
    await stage.it.store.queries.wait(ledger.head.size, 5.0)

    def work() -> Any:
        with stage.client() as client:
            return client.get_inference_statistics("echo", headers=stage.headers)

    (found,) = (await asyncio.to_thread(work))["model_stats"]
    assert (found["name"], found["version"]) == ("echo", "1")
    assert found["inference_count"] == 3
    assert found["inference_stats"]["fail"]["count"] == 1
    assert found["inference_stats"]["success"]["ns"] > 0
