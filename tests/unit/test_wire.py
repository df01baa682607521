"""HTTP mechanics without a server: paths, queries, JSON, ETags, problems."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import wire
from appliance.errors import (
    BodyTimeout,
    FieldError,
    InputInvalid,
    InvokeTimeout,
    Malformed,
    ModelRaised,
    NotFound,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
    problem_classes,
)
from appliance.policy import NOT_FOUND, Principal
from appliance.wire import Reply, Request


class Body(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    count: int = 0


def request(*messages: Any, headers: dict[str, str] | None = None, **rest: Any) -> Request:
    waiting = list(messages)

    async def receive() -> Any:
        if not waiting:
            await asyncio.sleep(3600)
        return waiting.pop(0)

    raw = tuple((k.encode(), v.encode()) for k, v in (headers or {}).items())
    who = Principal(id="k", kind="api-key", role="owner", tenant_id="t")
    return Request(
        id="req_1", method="POST", params={}, query={}, headers=raw, principal=who,
        receive=receive, **rest,
    )  # fmt: skip


def piece(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    "path", [b"/", b"/a", b"/api/v1/x-y/ten_1", b"/ca.pem", b"/a/b.c~d", b"/e=1,s+2@x"]
)
def test_a_path_we_could_have_made_is_plain(path: bytes) -> None:
    assert wire.is_plain_path(path)


@pytest.mark.parametrize(
    "path",
    [b"", b"a", b"//", b"/a//b", b"/a/", b"/..", b"/a/../b", b"/a/.b", b"/%2e", b"/a%2fb", b"/a;b",
     b"/a b", b"/a\\b", b"/\xc0\xaf", b"/a?b", b"/" + b"a" * 3000, b"/a\n", b"/a%00"],
)  # fmt: skip
def test_a_path_with_two_readings_is_not(path: bytes) -> None:
    assert not wire.is_plain_path(path)


@given(st.binary(max_size=40))
def test_a_plain_path_never_holds_a_byte_that_decoding_changes(path: bytes) -> None:
    if wire.is_plain_path(path):
        assert not set(path) & set(b"%;\\ ?#")
        assert b"/../" not in path + b"/"


def test_a_query_is_known_names_once_each() -> None:
    assert wire.query_from_bytes(b"", ("a",)) == {}
    assert wire.query_from_bytes(b"a=1&b=x%20y", ("a", "b")) == {"a": "1", "b": "x y"}
    assert wire.query_from_bytes(b"a=", ("a",)) == {"a": ""}


@pytest.mark.parametrize("raw", [b"c=1", b"a=1&a=2", b"a", b"a=%ff", b"\xff", b"&", b"a=1;b=2"])
def test_any_other_query_is_malformed(raw: bytes) -> None:
    if raw == b"a=1;b=2":
        assert wire.query_from_bytes(raw, ("a", "b")) == {"a": "1;b=2"}
    else:
        with pytest.raises(Malformed):
            wire.query_from_bytes(raw, ("a", "b"))


def test_json_has_the_shape_asked_for() -> None:
    assert wire.json_from_bytes(b'{"name": "x", "count": 2}', Body) == Body("x", 2)
    with pytest.raises(InputInvalid) as caught:
        wire.json_from_bytes(b'{"name": "x", "count": "2"}', Body)
    assert caught.value.fields[0].pointer == "/count"
    with pytest.raises(InputInvalid):
        wire.json_from_bytes(b'{"name": "x", "other": 1}', Body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nul", b'{"name":NaN}', b"\xff\xfe{", b"\xef\xbb\xbf{}", b'{"name":"\xff"}'],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        wire.json_from_bytes(body, Body)


@given(st.binary(max_size=200))
def test_no_body_crashes_the_parser(body: bytes) -> None:
    for shape in (Body, dict[str, Any]):
        with contextlib.suppress(Malformed, InputInvalid):
            wire.json_from_bytes(body, shape)


async def test_a_body_is_read_to_its_limit_and_no_further() -> None:
    assert await request(piece(b"ab", True), piece(b"c")).body(3) == b"abc"
    with pytest.raises(TooLarge) as caught:
        await request(piece(b"ab", True), piece(b"cd", True)).body(3)
    assert caught.value.extensions == {"limit_bytes": 3}
    with pytest.raises(TooLarge):
        await request(headers={"content-length": "4"}).body(3)


@pytest.mark.parametrize("length", ["x", "-1", "1.0", "１", "9" * 30])
async def test_a_strange_content_length_is_malformed(length: str) -> None:
    raw = ((b"content-length", length.encode("utf-8")),)
    with pytest.raises(Malformed):
        wire.require_length(raw, 10)


async def test_a_body_that_stops_coming_runs_out_of_time() -> None:
    with pytest.raises(BodyTimeout):
        await request(piece(b"a", True), body_timeout_s=0.05).body(3)


async def test_an_upload_that_keeps_coming_has_more_time() -> None:
    found = request(*[piece(b"x" * 1000, True)] * 3, body_timeout_s=0.1)
    taken = asyncio.get_running_loop().time()
    with pytest.raises(BodyTimeout):
        async for _ in found.chunks(10_000, rate_min=10_000):
            pass
    assert 0.3 < asyncio.get_running_loop().time() - taken < 0.9


async def test_a_caller_that_hangs_up_is_malformed() -> None:
    with pytest.raises(Malformed):
        await request(piece(b"a", True), {"type": "http.disconnect"}).body(3)


async def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMedia):
        await request(piece(b"a"), headers={"content-encoding": "gzip"}).body(3)
    assert await request(piece(b"a"), headers={"content-encoding": "identity"}).body(3) == b"a"


async def test_json_needs_its_content_type() -> None:
    with pytest.raises(UnsupportedMedia):
        await request(piece(b'{"name":"x"}')).json(Body)
    sent = {"content-type": "application/json; charset=utf-8"}
    assert await request(piece(b'{"name":"x"}'), headers=sent).json(Body) == Body("x")


@pytest.mark.parametrize(
    "text", ["application/json", "text/plain; charset=utf-8", 'a/b; c="d e"', "image/svg+xml"]
)
def test_a_models_good_content_type_is_kept(text: str) -> None:
    assert wire.safe_media_type(text) == text


@pytest.mark.parametrize(
    "text", ["", "text", "a/b\r\nx: y", "a/b;", "a/b; c=\x1b", "a/" + "b" * 300]
)
def test_a_models_bad_content_type_is_replaced(text: str) -> None:
    assert wire.safe_media_type(text) == "application/octet-stream"


def test_if_match_is_one_quoted_revision() -> None:
    assert wire.revision_from_if_match("") is None
    assert wire.revision_from_if_match('"3"') == 3
    for bad in ("3", '"x"', "*", '"1", "2"', 'W/"1"'):
        with pytest.raises(Malformed):
            wire.revision_from_if_match(bad)


def test_if_none_match_names_an_etag() -> None:
    tag = wire.etag(b"x")
    assert wire.is_match(tag, tag)
    assert wire.is_match(f'"other", W/{tag}', tag)
    assert wire.is_match("*", tag)
    assert not wire.is_match("", tag)
    assert not wire.is_match(wire.etag(b"y"), tag)


def test_a_problem_document_has_its_members() -> None:
    error = InputInvalid("Bad.", hint="do x", fields=(FieldError(pointer="/a", detail="b"),), n=1)
    assert wire.problem_document(error, "req_1") == {
        "type": "/problems/input-invalid", "title": "Invalid input", "status": 422,
        "detail": "Bad.", "instance": "req_1", "code": "input-invalid", "hint": "do x",
        "errors": [{"pointer": "/a", "detail": "b"}], "n": 1,
    }  # fmt: skip


def test_an_extension_never_overwrites_a_member() -> None:
    document = wire.problem_document(NotFound(NOT_FOUND, status=200, instance="x"), "req_1")
    assert (document["status"], document["instance"]) == (404, "req_1")


def test_a_models_own_words_are_for_its_owner() -> None:
    error = ModelRaised("ValueError: row 7 of secrets.csv", stderr=("a", "b"))
    shown = wire.problem_document(error, "r")
    assert "stderr" not in shown
    assert "secrets" not in str(shown)
    full = wire.problem_document(error, "r", is_owner=True)
    assert (full["stderr"], full["detail"]) == (["a", "b"], error.detail)
    late = wire.problem_document(InvokeTimeout("No answer in 30 s."), "r")
    assert late["detail"] == "No answer in 30 s."


@pytest.mark.parametrize("cls", list(problem_classes()), ids=lambda cls: cls.__name__)
def test_every_problem_can_be_answered(cls: Any) -> None:
    reply = wire.problem_reply(cls("Something."), "req_1")
    assert reply.content_type == "application/problem+json"
    assert 400 <= reply.status < 600
    assert (cls.retry_after_s is not None) is any(k == "retry-after" for k, _ in reply.headers)


def test_a_401_says_how_to_authenticate() -> None:
    assert ("www-authenticate", "Bearer") in wire.problem_reply(Unauthenticated("x"), "r").headers


async def test_a_streamed_reply_has_no_length_and_ends() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def stream(write: Any) -> None:
        await write(b"a")
        await write(b"b")

    await wire.send_reply(Reply(stream=stream), "req_1", send)
    names = {name for name, _ in sent[0]["headers"]}
    assert b"content-length" not in names
    assert b"request-id" in names
    assert [m.get("body") for m in sent[1:]] == [b"a", b"b", b""]
    assert [m.get("more_body") for m in sent[1:]] == [True, True, False]
