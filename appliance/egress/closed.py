"""Which versions have no way out, whatever egress rules say.

Owns: who they are among a tenant's versions in service, and how that is said.
Never: changes what a rule decides.
Read next: ``provision`` (gives such a sandbox no outlets), ``rules``.

A sandbox with a kernel of its own (isolation ``gvisor``) has a network stack of its own too, which
ends at its loopback: the appliance cannot listen there.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.records import EgressRule, Version, stronger
from appliance.store import Snapshot

WHY = "sandboxes with a kernel of their own (isolation gvisor) have no way out"
CAUTION = f"appliance: egress rules are not in force here: {WHY}"
"""Stands in front of what the model itself wrote."""
_NAMED_MAX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Versions without a way out: all that were asked about, or those in ``names``; or none."""

    is_all: bool = False
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What to tell people; empty if there is nothing to tell."""
        if self.is_all:
            return WHY
        if not self.names:
            return ""
        more = len(self.names) - _NAMED_MAX
        rest = f" and {more} more" if more > 0 else ""
        return f"not in force for {', '.join(self.names[:_NAMED_MAX])}{rest}: {WHY}"


def closed_versions(snapshot: Snapshot, tenant_id: str, model: str = "*") -> Closed:
    """The versions in service that no rule lets out.

    Args:
        snapshot: what is registered.
        tenant_id: whose.
        model: a model's name, or ``*`` for all of the tenant's.
    """
    tenant = snapshot.tenant_by_id(tenant_id)
    if tenant is None:
        return Closed()
    if tenant.isolation != "standard":
        return Closed(is_all=True)
    serving: list[tuple[str, Version]] = [
        (one.name, version)
        for one in snapshot.models(tenant_id)
        if model in ("*", one.name)
        for version in snapshot.versions(one.id)
        if not version.retired_ns
    ]
    found = [
        f"{name} version {version.number}"
        for name, version in serving
        if stronger(version.manifest.isolation, tenant.isolation) != "standard"
    ]
    is_all = model != "*" and bool(found) and len(found) == len(serving)
    return Closed(is_all=is_all, names=() if is_all else tuple(found))


def note_of(snapshot: Snapshot, rule: EgressRule) -> str:
    """For which versions a rule is not in force, in words; empty if it is for all."""
    if rule.action != "allow":
        return ""
    return closed_versions(snapshot, rule.tenant_id, rule.model).text
