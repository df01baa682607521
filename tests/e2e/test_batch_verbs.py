"""The batch verbs as they are typed: with a real model, with --json and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RunningAppliance

pytestmark = pytest.mark.podman

DOUBLE = {
    "appliance.toml": b'runtime = "python3.11"\nentry = "model:Model"\n',
    "model.py": (
        b"class Model:\n"
        b"    def __init__(self, path): pass\n"
        b"    def predict(self, inputs): return [2 * int(row[0]) for row in inputs['rows']]\n"
    ),
}
SCORED = b"".join(b'{"n":%d,"prediction":%d}\n' % (n, 2 * n) for n in range(40))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, run_root: Path, lake: Path
) -> Iterator[RunningAppliance]:
    """One whose IT lets batches use a folder."""
    folders = {"lake": {"path": str(lake), "tenants": ["acme"], "writable": True}}
    made = RunningAppliance(
        tmp_path_factory.mktemp("appliance") / "data",
        run_root,
        batches__folders=json.dumps(folders),
    )
    made.initialise()
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(running: RunningAppliance) -> str:
    made = running.push(running.tenant("acme"), "acme/double", DOUBLE)
    assert made.status_code == 201, made.text
    return "acme/double"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("n\n" + "".join(f"{n}\n" for n in range(40)))
    return path


def typed(running: RunningAppliance, *arguments: str, code: int = 0) -> bytes:
    done = running.cli("batch", *arguments)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


def told(running: RunningAppliance, *arguments: str, code: int = 0) -> Any:
    """What a verb says with --json, on standard error where it is a problem."""
    said = typed(running, *arguments, "--json", code=code)
    return json.loads(said if code == 0 else said.splitlines()[-1])


def test_every_verb_says_what_it_did(running: RunningAppliance, model: str, rows: Path) -> None:
    asked = (f"{model}:1", "--data", str(rows), "--into", "ndjson", "--idempotency-key", "one")
    made = told(running, "submit", *asked)
    place = f"acme/{made['id']}"
    assert told(running, "submit", *asked)["id"] == made["id"]
    done = told(running, "wait", place, "--timeout", "60")
    assert (done["status"], done["rows_done"], done["idempotency_key"]) == ("succeeded", 40, "one")
    assert told(running, "show", place) == done
    assert [one["id"] for one in told(running, "list", "acme")["items"]] == [made["id"]]
    assert told(running, "cancel", place)["status"] == "succeeded"  # it has ended: it stays
    other = told(running, "submit", *asked, "--chunk-rows", "7", code=65)
    assert other["code"] == "idempotency-key-reused"

    out = rows.with_name("scored.ndjson")
    assert typed(running, "output", place) == SCORED  # to standard output, as it is
    assert typed(running, "output", place, "--json") == SCORED
    assert typed(running, "output", place, "--out", str(out)) == b""
    assert out.read_bytes() == SCORED
    assert told(running, "output", "acme/batch_0000000000000", code=65)["code"] == "not-found"
    assert "40 of 40 (100%)" in typed(running, "show", place).decode()
    assert "100%" in typed(running, "list", "acme").decode()

    run = told(running, "run", model, "--data", str(rows), "--out", str(out))
    assert (run["status"], run["rows"]) == ("succeeded", 40)
    assert out.read_bytes() == SCORED


def test_a_batch_that_failed_is_a_problem_of_the_verb_that_waits(
    running: RunningAppliance, model: str, rows: Path
) -> None:
    rows.write_text("n\n1\nx\n")
    made = told(running, "submit", model, "--data", str(rows))
    place = f"acme/{made['id']}"
    problem = told(running, "wait", place, code=69)
    assert problem["code"] == "model-raised"
    assert "Rows 0 to 1" in problem["detail"]
    assert told(running, "show", place)["status"] == "failed"
    assert told(running, "output", place, code=65)["code"] == "job-unfinished"
    out = rows.with_name("scored.csv")
    typed(running, "run", model, "--data", str(rows), "--out", str(out), code=69)
    assert not out.exists()


def test_a_table_is_taken_from_a_folder_and_put_into_one(
    running: RunningAppliance, model: str, rows: Path, lake: Path
) -> None:
    (lake / "rows.csv").write_bytes(rows.read_bytes())
    listed = told(running, "folders", "acme")["items"]
    assert listed == [{"name": "lake", "writable": True}]
    assert b"lake" in typed(running, "folders", "acme")
    asked = (model, "--from", "lake/rows.csv", "--to", "lake/scored.ndjson")
    done = told(running, "run", *asked)
    assert (done["status"], done["put_into"]) == ("succeeded", "lake/scored.ndjson")
    assert (lake / "scored.ndjson").read_bytes() == SCORED
    assert "lake/rows.csv" in typed(running, "show", f"acme/{done['id']}").decode()
    refused = told(running, "submit", model, "--from", "lake/../rows.csv", code=65)
    assert refused["code"] == "input-invalid"
    assert b"one of them" in typed(running, "submit", model, code=64)
    assert b"one of them" in typed(running, "submit", *asked, "--data", str(rows), code=64)
    assert b".parquet, .csv or .ndjson" in typed(
        running, "submit", model, "--from", "lake/rows.csv", "--to", "lake/x.xls", code=64
    )


def test_a_schedule_starts_a_batch_of_the_file_that_is_there(
    running: RunningAppliance, model: str, rows: Path, lake: Path
) -> None:
    def schedule(*arguments: str) -> Any:
        done = running.cli("schedule", *arguments, "--json")
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return json.loads(done.stdout)

    places = ("--from", "lake/nightly.csv", "--to", "lake/{date}.ndjson")
    made = schedule("create", model, "--cron", "0 2 1 1 *", *places, "--no-carry")
    assert (made["batch"]["into"], made["batch"]["carry"]) == ("ndjson", False)
    (lake / "nightly.csv").write_bytes(rows.read_bytes())
    place = f"acme/{made['id']}"
    batch = schedule("run-now", place)
    done = told(running, "wait", f"acme/{batch['id']}")
    assert (done["status"], done["scheduled_by"]) == ("succeeded", made["id"])
    (run,) = schedule("show", place)["runs"]
    assert (run["batch"], run["status"], run["manual"]) == (batch["id"], "succeeded", True)
    (written,) = lake.glob("20??-??-??.ndjson")
    assert written.read_bytes() == b"".join(b'{"prediction":%d}\n' % (2 * n) for n in range(40))
    schedule("rm", place)
