"""Python: wheels by exact pins, from an index or a wheelhouse.

Owns: the requirement grammar, pip's download, and what pip's errors say.
Never: installs from source, or runs a package's code.
Read next: ``fetch`` (pip, held to fetching), ``guest/python_builder.py`` (what runs inside).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from importlib import resources
from pathlib import Path

from appliance import config
from appliance.errors import BuildFailed, ManifestInvalid
from appliance.records import Package
from appliance.sandbox.frames import clean
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages.packager import Log, Packager, digest_of, finds_name, refused

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
_PIN = re.compile(
    rf"(?P<name>{_NAME})\s*(?P<extras>\[\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\])?"
    r"\s*==\s*(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]{0,99})"
    r"(?P<hashes>(?:\s+--hash=sha(?:256|384|512):[0-9a-f]{64,128})*)\s*"
)
_REQUIREMENTS_MAX = 500
_LINES_KEPT = 30
_HINT = "pin every package exactly: pip freeze"


def parse_requirements(text: str, file: str = "requirements") -> tuple[str, ...]:
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
    return refused(file, number, reason, _HINT)


def fetch(
    folder: Path, runtime: Runtime, requirements: tuple[str, ...], build: config.Build, log: Log
) -> tuple[Package, ...]:
    """Fetch every wheel, the indirect ones too, and the installer. Nothing of a package runs here.

    Raises:
        BuildFailed: a package cannot be had as a wheel; it is named.
    """
    download(folder, runtime, requirements, build, log)
    _copy_installer(folder / "tool")
    found = []
    for path in sorted(folder.glob("*.whl")):
        _require_whole(path)
        name, version = path.name.split("-")[:2]
        name = re.sub(r"[-_.]+", "-", name).lower()
        found.append(Package(name=name, version=version, digest=digest_of(path)))
    return tuple(found)


def download(
    wheels: Path, runtime: Runtime, requirements: tuple[str, ...], build: config.Build, log: Log
) -> None:
    """Have pip fetch the wheels of these pins and of what they need.

    Raises:
        BuildFailed: it cannot, or takes too long.
    """
    version = runtime.name.removeprefix("python")
    pins = wheels / "requirements.txt"
    pins.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    program = str(resources.files("appliance.sandbox").joinpath("fetch.py"))
    command = [sys.executable, "-I", program, str(build.size_bytes_max)]
    command += ["download", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off"]
    command += ["--python-version", version, "--implementation", "cp"]
    command += ["--dest", str(wheels), "--requirement", str(pins)]
    if build.wheelhouse:
        command += ["--no-index", "--find-links", build.wheelhouse]
    code, lines = _run(command, wheels, build.timeout_s, log)
    if code:
        raise download_failed("\n".join(lines), requirements)
    for path in wheels.glob("*.whl"):
        path.chmod(0o644)


def _run(command: list[str], wheels: Path, timeout_s: int, log: Log) -> tuple[int, list[str]]:
    """Run pip; its exit status and its last lines. What it says is logged as it is said."""
    process = subprocess.Popen(  # noqa: S603 - fixed program, own arguments
        command,
        env=config.child_environment(PYTHONWARNINGS="ignore", TMPDIR=str(wheels)),
        cwd=wheels,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(timeout_s, end)
    timer.start()
    lines: list[str] = []
    try:
        with process:
            for line in process.stdout or ():
                if line.strip():
                    lines = [*lines[-200:], line]
                    log(_said(line))
    finally:
        timer.cancel()
    if late.is_set():
        raise BuildFailed(f"Downloading packages took over {timeout_s} s.")
    return process.returncode, lines


def _said(line: str) -> str:
    """A line of pip without the addresses and folders in it: they are the machine's own."""
    words = [word for word in line.split() if "://" not in word and not word.startswith("/")]
    return clean(" ".join(words), 200)


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


def download_failed(output: str, requirements: tuple[str, ...]) -> BuildFailed:
    """The problem behind pip's last words."""
    lines = [clean(line, 300) for line in output.splitlines() if line.strip()][-_LINES_KEPT:]
    at_fault = next(iter(_mentioned(lines, requirements)), "")
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "pip failed")
    return BuildFailed(
        f"Package '{at_fault or 'unknown'}' cannot be had as a wheel: {reason}",
        hint="pin a version that has a wheel for this runtime, or have IT add it to "
        "build.wheelhouse; packages that only come as source are not built",
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


def _require_whole(path: Path) -> None:
    """Return if the wheel's own listing can be read.

    Raises:
        BuildFailed: it cannot.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            wheel.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        package = path.name.split("-")[0]
        raise BuildFailed(f"Package '{package}': the wheel is damaged.", package=package) from error


WHEELS = Packager(
    files=r"[\w.-]+\.txt",
    hint=_HINT,
    parse=parse_requirements,
    fetch=fetch,
    finds=lambda name: finds_name(re.split(r"[=<>!~\[ ]", name)[0]),
)
