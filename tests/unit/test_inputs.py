"""A body that breaks its version's schema is refused with pointers; checking has a known cost."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from appliance import manifest
from appliance.errors import InputInvalid, ManifestInvalid
from appliance.inputs import CHECKS_MAX, Checks, SchemaRefused, require_schema
from appliance.records import Artifact, Blob, Manifest, Version

ROWS: dict[str, Any] = {
    "type": "object",
    "required": ["rows"],
    "additionalProperties": False,
    "properties": {
        "rows": {
            "type": "array",
            "items": {
                "type": "array",
                "minItems": 4,
                "maxItems": 4,
                "items": {"type": "number"},
            },
        }
    },
}
HEAD = b'runtime = "python3.11"\nentry = "model:Model"\n'


def version_of(
    schema: dict[str, Any] | None, *, number: int = 1, is_checked: bool = True
) -> Version:
    return Version(
        model_id="m",
        tenant_id="t",
        number=number,
        manifest=Manifest(
            runtime="python3.11", entry="model:Model", input_schema=schema, check_input=is_checked
        ),
        artifact=Artifact(blob=Blob(id="b", size_bytes=1, digest="sha256:0"), files=()),
        runtime_digest="sha256:0",
        created_ns=0,
        created_by="me",
    )


def refusal(body: bytes, schema: dict[str, Any] = ROWS) -> InputInvalid:
    with pytest.raises(InputInvalid) as caught:
        Checks().require(version_of(schema), "application/json", body)
    return caught.value


def test_what_a_version_takes_passes() -> None:
    Checks().require(version_of(ROWS), "application/json", b'{"rows": [[1, 2, 3, 4.5]]}')


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"rows": [[1, 2, 3, "x"]]}', "/rows/0/3"),
        (b'{"rows": [[1, 2, 3, 4], [1]]}', "/rows/1"),
        (b'{"rows": 5}', "/rows"),
        (b"{}", ""),
        (b"[]", ""),
        (b'{"rows": [], "a/b~c": 1}', ""),
    ],
)
def test_the_pointer_of_what_is_wrong_is_named(body: bytes, pointer: str) -> None:
    found = refusal(body)
    assert found.fields[0].pointer == pointer
    assert found.fields[0].detail in found.detail


def test_a_name_with_slashes_is_escaped_in_its_pointer() -> None:
    found = refusal(b'{"a/b~c": 1}', {"additionalProperties": {"type": "string"}})
    assert found.fields[0].pointer == "/a~1b~0c"


def test_many_wrong_fields_are_a_few_and_large_values_are_not_repeated() -> None:
    found = refusal(json.dumps({"rows": [["x" * 5000] * 4] * 50}).encode())
    assert len(found.fields) == 8
    assert max(len(field.detail) for field in found.fields) < 300


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"rows": NaN}'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert "not JSON" in refusal(body, {"type": "object"}).detail


def test_text_bytes_and_versions_that_only_tell_are_not_checked() -> None:
    checks = Checks()
    checks.require(version_of(ROWS), "text/csv", b"1,2\n")
    checks.require(version_of(ROWS, is_checked=False), "application/json", b"5")
    with pytest.raises(InputInvalid):
        checks.require(version_of(ROWS), "application/vnd.x+json; charset=utf-8", b"5")


def test_two_versions_are_told_apart() -> None:
    checks = Checks()
    checks.require(version_of({"type": "number"}, number=2), "application/json", b"5")
    with pytest.raises(InputInvalid):
        checks.require(version_of({"type": "string"}, number=3), "application/json", b"5")


def test_a_body_that_would_take_long_goes_to_the_model_unchecked() -> None:
    rows = CHECKS_MAX // 20
    Checks().require(
        version_of(ROWS), "application/json", json.dumps({"rows": [["x"] * 4] * rows}).encode()
    )


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "http://127.0.0.1/x"}, "nothing is fetched"),
        ({"$ref": "#"}, "back to itself"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "to itself"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$dynamicRef": "#x"}, "not used here"),
        ({"type": "nonsense"}, "no JSON Schema"),
        ({"pattern": "("}, "no JSON Schema"),
        ({"pattern": "(a{1000}){1000}"}, "no JSON Schema"),
        ({"pattern": r"(?=a)b"}, "no JSON Schema"),
    ],
)
def test_a_schema_whose_cost_is_not_known_is_refused(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(SchemaRefused, match=re.escape(reason)):
        require_schema(schema)


def test_references_count_as_often_as_they_are_followed() -> None:
    layers: dict[str, Any] = {"a0": {"type": "number"}}
    for at in range(1, 30):
        layers[f"a{at}"] = {"allOf": [{"$ref": f"#/$defs/a{at - 1}"}] * 2}
    with pytest.raises(SchemaRefused, match="more than 4096 rules"):
        require_schema({"$defs": layers, "$ref": "#/$defs/a29"})


def test_a_manifest_with_a_schema_holds_bodies_to_it_unless_told_otherwise() -> None:
    text = HEAD + b'[input_schema]\ntype = "object"\n'
    assert manifest.parse({"appliance.toml": text}).check_input
    text = HEAD + b'check_input = false\n[input_schema]\n"$ref" = "#"\n'
    assert not manifest.parse({"appliance.toml": text}).check_input
    assert not manifest.parse({"appliance.toml": HEAD}).check_input


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (HEAD + b'\n[input_schema]\n"$ref" = "#"\n', "appliance.toml:4: input_schema: a $ref that"),
        (HEAD + b"check_input = true\n", "appliance.toml:3: check_input: there is no"),
    ],
)
def test_a_manifest_that_cannot_be_held_names_key_line_and_way_out(
    text: bytes, detail: str
) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        manifest.parse({"appliance.toml": text})
    assert detail in caught.value.detail
    assert caught.value.hint
