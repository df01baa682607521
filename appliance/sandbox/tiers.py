"""Tiers of isolation: containers of the host's kernel, or a user-space kernel (gVisor) for each.

Owns: which tiers there are on this host, and what to install for one that is not.
Never: makes a sandbox; falls back to a weaker tier.
Read next: ``podman`` (makes sandboxes of a tier), ``records.Isolation``.
"""

from __future__ import annotations

import shutil

from appliance.errors import IsolationUnavailable
from appliance.records import Isolation

_PATH = "/usr/local/bin:/usr/bin:/usr/sbin:/sbin:/bin"
INSTALL = "apt-get install runsc"


def runsc_path() -> str:
    """The path of gVisor's OCI runtime; empty where it is not installed."""
    return shutil.which("runsc", path=_PATH) or ""


def require(isolation: Isolation) -> None:
    """Return if sandboxes of this isolation can be made here.

    Raises:
        IsolationUnavailable: they cannot.
    """
    if isolation == "gvisor":
        raise IsolationUnavailable(
            "This needs gVisor, which is not installed on the appliance; nothing weaker is used.",
            hint=INSTALL,
        )
