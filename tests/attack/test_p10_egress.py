"""P10: get out anywhere but where a rule allows. Each refusal is on record with its rule."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from boxes import box, spec_of
from outside import Outside, echo, outside, serving, web

from appliance.sandbox.podman import PodmanExecutor

pytestmark = [pytest.mark.podman, pytest.mark.asyncio(loop_scope="session")]

GET = """
import urllib.request, urllib.error
answer = {}
for url in inputs["urls"]:
    try:
        with urllib.request.urlopen(url, data=inputs.get("data", "").encode() or None, timeout=8) as r:
            answer[url] = [r.status, r.read().decode()]
    except urllib.error.HTTPError as error:
        answer[url] = [error.code, error.read().decode()]
    except OSError as error:
        answer[url] = [0, str(error)]
"""  # noqa: E501

TCP = """
import socket
answer = {}
for host, port in inputs["targets"]:
    try:
        with socket.create_connection((host, port), 5) as link:
            link.sendall(b"hello")
            answer[f"{host}:{port}"] = link.recv(100).decode()
    except OSError as error:
        answer[f"{host}:{port}"] = f"{type(error).__name__}"
"""

CONNECT = """
import socket
answer = {}
for target in inputs["targets"]:
    with socket.create_connection(("127.0.0.1", 3128), 5) as link:
        link.settimeout(8)
        link.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode())
        head = link.recv(4096).decode()
        status = head.split()[1] if head else "closed"
        if status == "200":
            link.sendall(b"hello")
            status += " " + link.recv(100).decode()
        answer[target] = status
"""


async def nothing_open(out: Outside) -> None:
    async with asyncio.timeout(30):
        while out.guard.open_count:
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(loop_scope="session")
async def out(tmp_path: Path, podman_executor: PodmanExecutor) -> AsyncIterator[Outside]:
    async with outside(tmp_path, podman_executor) as made:
        yield made


@pytest.mark.usefixtures("each_way")
async def test_what_a_rule_allows_is_reached_and_nothing_else(
    out: Outside, podman_executor: PodmanExecutor
) -> None:
    out.name("127.0.0.7 web.test", "127.0.0.7 other.test", "127.0.0.7 db.test")
    async with serving(web) as port, serving(web) as second, serving(echo) as database:
        literal = await out.rule("allow", "127.0.0.7", port, database)
        allowed = await out.rule("allow", "web.test", port, protocol="http")
        named = await out.rule("allow", "db.test", database)
        denied = await out.rule("deny", "other.test")
        async with box(podman_executor, out.spec(spec_of("mod_1/3"))) as one:
            urls = [
                f"http://web.test:{port}/a?b=c",
                f"http://web.test:{second}/",
                f"http://other.test:{port}/",
                f"http://127.0.0.8:{port}/",
                f"http://unknown.test:{port}/",
            ]
            pages = await one.run(GET, urls=urls, data="features")
            tunnels = await one.run(
                CONNECT,
                targets=[f"127.0.0.7:{database}", f"web.test:{port}", f"db.test:{database}"],
            )
            plain = await one.run(
                TCP, targets=[["db.test", database], ["db.test", port], ["127.0.0.7", port]]
            )
            datagrams = await one.run(
                "import socket\nlink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
                "try:\n    link.sendto(b'x', ('192.0.2.1', 53)); answer = 'sent'\n"
                "except OSError as error:\n    answer = type(error).__name__\n"
            )
    assert pages[urls[0]][0] == 200
    assert "GET /a?b=c" in pages[urls[0]][1] or "POST /a?b=c" in pages[urls[0]][1]
    assert pages[urls[0]][1].endswith("features")
    assert "via: 1.1 sandbox" in pages[urls[0]][1].lower()
    assert [pages[url][0] for url in urls[1:]] == [403, 403, 403, 403]
    assert tunnels[f"127.0.0.7:{database}"] == "200 hello"
    assert tunnels[f"web.test:{port}"] == "403"  # allowed for http only
    assert tunnels[f"db.test:{database}"] == "200 hello"
    assert plain[f"db.test:{database}"] == "hello"
    assert plain[f"db.test:{port}"] == "ConnectionRefusedError"  # no listener there
    assert plain[f"127.0.0.7:{port}"] == "ConnectionRefusedError"  # raw: inside it is nobody's
    assert datagrams == "OSError"
    refused = {(e["host"], e["port"], e["protocol"]): e for e in await out.events("egress.denied")}
    assert refused["web.test", second, "http"]["rule_id"] == ""
    assert refused["other.test", port, "http"]["rule_id"] == denied.id
    assert refused["127.0.0.8", port, "http"]["reason"] == "default"
    assert refused["web.test", port, "connect"]["reason"] == "default"
    assert all(e["model_id"] == "mod_1" and e["number"] == 3 for e in refused.values())
    passed = {(e["host"], e["protocol"]): e for e in await out.events("egress.passed")}
    assert passed["web.test", "http"]["rule_id"] == allowed.id
    assert passed["web.test", "http"]["sent_bytes"] > 100
    assert passed["db.test", "tcp"]["rule_id"] == named.id
    assert passed["db.test", "tcp"]["received_bytes"] == 5
    assert passed["127.0.0.7", "connect"]["rule_id"] == literal.id
    opened = await out.entries("egress.opened")
    assert all(entry.actor.startswith("sb_") for entry in opened)


async def test_a_name_that_turns_to_another_address_is_refused(
    out: Outside, podman_executor: PodmanExecutor
) -> None:
    async with serving(web) as port, serving(web, "127.0.0.1", port):
        await out.rule("allow", "127.0.0.7", port)
        allowed = await out.rule("allow", "flip.test", port)
        async with box(podman_executor, out.spec(spec_of("mod_1/1"))) as one:
            url = f"http://flip.test:{port}/"
            out.name("127.0.0.7 flip.test")
            first = await one.run(GET, urls=[url])
            out.name("127.0.0.1 flip.test")
            second = await one.run(GET, urls=[url])
            out.name("127.0.0.7 flip.test", "169.254.169.254 flip.test")
            third = await one.run(GET, urls=[url])
    assert [first[url][0], second[url][0], third[url][0]] == [200, 403, 403]
    reasons = [(e["reason"], e["rule_id"]) for e in await out.events("egress.denied")]
    assert reasons == [("loopback", allowed.id), ("metadata", allowed.id)]


async def test_a_redirect_is_not_followed(out: Outside, podman_executor: PodmanExecutor) -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2:1/\r\ncontent-length: 0\r\n\r\n"
        )
        writer.close()

    async with serving(redirect) as port:
        await out.rule("allow", "127.0.0.7", port)
        async with box(podman_executor, out.spec(spec_of("mod_1/1"))) as one:
            url = f"http://127.0.0.7:{port}/"
            found = await one.run(GET, urls=[url])
    # urllib itself asked for the second address, and was refused.
    assert found[url][0] == 403
    assert [e["host"] for e in await out.events("egress.denied")] == ["127.0.0.2"]


async def test_no_sandbox_reaches_the_proxy_or_the_names_of_another(
    out: Outside, podman_executor: PodmanExecutor
) -> None:
    out.name("127.0.0.7 db.test")
    async with serving(echo) as port:
        await out.rule("allow", "127.0.0.7", port, model="fraud")
        await out.rule("allow", "db.test", port, model="fraud")
        mine, others = out.spec(spec_of("mod_1/1")), out.spec(spec_of("mod_2/1"), "churn")
        assert others.outlets is None
        async with box(podman_executor, mine) as one, box(podman_executor, others) as other:
            assert (await one.run(TCP, targets=[["db.test", port]])) == {f"db.test:{port}": "hello"}
            seen = await other.run(
                TCP, targets=[["127.0.0.1", 3128], ["127.66.0.1", port], ["db.test", port]]
            )
            environment = await other.run(
                "import os\nanswer = [n for n in os.environ if 'proxy' in n.lower()]"
            )
        with socket.socket() as outside_of_all:
            assert outside_of_all.connect_ex(("127.0.0.1", 3128)) != 0
    assert set(seen.values()) <= {"ConnectionRefusedError", "gaierror"}
    assert environment == []


async def test_a_changed_rule_closes_what_is_open(
    out: Outside, podman_executor: PodmanExecutor
) -> None:
    out.name("127.0.0.7 db.test")
    hold = (
        "import socket\n"
        "kept['link'] = socket.create_connection(('db.test', inputs['port']), 5)\n"
        "kept['link'].sendall(b'x')\nanswer = kept['link'].recv(1).decode()\n"
    )
    again = (
        "kept['link'].settimeout(5)\n"
        "try:\n    answer = len(kept['link'].recv(1))\n"
        "except OSError as error:\n    answer = type(error).__name__\n"
    )
    async with serving(echo) as port:
        await out.rule("allow", "127.0.0.7", port)
        rule = await out.rule("allow", "db.test", port)
        async with box(podman_executor, out.spec(spec_of("mod_1/1"))) as one:
            assert await one.run(hold, port=port) == "x"
            other = await out.rule("deny", "elsewhere.test", before=rule.id)
            assert out.guard.open_count == 1
            await out.remove(other)
            await out.remove(rule)
            assert await one.run(again) in (0, "ConnectionResetError")
            await nothing_open(out)
            assert (await one.run(TCP, targets=[["db.test", port]])) != {f"db.test:{port}": "hello"}
    assert [e["code"] for e in await out.events("egress.passed")] == ["revoked"]
    assert [e["reason"] for e in await out.events("egress.denied")] == ["default"]


FLOOD = """
import socket, threading
seen = []
def ask(numbers):
    for n in numbers:
        try:
            with socket.create_connection(("127.0.0.1", 3128), 10) as link:
                link.sendall(f"CONNECT h{n}.test:443 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
                seen.append(link.recv(64)[9:12].decode())
        except OSError as error:
            seen.append(type(error).__name__)
threads = [threading.Thread(target=ask, args=(range(i, 400, 8),)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
answer = {word: seen.count(word) for word in set(seen)}
"""


async def test_a_flood_of_refusals_is_counted_not_kept(
    out: Outside, podman_executor: PodmanExecutor
) -> None:
    await out.rule("allow", "allowed.test", 443)
    async with box(podman_executor, out.spec(spec_of("mod_1/1", invoke_timeout_ms=60_000))) as one:
        answered = await one.run(FLOOD)
    assert answered == {"403": 400}
    denied = await out.events("egress.denied")
    suppressed = await out.events("egress.suppressed")
    assert len(denied) < 60
    assert sum(e["count"] for e in denied) + sum(e["count"] for e in suppressed) == 400


async def test_what_is_no_request_harms_nothing(
    out: Outside, podman_executor: PodmanExecutor
) -> None:
    probes = {
        "text": b"\x00\xff\r\n\r\n",
        "origin": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "userinfo": b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "number": b"CONNECT 2130706433:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "short": b"CONNECT 127.1:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "port": b"CONNECT a.test:99999 HTTP/1.1\r\nHost: x\r\n\r\n",
        "both": b"POST http://allowed.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        "head": b"GET http://allowed.test/ HTTP/1.1\r\nA: " + b"a" * 70_000,
        "scheme": b"GET ftp://allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
    }
    text = (
        "import socket\nanswer = {}\n"
        "for name, probe in inputs['probes'].items():\n"
        "    with socket.create_connection(('127.0.0.1', 3128), 5) as link:\n"
        "        link.settimeout(8)\n"
        "        try:\n"
        "            link.sendall(probe.encode('latin-1'))\n"
        "            answer[name] = link.recv(64)[9:12].decode()\n"
        "        except OSError as error:\n"
        "            answer[name] = type(error).__name__\n"
    )
    await out.rule("allow", "allowed.test", 80)
    async with box(podman_executor, out.spec(spec_of("mod_1/1"))) as one:
        seen = await one.run(text, probes={k: v.decode("latin-1") for k, v in probes.items()})
        usable = await one.run(CONNECT, targets=["denied.test:443"])
    number, short = seen.pop("number"), seen.pop("short")
    assert (number, short) == ("403", "403")
    assert set(seen.values()) <= {"400", "502", "ConnectionResetError", "BrokenPipeError"}, seen
    assert usable == {"denied.test:443": "403"}
    assert {e["reason"] for e in await out.events("egress.denied")} == {"host-malformed", "default"}


async def test_idle_and_too_many_connections_end(
    tmp_path: Path, podman_executor: PodmanExecutor
) -> None:
    text = (
        "import socket, time\n"
        "links = []\nanswer = {'refused': 0}\n"
        "for _ in range(6):\n"
        "    link = socket.create_connection(('db.test', inputs['port']), 5)\n"
        "    link.settimeout(5)\n"
        "    try:\n        link.sendall(b'x'); link.recv(1) or 1 / 0\n"
        "    except (OSError, ZeroDivisionError):\n        answer['refused'] += 1\n"
        "    links.append(link)\n"
        "started = time.monotonic()\n"
        "try:\n    answer['rest'] = len(links[0].recv(1))\n"
        "except OSError:\n    answer['rest'] = 0\n"
        "answer['s'] = time.monotonic() - started\n"
    )
    async with (
        outside(tmp_path, podman_executor, connections_max=4, idle_timeout_s=1) as out,
        serving(echo) as port,
    ):
        out.name("127.0.0.7 db.test")
        await out.rule("allow", "127.0.0.7", port)
        await out.rule("allow", "db.test", port)
        async with box(podman_executor, out.spec(spec_of("mod_1/1"))) as one:
            seen = await one.run(text, port=port)
    assert seen["refused"] == 2
    assert seen["rest"] == 0
    assert seen["s"] < 4


async def test_nothing_is_left_of_a_sandbox_that_ends_in_the_middle(
    out: Outside, podman_executor: PodmanExecutor
) -> None:
    out.name("127.0.0.7 db.test")
    async with serving(echo) as port:
        await out.rule("allow", "127.0.0.7", port)
        await out.rule("allow", "db.test", port)
        async with box(podman_executor, out.spec(spec_of("mod_1/1"))) as one:
            assert (await one.run(TCP, targets=[["db.test", port]])) == {f"db.test:{port}": "hello"}
            await one.run(
                "import socket\n"
                "kept['l'] = socket.create_connection(('db.test', inputs['port']), 5)\n"
                "kept['l'].sendall(b'y')\nanswer = kept['l'].recv(1).decode()",
                port=port,
            )
            assert out.guard.open_count == 1
            await one.sandbox.destroy()
            assert out.guard.open_count == 0
    (passed,) = await out.events("egress.passed")
    assert (passed["connections"], passed["sent_bytes"], passed["received_bytes"]) == (2, 6, 6)
