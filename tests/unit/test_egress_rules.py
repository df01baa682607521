"""What egress rules say about a destination, and which addresses no rule opens by accident."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.egress import addresses, rules
from appliance.egress.rules import Target
from appliance.errors import InputInvalid
from appliance.records import EgressRule


def rule(action: str, host: str, *ports: str, name: str = "", **more: object) -> EgressRule:
    return EgressRule(
        id=name or f"{action} {host}",
        tenant_id="ten_a",
        action=action,  # type: ignore[arg-type]
        host=rules.pattern_from_text(host),
        ports=rules.ports_from_texts(ports),
        reason="test",
        created_ns=1,
        created_by="t",
        **more,  # type: ignore[arg-type]
    )


def to(host: str, port: int = 443, protocol: str = "connect") -> Target:
    return Target(host=host, port=port, protocol=protocol)


def test_without_a_rule_the_answer_is_no() -> None:
    verdict = rules.decide((), "fraud", to("example.com"))
    assert (verdict.allowed, verdict.rule_id, verdict.reason) == (False, "", "default")


def test_the_first_rule_that_matches_decides() -> None:
    known = (rule("deny", "bad.example.com"), rule("allow", "*.example.com"), rule("deny", "*"))
    assert not rules.decide(known, "m", to("bad.example.com")).allowed
    assert rules.decide(known, "m", to("good.example.com")).rule_id == "allow *.example.com"
    assert rules.decide(known, "m", to("example.com")).rule_id == "deny *"
    assert rules.decide(known, "m", to("badexample.com")).rule_id == "deny *"


def test_a_rule_may_be_for_one_model_one_port_and_one_protocol() -> None:
    known = (rule("allow", "db.test", "5432", "8000-8100", model="fraud", protocol="tcp"),)
    assert rules.decide(known, "fraud", to("db.test", 5432, "tcp")).allowed
    assert rules.decide(known, "fraud", to("db.test", 8050, "tcp")).allowed
    assert not rules.decide(known, "fraud", to("db.test", 8101, "tcp")).allowed
    assert not rules.decide(known, "fraud", to("db.test", 5432, "http")).allowed
    assert not rules.decide(known, "other", to("db.test", 5432, "tcp")).allowed


def test_an_address_rule_allows_who_asked_for_it_and_denies_what_a_name_leads_to() -> None:
    known = (rule("deny", "10.0.0.0/8"), rule("allow", "*.corp"), rule("allow", "192.0.2.0/24"))
    assert not rules.decide(known, "m", to("10.1.2.3")).allowed
    assert rules.decide(known, "m", to("db.corp")).allowed
    assert not rules.decide(known, "m", to("db.corp"), address="10.1.2.3").allowed
    assert rules.decide(known, "m", to("db.corp"), address="198.51.100.1").allowed
    assert rules.decide(known, "m", to("192.0.2.7")).allowed
    assert not rules.decide(known, "m", to("other.test"), address="192.0.2.7").allowed


def test_only_the_literal_address_opens_an_address_of_a_special_class() -> None:
    wide = (rule("allow", "*"), rule("allow", "127.0.0.0/8"))
    assert not rules.has_literal(wide, "m", to("x.test"), "127.0.0.1")
    named = (*wide, rule("allow", "127.0.0.1", "443"))
    assert rules.has_literal(named, "m", to("x.test"), "127.0.0.1")
    assert not rules.has_literal(named, "m", to("x.test", 80), "127.0.0.1")
    assert not rules.has_literal((rule("deny", "127.0.0.0/8"), *named), "m", to("x"), "127.0.0.1")


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.66.0.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("169.254.169.254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("240.0.0.1", "reserved"),
        ("::ffff:127.0.0.1", "embedded-ipv4"),
        ("::ffff:10.0.0.1", "embedded-ipv4"),
        ("64:ff9b::7f00:1", "embedded-ipv4"),
        ("2002:7f00:1::", "embedded-ipv4"),
        ("2001:0:7f00:1::", "embedded-ipv4"),
        ("::7f00:1", "embedded-ipv4"),
        ("10.1.2.3", ""),
        ("192.168.1.1", ""),
        ("93.184.216.34", ""),
        ("fd12::1", ""),
        ("2606:2800::1", ""),
    ],
)
def test_special_addresses_are_known(address: str, kind: str) -> None:
    assert addresses.class_of(ipaddress.ip_address(address)) == kind


@pytest.mark.parametrize(
    "text",
    ["2130706433", "0x7f000001", "0x7f.1", "127.1", "010.0.0.1", "0", "1.2.3.4.5", "a..b", "", ".",
     "a b", "a/b", "user@host", "-a.test", "x" * 254, "ho\x00st", "fe80::1%eth0", "[::1",
     "ex\u00e4"],
)  # fmt: skip
def test_a_host_that_two_programs_could_read_differently_is_none(text: str) -> None:
    assert rules.host_from_text(text) == ""


@pytest.mark.parametrize(
    ("text", "host"),
    [("Db.Example.COM", "db.example.com"), ("db.", "db"), ("_srv.x", "_srv.x"),
     ("10.0.0.1", "10.0.0.1"), ("[::1]", "::1"), ("2606:0:0::1", "2606::1")],
)  # fmt: skip
def test_a_host_is_compared_in_one_notation(text: str, host: str) -> None:
    assert rules.host_from_text(text) == host


@pytest.mark.parametrize("text", ["*.*", "a*b", "*.10.0.0.1", "10.0.0.1/8", "http://x", "", "*."])
def test_a_rule_with_another_host_is_refused(text: str) -> None:
    with pytest.raises(InputInvalid):
        rules.pattern_from_text(text)


@pytest.mark.parametrize("text", ["0", "65536", "x", "-1", "9-8", "80-", "", "１"])
def test_a_rule_with_another_port_is_refused(text: str) -> None:
    with pytest.raises(InputInvalid):
        rules.ports_from_texts([text])


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 99)), max_size=8))
def test_ports_are_read_as_they_are_written(pairs: list[tuple[int, int]]) -> None:
    ports = tuple(sorted({(low, min(low + more, 65535)) for low, more in pairs}))
    assert rules.ports_from_texts(rules.texts_from_ports(ports)) == ports


def test_a_model_without_an_allow_rule_has_no_way_out() -> None:
    assert rules.outlets_for((), "m") is None
    assert rules.outlets_for((rule("deny", "*"),), "m") is None
    assert rules.outlets_for((rule("allow", "*", model="other"),), "m") is None


def test_names_are_given_for_plain_names_and_few_ports_only() -> None:
    known = (
        rule("deny", "no.test", "80"),
        rule("allow", "db.test", "5432", "5433"),
        rule("allow", "no.test", "80", "81"),
        rule("allow", "many.test", "1-1000"),
        rule("allow", "every.test"),
        rule("allow", "*.glob.test", "80"),
        rule("allow", "10.0.0.1", "80"),
        rule("allow", "web.test", "443", protocol="connect"),
    )
    outlets = rules.outlets_for(known, "m")
    assert outlets is not None
    assert outlets.proxy
    assert [(o.host, o.ports) for o in outlets.names] == [
        ("db.test", (5432, 5433)),
        ("no.test", (81,)),
    ]
    assert len({o.address for o in outlets.names}) == 2
    only = rules.outlets_for((rule("allow", "db.test", "5432", protocol="tcp"),), "m")
    assert only is not None
    assert not only.proxy


def test_a_tcp_rule_that_can_give_no_name_is_refused() -> None:
    for host, ports in (("*", ("80",)), ("10.0.0.1", ("80",)), ("db.test", ())):
        with pytest.raises(InputInvalid):
            rules.require_sense(rule("allow", host, *ports, protocol="tcp"))
    rules.require_sense(rule("deny", "*", protocol="tcp"))
    rules.require_sense(rule("allow", "db.test", "5432", protocol="tcp"))
