"""Tensors: what a request of the Open Inference Protocol says, and what a model gets to see.

Owns: reading and writing inference requests, JSON and binary, and the two conversions: tensors to
a model's JSON input, and a model's JSON answer to tensors.
Never: does I/O or knows a model.
Read next: ``calls`` (who uses it); the protocol's ``inference_rest.md`` for the words.

A model takes JSON, whatever its language. One input tensor becomes its nested list; several, or one
for a model whose input schema is an object, become an object of nested lists by name. The way back:
a number, text or rectangular list becomes the tensor ``output-0``, an object of such becomes a
tensor per member, a list of equal objects becomes a column per member. Anything else becomes
``output-0`` as BYTES that hold the JSON text.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from appliance import wire
from appliance.errors import FieldError, InputInvalid, Malformed, RunnerProtocol

JSON_LENGTH = "inference-header-content-length"
OUTPUT = "output-0"
RANK_MAX = 32
_NAMES_SHOWN, _NAMES_SHOWN_CHARACTERS = 32, 1024
NATIVE_BYTES_MAX = 16 * 1024 * 1024
_INT64 = range(-(2**63), 2**63)

# Kind of element, its struct letter and the range of the integers.
_INTEGERS = {
    f"{sign}INT{bits}": (letter if not sign else letter.upper(), bits, sign == "U")
    for bits, letter in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))
    for sign in ("", "U")
}
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d"}
DATATYPES = ("BOOL", *_INTEGERS, *_FLOATS, "BYTES")

Parameter = str | int | float | bool
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Shape = Annotated[list[Annotated[int, Meta(ge=0, lt=2**31)]], Meta(max_length=RANK_MAX)]


class _Input(Struct, kw_only=True):
    name: Name
    shape: Shape
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: Any | UnsetType = UNSET


class _Output(Struct, kw_only=True):
    name: Name
    parameters: dict[str, Parameter] = {}


class _Request(Struct, kw_only=True):
    inputs: Annotated[list[_Input], Meta(min_length=1, max_length=256)]
    id: Annotated[str, Meta(max_length=256)] = ""
    parameters: dict[str, Parameter] = {}
    outputs: Annotated[list[_Output], Meta(max_length=256)] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Named elements in row-major order; ``values`` has as many as ``shape`` multiplies to.

    Elements are bool, int, float or str by ``datatype``; a float may be None where the model said
    null (it is not a number).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What was asked: ``outputs`` maps the wanted names to whether they are wanted in binary.

    Without wanted names all outputs are sent, in binary if ``is_binary``. After ``timeout_us`` the
    caller does not wait for its turn any more; 0: no such time.
    """

    id: str
    inputs: tuple[Tensor, ...]
    outputs: dict[str, bool]
    is_binary: bool
    timeout_us: int = 0


def request_from_bytes(
    body: bytes, json_length: str, *, native_bytes_max: int = NATIVE_BYTES_MAX
) -> InferRequest:
    """The inference request in a body.

    Args:
        body: JSON, followed by binary tensors where the JSON says so.
        json_length: value of the header ``Inference-Header-Content-Length``, "" without it.
        native_bytes_max: most bytes of the document that ``model_input`` makes of it.

    Raises:
        Malformed: it is not JSON, or the binary part is not what the JSON announces.
        InputInvalid: a field is wrong; it is named.
        TooLarge: the document is sure to be larger; found before any element is looked at.
    """
    text, rest = _split(body, json_length)
    try:
        asked = msgspec.json.decode(text, type=_Request)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise _wrong(place.rstrip("`") or "request", reason.replace("`", "'")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise Malformed("The request is not a valid JSON document (RFC 8259).") from None
    inputs, names = [], set()
    if sum(_least_bytes(one.shape) for one in asked.inputs) > native_bytes_max:
        raise wire.too_large(native_bytes_max)
    for index, one in enumerate(asked.inputs):
        where = f"inputs[{index}]"
        if one.name in names:
            raise _wrong(f"{where}.name", f"'{one.name}' is there twice")
        names.add(one.name)
        tensor, rest = _input_tensor(one, where, rest)
        inputs.append(tensor)
    if rest:
        raise Malformed(f"{len(rest)} bytes follow the last binary tensor.")
    is_binary = bool(asked.parameters.get("binary_data_output", False))
    return InferRequest(
        id=asked.id,
        inputs=tuple(inputs),
        outputs={
            one.name: bool(one.parameters.get("binary_data", is_binary)) for one in asked.outputs
        },
        is_binary=is_binary,
        timeout_us=_timeout_us(asked.parameters.get("timeout", 0)),
    )


def _timeout_us(value: Parameter) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**50:
        raise _wrong("parameters.timeout", "not a number of microseconds, 0 for none")
    return value


def model_input(inputs: tuple[Tensor, ...], *, is_object: bool = False) -> bytes:
    """The JSON document a model gets for these tensors.

    Args:
        inputs: at least one.
        is_object: whether a single tensor goes by its name, too.

    Raises:
        InputInvalid: an element is not a number, which JSON cannot say.
    """
    for index, one in enumerate(inputs):
        if one.datatype in _FLOATS and not all(map(math.isfinite, one.values)):
            raise _wrong(f"inputs[{index}].data", "holds NaN or an infinity, which JSON cannot say")
    if len(inputs) == 1 and not is_object:
        return bytes(_nested(inputs[0]))
    members = [msgspec.json.encode(one.name) + b":" + _nested(one) for one in inputs]
    return b"{" + b",".join(members) + b"}"


def tensors_from_answer(body: bytes, content_type: str) -> list[Tensor]:
    """A model's answer as tensors.

    Raises:
        RunnerProtocol: it says that it is JSON and is not.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json":
        return [Tensor(name=OUTPUT, datatype="BYTES", shape=(1,), values=[_text(body)])]
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunnerProtocol("The model's answer is not the JSON it says it is.") from error
    found = _columns(answer)
    if found is None:
        text = msgspec.json.encode(answer).decode()
        return [Tensor(name=OUTPUT, datatype="BYTES", shape=(1,), values=[text])]
    return found


def chosen(tensors: list[Tensor], request: InferRequest) -> list[tuple[Tensor, bool]]:
    """The wanted outputs in the wanted order, each with whether it is sent in binary.

    Raises:
        InputInvalid: the model has no output of a wanted name.
    """
    if not request.outputs:
        return [(one, request.is_binary) for one in tensors]
    by_name = {one.name: one for one in tensors}
    for index, name in enumerate(request.outputs):
        if name not in by_name:
            known = ", ".join(list(by_name)[:_NAMES_SHOWN])[:_NAMES_SHOWN_CHARACTERS]
            raise _wrong(f"outputs[{index}].name", f"there is no output '{name}'; there is {known}")
    return [(by_name[name], binary) for name, binary in request.outputs.items()]


def reply_bytes(head: dict[str, Any], outputs: list[tuple[Tensor, bool]]) -> tuple[bytes, int]:
    """The body of an answer.

    Args:
        head: the members before ``outputs``.
        outputs: tensors and whether each is sent in binary.

    Returns:
        The body, and the length of its JSON part if binary tensors follow it, else 0.
    """
    described, tail = [], []
    for one, is_binary in outputs:
        shown: dict[str, Any] = {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
        }
        if is_binary:
            raw = _raw_from_values(one)
            shown["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            shown["data"] = one.values
        described.append(shown)
    text = msgspec.json.encode({**head, "outputs": described})
    return b"".join((text, *tail)), len(text) if tail else 0


# -- requests ----------------------------------------------------------------------------------


def _split(body: bytes, json_length: str) -> tuple[bytes, memoryview]:
    if not json_length:
        return body, memoryview(b"")
    if not json_length.isascii() or not json_length.isdigit() or len(json_length) > 18:
        raise Malformed("Inference-Header-Content-Length is not a number.")
    length = int(json_length)
    if not length:
        raise Malformed("A body without a JSON part needs a model that says what its input is.")
    if length > len(body):
        raise Malformed("Inference-Header-Content-Length is larger than the body.")
    return body[:length], memoryview(body)[length:]


def _input_tensor(one: _Input, where: str, rest: memoryview) -> tuple[Tensor, memoryview]:
    if one.datatype not in DATATYPES:
        raise _wrong(
            f"{where}.datatype", f"'{one.datatype[:40]}' is none of {', '.join(DATATYPES)}"
        )
    if 0 in one.shape[1:]:
        raise _wrong(f"{where}.shape", "only the first dimension may be 0")
    count = math.prod(one.shape)
    size = one.parameters.get("binary_data_size")
    if size is not None:
        if one.data is not UNSET:
            raise _wrong(f"{where}.data", "comes twice: here and in binary")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
            raise _wrong(f"{where}.parameters.binary_data_size", "the body has no such part")
        values = _values_from_raw(one.datatype, rest[:size], count, where)
        rest = rest[size:]
    elif one.data is UNSET:
        raise _wrong(f"{where}.data", "is missing")
    else:
        values = _checked(one.datatype, list(_flat(one.data, len(one.shape))), where)
    if len(values) != count:
        raise _wrong(f"{where}.shape", f"makes {count} elements, but there are {len(values)}")
    return Tensor(name=one.name, datatype=one.datatype, shape=tuple(one.shape), values=values), rest


def _flat(value: Any, depth: int) -> Iterator[Any]:
    """The elements of data that is nested, or flat already, in row-major order."""
    if not isinstance(value, list):
        yield value
    elif depth > 0 and any(isinstance(member, list) for member in value):
        for member in value:
            yield from _flat(member, depth - 1)
    else:
        yield from value


def _checked(datatype: str, values: list[Any], where: str) -> list[Any]:
    """The elements, each of them of this type.

    Raises:
        InputInvalid: one is not; it is named.
    """
    fits = _test_of(datatype)
    for index, value in enumerate(values):
        if not fits(value):
            shown = msgspec.json.encode(value)[:40].decode("utf-8", "replace")
            raise _wrong(f"{where}.data[{index}]", f"{shown} is no {datatype}")
    if datatype not in _FLOATS:
        return values
    try:
        return [float(value) for value in values]
    except OverflowError:
        raise _wrong(f"{where}.data", f"holds a whole number too large for {datatype}") from None


def _test_of(datatype: str) -> Any:
    if datatype == "BOOL":
        return lambda value: isinstance(value, bool)
    if datatype == "BYTES":
        return lambda value: isinstance(value, str)
    if datatype in _FLOATS:
        return lambda value: type(value) in (int, float)
    _, bits, unsigned = _INTEGERS[datatype]
    low, high = (0, 2**bits) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return lambda value: type(value) is int and low <= value < high


def _values_from_raw(datatype: str, raw: memoryview, count: int, where: str) -> list[Any]:
    place = f"{where}.parameters.binary_data_size"
    if datatype == "BYTES":
        return list(_texts(raw, count, place))
    letter, width = _layout(datatype)
    if len(raw) != count * width:
        raise _wrong(place, f"{count} elements of {datatype} take {count * width} bytes")
    if letter == "e":
        return [value for (value,) in struct.iter_unpack("<e", raw)]
    if datatype == "BOOL":
        if any(byte > 1 for byte in raw):
            raise _wrong(place, "a BOOL is one byte, 0 or 1")
        return [bool(byte) for byte in raw]
    values = array(letter, raw.tobytes())
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def _texts(raw: memoryview, count: int, place: str) -> Iterator[str]:
    """BYTES elements: four bytes of length, little-endian, then the bytes."""
    at = 0
    for _ in range(count):
        if at + 4 > len(raw):
            raise _wrong(place, "the BYTES elements end too early")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + size > len(raw):
            raise _wrong(place, "a BYTES element is longer than its tensor")
        try:
            yield raw[at : at + size].tobytes().decode("utf-8")
        except UnicodeDecodeError:
            raise _wrong(place, "a BYTES element is not UTF-8 text, which JSON needs") from None
        at += size
    if at != len(raw):
        raise _wrong(place, "bytes follow the last BYTES element")


def _layout(datatype: str) -> tuple[str, int]:
    letter = _FLOATS.get(datatype) or ("B" if datatype == "BOOL" else _INTEGERS[datatype][0])
    return letter, struct.calcsize(f"<{letter}")


def _least_bytes(shape: list[int]) -> int:
    """What a tensor of this shape takes in JSON at least: its brackets, elements and commas."""
    found = 2 * math.prod(shape)
    if found:
        found += sum(2 * math.prod(shape[:rank]) for rank in range(1, len(shape)))
    return found


def _nested(tensor: Tensor) -> bytearray:
    """The elements as JSON lists within lists, as the shape says.

    Written row by row: as lists of Python's, dimensions of 1 would take a hundred times the memory
    of the request.
    """
    encode, values = msgspec.json.Encoder().encode_into, tensor.values
    out = bytearray()
    if len(tensor.shape) < 2 or not values:
        encode(values if tensor.shape else values[0], out)
        return out
    *outer, width = tensor.shape
    # A list that holds so many rows ends, and another begins, wherever that divides the row.
    ends = [math.prod(outer[rank:]) for rank in range(len(outer) - 1, 0, -1)]
    out += b"[" * len(outer)
    for row in range(len(values) // width):
        if row:
            closed = next((k for k, rows in enumerate(ends) if row % rows), len(ends))
            out += b"]" * closed + b"," + b"[" * closed
        encode(values[row * width : (row + 1) * width], out, -1)
    out += b"]" * len(outer)
    return out


def _wrong(place: str, reason: str) -> InputInvalid:
    where = place.lstrip(".")
    return InputInvalid(f"{where}: {reason}.", fields=(FieldError(pointer=where, detail=reason),))


# -- answers -----------------------------------------------------------------------------------


def _columns(answer: Any) -> list[Tensor] | None:
    """The tensors of an answer; ``None`` if it has no such form."""
    single = _tensor(OUTPUT, answer)
    if single is not None:
        return [single]
    if isinstance(answer, list) and answer and all(isinstance(row, dict) for row in answer):
        names = list(answer[0])
        if any(list(row) != names for row in answer):
            return None
        answer = {name: [row[name] for row in answer] for name in names}
    if not isinstance(answer, dict) or not answer:
        return None
    found = [_tensor(name, value) for name, value in answer.items()]
    return [one for one in found if one is not None] if None not in found else None


def _tensor(name: str, value: Any) -> Tensor | None:
    """One tensor, if the value is rectangular and of one kind of element."""
    shape = _shape(value)
    if shape is None:
        return None
    values = list(_flat(value, len(shape)))
    datatype = _datatype(values)
    if datatype is None:
        return None
    if datatype == "FP64":
        try:
            values = [None if value is None else float(value) for value in values]
        except OverflowError:
            return None
    return Tensor(name=name, datatype=datatype, shape=shape or (1,), values=values)


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of nested lists; ``None`` if they are not rectangular or hold objects."""
    shape: list[int] = []
    level: Iterable[Any] = (value,)
    while True:
        members = list(level)
        lists = sum(isinstance(member, list) for member in members)
        if not lists:
            return None if any(isinstance(m, dict) for m in members) else tuple(shape)
        sizes = {len(member) for member in members if isinstance(member, list)}
        if lists != len(members) or len(sizes) != 1 or len(shape) >= RANK_MAX:
            return None
        shape.append(sizes.pop())
        level = [inner for member in members for inner in member]


def _datatype(values: list[Any]) -> str | None:
    kinds = {type(value) for value in values}
    if kinds <= {int} and all(value in _INT64 for value in values):
        return "INT64" if values else "FP64"
    if kinds == {bool}:
        return "BOOL"
    if kinds == {str}:
        return "BYTES"
    is_number = kinds <= {int, float, type(None)} and kinds != {type(None)}
    return "FP64" if is_number else None


def _raw_from_values(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        pieces = []
        for text in tensor.values:
            encoded = text.encode()
            pieces += [struct.pack("<I", len(encoded)), encoded]
        return b"".join(pieces)
    letter, _ = _layout(tensor.datatype)
    values = tensor.values
    if tensor.datatype == "FP64":
        values = [math.nan if value is None else value for value in values]
    made = array(letter, values)
    if sys.byteorder == "big":
        made.byteswap()
    return made.tobytes()


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")
