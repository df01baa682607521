"""Limits without a container: the cgroup search on recorded trees, verdicts, and arithmetic."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.records import Resources
from appliance.sandbox import hardening, kernel, limits
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
