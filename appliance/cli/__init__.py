"""The command line: the only package that prints. Data on stdout, talk on stderr.

Owns: the fast path of ``--version``; all else is loaded by ``cli.root`` when asked for.
Never: imports click, httpx, rich, duckdb, podman, starlette or textual at module level here.
Read next: ``root`` (commands), ``context`` (global options), ``output`` (how things are printed),
``client`` (how the appliance is reached).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run one command line, without the program's name; the sysexits code to end with."""
    if list(arguments) == ["--version"]:
        from appliance import __version__

        sys.stdout.write(f"appliance {__version__}\n")
        return 0
    from appliance.cli.root import run

    return run(list(arguments))
