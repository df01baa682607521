"""Requests made from the route table, so that a new route is attacked without anybody's help."""

from __future__ import annotations

from typing import Any

from appliance import api
from appliance.api.operation import PUBLIC, Operation

OPERATIONS: tuple[Operation, ...] = tuple(api.table())
GUARDED = tuple(op for op in OPERATIONS if op.permission != PUBLIC and not op.admin_only)
ADMIN = tuple(op for op in OPERATIONS if op.admin_only)

BODIES: dict[str, Any] = {
    "TenantNew": {"name": "fresh"},
    "KeyNew": {"name": "fresh", "role": "owner"},
    "ApplianceKeyNew": {"name": "fresh", "role": "auditor"},
    "IsolationSet": {"isolation": "standard"},
    "SecretValue": {"value": "test"},
    "EgressRuleNew": {"action": "allow", "host": "a.test", "reason": "test"},
    "AliasSet": {"version": 1, "reason": "test"},
    "ReservationNew": {"warm": 1},
    "RouteNew": {"arms": [{"version": 1, "percent": 100}]},
    "OutcomeNew": {"request_id": "req_none", "value": 1.0},
    "SamplingNew": {"percent": 5},
    "ReplayNew": {"against": 1},
    "RouteVerb": {"reason": "test"},
    "LearnNew": {"records": 100},
    "WindowNew": {"window_s": 3600},
    "ThresholdsNew": {"limits": {"psi": 0.3}},
    "Promotion": {"reason": "test"},
    "Secret": {"passphrase": "wrong"},
    "BackupTo": {"path": "/nowhere/at/all"},
    "ExportTo": {"name": "cobol", "path": "/nowhere/at/all"},
    "Collect": {},
    "Build": {"name": "cobol", "wait": False},
    "Import": {"path": "/nowhere/at/all"},
    "Verify": {},
    "WebhookNew": {"url": "https://203.0.113.9/x", "events": ["alias.set"]},
    "WebhookRotation": {},
}


def name_of(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def request_of(operation: Operation, values: dict[str, str]) -> dict[str, Any]:
    """Keyword arguments of ``client.request`` for a well-formed request of this operation."""
    made: dict[str, Any] = {
        "method": operation.method,
        "url": operation.path.format(**{name: values[name] for name in operation.params}),
    }
    if isinstance(operation.body, tuple):
        made["content"] = b"{}"
        made["headers"] = {"content-type": operation.body[0]}
    elif operation.body is not None:
        made["json"] = BODIES[operation.body.__name__]
    return made
