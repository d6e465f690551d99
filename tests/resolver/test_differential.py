"""Real Consul and the resolver, asked the same thousands of questions.

What may differ is listed in tests/resolver/differential.py and, with reasons, in docs/dns.md.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from discovery.backends import open_backend
from discovery.config import Config
from resolver.config import Endpoint, Settings, apply_agent_config
from resolver.forward import Upstream as Forwarded
from resolver.server import Resolver
from tests.resolver.differential import DIFFERENCES, Question, Server, Translated, disagreements
from tests.resolver.upstream import Upstream, reply
from tests.tools import ConsulAgent, free_port, wait_until

SETTLE = 15.0  # s until a change must show in both; the resolver needs milliseconds, a busy machine more
TYPES = ["A", "AAAA", "SRV", "ANY", "TXT", "NS", "SOA", "CNAME", "MX", "PTR", "HTTPS", "TYPE65280"]
VARIANTS: list[tuple[int | None, bool]] = [(None, False), (4096, False), (None, True)]


class Catalogue:
    """Writes nodes and prepared queries of its own into Consul, and takes them out again."""

    def __init__(self, agent: ConsulAgent) -> None:
        self.agent = agent
        self.nodes: set[str] = set()
        self.queries: list[str] = []

    def add(
        self,
        name: str,
        address: str,
        services: Sequence[dict[str, Any]] = (),
        checks: Sequence[dict[str, Any]] = (),
        meta: dict[str, str] | None = None,
        tagged: dict[str, str] | None = None,
    ) -> None:
        self.nodes.add(name)
        node = {"Node": name, "Address": address, "NodeMeta": meta or {}, "TaggedAddresses": tagged or {}}
        self.agent.request("PUT", "/v1/catalog/register", node)
        for service in services:
            self.agent.request("PUT", "/v1/catalog/register", {**node, "Service": service})
        if checks:
            body = {**node, "Checks": [{"Node": name, **check} for check in checks]}
            self.agent.request("PUT", "/v1/catalog/register", body)

    def prepare(
        self, name: str, service: str, ttl: str = "", *, template: bool = False, **rules: Any
    ) -> None:
        """Add a prepared query; for a template *name* is the prefix that names have to match."""
        body = {"Name": name, "Service": {"Service": service, **rules}, "DNS": {"TTL": ttl}}
        if template:
            body["Template"] = {"Type": "name_prefix_match"}
        self.queries.append(self.agent.request("POST", "/v1/query", body)["ID"])

    def clear(self) -> None:
        for name in self.nodes:
            self.agent.request("PUT", "/v1/catalog/deregister", {"Node": name})
        self.nodes.clear()
        for query in self.queries:
            self.agent.request("DELETE", f"/v1/query/{query}")
        self.queries.clear()


def proxy(destination: str, ident: str, port: int = 0, address: str = "", **fields: Any) -> dict[str, Any]:
    """A sidecar proxy: how *destination* is reached in the service mesh."""
    to = {"DestinationServiceName": destination}
    name = f"{destination}-sidecar-proxy"
    return service(name, ident, port, address, Kind="connect-proxy", Proxy=to, **fields)


def service(name: str, ident: str, port: int = 80, address: str = "", **fields: Any) -> dict[str, Any]:
    return {"Service": name, "ID": ident, "Port": port, "Address": address, **fields}


@pytest.fixture(scope="module")
def consul(consul_executable: str) -> Iterator[ConsulAgent]:
    """An agent of this module's own: the shared one is for those who register with the agent."""
    with ConsulAgent(binary=consul_executable) as agent:
        yield agent


@pytest.fixture(scope="module")
def pair(consul: ConsulAgent) -> Iterator[tuple[Server, Server]]:
    """(the resolver, Consul's own DNS), answering for the same catalogue."""
    backend = open_backend(consul.uri, Config())
    where = Settings(listen=(Endpoint("127.0.0.1", 0),), upstreams=())
    with Resolver(where, backend) as resolver:
        ours = Server((resolver.addresses[0].host, resolver.addresses[0].port))
        yield ours, Server(("127.0.0.1", consul.dns_port))
    backend.close()


@pytest.fixture
def catalogue(consul: ConsulAgent) -> Iterator[Catalogue]:
    made = Catalogue(consul)
    yield made
    made.clear()


def agree(questions: Sequence[Question], pair: tuple[Server, Server]) -> None:
    wrong = disagreements(questions, *pair, settle=SETTLE)
    told = "\n".join(f"  {q}\n      {why}" for q, why in itertools.islice(wrong.items(), 20))
    assert not wrong, f"{len(wrong)} of {len(questions)} answers differ from Consul's:\n{told}"


# --- a catalogue with everything in it, and every form of question


def fill(catalogue: Catalogue) -> None:
    six = {
        "lan_ipv6": {"Address": "2001:db8::55", "Port": 56},
        "lan_ipv4": {"Address": "10.5.5.5", "Port": 55},
    }
    catalogue.add(
        "n1",
        "10.1.0.1",
        [
            service("web", "w1", 80, "10.0.0.1", Tags=["v1", "Master", "a.b"]),
            service("web", "w2", 81, Tags=["v2", "udp"]),
            service("Cap", "c1", 1, "10.0.0.5"),
            service("noport", "np", 0),
            service("ext", "e1", 443, "www.example.test"),
            service("extdot", "e2", 443, "www.example.test."),
            service("self", "s1", 443, "self.service.consul"),
            service("tagged", "t1", 5, "10.0.0.6", TaggedAddresses=six),
            service("taggedonly", "t2", 5, TaggedAddresses={"lan_ipv4": six["lan_ipv4"]}),
            service("weights", "wt", 5, "10.0.0.9", Weights={"Passing": 7, "Warning": 3}),
            service("dup", "d1", 5, "10.0.0.10"),
            service("dup", "d2", 6, "10.0.0.10"),
            service("dup", "d3", 6, "10.0.0.10"),
            service("node", "nd", 5, "10.0.0.11"),
            service("_tcp", "tc", 5, "10.0.0.12"),
            service("service", "sv", 5, "10.0.0.13"),
            service("us_er", "us", 5, "10.0.0.14"),
            service("dot.ted", "dt", 5, "10.0.0.15", Tags=["x"]),
            service("inner", "i1", 443, "n1.node.consul"),
            service("innersvc", "i2", 443, "web.service.consul"),
        ],
        [{"CheckID": "w", "Name": "w", "Status": "warning", "ServiceID": "wt"}],
        {"rack": "r1", "rfc1035-txt": "bare", "eq=x": "v"},
        {"lan": "10.1.0.1", "wan": "192.0.2.1"},
    )
    catalogue.add(
        "n2",
        "2001:db8::2",
        [
            service("web", "w1", 80, Tags=["v6"]),
            service("web", "w4", 84, "2001:db8::44"),
            service("sick", "k", 1),
            service("mixed", "m", 1, "10.0.0.20"),
        ],
        [{"CheckID": "k", "Name": "k", "Status": "critical", "ServiceID": "k"}],
    )
    catalogue.add(
        "N3.Dotted", "10.1.0.3", [service("web", "w5", 85, "10.0.0.3", Tags=["V2"]), service("dotnode", "dn")]
    )
    catalogue.add("n_4", "host4.example.test", [service("hostnode", "h", 9), service("mixed", "m2", 2)])
    catalogue.add(
        "maint",
        "10.1.0.5",
        [service("inmaint", "im", 9, "10.0.0.30"), service("mixed", "m3", 3, "10.0.0.31")],
        [{"CheckID": "_node_maintenance", "Name": "m", "Status": "critical"}],
    )
    for i in range(12):
        catalogue.add(
            f"b{i}", f"10.2.0.{i}", [service("big", "b", i, Tags=["all", *(["odd"] if i % 2 else [])])]
        )
    for i in range(60):
        catalogue.add(f"h{i}", f"10.3.0.{i}", [service("huge", f"b{j}", 100 * j + i) for j in range(2)])
    catalogue.add(
        "mesh",
        "10.1.0.11",
        [
            proxy("web", "p1", 21000),
            proxy("Web", "p2", 21001, "10.9.0.1", Tags=["v1"]),
            proxy("web", "p3", 21002, "10.9.0.2"),
            proxy("lonely", "p4", 21003, "2001:db8::99"),
            proxy("sick", "p5", 21004, "10.9.0.5"),
            service("native", "n1", 90, Connect={"Native": True}),
            service("gate", "g1", 8443, Kind="ingress-gateway"),
            service("gate", "g2", 8443, "10.9.0.6", Kind="ingress-gateway"),
        ],
        [
            {"CheckID": "p3", "Name": "p3", "Status": "critical", "ServiceID": "p3"},
            {"CheckID": "p5", "Name": "p5", "Status": "critical", "ServiceID": "p5"},
        ],
    )
    # Written once, and left: the agent is this module's own, and nobody else asks for gateways.
    http = {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}
    catalogue.agent.request("PUT", "/v1/config", http)
    listener = {"Port": 8080, "Protocol": "http", "Services": [{"Name": "web"}, {"Name": "behind"}]}
    gateway = {"Kind": "ingress-gateway", "Name": "gate", "Listeners": [listener]}
    catalogue.agent.request("PUT", "/v1/config", gateway)
    catalogue.prepare("Plain", "web", "21s")
    catalogue.prepare("with.dots", "web", Near="_agent")
    catalogue.prepare("tagged", "web", Tags=["v1"], OnlyPassing=True)
    catalogue.prepare("through", "web", Connect=True)
    catalogue.prepare("many", "huge")
    catalogue.prepare("aliased", "ext")
    catalogue.prepare("weighed", "weights", OnlyPassing=True)
    catalogue.prepare("ill", "sick")
    catalogue.prepare("to-", "${name.suffix}", template=True)
    catalogue.add("twofold", "10.1.0.12", [service("twofold", "tf", 9)], tagged={"lan_ipv6": "2001:db8::12"})
    catalogue.add("onlynode", "10.1.0.9")
    catalogue.add("v6node", "2001:db8::9")


NAMES = [
    "web.service", "v1.web.service", "V1.web.service", "master.web.service", "a.b.web.service",
    "v9.web.service", "v2.web.service", "_web._tcp.service", "_web._udp.service", "_web._v1.service",
    "_web._v1", "_web._tcp", "_WEB._TCP", "_web._tcp.dc1", "_web._tcp.service.dc1", "web.service.dc1",
    "WEB.service.DC1", "web.service.dc9", "web.service.dc1.dc", "v2.web.service.dc1.dc",
    "web.service.dc1.x", "web.service.x.dc1.dc", "cap.service", "Cap.service", "noport.service",
    "ext.service", "extdot.service", "self.service", "tagged.service", "taggedonly.service",
    "weights.service", "dup.service", "node.service", "_tcp.service", "service.service", "us_er.service",
    "dot.ted.service", "x.dot.ted.service", "inner.service", "innersvc.service", "sick.service",
    "mixed.service", "inmaint.service", "dotnode.service", "hostnode.service", "big.service",
    "odd.big.service", "huge.service", "nope.service", "a.nope.service", "n1.node", "N1.NODE",
    "n1.node.dc1", "n1.node.dc9", "n2.node", "n3.dotted.node", "N3.Dotted.node.dc1", "n_4.node",
    "onlynode.node", "v6node.node", "maint.node", "nope.node", "web.service.node", "x.n1.node",
    "0a000001.addr", "0a000001.addr.dc1", "0A000001.addr.foo", "0a000001.addr.foo.bar", "0a0000.addr",
    "0a00000g.addr", "x.0a000001.addr", "20010db8000000000000000000000044.addr",
    "20010DB8000000000000000000000044.addr.dc1", "0a000001zz.addr", "service", "node", "addr", "query",
    "connect", "ingress", "dc1", "service.dc1", "node.dc1", "dc1.service", "web", "web.connect",
    "web.ingress", "web.query", "x.web.connect", "ns", "ns.service", "consul.service",
    "_consul._tcp.service", "a.b.c.d", "twofold.service", "twofold.node",
    "Web.connect.dc1", "web.connect.dc1.dc", "web.connect.dc9", "_web._tcp.connect", "lonely.connect",
    "sick.connect", "native.connect", "web-sidecar-proxy.connect", "nope.connect",
    "web-sidecar-proxy.service", "x.web.ingress", "web.ingress.dc1", "behind.ingress", "native.ingress",
    "nope.ingress", "gate.service",
    "web.virtual", "WEB.virtual", "x.web.virtual", "native.virtual", "sick.virtual", "nope.virtual",
    "web.virtual.dc1", "web.virtual.peer", "virtual",
    "plain.query", "PLAIN.query.dc1", "plain.query.dc1.dc", "plain.query.dc9", "with.dots.query",
    "x.plain.query", "tagged.query", "through.query", "many.query", "aliased.query", "weighed.query",
    "ill.query", "nope.query", "to-web.query", "to-cap.query", "to-dup.query", "to-nope.query",
    "to-.query", "_plain._tcp.query",
    "_with.dots._udp.query.dc1", "_plain._tcp",
]  # fmt: skip


def test_every_form_of_name_and_type(pair: tuple[Server, Server], catalogue: Catalogue) -> None:
    fill(catalogue)
    names = [*(f"{name}.consul." for name in NAMES), "consul.", "CONSUL.", "wEb.SerVice.coNsul."]
    questions = [
        Question(name, qtype, edns, tcp) for name in names for qtype in TYPES for edns, tcp in VARIANTS
    ]
    assert len(questions) > 3000
    agree(questions, pair)


def test_every_size_that_a_client_may_take(pair: tuple[Server, Server], catalogue: Catalogue) -> None:
    fill(catalogue)
    names = ["big.service.consul.", "huge.service.consul.", "web.service.consul."]
    sizes = [None, 0, 511, 512, 513, 800, 1232, 1400, 2048, 4096]
    agree([Question(n, t, s) for n in names for t in ("A", "SRV", "ANY") for s in sizes], pair)


def test_names_of_addresses(pair: tuple[Server, Server], catalogue: Catalogue) -> None:
    fill(catalogue)
    names = [
        "1.0.1.10.in-addr.arpa.",  # a node
        "1.0.0.10.in-addr.arpa.",  # a service
        "5.0.0.10.in-addr.arpa.",  # registered with a capital
        "9.9.9.10.in-addr.arpa.",  # nobody
        "1.2.3.4.in-addr.arpa.",  # nobody, and public
        ipaddress.ip_address("2001:db8::2").reverse_pointer + ".",
        ipaddress.ip_address("2001:db8::44").reverse_pointer + ".",
        ipaddress.ip_address("2001:db8::777").reverse_pointer + ".",
    ]
    agree([Question(name, qtype) for name in names for qtype in ("PTR", "ANY", "A", "SRV")], pair)


def test_names_outside_the_zone(pair: tuple[Server, Server]) -> None:
    agree(
        [Question(name, qtype) for name in ("www.example.test.", "com.", ".") for qtype in ("A", "NS")], pair
    )


# --- packets

QUESTION = b"\3web\7service\6consul\0\0\1\0\1"
RD, AD, CD, Z, QUERY, STATUS, UPDATE = 0x0100, 0x0020, 0x0010, 0x0040, 0 << 11, 2 << 11, 5 << 11
PACKETS = {
    "plain": (QUERY, 1, QUESTION),
    "recursion desired": (QUERY | RD, 1, QUESTION),
    "every bit that a query may have": (QUERY | RD | AD | CD | Z, 1, QUESTION),
    "status": (STATUS, 1, QUESTION),
    "update": (UPDATE | RD, 1, QUESTION),
    "no question": (QUERY, 0, b""),
    "two questions": (QUERY, 2, QUESTION + QUESTION),
    "a transfer": (QUERY, 1, b"\6consul\0\0\xfc\0\1"),
    "a question that ends early": (QUERY, 1, QUESTION[:-3]),
    "a label of 64 octets": (QUERY, 1, b"\x40" + b"a" * 64 + b"\0\0\1\0\1"),
    "a pointer to itself": (QUERY, 1, b"\xc0\x0c\0\1\0\1"),
    "a name of 260 octets": (QUERY, 1, (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1"),
}


@pytest.mark.parametrize(("flags", "count", "question"), PACKETS.values(), ids=PACKETS)
def test_odd_packets_get_the_same_header(
    pair: tuple[Server, Server], flags: int, count: int, question: bytes
) -> None:
    """Packets that both leave without a reply are in the tests of the RFCs."""
    packet = b"\x12\x34" + flags.to_bytes(2) + count.to_bytes(2) + bytes(6) + question

    def header(server: Server) -> tuple[bytes, int]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(server.where)
            sock.settimeout(5.0)
            sock.send(packet)
            raw = sock.recv(4096)
        # Without RA (``recursion-available``).
        return raw[:2], int.from_bytes(raw[2:4]) & ~0x0080

    ours, consul = pair
    assert header(ours) == header(consul)


# --- settings

CONFIGURATIONS = {
    "times": {
        "node_ttl": "30s",
        "service_ttl": {"*": "5s", "web": "10s", "d*": "7s", "du*": "8s"},
        "soa": {"refresh": 11, "retry": 12, "expire": 13, "min_ttl": 14},
    },
    "filters": {"only_passing": True, "a_record_limit": 1, "enable_additional_node_meta_txt": False},
    "limits": {"udp_answer_limit": 5, "enable_truncate": True, "disable_compression": True},
}


@pytest.mark.parametrize("dns_config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_consuls_settings_mean_the_same(
    start_consul: Callable[..., ConsulAgent], dns_config: dict[str, Any]
) -> None:
    raw = {"dns_config": dns_config}
    with ExitStack() as stack:
        agent = start_consul(config=raw)
        fill(Catalogue(agent))
        backend = open_backend(agent.uri, Config())
        stack.callback(backend.close)
        here = Settings(listen=(Endpoint("127.0.0.1", 0),), upstreams=())
        configured, warnings = apply_agent_config(here, raw, origin="the test")
        assert warnings == []
        (address,) = stack.enter_context(Resolver(configured, backend)).addresses
        names = ["web", "v1.web", "dup", "dotnode", "weights", "sick", "mixed", "big", "taggedonly", "nope"]
        asked = [
            Question(f"{name}.service.consul.", qtype, edns, tcp)
            for name in names
            for qtype in ("A", "AAAA", "SRV")
            for edns, tcp in VARIANTS
        ]
        asked += [
            Question(f"{name}.consul.", qtype, edns, tcp)
            for name in (
                "web.connect",
                "web.ingress",
                "native.connect",
                "plain.query",
                "to-dup.query",
                "many.query",
            )
            for qtype in ("A", "SRV")
            for edns, tcp in VARIANTS
        ]
        names = ["n1.node", "nope.node", "0a000001.addr", "web.virtual"]
        asked += [Question(f"{name}.consul.", "A") for name in names]
        agree(asked, (Server((address.host, address.port)), Server(("127.0.0.1", agent.dns_port))))


def test_the_alternative_domain_gives_the_same_answers(start_consul: Callable[..., ConsulAgent]) -> None:
    """But for ``targets-in-the-domain-asked``, which translating does not see."""
    raw = {"alt_domain": "sd.example."}
    names = ["web", "v1.web", "dotnode", "nope", "sick", "innersvc", "big"]
    asked = [
        Question(f"{name}.service.consul.", qtype, edns, tcp)
        for name in names
        for qtype in ("A", "AAAA", "SRV", "ANY", "MX", "SOA", "NS")
        for edns, tcp in VARIANTS
    ]
    others = ["n1.node", "0a000001.addr", "web.connect", "web.ingress", "plain.query", "nope.query"]
    asked += [Question(f"{name}.consul.", qtype) for name in others for qtype in ("A", "SRV", "AAAA")]
    with ExitStack() as stack:
        agent = start_consul(config=raw)
        fill(Catalogue(agent))
        backend = open_backend(agent.uri, Config())
        stack.callback(backend.close)
        here = Settings(listen=(Endpoint("127.0.0.1", 0),), upstreams=())
        configured, warnings = apply_agent_config(here, raw, origin="the test")
        assert warnings == []
        (address,) = stack.enter_context(Resolver(configured, backend)).addresses
        ours = Translated((address.host, address.port), "sd.example.")
        agree(asked, (ours, Server(("127.0.0.1", agent.dns_port))))


def test_another_data_centre_is_answered_for_with_its_wide_addresses(
    start_consul: Callable[..., ConsulAgent],
) -> None:
    raw = {"translate_wan_addrs": True}
    far_wan = free_port()
    wide = {"wan": {"Address": "192.0.2.80", "Port": 8080}, "lan_ipv4": {"Address": "10.8.0.9", "Port": 9}}
    both = {
        "wan_ipv4": {"Address": "192.0.2.81", "Port": 81},
        "wan_ipv6": {"Address": "2001:db8::81", "Port": 81},
    }
    with ExitStack() as stack:
        far = start_consul(config={"datacenter": "dc2", "ports": {"serf_wan": far_wan}})
        near = start_consul(
            config={**raw, "ports": {"serf_wan": free_port()}, "retry_join_wan": [f"127.0.0.1:{far_wan}"]}
        )
        wait_until(lambda: len(near.request("GET", "/v1/catalog/datacenters")) == 2, 30.0)
        there, here = Catalogue(far), Catalogue(near)
        there.add(
            "f1",
            "10.8.0.1",
            [
                service("web", "w1", 80, "10.8.0.2", Tags=["v1"]),
                service("web", "w2", 80, "10.8.0.3", TaggedAddresses=wide),
                service("both", "b1", 80, "10.8.0.4", TaggedAddresses=both),
                service("bare", "b2", 80),
                proxy("web", "p1", 21000, "10.8.0.5"),
            ],
            meta={"rack": "r2"},
            tagged={"lan": "10.8.0.1", "lan_ipv4": "10.8.0.1", "wan": "192.0.2.1", "wan_ipv4": "192.0.2.2"},
        )
        there.prepare("plain", "web", "21s")
        here.add("n1", "10.1.0.1", [service("web", "w1", 80, "10.0.0.1", TaggedAddresses=wide)])
        here.prepare("over", "bare", Failover={"Datacenters": ["dc2"]})
        wait_until(lambda: near.request("GET", "/v1/health/service/bare?dc=dc2"), 30.0)
        names = [
            "web.service", "web.service.dc2", "WEB.service.DC2", "v1.web.service.dc2", "web.service.dc2.dc",
            "_web._tcp.service.dc2", "_web._v1.dc2", "both.service.dc2", "bare.service.dc2",
            "nope.service.dc2", "f1.node.dc2", "n1.node.dc2", "web.connect.dc2", "web.ingress.dc2",
            "plain.query.dc2", "plain.query", "over.query", "over.query.dc2", "0a080001.addr.dc2",
            "web.service.dc3",
        ]  # fmt: skip
        asked = [
            Question(f"{name}.consul.", qtype, edns, tcp)
            for name in names
            for qtype in ("A", "AAAA", "SRV", "ANY", "TXT")
            for edns, tcp in VARIANTS
        ]
        backend = open_backend(near.uri, Config())
        stack.callback(backend.close)
        configured, _ = apply_agent_config(
            Settings(listen=(Endpoint("127.0.0.1", 0),), upstreams=()), raw, origin="the test"
        )
        (address,) = stack.enter_context(Resolver(configured, backend)).addresses
        agree(asked, (Server((address.host, address.port)), Server(("127.0.0.1", near.dns_port))))


def test_host_names_as_addresses(start_consul: Callable[..., ConsulAgent]) -> None:
    """The chain of an alias comes from the recursor; asked with A, which is what Consul always asks."""
    chain = ["www.example.test. 60 IN CNAME w.example.test.", "w.example.test. 60 IN A 192.0.2.1"]

    def handler(request: dns.message.Message, transport: str) -> dns.message.Message:
        return reply(request, *(chain if request.question[0].rdtype == dns.rdatatype.A else chain[:1]))

    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream(handler))
        agent = start_consul(config={"recursors": [f"127.0.0.1:{upstream.port}"]})
        catalogue = Catalogue(agent)
        catalogue.add("n1", "10.1.0.1", [service("ext", "e1", 443, "www.example.test")], meta={"k": "v"})
        catalogue.prepare("aliased", "ext")
        backend = open_backend(agent.uri, Config())
        stack.callback(backend.close)
        here = Settings(
            listen=(Endpoint("127.0.0.1", 0),), upstreams=(Forwarded("127.0.0.1", upstream.port),)
        )
        (address,) = stack.enter_context(Resolver(here, backend)).addresses
        ours, consul = Server((address.host, address.port)), Server(("127.0.0.1", agent.dns_port))
        for question in (
            Question("ext.service.consul.", "A", 4096),
            Question("ext.service.consul.", "SRV", 4096),
            Question("aliased.query.consul.", "A", 4096),
        ):

            def equal(question: Question = question) -> bool:
                ours.forget()
                mine, theirs = ours.ask(question), consul.ask(question)
                return (mine.rcode, mine.answer, mine.additional) == (
                    theirs.rcode, theirs.answer, theirs.additional
                )  # fmt: skip

            wait_until(equal, message=f"{question} is answered as by Consul")


# --- generated catalogues

node_names = st.sampled_from(["n1", "n2", "Node3", "n-4.x"])
addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "2001:db8::2"])
service_names = st.sampled_from(["web", "Web", "api", "db-1", "_odd"])
tags = st.lists(st.sampled_from(["v1", "V1", "v2", "udp", "a.b"]), max_size=3)
statuses = st.sampled_from(["passing", "passing", "warning", "critical"])
services = st.builds(
    lambda name, address, port, tag, passing, warning, mesh: service(
        name, "", port + bool(mesh), address,
        Tags=tag, Weights={"Passing": passing, "Warning": warning}, **mesh,
    ),
    service_names, st.one_of(st.just(""), addresses), st.integers(0, 3), tags,
    st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([
        {}, {}, {"Connect": {"Native": True}},
        {"Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "web"}},
    ]),
)  # fmt: skip
nodes = st.dictionaries(
    node_names,
    st.tuples(addresses, st.lists(st.tuples(services, statuses), max_size=4), statuses, st.booleans()),
    min_size=1,
)
names = st.one_of(
    st.builds(
        lambda left, name, right: ".".join([*left, name, "service", *right, "consul."]),
        st.lists(st.sampled_from(["v1", "V2", "a", "b", "_tcp", "udp"]), max_size=2),
        st.sampled_from(["web", "WEB", "api", "db-1", "_odd", "nope"]),
        st.sampled_from([[], ["dc1"], ["DC1", "dc"], ["dc9"]]),
    ),
    st.builds(lambda name, tag: f"_{name}._{tag}.service.consul.", st.sampled_from(["web", "api", "odd"]),
              st.sampled_from(["tcp", "udp", "v1", "V2"])),
    st.builds(lambda name, right: f"{name}.node{right}.consul.",
              st.sampled_from(["n1", "NODE3", "n-4.x", "nope"]), st.sampled_from(["", ".dc1"])),
    # Not virtual: a service keeps its virtual address after its proxies (``virtual-addresses-of-proxies``).
    st.builds(lambda name, kind, right: f"{name}.{kind}{right}.consul.",
              st.sampled_from(["web", "Api", "db-1", "_odd", "x.web", "nope"]),
              st.sampled_from(["connect", "ingress"]), st.sampled_from(["", ".dc1", ".dc9"])),
    st.builds(lambda name, right: f"to-{name}.query{right}.consul.",
              st.sampled_from(["web", "API", "db-1", "_odd", "nope"]), st.sampled_from(["", ".DC1", ".dc9"])),
)  # fmt: skip
questions = st.builds(
    lambda name, qtype, variant: Question(name, qtype, *variant),
    names,
    st.sampled_from(["A", "AAAA", "SRV", "ANY", "TXT", "MX"]),
    st.sampled_from(VARIANTS),
)


@settings(
    max_examples=25,
    deadline=None,
    # Without shrinking: an example that fails takes seconds, and its questions are few as they are.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(nodes, st.lists(questions, min_size=20, max_size=60))
def test_generated_catalogues(
    pair: tuple[Server, Server], catalogue: Catalogue, wanted: dict[str, Any], asked: list[Question]
) -> None:
    if not catalogue.queries:
        catalogue.prepare("to-", "${name.suffix}", "3s", template=True)
    for name in catalogue.nodes - set(wanted):
        catalogue.agent.request("PUT", "/v1/catalog/deregister", {"Node": name})
    catalogue.nodes &= set(wanted)
    for name, (address, instances, status, ill) in wanted.items():
        catalogue.agent.request("PUT", "/v1/catalog/deregister", {"Node": name})
        # Ids of their own: newer releases take two that differ in case for one.
        named = [{**instance, "ID": f"id-{i}"} for i, (instance, _) in enumerate(instances)]
        checks = [
            {"CheckID": f"c{i}", "Name": "c", "Status": state, "ServiceID": f"id-{i}"}
            for i, (_, state) in enumerate(instances)
        ]
        if ill:
            checks.append({"CheckID": "node", "Name": "node", "Status": status})
        catalogue.add(name, address, named, checks, {"k": "v"})
    agree(asked, pair)


# --- the list of differences

IN_COMPARISON = {"alias-types", "cut-by-size", "node-records-are-counted", "letters-of-the-domain"}


def test_every_difference_is_documented() -> None:
    """Those of the list, and those that comparing itself allows for."""
    text = (Path(__file__).parents[2] / "docs" / "dns.md").read_text()
    documented = set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE))
    assert documented >= {*DIFFERENCES, *IN_COMPARISON}
