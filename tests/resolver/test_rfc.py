"""One test for each obligation that docs/dns.md names, by RFC and section, on real sockets.

What a test here sees is what a client, or an upstream, sees. How it comes about is tested beside each module.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.config import Config
from discovery.model import Check, CheckID, Registration, ServiceID, ServiceName, Weights
from resolver import wire
from resolver.config import Endpoint, Settings
from resolver.forward import Upstream
from resolver.server import Resolver
from tests.resolver.conftest import Start, addresses, ask
from tests.resolver.test_forward import RECORD, at
from tests.resolver.upstream import Handler, reply
from tests.resolver.upstream import Upstream as Server
from tests.resolver.world import packet
from tests.tools import free_port, wait_until

ALONE = Settings(upstreams=())
WEB = "web.service.consul"
SOA = "example.test. 900 IN SOA ns.example.test. host.example.test. 1 2 3 4 300"


@pytest.fixture
def many(agent: Agent) -> None:
    """Forty instances of ``web``: more than fits into 512 octets."""
    register(agent, *(f"10.0.0.{i}" for i in range(1, 41)))


@pytest.fixture
def web(agent: Agent) -> None:
    register(agent, "10.0.0.1", "10.0.0.2")


def register(agent: Agent, *hosts: str, name: str = "web", **more: object) -> None:
    backend = open_backend(agent.uri, Config())
    for number, host in enumerate(hosts):
        ident = ServiceID(f"{name}-{number}")
        backend.register(Registration(ident, ServiceName(name), port=80, address=host, **more))  # type: ignore[arg-type]
    backend.close()


def forwarding_to(*servers: Server, **settings: object) -> Settings:
    return replace(ALONE, upstreams=tuple(map(at, servers)), **settings)  # type: ignore[arg-type]


def where(resolver: Resolver) -> tuple[str, int]:
    return resolver.addresses[0].host, resolver.addresses[0].port


def exchange(resolver: Resolver, raw: bytes) -> bytes:
    """Send *raw* over UDP and return the reply as it came."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10.0)
        client.connect(where(resolver))
        client.send(raw)
        return client.recv(65535)


def errors_of(message: dns.message.Message) -> list[int]:
    return [int(o.code) for o in message.options if isinstance(o, dns.edns.EDEOption)]


@contextlib.contextmanager
def connected(resolver: Resolver) -> Iterator[socket.socket]:
    with socket.create_connection(where(resolver), timeout=10.0) as client:
        yield client


def framed(raw: bytes) -> bytes:
    return len(raw).to_bytes(2) + raw


def read_reply(client: socket.socket) -> dns.message.Message | None:
    """Read one framed reply; None: the connection was closed."""
    with contextlib.suppress(ConnectionError):
        data = b""
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
            piece = client.recv(2 - len(data) if len(data) < 2 else 2 + int.from_bytes(data[:2]) - len(data))
            if not piece:
                return None
            data += piece
        return dns.message.from_wire(data[2:])
    return None


# --- RFC 1035, 2181, 4343, 9619: messages ---------------------------------------------------------------


def test_rfc1035_4_1_1_the_id_and_the_question_come_back_as_sent(
    agent: Agent, web: None, start_resolver: Start
) -> None:
    resolver = start_resolver(agent.uri)
    for ident in (0, 1, 0xABCD, 0xFFFF):
        raw = packet("wEb.SerVice.conSul", ident=ident)
        told = exchange(resolver, raw)
        assert told[:2] == raw[:2]
        assert told[12 : len(raw)] == raw[12:]


def test_rfc1035_4_1_1_a_reply_is_never_replied_to(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10.0)
        client.connect(where(resolver))
        answer = bytearray(packet("localhost", ident=1))
        answer[2] |= 0x80
        for raw in (bytes(answer), b"", b"\0", b"\0" * 11):  # and what is shorter than a header
            client.send(raw)
        client.send(packet("localhost", ident=2))
        assert client.recv(65535)[:2] == b"\0\2", "requests are served in order: the others got nothing"


def test_rfc1035_4_1_1_other_opcodes_are_not_implemented(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    for opcode in range(1, 16):
        raw = bytearray(packet(WEB))
        raw[2] |= opcode << 3
        told = dns.message.from_wire(exchange(resolver, bytes(raw)))
        assert (told.rcode(), told.opcode()) == (dns.rcode.NOTIMP, opcode)


def test_rfc1035_4_1_1_recursion_desired_is_copied_and_available(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    for rd in (True, False):
        told = dns.message.from_wire(exchange(resolver, packet("localhost", rd=rd)))
        assert bool(told.flags & dns.flags.RD) == rd
        assert told.flags & dns.flags.RA


def test_rfc1035_4_1_4_loops_of_pointers_end(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    header = b"\0\1\1\0\0\1\0\0\0\0\0\0"
    for name in (b"\xc0\x0c", b"\3web\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\xff\xff", b"\x40"):
        told = exchange(resolver, header + name + b"\0\1\0\1")
        assert told[3] & 0xF == dns.rcode.FORMERR
    assert ask(resolver, "localhost").answer


def test_rfc1035_2_3_4_names_over_255_and_labels_over_63_octets_are_malformed(
    agent: Agent, start_resolver: Start
) -> None:
    resolver = start_resolver(agent.uri)
    header, tail = b"\0\1\1\0\0\1\0\0\0\0\0\0", b"\0\0\1\0\1"
    longest = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61
    assert exchange(resolver, header + longest + tail)[3] & 0xF == dns.rcode.REFUSED, "it is nobody's"
    for name in (b"\x3f" + b"a" * 63) * 4, b"\x40" + b"a" * 64:
        assert exchange(resolver, header + name + tail)[3] & 0xF == dns.rcode.FORMERR


def test_rfc1035_4_2_1_without_edns_a_reply_has_512_octets_at_most(
    agent: Agent, many: None, start_resolver: Start
) -> None:
    long = "www.example.test. 60 IN TXT " + " ".join(['"' + "x" * 200 + '"'] * 5)
    with Server(lambda request, _: reply(request, long)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for name, qtype in ((WEB, "SRV"), (WEB, "A"), ("www.example.test", "TXT")):
            told = exchange(resolver, packet(name, qtype))
            assert len(told) <= 512
        assert told[2] & 0x02, "TC: there is more"


def test_rfc1035_3_2_1_ttls_count_down(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request, "www.example.test. 60 IN A 192.0.2.1")) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))

        def ttl() -> int:
            return ask(resolver, "www.example.test").answer[0].ttl

        assert ttl() == 60
        wait_until(lambda: ttl() <= 58)
        assert len(server.asked) == 1


def test_rfc1464_2_node_meta_is_key_and_value(agent: Agent, start_resolver: Start) -> None:
    put = {"Node": "n9", "Address": "10.9.9.9", "NodeMeta": {"rack": "7", "rfc1035-note": "bare"}}
    catalogue_register(agent, put)
    told = ask(start_resolver(agent.uri), "n9.node.consul", "TXT")
    assert set(addresses(told)) == {'"rack=7"', '"bare"'}


def catalogue_register(agent: Agent, body: dict[str, object]) -> None:
    connection = http.client.HTTPConnection(*agent.http, timeout=10)
    connection.request("PUT", "/v1/catalog/register", json.dumps(body))
    assert connection.getresponse().status == 200
    connection.close()


def test_rfc2181_4_1_replies_leave_from_the_address_that_was_asked(
    agent: Agent, start_resolver: Start
) -> None:
    resolver = start_resolver(agent.uri, replace(ALONE, listen=(Endpoint("0.0.0.0", 0),)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10.0)
        client.connect(("127.0.0.9", resolver.addresses[0].port))  # a connected socket hears nobody else
        client.send(packet("localhost"))
        assert client.recv(512)


def test_rfc2181_5_2_a_set_of_records_has_one_ttl(agent: Agent, web: None, start_resolver: Start) -> None:
    uneven = [f"www.example.test. {60 * i} IN A 192.0.2.{i}" for i in (1, 2, 3)]

    def handler(request: dns.message.Message, transport: str) -> bytes:
        # dnspython evens them out by itself, so it is given one set after the other.
        whole = reply(request, uneven[0]).to_wire()
        tail = whole.rindex(b"\0\0\x29")
        more = b"".join(
            b"\xc0\x0c\0\1\0\1" + (60 * i).to_bytes(4) + b"\0\4\xc0\0\2" + bytes([i]) for i in (2, 3)
        )
        return whole[:6] + b"\0\3" + whole[8:tail] + more + whole[tail:]

    with Server(handler) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for _ in range(2):  # relayed, and from the cache
            frame = wire.read_frame(told := exchange(resolver, packet("www.example.test")))
            assert {int.from_bytes(told[at : at + 4]) for _, _, at, _ in frame.records} == {60}
            assert len(frame.records) == 3
        frame = wire.read_frame(told := exchange(resolver, packet(WEB)))
        assert {int.from_bytes(told[at : at + 4]) for _, _, at, _ in frame.records} == {0}


def test_rfc2181_8_a_ttl_with_the_top_bit_set_is_zero(agent: Agent, start_resolver: Start) -> None:
    def handler(request: dns.message.Message, transport: str) -> bytes:
        raw = reply(request, "www.example.test. 4660 IN A 192.0.2.1").to_wire()
        return raw.replace((4660).to_bytes(4), b"\x80\0\0\1")

    with Server(handler) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for _ in range(2):
            assert ask(resolver, "www.example.test").answer[0].ttl == 0
        assert len(server.asked) == 2, "it is not kept"


def test_rfc2181_9_tc_says_that_answers_are_missing(agent: Agent, many: None, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    cut = ask(resolver, WEB, "SRV", use_edns=0, payload=800)
    assert cut.flags & dns.flags.TC
    assert 0 < len(cut.answer[0]) < 40, "as many as fit: some clients use what they got"
    whole = ask(resolver, WEB, "SRV", tcp=True)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 40


def test_rfc2308_2_negative_answers_carry_the_soa(agent: Agent, web: None, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    for name, qtype, rcode in (
        ("nope.service.consul", "A", dns.rcode.NXDOMAIN),
        (WEB, "AAAA", dns.rcode.NOERROR),
        ("consul", "A", dns.rcode.NOERROR),
        ("x.invalid", "A", dns.rcode.NXDOMAIN),
        ("localhost", "MX", dns.rcode.NOERROR),
        ("9.9.9.10.in-addr.arpa", "PTR", dns.rcode.NXDOMAIN),
    ):
        told = ask(resolver, name, qtype)
        assert (told.rcode(), told.answer) == (rcode, [])
        (soa,) = told.authority
        assert soa.rdtype == dns.rdatatype.SOA, name


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
def test_rfc2308_5_negative_answers_are_cached_by_the_soa_minimum(
    agent: Agent, start_resolver: Start, rcode: int
) -> None:
    brief = SOA.replace(" 300", " 1")  # MINIMUM is less than the TTL

    with Server(lambda request, _: reply(request, brief, rcode=rcode)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        assert ask(resolver, "www.example.test").rcode() == rcode
        wait_until(lambda: ask(resolver, "www.example.test").rcode() == rcode and len(server.asked) == 2)
    with Server(lambda request, _: reply(request, SOA, rcode=rcode)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for _ in range(5):
            assert ask(resolver, "www.example.test").rcode() == rcode
        assert len(server.asked) == 1
    with Server(lambda request, _: reply(request, rcode=rcode)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for _ in range(3):
            assert ask(resolver, "www.example.test").rcode() == rcode
        assert len(server.asked) == 3, "without an SOA it is not kept"


def test_rfc2308_7_1_a_server_failure_is_remembered_for_seconds(agent: Agent, start_resolver: Start) -> None:
    healed = threading.Event()

    def handler(request: dns.message.Message, transport: str) -> dns.message.Message:
        return reply(request, RECORD) if healed.is_set() else reply(request, rcode=dns.rcode.SERVFAIL)

    with Server(handler) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        assert ask(resolver, "www.example.test").rcode() == dns.rcode.SERVFAIL
        asked = len(server.asked)
        assert ask(resolver, "www.example.test").rcode() == dns.rcode.SERVFAIL
        assert len(server.asked) == asked
        healed.set()  # five minutes are allowed, the resolver takes five seconds
        wait_until(lambda: bool(ask(resolver, "www.example.test").answer), timeout=30.0)


def test_rfc2782_no_target_is_an_alias(agent: Agent, start_resolver: Start) -> None:
    catalogue_register(
        agent, {"Node": "far", "Address": "host.example.test", "Service": {"Service": "ext", "Port": 1}}
    )
    catalogue_register(
        agent, {"Node": "near", "Address": "10.0.0.7", "Service": {"Service": "int", "Port": 1}}
    )
    resolver = start_resolver(agent.uri)
    told = ask(resolver, "ext.service.consul", "SRV")
    assert [str(record.target) for record in told.answer[0]] == ["host.example.test."]
    told = ask(resolver, "int.service.consul", "SRV")
    (target,) = [str(record.target) for record in told.answer[0]]
    assert [rrset.rdtype for rrset in ask(resolver, target).answer] == [dns.rdatatype.A]


def test_rfc2782_weights_are_told_and_0_is_none_of_ours_to_refuse(
    agent: Agent, start_resolver: Start
) -> None:
    register(agent, "10.0.0.1", name="one", weights=Weights(7, 1))
    check = Check(id=CheckID("sick"), ttl=60.0, initial_status="warning")
    register(agent, "10.0.0.2", name="two", weights=Weights(7, 0), checks=(check,))
    resolver = start_resolver(agent.uri)
    for name, weight in (("one", 7), ("two", 0)):
        (record,) = ask(resolver, f"{name}.service.consul", "SRV").answer[0]
        assert (record.priority, record.weight, record.port) == (1, weight, 80)


def test_rfc3225_3_the_do_bit_is_copied(agent: Agent, web: None, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    for wanted in (True, False):
        told = ask(resolver, WEB, use_edns=0, want_dnssec=wanted)
        assert bool(told.ednsflags & dns.flags.DO) == wanted


def test_rfc4343_case_makes_no_difference_and_is_kept(agent: Agent, web: None, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request, RECORD)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for name in (WEB, "WEB.SERVICE.CONSUL", "wEb.sErViCe.cOnSuL"):
            told = ask(resolver, name)
            assert sorted(addresses(told)) == ["10.0.0.1", "10.0.0.2"]
            assert str(told.answer[0].name) == f"{name}."
            assert str(told.question[0].name) == f"{name}."
        for name in ("www.example.test", "WWW.example.TEST"):
            assert str(ask(resolver, name).question[0].name) == f"{name}."
        assert len(server.asked) == 1, "one entry for all spellings"


def test_rfc9619_there_is_exactly_one_question(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    question = packet("localhost")[12:]
    for count in (0, 2, 3):
        raw = b"\0\1\1\0" + count.to_bytes(2) + bytes(6) + question * count
        assert exchange(resolver, raw)[3] & 0xF == dns.rcode.FORMERR


def test_0x20_the_clients_letters_reach_the_upstream(agent: Agent, start_resolver: Start) -> None:
    """draft-vixie-dnsext-dns0x20: they are one more thing that a forger has to guess."""
    with Server(lambda request, _: reply(request, RECORD)) as server:
        told = ask(start_resolver(agent.uri, forwarding_to(server)), "wWw.eXample.tEst")
    assert [str(request.question[0].name) for *_, request, _ in server.asked] == ["wWw.eXample.tEst."]
    assert addresses(told) == ["192.0.2.1"]


# --- RFC 5452: forgery ----------------------------------------------------------------------------------


def test_rfc5452_9_2_ids_and_ports_are_random(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for i in range(40):
            ask(resolver, f"n{i}.example.test")
    idents = [request.id for _, _, request, _ in server.asked]
    ports = [client[1] for *_, client in server.asked]
    assert len(set(idents)) > 30
    assert len(set(ports)) > 30
    steps = {second - first for first, second in itertools.pairwise(idents)}
    assert len(steps) > 30, "no counter"


def _forged(what: str, request: dns.message.Message) -> bytes:
    raw = bytearray(reply(request, "www.example.test. 60 IN A 203.0.113.66").to_wire())
    match what:
        case "id":
            raw[0] ^= 1
        case "question":
            raw[13] ^= 1
        case "type":
            raw[raw.index(b"\4test\0") + 7] = 28
        case "QR":
            raw[2] &= 0x7F
    return bytes(raw)


@pytest.mark.parametrize("what", ["id", "question", "type", "QR"])
def test_rfc5452_9_1_what_does_not_match_is_no_reply(agent: Agent, start_resolver: Start, what: str) -> None:
    def handler(request: dns.message.Message, transport: str) -> list[bytes]:
        return [_forged(what, request), reply(request, RECORD).to_wire()]

    with Server(handler) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        assert addresses(ask(resolver, "www.example.test")) == ["192.0.2.1"]


@pytest.mark.parametrize("elsewhere", ["address", "port"])
def test_rfc5452_9_1_what_comes_from_elsewhere_is_no_reply(
    agent: Agent, start_resolver: Start, elsewhere: str
) -> None:
    clients: list[tuple[str, int]] = []

    def handler(request: dns.message.Message, transport: str) -> dns.message.Message:
        host = "127.0.0.9" if elsewhere == "address" else "127.0.0.1"
        port = server.port if elsewhere == "address" else 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
            forger.bind((host, port))
            clients.append(client := server.asked[-1][3])
            forger.sendto(reply(request, "www.example.test. 60 IN A 203.0.113.66").to_wire(), client)
        return reply(request, RECORD)

    with Server(handler) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        assert addresses(ask(resolver, "www.example.test")) == ["192.0.2.1"]
    assert clients


def test_rfc5452_5_equal_questions_are_asked_once_at_a_time(agent: Agent, start_resolver: Start) -> None:
    go_on = threading.Event()

    def handler(request: dns.message.Message, transport: str) -> dns.message.Message:
        go_on.wait(10.0)
        return reply(request, RECORD)

    with Server(handler) as server, contextlib.ExitStack() as stack:
        settings = forwarding_to(server, upstream_attempt=10.0, upstream_total=20.0)
        resolver = start_resolver(agent.uri, settings)
        clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(20)]
        for ident, client in enumerate(clients):
            client.settimeout(10.0)
            client.connect(where(resolver))
            client.send(packet("www.example.test", ident=ident))
        # Requests are taken in order: when this one is answered, all twenty are waiting.
        assert ask(resolver, "localhost").answer
        go_on.set()
        for ident, client in enumerate(clients):
            told = dns.message.from_wire(client.recv(512))
            assert (told.id, addresses(told)) == (ident, ["192.0.2.1"])
        assert len(server.asked) == 1


# --- names that stay here -------------------------------------------------------------------------------


def nothing_leaves(agent: Agent, start: Start, *names: str) -> list[dns.message.Message]:
    with Server(lambda request, _: reply(request, rcode=dns.rcode.REFUSED)) as server:
        resolver = start(agent.uri, forwarding_to(server))
        told = [ask(resolver, name, "PTR" if name.endswith(".arpa") else "A") for name in names]
        assert server.asked == []
    return told


def test_rfc6761_6_3_localhost_is_this_host(agent: Agent, start_resolver: Start) -> None:
    for told in nothing_leaves(agent, start_resolver, "localhost", "LOCALHOST", "a.b.localhost"):
        assert addresses(told) == ["127.0.0.1"]
    assert addresses(ask(start_resolver(agent.uri), "localhost", "AAAA")) == ["::1"]


def test_rfc6761_6_4_invalid_never_exists(agent: Agent, start_resolver: Start) -> None:
    for told in nothing_leaves(agent, start_resolver, "invalid", "www.invalid"):
        assert told.rcode() == dns.rcode.NXDOMAIN


def test_rfc7686_2_onion_never_exists_here(agent: Agent, start_resolver: Start) -> None:
    for told in nothing_leaves(agent, start_resolver, "onion", "abc.onion"):
        assert told.rcode() == dns.rcode.NXDOMAIN


def test_rfc6303_4_private_reverse_names_do_not_leak(agent: Agent, start_resolver: Start) -> None:
    names = [
        "10.in-addr.arpa",
        "1.0.168.192.in-addr.arpa",
        "1.2.16.172.in-addr.arpa",
        "1.0.0.127.in-addr.arpa",
    ]
    names += ["9.254.169.in-addr.arpa", "1.2.0.192.in-addr.arpa", "d.f.ip6.arpa", "8.e.f.ip6.arpa"]
    names += ["9.9.64.100.in-addr.arpa"]  # RFC 7793
    for told in nothing_leaves(agent, start_resolver, *names):
        assert told.rcode() in (dns.rcode.NXDOMAIN, dns.rcode.NOERROR)
        assert told.authority[0].rdtype == dns.rdatatype.SOA


def test_rfc7793_4_reverse_names_of_shared_addresses_do_not_leak(agent: Agent, start_resolver: Start) -> None:
    names = [f"1.1.{i}.100.in-addr.arpa" for i in (64, 100, 127)]
    for told in nothing_leaves(agent, start_resolver, *names):
        assert told.rcode() == dns.rcode.NXDOMAIN


# --- RFC 6891, 7873, 7871, 8914: EDNS -------------------------------------------------------------------


def test_rfc6891_6_1_3_another_version_is_badvers(agent: Agent, start_resolver: Start) -> None:
    for version in (1, 255):
        request = dns.message.make_query(WEB, "A")
        request.use_edns(version)
        told = dns.message.from_wire(exchange(start_resolver(agent.uri), request.to_wire()))
        assert (told.rcode(), told.edns, told.answer) == (dns.rcode.BADVERS, 0, [])


def test_rfc6891_7_an_opt_for_an_opt_and_none_for_none(
    agent: Agent, web: None, start_resolver: Start
) -> None:
    with Server(lambda request, _: reply(request, RECORD)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for name in (WEB, "nope.service.consul", "www.example.test", "www.example.test", "localhost"):
            for tcp in (False, True):
                assert ask(resolver, name, tcp=tcp).edns == -1
                told = ask(resolver, name, tcp=tcp, use_edns=0)
                assert (told.edns, told.payload) == (0, 1232)
    refusing = start_resolver(agent.uri)
    assert ask(refusing, "www.example.test", use_edns=0).edns == 0, "also in an error"


def test_rfc6891_6_2_3_sizes_below_512_are_512(agent: Agent, many: None, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    raws = [exchange(resolver, packet(WEB, "SRV", edns=size)) for size in (0, 100, 512)]
    assert len({len(raw) for raw in raws}) == 1
    assert 100 < len(raws[0]) <= 512


def test_rfc6891_6_2_5_no_reply_is_longer_than_the_client_takes(
    agent: Agent, many: None, start_resolver: Start
) -> None:
    resolver = start_resolver(agent.uri)
    for size in range(512, 4096, 97):
        assert len(exchange(resolver, packet(WEB, "SRV", edns=size))) <= size


def test_rfc6891_6_1_1_two_opts_are_malformed(agent: Agent, start_resolver: Start) -> None:
    raw = packet(WEB, edns=1232)
    twice = raw[:10] + b"\0\2" + raw[12:] + raw[-11:]
    assert exchange(start_resolver(agent.uri), twice)[3] & 0xF == dns.rcode.FORMERR


def test_rfc6891_6_2_3_upstreams_are_told_1232_octets(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request, RECORD)) as server:
        ask(start_resolver(agent.uri, forwarding_to(server)), "www.example.test")
    assert [(request.edns, request.payload) for *_, request, _ in server.asked] == [(0, 1232)]


def test_rfc7873_5_2_a_cookie_never_fails_a_query_and_stays_here(
    agent: Agent, web: None, start_resolver: Start
) -> None:
    with Server(lambda request, _: reply(request, RECORD)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for length in (8, 16, 40):
            cookie = dns.edns.GenericOption(10, b"c" * length)
            assert ask(resolver, WEB, use_edns=0, options=[cookie]).answer
            assert ask(resolver, f"n{length}.example.test", use_edns=0, options=[cookie]).rcode() == 0
        broken = dns.edns.GenericOption(10, b"c" * 3)
        assert ask(resolver, WEB, use_edns=0, options=[broken]).answer
    assert [request.options for *_, request, _ in server.asked] == [()] * 3


def test_rfc7871_7_3_no_subnet_leaves_and_none_divides_the_cache(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request, RECORD)) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for network in ("198.51.100.0", "203.0.113.0"):
            subnet = dns.edns.ECSOption(network, 24)
            told = ask(resolver, "www.example.test", use_edns=0, options=[subnet])
            assert addresses(told) == ["192.0.2.1"]
            assert told.options == ()
    assert [request.options for *_, request, _ in server.asked] == [()]


def test_rfc6840_5_7_ad_is_told_to_those_who_asked(agent: Agent, start_resolver: Start) -> None:
    def handler(request: dns.message.Message, transport: str) -> dns.message.Message:
        answer = reply(request, RECORD)
        answer.flags |= dns.flags.AD
        return answer

    with Server(handler) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        for _ in range(2):
            assert not ask(resolver, "www.example.test").flags & dns.flags.AD
            assert ask(resolver, "www.example.test", flags=dns.flags.RD | dns.flags.AD).flags & dns.flags.AD
            assert ask(resolver, "www.example.test", want_dnssec=True).flags & dns.flags.AD


def test_rfc8914_4_4_stale_answers_say_so(agent: Agent, web: None, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    assert ask(resolver, WEB).answer
    agent.close()
    wait_until(lambda: errors_of(ask(resolver, WEB, use_edns=0)) == [3])
    assert len(addresses(ask(resolver, WEB))) == 2


def test_rfc8914_4_23_an_unreachable_catalogue_is_said(start_resolver: Start) -> None:
    resolver = start_resolver(f"consul://127.0.0.1:{free_port()}")
    wait_until(lambda: errors_of(ask(resolver, WEB, use_edns=0)) == [22])
    assert ask(resolver, WEB).rcode() == dns.rcode.SERVFAIL


def test_rfc8914_4_24_silent_upstreams_are_said(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: None) as server:
        settings = forwarding_to(server, upstream_attempt=0.2, upstream_total=0.3)
        told = ask(start_resolver(agent.uri, settings), "www.example.test", use_edns=0)
    assert (told.rcode(), errors_of(told)) == (dns.rcode.SERVFAIL, [23])


# --- RFC 7766, 7858: streams ----------------------------------------------------------------------------


def test_rfc7766_5_everything_is_answered_over_tcp(agent: Agent, many: None, start_resolver: Start) -> None:
    told = ask(start_resolver(agent.uri), WEB, "SRV", tcp=True)
    assert len(told.answer[0]) == 40


def test_rfc7766_5_a_cut_reply_is_asked_for_again_over_tcp(agent: Agent, start_resolver: Start) -> None:
    def handler(request: dns.message.Message, transport: str) -> dns.message.Message:
        if transport == "tcp":
            return reply(request, *(f"www.example.test. 60 IN A 192.0.2.{i}" for i in range(1, 200)))
        cut = reply(request)
        cut.flags |= dns.flags.TC
        return cut

    with Server(handler) as server:
        resolver = start_resolver(agent.uri, forwarding_to(server))
        told = ask(resolver, "www.example.test", tcp=True)
    assert len(told.answer[0]) == 199
    assert [transport for _, transport, *_ in server.asked] == ["udp", "tcp"]


def test_rfc7766_6_2_1_1_requests_are_pipelined(agent: Agent, start_resolver: Start) -> None:
    with connected(start_resolver(agent.uri)) as client:
        client.sendall(b"".join(framed(packet("localhost", ident=i)) for i in range(50)))
        replies = [read_reply(client) for _ in range(50)]
    assert {told.id for told in replies if told is not None} == set(range(50))


def test_rfc7766_7_a_slow_answer_holds_up_no_other(agent: Agent, start_resolver: Start) -> None:
    go_on = threading.Event()

    def handler(request: dns.message.Message, transport: str) -> dns.message.Message:
        go_on.wait(10.0)
        return reply(request, RECORD)

    with Server(handler) as server:
        settings = forwarding_to(server, upstream_attempt=10.0, upstream_total=20.0)
        with connected(start_resolver(agent.uri, settings)) as client:
            client.sendall(framed(packet("www.example.test", ident=1)) + framed(packet("localhost", ident=2)))
            first = read_reply(client)
            go_on.set()
            second = read_reply(client)
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == (2, 1)


def test_rfc7766_6_2_3_idle_connections_are_closed(agent: Agent, start_resolver: Start) -> None:
    with connected(start_resolver(agent.uri, replace(ALONE, tcp_idle=0.3))) as client:
        client.sendall(framed(packet("localhost")))
        assert read_reply(client) is not None
        assert read_reply(client) is None


def test_rfc7766_6_2_2_connections_are_limited(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri, replace(ALONE, tcp_per_source=1))
    with connected(resolver) as first:
        first.sendall(framed(packet("localhost")))
        assert read_reply(first) is not None
        with connected(resolver) as second, contextlib.suppress(ConnectionError):
            second.sendall(framed(packet("localhost")))
            assert read_reply(second) is None


def test_rfc7858_3_1_upstreams_are_asked_over_tls(
    agent: Agent, start_resolver: Start, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(lambda request, _: reply(request, RECORD), tls=context) as server:
        secure = Upstream(*server.address, tls=True, tls_name="dns.example.test")
        settings = replace(ALONE, upstreams=(secure,), upstream_ca=Path(f"{certificate}.crt"))
        assert addresses(ask(start_resolver(agent.uri, settings), "www.example.test")) == ["192.0.2.1"]


# --- RFC 8020, 8482, 8767: what is there, what was there ------------------------------------------------


def test_rfc8020_2_names_above_names_exist(agent: Agent, web: None, start_resolver: Start) -> None:
    """NXDOMAIN would say that nothing exists below; resolvers that minimise names believe it."""
    resolver = start_resolver(agent.uri)
    for name in ("consul", "service.consul", "node.consul", "dc1.consul", "service.dc1.consul"):
        told = ask(resolver, name, "NS" if name == "consul" else "A")
        assert told.rcode() == dns.rcode.NOERROR, name
    assert ask(resolver, "nope.service.consul").rcode() == dns.rcode.NXDOMAIN


def test_rfc8482_4_any_is_answered_with_what_matters(agent: Agent, start_resolver: Start) -> None:
    register(agent, "10.0.0.1", "2001:db8::1")
    told = ask(start_resolver(agent.uri), WEB, "ANY")
    assert {rrset.rdtype for rrset in told.answer} == {dns.rdatatype.A, dns.rdatatype.AAAA}


def falling_silent(silent: threading.Event, *, ttl: int = 1) -> Handler:
    def handler(request: dns.message.Message, transport: str) -> dns.message.Message | None:
        return None if silent.is_set() else reply(request, RECORD.replace("60", str(ttl)))

    return handler


def test_rfc8767_4_stale_records_have_a_ttl_of_30(agent: Agent, start_resolver: Start) -> None:
    silent = threading.Event()
    with Server(falling_silent(silent)) as server:
        settings = forwarding_to(server, upstream_attempt=0.2, upstream_total=0.3)
        resolver = start_resolver(agent.uri, settings)
        assert ask(resolver, "www.example.test").answer[0].ttl == 1
        silent.set()
        wait_until(lambda: errors_of(ask(resolver, "www.example.test", use_edns=0)) == [3])
        assert ask(resolver, "www.example.test").answer[0].ttl == 30


def test_rfc8767_5_the_age_of_stale_records_is_bounded(agent: Agent, start_resolver: Start) -> None:
    silent = threading.Event()
    with Server(falling_silent(silent)) as server:
        settings = forwarding_to(server, upstream_attempt=0.1, upstream_total=0.2)
        settings = replace(settings, answers=replace(settings.answers, relayed_max_stale=1.0))
        resolver = start_resolver(agent.uri, settings)
        assert ask(resolver, "www.example.test").answer
        silent.set()
        wait_until(lambda: ask(resolver, "www.example.test").rcode() == dns.rcode.SERVFAIL, timeout=20.0)


def test_rfc8767_5_a_slow_upstream_is_not_waited_for_when_an_old_answer_is_there(
    agent: Agent, start_resolver: Start
) -> None:
    silent = threading.Event()
    with Server(falling_silent(silent)) as server:
        resolver = start_resolver(
            agent.uri, forwarding_to(server, upstream_attempt=60.0, upstream_total=60.0)
        )
        assert ask(resolver, "www.example.test").answer
        silent.set()
        # The upstream would have a minute; dnspython gives up after ten seconds.
        wait_until(lambda: errors_of(ask(resolver, "www.example.test", use_edns=0)) == [3])


def test_rfc8767_5_a_denial_is_never_told_as_stale(agent: Agent, start_resolver: Start) -> None:
    silent = threading.Event()

    def handler(request: dns.message.Message, transport: str) -> dns.message.Message | None:
        return (
            None if silent.is_set() else reply(request, SOA.replace(" 300", " 1"), rcode=dns.rcode.NXDOMAIN)
        )

    with Server(handler) as server:
        settings = forwarding_to(server, upstream_attempt=0.1, upstream_total=0.2)
        resolver = start_resolver(agent.uri, settings)
        assert ask(resolver, "www.example.test").rcode() == dns.rcode.NXDOMAIN
        silent.set()
        wait_until(lambda: ask(resolver, "www.example.test").rcode() == dns.rcode.SERVFAIL)


def test_rfc9520_3_2_a_failure_to_resolve_costs_the_next_client_no_time(
    agent: Agent, start_resolver: Start
) -> None:
    with Server(lambda request, _: None) as server:
        settings = forwarding_to(server, upstream_attempt=0.2, upstream_total=0.4)
        resolver = start_resolver(agent.uri, settings)
        assert ask(resolver, "www.example.test").rcode() == dns.rcode.SERVFAIL
        asked = len(server.asked)
        for _ in range(5):
            assert ask(resolver, "www.example.test").rcode() == dns.rcode.SERVFAIL
        assert len(server.asked) == asked
