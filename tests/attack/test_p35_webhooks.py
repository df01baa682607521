"""P35: have the appliance itself go where nobody should send it, by the address of a webhook."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from inside import Inside, inside
from receiver import receiver

from appliance import config
from appliance.egress.outbound import Outbound, place_from_url
from appliance.egress.resolver import Resolver
from appliance.errors import ConfigInvalid, EgressDenied, InputInvalid
from appliance.serve import certificates

HOOKS = "/api/v1/tenants/acme/webhooks"
NAMES = {
    "127.0.0.1": "loopback",
    "::1": "loopback",
    "169.254.169.254": "metadata",
    "fd00:ec2::254": "metadata",
    "0.0.0.0": "unspecified",
    "::": "unspecified",
    "169.254.7.7": "link-local",
    "fe80::1": "link-local",
    "224.0.0.251": "multicast",
    "255.255.255.255": "broadcast",
    "::ffff:127.0.0.1": "embedded-ipv4",
    "::ffff:10.0.0.1": "embedded-ipv4",
    "::127.0.0.1": "embedded-ipv4",
    "2002:7f00:1::1": "embedded-ipv4",
    "64:ff9b::a9fe:a9fe": "embedded-ipv4",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "embedded-ipv4",
}
Look = Callable[..., Any]


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    (tmp_path / "hosts").write_text("")
    return tmp_path / "hosts"


def guard(hosts: Path, **settings: Any) -> Outbound:
    settings = {"destinations": ("*",), **settings}
    return Outbound(config.Webhooks(**settings), Resolver(str(hosts)))


async def refused(outbound: Outbound, url: str) -> str:
    with pytest.raises(EgressDenied) as caught:
        await outbound.addresses(place_from_url(url), 5.0)
    return str(caught.value.extensions["reason"])


async def test_nothing_is_reached_that_nobody_named(hosts: Path) -> None:
    hosts.write_text("192.0.2.1 hooks.test\n")
    by_default = Outbound(config.Webhooks(), Resolver(str(hosts)))
    assert await refused(by_default, "https://hooks.test/") == "destination"
    one = Outbound(config.Webhooks(allow=("https://hooks.test",)), Resolver(str(hosts)))
    assert await one.addresses(place_from_url("https://hooks.test/a"), 5.0) == ("192.0.2.1",)
    assert await refused(one, "https://other.test/") == "destination"


@pytest.mark.parametrize("address", NAMES)
async def test_no_special_address_is_reached_by_itself_or_by_a_name(
    hosts: Path, address: str
) -> None:
    outbound = guard(hosts)
    shown = f"[{address}]" if ":" in address else address
    hosts.write_text(f"{address} hooks.test\n192.0.2.1 mixed.test\n{address} mixed.test\n")
    for url in (
        f"https://{shown}/",
        "https://hooks.test/",
        "https://mixed.test/",
        "https://HOOKS.test./",
    ):
        assert await refused(outbound, url) == NAMES[address]


async def test_the_appliances_own_machine_is_not_reached_by_its_own_address(hosts: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = str(probe.getsockname()[0])
    hosts.write_text(f"{own} own.test\n")
    assert await refused(guard(hosts), f"https://{own}:8443/") == "own-address"
    assert await refused(guard(hosts), "https://own.test/") == "own-address"


@pytest.mark.parametrize(
    "url",
    [
        "https://2130706433/", "https://0x7f000001/", "https://017700000001/", "https://127.1/",
        "https://0/", "https://a@b.test/", "https://a:b@b.test/", "https://b.test/#x",
        "file:///etc/passwd", "gopher://b.test/", "ftp://b.test/", "//b.test/", "b.test",
        "https:///x", "https://b.test:0/", "https://b.test:99999/", "https://b.test:x/", "",
        "https://b.test/a b", "https://b.test/\r\nx: y", "https://b.test\\@c.test/", "https://b_\u00e9.test/",
        "https://[::1%25lo]/", "https://b..test/", "https://" + "x" * 3000,
    ],
)  # fmt: skip
def test_an_address_in_a_strange_form_is_no_address(url: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        place_from_url(url)
    assert caught.value.fields[0].pointer == "/url"


async def test_only_what_it_allows_is_reached_and_https_unless_it_says_otherwise(
    hosts: Path,
) -> None:
    hosts.write_text("192.0.2.1 a.corp\n127.0.0.1 local.corp\n10.1.2.3 b.corp\n")
    plain = guard(hosts)
    assert await plain.addresses(place_from_url("https://a.corp/x"), 5.0) == ("192.0.2.1",)
    assert await plain.addresses(place_from_url("https://b.corp/x"), 5.0) == ("10.1.2.3",)
    assert await refused(plain, "http://a.corp/") == "cleartext"
    only = guard(hosts, destinations=("a.corp", "10.0.0.0/8"))
    assert await only.addresses(place_from_url("https://a.corp/"), 5.0)
    assert await only.addresses(place_from_url("https://10.9.9.9/"), 5.0)
    assert await refused(only, "https://b.corp/") == "destination"
    assert await refused(guard(hosts, destinations=()), "https://a.corp/") == "destination"
    # A name that may be reached in the clear opens no loopback; only the address itself does.
    clear = guard(hosts, allow=("http://local.corp:8080", "http://a.corp"))
    assert await clear.addresses(place_from_url("http://a.corp:80/"), 5.0)
    assert await refused(clear, "http://a.corp:81/") == "cleartext"
    assert await refused(clear, "http://local.corp:8080/") == "loopback"
    opened = guard(hosts, allow=("http://local.corp:8080", "http://127.0.0.1:8080"))
    assert await opened.addresses(place_from_url("http://local.corp:8080/"), 5.0)
    assert await refused(opened, "http://127.0.0.1:8081/") == "cleartext"
    assert await refused(opened, "https://127.0.0.1:8080/") == "loopback"
    for wrong in ({"allow": ("127.0.0.1",)}, {"destinations": ("https://a.corp",)}):
        with pytest.raises(ConfigInvalid):
            guard(hosts, **wrong)


async def test_a_name_it_does_not_allow_is_not_even_looked_up(
    hosts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hosts.unlink()  # each look-up complains about it
    outbound = guard(hosts, destinations=("localhost",))
    assert await refused(outbound, "https://secret-text.attacker.test/") == "destination"
    assert caplog.messages == []
    assert await refused(outbound, "https://localhost/") == "loopback"
    assert "cannot be read" in caplog.text


@asynccontextmanager
async def stage(folder: Path, **settings: Any) -> AsyncIterator[tuple[Inside, Any]]:
    async with inside(
        folder, webhooks={"destinations": ("*",)} | settings, hosts_file=str(folder / "hosts")
    ) as it:
        await it.tenant("acme")
        await it.version("acme", "echo")
        async with it.client(await it.key("acme")) as client:
            yield it, client


async def test_creation_refuses_it_and_says_whom_to_ask(tmp_path: Path, hosts: Path) -> None:
    hosts.write_text("127.0.0.1 hooks.test\n")
    async with stage(tmp_path) as (it, client):
        for url in ("https://127.0.0.1/x", "https://hooks.test/x", "http://192.0.2.1/"):
            answer = await client.post(HOOKS, json={"url": url, "events": ["alias.set"]})
            assert (answer.status_code, answer.json()["code"]) == (403, "egress-denied")
            assert "webhooks.allow" in answer.json()["hint"]
        nowhere = {"url": "https://nowhere.invalid/", "events": ["alias.set"]}
        assert (await client.post(HOOKS, json=nowhere)).json()["errors"][0]["pointer"] == "/url"
        await client.post(HOOKS, json={})
        path = "/api/v1/models/acme/echo/invoke"
        headers = {"Prefer": "respond-async", "Webhook": "https://hooks.test/x"}
        answer = await client.post(path, content=b"1", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "egress-denied")
        assert it.store.registry.snapshot.jobs(it.store.registry.snapshot.tenant("acme").id) == ()


async def test_a_name_that_turns_to_loopback_later_is_refused_at_delivery(
    tmp_path: Path, hosts: Path
) -> None:
    async with receiver() as hears:
        hosts.write_text("192.0.2.1 hooks.test\n")
        origin = f"http://hooks.test:{hears.port}"
        async with stage(tmp_path, allow=(origin,)) as (it, client):
            made = await client.post(HOOKS, json={"url": f"{origin}/", "events": ["alias.set"]})
            assert made.status_code == 201, made.text
            hosts.write_text("127.0.0.1 hooks.test\n")
            tested = await client.post(f"{HOOKS}/{made.json()['webhook']['id']}/test")
            assert tested.json()["code"] == "egress-denied"
            assert hears.got == []
            kinds = [entry.kind for entry in it.store.ledger.read(0, 999)]
            assert "delivery.opened" not in kinds


async def test_the_certificate_has_to_be_of_the_name_and_of_an_authority_that_it_trusts(
    tmp_path: Path, hosts: Path
) -> None:
    (tmp_path / "server").mkdir()
    certificates.ensure(tmp_path / "server", b"s" * 32, ("hooks.test",))
    tls: ssl.SSLContext = certificates.context(tmp_path / "server")
    ca = str(tmp_path / "server/tls/ca.pem")
    async with receiver(tls=tls) as hears:
        hosts.write_text("127.0.0.1 hooks.test\n127.0.0.1 other.test\n")
        allow = (f"https://127.0.0.1:{hears.port}",)
        found = {}
        for ca_file in ("", ca, str(tmp_path / "no-such.pem")):
            folder = tmp_path / (Path(ca_file).stem or "none")
            folder.mkdir()
            (folder / "hosts").write_text(hosts.read_text())
            async with stage(folder, allow=allow, ca_file=ca_file) as (_it, client):
                for name in ("hooks.test", "other.test"):
                    url = f"https://{name}:{hears.port}/"
                    made = await client.post(HOOKS, json={"url": url, "events": ["alias.set"]})
                    path = f"{HOOKS}/{made.json()['webhook']['id']}/test"
                    found[folder.name, name] = (await client.post(path)).json()["code"]
        assert found == {
            ("none", "hooks.test"): "tls", ("none", "other.test"): "tls",
            ("ca", "hooks.test"): "ok", ("ca", "other.test"): "tls",
            ("no-such", "hooks.test"): "ca-file", ("no-such", "other.test"): "ca-file",
        }  # fmt: skip
        assert len(hears.got) == 1
