"""Dependencies: a version's packages, installed once, shared read-only.

Owns: the build in a sandbox, ``data_dir/deps/<key>/`` with its description ``<key>.json``.
Never: runs a package's code on the host, or reads what a build returns other than strictly.
Read next: ``packages`` (one file per way of shipping them), ``guest/native_builder.pl``.

The key is the digest of the runtime and of the lock, which is every package with its digest: the
same packages on the same runtime are one folder, whoever asked for them and however.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance import clock, config, tarstream
from appliance.errors import ArchiveRejected, BuildFailed
from appliance.records import CallLimits, Package, Resources
from appliance.sandbox.executor import Executor
from appliance.sandbox.frames import clean
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages import PACKAGERS
from appliance.sandbox.packages.packager import PLAN
from appliance.sandbox.runtimes import RUNTIMES
from appliance.sandbox.spec import MIB, SandboxSpec

_LOG = logging.getLogger(__name__)
Progress = Callable[[str, float], None]

_FILES_MAX = 400_000
_SETTLED_NS = 3600 * 1_000_000_000
_UNREADABLE_RATIO = 8  # what a compressed file of a kind not looked into may unpack to


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A set a version can use: its key, empty for no requirements, and what is in it."""

    key: str = ""
    lock: tuple[Package, ...] = ()


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """``<key>.json``: what an installed set is. ``requests`` are the requirements it answers."""

    key: str
    runtime: str
    runtime_digest: str
    lock: tuple[Package, ...]
    size_bytes: int
    files: int
    built_at: str
    requests: tuple[str, ...] = ()


def request_key(runtime: Runtime, requirements: tuple[str, ...]) -> str:
    """The same runtime and requirements give the same 32 hex characters, in whatever order."""
    text = "\n".join((runtime.digest, *sorted(requirements)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def lock_key(runtime_digest: str, lock: tuple[Package, ...]) -> str:
    """The name of the built set: the same runtime and packages give the same 32 hex characters."""
    lines = sorted(f"{one.name}=={one.version} {one.digest}" for one in lock)
    text = "\n".join(("lock", runtime_digest, *lines))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


async def ensure(
    executor: Executor,
    runtime: Runtime,
    requirements: tuple[str, ...],
    build: config.Build,
    progress: Progress,
) -> Built:
    """The installed set for these requirements, built now if it is not there.

    Args:
        executor: a started engine; the set is installed below its data folder.
        runtime: what the packages are installed for.
        requirements: as the runtime's packager parsed them.
        build: the ``[build]`` section.
        progress: told each step and line of the build, and the fraction done.

    Raises:
        BuildFailed: a package cannot be had, or does not install; ``extensions["package"]`` names
            it, ``extensions["lines"]`` are the installer's last.
    """
    if not requirements:
        return Built()
    request = request_key(runtime, requirements)
    known = await asyncio.to_thread(_known, executor.data_dir, request, requirements)
    if known is not None:
        await asyncio.to_thread(os.utime, _touched(executor.data_dir / "deps" / known.key))
        return known
    scratch = await asyncio.to_thread(_make_scratch, executor.data_dir, request)
    try:
        return await _build(executor, runtime, requirements, build, progress, scratch)
    finally:
        await asyncio.to_thread(_remove, scratch, executor.data_dir / "wheels" / scratch.name)


async def _build(
    executor: Executor,
    runtime: Runtime,
    requirements: tuple[str, ...],
    build: config.Build,
    progress: Progress,
    scratch: Path,
) -> Built:
    packager = PACKAGERS[RUNTIMES[runtime.name].packager]
    fetched = executor.data_dir / "wheels" / scratch.name
    said = _Said(progress)
    said.step("fetching packages", 0.05, 0.4)
    lock = await asyncio.to_thread(packager.fetch, fetched, runtime, requirements, build, said.line)
    built = Built(key=lock_key(runtime.digest, lock), lock=lock)
    final = executor.data_dir / "deps" / built.key
    request = request_key(runtime, requirements)
    if not await asyncio.to_thread(_is_complete, final):
        if packager.is_plain:
            await asyncio.to_thread(fetched.rename, scratch / "deps")
        else:
            said.step("installing packages", 0.4, 0.8)
            size = await asyncio.to_thread(_unpacked_bytes, fetched, build.size_bytes_max)
            await _install(executor, _spec(runtime, size, build), fetched, scratch, said.line)
            said.step("storing packages", 0.8, 1.0)
            await asyncio.to_thread(unpack, scratch / "deps.tar", scratch / "deps", build)
        await asyncio.to_thread(_publish, scratch / "deps", final, runtime, lock)
    await asyncio.to_thread(_remember, final, request)
    said.step("installed packages", 1.0, 1.0)
    return built


class _Said:
    """Turns steps and the lines between them into progress that never goes back."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._at, self._until = 0.0, 0.0

    def step(self, detail: str, fraction: float, until: float) -> None:
        """A step that ends when the fraction is ``until``."""
        self._at, self._until = fraction, until
        self._progress(detail, fraction)

    def line(self, text: str) -> None:
        """A line of the build: nobody knows how many there will be."""
        self._at += (self._until - self._at) * 0.05
        self._progress(clean(text, 200), self._at)


def described(data_dir: Path) -> tuple[Description, ...]:
    """Every installed set, oldest first."""
    found = []
    for path in (data_dir / "deps").glob("*.json"):
        about = _description(path.with_suffix(""))
        if about is not None:
            found.append(about)
    return tuple(sorted(found, key=lambda about: (about.built_at, about.key)))


def undescribed(data_dir: Path) -> tuple[str, ...]:
    """The names of sets that an earlier release installed, of which only the folder is known."""
    return tuple(
        sorted(
            path.name
            for path in (data_dir / "deps").glob("[0-9a-f]*")
            if len(path.name) == 32 and path.is_dir() and not path.with_suffix(".json").exists()
        )
    )


def is_settled(data_dir: Path, key: str) -> bool:
    """Whether nobody asked for a set for so long that no registration can be about to use it."""
    try:
        asked_ns = _touched(data_dir / "deps" / key).stat().st_mtime_ns
    except OSError:
        return False
    return clock.now_ns() - asked_ns > _SETTLED_NS


def _touched(folder: Path) -> Path:
    """What of a set tells by its time when it was last asked for."""
    described_by = folder.with_suffix(".json")
    return described_by if described_by.exists() else folder


def remove(data_dir: Path, key: str) -> None:
    """Remove an installed set; one that is gone already is no error. Blocking."""
    folder = data_dir / "deps" / key
    folder.with_suffix(".json").unlink(missing_ok=True)
    if folder.is_dir():
        doomed = folder.with_name(f".build-{key}-removed")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def adopt(data_dir: Path, folder: Path, about: Description) -> None:
    """Give an unpacked folder its name as a set; one that is there already stays. Blocking.

    Raises:
        BuildFailed: its key is not that of its runtime and lock, or it cannot be stored.
    """
    require_key(about)
    final = data_dir / "deps" / about.key
    _make_parent(final)
    if not _is_complete(final):
        _write_description(final, about)
        _move(folder, final)


def require_key(about: Description) -> None:
    """Return if a set is named after its runtime and lock.

    Raises:
        BuildFailed: it is not.
    """
    if about.key != lock_key(about.runtime_digest, about.lock):
        raise BuildFailed(f"Set {clean(about.key, 40)} is not named after what is in it.")


def _description(folder: Path) -> Description | None:
    try:
        text = folder.with_suffix(".json").read_bytes()
        about = msgspec.json.decode(text, type=Description)
    except (OSError, msgspec.MsgspecError):
        return None
    return about if folder.is_dir() and about.key == folder.name else None


def _is_complete(final: Path) -> bool:
    return _description(final) is not None


def _known(data_dir: Path, request: str, requirements: tuple[str, ...]) -> Built | None:
    """The set that answered these requirements before."""
    for about in described(data_dir):
        if request in about.requests:
            return Built(key=about.key, lock=about.lock)
    if request in undescribed(data_dir):
        pins = [pin.partition(" ")[0].partition("==") for pin in requirements]
        lock = tuple(Package(name=name, version=version) for name, _, version in pins)
        return Built(key=request, lock=lock)
    return None


def _remember(final: Path, request: str) -> None:
    about = _description(final)
    if about is not None:
        others = tuple(one for one in about.requests if one != request)
        requests = (*others, request)[-100:]
        _write_description(final, msgspec.structs.replace(about, requests=requests))


def _write_description(final: Path, about: Description) -> None:
    fresh = final.with_name(f".build-{final.name}-{clock.new_id('d', 8)}.json")
    fresh.write_bytes(msgspec.json.encode(about))
    fresh.rename(final.with_suffix(".json"))


def sweep(data_dir: Path) -> None:
    """Remove what builds left that were killed. Blocking; call while nothing builds.

    A folder that is a link leads to somebody else's builds and is left alone.
    """
    for folder in (data_dir / "deps", data_dir / "wheels"):
        if folder.is_dir() and not folder.is_symlink():
            for left in folder.glob(".build-*"):
                _LOG.warning("removing %s: its build was killed", left.name)
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)


def _make_parent(final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    final.parent.chmod(0o711)


def _make_scratch(data_dir: Path, name: str) -> Path:
    for folder in (data_dir / "deps", data_dir / "wheels"):
        _make_parent(folder / name)
    scratch = Path(tempfile.mkdtemp(prefix=f".build-{name}-", dir=data_dir / "deps"))
    fetched = data_dir / "wheels" / scratch.name
    fetched.mkdir(mode=0o755)
    fetched.chmod(0o755)
    return scratch


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _spec(runtime: Runtime, size: int, build: config.Build) -> SandboxSpec:
    """The build's sandbox: room in ``/tmp`` for the set, its compiled files, and tools."""
    room = size + size // 2 + 256 * MIB
    return SandboxSpec(
        version_key="build",
        tenant_id="",
        runtime=runtime.name,
        runtime_digest=runtime.digest,
        resources=Resources(memory_bytes=room + 1024 * MIB, cpus=64.0, pids=128, tmp_bytes=room),
        limits=CallLimits(load_timeout_ms=build.timeout_s * 1000),
    )


async def _install(
    executor: Executor, spec: SandboxSpec, fetched: Path, scratch: Path, log: Callable[[str], None]
) -> None:
    # Each file of the set costs a header and padding in the tar; /tmp in there holds the rest.
    left = spec.resources.tmp_bytes + _FILES_MAX * 4096
    out = await asyncio.to_thread((scratch / "deps.tar").open, "wb")
    try:

        async def sink(piece: bytes) -> None:
            nonlocal left
            left -= len(piece)
            if left < 0:
                raise BuildFailed("The build returned more than its sandbox can hold.")
            await asyncio.to_thread(out.write, piece)

        await executor.build(spec, fetched.name, sink, log)
    except BuildFailed as error:
        raise _with_package(error, fetched) from error
    finally:
        await asyncio.to_thread(out.close)


def _with_package(error: BuildFailed, fetched: Path) -> BuildFailed:
    """The same problem with the package named that the installer's message names."""
    if "package" not in error.extensions and (fetched / PLAN).is_file():
        lines = (fetched / PLAN).read_text(encoding="utf-8").splitlines()
        names = [line.split("\t")[-1] for line in lines]
        for name in names:
            if f"'{name}'" in error.detail:
                name = name.rpartition("@")[0] or name
                return BuildFailed(
                    error.detail, hint=error.hint, **{**error.extensions, "package": name}
                )
    return error


def _unpacked_bytes(fetched: Path, size_bytes_max: int) -> int:
    """About what the packages unpack to; the sandbox's quota holds them to it.

    Raises:
        BuildFailed: together they are too large.
    """
    total = 0
    for path in sorted(fetched.iterdir()):
        if not path.is_file() or path.name == PLAN:
            continue
        total += _unpacked_bytes_of(path)
        if total > size_bytes_max:
            raise BuildFailed(
                f"Package '{path.name.split('-')[0]}' makes the dependencies larger than "
                f"{size_bytes_max} bytes.",
                hint="build.size_bytes_max",
            )
    return total


def _unpacked_bytes_of(path: Path) -> int:
    size = path.stat().st_size
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return sum(member.file_size + 512 for member in wheel.infolist())
    if path.suffix in (".tgz", ".gz") and size >= 18:
        with path.open("rb") as data:
            data.seek(-4, 2)  # gzip's last field: the unpacked size (RFC 1952), its maker's claim
            return max(size, int.from_bytes(data.read(4), "little"))
    return size * _UNREADABLE_RATIO


def unpack(tar: Path, folder: Path, build: config.Build) -> None:
    """Write the regular files and folders of an untrusted tar under a new folder.

    Raises:
        BuildFailed: it holds anything else, a path that leaves the folder, or too much.
    """
    folder.mkdir()
    folder.chmod(0o755)
    limits = tarstream.Limits(bytes_max=build.size_bytes_max, files_max=_FILES_MAX)
    try:
        with tar.open("rb") as source:
            for member, pieces in tarstream.members(source, limits):
                write_member(member, pieces, folder)
    except (ArchiveRejected, OSError, ValueError) as error:
        reason = error.detail if isinstance(error, ArchiveRejected) else "it cannot be written."
        raise BuildFailed(f"The build returned a damaged archive: {reason}") from error


def write_member(member: tarstream.Member, pieces: Iterator[bytes], folder: Path) -> None:
    """Write one member of a set's tar.

    Raises:
        ArchiveRejected: it is no regular file and no folder.
        OSError: it is there already, or cannot be written.
    """
    target = folder / member.path
    if member.kind == "folder":
        _make_folder(target)
        return
    if member.kind != "file":
        raise tarstream.rejected(member.path, f"is no regular file ({member.kind})")
    _make_folder(target.parent)
    with target.open("xb") as out:
        for piece in pieces:
            out.write(piece)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def _make_folder(folder: Path) -> None:
    """A folder and those above it, readable by a sandbox's user whatever the umask."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def _publish(folder: Path, final: Path, runtime: Runtime, lock: tuple[Package, ...]) -> None:
    """Give the finished set its description and its name; another build of it may have won."""
    sizes = [path.lstat().st_size for path in folder.rglob("*") if path.is_file()]
    about = Description(
        key=final.name,
        runtime=runtime.name,
        runtime_digest=runtime.digest,
        lock=lock,
        size_bytes=sum(sizes),
        files=len(sizes),
        built_at=clock.text_from_ns(clock.now_ns()),
    )
    if not final.with_suffix(".json").exists():
        _write_description(final, about)
    _move(folder, final)


def _move(folder: Path, final: Path) -> None:
    folder.chmod(0o755)
    with contextlib.suppress(FileExistsError, OSError):
        folder.rename(final)
    if not final.is_dir():
        raise BuildFailed("The installed packages could not be stored.")
