"""Unpacking a root folder, finding installed runtimes, reading package sources."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from appliance.errors import ArchiveRejected, RuntimeMissing
from appliance.sandbox import images
from appliance.sandbox.runtimes import RUNTIMES


def rootfs_tar(path: Path, *, python: bool = True) -> Path:
    with tarfile.open(path, "w") as archive:

        def add(
            name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
        ) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, mode
            data = b"content" if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        add("./usr/bin", tarfile.DIRTYPE, mode=0o700)
        if python:
            add("./usr/bin/python3.11", mode=0o4755)
        add("./bin", tarfile.SYMTYPE, "usr/bin")
        add("./usr/bin/py", tarfile.LNKTYPE, "./usr/bin/python3.11")
        add("./etc/resolv.conf")
        add("./etc/shadow", mode=0o600)
        add("./dev/null", tarfile.CHRTYPE)
        add("./out", tarfile.SYMTYPE, "/tmp")
        add("./out/escaped")
        add("./var/lib/dpkg/status")
    return path


def test_a_root_folder_is_unpacked_without_owners_devices_or_setuid(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    images.unpack(rootfs_tar(tmp_path / "t"), rootfs)
    assert (rootfs / "usr/bin/python3.11").stat().st_mode & 0o7777 == 0o755
    assert (rootfs / "usr/bin").stat().st_mode & 0o777 == 0o755
    assert (rootfs / "etc/shadow").stat().st_mode & 0o777 == 0o644
    assert (rootfs / "bin").is_symlink()
    assert (rootfs / "usr/bin/py").stat().st_ino == (rootfs / "usr/bin/python3.11").stat().st_ino
    assert not (rootfs / "dev/null").exists()
    assert not Path("/tmp/escaped").exists()
    for name in images.MOUNT_POINTS:
        assert (rootfs / name).is_dir()
    for name in images.EMPTY_FILES:
        assert (rootfs / name).read_bytes() == b""
    assert (rootfs / "model").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("name", ["../outside", "/outside", "usr/../../outside"])
def test_a_root_folder_with_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "t", "w") as archive:
        archive.addfile(tarfile.TarInfo("./etc"))
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(ArchiveRejected, match="path"):
        images.unpack(tmp_path / "t", tmp_path / "rootfs")
    assert not (tmp_path / "outside").exists()


def test_no_link_of_a_root_folder_leads_a_write_out_of_it(tmp_path: Path) -> None:
    """A file through a folder link, over a link, a link over a folder, a hard link to outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with tarfile.open(tmp_path / "t", "w") as archive:
        for kind, name, link in (
            (tarfile.SYMTYPE, "a", str(outside)),
            (tarfile.REGTYPE, "a/kept", ""),
            (tarfile.DIRTYPE, "a/folder", ""),
            (tarfile.DIRTYPE, "a", ""),
            (tarfile.REGTYPE, "a/kept", ""),
            (tarfile.SYMTYPE, "b", str(outside / "kept")),
            (tarfile.REGTYPE, "b", ""),
            (tarfile.LNKTYPE, "c", "a/kept"),
            (tarfile.CHRTYPE, "d", ""),
            (tarfile.FIFOTYPE, "e", ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
    images.unpack(tmp_path / "t", tmp_path / "rootfs")
    assert (outside / "kept").read_text() == "kept"
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (tmp_path / "rootfs/b").is_file()
    assert not (tmp_path / "rootfs/b").is_symlink()
    for name in ("c", "d", "e"):
        assert not (tmp_path / "rootfs" / name).exists()


@pytest.mark.parametrize("name", ["etc", "run", "dev", "model"])
def test_no_link_takes_the_place_of_a_folder_that_is_written_after_unpacking(
    tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(tmp_path / "t", "w") as archive:
        member = tarfile.TarInfo(f"./{name}")
        member.type, member.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(member)
    if name == "dev":  # left out anyway
        images.unpack(tmp_path / "t", tmp_path / "rootfs")
    else:
        with pytest.raises(ArchiveRejected, match="is a link"):
            images.unpack(tmp_path / "t", tmp_path / "rootfs")
    assert list(outside.iterdir()) == []


def test_a_runtime_is_installed_once_and_found(tmp_path: Path) -> None:
    steps: list[str] = []
    tar = rootfs_tar(tmp_path / "t")
    one = images.install(tmp_path, "python3.11", tar, lambda step, _: steps.append(step))
    two = images.install(tmp_path, "python3.11", tar, lambda *_: None)
    assert one == two
    assert images.installed(tmp_path) == (one,)
    assert images.require(tmp_path, "python3.11") == one
    assert images.require(tmp_path, "python3.11", one.digest) == one
    assert one.rootfs.parent.name == f"python3.11-{one.digest[7:19]}"
    assert steps[-1] == "installed"


def test_a_missing_runtime_comes_with_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissing) as caught:
        images.require(tmp_path, "python3.11")
    assert "appliance runtime build python3.11" in caught.value.hint
    with pytest.raises(RuntimeMissing, match="no runtime 'cobol'"):
        images.require(tmp_path, "cobol")
    tar = rootfs_tar(tmp_path / "t")
    images.install(tmp_path, "python3.11", tar, lambda *_: None)
    with pytest.raises(RuntimeMissing, match="digest"):
        images.require(tmp_path, "python3.11", "sha256:other")


def test_a_tar_without_the_interpreter_is_no_runtime(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t", "w") as archive:
        archive.addfile(tarfile.TarInfo("./etc/x"))
    with pytest.raises(RuntimeMissing, match=r"python3\.11"):
        images.install(tmp_path, "python3.11", tmp_path / "t", lambda *_: None)
    assert images.installed(tmp_path) == ()
    assert not list((tmp_path / "runtimes").iterdir())


def test_only_the_hosts_own_release_is_a_source() -> None:
    ours = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates"
    assert images._is_release_source(ours, "bookworm")
    assert not images._is_release_source(ours.replace("bookworm-updates", "nodistro"), "bookworm")
    assert not images._is_release_source(ours + "\nEnabled: no", "bookworm")
    assert not images._is_release_source(ours.replace("deb\n", "deb-src\n"), "bookworm")
    lines = (
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main\n"
        "deb http://other.example/x cloud-bookworm main\n# deb http://no.example x main\n"
    )
    assert list(images._paragraphs_from_lines(lines, "bookworm")) == [
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By: /k.gpg"
    ]


def test_a_runtime_is_current_only_with_every_package_asked_for_today(tmp_path: Path) -> None:
    tar = rootfs_tar(tmp_path / "t")
    made = images.install(tmp_path, "python3.11", tar, lambda *_: None)
    about = made.rootfs.parent / "runtime.json"
    wanted = [f"{name}=1" for name in RUNTIMES["python3.11"].packages]
    assert images.current(tmp_path, "python3.11") is None, "it names no packages at all"
    description = json.loads(about.read_text())
    about.write_text(json.dumps({**description, "packages": wanted}))
    found = images.current(tmp_path, "python3.11")
    assert found is not None
    assert found.digest == made.digest
    about.write_text(json.dumps({**description, "packages": wanted[1:]}))
    assert images.current(tmp_path, "python3.11") is None


def test_an_ended_build_has_ended_before_its_folder_is_removed(tmp_path: Path) -> None:
    late = tmp_path / "late"
    script = f"trap 'sleep 1; touch {late}; exit' TERM; echo 'I: begun' >&2; sleep 30 & wait"

    def interrupted(_step: str, _fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images._run(["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"}, interrupted)
    assert late.exists()
