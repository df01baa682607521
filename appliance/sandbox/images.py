"""Runtimes: the read-only root folders that sandboxes run from.

Owns: building, installing and finding ``data_dir/runtimes/<runtime>-<digest12>/``.
Never: starts containers, uses a registry, or runs as root.
Read next: ``podman`` (who mounts them), ``runtimes`` (what goes into each).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One installed runtime: its name, content digest (``sha256:...``), packages and root folder."""

    name: str
    digest: str
    packages: tuple[str, ...]
    built_at: str
    rootfs: Path


def installed(data_dir: Path) -> tuple[Runtime, ...]:
    """Every complete runtime under ``data_dir``, newest of a name last."""
    raise NotImplementedError


def require(data_dir: Path, runtime: str, digest: str = "") -> Runtime:
    """The installed runtime of this name: of this digest, or the newest.

    Raises:
        RuntimeMissing: there is none; the hint is the command that builds it.
    """
    raise NotImplementedError


def build(data_dir: Path, runtime: str, progress: Progress) -> Runtime:
    """Build and install a runtime from the host's own package sources. Blocking, about a minute."""
    raise NotImplementedError
