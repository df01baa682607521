"""P35: reach what is never meant, by a name a rule allows. The resolver is the real one."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from outside import Outside, outside

from appliance.errors import EgressDenied
from appliance.sandbox.egress import Who

NAMES = {
    "loopback.test": ("127.0.0.1", "loopback"),
    "loopback6.test": ("::1", "loopback"),
    "metadata.test": ("169.254.169.254", "metadata"),
    "metadata6.test": ("fd00:ec2::254", "metadata"),
    "zero.test": ("0.0.0.0", "unspecified"),
    "local.test": ("169.254.7.7", "link-local"),
    "local6.test": ("fe80::1", "link-local"),
    "many.test": ("224.0.0.251", "multicast"),
    "all.test": ("255.255.255.255", "broadcast"),
    "mapped.test": ("::ffff:127.0.0.1", "embedded-ipv4"),
    "mapped10.test": ("::ffff:10.0.0.1", "embedded-ipv4"),
    "sixtofour.test": ("2002:7f00:1::1", "embedded-ipv4"),
    "nat64.test": ("64:ff9b::a9fe:a9fe", "embedded-ipv4"),
    "teredo.test": ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "embedded-ipv4"),
}


@pytest.fixture
async def out(tmp_path: Path) -> AsyncIterator[Outside]:
    async with outside(tmp_path) as made:
        yield made


def who_of(out: Outside) -> Who:
    return Who(sandbox_id="sb_x", tenant_id=out.tenant.id, version_key="mod_1/1", model="m")


@pytest.mark.parametrize("name", sorted(NAMES))
async def test_a_name_that_a_rule_allows_leads_to_no_special_address(
    out: Outside, name: str
) -> None:
    address, kind = NAMES[name]
    out.name(f"{address} {name}")
    rule = await out.rule("allow", "*")
    for host in (name, name.upper(), f"{name}.", address):
        with pytest.raises(EgressDenied) as caught:
            await out.guard.admit(who_of(out), host, 80, "connect")
        assert caught.value.extensions["reason"] == kind
        assert caught.value.extensions["rule_id"] == rule.id
    assert out.guard.open_count == 0
    assert await out.events("egress.opened") == []
    recorded = {(e["reason"], e["rule_id"]) for e in await out.events("egress.denied")}
    assert recorded == {(kind, rule.id)}


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0", ""])
async def test_an_address_in_a_strange_notation_is_no_host(out: Outside, host: str) -> None:
    await out.rule("allow", "*")
    with pytest.raises(EgressDenied) as caught:
        await out.guard.admit(who_of(out), host, 80, "http")
    assert caught.value.extensions["reason"] == "host-malformed"


async def test_the_appliances_own_machine_is_not_reached_by_its_own_address(out: Outside) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = str(probe.getsockname()[0])
    assert not ipaddress.ip_address(own).is_loopback
    out.name(f"{own} own.test")
    await out.rule("allow", "*")
    for host in ("own.test", own):
        with pytest.raises(EgressDenied) as caught:
            await out.guard.admit(who_of(out), host, 22, "connect")
        assert caught.value.extensions["reason"] == "own-address"
    await out.rule("allow", own, 22)
    (await out.guard.admit(who_of(out), "own.test", 22, "connect")).end(failed=True)


async def test_one_bad_address_among_good_ones_is_enough(out: Outside) -> None:
    out.name("192.0.2.1 mixed.test", "127.0.0.1 mixed.test")
    await out.rule("allow", "mixed.test")
    with pytest.raises(EgressDenied):
        await out.guard.admit(who_of(out), "mixed.test", 443, "connect")


async def test_a_name_no_rule_allows_is_not_even_looked_up(
    out: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    out.hosts.unlink()  # each look-up complains about it
    await out.rule("allow", "localhost")
    with pytest.raises(EgressDenied):
        await out.guard.admit(who_of(out), "secret-text.attacker.test", 443, "connect")
    assert caplog.messages == []
    with pytest.raises(EgressDenied):
        await out.guard.admit(who_of(out), "localhost", 443, "connect")
    assert "cannot be read" in caplog.text


async def test_an_address_of_the_companys_own_network_is_ordinary(out: Outside) -> None:
    out.name("10.1.2.3 db.corp")
    await out.rule("allow", "db.corp", 5432)
    passage = await out.guard.admit(who_of(out), "db.corp", 5432, "tcp")
    assert passage.addresses == ("10.1.2.3",)
    passage.end(failed=True)
