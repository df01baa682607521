"""Dependencies: a version's pinned packages, installed once, shared read-only.

Owns: the requirement grammar, the wheel download, the build in a sandbox, ``data_dir/deps/<key>/``.
Never: runs a package's code on the host, or installs from source.
Read next: ``guest/python_builder.py`` (what runs inside).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from appliance import config, tarstream
from appliance.errors import ArchiveRejected, BuildFailed, FieldError, ManifestInvalid
from appliance.records import CallLimits, Resources
from appliance.sandbox.executor import Executor
from appliance.sandbox.images import Runtime
from appliance.sandbox.link import clean
from appliance.sandbox.spec import MIB, SandboxSpec

_LOG = logging.getLogger(__name__)
Progress = Callable[[str, float], None]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_PIN = re.compile(
    rf"(?P<name>{_NAME})\s*(?P<extras>\[\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\])?"
    r"\s*==\s*(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]{0,99})"
    r"(?P<hashes>(?:\s+--hash=sha(?:256|384|512):[0-9a-f]{64,128})*)\s*"
)
_REQUIREMENTS_MAX = 500
_FILES_MAX = 400_000
_LINES_KEPT = 30


def parse_requirements(text: str, *, file: str = "requirements") -> tuple[str, ...]:
    """The pins of a requirements file: ``name[extras]==version``, hashes allowed, sorted.

    Raises:
        ManifestInvalid: a line is anything else; the line is named.
    """
    found: dict[str, str] = {}
    joined = re.sub(r"\\\r?\n", lambda match: " " * len(match.group()), text)
    number = 1
    for line in joined.splitlines():
        content = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if content:
            name, pin = _pin_from_line(content, number, file)
            if found.get(name, pin) != pin:
                raise _refused(file, number, f"'{name}' is pinned twice, to different versions")
            found[name] = pin
        number += 1
    if len(found) > _REQUIREMENTS_MAX:
        raise _refused(file, number, f"more than {_REQUIREMENTS_MAX} requirements")
    return tuple(found[name] for name in sorted(found))


def _pin_from_line(content: str, number: int, file: str) -> tuple[str, str]:
    match = _PIN.fullmatch(content)
    if match is None:
        raise _refused(
            file, number, f"'{clean(content, 100)}' is not an exact pin like name==1.2.3"
        )
    name = re.sub(r"[-_.]+", "-", match["name"]).lower()
    extras = sorted(part.strip() for part in (match["extras"] or "").strip("[] ").split(","))
    suffix = f"[{','.join(extras)}]" if extras != [""] else ""
    hashes = "".join(f" {word}" for word in sorted(match["hashes"].split()))
    return name, f"{name}{suffix}=={match['version']}{hashes}"


def _refused(file: str, number: int, reason: str) -> ManifestInvalid:
    return ManifestInvalid(
        f"{file}:{number}: {reason}.",
        hint="pin every package exactly: pip freeze",
        fields=(FieldError(pointer=f"{file}:{number}", detail=reason),),
    )


def key(runtime: Runtime, requirements: tuple[str, ...]) -> str:
    """The name of the built set: the same runtime and pins give the same 32 hex characters."""
    text = "\n".join((runtime.digest, *sorted(requirements)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


async def ensure(
    executor: Executor,
    runtime: Runtime,
    requirements: tuple[str, ...],
    build: config.Build,
    progress: Progress,
) -> str:
    """The key of the installed set, built now if it is not there; "" for no requirements.

    Args:
        executor: a started engine; the set is installed below its data folder.
        runtime: what the packages are installed for.
        requirements: pins as ``parse_requirements`` returns them.
        build: the ``[build]`` section.
        progress: told each step and the fraction done.

    Raises:
        BuildFailed: a package cannot be had as a wheel or does not install; it is named.
    """
    if not requirements:
        return ""
    name = key(runtime, requirements)
    deps = executor.data_dir / "deps"
    final = deps / name
    if await asyncio.to_thread(final.is_dir):
        return name
    scratch = await asyncio.to_thread(_make_scratch, executor.data_dir, name)
    wheels = executor.data_dir / "wheels" / scratch.name
    try:
        progress("downloading packages", 0.05)
        await asyncio.to_thread(_download, wheels, runtime, requirements, build)
        progress("installing packages", 0.4)
        size = await asyncio.to_thread(_unpacked_bytes, wheels, build.size_bytes_max)
        await _install(executor, _spec(runtime, size, build), requirements, wheels, scratch)
        progress("storing packages", 0.8)
        await asyncio.to_thread(unpack, scratch / "deps.tar", scratch / "deps", build)
        await asyncio.to_thread(_publish, scratch / "deps", final)
    finally:
        await asyncio.to_thread(_remove, scratch, wheels)
    progress("installed packages", 1.0)
    return name


def sweep(data_dir: Path) -> None:
    """Remove what builds left that were killed. Blocking; call while nothing builds.

    A folder that is a link leads to somebody else's builds and is left alone.
    """
    for folder in (data_dir / "deps", data_dir / "wheels"):
        if folder.is_dir() and not folder.is_symlink():
            for left in folder.glob(".build-*"):
                _LOG.warning("removing %s: its build was killed", left.name)
                shutil.rmtree(left, ignore_errors=True)


def _make_scratch(data_dir: Path, name: str) -> Path:
    for folder in (data_dir / "deps", data_dir / "wheels"):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
    scratch = Path(tempfile.mkdtemp(prefix=f".build-{name}-", dir=data_dir / "deps"))
    wheels = data_dir / "wheels" / scratch.name
    wheels.mkdir(mode=0o755)
    wheels.chmod(0o755)
    return scratch


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _spec(runtime: Runtime, size: int, build: config.Build) -> SandboxSpec:
    """The build's sandbox: room in ``/tmp`` for the installed set, its compiled files, and pip."""
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
    executor: Executor,
    spec: SandboxSpec,
    requirements: tuple[str, ...],
    wheels: Path,
    scratch: Path,
) -> None:
    await asyncio.to_thread(_copy_installer, wheels / "tool")
    pins = tuple(pin.partition(" ")[0] for pin in requirements)
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

        await executor.build(spec, pins, wheels.name, sink)
    finally:
        await asyncio.to_thread(out.close)


def _copy_installer(target: Path) -> None:
    """Put the host's own pip next to the wheels, world-readable: the runtime has none."""
    found = importlib.util.find_spec("pip")
    if found is None or not found.submodule_search_locations:
        raise BuildFailed("The appliance's own interpreter has no pip.", hint="appliance doctor")
    source = Path(next(iter(found.submodule_search_locations)))
    shutil.copytree(source, target / "pip", ignore=shutil.ignore_patterns("__pycache__", "*.exe"))
    target.chmod(0o755)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _download(
    wheels: Path, runtime: Runtime, requirements: tuple[str, ...], build: config.Build
) -> None:
    """Fetch every wheel, the indirect ones too. Nothing of a package runs here."""
    version = runtime.name.removeprefix("python")
    pins = wheels / "requirements.txt"
    pins.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    program = str(resources.files("appliance.sandbox").joinpath("fetch.py"))
    command = [sys.executable, "-I", program, str(build.size_bytes_max)]
    command += ["download", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    command += ["--python-version", version, "--implementation", "cp"]
    command += ["--dest", str(wheels), "--requirement", str(pins)]
    if build.wheelhouse:
        command += ["--no-index", "--find-links", build.wheelhouse]
    try:
        done = subprocess.run(  # noqa: S603 - fixed program, own arguments
            command,
            env=config.child_environment(PYTHONWARNINGS="ignore", TMPDIR=str(wheels)),
            cwd=wheels,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=build.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"Downloading packages took over {build.timeout_s} s.") from error
    if done.returncode:
        raise _download_failed(done.stderr + done.stdout, requirements)
    for path in wheels.glob("*.whl"):
        path.chmod(0o644)


def _download_failed(output: str, requirements: tuple[str, ...]) -> BuildFailed:
    lines = [clean(line, 300) for line in output.splitlines() if line.strip()][-_LINES_KEPT:]
    at_fault = next((pin for pin in _mentioned(lines, requirements)), "")
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "pip failed")
    return BuildFailed(
        f"Package '{at_fault or 'unknown'}' cannot be had as a wheel: {reason}",
        hint="pin a version that has a wheel for this runtime, or add it to build.wheelhouse",
        package=at_fault,
        lines=lines,
    )


def _mentioned(lines: list[str], requirements: tuple[str, ...]) -> list[str]:
    """The pins (or, failing those, the indirect requirement) that an error message names."""
    text = "\n".join(lines)
    named = re.findall(r"(?:satisf\w+ the requirement|distribution found for) ([^\s(;,]+)", text)
    names = [re.sub(r"[-_.]+", "-", re.split(r"[=<>!~\[]", found)[0]).lower() for found in named]
    pins = [pin.partition(" ")[0] for pin in requirements]
    direct = [pin for pin in pins if re.split(r"[=\[]", pin)[0] in names]
    return direct or named or [p for p in pins if re.split(r"[=\[]", p)[0] in text.lower()]


def _unpacked_bytes(wheels: Path, size_bytes_max: int) -> int:
    """What the wheels unpack to, by their own listings; the sandbox's quota holds them to it.

    Raises:
        BuildFailed: a wheel is broken, or together they are too large.
    """
    total = 0
    for path in sorted(wheels.glob("*.whl")):
        try:
            with zipfile.ZipFile(path) as wheel:
                size = sum(member.file_size + 512 for member in wheel.infolist())
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            package = path.name.split("-")[0]
            raise BuildFailed(
                f"Package '{package}': the wheel is damaged.", package=package
            ) from error
        total += size
        if total > size_bytes_max:
            raise BuildFailed(
                f"Package '{path.name.split('-')[0]}' makes the dependencies larger than "
                f"{size_bytes_max} bytes.",
                hint="build.size_bytes_max",
            )
    return total


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
                _write_member(member, pieces, folder)
    except (ArchiveRejected, OSError, ValueError) as error:
        reason = error.detail if isinstance(error, ArchiveRejected) else "it cannot be written."
        raise BuildFailed(f"The build returned a damaged archive: {reason}") from error


def _write_member(member: tarstream.Member, pieces: Iterator[bytes], folder: Path) -> None:
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


def _publish(folder: Path, final: Path) -> None:
    """Give the finished set its name at once; another build of the same set may have won."""
    folder.chmod(0o755)
    with contextlib.suppress(FileExistsError, OSError):
        folder.rename(final)
    if not final.is_dir():
        raise BuildFailed("The installed packages could not be stored.")
