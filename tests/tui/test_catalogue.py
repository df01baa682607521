"""The catalogue: what is asked, why something was found, and what is alike."""

from __future__ import annotations

import pytest
from canned_rows import LONG

from tui.screens.catalogue import question_of

PATH = "/api/v1/catalogue"
VERSION = "/api/v1/models/risk/{}/versions/3"


def found(name, at=0, **more):
    return {
        "tenant": "risk", "model": name, "version": 3, "state": "ready", "live": 3,
        "description": f"Churn {name}", "runtime": "python3.11", "tags": {"team": "risk"},
        "takes": {"age": "integer"}, "gives": {"score": "number"}, "takes_total": 1,
        "gives_total": 1, "created_at": "2026-01-31T12:00:00Z", "created_by": "key:abc",
        "owner": "me", "score": 1.0 - at, "matching": 1, "versions": [3],
        "reasons": [
            {"field": "name", "text": name, "spans": [[0, 3]]},
            {"field": "takes", "text": "age", "spans": [[0, 3]]},
            {"field": "takes", "text": f"income {name}", "spans": [[0, 6]]},
        ],
        **more,
    }  # fmt: skip


def answer(world, *items, total=None, following=None):
    total = len(items) if total is None else total
    body = {"items": list(items), "total": total, "next_offset": following}
    world.replies["GET", PATH] = (200, body)


def asked(world):
    return [dict(r.url.params) for r in world.requests if r.url.path == PATH]


@pytest.mark.parametrize(
    ("args", "question"),
    [
        ((), {}),
        (("churn", "within"), {"text": "churn within"}),
        (("takes=age", "takes=income"), {"takes": "age,income"}),
        (("tag=team=risk", "churn"), {"tag": "team=risk", "text": "churn"}),
        (("colour=red", "takes="), {"text": "colour=red takes="}),
        (("text=a b", "retired=true"), {"text": "a b", "retired": "true"}),
    ],
)
def test_a_place_is_a_question(args, question):
    assert question_of(args) == question


async def test_what_was_found_says_why_and_what_is_alike(world, console, tools):
    answer(world, found("churn"), found("leavers", 1, live=None))
    alike = [{"model": "old", "version": 4, "text": "old@4 has the same files"}]
    world.replies["GET", VERSION.format("churn")] = (200, {"alike": alike})
    async with console(goto="catalogue churn takes=age") as pilot:
        await tools.until(pilot, lambda: "old@4 has the same files" in tools.screen_text(pilot))
        shown = tools.screen_text(pilot)
        assert "Asked: takes age  text churn" in shown
        assert "takes     age, income churn" in shown
        assert "name takes" in shown
        assert "OK live" in shown
        assert tools.clipped(pilot) == []
        assert asked(world)[0] == {"text": "churn", "takes": "age", "limit": "100", "offset": "0"}
        detail = pilot.app.page.query_one("#detail").render()
        bold = [span for span in detail.spans if "bold" in str(span.style)]
        assert len(bold) == 3
        await pilot.press("j")
        await tools.until(pilot, lambda: "income leavers" in tools.screen_text(pilot))
        assert "old@4" not in tools.screen_text(pilot)
        await pilot.press("enter")
        await tools.until(pilot, lambda: "risk/leavers > v3" in tools.screen_text(pilot))


async def test_a_question_is_asked_in_a_form_and_kept_for_going_back(world, console, tools):
    answer(world, found("churn"))
    async with console(goto="catalogue") as pilot:
        await tools.until(pilot, lambda: "risk/churn v3" in tools.screen_text(pilot))
        assert asked(world)[0] == {"limit": "100", "offset": "0"}
        await pilot.press("e")
        await tools.until(pilot, lambda: tools.is_dialog(pilot))
        await tools.settle(pilot)
        assert tools.clipped(pilot) == []
        pilot.app.screen.query_one("#f-gives").value = "score"
        pilot.app.screen.query_one("#verb").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: "Asked: gives score" in tools.screen_text(pilot))
        await tools.until(pilot, lambda: asked(world)[-1].get("gives") == "score")
        await tools.until(pilot, lambda: pilot.app.page.row is not None)
        await pilot.press("enter")
        await tools.until(pilot, lambda: "> v3" in tools.screen_text(pilot))
        await pilot.press("minus")
        await tools.until(pilot, lambda: "Asked: gives score" in tools.screen_text(pilot))


async def test_pages_go_back_and_forth(world, console, tools):
    answer(world, found("churn"), total=101, following=100)
    async with console(goto="catalogue") as pilot:
        await tools.until(pilot, lambda: "1 to 1 of 101" in tools.screen_text(pilot))
        answer(world, found("last"), total=101)
        await pilot.press("right_square_bracket")
        await tools.until(pilot, lambda: "101 to 101 of 101" in tools.screen_text(pilot))
        assert asked(world)[-1]["offset"] == "100"
        await pilot.press("left_square_bracket")
        await tools.until(pilot, lambda: asked(world)[-1]["offset"] == "0")


async def test_nothing_found_and_a_refusal_are_told_apart(world, console, tools):
    answer(world)
    async with console(goto="catalogue nothing") as pilot:
        await tools.until(pilot, lambda: "Nothing was found" in tools.screen_text(pilot))
    world.replies["GET", PATH] = (422, "input-invalid")
    async with console(goto="catalogue x") as pilot:
        await tools.until(pilot, lambda: "about input-invalid" in tools.screen_text(pilot))
        answer(world, found("churn"))
        await tools.until(pilot, lambda: "risk/churn v3" in tools.screen_text(pilot))


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_other_peoples_texts_fit_and_are_never_markup(world, console, tools, size):
    names = (LONG, "größe-ß\u202e[bold]\x1b[31m\t", "データ分析" * 20)
    answer(world, *(found(name, at, description=name) for at, name in enumerate(names)))
    async with console(size, goto="catalogue [bold]x") as pilot:
        await tools.until(pilot, lambda: pilot.app.page.table.shown == 3)
        for _ in names:
            await tools.settle(pilot)
            assert tools.clipped(pilot) == []
            shown = tools.screen_text(pilot)
            assert "\u202e" not in shown
            assert "\x1b" not in shown
            assert "Asked: text [bold]x" in shown
            await pilot.press("j")
