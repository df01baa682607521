"""``python -m tui``: the console without the appliance's command line.

Owns: the few flags needed to start on their own.
Never: does anything ``appliance tui`` could not.
Read next: ``app.run``.
"""

from __future__ import annotations

import argparse
import os
import sys


def main() -> int:
    """Parse the flags, start the console and return its exit status."""
    parser = argparse.ArgumentParser(prog="tui", description="Console of the model appliance")
    parser.add_argument("--socket", default=os.environ.get("APPLIANCE_SOCKET"))
    parser.add_argument("--url", default=os.environ.get("APPLIANCE_URL"))
    parser.add_argument("--ca-file", default=os.environ.get("APPLIANCE_CA"))
    parser.add_argument("--readonly", action="store_true", help="disable every verb")
    flags = parser.parse_args()
    from tui.app import run

    return run(
        socket=flags.socket,
        url=flags.url,
        api_key=os.environ.get("APPLIANCE_API_KEY"),
        ca_file=flags.ca_file,
        readonly=flags.readonly,
    )


if __name__ == "__main__":
    sys.exit(main())
