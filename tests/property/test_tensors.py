"""Tensors survive every way they can be written, and nonsense is refused by name."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.inference import tensors
from appliance.errors import ApplianceError, InputInvalid, Malformed, RunnerProtocol

ELEMENTS = {
    "BOOL": st.booleans(),
    "INT8": st.integers(-128, 127),
    "UINT8": st.integers(0, 255),
    "INT16": st.integers(-(2**15), 2**15 - 1),
    "UINT16": st.integers(0, 2**16 - 1),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "UINT32": st.integers(0, 2**32 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "BYTES": st.text(st.characters(codec="utf-8"), max_size=8),
}
LETTERS = {
    "BOOL": "?", "INT8": "b", "UINT8": "B", "INT16": "h", "UINT16": "H", "INT32": "i",
    "UINT32": "I", "INT64": "q", "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


@st.composite
def tensor(draw: st.DrawFn) -> tensors.Tensor:
    datatype = draw(st.sampled_from(sorted(ELEMENTS)))
    rest = draw(st.lists(st.integers(1, 4), max_size=2))
    shape = [draw(st.integers(0, 4)), *rest]
    count = math.prod(shape)
    values = draw(st.lists(ELEMENTS[datatype], min_size=count, max_size=count))
    return tensors.Tensor(name="x", datatype=datatype, shape=tuple(shape), values=values)


def raw(one: tensors.Tensor) -> bytes:
    """The binary form, written by the protocol's text and not by the code under test."""
    if one.datatype == "BYTES":
        texts = [text.encode() for text in one.values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(one.values)}{LETTERS[one.datatype]}", *one.values)


def nested(one: tensors.Tensor) -> Any:
    def build(values: list[Any], shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return values
        step = math.prod(shape[1:])
        return [build(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]

    return build(one.values, one.shape)


@given(tensor())
def test_json_nested_flat_and_binary_say_the_same(one: tensors.Tensor) -> None:
    described = {"name": "x", "datatype": one.datatype, "shape": list(one.shape)}
    flat = json.dumps({"inputs": [{**described, "data": one.values}]}).encode()
    deep = json.dumps({"inputs": [{**described, "data": nested(one)}]}).encode()
    binary = raw(one)
    head = {"inputs": [{**described, "parameters": {"binary_data_size": len(binary)}}]}
    text = json.dumps(head).encode()
    found = [
        tensors.request_from_bytes(flat, "").inputs,
        tensors.request_from_bytes(deep, "").inputs,
        tensors.request_from_bytes(text + binary, str(len(text))).inputs,
    ]
    assert found == [(one,)] * 3
    assert json.loads(tensors.model_input((one,))) == nested(one)
    assert json.loads(tensors.model_input((one,), is_object=True)) == {"x": nested(one)}


@given(st.lists(tensor(), min_size=2, max_size=4), st.booleans())
def test_several_inputs_reach_the_model_by_name(made: list[tensors.Tensor], binary: bool) -> None:
    named = [replace(one, name=f"n{index}") for index, one in enumerate(made)]
    described, tail = [], b""
    for one in named:
        shown: dict[str, Any] = {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
        }
        if binary:
            shown["parameters"] = {"binary_data_size": len(raw(one))}
            tail += raw(one)
        else:
            shown["data"] = one.values
        described.append(shown)
    text = json.dumps({"inputs": described, "id": "7"}).encode()
    asked = tensors.request_from_bytes(text + tail, str(len(text)) if binary else "")
    assert asked.id == "7"
    assert json.loads(tensors.model_input(asked.inputs)) == {o.name: nested(o) for o in named}


@given(tensor().filter(lambda one: one.datatype in ("BOOL", "INT64", "FP64", "BYTES")))
def test_a_models_answer_is_written_in_json_and_binary(one: tensors.Tensor) -> None:
    answer = json.dumps(nested(one)).encode()
    (found,) = tensors.tensors_from_answer(answer, "application/json")
    if one.values:
        assert (found.datatype, found.values) == (one.datatype, one.values)
    asked = tensors.InferRequest(id="", inputs=(), outputs={}, is_binary=True)
    body, length = tensors.reply_bytes({"model_name": "m"}, tensors.chosen([found], asked))
    (shown,) = json.loads(body[:length])["outputs"]
    assert shown["parameters"] == {"binary_data_size": len(body) - length}
    if one.values:
        assert body[length:] == raw(one)


@given(st.binary(max_size=200), st.one_of(st.just(""), st.integers(0, 250).map(str)))
def test_garbage_is_refused_and_never_fails_otherwise(body: bytes, length: str) -> None:
    with pytest.raises(ApplianceError):
        tensors.request_from_bytes(body, length)


REFUSED = {
    "inputs[0].datatype": {"datatype": "FP128"},
    "inputs[0].data[1]": {"data": [1, "x"]},
    "inputs[0].shape": {"shape": [3]},
    "inputs[0].shape ": {"shape": [2**31 - 1, 0], "data": []},
    "inputs[0].data": {"data": None, "_drop": "data"},
    "inputs[0].parameters.binary_data_size": {
        "parameters": {"binary_data_size": 9},
        "_drop": "data",
    },
}


@pytest.mark.parametrize("place", REFUSED)
def test_a_wrong_field_is_named(place: str) -> None:
    one: dict[str, Any] = {"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 2]}
    one |= REFUSED[place]
    one.pop(one.pop("_drop", "-"), None)
    with pytest.raises(InputInvalid) as caught:
        tensors.request_from_bytes(json.dumps({"inputs": [one]}).encode(), "")
    assert caught.value.fields[0].pointer == place.strip()


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("UINT8", -1), ("INT64", 2**63), ("BOOL", 1), ("INT32", True), ("FP32", "1"),
     ("INT16", 1.0), ("BYTES", 3), ("UINT64", 2**64)],
)  # fmt: skip
def test_an_element_outside_its_type_is_refused(datatype: str, value: Any) -> None:
    one = {"name": "x", "datatype": datatype, "shape": [1], "data": [value]}
    with pytest.raises(InputInvalid):
        tensors.request_from_bytes(json.dumps({"inputs": [one]}).encode(), "")


def test_deep_nesting_is_refused_in_no_time() -> None:
    deep = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * 100_000
    with pytest.raises(Malformed):
        tensors.request_from_bytes(deep, "")


def test_binary_nan_is_refused_because_json_cannot_say_it() -> None:
    head = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [head]}).encode()
    asked = tensors.request_from_bytes(text + struct.pack("<f", math.nan), str(len(text)))
    with pytest.raises(InputInvalid):
        tensors.model_input(asked.inputs)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"0.5", [("output-0", "FP64", (1,), [0.5])]),
        (b"[[1,2],[3,4]]", [("output-0", "INT64", (2, 2), [1, 2, 3, 4])]),
        (b"[1,2.5,null]", [("output-0", "FP64", (3,), [1.0, 2.5, None])]),
        (b'{"a":[1],"b":["x"]}', [("a", "INT64", (1,), [1]), ("b", "BYTES", (1,), ["x"])]),
        (
            b'[{"p":1,"q":true},{"p":2,"q":false}]',
            [("p", "INT64", (2,), [1, 2]), ("q", "BOOL", (2,), [True, False])],
        ),
        (b"[[1],[2,3]]", [("output-0", "BYTES", (1,), ["[[1],[2,3]]"])]),
        (b'{"a":{"b":1}}', [("output-0", "BYTES", (1,), ['{"a":{"b":1}}'])]),
        (b'[1,"x"]', [("output-0", "BYTES", (1,), ['[1,"x"]'])]),
    ],
)
def test_what_a_model_answers_becomes_tensors(answer: bytes, expected: list[Any]) -> None:
    found = tensors.tensors_from_answer(answer, "application/json; charset=utf-8")
    assert [(one.name, one.datatype, one.shape, one.values) for one in found] == expected


def test_an_answer_that_is_not_the_json_it_says_is_the_models_fault() -> None:
    with pytest.raises(RunnerProtocol):
        tensors.tensors_from_answer(b"{", "application/json")


def test_wanted_outputs_come_in_the_wanted_order_and_form() -> None:
    found = tensors.tensors_from_answer(b'{"a":[1],"b":[2],"c":[3]}', "application/json")
    asked = tensors.InferRequest(id="", inputs=(), outputs={"c": True, "a": False}, is_binary=False)
    assert [(one.name, is_binary) for one, is_binary in tensors.chosen(found, asked)] == [
        ("c", True),
        ("a", False),
    ]
    missing = tensors.InferRequest(id="", inputs=(), outputs={"z": False}, is_binary=False)
    with pytest.raises(InputInvalid, match="there is no output 'z'"):
        tensors.chosen(found, missing)
