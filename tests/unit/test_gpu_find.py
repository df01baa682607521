"""Finding GPUs: CDI specs in JSON and YAML, what the driver says, AMD's device tree, bundles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_gpus
import pytest

from appliance import config
from appliance.errors import GpuLost
from appliance.sandbox import gpu, gpu_bundle, gpu_cdi, gpu_nvml, hardening
from appliance.sandbox.gpu_cdi import Libraries
from appliance.sandbox.gpu_place import Gpu
from appliance.sandbox.spec import MIB, SandboxSpec

UUID = "GPU-4d1c8f9e-0000-1111-2222-333344445555"
MIG = "MIG-0a1b2c3d-0000-1111-2222-333344445555"


def device(name: str, *nodes: str) -> dict[str, Any]:
    return {"name": name, "containerEdits": {"deviceNodes": [{"path": n} for n in nodes]}}


def write(folder: Path, tree: Any, name: str = "nvidia.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return folder


def test_no_driver_and_no_spec_is_no_gpu_without_a_word(tmp_path: Path, caplog: Any) -> None:
    found = gpu.find(config.Sandbox(cdi_dirs=(str(tmp_path / "none"),)))
    if not found.gpus:  # a machine that runs this may have one
        assert (found.problems, caplog.records) == ((), [])


@pytest.mark.parametrize("as_yaml", [False, True])
def test_a_gpu_with_several_names_is_one_unit(tmp_path: Path, as_yaml: bool) -> None:
    settings = fake_gpus.write(tmp_path, as_yaml=as_yaml, gpus=3, memory_mb=7)
    found = gpu_cdi.find(settings.cdi_dirs)
    assert [one.id for one in found.gpus] == [fake_gpus.id_of(n) for n in range(3)]
    first = found.gpus[0]
    assert (first.memory_bytes, first.name, first.vendor) == (7 * MIB, "Fake One", "appliance.test")
    assert first.nodes == (("/dev/tty", "/dev/fakectl"), ("/dev/null", "/dev/fakegpu0"))
    assert first.environment == (("FAKE_COMMON", "yes"), ("FAKE_GPU", "0"))
    libraries = found.libraries["appliance.test"]
    assert [path.name for path in libraries.files] == [fake_gpus.LIBRARY]
    assert libraries.links == (("libfake.so", fake_gpus.LIBRARY),)


def test_the_uuid_is_the_id_and_what_a_program_does_not_need_is_left_out(tmp_path: Path) -> None:
    nodes = ("/dev/null", "/dev/dri/card1", "/dev/nvidia-modeset", "/dev/is-not-there")
    tree = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [device("0", *nodes), device(UUID, *nodes), device("all", *nodes)],
        "containerEdits": {
            "mounts": [{"hostPath": "/usr/lib/libcuda.so.580.65.06", "containerPath": "/x"}]
        },
    }
    (one,) = gpu_cdi.find([str(write(tmp_path, tree))]).gpus
    assert (one.id, one.index, one.cdi) == (UUID, "0", f"nvidia.com/gpu={UUID}")
    assert one.nodes == (("/dev/null", "/dev/null"),)
    assert one.driver == "580.65.06"


def test_a_divided_gpu_is_given_out_in_its_parts_only(tmp_path: Path) -> None:
    tree = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            device("0", "/dev/null"),
            device("0:0", "/dev/null", "/dev/full"),
            device(MIG, "/dev/null", "/dev/full"),
            device("0:1", "/dev/null", "/dev/random"),
            device("1", "/dev/tty"),
        ],
    }
    found = gpu_cdi.find([str(write(tmp_path, tree))]).gpus
    assert [(one.id, one.kind, one.index) for one in found] == [
        (MIG, "mig", "0:0"),
        ("nvidia.com/gpu=0:1", "mig", "0:1"),
        ("nvidia.com/gpu=1", "gpu", "1"),
    ]


def test_a_broken_spec_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    fake_gpus.write(tmp_path, gpus=1)
    write(tmp_path, "{", "a.json")
    write(tmp_path, ": [", "b.yaml")
    write(tmp_path, {"devices": []}, "c.json")
    write(tmp_path, {"kind": "vendor.test/nic", "devices": [device("0", "/dev/null")]}, "d.json")
    found = gpu_cdi.find([str(tmp_path)])
    assert len(found.gpus) == 1
    assert sorted(Path(text.partition(":")[0]).name for text in found.problems) == [
        "a.json", "b.yaml", "c.json"]  # fmt: skip


def test_the_drivers_word_beats_the_specs_and_takes_its_names_and_nodes() -> None:
    fact = gpu_nvml.Fact(
        uuid=UUID, index="0", kind="gpu", name="NVIDIA H100", parent="", compute="9.0",
        memory_bytes=80_000 * MIB, nodes=("/dev/null",),
    )  # fmt: skip
    listed = Gpu(id="nvidia.com/gpu=0", vendor=gpu.NVIDIA, name="", index="0", cdi="n/gpu=0",
                 nodes=(("/dev/full", "/dev/full"), ("/dev/null", "/dev/null")))  # fmt: skip
    driver = gpu_nvml.Driver(version="580.1", facts=(fact,))
    (one,) = gpu.joined(driver, [listed])
    assert (one.id, one.name, one.compute) == (UUID, "NVIDIA H100", "9.0")
    assert (one.cdi, one.nodes) == (listed.cdi, listed.nodes)
    (bare,) = gpu.joined(driver, [])
    assert bare.cdi == ""
    assert ("/dev/null", "/dev/null") in bare.nodes


def test_a_partitions_nodes_are_what_the_driver_tells(tmp_path: Path) -> None:
    for folder, minor in (("gi3", 30), ("gi3/ci0", 31)):
        at = tmp_path / "gpu1/mig" / folder
        at.mkdir(parents=True)
        (at / "access").write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\n")
    assert gpu_nvml.capability_nodes(1, 3, 0, root=str(tmp_path)) == [
        "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"]  # fmt: skip
    assert gpu_nvml.capability_nodes(2, 3, 0, root=str(tmp_path)) == []


def test_amd_gpus_are_found_by_their_render_nodes(tmp_path: Path) -> None:
    for name, vendor in (("renderD128", "0x1002"), ("renderD129", "0x8086")):
        at = tmp_path / "drm" / name / "device"
        at.mkdir(parents=True)
        for file, text in (("vendor", vendor), ("mem_info_vram_total", str(64 * MIB)),
                           ("unique_id", "abc"), ("product_name", "MI300")):  # fmt: skip
            (at / file).write_text(text + "\n")
    dev = tmp_path / "dev"
    assert gpu.amd_units(drm=tmp_path / "drm", dev=str(dev)) == []
    dev.mkdir()
    (dev / "kfd").touch()
    (one,) = gpu.amd_units(drm=tmp_path / "drm", dev=str(dev))
    assert (one.id, one.name, one.memory_bytes) == ("amd.com/gpu=abc", "MI300", 64 * MIB)
    assert [path for _, path in one.nodes] == ["/dev/kfd", "/dev/dri/renderD128"]


def test_a_bundle_has_the_links_a_loader_looks_for_and_is_made_once(tmp_path: Path) -> None:
    settings = fake_gpus.write(tmp_path / "cdi")
    libraries = gpu_cdi.find(settings.cdi_dirs).libraries["appliance.test"]
    folder = tmp_path / "gpu"
    folder.mkdir()
    name = gpu_bundle.ensure(folder, "appliance.test", "1.2", libraries)
    lib = folder / name / "lib"
    links = {path.name: os.readlink(path) for path in lib.iterdir() if path.is_symlink()}
    assert links == {"libfake.so": fake_gpus.LIBRARY, "libz.so.1": fake_gpus.LIBRARY}
    assert not (lib / fake_gpus.LIBRARY).is_symlink()
    made = lib.stat().st_ino
    assert gpu_bundle.ensure(folder, "appliance.test", "1.2", libraries) == name
    assert lib.stat().st_ino == made
    os.utime(libraries.files[0], (1, 1))  # the driver was updated
    second = gpu_bundle.ensure(folder, "appliance.test", "1.2", libraries)
    assert second != name
    (folder / ".new-half").mkdir()
    gpu_bundle.sweep(folder, frozenset({second}))
    assert [path.name for path in folder.iterdir()] == [second]


def test_a_library_that_is_gone_is_a_gpu_lost(tmp_path: Path) -> None:
    with pytest.raises(GpuLost, match="cannot be read"):
        gpu_bundle.ensure(tmp_path, "v", "1", Libraries(files=(tmp_path / "libx.so.1",)))


@pytest.mark.parametrize("head", [b"", b"\x7fELF\x01", b"\x7fELF\x02\x01" + b"\xff" * 200])
def test_what_is_no_library_has_no_soname(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "x").write_bytes(head)
    assert gpu_bundle.soname(tmp_path / "x") == ""


def body_of(level: str = "supervised") -> dict[str, Any]:
    return hardening.container_json(
        SandboxSpec(version_key="v", tenant_id="t", runtime="python3.11", runtime_digest="d"),
        name="n", labels={}, command=("x",),
        slot=hardening.Slot(first=0, root_uid=1, user_uid=2, user_gid=2), rootfs="/r", box="/b",
        binds={}, seccomp_path="/s", level=level,  # type: ignore[arg-type]
    )  # fmt: skip


def test_in_cdi_mode_podman_gets_the_qualified_names_and_nothing_else(tmp_path: Path) -> None:
    settings = config.replace(
        config.Settings(sandbox=fake_gpus.write(tmp_path / "cdi")), "sandbox", gpu_mode="cdi"
    ).sandbox
    gpus = gpu.Gpus(settings, tmp_path / "gpu")
    gpus.start()
    part = gpus.part((fake_gpus.id_of(1),))
    body = body_of()
    before = len(body["mounts"])
    hardening.add_gpus(body, part, bundle="")
    assert body["devices"] == [{"path": fake_gpus.id_of(1)}]
    assert len(body["mounts"]) == before
    assert "LD_LIBRARY_PATH" not in body["env"]
    assert list((tmp_path / "gpu").iterdir()) == []


def test_gpus_switched_off_are_not_looked_for(tmp_path: Path) -> None:
    settings = fake_gpus.write(tmp_path)
    off = config.replace(config.Settings(sandbox=settings), "sandbox", gpu_mode="off").sandbox
    assert gpu.find(off) == gpu.Inventory()


def test_cuda_programs_are_told_their_gpus_by_uuid_and_may_read_what_the_driver_tells() -> None:
    units = [Gpu(id=uuid, vendor=gpu.NVIDIA, name="A100") for uuid in (UUID, "GPU-2")]
    env = gpu.environment_of(units)
    assert env["NVIDIA_VISIBLE_DEVICES"] == env["CUDA_VISIBLE_DEVICES"] == f"{UUID},GPU-2"
    body = body_of()
    assert "/proc/driver" in body["mask"]
    hardening.add_gpus(body, gpu.Part(reads_driver=True, bundle="b"), bundle="/x/b")
    assert not {"/proc/driver", "/proc/devices"} & set(body["mask"])
    assert "/proc/kcore" in body["mask"]


def test_only_a_gpus_profile_allows_shared_anonymous_memory_under_supervised_limits() -> None:
    def allows(profile: dict[str, Any]) -> bool:
        rules = [rule for rule in profile["syscalls"] if rule["names"] == ["mmap"]]
        return any(rule["args"][0]["valueTwo"] == 0x21 for rule in rules)

    assert not allows(hardening.seccomp_profile("supervised"))
    assert allows(hardening.seccomp_profile("supervised", gpu=True))
    assert hardening.seccomp_profile("enforced", gpu=True) == hardening.seccomp_profile("enforced")


def test_no_driver_is_asked_about_gpus_it_does_not_know(tmp_path: Path) -> None:
    gpus = gpu.Gpus(fake_gpus.write(tmp_path / "cdi"), tmp_path / "gpu")
    gpus.start()
    assert gpus.usage(frozenset({fake_gpus.id_of(0)})) == ([], [])
    assert fake_gpus.id_of(0) not in gpus.fills()


def test_what_the_gpu_check_imports_is_carried_to_a_machine_that_can_fetch_nothing() -> None:
    root = Path(__file__).resolve().parents[2]
    script = (root / "packaging/gpu-check").read_text()
    carried = set(re.search(r"^WHEELS=\((.*?)\)", script, re.MULTILINE | re.DOTALL)[1].split())  # type: ignore[index]
    sources = [root / "packaging/gpu_check.py", *(root / "appliance").glob("*.py"),
               *(root / "appliance/sandbox").rglob("*.py")]  # fmt: skip
    look = "import sys; sys.path.insert(0, 'packaging'); import gpu_check; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    text = "\n".join(path.read_text() for path in sources)
    asked = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    ours = {"appliance", "gpu_check"} | set(sys.stdlib_module_names)
    missing = (imported & asked) - ours - {name.replace("-", "_") for name in carried} - {"yaml"}
    assert missing == set()
