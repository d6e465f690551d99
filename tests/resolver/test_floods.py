"""Floods of what an attacker can vary without end: after 200,000 requests no table is beyond its bound.

In process, with a clock of the test's: what a flood leaves behind is counted, not timed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from random import Random

from discovery.model import Query
from resolver import wire
from resolver.cache import Relayed
from resolver.engine import AnswerSettings, Engine
from resolver.facts import Fact
from resolver.forward import Forwarder, Routes, UpstreamTimeout
from resolver.forward import Upstream as At
from resolver.policy import Policy, Verdict
from resolver.zone import ZoneSettings
from tests.resolver.world import SERIAL, entry, facts, node

COUNT = 200_000
KNOWN_NAMES = 50
PASSING = 4_096
"""Prepared answers that a flood may leave in each table: the part for what does not last."""
KEYS = 8  # spellings kept hot for each


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def question(name: bytes, qtype: int = 1, *, flags: int = 0x0100, edns: bytes = b"") -> bytes:
    """A request, as bytes: dnspython would take most of the time."""
    labels = b"".join(bytes((len(label),)) + label for label in name.split(b"."))
    head = b"\0\1" + flags.to_bytes(2) + b"\0\1\0\0\0\0" + (b"\0\1" if edns else b"\0\0")
    return head + labels + b"\0" + qtype.to_bytes(2) + b"\0\1" + edns


def opt(size: int, ttl: int = 0, options: bytes = b"") -> bytes:
    return b"\0\0\x29" + size.to_bytes(2) + ttl.to_bytes(4) + len(options).to_bytes(2) + options


def engine(clock: Clock) -> Engine:
    made = Engine(
        ZoneSettings(),
        AnswerSettings(cache_octets=1 << 20),
        monotonic=clock,
        wall_clock=lambda: float(SERIAL),
        random=Random(1),
    )
    known: dict[Query, Fact] = facts(
        *(entry(f"s{i}", f"10.0.0.{i + 1}", tags=["v1"], on=node(f"n{i}")) for i in range(KNOWN_NAMES))
    )
    for query, fact in known.items():
        made.learn(query, fact)
    return made


def sizes(made: Engine) -> dict[str, int]:
    """How many entries each thing that the engine remembers has."""
    found = {"facts": len(made.facts), "counts": len(made.counts()), "failures": len(made._cache._failures)}
    for transport, table in made.tables.items():
        found[f"{transport} passing"] = len(table._ages[False])
        found[f"{transport} lasting"] = len(table._ages[True])
        found[f"{transport} hot"] = len(table.hot)
        found[f"{transport} keys"] = len(table._runs)
        found[f"{transport} uses"] = sum(map(len, table._by_use.values()))
    return found


def _letters(random: Random, name: bytes) -> bytes:
    return bytes(octet ^ 0x20 if chr(octet).isalpha() and random.random() < 0.5 else octet for octet in name)


FLOODS: dict[str, Callable[[Random, int], bytes]] = {
    "services that do not exist": lambda random, i: question(b"x%d.service.consul" % i),
    "tags that do not exist": lambda random, i: question(b"t%d.s1.service.consul" % i),
    "protocols that do not exist": lambda random, i: question(b"_s1._t%d.service.consul" % i, 33),
    "nodes that do not exist": lambda random, i: question(b"x%d.node.consul" % i),
    "addresses": lambda random, i: question(b"%08x.addr.consul" % random.getrandbits(32)),
    "labels under the zone": lambda random, i: question(b"x%d.y%d.consul" % (i, i)),
    "questions for the zone's records": lambda random, i: question(b"x%d.consul" % i, random.choice((2, 6))),
    "random case": lambda random, i: question(_letters(random, b"s%d.service.consul" % (i % KNOWN_NAMES))),
    "types": lambda random, i: question(b"s%d.service.consul" % (i % KNOWN_NAMES), random.getrandbits(16)),
    "types of other names": lambda random, i: question(b"a.invalid", random.getrandbits(16)),
    "flags": lambda random, i: question(b"s1.service.consul", flags=random.getrandbits(16) & 0x7FFF),
    "sizes": lambda random, i: question(
        b"s%d.service.consul" % (i % KNOWN_NAMES), edns=opt(random.getrandbits(16), random.getrandbits(16))
    ),
    "cookies": lambda random, i: question(
        b"s1.service.consul", edns=opt(1232, 0, b"\0\x0a\0\x08" + random.randbytes(8))
    ),
    "special names": lambda random, i: question(b"x%d.localhost" % i),
    "private addresses": lambda random, i: question(
        b"%d.%d.%d.10.in-addr.arpa" % (i >> 16, i >> 8 & 255, i & 255), 12
    ),
}


def test_a_flood_of_everything_grows_no_table() -> None:
    random = Random(1)
    made = engine(Clock())
    for i in range(COUNT):
        make = random.choice(list(FLOODS.values()))
        # What has to be looked up first, the follower bounds.
        made.decide(make(random, i), "udp" if i % 2 else "tcp")
    left = sizes(made)
    assert left["facts"] == len(engine(Clock()).facts)
    assert left["counts"] < 500, "the metrics"
    for transport in ("udp", "tcp"):
        assert left[f"{transport} passing"] <= PASSING
        # Names of the catalogue: their variants differ in type, size, and a few flags, all of them bounded.
        assert left[f"{transport} lasting"] <= 65_536
        prepared = left[f"{transport} passing"] + left[f"{transport} lasting"]
        assert left[f"{transport} keys"] == left[f"{transport} hot"] <= prepared * KEYS
        assert left[f"{transport} uses"] <= prepared * 3
    known = question(b"s1.service.consul")
    made.decide(known, "udp")
    assert known[2:] in made.tables["udp"].hot, "names of the catalogue are served as ever"


def _replies() -> Iterator[tuple[wire.Query, Relayed]]:
    for i in range(COUNT):
        raw = question(b"x%d.example.test" % i)
        query = wire.parse(raw)
        assert isinstance(query, wire.Query)
        body = b"\xc0\x0c\0\1\0\1\0\0\x0e\x10\0\4\xc0\0\2\1"
        reply = raw[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + raw[12:] + body
        yield query, Relayed.from_wire(reply, 1000.0)


def test_a_flood_of_names_elsewhere_fills_the_cache_to_its_octets_and_no_more() -> None:
    made = engine(Clock())
    for i, (query, relayed) in enumerate(_replies()):
        made.keep(query, relayed)
        if i % 8 == 0:  # and hot answers, of some
            made.decide(b"\0\1\1\0\0\1" + bytes(6) + query.question, "udp")
    assert 100 < made.relayed <= (1 << 20) // 512
    assert sizes(made)["udp passing"] <= PASSING
    made.tick()
    assert sizes(made)["udp passing"] == 0, "relayed answers are prepared for a second"


def test_a_flood_of_names_that_fail_is_remembered_in_part() -> None:
    made = engine(Clock())
    for i in range(COUNT):
        query = wire.Query.of(wire.name_from_text(f"x{i}.example.test"), wire.A)
        made.keep(query, UpstreamTimeout("nobody answers"))
    assert sizes(made)["failures"] <= 4_096


def test_a_flood_of_sources_takes_bounded_credit() -> None:
    policy = Policy([ip_network("10.0.0.0/8")], rate=5)
    for i in range(COUNT):
        inside = f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}"
        outside = f"192.0.{i >> 8 & 255}.{i & 255}"
        assert policy.judge(inside) is Verdict.ADMITTED
        assert policy.judge(outside) is Verdict.FOREIGN
        assert len(policy.credits) <= 65_536 + 1
    for table in (policy.credits, policy._admitted):
        assert len(table) <= 65_536 + 1
    policy.tick()
    assert not policy.credits


def test_a_flood_of_questions_to_upstreams_holds_a_bounded_number_of_sockets() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        forwarder = Forwarder(Routes(lambda: [At("127.0.0.1", 9)]), loop, attempt=60.0, total=60.0)
        never: asyncio.Future[Relayed] = loop.create_future()

        async def hang(query: wire.Query) -> Relayed:
            return await asyncio.shield(never)

        forwarder._ask_all = hang  # type: ignore[method-assign]  # without sockets
        waiting = []
        refused = 0
        for i in range(COUNT // 10):
            query = wire.Query.of(wire.name_from_text(f"x{i}.example.test"), wire.A)
            task = loop.create_task(forwarder.ask(query))
            waiting.append(task)
            if i % 1000 == 999:
                await asyncio.sleep(0)
                refused = sum(one.done() for one in waiting)
        await asyncio.sleep(0)
        assert len(forwarder._under_way) == 2_000
        assert refused >= COUNT // 10 - 3_000
        await forwarder.close()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not forwarder._under_way

    asyncio.run(main())


def test_names_of_the_catalogue_are_not_pushed_out_by_names_that_do_not_exist() -> None:
    made = engine(Clock())
    known = [question(b"s%d.service.consul" % i) for i in range(KNOWN_NAMES)]
    for raw in known:
        made.decide(raw, "udp")
    for i in range(10_000):
        made.decide(question(b"x%d.service.consul" % i), "udp")
    assert all(raw[2:] in made.tables["udp"].hot for raw in known)
