"""Packages of every language: found or fetched, installed in a sandbox, used by a model there."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest
from boxes import Box, box, pieces, spec_of, tar_of

from appliance import config
from appliance.errors import BuildFailed
from appliance.sandbox import compiling, dependencies, images
from appliance.sandbox.packages import PACKAGERS
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.runtimes import RUNTIMES

pytestmark = [pytest.mark.asyncio(loop_scope="session")]


def runtime_of(executor: PodmanExecutor, name: str) -> images.Runtime:
    """The installed runtime; the test is skipped where this language's is not (see README)."""
    names = {one.name for one in images.installed(executor.data_dir)}
    if not {name, RUNTIMES[name].compiler or name} <= names:
        pytest.skip(f"{name} is not installed in APPLIANCE_TEST_DATA")
    return images.require(executor.data_dir, name)


def tgz(files: dict[str, bytes], *links: tuple[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return out.getvalue()


def integrity(data: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


async def built(
    executor: PodmanExecutor, name: str, text: str, build: config.Build
) -> tuple[dependencies.Built, list[str]]:
    """A set made anew, and what its build said."""
    requirements = PACKAGERS[RUNTIMES[name].packager].parse(text)
    runtime = runtime_of(executor, name)
    request = dependencies.request_key(runtime, requirements)
    for about in dependencies.described(executor.data_dir):
        if request in about.requests:  # of an earlier run
            dependencies.remove(executor.data_dir, about.key)
    said: list[str] = []
    found = await dependencies.ensure(
        executor, runtime, requirements, build, lambda line, _: said.append(line)
    )
    return found, said


async def answer_of(
    executor: PodmanExecutor, name: str, entry: str, files: dict[str, bytes], deps_key: str
) -> object:
    """What a model with these dependencies answers to ``{"n": 2}``."""
    spec = spec_of(runtime=name, entry=entry, files=files, deps_key=deps_key, memory_mb=256)
    async with box(executor, spec, files) as one:
        return await _asked(one)


async def _asked(one: Box) -> object:
    kind, body = await one.ask(b'{"n": 2}')
    return json.loads(body) if kind == "application/json" else body.decode()


# ---------------------------------------------------------------- JavaScript


def node_packages(folder: Path) -> str:
    """A folder of npm packages, one with a dependency of its own, and the lock of both."""
    inner = tgz({"package/package.json": b'{"name":"inner","version":"2.0.0"}',
                 "package/index.js": b"exports.twice = (n) => 2 * n;"})  # fmt: skip
    outer = tgz(
        {
            "package/package.json": b'{"name":"@scope/outer","version":"1.0.0","scripts":'
            b'{"postinstall":"touch /tmp/out/node_modules/ran"}}',
            "package/index.js": b"exports.five = (n) => 1 + 2 * require('inner').twice(n);",
        },
        ("package/passwd", "/etc/passwd"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inner-2.0.0.tgz").write_bytes(inner)
    (folder / "scope-outer-1.0.0.tgz").write_bytes(outer)
    return json.dumps(
        {
            "lockfileVersion": 3,
            "packages": {
                "": {"name": "model", "dependencies": {"@scope/outer": "1.0.0"}},
                "node_modules/@scope/outer": {
                    "version": "1.0.0", "integrity": integrity(outer), "hasInstallScript": True,
                },
                "node_modules/@scope/outer/node_modules/inner": {
                    "version": "2.0.0", "integrity": integrity(inner),
                },
                "node_modules/only-for-tests": {"version": "1.0.0", "dev": True},
            },
        },
        indent=1,
    )  # fmt: skip


async def test_a_node_model_uses_packages_of_a_lock_and_no_install_script_ran(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    text = node_packages(tmp_path / "npm")
    build = config.Build(npm_packages=str(tmp_path / "npm"))
    found, said = await built(podman_executor, "node18", text, build)
    assert [(one.name, one.version) for one in found.lock] == [
        ("@scope/outer", "1.0.0"),
        ("inner", "2.0.0"),
    ]
    folder = podman_executor.data_dir / "deps" / found.key / "node_modules"
    assert not (folder / "ran").exists()
    assert not (folder / "@scope/outer/passwd").exists()
    assert any("install script, which does not run" in line for line in said)
    model = b"const o = require('@scope/outer');\nexports.predict = () => (i) => o.five(i.n);\n"
    entry = "model.js:predict"
    assert await answer_of(
        podman_executor, "node18", entry, {"model.js": model}, found.key
    ) == 9  # fmt: skip
    model = (
        b"exports.predict = async () => { const o = await import('@scope/outer');"
        b" return (i) => o.default.five(i.n); };\n"
    )
    assert await answer_of(
        podman_executor, "node18", entry, {"model.js": model}, found.key
    ) == 9, "import() found what require() finds"  # fmt: skip


async def test_another_file_than_the_lock_says_is_not_installed(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    text = node_packages(tmp_path / "npm")
    (tmp_path / "npm/inner-2.0.0.tgz").write_bytes(tgz({"package/index.js": b"evil"}))
    build = config.Build(npm_packages=str(tmp_path / "npm"))
    with pytest.raises(BuildFailed, match="another file than the lock") as caught:
        await built(podman_executor, "node18", text, build)
    assert caught.value.extensions["package"] == "inner"


def npm_index() -> str:
    """The machine's own npm index; the test is skipped where there is none or no way to it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm, which knows this machine's index, is not installed")
    told = subprocess.run(
        [npm, "config", "get", "registry"], capture_output=True, text=True, check=True,
        env={**os.environ, "HOME": "/nonexistent"},
    )  # fmt: skip
    index = told.stdout.strip()
    try:
        urllib.request.urlopen(f"{index}left-pad", timeout=10).close()
    except OSError:
        pytest.skip("the machine's npm index cannot be reached")
    return index


async def test_npm_packages_are_fetched_from_the_index_and_checked(
    podman_executor: PodmanExecutor,
) -> None:
    index = npm_index()
    with urllib.request.urlopen(f"{index}left-pad/1.3.0", timeout=10) as reply:
        about = json.load(reply)
    entry = {"version": "1.3.0", "integrity": about["dist"]["integrity"]}
    lock = {"lockfileVersion": 3, "packages": {"node_modules/left-pad": entry}}
    build = config.Build(npm_index=index)
    found, said = await built(podman_executor, "node18", json.dumps(lock), build)
    assert "fetched left-pad 1.3.0" in said
    model = b"const p = require('left-pad');\nexports.predict = () => (i) => p(i.n, 4, '0');\n"
    files = {"model.js": model}
    said = await answer_of(podman_executor, "node18", "model.js:predict", files, found.key)
    assert said == "0002"
    entry["integrity"] = integrity(b"other")
    with pytest.raises(BuildFailed, match="another file than the lock"):
        await built(podman_executor, "node18", json.dumps(lock), build)


# ---------------------------------------------------------------- Ruby


def gem(folder: Path, name: str, version: str, files: dict[str, bytes], more: str = "") -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    listed = "".join(f"- {path}\n" for path in files)
    about = (
        f"--- !ruby/object:Gem::Specification\nname: {name}\n"
        f"version: !ruby/object:Gem::Version\n  version: {version}\nplatform: ruby\n"
        f"authors:\n- nobody\nsummary: test\nfiles:\n{listed}require_paths:\n- lib\n{more}"
        "specification_version: 4\n"
    ).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for part, content in (("metadata.gz", gzip.compress(about)), ("data.tar.gz", tgz(files))):
            member = tarfile.TarInfo(part)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    (folder / f"{name}-{version}.gem").write_bytes(out.getvalue())
    return out.getvalue()


async def test_a_ruby_model_uses_gems_of_a_lock(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    gem(tmp_path, "inner", "2.0.0", {"lib/inner.rb": b"def twice(n) = 2 * n\n"})
    data = gem(
        tmp_path,
        "outer-gem",
        "1.0.0",
        {"lib/outer_gem.rb": b"require 'inner'\nV = Gem::Version.new('1')\n"
         b"def five(n) = 1 + 2 * twice(n)\n"},
    )  # fmt: skip
    lock = (
        "GEM\n  remote: x\n  specs:\n    inner (2.0.0)\n    outer-gem (1.0.0)\n"
        "      inner\n\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n  outer-gem\n\nCHECKSUMS\n"
        f"  outer-gem (1.0.0) sha256={hashlib.sha256(data).hexdigest()}\n"
    )
    build = config.Build(gems=str(tmp_path))
    found, said = await built(podman_executor, "ruby3.1", lock, build)
    assert [(one.name, one.version) for one in found.lock] == [
        ("inner", "2.0.0"),
        ("outer-gem", "1.0.0"),
    ]
    assert any("installing outer-gem-1.0.0.gem" in line for line in said)
    model = (
        b"require 'outer_gem'\nclass Model\n  def initialize(_); end\n"
        b"  def predict(i) = five(i['n'])\nend\n"
    )
    files = {"model.rb": model}
    assert await answer_of(podman_executor, "ruby3.1", "model.rb:Model", files, found.key) == 9
    gem(tmp_path, "outer-gem", "1.0.0", {"lib/outer_gem.rb": b"evil\n"})
    with pytest.raises(BuildFailed, match="not the file its checksum names"):
        await built(podman_executor, "ruby3.1", lock, build)


async def test_a_gem_that_needs_a_compiler_is_named(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    more = "extensions:\n- ext/extconf.rb\n"
    gem(tmp_path, "native", "1.0.0", {"ext/extconf.rb": b"abort 'no compiler here'\n"}, more)
    with pytest.raises(BuildFailed, match="gem 'native' does not install") as caught:
        await built(podman_executor, "ruby3.1", "native==1.0.0", config.Build(gems=str(tmp_path)))
    assert caught.value.extensions["package"] == "native"
    assert any("no compiler here" in line for line in caught.value.extensions["lines"])


# ---------------------------------------------------------------- R


def r_source(folder: Path, name: str, version: str, code: str, needs: str = "") -> None:
    description = (
        f"Package: {name}\nVersion: {version}\nTitle: T\nDescription: D.\nLicense: GPL-2\n"
        f"Author: nobody\nMaintainer: nobody <nobody@example.org>\n{needs}"
    )
    files = {
        f"{name}/DESCRIPTION": description.encode(),
        f"{name}/NAMESPACE": b'exportPattern("^[a-z]")\n',
        f"{name}/R/code.R": code.encode(),
    }
    (folder / f"{name}_{version}.tar.gz").write_bytes(tgz(files))


async def test_an_r_model_uses_source_packages_and_what_they_need(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    r_source(tmp_path, "inner", "2.0-1", "twice <- function(n) 2 * n\n")
    r_source(
        tmp_path, "outer", "1.0", "five <- function(n) 1 + 2 * inner::twice(n)\n",
        "Depends: R (>= 3.0)\nImports: stats,\n    inner (>= 1.0)\n",
    )  # fmt: skip
    build = config.Build(r_packages=str(tmp_path))
    found, said = await built(podman_executor, "r4.2", "outer==1.0\n", build)
    assert [(one.name, one.version) for one in found.lock] == [("inner", "2.0-1"), ("outer", "1.0")]
    assert said.index("found inner_2.0-1.tar.gz") < said.index("found outer_1.0.tar.gz")
    model = b"load_model <- function(path) function(inputs) outer::five(inputs$n)\n"
    files = {"model.R": model}
    assert await answer_of(podman_executor, "r4.2", "model.R:load_model", files, found.key) == 9


async def test_an_r_package_of_debian_is_used_as_it_is_compiled(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    runtime_of(podman_executor, "r4.2")
    fetched = subprocess.run(
        ["apt-get", "download", "r-cran-glue"], cwd=tmp_path, capture_output=True, text=True
    )
    if fetched.returncode:
        pytest.skip("the distribution's r-cran-glue cannot be fetched here")
    build = config.Build(r_packages=str(tmp_path))
    deb = next(tmp_path.glob("*.deb")).name
    version = deb.split("_")[1].rpartition("-")[0]
    found, _ = await built(podman_executor, "r4.2", f"glue=={version}", build)
    model = (
        b"load_model <- function(path) function(inputs) as.character(glue::glue('n={inputs$n}'))\n"
    )
    files = {"model.R": model}
    assert await answer_of(podman_executor, "r4.2", "model.R:load_model", files, found.key) == "n=2"


# ---------------------------------------------------------------- Java


async def test_a_java_model_is_compiled_and_run_against_jars(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    runtime_of(podman_executor, "java17")
    repository = Path("/usr/share/maven-repo")
    text = "commons-cli:commons-cli:jar:1.5.0:compile\n"
    if not (repository / "commons-cli/commons-cli/1.5.0/commons-cli-1.5.0.jar").exists():
        pytest.skip("the distribution's libcommons-cli-java is not installed")
    found, _ = await built(podman_executor, "java17", text, config.Build(maven=str(repository)))
    assert found.lock[0].name == "commons-cli:commons-cli"
    source = (
        b"import java.util.*;\npublic class Model {\n public Model(String path) {}\n"
        b" public Object predict(Object inputs) {\n"
        b"  return new org.apache.commons.cli.Options().addOption(\"n\", false, \"x\")"
        b".hasOption(\"n\") ? \"has it\" : \"no\"; }\n}\n"
    )  # fmt: skip
    tar = tar_of({"Model.java": source})
    program = await compiling.compiled(
        podman_executor,
        images.require(podman_executor.data_dir, "java17-build"),
        tenant_id="t",
        entry="Model.java:Model",
        model_bytes=len(tar),
        tar=pieces(tar),
        build=config.Build(timeout_s=120),
        deps_key=found.key,
    )
    files = {"Model.java": source, "bin/model.jar": program}
    said = await answer_of(podman_executor, "java17", "Model.java:Model", files, found.key)
    assert said == "has it"


async def test_jars_are_found_checked_and_missing_ones_named(
    podman_executor: PodmanExecutor, tmp_path: Path
) -> None:
    runtime_of(podman_executor, "java17")
    place = tmp_path / "org/example/tool/1.0"
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "tool-1.0.jar", "w") as jar:
        jar.writestr("x", "y")
    build = config.Build(maven=str(tmp_path))
    sum_ = hashlib.sha256((place / "tool-1.0.jar").read_bytes()).hexdigest()
    found, _ = await built(podman_executor, "java17", f"org.example:tool:1.0 sha256:{sum_}", build)
    folder = podman_executor.data_dir / "deps" / found.key
    assert [path.name for path in folder.iterdir()] == ["org.example.tool-1.0.jar"]
    with pytest.raises(BuildFailed, match="not the file it should be"):
        await built(podman_executor, "java17", f"org.example:tool:1.0 sha256:{'0' * 64}", build)
    with pytest.raises(BuildFailed, match=r"'org.example:gone' 2 is not in build.maven") as caught:
        await built(podman_executor, "java17", "org.example:gone:2", build)
    assert caught.value.extensions["package"] == "org.example:gone"
