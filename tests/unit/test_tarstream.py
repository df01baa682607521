"""The strict tar reader: what it reads, and what no header can make it do."""

from __future__ import annotations

import io
import tarfile

import pytest

from appliance import tarstream
from appliance.errors import ArchiveRejected

LIMITS = tarstream.Limits(bytes_max=1_000_000, files_max=50)


def tar(*members: tuple[str, bytes, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(data), "target"
            member.mtime = 1234
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes, limits: tarstream.Limits = LIMITS) -> dict[str, tuple[str, bytes]]:
    return {
        member.path: (member.kind, b"".join(pieces))
        for member, pieces in tarstream.members(io.BytesIO(data), limits)
    }


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_member_is_read_with_its_kind_and_content(form: int) -> None:
    long = "/".join(["folder" * 10] * 5) + "/ü"
    found = read(
        tar(
            ("./", tarfile.DIRTYPE, b""),
            ("./a/", tarfile.DIRTYPE, b""),
            ("./a/b", tarfile.REGTYPE, b"x" * 700),
            (long, tarfile.REGTYPE, b"y"),
            ("l", tarfile.SYMTYPE, b""),
            ("h", tarfile.LNKTYPE, b""),
            ("p", tarfile.FIFOTYPE, b""),
            ("empty", tarfile.REGTYPE, b""),
            form=form,
        )
    )
    assert found == {
        "a": ("folder", b""),
        "a/b": ("file", b"x" * 700),
        long: ("file", b"y"),
        "l": ("link", b""),
        "h": ("hard link", b""),
        "p": ("other", b""),
        "empty": ("file", b""),
    }


def test_content_that_nobody_took_is_passed_over() -> None:
    data = tar(("a", tarfile.REGTYPE, b"x" * 1500), ("b", tarfile.REGTYPE, b"y"))
    seen = [member.path for member, _ in tarstream.members(io.BytesIO(data), LIMITS)]
    assert seen == ["a", "b"]


@pytest.mark.parametrize("name", ["/a", "../a", "a/../../b", "a/..", "x" * 300, "a/" * 70 + "b"])
def test_a_path_that_leaves_or_is_none_is_refused(name: str) -> None:
    with pytest.raises(ArchiveRejected):
        read(tar((name, tarfile.REGTYPE, b"")))


def test_a_cut_archive_is_refused_wherever_it_is_cut() -> None:
    data = tar(("a" * 120, tarfile.REGTYPE, b"x" * 700), ("b", tarfile.REGTYPE, b"y"))
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    assert len(read(data[: end + 512])) == 2
    for at in range(0, end, 100):
        with pytest.raises(ArchiveRejected, match="truncated"):
            read(data[:at])


def test_a_flipped_bit_in_a_header_is_refused() -> None:
    data = bytearray(tar(("a", tarfile.REGTYPE, b"x")))
    data[3] ^= 1
    with pytest.raises(ArchiveRejected, match="damaged"):
        read(bytes(data))


def test_size_and_number_of_members_are_bounded_by_the_headers_word() -> None:
    data = tar(("a", tarfile.REGTYPE, b"x" * 1000))
    with pytest.raises(ArchiveRejected, match="more than it may"):
        read(data, tarstream.Limits(bytes_max=999, files_max=9))
    with pytest.raises(ArchiveRejected, match="more than it may"):
        read(tar(*((str(n), tarfile.REGTYPE, b"") for n in range(51))))


def _with_pax(records: bytes) -> bytes:
    head = tarfile.TarInfo("x")
    head.type, head.size = b"x", len(records)
    padded = records + b"\0" * (-len(records) % 512)
    return head.tobuf(tarfile.USTAR_FORMAT) + padded + tar(("a", tarfile.REGTYPE, b"x"))


@pytest.mark.parametrize(
    "records",
    [
        b"24 GNU.sparse.map=0,100\n",
        b"9 size=x\n",
        b"99 path=a\n",
        b"x path=a\n",
        b"11 path=a\0b\n",
        b"11 path=\xff\xfe\n",
        b"13 path=../a\n",
        b"9 no-equal\n",
        b"12 path=a\n" * 300,
    ],
)
def test_a_bad_extension_header_is_refused(records: bytes) -> None:
    with pytest.raises(ArchiveRejected):
        read(_with_pax(records))


def test_endless_extension_headers_are_refused() -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = b"g", 0
    with pytest.raises(ArchiveRejected, match="extension"):
        read(head.tobuf(tarfile.USTAR_FORMAT) * 6 + tar(("a", tarfile.REGTYPE, b"x")))


def test_a_link_with_content_is_refused() -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.SYMTYPE, 512
    with pytest.raises(ArchiveRejected, match="content"):
        read(head.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 2048)
