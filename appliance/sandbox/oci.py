"""Images of customers: an OCI or ``docker save`` archive becomes a runtime.

Owns: what an archive must be to be imported, its digests, its folder under ``data_dir/runtimes``.
Never: starts anything, asks a registry, extracts with a library, or runs where keys are held (the
command line does it, as the service user).
Read next: ``image_archive`` (the archive itself), ``root_folder``, ``protocols`` (how it serves).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from appliance import clock, tarstream
from appliance.errors import ArchiveRejected, DiskFull, ImageRejected, InputInvalid
from appliance.records import Container
from appliance.sandbox import images
from appliance.sandbox.image_archive import Found, ImageArchive, Layer
from appliance.sandbox.images import Progress
from appliance.sandbox.layer_stream import LayerStream
from appliance.sandbox.protocols import CONTRACTS, MODEL_PATH, MODEL_PATHS, Image, serving
from appliance.sandbox.root_folder import Bounds, RootFolder
from appliance.sandbox.runtimes import RUNTIMES
from appliance.targets import PIPELINE

NAME = re.compile(r"[a-z][a-z0-9.+-]{0,31}")
_INSIDE = re.compile(r"(?:/[\w.+@-]+)+")
_FORMAT = 1  # of the root folder made here: part of the digest
_SCRATCH = ".import-"
_UNBOUNDED = tarstream.Limits(bytes_max=1 << 62, files_max=1 << 31)  # the root folder counts
_USER_ID = "1000"
_ACCOUNTS_BYTES_MAX = 1024 * 1024
_REFUSED_ERRNO = {errno.ENAMETOOLONG, errno.EMLINK, errno.EINVAL, errno.ENOENT, errno.ELOOP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an import is asked for: the runtime's name, and which image of several.

    ``settings`` hold for every version that does not say otherwise.
    """

    name: str
    image: str = ""
    settings: Container = field(default_factory=Container)
    bounds: Bounds = field(default_factory=Bounds)


def require_free_name(name: str) -> None:
    """A name a runtime may be imported under.

    Raises:
        InputInvalid: it is not legal, one of ours, or a word manifests have for something else.
    """
    if not NAME.fullmatch(name):
        raise InputInvalid(
            "A runtime's name is a letter, then up to 31 of a-z, 0-9, '.', '+' and '-'."
        )
    if name in RUNTIMES:
        raise InputInvalid(
            f"'{name}' is a runtime of the appliance itself; give the image another name."
        )
    if name == PIPELINE:
        raise InputInvalid(
            f"'{name}' stands for versions that are pipelines; give the image another name.",
            hint=f"--name {name}-image",
        )


def require_inside_path(path: str) -> str:
    """A path inside an image as it may be given; empty stays empty.

    Raises:
        InputInvalid: it is not absolute, or has '..' or unusual characters in it.
    """
    if path and (not _INSIDE.fullmatch(path) or ".." in path.split("/") or len(path) > 512):
        raise InputInvalid("A path inside an image is absolute, like /srv/models.")
    return path


def import_image(
    data_dir: Path, source: Path, wanted: Wanted, progress: Progress
) -> images.Runtime:
    """Import an archive as a runtime; nothing is left of one that fails. Blocking.

    Args:
        data_dir: where to install.
        source: the archive: an OCI image layout or what ``docker save`` writes, as a tar.
        wanted: the runtime's name and settings.
        progress: told each step and the fraction done.

    Raises:
        InputInvalid: the name cannot be used.
        ImageRejected: the archive is damaged, hostile, or not for this machine.
        ManifestInvalid: the settings name a protocol that needs more than the image says.
        DiskFull: there is no room for it.
    """
    require_free_name(wanted.name)
    folder = data_dir / "runtimes"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    sweep(data_dir)
    progress("reading the archive", 0.0)
    with _opened(source) as archive:
        found = archive.find(wanted.image)
        digest = _digest(found.id, wanted.settings)
        final = folder / f"{wanted.name}-{digest.removeprefix('sha256:')[:12]}"
        if (final / images.DESCRIPTION).exists():  # its layers were compared with the same digests
            progress("installed", 1.0)
            return images.require(data_dir, wanted.name, digest)
        with _scratch(folder) as scratch:
            with _disk_problems():
                root = RootFolder(scratch / "rootfs", wanted.bounds)
                _apply_layers(archive, found, root, progress)
                image = _finish(root, found, wanted, source.name)
            if image.settings.protocol:
                serving(image, Container())
            about = images.Description(
                name=wanted.name,
                digest=digest,
                packages=[],
                built_at=clock.text_from_ns(clock.now_ns()),
                image=image,
            )
            _install(about, scratch, final, progress)
    return images.require(data_dir, wanted.name, digest)


def sweep(data_dir: Path) -> int:
    """Remove what killed imports left; those that still run are left alone. How many there were."""
    count = 0
    for folder in (data_dir / "runtimes").glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), _locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    return count


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[ImageArchive]:
    try:
        file = source.open("rb")
    except OSError as error:
        raise ImageRejected(f"{source} cannot be read: {error.strerror}.") from error
    with file:
        yield ImageArchive(file)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder of this import, locked while it runs, gone afterwards unless it was renamed."""
    # Named before it is made: whenever a signal ends the import, the name is known.
    made = folder / clock.new_id(_SCRATCH).replace("_", "")
    try:
        made.mkdir(mode=0o700)
        with _locked(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_problems() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull("There is no room for the image.") from error
        if error.errno in _REFUSED_ERRNO:
            raise ImageRejected(f"The image cannot be written: {error.strerror}.") from error
        raise


def _apply_layers(
    archive: ImageArchive, found: Found, root: RootFolder, progress: Progress
) -> None:
    total = sum(layer.size for layer in found.layers) or 1
    before = 0
    for number, layer in enumerate(found.layers, start=1):
        step = f"layer {number} of {len(found.layers)}"
        try:
            stream = LayerStream(archive.file, layer, bytes_max=_stream_max(root))
            members = tarstream.members(cast("BinaryIO", stream), _UNBOUNDED)
            for count, (member, pieces) in enumerate(members):
                root.put(member, pieces, number)
                if count % 256 == 0:
                    progress(step, 0.95 * (before + stream.taken) / total)
            _check_digests(layer, *stream.finish())
        except ArchiveRejected as error:
            raise _rejected(number, layer, error) from error
        before += layer.size


def _stream_max(root: RootFolder) -> int:
    """How long a layer may be unpacked: what is left of the image's bytes, and its headers."""
    return root.bounds.bytes_max - root.bytes + 4096 * root.bounds.members_max


def _check_digests(layer: Layer, packed: str, unpacked: str) -> None:
    if layer.digest and packed != layer.digest:
        raise ArchiveRejected(f"It is not what the manifest says: its digest is {packed}.")
    if unpacked != layer.diff_id:
        raise ArchiveRejected(f"It is not what the configuration says: unpacked it is {unpacked}.")


def _rejected(number: int, layer: Layer, error: ArchiveRejected) -> ImageRejected:
    name = layer.digest or layer.diff_id
    return ImageRejected(
        f"Layer {number} ({name[:19]}): {error.detail}",
        fields=error.fields,
        layer=number,
        digest=name,
    )


def _finish(root: RootFolder, found: Found, wanted: Wanted, source: str) -> Image:
    """Everything a container needs to exist in its root folder, and the image's description."""
    settings, notes = wanted.settings, list(found.notes)
    try:
        for path in ("/dev", "/proc", "/sys", "/run", "/etc", "/var"):
            root.force_folder(path, 0o755)
        for path in images.MOUNT_POINTS:
            root.force_folder(f"/{path}", 0o755)
        root.force_folder("/tmp", 0o1777)  # noqa: S108 - inside the image
        root.work_folder(found.config.work_dir)
        settings = _with_model_path(root, settings, notes)
        for path in images.EMPTY_FILES:
            root.force_file(f"/{path}", b"")
        root.force_symlink("/etc/mtab", "/proc/mounts")
        _add_account(root, "/etc/passwd", "sandbox:x:1000:1000:sandbox:/tmp:/bin/sh\n")
        _add_account(root, "/etc/group", "sandbox:x:1000:\n")
    except ArchiveRejected as error:
        raise ImageRejected(f"The image cannot be made ready: {error.detail}") from error
    if root.devices:
        notes.append(f"{root.devices} device nodes were left out")
    if root.privileged:
        notes.append(f"{root.privileged} files lost their set-user-id or set-group-id bit")
    config = found.config
    return Image(
        id=found.id,
        source=found.name or source,
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        environment=config.environment,
        work_dir=config.work_dir,
        ports=config.ports,
        settings=settings,
        size_bytes=root.bytes,
        files=root.files,
        notes=tuple(notes),
    )


def _with_model_path(root: RootFolder, settings: Container, notes: list[str]) -> Container:
    """The settings with a folder for the version's files that hides nothing of the image's own.

    Raises:
        ImageRejected: the folder asked for holds files of the image.
    """
    if settings.model_path and root.has_files(settings.model_path):
        raise ImageRejected(
            f"The image has files of its own in {settings.model_path}, which would be hidden.",
            hint="Give --model-path a folder that is empty or not there.",
        )
    contract = CONTRACTS.get(settings.protocol)
    customary = contract.model_path if contract else MODEL_PATH
    for path in dict.fromkeys((*MODEL_PATHS, settings.model_path or MODEL_PATH)):
        if not root.has_files(path):
            root.force_folder(path, 0o1777)
        elif path == MODEL_PATH:
            raise ImageRejected(f"The image has files of its own in {MODEL_PATH}.")
        elif path == customary and not settings.model_path:
            notes.append(f"the image brings files in {path}; a version's own are in {MODEL_PATH}")
            settings = replace(settings, model_path=MODEL_PATH)
    return settings


def _add_account(root: RootFolder, path: str, line: str) -> None:
    """Have the user everything runs as in a list of accounts: programs ask for its name."""
    text = root.read_file(path, _ACCOUNTS_BYTES_MAX) or b""
    if any(row.split(b":")[2:3] == [_USER_ID.encode()] for row in text.split(b"\n")):
        return
    text += b"" if not text or text.endswith(b"\n") else b"\n"
    root.force_file(path, text + line.encode())


def _install(about: images.Description, scratch: Path, final: Path, progress: Progress) -> None:
    """Give the finished folder its name, once all of it is on the disk."""
    (scratch / images.DESCRIPTION).write_bytes(msgspec.json.encode(about))
    (scratch / images.DESCRIPTION).chmod(0o644)
    scratch.chmod(0o755)
    progress("writing to the disk", 0.96)
    os.sync()
    if final.exists():
        shutil.rmtree(final)
    scratch.rename(final)
    progress("installed", 1.0)


def _digest(image_id: str, settings: Container) -> str:
    """A digest of the image and of how it is used: a version that has it never changes."""
    said = {"format": _FORMAT, "image": image_id, "settings": msgspec.to_builtins(settings)}
    text = json.dumps(said, sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(text).hexdigest()}"
