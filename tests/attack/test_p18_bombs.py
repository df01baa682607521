"""P18, P19, P21: bombs, members no model needs, and names that a file system could confuse.

Through the registration route of a running appliance: refused, at no cost in memory, and the data
folder is as before.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ECHO_MODEL, RunningAppliance, tar_of_files, tree

pytestmark = pytest.mark.podman

MIB = 1024 * 1024
GROWTH_MAX = 64 * MIB


def header(path: str, size: int = 0, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.type, info.mode = size, kind, mode
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_with(*blocks: bytes) -> bytes:
    whole = tar_of_files(ECHO_MODEL)
    end = len(whole)
    while whole[end - 512 : end] == b"\0" * 512:
        end -= 512
    return whole[:end] + b"".join(blocks) + b"\0" * 1024


def resident_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def gzip_of(pieces: Iterator[bytes], level: int = 9) -> bytes:
    engine = zlib.compressobj(level, zlib.DEFLATED, 31)
    return b"".join(engine.compress(piece) for piece in pieces) + engine.flush()


def zeros(mib: int) -> Iterator[bytes]:
    yield tar_with()[:-1024]
    yield header("zeros", mib * MIB)
    for _ in range(mib):
        yield b"\0" * MIB
    yield b"\0" * 1024


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * (200 * MIB))
    return out.getvalue()


def nested(levels: int) -> bytes:
    data = b"\0" * MIB
    for level in range(levels):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for copy in range(4):
                archive.writestr(f"{level}-{copy}.zip", data)
        data = out.getvalue()
    return data


def many_members(count: int) -> Iterator[bytes]:
    """Empty members, their headers made from one: digits of the name, then the checksum."""
    yield tar_with()[:-1024]
    plain = header("m0000000")
    total = int(plain[148:154], 8)
    for number in range(count):
        digits = b"%07d" % number
        checksum = b"%06o" % (total + sum(digits) - 7 * 48)
        yield plain[:1] + digits + plain[8:148] + checksum + plain[154:]
    yield b"\0" * 1024


def pax(records: dict[str, str], path: str, size: int) -> bytes:
    body = b""
    for key, text in records.items():
        line = f" {key}={text}\n".encode()
        length = len(line) + 2
        length += len(str(length)) - 2 + (len(str(len(line) + len(str(length)))) > len(str(length)))
        while len(str(length)) + len(line) != length:
            length = len(str(length)) + len(line)
        body += str(length).encode() + line
    padded = body + b"\0" * (-len(body) % 512)
    return header("pax", len(body), tarfile.XHDTYPE) + padded + header(path, size)


NFC, NFD = (unicodedata.normalize(form, "caf\u00e9.bin") for form in ("NFC", "NFD"))
TAR, GZIP = "application/x-tar", "application/gzip"
CASES: dict[str, tuple[str, bytes]] = {
    # P18
    "200 MiB in a small gzip": (GZIP, gzip_of(zeros(200))),
    "1,000 to one": (GZIP, gzip_of(iter([b"\0" * (100 * MIB)]))),
    "gzip of gzip": (GZIP, gzip.compress(gzip_of(iter([b"\0" * (64 * MIB)])))),
    "many gzip members in a row": (GZIP, gzip.compress(b"\0" * MIB) * 200),
    "a zip bomb by another name": (TAR, zip_bomb()),
    "nested zips as gzip": (GZIP, nested(6)),
    "size larger than the body": (TAR, tar_with(header("short", 5 * MIB), b"x" * 512)),
    "size smaller than the body": (TAR, tar_with(header("long", 1), b"x" * 4096)),
    "a pax size over the header's": (TAR, tar_with(pax({"size": str(1 << 45)}, "big", 0))),
    "a base-256 size of 2**62": (
        TAR,
        tar_with(header("x", 0)[:124] + b"\x80" + struct.pack(">3xQ", 1 << 62) + b"\0" * 376),
    ),
    # P19
    "block device": (TAR, tar_with(header("disk", kind=tarfile.BLKTYPE))),
    "character device": (TAR, tar_with(header("null", kind=tarfile.CHRTYPE))),
    "fifo": (TAR, tar_with(header("pipe", kind=tarfile.FIFOTYPE))),
    "socket kind": (TAR, tar_with(header("sock", kind=b"9"))),
    "setuid": (TAR, tar_with(header("su", mode=0o4755))),
    "setgid": (TAR, tar_with(header("sg", mode=0o2755))),
    "setuid folder": (TAR, tar_with(header("d/", kind=tarfile.DIRTYPE, mode=0o6755))),
    "1 TiB sparse, GNU": (TAR, tar_with(header("s", 1 << 40, kind=tarfile.GNUTYPE_SPARSE))),
    "1 TiB sparse, pax": (
        TAR,
        tar_with(pax({"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}, "s", 0)),
    ),
    "more members than any model has": (GZIP, gzip_of(many_members(150_000), level=1)),
    # P21
    "duplicate": (TAR, tar_with(header("a"), header("a"))),
    "duplicate by ./": (TAR, tar_with(header("a"), header("./a"))),
    "case": (TAR, tar_with(header("a/B.txt"), header("A/b.TXT"))),
    "case beyond ASCII": (TAR, tar_with(header("\u0130x"), header("i\u0307x"))),
    "sharp s": (TAR, tar_with(header("stra\u00dfe"), header("STRASSE"))),
    "NFC and NFD": (TAR, tar_with(header(NFC), header(NFD))),
    "file and folder": (TAR, tar_with(header("x"), header("X/", kind=tarfile.DIRTYPE))),
    "file and its parent": (TAR, tar_with(header("p/q"), header("P"))),
}


def test_two_million_members_are_refused_at_the_first_too_many(running: RunningAppliance) -> None:
    archive = gzip_of(many_members(2_000_000), level=1)
    assert_refused_at_no_cost(running, GZIP, archive)


@pytest.mark.parametrize(("media", "archive"), CASES.values(), ids=CASES)
def test_it_is_refused_at_no_cost_and_leaves_nothing(
    running: RunningAppliance, media: str, archive: bytes
) -> None:
    assert_refused_at_no_cost(running, media, archive)


def assert_refused_at_no_cost(running: RunningAppliance, media: str, archive: bytes) -> None:
    secret = running.tenant("uploads")
    before = tree(running.data_dir)
    assert running.process is not None
    pid = running.process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak
    held = resident_bytes(pid, "VmRSS")
    with running.https(secret) as client:
        answer = client.post(
            "/api/v1/models/uploads/bomb/versions",
            content=archive,
            headers={"Content-Type": media},
        )
        assert answer.status_code in (413, 422), answer.text
        assert answer.json()["code"] in ("archive-rejected", "too-large")
        assert client.get("/api/v1/models/uploads/bomb").status_code == 404
    grown = resident_bytes(pid, "VmHWM") - held
    assert grown <= GROWTH_MAX, f"{grown // MIB} MiB"
    assert tree(running.data_dir) == before
