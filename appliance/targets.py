"""PURE: whom a call below a call is for: targets, and the steps of pipelines that name them.

Owns: ``Target`` and its notation, ``Step``.
Never: knows which models there are.
Read next: ``records``, ``steps``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model of the same tenant, by a version, an alias or neither: then its route or ``live``."""

    model: str
    number: int = 0
    alias: str = ""

    def __str__(self) -> str:
        """The target as it is written: ``scorer``, ``scorer:3``, ``scorer@live``."""
        if self.number:
            return f"{self.model}:{self.number}"
        return f"{self.model}@{self.alias}" if self.alias else self.model


_NAME = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_TARGET = re.compile(rf"({_NAME})(?::([1-9][0-9]{{0,8}})|@({_NAME}))?", re.ASCII)


def target_from_text(text: str) -> Target | None:
    """The target that a text names; ``None`` if it is none."""
    match = _TARGET.fullmatch(text)
    if match is None:
        return None
    return Target(model=match[1], number=int(match[2] or 0), alias=match[3] or "")


PIPELINE = "pipeline"
"""What stands for the runtime of a version that is a pipeline: it has no code of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a pipeline: whom it calls, and what of the input and earlier answers it is given.

    ``take`` is member to reference; the one member ``""`` stands for the whole body.
    """

    name: str
    target: Target
    take: dict[str, str]
