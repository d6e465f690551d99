"""Random, odd and mutated packets, upstream replies and TCP streams, thrown at the resolver.

    python -m tests.fuzz.resolver --count 10000000 --seed 1

What must hold: no exception, no reply longer than the client asked for, no reply to a reply, an OPT where
there was one and nowhere else, nothing behind the last record, and every reply of our own making is one that
dnspython can read. A packet that breaks it is printed in hexadecimal, for the corpus.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Final, cast

import dns.message

from resolver import wire
from resolver.answers import Table
from resolver.cache import Relayed
from resolver.endpoints import Send, TcpConnection
from resolver.engine import Answer, AnswerSettings, Engine, Forward, Transport
from resolver.metrics import Sample
from resolver.policy import LOOPBACK, Policy
from resolver.zone import ZoneSettings
from tests.fuzz.packets import broken_stream, corpus, mutate, odd_reply, odd_request
from tests.resolver.world import SERIAL, entry, facts, node, packet

__all__ = ["Clock", "make_engine", "request", "run", "stream", "upstream_reply"]

_READ_EVERY: Final = 50  # of the replies, by dnspython: it takes longer than the engine
_MAX_TCP: Final = 65_535  # octets (RFC 1035 section 4.2.2)
_FORWARDED: Final = "www.example.test"


class Clock:
    """The time, which passes when the run says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_engine(clock: Clock | None = None) -> Engine:
    """An engine that knows a small catalogue, one service of it large enough to be cut."""
    engine = Engine(
        ZoneSettings(),
        AnswerSettings(),
        monotonic=clock or Clock(),
        wall_clock=lambda: float(SERIAL),
        random=Random(1),
    )
    known = facts(
        *(entry("web", f"10.0.{i // 250}.{i % 250}", 8000 + i, on=node(f"n{i}")) for i in range(300)),
        entry("api", "", 80, tags=["v1"]),
        entry("sick", status="critical"),
    )
    for query, fact in known.items():
        engine.learn(query, fact)
    return engine


# --- what must hold ----------------------------------------------------------------------------------------


def request(engine: Engine, raw: bytes, transport: Transport, *, read: bool = True) -> None:
    """Decide about *raw* and check what comes of it."""
    decision = engine.decide(raw, transport)
    if not isinstance(decision, Answer):
        return
    query = wire.parse(raw)
    assert query is not None, "a reply to what is no question"
    check(decision.reply, raw, query, transport)
    if read and decision.reply[2] & 0x04:  # authoritative: of our own making, and not an upstream's
        dns.message.from_wire(decision.reply)


def check(reply: bytes, raw: bytes, query: wire.Query | wire.Refusal, transport: Transport) -> None:
    """Raise AssertionError unless *reply* is one that the client which sent *raw* may be sent."""
    assert reply[:2] == raw[:2], "another id"
    assert reply[2] & 0x80, "a reply that is none"
    edns = query.edns if isinstance(query, wire.Query) else None
    limit = _MAX_TCP if transport == "tcp" else edns.size if edns is not None else 512
    assert len(reply) <= limit, f"{len(reply)} octets, {limit} were asked for"
    if not query.question:
        assert len(reply) == wire.HEADER_LENGTH, "more than a header"
        return
    assert reply[12 : 12 + len(query.question)] == query.question, "another question"
    counts = [int.from_bytes(reply[at : at + 2]) for at in (6, 8, 10)]
    at, opts = 12 + len(query.question), 0
    for _ in range(sum(counts)):
        owner_end = wire.skip_name(reply, at)
        opts += int.from_bytes(reply[owner_end : owner_end + 2]) == wire.OPT
        at = wire.skip_record(reply, at)
    assert at == len(reply), f"{len(reply) - at} octets behind the last record"
    assert opts == (edns is not None), f"{opts} OPT records for {edns}"  # RFC 6891 section 7


def upstream_reply(engine: Engine, raw: bytes, size: int | None, *, read: bool = True) -> None:
    """Take *raw* for the reply to a forwarded question, and tell it to a client; None: one without EDNS."""
    asked = packet(_FORWARDED, edns=size)
    query = wire.parse(asked)
    assert isinstance(query, wire.Query)
    decision = engine.decide(asked, "udp")
    try:
        relayed = Relayed.from_wire(raw, 1000.0)
    except wire.Malformed:
        return
    if wire.fold_question(relayed.frame.question) != query.question:
        return  # the forwarder does not take it for a reply
    if read:
        with contextlib.suppress(wire.Malformed):  # the client may still have records that we cannot read
            relayed.to_fact()
    engine.keep(query, relayed)
    if isinstance(decision, Forward):
        check(engine.relay(decision, relayed).reply, asked, query, "udp")
    else:
        assert isinstance(decision, Answer), decision
        check(decision.reply, asked, query, "udp")
    for transport in ("udp", "tcp"):  # from the cache, if it was worth keeping
        again = engine.decide(asked, cast(Transport, transport))
        if isinstance(again, Answer):
            check(again.reply, asked, query, cast(Transport, transport))


# --- TCP ---------------------------------------------------------------------------------------------------


class _Loop:
    """As much of a loop as a connection uses."""

    def time(self) -> float:
        return 0.0

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Loop:
        return self

    def cancel(self) -> None: ...


class _Transport:
    """Takes what a connection writes."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.aborted = False

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def write(self, data: bytes) -> None:
        if not self.aborted:
            self.written += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class _Service:
    """What connections serve: the engine's answers, SERVFAIL where it would have to ask others."""

    def __init__(self, engine: Engine) -> None:
        self.loop = cast(asyncio.AbstractEventLoop, _Loop())
        self.policy = Policy(LOOPBACK, rate=0)
        self.tcp_idle = 10.0
        self._engine = engine

    def table(self, transport: Transport) -> Table:
        return self._engine.tables[transport]

    def admits(self, packet: bytes, source: str, transport: Transport, send: Send) -> bool:
        self.policy.judge(source)
        return True

    def handle(self, packet: bytes, source: str, transport: Transport, send: Send) -> bool:
        decision = self._engine.decide(packet, transport)
        if isinstance(decision, Answer):
            send(decision.reply)
            return True
        query = wire.parse(packet)
        if query is None:
            return False
        send(self._engine.refuse(query, wire.SERVFAIL).reply)
        return True

    def sample(self, count: int) -> range:
        return range(0)

    def log(self, packet: bytes, source: str) -> None: ...

    def connected(self, connection: TcpConnection) -> bool:
        return True

    def disconnected(self, connection: TcpConnection) -> None: ...

    def samples(self) -> Iterable[Sample]:
        return ()


def stream(engine: Engine, pieces: Sequence[bytes]) -> None:
    """Feed *pieces* to a TCP connection: each whole request has one reply, in its frame, in order."""
    connection, transport = TcpConnection(cast(Any, _Service(engine))), _Transport()
    connection.connection_made(cast(Any, transport))
    for piece in pieces:
        if transport.aborted:
            break
        connection.data_received(piece)
    connection.connection_lost(None)
    expected, received = [], b"".join(pieces)
    while len(received) >= 2 + (length := int.from_bytes(received[:2])):
        raw, received = received[2 : 2 + length], received[2 + length :]
        if wire.parse(raw) is None:
            break  # here the connection ends
        expected.append(raw)
    written = bytes(transport.written)
    for raw in expected:
        length = int.from_bytes(written[:2])
        reply, written = written[2 : 2 + length], written[2 + length :]
        assert len(reply) == length, "the last frame is not whole"
        query = wire.parse(raw)
        assert query is not None
        check(reply, raw, query, "tcp")
    assert not written, f"{len(written)} octets too many"


# --- the run -----------------------------------------------------------------------------------------------


def run(count: int, seed: int) -> None:
    """Throw *count* packets.

    Raises:
        AssertionError, Exception: one was too much; it is printed.
    """
    random, clock = Random(seed), Clock()
    engine = make_engine(clock)
    requests, replies = corpus("requests"), corpus("replies")
    forwarded = wire.parse(packet(_FORWARDED))
    assert isinstance(forwarded, wire.Query)
    known = len(engine.facts)

    def any_request() -> bytes:
        match random.randrange(5):
            case 0:
                return random.randbytes(random.randrange(80))
            case 1 | 2:
                return mutate(random.choice(requests), random)
        return odd_request(random)

    for number in range(count):
        raw: bytes | list[bytes] = b""
        try:
            read = number % _READ_EVERY == 0
            match random.randrange(20):
                case 0:
                    raw = broken_stream([any_request() for _ in range(random.randint(1, 6))], random)
                    stream(engine, raw)
                case 1 | 2 | 3:
                    raw = mutate(random.choice(replies), random)
                    upstream_reply(engine, raw, random.choice((None, 512, 1232, 4096)), read=read)
                case 4 | 5 | 6:
                    raw = odd_reply(forwarded.question, random)
                    upstream_reply(engine, raw, random.choice((None, 512, 1232, 4096)), read=read)
                case _:
                    raw = any_request()
                    transport: Transport = "udp" if random.random() < 0.7 else "tcp"
                    request(engine, raw, transport, read=read)
        except (Exception, AssertionError):
            pieces = [raw] if isinstance(raw, bytes) else raw
            print(f"seed {seed}, after {number} packets: {' '.join(piece.hex() for piece in pieces)}")
            raise
        if number % 100 == 0:  # what is kept expires, and hot answers go with the second
            clock.now += random.choice((0.1, 1.0, 40.0))
            engine.tick()
    assert len(engine.facts) == known, "a packet taught the engine something"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    run(options.count, options.seed)
    took = time.monotonic() - started
    print(f"{options.count} packets in {took:.0f} s, seed {options.seed}: nothing found")


if __name__ == "__main__":
    main()
