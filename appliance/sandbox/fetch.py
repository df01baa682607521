"""pip, held to fetching wheels: a program of its own, run with the appliance's interpreter.

Owns: what pip may not do on the host whatever a package's metadata says.
Never: is imported by the appliance, or runs a package's code.
Read next: ``dependencies`` (starts it).

    python -I fetch.py BYTES_MAX download ...

``--only-binary`` does not cover a wheel that depends on ``name @ address``: pip would follow the
address and build what is there, which runs its code. Two fences, either of which is enough.
"""

import resource
import runpy
import sys
from typing import Any

_STARTS_A_PROCESS = frozenset(
    {
        "subprocess.Popen",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "pty.spawn",
    }
)


def refuse_processes(event: str, _arguments: tuple[Any, ...]) -> None:
    """An audit hook (PEP 578): it cannot be removed, and every build needs a process."""
    if event in _STARTS_A_PROCESS:
        raise PermissionError(f"{event} is not allowed while packages are fetched")


def refuse_addresses() -> None:
    """Have pip refuse every requirement that names an address instead of a version."""
    from pip._internal.exceptions import InstallationError
    from pip._vendor.packaging.requirements import Requirement

    read = Requirement.__init__

    def checked(self: Any, text: str) -> None:
        read(self, text)
        if self.url:
            raise InstallationError(f"{self.name} is required from an address, not an index")

    setattr(Requirement, "__init__", checked)  # noqa: B010 - pip's own class


def main() -> None:
    """Fence the process, then be pip."""
    bytes_max = int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
    refuse_addresses()
    sys.addaudithook(refuse_processes)
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
