"""Reading an image archive: which image it holds, its layers and its configuration.

Owns: the OCI image layout and ``docker save``'s own form, media types, the choice of an image.
Never: unpacks a layer (``layer_stream``), trusts an offset or a digest it did not compute.
Read next: ``oci``.

Formats: OCI image specification 1.1 (layout, index, manifest, configuration), and the Docker image
specification 1.2 with ``manifest.json``. An archive that is both is read as the former.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

import msgspec
from msgspec import Struct

from appliance import tarstream
from appliance.errors import ArchiveRejected, ImageRejected

_JSON_BYTES_MAX = 4 * 1024 * 1024
_ENTRIES_MAX = 20_000
_BOUNDS = tarstream.Limits(bytes_max=1 << 62, files_max=_ENTRIES_MAX)
_LAYERS_MAX = 512
_INDEX_DEPTH_MAX = 4
_TEXT_MAX = 128 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_MANIFESTS = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
_CONFIGS = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_LAYERS = {
    "application/vnd.oci.image.layer.v1.tar": "plain",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "plain",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
_REF_NAME = "org.opencontainers.image.ref.name"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"BZ": "bzip2", b"\xfd7": "xz"}

T = TypeVar("T")


class _Platform(Struct):
    architecture: str = ""
    os: str = ""


class _Descriptor(Struct):
    mediaType: str = ""
    digest: str = ""
    size: int = -1
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None

    @property
    def name(self) -> str:
        return (self.annotations or {}).get(_REF_NAME, "")


class _Index(Struct):
    manifests: list[_Descriptor]


class _Manifest(Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _Saved(Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Running(Struct, rename="pascal"):
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str = ""
    exposed_ports: dict[str, Any] | None = None
    user: str = ""
    volumes: dict[str, Any] | None = None


class _Rootfs(Struct):
    diff_ids: list[str]


class _Config(Struct):
    rootfs: _Rootfs
    architecture: str = ""
    os: str = ""
    config: _Running | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer in the archive: ``packing`` and ``digest`` are empty where nothing tells them."""

    offset: int
    size: int
    diff_id: str
    digest: str = ""
    packing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What an image says about how it runs."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    work_dir: str = "/"
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The one image to import; ``id`` is the digest of its configuration."""

    id: str
    name: str
    layers: tuple[Layer, ...]
    config: Configuration
    notes: tuple[str, ...]


class ImageArchive:
    """One archive, opened; its members are found by name, and read where they lie."""

    def __init__(self, file: BinaryIO) -> None:
        """List it.

        Raises:
            ImageRejected: it is no tar archive, damaged, or names a member twice.
        """
        self.file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self._indexes: dict[str, list[tuple[str, str]]] = {}
        self._manifests: set[str] = set()
        packed = _PACKED.get(file.read(2))
        if packed:
            raise ImageRejected(
                f"The archive is compressed as a whole ({packed}).",
                hint="unpack it once: gunzip, unzstd, bunzip2 or unxz",
            )
        try:
            self._list()
        except ArchiveRejected as error:
            raise ImageRejected(f"The archive is refused: {error.detail}") from error

    def find(self, wanted: str = "") -> Found:
        """The image to import.

        Args:
            wanted: its name or the digest of its manifest, where there are several.

        Raises:
            ImageRejected: there is none, several, or one that is not acceptable here.
        """
        if "oci-layout" in self._places and "index.json" in self._places:
            return self._find_oci(wanted)
        if "manifest.json" in self._places:
            return self._find_saved(wanted)
        raise ImageRejected(
            "The archive is no image: it has neither index.json nor manifest.json.",
            hint="podman save --format oci-archive IMAGE -o image.tar, or docker save IMAGE",
        )

    def _list(self) -> None:
        self.file.seek(0)
        end = os.fstat(self.file.fileno()).st_size
        for member, _pieces in tarstream.members(self.file, _BOUNDS):
            name, at = member.path, self.file.tell()
            if member.kind == "folder":
                continue
            if name in self._places or name in self._links:
                raise tarstream.rejected(name, "is there twice")
            if member.kind == "file":
                if at + member.size > end:
                    raise tarstream.rejected(name, "is cut off: the archive ends before it does")
                self._places[name] = (at, member.size)
            elif member.kind == "link":  # docker save says so that a layer is another's
                target = os.path.normpath(os.path.join(os.path.dirname(name), member.target))
                self._links[name] = target
            else:
                raise tarstream.rejected(name, "is neither a file nor a folder")

    def _find_oci(self, wanted: str) -> Found:
        index = self._decode("index.json", self._small("index.json"), _Index)
        candidates = self._candidates(index.manifests, 0, "")
        named = [one for one in candidates if wanted in ("", *one)] if wanted else candidates
        chosen = {digest: name for name, digest in named}
        if len(chosen) != 1:
            raise _choice(wanted, [name or digest for name, digest in candidates])
        ((digest, name),) = chosen.items()
        manifest = self._decode("the manifest", self._blob(digest), _Manifest)
        if manifest.config.mediaType not in _CONFIGS:
            raise ImageRejected(
                f"The image's configuration is of unknown type '{_cut(manifest.config.mediaType)}':"
                " it may be no container image."
            )
        text = self._blob(manifest.config.digest, manifest.config.size)
        config = self._decode("the configuration", text, _Config)
        layers = []
        diff_ids = _diff_ids(config, len(manifest.layers))
        for number, (one, diff_id) in enumerate(
            zip(manifest.layers, diff_ids, strict=True), start=1
        ):
            layers.append(self._layer(number, one, diff_id))
        return _found(manifest.config.digest, name, tuple(layers), config)

    def _candidates(
        self, descriptors: list[_Descriptor], depth: int, name: str
    ) -> list[tuple[str, str]]:
        """Name and digest of every image manifest for this machine."""
        if depth > _INDEX_DEPTH_MAX:
            raise ImageRejected("The archive's indexes lie in each other too deep.")
        found: list[tuple[str, str]] = []
        others = set()
        for one in descriptors[:_ENTRIES_MAX]:
            told = one.platform
            if told and told.architecture and (told.os, told.architecture) != _here():
                others.add(f"{_cut(told.os)}/{_cut(told.architecture)}")
            elif one.mediaType in _INDEXES:
                outer = one.name or name
                found += [(own or outer, digest) for own, digest in self._inner(one, depth)]
            elif one.mediaType in _MANIFESTS:
                if one.digest not in self._manifests:
                    self._blob(one.digest, one.size)
                    self._manifests.add(one.digest)
                found.append((one.name or name, one.digest))
            else:
                raise ImageRejected(
                    f"The archive's index names something of unknown type '{_cut(one.mediaType)}'."
                )
            if len(found) > _ENTRIES_MAX:
                raise ImageRejected(f"The archive's indexes name more than {_ENTRIES_MAX} images.")
        if not found and others - {"unknown/unknown"}:
            raise _other_machine(", ".join(sorted(others)))
        return found

    def _inner(self, one: _Descriptor, depth: int) -> list[tuple[str, str]]:
        """The candidates of an index, which is read once, however often others name it."""
        if one.digest not in self._indexes:
            inner = self._decode("an index", self._blob(one.digest, one.size), _Index)
            self._indexes[one.digest] = self._candidates(inner.manifests, depth + 1, "")
        return self._indexes[one.digest]

    def _layer(self, number: int, one: _Descriptor, diff_id: str) -> Layer:
        what = f"Layer {number} ({_cut(one.digest)[:19]})"
        if one.urls or "nondistributable" in one.mediaType or "foreign" in one.mediaType:
            raise ImageRejected(
                f"{what} is a foreign layer: it is to be fetched from elsewhere, which is never"
                " done here.",
                hint="rebuild the image on a base whose layers may be distributed",
            )
        if one.mediaType not in _LAYERS:
            raise ImageRejected(f"{what} is of unknown type '{_cut(one.mediaType)}'.")
        offset, size = self._place(_blob_path(one.digest), what)
        if size != one.size:
            raise ImageRejected(f"{what} has {size} bytes; the manifest says {one.size}.")
        return Layer(
            offset=offset,
            size=size,
            diff_id=diff_id,
            digest=one.digest,
            packing=_LAYERS[one.mediaType],
        )

    def _find_saved(self, wanted: str) -> Found:
        text = self._small("manifest.json")
        images = self._decode("manifest.json", text, list[_Saved])
        named = [one for one in images if wanted in ("", one.config, *(one.repo_tags or ()))]
        if len(named) != 1:
            raise _choice(wanted, [", ".join(one.repo_tags or (one.config,)) for one in images])
        (one,) = named
        raw = self._small(_inside(one.config))
        config = self._decode("the configuration", raw, _Config)
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        told = one.config.rpartition("/")[2].removesuffix(".json")
        if re.fullmatch(r"[0-9a-f]{64}", told) and digest != f"sha256:{told}":
            raise ImageRejected("The configuration is not what its name says: its digest differs.")
        layers = []
        diff_ids = _diff_ids(config, len(one.layers))
        for number, (path, diff_id) in enumerate(zip(one.layers, diff_ids, strict=True), start=1):
            offset, size = self._place(_inside(path), f"Layer {number} ({_cut(path)})")
            layers.append(Layer(offset=offset, size=size, diff_id=diff_id))
        name = (one.repo_tags or [""])[0]
        return _found(digest, name, tuple(layers), config)

    def _place(self, path: str, what: str) -> tuple[int, int]:
        for _ in range(8):
            if path not in self._links:
                break
            path = self._links[path]
        if path not in self._places:
            raise ImageRejected(f"{what} is not in the archive.")
        return self._places[path]

    def _small(self, path: str) -> bytes:
        offset, size = self._place(path, f"'{_cut(path)}'")
        if size > _JSON_BYTES_MAX:
            raise ImageRejected(f"'{_cut(path)}' is larger than {_JSON_BYTES_MAX >> 20} MiB.")
        self.file.seek(offset)
        return self.file.read(size)

    def _blob(self, digest: str, size: int = -1) -> bytes:
        """A small blob, checked against its digest."""
        data = self._small(_blob_path(digest))
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != digest or size not in (-1, len(data)):
            raise ImageRejected(
                f"The blob {digest[:19]} is not what the archive says: it has {len(data)} bytes and"
                f" digest {found[:19]}."
            )
        return data

    def _decode(self, what: str, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ImageRejected(f"In the archive {what} is damaged: {_cut(str(error))}.") from error


def _found(digest: str, name: str, layers: tuple[Layer, ...], config: _Config) -> Found:
    if (config.os, config.architecture) != _here():
        raise _other_machine(f"{_cut(config.os)}/{_cut(config.architecture)}")
    running = config.config or _Running()
    notes = []
    if running.user not in ("", "1000", "1000:1000"):
        notes.append(f"its user '{_cut(running.user)}' is not used: everything runs as uid 1000")
    volumes = ", ".join(sorted(_cut(path) for path in running.volumes or {})[:16])
    if volumes:
        notes.append(f"its volumes are read-only: {volumes}; /tmp can be written")
    return Found(
        id=digest,
        name=_cut(name),
        layers=layers,
        config=Configuration(
            entrypoint=_words(running.entrypoint, "Entrypoint"),
            cmd=_words(running.cmd, "Cmd"),
            environment=_environment(running.env or []),
            work_dir=_work_dir(running.working_dir),
            ports=tuple(sorted(_ports(running.exposed_ports or {}))),
        ),
        notes=tuple(notes),
    )


def _words(words: list[str] | None, what: str) -> tuple[str, ...]:
    found = tuple(words or ())
    if sum(map(len, found)) > _TEXT_MAX or len(found) > 1024 or "\0" in "".join(found):
        raise ImageRejected(f"The configuration's {what} is too long or has a NUL in it.")
    return found


def _environment(lines: list[str]) -> dict[str, str]:
    _words(lines, "Env")
    pairs = (line.partition("=") for line in lines)
    return {key: value for key, _, value in pairs if key}


def _work_dir(path: str) -> str:
    try:
        return "/" + tarstream.clean_path(path.lstrip("/"))
    except ArchiveRejected as error:
        raise ImageRejected(f"The image's WorkingDir is none: {_cut(path)}.") from error


def _ports(exposed: dict[str, Any]) -> set[int]:
    found = {text.partition("/")[0] for text in exposed if not text.endswith(("/udp", "/sctp"))}
    return {int(text) for text in found if text.isdigit() and 0 < len(text) < 6}


def _diff_ids(config: _Config, layers: int) -> list[str]:
    found = config.rootfs.diff_ids
    if len(found) != layers or layers > _LAYERS_MAX:
        raise ImageRejected(
            f"The image has {layers} layers and names {len(found)}; at most {_LAYERS_MAX} are read."
        )
    if not all(_DIGEST.fullmatch(one) for one in found):
        raise ImageRejected("The configuration names a layer by something that is no sha256.")
    return found


def _here() -> tuple[str, str]:
    machine = platform.machine()
    return "linux", _MACHINES.get(machine, machine)


def _other_machine(found: str) -> ImageRejected:
    here = "/".join(_here())
    return ImageRejected(
        f"The image is for {found}; this machine is {here}.",
        hint=f"export it for this machine: --platform {here}",
    )


def _choice(wanted: str, there: list[str]) -> ImageRejected:
    names = ", ".join(sorted({_cut(name) for name in there})[:32]) or "none"
    if wanted:
        return ImageRejected(
            f"The archive holds no single image '{_cut(wanted)}'; it holds: {names}."
        )
    return ImageRejected(f"The archive holds these images: {names}.", hint="--image NAME")


def _blob_path(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise ImageRejected(f"'{_cut(digest)}' is no sha256 digest.")
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _inside(path: str) -> str:
    return path if path.startswith("/") else os.path.normpath(path)


def _cut(text: str) -> str:
    return text[:300].encode("unicode_escape").decode("ascii")
