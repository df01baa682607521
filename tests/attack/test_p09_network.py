"""P09: reach anything at all by network."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from boxes import box

from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.usefixtures("each_tier_and_image"),
]

CONNECT = """
import socket
answer = {}
for family, kind, address, *protocol in inputs["targets"]:
    name = f"{address} {kind} {protocol}"
    try:
        with socket.socket(getattr(socket, family), getattr(socket, kind), *protocol) as link:
            link.settimeout(1)
            link.connect(address if isinstance(address, str) else tuple(address))
            link.send(b"x")
        answer[name] = "reached"
    except OSError as error:
        answer[name] = f"{type(error).__name__}: {error}"
try:
    socket.getaddrinfo("example.com", 80)
    answer["name"] = "reached"
except OSError as error:
    answer["name"] = str(error)
answer["interfaces"] = [name for _, name in socket.if_nameindex()]
"""


def own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def gateways() -> list[str]:
    """Addresses of the host's own routers."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    found = {row[2] for row in rows if int(row[3], 16) & 2}
    return [socket.inet_ntoa(struct.pack("<L", int(one, 16))) for one in found]


async def test_nothing_can_be_reached(podman_executor: PodmanExecutor) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(greet, "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    abstract.bind(f"\0appliance-test-{port}")
    abstract.listen(1)
    targets = [
        ["AF_INET", "SOCK_STREAM", ["127.0.0.1", port]],
        ["AF_INET", "SOCK_STREAM", [own_address(), port]],
        ["AF_INET", "SOCK_STREAM", ["169.254.169.254", 80]],
        ["AF_INET", "SOCK_STREAM", ["10.0.0.1", 80]],
        ["AF_INET", "SOCK_STREAM", ["192.168.0.1", 80]],
        ["AF_INET", "SOCK_DGRAM", ["8.8.8.8", 53]],
        ["AF_INET", "SOCK_DGRAM", ["255.255.255.255", 9]],
        ["AF_INET", "SOCK_RAW", ["127.0.0.1", 1]],
        ["AF_INET6", "SOCK_STREAM", ["::1", port]],
        ["AF_INET6", "SOCK_STREAM", ["fe80::1", 80]],
        ["AF_INET6", "SOCK_DGRAM", ["2001:4860:4860::8888", 53]],
        ["AF_INET6", "SOCK_STREAM", ["::ffff:127.0.0.1", port]],
        ["AF_INET6", "SOCK_STREAM", ["ff02::1", 80]],
        ["AF_INET", "SOCK_DGRAM", ["224.0.0.251", 5353]],
        ["AF_INET", "SOCK_DGRAM", [own_address(), port]],
        ["AF_INET", "SOCK_DGRAM", ["8.8.8.8", 1], socket.IPPROTO_ICMP],
        ["AF_INET", "SOCK_RAW", ["8.8.8.8", 1], socket.IPPROTO_ICMP],
        ["AF_INET6", "SOCK_RAW", ["fe80::1", 1], socket.IPPROTO_ICMPV6],
        ["AF_INET", "SOCK_STREAM", ["8.8.8.8", 53], socket.IPPROTO_SCTP],
        *(["AF_INET", "SOCK_STREAM", [one, 80]] for one in gateways()),
        ["AF_UNIX", "SOCK_STREAM", f"\0appliance-test-{port}"],
        ["AF_UNIX", "SOCK_STREAM", "/run/podman.sock"],
        ["AF_UNIX", "SOCK_STREAM", str(podman_executor.run_dir / "podman.sock")],
    ]
    try:
        async with box(podman_executor) as one:
            found = await one.run(CONNECT, targets=targets)
    finally:
        abstract.close()
        server.close()
        await server.wait_closed()
    assert found.pop("interfaces") == ["lo"]
    assert "reached" not in found.values(), found
