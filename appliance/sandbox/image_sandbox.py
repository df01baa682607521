"""A sandbox of an imported image: the same container, filled and spoken to from outside.

Owns: what differs from a language's sandbox: command, variables, files, output, HTTP.
Never: gives an image anything a language's sandbox does not have.
Read next: ``container`` (the life of both), ``http_link``, ``protocols``.

    create -> init -> verify, limit, pin, remount -> files -> start -> verify -> ready -> call ...
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from appliance.errors import PodmanUnavailable, RunnerCrashed
from appliance.records import Container
from appliance.sandbox import hardening, scripts
from appliance.sandbox.confined import require_confined
from appliance.sandbox.container import PodmanSandbox
from appliance.sandbox.frames import LinkLost, clean
from appliance.sandbox.hardening import Slot
from appliance.sandbox.http_link import HttpLink
from appliance.sandbox.output import Output
from appliance.sandbox.placing import place_files
from appliance.sandbox.protocols import Serving
from appliance.sandbox.runtimes.language import Language
from appliance.sandbox.spec import Level, SandboxSpec

if TYPE_CHECKING:
    from appliance.sandbox.podman import PodmanExecutor

# What the OCI runtimes say when the image, not the host, is at fault.
_CANNOT_RUN = re.compile(
    r"(exec: .*|exec:? format error.*|executable file .*|(?:stat|chdir to cwd) .*"
    r"|no such file or directory.*|permission denied.*)",
    re.IGNORECASE,
)
# How the languages say that they found no memory: their last words, before they end.
_NO_MEMORY = re.compile(
    r"MemoryError|OutOfMemoryError|OutOfMemoryException|std::bad_alloc|heap out of memory"
    r"|[Cc]annot allocate memory|failed to allocate memory|runtime: out of memory"
)
_LAST_LINES = 20
_LAST_WORDS_S = 1.0


def image_language(served: Serving) -> Language:
    """An image as a language that has nothing of ours in it."""
    return Language(name="", packages=(), proof="", runner="", command=served.argv)


class ImageSandbox(PodmanSandbox):
    """``Sandbox`` in one container of an imported image."""

    def __init__(
        self,
        executor: PodmanExecutor,
        spec: SandboxSpec,
        served: Serving,
        *,
        level: Level,
        slot: Slot,
    ) -> None:
        asked = spec.container or Container()
        told = replace(asked, protocol=served.protocol, model_path=served.model_path)
        super().__init__(executor, replace(spec, container=told), level=level, slot=slot)
        self._served = served
        self._output: Output | None = None
        if served.is_http:
            self.link = HttpLink(served, self)

    async def start(self, runtime_folder: str, language: Language, wheels: str) -> None:
        """Make and verify the container; one that serves HTTP begins when it is loaded.

        Raises:
            PodmanUnavailable: it could not be made, or was not confined as it must be.
            RunnerCrashed: the image has nothing that could be started, or it did not come up.
        """
        if not self._served.is_http:
            await super().start(runtime_folder, language, wheels)
            return
        await asyncio.to_thread(scripts.lay_out, self._box, (), language.name, self._uids)
        await self._executor.run(self._create_and_init, runtime_folder, language, wheels)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)
        self._watch()
        if self._ways is not None:
            await self._ways.serve()
        self._state = "idle"

    async def begin(self) -> None:
        """See ``PodmanSandbox.begin``; what it prints is read from its first byte on."""
        self._output = Output(self.link.logs, self.link.monitor_lost.set)
        try:
            self._output.attach(self._attach_path)
        except OSError as error:
            raise PodmanUnavailable("A container's output cannot be read.") from error
        try:
            await super().begin()
        except PodmanUnavailable as error:
            raise self._cannot_run(error) from error
        require_confined(self.pid, self.slot)

    async def place(self, tar: AsyncIterator[bytes]) -> None:
        """See ``http_link.Host``."""
        service = self._executor.service
        if service is None:
            raise PodmanUnavailable("Podman's service is not running.")
        root = self.slot.first + 1  # the container's uid and gid 0, as Podman's namespace has them
        await place_files(
            tar,
            namespace_pid=service.keeper_pid,
            pid=self.pid,
            folder=self._served.model_path,
            ids=(root, root),
        )

    async def open_socket(self) -> socket.socket:
        """See ``http_link.Host``."""
        made: socket.socket = await self._executor.run(self._executor.netns.open, self.pid)
        return made

    @property
    def _attach_path(self) -> Path:
        service = self._executor.service
        if service is None:
            raise PodmanUnavailable("Podman's service is not running.")
        return service.attach_path_of(self._container_id)

    def _adapt(self, body: dict[str, Any]) -> None:
        hardening.add_serving(body, self._served)

    def _create_and_init(self, runtime_folder: str, language: Language, wheels: str) -> None:
        try:
            super()._create_and_init(runtime_folder, language, wheels)
        except PodmanUnavailable as error:
            raise self._cannot_run(error) from error

    def _cannot_run(self, error: PodmanUnavailable) -> PodmanUnavailable | RunnerCrashed:
        found = _CANNOT_RUN.search(error.detail)
        if found is None:
            return error
        command = clean(" ".join(self._served.argv), 200)
        return RunnerCrashed(
            f"The image cannot start '{command}' in {clean(self._served.work_dir, 200)}: "
            f"{clean(found.group(1), 300)}.",
            hint="[container] command = [...] in appliance.toml, if the image's own is not right",
        )

    async def _raise_lost(self, lost: LinkLost, *, is_loading: bool = False) -> NoReturn:
        """No monitor tells how it ended: for memory, if that is what it said last."""
        if not lost.protocol:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.link.monitor_lost.wait(), _LAST_WORDS_S)
            if any(_NO_MEMORY.search(line) for line in self.stderr_tail()[-_LAST_LINES:]):
                self.link.exit_kind = "memory"
        await super()._raise_lost(lost, is_loading=is_loading)

    async def _destroy(self) -> None:
        if self._output is not None:
            self._output.close()
        await super()._destroy()
