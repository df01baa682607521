"""LiveTable: the cursor stays on its row whatever happens to the rows around it."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from tui.table import Column, LiveTable

COLUMNS = (
    Column(name="name", title="NAME", text=lambda r: r["name"], width=8, flex=1),
    Column(
        name="calls",
        title="CALLS",
        text=lambda r: str(r["calls"]),
        order=lambda r: r["calls"],
        width=6,
    ),
    Column(name="extra", title="EXTRA", text=lambda r: "x", width=10, least=60),
)


class Bench(App[None]):
    def compose(self) -> ComposeResult:
        yield LiveTable(COLUMNS, lambda r: str(r["name"]), id="t")


ROWS = st.dictionaries(
    st.sampled_from([f"r{i}" for i in range(12)]), st.integers(0, 9), min_size=1, max_size=12
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), ROWS),
        st.tuples(st.just("sort"), st.sampled_from(["", "name", "calls"])),
        st.tuples(st.just("reverse"), st.booleans()),
        st.tuples(st.just("filter"), st.sampled_from(["", "r1", "!r1", "calls:3"])),
        st.tuples(st.just("size"), st.sampled_from([(80, 24), (50, 12), (30, 8)])),
        st.tuples(st.just("move"), st.sampled_from(["j", "k", "g", "G"])),
    ),
    max_size=12,
)


async def drive(steps: list[tuple[str, Any]]) -> None:
    async with Bench().run_test(size=(80, 24)) as pilot:
        table = pilot.app.query_one(LiveTable)
        table.focus()
        table.show({"name": f"r{i}", "calls": i} for i in range(12))
        await pilot.pause()
        for verb, value in steps:
            before = table.selected_key
            if verb == "move":
                await pilot.press(value)
                continue
            if verb == "rows":
                table.show({"name": k, "calls": v} for k, v in value.items())
            elif verb == "sort":
                table.sort_by(value)
            elif verb == "reverse":
                table.sort_by(table.sort_name, reverse=value)
            elif verb == "filter":
                table.filter(value)
            else:
                await pilot.resize_terminal(*value)
            await pilot.pause()
            check(table, before)


def check(table: LiveTable, before: str) -> None:
    keys = [str(row.key.value) for row in table.ordered_rows]
    assert sorted(keys) == sorted(table._shown)
    if before in keys:
        assert table.selected_key == before
    elif keys:
        assert table.selected_key in keys
    for key in keys:
        row = table._shown[key]
        assert table.get_cell(key, "calls").plain.strip() == str(row["calls"])
    if table.sort_name == "calls":
        calls = [table._shown[k]["calls"] for k in keys]
        assert calls == sorted(calls, reverse=table.sort_reverse)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_the_cursor_follows_its_row(steps):
    asyncio.run(drive(steps))


async def test_unchanged_rows_are_not_touched():
    async with Bench().run_test() as pilot:
        table = pilot.app.query_one(LiveTable)
        rows = [{"name": f"r{i}", "calls": i} for i in range(50)]
        table.show(rows)
        await pilot.pause()
        count = table._update_count
        table.show([dict(row) for row in rows])
        assert table._update_count == count


async def test_five_hundred_changing_rows_are_drawn_within_a_tick():
    async with Bench().run_test() as pilot:
        table = pilot.app.query_one(LiveTable)
        table.show({"name": f"r{i}", "calls": i} for i in range(500))
        await pilot.pause()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        table.show({"name": f"r{i}", "calls": i + 1} for i in range(500))
        assert loop.time() - begin < 1.0


async def test_markup_and_control_characters_in_rows_are_only_text():
    async with Bench().run_test() as pilot:
        table = pilot.app.query_one(LiveTable)
        name = "[red]x[/]\x1b]0;t\x07\u202e"
        table.show([{"name": name, "calls": 1}])
        await pilot.pause()
        shown = table.get_cell(name, "name").plain
        assert shown.startswith("[red]x[/]·]0;t··")


async def test_columns_give_way_when_it_is_narrow():
    async with Bench().run_test(size=(80, 24)) as pilot:
        table = pilot.app.query_one(LiveTable)
        table.show([{"name": "a", "calls": 1}])
        await pilot.pause()
        assert [str(c.key.value) for c in table.ordered_columns] == ["name", "calls", "extra"]
        await pilot.resize_terminal(40, 20)
        await pilot.pause()
        assert [str(c.key.value) for c in table.ordered_columns] == ["name", "calls"]
        assert table.virtual_size.width <= 40
