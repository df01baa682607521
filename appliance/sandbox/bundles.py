"""Bundles: a runtime and dependency sets in one signed file, for appliances without an index.

Owns: the file's format, both ways.
Never: holds a key, decides whom to trust, or installs anything before all of it was checked.
Read next: ``supply`` (signs what is exported), ``cli.runtime`` (imports), ``tree``.

A bundle is a tar of, in this order:

    bundle.json     what is in it: runtime, its tree's digest, sets, sha256 and size of every part
    bundle.sig      {"public": hex, "signature": hex}: Ed25519 over bundle.json
    rootfs.tar.gz   the root folder
    set-KEY.tar.gz  a dependency set, for each

The signature comes before anything large: a stranger's bundle is refused after a kilobyte. Owners,
order and the compressor's own time are fixed, so equal content is equal bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from appliance import signing, tarstream
from appliance.errors import ArchiveRejected, BuildFailed, BundleRejected, DiskFull
from appliance.sandbox import dependencies, images
from appliance.sandbox.frames import clean
from appliance.sandbox.images import Progress
from appliance.sandbox.runtimes import RUNTIMES
from appliance.sandbox.tree import tree_of, walk

PURPOSE = "model-appliance-bundle-1"
MANIFEST = "bundle.json"
_SIGNATURE = "bundle.sig"
_ROOTFS = "rootfs.tar.gz"
_FORMAT = 1
_HEAD_BYTES_MAX = 8 * 1024 * 1024
_PIECE_BYTES = 1024 * 1024
_LEVEL = 6

Signer = Callable[[bytes], tuple[bytes, bytes]]
"""The public key and the signature of a message."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a bundle."""

    name: str
    size_bytes: int
    sha256: str


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """``bundle.json``."""

    format: int
    runtime: images.Description
    build_epoch: int
    parts: list[Part]
    sets: list[dependencies.Description] = []


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    public: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import installed, and the fingerprint of who signed it."""

    runtime: images.Runtime
    sets: tuple[str, ...]
    signer: str


def export(
    data_dir: Path,
    runtime: images.Runtime,
    sets: tuple[dependencies.Description, ...],
    target: Path,
    signer: Signer,
    progress: Progress,
) -> Contents:
    """Write a bundle to a new file, whole or not at all. Blocking.

    Args:
        data_dir: where runtime and sets are installed.
        runtime: what to export.
        sets: dependency sets of this very runtime.
        target: the file to make.
        signer: signs the list of contents.
        progress: told each step and the fraction done.

    Raises:
        BundleRejected: a set is of another runtime, the root folder is not what was installed, or
            the file exists.
        DiskFull: there is no room for it.
    """
    if runtime.image is not None:
        raise BundleRejected(
            f"'{runtime.name}' is an imported image: its own archive is what to carry over.",
            hint="appliance runtime import ARCHIVE --name NAME, there",
        )
    for one in sets:
        if one.runtime_digest != runtime.digest:
            raise BundleRejected(
                f"Set {one.key} is of another runtime than {runtime.name} {runtime.digest[:19]}."
            )
    progress("reading the root folder", 0.02)
    about = images.description(runtime)
    found = tree_of(runtime.rootfs)
    if about.tree and found.digest != about.tree:
        raise BundleRejected(
            f"The root folder of {runtime.name} is not as it was installed; it is not exported.",
            hint=f"appliance runtime verify {runtime.name}",
        )
    about = msgspec.structs.replace(
        about, tree=found.digest, files=found.files, size_bytes=found.size_bytes, signer=""
    )
    try:
        with tempfile.TemporaryDirectory(prefix=".bundle-", dir=target.parent) as name:
            scratch = Path(name)
            sources = {_ROOTFS: runtime.rootfs}
            sources |= {f"set-{one.key}.tar.gz": data_dir / "deps" / one.key for one in sets}
            parts = []
            for number, (part, folder) in enumerate(sources.items()):
                progress(f"packing {part}", 0.1 + 0.7 * number / len(sources))
                parts.append(_pack(folder, scratch / part))
            contents = Contents(
                format=_FORMAT,
                runtime=about,
                build_epoch=images.SOURCE_DATE_EPOCH,
                parts=parts,
                sets=[msgspec.structs.replace(one, requests=one.requests[-1:]) for one in sets],
            )
            progress("writing the bundle", 0.85)
            _assemble(contents, signer, scratch, scratch / "bundle")
            os.link(scratch / "bundle", target)
    except FileExistsError as error:
        raise BundleRejected(f"{target} exists already; it is not overwritten.") from error
    except OSError as error:
        raise DiskFull(f"{target} cannot be written: {error.strerror}.") from error
    progress("exported", 1.0)
    return contents


def _pack(folder: Path, target: Path) -> Part:
    """A folder as a tar.gz whose bytes depend on nothing but what is in it and files' times."""
    seen: dict[tuple[int, int], str] = {}
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in walk(folder):
            about = path.lstat()
            info = tarfile.TarInfo(str(path.relative_to(folder)))
            info.mode = stat.S_IMODE(about.st_mode)
            identity = (about.st_dev, about.st_ino)
            if stat.S_ISLNK(about.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
                archive.addfile(info)
            elif stat.S_ISDIR(about.st_mode):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif identity in seen:
                info.type, info.linkname = tarfile.LNKTYPE, seen[identity]
                archive.addfile(info)
            elif stat.S_ISREG(about.st_mode):
                if about.st_nlink > 1:
                    seen[identity] = info.name
                info.size, info.mtime = about.st_size, int(about.st_mtime)
                with path.open("rb") as data:
                    archive.addfile(info, data)
    with target.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    return Part(name=target.name, size_bytes=target.stat().st_size, sha256=digest)


def _assemble(contents: Contents, signer: Signer, scratch: Path, target: Path) -> None:
    text = msgspec.json.encode(contents)
    public, signature = signer(text)
    signed = msgspec.json.encode(_Signature(public=public.hex(), signature=signature.hex()))
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in ((MANIFEST, text), (_SIGNATURE, signed)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for part in contents.parts:
            info = tarfile.TarInfo(part.name)
            info.size = part.size_bytes
            with (scratch / part.name).open("rb") as piece:
                archive.addfile(info, piece)
    with target.open("rb+") as written:
        os.fsync(written.fileno())


def is_bundle(path: Path) -> bool:
    """Whether a file looks like a bundle, to tell it from an archive of an image."""
    try:
        with path.open("rb") as data:
            return tarstream.ustar_path(data.read(tarstream.BLOCK)) == MANIFEST
    except (OSError, ArchiveRejected, IndexError):
        return False


def import_bundle(
    data_dir: Path, source: Path, trusted: frozenset[str], progress: Progress
) -> Imported:
    """Check a bundle and install what is in it; nothing of one that is refused stays. Blocking.

    Args:
        data_dir: where to install; what is there already stays as it is.
        source: the bundle.
        trusted: fingerprints of signers.
        progress: told each step and the fraction done.

    Raises:
        BundleRejected: it is not signed by any of those, or is not what was signed; what differs is
            named.
        DiskFull: there is no room for it.
    """
    folder = data_dir / "runtimes"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    try:
        with (
            source.open("rb") as data,
            tempfile.TemporaryDirectory(prefix=".install-", dir=folder) as scratch,
        ):
            progress("checking the signature", 0.0)
            members = tarstream.members(data, _limits(source.stat().st_size))
            contents, signer = _trusted_head(members, trusted)
            _unpack_parts(members, contents, Path(scratch), progress)
            return _install(data_dir, contents, signer, Path(scratch), progress)
    except (ArchiveRejected, EOFError, zlib.error, gzip.BadGzipFile) as error:
        detail = error.detail if isinstance(error, ArchiveRejected) else f"{error}."
        raise BundleRejected(
            f"The bundle is damaged or cut short: {detail}", hint=_AGAIN
        ) from error
    except OSError as error:
        raise DiskFull(f"The bundle cannot be read or installed: {error.strerror}.") from error


_AGAIN = "copy the file again and compare it with the one that was exported"
Members = Iterator[tuple[tarstream.Member, Iterator[bytes]]]


def _limits(size_bytes: int) -> tarstream.Limits:
    return tarstream.Limits(bytes_max=size_bytes, files_max=10_000)


def _trusted_head(members: Members, trusted: frozenset[str]) -> tuple[Contents, str]:
    """The list of contents and the fingerprint of its signer, who is trusted."""
    text = _head(members, MANIFEST)
    try:
        signed = msgspec.json.decode(_head(members, _SIGNATURE), type=_Signature)
        public, signature = bytes.fromhex(signed.public), bytes.fromhex(signed.signature)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BundleRejected("The bundle's signature cannot be read.", hint=_AGAIN) from error
    if not signing.is_signed(public, signature, PURPOSE, text):
        raise BundleRejected(
            f"The bundle's list of contents ({MANIFEST}) is not what was signed.", hint=_AGAIN
        )
    fingerprint = signing.fingerprint(public)
    if fingerprint not in trusted:
        raise BundleRejected(
            f"The bundle is signed by {fingerprint}, whom this appliance does not trust.",
            hint="ask for the fingerprint of the appliance that exported it ('appliance runtime "
            "list' there); if it is this one: --trust FINGERPRINT, or build.trusted_signers",
            signer=fingerprint,
        )
    try:
        contents = msgspec.json.decode(text, type=Contents)
    except msgspec.MsgspecError as error:
        raise BundleRejected("The bundle's list of contents is of another release.") from error
    if contents.format != _FORMAT:
        raise BundleRejected(
            f"The bundle is of format {contents.format}; this release reads {_FORMAT}."
        )
    about = contents.runtime
    if about.name not in RUNTIMES or about.image is not None:
        raise BundleRejected(f"There is no runtime '{clean(about.name, 40)}' in this release.")
    return contents, fingerprint


def _head(members: Members, name: str) -> bytes:
    member, pieces = next(members, (None, None))
    if member is None or pieces is None or member.path != name or member.kind != "file":
        raise BundleRejected("This file is no bundle, or is not signed.")
    if member.size > _HEAD_BYTES_MAX:
        raise BundleRejected(f"The bundle's {name} is too large.")
    return b"".join(pieces)


def _unpack_parts(members: Members, contents: Contents, scratch: Path, progress: Progress) -> None:
    """Write every part as it was listed, and check that it is what was listed."""
    total = sum(part.size_bytes for part in contents.parts) or 1
    done = 0
    for part in contents.parts:
        member, pieces = next(members, (None, None))
        if member is None or pieces is None:
            raise BundleRejected(f"The bundle is cut short: {clean(part.name, 80)} is missing.")
        if member.path != part.name or member.kind != "file" or "/" in part.name:
            raise BundleRejected(
                f"The bundle holds '{clean(member.path, 80)}' where '{clean(part.name, 80)}' is "
                "listed."
            )
        digest = hashlib.sha256()
        with (scratch / part.name).open("xb") as out:
            for piece in pieces:
                digest.update(piece)
                out.write(piece)
                done += len(piece)
                progress(f"checking {part.name}", 0.02 + 0.38 * done / total)
        if digest.hexdigest() != part.sha256 or member.size != part.size_bytes:
            raise BundleRejected(
                f"'{part.name}' in the bundle is not what was signed: it has sha256 "
                f"{digest.hexdigest()[:16]}..., signed is {part.sha256[:16]}...",
                hint=_AGAIN,
            )
    if next(members, None) is not None:
        raise BundleRejected("The bundle holds more than its list of contents.")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with gzip.open(path) as data:
        yield cast("BinaryIO", data)


def _install(
    data_dir: Path, contents: Contents, signer: str, scratch: Path, progress: Progress
) -> Imported:
    about = contents.runtime
    progress("unpacking the root folder", 0.45)
    with _opened(scratch / _ROOTFS) as data:
        images.unpack_stream(data, scratch / "rootfs")
    progress("comparing the root folder", 0.7)
    found = tree_of(scratch / "rootfs")
    if found.digest != about.tree:
        raise BundleRejected(
            f"The root folder unpacks to {found.digest[:23]}..., signed is {about.tree[:23]}..."
        )
    unpacked = []
    for number, one in enumerate(contents.sets):
        progress(f"unpacking set {one.key[:12]}", 0.8 + 0.15 * number / len(contents.sets))
        unpacked.append((one, _unpack_set(scratch, one, about)))
    runtime = images.adopt(
        data_dir, scratch / "rootfs", msgspec.structs.replace(about, signer=signer), found
    )
    for one, folder in unpacked:
        dependencies.adopt(data_dir, folder, one)
    progress("installed", 1.0)
    return Imported(runtime=runtime, sets=tuple(one.key for one in contents.sets), signer=signer)


def _unpack_set(scratch: Path, one: dependencies.Description, about: images.Description) -> Path:
    if one.runtime_digest != about.digest or not one.key.isalnum():
        raise BundleRejected(f"Set {clean(one.key, 40)} is of another runtime.")
    folder = scratch / f"set-{one.key}"
    folder.mkdir(mode=0o755)
    limits = tarstream.Limits(bytes_max=one.size_bytes, files_max=2 * one.files + 10_000)
    with _opened(scratch / f"set-{one.key}.tar.gz") as data:
        for member, pieces in tarstream.members(data, limits):
            dependencies.write_member(member, pieces, folder)
    try:
        dependencies.require_key(one)
    except BuildFailed as error:
        raise BundleRejected(error.detail) from error
    return folder
