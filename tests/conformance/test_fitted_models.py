"""R's fitted models without code: an ``.rds`` is answered by R's own predict()."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from boxes import Box, box, spec_of
from languages import installed

from appliance.errors import LoadFailed, ModelRaised
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.spec import SandboxSpec

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif("r4.2" not in installed(), reason="the runtime r4.2 is not installed"),
]
FITTED = Path(__file__).parents[2] / "examples" / "mtcars-r" / "model"
WEIGHTS, POWERS = [2.2, 3.0, 4.5], [95, 150, 230]
ROWS = [{"wt": wt, "hp": hp} for wt, hp in zip(WEIGHTS, POWERS, strict=True)]

# Fits what it is told and answers with what saveRDS makes of it.
MAKER = b"""
load_model <- function(path) function(inputs) {
  file <- tempfile()
  saveRDS(eval(parse(text = inputs)), file)
  readBin(file, "raw", file.size(file))
}
"""


async def made(executor: PodmanExecutor, text: str) -> bytes:
    """The ``.rds`` of what an R expression gives."""
    files = {"model.R": MAKER}
    async with box(executor, spec(files, "model.R:load_model"), files) as one:
        return (await one.ask(text.encode(), "text/plain"))[1]


def spec(files: dict[str, bytes], entry: str, **options: str) -> SandboxSpec:
    return spec_of(runtime="r4.2", entry=entry, files=files, options=options)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def fuel(podman_executor: PodmanExecutor) -> AsyncIterator[Box]:
    files = {"fuel.rds": (FITTED / "mpg.rds").read_bytes()}
    async with box(podman_executor, spec(files, "@rds:fuel.rds"), files) as one:
        yield one


async def predictions(one: Box, body: Any, content_type: str = "application/json") -> list[Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    kind, answer = await one.ask(text.encode(), content_type)
    assert kind == "application/json"
    found = json.loads(answer)
    assert list(found) == ["predictions"]
    return list(found["predictions"])


async def test_every_form_of_a_table_gives_the_same_answer(fuel: Box) -> None:
    first = await predictions(fuel, ROWS)
    assert len(first) == 3
    assert all(10 < one < 30 for one in first)
    columns = {"wt": WEIGHTS, "hp": POWERS}
    data = [list(pair) for pair in zip(POWERS, WEIGHTS, strict=True)]
    for body in (
        {"rows": ROWS},
        {"instances": ROWS},
        {"dataframe_records": ROWS},
        {"dataframe_split": {"columns": ["hp", "wt"], "data": data}},
        columns,
        {"columns": columns},
        {"inputs": columns},
        {"records": ROWS},
        {"rows": data, "columns": ["hp", "wt"]},
        [[row["wt"], row["hp"]] for row in ROWS],
        [{**row, "unused": "x", "none": None} for row in ROWS],
    ):
        assert await predictions(fuel, body) == first
    text = "wt,hp\n" + "".join(f"{row['wt']},{row['hp']}\n" for row in ROWS)
    assert await predictions(fuel, text, "text/csv") == first
    assert await predictions(fuel, ROWS[:1]) == first[:1]
    assert await predictions(fuel, {"wt": [2.2, None], "hp": [95, 95]}) == [first[0], None]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([{"wt": 2.2}], "no column 'hp'"),
        ([], "empty"),
        ([1, 2], "an object of named values"),
        ([[1, 2, 3]], "a row has 2 values: wt, hp"),
        ([{"wt": 1, "hp": 1}, [1, 2]], "some rows have no names"),
        ({"wt": [1], "hp": [1, 2]}, "not equally long"),
        ([{"wt": [1], "hp": 1}], "a value is a number"),
    ],
)
async def test_what_is_no_table_of_the_model_is_refused_in_words(
    fuel: Box, body: Any, reason: str
) -> None:
    with pytest.raises(ModelRaised, match=reason):
        await predictions(fuel, body)
    assert len(await predictions(fuel, ROWS)) == 3


async def test_a_generalised_model_answers_with_probabilities_unless_told(
    podman_executor: PodmanExecutor,
) -> None:
    files = {"manual.rds": (FITTED / "manual.rds").read_bytes()}
    async with box(podman_executor, spec(files, "@rds:manual.rds"), files) as one:
        shares = await predictions(one, ROWS)
    async with box(podman_executor, spec(files, "@rds:manual.rds", type="link"), files) as one:
        links = await predictions(one, ROWS)
    assert all(0 < share < 1 for share in shares)
    assert min(links) < 0 < max(links)


async def test_words_and_tables_come_back_as_such(podman_executor: PodmanExecutor) -> None:
    fit = "lm(cbind(Sepal.Length, Sepal.Width) ~ Species, iris)"
    files = {"iris.rds": await made(podman_executor, fit)}
    async with box(podman_executor, spec(files, "@rds:iris.rds"), files) as one:
        found = await predictions(one, [{"Species": "setosa"}, {"Species": "virginica"}])
        assert [sorted(row) for row in found] == [["Sepal.Length", "Sepal.Width"]] * 2
        assert found[0]["Sepal.Length"] == pytest.approx(5.006)


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        ("structure(list(), class = 'ranger')", "ranger"),
        ("structure(list(), class = c('lognet', 'glmnet'))", "glmnet"),
        ("list(1)", "holds a list, for which R has no predict"),
    ],
)
async def test_a_model_without_its_package_is_refused_with_its_name(
    podman_executor: PodmanExecutor, fit: str, reason: str
) -> None:
    files = {"fit.rds": await made(podman_executor, fit)}
    with pytest.raises(LoadFailed, match=reason):
        async with box(podman_executor, spec(files, "@rds:fit.rds"), files):
            pass


async def test_a_file_that_is_not_there_is_named(podman_executor: PodmanExecutor) -> None:
    files = {"fit.rds": b""}
    with pytest.raises(LoadFailed, match=r"no file 'other\.rds'"):
        async with box(podman_executor, spec(files, "@rds:other.rds"), files):
            pass


async def test_a_file_that_is_no_fitted_model_is_named(podman_executor: PodmanExecutor) -> None:
    files = {"fit.rds": b"not an rds"}
    with pytest.raises(LoadFailed, match=r"'fit\.rds' is not what saveRDS wrote"):
        async with box(podman_executor, spec(files, "@rds:fit.rds"), files):
            pass
