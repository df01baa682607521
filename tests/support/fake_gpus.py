"""A vendor that does not exist: a CDI spec whose GPUs are harmless device nodes of any machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from appliance import config

KIND = "appliance.test/gpu"
LIBRARY = "libfake.so.1.2.3"
HOST_NODES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")


def node_of(number: int) -> str:
    return f"/dev/fakegpu{number}"


def id_of(number: int) -> str:
    return f"{KIND}={number}"


def spec(library: Path, *, gpus: int = 2, memory_mb: int = 1000) -> dict[str, Any]:
    """As ``nvidia-ctk cdi generate`` writes one: a GPU under two names, ``all``, mounts, hooks."""
    nodes = [{"path": node_of(n), "hostPath": HOST_NODES[n]} for n in range(gpus)]
    devices = [
        {
            "name": name,
            "annotations": {"appliance/memory-mb": str(memory_mb), "appliance/name": "Fake One"},
            "containerEdits": {"deviceNodes": [nodes[n]], "env": [f"FAKE_GPU={n}"]},
        }
        for n in range(gpus)
        for name in (str(n), f"fake-{n}")
    ]
    devices.append({"name": "all", "containerEdits": {"deviceNodes": nodes}})
    hook = {"hookName": "createContainer", "path": "/bin/false",
            "args": ["nvidia-cdi-hook", "create-symlinks", "--link",
                     f"{LIBRARY}::/usr/lib/libfake.so"]}  # fmt: skip
    return {
        "cdiVersion": "0.5.0",
        "kind": KIND,
        "devices": devices,
        "containerEdits": {
            "env": ["FAKE_COMMON=yes", "NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [{"path": "/dev/fakectl", "hostPath": "/dev/tty"}],
            "mounts": [
                {"hostPath": str(library), "containerPath": f"/usr/lib/{LIBRARY}",
                 "options": ["ro", "bind"]},
                {"hostPath": "/etc/hostname", "containerPath": "/etc/fake.conf"},
            ],
            "hooks": [hook],
        },
    }  # fmt: skip


def write(folder: Path, *, as_yaml: bool = False, **more: Any) -> config.Sandbox:
    """Write the spec and its library into a folder; the settings that find it."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / LIBRARY
    shutil.copyfile(_some_library(), library)
    tree = spec(library, **more)
    if as_yaml:
        (folder / "fake.yaml").write_text(yaml.safe_dump(tree))
    else:
        (folder / "fake.json").write_text(json.dumps(tree))
    return config.Sandbox(
        accept_supervised_limits=True, cdi_dirs=(str(folder),), zygote_memory_bytes_max=0
    )


def _some_library() -> str:
    for folder in ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/lib"):
        if os.path.exists(f"{folder}/libz.so.1"):
            return f"{folder}/libz.so.1"
    raise FileNotFoundError("libz.so.1")


def data_dir_with(folder: Path, test_data: Path) -> Path:
    """A data folder of its own with the installed runtimes of another."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runtimes").symlink_to(test_data / "runtimes")
    return folder
