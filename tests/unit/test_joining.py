"""Calls that may be joined, over sandboxes without processes: order, bounds, ends, fairness."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from fake_executor import FakeExecutor

from appliance import clock, config
from appliance.errors import (
    CapacityExhausted,
    DeadlinePassed,
    Draining,
    InvokeTimeout,
    LoadFailed,
    ModelRaised,
    RunnerCrashed,
)
from appliance.metrics import Metrics
from appliance.records import Batching
from appliance.sandbox.joining import Joining, Sent
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import Reply, Request, SandboxSpec

SLEEP = b'{"do": "sleep", "s": 0.05}'


def spec_of(key: str = "v1", tenant: str = "t", **changes: Any) -> SandboxSpec:
    values: dict[str, Any] = {
        "version_key": key, "tenant_id": tenant, "runtime": "r", "runtime_digest": "d",
        "entry": "e:e", "batch": Batching(), **changes,
    }  # fmt: skip
    return SandboxSpec(**values)


async def no_files() -> AsyncIterator[bytes]:
    yield b""


async def bad_files() -> AsyncIterator[bytes]:
    yield b"import nothing_of_this_name"


class Stage:
    def __init__(self, **settings: Any) -> None:
        chosen = config.Sandbox(
            **{"instances_max": 4, "instances_per_version_max": 1, "queue_timeout_s": 30,
               "zygote_memory_bytes_max": 0, **settings}
        )  # fmt: skip
        self.executor = FakeExecutor()
        self.executor.can_batch = True
        self.pool = Pool(self.executor, chosen)
        self.metrics = Metrics()
        self.joining = Joining(self.pool, chosen, self.metrics)
        self.sent: list[Sent] = []

    def call(
        self,
        body: bytes = b"1",
        spec: SandboxSpec | None = None,
        *,
        content_type: str = "application/json",
        timeout_ms: int = 20_000,
        **more: Any,
    ) -> Awaitable[Reply]:
        request = Request(
            id=clock.new_id("call"), content_type=content_type, body=body,
            timeout_ms=timeout_ms, reply_bytes_max=1000,
        )  # fmt: skip
        files = more.pop("files", no_files)
        chosen = spec or spec_of()
        return asyncio.ensure_future(
            self.joining.call(chosen, files, request, sent=self.sent.append, **more)
        )

    def counted(self, name: str) -> str:
        text = self.metrics.text().decode()
        return next(line for line in text.splitlines() if line.startswith(name + " ")).split()[-1]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    yield made
    await made.pool.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_calls_that_come_meanwhile_leave_together_and_get_their_own_answers(
    stage: Stage,
) -> None:
    first = stage.call(SLEEP)
    await until(lambda: stage.executor.batches)
    others = [stage.call(b"%d" % number) for number in range(20)]
    found = await asyncio.gather(*others)
    assert [reply.body for reply in found] == [b"%d" % number for number in range(20)]
    await first
    # The first alone, what came before the runner's second frame was full, and the rest in one.
    assert sum(stage.executor.batches) == 21
    assert len(stage.executor.batches) <= 4
    assert stage.executor.made == 1
    assert found[-1].merged is not None
    assert stage.counted("appliance_batch_calls_sum") == "21.0"


async def test_a_lone_call_waits_for_nobody(stage: Stage) -> None:
    await stage.call()
    sent = stage.sent[-1]
    assert sent.cold
    for _ in range(3):
        await stage.call()
    assert stage.executor.batches == [1, 1, 1, 1]
    assert not stage.sent[-1].cold
    assert stage.sent[-1].load_us == 0


async def test_a_frame_holds_one_content_type_and_so_many_bytes(stage: Stage) -> None:
    spec = spec_of(batch=Batching(max_bytes=1024))
    held = stage.call(SLEEP, spec)
    await until(lambda: stage.executor.batches)
    large, small = b'"%b"' % (b"x" * 600), b"2"
    kinds = ["application/json", "application/json", "text/plain", "text/plain"]
    rest = [
        stage.call(body, spec, content_type=kind)
        for body, kind in zip((large, large, small, small), kinds, strict=True)
    ]
    alone = stage.call(b'"%b"' % (b"y" * 5000), spec, timeout_ms=5000)
    await asyncio.gather(held, *rest, alone)
    # One frame may have left before the others came; no frame held both large ones, nor both kinds.
    assert stage.executor.batches == [1, 1, 1, 2, 1]


async def test_who_ends_the_sandbox_fails_alone(stage: Stage) -> None:
    held = stage.call(SLEEP)
    await until(lambda: stage.executor.batches)
    await asyncio.sleep(0)
    waiting = [stage.call(b"%d" % number) for number in range(10)]
    guilty = stage.call(b'{"do": "exit", "code": 3}')
    waiting += [stage.call(b"%d" % number) for number in range(10, 20)]
    found = await asyncio.gather(held, guilty, *waiting, return_exceptions=True)
    assert isinstance(found[1], RunnerCrashed)
    assert [reply.body for reply in found[2:]] == [b"%d" % n for n in range(20)]
    assert stage.counted('appliance_batch_fallback_total{reason="lost"}') != "0.0"


async def test_each_that_ends_its_sandbox_fails_alone_and_none_that_was_next(
    stage: Stage,
) -> None:
    held = stage.call(SLEEP)
    await until(lambda: stage.executor.batches)
    end, bad = b'{"do": "exit", "code": 3}', b'{"do": "raise"}'
    bodies = [b"1", end, bad, end, b"2", bad, end, b"3"]
    found = await asyncio.gather(held, *map(stage.call, bodies), return_exceptions=True)
    kinds = {end: RunnerCrashed, bad: ModelRaised}
    for body, one in zip(bodies, found[1:], strict=True):
        assert isinstance(one, kinds.get(body, Reply)), (body, one)


async def test_who_takes_too_long_fails_alone(stage: Stage) -> None:
    held = stage.call(SLEEP)
    await until(lambda: stage.executor.batches)
    slow = stage.call(b'{"do": "spin"}', timeout_ms=200)
    quick = [stage.call(b"%d" % number) for number in range(5)]
    found = await asyncio.gather(held, slow, *quick, return_exceptions=True)
    assert isinstance(found[1], InvokeTimeout)
    assert [reply.body for reply in found[2:]] == [b"%d" % n for n in range(5)]


async def test_a_model_that_raises_is_the_callers_own_affair(stage: Stage) -> None:
    found = await asyncio.gather(
        *(stage.call(body) for body in (b"1", b'{"do": "raise"}', b"2", b"3")),
        return_exceptions=True,
    )
    assert isinstance(found[1], ModelRaised)
    assert [found[place].body for place in (0, 2, 3)] == [b"1", b"2", b"3"]
    assert stage.executor.made == 1


async def test_a_deadline_that_passes_in_the_line_is_told_and_the_model_not_called() -> None:
    stage = Stage()
    loop = asyncio.get_running_loop()
    held = [stage.call(b'{"do": "sleep", "s": 0.3}')]
    await until(lambda: stage.executor.batches)
    held.append(stage.call())  # the runner's second frame; what comes now waits in the line
    await until(lambda: len(stage.sent) == 2)
    late = stage.call(b'"late"', deadline=loop.time() + 0.02)
    with pytest.raises(DeadlinePassed) as caught:
        await late
    assert caught.value.status == 504
    await asyncio.gather(*held)
    assert b'"late"' not in stage.executor.bodies
    assert stage.joining.waiting == 0
    await stage.pool.close()


async def test_a_full_line_refuses_before_anything_runs() -> None:
    stage = Stage(queue_max=3)
    stage.executor.create_s = 0.05
    held = [stage.call(b"%d" % n) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(CapacityExhausted) as caught:
        await stage.call(b'"too many"')
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    await asyncio.gather(*held)
    await stage.pool.close()


async def test_a_caller_that_leaves_is_not_served(stage: Stage) -> None:
    stage.executor.create_s = 0.02
    staying = stage.call(b'"stays"')
    leaving = stage.call(b'"leaves"')
    await asyncio.sleep(0)
    leaving.cancel()  # type: ignore[attr-defined]
    assert (await staying).body == b'"stays"'
    assert stage.executor.bodies == [b'"stays"']
    assert stage.joining.waiting == 0


async def test_a_runner_that_cannot_join_gets_one_call_at_a_time(stage: Stage) -> None:
    stage.executor.can_batch = False
    found = await asyncio.gather(*(stage.call(b"%d" % n) for n in range(10)))
    assert [reply.body for reply in found] == [b"%d" % n for n in range(10)]
    assert stage.executor.batches == []
    assert stage.executor.made == 1


async def test_all_who_wait_are_told_that_the_model_does_not_load(stage: Stage) -> None:
    found = await asyncio.gather(
        *(stage.call(files=bad_files) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(error, LoadFailed) for error in found)
    found[0].extensions["audit_seq"] = 7  # what is added for one is not told to another
    assert "audit_seq" not in found[1].extensions
    assert (await stage.call()).body == b"1"


async def test_a_sandbox_of_another_spec_is_not_used(stage: Stage) -> None:
    await stage.call()
    await stage.call(spec=spec_of(idle_timeout_s=7))
    assert stage.executor.made == 2
    await until(lambda: len(stage.executor.sandboxes) == 1)


async def test_an_evicted_sandbox_takes_no_further_frames(stage: Stage) -> None:
    held = [stage.call(SLEEP) for _ in range(4)]
    await until(lambda: len(stage.executor.batches) == 1)
    rest = [stage.call(b"%d" % n) for n in range(3)]
    await stage.pool.evict("v1")
    await asyncio.gather(*held, *rest)
    assert stage.executor.made == 2


async def test_those_who_still_wait_at_the_end_are_told() -> None:
    stage = Stage(instances_max=1)
    other = stage.call(b'{"do": "sleep", "s": 0.1}', spec_of("other"))
    await until(lambda: stage.executor.batches)
    waiting = [stage.call() for _ in range(3)]
    await asyncio.sleep(0)
    await stage.pool.close()
    found = await asyncio.gather(other, *waiting, return_exceptions=True)
    assert isinstance(found[0], Reply)
    assert all(isinstance(error, Draining) for error in found[1:])


async def test_a_tenant_that_floods_does_not_keep_another_out() -> None:
    stage = Stage(instances_max=1)
    flood, ends = spec_of("loud", "loud"), Counter[str]()

    async def caller() -> None:
        while not ends["quiet"]:
            await stage.call(b'{"do": "sleep", "s": 0.005}', flood)
            ends["loud"] += 1

    loud = [asyncio.create_task(caller()) for _ in range(30)]
    await until(lambda: ends["loud"] > 3)
    for _ in range(3):
        assert (await stage.call(b"2", spec_of("quiet", "quiet"))).body == b"2"
    ends["quiet"] += 1
    await asyncio.gather(*loud)
    await stage.pool.close()


async def test_the_gather_wait_is_none_unless_it_pays(stage: Stage) -> None:
    await stage.call()
    line = stage.joining._lines["v1"]
    assert line.delay_s == 0
    line.service_s, line.last_calls = 0.1, 1
    assert line.delay_s == 0
    line.last_calls = 2
    assert line.delay_s == 0.001
    line.service_s = 0.0025
    assert line.delay_s == pytest.approx(0.0005)
    line.batching = Batching(max_queue_delay_us=0)
    assert line.delay_s == 0
    line.batching = Batching(max_queue_delay_us=20_000)
    assert line.delay_s == 0.02


async def test_a_wait_that_was_asked_for_gathers(stage: Stage) -> None:
    spec = spec_of(batch=Batching(max_queue_delay_us=1_000_000, max_rows=5))
    first = stage.call(b"0", spec)
    await until(lambda: stage.executor.sandboxes)
    rest = [stage.call(b"%d" % n, spec) for n in range(1, 5)]  # now it is full
    await asyncio.gather(first, *rest)
    assert stage.executor.batches == [5]


async def test_a_second_frame_leaves_when_the_first_is_nearly_done_and_with_all_who_came(
    stage: Stage,
) -> None:
    await stage.call()
    (line,) = stage.joining._lines.values()
    line.service_s = 60.0
    first = stage.call(b'{"do": "sleep", "s": 1.0}')
    while len(stage.sent) < 2:
        await asyncio.sleep(0)
    second = stage.call()
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.joining.waiting == 1
    third = stage.call()
    await asyncio.gather(first, second, third)
    assert stage.executor.batches == [1, 1, 2]


async def test_a_second_frame_leaves_at_once_where_the_model_is_quick_or_the_frame_is_full(
    stage: Stage,
) -> None:
    await stage.call()
    (line,) = stage.joining._lines.values()
    for service_s, more in ((0.0001, 1), (60.0, line.calls_max)):
        sent = len(stage.sent)
        line.service_s = service_s
        first = stage.call(SLEEP)
        while len(stage.sent) == sent:
            await asyncio.sleep(0)
        line.service_s = service_s
        others = [stage.call() for _ in range(more)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert stage.joining.waiting == 0
        await asyncio.gather(first, *others)
