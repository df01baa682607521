"""Joined calls on a real sandbox: many callers at once, two of whom are at fault."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any

import httpx
import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman

MODEL = b"""
import os

class Model:
    def __init__(self, path): pass
    def predict(self, inputs):
        if ["crash"] in inputs:
            os._exit(7)
        return [row[0] * 2 for row in inputs]
"""
MANIFEST = b'runtime = "python3.11"\nentry = "model:Model"\naudit = "%b"\n\n[batch]\n'


async def ask(
    running: RunningAppliance, secret: str, path: str, bodies: list[Any]
) -> list[httpx.Response]:
    async with httpx.AsyncClient(
        base_url=running.url,
        verify=ssl.create_default_context(cafile=str(running.ca_file())),
        headers={"authorization": f"Bearer {secret}"},
        timeout=120,
        limits=httpx.Limits(max_connections=len(bodies)),
    ) as client:
        return await asyncio.gather(*(client.post(path, json=body) for body in bodies))


@pytest.mark.parametrize("audit", ["strict", "overlap"])
def test_many_callers_are_answered_by_few_calls_of_the_model(
    running: RunningAppliance, audit: str
) -> None:
    tenant = f"joined-{audit}"
    secret = running.tenant(tenant)
    files = {"appliance.toml": MANIFEST % audit.encode(), "model.py": MODEL}
    made = running.push(secret, f"{tenant}/m", files)
    assert made.status_code == 201, made.text
    bodies: list[Any] = [[[n]] if n % 3 else [[n], ["x"]] for n in range(60)]
    bodies[17], bodies[30] = [["crash"]], [[{}]]
    replies = asyncio.run(ask(running, secret, f"/api/v1/models/{tenant}/m/invoke", bodies))
    for place, reply in enumerate(replies):
        if place in (17, 30):
            assert reply.status_code == 502, reply.text
            slug = "runner-crashed" if place == 17 else "model-raised"
            assert reply.json()["type"].endswith(slug)
        else:
            assert reply.status_code == 200, reply.text
            assert reply.json() == ([place * 2] if place % 3 else [place * 2, "xx"])
    with running.https(secret) as client:
        end = time.monotonic() + 30  # the figures follow the calls by a moment
        while True:
            found = client.get(f"/t/{tenant}/v2/models/m/stats").json()["model_stats"]
            stats = found[0] if found else {}
            if stats.get("inference_count") == 58:
                break
            assert time.monotonic() < end, stats
            time.sleep(0.1)
        assert stats["execution_count"] < 58
    with running.admin() as admin:
        assert "appliance_batch_rows_bucket" in admin.get("/metrics").text
