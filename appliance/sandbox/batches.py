"""Batches that are open on a link: what may answer them, and that each call gets one answer.

Owns: the header of BATCH, the rules for PART, SPLIT and ERR in answer to it, and their deadline.
Never: reads or writes a socket (``link`` does), or decides which calls share a frame (``joining``).
Read next: ``PROTOCOL.md``, "Several calls in one frame".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from appliance.records import (
    Merged,
)
from appliance.sandbox.frames import (
    CONTENT_TYPE,
    GuestFault,
    Header,
    LinkLost,
    clean,
    fault_from_header,
)
from appliance.sandbox.spec import Batch, Reply

CALLS_MAX = 256
"""Calls in one frame: their sizes have to fit into its header."""
_ROWS_MAX = 1 << 40

Faulted = Callable[[int, GuestFault], object]


def header_of(batch: Batch) -> dict[str, Any]:
    """The header of a BATCH frame."""
    first, batching = batch.requests[0], batch.batching
    return {
        "type": "BATCH",
        "id": batch.id,
        "content_type": first.content_type,
        "sizes": [len(request.body) for request in batch.requests],
        "axis": batching.axis,
        "max_rows": batching.max_rows,
        "inputs": batching.inputs,
        "outputs": batching.outputs,
        "reply_bytes_max": first.reply_bytes_max,
    }


class OpenBatch:
    """One batch that was sent; ``done`` when every call of it has had its answer."""

    def __init__(self, batch: Batch, faulted: Faulted) -> None:
        self.batch = batch
        self.faulted = faulted
        self.left = set(range(len(batch.requests)))
        self.splits_left = len(batch.requests)
        self.timeout_s = batch.requests[0].timeout_ms / 1000
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        """What is left of it will not be answered."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # retrieved here if nobody waits any more

    def require(self, header: Header, body_bytes: int) -> None:
        """Return if a frame may answer this batch now.

        Raises:
            LinkLost: it breaks the protocol.
        """
        if header.id != self.batch.id:
            raise LinkLost("an answer to a batch that is not the oldest")
        if header.type == "PART":
            self._require_part(header, body_bytes)
        elif header.type == "ERR":
            if header.member not in self.left or body_bytes:
                raise LinkLost("an ERR for no call of the batch that waits")
        elif header.type != "SPLIT" or body_bytes or not self.splits_left:
            raise LinkLost(f"{clean(header.type, 20)} is not allowed in a batch")

    def _require_part(self, header: Header, body_bytes: int) -> None:
        members, sizes = header.members, header.sizes
        is_known = self.left.issuperset(members) and len(set(members)) == len(members)
        if not members or not is_known:
            raise LinkLost("a PART for calls that do not wait")
        if not len(sizes) == len(members) == len(header.rows):
            raise LinkLost("a PART with more or fewer sizes than calls")
        if min(sizes) < 0 or sum(sizes) != body_bytes:
            raise LinkLost("a PART whose sizes are not those of its body")
        if body_bytes > self.batch.requests[0].reply_bytes_max:
            raise LinkLost("a PART is over its cap")
        if not CONTENT_TYPE.fullmatch(header.content_type):
            raise LinkLost("the answer's content type is not printable text")

    def take(self, header: Header, body: bytes) -> None:
        """Hand on what a frame says that ``require`` let pass."""
        if header.type == "PART":
            self._take_part(header, body)
        elif header.type == "ERR":
            self.left.discard(header.member)
            self.faulted(header.member, fault_from_header(header))
        else:
            self.splits_left -= 1
            self.batch.split("rows" if header.kind == "rows" else "raised")
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def _take_part(self, header: Header, body: bytes) -> None:
        answered, content_type = self.batch.answered, header.content_type
        compute_us = min(max(header.compute_us, 0), int(self.timeout_s * 1e6))
        calls = min(max(header.calls, len(header.members)), len(self.batch.requests))
        group_rows = min(max(header.group_rows, 0), _ROWS_MAX)
        call_id = f"{self.batch.id}.{min(max(header.group, 0), 2 * CALLS_MAX)}"
        end = 0
        for member, size, rows in zip(header.members, header.sizes, header.rows, strict=True):
            start, end = end, end + size
            self.left.discard(member)
            own_rows = min(max(rows, 0), group_rows)
            answered(
                member,
                Reply(
                    content_type=content_type,
                    body=body[start:end],
                    compute_us=compute_us,
                    merged=Merged(id=call_id, calls=calls, rows=group_rows, own_rows=own_rows),
                ),
            )


class OpenBatches:
    """The batches open on one link; each frame moves the deadline of the oldest."""

    def __init__(self) -> None:
        self._open: deque[OpenBatch] = deque()
        self._moved_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, batch: OpenBatch) -> None:
        """A batch is about to be sent."""
        self._open.append(batch)
        if len(self._open) == 1:
            self._move()

    @property
    def oldest(self) -> OpenBatch:
        """The one that has to be answered first."""
        return self._open[0]

    def moved(self) -> None:
        """A frame of the oldest came; it is finished if that was the last."""
        if not self._open[0].left:
            self._open.popleft()
        self._move()

    def remove(self, batch: OpenBatch) -> None:
        """Nobody waits for it any more."""
        if batch in self._open:
            self._open.remove(batch)
            self._move()

    def fail(self, error: LinkLost) -> None:
        """The link is lost."""
        for batch in self._open:
            batch.fail(LinkLost(error.protocol))

    def _move(self) -> None:
        loop = asyncio.get_running_loop()
        self._moved_at = loop.time()
        if not self._open:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._timer = loop.call_at(self._moved_at + self.oldest.timeout_s, self._look)

    def _look(self) -> None:
        """The deadline as it was when the timer was set; it may have moved since."""
        self._timer = None
        if not self._open:
            return
        loop = asyncio.get_running_loop()
        due = self._moved_at + self.oldest.timeout_s
        if loop.time() >= due:
            self.oldest.fail(TimeoutError())
        else:
            self._timer = loop.call_at(due, self._look)
