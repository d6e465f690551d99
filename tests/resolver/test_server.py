"""resolver.server with everything behind it: real sockets, an embedded agent, a real upstream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from discovery.agent import Agent
from discovery.backends import open_backend
from discovery.config import Config
from discovery.errors import ConfigurationError
from discovery.model import Check, CheckID, Registration, ServiceID, ServiceName
from resolver.config import Endpoint, Settings
from resolver.forward import Upstream
from resolver.policy import Policy
from resolver.server import Resolver
from resolver.service import Service
from resolver.wire import name_from_text
from tests.resolver.conftest import Start, addresses, ask
from tests.resolver.upstream import Upstream as Server
from tests.resolver.upstream import reply
from tests.resolver.world import packet
from tests.tools import free_port, wait_until

ALONE = Settings(upstreams=())


def register(agent: Agent, ident: str, address: str, *, name: str = "web", checked: bool = False) -> None:
    backend = open_backend(agent.uri, Config())
    checks = (Check(id=CheckID(f"{ident}-alive"), ttl=60.0, initial_status="passing"),) if checked else ()
    backend.register(
        Registration(ServiceID(ident), ServiceName(name), port=80, address=address, checks=checks)
    )
    backend.close()


def deregister(agent: Agent, ident: str) -> None:
    backend = open_backend(agent.uri, Config())
    backend.deregister(ServiceID(ident))
    backend.close()


def answers(resolver: Resolver, name: str = "web.service.consul", qtype: str = "A") -> set[str]:
    return set(addresses(ask(resolver, name, qtype)))


def errors_of(message: dns.message.Message) -> list[int]:
    return [int(o.code) for o in message.options if isinstance(o, dns.edns.EDEOption)]


# --- the catalogue


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_what_is_registered_is_answered(agent: Agent, start_resolver: Start, tcp: bool) -> None:
    register(agent, "w1", "10.0.0.1")
    register(agent, "w2", "10.0.0.2")
    resolver = start_resolver(agent.uri)
    for _ in range(3):  # first looked up, then remembered, then hot
        message = ask(resolver, "web.service.consul", tcp=tcp)
        assert set(addresses(message)) == {"10.0.0.1", "10.0.0.2"}
        assert message.answer[0].ttl == 0
        assert dns.flags.to_text(message.flags) == "QR AA RD RA"
    assert addresses(ask(resolver, "host-1.node.consul", tcp=tcp)) == ["10.1.0.1"]
    assert ask(resolver, "nope.service.consul", tcp=tcp).rcode() == dns.rcode.NXDOMAIN


def test_both_instances_come_first_in_turn(agent: Agent, start_resolver: Start) -> None:
    register(agent, "w1", "10.0.0.1")
    register(agent, "w2", "10.0.0.2")
    resolver = start_resolver(agent.uri)
    assert answers(resolver)
    firsts = [addresses(ask(resolver, "web.service.consul"))[0] for _ in range(10)]
    assert {firsts.count("10.0.0.1"), firsts.count("10.0.0.2")} == {5}


def test_every_change_shows(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    assert ask(resolver, "web.service.consul").rcode() == dns.rcode.NXDOMAIN
    register(agent, "w1", "10.0.0.1", checked=True)
    wait_until(
        lambda: answers(resolver) == {"10.0.0.1"}, interval=0.001, message="the new service is answered"
    )
    register(agent, "w2", "10.0.0.2")
    wait_until(lambda: answers(resolver) == {"10.0.0.1", "10.0.0.2"}, interval=0.001)
    backend = open_backend(agent.uri, Config())
    backend.update_check(CheckID("w1-alive"), "critical")
    wait_until(
        lambda: answers(resolver) == {"10.0.0.2"}, interval=0.001, message="the failing one is left out"
    )
    backend.update_check(CheckID("w1-alive"), "passing")
    wait_until(lambda: answers(resolver) == {"10.0.0.1", "10.0.0.2"}, interval=0.001)
    backend.maintenance(ServiceID("w2"), True)
    wait_until(lambda: answers(resolver) == {"10.0.0.1"}, interval=0.001, message="maintenance counts")
    deregister(agent, "w1")
    deregister(agent, "w2")
    wait_until(
        lambda: ask(resolver, "web.service.consul").rcode() == dns.rcode.NXDOMAIN,
        interval=0.001,
        message="the last instance is gone, and the name with it",
    )
    backend.close()


# --- outages


def test_last_known_answers_outlive_the_registry_and_give_way_to_fresh_ones(
    agent: Agent, start_resolver: Start
) -> None:
    register(agent, "w1", "10.0.0.1")
    register(agent, "a1", "10.0.0.7", name="api")
    resolver = start_resolver(agent.uri)
    assert answers(resolver) == {"10.0.0.1"}
    agent.close()

    def told_as_stale() -> bool:
        return errors_of(ask(resolver, "web.service.consul", use_edns=0)) == [3]

    wait_until(told_as_stale, message="the answer is marked as stale")
    assert answers(resolver) == {"10.0.0.1"}
    assert ask(resolver, "web.service.consul", "AAAA").rcode() == dns.rcode.NOERROR
    for name in ("api.service.consul", "nope.service.consul"):  # never asked before; in no list
        message = ask(resolver, name, use_edns=0)
        assert message.rcode() == dns.rcode.SERVFAIL
        assert errors_of(message)[0] in (22, 23)

    agent.start()  # with empty memory
    wait_until(lambda: ask(resolver, "web.service.consul").rcode() == dns.rcode.NXDOMAIN)
    register(agent, "w1", "10.0.0.2")
    wait_until(lambda: answers(resolver) == {"10.0.0.2"})


def test_stale_answers_end_with_max_stale(agent: Agent, start_resolver: Start) -> None:
    register(agent, "w1", "10.0.0.1")
    resolver = start_resolver(agent.uri, replace(ALONE, max_stale=0.2))
    assert answers(resolver) == {"10.0.0.1"}
    agent.close()
    wait_until(lambda: ask(resolver, "web.service.consul").rcode() == dns.rcode.SERVFAIL)
    agent.start()
    register(agent, "w1", "10.0.0.2")
    wait_until(lambda: answers(resolver) == {"10.0.0.2"})


def test_a_registry_that_was_never_there_is_a_temporary_failure(start_resolver: Start) -> None:
    resolver = start_resolver(f"consul://127.0.0.1:{free_port()}")
    message = ask(resolver, "web.service.consul", use_edns=0)
    assert message.rcode() == dns.rcode.SERVFAIL
    assert errors_of(message) == [22]


@contextlib.contextmanager
def hanging_registry() -> Iterator[int]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_hanging_registry_delays_nobody_else(start_resolver: Start) -> None:
    with hanging_registry() as port:
        resolver = start_resolver(f"consul://127.0.0.1:{port}", replace(ALONE, cold_timeout=1.0))
        waiting: list[dns.message.Message] = []
        thread = threading.Thread(
            target=lambda: waiting.append(ask(resolver, "web.service.consul", use_edns=0))
        )
        thread.start()
        assert addresses(ask(resolver, "localhost")) == ["127.0.0.1"]
        assert not waiting, "answered while the other still waits"
        thread.join()
    assert waiting[0].rcode() == dns.rcode.SERVFAIL
    assert errors_of(waiting[0]) == [23]


# --- the rest of the world


def test_other_names_are_forwarded_and_kept(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request, "www.example.test. 60 IN A 192.0.2.1")) as server:
        resolver = start_resolver(agent.uri, Settings(upstreams=(Upstream(*server.address),)))
        for tcp in (False, True):
            for name in ("www.example.test", "WWW.example.test"):
                message = ask(resolver, name, tcp=tcp)
                assert addresses(message) == ["192.0.2.1"]
                assert dns.flags.to_text(message.flags) == "QR RD RA"
        assert len(server.asked) == 1


def test_some_domains_have_upstreams_of_their_own(agent: Agent, start_resolver: Start) -> None:
    """Private reverse zones among them, which would else be answered here (RFC 6303)."""
    with (
        Server(lambda request, _: reply(request, "www.corp.example. 60 IN A 192.0.2.7")) as corp,
        Server(lambda request, _: reply(request, "1.0.0.10.in-addr.arpa. 60 IN PTR a.corp.")) as reverse,
    ):
        routes = {
            name_from_text("corp.example"): (Upstream(*corp.address),),
            name_from_text("10.in-addr.arpa"): (Upstream(*reverse.address),),
        }
        zone = replace(ALONE.zone, forwarded=frozenset(routes))
        resolver = start_resolver(agent.uri, replace(ALONE, forward=routes, zone=zone))
        assert addresses(ask(resolver, "www.CORP.example")) == ["192.0.2.7"]
        assert addresses(ask(resolver, "1.0.0.10.in-addr.arpa", "PTR")) == ["a.corp."]
        assert ask(resolver, "www.example").rcode() == dns.rcode.REFUSED


def test_old_answers_are_told_when_upstreams_fall_silent(agent: Agent, start_resolver: Start) -> None:
    """RFC 8767 section 5."""
    silent = threading.Event()

    def handler(request: dns.message.Message, transport: str) -> dns.message.Message | None:
        return None if silent.is_set() else reply(request, "www.example.test. 1 IN A 192.0.2.1")

    with Server(handler) as server:
        settings = Settings(upstreams=(Upstream(*server.address),), upstream_total=0.3)
        resolver = start_resolver(agent.uri, settings)
        assert addresses(ask(resolver, "www.example.test")) == ["192.0.2.1"]
        silent.set()

        def stale() -> bool:
            return errors_of(ask(resolver, "www.example.test", use_edns=0)) == [3]

        wait_until(stale, message="the old answer is marked as such")
        message = ask(resolver, "www.example.test")
        assert addresses(message) == ["192.0.2.1"]
        assert message.answer[0].ttl == 30


def test_a_host_name_as_address_is_resolved_by_upstreams(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request, "www.example.test. 60 IN A 192.0.2.1")) as server:
        register(agent, "e1", "www.example.test", name="ext")
        resolver = start_resolver(agent.uri, Settings(upstreams=(Upstream(*server.address),)))
        for _ in range(3):
            assert addresses(ask(resolver, "ext.service.consul")) == ["www.example.test.", "192.0.2.1"]
        assert len(server.asked) == 1
    alone = start_resolver(agent.uri)
    assert addresses(ask(alone, "ext.service.consul")) == ["www.example.test."]


def test_a_host_name_whose_address_is_broken_is_told_without_one(agent: Agent, start_resolver: Start) -> None:
    def broken(request: dns.message.Message, transport: str) -> bytes:
        raw = reply(request, "www.example.test. 60 IN A 192.0.2.1").to_wire()
        at = raw.rindex(b"\0\4\xc0\0\2\1")
        return raw[: at + 1] + b"\3" + raw[at + 2 : at + 5] + raw[at + 6 :]  # an address of three octets

    with Server(broken) as server:
        register(agent, "e1", "www.example.test", name="ext")
        resolver = start_resolver(agent.uri, Settings(upstreams=(Upstream(*server.address),)))
        assert addresses(ask(resolver, "ext.service.consul")) == ["www.example.test."]


def test_an_address_leads_to_its_service(agent: Agent, start_resolver: Start) -> None:
    register(agent, "w1", "10.0.0.1")
    resolver = start_resolver(agent.uri)
    assert addresses(ask(resolver, "1.0.0.10.in-addr.arpa", "PTR")) == ["web.service.dc1.consul."]
    assert addresses(ask(resolver, "1.0.1.10.in-addr.arpa", "PTR")) == ["host-1.node.dc1.consul."]
    assert ask(resolver, "9.9.9.10.in-addr.arpa", "PTR").rcode() == dns.rcode.NXDOMAIN


def test_names_of_ours_are_never_forwarded(agent: Agent, start_resolver: Start) -> None:
    with Server(lambda request, _: reply(request)) as server:
        resolver = start_resolver(agent.uri, Settings(upstreams=(Upstream(*server.address),)))
        for name in ("nope.service.consul", "nope.consul", "localhost", "a.invalid", "a.onion"):
            ask(resolver, name)
        assert server.asked == []


def test_without_upstreams_other_names_are_refused(agent: Agent, start_resolver: Start) -> None:
    assert ask(start_resolver(agent.uri), "www.example.test").rcode() == dns.rcode.REFUSED


def test_upstreams_that_do_not_answer_are_servfail(agent: Agent, start_resolver: Start) -> None:
    nobody = Settings(upstreams=(Upstream("127.0.0.1", free_port()),), upstream_total=0.2)
    message = ask(start_resolver(agent.uri, nobody), "www.example.test", use_edns=0)
    assert message.rcode() == dns.rcode.SERVFAIL
    assert errors_of(message) == [23]


# --- UDP


@pytest.fixture(params=["in batches", "singly"])
def datagrams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets are received and sent as on Linux, or as where a call for many is missing."""
    if request.param == "singly":
        monkeypatch.setattr("resolver.batch.Batch.on", lambda sock, *, local: None)


@pytest.mark.usefixtures("datagrams")
def test_a_bad_packet_costs_only_itself(agent: Agent, start_resolver: Start) -> None:
    register(agent, "w1", "10.0.0.1")
    resolver = start_resolver(agent.uri)
    address = (resolver.addresses[0].host, resolver.addresses[0].port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for raw in (b"", b"\0", b"\xff" * 600, packet("web.service.consul")[:-1], b"\0" * 12):
            client.sendto(raw, address)
    assert answers(resolver) == {"10.0.0.1"}


@pytest.mark.usefixtures("datagrams")
def test_a_flood_of_known_and_new_questions_is_answered_one_by_one(
    agent: Agent, start_resolver: Start
) -> None:
    register(agent, "w1", "10.0.0.1")
    resolver = start_resolver(agent.uri)
    assert answers(resolver) == {"10.0.0.1"}
    names = ["web.service.consul", "localhost", "nope.service.consul", "web.service.consul", "a.invalid"]
    requests = {ident: names[ident % len(names)] for ident in range(500)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client.settimeout(10.0)
        client.connect((resolver.addresses[0].host, resolver.addresses[0].port))
        for ident, name in requests.items():
            client.send(packet(name, ident=ident))
        told = [dns.message.from_wire(client.recv(4096)) for _ in requests]
    assert sorted(message.id for message in told) == list(requests)
    for message in told:
        name = requests[message.id]
        assert str(message.question[0].name) == f"{name}."
        assert addresses(message) == {"web.service.consul": ["10.0.0.1"], "localhost": ["127.0.0.1"]}.get(
            name, []
        )


@pytest.mark.usefixtures("datagrams")
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_replies_leave_from_the_address_that_was_asked(
    agent: Agent, start_resolver: Start, wildcard: str
) -> None:
    """RFC 2181 section 4.1; a connected socket sees replies from that address only."""
    resolver = start_resolver(agent.uri, replace(ALONE, listen=(Endpoint(wildcard, 0),)))
    family, asked = (socket.AF_INET, "127.0.0.2") if wildcard == "0.0.0.0" else (socket.AF_INET6, "::1")
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5.0)
        client.connect((asked, resolver.addresses[0].port))
        for _ in range(2):
            client.send(packet("localhost"))
            assert dns.message.from_wire(client.recv(512)).answer


def test_several_addresses(agent: Agent, start_resolver: Start) -> None:
    listen = (Endpoint("127.0.0.1", 0), Endpoint("127.0.0.2", 0), Endpoint("::1", 0))
    resolver = start_resolver(agent.uri, replace(ALONE, listen=listen))
    for endpoint in resolver.addresses:
        for tcp in (False, True):
            assert ask((endpoint.host, endpoint.port), "localhost", tcp=tcp).answer


# --- TCP


def connect(resolver: Resolver) -> socket.socket:
    return socket.create_connection((resolver.addresses[0].host, resolver.addresses[0].port), timeout=5.0)


def framed(raw: bytes) -> bytes:
    return len(raw).to_bytes(2) + raw


def read_message(client: socket.socket) -> dns.message.Message | None:
    """The next message of the connection; None at its end."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        wanted = 2 - len(data) if len(data) < 2 else 2 + int.from_bytes(data[:2]) - len(data)
        piece = client.recv(wanted)
        if not piece:
            return None
        data += piece
    return dns.message.from_wire(data[2:])


def test_requests_are_pipelined_and_may_come_in_pieces(agent: Agent, start_resolver: Start) -> None:
    """RFC 7766 sections 6.2.1.1 and 8."""
    resolver = start_resolver(agent.uri)
    stream = b"".join(framed(packet("localhost", ident=i)) for i in range(300))
    with connect(resolver) as client:
        for octet in stream[:60]:
            client.sendall(bytes([octet]))
        client.sendall(stream[60:])
        client.shutdown(socket.SHUT_WR)
        messages = [read_message(client) for _ in range(300)]
        assert read_message(client) is None
    assert sorted(message.id for message in messages if message is not None) == list(range(300))


def test_a_slow_answer_does_not_hold_up_the_next(agent: Agent, start_resolver: Start) -> None:
    """RFC 7766 section 6.2.1.1: replies may come in another order."""
    with Server(lambda request, _: None) as server:
        settings = Settings(upstreams=(Upstream(*server.address),), upstream_total=1.0)
        resolver = start_resolver(agent.uri, settings)
        with connect(resolver) as client:
            client.sendall(
                framed(packet("slow.example.test", ident=1)) + framed(packet("localhost", ident=2))
            )
            client.shutdown(socket.SHUT_WR)
            messages = [read_message(client), read_message(client)]
    assert [message and message.id for message in messages] == [2, 1]


def test_an_idle_connection_is_closed_also_when_it_dribbles(agent: Agent, start_resolver: Start) -> None:
    """RFC 7766 section 6.2.3: single octets are no requests."""
    resolver = start_resolver(agent.uri, replace(ALONE, tcp_idle=0.3))
    with connect(resolver) as client:
        client.sendall(framed(packet("localhost")))
        assert read_message(client) is not None
        client.settimeout(0.05)  # some ten octets until the limit, far fewer than the 257 that they announce
        deadline = time.monotonic() + 5
        closed = False
        while not closed and time.monotonic() < deadline:
            try:
                client.send(b"\1")
                closed = client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
        assert closed


@pytest.mark.parametrize("raw", [b"", b"\0" * 5, b"\0\1\x80" + b"\0" * 9])
def test_a_connection_that_carries_no_requests_is_closed(
    agent: Agent, start_resolver: Start, raw: bytes
) -> None:
    with connect(start_resolver(agent.uri)) as client:
        client.sendall(framed(raw))
        with contextlib.suppress(ConnectionError):
            assert read_message(client) is None


def test_connections_beyond_the_limit_are_closed(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri, replace(ALONE, tcp_connections=2))
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(connect(resolver))
            client.sendall(framed(packet("localhost")))
            assert read_message(client) is not None
        third = stack.enter_context(connect(resolver))
        with contextlib.suppress(ConnectionError):
            third.sendall(framed(packet("localhost")))
            assert read_message(third) is None
    wait_until(lambda: bool(ask(resolver, "localhost", tcp=True).answer), ignoring=(OSError, EOFError))


def test_a_client_that_never_reads_does_not_stop_the_server(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri)
    with connect(resolver) as client:
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(2000):
                client.send(framed(packet("localhost")) * 100)
        assert ask(resolver, "localhost", tcp=True).answer


# --- who may ask


def test_who_is_not_allowed_is_refused_and_gets_nothing_more(
    agent: Agent, start_resolver: Start, caplog: pytest.LogCaptureFixture
) -> None:
    register(agent, "w1", "10.0.0.1")
    allow = (ip_network("127.0.0.2/32"),)
    resolver = start_resolver(agent.uri, replace(ALONE, allow=allow))
    port = resolver.addresses[0].port
    for tcp in (False, True):
        send = dns.query.tcp if tcp else dns.query.udp
        for source, rcode in (("127.0.0.2", dns.rcode.NOERROR), ("127.0.0.1", dns.rcode.REFUSED)):
            message = dns.message.make_query("web.service.consul", "A")
            told = send(message, "127.0.0.1", port=port, source=source, timeout=5)
            assert told.rcode() == rcode
            assert bool(told.answer) == (rcode == dns.rcode.NOERROR)
    (said,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert said.startswith("127.0.0.1 may not ask and is refused. To answer it: --allow 127.0.0.1, ")


def test_who_is_not_allowed_takes_no_connection_from_those_who_are(
    agent: Agent, start_resolver: Start
) -> None:
    allow = (ip_network("127.0.0.2/32"),)
    resolver = start_resolver(agent.uri, replace(ALONE, allow=allow, tcp_connections=1))
    with contextlib.ExitStack() as stack:
        answered = 0
        for _ in range(20):
            client = stack.enter_context(connect(resolver))
            with contextlib.suppress(ConnectionError):
                client.sendall(framed(packet("localhost")))
                answered += read_message(client) is not None
        assert answered == 8, "refused"
        message = dns.message.make_query("localhost", "A")
        port = resolver.addresses[0].port
        told = dns.query.tcp(message, "127.0.0.1", port=port, source="127.0.0.2", timeout=5)
        assert told.answer


def test_more_than_the_rate_is_told_to_come_over_tcp_or_dropped(agent: Agent) -> None:
    """Without sockets: loopback, from where tests ask, has no limit."""
    backend = open_backend(agent.uri, Config())
    policy = Policy([ip_network("172.17.0.0/16")], rate=10)
    source, replies = "172.17.0.2", list[bytes]()

    async def main() -> None:
        service = Service(ALONE, backend, Config(), [], policy, None, asyncio.get_running_loop())
        for i in range(100):
            raw = packet("localhost", ident=i)
            try:  # as the endpoints do
                policy.credits[source]()
            except (KeyError, StopIteration):
                if not service.admits(raw, source, "udp", replies.append):
                    continue
            assert service.handle(raw, source, "udp", replies.append)
        await service.close()

    asyncio.run(main())
    backend.close()
    messages = [dns.message.from_wire(raw) for raw in replies]
    cut = [message for message in messages if message.flags & dns.flags.TC]
    assert not any(message.answer for message in cut)
    assert len(messages) - len(cut) == 10
    assert len(cut) == 45, "every other of the ninety"


def test_connections_of_one_source_are_limited(agent: Agent, start_resolver: Start) -> None:
    resolver = start_resolver(agent.uri, replace(ALONE, tcp_per_source=1))
    port = resolver.addresses[0].port
    with connect(resolver) as first:
        first.sendall(framed(packet("localhost")))
        assert read_message(first) is not None
        with connect(resolver) as second, contextlib.suppress(ConnectionError):
            second.sendall(framed(packet("localhost")))
            assert read_message(second) is None
        with socket.create_connection(("127.0.0.1", port), 5.0, ("127.0.0.2", 0)) as other:
            other.sendall(framed(packet("localhost")))
            assert read_message(other) is not None


def test_one_request_in_so_many_is_logged(
    agent: Agent, start_resolver: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if "query " in record.getMessage()]

    resolver = start_resolver(agent.uri, replace(ALONE, query_log=10))
    with caplog.at_level(logging.INFO, logger="resolver"):
        for _ in range(100):
            ask(resolver, "localhost")
        # An answer is sent before it is logged: the last line may be a moment later than the last answer.
        wait_until(lambda: len(logged()) >= 10)
        ask(resolver, "localhost")
    assert logged() == ["query localhost. A from 127.0.0.1"] * 10


@pytest.mark.usefixtures("datagrams")
def test_also_of_a_flood_one_request_in_so_many_is_logged(
    agent: Agent, start_resolver: Start, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = start_resolver(agent.uri, replace(ALONE, query_log=7))
    with caplog.at_level(logging.INFO, logger="resolver"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            client.settimeout(10.0)
            client.connect((resolver.addresses[0].host, resolver.addresses[0].port))
            for ident in range(7 * 40):
                client.send(packet("localhost", ident=ident))
            for _ in range(7 * 40):
                client.recv(512)
        resolver.close()  # whatever is to be logged has been
        logged = [record.getMessage() for record in caplog.records if "query " in record.getMessage()]
    assert logged == ["query localhost. A from 127.0.0.1"] * 40


# --- life


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        backend = open_backend("consul://127.0.0.1:1", Config())
        with pytest.raises(ConfigurationError) as raised:
            Resolver(replace(ALONE, listen=(Endpoint("127.0.0.1", port),)), backend).start()
        backend.close()
    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "another process" in str(raised.value)


def test_an_address_that_is_not_here_is_named() -> None:
    backend = open_backend("consul://127.0.0.1:1", Config())
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1:5353.*docker0"):
        Resolver(replace(ALONE, listen=(Endpoint("192.0.2.1", 5353),)), backend).start()
    backend.close()


def test_closing_ends_every_thread_and_frees_the_port(agent: Agent) -> None:
    before = set(threading.enumerate())
    backend = open_backend(agent.uri, Config())
    resolver = Resolver(replace(ALONE, listen=(Endpoint("127.0.0.1", 0),)), backend).start()
    port = resolver.addresses[0].port
    assert ask(resolver, "localhost").answer
    resolver.close()
    resolver.close()
    wait_until(lambda: not {t for t in set(threading.enumerate()) - before if "agent" not in t.name.lower()})
    again = Resolver(replace(ALONE, listen=(Endpoint("127.0.0.1", port),)), backend)
    with again:
        assert ask(again, "localhost").answer
    backend.close()
