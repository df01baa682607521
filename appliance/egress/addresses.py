"""PURE: which addresses a name must not lead to.

Owns: the classes of addresses that only a rule naming the literal address may open.
Never: resolves a name; knows which addresses this machine has (``guard`` asks the kernel).
Read next: ``guard``, which checks every address a name resolved to.

A rule names a host; what that name resolves to is somebody else's choice, made anew each time.
Addresses of companies' own networks (RFC 1918, fc00::/7) are ordinary: that is where the
databases are.
"""

from __future__ import annotations

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# First match names the class; the metadata services of the large clouds come before their nets.
_CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "metadata",
        ("169.254.169.254/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
         "fd00:ec2::254/128", "fd20:ce::254/128"),
    ),
    ("unspecified", ("0.0.0.0/8", "::/128")),
    ("loopback", ("127.0.0.0/8", "::1/128")),
    ("link-local", ("169.254.0.0/16", "fe80::/10", "fec0::/10")),
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
    ("broadcast", ("255.255.255.255/32",)),
    ("reserved", ("240.0.0.0/4", "192.0.0.0/24", "100::/64")),
    # An IPv4 address inside an IPv6 one: whatever checked the outside has not seen the inside.
    ("embedded-ipv4", ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96",
                       "64:ff9b:1::/48", "2002::/16", "2001::/32")),
)  # fmt: skip
_NETWORKS = tuple((name, ipaddress.ip_network(text)) for name, texts in _CLASSES for text in texts)


def class_of(address: IPAddress) -> str:
    """Why an address needs a rule that names it literally; empty for an ordinary address."""
    for name, network in _NETWORKS:
        if address.version == network.version and address in network:
            return name
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return "link-local"
    return ""


def literal(text: str) -> IPAddress | None:
    """The address that a text is, in the one strict notation; ``None`` for anything else.

    ``010.0.0.1``, ``0x7f.1``, ``2130706433`` and ``127.1`` are no addresses here, and no names.
    """
    is_bracketed = text.startswith("[") and text.endswith("]")
    try:
        return ipaddress.ip_address(text[1:-1] if is_bracketed else text)
    except ValueError:
        return None
