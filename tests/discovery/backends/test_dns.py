"""The catalogue over DNS, against a scripted name server and against Consul's own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from discovery.backends.dns import REFRESH, Dns, Server
from discovery.errors import RegistryTimeout, RegistryUnavailable
from discovery.model import NamesQuery, Reply
from tests.discovery.fake import service
from tests.discovery.nameserver import NameServer, denial, srv
from tests.tools import ConsulAgent, free_port, wait_until

WEB = service("web")
TWO = srv(("10.0.0.1", 80), ("10.0.0.2", 8080))


def ask(*servers: NameServer | Server, timeout: float = 5.0, query=WEB) -> Reply:
    addresses = [server.server if isinstance(server, NameServer) else server for server in servers]
    return Dns(lambda: addresses).read(query, timeout=timeout)


def places(reply: Reply) -> list[tuple[str, int]]:
    return [(entry.host, entry.port) for entry in reply.value]


def test_the_records_become_instances():
    with NameServer(srv(("10.0.0.2", 8080), ("10.0.0.1", 80), weights=(3, 1))) as server:
        reply = ask(server)
    assert places(reply) == [("10.0.0.1", 80), ("10.0.0.2", 8080)]  # in one order, however they rotate
    assert [entry.weight for entry in reply.value] == [1, 3]
    assert {entry.node.dc for entry in reply.value} == {"dc1"}
    assert {entry.status for entry in reply.value} == {"passing"}
    assert reply.source == "dns"
    question = server.questions[0]
    assert question.question[0].to_text() == "web.service.consul. IN SRV"
    assert question.payload == 4096


@pytest.mark.parametrize(
    ("query", "name"),
    [(service("web", "dc2"), "web.service.dc2.consul."), (service("Web-1"), "Web-1.service.consul.")],
)
def test_the_data_centre_is_part_of_the_name(query, name):
    with NameServer(TWO) as server:
        ask(server, query=query)
    assert server.questions[0].question[0].name.to_text() == name


def test_another_domain_may_be_the_registrys():
    with NameServer(denial("corp.example.")) as server:
        assert Dns(lambda: [server.server], "corp.example.").read(WEB).value == ()
    assert server.questions[0].question[0].name.to_text() == "web.service.corp.example."


@pytest.mark.parametrize("query", [service("my.web"), service("x" * 64), service("web", "d.c"), NamesQuery()])
def test_what_dns_cannot_say_is_not_covered(query):
    catalogue = Dns(list)
    assert not catalogue.covers(query)
    with pytest.raises(RegistryUnavailable):
        catalogue.read(query)


# --- whose answer counts -------------------------------------------------------------------------------


def test_a_denial_of_the_registry_is_an_answer():
    with NameServer(denial()) as server:
        assert ask(server).value == ()
    with NameServer(denial(rcode=dns.rcode.NOERROR)) as server:
        assert ask(server).value == ()


@pytest.mark.parametrize("owner", [".", "consul.example.", "onsul.", "dc1.consul."])
def test_a_denial_of_anybody_else_is_none(owner):
    with NameServer(denial(owner)) as public, NameServer(TWO) as own:
        assert places(ask(public, own)) == [("10.0.0.1", 80), ("10.0.0.2", 8080)]
    with NameServer(denial(owner)) as public, pytest.raises(RegistryUnavailable) as caught:
        ask(public)
    assert "NXDOMAIN from somebody who is not the authority of consul" in str(caught.value)
    assert [attempt.source for attempt in caught.value.attempts] == [f"DNS at {public.server}"]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_server_that_cannot_say_makes_room_for_the_next(rcode):
    def answer(query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        reply.set_rcode(rcode)
        return reply

    with NameServer(answer) as useless, NameServer(TWO) as useful:
        started = time.monotonic()
        assert len(ask(useless, useful).value) == 2
        assert time.monotonic() - started < 1.0


def test_a_closed_port_makes_room_at_once_and_a_silent_server_soon():
    with NameServer(lambda _: None) as silent, NameServer(TWO) as useful:
        assert len(ask(Server("127.0.0.1", free_port()), silent, useful).value) == 2


def test_when_nobody_answers_the_budget_holds_and_all_are_named():
    closed = Server("127.0.0.1", free_port())
    with NameServer(lambda _: None) as silent:
        started = time.monotonic()
        with pytest.raises(RegistryTimeout) as caught:
            ask(closed, silent, timeout=0.4)
        assert 0.4 <= time.monotonic() - started < 1.5
    assert {(a.source, a.error) for a in caught.value.attempts} == {
        (f"DNS at {closed}", "connection refused"),
        (f"DNS at {silent.server}", "no answer"),
    }


def test_without_a_server_the_error_says_so():
    with pytest.raises(RegistryUnavailable, match="there is no name server to ask for web"):
        ask()


def test_a_lost_datagram_is_sent_again():
    with NameServer(TWO, loses=1) as server:
        assert len(ask(server).value) == 2
    assert server.udp >= 2


def test_noise_and_answers_to_other_questions_are_not_heard():
    def answer(query: dns.message.Message) -> dns.message.Message:
        other = dns.message.make_query("other.service.consul.", "SRV")
        other.id = query.id
        return srv(("6.6.6.6", 6))(other)

    def forged(query: dns.message.Message) -> dns.message.Message:
        reply = srv(("6.6.6.6", 6))(query)
        reply.id ^= 1
        return reply

    for wrong in (answer, forged):
        with NameServer(wrong) as server, pytest.raises(RegistryTimeout):
            ask(server, timeout=0.3)


# --- what is in it -------------------------------------------------------------------------------------


def raw(*rows: str, additional: tuple[dns.rrset.RRset, ...] = ()):
    def answer(query: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(query)
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 30, "IN", "SRV", *rows))
        reply.additional.extend(additional)
        return reply

    return answer


@pytest.mark.parametrize(
    ("rows", "additional", "expected"),
    [
        (["1 1 80 0a000005.addr.dc1.consul."], (), ("10.0.0.5", 80)),
        (["1 1 80 20010db8000000000000000000000001.addr.dc1.consul."], (), ("2001:db8::1", 80)),
        (["1 1 80 zz000005.addr.dc1.consul."], (), ("zz000005.addr.dc1.consul", 80)),
        (["1 1 80 db.example.com."], (), ("db.example.com", 80)),
        (
            ["1 1 80 Host-1.node.dc1.consul."],
            (dns.rrset.from_text("host-1.node.dc1.consul.", 0, "IN", "AAAA", "2001:db8::7"),),
            ("2001:db8::7", 80),
        ),
        (["5 1 81 0a000002.addr.dc1.consul.", "1 1 80 0a000001.addr.dc1.consul."], (), ("10.0.0.1", 80)),
    ],
)
def test_the_place_of_an_instance(rows, additional, expected):
    with NameServer(raw(*rows, additional=additional)) as server:
        assert places(ask(server)) == [expected]


def test_the_node_is_known_where_the_target_names_it():
    with NameServer(raw("1 1 80 host-1.node.dc2.consul.")) as server:
        (entry,) = ask(server).value
    assert (entry.node.name, entry.node.dc) == ("host-1", "dc2")


def test_an_answer_from_memory_is_told_as_such():
    def stale(query: dns.message.Message) -> dns.message.Message:
        reply = TWO(query)
        assert reply is not None
        reply.use_edns(options=[dns.edns.EDEOption(dns.edns.EDECode.STALE_ANSWER)])
        return reply

    with NameServer(stale) as server:
        reply = ask(server)
    assert len(reply.value) == 2
    assert "answers what it knew" in str(reply.error)


# --- 14: whole sets ------------------------------------------------------------------------------------


MANY = srv(*((f"10.0.{n // 200}.{n % 200 + 1}", 1000 + n) for n in range(400)))


def cut(query: dns.message.Message) -> dns.message.Message:
    """As Consul: as much as fits, and not a word about the rest."""
    return srv(*((f"10.0.0.{n + 1}", 1000 + n) for n in range(60)))(query) or query


def truncated(query: dns.message.Message) -> dns.message.Message:
    reply = srv(("10.0.0.1", 1000))(query)
    assert reply is not None
    reply.flags |= dns.flags.TC
    return reply


@pytest.mark.parametrize("over_udp", [cut, truncated])
def test_14_a_set_that_may_be_cut_is_read_again_over_tcp(over_udp):
    with NameServer(over_udp, tcp=MANY) as server:
        assert len(ask(server).value) == 400
    assert server.tcp == 1


def test_14_a_small_set_needs_no_tcp():
    with NameServer(TWO) as server:
        ask(server)
    assert server.tcp == 0


def test_14_without_tcp_a_part_is_better_than_nothing():
    with NameServer(truncated, tcp=lambda _: None) as server:
        assert places(ask(server)) == [("10.0.0.1", 1000)]


@pytest.mark.parametrize("count", [5, 50, 500])
def test_14_consuls_dns_tells_as_many_as_its_http_api(consul_agent: ConsulAgent, count):
    node = {"Node": "catalogue", "Address": "10.9.9.9"}
    for n in range(count):
        place = {"Address": f"10.0.{n // 200}.{n % 200 + 1}", "Port": 1000 + n}
        row = {**node, "Service": {"ID": f"many-{n}", "Service": "many", **place}, "SkipNodeUpdate": n > 0}
        consul_agent.request("PUT", "/v1/catalog/register", row)
    try:
        rows = consul_agent.request("GET", "/v1/health/service/many")
        over_http = {(row["Service"]["Address"], row["Service"]["Port"]) for row in rows}
        assert len(over_http) == count
        reply = ask(Server("127.0.0.1", consul_agent.dns_port), query=service("many"))
        assert set(places(reply)) == over_http
    finally:
        consul_agent.request("PUT", "/v1/catalog/deregister", {"Node": "catalogue"})


def test_consuls_denial_counts(consul_agent: ConsulAgent):
    reply = ask(Server("127.0.0.1", consul_agent.dns_port), query=service("nobody"))
    assert reply.value == () and reply.error is None


# --- waiting for a change ------------------------------------------------------------------------------


def test_waiting_ends_with_a_change():
    with NameServer(srv(("10.0.0.1", 80))) as server, ThreadPoolExecutor(1) as threads:
        reader = Dns(lambda: [server.server]).connect()
        first = reader.read(WEB)
        waiting = threads.submit(reader.read, WEB, index=first.index, wait=30.0)
        wait_until(lambda: server.udp >= 2)
        server.answer = TWO
        second = waiting.result(10)
    assert len(second.value) == 2 and second.index == first.index + 1


def test_waiting_ends_when_its_time_is_over_with_what_is_known():
    with NameServer(TWO) as server:
        reader = Dns(lambda: [server.server]).connect()
        first = reader.read(WEB)
        again = reader.read(WEB, index=first.index, wait=0.1)
    assert (again.value, again.index) == (first.value, first.index)
    assert server.udp == 1


def test_the_ttl_is_the_pace_and_a_second_at_least():
    waits: list[float] = []

    class Slept(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(round(timeout or 0.0))
            return False

    with NameServer(srv(("10.0.0.1", 80), ttl=7)) as server:
        reader = Dns(lambda: [server.server]).connect()
        reader._interrupted = Slept()
        index = reader.read(WEB).index
        server.answer = srv(("10.0.0.2", 80), ttl=0)
        index = reader.read(WEB, index=index, wait=60.0).index
        server.answer = TWO
        reader.read(WEB, index=index, wait=60.0)
    assert waits == [7, round(REFRESH)]


def test_another_reader_knows_nothing_of_an_index():
    with NameServer(TWO) as server:
        reply = Dns(lambda: [server.server]).connect().read(WEB, index=1, wait=30.0)
    assert len(reply.value) == 2


@pytest.mark.parametrize("index", [0, 1])
def test_an_interrupt_ends_the_waiting(index):
    with NameServer(TWO if index else lambda _: None) as server, ThreadPoolExecutor(1) as threads:
        reader = Dns(lambda: [server.server]).connect()
        if index:
            reader.read(WEB)
        waiting = threads.submit(reader.read, WEB, index=index, wait=60.0, timeout=60.0)
        wait_until(lambda: server.udp >= 1)
        reader.interrupt()
        with pytest.raises(RegistryUnavailable):
            waiting.result(5)


# --- 22: name servers that change, and errors that are ours ---------------------------------------------


def test_22_the_servers_are_asked_for_with_each_question():
    with NameServer(denial()) as one, NameServer(TWO) as other:
        servers = [one.server]
        reader = Dns(lambda: servers).connect()
        assert reader.read(WEB).value == ()
        servers[:] = [other.server]
        assert len(reader.read(WEB).value) == 2


@pytest.mark.parametrize(
    "server", [Server("256.0.0.1"), Server("fe80::1%nowhere"), Server("203.0.113.1", 0), Server("no-address")]
)
def test_22_whatever_is_wrong_with_a_server_the_error_is_ours_and_the_next_is_asked(server):
    with NameServer(TWO) as useful:
        assert len(ask(server, useful).value) == 2
    with pytest.raises(RegistryUnavailable) as caught:
        ask(server, timeout=0.5)
    assert [attempt.source for attempt in caught.value.attempts] == [f"DNS at {server}"]
