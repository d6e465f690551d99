"""DNS messages as bytes: the header, the question and EDNS of a request; the frame of a reply.

    0      2      4        12                                  RFC 1035 section 4.1
    | id   | flags | counts | question: name type class | ... | OPT |

Laws:
- Pure. No input makes a function here raise anything but ``Malformed``, and ``parse`` not even that.
- Work is bounded by the length of the packet: a name in a question is never followed through pointers, and
  one in a record is skipped, not expanded.
- Bytes that the client will compare (its id, its question) are copied, never made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception class
from typing import Final, NewType

__all__ = [
    "Edns",
    "Frame",
    "Malformed",
    "Name",
    "Query",
    "Refusal",
    "fold_question",
    "frame",
    "name_from_text",
    "name_to_text",
    "name_to_wire",
    "opt",
    "parse",
    "rcode_to_text",
    "read_frame",
    "refuse",
    "truncated",
    "type_from_text",
    "type_to_text",
]

Name = NewType("Name", tuple[bytes, ...])
"""Labels from left to right, without the root's empty one; in the case they were given."""

# Types (RFC 1035 section 3.2.2; 3596, 2782, 6891) and the classes.
A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
MX: Final = 15
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
NAPTR: Final = 35
OPT: Final = 41
SVCB: Final = 64
HTTPS: Final = 65
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255
CAA: Final = 257

IN: Final = 1

_TYPES: Final = {
    "A": A, "NS": NS, "CNAME": CNAME, "SOA": SOA, "PTR": PTR, "MX": MX, "TXT": TXT, "AAAA": AAAA, "SRV": SRV,
    "NAPTR": NAPTR, "OPT": OPT, "SVCB": SVCB, "HTTPS": HTTPS, "IXFR": IXFR, "AXFR": AXFR, "ANY": ANY,
    "CAA": CAA,
}  # fmt: skip
KNOWN_TYPES: Final = frozenset(_TYPES.values())
_TYPE_NAMES: Final = {number: name for name, number in _TYPES.items()}

# Response codes (RFC 1035 section 4.1.1; BADVERS: RFC 6891 section 9, its upper bits travel in the OPT).
NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16

FAILURES: Final = frozenset({FORMERR, SERVFAIL, NOTIMP, REFUSED})
"""What says more about the server that was asked than about the name."""
_RCODE_NAMES: Final = {
    NOERROR: "NOERROR", FORMERR: "FORMERR", SERVFAIL: "SERVFAIL", NXDOMAIN: "NXDOMAIN", NOTIMP: "NOTIMP",
    REFUSED: "REFUSED", BADVERS: "BADVERS",
}  # fmt: skip

# Bits of the second header word.
QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
_OPCODE: Final = 0x7800

DO: Final = 0x8000  # in the lower half of the OPT's TTL (RFC 3225)

HEADER_LENGTH: Final = 12  # octets
MAX_NAME_LENGTH: Final = 255  # octets on the wire, length octets and root included (RFC 1035 section 2.3.4)
MAX_LABEL_LENGTH: Final = 63  # octets
MIN_UDP_SIZE: Final = 512  # octets; what every client takes (RFC 1035 section 2.3.4)
OUR_UDP_SIZE: Final = 1232  # octets we say we take: fits every link's MTU, as agreed on DNS flag day 2020

_HEADER: Final = Struct("!6H")
_TWO_WORDS: Final = Struct("!HH")
_RECORD: Final = Struct("!HHIH")  # type, class, TTL, length of the data


class Malformed(ValueError):
    """Bytes that are no DNS message, or a text that is no domain name."""


@dataclass(frozen=True, slots=True)
class Edns:
    """What the request's OPT record says (RFC 6891 section 6.1)."""

    size: int
    """Octets of UDP payload that the client takes; never under 512 (RFC 6891 section 6.2.3)."""
    version: int
    do: bool
    """DNSSEC records are wanted."""
    plain: bool
    """It carries no options, so that equal questions are equal bytes."""


@dataclass(frozen=True, slots=True)
class Query:
    """One well-formed question of opcode QUERY."""

    id: int
    flags: int
    question: bytes
    """Name, type and class as the client wrote them."""
    name: Name
    type: int
    klass: int
    edns: Edns | None
    plain: bool
    """The packet is header, question and at most an OPT without options; nothing else varies in it."""

    @classmethod
    def of(cls, name: Name, qtype: int) -> Query:
        """Return the query that a client without EDNS would make."""
        return cls(0, RD, name_to_wire(name) + _TWO_WORDS.pack(qtype, IN), name, qtype, IN, None, plain=True)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A packet that deserves an error and nothing more."""

    id: int
    flags: int
    rcode: int
    question: bytes = b""


# --- requests ----------------------------------------------------------------------------------------


def parse(packet: bytes) -> Query | Refusal | None:
    """Read a request. None: say nothing, it is no question at all.

    Silence for answers is a must: replying to a reply lets two servers be played against each other for
    ever (RFC 1035 section 4.1.1, QR).
    """
    if len(packet) < HEADER_LENGTH:
        return None
    ident, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(packet)
    if flags & QR:
        return None
    if flags & _OPCODE:  # RFC 1035 section 4.1.1: a kind of query that is not supported
        return Refusal(ident, flags, NOTIMP)
    if questions != 1:  # RFC 9619: a query has exactly one
        return Refusal(ident, flags, FORMERR)
    try:
        name, end = _read_question_name(packet)
        qtype, qclass = _TWO_WORDS.unpack_from(packet, end)
    except (Malformed, IndexError, StructError):
        return Refusal(ident, flags, FORMERR)
    end += 4
    question = packet[HEADER_LENGTH:end]
    try:
        edns, last = _read_edns(packet, end, answers + authorities, additionals)
    except (Malformed, IndexError, StructError):
        return Refusal(ident, flags, FORMERR, question)
    bare = additionals == 0 if edns is None else additionals == 1 and edns.plain
    plain = bare and not (answers or authorities) and last == len(packet)
    return Query(ident, flags, question, name, qtype, qclass, edns, plain)


def _read_question_name(packet: bytes) -> tuple[Name, int]:
    """Read the name at the start of the question; return it and the offset after it.

    Nothing stands before it that a pointer could mean, so a pointer here is always an attack or a fault.
    """
    labels: list[bytes] = []
    offset = HEADER_LENGTH
    while length := packet[offset]:
        if length > MAX_LABEL_LENGTH:
            raise Malformed(f"a question's label of {length} octets, at most 63 are possible")
        end = offset + 1 + length
        label = packet[offset + 1 : end]
        if len(label) != length:
            raise Malformed("the packet ends inside a label")
        labels.append(label)
        offset = end
    if offset + 1 - HEADER_LENGTH > MAX_NAME_LENGTH:
        raise Malformed(f"a name of {offset + 1 - HEADER_LENGTH} octets, at most 255 are possible")
    return Name(tuple(labels)), offset + 1


def _read_edns(packet: bytes, offset: int, skipped: int, additionals: int) -> tuple[Edns | None, int]:
    """Find the OPT among the additional records; return it and where the records end."""
    for _ in range(skipped):
        offset = skip_record(packet, offset)
    found: Edns | None = None
    for _ in range(additionals):
        start, offset = offset, skip_record(packet, offset)
        name_end = skip_name(packet, start)
        rtype, size, ttl, length = _RECORD.unpack_from(packet, name_end)
        if rtype != OPT:
            continue
        if found is not None or packet[start] != 0:  # RFC 6891 section 6.1.1: one, and its owner is the root
            raise Malformed("a second OPT record, or one that is not the root's")
        found = Edns(
            size=max(size, MIN_UDP_SIZE),
            version=(ttl >> 16) & 0xFF,
            do=bool(ttl & DO),
            plain=length == 0,
        )
    return found, offset


def skip_name(packet: bytes, offset: int) -> int:
    """Return the offset after the name at *offset*; a pointer ends a name (RFC 1035 section 4.1.4).

    Raises:
        Malformed, IndexError: there is no whole name.
    """
    while length := packet[offset]:
        if length >= 0xC0:
            return offset + 2
        if length > MAX_LABEL_LENGTH:
            raise Malformed(f"a label of type {length >> 6:#04b}, which nobody defined")
        offset += 1 + length
    return offset + 1


def skip_record(packet: bytes, offset: int) -> int:
    """Return the offset after the resource record at *offset*.

    Raises:
        Malformed, IndexError, struct.error: there is no whole record.
    """
    offset = skip_name(packet, offset)
    length: int = _RECORD.unpack_from(packet, offset)[3]
    offset += _RECORD.size + length
    if offset > len(packet):
        raise Malformed(f"a record ends at octet {offset} of a message of {len(packet)}")
    return offset


def fold_question(question: bytes) -> bytes:
    """Return *question* with its name in lower case: equal questions become equal bytes (RFC 4343).

    Length octets stay what they are, since none of them (0 to 63) is an ASCII capital.
    """
    return question[:-4].lower() + question[-4:]


# --- replies -----------------------------------------------------------------------------------------


def refuse(request: Query | Refusal, rcode: int, *, options: bytes = b"") -> bytes:
    """Return the reply that only says *rcode*, with an OPT if there was one (RFC 6891 section 7)."""
    tail = b""
    if isinstance(request, Query) and request.edns is not None:
        tail = opt(extended_rcode=rcode >> 4, do=request.edns.do, options=options)
    flags = QR | RA | (request.flags & (_OPCODE | RD | CD)) | (rcode & 0xF)
    counts = (1 if request.question else 0, 0, 0, 1 if tail else 0)
    return _HEADER.pack(request.id, flags, *counts) + request.question + tail


def truncated(request: Query) -> bytes:
    """Return the reply that says nothing but: ask over TCP."""
    tail = opt(do=request.edns.do) if request.edns is not None else b""
    flags = QR | RA | TC | (request.flags & (RD | CD))
    return _HEADER.pack(request.id, flags, 1, 0, 0, 1 if tail else 0) + request.question + tail


def opt(*, extended_rcode: int = 0, do: bool = False, options: bytes = b"") -> bytes:
    """Return our OPT record (RFC 6891 section 6.1.2). Version 0 is the highest we speak."""
    ttl = (extended_rcode << 24) | (DO if do else 0)
    return b"\0" + _RECORD.pack(OPT, OUR_UDP_SIZE, ttl, len(options)) + options


def extended_error(code: int, text: str = "") -> bytes:
    """Return the option that says why an answer is stale or missing (RFC 8914 section 2)."""
    data = code.to_bytes(2) + text.encode()[:64]
    return _TWO_WORDS.pack(15, len(data)) + data


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the records of a reply stand: what a cache needs to age, cut and re-address it."""

    id: int
    flags: int
    question: bytes
    records: tuple[tuple[int, int, int, int], ...]
    """(section 1 to 3, type, offset of the TTL, offset after the record), up to the OPT. What follows the OPT
    is left out: without the OPT it would stand elsewhere, and names in it would point to the wrong place."""
    rcode: int
    """With the OPT's upper bits."""


def read_frame(reply: bytes) -> Frame:
    """Walk through an upstream's reply.

    Raises:
        Malformed: it is not one whole reply to one question.
    """
    try:
        ident, flags, questions, *counts = _HEADER.unpack_from(reply)
        if not flags & QR or questions != 1:
            raise Malformed("not a reply to one question")
        name_end = _read_question_name(reply)[1]
        offset = name_end + 4
        question = reply[HEADER_LENGTH:offset]
        rcode = flags & 0xF
        records: list[tuple[int, int, int, int]] = []
        opts = 0
        for section, count in enumerate(counts, start=1):
            for _ in range(count):
                owner_end = skip_name(reply, offset)
                offset = skip_record(reply, offset)
                rtype = int.from_bytes(reply[owner_end : owner_end + 2])
                if rtype == OPT:
                    opts += 1
                    if section != 3 or opts > 1:  # RFC 6891 section 6.1.1
                        raise Malformed("a second OPT record, or one that is not an addition")
                    rcode |= reply[owner_end + 4] << 4
                elif not opts:
                    records.append((section, rtype, owner_end + 4, offset))
    except (IndexError, StructError) as exc:
        raise Malformed("the reply ends before its records do") from exc
    return Frame(ident, flags, question, tuple(records), rcode)


def frame(ident: int, flags: int, question: bytes, sections: Sequence[int], body: bytes) -> bytes:
    """Put a header before *question* and *body*; *sections* counts the records of the three sections."""
    return _HEADER.pack(ident, flags, 1, *sections) + question + body


# --- names and types as people write them ---------------------------------------------------------------


def name_from_text(text: str) -> Name:
    """Read ``www.example.org`` or ``www.example.org.``; no escapes, since host names have none.

    Raises:
        Malformed: it is no domain name; the message says why.
    """
    text = text.removesuffix(".")
    if not text:
        return Name(())
    try:
        labels = tuple(text.encode("ascii").split(b"."))
    except UnicodeEncodeError as exc:
        raise Malformed(f"the domain name {text!r} holds letters beyond ASCII") from exc
    for label in labels:
        if not 0 < len(label) <= MAX_LABEL_LENGTH:
            raise Malformed(f"the domain name {text!r} has a label of {len(label)} octets, not 1 to 63")
    if sum(map(len, labels)) + len(labels) + 1 > MAX_NAME_LENGTH:
        raise Malformed(f"the domain name {text[:40]!r}... is longer than 255 octets")
    return Name(labels)


def name_to_text(name: Name) -> str:
    """Return *name* as people read it, with a final dot and RFC 1035 section 5.1 escapes."""
    return "".join(_escape(label) + "." for label in name) or "."


def _escape(label: bytes) -> str:
    return "".join(
        f"\\{octet:03d}"
        if not 0x21 <= octet <= 0x7E
        else f"\\{chr(octet)}"
        if octet in b'."\\();@$'
        else chr(octet)
        for octet in label
    )


def name_to_wire(name: Name) -> bytes:
    """Return *name* uncompressed."""
    return b"".join(bytes((len(label),)) + label for label in name) + b"\0"


def type_from_text(text: str) -> int:
    """Read ``SRV`` or ``TYPE33`` (RFC 3597 section 5).

    Raises:
        Malformed: no such type.
    """
    upper = text.upper()
    if upper in _TYPES:
        return _TYPES[upper]
    if upper.startswith("TYPE") and upper[4:].isdecimal() and int(upper[4:]) <= 0xFFFF:
        return int(upper[4:])
    raise Malformed(f"no record type {text!r}; known are {', '.join(_TYPES)} and TYPEnnn")


def rcode_to_text(number: int) -> str:
    return _RCODE_NAMES.get(number, f"RCODE{number}")


def counted_type(number: int) -> int:
    """Return *number* if anybody but a flood asks for it, else 0: counters by type must not grow with those
    that somebody makes up."""
    return number if number in KNOWN_TYPES else 0


def type_to_text(number: int) -> str:
    return _TYPE_NAMES.get(number, f"TYPE{number}")
