"""The page about the console names every screen and every key there is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tui.frame import _KEY_NAMES, ListPage, Page
from tui.nav import SCREENS

PAGE = (Path(__file__).resolve().parents[2] / "docs/console.md").read_text()
ROWS = {
    cells[2].strip().strip("`"): cells
    for cells in (line.split("|") for line in PAGE.splitlines() if line.startswith("| "))
    if len(cells) == 6
}
EVERYWHERE = {"Enter", "y", "c", "j", "k", "g", "G", "Esc"}


@pytest.mark.parametrize("noun", SCREENS, ids=lambda noun: noun.name)
def test_a_screen_is_on_the_page_with_its_letter_and_its_keys(noun):
    cells = ROWS[noun.name]
    assert cells[1].strip().strip("`") == noun.alias
    module, _, name = noun.screen.partition(":")
    screen = getattr(import_module(f"tui.screens.{module}"), name)
    own = {_KEY_NAMES.get(b.key, b.key) for b in screen.__dict__.get("BINDINGS", ())}
    told = {part for part in cells[4].replace(",", " ").split() if part.startswith("`")}
    assert {key for key in own - EVERYWHERE if f"`{key}`" not in told} <= {"tab"}


def test_the_keys_of_every_screen_are_on_the_page():
    keys = {b.key for cls in (Page, ListPage) for b in cls.__dict__["BINDINGS"]}
    for key in keys:
        name = _KEY_NAMES.get(key, key)
        assert f"`{name}`" in PAGE or f"| {name} |" in PAGE, name
