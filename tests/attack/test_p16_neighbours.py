"""P16: two tenants at once look for each other."""

from __future__ import annotations

import pytest
from boxes import box, spec_of

from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_way_and_tier"),
]

SHOW = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
kept["server"] = socket.create_server(("127.0.0.1", 4455))
kept["abstract"] = socket.socket(socket.AF_UNIX)
kept["abstract"].bind("\\0" + inputs["canary"])
kept["abstract"].listen(1)
open("/dev/shm/" + inputs["canary"], "w").close()
libc.shmget(0x5EED, 4096, 0o1666)
libc.msgget(0x5EED, 0o1666)
libc.semget(0x5EED, 1, 0o1666)
libc.mq_open(b"/" + inputs["canary"].encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
if os.fork() == 0:
    import time
    time.sleep(30)
answer = 1
"""
LOOK = """
import ctypes, os, socket
answer = []
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
if len(pids) > 2:
    answer.append(f"processes {pids}")
for pid in range(1, 70000, 1):
    if pid not in pids:
        try:
            os.kill(pid, 0)
            answer.append(f"pid {pid}")
        except ProcessLookupError:
            pass
for address in (("127.0.0.1", 4455), "\\0" + inputs["canary"]):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    try:
        with socket.socket(family) as link:
            link.settimeout(1)
            link.connect(address)
        answer.append(f"reached {address}")
    except OSError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
if libc.shmget(0x5EED, 4096, 0) >= 0:
    answer.append("shm")
if libc.msgget(0x5EED, 0) >= 0:
    answer.append("msg")
if libc.semget(0x5EED, 1, 0) >= 0:
    answer.append("sem")
if libc.mq_open(b"/" + inputs["canary"].encode(), os.O_RDWR) >= 0:
    answer.append("mq")
for folder in ("/dev/shm", "/dev/mqueue", "/tmp", "/run", "/run/app"):
    try:
        answer += [name for name in os.listdir(folder) if inputs["canary"] in name]
    except OSError:
        pass
for name in ("unix", "tcp"):
    text = open(f"/proc/net/{name}").read()
    if inputs["canary"] in text or ":1167" in text:
        answer.append(name)
"""


async def test_neighbours_see_nothing_of_each_other(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor, spec_of("a")) as one, box(podman_executor, spec_of("b")) as two:
        await one.run(SHOW, canary="canary-a")
        assert await two.run(LOOK, canary="canary-a") == []
