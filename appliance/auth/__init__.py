"""Who is calling: the registry of authentication schemes.

Owns: ``Presented`` (what a request shows), ``Scheme`` (the interface) and ``authenticate``.
Never: decides what a principal may do (``policy``) or reads a body.
Read next: ``api_key`` (bearer keys), ``peer`` (the admin socket).

A scheme answers with a principal, with ``None`` ("not mine"), or raises ``Unauthenticated``
("mine, but bad"). Schemes are asked in the order of ``SCHEMES``; nobody answering is a 401.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from appliance.auth.peer import Peer
from appliance.errors import Unauthenticated
from appliance.policy import Principal

__all__ = [
    "ANONYMOUS",
    "REFUSED",
    "Peer",
    "Presented",
    "Principal",
    "Scheme",
    "authenticate",
    "unauthenticated",
]

ANONYMOUS = "anonymous"
"""The actor recorded for a request that showed no valid credential."""

REFUSED = "No valid API key: none given, or mistyped, unknown, expired or revoked."
"""One text for every way to fail, so that an answer tells nothing about which keys exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What a request shows about its caller, as it came off the wire."""

    authorization: tuple[str, ...]
    query: str
    peer: Peer | None


class Scheme(Protocol):
    """One way to show who is calling."""

    def identify(self, presented: Presented) -> Principal | None:
        """The principal; ``None`` if this scheme was not used.

        Raises:
            Unauthenticated: this scheme was used and the credential is not good.
            Malformed: the credential was presented in a way that is never accepted.
        """


def authenticate(schemes: Iterable[Scheme], presented: Presented) -> Principal:
    """The principal of the first scheme that recognises the request.

    Raises:
        Unauthenticated: no scheme does, or the one that does refuses.
        Malformed: two credentials, or one in the address.
    """
    for scheme in schemes:
        principal = scheme.identify(presented)
        if principal is not None:
            return principal
    raise unauthenticated()


def unauthenticated() -> Unauthenticated:
    """The one 401 there is."""
    return Unauthenticated(REFUSED, hint="Authorization: Bearer mak_...")
