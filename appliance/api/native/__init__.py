"""The native contract, ``/api/v1``: one file per noun.

Owns: the list of its operations.
Never: holds logic; handlers are a few lines over ``store``, ``lifecycle`` and ``invoke``.
Read next: ``tenants``, ``models``, ``calls``, ``audit``.
"""

from __future__ import annotations

from appliance.api.native import (
    audit,
    batches,
    call_tree,
    calls,
    catalogue,
    comparisons,
    drift,
    egress,
    experiments,
    jobs,
    lineage,
    models,
    reservations,
    routes,
    samples,
    schedules,
    secrets,
    tenants,
    uploads,
    webhooks,
)

OPERATIONS = (
    *tenants.OPERATIONS,
    *egress.OPERATIONS,
    *models.OPERATIONS,
    *lineage.OPERATIONS,
    *catalogue.OPERATIONS,
    *secrets.OPERATIONS,
    *reservations.OPERATIONS,
    *routes.OPERATIONS,
    *experiments.OPERATIONS,
    *drift.OPERATIONS,
    *uploads.OPERATIONS,
    *calls.OPERATIONS,
    *batches.OPERATIONS,
    *jobs.OPERATIONS,
    *comparisons.OPERATIONS,
    *samples.OPERATIONS,
    *schedules.OPERATIONS,
    *webhooks.OPERATIONS,
    *call_tree.OPERATIONS,
    *audit.OPERATIONS,
)
