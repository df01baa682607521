"""Lineage on a version's page, and the filter that finds models by their columns and tags."""

from __future__ import annotations

PATH = "/api/v1/models/risk/fraud/versions/1"


def node(name, version, distance, **more):
    return {
        "id": f"{name}@{version}", "model": name, "version": version, "distance": distance,
        "state": "ready", "aliases": [], **more,
    }  # fmt: skip


VERSION = {
    "tenant": "risk",
    "model": "fraud",
    "version": 1,
    "state": "ready",
    "lineage": {"parents": ["base@2", "bert of elsewhere"], "data": [], "code": "", "run": ""},
    "alike": [{"model": "old", "version": 4, "text": "old@4 has the same files"}],
}
GRAPH = {
    "nodes": [
        node("fraud", 1, 0),
        node("left", 1, -1, aliases=["live"]),
        node("right", 1, -1),
        node("base", 2, -2, state="retired"),
        node("fraud", 2, 1),
    ],
    "edges": [
        {"child": "fraud@1", "parent": "left@1"},
        {"child": "fraud@1", "parent": "right@1"},
        {"child": "left@1", "parent": "base@2"},
        {"child": "right@1", "parent": "base@2"},
        {"child": "fraud@2", "parent": "fraud@1"},
    ],
    "left_off": 3,
}


async def test_a_version_shows_what_it_was_made_from_and_became(world, console, tools):
    world.replies["GET", PATH] = (200, VERSION)
    world.replies["GET", f"{PATH}/lineage"] = (200, GRAPH)
    async with console(goto="version risk fraud 1") as pilot:
        await tools.until(pilot, lambda: "old@4 has the same files" in tools.screen_text(pilot))
        await pilot.press("left_square_bracket", "left_square_bracket")  # drift is the last
        await tools.until(pilot, lambda: "became" in tools.screen_text(pilot))
        lines = [line.strip() for line in tools.screen_text(pilot).split("\n")]
        at = lines.index("made from")
        told = lines[at + 1 : at + 5]
        assert [line.split("  ")[0] for line in told] == [
            "left v1",
            "base v2",
            "right v1",
            "base v2",
        ]
        assert told[0].endswith("live")
        assert "retired" in told[1]
        assert lines[lines.index("became") + 1] == "fraud v2"
        shown = tools.screen_text(pilot)
        assert "appliance model lineage risk/fraud@1 --depth 100" in shown
        assert "bert of elsewhere" in shown
        assert tools.clipped(pilot) == []


async def test_a_version_whose_lineage_cannot_be_had_shows_what_it_declares(world, console, tools):
    world.replies["GET", PATH] = (200, VERSION)
    world.replies["GET", f"{PATH}/lineage"] = (503, "draining")
    async with console(goto="version risk fraud 1") as pilot:
        await tools.until(pilot, lambda: "old@4 has the same files" in tools.screen_text(pilot))
        await pilot.press("left_square_bracket", "left_square_bracket")  # drift is the last
        await tools.until(pilot, lambda: "bert of elsewhere" in tools.screen_text(pilot))


async def test_models_are_filtered_by_columns_and_tags(world, console, tools):
    world.fill("many")
    rows = world.views["models"]
    rows[3] = rows[3] | {"takes": ["age", "income"], "gives": ["churn_score"]}
    for words in ("takes:income", "gives:churn_score", "income churn_score"):
        async with console(goto=f"models /{words}") as pilot:
            await tools.until(pilot, lambda: pilot.app.page.table.shown == 1)
            assert pilot.app.page.table.selected["model"] == rows[3]["model"]
