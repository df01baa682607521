"""Little that makes much: bytes whose reading costs memory or time out of all proportion."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inside import inside
from oci_images import (
    OCI,
    ImageParts,
    blobs_of,
    file,
    folder,
    layer,
    oci_archive,
    sha,
    symlink,
    tar_of_blobs,
)

from appliance.api.inference import tensors
from appliance.conventions.samples import sample_of
from appliance.errors import ApplianceError, ImageRejected, InputInvalid, TooLarge
from appliance.sandbox import oci
from appliance.sandbox.image_archive import ImageArchive
from appliance.sandbox.oci import Wanted

MIB = 1024 * 1024
TENSORS = 1024 * 1024


def binary(datatype: str, shape: list[int], tail: bytes, copies: int = 1) -> tuple[bytes, str]:
    """An inference request whose tensors are all binary, and the length of its JSON part."""
    inputs = [
        {
            "name": f"x{number}",
            "shape": shape,
            "datatype": datatype,
            "parameters": {"binary_data_size": len(tail)},
        }
        for number in range(copies)
    ]
    text = json.dumps({"inputs": inputs}).encode()
    return text + tail * copies, str(len(text))


# -- tensors -----------------------------------------------------------------------------------

RANKS: dict[str, tuple[bytes, str]] = {
    "one long row of lists in lists": binary("BOOL", [TENSORS, *[1] * 31], b"\0" * TENSORS),
    "the same in the middle": binary("INT8", [1024, *[1] * 30, 1024], b"\0" * TENSORS),
    "little each, but many": binary("UINT8", [32768, *[1] * 7], b"\0" * 32768, copies=256),
    "texts of no length": binary("BYTES", [TENSORS, *[1] * 31], b"\0" * 4 * TENSORS),
    "more elements than bytes": binary("BYTES", [2**31 - 1] * 30, b""),
}


@pytest.mark.parametrize("name", RANKS)
def test_dimensions_of_a_tensor_multiply_no_memory(name: str) -> None:
    body, length = RANKS[name]
    tracemalloc.start()
    try:
        try:
            made = len(tensors.model_input(tensors.request_from_bytes(body, length).inputs))
        except TooLarge:
            made = 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made <= tensors.NATIVE_BYTES_MAX
    assert peak < 24 * len(body) + 4 * MIB


async def test_a_tensor_of_many_dimensions_is_refused_as_too_large(tmp_path: Path) -> None:
    body, length = RANKS["one long row of lists in lists"]
    async with inside(tmp_path) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            refused = await client.post(
                "/t/acme/v2/models/echo/infer",
                content=body,
                headers={"inference-header-content-length": length},
            )
            small = {"inputs": [{"name": "x", "shape": [1] * 32, "datatype": "INT8", "data": [7]}]}
            good = await client.post("/t/acme/v2/models/echo/infer", json=small)
    assert (refused.status_code, refused.headers["problem"]) == (413, "too-large")
    assert good.status_code == 200


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 309, "9" * 4000])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT64", "UINT64"])
def test_a_whole_number_of_any_size_is_a_wrong_field(number: str, datatype: str) -> None:
    one = f'{{"name":"x","shape":[2],"datatype":"{datatype}","data":[1,{number}]}}'
    with pytest.raises(InputInvalid, match="inputs"):
        tensors.request_from_bytes(f'{{"inputs":[{one}]}}'.encode(), "")


@pytest.mark.parametrize("answer", ["1" + "0" * 400, "[1.5,-1" + "0" * 400 + "]"])
def test_a_whole_number_of_any_size_in_an_answer_is_passed_on_as_text(answer: str) -> None:
    (one,) = tensors.tensors_from_answer(answer.encode(), "application/json")
    assert (one.datatype, one.values) == ("BYTES", [answer])
    for is_binary in (False, True):
        assert answer.encode() in tensors.reply_bytes({}, [(one, is_binary)])[0]


def test_the_names_a_refusal_shows_are_few_whatever_the_model_answers() -> None:
    asked = tensors.request_from_bytes(
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}],'
        b'"outputs":[{"name":"other"}]}',
        "",
    )
    many = {f"{'n' * 5000}{number}": 1 for number in range(1000)}
    found = tensors.tensors_from_answer(json.dumps(many).encode(), "application/json")
    with pytest.raises(InputInvalid) as caught:
        tensors.chosen(found, asked)
    assert len(caught.value.detail) < 2000


# -- images ------------------------------------------------------------------------------------


def import_of(tmp_path: Path, data: bytes) -> ApplianceError | None:
    """Import an archive; what it was refused with, if it was."""
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    try:
        oci.import_image(tmp_path / "data", path, Wanted(name="x"), lambda _text, _done: None)
    except ImageRejected as error:
        return error
    return None


def index_bomb(fan_out: int, levels: int) -> bytes:
    """Indexes that all name the same next one: few bytes, fan_out ** levels ways to the image."""
    files, about = blobs_of(ImageParts([layer(file("bin/server"))], {"Cmd": ["/bin/server"]}))
    below = {**about, "annotations": None}
    for _ in range(levels):
        text = json.dumps({"schemaVersion": 2, "manifests": [below] * fan_out}).encode()
        files[f"blobs/sha256/{sha(text)[7:]}"] = text
        below = {"mediaType": f"{OCI}.index.v1+json", "digest": sha(text), "size": len(text)}
    top = {"schemaVersion": 2, "manifests": [below] * fan_out}
    return tar_of_blobs(
        {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            **files,
            "index.json": json.dumps(top).encode(),
        }
    )


def opaque_bomb(count: int) -> bytes:
    """A folder of many files, and more often the word that what was in it is hidden."""
    members = [file(f"d/{number}", b"") for number in range(count)]
    hiding = [file("d/.wh..wh..opq", b""), file(".wh.d", b"")] * (3 * count)
    return oci_archive(ImageParts([layer(folder("d"), *members, *hiding)], {"Cmd": ["/d"]}))


def winding_bomb(count: int) -> bytes:
    """Links whose targets go up and down a thousand times, walked by every file below them."""
    there_and_back = "d/.." + "/d/.." * 680
    links = [symlink("a0", there_and_back)]
    links += [symlink(f"a{n}", f"a{n - 1}/" + "d/../" * 680) for n in range(1, 39)]
    below = layer(folder("d"), *links)
    above = layer(*(file(f"a38/{number}", b"") for number in range(count)))
    return oci_archive(ImageParts([below, above], {"Cmd": ["/d"]}))


IMAGES: dict[str, Callable[[], bytes]] = {
    "indexes that name each other": lambda: index_bomb(200, 4),
    "one wide index": lambda: index_bomb(19_000, 1),
    "a folder hidden again and again": lambda: opaque_bomb(4_000),
    "links that wind": lambda: winding_bomb(4_000),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_costs_no_time_out_of_proportion_to_its_size(tmp_path: Path, name: str) -> None:
    data = IMAGES[name]()
    assert len(data) < 32 * MIB
    started = time.process_time()
    import_of(tmp_path, data)
    assert time.process_time() - started < 8


def test_an_index_named_twice_keeps_both_names(tmp_path: Path) -> None:
    files, about = blobs_of(ImageParts([layer(file("bin/server"))], {"Cmd": ["/bin/server"]}))
    inner = json.dumps({"manifests": [{**about, "annotations": None}]}).encode()
    named = [
        {
            "mediaType": f"{OCI}.index.v1+json",
            "digest": sha(inner),
            "size": len(inner),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        for name in ("first:1", "second:2")
    ]
    path = tmp_path / "image.tar"
    path.write_bytes(
        tar_of_blobs(
            {
                "oci-layout": b"{}",
                **files,
                f"blobs/sha256/{sha(inner)[7:]}": inner,
                "index.json": json.dumps({"manifests": named}).encode(),
            }
        )
    )
    with path.open("rb") as data:
        archive = ImageArchive(data)
        assert archive.find("first:1").id == archive.find("second:2").id
        assert archive.find("second:2").name == "second:2"


# -- schemas -----------------------------------------------------------------------------------


def test_a_schema_of_lists_in_lists_makes_no_endless_sample() -> None:
    schema: dict[str, Any] = {"type": "number"}
    for _ in range(8):
        schema = {"type": "array", "minItems": 64, "items": schema}
    started = time.process_time()
    assert len(json.dumps(sample_of(schema))) < MIB
    assert time.process_time() - started < 1
