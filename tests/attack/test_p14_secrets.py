"""P14: look everywhere for something of the appliance."""

from __future__ import annotations

import os

import pytest
from boxes import box

from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_tier"),
]

SEARCH = """
import os
answer = []
def look(where, data):
    for word in inputs["words"]:
        if word.encode() in data:
            answer.append([word, where])
look("environment", repr(dict(os.environ)).encode())
for pid in [name for name in os.listdir("/proc") if name.isdigit()] + ["self"]:
    for name in ("environ", "cmdline", "mounts", "mountinfo", "cgroup", "maps", "stat", "status"):
        try:
            look(f"/proc/{pid}/{name}", open(f"/proc/{pid}/{name}", "rb").read())
        except OSError:
            pass
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            look(f"/proc/{pid}/fd/{fd}", os.readlink(f"/proc/{pid}/fd/{fd}").encode())
    except OSError:
        pass
for top in ("/run", "/tmp", "/model", "/dev", "/etc", "/var", "/home", "/root", "/mnt", "/opt",
            "/srv", "/media", "/data", "/deps", "/gpu"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            look(path, path.encode())
            try:
                if os.path.isfile(path) and os.path.getsize(path) < 1 << 20:
                    look(path, open(path, "rb").read())
            except OSError:
                pass
"""


async def test_no_canary_is_found(
    podman_executor: PodmanExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["canary-api-key", "canary-root-key", "canary-connector", "projection.duckdb"]
    monkeypatch.setenv("APPLIANCE_API_KEY", words[0])
    monkeypatch.setenv("APPLIANCE_KEY_FILE", words[1])
    monkeypatch.setenv("DATABASE_URL", f"{words[2]}/{words[3]}")
    words += ["APPLIANCE_", "APPLIANCE__", str(os.getpid() * 1_000_003)]
    async with box(podman_executor) as one:
        found = await one.run(SEARCH, words=words)
        environment = await one.run("import os; answer = dict(os.environ)")
    # The request itself holds the words, and so does the memory of the process that reads it.
    assert found == []
    assert {"PATH", "HOME", "LANG", "OMP_NUM_THREADS"} <= set(environment)
    assert not {name for name in environment if name.startswith(("APPLIANCE", "XDG", "SSL"))}


async def test_no_descriptor_of_the_host_is_inherited(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        found = await one.run("""
import os
answer = []
for fd in os.listdir("/proc/self/fd"):
    try:
        answer.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
    except OSError:
        pass
""")
    assert set(found) <= {"/dev/null", "pipe", "socket", "/proc/self/fd"} | {
        name for name in found if name.startswith("/proc/")
    }
    assert found.count("socket") == 1
