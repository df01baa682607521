"""Requirement pins, what pip's errors say, and the strict reader of a built set."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from appliance import config
from appliance.errors import BuildFailed, ManifestInvalid
from appliance.records import Package
from appliance.sandbox import dependencies
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages import wheels

RUNTIME = Runtime(name="python3.11", digest="sha256:a", packages=(), built_at="", rootfs=Path("/"))
HASH = "--hash=sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        ("", ()),
        ("# only a comment\n\n", ()),
        ("b==2\na==1.0", ("a==1.0", "b==2")),
        ("Foo_Bar.Baz == 1.2.post1+cpu  # why", ("foo-bar-baz==1.2.post1+cpu",)),
        ("x[b, a]==1", ("x[a,b]==1",)),
        (f"x==1 \\\n    {HASH}\ny==2", (f"x==1 {HASH}", "y==2")),
        ("x==1\nx==1", ("x==1",)),
    ],
)
def test_pins_are_read(text: str, pins: tuple[str, ...]) -> None:
    assert wheels.parse_requirements(text) == pins


@pytest.mark.parametrize(
    "line",
    [
        "x", "x>=1", "x==1,<2", "x===1", "x==1.*", "-r other.txt", "-e .", "--index-url x",
        "x @ file:///x", "git+https://x/y", "https://x/y.whl", "./x.whl", "x==1; os_name=='nt'",
        "x==1 --global-option=y", "x==1 --hash=md5:aa", "x==$(id)", "-x==1", "x==1 y==2",
        "x==1\x00", "ü==1", "x==-1", "x[]==1",
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(ManifestInvalid, match="requirements:2"):
        wheels.parse_requirements(f"a==1\n{line}\n")


def test_two_versions_of_a_package_are_refused() -> None:
    with pytest.raises(ManifestInvalid, match=r"requirements:2.*twice"):
        wheels.parse_requirements("a-b==1\nA_B==2")


def test_the_key_is_that_of_runtime_and_packages_not_of_how_they_were_asked_for() -> None:
    a = Package(name="a", version="1", digest="sha256:1")
    b = Package(name="b", version="2", digest="sha256:2")
    one = dependencies.lock_key("sha256:r", (a, b))
    assert one == dependencies.lock_key("sha256:r", (b, a))
    assert len(one) == 32
    others = [
        dependencies.lock_key("sha256:s", (a, b)),
        dependencies.lock_key("sha256:r", (a,)),
        dependencies.lock_key("sha256:r", (a, dataclasses.replace(b, version="3"))),
        dependencies.lock_key("sha256:r", (a, dataclasses.replace(b, digest="sha256:3"))),
    ]
    assert len({one, *others}) == 5


def tar(path: Path, *members: tuple[str, bytes, bytes | None]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            member.size = len(data or b"")
            archive.addfile(member, io.BytesIO(data or b""))
    return path


def test_files_and_folders_are_unpacked_readable(tmp_path: Path) -> None:
    source = tar(
        tmp_path / "t", ("./p", tarfile.DIRTYPE, None), ("./q/r/m.py", tarfile.REGTYPE, b"x")
    )
    dependencies.unpack(source, tmp_path / "out", config.Build())
    assert (tmp_path / "out/q/r/m.py").read_bytes() == b"x"
    assert (tmp_path / "out/p").is_dir()
    assert (tmp_path / "out/q/r/m.py").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "out/q").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "member",
    [
        ("../x", tarfile.REGTYPE, b"x"),
        ("/x", tarfile.REGTYPE, b"x"),
        ("a/../../x", tarfile.REGTYPE, b"x"),
        ("link", tarfile.SYMTYPE, None),
        ("hard", tarfile.LNKTYPE, None),
        ("fifo", tarfile.FIFOTYPE, None),
        ("device", tarfile.CHRTYPE, None),
        ("large", tarfile.REGTYPE, b"x" * 5000),
    ],
    ids=lambda member: member[0],
)
def test_anything_else_in_a_built_set_is_refused(
    tmp_path: Path, member: tuple[str, bytes, bytes | None]
) -> None:
    source = tar(tmp_path / "t", member)
    with pytest.raises(BuildFailed):
        dependencies.unpack(source, tmp_path / "out", config.Build(size_bytes_max=4096))
    assert not (tmp_path / "x").exists()


def test_a_damaged_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"not a tar" * 100)
    with pytest.raises(BuildFailed):
        dependencies.unpack(tmp_path / "t", tmp_path / "out", config.Build())


def _wheel(folder: Path, name: str, requires: str = "") -> None:
    folder.mkdir(exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    about += f"Requires-Dist: {requires}\n" if requires else ""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", about)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_wheel_and_what_it_requires_are_fetched(tmp_path: Path) -> None:
    _wheel(tmp_path / "house", "one", "two>=1")
    _wheel(tmp_path / "house", "two")
    (tmp_path / "wheels").mkdir()
    build = config.Build(wheelhouse=str(tmp_path / "house"))
    wheels.download(tmp_path / "wheels", RUNTIME, ("one==1.0",), build, print)
    assert len(list((tmp_path / "wheels").glob("*.whl"))) == 2


def test_a_requirement_by_address_is_refused_and_its_code_never_runs(tmp_path: Path) -> None:
    """pip builds what such an address leads to, ``--only-binary`` or not."""
    ran = tmp_path / "ran"
    backend = f"open({str(ran)!r}, 'w').close()\n".encode()
    project = b"[build-system]\nrequires=[]\nbuild-backend='run'\nbackend-path=['.']\n"
    with tarfile.open(tmp_path / "evil-1.0.tar.gz", "w:gz") as source:
        for name, text in (("run.py", backend), ("setup.py", backend), ("pyproject.toml", project)):
            member = tarfile.TarInfo(f"evil-1.0/{name}")
            member.size = len(text)
            source.addfile(member, io.BytesIO(text))
    _wheel(tmp_path / "house", "nice", f"evil @ file://{tmp_path}/evil-1.0.tar.gz")
    (tmp_path / "wheels").mkdir()
    build = config.Build(wheelhouse=str(tmp_path / "house"))
    with pytest.raises(BuildFailed, match="address"):
        wheels.download(tmp_path / "wheels", RUNTIME, ("nice==1.0",), build, print)
    assert not ran.exists()


def test_fetching_starts_no_process_whatever_pip_thinks() -> None:
    program = Path(dependencies.__file__).with_name("fetch.py")
    text = (
        f"import runpy, subprocess, sys\n"
        f"fetch = runpy.run_path({str(program)!r})\n"
        f"sys.addaudithook(fetch['refuse_processes'])\n"
        f"subprocess.run(['/bin/true'])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True)
    assert "PermissionError" in done.stderr


def test_what_a_killed_build_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("deps/.build-abc-1/deps", "deps/" + "a" * 32, "wheels/.build-abc-1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "wheels/.build-abc-1/x.whl").write_bytes(b"x")
    dependencies.sweep(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["deps", "deps/" + "a" * 32, "wheels"]


def test_a_set_of_an_earlier_release_still_answers_its_requirements(tmp_path: Path) -> None:
    pins = ("a==1", "b==2 " + HASH)
    name = dependencies.request_key(RUNTIME, pins)
    (tmp_path / "deps" / name).mkdir(parents=True)
    assert dependencies.undescribed(tmp_path) == (name,)
    found = dependencies._known(tmp_path, name, pins)
    assert found is not None
    assert found.key == name
    assert [(one.name, one.version) for one in found.lock] == [("a", "1"), ("b", "2")]


def test_a_set_is_known_by_what_was_asked_for_until_it_is_removed(tmp_path: Path) -> None:
    lock = (Package(name="a", version="1", digest="sha256:1"),)
    key = dependencies.lock_key(RUNTIME.digest, lock)
    (tmp_path / "deps/.build-x").mkdir(parents=True)
    (tmp_path / "deps/.build-x/a.py").write_bytes(b"12345")
    dependencies._publish(tmp_path / "deps/.build-x", tmp_path / "deps" / key, RUNTIME, lock)
    dependencies._remember(tmp_path / "deps" / key, "r1")
    dependencies._remember(tmp_path / "deps" / key, "r2")
    (about,) = dependencies.described(tmp_path)
    assert (about.lock, about.size_bytes, about.files, about.requests) == (lock, 5, 1, ("r1", "r2"))
    assert dependencies._known(tmp_path, "r2", ()) == dependencies.Built(key=key, lock=lock)
    assert dependencies._known(tmp_path, "r3", ()) is None
    dependencies.remove(tmp_path, key)
    dependencies.remove(tmp_path, key)
    assert list((tmp_path / "deps").iterdir()) == []
    assert dependencies._known(tmp_path, "r2", ()) is None


def test_the_package_at_fault_is_named() -> None:
    output = (
        "ERROR: Could not find a version that satisfies the requirement scikit_learn==9.9 "
        "(from versions: 1.0)\nERROR: No matching distribution found for scikit_learn==9.9\n"
    )
    failed = wheels.download_failed(output, ("numpy==1", "scikit-learn==9.9"))
    assert "scikit-learn==9.9" in failed.detail
    assert failed.extensions["package"] == "scikit-learn==9.9"
    assert len(failed.extensions["lines"]) == 2
