"""P04: a million empty files in every writable place."""

from __future__ import annotations

import time

import pytest
from boxes import box

from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_way"),
]

EMPTY_FILES = """
import errno, os
answer = {}
for folder in ("/tmp", "/dev/shm", "/model", "/dev/mqueue", "/run/app", "/dev"):
    made = 0
    try:
        while made < 1_000_000:
            os.close(os.open(f"{folder}/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
        answer[folder] = [made, ""]
    except OSError as error:
        answer[folder] = [made, errno.errorcode[error.errno]]
"""


KINDS = {
    "folders": "os.mkdir(path)",
    "symbolic links": "os.symlink('x', path)",
    "hard links": "os.link(first, path)",
    "sockets": "socket.socket(socket.AF_UNIX).bind(path)",
}
OTHERS = """
import errno, os, socket
first = inputs["folder"] + "/first"
open(first, "w").close()
made = 0
try:
    while made < 100_000:
        path = inputs["folder"] + f"/{made}"
        KIND
        made += 1
    answer = [made, ""]
except OSError as error:
    answer = [made, errno.errorcode[error.errno]]
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_every_other_kind_of_entry_counts_as_well(
    podman_executor: PodmanExecutor, kind: str
) -> None:
    async with box(podman_executor) as one:
        for folder in ("/tmp", "/dev/shm", "/model"):
            made, reason = await one.run(OTHERS.replace("KIND", KINDS[kind]), folder=folder)
            assert (reason, made < 33_000) == ("ENOSPC", True), (folder, made)


async def test_files_are_refused_at_the_inode_quota(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        found = await one.run(EMPTY_FILES)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    for folder in ("/tmp", "/dev/shm", "/model"):
        made, reason = found[folder]
        assert reason == "ENOSPC", (folder, reason)
        assert made < 33_000
    for folder in ("/run/app", "/dev"):
        assert found[folder][0] == 0
    assert found["/dev/mqueue"][0] == 0
