"""resolver.wire: any bytes are read without an exception, and as dnspython reads them."""

from __future__ import annotations

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolver import wire
from resolver.wire import Malformed, Name, Query, Refusal
from tests.resolver.world import packet

HEADER = bytes.fromhex("abcd 0100 0001 0000 0000 0000")
QUESTION = b"\3web\7service\6consul\0\0\1\0\1"

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=6).map(tuple).filter(lambda n: sum(map(len, n)) + len(n) + 1 <= 255)


def flag_word(**bits: int) -> bytes:
    return HEADER[:2] + sum(bits.values()).to_bytes(2) + HEADER[4:]


@given(st.binary(max_size=600))
def test_any_bytes_are_read_without_an_exception(raw: bytes) -> None:
    parsed = wire.parse(raw)
    assert parsed is None or parsed.id == int.from_bytes(raw[:2])


@given(names, st.integers(0, 65535), st.integers(0, 65535), st.booleans(), st.integers(0, 65535))
def test_a_request_is_read_as_dnspython_wrote_it(
    name: tuple[bytes, ...], qtype: int, ident: int, edns: bool, size: int
) -> None:
    message = dns.message.make_query(dns.name.Name((*name, b"")), dns.rdatatype.RdataType.make(qtype))
    message.id = ident
    if edns:
        message.use_edns(0, payload=size)
    raw = message.to_wire()
    parsed = wire.parse(raw)
    assert isinstance(parsed, Query)
    assert (parsed.id, parsed.name, parsed.type, parsed.klass) == (ident, name, qtype, 1)
    assert raw[12 : 12 + len(parsed.question)] == parsed.question
    assert parsed.plain
    if edns:
        assert parsed.edns is not None
        assert parsed.edns.size == max(size, 512)  # RFC 6891 section 6.2.3
    else:
        assert parsed.edns is None


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (HEADER[:11], "shorter than a header"),
        (flag_word(qr=wire.QR) + QUESTION, "a reply: answering it could go on for ever"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_question_is_met_with_silence(raw: bytes, why: str) -> None:
    assert wire.parse(raw) is None, why


TWO_OPTS = b"\0\0\x29\4\xd0\0\0\0\0\0\0" * 2


@pytest.mark.parametrize(
    ("raw", "rcode"),
    [
        (flag_word(iquery=0x0800) + QUESTION, wire.NOTIMP),
        (flag_word(notify=0x2000) + QUESTION, wire.NOTIMP),
        (flag_word(update=0x2800) + QUESTION, wire.NOTIMP),
        (HEADER[:4] + b"\0\0" + HEADER[6:], wire.FORMERR),  # no question
        (HEADER[:4] + b"\0\2" + HEADER[6:] + QUESTION * 2, wire.FORMERR),  # two (RFC 9619)
        (HEADER + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", wire.FORMERR),  # a label of 64
        (HEADER + b"\xc0\x0c\0\1\0\1", wire.FORMERR),  # a pointer to itself
        (HEADER + b"\3we", wire.FORMERR),  # cut inside the name
        (HEADER + b"\3web\0\0\1", wire.FORMERR),  # cut inside the type
        (HEADER + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", wire.FORMERR),  # 257 octets
        (HEADER[:10] + b"\0\1" + QUESTION, wire.FORMERR),  # an additional record that is not there
        (HEADER[:10] + b"\0\2" + QUESTION + TWO_OPTS, wire.FORMERR),  # RFC 6891 section 6.1.1
        (
            HEADER[:10] + b"\0\1" + QUESTION + b"\1a\0\0\x29\4\xd0\0\0\0\0\0\0",
            wire.FORMERR,
        ),  # OPT below a name
    ],
)
def test_what_is_no_proper_question_gets_an_error(raw: bytes, rcode: int) -> None:
    parsed = wire.parse(raw)
    assert isinstance(parsed, Refusal)
    assert (parsed.id, parsed.rcode) == (0xABCD, rcode)
    reply = dns.message.from_wire(wire.refuse(parsed, parsed.rcode))
    assert reply.id == 0xABCD
    assert reply.flags & dns.flags.QR
    assert reply.rcode() == rcode


def test_a_name_of_255_octets_is_the_longest() -> None:
    longest = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"
    assert len(longest) == 255
    assert isinstance(wire.parse(HEADER + longest + b"\0\1\0\1"), Query)


def test_records_before_the_opt_are_skipped_and_make_the_request_unusual() -> None:
    record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\1\2\3\4"
    opt = b"\0\0\x29\4\xd0\0\0\x80\0\0\0"
    parsed = wire.parse(HEADER[:6] + b"\0\1\0\0\0\1" + QUESTION + record + opt)
    assert isinstance(parsed, Query)
    assert parsed.edns is not None
    assert parsed.edns.do
    assert not parsed.plain


def test_options_and_trailing_octets_make_a_request_unusual() -> None:
    cookie = dns.edns.CookieOption(b"12345678", b"")
    with_cookie = dns.message.make_query("web.service.consul", "A", options=[cookie]).to_wire()
    for raw in (with_cookie, packet("web.service.consul") + b"x"):
        parsed = wire.parse(raw)
        assert isinstance(parsed, Query)
        assert not parsed.plain


@given(names)
def test_folding_a_question_changes_capitals_only(name: tuple[bytes, ...]) -> None:
    question = wire.name_to_wire(Name(name)) + b"\0A\0Z"
    folded = wire.fold_question(question)
    assert folded == wire.name_to_wire(Name(tuple(label.lower() for label in name))) + b"\0A\0Z"


def test_an_error_for_an_edns_request_carries_an_opt() -> None:
    """RFC 6891 section 7; the upper bits of BADVERS travel in it (section 6.1.3)."""
    parsed = wire.parse(packet("web.service.consul", edns=1232))
    assert isinstance(parsed, Query)
    reply = dns.message.from_wire(wire.refuse(parsed, wire.BADVERS))
    assert reply.rcode() == dns.rcode.BADVERS
    assert reply.edns == 0
    assert reply.payload == 1232


# --- replies of upstreams


@given(st.binary(max_size=300))
def test_any_reply_is_walked_or_refused(raw: bytes) -> None:
    try:
        frame = wire.read_frame(raw)
    except Malformed:
        return
    assert all(end <= len(raw) for *_, end in frame.records)


def test_a_reply_is_walked_to_its_ttls() -> None:
    request = dns.message.make_query("www.example.test", "A", use_edns=0)
    reply = dns.message.make_response(request)
    reply.answer.append(dns.rrset.from_text("www.example.test.", 60, "IN", "CNAME", "w.example.test."))
    reply.answer.append(dns.rrset.from_text("w.example.test.", 61, "IN", "A", "192.0.2.1", "192.0.2.2"))
    reply.authority.append(dns.rrset.from_text("example.test.", 62, "IN", "NS", "ns.example.test."))
    raw = reply.to_wire()
    frame = wire.read_frame(raw)
    found = [(section, kind, int.from_bytes(raw[at : at + 4])) for section, kind, at, _ in frame.records]
    assert found == [(1, wire.CNAME, 60), (1, wire.A, 61), (1, wire.A, 61), (2, wire.NS, 62)]


@pytest.mark.parametrize(
    ("records", "kept"),
    [
        ([b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\0", b"\0\0\x29\x04\xd0" + bytes(6)], 1),
        ([b"\0\0\x29\x04\xd0" + bytes(6), b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\0"], 0),
    ],
    ids=["the OPT last", "the OPT first"],
)
def test_what_follows_the_opt_of_a_reply_is_left_out(records: list[bytes], kept: int) -> None:
    """Taking the OPT out from before it would move what its names point to."""
    question = b"\3www\7example\4test\0\0\1\0\1"
    raw = b"\0\1\x81\x80\0\1\0\0\0\0\0\2" + question + b"".join(records)
    assert len(wire.read_frame(raw).records) == kept


@pytest.mark.parametrize("counts", [b"\0\1\0\0\0\0", b"\0\0\0\0\0\2"], ids=["as an answer", "twice"])
def test_an_opt_where_none_belongs_spoils_a_reply(counts: bytes) -> None:
    """RFC 6891 section 6.1.1."""
    opts = (b"\0\0\x29\x04\xd0" + bytes(6)) * 2
    with pytest.raises(Malformed, match="OPT"):
        wire.read_frame(b"\0\1\x81\x80\0\1" + counts + b"\0\0\1\0\1" + opts)


# --- texts


@given(names)
def test_names_are_written_as_dnspython_writes_them(name: tuple[bytes, ...]) -> None:
    assert wire.name_to_text(Name(name)) == dns.name.Name((*name, b"")).to_text()


@pytest.mark.parametrize("text", ["a..b", ".a", "a" * 64, "é.example", ".".join(["abcdefgh"] * 30)])
def test_what_is_no_domain_name_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(Malformed, match="domain name"):
        wire.name_from_text(text)


def test_domain_names_and_types_are_read_from_text() -> None:
    assert wire.name_from_text("Web.service.consul.") == (b"Web", b"service", b"consul")
    assert wire.name_from_text(".") == ()
    assert wire.type_from_text("srv") == wire.SRV
    assert wire.type_from_text("TYPE65280") == 65280
    assert wire.type_to_text(wire.SRV) == "SRV"
    assert wire.type_to_text(65280) == "TYPE65280"
    with pytest.raises(Malformed, match="SRVV"):
        wire.type_from_text("SRVV")
