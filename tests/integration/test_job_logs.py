"""A job's webhook is told what its model prints while it prints it; nobody waits for a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import standardwebhooks
from inside import EchoSandbox, Inside, inside
from receiver import Received, Receiver, receiver, status

from appliance import clock, config
from appliance.records import JOB_ENDS
from appliance.sandbox.spec import Request

HOOKS = "/api/v1/tenants/acme/webhooks"
INVOKE = "/api/v1/models/acme/echo/invoke"
BODY = b'{"talk":1}'


@asynccontextmanager
async def stage(folder: Path, hears: Receiver) -> AsyncIterator[tuple[Inside, Any, str]]:
    """An appliance, its owner's client, and the secret that webhooks of jobs are signed with."""
    async with inside(folder, webhooks={"allow": (hears.origin,)}) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            made = await client.post(HOOKS, json={"url": "", "events": []})
            yield it, client, made.json()["secret"]


@contextmanager
def working(work: Callable[[Request], Awaitable[None]]) -> Iterator[None]:
    EchoSandbox.WORKS[BODY] = work
    try:
        yield
    finally:
        del EchoSandbox.WORKS[BODY]


def say(request: Request, text: str) -> None:
    assert request.tail is not None
    request.tail.add("stdout", text.encode(), 0)


async def submit(client: Any, hears: Receiver, events: str) -> dict[str, Any]:
    answer = await client.post(
        INVOKE,
        content=BODY,
        headers={
            "Prefer": "respond-async",
            "Content-Type": "application/json",
            "Webhook": f"{hears.origin}/own",
            "Webhook-Events-Filter": events,
        },
    )
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def ended(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(20):
        job = (await client.get(job["urls"]["get"], params={"wait_s": 5})).json()
        if job["status"] in JOB_ENDS:
            return job
    raise AssertionError(job)


def of_type(hears: Receiver, kind: str) -> list[Any]:
    return [one.message["data"] for one in hears.got if one.message["type"] == kind]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.02)


async def test_what_a_model_prints_is_told_while_it_works_in_order_and_signed(
    tmp_path: Path,
) -> None:
    async with receiver() as hears, stage(tmp_path, hears) as (it, client, secret):

        async def talk(request: Request) -> None:
            say(request, "one\ntwo\nthr")
            await until(lambda: len(of_type(hears, "job.logs")) == 1)
            say(request, "ee\nfour\n")
            await until(lambda: len(of_type(hears, "job.logs")) == 2)
            say(request, "five\nand no end")

        with working(talk):
            job = await submit(client, hears, "logs,output,completed")
            assert (await ended(client, job))["status"] == "succeeded"
        await until(lambda: len(hears.got) == 5)
        logs = sorted(of_type(hears, "job.logs"), key=lambda one: one["first_line"])
        assert [one["logs"] for one in logs] == [
            ["one", "two"], ["three", "four"], ["five", "and no end"],
        ]  # fmt: skip
        assert [(one["first_line"], one["lines"]) for one in logs] == [(0, 2), (2, 2), (4, 2)]
        assert [one["status"] for one in logs] == ["processing"] * 3
        assert {one["job"] for one in logs} == {job["id"]}
        assert len(of_type(hears, "job.output")) == len(of_type(hears, "job.completed")) == 1
        for one in hears.got:
            standardwebhooks.Webhook(secret).verify(one.body, one.headers)
        jobs = it.node.services.jobs
        stored = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        (kept,) = it.store.registry.snapshot.jobs(it.store.registry.snapshot.tenant("acme").id)
        printed = {one.blob.id for one in kept.printed}
        assert len(printed) == 3
        assert printed <= stored
        jobs._settings = config.replace(config.Settings(), "jobs", kept_max=0).jobs
        await jobs.sweep()
        left = {path.name for path in (tmp_path / "data/blobs").glob("*/??/*")}
        assert not printed & left
    found = b"".join(p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file())
    assert b"and no end" not in found


async def test_a_receiver_that_does_not_answer_gets_less_and_holds_nobody_up(
    tmp_path: Path,
) -> None:
    def answer(one: Received) -> bytes | None:
        is_first = one.message["type"] == "job.logs" and one.message["data"]["first_line"] == 0
        return None if is_first else status(200)

    async with receiver(answer) as hears, stage(tmp_path, hears) as (_it, client, _secret):

        async def talk(request: Request) -> None:
            say(request, "first\n")
            await until(lambda: len(of_type(hears, "job.logs")) == 1)  # and is not answered
            for n in range(5000):
                say(request, f"line {n}\n")
                if n % 1000 == 0:
                    await asyncio.sleep(0.3)  # often enough for parts that are not made

        with working(talk):
            job = await submit(client, hears, "logs,completed")
            assert (await ended(client, job))["status"] == "succeeded"
        await until(lambda: bool(of_type(hears, "job.completed")))
        await until(lambda: any(one["first_line"] for one in of_type(hears, "job.logs")))
        (last,) = [one for one in of_type(hears, "job.logs") if one["first_line"]]
        assert (last["first_line"], last["lines"]) == (1, 201)
        assert last["logs"][0].endswith("bytes of output left out ...]")
        assert last["logs"][-1] == "line 4999"


async def test_a_delivery_of_logs_that_failed_is_told_again_as_it_was(tmp_path: Path) -> None:
    answers = [status(503, "retry-after: 0\r\n")]
    async with (
        receiver(lambda _: answers.pop() if answers else status(200)) as hears,
        stage(tmp_path, hears) as (it, client, _secret),
    ):
        ahead = 0
        it.node.services.webhooks._now_ns = lambda: ahead or clock.now_ns()

        async def talk(request: Request) -> None:
            say(request, "one\n")
            await until(lambda: len(hears.got) == 1)

        with working(talk):
            await ended(client, await submit(client, hears, "logs"))
        ahead = clock.now_ns() + 3600 * 1_000_000_000
        await until(lambda: len(hears.got) == 2)
        first, again = hears.got
        assert (first.id, first.body) == (again.id, again.body)
        assert first.message["data"]["logs"] == ["one"]


async def test_nothing_is_kept_of_what_a_model_prints_where_nobody_asked_for_it(
    tmp_path: Path,
) -> None:
    asked: list[bool] = []

    async def talk(request: Request) -> None:
        asked.append(request.tail is not None)

    async with receiver() as hears, stage(tmp_path, hears) as (it, client, _secret):
        with working(talk):
            await ended(client, await submit(client, hears, "output,completed"))
            await client.post(INVOKE, content=BODY, headers={"Content-Type": "application/json"})
        assert asked == [False, False]
        assert "job.printed" not in [entry.kind for entry in it.store.ledger.read(0, 999)]
