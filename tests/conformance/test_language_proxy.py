"""A model of any language finds the proxy, in a sandbox made for it and in one bound to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from boxes import Ways, box, spec_of
from languages import MODELS, SPOKEN, installed, with_program

from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import Outlets

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]
LANGUAGES = [name for name in installed() if name != "python3.11"]


@pytest.mark.parametrize("ahead", [False, True], ids=["made", "bound"])
@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_proxy_is_in_the_environment_where_there_are_outlets_only(
    podman_executor: PodmanExecutor, language: str, ahead: bool
) -> None:
    spoken = SPOKEN[language]
    files = {spoken.file: (MODELS / spoken.file).read_bytes()}
    files = await with_program(podman_executor, language, spoken.entry, files)
    plain = spec_of(runtime=language, entry=spoken.entry, files=files, memory_mb=spoken.memory_mb)
    seen = []
    Ways.ahead = ahead
    try:
        for spec in (plain, replace(plain, outlets=Outlets(model="m"))):
            async with box(podman_executor, spec, files) as one:
                command = b"run echo $HTTPS_PROXY,$http_proxy,$no_proxy"
                seen.append((await one.ask(command, "text/plain"))[1].decode().strip())
    finally:
        Ways.ahead = False
    url = "http://127.0.0.1:3128"
    assert seen == [",,", f"{url},{url},localhost,127.0.0.1,::1"]
