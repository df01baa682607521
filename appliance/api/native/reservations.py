"""What is kept warm: a number of sandboxes of a version, loaded before anybody calls.

Owns: the three operations on a version's reservation.
Never: makes a sandbox; the pool does, as soon as the reservation is on record.
Read next: ``appliance.reservations``.
"""

from __future__ import annotations

from typing import Literal

from appliance import clock, wire
from appliance.api import shapes
from appliance.api.dispatch import Context
from appliance.api.native.models import model_of, version_of
from appliance.api.operation import Operation
from appliance.errors import (
    Gone,
    InputInvalid,
    LimitsUnenforced,
    Malformed,
    PodmanUnavailable,
    ReservationRefused,
)
from appliance.records import Reservation
from appliance.wire import Reply, json_reply


async def show_reservation(context: Context) -> Reply:
    """How many of a version's sandboxes are kept loaded, and how many are; 404 without one."""
    return json_reply(_document(context, _reservation(context)))


async def set_reservation(context: Context) -> Reply:
    """Keep this many sandboxes of a version loaded, from now on and after every restart.

    They count towards what the appliance may run, end neither when idle nor for others' calls, and
    are made again when they fail. The answer does not wait until they are loaded. Retiring the
    version ends its reservation.
    """
    version = version_of(context, model_of(context))
    body = await context.request.json(shapes.ReservationNew)
    made = await context.services.reservations.set(
        version=version, warm=body.warm, principal_id=context.principal.id
    )
    return json_reply(_document(context, made))


async def remove_reservation(context: Context) -> Reply:
    """Have a version's sandboxes made on demand again; those there end when idle."""
    _reservation(context)
    await context.services.reservations.remove(
        version=version_of(context, model_of(context)), principal_id=context.principal.id
    )
    return Reply(status=204)


def _reservation(context: Context) -> Reservation:
    model = model_of(context)
    found = context.snapshot.reservation(model.id, version_of(context, model).number)
    if found is None:
        raise wire.not_found()
    return found


def _document(context: Context, one: Reservation) -> shapes.ReservationDoc:
    now = context.services.reservations.progress(one)
    state: Literal["kept", "starting", "failing"] = "failing" if now.problem else "starting"
    if now.ready >= one.warm:
        state = "kept"
    return shapes.ReservationDoc(
        tenant=context.tenant.name,
        model=context.request.params["model"],
        version=one.number,
        warm=one.warm,
        ready=now.ready,
        state=state,
        problem=now.problem,
        retry_s=now.retry_s,
        set_at=clock.text_from_ns(one.set_ns),
        set_by=one.set_by,
    )


_PATH = "/api/v1/models/{tenant}/{model}/versions/{version}/reservation"

OPERATIONS = (
    Operation(
        method="GET",
        path=_PATH,
        permission="model:read",
        handler=show_reservation,
        summary="Show what of a version is kept warm",
        reply=shapes.ReservationDoc,
    ),
    Operation(
        method="PUT",
        path=_PATH,
        permission="reservation:set",
        handler=set_reservation,
        summary="Keep sandboxes of a version warm",
        body=shapes.ReservationNew,
        reply=shapes.ReservationDoc,
        problems=(
            Malformed,
            InputInvalid,
            Gone,
            ReservationRefused,
            LimitsUnenforced,
            PodmanUnavailable,
        ),
    ),
    Operation(
        method="DELETE",
        path=_PATH,
        permission="reservation:set",
        handler=remove_reservation,
        summary="Keep no sandbox of a version warm",
        status=204,
    ),
)
