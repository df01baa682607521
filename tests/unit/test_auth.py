"""API keys and peers: what is accepted, and that a refusal tells nothing."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import clock
from appliance.auth import REFUSED, Presented, authenticate
from appliance.auth.api_key import ApiKeyScheme, issue
from appliance.auth.peer import Peer, PeerScheme
from appliance.errors import Malformed, Unauthenticated
from appliance.records import ApiKey, Tenant

PEPPER = b"p" * 32


class Registered:
    def __init__(self, *keys: ApiKey) -> None:
        self._keys = {key.id: key for key in keys}

    def key(self, key_id: str) -> ApiKey | None:
        return self._keys.get(key_id)

    def tenant_by_id(self, tenant_id: str) -> Tenant | None:
        if tenant_id != "ten_1":
            return None
        return Tenant(id="ten_1", name="acme", created_ns=0, created_by="uid:0")


def make(**rest: Any) -> tuple[ApiKey, str]:
    given_: dict[str, Any] = {"tenant_id": "ten_1", "name": "k", "role": "owner"}
    return issue(PEPPER, created_by="uid:0", **(given_ | rest))


def check(secret: str | tuple[str, ...], *keys: ApiKey, query: str = "") -> Any:
    headers = (secret,) if isinstance(secret, str) else secret
    found = Presented(authorization=headers, query=query, peer=None)
    registered = Registered(*keys)
    return authenticate((ApiKeyScheme(PEPPER, lambda: registered),), found)


def test_an_issued_key_has_the_documented_form_and_is_stored_as_a_mac_only() -> None:
    key, secret = make()
    assert re.fullmatch(r"mak_[0-9A-Za-z]{9}_[0-9A-Za-z]{49}", secret)
    assert len(secret) == 63
    assert key.id == secret[4:13]
    assert secret[14:] not in repr(key)
    assert len(key.mac) == 64


def test_an_issued_key_is_its_principal() -> None:
    key, secret = make(role="caller", scopes=("model:invoke",))
    principal = check(f"Bearer {secret}", key)
    assert (principal.id, principal.role, principal.tenant_id) == (key.id, "caller", "ten_1")
    assert principal.scopes == ("model:invoke",)
    assert check(f"bearer  {secret}", key).id == key.id


def test_two_keys_never_share_an_id_or_a_secret() -> None:
    made = [make()[1] for _ in range(200)]
    assert len({secret[4:13] for secret in made}) == 200
    letters = Counter("".join(secret[14:57] for secret in made))
    assert len(letters) == 62


@given(position=st.integers(4, 62), letter=st.sampled_from("0Aa9Zz_-é "))
def test_a_mistyped_key_is_refused(position: int, letter: str) -> None:
    key, secret = make()
    typed = secret[:position] + letter + secret[position + 1 :]
    if typed != secret:
        with pytest.raises(Unauthenticated, match=re.escape(REFUSED)):
            check(f"Bearer {typed}", key)


def test_a_key_under_another_pepper_is_refused() -> None:
    key, secret = make()
    scheme = ApiKeyScheme(b"q" * 32, lambda: Registered(key))
    with pytest.raises(Unauthenticated):
        scheme.identify(Presented(authorization=(f"Bearer {secret}",), query="", peer=None))


def test_a_secret_does_not_work_under_another_keys_id() -> None:
    (one, first), (two, _) = make(), make()
    swapped = dataclasses.replace(two, mac=one.mac)
    from appliance.auth import api_key

    body = f"mak_{two.id}_{first[14:57]}"
    with pytest.raises(Unauthenticated):
        check(f"Bearer {body}{api_key._checksum(body)}", swapped, one)


@pytest.mark.parametrize(
    "change", [{"expires_ns": 1}, {"revoked_ns": 1}, {"tenant_id": "ten_gone"}, {"mac": "0" * 64}]
)
def test_an_expired_revoked_or_orphaned_key_is_refused(change: dict[str, Any]) -> None:
    key, secret = make()
    with pytest.raises(Unauthenticated, match=re.escape(REFUSED)):
        check(f"Bearer {secret}", dataclasses.replace(key, **change))


def test_an_unknown_id_is_refused_with_the_same_words() -> None:
    _, secret = make()
    with pytest.raises(Unauthenticated, match=re.escape(REFUSED)):
        check(f"Bearer {secret}")


@pytest.mark.parametrize("query", ["k={}", "{}", "a=b&k={}", "k%3D{}", "a=1&{}=2"])
def test_a_key_in_the_address_is_malformed(query: str) -> None:
    key, secret = make()
    with pytest.raises(Malformed):
        check(f"Bearer {secret}", key, query=query.format(secret))


def test_two_authorization_headers_are_malformed() -> None:
    key, secret = make()
    with pytest.raises(Malformed):
        check((f"Bearer {secret}", f"Bearer {secret}"), key)


def test_a_peer_is_known_by_its_uid_alone() -> None:
    scheme = PeerScheme(frozenset({0, 1000}))
    peer = Peer(pid=1, uid=1000, gid=5)
    principal = scheme.identify(Presented(authorization=(), query="", peer=peer))
    assert principal is not None
    assert (principal.id, principal.kind) == ("uid:1000", "peer")
    assert scheme.identify(Presented(authorization=(), query="", peer=None)) is None
    with pytest.raises(Unauthenticated, match="1001"):
        scheme.identify(
            Presented(authorization=(), query="", peer=dataclasses.replace(peer, uid=1001))
        )


class InForce:
    """A registry that changes, and a scheme that has seen a key in it."""

    def __init__(self, key: ApiKey, secret: str) -> None:
        self.keys = Registered(key)
        self._scheme = ApiKeyScheme(PEPPER, lambda: self.keys)
        self._shown = Presented(authorization=(f"Bearer {secret}",), query="", peer=None)

    def is_good(self) -> bool:
        try:
            return self._scheme.identify(self._shown) is not None
        except Unauthenticated:
            return False


def test_a_key_that_was_good_is_refused_as_soon_as_it_is_revoked_changed_or_gone() -> None:
    key, secret = make()
    other, _ = make()
    for after in (
        Registered(dataclasses.replace(key, revoked_ns=1)),
        Registered(dataclasses.replace(key, expires_ns=1)),
        Registered(dataclasses.replace(key, mac=other.mac)),
        Registered(dataclasses.replace(key, tenant_id="ten_gone")),
        Registered(),
    ):
        it = InForce(key, secret)
        assert it.is_good()
        it.keys = after
        assert not it.is_good()


def test_a_key_that_was_good_has_the_role_it_has_now() -> None:
    key, secret = make(role="owner")
    it = InForce(key, secret)
    assert it.is_good()
    it.keys = Registered(dataclasses.replace(key, role="caller"))
    assert it._scheme.identify(it._shown).role == "caller"  # type: ignore[union-attr]


def test_a_key_that_was_good_ends_with_its_time() -> None:
    key, secret = make()
    ends_ns = clock.now_ns() + 2_000_000_000
    it = InForce(dataclasses.replace(key, expires_ns=ends_ns), secret)
    assert it.is_good()
    time.sleep(max(0, ends_ns - clock.now_ns()) / 1e9)
    assert not it.is_good()
