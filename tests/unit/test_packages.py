"""What each language's requirements may say, by line, and where packages come from."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from appliance import config, manifest
from appliance.errors import BuildFailed, ManifestInvalid
from appliance.sandbox.images import Runtime
from appliance.sandbox.packages import PACKAGERS, cran, gems, jars, npm
from appliance.sandbox.runtimes import RUNTIMES

RUNTIME = Runtime(name="node18", digest="sha256:a", packages=(), built_at="", rootfs=Path("/"))
SHA512 = "sha512-" + "A" * 86 + "=="


@pytest.mark.parametrize("name", [n for n, one in RUNTIMES.items() if one.packager])
def test_a_language_that_takes_packages_has_a_packager_and_a_builder(name: str) -> None:
    language = RUNTIMES[name]
    packager = PACKAGERS[language.packager]
    assert bool(language.builder) != packager.is_plain
    assert packager.hint


# ---------------------------------------------------------------- npm


def lock(**entries: object) -> str:
    packages = {name.replace("__", "/"): entry for name, entry in entries.items()}
    return json.dumps({"lockfileVersion": 3, "packages": packages}, indent=1)


def test_a_lock_is_read_without_what_is_for_development_or_for_another_system() -> None:
    good = {"version": "1.0.0", "integrity": SHA512}
    text = lock(
        **{
            "": {"name": "x"},
            "node_modules/a": {**good, "resolved": "https://x.example/a/-/a-1.0.0.tgz"},
            "node_modules/@s/b": {**good, "resolved": "http://y.example/npm/@s/b/-/b-1.0.0.tgz"},
            "node_modules/a/node_modules/c": {**good, "name": "real"},
            "node_modules/d": {**good, "dev": True},
            "node_modules/e": {**good, "optional": True, "os": ["darwin"]},
            "node_modules/f": {**good, "optional": True, "libc": ["musl"]},
            "node_modules/g": {**good, "optional": True, "os": ["!win32"]},
            "node_modules/h": {**good, "inBundle": True},
        }
    )
    assert npm.parse_lock(text) == (
        f"node_modules/@s/b @s/b@1.0.0 {SHA512}",
        f"node_modules/a a@1.0.0 {SHA512}",
        f"node_modules/a/node_modules/c real@1.0.0 {SHA512}",
        f"node_modules/g g@1.0.0 {SHA512}",
    )


@pytest.mark.parametrize(
    ("place", "entry", "reason"),
    [
        ("node_modules/a", {"version": "1.0.0"}, "no sha512"),
        ("node_modules/a", {"version": "1.0.0", "integrity": "sha1-x"}, "no sha512"),
        ("node_modules/a", {"version": "../x", "integrity": SHA512}, "no package and version"),
        ("node_modules/../a", {"version": "1.0.0", "integrity": SHA512}, "project itself"),
        ("packages/mine", {"version": "1.0.0"}, "project itself"),
        ("node_modules/mine", {"link": True, "resolved": "packages/mine"}, "link to a folder"),
        (
            "node_modules/a",
            {"version": "1.0.0", "integrity": SHA512, "resolved": "git+ssh://git@h.example/a"},
            "comes from 'h.example'",
        ),
        (
            "node_modules/a",
            {"version": "1.0.0", "integrity": SHA512, "resolved": "https://h.example/a.tgz"},
            "comes from 'h.example'",
        ),
        (
            "node_modules/a",
            {"version": "1.0.0", "integrity": SHA512, "resolved": "file:../a.tgz"},
            "comes from",
        ),
    ],
)
def test_an_entry_that_no_index_has_is_refused_by_its_line(
    place: str, entry: dict[str, object], reason: str
) -> None:
    text = lock(**{"node_modules/z": {"version": "1.0.0", "integrity": SHA512}, place: entry})
    line = 1 + text[: text.index(json.dumps(place))].count("\n")
    with pytest.raises(ManifestInvalid, match=reason) as caught:
        npm.parse_lock(text)
    assert f"requirements:{line}:" in caught.value.detail


@pytest.mark.parametrize("text", ["", "[]", "{", '{"lockfileVersion": 1, "dependencies": {}}'])
def test_another_file_is_no_lock(text: str) -> None:
    with pytest.raises(ManifestInvalid, match="requirements:1:"):
        npm.parse_lock(text)


def test_npms_own_files_say_the_index_where_the_setting_does_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("registry=https://one.example/\ncafile = /ca.pem\n# x=y\n")
    (tmp_path / "b").write_text('registry="https://two.example/npm/"\nhttps-proxy=http://p:1\n')
    files = (tmp_path / "a", tmp_path / "b", tmp_path / "missing")
    found = config.npm(config.Build(), files=files)
    assert found == config.Npm(
        index="https://two.example/npm/", ca_file="/ca.pem", proxy="http://p:1"
    )
    assert config.npm(config.Build(npm_index="https://own"), files=files).index == "https://own"
    assert config.npm(config.Build(), files=()).index == ""


def test_without_an_index_or_folder_npm_packages_are_refused_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BuildFailed, match="no source of npm packages") as caught:
        npm.fetch(tmp_path, RUNTIME, (f"node_modules/a a@1.0.0 {SHA512}",), config.Build(), print)
    assert "build.npm_index" in caught.value.hint


# ---------------------------------------------------------------- Ruby


def test_a_gemfile_lock_is_read_for_this_system() -> None:
    text = (
        "GEM\n  remote: x\n  specs:\n    a (1.0)\n      b (>= 2)\n    b (2.0.1)\n"
        "    c (3.0-java)\n    c (3.0-x86_64-linux)\n    c (3.0-aarch64-linux)\n\n"
        "PLATFORMS\n  ruby\n\nDEPENDENCIES\n  a\n\n"
        f"CHECKSUMS\n  a (1.0) sha256={'1' * 64}\n  b (2.0.1)\n\nBUNDLED WITH\n   2.5\n"
    )
    assert gems.parse(text) == (f"a==1.0 sha256:{'1' * 64}", "b==2.0.1", "c==3.0")
    assert gems.parse("b == 2\na==1.0.pre1 # why\n") == ("a==1.0.pre1", "b==2")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("GEM\n  specs:\n    a (1.0)\n\nGIT\n  remote: x\n", 5),
        ("PATH\n  remote: .\n\nGEM\n  specs:\n", 1),
        ("GEM\n  specs:\n    a (>= 1.0)\n", 3),
        ("a==1\nb\n", 2),
        ("a==1\na==2\n", 2),
        ("a==1 --x\n", 1),
        ("../a==1\n", 1),
    ],
)
def test_gems_from_elsewhere_are_refused_by_their_line(text: str, line: int) -> None:
    with pytest.raises(ManifestInvalid, match=f"requirements:{line}:"):
        gems.parse(text)


# ---------------------------------------------------------------- R


def test_r_packages_are_pinned_exactly() -> None:
    assert cran.parse("glue==1.6.2\n\n# x\nR6 == 2.5-1\n") == ("R6==2.5-1", "glue==1.6.2")
    for bad in ("glue", "glue>=1", "glue==x", "../glue==1", "a==1\nglue==1;x"):
        with pytest.raises(ManifestInvalid, match=r"requirements:\d"):
            cran.parse(bad)


def test_an_r_package_that_another_needs_and_is_not_there_is_named(tmp_path: Path) -> None:
    house, folder = tmp_path / "house", tmp_path / "folder"
    house.mkdir()
    folder.mkdir()
    path = house / "outer_1.0.tar.gz"
    text = b"Package: outer\nImports: gone (>= 1),\n  stats\n"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("outer/DESCRIPTION")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    build = config.Build(r_packages=str(house))
    with pytest.raises(BuildFailed, match="'gone', which 'outer' needs") as caught:
        cran.fetch(folder, RUNTIME, ("outer==1.0",), build, print)
    assert caught.value.extensions["package"] == "outer"
    for damaged in (b"no gzip", gzip.compress(b"no tar" * 200), gzip.compress(b"\0" * 2048)):
        path.write_bytes(damaged)
        with pytest.raises(BuildFailed, match="outer_1"):
            cran.fetch(folder, RUNTIME, ("outer==1.0",), build, print)


# ---------------------------------------------------------------- Java


def test_jars_are_listed_in_any_usual_way() -> None:
    text = (
        "[INFO] The following files have been resolved:\n"
        "[INFO]    org.example:a:jar:1.0:compile\n"
        "[INFO]    org.example:b:jar:tests:2.0:runtime -- module b\n"
        "   org.example:t:jar:1.0:test\n"
        f"org.example:c:3.0 sha256:{'a' * 64}\n# none\n"
    )
    assert jars.parse(text) == (
        "org.example:a:1.0",
        "org.example:b:2.0:tests",
        f"org.example:c:3.0 sha256:{'a' * 64}",
    )
    for bad in ("a:b", "a:b:1 x", "../a:b:1", "a:b:pom:1:compile", "a:b:1\na:b:2", "a/b:c:1"):
        with pytest.raises(ManifestInvalid, match=r"requirements:\d"):
            jars.parse(bad)


# ---------------------------------------------------------------- the manifest


def captured(runtime: str, entry: str, requirements: str, **files: str) -> dict[str, bytes]:
    text = f'runtime = "{runtime}"\nentry = "{entry}"\nrequirements = {requirements}\n'
    named = {name.replace("__", "."): text.encode() for name, text in files.items()}
    return {"appliance.toml": text.encode(), **named}


def test_each_language_takes_its_own_requirements() -> None:
    text = lock(**{"node_modules/a": {"version": "1.0.0", "integrity": SHA512}})
    upload = captured("node18", "model.js:Model", '"package-lock.json"')
    upload["package-lock.json"] = text.encode()
    assert manifest.parse(upload).requirements == (f"node_modules/a a@1.0.0 {SHA512}",)
    with pytest.raises(ManifestInvalid, match=r"appliance.toml:3: requirements.*package-lock"):
        manifest.parse(captured("node18", "model.js:Model", '"requirements.txt"'))
    upload = captured("java17", "Model.java:Model", '["g:a:1"]')
    assert manifest.parse(upload).requirements == ("g:a:1",)
    upload = captured("ruby3.1", "model.rb:Model", '"Gemfile.lock"', Gemfile__lock="a==1\nb\n")
    with pytest.raises(ManifestInvalid, match=r"^Gemfile.lock:2:") as caught:
        manifest.parse(upload)
    assert caught.value.fields[0].pointer == "Gemfile.lock:2"


@pytest.mark.parametrize(
    ("runtime", "file", "text", "package", "place"),
    [
        (
            "python3.11",
            "r.txt",
            "a==1\n# scikit-learn\nScikit_Learn==1 # x\n",
            "scikit-learn==1",
            3,
        ),
        ("python3.11", "r.txt", "ab==1\na==2\n", "a", 2),
        ("python3.11", "r.txt", "a==1\n", "drawn-in>=2", 0),
        ("node18", "package-lock.json", '{\n"node_modules/a": 1,\n"node_modules/@s/b":', "@s/b", 3),
        ("ruby3.1", "Gemfile.lock", "GEM\n    aa (1)\n    a (1)\n", "a", 3),
        ("java17", "jars.txt", "g:ab:1\ng:a:1\n", "g:a", 2),
    ],
)
def test_the_line_that_asks_for_a_package_is_found(
    runtime: str, file: str, text: str, package: str, place: int
) -> None:
    upload = captured(runtime, "x", f'"{file}"')
    upload[file] = text.encode()
    assert manifest.place_of(upload, package) == (f"{file}:{place}" if place else "")


def test_a_package_of_the_manifests_own_list_is_found_in_the_manifest() -> None:
    upload = captured("python3.11", "x:y", '[\n  "a==1",\n  "b==2",\n]')
    assert manifest.place_of(upload, "b==2") == "appliance.toml:5"
