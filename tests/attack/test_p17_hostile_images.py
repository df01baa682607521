"""P17, P18, P19 and P21 for imported images: a hostile archive or layer is refused, naming what is
wrong, and leaves nothing: not outside, not in the data folder."""

from __future__ import annotations

import gzip
import json
import os
import resource
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from oci_images import (
    OCI,
    ImageParts,
    blobs_of,
    docker_archive,
    file,
    folder,
    hardlink,
    info,
    layer,
    oci_archive,
    sha,
    symlink,
    tar_of_blobs,
)

from appliance.errors import ApplianceError, ImageRejected, ManifestInvalid
from appliance.records import Container
from appliance.sandbox import images, oci
from appliance.sandbox.oci import Wanted
from appliance.sandbox.root_folder import Bounds

CONFIG = {"Cmd": ["/bin/server"]}
GOOD = layer(file("bin/server"))
OTHER = {"amd64": "arm64"}.get(ImageParts([]).architecture, "amd64")
MIB = 1024 * 1024


def sparse() -> bytes:
    """A GNU sparse member that says it is a tebibyte large."""
    head = tarfile.TarInfo("huge")
    head.type = tarfile.GNUTYPE_SPARSE
    head.size = 512
    return head.tobuf(tarfile.GNU_FORMAT) + b"x" * 512 + b"\0" * 1024


def lying(path: str, size: int) -> bytes:
    """A member whose header says more than there is."""
    head = tarfile.TarInfo(path)
    head.size = size
    return head.tobuf(tarfile.PAX_FORMAT) + b"x" * 512


def pax_path(value: bytes) -> bytes:
    """A member whose path a pax record gives, whatever is in it."""
    record = b" path=" + value + b"\n"
    size = len(record) + 2
    size = len(str(size)) + len(record)
    body = b"%d" % size + record
    head = tarfile.TarInfo("pax")
    head.type, head.size = tarfile.XHDTYPE, len(body)
    padded = body + b"\0" * (-len(body) % 512)
    return head.tobuf(tarfile.USTAR_FORMAT) + padded + layer(file("x"))


# What a layer may not hold, and what the refusal says.
MEMBERS: dict[str, tuple[bytes, str]] = {
    "parent": (layer(file("../../evil")), "'..'"),
    "parent in the middle": (layer(file("a/../../evil")), "'..'"),
    "absolute": (layer(file("/etc/cron.d/evil")), "absolute"),
    "symlink, then a write through it": (
        layer(symlink("out", "/tmp"), file("out/evil")),
        "written through a link of the same layer",
    ),
    "relative link out": (layer(symlink("a/out", "../../..")), "leads out of the image"),
    "hard link out": (layer(hardlink("a", "../../../etc/passwd")), "'..'"),
    "hard link to an absolute path": (layer(hardlink("a", "/etc/passwd")), "absolute"),
    "hard link to nothing": (layer(hardlink("a", "etc/passwd")), "not there"),
    "hard link to a folder": (layer(folder("d"), hardlink("a", "d")), "not there"),
    "write below a file": (layer(file("f"), file("f/x")), "no folder"),
    "links in a ring": (
        layer(symlink("a", "b"), symlink("b", "a"), hardlink("c", "a/x")),
        "too many links",
    ),
    "a whiteout of the parent": (layer(file("a/.wh...", b"")), "whiteout of nothing"),
    "a whiteout of nothing": (layer(file("a/.wh.", b"")), "whiteout of nothing"),
    "5,000 characters": (layer(file("a" * 5000)), "too long"),
    "too deep": (layer(file("a/" * 400 + "x")), "too deep"),
    "a long name": (layer(file("a" * 256)), "too long"),
    "NUL": (pax_path(b"bin/server\0.png"), "NUL"),
    "a sparse tebibyte": (sparse(), "has content, but is no file"),
    "more than there is": (lying("short", 1 << 30), "truncated"),
    "a size out of this world": (lying("short", 1 << 50), "over"),
    "cut off": (GOOD[:700], "truncated"),
    "no tar at all": (b"\xab" * 4096, "damaged"),
}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A place next to the data folder, which nobody may touch."""
    target = tmp_path / "outside"
    target.mkdir()
    (target / "file").write_bytes(b"kept")
    yield target
    assert {path.name for path in target.iterdir()} == {"file"}
    assert (target / "file").read_bytes() == b"kept"


def refused(tmp_path: Path, data: bytes, **options: Any) -> ImageRejected:
    """The refusal of an archive; nothing of it is left."""
    source = tmp_path / "image.tar"
    source.write_bytes(data)
    data_dir = tmp_path / "data"
    with pytest.raises(ImageRejected) as caught:
        oci.import_image(data_dir, source, Wanted(name="evil", **options), lambda *_: None)
    assert list((data_dir / "runtimes").iterdir()) == []
    assert not Path("/etc/cron.d/evil").exists()
    assert "\x1b" not in caught.value.detail
    assert len(caught.value.detail) < 1000
    return caught.value


@pytest.mark.parametrize(("hostile", "reason"), MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("write", [oci_archive, docker_archive], ids=["oci", "docker"])
def test_a_hostile_member_is_refused_by_layer_and_name(
    tmp_path: Path,
    outside: Path,
    hostile: bytes,
    reason: str,
    write: Callable[[ImageParts], bytes],
) -> None:
    problem = refused(tmp_path, write(ImageParts([GOOD, hostile], CONFIG)))
    assert problem.detail.startswith(
        f"Layer 2 ({sha(gzip.compress(hostile, 1, mtime=0))[:19]}"
    ) or (problem.detail.startswith(f"Layer 2 ({sha(hostile)[:19]}"))
    assert reason in problem.detail
    assert problem.extensions["layer"] == 2


def test_a_lower_layers_link_out_is_followed_inside_only(tmp_path: Path, outside: Path) -> None:
    lower = layer(symlink("way", str(outside)), symlink("up", "a/b"), folder("a/b"))
    upper = layer(file("way/evil"), file("up/fine"), hardlink("taken", "way/evil"))
    source = tmp_path / "image.tar"
    source.write_bytes(oci_archive(ImageParts([lower, upper], CONFIG)))
    made = oci.import_image(tmp_path / "data", source, Wanted(name="evil"), lambda *_: None)
    assert (made.rootfs / str(outside)[1:] / "evil").read_bytes() == b"x"
    assert (made.rootfs / "a/b/fine").read_bytes() == b"x"
    assert (made.rootfs / "taken").read_bytes() == b"x"


def test_a_name_with_an_escape_sequence_is_shown_escaped(tmp_path: Path) -> None:
    problem = refused(tmp_path, oci_archive(ImageParts([layer(file("../\x1b[2J\n"))], CONFIG)))
    assert "\\x1b[2J\\n" in problem.detail


def changed(parts: ImageParts, what: Callable[[dict[str, Any]], None]) -> bytes:
    """An OCI archive whose manifest was changed, and names its digest rightly."""
    blobs, about = blobs_of(parts)
    path = f"blobs/sha256/{about['digest'][7:]}"
    manifest = json.loads(blobs.pop(path))
    what(manifest)
    text = json.dumps(manifest).encode()
    blobs[f"blobs/sha256/{sha(text)[7:]}"] = text
    index = {"manifests": [{**about, "digest": sha(text), "size": len(text)}]}
    return tar_of_blobs({**blobs, "oci-layout": b"{}", "index.json": json.dumps(index).encode()})


PARTS = ImageParts([GOOD], CONFIG)


def swapped(data: bytes, old: bytes, new: bytes) -> bytes:
    """The archive with other bytes in a blob, its name unchanged."""
    assert data.count(old) == 1
    return data.replace(old, new)


PLAIN = replace(PARTS, media_type=f"{OCI}.layer.v1.tar")
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "no image": (tar_of_blobs({"readme": b"x"}), "neither index.json nor manifest.json"),
    "compressed as a whole": (gzip.compress(oci_archive(PARTS)), "compressed as a whole (gzip)"),
    "another machine": (oci_archive(replace(PARTS, architecture=OTHER)), f"for linux/{OTHER}"),
    "another system": (oci_archive(replace(PARTS, os="windows")), "for windows/"),
    "another machine, docker": (
        docker_archive(replace(PARTS, architecture=OTHER)),
        f"for linux/{OTHER}",
    ),
    "a layer's content changed": (
        swapped(
            oci_archive(replace(PLAIN, layers=[layer(file("a", b"content"))])),
            b"content",
            b"CONTENT",
        ),
        "not what the manifest says",
    ),
    "a layer's content changed, docker": (
        swapped(
            docker_archive(replace(PLAIN, layers=[layer(file("a", b"content"))])),
            b"content",
            b"CONTENT",
        ),
        "not what the configuration says",
    ),
    "the configuration changed": (
        swapped(oci_archive(PARTS), b'"/bin/server"', b'"/bin/shshsh"'),
        "is not what the archive says",
    ),
    "the configuration changed, docker": (
        swapped(docker_archive(PARTS), b'"/bin/server"', b'"/bin/shshsh"'),
        "is not what its name says",
    ),
    "another diff_id": (
        oci_archive(replace(PARTS, diff_ids=[sha(b"else")])),
        "not what the configuration says",
    ),
    "a layer too few": (
        changed(PARTS, lambda manifest: manifest["layers"].clear()),
        "0 layers and names 1",
    ),
    "an unknown layer type": (
        oci_archive(replace(PARTS, descriptor={"mediaType": "application/x-evil"})),
        "unknown type 'application/x-evil'",
    ),
    "a foreign layer": (
        oci_archive(replace(PARTS, descriptor={"urls": ["https://example.test/layer"]})),
        "foreign layer",
    ),
    "a nondistributable layer": (
        oci_archive(replace(PARTS, media_type=f"{OCI}.layer.nondistributable.v1.tar+gzip")),
        "foreign layer",
    ),
    "a layer that is not there": (
        oci_archive(replace(PARTS, descriptor={"digest": sha(b"gone")})),
        "not in the archive",
    ),
    "a layer of another size": (oci_archive(replace(PARTS, descriptor={"size": 3})), "bytes"),
    "a digest that is a path": (
        oci_archive(replace(PARTS, descriptor={"digest": "sha256:../../../etc/passwd"})),
        "no sha256 digest",
    ),
    "plain called gzip": (oci_archive(replace(PARTS, packed=[GOOD])), "but is plain"),
    "gzip cut off": (
        oci_archive(replace(PARTS, packed=[gzip.compress(GOOD, mtime=0)[:-12]])),
        "cut off",
    ),
    "gzip damaged": (
        oci_archive(replace(PARTS, packed=[gzip.compress(GOOD, mtime=0)[:-20] + b"x" * 20])),
        "damaged",
    ),
    "zstd damaged": (
        oci_archive(
            replace(
                PARTS,
                media_type=f"{OCI}.layer.v1.tar+zstd",
                packed=[zstandard.compress(GOOD)[:-4] + b"xxxx"],
            )
        ),
        "",
    ),
    "a config that is no image's": (
        changed(
            PARTS, lambda manifest: manifest["config"].update(mediaType="application/vnd.helm")
        ),
        "no container image",
    ),
    "json too deep": (
        tar_of_blobs({"oci-layout": b"{}", "index.json": b"[" * 100_000}),
        "index.json is damaged",
    ),
    "json of another shape": (
        tar_of_blobs({"oci-layout": b"{}", "index.json": b'{"manifests": 7}'}),
        "index.json is damaged",
    ),
    "a huge index": (
        tar_of_blobs({"oci-layout": b"{}", "index.json": b" " * (5 * MIB)}),
        "larger than 4 MiB",
    ),
    "docker: a layer path that climbs": (
        tar_of_blobs(
            {
                "c.json": PARTS.configuration(),
                "manifest.json": json.dumps(
                    [{"Config": "c.json", "Layers": ["../../../../etc/passwd"]}]
                ).encode(),
            }
        ),
        "not in the archive",
    ),
    "docker: an absolute configuration": (
        tar_of_blobs({"manifest.json": b'[{"Config": "/etc/passwd", "Layers": []}]'}),
        "not in the archive",
    ),
    "docker: a layer that is a link out": (
        layer(
            file("c.json", PARTS.configuration()),
            symlink("l/layer.tar", "../../../../etc/passwd"),
            file("manifest.json", b'[{"Config": "c.json", "Layers": ["l/layer.tar"]}]'),
        ),
        "not in the archive",
    ),
    "docker: layers that link to each other": (
        layer(
            file("c.json", PARTS.configuration()),
            symlink("a", "b"),
            symlink("b", "a"),
            file("manifest.json", b'[{"Config": "c.json", "Layers": ["a"]}]'),
        ),
        "not in the archive",
    ),
    "a blob twice": (
        layer(file("oci-layout"), file("index.json"), file("index.json", b"two")),
        "there twice",
    ),
    "a device in the archive": (layer(info("oci-layout", tarfile.CHRTYPE)), "neither a file"),
    "a blob cut off": (oci_archive(PLAIN)[:4000], "cut off"),
}


@pytest.mark.parametrize(("data", "reason"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_is_not_what_it_says_is_refused(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    assert reason in refused(tmp_path, data).detail


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_bomb_is_refused_before_it_fills_memory_or_disk(tmp_path: Path) -> None:
    head = tarfile.TarInfo("zeros")
    head.size = 4096 * MIB
    for packing, media_type in (("gzip", "tar+gzip"), ("zstd", "tar+zstd")):
        squeeze: Any = (
            zlib.compressobj(9, zlib.DEFLATED, 31)
            if packing == "gzip"
            else zstandard.ZstdCompressor().compressobj()
        )
        packed = squeeze.compress(head.tobuf(tarfile.PAX_FORMAT))
        for _ in range(512):
            packed += squeeze.compress(bytes(MIB))
        packed += squeeze.flush()
        parts = ImageParts(
            [b""], CONFIG, packed=[packed], media_type=f"{OCI}.layer.v1.{media_type}"
        )
        before, started = peak_bytes(), time.monotonic()
        assert "200 times" in refused(tmp_path, oci_archive(parts)).detail
        assert peak_bytes() - before < 64 * MIB
        assert time.monotonic() - started < 20


def test_more_bytes_or_members_than_an_image_may_have_are_refused(tmp_path: Path) -> None:
    large = layer(*(file(f"f{n}", os.urandom(MIB)) for n in range(4)))
    small = Bounds(bytes_max=3 * MIB, members_max=100)
    problem = refused(tmp_path, oci_archive(ImageParts([large], CONFIG)), bounds=small)
    assert "'f3'" in problem.detail
    assert "over 3 MiB" in problem.detail
    many = layer(*(file(f"f{n}", b"") for n in range(60)))
    again = layer(*(file(f"f{n}", b"") for n in range(60)))
    problem = refused(tmp_path, oci_archive(ImageParts([many, again], CONFIG)), bounds=small)
    assert "Layer 2" in problem.detail
    assert "'f40' is one too many" in problem.detail


def test_a_full_disk_is_told_as_one_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "image.tar"
    source.write_bytes(oci_archive(ImageParts([layer(file("big", bytes(MIB)))], CONFIG)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
    try:
        with pytest.raises(ApplianceError) as caught:
            oci.import_image(tmp_path / "data", source, Wanted(name="big"), lambda *_: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert caught.value.slug == "disk-full"
    assert list((tmp_path / "data" / "runtimes").iterdir()) == []


def test_names_that_differ_in_case_or_form_only_stay_two(tmp_path: Path) -> None:
    source = tmp_path / "image.tar"
    both = layer(file("A", b"1"), file("a", b"2"), file("\u00e9", b"3"), file("e\u0301", b"4"))
    source.write_bytes(oci_archive(ImageParts([both], CONFIG)))
    made = oci.import_image(tmp_path / "data", source, Wanted(name="two"), lambda *_: None)
    found = [(made.rootfs / name).read_bytes() for name in ("A", "a", "\u00e9", "e\u0301")]
    assert found == [b"1", b"2", b"3", b"4"]


def test_a_member_twice_in_a_layer_is_the_last_of_them(tmp_path: Path) -> None:
    source = tmp_path / "image.tar"
    twice = layer(file("a", b"1"), hardlink("b", "a"), file("a", b"2"))
    source.write_bytes(oci_archive(ImageParts([twice], CONFIG)))
    made = oci.import_image(tmp_path / "data", source, Wanted(name="two"), lambda *_: None)
    assert (made.rootfs / "a").read_bytes() == b"2"
    assert (made.rootfs / "b").read_bytes() == b"1"


WORKS = {
    "a descriptor": ([], "/proc/self/fd/9"),
    "another's": ([], "/proc/1/root"),
    "below dev": ([], "/dev/fd/9"),
    "a link to one": ([symlink("x", "/proc/self/fd/9")], "/x"),
    "links to one": ([symlink("x", "y/self"), symlink("y", "proc")], "/x/fd/9"),
    "below a file": ([], "/bin/server/x"),
}


@pytest.mark.parametrize("name", WORKS)
def test_an_image_starts_in_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    more, path = WORKS[name]
    parts = ImageParts([layer(file("bin/server"), *more)], {**CONFIG, "WorkingDir": path})
    problem = refused(tmp_path, oci_archive(parts))
    assert "/dev, /proc or /sys" in problem.detail or "no folder" in problem.detail


def test_a_working_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    source = tmp_path / "image.tar"
    parts = ImageParts([layer(file("bin/server"), symlink("w", "/srv"))], CONFIG)
    parts.config = {**CONFIG, "WorkingDir": "/w/app/data"}
    source.write_bytes(oci_archive(parts))
    made = oci.import_image(tmp_path / "data", source, Wanted(name="one"), lambda *_: None)
    assert (made.rootfs / "srv/app/data").is_dir()
    assert not (made.rootfs / "srv/app").is_symlink()


HIDING = ("/bin", "/proc", "/dev/pts", "/sys", "/run/app", "/tmp", "/etc", "/deps", "/link", "/x/y")


@pytest.mark.parametrize("path", HIDING)
def test_a_manifest_puts_files_over_nothing_of_the_image_or_the_sandbox(
    tmp_path: Path, path: str
) -> None:
    source = tmp_path / "image.tar"
    parts = ImageParts(
        [
            layer(
                file("bin/server"), folder("x"), symlink("link", "/srv/empty"), folder("srv/empty")
            )
        ],
        CONFIG,
    )
    source.write_bytes(oci_archive(parts))
    made = oci.import_image(tmp_path / "data", source, Wanted(name="one"), lambda *_: None)
    with pytest.raises(ManifestInvalid, match=path):
        images.require_servable(made, Container(protocol="cog", model_path=path))
    for good in ("/model", "/opt/ml/model", "/srv/empty"):
        images.require_servable(made, Container(protocol="cog", model_path=good))
