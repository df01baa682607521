"""The admin socket: the kernel says who is at the other end.

Owns: ``Peer`` (SO_PEERCRED of a unix socket) and the scheme that turns it into a principal.
Never: trusts anything the request itself says.
Read next: ``serve`` (reads SO_PEERCRED once per connection), ``policy.cedar`` (what a peer may do).

Whoever is root, or is the service user, already owns the machine the appliance runs on. Over the
socket they may do everything, calls included; it is recorded in the ledger as ``uid:<n>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.errors import Unauthenticated
from appliance.policy import Principal

if TYPE_CHECKING:
    from appliance.auth import Presented


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process at the other end of a unix socket, as the kernel reports it."""

    pid: int
    uid: int
    gid: int


class PeerScheme:
    """Accepts the users allowed on the admin socket."""

    def __init__(self, uids: frozenset[int]) -> None:
        """``uids``: root, the service user and the ones listed in ``admin.uids``."""
        self._uids = uids

    def identify(self, presented: Presented) -> Principal | None:
        """The peer as an administrator, ``None`` on a connection that is not the admin socket.

        Raises:
            Unauthenticated: a user who may open the socket file but is not on the list.
        """
        peer = presented.peer
        if peer is None:
            return None
        if peer.uid not in self._uids:
            raise Unauthenticated(f"User id {peer.uid} is not allowed on the admin socket.")
        return Principal(id=f"uid:{peer.uid}", kind="peer", role="admin", name=f"uid {peer.uid}")
