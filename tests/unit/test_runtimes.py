"""The registry of languages, and what a manifest may say of each."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from appliance import archive, manifest
from appliance.errors import ManifestInvalid
from appliance.sandbox import hardening
from appliance.sandbox.compiling import target_of
from appliance.sandbox.runtimes import RUNTIMES, names, with_compiler
from appliance.sandbox.spec import MIB

GUEST = resources.files("appliance.sandbox").joinpath("guest")


def parse(runtime: str, entry: str, more: str = "") -> object:
    text = f'runtime = "{runtime}"\nentry = "{entry}"\n{more}'
    return manifest.parse({"appliance.toml": text.encode()})


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_language_is_complete(name: str) -> None:
    language = RUNTIMES[name]
    assert language.name == name
    for file in (language.runner, *language.helpers, language.builder, *language.build_helpers):
        assert not file or GUEST.joinpath(file).is_file(), file
    for part in language.command:
        if part.startswith("/run/app/"):
            assert part.removeprefix("/run/app/") in (language.runner, *language.helpers)
    assert "mount" in language.packages
    assert re.fullmatch(language.entry_pattern, language.entry_example)
    assert not language.compiler or RUNTIMES[language.compiler].is_compiler
    assert bool(language.compiler) == bool(language.compiled)


@pytest.mark.parametrize("name", names())
def test_a_manifest_names_its_entry_as_the_language_does(name: str) -> None:
    example = RUNTIMES[name].entry_example
    assert parse(name, example).entry == example  # type: ignore[attr-defined]
    for bad in (
        "",
        "x",
        "../" + example,
        "/" + example,
        example + ";rm",
        example + "\\n",
        "$(x):y",
    ):
        with pytest.raises(ManifestInvalid, match=r"entry") as caught:
            parse(name, bad)
        assert not bad or example in caught.value.detail
        assert not bad or "appliance.toml:2" in caught.value.detail


@pytest.mark.parametrize("name", ["cobol", "cpp-build", "java17-build", "mono6.8-build"])
def test_an_unknown_runtime_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(ManifestInvalid, match=r"appliance.toml:1: runtime") as caught:
        parse(name, "model:Model")
    for known in names():
        assert known in caught.value.detail
    assert "build" not in caught.value.detail.partition("there is:")[2]


@pytest.mark.parametrize("name", [name for name in names() if not RUNTIMES[name].packager])
def test_requirements_are_refused_where_nothing_installs_them(name: str) -> None:
    with pytest.raises(ManifestInvalid, match=r"appliance.toml:3: requirements"):
        parse(name, RUNTIMES[name].entry_example, 'requirements = ["numpy==2.0.0"]\n')


def test_a_command_gets_its_share_of_the_memory() -> None:
    node = RUNTIMES["node18"].argv(512 * MIB)
    assert "--max-old-space-size=384" in node
    assert "-Xmx256m" in RUNTIMES["java17"].argv(512 * MIB)
    assert "-Xmx16m" in RUNTIMES["java17"].argv(1)
    assert RUNTIMES["python3.11"].argv(1) == RUNTIMES["python3.11"].command


def test_a_languages_own_threads_are_beside_those_asked_for() -> None:
    from boxes import spec_of

    python, java = spec_of(pids=10), spec_of(pids=10, runtime="java17")
    more = RUNTIMES["java17"].own_threads
    assert hardening.process_limits(python, "supervised")["nproc"] == 11
    assert hardening.process_limits(java, "supervised")["nproc"] == 11 + more
    assert hardening.cgroup_limits(java)["pids"]["limit"] == 11 + more


def test_a_compiled_language_needs_its_compiler() -> None:
    assert with_compiler("cpp") == ["cpp-build", "cpp"]
    assert with_compiler("ruby3.1") == ["ruby3.1"]
    assert with_compiler("nothing") == ["nothing"]
    assert target_of("java17") == ("java17-build", "bin/model.jar")
    assert target_of("nothing") == ("", "")


def test_a_file_put_at_the_end_of_an_artifact_is_part_of_it() -> None:
    def read(data: bytes) -> tuple[bytes, archive.Listing]:
        reader = archive.Reader(archive.Limits(bytes_max=10_000, files_max=9), is_gzip=False)
        out = b"".join(reader.feed(data))
        tail, listing = reader.finish()
        return out + tail, listing

    first = archive.canonical_header("a", 3, is_directory=False) + b"abc".ljust(512, b"\0")
    whole, _ = read(first + b"\0" * archive.END_BYTES)
    for content in (b"", b"x" * 512, b"y" * 700):
        tail, file = archive.closing_with("bin/model", content)
        again, listing = read(whole[: -archive.END_BYTES] + tail)
        assert again == whole[: -archive.END_BYTES] + tail
        assert listing.files[-1] == file
        assert file.size_bytes == len(content)
