"""Runtimes that take no time to install or carry about; nothing can run in them."""

from __future__ import annotations

import json
from pathlib import Path

from running import tar_of_files

from appliance.sandbox import images

FILES = {"usr/bin/ruby3.1": b"x" * 3000, "etc/debian_version": b"12\n"}


def echo_runtime(data_dir: Path) -> None:
    """Have something to register python3.11 versions with, where sandboxes only echo."""
    folder = data_dir / "runtimes" / "python3.11-000000000000"
    (folder / "rootfs").mkdir(parents=True)
    about = {"name": "python3.11", "digest": "sha256:0", "packages": [], "built_at": "2026"}
    (folder / "runtime.json").write_text(json.dumps(about))


def tiny_runtime(data_dir: Path) -> images.Runtime:
    """Install it as ruby3.1."""
    tar = data_dir / "tiny.tar"
    tar.write_bytes(tar_of_files(FILES))
    runtime = images.install(data_dir, "ruby3.1", tar, lambda *_: None)
    tar.unlink()
    return runtime
