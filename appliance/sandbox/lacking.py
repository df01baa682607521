"""What a model that did not load lacks, and what to do about it. Pure.

Owns: reading the name of a missing package, class, file or shared object out of what a runner or
the system said, and the sentences for its owner.
Never: does I/O; decides anything: all of it is the model's own words, shown to its owner only.
Read next: ``container`` (the only user), ``runtimes.language`` (what a language calls them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.errors import LoadFailed
from appliance.sandbox.runtimes import RUNTIMES
from appliance.sandbox.runtimes.language import Language

_SHARED_OBJECT = re.compile(
    r"(?:^|[\s/'\"])([\w.+-]{1,200}\.so[\w.]{0,40})['\"]?: cannot open shared object file"
)
_START = re.compile(r"^(/[\w./+-]{1,300}): No such file or directory$")
CODE_NOT_STARTED = 127
"""What a process ends with whose program could not be started (exec(3) by shells and ours)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """What is missing by name, the sentence that says so, and what to do."""

    name: str
    detail: str
    hint: str

    def problem(self, tail: tuple[str, ...]) -> LoadFailed:
        """The same as a problem; ``tail`` is what the model printed last."""
        return LoadFailed(self.detail, hint=self.hint, stderr=list(tail), missing=self.name)


def in_fault(runtime: str, *, kind: str, missing: str, detail: str) -> Lack | None:
    """What a runner's ERR at LOAD says is missing; None when it is about something else.

    Args:
        runtime: the sandbox's runtime.
        kind: ERR's ``kind``.
        missing: ERR's ``missing``.
        detail: ERR's ``detail``.
    """
    language = RUNTIMES.get(runtime)
    shared = _SHARED_OBJECT.search(detail)
    if shared:
        return _library(shared.group(1), detail)
    if kind != "import" or not missing or language is None:
        return None
    if ".so" in missing and not missing.startswith("/"):
        return _library(missing, detail)
    if missing.startswith((".", "/")):
        return Lack(
            name=missing,
            detail=f"The model needs the file '{missing}', which is not in its folder: {detail}",
            hint="add it to the model folder",
        )
    return _part(language, missing, detail)


def in_last_words(code: int | None, lines: Iterable[str]) -> Lack | None:
    """What kept a program from starting, as the system said it; None for another end.

    Args:
        code: exit code of the runner.
        lines: what it printed, oldest first.
    """
    if code != CODE_NOT_STARTED:
        return None
    for line in reversed(list(lines)):
        shared = _SHARED_OBJECT.search(line)
        if shared:
            return _library(shared.group(1), line)
        start = _START.match(line)
        if start:
            return Lack(
                name=start.group(1),
                detail=f"'{start.group(1)}', or the interpreter or loader it names, is not there.",
                hint="build it against the distribution of the runtime, or link it statically",
            )
    return None


def _library(name: str, said: str) -> Lack:
    return Lack(
        name=name,
        detail=f"The model needs the shared library '{name}', which is not installed: {said}",
        hint="put it into lib/ of the model folder, or use a build that does not need it",
    )


def _part(language: Language, missing: str, said: str) -> Lack:
    return Lack(
        name=missing,
        detail=(f"The model needs {language.part} '{missing}', which is not installed: {said}"),
        hint=language.part_hint,
    )
