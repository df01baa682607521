"""P17: an archive that tries to write outside or to confuse is refused by name, without a trace."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from running import ECHO_MODEL, RunningAppliance, tree

pytestmark = pytest.mark.podman

PATHS = {
    "parent": "../evil",
    "absolute": "/etc/cron.d/evil",
    "backslash": "..\\evil",
    "drive letter": "C:\\evil",
    "5,000 characters": "a" * 5000,
    "escape sequence": "\x1b[2Jevil",
    "parent further on": "a/../../evil",
    "parent at the end": "a/..",
    "two slashes": "//evil",
    "backslash further on": "a\\..\\..\\evil",
    "drive without a slash": "c:evil",
    "share": "\\\\server\\share\\evil",
    "right to left": "a\u202eyp.live",
    "line break": "a\nevil",
}
KINDS = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}


def tar_with(*extra: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, content in ECHO_MODEL.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return out.getvalue()


def member(path: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type = kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    info.size = 1 if kind == tarfile.REGTYPE else 0
    return info


def raw_nul_member() -> bytes:
    """A pax path with a NUL inside, which a C program would read as a shorter path."""
    record = b"path=appliance.toml\0.png\n"
    body = b"%d %s" % (len(record) + 3, record)
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(body)
    padded = body + b"\0" * (-len(body) % 512)
    return header.tobuf(tarfile.USTAR_FORMAT) + padded + member("x").tobuf() + b"x" + b"\0" * 511


NAMED = ("evil", "live", "link", "out", "model.py", "MODEL.PY", "aaaa", "appliance.toml", "a/..")
"""One of these is the member that a refusal has to name."""
CASES = {
    **{name: tar_with(member(path)) for name, path in PATHS.items()},
    **{name: tar_with(member("link", kind)) for name, kind in KINDS.items()},
    "symlink, then a write through it": tar_with(
        member("out", tarfile.SYMTYPE), member("out/passwd")
    ),
    "hard link, then a write through it": tar_with(member("out", tarfile.LNKTYPE), member("out")),
    "same name twice": tar_with(member("model.py")),
    "case-colliding name": tar_with(member("MODEL.PY")),
    "NUL in a pax path": tar_with()[: -2 * 512 * 10] + raw_nul_member() + b"\0" * 1024,
}


@pytest.mark.parametrize("archive", CASES.values(), ids=CASES)
def test_the_archive_is_refused_and_the_data_folder_is_as_before(
    running: RunningAppliance, archive: bytes
) -> None:
    secret = running.tenant("uploads")
    before = tree(running.data_dir)
    with running.https(secret) as client:
        reply = client.post(
            "/api/v1/models/uploads/evil/versions",
            content=archive,
            headers={"Content-Type": "application/x-tar"},
        )
        assert reply.status_code == 422, reply.text
        assert reply.json()["code"] == "archive-rejected"
        assert "\x1b" not in reply.text
        assert any(name in reply.json()["detail"] for name in NAMED), reply.json()["detail"]
        assert len(reply.content) < 2000
        assert client.get("/api/v1/models/uploads/evil").status_code == 404
    assert tree(running.data_dir) == before
    assert not Path("/etc/cron.d/evil").exists()
