"""Who a recorded principal is now: for what is done in somebody's name after they asked.

Owns: the principal behind an id of the ledger, with the rights it has at this moment.
Never: authenticates a request; a key that was revoked or has expired is nobody.
Read next: ``nested`` (calls in the name of whoever began them).
"""

from __future__ import annotations

import re
from typing import Protocol

from appliance import clock
from appliance.policy import Principal
from appliance.records import ApiKey, Tenant

_PEER = re.compile(r"uid:[0-9]{1,10}", re.ASCII)


class Registered(Protocol):
    """What is asked of the registry."""

    def key(self, key_id: str) -> ApiKey | None:
        """The key of this id."""
        ...

    def tenant_by_id(self, tenant_id: str) -> Tenant | None:
        """The tenant of this id."""
        ...


def principal_of(principal_id: str, registry: Registered) -> Principal | None:
    """The principal of this id; ``None`` for none, and for a key that is not good any more."""
    if _PEER.fullmatch(principal_id):
        return Principal(id=principal_id, kind="peer", role="admin")
    key = registry.key(principal_id)
    if key is None or key.revoked_ns or clock.now_ns() >= key.expires_ns:
        return None
    if key.tenant_id and registry.tenant_by_id(key.tenant_id) is None:
        return None
    return Principal(
        id=key.id,
        kind="api-key",
        role=key.role,
        tenant_id=key.tenant_id,
        name=key.name,
        scopes=key.scopes,
    )
