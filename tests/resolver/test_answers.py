"""resolver.answers: replies within limits, in every rotation; the table that holds them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import dns.flags
import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver import wire
from resolver.answers import Limits, Prepared, Table, prepare, render
from resolver.records import Found
from resolver.zone import ZoneSettings, resolve
from tests.resolver.world import SERIAL, entry, facts, lines, node, query

EVERYTHING = Limits(size=65535, answers=0, edns=False)


@functools.cache
def found(name: str, qtype: str, count: int, *, own_address: bool = True, limit: int = 0) -> Found:
    instances = [
        entry("web", f"10.0.{i // 250}.{i % 250 + 1}" if own_address else "", 8000 + i, on=node(f"host-{i}"))
        for i in range(count)
    ]
    outcome = resolve(query(name, qtype), facts(*instances), ZoneSettings(a_record_limit=limit), SERIAL)
    assert isinstance(outcome, Found)
    return outcome


def rendered(name: str, qtype: str, outcome: Found, limits: Limits) -> dns.message.Message:
    raw = b"\0\1" + render(query(name, qtype).question, outcome, outcome.choices, limits)
    assert len(raw) <= limits.size
    return dns.message.from_wire(raw)


@given(
    st.sampled_from(["A", "SRV", "AAAA"]),
    st.integers(0, 60),
    st.integers(512, 4096),
    st.integers(0, 8),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_no_reply_is_longer_than_allowed_and_tc_says_when_answers_are_missing(
    qtype: str, count: int, size: int, answers: int, edns: bool, own_address: bool, compress: bool
) -> None:
    outcome = found("web.service.consul", qtype, count, own_address=own_address)
    limits = Limits(size=size, answers=answers, edns=edns, compress=compress)
    message = rendered("web.service.consul", qtype, outcome, limits)
    given_records = len(lines(message.answer))
    wanted = min(len(outcome.choices), answers) if answers else len(outcome.choices)
    assert given_records <= wanted
    assert bool(message.flags & dns.flags.TC) == (given_records < wanted)
    assert message.edns == (0 if edns else -1)


def test_as_many_records_as_fit_are_given() -> None:
    """musl uses what a truncated reply holds: an empty one would be a failed lookup."""
    outcome = found("web.service.consul", "A", 100)
    message = rendered("web.service.consul", "A", outcome, Limits(size=512, answers=0, edns=False))
    room = 512 - 12 - len(query("web.service.consul").question)
    assert len(lines(message.answer)) == room // 16
    assert message.flags & dns.flags.TC


def test_additional_records_are_left_out_in_silence() -> None:
    """RFC 2181 section 9: TC says that an answer is missing, not that an addition is."""
    outcome = found("web.service.consul", "SRV", 9)
    message = rendered("web.service.consul", "SRV", outcome, Limits(size=512, answers=0, edns=False))
    assert len(lines(message.answer)) == 9
    assert len(lines(message.additional)) < 9
    assert not message.flags & dns.flags.TC


def test_counted_limits_set_tc_only_when_asked_to() -> None:
    outcome = found("web.service.consul", "A", 9)
    plain = rendered("web.service.consul", "A", outcome, Limits(512, 3, edns=False))
    assert len(lines(plain.answer)) == 3
    assert not plain.flags & dns.flags.TC
    truncating = rendered("web.service.consul", "A", outcome, Limits(512, 3, edns=False, truncate=True))
    assert truncating.flags & dns.flags.TC


def test_a_record_limit_is_no_truncation() -> None:
    outcome = found("web.service.consul", "A", 9, limit=2)
    message = rendered("web.service.consul", "A", outcome, Limits(512, 3, edns=False, truncate=True))
    assert len(lines(message.answer)) == 2
    assert not message.flags & dns.flags.TC


def test_compression_changes_nothing_but_the_length() -> None:
    outcome = found("web.service.consul", "SRV", 5, own_address=False)
    question = query("web.service.consul", "SRV").question
    plain = b"\0\1" + render(question, outcome, outcome.choices, Limits(65535, 0, edns=True, compress=False))
    short = b"\0\1" + render(question, outcome, outcome.choices, EVERYTHING)
    assert len(short) < len(plain)
    for section in ("answer", "additional"):
        assert lines(getattr(dns.message.from_wire(short), section)) == lines(
            getattr(dns.message.from_wire(plain), section)
        )


def test_header_bits_are_ours_and_rd_and_cd_the_clients() -> None:
    outcome = found("web.service.consul", "A", 1)
    message = rendered(
        "web.service.consul", "A", outcome, Limits(512, 0, edns=False, flags=wire.RD | wire.CD)
    )
    assert dns.flags.to_text(message.flags) == "QR AA RD RA CD"


# --- rotation


def first_of(replies: Iterable[bytes]) -> list[str]:
    return [str(next(iter(dns.message.from_wire(b"\0\1" + raw).answer[0]))) for raw in replies]


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0))
def test_each_instance_comes_first_equally_often(count: int, answers: int, seed: int) -> None:
    limits = Limits(512, answers, edns=False)
    prepared = prepare(
        query("web.service.consul"), found("web.service.consul", "A", count), limits, Random(seed)
    )
    assert sorted(Counter(first_of(prepared.replies)).values()) == [1] * count


def test_the_others_follow_in_random_order() -> None:
    """A pure rotation would send all clients of a failed instance to the same neighbour."""
    prepared = prepare(
        query("web.service.consul"), found("web.service.consul", "A", 8), EVERYTHING, Random(3)
    )
    followers = {}
    for raw in prepared.replies:
        order = [str(record) for record in dns.message.from_wire(b"\0\1" + raw).answer[0]]
        followers[order[0]] = order[1]
    assert len(set(followers.values())) > 2


def test_an_order_that_means_something_is_kept() -> None:
    ordered = replace(found("web.service.consul", "A", 8), ordered=True)
    prepared = prepare(query("web.service.consul"), ordered, EVERYTHING, Random(3))
    (raw,) = prepared.replies
    records = list(dns.message.from_wire(b"\0\1" + raw).answer[0])
    assert [record.to_wire() for record in records] == [choice.answer[0].data for choice in ordered.choices]


def test_thousands_of_instances_are_not_prepared_thousands_of_times() -> None:
    prepared = prepare(
        query("web.service.consul"), found("web.service.consul", "A", 3000), EVERYTHING, Random(1)
    )
    assert sum(map(len, prepared.replies)) < 200_000
    assert len(set(first_of(prepared.replies))) == len(prepared.replies) >= 2


# --- the table


def prepared_reply(text: bytes = b"reply", *, lasting: bool = True, uses: Iterable[str] = ()) -> Prepared:
    return Prepared([text + b"-1", text + b"-2"], 0, wire.A, tuple(uses), lasting)


def test_a_hot_entry_gives_the_replies_in_turn_for_ever_and_counts_them() -> None:
    table = Table()
    one = prepared_reply()
    table.put(b"q", EVERYTHING, one)
    table.promote(b"key", one)
    given_replies = []
    for _ in range(1000):
        try:
            given_replies.append(table.hot[b"key"]())
        except StopIteration:
            given_replies.append(table.wind_up(b"key"))
    assert given_replies == [b"reply-1", b"reply-2"] * 500
    assert one.served == 1000


def test_a_change_drops_exactly_the_answers_made_from_it() -> None:
    table = Table()
    for name in ("web", "api"):
        one = prepared_reply(name.encode(), uses=[name])
        table.put(name.encode(), EVERYTHING, one)
        table.promote(name.encode(), one)
    table.hot[b"web"]()
    assert table.served("web") == 1
    table.drop("web")
    assert list(table.hot) == [b"api"]
    assert table.get(b"web", EVERYTHING) is None
    assert table.get(b"api", EVERYTHING) is not None
    assert table.counts() == {(wire.A, 0, False): 1}


def test_floods_stay_in_their_part_of_the_table() -> None:
    table = Table(lasting=10, passing=10)
    lasting = prepared_reply()
    table.put(b"web", EVERYTHING, lasting)
    for i in range(1000):
        passing = prepared_reply(lasting=False, uses=["names"])
        table.put(b"random-%d" % i, EVERYTHING, passing)
        table.promote(b"random-%d" % i, passing)
    assert len(table) == 11
    assert len(table.hot) == 10
    assert table.get(b"web", EVERYTHING) is lasting
    for i in range(1000):
        table.put(b"web-%d" % i, EVERYTHING, prepared_reply())
    assert len(table) == 20


def test_large_answers_push_out_others_of_their_part_before_the_table_grows_too_large() -> None:
    table = Table(octets=(1000, 500))
    few = prepared_reply(lasting=False)
    table.put(b"few", EVERYTHING, few)
    for i in range(100):
        table.put(b"web-%d" % i, EVERYTHING, prepared_reply(b"x" * 98))  # 200 octets each
    assert len(table) == 1 + 5
    assert table.get(b"web-99", EVERYTHING) is not None
    assert table.get(b"few", EVERYTHING) is few
    table.put(b"web-99", EVERYTHING, prepared_reply(b"x" * 598))  # more than all may have together
    assert len(table) == 1 + 1
    for i in range(100):
        table.put(b"web-%d" % i, EVERYTHING, prepared_reply(b"x" * 98))
    assert len(table) == 1 + 5, "what was pushed out no longer counts"


def test_one_answer_has_few_hot_spellings() -> None:
    table = Table()
    one = prepared_reply()
    table.put(b"web", EVERYTHING, one)
    for i in range(1000):
        table.promote(b"spelling-%d" % i, one)
    assert len(table.hot) == 8


def test_replacing_an_answer_leaves_nothing_of_the_old_one() -> None:
    table = Table()
    for text in (b"old", b"new"):
        one = prepared_reply(text, uses=["web"])
        table.put(b"web", EVERYTHING, one)
        table.promote(b"key", one)
    assert table.hot[b"key"]() == b"new-1"
    table.drop("web")
    assert not table.hot
    assert len(table) == 0


@pytest.mark.parametrize("spelling", [b"\3WEB", b"\3wEb"])
def test_a_spelling_gets_its_own_letters_back(spelling: bytes) -> None:
    """RFC 1035 section 4.1.1 and draft-vixie-dnsext-dns0x20: the question is echoed as it was asked."""
    asked = query("web.service.consul")
    prepared = prepare(asked, found("web.service.consul", "A", 2), EVERYTHING, Random(1))
    question = spelling + asked.question[4:]
    message = dns.message.from_wire(b"\0\1" + prepared.next(question))
    assert message.question[0].name.labels[0] == spelling[1:]
    assert message.answer[0].name.labels[0] == spelling[1:]
