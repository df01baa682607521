"""API keys: bearer secrets that are issued once and stored as an HMAC only.

Owns: the text form of a key, its issue and its check.
Never: stores or logs a secret, or says why a key was refused.
Read next: ``policy`` (what the key's role and scopes allow).

Text form: ``mak_<9 id>_<43 secret><6 checksum>``, base62 throughout, 63 characters. 43 base62
characters hold 256 bits. The checksum is CRC-32 of everything before it: a mistyped key is refused
without a look-up, and secret scanners can tell a real key from text that looks like one.

The stored value is HMAC-SHA-256 under a pepper derived from the root key: at 256 bits of entropy a
slow hash would add nothing but a lever for denial of service.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Callable
from typing import Protocol

from appliance import clock
from appliance.auth import Presented, Principal, unauthenticated
from appliance.errors import Malformed
from appliance.records import ApiKey, Role, Tenant

PREFIX = "mak"
DEFAULT_DAYS = 90
MAX_DAYS = 366
_NS_PER_DAY = 86_400 * 1_000_000_000
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 9
_SECRET_LENGTH = 43
_CHECK_LENGTH = 6
_FORM = re.compile(rf"{PREFIX}_([0-9A-Za-z]{{9}})_([0-9A-Za-z]{{43}})([0-9A-Za-z]{{6}})", re.ASCII)
_IN_QUERY = re.compile(rf"(?:^|[=&?%]|3D){PREFIX}_", re.IGNORECASE)
_NO_MAC = "0" * 64
_KNOWN_MAX = 4096


class Keys(Protocol):
    """The part of the registry snapshot a check needs."""

    def key(self, key_id: str) -> ApiKey | None:
        """The key of this id, ``None`` if there never was one."""

    def tenant_by_id(self, tenant_id: str) -> Tenant | None:
        """The tenant of this id, ``None`` if it is gone."""


def issue(
    pepper: bytes,
    *,
    tenant_id: str,
    name: str,
    role: Role,
    created_by: str,
    expires_in_days: int = DEFAULT_DAYS,
    scopes: tuple[str, ...] = (),
) -> tuple[ApiKey, str]:
    """A fresh key: the record to register, and the secret to show exactly once.

    Args:
        pepper: 32 bytes, ``store.secret("api-key-pepper")``.
        tenant_id: tenant the key belongs to, ``""`` for an appliance-wide role.
        name: what people call the key.
        role: what it may do at most.
        created_by: principal id of the issuer.
        expires_in_days: 1 to ``MAX_DAYS``; a key without an end does not exist.
        scopes: rights the key is narrowed to; empty for all of its role.

    Runs: event loop.   Audit: none (registering the record is ``key.created``).
    """
    key_id = _random(_ID_LENGTH)
    secret = _random(_SECRET_LENGTH)
    body = f"{PREFIX}_{key_id}_{secret}"
    now = clock.now_ns()
    record = ApiKey(
        id=key_id,
        tenant_id=tenant_id,
        name=name,
        role=role,
        mac=_mac(pepper, key_id, secret),
        scopes=scopes,
        created_ns=now,
        created_by=created_by,
        expires_ns=now + expires_in_days * _NS_PER_DAY,
    )
    return record, body + _checksum(body)


class ApiKeyScheme:
    """Checks ``Authorization: Bearer mak_...`` against the registry.

    Clients that only know Basic (MLflow's with a user name) send the key as password or name.
    """

    def __init__(self, pepper: bytes, keys: Callable[[], Keys]) -> None:
        """``keys`` returns the snapshot in force, so that a revoked key is refused at once.

        A key that was found good is known by the digest of its text as long as its record is the
        very same object: any change to it has it looked up again.
        """
        self._pepper = pepper
        self._keys = keys
        self._known: dict[bytes, tuple[ApiKey, Principal]] = {}

    def identify(self, presented: Presented) -> Principal | None:
        """The key's principal, ``None`` if no Authorization header came.

        Raises:
            Malformed: two Authorization headers, or a key in the address (logs keep addresses).
            Unauthenticated: anything else is wrong with the key.
        """
        if presented.query and _IN_QUERY.search(presented.query):
            raise Malformed(
                "An API key never goes into the address, where logs keep it; revoke that key.",
                hint="Authorization: Bearer mak_...",
            )
        if not presented.authorization:
            return None
        if len(presented.authorization) > 1:
            raise Malformed("More than one Authorization header.")
        scheme, _, text = presented.authorization[0].partition(" ")
        if scheme.lower() == "basic":
            return self._check(_key_of_basic(text.strip(" ")))
        if scheme.lower() != "bearer":
            raise unauthenticated()
        return self._check(text.strip(" "))

    def _check(self, text: str) -> Principal:
        keys = self._keys()
        digest = hashlib.sha256(text.encode()).digest()
        known = self._known.get(digest)
        if known is not None and keys.key(known[0].id) is known[0]:
            key, principal = known
        else:
            key, principal = self._looked_up(text, keys)
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[digest] = (key, principal)
        # What can end a key besides its own record is looked at every time.
        if key.revoked_ns or clock.now_ns() >= key.expires_ns:
            raise unauthenticated()
        if key.tenant_id and keys.tenant_by_id(key.tenant_id) is None:
            raise unauthenticated()
        return principal

    def _looked_up(self, text: str, keys: Keys) -> tuple[ApiKey, Principal]:
        """The key a text is the secret of; kept under the digest of the text, if it is one."""
        match = _FORM.fullmatch(text)
        if match is None or not hmac.compare_digest(
            _checksum(text[:-_CHECK_LENGTH]), match.group(3)
        ):
            raise unauthenticated()
        key_id, secret = match.group(1), match.group(2)
        key = keys.key(key_id)
        # The same work for unknown ids: the answer's timing must not tell which ids exist.
        expected = key.mac if key is not None else _NO_MAC
        is_right = hmac.compare_digest(_mac(self._pepper, key_id, secret), expected)
        if key is None or not is_right:
            raise unauthenticated()
        principal = Principal(
            id=key.id,
            kind="api-key",
            role=key.role,
            tenant_id=key.tenant_id,
            name=key.name,
            scopes=key.scopes,
        )
        return key, principal


def _key_of_basic(text: str) -> str:
    """The key in Basic credentials (RFC 7617): the password, or where that is none the name."""
    try:
        pair = base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise unauthenticated() from None
    name, _, password = pair.partition(":")
    return password if _FORM.fullmatch(password) else name


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _mac(pepper: bytes, key_id: str, secret: str) -> str:
    return hmac.new(pepper, f"{key_id}:{secret}".encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode("ascii", "replace"))
    digits = []
    for _ in range(_CHECK_LENGTH):
        value, digit = divmod(value, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
