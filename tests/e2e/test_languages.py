"""The example of every installed language: registered, called, and its numbers checked."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from languages import installed
from running import RunningAppliance

pytestmark = pytest.mark.podman
EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINED = {
    "node18": ("iris-node", "rows.json", "application/json"),
    "ruby3.1": ("diabetes-ruby", "rows.json", "application/json"),
    "cpp": ("digits-cpp", "rows.csv", "text/csv"),
    "java17": ("wine-java", "rows.json", "application/json"),
    "mono6.8": ("cancer-dotnet", "rows.json", "application/json"),
}
HERE = [name for name in installed() if name in TRAINED]


@pytest.fixture(scope="module")
def owner(running: RunningAppliance) -> str:
    return running.tenant("acme")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def close(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[k], expected[k]) for k in found)
    if isinstance(expected, list):
        same = len(found) == len(expected)
        return same and all(close(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
    return bool(found == expected)


def register(running: RunningAppliance, owner: str, name: str, folder: Path) -> dict[str, Any]:
    made = running.push(owner, f"acme/{name}", files_of(folder))
    assert made.status_code == 201, made.text
    version: dict[str, Any] = made.json()
    return version


def answered(
    running: RunningAppliance, owner: str, name: str, body: bytes, content_type: str
) -> Any:
    with running.https(owner) as client:
        reply = client.post(
            f"/api/v1/models/acme/{name}/invoke",
            content=body,
            headers={"Content-Type": content_type},
        )
    assert reply.status_code == 200, reply.text
    assert reply.headers["Model-Version"] == "1"
    return reply.json()


@pytest.mark.parametrize("runtime", HERE)
def test_the_example_answers_what_the_trained_model_says(
    running: RunningAppliance, owner: str, tmp_path: Path, runtime: str
) -> None:
    name, rows, content_type = TRAINED[runtime]
    script = EXAMPLES / name / "train.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "model")], check=True)
    version = register(running, owner, name, tmp_path / "model")
    assert version["runtime"] == runtime
    answer = answered(running, owner, name, (tmp_path / rows).read_bytes(), content_type)
    assert close(answer, json.loads((tmp_path / "expected.json").read_text()))


@pytest.mark.skipif("java17" not in installed(), reason="the runtime java17 is not installed")
def test_a_pmml_file_is_scored_in_java_as_in_python(
    running: RunningAppliance, owner: str, tmp_path: Path
) -> None:
    example, site = EXAMPLES / "diabetes-pmml", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site)]
    subprocess.run([*pip, "-r", str(example / "requirements.txt")], check=True)
    subprocess.run([*pip, "--no-deps", "jpmml_evaluator==0.16.0"], check=True)
    train = [sys.executable, str(example / "train.py"), str(tmp_path / "model")]
    subprocess.run(train, check=True, env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"]})
    register(running, owner, "diabetes-pmml", tmp_path / "model")
    rows = (tmp_path / "rows.json").read_bytes()
    answer = answered(running, owner, "diabetes-pmml", rows, "application/json")
    assert close(answer, json.loads((tmp_path / "expected.json").read_text()))


@pytest.mark.skipif("r4.2" not in installed(), reason="the runtime r4.2 is not installed")
def test_rs_own_models_answer_what_a_computation_without_r_says(
    running: RunningAppliance, owner: str
) -> None:
    folder = EXAMPLES / "mtcars-r"
    register(running, owner, "mtcars-r", folder / "model")
    body = (folder / "cars.json").read_bytes()
    answer = answered(running, owner, "mtcars-r", body, "application/json")
    with (folder / "mtcars.csv").open(newline="") as file:
        data = [{key: row[key] for key in row if key} for row in csv.DictReader(file)]
    column = {key: np.array([float(row[key]) for row in data]) for key in ("mpg", "wt", "hp", "am")}
    cars = json.loads(body)["cars"]
    asked = {key: np.array([float(car[key]) for car in cars]) for key in ("wt", "hp")}

    ones = np.ones(len(data))
    fitted = np.linalg.lstsq(
        np.column_stack([ones, column["wt"], column["hp"]]), column["mpg"], rcond=None
    )[0]
    mpg = fitted[0] + fitted[1] * asked["wt"] + fitted[2] * asked["hp"]
    design, slopes = np.column_stack([ones, column["wt"]]), np.zeros(2)
    for _ in range(50):  # Newton's method for the logistic likelihood
        share = 1 / (1 + np.exp(-design @ slopes))
        curvature = design.T @ (design * (share * (1 - share))[:, None])
        slopes = slopes + np.linalg.solve(curvature, design.T @ (column["am"] - share))
    manual = 1 / (1 + np.exp(-(slopes[0] + slopes[1] * asked["wt"])))
    assert close(answer, {"mpg": mpg.tolist(), "manual": manual.tolist()})


@pytest.mark.skipif("r4.2" not in installed(), reason="the runtime r4.2 is not installed")
def test_an_rds_file_alone_is_a_model(running: RunningAppliance, owner: str) -> None:
    folder = EXAMPLES / "mtcars-r"
    files = {"mpg.rds": (folder / "model" / "mpg.rds").read_bytes()}
    made = running.push(owner, "acme/mpg", files)
    assert made.status_code == 201, made.text
    assert (made.json()["runtime"], made.json()["entry"]) == ("r4.2", "@rds:mpg.rds")
    cars = json.loads((folder / "cars.json").read_bytes())["cars"]
    answer = answered(
        running, owner, "mpg", json.dumps({"rows": cars}).encode(), "application/json"
    )
    register(running, owner, "mpg-by-code", folder / "model")
    body = (folder / "cars.json").read_bytes()
    by_code = answered(running, owner, "mpg-by-code", body, "application/json")
    assert close(answer["predictions"], by_code["mpg"])


@pytest.mark.skipif("cpp" not in installed(), reason="the runtime cpp is not installed")
def test_source_that_does_not_compile_is_refused_with_the_compilers_first_error(
    running: RunningAppliance, owner: str
) -> None:
    files = files_of(EXAMPLES / "digits-cpp" / "model")
    files["model.cpp"] = files["model.cpp"].replace(b"std::size_t layers = 0;", b"int x = ;", 1)
    problem = running.push(owner, "acme/broken", files).json()
    assert problem["code"] == "build-failed"
    assert "model.cpp:" in problem["detail"]
    with running.https(owner) as client:
        assert client.get("/api/v1/models/acme/broken").status_code == 404


@pytest.mark.skipif("cpp" not in installed(), reason="the runtime cpp is not installed")
def test_what_was_compiled_is_part_of_the_version_and_on_no_disk(
    running: RunningAppliance, owner: str
) -> None:
    with running.https(owner) as client:
        found = client.get("/api/v1/models/acme/digits-cpp/versions/1").json()
    assert "bin/model" in [file["path"] for file in found["files"]]
    assert not list((running.data_dir / "deps").glob("*build*"))
    marker = b"weights.txt is damaged"  # a text of the program
    for path in running.data_dir.rglob("*"):
        if path.is_file() and "runtimes" not in path.parts:
            assert marker not in path.read_bytes(), path


# A program of one's own, in no need of a compiler: it answers with the length of what it got.
OWN_PROGRAM = rb"""#!/usr/bin/perl
sub get {
    my $data = '';
    while (length $data < $_[0]) {
        sysread STDIN, $data, $_[0] - length $data, length $data or exit;
    }
    return $data;
}
sub put {
    my ($head, $body) = @_;
    syswrite STDIN_OUT, pack('NQ>', length $head, length $body) . $head . $body;
}
open STDIN_OUT, '>&=', 0;
put('{"type":"READY"}', '');
while (1) {
    my ($head, $body) = unpack 'NQ>', get(12);
    my ($id) = get($head) =~ /"id":\s*("[^"]*")/;
    put(qq({"type":"RES","id":$id,"content_type":"application/json"}), length get($body));
}
"""


@pytest.mark.skipif("cpp" not in installed(), reason="the runtime cpp is not installed")
def test_a_folder_that_brings_its_program_is_not_compiled(
    running: RunningAppliance, owner: str
) -> None:
    manifest = b'runtime = "cpp"\nentry = "model.cpp:Model"\n'
    files = {"appliance.toml": manifest, "bin/model": OWN_PROGRAM}
    made = running.push(owner, "acme/own", files)
    assert made.status_code == 201, made.text
    assert len(made.json()["files"]) == 2
    assert answered(running, owner, "own", b"x" * 4321, "application/json") == 4321
