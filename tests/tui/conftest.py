"""The console in front of a canned admin API: fixtures of the Pilot tests.

Owns: the world, the plain terminal, how the console is opened, and the helpers tests are given.
Never: holds a row or an answer (``canned_world``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from canned_rows import MANY
from canned_world import SECRET, Wire, World
from console_pilot import clipped, is_dialog, screen_text, settle, type_text, until
from textual.pilot import Pilot

from tui.app import ConsoleApp
from tui.client import Client
from tui.nav import Place, place_from

Opened = AbstractAsyncContextManager[Pilot[int]]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same terminal everywhere: colours known, no animation."""
    for name in ("NO_COLOR", "COLORTERM", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def console(world: World) -> Callable[..., Opened]:
    """Open the console on the canned world: ``async with console(size=(80, 24)) as pilot``.

    ``goto`` is gone to at once; words that name no place are typed, so that the prompt stays open.
    """

    @asynccontextmanager
    async def open_console(
        size: tuple[int, int] = (80, 24),
        *,
        readonly: bool = False,
        interval_s: float = 0.1,
        url: str | None = None,
        is_mono: bool = False,
        goto: str = "",
    ) -> AsyncIterator[Pilot[int]]:
        client = Client(
            socket="/nowhere", url=url, api_key="k" if url else None, transport=Wire(world)
        )
        app = ConsoleApp(client, readonly=readonly, interval_s=interval_s, is_mono=is_mono)
        app.animation_level = "none"
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: bool(world.requests) and app.page is not None)
            await settle(pilot)
            place = place_from(goto) if goto else ""
            if isinstance(place, Place):
                app.go(place)
                await settle(pilot)
            elif goto:
                await type_text(pilot, f":{goto}")
                await pilot.press("enter")
                await settle(pilot)
            yield pilot

    return open_console


@pytest.fixture
def tools() -> Any:
    """The helpers above, for tests that cannot import this file."""

    class Tools:
        pass

    for function in (until, settle, type_text, screen_text, clipped, is_dialog):
        setattr(Tools, function.__name__, staticmethod(function))
    Tools.SECRET = SECRET
    Tools.MANY = MANY
    Tools.Wire = Wire
    Tools.World = World
    return Tools
