"""What lies next to a sandbox's socket: the runner and its like, ready to be run.

Owns: reading files of ``guest/``, and compiling the Python ones once per process.
Never: runs them.
Read next: ``guest/python_runner.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import sys
from importlib import resources


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
