"""The poller and what the frame says about it: back-off, refusals, bad answers, states.

Owns: every way an admin API can misbehave; each must leave a usable screen.
"""

from __future__ import annotations

import asyncio

import pytest

from tui.client import Client, Problem, Query
from tui.feed import BACKOFF_S, Feed, Link


@pytest.mark.parametrize("mode", ["half", "429", "500"])
async def test_a_bad_answer_is_named_and_recovered_from(world, console, tools, mode):
    async with console(goto="tenants") as pilot:
        world.fill("many")
        world.mode = mode
        await tools.until(pilot, lambda: "STALE" in tools.screen_text(pilot))
        assert "risk" in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []
        world.mode = "up"
        await pilot.press("r")
        await tools.until(pilot, lambda: "LIVE" in tools.screen_text(pilot))


async def test_a_refused_identity_stops_asking_until_told(world, console, tools):
    async with console() as pilot:
        world.mode = "401"
        await tools.until(pilot, lambda: "DENIED" in tools.screen_text(pilot))
        asked = len(world.requests)
        await pilot.pause(0.5)
        assert len(world.requests) == asked
        world.mode = "up"
        await pilot.press("r")
        await tools.until(pilot, lambda: "LIVE" in tools.screen_text(pilot))


async def test_remote_mode_asks_for_another_key(world, console, tools):
    async with console(url="https://appliance.test") as pilot:
        assert world.requests[0].headers["authorization"] == "Bearer k"
        world.mode = "401"
        await tools.until(pilot, lambda: "DENIED" in tools.screen_text(pilot))
        await pilot.press("r")
        await tools.until(pilot, lambda: "Admin key" in tools.screen_text(pilot))
        world.mode = "up"
        await tools.type_text(pilot, "newkey")
        assert "newkey" not in tools.screen_text(pilot)
        await pilot.press("enter")
        await tools.until(pilot, lambda: "LIVE" in tools.screen_text(pilot))
        assert world.requests[-1].headers["authorization"] == "Bearer newkey"


async def test_unchanged_views_cost_nothing(world, console, tools):
    async with console(goto="tenants") as pilot:
        await tools.settle(pilot)
        drawn = pilot.app.page._drawn
        assert world.requests[-1].headers["if-none-match"] == drawn.etag
        await tools.settle(pilot)
        assert pilot.app.page._drawn is drawn


async def test_one_request_per_tick_whatever_the_screen(world, console, tools):
    async with console(goto="models") as pilot:
        await tools.settle(pilot)
        world.requests.clear()
        await pilot.pause(1.0)
        views = {r.url.params["view"] for r in world.requests}
        assert views == {"models"}
        assert len(world.requests) <= 12


async def test_pause_stops_asking_and_r_asks_once(world, console, tools):
    async with console(goto="models") as pilot:
        await pilot.press("p")
        await tools.until(pilot, lambda: "PAUSED" in tools.screen_text(pilot))
        await tools.settle(pilot)
        asked = len(world.requests)
        await pilot.pause(0.4)
        assert len(world.requests) == asked
        await pilot.press("r")
        await tools.until(pilot, lambda: len(world.requests) == asked + 1)
        await pilot.press("p")
        await tools.until(pilot, lambda: "LIVE" in tools.screen_text(pilot))


async def test_another_contract_disables_verbs(world, console, tools):
    world.contract = 2
    async with console(goto="tenants") as pilot:
        assert "does not match the server" in tools.screen_text(pilot)
        await pilot.press("n")
        await tools.settle(pilot)
        assert not tools.is_dialog(pilot)
        assert world.sent() == []


async def test_back_off_grows_to_its_cap(world, tools):
    world.mode = "down"
    client = Client(socket="/nowhere", transport=tools.Wire(world))
    from textual.app import App

    async with App().run_test() as pilot:
        feed = Feed(pilot.app, client, interval_s=0.01, jitter=lambda: 0.0)
        feed.watch(Query(view="tenants"))
        waits = []
        for _ in range(7):
            await feed._ask(Query(view="tenants"))
            task = asyncio.ensure_future(feed._rest())
            await asyncio.sleep(0)
            waits.append(feed.retry_s)
            feed.wake()
            await task
            feed._wake.clear()
        assert feed.link is Link.DISCONNECTED
        assert waits == [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "text/html"), (b"[1,2]", "application/json"), (b"\xff\xfe", "application/json")],
)
async def test_answers_that_are_no_snapshots_become_problems(content, kind):
    import httpx

    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, content=content, headers={"Content-Type": kind})
    )
    client = Client(socket="/nowhere", transport=transport)
    with pytest.raises(Problem) as caught:
        await client.snapshot(Query(view="tenants"))
    assert caught.value.code == "bad-reply"


async def test_rows_with_missing_members_leave_a_usable_screen(world, console, tools):
    for view in world.views:
        world.views[view] = [{}]
    world.extras = {view: {} for view in world.views}
    async with console() as pilot:
        for noun in (
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
        ):
            await tools.type_text(pilot, f":{noun}")
            await pilot.press("enter")
            await tools.settle(pilot)
            assert "LIVE" in tools.screen_text(pilot)


async def test_no_colour_means_no_colour(world, console, tools):
    async with console(is_mono=True, goto="models") as pilot:
        assert pilot.app.native_ansi_color
        styles = {
            str(segment.style.color.name)
            for strip in pilot.app.screen._compositor.render_strips(pilot.app.size)
            for segment in strip
            if segment.style and segment.style.color
        }
        assert not any(name.startswith("#") for name in styles)
        assert tools.clipped(pilot) == []


async def test_leaving_and_going_back(world, console, tools):
    async with console(goto="models") as pilot:
        await pilot.press("enter")
        await tools.settle(pilot)
        assert "models > risk/fraud0" in tools.screen_text(pilot)
        await pilot.press("escape")
        await tools.settle(pilot)
        assert "appliance > models " in tools.screen_text(pilot)
        await pilot.press("minus")
        await tools.settle(pilot)
        assert "models > risk/fraud0" in tools.screen_text(pilot)
        await pilot.press("q")
        await pilot.pause()
        assert pilot.app.return_value == 0


async def test_filter_and_sort_are_kept_for_the_session(world, console, tools):
    world.fill("many")
    async with console() as pilot:
        await tools.type_text(pilot, ":m /name-12")
        await pilot.press("enter")
        await tools.settle(pilot)
        assert pilot.app.page.table.shown == 10
        await pilot.press("s", "s", "S", "j", "j")
        key = pilot.app.page.table.selected_key
        await tools.type_text(pilot, ":t")
        await pilot.press("enter")
        await tools.settle(pilot)
        await pilot.press("minus")
        await tools.settle(pilot)
        table = pilot.app.page.table
        assert (table.shown, table.sort_title, table.selected_key) == (10, "vmodel", key)
        assert "/name-12  vmodel" in tools.screen_text(pilot).split("\n")[0]
        await pilot.press("escape")
        await tools.settle(pilot)
        assert pilot.app.page.table.shown == tools.MANY


async def test_letters_typed_into_a_filter_are_no_commands(world, console, tools):
    async with console(goto="models") as pilot:
        await tools.type_text(pilot, "/q:x/n?")
        await tools.settle(pilot)
        assert pilot.app.is_running
        assert pilot.app.page.table.filter_text == "q:x/n?"
        assert "Nothing matches" in tools.screen_text(pilot)
        assert world.sent() == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [("nonsense", "no screen called"), ("model risk", "'model' is"), ("entry x", "not a number")],
)
async def test_an_unknown_place_is_explained(world, console, tools, words, shown):
    async with console(goto=words) as pilot:
        assert shown in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []
        await pilot.press("escape")
        await tools.settle(pilot)
        assert not tools.is_dialog(pilot)


async def test_a_failure_of_the_console_leaves_no_values_behind(world, console, tools, tmp_path):
    import tempfile

    from tui.app import ConsoleApp

    class Broken(ConsoleApp):
        def on_mount(self) -> None:
            secret = "hunter2-" + "passphrase"
            raise RuntimeError(f"failed with {secret}")

    tempfile.tempdir = str(tmp_path)
    try:
        app = Broken(Client(socket="/nowhere", transport=tools.Wire(world)), is_mono=False)
        with pytest.raises(RuntimeError):
            async with app.run_test():
                pass
    finally:
        tempfile.tempdir = None
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "hunter2" not in file.read_text()
    assert "RuntimeError" in file.read_text()
    assert app.incident in file.name


async def test_keys_typed_ahead_reach_what_the_earlier_ones_opened(world, console, tools):
    from textual import events

    names = {":": "colon", "/": "slash", "\r": "enter"}

    def ahead(pilot, words):
        for char in words:
            pilot.app.post_message(events.Key(names.get(char, char), char))

    async with console() as pilot:
        ahead(pilot, ":m\r")
        await tools.until(pilot, lambda: "appliance > models" in tools.screen_text(pilot))
        ahead(pilot, "/qx")
        await tools.until(pilot, lambda: pilot.app.page.table.filter_text == "qx")
        assert pilot.app.is_running
        await pilot.press("escape")
        ahead(pilot, ":t\rnretail\r")
        await tools.until(pilot, lambda: world.sent())
        assert world.sent() == [("POST", "/api/v1/tenants", {"name": "retail"})]


async def test_remote_mode_locks_when_nobody_is_there(world, console, tools):
    from tui.app import IDLE_LOCK_S

    async with console(url="https://appliance.test") as pilot:
        pilot.app.key_at -= IDLE_LOCK_S
        await tools.until(pilot, lambda: "Locked after" in tools.screen_text(pilot))
        await tools.settle(pilot)
        assert "authorization" not in world.requests[-1].headers
        await tools.type_text(pilot, "again")
        await pilot.press("enter")
        await tools.settle(pilot)
        assert world.requests[-1].headers["authorization"] == "Bearer again"
