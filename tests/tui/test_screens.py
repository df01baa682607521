"""Every screen in every situation: drawn, complete, and nothing clipped.

Owns: the matrix screen x content x size x link.
Never: asserts on pixels; the words have to be there.
"""

from __future__ import annotations

import pytest

PLACES = [
    "dashboard",
    "tenants",
    "keys",
    "models",
    "versions",
    "sandboxes",
    "gpus",
    "egress",
    "routes",
    "drift",
    "runtimes",
    "audit",
    "health",
    "model risk fraud",
    "version risk fraud 1",
    "entry 1",
]
SHOWN = {
    (80, 24): ("empty", "one", "many", "long", "foreign"),
    (120, 40): ("empty", "long", "foreign"),
}
VERSION = {
    "tenant": "risk",
    "model": "fraud",
    "version": 1,
    "state": "ready",
    "description": "",
    "runtime": "python3.11",
    "entry": "model:Model",
    "requirements": ["numpy==2.0.0"],
    "resources": {"memory_bytes": 536870912, "cpus": 1.0},
    "limits": {"invoke_timeout_ms": 30000},
    "digest": "sha256:" + "ab" * 32,
    "size_bytes": 12,
    "files": [{"path": "model.py", "size_bytes": 12, "digest": "sha256:" + "cd" * 32}],
    "lineage": {"parents": [], "data": ["sha256:ee"], "code": "c0ffee", "run": ""},
    "tags": {"team": "risk"},
    "input_schema": {"type": "object"},
    "output_schema": None,
    "created_at": "2026-01-31T12:00:00Z",
    "created_by": "key:abc",
    "url": "/api/v1/models/risk/fraud/versions/1",
}
DRIFT = {
    "baseline": {"rows": 284},
    "since_s": 3600,
    "rows": 106,
    "calls": 11,
    "unread": 3,
    "scores": [
        {"feature": feature, "output": feature == "prediction", "statistic": statistic,
         "value": value, "threshold": threshold, "verdict": verdict}
        for feature, statistic, value, threshold, verdict in (
            ("radius", "js", 0.4, 0.0, "unjudged"),
            ("radius", "psi", 1.789, 0.25, "breach"),
            ("radius", "missing", 0.0, 0.1, "ok"),
            ("prediction", "psi", 0.1, 0.25, "ok"),
        )
    ],
}  # fmt: skip
ENTRY = {
    "seq": 1,
    "time": "2026-01-31T12:00:00Z",
    "kind": "tenant.created",
    "tenant": "",
    "actor": "uid:0",
    "object": "risk",
    "event": {"b": 1, "a": {"z": "ü", "y": [1, 2]}},
    "leaf": "ef" * 32,
}


@pytest.fixture(autouse=True)
def _details(world):
    world.replies["GET", "/api/v1/models/risk/fraud/versions/1"] = (200, VERSION)
    world.replies["GET", "/api/v1/models/risk/fraud/versions/1/drift"] = (200, DRIFT)
    world.replies["GET", "/api/v1/audit/1"] = (200, ENTRY)


@pytest.mark.parametrize("place", PLACES)
async def test_every_screen_fits_its_terminal_whatever_it_shows(world, console, tools, place):
    async with console(goto=place) as pilot:
        for size, contents in SHOWN.items():
            if size != (80, 24):
                await pilot.resize_terminal(*size)
            for content in contents:
                await fill(pilot, tools, world, content)
                check_screen(pilot, tools, place, content, size)
        await fill(pilot, tools, world, "many")
        for size in ((200, 60), (60, 18), (40, 12), (20, 5)):
            await pilot.resize_terminal(*size)
            await tools.settle(pilot)
            assert "LIVE" in tools.screen_text(pilot), "no size is refused"


async def fill(pilot, tools, world, content):
    """Let the world hold this, and the console have heard of it."""
    world.fill(content)
    asked = len(world.requests)
    await tools.until(pilot, lambda: len(world.requests) >= asked + 2)
    await tools.settle(pilot)


def check_screen(pilot, tools, place, content, size):
    assert tools.clipped(pilot) == [], (content, size)
    shown = tools.screen_text(pilot)
    assert all(len(line) <= size[0] for line in shown.split("\n"))
    assert "LIVE" in shown
    assert "q quit" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    noun = place.split()[0]
    if content == "one" and noun != "entry":
        words = {"health": "Podman", "version": "model:Model"}.get(noun, "risk")
        assert words in shown.split("\n", 2)[2]
    if content == "empty" and noun not in ("version", "entry"):
        assert pilot.app.page.query_one("#empty").display


@pytest.mark.parametrize("place", PLACES)
async def test_every_screen_lives_through_silence_sealing_and_delay(world, console, tools, place):
    async with console(goto=place) as pilot:
        await keeps_its_data_while_nobody_answers(world, pilot, tools)
        await gives_way_to_sealed_and_comes_back(world, pilot, tools, place)
        world.mode = "hang"
        await tools.until(pilot, lambda: "STALE" in tools.screen_text(pilot))
        assert tools.clipped(pilot) == []


async def keeps_its_data_while_nobody_answers(world, pilot, tools):
    before = tools.screen_text(pilot).split("\n")[5:-2]
    world.mode = "down"
    await tools.until(pilot, lambda: "Connection refused" in tools.screen_text(pilot))
    await tools.settle(pilot)
    shown = tools.screen_text(pilot)
    assert tools.clipped(pilot) == []
    assert "DISCONNECTED" in shown
    kept = [line for line in before if line.strip() and line in shown]
    assert kept or not [line for line in before if line.strip()]
    world.mode = "up"
    pilot.app.feed.wake()
    await tools.until(pilot, lambda: "LIVE" in tools.screen_text(pilot))


async def gives_way_to_sealed_and_comes_back(world, pilot, tools, place):
    crumbs = tools.screen_text(pilot).split("\n")[0]
    world.state = "sealed"
    await tools.until(pilot, lambda: "SEALED" in tools.screen_text(pilot))
    if place != "health":
        await tools.until(pilot, lambda: "Unseal with" in tools.screen_text(pilot))
    await tools.settle(pilot)
    assert tools.clipped(pilot) == []
    world.state = "ready"
    await tools.until(pilot, lambda: tools.screen_text(pilot).split("\n")[0] == crumbs)


@pytest.mark.parametrize("place", PLACES)
async def test_read_only_lists_its_keys_sends_nothing_and_says_why(world, console, tools, place):
    async with console(goto=place, readonly=True) as pilot:
        assert "[read-only]" in tools.screen_text(pilot)
        page = pilot.app.page
        for verb in sorted(page.VERBS):
            getattr(page, f"action_{verb}")()
            if page.row is not None:
                await tools.until(pilot, lambda: "--readonly" in tools.screen_text(pilot))
            assert not tools.is_dialog(pilot)
            pilot.app.clear_notifications()
        assert world.sent() == []
        await pilot.press("question_mark")
        await tools.settle(pilot)
        shown = tools.screen_text(pilot)
        assert "Keys of" in shown
        assert "quit" in shown
        assert tools.clipped(pilot) == []


async def test_a_version_shows_all_its_tabs(world, console, tools):
    async with console(goto="version risk fraud 1") as pilot:
        await tools.until(pilot, lambda: "model:Model" in tools.screen_text(pilot))
        for words in ("model.py", "input_schema", "c0ffee", "106 records", "model:Model"):
            await pilot.press("right_square_bracket")
            await tools.until(pilot, lambda words=words: words in tools.screen_text(pilot))


async def test_the_drift_tab_shows_each_column_by_its_worst_score(world, console, tools):
    async with console(goto="version risk fraud 1") as pilot:
        await tools.until(pilot, lambda: "model:Model" in tools.screen_text(pilot))
        await pilot.press("left_square_bracket")
        await tools.until(pilot, lambda: "baseline of 284" in tools.screen_text(pilot))
        lines = [line.split() for line in tools.screen_text(pilot).splitlines()]
        assert ["!", "OVER", "##########", "1.789", "0.25", "psi", "radius"] in lines
        assert ["OK", "####", "0.100", "0.25", "psi", "prediction", "(output)"] in lines
        assert ["not", "counted:", "3", "unread"] in lines
        known = "GET", "/api/v1/models/risk/fraud/versions/1/drift"
        world.replies[known] = (404, "baseline-missing")
        await pilot.press("left_square_bracket")
        await pilot.press("right_square_bracket")
        await tools.until(pilot, lambda: "about baseline-missing" in tools.screen_text(pilot))


async def test_a_version_whose_calls_may_be_joined_says_how_often_they_were(world, console, tools):
    path = "/api/v1/models/risk/fraud/versions/1"
    world.replies["GET", path] = (200, VERSION | {"batch": {"max_rows": 64}})
    counts = {"inference_count": 120, "execution_count": 15}
    stats = "/t/risk/v2/models/fraud/versions/1/stats"
    world.replies["GET", stats] = (200, {"model_stats": [counts]})
    told = "120 calls answered by 15 of the model, 8.0 each; at most 64 rows"
    async with console((120, 40), goto="version risk fraud 1") as pilot:
        await tools.until(pilot, lambda: told in tools.screen_text(pilot))


async def test_an_entry_shows_canonical_json_and_its_leaf(world, console, tools):
    async with console(goto="entry 1") as pilot:
        await tools.until(pilot, lambda: "ef" * 32 in tools.screen_text(pilot))
        assert '{"a":{"y":[1,2],"z":"ü"},"b":1}' in tools.screen_text(pilot)


async def test_wide_terminals_show_more_columns(world, console, tools):
    async with console((80, 24), goto="models") as pilot:
        assert "STORED" not in tools.screen_text(pilot)
    async with console((160, 40), goto="models") as pilot:
        assert "STORED" in tools.screen_text(pilot)
        assert "DESCRIPTION" in tools.screen_text(pilot)
