"""P01, P11 and P12 again for every other language: nobody's runner is a way out."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from boxes import Box
from languages import box_of, installed

from appliance.errors import OutOfMemory
from appliance.sandbox import images, kernel
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.runtimes import RUNTIMES

pytestmark = pytest.mark.podman
SESSION = pytest.mark.asyncio(loop_scope="session")
LANGUAGES = [name for name in installed() if name != "python3.11"]

# Perl is in every root folder, and calls the kernel by number. x86_64 and aarch64 numbers.
CALLS = {
    "unshare user": (272, 97, [0x10000000]),
    "setns": (308, 268, [0, 0]),
    "mount": (165, 40, ["none", "/tmp", "tmpfs", 0, 0]),
    "pivot_root": (155, 41, ["/tmp", "/tmp"]),
    "chroot": (161, 51, ["/tmp"]),
    "mknod": (259, 33, [-100, "/tmp/null", 0o20666, 0x103]),
    "keyctl": (250, 219, [0, 0xFFFFFFFD, 1]),
    "bpf": (321, 280, [0, 0, 0]),
    "io_uring_setup": (425, 425, [8, "room"]),
    "userfaultfd": (323, 282, [1]),
    "perf_event_open": (298, 241, ["room", 0, -1, -1, 0]),
    "ptrace": (101, 117, [0, 0, 0, 0]),
    "open_by_handle_at": (304, 265, [0, "room", 0]),
    "fsopen": (430, 430, ["tmpfs", 0]),
    "pidfd_getfd": (438, 438, [0, 0, 0]),
    "clone new user": (56, 220, [0x10000011, 0, 0, 0, 0]),
    "clone3": (435, 435, ["room", 88]),
    "socket packet": (41, 198, [17, 3, 0]),
    "socket vsock": (41, 198, [40, 1, 0]),
    "socket alg": (41, 198, [38, 5, 0]),
    "personality": (135, 92, [0x0400000]),
    "setuid": (105, 146, [0]),
}


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def shell(one: Box, command: str) -> str:
    return (await one.ask(f"run {command}".encode(), "text/plain"))[1].decode()


@SESSION
async def test_memory_over_the_limit_ends_the_sandbox(
    podman_executor: PodmanExecutor, language: str
) -> None:
    eat = "my @held; push @held, q(x) x (1 << 20) while 1;"
    children = "; ".join(f"perl -e '{eat}' & " for _ in range(3)).replace("& ;", "&")
    async with (
        box_of(podman_executor, language) as neighbour,
        box_of(podman_executor, language) as one,
    ):
        with pytest.raises(OutOfMemory):
            await one.ask(f"run {children} wait; sleep 10".encode(), "text/plain")
        assert not one.sandbox.alive
        assert (await neighbour.ask(b"there", "text/plain"))[1] == b"there"


@SESSION
async def test_every_way_out_is_refused(podman_executor: PodmanExecutor, language: str) -> None:
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    lines = ["$room = chr(0) x 4096;"]
    for name, (*numbers, arguments) in CALLS.items():
        given = ", ".join(
            "$room" if one == "room" else f"q({one})" if isinstance(one, str) else str(one)
            for one in arguments
        )
        lines.append(f"@given = ({given});")
        lines.append(f"print qq({name};) if syscall({numbers[column]}, @given) >= 0;")
    lines.append(f"print qq(getpid;) if syscall({(39, 172)[column]}) >= 0;")  # the probe works
    script = " ".join(lines)
    assert "'" not in script
    async with box_of(podman_executor, language) as one:
        found = await shell(one, f"perl -e '{script} print q(done)'")
    assert found == "getpid;done"


@SESSION
async def test_the_process_has_nothing(podman_executor: PodmanExecutor, language: str) -> None:
    async with box_of(podman_executor, language) as one:
        for file in ("/proc/self/status", "/proc/1/status"):
            status = (await one.ask(f"read {file}".encode(), "text/plain"))[1].decode()
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            assert [int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")] == [0, 0, 0]
            assert fields["NoNewPrivs"].strip() == "1"
            assert fields["Seccomp"].strip() == "2"
            assert fields["Uid"].split() == ["1000"] * 4
        slot = one.sandbox.slot
        found = kernel.confinement(one.sandbox.pid)
        assert not kernel.faults(found, user_uid=slot.user_uid, user_gid=slot.user_gid)
        descriptors = await shell(one, "ls -l /proc/1/fd | grep -c socket")
        assert int(descriptors) == 1  # the monitor has its own connection and no other
        written = await shell(one, "for at in / /usr /etc /run/app; do touch $at/x 2>&1; done")
        assert written.count("Read-only file system") == 4, json.dumps(written)


@pytest.mark.parametrize(
    "name", [*LANGUAGES, *filter(None, (RUNTIMES[n].compiler for n in LANGUAGES))]
)
def test_no_root_folder_holds_a_setuid_file(test_data: Path, name: str) -> None:
    found = []
    for folder, _, names in os.walk(images.require(test_data, name).rootfs):
        for file in names:
            if os.lstat(os.path.join(folder, file)).st_mode & (stat.S_ISUID | stat.S_ISGID):
                found.append(file)
    assert not found
