"""kill -9 while a table is scored: the output is the same, byte for byte, as without.

``APPLIANCE_TEST_KILLS`` sets the number of kills (three by default), ``APPLIANCE_TEST_BATCH_ROWS``
the number of rows (3,000 by default). What it takes is printed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import httpx
import psutil
import pytest
from running import RunningAppliance

pytestmark = [pytest.mark.podman, pytest.mark.timeout(7200)]
KILLS = int(os.environ.get("APPLIANCE_TEST_KILLS", "3"))
ROWS = int(os.environ.get("APPLIANCE_TEST_BATCH_ROWS", "3000"))
CHUNK_ROWS = max(100, ROWS // 500)
MODEL = {
    "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
    "model.py": (
        b"import time\n"
        b"class Model:\n"
        b"    def __init__(self, path): pass\n"
        b"    def predict(self, inputs):\n"
        b"        time.sleep(0.05)\n"
        b"        return {'score': [a * 2 + b for a, b, _ in inputs['rows']]}\n"
    ),
}
ENDS = ("succeeded", "failed", "canceled")
DEADLINE_S = 120 + ROWS / 200


@pytest.fixture
def appliance(tmp_path: Path, run_root: Path) -> Iterator[RunningAppliance]:
    made = RunningAppliance(
        tmp_path / "data", run_root, jobs__running_max=2, sandbox__instances_per_version_max=3
    )
    made.initialise()
    yield made
    made.close()


def submit(client: httpx.Client, path: Path) -> dict[str, Any]:
    answer = client.post(
        "/api/v1/models/acme/double/batch",
        content=path.read_bytes(),
        params={"chunk_rows": CHUNK_ROWS},
        timeout=600,
    )
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def show(appliance: RunningAppliance, secret: str, batch: dict[str, Any]) -> dict[str, Any]:
    with appliance.https(secret) as client:
        return dict(client.get(batch["urls"]["get"]).json())


def ended(appliance: RunningAppliance, secret: str, batch: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with appliance.https(secret) as client:
            found = dict(client.get(batch["urls"]["get"], params={"wait_s": 10}).json())
        if found["status"] in ENDS:
            return found
    raise AssertionError(found)


def output(appliance: RunningAppliance, secret: str, batch: dict[str, Any]) -> bytes:
    with appliance.https(secret) as client:
        answer = client.get(f"{batch['urls']['get']}/output", timeout=600)
    assert answer.status_code == 200, answer.text
    return answer.content


def peak_mb(appliance: RunningAppliance) -> int:
    """The most memory the appliance's own process has had, in MB."""
    assert appliance.process is not None
    status = Path(f"/proc/{appliance.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def test_kills_at_any_moment_change_no_byte_of_the_output(
    appliance: RunningAppliance, tmp_path: Path
) -> None:
    draw = random.Random(8)
    path = tmp_path / "rows.parquet"
    query = f"SELECT i AS a, i * 0.5 AS b, 'row ' || i AS t FROM range({ROWS}) t(i)"
    duckdb.connect().execute(
        f"COPY ({query}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {max(2048, ROWS // 20)})"
    )
    appliance.start()
    secret = appliance.tenant("acme")
    assert appliance.push(secret, "acme/double", MODEL).status_code == 201
    with appliance.https(secret) as client:
        whole = submit(client, path)
    whole = ended(appliance, secret, whole)
    assert (whole["status"], whole["rows_done"]) == ("succeeded", ROWS), whole["error"]
    wanted = output(appliance, secret, whole)
    peak = peak_mb(appliance)

    with appliance.https(secret) as client:
        cut = submit(client, path)
    marks = sorted(draw.uniform(0.05, 0.9) for _ in range(KILLS))
    for mark in marks:
        deadline = time.monotonic() + DEADLINE_S
        while show(appliance, secret, cut)["rows_done"] < mark * ROWS:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        peak = max(peak, peak_mb(appliance))
        appliance.kill()
        appliance.start()
    cut = ended(appliance, secret, cut)
    assert (cut["status"], cut["rows_done"]) == ("succeeded", ROWS), cut["error"]
    assert output(appliance, secret, cut) == wanted
    out = tmp_path / "out.parquet"
    out.write_bytes(wanted)
    told = duckdb.execute(
        f"SELECT count(*), bool_and(score = a * 2 + b), bool_and(t = 'row ' || a), "
        f"bool_and(a = file_row_number) FROM read_parquet('{out}', file_row_number = true)"
    ).fetchone()
    assert told == (ROWS, True, True, True)
    print(
        f"{ROWS} rows, {KILLS} kills: same {len(wanted)} bytes; {whole['rows_per_s']:.0f} rows/s "
        f"in chunks of {CHUNK_ROWS}, peak {peak} MB of the appliance's own process, "
        f"{psutil.cpu_count()} cores"
    )
