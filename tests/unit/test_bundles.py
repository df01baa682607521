"""Bundles: what goes in comes out, the same bytes each time, and nothing else is installed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import signing
from appliance.errors import BundleRejected, DiskFull, RuntimeMissing
from appliance.records import Package
from appliance.sandbox import bundles, dependencies, images
from appliance.sandbox.tree import differences, tree_of

SEED = bytes(range(32))
TRUSTED = frozenset({signing.fingerprint(signing.public_from_seed(SEED))})


def sign(message: bytes) -> tuple[bytes, bytes]:
    return signing.sign(SEED, bundles.PURPOSE, message)


def quiet(_step: str, _fraction: float) -> None:
    pass


def install_runtime(data_dir: Path) -> images.Runtime:
    path = data_dir / "rootfs.tar"
    data_dir.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content, mode in (
            ("usr/bin/python3.11", b"interpreter" * 1000, 0o755),
            ("usr/lib/ümläut.py", b"x", 0o644),
            ("var/lib/dpkg/status", b"Package: p\nStatus: a installed\nVersion: 1\n", 0o644),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), mode, 1_700_000_000
            archive.addfile(member, io.BytesIO(content))
        for kind, name, target in (
            (tarfile.SYMTYPE, "bin", "usr/bin"),
            (tarfile.LNKTYPE, "usr/bin/python3", "usr/bin/python3.11"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    runtime = images.install(data_dir, "python3.11", path, quiet)
    path.unlink()
    return runtime


def install_set(data_dir: Path, runtime: images.Runtime) -> dependencies.Description:
    lock = (Package(name="a", version="1", digest="sha256:1"),)
    key = dependencies.lock_key(runtime.digest, lock)
    folder = data_dir / "deps/.build-x"
    (folder / "a").mkdir(parents=True)
    (folder / "a/__init__.py").write_text("value = 1\n")
    dependencies._publish(folder, data_dir / "deps" / key, runtime, lock)
    return dependencies.described(data_dir)[0]


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, images.Runtime, dependencies.Description]:
    runtime = install_runtime(tmp_path / "here")
    one = install_set(tmp_path / "here", runtime)
    file = tmp_path / "x.bundle"
    bundles.export(tmp_path / "here", runtime, (one,), file, sign, quiet)
    return file, runtime, one


def test_a_runtime_and_its_sets_arrive_as_they_were(
    tmp_path: Path, exported: tuple[Path, images.Runtime, dependencies.Description]
) -> None:
    file, runtime, one = exported
    steps: list[str] = []
    found = bundles.import_bundle(
        tmp_path / "there", file, TRUSTED, lambda step, _: steps.append(step)
    )
    assert found.signer in TRUSTED
    there = found.runtime
    assert (there.name, there.digest, there.packages) == ("python3.11", runtime.digest, ("p=1",))
    assert there.signer == found.signer
    assert there.tree == runtime.tree == tree_of(there.rootfs).digest
    assert images.verify(there, quiet).state == "same"
    assert (there.rootfs / "bin").readlink() == Path("usr/bin")
    program = there.rootfs / "usr/bin/python3"
    assert program.stat().st_ino == (there.rootfs / "usr/bin/python3.11").stat().st_ino
    assert program.stat().st_mode & 0o7777 == 0o755
    assert int(program.stat().st_mtime) == 1_700_000_000
    assert (tmp_path / "there/deps" / one.key / "a/__init__.py").read_text() == "value = 1\n"
    (known,) = dependencies.described(tmp_path / "there")
    assert (known.lock, known.requests) == (one.lock, one.requests)
    assert steps[0] == "checking the signature"
    assert [path.name for path in (tmp_path / "there/runtimes").iterdir()] == [
        there.rootfs.parent.name
    ]
    again = bundles.import_bundle(tmp_path / "there", file, TRUSTED, quiet)
    assert again.runtime == there, "a second import changes nothing"


def test_the_same_runtime_is_exported_to_the_same_bytes(
    tmp_path: Path, exported: tuple[Path, images.Runtime, dependencies.Description]
) -> None:
    file, runtime, one = exported
    other = tmp_path / "y.bundle"
    bundles.export(tmp_path / "here", runtime, (one,), other, sign, quiet)
    assert file.read_bytes() == other.read_bytes()
    with pytest.raises(BundleRejected, match="exists already"):
        bundles.export(tmp_path / "here", runtime, (one,), other, sign, quiet)
    with pytest.raises(DiskFull):
        bundles.export(tmp_path / "here", runtime, (), Path("/proc/x.bundle"), sign, quiet)


def test_a_stranger_is_refused_with_what_to_do(
    tmp_path: Path, exported: tuple[Path, images.Runtime, dependencies.Description]
) -> None:
    with pytest.raises(BundleRejected, match="does not trust") as caught:
        bundles.import_bundle(tmp_path / "there", exported[0], frozenset(), quiet)
    assert caught.value.extensions["signer"] in TRUSTED
    assert "--trust" in caught.value.hint
    assert images.installed(tmp_path / "there") == ()


def members_of(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def written(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def _resigned(members: dict[str, bytes], change: Callable[[dict[str, object]], None]) -> None:
    contents = json.loads(members["bundle.json"])
    change(contents)
    text = json.dumps(contents).encode()
    public, signature = sign(text)
    members["bundle.json"] = text
    members["bundle.sig"] = json.dumps(
        {"public": public.hex(), "signature": signature.hex()}
    ).encode()


def _flip(members: dict[str, bytes], name: str) -> None:
    data = bytearray(members[name])
    data[len(data) // 2] ^= 1
    members[name] = bytes(data)


def _other_root(members: dict[str, bytes]) -> None:
    """A rightly signed list whose root folder is another one than its tree says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("usr/bin/python3.11")
        archive.addfile(member)
    members["rootfs.tar.gz"] = out.getvalue()

    def change(contents: dict[str, object]) -> None:
        parts: list[dict[str, object]] = contents["parts"]  # type: ignore[assignment]
        parts[0]["size_bytes"] = len(out.getvalue())
        parts[0]["sha256"] = hashlib.sha256(out.getvalue()).hexdigest()

    _resigned(members, change)


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "a bit of the root folder": (lambda m: _flip(m, "rootfs.tar.gz"), "'rootfs.tar.gz'.*not what"),
    "a bit of the list": (lambda m: _flip(m, "bundle.json"), "bundle.json.*not what was signed"),
    "a bit of the signature": (lambda m: _flip(m, "bundle.sig"), "not what was signed|be read"),
    "no signature": (lambda m: m.pop("bundle.sig"), "not signed"),
    "no root folder": (lambda m: m.pop("rootfs.tar.gz"), "where 'rootfs.tar.gz' is listed"),
    "more than listed": (lambda m: m.update(more=b"x"), "more than its list"),
    "another root folder": (_other_root, "unpacks to"),
    "a name of no runtime": (
        lambda m: _resigned(m, lambda c: c["runtime"].update(name="../x")),  # type: ignore[attr-defined]
        "no runtime",
    ),
    "a digest that is a path": (
        lambda m: _resigned(m, lambda c: c["runtime"].update(digest="sha256:../../x")),  # type: ignore[attr-defined]
        "no digest|another runtime",
    ),
    "another format": (lambda m: _resigned(m, lambda c: c.update(format=2)), "format 2"),
    "a set under another key": (
        lambda m: _resigned(m, lambda c: c["sets"][0]["lock"][0].update(version="2")),  # type: ignore[index]
        "not named after",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_bundle_is_refused_and_what_differs_is_named(
    tmp_path: Path,
    exported: tuple[Path, images.Runtime, dependencies.Description],
    change: str,
) -> None:
    members = members_of(exported[0])
    CHANGES[change][0](members)
    file = written(tmp_path / "bad.bundle", members)
    with pytest.raises((BundleRejected, RuntimeMissing), match=CHANGES[change][1]):
        bundles.import_bundle(tmp_path / "there", file, TRUSTED, quiet)
    assert not list((tmp_path / "there/runtimes").iterdir())
    assert not (tmp_path / "there/deps").exists()


def test_a_cut_bundle_is_refused_wherever_it_is_cut(
    tmp_path: Path, exported: tuple[Path, images.Runtime, dependencies.Description]
) -> None:
    data = exported[0].read_bytes()
    file = tmp_path / "cut.bundle"
    for at in range(0, len(data.rstrip(b"\0")), 97):
        file.write_bytes(data[:at])
        with pytest.raises(BundleRejected):
            bundles.import_bundle(tmp_path / "there", file, TRUSTED, quiet)
    assert not list((tmp_path / "there/runtimes").iterdir())


def test_a_bundle_is_told_from_other_files(
    tmp_path: Path, exported: tuple[Path, images.Runtime, dependencies.Description]
) -> None:
    assert bundles.is_bundle(exported[0])
    for content in (b"", b"x" * 600, gzip.compress(b"x")):
        (tmp_path / "other").write_bytes(content)
        assert not bundles.is_bundle(tmp_path / "other")
    assert not bundles.is_bundle(written(tmp_path / "oci", {"oci-layout": b"{}"}))
    assert not bundles.is_bundle(tmp_path / "missing")


def test_a_changed_root_folder_is_found_by_its_files_and_is_not_exported(tmp_path: Path) -> None:
    runtime = install_runtime(tmp_path)
    assert images.verify(runtime, quiet) == images.Verified(state="same")
    (runtime.rootfs / "usr/bin/python3.11").write_bytes(b"evil")
    (runtime.rootfs / "usr/lib/ümläut.py").unlink()
    (runtime.rootfs / "usr/lib/new").touch()
    found = images.verify(runtime, quiet)
    assert found.state == "different"
    assert set(found.differences) == {
        "changed: /usr/bin/python3.11",
        "changed: /usr/bin/python3",
        "missing: /usr/lib/ümläut.py",
        "added: /usr/lib/new",
    }
    with pytest.raises(BundleRejected, match="not as it was installed"):
        bundles.export(tmp_path, runtime, (), tmp_path / "x", sign, quiet)


def test_a_runtime_of_an_earlier_release_has_no_record_and_can_be_exported(tmp_path: Path) -> None:
    runtime = install_runtime(tmp_path / "here")
    place = runtime.rootfs.parent / "runtime.json"
    about = json.loads(place.read_text())
    place.write_text(json.dumps({k: about[k] for k in ("name", "digest", "packages", "built_at")}))
    old = images.require(tmp_path / "here", "python3.11")
    assert images.verify(old, quiet).state == "unrecorded"
    bundles.export(tmp_path / "here", old, (), tmp_path / "x", sign, quiet)
    found = bundles.import_bundle(tmp_path / "there", tmp_path / "x", TRUSTED, quiet)
    assert found.runtime.tree == runtime.tree


def test_many_differences_are_counted() -> None:
    old = "".join(f"{n:02x} file 644 1 a\n" for n in range(65, 95))
    told = differences(old, "")
    assert len(told) == 21
    assert told[0] == "missing: /A"
    assert told[-1] == "and 10 more"
