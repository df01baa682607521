"""P15: what one tenant leaves behind, the next one in the same place looks for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from boxes import box, spec_of

from appliance import config
from appliance.sandbox import kernel
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_way_and_tier"),
]

CANARY = "canary-of-tenant-a"
LEAVE = """
import ctypes, os
left = []
for folder in ("/tmp", "/dev/shm", "/model", "/var/tmp", "/run", "/dev", "/dev/mqueue", "/home",
               "/run/app", "/deps", "/data", "/gpu", "/", "/etc", "/proc/self", "/sys"):
    try:
        with open(os.path.join(folder, inputs["canary"]), "w") as out:
            out.write(inputs["canary"])
        left.append(folder)
    except OSError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
libc.shmget(0x5EED, 4096, 0o1666)
libc.msgget(0x5EED, 0o1666)
libc.semget(0x5EED, 1, 0o1666)
libc.syscall(248, b"user", inputs["canary"].encode(), b"x", 1, ctypes.c_long(-4))
answer = left
"""
FIND = """
import ctypes, os
answer = []
for top in ("/tmp", "/dev", "/model", "/var", "/run", "/home", "/deps", "/data", "/gpu", "/etc"):
    for folder, folders, names in os.walk(top):
        for name in names + folders:
            if inputs["canary"] in name:
                answer.append(os.path.join(folder, name))
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in (("shmget", (0x5EED, 4096, 0)), ("msgget", (0x5EED, 0)),
                        ("semget", (0x5EED, 1, 0))):
    if getattr(libc, name)(*arguments) >= 0:
        answer.append(name)
for name in ("shm", "msg", "sem"):
    if os.path.exists(f"/proc/sysvipc/{name}"):
        answer += open(f"/proc/sysvipc/{name}").read().splitlines()[1:]
if os.path.exists("/proc/keys") and inputs["canary"] in open("/proc/keys").read():
    answer.append("keys")
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def one_slot(
    test_data: Path, sandbox_settings: config.Sandbox, podman_executor: PodmanExecutor
) -> AsyncIterator[PodmanExecutor]:
    """An engine with three pairs of ids: after the probe, one is used again and again."""
    run_dir = Path(tempfile.mkdtemp(prefix="o", dir=podman_executor.run_dir.parent))
    own = kernel.own_sub_ids()
    ids = kernel.SubIds(uid_base=own.uid_base, gid_base=own.gid_base, count=6, skip=own.count - 16)
    executor = PodmanExecutor(sandbox_settings, run_dir=run_dir, data_dir=test_data, ids=ids)
    await executor.start()
    yield executor
    await executor.close()
    shutil.rmtree(run_dir, ignore_errors=True)


async def test_the_next_tenant_in_the_same_slot_finds_nothing(one_slot: PodmanExecutor) -> None:
    held = [one_slot.slots.take(), one_slot.slots.take()]
    uids = set()
    for _ in range(2):
        async with box(one_slot, spec_of("a")) as one:
            uids.add(one.sandbox.slot.user_uid)
            left = await one.run(LEAVE, canary=CANARY)
            assert set(left) == {"/tmp", "/dev/shm", "/model"}
        async with box(one_slot, spec_of("b")) as two:
            uids.add(two.sandbox.slot.user_uid)
            assert await two.run(FIND, canary=CANARY) == []
    assert len(uids) == 1
    for slot in held:
        one_slot.slots.give(slot)
