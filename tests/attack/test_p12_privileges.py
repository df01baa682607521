"""P12: what the kernel says about a sandbox, and setuid programs."""

from __future__ import annotations

import os
import stat

import pytest
from boxes import box, spec_of

from appliance.errors import ModelRaised
from appliance.sandbox import kernel
from appliance.sandbox.images import Runtime
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.usefixtures("each_way")
async def test_the_process_has_nothing(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        status = await one.run("answer = open('/proc/self/status').read()")
        fields = dict(line.split(":", 1) for line in status.splitlines())
        assert {name: int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {
            "CapEff": 0, "CapPrm": 0, "CapBnd": 0,
        }  # fmt: skip
        assert fields["NoNewPrivs"].strip() == "1"
        assert fields["Seccomp"].strip() == "2"
        assert fields["Uid"].split() == ["1000"] * 4
        assert fields["Groups"].split() in ([], ["1000"])
        uid_map = await one.run("answer = open('/proc/self/uid_map').read()")
        rows = [[int(word) for word in line.split()] for line in uid_map.splitlines()]
        assert [(inside, size) for inside, _, size in rows] == [(0, 1), (1000, 1)]
        assert os.getuid() not in [outside for _, outside, _ in rows]
        seen_outside = kernel.confinement(one.sandbox.pid)
        slot = one.sandbox.slot
        assert not kernel.faults(seen_outside, user_uid=slot.user_uid, user_gid=slot.user_gid)


async def test_a_setuid_bit_gains_nothing(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        for folder in ("/tmp", "/model"):
            uid = await one.run(f"""
import os, shutil, subprocess
shutil.copy("/usr/bin/id", "{folder}/id")
os.chmod("{folder}/id", 0o6755)
try:
    answer = subprocess.run(["{folder}/id", "-u"], capture_output=True).stdout.decode().strip()
except PermissionError:
    answer = "1000"
""")
            assert uid == "1000"
        with pytest.raises(ModelRaised, match="PermissionError"):
            await one.run("import os; os.setuid(0)")
        with pytest.raises(ModelRaised, match="PermissionError"):
            await one.run("import os; os.setgroups([0])")


async def test_the_runtime_holds_no_setuid_file(runtime: Runtime) -> None:
    found = []
    for folder, _, names in os.walk(runtime.rootfs):
        for name in names:
            mode = os.lstat(os.path.join(folder, name)).st_mode
            if mode & (stat.S_ISUID | stat.S_ISGID):
                found.append(name)
    assert not found


async def test_no_two_sandboxes_share_a_host_user(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor, spec_of("a")) as one, box(podman_executor, spec_of("b")) as two:
        first, second = one.sandbox.slot, two.sandbox.slot
        assert {first.root_uid, first.user_uid}.isdisjoint({second.root_uid, second.user_uid})
