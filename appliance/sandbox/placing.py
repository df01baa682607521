"""A version's files put into a container of an imported image, before it begins to run.

Owns: the placer process (``place.py``) of one container.
Never: writes a file anywhere but in the container's tmpfs; enters a container that runs.
Read next: ``place``, ``http_link`` (when this happens).

Languages have a runner inside that unpacks what is streamed to it; an image has none of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from appliance import config
from appliance.errors import PodmanUnavailable
from appliance.sandbox.mounts import namespace_command

_ANSWER_BYTES = 4096


async def place_files(
    tar: AsyncIterator[bytes],
    *,
    namespace_pid: int,
    pid: int,
    folder: str,
    ids: tuple[int, int],
) -> None:
    """Write a tar's files into a folder of a container that was made and not started.

    Args:
        tar: the version's files, as the store keeps them.
        namespace_pid: a process in the user and mount namespace of Podman.
        pid: the container's first process.
        folder: the tmpfs' path inside.
        ids: user and group that own the files, as Podman's namespace numbers them.

    Raises:
        PodmanUnavailable: they could not be written; the detail says why.
    """
    script = Path(__file__).with_name("place.py")
    command = namespace_command(namespace_pid, script)
    process = await asyncio.create_subprocess_exec(
        *command,
        *(str(word) for word in (pid, folder, *ids)),
        env=config.child_environment(),
        cwd="/",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    if process.stdin is None or process.stdout is None:
        raise PodmanUnavailable("The placer has no pipes.")
    try:
        with contextlib.suppress(ConnectionError):  # it ended: it says why
            async for piece in tar:
                process.stdin.write(piece)
                await process.stdin.drain()
        process.stdin.close()
        said = await process.stdout.read(_ANSWER_BYTES)
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if code:
        reason = said.decode("utf-8", "replace") or f"the placer ended with exit code {code}"
        raise PodmanUnavailable(f"The version's files cannot be put into the sandbox: {reason}.")
