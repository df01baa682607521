"""What there is to know about one runtime.

Owns: ``Language``.
Never: does I/O.
Read next: ``python``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """One runtime: what its root folder holds and how its runner starts.

    ``packages`` are distribution packages; ``proof`` is a file that must exist in the built root
    folder; ``runner`` and ``builder`` are files of ``guest/`` copied next to the socket.
    """

    name: str
    packages: tuple[str, ...]
    proof: str
    runner: str
    command: tuple[str, ...]
    builder: str
    build_command: tuple[str, ...]
