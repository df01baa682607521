"""Process entry: ``appliance`` and ``python -m appliance``.

Owns: handing the arguments to ``cli`` and its exit code to the operating system.
Never: imports anything before it knows the command; ``--version`` must stay instant.
Read next: ``cli`` (the fast path), ``cli.root`` (the table of commands).
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and end the process with its sysexits code."""
    from appliance import cli

    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
