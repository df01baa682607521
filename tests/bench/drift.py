"""What drift costs: per call, per kept minute, per look; run ``python tests/bench/drift.py``.

Prints the figures of docs/drift.md, in processor time: pure Python on one core, no appliance.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from appliance.drift import statistics
from appliance.drift.scores import scores
from appliance.drift.sketch import Sketch, bytes_of, plan_of, sketch_from_bytes
from appliance.records import Thresholds
from appliance.watch.counting import Seen, add_call

COLUMNS, ROWS = 30, 100_000


def seconds(work, times: int) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - started) / times)
    return best


def main() -> None:
    """Measure and print."""
    rng = random.Random(0)
    columns = {f"c{n}": [rng.gauss(n, 1) for _ in range(ROWS)] for n in range(COLUMNS)}
    outputs = {"prediction": [rng.random() for _ in range(ROWS)]}
    started = time.process_time()
    plan, base = plan_of(columns, outputs, ROWS)
    print(f"baseline of {ROWS} records: {time.process_time() - started:.1f} s")
    current = Sketch.of(plan)
    for count in (1, 100):
        rows = [[rng.gauss(n, 1) for n in range(COLUMNS)] for _ in range(count)]
        seen = Seen(
            model_id="m", number=1, content_type="application/json",
            body=json.dumps({"rows": rows}).encode(),
            reply=json.dumps({"predictions": [0.5] * count}).encode(),
        )  # fmt: skip
        took = seconds(lambda seen=seen: add_call(plan, current, seen), 2000 // count)
        print(f"a call of {count} records: {took * 1e6:.0f} us, {took / count * 1e6:.1f} a record")
    minute = Sketch.of(plan)
    for _ in range(600):
        rows = [[rng.gauss(n, 1) for n in range(COLUMNS)]]
        body = json.dumps({"rows": rows}).encode()
        add_call(plan, minute, Seen(model_id="m", number=1, content_type="", body=body, reply=b"1"))
    data = bytes_of(minute)
    took = seconds(lambda: bytes_of(minute), 50)
    print(f"a kept minute of 600 calls: {len(data)} bytes, {took * 1e3:.1f} ms")
    total = Sketch.of(plan)
    took = seconds(lambda: total.add(sketch_from_bytes(data)), 50)
    print(f"adding a kept minute: {took * 1e6:.0f} us, a day of them {took * 1440:.2f} s")
    took = seconds(lambda: scores(plan, base, minute, Thresholds()), 20)
    print(f"judging a version: {took * 1e3:.1f} ms")
    one, other = ([rng.random() for _ in range(2000)] for _ in range(2))
    print(
        f"exact KS of 2000 and 2000 values: {seconds(lambda: statistics.ks(one, other), 1):.2f} s"
    )


if __name__ == "__main__":
    main()
