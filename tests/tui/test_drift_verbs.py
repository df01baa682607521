"""What the drift screen changes: baselines and thresholds, from the revision that was on screen."""

from __future__ import annotations

import pytest

PATH = "/api/v1/models/risk/risk/versions/1/drift"
THRESHOLDS = {
    "limits": {"psi": 0.25, "js": 0.0, "missing": 0.1},
    "features": {"age": {"psi": 0.5}, "net income": {"missing": 0.0}},
    "rows_min": 200,
    "window_s": 3600,
}


@pytest.fixture(autouse=True)
def _judged(world):
    baseline = {"revision": 4, "thresholds": THRESHOLDS}
    world.replies["GET", PATH] = (200, {"baseline": baseline, "scores": []})


async def open_dialog(pilot, tools, key):
    await pilot.press(key)
    await tools.until(pilot, lambda: tools.is_dialog(pilot))
    await tools.settle(pilot)
    assert tools.clipped(pilot) == []


async def send(pilot, tools, **values):
    for name, value in values.items():
        pilot.app.screen.query_one(f"#f-{name}").value = value
    pilot.app.screen.query_one("#verb").focus()
    await pilot.press("enter")
    await tools.settle(pilot)


def guard(world):
    return next(r for r in world.requests if r.method != "GET").headers.get("if-match")


async def test_only_what_was_changed_of_the_thresholds_is_sent(world, console, tools):
    async with console(goto="drift") as pilot:
        await open_dialog(pilot, tools, "e")
        shown = pilot.app.screen.values()
        assert shown["l-psi"] == "0.25"
        assert shown["columns"] == "age:psi=0.5 'net income:missing=0'"
        assert shown["window"] == "1h"
        assert "Revision 4 -> 5" in tools.screen_text(pilot)
        await send(
            pilot, tools, **{"l-psi": "0.3", "l-js": "default"}, columns="age:psi=0.6 age:ks=0.2",
            window="6h", reason="calm",
        )  # fmt: skip
        await tools.until(pilot, lambda: bool(world.sent()))
        body = {
            "limits": {"psi": 0.3, "js": None},
            "features": {"age": {"psi": 0.6, "ks": 0.2}, "net income": {"missing": None}},
            "window_s": 21_600,
            "reason": "calm",
        }
        assert world.sent() == [("PUT", f"{PATH}/thresholds", body)]
        assert guard(world) == '"4"'
        told = [line for note in pilot.app._notifications for line in note.message.split("\n")]
        assert (
            "$ appliance drift thresholds set risk/risk:1 psi=0.3 js=default age:psi=0.6"
            " age:ks=0.2 'net income:missing=default' --window 6h"
        ) in told


async def test_wrong_thresholds_say_what_is_wrong(world, console, tools):
    async with console(goto="drift") as pilot:
        await open_dialog(pilot, tools, "e")
        right = pilot.app.screen.values()
        for field, value, words in (
            ("l-psi", "much", "psi: a number such as 0.25"),
            ("l-psi", "nan", "psi: a number such as 0.25"),
            ("columns", "age=0.5", "COLUMN:STATISTIC=NUMBER"),
            ("columns", "'age:psi=0.5", "COLUMN:STATISTIC=NUMBER"),
            ("rows_min", "", "is a whole number"),
            ("window", "1 hour", "The window is a time"),
        ):
            await send(pilot, tools, **(right | {field: value}))
            assert words in tools.screen_text(pilot)
            assert tools.clipped(pilot) == []
        assert world.sent() == []


async def test_a_baseline_comes_from_a_file(world, console, tools, tmp_path):
    data = tmp_path / "train.csv"
    data.write_text("age,score\n1,2\n")
    async with console(goto="drift") as pilot:
        await open_dialog(pilot, tools, "n")
        await send(pilot, tools, file=str(data), output="score")
        await tools.until(pilot, lambda: bool(world.sent()))
    request = next(r for r in world.requests if r.method == "PUT")
    assert request.url.path == f"{PATH}/baseline"
    assert dict(request.url.params) == {"output": "score"}
    assert request.headers["content-type"] == "text/csv"
    assert request.headers["if-match"] == '"2"'
    assert request.content == data.read_bytes()


@pytest.mark.parametrize(
    ("source", "values", "path", "body"),
    [
        ("past calls", {"window": "7d", "of": "2"}, "window", {"window_s": 604_800, "of": 2}),
        ("next calls", {"records": "500"}, "learn", {"records": 500}),
    ],
)
async def test_a_baseline_comes_from_calls(world, console, tools, source, values, path, body):
    async with console(goto="drift") as pilot:
        await open_dialog(pilot, tools, "n")
        await send(pilot, tools, version="risk/other:3", **{"from": source}, **values)
        await tools.until(pilot, lambda: bool(world.sent()))
        where = f"/api/v1/models/risk/other/versions/3/drift/baseline/{path}"
        assert world.sent() == [("POST", where, {"reason": "", **body})]
        assert guard(world) is None, "that revision is of another version"


async def test_a_wrong_baseline_says_what_is_wrong(world, console, tools):
    async with console(goto="drift") as pilot:
        await open_dialog(pilot, tools, "n")
        right = pilot.app.screen.values()
        for wrong, words in (
            ({"version": "fraud"}, "Type tenant/model:version"),
            ({"file": ""}, "Type the name of a file"),
            ({"file": "/no/such"}, "It cannot be read: No such file"),
            ({"from": "past calls", "window": "long"}, "a time such as 30m"),
            ({"from": "next calls", "records": "few"}, "is a whole number"),
        ):
            await send(pilot, tools, **(right | wrong))
            assert words in tools.screen_text(pilot)
            assert tools.clipped(pilot) == []
        assert world.sent() == []


async def test_a_baseline_is_removed_by_typing_the_model(world, console, tools):
    async with console(goto="drift") as pilot:
        await open_dialog(pilot, tools, "x")
        assert pilot.app.screen.query_one("#verb").disabled
        pilot.app.screen.query_one("#name").focus()
        await tools.type_text(pilot, "risk")
        await send(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
        assert world.sent() == [("DELETE", f"{PATH}/baseline", None)]
        assert guard(world) == '"2"'
