"""The example of every installed language: registered, called, and its numbers checked."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from languages import installed
from running import RunningAppliance

pytestmark = pytest.mark.podman
TORCH = "python3.11-torch1.13"
EXAMPLES = Path(__file__).parents[2] / "examples"
RUNTIME = {
    "iris-node": "node18",
    "diabetes-ruby": "ruby3.1",
    "digits-cpp": "cpp",
    "wine-java": "java17",
    "diabetes-pmml": "java17",
    "cancer-dotnet": "mono6.8",
    "mtcars-r": "r4.2",
}
HERE = [name for name, runtime in RUNTIME.items() if runtime in installed()]


@pytest.fixture(scope="module")
def owner(running: RunningAppliance) -> str:
    return running.tenant("demo")


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
    made = running.push(owner, f"demo/{name}", files_of(folder))
    assert made.status_code == 201, made.text
    version: dict[str, Any] = made.json()
    return version


def answered(
    running: RunningAppliance, owner: str, name: str, body: bytes, content_type: str
) -> Any:
    with running.https(owner) as client:
        reply = client.post(
            f"/api/v1/models/demo/{name}/invoke",
            content=body,
            headers={"Content-Type": content_type},
        )
    assert reply.status_code == 200, reply.text
    assert reply.headers["Model-Version"] == "1"
    return reply.json()


def commands_of(readme: Path) -> list[str]:
    """The lines of its code blocks."""
    blocks = re.findall(r"^```$(.*?)^```$", readme.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def requirements_of(command: str, folder: Path) -> list[str]:
    """What a pip command installs."""
    words = command.partition(" install ")[2].split()
    if "-r" in words:
        return (folder / words[words.index("-r") + 1]).read_text().split()
    return [word for word in words if not word.startswith("-")]


def is_here(requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def typed(running: RunningAppliance, name: str, tmp_path: Path) -> bytes:
    """Type the commands of an example's README, in a copy of it; what the last one prints.

    The virtual environment is this one, with a folder for what is not in it; images are built
    unless they are there.
    """
    folder, programs, site = tmp_path / name, tmp_path / "bin", tmp_path / "site"
    shutil.copytree(EXAMPLES / name, folder)
    programs.mkdir()
    text = '#!/bin/sh\ncase "$1" in runtime) set -- "$@" --unless-current ;; esac\n'
    (programs / "appliance").write_text(text + f'exec {sys.executable} -m appliance "$@"\n')
    (programs / "appliance").chmod(0o755)
    environment = running.environment()
    paths = [str(site), environment.get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = ":".join(filter(None, paths))
    environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    said = b""
    for line in commands_of(folder / "README.md"):
        command = line.removeprefix("python3 -m venv /tmp/example && ")
        if "/pip install " in command:
            if all(is_here(one) for one in requirements_of(command, folder)):
                continue
            command = command.replace("install", f"install -q --target {site}", 1)
            command = command.replace("/tmp/example/bin/pip", f"{sys.executable} -m pip")
        command = command.replace("/tmp/example/bin/python", sys.executable)
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr.decode()[-2000:])
        said = done.stdout
    return said


@pytest.mark.parametrize("name", HERE)
def test_the_commands_of_the_example_print_what_the_trained_model_says(
    running: RunningAppliance, owner: str, tmp_path: Path, name: str
) -> None:
    answer = json.loads(typed(running, name, tmp_path))
    with running.https(owner) as client:
        found = client.get(f"/api/v1/models/demo/{name}/versions/1").json()
    assert found["runtime"] == RUNTIME[name]
    expected = tmp_path / name / "build" / "expected.json"
    if expected.exists():
        assert close(answer, json.loads(expected.read_text()))
    else:
        assert 10 < answer["predictions"][0] < 40  # miles a gallon; the tests below know more


@pytest.mark.skipif("r4.2" not in installed(), reason="the runtime r4.2 is not installed")
def test_rs_own_models_answer_what_a_computation_without_r_says(
    running: RunningAppliance, owner: str
) -> None:
    folder = EXAMPLES / "mtcars-r"
    register(running, owner, "mtcars", folder / "model")
    body = (folder / "cars.json").read_bytes()
    answer = answered(running, owner, "mtcars", body, "application/json")
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
    made = running.push(owner, "demo/mpg-alone", files)
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


@pytest.mark.skipif(TORCH not in installed(), reason=f"the runtime {TORCH} is not installed")
def test_a_pytorch_state_dict_answers_what_the_training_process_said(
    running: RunningAppliance, owner: str
) -> None:
    folder = EXAMPLES / "digits-pytorch"
    version = register(running, owner, "digits-pytorch", folder / "model")
    assert version["runtime"] == TORCH
    body = (folder / "rows.json").read_bytes()
    answer = answered(running, owner, "digits-pytorch", body, "application/json")
    expected = json.loads((folder / "expected.json").read_text())
    assert answer["digits"] == expected["digits"]
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)


@pytest.mark.skipif("cpp" not in installed(), reason="the runtime cpp is not installed")
def test_source_that_does_not_compile_is_refused_with_the_compilers_first_error(
    running: RunningAppliance, owner: str
) -> None:
    files = files_of(EXAMPLES / "digits-cpp" / "model")
    files["model.cpp"] = files["model.cpp"].replace(b"std::size_t layers = 0;", b"int x = ;", 1)
    problem = running.push(owner, "demo/broken", files).json()
    assert problem["code"] == "build-failed"
    assert "model.cpp:" in problem["detail"]
    with running.https(owner) as client:
        assert client.get("/api/v1/models/demo/broken").status_code == 404


@pytest.mark.skipif("cpp" not in installed(), reason="the runtime cpp is not installed")
def test_what_was_compiled_is_part_of_the_version_and_on_no_disk(
    running: RunningAppliance, owner: str
) -> None:
    with running.https(owner) as client:
        found = client.get("/api/v1/models/demo/digits-cpp/versions/1").json()
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
    made = running.push(owner, "demo/own", files)
    assert made.status_code == 201, made.text
    assert len(made.json()["files"]) == 2
    assert answered(running, owner, "own", b"x" * 4321, "application/json") == 4321
