"""Real images for tests: an interpreter, a server, and what is written into an archive of them."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oci_images import OCI, Entry, ImageParts, docker_archive, file, layer, oci_archive

from appliance.records import Container
from appliance.sandbox import images, oci
from appliance.sandbox.oci import Wanted

SERVER = Path(__file__).with_name("image_server.py")
_LEFT_OUT = ("perl", "test", "idlelib", "lib2to3", "ensurepip", "unittest", "pydoc_data", "gconv")
PLAIN = f"{OCI}.layer.v1.tar"
CONFIG: dict[str, Any] = {
    "Entrypoint": ["/usr/bin/python3.11", "-u", "/srv/server.py"],
    "Env": ["PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
    "WorkingDir": "/srv",
}


def _paths(rootfs: Path) -> Iterator[Path]:
    for name in ("bin", "lib", "lib64", "usr/lib64"):
        if (rootfs / name).is_symlink() or (rootfs / name).is_dir():
            yield rootfs / name
    for name in ("python3.11", "dash", "sh", "cat", "echo", "ls", "mkdir", "touch"):
        yield rootfs / "usr/bin" / name
    for folder in sorted(rootfs.glob("usr/lib/*-linux-gnu")):
        yield from sorted(folder.glob("*.so*"))
    yield rootfs / "usr/lib/python3.11"


def interpreter_layer(rootfs: Path) -> bytes:
    """A layer with what a Python program needs, taken from an installed runtime."""
    out = io.BytesIO()

    def kept(one: tarfile.TarInfo) -> tarfile.TarInfo | None:
        one.uid = one.gid = 0
        one.uname = one.gname = "root"
        return None if Path(one.name).name in _LEFT_OUT else one

    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _paths(rootfs):
            tar.add(path, str(path.relative_to(rootfs)), filter=kept)
    return out.getvalue()


def python_image(
    rootfs: Path, server: bytes | None = None, more: tuple[Entry, ...] = (), **config: Any
) -> ImageParts:
    """An image of two layers: an interpreter, and a server."""
    upper = layer(file("srv/server.py", server or SERVER.read_bytes()), *more)
    return ImageParts(
        [interpreter_layer(rootfs), upper], {**CONFIG, **config}, media_type=PLAIN, name="served:1"
    )


def brought(
    data_dir: Path, tmp: Path, parts: ImageParts, name: str, *, docker: bool = False, **told: Any
) -> images.Runtime:
    """An image written to an archive and imported."""
    archive = tmp / f"{name}.tar"
    archive.write_bytes(docker_archive(parts) if docker else oci_archive(parts))
    try:
        wanted = Wanted(name=name, settings=Container(**told))
        return oci.import_image(data_dir, archive, wanted, lambda *_: None)
    finally:
        os.unlink(archive)


def forget(runtime: images.Runtime) -> None:
    """Remove an imported runtime."""
    assert runtime.image is not None
    shutil.rmtree(runtime.rootfs.parent)
