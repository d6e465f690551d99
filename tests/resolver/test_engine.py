"""resolver.engine: one request in, one decision out; what is remembered is what would be decided again."""

from __future__ import annotations

import itertools
from random import Random

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.model import NamesQuery, Query, ServiceName, ServiceQuery
from resolver import wire
from resolver.cache import Relayed
from resolver.engine import Answer, AnswerSettings, Drop, Engine, Forward, LookUp, Transport
from resolver.facts import Fact
from resolver.forward import UpstreamTimeout
from resolver.zone import ZoneSettings
from tests.resolver.upstream import reply as upstream_reply
from tests.resolver.world import SERIAL, entry, facts, lines, packet

WEB = ServiceQuery(ServiceName("web"))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def engine(
    known: dict[Query, Fact] | None = None, *, clock: Clock | None = None, **settings: object
) -> Engine:
    made = Engine(
        ZoneSettings(),
        AnswerSettings(**settings),  # type: ignore[arg-type]
        monotonic=clock or Clock(),
        wall_clock=lambda: float(SERIAL),
        random=Random(1),
    )
    for query, fact in (known if known is not None else catalogue()).items():
        made.learn(query, fact)
    return made


def catalogue(count: int = 3, stale: str = "") -> dict[Query, Fact]:
    return facts(*(entry("web", f"10.0.0.{i + 1}", 8000 + i, tags=["v1"]) for i in range(count)), stale=stale)


def answered(made: Engine, raw: bytes, transport: Transport = "udp") -> dns.message.Message:
    decision = made.decide(raw, transport)
    assert isinstance(decision, Answer), decision
    return dns.message.from_wire(decision.reply)


def hot(made: Engine, raw: bytes, transport: Transport = "udp") -> dns.message.Message | None:
    """What the server's loop would send without asking the engine."""
    ready = made.tables[transport].hot.get(raw[2:])
    return None if ready is None else dns.message.from_wire(raw[:2] + ready())


# --- the fast path says what the slow path says

requests = st.builds(
    packet,
    st.sampled_from(
        ["web.service.consul", "v1.web.service.dc1.consul", "nope.service.consul", "consul", "localhost",
         "host-1.node.consul", "0a000001.addr.consul", "x.invalid"]
    ),
    st.sampled_from(["A", "AAAA", "SRV", "ANY", "TXT", "SOA", "MX"]),
    edns=st.sampled_from([None, 512, 1232, 4096]),
    rd=st.booleans(),
    ident=st.integers(0, 65535),
)  # fmt: skip


@given(requests, st.sampled_from(["udp", "tcp"]))
def test_a_remembered_answer_is_the_one_that_was_decided(raw: bytes, transport: Transport) -> None:
    made = engine(catalogue(count=1))
    first = answered(made, raw, transport)
    second = answered(made, raw, transport)
    third = hot(made, raw, transport)
    assert third is not None
    assert first.to_text() == second.to_text() == third.to_text()
    assert third.id == int.from_bytes(raw[:2])


@given(requests, st.lists(st.booleans(), min_size=60, max_size=60))
def test_every_spelling_gets_the_same_records_and_its_own_letters(raw: bytes, capitals: list[bool]) -> None:
    made = engine(catalogue(count=1))
    parsed = wire.parse(raw)
    assert isinstance(parsed, wire.Query)
    name = parsed.question[:-4]
    odd = bytes(
        octet - 32 if upper and 97 <= octet <= 122 else octet
        for octet, upper in itertools.zip_longest(name, capitals[: len(name)], fillvalue=False)
    )
    spelt = raw[:12] + odd + raw[12 + len(name) :]
    plain, other = answered(made, raw), answered(made, spelt)
    assert wire.parse(spelt).question[:-4] == odd  # type: ignore[union-attr]
    assert other.question[0].name.to_wire() == odd
    assert plain.rcode() == other.rcode()
    assert [line.lower() for line in lines(plain.answer)] == [line.lower() for line in lines(other.answer)]
    assert len(made.tables["udp"]) == 1


def test_odd_sizes_are_served_as_they_are_and_leave_nothing_behind() -> None:
    made = engine(catalogue(count=100))
    told = {}
    in_use = {1024, 1200, 1220, 1232, 1400, 1410, 1440, 1452, 1472, 2048, 4096}
    for size in sorted({513, 800, 1000, *in_use, *range(514, 4200, 37)}):
        raw = packet("web.service.consul", "SRV", edns=size)
        decision = made.decide(raw, "udp")
        assert isinstance(decision, Answer)
        assert len(decision.reply) <= size
        message = dns.message.from_wire(decision.reply)
        assert message.flags & dns.flags.TC
        told[size] = len(message.answer[0])
    assert told[513] < told[800] < told[1000] < told[1024]
    assert told == dict(zip(told, sorted(told.values()), strict=True)), "never fewer for who takes more"
    assert len(made.tables["udp"]) == 1 + len(in_use)
    assert sum(made.counts().values()) == len(told)


def test_an_odd_size_that_is_large_enough_shares_the_answer_of_the_next_lower_one() -> None:
    made = engine()
    for size in (1232, 1300, 1399):
        answered(made, packet("web.service.consul", "SRV", edns=size))
    assert len(made.tables["udp"]) == 1
    assert hot(made, packet("web.service.consul", "SRV", edns=1399)) is not None


def test_odd_case_and_options_are_served_without_growing_the_hot_table() -> None:
    made = engine()
    for i in range(256):
        text = "".join(c.upper() if i >> n & 1 else c for n, c in enumerate("web.service.consul"))
        answered(made, packet(text))
        answered(made, packet("web.service.consul", options=[dns.edns.CookieOption(bytes([i] * 8), b"")]))
    assert len(made.tables["udp"]) == 2  # with and without OPT
    assert len(made.tables["udp"].hot) == 1


def test_random_names_grow_no_table_beyond_its_bound() -> None:
    made = engine()
    answered(made, packet("web.service.consul"))
    for i in range(6000):
        assert answered(made, packet(f"n{i}.service.consul")).rcode() == dns.rcode.NXDOMAIN
    assert len(made.tables["udp"]) <= 4096 + 1
    assert hot(made, packet("web.service.consul")) is not None


def test_instances_come_in_turn() -> None:
    made = engine()
    firsts = [str(answered(made, packet("web.service.consul")).answer[0][0]) for _ in range(6)]
    assert len(set(firsts[:3])) == 3
    assert firsts[:3] == firsts[3:]


def test_pairs_of_a_and_aaaa_still_meet_every_instance() -> None:
    """glibc asks both at once; a cursor shared by the two would give A every second instance."""
    made = engine(catalogue(count=2))
    seen = set()
    for _ in range(4):
        seen.add(str(answered(made, packet("web.service.consul", "A")).answer[0][0]))
        answered(made, packet("web.service.consul", "AAAA"))
    assert seen == {"10.0.0.1", "10.0.0.2"}


# --- limits


@pytest.mark.parametrize(
    ("edns", "transport", "count"),
    [
        (None, "udp", 3),
        (512, "udp", 3),
        (513, "udp", 29),
        (1232, "udp", 40),
        (None, "tcp", 40),
        (512, "tcp", 40),
    ],
)
def test_how_many_instances_a_client_gets(edns: int | None, transport: Transport, count: int) -> None:
    made = engine(catalogue(count=40))
    message = answered(made, packet("web.service.consul", edns=edns), transport)
    assert len(lines(message.answer)) == count
    assert bool(message.flags & dns.flags.TC) == (count == 29)


def test_consuls_udp_answer_limit_is_at_most_eight() -> None:
    assert (
        len(lines(answered(engine(catalogue(20), udp_answer_limit=5), packet("web.service.consul")).answer))
        == 5
    )
    assert (
        len(lines(answered(engine(catalogue(20), udp_answer_limit=50), packet("web.service.consul")).answer))
        == 8
    )


def test_without_compression_every_spelling_is_made_for_itself() -> None:
    made = engine(disable_compression=True)
    for name in ("web.service.consul", "WEB.service.consul"):
        message = answered(made, packet(name))
        assert message.answer[0].name.to_text() == f"{name}."
    assert len(made.tables["udp"]) == 1


# --- requests that are not answered from the zone


def test_obligations_of_a_server() -> None:
    made = engine()
    assert isinstance(made.decide(b"", "udp"), Drop)
    assert answered(made, packet("web.service.consul")[:20]).rcode() == dns.rcode.FORMERR
    notify = dns.message.make_query("web.service.consul", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    assert answered(made, notify.to_wire()).rcode() == dns.rcode.NOTIMP
    chaos = dns.message.make_query("version.bind", "TXT", rdclass=dns.rdataclass.CH)
    assert answered(made, chaos.to_wire()).rcode() == dns.rcode.REFUSED
    version_1 = dns.message.make_query("web.service.consul", "A")
    version_1.use_edns(1)
    reply = answered(made, version_1.to_wire())
    assert (reply.rcode(), reply.edns) == (dns.rcode.BADVERS, 0)  # RFC 6891 section 6.1.3
    assert answered(made, packet("example.test", "AXFR")).rcode() == dns.rcode.NOTIMP


def test_what_has_to_be_looked_up_first() -> None:
    made = engine({})
    decision = made.decide(packet("web.service.consul"), "udp")
    assert isinstance(decision, LookUp)
    assert decision.need == NamesQuery()
    assert len(made.tables["udp"]) == 0


# --- changes


def test_a_change_shows_in_the_next_answer() -> None:
    made = engine(catalogue(count=1))
    for raw in (packet("web.service.consul"), packet("WEB.service.consul"), packet("v1.web.service.consul")):
        answered(made, raw)
        changed = facts(entry("web", "10.9.9.9", tags=["v1"]))
        made.learn(WEB, changed[WEB])
        assert hot(made, raw) is None
        assert [str(r) for r in answered(made, raw).answer[0]] == ["10.9.9.9"]
        made.learn(WEB, catalogue(count=1)[WEB])


def test_a_new_name_is_no_longer_denied() -> None:
    made = engine()
    new = packet("new.service.consul")
    assert answered(made, new).rcode() == dns.rcode.NXDOMAIN
    assert hot(made, new) is not None
    made.learn(NamesQuery(), Fact(frozenset({"web", "new"})))
    assert hot(made, new) is None
    decision = made.decide(new, "udp")
    assert isinstance(decision, LookUp)
    assert decision.need == ServiceQuery(ServiceName("new"))


def test_learning_the_same_again_drops_nothing() -> None:
    made = engine()
    raw = packet("web.service.consul")
    answered(made, raw)
    made.learn(WEB, catalogue()[WEB])
    assert hot(made, raw) is not None


def test_forgetting_a_name_drops_its_answers() -> None:
    made = engine()
    raw = packet("web.service.consul")
    answered(made, raw)
    assert made.served(WEB) == 1
    made.forget(WEB)
    assert hot(made, raw) is None
    assert isinstance(made.decide(raw, "udp"), LookUp)


# --- outages


def errors_of(message: dns.message.Message) -> list[int]:
    return [int(o.code) for o in message.options if isinstance(o, dns.edns.EDEOption)]


def test_stale_answers_say_so_to_those_who_can_read_it() -> None:
    """RFC 8914 section 4.4; without OPT there is no room to say it (section 3)."""
    made = engine(catalogue(stale="down"))
    message = answered(made, packet("web.service.consul", edns=1232))
    assert len(lines(message.answer)) == 3
    assert errors_of(message) == [3]
    plain = answered(made, packet("web.service.consul"))
    assert plain.edns == -1
    assert len(lines(plain.answer)) == 3


@pytest.mark.parametrize(("timed_out", "code"), [(False, 22), (True, 23)])
def test_nothing_known_is_servfail_with_the_reason(timed_out: bool, code: int) -> None:
    made = engine({NamesQuery(): Fact(None, stale=True, why="refused", timed_out=timed_out)})
    message = answered(made, packet("web.service.consul", edns=1232))
    assert message.rcode() == dns.rcode.SERVFAIL
    assert errors_of(message) == [code]
    assert not message.authority
    assert answered(made, packet("web.service.consul")).rcode() == dns.rcode.SERVFAIL


# --- the rest of the world


def test_a_relayed_reply_is_kept_and_counts_down_second_by_second() -> None:
    clock = Clock()
    made = engine(clock=clock)
    raw = packet("www.example.test", ident=9)
    decision = made.decide(raw, "udp")
    assert isinstance(decision, Forward)
    request = dns.message.from_wire(raw)
    relayed = Relayed.from_wire(
        upstream_reply(request, "www.example.test. 60 IN A 192.0.2.1").to_wire(), clock.now
    )
    made.keep(decision.query, relayed)
    assert lines(dns.message.from_wire(made.relay(decision, relayed).reply).answer) == [
        "www.example.test. 60 A 192.0.2.1"
    ]
    for _ in range(2):
        clock.now += 1
        made.tick()
        assert hot(made, raw) is None
        first, second = answered(made, raw), hot(made, raw)
        assert second is not None
        assert first.to_text() == second.to_text()
        assert first.answer[0].ttl == 60 - (clock.now - 1000)
    clock.now += 58
    made.tick()
    again = made.decide(raw, "udp")
    assert isinstance(again, Forward)
    assert again.stale


def relayed(clock: Clock, *records: str, rcode: int = dns.rcode.NOERROR) -> Relayed:
    request = dns.message.from_wire(packet("www.example.test"))
    return Relayed.from_wire(upstream_reply(request, *records, rcode=rcode).to_wire(), clock.now)


RECORD = "www.example.test. 60 IN A 192.0.2.1"


def test_what_is_asked_for_shortly_before_it_expires_is_to_be_fetched_anew() -> None:
    clock = Clock()
    made = engine(clock=clock)
    raw = packet("www.example.test")
    forward = made.decide(raw, "udp")
    assert isinstance(forward, Forward)
    made.keep(forward.query, relayed(clock, RECORD))
    for later, due in ((1, False), (56, True)):
        clock.now = 1000.0 + later
        made.tick()
        decision = made.decide(raw, "udp")
        assert isinstance(decision, Answer)
        assert (decision.refresh is not None) == due


def test_an_old_answer_is_better_than_none() -> None:
    """RFC 8767 section 5, RFC 8914 section 4.4."""
    clock = Clock()
    made = engine(clock=clock)
    raw = packet("www.example.test", edns=1232)
    forward = made.decide(raw, "udp")
    assert isinstance(forward, Forward)
    made.keep(forward.query, relayed(clock, RECORD))
    clock.now += 100
    forward = made.decide(raw, "udp")
    assert isinstance(forward, Forward)
    for answer in (
        made.lack(forward, "silence"),
        made.relay(forward, relayed(clock, rcode=dns.rcode.SERVFAIL)),
    ):
        message = dns.message.from_wire(answer.reply)
        assert lines(message.answer) == ["www.example.test. 30 A 192.0.2.1"]
        assert errors_of(message) == [3]


def test_a_failure_is_remembered_and_costs_the_next_client_no_time() -> None:
    clock = Clock()
    made = engine(clock=clock)
    raw = packet("www.example.test", edns=1232)
    forward = made.decide(raw, "udp")
    assert isinstance(forward, Forward)
    for outcome in (UpstreamTimeout("silence"), relayed(clock, rcode=dns.rcode.REFUSED)):
        made.keep(forward.query, outcome)
        message = answered(made, raw)
        assert message.rcode() == dns.rcode.SERVFAIL
        assert errors_of(message) == [23]
        clock.now += 5
        assert isinstance(made.decide(raw, "udp"), Forward)


@given(st.binary(max_size=200), st.sampled_from(["udp", "tcp"]))
def test_any_packet_gets_a_decision(raw: bytes, transport: Transport) -> None:
    engine().decide(raw, transport)
