"""Screens of work that nobody waits for: drawn, complete, and nothing clipped.

Owns: jobs, batches, schedules, webhooks, comparisons and samples, their lists and their pages.
Never: asserts on pixels; the words have to be there.
"""

from __future__ import annotations

import pytest
from canned_work import documents

from tui.nav import Place, place_from

LISTS = ("jobs", "batches", "schedules", "webhooks", "comparisons", "samples")
PAGES = (
    "job risk job_1",
    "batch risk batch_1",
    "schedule risk sch_1",
    "comparison risk cmp_1",
    "comparison risk cmp_2",
    "webhook risk wh_1",
)


async def show(pilot, tools, words):
    """Go to a place and wait until it has drawn something of it."""
    place = place_from(words)
    assert isinstance(place, Place)
    pilot.app.go(place)

    def is_drawn():
        page = pilot.app.page
        if page is None or page.place.noun != place.noun or not page.is_shown:
            return False
        return page._drawn is not None and getattr(page, "document", page) is not None

    await tools.until(pilot, is_drawn)
    await tools.settle(pilot)


def check(pilot, tools, what):
    assert tools.clipped(pilot) == [], what
    shown = tools.screen_text(pilot)
    assert all(len(line) <= pilot.app.size.width for line in shown.split("\n")), what
    assert "LIVE" in shown, what
    assert "\x1b" not in shown, what
    assert "\u202e" not in shown, what
    return shown


@pytest.mark.parametrize(
    ("size", "contents"), [((80, 24), ("long", "foreign")), ((120, 40), ("long",))]
)
async def test_every_screen_of_work_fits_its_terminal(world, console, tools, size, contents):
    for content in contents:
        world.fill_work(content)
        async with console(size) as pilot:
            for words in (*LISTS, *PAGES):
                await show(pilot, tools, words)
                check(pilot, tools, (words, content, size))


async def test_an_empty_list_says_how_to_begin(world, console, tools):
    world.fill_work("empty")
    begin = {
        "jobs": "appliance job submit",
        "batches": "n has a table scored",
        "schedules": "n has a call submitted",
        "webhooks": "n creates one",
        "comparisons": "n sends a data set",
        "samples": "n has a share",
    }
    async with console() as pilot:
        for words, told in begin.items():
            await show(pilot, tools, words)
            assert told in check(pilot, tools, words)


async def test_read_only_sends_nothing_and_says_why(world, console, tools):
    world.fill_work("one")
    async with console(readonly=True) as pilot:
        for words in (*LISTS, *PAGES):
            await show(pilot, tools, words)
            page = pilot.app.page
            for verb in sorted(page.VERBS):
                getattr(page, f"action_{verb}")()
                await tools.until(pilot, lambda: "--readonly" in tools.screen_text(pilot))
                assert not tools.is_dialog(pilot)
                pilot.app.clear_notifications()
                await tools.settle(pilot)
        assert world.sent() == []


@pytest.mark.parametrize("words", ["batches", "batch risk batch_1"])
async def test_they_keep_their_data_while_nobody_answers(world, console, tools, words):
    world.fill_work("one")
    async with console() as pilot:
        await show(pilot, tools, words)
        before = tools.screen_text(pilot).split("\n")[5:12]
        world.mode = "down"
        await tools.until(pilot, lambda: "DISCONNECTED" in tools.screen_text(pilot))
        shown = tools.screen_text(pilot)
        assert all(line in shown for line in before)
        world.mode = "up"
        pilot.app.feed.wake()
        await tools.until(pilot, lambda: "LIVE" in tools.screen_text(pilot))


async def test_a_batch_tells_how_far_it_is_and_moves(world, console, tools):
    world.fill_work("one")
    world.views["batches"][0] |= {"rows": 4000, "rows_done": 1000, "rows_failed": 0}
    async with console(goto="batches") as pilot:
        await tools.until(pilot, lambda: "[#-----]  25%" in tools.screen_text(pilot))
        shown = tools.screen_text(pilot)
        for words in ("processing", "1.0k/4.0k", "722/s", "1m35s"):
            assert words in shown
        world.views["batches"][0] |= {"rows_done": 4000, "status": "succeeded"}
        await tools.until(pilot, lambda: "[######] 100%" in tools.screen_text(pilot))
        assert "OK succeeded" in tools.screen_text(pilot)


async def test_a_batchs_page_is_asked_again_until_it_has_ended(world, console, tools):
    path = "/api/v1/batches/risk/batch_1"
    going = documents("fraud", 7)[path] | {"rows": 400, "rows_done": 100, "status": "processing"}
    world.replies["GET", path] = (200, going)
    async with console(goto="batch risk batch_1") as pilot:
        await tools.until(pilot, lambda: "100 of 400 rows" in tools.screen_text(pilot))
        assert "appliance batch output" not in tools.screen_text(pilot)
        world.replies["GET", path] = (200, going | {"rows_done": 400, "status": "succeeded"})
        await tools.until(pilot, lambda: "400 of 400 rows" in tools.screen_text(pilot))
        assert "appliance batch output risk/" in tools.screen_text(pilot)
        asked = sum(r.url.path == path for r in world.requests)
        polled = len(world.requests)
        await tools.until(pilot, lambda: len(world.requests) >= polled + 3)
        assert sum(r.url.path == path for r in world.requests) <= asked + 1


async def test_a_page_of_what_is_not_there_says_so(world, console, tools):
    async with console(goto="job risk job_9") as pilot:
        await tools.until(pilot, lambda: "about not-found" in tools.screen_text(pilot))
        assert "req_problem" in tools.screen_text(pilot)


@pytest.mark.parametrize("words", PAGES[1:4])
async def test_what_cannot_be_read_is_shown_as_it_came(world, console, tools, words):
    noun, tenant, name = words.split()
    kind = {"batch": "batches"}.get(noun, f"{noun}s")
    world.replies["GET", f"/api/v1/{kind}/{tenant}/{name}"] = (200, {"status": "odd"})
    async with console(goto=words) as pilot:
        await tools.until(pilot, lambda: "cannot read what the server" in tools.screen_text(pilot))
        await pilot.press("y")
        await tools.until(pilot, lambda: tools.is_dialog(pilot))


async def test_a_failed_job_shows_its_problem_and_what_was_printed(world, console, tools):
    world.fill_work("one")
    async with console(goto="job risk job_1") as pilot:
        await tools.until(pilot, lambda: "X Model raised" in tools.screen_text(pilot))
        assert "  second line" in tools.screen_text(pilot)


async def test_a_report_shows_agreement_measures_latency_and_the_worst(world, console, tools):
    world.fill_work("one")
    async with console((120, 60), goto="comparison risk cmp_1") as pilot:
        await tools.until(pilot, lambda: "differ most" in tools.screen_text(pilot))
        lines = [" ".join(line.split()) for line in tools.screen_text(pilot).split("\n")]
        for words in (
            "accuracy 0.9123 0.9123",
            "roc auc - -",
            "p95 ms 38.72 38.72",
            "fraud:3 and fraud:4 57.00 % 7 -",
            "! fraud:4: 2 rows failed: model-raised 2",
            "row 17 apart by 1.8 true fraud",
            "fraud:3 fraud (0.900)",
            "was asked age 41",
        ):
            assert words in lines, words


async def test_a_replay_shows_how_often_what_was_answered(world, console, tools):
    world.fill_work("one")
    async with console((120, 60), goto="comparison risk cmp_2") as pilot:
        await tools.until(pilot, lambda: "differ most" in tools.screen_text(pilot))
        lines = [" ".join(line.split()) for line in tools.screen_text(pilot).split("\n")]
        assert "equal [############--------] 60% 6" in lines
        assert "10 calls (10 of v3) to fraud:4" in lines
        assert "a call now takes 1.051 times its time then (median)" in lines
        assert 'then {"score":0.5}' in lines


async def test_a_schedule_shows_how_the_job_of_its_last_time_ended(world, console, tools):
    world.fill_work("one")
    async with console(goto="schedules") as pilot:
        await tools.until(pilot, lambda: "OK succeeded" in tools.screen_text(pilot))
        world.views["schedules"][0]["last"]["status"] = "failed"
        await tools.until(pilot, lambda: "X failed" in tools.screen_text(pilot))
        world.views["schedules"][0]["last"] |= {"status": None, "code": "missed"}
        await tools.until(pilot, lambda: "! missed" in tools.screen_text(pilot))


async def test_a_schedule_that_stopped_says_why_and_when_what_ran(world, console, tools):
    world.fill_work("one")
    path = "/api/v1/schedules/risk/sch_1"
    found = world.replies["GET", path][1] | {"state": "stopped: key-revoked", "next": []}
    world.replies["GET", path] = (200, found)
    async with console(goto="schedule risk sch_1") as pilot:
        await tools.until(pilot, lambda: "X stopped: key-revoked" in tools.screen_text(pilot))
        shown = tools.screen_text(pilot)
        assert "never" in shown
        assert "- overlap" in shown
        assert "3 times  by hand" in shown


async def test_deliveries_say_what_the_last_answer_was(world, console, tools):
    world.fill_work("many")
    async with console((120, 30), goto="webhook risk wh_1") as pilot:
        await tools.until(pilot, lambda: "OK delivered" in tools.screen_text(pilot))
        shown = tools.screen_text(pilot)
        assert "refused: may not go there" in shown
        assert "http-500" in shown
        assert "accepted (204)" in shown
        asked = dict(world.requests[-1].url.params)
        assert asked == {"view": "deliveries", "tenant": "risk", "webhook": "wh_1"}


async def test_all_nouns_are_listed_and_one_letter_goes_there(world, console, tools):
    world.fill_work("one")
    async with console() as pilot:
        await pilot.press("colon")
        await tools.settle(pilot)
        shown = tools.screen_text(pilot)
        for noun in LISTS:
            assert f" {noun} " in shown
        assert tools.clipped(pilot) == []
        await tools.type_text(pilot, "b risk")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "appliance > batches risk" in tools.screen_text(pilot))
        assert world.requests[-1].url.params["tenant"] == "risk"
