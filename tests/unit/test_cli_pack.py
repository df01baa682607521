"""``model push``: which files travel, and that the archive is the same bytes every time."""

import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.cli import pack
from appliance.errors import ArchiveRejected, ManifestInvalid


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "appliance.toml").write_text('runtime = "python3.11"\nentry = "model:Model"\n')
    (tmp_path / "model.py").write_text("class Model: ...\n")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(b"\0\1\2" * 1000)
    return tmp_path


def archive_of(folder):
    members = pack.scan(folder)
    data = b"".join(pack.pack(members))
    assert len(data) == pack.packed_bytes(members)
    return data


def test_the_archive_holds_the_files_in_order_with_their_contents(folder):
    with tarfile.open(fileobj=io.BytesIO(archive_of(folder))) as tar:
        names = tar.getnames()
        assert names == ["appliance.toml", "model.py", "weights/w.bin"]
        assert tar.extractfile("weights/w.bin").read() == b"\0\1\2" * 1000


def test_the_same_files_are_the_same_bytes_whatever_their_dates_modes_and_owners(folder):
    before = archive_of(folder)
    os.utime(folder / "model.py", (1, 1))
    (folder / "model.py").chmod(0o600)
    assert archive_of(folder) == before


def test_caches_and_history_stay_behind(folder):
    before = archive_of(folder)
    for name in ("__pycache__", ".git", "weights/__pycache__"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("x")
    (folder / "model.pyc").write_bytes(b"x")
    assert archive_of(folder) == before


def test_a_symbolic_link_is_refused_and_named(folder):
    (folder / "weights" / "link").symlink_to("w.bin")
    with pytest.raises(ArchiveRejected, match=r"weights/link is a symbolic link"):
        pack.scan(folder)


def test_a_link_to_a_folder_is_refused_rather_than_followed(folder):
    (folder / "out").symlink_to("/etc")
    with pytest.raises(ArchiveRejected, match="out is a symbolic link"):
        pack.scan(folder)


def test_a_pipe_is_refused(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(ArchiveRejected, match="neither a file nor a folder"):
        pack.scan(folder)


def test_a_folder_in_which_nothing_is_recognised_says_what_to_write(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ManifestInvalid, match=r"no appliance\.toml.*'notes\.md'") as caught:
        pack.manifest_of(pack.scan(tmp_path))
    assert 'entry = "model:Model"' in caught.value.hint


def test_a_single_file_travels_with_the_versions_beside_it(tmp_path):
    (tmp_path / "iris.onnx").write_bytes(b"x")
    (tmp_path / "other.txt").write_text("x")
    assert [m.name for m in pack.scan(tmp_path / "iris.onnx")] == ["iris.onnx"]
    (tmp_path / "requirements.txt").write_text("onnxruntime==1.30.0\n")
    members = pack.scan(tmp_path / "iris.onnx")
    assert [m.name for m in members] == ["iris.onnx", "requirements.txt"]
    assert pack.manifest_of(members).requirements == ("onnxruntime==1.30.0",)


def test_a_link_to_a_single_file_is_refused(tmp_path):
    (tmp_path / "real.onnx").write_bytes(b"x")
    (tmp_path / "iris.onnx").symlink_to("real.onnx")
    with pytest.raises(ArchiveRejected, match="symbolic link"):
        pack.scan(tmp_path / "iris.onnx")


def test_no_folder_at_all_is_named(tmp_path):
    with pytest.raises(ArchiveRejected, match="is neither a file nor a folder"):
        pack.scan(tmp_path / "nothing")


def test_a_file_that_changes_its_size_while_it_is_read_is_refused(folder):
    members = pack.scan(folder)
    (folder / "model.py").write_text("short")
    with pytest.raises(ArchiveRejected, match="became shorter"):
        b"".join(pack.pack(members))
    (folder / "model.py").write_text("long" * 100)
    with pytest.raises(ArchiveRejected, match="became longer"):
        b"".join(pack.pack(members))


def test_a_file_swapped_for_a_link_after_the_scan_is_not_followed(folder):
    members = pack.scan(folder)
    (folder / "model.py").unlink()
    (folder / "model.py").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        b"".join(pack.pack(members))


def test_long_and_foreign_names_survive(folder):
    name = "ünïcode-" + "x" * 150 + ".txt"
    (folder / name).write_text("x")
    with tarfile.open(fileobj=io.BytesIO(archive_of(folder))) as tar:
        assert name in tar.getnames()


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 3000), max_size=6))
def test_the_length_is_known_before_the_archive_is_made(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("pack")
    (folder / "appliance.toml").write_text("")
    for number, size in enumerate(sizes):
        (folder / f"f{number}").write_bytes(os.urandom(size))
    with tarfile.open(fileobj=io.BytesIO(archive_of(folder))) as tar:
        assert sorted(m.size for m in tar) == sorted([0, *sizes])
