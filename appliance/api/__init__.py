"""The public HTTP contracts, one file each, and the table that joins them.

Owns: ``table`` and ``build``, which turns it into the two ASGI applications.
Never: holds logic; a handler is a few lines over ``store``, ``lifecycle`` and ``invoke``.
Read next: ``operation`` (what a row declares), ``dispatch`` (what happens to a request).

Adding a contract is one file with ``OPERATIONS`` and one line here; the documentation and the
attack suites take it in by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.api import (
    admin,
    gpus,
    health,
    inference,
    mlflow,
    native,
    pages,
    supply,
    supply_jobs,
)
from appliance.api.dispatch import Application
from appliance.api.operation import Table
from appliance.node import Node
from appliance.policy import Policy
from appliance.wire import Front

__all__ = ["Applications", "build", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applications:
    """The two ASGI applications: ``public`` for HTTPS, ``admin`` for the unix socket."""

    public: Application
    admin: Application


def table() -> Table:
    """Every operation of every contract."""
    return Table(
        (
            *native.OPERATIONS,
            *inference.OPERATIONS,
            *mlflow.OPERATIONS,
            *health.OPERATIONS,
            *pages.OPERATIONS,
            *admin.OPERATIONS,
            *gpus.OPERATIONS,
            *supply.OPERATIONS,
            *supply_jobs.OPERATIONS,
        )
    )


def build(node: Node, front: Front, *, policy: Policy | None = None) -> Applications:
    """The applications of a node.

    Args:
        node: the life of the process.
        front: filled by ``serve``, shown by ``status`` and in every ``url``.
        policy: other rules than the packaged ones, for tests.
    """
    rows, rules = table(), policy or node.policy
    return Applications(
        public=Application(rows, node=node, policy=rules, front=front, is_admin=False),
        admin=Application(rows, node=node, policy=rules, front=front, is_admin=True),
    )
