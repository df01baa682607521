"""The upload parser refuses every hostile member by name and emits one canonical form."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import archive
from appliance.errors import ApplianceError, ArchiveRejected, TooLarge

LIMITS = archive.Limits(bytes_max=8 * 1024 * 1024, files_max=100)


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(b"x" * member.size))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def read(
    data: bytes, *, step: int = 1000, limits: archive.Limits = LIMITS, is_gzip: bool = False
) -> tuple[bytes, archive.Listing]:
    reader = archive.Reader(limits, is_gzip=is_gzip)
    out = bytearray()
    for start in range(0, len(data), step):
        for piece in reader.feed(data[start : start + step]):
            out += piece
    tail, listing = reader.finish()
    return bytes(out) + tail, listing


def member(path: str, kind: bytes, **attributes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type = kind
    for name, value in attributes.items():
        setattr(info, name, value)
    return info


@pytest.mark.parametrize("step", [1, 511, 512, 513, 100_000])
def test_contents_paths_and_digests_survive_any_chunking(step: int) -> None:
    long = "deep/" * 20 + "n" * 90
    data = tar_of(("./a.toml", b"hello"), ("b/c.bin", bytes(range(256)) * 5), (long, b""))
    out, listing = read(data, step=step)
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert tar.getnames() == ["a.toml", "b/c.bin", long]
        assert tar.extractfile("b/c.bin").read() == bytes(range(256)) * 5  # type: ignore[union-attr]
    assert listing.captured == {"a.toml": b"hello"}
    assert listing.files[0].digest == f"sha256:{hashlib.sha256(b'hello').hexdigest()}"


def test_equal_files_give_equal_bytes_whatever_the_owner_time_and_format() -> None:
    plain = tar_of(("a", b"1"))
    info = member("a", tarfile.REGTYPE, mtime=99, uid=7, gname="x", size=1, mode=0o600)
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"1"))
    assert read(plain)[0] == read(other.getvalue())[0]


def test_gnu_long_names_are_read() -> None:
    name = "dddd/" * 30 + "f"
    assert read(tar_of((name, b"x"), form=tarfile.GNU_FORMAT))[1].files[0].path == name


HOSTILE = {
    "parent": "../evil",
    "inner parent": "a/../../evil",
    "absolute": "/etc/passwd",
    "backslash": "..\\evil",
    "drive": "C:/evil",
    "too long": "a" * 5000,
    "too deep": "a/" * 40 + "b",
    "escape sequence": "a\x1b[31m",
    "bidi override": "a\u202eb",
    "empty part": "a//b",
    "dot part": "a/./b",
}


@pytest.mark.parametrize("path", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_path_is_refused_by_name(path: str) -> None:
    with pytest.raises(ArchiveRejected) as caught:
        read(tar_of(("ok", b"1"), (path, b"x")))
    assert caught.value.fields
    assert "\x1b" not in caught.value.detail


KINDS = {
    "symlink": member("a", tarfile.SYMTYPE, linkname="/etc"),
    "hard link": member("a", tarfile.LNKTYPE, linkname="b"),
    "char device": member("a", tarfile.CHRTYPE),
    "block device": member("a", tarfile.BLKTYPE),
    "fifo": member("a", tarfile.FIFOTYPE),
    "sparse": member("a", tarfile.GNUTYPE_SPARSE),
    "setuid": member("a", tarfile.REGTYPE, mode=0o4755),
    "setgid": member("a", tarfile.REGTYPE, mode=0o2755),
}


@pytest.mark.parametrize("info", KINDS.values(), ids=KINDS)
def test_a_special_member_is_refused(info: tarfile.TarInfo) -> None:
    with pytest.raises(ArchiveRejected, match="'a'"):
        read(tar_of(("ok", b"1"), info))


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "a"), ("A", "a"), ("caf\u00e9", "cafe\u0301"), ("a", "a/b"), ("a/b", "a"), ("ß", "ss")],
)
def test_two_members_that_a_file_system_could_confuse_are_refused(first: str, second: str) -> None:
    with pytest.raises(ArchiveRejected):
        read(tar_of((first, b"1"), (second, b"2")))


def test_a_member_that_lies_about_a_tebibyte_is_refused_before_any_of_it_is_read() -> None:
    info = member("huge", tarfile.REGTYPE, size=1 << 40)
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TooLarge):
        list(archive.Reader(LIMITS, is_gzip=False).feed(header))


def test_too_many_members_are_refused() -> None:
    with pytest.raises(TooLarge, match="100 members"):
        read(tar_of(*((f"f{i}", b"") for i in range(101))))


def test_a_huge_extension_header_is_refused_unread() -> None:
    header = member("x", tarfile.XHDTYPE, size=1 << 30).tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(ArchiveRejected, match="too large"):
        list(archive.Reader(LIMITS, is_gzip=False).feed(header))


def test_gzip_is_read_and_a_gzip_bomb_is_cut_off_early() -> None:
    data = tar_of(("a", b"hello"))
    assert read(gzip.compress(data), is_gzip=True)[1].files[0].size_bytes == 5
    bomb = gzip.compress(b"\0" * (64 * 1024 * 1024))
    reader = archive.Reader(LIMITS, is_gzip=True)
    with pytest.raises((ArchiveRejected, TooLarge)):
        for _ in reader.feed(bomb):
            pass


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 1024])
def test_a_truncated_archive_is_refused(cut: int) -> None:
    with pytest.raises(ArchiveRejected):
        read(tar_of(("a", b"x" * 600))[:cut])


def test_a_truncated_gzip_stream_is_refused() -> None:
    with pytest.raises(ArchiveRejected, match="truncated"):
        read(gzip.compress(tar_of(("a", b"x")))[:-4], is_gzip=True)


@pytest.mark.parametrize("data", [b"", b"\0" * 1024, b"hello world" * 100, b"PK\x03\x04" * 300])
def test_what_is_not_a_tar_with_files_is_refused(data: bytes) -> None:
    with pytest.raises(ArchiveRejected):
        read(data)


def test_a_flipped_header_bit_is_noticed() -> None:
    data = bytearray(tar_of(("abc", b"x"), form=tarfile.USTAR_FORMAT))
    data[0] ^= 1
    with pytest.raises(ArchiveRejected, match="damaged"):
        read(bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 1536), st.booleans())
def test_arbitrary_bytes_only_ever_raise_an_appliance_problem(
    noise: bytes, at: int, as_gzip: bool
) -> None:
    base = bytearray(tar_of(("a", b"x" * 10), ("b" * 120, b"y")))
    base[at : at + len(noise)] = noise
    with contextlib.suppress(ApplianceError):
        read(bytes(base), is_gzip=as_gzip)


def _pax_header(records: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + b"\0" * (-len(records) % archive.BLOCK)


def test_headers_without_members_are_refused_early() -> None:
    reader = archive.Reader(archive.Limits(bytes_max=1 << 30, files_max=1000), is_gzip=False)
    with pytest.raises(ArchiveRejected, match="extension headers"):
        list(reader.feed(_pax_header(b"5 a=\n") * 20))


def test_a_header_full_of_small_records_is_refused() -> None:
    reader = archive.Reader(archive.Limits(bytes_max=1 << 20, files_max=10), is_gzip=False)
    with pytest.raises(ArchiveRejected, match="records"):
        list(reader.feed(_pax_header(b"5 a=\n" * 13_000)))
