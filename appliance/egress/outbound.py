"""Where the appliance itself may be sent: the addresses that tenants give it for webhooks.

Owns: the grammar of such an address, IT's settings for them, and the check of every address a name
leads to, at the moment it is used.
Never: connects, or follows what a server answers.
Read next: ``addresses`` (what no name may lead to), ``appliance.webhooks`` (who sends).

A tenant chooses the address and the appliance, which stands elsewhere in the network, goes there.
So IT says which hosts there are (``webhooks.destinations``, none by default, as with models), and
only https to their ordinary addresses is allowed; what else there is in a company IT allows origin
by origin (``webhooks.allow``).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from appliance import config
from appliance.egress import rules
from appliance.egress.addresses import class_of, literal
from appliance.egress.resolver import Resolver, is_own
from appliance.errors import ConfigInvalid, EgressDenied, FieldError, InputInvalid

URL_CHARACTERS_MAX = 2048
_PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"[\x21-\x7e]+")
_HINT = "ask IT: appliance config explain (webhooks.destinations, webhooks.allow)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An address taken apart; ``target`` is its path with its query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, which is what may be shown and recorded."""
        return f"{self.scheme}://{self.authority}"


def place_from_url(url: str) -> Place:
    """An address taken apart.

    Raises:
        InputInvalid: it is no absolute http or https URL, or has a user, a password, a fragment or
            a host in a strange notation.
    """
    if len(url) > URL_CHARACTERS_MAX or not _URL.fullmatch(url):
        raise _wrong(f"it is not 1 to {URL_CHARACTERS_MAX} visible ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _wrong("it is not a URL") from None
    if parts.scheme not in _PORTS or not parts.netloc:
        raise _wrong("it does not begin with https://")
    if "@" in parts.netloc or "\\" in url:
        raise _wrong("it has a user or a password; put a secret into its path or query")
    if "#" in url:
        raise _wrong("it has a fragment, which is never sent")
    host = rules.host_from_text(parts.hostname or "")
    if not host:
        raise _wrong("its host is no name and no address in the usual notation")
    if port == 0:
        raise _wrong("its port is not from 1 to 65535")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(scheme=parts.scheme, host=host, port=port or _PORTS[parts.scheme], target=target)


class Outbound:
    """Decides by the settings; used from one event loop."""

    def __init__(self, settings: config.Webhooks, resolver: Resolver) -> None:
        """Read the settings.

        Raises:
            ConfigInvalid: one of them is not in the grammar.
        """
        self._resolver = resolver
        try:
            self._hosts = tuple(map(rules.pattern_from_text, settings.destinations))
            self._allowed = frozenset(place_from_url(text).origin for text in settings.allow)
        except InputInvalid as error:
            raise ConfigInvalid(
                f"webhooks.destinations or webhooks.allow: {error.fields[0].detail}.",
                hint="appliance config explain",
            ) from error

    async def addresses(self, place: Place, timeout_s: float) -> tuple[str, ...]:
        """What a place leads to now, each of them checked; connect to these and to no other.

        Args:
            place: where to.
            timeout_s: longest look-up.

        Raises:
            EgressDenied: it may not be reached; nothing was connected to.
            OSError: the name leads nowhere.
            TimeoutError: nothing answered in time.
        """
        self._require_place(place)
        if literal(place.host) is not None:
            found: tuple[str, ...] = (place.host,)
        else:
            found = await self._resolver.resolve(place.host, timeout_s)
        for address in found:
            self._require_address(place, address)
        return found

    def _require_place(self, place: Place) -> None:
        """What can be said before anything is looked up: a look-up itself tells somebody."""
        is_named = any(rules.is_host_of(pattern, place.host) for pattern in self._hosts)
        if not is_named and place.origin not in self._allowed:
            raise _denied(place, "destination", "IT names no such host in webhooks.destinations")
        if place.scheme != "https" and place.origin not in self._allowed:
            raise _denied(place, "cleartext", "only https is allowed")

    def _require_address(self, place: Place, address: str) -> None:
        try:
            kind = class_of(ipaddress.ip_address(address))
        except ValueError:
            kind = "malformed"
        kind = kind or ("own-address" if is_own(address) else "")
        at = Place(scheme=place.scheme, host=address, port=place.port, target="/")
        if kind and at.origin not in self._allowed:
            raise _denied(place, kind, f"it leads to a {kind} address, {address}")


def _denied(place: Place, reason: str, why: str) -> EgressDenied:
    return EgressDenied(f"No webhook may go to {place.origin}: {why}.", hint=_HINT, reason=reason)


def _wrong(detail: str) -> InputInvalid:
    return InputInvalid(
        f"This is no address for a webhook: {detail}.",
        fields=(FieldError(pointer="/url", detail=detail),),
    )
