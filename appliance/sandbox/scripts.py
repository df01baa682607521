"""What lies next to a sandbox's socket: the runner and its like, ready to be run.

Owns: reading files of ``guest/``, compiling the Python ones once per process, laying them out.
Never: runs them.
Read next: ``guest/python_runner.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path


@functools.cache
def content(script: str, runtime: str) -> bytes:
    """The bytes a sandbox gets for a file of ``guest/``.

    For the runtime of this very Python they are compiled code under the same name: Python looks at
    the first bytes of the file it is to run. Compiling it anew took 20 ms of every start.

    Args:
        script: name of the file.
        runtime: the sandbox's runtime, like ``python3.11``.
    """
    text = resources.files("appliance.sandbox").joinpath("guest", script).read_bytes()
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not script.endswith(".py") or runtime != own or sys.version_info.releaselevel != "final":
        return text
    code = compile(text, f"/run/app/{script}", "exec", dont_inherit=True, optimize=0)
    unchecked = (1).to_bytes(4, "little") + importlib.util.source_hash(text)
    return importlib.util.MAGIC_NUMBER + unchecked + marshal.dumps(code)


def lay_out(folder: Path, names: Iterable[str], runtime: str, ids: tuple[int, ...]) -> None:
    """Make the folder of one sandbox: what it runs, and the record of whose processes it has."""
    folder.mkdir()
    folder.chmod(0o711)  # whatever the umask: its user has to reach the socket
    (folder / "record").write_text(" ".join(map(str, ids)) + "\n", encoding="ascii")
    for name in names:
        target = folder / name
        target.write_bytes(content(name, runtime))
        target.chmod(0o644)
