"""The table of rights, right by right, and the rules no role escapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import Forbidden, InputInvalid, NotFound
from appliance.policy import PERMISSIONS, Decision, Policy, Principal, is_within, require_scopes
from appliance.records import ROLES, Role

POLICY = Policy()

TABLE: dict[str, set[str]] = {
    "admin": {
        "self:read", "tenant:read", "tenant:create", "tenant:remove", "key:read", "key:create",
        "key:revoke", "model:read", "audit:read", "metrics:read", "node:read", "config:read",
        "sandbox:read", "egress:read", "egress:set",
        "tenant:isolate", "webhook:read",
    },
    "operator": {
        "self:read", "tenant:read", "model:read", "alias:set", "route:set", "sandbox:read",
        "sandbox:stop", "backup:create", "reservation:set", "node:read", "metrics:read",
        "audit:read", "egress:read", "drift:read",
    },
    "auditor": {
        "self:read", "tenant:read", "key:read", "model:read", "audit:read", "audit:verify",
        "config:read", "node:read", "metrics:read", "egress:read", "webhook:read",
    },
    "owner": {
        "self:read", "tenant:read", "key:read", "key:create", "key:revoke", "model:read",
        "model:register", "model:remove", "version:retire", "alias:set", "route:set",
        "model:invoke", "audit:read", "reservation:set", "egress:read",
        "secret:read", "secret:set", "secret:remove", "job:read", "job:cancel", "folder:use",
        "drift:read", "drift:set",
        "webhook:read", "webhook:set", "schedule:read", "schedule:set",
        "run:read", "run:write", "artifact:read",
        "comparison:create", "comparison:read", "comparison:cancel",
        "sample:set", "sample:remove", "sample:replay",
    },
    "caller": {
        "self:read", "model:invoke", "job:read", "job:cancel",
        "comparison:create", "comparison:read", "comparison:cancel",
    },
}  # fmt: skip


def key(role: Role, scopes: tuple[str, ...] = ()) -> Principal:
    tenant = "ten_a" if role in ("owner", "caller") else ""
    return Principal(id="k", kind="api-key", role=role, tenant_id=tenant, scopes=scopes)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("permission", PERMISSIONS)
def test_a_role_has_the_rights_of_the_table_and_no_other(role: Role, permission: str) -> None:
    principal = key(role)
    decision = POLICY.decide(principal, permission, tenant_id=principal.tenant_id)
    assert (decision is Decision.ALLOW) is (permission in TABLE[role])


@pytest.mark.parametrize("permission", PERMISSIONS)
def test_a_peer_may_do_everything(permission: str) -> None:
    peer = Principal(id="uid:0", kind="peer", role="admin")
    assert POLICY.decide(peer, permission, tenant_id="ten_a") is Decision.ALLOW


def test_an_unknown_permission_is_denied_even_to_a_peer() -> None:
    peer = Principal(id="uid:0", kind="peer", role="admin")
    assert POLICY.decide(peer, "model:anything") is Decision.FORBID


@pytest.mark.parametrize("permission", PERMISSIONS)
@pytest.mark.parametrize("role", ["owner", "caller"])
def test_another_tenants_things_are_hidden_whatever_the_right(role: Role, permission: str) -> None:
    assert POLICY.decide(key(role), permission, tenant_id="ten_b") is Decision.HIDE
    with pytest.raises(NotFound):
        POLICY.require(key(role), permission, tenant_id="ten_b")


def test_the_appliance_itself_is_forbidden_to_tenants_not_hidden() -> None:
    with pytest.raises(Forbidden):
        POLICY.require(key("owner"), "tenant:read", tenant_id="")


@pytest.mark.parametrize("role", ["owner", "caller"])
def test_a_tenant_role_without_a_tenant_may_nothing_but_ask_who_it_is(role: Role) -> None:
    stray = Principal(id="k", kind="api-key", role=role)
    allowed = {p for p in PERMISSIONS if POLICY.decide(stray, p) is Decision.ALLOW}
    assert allowed == {"self:read"}


def test_scopes_take_away_and_never_add() -> None:
    caller = key("caller", ("model:invoke:fraud", "model:read"))

    def says(permission: str, model: str = "") -> Decision:
        return POLICY.decide(caller, permission, tenant_id="ten_a", model=model)

    assert says("model:invoke", "fraud") is Decision.ALLOW
    assert says("model:invoke", "other") is Decision.FORBID
    assert says("model:invoke") is Decision.FORBID
    assert says("model:read", "fraud") is Decision.FORBID
    assert says("self:read") is Decision.ALLOW


@given(
    role=st.sampled_from(ROLES),
    permission=st.sampled_from(PERMISSIONS),
    scopes=st.lists(st.sampled_from([*PERMISSIONS, "model:invoke:a", "model:read:b"]), max_size=4),
    model=st.sampled_from(["", "a", "b"]),
    tenant=st.sampled_from(["", "ten_a", "ten_b"]),
)
def test_a_narrowed_key_never_has_a_right_its_role_lacks(
    role: Role, permission: str, scopes: list[str], model: str, tenant: str
) -> None:
    narrow, wide = key(role, tuple(scopes)), key(role)
    if POLICY.decide(narrow, permission, tenant_id=tenant, model=model) is Decision.ALLOW:
        found = POLICY.decide(wide, permission, tenant_id=tenant, model=model)
        assert found is Decision.ALLOW


def test_a_remembered_answer_is_the_answer() -> None:
    fresh = Policy()
    for _ in range(2):
        assert fresh.decide(key("owner"), "model:read", tenant_id="ten_a") is Decision.ALLOW
        assert fresh.decide(key("owner"), "model:read", tenant_id="ten_b") is Decision.HIDE
        assert fresh.decide(key("caller"), "model:read", tenant_id="ten_a") is Decision.FORBID


def test_a_rule_that_cannot_be_evaluated_denies() -> None:
    broken = Policy(
        "permit (principal, action, resource);"
        "forbid (principal, action, resource) when { principal.missing };"
    )
    assert broken.decide(key("owner"), "model:read", tenant_id="ten_a") is Decision.FORBID
    assert broken.epoch != POLICY.epoch


@pytest.mark.parametrize("scope", [*PERMISSIONS, "model:invoke:fraud", "alias:set:a"])
def test_a_good_scope_is_taken(scope: str) -> None:
    assert require_scopes((scope,)) == (scope,)


@pytest.mark.parametrize(
    "scope",
    ["", "model", "model:", "model:invoke:", "model:nope", "model:invoke:UPPER", "key:read:a",
     "model:invoke:a:b", "*", "model:*"],
)  # fmt: skip
def test_a_bad_scope_is_refused_and_named(scope: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        require_scopes(("model:read", scope))
    assert caught.value.fields[0].pointer == "/scopes/1"


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        ((), (), True),
        ((), ("model:read",), True),
        (("model:read",), (), False),
        (("model:read",), ("model:read",), True),
        (("model:read",), ("model:read:a",), True),
        (("model:read:a",), ("model:read",), False),
        (("model:read:a",), ("model:read:b",), False),
        (("model:read", "key:read"), ("model:read:a", "key:read"), True),
    ],
)
def test_a_key_hands_out_no_more_than_it_has(
    own: tuple[str, ...], wanted: tuple[str, ...], expected: bool
) -> None:
    assert is_within(own, wanted) is expected
