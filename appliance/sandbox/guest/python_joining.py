"""The Python runner, its BATCH: several calls in one call of the model, its answer cut up again.

Owns: which calls are joined, how, and what happens when that does not go well; standard library
only; executed by ``python_serve`` at the first BATCH; never imported by the appliance.
Never: is trusted. Model code runs in this very process and may do to it what it likes.
Read next: ``PROTOCOL.md``, "Several calls in one frame".
"""

from __future__ import annotations

import time
from itertools import chain

TYPE_CHECKING = False  # see python_runner
if TYPE_CHECKING:
    from typing import Any

DEPTH_MAX = 32
STRIKES = 3
PAUSE_MAX = 256
_INT_MAX = 2**63 - 1


def form(values: list[Any], depth: int = 0) -> Any:
    """What values have in common if they may share an array or a table; None if they may not."""
    kinds = set(map(type, values))
    if depth > DEPTH_MAX:
        return None
    if kinds == {list}:
        lengths = set(map(len, values))
        size = lengths.pop()
        if lengths:
            return None
        inner = form(list(chain.from_iterable(values)), depth + 1) if size else ()
        return None if inner is None else (size, inner)
    if kinds == {dict}:
        names = tuple(values[0])
        if any(tuple(value) != names for value in values):
            return None
        columns = [form([value[name] for value in values], depth + 1) for name in names]
        return None if None in columns else (names, tuple(columns))
    if list in kinds or dict in kinds:
        return None
    if int in kinds:
        whole = [value for value in values if type(value) is int]
        if max(whole) > _INT_MAX or min(whole) < -_INT_MAX:
            return None
        if float in kinds:
            kinds.discard(int)
    return frozenset(kinds)


def rows_in(value: Any, axis: int) -> int:
    """How many rows a list has along an axis; 0 if it has no such axis."""
    if type(value) is not list or not value:
        return 0
    if axis == 0:
        return len(value)
    if set(map(type, value)) != {list}:
        return 0
    lengths = set(map(len, value))
    return lengths.pop() if len(lengths) == 1 else 0


def form_in(value: list[Any], axis: int) -> Any:
    """The form of the rows of a list that has some."""
    if axis == 0:
        return form(value)
    inner = form(list(chain.from_iterable(value)))
    return None if inner is None else (len(value), inner)


def joined(values: list[Any], axis: int) -> list[Any]:
    """Lists joined along an axis."""
    if axis == 0:
        return list(chain.from_iterable(values))
    return [list(chain.from_iterable(parts)) for parts in zip(*values, strict=True)]


def listed(value: Any) -> Any:
    """An answer, or a member of one, as plain lists where it is some kind of array."""
    convert = getattr(value, "tolist", None)
    value = convert() if callable(convert) else value
    return list(value) if isinstance(value, tuple) else value


class Call:
    """One caller's call."""

    def __init__(self, place: int, body: bytes | bytearray) -> None:
        """Number ``place`` of its batch."""
        self.place = place
        self.body = body
        self.inputs: Any = None
        self.rows = 0
        self.form: Any = None


class Plan:
    """What a BATCH says about joining."""

    def __init__(self, header: dict[str, Any]) -> None:
        """Read the header."""
        self.axis = header.get("axis", 0)
        self.max_rows = header.get("max_rows", 1)
        self.inputs = frozenset(header.get("inputs") or ())
        self.outputs = frozenset(header.get("outputs") or ())

    def look(self, call: Call, dumps: Any) -> None:
        """Find out how many rows a call has, and its form; None where it has to run alone."""
        value = call.inputs
        if type(value) is list:
            call.rows = rows_in(value, self.axis)
            call.form = form_in(value, self.axis) if call.rows else None
        elif type(value) is dict and value:
            names = self.inputs or value.keys()
            sizes = {rows_in(value.get(name), self.axis) for name in names}
            if len(sizes) != 1 or sizes == {0}:
                return
            call.rows = sizes.pop()
            parts = [
                form_in(member, self.axis) if name in names else dumps(member)
                for name, member in value.items()
            ]
            call.form = None if None in parts else (tuple(value), tuple(parts))

    def join(self, calls: list[Call]) -> Any:
        """The inputs of calls of one form as one."""
        values = [call.inputs for call in calls]
        first = values[0]
        if type(first) is list:
            return joined(values, self.axis)
        return {
            name: joined([value[name] for value in values], self.axis)
            if not self.inputs or name in self.inputs
            else member
            for name, member in first.items()
        }

    def cut(self, answer: Any, sizes: list[int]) -> list[Any] | None:
        """The answer of each call; None if this is not one row for each of theirs."""
        answer = listed(answer)
        if isinstance(answer, list):
            return self.cut_list(answer, sizes)
        if not isinstance(answer, dict) or not answer or not self.outputs <= answer.keys():
            return None
        found: list[dict[Any, Any]] = [{} for _ in sizes]
        for name, member in answer.items():
            if self.outputs and name not in self.outputs:
                pieces = [member] * len(sizes)
            else:
                cut = self.cut_list(listed(member), sizes)
                if cut is None:
                    return None
                pieces = cut
            for one, piece in zip(found, pieces, strict=True):
                one[name] = piece
        return found

    def cut_list(self, value: Any, sizes: list[int]) -> list[Any] | None:
        """A list cut along the axis; None if it has not as many rows as there are."""
        if not isinstance(value, list):
            return None
        if self.axis:
            value = [listed(row) for row in value]
        if rows_in(value, self.axis) != sum(sizes):
            return None
        pieces, end = [], 0
        for size in sizes:
            start, end = end, end + size
            pieces.append([row[start:end] for row in value] if self.axis else value[start:end])
        return pieces


class Joiner:
    """Answers BATCH frames."""

    def __init__(self, channel: Any, predict: Any, tools: dict[str, Any]) -> None:
        """Answer over ``channel`` with ``predict``; ``tools`` are the members of python_serve."""
        self.channel = channel
        self.predict = predict
        self.parse = tools["inputs_from_body"]
        self.encode = tools["body_from_answer"]
        self.report = tools["report"]
        self.flush = tools["flush_output"]
        self.fault = tools["Fault"]
        self.strikes = 0
        self.paused = 0
        self.ident = ""
        self.group = 0
        self.content_type = ""
        self.reply_max = 0

    def answer(self, header: dict[str, Any], body: bytes | bytearray) -> None:
        """Answer every call of one frame."""
        self.ident, self.group = header["id"], 0
        self.content_type, self.reply_max = header["content_type"], header["reply_bytes_max"]
        plan, calls, end = Plan(header), [], 0
        started = time.perf_counter_ns()
        for place, size in enumerate(header["sizes"]):
            start, end = end, end + size
            call = Call(place, body[start:end])
            try:
                call.inputs = self.parse(self.channel.json, self.content_type, call.body)
                plan.look(call, self.channel.json.dumps)
            except BaseException as error:
                self.report(self.channel, self.ident, error, place)
            else:
                calls.append(call)
        for group in groups_of(calls, plan.max_rows):
            if len(group) > 1 and self.may_join():
                self.run_joined(plan, group, started)
            else:
                self.run_each(group, started)
            started = time.perf_counter_ns()

    def may_join(self) -> bool:
        """Whether joining went well enough lately."""
        self.paused = max(0, self.paused - 1)
        return not self.paused

    def run_joined(self, plan: Plan, calls: list[Call], started: int) -> None:
        """One call of the model for all of them, or one for each if that does not go well."""
        why = "rows"
        try:
            sizes = [call.rows for call in calls]
            pieces = plan.cut(self.predict(plan.join(calls)), sizes)
        except BaseException:
            why, pieces = "raised", None
        self.flush()
        if pieces is not None:
            self.strikes = 0
            self.send(calls, pieces, started)
            return
        self.strikes += 1
        if self.strikes >= STRIKES:
            self.paused = min(PAUSE_MAX, 8 << min(self.strikes - STRIKES, 16)) + 1
        self.channel.send({"type": "SPLIT", "id": self.ident, "kind": why})
        for call in calls:  # the model may have changed what it was given
            call.inputs = self.parse(self.channel.json, self.content_type, call.body)
        self.run_each(calls, time.perf_counter_ns())

    def run_each(self, calls: list[Call], started: int) -> None:
        """One call of the model for each."""
        for call in calls:
            try:
                piece = self.predict(call.inputs)
            except BaseException as error:
                self.flush()
                self.report(self.channel, self.ident, error, call.place)
            else:
                self.flush()
                self.send([call], [piece], started)
            call.inputs = None
            started = time.perf_counter_ns()

    def send(self, calls: list[Call], pieces: list[Any], started: int) -> None:
        """The answers of one call of the model, in as few frames as they fit into."""
        ready: list[tuple[Call, bytes]] = []
        kind, held, rows = "", 0, sum(call.rows for call in calls)
        common = {"group": self.group, "calls": len(calls), "group_rows": rows}
        self.group += 1
        for call, piece in zip(calls, pieces, strict=True):
            try:
                content_type, body = self.encode(self.channel.json, piece)
                if len(body) > self.reply_max:
                    raise self.fault("large", f"The answer has {len(body)} bytes.")
            except BaseException as error:
                self.report(self.channel, self.ident, error, call.place)
                continue
            if ready and (content_type != kind or held + len(body) > self.reply_max):
                self.send_part(ready, kind, common, started)
                ready, held = [], 0
            kind, held = content_type, held + len(body)
            ready.append((call, body))
        if ready:
            self.send_part(ready, kind, common, started)

    def send_part(
        self, ready: list[tuple[Call, bytes]], kind: str, common: dict[str, Any], started: int
    ) -> None:
        """One PART."""
        header = {
            "type": "PART",
            "id": self.ident,
            "content_type": kind,
            "members": [call.place for call, _ in ready],
            "sizes": [len(body) for _, body in ready],
            "rows": [call.rows for call, _ in ready],
            "compute_us": (time.perf_counter_ns() - started) // 1000,
            **common,
        }
        self.channel.send(header, b"".join([body for _, body in ready]))


def groups_of(calls: list[Call], max_rows: int) -> list[list[Call]]:
    """Calls of one form together, with at most ``max_rows`` rows, in the order of their first."""
    groups: list[list[Call]] = []
    filling: dict[Any, tuple[list[Call], int]] = {}
    for call in calls:
        group, rows = filling.get(call.form, ([], 0)) if call.form is not None else ([], 0)
        if not group or rows + call.rows > max_rows:
            group, rows = [], 0
            groups.append(group)
        group.append(call)
        if call.form is not None:
            filling[call.form] = (group, rows + call.rows)
    return groups
