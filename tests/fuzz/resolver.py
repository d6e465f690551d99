"""Random and mutated packets and upstream replies, thrown at the resolver's engine.

    python -m tests.fuzz.resolver --count 10000000 --seed 1

What must hold: no exception, no reply longer than the client asked for, no reply to a reply, and every reply
is a message that dnspython can read. A packet that breaks it is printed in hexadecimal, for the corpus.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random

import dns.exception
import dns.message

from resolver import wire
from resolver.answers import Limits
from resolver.cache import Relayed
from resolver.engine import Answer, AnswerSettings, Engine, Forward, Transport
from resolver.zone import ZoneSettings
from tests.resolver.world import SERIAL, entry, facts, node, packet

__all__ = ["corpus", "make_engine", "mutate", "request", "upstream_reply"]

_CORPUS = Path(__file__).with_name("corpus")
_READ_EVERY = 50  # of the replies, by dnspython: it takes longer than the engine


def corpus(kind: str) -> list[bytes]:
    """The packets of one kind (``requests`` or ``replies``) that every run begins with."""
    text = (_CORPUS / f"{kind}.txt").read_text()
    return [bytes.fromhex(line) for line in text.splitlines() if line and not line.startswith("#")]


def make_engine() -> Engine:
    """An engine that knows a small catalogue, one service of it large enough to be cut."""
    engine = Engine(
        ZoneSettings(),
        AnswerSettings(),
        monotonic=lambda: 1000.0,
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


def mutate(raw: bytes, random: Random) -> bytes:
    """Change a few octets, cut, repeat or extend."""
    changed = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed)) if changed else 0
        match random.randrange(6):
            case 0 if changed:
                changed[at] = random.randrange(256)
            case 1 if changed:
                changed[at] ^= 1 << random.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = random.randbytes(random.randint(1, 12))
            case 4 if changed:
                changed[at:at] = changed[at : at + random.randint(1, 24)]
            case 5 if changed:
                changed[at] = random.choice((0, 1, 63, 64, 0xC0, 0xFF))
    return bytes(changed)


def request(engine: Engine, raw: bytes, transport: Transport, *, read: bool = True) -> None:
    """Decide about *raw* and check what comes of it."""
    decision = engine.decide(raw, transport)
    if not isinstance(decision, Answer):
        return
    reply = decision.reply
    query = wire.parse(raw)
    assert query is not None, "a reply to what is no question"
    assert reply[:2] == raw[:2], "another id"
    assert reply[2] & 0x80, "a reply that is none"
    if transport == "tcp":
        limit = 65_535
    elif isinstance(query, wire.Query) and query.edns is not None:
        limit = max(512, query.edns.size)
    else:
        limit = 512
    assert len(reply) <= limit, f"{len(reply)} octets, {limit} were asked for"
    if read:
        dns.message.from_wire(reply)


def upstream_reply(engine: Engine, raw: bytes, size: int) -> None:
    """Take *raw* for an upstream's reply, keep it, and give it to a client that takes *size* octets."""
    forward = engine.decide(packet("www.example.test", edns=size), "udp")
    try:
        relayed = Relayed.from_wire(raw, 1000.0)
    except wire.Malformed:
        return
    limits = Limits(size, 0, edns=True)
    query = wire.Query.of(wire.name_from_text("www.example.test"), wire.A)
    assert len(relayed.to_wire(query, limits, 1005.0)) <= size
    if isinstance(forward, Forward):
        assert len(engine.relay(forward, relayed).reply) <= size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    random = Random(options.seed)
    engine = make_engine()
    requests, replies = corpus("requests"), corpus("replies")
    started = time.monotonic()
    for number in range(options.count):
        raw = b""
        try:
            match random.randrange(4):
                case 0:
                    raw = random.randbytes(random.randrange(80))
                    request(engine, raw, "udp", read=number % _READ_EVERY == 0)
                case 1 | 2:
                    raw = mutate(random.choice(requests), random)
                    transport: Transport = "udp" if random.random() < 0.7 else "tcp"
                    request(engine, raw, transport, read=number % _READ_EVERY == 0)
                case _:
                    raw = mutate(random.choice(replies), random)
                    upstream_reply(engine, raw, random.choice((512, 1232, 4096)))
        except (Exception, AssertionError):
            print(f"after {number} packets: {raw.hex()}")
            raise
    print(
        f"{options.count} packets in {time.monotonic() - started:.0f} s, seed {options.seed}: nothing found"
    )


if __name__ == "__main__":
    main()
