"""The driver bundle: a vendor's user-space driver libraries as one folder of their own.

Owns: ``data_dir/gpu/<name>``: copies of the libraries, and the links a loader looks for.
Never: changes a bundle that is complete; runs a vendor's hook.
Read next: ``gpu`` (which libraries), ``hardening`` (bound at ``/gpu``, found by LD_LIBRARY_PATH).

Copies, because a link to another owner's file is refused by the kernel, and because an update of
the driver on the host must not change files under a running sandbox: it makes another bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import struct
import tempfile
from pathlib import Path

from appliance.errors import GpuLost
from appliance.sandbox.gpu_cdi import Libraries

_LOG = logging.getLogger(__name__)
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_SONAME = 5, 14
_STRING_MAX = 255
_DYNAMIC_MAX = 1 << 20


def name_of(vendor: str, driver: str, libraries: Libraries) -> str:
    """The bundle's folder name: another if a file of it is another; "" without libraries.

    Raises:
        GpuLost: a library is not there.
    """
    if not libraries.files:
        return ""
    digest = hashlib.sha256(repr(libraries.links).encode())
    for path in libraries.files:
        try:
            about = path.stat()
        except OSError as error:
            raise GpuLost(
                f"The driver's library {path} cannot be read: {error.strerror}.",
                hint="generate the CDI spec again: nvidia-ctk cdi generate",
            ) from error
        digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return f"{vendor}-{driver or 'unknown'}-{digest.hexdigest()[:12]}"


def ensure(folder: Path, vendor: str, driver: str, libraries: Libraries) -> str:
    """The name of the complete bundle below ``folder``; made if it is missing. Blocking.

    Raises:
        GpuLost: a library cannot be read or there is no room.
    """
    name = name_of(vendor, driver, libraries)
    if not name or (folder / name).is_dir():
        return name
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
            made = Path(scratch) / "bundle"
            lib = made / "lib"
            lib.mkdir(parents=True)
            for path in libraries.files:
                target = lib / path.name
                shutil.copyfile(path, target)
                target.chmod(0o644)
            _link(lib, libraries)
            for one in (made, lib):
                one.chmod(0o755)
            made.rename(folder / name)
    except OSError as error:
        if (folder / name).is_dir():
            return name  # somebody else was faster
        raise GpuLost(f"The driver's libraries cannot be copied: {error.strerror}.") from error
    _LOG.info("driver bundle %s made of %d libraries", name, len(libraries.files))
    return name


def sweep(folder: Path, keep: frozenset[str]) -> None:
    """Remove bundles that no GPU uses any more, and halves; when nothing runs. Blocking."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)


def _link(lib: Path, libraries: Libraries) -> None:
    wanted = {soname(lib / path.name): path.name for path in libraries.files}
    for link, target in (*wanted.items(), *libraries.links):
        at = lib / link
        if link and not at.is_symlink() and not at.exists() and (lib / target).exists():
            at.symlink_to(target)


def soname(path: Path) -> str:
    """The name a 64-bit little-endian shared object asks to be found by; "" if it has none."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
                return ""
            at, size, count = (*struct.unpack_from("<Q", head, 32),
                               *struct.unpack_from("<HH", head, 54))  # fmt: skip
            file.seek(at)
            table = file.read(size * count)
            headers = [struct.unpack_from("<IIQQQQ", table, size * n) for n in range(count)]
            dynamic = next(one for one in headers if one[0] == _PT_DYNAMIC)
            file.seek(dynamic[2])
            pairs = dict(
                struct.iter_unpack("<qQ", file.read(min(dynamic[5], _DYNAMIC_MAX) // 16 * 16))
            )
            wanted = pairs[_DT_STRTAB] + pairs[_DT_SONAME]
            load = next(
                one for one in headers if one[0] == _PT_LOAD and one[3] <= wanted < one[3] + one[5]
            )
            file.seek(wanted - load[3] + load[2])
            name = file.read(_STRING_MAX).split(b"\0")[0].decode("ascii")
    except (OSError, struct.error, StopIteration, KeyError, ValueError, OverflowError):
        return ""
    return name if "/" not in name else ""
