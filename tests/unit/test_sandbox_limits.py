"""Limits without a container: the cgroup search on recorded trees, verdicts, and arithmetic."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.records import Resources
from appliance.sandbox import hardening, kernel, limits
from appliance.sandbox.freezer import Freezer
from appliance.sandbox.spec import MIB, SandboxSpec

SPEC = SandboxSpec(version_key="v", tenant_id="t", runtime="r", runtime_digest="d",
                   model_bytes=10 * MIB, resources=Resources(pids=20, cpus=0.5))  # fmt: skip


def tree(root: Path, folders: dict[str, str]) -> None:
    """A recorded cgroup v2 tree: folder to its ``cgroup.subtree_control``."""
    (root / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma misc\n")
    for folder, control in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "cgroup.subtree_control").write_text(control)
        (root / folder / "cgroup.procs").write_text("")


UNIT = "system.slice/appliance.service"


@pytest.mark.parametrize(
    ("folders", "own", "configured", "found"),
    [
        ({UNIT: "cpu memory pids\n", f"{UNIT}/main": "\n"}, f"0::/{UNIT}/main\n", "", f"/{UNIT}"),
        ({UNIT: "cpu memory pids\n"}, f"0::/{UNIT}\n", "", f"/{UNIT}"),
        ({UNIT: "cpu\n", f"{UNIT}/main": "\n"}, f"0::/{UNIT}/main\n", "", ""),
        ({"x.slice": "memory pids"}, "0::/\n", "/x.slice", "/x.slice"),
        ({"x.slice": "memory"}, "0::/\n", "/x.slice", ""),
        ({}, "0::/gone\n", "", ""),
        ({UNIT: "memory pids"}, f"9:memory:/a\n0::/{UNIT}\n", "", f"/{UNIT}"),
    ],
)
def test_a_delegated_parent_is_found_by_what_it_can_do(
    tmp_path: Path, folders: dict[str, str], own: str, configured: str, found: str
) -> None:
    tree(tmp_path, folders)
    assert limits.delegated_parent(configured, root=tmp_path, own=own) == found


def test_a_parent_that_may_not_be_written_is_none(tmp_path: Path) -> None:
    tree(tmp_path, {UNIT: "memory pids"})
    own = f"0::/{UNIT}\n"
    assert limits.delegated_parent("", root=tmp_path, own=own, writable=lambda _: False) == ""


def test_cgroup_v1_is_no_parent(tmp_path: Path) -> None:
    assert limits.delegated_parent("", root=tmp_path, own="4:memory:/x\n0::/\n") == ""


@pytest.mark.parametrize(
    ("one", "many", "made", "level"),
    [
        (True, True, 12, "supervised"),
        (False, True, 12, "none"),
        (True, False, 12, "none"),
        (True, True, 36, "none"),
        (True, True, 0, "none"),
    ],
)
def test_what_got_out_of_a_limit_makes_the_level_none(
    one: bool, many: bool, made: int, level: str
) -> None:
    result = limits.ProbeResult(one_process=one, many_processes=many, made=made)
    report = limits.report_from_probe("supervised", "m", result)
    assert report.level == level
    assert (report.memory == limits.NOT_HELD) == (not (one and many))
    assert ("NOT stopped" in report.detail) == (not (one and many))


def test_the_kernels_limits_are_what_the_version_asks_for() -> None:
    body = hardening.container_json(
        SPEC, name="n", labels={}, command=("x",), rootfs="/r", box="/b", binds={},
        slot=hardening.Slot(first=2, root_uid=100002, user_uid=100003, user_gid=100003),
        seccomp_path="/s", level="enforced", cgroup_parent="/p",
    )  # fmt: skip
    limit = 522 * MIB
    assert body["resource_limits"] == {
        "memory": {"limit": limit, "swap": limit},
        "pids": {"limit": 21},
        "cpu": {"quota": 50_000, "period": 100_000},
    }
    assert body["cgroup_parent"] == "/p"
    assert "data" not in hardening.process_limits(SPEC, "enforced")
    assert hardening.process_limits(SPEC, "supervised")["data"] == SPEC.resources.memory_bytes


def test_the_container_has_no_network_no_capability_and_a_read_only_root() -> None:
    body = hardening.container_json(
        SPEC, name="n", labels={}, command=("x",), rootfs="/r", box="/b", binds={"/deps": "/d"},
        slot=hardening.Slot(first=2, root_uid=100002, user_uid=100003, user_gid=100003),
        seccomp_path="/s", level="supervised",
    )  # fmt: skip
    assert body["netns"] == {"nsmode": "none"}
    assert body["cap_drop"] == ["all"]
    assert body["no_new_privileges"] is True
    assert body["read_only_filesystem"] is True
    assert body["idmappings"]["UIDMap"] == [
        {"container_id": 0, "host_id": 3, "size": 1},
        {"container_id": 1000, "host_id": 4, "size": 1},
    ]
    binds = [mount for mount in body["mounts"] if mount["type"] == "bind"]
    assert len(binds) == 2
    assert all("ro" in mount["options"] and "nosuid" in mount["options"] for mount in binds)


def test_the_seccomp_profile_allows_only_what_it_names() -> None:
    for level in ("enforced", "supervised"):
        profile = hardening.seccomp_profile(level)
        assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
        free = {
            name
            for rule in profile["syscalls"]
            if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
            for name in rule["names"]
        }
        dangerous = {"unshare", "setns", "mount", "clone", "clone3", "keyctl", "bpf", "ptrace",
                     "io_uring_setup", "socket", "userfaultfd", "perf_event_open",
                     "open_by_handle_at", "process_vm_readv", "socketcall"}  # fmt: skip
        assert not free & dangerous
        assert {"read", "write", "futex", "execve", "exit_group", "mprotect"} <= free
    supervised = hardening.seccomp_profile("supervised")["syscalls"][0]["names"]
    assert not {"memfd_create", "shmget", "mmap"} & set(supervised)


@pytest.fixture
def child() -> Iterator[int]:
    """A process of this test's user."""
    process = subprocess.Popen(["/bin/sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may raise a priority")
def test_a_process_that_was_started_nice_keeps_its_priority(child: int) -> None:
    cores = os.sched_getaffinity(child)
    kernel.pin(child, cores, 15)
    kernel.pin(child, cores, 5)
    assert os.getpriority(os.PRIO_PROCESS, child) == 15


def container(root: Path, pid: int, **files: str) -> Path:
    """What the kernel shows of a container's cgroup v2, recorded: its folder."""
    place = "system.slice/appliance.service/libpod-0a1b"
    (root / "proc" / str(pid)).mkdir(parents=True)
    (root / "proc" / str(pid) / "cgroup").write_text(f"0::/{place}\n")
    folder = root / "cgroup" / place
    folder.mkdir(parents=True)
    recorded = {
        "cgroup.freeze": "0\n",
        "cgroup.events": "populated 1\nfrozen 0\n",
        "memory.max": "max\n",
        **{name.replace("_", "."): text for name, text in files.items()},
    }
    for name, text in recorded.items():
        (folder / name).write_text(text)
    return folder


def places(root: Path) -> dict[str, str]:
    return {"proc": str(root / "proc"), "root": str(root / "cgroup")}


def freezer_of(root: Path, pid: int) -> Freezer:
    at = places(root)
    return Freezer(pid, {os.getuid()}, by_cgroup=True, proc=at["proc"], cgroups=at["root"])


def test_the_memory_limit_of_a_version_is_written_to_the_containers_own_cgroup(
    tmp_path: Path,
) -> None:
    folder = container(tmp_path, 77)
    kernel.set_memory_max(77, 522 * MIB, **places(tmp_path))
    assert (folder / "memory.max").read_text() == f"{522 * MIB}\n"


def test_a_memory_limit_the_kernel_does_not_keep_is_an_error(tmp_path: Path) -> None:
    folder = container(tmp_path, 77)
    (folder / "memory.max").unlink()
    (folder / "memory.max").symlink_to("/dev/null")  # takes everything, keeps nothing
    with pytest.raises(OSError, match=r"memory\.max is"):
        kernel.set_memory_max(77, 522 * MIB, **places(tmp_path))
    (folder / "memory.max").unlink()
    (folder / "memory.max").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        kernel.set_memory_max(77, 522 * MIB, **places(tmp_path))


@pytest.mark.parametrize("own", ["0::/\n", "9:memory:/libpod-0a1b\n", ""])
def test_a_process_in_no_cgroup_of_its_own_has_none_written(tmp_path: Path, own: str) -> None:
    container(tmp_path, 77)
    (tmp_path / "proc/77/cgroup").write_text(own)
    (tmp_path / "cgroup/memory.max").write_text("max\n")
    (tmp_path / "cgroup/cgroup.freeze").write_text("0\n")
    with pytest.raises(OSError, match="no cgroup of its own"):
        kernel.set_memory_max(77, MIB, **places(tmp_path))
    with pytest.raises(OSError, match="no cgroup of its own"):
        kernel.set_frozen(77, True, **places(tmp_path))
    assert (tmp_path / "cgroup/memory.max").read_text() == "max\n"
    assert (tmp_path / "cgroup/cgroup.freeze").read_text() == "0\n"


def test_a_container_with_a_cgroup_is_frozen_by_it_and_gets_no_signal(
    tmp_path: Path, child: int
) -> None:
    folder = container(tmp_path, child, cgroup_events="populated 1\nfrozen 1\n")
    freezer = freezer_of(tmp_path, child)
    assert freezer.freeze()
    assert (folder / "cgroup.freeze").read_text() == "1\n"
    assert kernel.is_running(child)
    freezer.thaw()
    assert (folder / "cgroup.freeze").read_text() == "0\n"


def test_a_freeze_waits_until_the_kernel_says_that_all_stands_still(
    tmp_path: Path, child: int
) -> None:
    folder = container(tmp_path, child)

    def settle() -> None:
        (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")

    later = threading.Timer(0.05, settle)
    later.start()
    started = time.monotonic()
    assert freezer_of(tmp_path, child).freeze()
    assert 0.04 < time.monotonic() - started < 5
    later.join()


@pytest.mark.parametrize("lacks", ["cgroup.freeze", "cgroup.events"])
def test_where_the_cgroup_cannot_be_frozen_every_process_is_stopped(
    tmp_path: Path, child: int, lacks: str
) -> None:
    folder = container(tmp_path, child)
    (folder / lacks).unlink()
    folder.chmod(0o500)
    try:
        freezer = freezer_of(tmp_path, child)
        assert freezer.freeze()
        assert not kernel.is_running(child)
        freezer.thaw()
        assert kernel.is_running(child)
    finally:
        folder.chmod(0o700)


def test_faults_name_what_is_wrong() -> None:
    good = kernel.Confinement(
        uids=(5,) * 4, gids=(6,) * 4, no_new_privileges=True, seccomp=2, effective=0, bounding=0,
        uid_map=((0, 99_991, 1), (1000, 99_992, 1)),
    )  # fmt: skip
    assert kernel.faults(good, user_uid=5, user_gid=6) == []
    import dataclasses

    for changes, word in (
        ({"no_new_privileges": False}, "NoNewPrivs"),
        ({"seccomp": 0}, "Seccomp"),
        ({"effective": 1}, "capabilities"),
        ({"bounding": 1}, "capabilities"),
        ({"uids": (5, 5, 5, 0)}, "runs as"),
        ({"gids": (0,) * 4}, "runs as"),
        ({"uid_map": ((0, 99_991, 65536),)}, "uid map"),
        ({"uid_map": ((0, os.getuid(), 1), (1000, 99_992, 1))}, "service user"),
    ):
        bad = dataclasses.replace(good, **changes)  # type: ignore[arg-type]
        assert any(word in fault for fault in kernel.faults(bad, user_uid=5, user_gid=6)), changes


def test_the_largest_range_of_the_user_counts() -> None:
    text = "a:1:5\nme:100000:65536\nme:9:10\n1001:500000:70000\nbroken\nme:x:y\n"
    assert kernel.subordinate_range("me", 1001, text) == (500_000, 70_000)
    assert kernel.subordinate_range("me", 7, text) == (100_000, 65_536)
    assert kernel.subordinate_range("you", 8, text) == (0, 0)
