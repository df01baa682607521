"""What the verbs of jobs, batches, schedules, webhooks, comparisons and samples ask and send.

Owns: the requests, with the rows that were on screen when the key was pressed; refusals and files.
"""

from __future__ import annotations

import pytest

OUTPUT = "/api/v1/batches/risk/batch_0000000000000/output"
WEBHOOKS = "/api/v1/tenants/risk/webhooks"
WEBHOOK = f"{WEBHOOKS}/wh_0000000000000"
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


@pytest.fixture(autouse=True)
def _one_of_each(world):
    world.fill_work("one")


async def open_dialog(pilot, tools, key):
    await pilot.press(key)
    await tools.until(pilot, lambda: tools.is_dialog(pilot))
    await tools.settle(pilot)
    assert tools.clipped(pilot) == []


async def press_verb(pilot, tools):
    pilot.app.screen.query_one("#verb").focus()
    await pilot.press("enter")
    await tools.settle(pilot)


async def type_into(pilot, **values):
    for name, value in values.items():
        pilot.app.screen.query_one(f"#f-{name}").value = value


@pytest.mark.parametrize(
    ("place", "key", "path", "words"),
    [
        ("jobs", "x", "/api/v1/jobs/risk/job_0000000000000/cancel", "It gets no result"),
        ("batches", "x", "/api/v1/batches/risk/batch_0000000000000/cancel", "are given up"),
        ("comparisons", "x", "/api/v1/comparisons/risk/cmp_0000000000000/cancel", "is deleted"),
        ("schedules", "t", "/api/v1/schedules/risk/sch_0000000000000/run", "one job more"),
        ("schedules", "h", "/api/v1/schedules/risk/sch_0000000000000/pause", "until it is resumed"),
        ("schedule risk sch_1", "h", "/api/v1/schedules/risk/sch_0000000000000/pause", "resumed"),
        ("webhooks", "h", f"{WEBHOOK}/disable", "7 waiting"),
    ],
)
async def test_a_verb_asks_first_and_then_posts(world, console, tools, place, key, path, words):
    async with console(goto=place) as pilot:
        await open_dialog(pilot, tools, key)
        assert pilot.app.focused.id == "cancel"
        assert words in " ".join(tools.screen_text(pilot).split())
        assert world.sent() == []
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
        assert world.sent() == [("POST", path, None)]
        await tools.until(pilot, lambda: "$ appliance " in tools.screen_text(pilot))


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("schedules", "/api/v1/schedules/risk/sch_0000000000000"),
        ("webhooks", WEBHOOK),
        ("samples", "/api/v1/models/risk/risk/samples"),
    ],
)
async def test_what_is_removed_is_asked_for_first(world, console, tools, place, path):
    async with console(goto=place) as pilot:
        await open_dialog(pilot, tools, "x")
        if place == "samples":  # they cannot come back
            assert pilot.app.screen.query_one("#verb").disabled
            pilot.app.screen.query_one("#name").focus()
            await tools.type_text(pilot, "risk")
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
        assert world.sent() == [("DELETE", path, None)]


@pytest.mark.parametrize("place", ["jobs", "batches", "comparisons"])
async def test_what_has_ended_is_not_canceled(world, console, tools, place):
    world.views[place][0]["status"] = "failed"
    async with console(goto=place) as pilot:
        await pilot.press("x")
        await tools.until(pilot, lambda: "has ended: failed" in tools.screen_text(pilot))
        assert not tools.is_dialog(pilot)
        assert world.sent() == []


# -- outputs --------------------------------------------------------------------------------------


async def test_an_output_is_saved_to_a_new_private_file(world, console, tools, tmp_path):
    world.views["batches"][0] |= {"status": "succeeded", "rows_done": 10}
    world.replies["GET", OUTPUT] = (200, "prediction\n1\n")
    target = tmp_path / "scored.parquet"
    async with console(goto="batches") as pilot:
        await open_dialog(pilot, tools, "o")
        assert pilot.app.screen.values() == {"path": "batch_0000000000000.parquet"}
        await type_into(pilot, path=str(target))
        await pilot.press("enter")
        await tools.until(pilot, lambda: "Saved" in tools.screen_text(pilot))
        assert target.read_text() == "prediction\n1\n"
        assert target.stat().st_mode & 0o777 == 0o600
        pilot.app.clear_notifications()
        await open_dialog(pilot, tools, "o")
        await type_into(pilot, path=str(target))
        await pilot.press("enter")
        await tools.until(pilot, lambda: "That file exists" in tools.screen_text(pilot))
    assert target.read_text() == "prediction\n1\n"


async def test_half_an_output_is_no_file(world, console, tools, tmp_path):
    world.views["batches"][0] |= {"status": "succeeded"}
    world.replies["GET", OUTPUT] = (409, "job-unfinished")
    target = tmp_path / "scored.parquet"
    async with console(goto="batches") as pilot:
        await open_dialog(pilot, tools, "o")
        await type_into(pilot, path=str(target))
        await pilot.press("enter")
        await tools.until(pilot, lambda: "about job-unfinished" in tools.screen_text(pilot))
        assert not target.exists(), "before the refusal is closed"


async def test_without_an_output_there_is_nothing_to_save(world, console, tools):
    async with console(goto="batches") as pilot:
        await pilot.press("o")
        await tools.until(
            pilot, lambda: "no output: the batch is processing" in tools.screen_text(pilot)
        )
        assert not tools.is_dialog(pilot)


async def test_a_table_is_sent_to_be_scored(world, console, tools, tmp_path):
    data = tmp_path / "rows.csv"
    data.write_text("age\n41\n")
    path = "/api/v1/models/risk/churn/aliases/champion/batch"
    world.replies["POST", path] = (202, {"tenant": "risk", "id": "batch_1"})
    async with console(goto="batches risk") as pilot:
        await open_dialog(pilot, tools, "n")
        await type_into(pilot, model="risk/churn@champion", table=str(data))
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: "batches > batch_1" in tools.screen_text(pilot))
    request = next(r for r in world.requests if r.method == "POST")
    assert dict(request.url.params) == {"into": "parquet", "on_error": "fail"}
    assert request.headers["content-type"] == "text/csv"
    assert request.content == data.read_bytes()


async def test_a_table_in_a_folder_of_the_appliance_is_only_named(world, console, tools):
    path = "/api/v1/models/risk/churn/versions/3/batch"
    world.replies["POST", path] = (202, {"tenant": "risk", "id": "batch_1"})
    async with console(goto="batches") as pilot:
        await open_dialog(pilot, tools, "n")
        await type_into(pilot, model="risk/churn:3", table="lake/rows.parquet", to="lake/out.csv")
        pilot.app.screen.query_one("#f-where").action_step(1)
        pilot.app.screen.query_one("#f-into").action_step(1)
        await tools.settle(pilot)
        assert tools.clipped(pilot) == []
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
    request = next(r for r in world.requests if r.method == "POST")
    assert request.url.path == path
    assert request.content == b""
    wanted = {"from": "lake/rows.parquet", "to": "lake/out.csv", "into": "csv", "on_error": "fail"}
    assert dict(request.url.params) == wanted


# -- schedules ------------------------------------------------------------------------------------


async def test_a_schedule_is_created_with_the_body_as_it_is(world, console, tools, tmp_path):
    body = tmp_path / "body.csv"
    body.write_text("age\n41\n")
    async with console(goto="schedules") as pilot:
        await open_dialog(pilot, tools, "n")
        await type_into(
            pilot, model="churn@champion", cron="0 2 * * *", timezone="Europe/Berlin",
            body=str(body),
        )  # fmt: skip
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
    request = next(r for r in world.requests if r.method == "POST")
    assert request.url.path == "/api/v1/models/risk/churn/schedules"
    assert dict(request.url.params) == {
        "cron": "0 2 * * *", "timezone": "Europe/Berlin", "alias": "champion",
        "catch_up": "one", "overlap": "no", "repeatable": "no",
    }  # fmt: skip
    assert request.headers["content-type"] == "text/csv"
    assert request.content == b"age\n41\n"


async def test_a_table_is_scored_each_night(world, console, tools):
    async with console(goto="schedules") as pilot:
        await open_dialog(pilot, tools, "n")
        table = {"from": "lake/{date}/rows.csv", "to": "lake/{date}/scored.csv"}
        await type_into(pilot, model="churn:3", cron="0 2 * * *", **table)
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
    request = next(r for r in world.requests if r.method == "POST")
    assert request.url.params["from"] == "lake/{date}/rows.csv"
    assert request.url.params["to"] == "lake/{date}/scored.csv"
    assert request.url.params["version"] == "3"
    assert request.content == b""


async def test_a_wrong_schedule_says_what_is_wrong(world, console, tools):
    right = {"model": "churn", "cron": "0 2 * * *", "body": "{}", "from": ""}
    async with console(goto="schedules") as pilot:
        await open_dialog(pilot, tools, "n")
        for wrong, words in (
            ({"model": ""}, "Type a model's name"),
            ({"cron": ""}, "Type five fields"),
            ({"body": ""}, "Type a body"),
            ({"from": "lake/rows.csv"}, "a body or a table, not both"),
            ({"body": "/no/such/file", "from": ""}, "It cannot be read: No such file"),
            ({"body": '{"rows": [1'}, "neither JSON nor the name of a file"),
        ):
            await type_into(pilot, **(right | wrong))
            await press_verb(pilot, tools)
            assert words in tools.screen_text(pilot)
            assert tools.clipped(pilot) == []
        assert world.sent() == []


async def test_a_schedule_that_does_not_run_is_resumed(world, console, tools):
    world.views["schedules"][0]["state"] = "stopped: key-revoked"
    async with console(goto="schedules") as pilot:
        await open_dialog(pilot, tools, "h")
        assert "is not made up for" in " ".join(tools.screen_text(pilot).split())
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
        assert world.sent()[0][1].endswith("/sch_0000000000000/resume")


# -- webhooks -------------------------------------------------------------------------------------


async def test_a_new_webhooks_secret_is_shown_once_and_typed_back(world, console, tools):
    made = {"webhook": {"id": "wh_1", "url": "https://ci.example.com/h"}, "secret": SECRET}
    world.replies["POST", WEBHOOKS] = (201, made)
    async with console(goto="webhooks") as pilot:
        await open_dialog(pilot, tools, "n")
        await type_into(pilot, url="https://ci.example.com/h", events="job.completed, alias.set")
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: SECRET in tools.screen_text(pilot))
        assert tools.clipped(pilot) == []
        assert world.sent() == [
            (
                "POST",
                WEBHOOKS,
                {
                    "url": "https://ci.example.com/h",
                    "events": ["job.completed", "alias.set"],
                    "with_output": False,
                },
            )
        ]
        await tools.type_text(pilot, SECRET[-4:])
        await pilot.press("enter")
        await tools.until(pilot, lambda: not tools.is_dialog(pilot))
        assert SECRET[:12] not in tools.screen_text(pilot)
        assert all(SECRET not in str(vars(n)) for n in pilot.app._notifications)


async def test_a_destination_that_is_refused_is_shown_as_what_it_is(world, console, tools):
    world.replies["POST", WEBHOOKS] = (403, "egress-denied")
    async with console(goto="webhooks") as pilot:
        await open_dialog(pilot, tools, "n")
        await type_into(pilot, url="https://169.254.169.254/x")
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: "X Egress denied  403" in tools.screen_text(pilot))
        assert "What to change about egress-denied" in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []


@pytest.mark.parametrize(
    ("state", "code", "status", "words"),
    [
        ("delivered", "ok", 204, ("The test arrived", "accepted (204)")),
        ("waiting", "egress-denied", None, ("has not arrived", "refused: may not go there")),
        ("waiting", "http-503", 503, ("has not arrived", "http-503", "tried again at")),
    ],
)
async def test_a_test_tells_what_came_of_it(world, console, tools, state, code, status, words):
    found = world.views["deliveries"][0] | {"state": state, "code": code, "status": status}
    world.replies["POST", f"{WEBHOOK}/test"] = (200, found)
    async with console(goto="webhooks") as pilot:
        await pilot.press("t")
        await tools.until(pilot, lambda: tools.is_dialog(pilot))
        await tools.settle(pilot)
        for word in words:
            assert word in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []


async def test_a_delivery_is_sent_again(world, console, tools):
    path = "/api/v1/tenants/risk/webhooks/wh_1/deliveries/msg_00000000000000000000000000/redeliver"
    async with console(goto="webhook risk wh_1") as pilot:
        await tools.until(pilot, lambda: pilot.app.page.row is not None)
        await open_dialog(pilot, tools, "u")
        assert "Send job.completed again" in tools.screen_text(pilot)
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
        assert world.sent() == [("POST", path, None)]


async def test_a_secret_is_rotated_with_an_overlap(world, console, tools):
    made = {"webhook": world.views["webhooks"][0], "secret": SECRET}
    world.replies["POST", f"{WEBHOOK}/rotate"] = (200, made)
    async with console(goto="webhooks") as pilot:
        await open_dialog(pilot, tools, "e")
        await type_into(pilot, hours="many")
        await press_verb(pilot, tools)
        assert "Hours are a number" in tools.screen_text(pilot)
        await type_into(pilot, hours="2")
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: SECRET in tools.screen_text(pilot))
        assert world.sent() == [("POST", f"{WEBHOOK}/rotate", {"overlap_s": 7200})]


# -- comparisons and samples ----------------------------------------------------------------------


async def test_a_comparison_is_started_from_versions_and_a_file(world, console, tools, tmp_path):
    data = tmp_path / "test.csv"
    data.write_text("x,target\n1,0\n")
    path = "/api/v1/comparisons/risk"
    world.replies["POST", path] = (202, {"tenant": "risk", "id": "cmp_1"})
    async with console(goto="comparisons") as pilot:
        await open_dialog(pilot, tools, "n")
        await type_into(pilot, models="churn:3 churn:4", data=str(data), label="target")
        await press_verb(pilot, tools)
        await tools.until(
            pilot, lambda: "appliance > comparisons > cmp_1" in tools.screen_text(pilot)
        )
    request = next(r for r in world.requests if r.method == "POST")
    assert dict(request.url.params) == {
        "models": "churn:3,churn:4", "label": "target", "tolerance": "0.000001",
    }  # fmt: skip
    assert request.headers["content-type"] == "text/csv"
    assert request.content == data.read_bytes()


async def test_a_comparison_without_its_file_is_not_sent(world, console, tools):
    async with console(goto="comparisons") as pilot:
        await open_dialog(pilot, tools, "n")
        await type_into(pilot, models="churn:3", data="/no/such/file.csv")
        await press_verb(pilot, tools)
        assert "It cannot be read: No such file" in tools.screen_text(pilot)
        assert world.sent() == []


async def test_what_is_kept_of_a_models_calls_is_changed(world, console, tools):
    async with console(goto="samples") as pilot:
        await open_dialog(pilot, tools, "e")
        assert pilot.app.screen.values()["percent"] == "5"
        await type_into(pilot, percent="0")
        await tools.settle(pilot)
        assert "No more calls of risk/risk" in tools.screen_text(pilot)
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: bool(world.sent()))
        body = {"percent": 0.0, "days": 7, "count_max": 1000, "bytes_max": 64 * 1024 * 1024}
        assert world.sent() == [("PUT", "/api/v1/models/risk/risk/samples", body)]


async def test_kept_calls_are_repeated_to_a_version(world, console, tools):
    path = "/api/v1/models/risk/risk/replay"
    world.replies["POST", path] = (202, {"tenant": "risk", "id": "cmp_2"})
    async with console(goto="samples") as pilot:
        await open_dialog(pilot, tools, "t")
        for since, words in (("yesterday", "A time is 90s"), ("24h", "")):
            await type_into(pilot, against="4", since=since)
            await press_verb(pilot, tools)
            assert words in tools.screen_text(pilot)
        await tools.until(
            pilot, lambda: "appliance > comparisons > cmp_2" in tools.screen_text(pilot)
        )
        body = {"against": 4, "since_s": 86_400, "limit": 1000}
        assert world.sent() == [("POST", path, body)]
