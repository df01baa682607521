"""The routes screen: what it sends, at which revision, and what it refuses to send."""

from __future__ import annotations

import pytest

ROUTE = "/api/v1/models/risk/fraud/route"


@pytest.fixture
def routed(world):
    """One route: v1 90 %, v2 10 % as canary, v3 shadow."""
    known = dict(world.views["routes"][0], tenant="risk", model="fraud")
    kinds = ((1, "baseline", 90.0), (2, "canary", 10.0), (3, "shadow", None))
    world.views["routes"] = [
        known | {"version": version, "role": role, "percent": percent}
        for version, role, percent in kinds
    ]
    return world


def if_match(world):
    return next(r.headers["if-match"] for r in world.requests if r.method in ("PUT", "POST"))


async def cursor(pilot, tools, row):
    pilot.app.page.table.move_cursor(row=row)
    await tools.settle(pilot)


async def test_a_share_is_moved_with_the_slider_at_the_revision_on_screen(routed, console, tools):
    async with console(goto="routes") as pilot:
        await cursor(pilot, tools, 1)
        await pilot.press("e")
        await tools.settle(pilot)
        await pilot.press("right", "right", "greater_than_sign", "left")
        await tools.settle(pilot)
        shown = tools.screen_text(pilot)
        assert "v2 gets 21 % of the calls, v1 79 %" in shown
        assert "Revision 41 -> 42" in shown
        assert "21 %" in shown
        assert tools.clipped(pilot) == []
        assert routed.sent() == []
        pilot.app.screen.query_one("#reason").value = "flat"
        pilot.app.screen.query_one("#verb").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: bool(routed.sent()))
    ((method, path, body),) = routed.sent()
    assert (method, path) == ("PUT", ROUTE)
    assert if_match(routed) == '"41"'
    assert body["arms"] == [{"version": 1, "percent": 79}, {"version": 2, "percent": 21}]
    assert body["sticky"] == "header:x-user"
    assert body["shadows"] == [3]
    assert body["canary"]["error_rate_max"] == 0.01
    assert body["reason"] == "flat"


@pytest.mark.parametrize("row", [0, 2], ids=["baseline", "shadow"])
async def test_what_has_no_share_of_its_own_is_not_moved(routed, console, tools, row):
    async with console(goto="routes") as pilot:
        await cursor(pilot, tools, row)
        await pilot.press("e")
        await tools.until(pilot, lambda: "choose another version" in tools.screen_text(pilot))
        assert routed.sent() == []


@pytest.mark.parametrize(
    ("key", "verb", "words"),
    [
        ("t", "promote", "v2 becomes live"),
        ("h", "hold", "no step is taken"),
        ("b", "abort", "Every call goes to v1"),
        ("u", "back", "as it was before its last change"),
    ],
)
async def test_a_verb_asks_first_and_carries_revision_and_reason(
    routed, console, tools, key, verb, words
):
    async with console(goto="routes") as pilot:
        await cursor(pilot, tools, 1)
        await pilot.press(key)
        await tools.settle(pilot)
        shown = tools.screen_text(pilot)
        assert words in shown
        assert "Revision 41 -> 42" in shown
        assert routed.sent() == []
        pilot.app.screen.query_one("#reason").value = "why not"
        pilot.app.screen.query_one("#verb").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: bool(routed.sent()))
    ((method, path, body),) = routed.sent()
    assert (method, path) == ("POST", f"{ROUTE}/{verb}")
    assert if_match(routed) == '"41"'
    assert body["reason"] == "why not"


async def test_the_line_below_says_what_the_route_is(routed, console, tools):
    async with console(goto="routes") as pilot:
        shown = tools.screen_text(pilot)
        assert "revision 41" in shown
        assert "canary v2 against v1: abort at +1 points of errors, 1.5 x p95" in shown
        assert tools.clipped(pilot) == []
