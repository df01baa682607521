"""The languages under test: for each a model that does what it is told, in that language.

Those whose root folder is in ``APPLIANCE_TEST_DATA`` are tested; Python always is.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from boxes import Box, box, pieces, spec_of, tar_of

from appliance import config
from appliance.sandbox import compiling, images
from appliance.sandbox.executor import Executor
from appliance.sandbox.runtimes import RUNTIMES

MODELS = Path(__file__).parents[1] / "conformance" / "models"


@dataclass(frozen=True)
class Spoken:
    """One language: its model's file and entry, and what its values can and cannot do.

    ``error`` is what the model's own exception is called; ``keeps_json`` whether the model gets
    parsed JSON (C++ gets the text); ``memory_mb`` is what its sandbox gets.
    """

    runtime: str
    file: str
    entry: str
    error: str
    keeps_json: bool = True
    memory_mb: int = 256


SPOKEN = {
    one.runtime: one
    for one in (
        Spoken("python3.11", "model.py", "model:Model", "ValueError: as asked"),
        Spoken("python3.11-torch1.13", "model.py", "model:Model", "ValueError: as asked"),
        Spoken("node18", "model.js", "model.js:Model", "Error: as asked"),
        Spoken("ruby3.1", "model.rb", "model.rb:Model", "ArgumentError: as asked"),
        Spoken("cpp", "model.cpp", "model.cpp:Model", "std::invalid_argument: as asked", False),
        Spoken("r4.2", "model.R", "model.R:load_model", "simpleError: as asked"),
        Spoken("java17", "Model.java", "Model.java:Model", "IllegalArgumentException: as asked"),
        Spoken("mono6.8", "Model.cs", "Model.cs:Model", "System.ArgumentException: as asked"),
    )
}
CALLERS = {
    "python3.11": "calls.py:Model",
    "node18": "calls.js:Model",
    "ruby3.1": "calls.rb:Model",
    "cpp": "calls.cpp:Model",
    "r4.2": "calls.R:load_model",
    "java17": "Calls.java:Calls",
    "mono6.8": "Calls.cs:Calls",
}
"""The model that calls others, in each language that can: its file and what is in it."""
_compiled: dict[tuple[str, bytes], bytes] = {}


def installed() -> list[str]:
    """The runtimes to test: those installed, with their compilers; Python whatever is there."""
    folder = os.environ.get("APPLIANCE_TEST_DATA", "")
    names = {one.name for one in images.installed(Path(folder))} if folder else set()
    return [
        name
        for name in SPOKEN
        if name == "python3.11"
        or (name in RUNTIMES and {name, RUNTIMES[name].compiler or name} <= names)
    ]


async def with_program(
    executor: Executor, runtime: str, entry: str, files: dict[str, bytes]
) -> dict[str, bytes]:
    """The files with what they compile to; each source is compiled once."""
    compiler, path = compiling.target_of(runtime)
    if not compiler:
        return files
    tar = tar_of(files)
    if (runtime, tar) not in _compiled:
        _compiled[runtime, tar] = await compiling.compiled(
            executor,
            images.require(executor.data_dir, compiler),
            tenant_id="t",
            entry=entry,
            model_bytes=len(tar),
            tar=pieces(tar),
            build=config.Build(timeout_s=120),
        )
    return {**files, path: _compiled[runtime, tar]}


@asynccontextmanager
async def box_of(
    executor: Executor, runtime: str, memory_mb: int = 0, *, calls: bool | None = None
) -> AsyncIterator[Box]:
    """A sandbox with the conformance model of a language loaded.

    With ``calls`` that is the model which calls others; where it is false the manifest did not
    declare that.
    """
    spoken = SPOKEN[runtime]
    file, entry = spoken.file, spoken.entry
    if calls is not None:
        entry = CALLERS[runtime]
        file = entry.partition(":")[0]
        entry = entry.replace(".py:", ":")
    files = {file: (MODELS / file).read_bytes()}
    files = await with_program(executor, runtime, entry, files)
    spec = spec_of(
        runtime=runtime,
        entry=entry,
        files=files,
        memory_mb=memory_mb or spoken.memory_mb,
        makes_calls=bool(calls),
    )
    async with box(executor, spec, files) as one:
        yield one
