"""What there is to know about one runtime.

Owns: ``Language``.
Never: does I/O.
Read next: ``python``, ``node``, ``cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_MIB = 1024 * 1024

BASE_PACKAGES = ("tzdata", "mount")
"""What every root folder holds besides the distribution's essential set (which has perl).

mount sets the inode quotas of a container before its first own instruction.
"""

MONITOR = "monitor.pl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """One runtime: what its root folder holds and how its runner starts.

    ``packages`` are distribution packages; ``proof`` is a file that must exist in the built root
    folder; ``runner`` and ``builder`` are files of ``guest/`` copied next to the socket, and so are
    their ``helpers`` and ``build_helpers``. ``packager`` names how packages come
    (``packages.PACKAGERS``), empty where none are installed. In ``command`` ``{heap_mb}`` stands
    for ``heap_share`` of the version's memory. ``entry_pattern`` is what the manifest's ``entry``
    must look like in full, ``entry_example`` shows one. ``own_threads`` is how many threads the
    language itself needs beside those the version asked for. ``setup`` and ``finish`` are commands
    before and after the packages are put into the root folder (``$1``). A runtime with a
    ``compiler`` runs what that other runtime made of the artifact at its registration, the file
    ``compiled``; a runtime that ``is_compiler`` runs no versions of its own. A runner that
    ``imports_ahead`` understands IMPORT, one that ``makes_calls`` sends CALL. ``part`` is what the
    language calls a thing its runner finds missing, and ``part_hint`` tells the model's owner what
    to do then.
    """

    name: str
    packages: tuple[str, ...]
    proof: str
    runner: str
    command: tuple[str, ...]
    packager: str = ""
    builder: str = ""
    build_helpers: tuple[str, ...] = ()
    build_command: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    entry_pattern: str = ""
    entry_example: str = ""
    heap_share: float = 0.75
    own_threads: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    compiler: str = ""
    compiled: str = ""
    is_compiler: bool = False
    imports_ahead: bool = False
    makes_calls: bool = False
    part: str = "package"
    part_hint: str = "add it to requirements in appliance.toml"

    def argv(self, memory_bytes: int) -> tuple[str, ...]:
        """The command of a sandbox that has this much memory."""
        heap_mb = max(16, int(memory_bytes * self.heap_share) // _MIB)
        return tuple(part.replace("{heap_mb}", str(heap_mb)) for part in self.command)


NATIVE_BUILDER = "native_builder.pl"


def built_by(script: str, name: str) -> tuple[str, ...]:
    """The command of a builder that is one shell script."""
    return ("/usr/bin/perl", f"/run/app/{NATIVE_BUILDER}", name, "/bin/sh", f"/run/app/{script}")


def monitored(*command: str, memory: str) -> tuple[str, ...]:
    """The command of a runner under the shared monitor.

    Args:
        command: argv of the runner.
        memory: a pattern of the language's last words when it found no memory.
    """
    return ("/usr/bin/perl", f"/run/app/{MONITOR}", memory, *command)
