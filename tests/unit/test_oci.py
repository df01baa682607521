"""An image archive becomes a root folder that is what its layers say, or nothing at all."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oci_images import (
    OCI,
    ImageParts,
    docker_archive,
    file,
    folder,
    hardlink,
    info,
    layer,
    oci_archive,
    sha,
    symlink,
)

from appliance.errors import ImageRejected, InputInvalid, ManifestInvalid
from appliance.records import Container
from appliance.sandbox import images, oci
from appliance.sandbox.oci import Wanted
from appliance.sandbox.root_folder import Bounds

CONFIG = {
    "Entrypoint": ["/bin/server"],
    "Cmd": ["--port", "8080"],
    "Env": ["PATH=/usr/bin", "EMPTY=", "A=b=c"],
    "WorkingDir": "/srv",
    "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
    "User": "root",
    "Volumes": {"/var/lib/thing": {}},
}
BASE = layer(
    folder("./"),
    folder("./usr"),
    folder("./usr/lib"),
    symlink("./lib", "usr/lib"),
    file("./usr/lib/a.so", b"one", mode=0o600),
    file("./bin/server", b"#!/bin/sh\n", mode=0o4755),
    file("./etc/passwd", b"root:x:0:0:root:/root:/bin/sh"),
    info("./dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    info("./run/pipe", tarfile.FIFOTYPE),
)


def put(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    return path


def brought(tmp_path: Path, data: bytes, name: str = "acme-tf", **options: Any) -> images.Runtime:
    wanted = Wanted(name=name, **options)
    return oci.import_image(tmp_path, put(tmp_path, data), wanted, lambda *_: None)


def tree(rootfs: Path) -> dict[str, str]:
    found = {}
    for at, folders, names in os.walk(rootfs):
        for name in (*folders, *names):
            path = Path(at, name)
            kind = path.lstat().st_mode
            text = "dir" if stat.S_ISDIR(kind) else ""
            if stat.S_ISLNK(kind):
                text = f"-> {os.readlink(path)}"
            elif stat.S_ISREG(kind):
                text = path.read_text()
            found[str(path.relative_to(rootfs))] = text
    return found


@pytest.mark.parametrize(
    "write",
    [
        oci_archive,
        lambda parts: oci_archive(replace(parts, media_type=f"{OCI}.layer.v1.tar+zstd")),
        lambda parts: oci_archive(replace(parts, media_type=f"{OCI}.layer.v1.tar")),
        docker_archive,
    ],
    ids=["oci gzip", "oci zstd", "oci plain", "docker save"],
)
def test_every_form_of_archive_gives_the_same_runtime(tmp_path: Path, write: Any) -> None:
    parts = ImageParts([BASE, layer(file("srv/app", b"hello"))], CONFIG)
    made = brought(tmp_path, write(parts), settings=Container(protocol="sagemaker"))
    assert made.image is not None
    assert made.image.id == sha(parts.configuration())
    assert made.image.source == "test:1"
    assert made.image.entrypoint == ("/bin/server",)
    assert made.image.cmd == ("--port", "8080")
    assert made.image.environment == {"PATH": "/usr/bin", "EMPTY": "", "A": "b=c"}
    assert made.image.work_dir == "/srv"
    assert made.image.ports == (8080,)
    assert made.rootfs.parent.name == f"acme-tf-{made.digest[7:19]}"
    assert images.require(tmp_path, "acme-tf", made.digest) == made
    assert images.imported(tmp_path) == ("acme-tf",)
    found = tree(made.rootfs)
    assert found["srv/app"] == "hello"
    assert found["lib"] == "-> usr/lib"
    assert found["etc/passwd"].startswith("root:x:0:0:root:/root:/bin/sh\nsandbox:x:1000:1000:")
    for point in ("model", "opt/ml/model", "mnt/models", "run/app", "deps", "dev", "proc"):
        assert found[point] == "dir"


def test_what_a_sandbox_must_not_have_is_left_out_and_told(tmp_path: Path) -> None:
    made = brought(tmp_path, oci_archive(ImageParts([BASE], CONFIG)))
    assert made.image is not None
    notes = " ".join(made.image.notes)
    assert "2 device nodes were left out" in notes
    assert "1 files lost their set-user-id" in notes
    assert "user 'root' is not used" in notes
    assert "/var/lib/thing" in notes
    for at, folders, names in os.walk(made.rootfs):
        for name in (*folders, *names):
            status = os.lstat(os.path.join(at, name))
            kind = stat.S_IFMT(status.st_mode)
            assert kind in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)
            assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID)
            if kind != stat.S_IFLNK:  # its user is nobody's owner: everything is for all to read
                assert status.st_mode & 0o444 == 0o444
    assert os.listdir(made.rootfs / "dev") == []
    assert (made.rootfs / "bin/server").stat().st_mode & 0o777 == 0o755


def test_an_upper_layer_replaces_hides_and_writes_through_older_links(tmp_path: Path) -> None:
    lower = layer(
        folder("usr/lib"),
        symlink("lib", "usr/lib"),
        file("etc/conf", b"old"),
        hardlink("etc/same", "etc/conf"),
        file("gone/a"),
        file("gone/deep/b"),
        file("opaque/old"),
        file("opaque/kept/old"),
        file("was-file", b"f"),
        file("was-folder/x"),
    )
    upper = layer(
        file("lib/new.so", b"new"),
        file("etc/conf", b"new"),
        file(".wh.gone", b""),
        file("opaque/kept/new"),
        file("opaque/.wh..wh..opq", b""),
        file("opaque/new"),
        folder("was-file"),
        file("was-folder", b"now a file"),
        file("etc/.wh.never-there", b""),
        file(".wh..wh.aufs", b""),
    )
    found = tree(brought(tmp_path, oci_archive(ImageParts([lower, upper], CONFIG))).rootfs)
    assert found["usr/lib/new.so"] == "new"
    assert (found["etc/conf"], found["etc/same"]) == ("new", "old")
    assert not [path for path in found if path.startswith("gone")]
    assert {path for path in found if path.startswith("opaque")} == {
        "opaque", "opaque/kept", "opaque/kept/new", "opaque/new",
    }  # fmt: skip
    assert found["was-file"] == "dir"
    assert found["was-folder"] == "now a file"
    assert not [path for path in found if ".wh." in path]


def test_a_whiteout_hides_nothing_of_its_own_layer(tmp_path: Path) -> None:
    lower = layer(file("a/old"), file("b", b"old"))
    upper = layer(folder("a"), file("a/new"), file(".wh.a", b""), file("b", b"new"), file(".wh.b"))
    found = tree(brought(tmp_path, oci_archive(ImageParts([lower, upper], CONFIG))).rootfs)
    assert "a/new" in found
    assert "a/old" not in found
    assert found["b"] == "new"


def test_a_link_of_the_image_never_takes_the_preparation_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("the host's")
    hostile = layer(
        symlink("etc", str(outside)),
        symlink("run", str(outside)),
        symlink("model", str(outside)),
        symlink("mnt", "/elsewhere"),
        symlink("tmp", str(outside)),
        file("proc", b"no folder"),
    )
    made = brought(tmp_path, oci_archive(ImageParts([hostile], CONFIG)))
    assert [path.name for path in outside.iterdir()] == ["hosts"]
    assert (outside / "hosts").read_text() == "the host's"
    found = tree(made.rootfs)
    assert found["etc/hosts"] == ""
    assert found["elsewhere/models"] == "dir"
    assert found["model"] == found["tmp"] == found["proc"] == found["run/app"] == "dir"
    assert stat.S_IMODE((made.rootfs / "model").stat().st_mode) == 0o1777


def test_the_settings_are_part_of_the_digest_and_the_same_import_is_kept(tmp_path: Path) -> None:
    data = oci_archive(ImageParts([BASE], CONFIG))
    one = brought(tmp_path, data, settings=Container(protocol="oip"))
    same = brought(tmp_path, data, settings=Container(protocol="oip"))
    other = brought(tmp_path, data, settings=Container(protocol="oip", port=9000))
    assert one == same
    assert one.digest != other.digest
    assert images.require(tmp_path, "acme-tf", one.digest) == one
    assert images.require(tmp_path, "acme-tf") == other


def test_the_images_own_model_files_are_not_hidden(tmp_path: Path) -> None:
    data = oci_archive(ImageParts([BASE, layer(file("opt/ml/model/weights"))], CONFIG))
    made = brought(tmp_path, data, settings=Container(protocol="sagemaker"))
    assert made.image is not None
    assert made.image.settings.model_path == "/model"
    assert "brings files in /opt/ml/model" in " ".join(made.image.notes)
    with pytest.raises(ImageRejected, match="would be hidden"):
        brought(tmp_path, data, settings=Container(protocol="oip", model_path="/opt/ml/model"))


def test_an_image_of_several_has_to_be_named(tmp_path: Path) -> None:
    one = ImageParts([BASE], CONFIG, name="one:1")
    two = ImageParts([BASE, layer(file("two"))], CONFIG, name="two:1")
    with pytest.raises(ImageRejected, match="one:1, two:1") as caught:
        brought(tmp_path, oci_archive(one, two))
    assert "--image" in caught.value.hint
    assert "two" in tree(brought(tmp_path, oci_archive(one, two), image="two:1").rootfs)
    with pytest.raises(ImageRejected, match="no single image 'three:1'"):
        brought(tmp_path, oci_archive(one, two), image="three:1")


@pytest.mark.parametrize("name", ["python3.11", "cpp-build", "Upper", "", "../x", "a" * 33, "1a"])
def test_a_name_of_ours_or_none_at_all_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputInvalid):
        brought(tmp_path, b"", name=name)


def test_an_image_is_not_called_what_stands_for_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="stands for versions that are pipelines") as refused:
        brought(tmp_path, oci_archive(ImageParts([BASE], CONFIG)), name="pipeline")
    assert refused.value.hint == "--name pipeline-image"
    assert images.installed(tmp_path) == ()


def test_a_protocol_needs_something_to_start(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match="nothing says what to start"):
        brought(tmp_path, oci_archive(ImageParts([BASE])), settings=Container(protocol="oip"))
    assert images.installed(tmp_path) == ()


def test_a_killed_import_is_swept_and_a_running_one_is_not(tmp_path: Path) -> None:
    scratch = tmp_path / "runtimes" / ".import-dead"
    (scratch / "rootfs").mkdir(parents=True)
    running = tmp_path / "runtimes" / ".import-live"
    running.mkdir()
    with oci._locked(running):
        brought(tmp_path, oci_archive(ImageParts([BASE], CONFIG)))
        assert not scratch.exists()
        assert running.exists()
    assert oci.sweep(tmp_path) == 1


def test_progress_ends_at_one_and_never_goes_back(tmp_path: Path) -> None:
    seen: list[float] = []
    data = oci_archive(ImageParts([BASE, layer(file("big", b"y" * 5_000_000))], CONFIG))
    wanted = Wanted(name="acme-tf", bounds=Bounds())
    oci.import_image(tmp_path, put(tmp_path, data), wanted, lambda _step, done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_the_description_is_what_the_list_shows(tmp_path: Path) -> None:
    made = brought(tmp_path, oci_archive(ImageParts([BASE], CONFIG)))
    text = json.loads((made.rootfs.parent / "runtime.json").read_text())
    assert text["image"]["entrypoint"] == ["/bin/server"]
    assert images.installed(tmp_path) == (made,)
