"""resolver.cache: replies of upstreams, kept no longer than they say."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver import wire
from resolver.answers import Limits
from resolver.cache import Cache, Relayed, key_of
from tests.resolver.upstream import reply
from tests.resolver.world import lines, query

ALL = Limits(size=65535, answers=0, edns=False)
SOA = "example.test. 900 IN SOA ns.example.test. host.example.test. 1 2 3 4 60"


def relayed(
    *records: str, name: str = "www.example.test", qtype: str = "A", now: float = 0.0, **how: int
) -> Relayed:
    request = dns.message.make_query(name, qtype, use_edns=0)
    message = reply(request, *records, rcode=how.get("rcode", 0))
    message.flags |= how.get("flags", 0)
    return Relayed.from_wire(message.to_wire(max_size=65535), now)


@pytest.mark.parametrize(
    ("records", "rcode", "lifetime"),
    [
        (["www.example.test. 60 IN A 192.0.2.1"], dns.rcode.NOERROR, 60),
        (["www.example.test. 60 IN CNAME w.test.", "w.test. 5 IN A 192.0.2.1"], dns.rcode.NOERROR, 5),
        (["www.example.test. 999999 IN A 192.0.2.1"], dns.rcode.NOERROR, 86_400),
        (["www.example.test. 2147483648 IN A 192.0.2.1"], dns.rcode.NOERROR, 0),  # RFC 2181 section 8
        ([SOA], dns.rcode.NXDOMAIN, 60),  # RFC 2308 section 5: MINIMUM is less than the TTL
        ([SOA.replace("900", "30")], dns.rcode.NXDOMAIN, 30),  # and here the TTL is
        ([SOA], dns.rcode.NOERROR, 60),  # NODATA
        (["www.example.test. 20 IN CNAME w.test.", SOA], dns.rcode.NXDOMAIN, 20),
        (["www.example.test. 86400 IN CNAME w.test.", SOA], dns.rcode.NOERROR, 60),  # leads to nothing
        (["www.example.test. 300 IN CNAME w.test."], dns.rcode.NOERROR, 300),
        ([], dns.rcode.NXDOMAIN, 0),  # RFC 2308 section 5: without an SOA it is not cached
        ([], dns.rcode.NOERROR, 0),
        ([], dns.rcode.REFUSED, 0),
    ],
)  # fmt: skip
def test_lifetimes(records: list[str], rcode: int, lifetime: int) -> None:
    assert relayed(*records, rcode=rcode).ttl == lifetime


def test_a_cut_reply_is_not_kept() -> None:
    """RFC 2181 section 9."""
    assert relayed("www.example.test. 60 IN A 192.0.2.1", flags=dns.flags.TC).ttl == 0


def test_ttls_count_down_and_the_reply_goes_when_they_end() -> None:
    cache = Cache(100_000, max_stale=100.0)
    asked = query("www.example.test", ident=7)
    cache.put(key_of(asked), relayed("www.example.test. 60 IN A 192.0.2.1", now=1000.0))
    kept = cache.get(key_of(asked), 1059.9)
    assert kept is not None
    message = dns.message.from_wire(kept.to_wire(asked, ALL, 1059.9))
    assert message.id == 7
    assert lines(message.answer) == ["www.example.test. 1 A 192.0.2.1"]
    assert cache.get(key_of(asked), 1060.0) is None


def test_replies_are_told_apart_by_question_do_and_cd_and_not_by_case() -> None:
    plain = key_of(query("www.example.test"))
    assert plain == key_of(query("WWW.example.TEST"))
    others = {
        key_of(query("www.example.test", "AAAA")),
        key_of(query("www.example.test", want_dnssec=True)),
        key_of(query("www.example.test", flags=dns.flags.RD | dns.flags.CD)),
    }
    assert len(others) == 3
    assert plain not in others


def test_the_client_gets_its_own_letters_and_its_own_edns() -> None:
    kept = relayed("www.example.test. 60 IN A 192.0.2.1")
    asked = query("wWw.example.test")
    message = dns.message.from_wire(kept.to_wire(asked, ALL, 0.0))
    assert message.question[0].name.labels[0] == b"wWw"
    assert message.edns == -1
    message = dns.message.from_wire(kept.to_wire(asked, Limits(512, 0, edns=True), 0.0))
    assert message.edns == 0


def test_ad_is_passed_to_those_who_asked() -> None:
    """RFC 6840 section 5.7."""
    kept = relayed("www.example.test. 60 IN A 192.0.2.1", flags=dns.flags.AD)
    asked = query("www.example.test")
    for limits, ad in (
        (ALL, False),
        (Limits(512, 0, edns=False, ad=True), True),
        (Limits(512, 0, edns=True, do=True), True),
    ):
        message = dns.message.from_wire(kept.to_wire(asked, limits, 0.0))
        assert bool(message.flags & dns.flags.AD) == ad
        assert not message.flags & dns.flags.AA


@given(st.integers(0, 80), st.integers(512, 1500), st.booleans())
def test_no_reply_is_longer_than_the_client_takes(count: int, size: int, edns: bool) -> None:
    kept = relayed(*(f"www.example.test. 60 IN A 192.0.2.{i}" for i in range(count)))
    raw = kept.to_wire(query("www.example.test"), Limits(size, 0, edns=edns), 0.0)
    assert len(raw) <= size
    message = dns.message.from_wire(raw)
    assert bool(message.flags & dns.flags.TC) == (len(lines(message.answer)) < count)


def test_additional_records_that_do_not_fit_are_no_truncation() -> None:
    request = dns.message.make_query("www.example.test", "A")
    message = reply(request, "www.example.test. 60 IN A 192.0.2.1")
    for i in range(60):
        rrset = dns.rrset.from_text(f"n{i}.example.test.", 60, "IN", "A", "192.0.2.9")
        message.additional.append(rrset)
    raw = Relayed.from_wire(message.to_wire(max_size=65535), 0.0).to_wire(
        query("www.example.test"), Limits(512, 0, edns=False), 0.0
    )
    cut = dns.message.from_wire(raw)
    assert len(raw) <= 512
    assert not cut.flags & dns.flags.TC
    assert 0 < len(cut.additional) < 60


def test_an_authority_that_does_not_fit_is_a_truncation_where_it_is_all_that_was_said() -> None:
    servers = [f"example.test. 60 IN NS ns{i}.some-provider-of-names.test." for i in range(30)]
    request = dns.message.make_query("www.example.test", "A")
    for answer in ([], ["www.example.test. 60 IN A 192.0.2.1"]):
        message = reply(request, *answer)
        message.authority.extend(dns.rrset.from_text(*one.split(maxsplit=4)) for one in servers)
        kept = Relayed.from_wire(message.to_wire(max_size=65535), 0.0)
        cut = dns.message.from_wire(kept.to_wire(query("www.example.test"), Limits(512, 0, edns=False), 0.0))
        assert bool(cut.flags & dns.flags.TC) == (not answer)


def test_the_cache_is_bounded_by_octets() -> None:
    cache = Cache(10_000, max_stale=100.0)
    for i in range(1000):
        name = f"n{i}.example.test"
        cache.put(key_of(query(name)), relayed(f"{name}. 60 IN A 192.0.2.1", name=name))
    assert 5 < len(cache) < 20
    assert cache.get(key_of(query("n999.example.test")), 1.0) is not None
    assert cache.get(key_of(query("n0.example.test")), 1.0) is None


def test_what_has_expired_may_be_told_for_a_while_if_it_is_no_denial() -> None:
    """RFC 8767 section 4: with a TTL of 30 s."""
    cache = Cache(100_000, max_stale=100.0)
    www, nope, six = (
        query("www.example.test"),
        query("nope.example.test"),
        query("www.example.test", "AAAA"),
    )
    cache.put(key_of(www), relayed("www.example.test. 60 IN A 192.0.2.1", now=1000.0))
    cache.put(key_of(nope), relayed(SOA, name="nope.example.test", rcode=dns.rcode.NXDOMAIN, now=1000.0))
    leads_nowhere = ["www.example.test. 60 IN CNAME w.test.", SOA]
    cache.put(key_of(six), relayed(*leads_nowhere, qtype="AAAA", now=1000.0))
    stale = cache.stale(key_of(www), 1100.0)
    assert stale is not None
    message = dns.message.from_wire(stale.to_wire(www, ALL, 1100.0))
    assert lines(message.answer) == ["www.example.test. 30 A 192.0.2.1"]
    assert cache.stale(key_of(nope), 1100.0) is None
    assert cache.stale(key_of(six), 1100.0) is None
    assert cache.stale(key_of(www), 1160.0) is None
    assert len(cache) == 0


def test_failures_are_remembered_for_seconds_and_end_with_an_answer() -> None:
    """RFC 9520 section 3.2."""
    cache, key = Cache(100_000, max_stale=0.0), key_of(query("www.example.test"))
    assert cache.failure(key, 1000.0) == ""
    cache.fail(key, "all silent", 1000.0)
    assert cache.failure(key, 1004.9) == "all silent"
    assert cache.failure(key, 1005.0) == ""
    cache.fail(key, "all silent", 1000.0)
    cache.put(key, relayed("www.example.test. 60 IN A 192.0.2.1", now=1001.0))
    assert cache.failure(key, 1002.0) == ""


@pytest.mark.parametrize(
    ("ttl", "age", "due"), [(60, 50, False), (60, 55, True), (9, 8.5, False), (10, 9.5, True)]
)
def test_what_is_about_to_expire_is_due(ttl: int, age: float, due: bool) -> None:
    assert relayed(f"www.example.test. {ttl} IN A 192.0.2.1", now=1000.0).due(1000.0 + age) == due


@given(st.binary(max_size=200))
def test_anything_that_is_a_reply_can_be_given_to_a_client(tail: bytes) -> None:
    request = dns.message.make_query("www.example.test", "A")
    raw = bytearray(reply(request).to_wire() + tail)
    raw[7] = len(tail) % 4  # claims some records
    try:
        kept = Relayed.from_wire(bytes(raw), 0.0)
    except wire.Malformed:
        return
    assert len(kept.to_wire(query("www.example.test"), Limits(512, 0, edns=True), 5.0)) <= 512
