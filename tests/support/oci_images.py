"""Image archives for tests, written byte by byte: OCI layouts and what ``docker save`` writes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
OCI = "application/vnd.oci.image"
GZIP = f"{OCI}.layer.v1.tar+gzip"


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def info(path: str, kind: bytes = tarfile.REGTYPE, **changes: Any) -> tarfile.TarInfo:
    one = tarfile.TarInfo(path)
    one.type = kind
    one.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for name, value in changes.items():
        setattr(one, name, value)
    return one


def folder(path: str) -> tarfile.TarInfo:
    return info(path, tarfile.DIRTYPE)


def symlink(path: str, target: str) -> tarfile.TarInfo:
    return info(path, tarfile.SYMTYPE, linkname=target)


def hardlink(path: str, target: str) -> tarfile.TarInfo:
    return info(path, tarfile.LNKTYPE, linkname=target)


def file(path: str, content: bytes = b"x", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return info(path, size=len(content), **changes), content


Entry = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def layer(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    """One layer as an unpacked tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for entry in entries:
            one, content = entry if isinstance(entry, tuple) else (entry, b"")
            tar.addfile(one, io.BytesIO(content))
    return out.getvalue()


def layer_of_folder(
    source: Path, more: Iterable[Entry] = (), left_out: tuple[str, ...] = ()
) -> bytes:
    """A layer with everything in a folder, as owned by root."""
    out = io.BytesIO()

    def kept(one: tarfile.TarInfo) -> tarfile.TarInfo | None:
        one.uid = one.gid = 0
        one.uname = one.gname = "root"
        return None if one.name.startswith(left_out) and left_out else one

    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(source.iterdir()):
            tar.add(path, path.name, filter=kept)
        for entry in more:
            one, content = entry if isinstance(entry, tuple) else (entry, b"")
            tar.addfile(one, io.BytesIO(content))
    return out.getvalue()


@dataclass
class ImageParts:
    """An image to write; every part can be made wrong on purpose before it is written."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str = HERE
    os: str = "linux"
    name: str = "test:1"
    media_type: str = GZIP
    packed: list[bytes] | None = None
    descriptor: dict[str, Any] = field(default_factory=dict)
    diff_ids: list[str] | None = None

    def configuration(self) -> bytes:
        rootfs = {"type": "layers", "diff_ids": self.diff_ids or [sha(one) for one in self.layers]}
        return json.dumps(
            {
                "architecture": self.architecture,
                "os": self.os,
                "config": self.config,
                "rootfs": rootfs,
            }
        ).encode()

    def packed_layers(self) -> list[bytes]:
        if self.packed is not None:
            return self.packed
        if self.media_type.endswith("zstd"):
            return [zstandard.compress(one, 3) for one in self.layers]
        if self.media_type.endswith("gzip"):
            return [gzip.compress(one, 1, mtime=0) for one in self.layers]
        return list(self.layers)


def tar_of_blobs(files: dict[str, bytes]) -> bytes:
    return layer(*(file(path, content) for path, content in files.items()))


def blobs_of(parts: ImageParts) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The blobs of one image, and the descriptor of its manifest."""
    config = parts.configuration()
    packed = parts.packed_layers()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": {
                "mediaType": f"{OCI}.config.v1+json",
                "digest": sha(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": parts.media_type,
                    "digest": sha(one),
                    "size": len(one),
                    **parts.descriptor,
                }
                for one in packed
            ],
        }
    ).encode()
    blobs = {f"blobs/sha256/{sha(one)[7:]}": one for one in (*packed, config, manifest)}
    about = {
        "mediaType": f"{OCI}.manifest.v1+json",
        "digest": sha(manifest),
        "size": len(manifest),
        "annotations": {"org.opencontainers.image.ref.name": parts.name},
    }
    return blobs, about


def oci_archive(*images: ImageParts, index: dict[str, Any] | None = None) -> bytes:
    """An OCI image layout as a tar."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    manifests = []
    for one in images:
        blobs, about = blobs_of(one)
        files.update(blobs)
        manifests.append(about)
    made = index or {"schemaVersion": 2, "manifests": manifests}
    return tar_of_blobs({**files, "index.json": json.dumps(made).encode()})


def docker_archive(parts: ImageParts) -> bytes:
    """What ``docker save`` wrote before it wrote OCI layouts: layers are plain tars."""
    config = parts.configuration()
    files = {f"{sha(one)[7:]}/layer.tar": one for one in parts.layers}
    about = [
        {
            "Config": f"{sha(config)[7:]}.json",
            "RepoTags": [parts.name],
            "Layers": [f"{sha(one)[7:]}/layer.tar" for one in parts.layers],
        }
    ]
    return tar_of_blobs(
        {
            **files,
            f"{sha(config)[7:]}.json": config,
            "manifest.json": json.dumps(about).encode(),
        }
    )
