"""What each verb asks and what it sends; what a refusal looks like.

Owns: the requests, with the names and revisions that were on screen when the key was pressed.
"""

from __future__ import annotations

import pytest


async def press_verb(pilot, tools):
    """Tab to the verb's button and press it."""
    pilot.app.screen.query_one("#verb").focus()
    await pilot.press("enter")
    await tools.settle(pilot)


async def test_a_tenant_is_created_with_the_name_typed(world, console, tools):
    async with console(goto="tenants") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        await tools.type_text(pilot, "retail")
        await pilot.press("enter")
        await tools.until(pilot, lambda: world.sent())
        assert world.sent() == [("POST", "/api/v1/tenants", {"name": "retail"})]
        await tools.until(
            pilot, lambda: "appliance tenant create retail" in tools.screen_text(pilot)
        )
        assert "req_1" in tools.screen_text(pilot)


async def test_removing_a_tenant_needs_its_name_typed_and_cancel_has_the_focus(
    world, console, tools
):
    async with console(goto="tenants") as pilot:
        await pilot.press("x")
        await tools.settle(pilot)
        assert pilot.app.focused.id == "cancel"
        assert pilot.app.screen.query_one("#verb").disabled
        assert "0 models and 0 API keys" in tools.screen_text(pilot)
        pilot.app.screen.query_one("#name").focus()
        await tools.type_text(pilot, "ris")
        assert pilot.app.screen.query_one("#verb").disabled
        await pilot.press("k")
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: world.sent())
        assert world.sent() == [("DELETE", "/api/v1/tenants/risk", None)]


@pytest.mark.parametrize("place", ["tenants", "keys", "models", "sandboxes", "model risk fraud"])
async def test_enter_in_a_fresh_confirm_dialog_changes_nothing(world, console, tools, place):
    async with console(goto=place) as pilot:
        await pilot.press("x")
        await tools.settle(pilot)
        assert tools.is_dialog(pilot)
        assert tools.clipped(pilot) == []
        await pilot.press("enter")
        await tools.settle(pilot)
        assert not tools.is_dialog(pilot)
        assert world.sent() == []


async def test_a_confirmed_verb_hits_the_row_that_was_under_the_cursor(world, console, tools):
    world.fill("many")
    async with console(goto="sandboxes") as pilot:
        await pilot.press("j", "j", "x")
        await tools.settle(pilot)
        target = world.views["sandboxes"][2]["id"]
        assert target in tools.screen_text(pilot)
        world.views["sandboxes"] = world.views["sandboxes"][5:]
        await tools.settle(pilot)
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: world.sent())
        assert world.sent() == [("DELETE", f"/admin/v1/sandboxes/{target}", None)]


async def test_a_new_key_is_shown_once_and_must_be_typed_back(world, console, tools):
    async with console(goto="keys") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        assert tools.clipped(pilot) == []
        await tools.type_text(pilot, "ci")
        await pilot.press("tab", "right", "tab")
        await tools.type_text(pilot, "risk")
        pilot.app.screen.query_one("#f-scopes").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: tools.SECRET[:30] in tools.screen_text(pilot))
        assert tools.clipped(pilot) == []
        body = {"name": "ci", "role": "caller", "expires_in_days": 90, "scopes": []}
        assert world.sent() == [("POST", "/api/v1/tenants/risk/keys", body)]
        await pilot.press("escape")
        await tools.settle(pilot)
        assert "Esc would lose it" in tools.screen_text(pilot)
        await tools.type_text(pilot, "nope")
        await pilot.press("enter")
        assert "not its last 4" in tools.screen_text(pilot)
        pilot.app.screen.query_one("#back").value = ""
        await tools.type_text(pilot, tools.SECRET[-4:])
        await pilot.press("enter")
        await tools.settle(pilot)
        assert not tools.is_dialog(pilot)
        assert tools.SECRET[:20] not in tools.screen_text(pilot)
        assert all(tools.SECRET not in str(vars(n)) for n in pilot.app._notifications)


async def test_an_appliance_key_goes_to_the_appliance(world, console, tools):
    async with console(goto="keys") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        await tools.type_text(pilot, "night")
        await pilot.press("tab", "left", "left")
        assert pilot.app.screen.values()["role"] == "auditor"
        pilot.app.screen.query_one("#f-scopes").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: world.sent())
        assert world.sent()[0][1] == "/api/v1/keys"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("name", "", "Type a name"), ("days", "x", "Days are a number"), ("tenant", "", "belongs to")],
)
async def test_a_wrong_key_form_says_what_is_wrong(world, console, tools, field, value, words):
    async with console(goto="keys") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        for name, filled in (("name", "ci"), ("days", "90"), ("tenant", "risk"), (field, value)):
            pilot.app.screen.query_one(f"#f-{name}").value = filled
        pilot.app.screen.query_one("#f-scopes").focus()
        await pilot.press("enter")
        await tools.settle(pilot)
        assert words in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []
        assert world.sent() == []


async def test_an_alias_moves_from_the_revision_on_screen(world, console, tools):
    world.views["versions"] = [
        dict(world.views["versions"][0], version=n, aliases=["live"] if n == 1 else [])
        for n in (2, 1)
    ]
    async with console(goto="model risk fraud") as pilot:
        await pilot.press("a")
        await tools.settle(pilot)
        shown = tools.screen_text(pilot)
        assert "move from v1 to v2" in shown
        assert "Revision 4 -> 5" in shown
        assert tools.clipped(pilot) == []
        world.extras["versions"]["aliases"][0]["revision"] = 9
        await tools.settle(pilot)
        await pilot.press("tab")
        await tools.type_text(pilot, "night run")
        await pilot.press("enter")
        await tools.until(pilot, lambda: world.sent())
        path = "/api/v1/models/risk/fraud/aliases/live"
        assert world.sent() == [("PUT", path, {"version": 2, "reason": "night run"})]
        request = next(r for r in world.requests if r.method == "PUT")
        assert request.headers["if-match"] == '"4"'


async def test_a_stale_revision_is_shown_with_its_request_id(world, console, tools):
    world.replies["PUT", "/api/v1/models/risk/fraud/aliases/live"] = (412, "revision-stale")
    async with console(goto="model risk fraud") as pilot:
        await pilot.press("a")
        await tools.settle(pilot)
        await pilot.press("tab", "enter")
        await tools.until(pilot, lambda: "Revision stale" in tools.screen_text(pilot))
        shown = tools.screen_text(pilot)
        assert "412" in shown
        assert "req_problem" in shown
        assert tools.clipped(pilot) == []
        await pilot.press("escape")
        await tools.settle(pilot)
        assert not tools.is_dialog(pilot)


async def test_a_new_alias_must_not_exist_yet(world, console, tools):
    async with console(goto="version risk fraud 1") as pilot:
        await pilot.press("a")
        await tools.settle(pilot)
        pilot.app.screen.query_one("#f-alias").value = "shadow"
        await pilot.press("tab", "enter")
        await tools.until(pilot, lambda: world.sent())
        request = next(r for r in world.requests if r.method == "PUT")
        assert request.headers["if-none-match"] == "*"


async def test_a_version_is_retired_by_typing_its_number(world, console, tools):
    async with console(goto="model risk fraud") as pilot:
        await pilot.press("x")
        await tools.settle(pilot)
        assert "410" in tools.screen_text(pilot)
        assert "live" in tools.screen_text(pilot)
        pilot.app.screen.query_one("#name").focus()
        await tools.type_text(pilot, "v1")
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: world.sent())
        assert world.sent() == [("DELETE", "/api/v1/models/risk/fraud/versions/1", None)]


async def test_an_alias_is_removed_at_the_revision_on_screen(world, console, tools):
    async with console(goto="model risk fraud") as pilot:
        await pilot.press("tab")
        assert pilot.app.focused.id == "aliases"
        await pilot.press("x")
        await tools.settle(pilot)
        assert "Remove alias live" in tools.screen_text(pilot)
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: world.sent())
        assert world.sent() == [("DELETE", "/api/v1/models/risk/fraud/aliases/live", None)]
        request = next(r for r in world.requests if r.method == "DELETE")
        assert request.headers["if-match"] == '"4"'


async def test_names_are_encoded_in_paths(world, console, tools):
    row = dict(world.views["sandboxes"][0], id="a/../b?x#y z")
    world.views["sandboxes"] = [row]
    async with console(goto="sandboxes") as pilot:
        await pilot.press("x")
        await tools.settle(pilot)
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: world.sent())
        request = next(r for r in world.requests if r.method == "DELETE")
        assert request.url.raw_path == b"/admin/v1/sandboxes/a%2F..%2Fb%3Fx%23y%20z"


@pytest.mark.parametrize("is_ok", [True, False])
async def test_verification_tells_the_result(world, console, tools, is_ok):
    world.replies["POST", "/api/v1/audit/verify"] = (
        200,
        {
            "ok": is_ok,
            "entries": 1234,
            "first_bad_seq": None if is_ok else 77,
            "detail": "" if is_ok else "leaf hash differs",
            "head": {"size": 1234, "root": "ab" * 32, "time": "2026-01-31T12:00:00Z"},
            "elapsed_ms": 56,
        },
    )
    async with console(goto="audit") as pilot:
        await pilot.press("v")
        await tools.until(pilot, lambda: tools.is_dialog(pilot))
        await tools.settle(pilot)
        shown = tools.screen_text(pilot)
        assert "1234 entries checked" in shown
        assert "ab" * 32 in shown
        assert ("ledger is whole" in shown) is is_ok
        assert ("First entry that fails: 77" in shown) is not is_ok
        assert tools.clipped(pilot) == []


async def test_the_audit_filter_is_applied_by_the_server(world, console, tools):
    async with console(goto="audit") as pilot:
        await pilot.press("slash")
        await tools.type_text(pilot, "kind:call actor:uid tenant:risk foo")
        await pilot.press("enter")
        await tools.settle(pilot)
        asked = dict(world.requests[-1].url.params)
        assert asked == {"view": "audit", "kind": "call.", "actor": "uid", "tenant": "risk"}


async def test_audit_pages_go_back_and_forth(world, console, tools):
    world.fill("many")
    world.views["audit"] = world.views["audit"][:100]
    async with console(goto="audit") as pilot:
        await pilot.press("right_square_bracket")
        await tools.settle(pilot)
        assert world.requests[-1].url.params["before"] == str(tools.MANY - 99)
        await pilot.press("left_square_bracket")
        await tools.settle(pilot)
        assert "before" not in world.requests[-1].url.params


async def test_a_proof_is_saved_to_a_new_private_file(world, console, tools, tmp_path):
    world.replies["GET", "/api/v1/audit/1"] = (200, {"seq": 1, "event": {}, "leaf": "00"})
    world.replies["GET", "/api/v1/audit/1/proof"] = (200, "proof text\n")
    target = tmp_path / "one.proof"
    async with console(goto="entry 1") as pilot:
        for words in ("", "exists"):
            await pilot.press("o")
            await tools.settle(pilot)
            pilot.app.screen.query_one("#f-path").value = str(target)
            await pilot.press("enter")
            await tools.settle(pilot)
            assert words in tools.screen_text(pilot)
    assert target.read_text() == "proof text\n"
    assert target.stat().st_mode & 0o777 == 0o600


async def test_a_refusal_shows_fields_hint_and_request_id(world, console, tools):
    async with console(goto="tenants") as pilot:
        answer = world.answer

        def refuse(request):
            if request.method == "POST":
                errors = [{"pointer": "/name", "detail": "not a legal tenant name"}]
                return world.problem(422, "input-invalid", errors=errors, hint="use a-z")
            return answer(request)

        world.answer = refuse
        await pilot.press("n")
        await tools.settle(pilot)
        await tools.type_text(pilot, "Bad")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "/name: not a legal" in tools.screen_text(pilot))
        shown = tools.screen_text(pilot)
        assert "Try: use a-z" in shown
        assert "Request id: req_problem" in shown
        assert tools.clipped(pilot) == []


async def test_a_verb_without_an_answer_says_so(world, console, tools):
    async with console(goto="tenants") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        await tools.type_text(pilot, "retail")
        world.mode = "down"
        await pilot.press("enter")
        await tools.until(pilot, lambda: "does not answer" in tools.screen_text(pilot))
        assert "none: no answer came" in tools.screen_text(pilot)


@pytest.mark.parametrize(
    ("field", "words"), [("tenant", "tenant's name"), ("host", "Type a host"), ("reason", "reason")]
)
async def test_a_wrong_egress_rule_says_what_is_wrong(world, console, tools, field, words):
    async with console(goto="egress") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        for name in ("tenant", "host", "reason"):
            pilot.app.screen.query_one(f"#f-{name}").value = "" if name == field else "x"
        pilot.app.screen.query_one("#f-reason").focus()
        await pilot.press("enter")
        await tools.settle(pilot)
        assert words in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []
        assert world.sent() == []


async def test_a_runtime_is_built_by_choosing_one_that_is_known(world, console, tools):
    world.views["runtimes"] = [dict(world.views["runtimes"][0], name="python3.11")]
    world.replies["POST", "/admin/v1/runtimes/build"] = (202, {"job": {}, "runtimes": []})
    async with console(goto="runtimes") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        assert pilot.app.screen.values() == {"name": "node18"}, "the first that is not there"
        assert "Makes node18" in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []
        pilot.app.screen.query_one("#verb").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: world.sent())
        body = {"name": "node18", "wait": False}
        assert world.sent() == [("POST", "/admin/v1/runtimes/build", body)]
        await tools.until(
            pilot, lambda: "appliance runtime build node18" in tools.screen_text(pilot)
        )


async def test_a_runtime_is_verified_in_the_background(world, console, tools):
    async with console(goto="runtimes") as pilot:
        await pilot.press("v")
        await tools.until(pilot, lambda: world.sent())
        body = {"name": "risk", "wait": False}
        assert world.sent() == [("POST", "/admin/v1/runtimes/verify", body)]


async def test_a_runtime_is_removed_by_typing_its_name(world, console, tools):
    async with console(goto="runtimes") as pilot:
        await pilot.press("x")
        await tools.settle(pilot)
        assert pilot.app.screen.query_one("#verb").disabled
        pilot.app.screen.query_one("#name").focus()
        await tools.type_text(pilot, "risk")
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: world.sent())
        assert world.sent() == [("DELETE", f"/admin/v1/runtimes/risk/{0:064x}", None)]


async def test_a_runtime_that_versions_use_is_not_removed_and_says_why(world, console, tools):
    uses = [{"tenant": "acme", "model": "fraud", "version": 3}]
    world.views["runtimes"] = [dict(world.views["runtimes"][0], uses=uses)]
    async with console(goto="runtimes") as pilot:
        await pilot.press("x")
        await tools.until(pilot, lambda: "used by acme/fraud v3" in tools.screen_text(pilot))
        assert not tools.is_dialog(pilot)
        assert world.sent() == []


async def test_unused_sets_are_removed_after_asking(world, console, tools):
    done = {"removed": ["ab"], "size_bytes": 7}
    world.replies["POST", "/admin/v1/dependencies/collect"] = (200, done)
    async with console(goto="runtimes") as pilot:
        await pilot.press("u")
        await tools.settle(pilot)
        assert "1 dependency set, 7 B" in tools.screen_text(pilot)
        assert pilot.app.focused.id == "cancel"
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: "Removed 1 dependency set" in tools.screen_text(pilot))
        assert world.sent() == [("POST", "/admin/v1/dependencies/collect", {})]


async def test_work_on_runtimes_moves_while_it_is_watched(world, console, tools):
    job = dict(world.extras["runtimes"]["jobs"][0], name="node18", detail="Retrieving", fraction=0)
    world.extras["runtimes"]["jobs"] = [job]
    async with console(goto="runtimes") as pilot:
        await tools.until(pilot, lambda: "build node18 [----------]" in tools.screen_text(pilot))
        world.extras["runtimes"]["jobs"] = [dict(job, fraction=0.5, detail="unpacking")]
        await tools.until(pilot, lambda: "[#####-----]  50% unpacking" in tools.screen_text(pilot))
        assert "register risk/risk" in tools.screen_text(pilot)
        await pilot.press("o")
        await tools.settle(pilot)
        assert "used by no version" in tools.screen_text(pilot)
        assert "risk 1.0" in tools.screen_text(pilot)


async def test_a_tenants_isolation_is_chosen(world, console, tools):
    async with console(goto="tenants") as pilot:
        assert "standard" in tools.screen_text(pilot)
        await pilot.press("i")
        await tools.settle(pilot)
        pilot.app.screen.query_one("#f-isolation").focus()
        await pilot.press("right")
        await tools.settle(pilot)
        assert "a kernel of its own" in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []
        await press_verb(pilot, tools)
        await tools.until(pilot, lambda: world.sent())
        body = {"isolation": "gvisor"}
        assert world.sent() == [("PUT", "/api/v1/tenants/risk/isolation", body)]


async def test_the_egress_screen_says_how_rules_decide_in_one_line(world, console, tools):
    world.fill("many")
    async with console(goto="egress") as pilot:
        assert "the first rule that matches decides, else no" in tools.screen_text(pilot)
