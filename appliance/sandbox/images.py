"""Runtimes: the read-only root folders that sandboxes run from.

Owns: building, installing and finding ``data_dir/runtimes/<runtime>-<digest12>/``.
Never: starts containers, uses a registry, or runs as root.
Read next: ``podman`` (who mounts them), ``runtimes`` (what goes into each).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from appliance import clock, config, tarstream
from appliance.errors import ManifestInvalid, RuntimeMissing
from appliance.records import Container
from appliance.sandbox.protocols import MODEL_PATHS, Image, serving
from appliance.sandbox.runtimes import RUNTIMES, known
from appliance.sandbox.tree import LISTING, Tree, differences, tree_of

Progress = Callable[[str, float], None]

SOURCE_DATE_EPOCH = 1_735_689_600  # any constant: two builds of the same packages are equal bytes
MOUNT_POINTS = ("run/app", "model", "deps", "data", "gpu")
EMPTY_FILES = ("etc/hosts", "etc/resolv.conf", "etc/hostname", "run/.containerenv")
DESCRIPTION = "runtime.json"
_OF_THE_SANDBOX = ("dev", "proc", "sys", "run", "tmp", "etc", "deps", "data", "gpu")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LEFT_OUT = ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*")
_BUILD_TIMEOUT_S = 1800
_ENDING_S = 15
_ROOTFS_BYTES_MAX = 64 * 1024**3
_ROOTFS_FILES_MAX = 2_000_000
_SOURCES = Path("/etc/apt")
_SCRATCH = "/var/tmp"  # noqa: S108 - a private folder is made in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One installed runtime. ``digest`` is the ``sha256:`` of its root folder as a tar.

    ``image`` is there for an imported one: its digest is that of the image and of how it is used.
    ``tree`` is the digest of what lies on the disk, ``signer`` the fingerprint of who signed the
    bundle it came in; empty where nobody recorded it.
    """

    name: str
    digest: str
    packages: tuple[str, ...]
    built_at: str
    rootfs: Path
    image: Image | None = None
    tree: str = ""
    size_bytes: int = 0
    signer: str = ""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """``runtime.json``; ``tree`` is the digest of ``tree.txt``, see there."""

    name: str
    digest: str
    packages: list[str]
    built_at: str
    image: Image | None = None
    tree: str = ""
    files: int = 0
    size_bytes: int = 0
    signer: str = ""


def installed(data_dir: Path) -> tuple[Runtime, ...]:
    """Every complete runtime under ``data_dir``, newest of a name last."""
    found = []
    for path in sorted((data_dir / "runtimes").glob(f"*/{DESCRIPTION}")):
        rootfs = path.parent / "rootfs"
        if path.parent.name.startswith(".") or not rootfs.is_dir():
            continue
        about = msgspec.json.decode(path.read_bytes(), type=Description)
        found.append(
            Runtime(
                name=about.name,
                digest=about.digest,
                packages=tuple(about.packages),
                built_at=about.built_at,
                rootfs=rootfs,
                image=about.image,
                tree=about.tree,
                size_bytes=about.size_bytes,
                signer=about.signer,
            )
        )
    return tuple(sorted(found, key=lambda runtime: (runtime.name, runtime.built_at)))


def require(data_dir: Path, runtime: str, digest: str = "") -> Runtime:
    """The installed runtime of this name: of this digest, or the newest.

    Raises:
        RuntimeMissing: there is none; the hint is the command that builds it.
    """
    named = [found for found in installed(data_dir) if found.name == runtime]
    fitting = [found for found in named if digest in ("", found.digest)]
    # A name of ours is never an image's, whatever was imported before it became ours.
    fitting = [found for found in fitting if (found.image is None) == (runtime in RUNTIMES)]
    if fitting:
        return fitting[-1]
    if runtime not in RUNTIMES and not named:
        raise RuntimeMissing(f"There is no runtime '{runtime}'; there is: {known()}.")
    what = f"with digest {digest} " if named else ""
    how = f"build {runtime}" if runtime in RUNTIMES else f"import IMAGE.tar --name {runtime}"
    raise RuntimeMissing(
        f"Runtime '{runtime}' {what}is not installed.", hint=f"appliance runtime {how}"
    )


def require_servable(runtime: Runtime, asked: Container) -> None:
    """Return if a version may be served by this image in the way it asks for.

    Raises:
        ManifestInvalid: nothing says what it speaks or starts, or where its files go is no empty
            folder of the image's own.
    """
    if runtime.image is None:
        raise ValueError("it is no imported image")
    path = serving(runtime.image, asked).model_path
    at = runtime.rootfs
    for part in path.split("/")[1:]:
        at = at / part
        if at.is_symlink() or not at.is_dir():
            raise ManifestInvalid(
                f"The image has no folder {path} to put the version's files in.",
                hint=f"[container] model_path = one of {', '.join(MODEL_PATHS)}, or import the "
                "image with --model-path",
            )
    if path.split("/")[1] in _OF_THE_SANDBOX or any(at.iterdir()):
        raise ManifestInvalid(
            f"The version's files cannot be put in {path}: it is not empty, or is the sandbox's.",
            hint=f"[container] model_path = one of {', '.join(MODEL_PATHS)}",
        )


def imported(data_dir: Path) -> tuple[str, ...]:
    """The names of the images that were imported as runtimes, sorted."""
    found = {one.name for one in installed(data_dir) if one.image is not None}
    return tuple(sorted(found - set(RUNTIMES)))


def current(data_dir: Path, runtime: str) -> Runtime | None:
    """The newest installed runtime of this name, if it holds every package asked for today."""
    named = [found for found in installed(data_dir) if found.name == runtime]
    if not named or runtime not in RUNTIMES:
        return None
    held = {package.partition("=")[0] for package in named[-1].packages}
    return named[-1] if held.issuperset(RUNTIMES[runtime].packages) else None


def build(data_dir: Path, runtime: str, progress: Progress) -> Runtime:
    """Build and install a runtime from the host's own package sources. Blocking, about a minute.

    Args:
        data_dir: where to install.
        runtime: a name of ``RUNTIMES``.
        progress: told each step and the fraction done.

    Raises:
        RuntimeMissing: the build failed; the detail has its last line.
    """
    if runtime not in RUNTIMES:
        raise RuntimeMissing(f"There is no runtime '{runtime}'; there is: {', '.join(RUNTIMES)}.")
    folder = data_dir / "runtimes"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
        tar = Path(scratch) / "rootfs.tar"
        _bootstrap(runtime, tar, progress)
        progress("checking", 0.75)
        return install(data_dir, runtime, tar, progress)


def install(data_dir: Path, runtime: str, tar: Path, progress: Progress) -> Runtime:
    """Install a root folder given as a tar file; a runtime that is there already stays.

    Raises:
        RuntimeMissing: the tar does not hold this runtime.
    """
    digest = _digest_of_file(tar)
    folder = data_dir / "runtimes"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    final = folder / f"{runtime}-{digest.removeprefix('sha256:')[:12]}"
    if not (final / DESCRIPTION).exists():
        scratch = Path(tempfile.mkdtemp(prefix=".install-", dir=folder))
        try:
            rootfs = scratch / "rootfs"
            progress("unpacking", 0.8)
            unpack(tar, rootfs)
            proof = RUNTIMES[runtime].proof
            if not (rootfs / proof).exists():
                raise RuntimeMissing(f"The built root folder has no /{proof}.")
            progress("reading it back", 0.9)
            found = tree_of(rootfs)
            about = Description(
                name=runtime,
                digest=digest,
                packages=packages_of(rootfs),
                built_at=clock.text_from_ns(clock.now_ns()),
                tree=found.digest,
                files=found.files,
                size_bytes=found.size_bytes,
            )
            (scratch / DESCRIPTION).write_bytes(msgspec.json.encode(about))
            (scratch / LISTING).write_text(found.text, encoding="ascii")
            scratch.chmod(0o755)
            if final.exists():
                shutil.rmtree(final)
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    progress("installed", 1.0)
    return require(data_dir, runtime, digest)


def description(runtime: Runtime) -> Description:
    """What is written beside an installed root folder."""
    text = (runtime.rootfs.parent / DESCRIPTION).read_bytes()
    return msgspec.json.decode(text, type=Description)


def adopt(data_dir: Path, rootfs: Path, about: Description, found: Tree) -> Runtime:
    """Install an unpacked root folder under the name it has; one that is there already stays.

    Raises:
        RuntimeMissing: its name or digest is none, or it does not hold this runtime.
    """
    language = RUNTIMES.get(about.name)
    if language is None or not _DIGEST.fullmatch(about.digest):
        raise RuntimeMissing("The root folder has no name of a runtime here, or no digest.")
    if not (rootfs / language.proof).exists():
        raise RuntimeMissing(f"The root folder has no /{language.proof}.")
    folder = data_dir / "runtimes"
    final = folder / f"{about.name}-{about.digest.removeprefix('sha256:')[:12]}"
    if not (final / DESCRIPTION).exists():
        scratch = Path(tempfile.mkdtemp(prefix=".install-", dir=folder))
        try:
            rootfs.rename(scratch / "rootfs")
            (scratch / DESCRIPTION).write_bytes(msgspec.json.encode(about))
            (scratch / LISTING).write_text(found.text, encoding="ascii")
            scratch.chmod(0o755)
            if final.exists():
                shutil.rmtree(final)
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return require(data_dir, about.name, about.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What reading a root folder back found; ``differences`` names paths, at most 20."""

    state: Literal["same", "different", "unrecorded"]
    differences: tuple[str, ...] = ()


def verify(runtime: Runtime, progress: Progress) -> Verified:
    """Compare a root folder with what was recorded when it was installed. Blocking."""
    about = description(runtime)
    if not about.tree:
        return Verified(state="unrecorded")
    files = max(1, about.files)
    found = tree_of(runtime.rootfs, lambda count: progress("reading", min(0.99, count / files)))
    progress("compared", 1.0)
    if found.digest == about.tree:
        return Verified(state="same")
    try:
        recorded = (runtime.rootfs.parent / LISTING).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return Verified(state="different", differences=("the record of its files is gone",))
    told = differences(recorded, found.text) or ["the record of its files was changed"]
    return Verified(state="different", differences=tuple(told))


def remove(runtime: Runtime) -> None:
    """Remove an installed runtime; the caller knows that nothing uses it. Blocking."""
    folder = runtime.rootfs.parent
    doomed = folder.with_name(f".install-{folder.name}-removed")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def unpack(tar: Path, rootfs: Path) -> None:
    """Unpack a root folder: no devices, no owners, no setuid, nothing outside, world-readable.

    Raises:
        ArchiveRejected: it is malformed, truncated or too large, or a path leaves the folder.
    """
    with tar.open("rb") as source:
        unpack_stream(source, rootfs)


def unpack_stream(source: BinaryIO, rootfs: Path) -> None:
    """``unpack`` from an open stream."""
    rootfs.mkdir()
    rootfs.chmod(0o755)
    limits = tarstream.Limits(bytes_max=_ROOTFS_BYTES_MAX, files_max=_ROOTFS_FILES_MAX)
    for member, pieces in tarstream.members(source, limits):
        if member.path.split("/")[0] in ("dev", "proc", "sys"):
            continue
        if not _has_link_above(rootfs, member.path):
            _write_member(member, pieces, rootfs)
    _make_mount_points(rootfs)


def _write_member(member: tarstream.Member, pieces: Iterator[bytes], rootfs: Path) -> None:
    target = rootfs / member.path
    if member.kind == "folder":
        if not target.is_symlink():
            _make_parents(target / "member")
            target.chmod(0o755)
        return
    if member.kind == "other" or (target.is_dir() and not target.is_symlink()):
        return
    _make_parents(target)
    if member.kind == "hard link":
        if not _has_link_above(rootfs, member.target):
            target.unlink(missing_ok=True)
            os.link(rootfs / member.target, target, follow_symlinks=False)
        return
    target.unlink(missing_ok=True)
    if member.kind == "link":
        target.symlink_to(member.target)
        return
    with target.open("xb") as out:
        for piece in pieces:
            out.write(piece)
    may_run = bool(member.mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH))
    target.chmod(0o755 if may_run else 0o644)
    os.utime(target, (member.mtime_s, member.mtime_s))  # .pyc files name their source's time


def _make_parents(target: Path) -> None:
    """The folders above a path, readable by a sandbox's user whatever the umask."""
    if not target.parent.is_dir():
        _make_parents(target.parent)
        target.parent.mkdir()
        target.parent.chmod(0o755)


def _has_link_above(rootfs: Path, name: str) -> bool:
    """Whether a parent folder of this member is a link, through which a write could get out."""
    at = rootfs
    for part in Path(name).parts[:-1]:
        at = at / part
        if at.is_symlink():
            return True
    return False


def _make_mount_points(rootfs: Path) -> None:
    """Everything a container's mounts need to exist: its user map may not make them.

    Raises:
        ArchiveRejected: a link stands in the place of one of their folders.
    """
    for name in ("etc", "run", "dev", "proc", "sys", "tmp", *MOUNT_POINTS):
        if (rootfs / name).is_symlink():
            raise tarstream.rejected(name, "is a link where a root folder needs a folder")
    _make_parents(rootfs / "etc/mtab")
    for name in (*MOUNT_POINTS, "dev", "proc", "sys", "tmp", "run"):
        _make_parents(rootfs / name)
        (rootfs / name).mkdir(exist_ok=True)
        # runc gives a tmpfs the mode of the folder it covers.
        (rootfs / name).chmod(0o1777 if name in ("tmp", "model") else 0o755)
    for name in EMPTY_FILES:
        target = rootfs / name
        target.unlink(missing_ok=True)
        target.touch()
        target.chmod(0o644)
    mtab = rootfs / "etc/mtab"
    mtab.unlink(missing_ok=True)
    mtab.symlink_to("/proc/mounts")


def packages_of(rootfs: Path) -> list[str]:
    """``name=version`` of every distribution package in a root folder, sorted."""
    try:
        text = (rootfs / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and line[0] != " "
        )
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            found.append(f"{fields['Package']}={fields.get('Version', '')}")
    return sorted(found)


def _bootstrap(runtime: str, tar: Path, progress: Progress) -> None:
    """Run mmdebstrap; its messages become progress."""
    if shutil.which("mmdebstrap") is None:
        raise RuntimeMissing("mmdebstrap is not installed.", hint="apt-get install mmdebstrap")
    codename = _codename(Path("/etc/os-release").read_text(encoding="utf-8"))
    sources = tar.with_name("host.sources")
    sources.write_text("\n\n".join(_host_sources(codename)) + "\n", encoding="utf-8")
    command = ["mmdebstrap", "--mode=unshare", "--variant=essential"]
    command += [f"--include={','.join(RUNTIMES[runtime].packages)}"]
    command += ['--aptopt=Acquire::Languages "none"']
    command += [f"--dpkgopt=path-exclude=/{pattern}" for pattern in _LEFT_OUT]
    command += [f"--setup-hook={hook}" for hook in RUNTIMES[runtime].setup]
    command += [f"--customize-hook={hook}" for hook in RUNTIMES[runtime].finish]
    command += [codename, str(tar), str(sources)]
    # Its user map has to pass through every parent of its scratch folder: not one of ours.
    with tempfile.TemporaryDirectory(prefix="appliance-build-", dir=_SCRATCH) as scratch:
        Path(scratch).chmod(0o755)
        environment = config.child_environment(
            SOURCE_DATE_EPOCH=str(SOURCE_DATE_EPOCH), TMPDIR=scratch, LC_ALL="C.UTF-8"
        )
        _run(command, environment, progress)


def _run(command: list[str], environment: dict[str, str], progress: Progress) -> None:
    process = subprocess.Popen(  # noqa: S603 - fixed program, own arguments
        command,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        last = _report(process, progress)
    except BaseException:  # an ended build: its folders are removed once it writes no more
        process.terminate()
        process.wait(timeout=_ENDING_S)
        raise
    if process.wait(timeout=_BUILD_TIMEOUT_S):
        raise RuntimeMissing(f"The runtime's build failed: {last}", hint="appliance doctor")


def _report(process: subprocess.Popen[str], progress: Progress) -> str:
    """Turn the builder's messages into progress until it ends; its last error, or last line."""
    last, done = "", 0.02
    with process:
        for line in process.stderr or ():
            text = line.strip()
            if text.startswith("E:") or not last.startswith("E:"):
                last = text or last
            if text.startswith("I: "):
                done = min(0.7, done + 0.07)
                progress(text.removeprefix("I: ")[:120], done)
    return last


def _codename(os_release: str) -> str:
    for line in os_release.splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise RuntimeMissing("This host's distribution release is unknown; it has no codename.")


def _host_sources(codename: str) -> list[str]:
    """The host's package sources of its own release, in deb822 form, third parties left out."""
    found = []
    for path in sorted(_SOURCES.glob("sources.list.d/*.sources")):
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        found += [text.strip() for text in paragraphs if _is_release_source(text, codename)]
    lists = [_SOURCES / "sources.list", *sorted(_SOURCES.glob("sources.list.d/*.list"))]
    for path in lists:
        if path.exists():
            found += list(_paragraphs_from_lines(path.read_text(encoding="utf-8"), codename))
    if not found:
        raise RuntimeMissing(f"The host has no package source for '{codename}' in {_SOURCES}.")
    return found


def _is_release_source(paragraph: str, codename: str) -> bool:
    fields = {
        line.partition(":")[0].strip().lower(): line.partition(":")[2].strip()
        for line in paragraph.splitlines()
        if ":" in line and not line.startswith(("#", " "))
    }
    suites = fields.get("suites", "").split()
    ours = all(suite == codename or suite.startswith(f"{codename}-") for suite in suites)
    wanted = "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no"
    return bool(suites) and ours and wanted


def _paragraphs_from_lines(text: str, codename: str) -> Iterator[str]:
    """One-line-style sources as deb822 paragraphs."""
    for line in text.splitlines():
        words = line.split("#")[0].split()
        options = ""
        if len(words) > 1 and words[1].startswith("["):
            end = next((n for n, word in enumerate(words) if word.endswith("]")), 1)
            options = " ".join(words[1 : end + 1]).strip("[]")
            words = [words[0], *words[end + 1 :]]
        if len(words) < 4 or words[0] != "deb":
            continue
        if words[2] != codename and not words[2].startswith(f"{codename}-"):
            continue
        lines = [f"Types: deb\nURIs: {words[1]}\nSuites: {words[2]}"]
        lines.append(f"Components: {' '.join(words[3:])}")
        if "signed-by=" in options:
            lines.append(f"Signed-By: {options.partition('signed-by=')[2].split()[0]}")
        yield "\n".join(lines)


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as data:
        return f"sha256:{hashlib.file_digest(data, 'sha256').hexdigest()}"
