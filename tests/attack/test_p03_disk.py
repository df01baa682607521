"""P03: write a gigabyte to every place a program tries first."""

from __future__ import annotations

import shutil

import pytest
from boxes import Ways, box, spec_of

from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import MIB

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_way_and_tier"),
]

FILL = """
import errno, os
answer = {}
mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
folders = inputs["folders"] + [one for one in mounts if one not in inputs["folders"]]
for folder in filter(os.path.isdir, folders):
    written, path = 0, os.path.join(folder, "fill")
    try:
        with open(path, "wb", buffering=0) as out:
            while written < 1 << 30:
                written += out.write(b"x" * (1 << 20))
        answer[folder] = [written, ""]
    except OSError as error:
        answer[folder] = [written, errno.errorcode[error.errno]]
    try:
        os.unlink(path)
    except OSError:
        pass
"""


async def test_writing_is_refused_at_the_quota(podman_executor: PodmanExecutor) -> None:
    folders = ["/", "/tmp", "/dev/shm", "/var/tmp", ".", "/model", "/run", "/run/app", "/dev",
               "/home", "/root", "/etc", "/dev/mqueue", "/sys/fs/cgroup"]  # fmt: skip
    free = shutil.disk_usage(podman_executor.data_dir).free
    async with box(podman_executor, spec_of(memory_mb=512, tmp_bytes=16 * MIB)) as one:
        found = await one.run(FILL, folders=folders)
    assert free - shutil.disk_usage(podman_executor.data_dir).free < 64 * MIB
    sized = {folder: found.pop(folder) for folder in ("/tmp", "/dev/shm", ".", "/model")}
    if Ways.image:  # its working folder is its own, and read-only like the rest
        assert sized.pop(".") == [0, "EROFS"]
    for folder, (written, reason) in sized.items():
        assert reason in ("ENOSPC", "EFBIG"), folder
        assert written <= 90 * MIB, folder
    assert sized["/tmp"][0] <= 16 * MIB
    for folder, (written, reason) in found.items():
        assert (written, reason in ("EROFS", "EACCES", "EPERM", "EMFILE", "ENOENT")) == (0, True), (
            folder,
            reason,
        )
