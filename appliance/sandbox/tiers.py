"""Tiers of isolation: containers of the host's kernel, or a user-space kernel (gVisor) for each.

Owns: which tiers there are on this host, and what to install for one that is not.
Never: makes a sandbox; falls back to a weaker tier.
Read next: ``podman`` (makes sandboxes of a tier), ``records.Isolation``.
"""

from __future__ import annotations

import shutil

from appliance.errors import IsolationUnavailable
from appliance.records import Isolation
from appliance.sandbox.spec import SandboxSpec

_PATH = "/usr/local/bin:/usr/bin:/usr/sbin:/sbin:/bin"
INSTALL = "apt-get install runsc"


def runsc_path() -> str:
    """The path of gVisor's OCI runtime; empty where it is not installed."""
    return shutil.which("runsc", path=_PATH) or ""


def require(
    isolation: Isolation, *, spec: SandboxSpec | None = None, of_image: bool = False
) -> None:
    """Return if sandboxes of this isolation can be made here.

    Args:
        isolation: the tier.
        spec: what the sandbox asks for, when there is one already.
        of_image: whether it is to be made of an imported image.

    Raises:
        IsolationUnavailable: they cannot; nothing weaker is used instead.
    """
    if isolation != "gvisor":
        return
    if not runsc_path():
        raise IsolationUnavailable(
            "This needs gVisor, which is not installed on the appliance; nothing weaker is used.",
            hint=INSTALL,
        )
    lacking = "imported images" if of_image else ""
    if spec is not None and spec.resources.gpus:
        lacking = "GPUs"
    if spec is not None and spec.outlets is not None:
        lacking = "ways out to a network"
    if lacking:
        raise IsolationUnavailable(
            f"Sandboxes with a kernel of their own have no {lacking} on this appliance.",
            hint="Remove what asks for it, or have an administrator lower the isolation.",
        )
