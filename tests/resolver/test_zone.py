"""resolver.zone: Consul's rules, as tables from question to records."""

from __future__ import annotations

from dataclasses import replace

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.model import (
    Address,
    ConnectQuery,
    IngressQuery,
    NamesQuery,
    NodesQuery,
    PreparedQuery,
    PreparedResult,
    ServiceName,
    ServiceQuery,
)
from resolver import records, wire
from resolver.answers import Limits, render
from resolver.facts import AddressesQuery, AliasQuery, Fact, Query
from resolver.records import Found, Record, Soa
from resolver.wire import Name, name_from_text
from resolver.zone import Need, Unknown, ZoneSettings, resolve
from tests.resolver.world import SERIAL, entry, facts, lines, node, query

SETTINGS = ZoneSettings()
ALL = Limits(size=65535, answers=0, edns=False)
V6 = "2001:db8::7"


def reply(name: str, qtype: str, known: dict, settings: ZoneSettings = SETTINGS) -> dns.message.Message:  # type: ignore[type-arg]
    asked = query(name, qtype)
    found = resolve(asked, known, settings, SERIAL)
    assert isinstance(found, Found), found
    return dns.message.from_wire(b"\0\1" + render(asked.question, found, found.choices, ALL))


def answer(name: str, qtype: str, known: dict, settings: ZoneSettings = SETTINGS) -> list[str]:  # type: ignore[type-arg]
    """The answer section; a negative answer as ``NXDOMAIN`` or ``NODATA``, with its SOA checked."""
    message = reply(name, qtype, known, settings)
    if message.answer:
        assert message.rcode() == 0
        assert not message.authority
        return lines(message.answer)
    (soa,) = lines(message.authority)  # RFC 2308 sections 2.1 and 2.2
    assert " SOA " in soa
    return ["NXDOMAIN" if message.rcode() == 3 else "NODATA"]


WEB = facts(
    entry("web", "10.0.0.1", 8001, tags=["v1", "Blue.Green"]),
    entry("web", "10.0.0.2", 8002, tags=["v2", "udp"], on=node("host-2", "10.1.0.2")),
    entry("web", V6, 8003),
    entry("api", "", 9000, on=node("Host.3", "10.1.0.3", meta={"rack": "r1", "rfc1035-motd": "hi"})),
    entry("sick", "10.0.0.9", 80, status="critical"),
    entry("shaky", "10.0.0.8", 80, status="warning", weights=(5, 2)),
    entry("ext", "www.Example.test", 443),
    entry("inner", "api.service.consul", 443),
    entry("loop", "pool.service.consul"),
    entry("pool", "loop.service.consul"),
    entry("self", "self.service.consul", 443),
) | {
    AliasQuery(name_from_text("www.example.test"), wire.A): Fact(
        (
            records.pointer(
                name_from_text("www.example.test"), wire.CNAME, 60, name_from_text("w.example.test")
            ),
            Record(name_from_text("w.example.test"), wire.A, 60, bytes([192, 0, 2, 1])),
        )
    ),
    AliasQuery(name_from_text("www.example.test"), wire.AAAA): Fact(()),
    AddressesQuery(): Fact({"10.0.0.1": entry("web", "10.0.0.1"), "192.0.2.9": entry("pub", "192.0.2.9")}),
}

RULES = [
    # services
    ("web.service.consul", "A", ["web.service.consul. 0 A 10.0.0.1", "web.service.consul. 0 A 10.0.0.2"]),
    ("web.service.consul", "AAAA", [f"web.service.consul. 0 AAAA {V6}"]),
    ("web.service.dc1.consul", "AAAA", [f"web.service.dc1.consul. 0 AAAA {V6}"]),
    ("web.service.dc1.dc.consul", "AAAA", [f"web.service.dc1.dc.consul. 0 AAAA {V6}"]),
    ("wEb.SerVice.DC1.consUL", "AAAA", [f"wEb.SerVice.DC1.consUL. 0 AAAA {V6}"]),
    ("api.service.consul", "A", ["api.service.consul. 0 A 10.1.0.3"]),
    ("api.service.consul", "AAAA", ["NODATA"]),
    ("api.service.consul", "MX", ["NODATA"]),
    ("api.service.consul", "TXT", ["NODATA"]),
    ("api.service.consul", "HTTPS", ["NODATA"]),
    ("nope.service.consul", "A", ["NXDOMAIN"]),
    ("nope.service.consul", "AAAA", ["NXDOMAIN"]),
    ("sick.service.consul", "A", ["NXDOMAIN"]),
    ("sick.service.consul", "SRV", ["NXDOMAIN"]),
    ("shaky.service.consul", "A", ["shaky.service.consul. 0 A 10.0.0.8"]),
    ("a.b.service.consul", "A", ["NXDOMAIN"]),
    ("web.service.dc1.x.consul", "A", ["NXDOMAIN"]),
    # tags, RFC 2782
    ("v1.web.service.consul", "A", ["v1.web.service.consul. 0 A 10.0.0.1"]),
    ("blue.green.web.service.consul", "A", ["blue.green.web.service.consul. 0 A 10.0.0.1"]),
    ("v9.web.service.consul", "A", ["NXDOMAIN"]),
    ("_web._tcp.service.consul", "AAAA", [f"_web._tcp.service.consul. 0 AAAA {V6}"]),
    ("_web._udp.service.consul", "A", ["_web._udp.service.consul. 0 A 10.0.0.2"]),
    ("_web._v1.service.consul", "A", ["_web._v1.service.consul. 0 A 10.0.0.1"]),
    ("_web._v1.consul", "SRV", ["_web._v1.consul. 0 SRV 1 1 8001 0a000001.addr.dc1.consul."]),
    ("_web._v1.consul", "A", ["NXDOMAIN"]),
    # SRV: targets and weights
    ("v2.web.service.consul", "SRV", ["v2.web.service.consul. 0 SRV 1 1 8002 0a000002.addr.dc1.consul."]),
    ("api.service.consul", "SRV", ["api.service.consul. 0 SRV 1 1 9000 Host.3.node.dc1.consul."]),
    ("shaky.service.consul", "SRV", ["shaky.service.consul. 0 SRV 1 2 80 0a000008.addr.dc1.consul."]),
    ("ext.service.consul", "SRV", ["ext.service.consul. 0 SRV 1 1 443 www.Example.test."]),
    # names instead of addresses
    (
        "ext.service.consul",
        "A",
        [
            "ext.service.consul. 0 CNAME www.Example.test.",
            "w.example.test. 0 A 192.0.2.1",
            "www.example.test. 0 CNAME w.example.test.",
        ],
    ),
    ("ext.service.consul", "AAAA", ["ext.service.consul. 0 CNAME www.Example.test."]),
    ("ext.service.consul", "CNAME", ["ext.service.consul. 0 CNAME www.Example.test."]),
    ("ext.service.consul", "TYPE65280", ["ext.service.consul. 0 CNAME www.Example.test."]),
    (
        "inner.service.consul",
        "A",
        ["api.service.consul. 0 A 10.1.0.3", "inner.service.consul. 0 CNAME api.service.consul."],
    ),
    ("inner.service.consul", "AAAA", ["inner.service.consul. 0 CNAME api.service.consul."]),
    (
        "loop.service.consul",
        "A",
        [
            "loop.service.consul. 0 CNAME pool.service.consul.",
            "pool.service.consul. 0 CNAME loop.service.consul.",
        ],
    ),
    ("self.service.consul", "A", ["self.service.consul. 0 A 10.1.0.1"]),
    ("self.service.consul", "SRV", ["self.service.consul. 0 SRV 1 1 443 host-1.node.dc1.consul."]),
    # nodes
    ("host-2.node.consul", "A", ["host-2.node.consul. 0 A 10.1.0.2"]),
    ("host-2.node.dc1.consul", "AAAA", ["NODATA"]),
    ("host.3.node.consul", "A", ["host.3.node.consul. 0 A 10.1.0.3"]),
    (
        "host.3.node.consul",
        "TXT",
        ['host.3.node.consul. 0 TXT "hi"', 'host.3.node.consul. 0 TXT "rack=r1"'],
    ),
    ("nope.node.consul", "A", ["NXDOMAIN"]),
    ("web.service.node.consul", "A", ["NXDOMAIN"]),  # a node "web.service"
    ("node.service.consul", "A", ["NXDOMAIN"]),  # a service "node"
    # addresses in names
    ("0a000001.addr.consul", "A", ["0a000001.addr.consul. 0 A 10.0.0.1"]),
    ("0A000001.addr.anything.consul", "A", ["0A000001.addr.anything.consul. 0 A 10.0.0.1"]),
    ("0a000001.addr.consul", "AAAA", ["NODATA"]),
    (
        "20010db8000000000000000000000007.addr.consul",
        "AAAA",
        [f"20010db8000000000000000000000007.addr.consul. 0 AAAA {V6}"],
    ),
    ("0a0000.addr.consul", "A", ["NXDOMAIN"]),
    ("0a00000g.addr.consul", "A", ["NXDOMAIN"]),
    ("0a000001x.addr.consul", "A", ["NXDOMAIN"]),
    ("x.0a000001.addr.consul", "A", ["NXDOMAIN"]),
    # the zone itself; names above existing names exist (RFC 8020)
    ("consul", "A", ["NODATA"]),
    ("service.consul", "A", ["NODATA"]),
    ("node.dc1.consul", "A", ["NODATA"]),
    ("dc1.consul", "A", ["NODATA"]),
    ("web.consul", "A", ["NXDOMAIN"]),
    (
        "web.service.consul",
        "SOA",
        [f"consul. 0 SOA ns.consul. hostmaster.consul. {SERIAL} 3600 600 86400 0"],
    ),
    # names that mean the same everywhere
    ("localhost", "A", ["localhost. 86400 A 127.0.0.1"]),
    ("x.localhost", "AAAA", ["x.localhost. 86400 AAAA ::1"]),
    ("localhost", "MX", ["NODATA"]),
    ("a.invalid", "A", ["NXDOMAIN"]),
    ("a.onion", "A", ["NXDOMAIN"]),
    # addresses to names
    ("1.0.1.10.in-addr.arpa", "PTR", ["1.0.1.10.in-addr.arpa. 0 PTR host-1.node.dc1.consul."]),
    ("3.0.1.10.in-addr.arpa", "PTR", ["3.0.1.10.in-addr.arpa. 0 PTR Host.3.node.dc1.consul."]),
    ("1.0.0.10.in-addr.arpa", "PTR", ["1.0.0.10.in-addr.arpa. 0 PTR web.service.dc1.consul."]),
    ("1.0.0.10.in-addr.arpa", "A", ["NODATA"]),
    ("9.2.0.192.in-addr.arpa", "PTR", ["9.2.0.192.in-addr.arpa. 0 PTR pub.service.dc1.consul."]),
    ("9.9.9.10.in-addr.arpa", "PTR", ["NXDOMAIN"]),  # RFC 6303: known here or nowhere
    ("10.in-addr.arpa", "PTR", ["NODATA"]),
    ("x.168.192.in-addr.arpa", "PTR", ["NXDOMAIN"]),
    ("1.0.64.100.in-addr.arpa", "PTR", ["NXDOMAIN"]),
    (".".join(["1", *["0"] * 31, "ip6", "arpa"]), "PTR", ["NODATA"]),
    ("1.d.f.ip6.arpa", "PTR", ["NXDOMAIN"]),
]


@pytest.mark.parametrize(("name", "qtype", "expected"), RULES, ids=lambda v: v if isinstance(v, str) else "")
def test_rules(name: str, qtype: str, expected: list[str]) -> None:
    assert answer(name, qtype, WEB) == expected


def test_any_gives_both_families() -> None:
    assert [line.split()[2] for line in answer("web.service.consul", "ANY", WEB)] == ["A", "A", "AAAA"]


SERVERS = facts(
    *(entry("consul", "", 8300, on=node(f"server-{i}", f"10.9.0.{i}")) for i in range(5)),
    entry("consul", "", 8300, on=node("down", "10.9.0.9"), status="critical"),
)


@pytest.mark.parametrize("name", ["consul", "nope.service.consul", "a.b.c.consul"])
def test_the_zone_has_the_consul_servers_as_its_name_servers(name: str) -> None:
    ns = reply(name, "NS", SERVERS)
    assert len(lines(ns.answer)) == len(lines(ns.additional)) == 3  # Consul: at most three
    assert all(line.startswith("consul. 0 NS server-") for line in lines(ns.answer))
    soa = reply(name, "SOA", SERVERS)
    assert [line.split()[2] for line in lines(soa.answer)] == ["SOA"]
    assert len(lines(soa.authority)) == len(lines(soa.additional)) == 3


def test_without_servers_the_zone_has_an_soa_and_no_ns() -> None:
    assert answer("consul", "NS", WEB) == ["NODATA"]
    assert not reply("consul", "SOA", WEB).authority


def test_questions_for_the_apex_of_random_names_are_not_kept_for_long() -> None:
    for qtype in ("NS", "SOA"):
        found = resolve(query("random.consul", qtype), SERVERS, SETTINGS, SERIAL)
        assert isinstance(found, Found)
        assert not found.lasting


def test_a_chain_is_not_told_for_longer_than_its_links_live() -> None:
    """Consul gives the service's TTL to all of it."""
    settings = ZoneSettings(service_ttl={"ext": 100})
    assert [line.split()[1] for line in answer("ext.service.consul", "A", WEB, settings)] == [
        "100",
        "60",
        "60",
    ]


def test_srv_brings_what_a_host_name_resolves_to() -> None:
    message = reply("ext.service.consul", "SRV", WEB)
    assert [line.split()[2] for line in lines(message.additional)] == ["A", "CNAME"]
    rich = facts(entry("ext", "www.example.test", on=node(meta={"rack": "r1"}))) | WEB
    rich[ServiceQuery(ServiceName("ext"))] = Fact(
        (entry("ext", "www.example.test", on=node(meta={"rack": "r1"})),)
    )
    assert [line.split()[2] for line in lines(reply("ext.service.consul", "SRV", rich).additional)] == [
        "TXT",
        "A",
        "CNAME",
    ]


def test_what_a_host_name_resolves_to_is_asked_for_first() -> None:
    known = facts(entry("ext", "WWW.example.test"))
    alias = AliasQuery(name_from_text("www.example.test"), wire.AAAA)
    assert resolve(query("ext.service.consul", "AAAA"), known, SETTINGS, SERIAL) == Need(alias)


def test_addresses_of_services_are_gathered_first_and_their_absence_is_no_failure() -> None:
    known = facts(entry("web"))
    assert resolve(query("1.1.1.1.in-addr.arpa", "PTR"), known, SETTINGS, SERIAL) == Need(AddressesQuery())
    known[AddressesQuery()] = Fact(None, stale=True, why="down")
    assert resolve(query("1.1.1.1.in-addr.arpa", "PTR"), known, SETTINGS, SERIAL) is None
    known[NodesQuery()] = Fact(None, stale=True, why="down")
    assert resolve(query("1.1.1.1.in-addr.arpa", "PTR"), known, SETTINGS, SERIAL) is None


def test_zone_transfers_are_not_implemented() -> None:
    found = resolve(query("consul", "AXFR"), WEB, SETTINGS, SERIAL)
    assert isinstance(found, Found)
    assert found.rcode == wire.NOTIMP


@pytest.mark.parametrize(
    "name",
    [
        "www.example.test",
        "consul.example.test",
        ".",
        "1.1.1.1.in-addr.arpa",
        "in-addr.arpa",
        "172.in-addr.arpa",
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    assert resolve(query(name), WEB, SETTINGS, SERIAL) is None


@pytest.mark.parametrize(
    "name", ["b\\.c.service.consul", "caf\\195\\169.service.consul", "\\000.web.service.consul"]
)
def test_labels_that_no_name_can_hold_are_names_that_do_not_exist(name: str) -> None:
    known = facts(entry("c"), entry("b.c"), entry("web"))
    assert answer(name, "A", known) == ["NXDOMAIN"]


# --- SRV targets and what comes with them


def test_srv_brings_the_addresses_of_its_targets_and_the_meta_of_their_nodes() -> None:
    message = reply("api.service.consul", "SRV", WEB)
    assert lines(message.additional) == [
        "Host.3.node.dc1.consul. 0 A 10.1.0.3",
        'Host.3.node.dc1.consul. 0 TXT "hi"',
        'Host.3.node.dc1.consul. 0 TXT "rack=r1"',
    ]
    without = ZoneSettings(node_meta_txt=False)
    assert lines(reply("api.service.consul", "SRV", WEB, without).additional) == [
        "Host.3.node.dc1.consul. 0 A 10.1.0.3"
    ]


def test_an_instance_on_a_node_whose_name_dns_cannot_carry_is_found_by_address() -> None:
    known = facts(entry("web", "", 80, on=node("n" * 64, "10.1.0.9")))
    assert answer("web.service.consul", "SRV", known) == [
        "web.service.consul. 0 SRV 1 1 80 0a010009.addr.dc1.consul."
    ]


def test_equal_records_appear_once() -> None:
    known = facts(entry("web", "10.0.0.1", 1), entry("web", "10.0.0.1", 2), entry("web", "10.0.0.1", 2))
    assert answer("web.service.consul", "A", known) == ["web.service.consul. 0 A 10.0.0.1"]
    assert len(answer("web.service.consul", "SRV", known)) == 2
    # Found by comparing with Consul: an address of its own that is also the node's makes a target of its own.
    known = facts(entry("web"), entry("web"), entry("web", "10.1.0.1"), entry("web", weights=(9, 9)))
    assert len(answer("web.service.consul", "SRV", known)) == 2


def test_addresses_win_over_aliases_and_of_aliases_one_is_given() -> None:
    both = facts(entry("web", "10.0.0.1"), entry("web", "a.example.test"))
    assert answer("web.service.consul", "A", both) == ["web.service.consul. 0 A 10.0.0.1"]
    aliases = facts(
        entry("web", "a.example.test"), entry("web", "b.example.test"), entry("web", "A.example.test")
    )
    for name in "ab":
        aliases[AliasQuery(name_from_text(f"{name}.example.test"), wire.A)] = Fact(())
    found = resolve(query("web.service.consul"), aliases, SETTINGS, SERIAL)
    assert isinstance(found, Found)
    assert len(found.choices) == 2
    assert len(answer("web.service.consul", "A", aliases)) == 1


def test_an_address_that_is_neither_address_nor_name_is_no_record() -> None:
    known = facts(entry("web", "not a name.."), entry("web", "10.0.0.1"))
    assert answer("web.service.consul", "A", known) == ["web.service.consul. 0 A 10.0.0.1"]
    assert len(answer("web.service.consul", "SRV", known)) == 1


# --- which address


TAGGED = {
    "lan_ipv4": ("10.2.0.1", 81),
    "lan_ipv6": ("2001:db8::1", 82),
    "wan": ("192.0.2.1", 8080),
    "wan_ipv6": ("2001:db8:1::1", 83),
}


@pytest.mark.parametrize(
    ("qtype", "dc", "translate", "expected"),
    [
        ("A", None, False, "A 10.2.0.1"),
        ("AAAA", None, False, "AAAA 2001:db8::1"),
        ("SRV", None, False, "SRV 1 1 80 20010db8000000000000000000000001.addr.dc2.consul."),
        ("A", "dc2", False, "A 10.2.0.1"),
        ("A", "dc2", True, "A 10.2.0.1"),  # one of the family, be it a local one, is preferred to "wan"
        ("AAAA", "dc2", True, "AAAA 2001:db8:1::1"),
        ("SRV", "dc2", True, "SRV 1 1 8080 20010db8000100000000000000000001.addr.dc2.consul."),
    ],
)
def test_tagged_addresses(qtype: str, dc: str | None, translate: bool, expected: str) -> None:
    far = node("far", "10.3.0.1", dc="dc2")
    known = facts(dc="dc1") | facts(entry("web", "10.0.0.1", 80, on=far, tagged=TAGGED), dc=dc)
    settings = ZoneSettings(datacenter="dc1", translate_wan_addrs=translate)
    name = f"web.service.{dc}.consul" if dc else "web.service.consul"
    assert answer(name, qtype, known, settings) == [f"{name}. 0 {expected}"]


@pytest.mark.parametrize(
    ("tagged", "target"),
    [
        ({}, "far.node.dc2.consul."),
        ({"lan": "10.3.0.1", "wan": "10.3.0.1"}, "far.node.dc2.consul."),
        ({"wan": "192.0.2.1"}, "c0000201.addr.dc2.consul."),
        ({"wan": "192.0.2.1", "wan_ipv4": "192.0.2.2"}, "c0000202.addr.dc2.consul."),
        # The agent has translated the plain address already.
        ({"lan": "10.9.0.1", "wan": "10.3.0.1"}, "0a030001.addr.dc2.consul."),
    ],
)
def test_a_nodes_name_stands_for_its_plain_address_only(tagged: dict[str, str], target: str) -> None:
    far = node("far", "10.3.0.1", dc="dc2", tagged_addresses=tagged)
    known = facts(dc="dc1") | facts(entry("web", "", 80, on=far), dc="dc2")
    settings = ZoneSettings(datacenter="dc1", translate_wan_addrs=True)
    name = "web.service.dc2.consul"
    assert answer(name, "SRV", known, settings) == [f"{name}. 0 SRV 1 1 80 {target}"]


# --- settings


@pytest.mark.parametrize(
    ("name", "ttl"), [("web", 10), ("web-blue", 20), ("web-b", 20), ("we", 30), ("other", 30)]
)
def test_ttls_by_name_then_longest_prefix(name: str, ttl: int) -> None:
    settings = ZoneSettings(service_ttl={"web": 10, "web-*": 20, "w*": 25, "we*": 30, "*": 30})
    known = facts(entry(name, "10.0.0.1"))
    assert answer(f"{name}.service.consul", "A", known, settings) == [
        f"{name}.service.consul. {ttl} A 10.0.0.1"
    ]


def test_other_settings() -> None:
    settings = ZoneSettings(
        domain=name_from_text("sd.example"),
        alt_domain=name_from_text("alt"),
        node_ttl=7,
        soa=Soa(min_ttl=5, refresh=1, retry=2, expire=3),
        only_passing=True,
        a_record_limit=1,
    )
    assert answer("host-2.node.sd.example", "A", WEB, settings) == ["host-2.node.sd.example. 7 A 10.1.0.2"]
    assert answer("api.service.alt", "SRV", WEB, settings) == [
        "api.service.alt. 0 SRV 1 1 9000 Host.3.node.dc1.alt."
    ]
    assert answer("shaky.service.alt", "A", WEB, settings) == ["NXDOMAIN"]
    assert len(answer("web.service.alt", "A", WEB, settings)) == 1
    assert len(answer("web.service.alt", "ANY", WEB, settings)) == 1
    assert len(answer("web.service.alt", "SRV", WEB, settings)) == 3
    assert lines(reply("nope.service.alt", "A", WEB, settings).authority) == [
        f"alt. 5 SOA ns.alt. hostmaster.alt. {SERIAL} 1 2 3 5"
    ]
    assert resolve(query("web.service.consul"), WEB, settings, SERIAL) is None


# --- the service mesh, and prepared queries

PROXY = replace(
    entry("web-sidecar-proxy", "10.9.0.1", 21000),
    tagged_addresses={"consul-virtual": Address("240.0.0.1", 21000)},
)
RESULT = PreparedResult(
    (entry("web", "10.0.0.1", 1), entry("web", "10.0.0.2", 2), entry("web", "10.0.0.3", 3)),
    ServiceName("Web"),
)
MESH = facts(entry("web", "10.0.0.1"), entry("sick", "10.0.0.9", status="critical")) | {
    ConnectQuery(ServiceName("web")): Fact((PROXY, replace(PROXY, node=node("host-2", "10.1.0.2")))),
    ConnectQuery(ServiceName("lonely")): Fact((entry("lonely-proxy", "10.9.0.3", 21003),)),
    ConnectQuery(ServiceName("sick")): Fact((replace(PROXY, checks=entry(status="critical").checks),)),
    ConnectQuery(ServiceName("none")): Fact(()),
    ConnectQuery(ServiceName("_tcp")): Fact(()),
    ConnectQuery(ServiceName("web"), "dc2"): Fact(
        (entry("p", "10.8.0.1", 2, on=node("far", "1.1.1.1", dc="dc2")),)
    ),
    IngressQuery(ServiceName("web")): Fact((entry("gateway", "", 8443),)),
    IngressQuery(ServiceName("none")): Fact(()),
    PreparedQuery("q"): Fact(RESULT),
    PreparedQuery("q.with.dots"): Fact(replace(RESULT, ttl=21.0)),
    PreparedQuery("q", "dc2"): Fact(replace(RESULT, entries=RESULT.entries[:1], dc="dc2")),
    PreparedQuery("none"): Fact(PreparedResult()),
    PreparedQuery("x.q"): Fact(PreparedResult()),
}
_123 = (1, 2, 3)
MESH_RULES = [
    ("web.connect.consul", "A", ["web.connect.consul. 7 A 10.9.0.1"]),
    ("left.of.web.connect.consul", "A", ["left.of.web.connect.consul. 7 A 10.9.0.1"]),
    ("web.connect.dc1.consul", "A", ["web.connect.dc1.consul. 7 A 10.9.0.1"]),
    ("web.connect.dc2.consul", "SRV", ["web.connect.dc2.consul. 7 SRV 1 1 2 0a080001.addr.dc2.consul."]),
    ("web.connect.consul", "AAAA", ["NODATA"]),
    ("web.connect.consul", "TXT", ["NODATA"]),
    ("lonely.connect.consul", "SRV", ["lonely.connect.consul. 3 SRV 1 1 21003 0a090003.addr.dc1.consul."]),
    ("sick.connect.consul", "A", ["NXDOMAIN"]),
    ("none.connect.consul", "A", ["NXDOMAIN"]),
    ("_web._tcp.connect.consul", "SRV", ["NXDOMAIN"]),
    ("web.ingress.consul", "A", ["web.ingress.consul. 7 A 10.1.0.1"]),
    ("x.web.ingress.dc1.consul", "SRV", ["x.web.ingress.dc1.consul. 7 SRV 1 1 8443 host-1.node.dc1.consul."]),
    ("none.ingress.consul", "A", ["NXDOMAIN"]),
    ("web.virtual.consul", "A", ["web.virtual.consul. 9 A 240.0.0.1"]),
    ("x.WEB.virtual.consul", "ANY", ["x.WEB.virtual.consul. 9 A 240.0.0.1"]),
    ("web.virtual.consul", "AAAA", ["NODATA"]),
    ("web.virtual.consul", "SRV", ["NODATA"]),
    ("sick.virtual.consul", "A", ["sick.virtual.consul. 9 A 240.0.0.1"]),
    ("lonely.virtual.consul", "A", ["NXDOMAIN"]),
    ("none.virtual.consul", "A", ["NXDOMAIN"]),
    ("web.virtual.dc1.consul", "A", ["NXDOMAIN"]),
    ("web.virtual.peer.x.consul", "A", ["NXDOMAIN"]),
    ("virtual.consul", "A", ["NODATA"]),
    ("q.query.dc2.consul", "A", ["q.query.dc2.consul. 7 A 10.0.0.1"]),
    ("Q.query.consul", "SRV", [f"Q.query.consul. 7 SRV 1 1 {n} 0a00000{n}.addr.dc1.consul." for n in _123]),
    ("q.with.dots.query.consul", "A", [f"q.with.dots.query.consul. 21 A 10.0.0.{n}" for n in _123]),
    ("_q._tcp.query.consul", "A", [f"_q._tcp.query.consul. 7 A 10.0.0.{n}" for n in _123]),
    ("_q.with.dots._u.query.consul", "A", [f"_q.with.dots._u.query.consul. 21 A 10.0.0.{n}" for n in _123]),
    ("q.query.consul", "AAAA", ["NODATA"]),
    ("none.query.consul", "A", ["NXDOMAIN"]),
    ("x.q.query.consul", "A", ["NXDOMAIN"]),
]  # fmt: skip
MESH_SETTINGS = ZoneSettings(service_ttl={"web": 7.0, "*": 3.0}, node_ttl=9)


@pytest.mark.parametrize(("name", "qtype", "expected"), MESH_RULES)
def test_rules_of_the_mesh_and_of_prepared_queries(name: str, qtype: str, expected: list[str]) -> None:
    assert answer(name, qtype, MESH, MESH_SETTINGS) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("new.connect.consul", ConnectQuery(ServiceName("new"))),
        ("new.ingress.dc2.consul", IngressQuery(ServiceName("new"), "dc2")),
        ("new.virtual.consul", ConnectQuery(ServiceName("new"))),
        ("New.query.consul", PreparedQuery("new")),
    ],
)
def test_what_stands_in_no_list_is_asked_for(name: str, needed: Query) -> None:
    assert resolve(query(name), MESH, SETTINGS, SERIAL) == Need(needed)


def test_of_a_prepared_query_with_an_order_the_nearest_comes_first() -> None:
    for ordered in (True, False):
        known = {**MESH, PreparedQuery("q"): Fact(replace(RESULT, ordered=ordered))}
        found = resolve(query("q.query.consul"), known, SETTINGS, SERIAL)
        assert isinstance(found, Found)
        assert [choice.answer[0].data[-1] for choice in found.choices] == [1, 2, 3]
        assert found.ordered is ordered


def test_a_failover_to_another_data_centre_gives_its_wide_addresses() -> None:
    far = replace(entry("web", "10.0.0.1"), tagged_addresses={"wan": Address("192.0.2.1", 99)})
    settings = ZoneSettings(translate_wan_addrs=True)
    for dc, address in (("dc2", "192.0.2.1"), ("dc1", "10.0.0.1")):
        known = {**MESH, PreparedQuery("q"): Fact(PreparedResult((far,), ServiceName("web"), dc))}
        assert answer("q.query.consul", "A", known, settings) == [f"q.query.consul. 0 A {address}"]


@pytest.mark.parametrize("name", ["x.web.connect.consul", "x.web.ingress.consul", "x.web.virtual.consul"])
def test_names_that_anybody_can_make_up_are_not_kept_for_long(name: str) -> None:
    found = resolve(query(name), MESH, SETTINGS, SERIAL)
    assert isinstance(found, Found)
    assert found.choices
    assert not found.lasting


@pytest.mark.parametrize(
    "name", ["none.connect.consul", "none.ingress.consul", "none.virtual.consul", "none.query.consul"]
)
def test_stale_knowledge_denies_neither_proxies_nor_queries(name: str) -> None:
    known = {asked: replace(fact, stale=True, why="down") for asked, fact in MESH.items()}
    outcome = resolve(query(name), known, SETTINGS, SERIAL)
    assert isinstance(outcome, Unknown)
    assert outcome.why == "down"


@pytest.mark.parametrize(
    ("port", "weights"), [(99_999, (1, 1)), (-1, (1, 1)), (8001, (70_000, 1)), (8001, (-1, 1))]
)
def test_a_number_that_srv_has_no_room_for_costs_only_its_instance(
    port: int, weights: tuple[int, int]
) -> None:
    odd = entry("web", "10.0.0.2", port, weights=weights)
    known = facts(entry("web", "10.0.0.1", 8000), odd)
    found = resolve(query("web.service.consul", "SRV"), known, SETTINGS, SERIAL)
    assert isinstance(found, Found)
    told = {int.from_bytes(record.data[2:4]) for choice in found.choices for record in choice.answer}
    if port == 8001:
        assert told == {1, min(max(weights[0], 0), 65_535)}
    else:
        assert len(found.choices) == 1
        assert found.left_out == ((odd, f"its port {port} is none (0 to 65535)"),)
    assert len(answer("web.service.consul", "A", known)) == 2


# --- what is not known, and what is stale


def test_a_name_is_asked_for_only_when_the_list_of_names_has_it() -> None:
    assert resolve(query("web.service.consul"), {}, SETTINGS, SERIAL) == Need(NamesQuery())
    listed = {NamesQuery(): Fact(frozenset({"web"}))}
    asked = ServiceQuery(ServiceName("web"))
    assert resolve(query("v1.WEB.service.consul"), listed, SETTINGS, SERIAL) == Need(asked)
    found = resolve(query("nope.service.consul"), listed, SETTINGS, SERIAL)
    assert isinstance(found, Found)
    assert (found.rcode, found.uses) == (wire.NXDOMAIN, (NamesQuery(),))
    assert resolve(query("host-1.node.consul"), {}, SETTINGS, SERIAL) == Need(NodesQuery())
    assert resolve(query("web.service.dc9.consul"), WEB, SETTINGS, SERIAL) == Need(NamesQuery("dc9"))


def test_what_is_followed_counts_more_than_the_list_of_names() -> None:
    """The two are watched separately: of a new service either may be heard of first."""
    known = WEB | {NamesQuery(): Fact(frozenset())}
    assert answer("api.service.consul", "A", known) == ["api.service.consul. 0 A 10.1.0.3"]


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        ("nope.service.consul", "A"),  # not in the last list of names
        ("sick.service.consul", "A"),  # all instances were failing
        ("v9.web.service.consul", "A"),  # nobody had that tag
        ("nope.node.consul", "A"),
        ("9.9.9.10.in-addr.arpa", "PTR"),  # nobody had that address
    ],
)
def test_stale_knowledge_denies_nothing(name: str, qtype: str) -> None:
    stale = facts(entry("web", "10.0.0.1"), entry("sick", status="critical"), stale="down")
    stale[AddressesQuery()] = Fact({})
    outcome = resolve(query(name, qtype), stale, SETTINGS, SERIAL)
    assert isinstance(outcome, Unknown)
    assert outcome.why == "down"


def test_stale_knowledge_confirms() -> None:
    stale = facts(entry("web", "10.0.0.1"), stale="down")
    for qtype, count in (("A", 1), ("AAAA", 0)):
        found = resolve(query("web.service.consul", qtype), stale, SETTINGS, SERIAL)
        assert isinstance(found, Found)
        assert (found.rcode, len(found.choices), found.stale) == (0, count, "down")


@pytest.mark.parametrize(
    "name", ["web.service.consul", "host-1.node.consul", "east.consul", "9.9.9.10.in-addr.arpa"]
)
def test_nothing_known_is_a_temporary_failure(name: str) -> None:
    never = Fact(None, stale=True, why="refused")
    known = dict.fromkeys((NamesQuery(), NodesQuery(), ServiceQuery(ServiceName("web"))), never)
    outcome = resolve(query(name), known, SETTINGS, SERIAL)
    assert isinstance(outcome, Unknown)
    assert outcome.why == "refused"


def test_who_asks_for_a_private_address_waits_for_what_is_not_known_yet() -> None:
    reverse = query("9.9.9.10.in-addr.arpa", "PTR")
    assert resolve(reverse, {}, SETTINGS, SERIAL) == Need(NodesQuery())
    nodes = {NodesQuery(): WEB[NodesQuery()]}
    assert resolve(reverse, nodes, SETTINGS, SERIAL) == Need(AddressesQuery())
    assert resolve(query("dc1.consul"), {}, SETTINGS, SERIAL) == Need(NodesQuery())


@pytest.mark.parametrize("name", ["9.9.9.10.in-addr.arpa", "8.9.168.192.in-addr.arpa", "east.consul"])
def test_a_denial_is_made_anew_when_the_nodes_change(name: str) -> None:
    found = resolve(query(name, "PTR"), WEB, SETTINGS, SERIAL)
    assert isinstance(found, Found)
    assert (found.rcode, NodesQuery() in found.uses) == (wire.NXDOMAIN, True)


def test_that_a_private_address_has_no_name_is_kept_as_long_as_other_denials() -> None:
    for name, minimum in (("9.9.9.10.in-addr.arpa", 7), ("x.9.9.10.in-addr.arpa", 10_800)):
        (soa,) = reply(name, "PTR", WEB, replace(SETTINGS, soa=Soa(min_ttl=7))).authority
        assert (soa.ttl, soa[0].minimum) == (minimum, minimum)


def test_of_two_domains_the_longer_one_is_matched_first() -> None:
    settings = replace(SETTINGS, domain=name_from_text("example.com"))
    settings = replace(settings, alt_domain=name_from_text("consul.example.com"))
    for domain in ("example.com", "consul.example.com"):
        assert answer(f"api.service.{domain}", "A", WEB, settings) == [f"api.service.{domain}. 0 A 10.1.0.3"]


# --- properties

texts = st.text("abAB12._-", min_size=1, max_size=12)
asked_names = st.lists(
    st.one_of(
        texts,
        st.sampled_from(
            ["service", "node", "addr", "_tcp", "dc1", "web", "v1", "query", "virtual", "ingress"]
        ),
    ),
    max_size=5,
).map(lambda parts: ".".join([*parts, "consul"]))


@given(asked_names, st.sampled_from(["A", "AAAA", "SRV", "ANY", "TXT", "NS", "SOA", "PTR", "CNAME"]))
def test_no_name_raises_and_every_negative_answer_has_its_soa(name: str, qtype: str) -> None:
    try:
        labels = name_from_text(name)
    except wire.Malformed:
        return
    question = wire.name_to_wire(Name(labels)) + wire.type_from_text(qtype).to_bytes(2) + b"\0\1"
    asked = wire.Query(1, 0, question, labels, wire.type_from_text(qtype), 1, None, True)
    outcome = resolve(asked, WEB, SETTINGS, SERIAL)
    match outcome:
        case Found(choices=(), rcode=rcode, authority=authority):
            assert rcode in (wire.NOERROR, wire.NXDOMAIN)
            assert [record.type for record in authority] == [wire.SOA]
        case Found(choices=choices):
            assert all(choice.answer for choice in choices)
        case Need(NamesQuery(dc) | NodesQuery(dc)):
            assert dc is not None
        case Need(ConnectQuery() | IngressQuery() | PreparedQuery()):
            pass
        case _:
            raise AssertionError(outcome)


@given(asked_names, st.sampled_from(["A", "AAAA", "SRV"]))
def test_case_changes_no_answer(name: str, qtype: str) -> None:
    try:
        name_from_text(name)
    except wire.Malformed:
        return

    def without_owner(text: str) -> object:
        outcome = resolve(query(text, qtype), WEB, SETTINGS, SERIAL)
        if not isinstance(outcome, Found):
            return outcome
        return outcome.rcode, sorted(r.data for choice in outcome.choices for r in choice.answer)

    assert without_owner(name) == without_owner(name.swapcase())
