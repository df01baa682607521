"""P13: write to system files, read what tells about the host."""

from __future__ import annotations

import pytest
from boxes import Ways, box

from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_tier_and_image"),
]

WRITE = """
import errno, os
answer = {}
def attempt(path):
    try:
        with open(path, "r+b", buffering=0) as out:
            if os.fstat(out.fileno()).st_rdev == os.stat("/dev/null").st_rdev:
                answer[path] = "masked"
                return
            data = out.read(1) or b"1"
            out.seek(0)
            out.write(data)
        answer[path] = "written"
    except OSError as error:
        answer[path] = errno.errorcode.get(error.errno, str(error.errno))
for path in inputs["paths"]:
    attempt(path)
for top in ("/proc/sys", "/sys"):
    for folder, _, names in os.walk(top):
        for name in names[:40]:
            attempt(os.path.join(folder, name))
"""
READ = """
import os
answer = {}
for path in inputs["paths"]:
    try:
        if os.path.isdir(path):
            answer[path] = " ".join(os.listdir(path))
        else:
            with open(path, "rb") as data:
                answer[path] = data.read(200).decode("latin-1")
    except OSError as error:
        answer[path] = ""
"""


async def test_no_system_file_can_be_written(podman_executor: PodmanExecutor) -> None:
    paths = ["/etc/passwd", "/etc/shadow", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname",
             "/usr/bin/python3.11", "/bin/sh", "/run/app/python_runner.py", "/run/.containerenv",
             "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/1/oom_score_adj",
             "/proc/sys/kernel/ns_last_pid", "/proc/1/uid_map", "/proc/1/gid_map",
             "/proc/1/setgroups", "/proc/1/loginuid", "/proc/1/projid_map",
             "/proc/1/timens_offsets",
             "/proc/1/attr/exec", "/proc/self/attr/fscreate", "/proc/irq/0/smp_affinity",
             "/proc/bus/pci/devices", "/proc/acpi/wakeup", "/proc/mtrr", "/proc/scsi/scsi",
             "/proc/kcore", "/proc/kmsg", "/proc/latency_stats", "/proc/timer_list",
             "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory.max",
             "/sys/kernel/uevent_helper",
             "/sys/kernel/security/apparmor/.load", "/dev/mem", "/dev/kmsg", "/dev/fuse",
             "/dev/net/tun", "/dev/kvm", "/dev/vhost-vsock", "/dev/port"]  # fmt: skip
    async with box(podman_executor, None) as one:
        found = await one.run(WRITE, paths=paths)
    assert len(found) > (100 if Ways.isolation == "standard" else 50)
    written = [path for path, how in found.items() if how == "written"]
    assert written in ([], ["/proc/1/oom_score_adj"])


async def test_what_tells_about_the_host_is_empty(podman_executor: PodmanExecutor) -> None:
    names = ["config.gz", "kallsyms", "interrupts", "zoneinfo", "diskstats", "cmdline", "kcore",
             "keys", "key-users", "timer_list", "sched_debug", "modules", "iomem", "ioports",
             "partitions", "swaps", "slabinfo", "vmallocinfo", "pagetypeinfo", "buddyinfo",
             "kmsg", "sysrq-trigger", "locks", "softirqs", "acpi", "scsi", "asound", "bus",
             "irq", "driver", "schedstat", "vmstat", "crypto", "devices", "misc"]  # fmt: skip
    paths = [f"/proc/{name}" for name in names]
    paths += ["/sys/firmware", "/sys/kernel", "/sys/module", "/sys/class", "/sys/fs", "/sys/dev"]
    async with box(podman_executor) as one:
        found = await one.run(READ, paths=paths)
    if Ways.isolation == "gvisor":  # made up, the same on every host
        assert "gvisor" in found.pop("/proc/cmdline")
        assert (found.pop("/sys/class"), found.pop("/sys/fs")) == ("power_supply net", "cgroup")
    assert {path: text for path, text in found.items() if text} == {}
