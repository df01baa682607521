"""First run and unseal: what is asked, sent once, and never kept."""

from __future__ import annotations

import pytest


async def fill(pilot, **values):
    for name, value in values.items():
        pilot.app.screen.query_one(f"#{name}").value = value
    await pilot.pause()


async def test_from_an_empty_data_folder_to_a_tenant_with_a_key(world, console, tools):
    world.state = "uninitialised"
    world.fill("three")
    async with console() as pilot:
        await tools.until(pilot, lambda: "1 of 3 preflight" in tools.screen_text(pilot))
        await tools.settle(pilot)
        shown = tools.screen_text(pilot)
        assert "NOT INITIALISED" in shown
        assert "remedy: apt install" in shown
        assert tools.clipped(pilot) == []
        await pilot.press("enter")
        await tools.settle(pilot)
        assert tools.clipped(pilot) == []
        await tools.type_text(pilot, "correct horse battery")
        await pilot.press("enter")
        await tools.type_text(pilot, "correct horse")
        await pilot.press("enter")
        await tools.settle(pilot)
        assert "differ" in tools.screen_text(pilot)
        assert world.sent() == []
        await tools.type_text(pilot, " battery")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "3 of 3 first tenant" in tools.screen_text(pilot))
        secret = {"passphrase": "correct horse battery"}
        assert world.sent() == [
            ("POST", "/admin/v1/init", secret),
            ("POST", "/admin/v1/unseal", secret),
        ]
        assert "correct horse" not in tools.screen_text(pilot)
        assert tools.clipped(pilot) == []
        await tools.settle(pilot)
        assert "3 of 3 first tenant" in tools.screen_text(pilot)
        await tools.type_text(pilot, "risk")
        await pilot.press("enter")
        await tools.until(pilot, lambda: tools.SECRET[:30] in tools.screen_text(pilot))
        assert world.sent()[2:] == [
            ("POST", "/api/v1/tenants", {"name": "risk"}),
            (
                "POST",
                "/api/v1/tenants/risk/keys",
                {"name": "owner", "role": "owner", "expires_in_days": 90, "scopes": []},
            ),
        ]
        await tools.type_text(pilot, tools.SECRET[-4:])
        await pilot.press("enter")
        await tools.until(pilot, lambda: "appliance > dashboard" in tools.screen_text(pilot))


async def test_a_key_file_is_a_path_on_the_server(world, console, tools):
    world.state = "uninitialised"
    async with console() as pilot:
        await tools.until(pilot, lambda: "preflight" in tools.screen_text(pilot))
        await pilot.press("enter")
        await tools.settle(pilot)
        await pilot.press("shift+tab", "right", "tab")
        await tools.type_text(pilot, "relative")
        await pilot.press("enter")
        await tools.settle(pilot)
        assert "absolute path" in tools.screen_text(pilot)
        await fill(pilot, first="/etc/unseal.key")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "first tenant" in tools.screen_text(pilot))
        assert world.sent()[0] == ("POST", "/admin/v1/init", {"key_file": "/etc/unseal.key"})
        pilot.app.screen.query_one("#skip").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: "appliance > dashboard" in tools.screen_text(pilot))


@pytest.mark.parametrize("words", ["short", ""])
async def test_a_short_passphrase_is_refused_here(world, console, tools, words):
    world.state = "uninitialised"
    async with console() as pilot:
        await tools.until(pilot, lambda: "preflight" in tools.screen_text(pilot))
        await pilot.press("enter")
        await tools.settle(pilot)
        await fill(pilot, first=words, second=words)
        pilot.app.screen.query_one("#init").focus()
        await pilot.press("enter")
        await tools.settle(pilot)
        assert "at least 12" in tools.screen_text(pilot)
        assert world.sent() == []


async def test_a_refused_initialisation_is_explained_and_can_be_repeated(world, console, tools):
    world.state = "uninitialised"
    world.replies["POST", "/admin/v1/init"] = (507, "disk-full")
    async with console() as pilot:
        await tools.until(pilot, lambda: "preflight" in tools.screen_text(pilot))
        await pilot.press("enter")
        await tools.settle(pilot)
        await fill(pilot, first="correct horse battery", second="correct horse battery")
        pilot.app.screen.query_one("#init").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: "req_problem" in tools.screen_text(pilot))
        assert tools.clipped(pilot) == []
        await tools.settle(pilot)
        await tools.settle(pilot)
        del world.replies["POST", "/admin/v1/init"]
        await pilot.press("enter")
        await tools.until(pilot, lambda: "first tenant" in tools.screen_text(pilot))


async def test_read_only_initialises_nothing(world, console, tools):
    world.state = "uninitialised"
    async with console(readonly=True) as pilot:
        await tools.until(pilot, lambda: "preflight" in tools.screen_text(pilot))
        await pilot.press("enter")
        await tools.settle(pilot)
        await fill(pilot, first="correct horse battery", second="correct horse battery")
        pilot.app.screen.query_one("#init").focus()
        await pilot.press("enter")
        await tools.settle(pilot)
        assert "--readonly" in tools.screen_text(pilot)
        assert world.sent() == []


async def test_a_wrong_passphrase_stays_sealed_and_a_right_one_goes_back(world, console, tools):
    async with console(goto="models") as pilot:
        world.state = "sealed"
        await tools.until(pilot, lambda: "Unseal with" in tools.screen_text(pilot))
        await tools.settle(pilot)
        assert "Sealed since 2026-01-31" in tools.screen_text(pilot)
        await tools.type_text(pilot, "wrong")
        assert "wrong" not in tools.screen_text(pilot)
        await pilot.press("enter")
        await tools.until(pilot, lambda: "Unseal failed" in tools.screen_text(pilot))
        assert "req_problem" in tools.screen_text(pilot)
        assert pilot.app.screen.query_one("#secret-in").value == ""
        assert tools.clipped(pilot) == []
        await tools.type_text(pilot, world.passphrase)
        await pilot.press("enter")
        await tools.until(pilot, lambda: "appliance > models" in tools.screen_text(pilot))


async def test_health_is_shown_while_sealed_and_models_are_not(world, console, tools):
    world.state = "sealed"
    async with console() as pilot:
        await tools.until(pilot, lambda: "Unseal with" in tools.screen_text(pilot))
        await pilot.press("tab")
        await tools.type_text(pilot, ":h")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "Rootless Podman" in tools.screen_text(pilot))
        await tools.type_text(pilot, ":m")
        await pilot.press("enter")
        await tools.until(pilot, lambda: "only health can be shown" in tools.screen_text(pilot))
        await pilot.press("escape")
        await tools.until(pilot, lambda: "Unseal with" in tools.screen_text(pilot))


async def test_an_open_dialog_gives_way_to_sealed_but_a_secret_does_not(world, console, tools):
    async with console(goto="keys") as pilot:
        await pilot.press("n")
        await tools.settle(pilot)
        world.state = "sealed"
        await tools.until(pilot, lambda: "Unseal with" in tools.screen_text(pilot))
        world.state = "ready"
        await tools.until(pilot, lambda: "appliance > keys" in tools.screen_text(pilot))
        await pilot.press("n")
        await tools.settle(pilot)
        await tools.type_text(pilot, "ci")
        pilot.app.screen.query_one("#f-tenant").value = "risk"
        pilot.app.screen.query_one("#f-scopes").focus()
        await pilot.press("enter")
        await tools.until(pilot, lambda: tools.SECRET[:30] in tools.screen_text(pilot))
        world.state = "sealed"
        await tools.settle(pilot)
        await tools.settle(pilot)
        assert tools.SECRET[:30] in tools.screen_text(pilot)
        await tools.type_text(pilot, tools.SECRET[-4:])
        await pilot.press("enter")
        await tools.until(pilot, lambda: "Unseal with" in tools.screen_text(pilot))
