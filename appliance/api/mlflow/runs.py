"""The sliver of MLflow's tracking that logging a model needs: experiments, runs and their values.

Owns: the operations on groups of runs (MLflow's experiments) and on runs.
Never: keeps traces or evaluations, or the data of a data set: only what is said of it.
Read next: ``logged`` (models a run logged), ``appliance.tracking`` (limits and changes).
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from appliance.api.dispatch import Context
from appliance.api.mlflow import places
from appliance.api.mlflow.filters import conditions, is_met, ordered
from appliance.api.mlflow.forms import (
    Page,
    Pair,
    asked,
    listed,
    milliseconds,
    needed,
    operation,
    paged,
    pairs,
    query,
    read,
)
from appliance.errors import InputInvalid, NotFound
from appliance.events import RunChanged
from appliance.tracked import DataSet, Metric, Run, RunGroup
from appliance.tracking import TAG_CHARACTERS_MAX
from appliance.wire import Reply, json_reply

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
_NAME_TAG = "mlflow.runName"
_HISTORY = "mlflow.log-model.history"
_HEAD = ("run_id", "artifact_path", "utc_time_created")
_GROUP_FIELDS: dict[str, tuple[str, ...]] = {
    "attribute": ("name", "creation_time", "last_update_time"),
    "tag": (),
}
_RUN_FIELDS: dict[str, tuple[str, ...]] = {
    "attribute": (
        "run_id", "run_name", "status", "start_time", "end_time", "created", "artifact_uri",
        "user_id",
    ),
    "tag": (),
    "param": (),
    "metric": (),
}  # fmt: skip


class Measure(msgspec.Struct):
    """A metric value as clients send it; NaN and Infinity come as texts."""

    key: str
    value: float | str
    timestamp: int = 0
    step: int = 0
    model_id: str = ""


class _Output(msgspec.Struct):
    model_id: str = ""


class _Data(msgspec.Struct):
    name: str = ""
    digest: str = ""
    source_type: str = ""
    source: str = ""
    schema: str = ""
    profile: str = ""


class _Input(msgspec.Struct):
    dataset: _Data
    tags: list[Pair] = []


class _Group(msgspec.Struct):
    experiment_id: str = ""
    name: str = ""
    new_name: str = ""
    artifact_location: str = ""
    tags: list[Pair] = []
    key: str = ""
    value: str = ""


class _Run(msgspec.Struct):
    run_id: str = ""
    run_uuid: str = ""
    experiment_id: str = ""
    run_name: str = ""
    start_time: int = 0
    end_time: int = 0
    status: str = ""
    tags: list[Pair] = []
    params: list[Pair] = []
    metrics: list[Measure] = []
    models: list[_Output] = []
    datasets: list[_Input] = []
    model_json: str = ""
    key: str = ""
    value: str = ""

    @property
    def id(self) -> str:
        """The run that is meant; older clients say run_uuid."""
        return needed(self.run_id or self.run_uuid, "run_id")


class _One(Measure):
    key: str = ""
    value: float | str = ""
    run_id: str = ""
    run_uuid: str = ""


# --- experiments ---------------------------------------------------------------------------------


async def create_experiment(context: Context) -> Reply:
    """Make a group of runs; its artifacts are kept by the appliance, nowhere else."""
    body = await read(context, _Group)
    if body.artifact_location:
        raise InputInvalid("Artifacts are kept by this appliance; leave artifact_location out.")
    group = await context.services.tracking.create_group(
        context.tenant,
        name=needed(body.name, "name"),
        tags=pairs(body.tags),
        actor=context.principal.id,
    )
    return json_reply({"experiment_id": group.id})


async def get_experiment(context: Context) -> Reply:
    """A group of runs by its id."""
    group = context.services.tracking.group(context.tenant, asked(context, "experiment_id"))
    return json_reply({"experiment": _group_document(group)})


async def get_experiment_by_name(context: Context) -> Reply:
    """A group of runs by its name."""
    name = asked(context, "experiment_name")
    for group in context.services.tracking.groups(context.tenant):
        if group.name == name:
            return json_reply({"experiment": _group_document(group)})
    raise NotFound("There is no experiment of this name.")


async def search_experiments(context: Context) -> Reply:
    """Groups of runs, the newest first unless another order is asked for."""
    page = await read(context, Page)
    wanted = conditions(page.filter, _GROUP_FIELDS)

    def get(group: RunGroup) -> Any:
        def value(kind: str, key: str) -> Any:
            if kind == "tag":
                return group.tags.get(key)
            times = {"creation_time": group.created_ns, "last_update_time": group.changed_ns}
            return group.name if key == "name" else milliseconds(times[key])

        return value

    every = context.services.tracking.groups(context.tenant)
    found = [g for g in every if _is_shown(g.removed_ns, page.view_type) and is_met(wanted, get(g))]
    found.sort(key=lambda group: -int(group.id))
    shown, token = paged(ordered(found, page.order_by, _GROUP_FIELDS, get), page)
    more = {"next_page_token": token} if token else {}
    return json_reply({"experiments": [_group_document(group) for group in shown], **more})


async def update_experiment(context: Context) -> Reply:
    """Rename a group of runs."""
    body = await read(context, _Group)
    return await _change_group(context, body, name=needed(body.new_name, "new_name"))


async def tag_experiment(context: Context) -> Reply:
    """Set a tag of a group of runs."""
    body = await read(context, _Group)
    return await _change_group(context, body, tags={needed(body.key, "key"): body.value})


async def delete_experiment(context: Context) -> Reply:
    """Remove a group of runs; its runs stay, and it can be brought back."""
    return await _change_group(context, await read(context, _Group), is_removed=True)


async def restore_experiment(context: Context) -> Reply:
    """Bring a removed group of runs back."""
    return await _change_group(context, await read(context, _Group), is_removed=False)


async def _change_group(context: Context, body: _Group, **change: Any) -> Reply:
    await context.services.tracking.change_group(
        context.tenant,
        needed(body.experiment_id, "experiment_id"),
        actor=context.principal.id,
        **change,
    )
    return json_reply({})


def _group_document(group: RunGroup) -> dict[str, Any]:
    return {
        "experiment_id": group.id,
        "name": group.name,
        "artifact_location": f"{places.SCHEME}{group.id}",
        "lifecycle_stage": "deleted" if group.removed_ns else "active",
        "creation_time": milliseconds(group.created_ns),
        "last_update_time": milliseconds(group.changed_ns),
        "tags": listed(group.tags),
    }


# --- runs ----------------------------------------------------------------------------------------


async def create_run(context: Context) -> Reply:
    """Begin a run."""
    body = await read(context, _Run)
    tags = pairs(body.tags)
    run = await context.services.tracking.start_run(
        context.tenant,
        group_id=body.experiment_id or "0",
        name=body.run_name or tags.get(_NAME_TAG, ""),
        started_ms=max(body.start_time, 0),
        tags=tags,
        actor=context.principal.id,
    )
    return json_reply({"run": run_document(run)})


async def get_run(context: Context) -> Reply:
    """A run with its parameters, tags and the last value of each metric."""
    run_id = context.request.query.get("run_id") or asked(context, "run_uuid")
    run = context.services.tracking.run(context.tenant.id, run_id)
    return json_reply({"run": run_document(run)})


async def update_run(context: Context) -> Reply:
    """End a run, or rename it."""
    body = await read(context, _Run)
    if body.status and body.status not in STATUSES:
        raise InputInvalid(f"A run is {', '.join(STATUSES)}.")
    run = await _log(
        context,
        RunChanged(
            run_id=body.id,
            name=body.run_name,
            status=body.status,
            ended_ms=max(body.end_time, 0),
            tags={_NAME_TAG: body.run_name} if body.run_name else {},
        ),
    )
    return json_reply({"run_info": run_document(run)["info"]})


async def delete_run(context: Context) -> Reply:
    """Remove a run; it can be brought back, and its files stay until then."""
    body = await read(context, _Run)
    await _log(context, RunChanged(run_id=body.id, removed=1))
    return json_reply({})


async def restore_run(context: Context) -> Reply:
    """Bring a removed run back."""
    body = await read(context, _Run)
    await _log(context, RunChanged(run_id=body.id, removed=-1))
    return json_reply({})


async def log_batch(context: Context) -> Reply:
    """Log parameters, metrics and tags of a run in one step."""
    body = await read(context, _Run)
    await _log(
        context,
        RunChanged(
            run_id=body.id,
            params=pairs(body.params),
            tags=pairs(body.tags),
            metrics=metrics_from(body.metrics),
        ),
    )
    await log_to_models(context, body.metrics)
    return json_reply({})


async def log_metric(context: Context) -> Reply:
    """Log one metric value."""
    body = await read(context, _One)
    needed(body.key, "key")
    run_id = needed(body.run_id or body.run_uuid, "run_id")
    await _log(context, RunChanged(run_id=run_id, metrics=metrics_from([body])))
    await log_to_models(context, [body])
    return json_reply({})


async def log_parameter(context: Context) -> Reply:
    """Log one parameter."""
    body = await read(context, _Run)
    await _log(context, RunChanged(run_id=body.id, params={needed(body.key, "key"): body.value}))
    return json_reply({})


async def set_tag(context: Context) -> Reply:
    """Set one tag of a run."""
    body = await read(context, _Run)
    await _log(context, RunChanged(run_id=body.id, tags={needed(body.key, "key"): body.value}))
    return json_reply({})


async def delete_tag(context: Context) -> Reply:
    """Remove one tag of a run."""
    body = await read(context, _Run)
    if body.key not in context.services.tracking.run(context.tenant.id, body.id).tags:
        raise NotFound("The run has no tag of this name.")
    await _log(context, RunChanged(run_id=body.id, untagged=(body.key,)))
    return json_reply({})


async def log_outputs(context: Context) -> Reply:
    """Say which logged models a run made."""
    body = await read(context, _Run)
    outputs = tuple(one.model_id for one in body.models)
    for model_id in outputs:
        context.services.tracking.draft(context.tenant.id, model_id)
    await _log(context, RunChanged(run_id=body.id, outputs=outputs))
    return json_reply({})


async def log_model_of_run(context: Context) -> Reply:
    """Say that a run logged a model, the way of MLflow 2: in a tag, of which the newest fit."""
    body = await read(context, _Run)
    try:
        told: Any = msgspec.json.decode(body.model_json, type=dict[str, Any])
        known = context.services.tracking.run(context.tenant.id, body.id).tags.get(_HISTORY, "[]")
        history: list[Any] = [*msgspec.json.decode(known, type=list[Any]), told]
    except (msgspec.MsgspecError, RecursionError):
        raise InputInvalid("'model_json' is the JSON document of a model.") from None
    while len(text := msgspec.json.encode(history).decode()) > TAG_CHARACTERS_MAX:
        if len(history) > 1:
            history = history[1:]
        else:
            history = [{key: told[key] for key in _HEAD if key in told}] if told else []
            told = {}
    await _log(context, RunChanged(run_id=body.id, tags={_HISTORY: text}))
    return json_reply({})


async def log_inputs(context: Context) -> Reply:
    """Say which data sets and logged models a run used; only what is said of them is kept."""
    body = await read(context, _Run)
    inputs = tuple(one.model_id for one in body.models)
    for model_id in inputs:
        context.services.tracking.draft(context.tenant.id, model_id)
    data = tuple(
        DataSet(
            name=needed(one.dataset.name, "dataset.name"),
            digest=needed(one.dataset.digest, "dataset.digest"),
            kind=one.dataset.source_type,
            source=one.dataset.source,
            schema=one.dataset.schema,
            profile=one.dataset.profile,
            tags=pairs(one.tags),
        )
        for one in body.datasets
    )
    await _log(context, RunChanged(run_id=body.id, inputs=inputs, data=data))
    return json_reply({})


async def metric_history(context: Context) -> Reply:
    """Every value of one metric of a run, in the order they came."""
    run = context.services.tracking.run(
        context.tenant.id, context.request.query.get("run_id") or asked(context, "run_uuid")
    )
    key = asked(context, "metric_key")
    page = Page(
        max_results=context.request.int_query("max_results", default=1000, low=1, high=10**9),
        page_token=context.request.query.get("page_token", ""),
    )
    shown, token = paged([metric for metric in run.metrics if metric.key == key], page)
    more = {"next_page_token": token} if token else {}
    return json_reply({"metrics": [metric_document(metric) for metric in shown], **more})


async def search_runs(context: Context) -> Reply:
    """Runs of some groups that match a filter, the last started first."""
    page = await read(context, Page)
    wanted = conditions(page.filter, _RUN_FIELDS)

    def get(run: Run) -> Any:
        last = last_of(run.metrics)
        info = run_document(run)["info"]

        def value(kind: str, key: str) -> Any:
            if kind == "metric":
                return float(last[key].value) if key in last else None
            if kind == "attribute":
                return info["start_time" if key == "created" else key]
            return (run.tags if kind == "tag" else run.params).get(key)

        return value

    found = [
        run
        for run in context.services.tracking.of(context.tenant.id).runs.values()
        if run.group_id in page.experiment_ids
        and _is_shown(run.removed_ns, page.run_view_type)
        and is_met(wanted, get(run))
    ]
    found.sort(key=lambda run: (-run.started_ms, run.id))
    shown, token = paged(ordered(found, page.order_by, _RUN_FIELDS, get), page)
    more = {"next_page_token": token} if token else {}
    return json_reply({"runs": [run_document(run) for run in shown], **more})


async def _log(context: Context, event: RunChanged) -> Run:
    return await context.services.tracking.change_run(
        context.tenant.id, event, actor=context.principal.id
    )


async def log_to_models(context: Context, measures: list[Any]) -> None:
    """Log the metric values that name a logged model to that model as well."""
    for model_id in dict.fromkeys(one.model_id for one in measures if one.model_id):
        own = metrics_from([one for one in measures if one.model_id == model_id])
        await context.services.tracking.log_to_draft(
            context.tenant.id, model_id, own, actor=context.principal.id
        )


def metrics_from(measures: list[Any]) -> tuple[Metric, ...]:
    """Metric values as they are kept. Raises InputInvalid."""
    found = []
    for one in measures:
        try:
            value = float(one.value)
        except ValueError:
            raise InputInvalid("The value of a metric is a number, NaN or Infinity.") from None
        if not -(2**53) < one.step < 2**53 or not 0 <= one.timestamp < 2**53:
            raise InputInvalid("A metric's step or timestamp is out of bounds.")
        found.append(Metric(key=one.key, value=repr(value), step=one.step, time_ms=one.timestamp))
    return tuple(found)


def metric_document(metric: Metric) -> dict[str, Any]:
    """A metric value; what JSON has no number for is a text, as protobuf writes it."""
    value = float(metric.value)
    text = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return {
        "key": metric.key,
        "value": value if math.isfinite(value) else text,
        "timestamp": metric.time_ms,
        "step": metric.step,
    }


def last_of(metrics: tuple[Metric, ...]) -> dict[str, Metric]:
    """The last value of each metric: of the highest step, then the latest."""
    found: dict[str, Metric] = {}
    for metric in metrics:
        known = found.get(metric.key)
        if known is None or (metric.step, metric.time_ms) >= (known.step, known.time_ms):
            found[metric.key] = metric
    return found


def run_document(run: Run) -> dict[str, Any]:
    """A run."""
    return {
        "info": {
            "run_id": run.id,
            "run_uuid": run.id,
            "run_name": run.name,
            "experiment_id": run.group_id,
            "user_id": run.created_by,
            "status": run.status,
            "start_time": run.started_ms,
            "end_time": run.ended_ms,
            "artifact_uri": places.run_uri(run),
            "lifecycle_stage": "deleted" if run.removed_ns else "active",
        },
        "data": {
            "metrics": [metric_document(one) for one in last_of(run.metrics).values()],
            "params": listed(run.params),
            "tags": listed(run.tags),
        },
        "inputs": _inputs_of(run),
        "outputs": {"model_outputs": [{"model_id": one, "step": 0} for one in run.outputs]},
    }


def _inputs_of(run: Run) -> dict[str, Any]:
    return {
        "dataset_inputs": [
            {
                "tags": listed(one.tags),
                "dataset": {
                    "name": one.name,
                    "digest": one.digest,
                    "source_type": one.kind,
                    "source": one.source,
                    "schema": one.schema,
                    "profile": one.profile,
                },
            }
            for one in run.data
        ],
        "model_inputs": [{"model_id": one} for one in run.inputs],
    }


def _is_shown(removed_ns: int, view: str) -> bool:
    return view == "ALL" or bool(removed_ns) == (view == "DELETED_ONLY")


_E, _R = "/experiments", "/runs"
_RUN_ID = ("run_id", "run_uuid")

OPERATIONS = (
    operation("POST", f"{_E}/create", "run:write", create_experiment, "Create an experiment"),
    operation(
        "GET", f"{_E}/get", "run:read", get_experiment, "Get an experiment",
        query=query("experiment_id"),
    ),
    operation(
        "GET", f"{_E}/get-by-name", "run:read", get_experiment_by_name, "Get an experiment by name",
        query=query("experiment_name"),
    ),
    operation("POST", f"{_E}/search", "run:read", search_experiments, "Search experiments"),
    operation("POST", f"{_E}/update", "run:write", update_experiment, "Rename an experiment"),
    operation("POST", f"{_E}/delete", "run:write", delete_experiment, "Delete an experiment"),
    operation("POST", f"{_E}/restore", "run:write", restore_experiment, "Restore an experiment"),
    operation(
        "POST", f"{_E}/set-experiment-tag", "run:write", tag_experiment, "Tag an experiment"
    ),
    operation("POST", f"{_R}/create", "run:write", create_run, "Begin a run"),
    operation("GET", f"{_R}/get", "run:read", get_run, "Get a run", query=query(*_RUN_ID)),
    operation("POST", f"{_R}/update", "run:write", update_run, "End or rename a run"),
    operation("POST", f"{_R}/delete", "run:write", delete_run, "Delete a run"),
    operation("POST", f"{_R}/restore", "run:write", restore_run, "Restore a run"),
    operation("POST", f"{_R}/log-batch", "run:write", log_batch, "Log to a run"),
    operation("POST", f"{_R}/log-metric", "run:write", log_metric, "Log a metric value"),
    operation("POST", f"{_R}/log-parameter", "run:write", log_parameter, "Log a parameter"),
    operation("POST", f"{_R}/set-tag", "run:write", set_tag, "Tag a run"),
    operation("POST", f"{_R}/delete-tag", "run:write", delete_tag, "Untag a run"),
    operation("POST", f"{_R}/log-model", "run:write", log_model_of_run, "Log a run's model"),
    operation("POST", f"{_R}/log-inputs", "run:write", log_inputs, "Log what a run used"),
    operation("POST", f"{_R}/outputs", "run:write", log_outputs, "Log a run's models"),
    operation("POST", f"{_R}/search", "run:read", search_runs, "Search runs"),
    operation(
        "GET", "/metrics/get-history", "run:read", metric_history, "Every value of a metric",
        query=query(*_RUN_ID, "metric_key", "max_results", "page_token"),
    ),
)  # fmt: skip
