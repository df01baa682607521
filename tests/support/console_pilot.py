"""What a person does at the console and what they see, for Pilot tests.

Owns: waiting, typing, the screen as text, and the check that nothing is clipped.
Never: asserts anything by itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from rich.cells import cell_len
from textual.pilot import Pilot
from textual.screen import ModalScreen
from textual.widgets import Static


async def until(pilot: Pilot[int], test: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Let the console run until something is true."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not test():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"never came true; screen is:\n{screen_text(pilot)}")
        await pilot.pause(0.01)


async def settle(pilot: Pilot[int]) -> None:
    """Let one poll and its drawing pass."""
    await pilot.pause(0.15)
    await pilot.pause()


async def type_text(pilot: Pilot[int], words: str) -> None:
    names = {
        ":": "colon",
        "/": "slash",
        " ": "space",
        "?": "question_mark",
        "-": "minus",
        "_": "underscore",
    }
    await pilot.press(*(names.get(c, c) for c in words))


def screen_text(pilot: Pilot[int]) -> str:
    """What the terminal would show, as lines of text, dialogs included."""
    lines = []
    for strip in pilot.app.screen._compositor.render_strips(pilot.app.size):
        lines.append("".join(segment.text for segment in strip))
    return "\n".join(lines)


def clipped(pilot: Pilot[int]) -> list[str]:
    """Every visible text that does not fit the place it was given."""
    found = []
    screen = pilot.app.screen
    for widget in screen.walk_children(Static):
        if (
            not widget.display
            or not widget.region.width
            or any(not a.display for a in widget.ancestors if hasattr(a, "display"))
        ):
            continue
        width, height = widget.content_size
        lines = str(widget.render()).split("\n") if str(widget.render()) else []
        needed = sum(max(1, math.ceil(cell_len(line) / max(1, width))) for line in lines)
        if needed > height:
            found.append(f"{widget!r}: {needed} lines in {width}x{height}: {lines!r}"[:300])
        parent = widget.parent
        scrolls = any(
            a.allow_vertical_scroll for a in widget.ancestors if hasattr(a, "allow_vertical_scroll")
        )
        if not scrolls and hasattr(parent, "content_region"):  # noqa: SIM102
            if not parent.content_region.contains_region(widget.region):
                found.append(f"{widget!r}: {widget.region} outside {parent.content_region}")
    return found


def is_dialog(pilot: Pilot[int]) -> bool:
    return isinstance(pilot.app.screen, ModalScreen)
