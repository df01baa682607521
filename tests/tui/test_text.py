"""Text as a terminal may show it, and places as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tui import text
from tui.nav import HOME, SCREENS, Place, place_from


@given(st.text(), st.integers(0, 40))
def test_clipped_text_fits_and_cannot_drive_the_terminal(words, width):
    shown = text.clip(words, width)
    assert cell_len(shown) <= width
    assert all(c.isprintable() for c in shown)


@given(st.text(), st.integers(1, 40), st.booleans())
def test_fitted_text_has_exactly_its_width(words, width, right):
    assert cell_len(text.fit(words, width, right=right)) == width


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3725, "1h02m"), (273600, "3d04h"), (1e9, "11574d")],
)
def test_durations(seconds, shown):
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (536870912, "512 MiB"), (None, "-")],
)
def test_sizes(value, shown):
    assert text.size(value) == shown


@given(st.floats(0, 9e11))
def test_counts_are_at_most_six_characters(value):
    assert len(text.count(value)) <= 6


@pytest.mark.parametrize("value", ["", None, "yesterday", 5, "2026-99-99T00:00:00Z"])
def test_what_is_no_time_reads_as_none(value):
    assert text.stamp(value) == "-"
    assert text.age(value) == "-"


def test_times_are_utc():
    assert text.stamp("2026-01-31T13:00:00+01:00") == "2026-01-31 12:00:00"


def test_canonical_json_has_one_form():
    assert text.canonical({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        ("m", Place("models")),
        ("models", Place("models")),
        ("mod", Place("models")),
        ("m risk /fraud x", Place("models", ("risk",), "fraud x")),
        ("m /fraud", Place("models", (), "fraud")),
        ("model risk/fraud", Place("model", ("risk", "fraud"))),
        ("version risk fraud v7", Place("version", ("risk", "fraud", "7"))),
        ("entry 12", Place("entry", ("12",))),
        ("D", HOME),
    ],
)
def test_places_as_typed(typed, place):
    assert place_from(typed) == place


@given(st.text(max_size=60))
def test_whatever_is_typed_is_a_place_or_a_reason(words):
    found = place_from(words)
    assert isinstance(found, (Place, str))
    if isinstance(found, Place):
        assert isinstance(found.ancestors(), tuple)


def test_every_screen_has_a_letter_of_its_own():
    letters = [n.alias for n in SCREENS if n.alias]
    assert len(letters) == len(set(letters))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (-1.0, "0.00s"), (0.124, "0.12s"), (4.71, "4.7s"), (66.0, "1m06s")],
)
def test_how_long_something_took_is_told_finely_where_it_is_short(seconds, shown):
    assert text.spent(seconds) == shown


@pytest.mark.parametrize("seconds", [1, 60, 90, 3600, 5400, 86_400, 604_800])
def test_a_span_reads_back_as_it_was_written(seconds):
    assert text.seconds_of(text.span(seconds)) == seconds


@pytest.mark.parametrize("words", ["", "h", "0h", "1", "-1h", "1.5h", "1y", "²h", "99999999d"])
def test_what_is_no_span_is_none(words):
    assert text.seconds_of(words) is None


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 0, "[------]   0%"), (1, 2, "[###---]  50%"), (999, 1000, "[#####-]  99%"),
     (5, 5, "[######] 100%"), (7, 5, "[######] 100%")],
)  # fmt: skip
def test_a_bar_is_full_only_when_all_is_done(part, whole, shown):
    assert text.bar(part, whole) == shown
