"""Sockets made inside a sandbox's network namespace from outside, against real Podman."""

from __future__ import annotations

import asyncio
import socket

import pytest
from boxes import box

from appliance.errors import PodmanUnavailable
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

TALK = """
import socket
answer = []
for address in inputs["addresses"]:
    with socket.create_connection(tuple(address), 5) as link:
        link.sendall(b"hello")
        answer.append(link.recv(100).decode())
"""

SERVE = """
import socket, threading
server = socket.create_server(("127.0.0.1", 8080))
def once():
    link, _ = server.accept()
    link.sendall(b"from inside")
    link.close()
threading.Thread(target=once, daemon=True).start()
kept["server"] = server
answer = "listening"
"""


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    said = await reader.read(100)
    host, port = writer.get_extra_info("sockname")
    writer.write(f"{said.decode()} at {host}:{port}".encode())
    writer.close()


async def test_a_listener_made_from_outside_is_reached_inside_even_on_a_low_port(
    podman_executor: PodmanExecutor,
) -> None:
    addresses = [("127.0.0.1", 3128), ("127.66.0.1", 80), ("127.66.0.2", 5432)]
    async with box(podman_executor) as one:
        pid = one.sandbox.info().pid
        made = await asyncio.to_thread(podman_executor.netns.listen, pid, addresses)
        servers = [await asyncio.start_server(_greet, sock=listener) for listener in made]
        said = await one.run(TALK, addresses=addresses)
        for server in servers:
            server.close()
    assert said == [f"hello at {host}:{port}" for host, port in addresses]


async def test_listeners_of_one_sandbox_are_not_there_for_another(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one, box(podman_executor) as other:
        pid = one.sandbox.info().pid
        (made,) = await asyncio.to_thread(podman_executor.netns.listen, pid, [("127.0.0.1", 3128)])
        server = await asyncio.start_server(_greet, sock=made)
        seen = await other.run(
            "import socket\n"
            "probe = socket.socket()\n"
            "answer = probe.connect_ex(('127.0.0.1', 3128))\n"
        )
        with socket.socket() as outside:
            reached = outside.connect_ex(("127.0.0.1", 3128))
        server.close()
    assert seen == 111
    assert reached == 111


async def test_a_server_inside_is_reached_from_outside(podman_executor: PodmanExecutor) -> None:
    async with box(podman_executor) as one:
        pid = one.sandbox.info().pid
        assert await one.run(SERVE) == "listening"
        link = await asyncio.to_thread(podman_executor.netns.connect, pid, ("127.0.0.1", 8080))
        with link:
            assert await asyncio.to_thread(link.recv, 100) == b"from inside"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(podman_executor.netns.connect, pid, ("127.0.0.1", 8081))


async def test_a_file_mounted_from_outside_is_read_inside_and_cannot_be_written(
    podman_executor: PodmanExecutor,
) -> None:
    async with box(podman_executor) as one:
        pid = one.sandbox.info().pid
        source = podman_executor.boxes / one.sandbox.id / "hosts"
        source.write_text("127.66.0.1 db.example.test\n", encoding="ascii")
        source.chmod(0o644)
        service = podman_executor.service
        assert service is not None
        inside = service.inside("box", one.sandbox.id, "hosts")
        await asyncio.to_thread(podman_executor.netns.put_file, pid, inside, "/etc/hosts")
        seen = await one.run(
            "import socket\n"
            "answer = [open('/etc/hosts').read(), socket.gethostbyname('db.example.test')]\n"
            "try:\n    open('/etc/hosts', 'w')\n"
            "except OSError as error:\n    answer.append(error.errno)\n"
        )
    assert seen[:2] == ["127.66.0.1 db.example.test\n", "127.66.0.1"]
    assert seen[2] in (13, 30)


async def test_a_gone_sandbox_and_a_killed_helper_are_told_apart(
    podman_executor: PodmanExecutor,
) -> None:
    netns = podman_executor.netns
    with pytest.raises(PodmanUnavailable):
        await asyncio.to_thread(netns.listen, 2**22 + 1, [("127.0.0.1", 3128)])
    async with box(podman_executor) as one:
        pid = one.sandbox.info().pid
        (await asyncio.to_thread(netns.open, pid)).close()
        process = netns._process
        assert process is not None
        process.kill()
        process.wait()
        (await asyncio.to_thread(netns.open, pid)).close()  # a new one was started
