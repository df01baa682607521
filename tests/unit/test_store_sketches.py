"""Sketches on disk: what is torn, damaged or old, and days rolled up to hours."""

from __future__ import annotations

from pathlib import Path

import pytest
from storing import Folder

from appliance.drift.sketch import Sketch, bytes_of, plan_of, sketch_from_bytes, sum_of_bytes
from appliance.errors import NotFound
from appliance.store import Keyring, Place, Sketches

DAY = 86_400
START = 20_000 * DAY
PLACE = Place(tenant_id="ten_a", model_id="mod_a", number=1, plan_id="plan_a")
PLAN, _BASE = plan_of({"x": [1, 2, 3]}, {}, 3)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    folder = Folder(tmp_path).make()
    made = Keyring(folder.path, folder.root())
    made.create("ten_a")
    return made


@pytest.fixture
def sketches(tmp_path: Path, keyring: Keyring) -> Sketches:
    return Sketches(tmp_path, keyring)


def one(rows: int) -> bytes:
    made = Sketch.of(PLAN)
    made.count_inputs(PLAN, {"x": [1] * rows}, rows)
    return bytes_of(made)


def rows_of(sketches: Sketches, since: int = 0, place: Place = PLACE) -> list[tuple[int, int]]:
    found = sketches.read(place, since)
    return [(start - START, sketch_from_bytes(data).rows) for start, data in found]


def the_file(tmp_path: Path) -> Path:
    (found,) = (path for path in (tmp_path / "sketches").rglob("*") if path.is_file())
    return found


def test_periods_come_back_in_order_and_from_a_time_on(sketches: Sketches) -> None:
    for at in (0, 60, DAY, 3 * DAY):
        sketches.append(PLACE, START + at, one(at // 60 + 1))
    assert rows_of(sketches) == [(0, 1), (60, 2), (DAY, 1441), (3 * DAY, 4321)]
    assert rows_of(sketches, START + 60) == [(60, 2), (DAY, 1441), (3 * DAY, 4321)]
    other = Place(tenant_id="ten_a", model_id="mod_a", number=1, plan_id="plan_b")
    assert rows_of(sketches, place=other) == []


def test_every_cut_of_the_last_record_loses_that_record_only(
    sketches: Sketches, tmp_path: Path
) -> None:
    sketches.append(PLACE, START, one(1))
    path = the_file(tmp_path)
    first = path.stat().st_size
    sketches.append(PLACE, START + 60, one(2))
    whole = path.read_bytes()
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        assert rows_of(sketches) == [(0, 1)]
        sketches.append(PLACE, START + 120, one(3))
        assert rows_of(sketches) == [(0, 1), (120, 3)]
    for length in range(first):
        path.write_bytes(whole[:length])
        sketches.append(PLACE, START + 120, one(3))
        assert rows_of(sketches) == [(120, 3)]


def test_a_flipped_bit_never_counts(sketches: Sketches, tmp_path: Path) -> None:
    sketches.append(PLACE, START, one(1))
    sketches.append(PLACE, START + 60, one(2))
    path = the_file(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        mangled = bytearray(whole)
        mangled[at] ^= 1
        path.write_bytes(mangled)
        assert set(rows_of(sketches)) <= {(0, 1), (60, 2)}


def test_a_record_in_anothers_place_is_left_out(sketches: Sketches, tmp_path: Path) -> None:
    sketches.append(PLACE, START, one(1))
    other = Place(tenant_id="ten_a", model_id="mod_a", number=2, plan_id="plan_a")
    sketches.append(other, START, one(5))
    paths = sorted(path for path in (tmp_path / "sketches").rglob("*") if path.is_file())
    paths[0].write_bytes(paths[1].read_bytes())
    assert rows_of(sketches) == []
    assert rows_of(sketches, place=other) == [(0, 5)]


def test_days_are_rolled_up_to_hours_and_forgotten_in_the_end(
    sketches: Sketches, tmp_path: Path
) -> None:
    for minute in range(0, 180, 10):
        sketches.append(PLACE, START + minute * 60, one(1))
    before = the_file(tmp_path).stat().st_size

    def tidy(day: int, kept: set[Place], kept_days: int = 30) -> None:
        sketches.tidy(kept, now_s=START + day * DAY, kept_days=kept_days, merge=sum_of_bytes)

    tidy(1, {PLACE})
    assert len(rows_of(sketches)) == 18
    tidy(2, {PLACE})
    assert rows_of(sketches) == [(0, 6), (3600, 6), (7200, 6)]
    path = the_file(tmp_path)
    assert (path.suffix, path.stat().st_size < before / 4) == (".hour", True)
    assert rows_of(sketches, START + 5000) == [(3600, 6), (7200, 6)], "a part of an hour is all"
    tidy(30, {PLACE})
    assert len(rows_of(sketches)) == 3
    tidy(31, {PLACE})
    assert rows_of(sketches) == []


def test_a_crash_between_hours_and_minutes_counts_nothing_twice(
    sketches: Sketches, tmp_path: Path
) -> None:
    sketches.append(PLACE, START, one(1))
    minutes = the_file(tmp_path)
    kept = minutes.read_bytes()
    sketches.tidy({PLACE}, now_s=START + 3 * DAY, kept_days=30, merge=sum_of_bytes)
    minutes.write_bytes(kept)
    assert rows_of(sketches) == [(0, 1)]
    sketches.tidy({PLACE}, now_s=START + 3 * DAY, kept_days=30, merge=sum_of_bytes)
    assert rows_of(sketches) == [(0, 1)]
    assert not minutes.exists()


def test_what_nobody_has_is_forgotten(sketches: Sketches, tmp_path: Path) -> None:
    sketches.append(PLACE, START, one(1))
    sketches.tidy(set(), now_s=START, kept_days=30, merge=sum_of_bytes)
    assert list((tmp_path / "sketches").iterdir()) == []


def test_without_its_tenants_key_nothing_is_written_or_read(
    sketches: Sketches, keyring: Keyring
) -> None:
    sketches.append(PLACE, START, one(1))
    keyring.shred("ten_a")
    assert rows_of(sketches) == []
    with pytest.raises(NotFound):
        sketches.append(PLACE, START + 60, one(1))
