"""The catalogue's pure parts: columns of schemas, ranking with reasons, what is alike."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import TENANT, Made, artifact_of

from appliance.catalogue import Catalogue, Page, Question, columns, found_alike, search
from appliance.catalogue.alike import text_of
from appliance.records import Lineage, Manifest, Tenant

NUMBER = {"type": "number"}
ROW = {"type": "object", "properties": {"age": {"type": "integer"}, "income": NUMBER}}
OTHER = Tenant(id="ten_beta", name="beta", created_ns=1, created_by="uid:0")


def has(**members: Any) -> dict[str, Any]:
    return {"type": "object", "properties": members}


def list_of(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


BOTH = {"age": "integer", "income": "number"}
REFERRING = {
    "allOf": [has(a=NUMBER), {"$ref": "#/$defs/b"}],
    "$defs": {"b": has(b={})},
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (None, {}),
        ({}, {}),
        (ROW, BOTH),
        (list_of(ROW), BOTH),
        (has(rows=list_of(ROW)), BOTH),
        (has(columns=ROW), BOTH),
        (has(rows=list_of(list_of(NUMBER))), {}),
        (has(a=ROW, b={}), {"b": "", "a.age": "integer", "a.income": "number"}),
        (has(labels=list_of({"type": "string"})), {"labels": "string"}),
        (REFERRING, {"a": "number", "b": ""}),
        ({"$ref": "https://elsewhere.test/schema"}, {}),
        (has(a={"type": ["string", "null"]}, b=True), {"a": "", "b": ""}),
        ({"properties": [1], "items": "x", "anyOf": 3, "$ref": 7}, {}),
    ],
)
def test_columns_are_what_is_inside_the_containers(schema: Any, expected: dict[str, str]) -> None:
    assert columns.of_schema(schema) == expected


def test_columns_come_from_options_and_from_a_body_that_was_answered() -> None:
    plain = {"runtime": "python3.11", "entry": "@sklearn:m.joblib"}
    assert columns.inputs_of(Manifest(**plain, options={"columns": {"x": "double"}})) == {"x": ""}
    for sample in (
        '{"records": [{"x": 0.0, "y": 1}]}',
        '[{"x": 0.0, "y": 1}]',
        '{"columns": {"x": [1], "y": [2]}}',
        '{"dataframe_split": {"columns": ["x", "y"], "data": [[1, 2]]}}',
    ):
        assert columns.inputs_of(Manifest(**plain, sample=sample)) == {"x": "", "y": ""}
    for sample in ("", "{", '{"rows": [[1]]}', "[[1, 2]]", '"text"', '{"columns": 3}'):
        assert columns.inputs_of(Manifest(**plain, sample=sample)) == {}


def test_a_schema_made_to_take_long_is_read_in_bounded_steps() -> None:
    ring = {"anyOf": [{"$ref": "#"}] * 3000, "properties": {"a": NUMBER}}
    wide = {f"n{at}": {"$ref": "#"} for at in range(900)}
    for schema in (ring, {"properties": wide}, {"anyOf": [ring] * 50}):
        reader = columns._Reader(schema)
        assert len(reader.columns()) <= columns.COLUMNS_MAX
        assert reader._left > -columns._STEPS_MAX
    deep: dict[str, Any] = ROW
    for _ in range(1000):
        deep = {"items": deep}
    assert columns.of_schema(deep) == {}


def library() -> Made:
    made = Made()
    made.add_tenant(OTHER)
    made.add(
        "churn", description="Who leaves within 90 days", tags={"team": "retention", "tier": "1"},
        input_schema=ROW, output_schema={"properties": {"score": NUMBER}}, created_by="key_ann",
        lineage=Lineage(data=("sha256:77d2e4c09a contracts",), code="git 1a2b3c4d5e", run="n 17"),
    )  # fmt: skip
    made.add(
        "churn", description="Who leaves within 90 days", tags={"team": "retention"},
        input_schema={"properties": {**ROW["properties"], "region": {}}}, created_by="key_bob",
    )  # fmt: skip
    made.add("churn-report", description="A table for people", runtime="r4.2")
    made.add("prices", description="Market prices; no churn in it", tags={"about": "churned"})
    made.add("iris", convention="onnx", input_schema={"properties": {"Age": NUMBER}})
    made.add("gone", description="churn of old", retired_ns=5)
    made.add("churn", tenant=OTHER, description="of another tenant")
    return made


def ask(made: Made, *, name_of: Any = lambda _by: "", **question: Any) -> Page:
    shelves = Catalogue().shelves(made.snapshot(), TENANT.id)
    return search(shelves, Question(**question), name_of=name_of)


def names(page: Page) -> list[str]:
    return [f"{hit.card.model.name}@{hit.card.version.number}" for hit in page.hits]


def test_a_name_ranks_before_a_beginning_and_that_before_a_text() -> None:
    assert names(ask(library(), text="churn")) == ["churn@1", "churn-report@1", "prices@1"]
    assert names(ask(library(), text="CHURN table")) == ["churn-report@1"]
    assert names(ask(library(), text="churn nothing")) == []
    assert "gone@1" in names(ask(library(), text="churn", retired=True))
    assert len(ask(library()).hits) == 4


def test_a_model_is_listed_once_with_its_best_version() -> None:
    page = ask(library(), text="churn")
    assert (page.total, page.hits[0].matching, page.hits[0].numbers) == (3, 2, (2, 1))
    assert names(ask(library(), takes=("region",))) == ["churn@2"]
    assert names(ask(library(), tags=(("tier", None),))) == ["churn@1"]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ({"takes": ("AGE",)}, ["iris@1", "churn@1"]),  # fewer others: better covered
        ({"takes": ("age", "income")}, ["churn@1"]),
        ({"takes": ("age",), "gives": ("score",)}, ["churn@1"]),
        ({"takes": ("ag",)}, []),
        ({"tags": (("team", "Retention"),)}, ["churn@1"]),
        ({"tags": (("team", "risk"),)}, []),
        ({"owner": "key_bob"}, ["churn@2"]),
        ({"owner": "Bob"}, ["churn@2"]),
        ({"owner": "bo"}, []),
        ({"runtime": "r4"}, ["churn-report@1"]),
        ({"convention": "ONNX"}, ["iris@1"]),
        ({"data": "sha256:77d2e4c"}, ["churn@1"]),
        ({"data": "77D2E4C09A"}, ["churn@1"]),
        ({"data": "contracts"}, ["churn@1"]),
        ({"data": "sha256:77d2e4c09aff"}, ["churn@1"]),
        ({"data": "sha256:77d2"}, []),
        ({"data": "sha256:88d2e4c09a"}, []),
        ({"code": "1a2b3c4d5e6f7"}, ["churn@1"]),
        ({"run": "n 17"}, ["churn@1"]),
        ({"run": "17 n 4"}, []),
        ({"text": "contracts"}, ["churn@1"]),
        ({"text": "team=retention", "takes": ("region",)}, ["churn@2"]),
    ],
)
def test_everything_asked_for_must_hold(question: dict[str, Any], found: list[str]) -> None:
    named = {"key_bob": "bob", "key_ann": "ann"}
    assert names(ask(library(), name_of=lambda by: named.get(by, ""), **question)) == found


def test_every_hit_says_why_and_where() -> None:
    (hit,) = ask(library(), text="churn days", takes=("age",), tags=(("team", None),)).hits
    told = {
        one.field: (one.text, [one.text[start:end] for start, end in one.spans])
        for one in hit.reasons
    }
    assert told["name"] == ("churn", ["churn"])
    assert told["text"] == ("Who leaves within 90 days", ["days"])
    assert told["takes"] == ("age, income", ["age"])
    assert told["tag"] == ("team=retention", ["team=retention"])


def test_a_long_text_is_cut_around_the_match_and_strange_letters_do_no_harm() -> None:
    made = Made()
    made.add("m", description="İß " * 100 + "needle " + "ſ\x1b[1m" * 100, tags={"(": "[a-"})
    (hit,) = ask(made, text="needle ( [a-").hits
    text = next(one for one in hit.reasons if one.field == "text")
    assert len(text.text) < 130
    assert [text.text[a:b] for a, b in text.spans] == ["needle"]
    assert next(one for one in hit.reasons if one.field == "tag").text == "(=[a-"


def test_pages_do_not_overlap() -> None:
    shelves = Catalogue().shelves(library().snapshot(), TENANT.id)
    pages = [search(shelves, Question(), offset=at, limit=2) for at in (0, 2, 4)]
    assert [len(page.hits) for page in pages] == [2, 2, 0]
    assert {page.total for page in pages} == {4}
    assert len({name for page in pages for name in names(page)}) == 4


def test_cards_are_made_once_and_follow_the_registry() -> None:
    made, catalogue = library(), Catalogue()
    first = {s.model.name: s for s in catalogue.shelves(made.snapshot(), TENANT.id)}
    again = {s.model.name: s for s in catalogue.shelves(made.snapshot(), TENANT.id)}
    assert all(again[name] is shelf for name, shelf in first.items())
    made.add("churn", description="new")
    made.remove("prices")
    now = {s.model.name: s for s in catalogue.shelves(made.snapshot(), TENANT.id)}
    assert set(now) == set(first) - {"prices"}
    assert now["churn"].cards[:2] == first["churn"].cards
    assert now["churn"].cards[0] is first["churn"].cards[0]
    assert now["churn"].cards[2].text.startswith("new")
    assert now["iris"] is first["iris"]
    catalogue.shelves(made.snapshot(), OTHER.id)
    made.tables._remove_tenant(OTHER.id)
    catalogue.shelves(made.snapshot(), TENANT.id)
    assert OTHER.id not in catalogue._tenants


FILES = {"appliance.toml": b"a", "model.py": b"code" * 10, "w.bin": b"w" * 1000, "e": b""}


def alike(made: Made, files: Any, model: str = "new", **manifest: Any) -> list[str]:
    declared = Manifest(runtime="python3.11", entry="model:Model", **manifest)
    shelves = Catalogue().shelves(made.snapshot(), TENANT.id)
    found = found_alike(shelves, model, declared, artifact_of(files))
    by_id = {model.id: model.name for model in made.tables.models.values()}
    return [text_of(one, by_id[one.model_id]) for one in found]


def test_the_same_files_are_found_under_any_name_and_manifest() -> None:
    made = Made()
    made.add("old", files=FILES)
    renamed = {"appliance.toml": b"other", "m.py": FILES["model.py"], "weights": FILES["w.bin"]}
    assert alike(made, renamed) == ["old@1 has the same files"]
    assert alike(made, renamed, "old") == ["old@1 has the same files"]
    assert alike(made, {**FILES, "model.py": b"edit" * 10}, "old") == []
    assert alike(made, {}) == []


def test_most_files_are_told_where_they_are_most_of_the_bytes_too() -> None:
    made = Made()
    made.add("old", files=FILES)
    made.add("big", files={**FILES, "more.bin": b"m" * 9000})
    edited = {**FILES, "model.py": b"edit" * 10}
    assert alike(made, edited) == ["old@1 has most of the same files, 96% of the bytes"]
    retrained = {**FILES, "w.bin": b"v" * 1000}
    assert alike(made, retrained) == []
    scattered = {**{f"f{n}": b"%d" % n for n in range(9)}, "w.bin": FILES["w.bin"]}
    assert alike(made, scattered) == []


def test_the_same_columns_are_told_of_other_models_in_service_only() -> None:
    made = Made()
    gives = {"properties": {"score": NUMBER}}
    made.add("old", input_schema=ROW, output_schema=gives)
    made.add("old", input_schema=ROW, output_schema=gives, retired_ns=4)
    made.add("wider", input_schema={"properties": {**ROW["properties"], "x": {}}})
    made.add("one", input_schema={"properties": {"text": {}}})
    table = {"properties": {"rows": {"type": "array", "items": ROW}}}
    new = {"model.py": b"n"}
    assert alike(made, new, input_schema=table, output_schema=gives) == [
        "old@1 has the same columns"
    ]
    assert alike(made, new, "old", input_schema=table, output_schema=gives) == []
    assert alike(made, new, input_schema=table) == []
    assert alike(made, new, input_schema={"properties": {"text": {}}}) == []


def test_few_hints_are_given_the_nearest_first() -> None:
    made = Made()
    for at in range(9):
        made.add(f"copy-{at}", files=FILES if at % 2 else {"m.py": b"other"}, input_schema=ROW)
    found = alike(made, FILES, input_schema=ROW)
    assert [text.rpartition(" ")[2] for text in found] == ["files"] * 3 + ["columns"] * 3
