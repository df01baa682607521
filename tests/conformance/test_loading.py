"""What does not load, in every language: what is missing is named, and what never ends is ended."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from boxes import box, spec_of
from languages import SPOKEN, installed, with_program

from appliance.errors import LoadFailed, LoadTimeout, RunnerCrashed
from appliance.sandbox import images
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.runtimes import RUNTIMES

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]
LANGUAGES = installed()

# Each says that it waits, and is never ready.
STUCK = {
    "python3.11": """
import sys, time
class Model:
    def __init__(self, path):
        print("waiting for godot", file=sys.stderr, flush=True)
        time.sleep(99)
""",
    "node18": """
module.exports.Model = class { constructor() { console.error('waiting for godot'); for (;;); } };
""",
    "ruby3.1": """
class Model
  def initialize(path)
    warn 'waiting for godot'
    sleep
  end
end
""",
    "cpp": """
struct Model {
  explicit Model(const std::string&) { std::cerr << "waiting for godot\\n"; for (;;) ::pause(); }
  appliance::Reply predict(const appliance::Request&) { return appliance::text(""); }
};
""",
    "r4.2": """
load_model <- function(path) { message("waiting for godot"); repeat Sys.sleep(1) }
""",
    "java17": """
public class Model {
    public Model(String path) throws Exception {
        System.err.println("waiting for godot");
        Thread.sleep(99_000);
    }
    public Object predict(Object inputs) { return inputs; }
}
""",
    "mono6.8": """
public class Model {
    public Model(string path) {
        System.Console.Error.WriteLine("waiting for godot");
        System.Threading.Thread.Sleep(99000);
    }
    public object Predict(object inputs) { return inputs; }
}
""",
}

# Each needs a part of its language that is nowhere: the source, and how the part is named.
PART = {
    "python3.11": ("import nosuchthing.at_all", "nosuchthing"),
    "node18": ("require('nosuchthing')", "nosuchthing"),
    "ruby3.1": ("require 'nosuchthing'", "nosuchthing"),
    "r4.2": ("library(no.such.thing)", "no.such.thing"),
    "java17": (
        STUCK["java17"].replace("Thread.sleep(99_000)", 'Class.forName("com.acme.Nosuch")'),
        "com.acme.Nosuch",
    ),
    "mono6.8": (
        STUCK["mono6.8"].replace(
            "System.Threading.Thread.Sleep(99000)", 'System.Reflection.Assembly.Load("Acme.Nosuch")'
        ),
        "Acme.Nosuch.dll",
    ),
}

# Each opens a shared library that is nowhere.
LIBRARY = {
    "python3.11": "import ctypes\nctypes.CDLL('libnosuch.so.1')",
    "node18": "process.dlopen({ exports: {} }, 'libnosuch.so.1')",
    "ruby3.1": "require 'fiddle'\nFiddle.dlopen('libnosuch.so.1')",
    "cpp": STUCK["cpp"].replace(
        "for (;;) ::pause();",
        'if (!::dlopen("libnosuch.so.1", RTLD_NOW)) throw std::runtime_error(::dlerror());',
    ),
    "r4.2": "dyn.load('libnosuch.so.1')",
    "java17": STUCK["java17"].replace("Thread.sleep(99_000)", 'System.loadLibrary("nosuch")'),
    "mono6.8": STUCK["mono6.8"]
    .replace("System.Threading.Thread.Sleep(99000)", "Open()")
    .replace(
        "public Model",
        '[System.Runtime.InteropServices.DllImport("libnosuch.so.1")] static extern void Open();'
        "\n    public Model",
    ),
}
LIBRARY["cpp"] = "#include <dlfcn.h>\n" + LIBRARY["cpp"]


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def load(
    executor: PodmanExecutor, runtime: str, source: str, *, timeout_ms: int = 30_000
) -> None:
    """Load a model of this source, and destroy it."""
    spoken = SPOKEN[runtime]
    files = {spoken.file: source.encode()}
    files = await with_program(executor, runtime, spoken.entry, files)
    await load_files(executor, runtime, spoken.entry, files, timeout_ms=timeout_ms)


async def load_files(
    executor: PodmanExecutor,
    runtime: str,
    entry: str,
    files: dict[str, bytes],
    *,
    timeout_ms: int = 30_000,
) -> None:
    spec = spec_of(runtime=runtime, entry=entry, files=files, load_timeout_ms=timeout_ms)
    async with box(executor, spec, files):
        pass


async def test_a_model_that_is_never_ready_is_ended_and_its_last_lines_shown(
    podman_executor: PodmanExecutor, language: str
) -> None:
    with pytest.raises(LoadTimeout, match="not ready after 3000 ms") as caught:
        await load(podman_executor, language, STUCK[language], timeout_ms=3000)
    assert caught.value.extensions["limit_ms"] == 3000
    assert caught.value.stderr[-1] == "waiting for godot"
    assert "load_timeout_ms" in caught.value.hint


async def test_a_missing_part_is_named_with_what_to_do(
    podman_executor: PodmanExecutor, language: str
) -> None:
    if language not in PART:
        pytest.skip("what is missing there, the compiler or the loader says")
    source, name = PART[language]
    with pytest.raises(LoadFailed, match=RUNTIMES[language].part) as caught:
        await load(podman_executor, language, source)
    assert caught.value.extensions["missing"] == name
    assert f"'{name}', which is not installed" in caught.value.detail
    assert caught.value.hint == RUNTIMES[language].part_hint != ""


async def test_a_missing_shared_library_is_named_with_what_to_do(
    podman_executor: PodmanExecutor, language: str
) -> None:
    with pytest.raises(LoadFailed, match=r"shared library 'libnosuch\.so") as caught:
        await load(podman_executor, language, LIBRARY[language])
    assert caught.value.extensions["missing"].startswith("libnosuch.so")
    assert "lib/ of the model folder" in caught.value.hint


@pytest.mark.skipif("node18" not in LANGUAGES, reason="the runtime node18 is not installed")
async def test_a_missing_file_of_the_models_own_is_named(podman_executor: PodmanExecutor) -> None:
    with pytest.raises(LoadFailed, match=r"the file './helper', which is not in its folder"):
        await load(podman_executor, "node18", "require('./helper')")


@pytest.mark.skipif("java17" not in LANGUAGES, reason="the runtime java17 is not installed")
async def test_a_class_left_out_of_a_jar_is_named(podman_executor: PodmanExecutor) -> None:
    files = {
        "Model.java": STUCK["java17"].replace("Thread.sleep(99_000)", "acme.Part.work()").encode(),
        "acme/Part.java": b"package acme; public class Part { public static void work() {} }",
    }
    files = await with_program(podman_executor, "java17", "Model.java:Model", files)
    whole, without = zipfile.ZipFile(io.BytesIO(files["bin/model.jar"])), io.BytesIO()
    with zipfile.ZipFile(without, "w") as jar:
        for name in whole.namelist():
            if name != "acme/Part.class":
                jar.writestr(name, whole.read(name))
    await load_files(podman_executor, "java17", "Model.java:Model", files)
    files["bin/model.jar"] = without.getvalue()
    with pytest.raises(LoadFailed, match=r"class 'acme\.Part'"):
        await load_files(podman_executor, "java17", "Model.java:Model", files)


# A program that needs a library which is in the compiler's root folder only.
MPFR = b"""
extern "C" const char* mpfr_get_version(void);
struct Model {
  explicit Model(const std::string&) {}
  appliance::Reply predict(const appliance::Request&) {
    return appliance::text(mpfr_get_version());
  }
};
"""


@pytest.fixture
def mpfr(test_data: Path) -> bytes:
    rootfs = images.require(test_data, "cpp-build").rootfs
    return next(rootfs.glob("usr/lib/*/libmpfr.so.6")).read_bytes()


@pytest.mark.skipif("cpp" not in LANGUAGES, reason="the runtime cpp is not installed")
async def test_a_program_finds_the_libraries_it_brings_and_names_those_it_does_not(
    podman_executor: PodmanExecutor, mpfr: bytes
) -> None:
    files = {"model.cpp": MPFR, "lib/libmpfr.so.6": mpfr}
    files = await with_program(podman_executor, "cpp", "model.cpp:Model", files)
    spec = spec_of(runtime="cpp", entry="model.cpp:Model", files=files)
    async with box(podman_executor, spec, files) as one:
        assert (await one.ask(b""))[1].startswith(b"4.")
    del files["lib/libmpfr.so.6"]
    with pytest.raises(LoadFailed, match=r"shared library 'libmpfr\.so\.6'") as caught:
        await load_files(podman_executor, "cpp", "model.cpp:Model", files)
    assert caught.value.extensions["missing"] == "libmpfr.so.6"


@pytest.mark.skipif("cpp" not in LANGUAGES, reason="the runtime cpp is not installed")
async def test_a_program_that_cannot_be_started_says_why(podman_executor: PodmanExecutor) -> None:
    async def start(program: bytes) -> LoadFailed:
        with pytest.raises(LoadFailed) as caught:
            await load_files(podman_executor, "cpp", "model.cpp:Model", {"bin/model": program})
        return caught.value

    problem = await start(b"#!/opt/nowhere/python\n")
    assert "the interpreter or loader it names, is not there" in problem.detail
    assert problem.extensions["missing"] == "/model/bin/model"
    problem = await start(b"\x7fELF\x02\x01\x01" + bytes(11) + b"\xf3\x00" + bytes(44))  # RISC-V
    assert "'/model/bin/model' is built for another kind of machine: ELF 2.243" in problem.detail


@pytest.mark.skipif("cpp" not in LANGUAGES, reason="the runtime cpp is not installed")
async def test_an_end_of_another_kind_stays_a_crash(podman_executor: PodmanExecutor) -> None:
    program = b"#!/bin/sh\necho model: libx.so: cannot open shared object file >&2\nexit 3\n"
    with pytest.raises(RunnerCrashed) as caught:
        await load_files(podman_executor, "cpp", "model.cpp:Model", {"bin/model": program})
    assert caught.value.extensions["exit_code"] == 3
