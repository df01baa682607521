"""The graph of versions: what a parent may be called, and walks that end."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import snapshot_of

from appliance import lineage
from appliance.errors import ManifestInvalid
from appliance.records import Parent
from appliance.store.lineage import children_of, require_parents


def everybody(_name: str) -> bool:
    return True


def parents(snapshot: Any, *texts: str, may_see: Any = everybody) -> list[str]:
    tenant = snapshot.tenant("acme")
    found = lineage.parents_of(snapshot, tenant, texts, may_see=may_see, place="appliance.toml:4")
    return [f"{snapshot.model_by_id(one.model_id).name}@{one.number}" for one in found]


def walk(snapshot: Any, start: str, **how: Any) -> lineage.Walk:
    name, _, number = start.partition("@")
    tenant = snapshot.tenant("acme")
    key = Parent(model_id=snapshot.model(tenant.id, name).id, number=int(number))
    asked = {"direction": "both", "depth": 100, "limit": 1000, "may_see": everybody, **how}
    return lineage.walk(snapshot, tenant, key, **asked)


def names(found: lineage.Walk) -> dict[str, int]:
    return {f"{n.model.name}@{n.key.number}": n.distance for n in found.nodes}


FAMILY = {
    "base": [[], ["base@1"]],
    "left": [["base@1"]],
    "right": [["base@1", "base@2"]],
    "both": [["left@1", "right@1"]],
    "other": [[]],
}


def test_a_parent_is_named_in_four_ways_and_kept_once() -> None:
    snapshot = snapshot_of(FAMILY)
    found = parents(snapshot, "left@1", "right:1", "acme/base@2", "acme/base:2", " left@1 ")
    assert found == ["left@1", "right@1", "base@2"]


@pytest.mark.parametrize(
    "text",
    [
        "resnet50 of torchvision",
        "https://hub.test/a/b@3",
        "team@example.com",
        "",
        "Left@1",
        "x@live",
    ],
)
def test_what_is_no_name_of_a_version_is_free_text(text: str) -> None:
    snapshot = snapshot_of({"both": [[]]})
    assert parents(snapshot, text) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lost@1", "no model 'lost'"),
        ("left@2", "its versions are 1 to 1"),
        ("left@0", "its versions are 1 to 1"),
        ("beta/left@1", "not of the tenant 'acme'"),
        ("left@live", "an alias moves"),
        ("acme/left@best", "an alias moves"),
    ],
)
def test_a_parent_that_is_not_there_is_refused_with_line_and_reason(text: str, why: str) -> None:
    snapshot = snapshot_of(FAMILY)
    with pytest.raises(ManifestInvalid) as refused:
        parents(snapshot, text)
    assert why in refused.value.detail
    assert refused.value.detail.startswith("appliance.toml:4: lineage.parents: ")
    assert refused.value.fields[0].pointer == "appliance.toml:4"
    assert refused.value.hint


def test_a_model_one_may_not_see_reads_like_one_that_is_not_there() -> None:
    snapshot = snapshot_of(FAMILY)
    details = []
    for text in ("left@1", "lost@1"):
        with pytest.raises(ManifestInvalid) as refused:
            parents(snapshot, text, may_see=lambda name: name == "both")
        details.append(refused.value.detail.replace("left", "NAME").replace("lost", "NAME"))
    assert details[0] == details[1]
    assert parents(snapshot, "left@live", may_see=lambda name: name == "both") == []


def test_ancestors_are_behind_and_descendants_ahead_each_once() -> None:
    snapshot = snapshot_of(FAMILY)
    assert names(walk(snapshot, "both@1")) == {
        "both@1": 0, "left@1": -1, "right@1": -1, "base@1": -2, "base@2": -2,
    }  # fmt: skip
    found = walk(snapshot, "base@1")
    assert names(found) == {"base@1": 0, "base@2": 1, "left@1": 1, "right@1": 1, "both@1": 2}
    assert len(found.edges) == len(set(found.edges)) == 6
    assert names(walk(snapshot, "left@1", direction="ancestors")) == {"left@1": 0, "base@1": -1}
    assert names(walk(snapshot, "other@1")) == {"other@1": 0}


def test_depth_and_number_bound_a_walk_and_what_is_left_off_is_counted() -> None:
    snapshot = snapshot_of(FAMILY)
    near = walk(snapshot, "both@1", depth=1)
    assert names(near) == {"both@1": 0, "left@1": -1, "right@1": -1}
    assert near.left_off == 2
    assert walk(snapshot, "both@1", depth=0).left_off == 2
    few = walk(snapshot, "base@1", direction="descendants", limit=2)
    assert (len(few.nodes), few.left_off) == (3, 2)


def test_models_one_may_not_see_are_counted_and_end_the_walk() -> None:
    snapshot = snapshot_of(FAMILY)
    found = walk(snapshot, "both@1", may_see=lambda name: name in ("both", "left", "base"))
    assert names(found) == {"both@1": 0, "left@1": -1, "base@1": -2}
    assert found.hidden == 1


def test_a_removed_ancestor_is_named_and_nothing_before_it_is_known() -> None:
    snapshot = snapshot_of({**FAMILY, "left": [["base@1"]]}, removed=("left",))
    found = walk(snapshot, "both@1", direction="ancestors")
    by_name = {n.model.name: n for n in found.nodes}
    assert by_name["left"].version is None
    assert by_name["right"].version is not None
    with pytest.raises(ManifestInvalid, match="no model 'left'"):
        parents(snapshot, "left@1")
    removed = Parent(model_id=by_name["left"].key.model_id, number=1)
    with pytest.raises(ManifestInvalid, match="removed"):
        require_parents(snapshot, snapshot.tenant("acme").id, (removed,))


def test_a_ring_that_cannot_be_registered_would_still_end() -> None:
    snapshot = snapshot_of({"a": [["b@1"]], "b": [["c@1"]], "c": [["a@1"]]})
    assert names(walk(snapshot, "a@1", direction="ancestors")) == {"a@1": 0, "b@1": -1, "c@1": -2}


def test_ten_thousand_generations_need_no_deeper_call_than_one() -> None:
    chain = {"m": [[], *([f"m@{n}"] for n in range(1, 10_000))]}
    snapshot = snapshot_of(chain)
    found = walk(snapshot, "m@10000", direction="ancestors", depth=10_000, limit=10_000)
    assert (len(found.nodes), found.nodes[-1].distance, found.left_off) == (10_000, -9999, 0)
    ahead = walk(snapshot, "m@1", direction="descendants", depth=10_000, limit=10_000)
    assert (len(ahead.nodes), len(ahead.edges)) == (10_000, 9999)
    assert len(children_of(snapshot, snapshot.tenant("acme").id)) == 9999


def test_parents_outside_are_told_apart_from_versions() -> None:
    snapshot = snapshot_of({"base": [[]], "m": [["base@1", "bert of elsewhere", "base@9"]]})
    version = snapshot.version(snapshot.model(snapshot.tenant("acme").id, "m").id, 1)
    # "base@9" was written before such names were looked up: it stays the text it was.
    assert lineage.outside_of(snapshot, version) == ("bert of elsewhere", "base@9")
