"""resolver.forward: real upstreams on loopback, honest, silent, broken and forging."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from resolver import wire
from resolver.cache import Relayed
from resolver.forward import Forwarder, Health, NoUpstream, Upstream, UpstreamTimeout, order
from tests.resolver.upstream import Handler, reply
from tests.resolver.upstream import Upstream as Server
from tests.resolver.world import lines, query
from tests.tools import free_port

RECORD = "www.example.test. 60 IN A 192.0.2.1"


def honest(request: dns.message.Message, transport: str) -> dns.message.Message:
    return reply(request, RECORD)


def silent(request: dns.message.Message, transport: str) -> None:
    return None


def with_rcode(rcode: int) -> Handler:
    return lambda request, transport: reply(request, rcode=rcode)


def run(
    upstreams: Sequence[tuple[str, int]],
    use: Callable[[Forwarder], Awaitable[object]],
    *,
    attempt: float = 5.0,
    total: float = 10.0,
) -> object:
    """Run *use* with a forwarder to *upstreams*."""

    async def main() -> object:
        listed = [Upstream(*one) for one in upstreams]
        forwarder = Forwarder(lambda: listed, asyncio.get_running_loop(), attempt=attempt, total=total)
        try:
            return await use(forwarder)
        finally:
            await forwarder.close()

    return asyncio.run(main())


def ask(
    upstreams: Sequence[tuple[str, int]], name: str = "www.example.test", **limits: float
) -> dns.message.Message:
    relayed = run(upstreams, lambda forwarder: forwarder.ask(query(name)), **limits)
    assert isinstance(relayed, Relayed)
    return dns.message.from_wire(relayed.reply)


def test_a_question_is_answered() -> None:
    with Server(honest) as server:
        assert lines(ask([server.address]).answer) == ["www.example.test. 60 A 192.0.2.1"]


def test_what_leaves_carries_nothing_of_the_client_but_its_question() -> None:
    """RFC 7873 section 5.1 (cookies), RFC 7871 section 7.3 (client subnet); 0x20 letters pass through."""
    options = [dns.edns.CookieOption(b"12345678", b""), dns.edns.ECSOption("198.51.100.0", 24)]
    asked = query("wWw.example.test", ident=77, options=options, want_dnssec=True)
    with Server(honest) as server:
        run([server.address], lambda forwarder: forwarder.ask(asked))
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
        run([server.address], many)
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
        assert lines(ask([server.address]).answer) == ["www.example.test. 60 A 192.0.2.1"]


def test_a_reply_from_another_address_is_never_seen() -> None:
    """RFC 5452 section 9.1: the socket is connected, so the kernel drops what comes from elsewhere."""
    import socket

    def elsewhere(request: dns.message.Message, transport: str) -> bytes:
        client = server.asked[-1][3]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(reply(request, "www.example.test. 60 IN A 203.0.113.66").to_wire(), client)
        return honest(request, transport).to_wire()

    with Server(elsewhere) as server:
        assert lines(ask([server.address]).answer) == ["www.example.test. 60 A 192.0.2.1"]


def test_a_cut_reply_is_asked_for_again_over_tcp() -> None:
    """RFC 7766 section 5."""

    def cutting(request: dns.message.Message, transport: str) -> dns.message.Message:
        if transport == "tcp":
            return reply(request, *(f"www.example.test. 60 IN A 192.0.2.{i}" for i in range(200)))
        answer = reply(request)
        answer.flags |= dns.flags.TC
        return answer

    with Server(cutting) as server:
        assert len(lines(ask([server.address]).answer)) == 200
    assert [transport for _, transport, *_ in server.asked] == ["udp", "tcp"]


@pytest.mark.parametrize(
    "rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR, dns.rcode.NOTIMP]
)
def test_an_upstream_that_cannot_is_passed_over(rcode: int) -> None:
    with Server(with_rcode(rcode)) as unable, Server(honest) as able:
        assert ask([unable.address, able.address]).rcode() == dns.rcode.NOERROR


def test_nxdomain_is_final() -> None:
    with Server(with_rcode(dns.rcode.NXDOMAIN)) as first, Server(honest) as second:
        assert ask([first.address, second.address]).rcode() == dns.rcode.NXDOMAIN
    assert second.asked == []


def test_when_all_refuse_the_client_learns_what_they_said() -> None:
    with Server(with_rcode(dns.rcode.REFUSED)) as one, Server(with_rcode(dns.rcode.SERVFAIL)) as two:
        assert ask([one.address, two.address]).rcode() == dns.rcode.SERVFAIL


def test_a_silent_upstream_costs_one_attempt_and_then_others_are_asked_first() -> None:
    async def twice(forwarder: Forwarder) -> None:
        await forwarder.ask(query("a.example.test"))
        await forwarder.ask(query("b.example.test"))

    with Server(silent) as dead, Server(honest) as alive:
        run([dead.address, alive.address], twice, attempt=0.2)
    assert [name for name, *_ in dead.asked] == ["a.example.test. A"]
    assert [name for name, *_ in alive.asked] == ["a.example.test. A", "b.example.test. A"]


def test_a_lost_packet_is_sent_again() -> None:
    def deaf_once(request: dns.message.Message, transport: str) -> dns.message.Message | None:
        return honest(request, transport) if len(server.asked) > 1 else None

    with Server(deaf_once) as server:
        assert ask([server.address], attempt=0.2).rcode() == dns.rcode.NOERROR


def test_nobody_answers() -> None:
    with Server(silent) as server, pytest.raises(UpstreamTimeout, match=str(server.port)):
        ask([server.address, ("127.0.0.1", free_port())], attempt=0.1, total=0.3)


def test_nobody_to_ask() -> None:
    with pytest.raises(NoUpstream, match="--upstream"):
        ask([])


def test_equal_questions_under_way_are_one() -> None:
    """RFC 5452 section 5."""

    async def together(forwarder: Forwarder) -> list[Relayed]:
        names = ["www.example.test", "WWW.example.test"] * 10
        return await asyncio.gather(*(forwarder.ask(query(name)) for name in names))

    with Server(honest) as server:
        relayed = run([server.address], together)
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
        relayed = run([server.address], one_leaves)
    assert isinstance(relayed, Relayed)


def test_a_failed_upstream_comes_last_until_it_may_be_tried_again() -> None:
    a, b, c = (Upstream(f"192.0.2.{i}") for i in range(3))
    health = {a: Health().failed(now=100.0)}
    assert order([a, b, c], health, now=100.5) == [b, c, a]
    assert order([a, b, c], health, now=101.5) == [a, b, c]
    again = health[a].failed(now=101.5)
    assert again.retry_at - 101.5 == 2.0
    for _ in range(50):
        again = again.failed(now=0.0)
    assert again.retry_at == 30.0
