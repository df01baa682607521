"""A runtime that takes no time to install or carry about; nothing can run in it."""

from __future__ import annotations

from pathlib import Path

from running import tar_of_files

from appliance.sandbox import images

FILES = {"usr/bin/ruby3.1": b"x" * 3000, "etc/debian_version": b"12\n"}


def tiny_runtime(data_dir: Path) -> images.Runtime:
    """Install it as ruby3.1."""
    tar = data_dir / "tiny.tar"
    tar.write_bytes(tar_of_files(FILES))
    runtime = images.install(data_dir, "ruby3.1", tar, lambda *_: None)
    tar.unlink()
    return runtime
