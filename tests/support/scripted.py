"""Sandboxes that answer as a function of the version and the body says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inside import EchoExecutor, EchoSandbox

from appliance.sandbox.spec import Reply, Request, SandboxSpec

Script = Callable[[int, Any], Any]
"""The answer of a version to a body; ``None`` for no answer before the sandbox ends."""


class ScriptedSandbox(EchoSandbox):
    def __init__(self, spec: SandboxSpec, script: Script) -> None:
        super().__init__(spec)
        self._script = script

    async def request(self, request: Request) -> Reply:
        number = int(self._spec.version_key.rpartition("/")[2])
        answer = self._script(number, json.loads(request.body))
        if answer is None:
            await asyncio.sleep(3600)
        return Reply(
            content_type="application/json", body=json.dumps(answer).encode(), compute_us=1000
        )


class ScriptedExecutor(EchoExecutor):
    def __init__(self, data_dir: Path, script: Script) -> None:
        super().__init__(data_dir)
        self.script = script

    async def create(self, spec: SandboxSpec) -> EchoSandbox:
        return ScriptedSandbox(spec, self.script)
