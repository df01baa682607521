"""MLflow's contract at ``/t/{tenant}``: registry, artifact proxy, a sliver of tracking, scoring.

Owns: the list of its operations.
Never: holds logic; what MLflow has and the appliance has not is refused in MLflow's form.
Read next: ``registered``, ``runs``, ``logged``, ``artifacts``, ``scoring``; ``docs/mlflow.md``.
Source of the contract: github.com/mlflow/mlflow, ``mlflow/protos``, and what its client sends.
"""

from __future__ import annotations

from appliance.api.mlflow import artifacts, lacking, logged, registered, runs, scoring

OPERATIONS = (
    *scoring.OPERATIONS,
    *registered.OPERATIONS,
    *runs.OPERATIONS,
    *logged.OPERATIONS,
    *artifacts.OPERATIONS,
    *lacking.OPERATIONS,  # the last: the router tries them in order
)
