"""The route table: what it refuses, and that nothing in it is undescribed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from appliance import api
from appliance.api import openapi, pages
from appliance.api.operation import PUBLIC, Operation, Table
from appliance.errors import ApplianceError, problem_classes
from appliance.policy import PERMISSIONS
from appliance.wire import Reply


async def handler(_: Any) -> Reply:
    """Answer."""
    return Reply()


async def silent(_: Any) -> Reply:
    return Reply()


GOOD = Operation(
    method="GET", path="/x/{tenant}", permission="model:read", handler=handler, summary="X"
)


def test_a_good_operation_is_taken_once() -> None:
    table = Table((GOOD,))
    assert list(table) == [GOOD]
    with pytest.raises(ValueError, match="twice"):
        table.add(GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"permission": ""},
        {"permission": "model:nope"},
        {"summary": ""},
        {"handler": silent},
        {"path": "/x"},
        {"place": "own"},
        {"path": "/admin/v1/{tenant}"},
        {"admin_only": True},
    ],
)
def test_an_operation_that_leaves_something_open_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"/"):
        Table((dataclasses.replace(GOOD, **change),))


def test_an_operation_cannot_be_made_without_a_permission() -> None:
    with pytest.raises(TypeError):
        Operation(method="GET", path="/x", handler=handler, summary="X")  # type: ignore[call-arg]


def test_the_admin_contract_is_served_on_the_socket_only() -> None:
    table = api.table()
    assert not any(path.startswith("/admin/") for path in table.by_path(admin=False))
    assert any(path.startswith("/admin/") for path in table.by_path(admin=True))


def test_public_operations_are_the_known_few() -> None:
    assert {op.path for op in api.table() if op.permission == PUBLIC} == {
        "/livez", "/readyz", "/startupz", "/ca.pem", "/openapi.json", "/docs", "/problems",
        "/problems/{slug}", "/t/{tenant}/v2", "/t/{tenant}/v2/health/live",
        "/t/{tenant}/v2/health/ready",
    }  # fmt: skip


def test_every_permission_guards_something() -> None:
    assert {op.permission for op in api.table()} - {PUBLIC} == set(PERMISSIONS)


def test_every_operation_is_described_with_its_problems_and_no_dangling_reference() -> None:
    document = openapi.document(api.table(), is_admin=True, url="https://a")
    names = set(document["components"]["schemas"])

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"].rsplit("/", 1)[1]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(references(value) for value in node.values()))
        if isinstance(node, list):
            return set().union(*(references(value) for value in node))
        return set()

    assert references(document) <= names
    ids = []
    for operation in api.table():
        described = document["paths"][operation.path][operation.method.lower()]
        ids.append(described["operationId"])
        assert described["summary"]
        assert described["description"]
        assert str(operation.status) in described["responses"]
        for problem in openapi.problems_of(operation):
            text = described["responses"][str(problem.status)]["description"]
            assert f"`{problem.slug}`" in text
        guarded = operation.permission != PUBLIC
        assert ("401" in described["responses"]) is guarded
        assert bool(described["security"]) is guarded
    assert len(ids) == len(set(ids))


def test_every_problem_has_a_page() -> None:
    slugs = {doc.code for doc in pages.catalogue()}
    assert slugs == {cls.slug for cls in problem_classes() if cls is not ApplianceError}
    assert all(len(doc.detail) > 20 for doc in pages.catalogue())
