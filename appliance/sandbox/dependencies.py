"""Dependencies: a version's pinned packages, installed once, shared read-only.

Owns: the requirement grammar, the wheel download, the build in a sandbox, ``data_dir/deps/<key>/``.
Never: runs a package's code on the host, or installs from source.
Read next: ``guest/python_builder.py`` (what runs inside).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance import config
from appliance.sandbox.images import Runtime

Progress = Callable[[str, float], None]


def parse_requirements(text: str) -> tuple[str, ...]:
    """The pins of a requirements file: ``name[extras]==version``, hashes allowed, sorted.

    Raises:
        ManifestInvalid: a line is anything else; the line is named.
    """
    raise NotImplementedError


def key(runtime: Runtime, requirements: tuple[str, ...]) -> str:
    """The name of the built set: the same runtime and pins give the same 32 hex characters."""
    raise NotImplementedError


async def ensure(
    executor: Any,
    runtime: Runtime,
    requirements: tuple[str, ...],
    build: config.Build,
    progress: Progress,
) -> str:
    """The key of the installed set, built now if it is not there; "" for no requirements.

    Raises:
        BuildFailed: a package cannot be had as a wheel or does not install; it is named.
    """
    raise NotImplementedError
