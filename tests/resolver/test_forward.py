"""resolver.forward: real upstreams on loopback, honest, silent, broken and forging."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver import wire
from resolver.cache import Relayed
from resolver.forward import Forwarder, Health, NoUpstream, Routes, Upstream, UpstreamTimeout, order
from resolver.wire import Name, name_from_text
from tests.resolver.upstream import Handler, reply
from tests.resolver.upstream import Upstream as Server
from tests.resolver.world import lines, query
from tests.tools import free_port

RECORD = "www.example.test. 60 IN A 192.0.2.1"


def honest(request: dns.message.Message, transport: str) -> dns.message.Message:
    return reply(request, RECORD)


def at(server: Server) -> Upstream:
    return Upstream(*server.address)


def silent(request: dns.message.Message, transport: str) -> None:
    return None


def with_rcode(rcode: int) -> Handler:
    return lambda request, transport: reply(request, rcode=rcode)


def run(
    upstreams: Sequence[Upstream],
    use: Callable[[Forwarder], Awaitable[object]],
    *,
    attempt: float = 5.0,
    total: float = 10.0,
    learned: Callable[[wire.Query, object], None] = lambda *_: None,
) -> object:
    """Run *use* with a forwarder to *upstreams*."""

    async def main() -> object:
        loop, routes = asyncio.get_running_loop(), Routes(lambda: upstreams)
        forwarder = Forwarder(routes, loop, attempt=attempt, total=total, learned=learned)
        try:
            return await use(forwarder)
        finally:
            await forwarder.close()

    return asyncio.run(main())


def ask(
    upstreams: Sequence[Upstream], name: str = "www.example.test", **limits: float
) -> dns.message.Message:
    relayed = run(upstreams, lambda forwarder: forwarder.ask(query(name)), **limits)
    assert isinstance(relayed, Relayed)
    return dns.message.from_wire(relayed.reply)


def test_a_question_is_answered() -> None:
    with Server(honest) as server:
        assert lines(ask([at(server)]).answer) == ["www.example.test. 60 A 192.0.2.1"]


def test_what_leaves_carries_nothing_of_the_client_but_its_question() -> None:
    """RFC 7873 section 5.1 (cookies), RFC 7871 section 7.3 (client subnet); 0x20 letters pass through."""
    options = [dns.edns.CookieOption(b"12345678", b""), dns.edns.ECSOption("198.51.100.0", 24)]
    asked = query("wWw.example.test", ident=77, options=options, want_dnssec=True)
    with Server(honest) as server:
        run([at(server)], lambda forwarder: forwarder.ask(asked))
    ((_, _, request, _),) = server.asked
    assert request.question[0].name.labels[0] == b"wWw"
    assert request.options == ()
    assert request.payload == wire.OUR_UDP_SIZE
    assert request.ednsflags & dns.flags.DO
    assert request.flags & dns.flags.RD


def test_ids_and_ports_are_fresh_for_each_question() -> None:
    """RFC 5452 section 9.2."""

    async def many(forwarder: Forwarder) -> None:
        for i in range(30):
            await forwarder.ask(query(f"n{i}.example.test", ident=5))

    with Server(honest) as server:
        run([at(server)], many)
    assert len({request.id for _, _, request, _ in server.asked}) > 25
    assert len({client[1] for *_, client in server.asked}) > 25


@pytest.mark.parametrize("what", ["id", "question", "no question", "a question", "garbage"])
def test_forged_replies_are_ignored_and_the_true_one_is_taken(what: str) -> None:
    """RFC 5452 section 9.1."""

    def forging(request: dns.message.Message, transport: str) -> list[bytes]:
        forged = reply(request, "www.example.test. 60 IN A 203.0.113.66")
        raw = forged.to_wire()
        match what:
            case "id":
                raw = bytes([raw[0] ^ 1]) + raw[1:]
            case "question":
                raw = raw.replace(b"\3www", b"\3xxx", 1)
            case "no question":
                raw = raw[:4] + b"\0\0" + raw[6:]
            case "a question":
                raw = raw[:2] + bytes([raw[2] & 0x7F]) + raw[3:]
            case "garbage":
                raw = b"\xff" * 7
        return [raw, honest(request, transport).to_wire()]

    with Server(forging) as server:
        assert lines(ask([at(server)]).answer) == ["www.example.test. 60 A 192.0.2.1"]


def test_a_reply_from_another_address_is_never_seen() -> None:
    """RFC 5452 section 9.1: the socket is connected, so the kernel drops what comes from elsewhere."""
    import socket

    def elsewhere(request: dns.message.Message, transport: str) -> bytes:
        client = server.asked[-1][3]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(reply(request, "www.example.test. 60 IN A 203.0.113.66").to_wire(), client)
        return honest(request, transport).to_wire()

    with Server(elsewhere) as server:
        assert lines(ask([at(server)]).answer) == ["www.example.test. 60 A 192.0.2.1"]


def test_a_cut_reply_is_asked_for_again_over_tcp() -> None:
    """RFC 7766 section 5."""

    def cutting(request: dns.message.Message, transport: str) -> dns.message.Message:
        if transport == "tcp":
            return reply(request, *(f"www.example.test. 60 IN A 192.0.2.{i}" for i in range(200)))
        answer = reply(request)
        answer.flags |= dns.flags.TC
        return answer

    with Server(cutting) as server:
        assert len(lines(ask([at(server)]).answer)) == 200
    assert [transport for _, transport, *_ in server.asked] == ["udp", "tcp"]


@pytest.mark.parametrize(
    "rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR, dns.rcode.NOTIMP]
)
def test_an_upstream_that_cannot_is_passed_over(rcode: int) -> None:
    with Server(with_rcode(rcode)) as unable, Server(honest) as able:
        assert ask([at(unable), at(able)]).rcode() == dns.rcode.NOERROR


def test_nxdomain_is_final() -> None:
    with Server(with_rcode(dns.rcode.NXDOMAIN)) as first, Server(honest) as second:
        assert ask([at(first), at(second)]).rcode() == dns.rcode.NXDOMAIN
    assert second.asked == []


def test_when_all_refuse_the_client_learns_what_they_said() -> None:
    with Server(with_rcode(dns.rcode.REFUSED)) as one, Server(with_rcode(dns.rcode.SERVFAIL)) as two:
        assert ask([at(one), at(two)]).rcode() == dns.rcode.SERVFAIL


def test_a_silent_upstream_costs_one_wait_and_then_others_are_asked_first() -> None:
    async def use(forwarder: Forwarder) -> None:
        await forwarder.ask(query("a.example.test"))
        while not (health := forwarder.health.get(at(dead))) or not health.failures:
            await asyncio.sleep(0.01)
        await forwarder.ask(query("b.example.test"))

    with Server(silent) as dead, Server(honest) as alive:
        run([at(dead), at(alive)], use, attempt=0.5)
    assert "b.example.test. A" not in [name for name, *_ in dead.asked]
    assert [name for name, *_ in alive.asked] == ["a.example.test. A", "b.example.test. A"]


def test_a_slow_upstream_is_not_waited_for() -> None:
    """The second is asked when the first takes longer than it usually does; the first good reply counts."""

    async def use(forwarder: Forwarder) -> float:
        started = asyncio.get_running_loop().time()
        await forwarder.ask(query("www.example.test"))
        return asyncio.get_running_loop().time() - started

    with Server(silent) as slow, Server(honest) as quick:
        took = run([at(slow), at(quick)], use, attempt=5.0)
        assert isinstance(took, float)
        assert took < 2.5, "long before the attempt at the first ends"


def test_an_upstream_that_is_back_is_found_by_a_probe() -> None:
    up = threading.Event()

    def waking(request: dns.message.Message, transport: str) -> dns.message.Message | None:
        return honest(request, transport) if up.is_set() else None

    async def use(forwarder: Forwarder) -> None:
        await forwarder.ask(query("a.example.test"))
        while at(first) not in forwarder.health or not forwarder.health[at(first)].failures:
            await asyncio.sleep(0.01)
        up.set()
        while forwarder.health[at(first)].failures:
            await asyncio.sleep(0.01)

    with Server(waking) as first, Server(honest) as second:
        run([at(first), at(second)], use, attempt=0.3)
    assert ". NS" in [name for name, *_ in first.asked], "no client's question was spent on it"


def test_a_lost_packet_is_sent_again() -> None:
    def deaf_once(request: dns.message.Message, transport: str) -> dns.message.Message | None:
        return honest(request, transport) if len(server.asked) > 1 else None

    with Server(deaf_once) as server:
        assert ask([at(server)], attempt=0.2).rcode() == dns.rcode.NOERROR


def test_nobody_answers() -> None:
    with Server(silent) as server, pytest.raises(UpstreamTimeout, match=str(server.port)):
        ask([at(server), Upstream("127.0.0.1", free_port())], attempt=0.1, total=0.3)


def test_nobody_to_ask() -> None:
    with pytest.raises(NoUpstream, match="--upstream"):
        ask([])


def test_equal_questions_under_way_are_one() -> None:
    """RFC 5452 section 5."""

    async def together(forwarder: Forwarder) -> list[Relayed]:
        names = ["www.example.test", "WWW.example.test"] * 10
        return await asyncio.gather(*(forwarder.ask(query(name)) for name in names))

    with Server(honest) as server:
        relayed = run([at(server)], together)
    assert isinstance(relayed, list)
    assert len(relayed) == 20
    assert len(server.asked) == 1


def test_a_client_that_goes_away_does_not_take_the_answer_from_others() -> None:
    async def one_leaves(forwarder: Forwarder) -> Relayed:
        leaving = asyncio.create_task(forwarder.ask(query("www.example.test")))
        staying = asyncio.create_task(forwarder.ask(query("www.example.test")))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    with Server(honest) as server:
        relayed = run([at(server)], one_leaves)
    assert isinstance(relayed, Relayed)


def test_a_failed_upstream_comes_last() -> None:
    a, b, c = (Upstream(f"192.0.2.{i}") for i in range(3))
    assert order([a, b, c], {a: Health().failed()}) == [b, c, a]
    assert order([a, b, c], {a: Health().failed().answered(0.1)}) == [a, b, c]
    pauses = []
    health = Health()
    for _ in range(50):
        health = health.failed()
        pauses.append(health.pause)
    assert pauses[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert pauses[-1] == 30.0


@given(st.lists(st.floats(0.0001, 2.0), min_size=1))
def test_patience_follows_the_usual_time_within_bounds(times: list[float]) -> None:
    health = Health()
    for seconds in times:
        health = health.answered(seconds)
    assert health.rtt is not None
    assert min(times) * 0.999 <= health.rtt <= max(times) * 1.001
    assert 0.05 <= health.patience <= 0.4


def test_what_came_of_a_question_is_told_once() -> None:
    told: list[tuple[str, object]] = []

    async def use(forwarder: Forwarder) -> None:
        await asyncio.gather(*(forwarder.ask(query("www.example.test")) for _ in range(5)))
        with contextlib.suppress(UpstreamTimeout):
            await forwarder.ask(query("silent.example.test"))

    def answer(request: dns.message.Message, transport: str) -> dns.message.Message | None:
        return None if "silent" in str(request.question[0].name) else honest(request, transport)

    with Server(answer) as server:
        run(
            [at(server)],
            use,
            attempt=0.2,
            total=0.3,
            learned=lambda query, outcome: told.append((wire.name_to_text(query.name), outcome)),
        )
    assert [name for name, _ in told] == ["www.example.test.", "silent.example.test."]
    assert isinstance(told[0][1], Relayed)
    assert isinstance(told[1][1], UpstreamTimeout)


# --- upstreams of their own for some domains


def test_the_longest_domain_decides() -> None:
    a, b, c = (Upstream(f"192.0.2.{i}") for i in range(3))
    domains = {name_from_text("corp.example"): (a,), name_from_text("lab.corp.example"): (b,)}
    routes = Routes(lambda: (c,), domains)
    for name, upstream in (
        ("x.LAB.corp.example", b), ("lab.corp.example", b), ("corp.example", a), ("x.corp.example", a),
        ("notcorp.example", c), ("example", c), (".", c),
    ):  # fmt: skip
        assert routes.upstreams(name_from_text(name)) == (upstream,), name
    assert Routes(lambda: (c,), {Name(()): (a,)}).upstreams(name_from_text("x.example")) == (a,)


# --- TLS


async def serve_tls(
    certificate: Path, use: Callable[[int, list[int]], Awaitable[object]], *, forgetful: bool = False
) -> object:
    """Run *use* with the port of a DNS-over-TLS server and the number of questions of each connection.

    Args:
        forgetful: the first connection answers once, and then swallows what it is asked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    connections: list[int] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(connections)
        connections.append(0)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                raw = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                connections[number] += 1
                if forgetful and number == 0 and connections[number] > 1:
                    continue
                answer = honest(dns.message.from_wire(raw), "tls").to_wire()
                writer.write(len(answer).to_bytes(2) + answer)
                if connections[number] == 3:
                    break  # servers close connections when they like
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with server:
        return await use(server.sockets[0].getsockname()[1], connections)


@pytest.mark.parametrize("name", ["", "dns.example.test"])
def test_questions_over_tls_share_a_connection_and_survive_its_end(certificate: Path, name: str) -> None:
    """RFC 7858, RFC 7766 section 6.2.1."""
    context = ssl.create_default_context(cafile=f"{certificate}.crt")

    async def use(port: int, connections: list[int]) -> None:
        upstream = Upstream("127.0.0.1", port, tls=True, tls_name=name)
        loop = asyncio.get_running_loop()
        forwarder = Forwarder(Routes(lambda: [upstream]), loop, attempt=5.0, total=5.0, tls=context)
        for i in range(5):
            assert (await forwarder.ask(query(f"n{i}.example.test"))).frame.rcode == wire.NOERROR
        await forwarder.close()
        assert connections == [3, 2]

    asyncio.run(serve_tls(certificate, use))


def test_a_connection_that_swallows_questions_is_given_up(certificate: Path) -> None:
    """Something on the way has forgotten it, and says nothing."""
    context = ssl.create_default_context(cafile=f"{certificate}.crt")

    async def use(port: int, connections: list[int]) -> None:
        upstream = Upstream("127.0.0.1", port, tls=True)
        loop = asyncio.get_running_loop()
        forwarder = Forwarder(Routes(lambda: [upstream]), loop, attempt=0.3, total=5.0, tls=context)
        for i in range(3):
            assert (await forwarder.ask(query(f"n{i}.example.test"))).frame.rcode == wire.NOERROR
        await forwarder.close()
        assert connections == [2, 2]

    asyncio.run(serve_tls(certificate, use, forgetful=True))


def test_a_certificate_that_does_not_fit_is_no_upstream(certificate: Path) -> None:
    context = ssl.create_default_context(cafile=f"{certificate}.crt")

    async def use(port: int, connections: list[int]) -> None:
        upstream = Upstream("127.0.0.1", port, tls=True, tls_name="other.example.test")
        loop = asyncio.get_running_loop()
        forwarder = Forwarder(Routes(lambda: [upstream]), loop, attempt=0.5, total=0.5, tls=context)
        with pytest.raises(UpstreamTimeout):
            await forwarder.ask(query("www.example.test"))
        await forwarder.close()

    asyncio.run(serve_tls(certificate, use))


def test_questions_under_way_on_one_connection_get_their_own_replies() -> None:
    def cut(request: dns.message.Message, transport: str) -> dns.message.Message:
        answer = honest(request, transport)
        if transport == "udp":
            answer.flags |= dns.flags.TC
        return answer

    async def use(forwarder: Forwarder) -> list[Relayed]:
        return await asyncio.gather(*(forwarder.ask(query(f"n{i}.example.test")) for i in range(3)))

    with Server(cut) as server:
        relayed = run([at(server)], use)
    assert isinstance(relayed, list)
    assert [one.frame.question[1:3] for one in relayed] == [b"n0", b"n1", b"n2"]
